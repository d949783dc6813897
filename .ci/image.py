"""The image, built with podman."""
from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from environment import PIP, PROJECT, cache_folder, checked
from servers import Program, temporary_folder

# Where no registry can be reached, debootstrap makes what the image is built from. As in the real
# one there are security fixes, and, since it is the slim one, there is no documentation.
BASE = "docker.io/library/debian:trixie-slim"
BASE_SOURCES = """deb http://deb.debian.org/debian trixie main
deb http://deb.debian.org/debian trixie-updates main
deb http://deb.debian.org/debian-security trixie-security main
"""
BASE_EXCLUDES = "".join(f"path-exclude /usr/share/{name}/*\n" for name in (
    "doc", "groff", "info", "lintian", "locale", "man")) + "path-include /usr/share/doc/*/copyright"
IMAGE = "localhost/backup-executor"
LABELS = {"source": "https://example.org/backup-executor", "version": "1.2.3", "revision": "c0ffee"}
IMAGE_USER = random.randrange(10**5, 2**31)  # nobody whom a passwd knows
IN_IMAGE = ("python", "-m", "backup_executor")


class Podman:
    """Podman with a storage of its own, which is kept: what did not change is not built again."""

    def __init__(self) -> None:
        recipe = hashlib.sha256((BASE_SOURCES + BASE_EXCLUDES).encode()).hexdigest()[:8]
        self.folder, state = cache_folder() / f"podman-{recipe}", "/run/colonies-backup-executor"
        self.env = {name: value for name, value in os.environ.items() if name.endswith("_proxy")}
        self.env |= {"PATH": ADMIN_PATH, "HOME": str(self.folder)}
        self.argv = ["podman", f"--root={self.folder}", f"--runroot={state}/storage",
                     f"--tmpdir={state}/libpod", "--runtime=runc", "--cgroup-manager=cgroupfs",
                     "--events-backend=none"]

    def __call__(self, *arguments: str, stdin: Any = subprocess.DEVNULL, **env: str) -> str:
        """What a podman command prints."""
        ran = subprocess.run([*self.argv, *arguments], stdin=stdin, env={**self.env, **env},
                             capture_output=True, text=True, check=False)
        assert ran.returncode == 0, f"{ran.stdout[-9999:]}\n{ran.stderr[-9999:]}"
        return ran.stdout

    def make_base(self) -> None:
        """Debian's base image, where it isn't there yet."""
        if BASE in self("images", "--format={{.Repository}}:{{.Tag}}").splitlines():
            return
        base = self.folder.with_suffix(".partial")  # /tmp may be mounted nodev
        shutil.rmtree(base, ignore_errors=True)
        try:
            checked(["env", f"PATH={ADMIN_PATH}", "debootstrap", "--variant=minbase", "trixie",
                     str(base), BASE_SOURCES.split()[1]], "debootstrap cannot make the base image")
            (base / "etc/apt/sources.list").write_text(BASE_SOURCES)
            (base / "etc/dpkg/dpkg.cfg.d/docker").write_text(BASE_EXCLUDES)
            for excluded in re.findall("exclude /(.*)/", BASE_EXCLUDES):
                for path in (base / excluded).rglob("*"):
                    if path.name != "copyright" and (path.is_symlink() or not path.is_dir()):
                        path.unlink()
            with subprocess.Popen(
                    ["tar", "-C", str(base), "--exclude=./var/cache/apt/*",
                     "--exclude=./var/lib/apt/lists/*", "-c", "."], stdout=subprocess.PIPE) as tar:
                self("import", f"--change=ENV PATH={ADMIN_PATH}", "-", BASE, stdin=tar.stdout)
            assert tar.returncode == 0
        finally:
            shutil.rmtree(base, ignore_errors=True)

    def build(self, tag: str, folder: Path, *options: str) -> None:
        self("build", "--isolation=chroot", "--pull=never", f"--tag={tag}", *options, str(folder))

    def make_image(self) -> None:
        """The Dockerfile's: its stage `venv`, by pip with this machine's index and CA; then all."""
        pip = subprocess.run([sys.executable, *PIP, "config", "list"], text=True,
                             capture_output=True, check=True).stdout
        config = dict(re.findall(r"(?m)^(?:global|:env:)\.(cert|index-url)='(.*)'$", pip))
        base = f"--build-arg=BASE={BASE}"  # no digest of Docker Hub's
        authorities = config.get("cert") or os.environ.get("SSL_CERT_FILE", "")
        with temporary_folder() as folder:
            volumes = [f"--volume={folder}/pip.conf:/etc/pip.conf:ro"] * bool(config or authorities)
            if authorities:
                config["cert"] = "/run/authorities.pem"
                volumes.append(f"--volume={authorities}:{config['cert']}:ro")
            (folder / "pip.conf").write_text("[global]\n" + "".join(
                f"{name} = {value}\n" for name, value in config.items()))
            self.build("venv", PROJECT, base, "--target=venv", *volumes)
        self.build(IMAGE, PROJECT, base, *(
            f"--build-arg={name.upper()}={text}" for name, text in LABELS.items()))

    def arguments(self, folder: Path | None, settings: dict[str, str], *command: str,
                  options: tuple[str, ...] = (), image: str = IMAGE) -> list[str]:
        """Run a container as a strict pod does, but in the host's network; FOLDER is /backups."""
        if folder:
            os.chown(folder, IMAGE_USER, 0)
            options = (f"--volume={folder}:/backups", *options)
        return ["run", "--rm", "--network=host", "--http-proxy=false", "--cap-drop=all",
                "--security-opt=no-new-privileges", "--read-only", "--read-only-tmpfs=false",
                "--tmpfs=/tmp:mode=1777", f"--user={IMAGE_USER}",
                "--passwd=false",  # else podman adds its user to it
                "--ulimit=nofile=1024", "--ulimit=nproc=1024",  # podman's own may not be allowed
                *options, *(f"--env={name}" for name in settings), image, *command]

    def run(self, folder: Path | None, settings: dict[str, str], *command: str,
            **more: Any) -> str:
        """What a command prints to stdout in the image."""
        settings = {**settings, "BACKUP_PATH": "/backups"}
        return self(*self.arguments(folder, settings, *command, **more), **settings)

    @contextlib.contextmanager
    def serving(self, folder: Path, settings: dict[str, str]) -> Iterator[tuple[Program, str]]:
        """The image's own command, the executor; also the container's name."""
        settings = {**settings, "BACKUP_PATH": "/backups", "BACKUP_ALIVE_FILE": ""}
        name = f"serving-{secrets.token_hex(6)}"
        arguments = self.arguments(folder, settings, options=(f"--name={name}",))
        with Program([*self.argv, *arguments], {**self.env, **settings}) as program:
            try:
                yield program, name
            finally:
                self("rm", "--force", "--ignore", "--time=0", name)


@pytest.fixture(scope="session")
def podman() -> Iterator[Podman]:
    """Podman that has the Dockerfile's image."""
    made = Podman()
    made.folder.mkdir(parents=True, exist_ok=True)
    with open(made.folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made("pod", "rm", "--all", "--force", "--time=0")  # those of a run that was killed
        made("rm", "--all", "--force", "--time=0")
        made.make_base()
        made.make_image()
        yield made
        made("image", "prune", "--force")  # what a Dockerfile made that was changed since


# Debian's packages have the same names. catatonit and slirp4netns are a pod's: that of the chart.
IMAGE_PROGRAMS = ("podman", "runc", "debootstrap", "catatonit", "slirp4netns")
ADMIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
