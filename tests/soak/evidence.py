"""Figures of a soak, kept with the commit and the command that gave them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any


def keep(told: dict[str, Any], command: list[str], out: Path | None) -> dict[str, Any]:
    """`told` with `commit` and `command`; written to `out`, if one is named."""
    about = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    told = told | {"commit": about, "command": "python -m " + " ".join(command)}
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(told, indent=1) + "\n")
    return told
