"""Flax NNX modules; their files name no mesh axis and no objective."""
