"""Tests of what is said of a backup and of servers: nothing untrue, and nothing in silence."""
from __future__ import annotations

import json
import os
import re
import secrets
from pathlib import Path

import pytest

import backup_executor
from debian import Pgbouncer
from environment import NOBODY, ROOT
from proxies import COMPLETING, FORBIDDEN, Proxy, through
from readme import least_privileges
from restores import (
    paused,
    restored,
    stored,
    verifying,
)
from servers import (
    ASKED,
    PASSING_ON,
    Executor,
    Postgres,
    SeaweedFS,
    asking,
    client_programs,
    error_lines,
    programs,
    server_folder,
)
from surroundings import FILLED, Generations, Scene
from test_going_on import program
from test_restore_passes import scene_at

# ---- A verdict is about the backup ---------------------------------------------------------------

PICKY = """CREATE FUNCTION picky(int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
    IF current_database() LIKE 'verify%' THEN {}; END IF; RETURN true; END $$;
    CREATE TABLE odd (i int CHECK (public.picky(i))); INSERT INTO odd VALUES (1)"""


@pytest.mark.parametrize("lack", [
    "RAISE disk_full USING MESSAGE = 'kein Platz'", "RAISE out_of_memory USING MESSAGE = 'voll'",
    "RAISE insufficient_privilege USING MESSAGE = 'nicht doch'",
    "RAISE lock_not_available USING MESSAGE = 'gesperrt'",
    "PERFORM pg_terminate_backend(pg_backend_pid())"],
    ids=["disk", "memory", "privilege", "lock", "session"])
def test_what_a_server_lacks_is_no_verdict_whatever_its_language(
        scene: Scene, restorer: dict[str, str], lack: str) -> None:
    scene.sql(PICKY.format(lack))
    scene.backup()
    before = scene.objects().keys()
    ran = scene.run("verify", status=1, **restorer)
    [error] = error_lines(ran.stderr)
    assert "COPY" in error and not ran.stdout and scene.objects().keys() == before
    assert not any(name.startswith("verify_") for name in scene.postgres.sql(
        "SELECT datname FROM pg_database").split())


@pytest.mark.parametrize("words", [
    "could not write: No space left on device", "permission denied", "no connection to the server",
    "out of shared memory"])
def test_rows_that_are_refused_are_a_verdict_whatever_the_words(
        scene: Scene, restorer: dict[str, str], words: str) -> None:
    scene.sql(PICKY.format(f"RAISE check_violation USING MESSAGE = '{words}'"))
    scene.backup()
    report = json.loads(scene.run("verify", status=1, **restorer).stdout)
    assert report["verdict"].startswith("failed: ") and words in report["verdict"]
    assert report["step"] == "restore" and "verified.json" in scene.objects()


def test_an_error_is_told_from_any_number_of_warnings(
        scene: Scene, restorer: dict[str, str]) -> None:
    """Whoever reads them only when all rows are written waits for ever."""
    scene.sql("""CREATE FUNCTION picky(text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
        IF current_database() LIKE 'verify%' THEN RAISE WARNING 'odd'; END IF;
        RETURN $1 <> 'last' OR current_database() NOT LIKE 'verify%'; END $$;
        CREATE TABLE odd (i text CHECK (public.picky(i)));
        INSERT INTO odd SELECT repeat('x', 200) FROM generate_series(1, 30000);
        INSERT INTO odd VALUES ('last')""")
    scene.backup()
    report = json.loads(scene.run("verify", status=1, **restorer).stdout)
    assert report["verdict"].startswith("failed: ") and report["step"] == "restore"


def test_backslashes_mean_what_they_mean_to_pg_restore_when_an_entry_is_tried_once_more(
        scene: Scene, restorer: dict[str, str]) -> None:
    scene.sql(PICKY.format("RAISE disk_full") + """;
        ALTER TABLE odd DROP CONSTRAINT odd_i_check;
        CREATE FUNCTION marked(i int, text) RETURNS int IMMUTABLE LANGUAGE sql
            AS $$SELECT public.picky(i)::int$$;
        CREATE INDEX ON odd (public.marked(i, '\\'))""")
    scene.sql(f"ALTER ROLE {restorer['DB_USER']} SET standard_conforming_strings = off")
    scene.backup()
    ran = scene.run("verify", status=1, **restorer)
    assert " INDEX public odd_marked_idx: " in ran.stderr and not ran.stdout, ran.stdout


