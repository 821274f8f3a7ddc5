"""An encoder whose parts run elsewhere: the same bits, in their places, whatever order they come back in."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mmrec.config import SparkConfig
from mmrec.content.earlier import Earlier, Unfed
from mmrec.content.encoders import encoder
from mmrec.content.everywhere import Everywhere
from mmrec.lake.spread import map_rows, parts
from tests.unit.bombs import NOISE
from tests.unit.test_encoders import png, tone, wav
from tests.unit.test_media import Image

TEXTS = ["a red shoe", "x", "half \ud83d a character", "日本語", "", "a story of love and loss " * 9, "don't"]


def shuffled(rows: pa.Table, fn: Callable[..., Any], schema: pa.Schema) -> pa.Table:
    """As executors do: the function crosses as bytes, parts run in any order and have any size."""
    order = np.random.default_rng(0).permutation(rows.num_rows)
    there = pickle.loads(pickle.dumps(fn))  # noqa: S301  bytes of our own
    made = [pa.Table.from_batches(there(iter(rows.take(part).to_batches())), schema)
            for part in np.array_split(order, 3)]  # fmt: skip
    return pa.concat_tables(made)


@pytest.mark.parametrize(("name", "raw"), [
    ("minilm", TEXTS),
    ("efficientnet-lite0", [png(Image.fromarray(NOISE)), b"", b"no picture", png(Image.fromarray(255 - NOISE))]),
    ("logmel", [wav(tone(330)), b"no sound", wav(tone(440, seconds=2))]),
])  # fmt: skip
def test_parts_give_the_bits_of_the_whole(name: str, raw: list[Any], encoders_cache: Path) -> None:
    own = encoder(name, encoders_cache)
    emb, why = own.encode(raw)
    spread = Everywhere(own, shuffled)
    got, told = spread.encode(raw)
    assert (spread.modality, spread.version, spread.dim) == (own.modality, own.version, own.dim)
    assert got.tobytes() == emb.tobytes()
    assert told == why
    assert sum(w is None for w in why) >= 2
    here = Everywhere(own, lambda *how: map_rows("local", SparkConfig(), *how))
    assert here.encode(raw)[0].tobytes() == emb.tobytes()


def test_a_model_that_is_gone_is_told_here_and_not_by_an_executor(tmp_path: Path) -> None:
    def never(*_: object) -> pa.Table:
        raise AssertionError("sent")

    gone = Earlier("text", "v/1", [str(tmp_path / "gone")], tmp_path)
    with pytest.raises(Unfed, match="no such folder"):
        Everywhere(gone, never).encode(["x"])


def test_an_earlier_version_crosses_as_its_settings(tmp_path: Path) -> None:
    made = pickle.dumps(Earlier("text", "v/1", ["a", "b"], tmp_path, "cpu", 3))
    there = pickle.loads(made)  # noqa: S301  bytes of our own
    assert (there.modality, there.version, there.names, there._how) == ("text", "v/1", ["a", "b"], (tmp_path, "cpu", 3, "text"))


def test_a_batch_has_a_part_for_each_partition() -> None:
    assert (parts("local", SparkConfig(partitions=8)), parts("spark", SparkConfig(partitions=8))) == (1, 8)
