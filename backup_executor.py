#!/usr/bin/env python3
"""Colonies Backup Executor: PostgreSQL and TimescaleDB backups in S3, run by Colonies.

Beside a database runs `python backup_executor.py`. Colonies assigns it a process `backup`; it
    1. runs `pg_dump -Fc` to a local volume and reads the archive's table of contents back,
    2. uploads the file to an S3 bucket, every part with its checksum, and asks S3 what it has,
    3. removes the local file and then, never before, the backups beyond the newest few,
    4. closes the process with a JSON result, or with what went wrong.
A finished dump is not thrown away because S3 or Colonies is away: it is uploaded and reported when
they are back, also after a crash. Nothing partial is ever seen under a final name, and nothing is
removed that is not provably an old backup of this very database. By hand, without Colonies:
`backup`, `list`, `check`; `--help` has every setting. Needs pg_dump, pg_restore and psql, and boto3
for S3 alone. It reads in the order in which things happen.
"""
from __future__ import annotations
import argparse, base64, collections, ctypes, datetime, fcntl, functools, hashlib  # noqa: E401
import hmac, http.client, itertools, json, os, random, re, select, signal, ssl  # noqa: E401
import subprocess, sys, tempfile, threading, time, urllib.parse, urllib.request  # noqa: E401
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import SimpleNamespace as Namespace
from typing import Any
__version__ = "1.0.0"
MIB, GIB, UTF8 = 1 << 20, 1 << 30, ("utf-8", "replace")
PATIENCE = 15 * 60  # seconds for which an S3 server that is away is waited for
LOCK_WAIT = "300s"  # pg_dump gives up where it can't lock a table for so long
TIME_SCALE = float(os.environ.get("BACKUP_TIME_SCALE") or 1)  # of all intervals, for tests

class Failure(Exception):
    """What failed, and where. `status`: the peer's, or 2: settings. `again`: trying may help."""
    def __init__(self, text: str, status: int = 0, again: bool = False):
        super().__init__(text)
        self.status, self.again = status, again

class Stop(BaseException): """A signal, the argument, asks for the end."""

def require(fact: object, otherwise: str, status: int = 0) -> None:
    """Failure with that text unless the fact is true."""
    if not fact: raise Failure(otherwise, status)

@contextmanager
def allowing(*statuses: int) -> Iterator[None]:
    """Go on after a Failure with one of these statuses."""
    try: yield
    except Failure as error:
        if error.status not in statuses: raise

def in_time(seconds: float, work: Callable[[], Any]) -> Any:
    """What `work` returns, or TimeoutError, also where a peer trickles bytes or DNS hangs."""
    ended: list[tuple[Any, BaseException | None]] = []  # a thread that is left behind ends itself
    def attempt() -> None:
        try: ended.append((work(), None))
        except BaseException as error: ended.append((None, error))
    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    answer, error = ended[0] if ended else (None, TimeoutError("no complete answer in time"))
    if error: raise error
    return answer

def backoff() -> Iterator[float]:
    """Seconds to wait before the next try: doubling to 30, jittered."""
    for tries in itertools.count():
        yield min(0.5 * 2 ** min(tries, 6), 30) * random.uniform(0.5, 1) * TIME_SCALE

# ---- The log -------------------------------------------------------------------------------------
LEVELS = ("debug", "info", "warning", "error")
log_level = "info"
def quoted(value: object) -> str:
    """A value as logrus writes it: on one line, whatever it holds."""
    text = json.dumps(str(value), ensure_ascii=False)
    return text[1:-1] if re.fullmatch(r'"[A-Za-z0-9._/@^+-]+"', text) else "".join(
        c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)

def log(level: str, message: str, **fields: object) -> None:
    """Write one line, as logrus writes text; a child of `serve` tells it on stdout, too."""
    more = "".join(f" {name}={quoted(value)}" for name, value in fields.items())
    if "BACKUP_PROCESS" in os.environ and level != "debug":
        write(1, f"#{json.dumps([level, message + more])}\n")
    if LEVELS.index(level) >= LEVELS.index(log_level):
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        line = f'time="{now}" level={level} msg={quoted(message)}{more}\n'
        write(2, "\r\x1b[K" * os.isatty(2) + line)
def write(fd: int, text: str) -> None:
    with suppress(OSError):  # whoever read it is gone: no reason to stop a backup
        os.write(fd, text.encode("utf-8", "backslashreplace"))

def progress(what: str, total: int) -> Callable[[int], None]:
    """A function to call with the bytes done: it logs every 30 s, or draws a bar on a terminal."""
    begun = shown = time.monotonic()
    def show(done: int) -> None:
        nonlocal shown
        now = time.monotonic()
        rate = f"{done / MIB / (now - begun + 0.001):.1f} MiB/s"
        if os.isatty(2) and "BACKUP_PROCESS" not in os.environ:
            bar = "#" * int(30 * min(done / (total or sys.maxsize), 1))
            write(2, f"\r\x1b[K{what} [{bar:<30}] {done // MIB} of {total // MIB} MiB, {rate}")
        elif now - shown >= 30 * TIME_SCALE:
            shown = now
            of = f"about {total} bytes" if total else "unknown"
            log("info", what, Size=f"{done} bytes", Of=of, Rate=rate)
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
BACKUP_COMPRESSION||compression|auto|as for `pg_dump --compress`; auto: zstd from pg_dump 16 on
BACKUP_ALIVE_FILE||text||touched while all is well; else `alive` in the temporary folder
LOG_LEVEL||level|info|debug, info, warning or error
""".strip().splitlines()]
SECRET = ("secret", "token", "key")  # the kinds for which NAME_FILE may name a file
KINDS: dict[str, tuple[str, str, Callable[[str], Any]]] = {  # pattern, what that is, conversion
    "text": ("(?s).*", "", str), "secret": (r"[^\0]*", "free of NUL", str),
    "token": ("[!-~]+", "of printable ASCII characters alone", str),
    "file": ("(?s).*", "", lambda path: ssl.create_default_context(cafile=path) and path),
    "key": ("(?s).*", "", lambda text: private_key(text)),
    "flag": ("(?i)true|1|yes|false|0|no", "true or false", lambda text: text.lower()[0] in "t1y"),
    "port": ("[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]",
             "a port", int), "count": ("[1-9][0-9]{0,8}", "a number of at least 1", int),
    "host": (r"[^\s/@?#\[\]]+", "a host name or address", str),
    "server": (r"(?i)(https?://)?([^\s/@?#:]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?/?",
               "host[:port] or the URL of a server", str),
    "compression": (r"auto|none|[0-9]|(gzip|lz4|zstd)(:[0-9a-z=,]+)?", "auto or method:level", str),
    "level": ("|".join(LEVELS), "one of " + ", ".join(LEVELS), str)}

def private_key(text: str) -> int:
    """64 hex digits to a number from 1 to n-1. ValueError does not repeat them."""
    if not re.fullmatch("[0-9a-fA-F]{64}", text) or not 0 < int(text, 16) < ORDER:
        raise ValueError("is not a private key: 64 hex digits, from 1 to the curve's order - 1")
    return int(text, 16)

def parsed(setting: Setting, environ: Mapping[str, str]) -> Any:
    """A setting's value from the environment, or from the file that holds a secret."""
    names = [name for name in (setting.name, setting.also) if name]
    text = next((environ[name] for name in names if environ.get(name)), setting.default)
    file = next((f"{name}_FILE" for name in names if environ.get(f"{name}_FILE")), "")
    if file and setting.kind in SECRET:
        if text: raise ValueError(f"and {file} are both set")
        with open(environ[file], encoding="utf-8", newline="") as opened:
            text = opened.read(MIB).removesuffix("\n")
    pattern, what, convert = KINDS[setting.kind]
    if re.search("[\ud800-\udfff]", text): raise ValueError("is not UTF-8 text")
    if text and not re.fullmatch(pattern, text): raise ValueError(f"is not {what}")
    return convert(text) if text else None if setting.kind == "key" else ""

