"""Tests of what has rows at other servers, and of what can live in one database only."""
from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest

from debian import Cron
from restores import RESTORED, databases, restored, verifying
from servers import Postgres, SeaweedFS, error_lines, server_folder
from surroundings import FILLED, Scene, becomes_true
from test_restore_passes import CRON, extension_of, scene_at
from timescale import Timescale

FAR = """CREATE EXTENSION postgres_fdw; CREATE SERVER cold FOREIGN DATA WRAPPER postgres_fdw
        OPTIONS (host '127.0.0.1', port '{port}', dbname 'postgres');
    CREATE USER MAPPING FOR PUBLIC SERVER cold OPTIONS (user 'postgres', password '{password}');
    CREATE TABLE events (y int, what text) PARTITION BY LIST (y);
    CREATE TABLE y2021 PARTITION OF events FOR VALUES IN (2021);
    CREATE FOREIGN TABLE y2020 PARTITION OF events FOR VALUES IN (2020) SERVER cold;
    CREATE FOREIGN TABLE far (y int, what text) SERVER cold OPTIONS (table_name 'y2020');
    INSERT INTO y2021 VALUES (2021, 'here')"""


@pytest.mark.parametrize("away", [False, True], ids=["there", "away"])
def test_rows_at_another_server_are_neither_asked_for_nor_counted(
        scene: Scene, new: str, away: bool) -> None:
    with server_folder() as folder, Postgres(folder / "cold") as cold:
        cold.sql("CREATE TABLE y2020 AS SELECT 2020 AS y, 'far' AS what FROM generate_series(1, 7)")
        scene.sql(FAR.format(port=cold.port, password=cold.password))
        assert scene.sql("SELECT count(*) FROM events") == "8"
        cold.sql("ALTER SYSTEM SET log_connections = on; SELECT pg_reload_conf()")
        assert cold.program
        cold.program.wait_for("received SIGHUP")
        if away:
            cold.stop()
        name = scene.backup()["filename"]
        ran = restored(scene, name, "--database", new)
        report = json.loads(scene.run("verify", **verifying(scene.postgres)).stdout)
        if not away:
            assert scene.postgres.sql("SELECT count(*) FROM events", new) == "8"  # asked, this once
            cold.program.wait_for("connection received")
            assert cold.program.log.count("connection received") == 1, cold.program.log
    assert "row for row in number" in ran.stdout and "far" not in ran.stdout
    assert [line.split() for line in ran.stdout.splitlines()[:2]] == [
        ["1", "public.events"], ["500", "public.t"]]
    assert report["verdict"] == RESTORED
    assert report["rows"] == {"public.events": 1, "public.t": 500}


# ---- One database only -------------------------------------------------------------------------

def test_what_one_database_alone_can_have_comes_back_in_that_one(
        timescale: Timescale, s3: SeaweedFS) -> None:
    with extension_of(timescale, "like_cron", CRON), scene_at(timescale, s3) as scene:
        scene.sql("""CREATE EXTENSION like_cron; INSERT INTO cron.job (command) VALUES ('VACUUM');
            CREATE VIEW jobs AS SELECT * FROM cron.job""")
        name, before = scene.backup()["filename"], databases(timescale)[scene.database]
        scene.sql("INSERT INTO cron.job (command) VALUES ('REINDEX')")
        ran = restored(scene, name, "--database", scene.database, "--replace")
        assert "row for row in number" in ran.stdout and not error_lines(ran.stderr)
        assert scene.sql("SELECT command FROM jobs") == "VACUUM"
        assert scene.sql("INSERT INTO cron.job (command) VALUES ('') RETURNING id") == "2"
        there = databases(timescale)
        [old] = [each for each, oid in there.items() if oid == before]
        assert old.startswith("before_restore_") and there[scene.database] != before


def test_pg_crons_jobs_come_back_and_that_its_scheduler_does_not_is_said(
        s3: SeaweedFS, tmp_path: Path) -> None:
    with server_folder() as folder, Cron(folder) as server:
        server.sql("CREATE DATABASE jobs")
        prefix = f"cron_{secrets.token_hex(4)}"
        scene = Scene(server, s3, tmp_path, "jobs", prefix)
        scene.sql(f"""{FILLED}; CREATE EXTENSION pg_cron;
            SELECT cron.schedule('nightly', '0 3 * * *', 'VACUUM');
            CREATE VIEW jobs AS SELECT jobname, command FROM cron.job""")
        name = scene.backup()["filename"]
        scene.sql("SELECT cron.unschedule('nightly')")
        running = """SELECT datname FROM pg_stat_activity
            WHERE application_name = 'pg_cron scheduler'"""
        becomes_true(lambda: server.sql(running) == "jobs")
        ran = restored(scene, name, "--database", "jobs", "--replace", status=1)
        [error] = error_lines(ran.stderr)
        assert "pg_cron" in error and "until PostgreSQL is restarted" in error
        assert scene.sql("SELECT * FROM jobs") == "nightly|VACUUM"
        server.stop()
        server.start()
        becomes_true(lambda: server.sql(running) == "jobs")
        ran = restored(scene, name, "--database", "other", status=1)
        [first, *others] = error_lines(ran.stderr)
        assert "EXTENSION - pg_cron: " in first and "in database jobs; make it by hand" in first
        assert all("not restored: " in line for line in others)
