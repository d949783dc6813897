"""The pod that the chart renders, run whole: by `podman kube play`, and the rest of a kubelet."""
from __future__ import annotations

import base64
import copy
import functools
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart import Helm, Rendered, overlay
from colonies import Standin
from environment import checked
from image import BASE, IMAGE, Podman
from servers import Postgres, SeaweedFS, free_ports, temporary_folder
from surroundings import FILLED, Site, becomes_true

OUTSIDE = "10.0.2.2"  # this machine's 127.0.0.1, by slirp4netns
DATABASE = "localhost/database:pg17"
# Debian's PostgreSQL, of which the chart sees what it sees of TimescaleDB's image: the variables,
# the user 70 (podman adds him to passwd), no password within the pod, the signal that stops it.
RECIPE = f"""FROM {BASE}
RUN apt-get update && apt-get install -y --no-install-recommends postgresql-17
ENV PATH=/usr/lib/postgresql/17/bin:$PATH
COPY --chmod=755 entrypoint /
STOPSIGNAL SIGINT
ENTRYPOINT ["/entrypoint"]
CMD ["postgres"]
"""
ENTRYPOINT = r"""#!/bin/sh -e
case "$1" in -*) set -- postgres "$@"; esac
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb -U "$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --auth=trust -E UTF8 --no-sync
    echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
    pg_ctl -w -o "-c listen_addresses=''" start
    createdb -U "$POSTGRES_USER" "$POSTGRES_DB"
    pg_ctl -w stop
fi
exec "$@" -c listen_addresses='*'
"""


