"""Vectors made elsewhere: looked up by content, refused by name, and a file that can't be trusted is told before a night."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmrec.content.encoders import encoder
from mmrec.content.vectors import Vectors
from mmrec.errors import InputError
from mmrec.lake.store import Lake
from tests.unit.test_embed import fresh, items, lake, quarantined, run, stored  # noqa: F401  fixtures


def write(file: Path, rows: dict[str | bytes, list[float]], kind: pa.DataType | None = None) -> Path:
    """A file of the vectors of raw contents."""
    keys = [hashlib.sha256(r.encode() if isinstance(r, str) else r).hexdigest() for r in rows]
    pq.write_table(pa.table({"content_sha256": keys, "vector": pa.array(list(rows.values()), kind or pa.list_(pa.float32()))}), file)
    return file


def test_contents_get_their_own_vectors_and_those_without_are_named(lake: Lake, tmp_path: Path) -> None:  # noqa: F811
    file = write(tmp_path / "v.parquet", {b"p1": [1, 2, 3], b"p2": [4, 5, 6], b"of nobody": [0, 0, 1]})
    items(lake, {"id": "a", "image": b"p1"}, {"id": "b", "image": b"p2"}, {"id": "c", "image": b"p3"})
    own = encoder(f"table:{file}", tmp_path, modality="image")
    counts = run(lake, own)
    assert (counts["image_new"], counts["image_refused"], counts["quarantined"]) == (3, 1, 1)
    held = {r["content_sha256"]: r["embedding"] for r in stored(lake, own.version).values()}
    assert held == {hashlib.sha256(k).hexdigest(): v for k, v in {b"p1": [1, 2, 3], b"p2": [4, 5, 6], b"p3": []}.items()}
    assert quarantined(lake) == [("row c", "image_no_vector")]
    assert run(lake, own)["image_new"] == 0


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.float32(), 2), pa.large_list(pa.float32())])
def test_lists_of_any_kind_will_do_and_texts_have_the_keys_of_features(kind: pa.DataType, tmp_path: Path) -> None:
    own = Vectors(write(tmp_path / "v.parquet", {"Münster 😀": [1, 0.5], "b": [3, 4]}, kind), "text")
    emb, why = own.encode(["b", "Münster 😀", "c", "b"])
    assert emb.tolist() == [[3, 4], [1, 0.5], [0, 0], [3, 4]]
    assert [w and w.split(":")[0] for w in why] == [None, None, "no_vector", None]
    assert (emb.dtype, own.dim, own.modality) == (np.float32, 2, "text")


def test_a_changed_file_is_another_version_and_a_moved_one_is_not(tmp_path: Path) -> None:
    first = Vectors(write(tmp_path / "a.parquet", {"a": [1.0]}), "text").version
    (tmp_path / "a.parquet").rename(tmp_path / "b.parquet")
    assert Vectors(tmp_path / "b.parquet", "text").version == first
    assert Vectors(write(tmp_path / "a.parquet", {"a": [2.0]}), "text").version != first
    assert Vectors(tmp_path / "b.parquet", "image").version != first


@pytest.mark.parametrize(("table", "says"), [
    ({"content_sha256": ["a"]}, "other columns"),
    ({"content_sha256": ["a"], "vector": [1.0]}, "other columns"),
    ({"content_sha256": ["a"], "vector": [["x"]]}, "other columns"),
    ({"content_sha256": pa.array([], pa.string()), "vector": pa.array([], pa.list_(pa.float32()))}, "empty"),
    ({"content_sha256": ["a", "b"], "vector": [[1.0], [1.0, 2.0]]}, "one length"),
    ({"content_sha256": ["a"], "vector": pa.array([[]], pa.list_(pa.float32()))}, "one length"),
    ({"content_sha256": ["a"], "vector": pa.array([None], pa.list_(pa.float32()))}, "one length"),
    ({"content_sha256": [*map(str, range(71))], "vector": [[1.0]] * 70 + [[1.0, 2.0]]}, "one length"),
    ({"content_sha256": ["a", "b"], "vector": [[1.0], [float("nan")]]}, "not finite"),
    ({"content_sha256": ["a", "a"], "vector": [[1.0], [2.0]]}, "several vectors"),
])  # fmt: skip
def test_a_file_that_can_not_be_trusted_is_refused_and_says_why(table: dict, says: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(table), tmp_path / "v.parquet")
    with pytest.raises(InputError, match=says) as caught:
        Vectors(tmp_path / "v.parquet", "text").encode(["a"])
    assert str(tmp_path / "v.parquet") in str(caught.value)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v.parquet").write_text("no parquet")
    for name in ("v.parquet", "gone.parquet"):
        with pytest.raises(InputError, match="can't be read"):
            encoder(f"table:{tmp_path / name}", tmp_path, modality="text")
    with pytest.raises(InputError, match="whose vectors"):
        encoder(f"table:{tmp_path / 'v.parquet'}", tmp_path)
