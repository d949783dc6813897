"""Tests with the stand-in for TimescaleDB."""
from __future__ import annotations

import contextlib
import json
import re
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from readme import least_privileges, restored_by_hand
from restores import RESTORED, holding, identifier, paused, result_of, verifying
from servers import (
    ASKED,
    HELD_UP,
    PASSING_ON,
    Executor,
    asking,
    error_lines,
    programs,
    temporary_folder,
)
from surroundings import Scene, becomes_true
from timescale import ALARMS_KEY, PAUSING, SENSORS_ROWS, Sensors, Timescale, ask

BEGIN = ["CREATE EXTENSION timescaledb VERSION '2.1.0'", "SELECT timescaledb_pre_restore()"]


@pytest.mark.parametrize(("begin", "jobs", "says"), [
    ([], 1, "could not find hypertable"), (BEGIN, 2, '"(chunk|dimension)[a-z_]*" violates'),
    (BEGIN, 1, r'\(at\)=\(150\) is not present in table "readings"')],
    ids=["without-pre_restore", "parallel", "in-one-go"])
def test_the_stand_in_for_timescaledb_fails_the_careless_as_the_real_one_does(
        sensors: Sensors, target: str, tmp_path: Path, begin: list[str], jobs: int,
        says: str) -> None:
    sensors.server.run("createdb", "-T", "template0", target)
    sensors.server.sql(";".join(begin), target)
    with pytest.raises(RuntimeError, match=says):
        sensors.server.run("pg_restore", "-d", target, f"-j{jobs}", sensors.archive(tmp_path))


def test_the_stand_in_for_timescaledb_hides_rows_until_post_restore_and_then_runs_policies(
        sensors: Sensors, target: str, tmp_path: Path) -> None:
    sensors.server.run("createdb", "-T", "template0", target)
    sensors.server.sql(";".join(BEGIN), target)
    with pytest.raises(RuntimeError, match=r"ignored on restore: 1$"):  # the key above
        sensors.server.run("pg_restore", "-d", target, sensors.archive(tmp_path))
    for rows in ("300", "701"):
        assert sensors.server.sql("SELECT count(*) FROM readings", target) == rows
        sensors.server.sql("SELECT timescaledb_post_restore()", target)
    sensors.server.sql(ALARMS_KEY, target)
    assert sensors.server.text(target) == sensors.expected


def test_the_stand_in_for_timescaledb_takes_each_key_in_one_way_only_as_the_real_one_does(
        sensors: Sensors, target: str) -> None:
    sensors.server.sql(f"CREATE DATABASE {target} TEMPLATE sensors")
    sensors.server.sql("ALTER TABLE alarms DROP CONSTRAINT alarms_at", target)
    add = "ALTER TABLE {} ADD CONSTRAINT {} FOREIGN KEY ({}) REFERENCES {}"
    for key, wrong, right, says in (
            (add.format("ONLY public.readings", "of", "place", "public.places(id)"), "off", "on",
             "ONLY option not supported on hypertable operations"),
            (ALARMS_KEY, "on", "off", 'is not present in table "readings"')):
        with pytest.raises(RuntimeError, match=says):
            sensors.server.sql(f"SET timescaledb.restoring = {wrong}; {key}", target)
        sensors.server.sql(f"SET timescaledb.restoring = {right}; {key}", target)
    with pytest.raises(RuntimeError, match="cannot be used as foreign key references of hypertab"):
        sensors.server.sql(add.format("public.readings", "twofold", "at", "public.readings(at)"),
                           target)
    assert sensors.server.sql("SELECT count(*) FROM ONLY readings", target) == "0"


