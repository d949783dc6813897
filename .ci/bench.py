"""The bench: the executor measured beside what is built by hand."""
from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import boto3

from colonies import SUCCESS, Standin
from debian import unpacked
from environment import FRONT, cache_lock, make_environment
from link import FAR, lacking, line, speed_of
from measuring import Ran, Watch, by_turns, cpu_of, measured
from proxies import FOREVER, PART, Proxy, through
from readme import markdown
from servers import (
    BY_PATH,
    Executor,
    Postgres,
    S3Server,
    SeaweedFS,
    backup_settings,
    client_programs,
    compiled,
    memory,
    programs,
    temporary_folder,
    tool,
)

# Measured beside ours. It can't stand among the front's requirements: it pins another botocore.
AWSCLI = "awscli==1.46.3"
BENCH_KINDS = {"notes": "text", "readings": "sensor readings", "chunks": "compressed already"}
BENCH_METHODS = ("none", "lz4", "gzip:1", "gzip:6", "zstd:1", "zstd:2", "zstd:3", "zstd:6",
                 "zstd:9")
BENCH_BASE = 0.125  # GB that this fills, a third of each kind
BENCH_SQL = """
SELECT setseed(0.5);
CREATE TABLE notes (id bigint PRIMARY KEY, body text NOT NULL);
INSERT INTO notes SELECT i, (SELECT string_agg(
        left(translate(md5(r::text), '0123456789', 'ghiklmnopr'), 2 + r % 9), ' ' ORDER BY k)
    FROM (SELECT k, floor(4000 * random() ^ 4)::int + 0 * k AS r
          FROM generate_series(1, 20 + i % 40) k) AS words) FROM generate_series(1, 124000) i;
CREATE TABLE readings (at timestamptz NOT NULL, sensor int NOT NULL, value float8, state real);
INSERT INTO readings SELECT '2026-01-01Z'::timestamptz + i * interval '10 s', sensor,
        round((20 + sum(random() - 0.5) OVER (PARTITION BY sensor ORDER BY i))::numeric, 3),
        round((50 + 10 * sin(i / 900.0) + random())::numeric, 2)
    FROM generate_series(1, 100) sensor, generate_series(1, 6950) i ORDER BY i, sensor;
CREATE TABLE chunks (id int NOT NULL, compressed text NOT NULL);
ALTER TABLE chunks ALTER compressed SET STORAGE EXTERNAL;
INSERT INTO chunks SELECT i, (SELECT string_agg(
        left(encode(sha256(random()::text::bytea), 'base64'), 43), '' ORDER BY k)
    FROM generate_series(1, 400 + i % 2) k) FROM generate_series(1, 2230) i;
"""
# What repeats is 40 MB away, farther than any of the methods looks back.
BENCH_DOUBLE = """
INSERT INTO notes SELECT id + (SELECT max(id) FROM notes), body FROM notes;
INSERT INTO readings SELECT * FROM readings;
INSERT INTO chunks SELECT * FROM chunks;
"""
BARE_BOTO3 = """
import boto3, botocore.config, sys
config = botocore.config.Config(request_checksum_calculation="when_required",
                                response_checksum_validation="when_required")
boto3.client("s3", endpoint_url=sys.argv[1], config=config).upload_file(
    sys.argv[2], "backup", "bare.bak")
"""
# These stand before PostgreSQL's own programs on the PATH. Who asks for a version isn't noted.
NOTING_PG_DUMP = """#!/bin/sh
case " $* " in *" --version "*) exec '{real}' "$@";; esac
date +%s.%N >>'{notes}'
printf '%s\\n' "$@" >>'{notes}'
'{real}' "$@"
status=$?
date +%s.%N >>'{notes}'
exit $status
"""
SYNTHETIC_PG_DUMP = """#!/bin/sh
case " $* " in *" --version "*) exec '{real}' "$@";; esac
while [ "$1" != -f ]; do shift; done
exec truncate -s {size} "$2"
"""
SYNTHETIC_PG_RESTORE = """#!/bin/sh
case " $* " in *" --list "*) exec echo '215; 0 2200 TABLE DATA public notes postgres';; esac
exec '{real}' "$@"
"""


def synthetic_programs(folder: Path, size: int) -> str:
    """A PATH whose pg_dump makes an archive of SIZE bytes that hold nothing."""
    real = client_programs()[0]
    return programs(folder, pg_dump=SYNTHETIC_PG_DUMP.format(real=real / "pg_dump", size=size),
                    pg_restore=SYNTHETIC_PG_RESTORE.format(real=real / "pg_restore"))


OURS = "ours"


class Sample(NamedTuple):
    """A number of ours, and its counterpart of the same repetition where there is one."""

    what: str
    ours: float
    unit: str = "s"
    other: str = ""
    theirs: float = 0.0
    reach: float = 0.0  # of the ratio, or of our number where it stands alone; 0: none is set

    @property
    def value(self) -> float:
        return self.ours / self.theirs if self.other else self.ours


