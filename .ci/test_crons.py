"""Tests of crons: each executor has its own, and nobody else's is touched."""
from __future__ import annotations

import json
import re
from typing import Any

import pytest

from colonies import RUNNING, WAITING, Refused, identity
from servers import Executor, run
from surroundings import EXECUTOR_KEY, GENERATIONS, OTHER_KEY, Site, becomes_true, standin

# ---- An executor's own crons -------------------------------------------------------------------

@standin(*GENERATIONS)
def test_the_cron_is_added_left_alone_when_equal_and_replaced_when_changed(site: Site) -> None:
    def crons_after(polls: int, expression: str) -> list[tuple[str, str, str]]:
        with site.serve(BACKUP_CRON=expression, BACKUP_CRON_NAME="nightly"):
            site.polling(polls)
            if polls == 1:  # it makes processes that this executor runs
                site.client.call("runcronmsg", cronid=site.client.crons()[0]["cronid"])
                (made,) = site.client.call("getprocessesmsg", state=WAITING, count=9) or \
                    site.client.call("getprocessesmsg", state=RUNNING, count=9)
                site.succeeds(made["processid"])
                polls = 2
            return [(cron["name"], cron["cronexpression"], cron["cronid"])
                    for cron in site.client.crons()]

    (added,) = crons_after(1, "0 0 1 * * *")
    assert added[:2] == ("nightly", "0 0 1 * * *")
    assert crons_after(3, "0 0 1 * * *") == [added]
    (changed,) = crons_after(4, "0 30 2 * * *")
    assert changed[:2] == ("nightly", "0 30 2 * * *")
    with site.serve(BACKUP_CRON="at 3", BACKUP_CRON_NAME="nightly") as executor:
        executor.wait_for("level=error .*addcronmsg")
        site.succeeds(site.submit())
    assert [cron["cronid"] for cron in site.client.crons()] == [changed[2]]
    with site.standin.lock:
        changes = [kind for kind, _, status in site.standin.calls
                   if "cronmsg" in kind and status == 200 and not kind.startswith("run")]
    remove = "removecronmsg" if site.where.generation == 2026 else "deletecronmsg"
    assert changes == ["addcronmsg", remove, "addcronmsg"]  # two of one name there can't be


@standin(*GENERATIONS)
def test_each_function_has_its_own_cron_also_under_one_name(site: Site) -> None:
    def crons_after(polls: int, **settings: Any) -> dict[str, str]:
        with site.serve(BACKUP_CRON_NAME="nightly", VERIFY_CRON_NAME="nightly", **settings,
                        COLONIES_EXECUTOR_TYPE="backup"):
            site.polling(polls)
            return {json.loads(cron["workflowspec"])["functionspecs"][0]["funcname"]:
                    cron["cronexpression"] for cron in site.client.crons()}

    both = {"backup": "0 0 1 * * *", "verify": "0 0 4 * * 0"}
    assert crons_after(1, VERIFY_CRON=both["verify"]) == {"verify": both["verify"]}
    assert crons_after(2, BACKUP_CRON=both["backup"], VERIFY_CRON=both["verify"]) == both
    changed = both | {"verify": "0 0 5 * * 0"}
    assert crons_after(3, VERIFY_CRON=changed["verify"]) == changed
    assert site.called("addcronmsg") == 3


