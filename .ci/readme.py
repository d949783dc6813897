"""What README quotes: its restore by hand, its least privileges, its tables."""
from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from environment import FRONT, PROJECT
from servers import tool
from surroundings import Scene

# README's section, its values, and what stands for them here.
FETCHED, FINISHED = ("fetch the backup", "make the database"), ("look that all is there",)
# mc's commands, as rclone does them
MC = """#!/bin/sh
case $1 in
    alias) ;;
    cp) exec rclone copy ":s3:${2#*/}" "$3" ;;
    ls) exec rclone lsl ":s3:${2#*/}" ;;
    stat) rclone lsjson --stat --metadata ":s3:${2#*/}" | tr , '\\n' |
        sed -nE 's/.*"([a-z0-9-]+)": ?"([^"]*)".*/X-Amz-Meta-\\u\\1 : \\2/p' ;;
esac
"""


def by_hand(*headings: str, **values: str) -> str:
    """README's shell blocks under these headings; the first one's variables have VALUES."""
    readme = (PROJECT / "README.md").read_text()
    sections = [re.split(rf"(?m)^### By hand: {re.escape(heading)}\n", readme)[1].split("\n##")[0]
                for heading in headings]
    script = "".join(re.findall(r"(?ms)^```sh\n(.*?)^```", "".join(sections)))
    for name, value in values.items():
        script, count = re.subn(rf"(?m)^{name}=.*", f"{name}={shlex.quote(value)}", script)
        assert count == 1
    return re.sub("(?m)^export PG.*\n", "", script)


def restored_by_hand(scene: Scene, name: str, new: str, folder: Path, *headings: str) -> str:
    """What README's commands print, of which each ends well."""
    script = by_hand(*FETCHED, *headings, *FINISHED, S3_URL="", ACCESS_KEY="", SECRET_KEY="",
                     FOLDER=f"backup/{scene.prefix}", NAME=name, NEW=new, OLD=scene.database,
                     WORK=str(folder / "work"))
    for program, text in (("mc", MC), ("rclone", f"#!/bin/sh\nexec {tool('rclone')} \"$@\"\n")):
        (folder / program).write_text(text)
        (folder / program).chmod(0o755)
    env = {**scene.postgres._environment(), "PGHOST": "127.0.0.1", "PGUSER": "postgres",
           "PGPORT": str(scene.postgres.port), "PGPASSWORD": scene.postgres.password,
           "HOME": str(folder), "RCLONE_CONFIG": "", "RCLONE_S3_PROVIDER": "Other",
           "RCLONE_S3_ENDPOINT": scene.s3.url, "RCLONE_S3_ACCESS_KEY_ID": scene.s3.access_key,
           "RCLONE_S3_SECRET_ACCESS_KEY": scene.s3.secret_key}
    ran = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script], cwd=folder, text=True, capture_output=True,
        env={**env, "PATH": f"{folder}:{env['PATH']}"}, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{name}: OK" in ran.stdout
    return ran.stdout


def write_tables(tables: dict[str, str]) -> None:
    """Put each table between its markers in README.md."""
    readme = PROJECT / "README.md"
    text = readme.read_text("utf-8")
    for name, table in tables.items():
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->\n")
        if not end:
            sys.exit(f"{FRONT.name}: README.md has no markers of {name}")
        text = f"{before}{start}\n{table}\n\n{end}{after}"
    readme.write_text(text, "utf-8")


def least_privileges(language: str) -> list[str]:
    """README's blocks in a language on what is enough."""
    readme = (PROJECT / "README.md").read_text("utf-8")
    section = readme.partition("\n## Least privileges\n")[2].partition("\n## ")[0]
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", section)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table; nothing if it has no rows."""
    lines = [head, ["---"] * len(head), *rows] if rows else []
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
