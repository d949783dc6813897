"""Tests of how a restored database gets its name, where that is free, empty, or another's."""
from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from machine import Machine
from proxies import Proxy
from restores import (
    PROPERTIES,
    RESTORED,
    archive,
    connected,
    databases,
    holding,
    refused,
    restored,
    result_of,
    same_databases,
    stored,
    tablespaces,
    verifying,
)
from servers import Executor, Postgres, error_lines, temporary_folder
from surroundings import Scene, becomes_true
from timescale import Sensors

# ---- While it is made --------------------------------------------------------------------------

WAIT = """CREATE FUNCTION wait() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
    WHILE current_database() <> '{0}' AND NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'go_{0}')
    LOOP PERFORM pg_sleep(0.05); END LOOP; RETURN true; END $$;
    ALTER TABLE t ADD CHECK (public.wait())"""
MAKING = """SELECT datname FROM pg_stat_activity
    WHERE wait_event = 'PgSleep' AND datname LIKE 'restore%'"""

IDLE = "SET TRANSACTION READ ONLY"  # what a session does that is only there


@contextlib.contextmanager
def midway(scene: Scene, name: str, *arguments: str, **settings: str
           ) -> Iterator[tuple[Executor, str]]:
    """A restore that is at its rows until the end, and the database that it makes."""
    server = scene.postgres
    with Executor({**scene.settings, "BACKUP_TIME_SCALE": "0.01", **settings}, "restore", name,
                  *arguments) as executor:
        made = [""]

        def begun() -> bool:  # it sleeps nearly always: who asks twice may find nothing
            made[0] = server.sql(MAKING)
            return bool(made[0]) or executor.process.poll() is not None

        becomes_true(begun)
        yield executor, made[0]
        server.sql(f"CREATE ROLE go_{scene.database}")
        try:
            executor.wait()
        finally:
            server.sql(f"DROP ROLE go_{scene.database}")


@pytest.mark.parametrize("open_to_all", [True, False], ids=["open", "closed"])
def test_who_looks_at_each_database_gets_into_none_that_is_not_named_yet(
        scene: Scene, new: str, open_to_all: bool) -> None:
    """It has at the end what the archive says, also of who may connect."""
    scene.sql(WAIT.format(scene.database))
    if not open_to_all:
        scene.sql(f"REVOKE CONNECT ON DATABASE {scene.database} FROM PUBLIC")
    asked = "SELECT has_database_privilege('pg_monitor', '{}', 'CONNECT')"
    with midway(scene, stored(scene, archive(scene)), "--database", new) as (executor, scratch):
        assert scene.postgres.sql(asked.format(scratch)) == "f"
    assert executor.wait() == 0, executor.log
    assert scene.postgres.sql(asked.format(new)) == ("t" if open_to_all else "f")
    assert scene.postgres.sql(PROPERTIES, new) == scene.sql(PROPERTIES)


def test_sessions_in_an_empty_target_are_named_before_the_download(
        scene: Scene, new: str, restorer: dict[str, str]) -> None:
    scene.postgres.sql(f"CREATE DATABASE {new} OWNER {restorer['DB_USER']}")
    name = stored(scene, archive(scene))
    for settings, more, says in (
            (restorer, "--no-owner", "End these"), ({}, "--jobs=2", "will be ended")):
        with holding(scene.postgres, IDLE, new):
            ran = scene.run("restore", name, "--database", new, more, status=1 if settings else 0,
                            **settings, BACKUP_TIME_SCALE="0.01")
        [line] = [line for line in ran.stderr.splitlines() if says in line]
        assert re.search(r"level=warning .*pid \d+ \(psql, of postgres\)", line)
        assert ran.stderr.index(says) < ran.stderr.index("Download ...")


def test_an_empty_target_that_one_may_not_rename_is_refused_at_once(
        scene: Scene, new: str, restorer: dict[str, str]) -> None:
    scene.postgres.sql(f"CREATE DATABASE {new}")
    error = refused(scene, stored(scene, archive(scene)), "--database", new, "--no-owner",
                    **restorer)
    assert f"is not {restorer['DB_USER']}'s to rename" in error


