"""`mmrec bench train`: the same data on every side, the arithmetic of slices, real sides, and what it refuses to tell."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mmrec.bench import peers, train, trainers
from mmrec.errors import InputError, QualityError, TransientError
from tests.conftest import mmrec

NAMES = ("rectools", "rectools_fast", "rectools_fast_sampled")
ORDERS = {"blocks", "d", "dropout", "heads", "history", "negatives", "batch_users", "batch_tokens", "peers_lr", "seed",
          "whole"}  # fmt: skip


def quiet(*_: object) -> None:
    pass


# the list and its environment


def test_the_list_pins_rectools_and_everything_it_needs_and_says_nothing_of_where_from() -> None:
    text = (Path(peers.__file__).parent / "rectools.txt").read_text()
    pins = peers.pinned("rectools")
    assert pins["RecTools"] == "0.19.0"
    assert {"torch", "pytorch-lightning", "numpy", "pandas", "setuptools"} < set(pins)
    assert text == "".join(f"{name}=={version}\n" for name, version in pins.items())
    assert not any(word in text for word in ("://", "@", "--", "hash"))
    known, checked = {canonicalize_name(name): version for name, version in pins.items()}, set()
    for name, version in pins.items():
        try:
            here = distribution(name)
        except PackageNotFoundError:
            continue
        if here.version == version:
            needs = [Requirement(r) for r in here.requires or ()]
            for need in needs:
                if need.marker is None or need.marker.evaluate({"extra": ""}):
                    assert need.specifier.contains(known[canonicalize_name(need.name)]), f"{name} needs {need}"
            checked.add(name)
    assert "torch" in checked  # both sides have one torch, and what it needs is the longest part of the list


@pytest.mark.parametrize("line", ["torch>=2", "torch", "torch @ https://host/torch.whl", "--index-url https://host", "",
                                  "torch==2.*", "torch==2 --hash=sha256:00", "torch==2; python_version>'3'", "hats==2"])  # fmt: skip
def test_a_line_that_is_no_pin_is_refused_with_its_place(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd.txt").write_text(f"hats==1.0\n{line}\n")
    monkeypatch.setattr(peers, "_LISTS", tmp_path)
    with pytest.raises(InputError, match="not a list of pins") as caught:
        peers.pinned("odd")
    assert str(caught.value.where).endswith("odd.txt, line 2")
    assert caught.value.value == line
    with pytest.raises(InputError, match="no such environment") as caught:
        peers.environment("even", quiet)
    assert caught.value.valid == ["odd"]


def wheel(folder: Path, name: str, needs: str = "") -> None:
    """A wheel of one module and nothing else."""
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" + (f"Requires-Dist: {needs}\n" if needs else "")
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as made:
        made.writestr(f"{name}.py", "WORN = True\n")
        made.writestr(f"{name}-1.0.dist-info/METADATA", about)
        made.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr(f"{name}-1.0.dist-info/RECORD", "")


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pip finds wheels, and the lists of pins; pip is configured to look nowhere else."""
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null",
                        "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(peers, "_LISTS", tmp_path)
    return tmp_path


