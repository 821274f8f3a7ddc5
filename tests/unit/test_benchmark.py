"""`mmrec benchmark`: the protocol by a naive count, what is read when, and rows that can't be read."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from mmrec import benchmark as room
from mmrec.cli import app
from mmrec.errors import InputError
from mmrec.evaluate.published import published
from mmrec.models.rivals import published_rivals
from mmrec.models.splits import leave_one_out
from mmrec.screen import print_benchmark


def folder(root: Path, *, described: bool = True, users: int = 30, items: int = 25) -> Path:
    rng = np.random.default_rng(0)
    lines = []
    for user in range(1, users + 1):
        # what goes together: items of one half of the catalogue
        own = np.arange(1, items + 1)[np.arange(items) % 2 == user % 2]
        lines.append(" ".join(map(str, [user, *rng.permutation(own)[: rng.integers(5, 9)]])))
    (root / "sequences.txt").write_text("\n".join(lines) + "\n")
    if described:
        rows = [{"item": i, "asin": f"A{i}", "title": f"thing {i}", "attributes": ["Maker", "odd" if i % 2 else "even"]}
                for i in range(1, items + 1)]  # fmt: skip
        (root / "items.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return root


def nobody(_what: str, _done: int, _of: int) -> None:
    pass


def test_the_command_tells_what_it_reached_between_published_rows(tmp_path: Path) -> None:
    source = folder(tmp_path)
    told = CliRunner().invoke(app, ["benchmark", "beauty", "--source", str(source), "--seeds", "2", "--recipe", "small",
                                    "--threads", "1", "--json"])  # fmt: skip
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert found["published"] == published("beauty")
    assert found["seeds"] == [0, 1]
    assert set(found["ablation"]) == {"id", "id +blend", "id +text", "id +text +blend"}
    for split in ("validation", "test"):
        whole = found[split]
        for k in (5, 10, 20):
            low, high = whole["interval"][f"recall@{k}"]
            assert low <= whole[f"recall@{k}"] + 1e-4
            assert whole[f"recall@{k}"] <= high + 1e-4
            assert whole[f"recall@{k}"] == pytest.approx(np.mean([s[f"recall@{k}"] for s in whole["by_seed"]]), abs=1e-4)
        assert found["ablation"]["id +text +blend"][split] == {m: whole[m] for m in found["ablation"]["id"][split]}
    # 12 or 13 items of the user's own half, of which at least four are seen: chance alone would find .4 in ten of all
    assert found["test"]["recall@10"] > 0.8


def test_numbers_are_those_of_a_naive_count(tmp_path: Path) -> None:
    items, log = room.read(folder(tmp_path), tmp_path / "cache", 1, nobody)
    fold = leave_one_out(log, items)
    lines = [line.split() for line in (tmp_path / "sequences.txt").read_text().splitlines()]

    class Last:
        """Ranks items by closeness of id to the last one."""

        name = "last"

        def score(self, items: Any, log: Any, fold: Any, cases: slice) -> np.ndarray:
            number = np.array([int(i) for i in items.ids])
            newest = log.item[fold.hist_row[fold.hist_ptr[1:][cases] - 1]]
            return -np.abs(number[None] - number[newest][:, None]).astype(np.float32)

    got = room._at(room.evaluate(Last(), items, log, fold, lists=False), fold)
    by_user = {log.user_ids[u]: n for n, u in enumerate(got.user)}
    for user, *own in lines:
        last, wanted, seen = int(own[-2]), int(own[-1]), {int(i) for i in own[:-1]}
        order = sorted((i for i in range(1, 26) if i not in seen), key=lambda i: (abs(i - last), str(i)))
        rank = order.index(wanted) + 1
        for k in (5, 10, 20):
            assert got.values[f"recall@{k}"][by_user[user]] == (rank <= k)
            assert got.values[f"ndcg@{k}"][by_user[user]] == pytest.approx((rank <= k) / np.log2(rank + 1))


def test_test_is_not_read_where_nobody_asks(tmp_path: Path) -> None:
    source = folder(tmp_path, described=False)
    found = room.benchmark("mine", source, tmp_path / "cache", nobody, seeds=[3], recipe="small", threads=1, test=False)
    assert "test" not in found
    assert found["rivals"] == {}, "nobody asked for them"
    assert set(found["ablation"]) == {"id", "id +blend"}  # nothing is described
    assert set(found["ablation"]["id"]) == {"validation"}
    assert found["published"] == []


def test_what_is_chosen_does_not_depend_on_the_test_item(tmp_path: Path) -> None:
    source = folder(tmp_path, described=False)
    asked = {"seeds": [0], "recipe": "small", "threads": 1, "ablation": False}
    one = room.benchmark("mine", source, tmp_path / "cache", nobody, **asked)
    lines = [line.split() for line in (source / "sequences.txt").read_text().splitlines()]
    # each user's last item becomes another one of the catalogue that they have not had
    other = [[*line[:-1], next(str(i) for i in range(1, 26) if str(i) not in line)] for line in lines]
    (source / "sequences.txt").write_text("\n".join(" ".join(line) for line in other) + "\n")
    two = room.benchmark("mine", source, tmp_path / "cache", nobody, **asked)
    assert one["chosen"] == two["chosen"]
    assert one["validation"] == two["validation"]
    assert one["test"] != two["test"]


def test_rivals_stand_in_the_same_table_each_by_its_own_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, told = folder(tmp_path, described=False), []
    quick = {"lightgcn": 5, "gru4rec": 2, "sasrec": 2}

    def small(seed: int) -> dict[str, Any]:
        made = published_rivals(seed)
        for name, epochs in quick.items():
            made[name].epochs = epochs
        return made

    monkeypatch.setattr("mmrec.models.rivals.published_rivals", small)
    found = room.benchmark("mine", source, tmp_path / "cache", lambda *a: told.append(a), seeds=[4, 5], recipe="small", threads=1,
                           ablation=False, rivals=True)  # fmt: skip
    names = [n for n in published_rivals() if n != "content_nn"]  # nothing is described
    assert list(found["rivals"]) == names
    twice = {"als", "bpr", "lightgcn", "gru4rec", "sasrec"}
    assert {n: r["fits"] for n, r in found["rivals"].items()} == {n: 1 + (n in twice) for n in names}
    items, log = room.read(source, tmp_path / "cache", 1, nobody)
    folds = {"validation": leave_one_out(log, items, validation=True), "test": leave_one_out(log, items)}
    for name in ("ease", "lightgcn"):
        more = ([folds["validation"]],) if name in quick else ()
        fits = [small(s)[name].fit(items, log, folds["validation"], *more) for s in ((4, 5) if name in twice else (4,))]
        for split, fold in folds.items():
            want = [room._at(room.evaluate(m, items, log, fold, lists=False), fold) for m in fits]
            assert found["rivals"][name][split] == room._means(want)
    assert set(found["ablation"]) == {"id +blend"}
    fitted = [what for what, _, _ in told if what.startswith("benchmark: fit of")]
    assert len(fitted) == len(names) + len(twice)
    screen = io.StringIO()
    print_benchmark(Console(file=screen, width=300), found)
    for name, each in found["rivals"].items():
        assert re.search(rf"\b{name}\b.*{each['test']['recall@10']:.4f}.*fitted here", screen.getvalue())


def test_rivals_that_cannot_be_fitted_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items, log = room.read(folder(tmp_path, described=False), tmp_path / "cache", 1, nobody)
    cheap = ("popularity", "content_nn", "item_knn", "ease", "als")
    monkeypatch.setattr("mmrec.models.rivals.published_rivals", lambda seed: {n: published_rivals(seed)[n] for n in cheap})
    monkeypatch.setattr("mmrec.models.ease.MAX_ITEMS", items.n - 1)
    made = room._rivals(items, log, leave_one_out(log, items, validation=True), [0, 1], nobody)
    assert {name: len(fits) for name, fits in made.items()} == {"popularity": 1, "item_knn": 1, "als": 2}


def test_bad_input_says_what_and_where(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such recipe"):
        room.benchmark("mine", folder(tmp_path), tmp_path / "cache", nobody, recipe="none")
    with (tmp_path / "sequences.txt").open("a") as file:
        file.write("77\n")
    with pytest.raises(InputError, match=r"sequences.txt, line 31"):
        room.read(tmp_path, tmp_path / "cache", 1, nobody)
    told = CliRunner().invoke(app, ["benchmark", "mine", "--source", str(tmp_path / "nowhere")])
    assert isinstance(told.exception, InputError)
    assert "not a folder of sequences" in str(told.exception)
