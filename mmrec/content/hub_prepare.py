"""Pixels and sounds made ready as a hub model's own processor would, in numpy, Pillow and soxr alone.

In: a medium's bytes, or what was decoded of them, the processor's settings as the export resolved them, its filters
and window. Out: float32 arrays in the shape the graph takes.
Trade-off: the processors that shops' models use (resize, crop, rescale, normalise; AST and CLAP log-mel) are written
out; the export compares each with the model's own processor and refuses what differs.

Where a processor draws lots (CLAP crops a long sound at random), the middle is taken: a vector depends on its content.

Shape legend: C channels, H W pixels, T samples, F frames, N frequencies, M mel bands.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from mmrec.content.media import BadMedia, decode_audio, decode_image
from mmrec.content.video import decode_video, is_video

_AST_FRAME, _AST_HOP, _AST_FFT = 400, 160, 512  # fixed in the extractor, not in its settings
_FRAMES = 2048  # transformed at a time


def pixels(image: Image.Image, conf: dict[str, Any]) -> np.ndarray:
    """An RGB picture to (C, H, W) float32.

    Args:
        conf: do_resize, size, resample, do_center_crop, crop_size, do_rescale, rescale_factor, do_normalize,
            image_mean, image_std; sizes as {"height", "width"} or {"shortest_edge"}.

    Raises: BadMedia: too_narrow: its long side would be resized to more pixels than may be decoded.
    """
    if conf.get("do_resize"):
        width, height = _size(image, conf["size"])
        image = image.resize((width, height), Image.Resampling(conf.get("resample", 2)))
    data_HWC = np.asarray(image)
    if conf.get("do_center_crop"):
        data_HWC = _crop(data_HWC, int(conf["crop_size"]["height"]), int(conf["crop_size"]["width"]))
    data_CHW = data_HWC.transpose(2, 0, 1).astype(np.float32)
    if conf.get("do_rescale"):
        data_CHW = data_CHW * np.float32(conf["rescale_factor"])
    if conf.get("do_normalize"):
        mean_C = np.broadcast_to(np.asarray(conf["image_mean"], np.float32), (3,))
        std_C = np.broadcast_to(np.asarray(conf["image_std"], np.float32), (3,))
        data_CHW = (data_CHW - mean_C[:, None, None]) / std_C[:, None, None]
    return np.ascontiguousarray(data_CHW, np.float32)


def sound(samples_T: np.ndarray, rate: int, conf: dict[str, Any], arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Mono samples to AST's (F, M) or CLAP's (1, F, M) float32.

    Args:
        conf: kind ("ast", "clap"), sampling_rate and what that extractor's settings hold.
        arrays: "filters" (N, M) and "window", as the extractor itself computes them.

    Raises: BadMedia: silent.
    """
    if float(np.abs(samples_T).max(initial=0)) < 1e-6:  # below, a vector would tell of rounding noise
        raise BadMedia("silent: nothing to hear")
    if rate != conf["sampling_rate"]:
        import soxr

        samples_T = soxr.resample(samples_T, rate, conf["sampling_rate"])
    samples_T = samples_T.astype(np.float32)
    if conf["kind"] == "ast":
        return _ast(samples_T, conf, arrays)
    return _clap(samples_T, conf, arrays)


def media(data: bytes, modality: str, conf: dict[str, Any], arrays: dict[str, np.ndarray]) -> np.ndarray:
    """What a worker of sandbox.py makes of a medium's bytes: `pixels`, of a video those of its frames, stacked, or
    `sound`. Raises: BadMedia, MemoryError."""
    if modality == "image" and is_video(data):
        return np.stack([pixels(frame, conf) for frame in decode_video(data)])
    if modality == "image":
        return pixels(decode_image(data), conf)
    return sound(*decode_audio(data), conf, arrays)


def _size(image: Image.Image, size: dict[str, int]) -> tuple[int, int]:
    if size.get("shortest_edge"):
        short, (width, height) = int(size["shortest_edge"]), image.size
        long = int(short * max(width, height) / min(width, height))
        if short * long > 20_000_000:
            raise BadMedia(f"too_narrow: {width} x {height} pixels")
        return (short, long) if width <= height else (long, short)
    return int(size["width"]), int(size["height"])


def _crop(data_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle; a picture that is too small gets black edges, the odd pixel before it."""
    short_h, short_w = max(0, height - data_HWC.shape[0]), max(0, width - data_HWC.shape[1])
    if short_h or short_w:
        data_HWC = np.pad(data_HWC, ((-(-short_h // 2), short_h // 2), (-(-short_w // 2), short_w // 2), (0, 0)))
    top, left = (data_HWC.shape[0] - height) // 2, (data_HWC.shape[1] - width) // 2
    return data_HWC[top : top + height, left : left + width]


def _ast(samples_T: np.ndarray, conf: dict[str, Any], arrays: dict[str, np.ndarray]) -> np.ndarray:
    longest = int(conf["max_length"])
    samples_T = samples_T[: _AST_FRAME + _AST_HOP * (longest - 1)]
    samples_T = np.pad(samples_T, (0, max(0, _AST_FRAME - len(samples_T))))
    power_FN = _power(samples_T, arrays["window"], _AST_HOP, _AST_FFT, preemphasis=0.97)
    mel_FM = np.log(np.maximum(power_FN @ arrays["filters"], 1.192092955078125e-07)).astype(np.float32)
    mel_FM = np.pad(mel_FM, ((0, longest - len(mel_FM)), (0, 0)))
    if conf["do_normalize"]:
        mel_FM = (mel_FM - conf["mean"]) / (conf["std"] * 2)
    return mel_FM.astype(np.float32)


def _clap(samples_T: np.ndarray, conf: dict[str, Any], arrays: dict[str, np.ndarray]) -> np.ndarray:
    longest = int(conf["nb_max_samples"])
    if len(samples_T) > longest:
        start = (len(samples_T) - longest) // 2
        samples_T = samples_T[start : start + longest]
    elif conf["padding"] == "repeat":
        samples_T = np.tile(samples_T, longest // len(samples_T) + 1)[:longest]
    elif conf["padding"] == "repeatpad":
        samples_T = np.tile(samples_T, longest // len(samples_T))
    samples_T = np.pad(samples_T, (0, longest - len(samples_T)))
    size = int(conf["fft_window_size"])
    padded_T = np.pad(samples_T, size // 2, mode="reflect")
    power_FN = _power(padded_T, arrays["window"], int(conf["hop_length"]), size)
    mel_FM = 10 * np.log10(np.maximum(power_FN @ arrays["filters"], 1e-10))
    return mel_FM.astype(np.float32)[None]


def _power(samples_T: np.ndarray, window: np.ndarray, hop: int, fft: int, preemphasis: float = 0) -> np.ndarray:
    """(F, N) power; with `preemphasis` each frame loses its mean and its low end first, as Kaldi does."""
    frames_FW = np.lib.stride_tricks.sliding_window_view(samples_T.astype(np.float64), len(window))[::hop]
    parts = []
    for at in range(0, len(frames_FW), _FRAMES):
        part_FW = frames_FW[at : at + _FRAMES]
        if preemphasis:
            part_FW = part_FW - part_FW.mean(1, keepdims=True)
            before_FW = np.concatenate([part_FW[:, :1], part_FW[:, :-1]], 1)
            part_FW = part_FW - preemphasis * before_FW
        parts.append(np.abs(np.fft.rfft(part_FW * window, fft, axis=1).astype(np.complex64), dtype=np.float64) ** 2)
    return np.concatenate(parts)
