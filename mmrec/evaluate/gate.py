"""The gate: may a challenger become champion? Decided on validation numbers, never on the test.

In: rows of ops.metrics of the challenger and of the champion it meets. Out: a decision, its reasons in words, and the
numbers it rests on.
Trade-off: the champion's numbers come from its own training's validation windows, which ended earlier; the tolerance
covers what the windows differ by.
"""

from __future__ import annotations

from typing import Any

_METRIC = "ndcg@10"
_BASELINES = ("popularity", "item_knn")
_TOLERANCE = 0.95  # a challenger may reach this share of the champion's number
_COVERAGE, _LEAST = "coverage@10", 0.5  # of the catalogue, of which it may reach this share of the champion's
_BIAS, _MOST = "popularity_bias@10", 1.5  # of what people choose: 1, or so many times the champion's
_TOO_GOOD = 0.95  # an ndcg@10 above this is a leak until somebody shows that it isn't
_PROTOCOLS = ("rolling", "per_user")


def decide(
    rows: list[dict[str, Any]], challenger: str, champion: str, own_name: str = "champion"
) -> tuple[str, str, dict[str, float]]:
    """("promoted" or "held", reason, numbers).

    Args:
        rows: ops.metrics of both versions. champion: "0" while popularity is served.
        own_name: which model the challenger is: a baseline in its place need not be better than itself.
    """
    value, covered, popular = ({(r["model_version"], r["protocol"], r["model"]): r["value"] for r in rows
                       if r["split"] == "validation" and r["slice"] == "all" and r["metric"] == metric}
                      for metric in (_METRIC, _COVERAGE, _BIAS))  # fmt: skip
    numbers: dict[str, float] = {}
    held, passed = [], []
    for protocol in _PROTOCOLS:
        own = value.get((challenger, protocol, "champion"))
        if own is None:
            held.append(f"{protocol}: no validation {_METRIC} of version {challenger}")
            continue
        numbers[f"{protocol}/challenger"] = own
        if own > _TOO_GOOD:
            held.append(f"{protocol}: {own:.4f} is too good to be true")
        for name in (n for n in _BASELINES if n != own_name):
            other = value.get((challenger, protocol, name))
            if other is None:
                held.append(f"{protocol}: no number of {name}")
                continue
            numbers[f"{protocol}/{name}"] = other
            (passed if own > other else held).append(f"{protocol}: {own:.4f} against {name} {other:.4f}")
        before = value.get((champion, protocol, "champion"))
        if before is None and champion != "0":
            held.append(f"{protocol}: no number of champion {champion}")
        if before is not None:
            numbers[f"{protocol}/champion"] = before
            (passed if own >= _TOLERANCE * before else held).append(
                f"{protocol}: {own:.4f} against champion {champion} {before:.4f}"
            )
        reached, had = (covered.get((v, protocol, "champion")) for v in (challenger, champion))
        if had is not None:
            numbers[f"{protocol}/champion/{_COVERAGE}"] = had
            numbers[f"{protocol}/challenger/{_COVERAGE}"] = reached = 0.0 if reached is None else reached
            if not reached >= _LEAST * had:
                held.append(f"{protocol}: it lists {reached:.1%} of the catalogue, champion {champion} {had:.1%}")
        reached, had = (popular.get((v, protocol, "champion")) for v in (challenger, champion))
        if had is not None and reached is not None:
            numbers[f"{protocol}/champion/{_BIAS}"], numbers[f"{protocol}/challenger/{_BIAS}"] = had, reached
            if not reached <= max(1.0, _MOST * had):
                held.append(f"{protocol}: its lists are {reached:.2f} times as popular as what people choose, "
                            f"champion {champion}'s {had:.2f}")  # fmt: skip
    return ("held", "; ".join(held), numbers) if held else ("promoted", "; ".join(passed), numbers)
