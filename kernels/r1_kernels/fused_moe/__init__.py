"""The routed experts of a MoE layer: two grouped GEMMs with everything between and after them fused in."""
