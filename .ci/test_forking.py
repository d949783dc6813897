"""Tests of the forker: that a command which it starts is what a new Python makes of it."""
from __future__ import annotations

import py_compile
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import forking
from forking import Forked, can_be_forked
from servers import BY_PATH, executor_environment
from surroundings import Scene

TELLING = """import json, os, signal, sys, time
facts = [sys.argv, __name__, __file__, __spec__, sys.path[0], os.getcwd(), time.tzname,
    sorted(os.environ.items()), sorted(os.listdir("/proc/self/fd")), sys.stdout.encoding,
    sys.getfilesystemencoding(), [str(signal.getsignal(number)) for number in range(1, 32)],
    os.path.realpath("/proc/self/fd/0"), os.getsid(0) == os.getpid(),
    sorted(name for name in globals() if name[0] != "_")]
print(json.dumps(facts), flush=True)
print("to stderr", file=sys.stderr)
sys.exit(7)
"""
# A program as `serve` is, that starts itself once more, as `serve` does, and tells what that says.
STARTING = """import atexit, os, signal, subprocess, sys, threading
if sys.argv[1:] == ["outer"]:
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    atexit.register(print, "the outer one leaves", flush=True)
    kept, leaving = open("/dev/null"), threading.Event()
    threading.Thread(target=leaving.wait).start()
    for word in ("told", "fails", "says"):
        inner = subprocess.Popen(
            [sys.executable, __file__, word, "é"], env={**os.environ, "A": "b"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, close_fds=False,
            preexec_fn=lambda: os.write(1, b"before\\n"), start_new_session=True)
        print(inner.stdout.read().decode(), inner.wait(), flush=True)
    leaving.set()
    sys.exit(0)
atexit.register(print, "the inner one leaves")
if sys.argv[1] == "fails":
    raise ValueError("as it does")
if sys.argv[1] == "says":
    sys.exit("why")
print(open("/proc/self/cmdline", "rb").read().rstrip(b"\\0"), signal.pthread_sigmask(0, []),
      os.path.realpath("/proc/self/fd/0"),
      [each.name for each in threading.enumerate()], "kept" in globals())
"""


def compiled(folder: Path, text: str) -> list[str]:
    """What starts a program of this text."""
    (folder / "program.py").write_text(text)
    py_compile.compile(str(folder / "program.py"), str(folder / "program.pyc"), doraise=True)
    return [sys.executable, str(folder / "program.pyc")]


def forked(command: list[str], env: dict[str, str]) -> tuple[Forked, Any, Any]:
    """A program that is in a session of its own, and what it writes to."""
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    return Forked(command, env, [out.fileno(), err.fileno()], session=True), out, err


@pytest.mark.parametrize("more", [{}, {"TZ": "XXX-2"}, {"A": "é\u20ac\n", "LD_LIBRARY_PATH": "/x"}])
def test_a_copy_of_the_forker_is_what_a_new_python_is(tmp_path: Path, more: dict[str, str]) -> None:
    command, env = [*compiled(tmp_path, TELLING), "-x", "é", ""], {"PATH": "/bin", **more}
    assert can_be_forked(command, env)
    anew = subprocess.run(command, env=env, capture_output=True, check=False, cwd="/",
                          stdin=subprocess.DEVNULL, start_new_session=True)
    program, out, err = forked(command, env)
    assert program.wait(60) == anew.returncode == 7
    for file, expected in ((out, anew.stdout), (err, anew.stderr)):
        with file:
            file.seek(0)
            assert file.read() == expected


def test_a_program_that_starts_itself_again_is_what_a_new_python_is(tmp_path: Path) -> None:
    command, env = [*compiled(tmp_path, STARTING + TELLING), "outer"], {"PATH": "/bin"}
    anew = subprocess.run(command, env=env, capture_output=True, check=False, cwd="/",
                          stdin=subprocess.DEVNULL, start_new_session=True)
    program, out, err = forked(command, env)
    assert program.wait(60) == anew.returncode == 0
    with out, err:
        told = [file.seek(0) or file.read().decode() for file in (out, err)]
    assert "the inner one leaves" in told[0] and told[0] == anew.stdout.decode()
    # Where an error was met: without the lines of what has forked.
    inner = re.sub(r"(?m)^  File .*forking.py.*\n(    .*\n)*", "", told[1])
    assert "as it does" in inner and inner == anew.stderr.decode()


def test_what_a_python_obeys_at_its_start_takes_a_new_one(tmp_path: Path) -> None:
    for name in ("PYTHONPATH", "LC_ALL", "LANG", "MALLOC_ARENA_MAX"):
        assert not can_be_forked(["python", "x.pyc"], {"PATH": "/bin", name: "1"})


def test_a_program_ends_with_the_signal_that_it_gets_and_with_the_forker(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "FORKERS", {})  # another than the one that all share
    command = compiled(tmp_path, "import time; time.sleep(600)")
    first, *_ = forked(command, {})
    with pytest.raises(subprocess.TimeoutExpired):
        first.wait(0.01)
    first.terminate()
    assert first.wait(60) == -signal.SIGTERM == first.poll()
    with monkeypatch.context() as meanwhile:  # it ends after it was asked for
        meanwhile.setattr(first, "returncode", None)
        meanwhile.setattr(first, "poll", lambda: None)
        first.kill()
    second, *_ = forked(command, {})
    forking.forker().program.kill()
    assert second.wait(60) == -signal.SIGKILL
    forking.forker().program.wait(60)


def test_each_command_finds_in_a_new_python_what_it_needs(scene: Scene, new: str) -> None:
    """Those that an executor runs, backup and verify, are new ones in all tests of it."""
    scene.given_backup()
    for command in (["list"], ["check"], ["restore", "latest", "--database", new]):
        with tempfile.TemporaryDirectory() as home:
            anew = subprocess.run([*BY_PATH, *command], capture_output=True, check=False,
                                  env=executor_environment(scene.settings, home, 17))
        assert anew.returncode == 0, anew.stderr
