"""The faults: every call broken, programs killed at random, tables changed meanwhile."""
from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import re
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bench import say
from colonies import FAILED, SUCCESS
from environment import FRONT
from proxies import Fault, colonies_faults, s3_faults, wire_faults
from readme import least_privileges, markdown
from servers import (
    HELD_UP,
    Postgres,
    S3Server,
    SeaweedFS,
    compiled,
    descendants,
    run,
    temporary_folder,
)
from surroundings import (
    DOUBTS,
    FAULT_KEEP,
    Footprint,
    Scene,
    World,
    becomes_true,
    numbered,
    s3_call,
)
from timescale import Timescale

# The calls of a backup to S3 by a mark of each, as boto3 names them, and so the errors.
VERBS = {"list-type": "list_objects_v2", "HEAD": "head_object", "DELETE": "delete_object",
         "uploads": "create_multipart_upload", "partNumber": "upload_part",
         "uploadId": "complete_multipart_upload"}
# PostgreSQL's sessions in which no query is asked again: what the error begins with.
SESSIONS = {"psql#1": "Looking at the database: psql: exit status 2: ",
            "psql#2": "Ending sessions of an earlier run: psql: exit status 2: ",
            "pg_dump#1": "Backing up database: pg_dump: exit status 1: "}
# Patterns of the first packets: that a program asks a server for these options is ours.
PROGRAMS = {"psql": rb"search_path=pg_catalog",
            "pg_dump": rb"(?s)^(?!.*search_path).*client_connection_check_interval"}
OLDER = r"^HEAD [^?]*\.bak #1"  # the first look of a backup at an object, the newest that is there


class Case(NamedTuple):
    """One fault at one call, and what must come of it."""

    peer: str
    call: str
    fault: Fault
    proven: bool = False  # S3 has the backup by then: what is left is retention

    def __str__(self) -> str:
        return f"{self.fault.name} at {self.call} ({self.peer})"

    def ends(self) -> list[str]:
        """How its process may end: patterns of its whole error; "" is a success.

        There is one such end, but for what depends on the moment.
        """
        if self.peer == "Colonies, joining":  # what is submitted there is no backup
            return ["no function 'nothing' .*"]
        if self.peer == "Colonies" or not self.fault.lasting or self.proven:
            return [""]  # Colonies is waited for, whatever it says; retention fails no backup
        if self.peer == "S3":
            return self.ends_with_s3()
        if self.call in SESSIONS:
            return [self.said(SESSIONS[self.call])]
        refused = self.fault.action == "refuse"
        # What the dump lacks is asked for once, the tables before it are twice, and at once: a
        # machine that is slow may take longer than a server refuses.
        if self.call in ("psql#3", "psql#4"):
            said = self.said("Reading the tables: psql: exit status 2: ")
            return ["", said] if refused else [""]
        # Looks at pg_dump's locks, which are repeated, and what is asked for a minute. A server
        # that refuses sessions has cut pg_dump's, too: if it is not over, that fails.
        return ["", "Backing up database: pg_dump: exit status 1: .*"] if refused else [""]

    def ends_with_s3(self) -> list[str]:
        """The same for what S3 means, before it has the backup."""
        if self.fault.name.startswith("403") and self.call == OLDER:
            return [""]  # an object that is not ours to look at is passed over
        verb = next(verb for mark, verb in VERBS.items() if mark in self.call)
        return [self.said(rf"S3 at \S+, bucket backup: {verb}: .*")]

    def said(self, step: str) -> str:
        """An error that names a step, and the fault."""
        return f"{step}{self.fault.lasting}.*"

    def kinds(self) -> set[tuple[object, ...]]:
        """Of what a choice of cases should have one each: each fault, and each call both ways."""
        fault = self.fault
        if self.peer == "PostgreSQL":  # where a session is cut is a fault of its own
            return {(self.call, fault.action) if fault.lasting else (self.peer, fault.action)}
        unseen = self.ends() == [""] and not self.doubts  # nobody may notice it
        return {(self.peer, fault.name, fault.lasting, unseen),
                (self.peer, self.call, fault.believed)}

    @property
    def doubts(self) -> bool:
        """Whether retention must say that it leaves something alone."""
        believed = "HEAD" in self.call and self.fault.believed
        return self.proven and (bool(self.fault.lasting) or believed)


