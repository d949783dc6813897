#!/usr/bin/env python3
"""Colonies Backup Executor: PostgreSQL and TimescaleDB backups in S3, run by Colonies.

DOCSTRING
"""

from __future__ import annotations

import argparse
import base64
import collections
import ctypes
import dataclasses
import datetime
import fcntl
import functools
import hashlib
import hmac
import itertools
import json
import os
import random
import re
import resource
import select
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import SimpleNamespace as Namespace
from typing import IO, Any, NamedTuple, TypeVar

__version__ = "1.0.0"

MIB, GIB = 1024**2, 1024**3
BLOCK = 256 * 1024  # bytes read at a time; larger ones cost memory and gain nothing
FOREVER = float("inf")
Answer = TypeVar("Answer")

# ---- Errors and waiting --------------------------------------------------------------------------

# A factor of all intervals, which the tests make small.
TIME_SCALE_TEXT = os.environ.get("BACKUP_TIME_SCALE") or "1"
TIME_SCALE = float(TIME_SCALE_TEXT) if re.fullmatch(r"[0-9]*\.?[0-9]+", TIME_SCALE_TEXT) else 0.0
SHORTEST = 4.0  # seconds: no time limit for a peer's answer gets smaller by it
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Failure(Exception):
    """What went wrong, in words for the operator: which step, which peer, what to look at.

    again: whether the same may succeed later.
    """

    def __init__(self, text: str, again: bool = False):
        super().__init__(text)
        self.again = again


class WrongSettings(Failure):
    """The settings or the command line ask for what can't be."""


class PeerFailure(Failure):
    """A peer refused a request, or gave no answer that can be used.

    status: the HTTP status of its answer; 0 where there was none.
    """

    def __init__(self, text: str, status: int = 0, again: bool = False):
        super().__init__(text, again)
        self.status = status


class S3Failure(PeerFailure):
    """S3 is the peer."""


class ColoniesFailure(PeerFailure):
    """The Colonies server is the peer.

    odd: it answered, with something that is no answer to what was asked.
    """

    def __init__(self, text: str, status: int = 0, again: bool = False, odd: bool = False):
        super().__init__(text, status, again)
        self.odd = odd


class Stop(BaseException):
    """A signal, the argument, asks for the end."""


def require(fact: object, otherwise: str) -> None:
    """Raise Failure with the text OTHERWISE unless FACT is true."""
    if not fact:
        raise Failure(otherwise)


@contextmanager
def allowing(*statuses: int) -> Iterator[None]:
    """Go on after a peer's refusal with one of these statuses."""
    try:
        yield
    except PeerFailure as error:
        if error.status not in statuses:
            raise


@contextmanager
def placing(where: str) -> Iterator[None]:
    """Have an OSError say WHERE it was, if it names no file itself."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or where) from None


def time_limit(seconds: float) -> float:
    """Seconds to wait for a peer's answer, as long as BACKUP_TIME_SCALE has it."""
    return max(seconds * TIME_SCALE, min(seconds, SHORTEST))


def in_time(seconds: float, work: Callable[[], Answer]) -> Answer:
    """What WORK returns or raises; TimeoutError if it takes longer, even if it only trickles.

    It runs in a thread, which is left behind then: what it waits for has a time limit, too.
    """
    answers: list[Answer] = []
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            answers.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError("no complete answer in time")
    return answers[0]


def backoff() -> Iterator[float]:
    """Seconds to wait before each new try: 0.5, doubling up to 30, with jitter."""
    pause = 0.5
    while True:
        yield pause * random.uniform(0.5, 1) * TIME_SCALE
        pause = min(pause * 2, 30)


# ---- Log and progress ----------------------------------------------------------------------------

LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}
CHILD = "BACKUP_PROCESS"  # the variable by which the executor tells a child what it works for
PROGRESS_SECONDS = 30  # between two lines of progress


def quoted(value: object) -> str:
    """A value as logrus writes it: on one line, whatever it holds."""
    text = json.dumps(str(value), ensure_ascii=False)
    if re.fullmatch(r'"[A-Za-z0-9._/@^+-]+"', text):
        return text[1:-1]
    return printable(text)


def printable(text: str) -> str:
    """A text that no terminal obeys: what is not for printing becomes its code point."""
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)


def write(fd: int, text: str) -> None:
    """Write all of a text to a file descriptor. Raises OSError."""
    rest = text.encode("utf-8", "backslashreplace")
    while rest:
        written = os.write(fd, rest)
        rest = rest[written:]


def say(text: str) -> None:
    """Print an answer of a command to stdout. Raises OSError: nobody would have it."""
    with placing("stdout"):
        write(1, text)


def log(level: str, message: str, **fields: object) -> None:
    """A line on stderr as logrus writes it; in a child of the executor also a line for that.

    It never raises: that nobody takes a log is no reason to stop a backup.
    """
    more = "".join(f" {name}={quoted(redacted(value))}" for name, value in fields.items())
    with suppress(OSError):
        if CHILD in os.environ and level != "debug":
            write(1, f"#{json.dumps([level, message + more])}\n")
        if LEVELS[level] >= LEVELS.get(os.environ.get("LOG_LEVEL", ""), 1):
            now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            if os.isatty(2):
                write(2, "\r\x1b[K")  # over a bar of `progress`
            write(2, f'time="{now}" level={level} msg={quoted(redacted(message))}{more}\n')