def test_a_list_of_verdicts_that_somebody_else_wrote_takes_another_one(scene: Scene) -> None:
    name = scene.given_backup()
    other = {"verdict": "?", "time": "2026-01-01T00:00:00+00:00", "server": ["odd"],
             "database": {"odd": 1}, "seconds": {"read": 10 ** 400}}
    scene.put("verified.json", json.dumps({"backup_1.bak": other, name: other}).encode())
    assert json.loads(scene.run("survey").stdout)["verify_timestamp_seconds"] == {"": 0}
    scene.run("verify")
    assert json.loads(scene.objects()["verified.json"])[name]["verdict"] == "readable"


def test_nothing_of_an_archive_is_obeyed_when_an_entry_is_tried_once_more(
        scene: Scene, restorer: dict[str, str], tmp_path: Path) -> None:
    """Neither in what names a table's columns nor where its rows end too early."""
    made = tmp_path / "made"
    scene.sql(PICKY.format("RAISE check_violation") + f""";
        ALTER TABLE odd ADD COLUMN "\n\\! touch {made}\n" int, ADD COLUMN more text;
        UPDATE odd SET more = repeat('Q', 200)""")
    file = tmp_path / "archive"
    scene.postgres.run("pg_dump", "-Fc", "-Z0", "-f", str(file), database=scene.database)
    evil = f"\n\\.\n\\! touch {made}\n".encode().ljust(200, b"#")
    body = file.read_bytes()
    assert body.count(b"Q" * 200) == 1
    stored(scene, body.replace(b"Q" * 200, evil))
    report = json.loads(scene.run("verify", status=1, **restorer).stdout)
    assert "check_violation" in report["verdict"] and not made.exists()


@pytest.mark.parametrize("head", [
    "SELECT 1; -- FROM stdin;\n", "COPY (SELECT 1) TO STDOUT; -- FROM stdin;\n",
    "INSERT INTO t VALUES ('COPY a.b (c) FROM stdin;\n", "SELECT 1;\nCOPY FROM stdin;\n"])
def test_only_a_copys_rows_are_written_as_they_are(head: str) -> None:
    tail = [b"1\n", b"\\.\n", b"\\! touch x\n"]
    read = b"".join(backup_executor.once_more([head.encode(), *tail], True))
    assert re.fullmatch(rb"SELECT convert_from\(decode\('[0-9a-f]+', 'hex'\), .*\n", read)
    copy = [b"SET x = 1;\n", b'COPY a."b\n', b'\\! c" (d) FROM stdin;\n']
    *both, one, end = b"".join(backup_executor.once_more([*copy, *tail], True)).splitlines()
    assert [line.startswith(b"SELECT convert_from(") for line in both] == [True, True]
    assert (one, end) == (b"1", b"\\.")


def test_a_server_that_goes_while_rows_are_counted_is_no_verdict(scene: Scene) -> None:
    gate = f"gate_{secrets.token_hex(4)}"
    scene.sql(PICKY.format(f"""WHILE EXISTS (SELECT FROM pg_roles WHERE rolname = '{gate}') LOOP
        PERFORM pg_sleep(0.05); END LOOP""") + "; CREATE TABLE early (i int)")
    scene.backup()
    before = scene.objects().keys()
    scene.sql(f"CREATE ROLE {gate}")
    with Executor({**scene.settings, **verifying(scene.postgres)}, "verify") as verify:
        there = Scene(scene.postgres, scene.s3, scene.folder, paused(scene.postgres), scene.prefix)
        with there.session() as session:  # nothing but the count asks for this table again
            print("BEGIN; LOCK TABLE early; SELECT 'locked';", file=session.stdin, flush=True)
            assert session.stdout and session.stdout.readline() == "locked\n"
            there.sql(f"DROP ROLE {gate}")
            there.sql(f"SELECT pg_terminate_backend({there.waiting()})")
            assert verify.wait() == 1, verify.log
    assert not verify.out and scene.objects().keys() == before


