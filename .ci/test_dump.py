"""Tests of dumps: every row, refusals before, crashes, little room, odd names."""
from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from environment import NOBODY, ROOT
from proxies import COMPLETING, FORBIDDEN, FOREVER, PART, Proxy, through
from readme import least_privileges
from restores import result_of, same_databases, with_little_room
from servers import (
    ASKED,
    PASSING_ON,
    PATIENCE,
    Executor,
    Postgres,
    SeaweedFS,
    asking,
    client_programs,
    descendants,
    error_lines,
    handles_below,
    server_folder,
    temporary_folder,
)
from surroundings import (
    FILLED,
    LOCKING,
    Generations,
    Scene,
    asked_after,
    becomes_true,
    sha256_of,
    stuck_upload,
    until_found,
)
from timescale import ask

# ---- Every row ---------------------------------------------------------------------------------

TABLES = """CREATE TABLE truncated AS TABLE t; CREATE TABLE rewritten AS TABLE t;
    CREATE TABLE renamed AS TABLE t; CREATE TABLE replaced AS TABLE t;
    CREATE TABLE widened (i int); INSERT INTO widened VALUES (1), (2); CREATE TABLE split (i int)
    PARTITION BY RANGE (i); CREATE TABLE low PARTITION OF split FOR VALUES FROM (0) TO (9);
    CREATE TABLE high (i int); INSERT INTO low VALUES (1); INSERT INTO high VALUES (10);
    CREATE SCHEMA zone; CREATE TABLE zone.moved AS TABLE t;
    CREATE MATERIALIZED VIEW total AS SELECT count(*) FROM truncated"""


@pytest.fixture(params=[15, 17, 18])
def aged(request: pytest.FixtureRequest, generations: Generations,
         s3: SeaweedFS) -> Iterator[Scene]:
    """A database that is backed up by the role that README has for it."""
    name, server = f"aged_{secrets.token_hex(4)}", generations[request.param]
    with temporary_folder() as folder, server.dropping():
        server.make(name, f"{FILLED}; {TABLES}")
        server.sql(re.sub(r"\b(sensors|backup)\b", name, least_privileges("sql")[0]))
        scene = Scene(server, s3, folder, name, name)
        scene.settings |= {"DB_USER": name, "DB_PASSWORD": "change me", "BACKUP_TIME_SCALE": "0.05"}
        yield scene
    server.sql(f"DROP ROLE {name}")


def beside(scene: Scene, *meanwhile: str, status: int = 0, **settings: str) -> Executor:
    """A backup to its end. While its first dumps wait for their locks the SQL is run, one each."""
    with contextlib.ExitStack() as stack:
        locks = [stack.enter_context(scene.session()) for _ in meanwhile]
        print(LOCKING.format("t"), file=locks[0].stdin, flush=True)
        assert locks[0].stdout and locks[0].stdout.readline() == "locked\n"
        executor = stack.enter_context(scene.start(**settings))
        for statements, lock, following in zip(meanwhile, locks, [*locks[1:], None]):
            waiting = scene.waiting()
            scene.sql(statements)
            if following:  # it waits behind this dump, and then keeps the next one waiting
                print(LOCKING.format("t"), file=following.stdin, flush=True)
                scene.waiting(but=waiting)
            assert lock.stdin
            lock.stdin.close()
            if following:
                assert following.stdout and following.stdout.readline() == "locked\n"
        assert executor.wait() == status, executor.log
        return executor


def test_a_connection_that_says_nothing_is_asked_after_within_a_minute(scene: Scene) -> None:
    """Else routers on the way forget it, and a network that goes dead is noticed after hours."""
    with scene.locked() as release, scene.start() as executor:
        dumping = scene.waiting()
        sharing = until_found(scene.postgres, "SELECT pid FROM pg_stat_activity WHERE "
                              f"wait_event = 'PgSleep' AND datname = '{scene.database}'")
        becomes_true(lambda: max(
            asked_after(scene.postgres).get(each, FOREVER) for each in (dumping, sharing)) <= 60)
        release()
        assert executor.wait() == 0, executor.log


TRUNCATED = """BEGIN; CREATE TEMPORARY TABLE kept AS TABLE truncated; TRUNCATE truncated;
    INSERT INTO truncated TABLE kept; COMMIT;"""
CHANGED = TRUNCATED + """ALTER TABLE rewritten ALTER id TYPE bigint;
    CREATE TABLE a AS TABLE renamed; ALTER TABLE renamed RENAME TO b;
    ALTER TABLE a RENAME TO renamed;
    CREATE TABLE c AS TABLE replaced; DROP TABLE replaced; ALTER TABLE c RENAME TO replaced;
    BEGIN; ALTER TABLE widened ADD more bigint; UPDATE widened SET more = i; ALTER TABLE widened
    DROP i; ALTER TABLE widened RENAME more TO i; COMMIT;"""
