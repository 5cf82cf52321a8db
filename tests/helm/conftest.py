"""An API server that is enough for Helm: discovery, objects, server-side apply by a single manager."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

CHART = Path(__file__).parents[2] / "helm"
CRDS = Path(__file__).parents[3] / "shared" / "data" / "kuberay"

# (group/version, plural, kind)
KINDS = [
    ("v1", "configmaps", "ConfigMap"),
    ("v1", "secrets", "Secret"),
    ("v1", "services", "Service"),
    ("v1", "serviceaccounts", "ServiceAccount"),
    ("v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
    ("apps/v1", "deployments", "Deployment"),
    ("batch/v1", "jobs", "Job"),
    ("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy"),
    ("networking.k8s.io/v1", "ingresses", "Ingress"),
    ("autoscaling/v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler"),
]
RAY = ("ray.io/v1", "rayservices", "RayService")


class ApiServer:
    """Keeps objects by path. Helm is the only one that writes, so that what it applies is what an object becomes."""

    def __init__(self, kinds: list[tuple[str, str, str]]) -> None:
        self.kinds = kinds
        self.objects: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self._version = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def kubeconfig(self) -> str:
        url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "clusters": [{"name": "here", "cluster": {"server": url}}],
                "users": [{"name": "me", "user": {"token": "t"}}],
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "r1-test"}}],
            }
        )

    def kept(self) -> dict[str, dict[str, Any]]:
        """Objects of the release as ``Kind/name``; Helm's own records apart."""
        return {
            f"{each['kind']}/{each['metadata']['name']}": each
            for each in self.objects.values()
            if not each["metadata"]["name"].startswith("sh.helm.")
        }

    def answer(self, method: str, target: str, body: bytes, content_type: str) -> tuple[int, Any]:
        url = urlsplit(target)
        self.requests.append(f"{method} {target}")
        parts = url.path.strip("/").split("/")
        if found := self._discovery(parts):
            return 200, found
        if "namespaces" not in parts or url.path.startswith("/openapi"):
            return 404, _status(404, "NotFound", f"no {url.path}")
        group = "/".join(parts[1 : parts.index("namespaces")])
        plural = parts[parts.index("namespaces") + 2]
        kind = next((kind for g, p, kind in self.kinds if (g, p) == (group, plural)), None)
        if kind is None:
            return 404, _status(404, "NotFound", f"no {group} {plural}")
        named = len(parts) > parts.index("namespaces") + 3
        if method == "GET" and not named:
            selector = parse_qs(url.query).get("labelSelector", [""])[0]
            items = [o for path, o in self.objects.items() if path.startswith(url.path + "/") and _matches(o, selector)]
            return 200, {
                "kind": f"{kind}List",
                "apiVersion": group,
                "metadata": {"resourceVersion": "1"},
                "items": items,
            }
        if method == "POST":
            value = json.loads(body)
            return self._write(f"{url.path}/{value['metadata']['name']}", value, group, kind, create=True)
        if method in ("PUT", "PATCH"):
            value = yaml.safe_load(body)
            if "merge-patch" in content_type:
                value = _merged(self.objects.get(url.path, {}), value)
            return self._write(url.path, value, group, kind, create=False)
        if url.path not in self.objects:
            return 404, _status(404, "NotFound", f"{plural} {parts[-1]!r} not found")
        if method == "DELETE":
            return 200, self.objects.pop(url.path)
        return 200, self.objects[url.path]

    def _write(self, path: str, value: Any, group: str, kind: str, *, create: bool) -> tuple[int, Any]:
        if create and path in self.objects:
            return 409, _status(409, "AlreadyExists", path)
        old = self.objects.get(path)
        if old is not None and old.get("immutable") and old.get("data") != value.get("data"):
            return 422, _status(422, "Invalid", f"{path} is immutable")
        self._version += 1
        value.setdefault("apiVersion", group)
        value.setdefault("kind", kind)
        value["metadata"] |= {"uid": path, "resourceVersion": str(self._version), "namespace": path.split("/")[-3]}
        value["metadata"].pop("managedFields", None)
        self.objects[path] = value
        return 201 if old is None else 200, value

    def _discovery(self, parts: list[str]) -> Any:
        groups = sorted({group for group, _, _ in self.kinds})
        if parts == ["version"]:
            return {"major": "1", "minor": "34", "gitVersion": "v1.34.0", "platform": "linux/amd64"}
        if parts == ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"]}
        if parts == ["apis"]:
            named = [{"groupVersion": g, "version": g.split("/")[1]} for g in groups if "/" in g]
            listed = [{"name": v["groupVersion"].split("/")[0], "versions": [v], "preferredVersion": v} for v in named]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
        if parts[:2] == ["openapi", "v3"]:
            return self._openapi("/".join(parts[2:]), groups)
        group = "/".join(parts[1:])
        if parts[0] not in ("api", "apis") or group not in groups:
            return None
        verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
        resources = [
            {"name": plural, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": verbs}
            for g, plural, kind in self.kinds
            if g == group
        ]
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": resources}

    def _openapi(self, path: str, groups: list[str]) -> Any:
        """That the server itself refuses unknown fields: Helm asks before it sends anything."""
        names = {("apis/" if "/" in group else "api/") + group: group for group in groups}
        if not path:
            return {"paths": {name: {"serverRelativeURL": f"/openapi/v3/{name}"} for name in names}}
        paths = {}
        for group, plural, kind in [*self.kinds, ("v1", "namespaces", "Namespace")]:
            if group == names[path]:
                name, _, version = group.rpartition("/")
                operation = {
                    "parameters": [{"name": "fieldValidation", "in": "query"}],
                    "responses": {},
                    "x-kubernetes-group-version-kind": {"group": name, "version": version, "kind": kind},
                }
                paths[f"/{path}/{plural}"] = {"patch": operation}
        return {"openapi": "3.0.0", "info": {"title": "stand-in", "version": "1"}, "paths": paths}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, value = api.answer(self.command, self.path, body, self.headers.get("Content-Type", ""))
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _do

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }


def _matches(thing: dict[str, Any], selector: str) -> bool:
    labels = thing["metadata"].get("labels", {})
    wanted = [part.split("=") for part in selector.split(",") if "=" in part and "!=" not in part]
    return all(labels.get(key) == value for key, value in wanted)


def _merged(old: Any, patch: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(patch, dict):
        return patch
    return {
        key: _merged(old.get(key), patch.get(key, old.get(key))) for key in old | patch if patch.get(key, 0) is not None
    }


@pytest.fixture
def chart() -> Path:
    return CHART


@pytest.fixture
def api() -> Iterator[ApiServer]:
    """A cluster with KubeRay."""
    server = ApiServer([*KINDS, RAY])
    yield server
    server.stop()


@pytest.fixture
def bare_api() -> Iterator[ApiServer]:
    """A cluster without KubeRay."""
    server = ApiServer(KINDS)
    yield server
    server.stop()