def test_an_environment_is_made_once_of_its_list_and_apart_from_this_one(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(shelf, "hats")
    (shelf / "hats.txt").write_text("hats==1.0\n")
    with pytest.raises(TransientError, match="not in the cache yet"):
        peers.environment("hats", quiet, make=False)
    said: list[tuple[str, int, int]] = []
    python = peers.environment("hats", lambda *what: said.append(what))
    assert said == [("bench: installing hats, once", 1, 1)]
    run = [str(python), "-I", "-c", "import hats, sys; assert hats.WORN; import numpy"]
    assert "No module named 'numpy'" in subprocess.run(run, capture_output=True, text=True).stderr
    with monkeypatch.context() as patch:
        patch.setattr(peers, "_run", lambda *_: pytest.fail("it is there"))
        assert peers.environment("hats", quiet) == peers.environment("hats", quiet, make=False) == python
    wheel(shelf, "socks", needs="shoes>=1")
    (shelf / "hats.txt").write_text("hats==1.0\nsocks==1.0\n")
    with pytest.raises(TransientError, match="can't be made") as caught:
        peers.environment("hats", quiet)
    assert "socks 1.0 requires shoes" in str(caught.value.value)
    assert [p.name for p in python.parents[2].iterdir() if p.is_dir()] == [python.parents[1].name]


def test_what_pip_can_not_get_is_worth_another_try_and_leaves_nothing(shelf: Path) -> None:
    (shelf / "hats.txt").write_text("hats==1.0\n")
    with pytest.raises(TransientError, match="can't be made") as caught:
        peers.environment("hats", quiet)
    assert "hats==1.0" in str(caught.value.value)
    assert "pip config list" in str(caught.value.next)
    assert [p for p in (shelf / "cache" / "mmrec" / "peers").iterdir() if p.is_dir()] == []


# the data


@pytest.fixture
def sequences(tmp_path: Path) -> Path:
    """One user of many items, one who has an item twice, one of too few."""
    long = " ".join(f"i{n}" for n in range(80))
    (tmp_path / "sequences.txt").write_text(f"b {long}\na i3 i2 i3 i1 i0\nc i1 i2 i1 i2\n")
    return tmp_path


def test_a_user_has_each_item_once_and_no_more_than_one_window_and_two(sequences: Path) -> None:
    data = train.interactions(sequences)
    items, log, fold = train.views(data)
    ids = sorted({f"i{n}" for n in range(4)} | {f"i{n}" for n in range(27, 80)})
    assert items.n == int(data["n_items"]) == len(ids)
    named = [ids[i] for i in data["item"]]
    assert named == ["i3", "i2", "i1", "i0", *(f"i{n}" for n in range(27, 80))]
    assert data["user"].tolist() == [0] * 4 + [1] * 53
    assert data["place"].tolist() == [*range(4), *range(53)]
    assert (data["train"] == fold.train).all()
    assert np.bincount(data["user"][data["train"]]).tolist() == [2, 51]
    assert data["case_user"].tolist() == fold.case_user.tolist() == [0, 1]
    assert [ids[i] for i in fold.target_item] == ["i1", "i78"]
    assert log.item[fold.hist_row].tolist() == data["item"][data["train"]].tolist()


def test_nobody_with_enough_items_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "sequences.txt").write_text("a i1 i2 i3\nb i1\n")
    with pytest.raises(InputError, match="nobody has enough") as caught:
        train.interactions(tmp_path)
    assert caught.value.value == "2 users"


def test_the_peers_are_asked_for_the_same_histories_and_rank_what_the_user_has_not_had(sequences: Path) -> None:
    data = train.interactions(sequences)
    known = np.unique(data["item"][data["train"]])[::-1].copy()  # in any order of theirs
    x_BL = np.concatenate([x.numpy() for x in trainers._histories(data, train._SETTINGS, known)])
    own = data["item"][data["train"]]
    assert x_BL.shape == (2, 50)
    assert x_BL[0, :48].tolist() == [0] * 48
    assert known[x_BL[0, 48:] - 1].tolist() == own[:2].tolist()
    assert known[x_BL[1] - 1].tolist() == own[3:].tolist()
    rng = np.random.default_rng(0)
    data["case_user"] = np.zeros(600, np.int64)  # more than are ranked at a time
    user_CD, item_ND = rng.normal(size=(600, 4)), rng.normal(size=(len(known), 4))
    found = trainers._ranked(user_CD, item_ND, known, data)
    with pytest.raises(ValueError, match="not a number"):
        trainers._ranked(np.full_like(user_CD, np.nan), item_ND, known, data)
    for c in (0, 511, 512, 599):
        score = dict(zip(known.tolist(), (item_ND @ user_CD[c]).tolist(), strict=True))
        best = sorted(score.keys() - set(own[:2].tolist()), key=lambda item: -score[item])
        assert found[c].tolist() == best[:10]


# the clock


