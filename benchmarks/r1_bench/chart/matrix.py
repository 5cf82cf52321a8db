"""What is rendered: every values file, its variations, and values that must be refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1_bench.chart.render import Value, merge, values_file

DIGEST = "sha256:" + "0" * 64
FETCH: Value = {
    "url": "https://example.com/r1",
    "files": [{"name": "config.json", "sha256": "0" * 64}, {"name": "tokenizer.json", "sha256": "1" * 64}],
    "existingSecret": "hub",
}
STORE: Value = {"uri": "s3://models/r1", "existingSecret": "aws", "endpoint": "https://minio:9000"}
GATEWAY: Value = {
    "enabled": True,
    "parentRefs": [{"name": "public", "namespace": "gateways"}],
    "hostnames": ["r1.example.com"],
    "grpcHostnames": ["grpc.r1.example.com"],
}

VARIATIONS: dict[str, Value] = {
    "digest": {"image": {"digest": DIGEST, "pullSecrets": [{"name": "registry"}]}, "commonLabels": {"team": "r1"}},
    "processes": {"router": {"processes": 4}},
    "hpa": {"router": {"autoscaling": {"type": "hpa"}}},
    "keda": {"router": {"autoscaling": {"type": "keda", "prometheusUrl": "http://prometheus:9090"}}},
    "redis": {
        "ray": {
            "gcsFaultTolerance": {"backend": "redis", "redisAddress": "redis:6379", "redisPassword": {"name": "redis"}}
        }
    },
    "rocksdb": {"ray": {"gcsFaultTolerance": {"backend": "rocksdb", "rocksdbStorageClassName": "fast"}}},
    "ray-autoscaler": {"ray": {"autoscaler": {"enabled": True}, "scheduling": {"type": "none"}}},
    "kueue": {"ray": {"scheduling": {"type": "kueue", "queue": "gpus"}}},
    "volcano": {"ray": {"scheduling": {"type": "volcano", "queue": "gpus"}}},
    "yunikorn": {"ray": {"scheduling": {"type": "yunikorn", "queue": "root.gpus"}}},
    "kai": {"ray": {"scheduling": {"type": "kai", "queue": "gpus"}}},
    "no-token": {"ray": {"auth": {"mode": "disabled"}}},
    "token-secret": {"ray": {"auth": {"existingSecret": "ray-token"}}},
    "tenants-ingress": {
        "tenants": {"existingSecret": "tenants"},
        "test": {"apiKey": {"name": "test-key", "key": "key"}},
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "host": "r1.example.com",
            "tls": [{"secretName": "r1-tls", "hosts": ["r1.example.com"]}],
        },
    },
    "gateway": {
        "tenants": {"anonymous": True},
        "gateway": GATEWAY,
    },
    "monitoring": {
        "monitoring": {
            part: {"enabled": True, "labels": {"release": "kps"}}
            for part in ("serviceMonitor", "podMonitor", "rules", "dashboards")
        }
    },
    "traces": {"monitoring": {"otlpEndpoint": "http://collector.monitoring:4317"}},
    "fleet-token": {"fleetToken": {"existingSecret": "fleet", "key": "fleet-token"}},
    "bare": {
        "fleetToken": {"existingSecret": "fleet"},
        "networkPolicy": {"enabled": False},
        "router": {"podDisruptionBudget": {"enabled": False}},
        "test": {"enabled": False},
        "serviceAccount": {"create": False},
    },
    "load-balancer": {
        "router": {"service": {"type": "LoadBalancer", "annotations": {"lb": "internal"}}},
        "fleetToken": {"existingSecret": "fleet"},
        "tenants": {"existingSecret": "tenants"},
        "test": {"apiKey": {"name": "test-key", "key": "key"}},
    },
    "placed": {
        "router": {"nodeSelector": {"pool": "cpu"}, "tolerations": [{"operator": "Exists"}], "replicas": 5},
        "ray": {"head": {"priorityClassName": "high", "env": [{"name": "A", "value": "b"}]}},
    },
}

# Only for plans whose weights are not in the image.
WITH_WEIGHTS: dict[str, Value] = {
    "host-path": {"weights": {"type": "hostPath", "hostPath": "/mnt/models", "pvc": {"existingClaim": ""}}},
    "fetched": {"weights": {"pvc": {"existingClaim": "", "size": "720Gi", "storageClassName": "nfs"}, "fetch": FETCH}},
    "object-store": {"weights": {"type": "objectStore", "objectStore": STORE, "fetch": FETCH}},
    "roce": {"gpu": {"rdmaResource": "rdma/roce"}, "rdma": {"gidIndex": 3, "hca": "mlx5", "count": 8}},
    "no-ipc-lock": {"rdma": {"ipcLock": False}},
}


R1, NANO, H100 = "values-r1-16xh200", "values-nano", "values-r1-32xh100"
TWO_POOLS: Value = {
    "plan": {
        "pools": [
            {
                "name": "long",
                "layout": {"tensor_parallel_size": 8, "data_parallel_size": 2, "expert_parallel_size": 16},
            },
            {"name": "short", "gangs": 2, "layout": {"tensor_parallel_size": 8}},
        ]
    }
}


@dataclass(frozen=True)
class Case:
    """``privileged`` are the exceptions to Pod Security "restricted" that these values ask for by name."""

    name: str
    values: Value

    @property
    def privileged(self) -> frozenset[str]:
        """hostPath weights, and RDMA's memory locks."""
        asked = set()
        if self.values.get("weights", {}).get("type") == "hostPath":
            asked.add("hostPath")
        if self.values.get("gpu", {}).get("rdmaResource") and self.values.get("rdma", {}).get("ipcLock", True):
            asked.add("IPC_LOCK")
        return frozenset(asked)


