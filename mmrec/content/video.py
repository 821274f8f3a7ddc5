"""Videos by sampled frames: bytes from a shop become a few pictures, or a named refusal.

In: bytes. Out: frames at evenly spaced times, as pictures; `BadMedia` as media.py has it. The container is decided by
content and forced on FFmpeg, the codec is on a list, one thread decodes: it is opened in a worker of sandbox.py alone.
No seeking: packets are listed first, so that which frames are taken depends on the file, not on an index in it; a
packet that no frame needs is not decoded.
Trade-off: work is bounded by pixels decoded, not by the clock, which would give another answer on a busy machine. In a
large video with key frames far apart, a frame may be some seconds earlier than asked for; it is never later.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from mmrec.content.media import BadMedia, let_memory_through

if TYPE_CHECKING:
    import av

    from mmrec.content.sandbox import Sandbox

# part of every image encoder's preprocessing: who changes what frames are taken gives their versions another name
FRAMES = 8
_CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg")
_MAX_PIXELS = 10_000_000  # a frame's; 4K has 8.8 million
_MAX_SECONDS = 600.0
_MAX_PACKETS = 80_000  # ten minutes at 120 a second, and some
_AHEAD = 200_000_000  # pixels decoded on the way to a frame: four seconds of full HD, one of 4K
# swscale's BICUBIC, FULL_CHR_H_INT, ACCURATE_RND, BITEXACT: by default it is a grey level too dark, leaves colours in
# blocks and depends on the processor
_CONVERT = 0x4 | 0x2000 | 0x40000 | 0x80000
# brands of pictures in an MP4's clothes
_STILLS = {b"avif", b"avis", b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}
_BOXES = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}  # with which an MP4 or MOV may begin, and go on
_MORE_BOXES = {b"moof", b"mfra", b"sidx", b"styp", b"meta", b"udta", b"uuid", b"emsg", b"prft", b"pnot"}


def is_video(data: bytes) -> bool:
    """Whether the bytes begin as MP4, MOV, WEBM, MKV or AVI do; the rest may be broken, or hold no video."""
    return _container(data) is not None


def decode_video(data: bytes, n: int = FRAMES, max_pixels: int = _MAX_PIXELS) -> Iterator[Image.Image]:
    """`n` frames as RGB, upright: those that are shown in the middle of each of `n` equal parts of its time. Given one
    at a time, so that no more than one is held; a short video gives a frame more than once.

    Raises: BadMedia: not_an_image, no_video (sound alone), unsupported (codec), too_large (pixels, seconds, packets),
        truncated (cut, broken, without frames). MemoryError: decoding took more than there is.
    """
    av = _library()
    kind = _container(data)
    if kind is None:
        raise BadMedia("not_an_image: none of MP4, MOV, WEBM, MKV, AVI")
    if (promised := _promised(data, kind)) > len(data):
        raise BadMedia(f"truncated: {len(data)} of {promised} bytes")
    size = 0
    try:
        with av.open(io.BytesIO(data), format=kind, metadata_errors="replace") as container:
            stream = _stream(container)
            codec = stream.codec_context
            name = codec.codec.canonical_name if codec else "what FFmpeg doesn't know"
            if name not in _CODECS:
                raise BadMedia(f"unsupported: {name} is none of {', '.join(_CODECS)}")
            size = codec.width * codec.height
            if not size:
                raise BadMedia("truncated: frames without a size, or with one beyond any limit")
            if size > max_pixels:
                raise BadMedia(f"too_large: {codec.width} x {codec.height} pixels")
            codec.thread_count = 1  # more would reserve address space, and no medium is worth a second core
            # a size may change on the way; what is broken is refused, not painted over
            codec.options = {"max_pixels": str(max_pixels), "err_detect": "explode"}
            packets = _packets(container, stream)
            for frame in _frames(packets, codec, _wanted(packets, stream, n)):
                image = frame.to_image(interpolation=_CONVERT, threads=1)
                yield image.rotate(frame.rotation, expand=True) if frame.rotation % 90 == 0 else image
    except BadMedia:
        raise
    except Exception as error:  # FFmpeg raises whatever it likes on hostile bytes; its str() names an object
        let_memory_through(error)
        bytearray(32 * size)  # decoders call broken what they had no memory for: this raises if it is that
        raise BadMedia(f"truncated: {getattr(error, 'strerror', None) or type(error).__name__}"[:120]) from None


def still(box: Sandbox, data: bytes, size: tuple[int, int]) -> bytes:
    """What stands for a medium on a page: a video's middle frame as a PNG of at most `size`, opened in `box`; a picture
    as it is. Empty where the video is refused."""
    if not is_video(data):
        return data
    (got,) = box.map(partial(_middle, size=size), [data])
    out = io.BytesIO()
    if not isinstance(got, BadMedia):
        Image.fromarray(got).save(out, "PNG")
    return out.getvalue()


def _middle(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """A video's middle frame, for a worker: (H, W, 3) uint8, within `size`. Raises: as `decode_video`."""
    (image,) = decode_video(data, 1)
    image.thumbnail(size)
    return np.asarray(image)


