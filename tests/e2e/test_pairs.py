"""`mmrec score`: pairs that somebody asks for have the scores that lists have, and each is in the table once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from mmrec.lake.store import Lake
from tests.conftest import NIGHTS, Lived, mmrec

Row = dict[str, Any]


@pytest.fixture(scope="module")
def home(lived: Lived, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("pairs") / "home"
    shutil.copytree(lived.home, home, symlinks=True)
    return home


def asked(home: Path, pairs: list[tuple[str, str]], kind: str = "csv", *words: str) -> Row:
    rows, file = pa.table({"user_id": [u for u, _ in pairs], "more": [1] * len(pairs), "item_id": [i for _, i in pairs]}), home / f"pairs.{kind}"
    pq.write_table(rows, file) if kind == "parquet" else pa.csv.write_csv(rows, file)
    return json.loads(mmrec("score", str(file), "--home", str(home), "--json", *words).stdout)


def night(home: Path, name: str) -> list[Row]:
    return Lake(home / "lake").arrow(name, where=ds.field("run_date") == pa.scalar(NIGHTS[-1]).cast(pa.date32())).to_pylist()


def test_a_listed_pair_has_the_score_of_its_row_and_ranks_follow_scores(home: Path) -> None:
    listed = [r for r in night(home, "gold.recommendations") if r["source"] == "model"]
    seen = {r["user_id"]: set(r["seen_item_ids"]) for r in night(home, "gold.user_sequences")}
    told = asked(home, [(r["user_id"], r["item_id"]) for r in listed])
    assert (told["run_date"], told["pairs"], told["scored"], told["added"]) == (NIGHTS[-1], len(listed), len(listed), len(listed))
    got = {(r["user_id"], r["item_id"]): r for r in told["rows"]}
    for row in listed:
        mine = got[row["user_id"], row["item_id"]]
        assert mine["score"] == row["score"]
        # what the user has had is ranked, too, and in no list
        assert row["rank"] <= mine["rank"] <= (row["ranked"] or row["place"]) + len(seen[row["user_id"]])
    kept = Lake(home / "lake").arrow("gold.pair_scores").to_pylist()
    assert {(r["user_id"], r["item_id"]): r["score"] for r in kept} == {k: r["score"] for k, r in got.items()}


def test_every_item_of_a_user_is_ranked_once_in_the_order_of_scores_and_the_same_pairs_are_no_news(home: Path) -> None:
    items = [r["item_id"] for r in night(home, "gold.item_features")]
    user = next(r["user_id"] for r in night(home, "gold.recommendations") if r["source"] == "model")
    pairs = [(user, i) for i in reversed(items)]
    told = asked(home, [*pairs, *pairs[:5]], "parquet", "--date", NIGHTS[-1])
    assert [(r["user_id"], r["item_id"]) for r in told["rows"]] == pairs
    there = sorted((r for r in told["rows"] if r["rank"]), key=lambda r: r["rank"])
    assert [r["rank"] for r in there] == list(range(1, len(there) + 1))
    assert [(r["score"], r["item_id"]) for r in there] == sorted(((r["score"], r["item_id"]) for r in there), key=lambda r: (-r[0], r[1]))
    assert asked(home, pairs, "parquet")["added"] == 0


def test_a_pair_without_a_score_says_why(home: Path) -> None:
    user, item = (night(home, "gold.recommendations")[0][c] for c in ("user_id", "item_id"))
    told = asked(home, [("nobody", item), (user, "nothing"), (user, item)])
    assert [r["why"] for r in told["rows"]] == ["the night knew no such user", "it was not on offer", None]
    assert [r["score"] is None for r in told["rows"]] == [True, True, False]
    said = mmrec("score", str(home / "pairs.csv"), "--home", str(home)).stdout
    assert "the night knew no such user" in " ".join(said.split())


@pytest.mark.parametrize(("name", "text", "words"), [
    ("pairs.txt", "user_id,item_id\nu,i\n", (".csv", ".parquet")), ("away.csv", None, ("no such file",)), ("one.csv", "user_id\nu\n", ("item_id",)),
    ("none.csv", "user_id,item_id\n", ("there are no pairs",)), ("blank.csv", "user_id,item_id\nu,i\n,i\n", ("row 2: user_id",)),
])  # fmt: skip
def test_a_file_that_can_not_be_read_is_refused(home: Path, name: str, text: str | None, words: tuple[str, ...]) -> None:
    if text is not None:
        (home / name).write_text(text)
    before = Lake(home / "lake").versions()
    done = mmrec("score", str(home / name), "--home", str(home), ok=(2,))
    assert all(w in done.stderr for w in words), done.stderr
    assert Lake(home / "lake").versions() == before



def test_ids_that_hold_what_could_stand_between_two_are_pairs_of_their_own(home: Path) -> None:
    told = asked(home, [("a\0b", "c"), ("a", "b\0c")], "parquet")
    assert [(r["user_id"], r["item_id"]) for r in told["rows"]] == [("a\0b", "c"), ("a", "b\0c")]


def test_a_home_without_the_table_gets_it_on_record(home: Path, tmp_path: Path) -> None:
    older = tmp_path / "home"
    shutil.copytree(home, older, symlinks=True)
    shutil.rmtree(older / "lake" / "gold" / "pair_scores")
    row = night(older, "gold.recommendations")[0]
    assert asked(older, [(row["user_id"], row["item_id"])])["added"] == 1
    changes = Lake(older / "lake").arrow("ops.schema_changes").to_pylist()
    assert "gold.pair_scores" in {r["table_name"] for r in changes}
