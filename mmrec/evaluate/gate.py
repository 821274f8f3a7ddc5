"""The gate: may a version serve? Decided on the days before it was trained, which its settings were not chosen on.

In: what it and its rivals made of these days (contest.py), what the two bundles cost, thresholds. Out: a decision, its
reasons in words, and the numbers it rests on.
It must not be worse than popularity, item-kNN and the champion: neither beyond chance (paired bootstrap over users) nor
by more than a share; and better than popularity, while that serves. What accuracy does not tell has bounds beside the
champion's.
Trade-off: of two that are alike the newer serves, because it knows newer days; by chance that is the worse one now and
then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrec.config import GateConfig
from mmrec.evaluate.contest import METRIC, SELF, Contest, version_named

BASELINES = ("popularity", "item_knn")
_COVERAGE, _BIAS = "coverage@10", "popularity_bias@10"
# bound, what costs nobody anything, words
_COST = {"ms_per_user": ("latency", 5.0, "it takes {:.1f} ms a user, champion {} {:.1f}"),
         "bytes": ("size", 1e8, "it has {:.0f} bytes, champion {} {:.0f}")}  # fmt: skip


def decide(
    asked: GateConfig, contest: Contest | None, champion: str, *, own_name: str = SELF, samples: int = 2000,
    costs: Mapping[str, Mapping[str, float]] | None = None,
) -> tuple[str, str, dict[str, float]]:  # fmt: skip
    """("promoted" or "held", reason, numbers).

    Args:
        contest: None: the version was never measured. champion: "0" while popularity is served.
        own_name: which model the version is: a baseline in its place need not be better than itself.
        costs: "own" and "champion" -> ms_per_user, bytes; what is not there is not compared.
    """
    if not asked.on:
        return "promoted", "the gate is off (mmrec.toml: gate.on)", {}
    if contest is None:
        return "held", "it was never measured on the days before its training", {}
    held, passed = list[str](), list[str]()
    own = contest.of(SELF)[METRIC].to_numpy()
    numbers: dict[str, float] = {"cases": float(len(own))}
    if len(own) < asked.least:
        days = (contest.until - contest.since).days
        return "held", (f"{len(own)} users chose something new in the {days} days before it was trained; "
                        f"the gate needs {asked.least}"), numbers  # fmt: skip
    value = numbers["challenger"] = float(own.mean())
    if not value <= asked.too_good:
        held.append(f"{value:.4f} is too good to be true")
    for name in (n for n in BASELINES if n != own_name):
        found = contest.difference(name, samples=samples)
        if found is None:
            held.append(f"no number of {name}")
            continue
        said = _said(numbers, value, name, name, found)
        worse = found[0] <= 0 if (name, champion) == ("popularity", "0") else _worse(asked, value, found)
        (held if worse else passed).append(said)
    if champion != "0":
        _against(asked, contest, champion, samples, numbers, held, passed)
        _costs(asked, costs or {}, champion, numbers, held)
    return ("held", "; ".join(held), numbers) if held else ("promoted", "; ".join(passed), numbers)


def _against(
    asked: GateConfig, contest: Contest, champion: str, samples: int, numbers: dict[str, float], held: list[str],
    passed: list[str],
) -> None:  # fmt: skip
    name = version_named(champion)
    found = contest.difference(name, samples=samples)
    if found is None and champion in contest.unmeasured:  # it can't serve, either
        passed.append(f"champion {champion} can't be asked: {contest.unmeasured[champion]}")
        return
    if found is None:
        held.append(f"no number of champion {champion}: the two were never asked for the same days")
        return
    value = numbers["challenger"]
    said = _said(numbers, value, f"champion {champion}", "champion", found)
    (held if _worse(asked, value, found) else passed).append(said)
    own, theirs = contest.lists[SELF], contest.lists[name]
    reached, had = own.get(_COVERAGE, 0.0), theirs.get(_COVERAGE, 0.0)
    numbers |= {f"challenger/{_COVERAGE}": reached, f"champion/{_COVERAGE}": had}
    if not reached >= asked.coverage * had:
        held.append(f"it lists {reached:.1%} of the catalogue, champion {champion} {had:.1%}")
    if _BIAS in own and _BIAS in theirs:
        reached, had = own[_BIAS], theirs[_BIAS]
        numbers |= {f"challenger/{_BIAS}": reached, f"champion/{_BIAS}": had}
        if not reached <= max(1.0, asked.popularity_bias * had):
            held.append(f"its lists are {reached:.2f} times as popular as what people choose, "
                        f"champion {champion}'s {had:.2f}")  # fmt: skip
    cold = contest.difference(name, "cold_items", samples)
    if cold is not None and cold[3] >= asked.least:
        mean, _, hi, n = cold
        numbers |= {"cold_items/difference": mean, "cold_items/cases": float(n)}
        if hi < 0:
            held.append(f"cold items: {mean:+.4f} [{cold[1]:+.4f}, {hi:+.4f}] against champion {champion}, {n} users")
    churn = numbers["churn@10"] = contest.churn(name)
    if not churn <= asked.churn:
        held.append(f"{churn:.0%} of a list's first ten would be others than champion {champion}'s")


def _costs(
    asked: GateConfig, costs: Mapping[str, Mapping[str, float]], champion: str, numbers: dict[str, float],
    held: list[str],
) -> None:  # fmt: skip
    for name, (bound, free, words) in _COST.items():
        own, had = (costs.get(side, {}).get(name) for side in ("own", "champion"))
        if own is None or had is None:
            continue
        numbers |= {f"challenger/{name}": own, f"champion/{name}": had}
        if not own <= max(free, getattr(asked, bound) * had):
            held.append(words.format(own, champion, had))


def _worse(asked: GateConfig, value: float, found: tuple[Any, ...]) -> bool:
    mean, _, hi, _ = found
    return not (hi >= 0 and mean >= -asked.loss * (value - mean))


def _said(numbers: dict[str, float], value: float, told: str, key: str, found: tuple[Any, ...]) -> str:
    mean, lo, hi, n = found
    numbers |= {key: value - mean, f"{key}/difference": mean, f"{key}/lo": lo, f"{key}/hi": hi}
    return f"{value:.4f} against {told} {value - mean:.4f}, {mean:+.4f} [{lo:+.4f}, {hi:+.4f}] of {n} users"
