"""Tests of the server's roles: a backup brings them, keeps them, takes them with it, and back."""
from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import backup_executor
from environment import POSTGRESQL
from proxies import COMPLETING, FORBIDDEN, SLOW, Proxy, http_answer, through
from readme import least_privileges
from restores import identifier, refused, restored, verifying
from servers import (
    Executor,
    Postgres,
    RcloneS3,
    SeaweedFS,
    client_programs,
    error_lines,
    programs,
    server_folder,
    temporary_folder,
)
from surroundings import FILLED, Generations, Scene, sha256_of

PEOPLE = """
CREATE ROLE app LOGIN PASSWORD 'apps word' CONNECTION LIMIT 7 VALID UNTIL '2099-01-01 00:00+00';
CREATE ROLE owner LOGIN CREATEDB PASSWORD 'owners word';
CREATE ROLE "odd ""Group"" TO; x" NOINHERIT;
CREATE ROLE stranger LOGIN PASSWORD 'strangers word';
COMMENT ON ROLE app IS E'it''s\\n-- \\\\ of; "ours"';
ALTER ROLE app SET work_mem = '7MB';
ALTER ROLE app SET search_path = 'a', "b c";
ALTER ROLE app SET "app.jwt_secret" = 'hidden ''value';
GRANT "odd ""Group"" TO; x" TO app WITH ADMIN OPTION;
GRANT "odd ""Group"" TO; x" TO owner GRANTED BY app;
GRANT app TO stranger;
GRANT pg_monitor TO "odd ""Group"" TO; x";
ALTER TABLE t OWNER TO owner; GRANT SELECT ON t TO app;
"""
GROUP = 'odd "Group" TO; x'
ROLES = """SELECT json_object_agg(rolname, json_build_array(rolsuper, rolinherit, rolcreaterole,
    rolcreatedb, rolcanlogin, rolreplication, rolbypassrls, rolconnlimit, rolpassword,
    rolvaliduntil AT TIME ZONE 'UTC', shobj_description(oid, 'pg_authid'), (SELECT setconfig
    FROM pg_db_role_setting WHERE setrole = a.oid AND setdatabase = 0), (SELECT json_agg(
    json_build_array(roleid::regrole, admin_option) ORDER BY roleid::regrole::text)
    FROM (SELECT DISTINCT roleid, admin_option FROM pg_auth_members WHERE member = a.oid) m)))
    FROM pg_authid a WHERE rolname !~ '^pg_'"""
HASH = r"SCRAM-SHA-256\$|md5[0-9a-f]{32}"


def as_backup(scene: Scene) -> dict[str, str]:
    """The role of README's least privileges, made at the scene's server."""
    sql = "".join(least_privileges("sql")[:1]).replace("sensors", identifier(scene.database))
    name = f"backup_{secrets.token_hex(4)}"
    scene.sql(re.sub(r"\bbackup\b", name, sql))
    return {"DB_USER": name, "DB_PASSWORD": "change me"}


@pytest.fixture(scope="module")
def lost() -> Iterator[Postgres]:
    """A server with a database and roles of its own."""
    with server_folder() as folder, Postgres(folder / "postgres") as server:
        server.sql("CREATE DATABASE shop; CREATE DATABASE other")
        server.sql(f"{FILLED}; {PEOPLE}", "shop")
        yield server


@pytest.fixture
def shop(lost: Postgres, s3: SeaweedFS) -> Iterator[Scene]:
    """That database, whose backups bring roles."""
    with temporary_folder() as folder:
        scene = Scene(lost, s3, folder, "shop", f"shop_{secrets.token_hex(4)}")
        scene.settings["BACKUP_ROLES"] = "auto"
        yield scene


def beside(name: str) -> str:
    """The name of an archive's roles; theirs is their own."""
    return re.sub("[.]bak$", ".roles.sql", name)


def whole(scene: Scene, *names: str) -> None:
    """Assert that these backups, each with its roles, and nothing else is there."""
    objects = scene.objects()
    assert sorted(objects) == sorted([*names, *map(beside, names)])
    for name in names:
        archive, roles = ({key.lower(): text for key, text in scene.head(each)["Metadata"].items()}
                          for each in (name, beside(name)))
        assert sha256_of(objects[name]) == archive["sha256"]
        assert sha256_of(objects[beside(name)]) == archive["roles-sha256"] == roles["sha256"]
        assert archive["backup-id"] == roles["backup-id"]
        assert b"CREATE ROLE app;" in objects[beside(name)]


def warnings(ran: Any) -> list[str]:
    return [line for line in ran.stderr.splitlines() if "level=warning" in line]


# ---- A backup ----------------------------------------------------------------------------------

