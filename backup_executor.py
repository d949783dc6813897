#!/usr/bin/env python3
"""Colonies Backup Executor: PostgreSQL and TimescaleDB backups in S3, run by Colonies.

Beside a database it waits for processes `backup`: `pg_dump -Fc` to a local volume, its table of
contents read back, an upload of which every part has a checksum, a look at what S3 has; then, never
before, the local file goes, and what is beyond the newest few; a JSON result closes the process. A
finished dump outlasts crashes and peers' absence. Nothing partial has a final name; nothing goes
that is not provably an old backup of this database. `verify` proves one, `restore` restores it."""
from __future__ import annotations
import base64, collections, ctypes, datetime, fcntl, functools, hashlib, hmac
import importlib.util, itertools, json, marshal, os, random, re, resource, select, signal, ssl
import subprocess, sys, tempfile, threading, time, typing, urllib.parse, urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import SimpleNamespace as Namespace
from typing import IO, Any, NamedTuple
__version__ = "1.0.0"
BLOCK, MIB, GIB, FOREVER, UTF8 = 1 << 18, 1 << 20, 1 << 30, float("inf"), ("utf-8", "replace")
PATIENCE, NAMES = 15 * 60, 10_000  # seconds to wait for S3; names of a bucket to look at
TIME_SCALE = float(os.environ.get("BACKUP_TIME_SCALE") or 1)  # of all intervals, for tests
class Failure(Exception):  # `status`: the peer's, or 2: settings. `again`: trying may help
    def __init__(self, text: str, status: int = 0, again: bool = False):
        super().__init__(text); self.status, self.again = status, again
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
class Stop(BaseException): """A signal, the argument, asks for the end."""
def require(fact: object, otherwise: str, status: int = 0) -> None:
    if not fact: raise Failure(otherwise, status)
@contextmanager
def allowing(*statuses: int) -> Iterator[None]:  # go on after a Failure with such a status
    try: yield
    except Failure as error:
        if error.status not in statuses: raise
@contextmanager
def placing(where: str) -> Iterator[None]:  # an OSError names its file, or says WHERE it was
    try: yield
    except OSError as e: raise OSError(e.errno, e.strerror, e.filename or where) from None
def in_time(seconds: float, work: Callable[[], Any]) -> Any:  # TimeoutError also if it trickles
    answers, errors = list[Any](), list[BaseException]([TimeoutError("no complete answer in time")])
    def attempt() -> None:
        try: answers.append(work())
        except BaseException as error: errors.insert(0, error)
    thread = threading.Thread(target=attempt, daemon=True)  # one that is left behind ends itself
    thread.start(); thread.join(seconds)
    if not answers: raise errors[0]
    return answers[0]
def backoff() -> Iterator[float]:  # seconds to wait: doubling to 30, jittered
    for tries in itertools.count():
        yield min(0.5 * 2 ** min(tries, 6), 30) * random.uniform(0.5, 1) * TIME_SCALE
