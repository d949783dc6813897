"""What tests of restore and verify share: archives, databases to make, and proofs."""
from __future__ import annotations

import contextlib
import json
import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from environment import ROOT
from servers import (
    Executor,
    Postgres,
    Program,
    SeaweedFS,
    compiled,
    error_lines,
    executor_environment,
    free_ports,
    temporary_folder,
)
from surroundings import FILLED, Scene, proven_backup, sha256_of, until_found
from timescale import PAUSE, Timescale

# ---- Backups and restores ----------------------------------------------------------------------

RICH = """
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TABLE kinds (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, flag boolean, word text,
    amount numeric(20, 5), at timestamptz, raw bytea, doc jsonb, list int[], who uuid, net inet,
    during tstzrange, how mood, real double precision);
INSERT INTO kinds (flag, word, amount, at, raw, doc, list, who, net, during, how, real) SELECT
    i % 2 = 0, E'ünï\\t\\n\\\\' || chr(128512) || repeat('''"', i % 7), i / 7.0,
    '2026-01-01Z'::timestamptz + i * interval '61 s', sha256(i::text::bytea),
    jsonb_build_object('a', i, 'b', null), ARRAY[i, NULL, -i], md5(i::text)::uuid, '10.0.0.0/8',
    tstzrange('2026-01-01Z', NULL), 'bad', 'NaN' FROM generate_series(1, 3000) i;
INSERT INTO kinds DEFAULT VALUES;
CREATE SCHEMA "odd Schema";
CREATE TABLE "odd Schema"."odd ""Table" ("select" text, i int REFERENCES t);
INSERT INTO "odd Schema"."odd ""Table" SELECT repeat('x', i * 100), i FROM generate_series(1, 90) i;
CREATE TABLE empty_one (id int);
CREATE TABLE split (i int) PARTITION BY RANGE (i);
CREATE TABLE split_low PARTITION OF split FOR VALUES FROM (0) TO (50);
CREATE TABLE split_high PARTITION OF split FOR VALUES FROM (50) TO (100);
INSERT INTO split SELECT i % 100 FROM generate_series(1, 1000) i;
CREATE VIEW totals AS SELECT flag, count(*) AS count, sum(amount) AS sum FROM kinds GROUP BY flag;
CREATE FUNCTION twice(i int) RETURNS int LANGUAGE sql AS 'SELECT 2 * i';
CREATE INDEX ON kinds (twice(array_length(list, 1)));
SELECT lo_from_bytea(4711, decode(repeat('00ff5c', 30000), 'hex'))"""


RESTORED = "restored, row for row in number"  # verify's verdict, where nothing is left to wish for


def same_databases(scene: Scene, restored: str) -> None:
    """Assert that rows and definitions are those of the source."""
    source, postgres = scene.database, scene.postgres
    assert postgres.fingerprint(restored) == postgres.fingerprint(source) != {}
    before, after = (re.sub(r"(?m)^\\(un)?restrict .*", "", postgres.run(
        "pg_dump", "--schema-only", database=database)) for database in (source, restored))
    assert after == before


def result_of(executor: Executor) -> dict[str, Any]:
    return json.loads("\n".join(executor.out))


def with_little_room(scene: Scene, mebibytes: int, *command: str, **settings: str) -> Program:
    """A backup, or another COMMAND, whose staging volume is small, with or without root.

    Its stdout ends with what is then left there.
    """
    arguments = ["unshare", "-m" if ROOT else "-rm", "sh", "-c", """
        mount -t tmpfs -o size=$0m tmpfs "$BACKUP_PATH" || exit 99
        "$@"; status=$?; echo LEFT: $(ls -A "$BACKUP_PATH"); exit $status""",
                 str(mebibytes), *compiled(), *(command or ["backup"])]
    return Program(arguments, executor_environment(
        {**scene.settings, **settings}, str(scene.folder), 17))


def identifier(name: str) -> str:
    return '"{}"'.format(name.replace('"', '""'))


def databases(postgres: Postgres) -> dict[str, int]:
    """The server's databases and their oids, which no renaming changes."""
    return json.loads(postgres.sql("SELECT json_object_agg(datname, oid::bigint) FROM pg_database"))


def archive(scene: Scene, *options: str) -> bytes:
    """What pg_dump makes of the scene's database."""
    with temporary_folder() as folder:
        file = str(folder / "a")
        scene.postgres.run("pg_dump", "-Fc", *options, "-f", file, database=scene.database)
        return (folder / "a").read_bytes()


def stored(scene: Scene, body: bytes, seconds: int = 1700000000, **metadata: str) -> str:
    """Put BODY into the bucket as a proven backup of the scene's database; its name."""
    scene.put(f"backup_{seconds}.bak", body, **{
        "sha256": sha256_of(body), "database": scene.database, "system-identifier":
        scene.sql("SELECT system_identifier FROM pg_control_system()"), **metadata})
    return f"backup_{seconds}.bak"


