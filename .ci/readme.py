"""What README quotes: its restore by hand, its least privileges."""
from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

from environment import PROJECT
from servers import tool
from surroundings import Scene

README = PROJECT / "README.md"
CHART_README = PROJECT / "helm/README.md"
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


def section(heading: str) -> str:
    """What stands under a HEADING of README, up to the next one of whatever level."""
    return README.read_text("utf-8").partition(f"\n{heading}\n")[2].partition("\n##")[0]


def blocks(text: str, language: str) -> list[str]:
    """The blocks of a language in a document's TEXT."""
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", text)


def by_hand(*ways: str, **values: str) -> str:
    """README's shell blocks of a restore by hand, in these WAYS.

    VALUES are those of its variables and, by the files' names, of the keys for S3.
    """
    script = "".join(text for heading in ["### By hand", *(f"#### By hand: {way}" for way in ways)]
                     for text in blocks(section(heading), "sh"))
    for name, value in values.items():
        here = rf'(?m)(?<=^{name}=).*|"\$\(cat /secrets/{name}\)"'
        script, count = re.subn(here, shlex.quote(value), script)
        assert count == 1, name
    return re.sub("(?m)^export PG.*\n", "", script)


def restored_by_hand(scene: Scene, name: str, new: str, folder: Path, *ways: str,
                     **more: str) -> str:
    """What README's commands print, of which each ends well; MORE variables are set before."""
    script = by_hand(*ways, S3_URL="", FOLDER=f"backup/{scene.prefix}", NAME=name, NEW=new,
                     OLD=scene.database, WORK=str(folder / "work"),
                     **{"s3-access-key": "", "s3-secret-access-key": ""})
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
        env={**env, **more, "PATH": f"{folder}:{env['PATH']}"}, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{name}: OK" in ran.stdout
    return ran.stdout


def least_privileges(language: str) -> list[str]:
    """README's blocks in a language on what is enough; SQL by what its comments set apart."""
    return [part for text in blocks(section("## Least privileges"), language)
            for part in re.split("(?m)^--.*\n", text)]


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table; nothing if it has no rows."""
    lines = [head, ["---"] * len(head), *rows] if rows else []
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