class Dumped(NamedTuple):
    """What the noting pg_dump noted: when it began and ended, and its arguments."""

    began: float
    ended: float
    arguments: list[str]

    @property
    def seconds(self) -> float:
        return self.ended - self.began


def bench(arguments: list[str]) -> int:
    """Measure the executor beside what people build by hand; print tables."""
    def sizes(text: str) -> list[float]:
        found = sorted(map(float, text.split(",")))
        if any(size not in [BENCH_BASE * 2 ** power for power in range(16)] for size in found):
            raise ValueError
        return found

    parser = argparse.ArgumentParser(prog=f"{FRONT.name} bench", description=bench.__doc__)
    parser.add_argument("--sizes", type=sizes, default=[0.5, 4.0], metavar="GB,GB",
                        help="databases for the comparisons: 0.5 GB, doubled or halved (0.5,4)")
    parser.add_argument("--growth", type=sizes, default=[0.5, 1.0, 2.0, 4.0], metavar="GB,GB",
                        help="databases for the table of growth (0.5,1,2,4)")
    parser.add_argument("--archive", type=float, default=20.0, metavar="GB",
                        help="the synthetic archive; 0 leaves it out (20)")
    parser.add_argument("--tables", type=int, default=20_000, metavar="N",
                        help="the database of many tables to restore; 0 leaves it out (20,000)")
    parser.add_argument("--kept", type=int, default=1000, metavar="N",
                        help="the backups beside which commands run; 0 leaves it out (1,000)")
    parser.add_argument("--against", type=Path, metavar="FILE",
                        help="another build of the executor, measured beside so many")
    parser.add_argument("--link", type=speed_of, metavar="400mbit,10ms",
                        help="backups over such a line, too, so long there and back; takes root")
    parser.add_argument("--repeat", type=int, default=5, metavar="N",
                        help="so often; from 2 GB on three times (5)")
    parser.add_argument("--only", choices=MEASUREMENTS, help="one measurement, for development")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.link and lacking():
        say(f"{FRONT.name}: --link is left out: it takes {lacking()}")
        options.link = None
    try:
        with temporary_folder() as folder:
            needed = 3 + max(5 * options.sizes[-1], 2 * options.growth[-1], options.archive)
            free = shutil.disk_usage(folder).free / 1e9
            if free < needed:
                sys.exit(f"{FRONT.name}: {folder.parent} has {free:.1f} GB free; the bench needs"
                         f" {needed:.1f} (TMPDIR, --sizes, --archive)")
            aws = awscli()
            server = Postgres(folder / "postgres")
            server.fsync = "on"  # as people have it: each transaction of a restore waits for it
            with server as postgres:  # pg_dump locks all tables at once
                postgres.sql("ALTER SYSTEM SET max_locks_per_transaction = 1000")
                postgres.stop()
                postgres.start()
                tables = Bench(folder, postgres, aws, options).tables()
    except RuntimeError as error:
        sys.exit(f"{FRONT.name}: {error}")
    except KeyboardInterrupt:
        print("\nInterrupted; everything is stopped and removed.", file=sys.stderr)
        return 130
    print("\n\n".join(filter(None, tables)))
    return 0


def awscli() -> list[str]:
    """The command that runs aws, of an environment of its own, made where it isn't there yet."""
    with cache_lock() as cache:
        target = cache / AWSCLI.replace("==", "-")
        if not target.exists():
            make_environment(target, [AWSCLI], 20)
    return [str(target / "bin/python"), "-m", "awscli"]


class Backup(NamedTuple):
    """One backup of ours: submitted when, dumped how, closed when, and its result."""

    submitted: float
    dumped: Dumped | None
    closed: float
    result: dict[str, Any]
    logs: list[dict[str, Any]]

    @property
    def seconds(self) -> float:
        return self.closed - self.submitted

    def logged(self, text: str) -> float:
        """When the process's log first had TEXT."""
        return next(log["timestamp"] for log in self.logs if text in log["message"]) / 1e9

    def steps(self) -> list[float]:
        """Seconds to the start of pg_dump, of pg_dump, to read it back, of the upload, and left."""
        assert self.dumped
        uploading = self.logged("Uploading")
        steps = [self.dumped.began - self.submitted, self.dumped.seconds,
                 uploading - self.dumped.ended, self.logged("Successfully uploaded") - uploading]
        return [*steps, self.seconds - sum(steps)]


