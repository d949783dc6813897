"""Tests of what is told without being asked for: the dead-man service, and Prometheus' metrics."""
from __future__ import annotations

import re
import secrets
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

from colonies import FAILED
from proxies import Proxy, Stranger, http_reply, secured, through
from servers import Executor, kill_child, run
from surroundings import BRISK, Scene, Site, becomes_true, standin

OK = http_reply("200 OK", b"OK")


class Service(Stranger):
    """A dead-man service at a URL with a token; what it was told, in its order."""

    def __init__(self, answer: bytes = OK, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(answer, tls)
        self.token = secrets.token_hex(16)
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self.port}/{self.token}"

    @property
    def told(self) -> list[str]:
        """The request lines, less the version, with … for the token; of a POST the body, too."""
        lines = []
        for request in self.received:
            head, _, body = request.decode().partition("\r\n\r\n")
            line = head.partition(" HTTP/1.1\r\n")[0].replace(self.token, "…")
            lines.append(f"{line} {body}".strip())
        return lines

    def wait(self, *told: str) -> None:
        """Wait until it was told this, and no more."""
        becomes_true(lambda: len(self.received) >= len(told))
        assert self.told == [*told]


# ---- The dead-man service ----------------------------------------------------------------------

@pytest.mark.parametrize(("behind", "start", "success"), [
    ("", "GET /…/start", "GET /…"),
    ("/", "GET /…/start", "GET /…/"),
    ("/nightly?create=1", "GET /…/nightly/start?create=1", "GET /…/nightly?create=1")],
    ids=["plain", "slash", "query"])
def test_a_dead_mans_service_is_told_of_a_start_and_a_success(
        scene: Scene, behind: str, start: str, success: str) -> None:
    with Service() as service:
        said = scene.run("backup", HEARTBEAT_URL=service.url + behind).stderr
        service.wait(start, success)
    assert "level=warning" not in said
    with Service() as service:
        url = f"HTTP://127.0.0.1:{service.port}"
        scene.run("backup", HEARTBEAT_URL=url)
        service.wait("GET /start", "GET /")


def test_it_is_told_why_a_backup_failed_without_secrets(scene: Scene) -> None:
    with Service() as service:
        secret = "not-the-secret-key"  # noqa: S105
        scene.run("verify", "missing", status=1, HEARTBEAT_URL=service.url)  # of none of its own
        error = scene.failure(HEARTBEAT_URL=service.url, AWS_S3_SECRET_ACCESS_KEY=secret,
                              DB_DATABASE=secret)
        becomes_true(lambda: len(service.received) == 2)
        start, fail = service.told
    assert start == "GET /…/start"
    assert re.match(r"POST /…/fail Looking at the database: psql: .*\*\*\*", fail), fail
    assert secret not in fail + error


@standin()
def test_it_is_told_of_processes_and_of_what_an_idle_executor_finishes(
        site: Site, meddler: Proxy) -> None:
    with Service() as service, Executor(site.environ() | through(meddler, float(BRISK)) | {
            "HEARTBEAT_URL": service.url}) as executor:
        site.succeeds(site.submit())
        service.wait("GET /…/start", "GET /…")
        site.succeeds(site.submit("verify"))
        meddler.reply(b"uploads", http_reply("403 Forbidden", b""), 1)
        [error] = site.client.wait(site.submit(), FAILED)["errors"]
        becomes_true(lambda: len(service.received) >= 5)
        executor.wait_for("Removed local backup file", count=2)
        service.wait("GET /…/start", "GET /…", "GET /…/start", f"POST /…/fail {error}", "GET /…")
        assert service.token not in executor.log


@standin()
def test_it_is_told_of_a_backup_that_something_killed(site: Site) -> None:
    with Service() as service, site.locked(), site.serve(
            HEARTBEAT_URL=service.url, BACKUP_TIME_SCALE=BRISK) as executor:
        process = site.submit()
        for _ in range(3):
            site.waiting()
            kill_child(executor)
            site.nobody_waits()
        [error] = site.client.wait(process, FAILED)["errors"]
        service.wait(*["GET /…/start"] * 3, f"POST /…/fail {error}")
        assert "three times" in error


