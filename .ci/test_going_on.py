"""Tests of what must not keep a backup from being made, or from being told as it was."""
from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import time
from pathlib import Path

import pytest

from proxies import COMPLETING, FORBIDDEN, SLOW, Proxy, through
from servers import client_programs, programs
from surroundings import Scene, becomes_true
from test_dump import beside


def program(folder: Path, name: str, script: str) -> str:
    """A PATH on which SCRIPT stands before PostgreSQL's program of that name, which it calls."""
    real = client_programs()[0] / name
    return programs(folder / "bin", **{name: f"#!/bin/bash\nreal='{real}'\n{script}\n"})


# ---- What an earlier run left ------------------------------------------------------------------

def test_a_dump_that_cannot_be_finished_keeps_nobody_from_a_new_backup(
        scene: Scene, meddler: Proxy) -> None:
    """Its bucket is gone, which a new backup makes; then it can be finished, too."""
    bucket = f"made-{secrets.token_hex(4)}"
    scene.s3_client.create_bucket(Bucket=bucket)
    scene.settings["AWS_S3_BUCKET_NAME"] = bucket
    meddler.reply(COMPLETING, FORBIDDEN)
    scene.failure(**through(meddler, 0.001))
    [left, journal] = scene.files()
    scene.s3_client.delete_bucket(Bucket=bucket)
    assert "NoSuchBucket" in scene.run("backup", "--resume", status=1).stderr
    ran = scene.run("backup")
    assert re.search(rf"level=warning .*Cannot finish .*{left}.*NoSuchBucket", ran.stderr)
    assert scene.files() == [left, journal]
    scene.run("backup", "--resume")
    listed = scene.s3_client.list_objects_v2(Bucket=bucket)["Contents"]
    assert [item["Key"].rpartition("/")[2] for item in listed] == [
        left, json.loads(ran.stdout)["filename"]]
    assert scene.files() == []