COLONIES_CALLS = ["getprocessesmsg#1", "getcronsmsg#1", "assignprocessmsg#1", "getprocessmsg#1",
                  "setoutputmsg#1", "addlogmsg#1", "addlogmsg#2", "closesuccessfulmsg#1",
                  "updateexecutormsg#1"]
JOINING_CALLS = ["assignprocessmsg#1", "addexecutormsg#1", "approveexecutormsg#1",
                 "assignprocessmsg#2", "getfunctionsmsg#1", "addfunctionmsg#1", "addfunctionmsg#2",
                 "addfunctionmsg#3", "addcronmsg#1", "updateexecutormsg#1", "closefailedmsg#1"]


def suffer(world: World, case: Case) -> None:
    """Have a world go through one case, audit it, and have nothing of it left for the next one."""
    kind, _, number = case.call.partition("#")
    dumps, executor = world.dumps, world.executor
    assert executor
    proxy, pattern = {
        "S3": (world.store, kind.encode()),
        "PostgreSQL": (world.wire, PROGRAMS.get(kind, b"")),
    }.get(case.peer, (world.front, f'"payloadtype": ?"{kind}"'.encode()))

    def arm() -> None:
        proxy.expect(pattern, int(number) - 1)
        proxy._add(pattern, case.fault.action, case.fault.argument, case.fault.times)

    world.lost += "uploads" in case.call
    if case.peer in ("S3", "PostgreSQL"):
        arm()
        process = world.submit()
    else:
        world.front.hang()
        world.front.drop()
        if case.peer == "Colonies, joining":
            world.forget()
        arm()
        process = world.submit("nothing" if case.peer == "Colonies, joining" else "backup")
        world.front.up()
    ended = world.ended(process, 120)
    world.calm()
    executor.wait_for(f"(Closed|Cannot close the) process.*={process}")  # all was said before
    said = world.audit(ended)
    errors = "; ".join(ended["errors"])
    assert any(re.fullmatch(f"(?s){end}", errors) for end in case.ends()), (
        f"{errors or 'a success'}, which is none of {case.ends()}")
    assert bool(re.search(DOUBTS, said)) == case.doubts, f"in doubt, or not: {said}"
    if case.peer != "PostgreSQL":
        assert world.dumps - dumps <= 1, "it was dumped twice"
    if os.listdir(world.folder) or len(world.looked_at()) > FAULT_KEEP:
        ended = world.ordered()  # it finishes what the failed one had dumped, and removes the rest
        assert ended["state"] == SUCCESS, ended["errors"]
        executor.wait_for(f"Closed process.*={ended['processid']}")
        world.audit(ended)


def every_case(world: World) -> list[Case]:
    """Each fault at each call of a backup, as one good backup has them."""
    before, earlier = len(world.store.requests), len(world.wire.sessions)
    world.audit(world.ordered())
    # What verify said has tests of its own (test_keeping): in doubt nothing goes, in other words.
    made = numbered([s3_call(request) for request in world.store.requests[before:]
                     if b"/verified.json " not in request])
    proof = made.index(numbered([s3_call(b"POST /?uploadId=1 ")])[0]) + 1  # a HEAD
    sessions = [session for session in world.wire.sessions[earlier:]
                if b"user" in session.first]  # not those by which psql cancels a query
    programs = numbered([next(name for name, first in PROGRAMS.items()
                              if re.search(first, session.first)) for session in sessions])
    s3, colonies = s3_faults(world.away.port), colonies_faults(world.away.port)
    cases = [
        *(Case("S3", call, fault, place > proof) for place, call in enumerate(made) for fault in s3
          if re.search(fault.at, call)),
        *(Case(peer, call, fault) for peer, calls in (
            ("Colonies", COLONIES_CALLS), ("Colonies, joining", JOINING_CALLS))
          for call in calls for fault in colonies if re.search(fault.at, call)),
        *(Case("PostgreSQL", call, fault) for call, session in zip(programs, sessions)
          for fault in wire_faults(session.answered))]
    idle = {(fault.name, fault.at) for fault in (*s3, *colonies)} - {
        (case.fault.name, case.fault.at) for case in cases}
    assert not idle, f"no call can have these: {idle}"
    return cases


