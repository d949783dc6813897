"""Tests of retention: what is removed, and what never is."""
from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies

import backup_executor
from proxies import COMPLETING, FORBIDDEN, Proxy, http_answer, http_reply, through
from restores import archive
from servers import RcloneS3
from surroundings import FILLED, Scene


def test_retention_removes_this_databases_older_proven_backups_and_nothing_else(
        scene: Scene) -> None:
    scene.prefix = scene.settings["AWS_S3_PREFIX"] = f"{scene.prefix}/.x+(ä ö)"
    metadata = scene.head(scene.backup()["filename"])["Metadata"]
    [first] = scene.objects()
    ours = {f"backup_{i}.bak" for i in (1000, 2000, 3000)}
    for name in ours:
        scene.put(name, scene.objects()[first], **metadata)
    scene.put("backup_1500.bak", scene.objects()[first])  # an older executor's, of which server?
    young = f"backup_{int(time.time()) + 1000}.bak"
    scene.put(young)
    others = {"backup_1.bak/x", "backup_\u0661.bak", "backup_.bak", "xbackup_1.bak", "notes.txt",
              "backup_5.bak.old", "backup_-5.bak", "backup_1.bak2", "backup_7.BAK",
              "deep/backup_1.bak"}
    for name in others:
        scene.put(name, **{k: v for k, v in metadata.items() if name != "notes.txt"})
    for name, change in (("backup_4000.bak", {"database": "another"}),
                         ("backup_4001.bak", {"database": scene.database + "x"}),
                         ("backup_4002.bak", {"system-identifier": "123"}),
                         ("backup_4003.bak", {"sha256": ""})):
        others.add(name)
        scene.put(name, **{**metadata, **change})
    before = scene.objects()
    result = scene.backup(FULL_BACKUPS="2")
    assert set(before) - set(scene.objects()) == ours
    assert set(scene.objects()) == {first, young, result["filename"], "backup_1500.bak"} | others
    assert sorted(result["removed"]) == sorted(f"{scene.prefix}/{name}" for name in ours)
    assert "another server" in result["kept"][f"{scene.prefix}/backup_1500.bak"]


def test_an_older_executors_backups_stay_until_enough_proven_ones_are_newer(scene: Scene) -> None:
    legacy = {f"backup_{i}.bak" for i in (1000, 2000, 3000, 4000)}
    first = scene.backup(FULL_BACKUPS="3")["filename"]
    for name in legacy:
        scene.put(name, scene.objects()[first])
    scene.backup(FULL_BACKUPS="3")
    assert len(scene.objects()) == 6 and legacy < set(scene.objects())
    ran = scene.run("backup", FULL_BACKUPS="3")
    assert len(scene.objects()) == 3 and not legacy & set(scene.objects())
    for name in legacy:
        assert re.search(rf'level=info msg="Removed an old backup" Key=\S*/{name} ', ran.stderr)


def test_an_emptied_databases_backups_do_not_eat_the_older_executors(scene: Scene) -> None:
    scene.put("backup_1000.bak", archive(scene))
    scene.sql("DELETE FROM t WHERE id > 1")
    for _ in range(4):
        small = scene.backup(FULL_BACKUPS="3")["filename"]
    assert {"backup_1000.bak", small} < set(scene.objects()) and len(scene.objects()) == 4
    scene.put("backup_999.bak", archive(scene))  # one as small is old enough
    assert scene.backup(FULL_BACKUPS="3")["removed"][-1].endswith("backup_999.bak")
    scene.sql("INSERT INTO t (id, text) SELECT i, md5(i::text) FROM generate_series(1000, 1900) i")
    for night in range(3):
        assert "backup_1000.bak" in scene.objects(), night
        scene.backup(FULL_BACKUPS="3")
    assert "backup_1000.bak" not in scene.objects()


