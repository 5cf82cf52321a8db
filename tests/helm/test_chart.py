"""Everything the chart renders is valid and keeps its promises; everything it must refuse is refused by name."""

from __future__ import annotations

import gzip
import json
import shutil
import tomllib
from functools import cache
from itertools import pairwise
from pathlib import Path

import helm_python
import pytest
import yaml
from r1_bench.chart import policy, validate
from r1_bench.chart.check import lint, names, outdated, refusal
from r1_bench.chart.local import ray_start
from r1_bench.chart.matrix import TWO_POOLS, WRONG, Case, Wrong, cases, ready_made
from r1_bench.chart.render import Refused, Rendered, Value, merge, render, values_file
from r1_cluster.plan import PLANS, Plan, shipped
from r1_serve.cli import app
from r1_serve.workers.application import pool_resource
from typer.testing import CliRunner

CHART = Path(__file__).parents[2] / "helm"
CRDS = Path(__file__).parents[3] / "shared" / "data" / "kuberay"
CASES = list(cases(CHART))
READY = ready_made(CHART)

SECRET_BYTES = 1 << 20  # what one Secret holds: Helm keeps chart, values and manifest in it


@cache
def rendered_case(name: str) -> Rendered:
    return render(CHART, next(case for case in CASES if case.name == name).values)


@pytest.fixture(scope="module")
def kuberay() -> validate.Crds:
    found = validate.crds(CRDS)
    if found is None:
        pytest.skip(f"KubeRay's CRDs are not in {CRDS}")
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_objects_fit_their_schemas_and_the_policies(case: Case) -> None:
    rendered = rendered_case(case.name)
    assert validate.faults(rendered.objects, None) == []
    assert policy.faults(rendered, privileged=case.privileged) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_the_rayservice_fits_kuberays_crd(case: Case, kuberay: validate.Crds) -> None:
    assert kuberay.faults(rendered_case(case.name).one("RayService")) == []


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.key.strip(":").replace("/", "."))
def test_wrong_values_are_refused_with_the_keys_name(wrong: Wrong) -> None:
    message = refusal(CHART, wrong)
    assert message is not None, "it was taken"
    assert names(message, wrong.key), message


def test_the_validators_see_a_field_that_nobody_knows(kuberay: validate.Crds) -> None:
    rendered = render(CHART, values_file(CHART / "values-nano.yaml"))
    service, deployment = rendered.one("RayService"), rendered.one("Deployment")
    service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePolicy"] = "x"
    deployment["spec"]["replica"] = 2
    assert any("imagePolicy" in fault for fault in kuberay.faults(service))
    assert any("replica" in fault for fault in validate.faults([deployment], None))
    assert any("imagePolicy" in fault for fault in validate.faults([service], None))


def test_the_policies_see_what_they_forbid() -> None:
    rendered = render(CHART, values_file(CHART / "values-nano.yaml"))
    pod = rendered.one("Deployment")["spec"]["template"]["spec"]
    pod["securityContext"]["runAsNonRoot"] = False
    pod["containers"][0]["image"] = "router:latest"
    pod["containers"][0]["ports"][0]["name"] = "web"
    pod["containers"][0].pop("livenessProbe")
    pod["volumes"][0]["projected"]["sources"][0]["configMap"]["name"] = "other"
    rendered.objects.remove(rendered.one("NetworkPolicy", "r1-router"))
    found = " ".join(policy.faults(rendered))
    for fault in ("as root", "not pinned", "no port http", "livenessProbe", "no ConfigMap other", "0 network policies"):
        assert fault in found


