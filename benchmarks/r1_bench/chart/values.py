"""The chart's values as types: ``helm/values.schema.json`` is made from here, so that unknown keys fail by name.

Only shapes are here. What one value says of another (a gang that does not fit its nodes) is in the chart's own
``templates/_checks.tpl``, where ``helm template`` finds it.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from r1_cluster.plan import Plan

Resources = dict[Literal["requests", "limits", "claims"], Any]
Object = dict[str, Any]  # Kubernetes' own: validated by the API server
Objects = list[Object]
Text = dict[str, str]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Image(_Strict):
    repository: str = Field(min_length=1)
    tag: str = Field(pattern=r"^[A-Za-z0-9_.-]{0,127}$", json_schema_extra={"not": {"const": "latest"}})
    digest: str = Field(pattern=r"^(sha256:[0-9a-f]{64})?$")
    pullPolicy: Literal["IfNotPresent", "Always", "Never"]
    pullSecrets: Objects


class Gpu(_Strict):
    type: str
    perNode: Count
    nodes: Count
    rdmaResource: str
    resource: str = Field(min_length=1)


class File(_Strict):
    name: str = Field(min_length=1, pattern=r"^[^/].*$")
    sha256: Sha256


class Fetch(_Strict):
    url: str = Field(pattern=r"^(https?://.+)?$")
    files: list[File]
    existingSecret: str


class Claim(_Strict):
    existingClaim: str
    size: str
    storageClassName: str
    accessModes: list[Literal["ReadWriteMany", "ReadOnlyMany", "ReadWriteOnce"]]


class ObjectStore(_Strict):
    uri: str = Field(pattern=r"^((s3|gs|az)://.+)?$")
    loadFormat: Literal["runai_streamer", "runai_streamer_sharded"]
    existingSecret: str
    endpoint: str


class Weights(_Strict):
    type: Literal["builtin", "pvc", "hostPath", "objectStore"]
    mountPath: str = Field(pattern=r"^/.+")
    pvc: Claim
    hostPath: str = Field(pattern=r"^(/.+)?$")
    objectStore: ObjectStore
    fetch: Fetch


class Pod(_Strict):
    """What every kind of pod may be given."""

    resources: Resources
    nodeSelector: Text
    tolerations: Objects
    affinity: Object
    priorityClassName: str
    annotations: Text
    labels: Text
    env: Objects


class Autoscaling(_Strict):
    type: Literal["none", "hpa", "keda"]
    minReplicas: Positive
    maxReplicas: Positive
    queuedPerReplica: Positive
    streamsPerReplica: Positive
    scaleDownStabilizationSeconds: Count
    prometheusUrl: str


class Disruption(_Strict):
    enabled: bool
    maxUnavailable: Positive


class RouterService(_Strict):
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"]
    annotations: Text


class RouterPorts(_Strict):
    http: Port
    grpc: Port


class Router(Pod):
    replicas: Positive
    processes: Positive
    host: str = Field(min_length=1)
    ports: RouterPorts
    drainSeconds: Count
    requestTimeoutSeconds: Positive
    policy: str
    attach: str
    service: RouterService
    autoscaling: Autoscaling
    podDisruptionBudget: Disruption
    topologySpreadConstraints: Objects


class Startup(_Strict):
    periodSeconds: Positive
    failureThreshold: Positive


class Head(Pod):
    rayStartParams: Text
    startup: Startup


class Worker(Pod):
    rayStartParams: Text
    leaveSeconds: Count
    sharedMemory: str
    threads: Positive
    startup: Startup
    resourceClaims: Objects


class RayAuth(_Strict):
    mode: Literal["token", "disabled"]
    existingSecret: str


class SecretKey(_Strict):
    name: str
    key: str


class FaultTolerance(_Strict):
    backend: Literal["none", "redis", "rocksdb"]
    redisAddress: str
    redisPassword: SecretKey
    rocksdbSize: str
    rocksdbStorageClassName: str


class RayAutoscaler(_Strict):
    enabled: bool
    maxGangs: Positive
    idleTimeoutSeconds: Positive
    resources: Resources


class Upgrade(_Strict):
    type: Literal["NewCluster", "None"]
    deletionDelaySeconds: Count
    allowPlanReplacement: bool


class Scheduling(_Strict):
    type: Literal["none", "kueue", "volcano", "yunikorn", "kai"]
    queue: str


class Ray(_Strict):
    version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    head: Head
    worker: Worker
    auth: RayAuth
    gcsFaultTolerance: FaultTolerance
    autoscaler: RayAutoscaler
    upgrade: Upgrade
    scheduling: Scheduling


class Rdma(_Strict):
    count: Positive
    ipcLock: bool
    hca: str
    socketInterface: str
    gidIndex: Annotated[int, Field(ge=-1)]
    env: Objects


class Tenants(_Strict):
    existingSecret: str
    key: str = Field(min_length=1)
    anonymous: bool


class FleetToken(_Strict):
    existingSecret: str
    key: str = Field(min_length=1)


class NetworkPolicy(_Strict):
    enabled: bool
    clientsFrom: Objects
    metricsFrom: Objects
    operatorFrom: Objects
    dnsTo: Objects
    extraEgress: Objects


class Tls(_Strict):
    secretName: str
    hosts: list[str]


class Ingress(_Strict):
    enabled: bool
    className: str
    host: str
    annotations: Text
    tls: list[Tls]


class Gateway(_Strict):
    enabled: bool
    parentRefs: Objects
    hostnames: list[str]
    grpcHostnames: list[str]


class Toggle(_Strict):
    enabled: bool
    labels: Text


class Monitoring(_Strict):
    serviceMonitor: Toggle
    podMonitor: Toggle
    rules: Toggle
    dashboards: Toggle
    otlpEndpoint: str = Field(pattern=r"^(https?://[^/:]+:[0-9]+)?$")


class Test(_Strict):
    enabled: bool
    question: str = Field(min_length=1)
    expect: str
    maxTokens: Positive
    apiKey: SecretKey


class ServiceAccount(_Strict):
    create: bool
    router: str
    ray: str
    annotations: Text


class Values(_Strict):
    model: str
    image: Image
    plan: Plan | None = None  # its own message is better than the schema's
    previousPlans: list[Plan]
    gpu: Gpu
    weights: Weights
    router: Router
    ray: Ray
    rdma: Rdma
    tenants: Tenants
    fleetToken: FleetToken
    networkPolicy: NetworkPolicy
    ingress: Ingress
    gateway: Gateway
    monitoring: Monitoring
    serviceAccount: ServiceAccount
    test: Test
    podSecurityContext: Object
    fullnameOverride: str
    commonLabels: Text
    clusterDomain: str = Field(min_length=1)
    # `global` is Helm's own: it hands it to a chart that another one depends on.
    shared: Object = Field(default_factory=dict, alias="global")


def schema() -> str:
    """JSON Schema 2020-12 of the values, as the chart's file holds it."""
    value = Values.model_json_schema(mode="validation", by_alias=True)
    # A part of the plan may be left out, as in a plan's file; of the chart's own values Helm has merged all defaults.
    value = {"$schema": "https://json-schema.org/draft/2020-12/schema", **_bare(value)}
    return json.dumps(value, indent=1) + "\n"


def _bare(value: Any) -> Any:
    """Without pydantic's titles and defaults, which say nothing an error message could use."""
    if isinstance(value, dict):
        named = "properties" in value or "$ref" in value or "type" in value or "anyOf" in value
        return {
            key: {name: _bare(each) for name, each in inner.items()} if key in ("properties", "$defs") else _bare(inner)
            for key, inner in value.items()
            if not (named and key in ("title", "default") and not isinstance(inner, dict))
        }
    if isinstance(value, list):
        return [_bare(each) for each in value]
    return value