def some_of_each(cases: list[Case], dice: random.Random) -> list[Case]:
    """At random, so many that each kind of them is there: first those that are new in both ways."""
    seen = set[tuple[object, ...]]()
    chosen = []
    shuffled = dice.sample(cases, len(cases))
    for news in (2, 1):
        for case in shuffled:
            if len(case.kinds() - seen) >= news:
                seen |= case.kinds()
                chosen.append(case)
    return chosen


def break_calls(postgres: Postgres, s3: S3Server, choose: Callable[[list[Case]], list[Case]],
                worlds: int = 6) -> tuple[collections.Counter[str], list[str]]:
    """Go through the cases that CHOOSE leaves: how many by peer, and what went wrong."""
    count, wrong = collections.Counter[str](), list[str]()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        with World(postgres, s3, folder) as world:
            todo = iter(choose(every_case(world)))
        taking = threading.Lock()

        def live(generation: int) -> None:
            with World(postgres, s3, folder, generation=generation) as world:
                while True:
                    with taking:
                        case = next(todo, None)
                    if case is None:
                        break
                    try:
                        suffer(world, case)
                        count[case.peer] += 1
                    except Exception as error:
                        wrong.append(f"{case}: {type(error).__name__}: {error}")
                        world.calm()
                try:
                    world.rest()
                except AssertionError as error:
                    wrong.append(f"after all of them: {error}")

        threads = [threading.Thread(target=live, args=([2026, 2023][number % 2],))
                   for number in range(worlds)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return count, wrong


KILLED = {"the executor": 6, "a backup": 4, "pg_dump": 6, "PostgreSQL": 2, "the S3 server": 1,
          "Colonies": 2}  # how often, in proportion


def kill_at_random(kills: int, seed: int, minutes: float = 0) -> tuple[
        collections.Counter[str], collections.Counter[int]]:
    """Kill programs at random moments, so many or so long; how many by name, processes by end.

    Meanwhile three worlds make one backup after the other, and audit each; at last they go on until
    each has made one all the same. The stand-in for Colonies lives in this process: its
    connections are cut, and its port is closed for a while.
    """
    dice, killed, over = random.Random(seed), collections.Counter[str](), threading.Event()
    up = threading.Lock()  # held while a server is down: nobody audits then
    wrong: list[str] = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        postgres = stack.enter_context(Postgres(folder / "postgres"))
        s3 = stack.enter_context(SeaweedFS(folder / "s3"))
        s3.client().create_bucket(Bucket="backup")
        worlds = [stack.enter_context(World(postgres, s3, folder, rows=30000, roles="auto"))
                  for _ in range(3)]

        def work(world: World) -> None:
            try:
                while not over.is_set():
                    with up:
                        process = world.submit()
                    ended = world.ended(process, 180)
                    with up:
                        world.audit(ended)
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}")
                over.set()

        workers = [threading.Thread(target=work, args=(world,)) for world in worlds]
        for worker in workers:
            worker.start()
        end = time.monotonic() + minutes * 60
        try:
            while not over.is_set() and (killed.total() < kills or time.monotonic() < end):
                over.wait(dice.random() * 0.3)
                [name] = dice.choices(list(KILLED), list(KILLED.values()))
                with up:
                    killed[name] += kill_one(name, dice, dice.choice(worlds), postgres, s3)
            becomes_true(lambda: over.is_set() or all(
                world.ends[SUCCESS] > FAULT_KEEP for world in worlds), 300)
        finally:
            over.set()
            for worker in workers:
                worker.join()
        assert not wrong, f"seed {seed}: {wrong}"
        for world in worlds:
            world.rest(killed=True)
        return killed, sum((world.ends for world in worlds), collections.Counter[int]())


def kill_one(name: str, dice: random.Random, world: World, postgres: Postgres,
             s3: S3Server) -> bool:
    """Kill what NAME says, and start it again; whether it was there to be killed."""
    if name == "the executor":
        world.kill()
    elif name == "Colonies":
        world.standin.kill()
        threading.Event().wait(dice.random())
        world.standin.start()
    elif name == "PostgreSQL":
        postgres.kill()
        postgres.start()
    elif name == "the S3 server":
        s3.kill()
        s3.start()
        becomes_true(world.readable)  # it listens before it finds its data
    else:
        assert world.executor
        for _ in range(100):  # they come and go
            for pid in descendants(world.executor.pid):
                with contextlib.suppress(OSError):
                    handle = os.pidfd_open(pid)
                    with open(handle, closefd=True):
                        comm = Path(f"/proc/{pid}/comm").read_text().strip()
                        if (comm == "pg_dump") == (name == "pg_dump"):
                            signal.pidfd_send_signal(handle, signal.SIGKILL)
                            return True
            threading.Event().wait(0.01)
        return False
    return True


