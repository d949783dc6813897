"""The tests of how the executor speaks to Colonies, and of how it leaves."""
from __future__ import annotations

import base64
import json
import os
import re
import secrets
import signal
import sys
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colonies import FAILED, OWNER_KEY, UNREGISTERED, WAITING, Standin
from proxies import Proxy, Stranger, http_reply
from servers import Executor, Postgres, SeaweedFS, certificate, client_programs
from surroundings import BRISK, EXECUTOR_KEY, Site, becomes_true, standin


def test_a_signal_amid_the_start_of_the_first_job_is_obeyed(site: Site, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, subprocess\n"
        "started = subprocess.Popen.__init__\n"
        "def start(*arguments, **more):\n"
        "    started(*arguments, **more)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "if 'BACKUP_PROCESS' not in os.environ:\n"
        "    subprocess.Popen.__init__ = start\n")
    with site.serve(PYTHONPATH=str(tmp_path), VERIFY_DB_HOST="127.0.0.1") as executor:
        assert executor.wait() == 0, executor.log
        assert "level=error" not in executor.log


@standin()
def test_an_executor_whose_volume_is_gone_takes_its_leave_all_the_same(site: Site) -> None:
    site.admit()
    process = site.submit()
    with site.locked(), site.serve(COLONIES_COLONY_PRVKEY="",
                                 COLONIES_EXECUTOR_PRVKEY=EXECUTOR_KEY) as executor:
        site.waiting()
        site.folder.rename(site.folder.with_name("gone"))
        assert executor.stop() == 0, executor.log
        assert "Closed process" in executor.log and "take leave" not in executor.log
    assert site.client.process(process)["errors"] == ["the executor was stopped"]


