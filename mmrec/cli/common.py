"""What commands share: the app, its consoles, the options they have in common, JSON, and the way out.

In: nothing. Out: `app` and helpers. Trade-off: one app object that modules of commands add to when they are imported.
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
from rich.text import Text
from typer.core import TyperGroup

from mmrec import config as settings
from mmrec.steps import STEPS

if TYPE_CHECKING:
    from mmrec.lake.store import Lake


class _InOrder(TyperGroup):
    """Stations stand in the order of the night, though one of them is a group, and groups come last."""

    def list_commands(self, ctx: Any) -> list[str]:
        names, order = super().list_commands(ctx), [s.name for s in STEPS]
        stations = iter(sorted(set(names) & set(order), key=order.index))
        return [next(stations) if name in order else name for name in names]


app = typer.Typer(
    cls=_InOrder,
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
STATIONS = "Stations, in the order of the night"


def leave(code: int) -> None:
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


def cell(value: Any) -> Text:
    """A value of a table as it is: no markup, nothing that steers the terminal."""
    from mmrec.monitor.show import plain

    return Text("" if value is None else plain(str(value)))


def lake_of(home: Path, *, damaged: bool = False) -> Lake:
    """The tables of a home; InputError where there is none. `damaged`: there may be tables that can't be read."""
    from mmrec.lake.store import Lake

    lake = Lake(settings.load(home).lake)
    return lake if damaged and lake.root.is_dir() else lake.made()


def _plain(value: Any) -> Any:
    # DuckDB sums integers as wide decimals
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value)
