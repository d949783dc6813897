"""Tests of uploads: what is stored and proven, what it takes, S3 that fails meanwhile."""
from __future__ import annotations

import base64
import collections
import contextlib
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import synthetic_programs
from proxies import (
    COMPLETING,
    FORBIDDEN,
    PART,
    SLOW,
    Encrypting,
    Proxy,
    Severing,
    http_answer,
    through,
)
from restores import same_databases
from servers import (
    BY_PATH,
    PATIENCE,
    Executor,
    RcloneS3,
    certificate,
    descendants,
    memory,
)
from surroundings import Scene, Site, sha256_of

# ---- A backup ----------------------------------------------------------------------------------

def test_each_part_carries_its_md5(big: Scene, meddler: Proxy) -> None:
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
    assert offset == len(body) and len(parts) >= 3
    assert big.head(result["filename"])["ETag"] == \
        f'"{hashlib.md5(digests).hexdigest()}-{len(parts)}"'


def test_a_part_that_is_damaged_on_its_way_is_sent_again(scene: Scene, meddler: Proxy) -> None:
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


def test_a_success_that_s3_does_not_prove_is_none_also_when_tried_again(
        big: Scene, meddler: Proxy) -> None:
    first = big.backup(FULL_BACKUPS="1")["filename"]
    meddler.answer = lambda head: re.sub(rb"(?im)^(content-length: )\d+", rb"\g<1>7", head)
    for _ in range(2):
        assert big.prefix in big.failure(FULL_BACKUPS="1", **through(meddler, 0.01))
        assert list(big.objects()) == [first]  # retention comes after the proof; the other is none
    result = big.backup()
    assert sha256_of(big.objects()[result["filename"]]) == result["sha256"] and not big.files()


def test_a_part_that_another_md5_came_back_for_is_no_success(big: Scene, meddler: Proxy) -> None:
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


def test_etags_that_are_no_md5s_will_do(scene: Scene) -> None:
    """As where the server encrypts with a key of its own (KMS): they vouch for nothing."""
    with Encrypting(scene.s3.port) as proxy:
        first = scene.backup(FULL_BACKUPS="1", **through(proxy))
        second = scene.backup(FULL_BACKUPS="1", **through(proxy))
        assert second["removed"] == [first["filepath_s3"][1:]]
        seen = scene.s3.client(endpoint=f"http://127.0.0.1:{proxy.port}").head_object(
            Bucket="backup", Key=second["filepath_s3"][1:])["ETag"]
        assert seen != scene.head(second["filename"])["ETag"] and "-" in seen
        report = json.loads(scene.run("verify", **through(proxy)).stdout)
        assert (report["verdict"], report["sha256"]) == ("readable", "checked")
    assert sha256_of(scene.objects()[second["filename"]]) == second["sha256"]


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


@pytest.mark.parametrize("after", [0, 2 * 1024**2], ids=["in its handshake", "in a part"])
def test_a_connection_that_is_cut_over_https_is_made_again(
        big: Scene, tmp_path: Path, after: int) -> None:
    with RcloneS3(tmp_path / "s3", certificate(tmp_path)) as s3, Severing(s3.port, after) as proxy:
        secure = Scene(big.postgres, s3, big.folder, "big", "deep/er")
        secure.settings["AWS_S3_ENDPOINT"] = f"https://127.0.0.1:{proxy.port}"
        result = secure.backup()
        assert not proxy.left and not secure.files()
        assert sha256_of(secure.objects()[result["filename"]]) == result["sha256"]


# ---- What a backup takes -----------------------------------------------------------------------

@contextlib.contextmanager
def completing(meddler: Proxy) -> Iterator[threading.Event]:
    """Hold the request that completes an upload; what is yielded is set when it has come."""
    come, go = threading.Event(), threading.Event()

    def hold(data: bytes) -> bytes:
        if re.match(COMPLETING, data):
            come.set()
            go.wait(PATIENCE)
        return data

    meddler.request = hold
    try:
        yield come
    finally:
        go.set()


