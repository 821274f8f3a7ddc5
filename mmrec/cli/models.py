"""`mmrec models`: which versions there are, what one is, how two differ, and which serves.

In: typed words. Out: tables for people, JSON for programs. Trade-off: as nights.py.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from mmrec import config as settings
from mmrec.cli.common import HOME, Home, Json, app, cell, err, lake_of, out, show_json
from mmrec.errors import QualityError
from mmrec.screen import handed_over, progress

group = typer.Typer(no_args_is_help=True, help="Model versions: numbers, decisions, what each was made of.")
app.add_typer(group, name="models", rich_help_panel="The models")

Version = Annotated[str, typer.Argument(help="a version, or its alias")]
Override = Annotated[str, typer.Option("--override", help="why the gate is overruled; goes on record")]
Why = Annotated[str, typer.Option("--why", help="for people who look it up")]
Share = Annotated[float | None, typer.Option("--share", help="of the users that it serves first, as a canary")]
By = Annotated[str | None, typer.Option("--by", help="who asks; else who is logged in")]


@app.command("recipes", rich_help_panel="The models")
def recipes(home: Home = HOME, as_json: Json = False) -> None:
    """Recipes of a fit: what each changes, and what it reached and cost here."""
    from mmrec.recipes import recipes as told

    rows = told(settings.load(home), lake_of(home))
    if as_json:
        show_json(rows)
        return
    grid = Table("recipe", "ndcg@10", "minutes", "version", "unlike default")
    for r in rows:
        apart = r["wrong"] or ", ".join(f"{k} {_worded(v)}" for k, v in r["changed"].items())
        here = [_number(r["ndcg@10"]), r["minutes"], r["version"]] if r["version"] else ["not measured", "", ""]
        grid.add_row(*map(cell, (r["name"] + (" (next)" if r["next"] else ""), *here, apart)))
    out.print(grid)
    out.print(f"ndcg@10 is of rolling test windows of the newest version that was trained with it here; next: "
              f"mmrec train --recipe NAME --date D --home {home}", soft_wrap=True)  # fmt: skip


@group.command("list")
def listed(home: Home = HOME, as_json: Json = False) -> None:
    """Every version: who serves, who waits, their numbers and the gate's word."""
    from mmrec import versions

    rows = versions.listed(settings.load(home), lake_of(home))
    if as_json:
        show_json(rows)
        return
    grid = Table("version", "alias", "model", "as of", "ndcg@10", "gate", "nights")
    for r in rows:
        called = r["aliases"] + ["serves"] * (r["serves"] and "champion" not in r["aliases"])
        called += [] if r["share"] is None else [f"canary {r['share']:.0%}"]
        grid.add_row(*map(cell, (r["version"], ", ".join(called), r["name"] or r["kind"] or "",
                                 (r["as_of"] or "")[:10], _number(r["ndcg@10"]), r["gate"] or "",
                                 str(r["nights"]))))  # fmt: skip
    out.print(grid)
    lost = [r["version"] for r in rows if not r["on_disk"]]
    if lost:
        out.print(cell(f"not on this disk: version {', '.join(lost)}"))
    out.print(f"ndcg@10 is of each version's own rolling test windows, nights are those published with it; next: "
              f"mmrec models show VERSION --home {home}", soft_wrap=True)  # fmt: skip


