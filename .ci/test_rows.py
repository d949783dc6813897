"""Tests of how many rows there are: in an archive, and in what was restored from it."""
from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import secrets
import select
import subprocess
import sys
import time
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest

import backup_executor
from environment import EXECUTOR
from machine import Machine
from restores import RESTORED, archive, identifier, restored, stored, verifying
from servers import (
    PATIENCE,
    Executor,
    client_programs,
    error_lines,
    executor_environment,
    handles_below,
    programs,
    temporary_folder,
)
from surroundings import Scene, becomes_true, one_error
from timescale import Sensors

# Of each kind of table, with rows: the name that pg_dump copies into, where it is another's.
ODD = r"""
CREATE TABLE "no columns" (); INSERT INTO "no columns" SELECT FROM generate_series(1, 4);
CREATE TABLE "lines like heads" (a text); INSERT INTO "lines like heads" VALUES (E'\\.'), (''),
    ('COPY public.t (id, text) FROM stdin;'), (NULL), (E'x\n\\.\n\nCOPY public.t (id) FROM stdin;'),
    (E'\n'), ('INSERT INTO t VALUES (1);'), (E'\\N'), ('--'), (E'\r\n\\.\r\n');
CREATE TABLE "new
line""; COPY x" (i int, "a
COPY public.t (id) FROM stdin;
1" int); INSERT INTO "new
line""; COPY x" VALUES (1, 2), (3, 4);
CREATE SCHEMA "a.b"; CREATE TABLE "a.b".c (i int); INSERT INTO "a.b".c VALUES (1);
CREATE SCHEMA a; CREATE TABLE a."b.c" (i int); INSERT INTO a."b.c" VALUES (1), (2);
CREATE SCHEMA "a""b"; CREATE TABLE "a""b".c (i int); INSERT INTO "a""b".c VALUES (1);
CREATE TABLE "select" (id int GENERATED ALWAYS AS IDENTITY, "user" int GENERATED ALWAYS AS (7)
    STORED); INSERT INTO "select" DEFAULT VALUES;
CREATE TABLE generated (i int GENERATED ALWAYS AS (1) STORED);
INSERT INTO generated DEFAULT VALUES; INSERT INTO generated DEFAULT VALUES;
CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 5) AS i;
CREATE TYPE kind AS ENUM ('a', 'b', 'c');
CREATE TABLE hashed (k kind, i int) PARTITION BY HASH (k);
CREATE TABLE hashed_0 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE hashed_1 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO hashed SELECT substr('abc', 1 + i % 3, 1)::kind, i FROM generate_series(1, 30) i;
CREATE FOREIGN DATA WRAPPER none; CREATE SERVER away FOREIGN DATA WRAPPER none;
CREATE TABLE events (i int) PARTITION BY RANGE (i);
CREATE TABLE hot PARTITION OF events FOR VALUES FROM (0) TO (9) PARTITION BY RANGE (i);
CREATE TABLE hot_low PARTITION OF hot FOR VALUES FROM (0) TO (5);
CREATE TABLE hot_high PARTITION OF hot FOR VALUES FROM (5) TO (9);
INSERT INTO events SELECT generate_series(0, 8);
CREATE FOREIGN TABLE cold PARTITION OF events FOR VALUES FROM (-9) TO (0) SERVER away;
CREATE TABLE parent (i int); CREATE TABLE child () INHERITS (parent);
CREATE FOREIGN TABLE adopted () INHERITS (parent) SERVER away;
INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2), (3);
CREATE TABLE refusing (i int); INSERT INTO refusing VALUES (1), (2), (3);
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER nothing BEFORE INSERT ON refusing FOR EACH ROW EXECUTE FUNCTION nothing();
CREATE TABLE ruled (i int); INSERT INTO ruled VALUES (1);
CREATE RULE away AS ON INSERT TO ruled DO INSTEAD NOTHING;
CREATE MATERIALIZED VIEW seen AS SELECT * FROM t;
CREATE SEQUENCE "a
COPY public.t (id) FROM stdin;
1";
SELECT lo_from_bytea(4711, decode(repeat('00ff5c', 300000), 'hex'));
COMMENT ON LARGE OBJECT 4711 IS E'\nCOPY public.t (id) FROM stdin;\n1'"""
ODD_ROWS = {  # as they lie in tables, by the name of the one that they are copied into
    'public."no columns"': 4, 'public."lines like heads"': 10, 'public."new\nline""; COPY x"': 2,
    '"a.b".c': 1, 'a."b.c"': 2, '"a""b".c': 1, 'public."select"': 1, "public.generated": 2,
    "public.unlogged": 5, "public.hashed": 30, "public.hot_low": 5, "public.hot_high": 4,
    "public.parent": 1, "public.child": 2, "public.refusing": 3, "public.ruled": 1, "public.t": 500}
