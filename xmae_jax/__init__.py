"""Masked auto-encoders for high-definition chest radiographs, in JAX and Flax NNX."""
