"""The whole nano stack beside its peers: ``python -m r1_bench.peers``, ``make bench-peers``."""
