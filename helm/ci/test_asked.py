"""Tests of what the chart has for those who ask for it: off by default, or empty."""
from __future__ import annotations

import ipaddress
import json
import re
from typing import Any

import pytest
import yaml

from chart import (
    ALONE,
    BOTH_WAYS,
    CERTIFICATE,
    CHART,
    SECRET_VALUES,
    WHOLE,
    Helm,
    assert_valid,
    executor_of,
    overlay,
)

pytest_plugins = ["common"]


@BOTH_WAYS
def chart_marks_all_objects_without_a_restart(helm: Helm, values: dict[str, Any]) -> None:
    plain = helm.render(values)
    marked = helm.render(overlay(values, {
        "commonLabels.team": "a", "commonAnnotations.note": "b", "networkPolicy.enabled": True,
        "backup.ca.pem": CERTIFICATE, "podLabels.mesh": "c"}))
    for each in marked.objects:
        assert each["metadata"]["labels"]["team"] == "a", each
        assert each["metadata"]["annotations"]["note"] == "b", each
    assert marked.kind("Pod")[0]["metadata"]["labels"]["mesh"] == "c"
    assert {"ConfigMap timescaledb-ca", "NetworkPolicy timescaledb"} | set(plain.names()) == set(
        marked.names())
    restart = helm.render(overlay(values, {"podLabels.mesh": "c", "backup.ca.pem": CERTIFICATE}))
    assert marked.workload["spec"] == restart.workload["spec"]


def chart_has_claims_as_they_are_asked_for(helm: Helm) -> None:
    changes = {f"{part}.persistence.{name}": value for part in ("database", "backup")
               for name, value in (("storageClass", "-"), ("labels.a", "b"), ("annotations.c", "d"),
                                   ("dataSource", {"kind": "PersistentVolumeClaim", "name": "e"}))}
    rendered, alone = helm.render(overlay(WHOLE, changes)), helm.render(overlay(ALONE, changes))
    claims = rendered.workload["spec"]["volumeClaimTemplates"]
    for claim in (*claims, *alone.kind("PersistentVolumeClaim")):
        assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
        assert claim["metadata"]["labels"]["a"] == "b"
        assert claim["metadata"]["annotations"]["c"] == "d"
        assert claim["spec"]["storageClassName"] == ""
        assert claim["spec"]["dataSource"]["name"] == "e"
    # `helm test` has an empty volume, or, where nothing provides one, a folder on the node.
    assert "dataSource" not in json.dumps(rendered.check)
    own = helm.render(overlay(WHOLE, {"backup.persistence.storageClass": "fast"})).check
    for pod, kind in (rendered.check, "emptyDir"), (own, "ephemeral"):
        [staging] = [each for each in pod["volumes"] if each["name"] == "backups"]
        assert staging.keys() == {"name", kind}
    for part, other in ("database", "backups"), ("backup", "data"):
        own = helm.render(overlay(WHOLE, {f"{part}.persistence.existingClaim": "own"}))
        assert [each["metadata"]["name"] for each in
                own.workload["spec"]["volumeClaimTemplates"]] == [other]
        assert {"name": "data" if part == "database" else "backups", "persistentVolumeClaim": {
            "claimName": "own"}} in own.pod["volumes"]
        assert "own" not in json.dumps(own.check)
    both = helm.render(overlay(WHOLE, {"database.persistence.existingClaim": "a",
                                       "backup.persistence.existingClaim": "b"}))
    assert "volumeClaimTemplates" not in both.workload["spec"]
    own = helm.render(overlay(ALONE, {"backup.persistence.existingClaim": "own"}))
    assert not own.kind("PersistentVolumeClaim") and "own" in json.dumps(own.pod["volumes"])


def chart_tests_with_what_the_executor_mounts_alone(helm: Helm) -> None:
    """A claim that the database has on its node would keep the pod of `helm test` waiting."""
    rendered = helm.render(overlay(WHOLE, {
        "extraVolumes": [{"name": "of-database", "persistentVolumeClaim": {"claimName": "x"}},
                         {"name": "of-both", "configMap": {"name": "y"}}],
        "database.extraVolumeMounts": [{"name": "of-database", "mountPath": "/x"},
                                       {"name": "of-both", "mountPath": "/y"}],
        "backup.extraVolumeMounts": [{"name": "of-both", "mountPath": "/y"}]}))
    assert {"of-database", "of-both"} <= {each["name"] for each in rendered.pod["volumes"]}
    mounted = {each["name"] for each in rendered.check["containers"][0]["volumeMounts"]}
    assert {each["name"] for each in rendered.check["volumes"]} == mounted
    assert "of-both" in mounted and "of-database" not in mounted


def chart_has_one_value_for_a_private_authority(helm: Helm) -> None:
    server = {"backup.s3.endpoint": "s3.example.org"}
    path, names = "/etc/backup-ca/ca.crt", ("COLONIES_CA_FILE", "AWS_S3_CA_FILE")

    def files(changes: dict[str, Any]) -> list[str | None]:
        return [helm.render(overlay(WHOLE, changes)).settings().get(name) for name in names]

    assert files(server) == [None, None]
    assert files({**server, "backup.ca.existingSecret": "own"}) == [path, path]
    assert files({"backup.ca.existingSecret": "own"}) == [path, None]  # AWS has its own
    assert files({**server, "backup.ca.existingConfigMap": "own",
                  "backup.s3.caFile": "/tmp/other"}) == [path, "/tmp/other"]
    rendered = helm.render(overlay(WHOLE, {**server, "backup.ca.pem": CERTIFICATE}))
    assert rendered.kind("ConfigMap")[0]["data"] == {"ca.crt": CERTIFICATE}
    public = json.dumps(rendered.kind("ConfigMap"))
    assert [path for path, text in SECRET_VALUES.items() if text in public] == []
    for pod in rendered.pod, rendered.check:
        assert {"name": "backup-ca", "mountPath": "/etc/backup-ca", "readOnly": True} in (
            executor_of(pod)["volumeMounts"])
        assert {"name": "backup-ca", "configMap": {
            "name": "timescaledb-ca", "optional": True,  # the database starts without it
            "items": [{"key": "ca.crt", "path": "ca.crt"}]}} in pod["volumes"]


