"""Tests of backups that are encrypted by `age`."""
from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from backup_executor import as_recipients
from debian import unpacked
from machine import Machine
from proxies import COMPLETING, FORBIDDEN, Proxy, through
from readme import restored_by_hand
from restores import RESTORED, refused, restored, verifying
from servers import SYSTEM_PATH, client_programs, error_lines
from surroundings import BRISK, Scene, Site, becomes_true, sha256_of, standin

ENDING = ".bak.age"


class Sealed(Scene):
    """A scene whose backups are encrypted for an `age` key, and for an ssh key."""

    def __init__(self, where: Scene, folder: Path) -> None:
        super().__init__(where.postgres, where.s3, where.folder, where.database, where.prefix)
        self.keys, self.bin = folder, unpacked("age") / "usr/bin"
        self.age_key, self.ssh_key = self.new("age"), folder / "ssh"
        subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", str(self.ssh_key)],
                       check=True)
        self.ssh = self.ssh_key.with_suffix(".pub").read_text().strip()
        self.public = re.findall("age1[0-9a-z]+", self.age_key.read_text())[0]
        self.identity = {"AGE_IDENTITY_FILE": str(self.age_key)}
        self.path = f"{self.bin}:{client_programs()[0]}:{SYSTEM_PATH}"
        self.settings |= {"PATH": self.path, "BACKUP_ROLES": "auto",
                          "BACKUP_AGE_RECIPIENTS": f"{self.public}, {self.ssh}"}

    def new(self, name: str) -> Path:
        """The file of a new private key."""
        subprocess.run([str(self.bin / "age-keygen"), "-o", str(self.keys / name)], check=True,
                       stderr=subprocess.DEVNULL)
        return self.keys / name

    def opened(self, body: bytes, key: Path | None = None) -> bytes:
        """What `age -d` makes of an object, by hand."""
        return subprocess.run([str(self.bin / "age"), "-d", "-i", str(key or self.age_key)],
                              input=body, capture_output=True, check=True).stdout

    def metadata(self, name: str) -> dict[str, str]:
        return {key.lower(): text for key, text in self.head(name)["Metadata"].items()}

    def names(self) -> list[str]:
        """Of archives, oldest first."""
        return [name for name in self.objects() if ".bak" in name]

    def wrapping(self, script: str) -> dict[str, str]:
        """Settings with a SCRIPT in front of `age`, which it may call as $real."""
        folder = self.keys / "wrapping"
        folder.mkdir(exist_ok=True)
        (folder / "age").write_text(f"#!/bin/bash\nreal='{self.bin}/age'\n{script}\n")
        (folder / "age").chmod(0o755)
        return {"PATH": f"{folder}:{self.path}"}

    def verdicts(self) -> dict[str, str | None]:
        """What `list --json` says of each backup."""
        return {row["name"]: row["verified"] and row["verified"]["verdict"]
                for row in json.loads(self.run("list", "--json").stdout)}


@pytest.fixture
def sealed(scene: Scene, tmp_path: Path) -> Sealed:
    (tmp_path / "keys").mkdir()
    return Sealed(scene, tmp_path / "keys")


def refusal(scene: Scene, *arguments: str, **settings: Any) -> str:
    """The one line of a command that fails, and has nothing to say on stdout."""
    ran = scene.run(*arguments, **{"status": 1, **settings})
    [error] = error_lines(ran.stderr)
    assert not ran.stdout
    return error


# ---- A backup ----------------------------------------------------------------------------------

def test_a_backup_and_its_roles_are_encrypted_and_opened_by_each_of_the_keys(
        sealed: Sealed) -> None:
    result = sealed.backup()
    objects, name = sealed.objects(), result["filename"]
    roles = name.replace(".bak", ".roles.sql")
    metadata = sealed.metadata(name)
    assert name.endswith(ENDING) and sorted(objects) == sorted([name, roles])
    assert result["roles"] == f"{sealed.prefix}/{roles}" and sealed.files() == []
    plain = sealed.opened(objects[name])
    assert plain.startswith(b"PGDMP") and sealed.opened(objects[name], sealed.ssh_key) == plain
    assert metadata["sha256"] == result["sha256"] == sha256_of(objects[name])
    assert metadata["plain-sha256"] == result["plain_sha256"] == sha256_of(plain)
    assert int(metadata["plain-size"]) == result["plain_size"] == len(plain)
    assert metadata["encryption"] == result["encryption"] == "age"
    assert result["size"] == result["size_s3"] == len(objects[name])
    assert metadata["roles-sha256"] == sha256_of(objects[roles])
    assert b"CREATE ROLE" in sealed.opened(objects[roles], sealed.ssh_key)
    for body in objects.values():
        assert not re.search(b"PGDMP|CREATE|postgres|SCRAM", body)
    [row] = json.loads(sealed.run("list", "--json").stdout)
    assert row["name"] == name and row["encrypted"] and row["checksum"] and row["roles"]
    head, line = sealed.run("list").stdout.splitlines()
    assert re.match(f"{name} {{1,3}}[0-9]+s ", line) and line.index("proven") == head.index("KIND")