@standin()
def test_a_cron_that_cannot_be_removed_keeps_no_new_one_away(
        site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise Refused(403, "Access denied")

    with site.serve(BACKUP_CRON=DAILY):
        site.polling()
    monkeypatch.setattr(site.standin, "on_removecron", refuse)
    with site.serve(BACKUP_CRON="0 0 2 * * *") as executor:
        executor.wait_for("Added the cron")
        assert crons_for(site) == {"backupcron": ([site.name], DAILY),
                                   f"backupcron-{site.name}": ([site.name], "0 0 2 * * *")}
        site.succeeds(site.submit())


@standin()
def test_a_cron_that_is_refused_when_the_former_one_is_gone_is_made_within_a_minute(
        site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.standin.longest = 0.5  # it looks again when a poll has ended
    real = site.standin.on_addcron

    def refuse_once(caller: str, fields: dict[str, Any]) -> Any:
        if not site.standin.crons:
            monkeypatch.undo()
            raise Refused(500, "pq: connection reset by peer")
        return real(caller, fields)

    with site.serve(BACKUP_CRON=DAILY):
        site.polling()
    monkeypatch.setattr(site.standin, "on_addcron", refuse_once)
    with site.serve(BACKUP_CRON="0 0 2 * * *", BACKUP_TIME_SCALE="0.05") as executor:
        executor.wait_for("level=error .*connection reset by peer")
        becomes_true(lambda: crons_for(site) == {"backupcron": ([site.name], "0 0 2 * * *")})


@standin()
def test_a_cron_that_is_gone_when_its_executor_joins_again_is_made_again(site: Site) -> None:
    site.standin.longest = 0.5  # who is not known any more is told so at its next poll
    with site.serve(BACKUP_CRON=DAILY) as executor:
        executor.wait_for("Added the cron")
        site.client.call("removecronmsg", cronid=site.client.crons()[0]["cronid"])
        site.expel()
        executor.wait_for("Added the cron", count=2)
    assert crons_for(site) == {"backupcron": ([site.name], DAILY)}


@standin()
def test_a_cron_that_is_gone_when_colonies_is_back_is_made_again(site: Site) -> None:
    with site.serve(BACKUP_CRON=DAILY) as executor:
        executor.wait_for("Added the cron")
        site.polling()
        site.standin.stop()
        site.standin.crons.clear()  # its database is an older one, from a backup
        site.standin.start()
        executor.wait_for("Added the cron", count=2)  # not with the look of each hour
    assert crons_for(site) == {"backupcron": ([site.name], DAILY)}


# ---- Crons of several executors, and of others -------------------------------------------------

def crons_for(site: Site) -> dict[str, tuple[list[str], str]]:
    """Whom the first node of each cron names, and when it is due."""
    return {cron["name"]: (json.loads(cron["workflowspec"])["functionspecs"][0]["conditions"].get(
        "executornames") or [], cron["cronexpression"]) for cron in site.client.crons()}


def made_by_hand(site: Site, name: str = "backupcron", **more: Any) -> str:
    """Make a cron as of backup_workflow.json, as older versions did, too; its id."""
    node = {"nodename": "backup", "funcname": "backup",
            "conditions": {"executortype": site.name, **site.client.colony}, **more}
    return site.client.call("addcronmsg", cron={
        "name": name, "cronexpression": DAILY, "interval": -1, "random": False,
        "workflowspec": json.dumps({"functionspecs": [node], **site.client.colony}),
        **site.client.colony})["cronid"]


DAILY = "0 0 1 * * *"


@standin(*GENERATIONS)
def test_two_installations_with_defaults_each_back_up_at_each_run_of_their_crons(
        site: Site) -> None:
    crons: dict[str, Any] = {"BACKUP_CRON": DAILY, "VERIFY_CRON": "0 0 4 * * *"}
    other = f"{site.name}-other"
    site.postgres.run("createdb", other)
    site.postgres.sql("CREATE TABLE t AS SELECT 1 AS one", other)
    (site.folder / "other").mkdir()
    second = site.environ(
        **crons, COLONIES_EXECUTOR_NAME="second", DB_DATABASE=other, AWS_S3_PREFIX=other,
        BACKUP_PATH=str(site.folder / "other"))
    wanted = {"backupcron": ([site.name], DAILY), "verifycron": ([site.name], "0 0 4 * * *"),
              "backupcron-second": (["second"], DAILY),
              "verifycron-second": (["second"], "0 0 4 * * *")}
    with site.serve(**crons) as one:
        one.wait_for("Added the cron", count=2)
        with Executor(second) as two:
            two.wait_for("Added the cron", count=2)
            assert crons_for(site) == wanted
            for count in (1, 2, 3):
                for cron in site.client.crons():
                    if cron["name"].startswith("backup"):
                        site.client.call("runcronmsg", cronid=cron["cronid"])
                for executor, database in ((one, site.name), (two, other)):
                    executor.wait_for("Closed process", count=count)
                    for line in ("Beginning process", "This backup is of"):
                        executor.wait_for(f'{line}.*Database="?[^ ]*/{database}"?$', count=count)
            assert not re.search("level=(warning|error)", one.log + two.log)
            with site.serve(**crons) as again:  # beside itself, as after a crash
                again.wait_for("Waiting for processes")
                site.succeeds(site.submit())
            assert crons_for(site) == wanted


@standin(*GENERATIONS)
def test_a_cron_that_names_nobody_is_taken_over_where_nobody_else_is(site: Site) -> None:
    site.standin.longest = 0.5  # it looks again when a poll has ended
    site.admit(name="elsewhere")
    cron = made_by_hand(site)
    warning = f"backupcron.*elsewhere.*--cronid {cron}"
    with site.serve(BACKUP_CRON=DAILY, BACKUP_TIME_SCALE="0.0001") as executor:
        executor.wait_for(f"level=warning .*{warning}")
        site.standin.wait_call("getcronsmsg", count=4)  # it looks each hour, and says so once
        assert len(re.findall(f'msg="Colonies: the cron .*{cron}', executor.log)) == 1
        checked = run(site.environ(), "check")
        assert re.search(f"(?m)^warn  colonies: .*{warning}", checked.stdout)
        assert crons_for(site) == {"backupcron": ([], DAILY)}
    later = {f"backupcron-{site.name}": ([site.name], "0 0 2 * * *")}
    with site.serve(BACKUP_CRON="0 0 2 * * *") as executor:  # that is when it shall be
        executor.wait_for("Added the cron")
        assert crons_for(site) == {"backupcron": ([], DAILY), **later}
    leave = "removeexecutormsg" if site.where.generation == 2026 else "deleteexecutormsg"
    site.client.call(leave, site.where.owner_key, executorname="elsewhere",
                     executorid=identity(EXECUTOR_KEY))
    with site.serve(BACKUP_CRON="0 0 2 * * *", BACKUP_TIME_SCALE="0.001") as executor:
        becomes_true(lambda: crons_for(site) == later)
        assert "level=warning" not in executor.log
    theirs = {"mine": ([], DAILY), "backupcron-a-b": (["a", "b"], DAILY)}
    for scale, when in (("0.001", DAILY), ("1", "0 0 3 * * *")):  # an equal one after a while
        for each in site.client.crons():
            site.client.call(leave.replace("executor", "cron"), cronid=each["cronid"])
        for name, (names, _) in {"backupcron": ([], DAILY), **theirs}.items():
            made_by_hand(site, name, conditions={
                "executortype": site.name, "executornames": names, **site.client.colony})
        with site.serve(BACKUP_CRON=when, BACKUP_TIME_SCALE=scale):
            becomes_true(lambda: crons_for(site).get("backupcron", ([],))[0] == [site.name])
        assert crons_for(site) == {"backupcron": ([site.name], when), **theirs}


@standin(*GENERATIONS)
def test_a_cron_that_somebody_made_for_more_than_that_is_never_touched(site: Site) -> None:
    theirs = [made_by_hand(site, maxexectime=3600),
              made_by_hand(site, "verifycron", funcname="verify", args=["latest"])]
    with site.serve(BACKUP_CRON=DAILY, VERIFY_CRON=DAILY) as executor:
        executor.wait_for("Added the cron", count=2)
        assert {f"{name}cron-{site.name}" for name in ("backup", "verify")} <= {*crons_for(site)}
    assert set(theirs) < {cron["cronid"] for cron in site.client.crons()}
    made_by_hand(site, "a", label="mine")
    made_by_hand(site, f"a-{site.name}", label="mine")
    with site.serve(BACKUP_CRON=DAILY, BACKUP_CRON_NAME="a") as executor:
        executor.wait_for("level=error .*taken by others: set BACKUP_CRON_NAME")
        site.succeeds(site.submit())
    assert len(site.client.crons()) == 6


@standin(*GENERATIONS)
def test_an_executor_with_another_key_or_name_has_its_cron_and_leaves_no_former_ones(
        site: Site) -> None:
    site.standin.longest = 0.5  # it looks again when a poll has ended
    def served(name: str, key: str, **crons: Any) -> None:
        with site.serve(BACKUP_CRON=DAILY, COLONIES_EXECUTOR_NAME=name,
                        COLONIES_EXECUTOR_PRVKEY=key, BACKUP_TIME_SCALE="0.001") as executor:
            executor.wait_for("Added the cron")  # one with the key's id, for 2023
            becomes_true(lambda: crons_for(site) == crons)
            (cron,) = site.client.crons()
            site.client.call("runcronmsg", cronid=cron["cronid"])
            executor.wait_for("Closed process")
            assert executor.stop() == 0

    served("one", EXECUTOR_KEY, backupcron=(["one"], DAILY))
    served("one", OTHER_KEY, backupcron=(["one"], DAILY))
    served("two", OTHER_KEY, backupcron=(["two"], DAILY))
    served("three", EXECUTOR_KEY, **{"backupcron-three": (["three"], DAILY)})
    site.admit(OTHER_KEY, "elsewhere")
    with site.serve(BACKUP_CRON=DAILY) as executor:
        executor.wait_for("level=warning .*backupcron-three.*'three'.*not in the colony")
        executor.wait_for("Added the cron")
    assert len(site.client.crons()) == 2


@standin(*GENERATIONS)
def test_executors_of_two_types_have_a_cron_each_under_one_name(site: Site) -> None:
    def crons() -> dict[str, str]:
        return {json.loads(cron["workflowspec"])["functionspecs"][0]["conditions"]["executortype"]:
                cron["cronexpression"] for cron in site.client.crons()}

    first, second = "backup", f"{site.name}-b"  # a type that is also a function's name
    for polls, (kind, hour) in enumerate(((second, 1), (first, 1), (second, 2), (first, 1)), 1):
        with site.serve(COLONIES_EXECUTOR_TYPE=kind, COLONIES_EXECUTOR_NAME=kind,
                        BACKUP_CRON=f"0 0 {hour} * * *"):
            site.polling(polls)
    assert len(site.client.crons()) == 2
    assert crons() == {first: "0 0 1 * * *", second: "0 0 2 * * *"}
