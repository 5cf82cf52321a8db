"""A rendered release as processes of this machine: the containers' own commands, arguments and environment.

What stands in for the cluster is here and small: a mount is a folder, the pod's address is 127.0.0.1, Secrets are
given, KubeRay is :func:`ray_start` and the PUT of ``serveConfigV2`` that it makes. Ports and the routers' address are
values.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket
from typing import Any

import httpx
import yaml

from r1_bench.chart.render import RELEASE, Rendered, Value, merge, render
from r1_bench.fleet import end_with_parent

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    with closing(socket()) as s:
        s.bind((LOOPBACK, 0))
        port: int = s.getsockname()[1]
        return port


def free_block(size: int) -> int:
    """The first of ``size`` ports in a row that are free now."""
    while True:
        first = free_port()
        with ExitStack() as stack:
            try:
                for port in range(first, first + size):
                    stack.enter_context(closing(socket())).bind((LOOPBACK, port))
            except (OSError, OverflowError):
                continue
        return first


def ray_start(kind: str, group: Value, head_port: int) -> list[str]:
    """The command that KubeRay gives a Ray container (``BuildPod`` and ``updateRayStartParamsResources`` in its
    common/pod.go)."""
    given = group["rayStartParams"]
    parameters = {"block": "true", "metrics-export-port": "8080", "dashboard-agent-listen-port": "52365"} | given
    if kind == "worker":
        parameters = {"address": f"{LOOPBACK}:{head_port}"} | parameters
    if own := group.get("resources"):
        parameters["resources"] = f"'{json.dumps({name: int(quantity) for name, quantity in own.items()})}'"
    flags = [f"--{key}" if value == "true" else f"--{key}={value}" for key, value in sorted(parameters.items())]
    command = " ".join(["ray", "start", *(["--head"] if kind == "head" else []), *flags])
    return ["/bin/bash", "-c", "--", f"ulimit -n ${{RAY_START_ULIMIT_OPEN_FILES:-65536}}; {command}"]


@dataclass
class Local:
    """One release. ``folder`` must be short: Ray's sockets lie below it. ``secrets``: name to key to value."""

    chart: Path
    values: Mapping[str, Any]
    folder: Path
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    http: int = field(default_factory=free_port)
    grpc: int = 0
    gcs: int = field(default_factory=free_port)
    dashboard: int = field(default_factory=free_port)
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    agents: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Several processes of a router take a port each after the shared one.
        self.grpc = self.grpc or free_block(1 + int(self.values.get("router", {}).get("processes", 1)))
        head = {"port": str(self.gcs), "dashboard-host": LOOPBACK, "dashboard-port": str(self.dashboard)}
        head["temp-dir"] = str(self.folder / "ray")
        overrides = {
            "router": {
                "host": LOOPBACK,
                "ports": {"http": self.http, "grpc": self.grpc},
                "attach": f"{LOOPBACK}:{self.grpc}",
            },
            "ray": {
                "head": {"rayStartParams": head | self._own_ports("head")},
                "worker": {"rayStartParams": self._own_ports("worker")},
            },
        }
        self.rendered: Rendered = render(self.chart, merge(self.values, overrides))
        self.cluster: Value = self.rendered.one("RayService")["spec"]["rayClusterConfig"]
        self._mounts: dict[str, Path] = {}

    def head(self) -> subprocess.Popen[bytes]:
        return self._run("head", ray_start("head", self.cluster["headGroupSpec"], self.gcs))

    def worker(self) -> subprocess.Popen[bytes]:
        return self._run("worker", ray_start("worker", self.cluster["workerGroupSpecs"][0], self.gcs))

    def router(self) -> subprocess.Popen[bytes]:
        return self._run("router", _command(self._pod("router")["containers"][0]))

    def test(self) -> subprocess.CompletedProcess[str]:
        """The `helm test` Job, whose service names mean this machine here."""
        command = _command(self._pod("test")["containers"][0])
        return self._complete("test", [part.replace(f"{RELEASE}:", f"{LOOPBACK}:") for part in command])

    def pre_stop(self, part: str) -> subprocess.CompletedProcess[str]:
        """The hook of ``head`` or ``worker``."""
        container = self._pod(part)["containers"][0]
        return self._complete(part, _command({"command": container["lifecycle"]["preStop"]["exec"]["command"]}))

    def deploy(self) -> None:
        """What KubeRay does with ``serveConfigV2``."""
        config = yaml.safe_load(self._localised(self.rendered.one("RayService")["spec"]["serveConfigV2"]))
        response = httpx.put(
            f"{self.api}/api/serve/applications/", json=config, headers=self._bearer, timeout=60, trust_env=False
        )
        response.raise_for_status()

    def applications(self) -> Value:
        response = httpx.get(f"{self.api}/api/serve/applications/", headers=self._bearer, timeout=30, trust_env=False)
        found: Value = response.json()["applications"] if response.status_code == 200 else {}
        return found

    def probe(self, part: str, kind: str) -> int:
        """HTTP status of a probe of ``head``, ``worker`` or ``router``, on the port that stands for the pod's."""
        container = self._pod(part)["containers"][0]
        get = container[kind]["httpGet"]
        moved = {"dashboard": self.dashboard, 52365: self.agents.get(part), "http": self.http}
        return httpx.get(f"http://{LOOPBACK}:{moved[get['port']]}{get['path']}", timeout=5, trust_env=False).status_code

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.http}"

    @property
    def api(self) -> str:
        return f"http://{LOOPBACK}:{self.dashboard}"

    @property
    def _bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def _pod(self, part: str) -> Value:
        templates: dict[str, Value] = {
            "head": self.cluster["headGroupSpec"],
            "worker": self.cluster["workerGroupSpecs"][0],
            "router": self.rendered.one("Deployment")["spec"],
            "test": self.rendered.one("Job")["spec"],
        }
        spec: Value = templates[part]["template"]["spec"]
        return spec

    def _own_ports(self, part: str) -> dict[str, str]:
        """Ray's nodes share this machine."""
        self.agents[part] = free_port()
        return {"metrics-export-port": str(free_port()), "dashboard-agent-listen-port": str(self.agents[part])}

    def _run(self, part: str, command: list[str]) -> subprocess.Popen[bytes]:
        environment, command = self._prepared(part, command)
        with (self.folder / f"{part}.log").open("wb") as log:
            return subprocess.Popen(  # never outlives us
                command, env=environment, stdout=log, stderr=log, start_new_session=True, preexec_fn=end_with_parent
            )

    def _complete(self, part: str, command: list[str]) -> subprocess.CompletedProcess[str]:
        environment, command = self._prepared(part, command)
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    def _prepared(self, part: str, command: list[str]) -> tuple[dict[str, str], list[str]]:
        spec = self._pod(part)
        self._mount(spec)
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "TMPDIR": self._localised("/tmp"),  # noqa: S108 - a mount of the pod
        }
        if self.cluster.get("authOptions", {}).get("mode") == "token":
            environment |= {"RAY_AUTH_TOKEN": self.token}
        if part in ("head", "worker"):
            environment |= {"RAY_ADDRESS": f"{LOOPBACK}:{self.gcs}"}
        for variable in spec["containers"][0]["env"]:
            value = variable.get("value")
            if variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath") == "status.podIP":
                value = LOOPBACK
            environment[variable["name"]] = self._localised(str(value))
        return environment, [self._localised(part) for part in command]

    def _mount(self, spec: Value) -> None:
        volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
        for mount in spec["containers"][0]["volumeMounts"]:
            folder = self.folder / "root" / mount["mountPath"].strip("/")
            folder.mkdir(parents=True, exist_ok=True)
            if mount["mountPath"] != "/dev/shm":  # noqa: S108 - the machine's own will do
                self._mounts[mount["mountPath"]] = folder
            volume = volumes[mount["name"]]
            for key, value in self.secrets.get(volume.get("secret", {}).get("secretName"), {}).items():
                (folder / key).write_text(value, encoding="utf-8")
            for source in volume.get("projected", {}).get("sources", [volume]):
                if wanted := source.get("configMap"):
                    data = self.rendered.one("ConfigMap", wanted["name"])["data"]
                    for item in wanted["items"]:
                        (folder / item["path"]).write_text(data[item["key"]], encoding="utf-8")

    def _localised(self, text: str) -> str:
        """Paths below a mount, as they are on this machine. ``text`` may be a path, or YAML around one."""
        if str(self.folder) in text:
            return text
        for path, folder in sorted(self._mounts.items(), key=lambda pair: -len(pair[0])):
            if text == path or f"{path}/" in text:
                return text.replace(path, str(folder), 1)
        return text


def _command(container: Value) -> list[str]:
    command = [*container["command"], *container.get("args", ())]
    # `r1` of the image is this environment's, run from the checkout.
    return [sys.executable, "-m", "r1_serve.cli", *command[1:]] if command[0] == "r1" else command
