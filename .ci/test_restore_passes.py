"""Tests of what a restore tells PostgreSQL, in which order, and of what it makes of refusals."""
from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import backup_executor
from restores import (
    RESTORED,
    archive,
    identifier,
    refused,
    restored,
    same_databases,
    stored,
    verifying,
)
from servers import Postgres, SeaweedFS, client_programs, programs, temporary_folder
from surroundings import FILLED, Generations, Scene
from timescale import Timescale

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
    """All that the machine's lists of processes show meanwhile.

    A file in FOLDER that is named as a process goes when that has been seen.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.seen, self.over = folder, set[bytes](), threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    waits = (self.folder / pid).exists()
                    self.seen.add(Path(f"/proc/{pid}/cmdline").read_bytes())
                    if waits:
                        (self.folder / pid).unlink()
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
        scene: Scene, new: str, feed: str, tmp_path: Path) -> None:
    password, token, odd, comment = (f"hush{secrets.token_hex(8)}" for _ in range(4))
    name = identifier(scene.database)
    scene.sql(f"""{FEED.format(feed, password)}; ALTER DATABASE {name} SET "app.jwt" = '{token}';
        ALTER DATABASE {name} SET work_mem = '7MB'; COMMENT ON DATABASE {name} IS '{comment}';
        UPDATE pg_db_role_setting SET setconfig[2] = 'work_mem=it''s "{odd}"' WHERE setdatabase =
        (SELECT oid FROM pg_database WHERE datname = current_database())""")
    backup = stored(scene, archive(scene))
    scene.sql(UNFEED.format(feed))
    real = client_programs()[0]
    path = programs(tmp_path / "slow", pg_restore=f"""#!/bin/sh
        waits='{tmp_path}'/$$; : >"$waits"; while [ -e "$waits" ]; do sleep 0.1; done
        exec '{real}/pg_restore' "$@" """)
    with Arguments(tmp_path) as arguments:
        ran = restored(scene, backup, "--database", new, status=1, LOG_LEVEL="debug", PATH=path)
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


@pytest.mark.parametrize("archives, sessions", [("off", "on"), ("on", "off")])
def test_a_databases_comment_keeps_its_backslashes(
        scene: Scene, new: str, archives: str, sessions: str) -> None:
    name = identifier(scene.database)
    scene.sql(f"""ALTER DATABASE {name} SET standard_conforming_strings = {archives};
        COMMENT ON DATABASE {name} IS E'D:\\\\data''s'""")
    options = f"-c standard_conforming_strings={sessions}"
    restored(scene, stored(scene, archive(scene)), "--database", new, PGOPTIONS=options)
    assert scene.postgres.sql("SELECT shobj_description(oid, 'pg_database') FROM pg_database"
                              " WHERE datname = current_database()", new) == r"D:\data's"


def test_of_a_statement_that_is_refused_the_log_has_what_it_makes(
        scene: Scene, new: str, feed: str, restorer: dict[str, str]) -> None:
    password = f"hush{secrets.token_hex(8)}"
    scene.sql(FEED.format(feed, password))
    backup = stored(scene, archive(scene))
    ran = restored(scene, backup, "--database", new, "--no-owner", status=1, **restorer)
    assert f" SUBSCRIPTION - {feed}: " in without(ran, password)
    scene.sql(f"{UNFEED.format(feed)}; {WRAPPER.format(password)}")
    backup = stored(scene, archive(scene), 1700000001)
    said = without(restored(scene, backup, "--database", f"{new}_2", status=1), password)
    assert "not restored: USER MAPPING - USER MAPPING public SERVER s: ERROR:  not here" in said
    strict = (scene, backup, "--database", f"{new}_3", "--only-complete")
    said = refused(*strict)
    assert " USER MAPPING public SERVER s: " in said and password not in said


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
    assert "not here" in refused(scene, backup, "--database", new, "--only-complete")


# ---- What servers, roles and databases set -----------------------------------------------------

@contextlib.contextmanager
def scene_at(server: Postgres, s3: SeaweedFS) -> Iterator[Scene]:
    """A scene on another server; what is made there is dropped."""
    name = f"scene_{secrets.token_hex(4)}"
    with temporary_folder() as folder, server.dropping():
        server.run("createdb", name)
        made = Scene(server, s3, folder, name, name)
        made.sql(FILLED)
        yield made


@contextlib.contextmanager
def role(server: Postgres, **settings: str) -> Iterator[dict[str, str]]:
    """Settings of a superuser of whom the server has settings of its own."""
    name = f"hindered_{secrets.token_hex(4)}"
    server.sql(f"CREATE ROLE {name} SUPERUSER LOGIN PASSWORD 'word'")
    for setting, value in settings.items():
        server.sql(f"ALTER ROLE {name} SET {setting} = '{value}'")
    try:
        yield {f"{of}_{what}": value for of in ("DB", "VERIFY_DB") for what, value in (
            ("HOST", "127.0.0.1"), ("PORT", str(server.port)), ("USER", name),
            ("PASSWORD", "word"))}
    finally:
        server.sql(f"REASSIGN OWNED BY {name} TO postgres; DROP ROLE {name}")


LIMITS = dict.fromkeys(("idle_session_timeout", "idle_in_transaction_session_timeout",
                        "statement_timeout", "lock_timeout"), "2s")
# As it is copied, indexed and analyzed it takes longer than that, if tests.pause is set.
LAZY = """CREATE FUNCTION lazy(i int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
    PERFORM pg_sleep(coalesce(current_setting('tests.pause', true), '0')::int); RETURN i; END $$;
    CREATE TABLE slow (i int CHECK (public.lazy(i) > 0)); INSERT INTO slow VALUES (1);
    CREATE INDEX ON slow (public.lazy(i)); CREATE TABLE lists AS SELECT ARRAY['a', NULL] AS list;
    CREATE TABLE large AS SELECT md5(i::text) AS word FROM generate_series(1, 60000) i;
    CREATE INDEX ON large (word)"""


@pytest.mark.parametrize("version", [15, 17])
def test_limits_that_a_server_sets_do_not_end_a_restore(
        generations: Generations, s3: SeaweedFS, version: int) -> None:
    server = generations[version]
    more = {"transaction_timeout": "2s"} if version == 17 else {}
    with scene_at(server, s3) as scene, role(
            server, **LIMITS, **more, default_transaction_read_only="on", array_nulls="off",
            temp_file_limit="0", maintenance_work_mem="1MB") as settings:
        scene.sql(LAZY)
        backup, new = stored(scene, archive(scene)), f"{scene.database}_new"
        said = restored(scene, backup, "--database", new, "--jobs", "2", clients=17,
                        PGOPTIONS="-c tests.pause=4", **settings).stdout
        assert " 1  public.slow\n" in said
        assert server.fingerprint(new) == server.fingerprint(scene.database)


def test_a_trigger_that_lets_in_whom_it_knows_does_not_hinder_a_restore(
        scene: Scene, new: str) -> None:
    scene.sql("""CREATE TABLE known AS SELECT 'postgres'::name AS name;
        CREATE FUNCTION guard() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
            IF session_user NOT IN (SELECT name FROM public.known) THEN RAISE 'stranger'; END IF;
        END $$; CREATE EVENT TRIGGER guard ON login EXECUTE FUNCTION guard();
        ALTER EVENT TRIGGER guard ENABLE ALWAYS""")
    backup = stored(scene, archive(scene))
    with role(scene.postgres) as settings:
        restored(scene, backup, "--database", new, **settings)
        assert json.loads(scene.run("verify", **settings).stdout)["verdict"] == RESTORED
        with pytest.raises(RuntimeError, match="stranger"):
            scene.postgres.run("psql", "-c", "SELECT 1",
                               f"dbname={new} user={settings['DB_USER']} password=word")
    assert scene.postgres.sql("SELECT count(*) FROM t", new) == "500"


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_real_error_beside_those_that_a_newer_pg_restore_makes_is_one(
        scene: Scene, generations: Generations, s3: SeaweedFS, tmp_path: Path, jobs: str) -> None:
    older, file = generations[16], tmp_path / "archive"
    restore = ["restore", "--file", str(file), "--jobs", jobs, "--database"]
    with scene_at(older, s3) as there:
        scene.sql("""CREATE MATERIALIZED VIEW filled AS SELECT count(*) AS n FROM t;
            CREATE PUBLICATION one FOR TABLE t; DO $$ BEGIN FOR i IN 1..110 LOOP
                EXECUTE format('CREATE TABLE many%s ()', i); END LOOP; END $$""")
        file.write_bytes(archive(scene))
        there.run(*restore, f"{there.database}_1", clients=17)
        assert older.fingerprint(f"{there.database}_1") == scene.postgres.fingerprint(
            scene.database)
        assert older.sql("SELECT n, pubname FROM filled, pg_publication_tables",
                         f"{there.database}_1") == "500|one"
        scene.sql(f"""CREATE VIEW v_timeout AS SELECT i, '{"x" * 5000}' AS text
            FROM JSON_TABLE('[1]', '$[*]' COLUMNS (i int PATH '$'))""")
        file.write_bytes(archive(scene))
        before = older.sql("SELECT count(*) FROM pg_database")
        strict = [*restore, f"{there.database}_2", "--only-complete"]
        said = there.run(*strict, clients=17, status=1).stderr
        assert " VIEW public v_timeout: ERROR:  syntax error" in said
        assert "transaction_timeout" not in said and said.count("not restored: ") == 1
        assert older.sql("SELECT count(*) FROM pg_database") == before
        said = there.run(*strict[:-1], clients=17, status=1).stderr
        [error] = errors(subprocess.CompletedProcess("", 1, "", said))
        assert error.startswith("not restored: VIEW public v_timeout: ERROR:  syntax error")
        assert f"{there.database}_2" not in older.sql("SELECT datname FROM pg_database")


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_as_many_real_errors_as_a_newer_pg_restore_makes_are_real_where_it_makes_none(
        generations: Generations, s3: SeaweedFS, tmp_path: Path, jobs: str) -> None:
    """One that knows what an older server has not got, as a later one may."""
    older, real = generations[16], client_programs(16)[0] / "pg_restore"
    path = programs(tmp_path / "later", pg_restore=f"""#!/bin/sh
case $1 in --version) echo 'pg_restore (PostgreSQL) 19.1';; *) exec {real} "$@";; esac""")
    with scene_at(older, s3) as scene:
        scene.sql("""CREATE FUNCTION picky(i int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
            $$ BEGIN IF current_database() ~ '^restore_' THEN RAISE 'not here'; END IF;
            RETURN i; END $$; CREATE INDEX one ON t (picky(id)); CREATE TABLE u AS TABLE t;
            CREATE INDEX two ON u (picky(id))""")
        if jobs == "1":
            scene.sql("DROP INDEX two")
        (tmp_path / "a").write_bytes(archive(scene))
        ran = restored(scene, "--file", str(tmp_path / "a"), "--database", f"{scene.database}_new",
                       "--jobs", jobs, status=1, PATH=path)
        assert ran.stderr.count("not restored: INDEX public ") == int(jobs)


@pytest.mark.parametrize("version", [17, 18])
def test_the_statistics_of_an_archive_are_made_anew(
        generations: Generations, s3: SeaweedFS, tmp_path: Path, version: int) -> None:
    with scene_at(generations[18], s3) as scene, scene_at(generations[version], s3) as there:
        scene.sql("""CREATE SCHEMA "DATA"; CREATE STATISTICS "DATA".kept ON id, text FROM t;
            ANALYZE""")
        body = archive(scene, "--statistics")
        assert b"pg_restore_relation_stats" in body
        (tmp_path / "a").write_bytes(body)
        there.run("restore", "--file", str(tmp_path / "a"), "--database", there.database + "_2",
                  clients=18)
        assert there.postgres.sql("""SELECT reltuples, stxname FROM pg_class, pg_statistic_ext
            WHERE relname = 't'""", there.database + "_2") == "500|kept"


# ---- What a database is whole without ----------------------------------------------------------

REFUSED = """CREATE FUNCTION picky() RETURNS int LANGUAGE plpgsql AS $$ BEGIN
    IF current_database() ~ '^(restore|verify)_' THEN RAISE 'not here'; END IF; RETURN 1; END $$;
    CREATE MATERIALIZED VIEW filled AS SELECT count(*) AS n FROM t;
    CREATE MATERIALIZED VIEW "left empty" AS SELECT picky() AS one;
    CREATE UNIQUE INDEX ON "left empty" (one);
    CREATE PUBLICATION one FOR TABLE t; CREATE PUBLICATION every FOR ALL TABLES;
    COMMENT ON PUBLICATION every IS 'one';
    CREATE FUNCTION saw() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
    CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION saw()"""


def errors(ran: subprocess.CompletedProcess[str]) -> list[str]:
    """What a restore has left out, and why, a line each."""
    return re.findall('level=error msg="?(.*)', ran.stderr)


def test_all_else_is_restored_where_what_a_database_is_whole_without_is_refused(
        scene: Scene, new: str, feed: str, restorer: dict[str, str]) -> None:
    scene.sql(f"{REFUSED}; {FEED.format(feed, 'x')}")
    backup = stored(scene, archive(scene))
    scene.sql(UNFEED.format(feed))
    arguments = [backup, "--no-owner", "--database", new]
    assert "not here" in refused(scene, *arguments, "--only-complete", **restorer)
    ran = restored(scene, *arguments, status=1, **restorer)
    assert [line.partition(":")[2].partition(":")[0] for line in errors(ran)] == [
        " MATERIALIZED VIEW DATA public left empty", " PUBLICATION - every",
        " COMMENT - PUBLICATION every", f" SUBSCRIPTION - {feed}", " EVENT TRIGGER - watch"]
    assert scene.postgres.fingerprint(new) == scene.postgres.fingerprint(scene.database)
    assert scene.postgres.sql("SELECT n FROM filled", new) == "500"
    assert scene.postgres.sql("SELECT pubname FROM pg_publication", new) == "one"
    with pytest.raises(RuntimeError, match="has not been populated"):
        scene.postgres.sql('SELECT * FROM "left empty"', new)
    report = json.loads(scene.run("verify", **restorer).stdout)
    assert report["verdict"] == "restored, not all of it"
    assert report["rows"] == {"public.t": 500}
    for what in ("MATERIALIZED VIEW DATA public left empty", "EVENT TRIGGER - watch"):
        assert any(f"not restored: {what}: " in line for line in report["not_proven"])


# As pg_cron is made, which takes a library that is preloaded.
CRON = """DO $$ BEGIN IF current_database() !~ '^scene_[0-9a-f]+$' THEN
        RAISE 'can only create extension in database %', 'scene'; END IF; END $$;
    CREATE SCHEMA cron; CREATE TABLE cron.job (id serial, command text);
    SELECT pg_extension_config_dump('cron.job', '');
    SELECT pg_extension_config_dump('cron.job_id_seq', '')"""
CONTROL = """default_version = '1'
relocatable = false
superuser = true
schema = pg_catalog
"""


@contextlib.contextmanager
def extension_of(server: Timescale, name: str, text: str) -> Iterator[None]:
    """For a while the server has an extension, whose script this is."""
    files = {server.scripts / f"{name}.control": CONTROL, server.scripts / f"{name}--1.sql": text}
    for path, content in files.items():
        path.write_text(content)
        path.chmod(0o644)
    yield
    for path in files:
        path.unlink()


@pytest.mark.parametrize("extension", ["hstore", "timescaledb"])
def test_an_extension_that_can_live_in_one_database_alone_is_named_with_what_depends_on_it(
        timescale: Timescale, s3: SeaweedFS, extension: str) -> None:
    with extension_of(timescale, "like_cron", CRON), scene_at(timescale, s3) as scene:
        new = f"{scene.database}_new"
        scene.sql(f"""CREATE EXTENSION {extension}; CREATE EXTENSION like_cron;
            INSERT INTO cron.job (command) VALUES ('VACUUM'); CREATE VIEW jobs AS SELECT * FROM
            cron.job; CREATE MATERIALIZED VIEW filled AS SELECT * FROM t""")
        backup = scene.backup()["filename"]
        assert "can only create" in refused(scene, backup, "--database", new, "--only-complete")
        ran = restored(scene, backup, "--database", new, status=1)
        left = [" EXTENSION - like_cron", " VIEW public jobs", " TABLE DATA cron job",
                " SEQUENCE SET cron job_id_seq"]
        assert sorted(line.partition(":")[2].partition(":")[0] for line in errors(ran)) == sorted(
            left)
        assert timescale.sql("SELECT count(*) FROM filled", new) == "500"
        assert timescale.sql(f"SELECT count(*) FROM pg_extension WHERE extname IN ('{extension}',"
                             "'like_cron')", new) == "1"
        report = json.loads(scene.run("verify", **verifying(timescale)).stdout)
        assert report["verdict"] == "restored, not all of it"
        assert {line.split(":")[1] for line in report["not_proven"] if "not restored" in line} == {
            *left}


# As PgQ, PostGIS' topologies and others have it. By names the second would come first.
LINKED = """CREATE SCHEMA linked; CREATE TABLE linked.whole (id int PRIMARY KEY, filler text);
    CREATE TABLE linked.part (id int REFERENCES linked.whole);
    SELECT pg_extension_config_dump('linked.whole', '');
    SELECT pg_extension_config_dump('linked.part', '')"""


@pytest.mark.parametrize("extension", ["hstore", "timescaledb"])
def test_an_extensions_own_rows_come_in_the_order_of_its_foreign_keys_and_before_others(
        timescale: Timescale, s3: SeaweedFS, extension: str) -> None:
    with extension_of(timescale, "linked", LINKED), scene_at(timescale, s3) as scene:
        scene.sql(f"""CREATE EXTENSION {extension}; CREATE EXTENSION linked;
            INSERT INTO linked.whole SELECT i, repeat('x', 99) FROM generate_series(1, 50000) AS i;
            INSERT INTO linked.part VALUES (50000); CREATE FUNCTION known(int) RETURNS boolean
            LANGUAGE plpgsql AS 'BEGIN RETURN EXISTS (SELECT FROM linked.whole WHERE id = $1); END';
            CREATE SCHEMA above; CREATE TABLE above.t (id int CHECK (public.known(id)));
            INSERT INTO above.t VALUES (50000)""")
        new = f"{scene.database}_new"
        ran = restored(scene, scene.backup()["filename"], "--database", new)
        assert "row for row in number" in ran.stdout
        assert timescale.sql("""SELECT count(*), (SELECT count(*) FROM linked.part),
            (SELECT count(*) FROM above.t) FROM linked.whole""", new) == "50000|1|1"


@pytest.mark.parametrize(("what", "why"), [
    ("CREATE EXTENSION pg_stat_statements", "permission denied to create extension"),
    ("""CREATE FUNCTION cut(internal) RETURNS internal LANGUAGE internal AS 'numeric_avg'""",
     "permission denied for language internal"),
    ("CREATE TABLE full_up (i int CHECK (picky(i))); INSERT INTO full_up VALUES (1)",
     "No space left on device")], ids=["extension", "privilege", "room"])
def test_what_the_server_or_role_of_verify_lacks_is_no_verdict_on_the_backup(
        scene: Scene, restorer: dict[str, str], what: str, why: str) -> None:
    scene.sql(f"""CREATE FUNCTION picky(int) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
        IF current_database() LIKE 'verify%' THEN RAISE disk_full USING MESSAGE =
        'could not extend file "base/1": No space left on device'; END IF; RETURN true;
        END $$; {what}""")
    scene.backup()
    before = scene.objects().keys()
    ran = scene.run("verify", status=1, **restorer)
    [error] = errors(ran)
    assert why in error and not ran.stdout
    assert scene.objects().keys() == before


def test_an_extension_that_the_server_of_verify_lacks_is_no_verdict_on_the_backup(
        timescale: Timescale, s3: SeaweedFS) -> None:
    with scene_at(timescale, s3) as scene:
        with extension_of(timescale, "rare", ""):
            scene.sql("CREATE EXTENSION rare")
            scene.backup()
        before = scene.objects().keys()
        ran = scene.run("verify", status=1, **verifying(timescale))
        [error] = errors(ran)
        assert 'extension \\"rare\\" is not available' in error and not ran.stdout
        assert scene.objects().keys() == before


# ---- Many tables -------------------------------------------------------------------------------

MANY = """DO $$ BEGIN FOR i IN 1..110 LOOP
        EXECUTE format('CREATE TABLE many%s AS SELECT %s AS i', i, i); END LOOP; END $$;
    CREATE TABLE level0 (i int PRIMARY KEY, j int REFERENCES level0) PARTITION BY RANGE (i);
    CREATE TABLE level1 PARTITION OF level0 FOR VALUES FROM (0) TO (9) PARTITION BY RANGE (i);
    CREATE TABLE level2 PARTITION OF level1 FOR VALUES FROM (0) TO (5);
    INSERT INTO level0 VALUES (1, 1); REVOKE ALL ON many1 FROM postgres"""


def test_many_tables_are_made_before_they_are_filled_and_all_of_them_are_analyzed(
        scene: Scene, new: str) -> None:
    """A worker empties what its own pg_restore has made: a new file, and a wait for the disk."""
    scene.sql(MANY)
    restored(scene, stored(scene, archive(scene)), "--database", new, "--jobs", "3")
    same_databases(scene, new)
    there = "FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace"
    assert scene.postgres.sql(f"SELECT count(*) {there} AND reltuples < 0", new) == "0"
    assert scene.postgres.sql(
        f"SELECT count(*) {there} AND pg_relation_filenode(oid) <> oid", new) == "0"


def test_each_table_is_analyzed_by_one_session_whatever_grows_meanwhile(scene: Scene) -> None:
    """The catalog grows by what the first one writes, past tables that are as large."""
    scene.sql("""DO $$ BEGIN FOR i IN 1..100 LOOP
        EXECUTE format('CREATE TABLE many%s AS SELECT i, i AS j, i AS k, repeat(''x'', 50) AS l
            FROM generate_series(1, %s) i', i, 100 * i); END LOOP; END $$""")
    for job in range(3):
        scene.sql(backup_executor.ANALYZE.format(jobs=3, job=job))
    assert scene.sql("""SELECT count(*) FROM pg_class WHERE relkind = 'r' AND reltuples < 0
        AND relnamespace = 'public'::regnamespace""") == "0"


def test_a_database_that_takes_few_connections_is_counted_and_takes_few(
        scene: Scene, restorer: dict[str, str], new: str) -> None:
    scene.sql(f"ALTER DATABASE {identifier(scene.database)} CONNECTION LIMIT 0")
    name = stored(scene, archive(scene))
    ran = restored(scene, name, "--database", new, "--no-owner", **restorer)
    assert "row for row in number" in ran.stdout
    assert scene.postgres.sql(
        f"SELECT datconnlimit FROM pg_database WHERE datname = '{new}'") == "0"