@group.command()
def show(version: Version, home: Home = HOME, as_json: Json = False) -> None:
    """One version: what it was made of, its numbers beside the baselines', the gate's decisions, its files."""
    from mmrec import versions

    told = versions.shown(settings.load(home), lake_of(home), version)
    if as_json:
        show_json(told)
        return
    about = told["about"]
    out.print(cell(f"version {told['version']}" + (f" ({', '.join(told['aliases'])})" if told["aliases"] else "")
                   + f": {told['name']}, {told['kind']}, trained as of {about.get('as_of')}"))  # fmt: skip
    for protocol, by in sorted(told["metrics"].items()):
        grid = Table(protocol, *(names := [m for m in ("ndcg@10", "recall@10", "recall@20", "coverage@10")
                                           if any(m in v for v in by.values())]))  # fmt: skip
        for model, values in sorted(by.items(), key=lambda kv: -kv[1].get("ndcg@10", 0)):
            grid.add_row(cell(model), *(cell(_number(values.get(m))) for m in names))
        if names:
            out.print(grid)
    for name in ("config", "encoders", "fields", "data_versions", "features", "code", "blend", "parity"):
        if about.get(name):
            out.print(cell(f"{name}: {json.dumps(about[name], sort_keys=True)}"), soft_wrap=True)
    for d in told["decisions"]:
        out.print(cell(f"gate for {d['decided_for']}: {d['decision']}: {d['reason']}"), soft_wrap=True)
    for name, digest in sorted(told["files"].items()):
        out.print(cell(f"{digest[:12]}  {name}"))
    out.print(cell(f"sha256 {told['sha256']}, checked; nights published with it: {told['nights']}"
                   + (f", the last of {told['last_night']}" if told["nights"] else "")), soft_wrap=True)  # fmt: skip


@group.command()
def compare(one: Version, other: Version, home: Home = HOME, as_json: Json = False) -> None:
    """How two versions differ: their numbers, and what they were made of."""
    from mmrec import versions

    told = versions.compared(settings.load(home), lake_of(home), one, other)
    if as_json:
        show_json(told)
        return
    first, second = (r["version"] for r in told["versions"])
    grid = Table("protocol", "model", "metric", f"version {first}", f"version {second}", "difference")
    for r in told["metrics"]:
        grid.add_row(*map(cell, (r["protocol"], r["model"], r["metric"], _number(r["one"]), _number(r["other"]),
                                 f"{r['difference']:+.4f}")))  # fmt: skip
    if told["metrics"]:
        out.print(grid)
    else:
        out.print(cell(f"there are no test numbers that versions {first} and {second} both have"))
    if told["same_days"]:
        d = told["same_days"]
        out.print(cell(f"asked about the days from {d['since'][:10]} to {d['until'][:10]} without knowing them: "
                       f"ndcg@10 of version {d['ahead']} less that of {d['of']} is {d['difference']:+.4f} "
                       f"[{d['lo']:+.4f}, {d['hi']:+.4f}] over {d['cases']} users; {d['churn']:.0%} of the first ten "
                       "items differ"), soft_wrap=True)  # fmt: skip
    else:
        out.print(cell("the two were never asked for the same days"))
    apart = sorted({r["protocol"] for r in told["metrics"] if not told["same_windows"][r["protocol"]]})
    if apart:
        said = f"the test windows of {' and '.join(apart)} are not the same: a difference is of the windows, too"
        out.print(cell(said), soft_wrap=True)
    for name, values in told["differs"].items():
        for version, value in zip((first, second), values, strict=True):
            out.print(cell(f"{name} of {version}: {_worded(value)}"), soft_wrap=True)


