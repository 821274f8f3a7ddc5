"""Freshness and night counts against hand-computed answers, user pages, and a page that hostile text can't break."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from datetime import UTC, date, datetime, timedelta
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from clips import clip, moving
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from mmrec import schema
from mmrec.content.sandbox import Sandbox
from mmrec.content.video import still
from mmrec.errors import InputError
from mmrec.lake import commit
from mmrec.lake.store import Lake
from mmrec.monitor import charts, health, report
from mmrec.monitor.quality import quality
from mmrec.monitor.report import write_report
from mmrec.monitor.show import plain, render, user_page, user_pages

D1, D2 = date(2026, 3, 1), date(2026, 3, 2)
AS_OF = datetime(2026, 3, 2, tzinfo=UTC)
EVIL = '<script>alert("x")</script><img src=http://evil.example/a.png onerror=1>'
SILVER = ("interactions", "items", "users", "relations", "impressions", "wishes")


def jpeg(width: int = 40, height: int = 60, noise: np.random.Generator | None = None) -> bytes:
    """A red picture, or one that is hard to compress and larger than any on the page."""
    out = io.BytesIO()
    plain_red = Image.new("RGB", (width, height), (200, 30, 30))
    picture = plain_red if noise is None else Image.fromarray(noise.integers(0, 256, (300, 200, 3), np.uint8))
    picture.save(out, "JPEG")
    return out.getvalue()


def put(lake: Lake, name: str, rows: list[dict[str, Any]], run_id: str = "r", day: date | None = None) -> None:
    """Commit rows; what a row leaves out is null, or a plain value where null is not allowed."""
    t = schema.table(name)
    plain_value = {"STRING": "", "INT": 0, "BIGINT": 0, "DOUBLE": 0.0, "FLOAT": 0.0, "BOOLEAN": False,
                   "TIMESTAMP": datetime(2026, 1, 1, tzinfo=UTC), "BINARY": b"", "DATE": D1}  # fmt: skip

    def value(c: schema.Column, row: dict[str, Any]) -> Any:
        return row.get(c.name, None if c.nullable else plain_value.get(c.type, []))

    arrays = [pa.array([value(c, r) for r in rows], c.arrow.type) for c in t.columns]
    table = pa.table(arrays, schema=t.arrow)
    commit.write(lake, name, table, run_id=run_id, pinned=commit.fence(lake, name, day), partition=day)


def slate(day: date, user: str, items: list[str], run_id: str, source: str = "model", first: int = 1) -> list[dict]:
    return [{"run_date": day, "arm": "main", "user_id": user, "rank": first + i, "item_id": item, "score": 9.0 - i,
             "source": source, "reason": f"because of {EVIL}", "propensity": 1.0, "model_version": "7",
             "run_id": run_id} for i, item in enumerate(items)]  # fmt: skip


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("empty") / "lake"
    Lake(root).create_all()
    return root


@pytest.fixture(scope="module")
def built(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Items a..e, popularity 0 0 5 5 9; two nights of users u1 and u2, k = 3."""
    root = tmp_path_factory.mktemp("built") / "lake"
    shutil.copytree(empty, root)
    lake = Lake(root)
    put(lake, "silver.items", [
        {"item_id": i, "row_hash": f"i{i}", "available_at": datetime(2026, 1, 1, tzinfo=UTC), "attributes": "{}",
         "title": EVIL if i == "a" else f"Item {i}\x1b[31m\x00", "image_sha256": {"a": "pic", "b": "bad"}.get(i)}
        for i in "abcde"] + [
        {"item_id": "b", "row_hash": "later", "available_at": datetime(2026, 3, 5, tzinfo=UTC), "title": "From the future",
         "attributes": "{}"}])  # fmt: skip
    put(lake, "bronze.media", [{"sha256": "pic", "modality": "image", "bytes": jpeg()},
                               {"sha256": "bad", "modality": "image", "bytes": b"<svg onload='x'/>"}])  # fmt: skip
    seen = [("u1", "e", 1), ("u1", "a", 2), ("u1", "c", 3), ("u2", "e", 1)]
    put(lake, "silver.interactions", [
        {"user_id": u, "item_id": i, "event_type": "rating", "event_ts": datetime(2026, 2, n, 23, 30, tzinfo=UTC),
         "available_at": datetime(2026, 2, n, 23, 30, tzinfo=UTC), "weight": 4.0, "context": "{}", "row_hash": f"{u}{i}"}
        for u, i, n in seen] + [
        # a correction that was delivered in time, and one that was not
        {"user_id": "u1", "item_id": "c", "event_type": "rating", "event_ts": datetime(2026, 2, 3, 23, 30, tzinfo=UTC),
         "available_at": datetime(2026, 2, 9, tzinfo=UTC), "weight": 1.5, "context": "{}", "row_hash": "fix"},
        {"user_id": "u1", "item_id": "c", "event_type": "rating", "event_ts": datetime(2026, 2, 3, 23, 30, tzinfo=UTC),
         "available_at": AS_OF, "weight": 0.5, "context": "{}", "row_hash": "late"}])  # fmt: skip
    put(lake, "silver.users", [{"user_id": u, "row_hash": u, "attributes": '{"country":"NO"}',
                                "available_at": datetime(2026, 2, 1, tzinfo=UTC)} for u in ("u1", "u2")])  # fmt: skip
    put(lake, "ops.quarantine", [
        {"table_name": "bronze.interactions", "rule": rule, "reason": EVIL, "raw": EVIL, "line": n, "row_hash": f"{rule}{n}"}
        for rule, n in (("duplicate", 1), ("duplicate", 2), ("bad_timestamp", 3))])  # fmt: skip
    for day, run in ((D1, "run1"), (D2, "run2")):
        put(lake, "gold.user_sequences", [
            {"run_date": day, "user_id": u, "n_interactions": n, "attributes": json.dumps({"country": EVIL})}
            for u, n in (("u1", 3), ("u2", 1), ("u3", 0))], run, day)  # fmt: skip
        put(lake, "gold.item_features", [
            {"run_date": day, "item_id": i, "popularity_micro": p, "n_interactions": n}
            for i, p, n in (("a", 0, 0), ("b", 0, 0), ("c", 5, 2), ("d", 5, 2), ("e", 9, 4))], run, day)  # fmt: skip
    put(lake, "gold.recommendations", slate(D1, "u1", ["a", "b", "c"], "run1") + slate(D1, "u2", ["c", "d"], "run1"),
        "run1", D1)  # fmt: skip
    put(lake, "gold.recommendations", slate(D2, "u1", ["b", "d", "c"], "run2") + slate(D2, "u2", ["c"], "run2")
        + slate(D2, "u2", ["d"], "run2", "fallback:popularity", 2), "run2", D2)  # fmt: skip
    for day, run in ((D1, "run1"), (D2, "run2")):
        put(lake, "ops.runs", [{"run_id": run, "run_date": day, "manifest": '{"config": {"k": 3}}', "content_hash": "abc",
                                "model_version": "7", "users": 2, "rows": 5, "table_version": day.day}], run)  # fmt: skip
    return root


