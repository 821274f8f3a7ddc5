"""`mmrec features`: the station of that name; and `mmrec features rank`, what each feature of pairs is worth.

In: typed words. Out: tables for people, JSON for programs. Trade-off: as nights.py.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from mmrec import config as settings
from mmrec import dates
from mmrec.cli.common import HOME, STATIONS, Day, Engine, Home, Json, app, err, out, show_json
from mmrec.cli.nights import station
from mmrec.errors import InputError
from mmrec.screen import progress
from mmrec.steps import step

_SUMMARY = step("features").summary
group = typer.Typer(invoke_without_command=True)
app.add_typer(group, name="features", rich_help_panel=STATIONS,
              help=f"{_SUMMARY[0].upper()}{_SUMMARY[1:]}; `rank`: what features are worth.")  # fmt: skip


@group.callback()
def features(
    context: typer.Context,
    day: Annotated[str | None, typer.Option("--date", help="run_date, YYYY-MM-DD")] = None,
    home: Home = HOME,
    engine: Engine = None,
    as_json: Json = False,
) -> None:
    told = {name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")}
    if context.invoked_subcommand is not None:
        if told:
            raise InputError("options come behind the command's last word", where="mmrec features", value=sorted(told),
                             valid="mmrec features rank --date D", next="mmrec features rank --help")  # fmt: skip
        return
    if day is None:
        raise InputError("a station works on one run_date", where="mmrec features", valid="--date YYYY-MM-DD",
                         next="mmrec features --date D")  # fmt: skip
    station("features", day, home, engine, as_json)


@group.command()
def rank(
    day: Day,
    home: Home = HOME,
    drop: Annotated[bool, typer.Option("--drop", help="fit again without each feature, too: minutes")] = False,
    as_json: Json = False,
) -> None:
    """What each feature that a second stage sees is worth, which say the same, and which seem to know the future."""
    from mmrec.evaluate.importance import table
    from mmrec.worth import worth

    with progress(err, as_json) as tell:
        depth, found = worth(settings.load(home), dates.parse(day), tell, drop=drop)
    told = {"run_date": day, "depth": depth, "features": [asdict(r) for r in found]}
    show_json(told) if as_json else out.print(table(found))
