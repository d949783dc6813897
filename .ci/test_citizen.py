"""Tests of what a first-class executor of 2026 does, and of what a server of 2023 is spared."""
from __future__ import annotations

import json
import re
import secrets
from typing import Any

import pytest

import backup_executor
from backup_executor import __version__
from colonies import CANCELLED, FAILED, RUNNING, SUCCESS, Standin
from proxies import Proxy, http_reply
from servers import SeaweedFS, descendants
from surroundings import BRISK, GENERATIONS, OTHER_KEY, Site, becomes_true, standin
from timescale import Timescale

DAILY = "0 0 1 * * *"
EACH: dict[str, Any] = dict.fromkeys(("BACKUP_CRON", "VERIFY_CRON", "CHECK_CRON"), DAILY)


def cron_nodes(site: Site) -> dict[str, dict[str, Any]]:
    """The one node of each cron's workflow, by the function that it calls."""
    nodes = [json.loads(cron["workflowspec"])["functionspecs"] for cron in site.client.crons()]
    return {node["funcname"]: node for (node,) in nodes}


def run_cron(site: Site, cron: str = "") -> list[str]:
    """Run a cron, or the only one, now; the ids of its processes."""
    with site.standin.lock:
        before = {*site.standin.processes}
    site.client.call("runcronmsg", cronid=cron or site.client.crons()[0]["cronid"])
    with site.standin.lock:
        return [each for each in site.standin.processes if each not in before]


def add_cron(site: Site, *nodes: dict[str, Any]) -> str:
    """Add a cron by hand; its id."""
    conditions = {"executortype": site.name, **site.client.colony}
    specs = [{"nodename": node["funcname"], **node,
              "conditions": {**conditions, **node.get("conditions", {})}} for node in nodes]
    return site.client.call("addcronmsg", cron={
        "name": "backupcron", "cronexpression": DAILY, "interval": -1, "random": False,
        "workflowspec": json.dumps({"functionspecs": specs, **site.client.colony}),
        **site.client.colony})["cronid"]


# ---- Crons ---------------------------------------------------------------------------------------

@standin(*GENERATIONS)
def test_what_a_cron_submitted_and_nobody_took_is_failed_by_the_server(site: Site) -> None:
    with site.serve(**EACH) as executor:
        executor.wait_for("Added the cron", count=3)
    assert {name: node["maxwaittime"] for name, node in cron_nodes(site).items()} == {
        "backup": 82_800, "verify": 82_800, "check": 82_800}
    with site.serve(BACKUP_MAX_WAIT="0.0003", **EACH) as executor:  # that has changed
        becomes_true(lambda: len(site.client.crons()) == 3 and {
            node["maxwaittime"] for node in cron_nodes(site).values()} == {1})
    for cron in site.client.crons():
        (process,) = run_cron(site, cron["cronid"])
        (error,) = site.client.wait(process, FAILED)["errors"]
        assert error == "Maximum waiting time limit exceeded"


@standin(*GENERATIONS)
def test_the_label_of_a_crons_process_is_the_database_where_the_server_knows_labels(
        site: Site) -> None:
    new = site.where.generation == 2026
    with site.serve(BACKUP_CRON=DAILY) as executor:
        executor.wait_for("Added the cron")
        (process,) = run_cron(site)
        assert site.client.wait(process, SUCCESS)["spec"].get("label") == (
            site.database if new else None)
    assert cron_nodes(site)["backup"]["label"] == (site.database if new else "")
    site.postgres.run("createdb", f"{site.name}-b")
    wanted = {"backup": f"{site.name}-b" * new}
    with site.serve(BACKUP_CRON=DAILY, DB_DATABASE=f"{site.name}-b"):
        becomes_true(lambda: {name: node["label"] for name, node in cron_nodes(site).items()}
                     == wanted)