@pytest.mark.parametrize("how", [
    "kill -9 $$", "echo pg_restore: error: out of memory >&2; exit 1",
    "echo pg_restore: warning: odd >&2; echo out of memory >&2; exit 1"])
def test_a_pg_restore_that_gets_no_memory_says_nothing_of_the_backup(
        scene: Scene, tmp_path: Path, how: str) -> None:
    scene.backup()
    before = scene.objects().keys()
    path = program(tmp_path, "pg_restore",
                   f'case "$*" in "-a -f- "*) {how};; esac; exec "$real" "$@"')
    ran = scene.run("verify", status=1, PATH=path)
    assert not ran.stdout and len(error_lines(ran.stderr)) == 1
    assert scene.objects().keys() == before


def test_an_older_server_of_verify_says_nothing_of_what_it_does_not_understand(
        generations: Generations, s3: SeaweedFS) -> None:
    with scene_at(generations[18], s3) as scene:
        scene.sql("CREATE TABLE newer (i int, j int GENERATED ALWAYS AS (i * 2) VIRTUAL)")
        scene.backup()
        before = scene.objects().keys()
        ran = scene.run("verify", status=1, **verifying(generations[17]))
        assert "syntax error" in ran.stderr and not ran.stdout
        assert scene.objects().keys() == before


# ---- What a dump lacks ---------------------------------------------------------------------------

@pytest.mark.parametrize("version", [14, 17, 18])
def test_what_the_least_role_leaves_out_is_said_in_log_result_and_check(
        generations: Generations, s3: SeaweedFS, version: int) -> None:
    with scene_at(generations[version], s3) as scene:
        name = scene.database
        scene.postgres.sql(re.sub(r"\b(sensors|backup)\b", name, least_privileges("sql")[0]))
        scene.sql(f"""CREATE SUBSCRIPTION feed CONNECTION 'host=x password=hush' PUBLICATION p
                WITH (connect = false, slot_name = NONE);
            CREATE FOREIGN DATA WRAPPER w; CREATE SERVER cold FOREIGN DATA WRAPPER w;
            CREATE USER MAPPING FOR {name} SERVER cold;
            CREATE USER MAPPING FOR PUBLIC SERVER cold OPTIONS (password 'hush')""")
        role = {"DB_USER": name, "DB_PASSWORD": "change me"}
        try:
            ran, seen = scene.run("backup", **role), scene.run("check", **role).stdout
            assert scene.backup()["warnings"] == []  # a superuser's
            assert "ok    contents: " in scene.run("check").stdout
        finally:
            scene.sql("DROP SUBSCRIPTION feed")
            scene.postgres.sql(f"REVOKE ALL ON DATABASE {name} FROM {name}")
            scene.sql(f"DROP USER MAPPING FOR {name} SERVER cold")
            scene.postgres.sql(f"DROP ROLE {name}")
        warnings = json.loads(ran.stdout)["warnings"]
        assert [re.sub(".*: ", "", warning) for warning in warnings[:2]] == [
            "feed", "public at cold"]
        assert "subscriptions" in warnings[0] and "user mappings" in warnings[1]
        assert warnings[2].startswith("pg_dump: warning: subscriptions not dumped")
        for warning in warnings[:2]:
            assert f'level=warning msg="{warning}"' in ran.stderr
            assert f"warn  contents: {warning}\n" in seen
        assert "hush" not in ran.stdout + ran.stderr + seen


