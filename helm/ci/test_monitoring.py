"""Tests of what the chart brings to see the backups from outside; the command `chart` runs them."""
from __future__ import annotations

import copy
import functools
import importlib
import json
import operator
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import backup_executor
from chart import ALONE, BOTH_WAYS, CHART, OTHERS, WHOLE, Helm, Rendered, overlay
from debian import unpacked
from environment import fetched

pytest_plugins = ["common"]

# Of Grafana 10.1, whose fields later ones read, too.
GRAFANA = "grafana-foundation-sdk==1769699998!10.1.0"
KINDS = {"podMonitor": "PodMonitor timescaledb-backup",
         "rules": "PrometheusRule timescaledb-backup",
         "dashboard": "ConfigMap timescaledb-dashboard",
         "checkSchedule": "CronJob timescaledb-check"}
ALL = {f"monitoring.{name}": True for name in KINDS} | {
    "monitoring.checkSchedule": "0 8 * * *", "monitoring.labels": {"release": "prometheus"}}
HELP = backup_executor.HELP["serve"]


def alerts(rendered: Rendered) -> list[dict[str, Any]]:
    """The rules for alerts."""
    [found] = rendered.kind("PrometheusRule")
    [group] = found["spec"]["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def dashboard(rendered: Rendered) -> dict[str, Any]:
    [found] = rendered.kind("ConfigMap")
    [text] = found["data"].values()
    read: dict[str, Any] = json.loads(text)
    return read


def queries(board: dict[str, Any]) -> list[str]:
    """What a dashboard asks Prometheus for."""
    return [target["expr"].replace("$__rate_interval", "30m")
            for panel in board["panels"] for target in panel["targets"]]


def metrics(expressions: list[str]) -> set[str]:
    """The executor's metrics in them, less the prefix."""
    return {name for each in expressions for name in re.findall(r"colonies_backup_(\w+)", each)}


def chart_makes_what_sees_the_backups_only_where_it_is_asked_for(helm: Helm) -> None:
    without = helm.render(WHOLE).names()
    for name, made in KINDS.items():
        asked = {f"monitoring.{name}": ALL[f"monitoring.{name}"]}
        assert set(helm.render(overlay(WHOLE, asked)).names()) - {*without} == {made}
    rendered = helm.render(overlay(WHOLE, ALL))
    assert {*rendered.names()} == {*without, *KINDS.values()}
    for each in rendered.kind("PodMonitor", "PrometheusRule", "ConfigMap"):
        assert each["metadata"]["labels"]["release"] == "prometheus"
    [found] = helm.render(overlay(WHOLE, ALL | {
        "monitoring.labels": {"grafana_dashboard": "x"}})).kind("ConfigMap")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "x"
    assert rendered.workload == helm.render(WHOLE).workload


@BOTH_WAYS
def chart_has_prometheus_look_at_the_pod_of_the_executor_alone(
        helm: Helm, values: dict[str, Any]) -> None:
    rendered = helm.render(overlay(values, ALL))
    [monitor] = rendered.kind("PodMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert monitor["spec"]["podMetricsEndpoints"] == [{"port": "metrics"}]
    assert rendered.sidecar["ports"][0]["name"] == "metrics"
    assert wanted <= rendered.template["metadata"]["labels"].items()
    [job] = rendered.kind("CronJob")
    for pod in (*rendered.kind("Pod"), job["spec"]["jobTemplate"]["spec"]["template"]):
        assert not wanted <= pod["metadata"]["labels"].items()


# ---- The alerts --------------------------------------------------------------------------------

def chart_alerts_are_those_of_the_help_of_serve(helm: Helm) -> None:
    told = [" ".join(each.split()) for each in re.findall(r"(?m)((?:^  \S.*\n)+)      \S", HELP)]
    rules = alerts(helm.render(overlay(WHOLE, ALL)))
    assert told == [re.sub(r"\{namespace=[^}]*\}", "", rule["expr"]) for rule in rules]
    assert len({rule["alert"] for rule in rules}) == len(rules) == 11
    fewer = alerts(helm.render(overlay(WHOLE, ALL | {
        "monitoring.maxVerifyDays": 0, "monitoring.maxRestoreHours": 0})))
    assert {rule["alert"] for rule in rules} - {rule["alert"] for rule in fewer} == {
        "ColoniesBackupUnproven", "ColoniesBackupRestoreSlow"}
    changed = alerts(helm.render(overlay(WHOLE, ALL | {"backup.checkMaxAge": 50})))
    assert changed[0]["expr"].count("> 50 * 3600 ") == changed[0]["expr"].count(" 50h)") == 1
    sealed = alerts(helm.render(overlay(WHOLE, ALL | {"backup.age.recipients": "age1x"})))
    [room] = [rule["expr"] for rule in sealed if "free_bytes" in rule["expr"]]
    assert "< 2.4 * " in room  # there is the plain dump beside the encrypted one


def chart_alerts_and_dashboard_know_only_metrics_that_the_executor_has(helm: Helm) -> None:
    rendered = helm.render(overlay(WHOLE, ALL))
    asked = metrics([rule["expr"] for rule in alerts(rendered)])
    shown = metrics(queries(dashboard(rendered)))
    assert asked and asked | shown <= {*backup_executor.METRICS}
    assert shown >= {"newest_timestamp_seconds", "newest_size_bytes", "newest_dump_seconds",
                     "upload_seconds", "verify_step_seconds", "staging_free_bytes"}


NOW = "0+300x400"  # a time that goes with the clock, which promtool starts at 0
# What an executor tells while all is well, as promtool writes a series' values.
WELL = {
    "newest_timestamp_seconds": NOW, "newest_size_bytes": "100x400", "newest_doubtful": "0x400",
    'failures_total{function="backup"}': "3x400", "verify_timestamp_seconds": NOW,
    'verify_success{verdict="readable"}': "1x400", 'verify_step_seconds{step="read"}': "7200x400",
    'verify_step_seconds{step="download"}': "7200x400", "uploads_waiting": "0x400",
    "staging_free_bytes": "120x400", 'running{function="backup"}': "0x400",
    'running{function="verify"}': "0x400", "bucket_reachable": "1x400",
    "colonies_reachable": "1x400", "registered": "1x400", 'info{version="1"}': "1x400"}
WAITING, SMALL = {"uploads_waiting": "1x400"}, {"staging_free_bytes": "119x400"}
POD = "timescaledb-statefulset-0"
DEPLOYED = "timescaledb-backup-7d9c8b5f6d-x2x4z"
GONE = "ExecutorGone"
# What is otherwise, the minutes after which, and which alerts fire then; maxVerifyDays is 1.
FIRING: list[tuple[dict[str, str], int, set[str]]] = [
    ({}, 0, set()), ({}, 1440, set()),
    ({"newest_timestamp_seconds": "0x400"}, 26 * 60, set()),
    ({"newest_timestamp_seconds": "0x400"}, 26 * 60 + 5, {"TooOld"}),
    ({"newest_timestamp_seconds": "99999x400"}, 10, {"TooOld"}),
    ({'failures_total{function="backup"}': "3x20 4x400"}, 110, {"Failed"}),
    ({'failures_total{function="backup"}': "3x20 4x400"}, 180, set()),
    ({"newest_doubtful": "1x400"}, 0, {"Doubtful"}),
    ({"verify_timestamp_seconds": "0x400"}, 1440, set()),
    ({"verify_timestamp_seconds": "0x400"}, 1445, {"Unproven"}),
    ({'verify_success{verdict="readable"}': "", 'verify_success{verdict="failed"}': "0x400"}, 0,
     {"NotWhole"}),
    ({'verify_step_seconds{step="restore"}': "1x400"}, 0, {"RestoreSlow"}),
    (WAITING, 175, set()), (WAITING, 180, {"DumpWaiting"}),
    (SMALL, 55, set()), (SMALL, 60, {"StagingTooSmall"}),
    ({**SMALL, 'running{function="verify"}': "1x400"}, 600, set()),
    ({"bucket_reachable": "0x400"}, 55, set()),
    ({"bucket_reachable": "0x400"}, 60, {"BucketAway"}),
    ({"bucket_reachable": "", "newest_timestamp_seconds": ""}, 60, {"BucketAway"}),
    ({"registered": "0x400"}, 55, set()), ({"registered": "0x400"}, 60, {"NotInColony"}),
    ({"colonies_reachable": "0x400"}, 60, {"NotInColony"}),
    (dict.fromkeys(WELL, ""), 10, set()), (dict.fromkeys(WELL, ""), 15, {GONE}),
    (dict.fromkeys(WELL, ""), 60, {GONE, "BucketAway"}),
    # One that starts again and again, and tells something now and then, is seen all the same.
    ({"newest_timestamp_seconds": "0x312 _x5 0"}, 26 * 60 + 30, {"TooOld"}),
]


def promtool(folder: Path, command: str, rules: Any, tests: list[Any] | None = None) -> None:
    """Have promtool take RULES, and what the TESTS expect of them."""
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    (folder / "tests.yml").write_text(yaml.safe_dump(
        {"rule_files": ["rules.yml"], "evaluation_interval": "5m", "tests": tests}))
    ran = subprocess.run(
        [str(unpacked("prometheus", beside=False) / "usr/bin/promtool"), *command.split(),
         f"{'tests' if tests else 'rules'}.yml"], cwd=folder, capture_output=True, text=True,
        check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def scenario(told: dict[str, str], minutes: int, firing: set[str], pod: str = POD,
             namespace: str = "prod") -> dict[str, Any]:
    """A test for promtool: what a pod tells, and which alerts fire after so many minutes."""
    series = []
    for name, values in told.items():
        metric, _, labels = name.rstrip("}").partition("{")
        labels = ",".join([f'namespace="{namespace}"', f'pod="{pod}"', *filter(None, [labels])])
        if values:
            series.append({"series": f"colonies_backup_{metric}{{{labels}}}", "values": values})
    return {
        "interval": "5m", "input_series": series, "promql_expr_test": [{
            "expr": 'count by (alertname, namespace, executor) (ALERTS{alertstate="firing"})',
            "eval_time": f"{minutes}m", "exp_samples": [{"value": 1, "labels": (
                f'{{alertname="ColoniesBackup{name}",namespace="prod",'
                'executor="backup-prod-timescaledb"}')} for name in firing]}]}


def chart_alerts_fire_when_they_are_to_and_not_before(helm: Helm, tmp_path: Path) -> None:
    rendered = helm.render(overlay(WHOLE, ALL | {"monitoring.maxVerifyDays": 1}))
    rules = {"groups": [{"name": "x", "rules": alerts(rendered)}]}
    promtool(tmp_path, "check rules", rules)
    tests = [scenario(WELL | told, minutes, firing) for told, minutes, firing in FIRING]
    promtool(tmp_path, "test rules", rules, [*tests, *(
        scenario(WELL, 15, {GONE}, *whose) for whose in (
            ("timescaledb-statefulset-0", "test"), ("second-statefulset-0",), (DEPLOYED,)))])
    with pytest.raises(AssertionError, match="FAILED"):  # promtool looks
        promtool(tmp_path, "test rules", rules, [scenario(WELL, 0, {GONE})])


def chart_alerts_leave_a_new_executor_its_first_night(helm: Helm, tmp_path: Path) -> None:
    """It has 2 hours here, from the 5th on, for its first backup; a restart gives it no more."""
    rendered = helm.render(overlay(WHOLE, ALL | {
        "backup.checkMaxAge": 2, "monitoring.maxVerifyDays": 0}))
    newest = "newest_timestamp_seconds"
    few = {name: values for name, values in WELL.items() if name != newest}
    promtool(tmp_path, "test rules", {"groups": [{"name": "x", "rules": alerts(rendered)}]}, [
        scenario(few | told, minutes, firing) for told, minutes, firing in (
            ({newest: "_x60 0x200"}, 300, set()), ({newest: "_x60 0x200"}, 415, set()),
            ({newest: "_x60 0x200"}, 425, {"TooOld"}),
            ({f'{newest}{{instance="a"}}': "_x60 0x20 stale",
              f'{newest}{{instance="b"}}': "_x81 0x200"}, 425, {"TooOld"}),
            ({newest: "0+300x60 0x200"}, 310, {"TooOld"}))])  # somebody emptied the bucket


def chart_alerts_leave_a_new_executor_the_days_until_its_first_verify(
        helm: Helm, tmp_path: Path) -> None:
    """It has one here, from the 5th hour on; what was verified, and is forgotten, has none."""
    rules = alerts(helm.render(overlay(WHOLE, ALL | {"monitoring.maxVerifyDays": 1})))
    proof = "verify_timestamp_seconds"
    promtool(tmp_path, "test rules", {"groups": [{"name": "x", "rules": rules}]}, [
        scenario({**WELL, proof: told}, minutes, firing) for told, minutes, firing in (
            ("_x60 0x340", 310, set()), ("_x60 0x340", 1735, set()),
            ("_x60 0x340", 1745, {"Unproven"}), ("0+300x60 0x340", 1445, {"Unproven"}))])


def chart_alerts_that_none_was_verified_though_prometheus_forgets_in_ten_days(
        helm: Helm, tmp_path: Path) -> None:
    """The Operator's stack does: what was there for longer would be new for ever."""
    rules = alerts(helm.render(overlay(WHOLE, ALL | {"monitoring.maxVerifyDays": 32})))
    [asked] = [rule["expr"] for rule in rules if rule["alert"].endswith("Unproven")]
    whose = f'{{namespace="prod", pod="{POD}"}}'
    later = {"series": f"colonies_backup_verify_timestamp_seconds{whose}",
             "values": f"_x{23 * 288} 0x2880"}
    test = {"interval": "5m", "input_series": [later], "promql_expr_test": [
        {"expr": asked, "eval_time": f"{days}d", "exp_samples": [
            {"labels": whose, "value": days * 86400}] if days == 33 else []} for days in (31, 33)]}
    promtool(tmp_path, "test rules", {"groups": []}, [test])


def chart_alerts_are_of_the_one_release(helm: Helm, tmp_path: Path) -> None:
    rules = {"groups": [{"name": "x", "rules": alerts(helm.render(overlay(ALONE, ALL)))}]}
    promtool(tmp_path, "test rules", rules, [
        scenario(WELL, 15, set(), DEPLOYED),
        *(scenario(WELL, 15, {GONE}, pod) for pod in (
            POD, "timescaledb-backup-x-statefulset-0", "timescaledb-backup-x-backup-7d9c8-x2x4z"))])


def chart_alerts_are_told_in_words(helm: Helm) -> None:
    for rule in alerts(helm.render(overlay(WHOLE, ALL))):
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description"}
        for text in rule["annotations"].values():
            assert 10 < len(text) < 250 and text.count("{{") == text.count("}}")


# ---- The dashboard -----------------------------------------------------------------------------

@pytest.fixture(scope="module")
def grafana() -> Any:
    """What a dashboard comes to that Grafana's own library read: what it doesn't know is gone."""
    def unpack(wheel: zipfile.ZipFile, folder: Path) -> Path:
        wheel.extractall(folder / "sdk")
        return folder / "sdk"

    if sys.version_info < (3, 11):
        pytest.skip("Grafana's own library needs Python 3.11")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(fetched(GRAFANA, unpack)))
        plugins, encoder, models = (importlib.import_module(f"grafana_foundation_sdk.{name}")
                                    for name in ("cog.plugins", "cog.encoder", "models.dashboard"))
        plugins.register_default_plugins()
        yield lambda board: json.loads(encoder.JSONEncoder().encode(
            models.Dashboard.from_json(copy.deepcopy(board))))


def holds(whole: Any, part: Any) -> bool:
    """Whether all of PART is in WHOLE."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            name in whole and holds(whole[name], each) for name, each in part.items())
    if isinstance(part, list):
        return isinstance(whole, list) and len(whole) == len(part) and all(map(holds, whole, part))
    return bool(whole == part)


def chart_dashboard_has_only_what_grafana_knows(helm: Helm, grafana: Any) -> None:
    board = dashboard(helm.render(overlay(WHOLE, ALL)))
    assert board == json.loads((CHART / "dashboard.json").read_text())
    assert holds(grafana(board), board)
    paths: list[list[Any]] = [
        [], ["panels", 0], ["panels", 0, "options"], ["panels", 0, "targets", 0],
        ["panels", 7, "fieldConfig", "defaults", "custom"], ["templating", "list", 1]]
    for path in paths:
        other: Any = copy.deepcopy(board)
        functools.reduce(operator.getitem, path, other)["unknown"] = 1
        assert not holds(grafana(other), other), path


def chart_dashboard_asks_for_what_prometheus_takes_of_the_pods_that_are_chosen(
        helm: Helm, tmp_path: Path) -> None:
    board = dashboard(helm.render(overlay(WHOLE, ALL)))
    chosen = '{namespace=~"$namespace", pod=~"$pod"'
    for each in queries(board):
        assert each.count("colonies_backup_") == each.count(chosen), each
    promtool(tmp_path, "check rules", {"groups": [{"name": "x", "rules": [
        {"record": f"asked:{number}", "expr": each} for number, each in enumerate(queries(board))
    ]}]})
    assert [each["name"] for each in board["templating"]["list"]] == [
        "datasource", "namespace", "pod"]
    assert {each["id"] for each in board["panels"]} == {*range(1, len(board["panels"]) + 1)}
    places = [(panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y) for panel in board["panels"]
              for x in range(panel["gridPos"]["w"]) for y in range(panel["gridPos"]["h"])]
    assert len(places) == len(set(places)) and max(places)[0] == 23  # none lies on another


def chart_dashboard_shows_a_run_that_is_over_before_the_next_point(
        helm: Helm, tmp_path: Path) -> None:
    """A point stands for 20 minutes of a fortnight, and a backup may take one."""
    board = dashboard(helm.render(overlay(WHOLE, ALL)))
    [asked] = [each for each in queries(board) if "colonies_backup_running" in each]
    series = 'colonies_backup_running{namespace="prod", pod="db-0", function="backup"}'
    test = {"interval": "1m", "input_series": [{"series": series, "values": "0x9 1 0x60"}],
            "promql_expr_test": [{
                "expr": asked.replace("$namespace", "prod").replace("$pod", ".*"),
                "eval_time": f"{minutes}m", "exp_samples": [{"value": value, "labels": (
                    '{namespace="prod",pod="db-0",function="backup"}')}]}
                for minutes, value in ((5, 0), (20, 1), (60, 0))]}
    promtool(tmp_path, "test rules", {"groups": []}, [test])


# ---- The check ---------------------------------------------------------------------------------

@pytest.mark.parametrize("values", [WHOLE, OTHERS, ALONE], ids=["own", "others", "alone"])
def chart_check_has_what_it_takes_and_nothing_else(helm: Helm, values: dict[str, Any]) -> None:
    rendered = helm.render(overlay(values, ALL | {
        "podLabels": {"team": "x"}, "extraVolumes": [
            {"name": name, "persistentVolumeClaim": {"claimName": name}} for name in ("db", "own")],
        "database.extraVolumeMounts": [{"name": "db", "mountPath": "/db"}],
        "backup.extraVolumeMounts": [{"name": "own", "mountPath": "/own"}]}))
    [job] = rendered.kind("CronJob")
    spec = job["spec"]
    assert spec["concurrencyPolicy"] == "Forbid" and spec["schedule"] == "0 8 * * *"
    template = spec["jobTemplate"]["spec"]["template"]
    pod, [container] = template["spec"], template["spec"]["containers"]
    assert template["metadata"]["labels"]["team"] == "x" and pod["restartPolicy"] == "Never"
    assert container["command"][-3:] == ["check", "--max-age=26", "--no-volume"]
    same = ("serviceAccountName", "automountServiceAccountToken", "enableServiceLinks",
            "securityContext")
    assert [pod[name] for name in same] == [rendered.pod[name] for name in same]
    assert pod["automountServiceAccountToken"] is False
    for name in ("image", "resources", "securityContext"):
        assert container[name] == rendered.sidecar[name]
    # The helm test comes by the same way; the heartbeat is the backups', and the volume elsewhere.
    [check] = rendered.check["containers"]
    assert container["env"] == [each for each in check["env"] if "HEARTBEAT" not in each["name"]]
    assert [each["name"] for each in container["volumeMounts"]] == [
        "secrets", "backup-tmp", "own"]
    assert [each["name"] for each in pod["volumes"]] == ["secrets", "backup-tmp", "own"]
    files = rendered.files(pod)
    assert set(files) == {each["value"] for each in container["env"]
                          if each["value"].startswith("/secrets/")}
    assert set(rendered.files(rendered.pod)) - set(files) == {"/secrets/heartbeat-url"}


def chart_takes_the_longest_names_for_what_sees_the_backups(helm: Helm) -> None:
    rendered = helm.render(overlay(WHOLE, ALL | {"nameOverride": 40 * "x"}), 53 * "r", 63 * "n")
    for each in rendered.kind("CronJob", "ConfigMap"):
        kubernetes_validate.validate(each, "1.25", strict=True)
        kubernetes_validate.validate(each, "1.37", strict=True)
        assert len(each["metadata"]["name"]) <= 52  # of a CronJob