@pytest.fixture
def lake(built: Path, tmp_path: Path) -> Lake:
    shutil.copytree(built, tmp_path / "lake")
    return Lake(tmp_path / "lake")


def test_freshness_counts_only_what_was_delivered_before_as_of(lake: Lake) -> None:
    rows = health.freshness(lake, lake.versions(), D2, AS_OF, 24 * 20, "r").to_pylist()
    got = {r["table_name"]: r for r in rows}
    assert list(got) == sorted(f"silver.{k}" for k in SILVER)
    seen = got["silver.interactions"]
    assert (seen["rows"], seen["latest_available_at"]) == (5, datetime(2026, 2, 9, tzinfo=UTC))
    assert seen["age_hours"] == 21 * 24
    assert seen["stale"]
    # at the very limit an input is not stale yet
    assert not health.freshness(lake, lake.versions(), D2, AS_OF, 21 * 24, "r").to_pylist()[1]["stale"]
    assert got["silver.items"]["rows"] == 5
    assert got["silver.relations"] == {**got["silver.relations"], "rows": 0, "age_hours": None, "stale": False}
    put(lake, "ops.freshness", rows, day=D2)
    assert lake.day("ops.freshness", D2).num_rows == len(SILVER)


def test_freshness_without_interactions_is_stale(empty: Path) -> None:
    lake = Lake(empty)
    rows = health.freshness(lake, {"silver.items": 0, "silver.interactions": 0, "silver.users": 0}, D2, AS_OF, 36, "r")
    assert rows["stale"].to_pylist() == [True, True, False]


