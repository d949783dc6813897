"""The stand-in extension for TimescaleDB, and databases that have it."""
from __future__ import annotations

import contextlib
import re
import secrets
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import Postgres, S3Server, SeaweedFS, server_folder, temporary_folder
from surroundings import Scene

# No package registry has TimescaleDB. This extension of its name is awkward where it is: it wants
# to be preloaded and a superuser, its catalog has foreign keys, outside of pre_restore a chunk's
# table finds no hypertable, compressed rows are only seen where timescaledb.restoring is not on,
# and post_restore looks at the catalog's version and then has the policies delete rows at once.
# compress_chunk truncates; a role that owns a job has to be there; a key of a hypertable can only
# be restored with timescaledb.restoring on, one that points at a hypertable only with it off; and
# the sequence that numbers what attach_tablespace notes is in no dump. 2.1.0 has its jobs where
# 2.24 and older have them, 2.2.0 where 2.25 and later do.
TIMESCALEDB = """
CREATE SCHEMA _timescaledb_catalog; CREATE SCHEMA _timescaledb_config;
CREATE SCHEMA _timescaledb_internal;
SET LOCAL search_path = _timescaledb_catalog, public;
CREATE TABLE hypertable (id serial PRIMARY KEY, schema_name name, table_name name,
    compressed_hypertable_id int);
CREATE TABLE chunk (id int PRIMARY KEY, hypertable_id int REFERENCES hypertable, table_name name,
    compressed name, schema_name name NOT NULL DEFAULT '_timescaledb_internal');
CREATE TABLE dimension (id int PRIMARY KEY, hypertable_id int REFERENCES hypertable, name text);
CREATE TABLE dimension_slice (chunk_id int REFERENCES chunk, name text);
CREATE TABLE chunk_column_stats (hypertable_id int REFERENCES hypertable, name text);
CREATE TABLE compression_settings (relid regclass PRIMARY KEY, compress_relid regclass);
CREATE TABLE tablespace (id serial PRIMARY KEY, hypertable_id int REFERENCES hypertable,
    tablespace_name name);
CREATE TABLE metadata (key text PRIMARY KEY, value text);
CREATE TABLE @jobs.bgw_job (id int PRIMARY KEY, owner regrole NOT NULL DEFAULT
    quote_ident(current_role)::regrole, hypertable_id int REFERENCES hypertable,
    scheduled boolean NOT NULL DEFAULT true, statement text);
INSERT INTO metadata VALUES ('uuid', gen_random_uuid()), ('timescaledb_version', '@version');
INSERT INTO @jobs.bgw_job VALUES (3, DEFAULT, NULL, true, 'SELECT');
CREATE SCHEMA timescaledb_information;
CREATE VIEW timescaledb_information.jobs AS SELECT j.id AS job_id, 'policy' AS proc_name, scheduled,
    to_timestamp(current_setting('tests.next', true)::float) AS next_start,
    interval '1 day' AS schedule_interval, table_name AS hypertable_name
    FROM @jobs.bgw_job j LEFT JOIN hypertable h ON h.id = hypertable_id;
GRANT USAGE ON SCHEMA timescaledb_information TO PUBLIC;
GRANT SELECT ON timescaledb_information.jobs TO PUBLIC;
DO $$ DECLARE table_or_sequence regclass; BEGIN
    FOR table_or_sequence IN SELECT oid FROM pg_class WHERE relkind IN ('r', 'S')
            AND relnamespace = '_timescaledb_catalog'::regnamespace
            AND relname <> 'tablespace_id_seq' LOOP
        PERFORM pg_extension_config_dump(table_or_sequence, '');
    END LOOP; END $$;
SELECT pg_extension_config_dump('metadata', $$WHERE key <> 'uuid'$$);
SELECT pg_extension_config_dump('@jobs.bgw_job', 'WHERE id >= 1000');
CREATE FUNCTION instead() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    DELETE FROM _timescaledb_catalog.metadata WHERE key = NEW.key; RETURN NEW; END $$;
CREATE TRIGGER instead BEFORE INSERT ON metadata FOR EACH ROW EXECUTE FUNCTION instead();
CREATE SCHEMA _timescaledb_functions;
CREATE FUNCTION _timescaledb_functions.start_background_workers() RETURNS boolean
    LANGUAGE plpgsql AS $$ BEGIN RAISE LOG 'workers start';
    RETURN coalesce(current_setting('tests.slots', true), '') = ''; END $$;
CREATE FUNCTION restoring() RETURNS boolean LANGUAGE sql AS
    $$ SELECT coalesce(current_setting('timescaledb.restoring', true), '') = 'on' $$;
CREATE FUNCTION usable() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        RAISE insufficient_privilege USING MESSAGE = 'permission denied for TimescaleDB';
    END IF;
    IF current_setting('shared_preload_libraries') !~ 'timescaledb' THEN
        RAISE 'extension "timescaledb" must be preloaded';
    END IF; END $$;
SELECT usable();
CREATE FUNCTION @extschema@.timescaledb_pre_restore() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
    PERFORM _timescaledb_catalog.usable();
    EXECUTE format('ALTER DATABASE %I SET timescaledb.restoring = ''on''', current_database());
    RETURN true; END $$;
CREATE FUNCTION @extschema@.timescaledb_post_restore() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE job text; BEGIN
    PERFORM _timescaledb_catalog.usable();
    IF EXISTS (SELECT FROM pg_extension JOIN _timescaledb_catalog.metadata m ON m.key =
               'timescaledb_version' WHERE extname = 'timescaledb' AND extversion <> m.value) THEN
        RAISE 'catalog version mismatch, expected "@version"';
    END IF;
    ASSERT coalesce(current_setting('tests.refuse', true), '') = '', 'post_restore refuses';
    EXECUTE format('ALTER DATABASE %I RESET timescaledb.restoring', current_database());
    FOR job IN SELECT statement FROM @jobs.bgw_job WHERE scheduled ORDER BY id LOOP
        EXECUTE job;
    END LOOP;
    RETURN true; END $$;
CREATE FUNCTION @extschema@.alter_job(job_id int, scheduled boolean) RETURNS void LANGUAGE sql AS
    'UPDATE @jobs.bgw_job SET scheduled = $2 WHERE id = $1';
CREATE FUNCTION @extschema@.time_bucket(width int, at int) RETURNS int LANGUAGE sql AS
    'SELECT $2 / $1 * $1';
CREATE FUNCTION @extschema@.attach_tablespace(tablespace name, hypertable regclass) RETURNS void
    LANGUAGE sql AS $$ INSERT INTO _timescaledb_catalog.tablespace (hypertable_id, tablespace_name)
    SELECT id, $1 FROM _timescaledb_catalog.hypertable
    WHERE format('%I.%I', schema_name, table_name)::regclass = $2 $$;
-- Sessions that begin later see the rows. It waits for compression_settings with the chunk locked.
CREATE FUNCTION @extschema@.compress_chunk(uncompressed_chunk regclass) RETURNS regclass
    LANGUAGE plpgsql SET timescaledb.restoring = 'on' AS $$
DECLARE here _timescaledb_catalog.chunk; packed text; columns text; BEGIN
    SELECT * INTO STRICT here FROM _timescaledb_catalog.chunk WHERE table_name =
        (SELECT relname FROM pg_class WHERE oid = uncompressed_chunk);
    ASSERT here.compressed = '', format('chunk "%s" is already compressed', uncompressed_chunk);
    EXECUTE format('LOCK TABLE %s IN EXCLUSIVE MODE', uncompressed_chunk);
    INSERT INTO _timescaledb_catalog.compression_settings VALUES (uncompressed_chunk, NULL);
    packed := format('compress_hyper_%s_%s_chunk', here.hypertable_id + 1, here.id);
    SELECT string_agg(format('array_agg(%I) AS %1$I', attname), ', ' ORDER BY attnum) INTO columns
        FROM pg_attribute WHERE attrelid = uncompressed_chunk AND attnum > 0 AND NOT attisdropped;
    EXECUTE format('CREATE TABLE _timescaledb_internal.%I AS SELECT %s FROM %s', packed, columns,
                   uncompressed_chunk);
    EXECUTE format('TRUNCATE %s', uncompressed_chunk);
    UPDATE _timescaledb_catalog.compression_settings SET compress_relid =
        format('_timescaledb_internal.%I', packed)::regclass WHERE relid = uncompressed_chunk;
    UPDATE _timescaledb_catalog.chunk SET compressed = packed WHERE id = here.id;
    RETURN uncompressed_chunk; END $$;
CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NOT _timescaledb_catalog.restoring() AND EXISTS (
            SELECT FROM pg_event_trigger_ddl_commands()
            WHERE schema_name = '_timescaledb_internal' AND NOT in_extension) THEN
        RAISE 'could not find hypertable'; END IF; END $$;
CREATE EVENT TRIGGER refuse ON ddl_command_end WHEN TAG IN ('CREATE TABLE')
    EXECUTE FUNCTION refuse();
CREATE FUNCTION decompress() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE c record; columns text; BEGIN
    FOR c IN SELECT format('%I.%I', h.schema_name, h.table_name) AS parent, compressed
            FROM _timescaledb_catalog.chunk JOIN _timescaledb_catalog.hypertable h
            ON h.id = hypertable_id
            WHERE NOT _timescaledb_catalog.restoring() AND compressed <> '' LOOP
        EXECUTE format('CREATE TEMPORARY TABLE %I () INHERITS (%s)', c.compressed, c.parent);
        SELECT string_agg(format('unnest(%I)', attname), ', ' ORDER BY attnum) INTO columns
            FROM pg_attribute WHERE attrelid = c.parent::regclass AND attnum > 0;
        EXECUTE format('INSERT INTO pg_temp.%I SELECT %s FROM _timescaledb_internal.%1$I',
                       c.compressed, columns);
    END LOOP; END $$;
CREATE EVENT TRIGGER decompress ON login EXECUTE FUNCTION decompress();
-- A key that points at a hypertable is checked against the table alone, without its chunks: outside
-- of pre_restore that has all rows for as long as the statement takes.
CREATE FUNCTION keys() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER
    SET session_replication_role = 'replica' AS $$
DECLARE h text; BEGIN
    FOR h IN SELECT format('%I.%I', schema_name, table_name) FROM _timescaledb_catalog.hypertable
            WHERE NOT _timescaledb_catalog.restoring() LOOP
        IF starts_with(current_query(), 'ALTER TABLE ONLY ' || h) THEN
            RAISE 'ONLY option not supported on hypertable operations';
        ELSIF position('REFERENCES ' || h || '(' IN current_query()) = 0 THEN
            CONTINUE;
        ELSIF starts_with(current_query(), 'ALTER TABLE ' || h) THEN
            RAISE 'hypertables cannot be used as foreign key references of hypertables';
        ELSIF tg_event = 'ddl_command_start' THEN
            EXECUTE format('INSERT INTO %s SELECT * FROM %1$s', h);
        ELSE
            EXECUTE format('DELETE FROM ONLY %s', h);
        END IF;
    END LOOP; END $$;
CREATE EVENT TRIGGER keys_begin ON ddl_command_start WHEN TAG IN ('ALTER TABLE')
    EXECUTE FUNCTION keys();
CREATE EVENT TRIGGER keys_end ON ddl_command_end WHEN TAG IN ('ALTER TABLE')
    EXECUTE FUNCTION keys();
"""
# readings: 300 rows in two chunks, 500 compressed in a third one; a policy deletes those below 100.
# The catalog's tables are restored largest first where that is done in parallel: the wrong order.
PAUSE = """CREATE FUNCTION public.pause() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
    PERFORM pg_sleep(coalesce(current_setting('tests.pause', true), '0')::int);
    RETURN true; END $$"""
