"""What a person sees at the end of a run: rich tables of the summaries that `run` returns.

In: summaries. Out: text on a console. Trade-off: nothing is computed here, so JSON and screen can't disagree.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmrec import config as settings
from mmrec.lake.store import Lake

_COLUMNS = ("recall@10", "ndcg@10", "recall@20", "ndcg@20", "mrr@10", "coverage@10")


def print_counts(out: Console, name: str, counts: dict[str, Any]) -> None:
    """A station's counts, a line each; of a dictionary, a line an entry."""
    if not counts:
        out.print(f"{name}: nothing to do")
    for key, value in counts.items():
        if not isinstance(value, dict):
            out.print(f"{name} {key}: {value}", highlight=False, soft_wrap=True)
            continue
        for inner, number in value.items():
            out.print(f"{name} {key} {inner}: {number}", highlight=False, soft_wrap=True)


def print_doctor(out: Console, found: list[dict[str, Any]]) -> None:
    """What was looked at, what was found, and the command that gets what is missing."""
    grid = Table()
    for head in ("what", "for", "result", "found", "to get it"):
        grid.add_column(head, overflow="fold")
    for f in found:
        word = "[green]ok[/]" if f["ok"] else "[bold red]missing[/]" if f["needed"] else "[yellow]missing[/]"
        grid.add_row(f["what"], f["for"], word, Text(str(f["found"])), Text(f["get"] if not f["ok"] else ""))
    out.print(grid)
    bad = [f for f in found if f["needed"] and not f["ok"]]
    out.print("all that is needed is here" if not bad else f"[bold red]{len(bad)} missing[/]: see the last column")


def print_run(out: Console, result: dict[str, Any]) -> None:
    """One night: what was published, how long each station took, how good the model is."""
    word = (
        "replayed, the same content hash"
        if result.get("replayed")
        else ("published" if result["published"] else "published already, nothing to do")
    )
    out.print(
        f"[bold]{result['run_date']}[/] {word}: {result['lists']} lists from {result['items']} items, "
        f"model version {result['model_version']}, run {result['run_id']}",
        highlight=False,
        soft_wrap=True,
    )
    training = result["counts"].get("training", {})
    if training.get("failed"):
        out.print(f"[yellow]training failed (exit {training['failed']}); the lists are the champion's[/]")
    earlier = result["counts"].get("caught_up", {}) | training.get("caught_up", {})
    for day, told in (earlier | ({result["run_date"]: training} if "waits" in training else {})).items():
        out.print(Text(f"the training of {day}: {handed_over(told)}"), soft_wrap=True)
    spent = "  ".join(f"{k} {v:.1f}" for k, v in result["seconds"].items())
    out.print(f"  seconds: {spent}; peak memory {result['peak_memory_mb']} MB", highlight=False)


def handed_over(told: dict[str, Any]) -> str:
    """What came of a training that MLflow did not answer, or of handing it over later."""
    if "waits" in told:
        return f"{told['waits']}; it waits for the next run, or mmrec models reconcile"
    if "failed" in told:
        return f"can't be handed over: {told['failed']}"
    return f"version {told['promote']['model_version']}, {told['promote']['decision']}: {told['promote']['reason']}"


def print_metrics(out: Console, result: dict[str, Any]) -> None:
    """Test metrics, a table a protocol."""
    for protocol, models in result["metrics_by_protocol"].items():
        grid = Table(title=f"test, {protocol}, full catalogue (as of {result['metrics_of']})")
        grid.add_column("model")
        shown = [c for c in _COLUMNS if any(c in m for m in models.values())]
        for column in shown:
            grid.add_column(column, justify="right")
        for model, values in sorted(models.items(), key=lambda m: -m[1].get("ndcg@10", 0)):
            grid.add_row(model, *(f"{values[c]:.4f}" if c in values else "" for c in shown))
        out.print(grid)


