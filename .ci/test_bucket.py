"""Tests of buckets that keep versions, or lock them: SeaweedFS's, and moto's where they differ."""
from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from typing import Any, NamedTuple

import botocore.exceptions
import pytest

import backup_executor
from proxies import FORBIDDEN, SLOW, Proxy, http_answer, through
from servers import Moto, Postgres, S3Server, SeaweedFS, temporary_folder
from surroundings import FILLED, Scene

HIDDEN = "hidden, not removed: the bucket keeps it as an old version"  # people look for it
BY_VERSION = rb"^DELETE \S*versionId="


class Kept(NamedTuple):
    """A version that a bucket has, or a marker in the place of one."""

    name: str
    marker: bool
    version: str


@pytest.fixture(scope="module", params=[SeaweedFS, Moto], ids=["SeaweedFS", "moto"])
def server(request: pytest.FixtureRequest) -> Iterator[S3Server]:
    with temporary_folder() as folder, request.param(folder / "s3") as server:
        server.client().create_bucket(Bucket="backup", ObjectLockEnabledForBucket=True)
        yield server


@pytest.fixture
def keeping(server: S3Server, postgres: Postgres) -> Iterator[Scene]:
    """A Scene on a bucket that keeps versions, of which one backup is to be kept."""
    name = f"kept_{secrets.token_hex(4)}"
    with temporary_folder() as folder, postgres.dropping():
        postgres.make(name, FILLED)
        scene = Scene(postgres, server, folder, name, name)
        scene.settings |= {"FULL_BACKUPS": "1", "BACKUP_ROLES": "no-passwords"}
        yield scene


@pytest.fixture
def before(keeping: Scene) -> Iterator[Proxy]:
    """A proxy before it."""
    with Proxy(keeping.s3.port) as proxy:
        keeping.settings |= through(proxy)
        yield proxy


def kept(scene: Scene, bucket: str = "backup") -> list[Kept]:
    """All that is in the bucket under the prefix, also what no listing shows."""
    found = scene.s3_client.list_object_versions(Bucket=bucket, Prefix=f"{scene.prefix}/")
    return sorted(Kept(each["Key"].rpartition("/")[2], kind == "DeleteMarkers", each["VersionId"])
                  for kind in ("Versions", "DeleteMarkers") for each in found.get(kind, []))


def both(result: dict[str, Any]) -> list[str]:
    """The names of an archive and of its roles."""
    return [result["filename"], result["roles"].rpartition("/")[2]]


def line_of_check(scene: Scene) -> str:
    """What `check` says of the bucket."""
    [line] = re.findall("(?m)^.* bucket: .*", scene.run("check").stdout)
    return line


def test_what_retention_removes_is_gone_for_good_where_versions_are_kept(keeping: Scene) -> None:
    first, ran = keeping.backup(), keeping.run("backup")
    second = json.loads(ran.stdout)
    assert second["removed"] == [first["filepath_s3"][1:]]
    assert second["kept"] == {second["filepath_s3"][1:]: "proven"}
    assert [each.name for each in kept(keeping)] == both(second)
    assert "Removed an old backup" in ran.stderr and "level=warning" not in ran.stderr
    assert re.match("ok .*: written, read, deleted; 1 proven", line_of_check(keeping))
    assert [each.name for each in kept(keeping)] == both(second)
    assert json.loads(keeping.run("verify").stdout)["roles"] == "checked"


def test_what_may_only_be_hidden_is_called_hidden_not_removed(
        keeping: Scene, before: Proxy) -> None:
    """By a key that may not delete versions, which spares them from whoever steals it."""
    before.reply(BY_VERSION, FORBIDDEN)  # the archive, and then its roles
    before.reply(BY_VERSION, http_answer("501 Not Implemented", "NotImplemented"), times=10**6)
    first, ran = keeping.backup(), keeping.run("backup")
    second, name = json.loads(ran.stdout), first["filepath_s3"][1:]
    assert second["removed"] == [] and second["kept"][name] == HIDDEN
    assert re.search(f'level=info msg="An old backup is {HIDDEN}" Key=\\S*{name}', ran.stderr)
    assert re.search(f'msg="Roles without an archive: {HIDDEN}"', ran.stderr)
    assert "Removed an old backup" not in ran.stderr and "level=warning" not in ran.stderr
    assert sorted(keeping.objects()) == both(second)
    assert [each.name for each in kept(keeping) if not each.marker] == [
        *both(first), *both(second)]
    assert re.match(f"note .*: written, read, {HIDDEN} ", line_of_check(keeping))
    before.clear()
    third = keeping.backup()  # what is hidden is not looked at any more
    assert third["removed"] == [second["filepath_s3"][1:]]
    assert {each.name for each in kept(keeping)} >= {*both(first), *both(third)}
    key, s3 = third["filepath_s3"][1:], keeping.own_s3(5)
    for status in ("400 Bad Request", "405 Method Not Allowed"):
        before.reply(BY_VERSION, http_answer(status, "InvalidRequest"))
        assert s3.delete(key, s3.head(key)["VersionId"]) == HIDDEN and not before.rules
        keeping.put(third["filename"])