class Bench:
    """Where it is measured, and what came of it."""

    def __init__(self, folder: Path, postgres: Postgres, aws: list[str],
                 options: argparse.Namespace) -> None:
        self.folder, self.postgres, self.aws, self.options = folder, postgres, aws, options
        self.builds = {OURS: compiled()}  # as in the image
        if options.against:
            self.builds[options.against.name] = compiled(options.against)
        self.notes = folder / "notes"
        self.archive, self.copy = str(folder / "archive.bak"), str(folder / "copy.bak")
        self.path = programs(folder / "noting", pg_dump=NOTING_PG_DUMP.format(
            real=postgres.bin / "pg_dump", notes=self.notes))
        self.filled = 0.0
        self.samples: list[Sample] = []
        self.rows: dict[str, list[list[str]]] = {"compression": [], "growth": []}

    def fill(self, size: float) -> None:
        """Have a database of SIZE GB; it only grows."""
        if not self.filled:
            self.postgres.run("createdb", "bench")
        while self.filled < size:
            say(f"growing the database from {self.filled:g} GB")
            self.postgres.sql(BENCH_DOUBLE if self.filled else BENCH_SQL, "bench")
            self.filled = 2 * self.filled or BENCH_BASE
        self.postgres.sql("VACUUM ANALYZE; CHECKPOINT", "bench")  # else the first readers write
        self.dump("--compress=none", "--no-sync", "-f", "/dev/null")  # or wait for the disk

    def times(self, size: float) -> range:
        repeat: int = self.options.repeat
        return range(repeat if size < 2 else min(repeat, 3))

    def environment(self, s3: S3Server | None = None) -> dict[str, str]:
        """For what is built by hand: all of it with its defaults."""
        keys = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key,
                "AWS_DEFAULT_REGION": "us-east-1", **s3.rclone_environment()} if s3 else {}
        return {**keys, "HOME": str(self.folder), "PATH": self.path, "PGHOST": "127.0.0.1",
                "PGPORT": str(self.postgres.port), "PGUSER": "postgres", "PGDATABASE": "bench",
                "PGPASSWORD": self.postgres.password, **client_programs()[1]}

    def dump(self, *options: str) -> tuple[Ran, Dumped]:
        """pg_dump -Fc, through the same script as ours."""
        self.notes.unlink(missing_ok=True)
        ran = measured(self.environment(), ["pg_dump", "-Fc", *options])
        return ran, self.noted()

    def noted(self) -> Dumped:
        began, *arguments, ended = self.notes.read_text().splitlines()
        return Dumped(float(began), float(ended), arguments)

    @contextlib.contextmanager
    def s3(self, inside: Sequence[str] = ()) -> Iterator[SeaweedFS]:
        """A new S3 server, that has written some once; what it had is removed at the end.

        INSIDE: as of `line`, at whose far end it is then.
        """
        with tempfile.TemporaryDirectory(dir=self.folder) as folder, contextlib.ExitStack() as on:
            s3 = SeaweedFS(folder)
            if inside:
                s3.host, s3.inside = FAR, inside
            on.enter_context(s3)
            s3.client().create_bucket(Bucket="backup")
            warm = Path(folder, "warm")
            warm.write_bytes(os.urandom(64_000_000))
            s3.rclone("copyto", str(warm), ":s3:backup/warm")
            yield s3

    @contextlib.contextmanager
    def executor(self, s3: S3Server, path: str = "", build: str = OURS, **more: str
                 ) -> Iterator[tuple[Executor, Standin]]:
        """Ours, or another build, waiting for processes."""
        with Standin() as server, Executor(
                {**server.colony().settings(), **self.settings(s3), "PATH": path or self.path,
                 **more}, by=self.builds[build]) as executor:
            server.wait_call("assignprocessmsg", status=0)
            yield executor, server

    def settings(self, s3: S3Server, database: str = "bench") -> dict[str, str]:
        staging = self.folder / "staging"
        staging.mkdir(exist_ok=True)
        return backup_settings(self.postgres, s3, staging, database)

    def backup(self, server: Standin) -> Backup:
        """Have a process `backup` done."""
        os.sync()
        self.notes.unlink(missing_ok=True)
        client, submitted = server.colony().client(), time.time()
        calls, logs = len(server.calls), len(server.logs)
        identifier = client.submit()
        with server.lock:  # to be told of the end, not to learn of it by asking
            server.changed.wait_for(lambda: any(
                call[0].startswith("close") for call in server.calls[calls:]), 3600)
        closed = time.time()
        process = client.process(identifier)
        if process["state"] != SUCCESS:
            raise RuntimeError(f"the backup failed: {process['errors']}")
        dumped = self.noted() if self.notes.exists() else None
        return Backup(submitted, dumped, closed, json.loads(process["out"][0]), server.logs[logs:])

    def tables(self) -> list[str]:
        """Measure all that the options ask for; Markdown, "" for what they leave out."""
        sizes, growths = self.options.sizes, self.options.growth
        for size in sorted({*sizes, *growths}):
            self.fill(size)
            for name, function in MEASUREMENTS.items():
                due = {"growth": size in growths, "whole": size in sizes, "link": size in sizes,
                       "encryption": size in sizes, "restore": size in sizes,
                       "outage": size in sizes}.get(name, size == sizes[0])
                if due and self.options.only in (None, name):
                    for sample in function(self, size):
                        self.samples.append(sample)
                        beside = f"; {sample.other}: {sample.theirs:.3f}" if sample.other else ""
                        say(f"{sample.what}: {sample.ours:.3f} {sample.unit}{beside}")
        return [self.facts(), self.ratios(), self.growth(), self.compression()]

    def facts(self) -> str:
        """The machine and the programs' versions."""
        model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        asked = {"PostgreSQL": [str(self.postgres.bin / "pg_dump"), "--version"],
                 "rclone": [tool("rclone"), "version"], "aws": [*self.aws, "--version"],
                 "SeaweedFS": [tool("weed"), "version"]}
        said = {name: subprocess.run(command, env=self.environment(), capture_output=True,
                                     text=True, check=True).stdout
                for name, command in asked.items()}
        versions = {"Python": platform.python_version(), "boto3": boto3.__version__} | {
            name: (re.findall(r"\d+\.[\d.]+", text) or ["?"])[0] for name, text in said.items()}
        return (f"{os.cpu_count()} processors ({model[1] if model else platform.machine()}), "
                + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".")

    def ratios(self) -> str:
        """The table of all samples: the medians, and the spread of the ratios."""
        order = list(dict.fromkeys(sample.what for sample in self.samples))
        groups: dict[tuple[str, str], list[Sample]] = {}
        for sample in sorted(self.samples, key=lambda sample: order.index(sample.what)):
            groups.setdefault((sample.what, sample.other), []).append(sample)
        rows = []
        for (what, other), found in groups.items():
            unit, reach, values = found[0].unit, found[0].reach, [each.value for each in found]
            ours, theirs = (statistics.median(getattr(each, name) for each in found)
                            for name in ("ours", "theirs"))
            suffix = "" if other else f" {unit}"
            rows.append([
                what, f"{short(ours)} {unit}", f"{other}: {short(theirs)} {unit}" if other else "",
                " / ".join(f"{value:.2f}" for value in (
                    min(values), statistics.median(values), max(values))) + suffix,
                f"at most {reach:.3g}{suffix}" if reach else "",
                ("yes" if statistics.median(values) <= reach else "no") if reach else ""])
        return markdown(["what", "ours", "compared with", "ratio: min / median / max", "reach",
                         "met"], rows)

    def growth(self) -> str:
        return markdown(["database, GB", "archive, MB", "whole, s", "start", "pg_dump",
                         "read back, SHA-256", "upload", "rest", "s for each GB"],
                        self.rows["growth"])

    def compression(self) -> str:
        return markdown(["--compress", *BENCH_KINDS.values()], self.rows["compression"])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def short(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def measure_compression(bench: Bench, size: float) -> Iterator[Sample]:
    """Each kind of data by each method: seconds, and what is left of the size."""
    whole: dict[str, int] = {}
    for method in BENCH_METHODS:
        row = [f"`{method}`"]
        for table in BENCH_KINDS:
            seconds = statistics.median(
                bench.dump("-t", table, f"--compress={method}", "-f", bench.archive)[1].seconds
                for _ in range(min(3, bench.options.repeat)))
            archive = os.path.getsize(bench.archive)
            share = archive / whole.setdefault(table, archive)
            row.append(f"{seconds:.2f} s, {share:.1%}")
        bench.rows["compression"].append(row)
        say(" ".join(row))
    os.unlink(bench.archive)
    yield from ()


def measure_whole(bench: Bench, size: float) -> Iterator[Sample]:
    """A backup from its submission to its end, and the time for which it holds the database."""
    same: list[str] = []
    for turn in bench.times(size):
        with bench.s3() as s3:
            with bench.executor(s3) as (_executor, server):
                # by turns the one and the other is first: neither has the quieter moment
                first = [bench.dump(*same)] if turn % 2 else []
                ours = bench.backup(server)
            for build in [*bench.builds][1:]:
                with bench.executor(s3, build=build) as (_executor, server):
                    yield Sample(f"{size:g} GB: whole backup", ours.seconds, "s", build,
                                 bench.backup(server).seconds)
            assert ours.dumped
            same = [each for each in ours.dumped.arguments
                    if not each.startswith(("--snapshot=", "--no-sync"))]  # as people do it
            same[same.index("-f") + 1] = bench.archive
            [alone] = first or [bench.dump(*same)]
            yield from compare(bench, s3, f"{size:g} GB", ours, *alone)
        os.unlink(bench.archive)


def compare(bench: Bench, s3: S3Server, database: str, ours: Backup, alone: Ran,
            held: Dumped) -> Iterator[Sample]:
    """What is built by hand, beside a backup of ours. A dump serves all that upload it."""
    env, dumped = bench.environment(s3), ours.dumped
    assert dumped
    rclone = [tool("rclone"), "copyto", bench.archive, ":s3:backup/rclone.bak"]
    method = next(each for each in held.arguments if each.startswith("--compress="))
    near = f"pg_dump {method}, rclone"
    by_hand = {near: alone.seconds + measured(env, rclone).seconds}
    yield Sample(f"{database}: pg_dump holds the database", dumped.seconds, "s",
                 f"pg_dump {method} alone", held.seconds, 1.02)
    dump, held = bench.dump("--compress=zstd", "-f", bench.archive)
    by_hand["pg_dump --compress=zstd, rclone"] = dump.seconds + measured(env, rclone).seconds
    dump, held = bench.dump("-f", bench.archive)
    yield Sample(f"{database}: pg_dump holds the database", dumped.seconds, "s",
                 "pg_dump -Fc (gzip)", held.seconds, 1 / 3)
    yield Sample(f"{database}: archive", ours.result["size"] / 1e6, "MB", "pg_dump -Fc (gzip)",
                 os.path.getsize(bench.archive) / 1e6, 1)
    aws = [*bench.aws, "--endpoint-url", s3.url, "s3", "cp", bench.archive, "s3://backup/aws.bak"]
    gzip = {"pg_dump, aws s3 cp": dump.seconds + measured(env, aws).seconds,
            "pg_dump, rclone copyto": dump.seconds + measured(env, rclone).seconds,
            "pg_dump \\| rclone rcat": measured(
                env, ["pg_dump", "-Fc"], [tool("rclone"), "rcat", ":s3:backup/rcat.bak"]).seconds}
    for other, seconds in (gzip | by_hand).items():
        yield Sample(f"{database}: whole backup", ours.seconds, "s", other, seconds,
                     0.95 if other == near else 1 if other in by_hand else 0)
    yield Sample(f"{database}: whole backup", ours.seconds, "s", "the fastest of these with gzip",
                 min(gzip.values()), 0.5)


def measure_footprint(bench: Bench, size: float) -> Iterator[Sample]:
    """Memory and CPU time of a backup of ours, and of others' uploads of the same archive."""
    for _ in bench.times(size):
        with bench.s3() as s3:
            yield from footprint(bench, s3, f"{size:g} GB", bench.path)
            stored = newest_backup(s3)
            s3.rclone("copyto", f":s3:backup/{stored}", bench.archive)
            env, archive = bench.environment(s3), bench.archive
            gigabytes = os.path.getsize(archive) / 1e9
            cpu, peak = ([each for each in bench.samples if each.what.endswith(what)][-1]
                         for what in (CPU, PEAK))
            for other, command in {
                    "rclone copyto": [tool("rclone"), "copyto", archive, ":s3:backup/rclone.bak"],
                    "aws s3 cp": [*bench.aws, "--endpoint-url", s3.url, "s3", "cp", archive,
                                  "s3://backup/aws.bak"],
                    "boto3's upload_file": [sys.executable, "-c", BARE_BOTO3, s3.url, archive],
                    }.items():
                ran = measured(env, command, watch=True)
                yield cpu._replace(other=other, theirs=ran.cpu / gigabytes, reach=0)
                yield peak._replace(other=other, theirs=ran.peak, reach=0)
            os.unlink(archive)


CPU, PEAK = "CPU time for each GB uploaded", "peak memory"


def footprint(bench: Bench, s3: S3Server, what: str, path: str) -> Iterator[Sample]:
    """One backup of ours, watched."""
    with bench.executor(s3, path) as (executor, server):
        yield Sample(f"{what}: memory when idle, before", memory(executor.pid), "MB", reach=40)
        assert s3.program
        before = cpu_of(s3.program.pid)
        with Watch(executor.pid) as watch:
            ours = bench.backup(server)
        served = cpu_of(s3.program.pid) - before
        server.wait_call("assignprocessmsg", status=0, count=2)
        yield Sample(f"{what}: memory when idle, after", memory(executor.pid), "MB", reach=40)
    for whose, used, reach in (("", watch.used(), 3.2), (", the S3 server's", served, 0),
                               (", pg_dump's", sum(watch.beside.values()), 0)):
        gigabytes = ours.result["size"] / 1e9
        yield Sample(f"{what}: {CPU}{whose}", used / gigabytes, "s", reach=reach)
    yield Sample(f"{what}: {PEAK}", watch.peak(), "MB", reach=77)
    if ours.dumped:
        yield Sample(f"{what}: from submission to pg_dump", ours.dumped.began - ours.submitted,
                     "s", reach=0.5)


def measure_encryption(bench: Bench, size: float) -> Iterator[Sample]:
    """A backup that `age` encrypts, beside one that it does not; by turns the one is first."""
    programs = unpacked("age") / "usr/bin"
    key = subprocess.run([str(programs / "age-keygen")], capture_output=True, text=True, check=True)
    recipient = re.findall("age1[0-9a-z]+", key.stdout)[0]
    for turn in bench.times(size):
        made: dict[str, tuple[Backup, float]] = {}
        for to in (recipient, "") if turn % 2 else ("", recipient):
            more = {"PATH": f"{programs}:{bench.path}", "BACKUP_AGE_RECIPIENTS": to}
            with bench.s3() as s3, bench.executor(s3, **more) as (executor, server), Watch(
                    executor.pid) as watch:
                made[to] = bench.backup(server), watch.peak()
        (ours, peak), (plain, before) = made[recipient], made[""]
        assert ours.dumped
        encrypting = ours.logged("Uploading") - ours.logged("Encrypting")
        yield Sample(f"{size:g} GB: to encrypt the archive", encrypting, "s", "pg_dump",
                     ours.dumped.seconds, 1)
        yield Sample(f"{size:g} GB: whole backup, encrypted", ours.seconds, "s", "not encrypted",
                     plain.seconds)
        yield Sample(f"{size:g} GB: {PEAK}, encrypted", peak, "MB", "not encrypted", before, 1.05)


def done_well(settings: dict[str, str], *command: str, by: list[str] = BY_PATH) -> None:
    """Have a command of ours done, to its good end."""
    with Executor(settings, *command, by=by) as program:  # as people start it
        if program.wait(3600):
            raise RuntimeError(f"the {command[0]} failed: {program.log}")


def newest_backup(s3: S3Server) -> str:
    found = s3.client().list_objects_v2(Bucket="backup", Prefix="backups/")["Contents"]
    key: str = max(each["Key"] for each in found)
    return key


def measure_archive(bench: Bench, size: float) -> Iterator[Sample]:
    """Memory and CPU time for an archive that is far larger than memory should be."""
    gigabytes: float = bench.options.archive
    if not gigabytes:
        return
    path = synthetic_programs(bench.folder / "synthetic", int(gigabytes * 1e9))
    small = [each.ours for each in bench.samples
             if each.what == f"{size:g} GB: {PEAK}" and not each.other]
    for _ in bench.times(gigabytes):
        with bench.s3() as s3:
            for sample in footprint(bench, s3, f"archive of {gigabytes:g} GB", path):
                yield sample
                if sample.what.endswith(PEAK) and small:
                    yield sample._replace(other=f"database of {size:g} GB", reach=1.05,
                                          theirs=statistics.median(small))


def measure_restore(bench: Bench, size: float) -> Iterator[Sample]:
    """Download and check, up to where `verify` begins to read the archive."""
    with bench.s3() as s3:
        done_well(bench.settings(s3), "backup")
        stored = newest_backup(s3)
        s3.rclone("copyto", f":s3:backup/{stored}", bench.archive)
        s3.rclone("copyto", bench.archive, ":s3:backup/rclone.bak")
        os.unlink(bench.archive)
        for _ in bench.times(size):
            os.sync()
            begun = time.monotonic()
            with Executor(bench.settings(s3), "verify", os.path.basename(stored),
                          by=BY_PATH) as program:
                program.wait_for('msg="Download ')
                found = time.monotonic()
                program.wait_for('msg="Read ', 3600)
                ended = time.monotonic()
            for other, key, reach in (("rclone copyto, MD5 checked", "rclone.bak", 1),
                                      ("rclone copyto, nothing checked", stored, 0)):
                ran = measured(bench.environment(s3), [
                    tool("rclone"), "copyto", f":s3:backup/{key}", bench.copy])
                os.unlink(bench.copy)
                yield Sample(f"{size:g} GB: download and checksum", ended - found, "s", other,
                             ran.seconds, reach)
                yield Sample(f"{size:g} GB: the same, with the start of the command", ended - begun,
                             "s", other, ran.seconds)


def measure_outage(bench: Bench, size: float) -> Iterator[Sample]:
    """From the command `restore` to an open database, beside the same by hand."""
    yield from opened(bench, "bench", f"{size:g} GB", bench.times(size))


def measure_tables(bench: Bench, _: float) -> Iterator[Sample]:
    """The same for a database of many tables, ten rows in each; and its backup."""
    many = bench.options.tables
    if not many:
        return
    bench.postgres.run("createdb", "tables")
    bench.postgres.sql(f"""DO $$ BEGIN FOR i IN 1..{many} LOOP
        EXECUTE format('CREATE TABLE t%s (i int PRIMARY KEY, word text)', i);
        EXECUTE format('INSERT INTO t%s SELECT n, n FROM generate_series(1, 10) n', i);
        IF i % 100 = 0 THEN COMMIT; END IF; END LOOP; END $$""", "tables")
    bench.postgres.sql("VACUUM ANALYZE; CHECKPOINT", "tables")
    for turn in bench.times(2):
        ways: dict[str, Callable[[], float]] = {
            build: functools.partial(whole_of_tables, bench, build) for build in bench.builds}
        ways["pg_dump alone"] = lambda: bench.dump(
            "--compress=zstd:1", "-f", bench.archive, "tables")[0].seconds
        taken = by_turns(turn, ways)
        for other in [*ways][1:]:
            yield Sample(f"{many} tables: whole backup", taken[OURS], "s", other, taken[other],
                         0 if other in bench.builds else 1.15)
    yield from opened(bench, "tables", f"{many} tables", bench.times(2))
    bench.postgres.run("dropdb", "tables")


def whole_of_tables(bench: Bench, build: str) -> float:
    """Seconds for a whole backup of the many tables by a build, on the second night."""
    with bench.s3() as s3, bench.executor(s3, build=build, DB_DATABASE="tables") as (_, server):
        bench.backup(server)
        return bench.backup(server).seconds


def measure_link(bench: Bench, size: float) -> Iterator[Sample]:
    """Whole backups over a slow line, by ours, another build and by hand, and what bounds them."""
    if not bench.options.link:
        return
    rate, delay = bench.options.link
    for turn in bench.times(size):
        with line(bench.options.link) as inside:
            ways: dict[str, Callable[[], tuple[float, float]]] = {
                build: functools.partial(over_line, bench, inside, build) for build in bench.builds}
            ways[RCLONE] = functools.partial(over_line_by_hand, bench, inside)
            taken = by_turns(turn, ways)
        archive = os.path.getsize(bench.archive)
        os.unlink(bench.archive)
        reach = {RCLONE: 0.85, **dict.fromkeys(bench.builds, 0.78)}
        bound = max(taken[RCLONE][1], archive * 8 / rate / 1e6)
        what, (whole, held) = f"{size:g} GB over {rate} Mbit/s, {delay} ms", taken[OURS]
        for other in [*ways][1:]:
            yield Sample(f"{what}: whole backup", whole, "s", other, taken[other][0], reach[other])
        yield Sample(f"{what}: whole backup", whole, "s", "the longer of dump and line", bound)
        yield Sample(f"{what}: pg_dump holds the database", held, "s", RCLONE, taken[RCLONE][1],
                     1.02)


RCLONE = "pg_dump --compress=zstd:1, rclone"


def over_line(bench: Bench, inside: Sequence[str], build: str) -> tuple[float, float]:
    """Seconds for a whole backup by a build, and of pg_dump."""
    with bench.s3(inside) as s3, bench.executor(s3, build=build) as (_, server):
        made = bench.backup(server)
        assert made.dumped
        return made.seconds, made.dumped.seconds


def over_line_by_hand(bench: Bench, inside: Sequence[str]) -> tuple[float, float]:
    """The same by hand; the archive is left."""
    with bench.s3(inside) as s3:
        dump, held = bench.dump("--compress=zstd:1", "-f", bench.archive)
        sent = measured(bench.environment(s3), [
            tool("rclone"), "copyto", bench.archive, ":s3:backup/rclone.bak"])
    return dump.seconds + sent.seconds, held.seconds


def opened(bench: Bench, database: str, what: str, times: range) -> Iterator[Sample]:
    """Restore a database's backup, by turns with ours and by hand first."""
    with bench.s3() as s3:
        settings = bench.settings(s3, database)
        done_well(settings, "backup")
        stored = f":s3:backup/{newest_backup(s3)}"
        for turn in times:
            seconds = {}
            for way in ("ours", "by hand") if turn % 2 else ("by hand", "ours"):
                seconds[way] = (restored_by_us(settings) if way == "ours"
                                else restored_by_hand(bench, s3, stored))
                bench.postgres.run("dropdb", "opened")
            yield Sample(f"{what}: from the command to an open database", seconds["ours"], "s",
                         "rclone copyto, createdb, pg_restore -j 4", seconds["by hand"], 1)


def restored_by_us(settings: dict[str, str]) -> float:
    """Seconds for `restore`, with its proof."""
    os.sync()
    begun = time.monotonic()
    done_well(settings, "restore", "latest", "--database", "opened")
    return time.monotonic() - begun


def restored_by_hand(bench: Bench, s3: S3Server, stored: str) -> float:
    """Seconds for the same without a proof."""
    env = bench.environment(s3)
    seconds = sum(measured(env, command).seconds for command in (
        [tool("rclone"), "copyto", stored, bench.copy], ["createdb", "-T", "template0", "opened"],
        ["pg_restore", "-j", "4", "-d", "opened", bench.copy]))
    os.unlink(bench.copy)
    return seconds


ROUND_TRIP = 0.02  # seconds, of each request to S3, where they are counted
FEW_KEPT = 3


def measure_kept(bench: Bench, _: float) -> Iterator[Sample]:
    """What commands take beside few backups and beside many, where each request takes its time."""
    many = bench.options.kept
    if not many:
        return
    bench.postgres.run("createdb", "kept")
    bench.postgres.sql("CREATE TABLE t AS SELECT generate_series(1, 10000) AS id", "kept")
    with bench.s3() as s3, Proxy(s3.port) as proxy:
        proxy.delay(b"", ROUND_TRIP, FOREVER)
        for _ in bench.times(0):
            found = {(kept, name): beside_kept(bench, s3, proxy, kept, by)
                     for kept in (FEW_KEPT, many) for name, by in bench.builds.items()}
            yield from kept_samples(found, many, [*bench.builds][1:])
    bench.postgres.run("dropdb", "kept")


Taken = dict[str, tuple[float, int]]  # by a command's name, seconds and requests


def beside_kept(bench: Bench, s3: SeaweedFS, proxy: Proxy, kept: int, by: list[str]) -> Taken:
    """What a build's commands take where so many backups are kept."""
    prefix = f"kept_{time.time_ns()}"
    settings = {**bench.settings(s3, "kept"), **through(proxy), "AWS_S3_PREFIX": prefix,
                "BACKUP_ROLES": "auto", "FULL_BACKUPS": str(kept)}
    direct = {**settings, "AWS_S3_ENDPOINT": s3.endpoint}
    done_well(direct, "backup", by=by)
    client = s3.client()
    [made] = [each["Key"] for each in client.list_objects_v2(
        Bucket="backup", Prefix=prefix)["Contents"] if each["Key"].endswith(".bak")]
    body = client.get_object(Bucket="backup", Key=made)
    content = {"Body": body["Body"].read(), "Metadata": body["Metadata"], "Bucket": "backup"}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: client.put_object(
            Key=f"{prefix}/backup_{number}.bak", **content), range(1, kept)))
    done_well(direct, "backup", by=by)  # what it notes for the next ones is there
    taken = {}
    for command in ("backup", "list", "verify"):
        os.sync()
        proxy.requests.clear()
        begun = time.monotonic()
        done_well(settings, command, by=by)
        parts = proxy.seen(PART)
        taken[command] = time.monotonic() - begun, len(proxy.requests) - parts
    return taken