def test_generated_files_are_up_to_date() -> None:
    assert outdated(CHART) == []


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_helms_lint_has_nothing_to_say(path: Path) -> None:
    assert lint(CHART, values_file(path)) == []


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_plan_alone_is_enough(name: str) -> None:
    plan = yaml.safe_load((PLANS / f"{name}.yaml").read_text(encoding="utf-8"))
    if not plan["model"]["checkpoint"].startswith("builtin:"):
        pytest.skip(f"{name} needs weights from somewhere")
    rendered = render(CHART, {"plan": plan})
    (text,) = (each["data"]["plan.yaml"] for each in rendered.kind("ConfigMap") if "plan.yaml" in each["data"])
    assert Plan.from_yaml(text) == Plan.load(name)


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_the_pods_hold_what_the_plan_asks_for(path: Path) -> None:
    values = values_file(path)
    plan = Plan.from_yaml(yaml.safe_dump(values["plan"]))
    cluster = render(CHART, values).one("RayService")["spec"]["rayClusterConfig"]
    total = 0
    for group, pool in zip(cluster["workerGroupSpecs"], plan.pools, strict=True):
        per_pod = int(group["rayStartParams"]["num-gpus"])
        assert group["replicas"] == pool.gangs
        assert group["numOfHosts"] * per_pod == pool.layout.accelerators
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert limits.get("nvidia.com/gpu", 0) == (0 if plan.fleet.accelerator == "cpu" else per_pod)
        total += group["replicas"] * group["numOfHosts"] * per_pod
    assert total == plan.accelerators


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_the_grace_covers_what_a_pod_does_before_it_ends(path: Path) -> None:
    rendered = render(CHART, values_file(path))
    router = rendered.one("Deployment")["spec"]["template"]["spec"]
    drain = next(v["value"] for v in router["containers"][0]["env"] if v["name"] == "R1_DRAIN_S")
    wait = router["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert router["terminationGracePeriodSeconds"] >= int(drain) + int(wait) + 30
    cluster = rendered.one("RayService")["spec"]["rayClusterConfig"]
    waits = []
    for group in (cluster["workerGroupSpecs"][0], cluster["headGroupSpec"]):
        pod = group["template"]["spec"]
        waits.append(int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]))
        assert pod["terminationGracePeriodSeconds"] >= waits[-1] + 30
    assert waits[1] > waits[0]  # the head goes last


