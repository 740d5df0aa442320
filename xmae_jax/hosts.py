"""The other processes of a run: what they agree on, and how one learns that another has failed.

JAX's coordination service on process 0 carries it, and no device does, so that a process hears of
the others while its devices wait for ones that answer no more. With one process all of it is
nothing. Agreeing goes by turn: every process calls the same functions in the same order.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

import jax
from jax._src import distributed  # the key-value store has no public name

T = TypeVar("T")

_LAUNCH = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_DAY_MS = 24 * 3600 * 1000
"""For as long as the others are alive and well they are waited for; watchdogs end what hangs."""
_POLL_S = 1.0
_GRACE_S = 3.0
"""For a process that has heard of a failure to come to an end of its own."""
_LOST = 134
"""What JAX's own abort gives when a process is lost."""
_FAILED = "xmae_jax/failed"
_TOLD = "xmae_jax/told"

_turns = itertools.count()
_closed = threading.Event()
_heartbeat_s = 0.0


def start(heartbeat_seconds: float, patience: float) -> None:
    """Join the other processes; before any device is touched.

    Who they are stands in JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or is what
    JAX finds out (SLURM, TPU pods, GKE, Open MPI); ValueError if it does not. They are waited for
    as long as `patience`, in seconds; after that, or if the port is taken, this process ends with
    134. One that is not heard of for `heartbeat_seconds` is taken for dead, and JAX ends the others
    with 134.
    """
    global _heartbeat_s
    given = [os.environ.get(name) for name in _LAUNCH]
    known: dict[str, Any] = {}
    if None not in given:
        address, count, index = given
        known = dict(
            coordinator_address=address, num_processes=int(count or ""), process_id=int(index or "")
        )
    try:
        jax.distributed.initialize(
            **known,
            initialization_timeout=int(patience),
            heartbeat_timeout_seconds=int(heartbeat_seconds),
        )
    except jax.errors.JaxRuntimeError as error:
        print(f"error: --distributed: {error}", file=sys.stderr, flush=True)
        os._exit(_LOST)  # what is half joined may crash at Python's own end
    _heartbeat_s = heartbeat_seconds
    if several():
        threading.Thread(target=_watch, name="hosts", daemon=True).start()


def several() -> bool:
    """Tell whether there is another process."""
    return distributed.global_state.num_processes > 1


def own() -> int:
    """Return the number of this process."""
    return distributed.global_state.process_id


def is_first() -> bool:
    """Tell whether this is process 0, which alone writes for people and decides what files say."""
    return own() == 0


def from_first(make: Callable[[], T]) -> T:
    """Return on every process what `make` returns on the first, which alone calls it: JSON."""
    if not several():
        return make()
    key = f"xmae_jax/{next(_turns)}"
    if is_first():
        _client().key_value_set(key, json.dumps(make()))
    return json.loads(_client().blocking_key_value_get(key, _DAY_MS))


def from_all(value: T) -> list[T]:
    """Return the value of every process, in their order, once all have come here: JSON."""
    if not several():
        return [value]
    key = f"xmae_jax/{next(_turns)}"
    _client().key_value_set(f"{key}/{own()}", json.dumps(value))
    _client().wait_at_barrier(key, _DAY_MS)
    found = {int(name.rpartition("/")[2]): text for name, text in _client().key_value_dir_get(key)}
    return [json.loads(found[index]) for index in sorted(found)]


def together(run: Callable[[], T], kind: type[Exception]) -> T:
    """Return what `run` returns; if it raises `kind` on one process, raise that on all."""
    result, trouble = None, None
    try:
        result = run()
    except kind as error:
        if not several():
            raise
        trouble = str(error)
    for told in from_all(trouble):
        if told is not None:
            raise kind(told)
    return result  # pyright: ignore[reportReturnType]


def wait_for_the_cause(error: BaseException) -> None:
    """Give the news of a process that is gone the time to come, if `error` may come of that.

    What is left of a collective fails at once, and only the heartbeat, or the process itself, can
    say why: either ends this process. One that is still here after that has an error of its own.
    """
    if several() and any(isinstance(e, jax.errors.JaxRuntimeError) for e in _chain(error)):
        seconds = _heartbeat_s + 5
        text = " ".join(str(error).split())[:300]
        told = f"process {own()}: {text}\nIs another process gone? Waiting {seconds:g} s for word."
        print(told, file=sys.stderr, flush=True)
        time.sleep(seconds)


def leave(code: int, text: str) -> None:
    """End this process and all others with `code`; return if there are none."""
    if several():
        with suppress(jax.errors.JaxRuntimeError):  # another came first, or process 0 is gone
            _client().key_value_set(f"{_FAILED}/first", json.dumps([own(), code, text]))
        with suppress(jax.errors.JaxRuntimeError):
            code = json.loads(_client().key_value_dir_get(_FAILED)[0][1])[1]
        _end(code)


def close() -> None:
    """Stop listening: the run is over, here and everywhere."""
    _closed.set()


def _client() -> Any:
    return distributed.global_state.client


def _chain(error: BaseException | None) -> Any:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _watch() -> None:
    """End this process when another has failed, whatever its main thread waits for."""
    while not _closed.wait(_POLL_S):
        with suppress(jax.errors.JaxRuntimeError):  # without process 0, JAX ends this one
            for _, found in _client().key_value_dir_get(_FAILED):
                index, code, text = json.loads(found)
                if index == own() or _closed.wait(_GRACE_S):
                    return
                told = f"process {index} has ended the run with {code}: {text}"
                print(told, file=sys.stderr, flush=True)
                _end(code)


def _end(code: int) -> NoReturn:
    """Leave without waiting for anybody; process 0, whose end ends the others, is the last."""
    with suppress(jax.errors.JaxRuntimeError):
        _client().key_value_set(f"{_TOLD}/{own()}", "")
        deadline = time.monotonic() + 2 * (_POLL_S + _GRACE_S)
        while is_first() and time.monotonic() < deadline:
            if len(_client().key_value_dir_get(_TOLD)) == distributed.global_state.num_processes:
                time.sleep(_POLL_S)
                break
            time.sleep(0.1)
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
