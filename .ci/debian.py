"""Programs of Debian's packages, unpacked: that takes no root, and starts no service."""
from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from environment import ROOT, cache_lock, checked
from image import ADMIN_PATH
from servers import Postgres, Program, Server, free_ports, temporary_folder

APT = ["env", "LC_ALL=C", f"PATH={ADMIN_PATH}", "apt-get", "-q"]


def unpacked(*packages: str, beside: bool = True) -> Path:
    """The folder of Debian packages, with those that are not installed BESIDE them, if wanted."""
    package = "-".join(packages)
    if not shutil.which("apt-get"):
        pytest.skip(f"{package} is Debian's, and here is no apt-get")
    with cache_lock() as cache:
        target, partial = cache / f"debian-{package}", cache / "debian.partial"
        if target.exists():
            return target
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        if ROOT:
            checked([*APT, "update"], "apt-get finds no packages; is the network there?")
        said = subprocess.run([*APT, "-s", "install", "--no-install-recommends", *packages],
                              capture_output=True, text=True, check=False).stdout
        found = re.findall(r"(?m)^Inst (\S+)", said) if beside else []
        try:
            steps = 'cd "$0"; "$@"; for file in *.deb; do dpkg -x $file root; done'
            checked(["sh", "-ec", steps, str(partial), *APT, "download", *{*packages, *found}],
                    f"apt-get cannot fetch {package}")
        except RuntimeError as error:
            if ROOT:
                raise
            pytest.skip(str(error))
        (partial / "root").chmod(0o755)
        (partial / "root").rename(target)
        return target


class Pgbouncer(Server):
    """Debian's pgbouncer before a server, whose superuser everybody is there."""

    def __init__(self, folder: Path, postgres: Postgres, **settings: str) -> None:
        self.port, self.root = free_ports(1)[0], unpacked("pgbouncer")
        self.file = folder / f"pgbouncer-{self.port}.ini"
        facts = {"listen_addr": "127.0.0.1", "listen_port": self.port, "unix_socket_dir": "",
                 "auth_type": "any", "pool_mode": "transaction", "ignore_startup_parameters":
                 "extra_float_digits, options", "default_pool_size": 1, **settings}
        lines = "".join(f"{name} = {value}\n" for name, value in facts.items())
        self.file.write_text(f"""[databases]
* = host=127.0.0.1 port={postgres.port} user=postgres password={postgres.password}
[pgbouncer]
{lines}""")
        self.file.chmod(0o644)

    def start(self) -> Pgbouncer:
        libraries = ":".join(str(path) for path in self.root.glob("usr/lib/*"))
        self.program = Program([str(self.root / "usr/sbin/pgbouncer"), str(self.file)],
                               {"LD_LIBRARY_PATH": libraries}, nobody=ROOT)
        self.program.wait_for("process up")
        return self


@pytest.fixture
def pooler(postgres: Postgres) -> Iterator[Pgbouncer]:
    """It drops what sessions ask for, and has one connection for all of them."""
    with temporary_folder() as folder, Pgbouncer(folder, postgres) as server:
        yield server


class Cron(Postgres):
    """PostgreSQL 15 with Debian's pg_cron, whose database is `jobs`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "server", 15)
        root = unpacked("postgresql-15-cron", beside=False)
        shutil.copytree(self.bin.parent, folder / "programs")
        self.bin = folder / "programs/bin"
        for where, files in (("pkglibdir", "lib/postgresql/15/lib/*.so"),
                             ("sharedir", "share/postgresql/15/extension/*")):
            target = Path(self.run("pg_config", f"--{where}"))
            for file in (root / "usr").glob(files):
                shutil.copy(file, target / "extension" if where == "sharedir" else target)

    def _initdb(self) -> None:
        super()._initdb()
        with open(self.folder / "data/postgresql.conf", "a") as file:
            file.write("shared_preload_libraries = 'pg_cron'\ncron.database_name = 'jobs'\n"
                       "cron.use_background_workers = on\n")
