"""Tests of odd peers and odd moments."""
from __future__ import annotations

import base64
import functools
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backup_executor import FUNCTIONS
from colonies import (
    CANCELLED,
    COLONY_NAME,
    FAILED,
    OWNER_KEY,
    RUNNING,
    UNREGISTERED,
    USER_KEY,
    WAITING,
    identity,
)
from proxies import (
    COMPLETING,
    FORBIDDEN,
    PART,
    SLOW,
    Proxy,
    http_answer,
    http_reply,
    silence,
    through,
)
from restores import archive
from servers import client_programs, descendants, kill_child, run
from surroundings import BRISK, GENERATIONS, Scene, Site, becomes_true, sha256_of, standin


@standin()
def test_a_process_removed_while_its_backup_runs_leaves_the_executor_able_to_run_the_next(
        site: Site) -> None:
    with site.locked() as release, site.serve(BACKUP_TIME_SCALE=BRISK) as executor:
        process = site.submit()
        site.waiting()
        with site.standin.lock:
            del site.standin.processes[process]
        release()
        executor.wait_for("Backup procedure completed")
        site.succeeds(site.submit())


@standin(None)
def test_a_close_that_is_refused_again_and_again_does_not_keep_others_waiting(site: Site) -> None:
    payload = base64.b64encode(b'{"status": 500, "message": "pq: too long"}').decode()
    refusal = json.dumps({"payloadtype": "error", "error": True, "payload": payload}).encode()
    with Proxy(site.where.port) as proxy, site.serve(proxy.port, BACKUP_TIME_SCALE="0.002"):
        proxy.reply(b"closefailedmsg", http_reply("500 Internal Server Error", refusal), 10000)
        refused, other = site.submit("unknown"), site.submit()
        site.succeeds(other)
        assert site.client.process(refused)["state"] == RUNNING
        proxy.clear()
        site.succeeds(site.submit())  # it waits for work no longer, so it looks what is open
        assert "unknown" in site.client.wait(refused, FAILED)["errors"][0]


