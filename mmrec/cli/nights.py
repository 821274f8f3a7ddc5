"""Commands that run nights, stations and measurements.

In: typed words. Out: summaries. Trade-off: rooms are imported when a command runs, so that help is instant.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from mmrec import config as settings
from mmrec import dates, schema, screen
from mmrec.cli import common
from mmrec.cli.common import HOME, STATIONS, Day, Engine, Home, Json, app, err, out, show_json
from mmrec.errors import InputError
from mmrec.screen import progress
from mmrec.steps import STEPS


@app.command()
def init(
    home: Home = HOME,
    source: Annotated[str, typer.Option(help="builtin, movielens-small (or another size), amazon, files")] = "builtin",
    root: Annotated[Path | None, typer.Option(help="folder of the source")] = None,
    zone: Annotated[str, typer.Option(help="the shop's time zone")] = "UTC",
    seed: Annotated[int, typer.Option(help="seed of the built-in world")] = 0,
    size: Annotated[str, typer.Option(help="size of the built-in world: tiny, small or rich")] = "small",
    as_json: Json = False,
) -> None:
    """Make a home: mmrec.toml, empty tables with their constraints, and version 0, a popularity bundle."""
    from mmrec.run import make_home

    made = make_home(home, source=source, root=root, zone=zone, seed=seed, size=size)
    if as_json:
        show_json({"home": made.home, "tables": len(schema.TABLES), "model_version": "0"})
        return
    out.print(f"home {made.home} with {len(schema.TABLES)} tables and model version 0 (popularity)", soft_wrap=True)
    out.print(f"next: mmrec run --home {home} --date YYYY-MM-DD", soft_wrap=True)


@app.command()
def run(
    day: Day,
    home: Home = HOME,
    force: Annotated[bool, typer.Option(help="resolve anew, under a new run_id")] = False,
    replay: Annotated[bool, typer.Option(help="repeat from the recorded manifest and compare hashes")] = False,
    train: Annotated[bool | None, typer.Option("--train/--no-train", help="train now, or not at all")] = None,
    engine: Engine = None,
    as_json: Json = False,
) -> None:
    """Training if due, then the night. Of a published date: nothing, unless --force or --replay."""
    from mmrec import run as nights

    cfg, when = settings.load(home, engine=engine), dates.parse(day)
    with progress(err, as_json) as tell:
        result = (
            nights.replay(cfg, when, tell) if replay else nights.run(cfg, when, force=force, train=train, tell=tell)
        )
    show_json(result) if as_json else screen.print_run(out, result)


@app.command()
def backfill(
    start: Annotated[str, typer.Option("--from", help="first run_date")],
    end: Annotated[str, typer.Option("--to", help="last run_date, included")],
    home: Home = HOME,
    force: bool = False,
    engine: Engine = None,
    as_json: Json = False,
) -> None:
    """The night of every date of a range, oldest first; none of them trains."""
    from mmrec import run as nights

    cfg = settings.load(home, engine=engine)
    results = []
    with progress(err, as_json) as tell:
        for when in dates.days(dates.parse(start, "--from"), dates.parse(end, "--to"), cfg.zone):
            results.append(nights.run(cfg, when, force=force, train=False, tell=tell))
            if not as_json:
                screen.print_run(out, results[-1])
    if as_json:
        show_json(results)


@app.command()
def demo(
    data: Annotated[str, typer.Option(help="builtin or movielens-small")] = "builtin",
    source: Annotated[Path | None, typer.Option(help="folder of the data; none: it is downloaded")] = None,
    home: Home = Path("demo"),
    nights: Annotated[int, typer.Option(min=1, help="nights in a row")] = 4,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Nights on the built-in world, or on real films, ending with a few users' lists."""
    from mmrec import run as room

    with progress(err, as_json) as tell:
        result = room.demo(home, data=data, source=source, nights=nights, seed=seed, tell=tell)
    show_json(result) if as_json else screen.print_demo(out, home, result)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="jvm: a cold start of Spark; lake: a commit beside a plain Delta write; "
                                        "embed: encoders beside sentence-transformers and torch; "
                                        "train: training beside RecTools; topk: exact top K beside four "
                                        "libraries; recommend: a night's scoring, part by part; "
                                        "slate: what rules, diversity and draws cost beside the search; "
                                        "features: the feature job beside SQL by hand in DuckDB; "
                                        "ratings: the rating head beside biases, factors and neighbours; "
                                        "clicks: the click head beside places and rates, in the built-in world")],
    rounds: Annotated[int, typer.Option(min=1, help="of each side, interleaved; bench recommend has one; "
                                                     "seeds, of bench ratings and clicks")] = 3,
    rows: Annotated[int, typer.Option(min=1, help="rows of a commit, of bench lake")] = 1_000_000,
    source: Annotated[Path | None, typer.Option("--source", "--root",
                                                help="films as MovieLens has them, of bench embed and ratings; Amazon "
                                                     "sequences, of bench train")] = None,
    texts: Annotated[int, typer.Option(min=1, help="distinct texts, of bench embed")] = 50_000,
    pictures: Annotated[int, typer.Option(min=1, help="distinct pictures, of bench embed")] = 2_000,
    threads: Annotated[int, typer.Option(min=1, help="of every side, but of bench jvm and lake")] = 2,
    seconds: Annotated[float, typer.Option(min=0, help="of a side in a round, of bench train")] = 20.0,
    minutes: Annotated[float | None, typer.Option(min=0, help="of a side in all rounds, with the validation ndcg "
                                                              "reached after each, of bench train")] = None,
    peer: Annotated[list[str] | None, typer.Option(help="only beside this one, of bench train; repeatable")] = None,
    users: Annotated[int | None, typer.Option(min=8, help="of bench topk (8,192), of two others (100,000)")] = None,
    items: Annotated[int, typer.Option(min=10, help="of bench topk, where one case has ten times as many, "
                                                    "recommend and slate")] = 100_000,
    as_json: Json = False,
) -> None:
    """Measure a hot path beside its peers, after a check that all give the same answer."""
    from mmrec.bench import clicks, embed, features, jvm, lake, ratings, recommend, slate, topk, train

    films = {"source": source, "texts": texts, "pictures": pictures, "threads": threads}
    timed = {"source": source, "threads": threads, "seconds": seconds, "minutes": minutes,
             "only": tuple(peer or train.PEERS)}  # fmt: skip
    rooms = {"jvm": jvm.bench, "lake": partial(lake.bench, rows=rows), "embed": partial(embed.bench, **films),
             "train": partial(train.bench, **timed),
             "topk": partial(topk.bench, users=users or 8192, items=items, threads=threads),
             "recommend": lambda _, tell: recommend.bench(tell, users=users or 100_000, items=items, threads=threads),
             "slate": partial(slate.bench, users=users or 100_000, items=items), "features": features.bench,
             "ratings": partial(ratings.bench, root=source), "clicks": clicks.bench}  # fmt: skip
    if name not in rooms:
        raise InputError("no such benchmark", where="bench", value=name, valid=list(rooms), next="mmrec bench jvm")
    with progress(err, as_json) as tell:
        told = rooms[name](rounds, tell)
    tables = {"ratings": ratings.table, "clicks": clicks.table}
    if name in tables and not as_json:
        out.print(tables[name](told))
        return
    show_json(told) if as_json else screen.print_counts(out, f"bench {name}", told)


