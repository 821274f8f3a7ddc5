"""Media safety: bytes from a shop become arrays, or a named refusal. Never a crash, never a bomb.

In: bytes. Out: pixels or samples; `BadMedia(reason)` where they can't be trusted. What a file is, is decided by its
content, not by its name; sizes are read from headers before a pixel is decoded.
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
_MAX_SECONDS = 600.0
_MAX_SAMPLES = 60_000_000  # of all channels: ten minutes of stereo at 48 kHz, 240 MB decoded

ImageFile.LOAD_TRUNCATED_IMAGES = False


class BadMedia(Exception):
    """A medium that was refused; `str()` is "code: detail", the code short and stable."""


def decode_image(data: bytes, max_pixels: int = _MAX_PIXELS) -> Image.Image:
    """The first frame as RGB.

    Raises: BadMedia: empty, not_an_image, too_large, truncated.
    """
    if not data:
        raise BadMedia("empty: zero bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF, transparent palettes: the pixels are fine
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = image.size
            if width * height > max_pixels or width < 1 or height < 1:
                raise BadMedia(f"too_large: {width} x {height} pixels")
            image.load()
            return _plain(image)
    except BadMedia:
        raise
    except UnidentifiedImageError:
        raise BadMedia(f"not_an_image: none of {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadMedia("too_large: a decompression bomb") from None
    except Exception as error:  # decoders raise whatever they like on hostile bytes
        raise BadMedia(f"truncated: {str(error)[:100] or type(error).__name__}") from None


def decode_audio(data: bytes, max_seconds: float = _MAX_SECONDS) -> tuple[np.ndarray, int]:
    """Mono float32 samples in [-1, 1] and their rate in Hz.

    Raises: BadMedia: empty, not_audio, unsupported, too_large, truncated.
    """
    if not data:
        raise BadMedia("empty: zero bytes")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            frames, rate = sound.frames, sound.samplerate
            if sound.format not in SOUNDS:
                raise BadMedia(f"unsupported: {sound.format} is none of {', '.join(SOUNDS)}")
            long = frames > max_seconds * rate or frames * sound.channels > _MAX_SAMPLES
            if long or rate < 1 or sound.channels > 16:
                raise BadMedia(f"too_large: {frames} frames at {rate} Hz, {sound.channels} channels")
            declared = _wav_bytes(data)
            if declared and declared > len(data):
                raise BadMedia(f"truncated: {len(data)} of {declared} bytes")
            samples = sound.read(dtype="float32", always_2d=True)
            if len(samples) < frames:
                raise BadMedia(f"truncated: {len(samples)} of {frames} samples")
    except BadMedia:
        raise
    except soundfile.LibsndfileError as error:  # its str() holds a memory address
        raise BadMedia(f"not_audio: {error.error_string[:100]}") from None
    except Exception as error:  # as above
        raise BadMedia(f"not_audio: {type(error).__name__}") from None
    if not len(samples):
        raise BadMedia("truncated: no samples")
    return np.clip(np.nan_to_num(samples), -1, 1).mean(1), int(rate)


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
