"""Tests of the Helm chart, which the command `chart` runs: their names begin with chart_."""
from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import backup_executor
from chart import (
    ALONE,
    BOTH_WAYS,
    CERTIFICATE,
    CHART,
    EXISTING,
    KUBERNETES,
    OTHERS,
    SECRET_VALUES,
    WHOLE,
    Helm,
    Rendered,
    assert_valid,
    executor_of,
    overlay,
)
from colonies import FAILED, USER_KEY
from describe import SCHEMA, comments, described, descriptions, written
from environment import EXECUTOR, ROOT
from image import ADMIN_PATH, IMAGE, IMAGE_PROGRAMS, Podman
from readme import CHART_README, blocks
from servers import SYSTEM_PATH, Program, executor_environment, run
from surroundings import Site, standin

pytest_plugins = ["common"]

# ---- The chart ---------------------------------------------------------------------------------

@pytest.mark.parametrize("path", [*CHART.glob("ci/*-values.yaml")], ids=lambda path: path.stem)
def chart_lints_and_renders_what_each_kubernetes_takes(helm: Helm, path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    for major in (4, 3):
        assert " 0 chart(s) failed" in helm("lint", "--strict", str(CHART), major=major, **values)
    rendered = helm.render(values)
    assert_valid(rendered, *KUBERNETES)
    assert helm.render(values, major=3).objects == rendered.objects


# -- The values

def default_values() -> Any:
    return yaml.safe_load((CHART / "values.yaml").read_text())


def flat(values: dict[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """The path and the default of each value that holds no others."""
    return [leaf for name, value in values.items() for leaf in (
        flat(value, f"{path}{name}.") if isinstance(value, dict) and value
        else [(path + name, value)])]


def merged(values: Any, others: Any) -> Any:
    """VALUES with OTHERS laid over them, as Helm does with several files."""
    if not isinstance(values, dict) or not isinstance(others, dict):
        return others
    return values | {name: merged(values.get(name), each) for name, each in others.items()}


def leaves() -> list[tuple[str, dict[str, Any], Any]]:
    """Path, schema and default of each value; every one has a schema, and every schema a value.

    What has its schema by name is a value as a whole, which Kubernetes takes as it is.
    """
    schema = json.loads(SCHEMA.read_text("utf-8"))

    def walk(node: dict[str, Any], value: Any, path: str) -> Any:
        if "properties" not in node:
            name = node.get("$ref", "").rpartition("/")[2]
            return [(path, {**schema["definitions"].get(name, {}), **node}, value)]
        known = set(node["properties"]) - ({"global", "enabled"} if not path else set())  # helm's
        assert known == set(value) >= set(node.get("required", ())), path
        assert node["additionalProperties"] is False, path
        return [leaf for name in value for leaf in walk(
            node["properties"][name], value[name], f"{path}.{name}".lstrip("."))]

    return list(walk(schema, default_values(), ""))


def another(schema: dict[str, Any], value: Any) -> Any:
    """Another value than VALUE, of which the schema approves."""
    texts = ("other", "/tmp/other", "11Gi", f"sha256:{64 * '0'}", "none", "0 0 2 * * *", "@daily")
    kind, items = schema.get("type", "enum"), schema.get("items", {})
    if kind == "array" and items.get("type") == "object":
        return [dict.fromkeys(items.get("required", ()), "other")]
    if kind == "array":
        return [another(items, *value[:1] or [""])]
    if kind == "object":
        return {next(iter(schema.get("properties", ["other"]))): (
            {"other": "other"} if "properties" in schema else "other")}
    return (next(each for each in schema["enum"] if each != value) if kind == "enum" else
            not value if kind == "boolean" else
            value + 1 if kind == "integer" else
            next(text for text in texts if re.search(schema.get("pattern", ""), text)))


Effects = dict[str, tuple[Any, Rendered, Rendered]]
# Where not any other value will do; and what must be there for a value to have an effect.
OTHER: dict[str, Any] = {
    "backup.ca.pem": CERTIFICATE,
    "extraObjects": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other"}}]}
NEEDED: dict[str, dict[str, Any]] = {
    "database.extraVolumeMounts": {"extraVolumes": [{"name": "other"}]},
    "backup.extraVolumeMounts": {"extraVolumes": [{"name": "other"}]},
    "backup.ca.key": {"backup.ca.existingConfigMap": "own"},
    "backup.s3.ambient": {"backup.s3.ambient": True, "backup.s3.accessKey": "",
                          "backup.s3.secretAccessKey": ""}}


@pytest.fixture(scope="session")
def effects(helm: Helm) -> Effects:
    """For each value another one, and what is rendered without it and with it."""
    bases, found = [(each, helm.render(each)) for each in (WHOLE, OTHERS, ALONE)], {}
    for path, schema, value in leaves():
        alone = path in ("database.host", "database.port", "backup.persistence.enabled")
        base, before = bases[2 if alone else ".secretKeys." in path]
        if path in NEEDED:
            base = overlay(base, NEEDED[path])
            before = helm.render(base)
        changes = {path: SECRET_VALUES.get(path, "")[::-1] or OTHER.get(path)
                   or another(schema, value)}
        if path == "database.enabled":
            changes["database.host"] = "other"
        if path in EXISTING:
            changes |= {each: "" for each in SECRET_VALUES
                        if each.rpartition(".")[0] == path.rpartition(".")[0]}
        found[path] = changes[path], before, helm.render(overlay(base, changes))
    return found


def chart_schema_knows_each_value_and_values_yaml_explains_it() -> None:
    said = comments()
    assert [path for path, _, _ in leaves()
            if not any(re.search("[a-z]{2}", comment) for comment in said[path])] == []
    text = SCHEMA.read_text("utf-8")
    described_now = described(json.loads(text), descriptions())
    assert text == written(described_now) + "\n", "`python helm/ci/describe.py` writes it"


def chart_values_that_restart_the_database_or_cannot_be_changed_are_marked(
        effects: Effects) -> None:
    changeable = ("replicas", "template", "updateStrategy", "minReadySeconds", "ordinals",
                  "persistentVolumeClaimRetentionPolicy", "revisionHistoryLimit")

    def fixed(rendered: Rendered) -> Any:
        return [name for name in rendered.names() if re.match("StatefulSet|Service ", name)], {
            key: value for key, value in rendered.workload["spec"].items() if key not in changeable}

    def mark(before: Rendered, after: Rendered) -> list[str]:
        if before.workload["kind"] != "StatefulSet":
            return []
        return ["I"] if fixed(before) != fixed(after) else [
            "R"] * (before.template != after.template)

    said = comments()
    assert {path: re.findall(r"\[([A-Z])\]", said[path][0]) for path in effects} == {
        path: mark(before, after) for path, (_, before, after) in effects.items()}


def chart_sets_only_what_the_executor_knows_and_all_of_it_can_be_set(
        helm: Helm, effects: Effects) -> None:
    settings, settable = {each.name for each in backup_executor.SETTINGS}, set()
    files = {f"{each.name}_FILE" for each in backup_executor.SETTINGS
             if each.kind in backup_executor.SECRET}
    for other, before, after in effects.values():
        for container in (after.sidecar, after.check["containers"][0]):
            names = [each["name"] for each in container["env"]]
            assert len(names) == len(set(names)) and set(names) <= settings | files | {"other"}
        text, was = json.dumps(other).strip('"'), before.settings()
        settable |= {name for name, value in after.settings().items()
                     if value != was.get(name) and value.removeprefix("key ") == text}
    assert settable == settings
    assert files <= {each["name"] for each in helm.render(WHOLE).sidecar["env"]}
    large = helm.render(overlay(WHOLE, {"backup.fullBackups": 1000000}))
    assert large.settings()["FULL_BACKUPS"] == "1000000"


NO_KEYS = {"backup.s3.accessKey": "", "backup.s3.secretAccessKey": ""}
NO_OWNER = {"backup.colonies.colonyPrvkey": "", "backup.colonies.executorPrvkey": ""}
OWN = {"backup.colonies.existingSecret": "own"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"backup.image.repository": ""}, (
        "image.repository is missing. Build the image and push it:\n    docker build -t REGISTRY/"
        f"backup-executor:{backup_executor.__version__} . && docker pu")),
    ({"database.password": ""}, "database.password or database.existingSecret is missing"),
    ({"database.enabled": False}, "database.host is missing"),
    ({"database.host": "elsewhere"}, "database.host and database.port take database"),
    ({"database.port": 5433}, "database.host and database.port take database.enabled=false"),
    ({"backup.persistence.enabled": False}, "the kubelet evicts the whole pod, with the database"),
    ({"backup.colonies.host": ""}, "backup.colonies.host is missing"),
    ({"backup.colonies.colonyName": ""}, "backup.colonies.colonyName or backup.colonies.colonyId"),
    (NO_OWNER, "backup.colonies.colonyPrvkey, executorPrvkey or existingSecret is missing"),
    ({**NO_OWNER, **OWN, "backup.colonies.secretKeys.colonyPrvkey": ""}, "secretKeys names no key"),
    ({**NO_OWNER, **OWN, "backup.colonies.executorPrvkey": USER_KEY}, "Secret are both set"),
    ({"backup.colonies.colonyPrvkey": "c0ffee"}, "a private key has 64 hexadecimal digits"),
    ({"backup.s3.bucket": ""}, "backup.s3.bucket is missing"),
    ({"backup.s3.accessKey": ""}, "backup.s3.accessKey and backup.s3.secretAccessKey: one of them"),
    (NO_KEYS, "backup.s3.accessKey and secretAccessKey, or backup.s3.existingSecret, are missing"),
    ({**NO_KEYS, "serviceAccount": {"annotations": {"role": "r"}}}, "set backup.s3.ambient=true"),
    ({"backup.s3.ambient": True}, "backup.s3.ambient says that keys come from outside"),
    ({"backup.colonies.host": "colonies:443"}, "colonies.host is a name or an address alone"),
    ({"backup.colonies.host": "https://colonies"}, "and the port goes to\n  backup.colonies.port"),
    ({"backup.verify.host": "scratch:5432"}, "backup.verify.host is a name or an address alone"),
    ({"database.enabled": False, "database.host": "a/b"}, "database.host is a name or an address"),
    ({"database.image.tag": None}, "database.image.tag or database.image.digest is missing"),
    ({"database.password": "", "database.existingSecret": "own", "database.secretKeys": None},
     "database.secretKeys.password is missing: its key in database.existingSecret"),
    ({**NO_KEYS, "backup.s3.existingSecret": "own", "backup.s3.secretKeys.accessKey": None},
     "backup.s3.secretKeys.accessKey is missing: its key in backup.s3.existingSecret"),
    ({"backup.ca.pem": CERTIFICATE, "backup.ca.existingSecret": "own"}, "Secret: which one?"),
    ({"backup.ca.pem": "file.pem"}, "backup.ca.pem has no certificate"),
    ({"backup.ca.pem": f"{CERTIFICATE}-----BEGIN EC PRIVATE KEY-----"}, "pem holds a private key"),
    ({"commonLabels": {"helm.sh/chart": "x"}}, "commonLabels: helm.sh/chart is set by the chart"),
    ({"monitoring.labels": {"app.kubernetes.io/name": "x"}}, "monitoring.labels: app.kuber"),
    ({"commonAnnotations": {"helm.sh/hook": "test"}}, "commonAnnotations: helm.sh/hook is set by"),
    ({"podAnnotations": {"helm.sh/hook": "x"}}, "podAnnotations: helm.sh/hook is set by the chart"),
    ({"database.annotations": {"timescaledb.chart/path": ""}}, "timescaledb.chart/path is set"),
    ({"backup.persistence.labels": {"app.kubernetes.io/name": "x"}}, "backup.persistence.labels: "),
    ({"extraVolumes": [{"name": "a"}, {"name": "a"}]}, "extraVolumes: a is there twice"),
    ({"backup.extraVolumeMounts": [{"name": "a", "mountPath": "/a"}]}, "a is none of extraVolumes"),
    ({"extraVolumes": [{"name": "a"}], "backup.extraVolumeMounts": [
        {"name": "a", "mountPath": "/a"}, {"name": "a", "mountPath": "/a/"}]},
     "backup.extraVolumeMounts: there is something else at /a"),
    ({"extraVolumes": [{"name": "a"}], "database.extraVolumeMounts": [
        {"name": "a", "mountPath": "/dev/shm"}]}, "Mounts: there is something else at /dev/shm"),
    ({"backup.ca.existingSecret": "own", "extraVolumes": [{"name": "backup-ca"}]}, "-ca is the"),
    ({"sidecars": [{"name": "backup"}]}, "sidecars: there is another container backup"),
    ({"sidecars": [{"name": "a"}], "initContainers": [{"name": "a"}]}, "another container a"),
    ({"backup.verify.password": ""}, "backup.verify.password or backup.verify.existingSecret is"),
    ({"backup.verifyCronName": "backupcron"}, "cronName and backup.verifyCronName are the same"),
    ({"backup.checkCronName": "verifycron"}, "verifyCronName and backup.checkCronName are the sam"),
    ({"backup.age.existingSecret": "own"}, "backup.age.identity and existingSecret are both set"),
    ({"backup.extraEnv": [{"name": "KEEP_DAILY"}]}, "backup.extraEnv: KEEP_DAILY has a value"),
    ({"backup.extraEnv": [{"name": "DB_PASSWORD"}]}, "backup.extraEnv: DB_PASSWORD has a value"),
    ({"backup.extraEnv": [{"name": "AWS_S3_BUCKET"}]}, "AWS_S3_BUCKET has a value of its own"),
    ({"backup.extraEnv": [{"name": "TZ"}, {"name": "TZ"}]}, "backup.extraEnv: TZ is there twice"),
    ({"database.extraEnv": [{"name": "PGDATA"}]}, "database.extraEnv: PGDATA has a value of its"),
    ({"database.extraEnv": [{"name": "A"}, {"name": "A"}]}, "database.extraEnv: A is there twice"),
    ({"extraVolumes": [{"name": "tmp"}]}, "extraVolumes: tmp is the name of a volume of the chart"),
    ({"podLabels": {"app.kubernetes.io/name": "x"}}, "podLabels: app.kubernetes.io/name is set by"),
    ({"backup.metricsPort": 0, "monitoring.podMonitor": True}, "podMonitor takes backup.metricsPo"),
    ({"backup.metricsPort": 0, "monitoring.rules": True}, "monitoring.rules takes backup.metricsP"),
    ({"monitoring.checkSchedule": "0 0 8 * * *"}, "'/monitoring/checkSchedule': '0 0 8 * * *' do"),
    ({"backup.path": "/tmp/"}, "backup.path: there is something else at /tmp"),
    ({"backup.path": "/secrets/x"}, "backup.path: nothing can be mounted below /secrets, which is"),
    ({"extraVolumes": [{"name": "a"}], "database.extraVolumeMounts": [
        {"name": "a", "mountPath": "/secrets/a"}]}, "database.extraVolumeMounts: nothing can be m"),
    ({"backup.metricsPort": 5432}, "backup.metricsPort: 5432 is the port of the database, in the"),
    ({"database.persistence.existingClaim": "a", "backup.persistence.existingClaim": "a"},
     "backup.persistence.existingClaim is the database's: dumps would fill its volume"),
    ({"backup.aliveFile": "/run/alive"}, "backup.aliveFile is on the read-only root"),
    # What the schema refuses. It does not repeat a secret.
    ({"database.pasword": "x"}, "'/database': additional properties 'pasword' not allowed"),
    ({"database.password": 12345}, "'/database/password': got number, want string\n"),
    ({"database.port": "5432"}, "'/database/port': got string, want integer"),
    ({"database.secretKeys.password": ""}, "'/database/secretKeys/password': minLength"),
    ({"backup.s3.endpoint": "ftp://s3"}, "'/backup/s3/endpoint': 'ftp://s3' does not match"),
    ({"database.resources": {"limit": {}}}, "additional properties 'limit' not allowed"),
    ({"backup.colonies.port": None}, "'/backup/colonies': missing property 'port'"),
    ({"backup.cron": "0 1 * * *"}, "'/backup/cron': '0 1 * * *' does not match pattern"),
    ({"backup.fullBackups": 0}, "'/backup/fullBackups': minimum: got 0, want 1"),
    ({"backup.logLevel": "warn"}, "'/backup/logLevel': value must be one of"),
    ({"backup.extraEnv": [{"name": "TZ", "valu": "UTC"}]}, "additional properties 'valu' not"),
    ({"fullnameOverride": 41 * "x"}, "'/fullnameOverride': maxLength: got 41, want 40"),
]


@pytest.mark.parametrize("changes, sentence", REFUSED)
def chart_refuses_what_would_go_wrong_later_and_says_what(
        helm: Helm, changes: dict[str, Any], sentence: str) -> None:
    ran = helm.run("template", "db", str(CHART), **overlay(WHOLE, changes))
    assert (ran.returncode, ran.stdout) == (1, "") and sentence in ran.stderr, ran.stderr
    assert len(re.findall("(?m)^ *- ", ran.stderr)) == 1, ran.stderr


def chart_unsets_what_is_null_and_says_what_cannot_be(helm: Helm) -> None:
    """All that the schema does not require at once; and then all that it does."""
    least = {path: value for path, value in flat(WHOLE) if path in (
        "backup.image.repository", "backup.colonies.host", "backup.colonies.colonyName",
        "backup.colonies.colonyPrvkey", "backup.s3.bucket", "database.password")}
    least |= {"database.image.tag": "1-pg17", "backup.s3.ambient": True}
    required: list[str] = []
    optional: list[str] = []

    def walk(node: dict[str, Any], path: str) -> None:
        for name, each in node["properties"].items():
            inner = f"{path}{name}"
            if any(known.startswith(f"{inner}.") for known in least) or "required" in each:
                walk(each, f"{inner}.")
            elif inner not in ("global", "enabled", *least):  # helm's own
                (required if name in node.get("required", ()) else optional).append(inner)

    walk(json.loads(SCHEMA.read_text("utf-8")), "")
    assert len(required) > 8 and len(optional) > 50
    for more in {}, {"database.enabled": False, "database.host": "other"}:
        values = overlay({}, {**dict.fromkeys(optional), **least, **more})
        rendered = helm.render(values)
        assert helm.render(values, major=3).objects == rendered.objects
        assert_valid(rendered)
        assert set(rendered.settings()) == {
            "COLONIES_SERVER_HOST", "COLONIES_SERVER_PORT", "COLONIES_COLONY_NAME",
            "COLONIES_COLONY_PRVKEY", "COLONIES_EXECUTOR_NAME", "COLONIES_EXECUTOR_TYPE",
            "DB_HOST", "DB_DATABASE", "DB_USER", "DB_PASSWORD", "AWS_S3_BUCKET_NAME",
            "BACKUP_PATH", "BACKUP_ALIVE_FILE", *(["DB_PORT"] if not more else [])}
    said = helm.run("template", "db", str(CHART), **overlay(WHOLE, dict.fromkeys(required)))
    for path in required:
        assert re.search(f"missing propert.*'{path.rpartition('.')[2]}'", said.stderr), path


@pytest.mark.parametrize("odd", ["㭸", "0x1F", "1e3", "012", "true", "null", "2026-11-29", "~"])
def chart_keeps_a_text_that_looks_like_something_else_a_text(helm: Helm, odd: str) -> None:
    """`㭸` is 4624 in base64, which was a number; --set, too, has numbers of its own."""
    odds = ("database.password", "database.name", "database.user", "backup.s3.secretAccessKey",
            "backup.s3.bucket", "backup.s3.prefix", "backup.colonies.colonyName",
            "backup.colonies.executorType", "backup.cronName", "database.image.tag",
            "backup.image.tag", "podLabels.odd", "commonAnnotations.odd")
    rendered = helm.render(overlay(WHOLE, dict.fromkeys(odds, odd)))
    assert {"DB_PASSWORD": odd, "AWS_S3_SECRET_ACCESS_KEY": odd, "DB_DATABASE": odd,
            "BACKUP_CRON_NAME": odd, "COLONIES_COLONY_NAME": odd}.items() <= (
                rendered.settings().items())
    for container in rendered.pod["containers"]:
        assert container["image"].endswith(f":{odd}")
    assert rendered.template["metadata"]["labels"]["odd"] == odd
    assert {each["metadata"]["annotations"]["odd"] for each in rendered.objects} == {odd}
    for part in ("database", "backup"):
        own = helm.render(overlay(WHOLE, {f"{part}.persistence.existingClaim": odd})).pod
        assert odd in [each["persistentVolumeClaim"]["claimName"] for each in own["volumes"]
                       if "persistentVolumeClaim" in each]


def chart_takes_no_number_for_a_text_but_each_number_for_a_number(helm: Helm) -> None:
    ran = helm.run("template", "db", str(CHART), "--set=database.password=12345",
                   "--set=backup.colonies.colonyName=7", **WHOLE)
    assert ran.stderr.count("got number, want string") == 2 and "12345" not in ran.stderr
    text = helm("template", "db", str(CHART), "--set=backup.fullBackups=1000000",
                "--set=backup.maxWait=999999", "--set=backup.metricsPort=9187",
                "--set-string=database.password=012345", **WHOLE)
    settings = Rendered(text).settings()
    assert (settings["FULL_BACKUPS"], settings["BACKUP_MAX_WAIT"], settings["METRICS_PORT"],
            settings["DB_PASSWORD"]) == ("1000000", "999999", "9187", "012345")


@BOTH_WAYS
def chart_has_a_port_for_metrics_where_there_are_some(helm: Helm, values: dict[str, Any]) -> None:
    assert "ports" not in helm.render(overlay(values, {"backup.metricsPort": 0})).sidecar
    rendered = helm.render(values)
    assert rendered.sidecar["ports"] == [{"name": "metrics", "containerPort": 9187}]


def chart_without_values_names_all_that_is_missing_at_once(helm: Helm) -> None:
    said = helm.run("template", "db", str(CHART)).stderr
    assert len(re.findall(r"(?m)^- .* (?:is|are) missing", said)) == 7, said


def chart_prints_what_readme_says(helm: Helm) -> None:
    """With README's values; and with a second database's, which are laid over them."""
    readme = CHART_README.read_text("utf-8")
    first, second, *_ = map(yaml.safe_load, blocks(readme, "yaml"))
    said = helm("install", "timescaledb", str(CHART), "--namespace=timescaledb",
                "--dry-run=client", **first)
    quoted = re.findall(r"(?ms)^NOTES:\n(.*?)^\.\.\.$", readme)[0]
    assert quoted and said.partition("NOTES:\n")[2].startswith(quoted)
    ours, theirs = helm.render(first).settings(), helm.render(merged(first, second)).settings()
    apart = ["COLONIES_EXECUTOR_NAME", "COLONIES_EXECUTOR_TYPE", "BACKUP_CRON_NAME",
             "VERIFY_CRON_NAME", "AWS_S3_PREFIX", "DB_DATABASE"]
    assert [name for name in apart if ours[name] == theirs[name]] == []


def chart_readme_has_each_value_with_its_type_default_and_mark() -> None:
    rows = [[cell.strip(" `") for cell in re.split(r" \| |^\| | \|$", line)[1:-1]]
            for line in CHART_README.read_text("utf-8").splitlines() if re.match(r"\| `\w", line)]
    types = {"string": str, "integer": int, "boolean": bool, "list": list, "object": dict}
    said, known = comments(), leaves()
    assert [path for path, *_ in rows] == [path for path, _, _ in known]
    for (path, kind, default, mark, meaning), (_, _, value) in zip(rows, known):
        assert type(value) is types[kind] and meaning, path
        assert yaml.safe_load(default) == value or (default == "…" and kind == "object"), path
        assert re.findall(r"\[([A-Z])\]", said[path][0]) == mark.split(), path


# -- What is rendered

def chart_is_packaged_with_the_programs_version_and_without_what_its_tests_need(
        helm: Helm, tmp_path: Path) -> None:
    helm("package", str(CHART), f"--destination={tmp_path}")
    [package] = tmp_path.iterdir()
    with tarfile.open(package) as archive:
        assert set(archive.getnames()) == {
            f"timescaledb/{path.relative_to(CHART)}" for path in CHART.rglob("*")
            if path.is_file() and path.relative_to(CHART).parts[0] != "ci"}
    about = yaml.safe_load(helm("show", "chart", str(package)))
    assert about["appVersion"] == run({}, "--version").stdout.split()[-1]
    assert CHART_README.read_text("utf-8") in helm("show", "readme", str(package))
    assert {"home", "sources", "icon", "maintainers", "keywords"} <= about.keys()
    more = {name.partition("/")[2]: text for name, text in about["annotations"].items()}
    [image] = yaml.safe_load(more["images"])
    assert image["image"] == "docker.io/{repository}:{tag}".format(
        **default_values()["database"]["image"])
    assert {each["kind"] for each in yaml.safe_load(more["changes"])} <= {
        "added", "changed", "deprecated", "removed", "fixed", "security"}
    assert all(set(each) == {"name", "url"} for each in yaml.safe_load(more["links"]))


def chart_keeps_its_sidecar_from_hurting_the_database(helm: Helm, tmp_path: Path) -> None:
    rendered = helm.render(WHOLE)
    pod, sidecar, postgres = rendered.pod, rendered.sidecar, rendered.pod["containers"][0]
    assert [each["spec"]["publishNotReadyAddresses"] for each in rendered.kind("Service")] == [
        True, True]
    assert not {"readinessProbe", "startupProbe", "lifecycle"} & set(sidecar)
    assert not {"initContainers", "shareProcessNamespace"} & set(pod)
    assert pod["enableServiceLinks"] is pod["automountServiceAccountToken"] is False
    assert not any("subPath" in mount for each in (postgres, sidecar)
                   for mount in each["volumeMounts"])
    # Only claims are on a disk. The database starts also where a secret of the sidecar is missing.
    for each in pod["volumes"]:
        [(kind, volume)] = [item for item in each.items() if item[0] != "name"]
        if kind == "emptyDir":
            assert volume["medium"] == "Memory" and volume["sizeLimit"]
        elif kind == "projected":
            assert all(source["secret"]["optional"] is True for source in volume["sources"])
        else:
            assert (kind, volume["secretName"]) == ("secret", "timescaledb-database")
    assert "livenessProbe" not in postgres and pod["terminationGracePeriodSeconds"] == 120
    startup = postgres["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 3600
    # The sidecar's own probe looks at the file that it touches, where it can touch it.
    [mount] = [each for each in sidecar["volumeMounts"]
               if rendered.settings()["BACKUP_ALIVE_FILE"].startswith(each["mountPath"] + "/")]
    assert mount["name"] == "backup-tmp" and not mount.get("readOnly")
    alive = tmp_path / "alive"
    probe = functools.partial(
        subprocess.run, sidecar["livenessProbe"]["exec"]["command"], capture_output=True,
        env={"PATH": SYSTEM_PATH, "BACKUP_ALIVE_FILE": str(alive)}, check=False)
    assert probe().returncode != 0
    alive.touch()
    assert probe().returncode == 0
    os.utime(alive, (time.time() - 300,) * 2)
    assert probe().returncode != 0


@BOTH_WAYS
def chart_changes_no_pod_when_its_version_or_a_secret_changes(
        helm: Helm, tmp_path: Path, values: dict[str, Any]) -> None:
    newer, values = tmp_path / "newer", overlay(values, {"backup.image.tag": "pinned"})
    shutil.copytree(CHART, newer)
    (newer / "Chart.yaml").write_text(re.sub("(?i)(version: )[0-9].*", r"\g<1>9.8.7",
                                             (CHART / "Chart.yaml").read_text()))
    before, after = helm.render(values), helm.render(values, chart=newer)
    assert before.objects != after.objects
    assert [each.get("spec") for each in before.objects] == [
        each.get("spec") for each in after.objects]
    rotated = helm.render(overlay(values, {
        path: text[::-1] for path, text in SECRET_VALUES.items()}))
    assert rotated.workload == before.workload and rotated.objects != before.objects


def chart_names_things_as_documented_and_those_of_a_second_release_differ(helm: Helm) -> None:
    first = helm.render(WHOLE)
    second = helm.render(overlay(WHOLE, {"fullnameOverride": "second"}), "db2")
    assert first.names() == [
        "Pod timescaledb-check", *(f"Secret timescaledb-{name}" for name in (
            "age", "colonies", "database", "heartbeat", "s3", "verify")),
        "Service timescaledb-headless", "Service timescaledb-service", "ServiceAccount timescaledb",
        "StatefulSet timescaledb-statefulset"]
    assert set(first.names()).isdisjoint(second.names())
    assert [each["name"] for each in first.pod["containers"]] == ["postgres", "backup"]
    assert {"name": "PGDATA", "value": "/var/lib/postgresql/data/db"
            } in first.pod["containers"][0]["env"]
    assert {"name": "backups", "mountPath": "/backups"} in first.sidecar["volumeMounts"]
    spec = first.workload["spec"]
    assert [each["metadata"]["name"] for each in spec["volumeClaimTemplates"]] == [
        "data", "backups"] and spec["serviceName"] == "timescaledb-headless"
    assert set(spec["persistentVolumeClaimRetentionPolicy"].values()) == {"Retain"}
    labels = [pod["metadata"]["labels"] for each in (first, second)
              for pod in (each.template, *each.kind("Pod"))]
    for index, (each, name) in enumerate([(first, "timescaledb"), (second, "second")]):
        assert each.settings()["COLONIES_EXECUTOR_NAME"] == f"backup-prod-{name}"
        for service in each.kind("Service"):  # it leads to its own database, and not to the checks
            assert [service["spec"]["selector"].items() <= have.items() for have in labels] == [
                number == 2 * index for number in range(4)]


@BOTH_WAYS
@pytest.mark.parametrize("release, namespace, name", [
    (53 * "r", 63 * "n", 40 * "x"), ("123", "456", "true")], ids=["longest", "like a number"])
def chart_takes_the_longest_names_and_those_that_look_like_something_else(
        helm: Helm, values: dict[str, Any], release: str, namespace: str, name: str) -> None:
    rendered = helm.render(overlay(values, {
        "nameOverride": name, "serviceAccount.name": "1", "priorityClassName": "0x1",
        "database.persistence.storageClass": "789", "backup.persistence.storageClass": "on"}),
        release, namespace)
    assert_valid(rendered)
    for each in rendered.objects:
        limit = 52 if each["kind"] == "StatefulSet" else 63  # its pods' labels add a hash
        assert len(each["metadata"]["name"]) <= limit, each["metadata"]
        assert all(len(label) <= 63 for label in each["metadata"]["labels"].values())
        assert each["metadata"]["namespace"] == namespace
    assert_valid(helm.render(overlay(OTHERS, dict.fromkeys(EXISTING, "123"))))


def chart_labels_are_cut_where_kubernetes_takes_them(helm: Helm, tmp_path: Path) -> None:
    """After a letter or a digit: the name is an alias where a parent gives one."""
    shutil.copytree(CHART, tmp_path / "long")
    text = (CHART / "Chart.yaml").read_text()
    for length in range(58, 64):
        (tmp_path / "long/Chart.yaml").write_text(
            re.sub("(?m)^name: .*", f"name: {length * 'x'}", text))
        rendered = helm.render(overlay(WHOLE, {"nameOverride": "x"}), chart=tmp_path / "long")
        for label in rendered.workload["metadata"]["labels"].values():
            assert re.fullmatch("[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", label), label


@pytest.mark.parametrize("values", [WHOLE, OTHERS, ALONE], ids=["own", "others", "alone"])
def chart_shows_secrets_in_secrets_alone_and_takes_any_character(
        helm: Helm, values: dict[str, Any]) -> None:
    odd = "\"'$HOME: {{ . }} #%\\ \té\u200b€\n- |\n"
    passwords = {path: text if "Prvkey" in path else odd + text
                 for path, text in SECRET_VALUES.items() if values is not OTHERS}
    rendered = helm.render(overlay(values, passwords))
    assert not passwords or set(rendered.files(rendered.pod).values()) == set(passwords.values())
    said = helm("install", "db", str(CHART), "--dry-run=client", **overlay(values, passwords))
    secret = [text for each in rendered.kind("Secret") for text in each["data"].values()]
    for path, password in passwords.items():
        assert base64.b64encode(password.encode()).decode() in secret
        assert SECRET_VALUES[path] not in said
    for text in secret:
        assert said.count(text) == 1
    notes, namespace = said.partition("NOTES:\n")[2], "-n default"
    pod = "deploy/timescaledb-backup" if values is ALONE else "timescaledb-statefulset-0"
    assert f"{namespace} -c backup {pod} -- python3 /app/backup_executor.py list" in notes
    assert "--func backup --targettype backup\n" in notes


@BOTH_WAYS
def chart_runs_its_pods_as_the_restricted_standard_asks_and_as_postgres(
        helm: Helm, values: dict[str, Any]) -> None:
    rendered = helm.render(values)
    for pod in (rendered.pod, rendered.check):
        assert pod["securityContext"] == {
            "runAsNonRoot": True, "runAsUser": 70, "runAsGroup": 70, "fsGroup": 70,
            "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"}}
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]}}


