"""Tests of the forker: that a command which it starts is what a new Python makes of it."""
from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import pytest

import forking
from environment import EXECUTOR
from forking import LOADED, SCALE, Forked, can_be_forked, compile_program
from servers import BY_PATH, PATIENCE, executor_environment
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
# The same as a program whose last statement runs it, as the executor's does; what is in front of it
# has run before the copy is made, once for each SCALE.
AT_THE_END = f"""import os
SCALE = os.environ.get("{SCALE}")
class Known(Exception): pass
FOUND = [SCALE, Known.__module__, Known is getattr(__import__("__main__"), "Known")]
if __name__ == "__main__":
    FOUND.append("once")
    print(FOUND)
    try: raise Known
    except Known: import traceback; traceback.print_exc(); del traceback
""" + textwrap.indent(TELLING, "    ")
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
    compile_program(folder / "program.py", folder / "program.pyc")
    return [sys.executable, str(folder / "program.pyc")]


def forked(command: list[str], env: dict[str, str]) -> tuple[Forked, Any, Any]:
    """A program that is in a session of its own, and what it writes to."""
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    return Forked(command, env, [out.fileno(), err.fileno()], session=True), out, err


@pytest.mark.parametrize("text", [TELLING, AT_THE_END], ids=["whole", "in two parts"])
@pytest.mark.parametrize("more", [{}, {"TZ": "XXX-2", SCALE: "0.5"}, {SCALE: "2"},
                                  {"A": "é\u20ac\n", "LD_LIBRARY_PATH": "/x"}])
def test_a_copy_of_the_forker_is_what_a_new_python_is(
        tmp_path: Path, more: dict[str, str], text: str) -> None:
    command, env = [*compiled(tmp_path, text), "-x", "é", ""], {"PATH": "/bin", **more}
    assert can_be_forked(command, env)
    anew = subprocess.run(command, env=env, capture_output=True, check=False, cwd="/",
                          stdin=subprocess.DEVNULL, start_new_session=True)
    forked(command, env | {SCALE: "7"})[0].wait(PATIENCE)
    program, out, err = forked(command, env)
    assert program.wait(PATIENCE) == anew.returncode == 7
    for file, expected in ((out, anew.stdout), (err, anew.stderr)):
        with file:
            file.seek(0)
            assert file.read() == expected


@pytest.mark.parametrize("text", [
    STARTING + TELLING, "SEEN = []\nif __name__ == '__main__':\n    SEEN.append(1)\n"
    + textwrap.indent(STARTING + TELLING + "print(SEEN)", "    ")], ids=["whole", "in two parts"])
def test_a_program_that_starts_itself_again_is_what_a_new_python_is(
        tmp_path: Path, text: str) -> None:
    command, env = [*compiled(tmp_path, text), "outer"], {"PATH": "/bin"}
    anew = subprocess.run(command, env=env, capture_output=True, check=False, cwd="/",
                          stdin=subprocess.DEVNULL, start_new_session=True)
    program, out, err = forked(command, env)
    assert program.wait(PATIENCE) == anew.returncode == 0
    with out, err:
        told = [file.seek(0) or file.read().decode() for file in (out, err)]
    assert "the inner one leaves" in told[0] and told[0] == anew.stdout.decode()
    # Where an error was met: without the lines of what has forked.
    inner = re.sub(r"(?m)^  File .*forking.py.*\n(    .*\n)*", "", told[1])
    assert "as it does" in inner and inner == anew.stderr.decode()


def test_a_program_that_fails_as_it_is_loaded_does_so_in_its_copy(tmp_path: Path) -> None:
    command = compiled(tmp_path, "1 / 0\nif __name__ == '__main__':\n    print('not reached')")
    for _ in range(2):
        program, out, err = forked(command, {})
        assert program.wait(PATIENCE) == 1
        with out, err:
            assert [file.seek(0) or file.read().count(b"ZeroDivision") for file in (out, err)] == [
                0, 1]


def test_the_executor_reads_one_variable_before_it_runs() -> None:
    """The forker has one loaded for each value of that."""
    program = f"""import importlib, os, sys
for name in {LOADED.split()}: importlib.import_module(name)
read, real = set(), os.environ.__class__.__getitem__
os.environ.__class__.__getitem__ = lambda self, key: read.add(key) or real(self, key)
sys.path.insert(0, {str(EXECUTOR.parent)!r})
import backup_executor
print(read)"""
    ran = subprocess.run([sys.executable, "-B", "-c", program], capture_output=True, text=True,
                         check=True)
    assert ran.stdout.strip() == f"{ {SCALE} }"


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
    assert first.wait(PATIENCE) == -signal.SIGTERM == first.poll()
    with monkeypatch.context() as meanwhile:  # it ends after it was asked for
        meanwhile.setattr(first, "returncode", None)
        meanwhile.setattr(first, "poll", lambda: None)
        first.kill()
    second, *_ = forked(command, {})
    forking.forker().program.kill()
    assert second.wait(PATIENCE) == -signal.SIGKILL
    forking.forker().program.wait(PATIENCE)


def test_each_command_finds_in_a_new_python_what_it_needs(scene: Scene, new: str) -> None:
    """Those that an executor runs, backup and verify, are new ones in all tests of it."""
    scene.given_backup()
    for command in (["list"], ["check"], ["restore", "latest", "--database", new]):
        with tempfile.TemporaryDirectory() as home:
            anew = subprocess.run([*BY_PATH, *command], capture_output=True, check=False,
                                  env=executor_environment(scene.settings, home, 17))
        assert anew.returncode == 0, anew.stderr
