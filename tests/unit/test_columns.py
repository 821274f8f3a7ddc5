"""Declared columns against the words of the module, and what is refused: other data, another column, a stranger's name."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mmrec.bundle.bundle import Bundle
from mmrec.errors import InputError, MmrecError, QualityError
from mmrec.models.columns import Columns
from mmrec.recommend.second import Second, asked

MICROS = 1_000_000
DECLARED = {"items.price": "log", "items.colour": "vocabulary 2", "users.age": "standardise", "context.device": "hash 3",
            "context.hour": "cyclic 24", "context.weekday": "vocabulary 7"}  # fmt: skip


def of(rng: np.random.Generator, n: int) -> list[str]:
    return [json.dumps({"price": float(rng.gamma(2, 20)), "weight": float(rng.gamma(9, 900)), "colour": "abc"[int(rng.integers(3))]})
            for _ in range(n)]  # fmt: skip


def people(rng: np.random.Generator, n: int) -> list[str]:
    return [json.dumps({"age": int(rng.integers(18, 80)), "children": int(rng.integers(0, 3))}) for _ in range(n)]


def moments(rng: np.random.Generator, n: int) -> tuple[list[str | None], np.ndarray]:
    told = [json.dumps({"device": ["phone", "desktop"][int(rng.integers(2))]}) if rng.random() < 0.9 else None for _ in range(n)]
    return told, rng.integers(0, 10**9, n) * MICROS


def made(declared: dict[str, str] = DECLARED, seed: int = 0) -> Columns:
    rng = np.random.default_rng(seed)
    return Columns.fit(declared, of(rng, 300), rng.random(300), people(rng, 200), moments(rng, 400))


def swapped(told: list[str], one: str, other: str) -> list[str]:
    """As a shop that mistook one column for another."""
    read = [json.loads(t) for t in told]
    return [json.dumps(r | {one: r[other], other: r[one]}) for r in read]


def test_columns_are_what_their_words_say() -> None:
    rng = np.random.default_rng(1)
    columns = made()
    assert columns.names[:2] == ("columns/context.device#0", "columns/context.device#1")
    assert columns.names[-2:] == ("columns/items.colour: another", "columns/items.price")
    items = columns.items(of(rng, 60))
    told, (context, at_us) = people(rng, 80), moments(rng, 80)
    users = columns.users(told, (context, at_us))
    assert items.shape[1] + users.shape[1] == len(columns.names)
    names = list(columns.names[: users.shape[1]])
    for n in range(80):
        moment = datetime.fromtimestamp(at_us[n] / MICROS, UTC)
        hour = moment.hour + moment.minute / 60 + moment.second / 3600
        turn = users[n, names.index("columns/context.hour: sine")], users[n, names.index("columns/context.hour: cosine")]
        assert turn == pytest.approx((np.sin(hour * np.pi / 12), np.cos(hour * np.pi / 12)), abs=1e-5)
        assert users[n, names.index(f"columns/context.weekday={moment.weekday()}")] == 1
        assert users[n, [names.index(f"columns/context.device#{k}") for k in range(3)]].sum() == (context[n] is not None)
    ages = np.array([json.loads(t)["age"] for t in told])
    assert np.corrcoef(users[:, names.index("columns/users.age")], ages)[0, 1] == pytest.approx(1, abs=1e-6)


def test_who_never_did_anything_has_no_hour() -> None:
    users = made().users([None], ([None], np.array([-1])))
    names = made().names
    assert users[0, [names.index(f"columns/context.hour: {part}") for part in ("sine", "cosine")]].tolist() == [0, 0]
    assert not users[0, [n for n, name in enumerate(names) if "weekday" in name]].any()


def test_of_a_list_the_first_entry_counts_and_a_text_that_is_a_number_is_one() -> None:
    told = [json.dumps({"tags": ["b", "a"], "price": "3.5"}), json.dumps({"tags": [], "price": "dear"}), None]
    columns = Columns.fit({"items.tags": "vocabulary 3", "items.price": "bucket 2"}, told, np.zeros(3), [], ([], np.zeros(0)))
    assert columns.names == ("columns/items.price[0]", "columns/items.price[1]", "columns/items.price: missing",
                             "columns/items.tags=b", "columns/items.tags: another")  # fmt: skip
    x = dict(zip(columns.names, columns.items(told).T.tolist(), strict=True))
    assert x["columns/items.tags=b"] == [1, 0, 0]
    assert x["columns/items.price: missing"] == [0, 1, 1]


def test_what_is_saved_is_read_and_another_fit_in_its_place_is_refused(tmp_path: Path) -> None:
    columns, other = made(), made(seed=7)
    columns.save(tmp_path)
    assert Columns.load(tmp_path, columns.fingerprint) == columns
    assert columns.fingerprint != other.fingerprint
    other.save(tmp_path)
    with pytest.raises(QualityError, match="other data than the model") as caught:
        Columns.load(tmp_path, columns.fingerprint)
    assert caught.value.value == other.fingerprint


def bundle(folder: Path, columns: Columns, fingerprint: str) -> Bundle:
    columns.save(folder)
    (folder / "second.onnx").write_bytes(b"")
    told = {"features": ["score", *columns.names], "depth": 5, "columns": fingerprint}
    return Bundle(folder, "", {"kind": "two_tower", "second_stage": told})


def day(told: list[str]) -> pa.Table:
    zero = [0] * len(told)
    return pa.table({"item_id": [f"i{n:04d}" for n in range(len(told))], "categories": [[] for _ in told], "n_users": zero,
                     "n_30d": zero, "n_90d": zero, "available_us": zero, "attributes": told})  # fmt: skip


def test_a_scorer_refuses_a_swapped_column_and_transforms_of_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmrec.recommend.second.session", lambda *_: None)
    rng, columns = np.random.default_rng(3), made()
    own = bundle(tmp_path, columns, columns.fingerprint)
    told = of(rng, 200)
    assert Second.over(own, 5, day(told), None, 0).facts.names[-1] == "columns/items.price"
    with pytest.raises(QualityError, match="not what the model was trained on") as caught:
        Second.over(own, 5, day(swapped(told, "price", "weight")), None, 0)
    assert caught.value.where == "feature items.price"
    with pytest.raises(QualityError) as caught:  # the same prices, in cents
        Second.over(own, 5, day([t.replace('"price": ', '"price": 100') for t in told]), None, 0)
    assert caught.value.where == "feature items.price"
    with pytest.raises(QualityError) as caught:
        columns.users(swapped(people(rng, 80), "age", "children"), moments(rng, 80))
    assert caught.value.where == "feature users.age"
    strange = bundle(tmp_path, made(seed=7), columns.fingerprint)
    for refuse in (lambda: Second.over(strange, 5, day(told), None, 0), lambda: asked(5, strange, None)):
        with pytest.raises(QualityError, match="other data than the model"):
            refuse()


@pytest.mark.parametrize(("declared", "value"), [
    ({"item.price": "log"}, "item.price"), ({"items": "log"}, "items"), ({"items.": "log"}, "items."),
    ({"items.prize": "log"}, "items.prize"), ({"items.colour": "log"}, "items.colour"), ({"users.age": "target"}, "target"),
    ({"items.price": "logs"}, "logs"),
])  # fmt: skip
def test_what_is_not_there_is_refused_with_what_is(declared: dict[str, Any], value: str) -> None:
    with pytest.raises(InputError) as caught:
        made(declared)
    error: MmrecError = caught.value
    assert error.value == value
    assert error.valid
    assert error.next == "edit mmrec.toml"
