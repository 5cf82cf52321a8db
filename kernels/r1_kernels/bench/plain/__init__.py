"""vLLM's algorithm in plain Triton, the comparison where vLLM's GPU build is not installed."""
