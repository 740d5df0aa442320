"""What went wrong in a step, on record: steps that were skipped, records that are damaged."""

from __future__ import annotations

import csv
import dataclasses
import io
from math import isfinite
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xmae_jax import hosts, writers
from xmae_jax.data.batch import LoadStep
from xmae_jax.data.records import DataError
from xmae_jax.digest import flatten

IN_A_ROW = 10
"""Steps skipped in a row that end a run."""
_KEPT = 20
"""Batches kept in `debug/`, so that a run that stumbles now and then fills no disk."""


class Diverged(Exception):
    """Step after step was skipped; main exits 70."""


@dataclasses.dataclass
class Incidents:
    """Looks at each step once the next one is under way, so that no device is waited for."""

    workdir: Path
    load: LoadStep
    writer: writers.Writer
    batch_size: int
    max_bad_share: float
    epoch: int
    """Records of all sources."""
    bad_rows: int
    """Rows of damaged records so far."""
    alive: np.ndarray
    """Members of a grid that are still trained, bool; empty without one."""
    say: Any
    _told: set[str] = dataclasses.field(default_factory=set)
    _last: tuple[int, dict[str, np.ndarray], dict[str, Any]] | None = None

    def after(self, done: int, host: dict[str, np.ndarray], log: dict[str, Any]) -> None:
        """Take note of a step that was sent off, and look at the one before it.

        host: this process's rows of the batch, as loaded; log: what the step returned, the same on
        every process, so that all raise alike: Diverged, and DataError when more records are
        damaged than allowed.
        """
        self.look()
        self._last = done, host, log

    def look(self) -> None:
        """Look at the step noted last."""
        if self._last is None:
            return
        (done, host, log), self._last = self._last, None
        in_a_row = int(log["in_a_row"])
        if in_a_row:
            self._skipped(done, host, log)
        if in_a_row >= IN_A_ROW:
            hosts.from_all(None)  # all of it is on record
            raise Diverged(
                f"{in_a_row} steps in a row were skipped, up to step {done}; see {self.workdir}/"
                "debug. Checkpoints are sound: go back to one, past these batches, by\n  python -m"
                f" xmae_jax.main --task=rollback --workdir={self.workdir} --step=N\nor change the"
                " config and go on with --allow_config_change"
            )
        if self.alive.size:
            self._died(done, np.asarray(log["alive"]))
        before, self.bad_rows = self.bad_rows, int(log["bad_rows"])
        if self.bad_rows > before:
            self._bad_rows(done, host)

    def _died(self, done: int, alive: np.ndarray) -> None:
        for member in np.flatnonzero(self.alive & ~alive).tolist():
            self.writer.write("event", done, {"event": "dead_member", "member": member})
            self.say(
                f"step {done}: loss or gradient of member {member} of the grid is not finite; it is"
                " trained no further"
            )
        self.alive = alive

    def _skipped(self, done: int, host: dict[str, np.ndarray], log: dict[str, Any]) -> None:
        log = jax.device_get(log)
        cause = _cause(log)
        names = self._record_ids(host, 8)
        own = f".{hosts.own()}" if hosts.own() else ""
        folder = self.workdir / "debug" / f"step_{done}{own}"
        event = {
            "event": "spike" if cause.startswith("spike") else "nonfinite",
            "cause": cause,
            "training_loss": float(log["training_loss"]),
            "l2_grads": float(log["l2_grads"]),
            "records": names,
            "skipped": int(log["skipped"]),
        }
        more = ", ..." * (len(host["id"]) > len(names))
        self.say(f"step {done} skipped: {cause}; see {folder}; records {', '.join(names)}{more}")
        kept = [path for path in folder.parent.glob("step_*") if path.suffix == own]
        if not folder.exists() and len(kept) < _KEPT:
            self._keep(folder, host, f"step {done:,}: {cause}")
            event["debug"] = str(folder.relative_to(self.workdir))
        self.writer.write("event", done, event)

    def _keep(self, folder: Path, host: dict[str, np.ndarray], title: str) -> None:
        """Write the batch as the step saw it, whose rows they are, and how they look."""
        partial = folder.with_name(f"partial_{folder.name}")
        names = self._record_ids(host, len(host["id"]))
        table = io.StringIO()
        rows = csv.writer(table, lineterminator="\n")
        rows.writerow(("row", "id", "source", "index", "where"))
        for row, (source, index) in enumerate(host["id"].tolist()):
            where = self.load.sources[source].where(index)
            rows.writerow((row, names[row], source, index, where))
        writers.write_atomic(partial / "rows.csv", table.getvalue())
        np.savez(partial / "batch.npz", **host)  # pyright: ignore[reportArgumentType]
        if "image" in host:
            films = host["image"][:64]
            if films.ndim == 5:  # b s h w 1: of a study the first film, if there is one
                films = films[:, :1].reshape(-1, *films.shape[2:])
            writers.contact_sheet(
                partial / "thumbnails.png", films, names=names[: len(films)], title=title
            )
        partial.rename(folder)

    def _record_ids(self, host: dict[str, np.ndarray], count: int) -> list[str]:
        names = []
        for source, index in host["id"][:count].tolist():
            try:
                names.append(self.load.sources[source][index]["id"])
            except DataError:  # left out by `data.bad_records=skip`
                names.append("damaged")
        return names

    def _bad_rows(self, done: int, host: dict[str, np.ndarray]) -> None:
        own = [
            self.load.sources[source].where(index)
            for (source, index), real in zip(host["id"].tolist(), host["mask"], strict=True)
            if not real
        ]
        where, so_far = sum(hosts.from_all(own), []), self.bad_rows
        self.writer.write("event", done, {"event": "bad_record", "where": where, "rows": so_far})
        if news := sorted({*where} - self._told):
            self.say(f"step {done}: left out, from now on in silence: {'; '.join(news)}")
            self._told |= {*news}
        allowed = self.max_bad_share * max(done * self.batch_size, self.epoch)
        if so_far > allowed:
            raise DataError(
                f"{so_far} rows of damaged records by step {done}, {allowed:.2f} are allowed"
                f" (config.data.max_bad_share); the last: {where[-1]}"
            )


def _cause(log: dict[str, Any]) -> str:
    """Say which term, gradient or limit it was."""
    terms = [name for name, total in log["totals"].items() if not isfinite(total)]
    if terms:
        return f"loss term {', '.join(terms)} is not finite"
    bad = [name for name, finite in flatten(log["finite_grads"]).items() if not finite]
    if bad:
        return (
            f"gradient of {bad[0]}"
            + f" and {len(bad) - 1} more" * (len(bad) > 1)
            + " is not finite"
        )
    if not isfinite(log["training_loss"]) or not isfinite(log["l2_grads"]):
        return "the sum of loss or gradients is not finite"
    found = {"losses": log["training_loss"], "l2_grads": log["l2_grads"]}
    over = [
        f"{name} {found[name]:.4g} over {limit:.4g}"
        for name, limit in log["limits"].items()
        if found[name] > limit
    ]
    return "spike: " + ", ".join(over)
