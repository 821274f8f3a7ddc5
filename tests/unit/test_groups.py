"""Near-duplicates: the definition as a loop over all pairs, planted twins in a crowd, and what is no twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec.content.groups import Kind, Twin, twins

Keys = Mapping[str, Sequence[str | None]]


def grouped(found: list[Twin]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for twin in found:
        groups.setdefault(twin.first, []).append(twin.item)
    return groups


def naive(ids: Sequence[str], keys: Keys, kinds: Sequence[Kind]) -> dict[str, list[str]]:
    """Items by id: each joins the first group whose first item it is like, or begins its own."""

    def cosine(kind: Kind, x: str, y: str) -> float:
        if x not in kind.shas or y not in kind.shas:
            return -1
        a, b = (kind.emb_MD[list(kind.shas).index(s)] for s in (x, y))
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    def like(i: int, j: int) -> bool:
        some = False
        for modality, key in keys.items():
            x, y = key[i], key[j]
            if x is None or y is None:
                continue
            mine = [k for k in kinds if k.modality == modality]
            if x != y and not (mine and all(cosine(k, x, y) >= k.bound for k in mine)):
                return False
            some = True
        return some

    firsts: list[int] = []
    groups: dict[str, list[str]] = {}
    for j in sorted(range(len(ids)), key=lambda n: ids[n]):
        first = next((i for i in firsts if like(i, j)), j)
        if first == j:
            firsts.append(j)
        groups.setdefault(ids[first], []).append(ids[j])
    return {k: v for k, v in groups.items() if len(v) > 1}


TEXT = Kind("text", ["t0", "t1", "t2", "t3"], np.array([[1, 0], [1, 0.1], [1, 0.3], [0, 1]]), 0.97)
IMAGE = Kind("image", ["p0", "p1", "p2"], np.array([[1, 1, 0], [1, 1, 0.2], [0, 0, 1]]), 0.95)
HASH = Kind("image", ["p0", "p1"], np.array([[1, -1, 1], [1, -1, 1]]), 0.8)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 31).flatmap(lambda n: st.tuples(
    st.permutations([f"i{k:02}" for k in range(n)]),
    st.lists(st.sampled_from([None, "t0", "t1", "t2", "t3", "no vector"]), min_size=n, max_size=n),
    st.lists(st.sampled_from([None, "p0", "p1", "p2"]), min_size=n, max_size=n),
    st.lists(st.sampled_from([None, None, "s0", "s1"]), min_size=n, max_size=n))))  # fmt: skip
def test_groups_are_those_of_the_definition(drawn: tuple[list[str], list[str | None], list[str | None], list[str | None]]) -> None:
    ids, text, image, audio = drawn
    keys = {"text": text, "image": image, "audio": audio}
    found = twins(ids, keys, [TEXT, IMAGE, HASH])
    assert grouped(found) == naive(ids, keys, [TEXT, IMAGE, HASH])
    assert len({t.item for t in found}) == len(found)


def test_a_twin_says_in_what_and_how_close() -> None:
    keys = {"text": ["t0", "t1", "t3", None], "image": ["p0", "p0", "p0", "p1"]}
    found = {t.item: t for t in twins(list("abcd"), keys, [TEXT, IMAGE])}
    assert found["a"] == Twin("a", "a", ("text", "image"), 1.0)
    assert (found["b"].first, found["b"].modalities, found["b"].similarity) == ("a", ("image", "text"), pytest.approx(0.995037, abs=1e-6))
    assert "c" not in found, "the same picture under another text is another thing"
    assert (found["d"].first, found["d"].modalities) == ("a", ("image",))


def test_groups_do_not_chain() -> None:
    # a and c are both like b, and not like each other: b joins a, c stands alone
    kind = Kind("text", ["x", "y", "z"], np.array([[1, -0.2], [1, 0], [1, 0.2]]), 0.97)
    assert grouped(twins(list("abc"), {"text": ["x", "y", "z"]}, [kind])) == {"a": ["a", "b"]}


def test_equal_items_are_one_group_however_many() -> None:
    ids = [f"i{n:04}" for n in range(500)]
    found = twins(ids, {"text": ["t"] * 500, "image": [None] * 500}, [])
    assert grouped(found) == {"i0000": ids}


def test_a_stand_in_picture_makes_no_twins_of_different_texts() -> None:
    ids = [f"i{n:03}" for n in range(300)]
    keys = {"text": [f"t{n}" for n in range(300)], "image": ["no picture yet"] * 300}
    rng = np.random.default_rng(0)
    kind = Kind("text", keys["text"], rng.standard_normal((300, 16)), 0.95)
    assert twins(ids, keys, [kind]) == []


def test_a_kind_without_any_vector_leaves_its_modality_to_equal_content() -> None:
    kind = Kind("text", [], np.zeros((0, 1), np.float32), 0.9)
    assert grouped(twins(list("abc"), {"text": ["x", "y", "x"]}, [kind])) == {"a": ["a", "c"]}


def test_items_without_content_are_nobodys_twins() -> None:
    assert twins(["a", "b"], {"text": [None, None], "image": [None, None]}, []) == []
    assert twins([], {"text": []}, []) == []


@pytest.mark.parametrize("seed", range(2))
def test_planted_twins_are_found_in_a_crowd_and_the_pairs_compared_are_few(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmrec.content import groups

    rng = np.random.default_rng(seed)
    n, planted, d = 20_000, 400, 48
    emb = rng.standard_normal((n, d)) + 0.5 * rng.standard_normal(d)  # a direction that all share, as encoders have
    for p in range(planted):  # cosine .975 to .98: just above the bound
        a = emb[2 * p] / np.linalg.norm(emb[2 * p])
        other = rng.standard_normal(d)
        other -= other @ a * a
        emb[2 * p + 1] = a + 0.21 * other / np.linalg.norm(other)
    compared: list[int] = []
    real = groups._judged

    def counted(pairs: np.ndarray, *rest: object) -> object:
        compared.append(len(pairs))
        return real(pairs, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(groups, "_judged", counted)
    ids, shas = [f"i{k:05}" for k in range(n)], [f"s{k}" for k in range(n)]
    found = grouped(twins(ids, {"text": shas}, [Kind("text", shas, emb, 0.97)], seed))
    right = sum(found.get(f"i{2 * p:05}") == [f"i{2 * p:05}", f"i{2 * p + 1:05}"] for p in range(planted))
    assert len(found) == right, "no others"
    assert right >= 0.98 * planted
    assert compared[0] < n * (n - 1) / 2 / 10
