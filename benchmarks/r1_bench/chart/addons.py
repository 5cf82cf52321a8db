"""The kinds that add-ons serve, as far as the chart renders them: strict types, from which schemas are made.

Written by hand after the projects' API references (Prometheus operator v1, KEDA 2 v1alpha1, Gateway API v1); the
projects' own CRDs judge as well where ``--crds`` has them. A field that the chart gains must be added here, and looked
up there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = dict[str, str]
# A Prometheus duration, a Gateway API duration (GEP-2257), a DNS-1123 label and a DNS subdomain.
Duration = Annotated[str, Field(pattern=r"^(0|(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?)$", min_length=1)]
GatewayDuration = Annotated[str, Field(pattern=r"^([0-9]{1,5}(h|m|s|ms)){1,4}$")]
Label = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=63)]
Hostname = Annotated[
    str,
    Field(pattern=r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", max_length=253),
]
Port = Annotated[int, Field(ge=1, le=65535)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Metadata(_Strict):
    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)
    labels: dict[str, Annotated[str, Field(max_length=63)]]


class Requirement(_Strict):
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str] = []


class Selector(_Strict):
    matchLabels: Text = {}
    matchExpressions: list[Requirement] = []


class Endpoint(_Strict):
    port: str = Field(min_length=1)
    path: str = Field(default="/metrics", pattern="^/")
    interval: Duration = "1m"


class ServiceMonitorSpec(_Strict):
    selector: Selector
    endpoints: list[Endpoint] = Field(min_length=1)


class ServiceMonitor(_Strict):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["ServiceMonitor"]
    metadata: Metadata
    spec: ServiceMonitorSpec


class PodMonitorSpec(_Strict):
    selector: Selector
    podMetricsEndpoints: list[Endpoint] = Field(min_length=1)


class PodMonitor(_Strict):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    metadata: Metadata
    spec: PodMonitorSpec


class Recorded(_Strict):
    record: str = Field(pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]*$")
    expr: str | int
    labels: Text = {}


class Alert(_Strict):
    alert: str = Field(min_length=1)
    expr: str | int
    # The rule's own `for`, which Python reserves.
    lasting: Duration = Field(default="0s", alias="for")
    keep_firing_for: Duration = "0s"
    labels: Text = {}
    annotations: Text = {}


class RuleGroup(_Strict):
    name: str = Field(min_length=1)
    interval: Duration = "1m"
    rules: list[Recorded | Alert]


class RuleSpec(_Strict):
    groups: list[RuleGroup]


class PrometheusRule(_Strict):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PrometheusRule"]
    metadata: Metadata
    spec: RuleSpec


class ScaleTarget(_Strict):
    name: str = Field(min_length=1)


class PrometheusTrigger(_Strict):
    """KEDA takes strings alone, numbers too."""

    serverAddress: str = Field(pattern="^https?://")
    query: str = Field(min_length=1)
    threshold: str = Field(pattern=r"^[0-9]+(\.[0-9]+)?$")


class Trigger(_Strict):
    type: Literal["prometheus"]
    metadata: PrometheusTrigger


class HpaConfig(_Strict):
    behavior: dict[Literal["scaleUp", "scaleDown"], Any]  # Kubernetes' own, judged as an autoscaler's


class Advanced(_Strict):
    horizontalPodAutoscalerConfig: HpaConfig


class ScaledObjectSpec(_Strict):
    scaleTargetRef: ScaleTarget
    minReplicaCount: int = Field(ge=0)
    maxReplicaCount: int = Field(ge=1)
    advanced: Advanced
    triggers: list[Trigger] = Field(min_length=1)


class ScaledObject(_Strict):
    apiVersion: Literal["keda.sh/v1alpha1"]
    kind: Literal["ScaledObject"]
    metadata: Metadata
    spec: ScaledObjectSpec


class ParentRef(_Strict):
    group: str = Field(default="gateway.networking.k8s.io", max_length=253)
    kind: str = Field(default="Gateway", pattern=r"^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$", max_length=63)
    namespace: Label = "default"
    name: str = Field(min_length=1, max_length=253)
    sectionName: str = Field(default="x", min_length=1, max_length=253)
    port: Port = 1


class BackendRef(_Strict):
    name: str = Field(min_length=1, max_length=253)
    port: Port


class PathMatch(_Strict):
    type: Literal["Exact", "PathPrefix", "RegularExpression"]
    value: str = Field(pattern="^/", max_length=1024)


class HttpMatch(_Strict):
    path: PathMatch


class Timeouts(_Strict):
    request: GatewayDuration
    backendRequest: GatewayDuration


class HttpRule(_Strict):
    matches: list[HttpMatch] = Field(max_length=64)
    timeouts: Timeouts
    backendRefs: list[BackendRef] = Field(max_length=16)


class MethodMatch(_Strict):
    service: str = Field(pattern=r"^[A-Za-z_][A-Za-z_0-9]*(\.[A-Za-z_][A-Za-z_0-9]*)*$", max_length=1024)


class GrpcMatch(_Strict):
    method: MethodMatch


class GrpcRule(_Strict):
    matches: list[GrpcMatch] = Field(max_length=64)
    backendRefs: list[BackendRef] = Field(max_length=16)


class _RouteSpec(_Strict):
    parentRefs: list[ParentRef] = Field(max_length=32)
    hostnames: list[Hostname] = Field(default=[], max_length=16)


class HttpRouteSpec(_RouteSpec):
    rules: list[HttpRule] = Field(max_length=16)


class GrpcRouteSpec(_RouteSpec):
    rules: list[GrpcRule] = Field(max_length=16)


class HTTPRoute(_Strict):
    apiVersion: Literal["gateway.networking.k8s.io/v1"]
    kind: Literal["HTTPRoute"]
    metadata: Metadata
    spec: HttpRouteSpec


class GRPCRoute(_Strict):
    apiVersion: Literal["gateway.networking.k8s.io/v1"]
    kind: Literal["GRPCRoute"]
    metadata: Metadata
    spec: GrpcRouteSpec


KINDS: tuple[type[BaseModel], ...] = (ServiceMonitor, PodMonitor, PrometheusRule, ScaledObject, HTTPRoute, GRPCRoute)


def autoscaler(scaled: dict[str, Any]) -> dict[str, Any]:
    """The HorizontalPodAutoscaler that KEDA makes of a ScaledObject, as far as the chart decides it."""
    spec = scaled["spec"]
    target = {"apiVersion": "apps/v1", "kind": "Deployment", **spec["scaleTargetRef"]}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": scaled["metadata"],
        "spec": {
            "scaleTargetRef": target,
            "minReplicas": spec["minReplicaCount"],
            "maxReplicas": spec["maxReplicaCount"],
            **spec["advanced"]["horizontalPodAutoscalerConfig"],
        },
    }
