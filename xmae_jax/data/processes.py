"""What a worker process does for the process that started it."""

import multiprocessing
import multiprocessing.connection
import os
import threading


def die_with_parent() -> None:
    """End this worker as soon as its parent is gone.

    A worker outlives a parent that is killed, holds its memory, and may write into the folder of
    the run that follows.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