ODD_TOLD = {**ODD_ROWS, "public.events": 9, "public.parent": 3}  # with partitions and children
for part in ("hot_low", "hot_high", "child"):
    del ODD_TOLD[f"public.{part}"]
# One row less in each ordinary table, and in all of `hashed`.
LOSE = r"""DO $$ DECLARE name regclass; BEGIN
    FOR name IN SELECT oid FROM pg_class WHERE relkind = 'r' AND relname !~ '^hashed_'
            AND relnamespace::regnamespace::text !~ '^(pg_|information)' LOOP
        EXECUTE format('DELETE FROM ONLY %s WHERE ctid = (SELECT min(ctid) FROM ONLY %1$s)', name);
    END LOOP; DELETE FROM public.hashed WHERE i = 1; END $$"""


def then(folder: Path, sql: str, which: str = "first") -> str:
    """A PATH whose pg_restore, after its first pass or EACH, has SQL done in that database."""
    real = client_programs()[0]
    (folder / "then.sql").write_text(sql)
    return programs(folder / "programs", pg_restore=f"""#!/bin/sh
        '{real}/pg_restore' "$@" || exit
        case "$*" in *--dbname=*)
            mkdir "{folder}/{which}-$PGDATABASE" 2>/dev/null || [ {which} = each ] || exit 0
            exec '{real}/psql' -Xqf '{folder}/then.sql' ;; esac\n""")


def errors(stderr: str) -> list[str]:
    """What was logged as an error, without quotes."""
    return [json.loads(line.split("msg=")[1]) for line in error_lines(stderr)]


def different(of: dict[str, int]) -> set[str]:
    """What is said of tables that have one row less than these."""
    return {f"{name}: {rows} row{'s' * (rows > 1)} in the archive, {rows - 1} restored"
            for name, rows in of.items()}


@pytest.mark.parametrize("made", ["", "--load-via-partition-root"], ids=["plain", "root"])
def test_the_rows_of_each_kind_of_table_are_compared_with_the_archives(
        scene: Scene, new: str, tmp_path: Path, made: str) -> None:
    scene.sql(ODD)
    file, rows = tmp_path / "archive", dict(ODD_ROWS)
    scene.postgres.run("pg_dump", "-Fc", "-f", str(file), *filter(None, [made]),
                       database=scene.database)
    if made:  # of two partitions, one row each
        rows["public.events"] = rows.pop("public.hot_low") + rows.pop("public.hot_high")
    stored(scene, file.read_bytes())
    verify = verifying(scene.postgres)
    report = json.loads(scene.run("verify", **verify).stdout)
    assert (report["verdict"], report["rows"]) == (RESTORED, ODD_TOLD)
    assert report["compared"] == {name: [rows, rows] for name, rows in ODD_TOLD.items()}
    ran = restored(scene, "--file", str(file), "--database", new, status=1)
    assert "row for row in number" in ran.stdout and without_statistics(ran.stderr) == []
    scans = """SELECT DISTINCT seq_scan FROM pg_stat_user_tables WHERE relname IN
        ('ruled', 'parent', 'child', 'refusing')"""
    becomes_true(lambda: scene.postgres.sql(scans, new) == "1")  # a session tells it as it ends

    lost, named = then(tmp_path, LOSE), different(rows)
    if made:  # one row of each of its two partitions
        named = {each.replace("9 rows in the archive, 8", "9 rows in the archive, 7")
                 for each in named}
    ran = restored(scene, "latest", "--database", f"{new}_2", status=1, PATH=lost)
    assert {*without_statistics(ran.stderr)} == named and "not row for row" in ran.stdout
    assert scene.postgres.sql("SELECT count(*) FROM t", f"{new}_2") == "499"
    report = json.loads(scene.run("verify", status=1, PATH=lost, **verify).stdout)
    assert report["step"] == "count" and report["verdict"].startswith("failed: ")
    assert {*report["verdict"].removeprefix("failed: ").split("; ")} >= named - {
        each for each in named if ";" in each}
    assert report["compared"]["public.t"] == [500, 499] and report["rows"]["public.t"] == 499