@standin()
def test_odd_answers_about_its_process_do_not_disturb_a_dump(
        site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    real, process = site.standin.on_getprocess, site.submit()
    odd: list[Any] = [None, [], {"state": None}, {"state": "running"}, {"state": RUNNING}]

    def answer(caller: str, fields: dict[str, Any]) -> Any:
        mine = caller == identity(USER_KEY) or not odd
        return real(caller, fields) if mine else odd.pop(0)

    with site.locked() as release, site.serve(BACKUP_TIME_SCALE="0.002") as executor:
        site.waiting()
        monkeypatch.setattr(site.standin, "on_getprocess", answer)
        becomes_true(lambda: not odd or executor.process.poll() is not None)
        assert executor.process.poll() is None, executor.log
        release()
        site.succeeds(process)
        assert executor.log.count("Backing up database") == 1 and "Traceback" not in executor.log
    assert len(site.stored_keys()) == 1


def test_side_files_of_an_operators_own_are_no_journals(scene: Scene) -> None:
    body = b"PGDMP of an operator"
    for number, told in ((5, {"note": "kept by hand"}), (6, {"process": "", "attempts": 0}),
                         (7, {"sha256": sha256_of(body), "size": len(body), "key": "x"})):
        (scene.folder / f"backup_{number}.bak").write_bytes(body)
        (scene.folder / f"backup_{number}.bak.json").write_text(json.dumps(told))
    before = {file: (scene.folder / file).read_bytes() for file in scene.files()}
    result = scene.backup()
    assert {file: (scene.folder / file).read_bytes() for file in scene.files()} == before
    assert list(scene.objects()) == [result["filename"]]


def test_a_folder_named_like_a_partial_file_does_no_harm(scene: Scene) -> None:
    (scene.folder / "backup_9.bak.partial").mkdir()
    result = scene.backup()
    assert scene.files() == ["backup_9.bak.partial"]
    assert list(scene.objects()) == [result["filename"]]


@standin(None)
def test_a_backup_that_is_downloaded_before_its_process_is_closed_stays(site: Site) -> None:
    process = site.submit()
    with Proxy(site.where.port) as proxy, site.locked() as release, \
            site.serve(proxy.port, BACKUP_TIME_SCALE=BRISK) as executor:
        site.waiting()
        proxy.down()
        release()
        executor.wait_for("Backup procedure completed")
        name = executor.wait_for(r"Removed local backup file.*/(backup_\d+\.bak)")[1]
        (site.folder / name).write_bytes(b"downloaded to be restored")
        proxy.up()
        assert site.succeeds(process)["filename"] == name
        becomes_true(lambda: site.files() == [name])
        site.succeeds(site.submit())
    assert (site.folder / name).read_bytes() == b"downloaded to be restored"


def test_what_another_databases_backup_left_in_the_same_folder_is_left_to_it(
        scene: Scene, meddler: Proxy) -> None:
    scene.postgres.sql(f"CREATE DATABASE {scene.database}_b TEMPLATE {scene.database}")
    other = Scene(scene.postgres, scene.s3, scene.folder, f"{scene.database}_b", scene.prefix)
    meddler.reply(COMPLETING, FORBIDDEN)
    scene.failure(**through(meddler, 0.001))
    kept = scene.files()
    with other.locked(), other.start() as executor:
        other.waiting()
        executor.kill()
    crashed = sorted(set(scene.files()) - set(kept))
    assert scene.files() == sorted(kept + crashed) and crashed and not scene.objects()
    second = scene.backup()["filename"]
    assert sorted(scene.objects()) == sorted([kept[0], second]) and scene.files() == crashed
    assert {scene.head(file)["Metadata"]["database"] for file in scene.objects()} == {
        scene.database}
    third = other.backup()["filename"]
    assert sorted(scene.objects()) == sorted([kept[0], second, third]) and scene.files() == []


def replacing(scene: Scene, meddler: Proxy) -> list[str]:
    """Have the next upload come to another object with its metadata; names, as they are put."""
    put: list[str] = []

    def replace(data: bytes) -> bytes:
        if found := re.match(rb"POST /backup/\S+/(backup_\d+\.bak)\?uploadId", data):
            meddler.request = bytes
            [made] = [each for each in meddler.requests if re.match(rb"POST \S*\?uploads", each)]
            metadata = re.findall(r"(?im)^x-amz-meta-(\S+): *(\S+)\r$", made.decode())
            put.append(found[1].decode())
            scene.put(put[0], b"too short", **dict(metadata))
            meddler.reply(COMPLETING, SLOW)  # its answer was lost, say
        return data

    meddler.request = replace
    return put


@pytest.mark.parametrize("deleted", [True, False], ids=["deleted", "not to be deleted"])
def test_an_object_that_looks_like_ours_but_is_not_is_removed_and_blocks_nothing(
        scene: Scene, meddler: Proxy, deleted: bool) -> None:
    put = replacing(scene, meddler)
    if not deleted:
        meddler.reply(b"^DELETE ", FORBIDDEN, times=10000)
    assert ("9 bytes" if deleted else "AccessDenied") in scene.failure(**through(meddler, 0.01))
    assert len(scene.objects()) == (not deleted) and put[0] in scene.files()
    dump = (scene.folder / put[0]).read_bytes()
    result = scene.backup(**through(meddler, 0.01))
    objects = scene.objects()
    assert deleted or objects.pop(put[0]) == b"too short"  # so the dump has another name
    assert objects.pop(result["filename"]) and list(objects.values()) == [dump]
    assert scene.files() == []


@pytest.mark.parametrize("refused", [b"PUT|POST|DELETE", b"PUT|DELETE"], ids=["at once", "begun"])
def test_a_kept_dump_goes_where_a_changed_prefix_says(
        scene: Scene, meddler: Proxy, refused: bytes) -> None:
    meddler.reply(rb"^(%s) /backup/%s/" % (refused, scene.prefix.encode()), FORBIDDEN, times=10000)
    scene.failure(**through(meddler, 0.01))
    [name, _] = scene.files()
    scene.settings["AWS_S3_PREFIX"] = new = f"{scene.prefix}-new"
    result = scene.backup(**through(meddler, 0.01))
    assert not scene.objects() and not scene.files()
    scene.prefix = new
    assert sorted(scene.objects()) == [name, result["filename"]]


@standin(None)
def test_a_log_that_something_before_the_server_refuses_does_not_keep_a_process_open(
        site: Site) -> None:
    with Proxy(site.where.port) as proxy, site.serve(proxy.port, BACKUP_TIME_SCALE=BRISK):
        proxy.reply(b"addlogmsg", http_reply("413 Too Large", b"<html>nginx</html>"), 10000)
        site.succeeds(site.submit())
        assert proxy.seen(b"addlogmsg")


def test_a_listing_that_does_not_go_on_is_a_clear_failure(scene: Scene, meddler: Proxy) -> None:
    page = (b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x"
            b"</NextContinuationToken></ListBucketResult>")
    meddler.reply(rb"^GET \S*list-type", http_reply("200 OK", page), 300)
    assert f"127.0.0.1:{meddler.port}" in scene.failure(**through(meddler, 0.01))
    assert meddler.seen(rb"^GET \S*list-type") < 10 and not scene.files()


def test_a_listing_that_begins_where_the_last_one_ended_has_no_backup_twice(
        scene: Scene, meddler: Proxy) -> None:
    def page(asked: bytes) -> Iterator[bytes]:
        after = re.findall(r"start-after=([^& ]*)|$", asked.decode())[0].replace("%2F", "/")
        listed = scene.s3_client.list_objects_v2(Bucket="backup", Prefix=f"{scene.prefix}/b")
        left = [item for item in listed["Contents"] if item["Key"] >= after]
        each = "<Contents><Key>{Key}</Key><Size>{Size}</Size><ETag>{ETag}</ETag></Contents>"
        items = "".join(map(each.format_map, left[:2]))
        more = str(len(left) > 2).lower()
        yield http_reply("200 OK", f"<ListBucketResult><IsTruncated>{more}</IsTruncated>{items}"
                         "</ListBucketResult>".encode())

    off = {"BACKUP_ROLES": "off"}
    made = [scene.backup(**off)["filename"] for _ in range(3)]
    meddler.reply(rb"^GET \S*list-type", page, 300)
    rows = json.loads(scene.run("list", "--json", **through(meddler)).stdout)
    assert [row["name"] for row in rows] == made[::-1]
    made.append(scene.backup(FULL_BACKUPS="2", **off, **through(meddler))["filename"])
    assert sorted(scene.objects()) == made[2:]


def test_an_object_that_answers_400_stays_and_does_not_fail_a_backup(
        scene: Scene, meddler: Proxy) -> None:
    body = archive(scene)
    for number in range(5, 8):  # encrypted with a key of somebody's, they answer so
        scene.put(f"backup_{number}.bak", body)
    meddler.reply(rb"^HEAD \S*backup_5\.bak", http_answer("400 Bad Request", ""), 100)
    result = scene.backup(FULL_BACKUPS="1", **through(meddler, 0.01))
    assert sorted(scene.objects()) == sorted(["backup_5.bak", result["filename"]])


def test_a_listing_without_etags_will_do(scene: Scene, meddler: Proxy) -> None:
    meddler.other = lambda data: re.sub(rb"(</?)ETag>", rb"\1None>", data)
    scene.put("backup_5.bak")
    meddler.reply(rb"^HEAD \S*backup_5\.bak", http_answer("403 Forbidden", ""), 100)
    results = [scene.backup(FULL_BACKUPS="1", **through(meddler)) for _ in range(2)]
    assert sorted(scene.objects()) == sorted(["backup_5.bak", results[1]["filename"]])


def test_what_head_says_of_something_else_than_was_listed_does_not_count(
        scene: Scene, meddler: Proxy) -> None:
    old = [scene.backup()["filename"] for _ in range(2)]
    meddler.reply(rf"^HEAD \S*{old[0]}".encode(), http_reply("200 OK", b"who am I?"), 2)
    ran = scene.run("backup", FULL_BACKUPS="1", **through(meddler))
    assert "Leaving alone" in ran.stderr and "Objects=1" in ran.stderr
    assert json.loads(ran.stdout)["removed"] == [f"{scene.prefix}/{old[1]}"]
    assert old[0] in scene.objects()


@standin()
def test_a_kept_dump_whose_upload_is_killed_keeps_no_later_process_waiting(site: Site) -> None:
    with Proxy(site.s3.port) as proxy, site.serve(
            AWS_S3_ENDPOINT=f"127.0.0.1:{proxy.port}") as executor:
        proxy.reply(COMPLETING, FORBIDDEN)
        site.client.wait(site.submit(), FAILED)  # its dump is kept
        proxy.reply(PART, functools.partial(silence, 60), times=2)
        before, process = proxy.seen(PART), site.submit()
        for count in (1, 2):  # a third time it would have failed
            proxy.wait_seen(PART, before + count)
            kill_child(executor)
        site.succeeds(process)
        assert len([name for name in site.files() if name.endswith(".bak")]) == 1  # left for later
        assert executor.stop() == 0
    assert run(site.environ(), "backup", "--resume").returncode == 0
    assert site.files() == [] and len(site.stored_keys()) == 2


@standin()
def test_a_dump_whose_upload_was_killed_three_times_is_finished_when_that_kills_no_more(
        site: Site) -> None:
    with Proxy(site.s3.port) as proxy, site.serve(
            AWS_S3_ENDPOINT=f"127.0.0.1:{proxy.port}") as executor:
        proxy.reply(PART, functools.partial(silence, 60), times=3)
        process = site.submit()
        for count in (1, 2, 3):
            proxy.wait_seen(PART, count)
            kill_child(executor)
        assert "killed three times" in site.client.wait(process, FAILED)["errors"][0]
        assert executor.stop() == 0
    assert not site.objects()
    assert run(site.environ(), "backup", "--resume").returncode == 0
    assert len(site.objects()) == 1


@standin()
@pytest.mark.parametrize("away", [True, False], ids=["away", "there"])
def test_a_kept_dump_is_uploaded_whether_or_not_colonies_is_there(site: Site, away: bool) -> None:
    with Proxy(site.s3.port) as proxy:
        proxy.reply(PART, FORBIDDEN)
        site.settings["AWS_S3_ENDPOINT"] = f"127.0.0.1:{proxy.port}"
        assert run(site.environ(), "backup").returncode == 1
        [name, _] = site.files()
        if away:
            site.standin.stop()
        else:
            proxy.delay(PART, 3)  # so it looks around meanwhile, as it does each minute
        with site.serve(BACKUP_TIME_SCALE=BRISK) as executor:
            becomes_true(lambda: site.files() == [])
            assert "level=error" not in executor.log
    assert site.stored_keys() == [f"{site.name}/{name}"]


@pytest.mark.parametrize("before, after", [("", "\n\n"), ("\n", ""), ("", "\r\n")])
def test_a_key_file_that_holds_more_than_a_key_is_refused_without_showing_it(
        tmp_path: Path, before: str, after: str) -> None:
    (tmp_path / "key").write_bytes(f"{before}{OWNER_KEY}{after}".encode())
    ended = run({"COLONIES_SERVER_HOST": "127.0.0.1", "COLONIES_SERVER_PORT": "1",
                 "COLONIES_COLONY_NAME": COLONY_NAME, "AWS_S3_BUCKET_NAME": "backup",
                 "COLONIES_COLONY_PRVKEY_FILE": str(tmp_path / "key")})
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "COLONIES_COLONY_PRVKEY" in ended.stderr
    assert not any(OWNER_KEY[i:i + 8] in ended.stderr for i in range(57))


@standin()
def test_a_refused_close_at_sigterm_does_not_keep_it_from_deregistering(site: Site) -> None:
    process = site.submit()
    with Proxy(site.where.port) as proxy:
        proxy.reply(b"closesuccessfulmsg", http_reply("502 Bad Gateway", b""))
        with site.serve(proxy.port, BACKUP_TIME_SCALE="20") as executor:
            executor.wait_for("level=warning .*closesuccessfulmsg")  # for 5 s it waits now
            site.client.cancel(process)
            assert executor.stop() == 0
        assert proxy.seen(b"closesuccessfulmsg") == 2
    assert [each["state"] for each in site.standin.executors.values()] == [UNREGISTERED]
    assert site.client.process(process)["state"] == CANCELLED


@standin()
def test_a_lost_list_of_functions_makes_no_second_record(site: Site) -> None:
    with site.serve():
        site.polling()
    with Proxy(site.where.port) as proxy:
        proxy.lose(b"getfunctionsmsg")
        with site.serve(proxy.port, BACKUP_TIME_SCALE=BRISK):
            site.polling(2)
        assert not proxy.rules and len(site.standin.functions) == len(FUNCTIONS)


@standin(*GENERATIONS)
def test_an_approval_that_does_not_arrive_is_made_again(site: Site) -> None:
    with Proxy(site.where.port) as proxy:
        proxy.cut(b"approveexecutormsg")
        with site.serve(proxy.port, BACKUP_TIME_SCALE=BRISK) as executor:
            site.polling()
            assert not proxy.rules and "another key" not in executor.log


@standin(None)
def test_a_backup_that_is_killed_three_times_is_a_failure_that_says_so(site: Site) -> None:
    process = site.submit()
    with site.locked(), site.serve() as executor:
        for count in (1, 2, 3):
            executor.wait_for("Backing up database", count=count)
            site.waiting()
            kill_child(executor)
        assert "killed three times" in site.client.wait(process, FAILED)["errors"][0]
    assert site.stored_keys() == []


def deadly(folder: Path) -> Path:
    """As PYTHONPATH it kills each child as it starts; returned is a file, a letter for each."""
    begun = folder / "begun"
    begun.touch()
    (folder / "sitecustomize.py").write_text(
        f"import os\nif 'BACKUP_PROCESS' in os.environ:\n    open({str(begun)!r}, 'a').write('.')\n"
        "    os.kill(os.getpid(), 9)\n")
    return begun


def test_an_upload_that_is_killed_three_times_is_given_up_and_stops_do_not_count(
        scene: Scene, meddler: Proxy) -> None:
    told = {"BACKUP_PROCESS": json.dumps({"process": "p1", "starttime": ""})}  # as `serve` does
    meddler.cut(PART, times=10**5)
    for kills in [False] * 3 + [True] * 3:
        with scene.start(**told, **through(meddler)) as executor:
            executor.wait_for("Uploading backup file")
            meddler.wait_seen(PART, meddler.seen(PART) + 1)
            if kills:
                executor.kill()
            else:
                meddler.down()  # so it cannot abort the upload
                assert executor.stop() == 143
                meddler.up()
    assert "killed three times" in scene.run("backup", status=1, **told).stderr
    [name, _] = scene.files()
    scene.run("backup", "--resume")
    assert list(scene.objects()) == [name]
    assert f'"filename": "{name}"' in scene.run("backup", **told).stdout  # what is there, counts


@standin(None)
def test_a_child_that_is_killed_before_it_notes_anything_is_begun_three_times(
        site: Site, tmp_path: Path) -> None:
    begun = deadly(tmp_path)
    with site.serve(PYTHONPATH=str(tmp_path)) as executor:
        for count, funcname in ((3, "backup"), (4, "verify"), (7, "backup")):
            (error,) = site.client.wait(site.submit(funcname), FAILED)["errors"]
            assert "killed" in error and "SIGKILL" in error and "memory limit" in error
            assert ("three times" in error) == (funcname == "backup")
            assert len(begun.read_text()) == count
        assert executor.log.count("beginning it again") == 4
        program = tmp_path / "sitecustomize.py"
        program.write_text(program.read_text().replace("os.kill(os.getpid(), 9)", "os._exit(5)"))
        (error,) = site.client.wait(site.submit(), FAILED)["errors"]
        assert error == "it ended with exit status 5"
        program.write_text("")
        site.succeeds(site.submit())


@standin()
def test_between_a_killed_child_and_the_next_colonies_is_heard(site: Site, tmp_path: Path) -> None:
    begun = deadly(tmp_path)
    with site.serve(PYTHONPATH=str(tmp_path), BACKUP_TIME_SCALE="60") as executor:
        process = site.submit()  # the pause takes 15 s, or more
        executor.wait_for("beginning it again")
        site.standin.wait_call("getprocessmsg", count=4)  # one was before the child
        site.client.cancel(process)
        executor.wait_for(f"Closed process.*{process}")
        assert begun.read_text() == "."


@standin()
def test_what_was_left_is_tried_once_in_a_while_where_that_kills(
        site: Site, tmp_path: Path) -> None:
    site.standin.longest = 0.5
    with Proxy(site.s3.port) as proxy:
        proxy.reply(PART, FORBIDDEN, 100)
        endpoint = f"127.0.0.1:{proxy.port}"
        assert run(site.environ(AWS_S3_ENDPOINT=endpoint), "backup").returncode == 1
    begun = deadly(tmp_path)
    with site.serve(PYTHONPATH=str(tmp_path)) as executor:
        executor.wait_for("level=warning .*killed.*SIGKILL")
        becomes_true(lambda: begun.read_text() == "..")  # and one that was to check
        site.standin.wait_call("assignprocessmsg", 404, 3)  # it goes on, and waits for work
        assert begun.read_text() == ".." and len(site.files()) == 2


def test_a_backup_staged_elsewhere_does_not_end_the_session_of_one_that_runs(
        scene: Scene, tmp_path: Path) -> None:
    with scene.locked() as unlock, scene.start() as first:
        session = scene.waiting()
        with scene.start(BACKUP_PATH=str(tmp_path)) as second:
            scene.waiting(but=session)
            unlock()
            assert (first.wait(), second.wait()) == (0, 0), first.log
    assert len(scene.objects()) == 2


def hanging_restore(folder: Path) -> tuple[str, Path]:
    """A PATH whose pg_restore never ends, and the file that it makes when it begins."""
    program, begun = folder / "pg_restore", folder / "begun"
    program.write_text(f"#!/bin/sh\n: >'{begun}'\nexec sleep 600\n")
    program.chmod(0o755)
    return f"{folder}:{client_programs()[0]}:/usr/bin:/bin", begun


def test_a_dump_that_is_being_read_back_at_sigterm_is_made_anew(
        scene: Scene, tmp_path: Path) -> None:
    path, begun = hanging_restore(tmp_path)
    with scene.start(PATH=path) as executor:
        becomes_true(begun.exists)
        assert executor.stop() == 143
    assert scene.files() == [] and not scene.objects()


def test_a_dump_that_was_killed_while_it_was_read_back_is_made_anew(
        scene: Scene, tmp_path: Path) -> None:
    path, begun = hanging_restore(tmp_path)
    with scene.start(PATH=path) as executor:
        becomes_true(begun.exists)
        [partial] = [file for file in scene.files() if file.endswith(".bak.partial")]
        executor.kill()
    assert partial in scene.files()
    scene.run("backup", "--resume")
    assert scene.files() == [] and not scene.objects()  # nothing vouches for it


def test_a_sealed_dump_that_was_killed_before_it_got_its_name_is_uploaded(
        scene: Scene, meddler: Proxy) -> None:
    meddler.reply(COMPLETING, FORBIDDEN)
    scene.failure(**through(meddler, 0.001))
    [name, _] = scene.files()
    body = (scene.folder / name).read_bytes()
    (scene.folder / name).rename(scene.folder / f"{name}.partial")
    scene.run("backup", "--resume")
    assert scene.objects() == {name: body} and scene.files() == []


@standin(None)
def test_a_dump_that_is_being_read_back_when_its_process_is_cancelled_is_removed(
        site: Site, tmp_path: Path) -> None:
    path, begun = hanging_restore(tmp_path)
    process = site.submit()
    with site.serve(PATH=path, BACKUP_TIME_SCALE=BRISK) as executor:
        becomes_true(begun.exists)
        assert any(file.endswith(".bak.partial") for file in site.files())
        site.client.cancel(process)
        executor.wait_for("level=warning .*cancelled")
        becomes_true(lambda: site.files() == [] and not descendants(executor.pid))
        assert executor.process.poll() is None
    assert site.stored_keys() == []


@standin()
def test_taking_a_process_back_ends_where_others_come_without_end(
        site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    process, real = site.submit(), site.standin.on_getprocess

    def another(*_: Any, **__: Any) -> Any:
        return {"processid": secrets.token_hex(32), "spec": {"funcname": "unknown"}}

    def waits(caller: str, fields: dict[str, Any]) -> Any:
        return {**real(caller, fields), "state": WAITING}

    with site.locked() as release, site.serve(BACKUP_TIME_SCALE=BRISK):
        site.waiting()
        with monkeypatch.context() as patch:
            patch.setattr(site.standin, "on_assignprocess", another)
            patch.setattr(site.standin, "on_getprocess", waits)
            site.standin.wait_call("getprocessmsg", count=3)
            os.utime(site.alive, (0, 0))
            becomes_true(lambda: site.alive.stat().st_mtime > 0)
        release()
        site.succeeds(process)


def test_an_upload_that_may_not_be_aborted_does_not_block_the_backups_to_come(
        scene: Scene, meddler: Proxy) -> None:
    meddler.reply(b"^DELETE ", FORBIDDEN, times=10000)
    meddler.reply(PART, FORBIDDEN)
    scene.failure(**through(meddler, 0.01))
    [name, _] = scene.files()
    result = scene.backup(**through(meddler, 0.01))
    assert sorted(scene.objects()) == [name, result["filename"]] and scene.files() == []


def test_a_damaged_kept_dump_is_not_what_its_process_is_closed_with(
        scene: Scene, meddler: Proxy) -> None:
    told = {"BACKUP_PROCESS": json.dumps({"process": "p1", "starttime": ""})}  # as `serve` does
    meddler.cut(PART, times=10**5)
    with scene.start(**told, **through(meddler)) as executor:
        meddler.wait_seen(PART)
        executor.kill()
    [name, _] = scene.files()
    damaged = bytearray((scene.folder / name).read_bytes())
    damaged[100] ^= 1
    (scene.folder / name).write_bytes(damaged)
    lines = scene.run("backup", **told).stdout.splitlines()
    result = json.loads("".join(line for line in lines if not line.startswith("#")))
    assert sha256_of(scene.objects()[result["filename"]]) == result["sha256"]
    assert (scene.folder / name).read_bytes() == damaged  # left alone
