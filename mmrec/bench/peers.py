"""Environments of peers that can't live beside mmrec: made once by venv and pip, from a complete list of pins.

In: a name; `bench/<name>.txt` holds its pins, one a line, everything that is installed and nothing that isn't. Out: the
Python of an environment in the user's cache folder, kept by the digest of its list.
Packages come from where pip is configured to get them; nothing here says where.
Trade-off: an environment is whole or not there: one that was cut off is made anew, which downloads a few GB again.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_path

from mmrec.errors import InputError, TransientError
from mmrec.lake.jars import once

_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.+!-]*)")
_LISTS = Path(__file__).parent


def pinned(name: str) -> dict[str, str]:
    """Package -> version of the environment `name`.

    Raises: InputError: no such list, a line that is no pin, or a package twice.
    """
    file = _LISTS / f"{name}.txt"
    if not file.is_file():
        raise InputError("no such environment", where=str(_LISTS), value=name,
                         valid=sorted(p.stem for p in _LISTS.glob("*.txt")), next="mmrec bench --help")  # fmt: skip
    found: dict[str, str] = {}
    for n, line in enumerate(file.read_text().splitlines(), 1):
        pin = _PIN.fullmatch(line)
        if pin is None or pin[1] in found:
            raise InputError("this is not a list of pins", where=f"{file}, line {n}", value=line,
                             valid="package==version, each package once", next=f"edit {file}")  # fmt: skip
        found[pin[1]] = pin[2]
    return found


def environment(name: str, tell: Callable[[str, int, int], None], make: bool = True) -> Path:
    """The Python of the environment `name`; made on the first call.

    Args:
        tell: told of each package that pip takes up. make: False: only look whether it is there.

    Raises: InputError: as `pinned`. TransientError: pip could not get or install everything, with its last words; it
        may not be made, and is not there.
    """
    pins = pinned(name)
    file = _LISTS / f"{name}.txt"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    folder = user_cache_path("mmrec") / "peers" / f"{name}-{digest}"
    python, whole = folder / "bin" / "python", folder / "whole"
    with once(folder):
        if whole.is_file():
            return python
        if not make:
            raise TransientError("the peer's environment is not in the cache yet", where=str(folder),
                                 next="mmrec bench train")  # fmt: skip
        shutil.rmtree(folder, ignore_errors=True)
        try:
            _run([sys.executable, "-m", "venv", str(folder)], name, lambda _: None)
            taken = iter(range(1, len(pins) + 1))
            pip = [str(python), "-m", "pip", "--no-input", "--disable-pip-version-check"]

            def heard(line: str) -> None:
                if line.startswith(("Collecting ", "Processing ", "Requirement already satisfied: ")):
                    tell(f"bench: installing {name}, once", next(taken, len(pins)), len(pins))

            _run([*pip, "install", "--no-deps", "--progress-bar", "off", "-r", str(file)], name, heard)
            _run([*pip, "check"], name, lambda _: None)
            whole.touch()
        finally:
            if not whole.is_file():
                shutil.rmtree(folder, ignore_errors=True)
    return python


def _run(words: list[str], name: str, heard: Callable[[str], None]) -> None:
    last: deque[str] = deque(maxlen=12)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line.strip())
            heard(line.strip())
    if process.returncode:
        raise TransientError("the peer's environment can't be made", where=f"{' '.join(words[1:4])}, {name}",
                             value="\n".join(last)[-800:], valid="an index that pip reaches and that has every pin",
                             next="pip config list, then the same command again")  # fmt: skip
