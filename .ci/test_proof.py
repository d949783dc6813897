"""Tests of what proves a backup where an S3 server does not do what others do."""
from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import botocore.exceptions
import pytest

import backup_executor
from proxies import COMPLETING, FOREVER, SLOW, Proxy, http_answer, http_reply, through
from restores import same_databases
from servers import LocalBucket, RcloneS3, S3Server, executor_environment
from surroundings import FILLED, Scene, one_error, sha256_of

LISTING = rb"^GET \S*list-type=2"
MISSING = http_answer("404 Not Found", "")


def elsewhere(scene: Scene, s3: S3Server, prefix: str = "shared", database: str = "") -> Scene:
    """The same staging folder and server, with a bucket at another S3 server."""
    made = Scene(scene.postgres, s3, scene.folder, database or scene.database, prefix)
    made.settings["FULL_BACKUPS"] = "1"
    if not s3.client().list_buckets()["Buckets"]:
        s3.client().create_bucket(Bucket="backup")
    return made


@pytest.fixture
def forgetful(scene: Scene, tmp_path: Path) -> Iterator[Scene]:
    """A bucket at a server that keeps no metadata."""
    with LocalBucket(tmp_path / "s3") as s3:
        yield elsewhere(scene, s3)


# ---- No metadata -------------------------------------------------------------------------------

@pytest.mark.parametrize("roles", ["off", "auto"])
def test_a_server_that_keeps_no_metadata_gets_one_object_and_one_sentence_says_so(
        scene: Scene, forgetful: Scene, roles: str) -> None:
    forgetful.settings["BACKUP_ROLES"] = roles
    error = forgetful.failure()
    assert "S3 keeps no metadata, by which a backup is proven" in error
    [name] = forgetful.objects()
    assert name in error and name.endswith(".bak" if roles == "off" else ".roles.sql")
    dump, journal = forgetful.files()
    again = forgetful.run("backup", "--resume", status=1)  # as when `serve` has nothing to do
    assert "keeps no metadata" in one_error(again)
    assert "keeps no metadata" in forgetful.failure()  # the next night, and the one after it
    assert "keeps no metadata" in forgetful.failure()
    assert list(forgetful.objects()) == [name] and forgetful.files() == [dump, journal]
    body = (scene.folder / dump).read_bytes()
    result = scene.backup()  # at a server that keeps them
    assert scene.objects()[dump] == body
    archives = {name for name in scene.objects() if name.endswith(".bak")}
    assert archives == {dump, result["filename"]} and not scene.files()
    assert len(scene.objects()) == (2 if roles == "off" else 3)  # a scene has none by itself


def test_where_that_object_was_deleted_it_is_sent_once_again(forgetful: Scene) -> None:
    forgetful.failure()
    [name] = forgetful.objects()
    forgetful.s3_client.delete_object(Bucket="backup", Key=f"shared/{name}")
    for _ in range(2):
        assert "keeps no metadata" in forgetful.failure()
    assert list(forgetful.objects()) == [name] and len(forgetful.files()) == 2


def test_check_fails_where_no_metadata_are_kept(forgetful: Scene) -> None:
    said = forgetful.run("check", status=1).stdout
    assert re.search("(?m)^FAIL +bucket: .*it keeps no metadata, by which a backup is proven", said)
    assert not forgetful.objects()


def test_a_server_that_forgets_metadata_costs_another_database_under_the_prefix_nothing(
        scene: Scene, tmp_path: Path) -> None:
    scene.sql("CREATE DATABASE " + (neighbour := f"{scene.database}_billing"))
    with RcloneS3(tmp_path / "s3") as s3:
        ours, theirs = elsewhere(scene, s3), elsewhere(scene, s3, database=neighbour)
        theirs.sql(FILLED)
        mine, only = ours.backup()["filename"], theirs.backup()["filename"]
        s3.kill()
        s3.start()  # it keeps metadata in its memory
        ran = ours.run("backup")
        result = json.loads(ran.stdout)
        assert set(ours.objects()) == {only, result["filename"]}
        assert result["removed"] == [f"shared/{mine}"]
        said = f"an archive of database '{neighbour}'"
        assert said in result["kept"][f"shared/{only}"]
        assert re.search(f"level=warning .*Leaving alone.*{only}: no metadata: {said}", ran.stderr)
        same_databases(theirs, theirs.restored(only))


# ---- An ETag that is none of MD5s --------------------------------------------------------------