def chart_gives_the_executor_alone_the_same_container_and_a_claim_of_its_own(helm: Helm) -> None:
    beside, alone = helm.render(WHOLE), helm.render(ALONE)
    assert not alone.kind("Service") and len(alone.pod["containers"]) == 1
    assert alone.workload["spec"]["strategy"] == {"type": "Recreate"}
    [claim] = alone.kind("PersistentVolumeClaim")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert {"name": "backups", "persistentVolumeClaim": {
        "claimName": claim["metadata"]["name"]}} in alone.pod["volumes"]
    for each in (beside, alone):
        each.sidecar["env"] = [item for item in each.sidecar["env"] if item["name"] != "DB_HOST"]
    assert alone.sidecar == beside.sidecar
    assert [each for each in alone.pod["volumes"] if each["name"] != "backups"] == [
        each for each in beside.pod["volumes"] if each["name"] in ("secrets", "backup-tmp")]
    role = helm.render(overlay(ALONE, {
        **NO_KEYS, "backup.persistence.enabled": False, "backup.s3.ambient": True,
        "serviceAccount.annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/b"}}))
    assert not role.kind("PersistentVolumeClaim") and "emptyDir" in role.pod["volumes"][0]
    assert not [name for name in role.settings() if re.search("AWS_.*KEY", name)]


