"""Rendered objects against schemas: Kubernetes' own by version, KubeRay's from its CRDs, add-ons' from types."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

from r1_bench.chart import addons
from r1_bench.chart.render import Loader, Value

KUBERNETES = ("1.31", "1.34", "1.37")  # the oldest that Chart.yaml takes, and newer ones
CRDS = ("ray.io_rayservices.yaml", "ray.io_rayclusters.yaml")


def name_of(thing: Value) -> str:
    return f"{thing['kind']}/{thing['metadata']['name']}"


@cache
def _validator(version: str, kind: str, api_version: str) -> jsonschema.Draft202012Validator | None:
    """kubernetes-validate's strict schema of a kind: unknown fields are faults. It reads megabytes for each call."""
    group, _, revision = api_version.rpartition("/")
    name = "-".join(filter(None, (kind.lower(), group.split(".")[0], revision)))
    folder = f"kubernetes-json-schema/v{version}.0-local-strict"
    try:
        schema = schema_contents(f"{folder}/{name}.json", version)
    except FileNotFoundError:
        return None
    return jsonschema.Draft202012Validator(schema, registry=Resource.from_contents(schema) @ _definitions(version))


@cache
def _definitions(version: str) -> Registry[Any]:
    contents = schema_contents(f"kubernetes-json-schema/v{version}.0-local-strict/_definitions.json", version)
    return Resource.from_contents(contents) @ Registry()


def kubernetes_faults(thing: Value) -> list[str]:
    """One line a fault, in each of ``KUBERNETES``."""
    return list(_kubernetes_faults(json.dumps(thing)))


@cache
def _kubernetes_faults(text: str) -> tuple[str, ...]:
    thing = json.loads(text)
    found = []
    for version in KUBERNETES:
        validator = _validator(version, thing["kind"], thing["apiVersion"])
        if validator is None:
            found.append(f"{name_of(thing)}: Kubernetes {version} has no {thing['apiVersion']} {thing['kind']}")
            continue
        found += [_line(thing, fault, version) for fault in validator.iter_errors(thing)]
    return tuple(found)


def _line(thing: Value, fault: jsonschema.ValidationError, schema: str) -> str:
    return f"{name_of(thing)} in {schema}: {'.'.join(map(str, fault.absolute_path))}: {fault.message[:200]}"


@cache
def _addons() -> dict[tuple[str, str], jsonschema.Draft202012Validator]:
    """By API version and kind."""
    found = {}
    for kind in addons.KINDS:
        schema = kind.model_json_schema()
        key = (schema["properties"]["apiVersion"]["const"], schema["properties"]["kind"]["const"])
        found[key] = jsonschema.Draft202012Validator(schema)
    return found


def addon_faults(thing: Value) -> list[str] | None:
    """None for what is no add-on's."""
    validator = _addons().get((thing["apiVersion"], thing["kind"]))
    if validator is None:
        return None
    found = [_line(thing, fault, "the add-on's types") for fault in validator.iter_errors(thing)]
    if thing["kind"] == "ScaledObject" and not found:
        found += kubernetes_faults(addons.autoscaler(thing))
    return found


class Crds:
    """The CRDs that ``folder`` holds as files: KubeRay's, and whatever others are put there."""

    def __init__(self, folder: Path) -> None:
        self._validators = {}
        for file in sorted(folder.glob("*.yaml")):
            crd = yaml.load(file.read_text(encoding="utf-8"), Loader)  # noqa: S506  # the safe one
            kind = crd["spec"]["names"]["kind"]
            for version in crd["spec"]["versions"]:
                schema = _closed(version["schema"]["openAPIV3Schema"])
                key = (f"{crd['spec']['group']}/{version['name']}", kind)
                self._validators[key] = jsonschema.Draft202012Validator(schema)

    def faults(self, thing: Value) -> list[str]:
        """Empty too for a kind whose CRD is not there."""
        validator = self._validators.get((thing["apiVersion"], thing["kind"]))
        return [_line(thing, fault, "its CRD") for fault in validator.iter_errors(thing)] if validator else []


def _closed(schema: Any) -> Any:
    """An OpenAPI schema as JSON Schema that refuses what an API server would drop in silence."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: _closed(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        result = {"type": ["integer", "string"]}
    elif isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        properties = result["properties"]
        if set(properties) != {"apiVersion", "kind", "metadata"} and result.get("type") == "object":
            result.setdefault("additionalProperties", False)
        if "metadata" in properties and "properties" not in properties["metadata"]:
            properties["metadata"] = {"type": "object"}
    return result


@cache
def crds(folder: Path) -> Crds | None:
    """None where KubeRay's are not there."""
    return Crds(folder) if all((folder / file).is_file() for file in CRDS) else None


def faults(objects: Iterable[Value], known: Crds | None) -> list[str]:
    """Every violation of a schema, one line each. Without ``known`` only the pods of Ray's kinds are looked at."""
    found: list[str] = []
    for each in objects:
        found += known.faults(each) if known else []
        addon = addon_faults(each)
        if each["apiVersion"].startswith("ray.io/"):
            cluster = each["spec"].get("rayClusterConfig", {})
            pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]] if cluster else []
            # The CRD holds a pod's schema too, but an older one: Kubernetes' own judges it as well.
            found += [fault for pod in pods for fault in kubernetes_faults(as_pod(each, pod["template"]))]
        else:
            found += kubernetes_faults(each) if addon is None else addon
    return found


def as_pod(owner: Value, template: Value) -> Value:
    name = {"name": owner["metadata"]["name"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {**template["metadata"], **name}, "spec": template["spec"]}
