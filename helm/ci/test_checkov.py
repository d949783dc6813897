"""A test of what checkov finds in the chart, which the command `chart` runs."""
from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from chart import ALONE, CHART, WHOLE, Helm, overlay
from environment import cache_lock, make_environment
from servers import SYSTEM_PATH

pytest_plugins = ["common"]

CHECKOV = "checkov==3.3.30"
ON = {"networkPolicy.enabled": True, "monitoring.checkSchedule": "@daily",
      "monitoring.podMonitor": True, "monitoring.rules": True, "monitoring.dashboard": True}


@pytest.fixture(scope="module")
def checkov() -> Path:
    """The Python of an environment with checkov, which pins what others need otherwise."""
    with cache_lock() as cache:
        target = cache / CHECKOV.replace("==", "-")
        if not target.exists():
            make_environment(target, [CHECKOV], 100)
    return target / "bin/python"


def chart_has_findings_of_checkov_only_where_values_yaml_says_why(
        helm: Helm, checkov: Path, tmp_path: Path) -> None:
    """With all that is off by default, too."""
    for name, values in {"least": WHOLE, "on": overlay(WHOLE, ON), "alone": ALONE}.items():
        (tmp_path / name).mkdir()
        rendered = helm.render(values, namespace=name)
        (tmp_path / name / "all.yaml").write_text(yaml.safe_dump_all(rendered.objects))
    ran = subprocess.run(
        [str(checkov), "-m", "checkov.main", "--framework=kubernetes", "--skip-download",
         "--quiet", "--compact", "--output=json", f"--directory={tmp_path}"], text=True,
        env={"PATH": SYSTEM_PATH, "HOME": str(tmp_path)}, capture_output=True, check=False)
    results = json.loads(ran.stdout)["results"]
    found = {each["check_id"] for each in results["failed_checks"]}
    explained = {*re.findall(r"CKV\w+", (CHART / "values.yaml").read_text())}
    assert found and explained >= found
    assert {each["resource"].split(".")[0] for each in results["failed_checks"]} >= {
        "StatefulSet", "Deployment", "CronJob", "Pod"}  # it looked at all
