"""The content hash against its definition, spelled out row by row; in any order, chunks and pieces."""

from __future__ import annotations

import hashlib
import struct
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec import schema
from mmrec.lake import content

NAME = "gold.recommendations"
ARROW = schema.table(NAME).arrow


def naive(rows: list[dict[str, Any]]) -> str:
    t = schema.table(NAME)
    rows = sorted(rows, key=lambda r: tuple(r[k].encode() if isinstance(r[k], str) else r[k] for k in t.key))
    said = hashlib.sha256(f"{NAME}:{len(rows)}".encode())
    def told(values: list[Any]) -> bytes:
        return np.packbits(np.array([v is not None for v in values], bool)).tobytes()

    def texts(values: list[Any]) -> bytes:
        known = [v or "" for v in values]
        return told(values) + b"".join(struct.pack("<q", len(v.encode())) for v in known) + "".join(known).encode()

    for name in t.content_columns:
        field = ARROW.field(name)
        kind, values = field.type, [r[name] for r in rows]
        if field.nullable and not any(v is not None for v in values):
            continue
        said.update(f"|{name}:{kind}|".encode())
        if pa.types.is_string(kind):
            said.update(texts(values))
        elif pa.types.is_list(kind):
            inner = [x for v in values for x in v or []]
            lengths = told(values) + b"".join(struct.pack("<q", len(v or [])) for v in values)
            number = "<d" if pa.types.is_floating(kind.value_type) else "<q"
            said.update(lengths + (texts(inner) if pa.types.is_string(kind.value_type) else told(inner) + b"".join(struct.pack(number, x) for x in inner)))
        elif pa.types.is_floating(kind):
            said.update(told(values) + b"".join(struct.pack("<f" if kind == pa.float32() else "<d", v + 0.0) for v in values))
        else:
            days = [(v - date(1970, 1, 1)).days if isinstance(v, date) else v or 0 for v in values]
            said.update(told(values) + b"".join(struct.pack("<q", v) for v in days))
    return said.hexdigest()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(0, 10_000), st.sampled_from([8, 16, 2**20]))
def test_it_is_as_defined_whatever_order_chunks_and_pieces(n: int, seed: int, step: int) -> None:
    rng = np.random.default_rng(seed)
    words = ["", "a", "ab", "é", "😀", "z"]
    rows = [{"run_date": date(2026, 1, 1 + int(rng.integers(0, 2))), "arm": "main", "user_id": f"u{words[rng.integers(0, 6)]}", "rank": i + 1,
             "item_id": "i" + words[rng.integers(0, 6)], "score": float(np.float32(rng.choice([-0.0, 0.0, 1.5, -7]))),
             "source": "model", "reason": words[rng.integers(0, 6)], "propensity": 1.0, "model_version": "7", "run_id": "r",
             "ranked": [None, i][rng.integers(0, 2)], "rule": [None, *words][rng.integers(0, 7)], "place": [None, 0, i][rng.integers(0, 3)], "passed": [None, [], ["a", words[rng.integers(0, 6)]]][rng.integers(0, 3)], "passed_n": [None, [], [2, i]][rng.integers(0, 3)],
             **{name: [None, [], ["é", words[rng.integers(0, 6)]]][rng.integers(0, 3)] for name in ("because", "parts")},
             **{name: [None, [], [0.125, i / 3]][rng.integers(0, 3)] for name in ("because_share", "parts_share")}}
            for i in range(n)]  # fmt: skip
    want = naive(rows)
    shuffled = pa.Table.from_pylist([rows[i] for i in rng.permutation(n)], ARROW)
    cut = int(rng.integers(0, n + 1))
    chunked = pa.concat_tables([shuffled.slice(0, cut), shuffled.slice(cut)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "_STEP", step)
        for table in (pa.Table.from_pylist(rows, ARROW), shuffled, chunked):
            assert content.content_hash(table, NAME) == want
        asked: list[list[str]] = []

        def read(columns: list[str]) -> pa.Table:
            asked.append(columns)
            return chunked.select(columns)

        assert content.content_hash(read, NAME) == want
    t = schema.table(NAME)
    assert asked == [list(t.key), *([c] for c in t.content_columns)]  # the key, then a column at a time
