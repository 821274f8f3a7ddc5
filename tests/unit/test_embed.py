"""The embed step over a real lake: what is new is encoded once, what is refused is remembered and named, a kill costs one batch."""

from __future__ import annotations

import hashlib
import io
import random
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from mmrec import schema
from mmrec.content import pending
from mmrec.content.embed import embed
from mmrec.content.encoders import Encoder, encoder
from mmrec.errors import QualityError
from mmrec.features.windows import content_text
from mmrec.lake import commit
from mmrec.lake.content import text_key
from mmrec.lake.store import Lake

TABLES = ("silver.items", "bronze.media", "gold.item_embeddings", "ops.quarantine")
THEN = datetime(2026, 1, 1, tzinfo=UTC)


def sha(raw: str | bytes) -> str:
    return hashlib.sha256(raw.encode() if isinstance(raw, str) else raw).hexdigest()


class Counter:
    """An encoder that notes what it is given; a vector is drawn from its content's hash."""

    def __init__(self, modality: str, version: str = "", *, dim: int = 3, dies_at: int = 0, also: Callable[[], Any] | None = None) -> None:
        self.modality, self.version, self.dim = modality, version or f"{modality}/1", dim
        self.batches: list[list[Any]] = []
        self.dies_at, self.also = dies_at, also

    @property
    def seen(self) -> list[Any]:
        return [raw for batch in self.batches for raw in batch]

    def vector(self, raw: str | bytes) -> np.ndarray:
        return np.frombuffer(bytes.fromhex(sha(raw))[: self.dim], np.uint8).astype(np.float32) + 1

    def encode(self, raw: Sequence[Any]) -> tuple[np.ndarray, list[str | None]]:
        self.batches.append(list(raw))
        if len(self.batches) == self.dies_at:
            raise KeyboardInterrupt
        if self.also:
            self.also()
        why = ["truncated: half is missing" if r in ("broken", b"broken", f"no {self.modality}".encode()) else None for r in raw]
        emb = [np.zeros(self.dim, np.float32) if w else self.vector(r) for r, w in zip(raw, why, strict=True)]
        return np.array(emb, np.float32).reshape(-1, self.dim), why


def put(lake: Lake, name: str, rows: list[dict[str, Any]]) -> None:
    columns = schema.table(name).arrow
    full = [{"source": "s", "uri": "u", "attributes": "{}", "title": "", "categories": [], "available_at": THEN, "valid_from": THEN} | r for r in rows]
    table = pa.Table.from_pylist([{c: r.get(c) for c in columns.names} for r in full], columns)
    commit.write(lake, name, table, run_id="r", pinned=commit.fence(lake, name))


def items(lake: Lake, *rows: dict[str, Any]) -> None:
    """Items of id, text, image, audio: media as their bytes, True for a file the source does not have."""
    known = set(lake.arrow("bronze.media", columns=["sha256"]).column(0).to_pylist())
    media, made = {}, []
    for row in rows:
        one = {"item_id": row["id"], "text": row.get("text"), "row_hash": row.get("row_hash", f"row {row['id']}")}
        for modality in ("image", "audio"):
            data = row.get(modality)
            if data is not None:
                one[modality] = f"{modality}/{row['id']}"
            if isinstance(data, bytes):
                one[f"{modality}_sha256"] = sha(data)
                media[sha(data)] = {"sha256": sha(data), "modality": modality, "bytes": data}
        made.append(one)
    put(lake, "bronze.media", [m for s, m in media.items() if s not in known])
    put(lake, "silver.items", made)


def run(lake: Lake, *by: Encoder, **more: Any) -> dict[str, int]:
    return embed(lake, by, run_id="embed-1", text_of=lambda row: row["text"], **more)


def stored(lake: Lake, version: str | None = None) -> dict[tuple[str, str], dict[str, Any]]:
    rows = lake.arrow("gold.item_embeddings").to_pylist()
    assert len({(r["content_sha256"], r["encoder_version"]) for r in rows}) == len(rows)
    return {(r["encoder_version"], r["content_sha256"]): r for r in rows if version in (None, r["encoder_version"])}


