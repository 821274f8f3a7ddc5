"""Commands that look at the tables, check them, and mend them.

In: typed words. Out: tables for people, JSON for programs. Trade-off: as nights.py.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from mmrec import config as settings
from mmrec import dates, schema
from mmrec.cli import common
from mmrec.cli.common import HOME, Home, Json, app, cell, err, lake_of, out, show_json
from mmrec.errors import InputError

PANEL = "The tables"


@app.command(rich_help_panel=PANEL)
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
                    "columns": [
                        {"name": c.name, "type": c.type, "comment": c.comment, "deprecated": c.deprecated}
                        for c in t.columns
                    ],
                    "rules": [{"rule": r.name, "column": c.name, "keeps": r.says} for c, r in schema.rules(name)],
                }
            )
            return
        grid = Table(
            title=f"{t.name}: one row is {t.grain}", caption=f"key: {', '.join(t.key)}; written by {t.step}, {t.mode}"
        )
        for head in ("column", "type", "what it is"):
            grid.add_column(head)
        for c in t.columns:
            grid.add_row(c.name, c.type + (" or null" if c.nullable else ""), c.described)
        out.print(grid)
        judged = schema.rules(name)
        if judged:
            grid = Table(title="a delivered row is kept if; the first broken rule names its fault")
            for head in ("rule", "column", "of a row that is kept"):
                grid.add_column(head, overflow="fold")
            for c, rule in judged:
                grid.add_row(rule.name, c.name, rule.says)
            out.print(grid)
        return
    lake = lake_of(home)
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


@app.command(rich_help_panel=PANEL)
def sql(statement: str, home: Home = HOME, as_json: Json = False) -> None:
    """One DuckDB statement over the tables; `mmrec tables` names them."""
    from mmrec.lake.sql import query

    rows = query(lake_of(home), statement)
    if as_json:
        show_json(rows.to_pylist())
        return
    grid = Table()
    for field in rows.schema:
        grid.add_column(
            cell(field.name), justify="right" if str(field.type) in ("int32", "int64", "float", "double") else "left"
        )
    for row in rows.slice(0, 200).to_pylist():
        grid.add_row(*map(cell, row.values()))
    out.print(grid)
    if rows.num_rows > 200:
        out.print(f"{rows.num_rows:,} rows, 200 shown; --json gives all")


@app.command(rich_help_panel=PANEL)
def show(
    user: str, home: Home = HOME, day: Annotated[str | None, typer.Option("--date")] = None, as_json: Json = False
) -> None:
    """One user: what they did lately, beside what they are offered and why."""
    from mmrec.monitor.show import render, user_page

    cfg = settings.load(home)
    page = user_page(lake_of(home), user, dates.parse(day) if day else None, cfg.zone)
    show_json(page.to_json()) if as_json else out.print(render(page))


@app.command(rich_help_panel=PANEL)
def neighbours(
    item: Annotated[str | None, typer.Argument(help="whose; with --meaning none")] = None,
    modality: Annotated[str, typer.Option("--modality", help="text, image or audio")] = "text",
    k: Annotated[int, typer.Option("--k", min=1, help="how many")] = 10,
    meaning: Annotated[
        bool, typer.Option("--meaning", help="of all items: do neighbours share categories above chance")
    ] = False,
    home: Home = HOME,
    as_json: Json = False,
) -> None:
    """The items whose text, picture or sound is most like an item's own."""
    from mmrec import alike

    if meaning == (item is not None):
        raise InputError("either an item or --meaning", where="neighbours", value=item, valid="one of the two",
                         next="mmrec neighbours --meaning --modality image")  # fmt: skip
    if item is None:
        told = alike.meaning(settings.load(home), lake_of(home), modality, k)
        show_json(told) if as_json else out.print(_meaning(told))
        return
    rows = alike.neighbours(settings.load(home), lake_of(home), [item], modality, k)[item]
    if as_json:
        show_json({"item_id": item, "modality": modality, "neighbours": rows})
        return
    grid = Table(title=cell(f"nearest to {item} by {modality}"))
    for head in ("item", "title", "similarity", ""):
        grid.add_column(head, justify="right" if head == "similarity" else "left", overflow="fold")
    for row in rows:
        same = "the same content" if row["same"] else ""
        grid.add_row(cell(row["item_id"]), cell(row["title"]), f"{row['similarity']:.3f}", same)
    out.print(grid)


