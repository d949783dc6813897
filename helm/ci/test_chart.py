"""Tests of the Helm chart, which the command `chart` runs: their names begin with chart_."""
from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import backup_executor
from chart import (
    ALONE,
    BOTH_WAYS,
    CHART,
    EXISTING,
    OTHERS,
    SECRET_VALUES,
    WHOLE,
    Helm,
    Rendered,
    overlay,
)
from colonies import FAILED, USER_KEY
from environment import EXECUTOR, ROOT
from image import ADMIN_PATH, IMAGE, IMAGE_PROGRAMS, Podman
from readme import CHART_README, blocks
from servers import SYSTEM_PATH, Postgres, Program, executor_environment, run
from surroundings import Site, standin

pytest_plugins = ["common"]

# ---- The chart ---------------------------------------------------------------------------------

def assert_valid(rendered: Rendered) -> None:
    """To the oldest and the newest Kubernetes whose schemas are at hand, which know each field."""
    versions = kubernetes_validate.utils.all_versions()
    for each in rendered.objects:
        if each["kind"] in ("PodMonitor", "PrometheusRule"):
            continue  # of the Prometheus Operator, whose schemas aren't
        kubernetes_validate.validate(each, versions[0], strict=True)
        kubernetes_validate.validate(each, versions[-1], strict=True)