def test_a_role_that_may_read_no_mappings_does_not_say_that_they_are_whole(scene: Scene) -> None:
    role = f"poor_{secrets.token_hex(4)}"
    scene.sql(f"""CREATE ROLE {role} LOGIN PASSWORD 'word'; GRANT SELECT ON t TO {role};
        CREATE FOREIGN DATA WRAPPER w; CREATE SERVER cold FOREIGN DATA WRAPPER w;
        CREATE USER MAPPING FOR PUBLIC SERVER cold OPTIONS (password 'hush')""")
    try:
        [warning] = scene.backup(DB_USER=role, DB_PASSWORD="word", BACKUP_ROLES="off")["warnings"]
        assert warning.endswith("user mappings, as the role is no superuser: public at cold")
    finally:
        scene.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_rows_whose_values_change_places_when_they_are_restored_are_said(
        scene: Scene, new: str) -> None:
    """As pg_dump writes a table that inherits; no count of rows shows it."""
    scene.sql("""CREATE TABLE base (id int); CREATE TABLE kid (extra int) INHERITS (base);
        CREATE TABLE other (extra int) INHERITS (base); CREATE TABLE wide (last int, z int);
        CREATE TABLE two (a int) INHERITS (wide, base); CREATE TYPE pair AS (one kid, two two);
        ALTER TABLE base DROP COLUMN id, ADD COLUMN late int, ADD COLUMN later int;
        ALTER TABLE other DROP COLUMN extra; CREATE TABLE turned (later int, late int);
        ALTER TABLE turned INHERIT base; CREATE TABLE plain (LIKE base); CREATE TABLE parted (i int,
        late int) PARTITION BY LIST (i); CREATE TABLE part (late int, i int);
        ALTER TABLE parted ATTACH PARTITION part DEFAULT;
        CREATE TABLE holds (k kid, b base, o other[], w wide, t turned[], p plain, q part);
        INSERT INTO kid VALUES (1, 2, 3); INSERT INTO holds (k) SELECT kid FROM kid;
        CREATE INDEX ON holds (k); CREATE VIEW seen AS SELECT k FROM holds""")
    [warning] = scene.backup()["warnings"]
    assert warning.startswith("Not in the dump: the order of columns of a table that inherits")
    assert sorted(warning.rpartition(": ")[2].split(", ")) == [
        "k of public.holds", "one of public.pair", "t of public.holds", "two of public.pair"]
    assert f"warn  contents: {warning}\n" in scene.run("check").stdout
    restored(scene, "latest", "--database", new)
    values = "SELECT (k).extra, (k).late, (k).later FROM holds"
    assert (scene.sql(values), scene.postgres.sql(values, new)) == ("1|2|3", "3|1|2")


