"""Which files a night waits for, and which of them have not come.

In: `source.expect`, patterns of files below the source's root; {day} is the last local day before run_date, {run_date}
the date itself. Out: patterns that match no file with something in it.
Trade-off: looks at the file system, so it can be asked before anything is read; a file half delivered counts as there,
so a source delivers under another name and renames.
"""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

from mmrec.config import Config
from mmrec.errors import InputError


def expected(config: Config, run_date: date) -> tuple[Path, list[str]]:
    """The folder to look in, and the patterns of `run_date`.

    Raises: InputError: there is no folder, or a pattern leaves it.
    """
    names = {"{day}": str(run_date - timedelta(days=1)), "{run_date}": str(run_date)}
    patterns = []
    for pattern in config.source.expect:
        for name, value in names.items():
            pattern = pattern.replace(name, value)
        patterns.append(pattern)
    root = config.source_root
    if root is None and patterns:
        raise InputError("files are expected, but there is no folder to look in", where="mmrec.toml: source.root",
                         value=None, valid="a folder", next="edit mmrec.toml")  # fmt: skip
    wrong = [p for p in patterns if not p or p.startswith("/") or ".." in Path(p).parts]
    if wrong:
        raise InputError("a pattern leaves the source's folder", where="mmrec.toml: source.expect", value=wrong,
                         valid="patterns below it, as events/{day}/*.jsonl", next="edit mmrec.toml")  # fmt: skip
    return root or config.home, patterns


def missing(root: Path, patterns: list[str]) -> list[str]:
    """The patterns that match no file with something in it."""
    return [p for p in patterns if not any(f.is_file() and f.stat().st_size for f in root.glob(p))]