@pytest.mark.parametrize("path", [*CHART.glob("ci/*-values.yaml")], ids=lambda path: path.stem)
def chart_lints_and_renders_what_the_oldest_and_the_newest_kubernetes_take(
        helm: Helm, path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    assert " 0 chart(s) failed" in helm("lint", "--strict", str(CHART), **values)
    rendered = helm.render(values)
    assert_valid(rendered)
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

    What has no required properties is a value as a whole, which Kubernetes takes as it is.
    """
    schema = json.loads((CHART / "values.schema.json").read_text())

    def walk(node: dict[str, Any], value: Any, path: str) -> Any:
        if "$ref" in node:
            node = schema["definitions"][node["$ref"].rpartition("/")[2]]
        if "required" not in node:
            return [(path, node, value)]
        known = set(node["properties"]) - ({"global", "enabled"} if not path else set())  # helm's
        assert known == set(node["required"]) == set(value), path
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


@pytest.fixture(scope="session")
def effects(helm: Helm) -> Effects:
    """For each value another one, and what is rendered without it and with it."""
    bases, found = [(each, helm.render(each)) for each in (WHOLE, OTHERS, ALONE)], {}
    for path, schema, value in leaves():
        alone = path in ("database.host", "database.port", "backup.persistence.enabled")
        base, before = bases[2 if alone else ".secretKeys." in path]
        changes = {path: SECRET_VALUES.get(path, "")[::-1] or another(schema, value)}
        if path == "database.enabled":
            changes["database.host"] = "other"
        if path in EXISTING:
            changes |= {each: "" for each in SECRET_VALUES
                        if each.rpartition(".")[0] == path.rpartition(".")[0]}
        found[path] = changes[path], before, helm.render(overlay(base, changes))
    return found


def comments() -> dict[str, tuple[str, str]]:
    """Of each path in values.yaml the comment, beside or above it, and its parent's."""
    found, above, path = {"": ("", "")}, "", [""]
    for line in (CHART / "values.yaml").read_text().splitlines():
        if match := re.match(r"( *)(\w+):(?:.*?\s#(.*))?", line):
            path = [*path[:len(match[1]) // 2 + 1], match[2]]
            parent = found[".".join(path[1:-1])][0]
            found[".".join(path[1:])] = above + (match[3] or ""), parent
        above = above + line if line.lstrip().startswith("#") else ""
    return found


def chart_schema_knows_each_value_and_values_yaml_explains_it() -> None:
    said = comments()
    assert [path for path, _, _ in leaves()
            if not any(re.search("[a-z]{2}", comment) for comment in said[path])] == []


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
    ({**NO_KEYS, "serviceAccount": {"create": False, "annotations": {"role": "r"}}}, "keys for S3"),
    ({"backup.verify.password": ""}, "backup.verify.password or backup.verify.existingSecret is"),
    ({"backup.verifyCronName": "backupcron"}, "cronName and backup.verifyCronName are the same"),
    ({"backup.checkCronName": "verifycron"}, "verifyCronName and backup.checkCronName are the sam"),
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
    ({"backup.aliveFile": "/run/alive"}, "backup.aliveFile is on the read-only root"),
    # What the schema refuses. It does not repeat a secret.
    ({"database.pasword": "x"}, "'/database': additional properties 'pasword' not allowed"),
    ({"database.password": 12345}, "'/database/password': got number, want string\n"),
    ({"database.port": "5432"}, "'/database/port': got string, want integer"),
    ({"database.secretKeys.password": ""}, "'/database/secretKeys/password': minLength"),
    ({"backup.colonies.host": "https://colonies"}, "'/backup/colonies/host': 'https://colonies'"),
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


@BOTH_WAYS
def chart_has_a_port_for_metrics_where_there_are_some(helm: Helm, values: dict[str, Any]) -> None:
    assert "ports" not in helm.render(overlay(values, {"backup.metricsPort": 0})).sidecar
    rendered = helm.render(values)
    assert rendered.sidecar["ports"] == [{"name": "metrics", "containerPort": 9187}]


def chart_without_values_names_all_that_is_missing_at_once(helm: Helm) -> None:
    said = helm.run("template", "db", str(CHART)).stderr
    assert len(re.findall(r"(?m)^- .* (?:is|are) missing", said)) == 7, said


class ClusterRequest(http.server.BaseHTTPRequestHandler):
    """A request to a Cluster."""

    protocol_version = "HTTP/1.1"
    server: Cluster

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = self.server.answer(self.command, self.path.partition("?")[0], body)
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                   "reason": "NotFound", "message": "not found"}
        text = json.dumps(found or missing).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PATCH = do_DELETE = answer

    def log_message(self, *_: Any) -> None:
        pass


class Cluster(http.server.ThreadingHTTPServer):
    """What stands for a cluster: it keeps the objects that helm makes, and nobody acts on them."""

    STATEFULSETS = "/apis/apps/v1/namespaces/prod/statefulsets"
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ClusterRequest)
        version = {"groupVersion": "apps/v1", "version": "v1"}
        self.about: dict[str, Any] = {
            "/version": {"major": "1", "minor": "37", "gitVersion": "v1.37.0"},
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/api/v1": self.kinds("v1", "Pod", "Secret", "Service", "ServiceAccount",
                                  "PersistentVolumeClaim"),
            "/apis": {"kind": "APIGroupList", "groups": [
                {"name": "apps", "versions": [version], "preferredVersion": version}]},
            "/apis/apps/v1": self.kinds("apps/v1", "StatefulSet", "Deployment")}
        self.objects: dict[str, dict[str, Any]] = {}  # by their paths

    def kinds(self, version: str, *names: str) -> dict[str, Any]:
        verbs = ["list", "get", "create", "patch", "delete"]
        return {"kind": "APIResourceList", "groupVersion": version, "resources": [
            {"name": f"{name.lower()}s", "kind": name, "namespaced": True, "verbs": verbs}
            for name in names]}

    def answer(self, method: str, path: str, body: bytes) -> dict[str, Any] | None:
        """What is at PATH; with DELETE, what was."""
        if method == "POST":
            path = f"{path}/{json.loads(body)['metadata']['name']}"
        if method in ("POST", "PATCH"):
            self.objects[path] = self.merged(self.objects.get(path, {}), json.loads(body))
        if path == self.STATEFULSETS:
            return {"kind": "StatefulSetList", "apiVersion": "apps/v1",
                    "items": list(self.statefulsets().values())}
        if method == "DELETE":
            return self.objects.pop(path, None)
        return self.about.get(path) or self.objects.get(path)

    def helm(self, home: Path, **more: str) -> Helm:
        return Helm(home, HELM_NAMESPACE="prod",
                    HELM_KUBEAPISERVER=f"http://127.0.0.1:{self.server_port}", **more)

    def merged(self, old: Any, new: Any) -> Any:
        if not isinstance(old, dict) or not isinstance(new, dict):
            return new
        return old | {key: self.merged(old.get(key), value) for key, value in new.items()}

    def statefulsets(self) -> dict[str, dict[str, Any]]:
        return {path.rpartition("/")[2]: each for path, each in self.objects.items()
                if path.startswith(self.STATEFULSETS)}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


