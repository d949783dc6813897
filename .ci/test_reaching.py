"""Tests of how the bucket is addressed, who is trusted there, and whose credentials are taken."""
from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest

from proxies import COMPLETING, PART, Proxy, Stranger, http_answer, http_reply, through
from servers import Moto, Postgres, SeaweedFS, certificate, temporary_folder
from surroundings import FILLED, Scene, becomes_true, one_error

LISTING = rb"^GET \S*list-type=2"
NOBODY = {"AWS_S3_ACCESS_KEY": "", "AWS_S3_SECRET_ACCESS_KEY": "",
          "AWS_EC2_METADATA_DISABLED": "true"}


# ---- Where the bucket's name stands ------------------------------------------------------------

class HostingSeaweedFS(SeaweedFS):
    """One that knows a bucket by its name before the domain s3.test, too."""

    def _command(self) -> tuple[list[str], dict[str, str]]:
        command, env = super()._command()
        return [*command, "-s3.domainName=s3.test"], env


@pytest.fixture(scope="module")
def hosting(request: pytest.FixtureRequest, postgres: Postgres) -> Iterator[Scene]:
    """A Scene whose server is reached through a proxy alone: nobody resolves its name."""
    name = f"hosted_{secrets.token_hex(4)}"
    with temporary_folder() as folder, request.param(folder / "s3") as server:
        server.client().create_bucket(Bucket="backup")
        with postgres.dropping():
            postgres.make(name, FILLED)
            scene = Scene(postgres, server, folder, name, name)
            (folder / "staging").mkdir()
            scene.settings |= {"AWS_S3_ENDPOINT": "http://s3.test",
                               "BACKUP_PATH": str(folder / "staging")}
            yield scene


@pytest.mark.parametrize("hosting, how, host", [
    (HostingSeaweedFS, "virtual", "backup.s3.test"), (HostingSeaweedFS, "auto", "s3.test"),
    (HostingSeaweedFS, "path", "s3.test"), (HostingSeaweedFS, "", "s3.test"),
    (Moto, "virtual", "backup.s3.test")], indirect=["hosting"])
def test_the_bucket_stands_in_the_hosts_name_or_in_the_path(
        hosting: Scene, how: str, host: str) -> None:
    """auto leaves it to boto3, which puts it in the path at an endpoint that is not AWS's."""
    with Proxy(hosting.s3.port) as proxy:
        hosting.settings |= {"HTTP_PROXY": f"http://127.0.0.1:{proxy.port}",
                             "AWS_S3_ADDRESSING": how}
        name = hosting.backup(FULL_BACKUPS="1")["filename"]
        assert json.loads(hosting.run("verify").stdout)["object"].endswith(name)
        assert sorted(hosting.objects()) == [name, "verified.json"]
        assert hosting.run("check").returncode == 0
        hosts = {found[1].decode() for request in proxy.requests
                 if (found := re.search(rb"(?im)^host: ([^:\r]+)", request))}
        assert hosts == {host} and len(proxy.requests) > 10


def test_another_way_to_address_it_is_a_wrong_setting(scene: Scene) -> None:
    said = scene.run("list", status=2, AWS_S3_ADDRESSING="Virtual").stderr
    assert "AWS_S3_ADDRESSING is not path, virtual or auto" in said


# ---- Who is trusted ----------------------------------------------------------------------------