def test_freshness_reads_the_pinned_version(lake: Lake) -> None:
    pinned = lake.versions()
    late = {"user_id": "u9", "row_hash": "u9", "attributes": "{}", "available_at": AS_OF - timedelta(hours=1)}
    put(lake, "silver.users", [late])
    now = {n: health.freshness(lake, v, D2, AS_OF, 36, "r").to_pylist()[-2] for n, v in
           (("old", pinned), ("new", lake.versions()))}  # fmt: skip
    assert {r["table_name"] for r in now.values()} == {"silver.users"}
    assert (now["old"]["rows"], now["old"]["stale"]) == (2, True)
    assert (now["new"]["rows"], now["new"]["age_hours"], now["new"]["stale"]) == (3, 1.0, False)


def test_night_metrics_by_hand(built: Path) -> None:
    got = health.night_metrics(Lake(built), D2, "r", "7", 3)
    assert got.schema == schema.table("ops.metrics").arrow
    value = {(r["slice"], r["metric"]): (r["value"], r["n"]) for r in got.to_pylist()}
    assert value == {
        ("all", "users_with_list"): (2, 3),
        ("all", "lists_short"): (1, 2),
        ("all", "distinct_items"): (3, 5),
        ("source=fallback:popularity", "row_share"): (0.2, 5),
        ("source=model", "row_share"): (0.8, 5),
        ("all", "coverage@10"): (3 / 5, 5),
        # ranks from 0: a, b share .5; c, d share 2.5; e has 4. Places: b, d, c, c, d
        ("all", "popularity_percentile@10"): ((0.5 + 4 * 2.5) / 4 / 5, 5),
        ("all", "cold_item_share@10"): (0.2, 5),
        # u1: {a,b,c} to {b,d,c}: 2 of 4 in common; u2: the same
        ("all", "churn@10"): (0.25, 2),
        ("all", "quarantined"): (3, 3),
        ("rule=duplicate", "quarantined"): (2, 2),
        ("rule=bad_timestamp", "quarantined"): (1, 1),
        **{(s, "suspects"): (0, 3) for s in ("all", "kind=rate", "kind=burst", "kind=copycat")},
    }
    first = health.night_metrics(Lake(built), D1, "r", "7", 3).to_pylist()
    assert not [r for r in first if r["metric"].startswith("churn")]
    keys = [tuple(r[c] for c in schema.table("ops.metrics").key) for r in got.to_pylist()]
    assert len(set(keys)) == len(keys)


def test_churn_is_against_the_night_before_not_the_newest(lake: Lake) -> None:
    put(lake, "gold.recommendations", slate(date(2026, 3, 9), "u1", ["e"], "run9"), "run9", date(2026, 3, 9))
    rows = health.night_metrics(lake, D2, "r", "7", 3).to_pylist()
    assert [r["value"] for r in rows if r["metric"] == "churn@10"] == [0.25]


def test_night_metrics_of_an_unpublished_day(built: Path) -> None:
    with pytest.raises(InputError, match="2026-03-02"):
        health.night_metrics(Lake(built), date(2026, 3, 3), "r", "7", 3)


def test_user_page(built: Path) -> None:
    page = user_page(Lake(built), "u1", D2, "Europe/Oslo")
    assert [(h["item_id"], h["weight"]) for h in page.history] == [("c", 1.5), ("a", 4.0), ("e", 4.0)]
    assert page.history[0]["when"].isoformat() == "2026-02-04T00:30:00+01:00"
    assert [s["rank"] for s in page.slate] == [1, 2, 3]
    assert page.slate[0]["title"] == "Item b[31m"  # its later version and the control characters are not there
    told = json.loads(json.dumps(page.to_json(), allow_nan=False))
    assert told["run_date"] == "2026-03-02"
    assert told["history"][0]["when"] == "2026-02-04T00:30:00+01:00"
    assert set(told["slate"][0]) == {
        "rank",
        "item_id",
        "title",
        "image_sha256",
        "score",
        "source",
        "reason",
        "model_version",
    }
    newest = user_page(Lake(built), "u1")
    assert newest.run_date == D2
    # the correction that came at the very moment of as_of is not there in UTC either
    assert newest.history[0]["weight"] == 1.5


