"""silver.item_groups over a real lake: what is grouped, what an unchanged catalogue costs, and that groups come and go."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_embed import TABLES as EMBED_TABLES
from test_embed import THEN, items, put

from mmrec import config, encoding, served
from mmrec.content import duplicates
from mmrec.content.duplicates import Alike, regroup
from mmrec.content.embed import embed
from mmrec.content.groups import Twin
from mmrec.lake import commit
from mmrec.lake.store import Lake

TABLES = (*EMBED_TABLES, "silver.item_groups")
Found = dict[str, tuple[str, list[str], float]]


class Angle:
    """An encoder of contents "<what> <degrees>": a vector of the plane for each; "broken" is refused."""

    dim = 2

    def __init__(self, modality: str, version: str = "") -> None:
        self.modality, self.version = modality, version or f"{modality}/1"

    def encode(self, raw: Sequence[Any]) -> tuple[np.ndarray, list[str | None]]:
        texts = [r if isinstance(r, str) else r.decode() for r in raw]
        why = ["truncated: half is missing" if t.startswith("broken") else None for t in texts]
        turn = np.radians([0.0 if w else float(t.split()[-1]) for t, w in zip(texts, why, strict=True)])
        return np.stack([np.cos(turn), np.sin(turn)], 1).astype(np.float32) * np.array([[w is None] for w in why]), why


TEXT, IMAGE = Alike("text", "text/1", 0.99), Alike("image", "image/1", 0.9)  # 8.1 and 25.8 degrees


def look(lake: Lake, *alike: Alike, remembered: Path | None = None) -> Found:
    embed(lake, [Angle("text"), Angle("image"), Angle("audio")], run_id="e", text_of=lambda r: r["text"])
    told = regroup(lake, alike or (TEXT, IMAGE), refusing=["text/1", "image/1", "audio/1"], text_of=lambda r: r["text"],
                   remembered=remembered or lake.root / "groups.json")  # fmt: skip
    rows = lake.arrow("silver.item_groups").to_pylist()
    assert told == {"groups": len({r["group_id"] for r in rows}), "grouped": len(rows)}
    return {r["item_id"]: (r["group_id"], r["modalities"], r["similarity"]) for r in rows}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fresh") / "lake"
    for name in TABLES:
        Lake(root).create(name)
    return root


@pytest.fixture
def lake(fresh: Path, tmp_path: Path) -> Lake:
    shutil.copytree(fresh, tmp_path / "lake")
    return Lake(tmp_path / "lake")


def test_items_alike_in_all_that_both_have_are_a_group_that_says_in_what(lake: Lake) -> None:
    items(lake, {"id": "a", "text": "hat 0", "image": b"p 0"}, {"id": "b", "text": "hat 5", "image": b"p 20"},
          {"id": "c", "text": "hat 5.5", "image": b"p 90"}, {"id": "d", "text": "hat 6"}, {"id": "e", "image": b"p 0", "text": "shoe 90"})  # fmt: skip
    found = look(lake)
    assert found["a"] == ("a", ["image", "text"], 1.0)
    assert found["b"] == ("a", ["image", "text"], pytest.approx(np.cos(np.radians(20)), abs=1e-6))
    assert found["d"] == ("a", ["text"], pytest.approx(np.cos(np.radians(6)), abs=1e-6))
    assert set(found) == {"a", "b", "d"}, "another picture, or another text, is another thing"


def test_an_item_is_what_its_newest_version_says_and_one_that_was_withdrawn_stays_known(lake: Lake) -> None:
    items(lake, {"id": "a", "text": "hat 0"}, {"id": "b", "text": "hat 0"}, {"id": "c", "text": "shoe 90"})
    assert set(look(lake)) == {"a", "b"}
    put(lake, "silver.items", [
        {"item_id": "b", "text": "shoe 91", "row_hash": "b2", "available_at": THEN + timedelta(days=1), "withdrawn_at": THEN + timedelta(days=1)},
        # delivered late: it was never the newest
        {"item_id": "c", "text": "hat 0", "row_hash": "c2", "available_at": THEN - timedelta(days=1)}])  # fmt: skip
    assert {i: g for i, (g, _, _) in look(lake).items()} == {"b": "b", "c": "b"}


def test_what_was_refused_says_nothing_of_an_item_and_a_content_without_a_bound_is_alike_only_when_equal(lake: Lake) -> None:
    items(lake, {"id": "a", "text": "hat 0", "image": b"broken 1"}, {"id": "b", "text": "hat 1", "image": b"broken 2"},
          {"id": "c", "text": "x 100", "image": b"broken 3", "audio": b"s 0"}, {"id": "d", "text": "y 200", "image": b"broken 3", "audio": b"s 0"},
          {"id": "e", "text": "z 300", "audio": b"s 0"}, {"id": "f", "audio": b"s 0"}, {"id": "g", "audio": b"s 1"})  # fmt: skip
    # a and b by text; of c, d and e, whose texts differ, none is f; f is like c in sound, the first of three
    assert {i: (g, m) for i, (g, m, _) in look(lake).items()} == {
        "a": ("a", ["text"]), "b": ("a", ["text"]), "c": ("c", ["audio", "text"]), "f": ("c", ["audio"])}  # fmt: skip


def test_every_kind_of_vector_of_a_modality_must_agree(lake: Lake) -> None:
    items(lake, {"id": "a", "image": b"p 0"}, {"id": "b", "image": b"p 1"})
    assert set(look(lake)) == {"a", "b"}
    second = Alike("image", "image/2", 0.9)
    assert look(lake, IMAGE, second) == {}, "without a vector of the second kind, only equal content is alike"
    embed(lake, [Angle("image", "image/2")], run_id="e", text_of=lambda r: r["text"])
    assert set(look(lake, IMAGE, second)) == {"a", "b"}


def test_a_catalogue_that_did_not_change_is_neither_read_nor_written(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    items(lake, {"id": "a", "text": "hat 0"}, {"id": "b", "text": "hat 1"}, {"id": "c", "text": "shoe 90"})
    calls: list[int] = []
    real = duplicates.twins
    monkeypatch.setattr(duplicates, "twins", lambda *given: (calls.append(1), real(*given))[1])
    first, version = look(lake), lake.version("silver.item_groups")
    assert (look(lake), len(calls), lake.version("silver.item_groups")) == (first, 1, version)
    # another item is looked at, and where it changes no group nothing is written, and that is remembered too
    items(lake, {"id": "d", "text": "bag 180"})
    for _ in range(2):
        assert (look(lake), len(calls), lake.version("silver.item_groups")) == (first, 2, version)
    # another bound, a lost memory, or a table that somebody else wrote: looked at again
    look(lake, Alike("text", "text/1", 0.9999), remembered=lake.root / "groups.json")
    assert (len(calls), lake.arrow("silver.item_groups").num_rows) == (3, 0)
    (lake.root / "groups.json").write_text("torn")
    assert (look(lake), len(calls)) == (first, 4)
    put(lake, "silver.item_groups", [{"item_id": "a", "group_id": "a", "modalities": [], "similarity": 1.0}])
    assert (look(lake), len(calls)) == (first, 5)


def test_groups_go_when_nobody_is_listed_twice_any_more_and_come_again(lake: Lake) -> None:
    items(lake, {"id": "a", "text": "hat 0"}, {"id": "b", "text": "hat 0"})
    assert set(look(lake)) == {"a", "b"}
    later = {"row_hash": "b2", "available_at": THEN + timedelta(days=1)}
    put(lake, "silver.items", [{"item_id": "b", "text": "shoe 90"} | later])
    assert look(lake) == {}
    version = lake.version("silver.item_groups")
    assert lake.arrow("silver.item_groups", version - 1).num_rows == 2, "an older version is what it was"
    assert (look(lake), lake.version("silver.item_groups")) == ({}, version)
    put(lake, "silver.items", [{"item_id": "b", "text": "hat 0", "row_hash": "b3", "available_at": THEN + timedelta(days=2)}])
    assert set(look(lake)) == {"a", "b"}


def test_the_commit_says_what_it_was_made_from(lake: Lake) -> None:
    items(lake, {"id": "a", "text": "hat 0"}, {"id": "b", "text": "hat 0"})
    look(lake)
    note = lake.handle("silver.item_groups").history(1)[0]
    read = json.loads(note["inputs"])
    assert {n: read[n] for n in ("silver.items", "gold.item_embeddings")} == {n: lake.version(n) for n in ("silver.items", "gold.item_embeddings")}
    assert note["run_id"].startswith("groups-")


def test_of_two_looks_at_once_the_slower_is_refused_and_finds_it_done(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    items(lake, {"id": "a", "text": "hat 0"}, {"id": "b", "text": "hat 0"})
    real, turns = duplicates.twins, []

    def slow(*given: Any) -> list[Twin]:
        turns.append(1)
        if len(turns) == 1:
            items(lake, {"id": "c", "text": "hat 1"})
            look(Lake(lake.root), remembered=lake.root / "other.json")
        return real(*given)

    monkeypatch.setattr(duplicates, "twins", slow)
    found = commit.again(lambda: look(lake))
    assert (set(found), len(turns)) == ({"a", "b", "c"}, 3)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from([None, 0, 5, 40, 44, 90]), st.sampled_from([None, None, 0, 20, 90])), min_size=1, max_size=14))
def test_any_catalogue_is_grouped_as_by_hand_and_again_the_same(fresh: Path, tmp_path: Path, drawn: list[tuple[int | None, int | None]]) -> None:
    shutil.rmtree(tmp_path / "lake", ignore_errors=True)
    shutil.copytree(fresh, tmp_path / "lake")
    lake = Lake(tmp_path / "lake")
    rows = [{"id": f"i{n:02}", "text": None if t is None else f"t {t}", "image": None if p is None else f"p {p}".encode()}
            for n, (t, p) in enumerate(drawn)]  # fmt: skip
    for part in (rows[::2], rows[1::2]):
        if part:
            items(lake, *part)
            embed(lake, [Angle("text"), Angle("image")], run_id="e", text_of=lambda r: r["text"])

    def like(x: dict[str, Any], y: dict[str, Any]) -> bool:
        both = [(m, float(str(x[m]).strip("'").split()[-1]), float(str(y[m]).strip("'").split()[-1])) for m in ("text", "image") if x[m] and y[m]]
        return bool(both) and all(np.cos(np.radians(a - b)) >= (TEXT if m == "text" else IMAGE).bound for m, a, b in both)

    want: dict[str, str] = {}
    firsts: list[dict[str, Any]] = []
    for row in rows:
        first = next((f for f in firsts if like(f, row)), row)
        firsts += [row] if first is row else []
        want[row["id"]] = first["id"]
    found = {i: g for i, (g, _, _) in look(lake).items()}
    assert found == {i: g for i, g in want.items() if list(want.values()).count(g) > 1}
    # looked at again: the same
    version = lake.version("silver.item_groups")
    (lake.root / "groups.json").unlink()
    assert {i: g for i, (g, _, _) in look(lake).items()} == found
    assert lake.version("silver.item_groups") == version


def test_which_vectors_must_agree_is_what_the_settings_have_a_bound_for(tmp_path: Path) -> None:
    def agreed(**more: Any) -> list[tuple[str, str]]:
        cfg = config.Config(home=tmp_path, **more)
        own, prints = served.encoders(cfg), served.fingerprints(cfg).values()
        alike = encoding._alike(cfg, own)
        versions = {a.version for a in alike}
        assert {p.version for p in prints} <= versions
        assert len(versions) == len(prints) + sum(a.version in {e.version for e in own} for a in alike)
        assert versions <= served.needed(cfg), "or maintenance would take them out"
        return sorted((a.modality, a.version.split("/")[0]) for a in alike)

    text, image = [("text", "bert"), ("text", "words")], [("image", "efficientnet-lite0"), ("image", "phash")]
    assert agreed() == [("audio", "logmel"), *image, *text]
    assert agreed(night={"text": ""}) == [("audio", "logmel"), *image]
    assert agreed(twins={"bounds": {"minilm": 0.9, "phash": 0.7}}) == text[:1], "a fingerprint alone decides nothing"
    assert agreed(twins={"bounds": {}}) == []
    for wrong in (0, 1.01, "near"):
        with pytest.raises(ValidationError):
            config.Config(home=tmp_path, twins={"bounds": {"minilm": wrong}})
