"""Tests of what is told without being asked for: the dead-man service, and Prometheus' metrics."""
from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import secrets
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import backup_executor
from colonies import FAILED
from debian import unpacked
from environment import PROJECT, ROOT
from proxies import Proxy, Stranger, drip, http_reply, secured, through
from restores import RESTORED, verifying
from servers import Executor, Program, compiled, free_ports, kill_child, memory, run
from surroundings import BRISK, EXECUTOR_KEY, FAULT_SCALE, Scene, Site, becomes_true, standin

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
    site.standin.longest = 0.5  # it finishes what is left when a poll has ended
    with Service() as service, Executor(site.environ() | through(meddler, float(BRISK)) | {
            "HEARTBEAT_URL": service.url}) as executor:
        site.succeeds(site.submit())
        service.wait("GET /…/start", "GET /…")
        site.succeeds(site.submit("verify"))
        site.client.wait(site.submit("verify", args=["missing"]), FAILED)
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
        process, session = site.submit(), "0"
        for _ in range(3):
            session = site.waiting(but=session)  # which waits on until the next child ends it
            kill_child(executor)
        [error] = site.client.wait(process, FAILED)["errors"]
        service.wait(*["GET /…/start"] * 3, f"POST /…/fail {error}")
        assert "three times" in error


class Holding(Service):
    """One that takes what it is told, and answers nobody until it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        super().__init__()

    def __getattribute__(self, name: str) -> Any:
        if name == "answer":
            self.released.wait(120)
        return super().__getattribute__(name)


@standin()
def test_it_is_told_of_a_backup_that_ends_with_its_executor(
        site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its start, which the service answers as late as when the process is closed."""
    site.admit()
    real = site.standin.on_closefailed
    with Holding() as service, site.locked(), site.serve(
            HEARTBEAT_URL=service.url, COLONIES_COLONY_PRVKEY="",
            COLONIES_EXECUTOR_PRVKEY=EXECUTOR_KEY) as executor:
        def closed(caller: str, fields: dict[str, Any]) -> Any:
            service.released.set()
            return real(caller, fields)

        monkeypatch.setattr(site.standin, "on_closefailed", closed)
        site.submit()
        site.waiting()
        becomes_true(lambda: service.received)
        assert executor.stop() == 0
        becomes_true(lambda: service.told[-1] == "POST /…/fail the executor was stopped")


def test_who_is_tired_of_waiting_for_the_service_has_his_backup(scene: Scene) -> None:
    with Holding() as service, scene.start(HEARTBEAT_URL=service.url) as executor:
        becomes_true(lambda: executor.out)
        stat = Path(f"/proc/{executor.process.pid}/stat")  # until it sleeps, which it does then
        becomes_true(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S")
        assert executor.stop() == 0, executor.log


def test_a_service_whose_answer_never_ends_is_told_again(scene: Scene) -> None:
    def unended(request: bytes) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nX-Filled:"
        yield from itertools.islice(drip(request), 1, None)

    with Service() as service, Proxy(service.port) as proxy:
        proxy.reply(b"/start", unended)
        url = service.url.replace(f":{service.port}", f":{proxy.port}")
        scene.run("backup", HEARTBEAT_URL=url, BACKUP_TIME_SCALE=BRISK)
        service.wait("GET /…/start", "GET /…")


@standin()
def test_a_service_that_does_not_answer_delays_nothing_and_is_told_in_order(site: Site) -> None:
    with Holding() as service, site.serve(HEARTBEAT_URL=service.url) as executor:
        site.succeeds(site.submit())
        executor.wait_for("Closed process")
        service.released.set()
        becomes_true(lambda: "GET /…" in service.told)
        told = service.told  # the start once, or again after ten seconds
        success = told.index("GET /…")
        assert {*told[:success]} == {"GET /…/start"} and {*told[success:]} == {"GET /…"}


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
    with Service() as service, Executor(site.environ() | settings):
        site.polling()
        (tmp_path / "url").write_text(service.url)
        site.succeeds(site.submit())
        service.wait("GET /…/start", "GET /…")
        (tmp_path / "url").unlink()  # then it is the last one
        site.client.wait(site.submit())
        becomes_true(lambda: len(service.received) == 4)


# ---- The metrics -------------------------------------------------------------------------------

Metrics = dict[str, float]  # by name, less the prefix, with the labels


class Scraped:
    """The settings for metrics at a port of their own, and what is told there."""

    def __init__(self) -> None:
        [self.port] = free_ports(1)
        self.settings = {"METRICS_PORT": f"127.0.0.1:{self.port}", "BACKUP_TIME_SCALE": FAULT_SCALE}

    def ask(self, request: bytes) -> bytes:
        """What is answered, to its end."""
        with socket.create_connection(("127.0.0.1", self.port), 60) as connection:
            connection.sendall(request)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def metrics(self) -> Metrics:
        head, _, body = self.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").decode().partition(
            "\r\n\r\n")
        assert head.startswith("HTTP/1.1 200 OK\r\n"), head
        assert f"Content-Length: {len(body.encode())}" in head
        found = {}
        for line in body.splitlines():
            name, _, value = line.rpartition(" ")
            if not line.startswith("# "):
                found[name.removeprefix("colonies_backup_")] = float(value)
        return found

    def wait(self, condition: Callable[[Metrics], Any]) -> Metrics:
        """Wait until the metrics are so."""
        seen: Metrics = {}

        def holds() -> Any:
            seen.clear()
            with contextlib.suppress(ConnectionError):  # it does not listen yet
                seen.update(self.metrics())
            return seen and condition(seen)
        becomes_true(holds)
        return seen