def test_a_backup_sends_each_part_once_and_asks_for_little_besides(
        big: Scene, meddler: Proxy) -> None:
    size = big.backup(**through(meddler))["size"]
    kinds = {"list": rb"GET \S*list-type=2", "head": rb"HEAD ", "create": rb"POST \S*\?uploads",
             "part": PART, "complete": COMPLETING}
    asked = collections.Counter(next((kind for kind, pattern in kinds.items()
                                      if re.match(pattern, request)), "other")
                                for request in meddler.requests)
    # listed before the dump and for retention; is the key free, also when all is sent, what came
    # of it, and, for retention, whose it is
    assert asked == {"list": 2, "head": 4, "create": 1, "part": -(-size // 2**24), "complete": 1}
    numbers = [found[1] for request in meddler.requests
               if (found := re.match(PART + rb"(\d+)", request))]
    assert len(set(numbers)) == len(numbers)


def test_a_backup_reads_its_archive_three_times(big: Scene, meddler: Proxy) -> None:
    with completing(meddler) as come, big.start(**through(meddler)) as executor:
        assert come.wait(PATIENCE)
        size = next(big.folder.glob("*.bak")).stat().st_size
        read = int(Path(f"/proc/{executor.pid}/io").read_text().split()[1])
    # for the SHA-256, for the parts' MD5s, and to send it; Python's own files come to some MB
    assert 3 * size <= read < 3.5 * size


def test_an_archives_size_does_not_show_in_the_memory(
        site: Site, meddler: Proxy, tmp_path: Path) -> None:
    peaks: list[float] = []
    for size in (20_000_000, 300_000_000):
        path = synthetic_programs(tmp_path / str(size), size)
        with Executor({**site.environ(PATH=path), **through(meddler)}, by=BY_PATH) as executor:
            site.standin.wait_call("assignprocessmsg", 0, len(peaks) + 1)
            executor.wait_for("`check` has ended")  # which has memory of its own
            assert memory(executor.pid) <= 44
            with completing(meddler) as come:
                process = site.submit()
                assert come.wait(PATIENCE)
                peaks.append(sum(memory(pid, "VmHWM") for pid in [
                    executor.pid, *descendants(executor.pid)]))
            assert site.succeeds(process)["size"] == size
            site.standin.wait_call("assignprocessmsg", 0, 2 * len(peaks))
            assert memory(executor.pid) <= 44
            executor.stop()
    # Of two processes that were started by the script's path: each keeps what Python made of it.
    assert max(peaks) <= 125 and peaks[1] - peaks[0] < 3


def test_a_download_asks_for_each_byte_once_and_again_where_bytes_are_missing(
        big: Scene, meddler: Proxy) -> None:
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
        big: Scene, meddler: Proxy) -> None:
    big.backup()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % 2**24  # it knows no ranges
    meddler.reply(rb"^GET \S*\.bak", answer + bytes(2**24), times=10**5)
    said = big.run("verify", status=1, **through(meddler, 0.01))
    assert "it gave not bytes" in said.stderr and not said.stdout
    assert "verified.json" not in big.objects()


# ---- S3 that fails meanwhile -------------------------------------------------------------------

def test_s3_that_goes_away_in_the_middle_of_an_upload_is_waited_for(
        big: Scene, meddler: Proxy) -> None:
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
            scene.s3_client = scene.s3.client()
            scene.s3_client.create_bucket(Bucket="backup")
            scene.settings |= {"AWS_S3_ACCESS_KEY": scene.s3.access_key,
                               "AWS_S3_SECRET_ACCESS_KEY": scene.s3.secret_key}
        proxy = stack.enter_context(Proxy(scene.s3.port))
        proxy.lose(COMPLETING)
        result = scene.backup(**through(proxy, 0.05))
        [(name, body)] = scene.objects().items()
    assert name == result["filename"] and sha256_of(body) == result["sha256"]
    assert proxy.seen(COMPLETING) >= 1 and not scene.files()


@pytest.mark.parametrize("answer", [
    SLOW, http_answer("500 Internal Server Error", "InternalError"),
    http_answer("200 OK", "InternalError"), http_answer("502 Bad Gateway", ""),
    http_answer("501 Not Implemented", "NotImplemented")],  # it knows no condition
    ids=["503", "500", "200-with-an-error", "502", "501"])
def test_a_completing_request_that_fails_twice_is_repeated(
        scene: Scene, meddler: Proxy, answer: bytes) -> None:
    meddler.reply(COMPLETING, answer, times=1 if b" 501 " in answer else 2)
    result = scene.backup(**through(meddler, 0.05))
    [(name, body)] = scene.objects().items()
    assert name == result["filename"] and sha256_of(body) == result["sha256"]
    assert not scene.uploads() and not scene.files()


@pytest.mark.parametrize("answer", [SLOW, FORBIDDEN, http_answer("200 OK", "")],
                         ids=["503", "403", "200-with-nothing"])
def test_a_dump_that_s3_never_takes_is_kept_and_uploaded_before_the_next(
        scene: Scene, meddler: Proxy, answer: bytes) -> None:
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
        scene: Scene, meddler: Proxy) -> None:
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
    others = {f"backup_{start + i}.bak": f"other {i}".encode() for i in range(60)}
    for name, body in others.items():
        scene.put(name, body, owner="somebody")
    result = scene.backup()
    assert result["filename"] == f"backup_{start + 60}.bak"
    objects = scene.objects()
    assert sha256_of(objects.pop(result["filename"])) == result["sha256"] and objects == others


