"""The command line: every station, the night, and the ways to look at what it made.

In: typed words. Out: text for people, JSON for programs (`--json`), and the exit codes of errors.py.
Trade-off: every knob lives in mmrec.toml; flags are for what differs between two calls of one day.
"""

from __future__ import annotations

from typing import Annotated

import typer

import mmrec
from mmrec.cli import common, explain, features, lake, models, nights, quarantine, rules
from mmrec.cli.common import app, err
from mmrec.errors import MmrecError, lost_store

__all__ = ["app", "common", "explain", "features", "lake", "main", "models", "nights", "quarantine", "rules"]


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
        _told(error)
    except Exception as error:
        lost = lost_store(error, str(getattr(error, "filename", None) or "--home"))
        if lost is None:
            raise
        _told(lost)


def _told(error: MmrecError) -> None:
    err.print(f"[bold red]{type(error).__name__}[/]: ", end="")
    err.print(str(error), markup=False, highlight=False, soft_wrap=True)
    common.leave(error.exit_code)