def other_etags(meddler: Proxy) -> None:
    """Have what was uploaded bear an ETag that looks like one of parts, and is not."""
    meddler.answer = meddler.other = lambda data: re.sub(
        rb'(?i)(etag(?:: |>)(?:"|&#34;|&quot;))[0-9a-f]{32}-', rb"\g<1>" + b"0" * 32 + b"-", data)


def test_what_has_another_etag_is_read_back_and_proven_where_it_is_the_same(
        big: Scene, meddler: Proxy) -> None:
    first = big.backup(FULL_BACKUPS="1")
    other_etags(meddler)
    pieces = rb"^GET \S*\.bak "
    meddler.reply(pieces, SLOW, times=1)
    meddler.shear(pieces, 1000)
    ran = big.run("backup", FULL_BACKUPS="1", **through(meddler, 0.05))
    result = json.loads(ran.stdout)
    assert "reading it back" in ran.stderr and result["removed"] == [first["filepath_s3"][1:]]
    [(name, body)] = big.objects().items()
    assert name == result["filename"] and sha256_of(body) == result["sha256"]
    assert meddler.seen(COMPLETING) == 1 and meddler.seen(pieces) >= 4 and not big.files()


def test_what_is_not_given_back_by_ranges_is_neither_proven_nor_removed(
        big: Scene, meddler: Proxy) -> None:
    other_etags(meddler)
    pieces = rb"^GET \S*\.bak "
    meddler.reply(pieces, http_reply("200 OK", b"all of it"), times=10**5)
    assert "it gave not bytes 0-" in big.failure(**through(meddler, 0.001))
    said = big.run("backup", "--resume", status=1, **through(meddler, 0.001))
    assert "it gave not bytes 0-" in one_error(said)
    meddler.clear()
    big.run("backup", "--resume", **through(meddler))
    assert len(big.objects()) == 1 and meddler.seen(COMPLETING) == 1 and not big.files()


def test_what_is_another_than_was_sent_is_not_proven_and_goes(
        scene: Scene, meddler: Proxy) -> None:
    swapped: list[str] = []

    def swap(data: bytes) -> bytes:
        """Put another archive of the same size and id there, once something is."""
        found = re.match(rb"HEAD /backup/(\S+\.bak) ", data)
        if found and not swapped:
            where = {"Bucket": "backup", "Key": found[1].decode()}
            try:
                head = scene.s3_client.head_object(**where)
            except botocore.exceptions.ClientError:
                return data
            upload = where | {"UploadId": scene.s3_client.create_multipart_upload(
                **where, Metadata=head["Metadata"])["UploadId"]}
            part = scene.s3_client.upload_part(
                **upload, PartNumber=1, Body=bytes(head["ContentLength"]))
            scene.s3_client.complete_multipart_upload(
                **upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})
            swapped.append(where["Key"])
        return data

    meddler.request = swap
    error = scene.failure(**through(meddler))
    assert swapped and swapped[0] in error and "sent: " in error
    assert not scene.objects() and len(scene.files()) == 2
    result = scene.backup()
    assert len(scene.objects()) == 2 and not scene.files()
    assert sha256_of(scene.objects()[result["filename"]]) == result["sha256"]


# ---- The listing -------------------------------------------------------------------------------

def unlisted(meddler: Proxy, times: int = 10**5) -> None:
    """Have the listing lack all that is there, from when an upload is completed on."""
    def fail(data: bytes) -> bytes:
        if re.match(COMPLETING, data):
            empty = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
            meddler.reply(LISTING, http_reply("200 OK", empty), times=times)
        return data

    meddler.request = fail


def test_what_is_stored_and_not_listed_is_no_backup_and_its_dump_stays(
        scene: Scene, meddler: Proxy) -> None:
    old = scene.given_backup()
    unlisted(meddler)
    error = scene.failure(FULL_BACKUPS="1", **through(meddler, 0.01))
    assert "not in the listing" in error and scene.prefix in error and "AWS_S3_PREFIX" in error
    first, new = scene.objects()
    dump, _ = scene.files()
    assert (first, dump) == (old, new)
    for command in (["backup", "--resume"], ["backup"]):  # the next night, too
        said = scene.run(*command, status=1, **through(meddler, 0.01)).stderr
        assert "not in the listing" in said and list(scene.objects()) == [old, new]
    assert meddler.seen(COMPLETING) == 1 and len(scene.files()) == 2
    meddler.clear()
    meddler.request = lambda data: data
    scene.settings["AWS_S3_PREFIX"] = scene.prefix = f"{scene.prefix}/mended"
    scene.run("backup", "--resume", **through(meddler))
    assert list(scene.objects()) == [new] and not scene.files()