def print_benchmark(out: Console, told: dict[str, Any]) -> None:
    """What was reached, between the published rows and the rivals that were fitted here, and what each part adds."""
    split = "test" if "test" in told else "validation"
    grid = Table(title=f"{told['name']}, {split}: {told['settings']['users']} users, {told['settings']['items']} items")
    for head in ("model", "recall@10", "ndcg@10", "source"):
        grid.add_column(head, justify="left" if head in ("model", "source") else "right", overflow="fold")
    own, low_high = told[split], told[split]["interval"]
    rows = [(r["recall@10"], r["model"], r["ndcg@10"], r["source"]) for r in told["published"]]
    about = f"{len(told['seeds'])} seeds, {told['minutes']:g} minutes a fit; 95% of users {low_high['recall@10']}"
    rows.append((own["recall@10"], "mmrec", own["ndcg@10"], about))
    rows += [(each[split]["recall@10"], name, each[split]["ndcg@10"],
              f"fitted here, {each['minutes']:g} minutes a fit: {each['settings']}")
             for name, each in told["rivals"].items()]  # fmt: skip
    for recall, model, ndcg, source in sorted(rows, key=lambda r: r[0]):
        style = "bold" if model == "mmrec" else ""
        grid.add_row(model, f"{recall:.4f}", "" if ndcg is None else f"{ndcg:.4f}", Text(source), style=style)
    out.print(grid)
    for row, each in told["ablation"].items():
        numbers = ", ".join(f"{m} {each[split][m]:.4f}" for m in ("recall@10", "ndcg@10"))
        out.print(f"{row}: {numbers}", highlight=False)
    if (cold := told["cold"]) is not None:
        out.print(f"{cold['items']} items hidden, {cold['cases']} users asked: recall@20 "
                  f"{cold['champion']['recall@20']:.4f}, content nearest neighbours "
                  f"{cold['content_nn']['recall@20']:.4f}, {cold['ratio']:g} times", highlight=False)  # fmt: skip


def print_demo(out: Console, home: Path, result: dict[str, Any]) -> None:
    """The nights, the metrics, a few users' lists, where things are, what to try next."""
    from mmrec.monitor.show import render, user_page

    for night in result["nights"]:
        print_run(out, night)
    print_metrics(out, result)
    config = settings.load(home)
    lake = Lake(config.lake)
    for user in example_users(lake, result["run_date"]):
        out.print(render(user_page(lake, user, None, config.zone)))
    out.print(f"tables: {config.lake}\nreport: {config.home / 'reports' / result['run_date'] / 'report.html'}\nnext:")
    user = example_users(lake, result["run_date"])[0]
    for command in (
        f"mmrec show {user} --home {home}",
        f'mmrec sql --home {home} "select source, count(*) from latest_recommendations group by 1"',
        f"mmrec run --home {home} --date {result['run_date']} --replay",
    ):
        out.print(f"  .venv/bin/{command}", highlight=False, soft_wrap=True)


def example_users(lake: Lake, run_date: str, n: int = 3) -> list[str]:
    """Users of a night whose histories are neither the longest nor empty: quartiles by length."""
    from mmrec import dates

    rows = lake.day("gold.user_sequences", dates.parse(run_date), columns=["user_id", "n_interactions"])
    rows = rows.sort_by([("n_interactions", "ascending"), ("user_id", "ascending")])
    ids = rows["user_id"].to_pylist()
    return [ids[len(ids) * (i + 1) // (n + 1)] for i in range(n)] if len(ids) > n else ids


class progress:
    """Bars with rate and time left on a terminal; a line a station elsewhere; nothing beside JSON."""

    def __init__(self, err: Console, quiet: bool) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.err, self.quiet = err, quiet
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=err,
            transient=True,
            disable=quiet or not err.is_terminal,
        )
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Any:
        self.bars.start()
        return self.tell

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def tell(self, what: str, done: int, of: int) -> None:
        if of < 0:  # a finished station
            if not self.quiet and not self.err.is_terminal:
                self.err.print(f"{what}: {done / 1000:.1f} s", highlight=False)
            return
        if what not in self.tasks:
            for task in self.tasks.values():
                self.bars.update(task, visible=False)
            self.tasks[what] = self.bars.add_task(what, total=of or None, rate="")
        task = self.tasks[what]
        self.bars.update(task, completed=done, total=of or None)
        speed = self.bars.tasks[self.bars.task_ids.index(task)].speed
        self.bars.update(task, rate=f"{speed:,.0f}/s" if speed else "")
        if of and done >= of:
            self.bars.update(task, visible=False)