def quarantined(lake: Lake) -> list[tuple[str, str]]:
    """(item's row, rule) of every row, sorted."""
    rows = lake.arrow("ops.quarantine").to_pylist()
    assert {r["table_name"] for r in rows} <= {"bronze.media"}
    return sorted((r["row_hash"], r["rule"]) for r in rows)


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


def test_only_new_content_is_encoded_and_equal_content_once(lake: Lake) -> None:
    items(lake, {"id": "a", "text": "hat", "image": b"p1"}, {"id": "b", "text": "hat", "image": b"p1"}, {"id": "c", "text": "shoe", "image": b"p2"})
    text, image = Counter("text"), Counter("image")
    counts = run(lake, text, image)
    assert sorted(text.seen) == ["hat", "shoe"]
    assert sorted(image.seen) == [b"p1", b"p2"]
    assert (counts["text_new"], counts["image_new"], counts["quarantined"]) == (2, 2, 0)
    # a later version of an item, and a new item that shares one content with an old one
    items(lake, {"id": "a", "text": "new hat", "image": b"p1", "row_hash": "later"}, {"id": "d", "text": "shoe", "image": b"p3"})
    text, image = Counter("text"), Counter("image")
    run(lake, text, image)
    assert (text.seen, image.seen) == (["new hat"], [b"p3"])
    assert len(stored(lake)) == 6


def test_every_vector_stands_under_its_own_content(lake: Lake) -> None:
    # more media than a batch takes, so that the order in which they are read back matters
    files = [f"picture {i}".encode() for i in range(1400)]
    items(lake, *({"id": str(i), "text": f"text {i}", "image": f} for i, f in enumerate(files)))
    text, image = Counter("text"), Counter("image", dim=5)
    run(lake, text, image)
    assert max(map(len, image.batches)) < 1400
    rows = stored(lake)
    assert len(rows) == 2800
    for raw in [*files, *(f"text {i}" for i in range(700))]:
        by = image if isinstance(raw, bytes) else text
        row = rows[by.version, sha(raw)]
        assert row["embedding"] == by.vector(raw).tolist()
        assert (row["dim"], row["modality"], row["refused"]) == (by.dim, by.modality, None)


def test_a_texts_key_is_the_one_that_features_look_up(lake: Lake) -> None:
    put(lake, "silver.items", [{"item_id": "a", "row_hash": "a", "title": "Münster 😀", "categories": ["x", "y"], "text": "\0שלום"}])
    embed(lake, [Counter("text")], run_id="r", text_of=lambda r: content_text(r["title"], r["categories"], r["text"]))
    assert list(stored(lake)) == [("text/1", text_key("Münster 😀. x, y. \0שלום"))]


def test_a_second_run_encodes_nothing_and_commits_nothing(lake: Lake) -> None:
    items(lake, {"id": "a", "text": "hat", "image": b"broken"}, {"id": "b", "audio": True}, {"id": "c"})
    assert run(lake, Counter("text"), Counter("image"), Counter("audio"))["quarantined"] == 4
    before = {t: lake.version(t) for t in TABLES}
    again = [Counter(m) for m in ("text", "image", "audio")]
    counts = run(lake, *again)
    assert [c.batches for c in again] == [[], [], []]
    assert set(counts.values()) == {0}
    assert {t: lake.version(t) for t in TABLES} == before


