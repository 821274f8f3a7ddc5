"""Several pictures and texts of an item: delivered, encoded once each, pooled to one vector, alike wherever vectors join items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec import config, night, schema
from mmrec.content.embed import embed
from mmrec.content.neighbours import Neighbours
from mmrec.context import Night
from mmrec.encoding import fields_of, text_of
from mmrec.errors import InputError
from mmrec.lake import commit
from mmrec.lake.content import content_hash, text_key
from mmrec.lake.store import Lake
from mmrec.models.fields import contents, pool_fields, pooling
from mmrec.models.tables import content_of, items_from
from mmrec.named import hashes, media, references
from mmrec.worlds.files import FilesSource
from mmrec.worlds.ingest import ingest

NOW, THEN = datetime(2026, 3, 5, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
A, B, C = "https://a.test/1", "https://b.test/2", "https://c.test/3"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---- pooling


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["first", "mean"]), st.booleans())
def test_a_pooled_vector_is_that_of_a_loop_and_of_its_item_alone(seed: int, how: str, unit: bool) -> None:
    rng = np.random.default_rng(seed)
    emb = (rng.normal(size=(6, 5)) * 10.0 ** rng.integers(-2, 3, (6, 1))).astype(np.float32)
    emb[rng.random(6) < 0.1] = 0
    if unit:
        emb /= np.maximum(np.linalg.norm(emb, axis=1, keepdims=True), 1e-12)
    fields = [rng.permutation(6)[: rng.integers(0, 5)].tolist() for _ in range(8)]
    got, there = pool_fields(emb, fields, how)
    assert (got.dtype, got.shape, there.dtype) == (np.float32, (8, 5), bool)
    for n, own in enumerate(fields):
        vectors = [emb[m].astype(float) for m in own]
        full = [v for v in vectors if v.any()]
        if how == "first" or len(own) < 2:
            want, has = (vectors[0], True) if own else (np.zeros(5), False)
        elif not full:
            want, has = np.zeros(5), False
        else:
            mean = np.mean([v / np.linalg.norm(v) for v in full], 0)
            want, has = mean / np.linalg.norm(mean) * np.mean([np.linalg.norm(v) for v in full]), True
        assert there[n] == has
        np.testing.assert_allclose(got[n], want, rtol=1e-5, atol=1e-5 * max(1e-9, np.abs(want).max()))
        if unit and has and want.any():
            assert abs(np.linalg.norm(got[n]) - 1) < 1e-5
        assert np.array_equal(got[n], pool_fields(emb, [own], how)[0][0]), "a row's bits hang on its companions"


def test_vectors_that_cancel_out_are_none_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    emb = np.array([[1, 0], [-1, 0], [0, 1]], np.float32)
    got, there = pool_fields(emb, [[0, 1], [0, 2], [], [2]], "mean")
    assert there.tolist() == [False, True, False, True]
    np.testing.assert_allclose(got, [[0, 0], [0.5**0.5, 0.5**0.5], [0, 0], [0, 1]], atol=1e-7)
    monkeypatch.setattr("mmrec.models.fields._BLOCK", 1)
    assert np.array_equal(pool_fields(emb, [[0, 1], [0, 2], [], [2]], "mean")[0], got)


@pytest.mark.parametrize(("emb", "fields", "how"), [(np.zeros((2, 2)), [[0]], "sum"), (np.zeros(2), [], "mean"), (np.zeros((2, 2)), [[2]], "first"),
                                                   (np.zeros((2, 2)), [[0, -1]], "mean")])  # fmt: skip
def test_what_can_not_be_pooled_is_refused(emb: np.ndarray, fields: list[list[int]], how: str) -> None:
    with pytest.raises(InputError):
        pool_fields(emb, fields, how)


def test_a_choice_names_its_pooling_and_no_choice_is_the_usual_one() -> None:
    assert [pooling({}, m) for m in ("text", "image", "audio")] == ["first"] * 3
    assert (pooling({"text": "separate"}, "text"), pooling({"image": "mean"}, "image"), pooling({"image": "mean"}, "text")) == ("mean", "mean", "first")
    with pytest.raises(InputError):
        pooling({"image": "last"}, "image")
    assert contents(["a", None, "a"], [None, None, ["b", None, "a", "b"]]) == [["a"], [], ["b", "a"]]


# ---- what a row names


@pytest.mark.parametrize(("text", "want"), [(None, []), ("", []), ("a.jpg", ["a.jpg"]), ("[1].jpg", ["[1].jpg"]), ('["a", null, "", "b"]', ["a", "b"]), ("[]", []),
                                           ('["a", 3]', ['["a", 3]']), ('["a"', ['["a"']), ('["\\ud800"]', ['["\\ud800"]'])])  # fmt: skip
def test_a_column_names_one_picture_or_a_list_of_them(text: str | None, want: list[str]) -> None:
    assert references("image", text) == want
    assert references("audio", text) == ([text] if text else [])


@given(st.lists(st.none() | st.text("ab", min_size=1), max_size=4))
def test_hashes_stand_beside_what_is_named(shas: list[str | None]) -> None:
    names = [f"n{n}" for n in range(len(shas))]
    row = {"image": json.dumps(names) if len(names) != 1 else names[0]} | hashes("image", shas)
    assert media(row, "image") == list(zip(names, shas, strict=True))
    assert (row["images_sha256"] is None) == (len(shas) < 2)


# ---- from files to silver


class Encoder:
    """Draws a vector from a content's hash; bytes that begin with `bad` are refused."""

    def __init__(self, modality: str, version: str = "") -> None:
        self.modality, self.version, self.dim, self.seen = modality, version or f"{modality}/1", 4, []

    def vector(self, raw: str | bytes) -> np.ndarray:
        digest = text_key(raw) if isinstance(raw, str) else sha(raw)
        return np.frombuffer(bytes.fromhex(digest)[:4], np.uint8).astype(np.float32) - 127.5

    def encode(self, raw: Sequence[Any]) -> tuple[np.ndarray, list[str | None]]:
        self.seen += raw
        why = ["truncated: half is missing" if r[:3] == b"bad" else None for r in raw]
        return np.array([self.vector(r) * (w is None) for r, w in zip(raw, why, strict=True)], np.float32).reshape(-1, 4), why


