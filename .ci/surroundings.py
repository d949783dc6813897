"""What tests set up: a Scene for one database, a Site in a colony besides, a World for faults."""
from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
import select
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import botocore.exceptions
import pytest

import backup_executor
from colonies import APPROVED, FAILED, OWNER_KEY, SUCCESS, Colony, Standin, colony, identity
from proxies import FOREVER, PART, Proxy, through
from servers import (
    LOG_LINE,
    PATIENCE,
    Executor,
    Postgres,
    S3Server,
    SeaweedFS,
    backup_settings,
    client_programs,
    descendants,
    error_lines,
    executor_environment,
    handles_below,
    memory,
    run,
    server_folder,
    temporary_folder,
)
from vectors import VECTORS

# ---- One test's own surroundings ---------------------------------------------------------------

EXECUTOR_KEY, OTHER_KEY = VECTORS[2][0], f"{7:064x}"
BRISK = "0.016"  # a BACKUP_TIME_SCALE at which what happens each minute happens each second


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with server_folder() as folder, Postgres(folder / "postgres") as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[SeaweedFS]:
    with temporary_folder() as folder, SeaweedFS(folder / "s3") as server:
        server.client().create_bucket(Bucket="backup")
        yield server


class Generations(dict[int, Postgres]):
    """A server of each major version, started when it is asked for."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack, postgres: Postgres) -> None:
        super().__init__({postgres.version: postgres})
        self.folder, self.stack = folder, stack

    def __missing__(self, version: int) -> Postgres:
        server = Postgres(self.folder / str(version), version)
        self[version] = self.stack.enter_context(server)
        return server


@pytest.fixture(scope="session")
def generations(postgres: Postgres) -> Iterator[Generations]:
    with server_folder() as folder, contextlib.ExitStack() as stack:
        yield Generations(folder, stack, postgres)


LOCKING = "BEGIN; LOCK TABLE {}; SELECT 'locked';"
WAITS = """SELECT pid FROM pg_locks WHERE NOT granted AND relation >= 16384 AND pid <> {} AND
    database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
UNTIL = """DO $$ BEGIN FOR tries IN 1..6000 LOOP IF {} THEN RETURN; END IF;
    PERFORM pg_sleep(0.02), pg_stat_clear_snapshot();  -- PostgreSQL tells nobody who waits
    END LOOP; RAISE 'not within 120 s'; END $$"""


def until_found(server: Postgres, query: str, database: str = "postgres") -> str:
    """Wait until a query has a row; the first one."""
    while True:
        if found := server.sql(f"{UNTIL.format(f'EXISTS ({query})')};{query} LIMIT 1", database):
            return found  # else it has gone meanwhile, as who sleeps does for a moment


FILLED = """CREATE TABLE t AS SELECT i AS id, md5(i::text) AS text FROM generate_series(1, 500) i;
    ALTER TABLE t ADD PRIMARY KEY (id)"""
# Incompressible, 20 MB: pg_dump makes 40 MB of it.
BIG = """CREATE TABLE t (id int, noise bytea); ALTER TABLE t ALTER noise SET STORAGE EXTERNAL;
    INSERT INTO t SELECT i, (SELECT string_agg(sha512((i * 10000 + j)::text::bytea), '')
    FROM generate_series(1, 3200) j) FROM generate_series(1, 100) i"""


