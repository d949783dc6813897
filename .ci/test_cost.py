"""The tests of what commands ask of S3, beside few backups and beside many."""
from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import backup_executor
from proxies import FORBIDDEN, PART, Proxy, http_reply, through
from servers import PATIENCE, RcloneS3
from surroundings import Scene

INDEX = backup_executor.INDEX
LOOKS = backup_executor.LOOKS
HEAD = rb"^HEAD \S*/backup_\d+\.bak "
# What each command asked for before there was an index, its parts aside: with the server's roles
# and without, where the backup, or the proof, is of the newest of three. `check` has come to look
# whether the listing shows what it wrote.
BEFORE = {"backup": 22, "list": 5, "verify": 9, "check": 8, "restore": 5}
ALONE = BEFORE | {"backup": 13, "verify": 8}


def given(scene: Scene, count: int, first: int = 1, **change: str) -> list[str]:
    """Put so many of this database's backups into the bucket, but for a CHANGE; their names."""
    newest = scene.given_backup()
    body, metadata = scene.objects()[newest], scene.head(newest)["Metadata"]
    scene.s3_client.delete_object(Bucket="backup", Key=f"{scene.prefix}/{newest}")
    names = [f"backup_{1_700_000_000 + number}.bak" for number in range(first, first + count)]
    for name in names:
        scene.put(name, body, **metadata | change)
    return names


def index_of(scene: Scene) -> dict[str, list[Any]]:
    """The index's lines, by name."""
    stored = scene.s3_client.get_object(Bucket="backup", Key=f"{scene.prefix}/{INDEX}")
    lines = [json.loads(line) for line in stored["Body"].read().splitlines()]
    return {line[0].removeprefix(f"{scene.prefix}/"): line for line in lines}


def forge(scene: Scene, lines: dict[str, list[Any]]) -> None:
    scene.put(INDEX, "".join(f"{json.dumps(line)}\n" for line in lines.values()).encode())


def rows(scene: Scene, **settings: str) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(scene.run("list", "--json", **settings).stdout)
    return listed


@pytest.mark.parametrize(("roles", "before"), [("auto", BEFORE), ("off", ALONE)])
def test_beside_three_backups_no_command_asks_for_more_than_before_there_was_an_index(
        scene: Scene, meddler: Proxy, roles: str, before: dict[str, int]) -> None:
    scene.settings["BACKUP_ROLES"] = roles
    for _ in range(4):
        scene.backup()
    for command, most in before.items():
        meddler.requests.clear()
        more = ["latest", "--database", f"{scene.database}_new"] if command == "restore" else []
        scene.run(command, *more, **through(meddler))
        assert len(meddler.requests) - meddler.seen(PART) <= most, command
        assert meddler.seen(INDEX.encode()) == 0


def test_beside_many_backups_each_command_looks_at_the_newest_alone(
        scene: Scene, meddler: Proxy) -> None:
    kept = given(scene, 40)
    scene.settings |= {"FULL_BACKUPS": "40", "BACKUP_ROLES": "auto", **through(meddler)}
    first = scene.backup()
    assert meddler.seen(HEAD) >= 40 and meddler.seen(rb"^PUT \S*/" + INDEX.encode()) == 1
    assert meddler.seen(rb"(?is)^PUT \S*/" + INDEX.encode() + rb".*?\r\ncontent-md5: ") == 1
    assert set(index_of(scene)) == {*kept, first["filename"]}
    for command in ("backup", "list", "check", "restore", "verify"):
        meddler.requests.clear()
        more = ["latest", "--database", f"{scene.database}_new"] if command == "restore" else []
        scene.run(command, *more)
        beside = [x.split()[:2] for x in meddler.requests if not re.search(PART, x)]
        assert len(beside) <= 40 and len(beside) <= BEFORE[command] + LOOKS, beside
        writes = meddler.seen(rb"^PUT \S*/" + INDEX.encode())
        assert writes == (command == "backup"), "those who only read may have no right to write"
    assert [row["name"] for row in rows(scene)][-1] == kept[2]  # two have come, and two gone
    assert all(row["checksum"] for row in rows(scene))


