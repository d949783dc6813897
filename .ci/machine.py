"""A machine that fails: its disks, its clock, its limits."""
from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from environment import ROOT
from forking import can_be_forked
from servers import SYSTEM_PATH, Program, compiled, executor_environment, run_forked
from surroundings import sha256_of

# A sitecustomize.py, by which something happens to the machine under an executor that knows nothing
# of it. MISHAP is N, WHICH, WHERE, WHAT: at the Nth of the `writes` or of all `uses` of the folder
# WHERE by Python, before it, the machine does WHAT; or no thread whose name begins with WHERE can
# be started from the Nth on. CLOCK names a file whose number is the time.
MEDDLING = r"""
import datetime, errno, os, sys, threading, time
clock, mishap = os.environ.get("CLOCK"), os.environ.get("MISHAP")
if clock:
    def now():
        with open(clock) as file: return float(file.read())
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None): return cls.__base__.fromtimestamp(now(), tz)
    time.time = now
    if "CLOCK_OF_LOG" in os.environ: datetime.datetime = Clock
if mishap:
    number, which, where, what, *more = mishap.split()
    uses, busy, us = 0, False, os.getpid()  # a copy that is another start has its own
    def act(said):
        os.write(2, f"MISHAP {said}\n".encode())
        if what == "fill":
            try:
                with open(f"{where}/filler", "wb", 0) as file:
                    while True: file.write(bytes(4096))
            except OSError: pass
        elif what in ("unmounted", "away"):
            os.system(f"umount -l {where}")
            if what == "away": os.rename(where, where + ".away")
        elif what == "read-only": os.system(f"mount -o remount,bind,ro {where}")
        elif what == "killed": os.kill(os.getpid(), 9)
        elif what == "failing": raise OSError(errno.EIO, os.strerror(errno.EIO), said.split()[1])
        elif what == "clock":
            with open(clock, "w") as file: file.write(more[0])
    start = threading.Thread.start
    def started(self):
        global uses
        if which == "threads" and os.getpid() == us and self.name.startswith(where):
            uses += 1
            if uses >= int(number): raise RuntimeError("can't start new thread")
        start(self)
    threading.Thread.start = started
    heard = ("open", "os.rename", "os.remove", "os.listdir", "subprocess.Popen")
    def hook(event, args):
        global uses, busy
        if busy or event not in heard or os.getpid() != us: return
        paths = args[1] if event == "subprocess.Popen" else args[:1]
        path = next((str(x) for x in paths if str(x).startswith(where)), None)
        if path is None or which == "writes" and event != "subprocess.Popen" and (
                event != "open" or not args[2] & (os.O_WRONLY | os.O_RDWR)): return
        uses += 1
        if uses == int(number):
            busy = True
            try: act(f"{event} {path}")
            finally: busy = False
    sys.addaudithook(hook)
"""

class Machine:
    """Where executors run whose files, mounts and clock a test controls, with or without root.

    MOUNT is a shell script that makes the mounts of their own: $0 is BACKUP_PATH, $1 is HOME.
    """

    def __init__(self, settings: dict[str, str], home: Path, mount: str = "") -> None:
        self.settings, self.home, self.mount = settings, home, mount
        self.folder = settings["BACKUP_PATH"]
        self.enter, self.root = list[str](), ""
        self.holder: Program | None = None
        (home / "sitecustomize.py").write_text(MEDDLING)
        (home / "tmp").mkdir()
        (home / "volume").mkdir()

    def __enter__(self) -> Machine:
        if self.mount:
            self.holder = Program(
                ["unshare", "-mu" if ROOT else "-rmu", "sh", "-ec",
                 f"{self.mount}\necho ready\nexec sleep 600", self.folder, str(self.home)],
                {"PATH": f"/usr/sbin:/sbin:{SYSTEM_PATH}"})
            self.holder.wait_for("^ready$")
            self.root = f"/proc/{self.holder.pid}/root"
            self.enter = ["nsenter", *([] if ROOT else ["-U", "--preserve-credentials"]),
                          "-m", "-u", "-t", str(self.holder.pid), "--"]
        return self

    def __exit__(self, *_: object) -> None:
        if self.holder:
            self.holder.kill()

    @property
    def path(self) -> Path:
        """BACKUP_PATH, as they see it."""
        return Path(self.root + self.folder)

    def do(self, script: str) -> None:
        """Run a shell script there; $0 is BACKUP_PATH, $1 is HOME."""
        subprocess.run([*self.enter, "sh", "-ec", script, self.folder, str(self.home)], check=True,
                       env={"PATH": f"/usr/sbin:/sbin:{SYSTEM_PATH}"})

    def started(self, *arguments: str, before: str = "", **settings: str) -> dict[str, Any]:
        """How a command is started; BEFORE is a shell's, as for a limit or a redirection.

        By the forker, if it can be: the log's clock has to be wrong from the first, and it may not
        enter mounts of its own as another user than root.
        """
        settings = {**self.settings, "TMPDIR": f"{self.home}/tmp", **settings}
        command, env = [*compiled(), *arguments], executor_environment(settings, str(self.home), 17)
        forked = (can_be_forked(command, env) and "CLOCK_OF_LOG" not in env and not before
                  and (ROOT or not self.enter))
        env |= {"PYTHONPATH": str(self.home), "PYTHONDONTWRITEBYTECODE": "1"}
        if forked:
            return {"arguments": command, "env": env, "forked": True,
                    "inside": self.holder.pid if self.holder else 0}
        shell = ["sh", "-c", f'{before} exec "$@"', "-"] if before else []
        return {"arguments": [*shell, *self.enter, *command], "env": env}

    def start(self, *arguments: str, **settings: str) -> Program:
        return Program(**self.started(*arguments, **settings))

    def run(self, *arguments: str, before: str = "", **settings: str
            ) -> subprocess.CompletedProcess[str]:
        """A command to its end; BEFORE is a shell's."""
        how = self.started(*arguments, before=before, **settings)
        if "forked" in how:
            ran = run_forked(how["arguments"], how["env"], 120, how["inside"])
        else:
            ran = subprocess.run(how["arguments"], text=True, capture_output=True, check=False,
                                 timeout=120, stdin=subprocess.DEVNULL, env=how["env"])
        assert "Traceback" not in ran.stderr, ran.stderr
        return ran

    def kept(self) -> dict[str, str]:
        """The dumps on the volume under final names, and their checksums; each has to be whole."""
        whole = {}
        for path in self.path.glob("*.bak"):
            sha256 = json.loads(path.with_name(f"{path.name}.json").read_text())["sha256"]
            assert sha256_of(path.read_bytes()) == sha256
            whole[path.name] = sha256
        return whole


FILL = "dd if=/dev/zero of=$0/filler bs=4k 2>/dev/null || true"
TMPFS = 'mount -t tmpfs -o size=256k tmpfs "$0"'
FULL = "No space left on device|bytes (are free|left)"
