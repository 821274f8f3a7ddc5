"""The command line: what a person types wrong is told in five lines and exit 2, what a program reads is JSON alone."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from mmrec import cli, schema
from mmrec.lake import commit
from mmrec.lake.store import Lake
from mmrec.steps import STEPS
from tests.conftest import mmrec

DAY = date(2026, 3, 2)
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home as `init` leaves it."""
    home = tmp_path_factory.mktemp("made") / "home"
    mmrec("init", "--home", str(home), "--size", "tiny")
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """The entry point in this process: (exit code, stdout, stderr)."""

    def leave(code: int) -> NoReturn:
        raise SystemExit(code)  # the real one also stops the engine, which other tests share

    monkeypatch.setattr(cli.common, "leave", leave)
    monkeypatch.delenv("MMREC_HOME", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mmrec", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return run


def publish(home: Path, title: str = "Item") -> None:
    """One user's list of one place, with what `show` reads."""
    lake = Lake(home / "lake")
    rows: dict[str, dict[str, Any]] = {
        "silver.items": {"item_id": "i", "title": title, "attributes": "{}", "row_hash": "i"},
        "gold.user_sequences": {"run_date": DAY, "user_id": "u1", "attributes": "{}"},
        "gold.recommendations": {"run_date": DAY, "arm": "main", "user_id": "u1", "rank": 1, "item_id": "i", "source": "model",
                                 "reason": "why", "propensity": 1.0, "model_version": "0", "run_id": "r"},
    }  # fmt: skip
    for name, row in rows.items():
        t = schema.table(name)
        fill: dict[str, Any] = {"STRING": "", "TIMESTAMP": 0, "DATE": DAY}
        arrays = [pa.array([row.get(c.name, None if c.nullable else fill.get(c.type, [] if "ARRAY" in c.type else 0))], c.arrow.type)
                  for c in t.columns]  # fmt: skip
        day = DAY if t.partition else None
        commit.write(lake, name, pa.table(arrays, schema=t.arrow), run_id="r", pinned=commit.fence(lake, name, day), partition=day)


def test_help_lists_every_step_in_the_order_of_the_night() -> None:
    got = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "200"})
    assert got.exit_code == 0
    lines = got.stdout.splitlines()
    panel = lines[next(n for n, line in enumerate(lines) if "Stations, in the order of the night" in line) :]
    shown = [line.split()[1] for line in panel if line.startswith("│ ") and line.split()[1].isalpha()]
    assert [n for n in shown if n in {s.name for s in STEPS}] == [s.name for s in STEPS]
    for s in STEPS:
        assert s.summary.split(";")[0].lower() in got.stdout.lower()
    for command in ("init", "run", "backfill", "demo", "tables", "sql", "show", "verify"):
        assert f"│ {command} " in got.stdout


@pytest.mark.parametrize("name", [s.name for s in STEPS])
def test_every_step_takes_a_date_a_home_and_json(name: str) -> None:
    got = CliRunner().invoke(cli.app, [name, "--help"], env={"COLUMNS": "200"})
    assert got.exit_code == 0
    for option in ("--date", "--home", "--json"):
        assert option in got.stdout