def test_the_stand_in_for_timescaledb_compresses_and_numbers_as_the_real_one_does(
        sensors: Sensors, target: str) -> None:
    server = sensors.server
    server.sql(f"CREATE DATABASE {target} TEMPLATE sensors")
    chunks = [f"_timescaledb_internal._hyper_1_{i}_chunk" for i in (1, 2)]
    nodes = "SELECT " + ", ".join(f"pg_relation_filenode('{chunk}')" for chunk in chunks)
    rows = "SELECT count(*), md5(string_agg(r::text, '' ORDER BY at)) FROM readings r"
    before, were = (server.sql(text, target) for text in (nodes, rows))
    compress = "SET lock_timeout = {}; SELECT compress_chunk('{}')"
    with (holding(server, "LOCK _timescaledb_catalog.compression_settings IN SHARE MODE", target),
          pytest.raises(RuntimeError, match="due to lock timeout")):
        server.sql(compress.format(1, chunks[0]), target)
    for chunk in chunks:
        server.sql(compress.format(0, chunk), target)
    assert not {*before.split("|")} & {*server.sql(nodes, target).split("|")}
    assert server.sql(rows, target) == were
    assert server.sql(f"SELECT count(*) FROM {chunks[0]}", target) == "0"
    server.sql("ALTER SEQUENCE _timescaledb_catalog.tablespace_id_seq RESTART", target)
    attach = "SELECT attach_tablespace('pg_default', 'readings')"  # a number of before, then a new
    with pytest.raises(RuntimeError, match='"tablespace_pkey"'):
        server.sql(attach, target)
    server.sql(attach, target)


@pytest.mark.parametrize("jobs", [1, 4])
def test_a_timescaledb_restore_brings_everything_back_in_the_one_order_that_works(
        sensors: Sensors, target: str, jobs: int) -> None:
    since = len(sensors.server.logged())
    ran = sensors.run("restore", "latest", "--database", target, "--jobs", str(jobs))
    log = "\n".join(sensors.server.logged(since))
    steps = [[at.start() for at in re.finditer(regex, log)] for regex in (
        r"CREATE EXTENSION timescaledb .*; SELECT public\.timescaledb_pre_restore\(",
        r"CREATE TABLE public\.readings", r"COPY _timescaledb_ca", r"COPY _timescaledb_int",
        "CREATE INDEX|REFERENCES public.places", "REFERENCES public.readings|REFRESH",
        r"SELECT .*timescaledb_post_restore\(")]
    assert [len(step) for step in steps] == [1, 1, 8, 3, 5, 2, 1], log
    order = [at for step in steps for at in step]
    assert order == sorted(order), log
    assert sensors.server.text(target) == sensors.expected
    for table, rows in {"readings": 701, "total": 1}.items():
        assert sensors.server.sql(f"SELECT count(*) FROM public.{table}", target) == str(rows)
    assert sensors.server.sql("SELECT n FROM public.total", target) == "800"
    assert sensors.server.sql("SELECT extversion FROM pg_extension WHERE extname LIKE 'time%'",
                              target) == "2.1.0"
    assert f"{sum(SENSORS_ROWS.values())} rows" in ran.stdout  # counted before the policies ran


def test_a_timescaledb_restore_by_hand_does_what_the_readme_says(
        sensors: Sensors, target: str, tmp_path: Path) -> None:
    said = restored_by_hand(sensors, sensors.name, target, tmp_path, "TimescaleDB")
    assert "public.readings|800" in said
    assert sensors.server.text(target) == sensors.expected
    assert sensors.server.sql("SELECT n FROM public.total", target) == "800"


def test_a_timescaledb_archive_is_counted_right_by_verify_and_its_policies_do_not_run(
        sensors: Sensors) -> None:
    before, since = sensors.server.databases(), len(sensors.server.logged())
    report = json.loads(sensors.run("verify", **verifying(sensors.server)).stdout)
    assert report["verdict"] == RESTORED and report["rows"] == SENSORS_ROWS
    log = sensors.server.logged(since)
    assert not any("post_restore" in line or "DELETE FROM public" in line for line in log)
    assert any("post_restore" in text for text in report["not_proven"])
    assert any("CREATE DATABASE verify_" in line for line in log)
    assert sensors.server.databases() == before


@pytest.mark.parametrize("command", ["restore", "verify"])
@pytest.mark.parametrize(("lacking", "says"), [
    ("extension", "preloaded: yes; versions: none"), ("preloading", "preloaded: no; "),
    ("version", r"2\.1\.0.* 2\.2\.0"), ("superuser", "preloaded: only a superuser is told; ")])
