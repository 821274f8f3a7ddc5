"""The three ways a step can fail, each with the exit code that Airflow acts on.

In: what went wrong, where, the value, the valid values, the next command to type.
Out: an exception whose text holds all of them, in that order.
Trade-off: three classes only; a finer distinction belongs in the message, because a scheduler can do no
more than stop for a person (2, 3) or try again (75).
"""

from __future__ import annotations

import errno
import re
from typing import Any


class MmrecError(Exception):
    """Base of the three; never raised itself.

    Args:
        what: one sentence that says what is wrong.
        where: table, column, row, file or run_date.
        value: the offending value, shown with repr.
        valid: the values that would have been right.
        next: the next command to type.
        report: named details a program may read (kept out of the message).
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        value: Any = None,
        valid: Any = None,
        next: str | None = None,
        report: dict[str, Any] | None = None,
    ) -> None:
        self.what, self.where, self.value, self.valid, self.next = what, where, value, valid, next
        self.report = report or {}
        parts = [what]
        if where is not None:
            parts.append(f"  where: {where}")
        if value is not None:
            parts.append(f"  value: {value!r}")
        if valid is not None:
            parts.append(f"  valid: {valid if isinstance(valid, str) else ', '.join(map(str, valid))}")
        if next is not None:
            parts.append(f"  next:  {next}")
        super().__init__("\n".join(parts))


class InputError(MmrecError):
    """The request or the configuration is wrong: a person must change it (exit 2)."""

    exit_code = 2


class QualityError(MmrecError):
    """The data or the model is not good enough to publish: yesterday's list stays (exit 3)."""

    exit_code = 3


class TransientError(MmrecError):
    """Something outside failed in a way that may pass: worth a retry (exit 75)."""

    exit_code = 75


_LOST = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV}
_SAID = re.compile(r"No space left on device|Disk quota exceeded|Input/output error|Read-only file system|Stale file "
                   r"handle|Connection timed out|Connection refused|Service Unavailable|SlowDown|"
                   r"CANNOT_CREATE_LOG_PATH|Error while sending or receiving|"
                   r"Answer from Java side is empty")  # fmt: skip


def lost_store(error: BaseException, where: str | None = None) -> TransientError | None:
    """A full or failing disk or store, in mmrec's words, however an engine tells of it; None: another kind of error."""
    if isinstance(error, MmrecError):
        return None
    said = _SAID.search(str(error))
    if not said and not (isinstance(error, OSError) and error.errno in _LOST):
        return None
    return TransientError(
        "the disk or store failed; nothing half-written is visible",
        where=where,
        value=said[0] if said else str(error),
        valid="a store with room that answers",
        next="make room or mend it, then run it again",
    )
