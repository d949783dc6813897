"""The tests of how S3 is spoken to: what is repeated, whom it trusts, what the log shows."""
from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import trustme

from proxies import (
    COMPLETING,
    Proxy,
    Stranger,
    drip,
    http_answer,
    http_reply,
    secured,
    through,
)
from surroundings import Scene, one_error, sha256_of


@pytest.mark.parametrize("name", ["AWS_S3_CA_FILE", "AWS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_s3s_authorities_are_the_settings_else_boto3s_else_the_systems(
        scene: Scene, tmp_path: Path, name: str) -> None:
    context, trusted = secured(tmp_path, "right")
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))
    names = ["AWS_S3_CA_FILE", "AWS_CA_BUNDLE", "SSL_CERT_FILE"]
    weaker = names[names.index(name) + 1:]
    others = dict.fromkeys(weaker, str(stranger))
    with Stranger(http_reply("418 I'm a teapot", b""), context) as server:
        scene.settings |= {"AWS_S3_ENDPOINT": f"https://127.0.0.1:{server.port}"}
        assert "(418)" in one_error(scene.run("list", status=1, **{name: trusted}, **others))
        assert "CERTIFICATE_VERIFY_FAILED" in one_error(
            scene.run("list", status=1, **{name: str(stranger)}))


def test_a_missing_bundle_of_authorities_is_named_and_not_waited_for(scene: Scene) -> None:
    error = one_error(scene.run("list", status=1, AWS_CA_BUNDLE="/missing/bundle"))
    assert "/missing/bundle" in error and "No such file" in error


def test_a_mistake_in_the_program_is_not_taken_for_s3_being_away(scene: Scene) -> None:
    scene.put("small", b"text")
    s3 = scene.own_s3(0)
    assert s3.call("get_object", Key=s3.key("small")) == b"text"

    def mistaken(answer: Any) -> None:
        answer["Body"].read("many")

    with pytest.raises(TypeError):
        s3.call("get_object", take=mistaken, Key=s3.key("small"))
    with pytest.raises(AttributeError):
        s3.call("head_objects", Key=s3.key("small"))


@pytest.mark.parametrize("odd", [
    "<Contents><Key>{}backup_1.bak</Key><Size>1</Size><Size>2</Size></Contents>",
    "<Contents><Key>{}backup_1.bak</Key><Size>many</Size></Contents>",
    "<Contents><LastModified>1</LastModified><LastModified>2</LastModified></Contents>",
    "<IsTruncated>"], ids=["two sizes", "no size", "two times", "no XML"])
def test_an_answer_that_botocore_stumbles_over_is_asked_for_again(
        scene: Scene, meddler: Proxy, odd: str) -> None:
    text = f"<ListBucketResult>{odd.format(scene.prefix)}</ListBucketResult>"
    meddler.reply(rb"^GET \S*list-type=2", http_reply("200 OK", text.encode()), times=1)
    name = scene.given_backup()
    assert [row["name"] for row in json.loads(
        scene.run("list", "--json", **through(meddler)).stdout)] == [name]
    meddler.reply(rb"^GET \S*list-type=2", http_reply("200 OK", text.encode()), times=10**6)
    assert "list_objects_v2" in one_error(
        scene.run("list", status=1, **through(meddler, 0.01)))


def test_at_debug_each_call_of_s3_is_a_line_with_its_status_and_time(scene: Scene) -> None:
    scene.put("backup_1685968191.bak", b"a body that nobody logs")
    said = scene.run("list", LOG_LEVEL="debug").stderr
    line = 'level=debug msg="S3 answered" Verb={} Key={} Status={} Seconds=[0-9.]+\n'
    assert re.search(line.format("list_objects_v2", '""', 200), said)
    for verb, name, status in (("head_object", "backup_1685968191.bak", 200),
                               ("get_object", "verified.json", 404)):
        assert re.search(line.format(verb, f"{scene.prefix}/{name}", status), said)
    assert said.count("\n") == said.count("S3 answered") and "nobody logs" not in said
    assert scene.s3.secret_key not in said and scene.s3.access_key not in said
    assert "S3 answered" not in scene.run("list").stderr


def test_no_time_scale_makes_a_slow_answer_of_s3_a_missing_one(
        scene: Scene, meddler: Proxy) -> None:
    def slow(data: bytes) -> bytes:
        threading.Event().wait(0.3)
        return data

    meddler.request = slow
    assert scene.run("list", **through(meddler, 0.0001)).returncode == 0


def test_an_answer_of_s3_that_drips_is_given_up(scene: Scene, meddler: Proxy) -> None:
    meddler.reply(rb"^GET \S*list-type=2", drip)
    error = one_error(scene.run("list", status=1, **through(meddler, 0.001)))
    assert "no complete answer in time" in error


@pytest.mark.parametrize("status, code, again", [
    ("429 Too Many Requests", "TooManyRequests", True), ("409 Conflict", "OperationAborted", True),
    ("412 Precondition Failed", "PreconditionFailed", True),
    ("400 Bad Request", "RequestTimeout", True), ("400 Bad Request", "InvalidRequest", False),
    ("403 Forbidden", "AccessDenied", False), ("501 Not Implemented", "NotImplemented", False)])
def test_only_what_may_pass_is_asked_again(
        scene: Scene, meddler: Proxy, status: str, code: str, again: bool) -> None:
    meddler.reply(rb"^GET \S*list-type=2", http_answer(status, code), times=1)
    ran = scene.run("list", status=0 if again else 1, **through(meddler))
    assert again or code in one_error(ran)


def test_an_upload_that_s3_has_forgotten_is_sent_again(scene: Scene, meddler: Proxy) -> None:
    forgotten: list[str] = []

    def forget(data: bytes) -> bytes:
        if re.match(COMPLETING, data) and not forgotten:
            for each in scene.uploads():
                scene.s3_client.abort_multipart_upload(
                    Bucket="backup", Key=each["Key"], UploadId=each["UploadId"])
                forgotten.append(each["UploadId"])
        return data

    meddler.request = forget
    result = scene.backup(**through(meddler, 0.01))
    assert len(forgotten) == 1 and list(scene.objects()) == [result["filename"]]
    assert sha256_of(scene.objects()[result["filename"]]) == result["sha256"]


def test_s3_is_asked_through_the_proxy_that_the_environment_names(scene: Scene) -> None:
    with Stranger(http_reply("407 Proxy Authentication Required", b"")) as proxy:
        error = one_error(scene.run(
            "list", status=1, AWS_S3_ENDPOINT="https://s3.invalid", BACKUP_TIME_SCALE="0.0001",
            HTTPS_PROXY=f"http://127.0.0.1:{proxy.port}"))
        assert "proxy" in error and proxy.received
        assert all(each.startswith(b"CONNECT s3.invalid:443 ") for each in proxy.received)


def test_an_endpoint_may_be_an_ipv6_address(scene: Scene) -> None:
    where = "[::1]:9"  # nobody listens there
    error = one_error(scene.run(
        "list", status=1, AWS_S3_ENDPOINT=where, AWS_S3_SECURE="false",
        BACKUP_TIME_SCALE="0.0001"))
    assert f"Could not connect to the endpoint URL: \\\"http://{where}/" in error
