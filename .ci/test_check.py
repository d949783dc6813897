"""Tests of the command check: that it tries what it says, and calls nothing good unseen."""
from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from typing import Any

import pytest

import backup_executor
from colonies import OWNER_KEY, USER_KEY, identity
from messages import next_run
from proxies import COMPLETING, FORBIDDEN, Proxy, through
from restores import RESTORED
from servers import run
from surroundings import EXECUTOR_KEY, GENERATIONS, Generations, Scene, Site, standin
from timescale import Sensors

NOWHERE = {"COLONIES_COLONY_NAME": "nowhere", "COLONIES_COLONY_ID": identity(EXECUTOR_KEY)}


def lines_of(said: str, about: str) -> list[str]:
    """The marks and texts of the lines about something."""
    return [f"{mark} {text}" for mark, text in re.findall(rf"(?m)^(\S+) +{about}: (.*)$", said)]


# ---- Colonies and its crons --------------------------------------------------------------------

@standin(*GENERATIONS)
@pytest.mark.parametrize("settings", [
    {}, NOWHERE, {"COLONIES_COLONY_PRVKEY": USER_KEY}, {"COLONIES_COLONY_PRVKEY": EXECUTOR_KEY}],
    ids=["right", "no such colony", "a member's key", "a stranger's key"])
def test_check_asks_the_colony_whether_its_owners_key_is_that(
        site: Site, settings: dict[str, str]) -> None:
    ran = run({**site.environ(), **settings}, "check")
    [said] = lines_of(ran.stdout, "colonies")
    assert said.startswith("FAIL" if settings else "ok"), said
    assert ran.returncode == int(bool(settings)), ran.stdout
    if settings:
        assert re.search("COLONIES_COLONY_PRVKEY|> does not exist", said)
    asked = {call[1] for call in site.standin.calls}
    assert identity(settings.get("COLONIES_COLONY_PRVKEY", OWNER_KEY)) in asked or "exist" in said
    assert not site.standin.executors and not site.standin.functions


@standin()
def test_check_finds_an_executor_that_nobody_approved(site: Site) -> None:
    alone = {"COLONIES_COLONY_PRVKEY": "", "COLONIES_EXECUTOR_PRVKEY": EXECUTOR_KEY}
    settings = {**site.environ(), **alone}
    assert "FAIL" in lines_of(run(settings, "check").stdout, "colonies")[0]
    site.admit()
    assert "ok" in lines_of(run(settings, "check").stdout, "colonies")[0]
    assert not site.alive.exists()  # which is for `serve` to touch


@standin(*GENERATIONS)
def test_check_names_a_users_key_in_place_of_the_executors(site: Site) -> None:
    for owner in ("", OWNER_KEY):
        settings = {"COLONIES_COLONY_PRVKEY": owner, "COLONIES_EXECUTOR_PRVKEY": USER_KEY}
        ran = run({**site.environ(), **settings}, "check")
        [said] = lines_of(ran.stdout, "colonies")
        assert said.startswith("FAIL") and "a user's key?" in said and ran.returncode == 1


@pytest.mark.parametrize("expression", [
    "0 0 1 * * *", "*/15 0-5/2,7 * ? 1,12 0-6", "59 59 23 31 12 6", "nightly", "0 3 * * *",
    "0 0 24 * * *", "60 0 1 * * *", "0 0 1 0 * *", "0 0 1 * 13 *", "0 0 1 * * 7", "0 0 5-1 * * *",
    "0 0 */0 * * *", "0 0 1-2-3 * * *", "0 0 x * * *", "at 3"])
def test_a_cron_expression_is_wrong_where_the_server_refuses_it(expression: str) -> None:
    try:
        refused = not next_run(expression, datetime.now(timezone.utc))
    except (ValueError, ZeroDivisionError):
        refused = True
    assert bool(backup_executor.cron_fault(expression)) == refused


def test_a_cron_expression_may_have_names_words_and_a_time_zone_as_a_real_server_takes_them(
        ) -> None:
    for right in ("0 0 3 * JAN-mar Mon,fri", "@daily", "TZ=Europe/Stockholm 0 0 1 * * *"):
        assert backup_executor.cron_fault(right) == "", right
    for wrong in ("@nightly", "0 0 3 * * monday", "TZ=Europe/Stockholm 0 1 * * *"):
        assert backup_executor.cron_fault(wrong), wrong