def soak(postgres: Postgres, s3: S3Server, backups: int) -> tuple[Footprint, Footprint]:
    """The footprint of one executor after 10 backups, and after BACKUPS."""
    with temporary_folder() as folder, World(postgres, s3, folder, by=compiled()) as world:
        footprints = []
        for count in (10 - FAULT_KEEP, backups - 10):
            for _ in range(count):
                world.audit(world.ordered())
            footprints.append(world.footprint())
        assert world.executor and world.ends == {SUCCESS: backups}
        return footprints[0], footprints[1]


ROWS_EACH, CHUNKS = 100, 60  # each table below has so many rows in every state that is committed
FILLING = f"SELECT i, md5(i::text) AS text FROM generate_series(1, {ROWS_EACH}) i"
DISTURBED = f"""CREATE EXTENSION timescaledb; CREATE TABLE gate (i int);
    CREATE TABLE one AS {FILLING}; CREATE TABLE two AS {FILLING}; CREATE SCHEMA zone;
    CREATE TABLE zone.three AS {FILLING}; CREATE TABLE split (i int, text text)
    PARTITION BY RANGE (i); CREATE TABLE part PARTITION OF split FOR VALUES FROM (1) TO (1000);
    INSERT INTO part {FILLING}; CREATE MATERIALIZED VIEW seen AS TABLE one;
    CREATE TABLE readings (i int, text text);
    INSERT INTO _timescaledb_catalog.hypertable (schema_name, table_name) VALUES
    ('public', 'readings'); SET timescaledb.restoring = 'on'; DO $$ BEGIN
    FOR n IN 1 .. {CHUNKS} LOOP
        EXECUTE format('CREATE TABLE _timescaledb_internal.chunk_%s () INHERITS (public.readings);
            INSERT INTO _timescaledb_internal.chunk_%1$s {FILLING};
            INSERT INTO _timescaledb_catalog.chunk VALUES (%1$s, 1, %2$L, %3$L)', n, 'chunk_' || n,
            '');
    END LOOP; END $$"""
# What is done to them, each in a transaction of its own, by a session that waits for no lock long.
DISTURBANCES = {
    "truncated and filled": f"BEGIN; TRUNCATE one; INSERT INTO one {FILLING}; COMMIT",
    "rewritten": "ALTER TABLE two ALTER i TYPE bigint; ALTER TABLE two ALTER i TYPE int",
    "swapped": f"CREATE TABLE fresh AS {FILLING}; BEGIN; ALTER TABLE one RENAME TO stale;"
               " ALTER TABLE fresh RENAME TO one; COMMIT; DROP MATERIALIZED VIEW seen; DROP TABLE"
               " stale; CREATE MATERIALIZED VIEW seen AS TABLE one",
    "dropped and made": f"DROP TABLE IF EXISTS two; CREATE TABLE two AS {FILLING}",
    "in a schema that is swapped": "DROP SCHEMA IF EXISTS gone CASCADE; BEGIN; ALTER SCHEMA zone"
        f" RENAME TO gone; CREATE SCHEMA zone; CREATE TABLE zone.three AS {FILLING}; COMMIT",
    "detached and attached": "ALTER TABLE split DETACH PARTITION part; ALTER TABLE split ATTACH"
                             " PARTITION part FOR VALUES FROM (1) TO (1000)",
    "widened, a column at a time": """BEGIN; ALTER TABLE zone.three ADD more bigint;
        UPDATE zone.three SET more = i; ALTER TABLE zone.three DROP i;
        ALTER TABLE zone.three RENAME more TO i; COMMIT""",
    "packed, or the view of it refreshed": "VACUUM FULL two; REFRESH MATERIALIZED VIEW seen",
    "compressed": "SELECT compress_chunk(format('_timescaledb_internal.%I', table_name)) FROM"
                  " _timescaledb_catalog.chunk WHERE compressed = '' ORDER BY random() LIMIT 2"}