CHART_NAME = "timescaledb"


def umbrella(folder: Path, parts: dict[str, Any]) -> Path:
    """
    A chart with PARTS, by name: under that alias the chart, or, where a part has parts, such a
    chart. It has StatefulSets of others, too, whose charts have names much like the chart's.
    """
    (folder / "templates").mkdir(parents=True)
    for number, label in enumerate(("timescaledb-2-1.0.0", "my-timescaledb-1.0.0", "")):
        labels = {"helm.sh/chart": label, "app.kubernetes.io/instance": "{{ .Release.Name }}"}
        (folder / "templates" / f"{number}.yaml").write_text(json.dumps({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "spec": {}, "metadata": {
                "name": f"{folder.name}-{number}", "labels": labels if label else {}}}))
    dependencies = []
    for name, below in parts.items():
        chart = name if below else CHART_NAME
        if below:
            umbrella(folder / "charts" / name, below)
        else:
            shutil.copytree(CHART, folder / "charts" / CHART_NAME, dirs_exist_ok=True)
        dependencies.append({"name": chart, "alias": name, "version": "*",
                             "condition": f"{name}.enabled"})
    (folder / "Chart.yaml").write_text(json.dumps({
        "apiVersion": "v2", "name": folder.name, "version": "2.0.0",
        "dependencies": dependencies}))
    return folder


LONG = 63 * "x"  # an alias that leaves the label of the chart no room for a version


@pytest.fixture
def releases(postgres: Postgres) -> Iterator[str]:
    """The address of a database of helm's releases: the cluster's own it would send as protobuf."""
    name = f"helm_{secrets.token_hex(4)}"
    address = f"{name}:{name}@127.0.0.1:{postgres.port}/{name}?sslmode=disable"
    # helm's driver refuses the one iteration with which tests make passwords.
    postgres.sql(f"SET scram_iterations = 4096; CREATE ROLE {name} LOGIN PASSWORD '{name}'")
    with postgres.dropping():
        postgres.run("createdb", "--owner", name, name)
        yield f"postgresql://{address}"


@pytest.mark.parametrize("major", [4, 3])
@pytest.mark.parametrize("parts, names", [
    ({}, {"": "timescaledb"}),
    ({CHART_NAME: {}, "second": {}}, {f"{CHART_NAME}.": "timescaledb", "second.": "second"}),
    ({"shop": {LONG: {}}, "web": {LONG: {}}},
     {f"shop.{LONG}.": "shop-db", f"web.{LONG}.": "web-db"}),
], ids=["alone", "aliases", "deep"])
def chart_refuses_an_upgrade_that_would_take_a_database_away_and_no_other(
        cluster: Cluster, releases: str, tmp_path: Path, parts: dict[str, Any],
        names: dict[str, str], major: int) -> None:
    """NAMES are those of the databases, by where their values are."""
    chart = umbrella(tmp_path / "umbrella", parts) if parts else CHART
    helm = cluster.helm(tmp_path, HELM_DRIVER="sql", HELM_DRIVER_SQL_CONNECTION_STRING=releases)

    def take(verb: str, where: str = "", changes: dict[str, Any] | None = None) -> str:
        """What helm complains of, with CHANGES to the values at WHERE."""
        whole = {f"{each}{key}": value for each, name in names.items()
                 for key, value in overlay(WHOLE, {"fullnameOverride": name}).items()}
        changed = {f"{where}{path}": value for path, value in (changes or {}).items()}
        ran = helm.run(verb, "db", str(chart), "--disable-openapi-validation", major=major,
                       **overlay({}, {**whole, **changed}))
        assert (ran.returncode == 0) == (ran.stderr == ""), ran.stderr
        return ran.stderr

    last = [*names][-1]
    there: set[str] = set()
    # A second one is added; then nothing changes.
    for verb, changes in ("install", {"enabled": not parts}), ("upgrade", {}), ("upgrade", {}):
        assert take(verb, last, changes) == ""
        assert set(cluster.statefulsets()) >= there
        there = set(cluster.statefulsets())
    assert there >= {f"{name}-statefulset" for name in names.values()}
    objects = dict(cluster.objects)
    for where, name in names.items():
        for change in ({"fullnameOverride": "renamed"},
                       {"database.enabled": False, "database.host": "other"}):
            said = take("upgrade", where, change)
            assert f"- The StatefulSet {name}-statefulset would be deleted, with the pod" in said
            assert said.count("StatefulSet") == 1 and cluster.objects == objects, said


