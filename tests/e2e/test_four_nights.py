"""Four nights in a row on a tiny world, through the real command line, and everything that is promised of them."""

import itertools
import json
import re
from collections import Counter
from datetime import date, datetime

import pytest

from mmrec.alike import neighbours
from mmrec.config import load
from mmrec.lake.store import Lake
from mmrec.worlds.builtin import World
from tests.conftest import NIGHTS, Lived, mmrec


def test_every_night_publishes_a_list_for_every_user(lived: Lived) -> None:
    for day, night in zip(NIGHTS, lived.nights, strict=True):
        assert night["published"]
        assert night["run_date"] == day
        assert night["lists"] == night["users"] == 60
    assert len({n["run_id"] for n in lived.nights}) == 4


def test_the_summary_has_the_keys_that_programs_read(lived: Lived) -> None:
    for night in lived.nights:
        for key in ("run_date", "users", "items", "lists", "metrics", "seconds", "peak_memory_mb"):
            assert key in night
        for model in ("champion", "popularity", "item_knn", "ease"):
            assert {"recall@10", "ndcg@10", "recall@20", "ndcg@20"} <= set(night["metrics"][model])
        assert {"ingest", "validate", "embed", "plan", "features", "recommend", "publish", "total"} <= set(
            night["seconds"]
        )
    assert {"train", "evaluate", "export", "register", "promote"} <= set(lived.nights[0]["seconds"])
    assert "train" not in lived.nights[1]["seconds"]


def test_only_new_content_is_encoded(lived: Lived) -> None:
    first, *later = (n["counts"]["embed"] for n in lived.nights)
    assert first["text_new"] > 100
    for embed in later:
        # one item comes every day, and one is renamed: that is text of two, picture and sound of one
        assert embed["text_new"] <= 3
        assert embed["image_new"] <= 1
        assert embed["audio_new"] <= 1
    rows = lived.sql("""select split_part(encoder_version, '/', 1) e, modality m, count(*) n, count(distinct content_sha256) d
        from item_embeddings group by 1, 2""")
    new = {m: sum(n["counts"]["embed"][f"{m}_new"] for n in lived.nights) for m in ("text", "image", "audio")}
    # a fingerprint is of each content, too
    assert sorted((r["e"], r["m"]) for r in rows) == [("bert", "text"), ("efficientnet-lite0", "image"), ("logmel", "audio"),
                                                      ("phash", "image"), ("words", "text")]  # fmt: skip
    assert all(r["n"] == r["d"] == new[r["m"]] for r in rows)


def test_an_unchanged_catalogue_calls_no_encoder(lived: Lived) -> None:
    told = lived.json("embed", "--date", NIGHTS[-1])
    assert {k: v for k, v in told.items() if k.endswith(("_new", "_calls", "quarantined"))} == {
        "text_new": 0, "image_new": 0, "audio_new": 0, "words_new": 0, "phash_new": 0, "quarantined": 0}  # fmt: skip


def test_neighbours_of_an_item_are_of_its_kind_more_often_than_chance(lived: Lived) -> None:
    kind = {r["item_id"]: r["t"].split()[1] for r in lived.sql(
        "select item_id, arg_max(title, available_at) t from items where withdrawn_at is null and title <> '' group by 1")}  # fmt: skip
    item = min(kind)
    for modality in ("text", "image", "audio"):
        told = lived.json("neighbours", item, "--modality", modality, "--k", "5")
        assert (told["item_id"], told["modality"], len(told["neighbours"])) == (item, modality, 5)
        order = [(-r["similarity"], r["item_id"]) for r in told["neighbours"]]
        assert order == sorted(order)
        assert item not in {i for _, i in order}
    near = neighbours(load(lived.home), Lake(lived.home / "lake"), sorted(kind), "text", 5)
    same = [kind[i] == kind.get(r["item_id"]) for i, rows in near.items() for r in rows]
    chance = sum((n / len(kind)) ** 2 for n in Counter(kind.values()).values())
    assert sum(same) / len(same) > 3 * chance


def test_what_neighbours_have_in_common_is_measured_and_heads_the_reports_section(lived: Lived) -> None:
    told = {m: lived.json("neighbours", "--meaning", "--modality", m) for m in ("text", "image", "audio")}
    for modality, got in told.items():
        assert list(got) == ["modality", "encoder_version", "items", "k", "shared", "chance", "difference", "lo", "hi",
                             "jaccard", "jaccard_chance", "of", "seed"]  # fmt: skip
        assert (got["modality"], got["k"], got["seed"], got["items"]) == (modality, 10, 0, got["of"])
        assert got["lo"] <= got["difference"] <= got["hi"]
        # items of the built-in world have one category each
        assert (got["jaccard"], got["jaccard_chance"]) == pytest.approx((got["shared"], got["chance"]))
    # its texts name the aisle, its pictures don't know it
    assert told["text"]["lo"] > 0
    assert abs(told["image"]["difference"]) < 0.1
    page = (lived.home / "reports" / NIGHTS[-1] / "report.html").read_text()
    page = page[page.index('id="alike"') :]
    got = told["text"]
    assert f"{100 * got['shared']:.1f}% share a category with it, where of items at random {100 * got['chance']:.1f}% do" in page
    for expected in ("Popular items", "Fresh items", "nearest by picture", "nearest by text", "nearest by sound"):
        assert expected in page
    wrong = mmrec("neighbours", "--home", str(lived.home), ok=(2,))
    assert "--meaning" in wrong.stderr


