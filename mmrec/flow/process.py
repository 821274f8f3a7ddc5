"""A command as a local process of a task: its log lines as they come, its output, its exit code.

In: words, environment, a callback for lines of stderr. Out: `Done`. The command runs in a session of its own below
guard.py; when the task ends, is killed, or its process dies by kill -9, nothing that the command started is left.
Trade-off: one more process a task (9 MB); only a parent outside the killed tree can end what the tree started.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mmrec.flow import guard

_GUARD = str(Path(guard.__file__))
_TAIL = 200  # lines of stderr that an error's text is looked for in


@dataclass(frozen=True)
class Done:
    """How a command ended: exit code (128 + n after signal n), everything on stdout, the last lines of stderr."""

    code: int
    stdout: str
    stderr: str


class Child:
    """One command, run once."""

    def __init__(
        self, command: list[str], env: dict[str, str], tell: Callable[[str], None], *, grace_s: float = 10
    ) -> None:
        self._command, self._env, self._tell, self._grace = command, env, tell, grace_s
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.RLock()  # kill() comes from a signal handler of the thread that runs
        self._killed = False

    def run(self) -> Done:
        """Run to the end. An exception from elsewhere, as a time-out's, ends the command before it goes on."""
        words = [sys.executable, "-I", "-S", _GUARD, str(os.getpid()), str(self._grace), *self._command]
        process = self._process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            encoding="utf-8", errors="replace", env=self._env, start_new_session=True)  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        out: list[str] = []
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        # threads read, so that a command never blocks on a full pipe while the task is being killed
        readers = [
            threading.Thread(target=lambda s=process.stdout: out.append(s.read()), daemon=True),
            threading.Thread(target=_lines, args=(process.stderr, lines), daemon=True),
        ]
        tail: deque[str] = deque(maxlen=_TAIL)
        try:
            for reader in readers:
                reader.start()
            if self._killed:
                self.kill()
            for line in self._until_ended(process.pid, lines):
                tail.append(line)
                self._tell(line)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        finally:
            self._end()
        for reader in readers:
            reader.join(5)
        code = process.returncode  # below 0: the guard itself was killed
        return Done(code if code >= 0 else 128 - code, "".join(out), "\n".join(tail))

    def kill(self) -> None:
        """End the command and all it started: SIGTERM, `grace_s` seconds, SIGKILL. Returns when they are gone."""
        self._killed = True
        with self._lock:
            if self._process is not None and self._process.returncode is None:
                self._stop(self._process.pid)

    def _until_ended(self, pid: int, lines: queue.SimpleQueue[str | None]) -> Iterator[str]:
        while True:
            try:
                line = lines.get(timeout=1)
            except queue.Empty:
                if _ended(pid):  # someone killed the guard, and an orphan holds the pipe
                    self._stop(pid)
                continue
            if line is None:
                return
            yield line

    def _stop(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + self._grace + 6
        while not _ended(pid) and time.monotonic() < end:
            time.sleep(0.02)
        # not reaped yet, so the group's number is still ours
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)

    def _end(self) -> None:
        with self._lock:
            process = self._process
            assert process is not None
            if process.returncode is None:
                self._stop(process.pid)
                process.wait()


@contextmanager
def following_parent() -> Iterator[None]:
    """SIGTERM for this process when its parent dies: a task whose supervisor is gone kills what it runs, and ends."""
    guard.prctl(guard.PDEATHSIG, signal.SIGTERM)
    try:
        yield
    finally:
        guard.prctl(guard.PDEATHSIG, 0)


def _ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _lines(stream: object, to: queue.SimpleQueue[str | None]) -> None:
    try:
        for line in stream:  # type: ignore[attr-defined]
            to.put(line.rstrip("\n"))
    finally:
        to.put(None)