def read_settings(environ: Mapping[str, str], serve: bool = False) -> Namespace:
    """Settings as attributes in lower case: int, bool, keys int or None, else text, maybe empty."""
    s, wrong = Namespace(**{setting.name.lower(): None for setting in SETTINGS}), dict[str, str]()
    for setting in SETTINGS:
        try: setattr(s, setting.name.lower(), parsed(setting, environ))
        except (OSError, ValueError) as error:
            wrong[setting.name] = "cannot be read: " * isinstance(error, OSError) + str(error)
    keys = ["AWS_S3_ACCESS_KEY", "AWS_S3_SECRET_ACCESS_KEY"]
    needed = ["AWS_S3_BUCKET_NAME", *(keys if any(getattr(s, key.lower()) for key in keys) else [])]
    if serve:
        needed += ["COLONIES_SERVER_HOST", "COLONIES_SERVER_PORT", "COLONIES_COLONY_NAME or "
                   "COLONIES_COLONY_ID", "COLONIES_COLONY_PRVKEY or COLONIES_EXECUTOR_PRVKEY"]
    wrong |= {names: "is missing" for names in needed if not any(
        getattr(s, name.lower()) or name in wrong for name in names.split(" or "))}
    require(not wrong, "settings: " + "; ".join(f"{name} {wrong[name]}" for name in wrong), 2)
    s.aws_s3_prefix = s.aws_s3_prefix.strip("/")
    s.colonies_executor_name = s.colonies_executor_name or f"backup-{os.uname().nodename}"
    s.journals = f"colonies-backup-executor/1 {s.db_host}:{s.db_port}/{s.db_database}"
    s.backup_alive_file = s.backup_alive_file or os.path.join(tempfile.gettempdir(), "alive")
    if s.aws_s3_endpoint and "://" not in s.aws_s3_endpoint:
        s.aws_s3_endpoint = f"http{'s' * s.aws_s3_secure}://{s.aws_s3_endpoint}"
    return s

def redacted(s: Namespace, said: object) -> str:
    """What others said, without our secrets. (Our own sentences never hold one.)"""
    text = str(said).replace("\0", "").strip()
    for secret in (s.db_password, s.aws_s3_access_key, s.aws_s3_secret_access_key):
        for form in (secret, repr(secret)[1:-1], urllib.parse.quote(secret, safe="")):
            text = text.replace(form, "***") if len(secret) > 3 else text
    return text

# ---- Programs ------------------------------------------------------------------------------------
def start(argv: Sequence[str], env: Mapping[str, str], **more: Any) -> subprocess.Popen[bytes]:
    """Start a program, from a list and never by a shell. It dies with us, even by kill -9."""
    parent, libc = os.getpid(), ctypes.CDLL(None)
    def die_with_parent() -> None:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent: os._exit(1)
    return subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            preexec_fn=die_with_parent, start_new_session=True, **more)

def stop(program: subprocess.Popen[bytes], signum: int = signal.SIGTERM, grace: float = 4) -> None:
    program.send_signal(signum)
    with suppress(subprocess.TimeoutExpired): program.wait(grace)
    program.kill()
    program.wait()

def run(s: Namespace, step: str, argv: Sequence[str], *, connect: bool = True, options: str = "",
        timeout: float = float("inf"), tick: Callable[[], None] = lambda: None) -> str:
    """Run one of PostgreSQL's programs; what it printed. `tick`, each second, may end it."""
    kept = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
    ours = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGUSER", "PGSERVICE")  # DB_HOST … say these
    # No secret but the password, and that only if it connects.
    env = {name: value for name, value in os.environ.items() if name in kept or (name.startswith(
        ("LC_", "PG") if connect else "LC_") and name not in ours)}
    if connect:
        both = f"{s.colonies_executor_name}/{s.db_database}"  # of all, 63 ASCII characters at most
        tag = hashlib.sha256(f"{both}{os.path.realpath(s.backup_path)}".encode()).hexdigest()[:8]
        name = f"colonies-backup {tag} {re.sub('[^!-~]', '?', both)}"[:63]
        env = {"PGCONNECT_TIMEOUT": "30"} | env | {"PGAPPNAME": name, "PGDATABASE": s.db_database}
        env |= {"PGOPTIONS": f"{env.get('PGOPTIONS', '')} {options}"} if options else {}
        env |= {"PGPASSWORD": s.db_password} if s.db_password else {}
        argv = [argv[0], "-h", s.db_host, "-p", str(s.db_port), "-U", s.db_user, *argv[1:]]
    program, end = start(argv, env, stderr=subprocess.PIPE), time.monotonic() + timeout
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                stdout, stderr = program.communicate(timeout=1)
                break
            tick()
            require(time.monotonic() <= end,
                    f"{step}: {argv[0]}: no answer within {timeout:g} seconds")
    finally: stop(program)
    status, said = program.returncode, redacted(s, stderr[-4096:].decode(*UTF8))
    how = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
    require(not status, f"{step}: {argv[0]}: {how}: {said}")
    return stdout.decode(*UTF8)

# ---- Signing: secp256k1, as Colonies uses it -----------------------------------------------------
FIELD = 2**256 - 2**32 - 977
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
Point = tuple[int, int]
GENERATOR = (0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
             0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8)
def add(p: Point, q: Point) -> Point:
    """The sum of two points of y^2 = x^3 + 7, neither of them the other's negative."""
    slope = (3 * p[0] ** 2 * pow(2 * p[1], -1, FIELD) if p == q
             else (q[1] - p[1]) * pow(q[0] - p[0], -1, FIELD))
    x = (slope**2 - p[0] - q[0]) % FIELD
    return x, (slope * (p[0] - x) - p[1]) % FIELD
# 2^0, 2^1, … 2^255 x generator: with these, made once, a product is some 128 sums.
DOUBLES = list(itertools.accumulate(range(255), lambda p, _: add(p, p), initial=GENERATOR))
def multiply(scalar: int) -> Point:
    """scalar x generator, for a scalar from 1 to ORDER - 1."""
    return functools.reduce(add, [p for bit, p in enumerate(DOUBLES) if scalar >> bit & 1])
def identity(key: int) -> str:
    """The id that belongs to a private key: SHA3-256 of its public key's hex text."""
    x, y = multiply(key)
    return hashlib.sha3_256(f"04{x:064x}{y:064x}".encode()).hexdigest()
def nonces(key: int, number: int) -> Iterator[int]:
    """RFC 6979, section 3.2, with HMAC-SHA256."""
    seed = key.to_bytes(32, "big") + (number % ORDER).to_bytes(32, "big")
    k, v, mores = bytes(32), b"\1" * 32, [b"\1" + seed, b"\0" + seed]
    while True:
        k = hmac.digest(k, v + (mores.pop() if mores else b"\0"), "sha256")
        v = hmac.digest(k, v, "sha256")
        if not mores:
            v = hmac.digest(k, v, "sha256")
            yield int.from_bytes(v, "big")
def sign(key: int, text: str) -> str:
    """Signature over SHA3-256 of text, in hex: r (32 bytes), low s (32), recovery id (1)."""
    number = int.from_bytes(hashlib.sha3_256(text.encode()).digest(), "big")
    for nonce in nonces(key, number):
        if 0 < nonce < ORDER:
            x, y = multiply(nonce)
            s = pow(nonce, -1, ORDER) * (number + x * key) % ORDER
            if x < ORDER and s: break
    return f"{x:064x}{min(s, ORDER - s):064x}{(y ^ (s > ORDER - s)) & 1:02x}"
def own_key(owner: int, colony: str, name: str) -> int:
    """The executor's key where none is given: a restarted executor is the same one."""
    counter = key = 0
    while not 0 < key < ORDER:
        text = f"colonies-backup-executor/1\0{colony}\0{name}\0{counter}".encode()
        key = int.from_bytes(hmac.digest(owner.to_bytes(32, "big"), text, "sha256"), "big")
        counter += 1
    return key