def ready_made(chart: Path) -> list[Path]:
    return sorted(chart.glob("values-*.yaml"))


def cases(chart: Path) -> Iterator[Case]:
    """Every values file as it is and with every variation, and an upgrade from one plan to another."""
    for path in ready_made(chart):
        base = values_file(path)
        yield Case(path.stem, base)
        variations = VARIATIONS | (WITH_WEIGHTS if "weights" in base else {})
        for name, variation in variations.items():
            yield Case(f"{path.stem} {name}", merge(base, variation))
        before = merge(base["plan"], {"name": "before", "engine": {"max_num_seqs": 32}})
        if path.stem == H100:
            yield Case(f"{path.stem} two-pools", merge(base, TWO_POOLS))
        yield Case(f"{path.stem} upgrade", merge(base, {"previousPlans": [before]}))


@dataclass(frozen=True)
class Wrong:
    """Values on top of a values file, and the key that Helm's message must name."""

    base: str
    values: Value
    key: str


def _layout(**sizes: int) -> Value:
    return {"plan": {"pools": [{"name": "main", "layout": sizes}]}}


_NOWHERE: Any = None

WRONG: tuple[Wrong, ...] = (
    # Shapes: values.schema.json.
    Wrong(NANO, {"routr": {}}, "routr"),
    Wrong(NANO, {"router": {"replica": 2}}, "replica"),
    Wrong(NANO, {"router": {"replicas": 0}}, "router/replicas"),
    Wrong(NANO, {"router": {"replicas": "two"}}, "router/replicas"),
    Wrong(NANO, {"router": {"processes": 0}}, "router/processes"),
    Wrong(NANO, {"router": {"ports": {"http": 70000}}}, "router/ports/http"),
    Wrong(NANO, {"router": {"autoscaling": {"type": "vpa"}}}, "router/autoscaling/type"),
    Wrong(NANO, {"image": {"tag": "latest"}}, "image/tag"),
    Wrong(NANO, {"image": {"digest": "sha256:abc"}}, "image/digest"),
    Wrong(NANO, {"image": {"pullPolicy": "Sometimes"}}, "image/pullPolicy"),
    Wrong(NANO, {"plan": {"engine": {"max_model_length": 4096}}}, "max_model_length"),
    Wrong(NANO, {"plan": {"engine": {"max_model_len": "2k"}}}, "plan/engine/max_model_len"),
    Wrong(NANO, {"plan": {"engine": {"gpu_memory_utilization": 1.5}}}, "plan/engine/gpu_memory_utilization"),
    Wrong(NANO, {"plan": {"version": "r1.plan/v9"}}, "plan/version"),
    Wrong(NANO, {"plan": {"name": "Not A Name"}}, "plan/name"),
    Wrong(NANO, {"plan": {"pools": []}}, "plan/pools"),
    Wrong(NANO, {"weights": {"type": "nfs"}}, "weights/type"),
    Wrong(NANO, {"weights": {"mountPath": "models"}}, "weights/mountPath"),
    Wrong(R1, {"weights": {"fetch": {"files": [{"name": "a", "sha256": "short"}]}}}, "sha256"),
    Wrong(NANO, {"ray": {"version": "latest"}}, "ray/version"),
    Wrong(NANO, {"ray": {"auth": {"mode": "none"}}}, "ray/auth/mode"),
    Wrong(NANO, {"ray": {"upgrade": {"type": "Rolling"}}}, "ray/upgrade/type"),
    Wrong(NANO, {"ray": {"scheduling": {"type": "slurm"}}}, "ray/scheduling/type"),
    Wrong(NANO, {"ray": {"gcsFaultTolerance": {"backend": "etcd"}}}, "ray/gcsFaultTolerance/backend"),
    Wrong(NANO, {"ray": {"worker": {"leaveSeconds": -1}}}, "ray/worker/leaveSeconds"),
    Wrong(NANO, {"networkPolicy": {"enabled": "yes"}}, "networkPolicy/enabled"),
    Wrong(NANO, {"test": {"question": ""}}, "test/question"),
    # What one value says of another: the chart's own checks.
    Wrong(NANO, {"plan": _NOWHERE}, "plan:"),
    Wrong(NANO, {"model": "deepseek-r1"}, "plan.model.name:"),
    Wrong(R1, _layout(tensor_parallel_size=3), "plan.pools[0].layout.tensor_parallel_size:"),
    Wrong(R1, _layout(tensor_parallel_size=16), "plan.pools[0].layout.tensor_parallel_size:"),
    Wrong(R1, _layout(tensor_parallel_size=8, data_parallel_size=2, expert_parallel_size=8), "expert_parallel_size:"),
    Wrong(R1, _layout(tensor_parallel_size=8, data_parallel_size=3, expert_parallel_size=24), "expert_parallel_size:"),
    Wrong(
        "values-distill-32b", _layout(tensor_parallel_size=2, expert_parallel_size=2), "layout.expert_parallel_size:"
    ),
    Wrong(R1, _layout(tensor_parallel_size=4, data_parallel_size=3), "plan.pools[0].layout:"),
    Wrong(
        R1, {"plan": {"pools": [{"name": "a", "role": "prefill"}, {"name": "b", "role": "decode"}]}}, "pools[0].role:"
    ),
    Wrong(R1, {"gpu": {"nodes": 1}}, "gpu.nodes:"),
    Wrong(R1, {"gpu": {"perNode": 4}}, "gpu.perNode:"),
    Wrong(R1, {"gpu": {"type": "H100"}}, "gpu.type:"),
    Wrong(R1, {"plan": {"fleet": {"accelerators_per_node": 16}}, "gpu": {"perNode": 16}}, "accelerators_per_node:"),
    Wrong(
        "values-r1-gb200-nvl72", {"plan": {"fleet": {"accelerators_per_node": 8}}, "gpu": {"perNode": 8}}, "per_node:"
    ),
    Wrong(R1, {"weights": {"type": "builtin"}}, "weights.type:"),
    Wrong(NANO, {"weights": {"type": "pvc", "pvc": {"existingClaim": "r1"}}}, "weights.type:"),
    Wrong(R1, {"weights": {"pvc": {"existingClaim": ""}}}, "weights.pvc.size:"),
    Wrong(R1, {"weights": {"pvc": {"existingClaim": "", "size": "720Gi"}}}, "weights.fetch.url:"),
    Wrong(R1, {"weights": {"fetch": {"url": "https://example.com"}}}, "weights.fetch.files:"),
    Wrong(R1, {"weights": {"type": "hostPath"}}, "weights.hostPath:"),
    Wrong(R1, {"weights": {"type": "objectStore"}}, "weights.objectStore.uri:"),
    Wrong(R1, {"weights": {"type": "objectStore", "objectStore": STORE}}, "weights.fetch.url:"),
    Wrong(R1, {"plan": {"model": {"checkpoint": "/data/r1"}}}, "plan.model.checkpoint:"),
    Wrong(NANO, {"router": {"autoscaling": {"type": "hpa", "maxReplicas": 1}}}, "router.autoscaling.maxReplicas:"),
    Wrong(NANO, {"router": {"autoscaling": {"type": "keda"}}}, "router.autoscaling.prometheusUrl:"),
    Wrong(NANO, {"router": {"ports": {"grpc": 8000}}}, "router.ports.grpc:"),
    Wrong(NANO, {"ray": {"gcsFaultTolerance": {"backend": "redis"}}}, "ray.gcsFaultTolerance.redisAddress:"),
    Wrong(NANO, {"ray": {"scheduling": {"type": "kueue"}}}, "ray.scheduling.queue:"),
    Wrong(
        NANO,
        {"ray": {"scheduling": {"type": "kueue", "queue": "q"}, "autoscaler": {"enabled": True}}},
        "ray.autoscaler.enabled:",
    ),
    Wrong(H100, {"ray": {"autoscaler": {"enabled": True, "maxGangs": 1}}}, "ray.autoscaler.maxGangs:"),
    Wrong(NANO, {"networkPolicy": {"enabled": False}}, "fleetToken.existingSecret:"),
    Wrong(NANO, {"router": {"service": {"type": "NodePort"}}}, "fleetToken.existingSecret:"),
    Wrong(
        NANO,
        {"router": {"service": {"type": "LoadBalancer"}}, "fleetToken": {"existingSecret": "fleet"}},
        "tenants.existingSecret:",
    ),
    Wrong(NANO, {"fleetToken": {"value": "secret"}}, "fleetToken"),
    Wrong(NANO, {"ingress": {"enabled": True, "host": "a.example.com"}}, "tenants.existingSecret:"),
    Wrong(NANO, {"gateway": {"enabled": True}}, "tenants.existingSecret:"),
    Wrong(NANO, {"ingress": {"enabled": True}, "tenants": {"anonymous": True}}, "ingress.host:"),
    Wrong(NANO, {"gateway": {"enabled": True}, "tenants": {"anonymous": True}}, "gateway.parentRefs:"),
    Wrong(NANO, {"tenants": {"anonymous": True}, "gateway": GATEWAY | {"hostnames": []}}, "gateway.hostnames:"),
    Wrong(
        NANO,
        {"tenants": {"anonymous": True}, "gateway": GATEWAY | {"grpcHostnames": ["r1.example.com"]}},
        "gateway.grpcHostnames:",
    ),
    Wrong(NANO, {"test": {"apiKey": {"name": "key"}}}, "test.apiKey.key:"),
    Wrong(
        H100,
        {
            "previousPlans": [
                {
                    "name": "old",
                    "model": {"name": "deepseek-r1", "checkpoint": "/models/other"},
                    "engine": {"max_model_len": 4096},
                    "fleet": {"accelerator": "H100"},
                }
            ]
        },
        "previousPlans:",
    ),
    Wrong(
        NANO,
        {
            "previousPlans": [
                {
                    "name": "old",
                    "model": {"name": "older", "checkpoint": "builtin:r1-nano", "aliases": ["deepseek-r1"]},
                    "engine": {"max_model_len": 2048},
                    "fleet": {"accelerator": "cpu", "kv_cache_gib_per_rank": 0.5},
                }
            ]
        },
        "previousPlans:",
    ),
)
