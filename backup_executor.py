#!/usr/bin/env python3
"""Colonies Backup Executor: PostgreSQL and TimescaleDB backups in S3, run by Colonies.

What it promises. A process `backup` is closed as successful only when pg_dump has ended well, no
table has lost rows while it took its locks, the archive's table of contents was read back, and S3
has each part as it was sent, and lists it. Nothing partial has a final name. Nothing is removed
that is not provably an old backup of this database, and nothing before the new one is proven. A
finished dump outlasts crashes, and peers that are away.

What happens at night, in this order:

    Executor.serve, round, assign, see_to, Job      a child: `backup_executor.py backup`
    backup, staging, sweep                          alone on the volume; what crashes left
    make_dump, examine_database, require_room       may it begin?
    newest_backup, vouched, last_steady             the last good one, which it is judged by
    dump_every_row, dump_once, Window, seal         the archive, and what it is
    take_roles, roles_beside                        what makes the server's roles, beside it
    encrypt                                         both, where BACKUP_AGE_RECIPIENTS is set
    upload, store, check_stored                     the proof, before anything goes
    finish, prune, plan, retained, judge, remove    then the file, then what is too old
    Executor.attend, tell, conclude, close          its log, signs of life, its result

Where data goes away: files on the volume by Dump.remove, clear, finish, encrypt (the plain one)
and, of a void dump, dump_every_row; old backups by remove, for prune and prune_now, as plan has it;
roles without their archive by remove_roles; an object that is not what was sent by check_stored;
the parts of an upload by abort; check's own small object by check_bucket; databases that we have
made by drop.

The words: a *dump* is a file on the staging volume, a *backup* an object in the bucket. It is
*proven* if its metadata have a SHA-256, the server's system identifier and the database's name, and
*doubtful* if it has less than half the size of the last good one: see judge. An object without
metadata is an older executor's, or a server has forgotten them: its archive's head says whose it
is.

The rooms: errors and waiting, log, settings, programs; S3, retention, the staging volume, a backup;
signing, Colonies, the executor, crons, being told. There the nightly path ends. Then what operators
run: archives, restore, verify, list, check, the command line.
"""

from __future__ import annotations

import base64
import ctypes
import enum
import errno
import fcntl
import gc
import hashlib
import hmac
import io
import json
import os
import random
import re
import resource
import select
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime, timedelta, timezone
from functools import cache, cached_property, partial, reduce
from itertools import accumulate, chain, filterfalse, islice, pairwise
from time import monotonic, sleep
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    import argparse
    from concurrent.futures import Future, ThreadPoolExecutor

__version__ = "1.0.0"

MIB, GIB = 1024**2, 1024**3
BLOCK = 256 * 1024  # bytes read at a time; larger ones cost memory and gain nothing
FOREVER = float("inf")
Answer = TypeVar("Answer")
Fields = dict[str, Any]  # by their names: of a JSON object, or a call's arguments
Action = Callable[[], None]
Program = subprocess.Popen[bytes]

# What an idle executor holds counts, beside a database. So its records are NamedTuples (dataclasses
# take 1.4 MB, measured with Python 3.13), and what only some commands need is imported there.

# ---- Errors and waiting --------------------------------------------------------------------------

# A factor of all intervals, which the tests make small.
TIME_SCALE_TEXT = os.environ.get("BACKUP_TIME_SCALE") or "1"
TIME_SCALE = float(TIME_SCALE_TEXT) if re.fullmatch(r"[0-9]*\.?[0-9]+", TIME_SCALE_TEXT) else 0.0
SHORTEST = 4.0  # seconds: no time limit for a peer's answer gets smaller by it
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Failure(Exception):
    """What went wrong, in words for the operator: which step, which peer, what to look at.

    status: the HTTP status of a peer's answer; 0: it gave none, or no peer is at fault.
    again: whether the same may succeed later.
    """

    def __init__(self, text: str, status: int = 0, again: bool = False):
        super().__init__(text)
        self.status = status
        self.again = again


class WrongSettings(Failure):
    """The settings or the command line ask for what can't be."""


class Busy(Failure):
    """Another program of ours has the staging volume."""


class S3Failure(Failure):
    """S3 refused a request, or gave no answer that can be used."""


class Unfit(S3Failure):
    """S3 does not keep, or list, what backups rest on: another one would fare no better."""


class ColoniesFailure(Failure):
    """Likewise the Colonies server. Its status is 200 where it answered something else."""


class ServerLacks(Failure):
    """A server lacks what a restore takes, or its role may not do it: no word of the backup.

    entry: of its archive, which was refused, if one was: then that is still to be told.
    """

    def __init__(self, text: str, entry: str = ""):
        super().__init__(text)
        self.entry = entry


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
    except Failure as error:
        if error.status not in statuses:
            raise


@contextmanager
def placing(where: str) -> Iterator[None]:
    """Have an OSError say WHERE it was, if it names no file itself."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or where) from None


def explained(error: OSError) -> str:
    """What an OSError says, and what to look at where it is about the staging volume."""
    where = str(error.filename or "I/O")
    volume = os.environ.get("BACKUP_PATH") or "/backups"
    if not f"{where}/".startswith(f"{volume.rstrip('/')}/"):
        return f"{where}: {error.strerror or error}"
    if os.path.basename(where).startswith("tmp"):
        where = volume  # nobody looks for a file that had no name
    advice = f"is it mounted, and may user {os.getuid()} write there?"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "make room there"
    return f"{where}: {error.strerror} (BACKUP_PATH: {advice})"


def time_limit(seconds: float) -> float:
    """Seconds to wait for a peer's answer, as long as BACKUP_TIME_SCALE has it."""
    return max(seconds * TIME_SCALE, min(seconds, SHORTEST))


def later(seconds: float) -> float:
    """What the monotonic clock shows in so many seconds, as BACKUP_TIME_SCALE has it."""
    return monotonic() + seconds * TIME_SCALE


def behind(work: Action) -> threading.Thread:
    """Start a thread, which ends with us. Raises RuntimeError where there is none to be had.

    Signals stay the main one's, which holds them off at times.
    """

    def run_it() -> None:
        """Run in the thread."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        work()

    thread = threading.Thread(target=run_it, daemon=True)
    thread.start()
    return thread


def in_time(seconds: float, work: Callable[[], Answer]) -> Answer:
    """What WORK returns or raises; TimeoutError if it takes longer, even if it only trickles.

    It runs in a thread, which is left behind then: what it waits for has a time limit, too.
    """
    answers = list[Answer]()
    errors = list[BaseException]()

    def attempt() -> None:
        """Run in the thread."""
        try:
            answers.append(work())
        except BaseException as error:
            errors.append(error)

    thread, end = behind(attempt), monotonic() + seconds
    # A signal that comes just as we begin to wait is only noticed when we wake.
    while thread.is_alive() and monotonic() < end:
        thread.join(min(seconds, 1))
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError("no complete answer in time")
    return answers[0]


def threads(many: int) -> ThreadPoolExecutor:
    """So many, to work beside the main one, whose the signals stay.

    One that takes a signal wakes nobody, and breaks in where `start` holds them off.
    """
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(many, "", signal.pthread_sigmask, (signal.SIG_BLOCK, SIGNALS))


def finished(work: Future[Answer]) -> Answer:
    """What a thread's work returns or raises, at its end."""
    from concurrent.futures import wait

    while not wait([work], 1).done:
        pass  # as in `in_time`
    return work.result()


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


def for_itself() -> bool:
    """Whether we are the executor's child, and work for no process."""
    return os.environ.get(CHILD) == "{}"


def quoted(value: object) -> str:
    """A value as logrus writes it: on one line, whatever it holds."""
    text = json.dumps(str(value), ensure_ascii=False)
    if re.fullmatch(r'"[A-Za-z0-9._/@^+-]+"', text):
        return text[1:-1]
    return printable(text)


def printable(text: str) -> str:
    """A text that no terminal obeys: what is not for printing becomes its code point."""
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)


def amount(number: int, what: str) -> str:
    """So many of it: "1 table", "2 tables"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def write(fd: int, text: str) -> None:
    """Write all of a text to a file descriptor. Raises OSError."""
    rest = text.encode("utf-8", "backslashreplace")
    while rest:
        rest = rest[os.write(fd, rest) :]


def say(text: str) -> None:
    """Print an answer of a command to stdout. Raises OSError: nobody would have it."""
    with placing("stdout"):
        write(1, text)


def say_json(answer: object) -> None:
    """Print an answer as JSON. Raises OSError."""
    say(json.dumps(answer, indent=4) + "\n")


def log(level: str, message: str, **fields: object) -> None:
    """A line on stderr as logrus writes it; in a child of the executor also a line for that.

    It never raises: that nobody takes a log is no reason to stop a backup.
    """
    text = redacted(message)
    told = {name: redacted(value) for name, value in fields.items()}
    more = "".join(f" {name}={quoted(told[name])}" for name in told)
    with suppress(OSError):
        if CHILD in os.environ and level != "debug":
            write(1, f"#{json.dumps([level, text + more, text, told])}\n")
        if LEVELS[level] >= LEVELS.get(os.environ.get("LOG_LEVEL", ""), 1):
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            if os.isatty(2):
                write(2, "\r\x1b[K")  # over a bar of `progress`
            write(2, f'time="{now}" level={level} msg={quoted(text)}{more}\n')


info = partial(log, "info")
warn = partial(log, "warning")


def on_terminal() -> bool:
    """Whether somebody looks at a terminal."""
    return os.isatty(2) and CHILD not in os.environ


def columns() -> int:
    """How wide the terminal is at this moment: by itself and COLUMNS, the narrower; else 80."""
    told = os.environ.get("COLUMNS", "")
    known = [int(told)] if re.fullmatch("[1-9][0-9]{0,3}", told) else []
    with suppress(OSError):
        known.append(os.get_terminal_size(2).columns)
    return min(filter(None, known), default=80)  # 0: nobody has told the terminal


def short_size(size: float) -> str:
    """Bytes as people read them, in powers of 1024: "27.7M"."""
    for unit in "BKMGTP":
        if size < 1023.5 or unit == "P":
            break
        size /= 1024
    digits = 1 if size < 99.5 else 0
    return f"{size:.{digits}f}".removesuffix(".0") + unit


def moment(seconds: int) -> str:
    """A time since 1970 as ISO 8601 has it, in local time; one beyond the year 6000 is cut."""
    return datetime.fromtimestamp(min(seconds, 2**37)).astimezone().isoformat()


def short_time(seconds: float) -> str:
    """A time as people read it, in the unit of which there are at least two: "26h"."""
    for unit, many in ("s", 60), ("m", 60), ("h", 24), ("d", 365):
        if abs(seconds) < 2 * many:
            return f"{seconds:.0f}{unit}"
        seconds /= many
    return f"{seconds:.0f}y"


def progress(what: str, total: int) -> Callable[[int], None]:
    """What shows the progress of a long step, when it is called with the bytes that are done.

    total: bytes, as far as they are known; else 0. A terminal shows a bar, a log a line at times.
    What is more than it was to be has no part that is done, and no time that is left.
    """
    begun = last = monotonic()

    def show(done: int) -> None:
        """Show it, if it is time."""
        nonlocal last
        now = monotonic()
        part = 100 * done // total if 0 < done <= total else None
        speed = done / (now - begun + 0.001)
        left = (total - done) / speed if part is not None else 0.0
        if on_terminal():
            with suppress(OSError):
                write(2, "\r\x1b[K" + bar(what, done, total, part, left, speed))
        elif now - last >= PROGRESS_SECONDS * TIME_SCALE:
            last = now
            more = {"Size": f"{done} bytes", "Rate": f"{speed / MIB:.1f} MiB/s"}
            if part is not None:
                more |= {"Of": f"about {total} bytes", "Done": f"{part} %"}
                more["Left"] = f"about {left:.0f} seconds"
            info(what, **more)

    return show


def bar(what: str, done: int, total: int, part: int | None, left: float, speed: float) -> str:
    """The line of `progress` for a terminal: of its facts, the first ones first, what fits."""
    facts = [short_size(done), f"{short_size(speed)}/s"]
    if part is not None:
        facts[0] += f" of {short_size(total)}"
        facts[:0] = [f"{part} %", f"{short_time(left)} left"]
    room = columns() - 1  # in the last column some terminals begin a new line
    while len(", ".join(facts)) > room and len(facts) > 1:
        facts.pop()
    text = ", ".join(facts)
    wide = min(30, room - len(f"{what} [] {text}"))
    if part is not None and wide > 5:
        text = f"{what} [{'#' * (wide * part // 100):<{wide}}] {text}"
    elif wide >= 0:
        text = f"{what}: {text}"
    return text[:room]


# ---- Settings ------------------------------------------------------------------------------------

SECRET = ("secret", "token", "key", "url")  # the kinds for which NAME_FILE may name a file
SECRETS = set[str]()  # the passwords and keys that `read_settings` has read


class Setting(NamedTuple):
    """An environment variable."""

    name: str
    also: str  # another spelling of it, or ""
    kind: str  # how its text is read: see PATTERNS and READERS
    default: str
    meaning: str

    def text(self, environ: Mapping[str, str]) -> str:
        """What the environment, or the file that it names, says. Raises ValueError or OSError."""
        also = self.also or self.name
        text = environ.get(self.name) or environ.get(also) or self.default
        file = environ.get(f"{self.name}_FILE") or environ.get(f"{also}_FILE")
        if self.kind not in SECRET or not file:
            return text
        if text:
            raise ValueError(f"and {self.name}_FILE are both set")
        with open(file, encoding="utf-8", newline="") as opened:
            return opened.read(MIB).removesuffix("\n")


SETTINGS = [
    Setting(*row.split("|"))
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
BACKUP_CRON||text||when Colonies submits `backup`: seconds first, in its server's time zone
BACKUP_CRON_NAME||text|backupcron|the name of its cron; NAME-EXECUTOR, if that is taken
VERIFY_CRON||text||when Colonies submits `verify`: likewise
VERIFY_CRON_NAME||text|verifycron|the name of its cron; likewise
CHECK_CRON||text||when Colonies submits `check`: likewise
CHECK_CRON_NAME||text|checkcron|the name of its cron; likewise
CHECK_MAX_AGE||hours|26|hours that the newest backup may be old when Colonies asks for `check`
BACKUP_MAX_WAIT||hours|23|hours after which Colonies fails what a cron submitted and nobody took
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
AWS_S3_ADDRESSING||addressing||path, virtual or auto; else path with an endpoint, auto without
AWS_S3_ACCESS_KEY|AWS_S3_ACCESSKEY|token||else boto3's own chain: role, web identity, profile
AWS_S3_SECRET_ACCESS_KEY|AWS_S3_SECRETKEY|token||the secret key
AWS_S3_BUCKET_NAME|AWS_S3_BUCKET|text||the bucket; required; made if missing at an AWS_S3_ENDPOINT
AWS_S3_PREFIX||prefix|backups|objects are PREFIX/backup_SECONDS.bak
BACKUP_AGE_RECIPIENTS||recipients||public keys, age's or ssh's, for which backups are encrypted
AGE_IDENTITY_FILE||text||the private key of one, for restore and verify (ssh's: no password)
FULL_BACKUPS||count|3|how many backups to keep
KEEP_DAILY||places|0|and the newest good one of each of so many days
KEEP_WEEKLY||places|0|likewise of weeks
KEEP_MONTHLY||places|0|likewise of months
KEEP_YEARLY||places|0|likewise of years
BACKUP_PATH||text|/backups|the staging volume
VERIFY_DB_HOST||text||the server where `verify` restores; else it only reads the archive
VERIFY_DB_PORT||port|5432|its port
VERIFY_DB_USER||text|postgres|the role that restores there
VERIFY_DB_PASSWORD||secret||its password
HEARTBEAT_URL||url||a dead-man service to tell: GET URL/start, GET URL, POST URL/fail
METRICS_PORT||listen||where `serve` has metrics for Prometheus; HOST:PORT: at that address only
BACKUP_COMPRESSION||compression|auto|as for `pg_dump --compress`; auto: zstd from pg_dump 16 on
BACKUP_ROLES||roles|auto|the server's roles: auto (passwords if readable), no-passwords or off
BACKUP_ALIVE_FILE||text||touched while all is well; else `alive` in the temporary folder
LOG_LEVEL||level|info|debug, info, warning or error
""".strip().splitlines()
]


class Database(NamedTuple):
    """A database, and as whom our programs connect to it."""

    host: str
    port: int
    user: str
    password: str  # "": libpq's own ways (a PGPASSFILE, …)
    name: str
    session: str  # application_name of our sessions, by which the server's are known to be ours
    options: str = ""  # of libpq, for all our sessions there

    def named(self, name: str) -> Database:
        """Another database of the same server."""
        return self._replace(name=name)


class Settings(NamedTuple):
    """SETTINGS by their names in lower case; not set: "", or 0 for a port or a key."""

    colonies_server_host: str
    colonies_server_port: int
    colonies_tls: bool
    colonies_insecure_skip_verify: bool
    colonies_ca_file: str
    colonies_colony_name: str
    colonies_colony_id: str
    colonies_colony_prvkey: int
    colonies_executor_prvkey: int
    colonies_executor_name: str
    colonies_executor_type: str
    backup_cron: str
    backup_cron_name: str
    verify_cron: str
    verify_cron_name: str
    check_cron: str
    check_cron_name: str
    check_max_age: float
    backup_max_wait: float
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
    aws_s3_addressing: str
    aws_s3_access_key: str
    aws_s3_secret_access_key: str
    aws_s3_bucket_name: str
    aws_s3_prefix: str  # without slashes at its ends
    backup_age_recipients: str  # one a line
    age_identity_file: str
    full_backups: int
    keep_daily: int
    keep_weekly: int
    keep_monthly: int
    keep_yearly: int
    backup_path: str
    verify_db_host: str
    verify_db_port: int
    verify_db_user: str
    verify_db_password: str
    heartbeat_url: str
    metrics_port: str
    backup_compression: str
    backup_roles: str
    backup_alive_file: str
    log_level: str

    command: str  # that runs, for the names of its sessions

    @property
    def owner(self) -> str:
        """Whose a journal on the staging volume is; at another address its dump is left alone."""
        return f"colonies-backup-executor/1 {self.db_host}:{self.db_port}/{self.db_database}"

    @property
    def place(self) -> str:
        """Where this installation works; the same for the one that takes its place.

        So two at once that are alike in it drop the database that the other's `verify` works in.
        """
        folder = os.path.realpath(self.backup_path)
        bucket = f"{self.aws_s3_bucket_name}/{self.aws_s3_prefix}"
        return f"{self.colonies_executor_name} {self.owner} {folder} {bucket}"

    def key(self, name: str) -> str:
        """The key of what is called NAME under the prefix."""
        return f"{self.aws_s3_prefix}/{name}" if self.aws_s3_prefix else name

    @property
    def keep(self) -> Keep:
        """How many backups stay."""
        return Keep(
            self.full_backups,
            self.keep_daily,
            self.keep_weekly,
            self.keep_monthly,
            self.keep_yearly,
        )

    @property
    def mark(self) -> int:
        """The connection limit of scratch databases of ours: a number that nobody else chooses."""
        return 10**9 + int(hashlib.sha256(self.place.encode()).hexdigest()[:7], 16)

    def database(self) -> Database:
        """The one that is backed up, and its server the one where backups are restored."""
        tag = hashlib.sha256(f"{self.place} {os.uname().nodename}".encode()).hexdigest()[:8]
        who = f"colonies-{self.command} {tag} {self.colonies_executor_name}/{self.db_database}"
        session = re.sub("[^ -~]", "?", who)[:63]  # a longer one would be cut by the server
        return Database(
            self.db_host, self.db_port, self.db_user, self.db_password, self.db_database, session
        )

    def verify_server(self) -> Database:
        """The database from which `verify` makes its scratch databases."""
        return self.database()._replace(
            host=self.verify_db_host,
            port=self.verify_db_port,
            user=self.verify_db_user,
            password=self.verify_db_password,
        )


HOURS = r"[0-9]{1,6}(\.[0-9]{1,6})?"
# What a text has to look like, and what it is not otherwise; of other kinds: ANYTHING.
PATTERNS = {
    "flag": ("(?i)true|1|yes|false|0|no", "true or false"),
    "count": ("[1-9][0-9]{0,8}", "a number from 1 on"),
    "places": ("[0-9]{1,9}", "a number"),
    "hours": (HOURS, "a number of hours"),
    "token": ("[!-~]+", "printable ASCII"),
    "host": (r"[^\s/@?#\[\]]+", "a host name or address"),
    "server": (
        r"(?i)(https?://)?([^\s/@?#:]+|\[[0-9a-f:.]+])(:\d{1,5})?/?",
        "host[:port], a URL",
    ),
    "url": (
        r"""(?i)https?://([^\s/@?#:]+|\[[0-9a-f:.]+])(:\d{1,5})?([/?][!-"$-~]*)?""",
        "a URL of http or https, in ASCII, without user and fragment",
    ),
    # Some servers store two slashes as one, and list nothing by the prefix that has two.
    "prefix": (r"/*([^\0/]+(/[^\0/]+)*)?/*", "free of //"),
    "listen": (r"(([^\s/@?#:\[\]]+|\[[0-9a-f:.]+]):)?\d{1,5}|\S+://\S+", "a port, or host:port"),
    "compression": (r"auto|none|[0-9]|(gzip|lz4|zstd)(:[0-9a-z=,]+)?", "auto or method:level"),
    "addressing": ("path|virtual|auto", "path, virtual or auto"),
    "roles": ("auto|no-passwords|off", "auto, no-passwords or off"),
    "level": ("debug|info|warning|error", "debug, info, warning or error"),
}
ANYTHING = (r"[^\0]*", "free of NUL")


def as_flag(text: str) -> bool:
    """What a text says that is a flag's."""
    return text.lower() in ("true", "1", "yes")


def as_port(text: str) -> int:
    """A port's number. Raises ValueError."""
    if "://" in text:  # as DB_PORT is, beside a service that is called db
        raise ValueError("is what Kubernetes sets for a service: have enableServiceLinks false")
    if not re.fullmatch("[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise ValueError("is not a port, 1 to 65535")
    return int(text)


def as_authorities(path: str) -> str:
    """The path of a PEM file that can be read. Raises OSError."""
    with placing(path):
        ssl.create_default_context(cafile=path)
    return path


def as_listen(text: str) -> str:
    """[HOST:]PORT with a port that there is. Raises ValueError."""
    as_port(text if "://" in text else text.rpartition(":")[2])
    return text


def as_url(text: str) -> str:
    """A URL; its longest word is a secret, too, since errors repeat it and it may be the token."""
    token = max(re.split("[/?&=]", text)[3:], key=len, default="")
    if len(token) > 15:  # a shorter one is a name, which stands in other places, too
        SECRETS.add(token)
    return text


# A public key, and what ssh-keygen has behind one on its line: a comment, which is no other key.
RECIPIENT = re.compile(
    r"(age1[0-9a-z]+|ssh-(?:rsa|ed25519)[ \t]+[\w+/]+=*(?:[ \t]+(?!age1|ssh-|sk-|ecdsa-)[^\s,]+)*)"
    r"(?:[\s,]+|$)"
)


def as_recipients(text: str) -> str:
    """Public keys, one a line. Raises ValueError, which repeats none: it may be a private one."""
    text = re.sub("(?m)^[ \t]*#.*", "", text)
    found = RECIPIENT.findall(text)
    if not found or RECIPIENT.sub("", text).strip(", \t\r\n"):
        raise ValueError("is not public keys: age1…, ssh-ed25519 …, ssh-rsa …, one a line")
    return "\n".join(found)


def private_key(text: str) -> int:
    """A private key of secp256k1. Raises ValueError, which does not repeat the text."""
    key = int(text, 16) if re.fullmatch("[0-9a-fA-F]{64}", text) else 0
    if not 0 < key < ORDER:
        raise ValueError("is not a private key: 64 hex digits, 1 to n-1")
    return key


READERS: dict[str, Callable[[str], str | float]] = {
    "flag": as_flag,
    "port": as_port,
    "count": int,
    "places": int,
    "hours": float,
    "file": as_authorities,
    "key": private_key,
    "url": as_url,
    "recipients": as_recipients,
    "listen": as_listen,
}


def value_of(setting: Setting, environ: Mapping[str, str]) -> str | float:
    """A setting's value, of its kind. Raises ValueError or OSError."""
    text = setting.text(environ)
    text.encode()  # UnicodeEncodeError, a ValueError, of what is no text
    if setting.kind in SECRET:
        SECRETS.add(text)
    if not text:
        return 0 if setting.kind in ("port", "key") else ""
    pattern, what = PATTERNS.get(setting.kind, ANYTHING)
    if not re.fullmatch(pattern, text):
        raise ValueError(f"is not {what}")
    return READERS.get(setting.kind, str)(text)


def missing(s: Settings, serve: bool, s3: bool) -> list[str]:
    """The settings, or the choices of them ("A or B"), that are needed and not there."""
    needed = []
    if s3:
        needed.append("AWS_S3_BUCKET_NAME")
    if s.aws_s3_access_key or s.aws_s3_secret_access_key:
        needed += ["AWS_S3_ACCESS_KEY", "AWS_S3_SECRET_ACCESS_KEY"]
    if serve:
        needed += [
            "COLONIES_SERVER_HOST",
            "COLONIES_SERVER_PORT",
            "COLONIES_COLONY_NAME or COLONIES_COLONY_ID",
            "COLONIES_COLONY_PRVKEY or COLONIES_EXECUTOR_PRVKEY",
        ]
    return [
        choice
        for choice in needed
        if not any(getattr(s, name.lower()) for name in choice.split(" or "))
    ]


def completed(s: Settings) -> Settings:
    """Settings with what the machine says where they say nothing, in one spelling."""
    endpoint = s.aws_s3_endpoint
    if endpoint and "://" not in endpoint:
        scheme = "https" if s.aws_s3_secure else "http"
        endpoint = f"{scheme}://{endpoint}"
    return s._replace(
        aws_s3_endpoint=endpoint,
        aws_s3_prefix=s.aws_s3_prefix.strip("/"),
        backup_alive_file=s.backup_alive_file or f"{os.environ.get('TMPDIR') or '/tmp'}/alive",
        colonies_executor_name=s.colonies_executor_name or f"backup-{os.uname().nodename}",
    )


def read_settings(
    environ: Mapping[str, str], command: str = "backup", serve: bool = False, s3: bool = True
) -> Settings:
    """The settings, from the environment. Raises WrongSettings, which names all that is wrong.

    serve: what it takes to talk to Colonies is required, too. s3: the bucket is.
    """
    values = Fields()
    wrong = {}
    for setting in SETTINGS:
        name = setting.name.lower()
        values[name] = "?"  # what is wrong is not missing
        try:
            values[name] = value_of(setting, environ)
        except OSError as error:
            wrong[setting.name] = f"cannot be read: {error}"
        except ValueError as error:
            wrong[setting.name] = str(error)
    s = Settings(**values, command=command)
    wrong |= dict.fromkeys(missing(s, serve, s3), "is missing")
    if TIME_SCALE <= 0:
        wrong["BACKUP_TIME_SCALE"] = "is not a number above 0"
    if wrong:
        raise WrongSettings("settings: " + "; ".join(f"{name} {wrong[name]}" for name in wrong))
    return completed(s)


# Names that are others': of Kubernetes' services, the SDK of AWS, and a Colonies server.
FOREIGN = re.compile(r"_SERVICE_(HOST|PORT)|_PORT_\d+_|^AWS_(?!S3_)|^PG|_TLS(KEY|CERT)$")


def misspelt(environ: Mapping[str, str]) -> list[str]:
    """The variables that nobody reads, but that nearly have the name of a setting, as sentences."""
    import difflib  # 0.4 MB, which an idle executor does without

    known = set[str]()
    for setting in SETTINGS:
        for name in filter(None, (setting.name, setting.also)):
            known |= {name, f"{name}_FILE"} if setting.kind in SECRET else {name}
    found = []
    for name in sorted(environ.keys() - known):
        swapped = [each for each in known if sorted(each) == sorted(name)]
        near = difflib.get_close_matches(name, known, 1, 0.9) or swapped
        if near and not FOREIGN.search(name):
            found.append(f"{name} is no setting, nobody reads it: is {near[0]} meant?")
    return found


# A cron expression's fields with their bounds, and their names, as servers of both generations have
# them. None reads fewer fields, but for @daily and the like.
CRON_FIELDS = {
    "second": (0, 59),
    "minute": (0, 59),
    "hour": (0, 23),
    "day of the month": (1, 31),
    "month": (1, 12),
    "day of the week": (0, 6),
}
CRON_NAMES = dict(
    re.findall(
        r"(\w+)=(\d+)",
        "sun=0 mon=1 tue=2 wed=3 thu=4 fri=5 sat=6 jan=1 feb=2 mar=3 apr=4 may=5 jun=6 jul=7 aug=8 "
        "sep=9 oct=10 nov=11 dec=12",
    )
)
CRON_WORDS = re.compile("@(yearly|annually|monthly|weekly|daily|midnight|hourly|every .+)")


def cron_fault(expression: str) -> str:
    """Why a Colonies server refuses a cron expression; "" where it takes it."""
    plain = re.sub(r"^(CRON_)?TZ=\S+ ", "", expression).lower()
    fields = re.sub("[a-z]+", lambda name: CRON_NAMES.get(name[0], name[0]), plain).split()
    if CRON_WORDS.fullmatch(plain):
        return ""
    if len(fields) != len(CRON_FIELDS):
        return f"it takes six fields ({', '.join(CRON_FIELDS)}), not {len(fields)}"
    for field, (what, (low, high)) in zip(fields, CRON_FIELDS.items()):
        for span in field.split(","):
            ends = re.fullmatch(r"(?:[*?]|(\d+)(?:-(\d+))?)(?:/0*[1-9]\d*)?", span)
            first = int(ends[1] or low) if ends else -1
            if not ends or not low <= first <= int(ends[2] or first) <= high:
                return f"{field!r} is no {what}, {low} to {high}"
    return ""


# What everybody tries first. To hide these would hide nothing, and our own words with it, by which
# people are alerted.
GUESSES = {"backup", "backups", "database", "file", "password", "postgres", "upload"}


def redacted(said: object) -> str:
    """Others' words without our secrets, in whatever form they come back, and without NUL.

    A Colonies server refuses NUL, and fails the process without a word.
    """
    text = str(said).replace("\0", "").strip()
    for secret in sorted(SECRETS - GUESSES, key=len, reverse=True):
        if len(secret) > 3:  # a shorter one is no secret, and stands in every other word
            for form in (secret, repr(secret)[1:-1], quote(secret, safe="")):
                text = text.replace(form, "***")
    return text


# ---- Programs ------------------------------------------------------------------------------------

PR_SET_PDEATHSIG = 1  # of prctl(2)


def start(argv: Sequence[str], env: Mapping[str, str], **more: Any) -> Program:
    """Start a program, from a list and never by a shell. It dies with us, even by kill -9.

    Its stdin is empty, unless MORE, which is for Popen, says otherwise; its stdout is a pipe.
    """
    # Looked up here: in the child a lock of another thread's may be held for ever.
    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl
    # A Stop amid fork() is swallowed by what Python runs there (os.register_at_fork), or comes
    # when the program runs and nobody knows it: signals wait until it is known.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def die_with_parent() -> None:
        """Run in the child, before the program."""
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # a thread's are held off all along
        if os.getppid() != parent:
            os._exit(1)

    program = None
    try:
        program = subprocess.Popen(
            argv,
            env=env,
            stdout=subprocess.PIPE,
            preexec_fn=die_with_parent,
            start_new_session=True,
            **{"stdin": subprocess.DEVNULL, **more},
        )
    except OSError as error:
        if error.filename != argv[0]:
            raise
        needed = "PostgreSQL's client programs, of the server's major version or later, have"
        if argv[0] == "age":
            needed = "that program (Debian's package age) has"
        text = f"{argv[0]} cannot be started: {error.strerror}: {needed} to be on PATH"
        raise Failure(text) from None
    finally:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except Stop:
            if program:
                stop(program, signal.SIGKILL)
            raise
    return program


def stop(program: Program, signum: int, grace: float = 4) -> None:
    """End a program: by a signal, and by SIGKILL if it runs on for GRACE seconds."""
    program.send_signal(signum)
    with suppress(subprocess.TimeoutExpired):
        program.wait(grace)
    program.kill()
    program.wait()


# What of our environment a program gets, and libpq's, but for what would win over DB_HOST.
PASSED_ON = re.compile(r"LC_|(PATH|HOME|LANG|TZ|TMPDIR|LD_LIBRARY_PATH)$")
LIBPQS = re.compile("PG(?!(HOSTADDR|SERVICE)$)")


def environment(database: Database | None, options: str = "") -> dict[str, str]:
    """The variables of a program: few, and libpq's only if it connects to a DATABASE.

    options: more of libpq's PGOPTIONS ("-c name=value").
    """
    env = {}
    for name, value in os.environ.items():
        libpqs = database and LIBPQS.match(name)
        if libpqs or PASSED_ON.match(name):
            env[name] = value
    if "LC_ALL" in env:  # it would win over LC_MESSAGES
        env["LANG"] = env.pop("LC_ALL")
    env["LC_MESSAGES"] = "C"  # their words are read
    if database is None:
        return env
    env.setdefault("PGCONNECT_TIMEOUT", "30")
    env |= {
        "PGHOST": database.host,
        "PGPORT": str(database.port),
        "PGUSER": database.user,
        "PGDATABASE": database.name,
        "PGAPPNAME": database.session,
        "PGOPTIONS": f"{env.get('PGOPTIONS', '')} {database.options} {options}",
    }
    if database.password:
        env["PGPASSWORD"] = database.password
    return env


# What psql repeats of a statement that was refused.
LINE = re.compile(r"(?m)^LINE \d+: .*\n *\^$\n?")
# Of what pg_restore says all but this: what it tells with --verbose, without which it does not say
# at which entry it failed; statements; a server's details and context, which show rows. What stays
# beside its own: what the loader says of it, of memory, and of each address but a host's first.
CHATTER = re.compile(
    r"(?m)^(?!\S*pg_restore: (error|warning|hint|detail|from TOC entry|symbol lookup|/)|"
    "connection to server at |out of memory$).*\n?"
)
# A row's, as a server's message has it, in whatever language; it may go on in the next line. No
# text of it takes longer than one pass. The setting is Refusals'; an SQLSTATE stays.
VALUE = re.compile(
    r'(?m)((?::\s+|\bval\w+ |:  [ !#-~]*[^ -~\n"][^"\n]*)"|[„“«»])(?!\W?transaction_timeout)'
    r'.*?(?=" is out of range|"?(?: \(\w{5}\))?$)'
)


def without_values(said: str) -> str:
    """What a server said, without what may be a row's."""
    return VALUE.sub(r"\1…", said)


def in_one(lines: Iterable[str]) -> str:
    """Lines as one: all of it, or its first and last 2 kB."""
    said = "; ".join(lines).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return said if len(said) <= 4096 else f"{said[:2048]} […] {said[-2048:]}"


def excerpt(stderr: bytes) -> str:
    """What a program said, without secrets: all else of it, or its first and last 2 kB.

    The database's own secrets are in statements: a subscription's password for one. The reason
    stands at the beginning, before a statement that may name thousands of tables (pg_dump), or at
    the end, after as many warnings (pg_restore).
    """
    said = redacted(stderr.decode("utf-8", "replace"))
    if "pg_restore: " in said:
        said = without_values(CHATTER.sub("", said))
    return in_one([LINE.sub("", said).strip()])


# pg_dump's words about TimescaleDB's catalog, each time; they mean --data-only (14 to 18).
CIRCULAR = rb"pg_dump: warning: there are circular .*\n(pg_dump: (?!warning|error).*\n)*"


def run(
    step: str,
    argv: Sequence[str],
    database: Database | None = None,
    options: str = "",
    timeout: float = FOREVER,
    tick: Action | None = None,
    heed: list[str] | None = None,
    stdin: bytes = b"",
    errors: Any = subprocess.PIPE,
    slowest: float = 1,
) -> str:
    """Run a program to its end; its stdout.

    database: where it connects to, if it does; options: of libpq there. timeout: seconds. tick: is
    called each second meanwhile (each SLOWEST), more often at first; what it raises stops the
    program. heed: what it warns of, if all goes well, is logged and added here. stdin: what it
    reads there. errors: an empty file for its stderr, which others may read meanwhile.

    Raises Failure, with the program's own words, unless it exits with 0.
    """
    log("debug", "Running", Step=step, Argv=" ".join(argv))
    # No pipe: after a time limit communicate() forgets what that had no room for (Python 3.11).
    with open(os.memfd_create("stdin"), "w+b") as given:
        given.write(stdin)
        given.seek(0)
        program = start(argv, environment(database, options), stderr=errors, stdin=given)
    end, pause = monotonic() + timeout, 0.1
    try:
        while True:
            try:
                stdout, stderr = program.communicate(timeout=pause)
                break
            except subprocess.TimeoutExpired:
                pause = min(pause * 1.5, slowest)
            if tick:
                tick()
            where = f" from {database.host}:{database.port}" if database else ""
            text = f"{step}: {argv[0]}: no answer{where} in {timeout:g} seconds"
            require(monotonic() <= end, text)
    finally:
        stop(program, signal.SIGINT)  # which has the server end what it does, too
    if stderr is None:
        errors.seek(0)
        stderr = errors.read()
    status = program.returncode
    how = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
    require(not status, f"{step}: {argv[0]}: {how}: {excerpt(stderr)}")
    if heed is not None:
        warns = excerpt(re.sub(CIRCULAR, b"", stderr))
        if warns:
            warn(f"{argv[0]} warns", Step=step, Said=warns)
            heed += [warns]
    return os.fsdecode(stdout)  # in whatever encoding: no byte is lost


# Options of our sessions, against what the server, a role or a database sets: no limit but ours;
# and nobody's functions in place of PostgreSQL's. A NULL in an array is none with array_nulls off,
# and a standby has no serializable transactions.
UNHINDERED = (
    "-c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 "
    r"-c default_transaction_read_only=off -c default_transaction_isolation=read\ committed "
    "-c array_nulls=on"
)
# To compile a query of a catalog takes longer than it saves: of 20,000 tables pg_dump took 8.6 s,
# and with this in PGOPTIONS 7.2 s (Debian's 15.18; means of three).
NO_JIT = "-c jit=off"
PLAIN = f"{UNHINDERED} {NO_JIT} -c search_path=pg_catalog"


# A connection string, which leaves the rest to the environment. An index that is made says nothing
# for long, and routers on the way forget who does that in minutes (AWS: in 350 s). Where a network
# goes dead, who waits for an answer ends 2 minutes later; by default TCP first asks in 2 hours.
ALIVE = "keepalives_idle=60 keepalives_interval=15 keepalives_count=4"
PSQL = ["psql", f"--dbname={ALIVE}", "-XAtqw", "-vON_ERROR_STOP=1"]


def script(*queries: str) -> bytes:
    """What psql is to read on stdin, for the server to run each of these as it stands.

    An argument list shows to everybody on the machine. What is several statements stays one
    transaction, as it would be with --command, and psql obeys nothing in it: a backslash, say, in
    what an archive has for a statement.
    """
    line = r"SELECT convert_from(decode('{}', 'hex'), getdatabaseencoding()) \gexec"
    return "".join(f"{line.format(os.fsencode(query).hex())}\n" for query in queries).encode()


def psql(
    database: Database,
    step: str,
    query: str,
    timeout: float = 120,
    options: str = "",
    first: str = "",
    tick: Action | None = None,
    rows: bytes = b"",
) -> str:
    """What a query answers, without headings and alignment.

    No function of the database's own runs, but what it has for logins. first: a statement to run
    before it, in a transaction of its own. tick: as for `run`. rows: for COPY, each with its end.
    """
    stdin = script(*filter(None, (first, query))) + rows
    return run(step, PSQL, database, f"{PLAIN} {options}", timeout, tick, stdin=stdin)


def read_json(database: Database, step: str, query: str, **more: Any) -> Any:
    """The JSON that a query answers."""
    return json.loads(psql(database, step, query, **more))


def major_version(text: str) -> int:
    """17 of "17.2", "17beta1", "17.2 (Debian 17.2-1)"; 0 if there is none."""
    found = re.search(r"\d+", text)
    return int(found[0]) if found else 0


# ---- S3 ------------------------------------------------------------------------------------------

PATIENCE = 15 * 60  # seconds for which S3 is waited for
REQUEST_SECONDS = 5 * 60  # that one attempt may take in all, also where its answer trickles in
TRANSFER_SECONDS = 60 * 60  # the same for a part or a range
NAMES = 10_000  # of a bucket are looked at, at most
LOOKS = 8  # that run at once; as many of the newest are looked at, whatever the index says
INDEX = "backup_index.jsonl"  # a cache beside the backups; anybody may remove it
ROLES = ".roles.sql"  # the end of the name that roles have beside `….bak`
AGE, AGE_HEAD = ".age", b"age-encryption.org/"  # behind both, if encrypted; how those bytes begin
AGE_ARMOR = "-----BEGIN AGE ENCRYPTED FILE-----"  # how its texts begin, by -a

# What has to be in an answer. Where it is not, something else than S3 answered.
EXPECTED = {
    "create_multipart_upload": "UploadId",
    "upload_part": "ETag",
    "complete_multipart_upload": "ETag",
    "head_object": "ContentLength",
    "list_objects_v2": "IsTruncated",
}
# S3's error codes that mean "later", whatever the HTTP status is.
BUSY = ("RequestTimeout", "BadDigest", "IncompleteBody")
# Errors of botocore that come before anything is sent, and come again.
HOPELESS = ("SSLError", "PartialCredentialsError", "ParamValidationError")
# Where no keys are set: a role's agent may not be up yet, or has newer ones than boto3 has read.
LATE = ("NoCredentialsError", "CredentialRetrievalError", "ExpiredToken")
SKEW = 15 * 60  # seconds that a clock may be off for AWS; HeadObject's 403 says not why
# What to look at, by S3's error codes (HeadObject's are statuses) and botocore's errors.
REMEDIES = {
    "SSLError": "AWS_S3_SECURE, AWS_S3_CA_FILE",
    "EndpointConnectionError": "AWS_S3_ENDPOINT: is it there, and let through?",
    "ConnectTimeoutError": "AWS_S3_ENDPOINT: is it there, and let through?",
    "NoCredentialsError": "AWS_S3_ACCESS_KEY, AWS_S3_SECRET_ACCESS_KEY, or this machine's role",
    "CredentialRetrievalError": "AWS_S3_ACCESS_KEY is not set: is the role's agent there?",
    "InvalidAccessKeyId": "AWS_S3_ACCESS_KEY",
    "SignatureDoesNotMatch": "AWS_S3_SECRET_ACCESS_KEY",
    "AuthorizationHeaderMalformed": "AWS_S3_REGION",
    "PermanentRedirect": "AWS_S3_REGION, AWS_S3_ENDPOINT",
    "IllegalLocationConstraintException": "AWS_S3_REGION",
    "RequestTimeTooSkewed": "this machine's clock, or S3's",
    "NoSuchBucket": "AWS_S3_BUCKET_NAME",
    "NoSuchUpload": "does a rule, or somebody, remove the bucket's unfinished uploads?",
    "AccessDenied": "README, Least privileges",
    "403": "AWS_S3_ACCESS_KEY; README, Least privileges",
}
# The first boto3 that leaves out the checksums of its own, which break some servers, where it is
# asked to. Ours is the MD5 of each part.
BOTO3 = (1, 36)
# What is in the text of an SSLError that means no more than that the connection was cut, in its
# handshake or while a body was sent (seen with botocore 1.44.8 and Python 3.11).
CUT_OVER_TLS = re.compile(r"UNEXPECTED_EOF|EOF occurred|closed \(EOF\)")


def number_in(metadata: Mapping[str, str], name: str) -> int | None:
    """The number that an object's metadata tell by this name, as far as they do."""
    text = metadata.get(name, "")
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


class Backup(NamedTuple):
    """An object of the bucket that has a backup's name, PREFIX/backup_SECONDS.bak or ….bak.age."""

    seconds: int  # of its name, since 1970, by the clock of the executor that made it
    key: str  # the whole key
    size: int  # bytes
    # Its own, the names in lower case; {} is what older executors wrote. None: S3 does not show
    # them, so nothing may be concluded, and the object is left alone.
    metadata: dict[str, str] | None
    etag: str = ""  # as listed, bare; "" where that is not known
    written: datetime | None = None  # as listed, by the clock of S3
    version: str = ""  # its VersionId, where the bucket keeps versions
    locked: str = ""  # until when Object Lock keeps that, in words; "" where it does not

    @property
    def name(self) -> str:
        """Its name, by which verdicts and later backups go."""
        return os.path.basename(self.key)

    @property
    def known(self) -> dict[str, str]:
        """Its metadata, as far as there are any."""
        return self.metadata or {}

    @property
    def facts(self) -> tuple[str, int, str, float]:
        """What a listing tells of it, as the index has that. For those that have a time."""
        return self.key, self.size, self.etag, self.written.timestamp() if self.written else 0

    @property
    def database(self) -> str:
        """The name of its database; "" where that is not known."""
        return unquote(self.known.get("database", ""))

    @property
    def server(self) -> str:
        """The system identifier of its server; "" where that is not known."""
        return self.known.get("system-identifier", "")

    @property
    def short_server(self) -> str:
        """The end of that, as people are shown it: one server in a million has the same."""
        return self.server[-6:]

    @property
    def label(self) -> str:
        """What somebody called it; "" where nobody did."""
        return unquote(self.known.get("label", ""))

    @property
    def before(self) -> list[str]:
        """Names of the last ones before shrinks that were normal when it was made, as few as fit.

        Whatever somebody wrote there, it is passed on: AWS has room for 2 kB of metadata.
        """
        return re.findall(r"backup_[0-9]{1,18}\.bak(?:\.age)?", self.known.get("before", ""))[:12]

    @property
    def encrypted(self) -> bool:
        """Whether it is, by its name."""
        return self.key.endswith(AGE)

    @property
    def plain_size(self) -> int:
        """The bytes of its archive: never more than its own, whatever its metadata say."""
        return min(number_in(self.known, "plain-size") or self.size, self.size)


Backups = list[Backup]


# How a deleted object is not gone, in a bucket that keeps versions.
HIDDEN = "hidden, not removed: the bucket keeps it as an old version"
OLDER = "removed, but its name has an older version"
LOCKED = "not removed: locked"


def body(answer: Any) -> bytes:
    """In place of botocore's own `content`, which reads an answer without an end on and on."""
    read = [answer._content or b"", *islice(answer.raw.stream(1024), 8192)]
    require(len(read) <= 8192, "an answer of 8 MiB, or more")
    whole = answer._content = b"".join(read)
    return whole


def small_object(answer: Fields) -> bytes:
    """The body of an answer, its first 16 MiB at most. Raises what botocore does if it is cut."""
    return b"".join(islice(answer["Body"].iter_chunks(MIB), 16))


def plain_etag(answer: Fields) -> str:
    """An answer's ETag as its bare text; "" where it has none."""
    return str(answer.get("ETag", "")).strip('W/"')


def locked(head: Fields) -> str:
    """Until when Object Lock keeps what HeadObject answered of; "" where it does not, or is mute.

    AWS tells it who has s3:GetObjectRetention and s3:GetObjectLegalHold.
    """
    until = head.get("ObjectLockRetainUntilDate")
    if head.get("ObjectLockLegalHoldStatus") == "ON":
        return "while there is a legal hold"
    if until and until > datetime.now(timezone.utc):
        return f"until {moment(int(until.timestamp()))}"
    return ""


def shown(found: Backup, head: Any) -> Backup:
    """A backup with what HeadObject's answer tells of it, if that is of what was listed."""
    if not head or found.etag not in ("", plain_etag(head)):
        return found._replace(metadata=None)
    return found._replace(
        metadata=head["Metadata"],
        etag=plain_etag(head),
        version=head.get("VersionId", ""),
        locked=locked(head),
    )


def as_time(text: str) -> Any:
    """A time in an answer. dateutil, botocore's, takes two thirds of what a listing costs."""
    from botocore.utils import parse_timestamp

    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00"))
    except Exception:  # another form of it, or whatever else there is
        return parse_timestamp(text)


def session_of(s: Settings) -> Any:
    """boto3's session. Raises whatever boto3 raises."""
    import boto3
    import botocore.session

    core = botocore.session.get_session()
    parsers = core.get_component("response_parser_factory")
    parsers.set_parser_defaults(timestamp_parser=as_time)
    return boto3.Session(s.aws_s3_access_key, s.aws_s3_secret_access_key, botocore_session=core)


def content_md5(digest: bytes) -> str:
    """An MD5 as the header Content-MD5 spells it."""
    return base64.b64encode(digest).decode()


def status_of(answer: Fields) -> int:
    """The HTTP status of an answer; 0 where there is none."""
    return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def may_pass(status: int, code: str) -> bool:
    """Whether a request that failed so may succeed later."""
    if code in BUSY or status in (409, 412, 429):
        return True
    if status:
        return status >= 500 and status != 501  # 501: it can't do this, ever
    return code not in HOPELESS


class S3:
    """The bucket that the settings name.

    Every request leaves through `call`, which repeats it while that can help. botocore is told to
    try once: so there is one place that waits, and one deadline.
    """

    def __init__(self, s: Settings, patience: float = PATIENCE):
        """Prepare a client; nothing is sent yet.

        patience: seconds for which a request is repeated where its caller says nothing else.

        Raises Failure where boto3 is missing or too old, or does not like its own settings.
        """
        self.s, self.patience = s, patience
        self.key = s.key  # of what has a name under the prefix
        self.date = ""  # of its last answer, by its clock, as HTTP has it
        self.there: dict[str, Any] = {}  # of the last listing: when what has this key was written
        self.verdicts = ""  # the ETag of those that it gave last; "": it had none
        # What HeadObject has shown of backups, by what was listed: to us, and to those who wrote
        # the index (None: it was not read).
        self.seen: dict[Backup, Backup] = {}
        self.index: dict[Backup, Backup] | None = None
        self.sure = True  # of what is known; False: it has shown something else, see `confirmed`
        self.where = f"S3 at {s.aws_s3_endpoint or 'AWS'}, bucket {s.aws_s3_bucket_name}"
        self.client: Any = None  # boto3's; None where it is to look for credentials anew
        gc.disable()  # a fifth less work: what boto3 loads is no garbage
        try:
            self.client = self.connected(s)
        except ImportError as error:
            text = "install boto3 {}.{} or later for {}".format(*BOTO3, sys.executable)
            raise Failure(f"{error}: {text}") from None
        except Exception as error:
            if type(error).__name__ not in LATE:
                raise Failure(f"{self.where}: boto3: {redacted(error)}") from None
        finally:
            gc.enable()

    def connected(self, s: Settings) -> Any:
        """boto3's client. Raises whatever boto3 raises."""
        import warnings

        import boto3
        import botocore.config
        import botocore.exceptions
        import urllib3

        if tuple(map(int, re.findall(r"\d+", boto3.__version__)[:2])) < BOTO3:
            raise ImportError(f"boto3 {boto3.__version__} is too old")
        # What the network, S3 or what answers in its place can cause; all else is our mistake.
        self.causes: tuple[type[Exception], ...] = (
            botocore.exceptions.BotoCoreError,
            botocore.exceptions.ClientError,
            urllib3.exceptions.HTTPError,
            OSError,
            RuntimeError,  # of `in_time`: there is no thread for it
            Failure,
        )
        botocore.awsrequest.AWSResponse.content = property(body)
        botocore.loaders.OrderedDict = dict  # for its models: 4 MB less
        style = s.aws_s3_addressing or ("path" if s.aws_s3_endpoint else "auto")
        config = botocore.config.Config(
            retries={"total_max_attempts": 1},
            connect_timeout=10,
            read_timeout=time_limit(60),
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"payload_signing_enabled": False, "addressing_style": style},
        )
        bundle = os.environ.get("AWS_CA_BUNDLE")
        trusted = s.aws_s3_ca_file or bundle or ssl.get_default_verify_paths().cafile or True
        if s.aws_s3_insecure_skip_verify:
            warnings.simplefilter("ignore")  # our own log said it
            trusted = False
        elif trusted == bundle:
            as_authorities(bundle)  # of a file that is not there boto3 says so at each request
        return session_of(s).client(
            "s3",
            s.aws_s3_region,
            endpoint_url=s.aws_s3_endpoint or None,
            config=config,
            verify=trusted,
        )

    def call(
        self,
        verb: str,
        patience: float = FOREVER,
        take: Any = small_object,
        **arguments: Any,
    ) -> Any:
        """Make one request; repeat it, with growing pauses, while that can help.

        verb: a method of boto3's client, for example "head_object".
        patience: seconds after which no further attempt begins, if they are fewer than our own.
        take: reads an answer that has a body, anew for each attempt; what it returns is returned.

        Returns boto3's answer, or what TAKE made of it. Raises S3Failure; Failure where a file of
        ours could not be read or written, which is no fault of S3 and is not repeated.
        """
        end = later(min(patience, self.patience))
        large = "PartNumber" in arguments or "Range" in arguments
        limit = time_limit(TRANSFER_SECONDS if large else REQUEST_SECONDS)
        attempt = partial(self.attempt, verb, take, arguments)
        for tries, pause in enumerate(backoff(), 1):
            try:
                return in_time(limit, attempt)
            except self.causes as error:
                failure = self.failure(verb, error)
            if not failure.again or monotonic() + pause > end:
                raise failure
            if tries == 3:
                warn("S3 is away, trying again ...", Error=failure)
            sleep(pause)

    def attempt(self, verb: str, take: Any, arguments: Fields) -> Any:
        """One attempt of `call`. Raises what its `causes` are, and what is a mistake of ours."""
        client = self.client = self.client or self.connected(self.s)
        method = getattr(client, verb)  # outside: that there is none would be our mistake
        if verb == "upload_part":
            arguments["Body"].seek(0)  # it was read, if only for its MD5
        begun, answer = monotonic(), Fields()
        try:
            answer = method(Bucket=self.s.aws_s3_bucket_name, **arguments)
        except self.causes as error:
            answer = getattr(error, "response", None) or answer
            raise
        except Exception as error:  # its parsers meet what they don't expect: int() of a list, …
            raise Failure(f"botocore cannot read its answer: {error!r}") from None
        finally:
            self.date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
            log(
                "debug",
                "S3 answered",
                Verb=verb,
                Key=arguments.get("Key", ""),
                Status=status_of(answer),
                Seconds=f"{monotonic() - begun:.3f}",
            )
        require(EXPECTED.get(verb, "ResponseMetadata") in answer, "its answer says nothing")
        return take(answer) if "Body" in answer else answer

    def failure(self, verb: str, error: Exception) -> S3Failure:
        """What a failed attempt comes to. Raises Failure where it is a file of ours that failed."""
        if isinstance(error, OSError) and error.filename:
            raise Failure(explained(error))
        response = getattr(error, "response", None) or {}  # a ClientError has one
        status = status_of(response)
        code = response.get("Error", {}).get("Code") or type(error).__name__
        look_at = self.remedy(status, code, response)
        text = f"{self.where}: {verb}: {redacted(error)}" + (f" ({look_at})" if look_at else "")
        cut = code == "SSLError" and CUT_OVER_TLS.search(str(error))
        late = code in LATE and not self.s.aws_s3_access_key
        if late:
            self.client = None
        return S3Failure(text, status, bool(cut) or late or may_pass(status, code))

    def remedy(self, status: int, code: str, answer: Fields) -> str:
        """What to look at after a failure, by its answer if there is one; "": nobody knows."""
        import email.utils  # an idle executor does without it

        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        hint = REMEDIES.get(code, "")
        region = headers.get("x-amz-bucket-region") or answer.get("Error", {}).get("Region") or ""
        if re.fullmatch("[a-z0-9-]{1,40}", region) and region != self.s.aws_s3_region:
            hint = f"AWS_S3_REGION: it says {region}"
        with suppress(ValueError, TypeError):  # it has no Date, or none that can be read
            ahead = time.time() - email.utils.parsedate_to_datetime(headers.get("date")).timestamp()
            if code == "RequestTimeTooSkewed" or (status == 403 and abs(ahead) > SKEW):
                how = "ahead of" if ahead > 0 else "behind"
                hint = f"this machine's clock is {short_time(abs(ahead))} {how} S3's"
        if status // 100 == 3:
            hint = f"{hint}; {REMEDIES['SSLError']}".removeprefix("; ")
        return hint

    def put(self, key: str, data: bytes, **more: Any) -> Any:
        """Write a small object, with the Content-MD5 that AWS asks for where it locks objects.

        more: what else `call` takes, whose answer is returned.
        """
        md5 = content_md5(hashlib.md5(data, usedforsecurity=False).digest())
        return self.call("put_object", Key=key, Body=data, ContentMD5=md5, **more)

    def delete(self, key: str, version: str, patience: float = FOREVER) -> str:
        """Remove an object; "", or why what it held is not gone for good. Raises S3Failure.

        version: its VersionId, as S3 answered it; "" where it did not. Without it, or where that
        one may not go (a policy, a lock), a bucket that keeps versions but hides the object.
        """
        removed = None
        if version:
            with allowing(400, 403, 405, 501):
                removed = self.call("delete_object", patience, Key=key, VersionId=version)
        if removed:
            return OLDER if self.head(key, patience) else ""
        gone = self.call("delete_object", patience, Key=key)
        over = gone.get("DeleteMarker") and (version or gone.get("VersionId") != "null")
        return HIDDEN if over else ""  # a marker that is "null" took the place of what was "null"

    def head(self, key: str, patience: float = FOREVER) -> Any:
        """HeadObject's answer, its metadata's names in lower case; None where there is no KEY."""
        with allowing(404):
            found = self.call("head_object", patience, Key=key)
            metadata = {name.lower(): text for name, text in found["Metadata"].items()}
            return found | {"Metadata": metadata}
        return None

    def backups(self) -> Backups:
        """All that has a backup's name under the prefix, oldest first, with its metadata."""
        found = self.names()
        known = self.known(found)
        unknown = [each for each in found if each not in known]
        looks = [partial(self.looked_at, each) for each in unknown]
        known |= zip(unknown, at_once("Looking at the backups", LOOKS, looks))
        return [known[each] for each in found]

    def names(self) -> Backups:
        """The same without metadata: nothing but the listing is asked for.

        Anybody who may write to the bucket can put millions of such names there. So only some are
        looked at: the newest that are not of the future (a clock may have been wrong).
        """
        import heapq  # an idle executor does without it

        most = max(NAMES, 3 * self.s.full_backups)
        soon = time.time() + 24 * 60 * 60
        found = heapq.nlargest(most, self.listed(), key=lambda each: (each.seconds <= soon, each))
        if len(found) == most:
            warn(f"{self.where}: {most} names are looked at, no more")
        return sorted(found)

    def listed(self) -> Iterator[Backup]:
        """What ListObjectsV2 says of the names that are a backup's; `there`: of roles, too."""
        prefix = self.key("backup_")
        name = re.compile(re.escape(prefix) + r"([0-9]{1,18})\.(bak|roles\.sql)(?:\.age)?")
        self.there, last, more = {}, "", True
        while more:
            before = last
            page = self.call("list_objects_v2", Prefix=prefix, StartAfter=last)
            for item in page.get("Contents", []):
                last = item["Key"]
                match = name.fullmatch(last)
                if match and last != before:  # a server may begin with that one
                    etag, written = plain_etag(item), item.get("LastModified")
                    if len(self.there) < 2 * NAMES:
                        self.there[last] = written
                    if match[2] == "bak":
                        yield Backup(int(match[1]), last, item["Size"], None, etag, written)
            more = page["IsTruncated"]
            require(last > before or not more, f"{self.where}: its listing does not go on")

    def looked_at(self, found: Backup) -> Backup:
        """A backup with its metadata, if S3 shows them, and they are of what was listed."""
        with allowing(400, 403, 405):  # it is not ours to look at
            looked = shown(found, self.head(found.key))
            if looked.metadata is not None and found.etag and found.written:
                self.seen[found] = looked
            return looked
        return found

    def known(self, found: Backups) -> dict[Backup, Backup]:
        """What is known of these names, oldest first, without a look at each.

        The index saves the looks where there are many. It is a hint: what is to be removed, or
        fetched as the `latest`, is looked at.
        """
        if self.index is None and len(found) > LOOKS:
            self.index = self.read_index(found[:-LOOKS])
        return (self.index or {}) | self.seen

    def read_index(self, found: Backups) -> dict[Backup, Backup]:
        """What the index tells of those that are listed as they were when it was written.

        Anybody may have written it: no more is taken in than is asked for. Where it is none, {}.
        """
        listed, told, text = {each.facts: each for each in found}, dict[Backup, Backup](), b""
        try:
            with allowing(403, 404):
                text = self.call("get_object", 10, Key=self.key(INDEX))
            for line in io.BytesIO(text):
                *facts, metadata = json.loads(line)
                require(all(isinstance(x, str) for x in metadata.values()), "odd metadata")
                each = listed.get(tuple(facts))
                if each:
                    told[each] = each._replace(metadata=metadata)
        except Exception as error:
            where = f"{self.where}: {self.key(INDEX)}"
            warn(f"{where} is of no use, each backup is looked at", Error=error)
            return {}
        return told

    def write_index(self) -> None:
        """Note what is known for those who come later, where there are many. For `backup` alone.

        Two that write at once replace facts by facts.
        """
        if self.index is None:
            return
        known = (self.index | self.seen).values()
        text = "".join(f"{json.dumps([*each.facts, each.metadata])}\n" for each in known)
        try:
            self.put(self.key(INDEX), text.encode(), patience=0)
        except Failure as error:
            warn("Cannot write the index of the backups", Error=error)

    def confirmed(self, known: Backup, patience: float = FOREVER) -> Backup:
        """A backup that is to go, as HeadObject shows it now. patience: as of `call`.

        One that it has shown already is not asked for again, unless the bucket keeps versions:
        only there a lock may have come. Raises Failure where it shows other metadata than we
        think, and for all others then: what we go by was wrong. The next one begins anew, without
        what the index tells.
        """
        if self.sure and known._replace(metadata=None) in self.seen:
            return known
        head = self.head(known.key, patience)
        now = shown(known, head) if head else known  # somebody else has removed it
        if now.metadata != known.metadata:
            self.index, self.sure = {}, False
        require(self.sure, f"{self.where}: {known.key}: S3 shows metadata that it had not before")
        return now

    def beginning(self, found: Backup) -> bytes:
        """The first bytes, 4 kB at most, of an object without metadata, as `backups` found it.

        Failure: it is another one by now, or the server gives something else than was asked for.
        """
        end = min(found.size, 4096)
        if not end:
            return b""  # there is no such range
        answer, data = self.call(
            "get_object",
            10,
            lambda answer: (answer, answer["Body"].read(end)),
            Key=found.key,
            Range=f"bytes=0-{end - 1}",
        )
        same = found.etag in ("", plain_etag(answer)) and not answer["Metadata"]
        asked = answer.get("ContentRange") == f"bytes 0-{end - 1}/{found.size}"
        text = f"{self.where}: {found.key}: it gives something else than it listed"
        require(same and asked, text)
        return bytes(data)


# ---- Retention -----------------------------------------------------------------------------------

HEADS = 100  # archives' beginnings that one backup reads: one small request for each


def by_database(found: Backups) -> dict[tuple[str, str], Backups]:
    """The proven ones, oldest first, by their server's system identifier and their database."""
    whose: dict[tuple[str, str], Backups] = {}
    for backup in found:
        if backup.known.get("sha256"):
            whose.setdefault((backup.server, backup.database), []).append(backup)
    return whose


def proven(found: Backups, system: str, database: str) -> Backups:
    """The proven backups of this database, oldest first."""
    return by_database(found).get((system, database), [])


class Keep(NamedTuple):
    """How many backups stay: the newest, and the newest good one of each of the last periods."""

    newest: int
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0


# The names of a backup's periods, for strftime, in local time.
PERIODS = {"daily": "%Y-%m-%d", "weekly": "%G-W%V", "monthly": "%Y-%m", "yearly": "%Y"}
DOUBTFUL = "doubtful: less than half"
LABEL_MOST = 200  # bytes: a third of what AWS has room for, when each of them is %XX
Verdicts = Mapping[str, Mapping[str, Any]]  # see `verified`
Rows = Mapping[str, int]  # of tables


def is_over(until: str, now: float) -> bool:
    """Whether the last day of a keep-until is, in local time. Raises ValueError: it is none."""
    if until == "forever":
        return False
    if not re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", until):
        raise ValueError(until)
    datetime.fromisoformat(until)  # is there such a day?
    return until < time.strftime(PERIODS["daily"], time.localtime(now))


def keep_fault(label: str | None, until: str | None) -> str:
    """Why no backup can be made that is kept so; "" where one can. None: not asked for."""
    if until is None:
        return "" if label is None else "a label takes keep-until: a last day, or forever"
    if label and not (label.isprintable() and len(label.encode()) <= LABEL_MOST):
        return f"the label is no text of one line and {LABEL_MOST} bytes"
    try:
        over = is_over(until, time.time())
    except ValueError:
        return f"keep-until {until[:40]!r} is neither YYYY-MM-DD nor forever"
    return f"keep-until {until} is over" if over else ""


def held(backup: Backup, now: float) -> str:
    """Why a backup stays by itself, as somebody wants it; "": it counts like any other."""
    until = backup.known.get("keep-until")
    if until is None:
        return ""
    try:
        over = is_over(until, now)
    except ValueError:
        return f"its keep-until cannot be read: {until!r}"
    return "" if over else f"kept until {until}: {backup.label}"


def restored(backup: Backup, verdicts: Verdicts) -> bool:
    """Whether the last verify of a backup restored it."""
    was = verdicts.get(backup.name, {})
    return str(was.get("verdict")).startswith("restored")


def rows_of(backup: Backup, verdicts: Verdicts) -> Rows | None:
    """The rows of its largest tables, as a verify that restored it found them; None: not known."""
    rows = verdicts.get(backup.name, {}).get("rows")
    plain = isinstance(rows, dict) and all(isinstance(many, int) for many in rows.values())
    return rows if plain and restored(backup, verdicts) else None


def smaller(old: Backup, new: Backup, times: int) -> bool:
    """Whether an earlier backup has more than so many times the size of a later one.

    Where they are known to be compressed otherwise, it is their databases' sizes that tell.
    """
    before, after = old.plain_size, new.plain_size
    if len({each.known.get("compression") for each in (old, new)} - {None}) > 1:
        own = [number_in(each.known, "database-size") or 0 for each in (old, new)]
        if all(own):
            before, after = own
    return after * times < before


# By what its metadata say, a backup is judged though those before it are gone. `make_dump` decides
# it (`vouched`, `last_steady`, `steady_from`), `metadata_of` writes it, `judge` and they read it:
#   steady  its own size: it was half of the last good one, or more
#   normal  the same, where a shrink before it had become normal
#   after   the name of the last good one, where it was less than half of that
#   before  the names of the last good ones before shrinks that had become normal
# The first one has none of them, nor has one that was made when nobody knew the last good one.
class Judged(NamedTuple):
    """What the sizes of a database's backups say of them."""

    doubts: set[str]  # the keys of the doubtful ones
    last: Backup | None  # the last good one
    since: Backups  # the doubtful ones since then
    rows: Rows  # of the last good one of which they are known
    before: Backups  # the last good one before each shrink that became normal


def judge(backups: Backups, verdicts: Verdicts, nights: int, now: float) -> Judged:
    """Find the doubtful ones among a database's proven backups, oldest first.

    One is doubtful if it is smaller than half of the last good one. Not if it was `steady` when it
    was made: else one that was large years ago, and is kept, would make all doubtful after a slow
    shrink. Nor if a verify found in it half of the rows of each table, or more.

    NIGHTS of them in a row are the new normal as soon as one restored, but not one that is nearly
    empty: an emptied database restores, too. Nearly empty is less than a tenth of the rows, or of
    the size less than a quarter, where nobody knows the rows of the time before. However one became
    normal, by its rows too, the last good one before stays until there is one of its size again. So
    nothing that became normal by mistake costs it, nor does a second shrink. The next ones are
    steady, and name it: so the new normal lasts when what made it so is gone.
    """
    good, since, before = Backups(), Backups(), Backups()
    rows: Rows = {}
    normal: Backup | None = None  # the last of those SINCE that restored
    for backup in backups:
        found = rows_of(backup, verdicts)
        if not good or is_steady(backup) or not smaller(good[-1], backup, 2):
            good.append(backup)
            since, normal = [], None
        else:
            since.append(backup)
            if is_filled(good[-1], backup, rows, verdicts):
                normal = backup
            more = normal_ones(since, normal, 0 if is_sound(rows, found) else nights, now)
            if more:
                before.append(good[-1])
                good += more
                since, normal = [], None
        before = [old for old in before if smaller(old, good[-1], 2)]
        rows = rows_of(good[-1], verdicts) or rows
    doubts = {backup.key for backup in backups} - {backup.key for backup in good}
    doubts -= since_shrinks(good, backups, before)
    return Judged(doubts, next(reversed(good), None), since, rows, before)


def since_shrinks(good: Backups, backups: Backups, before: Backups) -> set[str]:
    """Add to those BEFORE shrinks those that good ones name; what is normal since them."""
    normal, told = set[str](), {name for each in good for name in each.before}
    for each in backups:
        named, last = each.name in told, good[-1]
        if named and smaller(each, last, 2) and each not in before:
            before.append(each)
        if each.known.get("after") in told and not smaller(last, each, 2):
            normal.add(each.key)
    return normal


def is_steady(backup: Backup) -> bool:
    """Whether its metadata, not another's that were copied, say that it was good when made.

    Since a shrink by another word: older versions would let those before go.
    """
    return str(backup.size) in (backup.known.get("steady"), backup.known.get("normal"))


def is_sound(before: Rows, rows: Rows | None) -> bool:
    """Whether ROWS are known to be half of those of each table of BEFORE, or more."""
    if not before or rows is None:
        return False
    return all(rows.get(table, 0) * 2 >= many for table, many in before.items())


def normal_ones(since: Backups, normal: Backup | None, nights: int, now: float) -> Backups:
    """Doubtful ones that are like the one that restored, if so many make it normal; else none."""
    if not normal or sum(not held(each, now) for each in since) < nights:
        return []
    return [each for each in since if not smaller(normal, each, 2)]


def is_filled(last: Backup, backup: Backup, before: Rows, verdicts: Verdicts) -> bool:
    """Whether a doubtful backup restored, with more than next to nothing of the last good one."""
    rows = rows_of(backup, verdicts)
    if before and rows is not None:
        return sum(rows.values()) * 10 >= sum(before.values())
    return restored(backup, verdicts) and rows != {} and not smaller(last, backup, 4)


def promising(judged: Judged, verdicts: Verdicts, nights: int) -> bool:
    """Whether doubtful ones lack nothing to be normal but a verify that restores the newest."""
    since, last = judged.since, judged.last
    if not last or len(since) < nights or any(restored(each, verdicts) for each in since):
        return False
    return bool(judged.rows) or not smaller(last, since[-1], 4)


def reasons(
    ours: Backups, verdicts: Verdicts, keep: Keep, now: float
) -> Iterator[tuple[Backup, str]]:
    """Those of a database's proven backups that stay, and why; some for several reasons."""
    judged = judge(ours, verdicts, keep.newest, now)
    sorts: dict[bool, Backups] = {False: [], True: []}  # the good ones, the doubtful ones
    proofs = dict[bool, Backup]()
    for backup in ours:
        why, is_bad = held(backup, now), backup.key in judged.doubts
        if why:
            yield backup, why
        else:
            sorts[is_bad].append(backup)
        if restored(backup, verdicts):
            proofs[is_bad] = backup
    newest = "newest" if any(keep[1:]) else "proven"
    for is_bad, why in ((False, newest), (True, DOUBTFUL)):
        for backup in sorts[is_bad][-keep.newest :]:
            yield backup, why
    # The doubtful have places of their own, too: without the verdicts what was normal is doubtful.
    for tier, form in PERIODS.items():
        for sort in sorts.values():
            last = {time.strftime(form, time.localtime(min(x.seconds, 2**37))): x for x in sort}
            for period in islice(reversed(last), getattr(keep, tier)):
                yield last[period], f"{tier} {period}"
    for backup in judged.before:
        yield backup, "the last before a shrink that lasts"
    for backup in proofs.values():
        yield backup, "the last that a verify restored"


def retained(
    ours: Backups, verdicts: Verdicts | None, keep: Keep, now: float, made: str = ""
) -> dict[str, str]:
    """Why each of a database's proven backups, oldest first, stays, by key; "": it goes.

    verdicts: None: they cannot be read, so whatever may be the last that was restored stays.
    made: the new one's key; it stays, however old its name is. All depends on these arguments, and
    on the time zone, alone.
    """
    whys = dict.fromkeys((backup.key for backup in ours), "")
    for backup, why in reasons(ours, verdicts or {}, keep, now):
        before = whys[backup.key]
        whys[backup.key] = f"{before}, {why}" if before else why
    if verdicts is None:
        for key, why in whys.items():
            whys[key] = why or "it may be the last that a verify restored"
    if made in whys:
        whys[made] = whys[made] or "the new one"
    return whys


def is_outgrown(old: Backup, newer: Backups) -> bool:
    """Whether these are newer than an old one, and none of them is smaller than half of it."""
    return old.seconds < newer[0].seconds and not any(smaller(old, each, 2) for each in newer)


def outdated(
    found: Backups, ours: Backups, verdicts: Verdicts | None, newest: int, now: float
) -> Backups:
    """What has no metadata, and is old enough to go if it is this database's: see `strangers`.

    Older than the NEWEST ones of OURS, which are proven, none of them smaller than half of it, and
    not the last that a verify restored.
    """
    counting = [backup for backup in ours if not held(backup, now)][-newest:]
    if verdicts is None or len(counting) < newest:
        return []
    proof, old_ones = 0, []
    for backup in ours:
        if restored(backup, verdicts):
            proof = backup.seconds
    for old in found:
        last = old.seconds > proof and restored(old, verdicts)
        if old.metadata == {} and is_outgrown(old, counting) and not last:
            old_ones.append(old)
    return old_ones


# What an archive of pg_dump -Fc begins with, by WriteHead in PostgreSQL's pg_backup_archiver.c:
# PGDMP, the format's version (1.12 to 1.16 are those of PostgreSQL 9.0 to 18), the size of an int
# and of an offset, 1 for "custom", the compression (an int; a byte from 1.15 on), seven ints of
# local time; the database's name and the server's version, each behind its length. An int is a sign
# and four bytes, the lowest first; a text that is missing has the length -1, so another sign.
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
    rest = head[fixed.end() :] if fixed else b""
    texts = []
    for _ in ("database", "server version"):
        size = int.from_bytes(rest[1:5], "little")
        text = rest[5 : 5 + size]
        if rest[:1] != b"\0" or len(text) < size or not text or b"\0" in text:
            return "", ""
        try:
            texts.append(text.decode())
        except UnicodeDecodeError:
            return "", ""
        rest = rest[5 + size :]
    return texts[0], texts[1]


def unlike(head: bytes, database: str, postgresql: str) -> str:
    """Why an archive that begins so is not this database's; "" where it may well be.

    Another major version of the server is another server: pg_upgrade and a restore make a new
    one, with a system identifier of its own, whose backups count apart.
    """
    name, version = archive_origin(head)
    if head.startswith(AGE_HEAD):
        return "an encrypted one"
    if not name:
        return "no archive of pg_dump"
    if name != database:
        return f"an archive of database {name!r}"
    if major_version(version) != major_version(postgresql):
        return f"an archive of PostgreSQL {version}"
    return ""


def strangers(s3: S3, aged: Backups, twin: bool, made: Dump) -> dict[str, str]:
    """Which of these objects without metadata stay, and why, by key.

    A server may have forgotten the metadata (`rclone serve s3` does when it restarts), so these may
    be another database's. What tells is the archive's own head, unless there is a TWIN, another
    server's database of this name that has backups here. More than HEADS are looked at by lot, so
    that none is passed over for ever. When S3 goes away, the rest is not asked for.
    """
    why = {}  # "" for one that is this database's
    otherwise = f"only {HEADS} are looked at"
    chances = random.sample(aged, min(HEADS, len(aged)))
    if twin:
        otherwise, chances = "another server's database of this name has backups here", []
    for old in chances:
        try:
            why[old.key] = unlike(s3.beginning(old), made.database, made.postgresql)
        except Failure as error:
            why[old.key] = f"not looked at: {error}"
            if error.again:
                otherwise = why[old.key]
                break
    stay = {}
    for old in aged:
        reason = why.get(old.key, otherwise)
        if reason:
            stay[old.key] = f"no metadata: {reason}"
    return stay


def why_gone(old: Backup) -> str:
    """Why retention lets a backup go."""
    if not old.metadata:
        return "no metadata; its archive names this database"
    until = old.known.get("keep-until")
    return "proven, but none of those that are to be kept" + (f"; {until} is over" if until else "")


def remove(s3: S3, old: Backup, patience: float) -> str:
    """Remove a backup, with a line in the log; "", or why it is not gone for good.

    One that is locked is not even hidden: so a later backup finds and removes it when it may.
    patience: as of `call`. Raises Failure.
    """
    if not old.locked:
        old = s3.confirmed(old, patience)
    if old.locked:
        return f"{LOCKED} {old.locked}"
    still = s3.delete(old.key, old.version, patience)
    said = f"An old backup is {still}" if still else "Removed an old backup"
    info(said, Key=old.key, Why=why_gone(old))
    return still


def remove_all(s3: S3, backups: Backups, kept: dict[str, str]) -> Backups:
    """Remove backups; those that are gone or hidden.

    KEPT, why which is kept, has what is not gone for good then.
    """
    gone = []
    patience = FOREVER
    for old in backups:
        try:
            still = remove(s3, old, patience)
        except Failure as error:
            warn("Cannot remove an old backup", Key=old.key, Error=error)
            still = f"not removed: {error}"
            if error.again:
                patience = 0  # S3 was waited for: what it still refuses the next backup removes
        if still:
            kept[old.key] = still
        if still in ("", HIDDEN):
            gone.append(old)
    locks = sum(kept.get(old.key, "").startswith(LOCKED) for old in backups)
    if locks:
        info("Object Lock keeps old backups", Objects=locks)
    return gone


def known_backups(s3: S3, new: str = "") -> Backups:
    """What is in the bucket, as far as it is known; a warning says of what it is not.

    Raises Unfit where a listing lacks the NEW one: `list`, `latest` and retention go by that.
    """
    for pause in [*islice(backoff(), 4), 0.0]:  # a listing may lag behind
        try:
            found = s3.backups()
        except Exception as error:
            warn("Removing none: cannot list them", Error=error)
            return []
        if not new or len(found) >= NAMES or any(each.key == new for each in found):
            break
        sleep(pause)
    else:
        text = f"{s3.where}: {new} is there, but not in the listing of {s3.key('backup_')}…"
        raise Unfit(f"{text}: look at AWS_S3_PREFIX, and at what the server makes of it")
    unknown = sum(backup.metadata is None for backup in found)
    if unknown:
        warn("Leaving alone what cannot be looked at", Objects=unknown)
    return found


def misled(s3: S3, newest: Backups) -> bool:
    """Whether the index, which is forgotten then, tells other metadata of these than S3."""
    for each in newest:
        listed = each._replace(metadata=None)
        if s3.index and listed in s3.index and s3.looked_at(listed).metadata != each.metadata:
            warn("The index is wrong, each backup is looked at", Key=each.key)
            s3.index = {}
            return True
    return False


UNDER_WAY = timedelta(days=1)  # how long roles may well be there before their archive is


def beside(key: str) -> str:
    """The key of the roles that belong to an archive's key."""
    name, _, age = key.rpartition(".bak")
    return f"{name}{ROLES}{age}"


def archive_beside(name: str) -> str:
    """The key of the archive that a key of roles belongs to."""
    archive, _, age = name.rpartition(ROLES)
    return f"{archive}.bak{age}"


def remove_roles(s3: S3, name: str, whose: Mapping[str, str]) -> bool:
    """Remove roles if their metadata say all of WHOSE, and their archive is gone.

    False: they stay, since they have no metadata, so may be anybody's. Raises S3Failure.
    """
    head = s3.head(name)
    metadata = head["Metadata"] if head else {}
    known = metadata.get("backup-id")
    if not known or not whose.items() <= metadata.items():
        return bool(known or not head)
    archive = s3.head(archive_beside(name))
    if not archive or archive["Metadata"].get("backup-id") != known:
        still = s3.delete(name, head.get("VersionId", ""))
        info(f"Roles without an archive: {still or 'removed'}", Key=name)
    return True


def roles_left(s3: S3, new: str) -> list[str]:
    """Keys of roles whose archive is gone, by a crash or by hand, or comes yet; 100 at most.

    By the last listing. None that another executor's upload has just put: all are a day older than
    the NEW ones, by the clock of S3. Raises S3Failure.
    """
    before, there = s3.call("head_object", Key=new)["LastModified"] - UNDER_WAY, s3.there
    left = [
        key
        for key, written in there.items()
        if key.endswith((ROLES, ROLES + AGE)) and archive_beside(key) not in there
        if written and written < before
    ]
    return random.sample(left, min(HEADS, len(left)))


def prune_roles(s3: S3, made: Dump, gone: Backups) -> None:
    """Remove this database's roles whose archives are GONE, or were lost before.

    What goes wrong is a warning, and the next backup's to do.
    """
    database = quote(made.database, safe="")
    whose = {"system-identifier": made.system_identifier, "database": database}
    try:
        left = roles_left(s3, made.roles) if made.roles else []
        names = [beside(old.key) for old in gone if "roles-sha256" in old.known] + left
        unknown = [name for name in names if not remove_roles(s3, name, whose)]
        if unknown:
            what = "Leaving alone roles without metadata: look whether they hold passwords"
            warn(what, Objects=len(unknown), Some="; ".join(unknown[:5]))
    except Exception as error:
        warn("Cannot remove old roles", Error=error)


def verified(s3: S3) -> dict[str, Fields] | None:
    """The verdict and its time of each backup, by name, as PREFIX/verified.json has them.

    And what else `remember` notes, which may be anything: older versions do not. None, with a
    warning: it holds something else. Raises S3Failure.
    """
    known, text = dict[str, Fields](), b"{}"
    s3.verdicts, key = "", s3.key("verified.json")
    with allowing(404):
        s3.verdicts, text = s3.call(
            "get_object", FOREVER, lambda it: (plain_etag(it), small_object(it)), Key=key
        )
    try:
        for name, was in json.loads(text).items():
            known[name] = was | {"verdict": str(was["verdict"]), "time": str(was["time"])}
    except Exception:
        where = f"{s3.where}: {key}"
        warn(f"{where} is left as it is: it holds no verdicts; remove it to begin anew")
        return None
    return known


def known_verdicts(s3: S3) -> Verdicts | None:
    """What `verified` tells; None, with a warning, where that is not to be had."""
    try:
        return verified(s3)
    except Failure as error:
        warn("What verify said of the backups is not known", Error=error)
    return None


def new_normals(ours: Backups, verdicts: Verdicts, keep: Keep, now: float, made: str) -> list[str]:
    """What is to be said, once, of shrinks that have become normal since the one before MADE."""
    earlier = [backup for backup in ours if backup.key != made]
    then = dict(verdicts)
    for name, was in verdicts.items():
        with suppress(ValueError, TypeError):  # somebody else wrote it
            noted = datetime.fromisoformat(was["time"]).timestamp()
            if earlier and noted > earlier[-1].seconds:  # none is noted while a backup is made
                del then[name]
    before = judge(earlier, then, keep.newest, now).before
    return [
        f"The size of {keep.newest} backups, one of which restored, is the new normal; {old.key}, "
        "the last one of more than twice that, stays until there is one of its size again"
        for old in judge(ours, verdicts, keep.newest, now).before
        if old not in before
    ]


def confirm_rest(s3: S3, ours: Backups, goes: Backups, verdicts: Verdicts | None) -> None:
    """Before some go, look at the last good one, which stays; if that is small, at all of OURS.

    Those that go are looked at in any case, but what the index says of others may be forged. After
    a surprise nothing goes.
    """
    last = judge(ours, verdicts or {}, s3.s.full_backups, time.time()).last
    if not last or not goes:
        return
    try:
        for each in ours if any(smaller(old, last, 2) for old in goes) else [last]:
            s3.confirmed(each)
    except Failure as error:
        s3.sure = False
        warn("Removing none: what stays is not what it seemed", Error=error)


class Plan(NamedTuple):
    """What retention is to do."""

    goes: Backups
    kept: dict[str, str]  # by key; why
    said: list[str]  # what is to be told


def plan(s3: S3, made: Dump, found: Backups) -> Plan:
    """What retention lets go of FOUND, what of this database stays and why, and what is amiss.

    made: the dump whose backup is the new one, or one without a key: there is none.
    """
    whose = by_database(found)
    ours = whose.pop((made.system_identifier, made.database), [])
    new, keep, now = made.filepath_s3[1:], s3.s.keep, time.time()
    # Where there are no more than stay, verdicts decide nothing.
    verdicts = known_verdicts(s3) if len(found) > keep.newest else {}
    kept = retained(ours, verdicts, keep, now, new)
    goes = [backup for backup in ours if not kept[backup.key]]
    for old in goes:
        del kept[old.key]
    if DOUBTFUL in kept.get(new, ""):
        warn("The new backup is doubtful: half as large", Key=new)
    said = new_normals(ours, verdicts or {}, keep, now, new)
    for line in said:
        warn(line)
    aged = outdated(found, ours, verdicts, keep.newest, now)
    others = strangers(s3, aged, made.database in [name for _, name in whose], made)
    if others:
        some = "; ".join(f"{key}: {others[key]}" for key in list(others)[:5])
        what = "Leaving alone what has no metadata and may be another database's"
        warn(what, Objects=len(others), Some=some)
    kept |= islice(others.items(), HEADS)
    goes += [old for old in aged if old.key not in {*others, new}]
    confirm_rest(s3, ours, goes, verdicts)
    return Plan(goes, kept, said)


def prune(s3: S3, made: Dump, found: Backups) -> Fields:
    """Remove what retention lets go of; what was removed, and what is kept and why, by key.

    made: the dump whose backup is the new one. found: all that is in the bucket. It never fails a
    backup: what goes wrong is a warning, and the object stays.
    """
    info("Removing old backup files ...")
    goes, kept, said = plan(s3, made, found)
    gone = remove_all(s3, goes, kept)
    if kept or gone:  # else S3 was away, and was waited for
        prune_roles(s3, made, gone)  # after the archives: none is left without its roles
        s3.write_index()
    warnings = [*made.warnings, *said]
    removed = sorted({old.key for old in gone} - kept.keys())
    return {"removed": removed, "kept": kept, "warnings": warnings}


# ---- The staging volume --------------------------------------------------------------------------

ROLES_MOST = 4 * MIB  # bytes of SQL, some 15,000 roles; in a journal each is 6 at most


class Dump:
    """A dump on the staging volume, and all that a later run has to know to go on with it.

    What is known tells how far it has come:

        begun    pg_dump writes `….bak.partial`; a crash costs the dump
        sealed   its SHA-256: the archive is whole and was read back, and is called `….bak` then
        (encrypted, if there are recipients: `….bak.age` is whole, and takes the place of that)
        stored   its bucket: S3 has it, and that was proven
        gone     its file is removed; its journal waits for its process to be closed

    These fields, as far as they are known, are its journal, the file `….bak.json` beside `….bak`:
    a JSON object, to which older versions have written, too.
    """

    by: str = ""  # the database that it is of: `owner` of the settings
    process: str = ""  # the one of Colonies that it is for; "": nobody waits for it
    starttime: str = ""  # of that process, for its result
    attempts: int = 0  # runs that began to work at it: what kills them must not do so for ever
    made_again: Sequence[str] = ()  # why earlier ones of the same run were void
    warnings: list[str]  # pg_dump's, pg_dumpall's, and of what it lacks
    label: str = ""  # what somebody calls it
    keep_until: str = ""  # the day until which it is kept by itself, or "forever"; "": like others
    compression: str = ""  # pg_dump's --compress; older journals have none
    after: str = ""  # the name of the last backup that was good when it was made; "": not known
    before: str = ""  # the names of the last ones before shrinks that are normal
    steady_from: int | None = None  # the size from which on this one is as good; None: at none

    recipients: Sequence[str] = ()  # of age; (): it is not to be encrypted

    # Of a sealed one; once it is encrypted, `sha256` and `size` are of what S3 gets.
    encryption: str | None = None  # "age": it is
    plain_sha256: str | None = None  # its archive's, then
    plain_size: int | None = None
    id: str  # random: its object's `backup-id`
    sha256: str = ""
    size: int  # bytes
    exectime_backup: int  # seconds
    tables: int  # whose rows it has, by its table of contents
    # As in `Server`.
    database: str
    database_size: int | None = None  # older journals have none
    system_identifier: str
    postgresql: str
    timescaledb: str | None
    pg_dump: str
    other_databases: int | None = None  # that its server has; None: it is not known
    # What makes the server's roles, which it may hold hashes of their passwords with; "": nothing,
    # or S3 has it. It is known as long as the file is, and no longer.
    roles_sql: str = ""
    roles_sha256: str = ""
    role_passwords: bool | None = None  # whether it holds them; None: there are no roles

    # Of one whose upload has begun.
    upload: Mapping[str, str] = {}  # Key and UploadId; whether it was completed is not known
    etag: str = ""  # of its object, by the MD5s of all parts; "": the server's are no MD5s
    roles: str | None = None  # the key where its roles are, or were to be; None: nowhere
    taken: str = ""  # the key of which S3 said that it has all that was sent last

    # Of a stored one.
    filename: str  # in S3: another name, where somebody had taken its own
    bucket: str = ""
    filepath_s3: str  # "/" and the key
    size_s3: int  # bytes, as S3 says
    exectime_upload_s3: int  # seconds

    gone: bool = False  # the file is removed

    def __init__(self, file: str, **known: object):
        self.file = file  # the path of a sealed one
        self.warnings = []
        vars(self).update(known)

    @property
    def path(self) -> str:
        """The path of what S3 gets."""
        return self.file + self.ending

    @property
    def ending(self) -> str:
        """What its name has behind `.bak`."""
        return AGE if self.encryption else ""

    @property
    def partial(self) -> str:
        """The path to which pg_dump writes, or age wrote."""
        return f"{self.path}.partial"

    @property
    def draft(self) -> str:
        """The path to which age writes."""
        return f"{self.file}{AGE}.partial"

    @property
    def journal(self) -> str:
        """The path of the journal."""
        return f"{self.file}.json"

    @property
    def sealed(self) -> bool:
        """Whether it is at least that."""
        return self.sha256 != ""

    @property
    def stored(self) -> bool:
        """Whether it is at least that."""
        return self.bucket != ""

    @property
    def pending(self) -> bool:
        """Whether something is left to do: S3 has not got it yet, or its file is there."""
        return self.sealed and not self.gone

    def save(self, **changes: object) -> None:
        """Note what changes, in the journal first: it is replaced whole, and reaches the disk.

        Raises OSError; then nothing has changed.
        """
        folder = os.path.dirname(self.file)
        draft = os.path.join(folder, "backup_journal.partial")
        known = vars(self) | changes
        del known["file"]
        with suppress(FileNotFoundError):
            os.unlink(draft)  # of a crash, or a link to elsewhere
        with placing(draft), open(draft, "x", encoding="utf-8") as file:
            file.write(json.dumps(known))
        flush(draft)
        os.rename(draft, self.journal)
        flush(folder)
        vars(self).update(changes)

    def remove(self, *more: str) -> None:
        """Remove the journal, what programs left, and MORE; what cannot be removed stays."""
        for path in (*more, self.partial, self.draft, self.journal):
            with suppress(OSError):
                os.unlink(path)


def guarded(path: str, flags: int) -> int:
    """An opener for `open`: it follows no link and waits for no FIFO that somebody put there."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)


def digest(path: str) -> str:
    """A file's SHA-256, in hex; that of nothing if it is no plain file."""
    plain = os.path.isfile(path) and not os.path.islink(path)
    with open(path if plain else os.devnull, "rb") as file:
        return digest_of(file)


def digest_of(file: IO[bytes]) -> str:
    """The SHA-256 of what is left to read of a file, in hex."""
    sha256 = hashlib.sha256()
    while data := file.read(BLOCK):
        sha256.update(data)
    return sha256.hexdigest()


def all_dumps(s: Settings) -> list[Dump]:
    """Those that have a journal on the volume, oldest first; of what is no journal, empty ones."""
    found = []
    for name in sorted(os.listdir(s.backup_path)):
        if re.fullmatch(r"backup_[0-9]+\.bak\.json", name):
            dump = Dump(os.path.join(s.backup_path, name.removesuffix(".json")))
            with suppress(Exception), open(dump.journal, "rb", opener=guarded) as file:
                told = json.loads(file.read(8 * ROLES_MOST))  # whatever somebody put there
                fields = Dump.__annotations__.keys() & told.keys()
                vars(dump).update({name: told[name] for name in fields})
            found.append(dump)
    return found


def dumps(s: Settings) -> list[Dump]:
    """Those of this database."""
    return [dump for dump in all_dumps(s) if dump.by == s.owner]


def warn_of_strays(s: Settings) -> None:
    """Say which finished dumps wait for a database of this name at another host.

    That may be ours, spelt otherwise (localhost, 127.0.0.1), or another server's: so it is left.
    """
    for dump in all_dumps(s):
        whose = str(dump.by)
        if whose != s.owner and whose.endswith(f"/{s.db_database}") and dump.pending:
            warn(
                "Leaving a finished dump alone: it is of another DB_HOST or DB_PORT, which "
                "`backup --resume` with those settings finishes",
                Filepath=dump.path,
                Of=whose[-200:],
            )


def staging(s: Settings, wait: bool) -> None:
    """Have the staging volume for ourselves, from here to the end of the program.

    The lock is flock(2) on the folder, which the kernel drops when we end, however we do. Raises
    Busy if another program has it and we are not to WAIT.
    """
    folder = os.open(s.backup_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise Busy(f"another backup is running in {s.backup_path}") from None
        info("Waiting for another backup to end ...")
        fcntl.flock(folder, fcntl.LOCK_EX)


def free_bytes(s: Settings) -> tuple[int, int]:
    """Bytes that are free on the staging volume, and how many of them have to stay so."""
    volume = os.statvfs(s.backup_path)
    size, free = volume.f_blocks * volume.f_frsize, volume.f_bavail * volume.f_frsize
    return free, min(size // 20, GIB)


def require_floor(s: Settings, program: str) -> None:
    """Raise Failure where the staging volume gets too full for a program to go on."""
    free, floor = free_bytes(s)
    require(free >= floor, f"{program} was stopped: {s.backup_path} has only {free} bytes left")


# ---- A backup: the dump --------------------------------------------------------------------------

# Of a Server, what its dump, that one's object and its result have, too.
FACTS = (
    "database",
    "database_size",
    "system_identifier",
    "postgresql",
    "timescaledb",
    "pg_dump",
)
SIZE = "SELECT pg_database_size(current_database())"  # with 20,000 tables it takes 0.3 s
LOOK = """SELECT json_build_object('database', current_database(),
    'postgresql', current_setting('server_version'), 'system_identifier',
    (SELECT system_identifier::text FROM pg_control_system()), 'timescaledb', (SELECT extversion
    FROM pg_extension WHERE extname = 'timescaledb'), 'other_databases', (SELECT count(*)
    FROM pg_database WHERE NOT datistemplate AND datname <> current_database()),
    'reads_passwords', has_table_privilege('pg_authid', 'SELECT'),
    'rehashed', EXISTS (SELECT FROM pg_partitioned_table, pg_opclass o WHERE partstrat = 'h'
        AND o.oid = ANY (partclass) AND opcname ~ '^(array|record|oid|(multi)?range)_ops'),
    'search_path', current_setting('search_path'))"""
# What pg_dump leaves out in silence (14 to 18), or warns of without a name. Who reads passwords may
# read mappings, too; others see none of their options, if they have any. A restored table has what
# it inherits before its own columns, and a row in another table keeps its values' order (14 to 18).
LEFT_OUT = """SELECT json_build_object(
    'subscriptions, as the role is no superuser', (SELECT json_agg(subname) FROM pg_subscription
        WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = user)),
    'options (passwords) of user mappings, as the role is no superuser', (SELECT json_agg(
        format('%s at %s', usename, srvname)) FROM pg_user_mappings WHERE umoptions IS NULL
        AND {known}),
    'rows of unlogged tables, as this is a standby', (SELECT json_agg(oid::regclass) FROM pg_class
        WHERE relpersistence = 'u' AND relkind = 'r' AND pg_is_in_recovery()),
    'the order of columns of a table that inherits, by which values lie in rows of its type', (
        SELECT json_agg(format('%I of %s', a.attname, h.oid::regclass))
        FROM pg_class heir JOIN pg_type t ON t.oid = heir.reltype
        JOIN pg_depend ON refobjid = ANY (ARRAY[t.oid, typarray])
        JOIN pg_attribute a ON attrelid = objid AND attnum = objsubid AND atttypid = refobjid
        JOIN pg_class h ON h.oid = objid AND h.relkind IN ('c', 'r')
        WHERE heir.oid IN (SELECT inhrelid FROM pg_inherits) AND heir.relkind = 'r'
        AND NOT heir.relispartition AND classid = 'pg_class'::regclass
        AND refclassid = 'pg_type'::regclass AND EXISTS (SELECT FROM (
            SELECT c.attnum, lag(c.attnum) OVER (ORDER BY min(inhseqno * 2000 + p.attnum), c.attnum)
            FROM pg_attribute c LEFT JOIN (pg_inherits JOIN pg_attribute p ON attrelid = inhparent)
                ON inhrelid = c.attrelid AND p.attname = c.attname
            WHERE c.attrelid = heir.oid AND c.attnum > 0 AND NOT c.attisdropped
            GROUP BY c.attnum) AS restored WHERE lag > attnum)))"""
MAPPING = "umid IN (SELECT oid FROM pg_user_mapping WHERE umoptions IS NOT NULL)"
# As the login, also where its settings or a database's have it take a role; as which it may neither
# see nor end sessions of ours, for one.
AS_LOGIN = "-c role=none"
END_SESSIONS = """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = user
    AND datname = current_database() AND pid <> pg_backend_pid()
    AND application_name = current_setting('application_name')"""


def record_of(database: Database, step: str, answer: str, record: Callable[..., Answer]) -> Answer:
    """An answer, the JSON object of a record's fields, as that record.

    Raises Failure where it is something else: another program's, say.
    """
    try:
        return record(**json.loads(answer))
    except (ValueError, TypeError, RecursionError):
        where = f"{database.host}:{database.port}"
        text = f"{step}: {where} gives an answer that cannot be read: {answer[:200]!r}"
        raise Failure(text) from None


def read_record(
    database: Database, step: str, query: str, record: Callable[..., Answer], **more: Any
) -> Answer:
    """What a query answers, as a record; see `psql` and `record_of`."""
    return record_of(database, step, psql(database, step, query, **more), record)


class Server(NamedTuple):
    """The database that is backed up, and the pg_dump that does it."""

    database: str
    postgresql: str  # "17.2"
    system_identifier: str  # of its initdb: what tells one server from another
    timescaledb: str | None  # the extension's version; None: it is not there
    pg_dump: str  # "17.2"
    other_databases: int  # of the server
    reads_passwords: bool  # whether our role may: their hashes
    rehashed: bool  # partitions are by hashes of its oids, of enums or regclass
    search_path: str  # of a session of ours
    database_size: int = 0  # bytes on its disk; 0: not asked for yet

    @property
    def major(self) -> int:
        """The server's major version."""
        return major_version(self.postgresql)

    @property
    def client(self) -> int:
        """pg_dump's major version."""
        return major_version(self.pg_dump)


# Seconds before a dump is made again, or a question asked again, and once more. A policy that works
# through its chunks, or a job that loads tables, may need as long to be over.
PAUSES = (15, 60)
# What is said where a server has no session left; pg_dumpall (17) does not say why. libpq shows no
# SQLSTATE, and a server its own language to whom it lets in not yet. What lasts, as a wrong
# password (an account may be locked after three), has a name in quotes in each. A role's or a
# database's limit has one, too, and is known by how those languages say "too many".
CROWDED = (
    "too many (connections|clients)|could not connect to database|pg_use_reserved|"
    r"connection to server at .* failed: \S+:  (zu viele|demasiad|trop|muitas|zbyt|слишком много|"
    r"занадто багато|för många|.*(ბევრი|çok fazla|多すぎ|太多|초과)|"
    r'(?!.*(authentication failed|["„“«»])))'
)


def patiently(ask: Callable[..., Answer], *of: Any, **more: Any) -> Answer:
    """What a question to the database comes to; asked again if it has no session left for it."""
    for pause in PAUSES:
        try:
            return ask(*of, **more)
        except Failure as error:
            if not re.search(CROWDED, str(error)):
                raise
            warn("The database takes no session now, asking again ...", Error=error)
        sleep(pause * TIME_SCALE)
    return ask(*of, **more)


def examine_database(s: Settings) -> Server:
    """What is to be backed up, and by which pg_dump. Raises Failure if that one is too old."""
    said = run("Looking at pg_dump", ["pg_dump", "--version"], timeout=60)
    version = re.search(r"\d[\w.]*", said)
    record = partial(Server, pg_dump=version[0] if version else "0")
    server = read_record(s.database(), "Looking at the database", LOOK, record)
    text, of = f"pg_dump {server.pg_dump} is", f"than the server, {server.postgresql}"
    require_options(s.database(), server.search_path)
    require(
        server.client >= server.major, f"{text} older {of}: install the server's version or later"
    )
    if server.client > server.major:
        warn(f"{text} newer {of}: restoring takes its version")
    return server


def measured(s: Settings, server: Server) -> Server:
    """The server with its database's size. Raises Failure."""
    query = f"SELECT json_build_object('database_size', ({SIZE}))"
    return read_record(s.database(), "Looking at its size", query, server._replace)


def require_options(database: Database, search_path: str) -> None:
    """Raise Failure where a session has not the options that PLAIN asks for, as this tells."""
    require(
        search_path == "pg_catalog",
        f"{database.host}:{database.port} is a pooler that drops sessions' `options` (pgbouncer's "
        "ignore_startup_parameters), and others would get what ours set: name PostgreSQL itself",
    )


def left_out(database: Database, server: Server) -> list[str]:
    """What no dump by this role, of this server, has of a database, a line each."""
    lines = list[str]()
    known = MAPPING if server.reads_passwords else "true"
    step, query = "Looking for what the dump lacks", LEFT_OUT.format(known=known)
    with noting(lines):
        there: dict[str, list[str] | None] = patiently(read_record, database, step, query, dict)
        for what, names in there.items():
            lines += shortened(f"Not in the dump: {what}", names or [])
    return lines


def require_room(s: Settings, newest: int, database_size: int, twice: bool) -> str:
    """Whether the staging volume has room for a dump like the newest one; what there is, in words.

    newest: its bytes; 0 if there is none, and then the database's size is a hint and no more.
    twice: it is there plain and encrypted for a while. Raises Failure where it is not enough,
    OSError where we may not write.
    """
    with tempfile.TemporaryFile(dir=s.backup_path):
        free, floor = free_bytes(s)
    text = f"{s.backup_path}: {free} bytes are free; the newest backup has {newest}"
    needed = max(newest * 6 // 5 * (1 + twice), floor)
    also = ", twice, as it is encrypted" if twice else ""
    require(free >= needed, f"{text}; a fifth more is needed{also}, or {floor}")
    if not newest and free < database_size:
        warn(f"{text}, the database {database_size}")
    return text


HOLD_SECONDS = 60  # at most; measured: 0.7 to 5 s with 1,000 chunks, on a busy machine
HELD = b"held\n"


def hold(database: Database, options: str, statements: Sequence[str]) -> tuple[Action, bytes]:
    """Run statements in a session that keeps its locks and its snapshot for HOLD_SECONDS.

    What ends it before, and what it printed: HELD is the end of that unless a statement failed, or
    said nothing for 2 minutes.
    """
    then = ("SELECT 'held'", f"SELECT pg_sleep({HOLD_SECONDS})")
    session = start(
        PSQL,
        environment(database, f"{PLAIN} -c client_min_messages=error {options}"),
        stdin=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    end = partial(stop, session, signal.SIGINT)
    try:
        if session.stdin:
            with suppress(BrokenPipeError), session.stdin as pipe:
                pipe.write(script(*statements, *then))
        said, output = b"", session.stdout
        while output and not said.endswith(HELD) and select.select([output], [], [], 120)[0]:
            more = os.read(output.fileno(), BLOCK)
            if not more:
                break
            said += more
        return end, said
    except BaseException:
        end()
        raise


TABLES = r"(?m)^\d+; \d+ (\d+) TABLE DATA (.*) \S+$"  # in a table of contents: its oid and name
# What no lock of pg_dump's keeps as it is: schemas, by hashes of their names; enums' labels, and
# which attributes rows within rows have, as values are written by them, whatever the snapshot.
SCHEMAS = """(SELECT json_object_agg(what, state) FROM (
        SELECT hashtextextended(nspname, 0)::text AS what, oid::bigint AS state
            FROM pg_namespace WHERE nspname !~ '^pg_'
        UNION ALL SELECT 'label ' || oid, hashtext(enumlabel) FROM pg_enum
        UNION ALL SELECT 'row ' || c.oid, hashtext(string_agg(attnum::text, ' ' ORDER BY attnum))
            FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
            WHERE relkind = 'c' AND NOT attisdropped GROUP BY c.oid) AS loose)"""
# Of each table that a dump may hold rows of, by its oid: its name for people, and its state, namely
# its file node and its TOAST table's, and hashes of its name and columns, whatever their encoding
# (md5() is not everywhere allowed). Materialized views are not among them: a dump has them
# refreshed, and pg_dump 17 locks none.
ALL_TABLES = """
    (SELECT coalesce(json_object_agg(c.oid, json_build_array(
            format('%I.%I', nspname, c.relname), concat_ws(' ', c.relfilenode,
            coalesce(toast.relfilenode, 0),
            hashtextextended(format('%I.%I', nspname, c.relname), 0),
            (SELECT coalesce(string_agg(hashtext(attnum || ' ' || attname) || '.', ''
                ORDER BY attnum), '') FROM pg_attribute
                WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped)))), '{}')
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_class toast ON toast.oid = c.reltoastrelid
        WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND c.oid >= 16384)"""
READ = f"SELECT json_build_object('time', clock_timestamp(), 'schemas', {SCHEMAS}, 'tables', "
READ_TABLES = f"{READ}{ALL_TABLES})"
READ_LOCKED = f"{READ}{ALL_TABLES}, 'size', ({SIZE}))"
READ_SCHEMAS = f"{READ}'{{}}'::json)"
# A session whose snapshot pg_dump shares, so that both see the same tables; and how many sessions
# its role may have in this database: beside it there are pg_dump's, the one that holds compression
# off, and the one that looks for locks. Standbys export snapshots, too, from 10 on.
EXPORT = (
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
    """SELECT json_build_object('snapshot', pg_export_snapshot(), 'sessions',
    (SELECT least(nullif(rolconnlimit, -1), nullif(datconnlimit, -1))
    FROM pg_roles, pg_database WHERE rolname = session_user AND datname = current_database()))""",
    READ_TABLES,
)
SESSIONS = 4
USERS_OIDS = 16384  # and above; below are those that initdb makes, which READ_TABLES leaves out
# pg_dump's session is ours and begins after the tables were read. A role sees its own sessions.
READ_SESSIONS = """WITH ours AS (SELECT pid, query, backend_start FROM pg_stat_activity
        WHERE usename = user AND datname = current_database() AND pid <> pg_backend_pid()
        AND application_name = current_setting('application_name')),
    dumping AS (SELECT pid, query FROM ours WHERE backend_start > '{}')
    SELECT json_build_object('copying', EXISTS (SELECT FROM dumping WHERE query LIKE 'COPY %'),
        'stuck', EXISTS (SELECT FROM dumping, unnest(pg_blocking_pids(dumping.pid)) AS blocker,
            unnest(pg_blocking_pids(blocker)) AS holder JOIN ours ON ours.pid = holder))"""


class Catalog(NamedTuple):
    """What a database has, as READ_TABLES tells it; READ_SCHEMAS leaves the tables out."""

    time: str  # of the server
    schemas: dict[str, int]  # and types: their states
    tables: dict[str, list[str]]  # name and state by oid
    size: int = 0  # bytes on the server's disk, as READ_LOCKED tells it


class Exported(NamedTuple):
    """A snapshot that another session may share, as EXPORT tells it."""

    snapshot: str | None
    sessions: int | None  # that the role may have in the database; None: as many as it likes


class Sessions(NamedTuple):
    """What pg_dump's session does, as READ_SESSIONS tells it."""

    copying: bool  # a table: it has all its locks
    stuck: bool  # it waits for a session that waits for one of ours


class Window:
    """The time between pg_dump's snapshot and its locks, in which rows can get lost in silence.

    TRUNCATE, and what rewrites a table, is not MVCC-safe (PostgreSQL's manual, 13.6): an older
    snapshot sees none of the table's rows then. Each gives the table a new file node. So does
    TimescaleDB's compress_chunk (2.28.3). And pg_dump goes by names: a table or a column that has
    taken another's name since its snapshot is dumped in its place, as it was then. This knows all
    that of each table as pg_dump's own snapshot has it, and compares it when pg_dump has its locks,
    which keep all of that out from then on. It needs no privilege: catalogs are open to every role.
    """

    def __init__(self, database: Database, options: str, share: bool, yield_session: Action):
        """Read the tables; to SHARE the snapshot, in a session that `release` ends. Raises Failure.

        options: of libpq, for that session. If there is none to be had, YIELD_SESSION is called,
        which ends another one of ours, and it does without.
        """
        self.database = database
        # Ends that session; pg_dump has no need of it once it has the snapshot.
        self.release: Action = lambda: None
        # For pg_dump. None: it takes its own, a moment later, and then what was made in that moment
        # is known by its file node alone.
        self.snapshot: str | None = None
        try:
            self.before = self.export(options) if share else self.read("tables", READ_TABLES)
        except Failure as why:  # the role may have but one connection
            log("debug", "Cannot share a snapshot with pg_dump", Reason=why)
            yield_session()
            self.before = self.read("tables", READ_TABLES)
        self.locked: Catalog | None = None  # as read while pg_dump had its locks
        self.next_look = 0.0  # by the monotonic clock

    def export(self, options: str) -> Catalog:
        """The tables as a snapshot has them that pg_dump can share, if its role has the sessions.

        Raises Failure.
        """
        step = "Reading the tables"
        self.release, said = hold(self.database, options, EXPORT)
        try:
            require(said.endswith(HELD), f"{step}: psql says {excerpt(said)!r}")
            # Before its answers stands what server and libpq warn of as it connects.
            lines = said.decode("utf-8", "replace").split("\n")[-4:]
            exported = record_of(self.database, step, lines[0], Exported)
            catalog = record_of(self.database, step, lines[1], Catalog)
        except BaseException:
            self.release()
            raise
        if exported.sessions is None or exported.sessions >= SESSIONS:
            self.snapshot = exported.snapshot
        else:
            self.release()
        return catalog

    def read(
        self, what: str, query: str, patience: float = 0, tick: Action | None = None
    ) -> Catalog:
        """The catalog as it is now; asked for again for so many seconds. Raises Failure."""
        end = later(patience)
        pauses = backoff()
        while True:
            try:
                return read_record(self.database, f"Reading the {what}", query, Catalog, tick=tick)
            except Failure:
                if monotonic() >= end:
                    raise
            sleep(next(pauses))

    def look(self, tick: Action) -> bool:
        """Compare what can be compared by now; whether compression may go on. Raises Failure: void.

        tick: as for `run`, while the server answers. One that does not is asked again later, at
        last by `end`.
        """
        if monotonic() < self.next_look:
            return False
        try:
            if not self.locked:
                return self.look_for_locks(tick)
            self.next_look = later(10)
            self.compare_schemas(self.read("schemas", READ_SCHEMAS, tick=tick))
        except Failure as error:
            if error.again:
                raise
            log("debug", "Cannot look at the tables yet", Error=error)
        return False

    def look_for_locks(self, tick: Action) -> bool:
        """Read and compare the tables if pg_dump has its locks; see `look`.

        It takes all its locks before it copies the first table (14 to 18). Where it waits for a
        session that waits for ours, only we can end that.
        """
        query = READ_SESSIONS.format(self.before.time)
        asked = self.database, "Looking at pg_dump", query, Sessions
        seen = read_record(*asked, timeout=20, options=AS_LOGIN, tick=tick)
        if seen.copying:
            now = self.read("tables", READ_LOCKED, tick=tick)
            self.compare(now, {})
            self.locked = now
            log("debug", "pg_dump has its locks, and the tables are what they were")
        return seen.copying or seen.stuck

    def compare(self, now: Catalog, archived: Mapping[str, str]) -> None:
        """Raise Failure if tables that pg_dump may have dumped were emptied or replaced.

        archived: names by oid of those whose rows the archive has, as far as that is known.
        """
        names = {state.split()[2] for _, state in now.tables.values()}
        void = []
        for oid in self.before.tables.keys() | archived.keys():
            name, before = self.before.tables.get(oid) or (archived[oid], "")
            _, state = now.tables.get(oid) or ("", "")
            if not state:  # it is gone; pg_dump would have failed, had nobody taken its name
                lost = oid in archived or before.split()[2] in names
            elif not before:  # it is new; its first file node is its oid
                lost = state.split()[0] not in (oid, "0")
            else:
                lost = not state.startswith(before)  # more columns do no harm
            if lost:
                void.append(name)
        if void:
            raise Failure(
                f"{amount(len(void), 'table')} truncated, rewritten or replaced before pg_dump had "
                f"its locks, rows may be missing: {', '.join(sorted(void)[:5])}",
                again=True,
            )

    def compare_schemas(self, now: Catalog) -> None:
        """Raise Failure if one has taken another's name, or a type has changed: see SCHEMAS."""
        before = self.before.schemas
        changed = [what for what, state in now.schemas.items() if before.get(what, state) != state]
        if changed:
            raise Failure(
                f"schemas or types replaced or changed while pg_dump ran: {len(changed)}; rows may "
                "be missing, or refused by a restore",
                again=True,
            )

    def lost(self) -> bool:
        """Whether a table is gone, which pg_dump fails of, in the server's language."""
        with suppress(Failure):
            return not self.before.tables.keys() <= self.read("tables", READ_TABLES).tables.keys()
        return False

    def end(self, archived: Mapping[str, str]) -> int:
        """Compare what is left to compare, now that pg_dump has ended; the database's size.

        archived: names by oid of the tables whose rows the archive has, as pg_dump saw them. A
        whole dump depends on these answers: they are asked for for a minute. Raises Failure: void.
        """
        locked = self.locked or self.read("tables", READ_LOCKED, 60)
        self.compare(locked, archived)
        self.compare_schemas(self.read("schemas", READ_SCHEMAS, 60))
        return locked.size


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
)


@contextmanager
def compression_held_off(database: Database, server: Server) -> Iterator[Action]:
    """Keep TimescaleDB from compressing until what this yields is called, or a minute is over.

    compress_chunk truncates the chunk. Before that it writes to this table of the catalog, which
    SHARE keeps it from. With it each of 60 dumps beside sessions that compress had every row at
    once, without it each of 24 was void (1,000 chunks; 2.28.3, 2.29.2, 2.30.0-dev). Where it may
    not be locked (a privilege, a standby, an older version) or not within 20 s, nothing is held
    off. What that, a longer wait, or what it does not keep out (split_chunk) does, `Window` sees.
    """
    if not server.timescaledb:
        yield lambda: None
        return
    release, said = hold(database, f"-c lock_timeout=20s {gone_client(server)}", HOLD_OFF)
    if not said.endswith(HELD):
        info(
            "Compression is not held off: if it empties chunks that are being dumped, the dump is "
            "made again",
            Reason=excerpt(said),
        )
    try:
        yield release
    finally:
        release()


def gone_client(server: Server) -> str:
    """Options with which a server notices within 10 s that we are gone, also while it computes."""
    return "-c client_connection_check_interval=10s" if server.major >= 14 else ""


def make_dump(s: Settings, s3: S3, **begun: object) -> Dump:
    """All that comes before the upload: look, dump, read the archive back, vouch for it.

    Raises Failure or OSError; then nothing of it is left on the volume.
    """
    server = patiently(examine_database, s)
    newest = newest_backup(s3, server)
    last = last_steady(s3, newest)
    if not last or last.known.get("compression") != compression(s, server):
        # For `require_room` or `steady_from`; else it is read beside pg_dump, which is faster.
        server = patiently(measured, s, server)
    recipients = s.backup_age_recipients.splitlines()
    require_room(s, newest.plain_size, server.database_size, bool(recipients))
    file = os.path.join(s.backup_path, f"backup_{free_seconds(s, newest)}.bak")
    dump = Dump(
        file,
        by=s.owner,
        compression=compression(s, server),
        recipients=recipients,
        **begun,
    )
    if last:
        dump.after = last.name
        dump.before = " ".join((newest if newest.before else last).before)
        dump.steady_from = steady_from(last, server, dump.compression)
    # Those of a pg_dump that was killed by -9: they hold locks and a snapshot.
    step = "Ending sessions of an earlier run"
    patiently(psql, s.database(), step, END_SESSIONS, options=AS_LOGIN)
    info("This backup is of", Database=f"{s.db_host}:{s.db_port}/{server.database}")
    info("Backing up database ...")
    try:
        dump.save()
        dump_every_row(s, server, dump, newest.plain_size)
    finally:
        if not dump.sealed:
            dump.remove()
    os.rename(dump.partial, file)  # only now: it is whole, and its journal vouches for it
    info(
        "Successfully backup database",
        ExecTime=f"{dump.exectime_backup} seconds",
        Filename=os.path.basename(file),
        Size=f"{dump.size} bytes",
    )
    return dump


def newest_backup(s3: S3, server: Server) -> Backup:
    """The newest proven backup of this database; one of no size and time where there is none.

    A bucket that is missing is made, unless it is at AWS. One object that S3 lists and cannot show
    is passed over: a backup can do without. Raises Failure.
    """
    none = Backup(0, "", 0, None)
    try:
        names = s3.names()
    except S3Failure as error:
        if error.status != 404 or not s3.s.aws_s3_endpoint:
            raise
        warn("The bucket is missing, making it ...", Error=error)
        with allowing(409):  # somebody else makes it, too
            s3.call("create_bucket", 10)
        return none
    broken, known = 0, s3.known(names)
    # A later time than the year 5138 was not made by a clock: 18 digits count as a name, too.
    for found in reversed([each for each in names if each.seconds < 10**11]):
        try:
            backup = known.get(found) or s3.looked_at(found)
            ours = proven([backup], server.system_identifier, server.database)
            if misled(s3, ours):
                return newest_backup(s3, server)
        except S3Failure as error:
            broken += 1
            if error.status < 500 or broken > 1:
                raise
            warn("Passing over what S3 cannot show", Key=found.key, Error=error)
            continue
        if ours:
            return vouched(s3, backup, names)
    return none


def as_steady(newest: Backup, found: Backups, verdicts: Verdicts, nights: int) -> Backup:
    """The newest backup, as if it knew that it is good, where it may not and nothing denies that.

    So it is where an older version made it, there was none before, or all that it was too small
    beside are gone, are of other names, or were before a shrink that is normal by now.
    """
    last = newest.known.get("after")
    for each in found:
        large = each.size > 2 * newest.size or each.name == last
        other = each.database != newest.database or each.server == newest.server
        if large and not (other and each.known.get("sha256")):
            return newest  # it may be this database's, as a server that was lost had it
    judged = judge(proven(found, newest.server, newest.database), verdicts, nights, time.time())
    if newest.key in judged.doubts:
        return newest
    before = " ".join(each.name for each in judged.before)
    told = {"steady": str(newest.size), "before": before}
    return newest._replace(metadata=newest.known | told)


def vouched(s3: S3, newest: Backup, names: Backups) -> Backup:
    """The newest backup, as if it knew that it is good, by the names alone or by a closer look."""
    steady = newest if is_steady(newest) else as_steady(newest, names, {}, 0)
    if is_steady(steady):
        return steady
    try:
        found = s3.backups()
        steady = as_steady(newest, found, known_verdicts(s3) or {}, s3.s.full_backups)
        for each in found:
            if each.known and is_steady(steady):
                s3.confirmed(each)  # the index is but a hint
    except Failure as error:
        warn("Whether the newest backup is good is not known", Error=error)
        return newest
    return steady


def last_steady(s3: S3, newest: Backup) -> Backup | None:
    """The last backup that was good when it was made; None: that is not known. Raises Failure."""
    if is_steady(newest):
        return newest
    after, head = newest.known.get("after"), None
    if not after:
        return None
    key = s3.key(after)
    try:
        head = s3.head(key)
    except S3Failure as error:
        if not error.status:
            raise
        warn("Passing over what S3 cannot show", Key=key, Error=error)
    return Backup(0, key, head["ContentLength"], head["Metadata"]) if head else None


def steady_from(last: Backup, server: Server, manner: str) -> int | None:
    """The size from which on a new backup is as good as the last steady one; None: at none."""
    if last.known.get("compression", manner) == manner:
        return -(-last.plain_size // 2)
    own = number_in(last.known, "database-size")
    return 0 if own and server.database_size * 2 >= own else None


def free_seconds(s: Settings, newest: Backup) -> int:
    """The seconds of the new backup's name: now, but later than the newest one's."""
    now = int(time.time())
    if now < newest.seconds:
        warn("The clock is behind the newest backup", Key=newest.key)
    seconds = max(now, newest.seconds + 1)
    taken = " ".join(os.listdir(s.backup_path))
    while f"backup_{seconds}.bak" in taken:
        seconds += 1
    return seconds


def compression(s: Settings, server: Server) -> str:
    """pg_dump's --compress for BACKUP_COMPRESSION; before 16 it knows gzip's levels alone."""
    wanted = s.backup_compression
    if server.client >= 16:
        return "zstd:1" if wanted == "auto" else wanted
    return {"auto": "6", "gzip": "6", "none": "0"}.get(wanted, wanted.removeprefix("gzip:"))


# What pg_dump fails with when something it has seen is gone before it is locked, and on a standby.
PASSING = (
    r"(relation|column|schema|type|function) .* does not exist|cannot (copy from|lock) |"
    "could not open relation|cache lookup failed|conflict with recovery|deadlock detected|"
    "invalid snapshot|snapshot .* does not exist|"  # it was shared, which is tried once
    f"{CROWDED}|"
    r"(query failed|from server): (?!ERROR|FATAL|PANIC)\S+:  "  # in words that are not known here
)
ADVICE = (
    "keep jobs and policies that truncate, rewrite, compress, replace or drop tables away "
    "from the backup's hour; on a standby look at max_standby_streaming_delay"
)


def dump_every_row(s: Settings, server: Server, dump: Dump, expected: int) -> None:
    """Run pg_dump until its archive holds all that was there when it began; see `dump_once`.

    expected: bytes that it may come to, for the log; 0: unknown. Why a dump was made again goes
    into `made_again`, what it lacks into `warnings`. Raises Failure: the third one failed, too, or
    one for good.
    """
    for pause in (*PAUSES, None):
        dump.warnings = left_out(s.database(), server)
        for line in dump.warnings:
            warn(line)
        take_roles(s, server, dump)
        try:
            dump_once(s, server, dump, expected)
            return
        except Failure as why:
            if not why.again and not re.search(PASSING, str(why)):
                raise
            if pause is None:
                advice = ADVICE
                if server.timescaledb:
                    advice += "; `check` says whether compression is held off"
                text = f"{len(PAUSES) + 1} dumps failed, the last one so: {why}; {advice}"
                raise Failure(text) from None
            os.unlink(dump.partial)
            dump.made_again = [*dump.made_again, str(why)]
            warn("Making the dump again ...", Reason=why)
            sleep(pause * TIME_SCALE)


# Options of pg_dumpall by BACKUP_ROLES, to be tried in this order. The database is PGDATABASE's:
# without the empty option it would connect to "postgres".
GLOBALS = ["--globals-only", "--no-password", "--database=", "--encoding=UTF8"]
HASHLESS = [*GLOBALS, "--no-role-passwords"]
ROLES_BY = {"auto": (GLOBALS, HASHLESS), "no-passwords": (HASHLESS,), "off": ()}


def take_roles(s: Settings, server: Server, dump: Dump) -> str:
    """Have a dump bring what makes the server's roles; why it does not, where it was refused.

    Who may read all data reads the hashes of their passwords, too (14 to 18).
    """
    dump.roles_sql, dump.role_passwords, why = "", None, ""
    for options in ROLES_BY[s.backup_roles]:
        if options is GLOBALS and not server.reads_passwords:
            continue  # the server would log an error each night
        try:
            of = "Reading the roles", ["pg_dumpall", *options], s.database(), PLAIN, 120
            sql = patiently(run, *of, heed=dump.warnings)
            odd = re.search("[\udc80-\udcff]", sql)
            require(not odd, "its roles have names in no known encoding")
            require(len(sql.encode()) <= ROLES_MOST, f"its roles take more than {ROLES_MOST} bytes")
            dump.roles_sql, dump.role_passwords = sql, options is GLOBALS
            return ""
        except (Failure, OSError) as error:
            why = str(error)
            if re.search(CROWDED, why):
                break  # it was waited for
    if why:
        warn("The backup is without the server's roles", Reason=why)
    return why


def dump_once(s: Settings, server: Server, dump: Dump, expected: int) -> None:
    """Run pg_dump once, read its archive's table of contents back, and seal it.

    Raises Failure, also where the volume gets too full to go on, or where rows may be missing.
    """
    show = progress("Backup in progress", expected)
    begun = monotonic()
    database = s.database()
    open(dump.partial, "x").close()  # pg_dump would follow a link of that name
    command = ["pg_dump", f"--dbname={ALIVE}", "--no-password", "-Fc", "-f", dump.partial]
    # Its locks are not to wait for the disk: `seal` does.
    command += ["--no-sync", "--lock-wait-timeout=300s", f"--compress={dump.compression}"]
    if server.rehashed:  # else rows come back to a partition that refuses them
        command.append("--load-via-partition-root")
    options = f"{UNHINDERED} {NO_JIT} {gone_client(server)}"
    with compression_held_off(database, server) as release:
        # Behind DB_HOST may be several servers, and there a snapshot is but one's: tried once.
        window = Window(database, options, not dump.made_again, release)
        if window.snapshot:
            command.append(f"--snapshot={window.snapshot}")

        def watch() -> None:
            """Look after the volume."""
            require_floor(s, "pg_dump")
            with suppress(OSError):
                show(os.path.getsize(dump.partial))

        def tick() -> None:
            """Look after the volume and the locks."""
            watch()
            if window.look(watch):
                release()
                window.release()

        try:
            run("Backing up database", command, database, options, tick=tick, heed=dump.warnings)
        except Failure as error:
            if "pg_dump: exit status 1:" in str(error):
                error.again = window.lost()
            raise
        finally:
            window.release()
        took = int(monotonic() - begun)
        tables = read_contents(dump)
        rows = {oid: name.replace(" ", ".") for oid, name in tables if int(oid) >= USERS_OIDS}
        size = window.end(rows)  # before what waits for us goes on
    seal(server._replace(database_size=size), dump, took, len(tables))


def read_contents(dump: Dump) -> list[tuple[str, str]]:
    """Oids and names of the tables whose rows an archive has. Raises Failure if it is empty."""
    listed = run("The table of contents", ["pg_restore", "--list", dump.partial])
    require(re.search("(?m)^[^;]", listed), "the archive is empty: is DB_DATABASE right?")
    return re.findall(TABLES, listed)


def flush(path: str) -> None:
    """Have a file, or a folder's names, on the disk. Raises OSError."""
    with placing(path):
        opened = os.open(path, os.O_RDONLY)
        os.fsync(opened)
        os.close(opened)


def seal(server: Server, dump: Dump, took: int, tables: int) -> None:
    """Note what the archive is: from now on no crash costs it. Raises OSError."""
    flush(dump.partial)
    dump.save(
        exectime_backup=took,
        size=os.path.getsize(dump.partial),
        sha256=digest(dump.partial),
        id=os.urandom(16).hex(),
        tables=tables,
        roles_sha256=hashlib.sha256(dump.roles_sql.encode()).hexdigest(),
        other_databases=server.other_databases,
        **{name: getattr(server, name) for name in FACTS},
    )


def encrypt(s: Settings, dump: Dump) -> None:
    """Have a sealed dump and its roles encrypted, if that is not done; then the plain file goes.

    Raises Failure or OSError; then that is there still.
    """
    if not dump.encryption:
        info("Encrypting the backup ...")
        show = progress("Encryption in progress", dump.size)

        def tick() -> None:
            """Look after the volume."""
            require_floor(s, "age")
            with suppress(OSError):
                show(os.path.getsize(dump.draft))

        with suppress(FileNotFoundError):
            os.unlink(dump.draft)
        open(dump.draft, "x").close()  # age would follow a link of that name
        argv = [*for_recipients(dump.recipients), "-o", dump.draft, dump.file]
        try:
            run("Encrypting the backup", argv, tick=tick)
        except BaseException:
            with suppress(OSError):
                os.unlink(dump.draft)
            raise
        flush(dump.draft)
        size = os.path.getsize(dump.draft)
        require(size > dump.size, f"age made {size} bytes of {dump.size}")
        roles = dump.roles_sql
        if roles and not roles.startswith(AGE_ARMOR):  # as they are the second time
            roles = encrypted_text(dump.recipients, roles)
        dump.save(
            encryption="age",
            plain_sha256=dump.sha256,
            plain_size=dump.size,
            sha256=digest(dump.draft),
            size=size,
            roles_sql=roles,
            roles_sha256=hashlib.sha256(roles.encode()).hexdigest(),
        )
        os.rename(dump.draft, dump.path)
    with suppress(FileNotFoundError):
        os.unlink(dump.file)


def for_recipients(recipients: Iterable[str]) -> list[str]:
    """The command that encrypts for these."""
    return ["age", *(f"-r={each}" for each in recipients)]


def encrypted_text(recipients: Iterable[str], text: str) -> str:
    """A text encrypted for them, in ASCII. Raises Failure."""
    argv = [*for_recipients(recipients), "-a"]
    encrypted = run("Encrypting a text", argv, timeout=60, stdin=text.encode())
    require(AGE_ARMOR in encrypted, "age on PATH is not the program that encrypts")
    return encrypted


# ---- A backup: upload and proof ------------------------------------------------------------------
# Limits of AWS: 10,000 parts of 5 MiB to 5 GiB. Fewer parts keep the completing request small, and
# each takes 4 ms of CPU beside its bytes: with 8 MiB it is a tenth more for all of an upload.
MIN_PART = 16 * MIB
USUAL_PARTS, MAX_PARTS, MAX_PART = 1000, 10_000, 5 * GIB
ENCRYPTION = ("encryption", "plain_sha256", "plain_size")
# Facts of a dump that its object has, too.
DIGESTS = ("sha256", *ENCRYPTION, "tables", "exectime_backup")


def at_once(what: str, many: int, works: Sequence[Callable[[], Answer]]) -> Iterator[Answer]:
    """What each of WORKS returns, in order; so many run at once.

    Raises what one raises, without waiting for the others, and Failure where no thread can start.
    """
    pool = threads(many)
    try:
        for part in [pool.submit(work) for work in works]:
            yield finished(part)
    except RuntimeError as error:
        raise Failure(f"{what}: {error}") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def slices(what: str, size: int, step: int, work: Callable[[int, int], Answer]) -> Iterator[Answer]:
    """What work(start, end) returns for each STEP bytes of SIZE, as `at_once` has it."""
    show = progress(what, size)
    spans = [(start, min(start + step, size)) for start in range(0, size, step)]
    works = [partial(work, *span) for span in spans]
    for (_, end), part in zip(spans, at_once(what, 4, works)):
        show(end)
        yield part


def upload(s3: S3, dump: Dump) -> Backups:
    """Upload a sealed dump, prove that S3 has it, and note where; what is in the bucket then.

    It begins after the dump: parts that are sent meanwhile slow pg_dump down, which holds locks and
    a snapshot.

    Raises Failure: S3 refuses, or has not what was sent; the dump stays on the volume.
    """
    info("Uploading backup file to S3 ...")
    begun = monotonic()
    key, head = store(s3, dump)
    check_stored(s3, dump, key, head)
    took, size = int(monotonic() - begun), head["ContentLength"]
    found = known_backups(s3, key)
    # Are they still there? From now on, with an archive, nobody takes them for ones left behind.
    if dump.roles and not roles_beside(s3, dump, key):
        warn("The backup's roles were overwritten: give each its own prefix", Key=key)
        dump.roles = None
    info(
        "Successfully uploaded backup file",
        ExecTime=f"{took} seconds",
        Size=f"{size} bytes",
    )
    dump.save(
        filename=os.path.basename(key),
        bucket=s3.s.aws_s3_bucket_name,
        filepath_s3=f"/{key}",
        size_s3=size,
        exectime_upload_s3=took,
        roles_sql="",
        role_passwords=dump.role_passwords if dump.roles else None,
    )
    return found


def store(s3: S3, dump: Dump) -> tuple[str, Any]:
    """Put a dump under the first free name from its own on: the key, and HeadObject's answer.

    Any answer may get lost: S3 may have done what it seems to have refused. So each round begins
    by asking what is there, and what it does follows from that alone.
    """
    first = seconds = int(re.findall("[0-9]+", dump.file)[-1])
    parts: Fields = {}  # what will complete the upload that was sent for `key`
    condition = {"IfNoneMatch": "*"}  # nothing that is there is overwritten
    pauses, why, again = chain([0.0], backoff()), "", True
    end = FOREVER  # for completing it there, from the first attempt on
    while True:
        key = s3.key(f"backup_{seconds}.bak{dump.ending}")
        require(seconds < first + 1000, f"{s3.where}: each name before {key} is taken, too")
        head = s3.head(key)
        if head:
            if is_ours(s3, dump, key, head, dump.size):
                return key, head
            seconds += 1  # somebody else's: that name is taken
            continue
        if parts.get("Key") != key:
            if not roles_beside(s3, dump, key):
                seconds += 1  # nor is that
                continue
            parts, end = send_parts(s3, dump, key), FOREVER
            continue
        require(monotonic() <= end, f"{s3.where}: {key}: cannot complete it: {why}")
        try:
            if dump.taken != key:  # else it has only to appear
                s3.call("complete_multipart_upload", 0, **parts, **condition)
                dump.save(taken=key)
            why = "S3 took it, and does not show it"
        except S3Failure as error:
            why = str(error)
            if error.status == 404:  # it is gone: send again, once, if no object is there
                if again:
                    parts = {}
                again = False
            elif error.status == 501 and condition:
                condition = {}  # this server knows none
            elif not error.again:
                raise
        end = min(end, later(s3.patience))
        sleep(next(pauses))


def is_ours(s3: S3, dump: Dump, key: str, head: Any, sent: int) -> bool:
    """Whether what S3 has under a key, where so many bytes were SENT, is of this dump, by its id.

    Raises Unfit if S3 took it from us and shows it without: to go on to the next name would leave a
    copy under each.
    """
    whose, size = head["Metadata"].get("backup-id", ""), head["ContentLength"]
    # Another's dump of the same second may be the same, byte for byte; it has its own id.
    same = (size, plain_etag(head)) == (dump.size, dump.etag)
    if not whose and (same or (dump.taken, size) == (key, sent)):
        text = f"S3 keeps no metadata, by which a backup is proven: it shows {size} bytes without"
        todo = "have it keep them (JuiceFS: --object-meta), then delete that object"
        raise Unfit(f"{s3.where}: {key}: {text}; {todo}")
    return bool(whose == dump.id)


def roles_beside(s3: S3, dump: Dump, key: str) -> bool:
    """Put a dump's roles beside where its archive is to be; False: others' have that name.

    What S3 refuses for good, a policy for archives alone for one, is no reason for no backup.
    Raises Failure where S3 is away.
    """
    if not dump.roles_sql:
        return True
    name, before = beside(key), dump.roles
    dump.save(roles=name)  # known, so that a later run can remove them where it takes another name
    try:
        if before and before != name:
            with allowing(403):  # of another prefix, perhaps
                remove_roles(s3, before, {"backup-id": dump.id})
        return store_roles(s3, dump, name)
    except Failure as error:
        if error.again or isinstance(error, Unfit):
            raise
        warn("The backup is without the server's roles", Reason=error)
    dump.save(roles=None)
    return True


def store_roles(s3: S3, dump: Dump, name: str) -> bool:
    """Have the roles in S3, under this key; False: what is there is another's.

    As for archives, each round begins by asking what is there. Raises Failure.
    """
    data = dump.roles_sql.encode()
    metadata = {**metadata_of(dump), "sha256": dump.roles_sha256}
    condition = {"IfNoneMatch": "*"}
    end, why = later(s3.patience), S3Failure("S3 has nothing there")
    for pause in chain([0.0], backoff()):
        head = s3.head(name)
        if head:
            whose, size = head["Metadata"].get("backup-id", ""), head["ContentLength"]
            ours, same = is_ours(s3, dump, name, head, len(data)), size == len(data)
            text = f"{s3.where}: {name}: {size} bytes, of backup-id {whose!r}; sent: {len(data)}"
            require(same == ours or whose not in ("", dump.id), text)
            return ours
        if monotonic() > end:
            break
        try:
            s3.put(name, data, patience=0, Metadata=metadata, **condition)
            dump.save(taken=name)
        except S3Failure as error:
            why = error
            if error.status == 501 and condition:
                condition = {}  # this server knows none
            elif not error.again:
                raise
        sleep(pause)
    # What takes them each time and has them never is not away: that would be each night so.
    raise S3Failure(f"{s3.where}: {name}: cannot put it: {why}", again=why.again)


def check_stored(s3: S3, dump: Dump, key: str, head: Any) -> None:
    """Whether S3 has what was sent, by size and, where that is one of MD5s, by ETag.

    One that looks like one, and is another, may be of something else: then it is read back.

    Raises Failure; then the object is gone, and the dump bears another id: whatever has the old one
    is no backup, but looks like one.
    """
    etag, size, sent = plain_etag(head), head["ContentLength"], dump.etag
    other = "-" in etag and sent and etag != sent
    if size == dump.size and (not other or read_back(s3, dump, key, etag) == dump.sha256):
        return
    whose = {"backup-id": dump.id}
    dump.save(id=os.urandom(16).hex())
    s3.delete(key, head.get("VersionId", ""))
    if dump.roles:
        remove_roles(s3, dump.roles, whose)
    raise Failure(f"{s3.where}: {key}: {size} bytes, {etag}; sent: {dump.size}, {sent}")


def read_back(s3: S3, dump: Dump, key: str, etag: str) -> str:
    """The SHA-256 of what S3 gives of a dump's object. Raises S3Failure where it gives another."""
    info("Its ETag is not its parts' MD5: reading it back ...", Key=key)
    show, sha256 = progress("Reading in progress", dump.size), hashlib.sha256()
    step = part_size(dump.size)

    def take(wanted: str, answer: Any) -> Any:
        """Hash on with this range, anew in each attempt."""
        same = answer.get("ContentRange") == wanted and plain_etag(answer) in ("", etag)
        require(same, f"{key}: it gave not {wanted} of {etag}")
        read = sha256.copy()
        for data in answer["Body"].iter_chunks(BLOCK):
            read.update(data)
        return read

    for start in range(0, dump.size, step):
        end = min(start + step, dump.size)
        wanted = partial(take, f"bytes {start}-{end - 1}/{dump.size}")
        sha256 = s3.call("get_object", take=wanted, Key=key, Range=f"bytes={start}-{end - 1}")
        show(end)
    return sha256.hexdigest()


def abort(s3: S3, dump: Dump, patience: float = FOREVER) -> None:
    """Have S3 forget the parts of an upload that was begun and not completed. Raises Failure."""
    if dump.upload:
        with allowing(400, 403, 404, 405, 501):  # some servers know no such request
            s3.call("abort_multipart_upload", patience, **dump.upload)


def part_size(size: int) -> int:
    """Bytes of each part of an upload: whole MiB, in as few parts as AWS and memory allow."""
    parts = USUAL_PARTS if size <= USUAL_PARTS * MAX_PART else MAX_PARTS
    step = -(-size // parts)  # rounded up
    return max(MIN_PART, -(-step // MIB) * MIB)


def metadata_of(dump: Dump) -> dict[str, str]:
    """What the object of a sealed dump tells about it: ASCII alone, as headers have it."""
    metadata = {"backup-id": dump.id}
    for name in (*FACTS, *DIGESTS):
        value = getattr(dump, name)
        if value is not None:
            metadata[name.replace("_", "-")] = str(value)
    metadata["database"] = quote(dump.database, safe="")
    if dump.roles:
        metadata["roles-sha256"] = dump.roles_sha256
    if dump.compression:
        metadata["compression"] = dump.compression
    size = dump.plain_size or dump.size
    if dump.steady_from is not None and size >= dump.steady_from:
        metadata["normal" if dump.before else "steady"] = str(dump.size)
    elif dump.after:
        metadata["after"] = dump.after
    if dump.before:
        metadata["before"] = dump.before
    if dump.keep_until:
        metadata["keep-until"] = dump.keep_until
        metadata["label"] = quote(dump.label, safe="")
    return metadata


class Sent(NamedTuple):
    """A part of an upload that S3 has."""

    etag: str  # as S3 gave it
    md5: bytes  # of what was sent


def send_part(s3: S3, dump: Dump, upload: Mapping[str, str], start: int, end: int) -> Sent:
    """Send these bytes of a dump, a part of an UPLOAD, with their MD5, which S3 compares."""
    from s3transfer.utils import ReadFileChunk  # boto3's own: a slice is read as it is sent

    md5 = hashlib.md5(usedforsecurity=False)
    number = start // part_size(dump.size) + 1
    with ReadFileChunk.from_filename(dump.path, start, end - start) as part:
        while data := part.read(BLOCK):
            md5.update(data)
        checksum = content_md5(md5.digest())
        answer = s3.call(
            "upload_part", FOREVER, **upload, PartNumber=number, Body=part, ContentMD5=checksum
        )
    return Sent(answer["ETag"], md5.digest())


def send_parts(s3: S3, dump: Dump, key: str, again: bool = True) -> Fields:
    """Send all of a dump; what will complete the upload. Raises Failure.

    The upload is noted before anything is sent, so that a later run can abort it. AGAIN: it is
    begun anew, once, where S3 has it no more, or takes no part twice.
    """
    abort(s3, dump)
    dump.save(taken="")  # is there room to note what is begun?
    metadata = metadata_of(dump)
    if re.fullmatch("[ -~]{1,40}", s3.date):
        metadata["upload-begun"] = s3.date  # when it ends is the object's own time, in most servers
    made = s3.call("create_multipart_upload", Key=key, Metadata=metadata)
    # Known at once: where noting it fails, it is aborted all the same.
    dump.upload = {"Key": key, "UploadId": made["UploadId"]}
    dump.save()
    send = partial(send_part, s3, dump, dump.upload)
    sent = list[Sent]()
    try:
        sent += slices("Upload in progress", dump.size, part_size(dump.size), send)
    except S3Failure as error:
        if not again or error.status not in (404, 501):
            raise
        warn("The upload is begun anew ...", Error=error)
        return send_parts(s3, dump, key, again=False)
    # Where a server encrypts (KMS), no ETag is an MD5; else each is.
    plain = sum(part.etag.strip('"') == part.md5.hex() for part in sent)
    fits = plain in (0, len(sent))
    require(fits, f"{s3.where}: {key}: a part is not what was sent, says its ETag")
    whole = hashlib.md5(b"".join(part.md5 for part in sent), usedforsecurity=False).hexdigest()
    dump.save(etag=f"{whole}-{len(sent)}" if plain else "")
    parts = [{"PartNumber": number, "ETag": part.etag} for number, part in enumerate(sent, 1)]
    return {**dump.upload, "MultipartUpload": {"Parts": parts}}


# ---- A backup: as a whole ------------------------------------------------------------------------

DEATHS = 3  # children that a process may lose: what kills three kills the next one, too
# Of a dump, what its result has: see `backup --help`.
RESULT = (
    "filename",
    "bucket",
    "filepath_s3",
    "exectime_backup",
    "size",
    "size_s3",
    "exectime_upload_s3",
    "sha256",
    *ENCRYPTION,
    *FACTS,
    "tables",
    "roles",
    "role_passwords",
    "other_databases",
    "starttime",
    "label",
    "keep_until",
    "made_again",
    "warnings",
)


def backup(s: Settings, resume: bool, process: str = "", **begun: str) -> Fields | None:
    """One backup; its result. With RESUME: only finish what earlier runs left, and None; or the
    result of the last one that was left, without what retention did.

    process: the id of the process in Colonies that it is for, if it is for one. begun: what else is
    known of a new dump: its `starttime`, `label`, `keep_until`. Raises Failure, OSError or Stop; a
    finished dump is kept then, unless nobody wants it.
    """
    staging(s, wait=bool(process))
    s3 = S3(s, 10 if resume else PATIENCE)  # resuming is tried again anyway
    dump = sweep(s, s3, process, resume)
    if resume:
        if s.verify_db_host:
            drop_scratch(s)
        return {name: getattr(dump, name) for name in RESULT} if dump.gone else None
    attempts = dump.attempts + 1
    require(attempts <= DEATHS or dump.gone, "killed three times: is the memory limit low?")
    try:
        if dump.sealed:
            dump.save(attempts=attempts)
        else:
            dump = make_dump(s, s3, process=process, attempts=attempts, **begun)
        result = finish(s3, dump)
    except (Stop, Failure, OSError) as why:
        if dump.pending:
            put_off(s3, dump, why)
        raise
    info("Backup procedure completed, closing process ...")
    return result


def put_off(s3: S3, dump: Dump, why: BaseException) -> None:
    """Leave a finished dump for a later run; remove it if its process was cancelled (SIGUSR1).

    Its process has failed, unless we were only stopped: then the dump is for that one still.
    """
    cancelled = why.args == (signal.SIGUSR1,)
    if not cancelled:
        text = "The finished dump stays; `backup --resume` uploads it, or the next backup"
        warn(text, Filepath=dump.path)
    with suppress(Exception):
        in_time(2, lambda: abort(s3, dump, 0))
    whose = dump.process if isinstance(why, Stop) else ""
    with suppress(OSError):
        dump.save(attempts=0, process=whose)
    if cancelled:
        dump.remove(dump.file, dump.path)


def finish(s3: S3, dump: Dump) -> Fields:
    """Take a sealed dump to its backup's result: encrypt, upload, remove, prune."""
    if dump.recipients and not dump.stored:
        encrypt(s3.s, dump)
    found = known_backups(s3) if dump.stored else upload(s3, dump)
    if not dump.gone:
        with suppress(FileNotFoundError):
            os.unlink(dump.path)
        info("Removed local backup file", Filepath=dump.path)
        dump.save(gone=True)
    result = {name: getattr(dump, name) for name in RESULT} | prune(s3, dump, found)
    if not dump.process:
        dump.remove()  # else it is kept until the process is closed
    return result


def sweep(s: Settings, s3: S3, process: str, resume: bool) -> Dump:
    """Finish or clear what crashes left on the volume; the dump of PROCESS, or an empty one.

    When we are to RESUME: the last one that was finished, or an empty one.

    What cannot be finished keeps nobody from a new backup, unless that would fare no better. Raises
    Failure or OSError where it is the one of PROCESS, or where we are here for nothing else: to
    RESUME.
    """
    mine = Dump("")
    kept: Exception | None = None
    warn_of_strays(s)
    for dump in dumps(s):
        own, waited = bool(process) and dump.process == process, dump.pending
        try:
            there = settle(s3, dump, own, bool(process))
        except Exception as error:  # a journal may say anything
            if own or isinstance(error, Unfit):
                raise
            kept = error
            text = "Cannot finish what an earlier run left, it stays"
            warn(text, Filepath=dump.path, Error=error)
            continue
        if there and (own or (resume and waited)):
            mine = dump
    if resume and kept:
        raise kept
    return mine


def settle(s3: S3, dump: Dump, own: bool, backing_up: bool) -> bool:
    """Clear, leave alone or, if it is not our OWN, finish one that is left; False: it is no dump.

    backing_up: we are here for a process, whose backup comes next.
    """
    if not dump.pending:
        clear(dump)
    elif not is_whole(dump):
        for path in {dump.path, *filter(os.path.lexists, [dump.file])}:
            warn("Not what its journal says, leaving it alone", Filepath=path)
        abort(s3, dump)
        dump.remove()
        return False
    elif not own:
        # It may kill this process, too. That may cost it two children, not the third, which is for
        # its own backup.
        tries = dump.attempts + backing_up
        if tries < DEATHS or not backing_up:
            dump.save(attempts=tries)
            finish(s3, dump)
    return True


def is_whole(dump: Dump) -> bool:
    """Whether the file of a sealed dump is there under its name, and what it was, or in S3."""
    if os.path.exists(dump.partial) and not os.path.lexists(dump.path):
        os.rename(dump.partial, dump.path)  # it was sealed, and a crash came
    if dump.stored or digest(dump.path) == dump.sha256:
        return True
    plain = dump.plain_sha256
    if plain is None or digest(dump.file) != plain:
        return False
    # It is there still, and age's is damaged: `encrypt` makes that anew.
    dump.save(encryption=None, sha256=plain, size=dump.plain_size)
    return True


def clear(dump: Dump) -> None:
    """Remove what a dump left that was not finished, and a journal that nobody needs.

    One that waits for its process to be closed is kept for a day: by then that has ended otherwise.
    """
    with suppress(OSError):
        os.unlink(dump.partial)
    if not dump.process or time.time() - os.path.getmtime(dump.journal) > 24 * 3600:
        dump.remove()


# ---- Signing: secp256k1, as Colonies uses it -----------------------------------------------------

FIELD = 2**256 - 2**32 - 977
ORDER = 2**256 - 0x14551231950B75FC4402DA1732FC9BEBF
GENERATOR = (
    0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
    0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8,
)
Point = tuple[int, int]  # of y^2 = x^3 + 7


def add(p: Point, q: Point) -> Point:
    """The sum of two points, which may be the same, but not opposite."""
    (px, py), (qx, qy) = p, q
    rise, width = qy - py, qx - px
    if p == q:
        rise, width = 3 * px**2, 2 * py
    slope = rise * pow(width, -1, FIELD)
    x = (slope**2 - px - qx) % FIELD
    return x, (slope * (px - x) - py) % FIELD


@cache
def doubles() -> list[Point]:
    """The generator times 1, 2, 4, …: with them a signature takes 2 ms, without 7."""
    return list(accumulate(range(255), lambda p, _: add(p, p), initial=GENERATOR))


def multiply(scalar: int) -> Point:
    """The generator times a number, 1 to ORDER - 1."""
    return reduce(add, [p for bit, p in enumerate(doubles()) if scalar >> bit & 1])


def identity(key: int) -> str:
    """What Colonies calls the id of a private key: SHA3-256 of its public key's hex text."""
    return hashlib.sha3_256("04{:064x}{:064x}".format(*multiply(key)).encode()).hexdigest()


def nonce(key: int, number: int) -> int:
    """RFC 6979, 3.2; its first candidate: that this is no valid one has a chance of 2**-128."""
    seed = key.to_bytes(32, "big") + (number % ORDER).to_bytes(32, "big")
    k, v = bytes(32), b"\1" * 32
    for mark in (b"\0", b"\1"):
        k = hmac.digest(k, v + mark + seed, "sha256")
        v = hmac.digest(k, v, "sha256")
    return int.from_bytes(hmac.digest(k, v, "sha256"), "big")


def sign(key: int, text: str) -> str:
    """A signature in hex: r (32 bytes), low s (32), recovery id (1)."""
    number = int.from_bytes(hashlib.sha3_256(text.encode()).digest(), "big")
    once = nonce(key, number)
    x, y = multiply(once)
    s = pow(once, -1, ORDER) * (number + x * key) % ORDER
    if s > ORDER - s:
        s, y = ORDER - s, y ^ 1
    return f"{x:064x}{s:064x}{y & 1:02x}"


def own_key(owner: int, colony: str, name: str) -> int:
    """The key of an executor that was given none: the same one after each start."""
    key = counter = 0
    while not 0 < key < ORDER:
        text = f"colonies-backup-executor/1\0{colony}\0{name}\0{counter}"
        key = int.from_bytes(hmac.digest(owner.to_bytes(32, "big"), text.encode(), "sha256"), "big")
        counter += 1
    return key


# ---- Colonies ------------------------------------------------------------------------------------


MOST = 16 * MIB  # bytes of an answer; a process has 3/4 of that


def first_process(raw: bytes) -> Any:
    """What an answer beyond MOST tells of its first process, before what its submitter wrote.

    That is all that it takes to close it. Raises Failure where the answer has none.
    """
    payload = raw.partition(b'"payload":')[2].lstrip(b' "')[: 64 * 1024]
    try:
        head = base64.b64decode(payload).decode(errors="replace").partition('"attributes":')[0]
        process = json.loads(head.lstrip("[ \n").rstrip(", \n") + "}")
    except ValueError:
        raise Failure(f"its answer has more than {MOST} bytes, the limit here") from None
    process["beyond"] = f"its description has more than {MOST * 3 // 4} bytes, the limit here"
    return [process] if head.startswith("[") else process


def opener_for(tls: ssl.SSLContext | None) -> urllib.request.OpenerDirector:
    """What opens URLs, https too if there is TLS; the usual one would follow redirections."""
    opener = urllib.request.OpenerDirector()
    opener.add_handler(urllib.request.ProxyHandler())
    opener.add_handler(urllib.request.HTTPHandler())
    if tls:
        opener.add_handler(urllib.request.HTTPSHandler(context=tls))
    return opener


# What X509_STRICT alone finds fault with, by OpenSSL's x509_vfy.h. From 3.13 on Python sets that;
# botocore does not.
STRICT = range(80, 94)


def why_no_answer(error: Exception, status: int) -> str:
    """Why there is no answer, and what to look at."""
    reason = getattr(error, "reason", None) or error  # urllib's URLError has one
    look_at = "COLONIES_TLS, COLONIES_CA_FILE"
    if isinstance(reason, (LookupError, TypeError, ValueError)) and not isinstance(reason, OSError):
        reason = f"what answers is not Colonies: {reason}"
    if getattr(reason, "verify_code", 0) in STRICT:
        look_at = (
            "COLONIES_CA_FILE: the authority is known, but such a certificate is refused from "
            "Python 3.13 on, though S3's client takes it; see `serve --help`"
        )
    elif isinstance(reason, (ConnectionRefusedError, socket.gaierror)):
        look_at = "COLONIES_SERVER_HOST, COLONIES_SERVER_PORT"
    elif isinstance(reason, TimeoutError):
        look_at = "COLONIES_SERVER_HOST, COLONIES_SERVER_PORT: is it let through?"
    return f"{reason} ({f'HTTP {status}; ' if status else ''}see {look_at})"


class Colonies:
    """A Colonies server. Raises OSError where COLONIES_CA_FILE cannot be read."""

    def __init__(self, s: Settings):
        scheme, host, tls = "http", s.colonies_server_host, None
        if s.colonies_tls:  # else nothing holds the 2 MB of authorities
            scheme = "https"
            tls = ssl.create_default_context(cafile=s.colonies_ca_file or None)
            if s.colonies_insecure_skip_verify:
                tls.check_hostname = False
                tls.verify_mode = ssl.CERT_NONE
        self.opener = opener_for(tls)
        if ":" in host:
            host = f"[{host}]"
        self.url = f"{scheme}://{host}:{s.colonies_server_port}/api"

    def ask(self, key: int, within: float, kind: str, **fields: Any) -> Any:
        """Sign and send a message; the decoded answer, within so many seconds.

        Of one beyond MOST it is the `first_process`.

        Raises ColoniesFailure; its status is 0 also where something in between answers in its
        place.
        """
        begun, status = monotonic(), 0
        text = base64.b64encode(json.dumps({"msgtype": kind, **fields}).encode()).decode()
        body = {"payloadtype": kind, "payload": text, "signature": sign(key, text)}
        headers = {"Content-Type": "text/plain"}
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)

        def exchange() -> tuple[int, bytes]:
            """The HTTP status and the body of its answer."""
            with self.opener.open(request, timeout=within) as reply:
                return reply.status, reply.read(MOST + 1)

        try:
            status, raw = in_time(within, exchange)
            require(status // 100 != 3, "it redirects, which is not followed")
            if status == 200 and len(raw) > MOST:
                return first_process(raw)
            envelope = json.JSONDecoder().raw_decode(raw.decode().lstrip())[0]  # 2023 may send two
            answer = json.loads(base64.b64decode(envelope["payload"]))
            if status == 200 and envelope["error"] is False:
                return answer
            why = str(answer["message"])
        except Exception as error:
            why = why_no_answer(error, status)
            if status != 200:
                status = 0
        finally:
            seconds = f"{monotonic() - begun:.3f}"
            log("debug", "Colonies answered", Message=kind, Status=status, Seconds=seconds)
        raise ColoniesFailure(f"Colonies at {self.url}: {kind}: {why[:500]}", status, True)


def server_time(text: object) -> int:
    """A time as RFC 3339 writes it, in ns since 1970; 0: it is none, or before that."""
    with suppress(IndexError, ValueError):
        day, part, zone = re.findall(r"^(.{19})\.?([0-9]{,9})(Z|[+-]\d\d:\d\d)$", str(text))[0]
        whole = datetime.fromisoformat(day + zone.replace("Z", "+00:00")).timestamp()
        return max(0, int(whole) * 10**9 + int(part.ljust(9, "0")))
    return 0


# ---- The executor --------------------------------------------------------------------------------

FUNCTIONS = {
    "backup": "Backs up; arguments (label, keepuntil): none, or a text, and YYYY-MM-DD or forever",
    "verify": "Proves one; argument (name): none or a name",
    "check": "Fails if a peer does; argument (maxage): none or hours that the newest may be old",
}
# Of each the arguments that it may have, in order: names as keywords (2026), patterns as JSON.
ARGUMENTS = {
    "backup": {"label": '".*"', "keepuntil": '".*"'},
    "verify": {"name": r'"\w[\w.-]{,99}"'},
    "check": {"maxage": f'"?{HOURS}"?'},
}
WAITING, RUNNING = 0, 1  # states of a process in Colonies' words; above: its ends


class Standing(enum.Enum):
    """Where a process stands, seen from this executor."""

    WAITING = "waits for an executor"
    HERE = "is assigned to us"
    ELSEWHERE = "is assigned to another executor"
    SUCCESSFUL = "was closed as successful"
    FAILED = "was closed as failed, or the server failed it"
    CANCELLED = "was cancelled"
    UNKNOWN = "Colonies knows none such, or said something odd"


A_USERS = "is COLONIES_EXECUTOR_PRVKEY (or COLONIES_PRVKEY) a user's key?"
ENDS = (Standing.SUCCESSFUL, Standing.FAILED, Standing.CANCELLED)  # states above RUNNING, in order


class Process(NamedTuple):
    """A process of Colonies, as far as it can be read: who submits it may write anything."""

    id: str
    function: str
    arguments: list[str]  # of the command
    refusal: str  # why it is not to be done; "": nothing speaks against it
    submitted: int  # ns since 1970, by the server's clock; 0: it does not say
    starttime: str  # by the same clock, for the result; "": it does not say


def backup_before(answer: Any, s: Settings) -> tuple[list[str], str]:
    """The name of the backup that its workflow made before a process, if one did; and a refusal.

    The first node of a cron has an `in`, too, but no parents: that is of the run before.
    """
    names, refusal = [], ""
    for text in answer.get("in") or [] if answer.get("parents") else []:
        with suppress(KeyError, TypeError, ValueError, RecursionError):  # what others put out
            made = json.loads(text)
            name, bucket, path = (str(made[x]) for x in ("filename", "bucket", "filepath_s3"))
            plain = re.fullmatch(ARGUMENTS["verify"]["name"], json.dumps(name))
            if plain and (bucket, path) == (s.aws_s3_bucket_name, f"/{s.key(name)}"):
                names = [name]
            else:
                refusal = f"the backup before it is not of this bucket and prefix: {bucket}{path}"
    return names, "" if names else refusal[:999]


def arguments_of(function: str, spec: Fields) -> dict[str, str] | None:
    """The arguments that a process's spec gives a function, by name; None: it takes no such."""
    known = ARGUMENTS.get(function)
    args, kwargs = spec.get("args") or [], spec.get("kwargs") or {}
    if known is None or not (isinstance(args, list) and isinstance(kwargs, dict)):
        return None
    given = dict(zip(known, args)) | kwargs
    fits = len(given) == len(args) + len(kwargs) and given.keys() <= known.keys()
    fits = fits and all(re.fullmatch(known[name], json.dumps(given[name])) for name in given)
    return {name: str(given[name]) for name in given} if fits else None


def read_process(answer: Any, s: Settings) -> Process:
    """A process out of an answer of Colonies. Raises KeyError where that has no id."""
    spec = answer.get("spec")
    if not isinstance(spec, dict):
        spec = {}
    function, refusal = str(spec.get("funcname"))[:99], ""
    given = arguments_of(function, spec)
    arguments = [*(given or {}).values()]
    if given is None:
        refusal = f"no function {function!r} with such arguments, only {FUNCTIONS}"
    elif function == "check":
        arguments = ["--json", "--max-age", *(arguments or [str(s.check_max_age)])]
    elif function == "verify" and not arguments:
        arguments, refusal = backup_before(answer, s)
    elif function == "backup":
        refusal = keep_fault(given.get("label"), given.get("keepuntil"))
        options = {"label": "--label", "keepuntil": "--keep-until"}
        arguments = [f"{options[name]}={given[name]}" for name in given]
    return Process(
        str(answer["processid"])[:99],
        function,
        arguments,
        answer.get("beyond") or refusal,
        server_time(answer.get("submissiontime")),
        str(answer.get("starttime") or "")[:99],
    )


class Job:
    """A command of ours that runs as a child, for a process of Colonies or for none.

    So it can be stopped, and what kills it, as a memory limit, kills it alone. Its stdout carries
    its log, on lines that begin with "#", and its result.
    """

    def __init__(self, process: Process | None, *command: str):
        self.process = process
        self.news = list[str]()  # log lines that Colonies has not got yet
        self.shown = dict[str, str]()  # what it is at, by its log, and with how many bytes
        self.errors = list[str]()
        self.result = b""
        self.rest = b""  # of a line that is not complete yet
        keys = "(COLONIES_.*PRVKEY|HEARTBEAT_URL)(_FILE)?$"
        asks = bool(process) and "check" in command  # Colonies, too; the others take none
        env = {name: x for name, x in os.environ.items() if asks or not re.match(keys, name)}
        told = {"process": process.id, "starttime": process.starttime} if process else {}
        env[CHILD] = json.dumps(told)
        env.setdefault("MALLOC_ARENA_MAX", "1")  # else each of its threads takes memory of its own
        # As we were started: with -m it goes by what was compiled.
        itself = ["-m", __spec__.name] if __spec__ else [__file__]
        self.child = start([sys.executable, *itself, *command], env, close_fds=False)

    def ended(self, within: float = 1) -> bool:
        """Whether it has ended; takes in what it says WITHIN so many seconds."""
        pipe = self.child.stdout
        if not pipe or not select.select([pipe], [], [], within)[0]:
            return False
        data = os.read(pipe.fileno(), 65536)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"#"):
                self.result += line + b"\n"
                continue
            level, said, text, fields = json.loads(line[1:])
            self.news.append(said)
            if level == "error":
                self.errors.append(said)
            elif level == "info":
                self.shown = {"phase": text, **fields}
        return not data and self.child.wait() is not None


def signal_name(number: int) -> str:
    """A signal's name; real-time ones have none, only a number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Executor:
    """Waits for processes, has each done by a child, and closes it.

    What Colonies says is the truth, and is asked for again and again; what is kept here is only
    what it does not know. Nothing that it answers ends a job that runs, but word that the job's
    process is not ours any more.

    Two of one name with the owner's key are one to Colonies: both may run the same process, whose
    first result counts, and one that leaves takes the registration of both along, until the other
    joins again.
    """

    def __init__(self, s: Settings):
        self.s = s
        self.server = Colonies(s)
        self.name, self.type = s.colonies_executor_name, s.colonies_executor_type
        self.database = f"{s.db_host}:{s.db_port}/{s.db_database}"
        self.colony = {"colonyname": s.colonies_colony_name, "colonyid": s.colonies_colony_id}
        self.take_keys(s)
        self.serving = False
        self.joined: bool | None = None  # None: never yet
        self.job: Job | None = None
        self.checks: Job | None = None  # `check`, once; what it finds it logs itself
        self.times = dict[str, float]()  # when what is due again, by the monotonic clock; 0: now
        self.queue = dict[str, Process]()  # assigned to us and not closed; the job's, too
        self.outcomes = dict[str, dict[str, list[str]]]()  # to close with: `out` or `errors`
        # When the newest backup's process was assigned (ns, as `submitted`), and its result: with
        # that each process is closed that was submitted before.
        self.newest = (0, "")
        # How often a process's child was killed. What is on the volume counts it, too, over our
        # restarts; but a child may be killed before it has anything there.
        self.deaths = Counter[str]()
        self.facts = Fields()  # of the database, by `check` or the last backup's result
        self.unknown = set[str]()  # types of messages that the server is too old for
        # Since when no look at the crons has found another executor of our type.
        self.alone_since = FOREVER
        self.heart = Heartbeat(s)
        self.reachable = False  # whether Colonies answered the last time
        self.failures = Counter[str]()  # by function
        self.uploaded: int | None = None  # seconds of the last upload; None: since our start none
        self.ended = 0  # jobs, since our start

    def take_keys(self, s: Settings) -> None:
        """Take the keys from settings: they may have changed since the start."""
        self.owner = s.colonies_colony_prvkey
        colony = s.colonies_colony_name or s.colonies_colony_id
        self.key = s.colonies_executor_prvkey or own_key(self.owner, colony, self.name)
        self.id = identity(self.key)
        self.names = {"executorname": self.name, "executorid": self.id, **self.colony}

    def call(self, msgtype: str, within: float = 15, key: int = 0, /, **fields: Any) -> Any:
        """What Colonies answers within so many seconds; key: else our own. Raises Failure."""
        self.show_life()
        return self.server.ask(key or self.key, within, msgtype, **fields)

    def offer(self, msgtype: str, **fields: Any) -> None:
        """Tell Colonies what only newer servers take. Raises Failure where it does not answer."""
        if msgtype not in self.unknown:
            try:
                self.call(msgtype, **fields)
            except ColoniesFailure as refused:
                if not refused.status:
                    raise
                if "PayloadType" in str(refused):  # that is not asked for again
                    self.unknown.add(msgtype)

    def show_life(self) -> None:
        """Touch the file that a liveness probe looks at; `check` is no sign of life.

        The chart's probe takes it for dead after 3 minutes, so it is touched before each call.
        """
        if self.serving:
            with suppress(OSError), open(self.s.backup_alive_file, "a", opener=guarded) as file:
                os.utime(file.fileno())

    def due(self, what: str, seconds: float) -> bool:
        """True once in so many seconds."""
        if monotonic() < self.times.get(what, 0):
            return False
        self.times[what] = later(seconds)
        return True

    def serve(self) -> None:
        """Do what Colonies asks for, until a signal comes.

        Whatever a server answers, a job that runs goes on. Raises what is no use to try again, if
        that comes before the colony knows us: nobody has come to rely on us yet.
        """
        self.serving = True
        s = self.s
        info(
            f"Colonies backup executor {__version__}",
            Colonies=self.server.url,
            Database=self.database,
            Bucket=f"{s.aws_s3_endpoint or 'AWS'}/{s.aws_s3_bucket_name}/{s.aws_s3_prefix}",
            BackupCron=s.backup_cron or "none",
            VerifyCron=s.verify_cron or "none",
            CheckCron=s.check_cron or "none",
            Keeps=f"{s.full_backups} backups",
        )
        if s.metrics_port:
            behind(Metrics(self).serve)
        if s.verify_db_host:
            self.job = Job(None, "backup", "--resume")  # a crash may have left a database there
        pauses = backoff()
        while not signals:
            self.show_life()
            try:
                self.round()
            except Exception as error:
                self.complain(error)
                sleep(next(pauses))
            else:
                self.reachable, pauses = True, backoff()
                if self.times.pop("complain", 0):
                    info("Colonies is back")

    def round(self) -> None:
        """Do the one thing that is next."""
        if self.checks and self.checks.ended(0):
            info("`check` has ended", Status=self.checks.child.returncode)
            told = {name.lower(): x for name, x in self.checks.shown.items()}  # of the database
            self.facts, self.checks = told | self.facts, None
            self.times["describe"] = 0
        if self.job and self.job.ended():
            with suppress(Failure):
                self.tell(self.job)
            self.conclude(self.job)
        if not self.job and not self.queue and self.due("resume", 300) and self.is_left():
            self.job = Job(None, "backup", "--resume")
        if not self.joined:
            self.join()
        elif self.job:
            self.attend(self.job)
        elif self.queue:
            self.see_to(min(self.queue.values(), key=self.rank))
        else:
            self.idle()

    def is_left(self) -> bool:
        """Whether there is a dump on the volume that waits for S3, or the rest of one."""
        return any(x.pending or os.path.exists(x.partial) for x in dumps(self.s))

    def rank(self, process: Process) -> tuple[bool, bool]:
        """What comes first: what is done; then backups, for which all else waits."""
        return process.id not in self.outcomes, process.function != "backup"

    def complain(self, error: Exception) -> None:
        """Log what failed, once a minute, and have the next rounds find out more.

        Raises the error where it comes before we ever joined, and will not pass.
        """
        status = getattr(error, "status", 200)  # what cannot be read is an odd answer, too
        again = getattr(error, "again", not isinstance(error, OSError))
        self.reachable = status > 0
        if self.joined is None and not again:
            raise error
        level = "error"
        if not status and again:
            level = "warning"
            # While it is away anything may happen.
            self.times["look"] = self.times["cron"] = self.times["describe"] = 0
        if status == 403 and self.joined:
            text = (
                "The colony's owner removed or rejected this executor, or it was dropped as silent"
            )
            if self.due("removed", 60):
                warn(text, Executor=self.name, Error=error)
        elif self.due("complain", 60):
            log(level, f"{error}; trying again ...")
        if status == 403:
            self.joined = False
        self.times["watch"] = 0

    def join(self) -> None:
        """Be known to the colony, approved, and announced with our functions. Raises Failure.

        Files of keys are read anew now; those of other secrets are by each backup, in its child.
        """
        self.take_keys(read_settings(os.environ, "serve", serve=True))
        executor = self.names | {"executortype": self.type}
        if not self.known():
            self.register(executor)
        known = set[str]()
        with allowing(*range(400, 600)):  # a server of 2023 refuses, and makes no second record
            announced = self.call("getfunctionsmsg", **self.names) or []
            known = {function["funcname"] for function in announced}
        for name, text in FUNCTIONS.items():
            if name not in known:
                said = {"funcname": name, "desc": text, "description": text}
                with allowing(403):
                    self.call("addfunctionmsg", fun=executor | said)
        if self.joined is False:
            warn("The colony has this executor back", Executor=self.name)
        self.joined = True
        self.unknown.clear()
        # While we were away another may have taken our cron for a former one's.
        self.times["cron"] = self.times["describe"] = 0
        info("Waiting for processes ...", Executor=self.name, ExecutorId=self.id)

    def register(self, executor: dict[str, str]) -> None:
        """Add and approve ourselves with the owner's key; either may have been done before.

        Without it somebody else has to, and again when a server of 2026 has dropped us, 10 minutes
        after our last sign of life. A name belongs to the key that added it, ours derived from the
        owner's, too: when that has changed, the executor is to be removed first.
        """
        if not self.owner:
            text = f"Colonies does not know executor {self.name!r}, id {self.id}: approve it"
            raise ColoniesFailure(f"{text}, or set COLONIES_COLONY_PRVKEY", 403, True)
        with allowing(400, 403):
            self.call("addexecutormsg", 15, self.owner, executor=executor)
        with allowing(403, 500):
            self.call("approveexecutormsg", 15, self.owner, **self.names)
        require(
            self.known(),
            f"Colonies: the executor name {self.name!r} belongs to another "
            "key (set COLONIES_EXECUTOR_NAME), or COLONIES_COLONY_PRVKEY is no owner's",
        )

    def known(self) -> bool:
        """Whether the colony knows us; it also is our sign of life."""
        try:
            self.assign(timeout=-1, availablecpu="-1m")  # nothing needs less than no CPU
        except ColoniesFailure as error:
            if "executor not found" in str(error):  # whoever asks may, as a member
                raise ColoniesFailure(f"{error}; {A_USERS}", error.status, error.again) from None
            if error.status != 403:
                raise
            return False
        return True

    def assign(self, **fields: Any) -> bool:
        """Take in a process, if one comes, asked for or not; we may have it already.

        A colony that its owner has paused (408, 503) hands out none, and takes that for a sign of
        life all the same.
        """
        try:
            answer = self.call("assignprocessmsg", 25, **fields, **self.colony)
        except ColoniesFailure as refused:
            if refused.status in (408, 503):
                if self.due("paused", 3600):
                    warn("The colony is paused: until it is resumed nothing is backed up")
                return False
            if refused.status != 404:
                raise
            answer = None
        if self.times.pop("paused", 0):
            info("The colony hands out work again")
        if answer is not None:
            process = read_process(answer, self.s)
            self.queue[process.id] = process
        return answer is not None

    def look(self) -> None:
        """Take in what is assigned to us, as Colonies has it: lost answers', an earlier run's.

        A list has 100 processes at most, and MOST bytes: what a journal names is asked for by id.
        """
        with suppress(OSError):  # the volume is gone
            for dump in dumps(self.s):
                if dump.process:
                    self.take_in(dump.process)
        asked = {"state": RUNNING, "count": 100, "executortype": self.type, **self.colony}
        for answer in self.call("getprocessesmsg", **asked) or []:
            if answer["assignedexecutorid"] == self.id:
                self.take_in(str(answer["processid"]))

    def take_in(self, number: str) -> None:
        """Put a process into the queue, if it is assigned to us; another colony's is 403."""
        with allowing(400, 403, 404, 500):
            answer = self.call("getprocessmsg", processid=number)
            if (answer["state"], answer["assignedexecutorid"]) == (RUNNING, self.id):
                process = read_process(answer, self.s)
                self.queue[process.id] = process

    def describe(self) -> None:
        """Tell the colony what we are and where we stage, and what the last backup was of (2026).

        It asks no database: the programs for that are children's, who have none of our keys.
        """
        path = self.s.backup_path
        hardware = {"model": f"staging volume {path}", "platform": sys.platform}
        with suppress(OSError):  # the volume is gone
            volume = os.statvfs(path)
            hardware["storage"] = f"{volume.f_blocks * volume.f_frsize // MIB}Mi"
        kinds = {"PostgreSQL": "database", "TimescaleDB": "extension", "pg_dump": "program"}
        kinds["Colonies Backup Executor"] = "executor"
        versions = self.facts | {"colonies backup executor": __version__}
        software = [
            {"name": name, "type": kinds[name], "version": versions[name.lower()]}
            for name in kinds
            if versions.get(name.lower())
        ]
        capabilities = {"hardware": [hardware], "software": software}
        self.offer("updateexecutormsg", **self.names, capabilities=capabilities)

    def idle(self) -> None:
        """Wait for a process; see to what got lost, and to the crons."""
        if self.due("look", 60):
            self.look()
            if self.queue:  # perhaps for ever with the same: what waits has its turn all the same
                self.assign(timeout=-1)
        if self.due("describe", FOREVER):
            self.describe()
        while self.due("cron", 3600):
            try:
                see_to_crons(self)  # which may ask to be called again
            except ColoniesFailure as error:
                if error.status == 200 or error.status >= 500:  # a former cron may be gone: soon
                    self.times["cron"] = later(60)
                raise
        if self.queue or self.assign(timeout=10):
            return
        self.newest = (0, "")  # what it could satisfy has come, so an odd time does no harm
        if self.due("check", FOREVER):  # work goes before, and need not wait for it
            self.checks = Job(None, "check")
        if not self.due("poll", 1):
            sleep(1)  # the server does not hold requests for as long as it is asked to

    def remove(self, what: str, within: float = 15, key: int = 0, /, **message: Any) -> None:
        """Remove a cron or an executor, in the words of 2026 and of 2023."""
        for verb in ("remove", "delete"):
            with allowing(403):
                self.call(f"{verb}{what}msg", within, key, **message)

    def standing(self, process: Process) -> Standing:
        """Where a process stands now. Raises Failure where Colonies does not answer."""
        odd = (LookupError, TypeError, ValueError, OverflowError)
        with allowing(200, 400, 404, 500), suppress(*odd):
            answer = self.call("getprocessmsg", processid=process.id)
            state = int(answer["state"])
            if state > RUNNING:
                return ENDS[state - RUNNING - 1]
            if state == WAITING:
                return Standing.WAITING
            if answer["assignedexecutorid"] == self.id:
                return Standing.HERE
            return Standing.ELSEWHERE
        return Standing.UNKNOWN

    def see_to(self, process: Process) -> None:
        """Take one step with a process of the queue: forget, close, refuse or begin it.

        It may have been cancelled, or taken away, since it was assigned to us.
        """
        standing = self.standing(process)
        if standing in ENDS:
            self.forget(process, standing)
        elif standing is not Standing.HERE:
            del self.queue[process.id]  # its outcome stays, should it come back
        elif process.id in self.outcomes:
            self.close(process)
        elif process.refusal:
            self.fail(process, process.refusal)
        elif process.function == "backup" and 0 < process.submitted <= self.newest[0]:
            text = "A backup begun after this request satisfies it"
            info(text, ProcessId=process.id, Database=self.database)
            self.outcomes[process.id] = {"out": [self.newest[1]]}
        elif process.function != "backup" and self.assign(timeout=-1):
            pass  # what has come may go before it: the next round sees
        elif not self.due("again", 0):
            sleep(min(TIME_SCALE, 1))  # a child was killed just now
        else:
            info("Beginning process", ProcessId=process.id, Database=self.database)
            if process.function == "backup":
                self.heart.beat("start")
            self.job = Job(process, process.function, *process.arguments)

    def fail(self, process: Process, *errors: str) -> None:
        """Note that a process is to be closed as failed."""
        text = "; ".join(errors)
        log("error", "Process failed", ProcessId=process.id, Errors=text)
        self.failures[process.function] += 1
        if process.function == "backup":
            self.heart.beat("fail", text)
        self.outcomes[process.id] = {"errors": list(errors)}

    def attend(self, job: Job) -> None:
        """While a job runs: pass its log on, and each minute look whether it still is wanted."""
        if not self.due("watch", 60):
            self.tell(job)
            return
        self.known()
        if not job.process:
            return
        standing = self.standing(job.process)
        # It was taken from us: have it back, whatever else comes, but not without end.
        while standing is Standing.WAITING and len(self.queue) < 100 and self.assign(timeout=-1):
            standing = self.standing(job.process)
        if standing in (*ENDS, Standing.ELSEWHERE):
            text = "Stopping what was cancelled, failed or given away"
            warn(text, ProcessId=job.process.id, Why=f"it {standing.value}")
            stop(job.child, signal.SIGUSR1, 6)
            self.job, self.ended = None, self.ended + 1

    def tell(self, job: Job) -> None:
        """Pass the job's log on to its process, once, and as its output what it is at."""
        if job.process and job.news:
            self.offer("addlogmsg", processid=job.process.id, message="\n".join([*job.news, ""]))
            job.news.clear()
            if job.shown:
                out = [json.dumps(job.shown, indent=4)]
                self.offer("setoutputmsg", processid=job.process.id, out=out)

    def conclude(self, job: Job) -> None:
        """A job has ended: note with what its process is to be closed, or let it begin anew.

        A backup that was killed begins anew after a pause, twice: the third time it has failed.
        """
        self.job, self.ended = None, self.ended + 1
        process, status = job.process, job.child.returncode
        killer = signal_name(-status)
        if not process:
            if status < 0:
                warn("What earlier runs left is not finished: killed", Signal=killer)
            elif job.result:
                self.heart.beat()
        elif status == 0:
            result = job.result.decode().strip()
            self.outcomes[process.id] = {"out": [result]}
            if process.function == "backup":
                self.facts = json.loads(result)
                self.newest = (server_time(self.facts.get("starttime")), result)
                self.uploaded = self.facts["exectime_upload_s3"]
                self.times["describe"] = 0
                self.heart.beat()
        elif status > 0:
            self.fail(process, *job.errors or [f"it ended with exit status {status}"])
            if job.result:  # a report of what failed; as output it stays
                out = [job.result.decode().strip()]
                with suppress(Failure):
                    self.offer("setoutputmsg", processid=process.id, out=out)
        else:
            self.deaths[process.id] += 1
            often = ""
            if process.function == "backup":
                often = "three times, at last "
                if self.deaths[process.id] < DEATHS:
                    self.times["again"] = later(1)
                    warn("It was killed, beginning it again", ProcessId=process.id, Signal=killer)
                    return
            self.fail(process, f"killed {often}by {killer}: is the memory limit low?", *job.errors)

    def close(self, process: Process, within: float = 15) -> None:
        """Close a process with its outcome. If that is refused, it is tried again in a minute."""
        outcome = self.outcomes[process.id]
        end = Standing.SUCCESSFUL if "out" in outcome else Standing.FAILED
        try:
            self.call(f"close{end.name.lower()}msg", within, processid=process.id, **outcome)
        except ColoniesFailure as refused:
            if refused.status in (0, 200):
                raise
            warn("Cannot close the process", ProcessId=process.id, Error=refused)
            del self.queue[process.id]  # if it still is ours, `look` brings it back
        else:
            self.forget(process, end)

    def forget(self, process: Process, end: Standing) -> None:
        """Drop what was kept for a process, here and on the volume: it is closed, by whomever."""
        info("Closed process", ProcessId=process.id, End=end.name.lower())
        del self.queue[process.id]
        self.outcomes.pop(process.id, None)
        with suppress(OSError):  # where the volume is gone, so is this
            for dump in dumps(self.s):
                if dump.process == process.id and not dump.pending:
                    dump.remove()

    def leave(self) -> None:
        """Stop the job, close what is done, and deregister, which hands the rest back; in 10 s.

        Without the owner's key nobody can hand back: then the rest is closed as failed.
        """
        try:
            job = self.job
            if self.checks:
                self.checks.child.terminate()  # it removes its object from the bucket meanwhile
            if job:
                stop(job.child, signal.SIGTERM, 6)
                if job.child.returncode == 0 and any(job.ended() for _ in range(2)):
                    self.conclude(job)
            for process in list(self.queue.values())[:5]:
                if not self.owner and process.id not in self.outcomes:
                    self.fail(process, "the executor was stopped")
                if process.id in self.outcomes:
                    self.close(process, 0.5)
            if self.owner:
                self.remove("executor", 1, self.owner, **self.names)
        except (Failure, OSError, ValueError) as error:
            warn("Could not take leave", Error=error)
        self.heart.wait(1)
        if self.checks:
            stop(self.checks.child, signal.SIGTERM, 2)


# ---- Crons ---------------------------------------------------------------------------------------


class Cron(NamedTuple):
    """A cron of the colony; its workflow is one function of ours for executors of our type."""

    name: str
    id: str
    function: str
    expression: str  # when, seconds first
    names: list[str]  # of the executors that may take its processes (2026); none: any of the type
    ids: list[str]  # likewise (2023)
    wait: object  # its processes' `maxwaittime`, in seconds; 0: not told
    label: object  # of its processes; "": not told


def set_fields(fields: Fields) -> Fields:
    """Of a JSON object what somebody chose: servers and their command lines fill in the rest."""
    told = ("nodename", "colonyname", "colonyid")
    return {
        name: x
        for name, x in fields.items()
        if name not in told and x not in (None, "", 0, -1, [], {})
    }


def plain_crons(listed: list[Any], kind: str) -> list[Cron]:
    """The crons for our functions and an executor type, by name: a short one comes first.

    Whoever wants more of a cron, another node or a time limit, made it by hand: it is not here. A
    label, and how long it may wait, executors tell, too, in crons that name them.
    """
    found = []
    for cron in listed:
        with suppress(AttributeError, KeyError, RecursionError, TypeError, ValueError):
            (node,) = json.loads(cron["workflowspec"], object_hook=set_fields)["functionspecs"]
            function, whom = node["funcname"], node["conditions"]
            names = [str(x) for x in whom.pop("executornames", [])]
            ids = [str(x) for x in whom.pop("executorids", [])]
            plain = {"funcname": function, "conditions": {"executortype": kind}}
            wait, label = node.pop("maxwaittime", 0), node.pop("label", "")
            if function in FUNCTIONS and node == plain and (names or not (wait or label)):
                name, number, when = (str(cron[x]) for x in ("name", "cronid", "cronexpression"))
                found.append(Cron(name, number, function, when, names, ids, wait, label))
    return sorted(found, key=lambda cron: cron[:3])


def see_to_crons(us: Executor) -> None:
    """Have our crons in the colony, and warn of odd ones, once each. Raises Failure."""
    s = us.s
    wanted = [function for function in FUNCTIONS if getattr(s, f"{function}_cron")]
    if not wanted:
        return
    crons = Crons(us)
    for function in wanted:
        crons.ensure(function, *(getattr(s, f"{function}_cron{x}") for x in ("_name", "")))
    for text in crons.odd():
        if us.due(text, FOREVER):
            warn(text)
    us.alone_since = FOREVER if crons.others else min(us.alone_since, monotonic())


class Crons:
    """The crons of the colony for our type, and who else is of it, at one look. Raises Failure.

    Each executor has crons of its own, which name it; so of several for one database only one may
    have BACKUP_CRON. It looks for them when it joins, and every hour. One that an older version
    or backup_workflow.json made names nobody; one of ours may name us as a former host was called.
    These are abandoned, and taken over, if no other executor of our type is there.
    """

    def __init__(self, us: Executor):
        self.us = us
        self.crons = plain_crons(us.call("getcronsmsg", count=1000, **us.colony) or [], us.type)
        members = us.call("getexecutorsmsg", **us.colony) or []
        self.ids = {x["executorid"] for x in members}
        ours = [x for x in members if x["executortype"] == us.type]
        # Those that are pending, or approved.
        self.others = {str(x["executorname"]) for x in ours if x["state"] in (0, 1)} - {us.name}
        self.wait = int(us.s.backup_max_wait * 3600)
        # 2023 knows no labels.
        self.label = "" if "updateexecutormsg" in us.unknown else us.s.db_database
        # Who was away at one look only may be starting again.
        self.alone = not self.others and us.alone_since <= later(-60)

    def odd(self) -> list[str]:
        """What to tell of crons by which a database among several may get no backup."""
        said = []
        for cron in self.crons:
            fault = ""
            if not cron.names + cron.ids:
                there = ", ".join(sorted(self.others)[:5])
                fault = (
                    f"names no executor, and {there} of type {self.us.type!r} may take what it "
                    "submits: with several databases some get no backup"
                )
            elif cron.names and not {self.us.name, *self.others}.intersection(cron.names):
                fault = f"names {cron.names[0]!r}, which is not in the colony"
            if fault and self.others:
                said.append(
                    f"Colonies: the cron {cron.name!r} {fault}. If that is not meant, remove it"
                    f" (colonies cron remove --cronid {cron.id}): within an hour each executor "
                    "with BACKUP_CRON has its own"
                )
        return said

    def made(self, function: str, name: str) -> list[Cron]:
        """The crons for a function that executors of our type made, or an older version."""
        return [
            cron
            for cron in self.crons
            if cron.function == function
            and cron.name in (name, "-".join([name, *cron.names]))
            and (len(cron.names) == 1 or not cron.names + cron.ids)
        ]

    def is_ours(self, cron: Cron, name: str) -> bool:
        """Whether a cron names us; with a former key perhaps, or under NAME by a former name."""
        us = self.us
        return cron.names == [us.name] or (cron.ids == [us.id] and cron.name == name)

    def abandoned(self, theirs: list[Cron], wanted: str, have: bool) -> tuple[list[Cron], bool]:
        """Which of others' crons are to go, and whether one serves us meanwhile.

        have: we have our own already; then one that names nobody may be somebody's who is away.
        """
        outdated, served = [], False
        for cron in theirs:
            if self.alone:
                outdated.append(cron)
            elif not cron.names and cron.expression == wanted:
                served = True
            elif not (cron.names or self.others or have):
                outdated.append(cron)
        return outdated, served

    def ensure(self, function: str, name: str, wanted: str) -> None:
        """Have one cron that submits a function to us when it is WANTED, and no former one."""
        us = self.us
        right: list[Cron] = []
        outdated, theirs = [], []
        for cron in self.made(function, name):
            if not self.is_ours(cron, name):
                theirs.append(cron)
            elif not right and cron[3:] == (wanted, [us.name], [us.id], self.wait, self.label):
                right.append(cron)
            else:
                outdated.append(cron)
        abandoned, served = self.abandoned(theirs, wanted, bool(right))
        outdated += abandoned
        if not (right or served):
            self.add(function, name, wanted, outdated)
        for cron in outdated:
            us.remove("cron", cronid=cron.id, **us.colony)

    def add(self, function: str, name: str, wanted: str, outdated: list[Cron]) -> None:
        """Add ours under NAME, or NAME-EXECUTOR where that is somebody else's; or Failure.

        A name is one cron's in a colony (2026), in all of them (2023). The server looks at that
        last: so where an OUTDATED one has it, all else is right, and that one may go before. If a
        request arrives twice, the second one is refused, and the next look removes one of two.
        """
        us = self.us
        whom = {"executortype": us.type, "executornames": [us.name], "executorids": [us.id]}
        node = {
            "nodename": function,
            "funcname": function,
            "conditions": whom | us.colony,
            "maxwaittime": self.wait,
            "label": self.label,
        }
        cron = {
            "cronexpression": wanted,
            "workflowspec": json.dumps({"functionspecs": [node], **us.colony}),
            "interval": -1,
            "random": False,
            **us.colony,
        }
        for called in (name, f"{name}-{us.name}"):
            try:
                us.call("addcronmsg", cron=cron | {"name": called})
            except ColoniesFailure as refused:
                if not re.search("already exists|duplicate key", str(refused)):
                    raise
                if called in [old.name for old in outdated] and us.due(f"free {called}", 60):
                    us.times["cron"] = 0  # to be looked at again at once: then that one is gone
                    return
            else:
                info("Added the cron", Name=called, Expression=wanted, Executor=us.name)
                return
        raise Failure(
            f'Colonies: the cron names {name!r} and "{name}-{us.name}" are taken by '
            f"others: set {function.upper()}_CRON_NAME"
        )


# ---- Being told ----------------------------------------------------------------------------------

HEARTBEAT = next(each for each in SETTINGS if each.name == "HEARTBEAT_URL")
BEAT_SECONDS = time_limit(10)  # for one try


def visit(request: urllib.request.Request) -> int:
    """The HTTP status of an answer; by https the system's authorities (SSL_CERT_FILE) vouch."""
    tls = ssl.create_default_context() if request.type == "https" else None
    with opener_for(tls).open(request, timeout=BEAT_SECONDS) as reply:
        return int(reply.status)


class Heartbeat:
    """Tells the service at HEARTBEAT_URL how backups go, in threads, one after the other.

    That there is a success missing is what it tells its people, too. What goes wrong is a warning.
    """

    def __init__(self, s: Settings):
        self.url = s.heartbeat_url
        self.last: threading.Thread | None = None

    def beat(self, what: str = "", reason: str = "") -> None:
        """Tell of a "start", a "fail" with its reason, or a success. Its file is read anew."""
        with suppress(OSError, ValueError):
            self.url = str(value_of(HEARTBEAT, os.environ))
        if not self.url:
            return
        try:
            told = partial(self.tell, self.last, self.url, what, redacted(reason))
            self.last = behind(told)
        except RuntimeError as error:
            warn("Cannot tell HEARTBEAT_URL", Error=error)

    def tell(self, before: threading.Thread | None, url: str, what: str, reason: str) -> None:
        """Tell it, in three tries, after what it was told BEFORE: else a start may come last."""
        if before:
            before.join()
        parts, why = urlsplit(url), ""
        if what:
            url = parts._replace(path=f"{parts.path.rstrip('/')}/{what}").geturl()
        data = reason[:10_000].encode() or None  # services keep 10 kB or more
        request = urllib.request.Request(url, data, {"Content-Type": "text/plain"})
        for pause in islice(backoff(), 3):
            try:
                status = in_time(BEAT_SECONDS, partial(visit, request))
                require(status // 100 == 2, f"HTTP status {status}")
                return
            except Exception as error:
                why = str(error)
            finally:
                gc.collect()  # openers and handlers hold each other, and 1.7 MB of authorities
            sleep(pause)
        about = {"What": what or "success", "Host": parts.hostname}
        warn("Cannot tell HEARTBEAT_URL", **about, Error=why)

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it was told all, for so many seconds at most, or until somebody is tired."""
        with suppress(Stop):
            if self.last:
                self.last.join(seconds)


# By name, less the prefix colonies_backup_, what each is; those in _total count since our start.
METRICS = dict(
    row.split("|")
    for row in """
info|1, with the version, the database and the name of the executor
newest_timestamp_seconds|When the newest proven backup of this database began; 0: there is none
newest_size_bytes|Bytes of that backup
newest_dump_seconds|What pg_dump took for it
newest_doubtful|1 if it is doubtful: of less than half of the last good one's size; else 0
upload_seconds|What the last upload took, as far as it is known
backups|Of this database good and doubtful ones; unproven (no checksum); other databases'
verify_timestamp_seconds|When a backup of this database was verified last; 0: never
verify_success|1 if that backup was found good, else 0, with the verdict
verify_step_seconds|What each step of that took
bucket_timestamp_seconds|When the bucket was looked at last, with success
bucket_reachable|1 if the last look at the bucket succeeded, else 0
running|1 if a child of the executor does this now, else 0; resume: what waited for S3
uploads_waiting|Finished dumps on the staging volume, which S3 has not got
staging_free_bytes|Bytes that are free on the staging volume
colonies_reachable|1 if Colonies answered the last time, else 0
registered|1 if the colony knows the executor and lets it work, else 0
failures_total|Processes that failed
""".strip().splitlines()
)
Samples = dict[str, float]  # of a metric, by labels as they are written
LOOK_SECONDS = 60 * 60  # between two looks at the bucket; after a job 60, after a failure 300
LOOK_LIMIT = 10 * 60  # that one may take
CONNECTIONS = 16  # of clients at once; the oldest one goes for a new one
REQUEST_MOST, CLIENT_SECONDS = 8192, 5  # bytes and time that a client has


def labels(**named: object) -> str:
    """Labels as a sample has them."""
    texts = []
    for name, value in named.items():
        text = json.dumps(printable(redacted(value))[:200], ensure_ascii=False)
        texts.append(f"{name}={text}")
    return f"{{{','.join(texts)}}}"


def survey(s: Settings) -> dict[str, Samples]:
    """What metrics tell of the bucket. Raises Failure, also where it is not known what is ours."""
    s3 = S3(s, 10)
    found = s3.backups()
    whose = by_database(found)
    of = own_server(s, whose), s.db_database
    ours = whose.get(of, [])
    verdicts = verified(s3) or {}
    doubts = judge(ours, verdicts, s.full_backups, time.time()).doubts
    every = sum(map(len, whose.values()))
    facts: dict[str, Samples] = {
        "backups": {
            labels(kind="good"): len(ours) - len(doubts),
            labels(kind="doubtful"): len(doubts),
            labels(kind="unproven"): len(found) - every,
            labels(kind="other"): every - len(ours),
        }
    }
    told: dict[str, int | None] = {
        "newest_timestamp_seconds": 0,
        "bucket_timestamp_seconds": int(time.time()),
    }
    for newest in ours[-1:]:
        told |= {
            "newest_timestamp_seconds": newest.seconds,
            "newest_size_bytes": newest.size,
            "newest_dump_seconds": number_in(newest.known, "exectime-backup"),
            "newest_doubtful": int(newest.key in doubts),
            "upload_seconds": upload_seconds(found).get(newest.key),
        }
    for name, value in told.items():
        if value is not None:
            facts[name] = {"": value}
    return facts | last_verify(verdicts, of, ours)


def own_server(s: Settings, whose: Iterable[tuple[str, str]]) -> str:
    """The system identifier of DB_HOST; while it is away, of the only one that has backups."""
    try:
        return psql(s.database(), "Looking at the server", WHOSE).strip()
    except Failure:
        servers = [server for server, database in whose if database == s.db_database]
        if len(servers) > 1:
            raise
        return "".join(servers)


def last_verify(verdicts: Verdicts, of: tuple[str, str], ours: Backups) -> dict[str, Samples]:
    """What metrics tell of the last verify of one of OURS, or of another `of` our server's."""
    names = {backup.name for backup in ours}
    last, facts = 0.0, dict[str, Samples]()
    for name, was in verdicts.items():
        with suppress(Exception):  # somebody else wrote it
            when = datetime.fromisoformat(was["time"]).timestamp()
            mine = name in names or (was.get("server"), was.get("database")) == of
            if mine and when > last:
                kind = was["verdict"].partition(":")[0]
                took = islice(was.get("seconds", {}).items(), 9)
                steps = {labels(step=step): float(seconds) for step, seconds in took}
                success = {labels(verdict=kind): float(kind != "failed")}
                last, facts = when, {"verify_success": success, "verify_step_seconds": steps}
    return facts | {"verify_timestamp_seconds": {"": last}}


def listener(where: str) -> socket.socket:
    """What listens at [HOST:]PORT; without a host at all addresses, IPv6's too. Raises OSError."""
    host, _, port = where.rpartition(":")
    host = host.strip("[]")
    both = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
    made = socket.create_server((host, int(port)), family=family, dualstack_ipv6=both)
    made.setblocking(False)
    return made


class Client(NamedTuple):
    """One that asks for metrics."""

    connection: socket.socket
    received: bytes  # so far
    end: float  # by the monotonic clock: then it has had its time


class Metrics:
    """Serves GET /metrics, in a thread that does all in turn and waits for nobody.

    What is in the bucket a child finds out now and then, since boto3 takes 40 MB; the rest the
    executor knows. No client is trusted: each has a few bytes, a few seconds and one answer, and
    all have 20 rounds a second. What goes wrong ends no executor.
    """

    def __init__(self, us: Executor):
        self.us = us
        self.clients = dict[int, Client]()  # by file descriptor, the oldest first
        self.facts = dict[str, Samples]()  # of the bucket, as `survey` found them
        self.child: Job | None = None  # that looks at the bucket
        self.begun = 0.0  # when it last began, by the monotonic clock
        self.pause = 0.0  # from then until the next
        self.seen = 0  # jobs of the executor that had ended then

    def serve(self) -> None:
        """Listen and answer, for ever."""
        while True:
            try:
                with listener(self.us.s.metrics_port) as server:
                    while True:
                        self.round(server)
            except Exception as error:
                warn("No metrics, trying again in a minute ...", Error=error)
            for client in self.clients.values():
                client.connection.close()
            self.clients.clear()
            sleep(60 * TIME_SCALE)

    def round(self, server: socket.socket) -> None:
        """Do what is next for each, within a second."""
        self.look()
        now = monotonic()
        for client in [each for each in self.clients.values() if each.end < now]:
            self.drop(client)
        if self.child and self.child.ended(0):
            self.conclude(self.child)
        for descriptor in select.select([*self.clients, server.fileno()], [], [], 1)[0]:
            if descriptor in self.clients:
                self.attend(self.clients[descriptor])
        self.accept(server)  # last: a new client may have the descriptor of one that is dropped
        sleep(0.05)

    def accept(self, server: socket.socket) -> None:
        """Take in those who wait, not more than all places: each is heard once, at least."""
        with suppress(OSError):  # nobody waits any more, or one has gone
            for _ in range(CONNECTIONS):
                connection, _ = server.accept()
                connection.setblocking(False)
                end = monotonic() + CLIENT_SECONDS
                self.clients[connection.fileno()] = Client(connection, b"", end)
                if len(self.clients) > CONNECTIONS:
                    self.drop(next(iter(self.clients.values())))

    def drop(self, client: Client) -> None:
        """Have done with a client."""
        del self.clients[client.connection.fileno()]
        client.connection.close()

    def attend(self, client: Client) -> None:
        """Take in what a client asks for, and answer it if that is all."""
        said = b""
        with suppress(OSError):
            said = client.connection.recv(REQUEST_MOST)
        client = client._replace(received=client.received + said)
        self.clients[client.connection.fileno()] = client
        whole = b"\r\n\r\n" in client.received
        if whole:
            status, body = "404 Not Found", "GET /metrics\n"
            if re.match(rb"GET /metrics[ ?]", client.received):
                status, body = "200 OK", self.text()
            data = body.encode()
            head = (
                f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
                f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
            )
            with suppress(OSError):  # some 5 kB, which a socket holds; else it is lost
                client.connection.send(head.encode() + data)
        if whole or not said or len(client.received) > REQUEST_MOST:
            self.drop(client)

    def look(self) -> None:
        """Have a child look at the bucket, if it is time and no job runs; end one that hangs."""
        spent = monotonic() - self.begun
        if self.child and spent > LOOK_LIMIT * TIME_SCALE:
            stop(self.child.child, signal.SIGKILL)
        if self.us.ended != self.seen:
            self.seen, self.pause = self.us.ended, 60
        busy = self.child or self.us.job
        if not busy and spent > self.pause * TIME_SCALE:
            self.begun, self.pause = monotonic(), 300  # should none start
            self.child = Job(None, "survey")
            self.pause = LOOK_SECONDS

    def conclude(self, child: Job) -> None:
        """Take over what a child found. That it failed says its log."""
        self.child = None
        succeeded = child.child.returncode == 0
        if succeeded:
            self.facts = json.loads(child.result)
        else:
            self.pause = min(self.pause, 300)
        self.facts["bucket_reachable"] = {"": int(succeeded)}

    def text(self) -> str:
        """All metrics, as Prometheus reads them."""
        us = self.us
        job = us.job
        does = (job.process.function if job.process else "resume") if job else ""
        known = self.facts | {
            "info": {labels(version=__version__, database=us.database, executor=us.name): 1},
            "running": {labels(function=x): int(x == does) for x in (*FUNCTIONS, "resume")},
            "colonies_reachable": {"": int(us.reachable)},
            "registered": {"": int(bool(us.joined))},
            "failures_total": {labels(function=name): us.failures[name] for name in FUNCTIONS},
        }
        if us.uploaded is not None:
            known["upload_seconds"] = {"": us.uploaded}
        with suppress(OSError):  # the volume may be gone
            known["uploads_waiting"] = {"": sum(dump.pending for dump in all_dumps(us.s))}
            known["staging_free_bytes"] = {"": free_bytes(us.s)[0]}
        lines = []
        for name in [each for each in METRICS if each in known]:
            full, kind = f"colonies_backup_{name}", "gauge"
            if name.endswith("_total"):
                kind = "counter"
            lines += [f"# HELP {full} {METRICS[name]}", f"# TYPE {full} {kind}"]
            lines += [f"{full}{label} {value}" for label, value in known[name].items()]
        return "\n".join(lines) + "\n"


# ---- The archive ---------------------------------------------------------------------------------

NAME = r'(?:(?:"[^"]*")+|[\w$]+)'  # an identifier, as pg_dump writes it
OF_DATABASE = (
    rf"(?s)((?:ALTER|COMMENT ON|ALTER ROLE {NAME} IN|(?:GRANT|REVOKE) [A-Z, ]+ ON|"
    rf"SECURITY LABEL FOR {NAME} ON) DATABASE ){NAME}( .*)"
)


def entry_of(kind: str) -> re.Pattern[str]:
    """The entries of a table of contents of this kind, which stands behind three numbers."""
    return re.compile(rf"(?:\S+ ){{3}}(?:{kind}) ")


# The first: those whose statements name roles.
OF_ROLES = entry_of("ACL|DEFAULT ACL|POLICY|USER MAPPING|(COMMENT|SECURITY LABEL) - DATABASE")
SCHEMA = entry_of("SCHEMA -")
EXTENSION = entry_of("EXTENSION - timescaledb")
FOREIGN_KEY = entry_of("FK CONSTRAINT")
TABLE = re.compile(r"\S+ 1259 \d+ TABLE ")
TABLE_DATA = entry_of("TABLE DATA")
ATTACHED = entry_of("TABLE ATTACH")
TAKES_ROWS = entry_of("BLOBS|MATERIALIZED VIEW DATA")
OF_CONSTRAINT = entry_of("COMMENT .*CONSTRAINT")
JOBS = entry_of("TABLE DATA _timescaledb_(catalog|config) bgw_job")
# Tablespaces of hypertables. In one that is not there a chunk would be made, and no row get in.
PLACES = entry_of("TABLE DATA _timescaledb_catalog tablespace")
EXTENSIONS = re.compile(r"(\S+ ){3}EXTENSION - (?!timescaledb )(.*) \S*$")
# A database is whole without these. An event trigger may refuse what comes after it; pg_restore
# itself makes them last, and fills the views, too.
REFRESH = entry_of("MATERIALIZED VIEW DATA")
REST = entry_of("((COMMENT|SECURITY LABEL) - )?(EVENT TRIGGER|PUBLICATION|SUBSCRIPTION)")
TRIGGER = entry_of("EVENT TRIGGER")
ON_ROWS = entry_of("TRIGGER")
SEES = entry_of("TRIGGER|TABLE ATTACH")  # each followed by schema and table
SUBSCRIPTION = entry_of("SUBSCRIPTION")
# A key of a partitioned table and an index that is attached further down lock each other out, where
# several workers make them (17.10: it knows of no locks on partitions). So keys come when all
# indexes are there, and with them what pg_restore makes after keys.
INDEX_ATTACH = entry_of("INDEX ATTACH")
# A worker that fills what its own pg_restore has made empties it first, for servers with
# wal_level=minimal: then that needs no WAL. Everywhere else each table costs a wait for the disk
# (2,000 of them: 35 s in place of 22). Where there are more, they are made by one pg_restore, and
# filled by the next.
FEW_TABLES = 100
AFTER_INDEXES = entry_of("FK CONSTRAINT|ACL|DEFAULT ACL|COMMENT .*CONSTRAINT")
# What statements of pg_restore say, by identifiers.
MAKES = re.compile(rf"CREATE (?:UNLOGGED )?TABLE ({NAME})\.({NAME}) ")
ATTACHES = re.compile(rf"ALTER TABLE ONLY ({NAME})\.({NAME}) ATTACH PARTITION ({NAME})\.({NAME}) ")
KEY = re.compile(
    rf"(?s)ALTER TABLE (?:ONLY )?({NAME})\.({NAME})\s+ADD CONSTRAINT {NAME} "
    rf".* REFERENCES ({NAME})\.({NAME})\("
)
# The catalog's tables are in the first of these schemas; up to 2.24 bgw_job was in the second.
CATALOG = ("_timescaledb_catalog", "_timescaledb_config")
OF_CATALOG = [f"--schema={schema}" for schema in CATALOG]
NOT_OF_CATALOG = [f"--exclude-schema={schema}" for schema in CATALOG]
STORED = entry_of("TABLE|INDEX|CONSTRAINT|MATERIALIZED VIEW")  # in a tablespace
# What CREATE DATABASE says of locales.
LOCALE = (
    r" (?:LOCALE_PROVIDER = \w+|(?:LC_|ICU_|BUILTIN_)?(?:LOCALE|COLLATE|CTYPE|RULES) = '[^']*')"
)
GONE = re.compile("[0-9]+|-")  # how a regrole is written whose role somebody dropped
# A setting of the database by which its checks and views mean what they meant there; a function may
# ask for one with a dot. Others might hinder pg_restore, or are its own.
DECISIVE = re.compile(
    r'ALTER DATABASE  SET "?(TimeZone|DateStyle|IntervalStyle|bytea_output|lc_\w+|'
    r"default_text_search_config|(?!timescaledb\.)\w+\.[\w.]+)\"? TO '((?:[^'\\]|'')*)';"
)
# What has rows or bytes of large objects. Others' statements may have any text on a line by itself;
# in these there is no line but a row's that begins like one of ROWS_BEGIN.
DATA = entry_of("TABLE DATA|BLOBS")
ROWS_BEGIN = re.compile(rb"\n(?:COPY|INSERT INTO) ")
# As pg_dump 10.3 and later write it; a name may have newlines. It has at most 1,600 columns.
COPY_HEAD = re.compile(
    rf"\nCOPY ({NAME})\.({NAME}) (?:\({NAME}(?:, {NAME})*\))? FROM stdin;(?=\n)".encode()
)
COPIES = re.compile(COPY_HEAD.pattern + rb"\n\Z")
COPY_END = b"\n\\.\n"  # no row is like that: there a backslash is doubled
END = re.compile(re.escape(COPY_END))  # by which it is found in half of the time
LONGEST_HEAD = MIB  # more than any
ESCAPED = dict(zip("bfnrtv", "\b\f\n\r\t\v"), N="")  # what COPY writes behind a backslash
Pair = tuple[str, ...]  # a table's schema and its name
Amiss = dict[str, str]  # entries that a server refuses, each with a line that says so


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

    def tables(self, column: str = "relid") -> list[Pair]:
        """The tables that its rows name: by a regclass, in older versions by schema and name."""
        classes = [named(re.findall(NAME, each)) for each in self.values(column)]
        return classes or list(zip(self.values("schema_name"), self.values("table_name")))


class Timescale(NamedTuple):
    """What restoring TimescaleDB takes."""

    version: str  # "?": an old archive's catalog does not say it
    schema: str  # the extension's, as an identifier: its functions for users are there
    jobs: Copied
    adopted: set[str]  # owners whose jobs become the restoring role's
    late: set[str]  # entries to restore when all else is there


def pg_restore_for(dumped_by: str) -> int:
    """The major version of pg_restore. Raises Failure if it is older than this pg_dump."""
    ours = major_version(run("Looking at pg_restore", ["pg_restore", "--version"]))
    theirs = major_version(dumped_by)
    require(ours >= theirs, f"pg_restore {ours} is older than the archive's pg_dump {dumped_by}")
    return ours


@contextmanager
def listing(entries: Iterable[str]) -> Iterator[str]:
    """The option by which pg_restore takes these entries alone."""
    with tempfile.NamedTemporaryFile("w", errors="surrogateescape") as file:
        with placing(file.name):
            print(*entries, "", sep="\n", file=file, flush=True)
        yield f"--use-list={file.name}"


def statements(sql: str) -> list[str]:
    """The statements of a script. No text in a literal, a comment's for instance, forges one."""
    sql = re.sub(r"""(?m)^(?:--|\\).*\n|('[^']*'|"[^"]*")""", lambda found: found[1] or "", sql)
    return [each.strip() for each in re.findall(r"""(?:[^;'"]|'[^']*'|"[^"]*")+;""", sql)]


def unquoted(identifier: str) -> str:
    """The name that an identifier stands for; a name that is none is itself."""
    if identifier[:1] == '"':
        return identifier[1:-1].replace('""', '"')
    return identifier


def named(identifiers: Iterable[str]) -> Pair:
    """What these identifiers stand for."""
    return tuple(map(unquoted, identifiers))


def roles_in(statement: str) -> set[str]:
    """The roles that a GRANT, a policy, … names: what stands after these words.

    A SECURITY LABEL names who knows of it after FOR: that is no role.
    """
    head = re.split(r" (?:USING|WITH CHECK) \(", statement)[0]
    role = '(?:(?:"[^"]*")+|[a-z_][a-z0-9_]*)'  # a word in capitals is a keyword: none is quoted
    after = rf"(?:TO|FROM|(?<!LABEL )FOR|ROLE|AUTHORIZATION) ({role}(?:, {role})*)"
    lists = re.findall(rf"{after}|'[^']*'|{NAME}", head)
    return set(map(unquoted, re.findall(role, ", ".join(lists)))) - {"public"}


def copied(script: str, table: str) -> Copied:
    """The rows of a table of TimescaleDB's catalog in a script of pg_restore."""
    schemas = "|".join(CATALOG)
    head = rf"(?m)^COPY ((?:{schemas})\.{table}) \(([\w, ]+)\) FROM stdin;\n"
    found = re.search(head + r"((?s:.*?))^\\\.$", script)
    if not found:
        return Copied()
    names, lines = found[2].split(", "), found[3].split("\n")[:-1]
    return Copied(found[1], found[2], [dict(zip(names, line.split("\t"))) for line in lines])


def count_block(text: bytes, table: str, rows: dict[str, int]) -> tuple[bytes, str]:
    """Add up the rows that a piece of a script copies; the rest of it, and whose rows come next.

    table: whose rows it begins with; "": nobody's.
    """
    at = 0  # what is before is done with
    while True:
        if not table:
            begin = ROWS_BEGIN.search(text, at)
            if not begin:
                return text[max(at, len(text) - len("\nINSERT INTO")) :], ""
            at = begin.start()
            head = COPY_HEAD.match(text, at)
            if not head:
                return text[at:], ""
            schema, name = (identifier(unquoted(part.decode("latin-1"))) for part in head.groups())
            table, at = f"{schema}.{name}", head.end()
            rows.setdefault(table, 0)
        slash = text.find(b"\\", at)  # a byte is found in a fifth of that time
        end = END.search(text, max(at, slash - 1)) if slash >= 0 else None
        seen = end.start() if end else max(at, len(text) - len(COPY_END) + 1)
        rows[table] += text.count(b"\n", at, seen)  # the head's newline, not the last row's
        if not end:
            return text[seen:], table
        table, at = "", end.end() - 1


def count_copied(program: Program, errors: IO[bytes]) -> dict[str, int] | None:
    """The rows that a script copies into each table, when pg_restore has written all of it.

    By names in quotes, each byte a character, whatever their encoding. None: it inserts rows, or
    was made before 10.3. errors: what pg_restore said of why it failed; then this raises Failure.
    """
    rows, rest, table = dict[str, int](), b"", ""
    pipe = program.stdout
    for each in (threading.get_native_id(), program.pid):
        with suppress(OSError):  # what restores goes first; at its end there is time for this
            os.setpriority(os.PRIO_PROCESS, each, 10)
    if pipe:
        with suppress(OSError):  # 64 kB take 1.2 to 1.3 times as long: they wait for each other
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, BLOCK)
    while pipe and (block := os.read(pipe.fileno(), BLOCK)):
        if len(rest) <= LONGEST_HEAD:  # else all the same it is read to its end
            rest, table = count_block(rest + block, table, rows)
    status = program.wait()
    errors.seek(0)
    said = f"exit status {status}: {excerpt(errors.read())}"
    require(status == 0, f"Reading the archive: pg_restore: {said}")
    return None if ROWS_BEGIN.match(rest) else rows


def hypertable_parts(catalog: str) -> Iterator[tuple[Pair, Pair]]:
    """The chunks of hypertables, and what has the compressed rows of either.

    These are chunks of a hypertable of their own, or (from 2.18 on; in 2.30 alone) settings name
    the one of each chunk.
    """
    names, packed = copied(catalog, "hypertable"), copied(catalog, "compression_settings")
    by_id = dict(zip(names.values("id"), names.tables()))
    chunks = copied(catalog, "chunk")
    of = [
        *zip(by_id.values(), map(by_id.get, names.values("compressed_hypertable_id"))),
        *zip(map(by_id.get, chunks.values("hypertable_id")), chunks.tables()),
        *zip(packed.tables(), packed.tables("compress_relid")),
    ]
    for whole, part in of:
        if whole and part:
            yield whole, part


def reachable(begin: Iterable[Pair], ways: Iterable[tuple[Pair, Pair]]) -> set[Pair]:
    """All that is reached from there, itself included."""
    further = defaultdict[Pair, list[Pair]](list)
    for here, there in ways:
        further[here].append(there)
    found, ahead = set[Pair](), [*begin]
    while ahead:
        each = ahead.pop()
        if each not in found:
            found.add(each)
            ahead += further[each]
    return found


def find_table(typed: str, there: Iterable[Pair]) -> Pair:
    """The table that somebody means: as SQL has it, or as it is called (a shell takes quotes away).

    Without a schema it is one of public. Raises Failure, with the nearest names.
    """
    part = r'("(?:[^"]|"")+"|[^".]+)'
    found = re.fullmatch(rf"(?:{part}\.)?{part}", typed)
    exact = (found[1] or "public", found[2]) if found else (typed,)
    folded = [each if each.startswith('"') else each.lower() for each in exact]
    for spelt in (exact, folded):
        name = named(spelt)
        if name in there:
            return name
    import difflib

    near = difflib.get_close_matches(typed, map(".".join, there), 5, 0.5)
    raise Failure(f"the archive has no table {typed}; near to it: {', '.join(near) or 'none'}")


def shortened(what: str, names: Sequence[str]) -> Iterator[str]:
    """A line of what they are, and the first of them; none where there are none."""
    if names:
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        yield f"{what}: {printable(', '.join(names[:20]))}{more}"


def path_in(file: IO[bytes]) -> str:
    """The path by which our programs open a file, also one that has no name."""
    return f"/proc/{os.getpid()}/fd/{file.fileno()}"


class Archive:
    """What an archive of pg_dump holds, and how it is to be read."""

    def __init__(self, file: IO[bytes], options: list[str], metadata: Mapping[str, str]):
        """Read its table of contents and its statements on roles. Raises Failure.

        metadata: of its object, as far as there are any.
        """
        self.database_size = number_in(metadata, "database-size") or 0  # 0: unknown
        self.path = path_in(file)
        self.options = options  # of pg_restore, for all that is read of it and restored from it
        contents = self.read("-l", "-C")
        head = dict(re.findall("(?m)^; +(.+?): (.*)", contents))
        # The major versions of the program that reads it, and of the server that it is of.
        self.pg_restore = pg_restore_for(head.get("Dumped by pg_dump version", ""))
        self.server = major_version(head.get("Dumped from database version", ""))
        self.format = head.get("Dump Version", "")
        self.tar = head.get("Format") == "TAR"
        # But for statistics (pg_dump 18 --statistics), which an older server does not know: we
        # make them anew.
        self.entries: list[str] = re.findall(r"(?m)^\d+; (?!0 0 STATISTICS DATA )\d+ .*$", contents)
        self.tables = len(re.findall(TABLES, contents))  # whose rows it has
        # Entries without which a database was made, as an extension was refused; why, a line each.
        self.refused = dict[str, str]()
        self.left_out = list[str]()  # lines on all that it takes from them
        self.roles = set[str]()  # that its statements name, which have to be there
        self.database = ""  # whose it is, as an identifier; "" where pg_restore cannot write it
        self.create = "TEMPLATE = template0"  # what its CREATE DATABASE says after the name
        # The database's other statements, before and after its name.
        self.properties: list[tuple[str, str]] = []
        self.limits: list[tuple[str, str]] = []  # likewise, how many connections it takes
        self.closed = False  # only who is granted that may connect to it
        self.unread = ""  # why these could not be read
        self.encoding = "SQL_ASCII"  # of what pg_restore writes; that one is any
        self.strings = "on"  # standard_conforming_strings, by which that is to be read
        for statement in statements(self.read_statements()):
            self.note(statement)
        self.tablespaces = self.read_tablespaces()
        self.timescaledb = self.examine_timescaledb(metadata.get("timescaledb", ""))

    def read(self, *options: str) -> str:
        """What pg_restore prints of it."""
        return run("Reading the archive", ["pg_restore", *options, *self.options, self.path])

    def those(self, kind: re.Pattern[str]) -> list[str]:
        """Its entries of a kind."""
        return list(filter(kind.match, self.entries))

    @contextmanager
    def counting(self) -> Iterator[Future[dict[str, int] | None]]:
        """Read all of its data, in a thread: what `count_copied` makes of that.

        285 MB of rows took 0.3 s of our CPU, beside 0.3 s of pg_restore's, which writes them to
        /dev/null in as many (17.10). Raises OSError where no thread can start.
        """
        entries = filter(DATA.match, self.entries)
        with (
            threads(1) as pool,
            listing(entries) as data,
            tempfile.TemporaryFile() as errors,
        ):
            argv = ["pg_restore", "-a", "-f-", data, *self.options, self.path]
            program = start(argv, environment(None), stderr=errors)
            try:
                try:
                    copied = pool.submit(count_copied, program, errors)
                except RuntimeError as error:
                    raise OSError(f"Reading the archive: {error}") from None
                yield copied
            finally:
                stop(program, signal.SIGKILL)

    def needs(self) -> dict[str, set[str]]:
        """The numbers of what each entry of its table of contents depends on; by its number."""
        found, number = dict[str, set[str]](), ""
        for line in self.read("-l", "-v").split("\n"):
            if line.startswith(";\tdepends on:"):
                found[number] |= {*line.split()[3:]}
            else:
                number = number_of(line)
                found[number] = set()
        return found

    def read_statements(self) -> str:
        """The statements on roles and on the database, as far as pg_restore writes them."""
        with listing(self.those(OF_ROLES)) as chosen:
            try:  # -C: with what makes the database, whose name pg_restore may refuse to write
                return self.read("-f-", chosen, "-C")
            except Failure as error:
                self.unread = f"not restored: {error}"
                return self.read("-f-", chosen)

    def note(self, statement: str) -> None:
        """Note what one of these statements says."""
        made = re.match(f"CREATE DATABASE ({NAME}) (WITH .*);", statement)
        about = re.fullmatch(OF_DATABASE, statement)
        encoding = re.fullmatch(r"SET client_encoding = '(\w+)';", statement)
        strings = re.fullmatch(r"SET standard_conforming_strings = (\w+);", statement)
        if encoding:
            self.encoding = encoding[1]
        if strings:
            self.strings = strings[1]
        if made:
            self.database, self.create = made[1], made[2]
        elif about:
            limit = about[2].startswith(" CONNECTION LIMIT ")
            (self.limits if limit else self.properties).append((about[1], about[2]))
            if about[2].startswith(" OWNER TO "):
                self.create += about[2][:-1].replace(" TO", "", 1)
            if re.match("REVOKE .*(CONNECT|ALL).* FROM PUBLIC;", "".join(about.groups())):
                self.closed = True  # a GRANT follows where it is so for some
        if not about or "--no-owner" not in self.options:
            self.roles |= roles_in(statement)

    def read_tablespaces(self) -> set[str]:
        """The tablespaces that it takes, the database's own among them; of `entries`, too."""
        if "--no-tablespaces" in self.options:
            self.entries = list(filterfalse(PLACES.match, self.entries))
            return set()
        with listing(self.those(STORED)) as chosen:
            script = self.read("-s", "-f-", chosen)
        setting = f"SET default_tablespace = ({NAME});"
        made = re.findall(f" TABLESPACE = ({NAME})", self.create)
        if re.search(f"(?m)^{setting}$", script):  # to tell statements apart takes a while
            told = map(re.compile(setting).fullmatch, statements(script))
            made += (each[1] for each in told if each)
        return set(map(unquoted, made))

    def examine_timescaledb(self, version: str) -> Timescale | None:
        """What its TimescaleDB takes, from its catalog and foreign keys; None: it has none."""
        extension = self.those(EXTENSION)
        if not extension:
            return None
        tables = ("-tmetadata", "-thypertable", "-tbgw_job", "-ttablespace")
        catalog = self.read("-a", "-f-", *OF_CATALOG, *tables)
        if "--no-tablespaces" not in self.options:  # in which hypertables make their chunks
            self.tablespaces.update(copied(catalog, "tablespace").values("tablespace_name"))
        if found := re.search(r"\ntimescaledb_version\t([^\t\n]+)", catalog):
            version = version or found[1]
        jobs = copied(catalog, "bgw_job")
        owners = set(jobs.values("owner"))
        adopted = owners if "--no-owner" in self.options else set(filter(GONE.fullmatch, owners))
        self.roles |= set(map(unquoted, owners - adopted))

        with listing(extension) as chosen:
            made = self.read("-f-", chosen)
        schema = re.search(rf"\nCREATE EXTENSION [\w ]+ WITH SCHEMA ({NAME});\n", made)
        late = set(self.those(OF_CONSTRAINT))
        # With `timescaledb.restoring` on, a key at a hypertable finds no rows there, or is not
        # passed on to the chunks, as a materialized view counted 5,760 of 14,400 rows; with it off,
        # a key *of* one is refused. One at itself, which only an older table can have, is of it.
        # (2.28.3, 2.29.2, 2.30.0-dev)
        hypertables = {*copied(catalog, "hypertable").tables()}
        for entry, (of, to) in self.foreign_keys().items():
            if to in hypertables and of not in hypertables:
                late.add(entry)
        place = schema[1] if schema else "public"
        return Timescale(version or "?", place, jobs, adopted, late)

    def said(self, entries: Iterable[str], *patterns: re.Pattern[str]) -> list[list[Pair]]:
        """The names that each of these patterns finds in the statements of these entries."""
        with listing(entries) as chosen:
            made = statements(self.read("-f-", chosen))
        return [
            [named(found.groups()) for found in map(pattern.match, made) if found]
            for pattern in patterns
        ]

    def foreign_keys(self) -> dict[str, tuple[Pair, Pair]]:
        """The table of each of its foreign keys, and the one that it points at, by entry."""
        keys = self.those(FOREIGN_KEY)
        [found] = self.said(keys, KEY)
        require(len(found) == len(keys), f"its {len(keys)} foreign keys cannot be told apart")
        return {key: (names[:2], names[2:]) for key, names in zip(keys, found)}

    def examine_tables(self) -> tuple[dict[str, Pair], list[tuple[Pair, Pair]]]:
        """The tables that it makes, not its extensions', by OID; each of them with each part of it.

        From its statements: a table of contents does not tell names from owners.
        """
        tables = self.those(TABLE)
        created, attached = self.said([*tables, *self.those(ATTACHED)], MAKES, ATTACHES)
        require(len(created) == len(tables), f"its {len(tables)} tables cannot be told apart")
        parts = [(names[:2], names[2:]) for names in attached]
        if self.timescaledb:
            some = ("-thypertable", "-tchunk", "-tcompression_settings")
            parts += hypertable_parts(self.read("-a", "-f-", *OF_CATALOG, *some))
        return dict(zip(map(oid_of, tables), created)), parts

    def choose(self, typed: Sequence[str] | None) -> None:
        """Have `entries` be the schema, and the rows of these tables with all of their parts.

        typed: None, if all are meant. Extensions' own tables keep their rows: they are as good as
        schema. Children that inherit are tables by themselves. Raises Failure.
        """
        if not typed:
            return
        tables, parts = self.examine_tables()
        there = {*tables.values()}
        chosen = reachable([find_table(each, there) for each in typed], parts)
        above = [(part, whole) for whole, part in parts]
        filled = reachable(chosen, above)  # perhaps in part
        lost = there - chosen
        rows = {entry for entry in self.those(TABLE_DATA) if tables.get(oid_of(entry)) in lost}
        keys = self.foreign_keys().items()
        dangling = {entry for entry, (of, to) in keys if of in filled and to in lost}
        within = {part for part, whole in above if whole not in filled}
        empty = [".".join(table) for table in sorted(lost - filled - within)]
        self.left_out += shortened(f"Empty, as not chosen: {amount(len(empty), 'table')}", empty)
        self.leave_out(rows, dangling)

    def leave_out(self, rows: set[str], keys: set[str]) -> None:
        """Take these from `entries`, and what fails without them.

        A materialized view could be refreshed, but of what is there: nobody would see that.
        """
        others = {*keys, *self.those(TAKES_ROWS)}
        left = [entry.split(" ", 3)[3] for entry in self.entries if entry in others]
        self.left_out += shortened("Left out, for want of rows", left)
        needs, numbers = self.needs(), set(map(number_of, keys))
        for comment in self.those(OF_CONSTRAINT):
            if not numbers.isdisjoint(needs[number_of(comment)]):
                others.add(comment)
        out = rows | others
        self.entries = [entry for entry in self.entries if entry not in out]
        self.tables -= len(rows)


# ---- Fetching a backup ---------------------------------------------------------------------------


class Steps:
    """How the steps of a command went."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}  # that each took
        self.current = ""  # the one that runs, or failed; "" between two

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Note how long a step takes. One that fails stays the current one."""
        begun, self.current = monotonic(), step
        info(f"{step.capitalize()} ...")
        yield
        self.current = ""
        self.seconds[step] = round(monotonic() - begun, 1)


def facts_of(backup: Backup) -> str:
    """What one chooses a backup by, as `list` shows it."""
    return (
        f"{backup.name} ({moment(backup.seconds)}, {backup.size} bytes, "
        f"tables: {backup.known.get('tables', '?')}, server {backup.short_server or '?'})"
    )


def chosen(s3: S3, name: str, database: str = "", server: str = "") -> Backup:
    """The backup of this name, or the `latest` one of a database. Raises Failure.

    A name is found also where it is not among those that `backups` looks at. server: the end of its
    server's identifier; "" if there is one server's alone.
    """
    if name == "latest":
        newest, doubts = newest_good(s3, database, server)
        several = "; ".join(
            facts_of(each) + (": doubtful" if each.key in doubts else "") for each in newest
        )
        require(
            len(newest) == 1,
            f"{s3.where}: backups of several servers are there; "
            f"give the name of one, or its server by --server: {several}",
        )
        return newest[0]
    plain = name.removeprefix(s3.key(""))
    made = re.fullmatch(r"backup_([0-9]{1,18})\.bak(\.age)?", plain)
    head: Any = s3.head(s3.key(plain)) if made else None
    require(head, f"{s3.where}: there is no backup {name!r}; `list` shows those there are")
    seconds = int(made[1]) if made else 0
    backup = shown(Backup(seconds, s3.key(plain), head["ContentLength"], None), head)
    require(backup.server.endswith(server), f"{facts_of(backup)}: that is no server {server}")
    return backup


def backups_of(s3: S3, database: str) -> list[Backups]:
    """The backups of a database, oldest first, those of each server by themselves.

    Where there is none of it, or database is "", all have to be one database's. Of objects without
    metadata the newest 100 are asked whose they are, for databases of which there is no proven one.
    Raises Failure.
    """
    found = s3.backups()
    require(
        found, f"{s3.where}: there is no backup, its AWS_S3_PREFIX being {s3.s.aws_s3_prefix!r}"
    )
    whose = by_database(found)
    known = {of for _, of in whose}
    for backup in [each for each in found if each.metadata == {}][-HEADS:]:
        name, _ = archive_origin(s3.beginning(backup))
        if name and name not in known:
            whose.setdefault(("", name), []).append(backup)
    names = {of for _, of in whose}
    if database not in names:
        text = f"{s3.where}: several databases' backups are there, and none of {database!r}"
        require(len(names) <= 1, f"{text}: name one, or set DB_DATABASE")
        return [*whose.values()] or [found]
    return [whose[of] for of in whose if of[1] == database]


def newest_good(
    s3: S3, database: str, server: str, proving: bool = False
) -> tuple[Backups, set[str]]:
    """The newest good backup of a database at each server, oldest first; keys of the doubtful.

    A backup is good by what its own server's are. It may be doubtful all the same: by those of
    another, which was lost perhaps. server: the end of identifiers. proving: where doubtful ones
    become normal if one restores, and can, the newest of these is taken, as a good one. Raises
    Failure.
    """
    sorts = [backups for backups in backups_of(s3, database) if backups[0].server.endswith(server)]
    require(sorts, f"{s3.where}: there is no backup of a server {server}")
    nights, now = s3.s.full_backups, time.time()
    every = sorted(chain(*sorts))
    verdicts: Verdicts = {}
    if judge(every, {}, nights, now).doubts:
        verdicts = known_verdicts(s3) or {}
    newest, proposed = Backups(), set[str]()
    for backups in sorts:
        judged = judge(backups, verdicts, nights, now)
        good = [backup for backup in backups if backup.key not in judged.doubts]
        if proving and not closed(s3.s, backups[-1]) and promising(judged, verdicts, nights):
            good = judged.since
            proposed.add(good[-1].key)
            info("If it restores, its size is the new normal", Key=good[-1].key)
        for backup in backups[backups.index(good[-1]) + 1 :]:
            warn("Passing over a doubtful backup", Key=backup.key)
        newest.append(good[-1])
    if misled(s3, newest):
        return newest_good(s3, database, server, proving)
    return sorted(newest), judge(every, verdicts, nights, now).doubts - proposed


def fetch_range(s3: S3, backup: Backup, file: IO[bytes], start: int, end: int) -> None:
    """Write these bytes of a backup to where they belong in a file.

    What has come stays where a body is cut: the next request asks for the rest, with a patience of
    its own. All is of one object: another has another ETag, whether S3 heeds an If-Match or not.
    """
    reached = start

    def take(begin: int, answer: Any) -> bool:
        """Write what an answer's body has, until it is cut; False: it is another object's.

        Raises what a cut raises that comes within a BLOCK: else S3 might be asked without an end.
        """
        nonlocal reached
        wanted, at, data = f"bytes {begin}-{end - 1}/{backup.size}", begin, b""
        etag, soon = plain_etag(answer), monotonic() + time_limit(TRANSFER_SECONDS) / 2
        if etag and backup.etag not in ("", etag):
            return False
        same = answer.get("ContentRange") == wanted and (etag or not backup.etag)
        require(same, f"it gave not {wanted}")
        while at < end and monotonic() < soon:
            try:
                data = data or answer["Body"].read(min(BLOCK, end - at))
                require(data, f"it gave not all of {wanted}")
            except s3.causes:
                if at < begin + BLOCK:
                    raise
                break
            with placing(s3.s.backup_path):
                written = os.pwrite(file.fileno(), data, at)
            at, data = at + written, data[written:]
            reached = max(reached, at)  # an answer that was given up may still come
        return True

    while reached < end:
        ours = s3.call(
            "get_object",
            take=partial(take, reached),
            Key=backup.key,
            Range=f"bytes={reached}-{end - 1}",
        )
        require(ours, f"{s3.where}: {backup.key}: another object has this name by now")


def piece_of(backup: Backup) -> int:
    """The bytes of it that one request gets: it is got in order, and hashed as it comes."""
    return max(16 * MIB, backup.size // 4096)


def fetch(s3: S3, backup: Backup, file: IO[bytes], steps: Steps, there: int) -> str:
    """Download a backup into a file: "checked", or "absent" if it carries no checksum.

    there: the bytes that the file has, none or a piece. Raises Failure, at the step "checksum"
    where the backup is damaged.
    """
    metadata = backup.known
    info(f"Found {facts_of(backup)}", Database=backup.database or "unknown")
    pg_restore_for(metadata.get("pg-dump", ""))
    to_open = backup.encrypted and not closed(s3.s, backup)
    if to_open:  # can it be?
        opening(s3.s, backup.key)
    require_room(s3.s, backup.size - there, 0, to_open)
    sha256 = hashlib.sha256()

    def get(start: int, end: int) -> tuple[int, int]:
        """Have these bytes in the file; which they are."""
        if end > there:
            fetch_range(s3, backup, file, start, end)
        return start, end

    with steps.timed("download"):
        for start, end in slices("Download in progress", backup.size, piece_of(backup), get):
            for at in range(start, end, BLOCK):  # hashed while the next ones come
                sha256.update(os.pread(file.fileno(), min(BLOCK, end - at), at))
    steps.current = "checksum"
    if "sha256" not in metadata:
        warn("It has no checksum: that was not checked")
        return "absent"
    require(
        sha256.hexdigest() == metadata["sha256"],
        f"{s3.where}: {backup.key} is damaged: its SHA-256 is not that of the dump",
    )
    return "checked"


# age's words, and ours, on what is not whole, or not as it was made. All else is no word of it.
BROKEN = re.compile(
    "age: error: (failed to (decrypt and authenticate|read (header|nonce))|unexpected EOF|"
    "bad header MAC|last chunk )|is damaged"
)


def closed(s: Settings, backup: Backup) -> bool:
    """Whether a backup is encrypted, and nothing is there to open it."""
    return backup.encrypted and not s.age_identity_file


def opening(s: Settings, what: str) -> tuple[str, list[str]]:
    """A step, that WHAT is decrypted, and its command."""
    path = s.age_identity_file
    require(path, f"{what} is encrypted: AGE_IDENTITY_FILE, its private key's, is not set")
    there = os.path.isfile(path) and os.access(path, os.R_OK)  # age would wait for a FIFO's writer
    require(there, f"AGE_IDENTITY_FILE, {path}, is not there, is no file, or may not be read")
    return f"Decrypting {what} by AGE_IDENTITY_FILE, {path}", ["age", "-d", "-i", path]


@contextmanager
def opened(s: Settings, name: str, file: IO[bytes], cut: bool = False) -> Iterator[IO[bytes]]:
    """A file of what an encrypted one holds; CUT: as far as that goes. Raises Failure."""
    step, argv = opening(s, name)
    with tempfile.TemporaryFile(dir=s.backup_path) as plain:
        argv += ["-o", path_in(plain), path_in(file)]
        try:
            head = os.pread(file.fileno(), MIB, 0)  # age has all of it in memory, 20 times (1.2)
            ours = head.startswith(AGE_HEAD) and re.search(b"\n--- .*\n", head)
            require(ours, f"{name} is damaged: it begins with no header of age's")
            run(step, argv, tick=partial(require_floor, s, "age"))
        except Failure as error:
            if not cut or not BROKEN.search(str(error)):
                raise
        yield plain


def unseal(s: Settings, name: str, file: IO[bytes], steps: Steps, sha256: str = "") -> None:
    """Have in FILE what it holds encrypted, which is gone then. Raises Failure.

    sha256: of the archive, if that is known.
    """
    with steps.timed("decrypt"), opened(s, name, file) as plain:
        same = sha256 in ("", digest_of(plain))
        require(same, f"{name} is damaged: the SHA-256 of its archive is not that of the dump")
        os.dup2(plain.fileno(), file.fileno(), inheritable=False)


def fetch_open(s3: S3, backup: Backup, file: IO[bytes], steps: Steps, there: int = 0) -> str:
    """`fetch` a backup, and decrypt it if that can be, or if nothing else is known of it."""
    checksum = fetch(s3, backup, file, steps, there)
    if backup.encrypted and (s3.s.age_identity_file or checksum == "absent"):
        unseal(s3.s, backup.key, file, steps, backup.known.get("plain-sha256", ""))
    return checksum


def plain_roles(s3: S3, backup: Backup) -> str:
    """`roles_of` a backup, decrypted. Raises Failure."""
    sql = roles_of(s3, backup)
    if backup.encrypted:
        step, argv = opening(s3.s, beside(backup.key))
        sql = run(step, argv, stdin=sql.encode())
    return sql


def roles_of(s3: S3, backup: Backup) -> str:
    """What makes the roles that a backup brings. Raises Failure: it brings none, or they are lost.

    S3Failure: that is not known.
    """
    name, sha256 = beside(backup.key), backup.known.get("roles-sha256")
    why = "brings no roles: see BACKUP_ROLES"
    if backup.metadata == {}:
        why = f"has no metadata, which name its roles: are they in {name}? psql runs that"
    require(sha256, f"{s3.where}: {backup.key} {why}")
    data = b""
    with allowing(404):
        data = s3.call("get_object", Key=name)
    text = f"{s3.where}: {name} is gone or damaged: its SHA-256 is not that of the roles"
    require(hashlib.sha256(data).hexdigest() == sha256, text)
    return str(data, "utf-8", "replace")


# ---- Restore -------------------------------------------------------------------------------------

CLUSTER = """SELECT json_build_object(
    'major', current_setting('server_version_num')::int / 10000,
    'superuser', (SELECT rolsuper FROM pg_roles WHERE rolname = user),
    'search_path', current_setting('search_path'),
    'limits', (SELECT json_object_agg(datname, datconnlimit) FROM pg_database),
    'roles', (SELECT json_agg(rolname) FROM pg_roles),
    'tablespaces', (SELECT json_agg(spcname) FROM pg_tablespace),
    'preloaded', coalesce((SELECT CASE WHEN setting ~ 'timescaledb' THEN 'yes' ELSE 'no' END
        FROM pg_settings WHERE name = 'shared_preload_libraries'), 'only a superuser is told'),
    'versions', (SELECT coalesce(json_agg(version), '[]') FROM pg_available_extension_versions
        WHERE name = 'timescaledb'))"""
# Empty is also what holds nothing but extensions, as images make databases. Their members depend on
# them ("e"); indexes and the like belong to something else ("i", "a"), which is there, too; and an
# extension's schema is no member of it.
EMPTY = """
    SELECT json_build_object(
        'timescaledb', EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb'),
        'ours', (SELECT pg_has_role(datdba, 'USAGE') FROM pg_database
                 WHERE datname = current_database()),
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
# Statements of pg_dumpall on a role: how much of them is no secret, whose they are, and the rest.
OF_ROLE = re.compile(
    rf"(?s)((?:ALTER|(?:COMMENT|SECURITY LABEL FOR {NAME}) ON) ROLE ({NAME})(?: SET {NAME})?) (.*)"
)
GRANTED = re.compile(rf"(GRANT ({NAME}|[A-Z, ]+ ON PARAMETER {NAME}) TO ({NAME}))( .*)?;")
# Each step for itself, but for those of a role that could not be made, and all or none to a crash.
# A message alone is told: a statement, as psql or its context shows it, may hold a password.
MAKE_ROLES = """
    DECLARE
        step record;
        way text;
        why text;
        lost text[] := ARRAY[]::text[];
        refused json[] := ARRAY[]::json[];
    BEGIN
        FOR step IN SELECT value, ordinality FROM json_array_elements({}) WITH ORDINALITY LOOP
            CONTINUE WHEN step.value->>0 = ANY (lost);
            why := NULL;
            FOR way IN SELECT json_array_elements_text(step.value->2) LOOP
                BEGIN
                    EXECUTE way;
                    why := NULL;
                    EXIT;
                EXCEPTION WHEN others THEN
                    why := SQLERRM;
                END;
            END LOOP;
            IF why IS NOT NULL THEN
                refused := array_append(refused, json_build_array(step.ordinality, why));
                IF step.value->>1 LIKE 'CREATE ROLE %' THEN
                    lost := array_append(lost, step.value->>0);
                END IF;
            END IF;
        END LOOP;
        PERFORM set_config('colonies_backup.refused', array_to_json(refused)::text, false);
    END
"""
REFUSED = "SELECT current_setting('colonies_backup.refused')"
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
                answers := array_append(answers, json_build_array(part.whole, 0,
                    format('%s (%s)', SQLERRM, SQLSTATE)));
            END;
            COMMIT;
        END LOOP;
        PERFORM set_config('colonies_backup.answers', encode(convert_to(
            array_to_json(answers)::text, CASE getdatabaseencoding() WHEN 'SQL_ASCII'
            THEN 'SQL_ASCII' ELSE 'UTF8' END), 'hex'), false);
    END $$
"""
# In hexadecimal, since psql writes names in the database's encoding; none is "[]".
ANSWERS = f"""SELECT json_build_object('size', ({SIZE}),
    'answers', coalesce(current_setting('colonies_backup.answers', true), '5b5d'))"""
# A table with a partition at another server has no statistics of its own: that is not asked. The
# largest are shared out first among the sessions, all by one order: catalogs grow meanwhile.
ANALYZE = FOR_EACH.format(
    into="",
    parts="""SELECT * FROM (
    SELECT c.oid::regclass AS whole, format('ANALYZE %s', c.oid::regclass) AS query,
        nspname, relname, row_number() OVER (
            ORDER BY pg_relation_size(c.oid) * (c.oid >= 16384)::int DESC, c.oid) AS nth
    FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE (relkind IN ('r', 'm') AND relpersistence <> 't') OR (relkind = 'p' AND NOT EXISTS (
        SELECT FROM pg_partition_tree(c.oid) JOIN pg_class f ON f.oid = relid
        WHERE f.relkind = 'f'))) AS tables WHERE nth % {jobs} = {job}""",
)
# Each table by itself, without its partitions and children. One at another server is not asked: its
# rows are in no dump. {encoding}: the archive's, in which its names are compared.
COUNT = FOR_EACH.format(
    into="INTO number",
    parts="""
    SELECT json_build_object('oid', c.oid::bigint, 'key', encode(convert_to(
                format('"%s"."%s"', replace(nspname, '"', '""'), replace(relname, '"', '""')),
                '{encoding}'), 'hex'),
            'parents', ARRAY(SELECT inhparent::bigint FROM pg_inherits WHERE inhrelid = c.oid),
            'facts', json_build_object('name', c.oid::regclass, 'kind', relkind,
                'internal', nspname ~ '^_timescaledb_',
                'member', EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass
                    AND objid = c.oid AND deptype = 'e'))) AS whole,
        CASE relkind WHEN 'r' THEN format('SELECT count(*) FROM ONLY %s', c.oid::regclass)
            WHEN 'p' THEN 'SELECT 0' ELSE 'SELECT NULL' END AS query
    FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE relkind IN ('r', 'p', 'f') AND nspname !~ '^(pg_|information_schema$)'""",
)
# Compressed rows are seen through their hypertable alone.
COUNT_HYPERTABLES = FOR_EACH.format(
    into="INTO number",
    parts="""
    SELECT schema_name AS nspname, table_name AS relname,
        format('%I.%I', schema_name, table_name)::regclass AS whole,
        format('SELECT count(*) FROM %I.%I', schema_name, table_name) AS query
    FROM _timescaledb_catalog.hypertable WHERE schema_name !~ '^_timescaledb_'""",
)
# Nothing but a start of the server brings pg_cron's scheduler back once it was ended (1.4.2).
CRON_IS_BACK = """DO $$ BEGIN
    FOR tries IN 1 .. 50 LOOP
        IF EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'pg_cron scheduler') THEN
            RETURN;
        END IF;
        PERFORM pg_sleep(0.2), pg_stat_clear_snapshot();
    END LOOP;
    RAISE 'its scheduler was ended, and is not back: no job runs until PostgreSQL is restarted';
    END $$"""
# ALTER DATABASE … RENAME stops TimescaleDB's scheduler for good, also where it is refused.
START_WORKERS = "SELECT _timescaledb_functions.start_background_workers()"
# Those below 1000 are TimescaleDB's own. It is a table up to 2.24, then a view of that.
PAUSE_JOBS = """WITH paused AS (UPDATE _timescaledb_config.bgw_job SET scheduled = false
    WHERE scheduled AND id >= 1000 RETURNING id) SELECT array_agg(id ORDER BY id) FROM paused"""
OWNER = """SELECT CASE atttypid WHEN 'regrole'::regtype THEN quote_ident(user) ELSE user END
    FROM pg_attribute WHERE attname = 'owner' AND attrelid IN (to_regclass(
    '_timescaledb_catalog.bgw_job'), to_regclass('_timescaledb_config.bgw_job')) LIMIT 1"""
# No dump has this sequence, and attach_tablespace would begin with numbers that are taken.
NUMBER_TABLESPACES = """SELECT setval(pg_get_serial_sequence('_timescaledb_catalog.tablespace',
    'id'), max(id)) FROM _timescaledb_catalog.tablespace"""
MEMBERS = """SELECT format('%s %s', nspname, relname) FROM pg_depend, pg_class c
    JOIN pg_namespace n ON n.oid = relnamespace
    WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e'"""
# Of a database, whose name an expression has.
SUBSCRIPTIONS = """SELECT {} FROM pg_subscription
    WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = {})"""
SLOTS = "string_agg(format('%s of the slot %s', subname, subslotname), ', ')"
# A database with a subscription can't be dropped; and the slot at the publisher is another's.
UNSUBSCRIBE = f"""DO $$
    DECLARE
        name name;
    BEGIN
        FOR name IN {SUBSCRIPTIONS.format("subname", "current_database()")} LOOP
            EXECUTE format('ALTER SUBSCRIPTION %I DISABLE', name);
            EXECUTE format('ALTER SUBSCRIPTION %I SET (slot_name = NONE)', name);
            EXECUTE format('DROP SUBSCRIPTION %I', name);
        END LOOP;
    END $$"""
ALL_ROWS = "-c timescaledb.restoring=off"  # with it on, compressed rows are not seen
AS_THEY_LIE = "-c timescaledb.restoring=on"  # in tables, as a dump has them
ALL_POLICIES = "-c row_security=off"  # an error, not a part
DISABLED = "Subscriptions are disabled: enable them when nobody else has their slots"
PUBLIC = "-c search_path=public"
LASTING = "-c synchronous_commit=local "  # a commit waits for the disk, whatever the server sets
FLUSH = "SELECT pg_logical_emit_message(true, '', '')"  # so that there is something to commit
AS_STORED = "-c client_encoding=SQL_ASCII"  # names of another encoding, of which psql drops bytes


class Cluster(NamedTuple):
    """What a restore has to know of a server."""

    major: int  # its version
    superuser: bool  # the role that looks
    limits: dict[str, int]  # of its databases: how many connections each takes
    roles: list[str]
    tablespaces: list[str]
    preloaded: str  # whether TimescaleDB's library is: "yes", "no", or who may know
    versions: list[str]  # of TimescaleDB that it can make


@contextmanager
def noting(left: list[str]) -> Iterator[None]:
    """Go on after a Failure: note that, as a line of what did not come about."""
    try:
        yield
    except Failure as error:
        left.append(str(error))


def examine_cluster(server: Database, but: str = "") -> tuple[Database, Cluster]:
    """A database from which others are made and named, and what there is on its server.

    Not the one named BUT. None of these has to be there, nor to let in this role. Raises Failure.
    """
    errors = []
    for name in filter(but.__ne__, dict.fromkeys(["postgres", "template1", server.name])):
        hub = server.named(name)
        try:
            told = read_json(hub, "Looking at the server", CLUSTER, options=AS_STORED)
            break
        except Failure as error:
            errors.append(error)
            said = str(error).rpartition(" failed: ")[2]
            if name not in said or "password authentication" in said:
                raise errors[0] from None  # no other one would do, and a login may get locked
    else:
        raise errors[0]
    require_options(hub, told.pop("search_path"))
    cluster = Cluster(**told)
    return unhindered(hub, cluster), cluster


def unhindered(database: Database, cluster: Cluster, archive: Archive | None = None) -> Database:
    """The same, where sessions, pg_restore's too, are not ended or refused by what a server sets.

    An unknown setting would refuse them. archive: what is to be restored; TimescaleDB's event
    triggers are of use to that, and where it has others, to pg_restore alone.
    """
    needed = archive and archive.timescaledb and not archive.those(TRIGGER)
    options = ""
    if cluster.superuser:
        # A large index would exceed that; and words are read.
        options += " -c temp_file_limit=-1 -c lc_messages=C"
    if cluster.major >= 14:
        options += " -c idle_session_timeout=0"
    if cluster.major >= 17:
        options += " -c transaction_timeout=0"
    if cluster.major >= 17 and cluster.superuser and not needed:
        options += " -c event_triggers=off"  # one for logins locks out whom it does not know
    return database._replace(options=options)


def creation(cluster: Cluster, archive: Archive, locale: str = "") -> str:
    """What CREATE DATABASE says after the name, as this server understands it.

    locale: of the C library, in place of the archive's. Before 15 that provider of locales, the
    only one, has no name; pg_dump 15 and later write it all the same.
    """
    create = archive.create
    if "--no-tablespaces" in archive.options:
        create = re.sub(f" TABLESPACE = {NAME}", "", create)
    if locale:
        create = re.sub(LOCALE, "", create)
        create += f" LOCALE_PROVIDER = libc LOCALE = {literal(locale)}"
    if cluster.major < 15:
        create = create.replace(" LOCALE_PROVIDER = libc", "")
    return create


def require_creation(hub: Database, create: str) -> None:
    """Raise Failure where a server refuses what `creation` says, of locales for one.

    It looks at all of that before the name: one that is taken is what it refuses last (14 to 18).
    Its owner may be a role that is still to be made.
    """
    create = re.sub(rf" OWNER {NAME}( LOCALE|$)", r"\1", create)
    query = f"CREATE DATABASE template0 {create}"  # a pooler may have another name for ours
    argv = [*PSQL, "-vVERBOSITY=verbose"]
    try:
        run("Trying CREATE DATABASE", argv, hub, PLAIN, 120, stdin=script(query))
    except Failure as error:
        said = str(error).partition("\nLOCATION")[0]
        text = "where that is a locale, --locale takes another: C.UTF-8 with UTF8, C with all"
        require(" 42P04: " in said, f"{said}; {text}")


def require_needs(cluster: Cluster, archive: Archive) -> None:
    """Raise Failure where the server lacks roles, or a TimescaleDB, that the archive takes.

    A grant to the role that dumps, on TimescaleDB's catalog for instance, is in the dump, too: then
    that role has to be there.
    """
    missing = sorted(archive.roles - {*cluster.roles})
    if "--no-owner" not in archive.options:
        known = tuple(f" {role}" for role in ["", *cluster.roles])
        strange = [entry for entry in archive.entries if not entry.endswith(known)]
        # Its last word stands for all objects of an owner.
        missing += {each.split()[-1]: each.split(" ", 3)[3] for each in strange}.values()
    require(
        not missing,
        f"the server lacks these roles, or the owners of these: {', '.join(missing)}; "
        "--roles makes those that the backup brings, --no-owner goes on without",
    )
    if not archive.timescaledb:
        return
    version, there = archive.timescaledb.version, cluster.versions
    require(
        cluster.preloaded == "yes" and there and version in ["?", *there],
        f"it takes TimescaleDB {version} and its preloading (shared_preload_libraries); "
        f"preloaded: {cluster.preloaded}; versions: {', '.join(there) or 'none'}",
    )


def require_all(hub: Database, cluster: Cluster, archive: Archive, locale: str) -> None:
    """Raise Failure where the server lacks what the archive takes, its database included."""
    require_needs(cluster, archive)
    missing = archive.tablespaces - {*cluster.tablespaces}
    require(
        not missing,
        f"the server lacks these tablespaces: {', '.join(sorted(missing))}; "
        "--no-tablespaces goes on without any",
    )
    require_creation(hub, creation(cluster, archive, locale))


class Making(NamedTuple):
    """A step in making a role."""

    role: str
    what: str  # the statement, as far as it is no secret
    ways: list[str]  # statements, of which one will do
    given: str = ""  # the role that it becomes a member of


def making(sql: str) -> list[Making]:
    """How to make roles, from a script of pg_dumpall; tablespaces are left out."""
    steps = []
    for statement in statements(sql):
        own, granted = OF_ROLE.fullmatch(statement), GRANTED.fullmatch(statement)
        if own:
            what, role, rest = own.groups()
            if rest.startswith("WITH "):
                what = f"CREATE ROLE {role}"  # at once with all that it is, or not at all
            steps.append(Making(unquoted(role), what, [f"{what} {rest}"]))
        elif granted:
            what, given, role, rest = granted.groups(default="")
            # Who granted it may be none here; and before 16 there is no INHERIT, which is the rule.
            plain = re.sub(rf" GRANTED BY {NAME}$", "", rest)
            older = re.sub("(,| WITH) INHERIT TRUE$", "", plain)
            ways = [f"{what}{each}" for each in (rest, plain, older)]
            steps.append(Making(unquoted(role), what, ways, unquoted(given)))
    return steps


def only_new(steps: list[Making], there: Sequence[str]) -> list[Making]:
    """Those that make roles that are not there; nothing is done to others.

    So a membership of one that is there, in a new one, is logged and no more.
    """
    new = {step.role for step in steps if step.what.startswith("CREATE ROLE ")} - {*there}
    passed = [step.what for step in steps if step.role in there and step.given in new]
    if passed:
        text = "Roles that were there get no membership in new ones"
        warn(text, Statements="; ".join(passed))
    return [step for step in steps if step.role in new]


def make_roles(hub: Database, steps: list[Making]) -> list[str]:
    """Make roles, all in one transaction; what was refused, a line each.

    It is logged here, as they stay whatever comes. Raises Failure; then none is made.
    """
    left = []
    names = ", ".join(dict.fromkeys(step.role for step in steps))
    text = "Making the roles that are missing; they stay, whatever comes of the restore"
    info(text, Roles=names)
    if not any(" PASSWORD '" in step.ways[0] for step in steps):
        warn("None of them has a password", Roles=names)
    do = f"DO {literal(MAKE_ROLES.format(literal(json.dumps(steps))))}"
    refused = read_json(hub, "Making roles", REFUSED, first=do)
    for number, why in refused:
        what, ways = steps[number - 1][1:3]
        reason = str(why)
        for text in re.findall("'((?:[^']|'')*)'", ways[0]):
            if len(text) > 3:
                reason = reason.replace(text.replace("''", "'"), "***")
        left.append(f"{what}: not done: {reason}")
        log("error", left[-1])
    return left


@contextmanager
def new_database(hub: Database, name: str, create: str, keep: bool = False) -> Iterator[None]:
    """Make a database. What is not whole, since something raised, is dropped, or kept.

    Superusers and its owner can connect to it, and no exporter that looks at each database: who
    restores may not be allowed to end that one's session.
    """
    psql(hub, "Creating the database", f"CREATE DATABASE {name} {create}", FOREVER)
    try:
        psql(hub, "Closing the database", f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")
        yield
    except BaseException:
        left = "kept" if keep else "dropped"
        warn(f"What was restored is not whole: it is {left}", Database=name)
        if not keep:
            drop(hub, name)
        raise


def drop(hub: Database, name: str) -> None:
    """Drop a database, and end all sessions in it. Where that is refused it stays, which is said.

    A superuser's session, an exporter's for one, is no other role's to end.
    """
    step = "Dropping a database"
    try:
        query = SUBSCRIPTIONS.format("count(*)", literal(name))
        if patiently(psql, hub, step, query).strip() != "0":  # a crash may be what ended it
            psql(hub.named(name), step, UNSUBSCRIBE)
        psql(hub, step, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", FOREVER)
    except (Failure, OSError) as error:
        log("error", f"{name} is left on the server: {error}")


def decisive_settings(target: Database, archive: Archive) -> str:
    """The options of libpq by which an archive's rows come in as they were."""
    options = ""
    for before, after in archive.properties:
        found = DECISIVE.fullmatch(before + after)
        if found:
            value = re.sub(r"([\\\s])", r"\\\1", found[2].replace("''", "'"))
            option = f"-c {found[1]}={value} "
            # There may be no such locale, and all have room in 10,000 bytes; who sets it for good
            # tells of it.
            with suppress(Failure):
                psql(target, "Trying a setting", "SELECT", options=options + option)
                options += option
    return options


def entry_for_people(entry: str) -> str:
    """An entry of a table of contents for people: what it is, its schema and name."""
    return "not restored: " + entry.split(" ", 3)[3].rpartition(" ")[0]


def number_of(entry: str) -> str:
    """An entry's number in its table of contents."""
    return entry.partition(";")[0]


def oid_of(entry: str) -> str:
    """The OID of the table that an entry makes, or fills."""
    return entry.split(" ")[2]


def refused(
    target: Database, archive: Archive, amiss: Amiss | None
) -> tuple[dict[str, str], set[str]]:
    """The entries that a new database has to do without, each with why; and those to try last.

    The first are extensions whose own script refuses every database but one, as pg_cron's does, and
    all that depend on them; the second what may be about their members, which no archive lists.
    Each extension is tried, and undone. Where one is refused for other reasons, that is no whole
    database: amiss gets a line; None: this raises ServerLacks.
    """
    why, members = dict[str, str](), {"_timescaledb_"}
    for extension in filter(None, map(EXTENSIONS.match, archive.entries)):
        name = identifier(extension[2])
        try:
            make = f"BEGIN; CREATE EXTENSION {name} CASCADE"
            made = psql(target, f"The extension {name}", MEMBERS, FOREVER, PUBLIC, first=make)
            members |= {f" {member} " for member in made.splitlines()}
        except Failure as error:
            if not re.search("(?m) RAISE$", str(error)):
                if amiss is None:
                    raise ServerLacks(f"{error}; restore --keep goes on without it") from None
                text = f"the server lacks the extension {name}, and what depends on it"
                amiss[extension.string] = text
            said = str(error).partition("\n")[0]  # its hint is about this database
            why[extension.string] = f"{said}; make it by hand, where it can be"
    if not why:
        return {}, set()
    needs, lost, unsure = archive.needs(), set(map(number_of, why)), set[str]()
    for entry in archive.entries:
        number = number_of(entry)
        if not needs[number].isdisjoint(lost):
            lost.add(number)
            why.setdefault(entry, "it depends on an extension that is refused")
        elif needs[number] - needs.keys() and not any(each in entry for each in members):
            unsure.add(entry)
    return why, unsure


def of_extensions(entries: list[str]) -> set[str]:
    """The rows of tables that no entry makes. Their foreign keys are there before them.

    An archive has them in the right order, and no other word of it (14 to 18): workers keep none.
    """
    made = set(map(oid_of, filter(TABLE.match, entries)))
    return {each for each in filter(TABLE_DATA.match, entries) if oid_of(each) not in made}


def apart(entries: list[str], alone: set[str], archive: Archive | None = None) -> list[list[str]]:
    """Entries, in as many passes as workers need, lest they lock each other out.

    archive: whose tables are to be there before, if they are many, and with them what is to be
    restored ALONE, if there is any; None: all that is there.
    """
    last, before = {*filter(AFTER_INDEXES.match, entries)}, set[str]()
    if archive and (alone or archive.tables > FEW_TABLES):
        before = {*archive.read("-l", "--section=pre-data").split("\n")} - last | alone
    if not any(map(INDEX_ATTACH.match, entries)):
        last = set()
    between = {*entries} - before - last
    return [list(filter(part.__contains__, entries)) for part in (before, between, last) if part]


def restore_last(
    parts: Sequence[tuple[str, list[str]]], restore_part: Callable[..., None], options: str
) -> Amiss:
    """Restore what a database is whole without; the entries that were refused, a line each.

    parts: entries, each with the option by which they are tried all at once. Those that are refused
    are tried once more, each by itself. None is any more where the server has no room.
    """
    left, full = Amiss(), ""
    for how, entries in parts:
        again, amiss = entries, Amiss()
        with suppress(Failure):
            require(not full, full)
            if entries:
                restore_part(entries, how, options=options, amiss=amiss)
            again = [entry for entry in entries if entry in amiss or UNNAMED in amiss]
        for entry in again:
            amiss = Amiss()
            try:
                require(not full, full)
                restore_part([entry], options=options, amiss=amiss)
            except Failure as error:
                amiss = amiss or {entry: f"{entry_for_people(entry)}: {error}"}
                if NO_ROOM.search(str(error)):
                    full = "not tried, as the server has no room"
            if amiss:
                left[entry] = "; ".join(amiss.values())
    return left


# What ends a restore that goes on after what is refused: all else would be refused, too, and others
# at that server with it. pg_restore tells no SQLSTATE (53, 57P, 58, 08): these are words of libpq,
# and of the server, which speaks English to superusers: see `unhindered`. "… to N bytes: No space"
# is /dev/shm's, which a container has 64 MB of, and for a parallel plan alone.
NO_ROOM = re.compile(
    "(?<! bytes: )No space left|Disk quota exceeded|out of (shared )?memory|Cannot allocate memory|"
    "Too many open files|Input/output error|Read-only file system|read-only transaction"
)
USELESS = re.compile(
    rf"{NO_ROOM.pattern}|\b(FATAL|PANIC):  |too many (clients|connections)|connection slots|"
    "connection to server .*failed|no connection to the server|closed the connection|"
    "could not (send|receive) data|SSL (error|SYSCALL)|lost synchronization|connection not open"
)
# Workers write each message in pieces, amid others': of 720 that six made, 15 came so. Its end is
# one piece, whole. Which of two it is about that come at once is not told.
PIECES = "(?:pg_restore:|error:| )*"
ABOUT = re.compile(rf"{PIECES}from TOC entry (\d+); \d+ \d+ ")
FAILED = re.compile(
    rf"(?:{PIECES}(?:could not execute query: |(?=COPY failed for ))|"
    r"(?:pg_restore: )+error: (?!pg_restore:|\w+ing |finished ))(.*)"
)
LONGEST_LINE = 400  # characters of a message
MOST_REFUSED = 1000  # are named
NOT_BEGUN = " (COPY)"  # ends the line of rows whose table is not there
UNNAMED = "; 0 0 what it does not name -"


class Refusals:
    """What a server refuses of an archive while pg_restore goes on, as that tells it."""

    def __init__(self, archive: Archive, errors: IO[bytes], timeouts: int):
        self.archive = archive
        self.errors = errors  # its stderr
        self.timeouts = timeouts  # how often it sets what no server before 17 has
        self.at, self.rest = 0, b""  # how far that is read; the line that it ends amid
        self.entry = UNNAMED  # which one it is about
        self.next = list[str]()  # the ones that it said it is about next
        self.lines = Amiss()

    @cached_property
    def entries(self) -> dict[str, str]:
        """Entries by number. Of some 100,000 it takes a while: where any is refused."""
        return {number_of(entry): entry for entry in self.archive.entries}

    def look(self) -> None:
        """Read what has come. Raises ServerLacks where going on is of no use."""
        while block := os.pread(self.errors.fileno(), BLOCK, self.at):
            self.at += len(block)
            *lines, self.rest = (self.rest + block).split(b"\n")
            for line in lines:
                self.note(line.decode("utf-8", "replace").strip())

    def complete(self, said: str) -> None:
        """Note all of them, at least one, when pg_restore has ended; it SAID how."""
        self.look()
        cut_off = {entry: entry_for_people(entry) for entry in self.next}
        self.lines = cut_off | self.lines or {UNNAMED: said}

    def note(self, line: str) -> None:
        """Note what a line says. Others are a statement's, or the server's, perhaps about a row."""
        entry, error = ABOUT.match(line), FAILED.match(line)
        if entry:
            self.next.append(self.entries.get(entry[1], UNNAMED))
        elif error:
            if self.next:
                self.entry = self.next.pop(0)
            said, name = redacted(error[1]), entry_for_people(self.entry)
            told = f"{name}: {without_values(said[:LONGEST_LINE])}"
            self.lines.setdefault(self.entry, told)  # its owner's is another
            if USELESS.search(re.sub('"[^"]*"', "", said)):
                raise ServerLacks(f"{told}; it was stopped there", self.entry)
        elif self.timeouts and line.startswith("Command was: SET transaction_timeout"):
            self.timeouts -= 1  # functions say what they like
            if "transaction_timeout" in self.lines.get(self.entry, ""):  # not another refusal
                del self.lines[self.entry]
        elif line.startswith("Command was: COPY ") and self.entry in self.lines:
            self.lines[self.entry] = self.lines[self.entry].removesuffix(NOT_BEGUN) + NOT_BEGUN


def watching(target: Database, total: int) -> Callable[[], None]:
    """What shows now and then how large a database has become, of TOTAL bytes; 0: unknown.

    pg_restore tells nothing of how far it is.
    """
    show = progress("Restore in progress", total)
    pause = 2 if on_terminal() else PROGRESS_SECONDS
    asked = monotonic()

    def tick() -> None:
        """Ask for it, if it is time. A server that gives no answer is asked again later."""
        nonlocal asked
        if monotonic() - asked >= pause * TIME_SCALE:
            with suppress(Failure, OSError, ValueError):
                show(int(psql(target, "Looking at its size", SIZE, 20)))
            asked = monotonic()

    return tick


def part_by_part(target: Database, archive: Archive, jobs: int) -> Callable[..., None]:
    """What restores some of an archive's entries, as options of pg_restore say.

    pg_restore 17 and 18 set transaction_timeout on servers before 17, too. They count once that
    they could not; with workers once more, as they connect anew after them, and theirs not at all
    (17.10 and 18.6, at 14 to 16, each of our passes).
    """
    argv = ["pg_restore", f"--dbname={ALIVE}", "--no-password", "--verbose"]
    known = archive.pg_restore >= 17 and "transaction_timeout" not in target.options
    # None of this has to outlast a crash of the server by itself: that is a Failure, and later a
    # commit which waits for the disk takes along what was written before.
    settings = f"{decisive_settings(target, archive)} -c synchronous_commit=off"
    tick = watching(target, archive.database_size)
    if archive.timescaledb:
        on = target.options.replace("event_triggers=off", "event_triggers=on")
        target = target._replace(options=on)

    def restore_part(entries: Iterable[str], *how: str, amiss: Amiss, options: str = "") -> None:
        """Restore these, as HOW says; options: of libpq.

        amiss: what the server refuses is added here. Raises ServerLacks where to go on after that
        is of no use.
        """
        workers = jobs if f"--jobs={jobs}" in how and jobs > 1 else 0
        times = 2 if workers else 1
        options = f"{UNHINDERED} {settings} {options}"
        with listing(entries) as chosen, tempfile.TemporaryFile() as errors:
            refusals = Refusals(archive, errors, known * (times + workers))

            def look() -> None:
                """Look after it."""
                tick()
                refusals.look()

            what = [*argv, *how, chosen, *archive.options, archive.path]
            try:  # where there is no room, three workers had failed 200 times within a second
                run("Restoring", what, target, options, tick=look, errors=errors, slowest=0.03)
            except Failure as error:
                ignored = str(error).rpartition("errors ignored on restore: ")[2]
                if not ignored.isdecimal():
                    raise
                refusals.complete(str(error))
                said = refusals.lines.values()
                if ignored == str(known * times) and all("transaction_timeout" in x for x in said):
                    refusals.lines.clear()
            finally:
                amiss |= refusals.lines

    return restore_part


def divided(entries: list[str], unsure: set[str]) -> tuple[list[str], list[str], list[str]]:
    """Of entries what makes a database whole, what fills its views, and what may be refused."""
    refreshes = list(filter(REFRESH.match, entries))
    rest = [entry for entry in entries if REST.match(entry) or entry in unsure - {*refreshes}]
    return list(filterfalse({*refreshes, *rest}.__contains__, entries)), refreshes, rest


def repeatable(entry: str, line: str, seen: str) -> bool:
    """Whether what a LINE says is refused may be tried once more, with no effect but its own.

    Not rows that their table's triggers would see, a partitioned one's perhaps (these are SEEN),
    nor what may be there in part: inserted rows, large objects.
    """
    if not DATA.match(entry):
        return True
    copying = ": COPY failed for " in line
    # It is not there, so it has no triggers yet, but a partitioned one's.
    absent = line.endswith(NOT_BEGUN) and not copying
    table = entry.partition(" TABLE DATA ")[2].rpartition(" ")[0]
    mute = absent or (copying and f"TRIGGER {table} " not in seen)
    return mute and f"ATTACH {table} " not in seen


def try_again(entries: list[str], amiss: Amiss, restore_part: Callable[..., None]) -> None:
    """Take from AMISS what is not refused any more: it took what came after it in ENTRIES.

    Workers do not know all that a function takes.
    """
    seen = ""
    if any(map(ON_ROWS.match, entries)):
        seen = "\n".join(filter(SEES.match, entries))
    while True:  # what comes about may be what others took
        tried = [each for each in entries if each in amiss and repeatable(each, amiss[each], seen)]
        still = Amiss()
        if tried:
            restore_part(tried, amiss=still)
        if UNNAMED in still or not (done := {*tried} - {*still}):
            return
        amiss |= still
        for entry in done:
            del amiss[entry]


def rebuild(
    target: Database,
    archive: Archive,
    jobs: int,
    amiss: Amiss,
    complete: bool = False,
    keep: bool = False,
) -> Amiss:
    """Restore an archive into a new database, with so many jobs at once. Raises Failure.

    What it is whole without, and was refused, a line each. amiss: gets the entries that it is not
    whole without, and were refused, likewise. complete: either raises Failure. keep: an extension
    that the server lacks is among the latter.

    After a kill -9 of ours its workers, if there are several, end the table or index that they are
    at; the database is never named then.
    """
    many = f"--jobs={jobs}"
    restore_part = part_by_part(target, archive, jobs)
    go_on = partial(restore_part, amiss=amiss)
    without, unsure = refused(target, archive, amiss if keep else None)
    left = {entry: f"{entry_for_people(entry)}: {why}" for entry, why in without.items()}
    require(not complete or not left, in_one(left.values()))

    wanted = list(filterfalse(without.__contains__, archive.entries))
    first, refreshes, rest = divided(wanted, unsure)
    if timescale := archive.timescaledb:
        restore_timescaledb(target, archive, timescale, first, many, go_on)
        first = list(filterfalse(timescale.late.__contains__, first))
    else:
        alone = of_extensions(first)
        for part in apart(first, alone, archive):
            go_on(part, many if alone.isdisjoint(part) else "--jobs=1")
    try_again(first, amiss, restore_part)
    # From here on a crash of the server may be one line of several: nothing gets lost by it.
    psql(target, "Waiting for the server's disk", FLUSH, options=LASTING)
    parts = [(many, refreshes), ("--single-transaction", rest)]
    left |= restore_last(parts, restore_part, LASTING + (ALL_ROWS if timescale else ""))
    lost = amiss | left
    require(not complete or not lost, in_one(lost.values()))
    if without and not amiss:
        archive.refused = left

    warn_of_subscriptions(target, rest)
    return left


def warn_of_subscriptions(target: Database, entries: Iterable[str]) -> None:
    """Say that they are disabled, as pg_dump 14 to 18 writes them: two would share a slot.

    entries: what may have been restored of them.
    """
    if not any(map(SUBSCRIPTION.match, entries)):
        return
    query = SUBSCRIPTIONS.format(SLOTS, "current_database()")
    made = psql(target, "Looking for subscriptions", query).strip()
    if made:
        warn(DISABLED, Subscriptions=made)


def restore_timescaledb(
    target: Database,
    archive: Archive,
    timescale: Timescale,
    entries: list[str],
    many: str,
    restore_part: Callable[..., None],
) -> None:
    """Restore it in the one order that loses no rows, up to timescaledb_post_restore().

    The order was measured with 2.28.3, 2.29.2 and 2.30.0-dev. With `pg_restore -j 4` in one go a
    hypertable had 0 rows; without timescaledb_pre_restore() one chunk's rows were lost. An owner
    who is no superuser is refused. entries: those to restore. many: the option for several jobs at
    once.
    """
    step = "Restoring"
    restore_part(filter(SCHEMA.match, entries))  # the extension may be in one of them
    version = "" if timescale.version == "?" else f"VERSION '{timescale.version}'"
    # One transaction: between two, the extension's own jobs ran at once.
    make = (
        f"CREATE EXTENSION timescaledb WITH SCHEMA {timescale.schema} {version};"
        f" SELECT {timescale.schema}.timescaledb_pre_restore()"
    )
    psql(target, step, make, options=PUBLIC)
    restore_part(filterfalse(SCHEMA.match, entries), "--section=pre-data")

    adopted = JOBS if timescale.adopted else re.compile("$")
    catalog = filterfalse(adopted.match, entries)
    lost = Amiss()
    restore_part(catalog, "--section=data", *OF_CATALOG, amiss=lost)
    if lost:  # without it all is nothing
        raise ServerLacks(in_one(lost.values()), next(iter(lost)))
    if timescale.adopted:
        adopt_jobs(target, archive, timescale)
    psql(target, step, NUMBER_TABLESPACES, options=PUBLIC)
    alone = of_extensions(entries)
    data = ["--section=data", *NOT_OF_CATALOG]
    restore_part(filter(alone.__contains__, entries), *data)
    restore_part(filterfalse(alone.__contains__, entries), *data, many)

    for part in apart([entry for entry in entries if entry not in timescale.late], set()):
        restore_part(part, "--section=post-data", many)
    restore_part(filter(timescale.late.__contains__, entries), many, options=ALL_ROWS)


def adopt_jobs(target: Database, archive: Archive, timescale: Timescale) -> None:
    """Copy TimescaleDB's jobs; those of `adopted` become the restoring role's, and that is said.

    The server may lack such roles, and COPY refuses a regrole that is none. Whose role was gone
    already did not run; it is switched off, lest it runs with more rights than it ever had.
    """
    ours, jobs, moved = psql(target, "Looking for jobs", OWNER).strip(), timescale.jobs, []
    for row, owner in zip(jobs.rows, jobs.values("owner")):
        job = f"{row['id']} of {unquoted(owner)}"
        if GONE.fullmatch(owner):
            row["scheduled"] = "f"
            job += " (switched off)"
        if owner in timescale.adopted and owner != ours:
            row["owner"] = ours.replace("\\", r"\\")
            moved.append(job)
    copy = f"COPY {jobs.table} ({jobs.columns}) FROM STDIN (ENCODING '{archive.encoding}')"
    rows = "".join("\t".join(row.values()) + "\n" for row in jobs.rows) + "\\.\n"
    psql(target, "Restoring the jobs", copy, options=PUBLIC, rows=os.fsencode(rows))
    if moved:
        text = "Jobs of TimescaleDB are the restoring role's now"
        warn(text, Role=unquoted(ours), Jobs=", ".join(moved))


def for_each(target: Database, step: str, sql: str, **more: Any) -> tuple[int, list[Any]]:
    """Do something for each table: the database's size in bytes, and a list for each.

    In that are what `parts` call a whole, a number, and why it did not come about. more: as for
    `psql`. Raises Failure: nothing came of it, which STEP says.
    """
    told = read_json(target, step, ANSWERS, timeout=FOREVER, first=sql, **more)
    answers = json.loads(bytes.fromhex(told["answers"]).decode("utf-8", "surrogateescape"))
    return told["size"], [(*whole, without_values(why)) for *whole, why in answers]


@contextmanager
def analyzing(target: Database, archive: Archive, jobs: int) -> Iterator[Callable[[], list[str]]]:
    """Have the planner know the tables, in so many sessions, beside what else is done.

    What it gives waits for the end: what did not come about, a line each.
    """
    step, options, over = "Not analyzed", "-c synchronous_commit=off", threading.Event()
    scripts = [ANALYZE.format(jobs=jobs, job=job) for job in range(jobs)]
    if archive.timescaledb:  # to it, a hypertable in a transaction is all its chunks at once
        scripts, options = ["ANALYZE"], f"{options} {ALL_ROWS}"

    def analyze(sql: str) -> list[str]:
        """One session's share."""
        left = list[str]()
        with noting(left):
            _, answers = for_each(
                target,
                step,
                sql,
                options=options,
                tick=lambda: require(not over.is_set(), "stopped: nobody waits for it"),
            )
            left += [f"{table}: {step.lower()}: {why}" for table, _, why in answers if why]
        return left

    with threads(jobs) as pool:
        try:
            shares: list[Future[list[str]]] = []
            missed = [f"{step}: no thread can be started"]
            with suppress(RuntimeError):
                shares, missed = [pool.submit(analyze, sql) for sql in scripts], []
            yield lambda: missed + list(chain(*map(finished, shares)))
        finally:
            over.set()


class Table(NamedTuple):
    """A table of a restored database, as COUNT tells it."""

    name: str  # for people
    key: str  # as `count_copied` names it
    kind: str  # "r": ordinary; "p": partitioned; "f": at another server
    internal: bool  # it is in one of TimescaleDB's schemas
    member: bool  # of an extension, which made it, and may have put rows there
    above: list[Table]  # whose partition or child it is, but for tables at other servers
    rows: int | None
    why: str  # it could not be counted

    def tops(self) -> dict[str, Table]:
        """The tables that it is a part of, at last, by name; itself, if it is of none."""
        found = dict[str, Table]()
        for table in self.above:
            found |= table.tops()
        return found or {self.name: self}

    def place(self) -> str:
        """Its name, or its schema, if that is TimescaleDB's."""
        return self.name.partition(".")[0] if self.internal else self.name

    def hidden(self) -> bool:
        """Whether it has rows that are not told as any table's: compressed ones, for instance."""
        inside = all(top.internal for top in self.tops().values())
        return inside and not self.member and bool(self.rows)


ROW_FOR_ROW = "row for row in number"  # as in the archive
NOT_COMPARED = "how many rows the archive has: it inserts them (pg_dump --inserts), or is very old"


class Counted(NamedTuple):
    """What is in a restored database."""

    size: int | None = None  # bytes; None: it was not told
    rows: Mapping[str, int] = {}  # by table; those of partitions and chunks with their parents'
    missed: Sequence[str] = ()  # what was not counted, a line each
    # Rows in the archive, and restored, as they lie in the tables: by table, as above, but those of
    # a schema of TimescaleDB's together. None: they were not compared.
    compared: Mapping[str, list[int]] | None = None
    different: Sequence[str] = ()  # what that found, a line each

    def verdict(self) -> str:
        """What that says of a restore."""
        if self.different:
            return "not row for row"
        return "not all counted" if self.missed or self.compared is None else ROW_FOR_ROW


def read_tables(answers: list[Any]) -> list[Table]:
    """The tables that COUNT tells of."""
    tables = dict[int, Table]()
    for told, rows, why in answers:
        key = bytes.fromhex(told["key"]).decode("latin-1")
        tables[told["oid"]] = Table(**told["facts"], key=key, above=[], rows=rows, why=why)
    for told, _, _ in answers:
        above = [tables[oid] for oid in told["parents"]]
        tables[told["oid"]].above.extend(table for table in above if table.kind != "f")
    return list(tables.values())


def count_tables(target: Database, archive: Archive) -> tuple[int, list[Table], list[Any]]:
    """Count each table, as its rows lie there: the database's size in bytes, and the tables.

    With them, name, rows, and why it was not counted, of each hypertable: where some of its rows
    may be compressed. Raises Failure.
    """
    step, options = "Not counted", ALL_POLICIES
    if archive.timescaledb:
        options += f" {AS_THEY_LIE}"
    count = COUNT.format(encoding=archive.encoding)
    size, answers = for_each(target, step, count, options=options)
    tables, hypertables = read_tables(answers), list[Any]()
    if archive.timescaledb and any(table.hidden() for table in tables):
        options = f"{ALL_POLICIES} {ALL_ROWS}"
        _, hypertables = for_each(target, step, COUNT_HYPERTABLES, options=options)
    return size, tables, hypertables


def count_rows(target: Database, archive: Archive, copied: dict[str, int] | None) -> Counted:
    """Count what was restored, and compare that with what the archive copies, where it is known.

    Rows of continuous aggregates are compared, but not told: their tables are TimescaleDB's.
    """
    try:
        size, tables, hypertables = count_tables(target, archive)
    except Failure as error:
        return Counted(missed=[str(error)])
    rows, why = Counter[str](), dict[str, str]()
    for table in tables:
        why[table.name] = table.why
        for name, top in table.tops().items():
            if table.kind != "f" and not top.internal:
                rows[name] += table.rows or 0
    for name, number, reason in hypertables:
        rows[name], why[name] = number, reason
    for table in tables:
        if why[table.name]:
            for name in table.tops():
                rows.pop(name, None)
    missed = [f"{name}: not counted: {reason}" for name, reason in why.items() if reason]
    return Counted(
        size, dict(sorted(rows.items())), missed, *compare(tables, copied, not archive.refused)
    )


def copied_into(tables: list[Table], copied: Mapping[str, int]) -> dict[str, list[Table]]:
    """The tables that have the rows which the archive copies into one, by that one's name.

    Where a hash partition's key is an enum, or with `pg_dump --load-via-partition-root`, that is
    the root; mostly it is the table itself. Tables at other servers have none of ours.
    """
    parts = defaultdict[str, list[Table]](list)
    for table in tables:
        [top, *_] = table.tops().values()
        into = top if top.kind == "p" and top.key in copied else table
        if table.kind != "f":
            parts[into.name].append(table)
    return parts


def absent(tables: list[Table], copied: dict[str, int]) -> Iterator[str]:
    """A line for each table that the archive has rows of, and that is not there."""
    for key in sorted(copied.keys() - {table.key for table in tables}):
        name = key.encode("latin-1").decode("utf-8", "replace")
        yield f"the archive copies {amount(copied[key], 'row')} into {name}, which is not there"


def compare(
    tables: list[Table], copied: dict[str, int] | None, complete: bool
) -> tuple[dict[str, list[int]] | None, list[str]]:
    """Whether each table has the rows that the archive copies: the end of a `Counted`.

    complete: whether all have to be there, as none depends on an extension that was refused.

    A table that an extension makes may have rows of its own script beside them.
    """
    if copied is None:
        return None, []
    compared, different = dict[str, list[int]](), list[str]()
    if complete:
        different += absent(tables, copied)
    for name, parts in copied_into(tables, copied).items():
        if any(part.why for part in parts):
            continue
        archived = sum(copied.get(part.key, 0) for part in parts)
        restored = sum(part.rows or 0 for part in parts)
        right = restored >= archived if parts[0].member else restored == archived
        if not right:
            before = amount(archived, "row")
            different.append(f"{name}: {before} in the archive, {restored} restored")
        for top in parts[0].tops().values():
            others = compared.get(top.place(), [0, 0])
            compared[top.place()] = [others[0] + archived, others[1] + restored]
    return compared, different


# ---- The command restore -------------------------------------------------------------------------

NO_OWNER = ["--no-owner", "--no-acl"]
THERE = "SELECT count(*) FROM pg_database WHERE datname = {}"
# Who is in the databases {0}: whom we may end, and what else no RENAME goes on beside. Autovacuum's
# workers, which are no role's, it ends itself.
IN_THE_WAY = """
    SELECT json_build_object('ended', string_agg(what, ', ') FILTER (WHERE ours),
        'staying', string_agg(what, ', ') FILTER (WHERE NOT ours))
    FROM (
        SELECT format('pid %s (%s, of %s)', pid, application_name, usename) AS what,
            pg_has_role(usesysid, 'USAGE') AS ours
        FROM pg_stat_activity WHERE datname IN ({0}) AND pid <> pg_backend_pid()
        UNION ALL SELECT format('prepared transaction %L, of %s', gid, owner), false
        FROM pg_prepared_xacts WHERE database IN ({0})) AS sessions"""
END_OTHERS = (
    "pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN ({names})"
    " AND pid <> pg_backend_pid() AND pg_has_role(usesysid, 'USAGE');"
)
# Databases are closed, their sessions ended, then they are renamed, in one transaction. RENAME
# waits 5 s for sessions to end. It is one statement, so that the server opens what it has closed
# also if we are gone by then; but for who cancels it at the wrong moment, and that is seen to.
RENAME = f"""
    DECLARE
        why text;
    BEGIN
        PERFORM set_config(name, '0', false)
            FROM pg_settings WHERE name = 'client_connection_check_interval';
        {{close}}
        COMMIT;
        BEGIN
            PERFORM {END_OTHERS}
            {{rename}}
        EXCEPTION WHEN query_canceled OR OTHERS THEN
            why := SQLERRM;
        END;
        IF why IS NOT NULL THEN
            {{open}}
            COMMIT;
            RAISE '%', why;
        END IF;
    END"""


class Target:
    """The database that a restore makes, and how far it has come."""

    def __init__(self, hub: Database, name: str, replace: bool):
        """See what has the name. Raises Failure where that holds something, unless REPLACE."""
        self.hub = hub  # from where databases are made and named
        self.name = name  # as the command line has it
        self.scratch = f"restore_{time.time_ns()}"  # until it is whole, counted, can be named
        self.before = f"before_{self.scratch}"  # then that of the one that had its name
        self.taken = is_there(hub, name)  # there is one: empty, or to be replaced
        self.replaces = False  # one that holds something
        self.workers = False  # it has TimescaleDB's extension, so a scheduler
        self.named = False
        self.paused = ""  # the jobs of TimescaleDB that are off, as SQL
        self.amiss = Amiss()  # entries that it is not whole without, and were refused
        self.cron = False  # pg_cron's scheduler was in it, and was ended
        self.works = False  # TimescaleDB has been told to work in it, where it has that
        if self.taken:
            there = read_json(hub.named(name), "Looking at the database", EMPTY)
            require(
                there["empty"] or replace,
                f"the database {identifier(name)} is there, and not empty: restore into a new one, "
                "or with --replace",
            )
            require(
                there["ours"],
                f"the database {identifier(name)} is not {hub.user}'s to rename, but its owner's",
            )
            self.replaces = not there["empty"]
            self.workers = there["timescaledb"]
            self.warn()

    def inside(self, name: str) -> Database:
        """What is restored, as it is called by now; for the login: it may set a role."""
        return self.hub._replace(name=name, options=f"{self.hub.options} {AS_LOGIN}")

    def renamed(self) -> list[str]:
        """The databases that the naming renames, as they are called before."""
        return [self.name, self.scratch] if self.taken else [self.scratch]

    def in_the_way(self) -> Any:
        """The sessions that the naming would end, and what it would wait for. Raises Failure."""
        names = ", ".join(map(literal, self.renamed()))
        return read_json(self.hub, "Looking at sessions", IN_THE_WAY.format(names))

    def warn(self) -> None:
        """Say, while there is time to see to it, who is in the database whose name it gets."""
        found = self.in_the_way()
        if found["ended"]:
            warn("These sessions will be ended", Sessions=found["ended"])
        if found["staying"]:
            text = "End these, or it gets no name: this role may not end them"
            warn(text, Sessions=found["staying"])


def foreseen(
    s3: S3, backup: Backup, file: IO[bytes], options: list[str]
) -> tuple[int, Archive | None]:
    """A backup's first bytes, now in FILE: how many, and what they tell of it; None: too little.

    pg_dump writes the table of contents there, but TimescaleDB's catalog is behind it.
    """
    require_room(s3.s, backup.size, 0, backup.encrypted)
    size, there, early = min(backup.size, piece_of(backup)), 0, None
    with suppress(Failure):
        fetch_range(s3, backup, file, 0, size)
        there = size
    encrypted = backup.encrypted
    plain = opened(s3.s, backup.key, file, cut=True) if encrypted else nullcontext(file)
    with plain as readable, suppress(Failure):
        early = Archive(readable, options, backup.known)
        early.path = path_in(file)
    return there, early


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


def naming(new: Target, archive: Archive) -> Iterator[str]:
    """The statements that name it, of one transaction: who connects then sees all rows."""
    if new.taken:
        yield f"ALTER DATABASE {identifier(new.name)} RENAME TO {new.before};"
        yield f"ALTER DATABASE {new.before} ALLOW_CONNECTIONS true;"
    if archive.timescaledb:  # or who connects before post_restore keeps it on for its life
        yield f"ALTER DATABASE {new.scratch} RESET timescaledb.restoring;"
    for before, after in archive.limits:  # by now ours are over
        yield f"{before}{new.scratch}{after}"
    if not archive.closed:
        yield f"GRANT CONNECT ON DATABASE {new.scratch} TO PUBLIC;"
    yield f"ALTER DATABASE {new.scratch} RENAME TO {identifier(new.name)};"
    yield f"ALTER DATABASE {identifier(new.name)} ALLOW_CONNECTIONS true;"


def allow_connections(new: Target, answer: str) -> str:
    """The statements that open, or close, what the naming renames."""
    names = map(identifier, new.renamed())
    return " ".join(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {answer};" for name in names)


def name_database(new: Target, archive: Archive) -> None:
    """Give it its name, and end the sessions that are in the way. Raises Failure after a minute.

    Whatever it raises, all is called and open as before, or `named`.
    """
    query = RENAME.format(
        names=", ".join(map(literal, new.renamed())),
        close=allow_connections(new, "false"),
        rename=" ".join(naming(new, archive)),
        open=allow_connections(new, "true"),
    )
    try:
        name_patiently(new, f"DO {literal(query)}")
        new.named = True
    except BaseException:
        try:  # what the server was told last may have come about
            new.named = not is_there(new.hub, new.scratch)
            if not new.named:
                psql(new.hub, "Not renamed", allow_connections(new, "true"))
        except Failure as error:
            log("error", f"Databases may be closed (ALLOW_CONNECTIONS): {error}")
        raise


def name_patiently(new: Target, query: str) -> None:
    """Name it by a statement, as soon as nothing is in the way, or else after a minute anyway."""
    end, told = later(60), None
    for pause in backoff():
        over, staying = monotonic() > end, None
        try:
            found = new.in_the_way()
            staying = found["staying"]
            if over or not staying:
                if found["ended"]:
                    warn("Ending sessions", Sessions=found["ended"])
                    new.cron = new.cron or "(pg_cron scheduler," in found["ended"]
                psql(new.hub, "Not named", query)
                return
        except Failure as error:
            with suppress(Failure):
                if not is_there(new.hub, new.scratch):  # an answer may get lost
                    return
            if over:
                raise Failure(f"{error}; in the way: {staying or 'none now'}") from None
            warn("Not named yet, trying again ...", Reason=error)
        if staying != told:
            warn("Not named yet, waiting for sessions to end ...", Sessions=staying)
            told = staying
        sleep(pause)


def set_properties(new: Target, archive: Archive) -> list[str]:
    """Give it what its archive says of the database. What did not come about, a line each."""
    left = [archive.unread] if archive.unread else []
    there = new.hub.named(new.scratch)  # in whose encoding they are; but what is set may hinder
    for before, after in archive.properties:
        try:
            statement = f"{before}{new.scratch}{after}"
            database = new.hub if statement.isascii() else there
            options = f"-c standard_conforming_strings={archive.strings}"
            psql(database, "Not restored", statement, options=options)
        except Failure as error:
            left.append(without_value(f"{before}…", after, str(error)))
    return left


def without_value(before: str, after: str, error: str) -> str:
    """A statement that was refused, and why; of a setting without its value, perhaps a secret."""
    setting = re.match(f"(?s)( SET {NAME} TO )(.*);", after)
    if not setting:
        return f"{before}{after} {error}"
    values = {setting[2]}
    for mark in "'\"":
        for value in re.findall(f"{mark}((?:[^{mark}]|{mark * 2})*){mark}", setting[2]):
            values.add(value.replace(mark * 2, mark))
    for value in sorted(filter(None, values), key=len, reverse=True):
        error = error.replace(value, "***")
    return f"{before}{setting[1]}*** {error}"


def start_workers(there: Database) -> None:
    """Have TimescaleDB's scheduler run in a database. Raises Failure where it does not."""
    step = f"TimescaleDB's scheduler in {there.name}"
    require(
        psql(there, step, START_WORKERS, options=PUBLIC).strip() == "t",
        f"TimescaleDB's scheduler does not run in {there.name}: no worker "
        "is free; see timescaledb.max_background_workers, then start_background_workers()",
    )


def set_to_work(new: Target, there: Database, timescale: Timescale) -> None:
    """Have TimescaleDB work in a database that was restored. Raises Failure."""
    go = f"SELECT {timescale.schema}.timescaledb_post_restore()"
    psql(there, "timescaledb_post_restore()", go, FOREVER, PUBLIC)
    new.works = True
    start_workers(there)


def hand_over(new: Target, archive: Archive, work: bool, left: list[str]) -> None:
    """Name what is whole, then, where TimescaleDB is to WORK in it, tell that so.

    What does not come about, a line each for `left`, leaves all as it is.
    """
    timescale = archive.timescaledb
    try:
        with noting(left):
            name_database(new, archive)
            if archive.refused:
                restore_refused(new, archive, left)
            if timescale and work:
                set_to_work(new, new.hub.named(new.name), timescale)
    finally:
        if new.cron:
            with noting(left):
                psql(new.hub, "Waiting for pg_cron", CRON_IS_BACK)
        if new.workers:
            with noting(left):
                start_workers(new.hub.named(new.before if new.named else new.name))


def restore_refused(new: Target, archive: Archive, left: list[str]) -> None:
    """Try once more what was refused: the name may be the one that an extension (pg_cron) asks for.

    The lines of what comes about are taken from `left`. Its jobs run from then on.
    """
    there = new.inside(new.name)
    parts = [("--single-transaction", [*filter(archive.refused.__contains__, archive.entries)])]
    with noting(left):
        still = restore_last(parts, part_by_part(there, archive, 1), LASTING)
        for entry in archive.refused.keys() - still.keys():
            left.remove(archive.refused[entry])


def swapping(new: Target, archive: Archive) -> Iterator[str]:
    """What puts it in the old one's place, for `psql -d postgres`; nothing if it is there.

    Where renaming is refused, the old one is open again all the same.
    """
    old, before = unquoted(archive.database), new.before
    if old in ("", new.name) or archive.left_out or not (new.named or new.amiss):
        return
    if new.taken:  # that name is another's by now
        before += "_too"
    yield f"To put it in the place of {archive.database}, which ends the sessions in both:"
    if old == "postgres":  # where psql is then
        yield connecting("template1")
    yield f"ALTER DATABASE {archive.database} ALLOW_CONNECTIONS false;"
    names = f"{literal(old)}, {literal(new.name)}"
    yield f"SELECT {END_OTHERS.format(names=names)}"
    yield "BEGIN;"
    yield f"ALTER DATABASE {archive.database} RENAME TO {before};"
    yield f"ALTER DATABASE {identifier(new.name)} RENAME TO {archive.database};"
    yield f"ALTER DATABASE {before} ALLOW_CONNECTIONS true;"
    yield "COMMIT;"
    yield f"ALTER DATABASE {archive.database} ALLOW_CONNECTIONS true;"
    if archive.timescaledb:
        for name in (old, before):
            yield connecting(name)
            yield f"{START_WORKERS};"


def naming_by_hand(new: Target, archive: Archive) -> Iterator[str]:
    """What names a database that has no final name."""
    how = "not whole. To name it all the same" if new.amiss else "whole. To name it"
    yield f"It is {how}, while nobody is connected to it:"
    yield from ("BEGIN;", *naming(new, archive), "COMMIT;")
    if archive.timescaledb and new.works:
        yield from (connecting(new.name), f"{START_WORKERS};")
    if new.workers:
        yield from (connecting(new.before), f"{START_WORKERS};")


def outcome(new: Target, archive: Archive, made: str, counted: Counted) -> Iterator[str]:
    """The lines of the command's answer: the rows, what was made, what is left to do by hand.

    made: of what, and how.
    """
    timescale = archive.timescaledb
    for table, number in counted.rows.items():
        yield f"{number:>14}  {printable(table)}"
    yield from (made, *archive.left_out)
    if not new.named:
        yield from naming_by_hand(new, archive)
    elif new.taken:
        yield f"What had this name is called {new.before} now. To drop that, one day:"
        yield f"DROP DATABASE {new.before};"
    if timescale and not new.works:
        if new.named:
            yield "It is whole. To have TimescaleDB's jobs run:"
        yield connecting(new.name)
        yield f"SELECT {timescale.schema}.timescaledb_post_restore();"
    if timescale and new.paused:
        switch_on = f"SELECT {timescale.schema}.alter_job(id, scheduled => true)"
        yield f"To switch its jobs on, in {identifier(new.name)}:"
        yield f"{switch_on} FROM unnest('{new.paused}'::int[]) AS id;"
    if new.works:
        yield from swapping(new, archive)
    if new.amiss:
        yield "To drop it:"
        if archive.those(SUBSCRIPTION):
            yield from (connecting(new.scratch), f"{UNSUBSCRIBE};", connecting(new.hub.name))
        yield f"DROP DATABASE {new.scratch} WITH (FORCE);"


def tell(lines: Iterable[str]) -> None:
    """Print what is for people, and to be piped on, to psql for instance, but for tables' names.

    A terminal gets nothing that it obeys; what is piped on is exact.
    """
    text = "\n".join(lines)
    if os.isatty(1):
        text = "\n".join(map(printable, text.split("\n")))
    say(text + "\n")


class Source(NamedTuple):
    """What is restored."""

    name: str  # its key, or its path
    checksum: str  # its state
    archive: Archive
    roles: list[Making]  # to be made before


def in_short(new: Target, source: Source, counted: Counted, steps: Steps) -> str:
    """One line on what was made, of what, and how it is proven."""
    called = identifier(new.name) if new.named else new.scratch
    facts = amount(source.archive.tables, "table")
    if counted.size:
        rows, seconds = sum(counted.rows.values()), round(sum(steps.seconds.values()))
        facts += f", {amount(rows, 'row')}, {amount(seconds, 'second')}, {counted.size} bytes"
    proof = f"checksum: {source.checksum}; {counted.verdict()}"
    if new.amiss:
        proof += "; not whole"
    return f"Restored {source.name} into {called}: {facts}; {proof}."


def put_in_place(
    new: Target, there: Database, archive: Archive, pause: bool, counted: Counted, left: list[str]
) -> None:
    """Name it, if it is whole, and have TimescaleDB work in it, without jobs if they are to PAUSE.

    there: where it is by now. What does not come about, a line each for `left`.
    """
    timescale, work = archive.timescaledb, True
    # What is not whole needs it, too, to show all rows; but nothing is to drop any.
    if timescale and (pause or new.amiss):
        work = False
        with noting(left):
            new.paused = psql(there, "Jobs not paused", PAUSE_JOBS, options=PUBLIC).strip()
            work = True
    if new.amiss:
        if timescale and work:
            with noting(left):
                set_to_work(new, there, timescale)
    elif new.replaces and counted.different:  # what is there may be worth more
        left.append(f"{identifier(new.name)} is not replaced, as rows differ")
    else:
        hand_over(new, archive, work, left)


def finish_restore(
    new: Target,
    source: Source,
    copied: Future[dict[str, int] | None],
    options: Options,
    steps: Steps,
    left: list[str],
) -> None:
    """Complete what was restored, name it if it is whole, and tell so: also what is left to do.

    copied: the rows in the archive, as `count_copied` has them. left: what did not come about
    before; what does not here is added. All of it is told, a line each.
    """
    archive = source.archive
    if new.amiss:
        text = "What was restored is not whole: it is kept"
        warn(text, Database=new.scratch, Refused=len(new.amiss))
        left[:0] = [*new.amiss.values()][:MOST_REFUSED]
        if (more := len(new.amiss) - MOST_REFUSED) > 0:
            left.append(f"not restored: {more} more")
    else:
        info("What was restored is whole", Database=new.scratch)
    there = new.inside(new.scratch)
    counted = Counted()
    new.works = not archive.timescaledb
    try:
        left += set_properties(new, archive)  # before anybody finds it under its name
        # The count's session is one of as many as there may be.
        with analyzing(there, archive, options.jobs - 1 or 1) as analyzed:
            with steps.timed("count"):
                rows = None
                with noting(left):
                    rows = finished(copied)
                counted = count_rows(there, archive, rows)
            with steps.timed("analyze"):
                left += analyzed()
        if counted.size and counted.compared is None:
            warn("Rows not compared", Unknown=NOT_COMPARED)
        left += [*counted.missed, *counted.different]
        put_in_place(new, there, archive, options.pause_jobs, counted, left)
    finally:
        tell(outcome(new, archive, in_short(new, source, counted, steps), counted))
        for text in left:
            log("error", text)


def is_sealed(path: str, file: IO[bytes]) -> bool:
    """Whether a file is encrypted. Raises OSError, of PATH: a pipe can't be read twice, for one."""
    with placing(path):
        return os.pread(file.fileno(), len(AGE_HEAD), 0) == AGE_HEAD


def obtain(
    s: Settings,
    options: Options,
    hub: Database,
    cluster: Cluster,
    file: IO[bytes],
    steps: Steps,
) -> Source:
    """Have an archive in FILE. Failure: it can't be had, or the server lacks what it takes."""
    parts, roles = list[str](), list[Making]()
    if options.no_owner:
        parts += NO_OWNER
    if options.no_tablespaces:
        parts.append("--no-tablespaces")
    if options.file:
        if is_sealed(options.file, file):
            unseal(s, options.file, file, steps)
        archive = Archive(file, parts, {})
        require_all(hub, cluster, archive, options.locale)
        return Source(options.file, "absent", archive, roles)
    s3 = S3(s, 60)
    backup = chosen(s3, options.name, s.db_database, options.server)
    if backup.encrypted:
        opening(s, backup.key)
    if options.roles:
        roles = only_new(making(plain_roles(s3, backup)), cluster.roles)
        cluster = cluster._replace(roles=cluster.roles + [step.role for step in roles])
    there, early = foreseen(s3, backup, file, parts)
    if early:
        require_all(hub, cluster, early, options.locale)
    checksum = fetch_open(s3, backup, file, steps, there)
    if not early:
        early = Archive(file, parts, backup.known)
        require_all(hub, cluster, early, options.locale)
    return Source(backup.key, checksum, early, roles)


def restore(s: Settings, options: Options) -> int:
    """The command: a new database, whole, or none. Its exit status: 1 if anything is left out."""
    hub, cluster = examine_cluster(s.database(), options.database)
    new, steps = Target(hub, options.database, options.replace), Steps()
    path = options.file
    with open(path, "rb") if path else tempfile.TemporaryFile(dir=s.backup_path) as file:
        source = obtain(s, options, hub, cluster, file, steps)
        archive = source.archive
        archive.choose(options.table)
        if archive.tar:  # which pg_restore reads with one alone
            options.jobs = 1
        left, unmade = list[str](), list[str]()
        if source.roles:
            unmade = make_roles(hub, source.roles)
            require_needs(examine_cluster(hub)[1], archive)
        new.hub = hub = unhindered(hub, cluster, archive)
        with archive.counting() as copied:
            create = creation(cluster, archive, options.locale)
            made = new_database(hub, new.scratch, create, options.keep)
            with made, steps.timed("restore"):
                lines = rebuild(
                    hub.named(new.scratch),
                    archive,
                    options.jobs,
                    new.amiss,
                    options.only_complete,
                    options.keep,
                )
                left += lines.values()
            # From here on nothing drops it.
            finish_restore(new, source, copied, options, steps, left)
    return 1 if left or unmade else 0


# ---- The command verify --------------------------------------------------------------------------

WHOSE = "SELECT system_identifier FROM pg_control_system()"
# SQLSTATEs of what is wrong with rows or objects themselves: not for want of a privilege (42501), a
# locale (22023), a collation or the like (42704); nor that they are there, as in a second try.
BACKUPS_FAULT = re.compile("2[123](?!023)|42(?!501|70[14]|710|723|P0[67]|P16)|44|P0")
# Those of what a server lacks, whatever is restored: room, locks, memory, itself.
WANTING = re.compile("08|5|XX")
UNCOUNTED = re.compile(rf"\(({WANTING.pattern})\w+\)$")
# What pg_restore says where it, or the machine that it runs on, is at fault, not what it reads.
READERS_FAULT = re.compile(
    "killed by|exit status -|out of memory|unsupported version|not support|is older than"
)
SCRATCH = [*NO_OWNER, "--no-tablespaces", "--no-publications", "--no-subscriptions"]


def verify(s: Settings, name: str, wait: bool) -> Fields:
    """The command: prove a backup. Its report, as `verify --help` describes it.

    wait: until no backup uses the staging volume. Raises Failure for what says nothing of the
    backup: it could not be had, or the server is away or lacks something.
    """
    s3, steps = S3(s), Steps()
    staging(s, wait)
    with tempfile.TemporaryFile(dir=s.backup_path) as file:
        backup = chosen(s3, name) if name != "latest" else to_verify(s3)
        report: Fields = {
            "object": backup.key,
            "size": backup.size,
            "server": backup.short_server or None,
            "seconds": steps.seconds,
        }
        try:
            for share in prove(s3, backup, file, steps):
                report |= share
            steps.current = "roles"
            require(report["roles"] in ("checked", "absent"), report["roles"])
        except Failure as error:
            if steps.current in ("", "download") or isinstance(error, ServerLacks):
                raise
            if steps.current == "read" and READERS_FAULT.search(str(error)):
                raise
            if steps.current == "decrypt" and not BROKEN.search(str(error)):
                raise
            report |= {"step": steps.current, "verdict": f"failed: {error}"}
        try:
            remember(s3, backup, report["verdict"], steps, report.get("rows"))
        except Failure as error:
            warn("Cannot note the verdict", Error=error)
    return report


def to_verify(s3: S3) -> Backup:
    """The newest good backup of DB_DATABASE; of several servers', DB_HOST's if that has a good one.

    Nobody may be there to be asked. Only then is DB_HOST asked which it is, and it may be away.
    """
    newest, doubts = newest_good(s3, s3.s.db_database, "", proving=s3.s.verify_db_host != "")
    ours = ""
    if len(newest) > 1:
        several = "; ".join(map(facts_of, newest))
        info("Backups of several servers are there", Newest=several)
        try:
            ours = psql(s3.s.database(), "Looking at the server", WHOSE).strip()
        except Failure as error:
            warn("Taking any server's, the newest good one", Error=error)
    for backup in newest:
        if backup.key in doubts:
            warn("Passing over a doubtful backup", Key=backup.key)
    return max(newest, key=lambda each: (each.key not in doubts, each.server == ours, each))


def prove(s3: S3, backup: Backup, file: IO[bytes], steps: Steps) -> Iterator[Fields]:
    """What each step of a proof adds to the report. Raises Failure, of `steps.current`.

    Reading finds a cut archive, and a flipped bit where gzip compressed it; with zstd, the default
    from pg_dump 16 on, 23 of 40 archives with one passed. There the checksum finds it. So a backup
    without a checksum is not proven by reading it. timescaledb_post_restore() is not called: it
    would start the policies, which drop and compress what is to be counted.
    """
    yield {"sha256": fetch_open(s3, backup, file, steps)}
    roles = prove_roles(s3, backup)
    yield {"roles": roles}
    unproven = ["what no dump holds: other databases"]
    if roles == "absent":
        unproven[0] += ", roles"
    else:
        unproven.append("that its roles can be made")
    metadata = backup.known
    if "sha256" not in metadata:
        unproven.append("that no bit of its data flipped: no checksum")
    yield {"not_proven": unproven}
    if closed(s3.s, backup):
        unproven.append("what is in it: it is encrypted, and AGE_IDENTITY_FILE is not set")
        yield {"verdict": "intact"}
        return
    with steps.timed("read"):
        archive = Archive(file, SCRATCH, metadata)
        tables = str(archive.tables)
        yield {"archive_version": archive.format, "tables": archive.tables}
        known = metadata.get("tables", tables)
        require(known == tables, f"it lists {tables} tables, at backup time {known}")
        with archive.counting() as reading:
            copied = finished(reading)
    yield {"verdict": "readable"}
    if not s3.s.verify_db_host:
        unproven.append("that it restores: VERIFY_DB_HOST is not set")
        return
    left, counted = restore_scratch(s3.s, archive, copied, steps)
    yield {"database_size": counted.size, "rows": counted.rows, "compared": counted.compared}
    steps.current = "count"
    require(not counted.different, in_one(counted.different))
    unproven += [*left, *counted.missed, *not_restored(archive, counted)]
    yield {"verdict": f"restored, {'not all of it' if left else counted.verdict()}"}


def not_restored(archive: Archive, counted: Counted) -> Iterator[str]:
    """What a restore by `verify` does not prove, though nothing was refused."""
    if counted.compared is None:
        yield NOT_COMPARED
    yield "owners, privileges, tablespaces, publications: restored without"
    if archive.timescaledb:
        jobs = len(archive.timescaledb.jobs.rows)
        if jobs:
            yield f"the owners of {amount(jobs, 'job')} of TimescaleDB"
        yield "timescaledb_post_restore(), which starts the policies"


def prove_roles(s3: S3, backup: Backup) -> str:
    """How the roles are that a backup brings, as a report has it. Raises S3Failure."""
    if "roles-sha256" not in backup.known:
        return "absent"
    try:
        roles_of(s3, backup)
    except S3Failure:
        raise
    except Failure as error:
        return str(error)
    return "checked"


def drop_scratch(s: Settings) -> tuple[Database, Cluster]:
    """Drop what a crash of `verify` left on its server; what there is, as examine_cluster has it.

    Ours are known by their connection limit, which no other installation has. Two of the same
    executor's name, database, folder and bucket do: one drops what the other is at work on, whose
    verify fails then. It may be what a pod left whose place it took.
    """
    hub, cluster = examine_cluster(s.verify_server())
    for name, limit in cluster.limits.items():
        # -2: PostgreSQL's own mark of one that was being dropped.
        if limit in (s.mark, -2) and re.fullmatch("verify_[0-9]+", name):
            drop(hub, name)
    return hub, cluster


def once_more(lines: Iterable[bytes], rows: bool) -> Iterator[bytes]:
    """What psql is to read of an entry's script by pg_restore, so that it obeys nothing of that.

    Statements are as `script` has them, but for what psql refuses, an older server does not know,
    or we set otherwise; ROWS of COPY follow, up to where that ends.
    """
    unsent = rb"^(\\(un)?restrict .*|SET (transaction_timeout|client_min_messages) = \w+;)\n"
    lines, statement, copy = iter(lines), b"", None
    for line in lines:
        statement += re.sub(unsent, b"", line)
        if len(statement) > LONGEST_HEAD:
            return
        if rows and line.endswith(b" FROM stdin;\n") and (copy := COPIES.search(statement)):
            break
    at = copy.start() if copy else len(statement)
    yield script(*filter(None, map(os.fsdecode, (statement[:at], statement[at:]))))
    for line in lines:
        yield line
        if line.rstrip() == b"\\.":
            break


def sqlstate(target: Database, archive: Archive, entry: str) -> str:
    """By which SQLSTATE an entry is refused once more.

    pg_restore tells none, and the server's words may be in any language. "": it is not refused, it
    is too long, or there is no connection.
    """
    # With a warning for each row psql would wait for who reads them, as we do for it to read rows.
    options = f"{UNHINDERED} -c client_min_messages=error -c standard_conforming_strings=on"
    env = environment(target, f"{options} {decisive_settings(target, archive)}")
    with listing([entry]) as chosen:
        argv = ["pg_restore", "-f-", chosen, *archive.options, archive.path]
        source: Any = start(argv, environment(None))
        argv = [*PSQL, "-vVERBOSITY=sqlstate"]
        reader: Any = start(argv, env, stdin=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            with suppress(BrokenPipeError), reader.stdin as pipe:
                pipe.writelines(once_more(source.stdout, bool(DATA.match(entry))))
            told = reader.stdout.read()
        finally:
            stop(source, signal.SIGKILL)
            stop(reader, signal.SIGKILL)
    return b"".join(re.findall(rb"(?m):  ([0-9A-Z]{5})$", told)[:1]).decode()


def restore_scratch(
    s: Settings, archive: Archive, copied: dict[str, int] | None, steps: Steps
) -> tuple[list[str], Counted]:
    """Restore into a database of its own, count, and drop it. What was left out, a line each.

    copied: for `count_rows`.
    """
    hub, cluster = drop_scratch(s)
    require_needs(cluster, archive)
    hub = unhindered(hub, cluster, archive)
    scratch = hub.named(f"verify_{time.time_ns()}")  # nobody else's has that name
    create = f"{creation(cluster, archive)} CONNECTION LIMIT {s.mark}"
    with new_database(hub, scratch.name, create):
        with steps.timed("restore"):
            amiss = Amiss()
            try:
                left = rebuild(scratch, archive, 1, amiss)
                entry, said = next(iter(amiss), ""), in_one(amiss.values())
            except ServerLacks as error:
                entry, said = error.entry, str(error)
            except Failure as error:
                raise ServerLacks(str(error)) from None
            if said:
                state = sqlstate(scratch, archive, entry)
                if BACKUPS_FAULT.match(state) and cluster.major >= archive.server:
                    raise Failure(said)
                raise ServerLacks(said)
            lacking = [
                left[each] for each in left if WANTING.match(sqlstate(scratch, archive, each))
            ]
        with steps.timed("count"):
            counted = count_rows(scratch, archive, copied)
        lacking += filter(UNCOUNTED.search, counted.missed)
        if counted.size is None or lacking:
            raise ServerLacks(in_one(lacking or counted.missed))
    drop(hub, scratch.name)
    return [*left.values()], counted


NOTED = 30  # tables whose rows are noted, those with most: all noted have to be read at once


def names_to_keep(s3: S3, known: Verdicts) -> set[str]:
    """The names whose verdicts stay: what is there, and the last one of each database."""
    kept = {each.name for each in s3.names()}
    ordered = sorted(known, key=lambda name: str(known[name]["time"]))
    last = {str(list(map(known[name].get, ("server", "database")))): name for name in ordered}
    return kept | {name for name in last.values() if known[name].get("database")}


def note_of(backup: Backup, verdict: str, steps: Steps, rows: Rows | None) -> Fields:
    """What `remember` notes. Of what is encrypted neither rows nor what its tables are called."""
    note: Fields = {
        # what is said of a failure names tables, and what a function says may have rows in it
        "verdict": verdict.partition(":")[0] if backup.encrypted else verdict,
        "time": moment(int(time.time())),
        "seconds": steps.seconds,
        "server": backup.server,
        "database": backup.database,
    }
    if rows is not None and not backup.encrypted:
        note["rows"] = dict(Counter(rows).most_common(NOTED))
    return note


def remember(s3: S3, backup: Backup, verdict: str, steps: Steps, rows: Rows | None) -> None:
    """Note a verdict in PREFIX/verified.json, and forget those of what retention removed.

    But the last one of each database stays, which metrics tell of. A bucket that keeps versions
    keeps what it replaces, some kB. What another verify notes meanwhile stays, too, where S3 knows
    conditions. Raises Failure: where the key may not write there, for one.
    """
    name, note = backup.name, note_of(backup, verdict, steps, rows)
    pauses = [*islice(backoff(), 5), 0.0]
    while True:
        pause, known = pauses.pop(0), verified(s3)
        if known is None:
            return
        if restored(backup, known) and not verdict.startswith(("restored", "failed")):
            return  # less was looked at than before
        known[name] = note
        kept = names_to_keep(s3, known)
        text = json.dumps({each: known[each] for each in sorted(kept & set(known))}, indent=4)
        how: Fields = {"IfNoneMatch": "*", "patience": 0}
        if s3.verdicts:
            how = {"IfMatch": f'"{s3.verdicts}"', "patience": 0}
        try:  # the last time as where S3 knows no conditions
            s3.put(s3.key("verified.json"), text.encode(), **(how if pauses else {}))
            return
        except S3Failure as error:
            if not pauses:
                raise
            if not error.again and error.status != 404:  # it may know no conditions
                del pauses[:-1]
        sleep(pause)


# ---- The commands list and check -----------------------------------------------------------------


def doubtful_anywhere(
    s: Settings, whose: Mapping[tuple[str, str], Backups], verdicts: Verdicts
) -> set[str]:
    """The keys of those that are doubtful by their own server's, or by another's of this name.

    A new server's first nights come after those of a lost one. Retention heeds the former alone.
    """
    doubts, now = set[str](), time.time()
    of_name: dict[str, Backups] = {}
    for (_, name), backups in whose.items():
        of_name.setdefault(name, []).extend(backups)
    for backups in [*whose.values(), *map(sorted, of_name.values())]:
        doubts |= judge(backups, verdicts, s.full_backups, now).doubts
    return doubts


def upload_seconds(backups: Backups) -> dict[str, int]:
    """How many seconds each one's upload took, by its key, where that is known.

    From its begin, which its metadata tell, to the object's own time, both by S3's clock. AWS, for
    one, dates an object by that begin, too: where none took 2 seconds, nothing is known. One that
    took a day was copied since.
    """
    from email.utils import parsedate_to_datetime

    took = {}
    for each in backups:
        with suppress(TypeError, ValueError, OverflowError):  # metadata may say anything
            begun: Any = parsedate_to_datetime(each.known.get("upload-begun", ""))
            seconds = int((each.written - begun).total_seconds())
            if 0 <= seconds < 24 * 3600:
                took[each.key] = seconds
    return took if max(took.values(), default=0) >= 2 else {}


def as_row(
    backup: Backup, before: int, took: int | None, doubts: set[str], verdicts: Verdicts
) -> Fields:
    """What `list --json` shows of a backup. None: it is not known.

    before: the size of the one before it, of this server and database; 0: there is none. took: the
    seconds of its upload.
    """
    metadata, name = backup.known, backup.name
    return {
        "name": name,
        "time": moment(backup.seconds),
        "size": backup.size,  # bytes
        "checksum": "sha256" in metadata,
        "doubtful": backup.key in doubts,
        "verified": verdicts.get(name),
        "change": round(100 * (backup.size / before - 1), 1) if before else None,  # per cent
        "change_bytes": backup.size - before if before else None,
        "exectime_backup": number_in(metadata, "exectime-backup"),  # seconds, as in a result
        "exectime_upload_s3": took,
        "tables": number_in(metadata, "tables"),
        "server": backup.short_server or None,
        "postgresql": metadata.get("postgresql", "").partition(" ")[0] or None,
        "timescaledb": metadata.get("timescaledb"),
        "database": backup.database or None,
        "roles": "roles-sha256" in metadata,  # whether it brings its server's
        "label": backup.label or None,
        "keep_until": metadata.get("keep-until"),
        "encrypted": backup.encrypted,
    }


LIST_ROW = "{:<{wide}} {:>3} {:>5} {:>6} {:>4} {:>6} {:<8} {:<12} {:<6} {} {}"
LIST_HEAD = "NAME AGE SIZE CHANGE DUMP UPLOAD KIND VERIFIED SERVER DATABASE VERSIONS"


def list_backups(s: Settings, as_json: bool) -> None:
    """Print what the bucket has under the prefix, newest first."""
    s3 = S3(s, 10)
    backups, verdicts = s3.backups(), verified(s3) or {}
    whose, took = by_database(backups), upload_seconds(backups)
    doubts, before = doubtful_anywhere(s, whose, verdicts), dict[str, int]()
    for ours in whose.values():
        before |= {new.key: old.size for old, new in pairwise(ours)}
    rows = [
        as_row(each, before.get(each.key, 0), took.get(each.key), doubts, verdicts)
        for each in reversed(backups)
    ]
    if as_json:
        say_json(rows)
        return
    wide = 25 if any(row["encrypted"] for row in rows) else 21  # their names are longer
    lines = [LIST_ROW.format(*LIST_HEAD.split(), wide=wide)]
    for row in rows:
        lines += lines_of(row, wide)
    say("".join(f"{narrow(line)}\n" for line in lines))


def lines_of(row: Fields, wide: int) -> Iterator[str]:
    """What the table of `list` shows of a row, whose names are as WIDE."""
    change, verdict = row["change"], ""
    if row["verified"]:
        words = row["verified"]["verdict"]
        kind = "not all" if ", not all" in words else re.split("[,:]", words)[0]
        verdict = f"{kind[:8]} {age(row['verified']['time'])}"
    cells = [
        row["name"],
        age(row["time"]),
        short_size(row["size"]),
        "" if change is None else f"{min(change, 999):+.3g}%",
        *(
            "" if row[n] is None else f"{row[n]}s"
            for n in ("exectime_backup", "exectime_upload_s3")
        ),
        "doubtful" if row["doubtful"] else "proven" if row["checksum"] else "unproven",
        verdict,
        row["server"],
        row["database"],
        "/".join(filter(None, [row["postgresql"], row["timescaledb"]])),
    ]
    yield LIST_ROW.format(*(printable(cell or "-") for cell in cells), wide=wide)
    if row["keep_until"] is not None:
        yield printable(f"    kept until {row['keep_until']}: {row['label'] or ''}")


def narrow(text: str) -> str:
    """A line of less than 100 columns: the rest is cut."""
    import unicodedata

    line = text[:100]
    wide = [1 + (unicodedata.east_asian_width(char) in "WF") for char in line]
    while sum(wide) > 99:
        line, wide = line[:-2] + "…", [*wide[:-2], 1]
    return line


def age(when: str) -> str:
    """How long ago a time of ISO 8601 was, negative if it is to come; "": it is none."""
    with suppress(ValueError, TypeError):
        then = datetime.fromisoformat(when)
        return short_time((datetime.now().astimezone() - then).total_seconds())
    return ""


def prune_now(s: Settings, dry: bool) -> None:
    """The command prune: a line for each object that goes, or stays. Raises Failure.

    It takes the database, which tells whose backups are to go, and the staging volume: so it never
    runs beside a backup.
    """
    staging(s, wait=False)
    server, s3 = examine_database(s), S3(s)
    facts = {name: getattr(server, name) for name in FACTS}
    made = Dump("", filepath_s3="/", **facts)
    found = s3.backups()
    goes, kept, _ = plan(s3, made, found)
    going = {old.key for old in goes}
    if not dry:
        gone = remove_all(s3, goes, kept)
        prune_roles(s3, made, gone)
        going &= {old.key for old in gone}
    other = "not provably a backup of this database, or not yet to go"
    for each in reversed(found):
        word = "goes" if each.key in going else "stays"
        why = kept.get(each.key, why_gone(each) if each.key in going else other)
        say(f"{word:<5} {each.key} of {moment(each.seconds)}: {printable(why)}\n")
    left = [old.key for old in goes if old.key not in going]
    stuck = sum(not kept.get(key, "").startswith(LOCKED) for key in left)
    require(not stuck, f"{stuck} could not be removed")


# `next` is NULL for a job that has not run yet: it starts at once.
NEXT_JOBS = """SELECT json_build_object(
    'may_hold_off', coalesce(has_table_privilege(
        to_regclass('_timescaledb_catalog.compression_settings'), '{}'), false),
    'jobs', (SELECT coalesce(json_agg(json_build_object(
            'name', concat_ws(' ', proc_name, job_id, 'of ' || hypertable_name),
            'next', extract(epoch FROM nullif(next_start, '-infinity')),
            'every', extract(epoch FROM schedule_interval)) ORDER BY job_id), '[]')
        FROM timescaledb_information.jobs WHERE scheduled AND job_id >= 1000))"""


# pg_dump locks each table, and refuses to be shown some of its rows.
UNREADABLE = """SELECT coalesce(json_agg(c.oid::regclass), '[]') FROM pg_class c
    JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind IN ('r', 'p', 'S')
    AND relpersistence <> 't' AND nspname !~ '^(pg_|information_schema$)' AND (row_security_active(
    c.oid) OR NOT has_table_privilege(c.oid, 'SELECT') OR NOT has_schema_privilege(n.oid, 'USAGE'))
    AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass
        AND objid = c.oid AND deptype = 'e')"""
# As PostgreSQL's manual has it of max_locks_per_transaction. pg_dump locks tables, up to 17
# sequences, 15 views, too; none locks indexes (15.19, 17.10, 18.6).
LOCKS = """SELECT json_build_array((SELECT count(*) FROM pg_class
        WHERE relkind IN ('r', 'p', 'S', 'v', 'm') AND oid >= 16384),
    current_setting('max_locks_per_transaction')::bigint * (current_setting('max_connections')::int
    + current_setting('max_prepared_transactions')::int))"""


class Checking:
    """What a check has seen so far; one peer's answer serves in looking at the next."""

    def __init__(self, settings: Settings, options: Options):
        self.settings, self.options = settings, options
        self.server: Server | None = None
        self.backups: Backups | None = None  # of this database, proven; None: not looked at

    @property
    def newest(self) -> Backup:
        """The newest backup; one of no size and time where there is none."""
        return self.backups[-1] if self.backups else Backup(0, "", 0, None)


class Line(NamedTuple):
    """What `check` says of one thing, on one line."""

    mark: str  # ok, note, warn, FAIL, or - where it could not be looked at
    about: str
    text: str


Lines = Iterator[tuple[str, str]]  # a mark (ok, note, warn, -) and what is to be said
UNKNOWN = "-", "not looked at, since what it takes failed above"


def check_settings(_: Checking) -> Lines:
    """That they could be read has been seen by now."""
    yield "ok", f"{len(SETTINGS)} looked at"
    for text in misspelt(os.environ):
        yield "warn", text


def check_crons(now: Checking) -> Lines:
    """Whether a Colonies server understands when our crons are to run. Raises Failure."""
    s, wrong = now.settings, []
    for function in FUNCTIONS:
        name, when = f"{function.upper()}_CRON", getattr(s, f"{function}_cron")
        fault = cron_fault(when) if when else ""
        if fault:
            wrong.append(f"{name}, {when!r}: {fault}")
        else:
            yield "ok", f"{name}: {when or 'not set, so none is made'}"
    require(not wrong, "; ".join(wrong))


def check_colonies(now: Checking) -> Lines:
    """Whether the server knows our colony and its owner's key, and our own if it has to by now."""
    s = now.settings
    if not s.colonies_server_host:
        yield "ok", "COLONIES_SERVER_HOST is not set; `serve` needs it, `backup` does not"
        return
    if for_itself():
        yield "-", "not looked at: the executor itself speaks to it"
        return
    executor = Executor(s)
    odd: list[str] = []
    try:
        executor.look()
        crons = Crons(executor)
        odd = crons.odd()
        require(executor.id in crons.ids, f"Colonies lists no executor {executor.id}; {A_USERS}")
    except ColoniesFailure as error:  # with the owner's key it registers itself when it starts
        if not executor.owner or error.status != 403 or "> does not exist" in str(error):
            raise
    if executor.owner:
        ask_owner(executor)
    yield "ok", f"{executor.server.url} answers; the executor is {executor.name}"
    for fault in odd:
        yield "warn", fault


def ask_owner(us: Executor) -> None:
    """Raise Failure unless the colony is there, and its owner's is the key that we have.

    A question to which the owner alone gets another answer than 403: to remove a user whom nobody
    can have added. The server of 2023 knows no users; there the owner may list the executors.
    """
    nobody = f"nobody-{os.urandom(16).hex()}"
    named = us.s.colonies_colony_name or us.s.colonies_colony_id
    why = "COLONIES_COLONY_PRVKEY is not its id's key"
    try:
        us.call("removeusermsg", 15, us.owner, name=nobody, **us.colony)
    except ColoniesFailure as error:
        if error.status == 400 and nobody in str(error):
            return
        if error.status not in (400, 403):
            raise
        if "PayloadType" not in str(error):
            why = str(error).rpartition("msg: ")[2]
        elif identity(us.owner) == us.s.colonies_colony_id:
            us.call("getexecutorsmsg", 15, us.owner, **us.colony)
            return
    raise Failure(
        f"Colonies at {us.server.url}: COLONIES_COLONY_PRVKEY is not the key of the owner of the "
        f"colony {named!r}, or there is no such colony: {why}"
    )


def check_database(now: Checking) -> Lines:
    """Whether it can be reached, and by a pg_dump that fits."""
    now.server = server = measured(now.settings, examine_database(now.settings))
    found = {"PostgreSQL": server.postgresql, "TimescaleDB": server.timescaledb}
    found["pg_dump"] = server.pg_dump
    if for_itself():  # the executor tells the colony
        info("Found the database", **{name: x for name, x in found.items() if x})
    versions = ", ".join(f"{name} {x or 'none'}" for name, x in found.items())
    yield "ok", f"{server.database} ({server.database_size} bytes), {versions}"


def check_left_out(now: Checking) -> Lines:
    """What a backup of one database does not hold of its server."""
    if not now.server:
        yield UNKNOWN
        return
    s, dump = now.settings, Dump("")
    _, cluster = examine_cluster(s.database())
    roles = sum(not role.startswith("pg_") for role in cluster.roles)
    count, others = amount(roles, "role"), now.server.other_databases
    text = f"no backup holds the server's {amount(others or 0, 'other database')}"
    without = take_roles(s, now.server, dump)
    if dump.roles_sql:
        passwords = "with" if dump.role_passwords else "without"
        yield "ok", f"{text}; each brings its {count}, {passwords} their passwords"
    elif without:
        yield "warn", f"{text}, or its {count}: {without}"
    else:
        yield "ok", f"{text}, or its {count} (BACKUP_ROLES)"


def check_contents(now: Checking) -> Lines:
    """What a dump by this role, of this server, lacks in silence, or fails at. Raises Failure."""
    if not now.server:
        yield UNKNOWN
        return
    database = now.settings.database()
    lines = left_out(database, now.server)
    for line in lines:
        yield "warn", line
    names = read_json(database, "Looking at the tables", UNREADABLE)
    text = f"{database.user} may not read all of these, so pg_dump fails"
    require(not names, "".join(shortened(text, names)))
    if not lines:
        yield "ok", "no subscription, option of a user mapping or unlogged row is left out"


def check_locks(now: Checking) -> Lines:
    """Whether the server has room for the locks of a dump, or of a restore."""
    if not now.server:
        yield UNKNOWN
        return
    relations, slots = read_json(now.settings.database(), "Looking at the locks", LOCKS)
    text = f"{relations} relations, {slots} slots for locks"
    if relations < slots:
        yield "ok", text
    else:
        yield "warn", f"{text}: dumps may fail of them; raise max_locks_per_transaction"


def check_bucket(now: Checking) -> Lines:
    """Whether a small object can be written, read and deleted; and which backups there are.

    Where it may not be deleted, retention may delete nothing: that fails. Where it is but hidden,
    so is what retention removes.
    """
    s3, text = S3(now.settings, 10), os.urandom(32)
    name = f"check_{text[:8].hex()}"
    key = s3.key(name)
    try:
        made = s3.put(key, text, Metadata={"backup-id": name})
    except S3Failure as error:
        if error.status != 404 or not s3.s.aws_s3_endpoint:
            raise
        now.backups = []
        yield "warn", f"{s3.where}: there is no such bucket; the first backup makes it"
        return
    try:  # S3 tells the version "null" of what is there, not of what is put
        made, data = s3.call("get_object", FOREVER, lambda it: (it, small_object(it)), Key=key)
        listed = s3.call("list_objects_v2", Prefix=key).get("Contents")
    finally:
        still = s3.delete(key, made.get("VersionId", ""))
    require(data == text, f"{s3.where}: it gives back something else than it took")
    kept = name in made["Metadata"].values()
    require(kept, f"{s3.where}: it keeps no metadata, by which a backup is proven")
    if not listed:  # no failure: a listing may lag behind
        yield "warn", f"{s3.where}: {key} was there, but not in its listing: look at AWS_S3_PREFIX"
    server, many = now.server, "its backups were not looked at, since which database is not known"
    if server:
        now.backups = proven(s3.backups(), server.system_identifier, server.database)
        many = f"{amount(len(now.backups), 'proven backup')} of this database"
    how = f"{still} (README, Retention)" if still else "deleted"
    yield "note" if still else "ok", f"{s3.where}: written, read, {how}; {many}"


def check_encryption(now: Checking) -> Lines:
    """Whether backups are encrypted, and can be decrypted here. Raises Failure."""
    s, text, newest = now.settings, os.urandom(16).hex(), now.newest
    recipients = s.backup_age_recipients.splitlines()
    if not recipients:
        yield "ok", "BACKUP_AGE_RECIPIENTS is not set: backups are not encrypted"
        if s.age_identity_file and newest.encrypted:
            step, argv = opening(s, newest.key)
            head = S3(s, 10).call("get_object", Key=newest.key, Range=f"bytes=0-{BLOCK - 1}")
            try:
                run(step, argv, timeout=60, stdin=head)
            except Failure as error:  # that it is cut comes after its header
                if not BROKEN.search(str(error)) or "header" in str(error).removeprefix(step):
                    raise
            yield "ok", f"AGE_IDENTITY_FILE opens {newest.key}"
        return
    sealed, count = encrypted_text(recipients, text), amount(len(recipients), "public key")
    yield "ok", f"backups are encrypted for {count} of BACKUP_AGE_RECIPIENTS"
    if not s.age_identity_file:
        yield "note", "AGE_IDENTITY_FILE is not set: `verify` looks into none of them"
        return
    step, argv = opening(s, "what they close")
    require(run(step, argv, timeout=60, stdin=sealed.encode()) == text, f"{step}: it is another")
    yield "ok", "AGE_IDENTITY_FILE opens them"


def check_volume(now: Checking) -> Lines:
    """Whether a dump like the newest one has room, and whether a finished one waits for S3."""
    s = now.settings
    if now.options.no_volume:
        yield "-", "not looked at: --no-volume"
        return
    for dump in all_dumps(s):
        if dump.pending and str(dump.by).endswith(f"/{s.db_database}"):
            with_what = "" if dump.by == s.owner else f", with the settings of {dump.by}"
            text = f"{dump.path}, a finished dump, waits for S3: `backup --resume` uploads it"
            yield "warn", text + with_what
    size = now.server.database_size if now.server else 0
    room = require_room(s, now.newest.plain_size, size, s.backup_age_recipients != "")
    if not now.backups:
        why = "the newest backup was not looked at" if now.backups is None else "no backup is there"
        room = f"{room.partition(';')[0]}; {why}"
    yield "ok", room


def check_jobs(now: Checking) -> Lines:
    """What TimescaleDB's jobs and our dumps do to each other.

    The newest backup's hour and duration are taken for those of the next.
    """
    if now.server and not now.server.timescaledb:
        yield "ok", "no TimescaleDB, so none of its jobs and policies"
        return
    if not now.server or now.backups is None:
        yield UNKNOWN
        return
    enough = "UPDATE, DELETE, TRUNCATE"  # any of them allows LOCK TABLE … IN SHARE MODE
    if now.server.major >= 17:
        enough += ", MAINTAIN"
    database = now.settings.database()
    there = read_json(database, "Looking at the jobs", NEXT_JOBS.format(enough))
    texts = []
    if not there["may_hold_off"]:
        texts.append(
            f"{database.user} may not hold compression off while pg_dump takes its locks (see "
            "README, Least privileges): a dump that it disturbs is made again"
        )
    took = int(now.newest.known.get("exectime-backup", 0))
    names = [job["name"] for job in there["jobs"] if meets(job, now.newest.seconds, took)]
    if names:
        texts.append(
            f"these start while a dump like the newest one ({took} seconds) runs, and may wait "
            f"for it, and readers of their tables behind them: {', '.join(names)}"
        )
    for text in texts:
        yield "note", text
    if not now.backups:
        yield "-", "not looked at: when a dump runs is not known before there is one"
    elif not names:
        yield "ok", f"none of {len(there['jobs'])} starts while a dump like the newest one runs"


def meets(job: Fields, began: int, took: int) -> bool:
    """Whether a job starts in the seconds that a dump takes that begins at that time each day.

    One that has not run yet starts at once, so at any time. began: 0 where no dump is known.
    """
    period = min(job["every"] or 86400, 86400)
    into: float = ((job["next"] or began) - began) % period  # seconds after a dump's beginning
    return began > 0 and into <= took


def check_newest(now: Checking) -> Lines:
    """Whether the newest backup is as new as it has to be. Raises Failure.

    One of the future, by a clock that was wrong, stays the newest, and the next ones count on from
    it: it may be no further ahead than it may be old.
    """
    if now.backups is None:
        yield UNKNOWN
        return
    text, hours = "no proven backup", FOREVER
    if now.backups:
        hours = (time.time() - now.newest.seconds) / 3600
        text = f"{now.newest.key} is {hours:.1f} hours old"
    require(abs(hours) <= now.options.max_age, f"{text}; --max-age is {now.options.max_age}")
    yield "ok" if now.backups else "note", text


# What a verify server is to have beside TimescaleDB; each database has plpgsql.
NEEDED = """SELECT coalesce(json_agg(extname), '[]') FROM pg_extension WHERE oid >= 16384
    AND extname <> 'timescaledb'"""
THERE_IS = """SELECT json_build_object(
    'creates', (SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = user),
    'system', (SELECT system_identifier::text FROM pg_control_system()),
    'extensions', (SELECT json_agg(DISTINCT v.name) FROM pg_available_extension_versions v,
        pg_roles WHERE rolname = user AND (rolsuper OR trusted OR NOT superuser)))"""


def check_verify(now: Checking) -> Lines:
    """Whether VERIFY_DB_HOST has what a verify takes. Raises Failure."""
    s, server = now.settings, now.server
    if not s.verify_db_host:
        yield "note", "VERIFY_DB_HOST is not set: `verify` reads a backup, but restores it nowhere"
        return
    hub, cluster = examine_cluster(s.verify_server())
    there = read_json(hub, "Looking at the server", THERE_IS)
    where = f"VERIFY_DB_HOST, {hub.host}:{hub.port}"
    require(there["creates"], f"{where}: {hub.user} may not make databases: ALTER ROLE … CREATEDB")
    if not server:
        yield UNKNOWN
        return
    names = {*read_json(s.database(), "Looking at the extensions", NEEDED)} - {*there["extensions"]}
    lacks = [f"the extension {name}, or {hub.user} may not make it" for name in sorted(names)]
    if cluster.major < server.major:
        lacks.append(f"PostgreSQL {server.major} or later (it is {cluster.major})")
    version = server.timescaledb
    ready = cluster.superuser and cluster.preloaded == "yes" and version in cluster.versions
    if version and not ready:
        lacks.append(f"TimescaleDB {version}, preloaded (shared_preload_libraries), or a superuser")
    require(not lacks, f"{where} lacks: {'; '.join(lacks)}")
    if there["system"] == server.system_identifier:
        yield "note", f"{where}: it is the backed-up server, which a verify costs disk and WAL"
    yield "ok", f"{where}: PostgreSQL {cluster.major}; {hub.user} may make databases"


CHECKS = {
    "settings": check_settings,
    "crons": check_crons,
    "colonies": check_colonies,
    "database": check_database,
    "left out": check_left_out,
    "contents": check_contents,
    "locks": check_locks,
    "bucket": check_bucket,
    "encryption": check_encryption,
    "staging volume": check_volume,
    "jobs": check_jobs,
    "verify": check_verify,
    "newest backup": check_newest,
}


def all_lines(s: Settings, options: Options) -> Iterator[Line]:
    """Try every peer; a line or more for each, as they come."""
    now = Checking(s, options)
    for about, look_at_it in CHECKS.items():
        try:
            for mark, text in look_at_it(now):
                yield Line(mark, about, text)
        except Exception as error:
            text = explained(error) if isinstance(error, OSError) else redacted(error)
            yield Line("FAIL", about, text)


def check(s: Settings, options: Options) -> int:
    """The command; its exit status: 1 if something failed. The executor logs what is amiss."""
    lines = []
    for found in all_lines(s, options):
        line = found._replace(text=printable(" ".join(found.text.split())))
        lines.append(line)
        if not options.json:
            say(f"{line.mark:<5} {line.about}: {line.text}\n")
        if CHILD in os.environ and line.mark in ("FAIL", "warn"):
            level = "warning" if line.mark == "warn" or for_itself() else "error"
            log(level, f"`check` finds: {line.about}: {line.text}")
    if options.json:
        say_json([line._asdict() for line in lines])
    return int(any(line.mark == "FAIL" for line in lines))


# ---- The command line ----------------------------------------------------------------------------

# Before which setting --help begins a group, and what that is about.
GROUPS = {
    "COLONIES_SERVER_HOST": "Colonies",
    "BACKUP_CRON": "When",
    "DB_HOST": "The database",
    "AWS_S3_ENDPOINT": "The bucket",
    "FULL_BACKUPS": "What is kept, and where a dump is made",
    "VERIFY_DB_HOST": "Where backups are proven",
    "HEARTBEAT_URL": "Who is told",
    "BACKUP_COMPRESSION": "Details",
}


# What --help says of a command, beside one line and an example.
HELP = {
    "serve": """
With METRICS_PORT it answers GET /metrics there, for Prometheus, at all addresses, or with HOST:PORT
at that one. Whoever reaches it learns, without a password, names, times and sizes, but no secret.
The # HELP of each metric says what it is. What they tell of the bucket is looked up at the start,
after each job, and every hour. The chart has these as alerts:

  abs(time() - colonies_backup_newest_timestamp_seconds) > 26 * 3600
  unless (colonies_backup_newest_timestamp_seconds == 0
  unless on (job) max_over_time(colonies_backup_newest_timestamp_seconds[2h] offset 26h))
      no backup in time, or a clock was wrong; a new executor has a first night
  increase(colonies_backup_failures_total[1h]) > 0
      a process failed
  colonies_backup_newest_doubtful == 1
      the newest backup has less than half of the size of the last good one
  abs(time() - colonies_backup_verify_timestamp_seconds) > 9 * 86400
  unless (colonies_backup_verify_timestamp_seconds == 0
  unless on (job) max_over_time(colonies_backup_verify_timestamp_seconds[2h] offset 9d))
      none was proven in time; a new executor has as long for the first
  colonies_backup_verify_success == 0
      a backup is not whole
  sum(colonies_backup_verify_step_seconds) > 4 * 3600
      a restore would take too long
  colonies_backup_uploads_waiting > 0
      a finished dump waits for S3; if for hours
  colonies_backup_staging_free_bytes < 1.2 * colonies_backup_newest_size_bytes
  unless ignoring (function) colonies_backup_running == 1
      the next dump has no room
  absent(colonies_backup_bucket_reachable == 1)
      S3 is away, or was not looked at yet: what is known of backups is old; if for an hour
  colonies_backup_registered * colonies_backup_colonies_reachable == 0
      Colonies is away, or lets the executor do nothing; if for an hour
  absent(colonies_backup_info)
      no executor is here that answers

A private authority for Colonies (COLONIES_CA_FILE) takes basicConstraints (critical), keyUsage and
subjectKeyIdentifier, what it signs authorityKeyIdentifier; else Python 3.13 refuses it.""",
    "backup": """
stdout has the result alone, as one JSON text; in Colonies it is the process's output, which shows
phase and bytes while it runs:

  filename, bucket,    where the backup is; the number in its name is the second in which it
  filepath_s3          began, since 1970
  exectime_backup      whole seconds for pg_dump
  size, size_s3        bytes of the local file, and what S3 says that the object has
  exectime_upload_s3   whole seconds for the upload
  sha256               of the file; the object's metadata have it, too
  encryption           "age", if the backup is encrypted, and then the SHA-256 and the bytes of its
  plain_sha256         archive, as pg_dump made it; else null
  plain_size
  database             its name
  database_size        bytes of it on the server's disk
  system_identifier    of its server, made by initdb: a clone has the same
  postgresql           versions, as "17.2"; timescaledb is null where the database has not got
  timescaledb          that extension
  pg_dump
  tables               of how many tables the archive lists rows
  roles                the key of what makes the server's roles, SQL of pg_dumpall; null: off, or
                       refused, as a warning in the log says
  role_passwords       whether it holds the hashes of their passwords; null: there are no roles
  other_databases      how many the server has beside this one: no backup holds them
  starttime            when Colonies started the process; "" for a backup by hand
  label, keep_until    as they were asked for; else ""
  made_again           why a dump was void and made again, a text for each; mostly empty
  warnings             of pg_dump and pg_dumpall, what the dump lacks, and, once, that the size of
                       doubtful ones is the new normal; as they are in the log
  removed              keys of the backups that retention removed; their roles go with them
  kept                 the backups that stay, by key, and why: proven (of the newest; where KEEP_…
                       is set "newest"), daily 2026-10-03, weekly 2026-W40, monthly 2026-10, yearly
                       2026, kept until (and its label), the last that a verify restored, the last
                       before a shrink that lasts, doubtful (less than half of the last good one's
                       size), not removed (and why), no metadata (and what it may be),
                       hidden, not removed (the bucket keeps it as an old version)

What no dump holds: the server's other databases; rows of foreign tables; what was added to
PostgreSQL's own objects, or to an extension's tables; by what citext is compared in JOIN … USING,
IS DISTINCT FROM, NULLIF and CASE, as views, triggers and policies have them: restored, these heed
case. Nor does a backup see that a sequence's value changed meanwhile, or that a schema or type was
changed and changed back within ten seconds.

With --keep-until a backup stays until that day is over, by TZ, or forever, and counts as none of
FULL_BACKUPS and KEEP_…; then it is like any other. Label and day are in the object's metadata
alone; what stands there and is no day keeps it, too. In Colonies they are the arguments label and
keepuntil: a text, and the day or forever.

HEARTBEAT_URL is that of a dead-man service, healthchecks.io or one alike, which tells people when
no backup has come: GET URL/start when one begins, GET URL when it has succeeded or --resume has
finished one, POST URL/fail with the reason when it has failed; a query stays at the end. Each is
tried three times, for 10 seconds; what fails is a warning. One that was cancelled or stopped says
nothing, nor does `verify`. By https the system's authorities vouch for it, or SSL_CERT_FILE's.

One that fails prints none. Its dump, if it was finished, stays on BACKUP_PATH, and the next backup,
an idle executor, or --resume, which prints its result, uploads it. It exits with 1 while another
backup or verify is running on the same BACKUP_PATH; --resume leaves its work to that one.

With BACKUP_AGE_RECIPIENTS, public keys on lines or between commas, with a comment behind one of
ssh's, the archive is encrypted by `age` after its table of contents was read and its SHA-256 taken,
as ….bak.age, and its roles, as ….roles.sql.age. Until that file is whole, both are on BACKUP_PATH.
It stays readable whose backup it is, when it was made, of which versions, and how large it is. For
what age's plugins take (age1NAME1…) their programs have to be there. No private key is needed.

The roles are in PREFIX/backup_SECONDS.roles.sql. Who can read that object has the hashes of all
passwords (SCRAM verifiers), unless BACKUP_ROLES is no-passwords, or off; on BACKUP_PATH they are in
the dump's journal, for its owner alone, until S3 has them. They go with their backup. Those that a
crash, or somebody, left without one go when they are a day old. Without metadata, which a server
may forget (rclone serve s3 does), they stay, and a warning says so.""",
    "prune": """
It does what a backup does when it is proven: see `kept` in `backup --help`. It asks the database
whose backups these are. stdout has a line for each object with a backup's name, newest first: goes
(with --dry-run: would go) or stays, and why. While a backup or verify is running on the same
BACKUP_PATH it exits with 1; likewise where something could not be removed.""",
    "list": """
AGE: since it began; it is negative where a clock was wrong. SIZE: in powers of 1024. CHANGE: by how
many per cent it is larger than the one before it, of the same server and database, at most 999.
DUMP and UPLOAD: how many seconds they took. KIND: proven, which carries a SHA-256; unproven, an
older executor's; or doubtful, of less than half of the last good one's size: perhaps the database
was emptied, or it is a new server's, while the good ones are another's that was lost. (Retention
counts each server's by themselves.) FULL_BACKUPS doubtful ones in a row are good once a verify has
restored one, unless it is nearly empty. VERIFIED: how the last verify of it went, and how long ago;
that is forgotten when retention removes the backup. SERVER: the last six digits of its server's
system identifier, as pg_controldata has it; pg_upgrade and initdb make a new one, a replica and a
clone of its files have the same. VERSIONS: PostgreSQL's, and TimescaleDB's. "…": more was cut off.
What --keep-until keeps has a second line, with its label.

--json has all of it exactly: the time, bytes, the verdict as `verify` gave it (of an encrypted one
without its reason, which names its tables); and tables, and whether the backup is encrypted, and
brings its server's roles. "-", and null, is what is not known: UPLOAD, for one, at AWS and wherever
an object's time is not when its upload ended. That shows where one took 2 seconds; before, none is
known. The newest 10,000 names are looked at, or three times FULL_BACKUPS; restore and verify find
the others by name. Where there are more than 8, what S3 has told of older ones is taken from
PREFIX/backup_index.jsonl, which `backup` writes, as far as they are listed as they were then. Who
may not read that looks at each; it may be deleted.""",
    "check": """
A line or more for each thing: ok, note and warn (look at it), FAIL (the exit status is then 1), and
- for what it could not look at. It registers nothing and writes nothing but one small object, which
it deletes, for good if it may; else the line says that it is hidden. To know whether we have the
key of the colony's owner, it asks with it to remove a user whom nobody can have added. With
--max-age it also sees a night without a backup. `serve` logs FAIL and warn, as warnings, as soon as
it has nothing to do. In Colonies, as the function `check`, it fails with the lines that FAIL; its
output has all, as with --json; and its argument, or else CHECK_MAX_AGE, is --max-age.""",
    "verify": """
It takes the newest good backup of DB_DATABASE, or the one that is named; but where FULL_BACKUPS in
a row are doubtful, none was restored yet, and it restores, the newest of these. It downloads it to
BACKUP_PATH, in a file that no crash leaves; compares size and SHA-256; reads the whole archive, and
counts its tables and their rows. Where VERIFY_DB_HOST is set, it restores it there into a database
verify_NUMBER, counts the rows of each table, compares them, and drops it. That costs as much disk,
and as much WAL, as the database has. It takes a role with CREATEDB; with TimescaleDB a superuser,
and the backup's version of it preloaded.

Where several servers have backups of DB_DATABASE, it takes those of the one that is at DB_HOST; if
that is away, or its newest is doubtful by the others', the newest good one. In Colonies, after a
`backup` in a workflow, it takes the one that was made there. Such a workflow, for a file that
`colonies workflow submit --spec` takes, and `colonies cron add --spec`:

  [{"nodename": "b", "funcname": "backup", "conditions": {"executortype": "backup"}},
   {"nodename": "v", "funcname": "verify", "conditions": {"executortype": "backup",
                                                          "dependencies": ["b"]}}]

stdout has the report alone, as one JSON text; in Colonies it is the process's output:

  object, size         which backup: its key, and bytes
  server               the end of its server's system identifier; null: not known
  seconds              of each step: download (with the checksum), decrypt, read, restore, count
  sha256               "checked"; "absent": an older executor's backup carries none
  roles                its roles, by their SHA-256: "checked"; "absent": it brings none; else what
                       is wrong with them, and the verdict is then "failed: " and that
  archive_version      of the archive's format
  tables               of how many tables it lists rows
  verdict              "intact" (encrypted, and without AGE_IDENTITY_FILE nobody looked inside),
                       "readable", "restored, row for row in number", "restored, not all counted",
                       "restored, not all of it" (see 2. of `restore --help`), or "failed: " and
                       why; then the exit status is 1
  step                 where it failed
  database_size        bytes, after the restore
  rows                 of each table; partitions and chunks count with their parents
  compared             rows of the archive, and restored, as they lie in the tables: compressed ones
                       are fewer, and those of a schema of TimescaleDB's stand together. Each table
                       was compared by itself. null: the archive has no COPY
  not_proven           what this report does not say, and which tables were not counted

Where S3 or that server is away, or lacks what a restore takes, or AGE_IDENTITY_FILE is the private
key of another, that says nothing of the backup: there is no report, and `list` shows what it knew
before.

It restores nowhere but at VERIFY_DB_HOST, and drops only what it made and marked itself (what a
crash left, at the next start). It restores without owners and privileges: roles need not be there,
but for those that policies of row security name. timescaledb_post_restore() is not called: no
policy runs. It changes one object in the bucket, PREFIX/verified.json, which `list` reads; a key
that may not write it costs a warning. Without VERIFY_DB_HOST nothing of what the archive's tables
and functions say is run.""",
    "restore": """
It takes DB_HOST, DB_PORT, DB_USER and DB_PASSWORD: for another server or role, set these. It works
from the database postgres, template1 or DB_DATABASE, the first that lets it in. The server is
PostgreSQL 13 or later, the role a superuser, or, with --no-owner and without TimescaleDB, one with
CREATEDB. `latest` is the newest backup of DB_DATABASE that is not doubtful by its server's others
(see `list --help`). Where several servers have backups of it, a lost one and its successor, it
names them and asks for one: give a name, or --server. A long restore belongs in tmux. An
encrypted one takes AGE_IDENTITY_FILE, and room for both on BACKUP_PATH. In this order:

  1. Is NEW free, or an empty database (extensions do not count), or, with --replace, any? Who is in
     that is named. Has the server the roles that own or are granted something, the tablespaces, the
     locale, and with TimescaleDB the backup's version, preloaded? As a rule the first 16 MiB of the
     backup say what it takes. Has BACKUP_PATH room? Is pg_restore new enough? Is the SHA-256 right?
     Else it ends here: nothing is written. With --roles it then makes those that the server lacks,
     and no others, as the backup brings them: with passwords if it has them, settings, and
     memberships of new roles, superusers too. What is refused is named, a line each. They stay,
     whatever comes of the rest.
  2. It makes a database restore_NUMBER, where only superusers and its owner may connect, and
     restores into that. A line of the log each 30 seconds, or a bar, has its size, and what part
     that is of the size at backup time, where the backup tells it. After what the server refuses of
     the archive it goes on, and tries that once more at the end, but not rows that triggers of
     their table would see. What is refused for good is named, a line each, up to 1000. Then it is
     not whole: step 3 is done, TimescaleDB's jobs are switched off, it stays as restore_NUMBER, and
     the statements that name, swap or drop it are printed. A whole database, too, does without what
     is refused of these: event triggers, publications, subscriptions (they are restored disabled),
     the filling of materialized views, and extensions that one database alone can have (pg_cron),
     with what depends on them. With --only-complete it is dropped when any of this is refused for
     good. So it is where the server has no room or memory, goes away, or lacks an extension, and
     where this is stopped, but for --keep, which goes on without such an extension. After kill -9
     or a power failure drop it yourself: DROP DATABASE restore_NUMBER WITH (FORCE). Then
     pg_restore's workers, if there were several, still end the table or index that they are at.
     Checks mean what the database's own settings say (TimeZone, …); those of its server are in no
     backup: PGTZ sets the time zone.
  3. "What was restored is whole" (or "not whole"), says the log. From here on nothing drops it. It
     gets the database's own settings and privileges, and statistics; the rows of each table are
     counted, and compared with the archive's. After a kill -9 here, name it yourself, and GRANT
     CONNECT ON DATABASE … TO PUBLIC.
  4. It gets the name NEW; the database that had it becomes before_restore_NUMBER, and nothing
     drops that. For the moment, at most 10 seconds, both are closed and sessions in them are ended,
     as far as the role may; a backup of it, too. Where some stay for a minute, or a prepared
     transaction does, all is as before, TimescaleDB's scheduler runs, and the statements that name
     it are printed. In a database that was replaced its jobs run on, and its subscriptions. After a
     kill -9 here all is open, but that scheduler stands still until somebody calls
     _timescaledb_functions.start_background_workers() there. What an extension refused before is
     tried once more: pg_cron, where NEW is its database, with its jobs, which run. Once it was
     ended, only a start of PostgreSQL brings its scheduler back (1.4.2): that is said then.
  5. With TimescaleDB, timescaledb_post_restore(): all of its jobs run within a second, unless
     --pause-jobs is given; then what switches them on is printed. If it fails, it is printed: until
     it has run, no job does. A kill -9 here leaves you to call it.

stdout has each table's rows, one line on what was restored, and what is left to do, for `psql -X -d
postgres`. The exit status is 1 if anything was left out (a setting, a count, statistics, the name)
or a table has other rows than the archive; each is a line of the log. Rows of continuous aggregates
are compared, but not told.

With --table SCHEMA.TABLE, which may be repeated, NEW gets the whole schema, and the rows of these
tables alone: with those of partitions, or of a hypertable's chunks, not of other children. Names
are as SQL has them; without SCHEMA it is public's. stdout says which tables are empty, and what was
left out: foreign keys from rows to an empty table, large objects, and what fills materialized views
(REFRESH MATERIALIZED VIEW does). That was asked for: the exit status is 0. Such a database is not
for putting in the old one's place, and it takes --pause-jobs where a policy drops old rows.

An archive that you do not trust: its author's SQL runs as the role that restores, and as a
superuser starts programs at the server. Restore it at a throwaway server, as a role with CREATEDB
alone, with --no-owner. Even to read it takes a current pg_restore (18.7, 17.12, 16.16, 15.20, 14.25
or later: CVE-2026-116314). Never pipe what pg_restore prints of it into psql (CVE-2025-8714).""",
}


def settings_help() -> str:
    """What --help says of all commands, and the settings."""
    lines = [
        "exit status: 0 done; 1 it failed, a line on stderr says what; 2 wrong settings or command",
        "line; 128 + N ended by signal N (`serve`: 0). stdout has answers alone, stderr the log.",
        "`COMMAND --help` says more.",
        "",
        "environment variables ([another spelling]; = its default; an empty one is not set;",
        "* a secret: NAME_FILE may name its file, which is read anew for each backup, a key's when",
        "the executor joins; flags are true, yes, 1 or false, no, 0; libpq's own, PGSSLMODE for",
        "one, apply too):",
    ]
    for setting in SETTINGS:
        if setting.name in GROUPS:
            lines += ["", f"{GROUPS[setting.name]}:"]
        line = f"  {setting.name}"
        if setting.also:
            line += f" [{setting.also}]"
        if setting.kind in SECRET:
            line += " *"
        if setting.default:
            line += f" = {setting.default}"
        lines += [line, f"      {setting.meaning}"]
    return "\n".join(lines)


class Options:
    """What the command line asks for, of whatever command."""

    command: str = "serve"
    resume: bool = False
    json: bool = False
    max_age: float = FOREVER
    no_volume: bool = False
    name: str = "latest"
    file: str = ""
    database: str = ""
    jobs: int = 4
    no_owner: bool = False
    roles: bool = False
    pause_jobs: bool = False
    server: str = ""
    table: list[str] | None = None
    keep: bool = False
    replace: bool = False
    no_tablespaces: bool = False
    locale: str = ""
    only_complete: bool = False
    label: str | None = None
    keep_until: str | None = None
    dry_run: bool = False


# The commands, each with an example and what it does; below it its options, each with what follows
# it and what it is for. What is not given is as Options has it.
COMMAND_LINE = """
serve|serve|wait for processes from Colonies and run them (the default)
backup|backup|one backup now, no Colonies; prints the result
  --resume||make no dump, only finish what earlier runs left
  --label|TEXT|what to call it, in at most 200 bytes; it takes --keep-until
  --keep-until|DATE|its last day, YYYY-MM-DD, or forever; till then it does not count
prune|prune --dry-run|remove what retention lets go of, without a new backup
  --dry-run||only say what would go, and why
list|list --json|the backups in the bucket, newest first
  --json||all that is known, exactly
check|check --max-age 26|try every setting and every peer
  --max-age|HOURS|fail if the newest proven one is older
  --no-volume||leave the staging volume out: it is not here
  --json||a list of mark, about and text
verify|verify backup_1685968191.bak|prove a backup
  name|NAME|its name in the bucket, or latest (the default)
restore|restore latest --database sensors_restored|restore a backup into a new database at DB_HOST
  --database|NEW|the database to make
  --server|ID|its server, as `list` shows it: the end of the system identifier
  --table|SCHEMA.TABLE|restore the rows of this table alone, and the whole schema; may be repeated
  --jobs|JOBS|so many at once (default: 4)
  --no-owner||leave owners and privileges out; TimescaleDB's jobs become the restoring role's
  --no-tablespaces||put all into the default tablespace, where the server lacks the archive's
  --locale|LOCALE|the C library's, which sorts texts, where the server lacks the archive's
  --roles||make the roles that the server lacks, as the backup brings them
  --pause-jobs||leave TimescaleDB's jobs off, also users' own, and print what switches them on
  --replace||take the name of a database that holds something; that stays, as before_restore_…
  --keep||keep, as restore_…, also what is stopped, or lacks an extension
  --only-complete||all or nothing: drop it if anything is refused for good
"""
# Of what follows them: how argparse is told that it is more than a text.
FOLLOWING: dict[str, Fields] = {
    "NAME": {"nargs": "?"},
    "HOURS": {"type": float},
    "JOBS": {"type": int},
    "NEW": {"required": True},
    "SCHEMA.TABLE": {"action": "append"},
}


def command_line() -> argparse.ArgumentParser:
    """The parser of COMMAND_LINE. An idle executor does without the 1.6 MB of argparse."""
    import argparse

    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "backup_executor.py",
        description=(__doc__ or "").partition("\n")[0],
        epilog=settings_help(),
        formatter_class=plain,
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="command", metavar="command")
    for row in COMMAND_LINE.strip().splitlines():
        name, follows, text = row.strip().split("|")
        if not row.startswith(" "):
            verb = verbs.add_parser(
                name,
                help=text,
                description=f"{text}\n{HELP.get(name, '')}",
                epilog=f"example: backup_executor.py {follows}",
                formatter_class=plain,
                argument_default=argparse.SUPPRESS,
            )
        elif follows:
            verb.add_argument(name, metavar=follows, help=text, **FOLLOWING.get(follows, {}))
        else:
            verb.add_argument(name, action="store_true", help=text)
    which = verbs.choices["restore"].add_mutually_exclusive_group(required=True)
    text = "its name in the bucket, or latest"
    which.add_argument("name", metavar="NAME", nargs="?", default=None, help=text)
    text = "a local archive: it takes no settings for S3, and no checksum of it is known"
    which.add_argument("--file", metavar="PATH", help=text)
    verbs.add_parser("survey")  # for Metrics; no --help shows it
    return parser


signals: list[int] = []  # that have come


def on_signal(signum: int, _: object) -> None:
    """Raise Stop, once. It is noted, too, should somebody swallow what is raised."""
    if not signals:
        signals.append(signum)
        raise Stop(signum)


def run_command(s: Settings, options: Options) -> int:
    """Do what the command line asks for; the exit status. Raises Failure, OSError or Stop."""
    told = json.loads(os.environ.get(CHILD, "{}"))  # by the executor, for which process it is
    status = 0
    if s.command == "serve":
        executor = Executor(s)
        with suppress(Stop):
            executor.serve()
        executor.leave()
        info("Ended", By=signal_name(signals[0]))
    elif s.command == "list":
        list_backups(s, options.json)
    elif s.command == "check":
        status = check(s, options)
    elif s.command == "restore":
        status = restore(s, options)
    elif s.command == "prune":
        prune_now(s, options.dry_run)
    elif s.command == "survey":
        try:
            say_json(survey(s))
        except Failure as error:
            warn("Cannot look at the bucket for the metrics", Error=error)
            status = 1
    elif s.command == "verify":
        report = verify(s, options.name, wait=bool(told))
        say_json(report)
        verdict = report["verdict"]
        require(not verdict.startswith("failed"), f"{report['object']}: {verdict}")
    else:
        run_backup(s, options, told)
    return status


def run_backup(s: Settings, options: Options, told: Mapping[str, str]) -> None:
    """The command backup, and who is told of it. told: by the executor; else nothing."""
    heart = Heartbeat(s)  # of a child the executor tells: it may be killed
    if not options.resume:
        heart.beat("start")
    try:
        wanted = dict[str, str]()
        if options.keep_until:
            wanted = {"label": options.label or "", "keep_until": options.keep_until}
        result = backup(s, options.resume, **told, **wanted)
    except Busy as busy:
        if not options.resume:
            raise
        info(f"Nothing to finish now: {busy}")  # that one sees to what is left
        return
    except Exception as error:
        if not options.resume:
            heart.beat("fail", str(error))
            heart.wait()
        raise
    if result:
        heart.beat()
        say_json(result)
    heart.wait()


def prepare() -> None:
    """Have the process leave no secrets about, and be told of signals."""
    os.umask(0o077)  # dumps are nobody else's
    with suppress(OSError, ValueError):
        # No core, which would hold secrets: only a limit of 1 keeps the kernel from handing it to
        # a program, too (core(5)).
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    for signum in SIGNALS:
        signal.signal(signum, on_signal)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # who started us may hold them off


def senseless(options: Options) -> Iterator[str]:
    """Why a command line makes no sense, or asks for what can't be; "": it is all right."""
    name = options.database
    misnamed = not 0 < len(os.fsencode(name)) < 64 or name in ("postgres", "template1")
    if options.command == "restore" and misnamed:
        text = "it takes a name of 1 to 63 bytes; databases are made from postgres and template1"
        yield f"--database {name!r}: {text}"
    if options.jobs < 1:
        yield f"--jobs {options.jobs}: it takes 1 or more"
    if options.table and options.replace:
        yield "--replace puts nothing in a place whose tables are left empty: --table"
    if not options.file and options.name is None:
        yield "--file '': it takes an archive's path"
    if options.roles and options.file:
        yield "--roles is for backups in the bucket; beside --file use `psql -X -f`"
    if options.resume and options.keep_until is not None:
        yield "--resume makes no backup, so it takes no --keep-until"
    yield keep_fault(options.label, options.keep_until)


def settings_for(options: Options) -> Settings:
    """The settings that a command takes. Raises WrongSettings."""
    if faults := "; ".join(filter(None, senseless(options))):
        raise WrongSettings(faults)
    serve = options.command == "serve"
    if options.command == "check" and not for_itself():
        serve = bool(os.environ.get("COLONIES_SERVER_HOST"))
    try:
        s = read_settings(os.environ, options.command, serve, s3=not options.file)
    except WrongSettings as wrong:
        raise WrongSettings("; ".join([str(wrong), *misspelt(os.environ)])) from None
    if s.command in ("serve", "backup") and s.backup_age_recipients and not options.resume:
        try:
            encrypted_text(s.backup_age_recipients.splitlines(), "")
        except Failure as wrong:
            raise WrongSettings(f"settings: BACKUP_AGE_RECIPIENTS: {wrong}") from None
    for name in ("COLONIES_INSECURE_SKIP_VERIFY", "AWS_S3_INSECURE_SKIP_VERIFY"):
        if getattr(s, name.lower()):
            warn(f"{name}: any certificate is accepted")
    return s


def main() -> int:
    """The program; its exit status: 1 failed, 2 wrong settings or command line, 128 + a signal."""
    options = Options()
    if sys.argv[1:]:
        command_line().parse_args(namespace=options)
    try:
        prepare()
        return run_command(settings_for(options), options)
    except Failure as error:
        log("error", str(error))
        if isinstance(error, WrongSettings):
            return 2
    except OSError as error:
        log("error", explained(error))
    except Stop as stopped:
        warn(f"stopped by {signal_name(stopped.args[0])}")
        return 128 + int(stopped.args[0])
    except Exception as error:  # a peer answered what nothing here expects
        import traceback  # only here: 0.2 MB

        where = [line for _, line in traceback.walk_tb(error.__traceback__)]
        log("error", repr(error)[:999], At=where)
    return 1


if __name__ == "__main__":
    while os.open(os.devnull, os.O_RDONLY) < 3:
        pass  # else a file gets the number of a log that somebody has closed
    os._exit(main())  # threads may still be sending after a failure: there is no use in waiting
