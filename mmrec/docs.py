"""The data dictionary, written from schema.py: `docs/tables.md`.

In: schema.py. Out: Markdown. `--check` fails where the file is not what the schema says.
Trade-off: generated and committed, so that it reads on the web; the check keeps the two from drifting.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mmrec.lake.sql import DERIVED
from mmrec.schema import TABLES, rules

TARGET = Path(__file__).parents[1] / "docs" / "tables.md"


def dictionary() -> str:
    """The whole page."""
    lines = ["# Tables", "", "Made from `mmrec/schema.py` by `make docs`. Grain says what one row is; *run* marks",
             "metadata of the run, which content hashes leave out.", ""]  # fmt: skip
    for t in TABLES.values():
        lines += [f"## {t.name}", "", f"One row is {t.grain}. {t.comment}", "",
                  f"Written by `{t.step}` ({t.mode}{f', partitioned by {t.partition}' if t.partition else ''}); "
                  f"key {', '.join(f'`{k}`' for k in t.key)}; in SQL `{t.view}`; kept {t.retention_days} days.", "",
                  "| column | type | what it is |", "|---|---|---|"]  # fmt: skip
        lines += [
            f"| `{c.name}` | {c.type + ', may be null' * c.nullable + ', *run*' * c.meta} | {c.described} |"
            for c in t.columns
        ]
        judged = rules(t.name)
        if judged:
            lines += ["", "A delivered row comes in if it keeps its rules; `ops.quarantine` names the first it broke:",
                      "", "| rule | column | of a row that is kept |", "|---|---|---|"]  # fmt: skip
            lines += [f"| `{rule.name}` | `{c.name}` | {rule.says} |" for c, rule in judged]
        if t.checks:
            lines += ["", "Checks: " + "; ".join(f"`{condition}`" for condition in t.checks.values()) + "."]
        lines.append("")
    lines += ["## Views made by join", "", *(f"- `{name}`: {what}." for name, (what, _) in DERIVED.items()), ""]
    return "\n".join(lines)


def main() -> None:
    """Write the page, or with `--check` exit 1 where it is out of date."""
    if "--check" in sys.argv:
        if not TARGET.is_file() or TARGET.read_text() != dictionary():
            sys.exit("docs/tables.md is not what mmrec/schema.py says; next: make docs")
    else:
        TARGET.write_text(dictionary())


if __name__ == "__main__":
    main()
