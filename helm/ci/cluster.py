"""A stand-in for a cluster, for helm."""
from __future__ import annotations

import http.server
import json
from pathlib import Path
from typing import Any

from chart import Helm


class ClusterRequest(http.server.BaseHTTPRequestHandler):
    """A request to a Cluster."""

    protocol_version = "HTTP/1.1"
    server: Cluster

    def answer(self) -> None:
        """By HTTP; a forbidden list of workloads as Kubernetes refuses it."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        found = self.server.answer(self.command, path, body)
        code, reason, said = 404, "NotFound", "not found"
        if path in self.server.forbidden:
            what = path.rpartition("/")[2]
            found, code, reason = None, 403, "Forbidden"
            said = f'{what}.apps is forbidden: User "u" cannot list resource "{what}"'
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                   "reason": reason, "message": said}
        text = json.dumps(found or missing).encode()
        self.send_response(200 if found else code)
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
    DEPLOYMENTS = "/apis/apps/v1/namespaces/prod/deployments"
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
        self.forbidden: set[str] = set()  # the paths at which nobody may do anything

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
        if path in (self.STATEFULSETS, self.DEPLOYMENTS):
            kind = "StatefulSet" if path == self.STATEFULSETS else "Deployment"
            return {"kind": f"{kind}List", "apiVersion": "apps/v1", "items": [
                each for name, each in self.objects.items() if name.startswith(f"{path}/")]}
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
