"""What is made of a medium before a model sees it: small arrays, from functions that a worker of `sandbox.py` can run.

In: bytes from a shop. Out: pixels of one size, a picture's hash, or the statistics of a sound's spectrum; `BadMedia`
where there is nothing to make them of. Nothing but numpy, Pillow, soundfile and soxr is imported (and FFmpeg, when the
first video comes), so a worker starts in a quarter of a second and holds no model.
Trade-off: a picture's sides are scaled each by its own factor, so aspect is lost and nothing is cut off.

Shape legend: F frames, W samples a frame, M mel bands, S side of a hashed picture, K frequencies of a side.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import soxr
from PIL import Image

from mmrec.content.media import BadMedia, decode_audio, decode_image
from mmrec.content.video import decode_video, is_video

BANDS = 64
_RATE, _FFT, _HOP = 16_000, 1024, 256
_FRAMES = 2048  # transformed at a time: memory does not grow with a sound's length
_SIDE, _FREQUENCIES = 32, 8
HASH_BITS = _FREQUENCIES**2
PHASH = f"phash/{_SIDE}/{_FREQUENCIES}x{_FREQUENCIES}/dct-median/fp32"
_FAINT = 4.0  # a wave of a quarter of a grey level over the whole picture
LOG_MEL = f"logmel/{_RATE}/{_FFT}/{BANDS}/mean-std-delta/fp32"


def pixels(data: bytes, size: int) -> np.ndarray:
    """A picture as (size, size, 3) uint8, bicubic; a video as (FRAMES, size, size, 3).

    Raises: BadMedia, MemoryError: as `decode_image` and `decode_video`.
    """
    if is_video(data):
        return np.stack([_square(frame, size) for frame in decode_video(data)])
    return _square(decode_image(data), size)


def _square(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def phash(data: bytes) -> np.ndarray:
    """A picture as (HASH_BITS,) float32 of +1 and -1, of which the lengths of two differ by nothing and the cosine is
    1 - distance / 32, distance the number of bits that differ.

    Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions (2010), section 3.2.1: grey, 32 by 32,
    discrete cosine transform, its lowest frequencies without the constant ones, each above or below their median.
    His mean filter of 7 by 7 is left out: scaling here takes every pixel into account.

    Raises: BadMedia, MemoryError: as `decode_image`, and flat: a picture of one colour, whose bits would be noise;
    video: one frame is no fingerprint of the whole, so videos are copies of each other where their bytes are equal.
    """
    if is_video(data):
        raise BadMedia("video: one frame would not tell it from others")
    grey = decode_image(data).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    wave_KS = _cosines()
    frequency_KK = wave_KS @ np.asarray(grey, np.float64) @ wave_KS.T
    if np.abs(frequency_KK).max() < _FAINT:
        raise BadMedia("flat: nothing to see")
    return np.where(frequency_KK > np.median(frequency_KK), 1, -1).astype(np.float32).ravel()


@lru_cache(maxsize=1)
def _cosines() -> np.ndarray:
    """(K, S) float64: rows 1 to K of the orthonormal discrete cosine transform, type II."""
    k, n = np.arange(1, _FREQUENCIES + 1)[:, None], np.arange(_SIDE)
    return np.sqrt(2 / _SIDE) * np.cos(np.pi * (2 * n + 1) * k / (2 * _SIDE))


def log_mel(data: bytes) -> np.ndarray:
    """A sound as (3 BANDS,) float32 of unit length: mean, deviation and mean absolute change of each band at 16 kHz.

    Mel scale as in O'Shaughnessy, Speech Communication (1987), 2595 log10(1 + f / 700).

    Raises: BadMedia, MemoryError: as `decode_audio`, and too_short (less than a hop of 16 ms), silent: a vector would
    say nothing, and would make all such sounds each other's nearest.
    """
    samples, rate = decode_audio(data)
    if len(samples) * _RATE < _HOP * rate:
        raise BadMedia(f"too_short: {len(samples)} samples at {rate} Hz, less than {1000 * _HOP // _RATE} ms")
    if rate != _RATE:
        samples = soxr.resample(samples, rate, _RATE)
    padded = np.pad(samples, (0, max(0, _FFT - len(samples))))
    frames_FW = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_HOP]
    window_W, filters_MW = np.hanning(_FFT), _filters()
    mel_FM = np.concatenate([
        np.log(np.abs(np.fft.rfft(frames_FW[at : at + _FRAMES] * window_W, axis=1)) ** 2 @ filters_MW.T + 1e-6)
        for at in range(0, len(frames_FW), _FRAMES)])  # fmt: skip
    delta = np.abs(np.diff(mel_FM, axis=0)).mean(0) if len(mel_FM) > 1 else np.zeros(BANDS)
    # the level of silence is the origin, so that loudness doesn't swamp timbre
    vector = np.concatenate([mel_FM.mean(0) - np.log(1e-6), mel_FM.std(0), delta])
    norm = float(np.linalg.norm(vector))
    if not 1e-6 < norm < np.inf:  # below, the vector would be rounding noise
        raise BadMedia("silent: nothing to hear")
    return (vector / norm).astype(np.float32)


@lru_cache(maxsize=1)
def _filters() -> np.ndarray:
    """(M, FFT / 2 + 1) triangular filters, equally spaced on the mel scale up to half the rate."""
    top = 2595 * np.log10(1 + _RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(_FFT, 1 / _RATE)
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rise, fall = (bins - lower) / (centre - lower), (upper - bins) / (upper - centre)
    return np.maximum(0, np.minimum(rise, fall))