def test_restores_that_begin_in_one_second_make_databases_of_their_own(
        scene: Scene, tmp_path: Path) -> None:
    scene.given_backup()
    (tmp_path / "clock").write_text("1790000000")
    machine = Machine({**scene.settings, "CLOCK": str(tmp_path / "clock")}, tmp_path)
    before = databases(scene.postgres)
    for name in (f"{scene.database}_1", f"{scene.database}_2"):
        scene.postgres.run("createdb", name)
        ran = machine.run("restore", "latest", "--database", name)
        assert ran.returncode == 0, ran.stderr
    made = set(databases(scene.postgres)) - set(before)
    assert sum(name.startswith("before_restore_") for name in made) == 2


# ---- While it is named -------------------------------------------------------------------------

@contextlib.contextmanager
def stuck(server: Postgres, database: str) -> Iterator[None]:
    """A session that does not end, though it is told to."""
    with holding(server, IDLE, database):
        pid = int(server.sql(f"SELECT pid FROM pg_stat_activity WHERE datname = '{database}'"
                             " AND state = 'idle in transaction'"))
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


def closed(server: Postgres) -> str:
    return server.sql("SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database"
                      " WHERE NOT datallowconn AND datname <> 'template0'")


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL, None], ids=["term", "kill", "cut"])
def test_a_restore_that_is_stopped_while_it_renames_leaves_no_database_closed_or_without_scheduler(
        sensors: Sensors, target: str, sig: signal.Signals | None) -> None:
    """Or where its session is cut then, in the last attempt to rename it."""
    sensors.server.sql(f"CREATE DATABASE {target}")
    sensors.server.sql("CREATE EXTENSION timescaledb", target)
    before, since = sensors.server.databases(), len(sensors.server.logged())
    with stuck(sensors.server, target), Executor(
            {**sensors.settings, **({} if sig else {"BACKUP_TIME_SCALE": "0.0001"})}, "restore",
            "latest", "--database", target) as executor:
        becomes_true(lambda: target in closed(sensors.server))
        if sig:
            executor.process.send_signal(sig)
        else:
            sensors.server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <>"
                               " pg_backend_pid() AND query LIKE 'DO %ALLOW_CONNECTIONS%'")
        assert executor.wait() == (-9 if sig == signal.SIGKILL else 143 if sig else 1)
        becomes_true(lambda: not closed(sensors.server))
    assert len(sensors.server.databases() - before) == 1  # it is whole
    if sig != signal.SIGKILL:
        assert target not in sensors.server.idle(since)
        sensors.server.sql("\n".join(executor.out).split("connected to it:\n")[1])
        assert sensors.server.text(target) == sensors.expected
        assert not sensors.server.idle(since) and not closed(sensors.server)


def test_a_server_that_is_away_while_it_renames_does_not_keep_the_name_from_it(
        scene: Scene, new: str) -> None:
    scene.postgres.sql(f"CREATE DATABASE {new}")
    name = stored(scene, archive(scene))
    with Proxy(scene.postgres.port) as proxy, contextlib.ExitStack() as session:
        session.enter_context(stuck(scene.postgres, new))
        with Executor({**scene.settings, "DB_PORT": str(proxy.port)}, "restore", name, "--database",
                      new) as executor:
            becomes_true(lambda: new in closed(scene.postgres))
            proxy.down()
            becomes_true(lambda: not closed(scene.postgres))  # its server has given up
            proxy.up()
            becomes_true(lambda: new in closed(scene.postgres))
            session.close()
            assert executor.wait() == 0, executor.log
    same_databases(scene, new)


# ---- In another's place ------------------------------------------------------------------------

def test_a_database_is_replaced_and_kept_and_timescaledbs_scheduler_runs_in_both(
        sensors: Sensors, target: str) -> None:
    sensors.server.sql(f"CREATE DATABASE {target} TEMPLATE sensors")
    sensors.server.sql("INSERT INTO notes (note) VALUES ('since then')", target)
    before, old = sensors.server.databases(), sensors.server.text(target)
    since = len(sensors.server.logged())
    with holding(sensors.server, IDLE, target):
        ran = sensors.run("restore", "latest", "--database", target, "--replace")
        assert re.search(r"level=warning .*Ending sessions.*pid \d+ \(psql", ran.stderr)
    [kept] = sensors.server.databases() - before
    assert re.fullmatch(r"before_restore_\d+", kept) and f"\nDROP DATABASE {kept};\n" in ran.stdout
    assert sensors.server.text(target) == sensors.expected
    assert sensors.server.text(kept) == old
    assert not sensors.server.idle(since) and not closed(sensors.server)


