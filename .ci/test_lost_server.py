"""README's way back when the server is lost, as it stands there."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from environment import EXECUTOR
from readme import blocks, section
from servers import executor_environment, server_folder
from timescale import SENSORS_ROWS, Sensors, Timescale


def test_readmes_lines_lead_from_an_empty_server_to_policies_that_run(
        sensors: Sensors, tmp_path: Path) -> None:
    settings = {"AWS_S3_PREFIX": "lost", "BACKUP_ROLES": "auto"}
    sensors.sql("CREATE ROLE clerk LOGIN PASSWORD 'word'; GRANT SELECT ON readings TO clerk")
    try:
        made = sensors.backup(**settings)
    finally:
        sensors.sql("DROP OWNED BY clerk; DROP ROLE clerk")
    [script] = blocks(section("### The server is lost"), "sh")
    script = script.replace("python3 backup_executor.py", f"{sys.executable} {EXECUTOR}")
    script = script.replace("new.example.org", "127.0.0.1")
    script = script.replace("/secrets/postgres-password", "password")
    with server_folder() as folder, Timescale(folder) as new:
        (tmp_path / "password").write_text(new.password + "\n")
        env = executor_environment({**sensors.settings, **settings}, str(tmp_path), 17)
        del env["DB_PASSWORD"]
        ports = {"DB_PORT": str(new.port), "PGPORT": str(new.port)}
        ran = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, text=True,
                             capture_output=True, check=False, stdin=subprocess.DEVNULL,
                             env={**env, **ports, "PATH": f"{new.bin}:{os.environ['PATH']}"})
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert made["filename"] in ran.stdout and "\ntimescaledb\n" in ran.stdout
        rows = {f"public.{table}": int(new.sql(f"SELECT count(*) FROM {table}", "sensors"))
                for table in ("notes", "places", "alarms")}
        assert rows.items() <= SENSORS_ROWS.items()
        assert new.sql("SELECT bool_and(scheduled) FROM _timescaledb_config.bgw_job"
                       " WHERE id >= 1000", "sensors") == "t"
        assert "sensors" not in new.idle(0)
        assert new.sql("SELECT has_table_privilege('clerk', 'readings', 'SELECT')",
                       "sensors") == "t"
        assert len(re.findall('"filename"', ran.stdout)) == 1  # the new server's first backup