def _library() -> Any:
    try:
        import av
    except ImportError as error:
        if "map segment" in str(error) or "memory" in str(error):  # a worker that earlier media have filled
            raise MemoryError from None
        raise
    av.logging.set_level(av.logging.PANIC)
    return av


def _container(data: bytes) -> str | None:
    """FFmpeg's name of the demuxer."""
    if data[4:8] in _BOXES and not (data[4:8] == b"ftyp" and data[8:12] in _STILLS):
        return "mov"
    if data[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    return "avi" if data[:4] == b"RIFF" and data[8:12] == b"AVI " else None


def _promised(data: bytes, kind: str) -> int:
    """Bytes that the container says it has, as far as it says so; FFmpeg reads what is left without a word."""
    if kind == "avi":
        return int.from_bytes(data[4:8], "little") + 8
    at = 0
    if kind == "matroska":
        for _ in range(2):  # its header, then the segment with everything else
            length = 9 - data[at + 4].bit_length() if at + 4 < len(data) else 9
            size = int.from_bytes(data[at + 4 : at + 4 + length], "big") & ~(-1 << 7 * length)
            if length > 8 or size == (1 << 7 * length) - 1:  # none, or not known: as it is streamed
                return at
            at += 4 + length + size
        return at
    while data[at + 4 : at + 8] in _BOXES | _MORE_BOXES:  # what else follows is no part of it
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:  # to the end of the file, or no box any more
            break
        at += size
    return at


def _stream(container: Any) -> Any:
    from av.stream import Disposition

    shown = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]  # a song's cover
    if not shown:
        raise BadMedia("no_video: a container without a video in it")
    return shown[0]


def _packets(container: Any, stream: Any) -> list[av.Packet]:
    packets: list[av.Packet] = []
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if len(packets) == _MAX_PACKETS:
            raise BadMedia(f"too_large: more than {_MAX_PACKETS} frames")
        packets.append(packet)
    return packets


def _time(of: Any) -> int:
    """When a packet or frame is shown, in units of the stream."""
    time = of.dts if of.pts is None else of.pts
    if time is None:
        raise BadMedia("truncated: a frame without a time")
    return int(time)


def _wanted(packets: list[av.Packet], stream: Any, n: int) -> list[tuple[int, int]]:
    """(when it is shown, place of the key frame from which it can be decoded) of each frame to take."""
    shown = sorted((_time(p), at) for at, p in enumerate(packets) if not p.is_discard)
    keys = [(at, _time(p)) for at, p in enumerate(packets) if p.is_keyframe]
    if not shown or not keys:
        raise BadMedia("truncated: no frames")
    start, end = shown[0][0], max(t + (packets[at].duration or 0) for t, at in shown)
    if (end - start) * stream.time_base > _MAX_SECONDS:
        raise BadMedia(f"too_large: {float((end - start) * stream.time_base):.0f} s")
    wanted, after = [], 0
    for k in range(n):
        middle = start + (2 * k + 1) * (end - start) // (2 * n)
        while after < len(shown) and shown[after][0] <= middle:
            after += 1
        time, at = shown[after - 1]
        # frames that come after a key frame and are shown before it need the one before
        usable = [key for key, shown_at in keys if key <= at and shown_at <= time]
        if not usable:
            raise BadMedia("truncated: frames without a key frame")
        wanted.append((time, usable[-1]))
    return wanted


def _frames(packets: list[av.Packet], codec: Any, wanted: list[tuple[int, int]]) -> Iterator[Any]:
    ahead: deque[Any] = deque()  # decoded, not looked at yet
    last, at = None, 0
    for time, key in wanted:
        if key >= at:  # what lies between is skipped
            codec.flush_buffers()
            ahead.clear()
            last, at = None, key
        spent = 0
        while True:
            while ahead and _time(ahead[0]) <= time:
                last = ahead.popleft()
            if last is not None and (ahead or _time(last) == time or at > len(packets) or spent > _AHEAD):
                break
            if at > len(packets):
                raise BadMedia("truncated: no frame where there should be one")
            ahead.extend(codec.decode(packets[at] if at < len(packets) else None))  # None: give what is left
            at += 1
            spent += codec.width * codec.height
        yield last
