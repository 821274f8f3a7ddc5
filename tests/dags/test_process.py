"""Commands of tasks end with their task: real processes, really killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mmrec.flow.process import Child, Done

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part of it is Linux")
# a command with a child that sleeps, and one that left group and session; their ids go to a file
FAMILY = """
import os, subprocess, sys, time
{before}
kids = [subprocess.Popen(["sleep", "300"]), subprocess.Popen(["setsid", "--fork", "sleep", "301"])]
time.sleep(.3)
open(sys.argv[1] + ".part", "w").write(str(os.getpid()))
os.rename(sys.argv[1] + ".part", sys.argv[1])
{after}
"""


def child(code: str, *args: str, grace_s: float = 5, lines: list[str] | None = None) -> Child:
    told = [] if lines is None else lines
    return Child([sys.executable, "-c", code, *args], dict(os.environ), told.append, grace_s=grace_s)


def run(code: str, *args: str, **more: object) -> Done:
    return child(code, *args, **more).run()  # type: ignore[arg-type]


def until(true: Callable[[], object], seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(true())


def alive(*marks: str) -> list[list[str]]:
    """Command lines of living processes that hold one of `marks`."""
    found = []
    for p in psutil.process_iter(["cmdline", "status"]):
        words = p.info["cmdline"] or []
        if p.info["status"] != psutil.STATUS_ZOMBIE and any(m in w for m in marks for w in words):
            found.append(words)
    return found


def family(tmp_path: Path, before: str = "", after: str = "time.sleep(300)") -> tuple[str, str, str]:
    """Code of a family whose processes carry the test's own number, the number, and the file it reports to."""
    mark = f"30{abs(hash(str(tmp_path))) % 10**9}"
    code = FAMILY.format(before=before, after=after).replace('"300"', f'"{mark}"').replace('"301"', f'"{mark}"')
    return code, mark, str(tmp_path / "ready")


@pytest.mark.parametrize("code", [0, 1, 2, 3, 75, 134])
def test_the_exit_code_the_output_and_the_last_lines_of_the_log_of_a_command_come_back(code: int) -> None:
    lines: list[str] = []
    done = run(f"import sys; print('out'); print('one\\ntwo', file=sys.stderr); sys.exit({code})", lines=lines)
    assert done == Done(code, "out\n", "one\ntwo")
    assert lines == ["one", "two"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_a_command_that_a_signal_ended_has_128_and_its_number(number: signal.Signals) -> None:
    assert run(f"import os; os.kill(os.getpid(), {int(number)})").code == 128 + number


def test_a_command_that_does_not_exist_ends_with_127_and_its_name() -> None:
    done = Child(["no-such-command-here"], dict(os.environ), lambda _: None).run()
    assert done.code == 127
    assert "no-such-command-here: No such file" in done.stderr


def test_more_output_than_a_pipe_holds_and_bytes_that_are_no_text_block_nothing() -> None:
    lines: list[str] = []
    code = "import sys; [print('x' * 999) for _ in range(3000)]; [print('e' * 99, file=sys.stderr) for _ in range(3000)]; sys.stderr.buffer.write(b'\\xff')"
    done = run(code, lines=lines)
    assert len(done.stdout) == 3_000_000
    assert len(lines) == 3001
    assert lines[-1] == "�"
    assert len(done.stderr.splitlines()) == 200  # of a long log the tail is kept


def test_lines_of_the_log_come_while_the_command_runs_not_when_it_ends() -> None:
    when: list[float] = []
    code = "import sys, time; print('begun', file=sys.stderr, flush=True); time.sleep(1.5)"
    Child([sys.executable, "-c", code], dict(os.environ), lambda _: when.append(time.monotonic())).run()
    assert time.monotonic() - when[0] > 1


@LINUX
def test_what_a_command_leaves_running_at_its_normal_end_is_ended_even_in_a_session_of_its_own(tmp_path: Path) -> None:
    code, mark, ready = family(tmp_path, after="")
    assert run(code, ready).code == 0
    assert alive(mark) == []


@LINUX
@pytest.mark.parametrize("stubborn", [False, True])
def test_kill_ends_command_children_and_those_of_another_session_and_a_deaf_one_after_the_grace(
    tmp_path: Path, stubborn: bool
) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" if stubborn else ""
    code, mark, ready = family(tmp_path, before=deaf)
    running, done = child(code, ready, grace_s=1 if stubborn else 30), []
    thread = threading.Thread(target=lambda: done.append(running.run()))
    thread.start()
    assert until(Path(ready).exists)
    assert len(alive(mark)) >= 3
    begun = time.monotonic()
    running.kill()
    took = time.monotonic() - begun
    thread.join(10)
    assert [d.code for d in done] == [137 if stubborn else 143]
    assert alive(mark) == []
    assert took > 1 if stubborn else took < 20


def test_a_kill_that_comes_before_the_command_ends_it_as_soon_as_it_is_there() -> None:
    running = child("import time; time.sleep(300)")
    running.kill()
    assert running.run().code in (137, 143)


@LINUX
def test_an_exception_in_the_task_ends_the_command_before_it_goes_on(tmp_path: Path) -> None:
    code, mark, ready = family(tmp_path)

    def ring(*_: object) -> None:
        raise TimeoutError("the task's time is up")

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 2)
        with pytest.raises(TimeoutError, match="time is up"):
            run(code, ready)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert alive(mark) == []


