"""Tests of README's table of S3 servers, and of backups at those that do little.

Those that are no package of the requirements are measured by the command `image`, which may fetch
Debian's.
"""
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from readme import README
from restores import same_databases
from s3_servers import COLUMNS, SERVERS, row
from surroundings import Scene, sha256_of

APART = ("Ceph", "nanio")


def table() -> dict[str, list[str]]:
    """README's rows, by the server's name."""
    lines = README.read_text("utf-8").splitlines()
    head = lines.index(f"| S3 server | {' | '.join(COLUMNS)} |")
    rows = [line.strip("| ").split(" | ") for line in lines[head + 2:head + 2 + len(SERVERS)]]
    return {found[0].split()[0]: found for found in rows}


def test_the_table_has_each_server() -> None:
    assert set(table()) == set(SERVERS)


@pytest.mark.parametrize("name", [name for name in SERVERS if name not in APART])
def test_an_s3_server_does_what_the_table_says(name: str) -> None:
    assert table()[name] == row(name)


@pytest.mark.parametrize("name", APART)
def image_an_s3_server_does_what_the_table_says(name: str) -> None:
    assert table()[name] == row(name)


@pytest.mark.parametrize("name", APART)
def image_an_s3_server_takes_backups_and_lets_go_of_them(
        scene: Scene, tmp_path: Path, name: str) -> None:
    made, _ = SERVERS[name]
    with made(tmp_path / "s3") as s3:
        there = Scene(scene.postgres, s3, scene.folder, scene.database, "deep/er")
        there.settings |= {"FULL_BACKUPS": "1", "BACKUP_ROLES": "auto"}
        assert "bucket" in there.run("backup").stderr  # it makes that
        said = there.run("check").stdout
        assert re.search("(?m)^ok +bucket: .*1 proven backup", said)
        result = there.backup()
        archive, roles = there.objects()
        assert (archive, roles) == (result["filename"], result["roles"].rpartition("/")[2])
        assert sha256_of(there.objects()[archive]) == result["sha256"]
        report = json.loads(there.run("verify").stdout)
        assert (report["verdict"], report["sha256"]) == ("readable", "checked")
        same_databases(there, there.restored(archive))