def test_check_names_each_cron_that_no_server_takes_and_what_it_takes(scene: Scene) -> None:
    said = scene.run("check", status=1, BACKUP_CRON="nightly", VERIFY_CRON="0 0 4 * * 0",
                     CHECK_CRON="0 8 * * *").stdout
    [verify, others] = lines_of(said, "crons")
    assert verify == "ok VERIFY_CRON: 0 0 4 * * 0"
    assert re.search("FAIL BACKUP_CRON, 'nightly': it takes six fields .second, minute", others)
    assert "; CHECK_CRON, '0 8 * * *': it takes six fields" in others


# ---- Where a verify restores -------------------------------------------------------------------

def test_check_asks_the_verify_server_for_what_a_verify_takes(
        scene: Scene, generations: Generations) -> None:
    other, role = generations[16], f"{scene.database}_verifier"
    scene.sql("CREATE EXTENSION pg_trgm")
    with other.dropping():
        other.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'v3rify'")
        scene.settings |= {"VERIFY_DB_HOST": "127.0.0.1", "VERIFY_DB_PORT": str(other.port),
                           "VERIFY_DB_USER": role, "VERIFY_DB_PASSWORD": "v3rify"}
        for repair, says in (
                (f"ALTER ROLE {role} CREATEDB", "may not make databases: ALTER ROLE"),
                ("", "lacks: PostgreSQL 17 or later")):
            [said] = lines_of(scene.run("check", status=1).stdout, "verify")
            assert said.startswith("FAIL") and says in said, said
            other.sql(repair)
        other.sql(f"DROP ROLE {role}")
    [said] = lines_of(scene.run("check", status=1).stdout, "verify")
    assert "FAIL" in said and "authentication failed" in said


def test_check_names_extensions_that_the_verifier_may_not_make_and_the_backed_up_server(
        scene: Scene) -> None:
    role = f"{scene.database}_verifier"
    scene.postgres.sql(f"CREATE ROLE {role} LOGIN CREATEDB PASSWORD 'v3rify'")
    scene.settings |= {"VERIFY_DB_HOST": "127.0.0.1", "VERIFY_DB_PORT": scene.settings["DB_PORT"],
                       "VERIFY_DB_USER": role, "VERIFY_DB_PASSWORD": "v3rify"}
    try:
        for extension, status in (("pg_trgm", 0), ("pg_stat_statements", 1)):
            scene.sql(f"CREATE EXTENSION {extension}")  # a trusted one, and one that is not
            said = lines_of(scene.run("check", status=status).stdout, "verify")
            assert ("extension pg_stat_statements" in said[0]) == bool(status), said
            assert status or [line.split()[0] for line in said] == ["note", "ok"]
    finally:
        scene.postgres.sql(f"DROP ROLE {role}")
    [unset] = lines_of(scene.run("check", VERIFY_DB_HOST="").stdout, "verify")
    assert unset.startswith("note VERIFY_DB_HOST is not set")


def test_check_says_that_a_verify_of_timescaledb_takes_a_superuser(
        sensors: Sensors, target: str) -> None:
    role = {"VERIFY_DB_HOST": "127.0.0.1", "VERIFY_DB_PORT": sensors.settings["DB_PORT"],
            "VERIFY_DB_USER": target, "VERIFY_DB_PASSWORD": "v3rify"}
    server = sensors.server
    server.sql(f"""CREATE ROLE {target} LOGIN CREATEDB PASSWORD 'v3rify';
        GRANT pg_read_all_settings TO {target}""")  # it sees that the library is preloaded
    try:
        [said] = lines_of(sensors.run("check", status=1, **role).stdout, "verify")
        assert re.search(r"FAIL .* lacks: TimescaleDB 2\.1\.0, .* or a superuser", said), said
        assert not sensors.run("verify", status=1, **role).stdout
        server.sql(f"ALTER ROLE {target} SUPERUSER")
        assert lines_of(sensors.run("check", **role).stdout, "verify")[-1].startswith("ok")
        assert json.loads(sensors.run("verify", **role).stdout)["verdict"] == RESTORED
    finally:
        server.sql(f"DROP ROLE {target}")


# ---- The bucket, and what waits for it ---------------------------------------------------------