def restored(scene: Scene, *arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    """`restore ARGUMENTS`; whatever becomes of it, nothing is left in BACKUP_PATH."""
    ran = scene.run("restore", *arguments, **settings)
    assert scene.files() == []
    return ran


def refused(scene: Scene, *arguments: str, **settings: Any) -> str:
    """The one error line of a restore that fails before, or as if, it had written anything."""
    before = databases(scene.postgres)
    ran = restored(scene, *arguments, **{"status": 1, **settings})
    errors = error_lines(ran.stderr)
    assert len(errors) == 1 and not ran.stdout, ran.stdout + ran.stderr
    assert databases(scene.postgres) == before
    return errors[0]


@pytest.fixture
def new(scene: Scene) -> str:
    """The name of a database to make. The scene drops what a test made."""
    return f"{scene.database}_new"


RESTORER = "CREATE ROLE {0} LOGIN CREATEDB PASSWORD 'word'"


@pytest.fixture
def restorer(scene: Scene) -> Iterator[dict[str, str]]:
    """Settings of a role that can make databases, and no more."""
    scene.postgres.sql(RESTORER.format(role := f"restorer_{secrets.token_hex(4)}"))
    yield {f"{of}_{what}": value for of in ("DB", "VERIFY_DB") for what, value in (
        ("HOST", "127.0.0.1"), ("PORT", str(scene.postgres.port)), ("USER", role),
        ("PASSWORD", "word"))}
    for name in scene.postgres.sql(f"""SELECT datname FROM pg_database JOIN pg_roles r
            ON r.oid = datdba WHERE rolname = '{role}'""").splitlines():
        scene.postgres.sql(f"DROP DATABASE {identifier(name)} WITH (FORCE)")
    scene.postgres.sql(f"DROP ROLE {role}")


GOVERNED = """ALTER DATABASE {name} OWNER TO {owner}; ALTER DATABASE {name} SET work_mem = '7MB';
ALTER DATABASE {name} SET search_path = "$user", public, 'odd one';
ALTER ROLE {guest} IN DATABASE {name} SET statement_timeout = '61s';
ALTER DATABASE {name} CONNECTION LIMIT 17; REVOKE CONNECT ON DATABASE {name} FROM PUBLIC;
GRANT CONNECT, CREATE ON DATABASE {name} TO {guest} WITH GRANT OPTION;
COMMENT ON DATABASE {name} IS $comment${comment}$comment$;
ALTER TABLE t OWNER TO {owner}; GRANT SELECT, INSERT (id) ON t TO {guest};
ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA public GRANT SELECT ON TABLES TO {guest};
ALTER DEFAULT PRIVILEGES FOR ROLE {guest} REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
CREATE POLICY watched ON t TO {guest} USING (text <> ' TO nobody');
CREATE POLICY added ON t FOR INSERT TO {guest} WITH CHECK (EXISTS (SELECT FROM t))"""
PROPERTIES = """SELECT jsonb_build_object('limit', datconnlimit, 'owner', datdba, 'acl',
    (SELECT json_agg(a::text ORDER BY a::text) FROM unnest(coalesce(datacl,
        acldefault('d', datdba))) a), 'encoding', encoding,
    'locale', json_build_array(datlocprovider, datcollate, datctype, datlocale, daticurules),
    'comment', shobj_description(oid, 'pg_database'), 'settings', (SELECT json_agg(
        json_build_array(setrole, setconfig) ORDER BY setrole) FROM pg_db_role_setting
        WHERE setdatabase = oid)) FROM pg_database WHERE datname = current_database()"""
# What stands above each object in an SQL dump.
HEADER = "\n--\n-- Name: {}; Type: {}; Schema: -; Owner: {}\n--\n\n"


def governed(scene: Scene, comment: str = "what it is") -> tuple[str, str]:
    """Give the database an owner, and a guest, with rights and settings of their own."""
    owner, guest = (f'{word} "of" {scene.prefix}' for word in ("owner", "guest"))
    roles = {"owner": identifier(owner), "guest": identifier(guest)}
    scene.sql("CREATE ROLE {owner}; CREATE ROLE {guest}".format(**roles))
    scene.sql(GOVERNED.format(name=identifier(scene.database), comment=comment, **roles))
    return owner, guest


@contextlib.contextmanager
def tablespaces(server: Postgres, count: int) -> Iterator[list[str]]:
    """The names of new tablespaces, which have to be empty again at the end."""
    names = [f"space_{secrets.token_hex(4)}" for _ in range(count)]
    for name in names:
        server.sql(f"SET allow_in_place_tablespaces = on; CREATE TABLESPACE {name} LOCATION ''")
    yield names
    for name in names:
        server.sql(f"DROP TABLESPACE {name}")


def called(scene: Scene, name: str) -> None:
    """Rename the scene's database."""
    scene.postgres.sql(f"ALTER DATABASE {scene.database} RENAME TO {identifier(name)}")
    scene.database = scene.settings["DB_DATABASE"] = name


# ---- Restores that are stopped, and proofs -----------------------------------------------------

def verifying(server: Postgres, **more: str) -> dict[str, str]:
    """Settings of a `verify` that restores at SERVER."""
    return {"VERIFY_DB_HOST": "127.0.0.1", "VERIFY_DB_PORT": str(server.port),
            "VERIFY_DB_PASSWORD": server.password, **more}


def paused(server: Postgres, otherwise: str = "false") -> str:
    """Wait until a session is in pause(), or waits OTHERWISE; its database."""
    asked = f"""SELECT datname FROM pg_stat_activity WHERE pid <> pg_backend_pid()
        AND (wait_event = 'PgSleep' OR {otherwise})"""
    return until_found(server, asked)


@contextlib.contextmanager
def holding(server: Postgres, statement: str, database: str = "postgres") -> Iterator[None]:
    """Hold what STATEMENT locks."""
    env = server._environment(PGHOST="127.0.0.1", PGPORT=str(server.port), PGUSER="postgres",
                              PGPASSWORD=server.password, PGDATABASE=database)
    with subprocess.Popen([str(server.bin / "psql"), "-XAtq"], text=True, env=env,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as psql:
        assert psql.stdin and psql.stdout
        print(f"BEGIN; {statement}; SELECT 'held';", file=psql.stdin, flush=True)
        assert psql.stdout.readline().strip() == "held"
        yield


@contextlib.contextmanager
def connected(server: Postgres, database: str) -> Iterator[subprocess.Popen[str]]:
    """A superuser's session in a database."""
    env = server._environment(PGHOST="127.0.0.1", PGPORT=str(server.port), PGUSER="postgres",
                              PGPASSWORD=server.password, PGDATABASE=database)
    with subprocess.Popen([str(server.bin / "psql"), "-XAtq"], text=True, env=env,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:
        assert session.stdin and session.stdout
        print("SELECT 'here';", file=session.stdin, flush=True)
        assert session.stdout.readline().strip() == "here"
        yield session
        session.stdin.close()


class Proof(Scene):
    """A backup, of a database whose server is away since, and another server to verify it on."""

    scratch: Timescale

    def again(self, body: bytes | None = None, /, **metadata: str) -> str:
        """Store a newer object, with the newest one's bytes or others; its name."""
        newest = self.name
        name = f"backup_{int(newest[7:-4]) + 1}.bak"
        self.put(name, self.objects()[newest] if body is None else body, **metadata)
        return name

    @property
    def name(self) -> str:
        """The newest object's name."""
        return max(name for name in self.objects() if name.endswith(".bak"))

    @property
    def metadata(self) -> dict[str, str]:
        return self.head(self.name)["Metadata"]

    def report(self, name: str = "latest", **settings: Any) -> dict[str, Any]:
        """What `verify` reports, and that is all on stdout. A failure has one line more."""
        ran = self.run("verify", name, **settings)
        report = json.loads(ran.stdout)
        errors = error_lines(ran.stderr)
        assert ran.stdout == json.dumps(report, indent=4) + "\n"
        assert len(errors) == (report["verdict"].startswith("failed")), ran.stderr
        return report

    def refusal(self, *arguments: str, **settings: Any) -> str:
        """The one line of a command that fails and has nothing to report of the backup."""
        ran = self.run(*arguments, **{"status": 1, **settings})
        [error] = error_lines(ran.stderr)
        assert not ran.stdout
        return error

    def verdicts(self) -> dict[str, str | None]:
        """What `list --json` says of each backup."""
        return {row["name"]: row["verified"] and row["verified"]["verdict"]
                for row in json.loads(self.run("list", "--json").stdout)}


PROVEN = f"""{FILLED}; {PAUSE}; CREATE TABLE slow (i int CHECK (public.pause()));
    INSERT INTO slow VALUES (1); CREATE TABLE "Odd ""one" ()"""


@pytest.fixture
def proof(backup_servers: tuple[Postgres, SeaweedFS], timescale: Timescale) -> Iterator[Proof]:
    """At its end, what `verify` made on the server and on BACKUP_PATH has to be gone."""
    name = f"proof_{secrets.token_hex(4)}"
    before = timescale.databases()
    with temporary_folder() as folder, backup_servers[0].dropping():
        backup_servers[0].make(name, PROVEN)
        made = Proof(*backup_servers, folder, name, name)
        made.scratch = timescale
        # gzip, as older executors do; its data have checksums
        body, metadata = proven_backup(*backup_servers, PROVEN, BACKUP_COMPRESSION="gzip")
        made.put(f"backup_{int(time.time())}.bak", body, **metadata | {"database": name})
        made.settings |= verifying(timescale, DB_PORT=str(free_ports(1)[0]))
        yield made
        left = timescale.databases() - before
        for scratch in left:
            timescale.sql(f"DROP DATABASE {scratch} WITH (FORCE)")
        assert not left and made.files() == []
