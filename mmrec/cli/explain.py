"""`mmrec explain`: why a row is in a list, and whether such reasons are true; `mmrec score`: pairs that are asked for.

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

_SHOWN = 20
_WORDS = {"contributions": "what the reasons say", "nearest": "the nearest item", "most_recent": "the most recent item"}


@app.command(rich_help_panel="The lists")
def explain(
    user: Annotated[str | None, typer.Argument(help="user id; none: a study of many")] = None,
    item: Annotated[str | None, typer.Argument(help="item id, of the user's list")] = None,
    home: Home = HOME,
    day: Annotated[str | None, typer.Option("--date", help="run_date; else the newest published one")] = None,
    users: Annotated[int | None, typer.Option(min=1, help="of a study: at most so many; 500 unless told")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of a study: which users")] = 0,
    as_json: Json = False,
) -> None:
    """Why a row is in a list; without a user, whether reasons name what a score would lose most without."""
    from mmrec import faithful

    cfg, when = settings.load(home), dates.parse(day) if day else None
    if (user is None) != (item is None) or (user is not None and users is not None):
        given = " ".join(["mmrec explain", *(w for w in (user, item) if w), *([f"--users {users}"] if users else [])])
        raise InputError("a row is a user and an item, a study is neither", where="mmrec explain", value=given,
                         valid=["mmrec explain USER ITEM", "mmrec explain --users 500"],
                         next=f"mmrec show {user or 'USER'}")  # fmt: skip
    if user is not None and item is not None:
        told = faithful.account(cfg, lake_of(home), user, item, when)
        show_json(told) if as_json else _show(told)
        return
    with progress(err, as_json) as tell:
        found = faithful.study(cfg, lake_of(home), 500 if users is None else users, when, seed, tell)
    show_json(found) if as_json else _study(found)


@app.command(rich_help_panel="The lists")
def score(
    file: Annotated[Path, typer.Argument(help="pairs: .csv or .parquet with user_id and item_id")],
    home: Home = HOME,
    day: Annotated[str | None, typer.Option("--date", help="run_date; else the newest published one")] = None,
    as_json: Json = False,
) -> None:
    """Scores of chosen pairs of a user and an item, into gold.pair_scores."""
    from mmrec.scored import scored

    with progress(err, as_json) as tell:
        told = scored(settings.load(home), lake_of(home), file, dates.parse(day) if day else None, tell)
    if as_json:
        show_json(told)
        return
    grid = Table("user", "item", "score", "rank", "why not")
    for r in told["rows"][:_SHOWN]:
        number = "" if r["score"] is None else f"{r['score']:.4g}"
        grid.add_row(*map(cell, (r["user_id"], r["item_id"], number, r["rank"], r["why"])))
    out.print(grid)
    more = f", the first {_SHOWN} above" if told["pairs"] > _SHOWN else ""
    out.print(cell(f"run_date {told['run_date']}, model version {', '.join(told['model_versions'])}: {told['pairs']:,} "
                   f"pairs{more}, {told['scored']:,} with a score, {told['added']:,} new in gold.pair_scores; next: "
                   'mmrec sql "select * from pair_scores order by user_id, rank"'), soft_wrap=True)  # fmt: skip


def _show(told: dict[str, Any]) -> None:
    title = f" ({told['title']})" if told["title"] else ""
    by = f", by rule {told['rule']}" if told["rule"] else ""
    out.print(cell(f"{told['run_date']}, user {told['user_id']}, item {told['item_id']}{title}: rank {told['rank']}, "
                   f"score {told['score']:.4g} ({told['source']}{by})"), soft_wrap=True)  # fmt: skip
    out.print(cell(told["says"]), soft_wrap=True)
    for r in told["because"]:
        out.print(cell(f"  {r['share']:6.1%}  {r['item_id']}  {r['title'] or ''}"), soft_wrap=True)
    if told["parts"]:
        parts = ", ".join(f"{r['part']} {r['share']:.1%}" for r in told["parts"])
        out.print(cell(f"the score: {parts}"), soft_wrap=True)
    else:
        out.print("no numbers are told of this row")


def _study(found: dict[str, Any]) -> None:
    if not found["rows"]:
        out.print("no user of this night has a row of the model and two items of history")
        return
    grid = Table("an item is named by", "it is the greatest drop", "the score drops by", "rank correlation")
    for name, r in found["by"].items():
        error = f" ± {r['error']:.1%}" if r["error"] is not None else ""
        grid.add_row(cell(_WORDS[name]), cell(f"{r['first']:.1%}{error}"), cell(f"{r['drop']:.4g}"),
                     cell(f"{r['rank_correlation']:.3f}"))  # fmt: skip
    out.print(grid)
    drop = found["drop"]
    out.print(cell(f"run_date {found['run_date']}, model version {found['model_version']}: {found['rows']:,} rows of "
                   f"{found['users']:,} users (seed {found['seed']}), {found['history']:.1f} items of history each; "
                   f"without a random one the score drops by {drop['random']:.4g}, without the best by "
                   f"{drop['greatest']:.4g}"), soft_wrap=True)  # fmt: skip