def test_what_is_left_is_not_asked_for_while_another_backup_runs(scene: Scene) -> None:
    folder = os.open(scene.folder, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        said = scene.run("backup", "--resume").stderr
        assert "another backup is running" in said and "level=error" not in said
        assert "another backup is running" in scene.failure()
    finally:
        os.close(folder)


# ---- S3 that shows, or keeps, less than it should ----------------------------------------------

def test_an_object_that_s3_cannot_show_keeps_nobody_from_a_new_backup(
        scene: Scene, meddler: Proxy) -> None:
    old = [scene.backup()["filename"] for _ in range(2)]
    # Else the new one, which does not know that name, may take it, and S3 is asked what is there.
    becomes_true(lambda: time.time() > int(re.findall("[0-9]+", old[1])[0]) + 1)
    meddler.reply(rb"^HEAD \S*" + old[1].encode(), SLOW, times=10**5)
    ran = scene.run("backup", FULL_BACKUPS="1", **through(meddler, 0.001))
    assert sorted(scene.objects()) == [*old, json.loads(ran.stdout)["filename"]]
    assert "Passing over what S3 cannot show" in ran.stderr and "Removing none" in ran.stderr
    # Whoever wants the newest must not be given an older one for it.
    assert "503" in scene.run("list", status=1, **through(meddler, 0.001)).stderr


def test_a_server_that_keeps_no_metadata_gets_one_object_and_is_named(
        scene: Scene, meddler: Proxy) -> None:
    meddler.answer = lambda data: re.sub(rb"(?mi)^x-amz-meta-[^\n]*\n", b"", data)
    assert "keeps no metadata" in scene.failure(**through(meddler, 0.001))
    said = scene.run("backup", "--resume", status=1, **through(meddler, 0.001)).stderr
    assert "keeps no metadata" in said and len(scene.objects()) == 1
    meddler.answer = bytes
    scene.run("backup", "--resume")
    assert len(scene.objects()) == 1 and scene.files() == []


def test_another_ones_backup_that_is_the_same_byte_for_byte_is_another_ones(
        scene: Scene, meddler: Proxy) -> None:
    """Two dumps of one second may be."""
    first: list[str] = []

    def race(data: bytes) -> bytes:
        found = re.match(rb"POST /backup/\S+/(backup_\d+.bak)\?uploadId", data)
        if found and not first:
            first.append(found[1].decode())
            upload = {"Bucket": "backup", "Key": f"{scene.prefix}/{first[0]}"}
            upload["UploadId"] = scene.s3_client.create_multipart_upload(
                **upload, Metadata={"backup-id": "another"})["UploadId"]
            part = scene.s3_client.upload_part(
                **upload, PartNumber=1, Body=(scene.folder / first[0]).read_bytes())
            scene.s3_client.complete_multipart_upload(**upload, MultipartUpload={
                "Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})
        return data

    meddler.request = race
    result = scene.backup(**through(meddler, 0.01))
    assert sorted(scene.objects()) == [*first, result["filename"]]


def test_a_bucket_that_somebody_else_makes_at_the_same_time_will_do(
        scene: Scene, meddler: Proxy) -> None:
    scene.settings["AWS_S3_BUCKET_NAME"] = bucket = f"made-{secrets.token_hex(4)}"
    made: list[str] = []

    def first(data: bytes) -> bytes:
        if data.startswith(f"PUT /{bucket} ".encode()) and not made:
            made.append(scene.s3_client.create_bucket(Bucket=bucket)["Location"])
        return data

    meddler.request = first
    assert scene.backup(**through(meddler, 0.01))["bucket"] == bucket and made


def test_an_s3_that_goes_away_while_old_backups_are_removed_is_waited_for_once(
        scene: Scene, meddler: Proxy) -> None:
    old = [scene.backup()["filename"] for _ in range(3)]
    meddler.reply(rb"^DELETE ", FORBIDDEN)  # which says nothing of the others
    meddler.reply(rb"^DELETE \S*backup_", SLOW, times=10**5)
    result = scene.backup(FULL_BACKUPS="1", **through(meddler, 0.001))
    assert not result["removed"] and sorted(scene.objects()) == [*old, result["filename"]]
    first, second, third = (meddler.seen(rb"^DELETE \S*" + name.encode()) for name in old)
    assert first == third == 1 < second


# ---- The dump ----------------------------------------------------------------------------------

def test_a_dump_that_fails_since_a_table_is_gone_is_made_again_in_any_language(
        scene: Scene, tmp_path: Path) -> None:
    scene.sql("CREATE TABLE dropped AS TABLE t")
    path = program(tmp_path, "pg_dump",
                   '"$real" "$@" 2> >(sed "s/relation.*does not exist/existiert nicht/" >&2)')
    executor = beside(scene, "DROP TABLE dropped", PATH=path, BACKUP_TIME_SCALE="0.05")
    [why] = json.loads("\n".join(executor.out))["made_again"]
    assert "existiert nicht" in why


def test_a_dump_that_fails_with_words_in_another_language_is_made_again(
        scene: Scene, tmp_path: Path) -> None:
    path = program(tmp_path, "pg_dump", f"""[ "$1" = --version ] || [ -e '{tmp_path}/once' ] || {{
        touch '{tmp_path}/once'
        echo 'pg_dump: error: query failed: FEHLER:  Verklemmung entdeckt' >&2; exit 1; }}
exec "$real" "$@\"""")
    [why] = scene.backup(PATH=path, BACKUP_TIME_SCALE="0.01")["made_again"]
    assert "Verklemmung" in why


@pytest.mark.parametrize(("said", "status"), [
    ("FATAL:  es sind bereits zu viele Verbindungen offen", 0),
    ("FATAL:  zu viele Verbindungen von Rolle »x«", 0),
    ('FATAL:  由角色\\"x\\"发起的连接太多了', 0),
    ('FATAL:  password authentication failed for user \\"x\\"', 1),
    ("FATAL:  Passwort-Authentifizierung für Benutzer »x« fehlgeschlagen", 1)])
def test_a_server_that_lets_nobody_in_is_asked_again_in_any_language_unless_that_lasts(
        scene: Scene, tmp_path: Path, said: str, status: int) -> None:
    path = program(tmp_path, "psql", f"""[ -e '{tmp_path}/once' ] || {{ touch '{tmp_path}/once'
        echo 'psql: error: connection to server at "127.0.0.1", port 5432 failed: '"{said}" >&2
        exit 2; }}
exec "$real" "$@\"""")
    ran = scene.run("backup", PATH=path, BACKUP_TIME_SCALE="0.01", status=status)
    assert ("takes no session now, asking again" in ran.stderr) == (status == 0)


def test_a_pg_restore_that_cannot_be_loaded_is_told_as_the_loader_says_it(
        scene: Scene, tmp_path: Path) -> None:
    path = program(tmp_path, "pg_restore", """
        echo "$real: error while loading shared libraries: libpq.so.5: cannot open it" >&2
        exit 127""")
    error = scene.failure(PATH=path)
    assert re.search(r"contents: pg_restore: exit status 127: /\S+: error while.* libpq", error)


def test_what_pg_dump_warns_of_is_in_log_and_result(scene: Scene, tmp_path: Path) -> None:
    path = program(tmp_path, "pg_dump", """"$real" "$@"
[ "$1" = --version ] || cat >&2 << END
pg_dump: warning: there are circular foreign-key constraints on this table:
pg_dump: detail: hypertable
pg_dump: hint: Consider using a full dump instead of a --data-only dump.
pg_dump: warning: there are circular foreign-key constraints among these tables:
pg_dump:   chunk
pg_dump: Consider using a full dump, as 14 has it.
pg_dump: warning: subscriptions not dumped because current user is not a superuser
END""")
    ran = scene.run("backup", PATH=path)
    warnings = [line for line in ran.stderr.splitlines() if "level=warning" in line]
    assert len(warnings) == 1 and "circular" not in warnings[0]
    [warning] = json.loads(ran.stdout)["warnings"]
    assert warning.startswith("pg_dump: warning: subscriptions not dumped because")
    assert warning in warnings[0]


# ---- What is said ------------------------------------------------------------------------------

def test_a_password_that_everybody_guesses_garbles_no_message(scene: Scene) -> None:
    ran = scene.run("backup", VERIFY_DB_PASSWORD="backup", AWS_S3_PREFIX=f"{scene.prefix}/upload")
    assert 'msg="Successfully uploaded backup file"' in ran.stderr and "***" not in ran.stderr


@pytest.mark.parametrize("away", ["DB_PORT", "AWS_S3_ENDPOINT"])
def test_a_check_does_not_call_good_what_it_could_not_look_at(scene: Scene, away: str) -> None:
    scene.backup()
    nowhere = {"DB_PORT": "1", "AWS_S3_ENDPOINT": "127.0.0.1:1"}[away]
    said = scene.run("check", "--max-age", "26", status=1, **{away: nowhere},
                     BACKUP_TIME_SCALE="0.01").stdout
    lines = {name: mark for mark, name in re.findall(r"(?m)^(\S+) +([a-z ]+): ", said)}
    assert lines["newest backup"] == "-" and "no proven backup" not in said
    assert (lines["jobs"] == "-") == (away == "DB_PORT")
    assert "newest backup was not looked at" in said and "has 0" not in said
    assert ("its backups were not looked at" in said) == (away == "DB_PORT")


# ---- Servers -------------------------------------------------------------------------------------

def test_what_a_server_warns_of_at_each_login_is_no_answer(scene: Scene, tmp_path: Path) -> None:
    """Of a collation's version, say, since 15; and libpq, of a PGPASSFILE that others may read."""
    passwords = tmp_path / "pgpass"
    passwords.write_text(f"*:*:*:*:{scene.postgres.password}")
    passwords.chmod(0o644)
    assert scene.backup(PGPASSFILE=str(passwords))["made_again"] == []


def test_several_servers_behind_one_address_share_no_snapshot(scene: Scene, tmp_path: Path) -> None:
    path = program(tmp_path, "pg_dump", """case $* in *--snapshot=*)
    echo 'pg_dump: error: query failed: ERROR:  snapshot "00000003-0000001B-1" does not exist' >&2
    exit 1;; esac
exec "$real" "$@\"""")
    [why] = scene.backup(PATH=path, BACKUP_TIME_SCALE="0.01")["made_again"]
    assert "does not exist" in why


def test_an_odd_journal_keeps_nobody_from_a_new_backup(scene: Scene, meddler: Proxy) -> None:
    meddler.reply(COMPLETING, FORBIDDEN)
    scene.failure(**through(meddler, 0.001))
    [left, journal] = scene.files()
    told = json.loads((scene.folder / journal).read_text())
    (scene.folder / journal).write_text(json.dumps({**told, "attempts": None, "upload": [1]}))
    ran = scene.run("backup")
    assert re.search(rf"level=warning .*Cannot finish .*{left}", ran.stderr)
    assert scene.files() == [left, journal]