def test_the_printed_swap_finds_a_name_that_is_free(scene: Scene, new: str) -> None:
    """Also where an empty database has become before_restore_… already."""
    scene.postgres.run("createdb", new)
    said = restored(scene, stored(scene, archive(scene)), "--database", new).stdout
    there = databases(scene.postgres)
    scene.postgres.sql(said.split("the sessions in both:\n")[1])
    assert databases(scene.postgres)[scene.database] == there[new]


def test_the_printed_swap_ends_sessions_and_opens_what_is_there_also_where_it_is_refused(
        scene: Scene, new: str) -> None:
    said = restored(scene, stored(scene, archive(scene)), "--database", new).stdout
    swap, before = said.split("the sessions in both:\n")[1], databases(scene.postgres)
    [taken] = {*re.findall(r"before_restore_\d+", swap)}
    scene.postgres.sql(f"CREATE DATABASE {taken}")
    with connected(scene.postgres, scene.database), connected(scene.postgres, new):
        scene.postgres.run("psql", "-Xq", stdin=swap)
        assert before.items() <= databases(scene.postgres).items() and not closed(scene.postgres)
        scene.postgres.sql(f"DROP DATABASE {taken}")
    with connected(scene.postgres, scene.database), connected(scene.postgres, new):
        scene.postgres.sql(swap)
    there = databases(scene.postgres)
    assert (there[scene.database], there[taken]) == (before[new], before[scene.database])
    assert new not in there and not closed(scene.postgres)


@pytest.fixture
def elsewhere(scene: Scene) -> Iterator[Postgres]:
    """A new server, whose image made the database `metrics` with an extension."""
    with temporary_folder() as folder:
        server = Postgres(folder / "server")
        server._initdb()
        with open(folder / "server/data/postgresql.conf", "a") as file:
            file.write("wal_level = logical\nmax_prepared_transactions = 2\n")
        with server.start():
            server.sql("CREATE DATABASE metrics")
            server.sql("CREATE EXTENSION pg_trgm", "metrics")
            scene.postgres.sql(f"ALTER DATABASE {scene.database} RENAME TO metrics")
            scene.database = scene.settings["DB_DATABASE"] = "metrics"
            scene.backup()
            scene.postgres.sql("DROP DATABASE metrics")
            scene.settings |= {"DB_PORT": str(server.port), "DB_PASSWORD": server.password,
                               "BACKUP_TIME_SCALE": "0.01"}
            scene.postgres = server
            yield server


CONNECTION = "host=127.0.0.1 port={0.port} dbname={1} user=postgres password={0.password}"