OF_ANOTHER_RELEASE = {"metadata.labels": {"helm.sh/chart": f"{CHART_NAME}-1.0.0",
                                          "app.kubernetes.io/instance": "other"}}
OLDER = {"metadata.labels": {"app": "timescaledb"}, "spec.serviceName": "timescaledb-internal"}
OLDER_HERE = {**OLDER, "metadata.annotations": {"meta.helm.sh/release-name": "db"}}
ELSEWHERE = {"database.enabled": False, "database.host": "other"}


@pytest.mark.parametrize("there, changes, sentence", [
    (OF_ANOTHER_RELEASE, {"fullnameOverride": "s"}, ""),
    (OLDER, {}, "timescaledb-statefulset is that of an older chart"),
    (OLDER, ELSEWHERE, ""),
    (OLDER_HERE, ELSEWHERE, "timescaledb-statefulset is that of an older chart"),
    (OLDER_HERE, {"fullnameOverride": "s"}, "timescaledb-statefulset is that of an older chart")])
def chart_refuses_to_take_over_or_to_delete_what_an_older_one_made_in_its_release(
        helm: Helm, cluster: Cluster, tmp_path: Path, there: dict[str, Any],
        changes: dict[str, Any], sentence: str) -> None:
    [installed] = helm.render(WHOLE).kind("StatefulSet")
    cluster.objects[f"{cluster.STATEFULSETS}/one"] = overlay(installed, there)
    for major in (4, 3):
        ran = cluster.helm(tmp_path).run(
            "template", "db", str(CHART), "--dry-run=server", "--is-upgrade",
            "--disable-openapi-validation", major=major, **overlay(WHOLE, changes))
        assert ran.returncode == bool(sentence) and sentence in ran.stderr, ran.stderr


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
    values = default_values()
    found = [(path, yaml.safe_load(default)) for path, _, default, _, _ in rows]
    assert found == flat(values)
    assert [path for path, kind, default, _, meaning in rows
            if type(yaml.safe_load(default)) is not types[kind] or not meaning] == []
    said = comments()
    for path, _, _, mark, _ in rows:
        above = next(each for each, _, _ in leaves() if f"{path}.".startswith(f"{each}."))
        assert re.findall(r"\[([A-Z])\]", said[above][0]) == mark.split(), path


# -- What is rendered

def chart_is_packaged_with_the_programs_version_and_without_what_its_tests_need(
        helm: Helm, tmp_path: Path) -> None:
    helm("package", str(CHART), f"--destination={tmp_path}")
    [package] = tmp_path.iterdir()
    with tarfile.open(package) as archive:
        assert set(archive.getnames()) == {
            f"timescaledb/{path.relative_to(CHART)}" for path in CHART.rglob("*")
            if path.is_file() and path.parent.name != "ci"}
    about = yaml.safe_load(helm("show", "chart", str(package)))
    assert about["appVersion"] == run({}, "--version").stdout.split()[-1]


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
            "colonies", "database", "heartbeat", "s3", "verify")), "Service timescaledb-headless",
        "Service timescaledb-service", "ServiceAccount timescaledb",
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
        **NO_KEYS, "backup.persistence.enabled": False,
        "serviceAccount.annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/b"}}))
    assert not role.kind("PersistentVolumeClaim") and "emptyDir" in role.pod["volumes"][0]
    assert not [name for name in role.settings() if re.search("AWS_.*KEY", name)]


# -- The rendered sidecar, run

class Sidecar:
    """A rendered pod's last container, run as a kubelet does: in the image, or as a process."""

    def __init__(self, podman: Podman | None, folder: Path, rendered: Rendered,
                 pod: dict[str, Any]) -> None:
        self.podman, self.pod, self.container = podman, pod, pod["containers"][-1]
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
        assert program.stop(timeout=10) == 0
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
