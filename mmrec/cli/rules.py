"""What the shop rules, what waits for a person, where an item fell, what diversity costs and other generators bring.

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
from mmrec.errors import InputError
from mmrec.screen import progress

group = typer.Typer(no_args_is_help=True, help="The shop's rules: rules.yaml of the home.")
app.add_typer(group, name="rules", rich_help_panel="The lists")

reviews = typer.Typer(no_args_is_help=True, help="What a rule of kind hold keeps back until a person approves it.")
app.add_typer(reviews, name="review", rich_help_panel="The lists")

Items = Annotated[list[str] | None, typer.Argument(help="item ids")]
OfDate = Annotated[str | None, typer.Option("--date", help="the lists of this run_date, which wait; in place of items")]
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


@app.command(rich_help_panel="The lists")
def candidates(
    home: Home = HOME,
    day: Annotated[str | None, typer.Option("--date", help="a published run_date with events after it")] = None,
    users: Annotated[int, typer.Option(min=1, help="at most so many users are asked")] = 2000,
    as_json: Json = False,
) -> None:
    """What other generators would bring to the lists of a published night: content, new, popular, social items."""
    from mmrec.brought import brought

    with progress(err, as_json) as tell:
        told = brought(settings.load(home), lake_of(home), dates.parse(day) if day else None, users, tell)
    if as_json:
        show_json(told)
        return
    grid = Table("candidates", "users", f"recall@{told['depth']}", "not the model's", "ndcg@10", "to the first, 95%",
                 "recall@10")  # fmt: skip
    for n, r in enumerate(told["generators"]):
        share = [""] * 3
        if "recall" in r:
            share = [f"{r['users']:.0%}", f"{r['recall']:.4f}", f"{r['new']:.4f}" if n else ""]
        lists = ["not asked for", "", ""]
        if "ndcg@10" in r:
            _, low, high = r["difference"]["ndcg@10"]
            lists = [f"{r['ndcg@10']:.4f}", f"{low:+.4f} to {high:+.4f}" if n else "", f"{r['recall@10']:.4f}"]
        grid.add_row(*map(cell, (r["name"], *share, *lists)))
    out.print(grid)
    out.print(f"lists of {told['run_date']} with each {told['every']}th place given away, {told['users']:,} users who "
              "chose something new in the week after; what the columns mean: docs/candidates.md; next: section "
              "candidates of mmrec.toml", soft_wrap=True)  # fmt: skip


@reviews.command("list")
def listed(
    home: Home = HOME,
    every: Annotated[bool, typer.Option("--all", help="also what was decided")] = False,
    as_json: Json = False,
) -> None:
    """Items that wait for a person, the most popular first; and nights whose lists do."""
    from mmrec.holding import held_lists
    from mmrec.recommend.rules import read
    from mmrec.review import held

    cfg, lake = settings.load(home), lake_of(home)
    lists = held_lists(cfg, waiting=not every)
    # before the first night there is nothing but its lists
    found = [] if lists and not lake.run_dates() else held(lake, read(cfg.rules), waiting=not every)
    if as_json:
        show_json({"items": found, "lists": lists})
        return
    grid = Table("rule", "item", "title", "events in 30 days", "decision", "by", "why")
    for r in found:
        grid.add_row(*(cell(r[c]) for c in ("rule", "item_id", "title", "n_30d", "decision", "decided_by", "why")))
    out.print(grid)
    out.print(f"{len(found)} items; next: mmrec review approve ITEM ..., or reject ITEM ...", soft_wrap=True)
    if lists:
        grid = Table("rule", "lists of", "run", "what for", "decision", "by", "why")
        columns = ("rule", "run_date", "run_id", "says", "decision", "decided_by", "why")
        for r in lists:
            grid.add_row(*(cell(r[c]) for c in columns))
        out.print(grid)
        out.print(f"{len(lists)} nights; next: mmrec review approve --date D, or reject --date D", soft_wrap=True)


@reviews.command()
def approve(
    items: Items = None, home: Home = HOME, day: OfDate = None, rule: OfRule = None, by: By = None, why: Why = "",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Let items through, from the next night that is planned; or a date's lists, which then can be published."""
    _decide(items or [], "approved", home, day, rule, by, why, as_json)


@reviews.command()
def reject(
    items: Items = None, home: Home = HOME, day: OfDate = None, rule: OfRule = None, by: By = None, why: Why = "",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Keep items back, and no longer ask; or a date's lists, which then are not published."""
    _decide(items or [], "rejected", home, day, rule, by, why, as_json)


def _decide(
    items: list[str], decision: str, home: Path, day: str | None, rule: str | None, by: str | None, why: str,
    as_json: bool,
) -> None:  # fmt: skip
    from mmrec.holding import decide_lists
    from mmrec.recommend.rules import read
    from mmrec.review import decide

    if bool(items) == bool(day):
        raise InputError("what is decided on are items, or the lists of a date", where="mmrec review",
                         value={"items": items, "--date": day}, valid="ITEM ..., or --date D",
                         next="mmrec review list")  # fmt: skip
    if day:
        made = decide_lists(settings.load(home), dates.parse(day), decision, rule=rule, by=by, why=why)
        if as_json:
            show_json(made)
            return
        for r in made:
            out.print(cell(f"lists of {day}: {decision} for rule {r['rule']} by {r['decided_by']}"))
        force = " --force" if decision == "rejected" else ""
        out.print(f"next: mmrec run --home {home} --date {day}{force}", soft_wrap=True)
        return
    written = decide(lake_of(home), read(settings.load(home).rules), items, decision, rule=rule, by=by, why=why)
    if as_json:
        show_json(written)
        return
    for r in written:
        out.print(cell(f"{r['item_id']}: {decision} for rule {r['rule']} by {r['decided_by']}"))
    out.print("it counts from the next night that is planned; next: mmrec rules preview", soft_wrap=True)
