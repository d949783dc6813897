"""Tests of restores that fail, are stopped, lose S3, or are made by hand."""
from __future__ import annotations

import contextlib
import re
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxies import FOREVER, Proxy, through
from readme import restored_by_hand
from restores import (
    PROPERTIES,
    archive,
    connected,
    databases,
    governed,
    paused,
    refused,
    restored,
    same_databases,
    stored,
)
from servers import HELD_UP, PATIENCE, Executor, descendants, error_lines, run
from surroundings import Scene, asked_after, becomes_true, until_found

# ---- Restores that fail or are stopped

# A catalog that all databases share, and a lock of it that making a database does not want
GATE = """CREATE FUNCTION wait() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
    LOCK TABLE pg_catalog.pg_shdescription IN SHARE UPDATE EXCLUSIVE MODE; END $$;
    CREATE FUNCTION gate(i int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
    IF current_query() ~ '^{}' THEN PERFORM public.wait(); END IF; RETURN i; END $$;
    ALTER TABLE t ADD CHECK (public.gate(id) = id); CREATE INDEX ON t (public.gate(id))"""
GATES = {"restore": "COPY", "count": r"\s+DO .*ANALYZE"}  # where a restore stops


@contextlib.contextmanager
def shut(scene: Scene, lock: str = "pg_shdescription IN SHARE UPDATE EXCLUSIVE MODE"
         ) -> Iterator[Callable[[], None]]:
    """Lock a catalog that all databases share, until what is yielded is called."""
    env = scene.postgres._environment(
        PGHOST="127.0.0.1", PGPORT=str(scene.postgres.port), PGUSER="postgres",
        PGPASSWORD=scene.postgres.password, PGDATABASE="postgres")
    with subprocess.Popen([str(scene.postgres.bin / "psql"), "-XAtq"], env=env, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:
        assert session.stdin and session.stdout
        print(f"BEGIN; LOCK {lock}; SELECT 1;", file=session.stdin, flush=True)
        assert session.stdout.readline() == "1\n"
        yield session.stdin.close


def at_the_gate(scene: Scene) -> str:
    """Wait for a session that waits for a lock, in whatever database; its process id."""
    waiting = (f"SELECT pid FROM pg_stat_activity WHERE {HELD_UP}"
               " AND backend_type = 'client backend'")  # autovacuum waits for some, too
    return until_found(scene.postgres, waiting)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("stage", ["download", "making", *GATES])
def test_a_restore_that_is_stopped_leaves_nothing_that_looks_whole(
        scene: Scene, new: str, meddler: Proxy, stage: str, sig: signal.Signals) -> None:
    scene.sql(GATE.format(GATES.get(stage, "nothing")))
    name, asked, go_on = stored(scene, archive(scene)), threading.Event(), threading.Event()
    before = databases(scene.postgres)

    def hold(data: bytes) -> bytes:
        if stage == "download" and re.match(rb"GET \S+\.bak", data):
            asked.set()
            go_on.wait()
        return data

    meddler.request = hold
    lock = ["pg_database IN SHARE MODE"] if stage == "making" else []
    with shut(scene, *lock) as release, Executor(
            {**scene.settings, **through(meddler)}, "restore", name, "--database", new) as executor:
        if stage == "download":
            assert asked.wait(PATIENCE)
        else:
            at_the_gate(scene)
        children = descendants(executor.pid)
        executor.process.send_signal(sig)
        becomes_true(lambda: not set(children) & set(descendants(executor.pid)))
        release()  # what the server had begun goes on
        go_on.set()
        assert executor.wait() == (-9 if sig == signal.SIGKILL else 128 + sig), executor.log
    becomes_true(lambda: scene.postgres.sql(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'") == "1")
    made = set(databases(scene.postgres)) - set(before)
    assert new not in made and scene.files() == [] and "Traceback" not in executor.log
    whole = {name for name in made if f'whole" Database={name}\n' in executor.log}
    assert len(whole) == (stage == "count")
    if sig != signal.SIGKILL:
        assert made == whole
        for naming in re.findall("(?s)BEGIN;.*COMMIT;", "\n".join(executor.out)):
            scene.postgres.sql(naming)
            same_databases(scene, new)
    assert (new in databases(scene.postgres)) == (stage == "count" and sig != signal.SIGKILL)


@pytest.mark.parametrize("stage", GATES)
def test_a_restore_that_waits_asks_after_the_server_within_a_minute(
        scene: Scene, new: str, stage: str) -> None:
    scene.sql(GATE.format(GATES[stage]))
    name = stored(scene, archive(scene))
    with shut(scene) as release, Executor(
            scene.settings, "restore", name, "--database", new) as executor:
        # One reading of the kernel's list may miss it, and another lock may have been waited for.
        becomes_true(
            lambda: asked_after(scene.postgres).get(at_the_gate(scene), FOREVER) <= 60)
        release()
        assert executor.wait() == 0, executor.log


def test_what_cannot_be_dropped_for_want_of_open_files_is_named(scene: Scene, new: str) -> None:
    scene.sql(GATE.format(GATES["restore"]))
    name, before = stored(scene, archive(scene)), databases(scene.postgres)
    with shut(scene), Executor(scene.settings, "restore", name, "--database", new) as executor:
        waiting = at_the_gate(scene)
        _, hard = resource.prlimit(executor.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(executor.pid, resource.RLIMIT_NOFILE, (5, hard))
        scene.postgres.sql(f"SELECT pg_terminate_backend({waiting})")
        assert executor.wait() == 1, executor.log
    [made] = set(databases(scene.postgres)) - set(before)
    left, why = error_lines(executor.log)
    assert f"{made} is left on the server: " in left and "Too many open files" in left
    assert "terminating connection" in why


def test_kill_9_leaves_no_program_that_goes_on_restoring(scene: Scene, new: str) -> None:
    scene.sql(GATE.format(GATES["restore"]))
    name = stored(scene, archive(scene))
    with shut(scene), Executor(scene.settings, "restore", name, "--database", new,
                               "--jobs", "1") as executor:
        at_the_gate(scene)
        started = descendants(executor.pid)
        executor.process.kill()
        becomes_true(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in started))


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("fault", ["data", "session", "connection"])
def test_a_restore_that_fails_leaves_nothing(
        scene: Scene, new: str, fault: str, jobs: str) -> None:
    scene.sql(f"CREATE TABLE picky (i int CHECK (current_database() = '{scene.database}'));"
              " INSERT INTO picky VALUES (1)" if fault == "data" else GATE.format("COPY"))
    arguments = ["restore", stored(scene, archive(scene)), "--database", new, "--jobs", jobs]
    arguments += ["--only-complete"] * (fault == "data")
    before = databases(scene.postgres)
    with Proxy(scene.postgres.port) as proxy, contextlib.ExitStack() as gate, Executor(
            {**scene.settings, "DB_PORT": str(proxy.port)}, *arguments) as executor:
        if fault != "data":
            gate.enter_context(shut(scene))
        pid = at_the_gate(scene) if fault != "data" else ""
        if fault == "session":
            scene.postgres.sql(f"SELECT pg_terminate_backend({pid})")
        elif fault == "connection":
            proxy.down()
            proxy.up()
        assert executor.wait() == 1, executor.log
    assert len(re.findall("level=error", executor.log)) == 1 and not executor.out
    assert "picky" in executor.log or fault != "data"
    assert databases(scene.postgres) == before and scene.files() == []


# What can only be restored into a database of this name: rows, or, in the last step, an index.
PICKY = {"rows": """CREATE TABLE picky (i int CHECK (current_database() = '{}'));
    INSERT INTO picky VALUES (1)""", "index": """CREATE FUNCTION picky(i int) RETURNS int IMMUTABLE
    LANGUAGE plpgsql AS $$ BEGIN IF current_database() <> '{}' THEN RAISE 'picky'; END IF;
    RETURN i; END $$; CREATE INDEX ON t (public.picky(id))"""}


@pytest.mark.parametrize("fault", PICKY)
@pytest.mark.parametrize("there", [False, True], ids=["made", "was empty"])
def test_what_is_kept_of_a_failed_restore_is_all_but_what_was_refused_and_not_named(
        scene: Scene, new: str, there: bool, fault: str) -> None:
    scene.sql(PICKY[fault].format(scene.database) + "; ALTER TABLE t ADD UNIQUE (id, text)")
    name, before = stored(scene, archive(scene)), databases(scene.postgres)
    if there:
        scene.postgres.run("createdb", new)
    said = restored(scene, name, "--database", new, status=1).stderr
    [kept] = set(databases(scene.postgres)) - {*before, new}
    assert re.fullmatch(r"restore_\d+", kept) and "picky" in said
    assert re.search(f"level=warning .*not whole: it is kept.* Database={kept}", said)
    assert scene.postgres.sql("SELECT count(*) FROM t", kept) == "500"
    constraints = "SELECT conname FROM pg_constraint WHERE conrelid = 't'::regclass ORDER BY 1"
    assert scene.postgres.sql(constraints, kept) == scene.sql(constraints)


def test_what_cannot_be_applied_is_listed_and_the_rest_is_there(scene: Scene, new: str) -> None:
    scene.sql(f"""INSERT INTO pg_db_role_setting SELECT oid, 0, '{{work_mem=7MB,of_the_past=1,
        statement_timeout=61s}}' FROM pg_database WHERE datname = current_database();
        ALTER DATABASE {scene.database} CONNECTION LIMIT 17""")
    name = stored(scene, archive(scene))
    ran = restored(scene, name, "--database", new, status=1)
    errors = "\n".join(error_lines(ran.stderr))
    assert "of_the_past" in errors and "500  public.t" in ran.stdout
    same_databases(scene, new)
    applied = scene.postgres.sql("""SELECT current_setting('work_mem'), current_setting(
        'statement_timeout'), datconnlimit FROM pg_database WHERE datname = current_database()""",
                                 new).split("|")
    for name, applied_, value in zip(
            ("work_mem", "statement_timeout", "LIMIT"), applied, ("7MB", "61s", "17")):
        assert applied_ in (value, "61s", "1min 1s") or name in errors, (name, errors)


def test_a_statistic_that_fails_loses_nothing(scene: Scene, new: str) -> None:
    scene.sql("""CREATE FUNCTION sulk(i int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
        IF current_query() ~ 'ANALYZE' THEN RAISE 'no statistics'; END IF; RETURN i; END $$;
        CREATE INDEX ON t (public.sulk(id)); CREATE TABLE z AS SELECT 1 AS one""")
    ran = restored(scene, stored(scene, archive(scene)), "--database", new, status=1)
    [error] = error_lines(ran.stderr)
    assert "public.t: not analyzed: no statistics" in error and "500  public.t" in ran.stdout
    same_databases(scene, new)
    assert scene.postgres.sql("SELECT reltuples FROM pg_class WHERE relname = 'z'", new) == "1"


def test_a_session_that_is_cut_when_all_is_restored_loses_nothing(scene: Scene, new: str) -> None:
    scene.sql(GATE.format(GATES["count"]))
    name = stored(scene, archive(scene))
    with shut(scene), Executor(scene.settings, "restore", name, "--database", new,
                               "--jobs", "1") as executor:
        scene.postgres.sql(f"SELECT pg_terminate_backend({at_the_gate(scene)})")
        assert executor.wait() == 1, executor.log
    [error] = re.findall("level=error .*", executor.log)
    assert "Not analyzed: " in error and any("500  public.t" in line for line in executor.out)
    same_databases(scene, new)


@pytest.mark.parametrize("may_end", [True, False], ids=["ended", "left"])
@pytest.mark.parametrize("where", ["restored", "empty"])
def test_a_session_that_is_in_the_way_is_ended_or_the_naming_told(
        scene: Scene, new: str, restorer: dict[str, str], where: str, may_end: bool) -> None:
    # A role that is no superuser may lock nothing that all databases share: it waits for a role.
    scene.sql(f"""CREATE FUNCTION wait() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
        WHILE current_database() <> '{scene.database}' AND NOT EXISTS (
            SELECT FROM pg_roles WHERE rolname = '{new}') LOOP PERFORM pg_sleep(0.05); END LOOP;
        RETURN true; END $$; ALTER TABLE t ADD CHECK (public.wait())""")
    name = stored(scene, archive(scene))
    more, status = ([], 0) if may_end else (["--no-owner"], 1)
    if where == "empty":
        scene.postgres.sql(f"CREATE DATABASE {new} OWNER "
                           + ("postgres" if may_end else restorer["DB_USER"]))
    settings = {**scene.settings, **({} if may_end else restorer), "BACKUP_TIME_SCALE": "0.01"}
    with contextlib.ExitStack() as sessions:
        if where == "empty":
            sessions.enter_context(connected(scene.postgres, new))
        with Executor(settings, "restore", name, "--database", new, *more) as executor:
            scratch = paused(scene.postgres)
            if where == "restored":
                sessions.enter_context(connected(scene.postgres, scratch))
            scene.postgres.sql(f"CREATE ROLE {new}")
            assert executor.wait() == status, executor.log
        said = "\n".join(executor.out)
        assert ("Restored" in said) and ("To name it" in said) == (not may_end)
        assert ("accessed by other users" in executor.log) == (not may_end)
        named = re.search(r"in the way: pid \d+ \(psql, of postgres\)", executor.log)
        assert bool(named) == (not may_end), executor.log
    if not may_end:
        becomes_true(lambda: scene.postgres.sql(
            f"SELECT count(*) FROM pg_stat_activity WHERE datname IN ('{new}', '{scratch}')"
        ) == "0")
        assert scratch in databases(scene.postgres) and scratch in said
        [naming] = re.findall("(?s)BEGIN;.*COMMIT;", said)
        scene.postgres.sql(naming)
    assert scene.postgres.fingerprint(new) == scene.postgres.fingerprint(scene.database)
    assert (f"before_{scratch}" in databases(scene.postgres)) == (where == "empty")
    scene.postgres.sql(f"DROP ROLE {new}")


# ---- Restores when S3 fails

GETTING = rb"^GET \S*\.bak"


@pytest.mark.parametrize("times", [1, 9])
def test_a_download_that_is_cut_goes_on(big: Scene, times: int) -> None:
    name, before = stored(big, archive(big)), databases(big.postgres)
    with Proxy(big.s3.port) as proxy:
        proxy.shear(GETTING, 2**20, times)
        restored(big, name, "--database", big.prefix, **through(proxy, 0.02))
        assert not proxy.rules
    assert big.postgres.fingerprint(big.prefix) == big.postgres.fingerprint("big")
    assert set(databases(big.postgres)) - set(before) == {big.prefix}
    big.postgres.sql(f"DROP DATABASE {big.prefix}")


@pytest.mark.parametrize("when", ["from the start", "amid the download"])
def test_an_s3_that_stays_away_is_one_clear_error(scene: Scene, new: str, when: str) -> None:
    name = stored(scene, archive(scene))
    with Proxy(scene.s3.port) as proxy:
        proxy.shear(GETTING, 3000, FOREVER)
        if when == "from the start":
            proxy.down()
        error = refused(scene, name, "--database", new, **through(proxy, 0.02))
        assert "S3 at" in error and str(proxy.port) in error


def test_a_backup_ends_no_restore_of_the_same_executor(scene: Scene, new: str) -> None:
    scene.settings["COLONIES_EXECUTOR_NAME"] = "a-name-that-is-long-enough-for-an-odd-case" * 2
    scene.sql(GATE.format(GATES["restore"]))
    name = stored(scene, archive(scene))
    with shut(scene) as release, Executor(
            scene.settings, "restore", name, "--database", new) as executor:
        at_the_gate(scene)
        assert run(scene.settings, "backup").returncode == 0
        release()
        assert executor.wait() == 0, executor.log


# ---- A restore by hand -------------------------------------------------------------------------

def test_the_restore_by_hand_does_what_the_readme_says(
        scene: Scene, new: str, tmp_path: Path) -> None:
    governed(scene)
    name = scene.backup()["filename"]
    said = restored_by_hand(scene, name, new, tmp_path, "plain PostgreSQL")
    assert said.count("public.t|500") == 1
    same_databases(scene, new)
    assert scene.postgres.sql(PROPERTIES, new) == scene.sql(PROPERTIES)
