"""Tests of what the chart refuses by what is in the cluster; the command `chart` runs them."""
from __future__ import annotations

import functools
import json
import secrets
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart import ALONE, CHART, WHOLE, Helm, overlay
from cluster import Cluster
from servers import Postgres

pytest_plugins = ["common"]

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


MAJORS = pytest.mark.parametrize("major", [4, 3])
NAMES = ("colonies.executorType", "cronName", "verifyCronName", "checkCronName", "s3.prefix")


def apart(name: str) -> dict[str, Any]:
    """What each database takes for itself."""
    return {"fullnameOverride": name, "nameOverride": name, **{f"backup.{each}": f"{each}-{name}"
                                                               for each in NAMES}}


@MAJORS
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
                 for key, value in overlay(WHOLE, apart(name)).items()}
        changed = {f"{where}{path}": value for path, value in (changes or {}).items()}
        ran = helm.run(verb, "db", str(chart), "--disable-openapi-validation", major=major,
                       **overlay({}, {**whole, **changed}))
        assert (ran.returncode == 0) == (ran.stderr == ""), ran.stderr
        return ran.stderr

    last = [*names][-1]
    there: set[str] = set()
    # A second one is added; then what is changed may be: 10Gi is 10240Mi.
    for verb, changes in (("install", {"enabled": not parts}), ("upgrade", {}), ("upgrade", {
            "database.image.tag": "2.31.1-pg17", "database.persistence.size": "10240Mi",
            "backup.persistence.size": "10737418240"})):
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
        said = take("upgrade", where, {
            "database.image.tag": "pg18.1-ts2.31.0", "database.persistence.size": "11Gi",
            "backup.persistence.size": "10G"})
        assert "- database.image.tag is pg18, but the data in the volume are pg17" in said
        assert "- database.persistence.size is 11Gi, and 10" in said
        assert "- backup.persistence.size is 10G, and 10" in said
        assert said.count("\n- ") == 3 and cluster.objects == objects, said


OF_ANOTHER_RELEASE = {"metadata.labels": {"helm.sh/chart": f"{CHART_NAME}-1.0.0",
                                          "app.kubernetes.io/instance": "other"}}
OLDER = {"metadata.labels": {"app": "timescaledb"}, "spec.serviceName": "timescaledb-internal"}
OLDER_HERE = {**OLDER, "metadata.annotations": {"meta.helm.sh/release-name": "db"}}
ELSEWHERE = {"database.enabled": False, "database.host": "other", **apart("timescaledb")}