@standin()
def test_the_alive_file_is_touched_while_processes_come_in(
        site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    process, real = site.submit(), site.standin.on_getprocess
    touched: list[bool] = []

    def another(_: str, fields: dict[str, Any], **__: Any) -> Any:
        if not fields["availablecpu"]:  # what asks for work
            touched.append(site.alive.stat().st_mtime > 0)
        return {"processid": secrets.token_hex(32), "spec": {"funcname": "unknown"}}

    def waits(caller: str, fields: dict[str, Any]) -> Any:
        os.utime(site.alive, (0, 0))
        return {**real(caller, fields), "state": WAITING}

    with site.locked() as release, site.serve(BACKUP_TIME_SCALE=BRISK):
        site.waiting()
        with monkeypatch.context() as patch:
            patch.setattr(site.standin, "on_assignprocess", another)
            patch.setattr(site.standin, "on_getprocess", waits)
            becomes_true(lambda: len(touched) >= 10)
        release()
        site.succeeds(process)
    assert all(touched)


@standin()
def test_each_call_to_colonies_is_logged_for_who_debugs_without_what_it_says(site: Site) -> None:
    site.standin.longest = 0.5
    with site.serve(LOG_LEVEL="debug") as executor:
        site.succeeds(site.submit())
        for kind, status in (("assignprocessmsg", 403), ("addexecutormsg", 200),
                             ("closesuccessfulmsg", 200)):
            executor.wait_for('level=debug msg="Colonies answered" '
                              rf"Message={kind} Status={status} Seconds=[0-9]+\.[0-9]{{3}}$")
        assert not re.search(r"\b[0-9a-f]{130}\b|payload|eyJ", executor.log)
        assert OWNER_KEY not in executor.log
    with site.serve() as executor:
        site.polling(3)
        assert "Colonies answered" not in executor.log


@standin()
def test_colonies_may_have_an_ipv6_address(site: Site) -> None:
    host = "::ffff:127.0.0.1"
    with Proxy(site.where.port) as proxy, site.serve(proxy.port, COLONIES_SERVER_HOST=host):
        proxy.wait_seen(rb"(?im)^host: *\[::ffff:127\.0\.0\.1\]:[0-9]+\r")


def test_colonies_is_asked_through_the_proxy_that_the_environment_names(
        site: Site) -> None:
    with Stranger(http_reply("502 Bad Gateway", b"")) as proxy:
        with site.serve(COLONIES_TLS="true", COLONIES_SERVER_HOST="colonies.invalid",
                        HTTPS_PROXY=f"http://127.0.0.1:{proxy.port}") as executor:
            executor.wait_for("level=warning .*502 Bad Gateway")
        assert proxy.received[0].startswith(b"CONNECT colonies.invalid:")


def test_the_systems_authorities_vouch_for_colonies(
        postgres: Postgres, s3: SeaweedFS, tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    with postgres.dropping(), Standin(https=pair) as server:
        site = Site(server.colony(), postgres, s3, tmp_path)
        with site.serve(COLONIES_TLS="true", SSL_CERT_FILE=pair[0]):
            site.polling()


@standin()
def test_a_process_waits_for_another_backup_on_the_volume(site: Site) -> None:
    with site.locked() as release, Executor(site.environ(), "backup") as other:
        site.waiting()
        with site.serve() as executor:
            process = site.submit()
            executor.wait_for("Waiting for another backup to end")
            release()
            site.succeeds(process)
        assert other.wait() == 0, other.log
    assert len(site.stored_keys()) == 2


@standin()
def test_it_takes_its_leave_at_the_end_of_its_terminal(site: Site) -> None:
    with site.serve() as executor:
        site.polling()
        assert executor.stop(signal.SIGHUP) == 0
    assert [each["state"] for each in site.standin.executors.values()] == [UNREGISTERED]


@standin()
def test_a_process_is_closed_without_the_secrets_in_any_of_their_forms(
        site: Site, tmp_path: Path) -> None:
    secret = "it's 5% \\ of \"this\""  # noqa: S105
    forms = [secret, repr(secret)[1:-1], urllib.parse.quote(secret, safe="")]
    (tmp_path / "psql").write_text(
        f"#!{sys.executable}\nimport sys\nsys.exit({' | '.join(forms)!r})\n")
    (tmp_path / "psql").chmod(0o755)
    with site.serve(PATH=f"{tmp_path}:{client_programs()[0]}:/usr/bin:/bin",
                    DB_PASSWORD=secret) as executor:
        [error] = site.client.wait(site.submit(), FAILED)["errors"]
        assert "*** | *** | ***" in error
        assert not any(form in error + executor.log for form in forms)


@standin()
def test_a_server_that_repeats_the_owners_key_is_quoted_without_it(site: Site) -> None:
    said = json.dumps({"status": 500, "message": f"unknown: {OWNER_KEY}"}).encode()
    refusal = {"payloadtype": "error", "error": True, "payload": base64.b64encode(said).decode()}
    with Proxy(site.where.port) as proxy:
        proxy.reply(b"addexecutormsg", http_reply("500 x", json.dumps(refusal).encode()))
        with site.serve(proxy.port, BACKUP_TIME_SCALE=BRISK) as executor:
            executor.wait_for(r"level=error .*addexecutormsg: unknown: \*\*\*")
            site.polling()
            assert OWNER_KEY not in executor.log


@standin()
def test_a_processs_log_has_its_steps_and_progress_whatever_our_own_log_has(site: Site) -> None:
    with site.serve(LOG_LEVEL="error", BACKUP_TIME_SCALE="0.00001") as executor:
        process = site.submit()
        site.succeeds(process)
        said = site.client.logs(process)
        assert "Backing up database ...\n" in said and "level=" not in executor.log
        assert re.search("(?m)^[A-Z].* Size=.* Rate=", said)


@standin()
def test_a_server_that_holds_no_request_is_asked_once_a_second(site: Site) -> None:
    nothing = json.dumps({"payloadtype": "error", "error": True, "payload": base64.b64encode(
        b'{"status": 404, "message": "No process available"}').decode()}).encode()
    site.admit()
    with Proxy(site.where.port) as proxy:
        proxy.reply(b"assignprocessmsg", http_reply("404 Not Found", nothing), 10**6)
        with site.serve(proxy.port, COLONIES_EXECUTOR_PRVKEY=EXECUTOR_KEY):
            proxy.wait_seen(b"assignprocessmsg", 3)  # the first one is a sign of life
            begun = time.monotonic()
            proxy.wait_seen(b"assignprocessmsg", 9)
            assert time.monotonic() - begun > 1  # of three, in which there are two a second


@standin()
def test_a_process_that_does_not_say_when_it_was_submitted_gets_a_backup_of_its_own(
        site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    real = site.standin.on_assignprocess

    def timeless(caller: str, fields: dict[str, Any], gone: Callable[[], bool]) -> Any:
        return {**json.loads(real(caller, fields, gone)), "submissiontime": "yesterday"}

    monkeypatch.setattr(site.standin, "on_assignprocess", timeless)
    processes = [site.submit(), site.submit()]
    with site.serve():
        first, second = [site.succeeds(process)["filename"] for process in processes]
    assert first != second