# ---- Colonies ------------------------------------------------------------------------------------
WAITING, RUNNING, ELSEWHERE, REMOVED = 0, 1, -1, -2  # a process's states; above: its ends
# What a server notes as a sign of life and has no work for: nothing needs less than no CPU.
SIGN_OF_LIFE = {"timeout": -1, "availablecpu": "-1m"}
class Colonies:
    """The client: `call` is the one place where a message leaves."""
    def __init__(self, s: Namespace):
        host, port = s.colonies_server_host, s.colonies_server_port
        self.url = f"http{'s' * s.colonies_tls}://{f'[{host}]' if ':' in host else host}:{port}/api"
        tls = ssl.create_default_context(cafile=s.colonies_ca_file or None)
        if s.colonies_insecure_skip_verify:
            tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        # Answers as they are, also redirects: a signed message goes to the server named, only.
        plain = type("Plain", (urllib.request.HTTPErrorProcessor,), dict.fromkeys(
            ("http_response", "https_response"), lambda _self, _request, response: response))
        self.opener = urllib.request.build_opener(plain, urllib.request.HTTPSHandler(context=tls))
        names = {"colonyname": s.colonies_colony_name, "colonyid": s.colonies_colony_id}
        self.colony = {name: value for name, value in names.items() if value}
        self.owner, self.name = s.colonies_colony_prvkey, s.colonies_executor_name
        self.key: int = s.colonies_executor_prvkey or own_key(
            self.owner or 0, s.colonies_colony_name or s.colonies_colony_id, self.name)
        self.id = identity(self.key)
    def call(self, msgtype: str, within: float = 15, key: int = 0, **fields: Any) -> Any:
        """Sign and send a message; the decoded answer. Failure has the status Colonies gave."""
        payload = base64.b64encode(json.dumps({"msgtype": msgtype, **fields}).encode()).decode()
        body = json.dumps({"payloadtype": msgtype, "payload": payload,
                           "signature": sign(key or self.key, payload)})
        request = urllib.request.Request(self.url, body.encode(), {"Content-Type": "text/plain"})
        where = f"Colonies at {self.url}: {msgtype}"
        def exchange() -> tuple[int, bytes]:
            with self.opener.open(request, timeout=within) as reply:
                return reply.status, reply.read(16 * MIB)
        try: status, raw = in_time(within, exchange)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            hint = " (COLONIES_TLS, COLONIES_CA_FILE)" * isinstance(reason, ssl.SSLError)
            raise Failure(f"{where}: {str(reason) or repr(reason)}{hint}", again=True) from None
        try:
            # A 2023 server sends two objects in a row for some errors: the first one counts.
            envelope = json.JSONDecoder().raw_decode(raw.decode().lstrip())[0]
            answer = json.loads(base64.b64decode(envelope["payload"], validate=True))
            if status == 200 and envelope["error"] is False: return answer
            text = f"{where}: {str(answer['message'])[:500]}"
        except (ValueError, KeyError, TypeError, RecursionError):
            raise Failure(f"{where}: HTTP {status}, and an answer cut short or not of a Colonies "
                          "server; is something else in front of it?", again=True) from None
        raise Failure(text, status, again=True)

def items(answer: Any) -> list[Mapping[str, Any]]:
    """The objects of a list that a server sent; null is an empty one."""
    return [x for x in answer if isinstance(x, dict)] if isinstance(answer, list) else []

def server_time(text: object) -> int:
    """Nanoseconds since 1970 from a server's RFC 3339 time; 0 where it is none."""
    found = re.fullmatch(r"(.{19})(?:\.([0-9]{1,9}))?(Z|[+-]\d\d:\d\d)", str(text))
    with suppress(ValueError, OverflowError):
        if found:
            whole = datetime.datetime.fromisoformat(found[1] + found[3].replace("Z", "+00:00"))
            return max(0, int(whole.timestamp()) * 10**9 + int((found[2] or "").ljust(9, "0")))
    return 0

# ---- S3 ------------------------------------------------------------------------------------------
# An object named like a backup; metadata: keys in lower case, or None where it can't be had.
Found = collections.namedtuple("Found", "seconds key size metadata")
class S3:
    """The bucket: `call` is the one place where a request leaves."""
    RETRY = ("SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "OperationAborted",
             "InternalError", "ConditionalRequestConflict", "PreconditionFailed")
    DAMAGED = ("BadDigest", "InvalidDigest", "IncompleteBody", "XAmzContentSHA256Mismatch")
    def __init__(self, s: Namespace, patience: float = PATIENCE):
        self.where = f"S3 at {s.aws_s3_endpoint or 'AWS'}, bucket {s.aws_s3_bucket_name}"
        try:
            import boto3
            from botocore import config, exceptions, parsers
            self.s, self.patience, self.errors = s, patience, exceptions
            self.garbled = parsers.ResponseParserError
            # Newer default checksums break other S3 servers; Content-MD5 is what each one checks.
            settings = config.Config(
                request_checksum_calculation="when_required", connect_timeout=10, read_timeout=60,
                response_checksum_validation="when_required", retries={"total_max_attempts": 1},
                s3={"addressing_style": "path"} if s.aws_s3_endpoint else {})
            self.client = boto3.session.Session().client(
                "s3", endpoint_url=s.aws_s3_endpoint or None, region_name=s.aws_s3_region,
                verify=not s.aws_s3_insecure_skip_verify and (
                    s.aws_s3_ca_file or os.environ.get("AWS_CA_BUNDLE")
                    or ssl.get_default_verify_paths().cafile or True),
                aws_access_key_id=s.aws_s3_access_key or None, config=settings,
                aws_secret_access_key=s.aws_s3_secret_access_key or None)
        except Exception as error:  # boto3 is not installed, or doesn't like its own settings
            raise Failure(f"{self.where}: boto3: {redacted(s, error)}") from None
        if s.aws_s3_insecure_skip_verify:  # which was said in our own log
            __import__("warnings").simplefilter("ignore")
    def call(self, verb: str, patience: float | None = None, **parameters: Any) -> Any:
        """One request, repeated for `patience` seconds where that can help; status: S3's."""
        end = time.monotonic() + (self.patience if patience is None else patience) * TIME_SCALE
        e = self.errors
        hopeless = (e.SSLError, e.NoCredentialsError, e.PartialCredentialsError,
                    e.ParamValidationError)
        for tries, pause in enumerate(backoff(), 1):
            status, hint = 0, ""
            try:
                if verb == "upload_part": parameters["Body"].seek(0)  # an earlier try has read it
                return in_time(3600 if verb == "upload_part" else 300, functools.partial(
                    getattr(self.client, verb), Bucket=self.s.aws_s3_bucket_name, **parameters))
            except e.ClientError as error:
                said, code = str(error), error.response.get("Error", {}).get("Code", "")
                status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
                again = ((status >= 500 and status != 501) or status == 429 or code in self.RETRY
                         or (code in self.DAMAGED and tries < 3))
            except (e.BotoCoreError, self.garbled, OSError, http.client.HTTPException) as error:
                hint = " (AWS_S3_SECURE, AWS_S3_CA_FILE)" * isinstance(error, e.SSLError)
                said, again = str(error), not isinstance(error, hopeless)
            text = f"{self.where}: {verb}: {redacted(self.s, said)}{hint}"
            if not again or time.monotonic() + pause > end: raise Failure(text, status, again)
            if tries == 3: log("warning", "S3 is away, trying again ...", Error=text)
            time.sleep(pause)
    def key(self, name: str) -> str:
        return f"{self.s.aws_s3_prefix}/{name}" if self.s.aws_s3_prefix else name
    def head(self, key: str) -> Any:
        """HeadObject's answer, its metadata's keys in lower case; None: no such object."""
        with allowing(404):
            found = self.call("head_object", Key=key)
            return found | {"Metadata": {k.lower(): v for k, v in found["Metadata"].items()}}
        return None
    def backups(self) -> list[Found]:
        """Every object whose whole key is PREFIX/backup_DIGITS.bak, oldest first."""
        found, prefix, key, more = [], self.key("backup_"), "", True
        while more:
            page, before = self.call("list_objects_v2", Prefix=prefix, StartAfter=key), key
            more = page.get("IsTruncated")
            for item in page.get("Contents", []):
                metadata, key = None, item["Key"]
                if named := re.fullmatch(re.escape(prefix) + r"([0-9]{1,18})\.bak", key):
                    with allowing(400, 403, 405):  # what can't be looked at is left alone
                        metadata = (self.head(key) or {}).get("Metadata")
                    found.append(Found(int(named[1]), key, item["Size"], metadata))
            require(not more or key > before, f"{self.where}: its listing does not go on")
        return sorted(found, key=lambda f: (f.seconds, f.key))