def test_lists_move_from_night_to_night(lived: Lived) -> None:
    lists = {day: {r["user_id"]: r["l"] for r in lived.sql(
        f"select user_id, list(item_id order by rank) l from recommendations where run_date = '{day}' group by 1")}
        for day in NIGHTS}  # fmt: skip
    for before, after in itertools.pairwise(NIGHTS):
        changed = sum(lists[before][u] != lists[after][u] for u in lists[after])
        assert changed > 10, f"{after}: only {changed} of {len(lists[after])} lists changed"


def test_a_replay_of_the_first_night_gives_the_same_hash(lived: Lived) -> None:
    recorded = {r["d"]: r["content_hash"] for r in lived.sql("select run_date::varchar d, content_hash from ops_runs")}
    told = lived.json("run", "--date", NIGHTS[0], "--replay")
    assert told["replayed"]
    assert told["content_hash"] == recorded[NIGHTS[0]]


def test_a_published_date_is_left_alone(lived: Lived) -> None:
    before = Lake(lived.home / "lake").versions()
    told = lived.json("run", "--date", NIGHTS[1])
    assert not told["published"]
    assert told["run_id"] == lived.nights[1]["run_id"]
    assert Lake(lived.home / "lake").versions() == before


def test_a_backtest_sees_the_items_and_users_of_its_day_and_never_moves_the_latest_list(lived: Lived) -> None:
    old = date(2026, 2, 10)
    latest = lived.sql("select * from latest_recommendations order by all")
    told = lived.json("backfill", "--from", str(old), "--to", str(old))[0]
    assert told["published"]
    assert told["model_version"] == "0"
    assert lived.sql("select * from latest_recommendations order by all") == latest

    lake, as_of = Lake(lived.home / "lake"), datetime.fromisoformat(f"{old}T00:00:00+00:00")
    gone = {r["item_id"] for r in lived.sql(
        f"select item_id from items where withdrawn_at < '{as_of}' and available_at < '{as_of}'")}  # fmt: skip
    offered = set(lake.day("gold.item_features", old)["item_id"].to_pylist())
    world = World(0, "tiny")
    born = {f"i{i:05d}" for i in range(world.n_items(date(2026, 2, 9)))}
    assert offered <= born
    assert born - offered <= gone
    seen = lived.sql(f"""select count(*) n from user_sequences s, interactions i where s.run_date = '{old}'
        and s.user_id = i.user_id and list_contains(s.seen_item_ids, i.item_id)
        and i.event_ts < '{as_of}' and i.available_at < '{as_of}'""")[0]["n"]
    later = lived.sql(f"""select count(*) n from (select user_id, unnest(seen_item_ids) item_id from user_sequences
        where run_date = '{old}') s where not exists (select 1 from interactions i where i.user_id = s.user_id
        and i.item_id = s.item_id and i.event_ts < '{as_of}' and i.available_at < '{as_of}')""")[0]["n"]
    assert seen > 0
    assert later == 0


def test_every_promise_on_the_tables_holds(lived: Lived) -> None:
    told = json.loads(mmrec("verify", "--home", str(lived.home), "--json").stdout)
    assert told["ok"]
    assert len(told["checks"]) > 30


def test_sql_counts_the_latest_lists(lived: Lived) -> None:
    rows = lived.sql("select count(*) n, count(distinct user_id) u, min(rank) a, max(rank) b, "
                     "count(distinct run_date) d from latest_recommendations")[0]  # fmt: skip
    # a heavy user of a tiny shop has fewer than 20 items left
    left = lived.sql(f"""select sum(least(20, offered - seen)) n from (select
        (select count(*) from item_features where run_date = '{NIGHTS[-1]}') offered,
        (select count(*) from item_features i where i.run_date = u.run_date
         and list_contains(u.seen_item_ids, i.item_id)) seen from user_sequences u where run_date = '{NIGHTS[-1]}')""")
    assert rows == {"n": left[0]["n"], "u": 60, "a": 1, "b": 20, "d": 1}
    wrong = mmrec("sql", "select * from nowhere", "--home", str(lived.home), ok=(2,))
    assert "latest_recommendations" in wrong.stderr


