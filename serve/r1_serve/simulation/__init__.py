"""``r1 simulate``: a Plan under a Workload, without a GPU. The simulator itself is ``r1_cluster.simulator``."""
