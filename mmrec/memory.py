"""The memory a run takes, its children's with it.

In: a block of work. Out: the greatest resident size of this process and its descendants together, looked at ten times
a second. Trade-off: pages that processes share are counted for each, so the number is an upper bound; what rises and
falls within a tenth of a second is not seen.
"""

from __future__ import annotations

import threading

import psutil


class Peak:
    """`with Peak() as peak: ...; peak.megabytes`."""

    def __init__(self, every_s: float = 0.1) -> None:
        self.every_s, self.bytes = every_s, 0
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._keep_looking, daemon=True)

    def __enter__(self) -> Peak:
        self._look()
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watch.join()

    @property
    def megabytes(self) -> int:
        """MiB, rounded."""
        return round(self.bytes / 1024**2)

    def _keep_looking(self) -> None:
        while not self._done.wait(self.every_s):
            self._look()

    def _look(self) -> None:
        own, total = psutil.Process(), 0
        for process in (own, *own.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.Error:  # it ended in between
                continue
        self.bytes = max(self.bytes, total)
