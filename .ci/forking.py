"""Starts commands of the executor out of a Python that has boto3 loaded already.

A third of what a short command costs is that a new Python imports boto3. So one Python, the forker,
imports it once, and forks for each start: the copy becomes what `python PROGRAM.pyc ARGUMENTS` is,
with an environment, files and a session of its own. Nothing of the executor is loaded beforehand.
"""
from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import marshal
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

# Variables that a Python obeys as it starts, and a copy of another one does not.
OF_ITS_START = ("PYTHON", "LC_", "LANG", "MALLOC_")
LOADED = """argparse base64 collections ctypes concurrent.futures datetime email.utils fcntl heapq
    hmac http.client itertools json random resource select ssl subprocess tempfile threading
    traceback unicodedata urllib.request warnings boto3 s3transfer.utils"""
PR_SET_PDEATHSIG = 1
LONGEST = 60_000  # bytes of an order


# ---- The forker ----------------------------------------------------------------------------------

def become(order: dict[str, Any], given: list[int]) -> None:
    """In the copy: be the program that ORDER says, with these files as stdin, stdout, stderr."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if order["session"]:
        os.setsid()
    for number, fd in enumerate(given):
        os.dup2(fd, number)
    os.closerange(3, 1024)
    locale = os.environ.get("LC_CTYPE")  # that a Python without one has chosen for itself
    os.environ.clear()
    os.environ.update(order["env"] | ({"LC_CTYPE": locale} if locale else {}))
    time.tzset()
    program, *_ = sys.argv = order["arguments"]
    sys.path[0] = str(Path(program).parent)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__ = program
    code = marshal.loads(Path(program).read_bytes()[16:])  # noqa: S302 - our own
    exec(code, vars(main))  # noqa: S102 - that is what it is for


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
        pid = os.fork()
        if not pid:
            return become(json.loads(data), fds[:3])
        for fd in fds[:3]:
            os.close(fd)
        asker = socket.socket(fileno=fds[3])
        tell[os.pidfd_open(pid)] = pid, asker
        with contextlib.suppress(OSError):
            asker.send(str(pid).encode())


# ---- Who gives it orders -------------------------------------------------------------------------

class Forker:
    """The forker as a program of this process, with which it ends."""

    def __init__(self) -> None:
        self.orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.program = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], cwd="/", start_new_session=True,
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
                 session: bool = False) -> None:
        """OUTPUT: descriptors for its stdout and its stderr. SESSION: it begins one."""
        self.arguments, self.asking = arguments, threading.Lock()
        self.returncode: int | None = None
        self.answers, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        order = {"arguments": arguments[1:], "env": env, "session": session}
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
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    for name in LOADED.split():
        importlib.import_module(name)
    sys.modules["boto3"].Session("-", "-").client("s3", "us-east-1")  # which imports still more
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])))
