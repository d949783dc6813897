"""Tests of the executor in its colony: joining, long backups, a server that goes away, the end."""
from __future__ import annotations

import functools
import os
import secrets
import select
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from backup_executor import FUNCTIONS
from colonies import (
    APPROVED,
    CANCELLED,
    FAILED,
    RUNNING,
    SUCCESS,
    UNREGISTERED,
    USER_KEY,
    WAITING,
    Standin,
    identity,
)
from proxies import Proxy, drip, http_reply, silence
from servers import (
    HELD_UP,
    PATIENCE,
    Postgres,
    SeaweedFS,
    certificate,
    descendants,
    handles_below,
    kill_child,
    run,
)
from surroundings import BRISK, EXECUTOR_KEY, GENERATIONS, Site, becomes_true, standin
from vectors import VECTORS

# ---- Registration and the cron -----------------------------------------------------------------

@standin({"reregister": False}, {"generation": 2023})
def test_a_name_that_belongs_to_another_key_is_a_clear_failure(site: Site) -> None:
    site.admit()
    ended = run(site.environ())
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.count("level=error") == 1
    assert site.name in ended.stderr and "another key" in ended.stderr
    assert site.standin.executors[site.name]["executorid"] == identity(EXECUTOR_KEY)
    assert site.standin.executors[site.name]["state"] == APPROVED


@standin(*GENERATIONS)
def test_an_owners_key_of_another_colony_is_a_clear_failure(site: Site) -> None:
    ended = run(site.environ(COLONIES_COLONY_PRVKEY=USER_KEY))
    assert (ended.returncode, ended.stdout, ended.stderr.count("level=error")) == (1, "", 1)
    assert "COLONIES_COLONY_PRVKEY" in ended.stderr and USER_KEY not in ended.stderr


@standin(*GENERATIONS)
def test_a_users_key_in_place_of_the_executors_is_named(site: Site) -> None:
    """As COLONIES_PRVKEY the colony's own command line takes it."""
    with site.serve(COLONIES_PRVKEY=USER_KEY) as executor:
        executor.wait_for(r"level=error .*executor not found.* COLONIES_PRVKEY\) a user's key\?")
        assert USER_KEY not in executor.log


@standin(*GENERATIONS)
def test_a_registration_whose_answers_get_lost_is_completed(site: Site) -> None:
    with Proxy(site.where.port) as proxy:
        for kind in (b"addexecutormsg", b"approveexecutormsg", b"addfunctionmsg"):
            proxy.lose(kind)
        with site.serve(proxy.port, BACKUP_TIME_SCALE=BRISK):
            site.polling()
            assert not proxy.rules and len(site.standin.functions) == len(FUNCTIONS)


@standin()
def test_it_waits_for_a_server_that_is_not_there_when_it_starts(site: Site) -> None:
    site.standin.stop()
    with site.serve(BACKUP_TIME_SCALE="0.2", LOG_LEVEL="debug") as executor:  # a minute is 12 s
        executor.wait_for("level=debug .*Colonies answered", count=3)
        site.standin.start()
        site.polling()
        assert executor.log.count("level=warning") == 1  # not one for each try
        executor.wait_for("level=info .*Colonies is back")


