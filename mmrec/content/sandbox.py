"""Worker processes that decode what shops send: a medium that eats memory, hangs or crashes costs itself alone.

In: a function of one medium's bytes, and media. Out: its arrays in order, or `BadMedia` for the medium that broke a
limit: too_large (memory), too_slow (time), crashed (signal or exit status).
A verdict never depends on companions: a worker that fails after it has done others is replaced, and the medium at which
it failed is looked at once more as the first of a fresh worker; only that look counts. A shop's bytes could take a
worker over, so what comes back is never unpickled.
Trade-off: workers are plain child processes, not `multiprocessing` or a pool of Pebble: those import the parent's main
module again, with all it holds, and can't be started by daemons. The limit on memory holds on Linux only.
"""

from __future__ import annotations

import builtins
import json
import math
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

from mmrec.content.media import BadMedia
from mmrec.content.video import FRAMES, is_video
from mmrec.errors import InputError, TransientError

# media sent at once: 16, or as many as are a megabyte; a video comes back as several pictures, and counts as those
_CHUNK, _CHUNK_BYTES = 16, 1 << 20
_START_S = 120.0  # imports, on a machine that is busy
_FILES = 32
_MEMORY_STATUS = 112  # how a worker says that its memory ran out; it can't count on more than its exit
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from mmrec.content import sandbox; sandbox._serve()"
# more threads or arenas would each reserve address space that no medium asked for
_ENV = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}


class Sandbox:
    """Up to `workers` processes, started at first use; they end with this object or, however it dies, its process.

    Args:
        memory_mb: address space that a medium may take, on top of what a worker holds after its imports.
        seconds: time of clock, and of processor, that a medium may take.

    Raises: InputError: a limit that is not positive.
    """

    def __init__(self, workers: int = 1, memory_mb: int = 1024, seconds: float = 20) -> None:
        for name, value in (("workers", workers), ("memory_mb", memory_mb), ("seconds", seconds)):
            if value <= 0:
                raise InputError("a limit is not positive", where=f"Sandbox: {name}", value=value, valid="more than 0",
                                 next="give a positive one")  # fmt: skip
        self.workers, self.memory_mb, self.seconds = workers, memory_mb, seconds
        self._threads = ThreadPoolExecutor(workers, "sandbox")
        self._lock, self._all, self._idle = threading.Lock(), set[_Worker](), list[_Worker]()
        self._closed = False
        # the set, not self, which would never go
        self._end = weakref.finalize(self, _end_all, self._all)

    def __reduce__(self) -> tuple[Any, ...]:
        return Sandbox, (self.workers, self.memory_mb, self.seconds)  # its processes stay where they are

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers; what is under way is given up."""
        with self._lock:
            self._closed = True
            for worker in self._all:
                worker.process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._end()

    def map(self, work: Callable[[bytes], np.ndarray], raw: Iterable[bytes]) -> Iterator[np.ndarray | BadMedia]:
        """`work` of each medium, in order; decoded a few chunks ahead of who asks.

        Args:
            work: a function of an importable module, or a partial of one: bytes to an array without objects.

        Raises: what `work` raises other than BadMedia and MemoryError (as RuntimeError where it is no built-in
        exception); TransientError: a worker did not start.
        """
        job = bytes(ForkingPickler.dumps((work, self.memory_mb, self.seconds)))
        return self._map(job, raw)

    def _map(self, job: bytes, raw: Iterable[bytes]) -> Iterator[np.ndarray | BadMedia]:
        waiting: deque[Future[list[np.ndarray | BadMedia]]] = deque()
        try:
            for chunk in _chunks(raw):
                waiting.append(self._threads.submit(self._chunk, job, chunk))
                if len(waiting) > 2 * self.workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _chunk(self, job: bytes, raw: list[bytes]) -> list[np.ndarray | BadMedia]:
        out: list[np.ndarray | BadMedia] = []
        again = False  # the next medium is one at which a worker failed that had done others
        while len(out) < len(raw):
            worker = self._take(job, fresh=again)
            try:
                status = worker.run(raw[len(out) : len(out) + 1] if again else raw[len(out) :], out, self.seconds)
            except BaseException:  # a bug in `work`: it may have left anything behind
                self._drop(worker)
                raise
            if status is None:
                with self._lock:
                    self._idle.append(worker)
                again = False
                continue
            self._drop(worker)
            self._check_open()
            again = worker.done > 0
            if not again:
                out.append(BadMedia(self._reason(status)))
        return out

    def _reason(self, status: int) -> str:
        if status == _MEMORY_STATUS:
            return f"too_large: more than {self.memory_mb} MB"
        if status == -signal.SIGXCPU:
            return f"too_slow: more than {self.seconds:g} s"
        return f"crashed: signal {-status}" if status < 0 else f"crashed: exit status {status}"

    def _take(self, job: bytes, fresh: bool) -> _Worker:
        with self._lock:
            while self._idle and not fresh:
                worker = self._idle.pop()
                if worker.job == job:
                    return worker
                self._all.discard(worker)
                worker.end()
            self._check_open()
            worker = _Worker(job)
            self._all.add(worker)
        try:
            worker.wait_ready()
        except BaseException:
            self._drop(worker)
            self._check_open()
            raise
        return worker

    def _drop(self, worker: _Worker) -> None:
        with self._lock:
            self._all.discard(worker)
        worker.end()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the sandbox was closed")


class _Worker:
    """The parent's side of one process; `done` media were answered."""

    def __init__(self, job: bytes) -> None:
        self.job, self.done = job, 0
        self.connection, there = Pipe()
        with there:
            command = [sys.executable, "-c", _BOOT, json.dumps(sys.path), str(there.fileno())]
            self.process = subprocess.Popen(command, pass_fds=(there.fileno(),), stdin=subprocess.DEVNULL,
                                            stdout=subprocess.DEVNULL, env=os.environ | _ENV)  # fmt: skip

    def wait_ready(self) -> None:
        try:
            self.connection.send_bytes(self.job)
            if self.connection.poll(_START_S):
                _unpacked(self.connection.recv_bytes())
                return
            said = f"nothing in {_START_S:g} s"
        except (EOFError, OSError):
            said = f"ended with {self.ended()}"
        raise TransientError(
            "a process that decodes pictures and sounds did not start",
            where="content sandbox",
            value=said,
            valid="a machine with memory and processes to spare",
            next="mmrec embed",
        )

    def run(self, raw: list[bytes], out: list[np.ndarray | BadMedia], seconds: float) -> int | None:
        """Append the answers to `out`; None, or the status with which the process ended before all were there."""
        for n in range(len(raw)):
            try:
                if n == 0:
                    self.connection.send(raw)
                if not self.connection.poll(seconds):
                    self.process.kill()
                    return -signal.SIGXCPU  # as one that took the processor too long
                answer = self.connection.recv_bytes()
            except (EOFError, OSError):
                return self.ended()
            self.done += 1
            out.append(_unpacked(answer))
        return None

    def ended(self) -> int:
        """The exit status of a process that closed its connection."""
        try:
            return self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()