@pytest.mark.parametrize(("of", "a_row"), [
    ("kind[]", "ARRAY[k]"), ("pair", "(k, 1)::pair"), ("regclass", "k::text::regclass")])
def test_rows_come_back_whose_place_depends_on_numbers_of_the_server(
        scene: Scene, new: str, of: str, a_row: str) -> None:
    """All of them would be where they were once in 2**32 times."""
    names = [f"table_{number}" for number in range(32)]
    scene.sql("; ".join(f"CREATE TABLE {name} ()" for name in names))
    scene.sql(f"""CREATE TYPE kind AS ENUM ('{"', '".join(names)}');
        CREATE TYPE pair AS (k kind, i int); CREATE TABLE hashed (a {of}) PARTITION BY HASH (a);
        CREATE TABLE hashed_0 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE hashed_1 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        INSERT INTO hashed SELECT {a_row} FROM unnest(enum_range(NULL::kind)) k""")
    scene.backup()
    ran = restored(scene, "latest", "--database", new)
    assert "32  public.hashed\n" in ran.stdout and "row for row in number" in ran.stdout


def test_nothing_is_replaced_by_what_has_other_rows_than_its_archive(
        scene: Scene, tmp_path: Path) -> None:
    scene.given_backup()
    lost = then(tmp_path, "DELETE FROM t WHERE id = 1")
    ran = restored(scene, "latest", "--database", scene.database, "--replace", status=1, PATH=lost)
    assert "is not replaced, as rows differ" in ran.stderr
    assert scene.sql("SELECT count(*) FROM t") == "500"
    [kept] = re.findall(r"ALTER DATABASE (restore_\d+) RENAME", ran.stdout)
    assert scene.postgres.sql("SELECT count(*) FROM t", kept) == "499"


def without_statistics(stderr: str) -> list[str]:
    """The errors, but for the one of a table whose child at another server cannot be looked at."""
    return [text for text in errors(stderr) if not text.startswith("public.parent: not analyzed")]


@pytest.mark.parametrize(("sql", "says"), [
    ("INSERT INTO t VALUES (0, 'one more')", "public.t: 500 rows in the archive, 501 restored"),
    ("DROP TABLE t", 'the archive copies 500 rows into "public"."t", which is not there'),
    ("INSERT INTO unfilled VALUES (1)", "public.unfilled: 0 rows in the archive, 1 restored")],
    ids=["more", "gone", "left-out"])
def test_other_differences_are_named_and_nothing_is_dropped(
        scene: Scene, new: str, tmp_path: Path, sql: str, says: str) -> None:
    scene.sql("CREATE TABLE unfilled (i int); INSERT INTO unfilled VALUES (1), (2)")
    file = tmp_path / "archive"
    scene.postgres.run("pg_dump", "-Fc", "-f", str(file), "--exclude-table-data=unfilled",
                       database=scene.database)
    ran = restored(scene, "--file", str(file), "--database", new, status=1,
                   PATH=then(tmp_path, sql))
    assert errors(ran.stderr) == [says] and new in scene.postgres.sql(
        "SELECT datname FROM pg_database")