MOVED = """ALTER SCHEMA zone RENAME TO gone; CREATE SCHEMA zone; CREATE TABLE zone.moved AS TABLE
    gone.moved;"""


def test_rows_that_change_places_between_snapshot_and_locks_are_in_the_backup(aged: Scene) -> None:
    """pg_dump succeeds, and has none of these rows. Then it fails, since a table is dropped."""
    executor = beside(aged, CHANGED + MOVED, "DROP TABLE b")
    result = result_of(executor)
    changed, dropped = result["made_again"]
    assert changed.startswith("6 tables truncated") and changed.endswith(  # and zone.moved
        ": public.renamed, public.replaced, public.rewritten, public.truncated, public.widened")
    assert re.search(r'relation "public\.b" does not exist', dropped)
    executor.wait_for(r"level=warning .*6 tables truncated")
    same_databases(aged, aged.restored(result["filename"]))
    assert aged.files() == []


def test_what_changes_no_rows_of_a_dump_costs_no_other_dump(aged: Scene) -> None:
    before = aged.postgres.fingerprint(aged.database)
    result = result_of(beside(aged, """ALTER TABLE split DETACH PARTITION low;
        ALTER TABLE split ATTACH PARTITION high FOR VALUES FROM (10) TO (99);
        REFRESH MATERIALIZED VIEW total; ALTER TABLE truncated ADD more int;
        DELETE FROM truncated; VACUUM truncated; ANALYZE truncated; CREATE TABLE new (i int)"""))
    assert result["made_again"] == []
    assert aged.postgres.fingerprint(aged.restored(result["filename"])) == before


def test_a_backup_fails_whose_tables_are_truncated_each_time(scene: Scene) -> None:
    scene.sql(TABLES)
    executor = beside(scene, *[TRUNCATED] * 3, status=1, BACKUP_TIME_SCALE="0.05")
    executor.wait_for("level=error .*3 dumps failed.* public.truncated; keep jobs and policies")
    assert len(re.findall("Making the dump again", executor.log)) == 2
    assert scene.files() == [] and not scene.objects()


@pytest.fixture
def slow(scene: Scene) -> Scene:
    """It has TABLES of 40 rows, and in t values that are long."""
    scene.sql("ALTER TABLE t ALTER text SET STORAGE EXTERNAL; DELETE FROM t WHERE id > 40;"
              f"UPDATE t SET text = repeat(text, 99); {TABLES}")
    scene.settings["BACKUP_TIME_SCALE"] = "0.05"
    return scene


@pytest.mark.parametrize("fork", range(1, 8))
def test_a_signal_amid_a_fork_is_neither_lost_nor_leaves_a_program_behind(
        scene: Scene, tmp_path: Path, fork: int) -> None:
    """Python swallows what is raised there."""
    (tmp_path / "sitecustomize.py").write_text(f"""import os, signal
forks = []
def forking():
    forks.append(1)
    if len(forks) == {fork}:
        os.kill(os.getpid(), signal.SIGTERM)
os.register_at_fork(before=forking)
""")
    ran = scene.run("backup", status=143, PYTHONPATH=str(tmp_path))
    assert "stopped by SIGTERM" in ran.stderr and scene.files() == [] and not scene.objects()


def test_no_session_of_a_backup_compiles_its_queries(scene: Scene) -> None:
    """The sessions are seen by a trigger of the database's."""
    scene.sql("""CREATE TABLE logins (who text, jit text);
        CREATE FUNCTION note() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
            IF current_setting('application_name') LIKE 'colonies-%' THEN
                INSERT INTO public.logins VALUES (current_setting('application_name'),
                    current_setting('jit'));
            END IF; END $$;
        CREATE EVENT TRIGGER note ON login EXECUTE FUNCTION note()""")
    scene.backup()
    seen = scene.sql("SELECT DISTINCT jit FROM logins"), int(scene.sql(
        "SELECT count(*) FROM logins"))
    assert seen[0] == "off" and seen[1] > 5


@pytest.mark.parametrize("what", [".bak.partial", "backup_journal.partial", ""],
                         ids=["archive", "journal", "names"])
def test_an_archive_is_on_the_disk_before_anything_vouches_for_it(
        scene: Scene, tmp_path: Path, what: str) -> None:
    """What the kernel could not write is known at this moment alone."""
    ending = what or scene.folder.name
    (tmp_path / "sitecustomize.py").write_text(f"""import errno, os
real = os.fsync
def fsync(file):
    if os.readlink("/proc/self/fd/%d" % file).endswith({ending!r}):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    real(file)
os.fsync = fsync
""")
    ran = scene.run("backup", status=1, PYTHONPATH=str(tmp_path))
    assert re.search(rf"{re.escape(ending)}: Input/output error \(BACKUP_PATH", ran.stderr)
    assert not scene.objects()
    scene.run("backup", "--resume")
    assert {*scene.files()} <= {"backup_journal.partial"}