def test_the_rows_that_a_standby_has_not_got_are_said_to_be_missing(scene: Scene) -> None:
    """A standby refuses sessions of which a database says that they are serializable."""
    with server_folder() as folder, Postgres(folder / "primary") as primary:
        standby = Postgres(folder / "standby", password=primary.password)
        primary.sql(f"{FILLED}; CREATE UNLOGGED TABLE quick AS SELECT 1 AS i")
        primary.sql("ALTER DATABASE postgres SET default_transaction_isolation = serializable")
        there = Scene(standby, scene.s3, scene.folder, "postgres", scene.prefix)
        here = Scene(primary, scene.s3, scene.folder, "postgres", scene.prefix)
        assert here.backup()["warnings"] == []
        primary.run("pg_basebackup", "-D", str(standby.folder / "data"), "-R", "-cfast")
        if ROOT:
            for path in (standby.folder, *standby.folder.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        with standby:
            ran, seen = there.run("backup"), there.run("check").stdout
        [warning] = json.loads(ran.stdout)["warnings"]
        assert "standby" in warning and warning.endswith(": public.quick")
        assert f'level=warning msg="{warning}"' in ran.stderr
        assert f"warn  contents: {warning}\n" in seen


# ---- A pooler ------------------------------------------------------------------------------------

@pytest.mark.parametrize("command", [
    "backup", "check", "restore latest --database {}", "restore latest --replace --database {}"])
def test_a_pooler_that_drops_options_is_refused_by_name_before_anything_is_written(
        scene: Scene, pooler: Pgbouncer, new: str, command: str) -> None:
    scene.backup()
    there, objects = "SELECT json_agg(datname) FROM pg_database", scene.objects()
    before = scene.postgres.sql(there)
    ran = scene.run(*command.format(new).split(), status=1, DB_PORT=str(pooler.port))
    said = ran.stdout if command == "check" else ran.stderr
    assert re.search(rf"127\.0\.0\.1:{pooler.port} is a pooler that drops", said), said
    assert scene.postgres.sql(there) == before
    assert scene.objects() == objects and scene.files() == []
    # Nor did another's session, which has the same connection, get anything of ours.
    assert scene.postgres.run("psql", "-XAtc", "SHOW search_path", f"port={pooler.port}",
                              database=scene.database) == '"$user", public'


def test_a_pooler_before_the_server_of_verify_is_refused_and_no_verdict(
        scene: Scene, pooler: Pgbouncer) -> None:
    scene.backup()
    before = scene.objects().keys()
    there = verifying(scene.postgres, VERIFY_DB_PORT=str(pooler.port))
    ran = scene.run("verify", status=1, **there)
    assert f"127.0.0.1:{pooler.port} is a pooler" in ran.stderr and not ran.stdout
    assert scene.objects().keys() == before


def test_warnings_outlast_an_upload_that_failed(scene: Scene, meddler: Proxy) -> None:
    role = f"poor_{secrets.token_hex(4)}"
    scene.sql(f"""CREATE ROLE {role} LOGIN PASSWORD 'word'; GRANT SELECT ON t TO {role};
        CREATE SUBSCRIPTION feed CONNECTION 'host=x' PUBLICATION p
            WITH (connect = false, slot_name = NONE)""")
    who = {"DB_USER": role, "DB_PASSWORD": "word", "BACKUP_ROLES": "off"}
    meddler.reply(COMPLETING, FORBIDDEN, 9)
    try:
        scene.failure(**who, **through(meddler))
        warnings = json.loads(scene.run("backup", "--resume").stdout)["warnings"]
        assert len(warnings) == 2 and warnings[0].endswith("is no superuser: feed")
    finally:
        scene.sql(f"DROP SUBSCRIPTION feed; DROP OWNED BY {role}; DROP ROLE {role}")


def test_an_answer_that_makes_no_sense_on_what_a_dump_lacks_costs_no_backup(
        scene: Scene, tmp_path: Path) -> None:
    path = programs(tmp_path / "odd", psql=f"""{ASKED}
case "$asked" in *{asking('pg_user_mappings')}*) echo pong; exit ;; esac
{PASSING_ON.format(client_programs()[0])}""")
    (warning,) = scene.backup(PATH=path)["warnings"]
    assert "what the dump lacks" in warning and "'pong" in warning


# ---- Reasons -------------------------------------------------------------------------------------

def test_a_reason_is_told_however_many_tables_a_statement_names(scene: Scene) -> None:
    role = f"poor_{secrets.token_hex(4)}"
    scene.sql(f"""CREATE ROLE {role} LOGIN PASSWORD 'word'; DO $$ BEGIN FOR i IN 1..300 LOOP EXECUTE
        format('CREATE TABLE %s ()', rpad('long_' || i || '_', 20, 'x')); END LOOP; END $$""")
    try:
        error = scene.failure(DB_USER=role, DB_PASSWORD="word", BACKUP_ROLES="off")
        assert "pg_dump: error: query failed: ERROR:  permission denied for table" in error
        assert "[…]" in error and 4000 < len(error) < 5500
    finally:
        scene.sql(f"DROP ROLE {role}")


def test_check_warns_where_there_are_more_relations_than_room_for_locks(scene: Scene) -> None:
    with server_folder() as folder, Postgres(folder / "small") as server:
        server.sql("ALTER SYSTEM SET max_locks_per_transaction = 10")
        server.sql("ALTER SYSTEM SET max_connections = 12")
        server.stop()
        server.start()
        there = Scene(server, scene.s3, scene.folder, "postgres", scene.prefix)
        tables = """DO $$ BEGIN FOR i IN {} LOOP EXECUTE format('CREATE TABLE t%s ()', i); END LOOP;
            END $$"""
        there.sql(tables.format("1..119"))
        assert "ok    locks: 119 relations, 120 slots" in there.run("check").stdout
        there.sql(tables.format("120..120"))
        said = there.run("check").stdout
        assert re.search("warn  locks: 120 relations, 120 slots .*max_locks_per_transaction", said)