def test_known_user_without_a_list(built: Path) -> None:
    page = user_page(Lake(built), "u3", D2)
    assert (page.slate, page.history) == ([], [])


def test_history_is_cut_to_the_last_distinct_events(built: Path) -> None:
    page = user_pages(Lake(built), ["u2", "u1"], D2, last=2)
    assert [p.user_id for p in page] == ["u2", "u1"]
    assert [h["item_id"] for h in page[1].history] == ["c", "a"]


def test_unknown_user_and_day_say_what_is_valid(built: Path, empty: Path) -> None:
    with pytest.raises(InputError) as caught:
        user_page(Lake(built), "nobody")
    assert caught.value.valid[:2] == ["u1", "u2"]
    assert caught.value.next == "mmrec show u1"
    with pytest.raises(InputError) as caught:
        user_page(Lake(built), "u1", date(2026, 3, 3))
    assert caught.value.valid == ["2026-03-01", "2026-03-02"]
    with pytest.raises(InputError, match="nothing is published yet"):
        user_page(Lake(empty), "u1")


@pytest.mark.parametrize("width", [80, 160])
def test_render(built: Path, width: int) -> None:
    out = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    out.print(render(user_page(Lake(built), "u1", D2)))
    text = out.file.getvalue()
    assert "u1" in text
    assert "Item d" in text
    assert "\x1b[31m" not in text
    same_line = any("did lately" in line and "is offered" in line for line in text.splitlines())
    assert same_line is (width == 160)


@given(st.text())
def test_plain_has_no_controls_and_keeps_the_rest(text: str) -> None:
    got = plain(text)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", got)
    assert [c for c in got if c.isalnum()] == [c for c in text if c.isalnum()]


