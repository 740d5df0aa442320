"""Check the checkpoints of a run: which read back as they were saved."""

from __future__ import annotations

import json
from pathlib import Path

from xmae_jax import checkpoint
from xmae_jax.rundir import read_run


def run(workdir: Path) -> None:
    """Print a JSON report, changing nothing; CheckpointError if a step of the run is damaged.

    Every directory named like a step is read whole: "verified", "damaged" or "foreign".
    """
    record = read_run(workdir)
    steps = checkpoint.verify(workdir, record.id if record else None)
    print(json.dumps({"workdir": str(workdir), "steps": steps}, indent=1))
    if record is None:
        raise checkpoint.CheckpointError(
            f"{workdir}/run.json is missing, without which a run takes no step for its own"
        )
    damaged = [str(line["step"]) for line in steps if line["status"] == "damaged"]
    if damaged:
        raise checkpoint.CheckpointError(f"{workdir}: damaged: step {', '.join(damaged)}")
    if not any(line["status"] == "verified" for line in steps):
        raise checkpoint.CheckpointError(f"{workdir} has no checkpoint that verifies")