SUPERVISOR = """
import os, sys
from mmrec.flow.process import Child, following_parent
Child([sys.executable, "-c", sys.argv[1], sys.argv[2]], dict(os.environ), print).run()
"""
# as Airflow: a supervisor, and below it the task's process, which turns SIGTERM into on_kill
AIRFLOW_LIKE = """
import os, signal, sys, time
from mmrec.flow.process import Child, following_parent
if os.fork():
    time.sleep(300)
child = Child([sys.executable, "-c", sys.argv[1], sys.argv[2]], dict(os.environ), print)
signal.signal(signal.SIGTERM, lambda *_: child.kill())
with following_parent():
    child.run()
"""


@LINUX
@pytest.mark.parametrize("supervisor", [SUPERVISOR, AIRFLOW_LIKE])
def test_after_kill_9_of_the_supervisor_nothing_of_the_command_is_left(tmp_path: Path, supervisor: str) -> None:
    code, mark, ready = family(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", supervisor, code, ready])
    try:
        assert until(Path(ready).exists)
        assert len(alive(mark)) >= 3
    finally:
        process.kill()
        process.wait()
    assert until(lambda: not alive(mark)), alive(mark)


@LINUX
def test_a_plain_child_does_survive_kill_9_of_its_parent_so_the_test_above_tests_something(tmp_path: Path) -> None:
    code, mark, ready = family(tmp_path)
    plain = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]], start_new_session=True)"
    process = subprocess.Popen([sys.executable, "-c", plain, code, ready])
    assert until(Path(ready).exists)
    process.kill()
    process.wait()
    time.sleep(0.5)
    left = [p for p in psutil.process_iter(["cmdline"]) if any(mark in w for w in p.info["cmdline"] or [])]
    for p in left:
        p.kill()
    assert len(left) >= 3


@LINUX
def test_after_kill_9_of_the_guard_itself_the_command_dies_and_the_task_sweeps_its_session(tmp_path: Path) -> None:
    code, mark, ready = family(tmp_path)
    code = code.replace(', subprocess.Popen(["setsid"', ' or (["setsid"')  # beyond the session nobody is left to look
    running, done = child(code, ready), []
    thread = threading.Thread(target=lambda: done.append(running.run()))
    thread.start()
    assert until(Path(ready).exists)
    assert running._process is not None
    os.kill(running._process.pid, signal.SIGKILL)
    thread.join(10)
    assert [d.code for d in done] == [137]
    assert until(lambda: not alive(mark)), alive(mark)
