"""A broken model is found by what it did: each fault planted in a model whose lists are really made, and no other named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from shops import DAY as A_DAY
from shops import make_items, make_log
from test_slate import items_of
from test_spread import filled, put

from mmrec import schema, trained
from mmrec.bundle.bundle import load, seal
from mmrec.errors import QualityError
from mmrec.lake import stage
from mmrec.lake.joined import joined
from mmrec.lake.store import Lake
from mmrec.models.splits import per_user
from mmrec.models.stored import Stored
from mmrec.recommend import sane
from mmrec.recommend.packed import Job, Packed, opened, pack
from mmrec.recommend.sane import check_model
from mmrec.recommend.score import ItemSide
from mmrec.recommend.spread import lists_of
from mmrec.train.rival import Plan, Rival

DAY, K = date(2026, 3, 1), 6
JOB = Job("nowhere", "", "cpu", 1, K, str(DAY), "run", "7")
Row = dict[str, Any]


@dataclass
class Shop:
    """60 users of two tastes, 40 items; a model that knows all items but the last two and speaks for who has a history."""

    item_ND: np.ndarray
    user_UD: np.ndarray
    histories: list[list[str]]
    popularity: list[int]
    cold_N: np.ndarray
    job: Job = JOB

    @property
    def ids(self) -> list[str]:
        return [f"i{n:02d}" for n in range(len(self.item_ND))]


def sound(n_users: int = 60, n_items: int = 40) -> Shop:
    rng = np.random.default_rng(7)
    item_ND = rng.normal(size=(n_items, 8)).astype(np.float32)
    item_ND[:, 0] += np.where(np.arange(n_items) % 2, 2, -2)
    user_UD, histories = np.full((n_users, 8), np.nan, np.float32), []
    for u in range(n_users):
        # every sixth has done nothing yet; some of what the others had is gone
        had = rng.permutation(np.arange(u % 2, n_items - 2, 2))[: rng.integers(2, 9)] if u % 6 else np.zeros(0, int)
        histories.append([f"i{i:02d}" for i in had] + ["gone"] * (u % 3 == 0))
        if len(had):
            user_UD[u] = item_ND[had].mean(0)
    return Shop(item_ND, user_UD, histories, rng.permutation(n_items).tolist(), np.arange(n_items) >= n_items - 2)


def opened_shop(root: Path, shop: Shop) -> tuple[Lake, Packed, dict[str, tuple[int, tuple[str, ...]]]]:
    lake, names = Lake(root / "lake"), [f"u{n:03d}" for n in range(len(shop.histories))]
    lake.create("gold.recommendations")
    rows = [{"user_id": u, "item_ids": h, "seen_item_ids": sorted(set(h))} for u, h in zip(names, shop.histories, strict=True)]
    sources: dict[str, tuple[int, tuple[str, ...]]] = {
        "gold.user_sequences": (put(lake, "gold.user_sequences", rows), ("user_id", "item_ids", "seen_item_ids"))}  # fmt: skip
    side = None
    if shop.job.kind in ("two_tower", "factors"):
        vectors = [{"user_id": u, "vector": v.tolist()} for u, v in zip(names, shop.user_UD, strict=True)]
        sources["gold.user_vectors"] = (put(lake, "gold.user_vectors", vectors), ("user_id", "vector"))
        side = ItemSide(shop.item_ND, shop.item_ND, shop.cold_N)
    folder = pack(root / "packed", shop.job, items_of(shop.ids, shop.popularity), side)
    opened.cache_clear()
    return lake, opened(str(folder)), sources


def check(root: Path, shop: Shop, plant: Callable[[list[Row]], list[Row]] = list) -> dict[str, float]:
    """Lists as a night makes them, then changed by `plant`, staged, checked."""
    lake, shared, sources = opened_shop(root, shop)
    made = pa.Table.from_batches(lists_of(str(shared.folder), joined(lake, DAY, sources, None)), schema.table("gold.recommendations").arrow)
    staged = stage.stage(lake, "gold.recommendations", filled("gold.recommendations", plant(made.to_pylist())), "run")
    return check_model(lake, staged, DAY, shared, sources)


def faults(root: Path, shop: Shop, plant: Callable[[list[Row]], list[Row]] = list) -> set[str]:
    with pytest.raises(QualityError) as told:
        check(root, shop, plant)
    assert "run_date=2026-03-01" in str(told.value)
    assert "version 7" in str(told.value)
    assert "mmrec learn --date 2026-03-01" in str(told.value)
    assert set(told.value.report["measured"]) >= {"nan_items"}
    return set(told.value.report["faults"])


def test_a_sound_model_passes_and_what_was_measured_is_told(tmp_path: Path) -> None:
    found = check(tmp_path, sound())
    assert set(found) == {"nan_users", "nan_items", "constant", "one_item", "one_item_place", "auc", "auc_error"}
    assert (found["nan_users"], found["nan_items"], found["constant"]) == (0, 0, 0)
    assert found["one_item"] < 0.5
    assert found["auc"] > 0.7


def no_user(shop: Shop) -> Shop:
    user_UD = shop.user_UD.copy()
    user_UD[: len(user_UD) * 2 // 3, 3] = np.nan
    return replace(shop, user_UD=user_UD)


def no_item(shop: Shop) -> Shop:
    item_ND = shop.item_ND.copy()
    item_ND[: len(item_ND) * 2 // 3, 3] = np.inf
    return replace(shop, item_ND=item_ND)


def no_number(shop: Shop) -> Shop:
    return replace(shop, item_ND=np.full_like(shop.item_ND, np.nan), user_UD=np.full_like(shop.user_UD, np.nan))


def constant(shop: Shop) -> Shop:
    return replace(shop, item_ND=np.ones_like(shop.item_ND))


def nearly_constant(shop: Shop) -> Shop:
    return replace(shop, item_ND=np.float32(1) + np.float32(1e-8) * shop.item_ND, user_UD=np.abs(shop.user_UD))


def one_item(shop: Shop) -> Shop:
    """An item that everybody likes best, and not popular at all; nobody has had it."""
    item_ND, user_UD = (np.pad(x, ((0, 0), (0, 1))) for x in (shop.item_ND, shop.user_UD))
    item_ND[39, 8], user_UD[:, 8] = 50, 1
    popularity = [99] * 39 + [0]
    return replace(shop, item_ND=item_ND, user_UD=user_UD, popularity=popularity)


def flipped(shop: Shop) -> Shop:
    return replace(shop, user_UD=-shop.user_UD)


@pytest.mark.parametrize(
    ("plant", "name"),
    [(no_user, "nan"), (no_item, "nan"), (no_number, "nan"), (constant, "constant"), (nearly_constant, "constant"),
     (one_item, "one_item"), (flipped, "flipped")])  # fmt: skip
def test_a_broken_model_is_stopped_by_the_name_of_its_fault_and_no_other(
    plant: Callable[[Shop], Shop], name: str, tmp_path: Path
) -> None:
    assert faults(tmp_path, plant(sound())) == {name}


def test_a_third_without_numbers_is_measured_and_bearable(tmp_path: Path) -> None:
    shop = sound()
    known = [u for u, h in enumerate(shop.histories) if set(h) & set(shop.ids)]
    shop.user_UD[known[:10]] = np.nan
    shop.item_ND[:9] = np.nan
    found = check(tmp_path, shop)
    # of who has a history and of what the model has met: two items are new, and every sixth user is
    assert (found["nan_users"], found["nan_items"]) == (10 / len(known), 9 / 38)


def test_a_hit_may_lead_the_lists_of_all_who_have_not_had_it(tmp_path: Path) -> None:
    shop = one_item(sound())
    found = check(tmp_path, replace(shop, popularity=[1] * 39 + [99]))
    assert found["one_item"] == 1
    assert found["one_item_place"] == 1


def test_what_rules_pinned_or_lifted_is_not_the_models_choice(tmp_path: Path) -> None:
    def pinned(rows: list[Row]) -> list[Row]:
        for row in rows:
            row["rank"] += 1
        extra = [{"user_id": u, "rank": 1, "item_id": "i39", "arm": "main", "score": 99.0, "rule": "sale", "run_date": DAY,
                  "source": source} for source, users in (("rule", range(0, 60, 2)), ("model", range(1, 60, 2))) for u in
                 (f"u{n:03d}" for n in users)]  # fmt: skip
        return extra + rows

    shop = sound()
    shop.popularity[39] = 0
    assert check(tmp_path / "pinned", shop, pinned)["one_item"] == check(tmp_path / "plain", shop)["one_item"]
    assert faults(tmp_path / "own", shop, lambda rows: [r | {"rule": None, "source": "model"} for r in pinned(rows)]) == {"one_item"}


def test_shares_and_the_order_are_what_one_counts_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users, vector = 20, np.ones((20, 2), np.float32)
    # scores 4, 2, 3, 2 of what was had (two) and of the rest: two pairs of four are right, one is a tie
    item_ND = np.array([[4, 0], [2, 0], [3, 0], [1, 1]], np.float32)
    shop = Shop(item_ND, vector, [["i00", "i01", "i00", "gone"]] * users, [1, 2, 3, 4], np.zeros(4, bool), replace(JOB, k=2))

    def lists(rows: list[Row]) -> list[Row]:
        assert [(r["item_id"], r["score"]) for r in rows[:2]] == [("i02", 3), ("i03", 2)]
        assert len(rows) == 2 * users
        # five see one score twice, seven begin with another item, the last has but one row
        for n in range(5):
            rows[2 * n + 1]["score"] = 3
        for n in range(7):
            rows[2 * n]["item_id"], rows[2 * n + 1]["item_id"] = "i03", "i02"
        return rows[:-1]

    found = check(tmp_path / "few", shop, lists)
    assert found == {"nan_users": 0, "nan_items": 0, "auc": 0.625, "auc_error": 0}, "nineteen lists are too few for shares"
    monkeypatch.setattr(sane, "_FEWEST", 19)
    monkeypatch.setattr(sane, "_ONE_ITEM_USERS", 19)
    found = check(tmp_path / "enough", shop, lists)
    assert (found["constant"], found["one_item"], found["one_item_place"]) == (5 / 19, 12 / 19, 2)


def test_users_are_drawn_alike_each_time_and_blocks_of_them_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = check(tmp_path / "whole", sound())
    monkeypatch.setattr(sane, "_CELLS", 100)
    assert check(tmp_path / "blocks", sound()) == whole
    monkeypatch.setattr(sane, "_DRAWN", 30)
    some = check(tmp_path / "some", sound())
    assert some["auc"] != whole["auc"]
    assert some == check(tmp_path / "again", sound())


BLEND = {"kind": "ranks", "depth": 5, "members": [[0, 4], [4, 8]], "weights": [1.0, 1.0]}


def test_a_blend_is_judged_by_the_order_that_it_puts_its_lists_in(tmp_path: Path) -> None:
    shop = replace(sound(), job=replace(JOB, blend=BLEND))
    found = check(tmp_path / "sound", shop)["auc"]
    assert found > 0.6
    assert found != check(tmp_path / "whole", sound())["auc"]
    assert faults(tmp_path / "flipped", flipped(shop)) == {"flipped"}


@pytest.mark.parametrize("kind", ["popularity", "factors"])
def test_popularity_may_give_everybody_the_same_list(kind: str, tmp_path: Path) -> None:
    shop = sound()
    ones = np.ones((60, 1), np.float32)
    alone = replace(shop, item_ND=-np.ones((40, 1), np.float32), user_UD=ones, job=replace(JOB, kind=kind))
    assert check(tmp_path / "same", alone) == ({} if kind == "popularity" else {"nan_users": 0, "nan_items": 0})
    if kind == "factors":
        assert faults(tmp_path / "nan", replace(alone, item_ND=alone.item_ND * np.float32(np.nan))) == {"nan"}


def test_users_of_whom_nothing_is_known_are_no_fault_of_the_model(tmp_path: Path) -> None:
    shop = sound()
    new = replace(shop, user_UD=np.full_like(shop.user_UD, np.nan), histories=[["gone"], [], ["i38"]] * 20)
    assert check(tmp_path, new) == {"nan_items": 0}


@pytest.mark.parametrize("users", [1, 3, 19])
def test_of_a_tiny_shop_nothing_is_said_but_that_there_are_numbers(users: int, tmp_path: Path) -> None:
    shop = sound(users, 7)
    for n, broken in enumerate((shop, constant(shop), flipped(shop))):
        assert set(check(tmp_path / str(n), broken)) <= {"nan_users", "nan_items"}


def test_who_has_seen_nearly_all_may_be_left_the_same_item(tmp_path: Path) -> None:
    shop = sound(60, 7)
    shop.histories[:] = [shop.ids[:6]] * 60
    shop.user_UD[:] = shop.item_ND[:6].mean(0)
    assert not {"one_item", "constant"} & set(check(tmp_path, shop))


def test_nothing_staged_and_nothing_on_offer_are_not_the_models_fault(tmp_path: Path) -> None:
    assert set(check(tmp_path / "none", sound(), lambda _: [])) == {"nan_users", "nan_items", "auc", "auc_error"}
    lake, shared, sources = opened_shop(tmp_path / "empty", sound())
    staged = stage.stage(lake, "gold.recommendations", iter([]), "run")
    assert "auc" in check_model(lake, staged, DAY, shared, sources)


# sparse


def rival(root: Path, name: str, settings: Row, change: Callable[[Row], Row]) -> Shop:
    """A fitted rival whose arrays were changed, and the shop it was fitted on."""
    shop = sound()
    at = {i: n for n, i in enumerate(shop.ids)}
    items = replace(make_items(40), ids=np.array(shop.ids, object))
    log = make_log([(u, at[i], d) for u, h in enumerate(shop.histories) for d, i in enumerate(h) if i in at], 60)
    fold = replace(per_user(log, items), train=np.ones(len(log.user), bool), fit_at_us=40 * A_DAY)
    spec = trained.exported(Rival(Plan(name, settings), seed=3).fit(items, log, fold), items, log, fold, root, length=64)
    stored = Stored.load(root)
    replace(stored, arrays=change(dict(stored.arrays))).save(root)
    seal(root, spec | {"encoders": {}, "features": schema.features_fingerprint()})
    bundle = load(root)
    return replace(shop, job=replace(JOB, bundle=str(root), digest=bundle.digest, kind=bundle.kind))


def weights(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Row], Row]:
    return lambda arrays: arrays | {"matrix.data": change(arrays["matrix.data"]).astype(np.float32)}


@pytest.mark.parametrize(("name", "settings"), [("ease", {"lam": 5.0}), ("item_knn", {"k": 10}), ("user_knn", {"k": 20})])
def test_a_sound_sparse_model_passes(name: str, settings: Row, tmp_path: Path) -> None:
    found = check(tmp_path, rival(tmp_path / "bundle", name, settings, dict))
    assert (found["nan_users"], found["nan_items"]) == (0, 0)
    assert found["constant"] < 0.1
    assert found["auc"] > 0.7


@pytest.mark.parametrize(
    ("name", "change"),
    [("nan", lambda w: w * np.nan), ("nan", lambda w: np.where(np.arange(len(w)) % 5 < 2, np.nan, w)), ("constant", np.zeros_like),
     ("flipped", np.negative)])  # fmt: skip
def test_a_broken_sparse_model_is_stopped_by_the_name_of_its_fault(
    name: str, change: Callable[[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    assert faults(tmp_path, rival(tmp_path / "bundle", "ease", {"lam": 5.0}, weights(change))) == {name}
