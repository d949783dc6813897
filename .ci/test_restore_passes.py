"""Tests of what a restore tells PostgreSQL, in which order, and of what it makes of refusals."""
from __future__ import annotations

import os
import re
import secrets
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from restores import archive, identifier, refused, restored, stored
from surroundings import Scene

# ---- Secrets of the database -------------------------------------------------------------------

WRAPPER = """CREATE FUNCTION may(text[], oid) RETURNS void LANGUAGE plpgsql AS
    $$ BEGIN IF current_database() LIKE 'restore%' AND $1 <> '{{}}' THEN RAISE 'not here';
    END IF; END $$;
    CREATE FOREIGN DATA WRAPPER w VALIDATOR may; CREATE SERVER s FOREIGN DATA WRAPPER w;
    CREATE USER MAPPING FOR PUBLIC SERVER s OPTIONS (password '{}')"""
FEED = "CREATE SUBSCRIPTION {0} CONNECTION 'host=x password={1}' PUBLICATION p WITH (connect=false)"
UNFEED = """ALTER SUBSCRIPTION {0} DISABLE; ALTER SUBSCRIPTION {0} SET (slot_name = NONE);
    DROP SUBSCRIPTION {0}"""


@pytest.fixture
def feed(scene: Scene) -> Iterator[str]:
    """A subscription's name: wherever a test made it, it is gone at its end."""
    name = f"feed_{secrets.token_hex(4)}"
    yield name
    for database in scene.postgres.sql(f"""SELECT datname FROM pg_database d JOIN pg_subscription
            ON subdbid = d.oid WHERE subname = '{name}'""").splitlines():
        scene.postgres.sql(UNFEED.format(name), database)


class Arguments(threading.Thread):
    """All that the machine's lists of processes show meanwhile."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen, self.over = set[bytes](), threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    self.seen.add(Path(f"/proc/{pid}/cmdline").read_bytes())
                except OSError:  # it has ended
                    continue

    def __enter__(self) -> Arguments:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


def without(ran: subprocess.CompletedProcess[str], *hidden: str) -> str:
    """The log of a command in whose output none of these shows."""
    said = ran.stdout + ran.stderr
    assert not [each for each in hidden if each in said], said
    return ran.stderr


def test_no_secret_of_the_database_shows_while_it_is_restored(
        scene: Scene, new: str, feed: str) -> None:
    password, token, odd, comment = (f"hush{secrets.token_hex(8)}" for _ in range(4))
    name = identifier(scene.database)
    scene.sql(f"""{FEED.format(feed, password)}; ALTER DATABASE {name} SET "app.jwt" = '{token}';
        ALTER DATABASE {name} SET work_mem = '7MB'; COMMENT ON DATABASE {name} IS '{comment}';
        UPDATE pg_db_role_setting SET setconfig[2] = 'work_mem=it''s "{odd}"' WHERE setdatabase =
        (SELECT oid FROM pg_database WHERE datname = current_database())""")
    backup = stored(scene, archive(scene))
    scene.sql(UNFEED.format(feed))
    with Arguments() as arguments:
        ran = restored(scene, backup, "--database", new, status=1, LOG_LEVEL="debug")
    said = without(ran, password, token, odd, comment)
    assert re.search(r"level=error .* SET work_mem TO \*\*\* .*invalid value for parameter "
                     r'\\"work_mem\\": \\"\*\*\*\\""', said)
    shown = b"\n".join(arguments.seen).decode(errors="replace")
    assert "pg_restore" in shown  # identifier(new): which no statement lacks that names it
    assert not re.search(f"{password}|{token}|{odd}|{comment}|{identifier(new)}", shown)
    assert scene.postgres.sql("SHOW app.jwt", new) == token
    assert scene.postgres.sql("SELECT subenabled FROM pg_subscription WHERE subname = "
                              f"'{feed}'", new) == "f"
    assert re.search(f'level=warning msg="Subscriptions .*{feed} of the slot {feed}', said)


def test_of_a_statement_that_is_refused_the_log_has_its_first_words(
        scene: Scene, new: str, feed: str, restorer: dict[str, str]) -> None:
    password = f"hush{secrets.token_hex(8)}"
    scene.sql(FEED.format(feed, password))
    backup = stored(scene, archive(scene))
    ran = restored(scene, backup, "--database", new, "--no-owner", status=1, **restorer)
    assert f"Command was: CREATE SUBSCRIPTION {feed} …" in without(ran, password)
    scene.sql(f"{UNFEED.format(feed)}; {WRAPPER.format(password)}")
    backup = stored(scene, archive(scene), 1700000001)
    said = without(restored(scene, backup, "--database", new, status=1), password)
    assert "not here" in said and "Command was: CREATE USER MAPPING FOR public …" in said


def test_what_an_archive_has_for_a_statement_is_no_command_of_psqls(
        scene: Scene, new: str, tmp_path: Path) -> None:
    """Not even in one that somebody has made by hand."""
    mark = tmp_path / "mark"
    scene.sql("ALTER DATABASE {} SET work_mem = '{:<200}'".format(
        identifier(scene.database), "7MB"))
    body = archive(scene)
    [statement] = re.findall(rb"(?<= SET )work_mem TO '7MB *';", body)
    made = f"x \\! touch {mark}\n".encode()
    backup = stored(scene, body.replace(statement, made.ljust(len(statement) - 1) + b";"))
    said = restored(scene, backup, "--database", new, status=1).stderr
    assert "syntax error" in said and not mark.exists()


def test_what_is_not_whole_is_dropped_also_with_a_subscription_whose_publisher_is_away(
        scene: Scene, new: str, feed: str) -> None:
    scene.sql(f"""{FEED.format(feed, "x")}; CREATE FUNCTION one() RETURNS int LANGUAGE plpgsql AS
        $$ BEGIN IF current_database() LIKE 'restore%' THEN RAISE 'not here'; END IF; RETURN 1;
        END $$; CREATE MATERIALIZED VIEW latest AS SELECT one()""")
    backup = stored(scene, archive(scene))
    scene.sql(UNFEED.format(feed))
    assert "not here" in refused(scene, backup, "--database", new)
