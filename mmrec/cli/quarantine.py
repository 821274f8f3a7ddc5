"""`mmrec quarantine`: what was kept out and why, row by row, and the way back in.

In: typed words. Out: tables for people, JSON for programs. Trade-off: as nights.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from mmrec import config as settings
from mmrec.cli.common import HOME, Engine, Home, Json, app, cell, lake_of, out, show_json
from mmrec.errors import InputError

_SHOWN = 2000  # characters of a row that a terminal gets

group = typer.Typer(no_args_is_help=True, help="What was kept out and why, and the way back in.")
app.add_typer(group, name="quarantine", rich_help_panel="The tables")

OfTable = Annotated[str | None, typer.Option("--table", help="only of this table: interactions, items, ...")]
OfRule = Annotated[str | None, typer.Option("--rule", help="only what broke this rule")]


@group.command("list")
def listed(home: Home = HOME, table: OfTable = None, rule: OfRule = None, as_json: Json = False) -> None:
    """Rows that were kept out, by table, rule and file, and how many of them are in silver since."""
    from mmrec.quarantine import summary

    found = summary(lake_of(home), table, rule)
    if as_json:
        show_json(found)
        return
    grid = Table()
    for head in ("table", "rule", "file", "rows", "held", "back", "mended", "first", "last"):
        right = head in ("rows", "held", "back", "mended")
        grid.add_column(head, justify="right" if right else "left", overflow="fold")
    for r in found:
        times = ("" if r[c] is None else f"{r[c]:%Y-%m-%d %H:%M}" for c in ("first", "last"))
        counts = (f"{r[c]:,}" for c in ("rows", "held", "back", "mended"))
        grid.add_row(r["table"], cell(r["rule"]), cell(r["file"]), *counts, *times)
    out.print(grid)
    total = {c: sum(r[c] for r in found) for c in ("rows", "held", "back", "mended")}
    out.print(
        "{rows:,} verdicts: {held:,} held, {back:,} back in silver, {mended:,} mended by a correction".format(**total)
    )


@group.command()
def show(
    table: Annotated[str | None, typer.Argument(help="bronze.interactions, items, ...")] = None,
    row_hash: Annotated[str | None, typer.Argument(help="a row's hash, or its beginning")] = None,
    home: Home = HOME,
    rule: OfRule = None,
    limit: Annotated[int, typer.Option(min=1, help="at most so many rows")] = 20,
    as_json: Json = False,
) -> None:
    """Why a row was kept out, and the row itself: one row, or the first of a rule."""
    from mmrec.quarantine import verdicts_of

    if rule is None and row_hash is None:
        raise InputError("which rows", where="quarantine show", valid="TABLE ROW_HASH, or --rule RULE",
                         value=" ".join(w for w in (table,) if w), next="mmrec quarantine list")  # fmt: skip
    found = verdicts_of(lake_of(home), table, row_hash, rule, limit)
    if as_json:
        show_json(found)
        return
    for r in found:
        grid = Table(show_header=False, expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold", ratio=1)
        grid.add_row("table", f"{r['table']}, {r['state']}")
        grid.add_row("row_hash", cell(r["row_hash"] + (f" (occurrence {r['occurrence']})" if r["occurrence"] else "")))
        grid.add_row("from", cell(f"{r['source']}: {r['file']}" + (f", line {r['line']}" if r["line"] else "")))
        grid.add_row("rule", cell(r["rule"]))
        grid.add_row("reason", cell(r["reason"]))
        more = len(r["raw"]) - _SHOWN
        grid.add_row("row", cell(r["raw"][:_SHOWN] + (f" ... {more:,} characters more: --json" if more > 0 else "")))
        out.print(grid)
    out.print(f"{len(found)} shown" + (f", at most {limit}: --limit" if len(found) == limit else ""))


@group.command()
def replay(
    home: Home = HOME,
    table: OfTable = None,
    rule: OfRule = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="corrected rows: JSON lines of row_hash and the columns to correct")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="judge, and write nothing")] = False,
    engine: Engine = None,
    as_json: Json = False,
) -> None:
    """Judge rows in quarantine by today's rules, or as corrected; what is good now goes into silver."""
    from mmrec.quarantine import replay as again

    told = again(settings.load(home, engine=engine), table=table, rule=rule, file=file, dry_run=dry_run)
    if as_json:
        show_json(told)
        return
    for name, counts in told["tables"].items():
        rules = ", ".join(f"{n:,} {r}" for r, n in counts["by_rule"].items())
        anew = f", {counts['judged_anew']:,} with a new verdict" if counts["judged_anew"] else ""
        out.print(cell(f"{name}: {counts['brought_back']:,} brought back" + (f" ({rules})" if rules else "") + anew))
    word = "would come back; nothing was written" if dry_run else "are in silver now"
    out.print(f"{told['brought_back']:,} rows {word}; next: mmrec quarantine list")