def test_backups_from_before_versions_were_kept_or_after_that_go_as_well(keeping: Scene) -> None:
    """They have the version "null", of which moto tells nobody."""
    bucket = keeping.settings["AWS_S3_BUCKET_NAME"] = f"null-{secrets.token_hex(4)}"
    keeping.s3_client.create_bucket(Bucket=bucket)
    first = keeping.backup()
    for status, there in (("Enabled", first), ("Suspended", None), ("Suspended", None)):
        keeping.s3_client.put_bucket_versioning(
            Bucket=bucket, VersioningConfiguration={"Status": status})
        result = keeping.backup()
        if isinstance(keeping.s3, Moto) and there:
            assert result["removed"] == [] and HIDDEN in result["kept"].values()
        else:
            assert len(result["removed"]) == 1 == len(result["kept"])
            assert {each.name for each in kept(keeping, bucket)} - set(both(first)) == set(
                both(result))
        assert re.match("ok .*: written, read, deleted; 1 proven", line_of_check(keeping))
    if not isinstance(keeping.s3, Moto):
        assert [each.name for each in kept(keeping, bucket)] == both(result)


def test_an_older_version_of_a_removed_backup_is_told_of_and_goes_next(keeping: Scene) -> None:
    """As where somebody has copied an object onto itself, to have it stored otherwise."""
    first = keeping.backup(BACKUP_ROLES="off")
    key, name = first["filepath_s3"][1:], first["filename"]
    keeping.put(name, keeping.objects()[name], **keeping.head(name)["Metadata"])
    second = keeping.backup(BACKUP_ROLES="off")
    assert second["removed"] == []
    assert second["kept"][key] == "removed, but its name has an older version"
    assert [each.name for each in kept(keeping)] == [name, second["filename"]]
    third = keeping.backup(BACKUP_ROLES="off")
    assert third["removed"] == [key, second["filepath_s3"][1:]]
    assert [each.name for each in kept(keeping)] == [third["filename"]]


def test_what_is_not_what_was_sent_leaves_no_version(keeping: Scene, before: Proxy) -> None:
    before.answer = lambda data: re.sub(rb"(?im)^(content-length: [1-9])", rb"\g<1>0", data)
    assert "sent: " in keeping.failure(BACKUP_ROLES="off")
    assert kept(keeping) == []


def test_a_bucket_without_versions_is_asked_for_none(scene: Scene, meddler: Proxy) -> None:
    old = [scene.backup()["filename"] for _ in range(3)]
    passed = len(meddler.requests)
    assert scene.backup(**through(meddler))["removed"] == [f"{scene.prefix}/{old[0]}"]
    assert meddler.seen(rb"versionId") == 0
    requests = [request.split(b" ", 2)[0] for request in meddler.requests[passed:]
                if old[0].encode() in request]
    assert requests == [b"HEAD", b"DELETE"]  # nothing there is locked since it was looked at


# ---- Object Lock -------------------------------------------------------------------------------

