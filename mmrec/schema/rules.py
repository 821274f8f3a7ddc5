"""What a delivered row must keep to come into silver: rules, declared beside the columns.

In: nothing. Out: `rule(test, ...)`, `Rule`, `TESTS`. features/silver.py makes one expression of a table's rules; the
data dictionary and `mmrec tables` show them in words.
Trade-off: a rule looks at one column of one row, and at what stands in for it; what needs other rows of the delivery is
a feature (features/suspects.py), not a rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# test -> (name in ops.quarantine, what a kept row's column does), in the order in which they are applied: the first
# broken one names the row's fault; within a test, columns come in the order of delivery
TESTS: dict[str, tuple[str, str]] = {
    "parsed": ("parse_error", "is null: the row could be parsed"),
    "not_blank": ("missing_key", "is not empty"),
    "moment": ("bad_timestamp", "is a time in ISO 8601, where given"),
    "dated": ("bad_timestamp", "is given, or what stands in for it"),
    "in_range": ("time_out_of_range", "lies from source.earliest to a day after the last ingest"),
    "number": ("bad_number", "is a finite number, where given"),
    "numeral": ("bad_number", "is a number, where given"),
    "whole": ("bad_whole", "is a whole number from {}"),
    "within": ("bad_share", "lies within {} and {}, where given"),
    "object": ("bad_json", "is a JSON object, where given"),
    "names": ("bad_json", "is a JSON list of texts, where given"),
    "one_of": ("unknown_value", "is one of {}"),
    # its verdict is final, so it comes before the one that is not
    "first": ("duplicate", "is 0: the same row stands nowhere earlier in its file"),
    "known": ("unknown_item", "is in {}, tonight or on a later night"),
}


@dataclass(frozen=True)
class Rule:
    """One condition of one column.

    Attributes:
        name: what ops.quarantine calls it. test: one of `TESTS`, which silver.py compiles. args: the test's own.
    """

    name: str
    test: str
    args: tuple[Any, ...] = ()

    @property
    def says(self) -> str:
        """What the column of a kept row does, in words."""
        words, holes = TESTS[self.test][1], TESTS[self.test][1].count("{}")
        return words.format(*(self.args if holes == len(self.args) else (", ".join(map(str, self.args)),)))

    @property
    def final(self) -> bool:
        """Whether a verdict stands: a row that names what is not known yet is looked at again every night."""
        return self.test != "known"


def rule(test: str, *args: Any, name: str | None = None) -> Rule:
    """A rule that applies `test`; KeyError, when the schema is imported, where there is no such test.

    Args:
        name: what ops.quarantine calls it, where that is not the test's usual name.
    """
    return Rule(name or TESTS[test][0], test, args)