# ---- Retention -----------------------------------------------------------------------------------
def proven(found: list[Found], system: str, database: str) -> list[Found]:
    """Those that are proven backups of this database, oldest first."""
    return [f for f in found if f.metadata and f.metadata.get("sha256")
            and f.metadata.get("system-identifier") == system
            and urllib.parse.unquote(f.metadata.get("database", "")) == database]
def doubtful(backups: list[Found]) -> set[str]:
    """Keys of those smaller than half of the last good one before them: emptied databases."""
    last_good = itertools.accumulate(  # the size of the last good one before each
        (b.size for b in backups), lambda last, size: last if size * 2 < last else size, initial=0)
    return {b.key for b, last in zip(backups, last_good, strict=False) if b.size * 2 < last}

def superseded(found: list[Found], system: str, database: str, keep: int, made: str) -> list[Found]:
    """What retention removes of `found`, oldest first; never `made`, the key of the new backup."""
    ours = proven(found, system, database)
    doubts = doubtful(ours)
    good, bad = [b for b in ours if b.key not in doubts], [b for b in ours if b.key in doubts]
    # Those of older executors carry no metadata; they go when newer, proven ones are enough.
    legacy = [f for f in found if f.metadata == {}
              and sum(b.seconds > f.seconds for b in ours) >= keep]
    return [b for b in good[:-keep] + bad[:-keep] + legacy if b.key != made]

def prune(s: Namespace, s3: S3, system: str, database: str, made: str) -> dict[str, Any]:
    """Remove what is superseded; what went, what stayed and why. Never fails a backup."""
    log("info", "Removing old backup files ...")
    removed, kept = list[str](), dict[str, str]()
    try:
        found = s3.backups()
        ours = proven(found, system, database)
        doubts = doubtful(ours)
        kept = {b.key: "doubtful: less than half of the size before" if b.key in doubts else
                "proven" for b in ours}
        if made in doubts:
            log("warning", "The new backup is less than half of the last good one: is the database "
                "whole?", Key=made)
        for key in [b.key for b in superseded(found, system, database, s.full_backups, made)]:
            try:
                s3.call("delete_object", Key=key)
                removed.append(key)
                kept.pop(key, None)
            except Failure as error:
                kept[key] = f"not removed: {error}"
                log("warning", "Cannot remove an old backup", Key=key, Error=error)
    except Failure as error:
        log("warning", "Cannot tell the old backups, removing none", Error=error)
    return {"removed": removed, "kept": kept}

# ---- The staging volume --------------------------------------------------------------------------
class Journal(dict[str, Any]):
    """What is known of one dump: `….bak.json` beside `….bak`, so that a crash loses nothing.
    by, process, starttime, attempts: whose it is, for whom, how often begun. id, size, …: since
    pg_dump has ended. sha256: since it was read back. uploads: those that may be unfinished. proof:
    since S3 has it. gone: the local file is not ours any more."""
    def __init__(self, file: str, **values: Any):
        super().__init__(values)
        self.file, self.partial, self.path = file, f"{file}.partial", f"{file}.json"
    def save(self, **changes: Any) -> None:
        self.update(changes)
        with open(f"{self.path}.partial", "w", encoding="utf-8") as file:
            json.dump(self, file)
            file.flush()
            os.fsync(file.fileno())
        rename(f"{self.path}.partial", self.path)
    def remove(self) -> None:
        """It and its files; a file of that name that somebody put there later is left alone."""
        ours = "sha256" in self and not self.get("gone")
        for name in (*([self.file] if ours else []), self.partial, self.path):
            with suppress(FileNotFoundError): os.unlink(name)