WRONG = {
    "date": (("run", "--date", "2026-13-01", "--home", "HOME"), "--date", "'2026-13-01'", "YYYY-MM-DD"),
    "date of a step": (("plan", "--date", "soon", "--home", "HOME"), "--date", "'soon'", "YYYY-MM-DD"),
    "date to show": (("show", "u1", "--date", "x", "--home", "HOME"), "--date", "'x'", "YYYY-MM-DD"),
    "from": (("backfill", "--from", "x", "--to", "2026-03-01", "--home", "HOME"), "--from", "'x'", "YYYY-MM-DD"),
    "to": (("backfill", "--from", "2026-03-01", "--to", "x", "--home", "HOME"), "--to", "'x'", "YYYY-MM-DD"),
    "range": (("backfill", "--from", "2026-03-02", "--to", "2026-03-01", "--home", "HOME"), "--from/--to", "2026-03-02 ..", "from <= to"),
    "home of a night": (("run", "--date", "2026-03-02", "--home", "nowhere"), "--home", "nowhere", "mmrec init"),
    "home of a step": (("plan", "--date", "2026-03-02", "--home", "nowhere"), "--home", "nowhere", "mmrec init"),
    "home of tables": (("tables", "--home", "nowhere"), "--home", "nowhere", "mmrec init"),
    "home of sql": (("sql", "select 1", "--home", "nowhere"), "--home", "nowhere", "mmrec init"),
    "home of show": (("show", "u1", "--home", "nowhere"), "--home", "nowhere", "mmrec init"),
    "table": (("tables", "gold.nothing"), "schema", "'gold.nothing'", "gold.recommendations"),
    "statement": (("sql", "selec 1", "--home", "HOME"), "sql", "'selec 1'", "latest_recommendations"),
    "table in sql": (("sql", "select * from nothing", "--home", "HOME"), "sql", "nothing", "latest_recommendations"),
    "replay": (("run", "--date", "2026-03-02", "--replay", "--home", "HOME"), "--date", "'2026-03-02'", "none yet"),
    "root": (("init", "--home", "new", "--source", "files", "--root", "nowhere"), "--root", "nowhere", "a folder"),
    "demo": (("demo", "--home", "new", "--data", "netflix"), "source.spec", "'netflix'", "movielens-small"),
    "source": (("init", "--home", "new", "--source", "netflix"), "source.spec", "'netflix'", "movielens-small"),
    "size": (("init", "--home", "new", "--size", "huge"), "source.size", "'huge'", "tiny"),
    "zone": (("init", "--home", "new", "--zone", "Mars/Base"), "config: zone", "'Mars/Base'", "IANA"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_what_is_wrong_is_told_with_where_value_valid_and_next(home: Path, call: Call, case: str, as_json: bool) -> None:
    words, where, value, valid = WRONG[case]
    code, out, err = call(*(str(home) if w == "HOME" else w for w in words), *["--json"] * as_json)
    assert code == 2
    assert out == ""
    assert err.startswith("InputError: ")
    told = " ".join(err.split())
    for part in (f"where: {where}", "value: ", value, "valid: ", valid, "next: mmrec" if "edit" not in told else "next: edit"):
        assert part in told, part
    assert "Traceback" not in err
    assert not (home.parent / "new" / "mmrec.toml").exists()
    assert not (home.parent / "nowhere").exists()


def test_an_unknown_user_or_day_is_told_with_those_there_are(home: Path, call: Call) -> None:
    publish(home)
    code, out, err = call("show", "nobody", "--home", str(home))
    assert (code, out) == (2, "")
    assert "value: 'nobody'" in err
    assert "next:  mmrec show u1" in err
    code, out, err = call("show", "u1", "--date", "2026-03-03", "--home", str(home), "--json")
    assert (code, out) == (2, "")
    assert "2026-03-02" in err
    code, out, err = call("show", "u1", "--home", str(home), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["user_id"] == "u1"


@pytest.mark.parametrize(
    "words",
    [("run",), ("run", "--date"), ("run", "--date", "2026-03-02", "--bogus"), ("dance",), ("sql",), ("show",),
     ("demo", "--nights", "0"), ("demo", "--nights", "many"), ("backfill", "--from", "2026-03-01"),
     ("init", "--seed", "x"), ("tables", "a", "b")],
    ids=" ".join,
)  # fmt: skip
def test_a_wrong_word_or_option_is_exit_two_on_stderr(call: Call, tmp_path: Path, words: tuple[str, ...]) -> None:
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert "Error" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_setting_stops_every_command_that_reads_it(home: Path, call: Call) -> None:
    (home / "mmrec.toml").write_text("[night]\nkk = 5\n")
    for words in (("run", "--date", "2026-03-02"), ("tables",), ("sql", "select 1"), ("show", "u1"), ("verify",), ("init",)):
        code, out, err = call(*words, "--home", str(home))
        assert (code, out) == (2, ""), words
        assert "night.kk" in err


def test_a_message_is_not_broken_into_lines_where_nobody_looks(home: Path, call: Call) -> None:
    # what a person copies, or a log holds, is one path and one command
    far = home.parent / "/".join(["a-rather-long-name-of-a-folder"] * 5)
    code, _, err = call("plan", "--date", "2026-03-02", "--home", str(far))
    assert code == 2
    assert f"  next:  mmrec init --home {far}\n" in err
    assert f"  value: '{far}'\n" in err


def tree(home: Path) -> dict[str, bytes]:
    return {str(p.relative_to(home)): p.read_bytes() for p in sorted(home.rglob("*")) if p.is_file()}


def test_init_again_leaves_a_home_as_it_is(home: Path, call: Call) -> None:
    publish(home)
    (home / "mmrec.toml").write_text((home / "mmrec.toml").read_text() + "# mine\n")
    before = tree(home)
    code, out, _ = call("init", "--home", str(home), "--size", "small", "--zone", "Europe/Berlin", "--seed", "9")
    assert code == 0
    assert str(home) in "".join(out.split("\n"))
    after = tree(home)
    assert {n for n in before if "mlflow.db" not in n and before[n] != after.get(n)} == set()
    assert set(after) == set(before)


def test_init_completes_a_home_that_lost_a_table(home: Path, call: Call) -> None:
    publish(home)
    versions = Lake(home / "lake").versions()
    shutil.rmtree(home / "lake" / "gold" / "user_vectors")
    assert call("init", "--home", str(home))[0] == 0
    assert Lake(home / "lake").versions() == versions


def test_a_home_may_be_named_by_the_environment(home: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMREC_HOME", str(home))
    code, out, _ = call("tables", "--json")
    assert code == 0
    assert len(json.loads(out)) == len(schema.TABLES)
    assert call("tables", "--home", "nowhere")[1] != out


def test_one_tables_columns_are_what_the_schema_says(call: Call) -> None:
    for name, t in schema.TABLES.items():
        code, out, err = call("tables", name, "--json")
        assert (code, err) == (0, "")
        told = json.loads(out)
        assert [(c["name"], c["type"], c["comment"]) for c in told["columns"]] == [(c.name, c.type, c.comment) for c in t.columns]
        assert (told["name"], told["grain"], tuple(told["key"]), told["checks"], told["mode"]) == (
            name, t.grain, t.key, t.checks, t.mode)  # fmt: skip
    code, out, _ = call("tables", "silver.items")
    assert code == 0
    assert all(c.name[:8] in out for c in schema.TABLES["silver.items"].columns)


def test_tables_counts_rows_and_versions(home: Path, call: Call) -> None:
    publish(home)
    code, out, err = call("tables", "--home", str(home), "--json")
    assert (code, err) == (0, "")
    told = {r["table"]: r for r in json.loads(out)}
    assert list(told) == list(schema.TABLES)
    assert {n: r["rows"] for n, r in told.items() if r["rows"]} == {
        "silver.items": 1, "gold.user_sequences": 1, "gold.recommendations": 1}  # fmt: skip
    assert {n: r["version"] for n, r in told.items()} == Lake(home / "lake").versions()
    code, out, _ = call("tables", "--home", str(home))
    assert code == 0
    assert "latest_recom" in out or "recommendations" in out


@pytest.mark.parametrize(
    ("expression", "want"),
    [("1", 1), ("null", None), ("sum(i) from range(5) t(i)", 10), ("2.50::decimal(9,2)", 2.5), ("date '2026-03-02'", "2026-03-02"),
     ("'ü \"q\" \n [red]x[/]'", 'ü "q" \n [red]x[/]'), ("[1, null]", [1, None]), ("true", True), ("'a'::blob", "b'a'"),
     ("{'k': 1}", {"k": 1})],
    ids=range(10),
)  # fmt: skip
def test_sql_json_is_the_values_and_nothing_else(home: Path, call: Call, expression: str, want: Any) -> None:
    head, *rest = expression.split(" from ")
    code, out, err = call("sql", f"select {head} as v{''.join(' from ' + r for r in rest)}", "--home", str(home), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == [{"v": want}]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_number_that_json_lacks_does_not_break_the_json(home: Path, call: Call, value: str) -> None:
    code, out, _ = call("sql", f"select 1 as a, '{value}'::double as v", "--home", str(home), "--json")
    assert code == 0
    assert json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))[0]["a"] == 1


@pytest.mark.parametrize("title", ["[rec] 2", "[/x]", "a [bold]b[/bold]", "[link=http://x]y", "\\[z]", ":smile:"])
def test_text_from_the_tables_is_shown_as_it_is(home: Path, call: Call, title: str) -> None:
    publish(home, title)
    code, out, _ = call("sql", "select title from items", "--home", str(home))
    assert code == 0
    assert title in out


def test_text_from_the_tables_can_not_steer_the_terminal(home: Path, call: Call) -> None:
    code, out, _ = call("sql", "select 'a' || chr(27) || '[2Jb' as v", "--home", str(home))
    assert code == 0
    assert "\x1b" not in out


def test_long_results_say_how_much_is_left_out(home: Path, call: Call) -> None:
    code, out, _ = call("sql", "select i from range(1234) t(i)", "--home", str(home))
    assert code == 0
    assert "1,234 rows, 200 shown" in out
    assert " 199 " in out
    assert " 200 │" not in out
    assert len(json.loads(call("sql", "select i from range(1234) t(i)", "--home", str(home), "--json")[1])) == 1234


def test_verify_says_in_json_and_exit_code_what_is_broken(home: Path, call: Call) -> None:
    shutil.rmtree(home / "lake" / "silver" / "users")
    code, out, _ = call("verify", "--home", str(home), "--json")
    assert code == 3
    told = json.loads(out)
    assert not told["ok"]
    assert "silver.users" in next(c["detail"] for c in told["checks"] if not c["ok"])
    assert call("verify", "--home", str(home))[0] == 3


def test_the_real_process_keeps_streams_and_codes_apart(home: Path) -> None:
    done = mmrec("tables", "--home", str(home), "--json")
    assert len(json.loads(done.stdout)) == len(schema.TABLES)
    assert done.stderr == ""
    done = mmrec("features", "--date", "2026-03-02", "--home", str(home), "--json", ok=(2,))
    assert done.stdout == ""
    assert "not planned yet" in done.stderr
    assert "next:  mmrec plan --date 2026-03-02" in done.stderr


def test_a_night_says_which_trainings_wait_for_mlflow_and_what_came_of_earlier_ones() -> None:
    from io import StringIO

    from rich.console import Console

    from mmrec import screen

    said = StringIO()
    about = {"run_date": "2026-03-06", "published": True, "lists": 3, "items": 4, "model_version": "1", "run_id": "r", "seconds": {}, "peak_memory_mb": 3}
    earlier = {"2026-03-01": {"failed": "QualityError: altered"}, "2026-03-02": {"promote": {"model_version": "4", "decision": "held", "reason": "[x] worse"}}}
    counts = {"training": {"waits": "MLflow does not answer (http://m): INTERNAL_ERROR"}, "caught_up": earlier}
    screen.print_run(Console(file=said, width=200), about | {"counts": counts})
    lines = said.getvalue().splitlines()[1:4]
    assert lines == [
        "the training of 2026-03-01: can't be handed over: QualityError: altered",
        "the training of 2026-03-02: version 4, held: [x] worse",
        "the training of 2026-03-06: MLflow does not answer (http://m): INTERNAL_ERROR; it waits for the next run, or mmrec models reconcile",
    ]
