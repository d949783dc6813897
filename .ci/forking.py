"""Starts commands of the executor out of a Python that has boto3 loaded already.

A third of what a short command costs is that a new Python imports boto3. So one Python, the forker,
imports it once, and forks for each start: the copy becomes what `python PROGRAM.pyc ARGUMENTS` is,
with an environment, files and a session of its own. To load the executor is half of what is left:
it is run beforehand as far as its last statement, for each value of the one variable that it has
read by then.

Where such a copy starts its own program again, as `serve` does for each job, it forks, too: that is
its child, whose command line says what it is. What a copy cannot show is a new one's memory, and
its environment by /proc: tests of those start the program by `compiled()`.
"""
from __future__ import annotations

import _posixsubprocess
import ast
import atexit
import collections
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import marshal
import os
import py_compile
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

# Variables that a Python obeys as it starts, and a copy of another one does not.
OF_ITS_START = ("PYTHON", "LC_", "LANG", "MALLOC_")
LOADED = """argparse base64 collections ctypes concurrent.futures datetime email.utils fcntl heapq
    hmac http.client itertools json random resource select ssl subprocess tempfile threading
    traceback unicodedata urllib.request warnings boto3 s3transfer.utils"""
SCALE = "BACKUP_TIME_SCALE"  # what the executor reads before it runs
PR_SET_PDEATHSIG, MADV_HUGEPAGE, MADV_COLLAPSE = 1, 14, 25
LONGEST = 60_000  # bytes of an order


# ---- Programs in two parts -----------------------------------------------------------------------

def compile_program(source: Path, program: Path, whole: bool = False) -> None:
    """Make PROGRAM, a .pyc; where it ends by `if __name__ …`, what is before and that beside it.

    WHOLE: not so, for one that is started once or twice, or traces itself from its first line.
    """
    tree = ast.parse(source.read_bytes())
    last = tree.body.pop()
    if not whole and isinstance(last, ast.If) and "__name__" in ast.unparse(last.test):
        parts = [compile(each, str(source), "exec", dont_inherit=True)
                 for each in (tree, ast.Module([last], []))]
        program.with_suffix(".parts").write_bytes(marshal.dumps(parts))
    py_compile.compile(str(source), str(program), doraise=True)


@functools.cache
def parts(program: str) -> list[types.CodeType]:
    """The two of a program; none: it has not two."""
    file = Path(program).with_suffix(".parts")
    return marshal.loads(file.read_bytes()) if file.exists() else []  # noqa: S302 - our own


# By a program and what SCALE is: modules of which all but the end has run. Each is used once.
BEGUN = collections.defaultdict[tuple[str, str | None], list[types.ModuleType]](list)


def begin(program: str, scale: str | None) -> None:
    """Have two such modules for a copy: for itself, and for what it starts again."""
    ready = BEGUN[program, scale]
    while parts(program) and len(ready) < 2:
        kept, main = sys.modules["__main__"], types.ModuleType("__main__")
        main.__file__, sys.modules["__main__"] = program, main
        if scale is not None:
            os.environ[SCALE] = scale
        try:
            exec(parts(program)[0], vars(main))  # noqa: S102 - the copy would do the same
            ready.append(main)
        except Exception:  # it is for the copy to say
            parts(program).clear()
        finally:
            sys.modules["__main__"] = kept
            os.environ.pop(SCALE, None)
        gc.freeze()


# ---- The forker ----------------------------------------------------------------------------------

def become(order: dict[str, Any], given: list[int]) -> None:
    """In the copy: be the program that ORDER says, with these files as stdin, stdout, stderr."""
    for kind in ("mnt", "uts") if order["inside"] else ():
        with open(f"/proc/{order['inside']}/ns/{kind}") as space:
            if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), 0):
                raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if order["session"]:
        os.setsid()
    for number, fd in enumerate(given):
        os.dup2(fd, number)
    os.closerange(3, 1024)
    locale = os.environ.get("LC_CTYPE")  # that a Python without one has chosen for itself
    arguments: list[str] = order["arguments"]
    start = forking(_posixsubprocess.fork_exec, arguments[0])
    for module, name in ((_posixsubprocess, "fork_exec"), (subprocess, "_fork_exec")):
        setattr(module, name, start)  # older Pythons look in one, newer ones in the other
    be(arguments, order["env"] | ({"LC_CTYPE": locale} if locale else {}))