def progress(what: str, total: int) -> Callable[[int], None]:
    """What shows the progress of a long step, when it is called with the bytes that are done.

    total: bytes, as far as they are known; else 0. A terminal shows a bar, a log a line at times.
    """
    begun = shown = time.monotonic()

    def show(done: int) -> None:
        nonlocal shown
        now = time.monotonic()
        rate = f"{done / MIB / (now - begun + 0.001):.1f} MiB/s"
        if os.isatty(2) and CHILD not in os.environ:
            bar = "#" * min(30, 30 * done // (total or sys.maxsize))
            text = f"\r\x1b[K{what} [{bar:<30}] {done // MIB} of {total // MIB} MiB, {rate}"
            with suppress(OSError):
                write(2, text)
        elif now - shown >= PROGRESS_SECONDS * TIME_SCALE:
            shown = now
            log("info", what, Size=f"{done} bytes", Of=f"about {total} bytes", Rate=rate)

    return show


# ---- Settings ------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """An environment variable."""

    name: str
    also: str  # another spelling of it, or ""
    kind: str  # how its text is read: a name in PATTERNS or READERS
    default: str
    meaning: str


SETTINGS = [
    Setting(*(cell.strip() for cell in row.split("|")))
    for row in """
COLONIES_SERVER_HOST||host||the Colonies server; required by `serve`
COLONIES_SERVER_PORT||port||its port; required by `serve`
COLONIES_TLS|COLONIES_SERVER_TLS|flag|true|https or http
COLONIES_INSECURE_SKIP_VERIFY||flag|false|accept any certificate (logged as a warning)
COLONIES_CA_FILE||file||PEM file of the authorities to trust; else the system's
COLONIES_COLONY_NAME||text||the colony's name (current servers); it or the id is required
COLONIES_COLONY_ID||text||the colony's id (2023 servers)
COLONIES_COLONY_PRVKEY||key||the colony owner's key: the executor registers and deregisters itself
COLONIES_EXECUTOR_PRVKEY|COLONIES_PRVKEY|key||the executor's own key; else derived from the owner's
COLONIES_EXECUTOR_NAME||text||its name; else `backup-` and the host name
COLONIES_EXECUTOR_TYPE||text|backup|its type: one for each database where a colony has several
BACKUP_CRON||text||cron expression, seconds first: the colony gets a cron that submits `backup`
BACKUP_CRON_NAME||text|backupcron|the name of that cron
VERIFY_CRON||text||cron expression: the colony gets a cron that submits `verify`
VERIFY_CRON_NAME||text|verifycron|the name of that cron
DB_HOST||text|localhost|the database server
DB_PORT||port|5432|its port
DB_DATABASE||text|postgres|the database
DB_USER||text|postgres|the role that dumps it
DB_PASSWORD||secret||its password
AWS_S3_ENDPOINT||server||host[:port] or URL of an S3 server; else AWS
AWS_S3_SECURE|AWS_S3_TLS|flag|true|https or http, where the endpoint has no scheme
AWS_S3_INSECURE_SKIP_VERIFY|AWS_S3_SKIPVERIFY|flag|false|accept any certificate (logged)
AWS_S3_CA_FILE||file||PEM file of the authorities to trust; else the system's
AWS_S3_REGION||text|us-east-1|the region
AWS_S3_ACCESS_KEY|AWS_S3_ACCESSKEY|token||else boto3's own chain: role, web identity, profile
AWS_S3_SECRET_ACCESS_KEY|AWS_S3_SECRETKEY|token||the secret key
AWS_S3_BUCKET_NAME|AWS_S3_BUCKET|text||the bucket; required; made if missing at an AWS_S3_ENDPOINT
AWS_S3_PREFIX||text|backups|objects are PREFIX/backup_SECONDS.bak
FULL_BACKUPS||count|3|how many backups to keep
BACKUP_PATH||text|/backups|the staging volume
VERIFY_DB_HOST||text||the server where `verify` restores; else it only reads the archive
VERIFY_DB_PORT||port|5432|its port
VERIFY_DB_USER||text|postgres|the role that restores there
VERIFY_DB_PASSWORD||secret||its password
BACKUP_COMPRESSION||compression|auto|as for `pg_dump --compress`; auto: zstd from pg_dump 16 on
BACKUP_ALIVE_FILE||text||touched while all is well; else `alive` in the temporary folder
LOG_LEVEL||level|info|debug, info, warning or error
""".strip().splitlines()
]
SECRET = ("secret", "token", "key")  # the kinds for which NAME_FILE may name a file


@dataclasses.dataclass(frozen=True)
class Database:
    """A database, and as whom our programs connect to it."""

    host: str
    port: int
    user: str
    password: str  # "": libpq's own ways (a PGPASSFILE, …)
    name: str
    session: str  # application_name of our sessions, by which the server's are known to be ours

    def named(self, name: str) -> Database:
        """Another database of the same server."""
        return dataclasses.replace(self, name=name)


@dataclasses.dataclass(frozen=True)
class Settings:
    """SETTINGS by their names in lower case; not set: "", 0 for a port, None for a key."""

    colonies_server_host: str
    colonies_server_port: int
    colonies_tls: bool
    colonies_insecure_skip_verify: bool
    colonies_ca_file: str
    colonies_colony_name: str
    colonies_colony_id: str
    colonies_colony_prvkey: int | None
    colonies_executor_prvkey: int | None
    colonies_executor_name: str
    colonies_executor_type: str
    backup_cron: str
    backup_cron_name: str
    verify_cron: str
    verify_cron_name: str
    db_host: str
    db_port: int
    db_database: str
    db_user: str
    db_password: str
    aws_s3_endpoint: str  # a URL; "" is AWS
    aws_s3_secure: bool
    aws_s3_insecure_skip_verify: bool
    aws_s3_ca_file: str
    aws_s3_region: str
    aws_s3_access_key: str
    aws_s3_secret_access_key: str
    aws_s3_bucket_name: str
    aws_s3_prefix: str  # without slashes at its ends
    full_backups: int
    backup_path: str
    verify_db_host: str
    verify_db_port: int
    verify_db_user: str
    verify_db_password: str
    backup_compression: str
    backup_alive_file: str
    log_level: str

    command: str  # that runs, for the names of its sessions

    @property
    def owner(self) -> str:
        """Whose a journal on the staging volume is."""
        return f"colonies-backup-executor/1 {self.db_host}:{self.db_port}/{self.db_database}"

    @property
    def place(self) -> str:
        """Where this installation works; the same for the one that takes its place."""
        folder = os.path.realpath(self.backup_path)
        bucket = f"{self.aws_s3_bucket_name}/{self.aws_s3_prefix}"
        return f"{self.colonies_executor_name} {self.owner} {folder} {bucket}"

    @property
    def mark(self) -> int:
        """The connection limit of scratch databases of ours: a number that nobody else chooses."""
        return 10**9 + int(hashlib.sha256(self.place.encode()).hexdigest()[:7], 16)

    def database(self) -> Database:
        """The one that is backed up, and its server the one where backups are restored."""
        here = f"{self.place} {os.uname().nodename}"
        tag = hashlib.sha256(here.encode()).hexdigest()[:8]
        who = f"colonies-{self.command} {tag} {self.colonies_executor_name}/{self.db_database}"
        session = re.sub("[^ -~]", "?", who)[:63]  # a longer one would be cut by the server
        return Database(
            self.db_host, self.db_port, self.db_user, self.db_password, self.db_database, session
        )

    def verify_server(self) -> Database:
        """The database from which `verify` makes its scratch databases."""
        return dataclasses.replace(
            self.database(),
            host=self.verify_db_host,
            port=self.verify_db_port,
            user=self.verify_db_user,
            password=self.verify_db_password,
            name="postgres",
        )


# What a text has to look like, and what it is not otherwise.
PATTERNS = {
    "text": (r"[^\0]*", "free of NUL"),
    "secret": (r"[^\0]*", "free of NUL"),
    "token": ("[!-~]+", "printable ASCII"),
    "host": (r"[^\s/@?#\[\]]+", "a host name or address"),
    "server": (
        r"(?i)(https?://)?([^\s/@?#:]+|\[[0-9a-f:.]+])(:\d{1,5})?/?",
        "host[:port], a URL",
    ),
    "compression": (r"auto|none|[0-9]|(gzip|lz4|zstd)(:[0-9a-z=,]+)?", "auto or method:level"),
    "level": ("|".join(LEVELS), "one of " + ", ".join(LEVELS)),
}


def as_flag(text: str) -> bool:
    """True of true, 1 and yes, in any case; ValueError unless it is their opposite."""
    word = text.lower()
    if word not in ("true", "1", "yes", "false", "0", "no"):
        raise ValueError("is not true or false")
    return word in ("true", "1", "yes")


def as_port(text: str) -> int:
    """A port's number. Raises ValueError."""
    if not re.fullmatch("[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise ValueError("is not a port, 1 to 65535")
    return int(text)


def as_count(text: str) -> int:
    """A number from 1 on. Raises ValueError."""
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise ValueError("is not a number from 1 on")
    return int(text)


def as_authorities(path: str) -> str:
    """The path of a PEM file that can be read. Raises OSError."""
    ssl.create_default_context(cafile=path)
    return path


def private_key(text: str) -> int:
    """A private key of secp256k1. Raises ValueError, which does not repeat the text."""
    key = int(text, 16) if re.fullmatch("[0-9a-fA-F]{64}", text) else 0
    if not 0 < key < ORDER:
        raise ValueError("is not a private key: 64 hex digits, 1 to n-1")
    return key


READERS: dict[str, Callable[[str], str | int]] = {
    "flag": as_flag,
    "port": as_port,
    "count": as_count,
    "file": as_authorities,
    "key": private_key,
}
ABSENT: dict[str, int | None] = {"port": 0, "key": None}  # else ""


def text_of(setting: Setting, environ: Mapping[str, str]) -> str:
    """What the environment, or the file that it names, says. Raises ValueError or OSError."""
    names = [setting.name, setting.also or setting.name]
    given = [environ.get(name, "") for name in names]
    text = given[0] or given[1] or setting.default
    if setting.kind not in SECRET:
        return text
    files = [environ.get(f"{name}_FILE", "") for name in names]
    file = files[0] or files[1]
    if text and file:
        raise ValueError(f"and {setting.name}_FILE are both set")
    if file:
        with open(file, encoding="utf-8", newline="") as opened:
            return opened.read(MIB).removesuffix("\n")
    return text


def value_of(setting: Setting, environ: Mapping[str, str]) -> str | int | None:
    """A setting's value, of its kind. Raises ValueError or OSError."""
    text = text_of(setting, environ)
    text.encode()  # UnicodeEncodeError, a ValueError, of what is no text
    if not text:
        return ABSENT.get(setting.kind, "")
    if setting.kind in READERS:
        return READERS[setting.kind](text)
    pattern, what = PATTERNS[setting.kind]
    if not re.fullmatch(pattern, text):
        raise ValueError(f"is not {what}")
    return text


def needed(values: Mapping[str, object], serve: bool, s3: bool) -> list[str]:
    """The settings, or the choices of them ("A or B"), that a command can't do without."""
    names = []
    if s3:
        names.append("AWS_S3_BUCKET_NAME")
    if values["aws_s3_access_key"] or values["aws_s3_secret_access_key"]:
        names += ["AWS_S3_ACCESS_KEY", "AWS_S3_SECRET_ACCESS_KEY"]
    if serve:
        names += [
            "COLONIES_SERVER_HOST",
            "COLONIES_SERVER_PORT",
            "COLONIES_COLONY_NAME or COLONIES_COLONY_ID",
            "COLONIES_COLONY_PRVKEY or COLONIES_EXECUTOR_PRVKEY",
        ]
    return names


def read_settings(
    environ: Mapping[str, str], command: str = "backup", serve: bool = False, s3: bool = True
) -> Settings:
    """The settings, from the environment. Raises WrongSettings, which names all that is wrong.

    serve: what it takes to talk to Colonies is required, too. s3: the bucket is.
    """
    values: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for setting in SETTINGS:
        value: object = "?"
        try:
            value = value_of(setting, environ)
        except OSError as error:
            wrong[setting.name] = f"cannot be read: {error}"
        except ValueError as error:
            wrong[setting.name] = str(error)
        values[setting.name.lower()] = value
        if setting.kind in ("secret", "token"):
            SECRETS.add(str(value))
    for choice in needed(values, serve, s3):
        if not any(values[name.lower()] for name in choice.split(" or ")):
            wrong[choice] = "is missing"
    if TIME_SCALE <= 0:
        wrong["BACKUP_TIME_SCALE"] = "is not a number above 0"
    if wrong:
        raise WrongSettings("settings: " + "; ".join(f"{name} {wrong[name]}" for name in wrong))
    values["aws_s3_prefix"] = values["aws_s3_prefix"].strip("/")
    values["colonies_executor_name"] = (
        values["colonies_executor_name"] or f"backup-{os.uname().nodename}"
    )
    values["backup_alive_file"] = (
        values["backup_alive_file"] or f"{os.environ.get('TMPDIR') or '/tmp'}/alive"
    )
    endpoint = values["aws_s3_endpoint"]
    if endpoint and "://" not in endpoint:
        scheme = "https" if values["aws_s3_secure"] else "http"
        values["aws_s3_endpoint"] = f"{scheme}://{endpoint}"
    return Settings(**values, command=command)


SECRETS: set[str] = set()  # all that `read_settings` has read


def redacted(said: object) -> str:
    """Others' words without our secrets, in whatever form they come back."""
    text = str(said).replace("\0", "").strip()
    for secret in sorted(SECRETS, key=len, reverse=True):
        if len(secret) > 3:  # a shorter one is no secret, and stands in every other word
            for form in (secret, repr(secret)[1:-1], urllib.parse.quote(secret, safe="")):
                text = text.replace(form, "***")
    return text


# ---- Programs ------------------------------------------------------------------------------------

PR_SET_PDEATHSIG = 1  # of prctl(2)


def start(argv: Sequence[str], env: Mapping[str, str], **more: Any) -> subprocess.Popen[bytes]:
    """Start a program, from a list and never by a shell. It dies with us, even by kill -9.

    Its stdin is empty and its stdout a pipe; MORE is for Popen.
    """
    parent, libc = os.getpid(), ctypes.CDLL(None)
    # A Stop amid fork() is swallowed by what Python runs there (os.register_at_fork), or comes
    # when the program runs and nobody knows it: signals wait until it is known.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def die_with_parent() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if os.getppid() != parent:
            os._exit(1)

    program = None
    try:
        program = subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            preexec_fn=die_with_parent,
            start_new_session=True,
            **more,
        )
    finally:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except Stop:
            if program:
                stop(program, signal.SIGKILL)
            raise
    return program


def stop(program: subprocess.Popen[bytes], signum: int = signal.SIGTERM, grace: float = 4) -> None:
    """End a program: by a signal, and by SIGKILL if it runs on for GRACE seconds."""
    program.send_signal(signum)
    with suppress(subprocess.TimeoutExpired):
        program.wait(grace)
    program.kill()
    program.wait()


# What of our environment a program gets, and what of libpq's says the same as DB_HOST and its like.
PASSED_ON = re.compile(r"LC_|(PATH|HOME|LANG|TZ|TMPDIR|LD_LIBRARY_PATH)$")
OURS = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGUSER", "PGSERVICE")


def environment(database: Database | None, options: str = "") -> dict[str, str]:
    """The variables of a program: few, and libpq's only if it connects to a DATABASE.

    options: more of libpq's PGOPTIONS ("-c name=value").
    """
    env = {}
    for name, value in os.environ.items():
        libpq = database and name.startswith("PG") and name not in OURS
        if libpq or PASSED_ON.match(name):
            env[name] = value
    if database is None:
        return env
    env.setdefault("PGCONNECT_TIMEOUT", "30")
    env |= {"PGAPPNAME": database.session, "PGDATABASE": database.name}
    if options:
        env["PGOPTIONS"] = f"{env.get('PGOPTIONS', '')} {options}"
    if database.password:
        env["PGPASSWORD"] = database.password
    return env


def with_connection(argv: Sequence[str], database: Database) -> list[str]:
    """A program's arguments, with those that say where to connect to and as whom."""
    where = ["-h", database.host, "-p", str(database.port), "-U", database.user]
    return [argv[0], *where, *argv[1:]]


def excerpt(stderr: bytes) -> str:
    """What a program said, without our secrets: all of it, or its first and last 2 kB.

    The reason stands at the beginning, before a statement that may name thousands of tables
    (pg_dump), or at the end, after as many warnings (pg_restore).
    """
    said = redacted(decoded(stderr))
    if len(said) <= 4096:
        return said
    return f"{said[:2048]} […] {said[-2048:]}"


def decoded(said: bytes) -> str:
    """A program's output as text; what is not in UTF-8 becomes the replacement character."""
    return said.decode("utf-8", "replace")


def said_until(program: subprocess.Popen[bytes], word: bytes, seconds: float) -> bytes:
    """What a program prints up to a word; less, if it ends, or says nothing for so many seconds."""
    said, pipe = b"", program.stdout
    while pipe and not said.endswith(word) and select.select([pipe], [], [], seconds)[0]:
        more = os.read(pipe.fileno(), 4096)
        if not more:
            break
        said += more
    return said


def run(
    step: str,
    argv: Sequence[str],
    database: Database | None = None,
    options: str = "",
    timeout: float = FOREVER,
    tick: Callable[[], None] | None = None,
) -> str:
    """Run a program to its end; its stdout.

    database: where it connects to, if it does; options: of libpq there. timeout: seconds. tick: is
    called each second meanwhile, more often at first; what it raises stops the program.

    Raises Failure, with the program's own words, unless it exits with 0.
    """
    if database:
        argv = with_connection(argv, database)
    log("debug", "Running", Step=step, Argv=" ".join(argv))
    program = start(argv, environment(database, options), stderr=subprocess.PIPE)
    end, pause = time.monotonic() + timeout, 0.1
    try:
        while True:
            try:
                stdout, stderr = program.communicate(timeout=pause)
                break
            except subprocess.TimeoutExpired:
                pause = min(pause * 1.5, 1)
            if tick:
                tick()
            require(time.monotonic() <= end, f"{step}: {argv[0]}: no answer in {timeout:g} seconds")
    finally:
        stop(program, signal.SIGINT)  # which has the server end what it does, too
    status = program.returncode
    how = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
    require(status == 0, f"{step}: {argv[0]}: {how}: {excerpt(stderr)}")
    return decoded(stdout)


def psql(
    database: Database,
    step: str,
    query: str,
    timeout: float = 120,
    options: str = "",
    first: str = "",
) -> str:
    """What a query answers, without headings and alignment. Nothing of the database's own runs.

    first: a statement to run before it, in a transaction of its own.
    """
    queries = [f"--command={sql}" for sql in (first, query) if sql]
    return run(
        step,
        ["psql", "-XAtqw", *queries],
        database,
        f"-c statement_timeout=0 -c search_path=pg_catalog {options}",
        timeout,
    )


def read_json(database: Database, step: str, query: str, **more: Any) -> Any:
    """The JSON that a query answers."""
    return json.loads(psql(database, step, query, **more))


def major_version(text: str) -> int:
    """17 of "17.2", "17beta1", "17.2 (Debian 17.2-1)"; 0 if there is none."""
    found = re.search(r"\d+", text)
    return int(found[0]) if found else 0


# ---- S3 ------------------------------------------------------------------------------------------
PATIENCE = 15 * 60  # seconds for which S3 is waited for
NAMES = 10_000  # of a bucket are looked at, at most


class Backup(NamedTuple):
    """An object of the bucket that has a backup's name, PREFIX/backup_SECONDS.bak."""

    seconds: int  # of its name, since 1970, by the clock of the executor that made it
    key: str  # the whole key
    size: int  # bytes
    # Its own, the names in lower case; {} is what older executors wrote. None: S3 does not show
    # them, so nothing may be concluded, and the object is left alone.
    metadata: dict[str, str] | None
    etag: str = ""  # as listed, bare; "" where that is not known


def body(answer: Any) -> Any:  # of an answer, for boto3, which would read an endless one on and on
    read = [answer._content or b"", *itertools.islice(answer.raw.stream(1024), 8192)]
    require(len(read) <= 8192, "an answer of 8 MiB, or more")
    answer._content = b"".join(read)
    return answer._content


NEEDED = {
    "create_multipart_upload": "UploadId",
    "upload_part": "ETag",
    "head_object": "ContentLength",
    "list_objects_v2": "IsTruncated",
}  # in their answers


def plain_etag(answer: Mapping[str, Any]) -> str:
    """An answer's ETag as its bare text; "" where it has none."""
    return str(answer.get("ETag", "")).strip('W/"')


def content_md5(digest: bytes) -> str:
    """An MD5 as the header Content-MD5 spells it."""
    return base64.b64encode(digest).decode()


class S3:  # the bucket; `call` is the one place where a request leaves
    RETRY = ("RequestTimeout", "BadDigest", "IncompleteBody")
    HOPELESS = ("SSLError", "NoCredentialsError", "PartialCredentialsError", "ParamValidationError")

    def __init__(self, s: Settings, patience: float = PATIENCE):
        self.s, self.patience = s, patience
        self.where = f"S3 at {s.aws_s3_endpoint or 'AWS'}, bucket {s.aws_s3_bucket_name}"
        try:
            import boto3, botocore.awsrequest, botocore.config, warnings

            botocore.awsrequest.AWSResponse.content = property(body)
            settings = botocore.config.Config(  # newer checksums break some servers; MD5 does not
                request_checksum_calculation="when_required",
                retries={"total_max_attempts": 1},
                response_checksum_validation="when_required",
                connect_timeout=10,
                read_timeout=60 * TIME_SCALE,
                s3={
                    "payload_signing_enabled": False,
                    "addressing_style": "path" if s.aws_s3_endpoint else "auto",
                },
            )
            trusted = s.aws_s3_ca_file or ssl.get_default_verify_paths().cafile or True
            self.client = boto3.Session(s.aws_s3_access_key, s.aws_s3_secret_access_key).client(
                "s3",
                s.aws_s3_region,
                endpoint_url=s.aws_s3_endpoint or None,
                config=settings,
                verify=not s.aws_s3_insecure_skip_verify and trusted,
            )
        except Exception as error:  # boto3 is not installed, or doesn't like its own settings
            raise Failure(f"{self.where}: boto3: {redacted(error)}") from None
        if s.aws_s3_insecure_skip_verify:
            warnings.simplefilter("ignore")  # our own log said it

    def call(self, verb: str, patience: float | None = None, take: Any = None, **what: Any) -> Any:
        """One request, repeated for `patience` seconds where that can help; `take` reads a body."""

        def attempt() -> Any:
            if verb == "upload_part":
                what["Body"].seek(0)  # it was read, if only for its MD5
            answer = getattr(self.client, verb)(Bucket=self.s.aws_s3_bucket_name, **what)
            require(NEEDED.get(verb, "ResponseMetadata") in answer, "its answer says nothing")
            if "Body" not in answer:
                return answer
            chunks = itertools.islice(answer["Body"].iter_chunks(MIB), 16)  # it raises if it is cut
            return take(answer) if take else b"".join(chunks)

        end = time.monotonic() + (self.patience if patience is None else patience) * TIME_SCALE
        for tries, pause in enumerate(backoff(), 1):
            limit = 3600 if {"PartNumber", "Range"} & what.keys() else 300
            try:
                return in_time(limit * TIME_SCALE, attempt)
            except Exception as error:  # S3's own, or whatever boto3 made of what came instead
                if getattr(error, "filename", ""):
                    raise Failure(str(error)) from None  # a file
                said = getattr(error, "response", None) or {}
                status = said.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
                code = said.get("Error", {}).get("Code") or type(error).__name__
                again = (
                    code in self.RETRY
                    or status in (409, 412, 429)
                    or (status >= 500 and status != 501)
                    or not (status or code in self.HOPELESS)
                )
                hint = " (AWS_S3_SECURE, AWS_S3_CA_FILE)" * (
                    code == "SSLError" or status // 100 == 3
                )
                text = f"{self.where}: {verb}: {redacted(error)}{hint}"
            if not again or time.monotonic() + pause > end:
                raise S3Failure(text, status, again)
            if tries == 3:
                log("warning", "S3 is away, trying again ...", Error=text)
            time.sleep(pause)

    def put(self, key: str, data: bytes) -> None:
        """Write a small object, with the Content-MD5 that AWS asks for where it locks objects."""
        md5 = hashlib.md5(data, usedforsecurity=False)
        self.call("put_object", Key=key, Body=data, ContentMD5=content_md5(md5.digest()))

    def key(self, name: str) -> str:
        return f"{self.s.aws_s3_prefix}/{name}" if self.s.aws_s3_prefix else name

    def head(self, key: str) -> Any:  # its metadata in lower case; None: not there
        with allowing(404):
            found = self.call("head_object", Key=key)
            return found | {"Metadata": {k.lower(): v for k, v in found["Metadata"].items()}}

    def backups(self) -> list[Backup]:  # whole keys PREFIX/backup_DIGITS.bak; oldest first
        found, prefix, key, soon = list[Backup](), self.key("backup_"), "", time.time() + 86400
        most = max(NAMES, 3 * self.s.full_backups)  # of what others put there may be millions
        while True:
            page, before = self.call("list_objects_v2", Prefix=prefix, StartAfter=key), key
            for item in page.get("Contents", []):
                if n := re.fullmatch(re.escape(prefix) + r"([0-9]{1,18})\.bak", key := item["Key"]):
                    found.append(Backup(int(n[1]), key, item["Size"], None, plain_etag(item)))
            found = sorted(found, key=lambda f: (f.seconds <= soon, f.seconds, f.key))[-most:]
            if not page["IsTruncated"]:
                break
            require(key > before, f"{self.where}: its listing does not go on")
        if len(found) == most:
            log("warning", f"{self.where}: {most} names are looked at, no more")
        for i, f in enumerate(found):
            head = dict[str, Any]()
            with allowing(400, 403, 405):
                head = self.head(f.key) or {}
            same = f.etag in ("", plain_etag(head))  # S3's own
            found[i] = f._replace(metadata=head.get("Metadata") if same else None)
        return sorted(found, key=lambda f: (f.seconds, f.key))

    def beginning(self, f: Backup) -> bytes:
        """The first bytes, 4 kB at most, of an object without metadata, as `backups` found it.

        Failure: it is another one by now, or the server gives something else than was asked for.
        """
        end = min(f.size, 4096)
        if not end:
            return b""  # there is no such range

        def take(answer: Any) -> tuple[bool, bytes]:
            same = f.etag in ("", plain_etag(answer)) and not answer["Metadata"]
            asked = answer.get("ContentRange") == f"bytes 0-{end - 1}/{f.size}"
            return same and asked, answer["Body"].read(end)

        right, data = self.call("get_object", 10, take, Key=f.key, Range=f"bytes=0-{end - 1}")
        require(right, f"{self.where}: {f.key}: it gives something else than it listed")
        return bytes(data)


# ---- Retention -----------------------------------------------------------------------------------
def by_database(found: list[Backup]) -> dict[tuple[str, str], list[Backup]]:  # proven, old first
    whose = dict[tuple[str, str], list[Backup]]()
    for f in found:
        if (known := f.metadata or {}).get("sha256"):
            database = urllib.parse.unquote(known.get("database", ""))
            whose.setdefault((known.get("system-identifier", ""), database), []).append(f)
    return whose


def proven(found: list[Backup], system: str, database: str) -> list[Backup]:
    return by_database(found).get((system, database), [])


def doubtful(backups: list[Backup]) -> set[str]:  # keys: half as large as the last good one
    doubts, last_good = set(), 0
    for b in backups:
        if b.size * 2 < last_good:
            doubts.add(b.key)
        else:
            last_good = b.size
    return doubts


def superseded(found: list[Backup], ours: list[Backup], keep: int, made: str) -> list[Backup]:
    """What retention lets go of `found`, where `ours` are proven; never `made`, the new one.

    An object without metadata is among them only as far as its age goes: see `strangers`.
    """
    doubts = doubtful(ours)
    good, bad = [b for b in ours if b.key not in doubts], [b for b in ours if b.key in doubts]
    legacy = [
        f for f in found if f.metadata == {} and sum(b.seconds > f.seconds for b in ours) >= keep
    ]  # older executors'
    return [b for b in good[:-keep] + bad[:-keep] + legacy if b.key != made]


# What an archive of pg_dump -Fc begins with, by WriteHead in PostgreSQL's pg_backup_archiver.c:
# PGDMP, the format's version (1.12 to 1.16 are those of PostgreSQL 9.0 to 18), the size of an int
# and of an offset, 1 for "custom", the compression (an int; a byte from 1.15 on), seven ints of
# local time. An int is a sign and four bytes, the lowest first.
ARCHIVE = re.compile(
    rb"PGDMP\x01(?:[\x0c-\x0e].\x04[\x04\x08]\x01[\x00\x01].{4}|[\x0f\x10].\x04[\x04\x08]\x01.)"
    rb"(?:[\x00\x01].{4}){7}",
    re.DOTALL,
)


def archive_origin(head: bytes) -> tuple[str, str]:
    """The database's name and the server's version that an archive's first bytes tell.

    Both are "" where these are no archive's, are cut off, or tell no such texts.
    """
    fixed = ARCHIVE.match(head)
    at = fixed.end() if fixed else len(head)
    texts = list[str]()
    for _ in ("database", "server version"):
        end = at + 5 + int.from_bytes(head[at + 1 : at + 5], "little")
        sign, text = head[at : at + 1], head[at + 5 : end]
        # A text that is missing has the length -1, so another sign.
        if sign != b"\0" or end > len(head) or not text or b"\0" in text:
            return "", ""
        try:
            texts.append(text.decode())
        except UnicodeDecodeError:
            return "", ""
        at = end
    return texts[0], texts[1]


def unlike(head: bytes, database: str, postgresql: str) -> str:
    """Why an archive that begins so is not this database's; "" where it may well be.

    Another major version of the server is another server: pg_upgrade and a restore make a new
    one, with a system identifier of its own, whose backups count apart.
    """
    name, version = archive_origin(head)
    if not name:
        return "no archive of pg_dump"
    if name != database:
        return f"an archive of database {name!r}"
    if re.split(r"\D", version)[0] != re.split(r"\D", postgresql)[0]:
        return f"an archive of PostgreSQL {version}"
    return ""


HEADS = 100  # archives' beginnings that one backup reads: one small request for each


def strangers(
    s3: S3, aged: list[Backup], database: str, postgresql: str, twin: bool
) -> dict[str, str]:
    """Which of the objects without metadata stay, and why, by key.

    A server may have forgotten the metadata (`rclone serve s3` does when it restarts), so these may
    be another database's. What tells is the archive's own head. With `twin`, another server's
    database of this name has backups here, it tells nothing. More than `HEADS` are looked at by
    lot, so that none is passed over for ever. When S3 goes away the rest is not asked for.
    """
    kept, away = dict[str, str](), ""
    for tries, old in enumerate(random.sample(aged, len(aged))):
        if twin:
            why = "another server's database of this name has backups here"
        elif away or tries >= HEADS:
            why = away or f"only {HEADS} are looked at"
        else:
            try:
                why = unlike(s3.beginning(old), database, postgresql)
            except Failure as error:
                why = f"not looked at: {error}"
                away = why if error.again else ""
        if why:
            kept[old.key] = f"no metadata: {why}"
    if kept:
        some = "; ".join(f"{key}: {kept[key]}" for key in sorted(kept)[:5])
        log(
            "warning",
            "Leaving alone what has no metadata and may be another database's",
            Objects=len(kept),
            Some=some,
        )
    return kept


def remove(s3: S3, going: list[Backup]) -> tuple[list[str], dict[str, str]]:
    """Remove these, a line in the log for each; the keys removed, and why others were not."""
    removed, refused = list[str](), dict[str, str]()
    for old in going:
        why = "proven" if old.metadata else "no metadata; its archive names this database"
        try:
            s3.call("delete_object", Key=old.key)
        except Failure as error:
            refused[old.key] = f"not removed: {error}"
            log("warning", "Cannot remove an old backup", Key=old.key, Error=error)
        else:
            removed.append(old.key)
            log("info", "Removed an old backup", Key=old.key, Why=why)
    return removed, refused


def known_backups(s3: S3) -> list[Backup]:
    """What is in the bucket, as far as it is known; a warning says of what it is not."""
    try:
        found = s3.backups()
    except Exception as error:
        log("warning", "Removing none: cannot list them", Error=error)
        return []
    unknown = sum(f.metadata is None for f in found)
    if unknown:
        log("warning", "Leaving alone what cannot be looked at", Objects=unknown)
    return found


def prune(s3: S3, system: str, database: str, made: str, postgresql: str) -> dict[str, Any]:
    """Remove what retention lets go of; what was removed, and what is kept and why, by key.

    It never fails a backup: what goes wrong is a warning, and the object stays.
    """
    log("info", "Removing old backup files ...")
    found = known_backups(s3)
    ours = proven(found, system, database)
    doubts = doubtful(ours)
    kept = {b.key: "proven" for b in ours} | dict.fromkeys(doubts, "doubtful: less than half")
    if made in doubts:
        log("warning", "The new backup is doubtful: half as large", Key=made)
    beyond = superseded(found, ours, s3.s.full_backups, made)
    twin = any(name == database and of != system for of, name in by_database(found))
    aged = [old for old in beyond if old.metadata == {}]
    others = strangers(s3, aged, database, postgresql, twin)
    going = [old for old in beyond if old.key not in others]
    removed, refused = remove(s3, going)
    kept |= dict(sorted(others.items())[:HEADS]) | refused
    return {"removed": removed, "kept": {key: kept[key] for key in kept if key not in removed}}


# ---- The staging volume --------------------------------------------------------------------------
class Journal(dict[str, Any]):
    """`….bak.json` beside `….bak`. sha256: it was read back; bucket: S3 has it; gone: no file."""

    def __init__(self, file: str, **values: Any):
        super().__init__(values)
        self.file, self.partial, self.path = file, f"{file}.partial", f"{file}.json"

    def save(self, **changes: Any) -> None:  # whole or not at all, also where the power fails
        draft = os.path.join(os.path.dirname(self.path), "backup_journal.partial")
        with suppress(FileNotFoundError):
            os.unlink(draft)  # a crash's, or a link to elsewhere
        with placing(draft), open(draft, "x", encoding="utf-8") as file:
            print(json.dumps(self | changes), file=file, flush=True)
            os.fsync(file.fileno())
        os.rename(draft, self.path)
        folder = os.open(os.path.dirname(self.path), os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        self.update(changes)

    def pending(self) -> bool:  # its dump is not in S3 yet, or the local file not removed
        return "sha256" in self and "gone" not in self

    def remove(self, *more: str) -> None:
        for path in (*more, self.partial, self.path):
            with suppress(OSError):
                os.unlink(path)


def guarded(path: str, flags: int) -> int:  # an opener: it follows no link, waits for no FIFO
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)


def digest(path: str) -> str:  # SHA-256; of nothing if it is no plain file
    sha256, plain = hashlib.sha256(), os.path.isfile(path) and not os.path.islink(path)
    with open(path if plain else os.devnull, "rb") as file:
        while data := file.read(BLOCK):
            sha256.update(data)
    return sha256.hexdigest()


def journals(s: Settings) -> list[Journal]:  # this database's, oldest first
    found = [
        Journal(os.path.join(s.backup_path, name[:-5]))
        for name in os.listdir(s.backup_path)
        if re.fullmatch(r"backup_[0-9]+\.bak\.json", name)
    ]
    for journal in found:
        with suppress(Exception), open(journal.path, "rb", opener=guarded) as file:
            journal.update(json.loads(file.read(MIB)))  # whatever somebody put there
    return sorted((x for x in found if x.get("by") == s.owner), key=lambda x: x.file)


@contextmanager
def staging(s: Settings, wait: bool) -> Iterator[None]:  # by flock(2): it ends with us
    folder = os.open(s.backup_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        require(wait, f"another backup is running in {s.backup_path}")
        log("info", "Waiting for another backup to end ...")
        fcntl.flock(folder, fcntl.LOCK_EX)
    yield


def room(s: Settings) -> tuple[int, int]:  # bytes free there, and how many must stay so
    volume = os.statvfs(s.backup_path)
    return volume.f_bavail * volume.f_frsize, min(volume.f_blocks * volume.f_frsize // 20, GIB)


# ---- A backup: the dump --------------------------------------------------------------------------
FACTS = ("database", "system_identifier", "postgresql", "timescaledb", "pg_dump")
LOOK = """SELECT json_build_object('database', current_database(), 'size', pg_database_size(
    current_database()), 'postgresql', current_setting('server_version'), 'system_identifier',
    (SELECT system_identifier::text FROM pg_control_system()), 'timescaledb', (SELECT extversion
    FROM pg_extension WHERE extname = 'timescaledb'))"""
END_SESSIONS = """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = user
    AND datname = current_database() AND pid <> pg_backend_pid()
    AND application_name = current_setting('application_name')"""


def read_patiently(database: Database, step: str, query: str) -> Any:
    """The JSON that a query answers; asked again for a minute, since a whole dump depends on it."""
    end = time.monotonic() + 60 * TIME_SCALE
    for pause in backoff():
        try:
            return read_json(database, step, query)
        except Failure:
            if time.monotonic() + pause > end:
                raise
        time.sleep(pause)


def look(database: Database, step: str, query: str, **more: Any) -> Namespace:
    return Namespace(**read_json(database, step, query, **more))


def look_at_database(s: Settings) -> Namespace:  # and whether this pg_dump fits it
    server = look(s.database(), "Looking at the database", LOOK)
    said = run("Looking at pg_dump", ["pg_dump", "--version"], timeout=60)
    server.pg_dump = next(iter(re.findall(r"\d[\w.]*", said)), "0")
    server.client, major = (major_version(x) for x in (server.pg_dump, server.postgresql))
    text = f"pg_dump {server.pg_dump} is {{}} than the server, {server.postgresql}: {{}}"
    require(server.client >= major, text.format("older", "install the server's version or later"))
    if server.client > major:
        log("warning", text.format("newer", "restoring takes its version"))
    return server


def look_for_room(s: Settings, newest: int, database_size: int) -> str:  # or Failure
    with tempfile.TemporaryFile(dir=s.backup_path):
        free, floor = room(s)
    text = f"{s.backup_path}: {free} bytes are free; the newest backup has {newest}"
    require(free >= max(newest * 6 // 5, floor), f"{text}; a fifth more is needed, or {floor}")
    if not newest and free < database_size:
        log("warning", f"{text}, the database {database_size}")
    return text


TABLES = r"(?m)^\d+; \d+ (\d+) TABLE DATA (.*) \S+$"  # in a table of contents: its oid and name
# Of each table that a dump may hold rows of, by its oid: its file node and its TOAST table's, and
# hashes of its name and columns, whatever their encoding (md5() is not everywhere allowed).
# Materialized views are not among them: a dump has them refreshed, and pg_dump 17 locks none.
READ_TABLES = """SELECT json_build_object('time', clock_timestamp(),
    'schemas', (SELECT coalesce(json_object_agg(hashtextextended(nspname, 0), oid), '{}')
        FROM pg_namespace WHERE nspname !~ '^pg_'),
    'tables', (SELECT coalesce(json_object_agg(c.oid, concat_ws(' ', c.relfilenode,
            coalesce(toast.relfilenode, 0),
            hashtextextended(format('%I.%I', nspname, c.relname), 0),
            (SELECT coalesce(string_agg(hashtext(attnum || ' ' || attname) || '.', ''
                ORDER BY attnum), '') FROM pg_attribute
                WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped))), '{}')
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_class toast ON toast.oid = c.reltoastrelid
        WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND c.oid >= 16384))"""
USERS_OIDS = 16384  # and above; below are those that initdb makes, which READ_TABLES leaves out
READ_SCHEMAS = """SELECT json_object_agg(hashtextextended(nspname, 0), oid)
    FROM pg_namespace WHERE nspname !~ '^pg_'"""
NAME_TABLES = """SELECT string_agg(name, ', ') FROM (
    SELECT format('%I.%I', nspname, relname) AS name
    FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE c.oid IN ({}) ORDER BY name LIMIT 5) AS few"""
# pg_dump's session is ours and begins after the tables were read. A role sees its own sessions.
READ_SESSIONS = """WITH ours AS (SELECT pid, query, backend_start FROM pg_stat_activity
        WHERE usename = user AND datname = current_database() AND pid <> pg_backend_pid()
        AND application_name = current_setting('application_name')),
    dumping AS (SELECT pid, query FROM ours WHERE backend_start > '{}')
    SELECT json_build_object('copying', EXISTS (SELECT FROM dumping WHERE query LIKE 'COPY %'),
        'stuck', EXISTS (SELECT FROM dumping, unnest(pg_blocking_pids(dumping.pid)) AS blocker,
            unnest(pg_blocking_pids(blocker)) AS holder JOIN ours ON ours.pid = holder))"""


class Window:
    """The time between pg_dump's snapshot and its locks, in which rows can get lost in silence.

    TRUNCATE, and what rewrites a table, is not MVCC-safe (PostgreSQL's manual, 13.6): an older
    snapshot sees none of the table's rows then. Each gives the table a new file node. So does
    TimescaleDB's compress_chunk (2.28.3). And pg_dump goes by names: a table or a column that has
    taken another's name since its snapshot is dumped in its place, as it was then. Made before
    pg_dump starts, this knows all that of each table, and compares it when pg_dump has its locks,
    which keep all of that out from then on. It needs no privilege: catalogs are open to every role.
    """

    def __init__(self, database: Database):
        self.database = database
        before = read_json(database, "Reading the tables", READ_TABLES)
        self.time: str = before["time"]  # of the server
        self.schemas: dict[str, int] = before["schemas"]  # oids by name
        self.before: dict[str, str] = before["tables"]
        self.locked: dict[str, str] | None = None  # the tables, as read while pg_dump had its locks
        self.next_look, self.interval = time.monotonic(), 0.1  # seconds

    def look(self) -> bool:
        """Compare what can be compared by now; whether compression may go on. Raises Failure: void.

        A server that does not answer is asked again later, at last by `end`.
        """
        if time.monotonic() < self.next_look:
            return False
        self.next_look = time.monotonic() + self.interval
        self.interval = min(self.interval * 1.5, 10 if self.locked else 2)
        try:
            if self.locked:
                self.compare_schemas(read_json(self.database, "Reading the schemas", READ_SCHEMAS))
                return True
            return self.look_for_locks()
        except Failure as error:
            if error.again:
                raise
            log("debug", "Cannot look at the tables yet", Error=error)
            return False

    def look_for_locks(self) -> bool:
        """Read the tables if pg_dump has its locks, before and after; see `look`.

        It takes all its locks before it copies the first table (14 to 18). Where it waits for a
        session that waits for ours, only we can end that.
        """
        sessions = READ_SESSIONS.format(self.time)
        seen = read_json(self.database, "Looking at pg_dump", sessions, timeout=20)
        if seen["copying"]:
            tables = read_json(self.database, "Reading the tables", READ_TABLES)["tables"]
            if read_json(self.database, "Looking at pg_dump", sessions, timeout=20)["copying"]:
                self.compare(tables, {})
                self.locked = tables
                log("debug", "pg_dump has its locks, and the tables are what they were")
        return bool(seen["stuck"] or self.locked)

    def compare(self, tables: Mapping[str, str], archived: Mapping[str, str]) -> None:
        """Raise Failure if tables that pg_dump may have dumped were emptied or replaced.

        archived: names by oid of those whose rows the archive has, as far as that is known.
        """
        named = {state.split()[2]: oid for oid, state in tables.items()}
        void, gone = [], []
        for oid in self.before.keys() | archived.keys():
            before = self.before.get(oid)
            heir = named.get(before.split()[2]) if before else None  # who has its name now
            if self.is_void(oid, tables.get(oid), heir, oid in archived):
                if heir or oid in tables:
                    void.append(int(heir or oid))
                else:
                    gone.append(archived[oid].replace(" ", "."))
        if void or gone:
            names = ", ".join([*self.names(void), *sorted(gone)[:5]])
            raise Failure(
                f"{len(void + gone)} tables were truncated, rewritten or replaced before "
                f"pg_dump had locked them, rows may be missing: {names}",
                again=True,
            )

    def names(self, oids: list[int]) -> list[str]:
        """The names of some tables, together, for people; their oids where none is to be had."""
        if not oids:
            return []
        listed = ", ".join(map(str, sorted(oids)[:1000]))
        with suppress(Failure):
            return [psql(self.database, "Naming the tables", NAME_TABLES.format(listed)).strip()]
        return [listed]

    def is_void(self, oid: str, now: str | None, heir: str | None, archived: bool) -> bool:
        """Whether what pg_dump has of a table may lack rows."""
        before = self.before.get(oid)
        if now is None:  # it is gone; pg_dump would have failed, had nobody taken its name
            return archived or heir is not None
        if before is None:  # it is new; its first file node is its oid
            return now.split()[0] not in (oid, "0")
        return not now.startswith(before)  # more columns do no harm

    def compare_schemas(self, schemas: Mapping[str, int]) -> None:
        """Raise Failure if one has taken another's name. No lock of pg_dump's keeps that out."""
        replaced = [name for name, oid in schemas.items() if self.schemas.get(name, oid) != oid]
        if replaced:
            raise Failure(
                f"{len(replaced)} schemas were replaced by others of their names while "
                "pg_dump ran, rows may be missing",
                again=True,
            )

    def end(self, archived: Mapping[str, str]) -> None:
        """Compare what is left to compare, now that pg_dump has ended. Raises Failure: void.

        archived: names by oid of the tables whose rows the archive has, as pg_dump saw them.
        """
        tables = self.locked
        if tables is None:
            tables = read_patiently(self.database, "Reading the tables", READ_TABLES)["tables"]
        self.compare(tables, archived)
        self.compare_schemas(read_patiently(self.database, "Reading the schemas", READ_SCHEMAS))


HOLD_SECONDS = 60  # at most; measured: 0.7 to 5 s with 1,000 chunks, on a busy machine
# A compression that has done with the settings truncates its chunk all the same, at its end; until
# then it keeps a lock on `chunk` (2.28.3, 2.29.2). Those that wait for us are not waited for.
HOLD_OFF = (
    "BEGIN",
    "LOCK TABLE _timescaledb_catalog.compression_settings IN SHARE MODE",
    """
    DO $$ BEGIN
    FOR tries IN 1 .. 400 LOOP
        EXIT WHEN NOT EXISTS (SELECT FROM pg_locks working WHERE granted AND pid <> pg_backend_pid()
            AND relation = '_timescaledb_catalog.chunk'::regclass AND mode = 'RowExclusiveLock'
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND NOT EXISTS (SELECT FROM pg_locks waiting WHERE waiting.pid = working.pid AND
                NOT granted AND relation = '_timescaledb_catalog.compression_settings'::regclass));
        PERFORM pg_sleep(0.05);
    END LOOP; END $$""",
    "SELECT 'held'",
    f"SELECT pg_sleep({HOLD_SECONDS})",
)


@contextmanager
def compression_held_off(s: Settings, server: Namespace) -> Iterator[Callable[[], None]]:
    """Keep TimescaleDB from compressing until what this yields is called, or a minute is over.

    compress_chunk truncates the chunk. Before that it writes to this table of the catalog, which
    SHARE keeps it from. With it each of 60 dumps beside sessions that compress had every row at
    once, without it each of 24 was void (1,000 chunks; 2.28.3, 2.29.2, 2.30.0-dev). Where it may
    not be locked (a privilege, a standby, an older version) or not within 20 s, nothing is held
    off. What that, a longer wait, or what it does not keep out (split_chunk) does, `Window` sees.
    """
    holder: subprocess.Popen[bytes] | None = None

    def release() -> None:
        if holder:
            stop(holder, signal.SIGINT)

    try:
        if server.timescaledb:
            statements = [part for statement in HOLD_OFF for part in ("-c", statement)]
            options = "-c lock_timeout=20s -c statement_timeout=0 -c client_min_messages=error "
            holder = start(
                with_connection(["psql", "-XAtqw", "-vON_ERROR_STOP=1", *statements], s.database()),
                environment(s.database(), options + gone_client(server)),
                stderr=subprocess.STDOUT,
            )
            said = said_until(holder, b"held\n", HOLD_SECONDS)
            if not said.endswith(b"held\n"):
                log(
                    "info",
                    "Compression is not held off: if it empties chunks that are being "
                    "dumped, the dump is made again",
                    Reason=excerpt(said),
                )
        yield release
    finally:
        release()


def gone_client(server: Namespace) -> str:
    """Options with which a server notices within 10 s that we are gone, also while it computes."""
    major = major_version(server.postgresql)
    return "-c client_connection_check_interval=10s" if major >= 14 else ""


def dump(s: Settings, s3: S3, **begun: Any) -> Journal:
    """All that comes before the upload: look, dump, read the archive back, vouch for it.

    Raises Failure or OSError; then nothing of it is left on the volume.
    """
    server = look_at_database(s)
    newest = newest_backup(s, s3, server)
    look_for_room(s, newest.size, server.size)
    file = os.path.join(s.backup_path, f"backup_{free_seconds(s, newest)}.bak")
    journal = Journal(file, by=s.owner, made_again=[], **begun)
    psql(
        s.database(), "Ending sessions of an earlier run", END_SESSIONS
    )  # of a pg_dump killed by -9
    log("info", "This backup is of", Database=f"{s.db_host}:{s.db_port}/{server.database}")
    log("info", "Backing up database ...")
    try:
        journal.save()
        took, listed = dump_every_row(s, server, journal, newest.size)
        seal(server, journal, took, listed)
    finally:
        if "sha256" not in journal:
            journal.remove()
    os.rename(journal.partial, file)  # only now: it is whole, and its journal vouches for it
    log(
        "info",
        "Successfully backup database",
        ExecTime=f"{took} seconds",
        Filename=os.path.basename(file),
        Size=f"{journal['size']} bytes",
    )
    return journal


def newest_backup(s: Settings, s3: S3, server: Namespace) -> Backup:
    """The newest proven backup of this database; one of no size and time where there is none.

    A bucket that is missing is made, unless it is at AWS. Raises Failure.
    """
    known = [Backup(0, "", 0, None)]
    try:
        known += proven(s3.backups(), server.system_identifier, server.database)
    except S3Failure as error:
        if error.status != 404 or not s.aws_s3_endpoint:
            raise
        log("warning", "The bucket is missing, making it ...", Error=error)
        s3.call("create_bucket")
    # A later time than the year 5138 was not made by a clock: 18 digits count as a name, too.
    return [backup for backup in known if backup.seconds < 10**11][-1]


def free_seconds(s: Settings, newest: Backup) -> int:
    """The seconds of the new backup's name: now, but later than the newest one's."""
    now = int(time.time())
    if now < newest.seconds:
        log("warning", "The clock is behind the newest backup", Key=newest.key)
    seconds: int = max(now, newest.seconds + 1)
    taken = " ".join(os.listdir(s.backup_path))
    while f"backup_{seconds}.bak" in taken:
        seconds += 1
    return seconds


def compression(s: Settings, server: Namespace) -> str:
    """pg_dump's --compress for BACKUP_COMPRESSION; before 16 it knows gzip's levels alone."""
    wanted: str = s.backup_compression
    if server.client >= 16:
        return "zstd:1" if wanted == "auto" else wanted
    return {"auto": "6", "gzip": "6", "none": "0"}.get(wanted, wanted.removeprefix("gzip:"))


# Seconds before a dump is made again, and once more. A policy that works through its chunks, or a
# job that loads tables, may need as long to be over.
PAUSES = (15, 60)
# What pg_dump fails with when something it has seen is gone before it is locked, and on a standby.
PASSING = (
    r"(relation|column|schema|type|function) .* does not exist|cannot (copy from|lock) |"
    "could not open relation|cache lookup failed|conflict with recovery|deadlock detected"
)
ADVICE = (
    "keep jobs and policies that truncate, rewrite, compress, replace or drop tables away "
    "from the backup's hour; on a standby look at max_standby_streaming_delay"
)


def dump_every_row(
    s: Settings, server: Namespace, journal: Journal, expected: int
) -> tuple[int, str]:
    """Run pg_dump until its archive holds all that was there when it began; see `dump_once`.

    expected: bytes that it may come to, for the log; 0: unknown. Why a dump was made again goes
    into `made_again`. Raises Failure: the third one failed, too, or one for good.
    """
    for pause in (*PAUSES, None):
        try:
            return dump_once(s, server, journal, expected)
        except Failure as error:
            why = error
        if not why.again and not re.search(PASSING, str(why)):
            raise why
        if pause is None:
            break
        os.unlink(journal.partial)
        journal["made_again"].append(str(why))
        log("warning", "Making the dump again ...", Reason=why)
        time.sleep(pause * TIME_SCALE)
    advice = ADVICE
    if server.timescaledb:
        advice += "; `check` says whether compression is held off"
    raise Failure(f"{len(PAUSES) + 1} dumps failed, the last one so: {why}; {advice}")


def dump_once(s: Settings, server: Namespace, journal: Journal, expected: int) -> tuple[int, str]:
    """Run pg_dump once; the seconds it took, and its archive's table of contents.

    Raises Failure, also where the volume gets too full to go on, or where rows may be missing.
    """
    show = progress("Backup in progress", expected)
    begun = time.monotonic()
    open(journal.partial, "x").close()  # pg_dump would follow a link of that name
    command = ["pg_dump", "-Fc", "-f", journal.partial, "--no-password", "--lock-wait-timeout=300s"]
    command.append(f"--compress={compression(s, server)}")
    with compression_held_off(s, server) as release:
        try:
            window = Window(s.database())
        except Failure:  # the role may have but one connection
            release()
            window = Window(s.database())

        def tick() -> None:
            free, floor = room(s)
            only = f"{s.backup_path} has only {free} bytes left"
            require(free >= floor, f"pg_dump was stopped: {only}")
            with suppress(OSError):
                show(os.path.getsize(journal.partial))
            if window.look():
                release()

        database = s.database()
        run("Backing up database", command, database, gone_client(server), tick=tick)
        took = int(time.monotonic() - begun)
        listed = run("The table of contents", ["pg_restore", "--list", journal.partial])
        require(re.search("(?m)^[^;]", listed), "the archive is empty: is DB_DATABASE right?")
        rows = {oid: name for oid, name in re.findall(TABLES, listed) if int(oid) >= USERS_OIDS}
        window.end(rows)  # before what waits for us goes on
    return took, listed


def seal(server: Namespace, journal: Journal, took: int, listed: str) -> None:
    """Note what the archive is, now that its table of contents has been read back."""
    facts = {name: getattr(server, name) for name in FACTS}
    journal.save(
        exectime_backup=took,
        size=os.path.getsize(journal.partial),
        sha256=digest(journal.partial),
        id=os.urandom(16).hex(),
        tables=len(re.findall(TABLES, listed)),
        **facts,
    )


# ---- A backup: upload and proof ------------------------------------------------------------------
def slices(what: str, size: int, step: int, work: Any) -> Iterator[Any]:  # work(start, end) of each
    from concurrent.futures import ThreadPoolExecutor

    show, pool, starts = progress(what, size), ThreadPoolExecutor(4), range(0, size, step)
    ends = [min(start + step, size) for start in starts]
    try:
        for end, answer in zip(ends, pool.map(work, starts, ends)):
            show(end)
            yield answer
    except RuntimeError as error:
        raise Failure(f"{what}: {error}") from None  # no thread for it
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def upload(s3: S3, journal: Journal) -> dict[str, Any]:
    """Upload and prove it. An answer may get lost: in each round HeadObject says what is there."""
    log("info", "Uploading backup file to S3 ...")
    begun, pauses, why = time.monotonic(), backoff(), "S3 has nothing there"
    first = seconds = int(re.findall("[0-9]+", journal.file)[-1])
    target, condition, end = dict[str, Any](), {"IfNoneMatch": "*"}, 0.0
    while True:
        key = s3.key(f"backup_{seconds}.bak")
        head = s3.head(key)
        if head and head["Metadata"].get("backup-id") == journal["id"]:
            break
        if head:
            seconds += 1
            require(seconds < first + 1000, f"{s3.where}: {key} is taken, too")
        elif target.get("Key") != key:
            target = send_parts(s3, journal, key)
            end = end or time.monotonic() + s3.patience * TIME_SCALE
        else:
            require(time.monotonic() <= end, f"{s3.where}: {key}: cannot complete it: {why}")
            try:
                s3.call("complete_multipart_upload", 0, **target, **condition)
            except S3Failure as error:
                why = str(error)
                if error.status == 404:
                    target = {}  # it is gone: send again if no object is there
                elif error.status == 501 and condition:
                    condition = {}
                elif not error.again:
                    raise
                time.sleep(next(pauses))
    etag, size, sent = head.get("ETag", "").strip('"'), head["ContentLength"], journal.get("etag")
    if size != journal["size"] or ("-" in etag and sent and etag != sent):
        journal.save(id=os.urandom(16).hex())  # what bears the old one is no backup, but looks it
        s3.call("delete_object", Key=key)
        raise Failure(f"{s3.where}: {key}: {size} bytes, {etag}; sent: {journal['size']}, {sent}")
    t = int(time.monotonic() - begun)
    log("info", "Successfully uploaded backup file", ExecTime=f"{t} seconds", Size=f"{size} bytes")
    return {
        "filename": os.path.basename(key),
        "bucket": s3.s.aws_s3_bucket_name,
        "filepath_s3": f"/{key}",
        "size_s3": size,
        "exectime_upload_s3": t,
    }


def abort(s3: S3, journal: Journal, patience: float | None = None) -> None:  # what is unfinished
    if "upload" in journal:
        with allowing(403, 404):
            s3.call("abort_multipart_upload", patience, **journal["upload"])


def send_parts(s3: S3, journal: Journal, key: str) -> dict[str, Any]:  # what will complete it
    from s3transfer.utils import ReadFileChunk  # boto3's own: a slice is read as it is sent

    facts = (*FACTS, "sha256", "tables", "exectime_backup")
    metadata = {
        name.replace("_", "-"): str(journal[name]) for name in facts if journal[name] is not None
    } | {"backup-id": journal["id"]}
    metadata["database"] = urllib.parse.quote(journal["database"], safe="")
    abort(s3, journal)
    journal.save()  # is there room to note what is begun?
    made = s3.call("create_multipart_upload", Key=key, Metadata=metadata)
    target = journal["upload"] = {"Key": key, "UploadId": made["UploadId"]}
    journal.save()
    size = journal["size"]  # 1,000 parts at most, of whole MiB; if of over 5 GiB, 10,000
    step = max(8, -(-size // ((1000 if size <= 1000 * 5 * GIB else 10000) * MIB))) * MIB

    def send(start: int, _: int) -> tuple[dict[str, Any], bytes]:
        md5 = hashlib.md5(usedforsecurity=False)
        with ReadFileChunk.from_filename(journal.file, start, step) as part:
            while data := part.read(BLOCK):
                md5.update(data)
            answer = s3.call(
                "upload_part",
                **target,
                PartNumber=start // step + 1,
                Body=part,
                ContentMD5=content_md5(md5.digest()),
            )
        return {"PartNumber": start // step + 1, "ETag": answer["ETag"]}, md5.digest()

    sent = list(slices("Upload in progress", size, step, send))
    plain = {part["ETag"].strip('"') == md5.hex() for part, md5 in sent}  # with KMS none is one
    require(len(plain) == 1, f"{s3.where}: {key}: a part is not what was sent, says its ETag")
    whole = hashlib.md5(b"".join(md5 for _, md5 in sent), usedforsecurity=False).hexdigest()
    journal.save(etag=f"{whole}-{len(sent)}" if plain == {True} else "")
    return target | {"MultipartUpload": {"Parts": [part for part, _ in sent]}}


# ---- A backup: as a whole ------------------------------------------------------------------------
DEATHS = 3  # children that a process may lose: what kills three kills the next one, too
RESULT = (
    "filename",
    "bucket",
    "filepath_s3",
    "exectime_backup",
    "size",
    "size_s3",
    "exectime_upload_s3",
    "sha256",
    *FACTS,
    "tables",
    "starttime",
)  # and `made_again`


def backup(s: Settings, resume: bool, process: str = "", starttime: str = "") -> Any:
    """One backup; its result, a dict. With `resume`: only finish what earlier runs left; None."""
    with staging(s, wait=bool(process)):
        s3 = S3(s, 10 if resume else PATIENCE)  # resuming is tried again anyway
        journal = sweep(s, s3, process)
        if resume:
            return s.verify_db_host and drop_scratch(s) and None
        attempts = journal.get("attempts", 0) + 1
        require(
            attempts <= DEATHS or "gone" in journal, "killed three times: is the memory limit low?"
        )
        try:
            if "sha256" in journal:
                journal.save(attempts=attempts)
            else:
                journal = dump(s, s3, process=process, starttime=starttime, attempts=attempts)
            result = finish(s3, journal)
        except (Stop, Failure, OSError) as why:
            if journal.pending():
                with suppress(Exception):
                    in_time(2, lambda: abort(s3, journal, 0))
                whose = journal["process"] if isinstance(why, Stop) else ""  # that one has failed
                with suppress(OSError):
                    journal.save(attempts=0, process=whose)
                if why.args == (signal.SIGUSR1,):
                    journal.remove(journal.file)  # nobody wants it
            raise
        log("info", "Backup procedure completed, closing process ...")
        return result


def finish(s3: S3, journal: Journal) -> dict[str, Any]:  # from where it is to its result
    if journal.pending():
        if "bucket" not in journal:
            journal.save(**upload(s3, journal))
        with suppress(FileNotFoundError):
            os.unlink(journal.file)
        log("info", "Removed local backup file", Filepath=journal.file)
        journal.save(gone=True)
    result = {name: journal[name] for name in RESULT}
    result["made_again"] = journal.get("made_again", [])  # an older version's journal has none
    result |= prune(
        s3,
        result["system_identifier"],
        result["database"],
        result["filepath_s3"][1:],
        result["postgresql"],
    )
    if not journal["process"]:
        journal.remove()  # else it is kept until the process is closed
    return result


def sweep(s: Settings, s3: S3, process: str) -> Journal:  # after crashes; the process's own
    mine = Journal("")
    for journal in journals(s):
        own = bool(process) and journal["process"] == process
        if journal.pending():
            if os.path.exists(journal.partial) and not os.path.lexists(journal.file):
                os.rename(journal.partial, journal.file)
            if "bucket" not in journal and digest(journal.file) != journal["sha256"]:
                log("warning", "Not what its journal says, leaving it alone", Filepath=journal.file)
                abort(s3, journal)
                journal.remove()
                continue
            tries = journal.get("attempts", 0) + bool(process)  # may it kill this process, too?
            # It may cost a process two children, not the third: that one is for its own backup.
            if not own and (tries < DEATHS or not process):
                journal.save(attempts=tries)
                finish(s3, journal)
        else:
            with suppress(OSError):
                os.unlink(journal.partial)
            if not journal["process"] or time.time() - os.path.getmtime(journal.path) > 86400:
                journal.remove()  # of no use, or its process came to another end
        if own:
            mine = journal
    return mine


# ---- Signing: secp256k1, as Colonies uses it -----------------------------------------------------
FIELD, ORDER = 2**256 - 2**32 - 977, 2**256 - 0x14551231950B75FC4402DA1732FC9BEBF
GENERATOR = (
    0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
    0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8,
)


def add(p: tuple[int, int], q: tuple[int, int]) -> tuple[int, int]:  # of y^2 = x^3 + 7; q is not -p
    rise, run = (3 * p[0] ** 2, 2 * p[1]) if p == q else (q[1] - p[1], q[0] - p[0])
    x = ((slope := rise * pow(run, -1, FIELD)) ** 2 - p[0] - q[0]) % FIELD
    return x, (slope * (p[0] - x) - p[1]) % FIELD


DOUBLES = list(itertools.accumulate(range(255), lambda p, _: add(p, p), initial=GENERATOR))


def multiply(scalar: int) -> tuple[int, int]:  # of the generator: some 128 sums of DOUBLES
    return functools.reduce(add, [p for bit, p in enumerate(DOUBLES) if scalar >> bit & 1])


def identity(key: int) -> str:  # SHA3-256 of its public key's hex text
    return hashlib.sha3_256("04{:064x}{:064x}".format(*multiply(key)).encode()).hexdigest()


def nonce(key: int, number: int) -> int:  # RFC 6979, 3.2; its first candidate
    seed = key.to_bytes(32, "big") + (number % ORDER).to_bytes(32, "big")
    k, v = bytes(32), b"\1" * 32
    for mark in (b"\0", b"\1"):
        k = hmac.digest(k, v + mark + seed, "sha256")
        v = hmac.digest(k, v, "sha256")
    return int.from_bytes(hmac.digest(k, v, "sha256"), "big")


def sign(key: int, text: str) -> str:  # r (32 bytes), low s (32), recovery id (1)
    number = int.from_bytes(hashlib.sha3_256(text.encode()).digest(), "big")
    x, y = multiply(once := nonce(key, number))
    s = pow(once, -1, ORDER) * (number + x * key) % ORDER
    return f"{x:064x}{min(s, ORDER - s):064x}{(y ^ (s > ORDER - s)) & 1:02x}"


def own_key(owner: int, colony: str, name: str) -> int:  # a restarted one is the same
    texts = (f"colonies-backup-executor/1\0{colony}\0{name}\0{n}" for n in itertools.count())
    codes = (hmac.digest(owner.to_bytes(32, "big"), text.encode(), "sha256") for text in texts)
    return next(key for code in codes if 0 < (key := int.from_bytes(code, "big")) < ORDER)


# ---- Colonies ------------------------------------------------------------------------------------
WAITING, RUNNING, ELSEWHERE, UNKNOWN = 0, 1, -1, -2  # a process's states; above: its ends


def ask(url: str, tls: ssl.SSLContext, key: int, within: float, message: Mapping[str, Any]) -> Any:
    """Sign and send a message; the decoded answer. Failure has the status Colonies gave."""
    status, text = 0, base64.b64encode(json.dumps(message).encode()).decode()
    body = {"payloadtype": message["msgtype"], "payload": text, "signature": sign(key, text)}
    query = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "text/plain"})
    web, opener = urllib.request, urllib.request.OpenerDirector()  # it follows no redirection
    for handler in (web.ProxyHandler(), web.HTTPHandler(), web.HTTPSHandler(context=tls)):
        opener.add_handler(handler)

    def exchange() -> tuple[int, bytes]:
        with opener.open(query, timeout=within) as reply:
            return reply.status, reply.read(16 * MIB)

    try:
        status, raw = in_time(within, exchange)
        require(status // 100 != 3, "it redirects, which is not followed")
        envelope = json.JSONDecoder().raw_decode(raw.decode().lstrip())[0]  # 2023 may send two
        answer = json.loads(base64.b64decode(envelope["payload"], validate=True))
        if status == 200 and envelope["error"] is False:
            return answer
        why = str(answer["message"])
    except Exception as no:  # no answer (0), an odd one (1), or something else's (0)
        status, why = +(status == 200), f"{no} (HTTP {status}; see COLONIES_TLS, COLONIES_CA_FILE)"
    text = f"Colonies at {url}: {message['msgtype']}: {why[:500]}"
    raise ColoniesFailure(text, status, again=True)


def server_time(text: object) -> int:  # ns since 1970 from RFC 3339; 0: it is none
    with suppress(IndexError, ValueError):
        day, part, zone = re.findall(r"^(.{19})\.?([0-9]{,9})(Z|[+-]\d\d:\d\d)$", str(text))[0]
        whole = datetime.datetime.fromisoformat(day + zone.replace("Z", "+00:00")).timestamp()
        return max(0, int(whole) * 10**9 + int(part.ljust(9, "0")))
    return 0


# ---- The executor --------------------------------------------------------------------------------
FUNCTIONS = {"backup": "Backs up; no arguments", "verify": "Proves one; argument: none or a name"}
ARGUMENTS = {"backup": r"\[\]", "verify": r'\[("\w[\w.-]{,99}")?\]'}  # patterns of them as JSON


class Job:  # a command of ours as a child, told for which process it works, if for one
    def __init__(self, *command: str, **told: Any):
        self.id: str = told.get("process", "")
        self.news, self.errors, self.result, self.rest = list[str](), list[str](), b"", b""
        env = {x: y for x, y in os.environ.items() if not re.match("COLONIES_.*PRVKEY(_FILE)?$", x)}
        env["BACKUP_PROCESS"] = json.dumps({x: str(y or "")[:99] for x, y in told.items()})
        self.child = start([sys.executable, __file__, *command], env, close_fds=False)

    def ended(self) -> bool:  # hear the child out, for a second; has it ended?
        pipe = self.child.stdout
        if not pipe or not select.select([pipe], [], [], 1)[0]:
            return False
        data = os.read(pipe.fileno(), 65536)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"#"):
                level, text = json.loads(line[1:])
                self.news.append(text)
                if level == "error":
                    self.errors.append(text)
            else:
                self.result += line + b"\n"
        return not data and self.child.wait() is not None


class Cron(NamedTuple):
    """A cron of the colony; its workflow is one function of ours for executors of our type."""

    id: str
    name: str
    expression: str  # when, seconds first
    names: list[str]  # of the executors that may take its processes (2026); none: any of the type
    ids: list[str]  # likewise (2023)


def says_nothing(value: Any) -> bool:
    """Whether a server or its command line filled a field in that nobody set."""
    if isinstance(value, dict):
        return all(map(says_nothing, value.values()))
    return value in (None, "", 0, -1, [])


def plain_crons(listed: list[Any], function: str, kind: str) -> list[Cron]:
    """The crons for FUNCTION among those LISTED, in the order of their ids.

    Whoever wants more of a cron, another node or a time limit, made it by hand: it is not here.
    """
    found = list[Cron]()
    for cron in listed:
        with suppress(AttributeError, KeyError, RecursionError, TypeError, ValueError):
            (node,) = json.loads(cron["workflowspec"])["functionspecs"]
            where = node.pop("conditions")
            names = [str(x) for x in where.pop("executornames", None) or []]
            ids = [str(x) for x in where.pop("executorids", None) or []]
            wants = (node.pop("funcname"), where.pop("executortype"))
            for named in ("nodename", "colonyname", "colonyid"):
                node.pop(named, None)
                where.pop(named, None)
            if wants == (function, kind) and says_nothing(node) and says_nothing(where):
                found.append(
                    Cron(
                        str(cron["cronid"]),
                        str(cron["name"]),
                        str(cron["cronexpression"]),
                        names,
                        ids,
                    )
                )
    return sorted(found)


def signal_name(number: int) -> str:
    """A signal's name; real-time ones have none, only a number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Executor:  # has each process done by a child, closes it; its state follows the answers
    def __init__(self, s: Settings):
        self.s, host, port = s, s.colonies_server_host, s.colonies_server_port
        self.url = f"http{'s' * s.colonies_tls}://{f'[{host}]' if ':' in host else host}:{port}/api"
        self.tls = (
            ssl.create_default_context(cafile=s.colonies_ca_file or None)
            if s.colonies_tls
            else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        )  # for http: 2 MB of authorities
        if s.colonies_insecure_skip_verify:
            self.tls.check_hostname, self.tls.verify_mode = False, ssl.CERT_NONE
        self.name, self.type = s.colonies_executor_name, s.colonies_executor_type
        self.database = f"{s.db_host}:{s.db_port}/{s.db_database}"
        self.colony = {"colonyname": s.colonies_colony_name, "colonyid": s.colonies_colony_id}
        self.take_keys(s)
        self.joined: bool | None = None  # None: never yet
        self.times = dict[str, float]()  # when what is due again
        self.queue = dict[str, Mapping[str, Any]]()  # assigned to us; the one at work, too
        self.done = dict[str, dict[str, Any]]()  # what to close with: `out` or `errors`
        self.satisfied = 0, ""  # when the newest backup's process started, and its result
        # How often a process's child was killed. A journal counts it, too, over our restarts; but a
        # child may be killed before it has one.
        self.deaths = collections.Counter[str]()
        self.alone = False  # at the last look at the crons no other executor of our type was there
        self.warned = set[str]()  # of crons, once each

    def take_keys(self, s: Settings) -> None:  # they may have changed since
        self.owner: int | None = s.colonies_colony_prvkey
        colony = s.colonies_colony_name or s.colonies_colony_id
        self.key = s.colonies_executor_prvkey or own_key(self.owner or 0, colony, self.name)
        self.id = identity(self.key)
        self.names = {"executorname": self.name, "executorid": self.id, **self.colony}

    def call(self, msgtype: str, within: Any = 15, key: Any = 0, **fields: Any) -> Any:
        return ask(self.url, self.tls, key or self.key, within, {"msgtype": msgtype, **fields})

    def due(self, what: str, seconds: float) -> bool:  # true once in so many seconds
        if due := time.monotonic() >= self.times.get(what, 0):
            self.times[what] = time.monotonic() + seconds * TIME_SCALE
        return due

    def serve(self) -> None:  # what a crash left at VERIFY_DB_HOST goes first
        self.job: Job | None = Job("backup", "--resume") if self.s.verify_db_host else None
        pauses, alive = backoff(), self.s.backup_alive_file
        while not signals:
            with suppress(OSError), open(alive, "a", opener=guarded) as f:
                os.utime(f.fileno())
            try:
                if self.job and self.job.ended():
                    with suppress(Failure):
                        self.tell(self.job)
                    self.conclude(self.job)
                if (
                    not (self.job or self.queue)
                    and self.due("resume", 300)
                    and any(x.pending() or os.path.exists(x.partial) for x in journals(self.s))
                ):
                    self.job = Job("backup", "--resume")
                if not self.joined:
                    self.join()
                elif self.job:
                    self.attend(self.job)
                elif self.queue:
                    self.see_to(
                        min(
                            self.queue,
                            key=lambda name: (
                                name not in self.done,
                                self.spec(name)[0] != "backup",
                                self.rest(name),
                            ),
                        )
                    )
                else:
                    self.idle()
                pauses = backoff()
                if self.times.pop("complain", 0):
                    log("info", "Colonies is back")
            except Exception as error:  # whatever a server sends: a running dump goes on
                status = getattr(error, "status", 1)  # odd is as refused: it waits
                again = getattr(error, "again", not isinstance(error, OSError))
                if not again and self.joined is None:
                    raise
                if self.due("complain", 60):
                    log("error" if status or not again else "warning", f"{error}; trying again ...")
                self.joined = self.joined and status != 403
                self.times |= dict.fromkeys(["watch"] if status else ["watch", "look", "cron"], 0)
                time.sleep(next(pauses))

    def join(self) -> None:  # be known to the colony, approved, and announced
        self.take_keys(read_settings(os.environ, "serve", serve=True))
        executor, announced = self.names | {"executortype": self.type}, None
        if not self.known():
            text = f"Colonies does not know executor {self.name!r}, id {self.id}: approve it"
            if not self.owner:
                raise ColoniesFailure(f"{text}, or set COLONIES_COLONY_PRVKEY", 403, True)
            with allowing(400, 403):
                self.call("addexecutormsg", key=self.owner, executor=executor)
            with allowing(403, 500):
                self.call("approveexecutormsg", key=self.owner, **self.names)
            require(
                self.known(),
                f"Colonies: the executor name {self.name!r} belongs to another "
                "key (set COLONIES_EXECUTOR_NAME), or COLONIES_COLONY_PRVKEY is no owner's",
            )
        with allowing(*range(400, 600)):
            announced = self.call("getfunctionsmsg", **self.names)
        for name in sorted(FUNCTIONS.keys() - {known["funcname"] for known in announced or []}):
            fun = executor | dict.fromkeys(("desc", "description"), FUNCTIONS[name])
            with allowing(403):
                self.call("addfunctionmsg", fun=fun | {"funcname": name})
        self.joined = True
        self.times["cron"] = 0  # while we were away another may have taken it for a former one's
        log("info", "Waiting for processes ...", Executor=self.name, ExecutorId=self.id)

    def known(self) -> Any:  # give a sign of life (nothing needs less than no CPU)
        with allowing(403):
            return self.assign(timeout=-1, availablecpu="-1m") is not None

    def assign(self, **fields: Any) -> bool:  # take in what comes, asked for or not
        with allowing(404):
            process = self.call("assignprocessmsg", 25, **fields, **self.colony)
            return bool(self.queue.setdefault(str(process["processid"])[:99], process))
        return False

    def running(self) -> dict[str, Any]:
        asked = {"state": RUNNING, "count": 100, "executortype": self.type, **self.colony}
        return {
            str(x["processid"])[:99]: x
            for x in self.call("getprocessesmsg", **asked) or []
            if x["assignedexecutorid"] == self.id
        }

    def idle(self) -> None:  # find or wait for a process, never flooding; see to the cron
        if self.due("look", 60):
            self.queue |= self.running()  # lost answers', an earlier run's
        if self.due("cron", 3600):
            self.see_to_crons()
        if self.queue or self.assign(timeout=10):
            return
        self.satisfied = 0, ""  # what it could satisfy has come, so an odd time does no harm
        if not self.due("poll", 1):
            time.sleep(1)

    def see_to_crons(self) -> None:
        """Have the colony hold our crons, once an hour and whenever we join it."""
        if not (self.s.backup_cron or self.s.verify_cron):
            return
        listed = self.call("getcronsmsg", count=1000, **self.colony) or []
        others = self.others()
        for function in FUNCTIONS:
            if getattr(self.s, f"{function}_cron"):
                self.ensure_cron(function, listed, others)
        for text in self.odd_crons(listed, others):
            if text not in self.warned:
                self.warned.add(text)
                log("warning", text)
        self.alone = not others

    def others(self) -> set[str]:
        """The names of the other executors of our type that are in the colony, or may come in."""
        return {
            str(x["executorname"])
            for x in self.call("getexecutorsmsg", **self.colony) or []
            if x["executortype"] == self.type
            and x["state"] in (0, 1)  # pending, approved
            and self.name != x["executorname"]
        }

    def odd_crons(self, listed: list[Any], others: set[str]) -> list[str]:
        """What to tell of crons by which a database among several may get no backup."""
        said, there = list[str](), ", ".join(sorted(others)[:5])
        if not others:
            return said
        for cron in [c for f in FUNCTIONS for c in plain_crons(listed, f, self.type)]:
            if not cron.names + cron.ids:
                fault = (
                    f"names no executor, and {there} of type {self.type!r} may take what it "
                    "submits: with several databases some get no backup"
                )
            elif cron.names and not (others | {self.name}).intersection(cron.names):
                fault = f"names {cron.names[0]!r}, which is not in the colony"
            else:
                continue
            said.append(
                f"Colonies: the cron {cron.name!r} {fault}. If that is not meant, remove it"
                f" (colonies cron remove --cronid {cron.id}): within an hour each executor "
                "with BACKUP_CRON has its own"
            )
        return said

    def ensure_cron(self, function: str, listed: list[Any], others: set[str]) -> None:
        """See to it that one cron for FUNCTION names us, and remove our outdated ones.

        Abandoned ones are ours, too, if no other executor of the type is in the colony. One that
        was away at one look only may just be starting again, and is not gone.
        """
        name, wanted = getattr(self.s, f"{function}_cron_name"), getattr(self.s, f"{function}_cron")
        crons = plain_crons(listed, function, self.type)
        right, outdated, abandoned = self.sort_crons(crons, name, wanted)
        serving = not right and (wanted, [], []) in [cron[2:] for cron in abandoned]
        if serving and (others or not self.alone):
            return
        if not others:
            outdated += [c for c in abandoned if self.alone or not (right or c.names)]
        if not right:
            self.add_cron(function, name, wanted, outdated)
        for cron in outdated:
            self.remove("cron", cronid=cron.id, **self.colony)

    def sort_crons(self, crons: list[Cron], name: str, wanted: str) -> list[list[Cron]]:
        """The one that is as it shall be, if any; the rest of ours; the abandoned."""
        right, outdated, abandoned = list[Cron](), list[Cron](), list[Cron]()
        for cron in sorted(crons, key=lambda cron: len(cron.name)):  # NAME before NAME-EXECUTOR
            fits = cron[2:] == (wanted, [self.name], [self.id])
            if not self.names_us(cron, name):
                abandoned += [cron] if self.abandoned(cron, name) else []
            elif fits and not right:
                right.append(cron)
            else:
                outdated.append(cron)
        return [right, outdated, abandoned]

    def names_us(self, cron: Cron, name: str) -> bool:
        """Whether it is for us alone, perhaps with a former key or under a former name."""
        if cron.name not in (name, f"{name}-{self.name}"):
            return False
        return cron.names == [self.name] or cron.ids == [self.id]

    def abandoned(self, cron: Cron, name: str) -> bool:
        """Whether, of executors of this type, none but us could want it, should there be none.

        An older version's cron names nobody; one of ours may name us as a former host was called.
        """
        if not cron.names:
            return cron.name == name and not cron.ids
        return len(cron.names) == 1 and cron.name in (name, f"{name}-{cron.names[0]}")

    def added(self, function: str, name: str) -> bool:
        """Whether there is such a cron for us: our own request may have arrived twice."""
        listed = self.call("getcronsmsg", count=1000, **self.colony) or []
        return any(
            cron.name == name and cron.names == [self.name]
            for cron in plain_crons(listed, function, self.type)
        )

    def add_cron(self, function: str, name: str, wanted: str, outdated: list[Cron]) -> None:
        """Add it under NAME, or NAME-EXECUTOR where that is somebody else's; or Failure.

        A name is one cron's in a colony (2026), in all of them (2023). The server looks at that
        last: only when all else of the new cron is right an OUTDATED one goes, for its name.
        """
        node = {
            "nodename": function,
            "funcname": function,
            "conditions": {
                "executortype": self.type,
                "executornames": [self.name],
                "executorids": [self.id],
                **self.colony,
            },
        }
        cron = {
            "cronexpression": wanted,
            "interval": -1,
            "random": False,
            **self.colony,
            "workflowspec": json.dumps({"functionspecs": [node], **self.colony}),
        }
        for called in (name, f"{name}-{self.name}"):
            try:
                self.call("addcronmsg", cron=cron | {"name": called})
            except Failure as refused:
                if not re.search("already exists|duplicate key", str(refused)):
                    raise
                holding = [c for c in outdated if c.name == called]
                if not holding and self.added(function, called):
                    return
                if not holding:
                    continue
                self.times["cron"] = time.monotonic() + 60 * TIME_SCALE  # if it is refused below
                for old in holding:
                    self.remove("cron", cronid=old.id, **self.colony)
                    outdated.remove(old)
                self.call("addcronmsg", cron=cron | {"name": called})
            log("info", "Added the cron", Name=called, Expression=wanted, Executor=self.name)
            return
        raise ColoniesFailure(
            f'Colonies: the cron names {name!r} and "{name}-{self.name}" are taken by '
            f"others: set {function.upper()}_CRON_NAME",
            409,
            again=True,
        )

    def remove(self, what: str, **message: Any) -> None:
        for verb in ("remove", "delete"):  # 2026, 2023
            with allowing(403):
                self.call(f"{verb}{what}msg", **message)

    def spec(self, name: str) -> tuple[str, Any, Any]:  # function, arguments; maybe odd
        given = spec if isinstance(spec := self.queue[name].get("spec"), dict) else {}
        return str(given.get("funcname"))[:99], given.get("args") or [], given.get("kwargs")

    def standing(self, name: str) -> int:  # RUNNING: here; UNKNOWN: none such, or odd
        with allowing(1, 400, 404, 500), suppress(KeyError, TypeError, ValueError, OverflowError):
            process = self.call("getprocessmsg", processid=name)
            state, here = int(process["state"]), process["assignedexecutorid"] == self.id
            return ELSEWHERE if state == RUNNING and not here else state
        return UNKNOWN

    def see_to(self, name: str) -> None:  # close or begin it; it may not run here any more
        process, (funcname, args, kwargs) = self.queue[name], self.spec(name)
        state, submitted = self.standing(name), server_time(process.get("submissiontime"))
        if state > RUNNING:
            self.forget(name)
        elif state != RUNNING:
            del self.queue[name]  # what is done stays so, should it come back
        elif name in self.done:
            self.close(name)
        elif kwargs or not re.fullmatch(ARGUMENTS.get(funcname, ""), json.dumps(args)):
            self.fail(name, f"no function {funcname!r} with such arguments, only {FUNCTIONS}")
        elif funcname == "backup" and 0 < submitted <= self.satisfied[0]:
            log(
                "info",
                "A backup begun after this request satisfies it",
                ProcessId=name,
                Database=self.database,
            )
            self.done[name] = {"out": [self.satisfied[1]]}
        elif funcname == "verify" and self.assign(timeout=-1):
            pass  # one that may go before it
        elif self.rest(name):
            if self.due("watch", 60):
                self.known()
            time.sleep(min(self.rest(name), 1))
        else:
            log("info", "Beginning process", ProcessId=name, Database=self.database)
            self.job = Job(funcname, *args, process=name, starttime=process.get("starttime"))

    def rest(self, name: str) -> float:
        """Seconds that a process whose child was killed has yet to wait for the next."""
        return max(0, self.times.get(f"again {name}", 0) - time.monotonic())

    def fail(self, name: str, *errors: str) -> None:
        log("error", "Process failed", ProcessId=name, Errors="; ".join(errors))
        self.done[name] = {"errors": [error.replace("\0", "") for error in errors]}

    def attend(self, job: Job) -> None:  # its log; each minute a sign of life and a look
        if not self.due("watch", 60):
            return self.tell(job)
        self.known()
        state = self.standing(job.id) if job.id else RUNNING
        while state == WAITING and len(self.queue) < 100 and self.assign(timeout=-1):
            state = self.standing(job.id)  # it was taken from us: have it back, whatever else comes
        if state not in (RUNNING, WAITING, UNKNOWN):
            log("warning", "Stopping what was cancelled, failed or given away", ProcessId=job.id)
            stop(job.child, signal.SIGUSR1, 6)
            self.job = None

    def tell(self, job: Job) -> None:  # its process's own log (2023: none)
        if job.id and job.news:
            with allowing(*range(1, 600)):
                self.call("addlogmsg", processid=job.id, message="\n".join(job.news) + "\n")
            job.news.clear()

    def conclude(self, job: Job) -> None:
        """Decide, when a child has ended, with what its process is closed, or that it begins anew.

        A backup that was killed begins anew after a pause, twice: the third time it has failed.
        """
        name, status, self.job = job.id, job.child.returncode, None
        killer = signal_name(-status)
        if not name:
            if status < 0:
                log("warning", "What earlier runs left is not finished: killed", Signal=killer)
        elif status < 0 and self.spec(name)[0] == "backup":
            self.deaths[name] += 1
            if self.deaths[name] < DEATHS:
                pause = next(itertools.islice(backoff(), self.deaths[name] - 1, None))
                self.times[f"again {name}"] = time.monotonic() + pause
                log("warning", "It was killed, beginning it again", ProcessId=name, Signal=killer)
            else:
                self.fail(
                    name,
                    f"killed three times, at last by {killer}: is the memory limit low?",
                    *job.errors,
                )
        elif status < 0:
            self.fail(name, f"killed by {killer}: is the memory limit low?", *job.errors)
        elif status:
            self.fail(name, *job.errors or [f"it ended with exit status {status}"])
        else:
            text = job.result.decode().strip()
            started = server_time(json.loads(text).get("starttime"))  # of a verify: 0
            self.done[name] = {"out": [text]}
            self.satisfied = max(self.satisfied, (started, text))

    def close(self, name: str, within: float = 15) -> None:  # if refused: again in a minute
        how = "successful" if "out" in self.done[name] else "failed"
        try:
            self.call(f"close{how}msg", within, processid=name, **self.done[name])
        except ColoniesFailure as refused:
            if refused.status < 2:
                raise
            log("warning", "Cannot close the process", ProcessId=name, Error=refused)
            del self.queue[name]
        else:
            self.forget(name)

    def forget(self, name: str) -> None:  # it is closed: nobody needs what was kept for it
        log("info", "Closed process", ProcessId=name)
        del self.queue[name]
        self.done.pop(name, None)
        del self.deaths[name]
        self.times.pop(f"again {name}", None)
        for journal in journals(self.s):
            if journal.get("process") == name and not journal.pending():
                journal.remove()

    def leave(self) -> None:  # hand back, deregister; within 10 s
        stopped = {} if self.owner else {"errors": ["the executor was stopped"]}
        try:
            if job := self.job:
                stop(job.child, signal.SIGTERM, 6)
                if not job.child.returncode and any(job.ended() for _ in (1, 2)):
                    self.conclude(job)
            for name in list(self.queue)[:5]:  # deregistering hands back what is not done
                if self.done.setdefault(name, stopped):
                    self.close(name, 0.5)
            if self.owner:
                self.remove("executor", within=1, key=self.owner, **self.names)
        except (Failure, ValueError) as error:
            log("warning", "Could not take leave", Error=error)


# ---- The archive ---------------------------------------------------------------------------------

NAME = r'(?:(?:"[^"]*")+|[\w$]+)'  # an identifier, as pg_dump writes it
OF_DATABASE = (
    rf"(?s)((?:ALTER|COMMENT ON|ALTER ROLE {NAME} IN|(?:GRANT|REVOKE) [A-Z, ]+ ON|"
    rf"SECURITY LABEL FOR {NAME} ON) DATABASE ){NAME}( .*)"
)
# Entries of a table of contents, all of these. The first: those whose statements name roles.
OF_ROLES = re.compile(
    r"(\S+ ){3}(ACL|DEFAULT ACL|POLICY|USER MAPPING|(COMMENT|SECURITY LABEL) - DATABASE) "
)
SCHEMA = re.compile(r"(\S+ ){3}SCHEMA - ")
EXTENSION = re.compile(r"(\S+ ){3}EXTENSION - timescaledb ")
FOREIGN_KEY = re.compile(r"(\S+ ){3}FK CONSTRAINT ")
JOBS = re.compile(r"(\S+ ){3}TABLE DATA _timescaledb_(catalog|config) bgw_job ")
# An event trigger may refuse what comes after it; pg_restore itself makes them last, too.
LATE = re.compile(
    r"(\S+ ){3}(EVENT TRIGGER|MATERIALIZED VIEW DATA|"
    r"COMMENT .*(CONSTRAINT|EVENT TRIGGER)) "
)
# The catalog's tables are in the first of these schemas; up to 2.24 bgw_job was in the second.
CATALOG = ("_timescaledb_catalog", "_timescaledb_config")
OF_CATALOG = [f"--schema={schema}" for schema in CATALOG]
NOT_OF_CATALOG = [f"--exclude-schema={schema}" for schema in CATALOG]
GONE = re.compile("[0-9]+|-")  # how a regrole is written whose role somebody dropped
ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}  # what COPY writes so


class Copied(NamedTuple):
    """A table's rows as a script of pg_restore copies them; none where it does not."""

    table: str = ""  # with its schema
    columns: str = ""  # as COPY names them
    rows: Sequence[dict[str, str]] = ()  # values as COPY writes them

    def values(self, column: str) -> list[str]:
        """The plain values of a column, in order; none where there is no such column."""
        return [
            re.sub(r"\\(.)", lambda found: ESCAPED.get(found[1], found[1]), row[column])
            for row in self.rows
            if column in row
        ]


@dataclasses.dataclass(frozen=True)
class Timescale:
    """What restoring TimescaleDB takes."""

    version: str  # "?": an old archive's catalog does not say it
    schema: str  # the extension's, as an identifier
    jobs: Copied
    adopted: set[str]  # owners whose jobs become the restoring role's
    late: set[str]  # entries to restore when all else is there


@dataclasses.dataclass(frozen=True)
class Archive:
    """What an archive of pg_dump holds, and how it is to be read."""

    path: str
    options: list[str]  # of pg_restore, for all that is read of it and restored from it
    format: str  # its version
    pg_restore: int  # the major version of the one that reads it
    entries: list[str]  # of its table of contents
    tables: int  # how many of these are a table's rows
    roles: set[str]  # that its statements name, which have to be there
    database: str  # whose it is, as an identifier; "" where pg_restore cannot write it
    create: str  # what its CREATE DATABASE says after the name
    properties: list[tuple[str, str]]  # the database's other statements, before and after its name
    unread: str  # why these could not be read, or ""
    timescaledb: Timescale | None


def pg_restore_for(dumped_by: str) -> int:
    """The major version of pg_restore. Raises Failure if it is older than this pg_dump."""
    ours = major_version(run("Looking at pg_restore", ["pg_restore", "--version"]))
    theirs = major_version(dumped_by)
    require(ours >= theirs, f"pg_restore {ours} is older than the archive's pg_dump {dumped_by}")
    return ours


def path_of(file: IO[bytes]) -> str:
    """A path of an open file for our programs, also if it has no name."""
    return f"/proc/{os.getpid()}/fd/{file.fileno()}"


@contextmanager
def listing(entries: Iterable[str]) -> Iterator[str]:
    """The option by which pg_restore takes these entries alone."""
    with tempfile.NamedTemporaryFile("w") as file:
        with placing(file.name):
            print(*entries, "", sep="\n", file=file, flush=True)
        yield f"--use-list={file.name}"


def read_archive(path: str, *options: str) -> str:
    """What pg_restore prints of an archive."""
    return run("Reading the archive", ["pg_restore", *options, path])


def statements(sql: str) -> list[str]:
    """The statements of a script. No text in a literal, a comment's for instance, forges one."""
    sql = re.sub(r"""(?m)^(?:--|\\).*\n|('[^']*'|"[^"]*")""", lambda found: found[1] or "", sql)
    return [each.strip() for each in re.findall(r"""(?:[^;'"]|'[^']*'|"[^"]*")+;""", sql)]


def unquoted(identifier: str) -> str:
    """The name that an identifier stands for; a name that is none is itself."""
    if identifier[:1] == '"':
        return identifier[1:-1].replace('""', '"')
    return identifier


def roles_in(statement: str) -> set[str]:
    """The roles that a GRANT, a policy, … names."""
    roles, due = set[str](), False
    head = re.split(r" (?:USING|WITH CHECK) \(", statement)[0]
    for word in re.findall(rf"'[^']*'|{NAME}|\S", head):
        name = unquoted(word)
        if due and (name != word or (re.match(r"\w", word) and not word.isupper())):
            roles.add(name)
        elif word != ",":
            due = word in ("TO", "FROM", "FOR", "ROLE", "AUTHORIZATION")
    return roles - {"public"}


def copied(script: str, table: str) -> Copied:
    """The rows of a table of TimescaleDB's catalog in a script of pg_restore."""
    schemas = "|".join(CATALOG)
    head = rf"(?m)^COPY ((?:{schemas})\.{table}) \(([\w, ]+)\) FROM stdin;\n"
    found = re.search(head + r"((?s:.*?))^\\\.$", script)
    if not found:
        return Copied()
    names, lines = found[2].split(", "), found[3].split("\n")[:-1]
    return Copied(found[1], found[2], [dict(zip(names, line.split("\t"))) for line in lines])


def read_statements(path: str, options: list[str], entries: list[str]) -> tuple[str, str]:
    """The statements on roles and on the database, and why these are left out, or ""."""
    with listing(filter(OF_ROLES.match, entries)) as chosen:
        argv = ["-f-", chosen, *options]
        try:  # -C: with what makes the database, whose name pg_restore may refuse to write
            return read_archive(path, "-C", *argv), ""
        except Failure as error:
            return read_archive(path, *argv), f"not restored: {error}"


def examine_archive(path: str, options: list[str], timescaledb: str = "") -> Archive:
    """What an archive holds, as its table of contents and its statements on roles say.

    timescaledb: the extension's version, where it is known already. Raises Failure.
    """
    listed = read_archive(path, "-l", "-C", *options)
    entries = re.findall(r"(?m)^\d+; \d+ \d+ .*$", listed)
    made_by = re.findall("; +Dumped by pg_dump version: (.*)", listed)
    script, unread = read_statements(path, options, entries)
    database, create = "", "TEMPLATE = template0"
    roles, properties = set[str](), list[tuple[str, str]]()
    for statement in statements(script):
        made = re.match(f"CREATE DATABASE ({NAME}) (WITH .*);", statement)
        about = re.fullmatch(OF_DATABASE, statement)
        if made:
            database, create = made[1], made[2]
        elif about:
            properties.append((about[1], about[2]))
            if about[2].startswith(" OWNER TO "):
                create += about[2][:-1].replace(" TO", "", 1)
        if not about or "--no-owner" not in options:
            roles |= roles_in(statement)
    timescale = examine_timescaledb(path, options, entries, timescaledb)
    if timescale:
        roles |= set(map(unquoted, {*timescale.jobs.values("owner")} - timescale.adopted))
    return Archive(
        path,
        options,
        "".join(re.findall("; +Dump Version: (.*)", listed)),
        pg_restore_for("".join(made_by)),
        entries,
        len(re.findall(TABLES, listed)),
        roles,
        database,
        create,
        properties,
        unread,
        timescale,
    )


def examine_timescaledb(
    path: str, options: list[str], entries: list[str], version: str
) -> Timescale | None:
    """What an archive's TimescaleDB takes, from its catalog and foreign keys; None: it has none."""
    extension = list(filter(EXTENSION.match, entries))
    if not extension:
        return None
    tables = ("-tmetadata", "-thypertable", "-tbgw_job")
    catalog = read_archive(path, "-a", "-f-", *OF_CATALOG, *tables, *options)
    if found := re.search(r"\ntimescaledb_version\t([^\t\n]+)", catalog):
        version = version or found[1]
    jobs = copied(catalog, "bgw_job")
    owners = set(jobs.values("owner"))
    adopted = owners if "--no-owner" in options else set(filter(GONE.fullmatch, owners))

    keys = list(filter(FOREIGN_KEY.match, entries))
    with listing(extension + keys) as chosen:
        made = statements(read_archive(path, "-f-", chosen, *options))
    schema = re.search(rf"CREATE EXTENSION [\w ]+ WITH SCHEMA ({NAME});", "\n".join(made))
    added = [statement for statement in made if statement.startswith("ALTER TABLE ")]
    require(len(added) == len(keys), f"its {len(keys)} foreign keys cannot be told apart")
    late = pointing_at_hypertables(dict(zip(keys, added)), copied(catalog, "hypertable"))
    return Timescale(
        version or "?",
        schema[1] if schema else "public",
        jobs,
        adopted,
        late.union(filter(LATE.match, entries)),
    )


def pointing_at_hypertables(keys: dict[str, str], hypertables: Copied) -> set[str]:
    """The entries, of all foreign keys with their statements, whose key points at a hypertable.

    With `timescaledb.restoring` on, it finds no rows there, or is not passed on to the chunks;
    with it off, a key *of* a hypertable is refused. One at itself, which only an older table can
    have, is of it. (2.28.3, 2.29.2, 2.30.0-dev)
    """
    names = set(zip(hypertables.values("schema_name"), hypertables.values("table_name")))
    found = set()
    for entry, statement in keys.items():
        key = re.match(
            rf"(?s)ALTER TABLE (?:ONLY )?({NAME})\.({NAME})\s.* REFERENCES ({NAME})"
            rf"\.({NAME})\(",
            statement,
        )
        if key:
            schema, table, *target = map(unquoted, key.groups())
            if tuple(target) in names and (schema, table) not in names:
                found.add(entry)
    return found


# ---- Fetching a backup ---------------------------------------------------------------------------


@dataclasses.dataclass
class Steps:
    """How the steps of a command went."""

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # that each took
    current: str = ""  # the one that runs, or failed; "" between two

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Note how long a step takes. One that fails stays the current one."""
        begun, self.current = time.monotonic(), step
        log("info", f"{step.capitalize()} ...")
        yield
        self.current = ""
        self.seconds[step] = round(time.monotonic() - begun, 1)


def chosen(s3: S3, name: str, database: str = "") -> Backup:
    """The backup of this name, or the `latest` one: the newest good one of a database.

    A name is found also where it is not among those that `backups` looks at. Of two servers with
    such a database the latest is the newer one's. Where there is none of it, or database is "",
    all have to be one database's. Raises Failure.
    """
    if name != "latest":
        plain = name.removeprefix(s3.key(""))
        made = re.fullmatch(r"backup_([0-9]{1,18})\.bak", plain)
        head: Any = s3.head(s3.key(plain)) if made else None
        require(head, f"{s3.where}: there is no backup {name!r}; `list` shows those there are")
        seconds = int(plain[7:-4])
        return Backup(seconds, s3.key(plain), head["ContentLength"], head["Metadata"])
    found = s3.backups()
    require(found, f"{s3.where}: there is no backup")
    whose = by_database(found)
    unknown = by_archive(s3, found, {of for _, of in whose})
    ours = [whose[of] for of in whose if of[1] == database] or [unknown.get(database, [])]
    backups = max(ours, key=lambda sort: sort[-1:])
    if not backups:
        sorts = [*whose.values(), *unknown.values()] or [found]
        require(len(sorts) == 1, f"{s3.where}: several databases' backups are there: name one")
        backups = sorts[0]
    doubts = doubtful(backups)
    while backups[-1].key in doubts:
        log("warning", "Passing over a doubtful backup", Key=backups.pop().key)
    return backups[-1]


def by_archive(s3: S3, found: list[Backup], known: set[str]) -> dict[str, list[Backup]]:
    """Objects without metadata by the database that their archives name, but for those KNOWN.

    Old first. What is no archive counts as nobody's. The newest 100 are asked for. Raises Failure.
    """
    whose = dict[str, list[Backup]]()
    for backup in [each for each in found if each.metadata == {}][-HEADS:]:
        name, _ = archive_origin(s3.beginning(backup))
        if name and name not in known:
            whose.setdefault(name, []).append(backup)
    return whose


def fetch_range(s3: S3, backup: Backup, file: IO[bytes], start: int, end: int) -> tuple[int, int]:
    """Write these bytes of a backup to where they belong in a file; which they are."""
    wanted = f"bytes {start}-{end - 1}/{backup.size}"

    def take(answer: Any) -> tuple[int, int]:
        """Write what an answer's body has, and see that it is all of it."""
        at = start
        while at < end:
            data = answer["Body"].read(min(BLOCK, end - at))
            if not data:
                break
            with placing(s3.s.backup_path):
                while data:
                    written = os.pwrite(file.fileno(), data, at)
                    at, data = at + written, data[written:]
        require((at, answer.get("ContentRange")) == (end, wanted), f"it gave not {wanted}")
        return start, end

    span = f"bytes={start}-{end - 1}"
    answer: tuple[int, int] = s3.call("get_object", take=take, Key=backup.key, Range=span)
    return answer


def fetch(s3: S3, backup: Backup, file: IO[bytes], steps: Steps) -> str:
    """Download a backup into a file: "checked", or "absent" if it carries no checksum.

    Raises Failure, at the step "checksum" where the backup is damaged.
    """
    metadata = backup.metadata or {}
    log(
        "info",
        "Found the backup",
        Key=backup.key,
        Size=f"{backup.size} bytes",
        Time=moment(backup.seconds),
        Database=urllib.parse.unquote(metadata.get("database", "unknown")),
    )
    pg_restore_for(metadata.get("pg-dump", ""))
    look_for_room(s3.s, backup.size, 0)
    sha256, size = hashlib.sha256(), max(16 * MIB, backup.size // 4096)
    with steps.timed("download"):
        work = functools.partial(fetch_range, s3, backup, file)
        for start, end in slices("Download in progress", backup.size, size, work):
            for at in range(start, end, BLOCK):  # hashed while the next ones come
                sha256.update(os.pread(file.fileno(), min(BLOCK, end - at), at))
    steps.current = "checksum"
    if "sha256" not in metadata:
        log("warning", "It has no checksum: that was not checked")
        return "absent"
    require(
        sha256.hexdigest() == metadata["sha256"],
        f"{s3.where}: {backup.key} is damaged: its SHA-256 is not that of the dump",
    )
    return "checked"


# ---- Restore -------------------------------------------------------------------------------------

CLUSTER = """SELECT json_build_object('limits', (SELECT json_object_agg(datname, datconnlimit) FROM
    pg_database), 'roles', (SELECT json_agg(rolname) FROM pg_roles), 'preloaded', (SELECT setting ~
    'timescaledb' FROM pg_settings WHERE name = 'shared_preload_libraries'), 'versions', (SELECT
    coalesce(json_agg(version), '[]') FROM pg_available_extension_versions
    WHERE name = 'timescaledb'))"""
# Empty is also what holds nothing but extensions, as images make databases. Their members depend on
# them ("e"); indexes and the like belong to something else ("i", "a"), which is there, too; and an
# extension's schema is no member of it.
EMPTY = """
    SELECT json_build_object(
        'timescaledb', EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb'),
        'empty', NOT EXISTS (
            SELECT FROM (
                SELECT classid, objid FROM pg_depend
                UNION SELECT tableoid, oid FROM pg_namespace
                UNION SELECT tableoid, oid FROM pg_publication
                UNION SELECT tableoid, oid FROM pg_default_acl
                UNION SELECT tableoid, oid FROM pg_cast
                UNION SELECT tableoid, oid FROM pg_foreign_data_wrapper
                UNION SELECT tableoid, 16384 FROM pg_largeobject_metadata
            ) AS o
            WHERE objid >= 16384 AND classid <> 'pg_extension'::regclass
            AND objid NOT IN (SELECT extnamespace FROM pg_extension)
            AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = o.classid
                            AND d.objid = o.objid AND deptype IN ('a', 'e', 'i', 'P', 'S'))))
"""
# Something for each of PARTS in a transaction of its own, which then lets go of its locks: a server
# may have no room for those of all tables. An error is noted, and the others have their turn.
FOR_EACH = """
    DO $$
    DECLARE
        part record;
        number bigint := 0;
        answers json[] := ARRAY[]::json[];
    BEGIN
        FOR part IN {parts} ORDER BY nspname, relname LOOP
            BEGIN
                EXECUTE part.query {into};
                answers := array_append(answers, json_build_array(part.whole, number, ''));
            EXCEPTION WHEN others THEN
                answers := array_append(answers, json_build_array(part.whole, 0, SQLERRM));
            END;
            COMMIT;
        END LOOP;
        PERFORM set_config('colonies_backup.answers', encode(convert_to(
            array_to_json(answers)::text, CASE getdatabaseencoding() WHEN 'SQL_ASCII'
            THEN 'SQL_ASCII' ELSE 'UTF8' END), 'hex'), false);
    END $$
"""
# In hexadecimal, since psql writes names in the database's encoding.
ANSWERS = """SELECT json_build_object('size', pg_database_size(current_database()),
    'answers', current_setting('colonies_backup.answers'))"""
# A table with a partition at another server has no statistics of its own: that is not asked.
ANALYZE = FOR_EACH.format(
    into="",
    parts="""
    SELECT c.oid::regclass AS whole, format('ANALYZE %s', c.oid::regclass) AS query
    FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE (relkind IN ('r', 'm') AND relpersistence <> 't') OR (relkind = 'p' AND NOT EXISTS (
        SELECT FROM pg_partition_tree(c.oid) JOIN pg_class f ON f.oid = relid
        WHERE f.relkind = 'f'))""",
)
# Partitions are counted one by one, and added up, but for one at another server, which is in no
# dump. TimescaleDB's chunks are seen through their hypertable.
COUNT = FOR_EACH.format(
    into="INTO number",
    parts="""
    SELECT coalesce(pg_partition_root(c.oid)::oid, c.oid)::regclass AS whole,
        CASE relkind WHEN 'p' THEN 'SELECT 0'
            ELSE format('SELECT count(*) FROM %s', c.oid::regclass) END AS query
    FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE relkind IN ('r', 'p')
    AND nspname !~ '^(pg_|information_schema$|_timescaledb_)'
    AND (relispartition OR NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid))""",
)
# TimescaleDB's functions for users are where the extension is, which need not be in public.
POST_RESTORE = "SELECT {}.timescaledb_post_restore()"
# ALTER DATABASE … RENAME stops TimescaleDB's scheduler for good, also where it is refused.
START_WORKERS = "SELECT _timescaledb_functions.start_background_workers()"
# Those below 1000 are TimescaleDB's own. It is a table up to 2.24, then a view of that.
PAUSE_JOBS = """WITH paused AS (UPDATE _timescaledb_config.bgw_job SET scheduled = false
    WHERE scheduled AND id >= 1000 RETURNING id) SELECT array_agg(id ORDER BY id) FROM paused"""
JOBS_ON = "SELECT {}.alter_job(id, scheduled => true) FROM unnest('{}'::int[]) AS id;"
OWNER = """SELECT CASE atttypid WHEN 'regrole'::regtype THEN quote_ident(user) ELSE user END
    FROM pg_attribute WHERE attname = 'owner' AND attrelid IN (to_regclass(
    '_timescaledb_catalog.bgw_job'), to_regclass('_timescaledb_config.bgw_job')) LIMIT 1"""
# No dump has this sequence, and attach_tablespace would begin with numbers that are taken.
NUMBER_TABLESPACES = """SELECT setval(pg_get_serial_sequence('_timescaledb_catalog.tablespace',
    'id'), max(id)) FROM _timescaledb_catalog.tablespace"""
ALL_ROWS = "-c timescaledb.restoring=off"  # with it on, compressed rows are not seen
WRITING = "-c default_transaction_read_only=off"  # against the database's own setting
PUBLIC = f"-c search_path=public {WRITING}"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What a restore has to know of a server."""

    limits: dict[str, int]  # of its databases: how many connections each takes
    roles: list[str]
    preloaded: bool | None  # TimescaleDB's library; None: only a superuser is told
    versions: list[str]  # of TimescaleDB that it can make


def examine_cluster(database: Database) -> Cluster:
    """What there is on a database's server. Raises Failure."""
    return Cluster(**read_json(database, "Looking at the server", CLUSTER))


def require_needs(cluster: Cluster, archive: Archive) -> None:
    """Raise Failure where the server lacks roles, or a TimescaleDB, that the archive takes."""
    missing = sorted(archive.roles - {*cluster.roles})
    if "--no-owner" not in archive.options:
        known = tuple(f" {role}" for role in ["", *cluster.roles])
        strange = [entry for entry in archive.entries if not entry.endswith(known)]
        # Its last word stands for all objects of an owner.
        missing += {each.split()[-1]: each.split(" ", 3)[3] for each in strange}.values()
    require(
        not missing,
        f"the server lacks these roles, or the owners of these: {', '.join(missing)}; "
        "`pg_dumpall --globals-only` writes how to make them, --no-owner goes on without",
    )
    if not archive.timescaledb:
        return
    version, there = archive.timescaledb.version, cluster.versions
    preloaded = {True: "yes", False: "no", None: "only a superuser is told"}[cluster.preloaded]
    require(
        cluster.preloaded and there and version in ["?", *there],
        f"it takes TimescaleDB {version} and its preloading (shared_preload_libraries); "
        f"preloaded: {preloaded}; versions: {', '.join(there) or 'none'}",
    )


@contextmanager
def new_database(hub: Database, name: str, create: str, keep: bool = False) -> Iterator[None]:
    """Make a database. What is not whole, since something raised, is dropped, or kept."""
    psql(hub, "Creating the database", f"CREATE DATABASE {name} {create}", FOREVER)
    try:
        yield
    except BaseException:
        if keep:
            log("warning", "What was restored is not whole: it is kept", Database=name)
            raise
        log("warning", "What was restored is not whole: it is dropped", Database=name)
        try:
            drop(hub, name)
        except Failure as error:
            log("error", f"It is left on the server: {error}")
        raise


def drop(hub: Database, name: str) -> None:
    """Drop a database, and end all sessions in it. Raises Failure."""
    psql(hub, "Dropping a database", f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", FOREVER)


def rebuild(target: Database, archive: Archive, jobs: int) -> None:
    """Restore an archive into a new database, with so many jobs at once. Raises Failure."""
    step, many = "Restoring", f"--jobs={jobs}"
    setting = "SELECT 1 FROM pg_settings WHERE name = 'transaction_timeout'"
    argv = ["pg_restore", f"--dbname={target.name}", "--no-password"]
    # pg_restore 17 sets it on older servers, too, which is no reason to stop.
    if archive.pg_restore < 17 or psql(target, step, setting).strip():
        argv.append("--exit-on-error")

    def restore_part(*part: str, options: str = "") -> None:
        """Restore what these options of pg_restore choose."""
        try:
            run(step, [*argv, *part, *archive.options, archive.path], target, options)
        except Failure as error:
            said = str(error)
            other = said.count(": error: ") > said.count('"transaction_timeout"')
            if other or not re.search("ignored on restore: [12]$", said):
                raise

    if archive.timescaledb:
        restore_timescaledb(target, archive, archive.timescaledb, many, restore_part)
    else:
        restore_part(many)


def restore_timescaledb(
    target: Database,
    archive: Archive,
    timescale: Timescale,
    many: str,
    restore_part: Callable[..., None],
) -> None:
    """Restore it in the one order that loses no rows, up to timescaledb_post_restore().

    The order was measured with 2.28.3, 2.29.2 and 2.30.0-dev. many: the option for several jobs
    at once.
    """
    step, entries = "Restoring", archive.entries
    with listing(filter(SCHEMA.match, entries)) as schemas:
        restore_part(schemas)  # the extension may be in one of them
    version = "" if timescale.version == "?" else f"VERSION '{timescale.version}'"
    # One transaction: between two, the extension's own jobs ran at once.
    make = (
        f"CREATE EXTENSION timescaledb WITH SCHEMA {timescale.schema} {version};"
        f" SELECT {timescale.schema}.timescaledb_pre_restore()"
    )
    psql(target, step, make, options=PUBLIC)
    with listing(itertools.filterfalse(SCHEMA.match, entries)) as others:
        restore_part("--section=pre-data", others)

    apart = JOBS if timescale.adopted else re.compile("$")
    with listing(itertools.filterfalse(apart.match, entries)) as catalog:
        restore_part("--section=data", *OF_CATALOG, catalog)
    if timescale.adopted:
        adopt_jobs(target, archive.path, timescale)
    psql(target, step, NUMBER_TABLESPACES, options=PUBLIC)
    restore_part("--section=data", *NOT_OF_CATALOG, many)

    with listing(itertools.filterfalse(timescale.late.__contains__, entries)) as early:
        restore_part("--section=post-data", many, early)
    with listing(filter(timescale.late.__contains__, entries)) as late:
        restore_part(many, late, options=ALL_ROWS)


def adopt_jobs(target: Database, path: str, timescale: Timescale) -> None:
    """Copy TimescaleDB's jobs; those of `adopted` become the restoring role's, and that is said.

    The server may lack such roles, and COPY refuses a regrole that is none. Whose role was gone
    already did not run; it is switched off, lest it runs with more rights than it ever had.
    """
    step, ours = "Restoring the jobs", psql(target, "Looking for jobs", OWNER).strip()
    written = ours.replace("\\", r"\\").encode().decode("latin-1")
    moved = []
    # latin-1, whatever encoding it is in: no byte is lost.
    with tempfile.NamedTemporaryFile("w+", encoding="latin-1", newline="") as file:
        which = ["--data-only", *OF_CATALOG, "--table=bgw_job"]
        read_archive(path, f"--file={file.name}", *which)
        script = file.read()
        jobs, known = copied(script, "bgw_job"), timescale.jobs
        for row, job, owner in zip(jobs.rows, known.values("id"), known.values("owner")):
            off = ""
            if GONE.fullmatch(owner):
                row["scheduled"], off = "f", " (switched off)"
            if owner in timescale.adopted and owner != ours:
                row["owner"] = written
                moved.append(f"{job} of {unquoted(owner)}{off}")
        file.seek(0)
        file.truncate()
        for row in jobs.rows:
            print(*row.values(), sep="\t", file=file)
        file.flush()
        encoding = re.findall(r"SET client_encoding = '(\w+)'", script)[0]
        copy = f"\\copy {jobs.table} ({jobs.columns}) FROM '{file.name}' (ENCODING '{encoding}')"
        psql(target, step, copy, options=PUBLIC)
    if moved:
        text = "Jobs of TimescaleDB are the restoring role's now"
        log("warning", text, Role=unquoted(ours), Jobs=", ".join(moved))


def for_each(
    target: Database, step: str, sql: str, options: str
) -> tuple[list[tuple[str, int, str]], int]:
    """Of each table its name, a number and what went wrong, or ""; and the database's size."""
    told = read_json(target, step, ANSWERS, timeout=FOREVER, options=options, first=sql)
    answers = bytes.fromhex(told["answers"]).decode("utf-8", "surrogateescape")
    return json.loads(answers), told["size"]


def analyze(target: Database, archive: Archive) -> list[str]:
    """Have the planner know the tables. What did not come about, a line each."""
    step = "Not analyzed"
    try:
        if archive.timescaledb:  # to it, a hypertable in a transaction is all its chunks at once
            psql(target, step, "ANALYZE", FOREVER, f"{ALL_ROWS} {WRITING}")
            return []
        answers, _ = for_each(target, step, ANALYZE, WRITING)
    except Failure as error:
        return [str(error)]
    return [f"{table}: not analyzed: {reason}" for table, _, reason in answers if reason]


@dataclasses.dataclass(frozen=True)
class Counted:
    """What is in a restored database."""

    size: int | None  # bytes; None: it was not told
    rows: dict[str, int]  # by table
    missed: list[str]  # what was not counted, a line each


def count_rows(target: Database, archive: Archive) -> Counted:
    """Count what was restored; partitions and chunks with their parents."""
    options = "-c row_security=off"  # an error, not a part
    if archive.timescaledb:
        options += f" {ALL_ROWS}"
    try:
        answers, size = for_each(target, "Not counted", COUNT, options)
    except Failure as error:
        return Counted(None, {}, [str(error)])
    rows, why = collections.Counter[str](), dict[str, str]()
    for table, number, reason in answers:
        rows[table] += number
        if reason:
            why.setdefault(table, reason)
    for table in why:
        del rows[table]
    return Counted(size, dict(rows), [f"{table}: not counted: {why[table]}" for table in why])


# ---- The command restore -------------------------------------------------------------------------

NO_OWNER = ["--no-owner", "--no-acl"]
THERE = "SELECT count(*) FROM pg_database WHERE datname = {}"
# Of databases. pg_has_role: sessions of others a role that is no superuser may not end.
END_OTHERS = """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname IN ({}) AND pid <> pg_backend_pid() AND pg_has_role(usesysid, 'MEMBER');"""
OTHERS = """SELECT string_agg(format('pid %s (%s, of %s)', pid, application_name, usename), ', ')
    FROM pg_stat_activity WHERE datname IN ({}) AND pid <> pg_backend_pid()"""


@dataclasses.dataclass(frozen=True)
class Target:
    """The database that a restore makes, and the name that it is to have."""

    hub: Database  # from where databases are made and named
    scratch: str  # its name until it is whole, counted and can be named
    name: str  # as the command line has it
    taken: bool  # an empty database bears the name; it will be called `before`
    workers: bool  # and has TimescaleDB's extension, so a scheduler

    @property
    def before(self) -> str:
        """What the database is called then whose name this one takes."""
        return f"before_{self.scratch}"


@dataclasses.dataclass
class Due:
    """What makes of a whole database what its name promises, for `psql -d postgres`; "": done."""

    name: str
    work: str  # what has TimescaleDB work in it


def identifier(name: str) -> str:
    """A name, as SQL takes it."""
    return '"{}"'.format(name.replace('"', '""'))


def literal(text: str) -> str:
    """A text, as SQL takes it, whatever standard_conforming_strings is."""
    return "E'{}'".format(text.replace("\\", "\\\\").replace("'", "''"))


def connecting(name: str) -> str:
    """A line for psql. Other names than plain ones might be taken for a connection string."""
    if re.fullmatch(r"\w+", name):
        return rf"\connect {name}"
    value = name.replace("\\", "\\\\").replace("'", "\\'")
    return r"\connect -reuse-previous=on " + identifier(f"dbname='{value}'")


def is_there(hub: Database, name: str) -> bool:
    """Whether there is such a database. Raises Failure where the server knows no such letters."""
    return psql(hub, "Looking at the server", THERE.format(literal(name))).strip() != "0"


def examine_target(s: Settings, name: str) -> Target:
    """What is to be made. Raises Failure if a database with something in it has that name."""
    hub, workers = s.database().named("postgres"), False
    taken = is_there(hub, name)
    if taken:
        there = read_json(s.database().named(name), "Looking at the database", EMPTY)
        require(
            there["empty"],
            f"the database {identifier(name)} is there, and not empty: restore into a new one",
        )
        workers = there["timescaledb"]
    return Target(hub, f"restore_{int(time.time())}", name, taken, workers)


def naming(new: Target, archive: Archive) -> list[str]:
    """The statements that name it, of one transaction: who connects then sees all rows."""
    lines = []
    if new.taken:
        lines.append(f"ALTER DATABASE {identifier(new.name)} RENAME TO {new.before};")
    if archive.timescaledb:  # or who connects before post_restore keeps it on for its life
        lines.append(f"ALTER DATABASE {new.scratch} RESET timescaledb.restoring;")
    return [*lines, f"ALTER DATABASE {new.scratch} RENAME TO {identifier(new.name)};"]


def name_database(new: Target, archive: Archive) -> None:
    """Give it its name, and end the sessions that are in the way. Raises Failure after a minute.

    RENAME has waited 5 s for sessions to end by then, and lets none in meanwhile.
    """
    names = literal(new.scratch)
    if new.taken:
        names += f", {literal(new.name)}"
    query = " ".join([END_OTHERS.format(names), *naming(new, archive)])
    end, told = time.monotonic() + 60 * TIME_SCALE, ""
    for pause in backoff():
        try:
            psql(new.hub, "Not named", query)
            return
        except Failure as error:
            if not is_there(new.hub, new.scratch):  # an answer may get lost
                return
            others = psql(new.hub, "Looking at sessions", OTHERS.format(names)).strip()
            if time.monotonic() > end:
                raise Failure(f"{error}; in the way: {others or 'none now'}") from None
        if others != told:
            log("warning", "Not named yet, waiting for sessions to end ...", Sessions=others)
            told = others
        time.sleep(pause)


def set_properties(new: Target, archive: Archive) -> list[str]:
    """Give it what its archive says of the database. What did not come about, a line each."""
    left = []
    for before, after in archive.properties:
        try:
            psql(new.hub, "Not restored", f"{before}{new.scratch}{after}")
        except Failure as error:
            left.append(f"{before}…{after} {error}")
    return left


def start_workers(there: Database) -> None:
    """Have TimescaleDB's scheduler run in a database. Raises Failure where it does not."""
    step = f"TimescaleDB's scheduler in {there.name}"
    require(
        psql(there, step, START_WORKERS, options=PUBLIC).strip() == "t",
        f"TimescaleDB's scheduler does not run in {there.name}: no worker "
        "is free; see timescaledb.max_background_workers, then start_background_workers()",
    )


def hand_over(s: Settings, new: Target, archive: Archive, due: Due, work: bool) -> list[str]:
    """Name what is whole, then, where TimescaleDB is to WORK in it, tell that so.

    Empties in DUE what is done. What did not come about, a line each, leaves all as it is.
    """
    left, old = [], new.name
    try:
        name_database(new, archive)
        due.name, old = "", new.before
        if archive.timescaledb and work:
            there = s.database().named(new.name)
            go = POST_RESTORE.format(archive.timescaledb.schema)
            psql(there, "timescaledb_post_restore()", go, FOREVER, PUBLIC)
            due.work = ""
            start_workers(there)
    except Failure as error:
        left.append(str(error))
    if new.workers:
        try:
            start_workers(s.database().named(old))
        except Failure as error:
            left.append(str(error))
    return left


def due_for(new: Target, archive: Archive) -> Due:
    """All that there is to do for a database that is whole."""
    lines, work = ["BEGIN;", *naming(new, archive), "COMMIT;"], ""
    if new.workers:
        lines += [connecting(new.before), f"{START_WORKERS};"]
    if archive.timescaledb:
        go = POST_RESTORE.format(archive.timescaledb.schema)
        work = f"{connecting(new.name)}\n{go};"
    return Due("\n".join(lines), work)


def swapping(new: Target, archive: Archive) -> list[str]:
    """What puts it in the old one's place, for `psql -d postgres`; none if it is there."""
    old = unquoted(archive.database)
    if old in ("", new.name):
        return []
    lines = [
        f"To put it in the place of {archive.database}, while nobody is connected to either:",
        "BEGIN;",
        f"ALTER DATABASE {archive.database} RENAME TO {new.before};",
        f"ALTER DATABASE {identifier(new.name)} RENAME TO {archive.database};",
        "COMMIT;",
    ]
    if archive.timescaledb:
        for name in (old, new.before):
            lines += [connecting(name), f"{START_WORKERS};"]
    return lines


def tell(new: Target, archive: Archive, due: Due, made: str, counted: Counted, paused: str) -> None:
    """The command's answer: the rows, what was made, what is left to do by hand.

    made: of what, and how. paused: the jobs of TimescaleDB that are off, as SQL. A terminal gets
    nothing that it obeys; what is piped on, to psql for instance, is exact but for tables' names.
    """
    lines = [f"{number:>14}  {printable(table)}" for table, number in counted.rows.items()]
    lines.append(made)
    if due.name:
        lines += ["It is whole. To name it, while nobody is connected to it:", due.name]
    elif new.taken:
        lines.append(f"The empty one that had this name is called {new.before} now.")
    if due.work:
        if not due.name:
            lines.append("It is whole. To have TimescaleDB's jobs run:")
        lines.append(due.work)
    if archive.timescaledb and paused:
        lines.append(f"To switch its jobs on, in {identifier(new.name)}:")
        lines.append(JOBS_ON.format(archive.timescaledb.schema, paused))
    if not due.name and not due.work:
        lines += swapping(new, archive)
    text = "\n".join(lines)
    if os.isatty(1):
        text = "\n".join(map(printable, text.split("\n")))
    say(text + "\n")


def finish_restore(
    s: Settings, new: Target, archive: Archive, pause: bool, source: tuple[str, str], steps: Steps
) -> list[str]:
    """Complete what is whole, name it, and tell so: also of what a signal leaves to do.

    source: what was restored, and its checksum's state. What did not come about, a line each.
    """
    log("info", "What was restored is whole", Database=new.scratch)
    there, due = s.database().named(new.scratch), due_for(new, archive)
    counted, paused, work = Counted(None, {}, []), "", True
    try:
        left = set_properties(new, archive)  # before anybody finds it under its name
        with steps.timed("analyze"):
            left += analyze(there, archive)
        with steps.timed("count"):
            counted = count_rows(there, archive)
        left += counted.missed
        if archive.timescaledb and pause:
            try:
                paused = psql(there, "Jobs not paused", PAUSE_JOBS, options=PUBLIC).strip()
            except Failure as error:
                left.append(str(error))
                work = False
        left += hand_over(s, new, archive, due, work)
    except BaseException:
        with suppress(Failure):  # what the server was told last may have come about
            if not is_there(new.hub, new.scratch):
                due.name = ""
        raise
    finally:
        called = new.scratch if due.name else identifier(new.name)
        facts = f"{archive.tables} tables"
        if counted.size:
            facts += f", {sum(counted.rows.values())} rows, {sum(steps.seconds.values()):.0f}"
            facts += f" seconds, {counted.size} bytes"
        made = f"Restored {source[0]} into {called}: {facts}; checksum: {source[1]}."
        tell(new, archive, due, made, counted, paused)
    return left


def restore(s: Settings, options: argparse.Namespace) -> int:
    """The command: a new database, whole, or none. Its exit status: 1 if anything is left out."""
    name: str = options.database
    if options.jobs < 1 or not 0 < len(os.fsencode(name)) < 64 or name in ("postgres", "template1"):
        raise WrongSettings("impossible --database or --jobs")
    cluster = examine_cluster(s.database().named("postgres"))
    new, steps = examine_target(s, name), Steps()
    source, checksum, version = options.file, "absent", ""
    with open(source, "rb") if source else tempfile.TemporaryFile(dir=s.backup_path) as file:
        if not source:
            s3 = S3(s, 60)
            backup = chosen(s3, options.name)
            source, version = backup.key, (backup.metadata or {}).get("timescaledb", "")
            checksum = fetch(s3, backup, file, steps)
        archive = examine_archive(path_of(file), NO_OWNER if options.no_owner else [], version)
        require_needs(cluster, archive)
        made = new_database(new.hub, new.scratch, archive.create, options.keep)
        with made, steps.timed("restore"):
            rebuild(s.database().named(new.scratch), archive, options.jobs)
    # From here on nothing drops it.
    left = finish_restore(s, new, archive, options.pause_jobs, (source, checksum), steps)
    if archive.unread:
        left.insert(0, archive.unread)
    for text in left:
        log("error", text)
    return 1 if left else 0


# ---- The command verify --------------------------------------------------------------------------

SCRATCH = [*NO_OWNER, "--no-tablespaces", "--no-publications", "--no-subscriptions"]


def verify(s: Settings, name: str, wait: bool) -> dict[str, Any]:
    """The command: prove a backup. Its report, as README describes it.

    wait: until no backup uses the staging volume. Raises Failure for what says nothing of the
    backup: it could not be had, or the server is away or lacks something.
    """
    s3, steps = S3(s), Steps()
    with staging(s, wait), tempfile.TemporaryFile(dir=s.backup_path) as file:
        backup = chosen(s3, name, s.db_database)
        report: dict[str, Any] = {"object": backup.key, "size": backup.size}
        report["seconds"] = steps.seconds
        try:
            for share in prove(s3, backup, file, steps):
                report |= share
        except Failure as error:
            if steps.current in ("", "download") or " connection " in str(error):
                raise
            report |= {"step": steps.current, "verdict": f"failed: {error}"}
        try:
            remember(s3, os.path.basename(backup.key), report["verdict"])
        except Failure as error:
            log("warning", "Cannot note the verdict", Error=error)
    return report


def prove(s3: S3, backup: Backup, file: IO[bytes], steps: Steps) -> Iterator[dict[str, Any]]:
    """What each step of a proof adds to the report. Raises Failure, of `steps.current`."""
    yield {"sha256": fetch(s3, backup, file, steps)}
    metadata = backup.metadata or {}
    unproven = ["what no dump holds: roles, other databases"]
    if "sha256" not in metadata:
        unproven.append("that no bit of its data flipped: no checksum")
    yield {"not_proven": unproven}
    with steps.timed("read"):
        path = path_of(file)
        archive = examine_archive(path, SCRATCH, metadata.get("timescaledb", ""))
        tables = str(archive.tables)
        yield {"archive_version": archive.format, "tables": archive.tables}
        known = metadata.get("tables", tables)
        require(known == tables, f"it lists {tables} tables, at backup time {known}")
        read_archive(path, "--file=/dev/null")
    yield {"verdict": "readable"}
    if not s3.s.verify_db_host:
        unproven.append("that it restores: VERIFY_DB_HOST is not set")
        return
    counted = restore_scratch(s3.s, archive, steps)
    unproven += counted.missed
    unproven.append("owners, privileges, tablespaces, publications: restored without")
    if archive.timescaledb:
        if archive.timescaledb.jobs.rows:
            unproven.append(
                f"the owners of {len(archive.timescaledb.jobs.rows)} jobs of TimescaleDB"
            )
        unproven.append("timescaledb_post_restore(), which starts the policies")
    verdict = "restored, not all counted" if counted.missed else "restored"
    yield {"verdict": verdict, "database_size": counted.size, "rows": counted.rows}


def drop_scratch(s: Settings) -> Cluster:
    """Drop what a crash of `verify` left on its server; what there is, then and before."""
    hub = s.verify_server()
    cluster = examine_cluster(hub)
    for name, limit in cluster.limits.items():
        # -2: PostgreSQL's own mark of one that was being dropped.
        if limit in (s.mark, -2) and re.fullmatch("verify_[0-9]+", name):
            drop(hub, name)
    return cluster


def restore_scratch(s: Settings, archive: Archive, steps: Steps) -> Counted:
    """Restore into a database of its own, count, and drop it."""
    hub, cluster = s.verify_server(), drop_scratch(s)
    require_needs(cluster, archive)
    number = int(time.time())
    while f"verify_{number}" in cluster.limits:
        number += 1
    scratch = hub.named(f"verify_{number}")
    create = re.sub(f" TABLESPACE = {NAME}", "", archive.create)
    with new_database(hub, scratch.name, f"{create} CONNECTION LIMIT {s.mark}"):
        with steps.timed("restore"):
            rebuild(scratch, archive, 1)
        with steps.timed("count"):
            counted = count_rows(scratch, archive)
    drop(hub, scratch.name)
    return counted


def verified(s3: S3) -> dict[str, dict[str, str]] | None:
    """The verdict and its time of each backup, by name, as PREFIX/verified.json has them.

    None, with a warning: it holds something else. Raises S3Failure.
    """
    known, text = dict[str, dict[str, str]](), b"{}"
    with allowing(404):
        text = s3.call("get_object", Key=s3.key("verified.json"))
    try:
        for name, was in json.loads(text).items():
            known[name] = {"verdict": str(was["verdict"]), "time": str(was["time"])}
    except (ValueError, TypeError, KeyError, AttributeError):
        where = f"{s3.where}: {s3.key('verified.json')}"
        log("warning", f"{where} is left as it is: it holds no verdicts; remove it to begin anew")
        return None
    return known


def remember(s3: S3, name: str, verdict: str) -> None:
    """Note a verdict in PREFIX/verified.json, and forget those of what retention removed."""
    known = verified(s3)
    if known is None:
        return
    known[name] = {"verdict": verdict, "time": moment(int(time.time()))}
    there = {os.path.basename(backup.key) for backup in s3.backups()}
    text = json.dumps({each: known[each] for each in sorted(there & set(known))}, indent=4)
    s3.put(s3.key("verified.json"), text.encode())


# ---- Commands ------------------------------------------------------------------------------------
def moment(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(min(seconds, 2**37)).astimezone().isoformat()


def list_backups(s: Settings, as_json: bool) -> None:
    s3, form = S3(s, 10), "{:<24} {:<26} {:>14} {:<9} {:<9} {:<36} {}"
    found, went = s3.backups(), verified(s3) or {}
    doubts = set[str]().union(*map(doubtful, by_database(found).values()))
    rows: list[dict[str, Any]] = [
        {
            "name": (name := os.path.basename(f.key)),
            "time": moment(f.seconds),
            "size": f.size,
            "checksum": "sha256" in (f.metadata or {}),
            "doubtful": f.key in doubts,
            "verified": went.get(name),
            "database": urllib.parse.unquote((f.metadata or {}).get("database", "")) or None,
        }
        for f in reversed(found)
    ]
    lines = [form.format("NAME", "TIME", "SIZE", "CHECKSUM", "DOUBTFUL", "VERIFIED", "DATABASE")]
    for name, when, size, *facts, proof, database in (row.values() for row in rows):
        how = f"{proof['verdict'].partition(':')[0]} {proof['time']}" if proof else "-"
        lines.append(
            form.format(
                name,
                when,
                size,
                *("yes" if fact else "no" for fact in facts),
                quoted(how).strip('"'),
                quoted(database or "-"),
            )
        )
    say((json.dumps(rows, indent=4) if as_json else "\n".join(lines)) + "\n")


# `next` is NULL for a job that has not run yet: it starts at once.
NEXT_JOBS = """SELECT json_build_object(
    'may_hold_off', coalesce(has_table_privilege(
        to_regclass('_timescaledb_catalog.compression_settings'), '{}'), false),
    'jobs', (SELECT coalesce(json_agg(json_build_object(
            'name', concat_ws(' ', proc_name, job_id, 'of ' || hypertable_name),
            'next', extract(epoch FROM nullif(next_start, '-infinity')),
            'every', extract(epoch FROM schedule_interval)) ORDER BY job_id), '[]')
        FROM timescaledb_information.jobs WHERE scheduled AND job_id >= 1000))"""


def look_at_jobs(s: Settings, server: Namespace, backups: list[Backup]) -> tuple[str, str]:
    """What TimescaleDB's jobs and our dumps do to each other, in words; "note" if there is any.

    backups: this database's; the newest one's hour and duration are taken for those of the next.
    """
    enough = "UPDATE, DELETE, TRUNCATE"  # any of them allows LOCK TABLE … IN SHARE MODE
    if major_version(server.postgresql) >= 17:
        enough += ", MAINTAIN"
    there = look(s.database(), "Looking at the jobs", NEXT_JOBS.format(enough))
    texts = []
    if not there.may_hold_off:
        texts.append(
            f"{s.db_user} may not hold compression off while pg_dump takes its locks (see "
            "README, Least privileges): a dump that it disturbs is made again"
        )
    newest = backups[-1] if backups else Backup(0, "", 0, None)
    took = int((newest.metadata or {}).get("exectime-backup", 0))
    names = [job["name"] for job in there.jobs if meets(job, newest.seconds, took)]
    if names:
        texts.append(
            f"these start while a dump like the newest one ({took} seconds) runs, and may "
            f"wait for it, and readers of their tables behind them: {', '.join(names)}"
        )
    return "; ".join(texts) or f"none of {len(there.jobs)} starts while a dump runs", (
        "note" if texts else "ok"
    )


def meets(job: Mapping[str, Any], began: int, took: int) -> bool:
    """Whether a job starts in the seconds that a dump takes that begins at that time each day."""
    if not began or job["next"] is None:
        return bool(began)
    period: float = min(job["every"] or 86400, 86400)
    into: float = (job["next"] - began) % period  # seconds after a dump's beginning
    return into <= took


def check(s: Settings, max_age: float | None) -> int:  # a line for each peer; exit status
    server, backups, failed = Namespace(size=0, system_identifier=""), list[Backup](), list[str]()

    @contextmanager
    def trying(name: str) -> Iterator[Callable[..., None]]:
        def say(text: str, mark: str = "ok") -> None:
            say(f"{mark:<5} {name}: {' '.join(text.split())}\n")

        try:
            yield say
        except Exception as error:
            failed.append(name)
            say(str(error), "FAIL")

    with trying("settings") as say:
        say(f"{len(SETTINGS)} looked at")
    with trying("colonies") as say:
        if s.colonies_server_host:
            executor = Executor(s)
            odd = list[str]()
            with allowing(403 if executor.owner else -1):  # it may not be there
                executor.running()
                listed = executor.call("getcronsmsg", count=1000, **executor.colony) or []
                odd = executor.odd_crons(listed, executor.others())
            say(f"{executor.url} answers; the executor is {executor.name}")
            for fault in odd:
                say(fault, "warn")
        else:
            say("COLONIES_SERVER_HOST is not set; `serve` needs it, `backup` does not")
    with trying("database") as say:
        server = look_at_database(s)
        say(
            f"{server.database} ({server.size} bytes), PostgreSQL {server.postgresql}, TimescaleDB "
            f"{server.timescaledb or 'none'}, pg_dump {server.pg_dump}"
        )
    with trying("left out") as say:
        there = examine_cluster(s.database())  # of its databases three are templates and ours
        say(
            f"no backup holds the server's {sum(x[:3] != 'pg_' for x in there.roles)} roles ("
            f"pg_dumpall --globals-only does) or its {len(there.limits) - 3} other databases"
        )
    with trying("bucket") as say:
        s3, text = S3(s, 10), os.urandom(32)
        key = s3.key(f"check_{text[:8].hex()}")
        s3.put(key, text)
        try:
            same = s3.call("get_object", Key=key) == text
        finally:
            gone = s3.call("delete_object", Key=key)
        require(same, f"{s3.where}: it gives back something else than it took")
        backups = proven(s3.backups(), server.system_identifier, s.db_database)
        how = "deleted"
        if gone.get("DeleteMarker"):
            how = "marked as deleted (the bucket keeps versions: what is removed still takes room)"
        say(f"{s3.where}: written, read, {how}; {len(backups)} proven backups of this database")
    with trying("staging volume") as say:
        say(look_for_room(s, backups[-1].size if backups else 0, server.size))
    with trying("jobs") as say:
        if getattr(server, "timescaledb", None):
            say(*look_at_jobs(s, server, backups))
        else:
            say("no TimescaleDB, so none of its jobs and policies")
    with trying("newest backup") as say:
        hours = (time.time() - backups[-1].seconds) / 3600 if backups else FOREVER
        age = f"{backups[-1].key} is {hours:.1f} hours old" if backups else "no proven backup"
        require(max_age is None or abs(hours) <= max_age, f"{age}; --max-age is {max_age}")
        say(age)
    return 1 if failed else 0


def command_line() -> argparse.ArgumentParser:
    told = "".join(
        f"\n  {x.name}{f' [{x.also}]' * bool(x.also)}{' *' * (x.kind in SECRET)}"
        f"{f' = {x.default}' * bool(x.default)}\n      {x.meaning}"
        for x in SETTINGS
    )
    parser = argparse.ArgumentParser(
        "backup_executor.py",
        None,
        (__doc__ or "").partition("\n")[0],
        "environment variables ([another spelling]; * a secret: NAME_FILE may name its file; = its "
        f"default; libpq's apply too):{told}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="command", metavar="command")
    verbs.add_parser("serve", help="wait for processes from Colonies and run them (the default)")
    verbs.add_parser("backup", help="one backup now, no Colonies; prints the result").add_argument(
        "--resume", action="store_true", help="make no dump, only finish what earlier runs left"
    )
    verbs.add_parser("list", help="the backups").add_argument("--json", action="store_true")
    verbs.add_parser("check", help="try every setting and every peer").add_argument(
        "--max-age", type=float, metavar="HOURS", help="fail if the newest proven one is older"
    )
    verbs.add_parser("verify", help="prove one").add_argument("name", nargs="?", default="latest")
    verb = verbs.add_parser("restore", help="restore a backup into a new database at DB_HOST")
    which = verb.add_mutually_exclusive_group(required=True)
    which.add_argument("name", metavar="NAME", nargs="?", help="its name in the bucket, or latest")
    which.add_argument("--file", metavar="PATH", help="a local archive")
    verb.add_argument("--database", required=True, metavar="NEW", help="the database to make")
    verb.add_argument("--jobs", type=int, default=4, help="so many at once (default: 4)")
    verb.add_argument("--no-owner", action="store_true", help="leave owners and privileges out")
    verb.add_argument("--pause-jobs", action="store_true", help="leave TimescaleDB's jobs off")
    verb.add_argument("--keep", action="store_true", help="keep what is not whole, as restore_…")
    return parser


signals: list[int] = []


def on_signal(signum: int, _: object) -> None:  # Stop, once; noted should it be swallowed
    if not signals:
        signals.append(signum)
        raise Stop(signum)


def main() -> int:
    options, told = command_line().parse_args(), json.loads(os.environ.get("BACKUP_PROCESS", "{}"))
    command, status = options.command or "serve", 0
    os.umask(0o077)  # dumps are nobody else's
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))  # no core
    for signum in SIGNALS:
        signal.signal(signum, on_signal)
    try:
        colonies = command == "check" and bool(os.environ.get("COLONIES_SERVER_HOST"))
        s3 = not vars(options).get("file")
        s = read_settings(os.environ, command, command == "serve" or colonies, s3)
        for name in ("COLONIES_INSECURE_SKIP_VERIFY", "AWS_S3_INSECURE_SKIP_VERIFY"):
            if getattr(s, name.lower()):
                log("warning", f"{name}: any certificate is accepted")
        if command == "list":
            list_backups(s, options.json)
        elif command == "check":
            status = check(s, options.max_age)
        elif command == "restore":
            status = restore(s, options)
        elif command == "serve":
            executor = Executor(s)
            with suppress(Stop):
                executor.serve()
            executor.leave()
        elif answer := (
            backup(s, options.resume, **told)
            if command == "backup"
            else verify(s, options.name, wait=bool(told))
        ):
            say(json.dumps(answer, indent=4) + "\n")
            failed = answer.get("verdict", "").startswith("failed")
            require(not failed, f"{answer.get('object')}: {answer.get('verdict')}")
        return status
    except Failure as error:
        log("error", str(error))
        return 2 if isinstance(error, WrongSettings) else 1
    except OSError as error:
        log("error", f"{error.filename or 'I/O'}: {error.strerror or error}")
    except Stop as stopped:
        log("warning", f"stopped by {signal.Signals(stopped.args[0]).name}")
    except Exception as error:  # a peer answered what nothing here expects
        log("error", repr(error)[:999], At=[n for _, n in traceback.walk_tb(error.__traceback__)])
    return 1


if __name__ == "__main__":
    while os.open(os.devnull, os.O_RDONLY) < 3:
        pass  # else a file gets the number of a log that somebody has closed
    os._exit(main())  # threads may still be sending after a failure: there is no use in waiting
