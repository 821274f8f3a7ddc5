"""`mmrec rules`, `mmrec review`, `mmrec why-not`: what the shop rules, what waits for a person, where an item fell.

In: typed words. Out: tables for people, JSON for programs. Trade-off: as nights.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from mmrec import config as settings
from mmrec import dates
from mmrec.cli.common import HOME, Home, Json, app, cell, err, lake_of, out, show_json
from mmrec.screen import progress

group = typer.Typer(no_args_is_help=True, help="The shop's rules: rules.yaml of the home.")
app.add_typer(group, name="rules", rich_help_panel="The lists")

reviews = typer.Typer(no_args_is_help=True, help="What a rule of kind hold keeps back until a person approves it.")
app.add_typer(reviews, name="review", rich_help_panel="The lists")

Items = Annotated[list[str], typer.Argument(help="item ids")]
OfRule = Annotated[str | None, typer.Option("--rule", help="only this rule's hold; else every rule's that holds it")]
By = Annotated[str | None, typer.Option("--by", help="who decides; else who is logged in")]
Why = Annotated[str, typer.Option("--why", help="for people who look it up")]
For = Annotated[str | None, typer.Option("--date", help="run_date they are asked for; else the next night's")]


@group.command()
def check(home: Home = HOME, day: For = None, as_json: Json = False) -> None:
    """Read the rules, and say of each what it does and what it names; a mistake is told with its line."""
    from mmrec.rulebook import check as look

    found = look(settings.load(home), lake_of(home), dates.parse(day) if day else None)
    if as_json:
        show_json(found)
        return
    grid = Table("line", "rule", "what it does", "in force", "items", "users")
    for r in found:
        span = " ".join(f"{word} {r[word]}" for word in ("from", "until") if r[word])
        reach = (cell("" if r[c] is None else f"{r[c]:,}") for c in ("items", "users"))
        grid.add_row(cell(r["line"]), cell(r["name"]), cell(f"{r['kind']}: {r['says']}"),
                     cell(("yes" if r["in_force"] else "no") + (f", {span}" if span else "")), *reach)  # fmt: skip
    out.print(grid)
    idle = [f"{r['name']} names no {what}" for r in found for what in ("items", "users") if r[what] == 0]
    idle += [f"{r['name']} pins behind the end of every list" for r in found if r["behind"]]
    for told in idle:
        out.print(cell(f"note: {told}"))
    out.print(f"{len(found)} rules, no contradiction; next: mmrec rules preview --home {home}", soft_wrap=True)


@group.command()
def preview(
    home: Home = HOME,
    day: For = None,
    users: Annotated[int, typer.Option(min=1, help="at most so many users are looked at")] = 1000,
    everybody: Annotated[bool, typer.Option("--all", help="look at every user")] = False,
    as_json: Json = False,
) -> None:
    """What the rules would change in the newest night's lists; nothing is written."""
    from mmrec.rulebook import preview as look

    cfg = settings.load(home)
    told = look(cfg, lake_of(home), dates.parse(day) if day else None, None if everybody else users)
    if as_json:
        show_json(told)
        return
    grid = Table("line", "rule", "kind", "items", "users", "rows now", "then", "passed over", "placed")
    for r in told["rules"]:
        numbers = (cell(f"{r[c]:,}") for c in ("items", "users", "rows_now", "rows_then", "passed", "placed"))
        grid.add_row(cell(r["line"]), cell(r["name"]), cell(r["kind"]), *numbers)
    out.print(grid)
    for each in told["lists"]:
        out.print(cell(f"user {each['user_id']}"))
        for sign, rows in (("-", each["went"]), ("+", each["came"])):
            for r in rows:
                by = f"  by {r['rule']}" if r.get("rule") else ""
                out.print(cell(f"  {sign} {r['rank']:>3}  {r['item_id']}  {r['title'] or ''}{by}"))
    out.print(f"lists of {told['run_date']} under the rules of {told['for_date']}: {told['changed']:,} of "
              f"{told['users']:,} change, {told['went']:,} rows go and {told['came']:,} come; nothing was written",
              soft_wrap=True)  # fmt: skip
    out.print(f"next: mmrec run --home {home} --date {told['for_date']}", soft_wrap=True)