def test_refused_content_is_remembered_and_every_item_that_uses_it_is_named(lake: Lake) -> None:
    items(lake, {"id": "a", "image": b"broken"}, {"id": "b", "image": b"broken"}, {"id": "c", "image": b"fine"})
    image = Counter("image")
    counts = run(lake, image)
    assert sorted(image.seen) == [b"broken", b"fine"]
    assert (counts["image_new"], counts["image_refused"], counts["quarantined"]) == (2, 1, 2)
    kept = stored(lake)["image/1", sha(b"broken")]
    assert (kept["dim"], kept["embedding"], kept["refused"]) == (0, [], "truncated: half is missing")
    rows = {r["row_hash"]: r for r in lake.arrow("ops.quarantine").to_pylist()}
    assert set(rows) == {"row a", "row b"}
    assert rows["row b"]["rule"] == "image_truncated"
    assert rows["row b"]["reason"] == "truncated: half is missing"
    assert rows["row b"]["raw"] == "image/b"
    # an item that comes later with the same broken picture is named without a second look
    items(lake, {"id": "d", "image": b"broken"})
    image = Counter("image")
    assert run(lake, image)["quarantined"] == 1
    assert image.seen == []
    assert ("row d", "image_truncated") in quarantined(lake)


def test_a_missing_modality_is_absent_not_a_zero_vector(lake: Lake) -> None:
    items(lake, {"id": "a", "text": "hat"}, {"id": "b", "image": b"p"}, {"id": "c", "text": "", "image": True})
    run(lake, Counter("text"), Counter("image"), Counter("audio"))
    rows = stored(lake)
    assert set(rows) == {("text/1", sha("hat")), ("image/1", sha(b"p"))}
    assert all(any(r["embedding"]) for r in rows.values())
    # a picture that was never promised is no fault; one that can't be found is
    assert quarantined(lake) == [("row c", "image_missing"), ("row c", "no_content")]


def test_an_item_without_any_content_is_named_once(lake: Lake) -> None:
    items(lake, {"id": "bare"}, {"id": "heard", "audio": b"s"}, {"id": "seen", "image": b"p"}, {"id": "read", "text": "t"})
    run(lake, Counter("text"))
    run(lake, Counter("text"), Counter("image"))
    assert quarantined(lake) == [("row bare", "no_content")]
    (row,) = lake.arrow("ops.quarantine").to_pylist()
    assert row["raw"] == "bare"


def test_a_file_that_is_both_picture_and_sound_is_judged_by_each(lake: Lake) -> None:
    items(lake, {"id": "a", "image": b"broken", "audio": b"broken"}, {"id": "b", "image": b"no audio", "audio": b"no audio"})
    run(lake, Counter("image"))
    assert quarantined(lake) == [("row a", "image_truncated")]
    run(lake, Counter("image"), Counter("audio"))
    assert quarantined(lake) == [("row a", "audio_truncated"), ("row a", "image_truncated"), ("row b", "audio_truncated")]
    assert len(stored(lake)) == 4


def test_a_new_encoder_version_encodes_everything_again_beside_the_old(lake: Lake) -> None:
    items(lake, {"id": "a", "text": "hat"}, {"id": "b", "text": "broken"}, {"id": "c", "text": "shoe"})
    run(lake, Counter("text"))
    old = stored(lake)
    newer = Counter("text", "text/2", dim=7)
    run(lake, newer)
    assert sorted(newer.seen) == ["broken", "hat", "shoe"]
    assert stored(lake, "text/1") == old
    assert {len(r["embedding"]) for r in stored(lake, "text/2").values()} == {0, 7}
    back = Counter("text")
    run(lake, back)
    assert back.seen == [], "the old version's vectors are still there"


@pytest.mark.parametrize("dies_at", [1, 2, 3])
def test_a_kill_loses_at_most_one_batch_and_the_next_run_does_the_rest(lake: Lake, dies_at: int) -> None:
    n, batch = 2500, 1024
    put(lake, "silver.items", [{"item_id": str(i), "row_hash": str(i), "text": f"text {i}"} for i in range(n)])
    dying = Counter("text", dies_at=dies_at)
    with pytest.raises(KeyboardInterrupt):
        run(lake, dying)
    kept = len(stored(lake))
    assert kept == (dies_at - 1) * batch
    rest = Counter("text")
    counts = run(lake, rest)
    assert counts["text_new"] == len(rest.seen) == n - kept
    assert not {*rest.seen} & {*dying.seen[:kept]}
    done = stored(lake)
    assert {s for _, s in done} == {sha(f"text {i}") for i in range(n)}
    assert all(done["text/1", sha(t)]["embedding"] == rest.vector(t).tolist() for t in (dying.seen + rest.seen)[::97])


