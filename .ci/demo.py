"""The demo: a database is backed up and restored, live."""
from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from pathlib import Path

from colonies import SUCCESS, Standin
from environment import FRONT
from servers import BY_PATH, Executor, Postgres, SeaweedFS, backup_settings, temporary_folder

DEMO_DATABASE = "shop"
DEMO_SQL = """
CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL, joined timestamptz NOT NULL);
INSERT INTO customers SELECT i, 'customer ' || i, '2020-01-01'::timestamptz + i * interval '1 min'
    FROM generate_series(1, 50000) i;
CREATE TABLE orders (id bigserial PRIMARY KEY, customer int NOT NULL REFERENCES customers,
    amount numeric(10, 2) NOT NULL, note text);
INSERT INTO orders (customer, amount, note)
    SELECT 1 + i % 50000, i % 9973 / 7.0, md5(i::text) FROM generate_series(1, 300000) i;
CREATE TABLE readings (at timestamptz, sensor int, value double precision);
INSERT INTO readings SELECT '2026-01-01'::timestamptz + i * interval '10 s', i % 40, sin(i)
    FROM generate_series(1, 200000) i;
CREATE INDEX ON readings (sensor, at);
CREATE VIEW totals AS SELECT customer, sum(amount) AS total FROM orders GROUP BY customer;
"""


def demo(arguments: list[str]) -> int:
    """Back a database up as a Colonies process, and restore it with stock tools."""
    argparse.ArgumentParser(prog=f"{FRONT.name} demo", description=demo.__doc__).parse_args(
        arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with temporary_folder() as folder:
            return demonstrate(folder)
    except KeyboardInterrupt:
        print("\nInterrupted; everything is stopped and removed.")
        return 130


def demonstrate(folder: Path) -> int:
    numbers = iter(range(1, 100))

    def step(text: str) -> None:
        print(f"\n[{next(numbers)}] {text}", flush=True)

    with contextlib.ExitStack() as stack:
        step("Starting PostgreSQL 17, SeaweedFS (S3) and a Colonies stand-in, all on 127.0.0.1 ...")
        postgres = stack.enter_context(Postgres(folder / "postgres"))
        s3 = stack.enter_context(SeaweedFS(folder / "s3"))
        server = stack.enter_context(Standin())
        s3.client().create_bucket(Bucket="backup")
        print(f"    PostgreSQL on port {postgres.port}, S3 on {s3.port}, Colonies on {server.port}")

        step(f"Filling the database {DEMO_DATABASE} ...")
        postgres.run("createdb", DEMO_DATABASE)
        postgres.sql(DEMO_SQL, DEMO_DATABASE)
        before = postgres.fingerprint(DEMO_DATABASE)
        size = postgres.sql(f"SELECT pg_size_pretty(pg_database_size('{DEMO_DATABASE}'))")
        print(f"    {size} in {len(before)} tables and sequences")

        step("Starting `python backup_executor.py`; its log:")
        staging = folder / "backups"
        staging.mkdir()
        demo_colony = server.colony()
        executor = stack.enter_context(Executor({
            **demo_colony.settings(), **backup_settings(postgres, s3, staging, DEMO_DATABASE),
            "COLONIES_EXECUTOR_NAME": "backup-demo", "BACKUP_CRON": "0 0 1 * * *",
            "BACKUP_ROLES": "auto"}, echo="    ", by=BY_PATH))
        server.wait_call("addcronmsg")
        server.wait_call("assignprocessmsg", status=0)
        client = demo_colony.client()
        for cron in client.crons():
            step(f"The cron that it made: {cron['name']}, {cron['cronexpression']!r} (seconds"
                 f" first), next at {cron['nextrun']}")

        step("Submitting a process `backup`, as `colonies function exec --func backup"
             " --targettype backup` does; the executor's log:")
        process = client.wait(client.submit(), timeout=300)
        if process["state"] != SUCCESS:
            print(f"The backup failed: {process['errors']}", file=sys.stderr)
            return 1
        step("The process was closed as successful with this result:")
        print(process["out"][0])
        result = json.loads(process["out"][0])

        step(f"The bucket {result['bucket']} holds:")
        objects = s3.client().list_objects_v2(Bucket=result["bucket"])["Contents"]
        for item in objects:
            print(f"    {item['LastModified']:%F %T}  {item['Size']:>10}  {item['Key']}")

        step("Restoring it with stock tools: rclone copyto, createdb, pg_restore ...")
        local = folder / result["filename"]
        s3.rclone("copyto", f":s3:{result['bucket']}{result['filepath_s3']}", str(local))
        postgres.run("createdb", "restored")
        postgres.run("pg_restore", "--exit-on-error", "--dbname=restored", str(local))
        after = postgres.fingerprint("restored")
        for name, rows in before.items():
            print(f"    {'same' if after.get(name) == rows else 'DIFFERENT'}  {name}: {rows}")
        if after != before:
            print("The restored database differs from its source.", file=sys.stderr)
            return 1

        step("Stopping the executor, which deregisters itself:")
        status = executor.stop()
        print(f"    exit status {status}")
        print("\nThe restored database equals its source, row for row.")
        return status