def test_boto3s_bundle_of_authorities_holds_for_every_request(
        scene: Scene, tmp_path: Path) -> None:
    with SeaweedFS(tmp_path / "s3", certificate(tmp_path)) as server:
        server.client().create_bucket(Bucket="backup")
        site = Scene(scene.postgres, server, scene.folder, scene.database, scene.prefix)
        bundle = {"AWS_CA_BUNDLE": site.settings.pop("AWS_S3_CA_FILE")}
        site.settings["BACKUP_TIME_SCALE"] = "0.001"
        assert "CERTIFICATE_VERIFY_FAILED" in site.failure()
        for command in (["backup"], ["list"], ["verify"], ["check"]):
            assert "level=warning" not in site.run(*command, **bundle).stderr
        for path, why in ((tmp_path / "missing", "No such file"), (tmp_path, "directory"),
                          (Path(__file__), "certificate|PEM")):
            for verb in ("backup", "list", "verify"):
                error = one_error(site.run(verb, status=1, AWS_CA_BUNDLE=str(path)))
                assert str(path) in error and re.search(why, error, re.IGNORECASE), error
        assert site.run("list", AWS_CA_BUNDLE="/missing", AWS_S3_CA_FILE=bundle["AWS_CA_BUNDLE"])


# ---- Whose credentials -------------------------------------------------------------------------

def credentials(access_key: str, secret_key: str, last: timedelta = timedelta(days=1)) -> bytes:
    """What a role's agent answers; an instance's metadata service likewise, whatever is asked."""
    until = (datetime.now(timezone.utc) + last).strftime("%Y-%m-%dT%H:%M:%SZ")
    return http_reply("200 OK", json.dumps(
        {"AccessKeyId": access_key, "SecretAccessKey": secret_key, "Token": "",
         "Expiration": until}, separators=(",", ":")).encode())


