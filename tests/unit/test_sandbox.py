"""Workers that decode: good media come through bit for bit and in order, each bad one is refused alone, by name."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import bombs
import numpy as np
import psutil
import pytest
from PIL import Image

from mmrec.content import sandbox as module
from mmrec.content.decode import log_mel, pixels
from mmrec.content.media import BadMedia
from mmrec.content.sandbox import Sandbox
from mmrec.errors import InputError, TransientError


def photos(n: int) -> list[bytes]:
    """JPEGs of which no two are equal."""
    return [bombs.picture(Image.new("RGB", (96, 144), (6 * i % 256, i, 99)), "JPEG") for i in range(n)]


def code(got: np.ndarray | BadMedia) -> str | None:
    return str(got).split(":")[0] if isinstance(got, BadMedia) else None


def gone(pid: int, within: float = 20) -> bool:
    until = time.monotonic() + within
    while time.monotonic() < until:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def workers() -> list[int]:
    return [p.pid for p in psutil.Process().children() if "content import sandbox" in " ".join(p.cmdline())]


@pytest.fixture(scope="module")
def shared() -> Iterator[Sandbox]:
    with Sandbox(memory_mb=512, seconds=1) as box:
        yield box


def test_what_a_worker_decodes_is_bit_for_bit_what_this_process_decodes(shared: Sandbox) -> None:
    noisy = [bombs.picture(Image.fromarray(bombs.NOISE), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF")]
    raw = photos(40) + noisy
    for got, data in zip(shared.map(partial(pixels, size=160), raw), raw, strict=True):
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, pixels(data, size=160))
    noise = np.random.default_rng(1).normal(0, 0.1, (90_000, 2)).astype(np.float32)
    heard = [bombs.sound(noise[:n], rate=rate) for n in (900, 9_000, 90_000) for rate in (8_000, 16_000, 44_100)]
    for got, data in zip(shared.map(log_mel, heard), heard, strict=True):
        assert (got.dtype, got.shape) == (np.float32, (192,))
        np.testing.assert_array_equal(got, log_mel(data))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("fault", bombs.FAULTS, ids=bytes.decode)
def test_a_fault_amid_forty_good_media_costs_itself_alone(fault: bytes, workers: int) -> None:
    raw = photos(40)
    raw.insert(21, fault)
    with Sandbox(workers, memory_mb=512, seconds=1) as box:
        got = list(box.map(bombs.minefield, raw))
        assert [i for i, g in enumerate(got) if isinstance(g, BadMedia)] == [21]
        assert str(got[21]) == bombs.FAULTS[fault][1]
        for i, data in enumerate(raw):
            if i != 21:
                np.testing.assert_array_equal(got[i], pixels(data, size=16))


def test_a_verdict_does_not_depend_on_companions_or_order(shared: Sandbox) -> None:
    raw = [*photos(3), *(f for f in bombs.FAULTS if f != b"spin"), b"", b"<html>", bombs.sound(np.zeros(9999))]
    alone = [str(next(shared.map(bombs.minefield, [r]))) for r in raw]
    assert [w.split(":")[0] for w in alone[3:]] == ["too_slow", "too_large", "crashed", "crashed", "empty", "not_an_image", "silent"]
    order = np.random.default_rng(0).permutation(len(raw))
    assert [str(g) for g in shared.map(bombs.minefield, [raw[i] for i in order])] == [alone[i] for i in order]


def test_a_bug_in_the_work_is_raised_here_as_itself_and_the_sandbox_goes_on(shared: Sandbox) -> None:
    good = photos(1)
    with pytest.raises(ZeroDivisionError, match="planted") as caught:
        list(shared.map(bombs.minefield, [*good, b"bug", *good]))
    assert "bombs.py" in caught.value.__notes__[0], "where it happened"
    with pytest.raises(RuntimeError, match="error: planted"):
        list(shared.map(bombs.minefield, [b"own bug"]))
    with pytest.raises(TypeError, match="without objects"):
        list(shared.map(bombs.minefield, [b"object"]))
    assert len(list(shared.map(bombs.minefield, good * 3))) == 3


def test_work_that_no_other_process_can_find_is_refused_at_once(shared: Sandbox) -> None:
    before = workers()
    with pytest.raises((AttributeError, TypeError), match=r"[Cc]an't pickle|lambda"):
        shared.map(lambda data: np.zeros(1), photos(1))
    assert workers() == before


def test_memory_counts_on_top_of_the_libraries() -> None:
    with Sandbox(memory_mb=64) as box:
        got = list(box.map(bombs.takes, [b"40", b"100", b"50", b"80"]))
    assert [code(g) for g in got] == [None, "too_large", None, "too_large"]
    assert str(got[1]) == "too_large: more than 64 MB"


def test_a_medium_larger_than_the_memory_is_refused_and_its_neighbours_are_not() -> None:
    good = photos(1)[0]
    with Sandbox(memory_mb=32) as box:
        got = list(box.map(bombs.minefield, [good, bytes(100 << 20), good]))
    assert [code(g) for g in got] == [None, "too_large", None]


@pytest.mark.parametrize("kind", ["pictures", "sounds"])
def test_every_bomb_is_refused_by_its_name_or_harmless_within_the_limit(kind: str) -> None:
    corpus = list(bombs.pictures() if kind == "pictures" else bombs.sounds())
    work = partial(pixels, size=160) if kind == "pictures" else log_mel
    good = photos(1)[0] if kind == "pictures" else bombs.sound(bombs.SINE)
    with Sandbox(memory_mb=96) as box:
        raw = [data for _, data, _ in corpus for data in (data, good)]
        got = list(box.map(work, raw))
        peaks = list(box.map(partial(bombs.peak_of, decode=work), [good, *(data for _, data, _ in corpus)]))
    assert {name: code(g) for (name, _, _), g in zip(corpus, got[::2], strict=True)} == {n: c for n, _, c in corpus}
    for bystander in got[1::2]:
        np.testing.assert_array_equal(bystander, work(good))
    # kB; a worker that the limit ended has left no peak
    seen = [int(p[0]) for p in peaks if not isinstance(p, BadMedia)]
    assert len(seen) >= len(corpus)
    assert max(seen) - seen[0] < 96 * 1024


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_picture_that_does_not_fit_the_memory_is_not_called_broken(kind: str) -> None:
    plain = bombs.picture(Image.new("RGB", (4800, 4000), "teal"), kind)
    with Sandbox(memory_mb=24) as box:
        assert str(next(box.map(partial(pixels, size=160), [plain]))) == "too_large: more than 24 MB"
    with Sandbox() as box:
        assert np.abs(next(box.map(partial(pixels, size=160), [plain])).astype(int) - (0, 128, 128)).max() < 4


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_sound_that_does_not_fit_the_memory_is_not_called_broken(kind: str) -> None:
    hum = np.tile(bombs.SINE[:, None], (1500, 2))  # 6 minutes, 48 MB of floats
    data = bombs.sound(hum, kind)
    with Sandbox(memory_mb=40) as box:
        assert str(next(box.map(log_mel, [data]))) == "too_large: more than 40 MB"
    with Sandbox() as box:
        assert np.linalg.norm(next(box.map(log_mel, [data]))) == pytest.approx(1)


def test_a_large_camera_picture_is_read_at_a_scale_that_fits(shared: Sandbox) -> None:
    wide = Image.new("RGB", (60, 40), "teal")
    wide.paste("orange", (30, 0, 60, 40))
    big = bombs.picture(wide.resize((6000, 4000), Image.Resampling.NEAREST), "JPEG")
    got = next(shared.map(partial(pixels, size=160), [big]))
    assert np.abs(got[80, 10].astype(int) - (0, 128, 128)).max() < 4
    assert np.abs(got[80, 150].astype(int) - (255, 165, 0)).max() < 4


def test_a_worker_is_bounded_and_holds_no_model(shared: Sandbox) -> None:
    pid, size, core, files, heavy = next(shared.map(bombs.about, [b"x"])).tolist()
    assert pid != os.getpid()
    assert (size, core, heavy) == (0, 0, 0)
    assert files <= 64


def test_decoding_runs_ahead_but_not_far_however_long_the_queue_is() -> None:
    asked = 0

    def endless() -> Iterator[bytes]:
        nonlocal asked
        for data in itertools.cycle(photos(5)):
            asked += 1
            yield data

    with Sandbox(workers=2) as box:
        for n, got in enumerate(box.map(partial(pixels, size=16), endless())):
            assert not isinstance(got, BadMedia)
            assert asked - n <= 6 * module._CHUNK + 1
            if n == 1000:
                break
        assert asked > n + module._CHUNK


def test_media_of_megabytes_are_not_sent_sixteen_at_once() -> None:
    sizes = [len(c) for c in module._chunks([bytes(600_000)] * 3 + [b"x"] * 40)]
    assert sizes == [1, 1, 16, 16, 9]
    assert list(module._chunks([])) == []


def test_no_media_start_no_worker_and_the_first_medium_does() -> None:
    before = set(workers())
    box = Sandbox()
    assert list(box.map(bombs.about, [])) == []
    assert set(workers()) == before
    pid = int(next(box.map(bombs.about, [b"x"]))[0])
    assert set(workers()) - before == {pid}
    assert int(next(box.map(bombs.about, [b"x"]))[0]) == pid, "it is kept"
    del box
    gc.collect()
    assert gone(pid)


def test_a_closed_sandbox_has_no_workers_and_takes_no_work() -> None:
    with Sandbox(seconds=60) as box:
        pid = int(next(box.map(bombs.about, [b"x"]))[0])
        threading.Timer(0.5, box.close).start()
        with pytest.raises(RuntimeError, match="closed"):
            list(box.map(bombs.minefield, [b"sleep"]))
    assert gone(pid)
    with pytest.raises(RuntimeError, match=r"shutdown|closed"):
        list(box.map(bombs.about, [b"x"]))
    box.close()


def test_who_stops_asking_leaves_a_sandbox_that_works(shared: Sandbox) -> None:
    half = shared.map(bombs.minefield, photos(200))
    next(half)
    half.close()
    assert len(list(shared.map(bombs.minefield, photos(20)))) == 20


def test_a_worker_killed_between_two_calls_costs_nobody(shared: Sandbox) -> None:
    pid = int(next(shared.map(bombs.about, [b"x"]))[0])
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    assert not isinstance(next(shared.map(bombs.about, [b"x"])), BadMedia)


def test_workers_outlive_the_thread_that_asked_first() -> None:
    with Sandbox() as box:
        first: list[int] = []
        asking = threading.Thread(target=lambda: first.append(int(next(box.map(bombs.about, [b"x"]))[0])))
        asking.start()
        asking.join()
        assert int(next(box.map(bombs.about, [b"x"]))[0]) == first[0]


@pytest.mark.parametrize("doing", ["idle", "sleep", "spin"])
def test_workers_die_with_a_parent_that_was_killed(doing: str) -> None:
    program = f"""if True:
        import sys, threading
        sys.path.insert(0, {str(Path(bombs.__file__).parent)!r})
        import bombs
        from mmrec.content.sandbox import Sandbox
        box = Sandbox(seconds=600)
        print(int(next(box.map(bombs.about, [b"x"]))[0]), flush=True)
        if {doing!r} != "idle":
            threading.Timer(1, lambda: print(*[w.process.pid for w in box._all], flush=True)).start()
            list(box.map(bombs.minefield, [{doing!r}.encode()]))
        sys.stdin.read()"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        pid = int(parent.stdout.readline())
        if doing != "idle":
            pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
    finally:
        parent.kill()
        parent.communicate()
    assert gone(pid)


def test_a_worker_that_can_not_start_is_worth_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    with Sandbox() as box, pytest.raises(TransientError, match="did not start"):
        list(box.map(bombs.about, [b"x"]))


@pytest.mark.parametrize("limits", [{"workers": 0}, {"memory_mb": -1}, {"seconds": 0}])
def test_a_limit_that_is_not_positive_is_refused(limits: dict[str, int]) -> None:
    with pytest.raises(InputError, match="positive"):
        Sandbox(**limits)