@pytest.fixture
def locking(keeping: Scene, before: Proxy) -> Scene:
    """A Scene on a bucket that locks each object for a day."""
    bucket = keeping.settings["AWS_S3_BUCKET_NAME"] = f"locked-{secrets.token_hex(4)}"
    keeping.s3_client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    keeping.s3_client.put_object_lock_configuration(Bucket=bucket, ObjectLockConfiguration={
        "ObjectLockEnabled": "Enabled",
        "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}}})
    return keeping


def test_a_bucket_that_locks_its_objects_will_do(locking: Scene, before: Proxy) -> None:
    """moto refuses PutObject without Content-MD5, as AWS does, but locks nothing of several parts.

    SeaweedFS locks these as well, and refuses a wrong Content-MD5.
    """
    bucket, locks = locking.settings["AWS_S3_BUCKET_NAME"], isinstance(locking.s3, SeaweedFS)
    if not locks:
        with pytest.raises(botocore.exceptions.ClientError, match="Content-MD5"):
            locking.s3_client.put_object(Bucket=bucket, Key="x", Body=b"x")
    assert re.match(f"note .*: written, read, {HIDDEN} ", line_of_check(locking))
    first, ran = locking.backup(), locking.run("backup")
    second, old = json.loads(ran.stdout), first["filepath_s3"][1:]
    for _ in range(2):  # the second verdict overwrites the first one
        assert json.loads(locking.run("verify").stdout)["roles"] == "checked"
    rows = json.loads(locking.run("list", "--json").stdout)
    assert rows[0]["name"] == second["filename"]
    assert rows[0]["verified"]["verdict"] == "readable"
    if locks:
        assert second["removed"] == [] and len(rows) == 2
        assert re.fullmatch(r"not removed: locked until 20\d\d-\S+", second["kept"][old])
        assert 'level=info msg="Object Lock keeps old backups" Objects=1' in ran.stderr
        assert before.seen(rb"^DELETE \S*\.bak") == 0  # nor is it hidden
        before.requests.clear()
        ran = locking.run("backup")  # one line for all, and one look at each
        assert ran.stderr.count("Object Lock") == 1 and "backups\" Objects=2" in ran.stderr
        assert before.seen(b"^HEAD \\S*/" + first["filename"].encode()) == 1
        assert len(json.loads(ran.stdout)["kept"]) == 3
    else:
        assert second["removed"] == [old] and len(rows) == 1
    assert "level=warning" not in ran.stderr


def test_everything_that_is_put_carries_its_md5(locking: Scene, before: Proxy) -> None:
    locking.run("check")
    locking.backup()
    locking.run("verify")
    puts = [request for request in before.requests if request.startswith(b"PUT ")]
    paths = [request.split(b" ")[1].partition(b"?") for request in puts]
    assert [bool(query) for _, _, query in paths] == [False, False, True, False]
    for request in puts:  # of check, of the roles, of a part, of the verdict
        head, _, sent = request.partition(b"\r\n\r\n")
        assert re.search(rb"(?im)^content-md5: [a-z0-9+/]{22}==", head) and sent


def test_a_backup_under_a_legal_hold_goes_when_that_has_ended(keeping: Scene) -> None:
    first = keeping.backup()
    hold: dict[str, Any] = {"Bucket": "backup", "Key": first["filepath_s3"][1:]}
    keeping.s3_client.put_object_legal_hold(**hold, LegalHold={"Status": "ON"})
    second = keeping.backup()
    assert second["kept"][hold["Key"]] == "not removed: locked while there is a legal hold"
    assert set(both(first)) <= set(keeping.objects())
    keeping.s3_client.put_object_legal_hold(**hold, LegalHold={"Status": "OFF"})
    third = keeping.backup()
    assert len(third["removed"]) == 2 and [each.name for each in kept(keeping)] == both(third)


def test_a_hold_that_comes_between_the_look_and_the_removal_holds(
        keeping: Scene, before: Proxy) -> None:
    first, s3 = keeping.backup(BACKUP_ROLES="off"), keeping.own_s3(5)
    [found] = s3.backups()
    passed = len(before.requests)
    before.reply(rb"^HEAD ", SLOW, times=9)
    with pytest.raises(backup_executor.S3Failure, match="503"):
        backup_executor.remove(s3, found, 0)
    assert len(before.requests) == passed + 1  # S3 was waited for before
    before.clear()
    hold: dict[str, Any] = {"Bucket": "backup", "Key": first["filepath_s3"][1:]}
    for status, said in (("ON", "not removed: locked while there is a legal hold"), ("OFF", "")):
        keeping.s3_client.put_object_legal_hold(**hold, LegalHold={"Status": status})
        assert backup_executor.remove(s3, found, 0) == said
        assert bool(keeping.objects()) == (status == "ON")
