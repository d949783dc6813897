"""Tests of what people are shown: the table of `list`, and the bar that a terminal has."""
from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import pty
import re
import select
import struct
import subprocess
import termios
import threading
import time
import unicodedata
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

import pytest

import backup_executor
from backup_executor import printable, short_time
from proxies import PART, Proxy, through
from servers import PATIENCE, compiled, executor_environment, temporary_folder
from surroundings import Scene

# ---- The table of `list` -----------------------------------------------------------------------

ROW = re.compile(r"(\S+) +(\S+) +(\S+) +(\S+) +(\S+) +(\S+) +(\S+) +(-|.+? -?\d+[smhdy]) +(\S+)"
                 r" +(.*)")


def width(line: str) -> int:
    """The columns that a terminal gives it."""
    return sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in line)


def rows(scene: Scene, **settings: str) -> list[dict[str, str]]:
    """The table of `list`, by its head; what follows DATABASE stands with it."""
    head, *lines = scene.run("list", **settings).stdout.splitlines()
    assert all(width(line) < 100 and line.isprintable() for line in (head, *lines)), lines
    found = [ROW.fullmatch(line) for line in lines]
    assert all(found), lines
    return [dict(zip(head.split(), each.groups())) for each in found if each]


def exact(scene: Scene, **settings: str) -> list[dict[str, Any]]:
    return json.loads(scene.run("list", "--json", **settings).stdout)


def put(scene: Scene, seconds: float, size: int = 7, **metadata: str) -> None:
    """Put a proven backup that was begun so many seconds ago into the bucket."""
    scene.put(f"backup_{int(time.time() - seconds)}.bak", b"x" * size, **{
        "sha256": "00", "database": scene.database, "system-identifier": "7000123456",
        "postgresql": "17.10", "timescaledb": "2.28.3", **metadata})


def test_list_shows_what_people_read_and_json_all_of_it_exactly(scene: Scene) -> None:
    hour, day, almost = 3600, 24 * 3600, 1024 * 1024 - 999
    scene.put("backup_1685968191.bak", b"12345")
    put(scene, 800 * day, 1000)
    put(scene, 60 * day, 3_000_000)
    put(scene, 30 * hour, almost, **{"exectime-backup": "2796", "tables": "7"})
    put(scene, 5 * hour, 12_345, **{"exectime-backup": "0"})
    put(scene, -3 * day, 11_000, **{"exectime-backup": "9" * 30})
    shown, known = rows(scene), exact(scene)
    assert [(row["AGE"], row["SIZE"], row["CHANGE"], row["DUMP"], row["KIND"])
            for row in shown] == [
        ("-3d", "10.7K", "-10.9%", "-", "doubtful"), ("5h", "12.1K", "-98.8%", "0s", "doubtful"),
        ("30h", "1023K", "-65.1%", "2796s", "doubtful"), ("60d", "2.9M", "+999%", "-", "proven"),
        ("2y", "1000B", "-", "-", "proven"), (shown[-1]["AGE"], "5B", "-", "-", "unproven")]
    sizes = [11_000, 12_345, almost, 3_000_000, 1000, 5]
    assert [row["size"] for row in known] == sizes
    assert [row["change_bytes"] for row in known] == [
        *(new - old for new, old in itertools.pairwise(sizes[:5])), None, None]
    assert [row["exectime_backup"] for row in known] == [None, 0, 2796, None, None, None]
    assert [row["tables"] for row in known] == [None, None, 7, None, None, None]


