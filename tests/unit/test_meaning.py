"""Whether neighbours share categories above chance: planted answers, and a loop over all pairs."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec.errors import InputError
from mmrec.evaluate.meaning import meaning


def nearest(emb_ND: np.ndarray, content_N: np.ndarray, k: int) -> np.ndarray:
    """By cosine, then position; -1 in empty places."""
    unit = emb_ND / np.linalg.norm(emb_ND, axis=1, keepdims=True)
    cosine = (unit @ unit.T).round(6)
    near = np.full((len(emb_ND), k), -1)
    for i, row in enumerate(cosine):
        others = sorted((-row[j], j) for j in range(len(row)) if content_N[j] != content_N[i])[:k]
        near[i, : len(others)] = [j for _, j in others]
    return near


def measured(kinds: list[Any], emb_ND: np.ndarray, k: int = 10, **more: Any) -> dict[str, Any]:
    content = np.arange(len(kinds))
    return meaning(kinds, content, content, nearest(emb_ND, content, k), **more)


def naive(kinds: list[set[str]], content: list[int], asked: list[int], near: np.ndarray) -> dict[str, float]:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    sums: dict[str, list[float]] = {"shared": [], "chance": [], "jaccard": [], "jaccard_chance": []}
    for q, i in enumerate(asked):
        of = {"": [int(j) for j in near[q] if j >= 0], "chance": [j for j in range(len(kinds)) if content[j] != content[i]]}
        if of[""]:
            for word, others in of.items():
                sums[word or "shared"].append(mean([bool(kinds[i] & kinds[j]) for j in others]))
                sums["jaccard_chance" if word else "jaccard"].append(mean([len(kinds[i] & kinds[j]) / len(kinds[i] | kinds[j]) for j in others]))
    return {k: mean(v) for k, v in sums.items()}


def test_planted_clusters_share_everything_and_chance_is_counted_by_hand() -> None:
    rng = np.random.default_rng(0)
    centre = np.eye(4)
    kinds = [{f"kind {n % 4}"} for n in range(80)]
    got = measured(kinds, centre[np.arange(80) % 4] + rng.normal(0, 0.01, (80, 4)))
    assert got == {"items": 80, "k": 10, "shared": 1, "chance": pytest.approx(19 / 79), "difference": pytest.approx(60 / 79),
                   "lo": pytest.approx(60 / 79), "hi": pytest.approx(60 / 79), "jaccard": 1, "jaccard_chance": pytest.approx(19 / 79)}  # fmt: skip


def test_of_random_vectors_the_interval_holds_zero_nearly_always_and_of_planted_ones_never() -> None:
    held = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        kinds = [set(rng.choice(list("abcdefgh"), rng.integers(1, 4), replace=False)) for _ in range(150)]
        emb = rng.normal(size=(150, 8))
        got = measured(kinds, emb, samples=400, seed=seed)
        assert got["lo"] < got["difference"] < got["hi"]
        held += got["lo"] <= 0 <= got["hi"]
        emb[:, 0] += [3 * ("a" in k) for k in kinds]
        assert measured(kinds, emb, samples=400, seed=seed)["lo"] > 0
    assert held >= 30


def test_a_single_category_for_all_says_nothing() -> None:
    got = measured([{"film"}] * 30, np.random.default_rng(1).normal(size=(30, 5)))
    assert [got[k] for k in ("shared", "chance", "jaccard", "jaccard_chance")] == [1, 1, 1, 1]
    assert (got["difference"], got["lo"], got["hi"]) == (0, 0, 0)


WORLDS = st.lists(st.tuples(st.sets(st.sampled_from("abcd"), min_size=1), st.integers(0, 5)), min_size=2, max_size=25).filter(
    lambda rows: len({c for _, c in rows}) > 1
)


@settings(deadline=None)
@given(WORLDS, st.integers(1, 6), st.data())
def test_it_is_what_a_loop_over_all_pairs_gives(rows: list[tuple[set[str], int]], k: int, data: st.DataObject) -> None:
    kinds, content = [r[0] for r in rows], [r[1] for r in rows]
    asked = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1)))
    near = nearest(np.random.default_rng(0).normal(size=(len(rows), 3)), np.array(content), k)[asked]
    got = meaning(kinds, np.array(content), np.array(asked), near, samples=10)
    assert {k: got[k] for k in ("shared", "chance", "jaccard", "jaccard_chance")} == pytest.approx(naive(kinds, content, asked, near))
    assert got["difference"] == pytest.approx(got["shared"] - got["chance"])
    assert got["items"] == len(asked)


def test_chance_is_the_mean_over_labels_dealt_anew() -> None:
    rng = np.random.default_rng(2)
    kinds = [set(rng.choice(list("abcde"), rng.integers(1, 3), replace=False)) for _ in range(7)]
    near = nearest(rng.normal(size=(7, 3)), np.arange(7), 2)
    dealt = [naive([kinds[p] for p in order], list(range(7)), list(range(7)), near)["shared"] for order in itertools.permutations(range(7))]
    got = meaning(kinds, np.arange(7), np.arange(7), near, samples=10)
    assert got["chance"] == pytest.approx(np.mean(dealt))


def test_pairs_are_compared_in_pieces_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    kinds = [set(rng.choice(list("abcdef"), rng.integers(1, 5), replace=False)) for _ in range(60)]
    emb = rng.normal(size=(60, 4))
    whole = measured(kinds, emb)
    monkeypatch.setattr("mmrec.evaluate.meaning._CELLS", 1)
    assert measured(kinds, emb) == pytest.approx(whole)


def test_an_interval_is_its_seeds_and_no_other_and_items_of_equal_content_are_one_draw() -> None:
    rng = np.random.default_rng(4)
    kinds = [{str(rng.integers(4))} for _ in range(40)]
    emb = rng.normal(size=(40, 3))
    one, two, other = (measured(kinds, emb, seed=s) for s in (7, 7, 8))
    assert one == two
    assert (one["lo"], one["hi"]) != (other["lo"], other["hi"])
    twins = np.repeat(np.arange(40), 4)
    near = nearest(emb[twins], twins, 8)
    wide = meaning([kinds[n] for n in twins], twins, np.arange(160), near)
    narrow = meaning([kinds[n] for n in twins], np.arange(160), np.arange(160), near)
    assert wide["hi"] - wide["lo"] > 1.5 * (narrow["hi"] - narrow["lo"])


def test_an_item_without_a_neighbour_is_not_counted_and_what_does_not_fit_is_refused() -> None:
    near = np.array([[1, -1], [-1, -1]])
    kinds, both = [{"a"}, {"a"}, {"b"}], np.array([0, 1])
    got = meaning(kinds, np.arange(3), both, near)
    assert (got["items"], got["shared"], got["chance"]) == (1, 1, 0.5)
    with pytest.raises(InputError, match="without categories"):
        meaning([{"a"}, set(), {"b"}], np.arange(3), both, near)
    with pytest.raises(InputError, match="No item has a neighbour"):
        meaning(kinds, np.arange(3), both, np.full((2, 2), -1))
    for content, asked, bad in ((np.arange(2), both, near), (np.arange(3), both[:1], near), (np.arange(3), both, near[0])):
        with pytest.raises(InputError, match="don't fit"):
            meaning(kinds, content, asked, bad)