AGENTS = pytest.mark.parametrize("settings", [
    {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:{}/role"},
    {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:{}", "AWS_EC2_METADATA_DISABLED": ""}],
    ids=["agent", "metadata service"])


@AGENTS
def test_a_roles_credentials_are_waited_for(scene: Scene, settings: dict[str, str]) -> None:
    with Stranger(http_reply("404 Not Found", b"{}")) as agent:
        here = {name: text.format(agent.port) for name, text in settings.items()}
        with scene.start(BACKUP_TIME_SCALE="0.1", **NOBODY | here) as executor:
            becomes_true(lambda: len(agent.received) > 6)
            agent.answer = credentials(scene.s3.access_key, scene.s3.secret_key)
            assert executor.wait() == 0
    assert len(scene.objects()) == 1


@AGENTS
def test_where_keys_are_set_no_role_is_asked_for_and_nothing_waits(
        scene: Scene, settings: dict[str, str]) -> None:
    with Stranger(http_reply("404 Not Found", b"{}")) as agent:
        here = {name: text.format(agent.port) for name, text in settings.items()}
        error = scene.failure(AWS_S3_ACCESS_KEY="unknown", **here)
        assert "InvalidAccessKeyId" in error and not agent.received


def test_where_nobody_has_credentials_that_is_said_in_the_end(scene: Scene) -> None:
    ran = scene.run("backup", status=1, BACKUP_TIME_SCALE="0.005", **NOBODY)
    error = one_error(ran)
    assert "Unable to locate credentials" in error and "AWS_S3_ACCESS_KEY" in error
    assert re.search("level=warning .*trying again .*Unable to locate credentials", ran.stderr)


class TwoKeys(SeaweedFS):
    """One that a second pair of keys opens, too."""

    def _command(self) -> tuple[list[str], dict[str, str]]:
        users = [{"name": name, "actions": ["Admin", "Read", "Write", "List"], "credentials": [
            {"accessKey": name + self.access_key, "secretKey": self.secret_key}]}
            for name in ("", "second")]
        (self.folder / "users.json").write_text(json.dumps({"identities": users}))
        return [*super()._command()[0], f"-s3.config={self.folder / 'users.json'}"], {}


def test_credentials_that_expire_amid_an_upload_are_asked_for_anew(
        big: Scene, tmp_path: Path) -> None:
    with (TwoKeys(tmp_path / "s3") as server, Proxy(server.port) as proxy,
          Stranger(credentials(server.access_key, server.secret_key, timedelta(minutes=5)))
          as agent):
        server.client().create_bucket(Bucket="backup")
        site = Scene(big.postgres, server, big.folder, big.database, big.prefix)
        uri = f"http://127.0.0.1:{agent.port}/role"
        first = threading.Event()

        def change(data: bytes) -> bytes:
            """Have the agent give others once a part is on its way."""
            if re.match(PART, data) and not first.is_set():
                first.set()
                agent.answer = credentials(f"second{server.access_key}", server.secret_key)
            return data

        proxy.request = change
        site.backup(BACKUP_COMPRESSION="none", **through(proxy) | NOBODY | {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": uri})
        signed = rb"[^\0]*?Credential=%s"
        assert proxy.seen(PART + signed % server.access_key.encode()) >= 1
        assert proxy.seen(COMPLETING + signed % server.access_key.encode()) == 0
        assert proxy.seen(COMPLETING + signed % b"second") == 1


# ---- A wrong clock, a wrong region -------------------------------------------------------------

def refused(status: str, code: str, *headers: str, inside: str = "") -> bytes:
    """An S3 server's error with more in it."""
    answer = http_answer(status, code).replace(b"</Code>", f"</Code>{inside}".encode())
    answer = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(
        answer.partition(b"\r\n\r\n")[2]), answer)
    return answer.replace(b"\r\n", "\r\n".join(["", *headers, ""]).encode(), 1)


@pytest.mark.parametrize("ahead, says, code", [
    (3, "3h ahead of", "RequestTimeTooSkewed"), (0.1, "6m ahead of", "RequestTimeTooSkewed"),
    (3, "3h ahead of", ""), (-50, "2d behind", "")])
def test_a_clock_that_s3_does_not_believe_is_named_with_what_it_is_off(
        scene: Scene, meddler: Proxy, ahead: float, says: str, code: str) -> None:
    """HeadObject's refusal has no code."""
    there = datetime.now(timezone.utc) - timedelta(hours=ahead)
    answer = refused("403 Forbidden", code, f"Date: {format_datetime(there, usegmt=True)}")
    meddler.reply(LISTING if code else rb"^HEAD ", answer, 99)
    command = ["list"] if code else ["verify", "backup_1.bak"]
    error = one_error(scene.run(*command, status=1, **through(meddler)))
    assert f"(this machine's clock is {says} S3's" in error
    assert meddler.seen(LISTING if code else rb"^HEAD ") == 1  # that does not pass


@pytest.mark.parametrize("answer, says", [
    (refused("400 Bad Request", "AuthorizationHeaderMalformed", inside="<Region>eu-x-1</Region>"),
     "AWS_S3_REGION: it says eu-x-1"),
    (refused("400 Bad Request", "AuthorizationHeaderMalformed"), "AWS_S3_REGION"),
    (refused("400 Bad Request", "IllegalLocationConstraintException"), "AWS_S3_REGION"),
    (refused("301 Moved Permanently", "PermanentRedirect", "x-amz-bucket-region: eu-x-1"),
     "AWS_S3_REGION: it says eu-x-1; AWS_S3_SECURE"),
    (refused("301 Moved Permanently", "PermanentRedirect"), "AWS_S3_REGION, AWS_S3_ENDPOINT")])
def test_a_wrong_region_is_named_and_the_right_one_if_s3_tells_it(
        scene: Scene, meddler: Proxy, answer: bytes, says: str) -> None:
    meddler.reply(LISTING, answer, 99)
    assert f"({says}" in one_error(scene.run("list", status=1, **through(meddler)))


@pytest.mark.parametrize("hosting", [Moto], indirect=True)  # it keeps AWS's rule
def test_a_bucket_that_may_not_be_made_in_this_region_names_the_setting(hosting: Scene) -> None:
    error = hosting.failure(
        AWS_S3_ENDPOINT=hosting.s3.endpoint, AWS_S3_REGION="eu-west-1", HTTP_PROXY="",
        AWS_S3_BUCKET_NAME=f"missing-{secrets.token_hex(4)}", AWS_S3_ADDRESSING="")
    assert "IllegalLocationConstraintException" in error and "(AWS_S3_REGION)" in error
