"""What the chart promises of every object it renders, as checks that name the object at fault."""

from __future__ import annotations

from collections.abc import Iterator

from r1_bench.chart.render import Rendered, Value
from r1_bench.chart.validate import name_of

# Pod Security "restricted" (kubernetes.io/docs/concepts/security/pod-security-standards).
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
CLUSTER_WIDE = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "Namespace", "PodSecurityPolicy"}


def pods(rendered: Rendered) -> Iterator[tuple[str, Value, bool]]:
    """Every pod as (name, template, whether it serves for long)."""
    for each in rendered.objects:
        if each["kind"] in ("Deployment", "Job"):
            yield name_of(each), each["spec"]["template"], each["kind"] == "Deployment"
        elif each["kind"] == "RayService":
            cluster = each["spec"]["rayClusterConfig"]
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                yield f"{name_of(each)} {group.get('groupName', 'head')}", group["template"], True


def containers(template: Value) -> Iterator[Value]:
    yield from template["spec"].get("initContainers", ())
    yield from template["spec"]["containers"]


def faults(rendered: Rendered, *, privileged: frozenset[str] = frozenset()) -> list[str]:
    """Every broken promise, one line each. ``privileged``: what these values must have, IPC_LOCK or hostPath."""
    found = [
        f"{name_of(each)} reaches beyond the namespace" for each in rendered.objects if each["kind"] in CLUSTER_WIDE
    ]
    for name, template, serves in pods(rendered):
        found += [f"{name}: {fault}" for fault in _restricted(template, privileged)]
        found += [f"{name}: {fault}" for fault in _hygiene(template, serves)]
    return found + _services(rendered) + _references(rendered) + _network(rendered)


def _restricted(template: Value, privileged: frozenset[str]) -> Iterator[str]:
    pod = template["spec"]
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
        yield "may run as root"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile"
    if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        yield "shares the host's namespaces"
    for volume in pod.get("volumes", ()):
        kinds = set(volume) - {"name"}
        if kinds - VOLUMES - privileged:
            yield f"volume {volume['name']} is a {', '.join(kinds)}"
    for container in containers(template):
        own = container.get("securityContext", {})
        capabilities = own.get("capabilities", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            yield f"{container['name']} may gain privileges"
        if capabilities.get("drop") != ["ALL"] or set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"} - privileged:
            yield f"{container['name']} keeps capabilities"
        if own.get("readOnlyRootFilesystem") is not True:
            yield f"{container['name']} may write to its image"


def _hygiene(template: Value, serves: bool) -> Iterator[str]:
    pod = template["spec"]
    if pod.get("automountServiceAccountToken") is None:
        yield "does not say whether it gets an API token"
    volumes = {volume["name"] for volume in pod.get("volumes", ())}
    for container in containers(template):
        image = container["image"]
        if "@sha256:" not in image and (":" not in image.rpartition("/")[2] or image.endswith(":latest")):
            yield f"{container['name']}: image {image} is not pinned"
        resources = container.get("resources", {})
        if not {"cpu", "memory"} <= set(resources.get("requests", {})) or "memory" not in resources.get("limits", {}):
            yield f"{container['name']} does not say what it needs"
        mounts = {mount["name"] for mount in container.get("volumeMounts", ())}
        if mounts - volumes:
            yield f"{container['name']} mounts {', '.join(mounts - volumes)}, which the pod has not"
        paths = [mount["mountPath"] for mount in container.get("volumeMounts", ())]
        if "/tmp" not in paths:  # noqa: S108
            yield f"{container['name']} has a read-only root and no /tmp"
        names = [variable["name"] for variable in container.get("env", ())]
        if len(names) != len(set(names)):
            yield f"{container['name']}: a variable is set twice"
    if serves:
        main = pod["containers"][0]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if probe not in main:
                yield f"{main['name']} has no {probe}"
        if "preStop" not in main.get("lifecycle", {}):
            yield f"{main['name']} is not asked before it ends"
        if pod.get("terminationGracePeriodSeconds", 30) <= 30:
            yield "has no grace for a thought"


def _services(rendered: Rendered) -> list[str]:
    """Selectors find pods, and ports their names."""
    found = []
    templates = [template for _, template, _ in pods(rendered)]
    selectors = [(each, each["spec"]["selector"], each["spec"]["ports"]) for each in rendered.kind("Service")]
    for kind in ("Deployment", "PodDisruptionBudget"):
        selectors += [(each, each["spec"]["selector"]["matchLabels"], []) for each in rendered.kind(kind)]
    for each, selector, ports in selectors:
        chosen = [t for t in templates if selector.items() <= t["metadata"]["labels"].items()]
        if len(chosen) != 1:
            found.append(f"{name_of(each)} selects {len(chosen)} kinds of pod")
            continue
        named = {port["name"] for c in containers(chosen[0]) for port in c.get("ports", ())}
        found += [f"{name_of(each)}: no port {port['targetPort']}" for port in ports if port["targetPort"] not in named]
    return found


def _references(rendered: Rendered) -> list[str]:
    """What pods name is rendered too; Secrets never are: they are the operator's own."""
    names = {(each["kind"], each["metadata"]["name"]) for each in rendered.objects}
    found = []
    for name, template, _ in pods(rendered):
        for volume in template["spec"].get("volumes", ()):
            for source in volume.get("projected", {}).get("sources", [volume]):
                wanted = source.get("configMap", {}).get("name")
                if wanted and ("ConfigMap", wanted) not in names:
                    found.append(f"{name}: no ConfigMap {wanted}")
        account = template["spec"].get("serviceAccountName", "default")
        if rendered.kind("ServiceAccount") and ("ServiceAccount", account) not in names:
            found.append(f"{name}: no ServiceAccount {account}")
    return found + [f"{name_of(each)} is in the chart" for each in rendered.kind("Secret")]


def _network(rendered: Rendered) -> list[str]:
    """With policies on, exactly one selects each pod, and it limits both directions and lets DNS out."""
    policies = rendered.kind("NetworkPolicy")
    if not policies:
        return []
    found = []
    for name, template, _ in pods(rendered):
        chosen = [each for each in policies if _selects(each["spec"]["podSelector"], template["metadata"]["labels"])]
        if len(chosen) != 1:
            found.append(f"{name}: {len(chosen)} network policies")
            continue
        spec = chosen[0]["spec"]
        if set(spec["policyTypes"]) != {"Ingress", "Egress"}:
            found.append(f"{name}: its network policy leaves a direction open")
        if not any({"port": 53, "protocol": "UDP"} in rule.get("ports", ()) for rule in spec.get("egress", ())):
            found.append(f"{name}: no way to DNS")
    return found


def _selects(selector: Value, labels: dict[str, str]) -> bool:
    wanted = selector.get("matchLabels", {})
    return wanted.items() <= labels.items() and all(
        labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", ())
    )
