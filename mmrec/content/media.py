"""Media safety: bytes from a shop become arrays, or a named refusal. Never a crash, never a bomb.

In: bytes. Out: pixels or samples; `BadMedia(reason)` where they can't be trusted. What a file is, is decided by its
content, not by its name; sizes are read from headers before a pixel is decoded. Memory that runs out is the caller's
to name (`sandbox.py` does), so MemoryError goes through.
Videos are video.py's. Of an animation the first frame alone is decoded, however many there are: the rest costs nothing
when nobody looks at it, so a long animation is no reason to refuse an item its picture.
Trade-off: only the formats below are read; a shop with others converts them, and gets a row saying so.
"""

from __future__ import annotations

import contextlib
import io
import warnings

import numpy as np
import soundfile
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
SOUNDS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")
_MAX_PIXELS = 20_000_000
_MAX_JPEG = 80_000_000  # cameras make them; below the size from which Pillow calls a picture a bomb
_MAX_SECONDS = 600.0
_MAX_SAMPLES = 60_000_000  # of all channels: ten minutes of stereo at 48 kHz, 240 MB decoded
_MAX_CHANNELS = 16
_RATES = (1_000, 768_000)  # Hz, of the slowest speech and the fastest studio

ImageFile.LOAD_TRUNCATED_IMAGES = False


class BadMedia(Exception):
    """A medium that was refused; `str()` is "code: detail", the code short and stable."""


def decode_image(data: bytes, max_pixels: int = _MAX_PIXELS) -> Image.Image:
    """The first frame as RGB, upright.

    A JPEG of more than `max_pixels` and at most 80 million is read at the largest of 1/2, 1/4, 1/8 that fits
    `max_pixels` (libjpeg's scaled inverse transform), unless it is progressive, which takes the memory of the whole at
    any scale. Any other picture of that size is refused, and none that fits is ever scaled here.

    Raises: BadMedia: empty, not_an_image, too_large, truncated. MemoryError: decoding took more than there is.
    """
    if not data:
        raise BadMedia("empty: zero bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF, transparent palettes: the pixels are fine
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            webp = _webp_size(data)
            if webp[0] * webp[1] > max_pixels:  # its decoder takes memory for all pixels when it is opened
                raise BadMedia(f"too_large: {webp[0]} x {webp[1]} pixels")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if max_pixels < width * height <= _MAX_JPEG and image.format in ("JPEG", "MPO"):
                _scale_down(image, max_pixels)
            if image.width * image.height > max_pixels or width < 1 or height < 1:
                raise BadMedia(f"too_large: {width} x {height} pixels")
            image.load()
            return _plain(image)
    except BadMedia:
        raise
    except UnidentifiedImageError:
        raise BadMedia(f"not_an_image: none of {', '.join(FORMATS)}, and no video that is read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadMedia("too_large: a decompression bomb") from None
    except Exception as error:  # decoders raise whatever they like on hostile bytes
        let_memory_through(error)
        if "could not create decoder object" in str(error):
            bytearray(8 * webp[0] * webp[1])  # broken or short of memory, it doesn't say: this raises if the latter
        if "text chunks" in str(error) or "MAX_TEXT_CHUNK" in str(error):
            raise BadMedia("too_large: a text or profile in it is a decompression bomb") from None
        raise BadMedia(f"truncated: {str(error)[:100] or type(error).__name__}") from None


def decode_audio(data: bytes, max_seconds: float = _MAX_SECONDS) -> tuple[np.ndarray, int]:
    """Mono float32 samples in [-1, 1] and their rate in Hz.

    Raises: BadMedia: empty, not_audio, unsupported, too_large, truncated. MemoryError: as above.
    """
    if not data:
        raise BadMedia("empty: zero bytes")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            frames, rate = sound.frames, sound.samplerate
            if sound.format not in SOUNDS:
                raise BadMedia(f"unsupported: {sound.format} is none of {', '.join(SOUNDS)}")
            long = frames > max_seconds * rate or frames * sound.channels > _MAX_SAMPLES
            if long or rate < 1 or sound.channels > _MAX_CHANNELS:
                raise BadMedia(f"too_large: {frames} frames at {rate} Hz, {sound.channels} channels")
            if not _RATES[0] <= rate <= _RATES[1]:
                raise BadMedia(f"unsupported: a rate of {rate} Hz is not within {_RATES[0]} and {_RATES[1]}")
            declared = _wav_bytes(data)
            if declared and declared > len(data):
                raise BadMedia(f"truncated: {len(data)} of {declared} bytes")
            samples = sound.read(dtype="float32", always_2d=True)
            if len(samples) < frames:
                raise BadMedia(f"truncated: {len(samples)} of {frames} samples")
    except BadMedia:
        raise
    except soundfile.LibsndfileError as error:  # its str() holds a memory address
        let_memory_through(error)
        raise BadMedia(f"not_audio: {error.error_string[:100]}") from None
    except Exception as error:  # as above
        let_memory_through(error)
        raise BadMedia(f"not_audio: {type(error).__name__}") from None
    if not len(samples):
        raise BadMedia("truncated: no samples")
    np.clip(np.nan_to_num(samples, copy=False), -1, 1, out=samples)  # in place: there may be 240 MB of them
    return samples.mean(1), int(rate)


def _scale_down(image: Image.Image, max_pixels: int) -> None:
    if image.info.get("progressive"):
        raise BadMedia(f"too_large: {image.width} x {image.height} pixels of a progressive JPEG")
    for scale in (2, 4, 8):
        if -(-image.width // scale) * -(-image.height // scale) <= max_pixels:
            image.draft(None, (image.width // scale, image.height // scale))
            return


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height as a WEBP's header says them; 0, 0 for other formats and where it is cut."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return 0, 0
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def let_memory_through(error: Exception) -> None:
    """Raises: MemoryError, where `error` means that: libraries in C have texts of their own for it, "out of memory",
    "malloc () failed"."""
    if isinstance(error, MemoryError) or "memory" in str(error).lower() or "malloc" in str(error).lower():
        raise MemoryError from None


def _plain(image: Image.Image) -> Image.Image:
    """Upright, eight bits, RGB; Pillow clips sixteen bits of grey where it ought to scale."""
    with contextlib.suppress(Exception):  # an orientation that can't be read is none
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _wav_bytes(data: bytes) -> int:
    """Bytes that a RIFF header promises; 0 for other formats. libsndfile reads what is left without a word."""
    if data[:4] != b"RIFF" or len(data) < 8:
        return 0
    return int.from_bytes(data[4:8], "little") + 8