def _end_all(workers: set[_Worker]) -> None:
    while workers:
        workers.pop().end()


def _chunks(raw: Iterable[bytes]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    size = count = 0
    for data in raw:
        own = FRAMES if is_video(data) else 1
        if chunk and (count + own > _CHUNK or size + len(data) > _CHUNK_BYTES):
            yield chunk
            chunk, size, count = [], 0, 0
        chunk.append(data)
        size, count = size + len(data), count + own
    if chunk:
        yield chunk


# Answers: a letter, then its load. B: a reason. A: dtype and shape as JSON, a zero byte, the array's bytes.
# E: an error's type, text and traceback as JSON.


def _unpacked(answer: bytes) -> np.ndarray | BadMedia:
    kind, load = answer[:1], answer[1:]
    if kind == b"B":
        return BadMedia(load.decode())
    if kind == b"E":
        name, text, told = json.loads(load)
        known = getattr(builtins, name, None)
        plain = isinstance(known, type) and issubclass(known, Exception) and not issubclass(known, UnicodeError)
        error = known(text) if plain else RuntimeError(f"{name}: {text}")
        error.add_note(f"in a worker of the sandbox:\n{told}")
        raise error
    head, _, body = load.partition(b"\0")
    dtype, shape = json.loads(head)
    return np.frombuffer(body, dtype).reshape(shape).copy()


def _answer(work: Callable[[bytes], np.ndarray], data: bytes) -> bytes:
    try:
        array = work(data)
        if not isinstance(array, np.ndarray) or array.dtype.hasobject:
            raise TypeError(f"work gave a {type(array).__name__}, not an array without objects")
        return b"A" + json.dumps([array.dtype.str, array.shape]).encode() + b"\0" + array.tobytes()
    except BadMedia as bad:
        return b"B" + str(bad).encode()
    except MemoryError:
        raise
    except Exception as error:
        return _error(error)


def _error(error: Exception) -> bytes:
    return b"E" + json.dumps([type(error).__name__, str(error), traceback.format_exc()]).encode()


def _serve() -> None:
    """What a worker runs, from its first line to its last; the connection's number is its last argument."""
    connection = Connection(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a person's Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_parent, args=(connection.fileno(),), daemon=True).start()
    try:
        work, memory_mb, seconds = connection.recv()
        _limit(memory_mb)
        connection.send_bytes(b'A["|u1", [0]]\0')
    except EOFError:
        os._exit(0)
    except Exception as error:
        connection.send_bytes(_error(error))
        os._exit(1)
    try:
        while True:
            for data in connection.recv():
                used = resource.getrusage(resource.RUSAGE_SELF)
                _cap(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + seconds), final=False)
                connection.send_bytes(_answer(work, data))
    except MemoryError:
        os._exit(_MEMORY_STATUS)
    except (EOFError, OSError):  # the parent is gone
        os._exit(0)


def _end_with_parent(connection: int) -> None:
    hung_up = select.poll()
    hung_up.register(connection, 0)  # no event but the other end's close
    hung_up.poll()
    os._exit(0)


def _limit(memory_mb: int) -> None:
    sys.dont_write_bytecode = True
    if sys.platform == "linux":  # elsewhere the kernel doesn't hold it
        with open("/proc/self/statm") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
        _cap(resource.RLIMIT_AS, held + (memory_mb << 20))
    _cap(resource.RLIMIT_CORE, 0)
    _cap(resource.RLIMIT_FSIZE, 0)
    _cap(resource.RLIMIT_NOFILE, _FILES)
    # decoders in C write warnings about hostile bytes there; what goes wrong is told over the connection
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _cap(what: int, limit: int, final: bool = True) -> None:
    hard = resource.getrlimit(what)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(what, (limit, limit if final else hard))
