"""The list of stations: what each is called, reads, writes, and where its function is.

In: nothing. Out: `STEPS`, in the order of the night, and `step(name)`. The command line, jobs, DAGs and docs are
made from this list; importing it loads no engine.
Trade-off: functions are named by path and imported when called, so a typo shows in a test, not at import.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from mmrec.errors import InputError


@dataclass(frozen=True)
class Step:
    """One station. `function` is "module:name", called with a `night.Night`; it returns counts for the log."""

    name: str
    summary: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    function: str
    nightly: bool = True

    def load(self) -> Callable[[Any], dict[str, Any]]:
        module, name = self.function.split(":")
        return getattr(import_module(module), name)


_SILVER = ("silver.interactions", "silver.items", "silver.users", "silver.relations", "silver.impressions",
           "silver.wishes")  # fmt: skip
_BRONZE = tuple(t.replace("silver", "bronze") for t in _SILVER)

STEPS: tuple[Step, ...] = (
    Step("world", "write what the built-in world delivers before run_date", ("gold.recommendations",), (),
         "mmrec.night:world"),
    Step("ingest", "new files and rows into bronze, once", (),
         (*_BRONZE, "bronze.files", "bronze.media", "ops.schema_changes", "ops.quarantine"), "mmrec.night:ingest"),
    Step("validate", "bronze to silver; bad rows to quarantine", _BRONZE, (*_SILVER, "ops.quarantine"),
         "mmrec.night:validate"),
    Step("embed", "encode new or changed content; say who is listed twice", ("silver.items", "bronze.media"),
         ("gold.item_embeddings", "silver.item_groups", "ops.quarantine"), "mmrec.encoding:embed"),
    Step("train", "fit the models that evaluation asks for, and the one that is served",
         ("silver.interactions", "silver.items", "silver.item_groups", "gold.item_embeddings"), (), "mmrec.learn:train",
         nightly=False),
    Step("evaluate", "rank the full catalogue beside the baselines", ("silver.interactions",), ("ops.metrics",),
         "mmrec.learn:evaluate", nightly=False),
    Step("export", "ONNX bundle with one digest, checked against torch", (), (), "mmrec.learn:export", nightly=False),
    Step("register", "bundle into MLflow's registry as challenger", (), (), "mmrec.learn:register", nightly=False),
    Step("promote", "the gate: challenger becomes champion, or is held with reasons", ("ops.metrics",),
         ("ops.promotions", "ops.serving"), "mmrec.learn:promote", nightly=False),
    Step("plan", "pin everything the night reads", _SILVER, (), "mmrec.night:plan"),
    Step("features", "fuse behaviour and content as of run_date", _SILVER,
         ("gold.user_sequences", "gold.item_features", "gold.user_profiles", "ops.suspects"), "mmrec.night:features"),
    Step("recommend", "score every user and stage the lists",
         ("gold.user_sequences", "gold.item_features", "gold.item_embeddings", "silver.item_groups"),
         ("gold.user_vectors",),
         "mmrec.night:recommend"),
    Step("publish", "audit the staged lists and commit them, once", (), ("gold.recommendations", "ops.runs"),
         "mmrec.publish:publish"),
    Step("monitor", "metrics, freshness and report.html", ("gold.recommendations",),
         ("ops.metrics", "ops.freshness", "ops.alerts", "ops.rule_drops"),
         "mmrec.night:monitor"),
)  # fmt: skip


def step(name: str) -> Step:
    """The station called `name`; InputError names those there are."""
    for s in STEPS:
        if s.name == name:
            return s
    raise InputError("no such step", where="steps", value=name, valid=[s.name for s in STEPS], next="mmrec --help")