class Pod:
    """The pod of a StatefulSet, run as it is rendered, but for what `podman kube play` can't take.

    Seen of podman 4.3, and translated here as a kubelet does it for its own container runtime:

    - It knows no StatefulSets: it gets the Pod that its controller would make, and of its claims.
    - It fills no projected volume, ends by a fault at a secret's without `optional`, makes a memory
      volume a folder on the disk, and has no fsGroup. A kubelet gives its runtime folders of the
      host alone, and so are all volumes here: a claim's is the group's, one in memory is a tmpfs of
      its size, and secrets' files stand behind a link that is changed at one blow.
    - It publishes each containerPort, to all the world: they get 127.0.0.1, in place of Services.
    - Of probes it knows liveness alone, takes a timer of systemd's for it, and makes one line for a
      shell of an exec probe's words, so that `sh -c 'find …'` looks at nothing. They are run in the
      container as they are rendered.

    Names, images, commands, environments, security contexts, resources, mounts and the policy of
    restarts are as rendered; the network is the pod's own. Left out is what the cluster around it
    does: Services, the size of claims, the pause before a restart, the restart of what is not live.
    """

    def __init__(self, podman: Podman, folder: Path, rendered: Rendered,
                 ports: dict[str, int]) -> None:
        self.podman, self.folder, self.rendered = podman, folder, rendered
        self.name = f"{rendered.workload['metadata']['name']}-0"
        self.spec = copy.deepcopy(rendered.pod)
        self.volumes = self.spec["volumes"]
        for claim in rendered.workload["spec"]["volumeClaimTemplates"]:
            name = claim["metadata"]["name"]
            self.volumes.append({"name": name, "persistentVolumeClaim": {
                "claimName": f"{name}-{self.name}"}})
        given = [{"name": each["name"], "hostPath": {"path": str(self._made(each))}}
                 for each in self.volumes]
        containers = copy.deepcopy(self.spec["containers"])
        for port in [port for each in containers for port in each.get("ports", [])]:
            port.update(hostIP="127.0.0.1", hostPort=ports[port["name"]])
        (folder / "containers.conf").write_text(  # its own limits may not be allowed
            '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n')
        (folder / "pod.yaml").write_text(yaml.safe_dump({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {**rendered.template["metadata"], "name": self.name},
            "spec": {**self.spec, "containers": containers, "volumes": given}}))

    def _made(self, volume: dict[str, Any]) -> Path:
        """The folder of a volume."""
        path, memory = self.folder / volume["name"], volume.get("emptyDir", {})
        path.mkdir()
        if memory.get("medium") == "Memory":
            size = memory["sizeLimit"].removesuffix("i").lower()
            checked(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)],
                    "no tmpfs can be mounted")
        os.chown(path, 0, self.spec["securityContext"]["fsGroup"])
        path.chmod(0o2775 if "persistentVolumeClaim" in volume else 0o2777)
        return path

    def project(self, rendered: Rendered) -> None:
        """Put the secrets' files of what is rendered now into their places, as a kubelet does."""
        there = {each["metadata"]["name"]: each["data"] for each in rendered.kind("Secret")}
        for volume in self.volumes:
            whole = volume.get("projected") or volume.get("secret")
            if not whole:
                continue
            folder = self.folder / volume["name"]
            data = folder / f"..{secrets.token_hex(4)}"
            data.mkdir()
            for source in whole.get("sources", [{"secret": whole}]):
                secret = there[source["secret"].get("name") or whole["secretName"]]
                for item in source["secret"]["items"]:
                    file = data / item["path"]
                    file.write_bytes(base64.b64decode(secret[item["key"]]))
                    os.chown(file, 0, self.spec["securityContext"]["fsGroup"])
                    file.chmod(whole["defaultMode"])
                    if not (folder / item["path"]).is_symlink():
                        (folder / item["path"]).symlink_to(f"..data/{item['path']}")
            (folder / "..new").symlink_to(data.name)
            (folder / "..new").replace(folder / "..data")
            for old in folder.glob("..*"):
                if old not in (data, folder / "..data"):
                    shutil.rmtree(old)

    def start(self) -> None:
        self.podman("kube", "play", "--network=slirp4netns:allow_host_loopback=true",
                    str(self.folder / "pod.yaml"),
                    CONTAINERS_CONF=str(self.folder / "containers.conf"))
        self.ready()

    def stop(self) -> None:
        """What becomes of a pod that is deleted: its signals, and time; then it is gone.

        Podman's own `pod stop` takes its network away at once, which a kubelet does at the end.
        """
        seconds = self.spec["terminationGracePeriodSeconds"]
        self.podman("stop", f"--time={seconds}", *(
            self.container(each["name"]) for each in self.spec["containers"]))
        self.podman("pod", "rm", self.name)

    def container(self, name: str) -> str:
        return f"{self.name}-{name}"

    def exec(self, container: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a container, as `kubectl exec` does."""
        return subprocess.run([*self.podman.argv, "exec", self.container(container), *command],
                              env=self.podman.env, text=True, capture_output=True, check=False)

    def logs(self, container: str) -> str:
        """What a container has said since the pod began."""
        return subprocess.run([*self.podman.argv, "logs", self.container(container)], text=True,
                              env=self.podman.env, stdout=subprocess.PIPE, check=False,
                              stderr=subprocess.STDOUT).stdout

    def probe(self, container: str, kind: str) -> bool:
        """Whether a probe passes: `readiness`, `startup`, `liveness`."""
        [found] = [each for each in self.spec["containers"] if each["name"] == container]
        return self.exec(container, *found[f"{kind}Probe"]["exec"]["command"]).returncode == 0

    def ready(self) -> None:
        """Wait until the database has started, and is ready."""
        for kind in ("startup", "readiness"):
            becomes_true(functools.partial(self.probe, "postgres", kind))

    def pid(self, container: str) -> int:
        """The process id of a container's first process; 0 while it doesn't run."""
        return int(self.podman("inspect", "--format={{.State.Pid}}", self.container(container)))

    def kill(self, container: str) -> None:
        """kill -9 for its first process, and so for all in it; wait until another one runs."""
        before = self.pid(container)
        os.kill(before, signal.SIGKILL)
        becomes_true(lambda: self.pid(container) not in (before, 0))

    def end(self) -> None:
        """Leave nothing of it."""
        self.podman("pod", "rm", "--force", "--ignore", "--time=0", self.name)
        for volume in self.volumes:
            if volume.get("emptyDir"):
                checked(["umount", "-l", str(self.folder / volume["name"])], "a tmpfs is in use")


class Within(Postgres):
    """The pod's PostgreSQL, by the port that stands for the Service's."""

    running = True


class Installed(Site):
    """The chart, installed: its pod, with the database that it made; its peers are outside."""

    def __init__(self, podman: Podman, helm: Helm, standin: Standin, s3: SeaweedFS,
                 folder: Path) -> None:
        self.helm, self.where = helm, standin.colony()
        self.client, self.name, server = self.where.client(), "sensors", Within(folder)
        (folder / "pod").mkdir()
        super(Site, self).__init__(server, s3, folder / "pod/backups", "sensors", "sensors")
        [self.metrics] = free_ports(1)
        self.values = overlay({}, {
            "database.name": "sensors", "database.password": server.password,
            "database.image.repository": DATABASE.split(":")[0],
            "database.image.tag": DATABASE.split(":")[1],
            "backup.image.repository": IMAGE, "backup.image.tag": "latest",
            "backup.colonies.host": OUTSIDE, "backup.colonies.port": standin.port,
            "backup.colonies.tls": False, "backup.colonies.colonyName": self.where.name,
            "backup.colonies.colonyPrvkey": self.where.owner_key,
            "backup.colonies.executorType": self.name, "backup.metricsPort": self.metrics,
            "backup.s3.endpoint": f"http://{OUTSIDE}:{s3.port}", "backup.s3.bucket": "backup",
            "backup.s3.prefix": self.prefix})
        self.pod = Pod(podman, folder / "pod", self.render(),
                       {"postgresql": server.port, "metrics": self.metrics})

    def render(self) -> Rendered:
        """The chart with the keys that S3 takes now."""
        return self.helm.render(overlay(self.values, {
            "backup.s3.accessKey": self.s3.access_key,
            "backup.s3.secretAccessKey": self.s3.secret_key}))


@pytest.fixture(scope="module")
def installed(podman: Podman, helm: Helm) -> Iterator[Installed]:
    """The chart's pod, running; what its containers said is shown where a test fails."""
    with (temporary_folder() as folder, SeaweedFS(folder / "s3") as s3, Standin() as standin):
        s3.client().create_bucket(Bucket="backup")
        (folder / "Dockerfile").write_text(RECIPE)
        (folder / "entrypoint").write_text(ENTRYPOINT)
        podman.build(DATABASE, folder)
        made = Installed(podman, helm, standin, s3, folder)
        try:
            made.pod.project(made.render())
            made.pod.start()
            made.sql(FILLED)
            yield made
        finally:
            for each in ("postgres", "backup"):
                print(made.pod.logs(each))
            made.pod.end()
