"""Tasks of the command line; each has one function, `run(config, workdir)`."""

from xmae_jax.tasks import train

TASKS = {"train": train.run}