def test_texts_come_longest_first_and_media_a_bounded_number_of_bytes_at_a_time(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "_BYTES", 1000)
    pictures = [bytes([n]) * size for n, size in enumerate([10, 2000, 600, 600, 300, 5])]
    items(lake, *({"id": str(n), "text": "x" * (n + 1), "image": p} for n, p in enumerate(pictures)))
    text, image = Counter("text"), Counter("image")
    run(lake, text, image)
    assert [len(t) for t in text.seen] == [6, 5, 4, 3, 2, 1]
    assert sorted(image.seen) == sorted(pictures)
    assert all(len(b) == 1 or sum(map(len, b)) <= 1000 for b in image.batches)


def test_only_files_with_something_new_are_read_for_their_bytes(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    items(lake, *({"id": f"a{n}", "image": b"%d" % n * 1000} for n in range(5)))
    run(lake, Counter("image"))
    items(lake, {"id": "b", "image": b"new"}, {"id": "c", "image": b"1" * 1000})
    read: list[int] = []
    real = pending.Pending._media

    def counted(self: pending.Pending) -> Any:
        for sha, raw in real(self):
            read.append(len(raw))
            yield sha, raw

    monkeypatch.setattr(pending.Pending, "_media", counted)
    image = Counter("image")
    run(lake, image)
    assert (image.seen, read) == ([b"new"], [3])


def test_an_item_whose_medium_was_lost_stops_the_step_and_says_so(lake: Lake) -> None:
    put(lake, "silver.items", [{"item_id": "a", "row_hash": "a", "image": "a.jpg", "image_sha256": sha(b"gone")}])
    with pytest.raises(QualityError) as told:
        run(lake, Counter("image"))
    assert (told.value.where, told.value.value) == ("bronze.media", "1 of 1 are missing")


def test_a_catalogue_of_thousands_that_did_not_change_calls_no_model_and_commits_nothing(lake: Lake) -> None:
    put(lake, "silver.items", [{"item_id": str(i), "row_hash": str(i), "text": f"text {i}"} for i in range(5000)])
    run(lake, Counter("text"))
    versions, again = lake.versions(), Counter("text")
    assert run(lake, again) == {"text_new": 0, "quarantined": 0}
    assert (again.batches, lake.versions()) == ([], versions)


def test_two_versions_of_a_modality_are_both_fed(lake: Lake) -> None:
    items(lake, {"id": "a", "text": "hat"}, {"id": "b", "text": "broken"})
    old, new = Counter("text", "text/1"), Counter("text", "text/2", dim=7)
    run(lake, old, new)
    assert sorted(old.seen) == sorted(new.seen) == ["broken", "hat"]
    items(lake, {"id": "c", "text": "shoe"})
    old, new = Counter("text", "text/1"), Counter("text", "text/2", dim=7)
    assert run(lake, old, new)["text_new"] == 1, "a content is counted once, by the last"
    assert (old.seen, new.seen) == (["shoe"], ["shoe"])


def test_a_kill_after_a_refusal_was_stored_still_names_its_item_later(lake: Lake) -> None:
    items(lake, {"id": "a", "image": b"broken", "audio": b"s"})
    with pytest.raises(KeyboardInterrupt):
        run(lake, Counter("image"), Counter("audio", dies_at=1))
    assert quarantined(lake) == []
    image = Counter("image")
    run(lake, image, Counter("audio"))
    assert image.seen == []
    assert quarantined(lake) == [("row a", "image_truncated")]


def test_of_two_runs_at_once_the_slower_finds_it_done_and_no_content_stands_twice(lake: Lake) -> None:
    items(lake, {"id": "a", "text": "hat"}, {"id": "b", "text": "shoe"})
    other = Counter("text")
    slow = Counter("text", also=lambda: run(lake, other))
    run(lake, slow)
    assert sorted(other.seen) == sorted(slow.seen) == ["hat", "shoe"]
    assert len(stored(lake)) == 2
    assert run(lake, Counter("text"))["text_new"] == 0


def test_progress_counts_up_to_all(lake: Lake) -> None:
    put(lake, "silver.items", [{"item_id": str(i), "row_hash": str(i), "text": f"text {i}"} for i in range(1100)])
    told: list[tuple[str, int, int]] = []
    run(lake, Counter("text"), progress=lambda *step: told.append(step))
    assert [t[0] for t in told] == ["text"] * len(told)
    assert [t[1] for t in told] == sorted({t[1] for t in told})
    assert told[-1] == ("text", 1100, 1100)


def test_a_vector_that_is_no_number_is_refused_and_disturbs_nobody(lake: Lake) -> None:
    items(lake, {"id": "a", "image": b"odd"}, {"id": "b", "image": b"fine"})
    image = Counter("image")
    whole = image.vector
    image.vector = lambda raw: whole(raw) * (np.nan if raw == b"odd" else 1)  # type: ignore[method-assign]
    run(lake, image)
    rows = stored(lake)
    assert rows["image/1", sha(b"fine")]["embedding"] == whole(b"fine").tolist()
    assert rows["image/1", sha(b"odd")]["refused"]
    assert [r for r, _ in quarantined(lake)] == ["row a"]


def test_real_sounds_good_and_broken(lake: Lake, tmp_path: Path) -> None:
    out = io.BytesIO()
    soundfile.write(out, np.sin(np.arange(9000) * 0.1) * 0.3, 16_000, format="WAV")
    good = out.getvalue()
    items(lake, {"id": "a", "audio": good}, {"id": "b", "audio": good[:5000]}, {"id": "c", "audio": b"no sound"}, {"id": "d", "audio": b""})
    logmel = encoder("logmel", tmp_path)
    assert run(lake, logmel) == {"audio_new": 4, "audio_calls": 1, "audio_refused": 3, "quarantined": 3}
    assert quarantined(lake) == [("row b", "audio_truncated"), ("row c", "audio_not_audio"), ("row d", "audio_empty")]
    assert stored(lake)[logmel.version, sha(good)]["embedding"] == logmel.encode([good])[0][0].tolist()


@pytest.mark.parametrize("seed", range(4))
def test_any_shop_in_any_deliveries_ends_as_the_naive_one(lake: Lake, seed: int) -> None:
    rng = random.Random(seed)
    media = [None, True, b"broken", b"p1", b"p2", b"p3"]
    shop = [{"id": str(i), "text": rng.choice([None, "", "t1", "t2", "broken", "😀"]), "image": rng.choice(media), "audio": rng.choice(media)}
            for i in range(30)]  # fmt: skip
    looked: dict[str, list[Any]] = {"text": [], "image": [], "audio": []}
    for part in (shop[:7], shop[7:8], shop[8:]):
        items(lake, *part)
        by = [Counter(m) for m in looked]
        run(lake, *by)
        for one in by:
            looked[one.modality] += one.seen
    wanted, named = set(), set()
    for row in shop:
        contents = {m: row[m] for m in looked if row[m] and row[m] is not True}
        wanted |= {(f"{m}/1", sha(raw)) for m, raw in contents.items()}
        named |= {(f"row {row['id']}", f"{m}_truncated") for m in ("image", "audio") if row[m] == b"broken"}
        named |= {(f"row {row['id']}", f"{m}_missing") for m in ("image", "audio") if row[m] is True}
        named |= set() if contents else {(f"row {row['id']}", "no_content")}
    assert set(stored(lake)) == wanted
    assert quarantined(lake) == sorted(named)
    assert sorted((f"{m}/1", sha(r)) for m, raw in looked.items() for r in raw) == sorted(wanted), "each was looked at once"