def test_what_is_at_work_in_a_database_does_not_hinder_its_replacement_or_all_is_as_before(
        scene: Scene, elsewhere: Postgres) -> None:
    """A backup of it, replication to and from it; and then a prepared transaction."""
    [name] = scene.objects()  # a backup that is made again is one of another server
    restored(scene, name, "--database", "metrics")  # the new server's is empty
    elsewhere.sql("CREATE TABLE later (i int); CREATE PUBLICATION out FOR TABLE later", "metrics")
    elsewhere.sql("CREATE DATABASE other")
    elsewhere.sql("CREATE TABLE later (i int); CREATE TABLE t (i int);"
                  " CREATE PUBLICATION out FOR TABLE t", "other")
    for here, there in (("metrics", "other"), ("other", "metrics")):
        elsewhere.sql(f"SELECT pg_create_logical_replication_slot('to_{here}', 'pgoutput')", there)
        elsewhere.sql(f"""CREATE SUBSCRIPTION "in" CONNECTION '{CONNECTION.format(
            elsewhere, there)}' PUBLICATION out WITH (create_slot = false, slot_name = to_{here},
            copy_data = false)""", here)
    becomes_true(lambda: elsewhere.sql("SELECT count(*) FROM pg_stat_replication") == "2")
    were = databases(elsewhere)
    with scene.locked(), scene.start() as backup:
        scene.waiting()
        ran = scene.run("restore", name, "--database", "metrics", "--replace")
        # It fails, or is made again, of the new one.
        assert backup.wait() == 1 or result_of(backup)["made_again"], backup.log
    assert "colonies-backup" in ran.stderr
    [kept] = set(databases(elsewhere)) - set(were)
    assert databases(elsewhere)[kept] == were["metrics"]
    assert elsewhere.sql("SELECT count(*) FROM pg_class WHERE relname = 'later'", "metrics") == "0"

    were = databases(elsewhere)
    elsewhere.sql("BEGIN; DELETE FROM t; PREPARE TRANSACTION 'half'", "metrics")
    ran = scene.run("restore", name, "--database", "metrics", "--replace", status=1)
    assert "prepared transaction 'half', of postgres" in ran.stderr and not closed(elsewhere)
    assert were.items() <= databases(elsewhere).items()
    elsewhere.sql("ROLLBACK PREPARED 'half'", "metrics")
    assert "connected to it" in ran.stdout, ran.stderr
    elsewhere.sql(ran.stdout.split("connected to it:\n")[1])
    assert databases(elsewhere)["metrics"] != were["metrics"] and not closed(elsewhere)


# ---- At a server that is another ---------------------------------------------------------------

def before_the_download(scene: Scene, new: str, *arguments: str) -> str:
    """The error of a restore that needs no more of a backup than its beginning."""
    were = databases(scene.postgres)
    ran = restored(scene, "latest", "--database", new, *arguments, status=1)
    assert "Download" not in ran.stderr and databases(scene.postgres) == were
    return "\n".join(error_lines(ran.stderr))


def test_tablespaces_that_the_server_lacks_are_named_or_done_without(
        scene: Scene, new: str) -> None:
    scene.sql("CREATE TABLE x (a text DEFAULT E'\nSET default_tablespace = nowhere;\n')")
    with tablespaces(scene.postgres, 2) as (one, two):
        scene.sql(f"""ALTER TABLE t SET TABLESPACE {one}; CREATE INDEX i ON t (text)
            TABLESPACE {two}""")
        stored(scene, archive(scene))
        scene.sql("ALTER TABLE t SET TABLESPACE pg_default; DROP INDEX i")
    assert f"lacks these tablespaces: {', '.join(sorted((one, two)))}; " in before_the_download(
        scene, new)
    restored(scene, "latest", "--database", new, "--no-tablespaces")
    assert scene.postgres.sql("SELECT count(*) FROM t", new) == "500"


def test_a_hypertable_makes_no_chunk_in_a_tablespace_that_is_not_there(
        sensors: Sensors, target: str, tmp_path: Path) -> None:
    sensors.server.sql(f"CREATE DATABASE {target} TEMPLATE sensors")
    sensors.server.sql("UPDATE _timescaledb_catalog.tablespace SET tablespace_name = 'gone'",
                       target)
    sensors.server.run("pg_dump", "-Fc", "-f", str(tmp_path / "a"), database=target)
    sensors.server.sql(f"DROP DATABASE {target}")
    arguments = ["restore", "--file", str(tmp_path / "a"), "--database", target]
    assert "lacks these tablespaces: gone;" in sensors.run(*arguments, status=1).stderr
    sensors.run(*arguments, "--no-tablespaces")
    assert sensors.server.sql("SELECT count(*) FROM readings", target) == "701"
    assert sensors.server.sql("SELECT count(*) FROM _timescaledb_catalog.tablespace", target) == "0"