@pytest.mark.parametrize("there, changes, sentence", [
    (OF_ANOTHER_RELEASE, apart("s"), ""),
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


def render_at(cluster: Cluster, home: Path, major: int, values: dict[str, Any],
              *more: str, chart: Path = CHART, name: str = "db") -> str:
    """What helm says of VALUES with a cluster to look at: nothing where it takes them."""
    ran = cluster.helm(home).run("template", name, str(chart), "--dry-run=server",
                                 "--disable-openapi-validation", *more, major=major, **values)
    assert (ran.returncode == 0) == (ran.stderr == ""), ran.stderr
    return ran.stderr


@MAJORS
def chart_refuses_another_release_that_would_take_the_same_processes_or_backups(
        helm: Helm, cluster: Cluster, tmp_path: Path, major: int) -> None:
    look = functools.partial(render_at, cluster, tmp_path, major)
    other = overlay(ALONE, {"fullnameOverride": "other"})
    [deployment] = helm.render(other, "other").kind("Deployment")
    cluster.objects[f"{cluster.DEPLOYMENTS}/other-backup"] = deployment
    said = look(WHOLE)
    for name in NAMES:
        assert f"- backup.{name} is that of other-backup, too" in said
    assert said.count("\n- ") == len(NAMES), said
    for changes in (apart("own"),
                    {"backup.colonies.colonyName": "another", "backup.s3.bucket": "another"},
                    {"backup.colonies.port": 8443, "database.name": "another"},
                    {"skipGuards": True}):
        assert look(overlay(WHOLE, changes)) == ""
    no_crons = {f"backup.{cron}": "" for cron in ("cron", "verifyCron", "checkCron")}
    said = look(overlay(WHOLE, {**no_crons, "backup.s3.prefix": "own"}))
    assert "backup.colonies.executorType" in said and said.count("\n- ") == 1, said
    # What was so before an upgrade stays so; what is new is refused.
    [there] = helm.render(overlay(WHOLE, {"backup.s3.prefix": "own"})).kind("StatefulSet")
    cluster.objects[f"{cluster.STATEFULSETS}/{CHART_NAME}-statefulset"] = there
    assert look(overlay(WHOLE, {"backup.s3.prefix": "own"}), "--is-upgrade") == ""
    said = look(WHOLE, "--is-upgrade")
    assert "backup.s3.prefix is that of other-backup" in said and said.count("\n- ") == 1, said


def chart_warns_of_what_two_releases_shared_before(
        helm: Helm, cluster: Cluster, releases: str, tmp_path: Path) -> None:
    ours = cluster.helm(tmp_path, HELM_DRIVER="sql", HELM_DRIVER_SQL_CONNECTION_STRING=releases)
    said = ours("install", "db", str(CHART), "--disable-openapi-validation", **WHOLE)
    other = overlay(ALONE, {**apart("other"), "backup.s3.prefix": "backups"})
    [deployment] = helm.render(other, "other").kind("Deployment")
    cluster.objects[f"{cluster.DEPLOYMENTS}/other-backup"] = deployment
    assert "WARNING" not in said
    said = ours("upgrade", "db", str(CHART), "--disable-openapi-validation", **WHOLE)
    assert "\nWARNING: backup.s3.prefix is that of other-backup, too: each" in said
    assert said.count("WARNING") == 1, said


@MAJORS
@pytest.mark.parametrize("parts", [{"a": {}, "b": {}}, {"x": {"a": {}}, "y": {"a": {}}}],
                         ids=["aliases", "deep"])
def chart_refuses_databases_under_one_parent_that_would_share(
        helm: Helm, tmp_path: Path, parts: dict[str, Any], major: int) -> None:
    """Here no cluster is needed: they meet while they are rendered."""
    chart = umbrella(tmp_path / "umbrella", parts)
    places = [f"{name}." + "".join(f"{each}." for each in below) for name, below in parts.items()]

    def look(*changes: dict[str, Any]) -> str:
        values: dict[str, Any] = {}
        for place, each in zip(places, changes, strict=True):
            whole = overlay(WHOLE, {"fullnameOverride": place.replace(".", "x"), **each})
            values = overlay(values, {f"{place}{key}": value for key, value in whole.items()})
        ran = helm.run("template", "db", str(chart), major=major, **values)
        assert (ran.returncode == 0) == (ran.stderr == ""), ran.stderr
        return ran.stderr

    said = look({}, {})
    for name in NAMES[:-1]:  # a prefix may have been shared before, where nobody can look
        assert f"- backup.{name} is that of " in said
    deep = "x" in parts
    assert ("- nameOverride: the Services of " in said) == deep
    assert said.count("\n- ") == 4 + deep, said
    assert look(*({f"backup.{name}": f"{name}{number}" for name in NAMES} | {
        "nameOverride": f"n{number}"} for number in (1, 2))) == ""


@MAJORS
@pytest.mark.parametrize("parts", [{}, {"a": {}}], ids=["alone", "subchart"])
def chart_says_what_helm_may_not_do(cluster: Cluster, tmp_path: Path, major: int,
                                    parts: dict[str, Any]) -> None:
    chart = umbrella(tmp_path / "umbrella", parts) if parts else CHART
    look = functools.partial(render_at, cluster, tmp_path, major, chart=chart)
    assert look({"a": WHOLE} if parts else WHOLE) == ""
    for path, what in (cluster.STATEFULSETS, "statefulsets"), (cluster.DEPLOYMENTS, "deployments"):
        cluster.forbidden = {path}
        said = " ".join(look({"a": WHOLE} if parts else WHOLE).split())
        assert "guards: helm needs to list statefulsets and deployments, or skipGuards=true" in said
        assert f'cannot list resource "{what}"' in said
    skipped = overlay(WHOLE, {"skipGuards": True})
    assert look({"a": skipped} if parts else skipped, "--is-upgrade") == ""


@MAJORS
def chart_takes_the_values_of_the_former_one_and_will_those_of_the_next(
        cluster: Cluster, releases: str, tmp_path: Path, major: int) -> None:
    """`--reuse-values` has the former chart's defaults alone: what is new is nowhere."""
    helm = cluster.helm(tmp_path, HELM_DRIVER="sql", HELM_DRIVER_SQL_CONNECTION_STRING=releases)
    former, following = tmp_path / "former", tmp_path / "following"
    for folder in former, following:
        shutil.copytree(CHART, folder)
    (former / "values.schema.json").unlink()
    values = (CHART / "ci/values-1.0.0.yaml").read_text("utf-8")
    (former / "values.yaml").write_text(values, "utf-8")
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    nodes, defaults = [schema], [yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))]
    for node, at in zip(nodes, defaults):  # grows as it goes
        more = [name for name, each in node["properties"].items() if "properties" in each]
        nodes += [node["properties"][name] for name in more]
        defaults += [at[name] for name in more]
        node["properties"]["ofTheNext"], at["ofTheNext"] = {"type": "string"}, ""
    (following / "values.schema.json").write_text(json.dumps(schema))
    (following / "values.yaml").write_text(json.dumps(defaults[0]))

    def take(verb: str, chart: Path, *more: str, **values: Any) -> Any:
        ran = helm.run(verb, "db", str(chart), "--disable-openapi-validation", *more, major=major,
                       **values)
        assert ran.returncode == 0 and not ran.stderr, ran.stderr
        return cluster.statefulsets()[f"{CHART_NAME}-statefulset"]["spec"]

    assert len(nodes) > 15
    spec = take("install", former, **WHOLE)
    assert take("upgrade", CHART, "--reuse-values") == spec
    assert take("upgrade", following, "--reuse-values") == spec
    assert take("upgrade", following, "--reset-then-reuse-values") == spec
    assert take("upgrade", CHART, **WHOLE) == spec