PAUSING = {"PGOPTIONS": "-c tests.pause=600"}  # settings of an executor for which it does pause
SENSORS = PAUSE + """;
SET timescaledb.restoring = 'on';
CREATE TABLE places (id int PRIMARY KEY); INSERT INTO places SELECT generate_series(1, 9);
CREATE TABLE readings (at int PRIMARY KEY, value text, place int REFERENCES places);
CREATE TABLE notes (id serial PRIMARY KEY, note text);
INSERT INTO notes (note) SELECT 'note ' || i FROM generate_series(1, 40) i;
CREATE TABLE _timescaledb_internal._hyper_1_1_chunk (CHECK (at < 200),
    CONSTRAINT "1_1_readings_place_fkey" FOREIGN KEY (place) REFERENCES places) INHERITS (readings);
CREATE TABLE _timescaledb_internal._hyper_1_2_chunk (CHECK (at >= 200),
    CONSTRAINT "2_2_readings_place_fkey" FOREIGN KEY (place) REFERENCES places) INHERITS (readings);
CREATE TABLE _timescaledb_internal.compress_hyper_2_3_chunk (at int[], value text[], place int[]);
INSERT INTO _timescaledb_internal._hyper_1_1_chunk SELECT i, md5(i::text), i % 9 + 1
    FROM generate_series(1, 199) i;
INSERT INTO _timescaledb_internal._hyper_1_2_chunk SELECT i, 'x' FROM generate_series(200, 300) i;
INSERT INTO _timescaledb_internal.compress_hyper_2_3_chunk SELECT array_agg(i),
    array_agg(md5(i::text)), array_agg(1) FROM generate_series(301, 800) i GROUP BY i % 5;
CREATE INDEX ON readings (value);
CREATE INDEX ON _timescaledb_internal._hyper_1_2_chunk (at);
INSERT INTO _timescaledb_catalog.hypertable (schema_name, table_name) VALUES ('public', 'readings');
INSERT INTO _timescaledb_catalog.chunk VALUES (1, 1, '_hyper_1_1_chunk', ''),
    (2, 1, '_hyper_1_2_chunk', ''), (3, 1, '_hyper_1_3_chunk', 'compress_hyper_2_3_chunk');
INSERT INTO _timescaledb_catalog.chunk SELECT i, 1, md5(i::text), ''
    FROM generate_series(4, 99) i;
INSERT INTO _timescaledb_catalog.dimension SELECT id, 1, md5(table_name)
    FROM _timescaledb_catalog.chunk;
INSERT INTO _timescaledb_catalog.dimension_slice SELECT id, repeat(md5(table_name), 9)
    FROM _timescaledb_catalog.chunk;
INSERT INTO _timescaledb_catalog.chunk_column_stats SELECT 1, table_name
    FROM _timescaledb_catalog.chunk;
INSERT INTO _timescaledb_config.bgw_job VALUES (1000, DEFAULT, 1, true,
    'DELETE FROM public.readings WHERE at < 100'), (1001, DEFAULT, 1, true,
    'SELECT public.pause()');
SELECT attach_tablespace('pg_default', 'readings')"""
ALARMS_KEY = """ALTER TABLE ONLY public.alarms
    ADD CONSTRAINT alarms_at FOREIGN KEY (at) REFERENCES public.readings(at)"""
