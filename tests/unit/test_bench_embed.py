"""`mmrec bench embed`: real sides on a few inputs, and what it refuses to tell."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from mmrec.bench import embed
from mmrec.errors import QualityError, TransientError
from tests.conftest import mmrec

KEYS = {"vs_sentence_transformers", "vs_onnx_int8", "images_vs_torch", "p1_cosine", "min_cosine", "items_per_s", "images_per_s",
        "onnx_int8_p1_cosine", "onnx_int8_min_cosine", "images_p1_cosine", "images_min_cosine", "source", "threads", "rounds",
        "texts", "images"}  # fmt: skip


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Two films in MovieLens' form, one with a plot."""
    root = tmp_path / "films"
    (root / "posters").mkdir(parents=True)
    (root / "movies.csv").write_text("movieId,title,genres\n1,Hats (1990),Comedy\n2,Shoes,Drama\n3,Hats (1990),War\n")
    (root / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,5,964982703\n")
    (root / "overviews.csv").write_text('movieId,source,overview\n1,x,"A hat. It falls! Who wears it? A hat."\n')
    for film, data in ((1, b"one"), (2, b"two"), (3, b"one")):
        (root / "posters" / f"{film}.jpg").write_bytes(data)
    return root


def test_texts_are_distinct_titles_and_sentences_first(films: Path) -> None:
    titles, told = {"Hats (1990)", "Shoes"}, {"A hat.", "It falls!", "Who wears it?"}
    assert set(embed._texts(films, 2)) == titles
    assert set(embed._texts(films, 5)) == titles | told
    everything = embed._texts(films, 100)
    assert len(set(everything)) == len(everything)
    assert {"Hats (1990). A hat.", "A hat. It falls!", "Hats (1990). Who wears it? A hat."} < set(everything)
    assert embed._texts(films, 100) == everything
    assert sorted(embed._pictures(films, 10)) == [b"one", b"two"]
    assert len(set(embed._texts(None, 50))) == 50
    assert len(embed._pictures(None, 5)) == 5


@pytest.mark.deep
def test_real_sides_on_a_few_inputs() -> None:
    words = ("bench", "embed", "--texts", "40", "--pictures", "6", "--rounds", "2", "--json")
    told: dict[str, Any] = json.loads(mmrec(*words).stdout)
    spread = {f"{k}_{w}" for k in ("vs_sentence_transformers", "vs_onnx_int8", "images_vs_torch") for w in ("low", "high")}
    assert set(told) == KEYS | spread
    assert (told["texts"], told["images"], told["rounds"], told["source"]) == (40, 6, 2, "built-in world")
    assert 0.99 <= told["p1_cosine"] < 1  # int8 is at work
    assert told["images_min_cosine"] > 0.9999  # fp32, other kernels


class Planted:
    """Sides that were timed before: seconds by name, vectors by name and slice."""

    seconds: ClassVar[dict[str, list[float]]] = {}
    turn: ClassVar[float] = 0.0
    order: ClassVar[list[str]] = []

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self.name, self.folder = name, folder

    def __enter__(self) -> Planted:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, n: int) -> float:
        kind, who = self.name.split("-")
        rows = json.loads((self.folder / f"text-{n}.json").read_text()) if kind == "text" else list((self.folder / f"image-{n}").iterdir())
        angle = {"mmrec": self.turn, "onnx_int8": 0.5}.get(who, 0.0)
        np.save(self.folder / f"{self.name}-{n}.npy", np.tile([[np.cos(angle), np.sin(angle)]], (len(rows), 1)))
        self.order.append(f"{who} {n}")
        return self.seconds[who][n]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> type[Planted]:
    monkeypatch.setattr(embed, "_Side", Planted)
    monkeypatch.setattr(Planted, "seconds", {"mmrec": [9, 1, 3], "torch": [99, 8, 8], "onnx_int8": [9, 2, 4]})
    monkeypatch.setattr(Planted, "order", [])
    return Planted


def test_ratios_are_of_summed_seconds_beside_the_lowest_and_highest_slice(planted: type[Planted]) -> None:
    told = embed.bench(2, lambda *_: None, texts=10, pictures=4)
    assert (told["vs_sentence_transformers"], told["vs_sentence_transformers_low"], told["vs_sentence_transformers_high"]) == (4, 2.667, 8)
    assert (told["vs_onnx_int8"], told["images_vs_torch"], told["items_per_s"], told["images_per_s"]) == (1.5, 4, 2.5, 1)
    assert told["onnx_int8_p1_cosine"] == pytest.approx(np.cos(0.5), abs=1e-5)
    assert planted.order[:9] == [f"{w} {n}" for w, n in zip(
        ["mmrec", "torch", "onnx_int8", "torch", "onnx_int8", "mmrec", "onnx_int8", "mmrec", "torch"], [0, 0, 0, 1, 1, 1, 2, 2, 2], strict=True)]  # fmt: skip


def test_vectors_that_are_not_the_references_are_no_result(planted: type[Planted], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Planted, "turn", 0.2)  # cosine .98007: one in a hundred must reach .99
    with pytest.raises(QualityError, match="not those of the reference") as caught:
        embed.bench(2, lambda *_: None, texts=10, pictures=4)
    assert round(caught.value.value["min"], 3) == 0.98


def test_a_side_that_dies_shows_its_last_words(tmp_path: Path) -> None:
    with embed._Side("text-nobody", tmp_path, 1) as side, pytest.raises(TransientError, match="a side failed") as caught:
        side.run(0)
    assert re.search(r"Error", str(caught.value.value))