@app.command()
def benchmark(
    name: Annotated[str, typer.Argument(help="the set, as papers name it: beauty, sports, or any other")],
    source: Annotated[Path, typer.Option(help="folder of sequences.txt and, if there, items.jsonl")],
    seeds: Annotated[int, typer.Option(min=1, help="fits of the whole, each with a seed of its own")] = 3,
    recipe: Annotated[str, typer.Option(help="settings of a fit: a name or FILE.toml")] = "default",
    threads: Annotated[int, typer.Option(min=1)] = 2,
    ablation: Annotated[bool, typer.Option(help="fit once more without texts")] = True,
    test: Annotated[bool, typer.Option(help="read the test split, too")] = True,
    rivals: Annotated[bool, typer.Option(help="fit every rival, too: many minutes a seed")] = False,
    cold: Annotated[bool, typer.Option(help="also hide a tenth of the items and rank those: two more fits")] = False,
    as_json: Json = False,
) -> None:
    """One recipe on a published set: leave one out, all items ranked, beside what papers report."""
    from platformdirs import user_cache_path

    from mmrec.benchmark import benchmark as run

    with progress(err, as_json) as tell:
        told = run(name, source, user_cache_path("mmrec") / "encoders", tell, seeds=range(seeds), recipe=recipe,
                   threads=threads, ablation=ablation, test=test, rivals=rivals, cold=cold)  # fmt: skip
    show_json(told) if as_json else screen.print_benchmark(out, told)