# -- The rendered sidecar, run

class Sidecar:
    """A rendered pod's executor, run as a kubelet does: in the image, or as a process."""

    def __init__(self, podman: Podman | None, folder: Path, rendered: Rendered,
                 pod: dict[str, Any]) -> None:
        self.podman, self.pod, self.container = podman, pod, executor_of(pod)
        self.name = f"chart-{secrets.token_hex(6)}"
        self.folders = {each["mountPath"]: folder / self.name / each["name"]
                        for each in self.container["volumeMounts"]}
        for path in self.folders.values():
            path.mkdir(parents=True)
            self._own(path, 0o2770)
        self.project(rendered)
        env = {each["name"]: each["value"] for each in self.container["env"]}
        if podman:
            self.before, self.env = [*podman.argv, "exec", self.name], podman.env
            self.argv = [*podman.argv, "run", *self._options(env), self.container["image"]]
        else:
            self.before, self.env = [], executor_environment(
                {name: self._mapped(env[name]) for name in env}, self._mapped("/tmp"), 17)
            assert self.container["command"][:2] == ["python3", "/app/backup_executor.py"]
            self.argv = [sys.executable, str(EXECUTOR), *self.container["command"][2:]]

    def _own(self, path: Path, mode: int) -> None:
        if ROOT:
            os.chown(path, 0, self.pod["securityContext"]["fsGroup"])
        path.chmod(mode)

    def _mapped(self, text: str) -> str:
        mounts = [path for path in self.folders if f"{text}/".startswith(f"{path}/")]
        return f"{self.folders[mounts[0]]}{text.removeprefix(mounts[0])}" if mounts else text

    def project(self, rendered: Rendered) -> None:
        """Put the secrets' files, or those that changed, into their place."""
        [volume] = [each["projected"] for each in self.pod["volumes"] if "projected" in each]
        for path, text in rendered.files(self.pod).items():
            new = Path(self._mapped(path) + ".new")
            new.write_text(text)
            self._own(new, volume["defaultMode"])
            new.replace(self._mapped(path))

    def _options(self, env: dict[str, str]) -> list[str]:
        """Podman's, for what the manifest says; the host's network in place of the pod's."""
        user, own = self.pod["securityContext"], self.container["securityContext"]
        options = ["--rm", f"--name={self.name}", "--network=host", "--passwd=false",
                   "--ulimit=nofile=1024", "--ulimit=nproc=1024",  # its own may not be allowed
                   f"--user={user['runAsUser']}:{user['runAsGroup']}", "--read-only-tmpfs=false",
                   *["--security-opt=no-new-privileges"] * (not own["allowPrivilegeEscalation"]),
                   *["--read-only"] * own["readOnlyRootFilesystem"],
                   *(f"--cap-drop={name}" for name in own["capabilities"]["drop"]),
                   f"--entrypoint={json.dumps(self.container['command'])}",
                   *(f"--env={name}={value}" for name, value in env.items())]
        volumes = {each["name"]: each for each in self.pod["volumes"]}
        for each in self.container["volumeMounts"]:
            path, memory = each["mountPath"], volumes[each["name"]].get("emptyDir", {})
            if memory.get("medium") == "Memory":
                size = memory["sizeLimit"].removesuffix("i").lower()
                options.append(f"--tmpfs={path}:mode=1777,size={size}")
            else:
                only = ":ro" * each.get("readOnly", False)
                options.append(f"--volume={self.folders[path]}:{path}{only}")
        return options

    def probe(self) -> int:
        """The exit status of its liveness probe."""
        return subprocess.run([*self.before, *self.container["livenessProbe"]["exec"]["command"]],
                              env=self.env, capture_output=True, check=False).returncode

    @contextlib.contextmanager
    def running(self) -> Iterator[Program]:
        with Program(self.argv, self.env) as program:
            try:
                yield program
            finally:
                if self.podman:
                    self.podman("rm", "--force", "--ignore", "--time=0", self.name)