def test_the_clock_holds_a_loop_between_orders_and_counts_what_one_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "best.npy"
    orders = [{"seconds": 0}, {"rank": str(file)}, {"seconds": 2.5}]
    answers = io.StringIO()
    clock = trainers.Clock(io.StringIO("".join(json.dumps(o) + "\n" for o in orders)), answers)
    clock.rank, clock.targets = lambda: np.arange(10)[None], 7
    ticks = count()
    monkeypatch.setattr(trainers.time, "perf_counter", lambda: float(next(ticks)))
    clock.wait()
    clock.step(3, 2.0)
    assert file.is_file()
    clock.step(1, 1.0)
    clock.step(2, 4.0)
    with pytest.raises(SystemExit):  # nobody orders more
        clock.step(5, 0.0)
    told = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert told == [{"tokens": 3, "seconds": 1.0, "steps": 1, "targets": 7, "loss": 2.0}, {"rank": str(file)},
                    {"tokens": 8, "seconds": 3.0, "steps": 3, "targets": 7, "loss": 9 / 8}]  # fmt: skip


# the arithmetic


class Planted:
    """Sides that were timed before: what each answers, in turn; `asked` is who was ordered what."""

    rows: ClassVar[dict[str, Iterator[dict[str, Any]]]] = {}
    asked: ClassVar[list[tuple[str, dict[str, Any]]]] = []

    def __init__(self, name: str, python: list[str], folder: Path, threads: int) -> None:
        self.name = name
        assert set(json.loads((folder / "settings.json").read_text())) == ORDERS
        assert ("-I" in python) == (name != "mmrec")
        assert threads == 3

    def __enter__(self) -> Planted:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((self.name, order))
        if "rank" in order:
            np.save(order["rank"], np.array([[49, 1, *range(2, 10)]] * 2))
            return order
        return next(self.rows[self.name])


def row(tokens: int, seconds: float, *, targets: int = 51, loss: float = 2.0, steps: int = 2) -> dict[str, Any]:
    return {"tokens": tokens, "seconds": seconds, "steps": steps, "targets": targets, "loss": loss}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> type[Planted]:
    monkeypatch.setattr(train, "_side", Planted)
    monkeypatch.setattr(train.peers, "environment", lambda name, tell: Path("theirs"))
    Planted.asked.clear()
    Planted.rows = {
        "mmrec": iter([row(1, 9.0), row(400, 1.0), row(600, 2.0), row(500, 1.0)]),
        "rectools": iter([row(1, 1.0), row(10, 1.0), row(40, 2.0), row(30, 1.0)]),
        "rectools_fast": iter([row(1, 1.0), row(80, 1.0), row(100, 1.0), row(125, 1.0)]),
        "rectools_fast_sampled": iter([row(1, 1.0), row(8, 1.0), row(10, 1.0), row(12, 1.0, steps=1)]),
    }
    return Planted


def test_slices_take_turns_and_ratios_are_of_medians(planted: type[Planted], sequences: Path) -> None:
    told = train.bench(3, quiet, source=sequences, threads=3, seconds=1.5)
    who = [name for name, _ in planted.asked]
    sides = ["mmrec", *NAMES]
    assert who == [*sides, *sides, *sides[1:], sides[0], *sides[2:], *sides[:2]]
    assert [order for _, order in planted.asked] == [{"seconds": 0}] * 4 + [{"seconds": 1.5}] * 12
    settings = told.pop("settings")
    assert told == {
        "tokens_per_s": 400, "rectools_tokens_per_s": 20, "rectools_fast_tokens_per_s": 100,
        "rectools_fast_sampled_tokens_per_s": 10, "tokens_per_step": 250, "rectools_tokens_per_step": 13.3,
        "rectools_fast_tokens_per_step": 50.8, "rectools_fast_sampled_tokens_per_step": 6, "ratio_vs_rectools": 20,
        "ratio_vs_rectools_low": 15, "ratio_vs_rectools_high": 40, "ratio_vs_rectools_fast": 4,
        "ratio_vs_rectools_fast_low": 3, "ratio_vs_rectools_fast_high": 5, "ratio_vs_rectools_fast_sampled": 40,
        "ratio_vs_rectools_fast_sampled_low": 30, "ratio_vs_rectools_fast_sampled_high": 50,
    }  # fmt: skip
    assert {k: settings[k] for k in ("d", "blocks", "negatives", "history", "users", "items", "targets", "threads", "rounds", "seconds", "rectools", "rectools_torch")} == {
        "d": 64, "blocks": 2, "negatives": 256, "history": 50, "users": 2, "items": 57, "targets": 51, "threads": 3,
        "rounds": 3, "seconds": 1.5, "rectools": "0.19.0", "rectools_torch": settings["torch"].split("+")[0]}  # fmt: skip
    assert settings["source"] == sequences.name


