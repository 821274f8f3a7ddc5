"""Rules in words.

In: rules. Out: a line of English each, for tables and answers. Trade-off: of many values the first four are told.
"""

from __future__ import annotations

from typing import Any

from mmrec.recommend.rules import Match, Range, Rule


def worded(r: Rule) -> str:
    """A rule in a line, for people."""
    items = _match_worded(r.items) or "everything"
    body = {"exclude": f"nothing with {items}", "include": f"only what has {items}",
            "hold": f"nothing with {items} until it is approved" if r.items else "lists wait until they are approved",
            "boost": f"{r.places} places up: {items}", "cap": f"at most {r.most} with {items}",
            "quota": f"at least {r.least} with {items}", "pin": f"{items} at place {r.place}",
            "repeat": f"{items} again, {r.after} days after {' or '.join(r.events or ['any event'])}",
            }[r.kind]  # fmt: skip
    if r.each:
        body = f"at most {r.most} of each {r.each}" + (f" with {items}" if r.items else "")
    return body + (f", for users with {_match_worded(r.users)}" if r.users else "")


def _match_worded(match: Match) -> str:
    def one(name: str, wanted: Any) -> str:
        if isinstance(wanted, Range):
            low = "" if wanted.at_least is None else f" from {wanted.at_least:g}"
            return f"{name}{low}" + ("" if wanted.below is None else f" below {wanted.below:g}")
        return f"{name} {' or '.join(map(str, wanted[:4]))}" + (f" or {len(wanted) - 4} more" if wanted[4:] else "")

    return " and ".join(one(*pair) for pair in match.items())