def test_where_a_timescaledb_archive_cannot_be_restored_nothing_is_begun(
        sensors: Sensors, lacking: str, says: str, command: str, target: str) -> None:
    user = verifying(sensors.server)
    if lacking == "superuser":
        sensors.server.sql(f"CREATE ROLE {target} LOGIN CREATEDB PASSWORD 'word'")
        user |= {f"{kind}_USER": target for kind in ("DB", "VERIFY_DB")} | {
            f"{kind}_PASSWORD": "word" for kind in ("DB", "VERIFY_DB")}
    since = len(sensors.server.logged())
    with sensors.server.without(lacking):
        ran = sensors.run(command, sensors.name, *["--database", target] * (command == "restore"),
                          status=1, **user)
    [error] = error_lines(ran.stderr)
    assert re.search(says, error), error
    assert not any("CREATE DATABASE" in line for line in sensors.server.logged(since))


def test_the_version_of_timescaledb_is_the_archives_where_nothing_else_is_known_of_it(
        sensors: Sensors, target: str, tmp_path: Path) -> None:
    sensors.run("restore", "--file", sensors.archive(tmp_path), "--database", target)
    assert sensors.server.sql("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'",
                              target) == "2.1.0"  # the server's default is 2.2.0


# Another one: the extension in a schema of its own, in the version that has its jobs elsewhere; a
# job of a role, one whose role was dropped, and one of who restores; a byte that is no UTF-8; and
# what refuses DDL, made last by pg_restore. The name in it is the database's and the role's.
STATION = r"""CREATE ROLE {0}; CREATE SCHEMA "its own" AUTHORIZATION {0};
CREATE EXTENSION timescaledb VERSION '2.2.0' SCHEMA "its own";
CREATE TABLE "Hyper ""T" (at int PRIMARY KEY); SET timescaledb.restoring = 'on';
CREATE TABLE _timescaledb_internal.chunk () INHERITS ("Hyper ""T"); RESET timescaledb.restoring;
INSERT INTO _timescaledb_internal.chunk VALUES (7);
INSERT INTO _timescaledb_catalog.hypertable (schema_name, table_name) VALUES ('public', 'Hyper "T');
ALTER TABLE ONLY _timescaledb_internal.chunk ADD CONSTRAINT itself FOREIGN KEY (at)
    REFERENCES public."Hyper ""T"(at); SET timescaledb.restoring = 'on';
ALTER TABLE ONLY "Hyper ""T" ADD CONSTRAINT itself FOREIGN KEY (at) REFERENCES "Hyper ""T";
RESET timescaledb.restoring;
CREATE VIEW buckets AS SELECT "its own".time_bucket(5, at) FROM "Hyper ""T";
CREATE TABLE plain (at int); INSERT INTO plain VALUES (7);
ALTER TABLE plain ADD CONSTRAINT "a;b" FOREIGN KEY (at) REFERENCES public."Hyper ""T"(at);
COMMENT ON CONSTRAINT "a;b" ON plain IS 'REFERENCES public.plain(at);';
INSERT INTO _timescaledb_catalog.bgw_job VALUES (1000, '{0}', 1, true, 'SELECT 1'),
    (1002, 'postgres', NULL, true, 'SELECT 2'),
    (1001, '4000000000', NULL, true, concat('SELECT ''', chr(228), E'\\\t\n'''));
SELECT "its own".attach_tablespace('pg_default', '"Hyper ""T"');
CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE 'refused: %', tg_tag; END $$;
CREATE EVENT TRIGGER refusing ON ddl_command_start
    WHEN TAG IN ('ALTER TABLE', 'COMMENT', 'CREATE INDEX') EXECUTE FUNCTION refuse()"""
STATION_JOBS = """SELECT string_agg(concat_ws(' ', id, owner, scheduled, md5(statement)), ', '
    ORDER BY id) FROM _timescaledb_catalog.bgw_job WHERE id > 999"""