def test_an_object_without_metadata_goes_only_if_its_archive_names_this_database(
        scene: Scene, meddler: Proxy) -> None:
    scene.given_backup()
    body = archive(scene)
    other = body.replace(scene.database.encode(), scene.database[:-1].encode() + b"_", 1)
    stays = {
        1: (b"", "no archive"), 2: (b"somebody's", "no archive"), 3: (body[:60], "no archive"),
        4: (b"PGDMP" + body, "no archive"), 5: (other, f"of database '{scene.database[:-1]}_'"),
        6: (body.replace(b"17.10", b"16.10", 1), "PostgreSQL 16.10"), 7: (body, "AccessDenied"),
        8: (body, "something else")}
    for number, (what, _) in stays.items():
        scene.put(f"backup_{number}.bak", what)
    scene.put("backup_9.bak", body)
    scene.put("backup_10.bak", body[:200])  # as much as it takes to say whose it is
    meddler.reply(rb"^GET \S*backup_7\.bak", FORBIDDEN, times=10)
    meddler.reply(rb"^GET \S*backup_8\.bak", http_reply("200 OK", body), times=1)
    ran = scene.run("backup", FULL_BACKUPS="1", **through(meddler))
    result = json.loads(ran.stdout)
    gone = {"backup_9.bak", "backup_10.bak"}
    assert gone < {os.path.basename(key) for key in result["removed"]}
    assert set(scene.objects()) == {f"backup_{number}.bak" for number in stays} | {
        result["filename"]}
    for number, (_, why) in stays.items():
        said = result["kept"][f"{scene.prefix}/backup_{number}.bak"]
        assert said.startswith("no metadata: ") and why in said
    assert len(re.findall("level=warning .*no metadata.*Objects=8", ran.stderr)) == 1
    for key in result["removed"]:  # a proven one, too
        assert re.search(rf'level=info msg="Removed an old backup" Key={key} ', ran.stderr)
    for number in (*stays, 9, 10):
        assert number == 1 or meddler.seen(rf"^GET \S*backup_{number}\.bak".encode()) == 1


def test_an_s3_that_goes_away_while_heads_are_read_is_asked_for_no_other(
        scene: Scene, meddler: Proxy) -> None:
    body = archive(scene)
    for number in range(1, 9):
        scene.put(f"backup_{number}.bak", body)
    away = http_answer("503 Service Unavailable", "SlowDown")
    meddler.reply(rb"^GET \S*backup_\d\.bak", away, times=1000)
    result = scene.backup(FULL_BACKUPS="1", **through(meddler, 0.001))
    assert len(scene.objects()) == 9 and not result["removed"]
    assert all(said == "proven" or "SlowDown" in said for said in result["kept"].values())
    asked = {x.split()[1] for x in meddler.requests if re.match(rb"GET \S*backup_\d\.bak", x)}
    assert len(result["kept"]) == 9 and len(asked) == 1