@pytest.mark.parametrize("version", sorted({*POSTGRESQL, 17}))
def test_the_least_role_reads_the_roles_with_their_passwords_by_the_database_that_it_has(
        version: int, generations: Generations, s3: SeaweedFS) -> None:
    server, name = generations[version], f"x=y --{secrets.token_hex(4)}"
    with temporary_folder() as folder, server.dropping():
        server.run("createdb", "--", name)
        scene = Scene(server, s3, folder, name, f"roles_{version}_{secrets.token_hex(4)}")
        scene.sql(FILLED)
        scene.settings |= {"BACKUP_ROLES": "auto", "LOG_LEVEL": "debug", **as_backup(scene)}
        before = len(server.program.lines) if server.program else 0
        for _ in range(1 + (version == 17)):  # those of an odd name go, too
            ran = scene.run("backup", FULL_BACKUPS="1")
        result = json.loads(ran.stdout)
        assert not warnings(ran)
        [archive, roles] = sorted(scene.objects())
        said = scene.run("check").stdout
        role = scene.settings["DB_USER"]
        scene.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")
        assert result["roles"] == f"{scene.prefix}/{roles}" and roles == beside(archive)
        assert result["role_passwords"] is True
        assert re.search(rf"(?m)^ALTER ROLE {role} .*PASSWORD '({HASH})",
                         scene.objects()[roles].decode())
        assert result["other_databases"] == int(server.sql("SELECT count(*) FROM pg_database WHERE"
                                                           " NOT datistemplate")) - 1
        assert re.search(r"ok +left out: .* other databases?; each brings its \d+ roles, "
                         "with their passwords", said)
        assert not re.search(HASH, ran.stderr) and "--database= " in ran.stderr
        assert not scene.files()
        assert server.program and "pg_authid" not in "\n".join(server.program.lines[before:])


def test_roles_are_of_their_archive_and_for_nobody_else_on_the_volume(
        shop: Scene, meddler: Proxy) -> None:
    meddler.reply(COMPLETING, FORBIDDEN)
    shop.failure(**through(meddler, 0.01))
    [name, journal] = shop.files()
    kept = (shop.folder / journal).read_text()
    assert re.search(HASH, kept) and os.stat(shop.folder / journal).st_mode & 0o777 == 0o600
    shop.run("backup", "--resume", BACKUP_ROLES="off")
    whole(shop, name)
    assert shop.files() == []
    [row] = json.loads(shop.run("list", "--json").stdout)
    assert row["roles"] is True
    assert re.search(HASH, shop.objects()[beside(name)].decode())


def test_no_hash_is_left_on_the_volume_while_a_process_waits_to_be_closed(shop: Scene) -> None:
    shop.run("backup", BACKUP_PROCESS=json.dumps({"process": "p1", "starttime": ""}))
    [journal] = shop.files()
    told = (shop.folder / journal).read_text()
    assert not re.search(HASH, told) and json.loads(told)["roles"].endswith(".roles.sql")


@pytest.mark.parametrize("how", ["no-passwords", "a role that may not"])
def test_roles_come_without_passwords_where_these_are_not_wanted_or_not_readable(
        shop: Scene, how: str) -> None:
    settings = {"BACKUP_ROLES": how}
    if how != "no-passwords":
        settings = {"DB_USER": "owner", "DB_PASSWORD": "owners word"}
        shop.settings["PGDATABASE"] = "postgres"  # which nobody asks
    assert shop.postgres.program
    before = len(shop.postgres.program.lines)
    ran = shop.run("backup", **settings)
    result = json.loads(ran.stdout)
    assert result["role_passwords"] is False and not warnings(ran)
    whole(shop, result["filename"])
    assert not re.search(HASH, shop.objects()[beside(result["filename"])].decode())
    assert "pg_authid" not in "\n".join(shop.postgres.program.lines[before:])
    assert "roles, without their passwords" in shop.run("check", **settings).stdout


