"""`mmrec bench embed`: texts and pictures encoded by mmrec and, interleaved in one run, by their peers.

In: a folder of films (titles, plots, posters) or the built-in world, how many texts and pictures, threads. Out: the
peers' seconds over mmrec's, and cosines of every vector to the reference in fp32, the torch side's own output. Nothing
is cached, equal content is not looked for, and every side may sort as it likes.
Each side is a process of its own (bench/encoders.py) that waits while another works, so that no side's idle threads
take time from another. Inputs are cut into slices; a slice goes through all sides, in turning order, before the next.
Trade-off: one pass over many inputs instead of many passes over few; slices are what the spread is told from.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mmrec.bench.sides import Side
from mmrec.errors import QualityError

PEERS = {"text": ("mmrec", "torch", "onnx_int8"), "image": ("mmrec", "torch")}
_P1, _LEAST = 0.99, 0.98  # cosine to fp32, of one in a hundred and of all: what an encoder in few bits is held to
_WARM = 64


def bench(
    rounds: int, tell: Callable[[str, int, int], None], *, source: Path | None = None, texts: int = 50_000,
    pictures: int = 2_000, threads: int = 2,
) -> dict[str, Any]:  # fmt: skip
    """Ratios of the peers' time to mmrec's.

    Args:
        rounds: slices. source: a folder of films in MovieLens' form; None: the built-in world.
        texts, pictures: at most so many, all distinct. threads: of every side.

    Returns: texts, pictures, threads, rounds; vs_sentence_transformers, vs_onnx_int8, images_vs_torch: ratios of summed
        seconds, `_low` and `_high` the lowest and highest of a slice; p1_cosine, min_cosine: of texts, and
        onnx_int8_p1_cosine, onnx_int8_min_cosine, images_p1_cosine, images_min_cosine; items_per_s, images_per_s.

    Raises: QualityError: mmrec's vectors are not the reference's. TransientError: a side failed.
    """
    told: dict[str, Any] = {"source": "built-in world" if source is None else source.name, "threads": threads,
                            "rounds": rounds}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="mmrec-bench-") as folder:
        for kind, made in (("text", _texts(source, texts)), ("image", _pictures(source, pictures))):
            at = Path(folder) / kind
            at.mkdir()
            told[f"{kind}s"] = len(made)
            told |= _kind(kind, made, rounds, threads, at, tell)
    return told


def _kind(
    kind: str, raw: list[Any], rounds: int, threads: int, folder: Path, tell: Callable[[str, int, int], None]
) -> dict[str, Any]:
    slices = [raw[n::rounds] for n in range(rounds)]
    for n, part in enumerate([raw[:_WARM], *slices]):
        _write(folder, kind, n, part)
    sides = PEERS[kind]
    seconds: dict[str, list[float]] = {who: [] for who in sides}
    with ExitStack() as stack:
        running = {who: stack.enter_context(_Side(f"{kind}-{who}", folder, threads)) for who in sides}
        for who in sides:
            running[who].run(0)  # exports, loads, and is not counted
        for n in range(1, rounds + 1):
            for m in range(len(sides)):
                who = sides[(n + m) % len(sides)]
                tell(f"bench embed, {kind}: {who}", (n - 1) * len(sides) + m, rounds * len(sides))
                seconds[who].append(running[who].run(n))
    tell(f"bench embed, {kind}", rounds * len(sides), rounds * len(sides))
    cosine = {who: _cosines(folder, kind, who, rounds) for who in sides if who != "torch"}
    p1, least = float(np.quantile(cosine["mmrec"], 0.01)), float(cosine["mmrec"].min())
    if p1 < _P1 or least < _LEAST:
        raise QualityError("mmrec's vectors are not those of the reference", where=f"bench embed, {kind}",
                           value={"p1": p1, "min": least}, valid={"p1": _P1, "min": _LEAST},
                           next="mmrec bench embed --help")  # fmt: skip
    ratio = {who: _ratio(seconds[who], seconds["mmrec"]) for who in sides if who != "mmrec"}
    per_s = round(len(raw) / sum(seconds["mmrec"]), 1)
    if kind == "image":
        return ratio["torch"]("images_vs_torch") | {
            "images_p1_cosine": round(p1, 5), "images_min_cosine": round(least, 5), "images_per_s": per_s}  # fmt: skip
    peer = cosine["onnx_int8"]
    return ratio["torch"]("vs_sentence_transformers") | ratio["onnx_int8"]("vs_onnx_int8") | {
        "p1_cosine": round(p1, 5), "min_cosine": round(least, 5),
        "onnx_int8_p1_cosine": round(float(np.quantile(peer, 0.01)), 5),
        "onnx_int8_min_cosine": round(float(peer.min()), 5), "items_per_s": per_s}  # fmt: skip


def _ratio(theirs: list[float], ours: list[float]) -> Callable[[str], dict[str, float]]:
    each = [a / b for a, b in zip(theirs, ours, strict=True)]
    return lambda name: {name: round(sum(theirs) / sum(ours), 3), f"{name}_low": round(min(each), 3),
                         f"{name}_high": round(max(each), 3)}  # fmt: skip


def _cosines(folder: Path, kind: str, who: str, rounds: int) -> np.ndarray:
    """(items,) float64, of each vector to the torch side's."""
    found = []
    for n in range(1, rounds + 1):
        a, b = (np.load(folder / f"{kind}-{w}-{n}.npy").astype(np.float64) for w in (who, "torch"))
        norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        found.append((a * b).sum(1) / np.maximum(norm, 1e-12))
    return np.concatenate(found)


