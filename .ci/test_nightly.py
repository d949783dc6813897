"""The tests of small facts: parts of uploads, dumps that are another's, sessions, logs, names."""
from __future__ import annotations

import hashlib
import json
import os
import re
import time

import hypothesis
import pytest
from hypothesis import strategies

import backup_executor
from proxies import COMPLETING, SLOW, Proxy, through
from surroundings import Scene

MIB, TIB = 1024**2, 1024**4


@hypothesis.given(strategies.integers(1, 5 * TIB))
@hypothesis.example(1)
@hypothesis.example(16_000 * MIB)
@hypothesis.example(16_000 * MIB + 1)
@hypothesis.example(5000 * 1024 * MIB + 1)
@hypothesis.example(5 * TIB)
def test_an_upload_keeps_to_the_limits_of_parts_at_any_size(size: int) -> None:
    step = backup_executor.part_size(size)
    parts = -(-size // step)
    assert step % MIB == 0 and 16 * MIB <= step <= 5 * 1024 * MIB
    assert parts <= (1000 if size <= 5000 * 1024 * MIB else 10_000)
    assert step == 16 * MIB or size > 16_000 * MIB  # what fails is sent again


def test_of_a_large_volume_a_gibibyte_stays_free_and_of_a_small_one_a_twentieth(
        scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    s = backup_executor.read_settings(scene.settings, "backup")
    for gibibytes, floor in ((1000, 1024 * MIB), (10, 512 * MIB)):
        size = gibibytes * 2**18  # blocks of 4 KiB; of 7 that are free 2 are root's
        there = os.statvfs_result((2**16, 4096, size, 7, 5, 0, 0, 0, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda _, there=there: there)
        assert backup_executor.free_bytes(s) == (5 * 4096, floor)


def test_a_finished_dump_of_the_same_name_at_another_host_is_named_and_left_alone(
        scene: Scene, meddler: Proxy) -> None:
    meddler.reply(COMPLETING, SLOW, times=10000)
    scene.failure(**through(meddler, 0.001))
    kept = scene.files()
    said = scene.run("backup", DB_HOST="localhost").stderr
    [line] = [line for line in said.splitlines() if "Leaving a finished dump alone" in line]
    assert f"127.0.0.1:{scene.postgres.port}/{scene.database}" in line and kept[0] in line
    assert scene.files() == kept and len(scene.objects()) == 1
    scene.run("backup", "--resume")
    assert scene.files() == [] and len(scene.objects()) == 2


def test_a_beginning_backup_ends_no_session_of_another_command(scene: Scene) -> None:
    names = {
        command: scene.postgres.sql(
            f"SET application_name = '{settings.database().session}'; SHOW application_name")
        for command in ("backup", "restore", "check", "verify")
        for settings in [backup_executor.read_settings(scene.settings, command)]}
    assert len(set(names.values())) == 4, names


@pytest.mark.parametrize(("name", "value"), [
    ("BACKUP_TIME_SCALE", "abc"), ("BACKUP_TIME_SCALE", "0"), ("DB_PORT", "0"),
    ("DB_PORT", "65536")])
def test_a_number_that_is_none_is_named_with_what_it_should_be(
        scene: Scene, name: str, value: str) -> None:
    said = scene.run("list", status=2, **{name: value}).stderr
    assert re.search(f"{name} is not a (port, 1 to 65535|number above 0)", said), said
    assert "Traceback" not in said and "range" not in said


def test_the_log_shows_programs_with_their_arguments_where_it_is_to_show_all(scene: Scene) -> None:
    said = scene.run("backup", LOG_LEVEL="debug").stderr
    programs = re.findall('level=debug msg=Running Step=.* Argv="?([a-z_]+) ', said)
    assert {"psql", "pg_dump", "pg_restore"} <= set(programs), said
    assert "--lock-wait-timeout=300s" in said and "--compress=zstd:1" in said
    assert scene.settings["DB_PASSWORD"] not in said
    assert "level=debug" not in scene.run("backup").stderr


def test_a_dump_that_was_changed_on_the_volume_is_not_uploaded(
        scene: Scene, meddler: Proxy) -> None:
    meddler.reply(COMPLETING, SLOW, times=10000)
    scene.failure(**through(meddler, 0.001))
    [name, _] = scene.files()
    dump = scene.folder / name
    content = dump.read_bytes()
    dump.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    said = scene.run("backup", "--resume").stderr
    assert "Not what its journal says, leaving it alone" in said
    assert scene.files() == [name] and not scene.objects()
    assert hashlib.sha256(dump.read_bytes()).digest() != hashlib.sha256(content).digest()


def test_a_journal_whose_process_came_to_another_end_is_kept_for_a_day(scene: Scene) -> None:
    told = {"BACKUP_PROCESS": json.dumps({"process": "p1", "starttime": ""})}  # as `serve` does
    scene.run("backup", **told)
    [journal] = scene.files()  # the process is not closed yet
    assert journal.endswith(".bak.json")
    for hours, kept in ((0, [journal]), (23.9, [journal]), (24.1, [])):
        then = time.time() - hours * 3600
        os.utime(scene.folder / journal, (then, then))
        assert not scene.run("backup", "--resume").stdout  # it was told of: it was made once
        assert scene.files() == kept
    assert len(scene.objects()) == 1


def test_a_list_of_verdicts_that_is_none_is_left_as_it_is_and_named(scene: Scene) -> None:
    scene.given_backup()
    for found in (b"{", b"\xff{", b"[1]", b'"x"', b'{"backup_1.bak": 7}',
                  b'{"backup_1.bak": {"a": []}}', b"<html>"):
        scene.put("verified.json", found)
        ran = scene.run("verify")
        assert json.loads(ran.stdout)["verdict"] == "readable", found
        assert "verified.json is left as it is: it holds no verdicts; remove it" in ran.stderr
        assert scene.objects()["verified.json"] == found
        [shown] = json.loads(scene.run("list", "--json").stdout)
        assert shown["verified"] is None and shown["name"] in scene.run("list").stdout


def test_no_terminal_obeys_the_name_of_a_table(scene: Scene, new: str) -> None:
    scene.sql('CREATE TABLE "a\x1b[31mb" (i int)')
    scene.backup()
    said = scene.run("restore", "latest", "--database", new).stdout
    assert "\x1b" not in said and 'public."a\\U0000001b[31mb"' in said
