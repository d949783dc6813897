"""What commands and processes take: seconds, CPU seconds and memory, as /proc has them."""
from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from servers import LIBC, PR_SET_PDEATHSIG, descendants, memory

Answer = TypeVar("Answer")


class Ran(NamedTuple):
    """What a command took: seconds, CPU seconds, and its peak of memory in MB, if watched."""

    seconds: float
    cpu: float
    peak: float


def measured(env: dict[str, str], *commands: list[str], watch: bool = False) -> Ran:
    """Run COMMANDS, as a pipe if there are several, to their end."""
    os.sync()
    with contextlib.ExitStack() as stack:
        said: Any = stack.enter_context(tempfile.TemporaryFile())
        source: Any = subprocess.DEVNULL
        processes: list[subprocess.Popen[bytes]] = []
        begun, cpu = time.monotonic(), 0.0
        for command in commands:
            process = stack.enter_context(subprocess.Popen(
                command, env=env, stdin=source, stderr=said, start_new_session=True,
                stdout=said if command is commands[-1] else subprocess.PIPE,
                preexec_fn=lambda: LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)))
            stack.callback(process.kill)
            if processes:
                source.close()  # else its writer would not learn of the reader's end
            source = process.stdout
            processes.append(process)
        watching = stack.enter_context(Watch(processes[-1].pid)) if watch else None
        for process in processes:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            cpu += usage.ru_utime + usage.ru_stime
        seconds = time.monotonic() - begun
        if any(process.returncode for process in processes):
            said.seek(0)
            raise RuntimeError(f"{commands} failed: {said.read().decode(errors='replace')}")
        return Ran(seconds, cpu, watching.peak() if watching else 0)


def cpu_of(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Watch:
    """Samples a process, and those it starts that run the same program (ours: Python).

    A child's ru_maxrss would be of no use: it begins with what the process had that forked it.
    """

    def __init__(self, pid: int) -> None:
        self.pid, self.ended = pid, threading.Event()
        self.program = os.readlink(f"/proc/{pid}/exe")
        self.cpu: dict[int, float] = {}
        self.beside: dict[int, float] = {}  # the same of other programs: pg_dump's
        self.peaks: dict[int, list[float]] = {}
        self._sample(pid)
        self.before = self.cpu[pid]
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _run(self) -> None:
        pids = [self.pid]
        for turn in itertools.count():
            if turn % 10 == 0:  # it reads all of /proc: more often would be felt
                pids = [self.pid, *descendants(self.pid)]
            for pid in pids:
                with contextlib.suppress(OSError):  # it has ended
                    self._sample(pid)
            if self.ended.wait(0.02):
                break

    def _sample(self, pid: int) -> None:
        own = os.readlink(f"/proc/{pid}/exe") == self.program
        (self.cpu if own else self.beside)[pid] = cpu_of(pid)
        if own:
            self.peaks.setdefault(pid, []).append(memory(pid, "VmHWM"))

    def used(self) -> float:
        """CPU seconds since the start of the watch."""
        return sum(self.cpu.values()) - self.before

    def peak(self) -> float:
        """The sum of the peaks in MB. A fork that is about to become another program is none."""
        return sum(max(found) for found in self.peaks.values() if len(found) >= 5)


def by_turns(turn: int, ways: dict[str, Callable[[], Answer]]) -> dict[str, Answer]:
    """What each of WAYS returns, each time another first: none has the quieter moment."""
    names = [*ways]
    first = turn % len(names)
    return {name: ways[name]() for name in (*names[first:], *names[:first])}