@pytest.fixture
def home(tmp_path: Path, engine: str, spark: object) -> config.Config:
    """A shop of four items: without a picture, with one, with three, and with a broken and a missing one among them."""
    day = tmp_path / "shop" / "2026-03-01"
    day.mkdir(parents=True)
    for name, data in (("1", b"one"), ("2", b"two"), ("3", b"three"), ("x", b"bad")):
        (day / f"{name}.jpg").write_bytes(data)
    rows = ["item_id,title,text,image", "none,No,,", "one,One,long,1.jpg", 'three,Three,,"[""1.jpg"",""2.jpg"",""3.jpg""]"',
            'broken,Broken,words,"[""gone.jpg"",""x.jpg"",""2.jpg"",""away.jpg""]"']  # fmt: skip
    (day / "items.csv").write_text("\n".join(rows) + "\n")
    config.write(tmp_path / "home", {"engine": engine, "source": {"spec": "files", "root": str(tmp_path / "shop")}})
    made = config.load(tmp_path / "home")
    Lake(made.lake).create_all()
    return made


def step(home: config.Config, *encoders: Encoder, **more: Any) -> dict[str, Any]:
    night.ingest(Night(home, date(2026, 3, 5)))
    night.validate(Night(home, date(2026, 3, 5)))
    return embed(Lake(home.lake), encoders, run_id="e", text_of=text_of, **more)


def silver(home: config.Config) -> dict[str, dict[str, Any]]:
    rows = Lake(home.lake).arrow("silver.items").sort_by("available_at").to_pylist()
    return {r["item_id"]: r for r in rows}


def test_a_shop_delivers_none_one_and_several_pictures_and_each_is_encoded_once(home: config.Config) -> None:
    picture, text = Encoder("image"), Encoder("text")
    counts = step(home, text, picture, prints=[phash := Encoder("image", "phash/1")])
    one, two, three, bad = map(sha, (b"one", b"two", b"three", b"bad"))
    items = silver(home)
    assert {i: (r["image_sha256"], r["images_sha256"]) for i, r in items.items()} == {
        "none": (None, None), "one": (one, None), "three": (one, [one, two, three]), "broken": (bad, [None, bad, two, None])}  # fmt: skip
    assert sorted(picture.seen) == [b"bad", b"one", b"three", b"two"]
    assert sorted(phash.seen) == [b"bad", b"one"], "fingerprints tell twins by the first picture"
    told = {(r["row_hash"], r["occurrence"], r["rule"], r["raw"].split("/")[-1]) for r in Lake(home.lake).arrow("ops.quarantine").to_pylist()}
    at = items["broken"]["row_hash"]
    assert told == {(at, 0, "image_missing", "gone.jpg"), (at, 1, "image_truncated", "x.jpg"), (at, 3, "image_missing", "away.jpg")}
    assert (counts["image_new"], counts["quarantined"]) == (4, 3)
    # again: nothing. A picture more: one is encoded
    assert step(home, text, picture)["image_new"] == 0
    new = Path(home.source.root or "") / "2026-03-02"
    new.mkdir()
    for name, data in (("1", b"one"), ("4", b"four")):
        (new / f"{name}.jpg").write_bytes(data)
    (new / "items.jsonl").write_text(json.dumps({"item_id": "one", "title": "One", "text": "long", "image": ["1.jpg", "4.jpg"]}) + "\n")
    counts = step(home, text, picture)
    assert (counts["image_new"], counts["text_new"], counts["quarantined"]) == (1, 0, 0)
    assert silver(home)["one"]["images_sha256"] == [one, sha(b"four")]


