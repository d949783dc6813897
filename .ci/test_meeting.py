"""Tests of restores where several things meet: encodings, sessions, crashes, signals, names."""
from __future__ import annotations

import json
import os
import secrets
import signal
from pathlib import Path

from restores import RESTORED, holding, restored, verifying
from servers import Executor, Postgres, SeaweedFS, programs, server_folder
from surroundings import FILLED, UNTIL, Scene, until_found
from timescale import PAUSE, PAUSING, Sensors


def test_what_a_latin1_database_says_of_itself_and_of_roles_arrives(
        scene: Scene, new: str) -> None:
    name, role = f"other_{secrets.token_hex(4)}", f"rôle {scene.prefix}"
    scene.postgres.sql(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING LATIN1 LOCALE 'C'")
    scene.database = scene.settings["DB_DATABASE"] = name
    scene.sql(f"""SET client_encoding = 'UTF8'; CREATE ROLE "{role}"; CREATE TABLE t ();
        ALTER TABLE t OWNER TO "{role}"; COMMENT ON DATABASE {name} IS 'déjà vu';
        ALTER DATABASE {name} SET "app.word" TO 'hé'""")
    facts = """SELECT encode(convert_to(concat(shobj_description(oid, 'pg_database'),
        (SELECT setconfig FROM pg_db_role_setting WHERE setdatabase = d.oid),
        (SELECT tableowner FROM pg_tables WHERE tablename = 't')), 'UTF8'), 'hex')
        FROM pg_database d WHERE datname = current_database()"""
    try:
        scene.backup()
        restored(scene, "latest", "--database", new)
        told = bytes.fromhex(scene.postgres.sql(facts, new)).decode()
    finally:  # no database of another encoding can name it, and pg_dumpall fails at it there
        scene.sql(f"""SET client_encoding = 'UTF8'; ALTER ROLE "{role}" RENAME TO {name}""")
    assert told == f"déjà vu{{app.word=hé}}{role}"


def test_settings_that_have_no_room_in_one_beginning_of_a_session(scene: Scene, new: str) -> None:
    """A server takes 10,000 bytes there."""
    for name in "abc":
        scene.sql(f"""ALTER DATABASE {scene.database} SET "app.{name}" TO '{name * 4000}'""")
    scene.backup()
    restored(scene, "latest", "--database", new)
    assert scene.postgres.sql("SHOW app.c", new) == "c" * 4000


def test_a_role_that_the_database_sets_hinders_neither_statistics_nor_counting(
        scene: Scene, new: str) -> None:
    for setting in ("work_mem TO '7MB'", "role TO pg_monitor"):
        scene.postgres.sql(f"ALTER DATABASE {scene.database} SET {setting}")
    scene.backup(PGOPTIONS="-c role=none")
    assert "row for row" in restored(scene, "latest", "--database", new).stdout
    facts = "SELECT current_user, current_setting('work_mem'), reltuples FROM pg_class"
    assert scene.postgres.sql(f"{facts} WHERE relname = 't'", new) == "pg_monitor|7MB|500"


def test_a_proof_stays_one_where_a_session_keeps_the_scratch_database(
        scene: Scene, restorer: dict[str, str], tmp_path: Path) -> None:
    """A superuser's, an exporter's for instance, which no other role may end."""
    scene.given_backup()
    real = scene.postgres.bin / "pg_restore"
    path = programs(tmp_path / "programs", pg_restore=f"""#!/bin/sh
        case "$*" in *--dbname*) touch {tmp_path}/begun; while [ ! -e {tmp_path}/go ]; do
        sleep 0.1; done;; esac; exec {real} "$@" """)
    scratch = "SELECT datname FROM pg_database WHERE datname ~ '^verify_[0-9]+$'"
    with Executor({**scene.settings, **restorer, "PATH": path}, "verify") as verify:
        name = until_found(scene.postgres, scratch)
        with holding(scene.postgres, "SELECT", name):
            (tmp_path / "go").touch()
            assert verify.wait() == 0, verify.log
            assert f"{name} is left on the server: Dropping a database" in verify.log
            report = json.loads(verify.log[verify.log.index("{"):verify.log.rindex("}") + 1])
            assert report["verdict"] == RESTORED
            assert json.loads(scene.run("verify", **restorer).stdout)["verdict"] == RESTORED
    scene.run("verify", **restorer)
    assert name not in scene.postgres.sql(scratch)


def test_a_difference_is_the_backups_whatever_the_table_is_called(
        scene: Scene, tmp_path: Path) -> None:
    """Its name has words by which an error is the server's."""
    scene.sql('CREATE TABLE "my connection log" AS SELECT generate_series(1, 9) AS i')
    scene.backup()
    real = scene.postgres.bin
    path = programs(tmp_path / "programs", pg_restore=f"""#!/bin/sh
        {real}/pg_restore "$@" || exit; case "$*" in *--dbname*)
        {real}/psql -Xqc 'DELETE FROM "my connection log" WHERE i = 1';; esac""")
    ran = scene.run("verify", status=1, PATH=path, **verifying(scene.postgres))
    assert json.loads(ran.stdout)["verdict"] == (
        'failed: public."my connection log": 9 rows in the archive, 8 restored')


def test_a_login_trigger_of_the_database_that_is_replaced_hinders_nobody(
        scene: Scene, new: str) -> None:
    scene.given_backup()
    scene.postgres.make(new, """CREATE TABLE old (); CREATE FUNCTION guard()
        RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'nobody'; END $$;
        CREATE EVENT TRIGGER guard ON login EXECUTE FUNCTION guard();
        ALTER EVENT TRIGGER guard ENABLE ALWAYS""")
    restored(scene, "latest", "--database", new, "--replace")
    assert scene.postgres.sql("SELECT count(*) FROM t", new) == "500"


def test_a_login_trigger_beside_timescaledb_hinders_no_restore(
        sensors: Sensors, target: str, tmp_path: Path) -> None:
    guarded = f"{target}_guarded"
    sensors.server.sql(f"CREATE DATABASE {guarded} TEMPLATE sensors")
    sensors.server.sql("""CREATE FUNCTION guard() RETURNS event_trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE 'nobody'; END $$; CREATE EVENT TRIGGER guard ON login
        EXECUTE FUNCTION guard(); ALTER EVENT TRIGGER guard ENABLE ALWAYS""", guarded)
    env = {**sensors.server.env, "PGOPTIONS": "-c event_triggers=off"}
    sensors.server.env, before = env, sensors.server.env
    try:
        sensors.server.run("pg_dump", "-Fc", "-f", str(tmp_path / "a"), database=guarded)
        sensors.server.drop(guarded)
        sensors.run("restore", "--file", str(tmp_path / "a"), "--database", target)
        assert sensors.server.sql("SELECT count(*) FROM notes", target) == "40"
    finally:
        sensors.server.env = before


def test_what_was_left_out_is_told_also_where_a_signal_ends_it(scene: Scene, new: str) -> None:
    scene.sql(f"""CREATE FUNCTION here() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
        ASSERT current_database() = '{scene.database}', 'elsewhere'; RETURN true; END $$;
        CREATE MATERIALIZED VIEW seen AS SELECT public.here()""")
    scene.backup()
    scene.postgres.make(new, "SELECT")
    waiting = """SELECT pid FROM pg_stat_activity
        WHERE wait_event_type = 'Lock' AND query ~ 'ALLOW_CONNECTIONS'"""
    with Executor(scene.settings, "restore", "latest", "--database", new) as restore:
        with holding(scene.postgres, f"ALTER DATABASE {new} CONNECTION LIMIT 7"):
            first = until_found(scene.postgres, waiting)
            restore.process.send_signal(signal.SIGTERM)
            scene.postgres.sql(UNTIL.format(f"{first} NOT IN (SELECT pid FROM pg_stat_activity)"))
        assert restore.wait() == 143
    assert "It is whole. To name it" in restore.log
    assert "not restored: MATERIALIZED VIEW DATA public seen: " in restore.log


def test_the_lines_that_swap_the_database_postgres_are_run_in_another(
        scene: Scene, new: str) -> None:
    with server_folder() as folder, Postgres(folder / "postgres") as server:
        server.sql(FILLED)
        alone = Scene(server, scene.s3, scene.folder, "postgres", scene.prefix)
        alone.backup()
        said = restored(alone, "latest", "--database", new).stdout
        server.run("psql", "-XqvON_ERROR_STOP=1", stdin=said[said.index("\\connect"):])
        assert server.sql("SELECT count(*) FROM t") == "500"
        assert not server.sql(f"SELECT FROM pg_database WHERE datname = '{new}'")


def test_a_crash_of_the_server_as_it_fills_views_costs_nothing_else(
        backup_servers: tuple[Postgres, SeaweedFS], new: str) -> None:
    """What was not on its disk by then would be gone, and no error tells of that."""
    with server_folder() as folder, Postgres(folder / "postgres") as server:
        server.sql("ALTER SYSTEM SET wal_writer_delay = '10s'")
        server.sql("SELECT pg_reload_conf()")
        server.sql("CREATE DATABASE source")
        server.sql(f"""{FILLED}; CREATE TABLE more (i int REFERENCES t); {PAUSE};
            CREATE MATERIALIZED VIEW slow AS SELECT public.pause()""", "source")
        scene = Scene(server, backup_servers[1], folder, "source", new)
        scene.backup()
        settings = {**scene.settings, **PAUSING}
        asked = ("restore", "latest", "--database", new, "--jobs", "1", "--keep")
        with Executor(settings, *asked) as restore:
            sleeping = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            os.kill(int(until_found(server, sleeping)), signal.SIGKILL)
            assert restore.wait(300) == 1
        assert server.program
        server.program.wait_for("ready to accept connections", count=2)
        made = server.sql("SELECT max(datname) FROM pg_database WHERE datname ~ 'restore_|_new$'")
        assert server.sql("SELECT count(*) FROM t", made) == "500"
        assert server.sql("SELECT count(*) FROM pg_constraint WHERE contype = 'f'", made) == "1"