def be(arguments: list[str], env: dict[str, str]) -> None:
    """Run a program in this process as a new Python would, to its end."""
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    program, *_ = sys.argv = arguments
    # What /proc shows: an argument of the forker's has left room for it.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    first, last = map(int, fields[45:47])
    shown = b"\0".join(map(os.fsencode, [sys.executable, *arguments])).ljust(last - first, b"\0")
    ctypes.memmove(first, shown, last - first)
    sys.path[0] = str(Path(program).parent)
    for folder in filter(None, env.get("PYTHONPATH", "").split(":")):
        sys.path.insert(1, folder)
        runpy.run_path(f"{folder}/sitecustomize.py")
    if ready := BEGUN.get((program, env.get(SCALE))):
        main, code = ready.pop(), parts(program)[1]
    else:
        main = types.ModuleType("__main__")
        main.__file__ = program
        code = marshal.loads(Path(program).read_bytes()[16:])  # noqa: S302 - our own
    sys.modules["__main__"] = main
    exec(code, vars(main))  # noqa: S102 - that is what it is for


def forking(real: Callable[..., int], program: str) -> Callable[..., int]:
    """What Popen starts programs by, which forks for another start of this PROGRAM."""
    def start(arguments: list[Any], executables: Any, close_fds: bool, keep: Any, cwd: Any,
              env: list[bytes] | None, stdin: int, _to: int, _out: int, stdout: int, _err: int,
              stderr: int, *more: Any) -> int:
        if list(arguments[:2]) != [sys.executable, program] or close_fds or cwd or env is None:
            return real(arguments, executables, close_fds, keep, cwd, env, stdin, _to, _out,
                        stdout, _err, stderr, *more)
        pid = os.fork()
        if not pid:
            again(list(arguments[1:]), dict(os.fsdecode(each).split("=", 1) for each in env),
                  [stdin, stdout, stderr], [each for each in more if callable(each)])
        return pid

    return start


def again(arguments: list[str], env: dict[str, str], given: list[int],
          before: list[Callable[[], None]]) -> NoReturn:
    """In the copy of a copy: be its program once more, and nothing of what it was.

    BEFORE: what is to be called first. What called us never goes on here.
    """
    status = 1
    try:
        for number, fd in enumerate(given):
            if fd >= 0:
                os.dup2(fd, number)
        os.setsid()
        forget()
        for each in before:
            each()
        for fd in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):  # that folder's own is closed already
                if fd > 2 and not os.get_inheritable(fd):
                    os.close(fd)
        be(arguments, env)
        status = 0
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
        else:
            status = leaving.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(status & 255)


def forget() -> None:
    """Take away what a program that begins does not find: handlers, what is to be done at exit."""
    gc.freeze()  # nothing of what was is closed or removed
    gc.enable()
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    atexit._clear()
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    tempfile.tempdir = None
    # Other threads, which are no more, may have held these streams' locks.
    sys.stdout, sys.stderr = (
        open(fd, "w", buffering, old.encoding, old.errors, closefd=False)
        for fd, buffering, old in ((1, -1, sys.stdout), (2, 1, sys.stderr)))


def serve(orders: socket.socket) -> None:
    """Fork for each order; tell its process id, and how it ended. In a copy it becomes that.

    Where nobody gives orders any more, what was started and has not ended is killed.
    """
    tell: dict[int, tuple[int, socket.socket]] = {}  # by a handle of each: its process id, to whom
    while True:
        ready = select.select([orders.fileno(), *tell], [], [])[0]
        for handle in [each for each in ready if each in tell]:
            pid, asker = tell.pop(handle)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with contextlib.suppress(OSError):
                asker.send(str(status).encode())
            asker.close()
            os.close(handle)
        if orders.fileno() not in ready:
            continue
        data, fds, *_ = socket.recv_fds(orders, LONGEST, 4)
        if not data:
            for handle in tell:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            return None
        order = json.loads(data)
        begin(order["arguments"][0], order["env"].get(SCALE))
        pid = os.fork()
        if not pid:
            return become(order, fds[:3])
        for fd in fds[:3]:
            os.close(fd)
        asker = socket.socket(fileno=fds[3])
        tell[os.pidfd_open(pid)] = pid, asker
        with contextlib.suppress(OSError):
            asker.send(str(pid).encode())