class Holding(Service):
    """One that answers nobody until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def _serve(self, client: socket.socket) -> None:
        self.released.wait(60)
        super()._serve(client)


@standin()
def test_a_service_that_does_not_answer_delays_nothing(site: Site) -> None:
    with Holding() as service, site.serve(HEARTBEAT_URL=service.url):
        site.succeeds(site.submit())
        assert not service.received
        service.released.set()
        becomes_true(lambda: service.told[-1:] == ["GET /…"])


@pytest.mark.parametrize("answer", [
    http_reply("404 Not Found", b""), b"", b"-ERR what?\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{}/elsewhere\r\n\r\n"],
    ids=["refuses", "hangs up", "is none", "redirects"])
def test_what_goes_wrong_with_the_service_is_a_warning_after_three_tries(
        scene: Scene, answer: bytes) -> None:
    with Service() as elsewhere, Service(
            answer.replace(b"{}", str(elsewhere.port).encode())) as service:
        said = scene.run("backup", HEARTBEAT_URL=service.url, BACKUP_TIME_SCALE=BRISK).stderr
        service.wait(*["GET /…/start"] * 3, *["GET /…"] * 3)
        assert not elsewhere.received
    warnings = re.findall("level=warning .*", said)
    assert len(warnings) == 2 and "level=error" not in said, said
    for line, what in zip(warnings, ("start", "success"), strict=True):
        assert f'msg="Cannot tell HEARTBEAT_URL" What={what} Host=127.0.0.1 Error=' in line
    assert service.token not in said


def test_the_systems_authorities_vouch_for_the_service(scene: Scene, tmp_path: Path) -> None:
    context, trusted = secured(tmp_path, "right")
    with Service(tls=context) as service:
        scene.run("backup", HEARTBEAT_URL=service.url, SSL_CERT_FILE=trusted)
        service.wait("GET /…/start", "GET /…")
        said = scene.run("backup", HEARTBEAT_URL=service.url, BACKUP_TIME_SCALE=BRISK).stderr
        assert said.count("CERTIFICATE_VERIFY_FAILED") == 2 and len(service.received) == 2


def test_the_service_is_reached_through_the_proxy_that_the_environment_names(scene: Scene) -> None:
    with Stranger(http_reply("502 Bad Gateway", b"")) as proxy:
        scene.run("backup", HEARTBEAT_URL="https://told.invalid/x", BACKUP_TIME_SCALE=BRISK,
                  HTTPS_PROXY=f"http://127.0.0.1:{proxy.port}")
        assert proxy.received[0].startswith(b"CONNECT told.invalid:443")


@pytest.mark.parametrize("url", [
    "ftp://example.org/x", "https://user:word-of-mouth@example.org/", "example.org/x",
    "https://example.org/a b", "https://example.org/ä", "https://example.org/x#y", "https://"])
def test_what_is_no_url_of_a_service_is_refused_and_not_repeated(url: str) -> None:
    ran = run({"HEARTBEAT_URL": url, "AWS_S3_BUCKET_NAME": "backup"}, "backup")
    assert ran.returncode == 2 and "HEARTBEAT_URL is not a URL" in ran.stderr
    assert url not in ran.stderr and "mouth" not in ran.stderr


@standin()
def test_the_services_file_is_read_anew_for_each_backup(site: Site, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("http://127.0.0.1:1/former\n")
    settings: dict[str, Any] = {"HEARTBEAT_URL_FILE": str(tmp_path / "url")}
    with Service() as service, Executor(site.environ(**settings)):
        site.polling()
        (tmp_path / "url").write_text(service.url)
        site.succeeds(site.submit())
        service.wait("GET /…/start", "GET /…")
        (tmp_path / "url").unlink()  # then it is the last one
        site.client.wait(site.submit())
        becomes_true(lambda: len(service.received) == 4)