@pytest.mark.parametrize("values, changes, ports", [
    (WHOLE, {"backup.s3.secure": False, "backup.s3.endpoint": None}, {443, 5432}),
    (WHOLE, {"backup.s3.endpoint": "http://s3", "backup.heartbeat.url": ""}, {80, 443, 5432}),
    (WHOLE, {"backup.s3.endpoint": "[fd00::1]:9000/", "backup.colonies.port": 50080,
             "backup.colonies.host": "fd00::1", "backup.verify.host": "::1",
             "backup.heartbeat.url": "", "backup.verify.port": 5433}, {5432, 5433, 9000, 50080}),
    (ALONE, {"backup.s3.endpoint": "s3", "backup.s3.secure": False, "database.port": 6432,
             "backup.verify.host": "", "backup.colonies.port": 1}, {1, 80, 443, 6432})])
def chart_lets_its_pods_reach_their_peers_and_only_who_is_named_come(
        helm: Helm, values: dict[str, Any], changes: dict[str, Any], ports: set[int]) -> None:
    assert not helm.render(values).kind("NetworkPolicy")
    shop = {"podSelector": {"matchLabels": {"app": "shop"}}}
    rendered = helm.render(overlay(values, {
        **changes, "networkPolicy": {"enabled": True, "from": [shop], "metricsFrom": [shop]},
        "backup.metricsPort": 9187}))
    [policy] = rendered.kind("NetworkPolicy")
    assert_valid(rendered)
    pods = policy["spec"]["podSelector"]
    for metadata in rendered.template["metadata"], rendered.kind("Pod")[0]["metadata"]:
        assert all(metadata["labels"][each["key"]] in each["values"]
                   for each in pods["matchExpressions"])
    dns, peers = policy["spec"]["egress"]
    assert {each["port"] for each in dns["ports"]} == {53} and not dns.keys() - {"ports"}
    assert {each["port"] for each in peers["ports"]} == ports and not peers.keys() - {"ports"}
    *database, metrics = policy["spec"]["ingress"]
    assert [(rule["ports"][0]["port"], rule["from"]) for rule in database] == (
        [(5432, [{"podSelector": pods}, shop])] if values is WHOLE else [])
    assert (metrics["ports"][0]["port"], metrics["from"]) == (9187, [shop])


@pytest.mark.parametrize("values, named, warned", [
    (WHOLE, {}, {"from", "metricsFrom"}), (WHOLE, {"from": [{}]}, {"metricsFrom"}),
    (ALONE, {}, {"metricsFrom"}), (ALONE, {"metricsFrom": [{}]}, set()),
    (WHOLE, {"enabled": False}, set())])
def chart_warns_of_a_policy_that_lets_nobody_in(
        helm: Helm, values: dict[str, Any], named: dict[str, Any], warned: set[str]) -> None:
    said = helm("install", "db", str(CHART), "--dry-run=client",
                **overlay(values, {"networkPolicy": {"enabled": True, **named}}))
    assert {*re.findall(r"\nWARNING: networkPolicy\.(\w+) is empty: it lets no", said)} == warned


def chart_lets_its_pods_reach_who_gives_them_keys_by_either_protocol(helm: Helm) -> None:
    """Of EKS Pod Identity: 169.254.170.23, and fd00:ec2::23 in a cluster of IPv6."""
    rendered = helm.render(overlay(WHOLE, {
        "backup.s3": {"bucket": "b", "ambient": True}, "networkPolicy.enabled": True}))
    assert_valid(rendered)
    _, _, agents = rendered.kind("NetworkPolicy")[0]["spec"]["egress"]
    networks = [ipaddress.ip_network(to["ipBlock"]["cidr"]) for to in agents["to"]]
    for address in "169.254.169.254", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23":
        assert any(ipaddress.ip_address(address) in network for network in networks), address


def chart_brings_what_is_extra(helm: Helm) -> None:
    values = yaml.safe_load((CHART / "ci/full-values.yaml").read_text())
    rendered = helm.render(values)
    assert [each["name"] for each in rendered.pod["containers"]] == [
        "postgres", "backup", "exporter"]
    assert [each["name"] for each in rendered.pod["initContainers"]] == ["first"]
    assert {"ConfigMap db-more", "ConfigMap sensors-text"} <= set(rendered.names())
    [service] = [each for each in rendered.kind("Service")
                 if each["metadata"]["name"] == "sensors-service"]
    assert service["spec"]["type"] == "LoadBalancer"
    assert service["metadata"]["annotations"]["example.org/internal"] == "true"
    annotations = rendered.workload["metadata"]["annotations"]
    assert annotations["argocd.argoproj.io/sync-options"] == "Prune=confirm"
