"""What a page of the report shows: which items it picks, and that the measure is the one that a program gets."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mmrec import alike, schema
from mmrec.config import Config
from mmrec.context import Night
from mmrec.encoding import text_of
from mmrec.errors import InputError, QualityError
from mmrec.lake import commit
from mmrec.lake.content import text_key
from mmrec.lake.store import Lake
from mmrec.served import encoders

DAY, THEN = date(2026, 3, 2), datetime(2026, 1, 1, tzinfo=UTC)
US = int(THEN.timestamp()) * 1_000_000


def put(lake: Lake, name: str, rows: list[dict[str, Any]], day: date | None = None) -> None:
    columns = schema.table(name).arrow
    table = pa.Table.from_pylist([{c: r.get(c) for c in columns.names} for r in rows], columns)
    commit.write(lake, name, table, run_id="r", pinned=commit.fence(lake, name, day), partition=day)


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """30 items, each more popular and newer than the next; every third has a picture; vectors of three kinds."""
    config = Config(home=tmp_path_factory.mktemp("home"))
    lake = Lake(config.lake)
    lake.create_all()
    version = {e.modality: e.version for e in encoders(config)}
    rng = np.random.default_rng(0)
    items, vectors, features = [], [], []
    for n in range(30):
        row = {"item_id": f"i{n:02}", "row_hash": f"{n}", "source": "s", "attributes": "{}", "title": f"Item {n}", "categories": [f"kind {n % 3}"],
               "text": "", "image_sha256": f"p{n}" if n % 3 == 0 else None, "available_at": THEN, "valid_from": THEN}  # fmt: skip
        items.append(row)
        keys = {"text": text_key(text_of(row)), "image": row["image_sha256"]}
        vectors += [{"content_sha256": key, "encoder_version": version[m], "modality": m, "dim": 3, "refused": None,
                     "embedding": list(np.eye(3)[n % 3] + rng.normal(0, 0.01, 3))} for m, key in keys.items() if key]  # fmt: skip
        features.append({"run_date": DAY, "item_id": row["item_id"], "title": row["title"], "categories": row["categories"], "n_interactions": 0, "n_users": 100 - n,
                         "n_7d": 0, "n_30d": 0, "n_90d": 0, "popularity_micro": 100 - n, "available_us": US + n * 86_400_000_000, "run_id": "r"})  # fmt: skip
    put(lake, "silver.items", items)
    put(lake, "gold.item_embeddings", vectors)
    put(lake, "gold.item_features", features, DAY)
    return Night(config, DAY)


def test_picks_are_the_first_by_popularity_and_by_age_and_those_with_most_vectors_come_first(night: Night) -> None:
    picks = alike.page(night, n=4, k=2)["picks"]
    assert [(p["kind"], p["item_id"]) for p in picks] == [("popular", f"i{n:02}") for n in (0, 3, 6, 9)] + [
        ("fresh", f"i{n:02}") for n in (27, 24, 21, 18)]  # fmt: skip
    assert (picks[0]["users"], picks[4]["since"]) == (100, (THEN + timedelta(days=27)).date())
    for pick in picks:
        assert set(pick["near"]) == {"text", "image"}
        for modality, rows in pick["near"].items():
            assert rows == alike.neighbours(night.config, night.lake, [pick["item_id"]], modality, 2)[pick["item_id"]]
            assert {int(r["item_id"][1:]) % 3 for r in rows} == {0}


def test_an_item_is_picked_once_and_only_from_the_first_of_its_kind(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    picks = alike.page(night, n=30)["picks"]
    assert len(picks) == len({p["item_id"] for p in picks}) == 30
    assert {p["kind"] for p in picks} == {"popular"}
    monkeypatch.setattr(alike, "_LOOK", 2)
    assert [p["item_id"] for p in alike.page(night, n=3)["picks"]] == ["i00", "i01", "i29", "i28"]


def test_a_night_measures_what_a_program_does_of_a_drawn_part(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [alike.meaning(night.config, night.lake, m) for m in ("text", "image")]
    assert alike.page(night)["measures"] == whole
    assert [(m["modality"], m["items"], m["of"], m["seed"]) for m in whole] == [("text", 30, 30, 0), ("image", 10, 10, 0)]
    # of 29 others 9 are of the kind; the tenth nearest of each is of another
    assert (whole[0]["shared"], whole[0]["chance"], whole[0]["lo"]) == pytest.approx((0.9, 9 / 29, 0.9 - 9 / 29))
    assert (whole[1]["difference"], whole[1]["lo"], whole[1]["hi"]) == (0, 0, 0)
    monkeypatch.setattr(alike, "_MOST", 7)
    assert [(m["items"], m["of"]) for m in alike.page(night)["measures"]] == [(7, 30), (7, 10)]


def test_what_can_not_be_measured_is_refused_with_its_reason(night: Night) -> None:
    with pytest.raises(QualityError, match="no two items can be compared"):
        alike.meaning(night.config, night.lake, "audio")
    with pytest.raises(InputError, match="no encoder is configured"):
        alike.meaning(night.config, night.lake, "smell")
