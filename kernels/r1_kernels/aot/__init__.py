"""Ahead-of-time compilation of every kernel and tile choice, without a GPU, with a committed table."""