def test_a_void_dump_is_stopped_at_once_and_a_schema_that_is_replaced_while_it_copies_is_seen(
        slow: Scene) -> None:
    assert slow.postgres.program
    # What the server says of a pg_dump that is stopped, in a statement of its or between two.
    stopped = "canceling statement due to user request|client connection with an open transaction"
    before = len(re.findall(stopped, slow.postgres.program.log))
    with (slow.locked() as unlock, slow.stuck("t") as go_on,
          slow.start(LOG_LEVEL="debug") as executor):
        slow.waiting()
        slow.sql(TRUNCATED)
        unlock()
        executor.wait_for(r"Making the dump again .*public\.truncated")
        slow.postgres.program.wait_for(stopped, count=before + 1)
        executor.wait_for("pg_dump has its locks")
        slow.sql(MOVED)
        executor.wait_for("Making the dump again .*schemas or types replaced .*: 1; rows")
        go_on()
        assert executor.wait() == 0, executor.log
    result = result_of(executor)
    assert len(result["made_again"]) == 2
    restored = slow.restored(result["filename"])
    assert slow.postgres.sql("SELECT count(*) FROM truncated UNION ALL SELECT count(*) FROM"
                             " zone.moved", restored) == "40\n40"


@pytest.mark.parametrize("sql", [
    "ALTER TYPE kind RENAME VALUE 'a' TO 'b'", "ALTER TYPE pair ADD ATTRIBUTE z int",
    "ALTER TYPE pair DROP ATTRIBUTE y"])
def test_a_type_whose_values_change_their_form_while_pg_dump_copies_is_seen(
        slow: Scene, sql: str) -> None:
    slow.sql("""CREATE TYPE kind AS ENUM ('a'); CREATE TYPE pair AS (x int, y int);
        CREATE TABLE "values" AS SELECT 'a'::kind AS k, (1, 2)::pair AS p; ANALYZE""")
    with slow.stuck("t") as go_on, slow.start(LOG_LEVEL="debug") as executor:
        executor.wait_for("pg_dump has its locks")
        slow.sql(f"{sql}; ALTER TYPE kind ADD VALUE 'new'; CREATE TYPE other AS (x int)")
        go_on()
        assert executor.wait() == 0, executor.log
    [why] = result_of(executor)["made_again"]
    assert re.match("schemas or types replaced or changed .*: 1; rows", why)
    restored = slow.restored(result_of(executor)["filename"])
    values = 'SELECT * FROM "values"'
    assert slow.postgres.sql(values, restored) == slow.sql(values)


def test_a_table_that_was_truncated_and_dropped_when_the_tables_are_read_again_is_seen(
        slow: Scene) -> None:
    """Where pg_dump's session does not show what it does, that is when it has ended."""
    slow.settings["PGOPTIONS"] = "-c track_activities=off"
    with (slow.locked() as unlock, slow.stuck("t") as go_on, slow.session() as dropping,
          slow.start() as executor):
        waiting = slow.waiting()
        slow.sql(TRUNCATED)
        unlock()
        becomes_true(lambda: slow.sql(
            f"SELECT count(*) > 0 FROM pg_locks WHERE granted AND pid = {waiting} AND"
            " relation = 'truncated'::regclass") == "t")
        ask(dropping, "DROP TABLE truncated CASCADE; SELECT 'done';")  # behind pg_dump
        slow.waiting(but=waiting)
        go_on()
        assert executor.wait() == 0, executor.log
    [why] = result_of(executor)["made_again"]
    assert why.startswith("1 table truncated") and why.endswith(": public.truncated")
    restored = slow.restored(result_of(executor)["filename"])
    assert slow.postgres.sql("SELECT to_regclass('truncated') IS NULL", restored) == "t"