def test_without_a_right_to_read_the_index_all_is_looked_at_without_a_word(
        scene: Scene, meddler: Proxy) -> None:
    given(scene, 12)
    scene.backup(FULL_BACKUPS="12")
    meddler.reply(rb"^GET \S*/" + INDEX.encode(), FORBIDDEN, times=1)
    ran = scene.run("list", "--json", **through(meddler))
    assert json.loads(ran.stdout) == rows(scene)
    assert meddler.seen(HEAD) == 12 and "level=warning" not in ran.stderr


def test_that_the_index_may_not_be_written_is_a_warning_and_the_backup_a_success(
        scene: Scene, meddler: Proxy) -> None:
    given(scene, 12)
    meddler.reply(rb"^PUT \S*/" + INDEX.encode(), FORBIDDEN, times=9)
    ran = scene.run("backup", FULL_BACKUPS="12", **through(meddler))
    assert len(json.loads(ran.stdout)["removed"]) == 1
    assert len(re.findall("level=warning .*index.*AccessDenied", ran.stderr)) == 1


def test_the_index_is_believed_of_nothing_but_what_is_listed_as_it_was(
        scene: Scene, meddler: Proxy) -> None:
    names = given(scene, 20)
    scene.backup(FULL_BACKUPS="20")
    other = {**scene.head(names[3])["Metadata"], "database": "another"}
    body, made = scene.objects()[names[3]], scene.head(names[3])["LastModified"]
    while scene.head(names[3])["LastModified"] == made:  # which tells seconds
        scene.put(names[3], body, **other)  # the same bytes, at another time
    scene.put(names[4], b"other bytes", **other)
    scene.s3_client.delete_object(Bucket="backup", Key=f"{scene.prefix}/{names[5]}")
    [late] = given(scene, 1, first=0)
    # wherever one looks from: a listing's times are no local ones
    found = {row["name"]: row["database"] for row in rows(
        scene, TZ="Asia/Tokyo", **through(meddler))}
    assert found[names[3]] == found[names[4]] == "another" and names[5] not in found
    assert found[late] == found[names[6]] == scene.database
    assert meddler.seen(HEAD) == LOOKS + 3


LONG = 17 * 2 ** 20


