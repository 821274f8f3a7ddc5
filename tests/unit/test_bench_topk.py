"""`mmrec bench topk`: every peer's lists, the loop that all are held to, the arithmetic, and what it refuses to tell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from mmrec.bench import peers, searchers, topk
from mmrec.errors import InputError, QualityError, TransientError
from mmrec.topk import exact
from tests.conftest import mmrec

K = 7


@pytest.fixture
def data(tmp_path: Path) -> searchers.Data:
    rng = np.random.default_rng(0)
    seen = np.sort(rng.permuted(np.tile(np.arange(400), (30, 1)), axis=1)[:, :9], axis=1)
    arrays = {"user": rng.standard_normal((30, 12), np.float32), "item": rng.standard_normal((400, 12), np.float32),
              "seen_ptr": np.arange(0, 271, 9), "seen_idx": seen.ravel().astype(np.int32)}  # fmt: skip
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "k.json").write_text(json.dumps(K))
    return searchers.Data(tmp_path)


def wanted(data: searchers.Data) -> tuple[np.ndarray, np.ndarray]:
    found = exact.search(data.user, data.item, K, seen=(data.seen_ptr, data.seen_idx))
    return found.item, found.score


def test_the_loop_is_the_exact_search(data: searchers.Data) -> None:
    item, score = topk._loop(data.user, data.item, (data.seen_ptr, data.seen_idx), K)
    np.testing.assert_array_equal(item, wanted(data)[0])
    np.testing.assert_array_equal(score, wanted(data)[1])


@pytest.mark.parametrize("peer", ["onnxruntime", "torch", "implicit"])
def test_a_peer_lists_the_same_items_in_any_blocks(peer: str, data: searchers.Data) -> None:
    item, score = searchers._in_blocks(data, searchers.PEERS[peer](data, 1))["fast"](30)
    np.testing.assert_array_equal(np.sort(item, 1), np.sort(wanted(data)[0], 1))
    np.testing.assert_allclose(score, wanted(data)[1], rtol=1e-5)  # fp32 sums of 12 products


def test_every_way_of_mmrec_is_asked_for_by_name(data: searchers.Data) -> None:
    ways = searchers._mmrec(data, 2)
    assert set(exact.WAYS) | {"fast"} <= set(ways)
    for name in set(ways) - {"limit"}:
        np.testing.assert_array_equal(ways[name](30)[0], wanted(data)[0])
    if "limit" in ways:
        assert (ways["limit"](30)[0] == -1).all()


def test_trained_vectors_differ_in_length_and_are_the_same_twice() -> None:
    user, item = topk._trained(20, 600, 8)
    again = topk._trained(20, 600, 8)
    assert user.shape == (20, 8)
    assert item.shape == (600, 8)
    np.testing.assert_allclose(item, again[1], atol=1e-4)  # two threads add in any order
    norm = np.linalg.norm(item, axis=1)
    assert np.quantile(norm, 0.9) > 1.5 * np.median(norm)


class Planted:
    """A side that was timed before; its lists are right, unless `spoil` says whose are not."""

    seconds: ClassVar[dict[tuple[str, str], Iterator[float]]] = {}
    spoil: ClassVar[str] = ""

    def __init__(self, name: str, words: list[str], folder: Path, env: dict[str, str]) -> None:
        self.name, self.data = words[-3], searchers.Data(Path(words[-2]))
        assert words[-1] == "3" == env["OMP_NUM_THREADS"]

    def __enter__(self) -> Planted:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        if order["out"]:
            seen = self.data.seen_ptr, self.data.seen_idx
            found = exact.search(self.data.user[: order["users"]], self.data.item, self.data.k, seen=seen)
            item = found.item[:, ::-1] if self.spoil in (self.name, order["way"]) else found.item
            np.savez(order["out"], item=item, score=found.score)
        return {"seconds": next(self.seconds.get((self.name, order["way"]), count(3)), 1.0)}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> type[Planted]:
    monkeypatch.setattr(topk, "Side", Planted)
    monkeypatch.setattr(topk.peers, "environment", lambda name, tell: Path("theirs"))
    monkeypatch.setattr(Planted, "spoil", "")
    own = topk._OWN
    Planted.seconds = {("mmrec", "limit"): iter([0.8, 0.9, 0.7]), ("mmrec", own): iter([9.0, 1.0, 1.2, 0.8]),
                       ("mmrec", "fast"): iter([0.5, 0.4, 0.6]), ("faiss", "fast"): iter([2.0, 2.5, 2.2])}  # fmt: skip
    return Planted


def test_ratios_are_of_medians_and_the_best_peer_is_the_fastest(planted: type[Planted]) -> None:
    told = topk.bench(3, lambda *_: None, users=16, items=400, million=False, k=5, threads=3, dims=(8,))
    assert [c["vectors"] for c in told["cases"]] == ["random", "trained"]
    first = told["cases"][0]
    assert first["peers"]["faiss"] == 2.2
    # the others take 3 s each time, faiss 2.0, 2.5, 2.2
    assert first["best_peer"] == "faiss"
    assert first["exact_s"] == 1.0
    assert first["fast_s"] == 0.5
    best = min(first["peers"].values())
    assert first["fast_vs_best_peer"] == pytest.approx(best / 0.5)
    assert first["exact_vs_best_peer"] == pytest.approx(best)
    assert first["mismatches"] == 0
    assert set(first["peer_differs"].values()) == {0.0}
    if "fp32" in exact.WAYS:  # else there is nothing to select from, and no limit of it
        assert first["exact_vs_limit"] == 0.8


def test_a_case_of_ten_times_the_items_comes_last(planted: type[Planted]) -> None:
    told = topk.bench(1, lambda *_: None, users=16, items=300, k=5, threads=3, dims=(4, 8))
    assert [(c["items"], c["dim"], c["vectors"]) for c in told["cases"]] == [
        (300, 4, "random"), (300, 4, "trained"), (300, 8, "random"), (300, 8, "trained"),
        (3000, 4, "random"), (3000, 4, "trained")]  # fmt: skip


def test_lists_that_are_not_exact_spoil_the_measurement(planted: type[Planted], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "spoil", exact.WAYS[0])
    with pytest.raises(QualityError, match="exact"):
        topk.bench(1, lambda *_: None, users=16, items=300, million=False, k=5, threads=3, dims=(4,))


def test_faiss_itself_where_its_environment_is_made() -> None:
    try:
        peers.environment("topk", lambda *_: None, make=False)
    except TransientError:
        pytest.skip("mmrec bench topk makes faiss' environment; it is not in the cache")
    told = json.loads(mmrec("bench", "topk", "--users", "40", "--items", "300", "--rounds", "1", "--threads", "1", "--json").stdout)
    assert [c["mismatches"] for c in told["cases"]] == [0] * 6
    # a peer's fp32 sums may change two that all but tie
    assert all(share <= 0.1 for c in told["cases"] for share in c["peer_differs"].values())


def test_no_such_list_of_pins() -> None:
    with pytest.raises(InputError):
        peers.pinned("topknot")
    assert peers.pinned("topk")["faiss-cpu"]