def test_with_minutes_a_look_comes_at_half_the_time_of_the_next(planted: type[Planted], sequences: Path) -> None:
    told = train.bench(3, quiet, source=sequences, threads=3, minutes=0.5)
    own = [order for name, order in planted.asked if name == "mmrec" and "seconds" in order]
    # looks are due after 7.5, 15 and 30 s; 9 s went before the first slice, and slices took 1 and 2 s
    assert [order["seconds"] for order in own] == pytest.approx([0, 0, 5, 18])
    assert sum("rank" in order for _, order in planted.asked) == 9
    assert "rectools_fast_sampled" not in {name for name, _ in planted.asked}
    assert [r["minutes"] for r in told["curves"]["mmrec"]] == [0.17, 0.2, 0.22]
    # of two users the second wants item 49 or another: "i78" is one of the last by name, "i1" is 1
    ids = sorted({f"i{n}" for n in range(4)} | {f"i{n}" for n in range(27, 80)})
    wanted = [[49, 1, *range(2, 10)].index(ids.index(t)) if ids.index(t) in (49, *range(1, 10)) else None for t in ("i1", "i78")]
    by_hand = np.mean([0 if place is None else 1 / np.log2(place + 2) for place in wanted])
    assert by_hand > 0
    for name in ("ndcg@10", *(f"{n}_ndcg@10" for n in NAMES[:2])):
        assert told[name] == pytest.approx(by_hand, abs=1e-5)
    assert told["settings"]["minutes"] == 0.5
    assert "seconds" not in told["settings"]
    assert told["settings"]["mmrec"]["dropout"] == 0.5  # as its recipe has it for short histories


def test_the_made_up_shop_is_of_beautys_size_and_the_same_twice() -> None:
    pairs = train._pairs(None)
    assert pairs == train._pairs(None)
    users, items = (len({p[n] for p in pairs}) for n in (0, 1))
    assert users == 22_363
    assert items == pytest.approx(12_101, rel=0.01)  # not each item is bought
    assert len(pairs) == pytest.approx(198_502, rel=0.01)
    assert min(np.unique([u for u, _ in pairs], return_counts=True)[1]) == 5


def test_only_the_peers_asked_for_take_part(planted: type[Planted], sequences: Path) -> None:
    told = train.bench(3, quiet, source=sequences, threads=3, only=("rectools_fast",))
    assert {name for name, _ in planted.asked} == {"mmrec", "rectools_fast"}
    assert told["ratio_vs_rectools_fast"] == 4
    assert "ratio_vs_rectools" not in told
    with pytest.raises(InputError, match="no such peer"):
        train.bench(1, quiet, source=sequences, only=("recbole",))


def test_a_fit_that_is_over_keeps_its_rank_and_has_no_rate(planted: type[Planted], sequences: Path) -> None:
    planted.rows["mmrec"] = iter([row(1, 1.0), row(400, 1.0), row(0, 0.0, steps=0), row(0, 0.0, steps=0)])
    told = train.bench(3, quiet, source=sequences, threads=3, minutes=0.5)
    assert told["tokens_per_s"] == 400
    assert (told["ratio_vs_rectools"], told["ratio_vs_rectools_low"], told["ratio_vs_rectools_high"]) == (20, 40, 40)
    assert [r["minutes"] for r in told["curves"]["mmrec"]] == [0.03, 0.03, 0.03]


@pytest.mark.parametrize(("who", "odd", "match"), [("rectools", row(1, 1.0, targets=50), "other targets"),
                                                   ("mmrec", row(1, 1.0, loss=float("nan")), "not a number")])  # fmt: skip
@pytest.mark.parametrize("when", [0, 1])
def test_a_side_that_trains_on_something_else_spoils_the_measurement(planted: type[Planted], sequences: Path, who: str,
                                                                     odd: dict[str, Any], match: str, when: int) -> None:  # fmt: skip
    rows = list(planted.rows[who])
    rows[when] = odd
    planted.rows[who] = iter(rows)
    with pytest.raises(QualityError, match=match) as caught:
        train.bench(3, quiet, source=sequences, threads=3)
    assert who in str(caught.value.where)


