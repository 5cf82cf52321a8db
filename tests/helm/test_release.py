"""Install, upgrade and uninstall by Helm's engine against an API server stand-in: what is kept, changed and left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import pytest
from r1_bench.chart.render import Value, merge, render, values_file

ApiServer = Any  # conftest's
NAME, NAMESPACE = "r1", "r1-test"


@pytest.fixture
def nano(chart: Path) -> Value:
    return values_file(chart / "values-nano.yaml")


@pytest.fixture
def cluster(api: ApiServer) -> Iterator[helm_python.Config]:
    # Helm's own record in memory: its client writes Secrets as protobuf.
    with helm_python.Config(
        kubeconfig_content=api.kubeconfig, namespace=NAMESPACE, storage_driver="memory", qps=1e4, burst_limit=10_000
    ) as config:
        yield config


def spec(thing: Value) -> Value:
    return {key: value for key, value in thing.items() if key not in ("metadata", "status")}


def test_an_install_creates_what_is_rendered(
    api: ApiServer, cluster: helm_python.Config, chart: Path, nano: Value
) -> None:
    assert cluster.install(str(chart), NAME, nano)["status"] == "deployed"
    rendered = {f"{o['kind']}/{o['metadata']['name']}": o for o in render(chart, nano).objects}
    hooks = {name for name, o in rendered.items() if "helm.sh/hook" in o["metadata"].get("annotations", {})}
    assert hooks == {"Job/r1-ask"}
    kept = api.kept()
    assert set(kept) == set(rendered) - hooks
    assert {name: spec(each) for name, each in kept.items()} == {name: spec(rendered[name]) for name in kept}


def test_nothing_is_asked_of_the_cluster_beyond_the_namespace(
    api: ApiServer, cluster: helm_python.Config, chart: Path, nano: Value
) -> None:
    cluster.install(str(chart), NAME, nano)
    cluster.upgrade(str(chart), NAME, nano)
    asked = [request.split()[1] for request in api.requests]
    discovery = ("/version", "/api?", "/apis?", "/openapi/")
    objects = [path for path in asked if not path.startswith(discovery) and "/namespaces/" not in path]
    assert all(path.partition("?")[0].count("/") <= 3 for path in objects), objects  # discovery of one group
    assert {path.split("/namespaces/")[1].split("/")[0] for path in asked if "/namespaces/" in path} == {NAMESPACE}


def test_an_upgrade_changes_what_the_values_changed_alone(
    api: ApiServer, cluster: helm_python.Config, chart: Path, nano: Value
) -> None:
    cluster.install(str(chart), NAME, nano)
    before = {name: spec(each) for name, each in api.kept().items()}
    cluster.upgrade(str(chart), NAME, merge(nano, {"router": {"replicas": 3}}))
    after = {name: spec(each) for name, each in api.kept().items()}
    assert [name for name in after if after[name] != before[name]] == ["Deployment/r1-router"]


def test_the_same_upgrade_twice_changes_nothing(
    api: ApiServer, cluster: helm_python.Config, chart: Path, nano: Value
) -> None:
    cluster.install(str(chart), NAME, nano)
    before = {name: spec(each) for name, each in api.kept().items()}
    assert cluster.upgrade(str(chart), NAME, nano)["revision"] == 2
    assert {name: spec(each) for name, each in api.kept().items()} == before


def test_a_plan_is_replaced_only_beside_the_one_that_serves(
    api: ApiServer, cluster: helm_python.Config, chart: Path, nano: Value
) -> None:
    cluster.install(str(chart), NAME, nano)
    new = merge(nano, {"plan": {"name": "nano-32", "engine": {"max_num_seqs": 32}}})
    with pytest.raises(helm_python.HelmError, match="previousPlans: the running workers serve plan nano-tp1"):
        cluster.upgrade(str(chart), NAME, new)
    cluster.upgrade(str(chart), NAME, merge(new, {"previousPlans": [nano["plan"]]}))
    plans = {name for name in api.kept() if name.startswith("ConfigMap/r1-plan-")}
    assert len(plans) == 2  # the pods of the old cluster still find theirs
    cluster.upgrade(str(chart), NAME, new)
    assert len({name for name in api.kept() if name.startswith("ConfigMap/r1-plan-")}) == 1


def test_an_alias_moves_between_two_fleets_without_another_cluster(
    api: ApiServer, cluster: helm_python.Config, chart: Path, nano: Value
) -> None:
    old = merge(nano["plan"], {"model": {"aliases": ["best"]}})
    new = merge(nano["plan"], {"name": "nano-next", "model": {"name": "r1-nano-next", "aliases": []}})
    cluster.install(str(chart), NAME, merge(nano, {"model": "", "plan": new, "previousPlans": [old]}))
    before = {name: spec(each) for name, each in api.kept().items()}
    moved = [merge(plan, {"model": {"aliases": aliases}}) for plan, aliases in ((new, ["best"]), (old, []))]
    cluster.upgrade(str(chart), NAME, merge(nano, {"model": "", "plan": moved[0], "previousPlans": [moved[1]]}))
    after = {name: spec(each) for name, each in api.kept().items()}
    changed = {name.split("-")[0] for name in after if after[name] != before.get(name)}
    assert changed == {"ConfigMap/r1", "Deployment/r1"}
    assert after.keys() == before.keys()


def test_a_rollback_brings_back_what_was(api: ApiServer, cluster: helm_python.Config, chart: Path, nano: Value) -> None:
    cluster.install(str(chart), NAME, nano)
    before = {name: spec(each) for name, each in api.kept().items()}
    cluster.upgrade(
        str(chart), NAME, merge(nano, {"router": {"replicas": 5, "podDisruptionBudget": {"enabled": False}}})
    )
    cluster.rollback(NAME, version=1)
    assert {name: spec(each) for name, each in api.kept().items()} == before


def test_an_uninstall_leaves_nothing_but_the_fetched_weights(
    api: ApiServer, cluster: helm_python.Config, chart: Path
) -> None:
    fetch = {"url": "https://example.com", "files": [{"name": "config.json", "sha256": "0" * 64}]}
    weights = {"pvc": {"existingClaim": "", "size": "720Gi"}, "fetch": fetch}
    cluster.install(str(chart), NAME, merge(values_file(chart / "values-r1-16xh200.yaml"), {"weights": weights}))
    assert any(name.startswith("Job/r1-weights-") for name in api.kept())
    cluster.uninstall(NAME)
    assert set(api.kept()) == {"PersistentVolumeClaim/r1-weights"}


def test_a_cluster_without_kuberay_is_told_to_install_it(bare_api: ApiServer, chart: Path, nano: Value) -> None:
    with (
        helm_python.Config(
            kubeconfig_content=bare_api.kubeconfig,
            namespace=NAMESPACE,
            storage_driver="memory",
            qps=1e4,
            burst_limit=10_000,
        ) as cluster,
        pytest.raises(helm_python.HelmError, match=r"no ray.io/v1/RayService: install KubeRay 1\.6 or newer first"),
    ):
        cluster.install(str(chart), NAME, nano)
    assert bare_api.kept() == {}


def test_an_add_on_that_is_missing_is_named_with_the_value_that_wants_it(
    api: ApiServer, cluster: helm_python.Config, chart: Path, nano: Value
) -> None:
    wanted = {"monitoring": {"serviceMonitor": {"enabled": True}}}
    with pytest.raises(helm_python.HelmError, match=r"or set monitoring\.serviceMonitor\.enabled to false"):
        cluster.install(str(chart), NAME, merge(nano, wanted))
    assert api.kept() == {}