@pytest.fixture
def station(timescale: Timescale, sensors: Sensors, tmp_path: Path) -> Iterator[Scene]:
    name = f"station_{secrets.token_hex(4)}"
    timescale.sql(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1'")
    timescale.sql(STATION.format(name), name)
    scene = Scene(timescale, sensors.s3, tmp_path, name, name)
    scene.backup()
    yield scene
    timescale.sql(f"DROP DATABASE {name}")
    timescale.sql(f"DROP ROLE IF EXISTS {name}")


def test_a_timescaledb_restore_finds_the_extensions_schema_its_jobs_and_odd_names(
        station: Scene, timescale: Timescale, target: str) -> None:
    ran = station.run("restore", "latest", "--database", target)
    jobs = timescale.sql(STATION_JOBS, station.database)
    assert timescale.sql(STATION_JOBS, target) == jobs.replace("4000000000 t", "postgres f")
    assert '"1001 of 4000000000 (switched off)"' in ran.stderr
    timescale.sql("UPDATE _timescaledb_catalog.bgw_job SET owner = '4000000000', scheduled = true"
                  " WHERE id = 1001", target)
    texts = [re.sub(r"(?m)^\\(un)?restrict .*", "", timescale.run(
        "pg_dump", "--encoding=UTF8", database=each)) for each in (station.database, target)]
    assert texts[0] == texts[1]
    assert timescale.sql("SELECT * FROM buckets", target) == "5"
    timescale.sql("INSERT INTO _timescaledb_catalog.hypertable VALUES (9, 'public', 'plain');"
                  "SELECT \"its own\".attach_tablespace('pg_default', 'plain')", target)


def test_a_server_soon_notices_that_the_client_of_a_dumps_session_is_gone(
        station: Scene, tmp_path: Path) -> None:
    """Of pg_dump's, which may wait for locks, and of those that hold something for it."""
    real = station.postgres.bin
    look = f"'{real}/psql' -XAtqc 'SHOW client_connection_check_interval' >'{tmp_path}'"
    path = programs(tmp_path / "bin", pg_dump=f"""#!/bin/sh
        case "$*" in *-Fc*) {look}/pg_dump;; esac
        exec '{real}/pg_dump' "$@"\n""", psql=f"""{ASKED}
        case $asked in *{asking("'held'")}*) {look}/psql;; esac
        {PASSING_ON.format(real)}""")
    station.run("backup", PATH=path)
    assert [(tmp_path / name).read_text() for name in ("pg_dump", "psql")] == ["10s\n"] * 2


def test_jobs_of_a_role_that_the_server_lacks_are_named_or_the_restoring_roles(
        station: Scene, timescale: Timescale, target: str) -> None:
    name = station.database
    timescale.sql('ALTER SCHEMA "its own" OWNER TO postgres', name)
    station.backup()
    jobs = timescale.sql(STATION_JOBS, name).replace("4000000000 t", "postgres f")
    timescale.sql(f"DROP ROLE {name}")
    since = len(timescale.logged())
    ran = station.run("restore", "latest", "--database", target, status=1)
    [error] = error_lines(ran.stderr)
    assert f"lacks these roles, or the owners of these: {name};" in error
    assert not any("CREATE DATABASE" in line for line in timescale.logged(since))
    said = f"1000 of {name}, 1001 of 4000000000 (switched off)"
    ran = station.run("restore", "latest", "--database", target, "--no-owner")
    assert f'Jobs="{said}"\n' in ran.stderr  # and not those that were the restoring role's
    assert timescale.sql(STATION_JOBS, target) == jobs.replace(name, "postgres")
    ran = station.run("verify", **verifying(timescale))
    report = json.loads(ran.stdout)
    assert report["verdict"] == RESTORED and said in ran.stderr
    assert "the owners of 3 jobs of TimescaleDB" in report["not_proven"]


ROWS = """SELECT count(*), coalesce(current_setting('timescaledb.restoring', true), '')
    FROM public.readings"""


def test_a_timescaledb_archive_whose_post_restore_refuses_is_there_and_shows_all_rows(
        sensors: Sensors, target: str) -> None:
    ran = sensors.run("restore", "latest", "--database", target, status=1,
                      PGOPTIONS="-c tests.refuse=on")
    assert "post_restore refuses" in ran.stderr
    assert sensors.server.sql(ROWS, target) == "800|"
    sensors.server.sql(ran.stdout.split("jobs run:\n")[1])
    assert sensors.server.text(target) == sensors.expected


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_a_timescaledb_database_shows_all_rows_to_whoever_connects_as_soon_as_it_has_its_name(
        sensors: Sensors, target: str, sig: signal.Signals) -> None:
    """Also where the restore is stopped then: its last session is in post_restore for long."""
    with Executor({**sensors.settings, **PAUSING}, "restore", "latest", "--database",
                  target) as executor:
        assert paused(sensors.server) == target
        assert sensors.server.sql(ROWS, target) == "800|"
        executor.process.send_signal(sig)
        assert executor.wait() == (143 if sig == signal.SIGTERM else -9)
        sensors.server.sql("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                           f" WHERE datname = '{target}'")
    assert sensors.server.sql(ROWS, target) == "800|"
    if sig == signal.SIGTERM:
        sensors.server.sql("\n".join(executor.out).split("jobs run:\n")[1])
        assert sensors.server.text(target) == sensors.expected


def test_where_no_worker_is_free_for_timescaledb_the_restore_says_so(
        sensors: Sensors, target: str) -> None:
    ran = sensors.run("restore", "latest", "--database", target, status=1,
                      PGOPTIONS="-c tests.slots=none")
    [error] = error_lines(ran.stderr)
    assert target in error and "timescaledb.max_background_workers" in error
    assert sensors.server.text(target) == sensors.expected


def test_jobs_of_timescaledb_can_be_left_off(sensors: Sensors, target: str) -> None:
    said = sensors.run("restore", "latest", "--database", target, "--pause-jobs").stdout
    assert sensors.server.sql(ROWS, target) == "800|"
    jobs = "SELECT id, scheduled FROM _timescaledb_config.bgw_job ORDER BY id"
    assert sensors.server.sql(jobs, target) == "3|t\n1000|f\n1001|f"
    assert ("SELECT public.alter_job(id, scheduled => true) FROM unnest('{1000,1001}'::int[])"
            in said)
    sensors.server.sql("SELECT public.timescaledb_post_restore()", target)
    assert sensors.server.sql(ROWS, target) == "800|"


def started(server: Timescale, since: int) -> list[str]:
    """The databases in which TimescaleDB's workers were started, in order."""
    return re.findall("(?m)^(.*): LOG:  workers start$", "\n".join(server.logged(since)))


def test_a_database_with_timescaledb_alone_is_empty_and_keeps_its_scheduler(
        sensors: Sensors, target: str) -> None:
    sensors.server.sql(f"CREATE DATABASE {target}")
    sensors.server.sql("CREATE EXTENSION timescaledb", target)
    since, before = len(sensors.server.logged()), sensors.server.databases()
    sensors.run("restore", "latest", "--database", target)
    [emptied] = sensors.server.databases() - before
    assert started(sensors.server, since) == [target, emptied]
    sensors.server.sql(f"DROP DATABASE {emptied}")
    assert sensors.server.text(target) == sensors.expected


def test_a_naming_that_is_refused_is_told_and_stops_no_scheduler(
        sensors: Sensors, target: str) -> None:
    sensors.server.sql(f"CREATE DATABASE {target}")
    sensors.server.sql("CREATE EXTENSION timescaledb", target)
    with contextlib.ExitStack() as lock:
        lock.enter_context(holding(sensors.server, "LOCK pg_db_role_setting IN SHARE MODE"))
        executor = lock.enter_context(Executor({**sensors.settings, "BACKUP_TIME_SCALE": "0.01"},
                                               "restore", "latest", "--database", target))
        scratch = paused(sensors.server, HELD_UP)
        sensors.server.sql(f"CREATE DATABASE before_{scratch}")
        since = len(sensors.server.logged())
        sensors.server.sql("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE granted AND"
                           " relation = 'pg_db_role_setting'::regclass AND mode = 'ShareLock'")
        assert executor.wait() == 1, executor.log
    said = "\n".join(executor.out)
    assert "Not named" in executor.log and f"into {scratch}:" in said
    assert started(sensors.server, since) == [target]
    sensors.server.sql(f"DROP DATABASE before_{scratch}")
    sensors.server.sql(said.split("connected to it:\n")[1])
    assert started(sensors.server, since) == [target, f"before_{scratch}"]
    assert sensors.server.text(target) == sensors.expected
    sensors.server.sql(f"DROP DATABASE before_{scratch}")


@pytest.mark.parametrize("name", ["plain", "a'b\"c\\ d=e"])
def test_the_printed_swap_has_timescaledbs_scheduler_run_in_both_databases(
        sensors: Sensors, target: str, tmp_path: Path, name: str) -> None:
    name, before = name + secrets.token_hex(4), sensors.server.databases()
    sensors.server.sql(f"CREATE DATABASE {identifier(name)} TEMPLATE sensors")
    sensors.server.run("pg_dump", "-Fc", "-f", str(tmp_path / "a"), database=name)
    said = sensors.run("restore", "--file", str(tmp_path / "a"), "--database", target).stdout
    since, were = len(sensors.server.logged()), sensors.server.databases()
    sensors.server.sql(re.split("the sessions in both:\n", said)[1])
    [emptied] = sensors.server.databases() - were
    assert started(sensors.server, since) == [name, emptied]
    assert target not in sensors.server.databases()
    for made in (name, emptied):
        sensors.server.sql(f"DROP DATABASE {identifier(made)}")
    assert sensors.server.databases() == before


@pytest.fixture
def compressing(sensors: Sensors, target: str) -> Iterator[Scene]:
    """A copy of `sensors` whose chunks can be compressed."""
    sensors.server.sql(f"CREATE DATABASE {target} TEMPLATE sensors")
    with temporary_folder() as folder:
        scene = Scene(sensors.server, sensors.s3, folder, target, target)
        scene.settings |= {"BACKUP_TIME_SCALE": "0.05", **verifying(sensors.server)}
        yield scene


COMPRESS = "SELECT 'done' FROM compress_chunk('_timescaledb_internal._hyper_1_2_chunk');"


def all_rows_are_in(scene: Scene, executor: Executor) -> bool:
    """Whether the backup that an executor has made restores, with all rows."""
    report = json.loads(scene.run("verify", result_of(executor)["filename"]).stdout)
    return bool(report["rows"]["public.readings"] == 800 - 99)


def test_a_compression_waits_until_pg_dump_has_its_locks(compressing: Scene) -> None:
    with compressing.session() as gate, compressing.session() as policy:
        ask(gate, "BEGIN; LOCK TABLE places; SELECT 'locked';", "locked")
        with compressing.start() as executor:
            waiting = compressing.waiting()
            ask(policy, COMPRESS)
            compressing.waiting(but=waiting)
            ask(gate, "COMMIT;")
            assert policy.stdout and policy.stdout.readline() == "done\n"
            assert executor.wait() == 0, executor.log
    assert result_of(executor)["made_again"] == []
    assert all_rows_are_in(compressing, executor)


def test_what_waits_for_us_and_keeps_pg_dump_waiting_is_let_go(compressing: Scene) -> None:
    with compressing.session() as gate, compressing.session() as policy:
        ask(gate, "BEGIN; LOCK TABLE places; SELECT 'locked';", "locked")
        with compressing.start() as executor:
            waiting = compressing.waiting()
            ask(policy, "BEGIN; LOCK TABLE _timescaledb_internal._hyper_1_2_chunk;")
            ask(policy, "LOCK TABLE _timescaledb_catalog.compression_settings"
                        " IN ROW EXCLUSIVE MODE;")
            compressing.waiting(but=waiting)
            ask(gate, "COMMIT;")
            # Else all of them wait until compression is held off no longer, after a minute.
            ask(policy, "COMMIT; SELECT 'done';", "done")
            assert executor.wait() == 0, executor.log
    assert result_of(executor)["made_again"] == []
    assert all_rows_are_in(compressing, executor)


def test_what_a_dump_held_is_let_go_while_pg_dump_still_copies(compressing: Scene) -> None:
    """The lock that compression waits for, and the session whose snapshot pg_dump has by then."""
    compressing.sql("""CREATE TABLE big (text text STORAGE EXTERNAL);
        INSERT INTO big VALUES (repeat('x', 9999))""")
    with (compressing.session() as policy, compressing.stuck("big") as go_on,
          compressing.start(LOG_LEVEL="debug") as executor):
        executor.wait_for("pg_dump has its locks")
        ask(policy, """BEGIN;
            LOCK TABLE _timescaledb_catalog.compression_settings IN ROW EXCLUSIVE MODE;
            COMMIT; SELECT 'done';""", "done")
        becomes_true(lambda: compressing.sql(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND state = 'active' AND query LIKE 'SELECT pg_sleep%'") == "0")
        executor.wait_for("Backup in progress.* Size=.* Rate=")
        go_on()
        assert executor.wait() == 0, executor.log
    assert result_of(executor)["made_again"] == []


def test_pg_dump_waits_for_a_compression_that_is_about_to_truncate(compressing: Scene) -> None:
    """It has done with compression_settings, and locks its chunk to the end."""
    with compressing.session() as gate, compressing.session() as policy:
        ask(policy, """SET session_replication_role = 'replica';
            BEGIN; LOCK TABLE _timescaledb_catalog.chunk IN ROW EXCLUSIVE MODE;
            CREATE TEMPORARY TABLE packed AS TABLE _timescaledb_internal._hyper_1_2_chunk;
            SELECT 'locked';""", "locked")
        ask(gate, "BEGIN; LOCK TABLE places; SELECT 'locked';", "locked")
        with compressing.start() as executor:
            becomes_true(lambda: compressing.sql(
                "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND"
                " application_name LIKE 'colonies-backup%' AND query LIKE '%DO $$%'") == "t")
            ask(policy, """TRUNCATE _timescaledb_internal._hyper_1_2_chunk;
                INSERT INTO _timescaledb_internal._hyper_1_2_chunk TABLE packed;
                COMMIT; SELECT 'done';""", "done")
            compressing.waiting()
            ask(gate, "COMMIT;")
            assert executor.wait() == 0, executor.log
    assert result_of(executor)["made_again"] == []
    assert all_rows_are_in(compressing, executor)


def jobs_in_check(scene: Scene, **settings: str) -> list[str]:
    """What `check` says of TimescaleDB's jobs."""
    return re.findall("(?m)^.* jobs: .*", scene.run("check", **settings).stdout)


def test_check_names_the_jobs_that_start_while_a_dump_runs(sensors: Sensors) -> None:
    began = int(sensors.name[7:-4])  # a second later it has ended
    for start, named in ((began + 3 * 86400, True), (began - 100, False)):
        [said] = jobs_in_check(sensors, PGOPTIONS=f"-c tests.next={start}")
        assert said.startswith("note" if named else "ok"), said
        assert ("policy 1000 of readings, policy 1001 of readings" in said) == named, said


def test_a_role_that_cannot_hold_compression_off_dumps_again(compressing: Scene) -> None:
    role = compressing.database
    compressing.sql(re.sub(r"\b(sensors|backup)\b", role, least_privileges("sql")[0]))
    try:
        with compressing.session() as gate:
            ask(gate, "BEGIN; LOCK TABLE places; SELECT 'locked';", "locked")
            with compressing.start(DB_USER=role, DB_PASSWORD="change me") as executor:
                compressing.waiting()
                compressing.sql(COMPRESS)
                ask(gate, "COMMIT;")
                assert executor.wait() == 0, executor.log
        executor.wait_for("not held off.* permission denied for table compression_settings")
        [why] = result_of(executor)["made_again"]
        assert why.endswith(": _timescaledb_internal._hyper_1_2_chunk")
        assert all_rows_are_in(compressing, executor)
        compressing.settings |= {"DB_USER": role, "DB_PASSWORD": "change me"}
        said = jobs_in_check(compressing)[0]
        assert said.startswith("note  jobs: ") and "may not hold compression off" in said
        compressing.postgres.sql("GRANT DELETE ON _timescaledb_catalog.compression_settings"
                                 f" TO {role}", compressing.database)
        assert "may not hold" not in jobs_in_check(compressing)[0]
        compressing.postgres.sql(f"ALTER ROLE {role} CONNECTION LIMIT 1")
        assert compressing.backup()["made_again"] == []
    finally:
        compressing.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")