def test_planted_rows_are_in_quarantine_with_their_reason(lived: Lived) -> None:
    rules = {r["rule"]: r["n"] for r in lived.sql("select rule, count(*) n from ops_quarantine group by 1")}
    assert sum(rules.values()) > 20
    assert len(rules) >= 8
    assert rules["no_content"] >= 1
    assert any(r.startswith("image_") for r in rules)
    assert lived.sql("select count(*) n from ops_quarantine where reason is null or reason = ''")[0]["n"] == 0


def test_what_was_shown_and_what_followed_comes_back(lived: Lived) -> None:
    rows = lived.sql("select count(*) n, count(followed_by) f, count(distinct run_id) r from impression_outcomes")[0]
    assert rows["n"] > 300
    assert 0 < rows["f"] < rows["n"]
    assert rows["r"] == 3
    known = {n["run_id"] for n in lived.nights}
    assert {r["run_id"] for r in lived.sql("select distinct run_id from impressions")} <= known


def test_training_is_on_record(lived: Lived) -> None:
    from mmrec import config
    from mmrec.bundle import server

    trained = lived.nights[0]["counts"]["training"]
    client = server.client(config.load(lived.home))
    run = client.get_run(trained["register"]["mlflow_run"])
    assert run.data.params["seed"] == "0"
    assert "table.silver.interactions" in run.data.tags
    assert any(m.startswith("rolling/champion/ndcg") for m in run.data.metrics)
    assert "loss" in run.data.metrics
    assert trained["export"]["parity"].keys() == {"hard_histories", "real_histories"}
    decision = lived.sql("select decision, reason, numbers from ops_promotions")
    assert len(decision) == 1
    assert decision[0]["decision"] in ("promoted", "held")
    assert re.search(r"0\.\d{4} against popularity 0\.\d{4}, [+-]0\.\d{4} \[[+-]0\.\d{4}, [+-]0\.\d{4}\] of \d+ users", decision[0]["reason"])


def test_metrics_hold_slices_masks_intervals_and_the_oracle(lived: Lived) -> None:
    rows = lived.sql("select protocol, slice, model, metric, value, lo, hi from ops_metrics where split = 'test'")
    have = {(r["protocol"], r["slice"], r["model"]) for r in rows if r["metric"] == "ndcg@10"}
    for protocol in ("rolling", "per_user"):
        assert {(protocol, "all", m) for m in ("champion", "popularity", "item_knn", "ease", "oracle")} <= have
        assert {(protocol, f"without_{m}", "champion") for m in ("id", "text", "image", "audio")} <= have
        assert (protocol, "vs_popularity", "champion") in have
    value = {(r["protocol"], r["slice"], r["model"], r["metric"]): r for r in rows}
    for protocol in ("rolling", "per_user"):
        oracle = value[protocol, "all", "oracle", "ndcg@10"]["value"]
        assert all(r["value"] <= oracle + 0.05 for k, r in value.items()
                   if k[0] == protocol and k[1] == "all" and k[3] == "ndcg@10")  # fmt: skip
        row = value[protocol, "vs_popularity", "champion", "ndcg@10"]
        assert row["lo"] <= row["value"] <= row["hi"]


def test_the_report_stands_alone(lived: Lived) -> None:
    page = (lived.home / "reports" / NIGHTS[-1] / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="https?:', page)
    assert "data:image" in page
    assert "oracle" in page
    assert "without" in page.lower()


def test_a_user_is_shown_with_history_and_reasons(lived: Lived) -> None:
    user = lived.sql("select user_id from latest_recommendations where source = 'model' limit 1") or lived.sql(
        "select user_id from latest_recommendations limit 1"
    )
    text = mmrec("show", user[0]["user_id"], "--home", str(lived.home)).stdout
    assert "did lately" in text
    assert "is offered" in text
    assert user[0]["user_id"] in text
    wrong = mmrec("show", "nobody", "--home", str(lived.home), ok=(2,))
    assert "nobody" in wrong.stderr
    assert "mmrec" in wrong.stderr


def test_the_plan_is_printed_and_stable(lived: Lived) -> None:
    day = "2026-03-09"
    one, two = (lived.json("plan", "--date", day) for _ in range(2))
    assert one == two
    assert re.fullmatch(r"[0-9a-f]{16}", one["run_id"])
    assert one["tables"]["silver.interactions"] >= 1


def test_force_publishes_the_same_lists_under_a_new_run(lived: Lived) -> None:
    day = NIGHTS[-1]
    before = lived.sql(f"select user_id, rank, item_id from recommendations where run_date = '{day}' order by all")
    told = lived.json("run", "--date", day, "--force", "--no-train")
    assert told["published"]
    assert told["run_id"] != lived.nights[-1]["run_id"]
    after = lived.sql(f"select user_id, rank, item_id from recommendations where run_date = '{day}' order by all")
    assert after == before
    assert json.loads(mmrec("verify", "--home", str(lived.home), "--json").stdout)["ok"]
