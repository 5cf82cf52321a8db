"""Two Ray nodes, each with accelerators enough for all, and two pools: prints on which nodes their gangs are put."""

from __future__ import annotations

import json

import ray
from r1_cluster.plan import Layout, Plan, Pool
from r1_serve.workers.application import deployment_options, pool_resource
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, placement_group_table

POOLS = (Pool(name="big", layout=Layout(tensor_parallel_size=2, data_parallel_size=2)), Pool(name="small", gangs=2))


def main() -> None:
    plan = Plan.load("nano-tp1").model_copy(update={"pools": POOLS})
    cluster = Cluster()
    node_of = {}
    for pool in POOLS:
        own = {pool_resource(pool): pool.gangs * pool.layout.accelerators}
        node = cluster.add_node(
            num_cpus=2, num_gpus=8, resources=own, include_dashboard=False, object_store_memory=80 << 20
        )
        node_of[node.node_id] = pool.name
    ray.init(address=cluster.address, log_to_driver=False)
    placed = {}
    for pool in reversed(POOLS):  # small first: free to go anywhere, it might take what big needs
        bundles = deployment_options(plan, pool, threads=1)["placement_group_bundles"]
        groups = [placement_group(bundles * pool.layout.data_parallel_size) for _ in range(pool.gangs)]
        ray.get([group.ready() for group in groups], timeout=60)
        found = {node for group in groups for node in placement_group_table(group)["bundles_to_node_id"].values()}
        placed[pool.name] = sorted(node_of[node] for node in found)
    print(json.dumps(placed))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
