"""Faults at a file-system call: builds preload.c, and steers it from outside.

In: a folder for the library and the control file. Out: `Faults`: an environment for a process, and a switch that
works from any process of its tree, before and after a fork, also of one that is killed.
Trade-off: the library must be there when a process starts, so a test starts a process of its own; inside it, a
fork for each fault costs milliseconds, because everything is imported already.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("preload.c")
MODES = {"eio": 1, "full": 2, "short": 3, "kill_before": 4, "kill_after": 5, "torn": 6, "limit": 7, "trace": 8}
CONTROL = "FAULTS_CONTROL"  # not MMREC_...: those are settings


class _Control(ctypes.Structure):
    _fields_ = (
        ("armed", ctypes.c_int32), ("mode", ctypes.c_int32), ("at", ctypes.c_int64), ("calls", ctypes.c_int64),
        ("fired", ctypes.c_int64), ("bytes_left", ctypes.c_int64), ("what", ctypes.c_char * 512),
        ("prefix", ctypes.c_char * 1024), ("trace", ctypes.c_char * 1024),
    )  # fmt: skip


def build(folder: Path) -> Path:
    """Compile the library into `folder`; gets a compiler with apt-get where root may, else the compiler's absence is an error."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for words in (["update"], ["install", "-y", "--no-install-recommends", "gcc", "libc6-dev"]):
            subprocess.run(["apt-get", "-q", *words], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                           env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})  # fmt: skip
        compiler = shutil.which("gcc")
    if compiler is None:
        raise AssertionError("the fault sweep needs a C compiler: apt-get install gcc libc6-dev")
    library = folder / "preload.so"
    done = subprocess.run([compiler, "-O2", "-Wall", "-Wno-unused-result", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl", "-pthread"],
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        raise AssertionError(f"preload.c does not compile:\n{done.stderr}")
    return library


class Faults:
    """The switch. `calls`: counted since it was armed; `fired`: whether the chosen one came; `what`: what that was."""

    def __init__(self, control: Path) -> None:
        if not control.exists():
            control.write_bytes(b"\0" * mmap.PAGESIZE)
        self.control = control
        with control.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), ctypes.sizeof(_Control))
        self._c = _Control.from_buffer(self._shared)

    def environment(self, library: Path) -> dict[str, str]:
        """What a process is started with to be steered from here."""
        return os.environ | {"LD_PRELOAD": str(library), CONTROL: str(self.control), "OPENBLAS_NUM_THREADS": "1"}

    def arm(self, mode: str, prefix: Path, at: int = 0, *, bytes_left: int = 0, trace: Path | None = None) -> None:
        """From now on the `at`-th call below `prefix` is the fault; `full`: and all that would grow after it."""
        c = self._c
        c.armed, c.mode, c.at, c.calls, c.fired, c.bytes_left = 0, MODES[mode], at, 0, 0, bytes_left
        c.what, c.prefix, c.trace = b"", os.fsencode(prefix.resolve()), os.fsencode(trace) if trace else b""
        c.armed = 1

    def disarm(self) -> None:
        self._c.armed = 0

    @property
    def calls(self) -> int:
        return int(self._c.calls)

    @property
    def fired(self) -> bool:
        return bool(self._c.fired)

    @property
    def what(self) -> str:
        return os.fsdecode(self._c.what)
