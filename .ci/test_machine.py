"""Tests on a machine that fails, with odd clocks, and with neighbours."""
from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import resource
import secrets
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from colonies import FAILED, SUCCESS, UNREGISTERED
from machine import FILL, FULL, TMPFS, Machine
from proxies import COMPLETING, FORBIDDEN, Proxy, through
from restores import databases
from servers import RcloneS3, descendants, error_lines
from surroundings import BRISK, FILLED, Scene, Site, becomes_true, one_error, sha256_of, standin
from timescale import Timescale

# ---- A machine that fails, and neighbours ------------------------------------------------------

def recovers(scene: Scene, machine: Machine, ran: subprocess.CompletedProcess[str]) -> None:
    """After a backup RAN on a machine that is whole again the next one clears up and succeeds."""
    kept = machine.kept()
    again = machine.run("backup")
    assert again.returncode == 0, ran.stderr + again.stderr
    objects = {name: sha256_of(body) for name, body in scene.objects().items()}
    made = [json.loads(each.stdout) for each in (ran, again) if each.returncode == 0]
    assert kept.items() | {(each["filename"], each["sha256"]) for each in made} <= objects.items()
    assert objects == {name: scene.head(name)["Metadata"]["sha256"] for name in objects}
    assert os.listdir(machine.path) == [] and not scene.uploads()


def sweep(scene: Scene, machine: Machine, which: str, what: list[str], right: str, says: str,
          step: int = 1) -> list[str]:
    """Let one of WHAT happen at each of a backup's uses of its volume, until RIGHT; those uses."""
    seen = list[str]()
    for number, mishap in zip(itertools.count(1, step), itertools.cycle(what)):
        ran = machine.run("backup", MISHAP=f"{number} {which} {machine.folder} {mishap}")
        at = re.findall("MISHAP (.*)", ran.stderr)
        if not at:
            assert ran.returncode == 0
            return seen
        seen += at
        if ran.returncode:
            one_error(ran, f"{machine.folder}|Backing up database: pg_dump", says)
        machine.kept()
        machine.do(right)
        recovers(scene, machine, ran)
    raise AssertionError


def test_a_disk_that_is_full_at_any_write_of_a_backup_costs_no_dump(
        scene: Scene, tmp_path: Path) -> None:
    with Machine(scene.settings, tmp_path, TMPFS) as machine:
        seen = sweep(scene, machine, "writes", ["fill"], "rm $0/filler", FULL)
    assert len([each for each in seen if "journal" in each]) > 5 and "Popen" in " ".join(seen)


VOLUME = 'mount -t tmpfs -o size=1m tmpfs "$1/volume"; mount --bind "$1/volume" "$0"'
BACK = """if [ -d "$0.away" ]; then mv "$0.away" "$0"; fi
    if mountpoint -q "$0"; then mount -o remount,bind,rw "$0"
    else rm -rf "$0"/*; mount --bind "$1/volume" "$0"; fi"""
GONE = "Read-only file system|No such file|Input/output error|Errno"


def test_a_volume_that_fails_or_goes_at_any_use_costs_no_dump(
        scene: Scene, tmp_path: Path) -> None:
    what = ["read-only", "unmounted", "failing", "away"]
    with Machine(scene.settings, tmp_path, VOLUME) as machine:
        # a fifth of them: with `step` 1 and each of the four alone all 136 cases go well
        assert len(sweep(scene, machine, "uses", what, BACK, GONE, step=5)) > 5


@pytest.mark.parametrize("limit", ["size={}k", "nr_inodes={}"])
def test_a_volume_with_room_for_some_writes_only_costs_no_dump(
        scene: Scene, tmp_path: Path, limit: str) -> None:
    for number in range(2, 12):
        (home := tmp_path / str(number)).mkdir()
        mount = f"mount -t tmpfs -o {limit.format(number * (4 if 'size' in limit else 1))} tmpfs $0"
        with Machine(scene.settings, home, mount) as machine:
            ran = machine.run("backup")
            if ran.returncode:
                one_error(ran, f"{machine.folder}|Backing up database: pg_dump", FULL)
            machine.do("mount --options-source disable -o remount,size=1m,nr_inodes=99 $0")
            recovers(scene, machine, ran)
        if not ran.returncode:
            break
    assert number > 3 and ran.returncode == 0