@app.command("why-not", rich_help_panel="The lists")
def why_not(
    user: Annotated[str, typer.Argument(help="user id")],
    item: Annotated[str, typer.Argument(help="item id")],
    home: Home = HOME,
    day: Annotated[str | None, typer.Option("--date", help="run_date; else the newest published one")] = None,
    as_json: Json = False,
) -> None:
    """Where an item fell on its way into a user's list."""
    from mmrec.whynot import why_not as look

    told: dict[str, Any] = look(settings.load(home), lake_of(home), user, item, dates.parse(day) if day else None)
    if as_json:
        show_json(told)
        return
    title = f" ({told['title']})" if told.get("title") else ""
    out.print(cell(f"{told['run_date']}, user {user}, item {item}{title}: {told['says']}"), soft_wrap=True)
    if told["fell"] != "outranked" and told.get("rank"):
        out.print(cell(f"without it, {told['source']} ranks it {told['rank']} with a score of {told['score']:.4g}"))


@app.command(rich_help_panel="The lists")
def diversity(
    home: Home = HOME,
    day: Annotated[str | None, typer.Option("--date", help="a published run_date with events after it")] = None,
    users: Annotated[int, typer.Option(min=1, help="at most so many users are asked")] = 2000,
    as_json: Json = False,
) -> None:
    """What diversity would cost the lists of a published night, and bring: several kinds, side by side."""
    from mmrec.tradeoff import tradeoff

    with progress(err, as_json) as tell:
        told = tradeoff(settings.load(home), lake_of(home), dates.parse(day) if day else None, users, tell)
    if as_json:
        show_json(told)
        return
    grid = Table("lists", "ndcg@10", "to the first, 95%", "recall@10", "diversity", "off the mix", "novelty",
                 "coverage")  # fmt: skip
    for r in told["kinds"]:
        _, low, high = r["cost"]["ndcg@10"]
        gap = f"{low:+.4f} to {high:+.4f}" if r["kind"] != "none" else ""
        numbers = [f"{r['ndcg@10']:.4f}", gap, f"{r['recall@10']:.4f}",
                   "" if r["diversity@10"] is None else f"{r['diversity@10']:.3f}", f"{r['mix@10']:.3f}",
                   f"{r['novelty@10']:.2f}", f"{r['coverage@10']:.1%}"]  # fmt: skip
        grid.add_row(cell(r["kind"]), *map(cell, numbers))
    out.print(grid)
    out.print(f"lists of {told['run_date']}, {told['users']:,} users who chose something new in the week after; what "
              "the columns mean: docs/diversity.md; next: section diversity of mmrec.toml", soft_wrap=True)  # fmt: skip


@reviews.command("list")
def listed(
    home: Home = HOME,
    every: Annotated[bool, typer.Option("--all", help="also what was decided")] = False,
    as_json: Json = False,
) -> None:
    """Items that wait for a person, the most popular first."""
    from mmrec.recommend.rules import read
    from mmrec.review import held

    found = held(lake_of(home), read(settings.load(home).rules), waiting=not every)
    if as_json:
        show_json(found)
        return
    grid = Table("rule", "item", "title", "events in 30 days", "decision", "by", "why")
    for r in found:
        grid.add_row(*(cell(r[c]) for c in ("rule", "item_id", "title", "n_30d", "decision", "decided_by", "why")))
    out.print(grid)
    out.print(f"{len(found)} items; next: mmrec review approve ITEM ..., or reject ITEM ...", soft_wrap=True)


@reviews.command()
def approve(
    items: Items, home: Home = HOME, rule: OfRule = None, by: By = None, why: Why = "", as_json: Json = False
) -> None:
    """Let items through, from the next night that is planned."""
    _decide(items, "approved", home, rule, by, why, as_json)


@reviews.command()
def reject(
    items: Items, home: Home = HOME, rule: OfRule = None, by: By = None, why: Why = "", as_json: Json = False
) -> None:
    """Keep items back, and no longer ask."""
    _decide(items, "rejected", home, rule, by, why, as_json)


def _decide(
    items: list[str], decision: str, home: Path, rule: str | None, by: str | None, why: str, as_json: bool
) -> None:
    from mmrec.recommend.rules import read
    from mmrec.review import decide

    written = decide(lake_of(home), read(settings.load(home).rules), items, decision, rule=rule, by=by, why=why)
    if as_json:
        show_json(written)
        return
    for r in written:
        out.print(cell(f"{r['item_id']}: {decision} for rule {r['rule']} by {r['decided_by']}"))
    out.print("it counts from the next night that is planned; next: mmrec rules preview", soft_wrap=True)