@pytest.mark.parametrize("how", ["off", "missing", "refused"])
def test_a_backup_does_without_roles_and_says_so(shop: Scene, tmp_path: Path, how: str) -> None:
    folder, settings = client_programs()[0], {"BACKUP_ROLES": "auto"}
    if how == "off":
        settings = {"BACKUP_ROLES": "off", "PATH": programs(
            tmp_path / "bin", pg_dumpall="#!/bin/sh\ntouch $HOME/called; kill $PPID")}
    elif how == "missing":
        (tmp_path / "bin").mkdir()
        for program in ("pg_dump", "pg_restore", "psql"):
            (tmp_path / "bin" / program).symlink_to(folder / program)
        settings["PATH"] = str(tmp_path / "bin")
    else:
        settings["PATH"] = programs(tmp_path / "bin", pg_dumpall="""#!/bin/sh
            echo CREATE ROLE half\\;; echo "not for $PGUSER" >&2; exit 1""")
    ran = shop.run("backup", **settings)
    result = json.loads(ran.stdout)
    assert (result["roles"], result["role_passwords"], result["other_databases"]) == (None, None, 2)
    assert list(shop.objects()) == [result["filename"]]
    assert "roles-sha256" not in shop.head(result["filename"])["Metadata"]
    said = {"missing": "No such file", "refused": "not for postgres"}.get(how)
    assert len(warnings(ran)) == (said is not None)
    assert said is None or said in warnings(ran)[0]
    [line] = re.findall("(?m)^.* left out: .*", shop.run("check", **settings).stdout)
    assert line.startswith("ok" if how == "off" else "warn") and (said or "BACKUP_ROLES") in line
    assert json.loads(shop.run("list", "--json").stdout)[0]["roles"] is False


def test_a_session_for_the_roles_is_waited_for_once_not_for_each_way_to_read_them(
        shop: Scene, tmp_path: Path) -> None:
    tried = tmp_path / "tried"
    path = programs(tmp_path / "bin", pg_dumpall=f"""#!/bin/sh
        echo "$*" >> '{tried}'
        echo 'pg_dumpall: error: could not connect to database "x"' >&2; exit 1""")
    ran = shop.run("backup", PATH=path, BACKUP_ROLES="auto", BACKUP_TIME_SCALE="0.001")
    assert "could not connect" in warnings(ran)[-1]
    assert len(tried.read_text().splitlines()) == 1 + len(backup_executor.PAUSES)
    assert list(shop.objects()) == [json.loads(ran.stdout)["filename"]]