def test_a_kept_dump_on_a_full_disk_stays_and_leaves_no_upload_in_s3(
        scene: Scene, meddler: Proxy, tmp_path: Path) -> None:
    with Machine(scene.settings, tmp_path, TMPFS) as machine:
        meddler.reply(COMPLETING, FORBIDDEN)
        one_error(machine.run("backup", **through(meddler, 0.001)), "AccessDenied")
        machine.do(FILL)
        ran = machine.run("backup", "--resume")
        one_error(ran, f"{machine.folder}/backup_journal.partial: No space left on device")
        assert len(machine.kept()) == 1 and not scene.uploads()
        machine.do("rm $0/filler")
        recovers(scene, machine, ran)


@pytest.mark.parametrize("pages", [0, 1])
@pytest.mark.parametrize("command", [["verify"], ["restore", "latest", "--database", "never"]],
                         ids=lambda command: command[0])
def test_a_disk_that_gets_full_during_a_download_is_no_fault_of_s3(
        scene: Scene, meddler: Proxy, tmp_path: Path, command: list[str], pages: int) -> None:
    scene.given_backup()
    with Machine(scene.settings, tmp_path, TMPFS) as machine:
        def fill(data: bytes) -> bytes:
            if re.search(rb"(?i)^GET .*\n(.*\n)*range: ", data):
                machine.do(f"{FILL}; truncate -s -{pages * 4}k $0/filler")
            return data

        meddler.request = fill
        ran = machine.run(*command, **through(meddler))
        full = "(No space left on device .BACKUP_PATH|[0-9]+ bytes are free)"
        one_error(ran, f"{machine.folder}: {full}")
        assert meddler.seen(rb"^GET (.*\n)*[Rr]ange") == 1
        meddler.request = bytes
        machine.do("rm $0/filler")
        assert machine.run("verify", **through(meddler)).returncode == 0
        assert os.listdir(machine.path) == []


def test_a_full_temporary_folder_on_a_read_only_root_stops_no_backup(
        scene: Scene, tmp_path: Path) -> None:
    mount = f"""{TMPFS}; mount -t tmpfs -o size=4k tmpfs $1/tmp; echo full >$1/tmp/filler
        mount -o remount,bind,ro /"""
    with Machine(scene.settings, tmp_path, mount) as machine:
        assert machine.run("backup").returncode == 0
        one_error(machine.run("verify"), "temporary directory", f"{tmp_path}/tmp")
        machine.do("rm $1/tmp/filler")
        assert machine.run("verify").returncode == 0


def test_an_answer_that_cannot_be_written_is_a_failure_that_says_so_and_a_log_is_not(
        scene: Scene, tmp_path: Path) -> None:
    machine = Machine(scene.settings, tmp_path)
    for number, before in enumerate(["exec >/dev/full;", "exec >&-;"], 1):
        one_error(machine.run("backup", before=before), "stdout")
        assert len(scene.objects()) == number and scene.files() == []
    for command in ("list", "check", "verify"):
        one_error(machine.run(command, before="exec >/dev/full;"), "stdout: No space left")
    for before in ("exec 2>/dev/full;", "exec 2>&-;"):
        ran = machine.run("backup", before=before)
        assert ran.returncode == 0 and json.loads(ran.stdout)["filename"] in scene.objects()
    report = json.loads(machine.run("verify", before="exec 2>&- 0<&-;").stdout)
    assert report["verdict"] == "readable"
    new = f"{scene.database}_new"
    ran = machine.run("restore", "latest", "--database", new, before="exec 2>&- 0<&-;")
    assert ran.returncode == 0 and scene.postgres.sql("SELECT count(*) FROM t", new) == "500"
    scene.postgres.sql(f"DROP DATABASE {new}")


