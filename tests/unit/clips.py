"""Videos made here, whole and hostile; a module of its own because several test files need them.

A frame is 64 by 64 unless told; frame k of `moving` has k times 5 as its red, so that its number can be read from it.
"""

import io
import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction

import av
import numpy as np

FPS = 25
# codec, container, and what PyAV calls the pixels
KINDS = [("libx264", "mp4", "yuv420p"), ("libx264", "mov", "yuv420p"), ("libx265", "mp4", "yuv420p"),
         ("libvpx", "webm", "yuv420p"), ("libvpx-vp9", "webm", "yuv420p"), ("libsvtav1", "mp4", "yuv420p"),
         ("libx264", "matroska", "yuv420p"), ("mpeg4", "avi", "yuv420p"), ("mjpeg", "avi", "yuvj420p")]  # fmt: skip


def moving(n: int = 50, width: int = 64, height: int = 64) -> list[np.ndarray]:
    """Red grows with time, green to the right, blue falls."""
    across = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    return [np.stack([np.full((height, width), 5 * k), across, np.full((height, width), 255 - 5 * k)], 2).astype(np.uint8) for k in range(n)]


def number(frame: np.ndarray) -> float:
    return float(frame[..., 0].mean()) / 5


def clip(
    frames: Sequence[np.ndarray], codec: str = "libx264", container: str = "mp4", pixels: str = "yuv420p", *, gop: int = 12,
    each: Fraction = Fraction(1, FPS), **options: str,
) -> bytes:  # fmt: skip
    """`frames` (H, W, 3) uint8, shown `each` so many seconds; a key frame every `gop` of them."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=FPS)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        made = stream.codec_context
        made.thread_count, made.gop_size, made.options, made.time_base = 1, gop, options, each
        for k, pixel in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixel), format="rgb24")
            frame.pts, frame.time_base = k, each
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return out.getvalue()


def sound(container: str = "mp4", cover: bool = False) -> bytes:
    """A second of silence; with a picture on its cover, if asked, which FFmpeg takes for a video stream."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream("aac" if container == "mp4" else "libopus", rate=48_000)
        if cover:
            art = file.add_stream("mjpeg", rate=FPS)
            art.height = art.width = 64
            art.pix_fmt, art.disposition = "yuvj420p", av.stream.Disposition.attached_pic
        quiet = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.float32), format="fltp", layout="mono")
        quiet.rate, quiet.pts, quiet.time_base = 48_000, 0, Fraction(1, 48_000)
        if cover:
            file.mux(art.encode(av.VideoFrame.from_ndarray(moving(1)[0], format="rgb24")))
            file.mux(art.encode(None))
        file.mux(stream.encode(quiet))
        file.mux(stream.encode(None))
    return out.getvalue()


def resized(data: bytes, width: int, height: int, first: int = 0) -> bytes:
    """Motion JPEG in AVI whose frames, from the `first` on, say in their headers that they are so large; from nought on
    the file's own header says so too."""
    out, at = bytearray(data), data.index(b"strf") + 12
    if first == 0:
        out[at : at + 8] = struct.pack("<II", width, height)
    for k in range(data.count(b"\xff\xc0\x00\x11\x08")):
        at = data.index(b"\xff\xc0\x00\x11\x08", at) + 5
        if k >= first:
            out[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(out)


def turned(data: bytes) -> bytes:
    """An MP4 that asks to be shown turned by a quarter, clockwise, as telephones write it."""
    at = data.index(b"tkhd") + 4 + 40
    return data[:at] + struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30) + data[at + 36 :]


def spoilt(data: bytes, seed: int = 0) -> bytes:
    """An MP4 with noise for pictures; its boxes are whole."""
    at = data.index(b"mdat")
    size = int.from_bytes(data[at - 4 : at], "big") - 8
    return data[: at + 4] + np.random.default_rng(seed).bytes(size) + data[at + 4 + size :]


def hostile() -> Iterator[tuple[str, bytes, str | None]]:
    """Name, bytes, the code of its refusal or None where it is a video after all."""
    plain, jpegs = clip(moving()), clip(moving(), "mjpeg", "avi", "yuvj420p")
    webm = clip(moving(), "libvpx", "webm")
    for name, data in (("mp4", plain), ("webm", webm), ("avi", jpegs)):
        yield f"half a {name}", data[: len(data) // 2], "truncated"
        yield f"a {name} without its last byte", data[:-1], "truncated"
    yield "noise for pictures", spoilt(plain), "truncated"
    yield "a head alone", plain[:32], "truncated"
    yield "a head and noise", plain[:32] + bytes(8) + np.random.default_rng(0).bytes(900), "truncated"
    yield "a head of matroska and noise", webm[:40] + b"\xff" * 900, "truncated"
    yield "a box of 16 exabytes", plain[:32] + b"\0\0\0\1mdat" + b"\xff" * 8, "truncated"
    yield "no frames", b"RIFF" + struct.pack("<I", len(jpegs) - 8) + jpegs[8:].replace(b"00dc", b"JUNK"), "truncated"
    yield "16,000 by 16,000", resized(jpegs, 16_000, 16_000), "too_large"
    yield "20,000 by 20,000, which FFmpeg itself has no number for", resized(jpegs, 20_000, 20_000), "truncated"
    yield "16,000 by 16,000 from the tenth frame on", resized(jpegs, 16_000, 16_000, first=10), "truncated"
    yield "larger than 4K", clip(moving(2, 4400, 2400), "libvpx", "webm"), "too_large"
    yield "an hour", clip(moving(10), each=Fraction(360)), "too_large"
    yield "sound alone", sound(), "no_video"
    yield "sound alone, in webm", sound("webm"), "no_video"
    yield "a song with a cover", sound(cover=True), "no_video"
    yield "a codec that is on no list", clip(moving(), "ffv1", "matroska"), "unsupported"
    yield "10,000 frames of nothing", clip([np.zeros((16, 16, 3), np.uint8)] * 10_000, gop=10_000), None
    yield "one frame", clip(moving(1)), None
    yield "a note after the end", plain + b"recorded with a telephone", None