def looked(metrics: Metrics) -> bool:
    return metrics.get("bucket_reachable") == 1


@standin()
def test_metrics_tell_of_backups_and_verifies_and_a_restart_loses_none_of_them(
        site: Site) -> None:
    scraped = Scraped()
    settings = scraped.settings | verifying(site.postgres)
    with Executor(site.environ() | settings) as executor:
        before = scraped.wait(looked)
        assert before["newest_timestamp_seconds"] == before["verify_timestamp_seconds"] == 0
        assert before["running{function=\"backup\"}"] == before["uploads_waiting"] == 0
        assert "newest_size_bytes" not in before and "upload_seconds" not in before
        made = site.succeeds(site.submit())
        proof = site.succeeds(site.submit("verify"))
        after = scraped.wait(lambda now: now.get("verify_timestamp_seconds"))
        assert after["upload_seconds"] == made["exectime_upload_s3"]
        executor.stop()
    with Executor(site.environ() | settings):
        again = scraped.wait(looked)
    assert abs(again["verify_timestamp_seconds"] - time.time()) < 3600
    steps = {f'verify_step_seconds{{step="{step}"}}': seconds
             for step, seconds in proof["seconds"].items()}
    assert len(steps) == 4
    told = {"newest_timestamp_seconds": int(made["filename"][7:-4]),
            "newest_size_bytes": made["size"], "newest_doubtful": 0,
            "newest_dump_seconds": made["exectime_backup"],
            'backups{kind="good"}': 1, 'backups{kind="doubtful"}': 0, 'backups{kind="unproven"}': 0,
            'backups{kind="other"}': 0, f'verify_success{{verdict="{RESTORED}"}}': 1, **steps}
    for name, value in told.items():
        assert after[name] == again[name] == value, name


@standin()
def test_metrics_tell_of_each_kind_of_backup_and_of_a_verify_whose_backup_is_gone(
        site: Site) -> None:
    def kinds(metrics: Metrics) -> dict[str, float]:
        return {kind: metrics[f'backups{{kind="{kind}"}}']
                for kind in ("good", "doubtful", "unproven", "other")}

    made, scraped = site.backup(), Scraped()
    body, metadata = site.objects()[made["filename"]], site.head(made["filename"])["Metadata"]
    site.put("backup_100.bak", body[:-1], **metadata)
    site.put("backup_1999999999.bak", body[:100], **metadata)
    site.put("backup_200.bak", b"an older executor's")
    for number, other in ((300, {"database": "other"}), (400, {"system-identifier": "7"})):
        site.put(f"backup_{number}.bak", body, **metadata | other)
    site.run("verify", "backup_100.bak", status=1)
    site.s3_client.delete_object(Bucket="backup", Key=f"{site.prefix}/backup_100.bak")
    site.run("verify", "backup_300.bak")  # of another database; it keeps what there is of ours
    verdicts = json.loads(site.objects()["verified.json"])
    odd = {"verdict": "odd", "time": "2999-01-01T00:00:00+00:00", "seconds": {"restore": 10**400}}
    site.put("verified.json", json.dumps(verdicts | {made["filename"]: odd}).encode())
    with Executor(site.environ() | scraped.settings) as executor:
        found = scraped.wait(looked)
        assert kinds(found) == {"good": 1, "doubtful": 1, "unproven": 1, "other": 2}
        assert found["newest_doubtful"] == 1
        assert found["newest_timestamp_seconds"] == 1999999999
        assert found['verify_success{verdict="failed"}'] == 0
        assert set(json.loads(site.objects()["verified.json"])) == {
            "backup_100.bak", "backup_300.bak", made["filename"]}
        executor.stop()
    with Executor(site.environ() | scraped.settings | {"DB_PORT": "1"}) as executor:
        # two servers have backups of a database of this name: which is ours, nobody says
        lost = scraped.wait(lambda now: now.get("bucket_reachable") == 0)
        assert not [name for name in lost if name.startswith(("newest", "backups", "verify"))]
        executor.wait_for("level=warning .*Cannot look at the bucket for the metrics")
        executor.stop()
    site.s3_client.delete_object(Bucket="backup", Key=f"{site.prefix}/backup_400.bak")
    with Executor(site.environ() | scraped.settings | {"DB_PORT": "1"}):
        assert kinds(scraped.wait(looked)) == {"good": 1, "doubtful": 1, "unproven": 1, "other": 1}