def test_a_role_that_takes_another_when_it_logs_in_sees_and_ends_its_own_sessions(
        slow: Scene) -> None:
    role, owner, word = f"in_{slow.database}", f"owner_{slow.database}", "a password"
    slow.sql(f"CREATE ROLE {owner} IN ROLE pg_read_all_data; CREATE ROLE {role} LOGIN IN ROLE"
             f" {owner} PASSWORD '{word}'; ALTER ROLE {role} SET role = {owner}")
    us = {"DB_USER": role, "DB_PASSWORD": word}
    with slow.stuck("t") as go_on, slow.start(LOG_LEVEL="debug", **us) as executor:
        executor.wait_for("pg_dump has its locks")  # before it has ended
        name = slow.sql("SELECT application_name FROM pg_stat_activity WHERE application_name"
                        f" LIKE 'colonies-%' AND usename = '{role}' LIMIT 1")
        go_on()
        assert executor.wait() == 0, executor.log
    env = slow.postgres._environment(
        PGHOST="127.0.0.1", PGPORT=str(slow.postgres.port), PGUSER=role, PGPASSWORD=word,
        PGDATABASE=slow.database, PGAPPNAME=name)
    with subprocess.Popen([str(slow.postgres.bin / "psql"), "-XAtq"], env=env, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as left:
        ask(left, "SELECT 'there';")
        slow.run("backup", **us)
        assert "terminating connection" in left.communicate("SELECT 'there still';")[1]
    slow.sql(f"DROP ROLE {role}, {owner}")


def test_a_session_that_is_cut_after_pg_dump_has_ended_costs_no_dump(scene: Scene) -> None:
    psql = b"search_path=pg_catalog"  # stands in the first packet of its sessions
    with Proxy(scene.postgres.port) as wire:
        scene.settings |= {"DB_PORT": str(wire.port), "BACKUP_TIME_SCALE": "0.05",
                           "PGSSLMODE": "disable"}
        for number in (0, 1):  # from the last one on
            before = wire.seen(psql)
            scene.backup()
            wire.expect(psql, wire.seen(psql) - before - 1 - number)
            wire.shear(psql, 20)
            assert scene.backup()["made_again"] == []
            wire.clear()


@pytest.mark.parametrize("sessions", [-1, 3])
def test_a_table_that_is_made_while_the_backup_begins_is_in_it_whole_or_not_at_all(
        scene: Scene, tmp_path: Path, sessions: int) -> None:
    """pg_dump has the snapshot in which the tables were read, if its role may have the sessions."""
    scene.postgres.sql(f'ALTER DATABASE "{scene.database}" CONNECTION LIMIT {sessions}')
    for setting in ("log_statement = 'all'", "client_min_messages = 'log'"):  # amid the answers
        scene.postgres.sql(f'ALTER DATABASE "{scene.database}" SET {setting}')
    program, real = tmp_path / "pg_dump", client_programs()[0]
    program.write_text(f"""#!/bin/sh
[ "$1" = --version ] || '{real}/psql' -Xqc \\
    'CREATE TABLE IF NOT EXISTS young AS SELECT 1 AS i, 2 AS more'
exec '{real}/pg_dump' "$@"
""")
    program.chmod(0o755)
    executor = beside(scene, TRUNCATED.replace("truncated", "young"),
                      PATH=f"{tmp_path}:{real}:/usr/bin:/bin", BACKUP_TIME_SCALE="0.05")
    result = result_of(executor)
    if sessions == 3:
        [why] = result["made_again"]
        assert why.endswith(": public.young")
        same_databases(scene, scene.restored(result["filename"]))
    else:
        assert result["made_again"] == [] and result["tables"] == 1


def test_a_dump_of_a_standby_that_recovery_ends_or_empties_is_made_again(scene: Scene) -> None:
    with (server_folder() as folder, Postgres(folder / "primary") as primary):
        standby = Postgres(folder / "standby", password=primary.password)
        primary.sql(f"CREATE TABLE early (i int); INSERT INTO early VALUES (1); {FILLED}; {TABLES}")
        primary.run("pg_basebackup", "-D", str(standby.folder / "data"), "-R", "-cfast")
        with open(standby.folder / "data/postgresql.auto.conf", "a") as file:
            file.write("max_standby_streaming_delay = 0\n")
        if ROOT:
            for path in (standby.folder, *standby.folder.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        source = Scene(primary, scene.s3, scene.folder, "postgres", scene.prefix)
        there = Scene(standby, scene.s3, scene.folder, "postgres", scene.prefix)
        with contextlib.ExitStack() as stack:
            stack.enter_context(standby)
            unlock = stack.enter_context(source.locked())
            source.sql("CREATE TABLE last (i int)")  # this commit makes the lock known there, too
            becomes_true(lambda: there.sql("SELECT to_regclass('public.last')") == "last")
            executor = stack.enter_context(there.start(BACKUP_TIME_SCALE="0.05"))
            waiting = there.waiting()
            source.sql("TRUNCATE early")  # which that pg_dump has locked: recovery cancels it
            executor.wait_for("Making the dump again .*conflict with recovery")
            there.waiting(but=waiting)
            source.sql(TRUNCATED)  # which it has not locked yet
            unlock()
            assert executor.wait() == 0, executor.log
        assert result_of(executor)["made_again"][1].endswith(": public.truncated")
        same_databases(source, source.restored(result_of(executor)["filename"]))


# ---- Before the dump ---------------------------------------------------------------------------

FULL = b"SFATAL\0C53300\0Msorry, too many clients already\0\0"
CROWDED = b"E" + (len(FULL) + 4).to_bytes(4, "big") + FULL


def test_a_server_that_has_no_session_left_for_a_moment_costs_no_backup(scene: Scene) -> None:
    with Proxy(scene.postgres.port) as proxy:
        there = {"DB_PORT": str(proxy.port), "PGSSLMODE": "disable", "BACKUP_TIME_SCALE": "0.01",
                 "BACKUP_ROLES": "auto"}
        scene.backup(**there)
        for session in range(len(proxy.sessions)):
            proxy.expect(b"", session)
            proxy.reply(b"", CROWDED)
            ran = scene.run("backup", **there)
            assert json.loads(ran.stdout)["role_passwords"], session
            assert "Looking for what the dump lacks" not in ran.stdout
            proxy.clear()
        proxy.reply(b"", CROWDED, times=99)
        assert re.search("Looking at the database: .*too many clients", scene.failure(**there))


def test_an_old_pg_dump_is_refused_with_both_versions(scene: Scene) -> None:
    error = scene.failure(clients=15)
    assert re.search(r"\b15\.\d", error) and re.search(r"\b17\.\d", error)
    assert "Backing up" not in error  # it doesn't come to that
    assert not scene.objects() and not scene.files()


def test_a_newer_pg_dump_warns_and_an_equal_one_is_silent(
        scene: Scene, generations: Generations) -> None:
    old, name = generations[15], f"{scene.database}_15"
    with old.dropping():
        old.make(name, FILLED)
        before = Scene(old, scene.s3, scene.folder, name, name)
        warned = before.run("backup", clients=17)
        assert re.search(r"level=warning .*\b17\..*\b15\.", warned.stderr)
        for compression in ("auto", "gzip:6", "none"):  # which that pg_dump spells otherwise
            equal = before.run("backup", clients=15, BACKUP_COMPRESSION=compression)
            assert not re.search("level=warning .*pg_dump", equal.stderr)
            same_databases(before, before.restored(json.loads(equal.stdout)["filename"]))


@pytest.mark.parametrize("settings, says", [
    ({"DB_PASSWORD": "wrong"}, 'password authentication failed for user \\"postgres'),
    ({"DB_PASSWORD": ""}, "no password supplied"),
    ({"DB_DATABASE": "missing"}, 'database \\"missing\\" does not exist'),
    ({"DB_PORT": "1"}, "Connection refused"),
    ({"AWS_S3_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch"),
    ({"AWS_S3_ACCESS_KEY": "wrong"}, "InvalidAccessKeyId"),
    ({"AWS_S3_SECURE": "true"}, "AWS_S3_SECURE"),
    ({"BACKUP_PATH": "/missing"}, "/missing: No such file or directory"),
    ({"BACKUP_PATH": "/proc/self/task"}, "/proc/self/task"),
])
def test_what_cannot_get_better_fails_within_seconds(
        scene: Scene, settings: dict[str, str], says: str) -> None:
    error = scene.failure(**settings)  # what is tried again takes a quarter of an hour
    assert says in error
    assert not scene.objects() and not scene.files()


def test_on_aws_a_missing_bucket_is_an_error_and_boto3_finds_the_keys(scene: Scene) -> None:
    aws = {"AWS_S3_ENDPOINT": "", "AWS_S3_ACCESS_KEY": "", "AWS_S3_SECRET_ACCESS_KEY": "",
           "AWS_ENDPOINT_URL_S3": scene.s3.url, "AWS_ACCESS_KEY_ID": scene.s3.access_key,
           "AWS_SECRET_ACCESS_KEY": scene.s3.secret_key}
    assert "no-such-bucket" in scene.failure(**aws, AWS_S3_BUCKET_NAME="no-such-bucket")
    buckets = [bucket["Name"] for bucket in scene.s3_client.list_buckets()["Buckets"]]
    assert "no-such-bucket" not in buckets
    assert scene.backup(**aws)["filename"] in scene.objects()


def test_an_s3_server_that_is_away_is_waited_for_before_the_dump(
        scene: Scene, meddler: Proxy) -> None:
    meddler.down()
    with scene.start(**through(meddler, 0.02)) as executor:
        executor.wait_for("level=warning .*S3 is away")
        assert "Backing up database" not in executor.log
        meddler.up()
        assert executor.wait() == 0
    assert len(scene.objects()) == 1


def test_an_s3_server_that_stays_away_is_one_clear_failure(scene: Scene, meddler: Proxy) -> None:
    meddler.down()
    with scene.locked():  # so that it would be seen if there were a dump
        assert f"127.0.0.1:{meddler.port}" in scene.failure(**through(meddler, 0.001))
    assert not scene.files()


# ---- Crashes -----------------------------------------------------------------------------------

def test_a_kill_during_the_dump_leaves_nothing_that_the_next_run_does_not_clear(
        scene: Scene) -> None:
    scene.settings["COLONIES_EXECUTOR_NAME"] = "one"
    with scene.locked(), scene.start() as executor:
        session = scene.waiting()
        name = scene.sql(f"SELECT application_name FROM pg_stat_activity WHERE pid = {session}")
        assert "one" in name and scene.database in name
        handles = handles_below(executor.pid)
        executor.kill()
        assert handles and all(select.select([handle], [], [], PATIENCE)[0] for handle in handles)
        left = scene.files()
        assert left and not any(file.endswith(".bak") for file in left)
        assert {os.stat(scene.folder / file).st_mode & 0o777 for file in left} == {0o600}
        # The session on the server waits for its lock and knows nothing of it.
        waits = os.pidfd_open(int(session))
        with scene.start(COLONIES_EXECUTOR_NAME="two") as other:
            scene.waiting(but=session)
            other.kill()
        assert not select.select([waits], [], [], 0)[0]  # another's sessions are not ours to end
        with scene.start() as again:
            assert select.select([waits], [], [], PATIENCE)[0]
            again.kill()
    assert scene.backup()["filename"] in scene.objects()
    assert len(scene.objects()) == 1 and scene.files() == []


def test_a_kill_during_the_upload_loses_nothing(big: Scene, meddler: Proxy) -> None:
    name, sha256 = stuck_upload(big, meddler)
    assert len(big.uploads()) == 1
    resumed = big.run("backup", "--resume", **through(meddler))
    assert "Backing up database" not in resumed.stderr
    assert json.loads(resumed.stdout)["filename"] == name
    [(uploaded, body)] = big.objects().items()
    assert (uploaded, sha256_of(body)) == (name, sha256)
    assert big.head(name)["Metadata"]["sha256"] == sha256
    assert not big.uploads() and not big.files()


def test_a_backup_that_is_told_to_stop_stops_pg_dump_but_keeps_a_complete_dump(
        big: Scene, meddler: Proxy) -> None:
    reading = "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'pg_enum'::regclass"
    with big.locked("pg_enum"), big.start() as executor:
        until_found(big.postgres, reading, big.database)  # who holds the snapshot
        assert executor.stop() == 143
        assert not big.sql(reading) and big.files() == []
    with big.locked(), big.start() as executor:
        session = os.pidfd_open(int(big.waiting()))
        assert executor.stop() == 143
        assert "Traceback" not in executor.log and big.files() == []
        assert select.select([session], [], [], PATIENCE)[0]  # its session on the server has ended
    meddler.cut(PART + b"1", 1000, times=10000)
    with big.start(**through(meddler)) as executor:
        meddler.wait_seen(PART + b"1", 2)
        meddler.clear()
        assert executor.stop() == 143
    [name, _] = big.files()
    assert name.endswith(".bak") and not big.uploads() and not big.objects()


@pytest.mark.parametrize("change", ["a byte more", "a byte changed", "a symlink"])
def test_a_kept_dump_that_was_changed_is_neither_uploaded_nor_removed(
        scene: Scene, meddler: Proxy, tmp_path: Path, change: str) -> None:
    meddler.reply(COMPLETING, FORBIDDEN)
    scene.failure(**through(meddler, 0.001))
    [name, _] = scene.files()
    file = scene.folder / name
    body = bytearray(file.read_bytes())
    if change == "a symlink":
        file.rename(tmp_path / "dump")
        file.symlink_to(tmp_path / "dump")
    else:
        body[100] ^= 1
        file.write_bytes(file.read_bytes() + b"x" if change == "a byte more" else body)
    before = file.read_bytes()
    result = scene.backup()
    assert list(scene.objects()) == [result["filename"]] and result["filename"] != name
    assert scene.files() == [name] and file.read_bytes() == before


# What older versions noted of a sealed dump; `made_again`, `upload` and `etag` came at times. None
# knew of the server's roles and other databases.
JOURNAL = {"by", "process", "starttime", "attempts", "id", "sha256", "size", "exectime_backup",
           "tables", "database", "system_identifier", "postgresql", "timescaledb", "pg_dump"}
OF_SERVER = {"database_size", "roles_sql", "roles_sha256", "role_passwords", "other_databases",
             "warnings"}


@pytest.mark.parametrize("stage", ["sealed", "stored", "removed", "gone"])
def test_a_journal_that_another_version_wrote_is_finished_and_ours_has_its_format(
        scene: Scene, meddler: Proxy, tmp_path: Path, stage: str) -> None:
    meddler.reply(COMPLETING, FORBIDDEN)
    scene.failure(**through(meddler, 0.001))
    [name, journal] = scene.files()
    told = json.loads((scene.folder / journal).read_text())
    later = {"upload", "etag", "made_again", "compression", "recipients", "taken", *OF_SERVER}
    assert set(told) - later == JOURNAL - {"starttime"}  # which is of a process
    body, key = (scene.folder / name).read_bytes(), f"{scene.prefix}/{name}"
    old = {field: told.get(field, "") for field in JOURNAL}
    if stage != "sealed":
        old |= {"filename": name, "bucket": "backup", "filepath_s3": f"/{key}",
                "size_s3": told["size"], "exectime_upload_s3": 1}
    if stage in ("removed", "gone"):
        (scene.folder / name).unlink()
    if stage == "gone":  # else a crash came before that was noted
        old["gone"] = True
    (tmp_path / name).write_text("somebody's")
    strange = {"file": str(tmp_path / name), "save": 1, "remove": [], "pending": False, "new": {}}
    (scene.folder / journal).write_text(json.dumps(old | strange))
    said = scene.run("backup", "--resume").stderr
    assert (tmp_path / name).read_text() == "somebody's"
    assert scene.files() == [] and "level=warning" not in said
    assert scene.objects() == ({name: body} if stage == "sealed" else {})
    assert said.count("Removed local backup file") == (stage != "gone")


def test_an_operators_files_are_left_alone(scene: Scene) -> None:
    (scene.folder / "backup_1.bak").write_bytes(b"PGDMP of an operator")
    (scene.folder / "notes.txt").write_text("mine")
    (scene.folder / "backup_2.bak").symlink_to(scene.folder / "notes.txt")
    (scene.folder / "backup_3.bak.json").write_text("[1, 2]")
    (scene.folder / "backup_4.bak").mkdir()
    before = scene.files()
    for _ in range(2):
        scene.run("backup")
    scene.run("backup", "--resume")
    assert scene.files() == before and len(scene.objects()) == 2
    assert (scene.folder / "backup_1.bak").read_bytes() == b"PGDMP of an operator"
    assert (scene.folder / "notes.txt").read_text() == "mine"


def test_a_dump_takes_the_name_of_no_file_that_is_there(scene: Scene) -> None:
    start = int(time.time())
    names = [f"backup_{start + i}.bak" for i in range(100)]
    for name in names:
        (scene.folder / name).write_text("mine")
    assert scene.backup()["filename"] == f"backup_{start + 100}.bak"
    assert scene.files() == names
    assert {(scene.folder / name).read_text() for name in names} == {"mine"}


def test_a_second_backup_at_the_same_time_says_so(scene: Scene) -> None:
    with scene.locked() as unlock, scene.start() as first:
        scene.waiting()
        error = scene.failure()
        assert "another backup" in error and str(scene.folder) in error
        unlock()
        assert first.wait() == 0, first.log
    assert len(scene.objects()) == 1


def test_a_pg_dump_that_fails_in_the_middle_leaves_nothing(scene: Scene) -> None:
    before = scene.backup()["filename"]
    scene.put("backup_1000000000.bak", **scene.head(before)["Metadata"])
    with scene.locked(), scene.start(FULL_BACKUPS="1") as executor:
        scene.sql(f"SELECT pg_terminate_backend({scene.waiting()})")
        assert executor.wait() == 1
    [error] = error_lines(executor.log)
    assert "Backing up database" in error and "pg_dump: exit status 1" in error
    assert "terminating connection due to administrator command" in error
    assert not executor.out and scene.files() == []
    assert sorted(scene.objects()) == ["backup_1000000000.bak", before]


def test_a_failed_dump_of_many_tables_says_why_and_no_part_of_a_secret(scene: Scene) -> None:
    """The statement that names them all is cut, wherever that is; each name holds the password."""
    role, word = f"poor_{scene.database}", "qx0password0"
    scene.sql(f"CREATE ROLE {role} LOGIN PASSWORD '{word}'; DO $$ BEGIN FOR i IN 100 .. 399 LOOP"
              f" EXECUTE format('CREATE TABLE {word}_%s_many ()', i); END LOOP; END $$")
    error = scene.failure(DB_USER=role, DB_PASSWORD=word)
    scene.sql(f"DROP ROLE {role}")
    assert re.search(r"exit status 1: pg_dump: error: .* permission denied for table", error)
    assert "_100_many" in error and "_399_many" in error and "_250_many" not in error
    parts = {word[start:start + 5] for start in range(len(word) - 4)}
    assert not [part for part in parts if part in error] and len(error) < 5000


@pytest.mark.parametrize("after, says", [
    ("exit 3", "exit status 3"), ("kill -9 $$", "signal 9"),
    ('for last; do case $last in *.partial) truncate -s 200 "$last";; esac; done',
     "table of contents")], ids=["exit-status", "killed", "truncated"])
def test_a_bad_dump_is_never_uploaded(
        scene: Scene, tmp_path: Path, after: str, says: str) -> None:
    real, path = client_programs()[0], tmp_path / "pg_dump"
    path.write_text(f'#!/bin/sh\n{real}/pg_dump "$@"\n'
                    f"case $* in *version*) exit 0;; esac\n{after}\n")
    path.chmod(0o755)
    assert says in scene.failure(PATH=f"{tmp_path}:{real}:/usr/bin:/bin")
    assert scene.files() == [] and not scene.objects()


def test_a_database_without_any_object_is_a_failure(scene: Scene) -> None:
    scene.sql("DROP TABLE t")
    assert "empty" in scene.failure() and scene.files() == [] and not scene.objects()


# ---- Little room -------------------------------------------------------------------------------

def test_a_full_disk_fails_clearly_and_leaves_nothing(big: Scene) -> None:
    with with_little_room(big, 2) as executor:
        assert executor.wait() == 1, executor.log
    [error] = error_lines(executor.log)
    # Who sees it first: pg_dump, or who watches the volume.
    assert re.search(r"No space left on device|has only \d+ bytes left", error)
    assert executor.out == ["LEFT:"] and not big.objects()


def test_pg_dump_is_stopped_before_the_database_runs_out_of_room(
        scene: Scene, tmp_path: Path) -> None:
    """Also while the server does not answer what pg_dump is at."""
    real, stuck = client_programs()[0], tmp_path / "psql"
    stuck.write_text(f"""{ASKED}
case $asked in *{asking('pg_blocking_pids')}*) exec sleep 600;; esac
{PASSING_ON.format(real)}""")
    stuck.chmod(0o755)
    with scene.locked(), with_little_room(
            scene, 4, PATH=f"{tmp_path}:{real}:/usr/bin:/bin") as executor:
        scene.waiting()
        inside = descendants(executor.pid)[0]
        volume = Path(f"/proc/{inside}/root{scene.folder}")
        size = os.statvfs(volume).f_blocks * os.statvfs(volume).f_frsize
        (volume / "full").write_bytes(bytes(int(size * 0.97)))
        assert executor.wait() == 1, executor.log
    [error] = error_lines(executor.log)
    assert "pg_dump was stopped" in error and "bytes" in error
    assert executor.out == ["LEFT: full"] and not scene.objects()


def test_too_little_room_for_a_dump_like_the_newest_is_refused_before_the_dump(
        scene: Scene) -> None:
    metadata = scene.head(scene.given_backup())["Metadata"]
    for mebibytes, status in ((9, 1), (8, 0)):  # 1.2 times 9 MiB are more than the volume's 10
        scene.put(f"backup_{int(time.time()) + 5}.bak", bytes(mebibytes << 20), **metadata)
        with with_little_room(scene, 10) as executor:
            assert executor.wait() == status, executor.log
        if status:
            assert "Backing up database" not in executor.log
            assert re.search(r"level=error .*bytes are free", executor.log)


def test_a_first_dump_on_a_volume_that_is_smaller_than_the_database_is_made_with_a_warning(
        scene: Scene) -> None:
    first, other = scene.prefix, f"{scene.prefix}-else"
    for mebibytes, prefix, warned in ((200, other, False), (4, first, True), (4, first, False)):
        with with_little_room(scene, mebibytes, AWS_S3_PREFIX=prefix) as executor:
            assert executor.wait() == 0, executor.log
        assert bool(re.search(
            r"level=warning .* \d+ bytes are free; the newest backup has \d+, the database \d{7}",
            executor.log)) == warned, executor.log


# ---- Names and passwords -----------------------------------------------------------------------

@pytest.mark.parametrize("name", [
    "x=y", "--schema-only", "a'b\"c d", "ünïcode;drop", "new\nline", "host=nowhere dbname=x",
    "postgresql://x/y", "back\\slash%20$HOME `id`", " ", "é" * 31])
def test_a_databases_name_is_data(scene: Scene, name: str) -> None:
    scene.postgres.sql('CREATE DATABASE "{}" TEMPLATE {}'.format(
        name.replace('"', '""'), scene.database))
    try:
        scene.database = scene.settings["DB_DATABASE"] = name
        scene.sql("INSERT INTO t VALUES (-1, current_database())")
        result = scene.backup()
        assert result["database"] == name
        [row] = json.loads(scene.run("list", "--json").stdout)
        assert row["database"] == name and row["name"] == result["filename"]
        assert len(scene.run("list").stdout.splitlines()) == 2
        scene.backup(FULL_BACKUPS="1")
        [left] = scene.objects()
        same_databases(scene, scene.restored(left))
    finally:
        scene.postgres.sql('DROP DATABASE "{}"'.format(name.replace('"', '""')))


AWKWARD = "".join(map(chr, range(32, 127))) + " ünï€ %s %(x)s ${HOME} \\n\\ "


def test_a_password_may_hold_any_character(scene: Scene, tmp_path: Path) -> None:
    role = f"role_{secrets.token_hex(4)}"
    scene.postgres.sql("CREATE ROLE {} SUPERUSER LOGIN PASSWORD '{}'".format(
        role, AWKWARD.replace("'", "''")))
    file = tmp_path / "password"
    scene.run("backup", DB_USER=role, DB_PASSWORD=AWKWARD)
    for text in (AWKWARD, AWKWARD + "\n"):
        file.write_text(text)
        scene.run("backup", DB_USER=role, DB_PASSWORD="", DB_PASSWORD_FILE=str(file))
    file.write_text(AWKWARD + "\n\n")  # only one newline is not part of it
    assert "password authentication failed" in scene.failure(
        DB_USER=role, DB_PASSWORD="", DB_PASSWORD_FILE=str(file))
    assert len(scene.objects()) == 3


def test_libpqs_variables_apply_but_never_name_another_database(scene: Scene) -> None:
    assert scene.backup(PGHOST="/nowhere", PGHOSTADDR="192.0.2.1", PGPORT="1", PGUSER="nobody",
                        PGDATABASE="template1", PGPASSWORD="x")["database"] == scene.database
    assert "server does not support SSL" in scene.failure(PGSSLMODE="require")
