"""A process in which files are read: a decoder that hangs, crashes or eats memory costs one film.

Files are data from anywhere and go through a dozen decoders in C. A child process reads them one at
a time under a limit of memory; where it dies or takes too long, the file is rejected and another
child goes on.
"""

import contextlib
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import cv2

from xmae_jax.data.film import FilmError
from xmae_jax.data.processes import die_with_parent

SECONDS = 20.0  # of computing for a file; the largest film that is read takes 5
CLOCK = 120.0  # seconds after which a child that does not compute is given up
MEMORY = 1 << 30  # bytes above what the child has when it is ready
_START = 300.0  # seconds to import, and to load and compile the lung model
PASSING = ("no answer within", "crashes the decoder", "cannot be read")
"""Beginnings of reasons that may lie in the machine and not in the file."""

T = TypeVar("T")

# A fork of a process that has done nothing but the imports: quick, and free of our threads.
_CONTEXT = get_context("forkserver")
preload = _CONTEXT.set_forkserver_preload
"""Name the modules that children need, before the first one starts: an import counts as reading."""
preload(["xmae_jax.data.film"])


class _Lost(Exception):
    """The child is gone."""


class Sandbox:
    """One child at a time; not to be shared by threads."""

    def __init__(self) -> None:
        """Start no child yet: it starts when it is needed."""
        self._process: Any = None
        self._connection: Connection | None = None
        self._ended = False

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what a module's function returns in the child.

        Raises FilmError, the function's own or that it ended the child or did not come to an end,
        and OSError for the function's own or if the child does not start.
        """
        self._send(function, arguments)
        return self._receive(function, arguments)

    def each(self, function: Callable[..., T], calls: Iterable[tuple]) -> Iterator[T | FilmError]:
        """Yield what `call` returns, or the FilmError that it raises, for each tuple of arguments.

        The child is at the next call while the caller is at what this one gave.
        """
        waiting = iter(calls)
        now = next(waiting, None)
        if now is not None:
            self._send(function, now)
        try:
            while now is not None:
                try:
                    answer = self._receive(function, now)
                except FilmError as error:
                    answer = error
                now = next(waiting, None)
                if now is not None:
                    self._send(function, now)
                yield answer
        finally:
            if now is not None:  # left in between: its answer must not pass for another's
                self.close()

    def _receive(self, function: Callable[..., T], arguments: tuple) -> T:
        for last in (False, True):
            # The system may kill a child for another process's hunger, or stop it: try again.
            try:
                return self._wait()
            except TimeoutError:
                self.close()
                if last:
                    raise FilmError(f"no answer within {CLOCK:.0f} s") from None
            except _Lost:
                slow = self._process is not None and self._exit_code() == -signal.SIGPROF
                self.close()
                if slow:
                    raise FilmError(f"takes more than {SECONDS:.0f} s to read") from None
                if last:
                    raise FilmError("crashes the decoder, or asks for too much memory") from None
            self._send(function, arguments)
        raise AssertionError

    def _exit_code(self) -> int | None:
        self._process.join(5)
        return self._process.exitcode

    def _send(self, function: Callable[..., Any], arguments: tuple) -> None:
        if self._ended:
            raise RuntimeError("the process that reads files was ended")
        connection = self._connection or self._start()
        with contextlib.suppress(OSError):  # a child that is gone is noticed when it is waited for
            connection.send((function, arguments, SECONDS))

    def _wait(self) -> Any:
        kind, value, seconds = "", None, CLOCK
        connection = self._connection
        if connection is None:
            raise _Lost
        try:
            while kind in ("", "waits", "goes on"):
                if not connection.poll(seconds):
                    raise TimeoutError
                kind, value = connection.recv()
                seconds = _START if kind == "waits" else CLOCK
        except TimeoutError:
            raise
        except (EOFError, OSError):  # OSError: killed in the middle of its answer
            raise _Lost from None
        if kind == "film":
            raise FilmError(str(value))
        if kind == "system":
            raise OSError(value)
        return value

    def _start(self) -> Connection:
        self._connection, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self._process = process
        if not self._connection.poll(_START):
            self.close()
            raise RuntimeError(f"the process that reads files was not ready within {_START:.0f} s")
        try:
            self._connection.recv()
        except EOFError:
            self.close()
            raise RuntimeError("the process that reads files did not start; see above") from None
        return self._connection

    def end(self) -> None:
        """Stop the child for good; for other threads than the one in `call`, which then fails."""
        self._ended = True
        process = self._process
        if process is not None:
            with contextlib.suppress(ValueError):  # closed meanwhile
                process.kill()

    def close(self) -> None:
        """End the child, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None


@contextlib.contextmanager
def not_the_file() -> Iterator[None]:
    """Lift a child's limits for work that is not the file's doing, as loading a model."""
    if not _PARENT:
        yield
        return
    _PARENT[0].send(("waits", None))
    left, _ = signal.setitimer(signal.ITIMER_PROF, 0)
    _limit(free=True)
    yield
    _limit()
    signal.setitimer(signal.ITIMER_PROF, left)
    _PARENT[0].send(("goes on", None))


_PARENT: list[Connection] = []  # of a child: one connection; elsewhere empty


def _serve(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to answer
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever C code it is in
    die_with_parent()
    cv2.setNumThreads(1)  # the children share the cores out
    _PARENT.append(connection)
    _limit()
    connection.send(None)
    while True:
        try:
            function, arguments, seconds = connection.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, seconds)
        answer = _answer(function, arguments)
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send(answer)


def _answer(function: Callable[..., Any], arguments: tuple) -> tuple[str, Any]:
    try:
        return "value", function(*arguments)
    except FilmError as error:
        return "film", error.reason
    except MemoryError:
        return "film", "asks for too much memory"
    except OSError as error:  # no matter of the file: reading it raises FilmError
        return "system", error.strerror or str(error)
    except Exception as error:
        # Ours, but it must not stop the other films. Where it happened is told, and not what it
        # said: that may quote the file.
        where = "".join(traceback.format_tb(error.__traceback__))
        name = type(error).__name__
        print(f"{name} while a film was read, which is left out:\n{where}", file=sys.stderr)
        return "film", f"error of this program ({name})"


def _limit(*, free: bool = False) -> None:
    """Bound this process's memory, or free it, and let a crash leave no picture of it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    size = Path("/proc/self/statm")
    if size.exists():  # Linux; elsewhere the bound on address space means little
        used = int(size.read_text().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (hard if free else used + MEMORY, hard))
