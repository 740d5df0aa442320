"""Take a run back to one of its checkpoints, and past the batches that led it astray.

As by hand in PaLM (Chowdhery et al., arXiv 2204.02311, section 5.1): start again before the spike,
with other batches. What came after is set aside, not deleted, and the next start goes on.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from xmae_jax import checkpoint, lock
from xmae_jax.config import ConfigError
from xmae_jax.rundir import last_logged, read_run, set_aside, set_aside_after
from xmae_jax.writers import Writer


def run(workdir: Path, step: int | None) -> None:
    """Make `step` the newest; the batches from there to the last logged step are passed over.

    Raises ConfigError if the run has no such step, and CheckpointError if it does not verify.
    """
    if not (workdir / "run.json").is_file():
        raise ConfigError(f"{workdir} is no run: run.json is not there")
    with lock.acquire(workdir):
        record = read_run(workdir)
        assert record is not None
        there = checkpoint.own_steps(workdir, record.id)
        if step not in there:
            which = "--step is not given" if step is None else f"there is no checkpoint {step}"
            listed = ", ".join(map(str, there)) or "none"
            raise ConfigError(f"{which}; those of {workdir}: {listed}")
        folder = workdir / "checkpoints"
        try:
            leaves = checkpoint.read_digest(folder / str(step), record.id)["leaves"]
            checkpoint.read_back(folder / str(step), leaves)
        except checkpoint.Unusable as error:
            raise checkpoint.CheckpointError(f"{folder / str(step)}: {error}") from None
        reached = max(*there, last_logged(workdir))
        # In this order: were it killed half-way, the same command would do the rest.
        for newer in (n for n in there if n > step):
            set_aside(folder / str(newer))
        set_aside_after(workdir, step)
        passed = max((offset for _, offset in record.offsets), default=0) + reached - step
        offsets = (*(o for o in record.offsets if o[0] < step), (step, passed))
        dataclasses.replace(record, offsets=offsets).write()
        event = {"event": "rollback", "from": reached, "to": step, "batches_passed": reached - step}
        writer = Writer(workdir, active=True)
        writer.write("event", step, event)
        writer.close()
    print(
        f"{workdir} goes on from step {step}; the batches of steps {step + 1} to {reached} are"
        " passed over, and what came of them lies in abandoned/"
    )
