"""Timing on a GPU: `make bench-kernels`, and `python -m r1_kernels.bench.tune` for the table of a GPU's tiles."""