def beforehand(make: Callable[..., Any]) -> Callable[..., Any]:
    """MAKE, of which two are made already: for a copy, and for what that starts again."""
    ready = [make(), make()]
    return lambda *given: make(*given) if given or not ready else ready.pop()


def in_huge_pages() -> None:
    """Have the kernel hold this memory in pages of 2 MB, if it can: half of what a fork costs.

    A copy that writes into one gets a small page of its own as before.
    """
    size, advise = 2 << 20, ctypes.CDLL(None).madvise
    for line in Path("/proc/self/maps").read_text().splitlines():
        if found := re.match(r"(\w+)-(\w+) rw-p \w+ 00:00 0 +(\[heap\])?$", line):
            first, last = -(-int(found[1], 16) // size) * size, int(found[2], 16) // size * size
            if first < last:
                for advice in (MADV_HUGEPAGE, MADV_COLLAPSE):
                    advise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), advice)


# ---- Who gives it orders -------------------------------------------------------------------------

class Forker:
    """The forker as a program of this process, with which it ends."""

    def __init__(self) -> None:
        self.orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.program = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), "-" * LONGEST],
                cwd="/", start_new_session=True,
                env={"PATH": os.environ["PATH"]},  # no locale, as in the tests
                pass_fds=[theirs.fileno()])


FORKERS: dict[int, Forker] = {}  # by the process whose it is: one that was forked has none yet
STARTING = threading.Lock()


def forker() -> Forker:
    """The one of this process."""
    with STARTING:
        if os.getpid() not in FORKERS:
            FORKERS[os.getpid()] = Forker()
        return FORKERS[os.getpid()]


def can_be_forked(arguments: list[str], env: dict[str, str]) -> bool:
    """Whether a copy will be what a new Python would be."""
    return (not any(name.startswith(OF_ITS_START) for name in env)
            and len(json.dumps([arguments, env])) < LONGEST - 200)


class Forked:
    """What `Popen` is, as far as it is used here, for `python PROGRAM.pyc ARGUMENTS`."""

    def __init__(self, arguments: list[str], env: dict[str, str], output: list[int],
                 session: bool = False, inside: int = 0) -> None:
        """OUTPUT: descriptors for its stdout and its stderr. SESSION: it begins one.

        INSIDE: a process whose mounts and host's name it has, which takes root.
        """
        self.arguments, self.asking = arguments, threading.Lock()
        self.returncode: int | None = None
        self.answers, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        order = {"arguments": arguments[1:], "env": env, "session": session, "inside": inside}
        with theirs, open(os.devnull) as nothing:
            socket.send_fds(forker().orders, [json.dumps(order).encode()],
                            [nothing.fileno(), *output, theirs.fileno()])
        self.pid = int(self.answers.recv(64))

    def poll(self) -> int | None:
        """How it ended; None: it has not."""
        with self.asking:
            if self.returncode is None and select.select([self.answers], [], [], 0)[0]:
                # Without an answer the forker has ended, and what it started with it.
                self.returncode = int(self.answers.recv(64) or -signal.SIGKILL)
                self.answers.close()
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends; how it did."""
        end = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            left = None if end is None else max(0, end - time.monotonic())
            if left == 0:
                raise subprocess.TimeoutExpired(self.arguments, timeout or 0)
            with contextlib.suppress(ValueError):  # another thread has heard it
                select.select([self.answers], [], [], left)
        return status

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile, as Popen has it
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", r".*fork\(\)", DeprecationWarning)  # beside its threads
    for name in LOADED.split():
        importlib.import_module(name)
    # What describes S3 is read once, too: two thirds of a client's work.
    loader = sys.modules["botocore.loaders"].JSONFileLoader
    read = functools.cache(functools.partial(loader._load_file, None))
    loader._load_file = lambda _, *file: read(*file)
    # So is what each session and client finds out of functions that are there: a third of the rest.
    hooks: Any = sys.modules["botocore.hooks"]
    session: Any = sys.modules["botocore.session"]
    accepts = functools.cache(hooks.accepts_kwargs)
    hooks.accepts_kwargs = lambda each: accepts(getattr(each, "__func__", each))
    sys.modules["boto3"].Session("-", "-").client("s3", "us-east-1")  # which imports still more
    session.get_session = beforehand(session.get_session)
    gc.freeze()
    in_huge_pages()
    serve(socket.socket(fileno=int(sys.argv[1])))
