"""Tests of settings and of the command line."""
from __future__ import annotations

import os
import re
import secrets
import subprocess
from pathlib import Path

import pytest

import backup_executor
from colonies import OWNER_KEY
from environment import PROJECT, requirements
from proxies import FORBIDDEN, Proxy, http_answer, through
from servers import tool
from surroundings import Scene


def test_all_wrong_settings_are_named_at_once(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hidden")
    wrong = {
        "DB_PORT": "70000", "AWS_S3_SECURE": "perhaps", "FULL_BACKUPS": "0", "LOG_LEVEL": "loud",
        "BACKUP_COMPRESSION": "--rar", "AWS_S3_CA_FILE": "/missing/ca", "AWS_S3_BUCKET_NAME": "",
        "AWS_S3_ENDPOINT": "http://host/path", "COLONIES_COLONY_PRVKEY": "hidden" * 8,
        "AWS_S3_SECRET_ACCESS_KEY": ""}
    error = scene.failure(
        status=2, **wrong, AWS_S3_SECRET_ACCESS_KEY_FILE="/missing/secret",
        DB_PASSWORD_FILE=str(tmp_path / "secret"))
    assert [name for name in [*wrong, "/missing/secret", "DB_PASSWORD_FILE"]
            if name not in error] == []
    assert "hidden" not in error and scene.settings["DB_PASSWORD"] not in error


def test_a_wrong_setting_is_not_a_failed_backup(scene: Scene) -> None:
    wrong: list[dict[str, str]] = [
        {"FULL_BACKUPS": "\u0663"}, {"FULL_BACKUPS": "-1"}, {"FULL_BACKUPS": "2.5"},
        {"DB_PORT": "0"}, {"DB_PORT": " 5432x"}, {"AWS_S3_TLS": "2", "AWS_S3_SECURE": ""},
        {"AWS_S3_ACCESS_KEY": ""}, {"DB_PASSWORD_FILE": "/etc/hostname"}]
    for settings in wrong:
        error = scene.failure(status=2, **settings)
        assert any(name.replace("_TLS", "_SECURE") in error for name in settings), error


def test_other_spellings_secrets_in_files_and_empty_variables_will_do(
        scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(scene.settings["AWS_S3_SECRET_ACCESS_KEY"] + "\n")
    del scene.settings["AWS_S3_SECRET_ACCESS_KEY"]
    result = scene.backup(
        AWS_S3_TLS="false", AWS_S3_SECURE="", AWS_S3_ACCESS_KEY="", AWS_S3_BUCKET_NAME="",
        AWS_S3_ACCESSKEY=scene.s3.access_key, AWS_S3_SECRETKEY_FILE=str(tmp_path / "key"),
        AWS_S3_BUCKET="backup", FULL_BACKUPS="", LOG_LEVEL="", DB_USER="", BACKUP_COMPRESSION="")
    assert result["filename"] in scene.objects()
    assert result["filename"] in scene.run(
        "list", AWS_S3_ENDPOINT=scene.s3.url, AWS_S3_SECURE="true", AWS_S3_SECRET_ACCESS_KEY=
        scene.s3.secret_key).stdout


def test_the_dockerfile_is_clean_and_has_the_boto3_that_the_tests_have_by_its_hashes() -> None:
    dockerfile = PROJECT / "Dockerfile"
    ran = subprocess.run([tool("hadolint"), str(dockerfile)], text=True, capture_output=True,
                         check=False)
    assert ran.returncode == 0, ran.stdout
    lock = (PROJECT / ".requirements.txt").read_text()
    pins = re.findall(r"(?m)^([\w-]+==\S+)(?: \\\n    --hash=sha256:\w{64})+$", lock)
    assert len(pins) > 5 and pins == re.findall(r"(?m)^([^ #]\S+)", lock)
    assert [pin for pin in pins if pin in requirements()] == [
        pin for pin in requirements() if pin.startswith("boto3==")]
    made = lock.splitlines()[1].removeprefix("#    ").replace("compile", "compile -U")
    assert f"#     echo {pins[0]} | {made}\n" in dockerfile.read_text()
    assert "--require-hashes -r /.requirements.txt" in dockerfile.read_text()
    images = re.findall(r"(?m)^(?:ARG BASE=|FROM )(\S+)", dockerfile.read_text())
    assert re.fullmatch(r"debian:trixie-slim@sha256:[0-9a-f]{64}", images[0])
    assert set(images[1:]) == {"$BASE"}


def test_no_failure_shows_a_secret_even_where_a_peer_repeats_it(
        scene: Scene, meddler: Proxy) -> None:
    colony_key, executor_key = "c01" + secrets.token_hex(30) + "2", "e" + "4b" * 31 + "2"
    scene.settings |= {"LOG_LEVEL": "debug", "COLONIES_COLONY_PRVKEY": colony_key,
                       "COLONIES_EXECUTOR_PRVKEY": executor_key}
    hidden = [colony_key, executor_key, scene.postgres.password, scene.s3.secret_key,
              scene.s3.access_key]
    said = ""
    for name in ("DB_PASSWORD", "AWS_S3_ACCESS_KEY", "AWS_S3_SECRET_ACCESS_KEY"):
        hidden.append(f"wrong-marker-{name}")
        for command in ("backup", "check"):
            ran = scene.run(command, status=1, **{name: hidden[-1]})
            said += ran.stdout + ran.stderr
    oops = http_answer("400 Bad Request", "Oops", " and ".join(hidden[2:5]))
    meddler.reply(b"", oops, times=100)
    said += scene.failure(**through(meddler))
    assert "Oops" in said
    assert not any(secret in said for secret in hidden), said


@pytest.mark.parametrize("verb", [b"PUT ", b"GET /backup/", b"DELETE ", rb"GET /backup\?"])
def test_check_finds_out_what_a_key_may_not_do(scene: Scene, meddler: Proxy, verb: bytes) -> None:
    meddler.reply(b"^" + verb, FORBIDDEN, times=10)
    said = scene.run("check", status=1, **through(meddler)).stdout
    assert re.search("(?m)^FAIL .*AccessDenied", said)


def test_check_fails_where_the_bucket_gives_back_other_bytes_and_leaves_none_there(
        scene: Scene, meddler: Proxy) -> None:
    scene.given_backup()
    before = scene.objects()
    meddler.change(rb"^GET \S*/check_", lambda answer: iter([
        answer[:-1] + bytes([answer[-1] ^ 1])]))
    said = scene.run("check", status=1, **through(meddler)).stdout
    assert re.search("(?m)^FAIL +bucket: .*gives back something else than it took", said), said
    assert scene.objects() == before and not meddler.rules


def test_check_names_everything_that_is_wrong_in_one_go(scene: Scene, meddler: Proxy) -> None:
    meddler.down()
    ran = scene.run("check", status=1, DB_PASSWORD="wrong", BACKUP_PATH="/missing",
                    COLONIES_SERVER_HOST="127.0.0.1", COLONIES_SERVER_PORT="1", COLONIES_TLS="no",
                    COLONIES_COLONY_NAME="dev", COLONIES_COLONY_PRVKEY=OWNER_KEY,
                    **through(meddler, 0.1))
    wrong = [line for line in ran.stdout.splitlines() if "FAIL" in line]
    for says in ("password authentication", "/missing", "127.0.0.1:1/", str(meddler.port)):
        assert any(says in line for line in wrong), says


def test_a_program_reads_all_that_it_is_given_also_where_it_begins_late(tmp_path: Path) -> None:
    """More than a pipe has room for; it reads when we have waited for it once."""
    os.mkfifo(fifo := tmp_path / "fifo")
    told = list[int]()

    def tick() -> None:
        if not told:
            told.append(fifo.write_bytes(b"go"))

    argv = ["sh", "-c", 'read -r word <"$0"; wc -c', str(fifo)]
    said = backup_executor.run("Counting", argv, timeout=60, tick=tick, stdin=b"x" * 10**6)
    assert told and int(said) == 10**6
