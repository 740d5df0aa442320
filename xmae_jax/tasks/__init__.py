"""Tasks of the command line, a module with a function `run` each."""
