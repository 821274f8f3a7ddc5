"""The command line: every station, the night, and the ways to look at what it made.

In: typed words. Out: text for people, JSON for programs (`--json`), and the exit codes of errors.py.
Trade-off: every knob lives in mmrec.toml; flags are for what differs between two calls of one day.
"""

from __future__ import annotations

import json
import math
import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import mmrec
from mmrec import config as settings
from mmrec import dates, schema, screen
from mmrec.errors import InputError, MmrecError
from mmrec.screen import progress
from mmrec.steps import STEPS

if TYPE_CHECKING:
    from mmrec.lake.store import Lake

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Nightly multimodal recommendations: one audited list per user, every night.",
)
out, err = Console(), Console(stderr=True)

Home = Annotated[Path, typer.Option("--home", envvar="MMREC_HOME", help="folder of the lake, models and reports")]
Day = Annotated[str, typer.Option("--date", help="run_date, YYYY-MM-DD")]
Engine = Annotated[
    str | None, typer.Option("--engine", help="what computes tables: local or spark; else as in mmrec.toml")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON for programs")]
HOME = Path("mmrec-home")


def _version(asked: bool) -> None:
    if asked:
        print(f"mmrec {mmrec.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="print the version and exit")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point; turns mmrec's errors into a message and an exit code."""
    try:
        app(standalone_mode=True)
    except MmrecError as error:
        err.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        _leave(error.exit_code)


def _leave(code: int) -> None:
    from mmrec.lake.session import ENGINES, stop

    for engine in ENGINES:
        stop(engine)
    sys.exit(code)


def show_json(value: Any) -> None:
    print(json.dumps(_finite(value), indent=1, default=_plain, allow_nan=False))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: such a number is its name."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> Text:
    """A value of a table as it is: no markup, nothing that steers the terminal."""
    from mmrec.monitor.show import plain

    return Text("" if value is None else plain(str(value)))


def _lake(home: Path) -> Lake:
    """The tables of a home; InputError where there is none."""
    from mmrec.lake.store import Lake

    return Lake(settings.load(home).lake).made()


def _plain(value: Any) -> Any:
    # DuckDB sums integers as wide decimals
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value)


@app.command()
def init(
    home: Home = HOME,
    source: Annotated[str, typer.Option(help="builtin, movielens-small (or another size), amazon, files")] = "builtin",
    root: Annotated[Path | None, typer.Option(help="folder of the source")] = None,
    zone: Annotated[str, typer.Option(help="the shop's time zone")] = "UTC",
    seed: Annotated[int, typer.Option(help="seed of the built-in world")] = 0,
    size: Annotated[str, typer.Option(help="size of the built-in world: tiny or small")] = "small",
    as_json: Json = False,
) -> None:
    """Make a home: mmrec.toml, empty tables with their constraints, and version 0, a popularity bundle."""
    from mmrec.run import make_home

    made = make_home(home, source=source, root=root, zone=zone, seed=seed, size=size)
    if as_json:
        show_json({"home": made.home, "tables": len(schema.TABLES), "model_version": "0"})
        return
    out.print(f"home {made.home} with {len(schema.TABLES)} tables and model version 0 (popularity)", soft_wrap=True)
    out.print(f"next: mmrec run --home {home} --date YYYY-MM-DD", soft_wrap=True)


@app.command()
def run(
    day: Day,
    home: Home = HOME,
    force: Annotated[bool, typer.Option(help="resolve anew, under a new run_id")] = False,
    replay: Annotated[bool, typer.Option(help="repeat from the recorded manifest and compare hashes")] = False,
    train: Annotated[bool | None, typer.Option("--train/--no-train", help="train now, or not at all")] = None,
    engine: Engine = None,
    as_json: Json = False,
) -> None:
    """Training if due, then the night. Of a published date: nothing, unless --force or --replay."""
    from mmrec import run as nights

    cfg, when = settings.load(home, engine=engine), dates.parse(day)
    with progress(err, as_json) as tell:
        result = (
            nights.replay(cfg, when, tell) if replay else nights.run(cfg, when, force=force, train=train, tell=tell)
        )
    show_json(result) if as_json else screen.print_run(out, result)


@app.command()
def backfill(
    start: Annotated[str, typer.Option("--from", help="first run_date")],
    end: Annotated[str, typer.Option("--to", help="last run_date, included")],
    home: Home = HOME,
    force: bool = False,
    engine: Engine = None,
    as_json: Json = False,
) -> None:
    """The night of every date of a range, oldest first; none of them trains."""
    from mmrec import run as nights

    cfg = settings.load(home, engine=engine)
    results = []
    with progress(err, as_json) as tell:
        for when in dates.days(dates.parse(start, "--from"), dates.parse(end, "--to")):
            results.append(nights.run(cfg, when, force=force, train=False, tell=tell))
            if not as_json:
                screen.print_run(out, results[-1])
    if as_json:
        show_json(results)


@app.command()
def demo(
    data: Annotated[str, typer.Option(help="builtin or movielens-small")] = "builtin",
    source: Annotated[Path | None, typer.Option(help="folder of the data; none: it is downloaded")] = None,
    home: Home = Path("demo"),
    nights: Annotated[int, typer.Option(min=1, help="nights in a row")] = 4,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Nights on the built-in world, or on real films, ending with a few users' lists."""
    from mmrec import run as room

    with progress(err, as_json) as tell:
        result = room.demo(home, data=data, source=source, nights=nights, seed=seed, tell=tell)
    show_json(result) if as_json else screen.print_demo(out, home, result)


@app.command()
def tables(
    name: Annotated[str | None, typer.Argument(help="one table's columns")] = None,
    home: Home = HOME,
    as_json: Json = False,
) -> None:
    """The tables there are, with rows and versions; or one table's columns."""
    if name:
        t = schema.table(name)
        if as_json:
            show_json(
                {
                    "name": t.name,
                    "grain": t.grain,
                    "key": t.key,
                    "checks": t.checks,
                    "mode": t.mode,
                    "columns": [{"name": c.name, "type": c.type, "comment": c.comment} for c in t.columns],
                }
            )
            return
        grid = Table(
            title=f"{t.name}: one row is {t.grain}", caption=f"key: {', '.join(t.key)}; written by {t.step}, {t.mode}"
        )
        for head in ("column", "type", "what it is"):
            grid.add_column(head)
        for c in t.columns:
            grid.add_row(c.name, c.type + (" or null" if c.nullable else ""), c.comment)
        out.print(grid)
        return
    lake = _lake(home)
    found = []
    for t in schema.TABLES.values():
        if lake.exists(t.name):
            found.append(
                {
                    "table": t.name,
                    "view": t.view,
                    "version": lake.version(t.name),
                    "rows": lake.dataset(t.name).count_rows(),
                    "grain": t.grain,
                }
            )
    if as_json:
        show_json(found)
        return
    grid = Table(title=str(lake.root))
    for head in ("table", "in SQL", "version", "rows", "one row is"):
        grid.add_column(head, justify="right" if head in ("version", "rows") else "left", overflow="fold")
    for row in found:
        grid.add_row(row["table"], row["view"], str(row["version"]), f"{row['rows']:,}", row["grain"])
    out.print(grid)


@app.command()
def sql(statement: str, home: Home = HOME, as_json: Json = False) -> None:
    """One DuckDB statement over the tables; `mmrec tables` names them."""
    from mmrec.lake.sql import query

    rows = query(_lake(home), statement)
    if as_json:
        show_json(rows.to_pylist())
        return
    grid = Table()
    for field in rows.schema:
        grid.add_column(
            _cell(field.name), justify="right" if str(field.type) in ("int32", "int64", "float", "double") else "left"
        )
    for row in rows.slice(0, 200).to_pylist():
        grid.add_row(*map(_cell, row.values()))
    out.print(grid)
    if rows.num_rows > 200:
        out.print(f"{rows.num_rows:,} rows, 200 shown; --json gives all")


@app.command()
def show(
    user: str, home: Home = HOME, day: Annotated[str | None, typer.Option("--date")] = None, as_json: Json = False
) -> None:
    """One user: what they did lately, beside what they are offered and why."""
    from mmrec.monitor.show import render, user_page

    cfg = settings.load(home)
    page = user_page(_lake(home), user, dates.parse(day) if day else None, cfg.zone)
    show_json(page.to_json()) if as_json else out.print(render(page))


@app.command()
def verify(home: Home = HOME, as_json: Json = False) -> None:
    """Check every promise that can be checked on the tables as they are; exit 3 if one is broken."""
    from mmrec.verify import verify as check

    findings = check(settings.load(home))
    bad = [f for f in findings if not f["ok"]]
    if as_json:
        show_json({"ok": not bad, "checks": findings})
    else:
        grid = Table()
        for head in ("check", "result", "detail"):
            grid.add_column(head, overflow="fold")
        for f in findings:
            grid.add_row(f["check"], "[green]ok[/]" if f["ok"] else "[bold red]broken[/]", _cell(f["detail"]))
        out.print(grid)
        out.print("every check holds" if not bad else f"[bold red]{len(bad)} of {len(findings)} checks are broken[/]")
    if bad:
        _leave(3)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="jvm: a cold start of Spark, with and without the class archive")],
    rounds: Annotated[int, typer.Option(min=1, help="of each side, interleaved")] = 3,
    as_json: Json = False,
) -> None:
    """Measure a hot path beside its peers, after a check that all give the same answer."""
    from mmrec.bench import jvm

    rooms = {"jvm": jvm.bench}
    if name not in rooms:
        raise InputError("no such benchmark", where="bench", value=name, valid=list(rooms), next="mmrec bench jvm")
    with progress(err, as_json) as tell:
        told = rooms[name](rounds, tell)
    show_json(told) if as_json else screen.print_counts(out, f"bench {name}", told)