@pytest.mark.parametrize("text", [
    b"\0\xff", b"[]", b"7", b'["a", 1, "b", 2.0]', b'[[], {}, [], [], {}]', b"[" * 100_000,
    b"x" * LONG, b"[" + b"1," * (LONG // 2)],
    ids=["bytes", "empty", "number", "no metadata", "odd facts", "deep", "long", "many"])
def test_an_index_that_is_none_is_passed_over_with_one_warning_and_written_anew(
        scene: Scene, meddler: Proxy, text: bytes) -> None:
    given(scene, 12)
    before = rows(scene)
    scene.put(INDEX, text)
    ran = scene.run("list", "--json", **through(meddler))
    assert json.loads(ran.stdout) == before and meddler.seen(HEAD) == 12
    assert ran.stderr.count("level=warning") == 1 and INDEX in ran.stderr
    made = scene.run("backup", FULL_BACKUPS="12")
    assert made.stderr.count("level=warning") == 1
    assert len(index_of(scene)) == 13 and "level=warning" not in scene.run("list").stderr


@pytest.mark.parametrize("metadata", [None, 7, [], {"sha256": 7}, {"sha256": None}, {"a": []}])
def test_metadata_in_the_index_that_are_no_texts_are_not_believed(
        scene: Scene, metadata: Any) -> None:
    names = given(scene, 12)
    scene.backup(FULL_BACKUPS="12")
    before = rows(scene)
    lines = index_of(scene)
    lines[names[2]][-1] = metadata
    forge(scene, lines)
    assert rows(scene) == before


def test_an_object_that_an_index_claims_for_this_database_is_not_removed(
        scene: Scene, meddler: Proxy) -> None:
    names = given(scene, 12)
    theirs = given(scene, 1, first=0, database="another")
    kept = {"FULL_BACKUPS": "12", **through(meddler)}
    assert scene.backup(**kept)["removed"] == [f"{scene.prefix}/{names[0]}"]
    lines = index_of(scene)
    lines[theirs[0]][-1]["database"] = scene.database
    forge(scene, lines)
    ran = scene.run("backup", **kept)
    result = json.loads(ran.stdout)
    assert not result["removed"] and {*theirs, names[1]} <= set(scene.objects())
    assert "metadata" in result["kept"][f"{scene.prefix}/{theirs[0]}"]
    assert re.search(f"level=warning .*{theirs[0]}.*metadata", ran.stderr)
    meddler.requests.clear()
    after = scene.backup(**kept)  # which looks at all, and removes what it is to
    assert sorted(after["removed"]) == [f"{scene.prefix}/{name}" for name in names[1:3]]
    assert meddler.seen(HEAD) > 12 and theirs[0] in scene.objects()
    assert index_of(scene)[theirs[0]][-1]["database"] == "another"


@pytest.mark.parametrize("forged", ["another's", "steady"])
def test_no_index_makes_retention_take_what_is_kept_for_good(
        scene: Scene, meddler: Proxy, forged: str) -> None:
    """Those that go are ours, so that a look at them alone tells nothing."""
    good, few = given(scene, 9), {"FULL_BACKUPS": "9", **through(meddler)}
    theirs = given(scene, 9, first=10, database="another")
    body, metadata = scene.objects()[good[0]], scene.head(good[0])["Metadata"]
    small = [f"backup_{1_700_000_000 + number}.bak" for number in range(20, 30)]
    for name in small:
        scene.put(name, body[:len(body) // 4], **metadata)
    scene.sql("DELETE FROM t WHERE id > 1")
    assert scene.backup(**few)["removed"] == [f"{scene.prefix}/{name}" for name in small[:2]]
    lines = index_of(scene)
    if forged == "steady":
        lines[small[2]][-1]["steady"] = str(lines[small[2]][1])
    else:
        for name in theirs:
            lines[name][-1]["database"] = scene.database
    forge(scene, lines)
    scene.run("prune", status=1, **few)
    ran = scene.run("backup", **few)
    assert {*good, *theirs} < set(scene.objects()) and not json.loads(ran.stdout)["removed"]
    assert "level=warning" in ran.stderr and "metadata that it had not before" in ran.stderr
    after = scene.backup(**few)["removed"]  # which looks at all
    assert after and not {*after} & {f"{scene.prefix}/{name}" for name in good}
    meddler.requests.clear()
    scene.backup(**few)
    assert meddler.seen(HEAD) < 2 * LOOKS
    there = {*scene.objects()}  # and what cannot be looked at may be anything
    meddler.reply(rb"^HEAD \S*/" + good[8].encode(), FORBIDDEN, times=9)
    said = scene.run("prune", status=1, **few | {"FULL_BACKUPS": "3"}).stderr
    assert "what stays is not what it seemed" in said and {*scene.objects()} == there


SMALL = "backup_1700000002.bak"


def shrunk(scene: Scene) -> tuple[str, dict[str, list[Any]]]:
    """Have a backup, SMALL of a quarter of it, and others' that are newer; its name, the index."""
    [good] = given(scene, 1)
    body, metadata = scene.objects()[good], scene.head(good)["Metadata"]
    scene.put(SMALL, body[:len(body) // 4], **metadata)
    given(scene, LOOKS + 2, first=10, database="another")
    scene.sql("DELETE FROM t WHERE id > 1")
    last = scene.backup(FULL_BACKUPS="9")["filename"]
    scene.s3_client.delete_object(Bucket="backup", Key=f"{scene.prefix}/{last}")
    return good, index_of(scene)


def test_no_index_says_that_the_newest_backup_is_good(scene: Scene) -> None:
    _, lines = shrunk(scene)
    lines[SMALL][-1]["steady"] = str(scene.head(SMALL)["ContentLength"])
    forge(scene, lines)
    assert "steady" not in scene.head(scene.backup(FULL_BACKUPS="9")["filename"])["Metadata"]


@pytest.mark.parametrize("forged", [True, False])
def test_no_index_says_that_what_is_larger_is_another_databases(scene: Scene, forged: bool) -> None:
    good, lines = shrunk(scene)
    lines[good][-1]["database"] = "another"
    if not forged:
        metadata = scene.head(good)["Metadata"]
        scene.put(good, scene.objects()[good], **metadata | {"database": "another"})
    forge(scene, lines)
    told = scene.head(scene.backup(FULL_BACKUPS="9")["filename"])["Metadata"]
    assert ("steady" in told) == (not forged)


def test_the_latest_backup_is_not_one_that_only_the_index_knows(scene: Scene) -> None:
    ours = given(scene, 3)
    given(scene, 10, first=10, database="another")
    scene.backup(FULL_BACKUPS="20")
    newest = max(scene.objects())
    scene.s3_client.delete_object(Bucket="backup", Key=f"{scene.prefix}/{newest}")
    assert backup_executor.chosen(scene.own_s3(), "latest", scene.database).key.endswith(ours[2])
    lines = index_of(scene)
    lines["backup_1700000010.bak"][-1]["database"] = scene.database
    lines[ours[2]][-1]["sha256"] = "0" * 64
    forge(scene, lines)
    found = backup_executor.chosen(scene.own_s3(), "latest", scene.database)
    assert found.key.endswith(ours[2]) and found.known == scene.head(ours[2])["Metadata"]


def test_what_a_server_forgot_goes_by_its_archive_as_without_an_index(
        scene: Scene, tmp_path: Path) -> None:
    with RcloneS3(tmp_path / "s3") as s3:
        s3.client().create_bucket(Bucket="backup")
        here = Scene(scene.postgres, s3, scene.folder, scene.database, "here")
        name = here.backup()["filename"]
        body, metadata = here.objects()[name], here.head(name)["Metadata"]
        for number in range(1, 13):
            here.put(f"backup_{number}.bak", body, **metadata)
        here.backup(FULL_BACKUPS="14")
        s3.kill()
        s3.start()  # it keeps metadata in its memory
        made = [here.backup(FULL_BACKUPS="3") for _ in range(3)]
        assert [len(each["removed"]) for each in made] == [0, 0, 14]
        assert sorted(here.objects()) == [each["filename"] for each in made]


def test_backups_that_nothing_is_known_of_are_looked_at_side_by_side(
        scene: Scene, meddler: Proxy) -> None:
    given(scene, 2 * LOOKS)
    together = threading.Barrier(LOOKS)

    def answer(_: bytes) -> Iterator[bytes]:
        together.wait(PATIENCE)
        yield http_reply("403 Forbidden", b"")

    meddler.reply(HEAD, answer, times=2 * LOOKS)
    assert not any(row["checksum"] for row in rows(scene, **through(meddler)))
    assert not together.broken and meddler.seen(HEAD) == 2 * LOOKS


def test_a_backup_that_somebody_else_has_removed_meanwhile_is_no_failure(scene: Scene) -> None:
    [name] = given(scene, 1)
    s3 = scene.own_s3()
    [found] = s3.backups()
    scene.s3_client.delete_object(Bucket="backup", Key=found.key)
    assert backup_executor.remove(s3, found, 0) == "" and name not in scene.objects()


@pytest.mark.parametrize("text", [
    "2026-11-29T18:00:00Z", "2026-11-29T18:00:00.123Z", "2026-11-29T19:00:00+01:00",
    "2026-11-29T18:00:00.123456789Z", "Sun, 29 Nov 2026 18:00:00 GMT", "1795975200"])
def test_a_time_in_any_form_is_that_which_botocore_reads(text: str) -> None:
    from botocore.utils import parse_timestamp

    assert backup_executor.as_time(text) == parse_timestamp(text)