class Page(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def metric(
    model: str, part: str, name: str, value: float, lo: float | None = None, hi: float | None = None, **more: Any
) -> dict:
    return {"run_date": D1, "model_version": "7", "model": model, "protocol": "rolling", "split": "test", "slice": part,
            "metric": name, "value": value, "n": 50, "lo": lo, "hi": hi, "run_id": "t"} | more  # fmt: skip


MEASURED = [
    metric("champion", "all", "ndcg@10", 0.12), metric("ease", "all", "ndcg@10", 0.11),
    metric("popularity", "all", "ndcg@10", 0.06), metric("oracle", "all", "ndcg@10", 0.24),
    metric("champion", "all", "recall@10", 0.2), metric("champion", "all", "coverage@10", 0.5),
    metric("champion", "vs_popularity", "ndcg@10", 0.06, 0.04, 0.08),
    metric("champion", "vs_ease", "ndcg@10", 0.01, -0.01, 0.03),
    metric("champion", "cold_items", "ndcg@10", 0.03), metric("ease", "cold_items", "ndcg@10", 0.0),
    metric("champion", "without_text", "ndcg@10", 0.09),
]  # fmt: skip


def test_report_is_self_contained_and_hostile_text_stays_text(lake: Lake, tmp_path: Path) -> None:
    put(lake, "ops.metrics", MEASURED)
    put(lake, "ops.freshness", health.freshness(lake, lake.versions(), D2, AS_OF, 36, "run2").to_pylist(), day=D2)
    numbers = {"cases": 40, "challenger": 0.3125, "champion": 0.25, "champion/difference": 0.0625, "champion/lo": 0.03125,
               "champion/hi": 0.09375, "challenger/coverage@10": 0.5, "champion/coverage@10": 0.25, "churn@10": 0.375,
               "challenger/bytes": 3000000, "champion/bytes": 1234567}  # fmt: skip
    put(lake, "ops.promotions", [{"model_version": "7", "decided_for": D1, "decision": "promoted", "reason": EVIL,
                                  "champion_before": "6", "numbers": json.dumps(numbers)}])  # fmt: skip
    put(lake, "ops.serving", [{"request": f"r{n}", "change": n, "action": action, "model_version": "7", "before": "6", "asked_by": EVIL, "through": "command",
                               "why": "because", "overridden": True, "said": "said", "numbers": "{}", "asked_at": AS_OF}
                              for n, action in ((1, "promoted"), (None, "refused"))])  # fmt: skip
    curves = [{"epoch": e, "loss": 5 / e, "val_ndcg@10": 0.01 * e} for e in range(1, 6)]
    near = [{"item_id": "b", "similarity": 0.8125, "same": False}, {"item_id": "c", "similarity": 1.0, "same": True}]
    picks = [{"item_id": "a", "kind": "popular", "users": 1, "since": D1, "near": {"image": near, "text": near[:1]}},
             {"item_id": "d", "kind": "fresh", "users": 0, "since": D2, "near": {"text": near[1:]}}]  # fmt: skip
    alike = {"picks": picks, "measures": [measure("text"), measure("image", difference=-0.01, lo=-0.03, hi=0.01)]}
    path = write_report(lake, D2, tmp_path / "out", seconds={"ingest": 1.5, "total": 2.0}, versions=lake.versions(),
                        curves=curves, alike=alike)  # fmt: skip
    text = path.read_text()
    page = Page(text)
    names = {t for t, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for tag, attributes in page.tags:
        assert not [a for a in attributes if a.startswith("on")]
        for where in ("src", "href"):
            if where in attributes:
                assert attributes[where].startswith("data:image/jpeg;base64," if where == "src" else "#"), tag
    assert "url(" not in text
    assert "@import" not in text
    assert "\x00" not in text
    assert "\x1b" not in text
    assert EVIL in page.text  # shown, as text
    pictures = [a for t, a in page.tags if t == "img"]
    assert pictures  # of item a; b's is not a picture
    assert all(a["alt"].startswith("Picture of") for a in pictures)
    charted = [a["aria-label"] for t, a in page.tags if t == "svg"]
    assert charted
    assert all(len(label) > 20 for label in charted)
    said = " ".join(page.text.split())
    for expected in ("2 users have a list of up to 3 items, chosen from 5 on offer by model version 7",
                     "is 0.1200, 2.0 times the 0.0600", "50% of the best possible", "Against ease: no clear difference",
                     "Stale inputs.", "2.0 seconds in all", "−25.0%", "Training loss by epoch",
                     "nearest by picture", "0.81", "the same content", "known to 1 user", "on offer since 2 Mar 2026",
                     "by text, 60.0% share a category with it, where of items at random 40.0% do: 20.0 points more, "
                     "95% interval 18.0 to 22.0 (90 items, drawn from 1,234; mean Jaccard index of categories 0.30",
                     "1.0 points fewer, 95% interval −3.0 to 1.0, no clear difference from chance",
                     "Version 7, trained for 1 Mar 2026, was promoted in place of version 6. Its ndcg@10 there is 0.3125, of 40 users",
                     "version 6, which served", "+0.0625", "+0.0312 to +0.0938", "3,000,000", "1,234,567",
                     "38% of a list's first ten are others than the champion's", "promoted, overruling the gate", "because. said"):  # fmt: skip
        assert expected in said, expected
    ids = {a["id"] for _, a in page.tags if "id" in a}
    assert {a["href"][1:] for t, a in page.tags if t == "a"} <= ids
    again = write_report(lake, D2, tmp_path / "again", seconds={"ingest": 1.5, "total": 2.0}, versions=lake.versions(),
                         curves=curves, alike=alike)  # fmt: skip
    assert again.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def measure(modality: str, **more: Any) -> dict[str, Any]:
    return {"modality": modality, "items": 90, "of": 1234, "k": 10, "shared": 0.6, "chance": 0.4, "difference": 0.2,
            "lo": 0.18, "hi": 0.22, "jaccard": 0.3, "jaccard_chance": 0.1} | more  # fmt: skip


class Cards(Page):
    """The section of items that are alike: what is marked and pictured there."""

    def __init__(self, text: str) -> None:
        text = text[text.index('<h2 id="alike">') : text.index("</main>")]
        super().__init__(text)
        self.marked = re.findall("<mark>(.*?)</mark>", text)
        self.pictures = [a["src"] for t, a in self.tags if t == "img"]


def test_items_that_are_alike_are_shown_with_what_they_have_in_common(lake: Lake, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    shas = [f"p{n}" for n in range(9)]
    put(lake, "bronze.media", [{"sha256": s, "modality": "image", "bytes": jpeg(noise=noise)} for s in shas])
    kinds = [["p", "q"], ["q", EVIL], ["r"], [], ["q", "p"], ["p"], [EVIL], ["s"], ["t"]]
    put(lake, "silver.items", [{"item_id": f"f{n}", "row_hash": f"f{n}", "title": f"Film {n}", "attributes": "{}",
                                "categories": kinds[n], "image_sha256": s} for n, s in enumerate(shas)])  # fmt: skip

    def page(asked: dict[str, list[int]]) -> Cards:
        near = {m: [{"item_id": f"f{n}", "similarity": 0.5, "same": False} for n in rows] for m, rows in asked.items()}
        alike = {"picks": [{"item_id": "f0", "kind": "fresh", "users": 0, "since": D1, "near": near}], "measures": []}
        path = write_report(lake, D2, tmp_path / "out", versions=lake.versions(), alike=alike)
        return Cards(path.read_text())

    told = page({"image": [1, 2, 3], "text": [4]})
    assert told.marked == ["marked", "q", "q", "p"]
    assert len(told.pictures) == 5
    assert EVIL in told.text
    # of 400 pictures those stay that find room; the others are cards of text
    told = page({"image": [n % 9 for n in range(400)]})
    size = sum(map(len, told.pictures))
    assert report._POSTERS - max(map(len, told.pictures)) < size <= report._POSTERS
    assert len(told.pictures) < 400
    assert told.text.count("Film") == 401
    assert told.text.count("no picture") == 401 - len(told.pictures)


def test_a_video_is_shown_by_what_stands_for_it_and_without_that_has_no_picture(lake: Lake, tmp_path: Path) -> None:
    film, broken = clip(moving(20, 96, 64)), clip(moving(20))[:-1]
    put(lake, "bronze.media", [{"sha256": s, "modality": "image", "bytes": d} for s, d in (("film", film), ("broken", broken))])
    put(lake, "silver.items", [{"item_id": s, "row_hash": s, "title": s, "attributes": "{}", "categories": [], "image_sha256": s}
                               for s in ("film", "broken")])  # fmt: skip
    near = {"image": [{"item_id": i, "similarity": 0.5, "same": False} for i in ("broken", "film")]}
    alike = {"picks": [{"item_id": "film", "kind": "fresh", "users": 0, "since": D1, "near": near}], "measures": []}
    with Sandbox() as box:
        path = write_report(lake, D2, tmp_path / "out", versions=lake.versions(), alike=alike, still=partial(still, box))
    told = Cards(path.read_text())
    shown, again = told.pictures
    assert shown == again
    image = Image.open(io.BytesIO(base64.b64decode(shown.removeprefix("data:image/jpeg;base64,"))))
    assert image.size == (96, 64)
    # red counts the frames by fives, and the tenth is in the middle
    assert np.asarray(image)[..., 0].mean() == pytest.approx(50, abs=8)
    assert told.text.count("no picture") == 1
    told = Cards(write_report(lake, D2, tmp_path / "again", versions=lake.versions(), alike=alike).read_text())
    assert not told.pictures


def test_without_pictures_the_alike_are_cards_of_text(lake: Lake, tmp_path: Path) -> None:
    near = {"text": [{"item_id": "d", "similarity": 0.5, "same": False}]}
    alike = {"picks": [{"item_id": "c", "kind": "popular", "users": 2, "since": D1, "near": near}], "measures": []}
    told = Cards(write_report(lake, D2, tmp_path / "out", versions=lake.versions(), alike=alike).read_text())
    assert "Item d" in told.text
    assert "no picture" not in told.text
    assert not told.pictures


def test_report_of_an_empty_lake_says_what_is_missing(empty: Path, tmp_path: Path) -> None:
    text = write_report(Lake(empty), D2, tmp_path / "out", versions={}).read_text()
    said = " ".join(Page(text).text.split())
    for expected in ("not published", "Nothing has been evaluated yet", "No slices yet", "No training curve",
                     "No decision yet", "Nothing is published for this day", "nobody to show",
                     "Not measured in this run", "No vectors to compare yet"):  # fmt: skip
        assert expected in said, expected


def test_report_of_a_day_that_failed_names_the_lists_that_are_served(built: Path, tmp_path: Path) -> None:
    text = write_report(Lake(built), date(2026, 3, 4), tmp_path / "out", versions={}).read_text()
    assert "the lists of 2 Mar 2026 are still served" in text


def test_quality_judges_by_the_interval_alone() -> None:
    got = quality(MEASURED, "7")
    assert got is not None
    rolling = got["protocols"][0]
    assert {d["against"]: d["verdict"] for d in rolling["differences"]["rows"]} == {
        "popularity": "better", "ease": "no clear difference"}  # fmt: skip
    assert [m["model"] for m in rolling["models"]] == ["champion", "ease", "popularity", "oracle"]
    best = [m["model"] for m in rolling["models"] if m["cells"][0][1]]
    assert best == ["champion"]  # the oracle is no rival
    worse = [r | {"value": -0.02, "lo": -0.03, "hi": -0.01} if r["slice"] == "vs_ease" else r for r in MEASURED]
    assert quality(worse, "7")["headline"]["not_beaten"] == [("ease", "worse")]


def test_what_each_source_brings_is_told_with_its_interval_and_noise_as_what_it_costs(lake: Lake, tmp_path: Path) -> None:
    second = [metric("second_stage", part, "ndcg@10", value, lo, hi) for part, value, lo, hi in (
        ("all", 0.2, None, None), ("without_social", 0.17, None, None), ("vs_without_social", 0.03, 0.01, 0.05),
        ("without_reviews", 0.201, None, None), ("vs_without_reviews", -0.001, -0.01, 0.008),
        ("with_noise", 0.198, None, None), ("vs_with_noise", 0.002, -0.002, 0.006),
    )]  # fmt: skip
    assert quality(MEASURED, "7")["protocols"][0]["sources"] is None
    got = quality(MEASURED + second, "7")["protocols"][0]
    rows = [(r["label"], r["value"], r["share"], r["verdict"]) for r in got["sources"]["rows"]]
    assert rows == [("without reviews", "0.2010", "−0.5%", "no clear difference"), ("without social", "0.1700", "+15.0%", "better"),
                    ("with noise", "0.1980", "−1.0%", "no clear difference")]  # fmt: skip
    assert [(r["lo"], r["hi"]) for r in got["sources"]["rows"]] == [(-0.01, 0.008), (0.01, 0.05), (-0.006, 0.002)]
    assert {s["slice"] for s in got["slices"]["rows"]} == {"cold_items"}
    assert {d["against"] for d in got["differences"]["rows"]} == {"popularity", "ease"}
    put(lake, "ops.metrics", MEASURED + second)
    said = " ".join(Page(write_report(lake, D2, tmp_path / "out", versions=lake.versions()).read_text()).text.split())
    for part in ("What each source adds", "what friends had lately", "+0.0100 to +0.0500", "−0.0060 to +0.0020"):
        assert part in said


def test_quality_shows_the_served_model_and_says_if_it_can_not() -> None:
    held = [r | {"run_date": D2, "model_version": "8", "value": 0.01} for r in MEASURED]
    got = quality(MEASURED + held, "7")
    assert (got["version"], got["is_served"], got["headline"]["champion"]) == ("7", True, "0.1200")
    got = quality(MEASURED + held, "0")
    assert (got["version"], got["is_served"]) == ("8", False)
    assert quality([r | {"split": "validation"} for r in MEASURED], "7") is None


@example([5e-324])
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_charts_take_any_numbers(values: list[float]) -> None:
    labels = [f"<i{i}>" for i in range(len(values))]
    drawn = charts.lines("t", labels, [("s", values)], str, str)
    drawn += charts.bars("t", [(n, abs(v), False) for n, v in zip(labels, values, strict=True)], str)
    drawn += charts.intervals("t", [(n, v, v - 1, v + 1) for n, v in zip(labels, values, strict=True)], str)
    assert "nan" not in drawn
    assert {t for t, _ in Page(drawn).tags} <= {"svg", "line", "text", "path", "circle", "rect", "title"}
