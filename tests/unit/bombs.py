"""Media that hurt, made here, and work that misbehaves: what a worker of the sandbox is given in tests.

A module of its own because workers import it: no pytest, no model.
"""

import contextlib
import io
import os
import resource
import signal
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import soundfile
from PIL import Image

from mmrec.content.decode import log_mel, pixels
from mmrec.content.media import BadMedia

RATE = 16_000
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
SINE = (np.sin(np.arange(4000) * 0.1) * 0.5).astype(np.float32)


def picture(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, packed: bytes, depth: int = 8, color: int = 2, extra: bytes = b"") -> bytes:
    """A PNG by hand: its header may promise what its (deflated) data do not hold."""
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def zeros(megabytes: int) -> bytes:
    """That many megabytes of zero bytes, deflated a thousandfold."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()


def sound(samples: np.ndarray, kind: str = "WAV", coding: str | None = None, rate: int = RATE) -> bytes:
    out = io.BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(out, "w", rate, channels, subtype=coding, format=kind) as file:
        for start in range(0, len(samples), 1 << 16):  # libvorbis overflows the stack on minutes written at once
            file.write(samples[start : start + (1 << 16)])
    return out.getvalue()


def patched(data: bytes, at: int, layout: str, value: int) -> bytes:
    return data[:at] + struct.pack(layout, value) + data[at + struct.calcsize(layout) :]


def long_gif(frames: int) -> bytes:
    """One frame's block, written that often."""
    one = picture(Image.new("P", (16, 16), 1), "GIF")
    assert one[10] & 0x80
    head = 13 + 3 * 2 ** ((one[10] & 7) + 1)
    return one[:head] + one[head:-1] * frames + b";"


def long_webp(frames: int) -> bytes:
    shades = [Image.new("RGB", (16, 16), (n % 256, n // 256 * 50, 9)) for n in range(frames)]
    return picture(shades[0], "WEBP", save_all=True, append_images=shades[1:], lossless=True, method=0)


def hour_of_silence() -> bytes:
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", 8000, 1, format="FLAC", subtype="PCM_16") as file:
        for _ in range(60):
            file.write(np.zeros(60 * 8000, np.int16))
    return out.getvalue()


def archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a", bytes(1 << 20))
    return out.getvalue()


def pictures() -> Iterator[tuple[str, bytes, str | None]]:
    """Name, bytes, the code of its refusal or None where it is a picture after all."""
    noise = Image.fromarray(NOISE)
    eight = zlib.compress((b"\0" + b"\1" * 24) * 8)
    yield "zero bytes", b"", "empty"
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        data = picture(noise, kind)
        yield f"half a {kind}", data[: len(data) // 2], "truncated"
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>', "not_an_image"
    yield "html", b"<!doctype html><title>404</title>", "not_an_image"
    yield "zip", archive(), "not_an_image"
    yield "100 megapixels of one colour", png(10_000, 10_000, zeros(101), color=0), "too_large"
    yield "4 exapixels promised", png(2**31 - 1, 2**31 - 1, zeros(1)), "too_large"
    yield "data that inflate to 300 MB", png(8, 8, zeros(300)), None
    for kind, head in ((b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0")):
        yield f"300 MB of text in {kind.decode()}", png(8, 8, eight, extra=chunk(kind, head + zeros(300))), "too_large"
    yield "a profile of 300 MB", png(8, 8, eight, extra=chunk(b"iCCP", b"a\0\0" + zeros(300))), "too_large"
    yield "gif of 100,000 frames", long_gif(100_000), None
    yield "webp of 500 frames", long_webp(500), None
    yield "100 megapixel jpeg", picture(Image.new("L", (10_000, 10_000)), "JPEG"), "too_large"
    # all its coefficients would stand in memory before the first pixel, 128 MB of them, at any scale
    yield "64 megapixel progressive jpeg", picture(Image.new("L", (8000, 8000)), "JPEG", progressive=True), "too_large"


def sounds() -> Iterator[tuple[str, bytes, str | None]]:
    """As `pictures`."""
    yield "zero bytes", b"", "empty"
    yield "text", b"hello" * 99, "not_audio"
    yield "silence", sound(np.zeros(RATE)), "silent"
    yield "one sample", sound(SINE[5:6]), "too_short"
    yield "no number at all", sound(np.full(RATE, np.nan, np.float32), coding="FLOAT"), "silent"
    yield "a hole in it", sound(np.where(np.arange(4000) == 7, np.nan, SINE), coding="FLOAT"), None
    yield "an hour of silence", hour_of_silence(), "too_large"
    yield "64 channels", sound(np.tile(SINE[:, None], 64)), "too_large"
    yield "37 hours promised", patched(sound(SINE), 4, "<I", 2**32 - 60), "truncated"
    yield "a billion Hz", patched(sound(SINE), 24, "<I", 10**9), "unsupported"
    flac = sound(SINE, "FLAC")
    yield "half a flac", flac[: len(flac) // 2], "not_audio"


def peak_of(data: bytes, *, decode: Callable[[bytes], np.ndarray]) -> np.ndarray:
    """The worker's greatest resident size yet in kB, whether the medium was refused or not."""
    with contextlib.suppress(BadMedia):
        decode(data)
    with open("/proc/self/status") as file:  # ru_maxrss would count the parent's pages before exec
        return np.array([int(line.split()[1]) for line in file if line.startswith("VmHWM")])


def decoded(data: bytes) -> np.ndarray:
    return log_mel(data) if data[:4] == b"RIFF" else pixels(data, size=16)


def sleeps() -> None:
    time.sleep(600)


def spins() -> None:
    while True:
        pass


def allocates() -> None:
    np.ones(1 << 29)  # 4 GB


def segfaults() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def exits() -> None:
    os._exit(1)


FAULTS = {
    b"sleep": (sleeps, "too_slow: more than 1 s"),
    b"spin": (spins, "too_slow: more than 1 s"),
    b"allocate": (allocates, "too_large: more than 512 MB"),
    b"segfault": (segfaults, "crashed: signal 11"),
    b"exit": (exits, "crashed: exit status 1"),
}


def minefield(data: bytes) -> np.ndarray:
    """`decoded`, but some media are what their name says."""
    if data in FAULTS:
        FAULTS[data][0]()
    if data == b"bug":
        raise ZeroDivisionError("planted")
    if data == b"own bug":
        raise struct.error("planted")
    if data == b"object":
        return np.array([object()])
    return decoded(data)


def takes(data: bytes) -> np.ndarray:
    """As many megabytes as the text says."""
    return np.ones(int(data) << 20, np.uint8)[:3]


def about(data: bytes) -> np.ndarray:
    """Of the worker: its process, limits, and whether it holds what it should not."""
    limits = [resource.getrlimit(w)[0] for w in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NOFILE)]
    heavy = {"torch", "onnxruntime", "transformers", "pandas", "pyarrow", "mmrec.content.encoders"} & set(sys.modules)
    return np.array([os.getpid(), *limits, len(heavy)])