@standin()
@pytest.mark.parametrize("when", ["while idle", "during a dump"])
@pytest.mark.parametrize("what", ["full", "away"])
def test_serve_outlives_its_staging_volume_and_the_next_process_succeeds(
        site: Site, tmp_path: Path, what: str, when: str) -> None:
    site.standin.longest = 0.5  # it looks at its volume again when a poll has ended
    wrong, right, says = {
        "full": (FILL, "rm $0/filler", "bytes are free|bytes left"),
        "away": ('umount -l "$0"; mv "$0" "$0.away"', BACK, f"{site.folder}.*No such file")}[what]
    with Machine(site.environ(BACKUP_TIME_SCALE="0.004"), tmp_path, VOLUME) as machine, \
            site.locked() as release, machine.start("serve") as executor:
        site.polling()
        process = site.submit() if when == "during a dump" else ""
        if process:
            site.waiting()
        machine.do(wrong)
        os.utime(site.alive, (0, 0))
        process = process or site.submit()
        [error] = site.client.wait(process, FAILED)["errors"]
        assert re.search(says, error)
        if what == "away":  # serve itself met it, too
            executor.wait_for(f"level=error .*{site.folder}.*trying again")
        becomes_true(lambda: site.alive.stat().st_mtime > 0)
        machine.do(right)
        release()
        result = site.succeeds(site.submit())
        assert site.stored_keys() == [result["filepath_s3"][1:]]
        # a journal that could not be removed when its process was closed is kept for a day
        becomes_true(lambda: not [each for each in os.listdir(machine.path) if
                                  what == "full" or not each.endswith(".bak.json")])
        assert site.called("closefailedmsg") == 1 and executor.stop() == 0
        assert "Traceback" not in executor.log


@standin()
def test_serve_without_a_staging_volume_at_its_start_says_so_and_ends(site: Site) -> None:
    site.folder.rmdir()
    with site.serve() as executor:
        assert executor.wait() == 1
    [error] = error_lines(executor.log)
    assert f"{site.folder}: No such file or directory" in error and not executor.out


@pytest.mark.parametrize(("command", "step"), [
    (["backup"], 1), (["verify"], 3), (["restore", "latest", "--database", "{}"], 3)],
    ids=["backup", "verify", "restore"])
def test_any_small_number_of_open_files_is_enough_or_a_clear_failure(
        scene: Scene, tmp_path: Path, command: list[str], step: int) -> None:
    machine, new = Machine(scene.settings, tmp_path), f"new_{secrets.token_hex(4)}"
    before = databases(scene.postgres)
    scene.given_backup()
    for number in range(6, 64, step):
        ran = machine.run(*(each.format(new) for each in command), BACKUP_TIME_SCALE="0.001",
                          before=f"ulimit -n {number};")
        assert scene.files() == [] and not scene.uploads()
        if ran.returncode == 0:
            break
        left = databases(scene.postgres).keys() - before.keys()
        errors = "\n".join(error_lines(ran.stderr) if left else [one_error(ran)])
        assert re.search("Too many open files|Could not connect", errors)
        by_hand = ran.stdout.partition("To name it")[2]
        assert all(name in by_hand + errors for name in left)  # what is not dropped is named
        scene.postgres.drop(*left)
    assert number > 6 and ran.returncode == 0
    names = [name for name in scene.objects() if name.endswith(".bak")]
    assert len(names) == (2 if command == ["backup"] else 1)
    scene.postgres.sql(f"DROP DATABASE IF EXISTS {new}")


