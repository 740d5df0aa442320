"""Named runs; each file has `get_config(arg)` and takes ":smoke"."""