def test_check_says_of_a_bucket_that_is_not_there_that_a_backup_makes_it(scene: Scene) -> None:
    name = scene.prefix.replace("_", "-")
    said = scene.run("check", AWS_S3_BUCKET_NAME=name).stdout
    [line] = lines_of(said, "bucket")
    assert line.startswith("warn") and "no such bucket; the first backup makes it" in line
    assert name not in [each["Name"] for each in scene.s3_client.list_buckets()["Buckets"]]
    assert "no proven backup" in scene.run(
        "check", "--max-age", "26", status=1, AWS_S3_BUCKET_NAME=name).stdout


def test_check_warns_of_a_prefix_under_which_the_server_lists_nothing(scene: Scene) -> None:
    said = scene.run("check", AWS_S3_PREFIX=f"{scene.prefix}\\db").stdout  # "/" to SeaweedFS
    [line, _] = lines_of(said, "bucket")
    assert line.startswith("warn") and "not in its listing: look at AWS_S3_PREFIX" in line


def test_check_names_a_finished_dump_that_waits_for_s3(scene: Scene, meddler: Proxy) -> None:
    meddler.reply(COMPLETING, FORBIDDEN, 9)
    scene.failure(**through(meddler, 0.001))
    [dump, _] = scene.files()
    [said, _] = lines_of(scene.run("check").stdout, "staging volume")
    assert said.startswith("warn") and f"{scene.folder}/{dump}" in said
    assert "`backup --resume` uploads it" in said
    [said, _] = lines_of(scene.run("check", DB_HOST="localhost").stdout, "staging volume")
    assert re.search(r"with the settings of \S+ 127\.0\.0\.1:\d+/", said), said
    scene.run("backup", "--resume")
    assert [line.split()[0] for line in lines_of(scene.run("check").stdout, "staging volume")] == [
        "ok"]


def test_check_can_leave_out_a_staging_volume_that_is_elsewhere(scene: Scene) -> None:
    scene.backup()
    for argument, status, mark in ("--json", 1, "FAIL"), ("--no-volume", 0, "-"):
        said = scene.run("check", "--json", argument, status=status, BACKUP_PATH="/nonexistent")
        assert [line["about"] for line in json.loads(said.stdout) if line["mark"] == mark][:1] == [
            "staging volume"]


# ---- What was not looked at --------------------------------------------------------------------

def test_a_check_without_s3_says_nothing_of_which_jobs_meet_a_dump(
        sensors: Sensors) -> None:
    away = {"AWS_S3_ENDPOINT": "127.0.0.1:1", "BACKUP_TIME_SCALE": "0.01"}
    said = sensors.run("check", status=1, **away).stdout
    assert [line.split()[0] for about in ("jobs", "newest backup")
            for line in lines_of(said, about)] == ["-", "-"]
    assert "starts while" not in said
    said = sensors.run("check", AWS_S3_PREFIX="another").stdout
    assert lines_of(said, "jobs")[-1].startswith("- not looked at")  # no dump is known


def test_a_check_by_a_pg_dump_that_is_too_old_does_not_say_that_the_database_is_away(
        scene: Scene) -> None:
    scene.given_backup()
    said = scene.run("check", status=1, clients=16).stdout
    assert "older than the server" in lines_of(said, "database")[0]
    assert "did not answer" not in said and "no proven backup" not in said
    assert lines_of(said, "newest backup")[0].startswith("- not looked at")


def test_check_fails_where_the_role_may_not_read_all_that_pg_dump_does(scene: Scene) -> None:
    role = f"{scene.database}_reader"
    scene.sql(f"""CREATE ROLE {role} LOGIN PASSWORD 'word'; CREATE SCHEMA s; CREATE SEQUENCE s.q;
        CREATE TABLE s.mine (); ALTER TABLE s.mine ENABLE ROW LEVEL SECURITY;
        CREATE VIEW s.v AS SELECT; CREATE EXTENSION pg_trgm SCHEMA s;
        CREATE TABLE s.member (); ALTER EXTENSION pg_trgm ADD TABLE s.member""")
    reader = {"DB_USER": role, "DB_PASSWORD": "word"}
    try:
        for repair, lacks in (
                ("", "public.t, s.mine, s.q"), (f"GRANT SELECT ON t TO {role}", "s.mine, s.q"),
                (f"GRANT SELECT ON s.mine, s.q TO {role}", "s.mine, s.q"),
                (f"GRANT USAGE ON SCHEMA s TO {role}", "s.mine")):
            scene.sql(repair)
            [said] = lines_of(scene.run("check", status=1, **reader).stdout, "contents")
            start, _, names = said.rpartition(": ")
            assert start == f"FAIL {role} may not read all of these, so pg_dump fails"
            assert sorted(names.split(", ")) == sorted(lacks.split(", "))
            scene.failure(**reader)
        scene.sql(f"ALTER ROLE {role} BYPASSRLS")
        [said] = lines_of(scene.run("check", **reader).stdout, "contents")
        assert said.startswith("ok") and scene.backup(**reader)
    finally:
        scene.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_check_counts_the_databases_that_a_backup_counts_or_none(scene: Scene) -> None:
    others = scene.backup()["other_databases"]  # templates, as this server has one, are none
    [said] = lines_of(scene.run("check").stdout, "left out")
    assert f"the server's {others} other database" in said
    [said] = lines_of(scene.run("check", status=1, DB_PORT="1").stdout, "left out")
    assert said.startswith("- not looked at")