# In a session of its own, which sees all rows: what reads a hypertable when it is restored.
ALARMS = f"""CREATE TABLE alarms (at int); INSERT INTO alarms VALUES (150), (250), (500);
{ALARMS_KEY}; CREATE MATERIALIZED VIEW total AS SELECT count(*) AS n FROM readings"""
SENSORS_ROWS = {"public.readings": 800, "public.notes": 40, "public.places": 9, "public.alarms": 3}


class Timescale(Postgres):
    """A PostgreSQL of its own, whose log tells everything, with the stand-in for TimescaleDB."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "server")
        shutil.copytree(self.bin.parent, folder / "programs")  # others use them without it
        self.bin = folder / "programs/bin"
        share, lib = (Path(self.run("pg_config", f"--{where}")) for where in (
            "sharedir", "pkglibdir"))
        shutil.copy(lib / "auto_explain.so", lib / "timescaledb.so")  # any that does nothing
        self.scripts, self.earlier = share / "extension", list[str]()
        for name, text in {".control": "default_version = '2.2.0'\ntrusted = true\n", **{
                f"--{version}.sql": TIMESCALEDB.replace("@version", version).replace(
                    "@jobs", f"_timescaledb_{where}")
                for version, where in (("2.1.0", "config"), ("2.2.0", "catalog"))}}.items():
            path = self.scripts / f"timescaledb{name}"
            path.write_text(text)
            path.chmod(0o644)

    def _initdb(self) -> None:
        super()._initdb()
        with open(self.folder / "data/postgresql.conf", "a") as file:
            file.write("shared_preload_libraries = 'timescaledb'\nlog_statement = 'all'\n"
                       "log_line_prefix = '%d: '\nlog_connections = on\n")

    def databases(self) -> set[str]:
        return set(self.sql("SELECT datname FROM pg_database").split())

    def logged(self, since: int = 0) -> list[str]:
        """The log's lines, from line SINCE to now."""
        mark = secrets.token_hex(8)
        self.sql(f"SELECT '{mark}'")
        assert self.program
        self.program.wait_for(mark)
        return [*self.earlier, *self.program.log.splitlines()][since:]

    def idle(self, since: int) -> set[str]:
        """The databases that had no scheduler any more after line SINCE of the log.

        As in the real one, each RENAME stops that of its database, also one that is refused, and
        start_background_workers() there brings it back, as timescaledb_post_restore() does.
        """
        found = set[str]()
        for line in self.logged(since):
            # Also within a DO, whose literal doubles quotation marks.
            for renamed in re.findall(r'ALTER DATABASE (\S+|"[^"]+") RENAME TO (\S+);', line):
                found |= {name.strip('"') for name in renamed}
            started = re.match(r"(.*?): LOG:  (workers start|.*timescaledb_post_restore\(\))", line)
            if started:
                found.discard(started[1])
        return found & self.databases()

    def text(self, database: str) -> str:
        """A database as pg_dump writes it, with all rows."""
        return re.sub(r"(?m)^\\(un)?restrict .*", "", self.run("pg_dump", database=database))

    def preload(self, library: str) -> None:
        """Start again with another library preloaded."""
        with open(self.folder / "data/postgresql.conf", "a") as file:
            file.write(f"shared_preload_libraries = '{library}'\n")
        self.earlier = self.logged()
        self.stop()
        self.start()

    @contextlib.contextmanager
    def without(self, what: str) -> Iterator[None]:
        """For a while it lacks the extension, or its version 2.1.0, or did not preload it."""
        pattern = {"extension": "timescaledb*", "version": "timescaledb--2.1.0.sql"}.get(what, "-")
        missing = list(self.scripts.glob(pattern))
        for path in missing:
            path.rename(f"{path}.away")
        if what == "preloading":
            self.preload("")
        try:
            yield
        finally:
            for path in missing:
                Path(f"{path}.away").rename(path)
            if what == "preloading":
                self.preload("timescaledb")