def test_workers_call_the_service_that_finds_routers_before_they_are_ready() -> None:
    rendered = render(CHART, values_file(CHART / "values-nano.yaml"))
    service = rendered.one("Service", "r1-attach")["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    (application,) = yaml.safe_load(rendered.one("RayService")["spec"]["serveConfigV2"])["applications"]
    assert application["args"]["routers"] == f"r1-attach.r1-test.svc.cluster.local:{service['ports'][0]['port']}"


def test_another_plan_makes_another_cluster_and_another_chart_version_does_not(tmp_path: Path) -> None:
    values = values_file(CHART / "values-nano.yaml")
    first = _cluster(CHART, values)
    assert _cluster(CHART, merge(values, {"plan": {"engine": {"max_num_seqs": 32}}})) != first
    assert _cluster(CHART, merge(values, {"router": {"replicas": 7}})) == first
    chart = Path(shutil.copytree(CHART, tmp_path / "helm"))
    text = (chart / "Chart.yaml").read_text(encoding="utf-8")
    (chart / "Chart.yaml").write_text(text.replace("\nversion: 0.1.0", "\nversion: 0.1.1"), encoding="utf-8")
    assert _cluster(chart, values) == first


def _cluster(chart: Path, values: Value) -> str:
    return json.dumps(render(chart, values).one("RayService")["spec"]["rayClusterConfig"])


def test_an_upgrade_lets_the_routers_take_the_workers_of_both_plans() -> None:
    rendered = rendered_case("values-nano upgrade")
    router = rendered.one("Deployment")["spec"]["template"]["spec"]
    files = [source["configMap"]["items"][0]["path"] for source in router["volumes"][0]["projected"]["sources"]]
    arguments = router["containers"][0]["args"]
    assert [f"/etc/r1/plans/{file}" for file in files] == [
        value for flag, value in pairwise(arguments) if flag == "--plan"
    ]
    assert len(set(files)) == 2


def test_routers_and_workers_read_the_same_fleet_token_and_the_head_has_none() -> None:
    rendered = rendered_case("values-nano fleet-token")
    cluster = rendered.one("RayService")["spec"]["rayClusterConfig"]
    found = []
    for pod in (rendered.one("Deployment")["spec"], *cluster["workerGroupSpecs"], cluster["headGroupSpec"]):
        spec = pod["template"]["spec"]
        container = spec["containers"][0]
        file = {v["value"] for v in container["env"] if v["name"] == "R1_FLEET_TOKEN_FILE"}
        mounted = {m["mountPath"] for m in container["volumeMounts"] if m["name"] == "fleet-token"}
        secrets = {v["secret"]["secretName"] for v in spec["volumes"] if v["name"] == "fleet-token"}
        found.append((file, mounted, secrets))
    assert found == [({"/etc/r1/fleet/fleet-token"}, {"/etc/r1/fleet"}, {"fleet"})] * 2 + [(set(), set(), set())]


def test_without_a_fleet_token_the_notes_say_how_to_give_one() -> None:
    values = values_file(CHART / "values-nano.yaml")
    assert "--set fleetToken.existingSecret=r1-fleet" in render(CHART, values).notes
    given = merge(values, {"fleetToken": {"existingSecret": "mine"}})
    assert "fleetToken" not in render(CHART, given).notes


def test_of_several_pools_each_group_has_a_resource_of_its_own_for_each_accelerator() -> None:
    groups = rendered_case("values-r1-32xh100 two-pools").one("RayService")["spec"]["rayClusterConfig"]
    plan = Plan.from_yaml(yaml.safe_dump(merge(values_file(CHART / "values-r1-32xh100.yaml"), TWO_POOLS)["plan"]))
    for group, pool in zip(groups["workerGroupSpecs"], plan.pools, strict=True):
        assert group["resources"] == {pool_resource(pool): group["rayStartParams"]["num-gpus"]}
        assert f"""--resources='{{"{pool_resource(pool)}": 8}}'""" in ray_start("worker", group, 6379)[-1]
    (only,) = rendered_case("values-r1-32xh100").one("RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert "resources" not in only


def test_one_router_process_needs_no_argument_and_several_have_one() -> None:
    values = values_file(CHART / "values-nano.yaml")
    one = render(CHART, values).one("Deployment")["spec"]["template"]["spec"]["containers"][0]["args"]
    more = render(CHART, merge(values, {"router": {"processes": 3}})).one("Deployment")
    assert "--processes" not in one
    assert more["spec"]["template"]["spec"]["containers"][0]["args"][-2:] == ["--processes", "3"]


def test_rules_and_dashboards_are_taken_from_the_charts_files_when_there_are_any(tmp_path: Path) -> None:
    values = merge(
        values_file(CHART / "values-nano.yaml"),
        {"monitoring": {"rules": {"enabled": True}, "dashboards": {"enabled": True}}},
    )
    chart = Path(shutil.copytree(CHART, tmp_path / "helm"))
    for folder in ("rules", "dashboards"):
        shutil.rmtree(chart / "files" / folder, ignore_errors=True)
    bare = render(chart, values)
    assert bare.kind("PrometheusRule") == []
    for file, text in {"rules/a.yaml": "groups:\n- name: a\n", "dashboards/b.json": '{"title": "{{b}}"}'}.items():
        (chart / "files" / file).parent.mkdir(exist_ok=True)
        (chart / "files" / file).write_text(text, encoding="utf-8")
    filled = render(chart, values)
    assert filled.one("PrometheusRule")["spec"] == {"groups": [{"name": "a"}]}
    assert json.loads(filled.one("ConfigMap", "r1-dashboard-b")["data"]["b.json"]) == {"title": "{{b}}"}


def test_a_release_fits_into_helms_secret(tmp_path: Path) -> None:
    archive = Path(helm_python.package(str(CHART), destination=str(tmp_path)))
    rendered = render(CHART, values_file(CHART / "values-r1-16xh200.yaml"))
    manifest = gzip.compress(yaml.safe_dump_all(rendered.objects).encode())
    assert (archive.stat().st_size + len(manifest)) * 4 / 3 < SECRET_BYTES / 4


def test_without_a_plan_the_way_to_one_is_told() -> None:
    with pytest.raises(Refused, match="plan: give one: `r1 plan"):
        render(CHART, {})


def test_the_notes_say_the_next_commands_with_this_releases_names() -> None:
    notes = render(CHART, values_file(CHART / "values-nano.yaml"), name="think", namespace="ai").notes
    for command in (
        "kubectl -n ai rollout status deployment/think-router",
        "helm -n ai test think",
        "kubectl -n ai port-forward service/think 8000",
        '"model": "r1-nano"',
    ):
        assert command in notes
    assert "Anyone who reaches the Service may ask" in notes


def test_the_outside_reaches_the_api_and_nothing_else() -> None:
    for name, kind in (("values-nano tenants-ingress", "Ingress"), ("values-nano gateway", "HTTPRoute")):
        text = json.dumps(rendered_case(name).one(kind)["spec"])
        assert '"/v1"' in text
        assert "/metrics" not in text
    grpc = rendered_case("values-nano gateway").one("GRPCRoute")["spec"]["rules"][0]["matches"]
    assert {match["method"]["service"] for match in grpc} == {"r1.v1.Reasoning", "grpc.health.v1.Health"}


@pytest.mark.parametrize(
    ("model", "gpus"),
    [("nano", "2xcpu"), ("deepseek-r1", "16xH200"), ("r1-distill-qwen-32b", "8xH100")],
)
def test_what_the_planner_emits_is_taken_as_it_is(model: str, gpus: str) -> None:
    emitted = CliRunner().invoke(app, ["plan", "--model", model, "--gpus", gpus, "--emit", "helm-values"])
    assert emitted.exit_code == 0, emitted.output
    values = yaml.safe_load(emitted.stdout)
    weights = {} if model == "nano" else {"weights": {"type": "pvc", "pvc": {"existingClaim": "weights"}}}
    rendered = render(CHART, merge(values, weights))
    assert validate.faults(rendered.objects, None) + policy.faults(rendered) == []
    (text,) = (each["data"]["plan.yaml"] for each in rendered.kind("ConfigMap") if "plan.yaml" in each["data"])
    assert Plan.from_yaml(text) == Plan.from_yaml(yaml.safe_dump(values["plan"]))


def test_the_planners_notes_do_not_make_another_cluster() -> None:
    values = values_file(CHART / "values-nano.yaml")
    again = merge(values, {"plan": {"name": "again", "reasons": ["the same in other words"], "memory": []}})
    assert _plan_hash(again) == _plan_hash(values)
    assert len(render(CHART, merge(again, {"previousPlans": [values["plan"]]})).kind("ConfigMap")) == 1


def _plan_hash(values: Value) -> str:
    found: str = render(CHART, values).one("RayService")["metadata"]["annotations"]["r1-serve/plan"]
    return found


def test_the_charts_versions_are_the_projects() -> None:
    root = CHART.parent
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    values = values_file(CHART / "values.yaml")
    assert chart["appVersion"] == project["version"]
    assert f"\nray=={values['ray']['version']}\n" in (root / "requirements/cpu.lock").read_text(encoding="utf-8")


def test_routers_scale_on_metrics_that_routers_have() -> None:
    documented = (CHART.parent / "docs/metrics.md").read_text(encoding="utf-8")
    for metric in ("r1_queued_requests", "r1_streams"):
        assert f"| `{metric}` |" in documented
        for name in ("hpa", "keda"):
            text = json.dumps(rendered_case(f"values-nano {name}").objects)
            assert metric in text