CONTAINERS = ROOT and all(shutil.which(name, path=ADMIN_PATH) for name in IMAGE_PROGRAMS)


@pytest.fixture(params=["in the image"] * CONTAINERS + ["as a process"])
def runtime(request: pytest.FixtureRequest) -> Podman | None:
    """Podman, that has the image, where it runs; and None, for plain processes."""
    return request.getfixturevalue("podman") if request.param == "in the image" else None


@standin()
def chart_runs_a_sidecar_that_backs_up_and_takes_new_secrets_in_without_a_restart(
        helm: Helm, site: Site, runtime: Podman | None, tmp_path: Path) -> None:
    values = overlay(default_values(), {
        "database.enabled": False, "database.host": "127.0.0.1",
        "database.port": site.postgres.port, "database.name": site.name,
        "database.password": site.postgres.password,
        "backup.image.repository": IMAGE, "backup.image.tag": "latest",
        "backup.colonies.host": site.where.host, "backup.colonies.port": site.where.port,
        "backup.colonies.tls": False, "backup.colonies.colonyName": site.where.name,
        "backup.colonies.colonyPrvkey": site.where.owner_key,
        "backup.colonies.executorType": site.name, "backup.s3.endpoint": site.s3.url,
        "backup.s3.bucket": "backup", "backup.s3.prefix": site.name,
        "backup.s3.accessKey": site.s3.access_key,
        "backup.s3.secretAccessKey": site.s3.secret_key})
    right = helm.render(values)
    wrong = helm.render(overlay(values, {"backup.s3.secretAccessKey": "wrong"}))
    sidecar = Sidecar(runtime, tmp_path, right, right.pod)
    with sidecar.running() as program:
        site.polling()
        assert list(site.standin.executors) == ["backup-prod-timescaledb"]
        first = site.succeeds(site.submit())
        stored = f"{site.name}/{first['filename']}"
        assert site.stored_keys() == [stored, stored.replace(".bak", ".roles.sql")]
        assert first["size"] > 0
        assert sidecar.probe() == 0
        sidecar.project(wrong)
        [error] = site.client.wait(site.submit(), FAILED)["errors"]
        assert "SignatureDoesNotMatch" in error or "403" in error
        sidecar.project(right)
        site.succeeds(site.submit())
        assert program.stop() == 0
    with Sidecar(runtime, tmp_path, right, right.check).running() as program:
        assert program.wait() == 0 and len(program.out) > 4, program.log
        assert {line[:5] for line in program.out} <= {"ok   ", "note "}, program.log
    for hours, status in (26, 0), (0, 1):
        watched = helm.render(overlay(values, {
            "monitoring.checkSchedule": "@daily", "backup.checkMaxAge": hours}))
        pod = watched.kind("CronJob")[0]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        with Sidecar(runtime, tmp_path, watched, pod).running() as program:
            assert program.wait() == status, program.log
            assert [line for line in program.out if line.startswith("-")] == [
                "-     staging volume: not looked at: --no-volume"]
            assert sum(line.startswith("FAIL  newest backup") for line in program.out) == status