def test_the_objects_whose_heads_one_backup_reads_are_few_and_others_have_their_turn(
        scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scene.backup()
    body, made = scene.objects()[first["filename"]], backup_executor.Dump("", **first)
    for number in range(1, 6):
        scene.put(f"backup_{number}.bak", body if number % 2 else b"somebody's")
    s3 = scene.own_s3(FULL_BACKUPS="1")
    monkeypatch.setattr(backup_executor, "HEADS", 2)
    removed = set[str]()
    for _ in range(1000):  # two of the five, three of which are ours, are looked at
        report = backup_executor.prune(s3, made, s3.backups())
        assert len(report["removed"]) <= 2
        removed |= set(report["removed"])
        if len(removed) == 3:
            break
    assert sorted(scene.objects()) == sorted(
        ["backup_2.bak", "backup_4.bak", first["filename"]])


def test_what_a_server_forgot_of_another_database_costs_it_no_backup(
        scene: Scene, tmp_path: Path) -> None:
    scene.sql("CREATE DATABASE " + (neighbour := f"{scene.database}_billing"))
    with RcloneS3(tmp_path / "s3") as s3:
        s3.client().create_bucket(Bucket="backup")
        ours, theirs = (Scene(scene.postgres, s3, scene.folder, database, "shared")
                        for database in (scene.database, neighbour))
        theirs.sql(FILLED)
        mine = [ours.backup(FULL_BACKUPS="2")["filename"] for _ in range(2)]
        only = theirs.backup(FULL_BACKUPS="2")["filename"]
        s3.kill()
        s3.start()  # it keeps metadata in its memory
        assert not ours.head(mine[0])["Metadata"] and not ours.head(only)["Metadata"]
        ours.sql("DELETE FROM t WHERE id = 1")  # else it may be the same within a second
        mine.append(ours.backup(FULL_BACKUPS="2")["filename"])
        assert set(ours.objects()) == {*mine, only}  # one is proven, of two that must be newer
        ran = ours.run("backup", FULL_BACKUPS="2")
        last = json.loads(ran.stdout)
        assert set(ours.objects()) == {mine[2], last["filename"], only}
        assert set(last["removed"]) == {f"shared/{name}" for name in mine[:2]}
        assert f"of database '{neighbour}'" in last["kept"][f"shared/{only}"]
        [line] = [x for x in ran.stderr.splitlines() if "level=warning" in x and only in x]
        assert neighbour in line
        theirs.restored(only)


def test_the_head_of_an_archive_that_is_damaged_or_cut_off_names_no_database(scene: Scene) -> None:
    head = archive(scene)[:4096]
    whole = backup_executor.archive_origin(head)
    assert whole == (scene.database, "17.10")
    end = head.index(b"17.10") + len(b"17.10")
    for size in range(end):
        assert backup_executor.archive_origin(head[:size]) == ("", "")
    assert backup_executor.archive_origin(head[:end]) == whole

    @hypothesis.given(strategies.integers(0, end - 1), strategies.binary(max_size=9))
    def damaged(place: int, instead: bytes) -> None:
        what = head[:place] + instead + head[place + len(instead):end]
        name, version = backup_executor.archive_origin(what)
        assert bool(name) == bool(version) and len(name.encode() + version.encode()) < len(what)
        assert name in ("", scene.database) or name.encode() in what

    @hypothesis.given(strategies.binary(max_size=200), strategies.integers(0, 46))
    def garbage(noise: bytes, kept: int) -> None:  # 46: all but the texts and the last of an int
        assert backup_executor.archive_origin(noise) == ("", "")
        backup_executor.archive_origin(head[:kept] + noise)  # whatever it says: no error

    damaged()
    garbage()


def test_an_object_with_metadata_of_somebodys_is_no_older_executors(scene: Scene) -> None:
    scene.put("backup_1000.bak", mtime="1795426450.96884424")  # as rclone copies a file
    for _ in range(2):
        result = scene.backup(FULL_BACKUPS="1")
    assert sorted(scene.objects()) == ["backup_1000.bak", result["filename"]]


def test_an_emptied_databases_backups_do_not_eat_the_good_ones(scene: Scene) -> None:
    names = [scene.backup(FULL_BACKUPS="2")["filename"] for _ in range(3)]
    scene.sql("DELETE FROM t WHERE id > 1")
    for _ in range(4):
        ran = scene.run("backup", FULL_BACKUPS="2")
        names.append(json.loads(ran.stdout)["filename"])
        assert re.search("level=warning .*half", ran.stderr)
    assert sorted(scene.objects()) == names[1:3] + names[5:]
    for name in names[1:3]:  # now the small ones are good
        scene.s3_client.delete_object(Bucket="backup", Key=f"{scene.prefix}/{name}")
    names.append(scene.backup(FULL_BACKUPS="2")["filename"])
    assert sorted(scene.objects()) == names[6:]


@pytest.mark.parametrize("broken", [rb"^DELETE ", rb"^GET \S*list-type"],
                         ids=["deleting", "listing"])
def test_a_refused_deletion_is_reported_and_the_backup_is_a_success(
        scene: Scene, meddler: Proxy, broken: bytes) -> None:
    old = scene.given_backup()
    if broken.startswith(b"^DELETE"):
        meddler.reply(broken, FORBIDDEN, times=10)
    else:  # listing fails once the new backup is there
        def fail(data: bytes) -> bytes:
            if re.match(COMPLETING, data):
                meddler.reply(broken, FORBIDDEN, times=10)
            return data
        meddler.request = fail
    ran = scene.run("backup", FULL_BACKUPS="1", **through(meddler))
    result = json.loads(ran.stdout)
    assert sorted(scene.objects()) == [old, result["filename"]] and not result["removed"]
    assert "level=warning" in ran.stderr and "AccessDenied" in ran.stderr
    if broken.startswith(b"^DELETE"):
        assert "AccessDenied" in result["kept"][f"{scene.prefix}/{old}"]


def test_an_object_that_cannot_be_looked_at_stays(scene: Scene, meddler: Proxy) -> None:
    names = [scene.backup()["filename"] for _ in range(3)]
    meddler.reply(rb"^HEAD \S*" + names[0].encode(), FORBIDDEN, times=10)
    names.append(scene.backup(FULL_BACKUPS="1", **through(meddler))["filename"])
    assert sorted(scene.objects()) == [names[0], names[3]]


def test_a_bucket_of_more_objects_than_one_listing_has_is_read_to_its_end(scene: Scene) -> None:
    for number in range(1001):  # a listing has at most 1,000
        scene.put(f"backup_0.{number}", b"")
    for _ in range(2):
        result = scene.backup(FULL_BACKUPS="1")
    assert len(result["removed"]) == 1
    [row] = json.loads(scene.run("list", "--json").stdout)
    assert row["name"] == result["filename"]


def test_a_clock_that_is_behind_counts_on_from_the_newest(scene: Scene) -> None:
    metadata = scene.head(scene.given_backup())["Metadata"]
    later = int(time.time()) + 10**6
    scene.put(f"backup_{later}.bak", **metadata)
    scene.put(f"backup_{later + 50}.bak")  # which proves nothing
    ran = scene.run("backup")
    assert json.loads(ran.stdout)["filename"] == f"backup_{later + 1}.bak"
    assert re.search("level=warning .*clock", ran.stderr)