@app.command()
def doctor(
    home: Home = HOME,
    engine: Engine = None,
    install: Annotated[bool, typer.Option("--install", help="get what can be had: Java, jars, the archive")] = False,
    as_json: Json = False,
) -> None:
    """What this machine lacks, and how to get it; exit 2 if something needed is missing."""
    from mmrec.doctor import examine

    found = examine(home, engine, install=install)
    if as_json:
        show_json({"ok": all(f["ok"] or not f["needed"] for f in found), "checks": found})
    else:
        screen.print_doctor(out, found)
    if any(f["needed"] and not f["ok"] for f in found):
        _leave(2)


@app.command(hidden=True)
def learn(day: Day, home: Home = HOME, engine: Engine = None, as_json: Json = False) -> None:
    """train, evaluate, export, register and promote, in one process."""
    from mmrec.learn import chain

    with progress(err, as_json and not err.is_terminal) as tell:
        told = chain(settings.load(home, engine=engine), dates.parse(day), tell)
    show_json(told) if as_json else screen.print_counts(out, "learn", told)


@app.command()
def steps(
    names: Annotated[list[str], typer.Argument(help="stations, in the order to run")],
    day: Day,
    home: Home = HOME,
    engine: Engine = None,
    force: Annotated[bool, typer.Option(help="do it though the date is published")] = False,
    as_json: Json = False,
) -> None:
    """Stations one after the other, in one process with one engine session."""
    from mmrec import run as nights

    with progress(err, as_json) as tell:
        told = nights.stations(settings.load(home, engine=engine), names, dates.parse(day), force=force, tell=tell)
    show_json(told) if as_json else screen.print_counts(out, "steps", told)


def _station(name: str, summary: str) -> None:
    def command(day: Day, home: Home = HOME, engine: Engine = None, as_json: Json = False) -> None:
        from mmrec import run as nights

        with progress(err, as_json) as tell:
            counts = nights.station(settings.load(home, engine=engine), name, dates.parse(day), tell)
        show_json(counts) if as_json else screen.print_counts(out, name, counts)

    command.__doc__ = summary[0].upper() + summary[1:] + "."
    app.command(name, rich_help_panel="Stations, in the order of the night")(command)


for _step in STEPS:
    _station(_step.name, _step.summary)