class Disturbed:
    """A database whose tables are changed all the time, and what its backups have of it."""

    def __init__(self, timescale: Timescale, s3: S3Server, folder: Path, seed: int) -> None:
        self.name, self.dice = f"disturbed_{secrets.token_hex(4)}", random.Random(seed)
        timescale.sql(f"CREATE DATABASE {self.name}")
        self.scene = Scene(timescale, s3, folder, self.name, self.name)
        self.scene.sql(DISTURBED)
        self.scene.sql(re.sub(r"\b(sensors|backup)\b", self.name, least_privileges("sql")[0]))
        self.done, self.over = collections.Counter[str](), threading.Event()
        self.hurry = threading.Event()  # a dump waits for its locks

    def disturb(self) -> None:
        """Do one thing after the other, some of which other sessions refuse."""
        while not self.over.is_set():
            self.hurry.wait(self.dice.random() * 4)
            what = self.dice.choice(list(DISTURBANCES))
            with contextlib.suppress(RuntimeError):  # deadlocks, a lock that is not to be had
                self.scene.sql(f"SET lock_timeout = '1s'; {DISTURBANCES[what]}")
                self.done[what] += 1

    def keep_waiting(self) -> None:
        """Let some dumps wait for their locks until something was done meanwhile."""
        while not self.over.is_set():
            with self.scene.locked("gate") as let_go_on:
                while not self.over.wait(0.02) and not self.dumping(HELD_UP):
                    pass
                before = self.done.total()
                self.hurry.set()
                while not self.over.wait(0.02) and self.done.total() < before + 2:
                    pass
                self.hurry.clear()
                let_go_on()
            for _ in range(self.dice.randrange(1, 4)):  # so many dumps do not wait
                while not self.over.wait(0.02) and self.dumping("true"):
                    pass
                while not self.over.wait(0.02) and not self.dumping("true"):
                    pass

    def dumping(self, how: str) -> bool:
        return self.scene.sql(
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND query"
            f" NOT LIKE '%held%' AND application_name LIKE 'colonies-backup%' AND {how}") == "t"

    def backup(self) -> dict[str, Any] | None:
        """A backup, some by a role that may not hold compression off; None: it failed."""
        settings = {**self.scene.settings, "BACKUP_TIME_SCALE": "0.01"}
        if self.dice.random() < 0.5:
            settings |= {"DB_USER": self.name, "DB_PASSWORD": "change me"}
        ran = run(settings, "backup")
        assert "Traceback" not in ran.stderr, ran.stderr
        if ran.returncode:
            assert re.search(r"level=error .*3 dumps failed", ran.stderr), ran.stderr
            return None
        result: dict[str, Any] = json.loads(ran.stdout)
        self.prove(result["filename"])
        return result

    def prove(self, name: str) -> None:
        """Whether each table that a backup holds has all its rows, and none is missing."""
        with tempfile.NamedTemporaryFile() as file:
            file.write(self.scene.objects()[name])
            file.flush()
            text = self.scene.postgres.run("pg_restore", "-a", "-f-", file.name)
        found = {table: rows.splitlines() for table, rows in re.findall(
            r"(?ms)^COPY (\S+) \(.*?\) FROM stdin;\n(.*?)^\\\.$", text)}
        rows = {table: len(lines) for table, lines in found.items() if re.match(
            r"(public|zone|gone)\.(?!gate|readings)", table)}
        assert rows.keys() >= {"public.one", "zone.three", "public.part"}, rows
        assert set(rows.values()) == {ROWS_EACH}, f"{name}: {rows}"
        chunks = [lines for table, lines in found.items() if "_timescaledb_internal.chunk" in table]
        packed = [lines for table, lines in found.items() if "_timescaledb_internal.comp" in table]
        readings = sum(map(len, chunks)) + sum(
            line.split("\t")[0].count(",") + 1 for lines in packed for line in lines)
        assert readings == ROWS_EACH * CHUNKS, f"{name}: {readings} readings"