@standin()
def test_a_cron_of_an_older_version_gets_what_is_new(site: Site) -> None:
    names = {"executornames": [site.name]}
    add_cron(site, {"funcname": "backup", "conditions": names})
    with site.serve(BACKUP_CRON=DAILY) as executor:
        executor.wait_for("Added the cron")
    assert [cron["name"] for cron in site.client.crons()] == ["backupcron"]
    assert cron_nodes(site)["backup"]["maxwaittime"] == 82_800


# ---- A paused colony, and what is cancelled ------------------------------------------------------

@standin({"stale": 4})
def test_a_paused_colony_is_no_error_and_a_warning_each_hour(site: Site) -> None:
    site.standin.longest = 0.5
    with site.serve(BACKUP_TIME_SCALE=BRISK) as executor:  # its hour has a minute
        site.polling()
        site.client.pause()
        process = site.submit()
        site.standin.wait_call("assignprocessmsg", 408, 10)  # for more than the server's patience
        executor.wait_for("level=warning .*paused")
        assert executor.log.count("paused") < 5
        site.client.pause(resume=True)
        site.succeeds(process)
        executor.wait_for("level=info .*hands out work again")
        assert "level=error" not in executor.log and site.called("addexecutormsg") == 1


@standin({"stale": 5})
@pytest.mark.parametrize("paused", [True, False], ids=["paused", "as-usual"])
@pytest.mark.parametrize("of", ["a-workflow", "none"])
def test_what_is_cancelled_stops_also_while_the_colony_is_paused(
        site: Site, paused: bool, of: str) -> None:
    with site.locked() as release, site.serve(BACKUP_TIME_SCALE=BRISK) as executor:
        (process, *_) = site.client.submit_workflow(site.name, "backup", "verify") \
            if of == "a-workflow" else [site.submit()]
        site.waiting()
        if paused:
            site.client.pause()
            site.standin.wait_call("assignprocessmsg", 503, 2)
            assert site.client.process(process)["state"] == RUNNING
        site.client.cancel(process)
        site.nobody_waits()
        becomes_true(lambda: not descendants(executor.pid))
        assert site.files() == [] and site.client.process(process)["state"] == CANCELLED
        assert "level=error" not in executor.log
        release()
        site.client.pause(resume=True)
        site.succeeds(site.submit())


# ---- Processes that the list does not have, and answers that are too long ------------------------

def running_elsewhere(site: Site, count: int, **spec: Any) -> None:
    """Have another executor of the type run so many processes."""
    site.admit(OTHER_KEY, "elsewhere")
    for _ in range(count):
        process = site.submit(**spec)
        taken = site.client.call("assignprocessmsg", OTHER_KEY, timeout=9)
        assert taken["processid"] == process


@standin(*GENERATIONS)
@pytest.mark.parametrize("hidden", ["behind-120", "by-13-MB"])
def test_after_a_kill_9_a_process_that_the_list_hides_is_found_by_its_id(
        site: Site, hidden: str) -> None:
    if hidden == "by-13-MB":
        running_elsewhere(site, 1, args=["x" * 13_000_000])
    else:
        running_elsewhere(site, 120)
    process = site.submit()
    with site.locked() as release, site.serve() as executor:
        site.waiting()
        executor.kill()
        release()
    assert site.client.process(process)["state"] == RUNNING
    with site.serve(BACKUP_TIME_SCALE=BRISK):
        site.succeeds(process)
        assert site.called("addexecutormsg") == 2  # ours once
        becomes_true(lambda: site.files() == [])