def test_a_restore_and_a_verify_with_the_private_key_are_as_ever(sealed: Sealed) -> None:
    sealed.sql("CREATE ROLE reader_of_all; GRANT SELECT ON t TO reader_of_all")
    try:
        name = sealed.backup()["filename"]
        report = json.loads(sealed.run("verify", **sealed.identity,
                                       **verifying(sealed.postgres)).stdout)
        assert (report["verdict"], report["roles"]) == (RESTORED, "checked")
        assert report["rows"] == {"public.t": 500} and "decrypt" in report["seconds"]
        assert sealed.verdicts() == {name: RESTORED}
        sealed.sql("DROP OWNED BY reader_of_all; DROP ROLE reader_of_all")
        new = f"{sealed.database}_new"
        said = restored(sealed, "latest", "--database", new, "--roles", **sealed.identity).stdout
        assert "checksum: checked" in said
        assert sealed.postgres.sql("SELECT count(*) FROM t", new) == "500"
        assert sealed.sql("SELECT count(*) FROM pg_roles WHERE rolname = 'reader_of_all'") == "1"
        sealed.postgres.sql("DROP OWNED BY reader_of_all", new)
    finally:
        sealed.sql("DROP ROLE IF EXISTS reader_of_all")


def test_plain_and_encrypted_ones_are_one_row_of_backups(sealed: Sealed) -> None:
    made = [sealed.backup(FULL_BACKUPS="2", BACKUP_AGE_RECIPIENTS=each)["filename"]
            for each in ("", sealed.public, "", sealed.ssh)]
    assert sealed.names() == made[2:]
    assert sorted(sealed.objects()) == sorted(
        [*made[2:], *(each.replace(".bak", ".roles.sql") for each in made[2:])])
    assert json.loads(sealed.run("verify", made[2], AGE_IDENTITY_FILE="/nowhere").stdout)
    report = json.loads(sealed.run("verify", AGE_IDENTITY_FILE=str(sealed.ssh_key)).stdout)
    assert report["object"].endswith(made[3]) and report["verdict"] == "readable"
    for name in made[2:]:
        restored(sealed, name, "--database", f"{sealed.database}_{name[-1]}",
                 AGE_IDENTITY_FILE=str(sealed.ssh_key))