def change_meanwhile(timescale: Timescale, s3: S3Server, seed: int, backups: int,
                     minutes: float = 0) -> tuple[collections.Counter[str], list[int]]:
    """Back up a database whose tables are truncated, swapped, compressed … at the same time.

    It goes on, for ten times as many BACKUPS at most, until that was done to it in four ways, and a
    backup was good at a further dump. What was done, and how many backups were good, good only at a
    further dump, and failed.
    """
    with temporary_folder() as folder:
        world = Disturbed(timescale, s3, folder, seed)
        threads = [threading.Thread(target=work) for work in (world.disturb, world.keep_waiting)]
        for thread in threads:
            thread.start()
        ends: list[int] = []
        end = time.monotonic() + minutes * 60
        try:
            while (len(ends) < backups or time.monotonic() < end or (
                    len(ends) < 10 * backups and (len(world.done) < 4 or max(ends) < 1))):
                result = world.backup()
                ends.append(len(result["made_again"]) if result else -1)
        finally:
            world.over.set()
            for thread in threads:
                thread.join()
        assert world.scene.files() == []
        timescale.sql(f"DROP DATABASE {world.name} WITH (FORCE); DROP ROLE {world.name}")
    return world.done, [sum(each >= 0 for each in ends), sum(each > 0 for each in ends),
                        ends.count(-1)]


def faults(arguments: list[str]) -> int:
    """Break every call of a backup, kill programs at random, make many backups; print tables."""
    parser = argparse.ArgumentParser(prog=f"{FRONT.name} faults", description=faults.__doc__)
    parser.add_argument("--minutes", type=float, default=10, metavar="N",
                        help="kill for so long, at least 200 times (10)")
    parser.add_argument("--backups", type=int, default=1000, metavar="N",
                        help="backups that one executor makes; at least 20 (1000)")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32),
                        help="of what is killed, and when (any)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with (temporary_folder() as folder, Postgres(folder / "postgres") as postgres,
              SeaweedFS(folder / "s3") as s3):
            s3.client().create_bucket(Bucket="backup")
            say("breaking each call in each way")
            broken, wrong = break_calls(postgres, s3, list)
            assert not wrong, "\n".join(wrong)
            say(f"making {options.backups} backups")
            before, after = soak(postgres, s3, max(20, options.backups))
            assert before[1:] == after[1:], f"it has grown: {before}, {after}"
            say(f"changing tables while backups run, seed {options.seed}")
            with temporary_folder() as other, Timescale(other) as timescale:
                changed, good = change_meanwhile(timescale, s3, options.seed, 20,
                                                 options.minutes / 5)
        say(f"killing at random, seed {options.seed}")
        killed, ends = kill_at_random(200, options.seed, options.minutes)
    except (AssertionError, RuntimeError) as error:
        sys.exit(f"{FRONT.name}: {error}")
    except KeyboardInterrupt:
        print("\nInterrupted; everything is stopped and removed.", file=sys.stderr)
        return 130
    print(fault_table(broken, before, after, options.backups, killed, ends, changed, good))
    return 0


def fault_table(broken: collections.Counter[str], before: Footprint, after: Footprint,
                backups: int, killed: collections.Counter[str], ends: collections.Counter[int],
                changed: collections.Counter[str], good: list[int]) -> str:
    """Markdown of what was done, and what came of it."""
    rows = [[f"Each call {what}, broken in each way", f"{broken[peer]:,}", "nothing"]
            for what, peer in (("to S3", "S3"), ("to Colonies in a backup", "Colonies"),
                               ("to Colonies when it joins", "Colonies, joining"))]
    rows += [["Each session with PostgreSQL, broken in each way, cut at many bytes",
              f"{broken['PostgreSQL']:,}", "nothing"]]
    rows += [[f"kill -9 of {name}" if name != "Colonies" else "Colonies' connections cut, and away",
              f"{killed[name]:,}", "nothing"] for name in KILLED]
    rows += [["Backups in a row by one executor", f"{backups:,}", (
        f"nothing; memory {before.megabytes:.1f} MB after 10, {after.megabytes:.1f} MB at the"
        " end; files, threads, sessions, registrations: none more")]]
    rows += [[f"Tables {what} while a backup runs", f"{changed[what]:,}", "nothing"]
             for what in DISTURBANCES]
    note = (f"Of the {ends.total():,} backups during which something was killed {ends[SUCCESS]:,}"
            f" came to a proven object, {ends[FAILED]:,} were closed as failed with the reason."
            f" Of the {good[0] + good[2]:,} during which tables were changed {good[0]:,} have every"
            f" row, {good[1]:,} of them at the second or third dump; {good[2]:,} failed and named"
            " the tables.")
    return f"{markdown(['fault', 'how often tried', 'lost'], rows)}\n\n{note}"