def test_a_locale_that_the_server_lacks_is_named_and_another_taken(scene: Scene, new: str) -> None:
    scene.postgres.sql(f"CREATE DATABASE {new} TEMPLATE template0 LOCALE 'C.utf8'")
    source = Scene(scene.postgres, scene.s3, scene.folder, new, scene.prefix)
    source.sql("CREATE TABLE t AS SELECT 1 AS one")
    here = b"LOCALE = 'C.utf8'"
    body = archive(source)
    assert body.count(here) == 1
    stored(source, body.replace(here, b"LOCALE = 'xx_XX8'"))
    scene.postgres.sql(f"DROP DATABASE {new}")
    error = before_the_download(scene, new)
    assert "xx_XX8" in error and "--locale takes another" in error
    assert "C.8" in before_the_download(scene, new, "--locale", "C.8")
    restored(scene, "latest", "--database", new, "--locale", "C.utf8")
    assert scene.postgres.sql("""SELECT datcollate, datctype, one FROM pg_database, t
        WHERE datname = current_database()""", new) == "C.utf8|C.utf8|1"


def test_no_database_of_the_servers_own_has_to_be_there(scene: Scene, elsewhere: Postgres) -> None:
    verifying_there = verifying(elsewhere)
    elsewhere.sql("DROP DATABASE postgres", "metrics")
    restored(scene, "latest", "--database", "other")
    elsewhere.sql("ALTER DATABASE template1 ALLOW_CONNECTIONS false", "metrics")
    restored(scene, "latest", "--database", "another")
    report = json.loads(scene.run("verify", **verifying_there).stdout)
    assert report["verdict"] == RESTORED
    assert elsewhere.sql("SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database",
                         "metrics") == "another metrics other template0 template1"


# ---- Settings by which data come in ------------------------------------------------------------

SETTINGS = {"TimeZone": "'Pacific/Auckland'", "DateStyle": "'SQL, DMY'",
            "IntervalStyle": "sql_standard", "bytea_output": "escape",
            "default_text_search_config": "'pg_catalog.german'", "app.region": "'north sea'"}
DECIDED = r"""
CREATE TABLE zone (at timestamptz, day date CHECK (day = at::date));
INSERT INTO zone VALUES ('2026-01-01 20:00Z', '2026-01-02');
CREATE TABLE style (x text, day date CHECK (day = x::date));
INSERT INTO style VALUES ('03/04/2026', '2026-04-03');
CREATE TABLE span (x text, i interval CHECK (i = x::interval));
INSERT INTO span VALUES ('-1 1:00:00', '-1 1:00:00');
CREATE TABLE bytes (x text, b bytea CHECK (b::text = x)); INSERT INTO bytes VALUES ('a', 'a');
CREATE TABLE words (x text, n int CHECK (n = length(to_tsvector(x))));
INSERT INTO words VALUES ('der die das the', 1);
CREATE TABLE region (x text CHECK (x = current_setting('app.region')));
INSERT INTO region VALUES ('north sea');
CREATE TABLE lists (a int[], b text[]); INSERT INTO lists VALUES (ARRAY[1, NULL], ARRAY['x', NULL]);
CREATE MATERIALIZED VIEW days AS SELECT date_trunc('day', at) AS day FROM zone"""


def test_what_a_databases_own_settings_decide_comes_in_elsewhere_too(
        scene: Scene, new: str, restorer: dict[str, str]) -> None:
    """By a role, too, that has others itself, and that may not set an unknown one for good."""
    for name, value in SETTINGS.items():
        scene.sql(f'ALTER DATABASE {scene.database} SET "{name}" = {value}')
    scene.sql(f"ALTER DATABASE {scene.database} SET array_nulls = off;"
              f" ALTER ROLE {restorer['DB_USER']} SET array_nulls = off;"
              f" ALTER ROLE {restorer['DB_USER']} SET TimeZone = 'UTC'")
    scene.sql("SET array_nulls = on;" + DECIDED)
    name = stored(scene, archive(scene))
    said = restored(scene, name, "--database", new, "--no-owner", status=1, **restorer).stderr
    [error] = error_lines(said)
    assert "app.region" in error and "permission denied" in error
    assert scene.postgres.fingerprint(new) == scene.postgres.fingerprint(scene.database)
    assert scene.postgres.sql("SELECT each IS NULL FROM lists, unnest(b) AS each", new) == "f\nt"
    assert json.loads(scene.run("verify", **restorer).stdout)["verdict"] == RESTORED
