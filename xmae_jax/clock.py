"""Where the time goes, and an end to waiting: the clock of the loop and its watchdog."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HUNG = 134
"""Exit code of a run that stood still: that of an abort, on which launchers start again."""


class Clock:
    """Seconds a step by what they were spent on; evaluation and pictures do not count.

    Every block that begins is a sign of life. A run that gives none for `patience` seconds writes
    the stack of each of its threads and leaves with code 134.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        total_steps: int,
        mfu_of_speed: float | None,
        patience: float,
        report: Path,
    ):
        self._batch, self._total, self._mfu = batch_size, total_steps, mfu_of_speed
        self._spent = {"data": 0.0, "ckpt": 0.0, "paused": 0.0}
        self._since, self._start = 0, time.monotonic()
        self._patience, self._report = patience, report
        self._idle, self._doing, self._closed = 0.0, "start", threading.Event()

    def __enter__(self) -> Clock:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._closed.set()

    def start(self, first: int) -> None:
        """Begin to measure, after `first` steps."""
        self._since, self._start = first, time.monotonic()

    def alive(self, doing: str) -> None:
        """Tell the watchdog what the run is at."""
        self._idle, self._doing = 0.0, doing

    @contextlib.contextmanager
    def time(self, what: str) -> Iterator[None]:
        """Add the time of a block to `what`: "data", "ckpt", or "paused" to leave it out."""
        self.alive(what)
        start = time.monotonic()
        try:
            yield
        finally:
            self._spent[what] += time.monotonic() - start
            self.alive("step")

    def read(self, done: int) -> dict[str, float]:
        """Return seconds a step since the last reading, films a second, and mfu; start anew."""
        now, steps = time.monotonic(), done - self._since
        wall = max(now - self._start - self._spent["paused"], 1e-9)
        out = {
            "img_per_sec": steps * self._batch / wall,
            "t_data": self._spent["data"] / steps,
            "t_step": (wall - self._spent["data"] - self._spent["ckpt"]) / steps,
            "t_ckpt": self._spent["ckpt"] / steps,
        }
        if self._mfu is not None:
            out["mfu"] = out["img_per_sec"] * self._mfu
        self._start, self._since = now, done
        self._spent.update(data=0.0, ckpt=0.0, paused=0.0)
        return out

    def progress(self, done: int, line: dict[str, Any]) -> str:
        """Write the progress line."""
        seconds = sum(line[name] for name in ("t_data", "t_step", "t_ckpt"))
        left = int(seconds * (self._total - done))
        return (
            f"step {done:>{len(str(self._total))}}/{self._total}"
            f"  loss {line['training_loss']:.5f}  {line['img_per_sec']:.1f} img/s"
            f"  data wait {100 * line['t_data'] / max(seconds, 1e-9):.0f} %"
            f"  left {left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
        )

    def _watch(self) -> None:
        # Ticks are counted, not hours: a laptop that sleeps, or a process that is stopped and
        # goes on, makes none.
        tick = self._patience / 20
        while not self._closed.wait(tick):
            self._idle += tick
            if self._idle > self._patience:
                self._leave()

    def _leave(self) -> None:
        # In a thread of its own: what hangs may be the disk or the pipe that is written to.
        teller = threading.Thread(target=self._tell, daemon=True)
        teller.start()
        teller.join(10)
        for child in multiprocessing.active_children():  # one that is stopped ends no other way
            child.kill()
        os._exit(HUNG)

    def _tell(self) -> None:
        line = f"error: no sign of life for {self._patience:g} s, in: {self._doing}"
        print(f"{line}; the stack of every thread:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(all_threads=True)
        self._report.parent.mkdir(exist_ok=True)
        with self._report.open("w") as file:
            print(line, file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
        print(f"{line}; stacks also in {self._report}", file=sys.stderr, flush=True)