def test_list_shows_how_long_a_dump_and_its_upload_took(scene: Scene, meddler: Proxy) -> None:
    """But nothing of an upload, before one shows that S3 dates an object by its upload's end."""
    then, begun, ended = int(time.time()) - 89.5, "", "another second"
    while begun != ended:  # one that may be dated by its begin
        begun = formatdate(usegmt=True)
        put(scene, time.time() - then, 7, **{"upload-begun": begun})
        ended = formatdate(scene.head(f"backup_{int(then)}.bak")["LastModified"].timestamp(),
                           usegmt=True)
    assert exact(scene)[0]["exectime_upload_s3"] is None and rows(scene)[0]["UPLOAD"] == "-"
    meddler.delay(PART, 3)
    scene.settings |= through(meddler)
    result = scene.backup()
    new, old = exact(scene)
    assert new["exectime_backup"] == result["exectime_backup"]
    took = new["exectime_upload_s3"]
    assert 2 <= took <= result["exectime_upload_s3"] + 1 and old["exectime_upload_s3"] == 0
    assert [row["UPLOAD"] for row in rows(scene)] == [f"{took}s", "0s"]
    # One that was copied since, and those that say what is no time.
    for seconds, begun in enumerate((formatdate(1, usegmt=True), "yesterday", "1", "-" * 900,
                                     "Sun, 99 Nov 99999 14:54:16 GMT"), 1):
        scene.put(f"backup_{seconds}.bak", b"", **{"upload-begun": begun})
    assert [row["exectime_upload_s3"] for row in exact(scene)] == [took, 0, *[None] * 5]


def test_an_upload_whose_begin_s3_does_not_tell_is_made_all_the_same(
        scene: Scene, meddler: Proxy) -> None:
    for odd in (b"", b"date: \xc3\xa9\r\n", b"date: " + b"9" * 5000 + b"\r\n"):
        meddler.answer = lambda data, odd=odd: re.sub(  # type: ignore[misc]
            rb"(?im)^date: .*\r\n", odd, data)
        made = scene.backup(**through(meddler))
        assert "upload-begun" not in scene.head(made["filename"])["Metadata"]


@pytest.mark.parametrize("name", ["データベース" * 3, "x" * 63, "\x1b[31m" * 6])
def test_the_table_has_less_than_100_columns_whatever_the_bucket_tells(
        scene: Scene, name: str) -> None:
    database, versions = quote(name), "9" * 900
    put(scene, 9 * 10**8, database=database)
    put(scene, 8 * 10**8, database=database, postgresql=versions, timescaledb=versions)
    put(scene, 7 * 10**8, 99, database=database, **{"exectime-backup": "9" * 9})
    scene.put(f"backup_{10**18 - 1}.bak", b"", **{"system-identifier": "\\033[1m"})
    said = {row["name"]: {"verdict": word, "time": when} for row, word, when in zip(
        exact(scene), ("\x1b[2J" * 99, "restored, not all of it", "failed: \n", "readable"),
        ("\x07", "2026-11-23T10:49:51+01:00", "2026", "9" * 99))}
    scene.put("verified.json", json.dumps(said).encode())
    head, *lines = scene.run("list").stdout.splitlines()
    assert len(lines) == 4 and all(width(line) < 100 and line.isprintable()
                                   for line in (head, *lines)), lines
    assert all(printable(name)[:5] in line for line in lines[1:])
    assert lines[2].endswith("…") and re.search(r" not all +-?\d+[smhdy] ", lines[1])


def test_times_are_shown_in_units_of_which_there_are_two_or_more() -> None:
    shown = [short_time(seconds) for seconds in (0, 119, 121, 7_100, 7_300, 47 * 3600.0, 49 * 3600,
                                                 700 * 86400, 800 * 86400, 2**37)]
    assert shown == ["0s", "119s", "2m", "118m", "2h", "47h", "2d", "700d", "2y", "4358y"]


# ---- Progress ----------------------------------------------------------------------------------

