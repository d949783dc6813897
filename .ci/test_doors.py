"""Tests that nobody gets in: files, servers, privileges, secrets."""
from __future__ import annotations

import base64
import contextlib
import fnmatch
import itertools
import json
import os
import re
import secrets
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

import backup_executor
from backup_executor import HIDDEN
from colonies import COLONY_NAME, FAILED, OWNER_KEY
from environment import EXECUTOR, PROJECT, ROOT
from proxies import (
    COMPLETING,
    FORBIDDEN,
    FOREVER,
    PART,
    Proxy,
    Stranger,
    http_reply,
    secured,
    through,
)
from readme import by_hand, least_privileges
from restores import RESTORED, archive, databases
from servers import (
    ASKED,
    LIBC,
    PASSING_ON,
    Executor,
    Program,
    S3Server,
    SeaweedFS,
    asking,
    client_programs,
    compiled,
    descendants,
    executor_environment,
    programs,
    run,
    tool,
)
from surroundings import (
    BRISK,
    EXECUTOR_KEY,
    FILLED,
    Generations,
    Scene,
    Site,
    becomes_true,
    standin,
    stuck_upload,
)

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
    settings = site.environ(BACKUP_ALIVE_FILE="", VERIFY_DB_HOST="127.0.0.1",
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
    names += [f"backup_{int(time.time()) + soon}.bak.partial" for soon in range(60)]
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
    assert set(site.files()) == {*names} and result["tables"] == 1
    assert site.stored_keys() == [f"{site.name}/{result['filename']}"]
    assert os.listdir(outside) == [target.name] and target.read_text() == "precious"
    assert kind != "hard link" or target.samefile(site.folder / names[0])


def test_a_link_that_appears_where_pg_dump_is_about_to_write_is_not_followed(
        scene: Scene, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    # psql is the last that runs before the name of the dump is taken
    path = programs(tmp_path / "bin", psql=f"""{ASKED}
        now=$(date +%s)
        case "$asked" in *{asking('pg_terminate')}*) for soon in $(seq 0 35); do
            ln -s '{target}' {scene.folder}/backup_$((now + soon - 30)).bak.partial
        done ;; esac
        {PASSING_ON.format(client_programs()[0])}""")
    error = scene.failure(PATH=path)
    assert ".bak.partial: File exists" in error and target.read_text() == "precious"
    assert not scene.objects() and not [name for name in scene.files() if "json" in name]


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
            said = run(site.environ(server.port, COLONIES_TLS="true", COLONIES_CA_FILE=trusted),
                       "check").stdout
        assert re.search("(?m)^FAIL +colonies: .*it redirects.*HTTP 302", said)
        assert len(server.received) == 1 and not elsewhere.received


@pytest.mark.parametrize("status", STATUSES)
def test_no_redirection_by_s3_is_followed_whatever_was_asked(
        scene: Scene, meddler: Proxy, status: int) -> None:
    name = scene.given_backup()
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
    with site.locked(), Program([*OPEN_DOORS, str(EXECUTOR)], executor_environment(
            site.environ(), str(tmp_path), 17), cwd=here) as executor:
        site.waiting()
        def lasting() -> bool:
            """Not psql, which comes and goes, nor what is about to become another program."""
            pids[1:] = []
            for pid in descendants(executor.pid):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    if Path(f"/proc/{pid}/comm").read_text() in (python, "pg_dump\n"):
                        pids.append(pid)
            return len(pids) == 3

        pids, python = [executor.pid], Path(f"/proc/{executor.pid}/comm").read_text()
        becomes_true(lasting)  # pg_dump and who runs it are there, so there is nothing else
        for pid in pids:
            # 1, not 0: the kernel pipes no core to a handler then, either (fs/coredump.c)
            assert re.search("Max core file size +1 +1 ", Path(f"/proc/{pid}/limits").read_text())
            assert os.path.samefile(f"/proc/{pid}/cwd", here)
        for pid in reversed(pids):
            os.kill(pid, signal.SIGSEGV)
        assert executor.wait() == -signal.SIGSEGV
    assert not os.listdir(here), f"without the limit: {os.listdir(crashed)}"


class Guard:
    """It says which requests to S3 a policy denies, by AWS's names of what is asked.

    As in AWS, what is not there is 403, not 404, to who may not list the bucket.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene, self.denied, self.allowed = scene, set[str](), set[str]()
        [text] = least_privileges("json")
        self.policy = json.loads(text.replace("BUCKET", "backup").replace("PREFIX", scene.prefix))

    @contextlib.contextmanager
    def proxy(self) -> Iterator[Proxy]:
        """A proxy before S3 that lets pass what the policy allows."""
        with Proxy(self.scene.s3.port) as proxy:
            proxy.reply(self.denies, FORBIDDEN, FOREVER)
            yield proxy

    def actions(self) -> list[str]:
        return [action for statement in self.policy["Statement"] for action in statement["Action"]]

    def without(self, action: str) -> None:
        for statement in self.policy["Statement"]:
            statement["Action"] = [each for each in statement["Action"] if each != action]

    def denies(self, request: bytes) -> bool:
        method, target = request.split(b" ", 2)[:2]
        path, _, query = target.decode().partition("?")
        asked = urllib.parse.parse_qs(query, keep_blank_values=True)
        bucket, _, key = urllib.parse.unquote(path[1:]).partition("/")
        asks = {"list-type", "uploads", "uploadId", "partNumber", "versionId"} & asked.keys()
        action = {
            (b"GET", "list-type"): "ListBucket", (b"HEAD", "key"): "GetObject",
            (b"GET", "key"): "GetObject", (b"PUT", "key"): "PutObject",
            (b"PUT", "key partNumber uploadId"): "PutObject", (b"DELETE", "key"): "DeleteObject",
            (b"POST", "key uploads"): "PutObject", (b"POST", "key uploadId"): "PutObject",
            (b"DELETE", "key uploadId"): "AbortMultipartUpload",
            (b"DELETE", "key versionId"): "DeleteObjectVersion",
        }.get((method, " ".join(["key"] * bool(key) + sorted(asks))), "")
        prefix = asked.get("prefix", [""])[0] if action == "ListBucket" else None
        allowed = self._allows(action, f"{bucket}/{key}" if key else bucket, prefix)
        if allowed and action == "GetObject" and not self._allows("ListBucket", bucket, None):
            try:
                self.scene.s3_client.head_object(Bucket=bucket, Key=key)
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


def keep_versions(s3: S3Server) -> None:
    s3.client().put_bucket_versioning(
        Bucket="backup", VersioningConfiguration={"Status": "Enabled"})


def test_readmes_policy_for_s3_is_enough_for_every_command_and_all_of_it_is_used(
        big: Scene, new: str, tmp_path: Path) -> None:
    used = set[str]()
    with SeaweedFS(tmp_path / "s3") as keeping:
        keeping.client().create_bucket(Bucket="backup")
        keep_versions(keeping)
        for s3 in (big.s3, keeping):
            site = Scene(big.postgres, s3, big.folder, big.database, big.prefix)
            site.settings["BACKUP_COMPRESSION"] = "none"
            guard = Guard(site)
            with guard.proxy() as proxy:
                site.settings |= {"FULL_BACKUPS": "1", **through(proxy)}
                stuck_upload(site, proxy)
                # an older executor's: its head is read
                site.put("backup_1.bak", archive(site)[:4096])
                first = site.backup()
                assert len(site.objects()) == 1
                assert not first["kept"].keys() - {first["filepath_s3"][1:]}
                assert site.uploads() == [] and site.files() == []
                for command in (["list"], ["check"], ["verify"],
                                ["restore", "latest", "--database", new]):
                    said = site.run(*command).stderr
                    assert "level=warning" not in said
                assert not guard.denied
                used |= guard.allowed
            big.postgres.drop(new)
    assert used == set(guard.actions())


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


@pytest.mark.parametrize("versions", [False, True], ids=["no versions", "versions"])
def test_readmes_policy_is_enough_for_an_s3_server_that_enforces_it(
        scene: Scene, new: str, tmp_path: Path, versions: bool) -> None:
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
        if versions:
            keep_versions(s3)
        policed.put("backup_1.bak", archive(policed))
        for _ in range(2):
            policed.backup(**limited)
        assert len(policed.objects()) == 1
        for command in (["list"], ["check"], ["verify"], ["restore", "latest", "--database", new]):
            assert "level=warning" not in policed.run(*command, **limited).stderr
        assert re.search("head_object: .*403", policed.failure(**limited, AWS_S3_PREFIX="other"))
        if versions:
            there = client.list_object_versions(Bucket="backup", Prefix=f"{policed.prefix}/backup_")
            assert len(there["Versions"]) == 1 and "DeleteMarkers" not in there
            text = json.dumps(policy).replace('"s3:DeleteObjectVersion", ', "")
            client.put_bucket_policy(Bucket="backup", Policy=text)
            hiding = policed.backup(**limited)
            assert not hiding["removed"] and HIDDEN in hiding["kept"].values()


@pytest.mark.parametrize("lacking", [
    "s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload",
    "s3:ListBucket without a prefix", "s3:PutObject to another prefix"])
def test_what_lacks_of_readmes_policy_is_named_and_makes_no_half_backup(
        scene: Scene, lacking: str) -> None:
    before = scene.given_backup()
    guard = Guard(scene)
    with guard.proxy() as proxy:
        whole = json.loads(json.dumps(guard.policy))
        guard.without(lacking)
        if " without a prefix" in lacking:
            guard.policy["Statement"][0]["Condition"] = {
                "StringLike": {"s3:prefix": f"{scene.prefix}/*"}}
        elif " to another" in lacking:
            scene.settings["AWS_S3_PREFIX"] = f"{scene.prefix}x"
        settings = {"FULL_BACKUPS": "1", **through(proxy, 0.01)}
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
        scene: Scene, generations: Generations, version: int) -> None:
    server = generations[version]
    with server.dropping(), contextlib.ExitStack() as stack:
        site = Scene(server, scene.s3, scene.folder, scene.database, f"{scene.prefix}_roles")
        role, restorer, owner = (f"{x}_{scene.database}" for x in ("backup", "restorer", "owner"))
        if version != 17:
            server.make(site.database, FILLED)
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
        # of large objects: each needs README's grant, or any of the others
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
        assert json.loads(site.run("verify", **settings).stdout)["verdict"] == RESTORED
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
              "AWS_S3_SECRET_ACCESS_KEY": site.s3.secret_key,
              # nobody is there, which is a warning
              "HEARTBEAT_URL": f"http://127.0.0.1:1/{secrets.token_hex(16)}/nightly?create=1"}
    assert hidden.keys() == {x.name for x in backup_executor.SETTINGS
                             if x.kind in backup_executor.SECRET}
    notes, bin_folder = tmp_path / "notes", client_programs()[0]
    notes.mkdir()
    script = NOTING.format(notes=notes, staging=site.folder, bin=bin_folder)
    settings = site.environ(
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
        with Executor(settings, by=compiled()) as executor:
            said += [json.dumps(site.succeeds(site.submit(name))) for name in ("backup", "verify")]
            failed = site.client.wait(site.submit("verify", args=["missing"]))
            executor.wait_for("Added the cron", count=2)
            said += [json.dumps([failed, site.client.crons(), site.standin.processes])]
            said += [site.client.logs(identifier) for identifier in site.standin.processes]
            executor.stop()
            said += [executor.log]
        for path in notes.glob("*.parent-environment"):
            assert not re.search(rb"(?m)PRVKEY|HEARTBEAT|" + f"{OWNER_KEY}|{EXECUTOR_KEY}".encode(),
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
    for key in site.stored_keys():
        said += [key, str(client.head_object(Bucket="backup", Key=key)["Metadata"])]
    verdicts = client.get_object(Bucket="backup", Key=f"{site.name}/verified.json")["Body"]
    said += [verdicts.read().decode()]
    started = set()
    for path in notes.glob("*.arguments"):
        variables = path.with_suffix(".environment").read_text().split("\0")
        whose = "".join(x[7:] for x in variables if x.startswith("PGUSER="))
        started.add((path.name.partition(".")[0], whose))
        assert [x for x in variables if any(secret in x for secret in hidden.values())] == (
            [f"PGPASSWORD={roles[whose]}"] if whose else []), path
        assert not re.search("(?m)^(COLONIES|AWS|DB|VERIFY|BACKUP|HEARTBEAT)_",
                             "\n".join(variables))
        assert whose or not re.search("(?m)^PG", "\n".join(variables))
    assert started == {(program, whose) for program in ("pg_dump", "pg_restore", "psql")
                       for whose in ("", *roles)} - {("psql", ""), ("pg_dump", other)}
    journals = [path.read_text() for path in notes.glob("*.journals")]
    assert any("attempts" in text for text in journals)
    said += [path.read_text() for what in ("arguments", "parent") for path in
             notes.glob(f"*.{what}")]
    assert any("Cannot tell HEARTBEAT_URL" in text for text in said)
    words = {*hidden.values(), re.findall("[0-9a-f]{32}", hidden["HEARTBEAT_URL"])[0]}
    assert not [text for text in said + journals for secret in words if secret in text]


def test_the_shell_of_ci_and_of_the_restore_by_hand_is_clean(tmp_path: Path) -> None:
    """That of the Dockerfile is looked at by hadolint, in the same way."""
    script = tmp_path / "by-hand.sh"
    script.write_text("#!/bin/bash -e\n" + by_hand(
        "plain PostgreSQL", "TimescaleDB"))
    ran = subprocess.run([tool("shellcheck"), str(PROJECT / ".ci/run"), str(script)],
                         text=True, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stdout
