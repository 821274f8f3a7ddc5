"""`mmrec quarantine`: what was kept out is shown as it came; what is mended is in silver once, and its verdict stays."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mmrec import cli, config, night, quarantine
from mmrec.config import Config
from mmrec.context import Night
from mmrec.errors import InputError
from mmrec.features import verdicts
from mmrec.lake.store import Lake
from mmrec.verify import verify

HEAD = "user_id,item_id,event_type,event_ts,weight,context"
ROWS = ("u1,i0,view,2026-02-28T10:00:00Z,1,", "u1,i1,view,2026-02-28T10:00:00Z,many,", "u2,i1,view,1985-02-28,,", "u2,i9,view,2026-02-28,2,",
        "u3,i0", "u3,i0,buy,2026-02-28,,{broken", "u4,i2,view,1985-03-01,,", "u4,i9,view,1985-03-01,,", "u5,i0,view,2026-02-27,,", "u5,i0,view,2026-02-27,,")  # fmt: skip
KINDS = ("items", "users", "interactions", "relations", "impressions", "wishes")


def deliver(root: Path, day: str, rows: tuple[str, ...] = (), items: tuple[str, ...] = ()) -> None:
    (root / day).mkdir(parents=True)
    if rows:
        (root / day / "interactions.csv").write_text("\n".join([HEAD, *rows]) + "\n")
    if items:
        (root / day / "items.jsonl").write_text("".join(json.dumps({"item_id": i, "title": i}) + "\n" for i in items))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Path:
    """A home whose shop delivered ten interactions: two good, one of them twice, seven bad."""
    home = tmp_path_factory.mktemp("made")
    deliver(home / "shop", "2026-03-01", ROWS, ("i0", "i1", "i2"))
    config.write(home, {"engine": engine, "source": {"spec": "files", "root": "ROOT"}})
    Lake(home / "lake").create_all()
    (home / "mmrec.toml").write_text((home / "mmrec.toml").read_text().replace("ROOT", str(home / "shop")))
    validate(config.load(home))
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "home")
    settings = tmp_path / "home" / "mmrec.toml"
    settings.write_text(settings.read_text().replace(str(made), str(tmp_path / "home")))
    return tmp_path / "home"


@pytest.fixture
def cfg(home: Path) -> Config:
    return config.load(home)


def validate(cfg: Config) -> dict[str, Any]:
    night.ingest(Night(cfg, date(2026, 3, 5)))
    return night.validate(Night(cfg, date(2026, 3, 5)))


def earlier(cfg: Config) -> Config:
    """The same home, with a rule that is less strict: events from 1980 on."""
    return config.load(cfg.home, source=cfg.source.model_copy(update={"earliest": "1980-01-01"}))


def lake_of(cfg: Config) -> Lake:
    return Lake(cfg.lake)


def states(cfg: Config) -> dict[tuple[str, str], int]:
    """(rule, state) -> rows."""
    found: Counter[tuple[str, str]] = Counter()
    for r in quarantine.summary(lake_of(cfg)):
        found.update({(r["rule"], s): r[s] for s in ("held", "back", "mended") if r[s]})
    return dict(found)


def silver(cfg: Config) -> list[tuple[Any, ...]]:
    return sorted((r["user_id"], r["item_id"], r["event_type"], str(r["event_ts"])[:10], r["weight"]) for r in lake_of(cfg).arrow("silver.interactions").to_pylist())


def hash_of(cfg: Config, rule: str, user: str | None = None) -> str:
    (found,) = [r for r in quarantine.verdicts_of(lake_of(cfg), "interactions", rule=rule) if user is None or json.loads(r["raw"])["user_id"] == user]
    return found["row_hash"]


def hash_of_wish(cfg: Config, rule: str) -> str:
    (found,) = quarantine.verdicts_of(lake_of(cfg), "wishes", rule=rule)
    return found["row_hash"]


def corrections(cfg: Config, *lines: dict[str, Any] | str, name: str = "fix.jsonl") -> Path:
    path = cfg.home / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def sound(cfg: Config) -> None:
    """Rows in = rows kept + rows held, nothing twice, and verify finds nothing."""
    lake = lake_of(cfg)
    held = Counter()
    for state in {(r["table"], r["row_hash"], r["occurrence"]): r["state"] for r in quarantine.verdicts_of(lake, "interactions", limit=10_000)}.values():
        held[state] += 1
    kept = lake.arrow("silver.interactions")["row_hash"].to_pylist()
    assert len(kept) == len(set(kept))
    assert lake.dataset("bronze.interactions").count_rows() == len(kept) + held["held"] + held["mended"]
    assert [f for f in verify(cfg) if not f["ok"]] == []


def test_the_list_counts_by_table_rule_and_file_what_is_held(cfg: Config) -> None:
    rows = quarantine.summary(lake_of(cfg))
    assert {r["rule"]: r["rows"] for r in rows} == {"bad_json": 1, "bad_number": 1, "duplicate": 1, "parse_error": 1, "time_out_of_range": 3, "unknown_item": 1}
    assert {(r["table"], r["source"], r["file"]) for r in rows} == {("bronze.interactions", "files", "2026-03-01/interactions.csv")}
    (came,) = set(lake_of(cfg).arrow("bronze.interactions")["ingested_at"].to_pylist())
    assert all((r["first"], r["last"], r["held"], r["back"], r["mended"]) == (came, came, r["rows"], 0, 0) for r in rows)
    assert quarantine.summary(lake_of(cfg), "items") == []
    (one,) = quarantine.summary(lake_of(cfg), "bronze.interactions", "time_out_of_range")
    assert one["rows"] == 3
    sound(cfg)


def test_a_home_of_before_there_were_wishes_is_listed_and_verified_and_the_next_night_takes_them_in(cfg: Config) -> None:
    for layer in ("bronze", "silver"):
        shutil.rmtree(cfg.lake / layer / "wishes")
    assert sum(r["rows"] for r in quarantine.summary(lake_of(cfg))) == 8
    sound(cfg)
    wish = {"user_id": "u1", "wish": "less", "field": "category", "value": "toys", "wished_at": "2026-03-01"}
    lines = [wish, wish | {"wish": "never"}, wish | {"value": " "}]
    (cfg.source_root / "2026-03-01" / "wishes.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    told = validate(cfg)
    assert (told["wishes"], told["wishes_quarantined"]) == (1, 2)
    assert [(r["rule"], r["reason"]) for r in sorted(quarantine.verdicts_of(lake_of(cfg), "wishes"), key=lambda r: r["line"])] == [
        ("unknown_wish", "wish is 'never'"), ("missing_key", "value is empty")]  # fmt: skip
    (kept,) = lake_of(cfg).arrow("silver.wishes").to_pylist()
    assert (kept["wish"], kept["field"], kept["value"], str(kept["available_at"])[:10]) == ("less", "category", "toys", "2026-03-02")
    sound(cfg)
    fixed = corrections(cfg, {"row_hash": hash_of_wish(cfg, "unknown_wish"), "wish": "hide"})
    assert quarantine.replay(cfg, file=fixed)["brought_back"] == 1
    assert sorted(lake_of(cfg).arrow("silver.wishes")["wish"].to_pylist()) == ["hide", "less"]
    sound(cfg)


def test_a_row_is_shown_with_its_reason_as_it_came_and_found_by_the_beginning_of_its_hash(cfg: Config) -> None:
    lake = lake_of(cfg)
    (row,) = quarantine.verdicts_of(lake, rule="bad_number")
    assert (row["reason"], row["line"], row["state"], json.loads(row["raw"])["weight"]) == ("weight is 'many'", 3, "held", "many")
    assert quarantine.verdicts_of(lake, "interactions", row["row_hash"][:10]) == [row]
    (torn,) = quarantine.verdicts_of(lake, rule="parse_error")
    assert torn["raw"] == "u3,i0"
    assert [r["line"] for r in quarantine.verdicts_of(lake, rule="time_out_of_range", limit=2)] == [4, 8]


def test_a_rule_that_was_too_strict_gives_its_rows_back_once_and_their_verdicts_stay(cfg: Config) -> None:
    lake, wide = lake_of(cfg), earlier(cfg)
    assert quarantine.replay(cfg)["brought_back"] == 0
    before, evidence = lake.versions(), sorted(map(str, lake.arrow("ops.quarantine").to_pylist()))
    tried = quarantine.replay(wide, rule="time_out_of_range", dry_run=True)
    assert (tried["brought_back"], lake.versions()) == (2, before)
    done = quarantine.replay(wide, rule="time_out_of_range")
    assert done["tables"] == {"bronze.interactions": {"brought_back": 2, "judged_anew": 1, "by_rule": {"time_out_of_range": 2}}}
    assert [r[:2] for r in silver(cfg) if r[3].startswith("1985")] == [("u2", "i1"), ("u4", "i2")]
    assert states(cfg) == {("bad_json", "held"): 1, ("bad_number", "held"): 1, ("duplicate", "held"): 1, ("parse_error", "held"): 1,
                           ("time_out_of_range", "back"): 2, ("time_out_of_range", "held"): 1, ("unknown_item", "held"): 2}  # fmt: skip
    assert set(evidence) < set(map(str, lake.arrow("ops.quarantine").to_pylist()))
    sound(cfg)
    after = lake.versions()
    assert quarantine.replay(wide)["brought_back"] == 0
    assert validate(wide)["interactions"] == 0
    assert lake.versions() == after
    # the third broke another rule then, which may still be mended: its item comes, and a night brings it in
    deliver(cfg.source.root, "2026-03-02", (), ("i9",))
    assert validate(wide)["interactions"] == 2
    assert ("u4", "i9", "view", "1985-03-01", 1.0) in silver(cfg)
    assert states(cfg)["time_out_of_range", "back"] == 3
    sound(cfg)


def test_either_engine_brings_back_the_same_rows(cfg: Config, spark: Any) -> None:
    done = quarantine.replay(earlier(cfg), rule="time_out_of_range")
    assert done["tables"] == {"bronze.interactions": {"brought_back": 2, "judged_anew": 1, "by_rule": {"time_out_of_range": 2}}}
    assert [r[:2] for r in silver(cfg)] == [("u1", "i0"), ("u2", "i1"), ("u4", "i2"), ("u5", "i0")]
    sound(cfg)


def test_an_item_that_came_later_gives_its_rows_back_by_a_replay_too(cfg: Config) -> None:
    deliver(cfg.source.root, "2026-03-02", (), ("i9",))
    night.ingest(Night(cfg, date(2026, 3, 5)))
    assert quarantine.replay(cfg, rule="unknown_item")["brought_back"] == 0  # the item is in bronze alone
    night.validate(Night(cfg, date(2026, 3, 5)))
    assert quarantine.replay(cfg, rule="unknown_item")["brought_back"] == 0  # the night was faster
    assert states(cfg)["unknown_item", "back"] == 1
    sound(cfg)


def test_corrected_rows_come_in_as_a_delivery_of_their_own_and_name_the_rows_they_mend(cfg: Config) -> None:
    lake, torn = lake_of(cfg), hash_of(cfg, "parse_error")
    number = hash_of(cfg, "bad_number")
    file = corrections(cfg, {"row_hash": number, "weight": 4}, {"row_hash": torn, "user_id": "u3", "item_id": "i0", "event_type": "view", "event_ts": "2026-02-28T12:00:00Z", "context": {"b": 1, "a": "é"}})  # fmt: skip
    before = lake.versions()
    tried = quarantine.replay(cfg, file=file, dry_run=True)
    assert (tried["brought_back"], tried["corrections"], lake.versions()) == (2, 2, before)
    assert not (cfg.home / "repair").exists()
    done = quarantine.replay(cfg, file=file)
    assert (done["brought_back"], done["judged_anew"], done["corrections"], done["passed_over"]) == (2, 0, 2, 0)
    assert ("u1", "i1", "view", "2026-02-28", 4.0) in silver(cfg)
    assert ("u3", "i0", "view", "2026-02-28", 1.0) in silver(cfg)
    assert (states(cfg)["bad_number", "mended"], states(cfg)["parse_error", "mended"]) == (1, 1)
    mends = [r for r in lake.arrow("bronze.interactions").to_pylist() if r["file"].startswith("repair/")]
    assert {r["raw"].split('"')[3] for r in mends} == {number, torn}
    assert {(r["source"], r["occurrence"], r["parse_error"]) for r in mends} == {("files", 0, None)}
    assert not {r["row_hash"] for r in mends} & {number, torn}
    assert {r["available_at"] for r in mends} == {"2026-03-02T00:00:00+00:00"}  # that of the rows they mend
    assert [r["context"] for r in mends if "é" in (r["context"] or "")] == ['{"a":"é","b":1}']
    (name,) = {r["file"] for r in mends}
    (ledger,) = [f for f in lake.arrow("bronze.files").to_pylist() if f["file"] == name]
    assert (ledger["rows"], ledger["new_rows"], ledger["bytes"]) == (2, 2, (cfg.home / name).stat().st_size)
    sound(cfg)


def test_a_second_replay_of_the_same_corrections_brings_nothing_in_whatever_form_they_are_written(cfg: Config) -> None:
    number = hash_of(cfg, "bad_number")
    quarantine.replay(cfg, file=corrections(cfg, {"row_hash": number, "weight": "4", "event_type": "view"}))
    before = lake_of(cfg).versions()
    for lines in ([{"row_hash": number, "weight": "4", "event_type": "view"}], [f'  {{"event_type": "view",\t"weight": "4", "row_hash": "{number}"}}']):
        done = quarantine.replay(cfg, file=corrections(cfg, *lines, name="again.jsonl"))
        assert (done["brought_back"], done["corrections"], done["passed_over"]) == (0, 0, 1)
    assert lake_of(cfg).versions() == before
    quarantine.replay(cfg)  # nor does judging the mended row again
    assert lake_of(cfg).versions() == before
    sound(cfg)


def test_a_row_that_is_mended_is_not_brought_back_as_well_when_its_rule_becomes_less_strict(cfg: Config) -> None:
    old = hash_of(cfg, "time_out_of_range", "u2")
    quarantine.replay(cfg, file=corrections(cfg, {"row_hash": old, "event_ts": "2025-02-28"}))
    assert quarantine.replay(earlier(cfg))["tables"]["bronze.interactions"]["brought_back"] == 1  # u4's
    assert [r[3] for r in silver(cfg) if r[0] == "u2"] == ["2025-02-28"]
    sound(cfg)


def test_a_correction_that_is_bad_itself_is_kept_out_with_its_reason_and_can_be_corrected(cfg: Config) -> None:
    number = hash_of(cfg, "bad_number")
    done = quarantine.replay(cfg, file=corrections(cfg, {"row_hash": number, "weight": "lots"}))
    assert (done["brought_back"], done["judged_anew"]) == (0, 1)
    wrong = next(r for r in quarantine.verdicts_of(lake_of(cfg), rule="bad_number") if r["file"].startswith("repair/"))
    assert (wrong["reason"], json.loads(wrong["raw"])) == ("weight is 'lots'", {"row_hash": number, "weight": "lots"})
    sound(cfg)
    assert quarantine.replay(cfg, file=corrections(cfg, {"row_hash": wrong["row_hash"], "weight": "9"}))["brought_back"] == 1
    assert states(cfg)["bad_number", "mended"] == 2  # the row, and its first correction
    assert [r[4] for r in silver(cfg) if r[:2] == ("u1", "i1")] == [9.0]
    sound(cfg)


def test_only_what_the_filters_name_is_taken_from_a_file(cfg: Config) -> None:
    both = corrections(cfg, {"row_hash": hash_of(cfg, "bad_number"), "weight": "1"}, {"row_hash": hash_of(cfg, "bad_json"), "context": None})
    done = quarantine.replay(cfg, rule="bad_json", file=both)
    assert (done["brought_back"], done["corrections"], done["passed_over"]) == (1, 1, 1)
    assert (states(cfg)["bad_json", "mended"], states(cfg)["bad_number", "held"]) == (1, 1)
    assert quarantine.replay(cfg, table="items", file=both)["brought_back"] == 0
    sound(cfg)


def test_what_was_killed_after_the_ingest_is_brought_in_by_the_same_words_or_by_a_night(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    file = corrections(cfg, {"row_hash": hash_of(cfg, "bad_number"), "weight": "7"})
    more = corrections(cfg, {"row_hash": hash_of(cfg, "bad_json"), "context": ""}, name="more.jsonl")
    with monkeypatch.context() as planted:
        planted.setattr(verdicts, "judge", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        for path in (file, more):
            with pytest.raises(KeyboardInterrupt):
                quarantine.replay(cfg, file=path)
    assert len(silver(cfg)) == 2
    assert quarantine.replay(cfg, file=file)["brought_back"] == 1
    assert validate(cfg)["interactions"] == 1
    assert sorted(r[4] for r in silver(cfg)) == [1.0, 1.0, 1.0, 7.0]
    sound(cfg)


@pytest.mark.parametrize(("rule", "looks"), [("time_out_of_range", 3), (None, 2)], ids=["other work", "the same work"])
def test_a_replay_that_another_one_outran_brings_nothing_twice(cfg: Config, monkeypatch: pytest.MonkeyPatch, rule: str | None, looks: int) -> None:
    wide, honest, turns = earlier(cfg), verdicts.keep, []

    def outrun(lake: Lake, found: verdicts.Verdicts) -> dict[str, int]:
        turns.append(found.kind)
        if len(turns) == 1:  # between reading and writing, another replay does it all
            assert quarantine.replay(wide, rule=rule)["brought_back"] == 2
        return honest(lake, found)

    monkeypatch.setattr(verdicts, "keep", outrun)
    assert quarantine.replay(wide)["brought_back"] == 0
    assert turns == ["interactions"] * looks  # this one, the other one, and this one again where it met other work
    assert len(silver(cfg)) == 4
    sound(cfg)


WRONG: dict[str, tuple[Callable[[Config], Any], str, str]] = {
    "table": (lambda c: quarantine.summary(lake_of(c), "gold.recommendations"), "--table", "bronze.interactions"),
    "rule": (lambda c: quarantine.replay(c, rule="bad_hair"), "--rule", "bad_number"),
    "row": (lambda c: quarantine.verdicts_of(lake_of(c), "interactions", "ffff"), "interactions", "row_hash"),
    "no file": (lambda c: quarantine.replay(c, file=c.home / "nowhere"), "--file", "JSON lines"),
    "no JSON": (lambda c: quarantine.replay(c, file=corrections(c, {"row_hash": hash_of(c, "bad_number"), "weight": "1"}, "{")), "fix.jsonl: line 2", "row_hash"),
    "no row_hash": (lambda c: quarantine.replay(c, file=corrections(c, {"weight": "1"})), "fix.jsonl: line 1", "row_hash"),
    "no correction": (lambda c: quarantine.replay(c, file=corrections(c, {"row_hash": hash_of(c, "bad_number")})), "fix.jsonl: line 1", "columns"),
    "unknown row": (lambda c: quarantine.replay(c, file=corrections(c, {"row_hash": "ffff", "weight": "1"})), "fix.jsonl: line 1", "kept out"),
    "unknown column": (lambda c: quarantine.replay(c, file=corrections(c, {"row_hash": hash_of(c, "bad_number"), "wieght": "1"})), "fix.jsonl: line 1", "weight"),
    "half a pair": (lambda c: quarantine.replay(c, file=corrections(c, f'{{"row_hash": "{hash_of(c, "bad_number")}", "text": "\\ud83d"}}')), "fix.jsonl: line 1", "text"),
    "a good row": (lambda c: quarantine.replay(c, file=corrections(c, {"row_hash": lake_of(c).arrow("silver.interactions")["row_hash"][0].as_py(), "weight": "1"})), "line 1", "kept out"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_in_five_lines_and_nothing_is_written(cfg: Config, case: str) -> None:
    ask, where, valid = WRONG[case]
    before = lake_of(cfg).versions()
    with pytest.raises(InputError) as caught:
        ask(cfg)
    told = str(caught.value).splitlines()
    assert [line.split(":")[0].strip() for line in told[1:]] == ["where", "value", "valid", "next"]
    assert where in told[1]
    assert valid in told[3]
    assert lake_of(cfg).versions() == before
    assert not (cfg.home / "repair").exists()


def test_a_row_that_is_in_silver_by_now_is_not_corrected(cfg: Config) -> None:
    old = hash_of(cfg, "time_out_of_range", "u2")
    fix = corrections(cfg, {"row_hash": old, "event_ts": "2025-02-28"})
    quarantine.replay(earlier(cfg))
    with pytest.raises(InputError, match="in silver already"):
        quarantine.replay(cfg, file=fix)
    number = hash_of(cfg, "bad_number")
    quarantine.replay(cfg, file=corrections(cfg, {"row_hash": number, "weight": "4"}))
    with pytest.raises(InputError, match="as corrected before"):
        quarantine.replay(cfg, file=corrections(cfg, {"row_hash": number, "weight": "5"}))
    sound(cfg)


def call(*words: str) -> Any:
    return CliRunner().invoke(cli.app, ["quarantine", *words], env={"COLUMNS": "200"}, catch_exceptions=False)


def test_the_commands_print_tables_for_people_and_json_for_programs(cfg: Config) -> None:
    home = ("--home", str(cfg.home))
    assert json.loads(call("list", *home, "--json").stdout)[0]["rule"] == "bad_json"
    shown = call("list", *home).stdout
    assert "8 verdicts: 8 held, 0 back in silver, 0 mended" in shown
    number = hash_of(cfg, "bad_number")
    assert "weight is 'many'" in call("show", "interactions", number[:12], *home).stdout
    assert json.loads(call("show", "--rule", "bad_number", *home, "--json").stdout)[0]["row_hash"] == number
    file = corrections(cfg, {"row_hash": number, "weight": "4"})
    assert "1 rows would come back; nothing was written" in call("replay", "--file", str(file), "--dry-run", *home).stdout
    assert json.loads(call("replay", "--file", str(file), *home, "--json").stdout)["brought_back"] == 1
    assert "0 rows are in silver now" in call("replay", *home).stdout
    with pytest.raises(InputError, match="which rows"):
        call("show", *home)


def test_a_row_can_not_steer_the_terminal_and_a_long_one_is_cut(cfg: Config) -> None:
    deliver(cfg.source.root, "2026-03-02", ("u9,[red]i0[/],view,\x1b[2Jsoon\u202e,,", f"u9,i0,view,later{'x' * 9000},,"))
    validate(cfg)
    shown = call("show", "--rule", "bad_timestamp", "--home", str(cfg.home)).stdout
    assert "\x1b[2J" not in shown
    assert "\u202e" not in shown
    assert "[red]i0[/]" in shown
    assert "characters more: --json" in shown
    assert "x" * 9000 in call("show", "--rule", "bad_timestamp", "--home", str(cfg.home), "--json").stdout
