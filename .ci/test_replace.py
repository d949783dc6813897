"""Tests of how a restored database gets its name, where that is free, empty, or another's."""
from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator

import pytest

from restores import PROPERTIES, archive, holding, refused, stored
from servers import Executor, Postgres
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
        becomes_true(lambda: server.sql(MAKING) or executor.process.poll() is not None)
        yield executor, server.sql(MAKING)
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
    return server.sql("SELECT string_agg(datname, ' ' ORDER BY 1) FROM pg_database"
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
        assert executor.wait() == (-9 if sig == signal.SIGKILL else 1)
        becomes_true(lambda: not closed(sensors.server))
    assert len(sensors.server.databases() - before) == 1  # it is whole
    if sig != signal.SIGKILL:
        assert target not in sensors.server.idle(since)
        sensors.server.sql("\n".join(executor.out).split("connected to it:\n")[1])
        assert sensors.server.text(target) == sensors.expected
        assert not sensors.server.idle(since) and not closed(sensors.server)
