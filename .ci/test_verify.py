"""Tests of verify, the command and the function."""
from __future__ import annotations

import contextlib
import json
import re
import select
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from colonies import CANCELLED, FAILED, WAITING
from proxies import Proxy, http_reply, through
from restores import RESTORED, Proof, holding, paused, tablespaces, verifying
from servers import (
    HELD_UP,
    PATIENCE,
    Executor,
    client_programs,
    descendants,
    error_lines,
    handles_below,
    kill_child,
    run,
)
from surroundings import BRISK, GENERATIONS, Scene, Site, becomes_true, sha256_of, standin
from timescale import PAUSING, Sensors

# ---- Verify ------------------------------------------------------------------------------------

def test_verify_leaves_the_backed_up_server_alone(sensors: Sensors) -> None:
    since = len(sensors.server.logged())
    sensors.run("verify")
    log = sensors.server.logged(since)  # asking for it takes a session
    assert sum("connection received" in line for line in log) == 1, log


@pytest.mark.parametrize("checksum", [True, False], ids=["checksum", "no-checksum"])
@pytest.mark.parametrize("damage", ["bit", "truncated", "swapped"])
def test_a_damaged_backup_fails(proof: Proof, damage: str, checksum: bool, tmp_path: Path) -> None:
    body = bytearray(proof.objects()[proof.name])
    if damage == "bit":
        body[len(body) * 2 // 3] ^= 8  # in the data: the table of contents, before them, is whole
    elif damage == "truncated":
        del body[len(body) * 2 // 3:]
    elif checksum:
        proof.postgres.run("pg_dump", "-Fc", "-f", str(tmp_path / "other"))
        body[:] = (tmp_path / "other").read_bytes()
    else:
        body[:0] = b"another format"
    name = proof.again(bytes(body), **(proof.metadata if checksum else {}))
    before = len(proof.scratch.logged())
    report = proof.report(name, status=1)
    assert re.match("failed.*" + ("SHA-256" if checksum else "pg_restore"), report["verdict"])
    assert not any("CREATE DATABASE" in line for line in proof.scratch.logged(before))
    assert re.match("failed", proof.verdicts()[name] or "")


def test_help_explains_each_field_of_a_result_and_of_a_report(scene: Scene) -> None:
    told = {"backup": scene.backup(),
            "verify": json.loads(scene.run("verify", **verifying(scene.postgres)).stdout)}
    for command, fields in told.items():
        shown = scene.run(command, "--help").stdout
        assert [each for each in fields if not re.search(rf"(?m)^  (\w+, )?{each}\b", shown)] == []


@pytest.mark.parametrize("others", [1, 2])
def test_of_verifies_at_once_all_verdicts_are_noted(
        proof: Proof, meddler: Proxy, tmp_path: Path, others: int) -> None:
    """Each of the others reads and writes between the first one's reading and its writing."""
    plain = {"VERIFY_DB_HOST": ""}
    first, *names = [proof.name, *(proof.again(**proof.metadata) for _ in range(2))]
    if others == 1:  # beside a verdict that is there
        proof.report(names.pop(), **plain)

    def meanwhile(piece: bytes) -> bytes:
        if re.match(rb"PUT \S*/verified\.json", piece) and names:
            proof.report(names.pop(), **plain, BACKUP_PATH=str(tmp_path))
        return piece

    meddler.request = meanwhile
    proof.report(first, **plain, **through(meddler))
    assert not names and [*proof.verdicts().values()] == ["readable"] * 3


@pytest.mark.parametrize("status", [
    "400 Bad Request", "501 Not Implemented", "412 Precondition Failed"])
def test_a_server_that_takes_no_condition_gets_the_verdict_without(
        proof: Proof, meddler: Proxy, status: str) -> None:
    """And one that compares another ETag than it shows."""
    meddler.reply(rb"(?is)^PUT \S*/verified\.json.*\r\nif-(none-)?match:",
                  http_reply(status, b""), times=99)
    for name in (proof.name, proof.again(**proof.metadata)):
        ran = proof.run("verify", name, **through(meddler, 0.01), VERIFY_DB_HOST="")
        assert "Cannot note" not in ran.stderr and proof.verdicts()[name] == "readable"
    assert all(proof.verdicts().values())


def test_a_backup_that_lost_a_table_since_fails(proof: Proof) -> None:
    proof.again(**proof.metadata | {"tables": str(int(proof.metadata["tables"]) + 1)})
    assert re.search("failed.* 3 tables.* 4", proof.report(status=1)["verdict"])


def test_a_backup_that_can_be_read_but_not_restored_fails(proof: Proof) -> None:
    """Its table's constraint calls a function that finds no table t without a search_path.

    Of its rows, which the server's words have, nothing is told.
    """
    proof.sql("""CREATE FUNCTION known(int) RETURNS boolean LANGUAGE plpgsql AS
        'BEGIN RETURN EXISTS (SELECT FROM t WHERE id = $1); END';
        CREATE TABLE needy (i int CHECK (known(i)), word text);
        INSERT INTO needy VALUES (1, 'hushed')""")
    proof.backup(DB_PORT=str(proof.postgres.port))
    before = len(proof.scratch.logged())
    assert proof.report(VERIFY_DB_HOST="")["verdict"] == "readable"
    ran = proof.run("verify", status=1)
    verdict = json.loads(ran.stdout)["verdict"]
    assert re.fullmatch('failed: .* TABLE DATA public needy: .*"t" does not exist', verdict)
    assert "hushed" not in ran.stdout + ran.stderr + str(proof.verdicts())
    assert any("CREATE DATABASE" in line for line in proof.scratch.logged(before))


def test_a_verify_that_is_told_to_stop_drops_its_database_at_once(proof: Proof) -> None:
    with Executor({**proof.settings, **PAUSING}, "verify") as executor:
        scratch = paused(proof.scratch)
        assert re.fullmatch("verify_[0-9]+", scratch)
        assert executor.stop() == 143
        assert scratch not in proof.scratch.databases() and not executor.out
    assert proof.verdicts() == {proof.name: None}


@pytest.mark.parametrize("nothing", ["", "LOCK TABLE pg_shdescription IN SHARE MODE"],
                         ids=["restores", "comments"])
def test_what_a_verify_left_that_was_killed_while_it_is_dropped_by_the_next_one(
        proof: Proof, nothing: str) -> None:
    with holding(proof.scratch, nothing):  # or as soon as its database is there
        with Executor({**proof.settings, **PAUSING}, "verify") as executor:
            paused(proof.scratch, HELD_UP)
            programs = handles_below(executor.pid)
            executor.kill()
        proof.scratch.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                          f" WHERE {HELD_UP}")  # as if it had not come that far
        left = {name for name in proof.scratch.databases() if name.startswith("verify_")}
        assert programs and all(select.select([pid], [], [], PATIENCE)[0] for pid in programs)
    assert proof.files() == [] and len(left) == 1
    assert proof.report()["verdict"] == RESTORED
    assert not left & proof.scratch.databases()


def test_somebody_elses_databases_named_like_scratch_ones_are_left_alone(proof: Proof) -> None:
    names = {"verify_123", "verify_124"}
    try:
        for name in names:
            proof.scratch.sql(f"CREATE DATABASE {name} TEMPLATE template0")
        proof.scratch.sql("COMMENT ON DATABASE verify_124 IS 'colonies-backup 0123456789ab'")
        assert proof.report()["verdict"] == RESTORED
        assert names <= proof.scratch.databases()
    finally:
        for name in names:
            proof.scratch.sql(f"DROP DATABASE IF EXISTS {name}")


def test_what_was_half_dropped_when_it_was_stopped_is_dropped_by_the_next_verify(
        proof: Proof) -> None:
    """PostgreSQL marks so what it begins to drop, and lets nobody in any more."""
    with proof.scratch.dropping():
        proof.scratch.sql("CREATE DATABASE verify_7; CREATE DATABASE verify_x7")
        proof.scratch.sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname ~ '^verify_x?7'")
        assert proof.report()["verdict"] == RESTORED
        assert proof.scratch.databases() & {"verify_7", "verify_x7"} == {"verify_x7"}


def test_a_verify_subscribes_to_nothing_needs_no_tablespace_and_works_in_its_own_database(
        proof: Proof) -> None:
    with tablespaces(proof.postgres, 2) as (one, two):
        proof.postgres.sql(f"ALTER DATABASE {proof.database} SET TABLESPACE {one}")
        proof.sql(f"""CREATE TABLE apart (i int) TABLESPACE {two}; CREATE PUBLICATION news FOR ALL
            TABLES; CREATE SUBSCRIPTION feed CONNECTION 'host=127.0.0.1 port=1' PUBLICATION news
            WITH (connect = false, slot_name = NONE)""")
        proof.backup(DB_PORT=str(proof.postgres.port))
        proof.sql("DROP SUBSCRIPTION feed")  # while it is there, nobody can drop the database
        proof.postgres.drop(proof.database)
    since = len(proof.scratch.logged())
    report = proof.report()
    assert (report["verdict"], report["rows"]["public.apart"]) == (RESTORED, 0)
    log = "\n".join(proof.scratch.logged(since))
    assert not re.search("SUBSCRIPTION|PUBLICATION|TABLESPACE", log), log
    [scratch] = set(re.findall(r"CREATE DATABASE (verify_\d+)", log))
    assert set(re.findall(r"connection authorized: user=postgres database=(\S+)", log)) == {
        "postgres", scratch}


def test_the_latest_is_the_newest_good_one_of_this_database(proof: Proof) -> None:
    good, metadata = proof.name, proof.metadata
    small = b"less than half of the size before"
    proof.again(small, **metadata | {"sha256": sha256_of(small)})
    proof.again(**metadata | {"database": "other"})
    proof.again()  # an older executor's, of no one knows which database
    assert proof.report(VERIFY_DB_HOST="")["object"] == f"{proof.prefix}/{good}"


def test_list_shows_when_each_backup_was_verified_and_how_that_went(proof: Proof) -> None:
    good = proof.name
    bad = proof.again(b"damaged", **proof.metadata)
    proof.report(good)
    proof.report(bad, status=1)
    last, first = json.loads(proof.run("list", "--json").stdout)
    assert abs(datetime.fromisoformat(first["verified"]["time"]).timestamp() - time.time()) < 3600
    assert first["verified"]["verdict"] == RESTORED
    assert re.match("failed.*SHA-256", last["verified"]["verdict"])
    lines = proof.run("list").stdout.splitlines()
    for line, row, word in ((lines[1], last, "failed"), (lines[2], first, "restored")):
        assert row["name"] in line and re.search(rf" {word} \d+[sm] ", line)


def test_what_is_not_in_the_bucket_any_more_is_not_said_to_be_verified(proof: Proof) -> None:
    gone = proof.name
    kept = proof.again(**proof.metadata)
    proof.report(gone, VERIFY_DB_HOST="")
    proof.s3_client.delete_object(Bucket="backup", Key=f"{proof.prefix}/{gone}")
    proof.report(kept, VERIFY_DB_HOST="")
    assert proof.verdicts() == {kept: "readable"}
    assert set(json.loads(proof.objects()["verified.json"])) == {kept}


def test_a_cut_answer_loses_no_verdict(proof: Proof, meddler: Proxy) -> None:
    first, second = proof.name, proof.again(**proof.metadata)
    proof.report(first, VERIFY_DB_HOST="")
    meddler.change(rb"^GET \S*verified\.json", lambda answer: iter([answer[:-30]]))
    proof.report(second, VERIFY_DB_HOST="", **through(meddler, 0.1))
    assert proof.verdicts() == {first: "readable", second: "readable"}


@pytest.mark.parametrize("what", ["listing", "download", "lost"])
def test_s3_that_is_away_is_an_error_that_says_nothing_of_the_backup(
        proof: Proof, meddler: Proxy, what: str) -> None:
    request = rb"^GET /backup\?" if what == "listing" else rb"^GET \S*/backup_"
    if what == "lost":
        meddler.lose(request, times=10000)
    else:
        meddler.reply(request, http_reply("503 Slow Down", b""), times=10000)
    assert str(meddler.port) in proof.refusal("verify", **through(meddler, 0.001))
    assert meddler.seen(request) > 1 and proof.verdicts() == {proof.name: None}


@pytest.mark.parametrize(("setting", "value", "says"), [
    ("VERIFY_DB_PASSWORD", "not-this-one", "password authentication failed"),
    ("VERIFY_DB_PORT", "1", "onnection refused")])
def test_a_server_that_cannot_be_used_says_nothing_of_the_backup(
        proof: Proof, setting: str, value: str, says: str) -> None:
    since = len(proof.scratch.logged())
    ran = proof.run("verify", status=1, **{setting: value})
    [error] = error_lines(ran.stderr)
    assert says in error and "not-this-one" not in ran.stdout + ran.stderr
    tried = [line for line in proof.scratch.logged(since) if "FATAL: " in line and says in line]
    assert len(tried) == (setting == "VERIFY_DB_PASSWORD"), tried
    assert proof.verdicts() == {proof.name: None}


def test_a_backup_and_a_verify_do_not_share_the_staging_volume(proof: Proof) -> None:
    with Executor({**proof.settings, **PAUSING}, "verify") as verify:
        paused(proof.scratch)
        for command in ("backup", "verify"):
            assert "another" in proof.refusal(command, DB_PORT=str(proof.postgres.port))
        verify.stop()
    with proof.locked(), Executor({**proof.settings, "DB_PORT": str(proof.postgres.port)},
                                  "backup") as backup:
        proof.waiting()
        assert "another backup is running" in proof.refusal("verify")
        backup.stop()


# ---- The function `verify` ---------------------------------------------------------------------

def stuck_verify(folder: Path) -> tuple[str, Path]:
    """A PATH whose pg_restore reads no archive to its end, and the file it makes when it begins."""
    program, begun = folder / "pg_restore", folder / "begun"
    program.write_text(f"""#!/bin/sh
        case "$*" in
            "-a -f- "*) ;;
            *) exec '{client_programs()[0]}/pg_restore' "$@" ;;
        esac
        echo >>'{begun}'
        exec sleep 600\n""")
    program.chmod(0o755)
    return f"{folder}:{client_programs()[0]}:/usr/bin:/bin", begun


@contextlib.contextmanager
def verifying_for_ever(site: Site, folder: Path) -> Iterator[tuple[Executor, str, Path]]:
    """An executor amid the verify of a backup, that process, and a file with a line for each."""
    assert run(site.environ(), "backup").returncode == 0
    path, begun = stuck_verify(folder)
    process = site.submit("verify")
    with site.serve(PATH=path, BACKUP_TIME_SCALE=BRISK) as executor:
        becomes_true(begun.exists)
        yield executor, process, begun


@standin(*GENERATIONS)
def test_a_verify_process_is_closed_with_the_report(site: Site) -> None:
    with site.serve() as executor:
        made = [site.succeeds(site.submit())["filename"]]
        newest = site.submit("verify")
        report = site.succeeds(newest)
        assert site.client.process(newest)["out"] == [json.dumps(report, indent=4)]
        assert report["verdict"] and made[0] in json.dumps(report)
        made.append(site.succeeds(site.submit())["filename"])
        report = site.succeeds(site.submit("verify", args=[made[0]]))
        assert made[0] in json.dumps(report) and made[1] not in json.dumps(report)
        assert executor.log.count("Backing up database") == 2  # a verify satisfies no backup
        if site.where.generation == 2026:
            assert site.client.logs(newest)
    assert site.files() == []


@standin(*GENERATIONS)
def test_a_backup_that_waits_beside_a_verify_goes_first(site: Site) -> None:
    queued = [site.submit("verify"), site.submit("verify"), site.submit()]
    with site.serve() as executor:
        name = site.succeeds(queued[2])["filename"]
        for verify in queued[:2]:
            assert name in json.dumps(site.succeeds(verify))
        begun = re.findall(r"Beginning process.* ProcessId=(\S*)", executor.log)
        assert begun == [queued[2], *queued[:2]]


@standin()
def test_arguments_that_verify_does_not_take_are_refused(site: Site) -> None:
    odd: list[dict[str, Any]] = [
        {"args": ["latest", "latest"]}, {"args": [5]}, {"args": [["latest"]]}, {"args": [None]},
        {"args": [""]}, {"args": ["--help"]}, {"args": ["latest\0"]}, {"args": ["\ud800"]},
        {"args": ["x" * 200_000]}, {"kwargs": {"named": "latest"}}]
    processes = [site.submit("verify", **what) for what in odd]
    with site.serve() as executor:
        for process, what in zip(processes, odd):
            (error,) = site.client.wait(process, FAILED)["errors"]
            assert "verify" in error and "argument" in error and "name" in error, what
        assert "Beginning process" not in executor.log


@standin()
def test_a_verify_that_fails_says_why_and_unknown_functions_name_those_there_are(
        site: Site) -> None:
    missing, unknown = site.submit("verify", args=["backup_1.bak"]), site.submit("prove\0")
    with site.serve() as executor:
        errors = site.client.wait(missing, FAILED)["errors"]
        assert len(errors) == 1 and errors[0] in executor.log and len(errors[0]) > 10
        (error,) = site.client.wait(unknown, FAILED)["errors"]
        assert all(word in error for word in ("prove", "backup", "verify")) and "\0" not in error


@standin(None)
def test_cancelling_a_running_verify_stops_it_and_a_killed_one_has_failed(
        site: Site, tmp_path: Path) -> None:
    with verifying_for_ever(site, tmp_path) as (executor, killed, begun):
        kill_child(executor)
        assert "memory" in site.client.wait(killed, FAILED)["errors"][0]
        cancelled = site.submit("verify")
        becomes_true(lambda: begun.read_text() == "\n\n")
        site.client.cancel(cancelled)
        becomes_true(lambda: not descendants(executor.pid))
        assert site.files() == []
        site.succeeds(site.submit())
    assert site.client.process(cancelled)["state"] == CANCELLED


@standin({"stale": 5})
def test_a_verify_longer_than_the_servers_patience_goes_on_and_sigterm_hands_it_back(
        site: Site, tmp_path: Path) -> None:
    with verifying_for_ever(site, tmp_path) as (executor, process, begun):
        site.standin.wait_call("getprocessmsg", count=9)
        assert site.called("addexecutormsg") == 1 and begun.read_text() == "\n"
        assert executor.stop() == 0
        assert site.client.process(process)["state"] == WAITING and site.files() == []
    with site.serve():
        site.succeeds(process)