def test_it_speaks_https_to_a_server_whose_certificate_it_trusts(
        postgres: Postgres, s3: SeaweedFS, tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    with postgres.dropping(), Standin(https=pair) as server:
        site = Site(server.colony(), postgres, s3, tmp_path)
        with site.serve(COLONIES_TLS="true") as executor:
            executor.wait_for("level=warning .*certificate.*COLONIES_CA_FILE")
            assert not server.calls
        with site.serve(COLONIES_TLS="true", COLONIES_CA_FILE=pair[0]):
            site.polling()
        with site.serve(COLONIES_TLS="true", COLONIES_INSECURE_SKIP_VERIFY="true") as executor:
            site.polling(2)
            executor.wait_for("level=warning .*COLONIES_INSECURE_SKIP_VERIFY")


@standin(*GENERATIONS)
def test_with_only_its_own_key_it_registers_nothing_and_says_so_until_somebody_does(
        site: Site) -> None:
    process = site.submit()
    with site.serve(COLONIES_COLONY_PRVKEY="", COLONIES_EXECUTOR_PRVKEY=EXECUTOR_KEY,
                    BACKUP_TIME_SCALE=BRISK) as executor:
        executor.wait_for(f"level=error .*{identity(EXECUTOR_KEY)}", count=2)
        assert not site.standin.executors and not site.called("addexecutormsg")
        site.admit()
        site.succeeds(process)
        assert executor.stop() == 0
        assert site.standin.executors[site.name]["state"] == APPROVED


# ---- Long backups ------------------------------------------------------------------------------

@standin({"stale": 5})
def test_a_backup_longer_than_the_servers_patience_is_made_once(site: Site) -> None:
    process = site.submit()
    with site.locked() as release, site.serve(BACKUP_TIME_SCALE=BRISK):
        site.waiting()
        os.utime(site.alive, (0, 0))
        # It looks what became of its process each 0.96 s: for longer than the patience.
        site.standin.wait_call("getprocessmsg", count=site.called("getprocessmsg") + 8)
        assert site.alive.stat().st_mtime > 0
        release()
        site.succeeds(process)
        assert site.called("addexecutormsg") == 1  # it was never dropped
        assert site.called("closesuccessfulmsg") == 1
    assert len(site.stored_keys()) == 1


@standin(None)
@pytest.mark.parametrize("how", ["cancelled", "failed by the server", "given to another executor"])
def test_a_process_that_is_taken_for_good_stops_its_dump_and_the_next_one_is_run(
        site: Site, how: str) -> None:
    with site.locked() as release, site.serve(BACKUP_TIME_SCALE=BRISK if how[0] != "g" else "0.05"):
        site.polling()
        process = site.submit(maxexectime=-1 if how == "cancelled" else site.limit,
                              maxretries=0 if how == "failed by the server" else -1)
        site.waiting()
        site.expire(process)
        if how == "cancelled":
            site.client.cancel(process)
        elif how == "given to another executor":
            other = secrets.token_hex(32)
            site.admit(other, "other")
            taken = site.client.call("assignprocessmsg", other, timeout=20)
            assert taken["processid"] == process
        site.nobody_waits()
        becomes_true(lambda: site.files() == [])
        if how == "given to another executor":  # which has run it until now
            site.client.call("closesuccessfulmsg", other, processid=process, out=["elsewhere"])
        release()
        site.succeeds(site.submit())
        state = site.client.process(process)["state"]
        assert state == {"c": CANCELLED, "f": FAILED, "g": SUCCESS}[how[0]]
    assert len(site.stored_keys()) == 1


@standin(*GENERATIONS)
def test_a_process_that_outlasts_its_time_limit_is_taken_back_and_dumped_once(site: Site) -> None:
    process = site.submit(maxexectime=1)
    with site.locked() as release, site.serve(BACKUP_TIME_SCALE=BRISK) as executor:
        site.waiting()
        becomes_true(lambda: site.client.process(process)["retries"] >= 2)
        release()
        site.succeeds(process)
        assert executor.log.count("Backing up database") == 1
    assert len(site.stored_keys()) == 1


# ---- A server that goes away -------------------------------------------------------------------

@standin()
@pytest.mark.parametrize("when", ["while it runs", "after it has ended"])
def test_a_server_away_for_longer_than_its_patience_costs_no_second_dump(
        site: Site, when: str) -> None:
    process = site.submit()
    with Proxy(site.where.port) as proxy, site.locked() as release, \
            site.serve(proxy.port, BACKUP_TIME_SCALE=BRISK) as executor:
        site.waiting()
        proxy.down()
        lines = "Backup in progress"
        executor.wait_for(lines, count=executor.log.count(lines) + 1)
        site.standin.stale, patience = 0, site.standin.stale
        site.client.wait(process, WAITING)  # the server has dropped the executor
        site.standin.stale = patience
        os.utime(site.alive, (0, 0))
        becomes_true(lambda: site.alive.stat().st_mtime > 0)
        if when == "while it runs":
            proxy.up()
            site.client.wait(process, RUNNING)
            release()
        else:
            release()
            executor.wait_for("Backup procedure completed")
            proxy.up()
        site.succeeds(process)
        assert site.called("addexecutormsg") == 2
        assert executor.log.count("Backing up database") == 1
        assert "Traceback" not in executor.log
        if when == "while it runs":  # what nobody took was told later
            assert site.client.logs(process).count(lines) == executor.log.count(lines)
    assert len(site.stored_keys()) == 1


@standin(*GENERATIONS)
def test_a_close_that_fails_while_the_server_is_away_is_made_when_it_is_back(site: Site) -> None:
    process = site.submit()
    with site.locked() as release, site.serve(BACKUP_TIME_SCALE=BRISK) as executor:
        site.waiting()
        site.standin.stop()
        release()
        executor.wait_for("Backup procedure completed")
        executor.wait_for("level=warning .*Colonies")
        site.standin.start()
        site.succeeds(process)
        site.succeeds(site.submit())
    assert len(site.stored_keys()) == 2


@standin()
def test_an_idle_executor_that_was_dropped_registers_again_and_runs_what_waits(site: Site) -> None:
    with Proxy(site.where.port) as proxy, site.serve(proxy.port, BACKUP_TIME_SCALE=BRISK):
        site.polling()
        proxy.down()
        site.expel()
        process = site.submit()
        proxy.up()
        site.succeeds(process)
        assert site.called("addexecutormsg") == 2
        assert len(site.standin.functions) == len(FUNCTIONS)


@standin()
def test_without_the_owners_key_a_dropped_executor_keeps_its_backup_until_somebody_helps(
        site: Site) -> None:
    site.admit()
    process = site.submit()
    with site.locked() as release, site.serve(
            COLONIES_COLONY_PRVKEY="", COLONIES_EXECUTOR_PRVKEY=EXECUTOR_KEY,
            BACKUP_TIME_SCALE=BRISK) as executor:
        site.waiting()
        site.expel()
        executor.wait_for(f"level=error .*{identity(EXECUTOR_KEY)}", count=2)
        release()
        executor.wait_for("Backup procedure completed")
        site.admit()
        site.succeeds(process)
        assert executor.log.count("Backing up database") == 1
    assert len(site.stored_keys()) == 1


@standin()
def test_a_key_that_changed_is_taken_from_its_file_without_a_restart(
        site: Site, tmp_path: Path) -> None:
    site.standin.longest = 0.5  # it is told so at its next poll
    other, file = VECTORS[3][0], tmp_path / "key"
    file.write_text(EXECUTOR_KEY + "\n")
    site.admit()
    with site.serve(COLONIES_COLONY_PRVKEY="", COLONIES_EXECUTOR_PRVKEY_FILE=str(file)) as executor:
        site.succeeds(site.submit())
        site.expel()
        site.admit(other)
        file.write_text(other)
        executor.wait_for(f"Waiting for processes .*ExecutorId={identity(other)}")
        site.succeeds(site.submit())


@standin(*GENERATIONS)
def test_a_process_whose_assignment_got_lost_is_found_and_run(site: Site) -> None:
    with Proxy(site.where.port) as proxy, site.locked() as release, site.serve(proxy.port):
        first = site.submit()
        site.waiting()
        proxy.lose(b"assignprocessmsg")  # signs of life are a minute apart: it is the next poll
        second = site.submit()
        release()
        assert site.succeeds(first)["filename"] != site.succeeds(second)["filename"]
        assert not proxy.rules and site.client.process(second)["retries"] == 0
    assert len(site.stored_keys()) == 2


@standin(*GENERATIONS)
@pytest.mark.parametrize("funcname", ["backup", "unknown"])
def test_a_close_whose_answer_got_lost_holds_and_the_next_process_is_run(
        site: Site, funcname: str) -> None:
    with Proxy(site.where.port) as proxy, site.serve(proxy.port):
        proxy.lose(b'"close(successful|failed)msg"')
        process = site.submit(funcname)
        ended = site.client.wait(process)
        site.succeeds(site.submit())
        assert not proxy.rules
        assert site.client.process(process) | {"endtime": ""} == ended | {"endtime": ""}
        becomes_true(lambda: site.files() == [])  # what was kept for it, too
    assert len(site.stored_keys()) == 1 + (funcname == "backup")


@standin()
def test_replies_of_something_else_than_colonies_are_waited_out(site: Site) -> None:
    page = b"<html><body>nginx</body></html>"
    strange = [
        http_reply("404 Not Found", page),  # not "no work"
        http_reply("403 Forbidden", page),  # not "not a member"
        http_reply("200 OK", page), http_reply("200 OK", b""), http_reply("200 OK", b"\xff\0"),
        http_reply("200 OK", b"null"), http_reply("403 Forbidden", b'{"payload": "", "error": 1}'),
        http_reply("200 OK", b'{"payloadtype": "x", "payload": "not Base64!", "error": false}'),
        http_reply("200 OK", b'{"payloadtype": "x", "payload": "e30", "error": false}'),
        http_reply("200 OK", b'{"payloadtype": "x", "payload": "', 100),  # cut short
        http_reply("200 OK", b"[" * 100_000), http_reply("302 Found", b""),
        http_reply("200 OK", b" " * (40 << 20)), b"SSH-2.0-OpenSSH_9.2\r\n", b""]
    with Proxy(site.where.port) as proxy, site.locked() as release:
        for raw in strange:
            proxy.reply(b"assignprocessmsg", raw)
        with site.serve(proxy.port, BACKUP_TIME_SCALE="0.005") as executor:
            site.polling()
            assert site.standin.calls[0][0] == "assignprocessmsg"  # no other message before it
            process = site.submit()
            site.waiting()
            for raw in strange[:2]:
                for kind in (b"assignprocessmsg", b"getprocessmsg"):
                    proxy.reply(kind, raw)
            becomes_true(lambda: not proxy.rules)
            for raw in strange:
                proxy.reply(b"closesuccessfulmsg", raw)
            release()
            site.succeeds(process)
            assert not proxy.rules
            site.succeeds(site.submit())
            assert site.called("addexecutormsg") == 1 and executor.process.poll() is None
            assert "Traceback" not in executor.log
    assert len(site.stored_keys()) == 2


# ---- The end of an executor --------------------------------------------------------------------

@standin(*GENERATIONS)
def test_sigterm_during_a_dump_stops_it_and_hands_the_process_back(site: Site) -> None:
    process = site.submit()
    with site.locked(), site.serve() as executor:
        site.waiting()
        assert executor.stop() == 0
        site.nobody_waits()
        assert site.client.process(process)["state"] == WAITING
        assert all(each["state"] == UNREGISTERED for each in site.standin.executors.values())
        assert site.files() == []
    assert site.stored_keys() == []


@standin(*GENERATIONS)
def test_sigterm_without_the_owners_key_closes_the_process_as_failed(site: Site) -> None:
    site.admit()
    process = site.submit()
    with site.locked(), site.serve(COLONIES_COLONY_PRVKEY="",
                                 COLONIES_EXECUTOR_PRVKEY=EXECUTOR_KEY) as executor:
        site.waiting()
        assert executor.stop() == 0
        ended = site.client.process(process)
        assert (ended["state"], ended["errors"]) == (FAILED, ["the executor was stopped"])
        assert site.files() == []


@standin(None)
@pytest.mark.parametrize("busy", [True, False], ids=["during a dump", "while idle"])
def test_sigterm_while_colonies_hangs_ends_it_within_10_s(site: Site, busy: bool) -> None:
    with Proxy(site.where.port) as proxy, site.locked(), \
            site.serve(proxy.port, BACKUP_TIME_SCALE=BRISK) as executor:
        site.polling()
        if busy:
            site.submit()
            site.waiting()
        proxy.hang()
        if busy:
            becomes_true(lambda: proxy.connections)  # a sign of life that gets no answer
        assert executor.stop(timeout=50) == 0  # of 60 s for an answer; busy machines take long
        site.nobody_waits()
        assert site.files() == []


@standin()
def test_sigterm_while_an_answer_of_colonies_drips_ends_it_within_10_s(site: Site) -> None:
    with Proxy(site.where.port) as proxy, site.serve(proxy.port) as executor:
        site.polling()
        proxy.reply(b"removeexecutormsg", drip)
        assert executor.stop() == 0
        executor.wait_for("level=warning .*Could not take leave.*in time")


@standin(*GENERATIONS)
def test_a_dump_that_was_complete_at_sigterm_is_kept_for_the_processs_next_run(site: Site) -> None:
    process = site.submit()
    with Proxy(site.s3.port) as proxy:
        endpoint = f"127.0.0.1:{proxy.port}"
        proxy.reply(b"PUT .*partNumber=", http_reply("503 Slow Down", b""), 1000)
        with site.serve(AWS_S3_ENDPOINT=endpoint) as executor:
            proxy.wait_seen(b"PUT .*partNumber=")
            assert executor.stop() == 0
        assert site.client.process(process)["state"] == WAITING
        (name,) = [name for name in site.files() if name.endswith(".bak")]
        proxy.clear()
        with site.serve(AWS_S3_ENDPOINT=endpoint) as executor:
            assert site.succeeds(process)["filename"] == name
            assert "Backing up database" not in executor.log
    assert site.stored_keys() == [f"{site.name}/{name}"]


@standin()
def test_a_finished_dump_outlasts_the_failure_of_its_process_at_sigterm(site: Site) -> None:
    site.admit()
    process = site.submit()
    with Proxy(site.s3.port) as proxy:
        proxy.reply(b"PUT .*partNumber=", http_reply("503 Slow Down", b""), 1000)
        with site.serve(AWS_S3_ENDPOINT=f"127.0.0.1:{proxy.port}", COLONIES_COLONY_PRVKEY="",
                        COLONIES_EXECUTOR_PRVKEY=EXECUTOR_KEY) as executor:
            proxy.wait_seen(b"PUT .*partNumber=")
            assert executor.stop() == 0
    assert site.client.process(process)["errors"] == ["the executor was stopped"]
    [name, journal] = site.files()
    assert run(site.environ(), "backup", "--resume").returncode == 0
    assert site.stored_keys() == [f"{site.name}/{name}"] and site.files() == [journal]


@standin()
def test_a_backup_that_has_ended_at_sigterm_is_closed_with_its_result(site: Site) -> None:
    process = site.submit()
    with Proxy(site.where.port) as proxy, site.locked() as release, \
            site.serve(proxy.port, BACKUP_TIME_SCALE=BRISK) as executor:
        site.waiting()
        proxy.reply(b"assignprocessmsg", functools.partial(silence, 60))
        proxy.wait_seen(b"assignprocessmsg", proxy.seen(b"assignprocessmsg") + 1)
        release()
        executor.wait_for("Backup procedure completed")
        becomes_true(lambda: not any(Path(f"/proc/{pid}/exe").exists()  # a zombie has none
                                     for pid in descendants(executor.pid)))
        assert executor.stop() == 0
    assert site.client.process(process)["state"] == SUCCESS


def crash(site: Site) -> None:
    """Kill an executor during a dump; nothing of it goes on."""
    with site.serve() as executor:
        executor.wait_for("Backing up database")  # then none is left of an earlier run
        site.waiting()
        handles = handles_below(executor.pid)
        assert len(handles) >= 2  # the child and its pg_dump, perhaps a psql
        executor.kill()
        for handle in handles:
            assert select.select([handle], [], [], PATIENCE)[0]
            os.close(handle)


@standin(*GENERATIONS)
def test_after_a_kill_9_nothing_goes_on_and_a_restart_runs_the_process_again(site: Site) -> None:
    process = site.submit()
    with site.locked() as release:
        crash(site)
        assert site.client.process(process)["state"] == RUNNING
        with site.serve() as executor:
            executor.wait_for("Backing up database")
            site.waiting()
            # its server process waits for the lock and has not seen that pg_dump is gone
            becomes_true(lambda: site.postgres.sql(
                f"SELECT count(*) FROM pg_stat_activity WHERE {HELD_UP}"
                f" AND datname = '{site.name}'") == "1")
            release()
            site.succeeds(process)
            becomes_true(lambda: site.files() == [])
    assert len(site.stored_keys()) == 1


@standin()
def test_what_a_crash_left_of_a_dump_is_removed_while_nobody_asks_for_another(site: Site) -> None:
    process = site.submit()
    with site.locked():
        crash(site)
    site.client.cancel(process)
    assert any(name.endswith(".partial") for name in site.files())
    with site.serve():
        becomes_true(lambda: not any(name.endswith(".partial") for name in site.files()))


@standin()
def test_a_process_that_crashed_three_executors_is_closed_as_failed(site: Site) -> None:
    process = site.submit()
    with site.locked():
        for _ in range(3):
            crash(site)
        with site.serve():
            ended = site.client.wait(process, FAILED)
            assert "three" in ended["errors"][0] and "killed" in ended["errors"][0]
    assert site.stored_keys() == []


@standin(None)
def test_a_backup_killed_alone_is_begun_again(site: Site) -> None:
    process = site.submit()
    with site.locked() as release, site.serve() as executor:
        site.waiting()
        kill_child(executor)
        release()
        site.succeeds(process)
        becomes_true(lambda: site.files() == [])
    assert len(site.stored_keys()) == 1


def test_standin_answers_a_long_poll_when_work_is_submitted() -> None:
    with Standin() as server:
        client, key = server.colony().client(), secrets.token_hex(32)
        who = {"executorname": "one", "executorid": identity(key)}
        client.call("addexecutormsg", client.owner_key,
                    executor={**who, "executortype": "backup", **client.colony})
        client.call("approveexecutormsg", client.owner_key, **who)
        answers: list[tuple[Any, float]] = []
        poll = threading.Thread(target=lambda: answers.append(
            (client.call("assignprocessmsg", key, timeout=100), time.monotonic())))
        poll.start()
        server.wait_call("assignprocessmsg", status=0)
        submitted = client.submit()
        before = time.monotonic()
        poll.join()
        assert answers[0][0]["processid"] == submitted
        assert answers[0][1] - before < 50  # not when the poll's time is up