@standin()
def test_metrics_tell_what_runs_what_waits_what_failed_and_who_is_away(
        site: Site, meddler: Proxy) -> None:
    scraped, site.standin.longest = Scraped(), 0.5
    running, failures = 'running{function="backup"}', 'failures_total{function="backup"}'
    with Proxy(site.where.port) as front, site.locked() as release, Executor(
            site.environ(front.port) | through(meddler) | scraped.settings) as executor:
        scraped.wait(lambda now: looked(now) and now["registered"] and now["colonies_reachable"])
        process = site.submit()
        site.waiting()
        now = scraped.wait(lambda now: now[running])
        assert (now["uploads_waiting"], now[failures]) == (0, 0)
        assert 0 < now["staging_free_bytes"] < 2**60
        front.down()
        scraped.wait(lambda now: not now["colonies_reachable"])
        front.up()
        meddler.down()
        release()
        now = scraped.wait(lambda now: now["uploads_waiting"])
        site.client.wait(process, FAILED)
        now = scraped.wait(lambda now: now[failures] and now.get("bucket_reachable") == 0)
        assert (now["uploads_waiting"], now["newest_timestamp_seconds"]) == (1, 0)
        [dump] = [name for name in site.files() if name.endswith(".bak")]
        # As long as it is encrypted and the plain one there; and a file of an operator's own.
        beside = [site.folder / f"{dump}.age", site.folder / "backup_7.bak"]
        for file in beside:
            file.touch()
        assert scraped.metrics()["uploads_waiting"] == 1
        for file in beside:
            file.unlink()
        meddler.up()
        executor.wait_for("Removed local backup file")
        now = scraped.wait(lambda now: now["newest_timestamp_seconds"])
        assert (now["uploads_waiting"], now[failures], now["colonies_reachable"]) == (0, 1, 1)


@standin()
def test_clients_that_mean_ill_take_no_metrics_from_others_and_nothing_from_the_executor(
        site: Site) -> None:
    scraped, site.standin.longest = Scraped(), 0.5
    with (Executor(site.environ() | scraped.settings, by=compiled()) as executor,
          contextlib.ExitStack() as stack):
        scraped.wait(looked)
        executor.wait_for("`check` has ended")  # which has descriptors of its own
        descriptors = len(os.listdir(f"/proc/{executor.pid}/fd"))
        held = memory(executor.pid)

        def crowd(said: bytes) -> None:
            for _ in range(100):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", scraped.port)))
                with contextlib.suppress(OSError):
                    client.sendall(said)
        for said in (b"", b"GET /metrics HTTP/1.1\r\n", b"GET /" + b"x" * 10**5, b"\0" * 10**5,
                     b"GET /metrics HTTP/1.1\r\n\r\n"):
            crowd(said)
            assert scraped.metrics()["colonies_reachable"] == 1
            assert len(os.listdir(f"/proc/{executor.pid}/fd")) <= descriptors + 17
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"POST /metrics HTTP/1.1\r\n\r\n",
                     b"GET /metricsx HTTP/1.1\r\n\r\n", b"\r\n\r\n"):
            assert scraped.ask(said).startswith(b"HTTP/1.1 404 ")
        assert scraped.ask(b"x" * 8193) == b""
        assert scraped.ask(b"GET ") == b""  # its time is over
        assert memory(executor.pid) < held + 2
        site.succeeds(site.submit())
        assert "level=warning" not in executor.log and executor.stop() == 0


@standin()
def test_a_port_that_is_taken_keeps_nobody_from_backing_up(site: Site) -> None:
    scraped = Scraped()
    with socket.create_server(("127.0.0.1", scraped.port)) as taken, Executor(
            site.environ() | scraped.settings) as executor:
        executor.wait_for("level=warning .*No metrics, trying again .*in use")
        site.succeeds(site.submit())
        taken.close()
        scraped.wait(looked)