class Sensors(Scene):
    """A TimescaleDB database, its backup, and what a restore of that has to come to."""

    def __init__(self, timescale: Timescale, s3: S3Server, folder: Path) -> None:
        super().__init__(timescale, s3, folder, "sensors", "sensors")
        self.server = timescale
        timescale.sql("CREATE DATABASE sensors")
        self.sql(f"CREATE EXTENSION timescaledb VERSION '2.1.0'; {SENSORS}")
        # And a search path without what it takes.
        self.sql(f"{ALARMS}; ALTER DATABASE sensors SET search_path = pg_catalog")
        self.name = self.backup()["filename"]
        self.sql("ALTER DATABASE sensors RESET search_path")
        self.sql("SELECT timescaledb_post_restore()")  # runs the policies, as after a restore
        self.expected = timescale.text("sensors")

    def archive(self, folder: Path) -> str:
        """The backup as a file, of which nothing else is known; its path."""
        path = folder / "archive"
        path.write_bytes(self.objects()[self.name])
        return str(path)


@pytest.fixture(scope="session")
def timescale() -> Iterator[Timescale]:
    with server_folder() as folder, Timescale(folder) as server:
        yield server


@pytest.fixture(scope="session")
def sensors(timescale: Timescale, backup_servers: tuple[Postgres, SeaweedFS]) -> Iterator[Sensors]:
    with temporary_folder() as folder:
        yield Sensors(timescale, backup_servers[1], folder)


@pytest.fixture
def target(timescale: Timescale) -> Iterator[str]:
    """A database's name. What a test makes, of this name or others, is dropped."""
    with timescale.dropping():
        yield f"new_{secrets.token_hex(4)}"


def ask(session: subprocess.Popen[str], statements: str, answer: str = "") -> None:
    """Have a session do something; wait for its ANSWER, if there is to be one."""
    assert session.stdin and session.stdout
    print(statements, file=session.stdin, flush=True)
    if answer:
        assert select.select([session.stdout], [], [], 45)[0], f"no answer to {statements}"
        assert session.stdout.readline() == f"{answer}\n"