class Scene:
    """A database, a prefix in the bucket `backup`, and a staging folder of one test's own."""

    def __init__(self, postgres: Postgres, s3: S3Server, folder: Path, database: str,
                 prefix: str) -> None:
        self.postgres, self.s3, self.folder = postgres, s3, folder
        self.database, self.prefix, self.s3_client = database, prefix, s3.client()
        self.settings = backup_settings(postgres, s3, folder, database, AWS_S3_PREFIX=prefix)

    def run(self, *arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        """The executor's command to its end, with these settings besides.

        STATUS is the exit status that is expected, CLIENTS the version of the client programs: the
        server's, if nothing else is said.
        """
        status, clients = settings.pop("status", 0), settings.pop("clients", self.postgres.version)
        result = run({**self.settings, **settings}, *arguments, clients=clients)
        assert result.returncode == status, result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        return result

    def backup(self, **settings: str) -> dict[str, Any]:
        return json.loads(self.run("backup", **settings).stdout)

    def given_backup(self) -> str:
        """Put a backup of its table, that another test may have made, into the bucket; its name."""
        body, metadata = proven_backup(self.postgres, self.s3)
        name = f"backup_{int(time.time())}.bak"
        self.put(name, body, **metadata | {"database": self.database})
        return name

    def failure(self, **settings: Any) -> str:
        """The one error line of a backup that fails."""
        result = self.run("backup", **{"status": 1, **settings})
        errors = error_lines(result.stderr)
        assert not result.stdout and len(errors) == 1, result.stdout + result.stderr
        return errors[0]

    def start(self, **settings: str) -> Executor:
        return Executor({**self.settings, **settings}, "backup", clients=self.postgres.version)

    def own_s3(self, patience: float = backup_executor.PATIENCE, /,
               **settings: str) -> backup_executor.S3:
        """The executor's own client, as a command has it with these settings besides."""
        environment = executor_environment({**self.settings, **settings}, str(self.folder), 17)
        return backup_executor.S3(backup_executor.read_settings(environment), patience)

    def sql(self, text: str) -> str:
        return self.postgres.sql(text, self.database)

    def objects(self) -> dict[str, bytes]:
        """What is in the bucket under the prefix, by name; not the index, which is but a cache."""
        listed = self.s3_client.list_objects_v2(Bucket="backup", Prefix=self.prefix + "/")
        return {item["Key"].removeprefix(self.prefix + "/"): self.s3_client.get_object(
            Bucket="backup", Key=item["Key"])["Body"].read() for item in listed.get("Contents", [])
            if not item["Key"].endswith("/backup_index.jsonl")}

    def head(self, name: str) -> dict[str, Any]:
        return self.s3_client.head_object(Bucket="backup", Key=f"{self.prefix}/{name}")

    def put(self, name: str, body: bytes = b"somebody's", **metadata: str) -> None:
        self.s3_client.put_object(Bucket="backup", Key=f"{self.prefix}/{name}", Body=body,
                                  Metadata=metadata)

    def uploads(self) -> list[Any]:
        """The bucket's unfinished multipart uploads, of this prefix."""
        found = self.s3_client.list_multipart_uploads(Bucket="backup")
        return [x for x in found.get("Uploads", []) if x["Key"].startswith(self.prefix + "/")]

    def stored_keys(self) -> list[str]:
        """The keys under the prefix, of uploads that are complete or not."""
        where = {"Bucket": "backup", "Prefix": f"{self.prefix}/"}
        listed = self.s3_client.list_objects_v2(**where).get("Contents", [])
        return [item["Key"] for item in [*listed, *self.uploads()]]

    def files(self) -> list[str]:
        return sorted(os.listdir(self.folder))

    def restored(self, name: str) -> str:
        """The database that stock tools, rclone and pg_restore, make of a backup."""
        target = f"restored_{secrets.token_hex(4)}"
        with temporary_folder() as folder:
            file = folder / "downloaded"
            self.s3.rclone("copyto", f":s3:backup/{self.prefix}/{name}", str(file))
            self.postgres.sql(f"CREATE DATABASE {target} TEMPLATE template0")
            self.postgres.run("pg_restore", "--exit-on-error", "-d", target, str(file))
        return target

    @contextlib.contextmanager
    def session(self) -> Iterator[subprocess.Popen[str]]:
        """A session of a superuser here: it does what is written to it."""
        env = self.postgres._environment(
            PGHOST="127.0.0.1", PGPORT=str(self.postgres.port), PGUSER="postgres",
            PGPASSWORD=self.postgres.password, PGDATABASE=self.database)
        with subprocess.Popen([str(self.postgres.bin / "psql"), "-XAtqvON_ERROR_STOP=1"],
                              env=env, text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:
            yield session

    @contextlib.contextmanager
    def locked(self, table: str = "t") -> Iterator[Callable[[], None]]:
        """Hold a table locked, so that a pg_dump waits for it; yields what lets it go on."""
        with self.session() as session:
            assert session.stdin and session.stdout
            print(LOCKING.format(table), file=session.stdin, flush=True)
            assert session.stdout.readline() == "locked\n"
            yield session.stdin.close

    @contextlib.contextmanager
    def stuck(self, table: str) -> Iterator[Callable[[], None]]:
        """Keep a pg_dump that has all its locks amid the copying of a table; yields what ends that.

        Its long values are read by an index, which no LOCK TABLE locks.
        """
        oid = self.sql(f"SELECT '{table}'::regclass::oid")
        with self.session() as session:
            assert session.stdin and session.stdout
            print(f"BEGIN; REINDEX INDEX pg_toast.pg_toast_{oid}_index; SELECT 'locked';",
                  file=session.stdin, flush=True)
            assert session.stdout.readline() == "locked\n"
            yield session.stdin.close

    def waiting(self, but: str = "0") -> str:
        """Wait for a session that waits for a table here, another than BUT; its process id.

        Not for one of the catalog: whoever connects waits where a vacuum gives back its end.
        """
        return until_found(self.postgres, WAITS.format(but), self.database)

    def nobody_waits(self) -> None:
        """Wait until no session waits for a table here."""
        self.sql(UNTIL.format(f"NOT EXISTS ({WAITS.format(0)})"))


KEEPALIVE = "02"  # of a socket's timers in /proc/net/tcp


def asked_after(postgres: Postgres) -> dict[str, float]:
    """Of each connection by TCP: its process at the server, and in how many seconds Linux asks its
    peer whether it is there, should it say nothing; FOREVER: something else comes first."""
    ports = postgres.sql("""SELECT to_hex(client_port), pid FROM pg_stat_activity
        WHERE client_port > 0 AND pid <> pg_backend_pid()""")
    processes = dict(line.split("|") for line in ports.splitlines())
    asked = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, _, timer, *_ = line.split()
        kind, left = timer.split(":")
        process = processes.get(local.rpartition(":")[2].lstrip("0").lower())
        # The same port may be in use towards another server, too.
        if process and int(remote.rpartition(":")[2], 16) == postgres.port:
            seconds = int(left, 16) / os.sysconf("SC_CLK_TCK")
            asked[process] = seconds if kind == KEEPALIVE else FOREVER
    return asked


@functools.cache
def proven_backup(postgres: Postgres, s3: S3Server, content: str = FILLED,
                  **settings: str) -> tuple[bytes, dict[str, str]]:
    """The bytes and the metadata of a backup of a database with this CONTENT."""
    name = f"proven_{secrets.token_hex(4)}"
    with temporary_folder() as folder, postgres.dropping():
        postgres.make(name, content)
        made = Scene(postgres, s3, folder, name, name)
        stored = made.backup(**settings)["filename"]
        return made.objects()[stored], made.head(stored)["Metadata"]


@contextlib.contextmanager
def removing(s3: S3Server, prefix: str) -> Iterator[None]:
    """At the end remove the objects whose keys begin so; what S3 does not give back stays."""
    yield
    client = s3.client()
    with contextlib.suppress(botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="backup", Prefix=prefix)
        for found in [page["Contents"] for page in pages if "Contents" in page]:
            client.delete_objects(Bucket="backup", Delete={
                "Objects": [{"Key": each["Key"]} for each in found], "Quiet": True})


class Site(Scene):
    """A Scene in a colony, where its executor has the name of its database."""

    def __init__(self, where: Colony, postgres: Postgres, s3: S3Server, folder: Path,
                 rows: int = 500) -> None:
        self.where, self.client, self.name = where, where.client(), f"site-{secrets.token_hex(4)}"
        self.alive = folder / "alive"
        (folder / self.name).mkdir()
        postgres.make(self.name, FILLED.replace("500", str(rows)))
        super().__init__(postgres, s3, folder / self.name, self.name, self.name)

    @property
    def standin(self) -> Standin:
        assert self.where.standin
        return self.where.standin

    def environ(self, port: int = 0, **more: str) -> dict[str, str]:
        """The executor's settings; PORT that of a proxy before Colonies."""
        return {**self.settings, **self.where.settings(port), "COLONIES_EXECUTOR_NAME": self.name,
                "COLONIES_EXECUTOR_TYPE": self.name, "BACKUP_ALIVE_FILE": str(self.alive), **more}

    def serve(self, port: int = 0, **more: str) -> Executor:
        """Start the executor; PORT that of a proxy before Colonies."""
        return Executor(self.environ(port, **more))

    def polling(self, polls: int = 1) -> None:
        """Wait until the executor waits for work, for the POLLSth time since the server started."""
        if self.where.standin:
            self.standin.wait_call("assignprocessmsg", 0, polls)
        else:
            becomes_true(lambda: any(
                (executor["executorname"], executor["state"]) == (self.name, APPROVED)
                for executor in self.client.call("getexecutorsmsg") or []))

    def submit(self, funcname: str = "backup", **more: Any) -> str:
        return self.client.submit(funcname, self.name, **more)

    def succeeds(self, process: str) -> dict[str, Any]:
        """Wait for a process's success; its result."""
        ended = self.client.wait(process)
        assert ended["state"] == SUCCESS, ended["errors"]
        assert len(ended["out"]) == 1
        return json.loads(ended["out"][0])

    def admit(self, key: str = EXECUTOR_KEY, name: str = "") -> None:
        """Have the owner add and approve an executor."""
        who = {"executorname": name or self.name, "executorid": identity(key)}
        self.client.call("addexecutormsg", self.where.owner_key, executor={
            **who, "executortype": self.name, **self.client.colony})
        self.client.call("approveexecutormsg", self.where.owner_key, **who)

    def expel(self) -> None:
        """Have the owner remove the executor; its process waits again, as if it were dropped."""
        self.client.call("removeexecutormsg", self.where.owner_key, executorname=self.name)

    @property
    def limit(self) -> int:
        """A `maxexectime`, in seconds, that `expire` brings to its end."""
        return 600 if self.where.standin else 1

    def expire(self, process: str) -> None:
        """Have a process's `maxexectime` be over, if it has one; a real server's soon is."""
        if self.where.standin:
            with self.standin.lock:
                if process in self.standin.deadlines:
                    self.standin.deadlines[process] = time.monotonic()

    def called(self, kind: str) -> int:
        """How many messages of a type the server took."""
        with self.standin.lock:
            return sum((call[0], call[2]) == (kind, 200) for call in self.standin.calls)


@pytest.fixture
def site(request: pytest.FixtureRequest, postgres: Postgres, s3: SeaweedFS,
         tmp_path: Path) -> Iterator[Site]:
    """A Site in any colony, or in a stand-in's with the options that `standin` gives."""
    options = getattr(request, "param", None)
    with postgres.dropping(), colony() if options is None else Standin(**options) as where:
        site = Site(where if isinstance(where, Colony) else where.colony(), postgres, s3, tmp_path)
        with removing(s3, site.name):
            yield site


def standin(*options: dict[str, Any] | None) -> Any:
    """Run a test in a stand-in's colony, once for each of OPTIONS (None: in any colony)."""
    return pytest.mark.parametrize("site", options or [{}], indirect=True, ids=lambda each: (
        "-".join(f"{key}-{value}" for key, value in (each or {}).items()) or "2026"))


GENERATIONS: tuple[dict[str, Any], ...] = ({}, {"generation": 2023})


def becomes_true(condition: Callable[[], Any], timeout: float = PATIENCE) -> None:
    """Wait for something that announces itself to nobody."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not become true"
        threading.Event().wait(0.05)


@pytest.fixture(scope="session")
def backup_servers(postgres: Postgres, s3: SeaweedFS) -> tuple[Postgres, SeaweedFS]:
    """PostgreSQL, with the database `big`, and S3, with the bucket `backup`."""
    postgres.sql("CREATE DATABASE big")
    postgres.sql(BIG, "big")
    return postgres, s3


@pytest.fixture
def scene(backup_servers: tuple[Postgres, SeaweedFS]) -> Iterator[Scene]:
    """A small database of its own; its table is t."""
    name = f"small_{secrets.token_hex(4)}"
    with temporary_folder() as folder, backup_servers[0].dropping():
        backup_servers[0].make(name, FILLED)
        with removing(backup_servers[1], name):
            yield Scene(*backup_servers, folder, name, name)


@pytest.fixture
def big(backup_servers: tuple[Postgres, SeaweedFS]) -> Iterator[Scene]:
    """The database that makes several parts."""
    with temporary_folder() as folder, backup_servers[0].dropping():
        made = Scene(*backup_servers, folder, "big", f"big_{secrets.token_hex(4)}")
        made.settings["BACKUP_COMPRESSION"] = "none"
        with removing(backup_servers[1], made.prefix):
            yield made


@pytest.fixture
def meddler(backup_servers: tuple[Postgres, SeaweedFS]) -> Iterator[Proxy]:
    """A proxy before S3."""
    with Proxy(backup_servers[1].port) as proxy:
        yield proxy


def sha256_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def stuck_upload(big: Scene, proxy: Proxy) -> tuple[str, str]:
    """A backup, killed while its parts get nowhere; the dump's name and checksum."""
    proxy.cut(PART, 1000, times=10000)
    with big.start(**through(proxy)) as executor:
        proxy.wait_seen(PART, 5)
        executor.kill()
    proxy.clear()
    name = next(name for name in big.files() if name.endswith(".bak"))
    assert big.files() == [name, f"{name}.json"] and not big.objects()
    return name, sha256_of((big.folder / name).read_bytes())


# ---- Every fault's surroundings ----------------------------------------------------------------

FAULT_SCALE = "0.05"  # BACKUP_TIME_SCALE: an S3 request then times out after 3 s
FAULT_KEEP = 2  # FULL_BACKUPS
DOUBTS = "level=warning .*(Removing none|Cannot remove|Leaving alone)"  # what retention says


class World(Site):
    """A Site with a proxy before each peer, and one executor that lives through all of it.

    `audit` says what must hold after each process.
    """

    def __init__(self, postgres: Postgres, s3: S3Server, folder: Path, rows: int = 300,
                 generation: int = 2026, roles: str = "off", by: list[str] | None = None) -> None:
        self.by = by  # what starts the executor anew
        colony = Standin(generation=generation).colony()
        super().__init__(colony, postgres, s3, folder, rows)
        self.standin.longest = 1  # an idle executor looks for what is left when a poll has ended
        self.wire, self.store = Proxy(postgres.port), Proxy(s3.port)
        self.front, self.away = Proxy(colony.port), Proxy(s3.port)
        self.settings = self.environ(
            self.front.port, DB_PORT=str(self.wire.port), PGSSLMODE="disable",
            FULL_BACKUPS=str(FAULT_KEEP),
            AWS_S3_ENDPOINT=f"127.0.0.1:{self.store.port}", BACKUP_CRON="0 0 3 * * *",
            BACKUP_TIME_SCALE=FAULT_SCALE, BACKUP_ROLES=roles)
        self.proven: dict[str, str] = {}  # each object's ETag, when it was looked at
        self.dumps = self.uploaded = 0
        self.lost = 0  # faults at what begins an upload: nobody may know of it
        self.ends = collections.Counter[int]()  # processes that ended, by state
        self.executor: Executor | None = None
        self.log: list[str] = []

    def __enter__(self) -> World:
        for server in (self.standin, self.wire, self.store, self.front, self.away):
            server.start()
        self.go()
        assert self.executor
        self.executor.wait_for("`check` has ended")  # it asks peers, too
        for _ in range(FAULT_KEEP):
            self.audit(self.ordered())
        return self

    def __exit__(self, *_: object) -> None:
        if self.executor:
            self.executor.kill()
        for server in (self.wire, self.store, self.front, self.away, self.standin):
            server.kill()
        with contextlib.suppress(RuntimeError):  # it may be down: kills are what this is about
            self.postgres.drop(self.name)

    def go(self) -> None:
        """Start the executor, or start it again."""
        self.collect()
        self.executor = Executor(self.settings, by=self.by)

    def collect(self) -> str:
        """The executor's log since the last time."""
        if self.executor:
            with self.executor.changed:
                new, self.executor.lines[:] = list(self.executor.lines), []
            self.log += new
            odd = [line for line in new if not re.fullmatch(LOG_LINE, line)]
            assert not odd, odd
            self.dumps += sum("Successfully backup database" in line for line in new)
            self.uploaded += sum("Successfully uploaded backup file" in line for line in new)
            said = "\n".join(new)
            for secret in (OWNER_KEY, self.postgres.password, self.s3.secret_key):
                assert secret not in said, said
            return said
        return ""

    def kill(self) -> None:
        """kill -9, whereupon all that it started ends, too; and a new start."""
        assert self.executor
        below = handles_below(self.executor.pid)
        self.executor.process.kill()
        for handle in below:
            assert select.select([handle], [], [], PATIENCE)[0], "something outlived the executor"
            os.close(handle)
        self.executor.kill()
        self.go()

    def ended(self, process: str, timeout: float = PATIENCE) -> dict[str, Any]:
        """Wait for a process's end, then look whether it is a true one."""
        with self.standin.lock:
            found = self.standin.processes[process]
            done = self.standin.changed.wait_for(lambda: found["state"] >= SUCCESS, timeout)
        assert done, f"no end of {found} within {timeout} s:\n" + "\n".join(self.log[-40:])
        self.ends[found["state"]] += 1
        return found

    def ordered(self) -> dict[str, Any]:
        """A process for a backup, with what is armed, at its end."""
        return self.ended(self.submit())

    def looked_at(self) -> dict[str, Any]:
        """What has a final name; each new one is looked at."""
        found = self.there()
        for key, item in found.items():
            if self.proven.get(key) != item["ETag"]:
                assert key not in self.proven, f"{key} was overwritten"
                try:
                    self.prove(key)
                except botocore.exceptions.ClientError:
                    if key not in self.there():  # an idle executor has just removed it
                        return self.looked_at()
                    raise
                self.proven[key] = item["ETag"]
        return found

    def there(self) -> dict[str, Any]:
        """The backups' objects: no roles, no index, nor what a `check` has left that was killed."""
        listed = self.s3_client.list_objects_v2(Bucket="backup", Prefix=f"{self.name}/")
        return {item["Key"]: item for item in listed.get("Contents", [])
                if not re.search(r"/check_[0-9a-f]+$|[.]roles[.]sql$|[.]jsonl$", item["Key"])}

    def readable(self) -> bool:
        """Whether S3 gives back what it took."""
        with contextlib.suppress(botocore.exceptions.ClientError):
            for key in self.looked_at():
                self.s3_client.get_object(Bucket="backup", Key=key)["Body"].read()
            return True
        return False

    def prove(self, key: str) -> None:
        """An object is what its metadata say, and can be read by pg_restore."""
        assert re.fullmatch(rf"{self.name}/backup_\d+\.bak", key), key
        answer = self.s3_client.get_object(Bucket="backup", Key=key)
        body = answer["Body"].read()
        assert sha256_of(body) == answer["Metadata"]["sha256"], key
        if "roles-sha256" in answer["Metadata"]:  # else PostgreSQL was away when it was asked
            roles = self.s3_client.get_object(Bucket="backup", Key=f"{key[:-4]}.roles.sql")
            assert sha256_of(roles["Body"].read()) == answer["Metadata"]["roles-sha256"], key
            assert roles["Metadata"]["backup-id"] == answer["Metadata"]["backup-id"], key
        folder, env = client_programs(self.postgres.version)
        with tempfile.NamedTemporaryFile() as file:
            file.write(body)
            file.flush()
            read = subprocess.run([str(folder / "pg_restore"), "-f", "/dev/null", file.name],
                                  env=env, capture_output=True, text=True, check=False)
        assert not read.returncode, f"{key}: {read.stderr}"

    def audit(self, process: dict[str, Any]) -> str:
        """What the contract says of a process that ended; the log since the last audit."""
        objects, said = self.looked_at(), self.collect()
        if process["state"] == SUCCESS:
            result = json.loads(process["out"][0])
            key = result["filepath_s3"][1:]
            unknown = set(objects) - {*result["kept"], *result["removed"]}
            if any(name < key for name in unknown) and not re.search(DOUBTS, said):
                # A dump that had cost a killed process three children waited for this one's end:
                # the idle executor uploads it, and removes what that supersedes.
                kept = sorted({*result["kept"], *objects} - set(result["removed"]))[-FAULT_KEEP:]
                becomes_true(lambda: set(self.looked_at()) - set(result["removed"]) == set(kept))
                objects, said = self.looked_at(), said + self.collect()
                result["kept"] = kept
            assert objects[key]["Size"] == result["size"] == result["size_s3"], result
            assert self.s3_client.head_object(Bucket="backup", Key=key)["Metadata"]["sha256"] == (
                result["sha256"]), result
            extra = len(objects) - min(FAULT_KEEP, self.uploaded)
            doubts = re.search(DOUBTS, said)
            untrue = set(objects) & set(result["removed"])  # S3 said so: the next one sees to it
            assert extra >= 0 and (doubts or extra <= len(untrue)), (extra, said)
            assert doubts or set(objects) - untrue == set(result["kept"]), (objects, result)
        else:
            assert process["state"] == FAILED and process["errors"], process
            assert all(len(error) > 20 for error in process["errors"]), process
            assert len(objects) >= min(FAULT_KEEP, self.uploaded), said
        return said

    def calm(self) -> None:
        """No fault any more."""
        for proxy in (self.store, self.front, self.wire):
            proxy.clear()
            proxy.up()

    def forget(self) -> None:
        """Have the colony know nothing of the executor, nor of its cron."""
        with self.standin.lock:
            self.standin.executors.clear()
            self.standin.functions.clear()
            self.standin.crons.clear()

    def footprint(self) -> Footprint:
        """What the executor holds as soon as it waits for work."""
        assert self.executor
        executor, proc = self.executor, Path(f"/proc/{self.executor.pid}")
        becomes_true(lambda: not descendants(executor.pid) and not os.listdir(self.folder))
        waiting = ("assignprocessmsg", 0)
        with self.standin.lock:
            polls = sum((call[0], call[2]) == waiting for call in self.standin.calls)
        self.standin.wait_call(*waiting, polls + 1)  # it is amid a poll, always at the same place
        with self.standin.lock:
            registered = [*self.standin.executors, *self.standin.functions, *self.standin.crons]
        return Footprint(
            memory(executor.pid), len(os.listdir(proc / "fd")), len(os.listdir(proc / "task")),
            len(os.listdir(executor.home.name)) + len(os.listdir(self.folder)),
            int(self.postgres.sql("SELECT count(*) FROM pg_stat_activity WHERE datname = "
                                  f"'{self.name}'")), len(registered), len(self.looked_at()))

    def rest(self, killed: bool = False) -> None:
        """After the faults: one more backup, and nothing is left of any."""
        self.calm()
        self.front.cut(b"getprocessmsg")  # after which an executor looks at its cron, too
        ended = self.ordered()
        assert ended["state"] == SUCCESS, ended["errors"]
        assert self.executor
        said = self.audit(ended)
        # An executor killed between closing a process and forgetting it leaves its journal a day.
        becomes_true(lambda: not [name for name in os.listdir(self.folder)
                                  if not killed or not name.endswith(".bak.json")])
        assert len(self.looked_at()) == FAULT_KEEP, said
        assert killed or self.dumps == self.uploaded, f"{self.dumps} dumps, {self.uploaded} uploads"
        becomes_true(lambda: self.postgres.sql(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'colonies-backup%'"
            f" AND datname = '{self.name}'") == "0")
        becomes_true(lambda: len(self.standin.crons) == 1)  # one request may have come twice
        with self.standin.lock:
            found = [executor["state"] for executor in self.standin.executors.values()]
            assert found == [APPROVED], found
            # A message that was delivered twice has made a record twice.
            known = {function["funcname"] for function in self.standin.functions}
            assert known == {"backup", "verify", "check"}, known
            found = [cron["name"] for cron in self.standin.crons.values()]
            assert found == ["backupcron"], found
        assert not self.away.requests, "a redirection was followed"
        left = self.uploads()
        assert killed or len(left) <= self.lost, f"unfinished uploads: {left}"


def s3_call(request: bytes) -> str:
    """A pattern for requests like this one."""
    method, target = re.findall(rb"^(\S+) (\S+)", request)[0]
    for mark in (b"list-type", b"partNumber", b"uploads", b"uploadId"):
        if mark in target:
            return rf"^{method.decode()} \S*[?&]{mark.decode()}"
    end = "roles.sql" if b".roles.sql" in target else "bak"
    return rf"^{method.decode()} [^?]*\.{re.escape(end)} "


def numbered(calls: list[str]) -> list[str]:
    """CALL#1, CALL#2 …, each call by itself."""
    count = collections.Counter[str]()
    found = []
    for call in calls:
        count[call] += 1
        found.append(f"{call}#{count[call]}")
    return found


class Footprint(NamedTuple):
    """What an idle executor holds, and what is there because of it."""

    megabytes: float
    descriptors: int
    threads: int
    files: int        # in its temporary and its staging folder
    sessions: int     # of PostgreSQL
    registered: int   # executors, functions and crons
    objects: int


def one_error(ran: subprocess.CompletedProcess[str], *says: str) -> str:
    """The one error line of a command that failed, and had no answer; it matches each of SAYS."""
    errors = error_lines(ran.stderr)
    assert ran.returncode == 1 and not ran.stdout and len(errors) == 1, ran.stdout + ran.stderr
    assert all(re.search(each, errors[0]) for each in says), (says, errors)
    return errors[0]