def test_texts_apart_are_encoded_beside_the_whole_and_once(home: config.Config) -> None:
    text = Encoder("text")
    step(home, text)
    assert sorted(text.seen) == ["Broken. words", "No", "One. long", "Three"]
    text.seen.clear()
    step(home, text, fields_of=fields_of)
    assert sorted(text.seen) == ["Broken", "One", "long", "words"]


def test_how_pictures_are_pooled_decides_the_vectors_of_those_with_several_alone(home: config.Config) -> None:
    picture, text = Encoder("image"), Encoder("text")
    step(home, text, picture, fields_of=fields_of)
    lake = Lake(home.lake)
    rows = lake.arrow("silver.items").sort_by("item_id")
    listed = rows.to_pylist()
    rows = rows.append_column("text_sha256", pa.array([text_key(text_of(r)) for r in listed]))
    rows = rows.append_column("texts_sha256", pa.array([[text_key(t) for t in fields_of(r)] or None for r in listed], pa.list_(pa.string())))
    vectors, versions = lake.arrow("gold.item_embeddings"), {"image": "image/1", "text": "text/1"}

    def pooled(*raw: Any) -> np.ndarray:
        unit = [(v := picture.vector(r).astype(float)) / np.linalg.norm(v) for r in raw]
        mean = np.mean(unit, 0)
        return mean / np.linalg.norm(mean) * np.mean([np.linalg.norm(picture.vector(r)) for r in raw])

    first, has = content_of(vectors, versions, rows, {})
    mean, also = content_of(vectors, versions, rows, {"image": "mean", "text": "separate"})
    assert rows["item_id"].to_pylist() == ["broken", "none", "one", "three"]
    assert has["image"].tolist() == also["image"].tolist() == [True, False, True, True]
    # a first picture that is refused gives way to the next that is good
    np.testing.assert_array_equal(first["image"], [picture.vector(b"two"), np.zeros(4), picture.vector(b"one"), picture.vector(b"one")])
    np.testing.assert_allclose(mean["image"], [picture.vector(b"two"), np.zeros(4), picture.vector(b"one"), pooled(b"one", b"two", b"three")], rtol=1e-5)
    np.testing.assert_array_equal(first["text"], [text.vector(t) for t in ("Broken. words", "No", "One. long", "Three")])
    np.testing.assert_allclose(mean["text"], [pooled("Broken", "words"), text.vector("No"), pooled("One", "long"), text.vector("Three")], rtol=1e-5)
    # the catalogue that models see is made by the same function, and is the usual one where nothing is chosen
    zero = pa.array(np.zeros(4, np.int64))
    rows = rows.append_column("available_us", zero).append_column("withdrawn_us", zero)
    for fields, want in (({}, first), ({"image": "mean"}, {"image": mean["image"], "text": first["text"]})):
        items = items_from(rows, vectors, versions, fields=fields)
        assert all(np.array_equal(items.content[m], want[m]) for m in versions)
    assert np.array_equal(items_from(rows, vectors, versions).content["image"], first["image"])

    # and so is the one that people ask
    for pool, content in (("first", first), ("mean", mean)):
        near = Neighbours(lake, modality="image", version="image/1", text_of=text_of, pool=pool).of(["broken", "one", "three"], 3)
        unit = {i: content["image"][n] / np.linalg.norm(content["image"][n]) for n, i in enumerate(rows["item_id"].to_pylist()) if has["image"][n]}
        for item, found in near.items():
            assert {f["item_id"]: f["similarity"] for f in found} == pytest.approx({o: float(unit[item] @ unit[o]) for o in unit if o != item}, abs=2e-6)
        assert [f["same"] for f in near["one"] if f["item_id"] == "three"] == [pool == "first"]
    seen = Neighbours(lake, modality="text", version="text/1", text_of=text_of, fields_of=fields_of, pool="mean").of(["one"], 3)["one"]
    a, b = mean["text"][2], mean["text"][0]
    assert next(f["similarity"] for f in seen if f["item_id"] == "broken") == pytest.approx(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)), abs=2e-6)