# real sides


def test_mmrec_trains_on_every_target_and_ranks_what_is_new(sequences: Path) -> None:
    data = train.interactions(sequences)
    _, log, fold = train.views(data)
    np.savez(sequences / "data.npz", **data)
    (sequences / "settings.json").write_text(json.dumps(train._SETTINGS | {"whole": False}))
    with train._side("mmrec", [sys.executable, "-m", "mmrec.bench.trainers"], sequences, 1) as side:
        rows = [side.ask({"seconds": s}) for s in (0, 0.3, 0.3)]
        assert train._ndcg(side, sequences / "best.npy", fold) >= 0
        single = [side.ask({"seconds": 0}) for _ in range(12)]  # and goes on after that
    ranked = np.load(sequences / "best.npy")
    assert all(r["targets"] == 51 and r["loss"] > 0 for r in rows + single)
    assert all(r["seconds"] >= 0.3 for r in rows[1:])
    assert [r["steps"] for r in single] == [1] * 12
    # 51 targets are an epoch, in however many batches: no step is told twice or left out
    taken = np.cumsum([r["tokens"] for r in rows + single])
    assert (taken % 51 == 0).sum() >= 2
    assert ranked.shape == (2, 10)
    for c, user in enumerate(fold.case_user):
        had = set(log.item[fold.train & (log.user == user)].tolist())
        listed = [i for i in ranked[c].tolist() if i >= 0]
        assert len(set(listed)) == len(listed) > 0
        assert not had & set(listed)


def test_a_whole_fit_ends_and_its_process_goes_on_answering(sequences: Path) -> None:
    data = train.interactions(sequences)
    np.savez(sequences / "data.npz", **data)
    (sequences / "settings.json").write_text(json.dumps(train._SETTINGS | {"whole": True}))
    with train._side("mmrec", [sys.executable, "-m", "mmrec.bench.trainers"], sequences, 1) as side:
        rows = [side.ask({"seconds": s}) for s in (0, 600, 600)]
        side.ask({"rank": str(sequences / "best.npy")})
    tokens = [r["tokens"] for r in rows]
    assert sum(tokens) == 51 * 50  # epochs of the recipe
    assert tokens[0] > 0 == tokens[2]
    assert rows[1]["seconds"] < 60
    assert rows[2] == rows[1] | {"tokens": 0, "seconds": 0.0, "steps": 0}
    assert np.load(sequences / "best.npy").shape == (2, 10)


def test_a_side_that_fails_is_worth_another_try_and_shows_its_words(tmp_path: Path) -> None:
    with train._side("rectools", [sys.executable, "-m", "mmrec.bench.trainers"], tmp_path, 1) as side, pytest.raises(
        TransientError, match="a side failed"
    ) as caught:  # fmt: skip
        side.ask({"seconds": 0})
    assert "data.npz" in str(caught.value.value)


def test_rectools_itself_trains_on_the_same_where_its_environment_is_made(sequences: Path) -> None:
    try:
        peers.environment("rectools", quiet, make=False)
    except TransientError:
        pytest.skip("mmrec bench train makes RecTools' environment; it is not in the cache")
    words = ("bench", "train", "--source", str(sequences), "--rounds", "2", "--minutes", "0.1", "--threads", "1", "--json")
    told = json.loads(mmrec(*words).stdout)
    assert {"tokens_per_s", "ratio_vs_rectools", "ratio_vs_rectools_fast", "ndcg@10", "settings"} < set(told)
    assert all(told[f"{who}_tokens_per_s"] > 0 and 0 <= told[f"{who}_ndcg@10"] <= 1 for who in NAMES[:2])
    assert {who: len(rows) for who, rows in told["curves"].items()} == dict.fromkeys(("mmrec", *NAMES[:2]), 2)


def test_bad_input_is_exit_two_before_anything_is_made(tmp_path: Path) -> None:
    done = mmrec("bench", "train", "--source", str(tmp_path), "--json", ok=(2,))
    assert done.stdout == ""
    assert "no sequences.txt" in done.stderr
    for words in (("--threads", "0"), ("--rounds", "0"), ("--minutes", "-1"), ("--seconds", "-1")):
        assert mmrec("bench", "train", *words, ok=(2,)).stdout == ""