def test_what_is_doubtful_is_so_by_the_sizes_of_the_archives(sealed: Sealed) -> None:
    """Else nothing, encrypted for many, would be as large as something."""
    name = sealed.backup()["filename"]
    body, told = sealed.objects()[name], sealed.metadata(name)
    for later, size in enumerate([10**17, len(body) // 3, len(body) * 2 // 3], 1):
        sealed.put(f"backup_{int(name[7:-8]) + later}{ENDING}", body,
                   **told | {"plain-size": str(size)})
    assert [row["doubtful"] for row in json.loads(sealed.run("list", "--json").stdout)] == [
        False, True, False, False]


def test_an_encrypted_object_that_says_nothing_of_itself_stays(sealed: Sealed) -> None:
    sealed.put(f"backup_5{ENDING}", b"age-encryption.org/v1\n" + b"somebody's" * 99)
    ran = sealed.run("backup", FULL_BACKUPS="1")
    assert f"backup_5{ENDING}" in sealed.objects() and "an encrypted one" in ran.stderr


@pytest.mark.parametrize("point", ["begun", "done"])
def test_a_kill_as_it_is_encrypted_costs_no_dump(sealed: Sealed, point: str) -> None:
    done = '"$real" "$@";' if point == "done" else 'head -c 500 "${@: -1}" >"${@: -2:1}";'
    killing = sealed.wrapping(f'case "$*" in *" -o "*) {done} kill -9 $PPID; exec sleep 60;; esac\n'
                              'exec "$real" "$@"')
    with sealed.start(**killing) as executor:
        assert executor.wait() == -9
    name = next(each for each in sealed.files() if each.endswith(".bak"))
    assert sealed.files() == [name, f"{name}.age.partial", f"{name}.json"]
    sha256 = sha256_of((sealed.folder / name).read_bytes())
    assert not sealed.objects()
    sealed.run("backup", "--resume", BACKUP_AGE_RECIPIENTS="")  # it was to be encrypted
    assert sealed.names() == [f"{name}.age"] and sealed.files() == []
    assert sha256_of(sealed.opened(sealed.objects()[f"{name}.age"])) == sha256


@pytest.mark.parametrize("state", ["journal", "renamed"])
def test_a_crash_before_the_plain_file_is_gone_goes_on_from_there(
        sealed: Sealed, meddler: Proxy, state: str) -> None:
    meddler.reply(COMPLETING, FORBIDDEN)
    sealed.failure(**through(meddler, 0.001))
    [closed, journal] = sealed.files()
    assert closed.endswith(ENDING) and journal == closed.replace(".age", ".json")
    whole = (sealed.folder / closed).read_bytes()
    (sealed.folder / closed.removesuffix(".age")).write_bytes(sealed.opened(whole))
    if state == "journal":
        (sealed.folder / closed).rename(sealed.folder / f"{closed}.partial")
    sealed.run("backup", "--resume", BACKUP_AGE_RECIPIENTS="")
    assert sealed.objects()[closed] == whole and sealed.files() == []


@pytest.mark.parametrize("damage", ["closed", "gone", "both"])
def test_where_the_encrypted_file_is_damaged_the_plain_one_is_encrypted_anew_or_named(
        sealed: Sealed, meddler: Proxy, damage: str) -> None:
    """As after a crash between the two: else plain data lie there, and nobody is told."""
    meddler.reply(COMPLETING, FORBIDDEN)
    sealed.failure(**through(meddler, 0.001))
    closed = sealed.folder / sealed.files()[0]
    plain = closed.with_suffix("")
    whole = sealed.opened(closed.read_bytes())
    plain.write_bytes(whole[:-1] if damage == "both" else whole)
    closed.write_bytes(b"age-encryption.org/v1\n")
    if damage == "gone":
        closed.unlink()
    ran = sealed.run("backup", "--resume", BACKUP_AGE_RECIPIENTS="")
    if damage == "both":
        assert re.search(rf"level=warning .*leaving.*{plain}\b(?!\.age)", ran.stderr)
        assert sealed.files() == [plain.name, closed.name] and not sealed.names()
        return
    objects = sealed.objects()
    assert sealed.opened(objects[closed.name]) == whole and sealed.files() == []
    metadata = sealed.metadata(closed.name)
    assert metadata["sha256"] == sha256_of(objects[closed.name])
    assert metadata["plain-sha256"] == sha256_of(whole)
    roles = objects[closed.name.replace(".bak", ".roles.sql")]
    assert b"CREATE ROLE" in sealed.opened(roles)


def test_a_kill_at_any_use_of_the_volume_loses_no_sealed_dump(
        sealed: Sealed, tmp_path: Path) -> None:
    (home := tmp_path / "home").mkdir()
    seen, machine = list[str](), Machine(sealed.settings, home)
    for at in itertools.count(11):  # before are those of pg_dump
        before = {*sealed.names()}
        ran = machine.run("backup", MISHAP=f"{at} uses {sealed.folder} killed")
        files = [name for name in sealed.files() if name != "backup_journal.partial"]
        seen.append(re.sub("backup_[0-9]+", "", " ".join(files)))
        told = [json.loads((sealed.folder / name).read_text()) for name in files
                if name.endswith(".json")]
        dumps = [each.get("plain_sha256") or each["sha256"] for each in told if "sha256" in each]
        for name in files:  # what has a final name is whole
            if name.endswith((".bak", ENDING)):
                found = sha256_of((sealed.folder / name).read_bytes())
                assert found in (told[0]["sha256"], told[0].get("plain_sha256"))
        sealed.run("backup", "--resume")
        assert {*sealed.files()} <= {"backup_journal.partial"}
        # Not an older one: dumps of one second have the same bytes.
        stored = [sealed.metadata(name)["plain-sha256"] for name in sealed.names()
                  if name not in before]
        assert [stored.count(each) for each in dumps] == [1] * len(dumps)
        assert ran.returncode == -9
        if seen.count(".bak.age .bak.json") == 2:
            break
    for name in sealed.names():
        assert sealed.opened(sealed.objects()[name]).startswith(b"PGDMP")
    assert {".bak.json .bak.partial", ".bak .bak.json", ".bak .bak.age.partial .bak.json",
            ".bak .bak.age .bak.json"} <= {*seen}, seen


def test_a_dump_that_was_sealed_before_is_uploaded_as_it_is(
        sealed: Sealed, meddler: Proxy) -> None:
    meddler.reply(COMPLETING, FORBIDDEN)
    sealed.failure(**through(meddler, 0.001), BACKUP_AGE_RECIPIENTS="")
    [name, _] = sealed.files()
    sealed.run("backup", "--resume")
    assert sealed.names() == [name] and sealed.files() == []


@standin()
def test_what_is_cancelled_as_it_is_encrypted_leaves_nothing(
        site: Site, tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    sealed = Sealed(site, tmp_path / "keys")
    waiting = sealed.wrapping(f"""
        case "$*" in *" -o "*) echo >{tmp_path}/fifo; exec sleep 600;; esac
        exec "$real" "$@" """)
    os.mkfifo(tmp_path / "fifo")
    site.settings |= {**sealed.settings, **waiting}
    with site.serve(BACKUP_TIME_SCALE=BRISK):
        process = site.submit()
        (tmp_path / "fifo").read_text()
        assert len(sealed.files()) == 3
        site.client.cancel(process)
        becomes_true(lambda: sealed.files() == [])
    assert not sealed.objects()


def test_room_is_looked_for_twice_and_a_full_volume_costs_no_dump(
        sealed: Sealed, tmp_path: Path) -> None:
    (home := tmp_path / "home").mkdir()
    filling = sealed.wrapping(f"""
        case "$*" in *" -o "*) dd if=/dev/zero of={sealed.folder}/filler bs=4k 2>/dev/null;; esac
        exec "$real" "$@" """)
    with Machine(sealed.settings | {"BACKUP_ROLES": "off"}, home,
                 'mount -t tmpfs -o size=1m tmpfs "$0"') as machine:
        ran = machine.run("backup", **filling)
        [error] = error_lines(ran.stderr)
        assert ran.returncode == 1 and re.search("age: .*no space|age was stopped", error)
        [name] = machine.kept()  # and nothing of what age wrote
        assert f"{name}.age.partial" not in os.listdir(machine.path)
        machine.do("rm $0/filler")
        assert machine.run("backup", "--resume").returncode == 0
        assert sealed.names() == [f"{name}.age"] and os.listdir(machine.path) == []
        metadata = sealed.metadata(f"{name}.age")
        sealed.put(f"backup_{int(time.time())}{ENDING}", bytes(2**19 + 1),
                   **metadata | {"plain-size": str(2**19)})
        assert "a fifth more is needed, twice" in machine.run("backup").stderr
        assert machine.run("backup", BACKUP_AGE_RECIPIENTS="").returncode == 0


# ---- What it takes -----------------------------------------------------------------------------

@pytest.mark.parametrize(("given", "expected"), [
    ("age1aa", ["age1aa"]), (" age1aa,age1bb\n\nage1cc ,", ["age1aa", "age1bb", "age1cc"]),
    ("ssh-ed25519 AAAA me@home my pc\r\nage1aa", ["ssh-ed25519 AAAA me@home my pc", "age1aa"]),
    ("ssh-rsa AA+/= age1aa ssh-ed25519 BB, age1pq1cc",
     ["ssh-rsa AA+/=", "age1aa", "ssh-ed25519 BB", "age1pq1cc"]),
    ("# of the vault\nage1aa\n  # of ssh-keygen, too\nssh-rsa AAAA", ["age1aa", "ssh-rsa AAAA"]),
    ("AGE-SECRET-KEY-1QQ", None), ("age1aa AGE-SECRET-KEY-1QQ", None), ("age1aa x", None),
    ("ssh-rsa AAAA ecdsa-sha2-nistp256 BBBB", None), ("ssh-rsa", None), ("age1aaX", None),
    ("-----BEGIN OPENSSH PRIVATE KEY-----", None), (" , ", None), ("xage1aa", None),
    ("github:somebody", None), ("-d", None), ("age1aa;age1bb", None)])
def test_recipients_are_told_from_one_another(given: str, expected: list[str] | None) -> None:
    if expected:
        assert as_recipients(given).splitlines() == expected
        return
    with pytest.raises(ValueError, match="public keys") as raised:
        as_recipients(given)
    assert not re.search("(?i)secret|openssh|BBBB", str(raised.value))


def test_recipients_that_age_refuses_are_wrong_settings_at_once(sealed: Sealed) -> None:
    private = re.findall("AGE-SECRET-KEY-[0-9A-Z]+", sealed.age_key.read_text())[0]
    serving = {"COLONIES_SERVER_HOST": "127.0.0.1", "COLONIES_SERVER_PORT": "1",
               "COLONIES_COLONY_NAME": "dev", "COLONIES_COLONY_PRVKEY": f"{7:064x}"}
    for wrong, why in ((sealed.public[:-1] + "0", "malformed recipient"), (private, "public keys"),
                       ("age1nosuchplugin1qqqq", "age")):
        for command in ("backup", "serve"):
            said = sealed.run(command, status=2, BACKUP_AGE_RECIPIENTS=wrong, **serving).stderr
            assert "BACKUP_AGE_RECIPIENTS" in said and why in said and private not in said
    said = sealed.run("backup", status=2, PATH=f"{client_programs()[0]}").stderr
    assert re.search("BACKUP_AGE_RECIPIENTS.* age cannot be started.*package age", said)
    said = sealed.run("check", status=1, PATH=f"{client_programs()[0]}").stdout
    assert re.search("(?m)^FAIL  encryption: .*package age", said)


def test_another_program_called_age_makes_no_backup(sealed: Sealed) -> None:
    said = sealed.run("backup", status=2, **sealed.wrapping("exit 0")).stderr
    assert "not the program that encrypts" in said
    empty = sealed.wrapping('case "$*" in *" -o "*) exit 0;; esac\nexec "$real" "$@"')
    assert "age made 0 bytes" in sealed.failure(**empty) and not sealed.objects()


def test_check_tries_whether_the_private_key_opens_what_the_public_ones_close(
        sealed: Sealed) -> None:
    def lines(status: int = 0, **settings: str) -> list[str]:
        ran = sealed.run("check", status=status, **settings)
        return [line for line in ran.stdout.splitlines() if "encryption:" in line]

    off, on = lines(BACKUP_AGE_RECIPIENTS=""), lines()
    assert len(off) == 1 and re.match("ok .*not encrypted", off[0])
    assert re.match("ok .* 2 public keys", on[0]) and re.match("note .*AGE_IDENTITY_FILE", on[1])
    for key in (sealed.age_key, sealed.ssh_key):
        assert re.match("ok .*AGE_IDENTITY_FILE opens them", lines(AGE_IDENTITY_FILE=str(key))[-1])
    other = str(sealed.new("other"))
    assert re.match(f"FAIL .*{other}.*no identity matched", lines(1, AGE_IDENTITY_FILE=other)[-1])
    assert re.match("FAIL .*/nowhere", lines(1, AGE_IDENTITY_FILE="/nowhere")[-1])


def test_check_tries_the_private_key_alone_on_the_newest_backup(sealed: Sealed) -> None:
    def line(settings: dict[str, str], status: int = 0) -> str:
        ran = sealed.run("check", status=status, BACKUP_AGE_RECIPIENTS="", **settings)
        return [line for line in ran.stdout.splitlines() if "encryption:" in line][-1]

    other = {"AGE_IDENTITY_FILE": str(sealed.new("other"))}
    own = {"AGE_IDENTITY_FILE": str(sealed.age_key.rename(sealed.keys / "header.txt"))}
    assert "not encrypted" in line(other)  # there is nothing to try it on
    many = ",".join(re.findall("age1[0-9a-z]+", sealed.new(str(i)).read_text())[0]
                    for i in range(50))
    sealed.sql("CREATE TABLE noise AS SELECT string_agg(sha512(i::text::bytea), '') AS x"
               " FROM generate_series(1, 9000) i")
    for keys in (sealed.public, f"{many},{sealed.public}"):
        name = sealed.backup(BACKUP_AGE_RECIPIENTS=keys)["filename"]
        assert re.match(f"ok .*AGE_IDENTITY_FILE opens .*{name}", line(own))
        assert re.match(f"FAIL .*{other['AGE_IDENTITY_FILE']}.*no identity matched",
                        line(other, 1))
    sealed.put(name, b"age-encryption.org/v1\nx", **sealed.metadata(name))
    assert re.match("FAIL .*header", line(own, 1))


# ---- What opens it -----------------------------------------------------------------------------

def test_without_its_private_key_a_backup_is_intact_and_no_more_is_said(sealed: Sealed) -> None:
    name = sealed.backup()["filename"]
    report = json.loads(sealed.run("verify", **verifying(sealed.postgres)).stdout)
    assert report["verdict"] == "intact" and report["sha256"] == report["roles"] == "checked"
    assert any("AGE_IDENTITY_FILE" in text for text in report["not_proven"])
    assert "tables" not in report and sealed.verdicts() == {name: "intact"}
    body = bytearray(sealed.objects()[name])
    body[len(body) // 2] ^= 1
    bad = f"backup_{int(time.time()) + 1}{ENDING}"
    sealed.put(bad, bytes(body), **sealed.metadata(name))
    assert "SHA-256" in json.loads(sealed.run("verify", bad, status=1).stdout)["verdict"]
    sealed.put(bad, sealed.objects()[name])
    assert "AGE_IDENTITY_FILE" in refusal(sealed, "verify", bad)  # nothing at all is known of it


def test_without_the_private_key_no_doubtful_one_is_proposed_to_be_restored(
        sealed: Sealed) -> None:
    """It would be found intact, whatever is in it."""
    good = sealed.backup()["filename"]
    told = sealed.metadata(good)
    for later in range(1, 4):
        size = str(int(told["plain-size"]) * 2 // 5)
        doubtful = f"backup_{int(good[7:-8]) + later}{ENDING}"
        sealed.put(doubtful, sealed.objects()[good], **told | {"plain-size": size})
    where = verifying(sealed.postgres)
    assert json.loads(sealed.run("verify", **where).stdout)["object"].endswith(good)
    ran = sealed.run("verify", status=1, **where, **sealed.identity)
    assert json.loads(ran.stdout)["object"].endswith(doubtful)


def test_a_private_key_that_does_not_open_it_is_no_verdict(sealed: Sealed) -> None:
    name = sealed.backup(BACKUP_AGE_RECIPIENTS=sealed.public)["filename"]
    other, protected = str(sealed.new("other")), str(sealed.keys / "protected")
    subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "a word", "-f", protected], check=True)
    public = Path(f"{protected}.pub").read_text()
    ours = sealed.backup(BACKUP_AGE_RECIPIENTS=public)["filename"]
    os.mkfifo(nobody_writes := str(sealed.keys / "fifo"))
    for which, key, why in ((name, other, "no identity matched"), (ours, protected, "passphrase"),
                            (name, "/nowhere", "not there"), (name, f"{protected}.pub", "type"),
                            (name, nobody_writes, "is no file")):
        for command in (["verify", which], ["restore", which, "--database", "never"]):
            error = refusal(sealed, *command, AGE_IDENTITY_FILE=key)
            assert "AGE_IDENTITY_FILE" in error and key in error and why in error
            assert sealed.files() == []
    assert sealed.verdicts() == {name: None, ours: None}


@pytest.mark.parametrize("damage", [
    "payload", "header", "cut", "chunk", "nonce", "long header", "none", "another"])
def test_what_was_tampered_with_is_found_by_age_and_by_the_hash_of_the_archive(
        sealed: Sealed, damage: str) -> None:
    """Whoever may write to the bucket can make the object's own hash fit."""
    name = sealed.backup()["filename"]
    body, told = bytearray(sealed.objects()[name]), sealed.metadata(name)
    if damage == "another":
        said = subprocess.run([str(sealed.bin / "age"), "-r", sealed.public], check=True,
                              input=b"PGDMP", capture_output=True).stdout
        body[:] = said
    elif damage == "cut":
        del body[-1:]
    elif damage in ("chunk", "nonce"):  # as a chunk begins, or amid what is before the first
        del body[body.index(b"\n", body.index(b"\n--- ") + 1) + (17 if damage == "chunk" else 8):]
    elif damage == "long header":  # age would take 20 times its size of memory
        body[:] = b"age-encryption.org/v1\n" + b"-> x y\n\n" * 2**18
    elif damage == "none":
        body[:] = b"PGDMP"
    else:
        body[len(body) // 2 if damage == "payload" else body.index(b"\n--- ") + 6] ^= 1
    bad = f"backup_{int(time.time()) + 1}{ENDING}"
    sealed.put(bad, bytes(body), **told | {"sha256": sha256_of(bytes(body))})
    report = json.loads(sealed.run("verify", bad, status=1, **sealed.identity).stdout)
    why = {"another": "SHA-256 of its archive", "header": "header", "nonce": "read nonce",
           "chunk": "unexpected EOF", "long header": "no header of age", "none": "no header of age",
           }.get(damage, "authenticate")
    assert report["step"] == "decrypt" and re.search(f"^failed: .*{why}", report["verdict"])
    assert sealed.verdicts()[bad] == "failed"  # no more: it may be of rows
    assert "Restored" not in refused(sealed, bad, "--database", "never", **sealed.identity)


def test_a_restore_without_the_private_key_or_with_another_ends_before_the_download(
        sealed: Sealed, meddler: Proxy) -> None:
    sealed.sql("CREATE TABLE noise AS SELECT string_agg(sha512(i::text::bytea), '') AS x"
               " FROM generate_series(1, 300000) i")
    sealed.backup()
    assert "AGE_IDENTITY_FILE" in refused(sealed, "latest", "--database", "never", "--roles",
                                          **through(meddler))
    assert meddler.seen(rb"^GET \S+\.(bak|sql)") == 0
    error = refused(sealed, "latest", "--database", "never", **through(meddler),
                    AGE_IDENTITY_FILE=str(sealed.new("other")))
    assert "no identity matched" in error and meddler.seen(rb"^GET \S+\.bak\.age") == 1


def test_a_restore_of_a_large_one_looks_at_its_first_bytes_before_the_rest(
        sealed: Sealed, meddler: Proxy) -> None:
    """A role that is missing is found out before all is downloaded."""
    sealed.sql("""CREATE TABLE noise AS SELECT string_agg(sha512((k * 100000 + i)::text::bytea), '')
        AS x FROM generate_series(1, 4) k, generate_series(1, 100000) i GROUP BY k;
        CREATE ROLE missing_soon; GRANT SELECT ON noise TO missing_soon""")
    sealed.backup()
    sealed.sql("DROP OWNED BY missing_soon; DROP ROLE missing_soon")
    before = meddler.seen(rb"^GET \S+\.bak\.age")
    error = refused(sealed, "latest", "--database", "never", **sealed.identity, **through(meddler))
    assert "missing_soon" in error and meddler.seen(rb"^GET \S+\.bak\.age") == before + 1
    restored(sealed, "latest", "--database", f"{sealed.database}_new", "--no-owner",
             **sealed.identity)


def test_a_local_archive_is_opened_by_what_it_begins_with(
        sealed: Sealed, tmp_path: Path) -> None:
    name = sealed.backup()["filename"]
    for file in (tmp_path / name, tmp_path / "renamed"):
        file.write_bytes(sealed.objects()[name])
    asked = ("--file", str(tmp_path / name), "--database")
    assert "AGE_IDENTITY_FILE" in refused(sealed, *asked, "never")
    for number, file in enumerate([tmp_path / name, tmp_path / "renamed"]):
        new = f"{sealed.database}_{number}"
        restored(sealed, "--file", str(file), "--database", new, **sealed.identity)
        assert sealed.postgres.sql("SELECT count(*) FROM t", new) == "500"
        assert file.read_bytes() == sealed.objects()[name]


def test_one_is_restored_by_hand_as_the_readme_says(
        sealed: Sealed, new: str, tmp_path: Path) -> None:
    name = sealed.backup()["filename"]
    (tmp_path / "age").symlink_to(sealed.bin / "age")
    said = restored_by_hand(
        sealed, name, new, tmp_path, "plain PostgreSQL", KEY=str(sealed.age_key))
    assert said.count("public.t|500") == 1
