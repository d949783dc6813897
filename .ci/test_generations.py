"""Tests of the main path on each PostgreSQL that is maintained."""
from __future__ import annotations

import json
import secrets

import pytest

from environment import POSTGRESQL
from restores import RESTORED, RICH, same_databases, verifying
from servers import SeaweedFS, temporary_folder
from surroundings import FILLED, Generations, Scene

NEWEST = max(POSTGRESQL)


@pytest.mark.parametrize("version", sorted({*POSTGRESQL, 17}))
def test_the_main_path_by_a_servers_own_programs_and_by_the_newest(
        version: int, generations: Generations, s3: SeaweedFS) -> None:
    server, name = generations[version], f"main_{secrets.token_hex(4)}"
    new = f"{name}_new"
    with temporary_folder() as folder, server.dropping():
        server.run("createdb", name)
        scene = Scene(server, s3, folder, name, name)
        scene.sql(f"{FILLED}; {RICH}")
        made = [json.loads(scene.run("backup", clients=clients).stdout)
                for clients in (version, NEWEST)]
        versions = [(each["postgresql"].split(".")[0], each["pg_dump"].split(".")[0])
                    for each in made]
        assert versions == [(str(version), str(version)), (str(version), str(NEWEST))]
        assert [(row["name"], row["database"], row["checksum"])
                for row in json.loads(scene.run("list", "--json").stdout)] == [
                    (each["filename"], name, True) for each in reversed(made)]
        scene.run("check", "--max-age", "1")
        same_databases(scene, scene.restored(made[0]["filename"]))  # by pg_restore alone
        scene.run("restore", "latest", "--database", new, clients=NEWEST)
        same_databases(scene, new)
        report = json.loads(scene.run("verify", clients=NEWEST, **verifying(server)).stdout)
        assert (report["verdict"], report["rows"]["public.kinds"]) == (RESTORED, 3001)