def kept_samples(found: dict[tuple[int, str], Taken], many: int,
                 others: list[str]) -> Iterator[Sample]:
    """Ours beside OTHERS, other builds, and beside ours with fewer."""
    for kept in (FEW_KEPT, many):
        for command, (seconds, requests) in found[kept, OURS].items():
            what = f"{kept} kept: {command}"
            beyond = command == "backup" and kept == many
            yield Sample(f"{what}, requests beside its parts", requests, "", reach=40 * beyond)
            if kept == many:
                yield Sample(what, seconds, "s", f"with {FEW_KEPT} kept",
                             found[FEW_KEPT, OURS][command][0], 1.2 * beyond)
            for other in others:
                theirs = found[kept, other][command]
                less = 0.2 if command == "list" and kept == many else 0
                yield Sample(what, seconds, "s", other, theirs[0], less)
                yield Sample(f"{what}, requests beside its parts", requests, "", other, theirs[1],
                             1)


def measure_growth(bench: Bench, size: float) -> Iterator[Sample]:
    """How a backup's time grows with the database, and where it goes."""
    found: list[Backup] = []
    for _ in bench.times(size):
        with bench.s3() as s3, bench.executor(s3) as (_executor, server):
            found.append(bench.backup(server))
    ours = sorted(found, key=lambda each: each.seconds)[len(found) // 2]
    gigabytes = int(bench.postgres.sql("SELECT pg_database_size('bench')")) / 1e9
    row = [f"{gigabytes:.2f}", f"{ours.result['size'] / 1e6:.0f}"] + [f"{each:.2f}" for each in (
        ours.seconds, *ours.steps(), ours.seconds / gigabytes)]
    bench.rows["growth"].append(row)
    say(f"growth: {' '.join(row)}")
    yield from ()


MEASUREMENTS: dict[str, Callable[[Bench, float], Iterator[Sample]]] = {
    "compression": measure_compression, "footprint": measure_footprint,
    "archive": measure_archive, "whole": measure_whole, "link": measure_link,
    "encryption": measure_encryption, "restore": measure_restore, "outage": measure_outage,
    "tables": measure_tables, "kept": measure_kept,
    "growth": measure_growth}