@group.command()
def promote(
    version: Version, home: Home = HOME, override: Override = "", why: Why = "", by: By = None, share: Share = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Ask that a version serve: the gate decides, and --override says why it is overruled. Exit 3 where it is held.
    With --share it first serves a part of the users, beside what serves."""
    from mmrec import promotion, versions
    from mmrec.holding import login

    lake_of(home)
    config = settings.load(home)
    told = promotion.promote(config, versions.numbered(config, version), by=by or login(), override=override, why=why,
                             share=share)  # fmt: skip
    if as_json:
        show_json(told)
    elif told["decision"] == "promoted":
        said = "the gate is overruled: " if told["overruled"] else ""
        whom = "" if share is None else f" {share:.0%} of the users"
        out.print(cell(f"version {told['model_version']} serves{whom} from the next planned night on, in place of "
                       f"version {told['before']}; {said}{told['reason']}"), soft_wrap=True)  # fmt: skip
    if told["decision"] != "promoted":
        raise QualityError(f"version {told['model_version']} is held: {told['reason']}", where="the gate",
                           value=f"version {told['before']} goes on serving",
                           next=f"mmrec models promote {told['model_version']} --override WHY")


@group.command()
def rollback(home: Home = HOME, why: Why = "", by: By = None, as_json: Json = False) -> None:
    """Let serve again what served before; once more goes back one further."""
    from mmrec import promotion
    from mmrec.holding import login

    lake_of(home)
    told = promotion.rollback(settings.load(home), by=by or login(), why=why)
    if as_json:
        show_json(told)
        return
    out.print(cell(f"version {told['model_version']} serves from the next planned night on, in place of version "
                   f"{told['before']}; lists that are published stay: mmrec run --date D --force makes a day's anew"),
              soft_wrap=True)  # fmt: skip


@group.command()
def reconcile(home: Home = HOME, as_json: Json = False) -> None:
    """Make aliases in MLflow and the lake agree: an alias that was set by hand is a request, and the gate decides.
    Trainings that MLflow did not answer are registered first."""
    from mmrec import learn, promotion

    lake_of(home)
    config = settings.load(home)
    late = learn.caught_up(config, lambda *_: None)
    told = promotion.reconcile(config)
    if as_json:
        show_json(told | ({"caught_up": late} if late else {}))
        return
    for day, of_it in late.items():
        out.print(cell(f"the training of {day}: {handed_over(of_it)}"), soft_wrap=True)
    if "asked" in told:
        asked = told["asked"]
        out.print(cell(f"version {asked['model_version']} was given the alias champion in MLflow: {asked['decision']}: "
                       f"{asked['reason']}"), soft_wrap=True)  # fmt: skip
    if told.get("restored"):
        out.print("the alias champion was put back")
    if not told["answers"]:
        out.print("the registry does not answer: its aliases follow at the next reconcile")
    out.print(cell(f"version {told['model_version']} serves"))


@group.command("canary")
def canary_of(home: Home = HOME, as_json: Json = False) -> None:
    """What users chose of the lists of the version that serves a share of them, beside the others'."""
    from mmrec import chosen

    told = chosen.compared(lake_of(home))
    if as_json:
        show_json(told)
        return
    grid = Table("arm", "users who chose something new", "ndcg@10", "with a hit in the first ten")
    for arm, values in told["arms"].items():
        hits = "" if values["hits"] is None else f"{values['hits']:.1%}"
        grid.add_row(*map(cell, (arm, str(values["users"]), _number(values["ndcg@10"]), hits)))
    out.print(grid)
    ahead = "" if told["difference"] is None else (f": canary less main {told['difference']:+.4f} "
                                                   f"[{told['lo']:+.4f}, {told['hi']:+.4f}]")  # fmt: skip
    out.print(cell(f"version {told['version']} serves {told['share']:.0%} of the users, {told['nights']} nights so far"
                   f"{ahead}; next: mmrec models promote {told['version']}, or mmrec models rollback"),
              soft_wrap=True)  # fmt: skip


@group.command()
def reproduce(version: Version, home: Home = HOME, as_json: Json = False) -> None:
    """Train a version again from recorded tables, settings and seed, and compare numbers and files; exit 3 where they
    differ."""
    from mmrec import reproduced, versions

    lake_of(home)
    config = settings.load(home)
    with progress(err, as_json) as tell:
        told = reproduced.reproduce(config, versions.numbered(config, version), tell)
    if as_json:
        show_json(told)
    else:
        out.print(cell(f"version {told['version']}: {told['numbers']} numbers compared, the largest difference is "
                       f"{told['largest']:.1e}{' of ' + ', '.join(told['where']) if told['largest'] else ''}; same to "
                       f"the byte: {', '.join(told['same_files']) or 'no file'}; {told['seconds']:.0f} s"),
                  soft_wrap=True)  # fmt: skip
    if told["largest"] > reproduced.WITHIN or told["missing"] or not told["numbers"]:
        raise QualityError("the second training is not the first", where=f"version {told['version']}",
                           value=f"{told['largest']:.2e}, {told['missing']} numbers that one alone has",
                           valid=f"differences to {reproduced.WITHIN}, the same numbers",
                           next=f"mmrec models show {told['version']}")  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _worded(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