def test_a_listing_that_lags_behind_is_waited_for(scene: Scene, meddler: Proxy) -> None:
    old = scene.given_backup()
    unlisted(meddler, times=2)
    result = scene.backup(FULL_BACKUPS="1", **through(meddler, 0.01))
    assert result["removed"] == [f"{scene.prefix}/{old}"]
    assert list(scene.objects()) == [result["filename"]] and not scene.files()


def test_what_two_slashes_hide_is_noticed_and_a_prefix_that_has_them_is_refused(
        scene: Scene) -> None:
    for prefix in ("team//db", "/team///db/"):
        said = scene.run("list", status=2, AWS_S3_PREFIX=prefix).stderr
        assert "AWS_S3_PREFIX is not free of //" in said
    environment = executor_environment(scene.settings, str(scene.folder), 17)
    s = backup_executor.read_settings(environment)
    s3 = backup_executor.S3(s._replace(aws_s3_prefix=f"{scene.prefix}//db"), 0)
    key = s3.key("backup_1685968191.bak")
    s3.put(key, b"text")
    assert s3.head(key)["ContentLength"] == 4 and not s3.backups()  # so it is with this server
    with pytest.raises(backup_executor.Unfit, match="not in the listing"):
        backup_executor.known_backups(s3, key)


def test_slashes_around_a_prefix_change_nothing(scene: Scene) -> None:
    result = scene.backup(AWS_S3_PREFIX=f"//{scene.prefix}//")
    assert result["filepath_s3"] == f"/{scene.prefix}/{result['filename']}"
    assert list(scene.objects()) == [result["filename"]]


# ---- Completing and aborting -------------------------------------------------------------------

def hidden(meddler: Proxy, times: int) -> None:
    """Have the next HEADs find nothing, once an upload was completed."""
    def hide(data: bytes) -> bytes:
        if re.match(COMPLETING, data):
            meddler.reply(rb"^HEAD ", MISSING, times=times)
        return data

    meddler.request = hide


def test_what_was_completed_and_is_not_there_yet_is_waited_for_and_sent_once(
        scene: Scene, meddler: Proxy) -> None:
    hidden(meddler, 3)
    result = scene.backup(**through(meddler, 0.01))
    assert list(scene.objects()) == [result["filename"]] and meddler.seen(COMPLETING) == 1
    assert meddler.seen(rb"^PUT \S*partNumber=") == 1


def test_what_was_completed_and_never_shows_is_asked_for_at_growing_pauses_till_patience_ends(
        scene: Scene, meddler: Proxy) -> None:
    hidden(meddler, 10**5)
    assert "does not show it" in scene.failure(**through(meddler, 0.01))
    assert meddler.seen(COMPLETING) == 1 and 10 < meddler.seen(rb"^HEAD ") < 100
    meddler.clear()
    meddler.request = lambda data: data
    [name] = scene.objects()  # it was there all the time
    scene.run("backup", "--resume", **through(meddler))
    assert list(scene.objects()) == [name] and not scene.files()
    assert meddler.seen(COMPLETING) == 1


@pytest.mark.parametrize("answer", [
    http_answer("400 Bad Request", "InvalidRequest"),
    http_answer("405 Method Not Allowed", "MethodNotAllowed"),
    http_answer("501 Not Implemented", "NotImplemented")], ids=["400", "405", "501"])
def test_an_abort_that_a_server_does_not_know_hinders_nothing(
        scene: Scene, meddler: Proxy, answer: bytes) -> None:
    meddler.reply(COMPLETING, SLOW, times=10**5)
    meddler.reply(rb"^DELETE \S*uploadId=", answer, times=FOREVER)
    scene.failure(**through(meddler, 0.001))
    [name, _] = scene.files()
    meddler.clear()
    result = scene.backup(**through(meddler))
    assert list(scene.objects()) == [name, result["filename"]] and not scene.files()
    meddler.reply(COMPLETING, SLOW, times=10**5)
    scene.failure(**through(meddler, 0.001))
    meddler.clear()
    [damaged, _] = scene.files()
    (scene.folder / damaged).write_bytes(b"no archive")
    last = scene.backup(**through(meddler))  # what is left and is not whole is aborted, too
    assert meddler.seen(rb"^DELETE \S*uploadId=") >= 4
    assert last["filename"] in scene.objects() and scene.files() == [damaged]