@standin(*GENERATIONS)
@pytest.mark.parametrize("lost", [False, True], ids=["arrives", "its-answer-gets-lost"])
def test_a_process_beyond_the_limit_is_closed_with_that_reason(site: Site, lost: bool) -> None:
    site.standin.longest = 0.5  # it looks when a poll has ended
    with Proxy(site.where.port) as proxy, site.serve(
            proxy.port, BACKUP_TIME_SCALE="0.05") as executor:
        site.polling()
        process = site.submit(args=["x" * 13_000_000])
        if lost:
            proxy.lose(b"assignprocessmsg")
        (error,) = site.client.wait(process, FAILED)["errors"]
        assert re.search("more than 12582912 bytes, the limit", error) and len(error) < 200
        executor.wait_for(f"level=error .*{error}")
        site.succeeds(site.submit())


# ---- Functions and their arguments ---------------------------------------------------------------

@standin(*GENERATIONS)
def test_verify_after_a_backup_in_the_helps_workflow_verifies_that_one(site: Site) -> None:
    (text,) = re.findall(r"(?sm)^  (\[\{.*?\}\])$", backup_executor.HELP["verify"])
    nodes = json.loads(text.replace('"executortype": "backup"', f'"executortype": "{site.name}"'))
    with site.locked() as release, site.serve():
        graph = site.client.call("submitworkflowspecmsg", spec={
            "functionspecs": nodes, **site.client.colony})
        made, verify = graph["processids"]
        site.waiting()
        other = site.submit()  # goes before the verify, and is newer
        release()
        name = site.succeeds(made)["filename"]
        assert site.succeeds(verify)["object"] == f"{site.name}/{name}"
        assert site.succeeds(other)["filename"] > name


@standin()
def test_the_first_node_of_a_cron_takes_nothing_from_the_run_before(site: Site) -> None:
    cron = add_cron(site, {"funcname": "verify"},
                    {"funcname": "backup", "conditions": {"dependencies": ["verify"]}})
    site.given_backup()
    with site.serve():
        _, first = run_cron(site, cron)
        site.succeeds(first)
        newest = site.succeeds(site.submit())["filename"]
        verify, last = run_cron(site, cron)
        assert site.succeeds(verify)["object"] == f"{site.name}/{newest}"
        assert site.client.process(verify)["in"] and site.succeeds(last)


@standin()
@pytest.mark.parametrize(("name", "folder", "bucket"), [
    ("backup_5.bak", "their", "backup"), ("backup_5.bak", "", "another"), ("--help", "", "backup"),
    ("../x.bak", "", "backup")], ids=["elsewhere", "another-bucket", "option", "up"])
def test_a_verify_of_a_workflow_whose_backup_is_none_of_ours_says_so(
        site: Site, name: str, folder: str, bucket: str) -> None:
    site.given_backup()
    site.admit(OTHER_KEY, "elsewhere")
    _, verify = site.client.submit_workflow(site.name, "backup", "verify")
    taken = site.client.call("assignprocessmsg", OTHER_KEY, timeout=9)
    path = f"/{folder or site.prefix}/{name}"
    theirs = {"filename": name, "bucket": bucket, "filepath_s3": path}
    site.client.call("closesuccessfulmsg", OTHER_KEY, processid=taken["processid"],
                     out=[json.dumps(theirs)])
    with site.serve():
        (error,) = site.client.wait(verify, FAILED)["errors"]
        assert f"{bucket}{path}" in error and "not of this bucket and prefix" in error


@standin()
def test_a_node_after_something_else_than_a_backup_verifies_the_newest(site: Site) -> None:
    name = site.given_backup()
    site.admit(OTHER_KEY, "elsewhere")
    processes = []
    for out in (["from one"], ["[5]"], [5, None, {"filename": "backup_5.bak"}], ["{}"],
                ["[" * 100_000]):
        _, verify = site.client.submit_workflow(site.name, "else", "verify")
        taken = site.client.call("assignprocessmsg", OTHER_KEY, timeout=9)
        site.client.call("closesuccessfulmsg", OTHER_KEY, processid=taken["processid"], out=out)
        processes.append(verify)
        with site.serve():
            assert site.succeeds(verify)["object"] == f"{site.name}/{name}"