# ---- The log -------------------------------------------------------------------------------------
LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}
def quoted(value: object) -> str:  # as logrus does: on one line, whatever it holds
    text = json.dumps(str(value), ensure_ascii=False)
    return text[1:-1] if re.fullmatch(r'"[A-Za-z0-9._/@^+-]+"', text) else "".join(
        c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
def write(fd: int, text: str) -> None:  # that nobody takes a log is no reason to stop a backup
    rest = text.encode("utf-8", "backslashreplace")
    with suppress(*[OSError] * (fd == 2 or text[0] == "#")), placing("stdout"):
        while rest: rest = rest[os.write(fd, rest):]
def log(level: str, message: str, **fields: object) -> None:  # as logrus; a child's on stdout too
    more = "".join(f" {name}={quoted(value)}" for name, value in fields.items())
    if "BACKUP_PROCESS" in os.environ and level != "debug":
        write(1, f"#{json.dumps([level, message + more])}\n")
    if LEVELS[level] >= LEVELS.get(os.environ.get("LOG_LEVEL", ""), 1):
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        more = f'time="{now}" level={level} msg={quoted(message)}{more}\n'
        write(2, "\r\x1b[K" * os.isatty(2) + more)
def progress(what: str, total: int) -> Callable[[int], None]:  # call it with the bytes done
    begun = shown = time.monotonic()
    def show(done: int) -> None:
        nonlocal shown
        rate = f"{done / MIB / ((now := time.monotonic()) - begun + 0.001):.1f} MiB/s"
        if os.isatty(2) and "BACKUP_PROCESS" not in os.environ:
            bar = "#" * min(30, 30 * done // (total or sys.maxsize))
            write(2, f"\r\x1b[K{what} [{bar:<30}] {done // MIB} of {total // MIB} MiB, {rate}")
        elif now - shown >= 30 * TIME_SCALE:
            shown = now
            log("info", what, Size=f"{done} bytes", Of=f"about {total} bytes", Rate=rate)
    return show
# ---- Settings ------------------------------------------------------------------------------------
Setting = collections.namedtuple("Setting", "name also kind default meaning")
SETTINGS = [Setting(*(cell.strip() for cell in row.split("|"))) for row in """
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
LOG_LEVEL||level|info|debug, info, warning or error""".strip().splitlines()]
SECRET = ("secret", "token", "key")  # the kinds for which NAME_FILE may name a file
def private_key(text: str) -> int:  # ValueError does not repeat the text
    key = int(text, 16) if re.fullmatch("[0-9a-fA-F]{64}", text) else 0
    if not 0 < key < ORDER: raise ValueError("is not a private key: 64 hex digits, 1 to n-1")
    return key
KINDS: dict[str, tuple[Any, ...]] = {  # pattern, what that is, conversion if it is no text
    "text": (r"[^\0]*", "free of NUL"), "secret": (r"[^\0]*", "free of NUL"),
    "file": (".*", "a path", lambda path: ssl.create_default_context(cafile=path) and path),
    "flag": ("(?i)true|1|yes|false|0|no", "true or false", lambda text: text.lower()[0] in "t1y"),
    "port": ("[0-9]{1,5}", "a port", lambda text: range(65536).index(int(text) or -1)),
    "key": ("(?s).*", "", private_key), "count": ("[1-9][0-9]{0,8}", "a number from 1 on", int),
    "token": ("[!-~]+", "printable ASCII"), "host": (r"[^\s/@?#\[\]]+", "a host name or address"),
    "server": (r"(?i)(https?://)?([^\s/@?#:]+|\[[0-9a-f:.]+])(:\d{1,5})?/?", "host[:port], a URL"),
    "compression": (r"auto|none|[0-9]|(gzip|lz4|zstd)(:[0-9a-z=,]+)?", "auto or method:level"),
    "level": ("|".join(LEVELS), "one of " + ", ".join(LEVELS))}
def parsed(setting: Setting, environ: Mapping[str, str]) -> Any:  # ValueError, OSError
    values = {x: environ.get(f"{setting.name}{x}") or environ.get(f"{setting.also or '-'}{x}", "")
              for x in ("", "_FILE" if setting.kind in SECRET else "")}
    text, file = values[""] or setting.default, values.get("_FILE")
    if text and file: raise ValueError(f"and {setting.name}_FILE are both set")
    if file:
        with open(file, encoding="utf-8", newline="") as opened:
            text = opened.read(MIB).removesuffix("\n")
    pattern, what, convert = (*KINDS[setting.kind], str)[:3]
    if text.encode() and not re.fullmatch(pattern, text): raise ValueError(f"is not {what}")
    return convert(text) if text else None if setting.kind == "key" else ""
def read_settings(environ: Mapping[str, str], serve: bool = False, s3: bool = True) -> Namespace:
    """Settings as attributes in lower case: int, bool, keys int or None, else text, maybe empty."""
    s, wrong = Namespace(), dict[str, str]()
    for setting in SETTINGS:
        try: value = parsed(setting, environ)
        except OSError as error: value = wrong[setting.name] = f"cannot be read: {error}"
        except ValueError as error: value = wrong[setting.name] = str(error)
        setattr(s, setting.name.lower(), value)
    keys = ["AWS_S3_ACCESS_KEY", "AWS_S3_SECRET_ACCESS_KEY"]
    needed = ["AWS_S3_BUCKET_NAME"] * s3 + keys * any(getattr(s, key.lower()) for key in keys) + [
        "COLONIES_SERVER_HOST", "COLONIES_SERVER_PORT", ("COLONIES_COLONY_NAME or "
        "COLONIES_COLONY_ID"), "COLONIES_COLONY_PRVKEY or COLONIES_EXECUTOR_PRVKEY"] * serve
    wrong |= {names: "is missing" for names in needed
              if not any(getattr(s, name.lower()) for name in names.split(" or "))}
    require(not wrong, "settings: " + "; ".join(f"{name} {wrong[name]}" for name in wrong), 2)
    s.aws_s3_prefix = s.aws_s3_prefix.strip("/")
    s.colonies_executor_name = s.colonies_executor_name or f"backup-{os.uname().nodename}"
    s.backup_alive_file = s.backup_alive_file or f"{os.environ.get('TMPDIR') or '/tmp'}/alive"
    if s.aws_s3_endpoint and "://" not in s.aws_s3_endpoint:
        s.aws_s3_endpoint = f"http{'s' * s.aws_s3_secure}://{s.aws_s3_endpoint}"
    s.journals = f"colonies-backup-executor/1 {s.db_host}:{s.db_port}/{s.db_database}"
    place = f"{os.path.realpath(s.backup_path)} {s.aws_s3_bucket_name}/{s.aws_s3_prefix}"
    whose = f"{s.colonies_executor_name} {s.journals} {place}"  # also for who takes its place
    s.mark = 10**9 + int(hashlib.sha256(whose.encode()).hexdigest()[:7], 16)  # of scratch databases
    s.tag = hashlib.sha256(f"{whose} {os.uname().nodename}".encode()).hexdigest()  # our sessions
    return s
def redacted(s: Namespace, said: object) -> str:  # others' words without our secrets
    text = str(said).replace("\0", "").strip()
    for secret in (getattr(s, x.name.lower()) for x in SETTINGS if x.kind in ("secret", "token")):
        for form in (secret, repr(secret)[1:-1], urllib.parse.quote(secret, safe="")):
            text = text.replace(form, "***") if len(secret) > 3 else text
    return text
# ---- Programs ------------------------------------------------------------------------------------
def start(argv: Sequence[str], env: Mapping[str, str], **more: Any) -> subprocess.Popen[bytes]:
    """Start a program, from a list and never by a shell. It dies with us, even by kill -9."""
    parent, libc = os.getpid(), ctypes.CDLL(None)
    # A Stop amid fork() is swallowed by what Python runs there (os.register_at_fork), or comes
    # when the program runs and nobody knows it: signals wait until it is known.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    def die_with_parent() -> None:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if os.getppid() != parent: os._exit(1)
    program = None
    try:
        program = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   preexec_fn=die_with_parent, start_new_session=True, **more)
    finally:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except Stop:
            if program:
                stop(program, signal.SIGKILL)
            raise
    return program
def stop(program: subprocess.Popen[bytes], signum: int = signal.SIGTERM, grace: float = 4) -> None:
    program.send_signal(signum)
    with suppress(subprocess.TimeoutExpired): program.wait(grace)
    program.kill(); program.wait()
def environment(s: Namespace, connect: bool, options: str = "") -> dict[str, str]:
    """The variables of a program: few, and libpq's only for those that CONNECT to s.db_….

    options: more of libpq's PGOPTIONS ("-c name=value").
    """
    # DB_HOST and its like say these; libpq's other variables are the operator's to set.
    ours = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGUSER", "PGSERVICE")
    passed = r"LC_|(PATH|HOME|LANG|TZ|TMPDIR|LD_LIBRARY_PATH)$"
    if connect:
        passed += "|PG"
    env = {name: value for name, value in os.environ.items()
           if name not in ours and re.match(passed, name)}
    if not connect:
        return env
    both = f"{s.colonies_executor_name}/{s.db_database}"
    name = re.sub("[^ -~]", "?", f"colonies-backup {s.tag[:8]} {both}")[:63]
    env = {"PGCONNECT_TIMEOUT": "30"} | env | {"PGAPPNAME": name, "PGDATABASE": s.db_database}
    if options:
        env["PGOPTIONS"] = f"{env.get('PGOPTIONS', '')} {options}"
    if s.db_password:
        env["PGPASSWORD"] = s.db_password
    return env
def with_connection(s: Namespace, argv: Sequence[str]) -> list[str]:
    """A program's arguments with those that say where to connect to."""
    return [argv[0], "-h", s.db_host, "-p", str(s.db_port), "-U", s.db_user, *argv[1:]]
def excerpt(s: Namespace, stderr: bytes) -> str:
    """What a program said, without our secrets: all of it, or its first and last 2 kB.

    The reason stands at the beginning, before a statement that may name thousands of tables
    (pg_dump), or at the end, after as many warnings (pg_restore).
    """
    said = redacted(s, stderr.decode(*UTF8))
    if len(said) <= 4096:
        return said
    return f"{said[:2048]} […] {said[-2048:]}"
def said_until(program: subprocess.Popen[bytes], word: bytes, seconds: float) -> bytes:
    """What a program prints up to a word; less, if it ends, or says nothing for so many seconds."""
    said, pipe = b"", program.stdout
    while pipe and not said.endswith(word) and select.select([pipe], [], [], seconds)[0]:
        more = os.read(pipe.fileno(), 4096)
        if not more:
            break
        said += more
    return said
def run(s: Namespace, step: str, argv: Sequence[str], *, connect: bool = True, options: str = "",
        timeout: float = FOREVER, tick: Callable[[], None] = lambda: None) -> str:
    """Run a program to its end; its stdout.

    options: of libpq, where it CONNECTs. timeout: seconds. tick: called each second meanwhile, more
    often at first; what it raises stops the program. Raises Failure, with the program's own words,
    unless it exits 0.
    """
    if connect:
        argv = with_connection(s, argv)
    program = start(argv, environment(s, connect, options), stderr=subprocess.PIPE)
    end, pause = time.monotonic() + timeout, 0.1
    try:
        while True:
            try:
                stdout, stderr = program.communicate(timeout=pause)
                break
            except subprocess.TimeoutExpired:
                pause = min(pause * 1.5, 1)
                tick()
            require(time.monotonic() <= end, f"{step}: {argv[0]}: no answer in {timeout:g} seconds")
    finally:
        stop(program, signal.SIGINT)  # which has the server end what it does, too
    status = program.returncode
    how = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
    require(not status, f"{step}: {argv[0]}: {how}: {excerpt(s, stderr)}")
    return stdout.decode(*UTF8)
# ---- Signing: secp256k1, as Colonies uses it -----------------------------------------------------
FIELD, ORDER = 2**256 - 2**32 - 977, 2**256 - 0x14551231950B75FC4402DA1732FC9BEBF
GENERATOR = (0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
             0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8)
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
        k = hmac.digest(k, v + mark + seed, "sha256"); v = hmac.digest(k, v, "sha256")
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
        with opener.open(query, timeout=within) as reply: return reply.status, reply.read(16 * MIB)
    try:
        status, raw = in_time(within, exchange)
        require(status // 100 != 3, "it redirects, which is not followed")
        envelope = json.JSONDecoder().raw_decode(raw.decode().lstrip())[0]  # 2023 may send two
        answer = json.loads(base64.b64decode(envelope["payload"], validate=True))
        if status == 200 and envelope["error"] is False: return answer
        why = str(answer["message"])
    except Exception as no:  # no answer (0), an odd one (1), or something else's (0)
        status, why = +(status == 200), f"{no} (HTTP {status}; see COLONIES_TLS, COLONIES_CA_FILE)"
    raise Failure(f"Colonies at {url}: {message['msgtype']}: {why[:500]}", status, again=True)
def server_time(text: object) -> int:  # ns since 1970 from RFC 3339; 0: it is none
    with suppress(IndexError, ValueError):
        day, part, zone = re.findall(r"^(.{19})\.?([0-9]{,9})(Z|[+-]\d\d:\d\d)$", str(text))[0]
        whole = datetime.datetime.fromisoformat(day + zone.replace("Z", "+00:00")).timestamp()
        return max(0, int(whole) * 10**9 + int(part.ljust(9, "0")))
    return 0
# ---- S3 ------------------------------------------------------------------------------------------
Found = collections.namedtuple(  # metadata None: it cannot be looked at; etag: as listed, or ""
    "Found", "seconds key size metadata etag", defaults=("",))
def body(answer: Any) -> Any:  # of an answer, for boto3, which would read an endless one on and on
    read = [answer._content or b"", *itertools.islice(answer.raw.stream(1024), 8192)]
    require(len(read) <= 8192, "an answer of 8 MiB, or more"); answer._content = b"".join(read)
    return answer._content
NEEDED = {"create_multipart_upload": "UploadId", "upload_part": "ETag",
          "head_object": "ContentLength", "list_objects_v2": "IsTruncated"}  # in their answers
def plain_etag(answer: Mapping[str, Any]) -> str:
    """An answer's ETag as its bare text; "" where it has none."""
    return str(answer.get("ETag", "")).strip('W/"')
def content_md5(digest: bytes) -> str:
    """An MD5 as the header Content-MD5 spells it."""
    return base64.b64encode(digest).decode()
class S3:  # the bucket; `call` is the one place where a request leaves
    RETRY = ("RequestTimeout", "BadDigest", "IncompleteBody")
    HOPELESS = ("SSLError", "NoCredentialsError", "PartialCredentialsError", "ParamValidationError")
    def __init__(self, s: Namespace, patience: float = PATIENCE):
        self.s, self.patience = s, patience
        self.where = f"S3 at {s.aws_s3_endpoint or 'AWS'}, bucket {s.aws_s3_bucket_name}"
        try:
            import boto3, botocore.awsrequest, botocore.config, warnings
            botocore.awsrequest.AWSResponse.content = property(body)
            settings = botocore.config.Config(  # newer checksums break some servers; MD5 does not
                request_checksum_calculation="when_required", retries={"total_max_attempts": 1},
                response_checksum_validation="when_required", connect_timeout=10, read_timeout=60 *
                TIME_SCALE, s3={"payload_signing_enabled": False, "addressing_style":
                                "path" if s.aws_s3_endpoint else "auto"})
            trusted = s.aws_s3_ca_file or ssl.get_default_verify_paths().cafile or True
            self.client = boto3.Session(s.aws_s3_access_key, s.aws_s3_secret_access_key).client(
                "s3", s.aws_s3_region, endpoint_url=s.aws_s3_endpoint or None, config=settings,
                verify=not s.aws_s3_insecure_skip_verify and trusted)
        except Exception as error:  # boto3 is not installed, or doesn't like its own settings
            raise Failure(f"{self.where}: boto3: {redacted(s, error)}") from None
        if s.aws_s3_insecure_skip_verify: warnings.simplefilter("ignore")  # our own log said it
    def call(self, verb: str, patience: float | None = None, take: Any = None, **what: Any) -> Any:
        """One request, repeated for `patience` seconds where that can help; `take` reads a body."""
        def attempt() -> Any:
            if verb == "upload_part": what["Body"].seek(0)  # it was read, if only for its MD5
            answer = getattr(self.client, verb)(Bucket=self.s.aws_s3_bucket_name, **what)
            require(NEEDED.get(verb, "ResponseMetadata") in answer, "its answer says nothing")
            if "Body" not in answer: return answer
            chunks = itertools.islice(answer["Body"].iter_chunks(MIB), 16)  # it raises if it is cut
            return take(answer) if take else b"".join(chunks)
        end = time.monotonic() + (self.patience if patience is None else patience) * TIME_SCALE
        for tries, pause in enumerate(backoff(), 1):
            limit = 3600 if {"PartNumber", "Range"} & what.keys() else 300
            try: return in_time(limit * TIME_SCALE, attempt)
            except Exception as error:  # S3's own, or whatever boto3 made of what came instead
                if getattr(error, "filename", ""): raise Failure(str(error)) from None  # a file
                said = getattr(error, "response", None) or {}
                status = said.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
                code = said.get("Error", {}).get("Code") or type(error).__name__
                again = (code in self.RETRY or status in (409, 412, 429) or (
                    status >= 500 and status != 501) or not (status or code in self.HOPELESS))
                hint = " (AWS_S3_SECURE, AWS_S3_CA_FILE)" * (code == "SSLError" or status//100 == 3)
                text = f"{self.where}: {verb}: {redacted(self.s, error)}{hint}"
            if not again or time.monotonic() + pause > end: raise Failure(text, status, again)
            if tries == 3: log("warning", "S3 is away, trying again ...", Error=text)
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
    def backups(self) -> list[Found]:  # whole keys PREFIX/backup_DIGITS.bak; oldest first
        found, prefix, key, soon = list[Found](), self.key("backup_"), "", time.time() + 86400
        most = max(NAMES, 3 * self.s.full_backups)  # of what others put there may be millions
        while True:
            page, before = self.call("list_objects_v2", Prefix=prefix, StartAfter=key), key
            for item in page.get("Contents", []):
                if n := re.fullmatch(re.escape(prefix) + r"([0-9]{1,18})\.bak", key := item["Key"]):
                    found.append(Found(int(n[1]), key, item["Size"], None, plain_etag(item)))
            found = sorted(found, key=lambda f: (f.seconds <= soon, f.seconds, f.key))[-most:]
            if not page["IsTruncated"]: break
            require(key > before, f"{self.where}: its listing does not go on")
        if len(found) == most: log("warning", f"{self.where}: {most} names are looked at, no more")
        for i, f in enumerate(found):
            head = dict[str, Any]()
            with allowing(400, 403, 405): head = self.head(f.key) or {}
            same = f.etag in ("", plain_etag(head))  # S3's own
            found[i] = f._replace(metadata=head.get("Metadata") if same else None)
        return sorted(found, key=lambda f: (f.seconds, f.key))
    def beginning(self, f: Found) -> bytes:
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
def by_database(found: list[Found]) -> dict[tuple[str, str], list[Found]]:  # proven, old first
    whose = dict[tuple[str, str], list[Found]]()
    for f in found:
        if (known := f.metadata or {}).get("sha256"):
            database = urllib.parse.unquote(known.get("database", ""))
            whose.setdefault((known.get("system-identifier", ""), database), []).append(f)
    return whose
def proven(found: list[Found], system: str, database: str) -> list[Found]:
    return by_database(found).get((system, database), [])
def doubtful(backups: list[Found]) -> set[str]:  # keys: half as large as the last good one
    doubts, last_good = set(), 0
    for b in backups:
        if b.size * 2 < last_good: doubts.add(b.key)
        else: last_good = b.size
    return doubts
def superseded(found: list[Found], ours: list[Found], keep: int, made: str) -> list[Found]:
    """What retention lets go of `found`, where `ours` are proven; never `made`, the new one.

    An object without metadata is among them only as far as its age goes: see `strangers`.
    """
    doubts = doubtful(ours)
    good, bad = [b for b in ours if b.key not in doubts], [b for b in ours if b.key in doubts]
    legacy = [f for f in found if f.metadata == {}
              and sum(b.seconds > f.seconds for b in ours) >= keep]  # older executors'
    return [b for b in good[:-keep] + bad[:-keep] + legacy if b.key != made]
# What an archive of pg_dump -Fc begins with, by WriteHead in PostgreSQL's pg_backup_archiver.c:
# PGDMP, the format's version (1.12 to 1.16 are those of PostgreSQL 9.0 to 18), the size of an int
# and of an offset, 1 for "custom", the compression (an int; a byte from 1.15 on), seven ints of
# local time. An int is a sign and four bytes, the lowest first.
ARCHIVE = re.compile(
    rb"PGDMP\x01(?:[\x0c-\x0e].\x04[\x04\x08]\x01[\x00\x01].{4}|[\x0f\x10].\x04[\x04\x08]\x01.)"
    rb"(?:[\x00\x01].{4}){7}", re.DOTALL)
def archive_origin(head: bytes) -> tuple[str, str]:
    """The database's name and the server's version that an archive's first bytes tell.

    Both are "" where these are no archive's, are cut off, or tell no such texts.
    """
    fixed = ARCHIVE.match(head)
    at = fixed.end() if fixed else len(head)
    texts = list[str]()
    for _ in ("database", "server version"):
        end = at + 5 + int.from_bytes(head[at + 1:at + 5], "little")
        sign, text = head[at:at + 1], head[at + 5:end]
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
def strangers(s3: S3, aged: list[Found], database: str, postgresql: str, twin: bool
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
        log("warning", "Leaving alone what has no metadata and may be another database's",
            Objects=len(kept), Some=some)
    return kept
def remove(s3: S3, going: list[Found]) -> tuple[list[str], dict[str, str]]:
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
def known_backups(s3: S3) -> list[Found]:
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
        with suppress(FileNotFoundError): os.unlink(draft)  # a crash's, or a link to elsewhere
        with placing(draft), open(draft, "x", encoding="utf-8") as file:
            print(json.dumps(self | changes), file=file, flush=True)
            os.fsync(file.fileno())
        os.rename(draft, self.path)
        folder = os.open(os.path.dirname(self.path), os.O_RDONLY)
        os.fsync(folder); os.close(folder)
        self.update(changes)
    def pending(self) -> bool:  # its dump is not in S3 yet, or the local file not removed
        return "sha256" in self and "gone" not in self
    def remove(self, *more: str) -> None:
        for path in (*more, self.partial, self.path):
            with suppress(OSError): os.unlink(path)
def guarded(path: str, flags: int) -> int:  # an opener: it follows no link, waits for no FIFO
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
def digest(path: str) -> str:  # SHA-256; of nothing if it is no plain file
    sha256, plain = hashlib.sha256(), os.path.isfile(path) and not os.path.islink(path)
    with open(path if plain else os.devnull, "rb") as file:
        while data := file.read(BLOCK): sha256.update(data)
    return sha256.hexdigest()
def journals(s: Namespace) -> list[Journal]:  # this database's, oldest first
    found = [Journal(os.path.join(s.backup_path, name[:-5])) for name in os.listdir(s.backup_path)
             if re.fullmatch(r"backup_[0-9]+\.bak\.json", name)]
    for journal in found:
        with suppress(Exception), open(journal.path, "rb", opener=guarded) as file:
            journal.update(json.loads(file.read(MIB)))  # whatever somebody put there
    return sorted((x for x in found if x.get("by") == s.journals), key=lambda x: x.file)
@contextmanager
def staging(s: Namespace, wait: bool) -> Iterator[None]:  # by flock(2): it ends with us
    folder = os.open(s.backup_path, os.O_RDONLY | os.O_DIRECTORY)
    try: fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        require(wait, f"another backup is running in {s.backup_path}")
        log("info", "Waiting for another backup to end ..."); fcntl.flock(folder, fcntl.LOCK_EX)
    yield
def room(s: Namespace) -> tuple[int, int]:  # bytes free there, and how many must stay so
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
def psql(s: Namespace, step: str, query: str, timeout: float = 120, options: str = "",
         first: str = "") -> str:
    """What a query answers. FIRST is run before it, in a transaction of its own."""
    queries = [f"--command={sql}" for sql in (first, query) if sql]
    return run(s, step, ["psql", "-XAtqw", *queries], timeout=timeout,
               options=f"-c statement_timeout=0 -c search_path=pg_catalog {options}")
def read_json(s: Namespace, step: str, query: str, **more: Any) -> Any:
    return json.loads(psql(s, step, query, **more))
def read_patiently(s: Namespace, step: str, query: str) -> Any:
    """The JSON that a query answers; asked again for a minute, since a whole dump depends on it."""
    end = time.monotonic() + 60 * TIME_SCALE
    for pause in backoff():
        try:
            return read_json(s, step, query)
        except Failure:
            if time.monotonic() + pause > end:
                raise
        time.sleep(pause)
def look(s: Namespace, step: str, query: str, **more: Any) -> Namespace:
    return Namespace(**read_json(s, step, query, **more))
def look_at_database(s: Namespace) -> Namespace:  # and whether this pg_dump fits it
    server = look(s, "Looking at the database", LOOK)
    said = run(s, "Looking at pg_dump", ["pg_dump", "--version"], connect=False, timeout=60)
    server.pg_dump = next(iter(re.findall(r"\d[\w.]*", said)), "0")
    server.client, major = (int(re.split(r"\D", x)[0]) for x in (server.pg_dump, server.postgresql))
    text = f"pg_dump {server.pg_dump} is {{}} than the server, {server.postgresql}: {{}}"
    require(server.client >= major, text.format("older", "install the server's version or later"))
    if server.client > major: log("warning", text.format("newer", "restoring takes its version"))
    return server
def look_for_room(s: Namespace, newest: int, database_size: int) -> str:  # or Failure
    with tempfile.TemporaryFile(dir=s.backup_path): free, floor = room(s)
    text = f"{s.backup_path}: {free} bytes are free; the newest backup has {newest}"
    require(free >= max(newest * 6 // 5, floor), f"{text}; a fifth more is needed, or {floor}")
    if not newest and free < database_size: log("warning", f"{text}, the database {database_size}")
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
    def __init__(self, s: Namespace):
        self.s = s
        before = read_json(s, "Reading the tables", READ_TABLES)
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
                self.compare_schemas(read_json(self.s, "Reading the schemas", READ_SCHEMAS))
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
        seen = read_json(self.s, "Looking at pg_dump", sessions, timeout=20)
        if seen["copying"]:
            tables = read_json(self.s, "Reading the tables", READ_TABLES)["tables"]
            if read_json(self.s, "Looking at pg_dump", sessions, timeout=20)["copying"]:
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
            raise Failure(f"{len(void + gone)} tables were truncated, rewritten or replaced before "
                          f"pg_dump had locked them, rows may be missing: {names}", again=True)
    def names(self, oids: list[int]) -> list[str]:
        """The names of some tables, together, for people; their oids where none is to be had."""
        if not oids:
            return []
        listed = ", ".join(map(str, sorted(oids)[:1000]))
        with suppress(Failure):
            return [psql(self.s, "Naming the tables", NAME_TABLES.format(listed)).strip()]
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
            raise Failure(f"{len(replaced)} schemas were replaced by others of their names while "
                          "pg_dump ran, rows may be missing", again=True)
    def end(self, archived: Mapping[str, str]) -> None:
        """Compare what is left to compare, now that pg_dump has ended. Raises Failure: void.

        archived: names by oid of the tables whose rows the archive has, as pg_dump saw them.
        """
        tables = self.locked
        if tables is None:
            tables = read_patiently(self.s, "Reading the tables", READ_TABLES)["tables"]
        self.compare(tables, archived)
        self.compare_schemas(read_patiently(self.s, "Reading the schemas", READ_SCHEMAS))
HOLD_SECONDS = 60  # at most; measured: 0.7 to 5 s with 1,000 chunks, on a busy machine
# A compression that has done with the settings truncates its chunk all the same, at its end; until
# then it keeps a lock on `chunk` (2.28.3, 2.29.2). Those that wait for us are not waited for.
HOLD_OFF = ("BEGIN", "LOCK TABLE _timescaledb_catalog.compression_settings IN SHARE MODE", """
    DO $$ BEGIN
    FOR tries IN 1 .. 400 LOOP
        EXIT WHEN NOT EXISTS (SELECT FROM pg_locks working WHERE granted AND pid <> pg_backend_pid()
            AND relation = '_timescaledb_catalog.chunk'::regclass AND mode = 'RowExclusiveLock'
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND NOT EXISTS (SELECT FROM pg_locks waiting WHERE waiting.pid = working.pid AND
                NOT granted AND relation = '_timescaledb_catalog.compression_settings'::regclass));
        PERFORM pg_sleep(0.05);
    END LOOP; END $$""", "SELECT 'held'", f"SELECT pg_sleep({HOLD_SECONDS})")
@contextmanager
def compression_held_off(s: Namespace, server: Namespace) -> Iterator[Callable[[], None]]:
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
            holder = start(with_connection(s, ["psql", "-XAtqw", "-vON_ERROR_STOP=1", *statements]),
                           environment(s, True, options + gone_client(server)),
                           stderr=subprocess.STDOUT)
            said = said_until(holder, b"held\n", HOLD_SECONDS)
            if not said.endswith(b"held\n"):
                log("info", "Compression is not held off: if it empties chunks that are being "
                    "dumped, the dump is made again", Reason=excerpt(s, said))
        yield release
    finally:
        release()
def gone_client(server: Namespace) -> str:
    """Options with which a server notices within 10 s that we are gone, also while it computes."""
    major = int(re.split(r"\D", server.postgresql)[0])
    return "-c client_connection_check_interval=10s" if major >= 14 else ""
def dump(s: Namespace, s3: S3, **begun: Any) -> Journal:
    """All that comes before the upload: look, dump, read the archive back, vouch for it.

    Raises Failure or OSError; then nothing of it is left on the volume.
    """
    server = look_at_database(s)
    newest = newest_backup(s, s3, server)
    look_for_room(s, newest.size, server.size)
    file = os.path.join(s.backup_path, f"backup_{free_seconds(s, newest)}.bak")
    journal = Journal(file, by=s.journals, made_again=[], **begun)
    psql(s, "Ending sessions of an earlier run", END_SESSIONS)  # of a pg_dump killed by -9
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
    log("info", "Successfully backup database", ExecTime=f"{took} seconds",
        Filename=os.path.basename(file), Size=f"{journal['size']} bytes")
    return journal
def newest_backup(s: Namespace, s3: S3, server: Namespace) -> Found:
    """The newest proven backup of this database; one of no size and time where there is none.

    A bucket that is missing is made, unless it is at AWS. Raises Failure.
    """
    known = [Found(0, "", 0, None)]
    try:
        known += proven(s3.backups(), server.system_identifier, server.database)
    except Failure as error:
        if error.status != 404 or not s.aws_s3_endpoint:
            raise
        log("warning", "The bucket is missing, making it ...", Error=error)
        s3.call("create_bucket")
    # A later time than the year 5138 was not made by a clock: 18 digits count as a name, too.
    return [backup for backup in known if backup.seconds < 10**11][-1]
def free_seconds(s: Namespace, newest: Found) -> int:
    """The seconds of the new backup's name: now, but later than the newest one's."""
    now = int(time.time())
    if now < newest.seconds:
        log("warning", "The clock is behind the newest backup", Key=newest.key)
    seconds: int = max(now, newest.seconds + 1)
    taken = " ".join(os.listdir(s.backup_path))
    while f"backup_{seconds}.bak" in taken:
        seconds += 1
    return seconds
def compression(s: Namespace, server: Namespace) -> str:
    """pg_dump's --compress for BACKUP_COMPRESSION; before 16 it knows gzip's levels alone."""
    wanted: str = s.backup_compression
    if server.client >= 16:
        return "zstd:1" if wanted == "auto" else wanted
    return {"auto": "6", "gzip": "6", "none": "0"}.get(wanted, wanted.removeprefix("gzip:"))
# Seconds before a dump is made again, and once more. A policy that works through its chunks, or a
# job that loads tables, may need as long to be over.
PAUSES = (15, 60)
# What pg_dump fails with when something it has seen is gone before it is locked, and on a standby.
PASSING = (r"(relation|column|schema|type|function) .* does not exist|cannot (copy from|lock) |"
           "could not open relation|cache lookup failed|conflict with recovery|deadlock detected")
ADVICE = ("keep jobs and policies that truncate, rewrite, compress, replace or drop tables away "
          "from the backup's hour; on a standby look at max_standby_streaming_delay")
def dump_every_row(s: Namespace, server: Namespace, journal: Journal,
                   expected: int) -> tuple[int, str]:
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
def dump_once(s: Namespace, server: Namespace, journal: Journal, expected: int) -> tuple[int, str]:
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
            window = Window(s)
        except Failure:  # the role may have but one connection
            release()
            window = Window(s)
        def tick() -> None:
            free, floor = room(s)
            only = f"{s.backup_path} has only {free} bytes left"
            require(free >= floor, f"pg_dump was stopped: {only}")
            with suppress(OSError):
                show(os.path.getsize(journal.partial))
            if window.look():
                release()
        run(s, "Backing up database", command, tick=tick, options=gone_client(server))
        took = int(time.monotonic() - begun)
        listed = run(s, "The table of contents", ["pg_restore", "--list", journal.partial],
                     connect=False)
        require(re.search("(?m)^[^;]", listed), "the archive is empty: is DB_DATABASE right?")
        rows = {oid: name for oid, name in re.findall(TABLES, listed) if int(oid) >= USERS_OIDS}
        window.end(rows)  # before what waits for us goes on
    return took, listed
def seal(server: Namespace, journal: Journal, took: int, listed: str) -> None:
    """Note what the archive is, now that its table of contents has been read back."""
    facts = {name: getattr(server, name) for name in FACTS}
    journal.save(exectime_backup=took, size=os.path.getsize(journal.partial),
                 sha256=digest(journal.partial), id=os.urandom(16).hex(),
                 tables=len(re.findall(TABLES, listed)), **facts)
# ---- A backup: upload and proof ------------------------------------------------------------------
def slices(what: str, size: int, step: int, work: Any) -> Iterator[Any]:  # work(start, end) of each
    from concurrent.futures import ThreadPoolExecutor
    show, pool, starts = progress(what, size), ThreadPoolExecutor(4), range(0, size, step)
    ends = [min(start + step, size) for start in starts]
    try:
        for end, answer in zip(ends, pool.map(work, starts, ends)):
            show(end)
            yield answer
    except RuntimeError as error: raise Failure(f"{what}: {error}") from None  # no thread for it
    finally: pool.shutdown(wait=False, cancel_futures=True)
def upload(s3: S3, journal: Journal) -> dict[str, Any]:
    """Upload and prove it. An answer may get lost: in each round HeadObject says what is there."""
    log("info", "Uploading backup file to S3 ...")
    begun, pauses, why = time.monotonic(), backoff(), "S3 has nothing there"
    first = seconds = int(re.findall("[0-9]+", journal.file)[-1])
    target, condition, end = dict[str, Any](), {"IfNoneMatch": "*"}, 0.0
    while True:
        key = s3.key(f"backup_{seconds}.bak")
        head = s3.head(key)
        if head and head["Metadata"].get("backup-id") == journal["id"]: break
        if head: seconds += 1; require(seconds < first + 1000, f"{s3.where}: {key} is taken, too")
        elif target.get("Key") != key:
            target = send_parts(s3, journal, key)
            end = end or time.monotonic() + s3.patience * TIME_SCALE
        else:
            require(time.monotonic() <= end, f"{s3.where}: {key}: cannot complete it: {why}")
            try: s3.call("complete_multipart_upload", 0, **target, **condition)
            except Failure as error:
                why = str(error)
                if error.status == 404: target = {}  # it is gone: send again if no object is there
                elif error.status == 501 and condition: condition = {}
                elif not error.again: raise
                time.sleep(next(pauses))
    etag, size, sent = head.get("ETag", "").strip('"'), head["ContentLength"], journal.get("etag")
    if size != journal["size"] or ("-" in etag and sent and etag != sent):
        journal.save(id=os.urandom(16).hex())  # what bears the old one is no backup, but looks it
        s3.call("delete_object", Key=key)
        raise Failure(f"{s3.where}: {key}: {size} bytes, {etag}; sent: {journal['size']}, {sent}")
    t = int(time.monotonic() - begun)
    log("info", "Successfully uploaded backup file", ExecTime=f"{t} seconds", Size=f"{size} bytes")
    return {"filename": os.path.basename(key), "bucket": s3.s.aws_s3_bucket_name,
            "filepath_s3": f"/{key}", "size_s3": size, "exectime_upload_s3": t}
def abort(s3: S3, journal: Journal, patience: float | None = None) -> None:  # what is unfinished
    if "upload" in journal:
        with allowing(403, 404): s3.call("abort_multipart_upload", patience, **journal["upload"])
def send_parts(s3: S3, journal: Journal, key: str) -> dict[str, Any]:  # what will complete it
    from s3transfer.utils import ReadFileChunk  # boto3's own: a slice is read as it is sent
    facts = (*FACTS, "sha256", "tables", "exectime_backup")
    metadata = {name.replace("_", "-"): str(journal[name]) for name in facts
                if journal[name] is not None} | {"backup-id": journal["id"]}
    metadata["database"] = urllib.parse.quote(journal["database"], safe="")
    abort(s3, journal); journal.save()  # is there room to note what is begun?
    made = s3.call("create_multipart_upload", Key=key, Metadata=metadata)
    target = journal["upload"] = {"Key": key, "UploadId": made["UploadId"]}; journal.save()
    size = journal["size"]  # 1,000 parts at most, of whole MiB; if of over 5 GiB, 10,000
    step = max(8, -(-size // ((1000 if size <= 1000 * 5 * GIB else 10000) * MIB))) * MIB
    def send(start: int, _: int) -> tuple[dict[str, Any], bytes]:
        md5 = hashlib.md5(usedforsecurity=False)
        with ReadFileChunk.from_filename(journal.file, start, step) as part:
            while data := part.read(BLOCK): md5.update(data)
            answer = s3.call("upload_part", **target, PartNumber=start // step + 1, Body=part,
                             ContentMD5=content_md5(md5.digest()))
        return {"PartNumber": start // step + 1, "ETag": answer["ETag"]}, md5.digest()
    sent = list(slices("Upload in progress", size, step, send))
    plain = {part["ETag"].strip('"') == md5.hex() for part, md5 in sent}  # with KMS none is one
    require(len(plain) == 1, f"{s3.where}: {key}: a part is not what was sent, says its ETag")
    whole = hashlib.md5(b"".join(md5 for _, md5 in sent), usedforsecurity=False).hexdigest()
    journal.save(etag=f"{whole}-{len(sent)}" if plain == {True} else "")
    return target | {"MultipartUpload": {"Parts": [part for part, _ in sent]}}
# ---- A backup: as a whole ------------------------------------------------------------------------
DEATHS = 3  # children that a process may lose: what kills three kills the next one, too
RESULT = ("filename", "bucket", "filepath_s3", "exectime_backup", "size", "size_s3",
          "exectime_upload_s3", "sha256", *FACTS, "tables", "starttime")  # and `made_again`
def backup(s: Namespace, resume: bool, process: str = "", starttime: str = "") -> Any:
    """One backup; its result, a dict. With `resume`: only finish what earlier runs left; None."""
    with staging(s, wait=bool(process)):
        s3 = S3(s, 10 if resume else PATIENCE)  # resuming is tried again anyway
        journal = sweep(s, s3, process)
        if resume: return s.verify_db_host and drop_scratch(s) and None
        attempts = journal.get("attempts", 0) + 1
        require(attempts <= DEATHS or "gone" in journal,
                "killed three times: is the memory limit low?")
        try:
            if "sha256" in journal: journal.save(attempts=attempts)
            else: journal = dump(s, s3, process=process, starttime=starttime, attempts=attempts)
            result = finish(s3, journal)
        except (Stop, Failure, OSError) as why:
            if journal.pending():
                with suppress(Exception): in_time(2, lambda: abort(s3, journal, 0))
                whose = journal["process"] if isinstance(why, Stop) else ""  # that one has failed
                with suppress(OSError): journal.save(attempts=0, process=whose)
                if why.args == (signal.SIGUSR1,): journal.remove(journal.file)  # nobody wants it
            raise
        log("info", "Backup procedure completed, closing process ...")
        return result
def finish(s3: S3, journal: Journal) -> dict[str, Any]:  # from where it is to its result
    if journal.pending():
        if "bucket" not in journal: journal.save(**upload(s3, journal))
        with suppress(FileNotFoundError): os.unlink(journal.file)
        log("info", "Removed local backup file", Filepath=journal.file); journal.save(gone=True)
    result = {name: journal[name] for name in RESULT}
    result["made_again"] = journal.get("made_again", [])  # an older version's journal has none
    result |= prune(s3, result["system_identifier"], result["database"],
                    result["filepath_s3"][1:], result["postgresql"])
    if not journal["process"]: journal.remove()  # else it is kept until the process is closed
    return result
def sweep(s: Namespace, s3: S3, process: str) -> Journal:  # after crashes; the process's own
    mine = Journal("")
    for journal in journals(s):
        own = bool(process) and journal["process"] == process
        if journal.pending():
            if os.path.exists(journal.partial) and not os.path.lexists(journal.file):
                os.rename(journal.partial, journal.file)
            if "bucket" not in journal and digest(journal.file) != journal["sha256"]:
                log("warning", "Not what its journal says, leaving it alone", Filepath=journal.file)
                abort(s3, journal); journal.remove(); continue
            tries = journal.get("attempts", 0) + bool(process)  # may it kill this process, too?
            # It may cost a process two children, not the third: that one is for its own backup.
            if not own and (tries < DEATHS or not process):
                journal.save(attempts=tries)
                finish(s3, journal)
        else:
            with suppress(OSError): os.unlink(journal.partial)
            if not journal["process"] or time.time() - os.path.getmtime(journal.path) > 86400:
                journal.remove()  # of no use, or its process came to another end
        if own: mine = journal
    return mine
# ---- Restore and proof ---------------------------------------------------------------------------
SERVER = """SELECT json_build_object('limits', (SELECT json_object_agg(datname, datconnlimit) FROM
    pg_database), 'roles', (SELECT json_agg(rolname) FROM pg_roles), 'preloaded', (SELECT setting ~
    'timescaledb' FROM pg_settings WHERE name = 'shared_preload_libraries'), 'versions', (SELECT
    json_agg(version) FROM pg_available_extension_versions WHERE name = 'timescaledb'))"""
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
ANALYZE = FOR_EACH.format(into="", parts="""
    SELECT c.oid::regclass AS whole, format('ANALYZE %s', c.oid::regclass) AS query
    FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE (relkind IN ('r', 'm') AND relpersistence <> 't') OR (relkind = 'p' AND NOT EXISTS (
        SELECT FROM pg_partition_tree(c.oid) JOIN pg_class f ON f.oid = relid
        WHERE f.relkind = 'f'))""")
# Partitions are counted one by one, and added up, but for one at another server, which is in no
# dump. TimescaleDB's chunks are seen through their hypertable.
COUNT = FOR_EACH.format(into="INTO number", parts="""
    SELECT coalesce(pg_partition_root(c.oid)::oid, c.oid)::regclass AS whole,
        CASE relkind WHEN 'p' THEN 'SELECT 0'
            ELSE format('SELECT count(*) FROM %s', c.oid::regclass) END AS query
    FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE relkind IN ('r', 'p')
    AND nspname !~ '^(pg_|information_schema$|_timescaledb_)'
    AND (relispartition OR NOT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid))""")
THERE = "SELECT count(*) FROM pg_database WHERE datname = {}"
# Of databases. pg_has_role: sessions of others a role that is no superuser may not end.
END_OTHERS = """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname IN ({}) AND pid <> pg_backend_pid() AND pg_has_role(usesysid, 'MEMBER')"""
SCRATCH = ["--no-owner", "--no-acl", "--no-tablespaces", "--no-publications", "--no-subscriptions"]
# TimescaleDB's functions for users are where the extension is, which need not be in public.
POST_RESTORE = "SELECT {}.timescaledb_post_restore()"
# ALTER DATABASE … RENAME stops TimescaleDB's scheduler for good, also where it is refused.
START_WORKERS = "SELECT _timescaledb_functions.start_background_workers()"
# Those below 1000 are TimescaleDB's own. It is a table up to 2.24, then a view of that.
PAUSE_JOBS = """WITH paused AS (UPDATE _timescaledb_config.bgw_job SET scheduled = false
    WHERE scheduled AND id >= 1000 RETURNING id) SELECT array_agg(id ORDER BY id) FROM paused"""
JOBS_ON = "SELECT {}.alter_job(id, scheduled => true) FROM unnest('{}'::int[]) AS id;"
ALL_ROWS = "-c timescaledb.restoring=off"  # with it on, compressed rows are not seen
WRITING = "-c default_transaction_read_only=off"  # against the database's own setting
PUBLIC = f"-c search_path=public {WRITING}"
NAME = r'(?:(?:"[^"]*")+|[\w$]+)'  # an identifier, as pg_dump writes it
OF_DATABASE = (rf"(?s)((?:ALTER|COMMENT ON|ALTER ROLE {NAME} IN|(?:GRANT|REVOKE) [A-Z, ]+ ON|"
               rf"SECURITY LABEL FOR {NAME} ON) DATABASE ){NAME}( .*)")
def at(s: Namespace, database: str, server: str = "db") -> Namespace:  # or at `verify_db`
    there = {f"db_{x}": getattr(s, f"{server}_{x}") for x in ("host", "port", "user", "password")}
    return Namespace(**vars(s) | there | {"db_database": database})
def named(file: IO[bytes]) -> str:  # a path for our programs, also if it has no name
    return f"/proc/{os.getpid()}/fd/{file.fileno()}"
@contextmanager
def timed(report: dict[str, Any], step: str) -> Iterator[None]:  # a failed one stays "step"
    begun, report["step"] = time.monotonic(), step
    log("info", f"{step.capitalize()} ..."); yield
    report["seconds"][report.pop("step")] = round(time.monotonic() - begun, 1)
def chosen(s3: S3, name: str, database: str = "") -> Found:  # latest: newest good one
    if name != "latest":  # also one that `backups` does not look at
        n = re.fullmatch(rf"({re.escape(s3.key(''))})?(backup_([0-9]{{1,18}})\.bak)", name)
        head: Any = s3.head(s3.key(n[2])) if n else None
        require(head, f"{s3.where}: there is no backup {name!r}; `list` shows those there are")
        if n: return Found(int(n[3]), s3.key(n[2]), head["ContentLength"], head["Metadata"])
    found = s3.backups()
    require(found, f"{s3.where}: there is no backup")
    whose = by_database(found)
    ours = [x for of, x in whose.items() if of[1] == database]  # of two servers: the newer one's
    unknown = by_archive(s3, found, {of[1] for of in whose})
    if not ours and database in unknown:
        ours = [unknown[database]]
    sorts = sorted(ours, key=lambda x: x[-1].seconds)[-1:] or [*whose.values(), *unknown.values()]
    sorts = sorts or [found]
    require(len(sorts) == 1, f"{s3.where}: several databases' backups are there: name one")
    backups, doubts = sorts[0], doubtful(sorts[0])
    while backups[-1].key in doubts:
        log("warning", "Passing over a doubtful backup", Key=backups.pop().key)
    return backups[-1]
def by_archive(s3: S3, found: list[Found], known: set[str]) -> dict[str, list[Found]]:
    """Objects without metadata by the database that their archives name, but for those KNOWN.

    Old first. What is no archive counts as nobody's. The newest 100 are asked for. Raises Failure.
    """
    whose = dict[str, list[Found]]()
    for f in [f for f in found if f.metadata == {}][-HEADS:]:
        name, _ = archive_origin(s3.beginning(f))
        if name and name not in known:
            whose.setdefault(name, []).append(f)
    return whose
def fetch(s: Namespace, s3: S3, name: str, file: IO[bytes], report: Any, whose: str = "") -> Any:
    found = chosen(s3, name, whose)  # its metadata are returned
    metadata, sha256, step = found.metadata or {}, hashlib.sha256(), max(16 * MIB, found.size >> 12)
    report |= {"object": found.key, "size": found.size, "seconds": {}}
    log("info", "Found the backup", Key=found.key, Size=f"{found.size} bytes", Time=moment(
        found.seconds), Database=urllib.parse.unquote(metadata.get("database", "unknown")))
    pg_restore_for(s, metadata.get("pg-dump", "")); look_for_room(s, found.size, 0)
    def get(start: int, end: int) -> Any:
        def keep(answer: Any) -> tuple[int, int]:
            at, right = start, f"bytes {start}-{end - 1}/{found.size}"
            while at < end and (data := answer["Body"].read(min(BLOCK, end - at))):
                with placing(s.backup_path):
                    while data: at, data = at + (n := os.pwrite(file.fileno(), data, at)), data[n:]
            require((at, answer.get("ContentRange")) == (end, right), f"it gave not {right}")
            return start, end
        return s3.call("get_object", take=keep, Key=found.key, Range=f"bytes={start}-{end - 1}")
    with timed(report, "download"):
        for start, end in slices("Download in progress", found.size, step, get):
            for at in range(start, end, BLOCK):  # hashed while the next ones come
                sha256.update(os.pread(file.fileno(), min(BLOCK, end - at), at))
    report |= {"step": "checksum", "sha256": "checked" if "sha256" in metadata else "absent"}
    require(sha256.hexdigest() == metadata.get("sha256", sha256.hexdigest()),
            f"{s3.where}: {found.key} is damaged: its SHA-256 is not that of the dump")
    if "sha256" not in metadata: log("warning", "It has no checksum: that was not checked")
    return metadata
def pg_restore_for(s: Namespace, dumped_by: str) -> int:  # its major version, or Failure
    said = run(s, "Looking at pg_restore", ["pg_restore", "--version"], connect=False)
    ours, theirs = (int((re.findall(r"\d+", text) or "0")[0]) for text in (said, dumped_by))
    require(ours >= theirs, f"pg_restore {ours} is older than the archive's pg_dump {dumped_by}")
    return ours
@contextmanager
def listing(entries: list[str]) -> Iterator[str]:  # pg_restore's option that chooses these
    with tempfile.NamedTemporaryFile("w") as file:
        with placing(file.name): print(*entries, "", sep="\n", file=file, flush=True)
        yield f"--use-list={file.name}"
def statements(sql: str) -> list[str]:  # no text in a literal, a comment's for instance, forges one
    sql = re.sub(r"""(?m)^(?:--|\\).*\n|('[^']*'|"[^"]*")""", lambda found: found[1] or "", sql)
    return [x.strip() for x in re.findall(r"""(?:[^;'"]|'[^']*'|"[^"]*")+;""", sql)]
def roles_in(statement: str) -> set[str]:  # a GRANT's, a policy's, …
    roles, due, told = set[str](), False, re.split(r" (?:USING|WITH CHECK) \(", statement)[0]
    for word in re.findall(rf"'[^']*'|{NAME}|\S", told):
        if due and (word[0] == '"' or (re.match(r"\w", word) and not word.isupper())):
            roles.add(word[1:-1].replace('""', '"') if word[0] == '"' else word)
        else: due = word in ("TO", "FROM", "FOR", "ROLE", "AUTHORIZATION") or (due and word == ",")
    return roles - {"public"}
def look_at_archive(s: Namespace, path: str, options: list[str]) -> Namespace:  # what it holds
    def read(*how: str) -> str:
        return run(s, "Reading the archive", ["pg_restore", *how, *options, path], connect=False)
    listed = read("-l", "-C")
    a = Namespace(path=path, options=options, entries=re.findall(r"(?m)^\d+; \d+ \d+ .*$", listed),
                  format="".join(re.findall("; +Dump Version: (.*)", listed)), roles=set[str](),
                  create="TEMPLATE = template0", database="", properties=[], timescaledb="",
                  left=list[str](), tables=len(re.findall(TABLES, listed)), jobs=Copied())
    a.client = pg_restore_for(s, "".join(re.findall(r"; +Dumped by pg_dump version: (.*)", listed)))
    kinds = r"(\S+ ){3}(ACL|DEFAULT ACL|POLICY|USER MAPPING|(COMMENT|SECURITY LABEL) - DATABASE) "
    with listing([entry for entry in a.entries if re.match(kinds, entry)]) as chosen:
        try: sql = read("-f-", "-C", chosen)  # -C: and what makes the database
        except Failure as no: a.left, sql = [f"not restored: {no}"], read("-f-", chosen)
    for statement in statements(sql):
        found = re.fullmatch(OF_DATABASE, statement)
        if not found or "--no-owner" not in options: a.roles |= roles_in(statement)
        if made := re.match(f"CREATE DATABASE ({NAME}) (WITH .*);", statement):
            a.database, a.create = made[1], made[2]
        elif found:
            a.properties.append(found.groups())
            if found[2].startswith(" OWNER TO "): a.create += found[2][:-1].replace(" TO", "", 1)
    if any(" EXTENSION - timescaledb " in entry for entry in a.entries):
        look_at_timescaledb(a, read)
    return a
# ---- Restore: TimescaleDB ------------------------------------------------------------------------
# The catalog's tables are in the first of these schemas; up to 2.24 bgw_job was in the second.
CATALOG = ("_timescaledb_catalog", "_timescaledb_config")
OF_CATALOG = [f"--schema={schema}" for schema in CATALOG]
NOT_OF_CATALOG = [f"--exclude-schema={schema}" for schema in CATALOG]
SCHEMA = re.compile(r"(\S+ ){3}SCHEMA - ")  # entries of a table of contents, as all of these
FOREIGN_KEY = re.compile(r"(\S+ ){3}FK CONSTRAINT ")
JOBS = re.compile(r"(\S+ ){3}TABLE DATA _timescaledb_(catalog|config) bgw_job ")
# An event trigger may refuse what comes after it; pg_restore itself makes them last, too.
LATE = re.compile(r"(\S+ ){3}(EVENT TRIGGER|MATERIALIZED VIEW DATA|"
                  r"COMMENT .*(CONSTRAINT|EVENT TRIGGER)) ")
OWNER = """SELECT CASE atttypid WHEN 'regrole'::regtype THEN quote_ident(user) ELSE user END
    FROM pg_attribute WHERE attname = 'owner' AND attrelid IN (to_regclass(
    '_timescaledb_catalog.bgw_job'), to_regclass('_timescaledb_config.bgw_job')) LIMIT 1"""
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


def copied(script: str, table: str) -> Copied:
    """The rows of a table of TimescaleDB's catalog in a script of pg_restore."""
    schemas = "|".join(CATALOG)
    head = rf"(?m)^COPY ((?:{schemas})\.{table}) \(([\w, ]+)\) FROM stdin;\n"
    found = re.search(head + r"((?s:.*?))^\\\.$", script)
    if not found:
        return Copied()
    names, lines = found[2].split(", "), found[3].split("\n")[:-1]
    return Copied(found[1], found[2], [dict(zip(names, line.split("\t"))) for line in lines])


def unquoted(identifier: str) -> str:
    """The name that an identifier stands for; a name that is none is itself."""
    if identifier[:1] == '"':
        return identifier[1:-1].replace('""', '"')
    return identifier


def look_at_timescaledb(a: Namespace, read: Callable[..., str]) -> None:
    """Add what restoring TimescaleDB takes: version, schema, jobs, and what has to come late."""
    catalog = read("-a", "-f-", *OF_CATALOG, "-tmetadata", "-thypertable", "-tbgw_job")
    version = re.findall(r"\ntimescaledb_version\t([^\t\n]+)", catalog)
    a.timescaledb = version[0] if version else "?"
    a.jobs = copied(catalog, "bgw_job")
    owners = set(a.jobs.values("owner"))
    a.adopted = {owner for owner in owners if GONE.fullmatch(owner) or "--no-owner" in a.options}
    a.roles |= {unquoted(owner) for owner in owners - a.adopted}

    keys = [entry for entry in a.entries if FOREIGN_KEY.match(entry)]
    extension = [entry for entry in a.entries if " EXTENSION - timescaledb " in entry]
    with listing(extension + keys) as chosen:
        made = statements(read("-f-", chosen))
    schema = re.findall(rf"CREATE EXTENSION [\w ]+ WITH SCHEMA ({NAME});", "\n".join(made))
    a.schema = schema[0] if schema else "public"
    added = [statement for statement in made if statement.startswith("ALTER TABLE ")]
    require(len(added) == len(keys), f"its {len(keys)} foreign keys cannot be told apart")
    a.late = set(filter(LATE.match, a.entries))
    a.late |= pointing_at_hypertables(dict(zip(keys, added)), copied(catalog, "hypertable"))


def pointing_at_hypertables(keys: dict[str, str], hypertables: Copied) -> set[str]:
    """The entries, of all foreign keys with their statements, whose key points at a hypertable.

    With `timescaledb.restoring` on, it finds no rows there, or is not passed on to the chunks;
    with it off, a key *of* a hypertable is refused. One at itself, which only an older table can
    have, is of it. (2.28.3, 2.29.2, 2.30.0-dev)
    """
    names = set(zip(hypertables.values("schema_name"), hypertables.values("table_name")))
    found = set()
    for entry, statement in keys.items():
        key = re.match(rf"(?s)ALTER TABLE (?:ONLY )?({NAME})\.({NAME})\s.* REFERENCES ({NAME})"
                       rf"\.({NAME})\(", statement)
        if key:
            schema, table, *target = map(unquoted, key.groups())
            if tuple(target) in names and (schema, table) not in names:
                found.add(entry)
    return found


def restore_timescaledb(t: Namespace, a: Namespace, many: str, restore_part: Callable[..., None],
                        off: str) -> None:
    """Restore it in the one order that loses no rows, up to timescaledb_post_restore().

    The order was measured with 2.28.3, 2.29.2 and 2.30.0-dev; OFF is for sessions that see all
    rows, MANY the option for several jobs at once.
    """
    with listing(list(filter(SCHEMA.match, a.entries))) as schemas:
        restore_part([schemas])  # the extension may be in one of them
    version = "" if a.timescaledb == "?" else f"VERSION '{a.timescaledb}'"
    # One transaction: between two, the extension's own jobs ran at once.
    psql(t, "Restoring", f"CREATE EXTENSION timescaledb WITH SCHEMA {a.schema} {version};"
         f" SELECT {a.schema}.timescaledb_pre_restore()", options=PUBLIC)
    with listing(list(itertools.filterfalse(SCHEMA.match, a.entries))) as others:
        restore_part(["--section=pre-data", others])

    apart = JOBS if a.adopted else re.compile("$")
    with listing(list(itertools.filterfalse(apart.match, a.entries))) as catalog:
        restore_part(["--section=data", *OF_CATALOG, catalog])
    if a.adopted:
        adopt_jobs(t, a)
    # No dump has this sequence, and attach_tablespace would begin with numbers that are taken.
    psql(t, "Restoring", "SELECT setval(pg_get_serial_sequence('_timescaledb_catalog.tablespace',"
         " 'id'), max(id)) FROM _timescaledb_catalog.tablespace", options=PUBLIC)
    restore_part(["--section=data", *NOT_OF_CATALOG, many])

    with listing([entry for entry in a.entries if entry not in a.late]) as early:
        restore_part(["--section=post-data", many, early])
    with listing([entry for entry in a.entries if entry in a.late]) as late:
        restore_part([many, late], off)


def adopt_jobs(t: Namespace, a: Namespace) -> None:
    """Copy TimescaleDB's jobs; those of `a.adopted` become the restoring role's, and that is said.

    The server may lack such roles, and COPY refuses a regrole that is none. Whose role was gone
    already did not run; it is switched off, lest it runs with more rights than it ever had.
    """
    step, ours, said = "Restoring the jobs", psql(t, "Looking for jobs", OWNER).strip(), []
    with tempfile.NamedTemporaryFile() as script, tempfile.NamedTemporaryFile() as rows:
        run(t, step, ["pg_restore", "--data-only", *OF_CATALOG, "--table=bgw_job",
                      f"--file={script.name}", a.path], connect=False)
        text = script.read().decode("latin-1")  # of whatever encoding: no byte is lost
        encoding = re.findall(r"SET client_encoding = '(\w+)'", text)[0]
        jobs = copied(text, "bgw_job")
        for row, job, owner in zip(jobs.rows, a.jobs.values("id"), a.jobs.values("owner")):
            if owner in a.adopted:
                row["owner"] = ours.replace("\\", r"\\")
                said.append(f"{job} of {unquoted(owner)}")
            if GONE.fullmatch(owner):
                row["scheduled"] = "f"
                said[-1] += " (switched off)"
            rows.write("\t".join(row.values()).encode("latin-1") + b"\n")
        rows.flush()
        psql(t, step, f"\\copy {jobs.table} ({jobs.columns}) FROM '{rows.name}'"
             f" (ENCODING '{encoding}')", options=PUBLIC)
    log("warning", "Jobs of TimescaleDB are the restoring role's now", Role=unquoted(ours),
        Jobs=", ".join(said))


def look_for_needs(server: Namespace, a: Namespace, version: str) -> None:  # or Failure
    has, known = server.versions or [], tuple(f" {role}" for role in ["", *server.roles])
    owned = [] if "--no-owner" in a.options else a.entries  # each ends with its owner
    owners = {x.split()[-1]: x.split(" ", 3)[3] for x in owned if not x.endswith(known)}
    missing = ", ".join([*sorted(a.roles - {*server.roles}), *owners.values()])
    require(not missing, f"the server lacks these roles, or the owners of these: {missing}; "
            "`pg_dumpall --globals-only` writes how to make them, --no-owner goes on without")
    if not a.timescaledb: return
    a.timescaledb = version or a.timescaledb  # an old one's catalog does not say it: "?"
    require(server.preloaded and has and a.timescaledb in ["?", *has], "it takes TimescaleDB "
            f"{a.timescaledb} and its preloading (shared_preload_libraries); preloaded: "
            f"{server.preloaded} (None: no superuser); versions: {', '.join(has) or 'none'}")
def rebuild(t: Namespace, a: Namespace, jobs: int, report: dict[str, Any]) -> None:
    step, many = "Restoring", f"--jobs={jobs}"
    known = "1" in psql(t, step, "SELECT 1 FROM pg_settings WHERE name = 'transaction_timeout'")
    strict = ["--exit-on-error"] * (known or a.client < 17)  # 17 sets it on older servers, too
    def restore_part(part: list[str], options: str = "") -> None:
        try: run(t, step, ["pg_restore", f"--dbname={t.db_database}", "--no-password", *strict,
                           *part, *a.options, a.path], options=options)
        except Failure as error:
            only = str(error).count(": error: ") <= str(error).count('"transaction_timeout"')
            if not (only and re.search("ignored on restore: [12]$", str(error))): raise
    with timed(report, "restore"):
        if a.timescaledb:
            restore_timescaledb(t, a, many, restore_part, ALL_ROWS)
        else: restore_part([many])
def for_each(t: Namespace, step: str, sql: str, options: str) -> tuple[list[list[Any]], int]:
    """Of each table its name, a number and what went wrong, or ""; and the database's size."""
    told = look(t, step, ANSWERS, timeout=FOREVER, options=options, first=sql)
    answers = bytes.fromhex(told.answers).decode("utf-8", "surrogateescape")
    return json.loads(answers), told.size
def analyze(t: Namespace, a: Namespace, report: dict[str, Any]) -> list[str]:
    """Have the planner know the tables. What did not come about, a line each."""
    step = "Not analyzed"
    with timed(report, "analyze"):
        try:
            if a.timescaledb:  # to it, a hypertable in a transaction is all its chunks at once
                psql(t, step, "ANALYZE", FOREVER, f"{ALL_ROWS} {WRITING}")
                return []
            answers, _ = for_each(t, step, ANALYZE, WRITING)
        except Failure as error:
            return [str(error)]
    return [f"{table}: not analyzed: {reason}" for table, _, reason in answers if reason]
def count_rows(t: Namespace, a: Namespace, report: dict[str, Any]) -> list[str]:
    """Put into the report what was restored. What was not counted, a line each."""
    report |= {"tables": a.tables, "database_size": None, "rows": {}}
    options = f"-c row_security=off {ALL_ROWS if a.timescaledb else ''}"  # an error, not a part
    with timed(report, "count"):
        try:
            answers, report["database_size"] = for_each(t, "Not counted", COUNT, options)
        except Failure as error:
            return [str(error)]
    rows, why = dict[str, int](), dict[str, str]()
    for table, number, reason in answers:
        rows[table] = rows.get(table, 0) + number
        if reason:
            why.setdefault(table, reason)
    report["rows"] = {table: rows[table] for table in rows if table not in why}
    return [f"{table}: not counted: {why[table]}" for table in why]
@contextmanager
def new_database(hub: Namespace, name: str, create: str, keep: bool = False) -> Iterator[None]:
    """Make a database. What is not whole, since something raised, is dropped, or kept."""
    psql(hub, "Creating the database", f"CREATE DATABASE {name} {create}", FOREVER)
    try:
        yield
    except BaseException:
        log("warning", "What was restored is not whole", Database=name, Kept=keep)
        try:
            if not keep:
                drop(hub, name)
        except Failure as error:
            log("error", f"It is left on the server: {error}")
        raise
def drop(hub: Namespace, name: str) -> str:
    return psql(hub, "Dropping a database", f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", FOREVER)
# ---- The command restore -------------------------------------------------------------------------
class Target(NamedTuple):
    """The database that a restore makes, and the name that it is to have."""
    hub: Namespace  # from where databases are made and named
    scratch: str  # its name until it is whole, counted and can be named
    name: str  # as the command line has it
    taken: bool  # an empty database bears the name; it will be called before_SCRATCH
    workers: bool  # and has TimescaleDB's extension, so a scheduler
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
def is_there(hub: Namespace, name: str) -> bool:
    """Whether there is such a database. Raises Failure where the server knows no such letters."""
    return psql(hub, "Looking at the server", THERE.format(literal(name))).strip() != "0"
def look_at_target(s: Namespace, name: str) -> Target:
    """What is to be made. Raises Failure if a database with something in it has that name."""
    hub, there = at(s, "postgres"), Namespace(timescaledb=False)
    if taken := is_there(hub, name):
        there = look(at(s, name), "Looking at the database", EMPTY)
        require(there.empty, f"the database {identifier(name)} is there, and not empty: "
                "restore into a new one")
    scratch = f"restore_{int(time.time())}"
    return Target(hub, scratch, name, taken, there.timescaledb)
def naming(new: Target, a: Namespace) -> list[str]:
    """The statements that name it, of one transaction: who connects then sees all rows."""
    statements = [f"ALTER DATABASE {new.scratch} RENAME TO {identifier(new.name)};"]
    if a.timescaledb:  # or a session that connects before post_restore keeps it on for its life
        statements.insert(0, f"ALTER DATABASE {new.scratch} RESET timescaledb.restoring;")
    if new.taken:
        statements.insert(0, f"ALTER DATABASE {identifier(new.name)} RENAME TO "
                          f"before_{new.scratch};")
    return statements
def name_database(new: Target, a: Namespace) -> None:
    """Give it its name, and end the sessions that are in the way. Raises Failure after a minute.

    RENAME has waited 5 s for sessions to end by then, and lets none in meanwhile."""
    names = [new.scratch, new.name] if new.taken else [new.scratch]
    end_others = END_OTHERS.format(", ".join(map(literal, names)))
    end, pauses = time.monotonic() + 60 * TIME_SCALE, backoff()
    while True:
        try:
            psql(new.hub, "Not named", " ".join([f"{end_others};", *naming(new, a)]))
            return
        except Failure:
            if not is_there(new.hub, new.scratch):  # an answer may get lost
                return
            if time.monotonic() > end:
                raise
        time.sleep(next(pauses))
def complete(s: Namespace, new: Target, a: Namespace, pause: bool, report: dict[str, Any]) -> None:
    """Do what pg_restore leaves out, but for the name. What fails is noted in `a.left`.

    Where PAUSE asks for it, the report has then, as SQL, which jobs of TimescaleDB are off."""
    log("info", "What was restored is whole", Database=new.scratch)
    for before, after in a.properties:  # before anybody finds it under its name
        try:
            psql(new.hub, "Not restored", f"{before}{new.scratch}{after}")
        except Failure as error:
            a.left.append(f"{before}…{after} {error}")
    made = at(s, new.scratch)
    a.left += analyze(made, a, report) + count_rows(made, a, report)
    if a.timescaledb and pause:
        try:
            report["paused"] = psql(made, "Jobs not paused", PAUSE_JOBS, options=PUBLIC).strip()
        except Failure as error:
            a.left.append(str(error))
def start_workers(there: Namespace) -> None:
    """Have TimescaleDB's scheduler run in a database. Raises Failure where it does not."""
    name = there.db_database
    answer = psql(there, f"TimescaleDB's scheduler in {name}", START_WORKERS, options=PUBLIC)
    require(answer.strip() == "t", f"TimescaleDB's scheduler does not run in {name}: no worker "
            "is free; see timescaledb.max_background_workers, then start_background_workers()")
def hand_over(s: Namespace, new: Target, a: Namespace, due: dict[str, str], work: bool) -> None:
    """Name what is whole, then, where TimescaleDB is to WORK in it, tell that so.

    Removes from DUE what is done. What fails is noted in `a.left`, and leaves all as it is."""
    try:
        name_database(new, a)
        del due["name"]
        if "work" in due and work:
            psql(at(s, new.name), "timescaledb_post_restore()", POST_RESTORE.format(a.schema),
                 FOREVER, PUBLIC)
            del due["work"]
            start_workers(at(s, new.name))
    except Failure as error:
        a.left.append(str(error))
    if new.workers:
        try:
            start_workers(at(s, new.name if "name" in due else f"before_{new.scratch}"))
        except Failure as error:
            a.left.append(str(error))
def due_for(new: Target, a: Namespace) -> dict[str, str]:
    """What makes of a whole database what its name promises, for `psql -d postgres`."""
    lines = ["BEGIN;", *naming(new, a), "COMMIT;"]
    if new.workers:
        lines += [connecting(f"before_{new.scratch}"), f"{START_WORKERS};"]
    due = {"name": "\n".join(lines)}
    if a.timescaledb:
        due["work"] = f"{connecting(new.name)}\n{POST_RESTORE.format(a.schema)};"
    return due
def swapping(new: Target, a: Namespace) -> str:
    """What puts it in the old one's place, for `psql -d postgres`; "" if it is there."""
    old = unquoted(a.database)
    if old in ("", new.name):
        return ""
    before = f"before_{new.scratch}"
    lines = [f"To put it in the place of {a.database}, while nobody is connected to either:",
             "BEGIN;", f"ALTER DATABASE {a.database} RENAME TO {before};",
             f"ALTER DATABASE {identifier(new.name)} RENAME TO {a.database};", "COMMIT;"]
    if a.timescaledb:
        for name in (old, before):
            lines += [connecting(name), f"{START_WORKERS};"]
    return "\n".join([*lines, ""])
def tell(new: Target, a: Namespace, due: dict[str, str], report: dict[str, Any]) -> None:
    """The command's answer: the rows, what was made, what is left to do by hand."""
    rows, facts = report.get("rows", {}), [f"{a.tables} tables"]
    for table, number in rows.items():
        write(1, f"{number:>14}  {table}\n")
    if size := report.get("database_size"):
        facts += [f"{sum(rows.values())} rows", f"{sum(report['seconds'].values()):.0f} seconds",
                  f"{size} bytes"]
    called = new.scratch if "name" in due else identifier(new.name)
    made = f"Restored {report['object']} into {called}: {', '.join(facts)}"
    lines = [f"{made}; checksum: {report['sha256']}."]
    if new.taken and "name" not in due:
        lines.append(f"The empty one that had this name is called before_{new.scratch} now.")
    if "name" in due:
        lines.append("It is whole. To name it, while nobody is connected to it:")
    elif "work" in due:
        lines.append("It is whole. To have TimescaleDB's jobs run:")
    lines += due.values()
    if paused := report.get("paused"):
        lines += [f"To switch its jobs on, in {identifier(new.name)}:",
                  JOBS_ON.format(a.schema, paused)]
    write(1, "\n".join([*lines, "" if due else swapping(new, a)]))
def finish_restore(s: Namespace, new: Target, a: Namespace, pause: bool,
                   report: dict[str, Any]) -> None:
    """Complete what is whole, hand it over, and tell so: also of what a signal leaves to do."""
    due = due_for(new, a)
    try:
        complete(s, new, a, pause, report)
        hand_over(s, new, a, due, work="paused" in report or not pause)
    except BaseException:
        with suppress(Failure):  # what the server was told last may have come about
            if "name" in due and not is_there(new.hub, new.scratch):
                del due["name"]
        raise
    finally:
        tell(new, a, due, report)
def restore(s: Namespace, options: Namespace) -> int:
    """The command: a new database, whole, or none. Its exit status: 1 if anything is left out."""
    require(0 < len(os.fsencode(options.database)) < 64 and options.jobs > 0 and
            options.database not in ("postgres", "template1"), "impossible --database or --jobs", 2)
    report: dict[str, Any] = {"object": options.file, "sha256": "absent", "seconds": {}}
    server = look(at(s, "postgres"), "Looking at the server", SERVER)
    new = look_at_target(s, options.database)
    with (open(options.file, "rb") if options.file else
          tempfile.TemporaryFile(dir=s.backup_path)) as file:
        known = {} if options.file else fetch(s, S3(s, 60), options.name, file, report)
        a = look_at_archive(s, named(file), SCRATCH[:2] * options.no_owner)
        look_for_needs(server, a, known.get("timescaledb", ""))
        with new_database(new.hub, new.scratch, a.create, options.keep):
            rebuild(at(s, new.scratch), a, options.jobs, report)
    finish_restore(s, new, a, options.pause_jobs, report)  # from here on nothing drops it
    for text in a.left:
        log("error", text)
    return 1 if a.left else 0
# ---- The command verify --------------------------------------------------------------------------
def verify(s: Namespace, name: str, wait: bool) -> dict[str, Any]:  # its report
    s3, report = S3(s), dict[str, Any]()
    with staging(s, wait), tempfile.TemporaryFile(dir=s.backup_path) as file:
        try: prove(s, fetch(s, s3, name, file, report, s.db_database), named(file), report)
        except Failure as error:
            if report.get("step") in (None, "download") or " connection " in str(error): raise
            report["verdict"] = f"failed: {error}"
        try: remember(s3, os.path.basename(report["object"]), report["verdict"])
        except Failure as error: log("warning", "Cannot note the verdict", Error=error)
    return report
def prove(s: Namespace, metadata: dict[str, str], path: str, report: dict[str, Any]) -> None:
    unproven = report["not_proven"] = ["what no dump holds: roles, other databases"]
    if "sha256" not in metadata: unproven.append("that no bit of its data flipped: no checksum")
    with timed(report, "read"):
        a = look_at_archive(s, path, SCRATCH)
        report |= {"archive_version": a.format, "tables": a.tables}
        known = metadata.get("tables", str(a.tables))
        require(known == str(a.tables), f"it lists {a.tables} tables, at backup time {known}")
        run(s, "Reading the archive", ["pg_restore", "--file=/dev/null", path], connect=False)
    report["verdict"] = "readable"
    if not s.verify_db_host: return unproven.append("that it restores: VERIFY_DB_HOST is not set")
    hub, server = at(s, "postgres", "verify_db"), drop_scratch(s)
    look_for_needs(server, a, metadata.get("timescaledb", ""))
    scratch = next(name for name in map("verify_{}".format, itertools.count(int(time.time())))
                   if name not in server.limits)
    create = re.sub(f" TABLESPACE = {NAME}", "", a.create)
    with new_database(hub, scratch, f"{create} CONNECTION LIMIT {s.mark}"):
        rebuild(made := at(s, scratch, "verify_db"), a, 1, report)
        unproven += (missed := count_rows(made, a, report))
    drop(hub, scratch); report["verdict"] = "restored"
    if missed: report["verdict"] = "restored, not all counted"
    unproven.append("owners, privileges, tablespaces, publications: restored without")
    if a.jobs.rows: unproven.append(f"the owners of {len(a.jobs.rows)} jobs of TimescaleDB")
    if a.timescaledb: unproven.append("timescaledb_post_restore(), which starts the policies")
def drop_scratch(s: Namespace) -> Namespace:  # what a crash of `verify` left; the server
    server = look(hub := at(s, "postgres", "verify_db"), "Looking at the server", SERVER)
    for name, limit in server.limits.items():
        if limit in (s.mark, -2) and re.fullmatch("verify_[0-9]+", name): drop(hub, name)
    return server
def verified(s3: S3) -> dict[str, dict[str, str]]:  # PREFIX/verified.json
    with allowing(404), suppress(ValueError, TypeError, KeyError, AttributeError):
        return {name: {"verdict": str(was["verdict"]), "time": str(was["time"])} for name, was in
                json.loads(s3.call("get_object", Key=s3.key("verified.json"))).items()}
    return {}
def remember(s3: S3, name: str, verdict: str) -> None:  # and forget what retention removed
    known, there = verified(s3), {os.path.basename(f.key) for f in s3.backups()}
    known[name] = {"verdict": verdict, "time": moment(int(time.time()))}
    text = json.dumps({name: known[name] for name in sorted(there & set(known))}, indent=4)
    s3.put(s3.key("verified.json"), text.encode())
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
        if not pipe or not select.select([pipe], [], [], 1)[0]: return False
        data = os.read(pipe.fileno(), 65536)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"#"):
                level, text = json.loads(line[1:])
                self.news.append(text)
                if level == "error": self.errors.append(text)
            else: self.result += line + b"\n"
        return not data and self.child.wait() is not None
class Cron(typing.NamedTuple):
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
                found.append(Cron(str(cron["cronid"]), str(cron["name"]),
                                  str(cron["cronexpression"]), names, ids))
    return sorted(found)
def signal_name(number: int) -> str:
    """A signal's name; real-time ones have none, only a number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
class Executor:  # has each process done by a child, closes it; its state follows the answers
    def __init__(self, s: Namespace):
        self.s, host, port = s, s.colonies_server_host, s.colonies_server_port
        self.url = f"http{'s' * s.colonies_tls}://{f'[{host}]' if ':' in host else host}:{port}/api"
        self.tls = (ssl.create_default_context(cafile=s.colonies_ca_file or None) if s.colonies_tls
                    else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))  # for http: 2 MB of authorities
        if s.colonies_insecure_skip_verify:
            self.tls.check_hostname, self.tls.verify_mode = False, ssl.CERT_NONE
        self.name, self.type = s.colonies_executor_name, s.colonies_executor_type
        self.database = f"{s.db_host}:{s.db_port}/{s.db_database}"
        self.colony = {"colonyname": s.colonies_colony_name, "colonyid": s.colonies_colony_id}
        self.take_keys(s); self.joined: bool | None = None  # None: never yet
        self.times = dict[str, float]()  # when what is due again
        self.queue = dict[str, Mapping[str, Any]]()  # assigned to us; the one at work, too
        self.done = dict[str, dict[str, Any]]()  # what to close with: `out` or `errors`
        self.satisfied = 0, ""  # when the newest backup's process started, and its result
        # How often a process's child was killed. A journal counts it, too, over our restarts; but a
        # child may be killed before it has one.
        self.deaths = collections.Counter[str]()
        self.alone = False  # at the last look at the crons no other executor of our type was there
        self.warned = set[str]()  # of crons, once each
    def take_keys(self, s: Namespace) -> None:  # they may have changed since
        self.owner: int | None = s.colonies_colony_prvkey
        self.key: int = s.colonies_executor_prvkey or own_key(
            s.colonies_colony_prvkey, s.colonies_colony_name or s.colonies_colony_id, self.name)
        self.id = identity(self.key)
        self.names = {"executorname": self.name, "executorid": self.id, **self.colony}
    def call(self, msgtype: str, within: float = 15, key: int = 0, **fields: Any) -> Any:
        return ask(self.url, self.tls, key or self.key, within, {"msgtype": msgtype, **fields})
    def due(self, what: str, seconds: float) -> bool:  # true once in so many seconds
        if due := time.monotonic() >= self.times.get(what, 0):
            self.times[what] = time.monotonic() + seconds * TIME_SCALE
        return due
    def serve(self) -> None:  # what a crash left at VERIFY_DB_HOST goes first
        self.job: Job | None = Job("backup", "--resume") if self.s.verify_db_host else None
        pauses, alive = backoff(), self.s.backup_alive_file
        while not signals:
            with suppress(OSError), open(alive, "a", opener=guarded) as f: os.utime(f.fileno())
            try:
                if self.job and self.job.ended():
                    with suppress(Failure): self.tell(self.job)
                    self.conclude(self.job)
                if not (self.job or self.queue) and self.due("resume", 300) and any(
                        x.pending() or os.path.exists(x.partial) for x in journals(self.s)):
                    self.job = Job("backup", "--resume")
                if not self.joined: self.join()
                elif self.job: self.attend(self.job)
                elif self.queue: self.see_to(min(self.queue, key=lambda name: (
                    name not in self.done, self.spec(name)[0] != "backup", self.rest(name))))
                else: self.idle()
                pauses = backoff()
                if self.times.pop("complain", 0): log("info", "Colonies is back")
            except Exception as error:  # whatever a server sends: a running dump goes on
                status = getattr(error, "status", 1)  # odd is as refused: it waits
                again = getattr(error, "again", not isinstance(error, OSError))
                if not again and self.joined is None: raise
                if self.due("complain", 60):
                    log("error" if status or not again else "warning", f"{error}; trying again ...")
                self.joined = self.joined and status != 403
                self.times |= dict.fromkeys(["watch"] if status else ["watch", "look", "cron"], 0)
                time.sleep(next(pauses))
    def join(self) -> None:  # be known to the colony, approved, and announced
        self.take_keys(read_settings(os.environ, serve=True))
        executor, announced = self.names | {"executortype": self.type}, None
        if not self.known():
            text = f"Colonies does not know executor {self.name!r}, id {self.id}: approve it"
            if not self.owner: raise Failure(f"{text}, or set COLONIES_COLONY_PRVKEY", 403, True)
            with allowing(400, 403): self.call("addexecutormsg", key=self.owner, executor=executor)
            with allowing(403, 500): self.call("approveexecutormsg", key=self.owner, **self.names)
            require(self.known(), f"Colonies: the executor name {self.name!r} belongs to another "
                    "key (set COLONIES_EXECUTOR_NAME), or COLONIES_COLONY_PRVKEY is no owner's")
        with allowing(*range(400, 600)): announced = self.call("getfunctionsmsg", **self.names)
        for name in sorted(FUNCTIONS.keys() - {known["funcname"] for known in announced or []}):
            fun = executor | dict.fromkeys(("desc", "description"), FUNCTIONS[name])
            with allowing(403): self.call("addfunctionmsg", fun=fun | {"funcname": name})
        self.joined = True
        self.times["cron"] = 0  # while we were away another may have taken it for a former one's
        log("info", "Waiting for processes ...", Executor=self.name, ExecutorId=self.id)
    def known(self) -> Any:  # give a sign of life (nothing needs less than no CPU)
        with allowing(403): return self.assign(timeout=-1, availablecpu="-1m") is not None
    def assign(self, **fields: Any) -> bool:  # take in what comes, asked for or not
        with allowing(404):
            process = self.call("assignprocessmsg", 25, **fields, **self.colony)
            return bool(self.queue.setdefault(str(process["processid"])[:99], process))
        return False
    def running(self) -> dict[str, Any]:
        asked = {"state": RUNNING, "count": 100, "executortype": self.type, **self.colony}
        return {str(x["processid"])[:99]: x for x in self.call("getprocessesmsg", **asked) or []
                if x["assignedexecutorid"] == self.id}
    def idle(self) -> None:  # find or wait for a process, never flooding; see to the cron
        if self.due("look", 60): self.queue |= self.running()  # lost answers', an earlier run's
        if self.due("cron", 3600): self.see_to_crons()
        if self.queue or self.assign(timeout=10): return
        self.satisfied = 0, ""  # what it could satisfy has come, so an odd time does no harm
        if not self.due("poll", 1): time.sleep(1)
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
        return {str(x["executorname"]) for x in self.call("getexecutorsmsg", **self.colony) or []
                if x["executortype"] == self.type and x["state"] in (0, 1)  # pending, approved
                and self.name != x["executorname"]}
    def odd_crons(self, listed: list[Any], others: set[str]) -> list[str]:
        """What to tell of crons by which a database among several may get no backup."""
        said, there = list[str](), ", ".join(sorted(others)[:5])
        if not others:
            return said
        for cron in [c for f in FUNCTIONS for c in plain_crons(listed, f, self.type)]:
            if not cron.names + cron.ids:
                fault = (f"names no executor, and {there} of type {self.type!r} may take what it "
                         "submits: with several databases some get no backup")
            elif cron.names and not (others | {self.name}).intersection(cron.names):
                fault = f"names {cron.names[0]!r}, which is not in the colony"
            else:
                continue
            said.append(f"Colonies: the cron {cron.name!r} {fault}. If that is not meant, remove it"
                        f" (colonies cron remove --cronid {cron.id}): within an hour each executor "
                        "with BACKUP_CRON has its own")
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
        return any(cron.name == name and cron.names == [self.name]
                   for cron in plain_crons(listed, function, self.type))
    def add_cron(self, function: str, name: str, wanted: str, outdated: list[Cron]) -> None:
        """Add it under NAME, or NAME-EXECUTOR where that is somebody else's; or Failure.

        A name is one cron's in a colony (2026), in all of them (2023). The server looks at that
        last: only when all else of the new cron is right an OUTDATED one goes, for its name.
        """
        node = {"nodename": function, "funcname": function, "conditions": {
            "executortype": self.type, "executornames": [self.name], "executorids": [self.id],
            **self.colony}}
        cron = {"cronexpression": wanted, "interval": -1, "random": False, **self.colony,
                "workflowspec": json.dumps({"functionspecs": [node], **self.colony})}
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
        raise Failure(f"Colonies: the cron names {name!r} and \"{name}-{self.name}\" are taken by "
                      f"others: set {function.upper()}_CRON_NAME", 409, again=True)
    def remove(self, what: str, **message: Any) -> None:
        for verb in ("remove", "delete"):  # 2026, 2023
            with allowing(403): self.call(f"{verb}{what}msg", **message)
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
        if state > RUNNING: self.forget(name)
        elif state != RUNNING: del self.queue[name]  # what is done stays so, should it come back
        elif name in self.done: self.close(name)
        elif kwargs or not re.fullmatch(ARGUMENTS.get(funcname, ""), json.dumps(args)):
            self.fail(name, f"no function {funcname!r} with such arguments, only {FUNCTIONS}")
        elif funcname == "backup" and 0 < submitted <= self.satisfied[0]:
            log("info", "A backup begun after this request satisfies it", ProcessId=name,
                Database=self.database)
            self.done[name] = {"out": [self.satisfied[1]]}
        elif funcname == "verify" and self.assign(timeout=-1): pass  # one that may go before it
        elif self.rest(name):
            if self.due("watch", 60): self.known()
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
        if not self.due("watch", 60): return self.tell(job)
        self.known()
        state = self.standing(job.id) if job.id else RUNNING
        while state == WAITING and len(self.queue) < 100 and self.assign(timeout=-1):
            state = self.standing(job.id)  # it was taken from us: have it back, whatever else comes
        if state not in (RUNNING, WAITING, UNKNOWN):
            log("warning", "Stopping what was cancelled, failed or given away", ProcessId=job.id)
            stop(job.child, signal.SIGUSR1, 6); self.job = None
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
                self.fail(name, f"killed three times, at last by {killer}: is the memory limit "
                          "low?", *job.errors)
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
        try: self.call(f"close{how}msg", within, processid=name, **self.done[name])
        except Failure as refused:
            if refused.status < 2: raise
            log("warning", "Cannot close the process", ProcessId=name, Error=refused)
            del self.queue[name]
        else: self.forget(name)
    def forget(self, name: str) -> None:  # it is closed: nobody needs what was kept for it
        log("info", "Closed process", ProcessId=name)
        del self.queue[name]; self.done.pop(name, None)
        del self.deaths[name]; self.times.pop(f"again {name}", None)
        for journal in journals(self.s):
            if journal.get("process") == name and not journal.pending(): journal.remove()
    def leave(self) -> None:  # hand back, deregister; within 10 s
        stopped = {} if self.owner else {"errors": ["the executor was stopped"]}
        try:
            if job := self.job:
                stop(job.child, signal.SIGTERM, 6)
                if not job.child.returncode and any(job.ended() for _ in (1, 2)): self.conclude(job)
            for name in list(self.queue)[:5]:  # deregistering hands back what is not done
                if self.done.setdefault(name, stopped): self.close(name, 0.5)
            if self.owner: self.remove("executor", within=1, key=self.owner, **self.names)
        except (Failure, ValueError) as error: log("warning", "Could not take leave", Error=error)
# ---- Commands ------------------------------------------------------------------------------------
def moment(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(min(seconds, 2**37)).astimezone().isoformat()
def list_backups(s: Namespace, as_json: bool) -> None:
    s3, form = S3(s, 10), "{:<24} {:<26} {:>14} {:<9} {:<9} {:<36} {}"
    found, went = s3.backups(), verified(s3)
    doubts = set[str]().union(*map(doubtful, by_database(found).values()))
    rows = [{"name": (name := os.path.basename(f.key)), "time": moment(f.seconds), "size": f.size,
             "checksum": "sha256" in (f.metadata or {}), "doubtful": f.key in doubts,
             "verified": went.get(name), "database": urllib.parse.unquote(
                 (f.metadata or {}).get("database", "")) or None} for f in reversed(found)]
    lines = [form.format("NAME", "TIME", "SIZE", "CHECKSUM", "DOUBTFUL", "VERIFIED", "DATABASE")]
    for name, when, size, *facts, proof, database in (row.values() for row in rows):
        how = f"{proof['verdict'].partition(':')[0]} {proof['time']}" if proof else "-"
        lines.append(form.format(name, when, size, *("yes" if fact else "no" for fact in facts),
                                 quoted(how).strip('"'), quoted(database or "-")))
    write(1, (json.dumps(rows, indent=4) if as_json else "\n".join(lines)) + "\n")
# `next` is NULL for a job that has not run yet: it starts at once.
NEXT_JOBS = """SELECT json_build_object(
    'may_hold_off', coalesce(has_table_privilege(
        to_regclass('_timescaledb_catalog.compression_settings'), '{}'), false),
    'jobs', (SELECT coalesce(json_agg(json_build_object(
            'name', concat_ws(' ', proc_name, job_id, 'of ' || hypertable_name),
            'next', extract(epoch FROM nullif(next_start, '-infinity')),
            'every', extract(epoch FROM schedule_interval)) ORDER BY job_id), '[]')
        FROM timescaledb_information.jobs WHERE scheduled AND job_id >= 1000))"""
def look_at_jobs(s: Namespace, server: Namespace, backups: list[Found]) -> tuple[str, str]:
    """What TimescaleDB's jobs and our dumps do to each other, in words; "note" if there is any.

    backups: this database's; the newest one's hour and duration are taken for those of the next.
    """
    enough = "UPDATE, DELETE, TRUNCATE"  # any of them allows LOCK TABLE … IN SHARE MODE
    if int(re.split(r"\D", server.postgresql)[0]) >= 17:
        enough += ", MAINTAIN"
    there = look(s, "Looking at the jobs", NEXT_JOBS.format(enough))
    texts = []
    if not there.may_hold_off:
        texts.append(f"{s.db_user} may not hold compression off while pg_dump takes its locks (see "
                     "README, Least privileges): a dump that it disturbs is made again")
    newest = backups[-1] if backups else Found(0, "", 0, None)
    took = int((newest.metadata or {}).get("exectime-backup", 0))
    names = [job["name"] for job in there.jobs if meets(job, newest.seconds, took)]
    if names:
        texts.append(f"these start while a dump like the newest one ({took} seconds) runs, and may "
                     f"wait for it, and readers of their tables behind them: {', '.join(names)}")
    return "; ".join(texts) or f"none of {len(there.jobs)} starts while a dump runs", (
        "note" if texts else "ok")
def meets(job: Mapping[str, Any], began: int, took: int) -> bool:
    """Whether a job starts in the seconds that a dump takes that begins at that time each day."""
    if not began or job["next"] is None:
        return bool(began)
    period: float = min(job["every"] or 86400, 86400)
    into: float = (job["next"] - began) % period  # seconds after a dump's beginning
    return into <= took
def check(s: Namespace, max_age: float | None) -> int:  # a line for each peer; exit status
    server, backups, failed = Namespace(size=0, system_identifier=""), list[Found](), list[str]()
    @contextmanager
    def trying(name: str) -> Iterator[Callable[..., None]]:
        def say(text: str, mark: str = "ok") -> None:
            write(1, f"{mark:<5} {name}: {' '.join(text.split())}\n")
        try: yield say
        except Exception as error:
            failed.append(name); say(str(error), "FAIL")
    with trying("settings") as say: say(f"{len(SETTINGS)} looked at")
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
        else: say("COLONIES_SERVER_HOST is not set; `serve` needs it, `backup` does not")
    with trying("database") as say:
        server = look_at_database(s)
        say(f"{server.database} ({server.size} bytes), PostgreSQL {server.postgresql}, TimescaleDB "
            f"{server.timescaledb or 'none'}, pg_dump {server.pg_dump}")
    with trying("left out") as say:
        there = look(s, "Counting", SERVER)  # of its databases three are templates and ours
        say(f"no backup holds the server's {sum(x[:3] != 'pg_' for x in there.roles)} roles ("
            f"pg_dumpall --globals-only does) or its {len(there.limits) - 3} other databases")
    with trying("bucket") as say:
        s3, text = S3(s, 10), os.urandom(32)
        key = s3.key(f"check_{text[:8].hex()}")
        s3.put(key, text)
        try: same = s3.call("get_object", Key=key) == text
        finally: gone = s3.call("delete_object", Key=key)
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
def command_line() -> Any:  # an argparse.ArgumentParser
    import argparse  # not at the top: an idle executor does without its 1.6 MB
    told = "".join(f"\n  {x.name}{f' [{x.also}]' * bool(x.also)}{' *' * (x.kind in SECRET)}"
                   f"{f' = {x.default}' * bool(x.default)}\n      {x.meaning}" for x in SETTINGS)
    parser = argparse.ArgumentParser("backup_executor.py", None, (__doc__ or "").partition("\n")[0],
        "environment variables ([another spelling]; * a secret: NAME_FILE may name its file; = its "
        f"default; libpq's apply too):{told}", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="command", metavar="command")
    verbs.add_parser("serve", help="wait for processes from Colonies and run them (the default)")
    verbs.add_parser("backup", help="one backup now, no Colonies; prints the result").add_argument(
        "--resume", action="store_true", help="make no dump, only finish what earlier runs left")
    verbs.add_parser("list", help="the backups").add_argument("--json", action="store_true")
    verbs.add_parser("check", help="try every setting and every peer").add_argument(
        "--max-age", type=float, metavar="HOURS", help="fail if the newest proven one is older")
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
        signals.append(signum); raise Stop(signum)
def main() -> int:
    told, serving = json.loads(os.environ.get("BACKUP_PROCESS", "{}")), not sys.argv[1:]
    options = Namespace(command="serve")
    if not serving: command_line().parse_args(None, options)
    command, status = options.command or "serve", 0; os.umask(0o077)  # dumps are nobody else's
    with suppress(OSError, ValueError): resource.setrlimit(resource.RLIMIT_CORE, (1, 1))  # no core
    for signum in SIGNALS: signal.signal(signum, on_signal)
    try:
        colonies = command == "check" and bool(os.environ.get("COLONIES_SERVER_HOST"))
        s = read_settings(os.environ, command == "serve" or colonies, not vars(options).get("file"))
        for name in ("COLONIES_INSECURE_SKIP_VERIFY", "AWS_S3_INSECURE_SKIP_VERIFY"):
            if getattr(s, name.lower()): log("warning", f"{name}: any certificate is accepted")
        if command == "list": list_backups(s, options.json)
        elif command == "check": status = check(s, options.max_age)
        elif command == "restore": status = restore(s, options)
        elif command == "serve":
            executor = Executor(s)
            with suppress(Stop): executor.serve()
            executor.leave()
        elif answer := (backup(s, options.resume, **told) if command == "backup" else
                        verify(s, options.name, wait=bool(told))):
            write(1, json.dumps(answer, indent=4) + "\n")
            failed = answer.get("verdict", "").startswith("failed")
            require(not failed, f"{answer.get('object')}: {answer.get('verdict')}")
        return status
    except Failure as error:
        log("error", str(error)); return 2 if error.status == 2 else 1
    except OSError as error: log("error", f"{error.filename or 'I/O'}: {error.strerror or error}")
    except Stop as stopped: log("warning", f"stopped by {signal.Signals(stopped.args[0]).name}")
    except Exception as error:  # a peer answered what nothing here expects
        import traceback  # only here: 0.2 MB
        log("error", repr(error)[:999], At=[n for _, n in traceback.walk_tb(error.__traceback__)])
    return 1
if __name__ == "__main__":
    while os.open(os.devnull, os.O_RDONLY) < 3: pass  # else a file gets the number of a closed log
    if sys.orig_argv[2:] in ([], ["serve"]):  # go on from bytecode: compiling leaves 5 MB behind
        with suppress(Exception), open(os.memfd_create("bytecode", 0), "wb", buffering=0) as f:
            f.write(importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(sys._getframe().f_code))
            open(path := f"/proc/self/fd/{f.fileno()}").close()  # else it goes on as it is
            os.execve(sys.executable, [sys.executable, "-X", __file__, path, *sys.argv[1:]],
                      {"MALLOC_ARENA_MAX": "1"} | os.environ)
    if sys.path[0] == "/": sys.path[0] = os.path.realpath(main.__code__.co_filename + "/..")
    os._exit(main())  # threads may still be sending after a failure: there is no use in waiting