@app.command()
def tune(
    minutes: Annotated[float, typer.Option(help="of the whole search")] = 30,
    home: Home = HOME,
    day: Annotated[str | None, typer.Option("--date", help="run_date of the home, YYYY-MM-DD")] = None,
    source: Annotated[Path | None, typer.Option(help="in place of a home: folder of sequences.txt and, if there, "
                                                     "items.jsonl")] = None,
    seed: Annotated[int, typer.Option(help="of what is drawn, and of every fit")] = 0,
    recipe: Annotated[str | None, typer.Option(help="settings to start from: a name or FILE.toml; none: the home's, or "
                                                    "default of a folder")] = None,
    name: Annotated[str | None, typer.Option(help="of the recipe that is found: recipes/NAME.toml of the home, "
                                                  "NAME.toml here of a folder; none: tuned, or the next free")] = None,
    to: Annotated[Path | None, typer.Option("--out", help="file of that recipe, in place of a name")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="at most, the start among them")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="none: as in mmrec.toml")] = None,
    engine: Engine = None,
    as_json: Json = False,
) -> None:
    """Search for a better recipe on validation alone; every trial goes to MLflow, the best into a file."""
    from platformdirs import user_cache_path

    from mmrec.tuning import tune as run

    kept = user_cache_path("mmrec")
    cfg = settings.load(home if source is None else kept / "tune", engine=engine)
    when = None if day is None else dates.parse(day)
    with progress(err, as_json) as tell:
        told = run(cfg, tell, minutes=minutes, when=when, source=source, cache=kept / "encoders", start=recipe,
                   seed=seed, name=name, out=to, threads=threads, trials=trials)  # fmt: skip
    show_json(told) if as_json else screen.print_counts(out, "tune", told)


@app.command()
def doctor(
    home: Home = HOME,
    engine: Engine = None,
    install: Annotated[bool, typer.Option("--install", help="get what can be had: Java, jars, the archive")] = False,
    as_json: Json = False,
) -> None:
    """What this machine lacks, and how to get it; exit 2 if something needed is missing."""
    from mmrec.doctor import examine

    found = examine(home, engine, install=install)
    if as_json:
        show_json({"ok": all(f["ok"] or not f["needed"] for f in found), "checks": found})
    else:
        screen.print_doctor(out, found)
    if any(f["needed"] and not f["ok"] for f in found):
        common.leave(2)


@app.command(hidden=True)
def learn(day: Day, home: Home = HOME, engine: Engine = None, as_json: Json = False) -> None:
    """train, evaluate, export, register and promote, in one process."""
    from mmrec.learn import chain

    with progress(err, as_json and not err.is_terminal) as tell:
        told = chain(settings.load(home, engine=engine), dates.parse(day), tell)
    show_json(told) if as_json else screen.print_counts(out, "learn", told)


@app.command()
def steps(
    names: Annotated[list[str], typer.Argument(help="stations, in the order to run")],
    day: Day,
    home: Home = HOME,
    engine: Engine = None,
    force: Annotated[bool, typer.Option(help="do it though the date is published")] = False,
    as_json: Json = False,
) -> None:
    """Stations one after the other, in one process with one engine session."""
    from mmrec import run as nights

    with progress(err, as_json) as tell:
        told = nights.stations(settings.load(home, engine=engine), names, dates.parse(day), force=force, tell=tell)
    show_json(told) if as_json else screen.print_counts(out, "steps", told)


def station(name: str, day: str, home: Path, engine: str | None, as_json: bool, **more: Any) -> None:
    """One station of a run_date, and its counts. `more`: settings for this once."""
    from mmrec import run as nights

    with progress(err, as_json) as tell:
        counts = nights.station(settings.load(home, engine=engine, **more), name, dates.parse(day), tell)
    show_json(counts) if as_json else screen.print_counts(out, name, counts)


def train(
    day: Day,
    home: Home = HOME,
    recipe: Annotated[str | None, typer.Option(help="settings of this fit, in place of mmrec.toml's train.recipe: one "
                                                    "of mmrec recipes, or FILE.toml")] = None,
    engine: Engine = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    more = {} if recipe is None else {"train": {"model": "champion", "recipe": recipe}}
    station("train", day, home, engine, as_json, **more)


def _command(name: str, summary: str) -> None:
    def command(day: Day, home: Home = HOME, engine: Engine = None, as_json: Json = False) -> None:
        station(name, day, home, engine, as_json)

    function = train if name == "train" else command
    app.command(name, help=f"{summary[0].upper()}{summary[1:]}.", rich_help_panel=STATIONS)(function)


for _step in STEPS:
    if _step.name != "features":  # has a word of its own behind it
        _command(_step.name, _step.summary)
