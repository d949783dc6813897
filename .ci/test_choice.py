"""Tests of which backup is taken, where several servers' and databases' are there."""
from __future__ import annotations

import json
import re
import secrets

import pytest

from restores import Proof, archive, refused, restored, same_databases, stored
from surroundings import Scene

LOST, EMPTY = "7400000000000012345", b"of the first night"


def lost(scene: Scene, seconds: int = 1600000000, **metadata: str) -> str:
    """A backup of this database by a server that is no more; its name."""
    return stored(scene, archive(scene), seconds, **{
        "system-identifier": LOST, "tables": "1", "postgresql": "16.2 (Debian 16.2-1)", **metadata})


def short(scene: Scene) -> str:
    return scene.sql("SELECT system_identifier FROM pg_control_system()")[-6:]


def test_latest_is_of_db_database_and_where_that_has_none_of_the_only_one(
        scene: Scene, new: str) -> None:
    name = stored(scene, archive(scene))
    for seconds, other in ((1700000001, "another"), (1700000002, "third")):
        stored(scene, b"another's", seconds, database=other)
    restored(scene, "latest", "--database", new)
    same_databases(scene, new)
    said = refused(scene, "latest", "--database", f"{new}_2", DB_DATABASE="fourth")
    assert "several databases" in said and "fourth" in said and "DB_DATABASE" in said
    for seconds in (1700000001, 1700000002):
        scene.s3_client.delete_object(
            Bucket="backup", Key=f"{scene.prefix}/backup_{seconds}.bak")
    assert name in restored(
        scene, "latest", "--database", f"{new}_2", DB_DATABASE="fourth").stdout


@pytest.mark.parametrize("first_night", [True, False], ids=["first-night", "as-large"])
def test_latest_of_two_servers_names_both_and_asks_for_one(
        scene: Scene, new: str, first_night: bool) -> None:
    passed = lost(scene, 1500000000)
    old = lost(scene)
    fresh = stored(scene, EMPTY if first_night else archive(scene), tables="0")
    error = refused(scene, "latest", "--database", new)
    size = len(scene.objects()[fresh])
    for name, at, facts in (
            (old, "2020-09-13", f"{len(scene.objects()[old])} bytes, tables: 1, server 012345"),
            (fresh, "2023-11-14", f"{size} bytes, tables: 0, server {short(scene)}")):
        assert re.search(rf"{name} \({at}T[^ ,]*, {facts}\)", error), error
    assert passed not in error and ("doubtful" in error) == first_night
    assert "--server" in error


@pytest.mark.parametrize("server", ["012345", LOST])
def test_a_server_is_chosen_by_the_end_of_its_identifier(
        scene: Scene, new: str, server: str) -> None:
    old, fresh = lost(scene), stored(scene, EMPTY)
    assert old in restored(
        scene, "latest", "--server", server, "--database", f"{new}_{len(server)}").stdout
    same_databases(scene, f"{new}_{len(server)}")
    restored(scene, old, "--database", f"{new}_by_name")
    same_databases(scene, f"{new}_by_name")
    for which, wrong in (("latest", "0" * 7), (fresh, server)):
        said = refused(scene, which, "--server", wrong, "--database", new)
        assert f"server {wrong}" in said


def test_a_replica_counts_as_the_server_whose_identifier_it_has(scene: Scene, new: str) -> None:
    stored(scene, archive(scene), postgresql="17.1")
    name = stored(scene, archive(scene), 1700000001, postgresql="17.2")
    assert name in restored(scene, "latest", "--database", new).stdout


def test_list_tells_servers_versions_tables_and_change(scene: Scene) -> None:
    made = scene.backup()
    body = scene.objects()[made["filename"]]
    lost(scene, 1, database="other")
    lost(scene, 2, database="other", timescaledb="2.28.3", tables="9" * 40)
    half = body[:len(body) // 2 + 1]
    stored(scene, half, 3)
    scene.put("backup_4.bak")
    stored(scene, half + half[:-1] * 2, 5)
    rows = json.loads(scene.run("list", "--json").stdout)
    told = [[row[key] for key in ("change", "tables", "server", "postgresql", "timescaledb")]
            for row in rows]
    ours = short(scene)
    of_before = round(100 * (len(body) / (3 * len(half) - 2) - 1), 1)
    assert told == [
        [of_before, 1, ours, "17.10", None], [round(100 * (3 - 2 / len(half)) - 100, 1), None, ours,
                                              None, None],
        [None] * 5, [None, None, ours, None, None], [0.0, None, "012345", "16.2", "2.28.3"],
        [None, 1, "012345", "16.2", None]]
    _, *lines = (line.split() for line in scene.run("list").stdout.splitlines())
    assert [line[3] for line in lines] == [
        f"{of_before:+.3g}%", f"{told[1][0]:+.3g}%", "-", "-", "+0%", "-"]
    assert lines[0][8:10] == [ours, scene.database]
    assert lines[4][8:] == ["012345", "other", "16.2/2.28.3"]
    assert lines[2][8:] == ["-", "-", "-"]


def test_a_new_servers_first_nights_are_doubtful_and_retention_does_not_count_them_together(
        scene: Scene) -> None:
    old = [lost(scene, seconds) for seconds in (1, 2, 3)]
    noise = secrets.token_bytes(5 * len(archive(scene)))
    large = stored(scene, noise, 4, **{"system-identifier": LOST})
    names = [scene.backup(FULL_BACKUPS="2")["filename"] for _ in range(3)]

    def doubts() -> set[str]:
        return {row["name"] for row in json.loads(scene.run("list", "--json").stdout)
                if row["doubtful"]}
    assert doubts() == set(names[1:])
    assert set(scene.objects()) == {*old, large, *names[1:]}
    scene.s3_client.delete_object(Bucket="backup", Key=f"{scene.prefix}/{large}")
    assert doubts() == set()


def test_verify_passes_over_a_new_servers_first_nights(proof: Proof) -> None:
    small, large = proof.name, secrets.token_bytes(3 * len(proof.objects()[proof.name]))
    old = f"backup_{int(small[7:-4]) - 9}.bak"
    proof.put(old, large, **{**proof.metadata, "system-identifier": LOST})
    for port in (proof.settings["DB_PORT"], str(proof.postgres.port)):  # away, there
        ran = proof.run("verify", status=1, DB_PORT=port, VERIFY_DB_HOST="")
        report = json.loads(ran.stdout)
        assert (report["object"], report["server"]) == (f"{proof.prefix}/{old}", "012345")
        assert re.search(rf"level=warning .*doubtful.*{small}", ran.stderr)
        assert re.search(rf"level=info .*several servers.*{old}.*{small}", ran.stderr)


def test_verify_takes_db_hosts_own_backup_of_two_servers_or_the_newer_one_if_that_is_away(
        proof: Proof) -> None:
    ours, there = proof.name, {"DB_PORT": str(proof.postgres.port)}
    other = proof.again(**{**proof.metadata, "system-identifier": LOST})
    report = proof.report(VERIFY_DB_HOST="", **there)
    assert (report["object"], report["server"]) == (
        f"{proof.prefix}/{ours}", proof.head(ours)["Metadata"]["system-identifier"][-6:])
    ran = proof.run("verify", VERIFY_DB_HOST="")
    assert json.loads(ran.stdout)["object"] == f"{proof.prefix}/{other}"
    assert re.search("level=warning .*refused", ran.stderr)
