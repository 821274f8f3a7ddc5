"""Ingest into a real lake: every delivered row once, whatever comes again, grows, breaks or dies halfway."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrec import schema
from mmrec.errors import InputError, QualityError
from mmrec.lake.store import Lake
from mmrec.night import SILVER
from mmrec.steps import _SILVER
from mmrec.worlds import ingest as room
from mmrec.worlds.files import FilesSource, _reader, _standard
from mmrec.worlds.ingest import ingest
from mmrec.worlds.sources import Delivery, row_hash

NOW = datetime(2026, 3, 5, 12, tzinfo=UTC)
KINDS = ("interactions", "items", "users", "relations", "impressions", "wishes")
BRONZE = [*(f"bronze.{k}" for k in KINDS), "bronze.files", "bronze.media"]


class Shop:
    """Files of a folder that all carry their own times, so that a row is the same row in any file."""

    name = "shop"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.wrap: Callable[[Delivery], Delivery] = lambda d: d

    def write(self, file: str, *rows: str, kind: str = "interactions") -> None:
        header = "user_id,item_id,event_type,event_ts" if kind == "interactions" else "item_id,available_at,title,image,audio"
        path = self.root / "2026-03-01" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([header, *rows]) + "\n")

    def deliveries(self) -> list[Delivery]:
        found = []
        for path in sorted(self.root.rglob("*.csv")):
            kind = path.stem.split("_")[0]
            read = _reader(kind, path, "csv", ",", _standard(kind, "2026-03-01"))
            found.append(self.wrap(Delivery(kind, path.name, path, None, read)))
        return found

    def media(self, reference: str) -> bytes | None:
        return FilesSource(self.root).media(reference)


def event(n: int, user: str = "u") -> str:
    return f"{user},i{n},view,2026-02-{n % 28 + 1:02d}T00:00:00Z"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("empty") / "lake"
    for name in BRONZE:
        Lake(root).create(name)
    return root


@pytest.fixture
def lake(empty: Path, tmp_path: Path) -> Lake:
    shutil.copytree(empty, tmp_path / "lake")
    return Lake(tmp_path / "lake")


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "shop")


def rows(lake: Lake, kind: str = "interactions") -> list[dict[str, Any]]:
    return sorted(lake.arrow(f"bronze.{kind}").to_pylist(), key=lambda r: (r["file"], r["line"]))


def held(lake: Lake) -> Counter[tuple[str, str]]:
    return Counter((r["user_id"], r["item_id"]) for r in rows(lake))


def test_what_is_ingested_again_adds_nothing_and_commits_nothing(lake: Lake, tmp_path: Path) -> None:
    day = tmp_path / "shop" / "2026-03-01"
    (day / "media").mkdir(parents=True)
    (day / "media" / "a.jpg").write_bytes(b"a")
    (day / "interactions.csv").write_text("user_id,item_id\nu,i\nu,i\nbroken\n")
    (day / "items.jsonl").write_text('{"item_id": "i", "image": "media/a.jpg"}\n')
    (day / "users.csv").write_text("user_id\nu\n")
    (day / "relations.csv").write_text("kind,subject_id,relation,object_id\nitem,i,genre,x\n")
    (day / "impressions.jsonl").write_text('{"impression_id": "p", "rank": 1}\n')
    (day / "wishes.csv").write_text("user_id,wish,value\nu,hide,i\n")
    source = FilesSource(tmp_path / "shop")
    told: list[tuple[str, int]] = []
    counts = ingest(lake, source, now=NOW, progress=lambda *word: told.append(word))
    assert counts == {"files": 6, "rows": 8, "items": 1, "users": 1, "interactions": 3, "relations": 1, "impressions": 1,
                      "wishes": 1, "media": 1}  # fmt: skip
    assert sum(n for _, n in told) == 8
    versions, files = lake.versions(), sorted(lake.root.rglob("*"))
    again = ingest(lake, source, now=NOW.replace(day=6))
    assert set(again.values()) <= {0}
    assert lake.versions() == versions
    assert sorted(lake.root.rglob("*")) == files
    assert {r["ingested_at"] for r in rows(lake)} == {NOW}


def test_the_ledger_says_what_was_read_and_what_was_new(lake: Lake, shop: Shop) -> None:
    shop.write("interactions.csv", event(1), event(2))
    ingest(lake, shop, now=NOW)
    shop.write("interactions.csv", event(1), event(2), event(3))
    ingest(lake, shop, now=NOW)
    path = shop.root / "2026-03-01" / "interactions.csv"
    ledger = sorted(lake.arrow("bronze.files").to_pylist(), key=lambda r: r["rows"])
    assert [(r["rows"], r["new_rows"]) for r in ledger] == [(2, 2), (3, 1)]
    assert ledger[1]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert ledger[1]["bytes"] == path.stat().st_size
    # back to the first content: that file is known
    shop.write("interactions.csv", event(1), event(2))
    versions = lake.versions()
    ingest(lake, shop, now=NOW)
    assert lake.versions() == versions


@pytest.mark.parametrize("deaths", [1, 2])
def test_the_ledger_is_the_same_whether_or_not_an_ingest_died_before_it(lake: Lake, shop: Shop, monkeypatch: pytest.MonkeyPatch, deaths: int) -> None:
    """Rows that an ingest left before it died are new when the file gets on the ledger, and old from then on."""
    shop.write("interactions.csv", event(1), event(2))
    ingest(lake, shop, now=NOW)
    shop.write("interactions.csv", event(1), event(2), event(3))
    shop.write("interactions_b.csv", event(3), event(4))
    real = room.write

    def dies(lake: Lake, name: str, *args: Any, **more: Any) -> Any:
        if name == "bronze.files":
            raise KeyboardInterrupt
        return real(lake, name, *args, **more)

    for n in range(deaths):
        with monkeypatch.context() as patched:
            patched.setattr(room, "write", dies)
            with pytest.raises(KeyboardInterrupt):
                ingest(lake, shop, now=NOW + timedelta(minutes=n + 1))
        shop.write("interactions_c.csv", event(5))
    counts = ingest(lake, shop, now=NOW + timedelta(minutes=9))
    shop.write("interactions.csv", event(1), event(2), event(3), event(6))
    assert ingest(lake, shop, now=NOW + timedelta(minutes=10))["interactions"] == 1
    ledger = sorted((r["ingested_at"], r["file"], r["rows"], r["new_rows"]) for r in lake.arrow("bronze.files").to_pylist())
    assert [r[1:] for r in ledger] == [("interactions.csv", 2, 2), ("interactions.csv", 3, 1), ("interactions_b.csv", 2, 1),
                                       ("interactions_c.csv", 1, 1), ("interactions.csv", 4, 1)]  # fmt: skip
    assert counts["interactions"] == 3
    assert lake.arrow("bronze.interactions").num_rows == sum(r[3] for r in ledger)


def test_a_file_that_grew_or_was_shuffled_adds_only_its_new_rows(lake: Lake, shop: Shop) -> None:
    shop.write("interactions.csv", event(1), event(2))
    ingest(lake, shop, now=NOW)
    shop.write("interactions.csv", event(9), event(2), event(1))
    counts = ingest(lake, shop, now=NOW)
    assert (counts["rows"], counts["interactions"]) == (3, 1)
    assert held(lake) == {("u", "i1"): 1, ("u", "i2"): 1, ("u", "i9"): 1}
    # the new row knows where it stands; the old ones where they stood
    assert {r["item_id"]: r["line"] for r in rows(lake)} == {"i1": 2, "i2": 3, "i9": 2}
    shop.write("interactions.csv", event(9))  # rows that vanish from a file were delivered all the same
    ingest(lake, shop, now=NOW)
    assert sum(held(lake).values()) == 3


def test_equal_rows_are_counted_within_their_file_not_across_files(lake: Lake, shop: Shop) -> None:
    shop.write("interactions.csv", event(1), event(2), event(1), event(1))
    ingest(lake, shop, now=NOW)
    assert [(r["item_id"], r["occurrence"]) for r in rows(lake)] == [("i1", 0), ("i2", 0), ("i1", 1), ("i1", 2)]
    shop.write("interactions_b.csv", event(1), event(1))  # an overlap of two exports is no new event
    assert ingest(lake, shop, now=NOW)["interactions"] == 0
    shop.write("interactions_c.csv", *[event(1)] * 5)
    assert ingest(lake, shop, now=NOW)["interactions"] == 2
    assert sorted(r["occurrence"] for r in rows(lake) if r["item_id"] == "i1") == [0, 1, 2, 3, 4]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=6), min_size=1, max_size=4), st.randoms())
def test_bronze_holds_each_row_as_often_as_the_fullest_file_whatever_the_order(empty: Path, tmp_path_factory: Any,
                                                                               files: list[list[int]], random: Any) -> None:  # fmt: skip
    want: Counter[tuple[str, str]] = Counter()
    for values in files:
        want |= Counter(("u", f"i{n}") for n in values)
    hashes = []
    for at_once in (True, False):
        root = tmp_path_factory.mktemp("any")
        shutil.copytree(empty, root / "lake")
        lake, shop = Lake(root / "lake"), Shop(root / "shop")
        for place, n in enumerate(random.sample(range(len(files)), len(files))):
            shop.write(f"interactions_{place}.csv", *(event(v) for v in random.sample(files[n], len(files[n]))))
            if not at_once:
                ingest(lake, shop, now=NOW)
        ingest(lake, shop, now=NOW)
        assert held(lake) == want
        hashes.append({(r["row_hash"], r["occurrence"]) for r in rows(lake)})
    assert hashes[0] == hashes[1]


def test_no_two_different_rows_share_a_hash() -> None:
    values = [("ab", "c", None), ("a", "bc", None), ("ab", None, "c"), (None, "ab", "c"), ("abc", "", None), ("abc", None, None),
              ("2:ab", "c", None), ("ab1:c", None, None), ("-", None, None), ("a", "b", "c"), ("A", "b", "c")]  # fmt: skip
    assert len({row_hash(kind, v) for kind in ("users", "items") for v in values}) == 2 * len(values)


def test_the_hash_is_of_the_values_and_the_day_of_delivery_and_of_nothing_else(lake: Lake, tmp_path: Path) -> None:
    for day, text in (("2026-03-01", "item_id,user_id\ni,u\n"), ("2026-03-02", "user_id,item_id,more\nx,y,z\nu,i,9\n")):
        path = tmp_path / "shop" / day / "interactions.csv"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    (tmp_path / "shop" / "2026-03-02" / "interactions.jsonl").write_text('{"item_id": "i", "user_id": "u"}\n')
    ingest(lake, FilesSource(tmp_path / "shop"), now=NOW)
    got = rows(lake)
    # the dated folder gives the time of delivery: the next day's equal row is a row of its own, that day's jsonl is not
    assert [(r["file"][:10], r["line"], r["user_id"]) for r in got] == [
        ("2026-03-01", 2, "u"), ("2026-03-02", 2, "x"), ("2026-03-02", 3, "u")]  # fmt: skip
    assert [r["available_at"] for r in got] == ["2026-03-02T00:00:00+00:00"] + ["2026-03-03T00:00:00+00:00"] * 2
    assert len({r["row_hash"] for r in got}) == 3
    assert {r["occurrence"] for r in got} == {0}


def test_a_row_keeps_its_own_time_of_delivery(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "shop" / "2026-03-01" / "interactions.csv"
    path.parent.mkdir(parents=True)
    path.write_text("user_id,available_at\na,2020-01-01\nb,\n")
    ingest(lake, FilesSource(tmp_path / "shop"), now=NOW)
    assert [r["available_at"] for r in rows(lake)] == ["2020-01-01", "2026-03-02T00:00:00+00:00"]


def test_media_are_kept_once_by_content_and_items_point_to_them(lake: Lake, shop: Shop) -> None:
    media = shop.root / "2026-03-01" / "media"
    media.mkdir(parents=True)
    for name, data in (("a.jpg", b"same"), ("b.jpg", b"same"), ("c.jpg", b"other"), ("d.wav", b""), ("big.jpg", b"x")):
        (media / name).write_bytes(data)
    with (media / "big.jpg").open("r+b") as sparse:
        sparse.truncate(50 * 1024 * 1024 + 1)
    line = "i{},2026-01-01,t,{},{}".format
    shop.write("items.csv", line(1, "media/a.jpg", ""), line(2, "media/b.jpg", "media/d.wav"), line(3, "media/none.jpg", ""),
               line(4, "../../../secret", ""), line(5, "media/big.jpg", ""), kind="items")  # fmt: skip
    assert ingest(lake, shop, now=NOW)["media"] == 2
    sha = {d: hashlib.sha256(d).hexdigest() for d in (b"same", b"other", b"")}
    held = {m["sha256"]: m for m in lake.arrow("bronze.media").to_pylist()}
    assert {s: m["bytes"] for s, m in held.items()} == {sha[b"same"]: b"same", sha[b""]: b""}
    assert [(m["modality"], m["uri"]) for m in held.values() if m["bytes"]] == [("image", "2026-03-01/media/a.jpg")]
    assert [(r["image_sha256"], r["audio_sha256"]) for r in rows(lake, "items")] == [
        (sha[b"same"], None), (sha[b"same"], sha[b""]), (None, None), (None, None), (None, None)]  # fmt: skip
    shop.write("items_2.csv", line(6, "media/c.jpg", "media/a.jpg"), kind="items")
    assert ingest(lake, shop, now=NOW)["media"] == 1


def test_rows_that_can_not_be_parsed_land_in_bronze_as_they_came(lake: Lake, shop: Shop) -> None:
    shop.write("interactions.csv", event(1), "only,two", "", "a,b,c,d,e")
    with (shop.root / "2026-03-01" / "interactions.csv").open("ab") as file:
        file.write(b"caf\xe9,i,view,x\n\xf0\x9f\x98\x80,\x00,view,\nu,\"torn")
    assert ingest(lake, shop, now=NOW)["interactions"] == 7
    got = {r["line"]: r for r in rows(lake)}
    assert set(got) == set(range(2, 9))
    assert {n: r["raw"] for n, r in got.items() if r["parse_error"]} == {
        3: "only,two", 4: "", 5: "a,b,c,d,e", 6: "caf\ufffd,i,view,x", 8: 'u,"torn'}  # fmt: skip
    assert {n: r["raw"] for n, r in got.items() if not r["parse_error"]} == {2: None, 7: None}
    assert (got[7]["user_id"], got[7]["item_id"]) == ("😀", "\x00")
    assert all(got[n]["user_id"] is None for n in (3, 4, 5, 6, 8))
    # the same broken line twice is two rows, and known when it comes again
    shop.write("interactions_2.csv", "only,two", "only,two")
    assert ingest(lake, shop, now=NOW)["interactions"] == 1


@pytest.mark.parametrize("content", ["", "user_id,item_id\n"])
def test_an_empty_delivery_is_refused_before_anything_is_kept(lake: Lake, tmp_path: Path, content: str) -> None:
    for day, text in (("2026-03-01", "user_id,item_id\nu,i\n"), ("2026-03-02", content)):
        (tmp_path / "shop" / day).mkdir(parents=True)
        (tmp_path / "shop" / day / "interactions.csv").write_text(text)
        (tmp_path / "shop" / day / "items.jsonl").write_text('{"item_id": "i"}\n')
    versions = lake.versions()
    with pytest.raises(QualityError, match=r"2026-03-02/interactions\.csv"):
        ingest(lake, FilesSource(tmp_path / "shop"), now=NOW)
    assert lake.versions() == versions
    # delivered again, whole: nothing of the first try stands in the way
    (tmp_path / "shop" / "2026-03-02" / "interactions.csv").write_text("user_id,item_id\nu,j\n")
    assert ingest(lake, FilesSource(tmp_path / "shop"), now=NOW)["interactions"] == 2


def test_a_collapsed_delivery_is_measured_by_the_median_of_those_before(lake: Lake, shop: Shop) -> None:
    # a bulk history, then days: the bulk does not make a day look small, nor do two deliveries make a custom
    for n, size in enumerate((400, 10, 12)):
        shop.write(f"interactions_{n}.csv", *(event(i, f"u{n}.{i}") for i in range(size)))
        ingest(lake, shop, min_share=0.5, now=NOW)
    shop.write("interactions_3.csv", *(event(i, "v") for i in range(5)))
    shop.write("items.csv", "i1,2026-01-01,t,,", kind="items")
    versions = lake.versions()
    with pytest.raises(QualityError) as caught:
        ingest(lake, shop, min_share=0.5, now=NOW)
    told = str(caught.value)
    for word in ("interactions_3.csv", "value: 5", "50%", "12 rows", "source.min_share"):
        assert word in told
    assert lake.versions() == versions
    shop.write("interactions_3.csv", *(event(i, "v") for i in range(6)))  # at the very limit it is enough
    assert ingest(lake, shop, min_share=0.5, now=NOW)["interactions"] == 6


@pytest.mark.parametrize("dies_at", ["bronze.media", "bronze.items", "bronze.interactions", "bronze.files"])
@pytest.mark.parametrize("after", [False, True])
def test_an_ingest_that_died_halfway_is_completed_by_the_next(lake: Lake, shop: Shop, monkeypatch: pytest.MonkeyPatch,
                                                             dies_at: str, after: bool) -> None:  # fmt: skip
    media = shop.root / "2026-03-01" / "media"
    media.mkdir(parents=True)
    (media / "a.jpg").write_bytes(b"a")
    shop.write("items.csv", "i1,2026-01-01,t,media/a.jpg,", kind="items")
    shop.write("interactions.csv", event(1), event(1), event(2))
    real = room.write

    def dying(lake: Lake, name: str, *args: Any, **more: Any) -> Any:
        if name != dies_at:
            return real(lake, name, *args, **more)
        if after:
            real(lake, name, *args, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(room, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            ingest(lake, shop, now=NOW)
    # whatever was committed, no item row names bytes that are not there
    shas = set(lake.arrow("bronze.media")["sha256"].to_pylist())
    assert {r["image_sha256"] for r in rows(lake, "items")} <= shas
    ingest(lake, shop, now=NOW)
    assert held(lake) == {("u", "i1"): 2, ("u", "i2"): 1}
    assert [lake.dataset(n).count_rows() for n in ("bronze.items", "bronze.media", "bronze.files")] == [1, 1, 2]


def test_of_two_ingests_of_one_delivery_at_once_the_slower_finds_it_done_and_no_row_is_doubled(lake: Lake, shop: Shop) -> None:
    shop.write("interactions.csv", event(1), event(2))
    quick = Shop(shop.root)

    def overtaken(delivery: Delivery) -> Delivery:
        def read() -> Iterator[pa.RecordBatch]:
            ingest(lake, quick, now=NOW)  # commits after this one pinned its fence and listed what it knows
            yield from delivery.read()

        return replace(delivery, read=read)

    shop.wrap = overtaken
    ingest(lake, shop, now=NOW)
    assert held(lake) == {("u", "i1"): 1, ("u", "i2"): 1}
    versions = lake.versions()
    ingest(lake, quick, now=NOW)
    assert lake.versions() == versions


def test_bronze_is_read_in_full_by_the_engine(lake: Lake, shop: Shop, spark: Any) -> None:
    shop.write("interactions.csv", event(1), "broken", event(2))
    ingest(lake, shop, now=NOW)
    frame = lake.frame(spark, "bronze.interactions", lake.version("bronze.interactions"))
    assert frame.where("parse_error IS NULL").count() == 2
    assert sorted(r["line"] for r in frame.select("line").collect()) == [2, 3, 4]


def test_a_lake_without_tables_says_how_to_make_one(tmp_path: Path, shop: Shop) -> None:
    shop.write("interactions.csv", event(1))
    with pytest.raises(InputError, match="mmrec init"):
        ingest(Lake(tmp_path / "none"), shop)
    assert set(KINDS) == {n.split(".")[1] for n, t in schema.TABLES.items() if n.startswith("bronze.") and "row_hash" in t.key}
    assert set(KINDS) == set(schema.DELIVERED) == set(room._KINDS) == set(SILVER) == {n.split(".")[1] for n in _SILVER}