class Web:
    """Answers by URL: bytes, or why not; counts how often each is asked for."""

    passing = frozenset({"timeout"})

    def __init__(self, **pages: bytes | str) -> None:
        self.pages, self.asked = {{"a": A, "b": B, "c": C}[k]: v for k, v in pages.items()}, []

    def __call__(self, url: str, /) -> tuple[bytes | None, str]:
        self.asked.append(url)
        page = self.pages[url]
        return (None, page) if isinstance(page, str) else (page, "")


def test_pictures_by_url_and_by_path_keep_their_order_whenever_they_come(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    lake.create_all()
    day = tmp_path / "shop" / "2026-03-01"
    day.mkdir(parents=True)
    (day / "l.jpg").write_bytes(b"local")
    (day / "items.jsonl").write_text(json.dumps({"item_id": "1", "image": [A, "l.jpg", B, C]}) + "\n")
    shop, web = FilesSource(tmp_path / "shop"), Web(a="timeout: slow", b="not_found: status 404", c=b"third")

    def newest() -> tuple[Any, Any]:
        row = lake.arrow("bronze.items").sort_by("available_at").to_pylist()[-1]
        return row["image_sha256"], row["images_sha256"]

    ingest(lake, shop, fetch=web, now=NOW)
    assert newest() == (sha(b"local"), [None, sha(b"local"), None, sha(b"third")])
    assert {(r["occurrence"], r["rule"]) for r in lake.arrow("ops.quarantine").to_pylist()} == {(0, "image_url_timeout"), (2, "image_url_not_found")}
    versions = lake.versions()
    ingest(lake, shop, fetch=web, now=NOW)
    assert lake.versions() == versions
    web.pages[A] = b"first"
    assert ingest(lake, shop, fetch=web, now=NOW)["mended"] == 1
    assert newest() == (sha(b"first"), [sha(b"first"), sha(b"local"), None, sha(b"third")])
    assert (web.asked.count(A), web.asked.count(B), web.asked.count(C)) == (3, 1, 1)


# ---- what was there before stays what it was


def test_rows_with_one_picture_hash_as_before_and_the_features_of_old_models_are_theirs(tmp_path: Path) -> None:
    day = tmp_path / "2026-03-01"
    day.mkdir()
    reads = []
    for image in ("a.jpg", ["a.jpg"], ["a.jpg", None]):
        (day / "items.jsonl").write_text(json.dumps({"item_id": "1", "image": image}) + "\n")
        (batch,) = FilesSource(tmp_path).deliveries()[0].read()
        reads.append(batch.to_pylist())
    assert reads[0] == reads[1] == reads[2]
    assert reads[0][0]["image"] == "2026-03-01/a.jpg"
    # the digest that bundles of before there was a choice hold
    assert schema.features_fingerprint() == "bc943b78393c3737"
    t = schema.table("gold.item_features").arrow
    row = {c: None for c in t.names} | {"run_date": date(2026, 3, 1), "item_id": "1", "title": "t", "categories": [], "run_id": "r"}
    row |= dict.fromkeys((c for c in t.names if c.startswith("n_") or c.endswith("_us") or c == "popularity_micro"), 0)
    plain, more = (pa.Table.from_pylist([row | x], t) for x in ({}, {"images_sha256": ["a", None]}))
    assert content_hash(plain, "gold.item_features") == "4e508c625b67d36b08f172eb66bfb818ca48736e073b2b47e286364a2e984dba"
    assert content_hash(more, "gold.item_features") != content_hash(plain, "gold.item_features")


def test_a_home_of_before_takes_the_columns_and_reads_its_rows(tmp_path: Path) -> None:
    from dataclasses import replace

    from mmrec.lake import evolve

    lake = Lake(tmp_path / "lake")
    now = schema.TABLES["silver.items"]
    old = replace(now, columns=tuple(c for c in now.columns if c.name != "images_sha256"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(schema.TABLES, "silver.items", old)
        lake.create_all()
        row = {"item_id": "1", "available_at": THEN, "valid_from": THEN, "title": "", "categories": [], "attributes": "{}", "source": "s", "row_hash": "h", "image": "a",
               "image_sha256": "x"}  # fmt: skip
        table = pa.Table.from_pylist([{c: row.get(c) for c in old.arrow.names}], old.arrow)
        commit.write(lake, "silver.items", table, run_id="r", pinned=commit.fence(lake, "silver.items"))
    lake = Lake(tmp_path / "lake")
    assert {(d.change, d.column) for d in evolve.absorb(lake) if d.table == "silver.items" and d.change == "column_added"} == {("column_added", "images_sha256")}
    assert [(r["image_sha256"], r["images_sha256"]) for r in lake.arrow("silver.items").to_pylist()] == [("x", None)]