class Terminal:
    """A terminal of so many columns, and what a program wrote to it."""

    def __init__(self, columns: int) -> None:
        self.ours, self.theirs = pty.openpty()
        self.said = b""
        self.resize(columns)

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def wait_for(self, pattern: bytes) -> None:
        """Read until what was written last matches."""
        seen, end = len(self.said), time.monotonic() + PATIENCE
        while not re.search(pattern, self.said[seen:]):
            left = max(0, end - time.monotonic())
            assert select.select([self.ours], [], [], left)[0], self.said
            self.said += os.read(self.ours, 65536)

    def read(self) -> None:
        """Read to the end."""
        with contextlib.suppress(OSError):  # EIO: nobody has it open any more
            while data := os.read(self.ours, 65536):
                self.said += data

    def bars(self) -> list[str]:
        """All that was drawn, without the lines of the log."""
        drawn = self.said.decode().split("\r\x1b[K")
        return [each for each in drawn if each and not each.startswith("time=")]


@contextlib.contextmanager
def shown(scene: Scene, terminal: Terminal, *arguments: str, **settings: str) -> Iterator[
        subprocess.Popen[bytes]]:
    """A command, on a terminal; it must end well."""
    with temporary_folder() as home, subprocess.Popen(
            [*compiled(), *arguments],
            env=executor_environment({**scene.settings, **settings}, str(home), 17),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=terminal.theirs) as ran:
        try:
            yield ran
            os.close(terminal.theirs)
            terminal.read()
        finally:
            ran.kill()
            os.close(terminal.ours)
    assert ran.returncode == 0, terminal.said


@pytest.mark.parametrize("columns", [0, 20, 132])
def test_the_bar_of_each_step_fits_the_terminal_and_shows_what_part_is_done(
        big: Scene, columns: int) -> None:
    for command, step in (("backup", "Upload"), ("verify", "Download")):
        terminal = Terminal(columns)
        with shown(big, terminal, command):
            pass
        bars = terminal.bars()
        assert bars and all(len(bar) < (columns or 80) for bar in bars)
        parts = [re.search(r"(?:^|] )(\d+) %, \d+s left", bar) for bar in bars]
        assert "100" in [part[1] for part in parts if part]
        assert (f"{step} in progress [####" in terminal.said.decode()) == (columns != 20)
        assert not re.search("of 0", terminal.said.decode())


def test_the_bar_follows_a_terminal_that_is_made_narrower(big: Scene, meddler: Proxy) -> None:
    """COLUMNS counts, too, where it is narrower still."""
    resized = threading.Event()

    def hold(answer: bytes) -> Iterator[bytes]:
        resized.wait(PATIENCE)
        yield answer

    meddler.change(PART + b"3", hold)  # the last one
    terminal = Terminal(100)
    with shown(big, terminal, "backup", **through(meddler)):
        terminal.wait_for(rb"Upload in progress \[#+ *\] 8\d %")
        terminal.resize(25)
        drawn = len(terminal.bars())
        resized.set()
    assert all(len(bar) < 25 for bar in terminal.bars()[drawn:]) and len(terminal.bars()) > drawn
    terminal = Terminal(100)
    with shown(big, terminal, "verify", COLUMNS="30"):
        pass
    assert terminal.bars() and all(len(bar) < 30 for bar in terminal.bars())


@pytest.mark.parametrize("total", [0, 10, 23_000_000, 10**15])
def test_a_bar_shows_first_what_matters_first(
        total: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(backup_executor, "on_terminal", lambda: True)
    show = backup_executor.progress("Backup in progress", total)
    for columns, done in itertools.product((1, 2, 7, 20, 40, 60, 80, 500), (
            0, 5, total // 2, total, total + 1, 10**16)):
        monkeypatch.setenv("COLUMNS", str(columns))
        show(done)
        line = capfd.readouterr().err.removeprefix("\r\x1b[K")
        known = 0 < done <= total
        assert len(line) < columns and ("of" in line) <= known
        if known and columns >= 20:
            assert re.search(rf"(^|[]:] ){100 * done // total} %, \d+[smhdy] left", line), line
        if columns >= 80:
            assert line.startswith("Backup in progress")
            assert ("[" in line) == known and "/s" in line
