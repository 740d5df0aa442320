"""SIGTERM and SIGINT, remembered so that the loop can save before it leaves."""

from __future__ import annotations

import os
import signal
from typing import Any

from jax.experimental import multihost_utils

from xmae_jax import hosts


class Stop:
    """Says when to stop, at the same place on every process.

    With several processes JAX itself takes note of SIGTERM, on whichever of them, and names the
    next `poll` that none has passed; all must poll equally often. Our own handler would be in its
    way.
    """

    asked = False
    """What the last poll said; with one process, whether there was a signal."""

    def __enter__(self) -> Stop:
        self._polls = 0
        handlers: dict[int, Any] = {signal.SIGTERM: self._ask, signal.SIGINT: self._ask}
        if hosts.several():
            handlers = {signal.SIGINT: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
        self._before = {s: signal.signal(s, handler) for s, handler in handlers.items()}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def poll(self) -> bool:
        """Tell whether to stop here."""
        if hosts.several() and not self.asked:
            self._polls += 1
            if multihost_utils.reached_preemption_sync_point(self._polls):
                self._ask()
        return self.asked

    def _ask(self, *_: Any) -> None:
        if not self.asked and hosts.is_first():
            print("stopping after this step", flush=True)
        self.asked = True