@standin()
def test_serve_without_files_to_open_waits_until_there_are_some(site: Site) -> None:
    with site.serve(BACKUP_TIME_SCALE=BRISK) as executor:
        site.polling()
        soft, hard = resource.prlimit(executor.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(executor.pid, resource.RLIMIT_NOFILE, (5, hard))
        process = site.submit()
        executor.wait_for("Too many open files.*; trying again")
        resource.prlimit(executor.pid, resource.RLIMIT_NOFILE, (soft, hard))
        site.succeeds(process)
        assert "Traceback" not in executor.log and site.called("closefailedmsg") == 0


@pytest.mark.parametrize("command", ["backup", "verify"])
def test_a_thread_that_cannot_be_started_is_a_clear_failure(
        scene: Scene, tmp_path: Path, command: str) -> None:
    scene.given_backup()
    machine = Machine(scene.settings, tmp_path)
    pools = ["load in progress"] if command == "backup" else [
        "Looking at the backups", "load in progress"]
    for which, where in [(1, "S3 at"), (3, "S3 at"), *enumerate(pools, 1)]:
        names = "ThreadPool" if where in pools else "Thread-"
        ran = machine.run(command, MISHAP=f"{which} threads {names} -", BACKUP_TIME_SCALE="0.0001")
        one_error(ran, f"{where}.*can't start new thread")
    recovers(scene, machine, machine.run("backup"))


RESOLVING = """for name in hosts resolv.conf nsswitch.conf; do
    mount --bind "$1/$name" /etc/$name; done"""


@standin()
def test_names_that_are_not_known_at_first_are_waited_for_or_a_clear_failure(
        site: Site, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions attempts:1 timeout:1\n")
    (tmp_path / "nsswitch.conf").write_text("hosts: files dns\n")
    hosts.write_text("127.0.0.1 localhost\n")

    def known(name: str) -> None:
        with hosts.open("a") as file:  # in place: it is this file that is mounted
            file.write(f"127.0.0.1 {name}\n")

    settings = site.environ(
        COLONIES_SERVER_HOST="colonies.test", DB_HOST="db.test", BACKUP_TIME_SCALE=BRISK,
        AWS_S3_ENDPOINT=f"s3.test:{site.s3.port}")
    with Machine(settings, tmp_path, RESOLVING) as machine, machine.start("serve") as executor:
        executor.wait_for("level=warning .*colonies.test.*; trying again")
        processes = [site.submit()]
        known("colonies.test")
        executor.wait_for("Waiting for processes")
        [error] = site.client.wait(processes[0], FAILED)["errors"]
        assert 'could not translate host name "db.test"' in error
        known("db.test")
        processes.append(site.submit())
        executor.wait_for("level=warning .*S3 is away.*s3.test")
        known("s3.test")
        result = site.succeeds(processes[1])
        assert site.stored_keys() == [result["filepath_s3"][1:]] and "Traceback" not in executor.log


# -- the clock

def times(machine: Machine, *clocks: float, **settings: str) -> list[dict[str, Any]]:
    """The results of a backup at each of these times, in their order."""
    made = []
    for clock in clocks:
        (machine.home / "clock").write_text(str(clock))
        ran = machine.run("backup", CLOCK=str(machine.home / "clock"), **settings)
        assert ran.returncode == 0, ran.stderr
        made.append(json.loads(ran.stdout) | {"warned": "level=warning" in ran.stderr})
    return made


NOW = 1_790_000_000
YEAR_2099 = 4_080_000_000


def test_backups_are_named_in_the_order_they_were_made_whatever_the_clock_says(
        scene: Scene, tmp_path: Path) -> None:
    clocks = [5.0, 0.0, NOW, NOW, NOW + 0.9, NOW - 86400 * 3, YEAR_2099, NOW + 60, -100.0]
    made = times(Machine(scene.settings, tmp_path), *clocks, FULL_BACKUPS="4")
    seconds = [int(each["filename"][7:-4]) for each in made]
    assert seconds == [5, 6, NOW, NOW + 1, NOW + 2, NOW + 3, YEAR_2099, YEAR_2099 + 1,
                       YEAR_2099 + 2]
    assert [each["warned"] for each in made] == [clock < before for clock, before in zip(
        map(int, clocks), [0, *seconds])]
    assert all(min(each["exectime_backup"], each["exectime_upload_s3"]) >= 0 for each in made)
    assert [key for each in made for key in each["removed"]] == [
        f"{scene.prefix}/{each['filename']}" for each in made[:-4]]
    assert list(scene.objects()) == [each["filename"] for each in made[-4:]]


@pytest.mark.parametrize("jump", [0, NOW - 10**6, YEAR_2099])
def test_a_clock_that_jumps_within_a_backup_changes_no_name_and_no_duration(
        scene: Scene, tmp_path: Path, jump: int) -> None:
    machine, clock = Machine(scene.settings, tmp_path), tmp_path / "clock"
    scene.put(f"backup_{NOW}.bak", owner="x")  # somebody's, of the very second
    (scene.folder / f"backup_{NOW + 1}.bak").write_text("an operator's")
    for at in (9, 22):  # before the dump, and before its upload
        clock.write_text(str(NOW))
        ran = machine.run("backup", CLOCK=str(clock), FULL_BACKUPS="1",
                          MISHAP=f"{at} uses {scene.folder} clock {jump}")
        result = json.loads(ran.stdout)
        assert "MISHAP" in ran.stderr and clock.read_text() == str(jump)
        assert 0 <= result["exectime_backup"] < 60 and 0 <= result["exectime_upload_s3"] < 60
    assert result["removed"] == [f"{scene.prefix}/backup_{NOW + 1}.bak"]
    assert result["filename"] == f"backup_{NOW + 2}.bak"
    assert sorted(scene.objects()) == [f"backup_{NOW}.bak", result["filename"]]
    assert scene.files() == [f"backup_{NOW + 1}.bak"]
    assert scene.objects()[f"backup_{NOW}.bak"] == b"somebody's"


def test_a_backup_of_a_clock_far_ahead_does_not_hide_that_backups_have_ended(
        scene: Scene, tmp_path: Path) -> None:
    machine, clock = Machine(scene.settings, tmp_path), tmp_path / "clock"
    times(machine, NOW + 600)
    for now, status in ((NOW, 0), (NOW + 86400, 0), (NOW - 10 * 86400, 1), (NOW + 3 * 86400, 1)):
        clock.write_text(str(now))
        ran = machine.run("check", "--max-age", "26", CLOCK=str(clock))
        assert ran.returncode == status, ran.stdout
        assert (f"FAIL  newest backup: {scene.prefix}/backup_" in ran.stdout) == bool(status)


SUMMER, WINTER = 1_774_746_000, 1_792_890_000  # 2026-03-29 and 2026-10-25, 01:00 UTC


def test_no_time_zone_and_no_change_of_daylight_saving_shows_in_anything_but_the_log(
        scene: Scene, tmp_path: Path) -> None:
    machine, clock = Machine(scene.settings, tmp_path), tmp_path / "clock"
    zones = {"Europe/Stockholm": ("01:59:59+01:00", "03:00:00+02:00", "02:59:59+02:00",
                                  "02:00:00+01:00"),
             "America/St_Johns": ("22:29:59-02:30", "22:30:00-02:30") * 2,
             "Nowhere/At_All": ("00:59:59+00:00", "01:00:00+00:00") * 2}
    moments = (SUMMER - 1, SUMMER, WINTER - 1, WINTER)
    for zone, expected in zones.items():
        for moment, clock_time in zip(moments, expected):
            clock.write_text(str(moment))
            ran = machine.run("backup", TZ=zone, CLOCK=str(clock), CLOCK_OF_LOG="1", DB_PORT="x")
            assert re.match(rf'time="2026-\d\d-\d\dT{re.escape(clock_time)}" ', ran.stderr)
    made = [times(machine, moment, TZ=zone)[0]["filename"] for moment, zone in zip(
        moments, (*zones, "Asia/Tokyo"))]
    assert made == [f"backup_{moment}.bak" for moment in moments]
    for zone, expected in zones.items():
        listed = json.loads(machine.run("list", "--json", TZ=zone).stdout)
        assert [row["time"][11:] for row in reversed(listed)] == list(expected[1:])
        assert [datetime.fromisoformat(row["time"]).timestamp() for row in reversed(listed)] == [
            float(moment) for moment in moments[1:]]
        clock.write_text(str(WINTER + 3600))
        assert "1.0 hours old" in machine.run("check", TZ=zone, CLOCK=str(clock)).stdout


# -- neighbours

def hosts(settings: dict[str, str], folder: Path, *mounts: str) -> list[Machine]:
    """A machine for each of MOUNTS, with these settings."""
    homes = [folder / f"host-{number}" for number in range(len(mounts))]
    for home in homes:
        home.mkdir()
    return [Machine(settings, home, mount) for home, mount in zip(homes, mounts)]


def whole(site: Site, *results: dict[str, Any]) -> list[str]:
    """Assert that the bucket's backups are what they say, and RESULTS' are there; their names."""
    s3, found = site.s3.client(), dict[str, str]()
    listed = s3.list_objects_v2(Bucket="backup", Prefix=f"{site.name}/").get("Contents", [])
    for key in (each["Key"] for each in listed):
        item = s3.get_object(Bucket="backup", Key=key)
        found[key] = sha256_of(item["Body"].read())
        assert item["Metadata"]["sha256"] == found[key]
    for result in results:
        assert found[result["filepath_s3"][1:]] == result["sha256"]
    return [key.rpartition("/")[2] for key in found]


@standin()
def test_two_executors_of_one_type_share_the_work_and_overwrite_nothing(
        site: Site, tmp_path: Path) -> None:
    (tmp_path / "clock").write_text(str(NOW))  # and all backups want the same second
    settings = site.environ(BACKUP_TIME_SCALE=BRISK, CLOCK=str(tmp_path / "clock"))
    one, two = hosts(settings, tmp_path, TMPFS, TMPFS)
    processes = [site.submit() for _ in range(2)]
    with one, two, site.locked() as release, \
            one.start("serve", COLONIES_EXECUTOR_NAME=f"{site.name}-1") as first, \
            two.start("serve", COLONIES_EXECUTOR_NAME=f"{site.name}-2") as second:
        first.wait_for("Backing up database")
        second.wait_for("Backing up database")
        release()
        whole(site, *map(site.succeeds, processes))
        for _ in range(4):  # made together or one after another, as it comes
            processes += [site.submit() for _ in range(2)]
            site.succeeds(processes[-2])
        results = [site.succeeds(process) for process in processes]
        made = sorted({result["filename"] for result in results})
        assert whole(site) == made[-3:] and len(made) > 3
        assert site.called("closesuccessfulmsg") == len(processes)
        assert site.called("closefailedmsg") == 0
        assert not os.listdir(one.path) and not os.listdir(two.path)


def test_databases_of_one_name_on_two_servers_share_a_prefix_and_keep_their_own(
        scene: Scene, timescale: Timescale, tmp_path: Path) -> None:
    timescale.sql(f"CREATE DATABASE {scene.database}")
    timescale.sql(FILLED, scene.database)
    theirs = {"DB_PORT": str(timescale.port), "DB_PASSWORD": timescale.password}
    (tmp_path / "clock").write_text(str(NOW))
    one, two = hosts({**scene.settings, "CLOCK": str(tmp_path / "clock"), "FULL_BACKUPS": "2"},
                     tmp_path, TMPFS, TMPFS)
    made: dict[str, list[str]] = {}
    with one, two:
        for _ in range(3):
            with one.start("backup") as first, two.start("backup", **theirs) as second:
                assert (first.wait(), second.wait()) == (0, 0), first.log + second.log
            for program in (first, second):
                result = json.loads("\n".join(program.out))
                made.setdefault(result["system_identifier"], []).append(result["filename"])
    assert len(made) == 2 and len({name for names in made.values() for name in names}) == 6
    objects = scene.objects()
    for system, names in made.items():
        assert names == sorted(names)
        assert [name for name in objects if scene.head(name)["Metadata"]["system-identifier"]
                == system] == names[-2:]
    assert all(sha256_of(body) == scene.head(name)["Metadata"]["sha256"]
               for name, body in objects.items())
    timescale.sql(f"DROP DATABASE {scene.database}")


def test_who_is_overtaken_where_s3_has_no_conditions_sees_it_and_takes_the_next_second(
        scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "clock").write_text(str(NOW))
    with RcloneS3(tmp_path / "s3") as server, Proxy(server.port) as proxy:
        server.client().create_bucket(Bucket="backup")
        there = Scene(scene.postgres, server, scene.folder, scene.database, "p")
        machine = Machine({**there.settings, "CLOCK": str(tmp_path / "clock")}, tmp_path)
        theirs, completed = json.loads(machine.run("backup").stdout), threading.Event()
        body, metadata = there.objects()[theirs["filename"]], there.head(theirs["filename"])
        there.s3_client.delete_object(Bucket="backup", Key=f"p/{theirs['filename']}")

        def overtake(data: bytes) -> bytes:  # after it was completed, before it is looked at
            if re.match(COMPLETING, data):
                completed.set()
            elif data.startswith(b"HEAD ") and completed.is_set():
                proxy.request = bytes
                there.put(theirs["filename"], body, **metadata["Metadata"])
            return data

        proxy.request = overtake
        ran = machine.run("backup", **through(proxy))
        ours = json.loads(ran.stdout)
        assert theirs["filename"] == f"backup_{NOW}.bak" and proxy.request is bytes
        assert ours["filename"] == f"backup_{NOW + 1}.bak"
        assert {name: sha256_of(body) for name, body in there.objects().items()} == {
            each["filename"]: each["sha256"] for each in (theirs, ours)}


OTHER_HOST = f"{sys.executable} -c 'import socket; socket.sethostname(\"other\")'; {TMPFS}"


def test_a_namesake_on_another_host_does_not_end_the_session_of_a_dump(
        scene: Scene, tmp_path: Path) -> None:
    scene.settings["COLONIES_EXECUTOR_NAME"] = "same"
    [there] = hosts(scene.settings, tmp_path, OTHER_HOST)
    with there, scene.locked() as unlock, scene.start() as first:
        session = scene.waiting()
        with there.start("backup") as second:
            scene.waiting(but=session)
            unlock()
            assert (first.wait(), second.wait()) == (0, 0), first.log + second.log
    assert len(scene.objects()) == 2 and not scene.files()


@standin()
@pytest.mark.parametrize("how", ["one database", "two databases", "one volume"])
def test_namesakes_close_each_process_once_and_with_a_good_backup(
        site: Site, tmp_path: Path, how: str) -> None:
    site.standin.longest = 0.5  # who is not known any more is told so at its next poll
    site.postgres.sql(f'CREATE DATABASE "{site.name}_b" TEMPLATE "{site.name}"')
    more = {"DB_DATABASE": f"{site.name}_b"} if how == "two databases" else {}
    one, two = hosts(site.environ(BACKUP_TIME_SCALE=BRISK, FULL_BACKUPS="99"), tmp_path,
                     "", "" if how == "one volume" else OTHER_HOST)
    with one, two, contextlib.ExitStack() as stack:
        first = stack.enter_context(one.start("serve"))
        first.wait_for("Waiting for processes")  # registering at once, one of them would give up
        second = stack.enter_context(two.start("serve", **more))
        second.wait_for("Waiting for processes")
        processes = [site.submit() for _ in range(4)]
        results = [site.succeeds(process) for process in processes]
        assert site.called("closesuccessfulmsg") >= 4 and site.called("closefailedmsg") == 0
        becomes_true(lambda: not descendants(first.pid) and not descendants(second.pid))
        assert first.stop() == 0  # and it takes the name that both have with it
        processes.append(site.submit())
        results.append(site.succeeds(processes[-1]))
        becomes_true(lambda: not descendants(second.pid))
        whole(site, *results)  # and maybe more: what both made for one process
        for machine in (one, two):  # what is left has a journal, by which it goes up or away
            left = os.listdir(machine.path)
            assert {f"{name.removesuffix('.partial')}.json" for name in left if name.endswith(
                (".bak", ".bak.partial"))} <= set(left), f"{left}\n{first.log}\n\n{second.log}"
        assert second.stop() == 0
    assert [site.client.process(each)["state"] for each in processes] == [SUCCESS] * 5
    assert [each["state"] for each in site.standin.executors.values()] == [UNREGISTERED]