@standin()
def test_functions_take_their_argument_by_name_too_and_no_other(site: Site) -> None:
    with site.serve():
        names = [site.succeeds(site.submit())["filename"] for _ in range(2)]
        by_name = site.submit("verify", kwargs={"name": names[0]})
        assert site.succeeds(by_name)["object"] == f"{site.name}/{names[0]}"
        for maxage in (1, 1.5, "26"):
            assert site.succeeds(site.submit("check", kwargs={"maxage": maxage}))
        site.succeeds(site.submit("check", args=[26]))
        for funcname, given in (
                ("backup", {"kwargs": {"name": "x"}}), ("backup", {"kwargs": {"": ""}}),
                ("verify", {"kwargs": {"maxage": 5}}), ("check", {"kwargs": {"name": 5}}),
                ("check", {"args": [1], "kwargs": {"maxage": 1}}), ("check", {"args": ["-1"]}),
                ("check", {"args": ["nan"]}), ("check", {"args": [True]}),
                ("verify", {"args": [names[0]], "kwargs": {"name": names[0]}})):
            (error,) = site.client.wait(site.submit(funcname, **given), FAILED)["errors"]
            assert "with such arguments" in error and "maxage" in error


@standin(*GENERATIONS)
def test_check_in_colonies_has_a_line_of_each_peer_and_fails_when_one_fails(site: Site) -> None:
    with site.serve() as executor:
        site.succeeds(site.submit())
        lines: Any = site.succeeds(site.submit("check"))
        assert {line["mark"] for line in lines} <= {"ok", "note", "warn"}
        said = {line["about"] for line in lines}
        assert {"settings", "colonies", "database", "bucket", "newest backup"} <= said
        assert any(f"the executor is {site.name}" in line["text"] for line in lines)
        late = site.submit("check", args=["0.000001"])
        failed = site.client.wait(late, FAILED)
        (key,), (error,) = site.stored_keys(), failed["errors"]
        assert re.fullmatch(
            f"`check` finds: newest backup: {key} is .* hours old; --max-age is 1e-06", error)
        if site.where.generation == 2026:
            marks = [line["mark"] for line in json.loads(failed["out"][0])]
            assert marks.count("FAIL") == 1 and len(marks) == len(lines)
        assert executor.log.count("Backing up database") == 1


@standin()
def test_a_cron_for_check_turns_a_backup_that_is_too_old_into_a_failed_process(site: Site) -> None:
    with site.serve(CHECK_CRON=DAILY, CHECK_MAX_AGE="0.000001") as executor:
        executor.wait_for("Added the cron.*checkcron")
        (process,) = run_cron(site)
        (error,) = site.client.wait(process, FAILED)["errors"]
        assert "newest backup: no proven backup" in error
        site.succeeds(site.submit())
        (process,) = run_cron(site)
        (error,) = site.client.wait(process, FAILED)["errors"]
        assert "hours old; --max-age is 1e-06" in error


# ---- What is shown -------------------------------------------------------------------------------

@standin()
def test_the_output_of_a_process_that_runs_is_its_phase_and_bytes_and_stays_when_it_fails(
        site: Site) -> None:
    def shown(process: str) -> dict[str, Any]:
        (text,) = site.client.process(process)["out"] or ["{}"]
        return json.loads(text)

    with site.locked(), site.serve(BACKUP_TIME_SCALE=BRISK) as executor:
        process = site.submit()
        site.waiting()
        becomes_true(lambda: "bytes" in shown(process).get("Size", ""))
        assert shown(process)["phase"] == "Backup in progress"
        site.client.cancel(process)
        site.nobody_waits()
        assert shown(process)["phase"] == "Backup in progress"
        executor.wait_for("Stopping what was cancelled")
    with Proxy(site.s3.port) as proxy:
        proxy.reply(b"PUT .*partNumber=", http_reply("403 Forbidden", b""), 1000)
        with site.serve(AWS_S3_ENDPOINT=f"127.0.0.1:{proxy.port}"):
            process = site.submit()
            assert site.client.wait(process, FAILED)["errors"]
            assert shown(process)["phase"] == "Uploading backup file to S3 ..."