def test_a_server_that_has_something_under_every_name_is_a_clear_failure(
        scene: Scene, meddler: Proxy) -> None:
    meddler.reply(rb"^HEAD ", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: \"x\"\r\n"
                  b"Connection: close\r\n\r\n", times=10**5)
    assert "is taken, too" in scene.failure(**through(meddler))
    assert len(scene.files()) == 2 and not scene.objects()  # the dump is kept, and its journal
    assert meddler.seen(rb"^HEAD ") == 1000
    scene.run("backup", "--resume")
    assert len(scene.objects()) == 1 and not scene.files()


def test_an_object_that_appears_at_the_last_moment_is_not_overwritten(
        scene: Scene, meddler: Proxy) -> None:
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


# ---- An upload that is lost --------------------------------------------------------------------

CREATING = rb"^POST \S*\?uploads"


def cleaning(big: Scene, meddler: Proxy, times: int, at: bytes = PART + b"2") -> None:
    """Have somebody remove what is uploading, as a bucket's rule for unfinished uploads does."""
    seen = 0

    def clean(data: bytes) -> bytes:
        nonlocal seen
        if re.match(at, data) and seen < times:
            seen += 1
            for each in big.uploads():
                big.s3_client.abort_multipart_upload(
                    Bucket="backup", Key=each["Key"], UploadId=each["UploadId"])
        return data

    meddler.request = clean


def test_an_upload_that_somebody_removes_amid_its_parts_is_begun_anew(
        big: Scene, meddler: Proxy) -> None:
    cleaning(big, meddler, 1)
    made = big.run("backup", **through(meddler))
    assert re.search("level=warning .*begun anew.*NoSuchUpload", made.stderr)
    result = json.loads(made.stdout)
    [(name, body)] = big.objects().items()
    assert name == result["filename"] and sha256_of(body) == result["sha256"]
    assert meddler.seen(CREATING) == 2 and not big.uploads() and not big.files()


def test_an_upload_that_is_removed_as_it_is_completed_is_completed_the_second_time(
        big: Scene, meddler: Proxy) -> None:
    """Also where to send it takes longer than S3 is waited for."""
    cleaning(big, meddler, 1, COMPLETING)
    result = json.loads(big.run("backup", **through(meddler, 0.0001)).stdout)
    [(name, body)] = big.objects().items()
    assert name == result["filename"] and sha256_of(body) == result["sha256"]
    assert meddler.seen(CREATING) == 2 and not big.uploads() and not big.files()


@pytest.mark.parametrize("at", [PART + b"2", COMPLETING], ids=["amid", "completed"])
def test_an_upload_that_is_removed_again_and_again_is_no_loop(
        big: Scene, meddler: Proxy, at: bytes) -> None:
    cleaning(big, meddler, 99, at)
    said = big.failure(**through(meddler, 0.001))
    assert re.search("NoSuchUpload.*unfinished uploads", said)
    assert meddler.seen(CREATING) == 2 and not big.uploads() and not big.objects()
    assert len(big.files()) == 2  # the dump stays
    big.run("backup", "--resume")
    assert len(big.objects()) == 1 and not big.files()


def test_a_server_that_takes_no_part_a_second_time_gets_all_of_them_anew(
        big: Scene, meddler: Proxy) -> None:
    meddler.reply(PART + b"2", SLOW)
    meddler.reply(PART + b"2", http_answer("501 Not Implemented", "NotImplemented"))
    made = big.run("backup", **through(meddler, 0.05))
    assert re.search(r"level=warning .*begun anew.*NotImplemented", made.stderr)
    result = json.loads(made.stdout)
    [(name, body)] = big.objects().items()
    assert name == result["filename"] and sha256_of(body) == result["sha256"]
    assert meddler.seen(CREATING) == 2 and not big.uploads() and not big.files()
