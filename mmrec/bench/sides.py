"""A side of a benchmark: a process of its own that works when it is told to and waits while another does.

In: the words that start it. Out: an answer an order, a line of JSON each way.
Trade-off: an order is answered in full before the next; nothing is told of the way there.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from mmrec.errors import TransientError


class Side:
    """See the module. Ended with its `with` block.

    Args:
        where: what an error says of it. words: command line. log: a new file for its stderr. env: more environment.
    """

    def __init__(self, where: str, words: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.where = where
        self.said = log.open("w+")
        self.process = subprocess.Popen(list(words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said,
                                        text=True, env={**os.environ, **(env or {})})  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.said.close()

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """What it answers when the order is done.

        Raises: TransientError: it ended, or said something else; with its last words.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        if not line.startswith("{"):
            self.said.seek(0)
            raise TransientError("a side failed", where=self.where, next="mmrec doctor",
                                 value=(line + self.said.read()).strip()[-800:])  # fmt: skip
        return json.loads(line)
