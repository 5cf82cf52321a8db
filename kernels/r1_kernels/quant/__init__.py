"""FP8 (e4m3) activations in groups of 128, plain or fused with SwiGLU."""
