"""Media by URL at ingest: each fetched once, each refusal on record, what may pass tried again, into a real lake."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec import config, night
from mmrec.content import fetch
from mmrec.context import Night
from mmrec.features import asof
from mmrec.lake.session import session
from mmrec.lake.store import Lake
from mmrec.verify import verify
from mmrec.worlds import ingest as room
from mmrec.worlds import remote
from mmrec.worlds.files import FilesSource
from mmrec.worlds.ingest import ingest
from tests.unit.test_fetch import Server, network

NOW = datetime(2026, 3, 5, 12, tzinfo=UTC)
TABLES = [*(f"bronze.{k}" for k in ("interactions", "items", "users", "relations", "impressions", "wishes", "files", "media")), "ops.quarantine"]
A, B, C = "https://cdn.test/a.jpg", "https://cdn.test/b.jpg", "HTTP://cdn.test/c.wav"


class Web:
    """Pages by URL: bytes, or why there are none; `asked` counts."""

    passing = frozenset({"timeout", "host_not_allowed"})

    def __init__(self, **pages: bytes | str) -> None:
        self.pages: dict[str, bytes | str] = {{"a": A, "b": B, "c": C}[n]: v for n, v in pages.items()}
        self.asked: Counter[str] = Counter()

    def __call__(self, url: str, /) -> tuple[bytes | None, str]:
        self.asked[url] += 1
        page = self.pages[url]
        return (page, "") if isinstance(page, bytes) else (None, page)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("empty") / "lake"
    for name in TABLES:
        Lake(root).create(name)
    return root


@pytest.fixture
def lake(empty: Path, tmp_path: Path) -> Lake:
    shutil.copytree(empty, tmp_path / "lake")
    return Lake(tmp_path / "lake")


@pytest.fixture
def shop(tmp_path: Path) -> FilesSource:
    (tmp_path / "shop").mkdir()
    return FilesSource(tmp_path / "shop")


def deliver(shop: FilesSource, day: str, *items: dict[str, Any]) -> None:
    (shop.root / day).mkdir(exist_ok=True)
    (shop.root / day / "items.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def items(lake: Lake) -> list[dict[str, Any]]:
    return sorted(lake.arrow("bronze.items").to_pylist(), key=lambda r: (r["available_at"], r["item_id"]))


def told(lake: Lake) -> set[tuple[str, str]]:
    return {(r["rule"], r["raw"]) for r in lake.arrow("ops.quarantine").to_pylist()}


def test_a_medium_by_url_is_kept_like_one_that_was_delivered_and_a_rerun_fetches_nothing(lake: Lake, shop: FilesSource) -> None:
    (shop.root / "2026-03-01" / "media").mkdir(parents=True)
    (shop.root / "2026-03-01" / "media" / "x.jpg").write_bytes(b"same")
    deliver(shop, "2026-03-01", {"item_id": "1", "image": A}, {"item_id": "2", "image": B, "audio": C}, {"item_id": "3", "image": A},
            {"item_id": "4", "image": "media/x.jpg"}, {"item_id": "5"})  # fmt: skip
    web = Web(a=b"new", b=b"same", c=b"sound")
    counts = ingest(lake, shop, fetch=web, now=NOW)
    assert (counts["media"], counts["items"], counts.get("quarantined", 0)) == (3, 5, 0)
    assert web.asked == {A: 1, B: 1, C: 1}
    assert [(r["image_sha256"], r["audio_sha256"]) for r in items(lake)] == [
        (sha(b"new"), None), (sha(b"same"), sha(b"sound")), (sha(b"new"), None), (sha(b"same"), None), (None, None)]  # fmt: skip
    held = {m["sha256"]: (m["modality"], m["bytes"], m["uri"]) for m in lake.arrow("bronze.media").to_pylist()}
    assert held[sha(b"new")] == ("image", b"new", A)
    assert held[sha(b"sound")] == ("audio", b"sound", C)
    versions = lake.versions()
    assert set(ingest(lake, shop, fetch=web, now=NOW).values()) <= {0}
    assert (lake.versions(), web.asked.total()) == (versions, 3)
    # a new version of an item names what is known: by the bytes' own URL, or by another item's row
    deliver(shop, "2026-03-02", {"item_id": "1", "title": "t", "image": A}, {"item_id": "6", "image": B})
    ingest(lake, shop, fetch=web, now=NOW)
    assert web.asked.total() == 3
    assert [r["image_sha256"] for r in items(lake)[5:]] == [sha(b"new"), sha(b"same")]


def test_without_a_host_nothing_is_asked_and_the_item_goes_on(lake: Lake, shop: FilesSource) -> None:
    deliver(shop, "2026-03-01", {"item_id": "1", "title": "t", "image": A})
    assert ingest(lake, shop, now=NOW)["quarantined"] == 1
    assert [(r["image"], r["image_sha256"]) for r in items(lake)] == [(A, None)]
    assert told(lake) == {("image_url_host_not_allowed", A)}
    versions = lake.versions()
    ingest(lake, shop, now=NOW)
    assert lake.versions() == versions
    # a host that is allowed later: the item gets its picture without being delivered again
    assert ingest(lake, shop, fetch=Web(a=b"x"), now=NOW)["mended"] == 1
    assert [r["image_sha256"] for r in items(lake)] == [None, sha(b"x")]


def test_what_may_pass_is_tried_the_next_night_and_what_does_not_is_told_once(lake: Lake, shop: FilesSource) -> None:
    deliver(shop, "2026-03-01", {"item_id": "1", "title": "t", "image": A, "audio": C}, {"item_id": "2", "image": B})
    web = Web(a="timeout: slow", b="not_found: status 404", c=b"sound")
    assert ingest(lake, shop, fetch=web, now=NOW)["quarantined"] == 2
    assert told(lake) == {("image_url_timeout", A), ("image_url_not_found", B)}
    versions = lake.versions()
    ingest(lake, shop, fetch=web, now=NOW)
    assert lake.versions() == versions
    assert web.asked == {A: 2, B: 1, C: 1}
    # between the two nights the item was delivered anew; what comes late belongs to the version that named it
    deliver(shop, "2026-03-02", {"item_id": "1", "title": "newer"})
    web.pages[A] = b"picture"
    assert ingest(lake, shop, fetch=web, now=NOW)["mended"] == 1
    first, late, newer = [r for r in items(lake) if r["item_id"] == "1"]
    assert (first["image_sha256"], late["image_sha256"], late["audio_sha256"]) == (None, sha(b"picture"), sha(b"sound"))
    assert [r["available_at"] for r in (first, late, newer)] == [
        "2026-03-02T00:00:00+00:00", "2026-03-02T00:00:00.000001+00:00", "2026-03-03T00:00:00+00:00"]  # fmt: skip
    assert (late["title"], late["valid_from"], newer["title"]) == ("t", first["available_at"], "newer")
    assert json.loads(late["raw"])["row_hash"] == first["row_hash"]
    assert late["row_hash"] not in (first["row_hash"], newer["row_hash"])
    versions = lake.versions()
    assert set(ingest(lake, shop, fetch=web, now=NOW).values()) <= {0}
    assert (lake.versions(), web.asked[A], web.asked[B]) == (versions, 3, 1)


def test_media_that_come_on_different_nights_end_in_one_row_with_both(lake: Lake, shop: FilesSource) -> None:
    deliver(shop, "2026-03-01", {"item_id": "1", "image": A, "audio": C})
    web = Web(a="timeout: slow", c="timeout: slow")
    ingest(lake, shop, fetch=web, now=NOW)
    web.pages[C] = b"sound"
    ingest(lake, shop, fetch=web, now=NOW)
    web.pages[A] = b"picture"
    ingest(lake, shop, fetch=web, now=NOW)
    assert [(r["image_sha256"], r["audio_sha256"]) for r in items(lake)] == [
        (None, None), (None, sha(b"sound")), (sha(b"picture"), sha(b"sound"))]  # fmt: skip


@pytest.mark.parametrize("dies_at", ["bronze.media", "ops.quarantine", "bronze.items", "bronze.files"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_a_night_that_died_while_it_fetched_is_completed_by_the_next(lake: Lake, shop: FilesSource, monkeypatch: pytest.MonkeyPatch,
                                                                    dies_at: str, after: bool, late: bool) -> None:  # fmt: skip
    deliver(shop, "2026-03-01", {"item_id": "1", "image": A, "audio": C}, {"item_id": "2", "image": B})
    if late:
        ingest(lake, shop, fetch=Web(a="timeout: slow", b="timeout: slow", c="timeout: slow"), now=NOW)
    web = Web(a=b"picture", b=b"other", c="not_found: status 404")
    real = room.write

    def dying(lake: Lake, name: str, rows: Any, **more: Any) -> Any:
        if name != dies_at or not rows.num_rows:
            return real(lake, name, rows, **more)
        if after:
            real(lake, name, rows, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(room, "write", dying)
        patch.setattr(remote, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            ingest(lake, shop, fetch=web, now=NOW)
    assert {r["image_sha256"] for r in items(lake)} - {None} <= set(lake.arrow("bronze.media")["sha256"].to_pylist())
    ingest(lake, shop, fetch=web, now=NOW)
    newest = {r["item_id"]: r["image_sha256"] for r in items(lake)}
    assert newest == {"1": sha(b"picture"), "2": sha(b"other")}
    assert lake.dataset("bronze.items").count_rows() == (4 if late else 2)
    assert lake.dataset("bronze.media").count_rows() == 2
    assert ("audio_url_not_found", C) in told(lake)
    assert web.asked[A] == (2 if dies_at == "bronze.media" and not after else 1)


def test_fetched_bytes_are_committed_as_they_come_not_all_at_the_end(lake: Lake, shop: FilesSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_BYTES", 4)
    deliver(shop, "2026-03-01", {"item_id": "1", "image": A}, {"item_id": "2", "image": B}, {"item_id": "3", "audio": C})
    before = lake.version("bronze.media")
    assert ingest(lake, shop, fetch=Web(a=b"1234", b=b"12345", c=b"1"), now=NOW)["media"] == 3
    assert lake.version("bronze.media") == before + 3


@pytest.mark.parametrize("row", [{"available_at": "yesterday"}, {"available_at": "9999-12-31T23:59:59.999999+00:00"}])
def test_a_row_that_validate_keeps_out_is_not_mended(lake: Lake, shop: FilesSource, row: dict[str, Any]) -> None:
    deliver(shop, "2026-03-01", {"item_id": "1", "image": A} | row)
    web = Web(a="timeout: slow")
    ingest(lake, shop, fetch=web, now=NOW)
    web.pages[A] = b"x"
    assert "mended" not in ingest(lake, shop, fetch=web, now=NOW)
    assert lake.dataset("bronze.items").count_rows() == 1


@settings(max_examples=80)
@given(st.datetimes(min_value=datetime(1000, 1, 1), max_value=datetime(9998, 1, 1)), st.sampled_from(["", "Z", "+05:30", "-11:00"]))
def test_what_mends_a_row_is_a_microsecond_later_whatever_the_zone(moment: datetime, zone: str) -> None:
    later = remote._later(moment.isoformat() + zone)
    before = datetime.fromisoformat(moment.isoformat() + (zone or "+00:00"))
    assert later is not None
    gap = datetime.fromisoformat(later) - before
    assert (gap.days, gap.seconds, gap.microseconds) == (0, 0, 1)


def test_the_stations_of_two_nights_bring_a_late_picture_to_its_item(tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    a, b, far = (f"http://cdn.test:{server.port}/{n}" for n in ("a.jpg", "b.jpg", "far.jpg"))
    server.pages |= {"/a.jpg": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none",
                     "/b.jpg": b"HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n",
                     "/far.jpg": b"HTTP/1.1 302 There\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"}  # fmt: skip
    monkeypatch.setattr(fetch, "_Network", network)
    shop = FilesSource(tmp_path / "home" / "shop")
    shop.root.mkdir(parents=True)
    deliver(shop, "2026-03-01", *({"item_id": n, "title": n, "image": u} for n, u in (("a", a), ("b", b), ("far", far))))
    config.write(tmp_path / "home", {"engine": engine, "source": {"spec": "files", "root": str(shop.root),
                                                                  "media_hosts": (f"cdn.test:{server.port}",)}})  # fmt: skip
    cfg = config.load(tmp_path / "home")
    lake = Lake(cfg.lake)
    lake.create_all()

    def step() -> dict[str, str | None]:
        night.ingest(Night(cfg, date(2026, 3, 5)))
        night.validate(Night(cfg, date(2026, 3, 5)))
        silver = lake.frame(session(cfg.engine, cfg.spark), "silver.items", lake.version("silver.items"))
        rows = asof.items(silver, datetime(2026, 3, 5, tzinfo=UTC))
        found = rows.select("item_id", "image_sha256").toArrow().to_pylist()
        assert len(found) == 3
        return {r["item_id"]: r["image_sha256"] for r in found}

    try:
        assert step() == {"a": sha(b"one"), "b": None, "far": None}
        server.pages["/b.jpg"] = server.pages["/a.jpg"]
        assert step() == {"a": sha(b"one"), "b": sha(b"one"), "far": None}
        asked = len(server.seen)
        versions = lake.versions()
        assert step() == {"a": sha(b"one"), "b": sha(b"one"), "far": None}
        assert (lake.versions(), len(server.seen)) == (versions, asked)
    finally:
        server.closed.set()
        server.listener.close()
    assert {(r["rule"], r["raw"]) for r in lake.arrow("ops.quarantine").to_pylist()} == {
        ("image_url_unavailable", b), ("image_url_bad_redirect", far)}  # fmt: skip
    assert not [c for c in verify(cfg) if not c["ok"]]