@app.command(rich_help_panel=PANEL)
def similar(
    item: str, k: Annotated[int, typer.Option("--k", min=1, help="how many")] = 10, home: Home = HOME,
    day: Annotated[str | None, typer.Option("--date", help="a published date; the newest")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """The items most like one, as the model of a published night has them."""
    from mmrec import lists

    rows = lists.similar(settings.load(home), lake_of(home), [item], k, dates.parse(day) if day else None)[item]
    if as_json:
        show_json({"item_id": item, "similar": rows})
        return
    out.print(_ranked(f"most like {item}", rows))


@app.command(rich_help_panel=PANEL)
def segments(
    attribute: Annotated[str, typer.Argument(help="of users, as country")],
    k: Annotated[int, typer.Option("--k", min=1, help="places in a list")] = 10, home: Home = HOME,
    day: Annotated[str | None, typer.Option("--date", help="a published date; the newest")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """One list for each value of a user attribute: what those users would like best on average."""
    from mmrec import lists

    rows = lists.segments(settings.load(home), lake_of(home), attribute, k, dates.parse(day) if day else None)
    if as_json:
        show_json({"attribute": attribute, "segments": rows})
        return
    for row in rows:
        out.print(_ranked(f"{attribute} {row['segment']}, {row['users']:,} users", row["list"]))


def _ranked(title: str, rows: list[dict[str, Any]]) -> Table:
    grid = Table(title=cell(title))
    for head in ("rank", "item", "title", "score"):
        grid.add_column(head, justify="left" if head in ("item", "title") else "right", overflow="fold")
    for row in rows:
        grid.add_row(str(row["rank"]), cell(row["item_id"]), cell(row["title"]), f"{row['score']:.4f}")
    return grid


def _meaning(told: dict[str, Any]) -> Table:
    grid = Table(title=cell(f"{told['items']:,} items by {told['modality']}, {told['encoder_version']}"))
    for head in ("", f"{told['k']} nearest", "at random", "difference (95% interval)"):
        grid.add_column(head, justify="right" if head else "left", overflow="fold")
    more = f"{told['difference']:+.4f} ({told['lo']:+.4f} to {told['hi']:+.4f})"
    grid.add_row("share a category", f"{told['shared']:.4f}", f"{told['chance']:.4f}", more)
    more = f"{told['jaccard'] - told['jaccard_chance']:+.4f}"
    grid.add_row("Jaccard of categories", f"{told['jaccard']:.4f}", f"{told['jaccard_chance']:.4f}", more)
    return grid


@app.command(rich_help_panel=PANEL)
def verify(
    home: Home = HOME,
    deep: Annotated[bool, typer.Option("--deep", help="compare every file's bytes too")] = False,
    as_json: Json = False,
) -> None:
    """Check every promise that can be checked on the tables as they are; exit 3 if one is broken."""
    from mmrec.verify import verify as check

    findings = check(settings.load(home), deep=deep)
    bad = [f for f in findings if not f["ok"]]
    if as_json:
        show_json({"ok": not bad, "checks": findings})
    else:
        grid = Table()
        for head in ("check", "result", "detail"):
            grid.add_column(head, overflow="fold")
        for f in findings:
            grid.add_row(f["check"], "[green]ok[/]" if f["ok"] else "[bold red]broken[/]", cell(f["detail"]))
        out.print(grid)
        out.print("every check holds" if not bad else f"[bold red]{len(bad)} of {len(findings)} checks are broken[/]")
    if bad:
        common.leave(3)


@app.command(rich_help_panel=PANEL)
def repair(
    home: Home = HOME,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="tell, change nothing")] = False,
    as_json: Json = False,
) -> None:
    """Mend the logs of the tables after a loss of power or a bad disk; exit 3 where only a backup helps."""
    from mmrec.lake.repair import repair as mend

    told = mend(lake_of(home, damaged=True), dry_run=dry_run)
    if as_json:
        show_json([r.to_json() for r in told])
    elif not told:
        out.print("every log is whole: nothing to mend")
    else:
        grid = Table()
        for head in ("table", "version", "what is wrong", "what was done" if not dry_run else "what would be done"):
            grid.add_column(head, overflow="fold")
        for r in told:
            grid.add_row(r.table, str(r.version), cell(r.what), cell(r.done))
        out.print(grid)
        out.print("next: mmrec verify --deep")
    if not all(r.mended for r in told):
        common.leave(3)


@app.command(rich_help_panel=PANEL)
def migrate(
    home: Home = HOME,
    apply: Annotated[bool, typer.Option("--apply", help="make the changes; no night may run meanwhile")] = False,
    as_json: Json = False,
) -> None:
    """How the tables of an older home differ, and the declared changes that bridge it; exit 2 if some do not."""
    from mmrec.lake import migrate as room

    lake = lake_of(home)
    plans = room.migrate(lake) if apply else room.plan(lake)
    left = [d for p in plans for d in p.left]
    if as_json:
        show_json({"applied": apply, "tables": [p.to_json() for p in plans]})
    else:
        grid = Table(title=f"changes of {lake.root}" if apply else f"what differs in {lake.root}")
        for head in ("table", "column", "was", "is", "how"):
            grid.add_column(head, overflow="fold")
        for p in plans:
            for s in p.steps:
                grid.add_row(p.table, s.column, cell(s.was), "", f"{s.kind}, declared in {s.since}")
            for d in (*p.added, *p.left):
                if d.change != "properties":
                    how = "absorbed" if d.additive else "[bold red]nothing declared bridges it[/]"
                    grid.add_row(p.table, d.column, cell(d.was), cell(d.now), how)
        out.print(grid if grid.row_count else "every table is what this mmrec says it is")
        if grid.row_count and not apply and not left:
            out.print(f"next: mmrec migrate --apply --home {home}", soft_wrap=True)
    if left:
        common.leave(2)


@app.command(rich_help_panel=PANEL)
def maintain(
    home: Home = HOME,
    table: Annotated[str | None, typer.Option("--table", help="one table; else all")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="tell what would go, change nothing")] = False,
    as_json: Json = False,
) -> None:
    """Put small files together, shorten logs, delete what nobody needs any more; exit 3 if a table is refused."""
    from mmrec.lake.maintain import maintain as tidy
    from mmrec.screen import progress
    from mmrec.served import needed

    cfg = settings.load(home)
    lake_of(home, damaged=True)
    with progress(err, as_json) as tell:
        told = tidy(cfg, table, dry_run=dry_run, needed=lambda: needed(cfg), tell=tell)
    refused = [t for t in told if t["refused"]]
    if as_json:
        show_json({"dry_run": dry_run, "bytes": sum(t["bytes"] for t in told), "tables": told})
    else:
        grid = Table(title="what would be done" if dry_run else None)
        grid.add_column("table", no_wrap=True)
        for head in ("readable", "files put together", "would go" if dry_run else "gone"):
            grid.add_column(head, overflow="fold")
        for t in told:
            if t["refused"]:
                grid.add_row(t["table"], cell(f"refused: {t['refused']}"))
                continue
            c, dropped = t["compacted"], [f"run_date {d}" for d in t["dropped"]]
            dropped += [f"{rows:,} vectors of {version}" for version, rows in t["unneeded"].items()]
            kinds = {"files": "files", "stages": "stages", "entries": "log entries"}
            gone = [f"{t[k]} {what}" for k, what in kinds.items() if t[k]]
            grid.add_row(
                t["table"], f"{t['oldest']} to {t['version']}",
                f"{c['files']} to {c['into']}" + (f", {c['skipped']} skipped" if c["skipped"] else ""),
                cell(", ".join([*dropped, *gone, f"{t['bytes'] / 1e6:.1f} MB"])))  # fmt: skip
        out.print(grid)
    if refused:
        common.leave(3)