def test_check_calls_a_bucket_without_a_backup_a_note(scene: Scene) -> None:
    said = scene.run("check").stdout
    assert lines_of(said, "newest backup") == ["note no proven backup"]
    assert lines_of(said, "staging volume")[-1].endswith("; no backup is there")
    scene.backup()
    assert re.search(r"has [1-9]\d+$", lines_of(scene.run("check").stdout, "staging volume")[-1])


# ---- JSON, and settings that nobody reads ------------------------------------------------------

def test_check_tells_the_same_as_json(scene: Scene) -> None:
    scene.given_backup()
    for settings, status in (({}, 0), ({"BACKUP_PATH": "/missing"}, 1)):
        said = scene.run("check", status=status, **settings).stdout
        told: list[dict[str, Any]] = json.loads(
            scene.run("check", "--json", status=status, **settings).stdout)
        assert [f"{each['mark']:<5} {each['about']}" for each in told] == [
            line.partition(":")[0] for line in said.splitlines()]
        assert all(set(each) == {"mark", "about", "text"} and each["text"] for each in told)
        assert ("FAIL" in [each["mark"] for each in told]) == bool(status)


OTHERS = dict.fromkeys((
    "COLONIES_SERVICE_HOST", "COLONIES_SERVER_SERVICE_HOST", "COLONIES_SERVER_PORT_443_TCP",
    "DB_PORT_5432_TCP_PORT", "VERIFY_DB_SERVICE_PORT", "KUBERNETES_SERVICE_HOST", "PGDATABASE",
    "PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL_S3",
    "AWS_BUCKET_NAME", "AWS_S3_USE_ARN_REGION", "COLONIES_SERVER_ID", "COLONIES_SERVER_PRVKEY",
    "COLONIES_SERVER_TLSKEY", "COLONIES_SERVER_HTTP_HOST", "COLONIES_TLSCERT", "COLONIES_VERBOSE",
    "COLONIES_EXECUTOR_ID", "COLONIES_DB_HOST", "COLONIES_MONITOR_PORT", "BACKUP_TIME_SCALE"), "1")


def test_check_warns_of_what_is_nearly_a_setting_and_of_nobody_elses(scene: Scene) -> None:
    wrong = {"FULL_BACKUP": "5", "DB_DATBASE": "x", "BD_HOST": "y", "DB_PASWORD_FILE": "/z"}
    said = lines_of(scene.run("check", **wrong, **OTHERS).stdout, "settings")
    warned = [line for line in said if line.startswith("warn")]
    assert sorted(re.findall(r"warn (\w+) is no setting.*: is (\w+) meant", "\n".join(warned))) == [
        ("BD_HOST", "DB_HOST"), ("DB_DATBASE", "DB_DATABASE"),
        ("DB_PASWORD_FILE", "DB_PASSWORD_FILE"), ("FULL_BACKUP", "FULL_BACKUPS")]
    assert len(warned) == len(wrong)


def test_who_misspells_a_setting_that_is_needed_is_told_so(scene: Scene) -> None:
    error = scene.failure(status=2, AWS_S3_BUCKET_NAME="", AWS_S3_BUKET_NAME="backup")
    assert "AWS_S3_BUCKET_NAME is missing" in error
    assert "AWS_S3_BUKET_NAME is no setting, nobody reads it: is AWS_S3_BUCKET_NAME meant?" in error
