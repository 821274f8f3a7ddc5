"""A champion fitted on a small world: it learns, saves, exports, and refuses what it can't do."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from shops import make_items, make_log, random_shop

from mmrec.errors import InputError, QualityError
from mmrec.evaluate.protocols import evaluate
from mmrec.models.baselines import Popularity
from mmrec.models.data import Fold, Items, Log
from mmrec.models.splits import leave_one_out, per_user
from mmrec.ort import session
from mmrec.topk.members import Offers
from mmrec.topk.rerank import Rerank, rerank
from mmrec.train.export import export, item_feeds, user_feeds
from mmrec.train.fit import Champion
from mmrec.train.recipe import RECIPES

SMALL = replace(RECIPES["small"], d=16, epochs=6, schedule=6, context=16, length=24, tokens=256, negatives=64, rank=32)


def checkerboard(users: int = 60, n: int = 40) -> tuple[Items, Log]:
    """Even users have even items, odd users odd ones; an item's content says which it is."""
    rng = np.random.default_rng(0)
    rows = [(u, int(i) * 2 + u % 2, day) for u in range(users)
            for day, i in enumerate(rng.permutation(n // 2)[:10])]  # fmt: skip
    parity = np.where(np.arange(n) % 2, 1.0, -1.0)[:, None]
    content = {"text": (parity * np.ones((1, 6)) + 0.1 * rng.normal(size=(n, 6))).astype(np.float32)}
    return make_items(n, content=content), make_log(rows, users)


@pytest.fixture(scope="module")
def board() -> tuple[Items, Log, Fold, Champion]:
    items, log = checkerboard()
    fold = per_user(log, items)
    model = Champion(SMALL, seed=1).fit(items, log, fold, [per_user(log, items, validation=True)])
    return items, log, fold, model


def test_it_learns_the_checkerboard(board: tuple[Items, Log, Fold, Champion]) -> None:
    items, log, fold, model = board
    ranked = evaluate(model, items, log, fold).ranked[:, :8]
    same = (ranked % 2 == (fold.case_user % 2)[:, None]).mean()
    # ten of a colour are left to each user, and eight are asked for
    assert same > 0.95
    own = evaluate(model, items, log, fold).mean("recall@10")
    assert own > 1.5 * evaluate(Popularity().fit(items, log, fold), items, log, fold).mean("recall@10")


def test_an_item_nobody_had_is_placed_by_its_content(board: tuple[Items, Log, Fold, Champion]) -> None:
    items, log, _, _ = board
    held = np.isin(log.item, [38, 39])
    fold = per_user(log, items)
    train = fold.train & ~held
    fold = replace(fold, train=train)
    model = Champion(SMALL, seed=1).fit(items, log, fold)
    scores = model.score(items, log, fold, slice(0, fold.n_cases))
    right = scores[np.arange(fold.n_cases), 38 + fold.case_user % 2]
    wrong = scores[np.arange(fold.n_cases), 39 - fold.case_user % 2]
    assert (right > wrong).mean() > 0.95


def test_the_same_seed_gives_the_same_bits_and_another_does_not(board: tuple[Items, Log, Fold, Champion]) -> None:
    items, log, fold, _ = board
    one, two, three = (Champion(replace(SMALL, epochs=1), seed=s).fit(items, log, fold) for s in (3, 3, 4))
    cases = slice(0, 5)
    assert (one.score(items, log, fold, cases) == two.score(items, log, fold, cases)).all()
    assert (one.score(items, log, fold, cases) != three.score(items, log, fold, cases)).any()


def test_saved_and_loaded_it_scores_the_same(board: tuple[Items, Log, Fold, Champion], tmp_path: Path) -> None:
    items, log, fold, model = board
    model.save(tmp_path)
    again = Champion.load(tmp_path)
    cases = slice(0, fold.n_cases)
    assert (again.score(items, log, fold, cases) == model.score(items, log, fold, cases)).all()
    assert not list(tmp_path.glob("*.pkl"))
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_the_graphs_agree_with_torch_and_hold_nothing_foreign(
    board: tuple[Items, Log, Fold, Champion], tmp_path: Path
) -> None:
    items, log, fold, model = board
    spec = export(model, items, log, fold, tmp_path)
    # fp32 in another order of operations
    assert max(spec["parity"].values()) < 1e-4
    assert json.loads((tmp_path / "item_map.json").read_text()) == model.item_map
    for graph in tmp_path.glob("*.onnx"):
        assert {n.domain for n in onnx.load(graph).graph.node} <= {"", "ai.onnx"}
    item_in, item_vec = session(tmp_path / "item_encoder.onnx").run(["item_in", "item_vec"], item_feeds(model, items))
    cases = slice(0, 12)
    user = session(tmp_path / "user_encoder.onnx").run(None, user_feeds(model, log, fold, cases, item_in))[0]
    want = model.score(items, log, fold, cases)
    np.testing.assert_allclose(user @ item_vec.T, want, atol=2e-4 * want.std())


@pytest.mark.parametrize("kind", ["ranks", "vote", "stacking"])
def test_a_re_ranked_list_is_the_same_in_evaluation_and_at_night(
    board: tuple[Items, Log, Fold, Champion], tmp_path: Path, kind: str
) -> None:
    items, log, fold, fitted = board
    fitted.save(tmp_path / "model")
    weights = {"ranks": (1.0, 0.5, 0.25), "vote": (), "stacking": (1.0, 1.0, 1.0, -0.4, -0.2, -0.1)}[kind]
    model = Champion.load(tmp_path / "model")
    parts = {"linear": 50.0, "content": 0.5}  # each has a say
    model.settle(parts | {"blend": kind, "blend_weights": weights, "depth": 4})
    spec = export(model, items, log, fold, tmp_path / "bundle")
    how = Rerank.of(json.loads(json.dumps(spec["blend"])))
    assert how == model.rerank
    graphs = [session(tmp_path / "bundle" / f"{side}_encoder.onnx") for side in ("item", "user")]
    feeds = item_feeds(model, items)
    item_in, item_vec = graphs[0].run(["item_in", "item_vec"], feeds)
    n = fold.n_cases
    user_vec = graphs[1].run(None, user_feeds(model, log, fold, slice(0, n), item_in))[0]
    seen = (fold.hist_ptr, log.item[fold.hist_row])
    cold = feeds["id_index"] == 0
    served = rerank(user_vec, Offers(item_vec, how.members, cold, fold.catalogue), 20, how=how, seen=seen)
    ranked = evaluate(model, items, log, fold).ranked
    # graphs and torch differ by rounding, so two items that all but tie may change places
    assert (served.item == ranked).mean() > 0.99
    plain = Champion.load(tmp_path / "model").settle(parts | {"blend": "scores", "blend_weights": ()})
    assert (evaluate(plain, items, log, fold).ranked != ranked).any()


@pytest.mark.parametrize("fusion", ["sum", "gate", "attention", "concat", "late"])
def test_every_fusion_learns_exports_and_places_what_lacks_a_part(fusion: str, tmp_path: Path) -> None:
    items, log = checkerboard()
    items = replace(items, present={"text": np.arange(items.n) % 5 > 0})
    fold = per_user(log, items)
    recipe, vals = replace(SMALL, fusion=fusion), [per_user(log, items, validation=True)]
    model = Champion(recipe, seed=1).fit(items, log, fold, vals)
    ranked = evaluate(model, items, log, fold).ranked[:, :8]
    assert (ranked % 2 == (fold.case_user % 2)[:, None]).mean() > 0.7  # chance is .5; six epochs are few
    assert max(export(model, items, log, fold, tmp_path)["parity"].values()) < 1e-4
    with torch.no_grad():
        nothing = model.item_vectors(replace(items, present={"text": np.zeros(items.n, bool)}), frozenset(["id"]))
        assert np.abs(nothing.numpy()).max() == 0
        by_id = model.item_vectors(items, frozenset(["text"]))
    assert np.linalg.norm(by_id.numpy(), axis=1).min() > 0


def test_an_unknown_fusion_is_refused() -> None:
    items, log = checkerboard()
    with pytest.raises(InputError, match="no such fusion"):
        Champion(replace(SMALL, fusion="mean")).fit(items, log, per_user(log, items))


def test_an_export_that_differs_from_torch_is_refused(
    board: tuple[Items, Log, Fold, Champion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items, log, fold, model = board
    honest = model.item_side
    monkeypatch.setattr(model, "item_side", lambda *a, **k: honest(*a, **k)[::-1].copy())
    with pytest.raises(QualityError, match="disagree"):
        export(model, items, log, fold, tmp_path)


def test_a_vector_that_is_not_a_number_is_refused(board: tuple[Items, Log, Fold, Champion]) -> None:
    items, log, fold, _ = board
    poisoned = replace(items, content={"text": np.full_like(items.content["text"], np.nan)})
    with pytest.raises(QualityError, match="content vector is not a number"):
        Champion(SMALL).fit(poisoned, log, fold)


def test_a_loss_that_is_not_a_number_is_never_kept(board: tuple[Items, Log, Fold, Champion]) -> None:
    items, log, fold, _ = board
    with pytest.raises(QualityError, match="loss is not a number"):
        Champion(replace(SMALL, lr=1e36, warmup=1)).fit(items, log, fold)


def test_nothing_to_learn_from_is_said() -> None:
    items, log = random_shop(0)
    fold = leave_one_out(log, items)
    with pytest.raises(QualityError, match="too few interactions"):
        Champion(SMALL).fit(items, log, replace(fold, train=np.zeros_like(fold.train)))


def test_a_masked_part_is_not_used(board: tuple[Items, Log, Fold, Champion]) -> None:
    items, log, fold, model = board
    cases = slice(0, 6)
    without = model.score(items, log, fold, cases, frozenset(["text"]))
    other = replace(items, content={"text": items.content["text"][::-1].copy()})
    assert (model.score(other, log, fold, cases, frozenset(["text"])) == without).all()
    assert (model.score(items, log, fold, cases) != without).any()