@standin()
def test_a_verify_that_fails_leaves_its_report_as_its_output(site: Site) -> None:
    name = site.given_backup()
    site.put(name, b"damaged", **site.head(name)["Metadata"])
    with site.serve():
        process = site.submit("verify")
        assert "SHA-256" in site.client.wait(process, FAILED)["errors"][0]
        (report,) = site.client.process(process)["out"]
        assert json.loads(report)["verdict"].startswith("failed")


def test_an_executor_says_what_it_is_and_what_it_backs_up(
        timescale: Timescale, s3: SeaweedFS, tmp_path: Any) -> None:
    with timescale.dropping(), Standin() as server:
        server.longest = 0.5  # it looks around when a poll has ended
        site = Site(server.colony(), timescale, s3, tmp_path)
        site.sql("CREATE EXTENSION timescaledb VERSION '2.1.0'")
        version = site.sql("SHOW server_version").split()[0]

        def told() -> dict[str, str]:
            with server.lock:
                skills = server.executors.get(site.name, {}).get("capabilities", {})
                return {each["name"]: each["version"] for each in skills.get("software", [])}

        ours = {"Colonies Backup Executor": __version__}
        found = {**ours, "PostgreSQL": version, "pg_dump": version, "TimescaleDB": "2.1.0"}
        with site.serve(DB_PORT="1") as executor:  # nobody is there
            executor.wait_for("`check` has ended")
            becomes_true(lambda: told() == ours)
            with server.lock:
                (hardware,) = server.executors[site.name]["capabilities"]["hardware"]
            assert str(site.folder) in hardware["model"]
            assert re.fullmatch("[1-9][0-9]*Mi", hardware["storage"])
        with site.serve():  # what it looks at tells, before there is a backup
            becomes_true(lambda: told() == found)
        with site.serve() as executor:
            site.succeeds(site.submit())  # which comes before it has looked
            becomes_true(lambda: told() == found)


@standin({"generation": 2023})
def test_a_server_of_2023_is_asked_once_for_what_it_does_not_know(site: Site) -> None:
    with site.serve(BACKUP_CRON=DAILY, BACKUP_TIME_SCALE=BRISK) as executor:
        for _ in range(3):
            site.succeeds(site.submit())
        with site.standin.lock:
            refused = [kind for kind, _, status in site.standin.calls if status == 403]
        for kind in ("addlogmsg", "setoutputmsg", "updateexecutormsg"):
            assert refused.count(kind) == 1
        assert not re.search("level=(warning|error)", executor.log)


@standin(*GENERATIONS)
def test_a_journal_for_another_colonys_process_hides_nothing_of_ours(site: Site) -> None:
    foreign = site.client.submit("backup", "another")
    site.standin.foreign.add(foreign)
    owner = f"colonies-backup-executor/1 127.0.0.1:{site.postgres.port}/{site.database}"
    (site.folder / "backup_1.bak.json").write_text(json.dumps({"by": owner, "process": foreign}))
    with site.serve(BACKUP_TIME_SCALE=BRISK) as executor:
        site.standin.wait_call("getprocessesmsg", count=2)
        site.succeeds(site.submit())
        assert not re.search("level=(warning|error)", executor.log)


@standin()
def test_a_restarted_executor_describes_itself_again_when_it_was_expelled(site: Site) -> None:
    site.standin.longest = 0.5
    name = secrets.token_hex(4)
    with site.serve(COLONIES_EXECUTOR_NAME=name):
        site.standin.wait_call("updateexecutormsg")
        site.client.call("removeexecutormsg", site.where.owner_key, executorname=name)
        site.standin.wait_call("updateexecutormsg", count=2)