def rename(old: str, new: str) -> None:
    """Rename for good: also over a power failure."""
    os.rename(old, new)
    folder = os.open(os.path.dirname(new), os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
def digest(path: str) -> str:
    """SHA-256 of a file, of nothing where there is no plain file."""
    sha256, plain = hashlib.sha256(), os.path.isfile(path) and not os.path.islink(path)
    with open(path if plain else os.devnull, "rb") as file:
        while data := file.read(MIB): sha256.update(data)
    return sha256.hexdigest()
def staged(s: Namespace, ending: str) -> list[str]:
    """Paths on the staging volume that have our names, with that ending (a regular expression)."""
    return [os.path.join(s.backup_path, name) for name in sorted(os.listdir(s.backup_path))
            if re.fullmatch(r"backup_[0-9]+\.bak" + ending, name)]
def journals(s: Namespace) -> list[Journal]:
    """Ours on the staging volume, oldest first."""
    found = []
    for path in staged(s, r"\.json"):
        with suppress(OSError, ValueError, TypeError), open(path, "rb") as file:
            found.append(Journal(path.removesuffix(".json"), **json.load(file)))
    return [journal for journal in found if journal.get("by") == s.journals]
def leftovers(s: Namespace) -> list[str]:
    """Paths of partial files that no journal tells of."""
    return [path for path in staged(s, r"(\.json)?\.partial")
            if not os.path.exists(re.sub(r"(\.json)?\.partial$", ".json", path))]
def unfinished(s: Namespace) -> bool:
    """Whether earlier runs left something to finish or to clear away."""
    return bool(leftovers(s)) or any(("id" in journal and not journal.get("gone"))
                                     or os.path.exists(journal.partial) for journal in journals(s))

@contextmanager
def staging(s: Namespace, wait: bool) -> Iterator[None]:
    """Hold the staging volume: one backup at a time. A flock(2) ends with its process."""
    folder = os.open(s.backup_path, os.O_RDONLY | os.O_DIRECTORY)
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        require(wait, f"another backup is running in {s.backup_path}")
        log("info", "Waiting for another backup to end ...")
        time.sleep(10 * TIME_SCALE)
    yield
    os.close(folder)

def room(s: Namespace) -> tuple[int, int]:
    """Bytes free on the staging volume, and how many of them must stay so."""
    volume = os.statvfs(s.backup_path)
    return volume.f_bavail * volume.f_frsize, min(volume.f_blocks * volume.f_frsize // 20, GIB)

# ---- A backup: the dump --------------------------------------------------------------------------
FACTS = ("database", "system_identifier", "postgresql", "timescaledb", "pg_dump")
LOOK = """SELECT json_build_object(
    'database', current_database(), 'size', pg_database_size(current_database()),
    'postgresql', current_setting('server_version'),
    'number', current_setting('server_version_num')::int,
    'system_identifier', (SELECT system_identifier::text FROM pg_control_system()),
    'timescaledb', (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'))"""
# Both names compared went through the server's own truncation and escaping.
END_SESSIONS = """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <>
    pg_backend_pid() AND application_name = current_setting('application_name')
    AND usename = current_user"""
LEFT_OUT = """SELECT (SELECT count(*) FROM pg_roles WHERE rolname !~ '^pg_'), (SELECT count(*)
    FROM pg_database WHERE datallowconn AND NOT datistemplate AND datname <> current_database())"""
def psql(s: Namespace, step: str, query: str) -> str:
    return run(s, step, ["psql", "-XAtqw", "-v", "ON_ERROR_STOP=1", "-c", query], timeout=120)

def look_at_database(s: Namespace) -> Namespace:
    """Server, database and versions. Failure if this pg_dump cannot dump from this server."""
    server = Namespace(**json.loads(psql(s, "Looking at the database", LOOK)))
    said = run(s, "Looking at pg_dump", ["pg_dump", "--version"], connect=False, timeout=60)
    server.pg_dump = next(iter(re.findall(r"\d[\w.]*", said)), "0")
    server.client, major = int(re.split(r"\D", server.pg_dump)[0]), server.number // 10000
    require(server.client >= major, f"pg_dump {server.pg_dump} is older than the server, "
            f"{server.postgresql}: install the client programs of the server's version or later")
    if server.client > major:
        log("warning", "pg_dump is newer than the server: restoring takes its version or later",
            Client=server.pg_dump, Server=server.postgresql)
    return server

def look_for_room(s: Namespace, newest: int, database_size: int) -> str:
    """Failure unless the staging volume can be written and has room for such a dump."""
    with tempfile.TemporaryFile(dir=s.backup_path): free, floor = room(s)
    text = f"{s.backup_path}: {free} bytes are free; the newest backup has {newest}"
    require(free >= max(newest * 6 // 5, floor),
            f"BACKUP_PATH {text}, a fifth is added, and {floor} must stay free")
    if not newest and free < database_size:
        log("warning", f"{text}, the database {database_size}: the dump may not fit")
    return text

def dump(s: Namespace, s3: S3, **begun: Any) -> Journal:
    """All that comes before the upload; the journal of a complete dump under its final name."""
    server = look_at_database(s)
    try: found = s3.backups()
    except Failure as error:
        if error.status != 404 or not s.aws_s3_endpoint: raise
        log("warning", "The bucket is missing, making it ...", Error=error)
        s3.call("create_bucket")
        found = []
    known = proven(found, server.system_identifier, server.database)
    newest, seconds = known[-1].size if known else 0, int(time.time())
    look_for_room(s, newest, server.size)
    if known and seconds < known[-1].seconds:
        log("warning", "The clock is behind the newest backup, counting on", Newest=known[-1].key)
    seconds = max([seconds, *(b.seconds + 1 for b in known)])
    while any(name.startswith(f"backup_{seconds}.bak") for name in os.listdir(s.backup_path)):
        seconds += 1
    method = s.backup_compression.replace("auto", "zstd" if server.client >= 16 else "gzip")
    if server.client < 16:  # which takes nothing but a level of gzip
        method = {"none": "0", "gzip": "6"}.get(method, method.removeprefix("gzip:"))
    # A pg_dump killed by -9 leaves a session that may wait for a lock: the server is to notice.
    options = "-c client_connection_check_interval=10s" if server.number >= 140000 else ""
    name = f"backup_{seconds}.bak"
    journal = Journal(os.path.join(s.backup_path, name), by=s.journals, key=s3.key(name), **begun)
    partial, step = journal.partial, "Backing up database"
    psql(s, "Ending sessions of an earlier run", END_SESSIONS)
    log("info", "Backing up database ...")
    show, start_time = progress("Backup in progress", newest), time.monotonic()
    def tick() -> None:
        free, floor = room(s)
        require(free >= floor, f"{step}: pg_dump was stopped, for BACKUP_PATH {s.backup_path} has "
                f"only {free} bytes left, which the database may need")
        show(os.path.getsize(partial) if os.path.exists(partial) else 0)
    try:
        journal.save()
        run(s, step, ["pg_dump", "-Fc", "-f", partial, "--no-password", f"--compress={method}",
                      f"--lock-wait-timeout={LOCK_WAIT}"], tick=tick, options=options)
        journal.save(exectime_backup=int(time.monotonic() - start_time), id=os.urandom(16).hex(),
                     size=os.path.getsize(partial), **{x: getattr(server, x) for x in FACTS})
    finally:
        if "id" not in journal: journal.remove()
    return seal(s, journal)

def seal(s: Namespace, journal: Journal) -> Journal:
    """Read back what pg_dump wrote; only then does it get its final name."""
    step = "Reading the archive's table of contents"
    try:
        contents = run(s, step, ["pg_restore", "--list", journal.partial], connect=False)
        require(re.search("^[^;]", contents, re.MULTILINE),
                f"{step}: it is empty; is DB_DATABASE {s.db_database!r} the right one?")
    except Failure:
        journal.remove()
        raise
    journal.save(sha256=digest(journal.partial),
                 tables=len(re.findall(r"(?m)^\d+; \d+ \d+ TABLE DATA ", contents)))
    rename(journal.partial, journal.file)
    log("info", "Successfully backup database", ExecTime=f"{journal['exectime_backup']} seconds",
        Filename=os.path.basename(journal.file), Size=f"{journal['size']} bytes")
    return journal

# ---- A backup: upload and proof ------------------------------------------------------------------
def upload(s3: S3, journal: Journal) -> None:
    """Upload the dump and prove that S3 has it: the journal's `proof`. The completing request may
    succeed while its answer gets lost, so each round begins with HeadObject: our own object there
    is success, somebody else's means the next second, none means to send or to complete."""
    log("info", "Uploading backup file to S3 ...")
    begun, uploads, pauses, end, why = time.monotonic(), 0, backoff(), 0.0, "S3 has nothing there"
    condition, target, parts = {"IfNoneMatch": "*"}, dict[str, Any](), list[dict[str, Any]]()
    metadata = {name.replace("_", "-"): str(journal[name]) for name in (*FACTS, "sha256", "tables")
                if journal[name]} | {"backup-id": journal["id"]}
    metadata["database"] = urllib.parse.quote(journal["database"], safe="")
    if "etag" not in journal:  # AWS_S3_PREFIX may have changed since the dump
        journal["key"] = s3.key(os.path.basename(journal["key"]))
    first = int(re.findall("[0-9]+", journal["key"])[-1])
    while (head := s3.head(journal["key"])) is None or (
            head["Metadata"].get("backup-id") != journal["id"]):
        if head:  # also for servers that know no If-None-Match
            log("warning", "S3 has another object of that name, counting on", Key=journal["key"])
            seconds, parts = int(re.findall("[0-9]+", journal["key"])[-1]) + 1, []
            journal.save(key=s3.key(f"backup_{seconds}.bak"))
            require(seconds < first + 100, f"{s3.where}: 100 names in a row are taken")
            continue
        try:
            if not parts:
                uploads += 1
                with allowing(403): abort(s3, journal)
                made = s3.call("create_multipart_upload", Key=journal["key"], Metadata=metadata)
                target = {"Key": journal["key"], "UploadId": made["UploadId"]}
                journal.save(uploads=[*journal.get("uploads", []), target])
                parts, etag = send_parts(s3, journal, target)
                journal.save(etag=etag)
                end = time.monotonic() + s3.patience * TIME_SCALE
            else:
                require(time.monotonic() <= end,
                        f"{s3.where}: {journal['key']}: cannot complete the upload: {why}")
                time.sleep(next(pauses))
            s3.call("complete_multipart_upload", 0, MultipartUpload={"Parts": parts}, **target,
                    **condition)
        except Failure as error:
            why = str(error)
            if error.status == 404 and uploads < 3:
                parts = []  # the upload is gone, and no object there: send it again
            elif error.status == 501 and condition: condition = {}
            elif not (error.again and parts): raise
    etag, size = head.get("ETag", "").strip('"'), head["ContentLength"]
    if size != journal["size"] or ("-" in etag and etag != (journal["etag"] or etag)):
        journal.save(id=os.urandom(16).hex())  # what bears the old one is no backup, but looks it
        s3.call("delete_object", Key=journal["key"])
        raise Failure(f"{s3.where}: {journal['key']} had {size} bytes and ETag {etag}, the dump "
                      f"has {journal['size']} and {journal['etag']}")
    seconds = int(time.monotonic() - begun)
    journal.save(uploads=[], proof={
        "bucket": s3.s.aws_s3_bucket_name, "size_s3": size, "exectime_upload_s3": seconds})
    log("info", "Successfully uploaded backup file", ExecTime=f"{seconds} seconds",
        Size=f"{size} bytes")

def abort(s3: S3, journal: Journal, patience: float | None = None) -> None:
    """End multipart uploads of earlier tries; what cannot be ended stays in the journal."""
    while journal.get("uploads"):
        with allowing(404): s3.call("abort_multipart_upload", patience, **journal["uploads"][0])
        journal["uploads"].pop(0)

def send_parts(s3: S3, journal: Journal, target: dict[str, Any]) -> tuple[list[Any], str]:
    """Send the file's slices, four at a time; what completing needs, and the whole's ETag to be."""
    from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
    from s3transfer.utils import ReadFileChunk  # boto3's own: a slice is read as it is sent
    # At most 1,000 parts of whole MiB; where those would be of over 5 GiB, at most 10,000.
    size, show, sent = journal["size"], progress("Upload in progress", journal["size"]), list[int]()
    most = 1000 if size <= 1000 * 5 * GIB else 10000
    step = max(8, -(-size // (most * MIB))) * MIB
    def send(number: int) -> tuple[dict[str, Any], bytes]:
        md5 = hashlib.md5(usedforsecurity=False)
        with ReadFileChunk.from_filename(journal.file, (number - 1) * step, step) as part:
            while data := part.read(MIB): md5.update(data)
            answer = s3.call("upload_part", **target, PartNumber=number, Body=part,
                             ContentMD5=base64.b64encode(md5.digest()).decode())
            sent.append(len(part))
        return {"PartNumber": number, "ETag": answer["ETag"]}, md5.digest()
    pool = ThreadPoolExecutor(4)
    try:
        tasks = [pool.submit(send, number) for number in range(1, -(-size // step) + 1)]
        while (now := wait(tasks, 1, FIRST_EXCEPTION)).not_done:
            for task in now.done: task.result()
            show(sum(sent))
        parts, md5s = zip(*(task.result() for task in tasks), strict=True)
    finally: pool.shutdown(wait=False, cancel_futures=True)
    # Encrypted by KMS, an ETag looks like one and is no MD5; then neither are the parts' own ones.
    plain = [part["ETag"].strip('"') for part in parts] == [md5.hex() for md5 in md5s]
    whole = hashlib.md5(b"".join(md5s), usedforsecurity=False).hexdigest()
    return list(parts), f"{whole}-{len(parts)}" if plain else ""

# ---- A backup: as a whole ------------------------------------------------------------------------
def backup(s: Namespace, resume: bool, process: str = "", starttime: str = "") -> Any:
    """One backup; its result, a dict. With `resume`: only finish what earlier runs left; None."""
    with staging(s, wait=bool(process)):
        s3 = S3(s, 10 if resume else PATIENCE)  # resuming is tried again anyway
        journal = sweep(s, s3, process)
        if resume: return None
        attempts = journal["attempts"] + 1 if journal else 1
        require(attempts <= 3 or (journal and journal.get("proof")), "this process was begun three"
                " times, and each time the executor was killed: is its memory limit too small?")
        try:
            if not journal or "sha256" not in journal:
                journal = dump(s, s3, process=process, starttime=starttime, attempts=attempts)
            journal.save(attempts=attempts)
            result = finish(s, s3, journal)
        except (Stop, Failure) as why:
            for left in journals(s):
                if left["process"] == process and "id" in left and not left.get("proof"):
                    with suppress(Failure, OSError):
                        in_time(2, functools.partial(abort, s3, left, 0))
                    left.save(attempts=0)
                    if why.args[0] == signal.SIGUSR1:  # nobody wants it any more
                        left.remove()
            raise
        log("info", "Backup procedure completed, closing process ...")
        return result

def finish(s: Namespace, s3: S3, journal: Journal) -> dict[str, Any]:
    """From a complete dump to the result; goes on where an earlier run was interrupted."""
    if not journal.get("proof"): upload(s3, journal)
    if not journal.get("gone"):
        with suppress(FileNotFoundError):
            os.unlink(journal.file)
            log("info", "Removed local backup file", Filepath=journal.file)
        journal.save(gone=True)
    known, key = journal | journal["proof"], journal["key"]
    names = ("exectime_backup", "size", "size_s3", "exectime_upload_s3", "sha256", *FACTS, "tables",
             "starttime")
    result = {"filename": os.path.basename(key), "bucket": known["bucket"],
              "filepath_s3": f"/{key}", **{name: known[name] for name in names},
              **prune(s, s3, known["system_identifier"], known["database"], key)}
    if not journal.get("process"):  # else it is kept until the process is closed
        journal.remove()
    return result

def sweep(s: Namespace, s3: S3, process: str) -> Journal | None:
    """Clear away what crashed runs left, finish what they dumped; the process's own journal."""
    mine = None
    for journal in journals(s):
        own = bool(process) and journal.get("process") == process
        old = time.time() - os.path.getmtime(journal.path) > 86400
        if "id" not in journal or journal.get("gone"):
            with suppress(FileNotFoundError): os.unlink(journal.partial)
            if old or not journal.get("process"):
                journal.remove()  # of no use, or its process came to another end
        elif "sha256" not in journal:
            try: seal(s, journal)
            except Failure as error:
                log("warning", "Removed a bad earlier dump", Filepath=journal.file, Error=error)
                continue
        elif not journal.get("proof"):
            if not os.path.lexists(journal.file) and os.path.exists(journal.partial):
                rename(journal.partial, journal.file)
            if digest(journal.file) != journal["sha256"]:
                log("warning", "Not what its journal says, leaving it alone", Filepath=journal.file)
                journal.save(gone=True, process="")  # nobody's: its process is dumped for anew
                continue
        if not own and "id" in journal and not journal.get("gone"):
            log("info", "Finishing an earlier backup ...", Filepath=journal.file)
            finish(s, s3, journal)
        mine = journal if own else mine
    for path in leftovers(s):
        with suppress(OSError):
            os.unlink(path)
            log("info", "Removed what a crash left", Filepath=path)
    return mine

# ---- The executor --------------------------------------------------------------------------------
class Job:
    """The command `backup` as a child, at work for a process; without one it is `--resume`."""
    def __init__(self, process: Mapping[str, Any], news: list[str], attempts: int = 1):
        self.process, self.news, self.attempts = process, news, attempts
        self.id: str = process.get("processid", "")
        self.errors, self.result, self.rest = list[str](), b"", b""
        begun = process["starttime"] if server_time(process.get("starttime")) else ""
        env = {name: value for name, value in os.environ.items()
               if not re.fullmatch("COLONIES_.*PRVKEY(_FILE)?", name)}
        argv = [sys.executable, os.path.abspath(__file__), "backup"] + ["--resume"] * (not self.id)
        self.child = start(argv, env | {"BACKUP_PROCESS": json.dumps(
            {"process": self.id, "starttime": begun})})
    def wait(self, seconds: float) -> bool:
        """Take in, for so long at most, what the child tells; True once it has ended."""
        end, pipe = time.monotonic() + seconds, self.child.stdout
        while pipe and select.select([pipe], [], [], max(0, end - time.monotonic()))[0]:
            if not (data := os.read(pipe.fileno(), 65536)):
                pipe.close()
                return self.child.wait() is not None
            *lines, self.rest = (self.rest + data).split(b"\n")
            for line in lines:
                if line.startswith(b"#"):
                    level, text = json.loads(line[1:])
                    self.news.append(text)
                    self.errors += [text] * (level == "error")
                else: self.result += line + b"\n"
        return False

class Executor(Colonies):
    """Waits for processes, has each done by a child, and closes it, whatever happens meanwhile.
    State changes after an answer and never before: any round of the loop can be repeated."""
    def __init__(self, s: Namespace):
        super().__init__(s)
        self.s, self.type = s, s.colonies_executor_type
        self.names = {"executorname": self.name, "executorid": self.id, **self.colony}
        self.job: Job | None = None
        self.queue: dict[str, Mapping[str, Any]] = {}  # assigned to us: to begin, or to close
        self.done: dict[str, tuple[str, dict[str, Any]]] = {}  # what to close a process with
        self.news: dict[str, list[str]] = {}  # for the processes' own logs
        self.satisfied = (0, "")  # when the newest backup's process started, and its result
        self.times: dict[str, float] = {}
        self.joined = self.been_in = False
    def due(self, what: str, seconds: float) -> bool:
        """True when it was last true at least so many seconds ago."""
        if due := time.monotonic() >= self.times.get(what, 0):
            self.times[what] = time.monotonic() + seconds * TIME_SCALE
        return due
    def join(self) -> None:
        """See to it that the colony has this executor, approved, and knows what it does."""
        executor, known = self.names | {"executortype": self.type}, None
        if not self.known():
            if not self.owner:
                raise Failure(f"Colonies does not know the executor {self.name!r}, id {self.id}: "
                              "add and approve it, or give COLONIES_COLONY_PRVKEY", 403, again=True)
            try: self.call("addexecutormsg", key=self.owner, executor=executor)
            except Failure as error:
                require(error.status != 403, f"{error}; is COLONIES_COLONY_PRVKEY its owner's?")
                if not re.search("already exist|must be unique", str(error)): raise
            with allowing(*range(400, 600)):  # then it is another's, as the next call shows
                self.call("approveexecutormsg", key=self.owner, **self.names)
            require(self.known(), f"Colonies: the executor name {self.name!r} belongs to another "
                    "key; set COLONIES_EXECUTOR_NAME, or that key as COLONIES_EXECUTOR_PRVKEY")
        with allowing(*range(400, 600)):  # a 2023 server refuses; it takes no second record
            known = self.call("getfunctionsmsg", executorname=self.name, **self.colony)
        if all(function.get("funcname") != "backup" for function in items(known)):
            with allowing(403):  # there already, says a 2023 server
                self.call("addfunctionmsg", fun=executor | {"funcname": "backup", **dict.fromkeys(
                    ("desc", "description"), "Backs up to S3")})
        self.joined = self.been_in = True
        log("info", "Waiting for processes ...", Executor=self.name, ExecutorId=self.id)
    def known(self) -> bool:
        """Give a sign of life; whether the server knows us."""
        with allowing(403): return self.assign(**SIGN_OF_LIFE) is not None
        return False
    def assign(self, **fields: Any) -> str:
        """Ask for a process; its id, or "" where there is none."""
        with allowing(404):
            return self.receive(self.call("assignprocessmsg", 25, **fields, **self.colony))
        return ""
    def receive(self, process: Any) -> str:
        """Take in a process that was assigned to us, asked for or not, once; its id."""
        name = process.get("processid") if isinstance(process, dict) else None
        if not isinstance(name, str) or not re.fullmatch("[0-9A-Za-z-]{1,128}", name):
            log("warning", "Colonies sent something that is no process")
            return ""
        if not (self.job and self.job.id == name): self.queue.setdefault(name, process)
        return name
    def running(self) -> list[Mapping[str, Any]]:
        asked = {"state": RUNNING, "count": 100, "executortype": self.type}
        return items(self.call("getprocessesmsg", **asked, **self.colony))
    def standing(self, name: str) -> int:
        """State of a process; RUNNING only where it runs here; REMOVED: there is none such."""
        try: process = self.call("getprocessmsg", processid=name)
        except Failure as error:
            if error.status in (0, 403) or not re.search("nil|not found", str(error)): raise
            return REMOVED
        if not isinstance(process, dict) or not isinstance(state := process.get("state"), int):
            raise Failure("Colonies sent something that is no process", again=True)
        return ELSEWHERE if state == RUNNING and process["assignedexecutorid"] != self.id else state
    def serve(self) -> None:
        """The loop: wait for processes and see to them until a signal raises Stop."""
        pauses = backoff()
        while not signals:
            with suppress(OSError):  # a liveness probe looks at this file
                open(self.s.backup_alive_file, "w").close()
            try:
                if self.job and self.job.wait(1): self.ended(self.job)
                idle = not self.job and not self.queue
                if idle and self.due("resume", 300) and unfinished(self.s): self.job = Job({}, [])
                if not self.joined: self.join()
                elif self.job: self.attend(self.job)
                elif self.queue: self.see_to(next(iter(self.queue)))
                else: self.idle()
                pauses = backoff()
                if self.times.pop("complain", 0): log("info", "Colonies is back")
            except Exception as error:  # whatever a server sends: a running dump goes on
                status, again = getattr(error, "status", 0), getattr(error, "again", False)
                if not again and not self.been_in: raise
                if self.due("complain", 60):
                    log("error" if status == 403 or not again else "warning",
                        f"{error or repr(error)}; trying again ...")
                self.joined = self.joined and status != 403
                self.times |= {"look": 0, "watch": 0}
                time.sleep(next(pauses))
    def idle(self) -> None:
        if self.s.backup_cron and self.due("cron", 3600):
            self.ensure_cron(self.s.backup_cron_name, self.s.backup_cron)
        if self.due("look", 60):  # an answer that assigned one may be lost, or we were restarted
            for process in self.running():
                if process.get("assignedexecutorid") == self.id: self.receive(process)
        asked = time.monotonic()
        if not self.queue and not self.assign(timeout=10) and time.monotonic() - asked < 1:
            time.sleep(0.5)  # a server that does not wait is not to be flooded
    def see_to(self, name: str) -> None:
        """Start a process's backup, or close it: with its result, or since it needs none."""
        process = self.queue[name]
        spec = process["spec"] if isinstance(process.get("spec"), dict) else {}
        if name in self.done: self.close(name)
        elif spec.get("funcname") != "backup":
            self.fail(name, f"there is no function {str(spec.get('funcname'))[:99]!r}, only backup")
        elif spec.get("args") or spec.get("kwargs"): self.fail(name, "backup takes no arguments")
        elif 0 < server_time(process.get("submissiontime")) <= self.satisfied[0]:
            log("info", "A backup begun after this request satisfies it", ProcessId=name)
            self.done[name] = ("closesuccessfulmsg", {"out": [self.satisfied[1]]})
        elif self.standing(name) != RUNNING:  # while it waited here
            del self.queue[name]
        else:
            log("info", "Beginning process", ProcessId=name)
            self.job = Job(process, self.news.setdefault(name, []))
            self.times["watch"] = time.monotonic() + 60 * TIME_SCALE
            del self.queue[name]
    def fail(self, name: str, *errors: str) -> None:
        log("error", "Process failed", ProcessId=name, Errors="; ".join(errors))
        self.done[name] = ("closefailedmsg", {"errors": [e.replace("\0", "") for e in errors]})
    def attend(self, job: Job) -> None:
        """While a backup runs: its log; each minute a sign of life and a look at its process."""
        if not self.due("watch", 60): return self.tell(job.id)
        self.assign(**SIGN_OF_LIFE)
        state = self.standing(job.id) if job.id else RUNNING
        if state == WAITING:  # it was taken from us: have it back; others that come are run next
            for _ in range(100):
                if self.assign(timeout=-1) in ("", job.id): break
            log("info", "The running process was waiting again, took it back", ProcessId=job.id)
        elif state not in (RUNNING, REMOVED):
            log("warning", "The process was cancelled, failed or given to another executor: "
                "stopping its backup", ProcessId=job.id, State=state)
            stop(job.child, signal.SIGUSR1, 6)
            self.job = None
    def tell(self, name: str) -> None:
        """Send what the child told to its process's own log. (A 2023 server has none.)"""
        if news := self.news.get(name):
            with allowing(*range(1, 600)):
                self.call("addlogmsg", processid=name, message="\n".join(news) + "\n")
            news.clear()
    def ended(self, job: Job) -> None:
        """The child has ended: what its process is to be closed with, if there is one."""
        status, text, self.job = job.child.returncode, job.result.decode().strip(), None
        if job.id and status < 0 and job.attempts < 3:
            log("warning", "The backup was killed, beginning it again", Signal=-status)
            self.job = Job(job.process, job.news, job.attempts + 1)
        elif job.id:
            self.queue = {job.id: job.process, **self.queue}
            if status:
                return self.fail(job.id, *job.errors or [
                    f"the backup was killed {job.attempts} times, in the end by signal {-status}: "
                    "is its memory limit too small?"])
            self.done[job.id] = ("closesuccessfulmsg", {"out": [text]})
            self.satisfied = max(self.satisfied, (server_time(json.loads(text)["starttime"]), text))
    def close(self, name: str) -> None:
        """Close a process; where it was taken away, its result is kept for when it comes back."""
        msgtype, fields = self.done[name]
        try:
            with suppress(Failure): self.tell(name)
            self.call(msgtype, processid=name, **fields)
            log("info", "Closed process", ProcessId=name)
        except Failure as refused:
            if not refused.status: raise
            state = self.standing(name)
            log("warning", "The process was taken away or closed otherwise", ProcessId=name,
                State=state, Error=refused)
            good = msgtype == "closesuccessfulmsg"
            if state == RUNNING or (good and state in (WAITING, ELSEWHERE)):
                del self.queue[name]  # it comes back by itself, or is looked for within a minute
                return
        del self.queue[name], self.done[name]
        for journal in journals(self.s):
            closed = journal.get("process") == name
            if closed and (journal.get("gone") or "id" not in journal): journal.remove()
    def ensure_cron(self, name: str, wanted: str) -> None:
        """See to it that the colony has the cron with that expression; the new one comes first."""
        try:
            crons = [(cron.get("cronid"), cron.get("cronexpression")) for cron in items(self.call(
                "getcronsmsg", count=1000, **self.colony)) if cron.get("name") == name
                and json.dumps(self.type) in cron.get("workflowspec", json.dumps(self.type))]
            if all(expression != wanted for _, expression in crons):
                conditions = {"executortype": self.type, **self.colony}
                node = {"nodename": "backup", "funcname": "backup", "conditions": conditions}
                self.call("addcronmsg", cron=self.colony | {
                    "name": name, "cronexpression": wanted, "interval": -1, "random": False,
                    "workflowspec": json.dumps({"functionspecs": [node], **self.colony})})
                log("info", "Added the cron", Name=name, Expression=wanted)
            for cronid, expression in crons:
                if expression != wanted:
                    for msgtype in ("removecronmsg", "deletecronmsg"):  # 2026, 2023
                        with allowing(403): self.call(msgtype, cronid=cronid, **self.colony)
                    log("info", "Removed a cron", Name=name, Expression=expression)
        except Failure as error:
            self.times["cron"] *= bool(error.status)  # no answer: again as soon as there is one
            if not error.status: raise
            log("error", f"BACKUP_CRON: {error}")
    def leave(self) -> None:
        """Stop what runs, hand processes back, deregister; within 10 s."""
        log("info", "Stopping ...")
        if job := self.job:
            self.queue |= {job.id: job.process} if job.id else {}
            stop(job.child, signal.SIGTERM, 6)
            if job.wait(0) and job.child.returncode == 0: self.ended(job)
        try:
            for name in list(self.queue)[:5]:
                msgtype, fields = self.done.get(name, (
                    "closefailedmsg", {"errors": ["the executor was stopped"]}))
                with allowing(*range(400, 600)):
                    if name in self.done or not self.owner:
                        self.call(msgtype, 0.5, processid=name, **fields)
            for msgtype in ("removeexecutormsg", "deleteexecutormsg") * bool(self.owner):
                with allowing(403):
                    self.call(msgtype, 1, self.owner, **self.names)
                    log("info", "Deregistered from Colonies", Executor=self.name)
        except Failure as error: log("warning", "Could not take leave of Colonies", Error=error)

# ---- Commands ------------------------------------------------------------------------------------
def list_backups(s: Namespace, as_json: bool) -> None:
    rows = [{"name": os.path.basename(f.key), "time": datetime.datetime.fromtimestamp(
                f.seconds).astimezone().isoformat() if f.seconds < 2**37 else "-", "size": f.size,
             "checksum": "sha256" in (f.metadata or {}), "database": urllib.parse.unquote(
                 (f.metadata or {}).get("database", "")) or None}
            for f in reversed(S3(s, 10).backups())]
    lines = [("NAME", "TIME", "SIZE", "CHECKSUM", "DATABASE"), *(
        (*list(row.values())[:3], "yes" if row["checksum"] else "no",
         quoted(row["database"] or "-")) for row in rows)]
    print(json.dumps(rows, indent=4) if as_json else "\n".join(
        "{:<24} {:<26} {:>14} {:<9} {}".format(*line) for line in lines), flush=True)

def check(s: Namespace, max_age: float | None) -> int:
    """Try every peer, one line each on stdout; the exit status."""
    server, backups, failed = Namespace(size=0, system_identifier=""), list[Found](), list[str]()
    @contextmanager
    def trying(name: str) -> Iterator[Callable[[str], None]]:
        def say(text: str, mark: str = "ok") -> None:
            print(f"{mark:<5} {name}: {' '.join(text.split())}", flush=True)
        try: yield say
        except Exception as error:
            failed.append(name)
            say(str(error), "FAIL")
    print(f"{'ok':<5} settings: {len(SETTINGS)} looked at", flush=True)
    with trying("colonies") as say:
        if s.colonies_server_host:
            executor, known = Executor(s), "; `serve` will register"
            require(not executor.owner or s.colonies_colony_id in ("", identity(executor.owner)),
                    "COLONIES_COLONY_PRVKEY is not the key of COLONIES_COLONY_ID")
            with allowing(403 if executor.owner else -1):
                executor.running()
                known = " and knows"
            say(f"{executor.url} answers{known} {executor.name}")
        else: say("COLONIES_SERVER_HOST is not set; `serve` needs it, `backup` does not")
    with trying("database") as say:
        server = look_at_database(s)
        server.timescaledb = server.timescaledb or "none"
        say("{database} ({size} bytes), PostgreSQL {postgresql}, TimescaleDB {timescaledb}, "
            "pg_dump {pg_dump}".format(**vars(server)))
    with trying("left out") as say:
        say("no backup holds the server's {} roles (pg_dumpall --globals-only does) or its {} other"
            " databases".format(*psql(s, "Counting", LEFT_OUT).strip().split("|")))
    with trying("bucket") as say:
        s3, text = S3(s, 10), os.urandom(32)
        key = s3.key(f"check_{text[:8].hex()}")
        s3.call("put_object", Key=key, Body=text)
        try: read = s3.call("get_object", Key=key)["Body"].read()
        finally: s3.call("delete_object", Key=key)
        require(read == text, f"{s3.where}: it gives back something else than it was given")
        backups = proven(s3.backups(), server.system_identifier, s.db_database)
        say(f"{s3.where}: written, read, deleted; {len(backups)} proven backups of this database")
    with trying("staging volume") as say:
        say(look_for_room(s, backups[-1].size if backups else 0, server.size))
    with trying("newest backup") as say:
        hours = (time.time() - backups[-1].seconds) / 3600 if backups else float("inf")
        age = f"{backups[-1].key} is {hours:.1f} hours old" if backups else "no proven backup"
        require(max_age is None or hours <= max_age, f"{age}; --max-age is {max_age}")
        say(age)
    return 1 if failed else 0

signals: list[int] = []
def on_signal(signum: int, _: object) -> None:
    """The first signal raises Stop, once; it is noted too, should a finalizer swallow it."""
    if not signals:
        signals.append(signum)
        raise Stop(signum)

def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="backup_executor.py", description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter, epilog="\n".join([
            "settings, environment variables ([another spelling]; * a secret, for which",
            "NAME_FILE may name a file; libpq's own, PGSSLMODE and the like, apply too):", *(
                f"  {x.name}{f' [{x.also}]' * bool(x.also)}{' *' * (x.kind in SECRET)}"
                f"{f' (default: {x.default})' * bool(x.default)}\n      {x.meaning}"
                for x in SETTINGS)]))
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="command", metavar="command")
    verbs.add_parser("serve", help="wait for processes from Colonies and run them (the default)")
    verbs.add_parser("backup", help="one backup now, no Colonies; prints the result").add_argument(
        "--resume", action="store_true", help="make no dump, only finish what earlier runs left")
    verbs.add_parser("list", help="the backups in the bucket, newest first").add_argument(
        "--json", action="store_true", help="as JSON")
    verbs.add_parser("check", help="try every setting and every peer").add_argument(
        "--max-age", type=float, metavar="HOURS", help="fail if the newest proven one is older")
    return parser

def main() -> int:
    global log_level
    options = command_line().parse_args()
    os.umask(0o077)  # a dump holds the whole database: nobody else's to read
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1): signal.signal(signum, on_signal)
    try:
        s = read_settings(os.environ, options.command in (None, "serve") or (
            options.command == "check" and bool(os.environ.get("COLONIES_SERVER_HOST"))))
        log_level = s.log_level
        for name in ("COLONIES_INSECURE_SKIP_VERIFY", "AWS_S3_INSECURE_SKIP_VERIFY"):
            if getattr(s, name.lower()): log("warning", f"{name}: any certificate is accepted")
        if options.command == "check": return check(s, options.max_age)
        if options.command == "list": list_backups(s, options.json)
        elif options.command == "backup":
            told = json.loads(os.environ.get("BACKUP_PROCESS") or "{}")
            if result := backup(s, options.resume, **told):
                print(json.dumps(result, indent=4), flush=True)
        else:
            executor = Executor(s)
            with suppress(Stop): executor.serve()
            executor.leave()
        return 0
    except Failure as error:
        log("error", str(error))
        return 2 if error.status == 2 else 1
    except OSError as error:
        log("error", f"{error.filename or 'the system says'}: {error.strerror or error}")
    except Stop as stopped: log("warning", f"stopped by {signal.Signals(stopped.args[0]).name}")
    return 1

if __name__ == "__main__":
    os._exit(main())  # threads may still be sending after a failure: there is no use in waiting