@pytest.mark.parametrize("where", ["0", "65536", "x", "127.0.0.1", "127.0.0.1:", ":9187", "::1:9"])
def test_what_is_no_port_for_metrics_is_refused(where: str) -> None:
    ran = run({"METRICS_PORT": where, "AWS_S3_BUCKET_NAME": "backup"}, "backup")
    assert ran.returncode == 2 and "METRICS_PORT is not a" in ran.stderr


def test_a_port_that_is_a_service_of_that_name_is_told_from_a_wrong_one() -> None:
    ran = run({"METRICS_PORT": "tcp://10.0.0.7:80", "AWS_S3_BUCKET_NAME": "backup"}, "backup")
    assert ran.returncode == 2 and "METRICS_PORT is what Kubernetes sets" in ran.stderr


def test_a_port_alone_is_one_at_all_addresses() -> None:
    """In a network of its own, where nobody else is."""
    script = """if True:
        import fcntl, socket, struct, backup_executor
        with socket.socket() as any:
            fcntl.ioctl(any, 0x8914, struct.pack("16sh14x", b"lo", 0x49))  # SIOCSIFFLAGS: up
        with backup_executor.listener("9187"):
            for address in ("127.0.0.1", "::1"):
                socket.create_connection((address, 9187)).close()
        with backup_executor.listener("[::1]:9188"), backup_executor.listener("localhost:9188"):
            for address in ("127.0.0.1", "::1"):
                socket.create_connection((address, 9188)).close()
        print("reached")"""
    ran = subprocess.run(["unshare", "-n" if ROOT else "-rn", sys.executable, "-c", script],
                         cwd=PROJECT, text=True, capture_output=True, check=False)
    assert ran.stdout == "reached\n", ran.stderr


# ---- Prometheus itself, which the command `image` brings ---------------------------------------

@standin()
def image_metrics_are_what_promtool_and_a_real_prometheus_take(
        site: Site, tmp_path: Path) -> None:
    """Also what the alerts of `serve --help`, and the chart's dashboard, ask for is there."""
    scraped, odd = Scraped(), 'a "name" \\ of\nthis'
    prometheus = unpacked("prometheus", beside=False) / "usr/bin"  # installed it might start
    [port] = free_ports(1)
    with Executor(site.environ() | scraped.settings | {"COLONIES_EXECUTOR_NAME": odd}):
        made = site.succeeds(site.submit())
        site.succeeds(site.submit("verify"))
        scraped.wait(lambda now: now.get("verify_timestamp_seconds"))
        shown = scraped.ask(b"GET /metrics HTTP/1.1\r\n\r\n").partition(b"\r\n\r\n")[2]
        assert set(re.findall(rb"(?m)^# HELP colonies_backup_(\w+)", shown)) == {
            name.encode() for name in backup_executor.METRICS}
        ran = subprocess.run([str(prometheus / "promtool"), "check", "metrics"], input=shown,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        assert (ran.returncode, ran.stdout) == (0, b"")
        config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [{
            "job_name": "backup", "static_configs": [{"targets": [f"127.0.0.1:{scraped.port}"]}]}]}
        (tmp_path / "prometheus.yml").write_text(json.dumps(config))  # which is YAML, too

        def query(expression: str) -> Any:
            asked = urllib.parse.urlencode({"query": expression})
            url = f"http://127.0.0.1:{port}/api/v1/query?{asked}"
            with contextlib.suppress(OSError), urllib.request.build_opener(
                    urllib.request.ProxyHandler({})).open(url, timeout=60) as answer:
                return [(each["metric"], float(each["value"][1]))
                        for each in json.load(answer)["data"]["result"]]

        with Program([str(prometheus / "prometheus"), f"--config.file={tmp_path}/prometheus.yml",
                      f"--storage.tsdb.path={tmp_path}/data",
                      f"--web.listen-address=127.0.0.1:{port}"], {}):
            becomes_true(lambda: query('up{job="backup"} == 1'))
            [(_, newest)] = query("colonies_backup_newest_timestamp_seconds")
            assert newest == int(made["filename"][7:-4])
            [(labels, _)] = query("colonies_backup_info")
            assert labels["executor"] == odd.replace("\n", "\\U0000000a")
            board = json.loads((PROJECT / "helm/dashboard.json").read_text())
            asked = [re.sub(r"\$\w+", ".*", target["expr"].replace("$__rate_interval", "1h"))
                     for panel in board["panels"] for target in panel["targets"]]
            becomes_true(lambda: all(map(query, asked)))
            rules = re.findall(r"(?m)((?:^  \S.*\n)+)      \S", backup_executor.HELP["serve"])
            named = {*re.findall(r"colonies_backup_\w+", "".join(rules))}
            assert all(map(query, named)) and len(rules) == 11
            assert [query(rule) for rule in rules] == [[]] * 11