def test_what_pg_dumpall_warns_of_is_in_the_log(shop: Scene, tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", pg_dumpall=f"""#!/bin/sh
        echo 'pg_dumpall: warning: a grant is left out' >&2
        exec '{client_programs()[0]}/pg_dumpall' "$@" """)
    ran = shop.run("backup", PATH=path)
    whole(shop, json.loads(ran.stdout)["filename"])
    [line] = warnings(ran)
    assert "a grant is left out" in line


def test_roles_that_a_journal_has_no_room_for_cost_no_backup(
        shop: Scene, tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", pg_dumpall="""#!/bin/sh
        yes -- '-- 🐌' | head -n 800000""")  # 6,400,000 bytes of 4,000,000 characters
    ran = shop.run("backup", PATH=path)
    assert list(shop.objects()) == [json.loads(ran.stdout)["filename"]]
    [line] = warnings(ran)
    assert "its roles take more than" in line


# ---- Names, and S3 -----------------------------------------------------------------------------

def test_roles_of_somebody_else_are_not_overwritten_and_their_second_is_taken(shop: Scene) -> None:
    start = int(time.time())
    others = {f"backup_{start + i}.roles.sql": f"other {i}".encode() for i in range(60)}
    for i, (name, body) in enumerate(others.items()):
        shop.put(name, body, **({"backup-id": "theirs"} if i % 2 else {}))
    result = shop.backup(FULL_BACKUPS="1")
    assert result["filename"] == f"backup_{start + 60}.bak"
    objects = shop.objects()
    assert {name: objects.pop(name) for name in others} == others
    assert sorted(objects) == [result["filename"], beside(result["filename"])]


@pytest.mark.parametrize("ending", ["roles.sql", "bak"])
def test_a_name_that_is_taken_at_the_last_moment_is_left_with_archive_and_roles(
        shop: Scene, meddler: Proxy, ending: str) -> None:
    taken: list[str] = []
    last = {"roles.sql": rb"PUT \S*/(backup_\d+)\.roles", "bak": rb"POST \S*/(\w+).bak\?uploadId"}

    def race(data: bytes) -> bytes:
        if (found := re.match(last[ending], data)) and not taken:
            taken.append(f"{found[1].decode()}.{ending}")
            shop.put(taken[0], b"first")
        return data

    meddler.request = race
    result = shop.backup(**through(meddler))
    [name] = taken
    assert shop.objects()[name] == b"first"
    assert int(result["filename"][7:-4]) == int(name[7:].partition(".")[0]) + 1
    shop.s3_client.delete_object(Bucket="backup", Key=f"{shop.prefix}/{name}")
    whole(shop, result["filename"])
    assert not shop.uploads() and not shop.files()


@pytest.mark.parametrize("answer, times", [
    (http_answer("503 Slow Down", "SlowDown"), 2), (http_answer("409 Conflict", "Conflict"), 2),
    (http_answer("501 Not Implemented", "NotImplemented"), 1)], ids=["503", "409", "501"])
def test_roles_that_s3_does_not_take_at_once_are_sent_again(
        shop: Scene, meddler: Proxy, answer: bytes, times: int) -> None:
    put = rb"^PUT \S*roles\.sql"
    meddler.reply(put, answer, times)
    whole(shop, shop.backup(**through(meddler, 0.05))["filename"])
    sent = [each for each in meddler.requests if re.match(put, each)]
    assert len(sent) == times + 1 and all(re.search(rb"(?im)^content-md5: ", each) for each in sent)
    conditions = [bool(re.search(rb"(?im)^if-none-match: \*\r$", each)) for each in sent]
    assert conditions == [True] * times + [b"501" not in answer]


@pytest.mark.parametrize("says", ["cannot put it", "7 bytes"])
def test_a_server_that_has_not_what_it_took_costs_the_roles_and_no_backup(
        shop: Scene, meddler: Proxy, says: str) -> None:
    if says == "7 bytes":  # of some thousand; an archive has more
        meddler.answer = lambda head: re.sub(
            rb"(?im)^(content-length: )\d{4}\r", rb"\g<1>7\r", head)
    else:
        meddler.reply(rb"^PUT \S*roles\.sql", http_answer("200 OK", ""), 10**5)
    ran = shop.run("backup", **through(meddler, 0.001))
    result = json.loads(ran.stdout)
    assert (result["roles"], result["role_passwords"]) == (None, None)
    assert not shop.files() and "roles-sha256" not in shop.head(result["filename"])["Metadata"]
    assert (beside(result["filename"]) in shop.objects()) == (says == "7 bytes")
    assert any(f"roles.sql: {says}" in line for line in warnings(ran))


def test_roles_of_others_under_every_name_end_the_search_for_one(
        shop: Scene, meddler: Proxy) -> None:
    theirs = http_answer("200 OK", "").replace(b"\r\n", b"\r\nx-amz-meta-backup-id: theirs\r\n", 1)
    meddler.reply(rb"^HEAD \S*roles\.sql", theirs, 10**5)
    assert "is taken, too" in shop.failure(**through(meddler))
    assert not shop.objects() and len(shop.files()) == 2


def test_roles_that_another_executor_overwrites_are_not_said_to_be_ours(
        shop: Scene, meddler: Proxy) -> None:
    def overwrite(data: bytes) -> bytes:
        if re.match(COMPLETING, data):
            [name] = shop.objects()
            shop.put(name, b"theirs", **{"backup-id": "theirs"})
        return data

    meddler.request = overwrite
    ran = shop.run("backup", **through(meddler))
    result = json.loads(ran.stdout)
    assert (result["roles"], result["role_passwords"]) == (None, None)
    assert shop.objects()[beside(result["filename"])] == b"theirs" and not shop.files()
    [line] = warnings(ran)
    assert "were overwritten" in line and result["filename"] in line


def test_roles_whose_answer_is_lost_are_ours(shop: Scene, meddler: Proxy) -> None:
    meddler.lose(rb"^PUT \S*roles\.sql")
    whole(shop, shop.backup(**through(meddler, 0.05))["filename"])


def test_a_policy_for_archives_alone_costs_the_roles_and_no_backup(
        shop: Scene, meddler: Proxy) -> None:
    meddler.reply(rb"^PUT \S*roles\.sql", FORBIDDEN)
    ran = shop.run("backup", **through(meddler))
    result = json.loads(ran.stdout)
    assert result["roles"] is None and list(shop.objects()) == [result["filename"]]
    assert result["role_passwords"] is None
    assert "roles-sha256" not in shop.head(result["filename"])["Metadata"]
    [line] = warnings(ran)
    assert "AccessDenied" in line and "roles" in line


def test_roles_that_are_off_and_may_not_be_looked_at_are_no_warning(
        shop: Scene, meddler: Proxy) -> None:
    meddler.reply(rb"^\w+ \S*roles\.sql", FORBIDDEN, 10**5)
    settings = {"BACKUP_ROLES": "off", "FULL_BACKUPS": "1", **through(meddler)}
    shop.backup(**settings)
    ran = shop.run("backup", **settings)
    assert len(json.loads(ran.stdout)["removed"]) == 1 and not warnings(ran)


def test_roles_that_vanish_before_their_archive_is_there_are_put_again(
        shop: Scene, meddler: Proxy) -> None:
    def vanish(data: bytes) -> bytes:
        if re.match(COMPLETING, data):
            meddler.request = bytes
            [name] = shop.objects()
            shop.s3_client.delete_object(Bucket="backup", Key=f"{shop.prefix}/{name}")
        return data

    meddler.request = vanish
    whole(shop, shop.backup(**through(meddler))["filename"])
    assert meddler.request is bytes


def test_an_archive_that_is_not_what_was_sent_goes_with_its_roles(
        shop: Scene, meddler: Proxy) -> None:
    meddler.answer = lambda head: re.sub(
        rb"(?im)^(content-length: )\d{5}\r", rb"\g<1>99999\r", head)
    assert "99999 bytes" in shop.failure(**through(meddler, 0.01))
    assert not shop.objects() and meddler.seen(rb"^PUT \S*roles\.sql")
    shop.run("backup", "--resume")
    whole(shop, min(shop.objects()))


def test_roles_wait_for_an_s3_that_is_away(shop: Scene, meddler: Proxy) -> None:
    meddler.reply(rb"^PUT \S*roles\.sql", http_answer("503 Slow Down", "SlowDown"), 10**5)
    assert "roles.sql" in shop.failure(**through(meddler, 0.001))
    assert not shop.objects() and len(shop.files()) == 2
    meddler.clear()
    [name, _] = shop.files()
    shop.run("backup", "--resume")
    whole(shop, name)


def test_a_kept_dump_whose_prefix_changed_takes_its_roles_along(
        shop: Scene, meddler: Proxy) -> None:
    meddler.reply(rb"^POST ", FORBIDDEN)
    shop.failure(**through(meddler))
    assert list(shop.objects()) == [beside(shop.files()[0])]
    old, new = shop.prefix, f"{shop.prefix}-new"
    shop.settings["AWS_S3_PREFIX"] = new
    [name, _] = shop.files()
    shop.run("backup", "--resume")
    assert not shop.objects()
    shop.prefix = new
    whole(shop, name)
    assert old != new


def test_an_awkward_s3_server_has_roles_too(shop: Scene, tmp_path: Path) -> None:
    with RcloneS3(tmp_path / "s3") as s3:
        there = Scene(shop.postgres, s3, shop.folder, "shop", "deep/er")
        there.settings |= {"BACKUP_ROLES": "auto", "FULL_BACKUPS": "1"}
        there.backup()
        whole(there, there.backup()["filename"])


# ---- Crashes -----------------------------------------------------------------------------------

def killed(scene: Scene, index: int, delivered: bool) -> bool:
    """kill -9 at the INDEXth request from the upload's first on; False: there was none.

    DELIVERED: when it was, and of those alone that change what is there.
    """
    count, executors = itertools.count(), list[Executor]()

    def which(request: bytes) -> bool:
        begun.append(bool(re.match(b"P" if delivered else b"HEAD ", request)))
        counts = begun[-1] if delivered else any(begun)
        return counts and next(count) == index

    def kill(_: bytes) -> Iterator[bytes]:
        executors[0].process.kill()
        executors[0].wait()
        return iter(())

    begun = list[bool]()
    with Proxy(scene.s3.port) as proxy:
        (proxy.change if delivered else proxy.reply)(which, kill)
        with contextlib.ExitStack() as stack:
            executors.append(stack.enter_context(scene.start(**through(proxy))))
            return executors[0].wait() != 0


@pytest.mark.parametrize("delivered", [False, True], ids=["before", "after"])
def test_a_crash_at_any_request_leaves_one_backup_with_its_roles(
        lost: Postgres, s3: SeaweedFS, delivered: bool) -> None:
    for index in itertools.count():
        with temporary_folder() as folder:
            scene = Scene(lost, s3, folder, "shop", f"crash_{secrets.token_hex(4)}")
            scene.settings["BACKUP_ROLES"] = "auto"
            if not killed(scene, index, delivered):
                break
            objects = scene.objects()
            assert {beside(name) for name in objects} <= {*objects}  # none is without its roles
            scene.run("backup", "--resume", BACKUP_ROLES="off")
            [name, _] = sorted(scene.objects())
            whole(scene, name)
            assert scene.files() == []
    assert index >= (4 if delivered else 13)


# ---- Retention ---------------------------------------------------------------------------------

def test_retention_removes_roles_with_their_archive_and_never_before(
        shop: Scene, meddler: Proxy) -> None:
    first = shop.backup(FULL_BACKUPS="1")["filename"]
    meddler.reply(rb"^DELETE \S*\.bak", FORBIDDEN)
    second = shop.backup(FULL_BACKUPS="1", **through(meddler))["filename"]
    whole(shop, first, second)
    result = shop.backup(FULL_BACKUPS="1", BACKUP_ROLES="off")  # they go all the same
    assert sorted(map(os.path.basename, result["removed"])) == [first, second]
    assert list(shop.objects()) == [result["filename"]]
    order = [each.split()[1].decode() for each in meddler.requests if each.startswith(b"DELETE")]
    assert [os.path.basename(path).partition("?")[0] for path in order] == [first]


@contextlib.contextmanager
def days_later(meddler: Proxy) -> Iterator[dict[str, str]]:
    """Settings of a backup by whose S3 all that is listed is days old."""
    meddler.answer = lambda head: re.sub(
        rb"(?im)^(last-modified: )[^\r]*", rb"\1Mon, 01 Jan 2035 00:00:00 GMT", head)
    yield through(meddler)
    meddler.answer = bytes


def test_roles_that_lost_their_archive_go_when_no_upload_may_be_under_way(
        shop: Scene, meddler: Proxy) -> None:
    first = shop.backup()["filename"]
    metadata, body = shop.head(beside(first))["Metadata"], shop.objects()[beside(first)]
    ours = [beside(f"backup_{number}.bak") for number in (5, 10**6)] + ["backup_6.roles.sql.age"]
    for number, name in enumerate(ours):
        shop.put(name, body, **{**metadata, "backup-id": str(number)})
    shop.put("backup_10.bak", b"another's", **{"backup-id": "another"})
    shop.put(beside("backup_10.bak"), body, **{**metadata, "backup-id": "lost its archive"})
    theirs = {"database": "another", "system-identifier": "1", "backup-id": ""}
    others = {f"backup_{number}.roles.sql": {**metadata, name: text}
              for number, (name, text) in enumerate(theirs.items(), 20)}
    others |= {"backup_30.roles.sql": {}, "backup_31.roles.sqlx": metadata,
               "backup_x.roles.sql": metadata, "roles.sql": metadata,
               "backup_32xroles.sql": metadata}
    for name, known in others.items():
        shop.put(name, body, **known)
    before = shop.objects()
    second = shop.backup(**through(meddler))["filename"]
    assert set(before) < set(shop.objects())  # they may be of an upload that is under way
    with days_later(meddler) as settings:
        hidden = first.replace("bak", "bax").encode()  # what a listing lacks may be there
        meddler.other = lambda data: data.replace(first.encode(), hidden)
        ran = shop.run("backup", **settings)
        meddler.other = bytes
        third = json.loads(ran.stdout)["filename"]
    gone = {*before} - {*shop.objects()}
    assert gone == {*ours}
    assert set(shop.objects()) - set(before) == {each for name in (second, third)
                                                 for each in (name, beside(name))}
    for name in gone:
        assert re.search(rf"level=info .*Key={shop.prefix}/{name}", ran.stderr)
    [line] = warnings(ran)  # of two, since those with metadata are somebody's
    assert "roles without metadata" in line and "Objects=2" in line


@pytest.mark.parametrize("refused", ["HEAD", "DELETE"])
def test_roles_that_cannot_be_removed_are_a_warning_and_go_another_time(
        shop: Scene, meddler: Proxy, refused: str) -> None:
    first = shop.backup()["filename"]
    meddler.reply(rf"^{refused} \S*/{beside(first)}".encode(), FORBIDDEN)
    ran = shop.run("backup", FULL_BACKUPS="1", **through(meddler))
    second = json.loads(ran.stdout)["filename"]
    assert any("Forbidden" in line or "AccessDenied" in line for line in warnings(ran))
    assert set(shop.objects()) == {beside(first), second, beside(second)}
    with days_later(meddler) as settings:
        whole(shop, shop.backup(FULL_BACKUPS="1", **settings)["filename"])


def test_an_s3_that_is_away_when_old_backups_are_to_go_is_waited_for_once(
        shop: Scene, meddler: Proxy) -> None:
    def listing(request: bytes) -> bool:
        return b"list-type=2" in request and meddler.seen(COMPLETING) > 0

    meddler.reply(listing, SLOW, 10**5)
    ran = shop.run("backup", **through(meddler, 0.001))
    whole(shop, json.loads(ran.stdout)["filename"])
    [line] = [each for each in warnings(ran) if "away" not in each]
    assert "Removing none: cannot list them" in line


def test_roles_whose_metadata_are_forgotten_stay_and_a_warning_says_so(shop: Scene) -> None:
    first = shop.backup()["filename"]
    shop.put(beside(first), shop.objects()[beside(first)])
    ran = shop.run("backup", FULL_BACKUPS="1")
    second = json.loads(ran.stdout)["filename"]
    assert set(shop.objects()) == {beside(first), second, beside(second)}
    [line] = warnings(ran)
    assert "roles without metadata" in line and f"{shop.prefix}/{beside(first)}" in line


# ---- verify and restore ------------------------------------------------------------------------

def test_verify_looks_at_the_roles(shop: Scene) -> None:
    name = shop.backup()["filename"]
    report = json.loads(shop.run("verify").stdout)
    assert (report["verdict"], report["roles"]) == ("readable", "checked")
    assert "roles, other" not in str(report["not_proven"])
    shop.put(beside(name), b"CREATE ROLE app SUPERUSER;")
    for _ in range(2):
        ran = shop.run("verify", status=1, **verifying(shop.postgres))
        report = json.loads(ran.stdout)
        assert report["step"] == "roles" and report["rows"] == {"public.t": 500}
        assert re.match(f"failed: .*{beside(name)} is gone or damaged", report["verdict"])
        error = refused(shop, "latest", "--database", "again", "--roles")
        assert f"{beside(name)} is gone or damaged" in error
        shop.s3_client.delete_object(Bucket="backup", Key=f"{shop.prefix}/{beside(name)}")
    bare = shop.backup(BACKUP_ROLES="off")["filename"]
    report = json.loads(shop.run("verify").stdout)
    assert (report["verdict"], report["roles"]) == ("readable", "absent")
    assert "what no dump holds: other databases, roles" in report["not_proven"]
    assert "brings no roles" in refused(shop, bare, "--database", "again", "--roles")
    shop.put(name, shop.objects()[name])  # as what copies objects without their metadata does
    assert f"/{beside(name)}? psql" in refused(shop, name, "--database", "again", "--roles")
    ran = shop.run("restore", "--file", "/dev/null", "--database", "x", "--roles", status=2)
    assert "--roles" in ran.stderr and not ran.stdout


def at(server: Postgres) -> dict[str, str]:
    """Settings of a restore there."""
    return {"DB_PORT": str(server.port), "DB_PASSWORD": server.password}


def roles(server: Postgres) -> dict[str, Any]:
    return json.loads(server.sql(ROLES))


@pytest.mark.parametrize("version", [15, 16, 17])
def test_the_roles_that_a_server_lacks_are_made_and_no_others(shop: Scene, version: int) -> None:
    name, theirs = shop.backup()["filename"], roles(shop.postgres)
    with server_folder() as folder, Postgres(folder / "new", version) as server:
        server.sql("CREATE ROLE stranger PASSWORD 'of here'; CREATE ROLE local")
        before = roles(server)
        ran = restored(shop, name, "--database", "shop", "--roles", **at(server),
                       status=int(version < 16))  # which knows no grant without INHERIT
        made = roles(server)
        assert "Making the roles" in ran.stderr
        if version < 16:
            [line] = error_lines(ran.stderr)
            assert "GRANT pg_monitor TO" in line and "syntax error" in line
            theirs[GROUP][-1] = None
        assert {role: made[role] for role in before} == before
        assert {role: made[role] for role in made if role not in before} == {
            role: theirs[role] for role in theirs if role not in before}
        assert {"app", "owner"} < {*made}
        for role in ("app", "owner"):
            env = server._environment(PGHOST="127.0.0.1", PGPORT=str(server.port), PGUSER=role,
                                      PGPASSWORD=f"{role}s word", PGDATABASE="shop")
            assert logged_in(server, env, "SELECT count(*) FROM public.t") == "500"
        assert server.sql("SELECT tableowner FROM pg_tables WHERE tablename = 't'",
                          "shop") == "owner"
        [line] = [each for each in warnings(ran) if "membership" in each]
        assert "GRANT app TO stranger" in line
        assert not re.search(f"{HASH}|hidden", ran.stderr)
        ran = restored(shop, name, "--database", "again", "--roles", **at(server))
        assert roles(server) == made and "Making the roles" not in ran.stderr


@pytest.mark.parametrize("version", [14, 17])
def test_a_database_takes_another_locale_also_where_its_owner_is_to_be_made(
        shop: Scene, version: int) -> None:
    shop.sql("ALTER DATABASE shop OWNER TO owner")
    name = shop.backup()["filename"]
    shop.sql("ALTER DATABASE shop OWNER TO postgres")
    with server_folder() as folder, Postgres(folder / "new", version) as server:
        restored(shop, name, "--database", "shop", "--roles", "--locale", "C.utf8", **at(server),
                 status=int(version < 16))  # which knows no grant without INHERIT
        assert server.sql("""SELECT datcollate, datdba::regrole FROM pg_database
            WHERE datname = 'shop'""") == "C.utf8|owner"


def logged_in(server: Postgres, env: dict[str, str], query: str) -> str:
    return subprocess.run([str(server.bin / "psql"), "-XAtqc", query], env=env, text=True,
                          capture_output=True, check=True).stdout.strip()


def test_what_a_server_refuses_of_a_role_is_named_and_the_rest_made(
        shop: Scene) -> None:
    script = """CREATE ROLE app;
ALTER ROLE app WITH LOGIN PASSWORD 'SCRAM-SHA-256$4096:c2FsdHNhbHQ=$c3RvcmVk:c2VydmVyIGtleQ==';
ALTER ROLE app SET no_such_parameter TO 'secret value';
ALTER ROLE app SET work_mem TO 'much secret';
ALTER ROLE app SET lock_timeout TO '61s';
CREATE ROLE owner;
ALTER ROLE owner WITH LOGIN;
CREATE ROLE future;
ALTER ROLE future WITH LOGIN TELEPATHY PASSWORD 'secret word';
ALTER ROLE future SET work_mem TO '7MB';
GRANT future TO app WITH INHERIT TRUE GRANTED BY postgres;
GRANT owner TO app WITH INHERIT TRUE GRANTED BY nobody_here;
GRANT absent TO app WITH INHERIT TRUE GRANTED BY nobody_here;
GRANT ALL ON TABLESPACE nowhere TO app;
ALTER ROLE postgres WITH NOSUPERUSER;
DROP DATABASE shop;
"""
    name = shop.backup()["filename"]
    bring(shop, name, script)
    with server_folder() as folder, Postgres(folder / "new") as server:
        ran = restored(shop, name, "--database", "shop", "--roles", status=1, **at(server))
        errors = error_lines(ran.stderr)
        assert [re.findall(r'msg="(.*?): not done: (.*)"$', line) for line in errors] == [
            [("ALTER ROLE app SET no_such_parameter",
              r'unrecognized configuration parameter \"no_such_parameter\"')],
            [("ALTER ROLE app SET work_mem", r'invalid value for parameter \"work_mem\": \"***\"')],
            [("CREATE ROLE future", r'unrecognized role option \"telepathy\"')],
            [("GRANT future TO app", r'role \"future\" does not exist')],
            [("GRANT absent TO app", r'role \"absent\" does not exist')]]
        assert ran.stderr.count(": not done: ") == len(errors)  # each is told once
        assert "secret" not in ran.stderr and not re.search(HASH, ran.stderr)
        made = roles(server)
        assert {*made} == {"app", "owner", "postgres"} and made["postgres"][0] is True
        assert made["app"][11] == ["lock_timeout=61s"] and made["app"][12] == [["owner", False]]
        assert server.sql("SELECT count(*) FROM t", "shop") == "500"


def bring(scene: Scene, name: str, script: str) -> None:
    """Have a backup bring other roles."""
    metadata = {**scene.head(name)["Metadata"], "roles-sha256": sha256_of(script.encode())}
    scene.put(name, scene.objects()[name], **metadata)
    scene.put(beside(name), script.encode(), **metadata)


def test_a_database_is_not_begun_where_a_role_that_it_takes_is_not_brought_or_refused(
        shop: Scene) -> None:
    name = shop.backup()["filename"]
    app = "CREATE ROLE app;\nALTER ROLE app WITH LOGIN;\n"
    owner = "CREATE ROLE owner;\nALTER ROLE owner WITH TELEPATHY PASSWORD 'secret word';\n"
    with server_folder() as folder, Postgres(folder / "new") as server:
        before = roles(server)
        bring(shop, name, app)
        error = refused(shop, name, "--database", "shop", "--roles", **at(server))
        assert "lacks these roles" in error and "owner" in error and roles(server) == before
        bring(shop, name, app + owner)
        ran = restored(shop, name, "--database", "shop", "--roles", status=1, **at(server))
        assert "CREATE ROLE owner: not done: unrecognized role option" in ran.stderr
        assert "lacks these roles" in ran.stderr and "secret word" not in ran.stderr
        assert {*roles(server)} == {*before, "app"}
        assert "shop" not in server.sql("SELECT json_agg(datname) FROM pg_database")


def test_no_role_is_made_for_a_restore_that_cannot_be(shop: Scene) -> None:
    name = shop.backup()["filename"]
    body, metadata = bytearray(shop.objects()[name]), shop.head(name)["Metadata"]
    body[-1] ^= 1
    shop.put(name, bytes(body), **metadata)
    with server_folder() as folder, Postgres(folder / "new") as server:
        before = roles(server)
        assert "damaged" in refused(shop, name, "--database", "shop", "--roles", **at(server))
        assert "lacks these roles" in refused(
            shop, shop.backup()["filename"], "--database", "shop", **at(server))
        assert roles(server) == before