class _Side(Side):
    """A process that encodes a slice when told to."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        words = [sys.executable, "-m", "mmrec.bench.encoders", name, str(folder), str(threads)]
        super().__init__(f"bench embed, {name}", words, folder / f"{name}.log")

    def run(self, n: int) -> float:
        """Seconds that slice `n` took."""
        return float(self.ask({"slice": n})["seconds"])


def _write(folder: Path, kind: str, n: int, part: list[Any]) -> None:
    if kind == "text":
        (folder / f"text-{n}.json").write_text(json.dumps(part))
        return
    target = folder / f"image-{n}"
    target.mkdir()
    for m, data in enumerate(part):
        (target / f"{m:06d}").write_bytes(data)


def _films(source: Path) -> Iterator[dict[str, Any]]:
    from mmrec.worlds.sources import open_source

    for delivery in open_source("movielens-small", source, source).deliveries():
        if delivery.kind == "items":
            for batch in delivery.read():
                yield from batch.to_pylist()


def _texts(source: Path | None, most: int) -> list[str]:
    """Distinct titles and sentences; then sentences under their title, pairs of them, threes; titled ones as well.

    Shuffled (seed 0): slices are alike.
    """
    from mmrec.worlds.render import KINDS, text

    rng = np.random.default_rng(0)
    if source is None:
        told: Iterator[tuple[str, str]] = (text(n % KINDS, n, rng) for n in range(most))
    else:
        told = ((row["title"] or "", row["text"] or "") for row in _films(source))
    items = [(title, [s for s in re.split(r"(?<=[.!?])\s+", plot) if s]) for title, plot in told]
    found: dict[bytes, str] = {}

    def add(words: str) -> None:
        if words.strip() and len(found) < most:
            found.setdefault(hashlib.sha256(words.encode()).digest(), words)

    for title, _ in items:
        add(title)
    for _, sentences in items:
        for sentence in sentences:
            add(sentence)
    for title, sentences in items:
        for sentence in sentences:
            add(f"{title}. {sentence}")
    for _, sentences in items:
        for first, second in pairwise(sentences):
            add(f"{first} {second}")
    for title, sentences in items:
        for first, second in pairwise(sentences):
            add(f"{title}. {first} {second}")
    for title, sentences in items:
        for n in range(len(sentences) - 2):
            add(" ".join(sentences[n : n + 3]))
            add(" ".join([f"{title}.", *sentences[n : n + 3]]))
    texts = list(found.values())
    rng.shuffle(texts)
    return texts


def _pictures(source: Path | None, most: int) -> list[bytes]:
    """Distinct pictures, as files hold them."""
    from mmrec.worlds.render import KINDS, picture

    rng = np.random.default_rng(0)
    if source is None:
        raw: Iterator[bytes] = (picture(n % KINDS, rng) for n in range(most))
    else:
        raw = ((source / row["image"]).read_bytes() for row in _films(source) if row["image"])
    found: dict[bytes, bytes] = {}
    for data in raw:
        if len(found) == most:
            break
        found.setdefault(hashlib.sha256(data).digest(), data)
    return list(found.values())
