"""Stands between a task and its command: what the command started ends with the task, whatever ended the task.

In: `python guard.py PARENT GRACE COMMAND...`. Out: the command's exit code (128 + n after signal n), once nothing that
descends from it is left. The kernel sends SIGTERM when the parent dies (PR_SET_PDEATHSIG); orphans are handed to this
process (PR_SET_CHILD_SUBREAPER), so that those which left group and session are found, too.
Trade-off: Linux only, where it needs nothing but the standard library; elsewhere the process group is all it ends.
"""

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress

PDEATHSIG, SUBREAPER = 1, 36  # <linux/prctl.h>
STOP = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def start(command: list[str]) -> int:
    """Fork and execute; the child dies with this process, should someone kill even that."""
    me = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        prctl(PDEATHSIG, signal.SIGKILL)
        if os.getppid() != me:
            os._exit(137)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    os._exit(127)


def reap(codes: dict[int, int]) -> None:
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            code = os.waitstatus_to_exitcode(found[1])
            codes[found[0]] = code if code >= 0 else 128 - code


def below() -> list[int]:
    """Every living process that descends from this one."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc") if sys.platform == "linux" else ()):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()  # a command's name may hold spaces and brackets
        except OSError:
            continue
        if fields and fields[0] not in (b"Z", b"X"):
            children.setdefault(int(fields[1]), []).append(int(name))
    found, todo = [], [os.getpid()]
    while todo:
        todo += (more := children.get(todo.pop(), []))
        found += more
    return found


def sweep(grace: float, codes: dict[int, int]) -> None:
    """SIGTERM to all below, SIGKILL to those that are left after `grace` seconds."""
    end = time.monotonic() + grace
    last = end + 5  # a process in the kernel's hands can't be waited for
    first = grace > 0
    while time.monotonic() < last:
        reap(codes)
        alive = below()
        if not alive:
            return
        kill = time.monotonic() >= end
        for pid in alive if kill or first else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if kill else signal.SIGTERM)
        first = False
        time.sleep(0.02)


def main(parent: int, grace: float, command: list[str]) -> int:
    # blocked and fetched one by one: no signal falls between two statements
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP | {signal.SIGCHLD})
    prctl(PDEATHSIG, signal.SIGTERM)
    prctl(SUBREAPER, 1)
    if os.getppid() != parent:
        return 137
    codes: dict[int, int] = {}
    child = start(command)
    while child not in codes:
        if signal.sigwait(STOP | {signal.SIGCHLD}) in STOP:
            break
        reap(codes)
    # with the parent gone, nobody waits for a clean end, and a retry may begin
    sweep(grace if os.getppid() == parent else 0, codes)
    return codes.get(child, 137)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