def test_an_archive_that_inserts_its_rows_is_not_compared_and_that_is_no_error(
        scene: Scene, new: str, tmp_path: Path) -> None:
    scene.sql(r"""UPDATE t SET text = E'\n\nCOPY public.t (id, text) FROM stdin;\n1\n\\.\n'""")
    for number, how in enumerate(["--inserts", "--rows-per-insert=3", "--column-inserts"]):
        file = tmp_path / how
        scene.postgres.run("pg_dump", "-Fc", "-f", str(file), how, database=scene.database)
        ran = restored(scene, "--file", str(file), "--database", f"{new}_{number}")
        assert "500  public.t\n" in ran.stdout and "not all counted" in ran.stdout
        assert re.search("level=warning .*Rows not compared", ran.stderr)
    stored(scene, file.read_bytes())
    report = json.loads(scene.run("verify", **verifying(scene.postgres)).stdout)
    assert (report["verdict"], report["compared"]) == ("restored, not all counted", None)
    assert report["rows"] == {"public.t": 500}
    assert any("inserts" in text for text in report["not_proven"])


@pytest.mark.parametrize("written", ["", "UTF8"], ids=["as-it-is", "converted"])
def test_names_of_another_encoding_stay_two(
        scene: Scene, new: str, tmp_path: Path, written: str) -> None:
    """Also where libpq's setting has pg_dump write the archive in another one."""
    name = f"other_{secrets.token_hex(4)}"
    scene.postgres.sql(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING LATIN1 LOCALE 'C'")
    scene.database = name
    scene.sql("""SET client_encoding = 'UTF8'; CREATE TABLE é (i int); CREATE TABLE è (i int);
        INSERT INTO é SELECT generate_series(1, 3); INSERT INTO è SELECT generate_series(1, 5)""")
    scene.backup(**({"PGCLIENTENCODING": written} if written else {}), DB_DATABASE=name)
    report = json.loads(scene.run("verify", DB_DATABASE=name, **verifying(scene.postgres)).stdout)
    assert report["verdict"] == RESTORED
    assert report["compared"] == {'public."é"': [3, 3], 'public."è"': [5, 5]}
    lost = then(tmp_path, "SET client_encoding = 'UTF8'; DELETE FROM è WHERE i = 1")
    ran = restored(scene, "latest", "--database", new, status=1, PATH=lost, DB_DATABASE=name)
    assert errors(ran.stderr) == ['public."è": 5 rows in the archive, 4 restored']


@pytest.mark.parametrize("what", [
    "DELETE FROM {}._hyper_1_1_chunk WHERE at = 151",
    "DELETE FROM {}.compress_hyper_2_3_chunk WHERE at[1] = 301",
    "DELETE FROM _timescaledb_catalog.chunk_column_stats WHERE name = '_hyper_1_3_chunk'"],
    ids=["chunk", "compressed", "catalog"])
def test_tables_of_timescaledb_are_compared_as_they_lie(
        sensors: Sensors, target: str, tmp_path: Path, what: str) -> None:
    verify = verifying(sensors.server)
    lost = then(tmp_path, what.format("_timescaledb_internal"), "each")
    report = json.loads(sensors.run("verify", **verify).stdout)
    assert report["compared"]["public.readings"] == [300, 300]
    assert report["compared"]["_timescaledb_internal"] == [5, 5]
    copied, there = report["compared"]["_timescaledb_catalog"]
    assert 0 < copied < there  # the extension's own script puts rows there, too
    report = json.loads(sensors.run("verify", status=1, PATH=lost, **verify).stdout)
    assert re.fullmatch(r"failed: _timescaledb_\w+\.\w+: (\d+) rows in the archive, \d+ restored",
                        report["verdict"])
    ran = sensors.run("restore", "latest", "--database", target, status=1, PATH=lost)
    assert [f"failed: {text}" for text in errors(ran.stderr)] == [report["verdict"]]


READING = """#!/bin/sh
case "$*" in "-a -f- "*) {meanwhile} ;; esac
exec '{real}/pg_restore' "$@"
"""


def reading(folder: Path, meanwhile: str) -> str:
    """A PATH whose pg_restore does something else when it is to read all rows."""
    return programs(folder / "reading", pg_restore=READING.format(
        real=client_programs()[0], meanwhile=meanwhile))


def test_a_restore_reads_the_rows_while_they_are_restored(
        scene: Scene, new: str, tmp_path: Path) -> None:
    """Each waits for the other to begin."""
    stored(scene, archive(scene))
    real, one, other = client_programs()[0], tmp_path / "one", tmp_path / "other"
    path = programs(tmp_path / "both", pg_restore=f"""#!/bin/sh
        case "$*" in
            "-a -f- "*) touch '{one}'; until [ -e '{other}' ]; do sleep 0.1; done ;;
            *--dbname=*) touch '{other}'; until [ -e '{one}' ]; do sleep 0.1; done ;;
        esac
        exec '{real}/pg_restore' "$@"\n""")
    assert "row for row" in restored(scene, "latest", "--database", new, PATH=path).stdout


def test_a_reading_that_fails_costs_a_line_and_no_database(
        scene: Scene, new: str, tmp_path: Path) -> None:
    stored(scene, archive(scene))
    path = reading(tmp_path, "echo 'no such luck' >&2; exit 3")
    ran = restored(scene, "latest", "--database", new, status=1, PATH=path)
    [error] = errors(ran.stderr)
    assert re.search("Reading the archive: pg_restore: exit status 3: no such luck", error)
    assert "500  public.t\n" in ran.stdout and "not all counted" in ran.stdout
    assert scene.postgres.sql("SELECT count(*) FROM t", new) == "500"
    verify = scene.run("verify", status=1, PATH=path, **verifying(scene.postgres))
    assert re.match("failed: .*exit status 3: no such luck", json.loads(verify.stdout)["verdict"])


def test_a_restore_that_waits_for_the_reading_stops_and_leaves_what_is_whole(
        scene: Scene, new: str, tmp_path: Path) -> None:
    stored(scene, archive(scene))
    path = reading(tmp_path, "exec sleep 600")
    settings = {**scene.settings, "PATH": path}
    with Executor(settings, "restore", "latest", "--database", new) as executor:
        executor.wait_for("Count ...")
        below = handles_below(executor.pid)
        assert executor.stop() == 143
        assert all(select.select([handle], [], [], PATIENCE)[0] for handle in below)
        executor.wait_for("It is whole. To name it")


# A sitecustomize.py: once there is the file, and the main thread waits for another one, a thread
# hears SIGTERM in its place, as can happen to any signal, and the main one is not woken.
EAR = """
import os, signal, sys, threading, time
main = threading.get_ident()
def hear():
    while not os.path.exists({!r}) or "threading.py" not in sys._current_frames()[
            main].f_code.co_filename:
        time.sleep(0.05)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
threading.Thread(target=hear, daemon=True).start()
"""


@pytest.mark.parametrize("command", ["verify", "restore"])
def test_a_signal_that_another_thread_hears_stops_what_waits_for_the_reading(
        scene: Scene, new: str, tmp_path: Path, command: str) -> None:
    stored(scene, archive(scene))
    (tmp_path / "sitecustomize.py").write_text(EAR.format(str(now := tmp_path / "now")))
    settings = {**scene.settings, "PATH": reading(tmp_path, "exec sleep 600"),
                "PYTHONPATH": str(tmp_path), **verifying(scene.postgres)}
    arguments = [] if command == "verify" else ["latest", "--database", new]
    with Executor(settings, command, *arguments) as executor:
        executor.wait_for("Count ..." if command == "restore" else "Read ...")
        now.touch()
        assert executor.wait() == 143


def test_signals_are_the_main_thread_s_alone_and_programs(
        scene: Scene, new: str, tmp_path: Path) -> None:
    """Else another one takes what the main one holds off while it starts a program."""
    stored(scene, archive(scene))
    held, bits = sum(1 << number - 1 for number in backup_executor.SIGNALS), tmp_path / "bits"

    def held_off(said: str) -> set[int]:
        return {int(bits, 16) & held for bits in re.findall(r"SigBlk:\s(\w+)", said)}

    programs(tmp_path / "programs", psql=f"""#!/bin/sh
        while read line; do echo "$line"; done </proc/$$/status >>'{bits}'
        exec '{client_programs()[0]}/psql' "$@"\n""")
    path = f"{tmp_path}/programs:{reading(tmp_path, 'exec sleep 600')}"
    with Executor({**scene.settings, "PATH": path}, "restore", "latest", "--database",
                  new) as executor:
        executor.wait_for("Count ...")

        def others() -> set[int]:
            """What threads but the main one hold off: some end meanwhile."""
            found = set[int]()
            for thread in Path(f"/proc/{executor.pid}/task").iterdir():
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    if thread.name != str(executor.pid):
                        found |= held_off((thread / "status").read_text())
            return found

        becomes_true(lambda: others() == {held})
        assert executor.stop() == 143
    assert held_off(bits.read_text()) == {0}


@pytest.mark.parametrize("command", ["verify", "restore"])
def test_a_thread_that_cannot_be_started_says_nothing_of_the_backup(
        scene: Scene, new: str, tmp_path: Path, command: str) -> None:
    stored(scene, archive(scene))
    arguments = [] if command == "verify" else ["latest", "--database", new]
    before = scene.postgres.sql("SELECT count(*) FROM pg_database")
    ran = Machine(scene.settings, tmp_path).run(
        command, *arguments, MISHAP="3 threads ThreadPool -")  # others look, and download
    one_error(ran, "Reading the archive: can't start new thread")
    assert scene.postgres.sql("SELECT count(*) FROM pg_database") == before
    assert [row["verified"] for row in json.loads(scene.run("list", "--json").stdout)] == [None]


# Rows as COPY writes them, with what might be taken for something else.
LINES = st.lists(st.sampled_from([
    b"", b"1", rb"\\.", rb"\N", b"COPY public.t (i) FROM stdin;", b"INSERT INTO x", b"x" * 70,
    b"--", b"."]), max_size=6)
NAMES = st.sampled_from(["t", 'a"b', "new\nline", "x\nCOPY public.t (i) FROM stdin;\n1", "é", "a.b",
                         "x\nINSERT INTO y"])


@hypothesis.given(st.lists(st.tuples(NAMES, st.booleans(), LINES), max_size=5), st.integers(1, 50))
def test_rows_are_counted_wherever_a_script_is_cut(
        tables: list[tuple[str, bool, list[bytes]]], step: int) -> None:
    script, expected = b"SET client_encoding = 'UTF8';\n\n", dict[str, int]()
    for name, columns, rows in tables:
        target = f'public.{identifier(name)} {"(i, " + identifier(name) + ")" if columns else ""}'
        body = b"".join(row + b"\n" for row in rows)
        script += f"--\n-- Data\n--\n\nCOPY {target} FROM stdin;\n".encode() + body + b"\\.\n\n\n"
        key = f'"public".{identifier(name)}'.encode().decode("latin-1")
        expected[key] = expected.get(key, 0) + len(rows)
    script += b"SELECT pg_catalog.lowrite(0, '\\x" + b"00ff" * 100 + b"');\n\nCOMMIT;\n"
    found, rest, table = dict[str, int](), b"", ""
    for at in range(0, len(script), step):
        rest, table = backup_executor.count_block(rest + script[at:at + step], table, found)
        assert len(rest) < 200 + step
    assert (found, table) == (expected, "") and not backup_executor.ROWS_BEGIN.match(rest)


def test_rows_that_go_to_another_server_are_not_looked_for_there(
        scene: Scene, new: str, tmp_path: Path) -> None:
    """As pg_dump dumps them where it is told to: they come to be twice."""
    scene.sql(f"""CREATE EXTENSION postgres_fdw; CREATE TABLE far AS SELECT 1 AS i;
        CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1',
            port '{scene.postgres.port}', dbname '{scene.database}');
        CREATE USER MAPPING FOR postgres SERVER other OPTIONS (user 'postgres', password
            '{scene.postgres.password}');
        CREATE FOREIGN TABLE near (i int) SERVER other OPTIONS (table_name 'far')""")
    file = tmp_path / "archive"
    scene.postgres.run("pg_dump", "-Fc", "-f", str(file), "--include-foreign-data=other",
                       database=scene.database)
    said = restored(scene, "--file", str(file), "--database", new).stdout
    assert "row for row in number" in said and "near" not in said
    assert scene.sql("SELECT count(*) FROM far") == "2"


def test_what_has_a_part_that_cannot_be_counted_is_told_in_no_number(
        scene: Scene, restorer: dict[str, str]) -> None:
    """Not even the rows of the others, and the others are compared all the same."""
    scene.sql("""CREATE TABLE events (i int) PARTITION BY RANGE (i);
        CREATE TABLE open PARTITION OF events FOR VALUES FROM (0) TO (5);
        CREATE TABLE closed PARTITION OF events FOR VALUES FROM (5) TO (9);
        INSERT INTO events SELECT generate_series(0, 8);
        ALTER TABLE closed ENABLE ROW LEVEL SECURITY;
        ALTER TABLE closed FORCE ROW LEVEL SECURITY""")
    stored(scene, archive(scene))
    report = json.loads(scene.run("verify", **restorer).stdout)
    assert report["verdict"] == "restored, not all counted" and report["rows"] == {"public.t": 500}
    assert report["compared"] == {"public.t": [500, 500], "public.events": [5, 5]}
    [text] = [text for text in report["not_proven"] if "closed" in text]
    assert text.startswith("public.closed: not counted: ") and "row-level security" in text


def held(folder: Path, go: Path) -> str:
    """A PATH whose pg_restore restores, and then does not end before there is a file."""
    folder.mkdir(exist_ok=True)
    real = client_programs()[0]
    return programs(folder / "held", pg_restore=f"""#!/bin/sh
        case "$*" in *--dbname=*) '{real}/pg_restore' "$@" || exit
            until [ -e '{go}' ]; do sleep 0.1; done; exit ;; esac
        exec '{real}/pg_restore' "$@"\n""")


def test_a_restore_says_how_far_it_is_by_the_databases_size_at_backup_time(
        scene: Scene, new: str, tmp_path: Path) -> None:
    """An archive of which nothing else is known has a size, and no end."""
    size = scene.backup()["database_size"]
    assert abs(size - int(scene.sql("SELECT pg_database_size(current_database())"))) < size / 10
    for number, of in enumerate((str(size), "0")):
        go = tmp_path / f"go {number}"
        if of == "0":
            [(name, body)] = scene.objects().items()
            metadata = scene.head(name)["Metadata"]
            del metadata["database-size"]
            scene.put(name, body, **metadata)
        settings = {**scene.settings, "PATH": held(tmp_path / of, go), "BACKUP_TIME_SCALE": "0.001"}
        with Executor(settings, "restore", "latest", "--database", f"{new}_{number}") as executor:
            line = executor.wait_for("Restore in progress.*", count=3)[0]
            done = int(re.findall('Size="(\\d+) bytes"', line)[0])
            told = re.findall(rf'Of="about {of} bytes" Done="(\d+) %" Left="about \d+ seconds"',
                              line)
            assert done > 5_000_000 and ("Of=" in line) == (done <= int(of))
            assert [int(percent) for percent in told] == (
                [100 * done // size] if done <= int(of) else [])
            go.touch()
            assert executor.wait() == 0


def test_a_terminal_sees_a_bar_of_a_restore(scene: Scene, new: str, tmp_path: Path) -> None:
    scene.backup()
    ours, theirs = pty.openpty()
    path = held(tmp_path, tmp_path / "never")
    settings = {**scene.settings, "PATH": path, "BACKUP_TIME_SCALE": "0.01"}
    with temporary_folder() as home, subprocess.Popen(
            [sys.executable, str(EXECUTOR), "restore", "latest", "--database", new],
            env=executor_environment(settings, str(home), 17), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=theirs) as restore:
        os.close(theirs)
        said, end = b"", time.monotonic() + PATIENCE
        bar = rb"Restore in progress \[#* *\] \d+ %, \d+s left, \S+M of "
        try:
            while not re.search(bar, said):
                assert select.select([ours], [], [], PATIENCE)[0] and time.monotonic() < end, said
                said += os.read(ours, 65536)
        finally:
            restore.kill()
    os.close(ours)
