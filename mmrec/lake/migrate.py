"""`mmrec migrate`: declared changes that a table can't absorb, each table in one transaction.

In: a lake, and the changes of schema/changes.py. Out: what differs and what would bridge it; or tables rewritten in
the form the schema has now, staged and audited like any write, and rows of ops.schema_changes.
Readers see the old table or the new one. Its older versions stay readable, under today's names (past.py). The
rewrite moves the fence of every partition, so that a night that was planned before it is refused.
Trade-off: a table is read and written whole, partition by partition, because columns of files have names; the commit is
refused if anything at all was committed since the read, and is then done again.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from mmrec import schema
from mmrec.errors import InputError, QualityError
from mmrec.lake import commit, evolve, log, past
from mmrec.lake.audit import Audited, audit
from mmrec.lake.evolve import Difference, Form
from mmrec.lake.stage import stage
from mmrec.lake.store import Lake
from mmrec.schema import changes
from mmrec.schema.changes import Change


@dataclass(frozen=True)
class Plan:
    """What a table needs. `steps` rewrite it; `added` is absorbed without; nothing declared bridges `left`."""

    table: str
    steps: tuple[Change, ...]
    added: tuple[Difference, ...]
    left: tuple[Difference, ...]

    def to_json(self) -> dict[str, Any]:
        told = [d for d in self.added if d.change != "properties"]
        return {"table": self.table, "steps": [vars(s) for s in self.steps], "added": [vars(d) for d in told],
                "left": [vars(d) for d in self.left]}  # fmt: skip


def plan(lake: Lake) -> list[Plan]:
    """Every table that differs from the schema, in the schema's order."""
    plans = []
    found = evolve.different(Lake(lake.root))
    for name in dict.fromkeys(d.table for d in found):
        own = [d for d in found if d.table == name]
        steps, left = _bridge(lake, name) if any(not d.additive for d in own) else ((), ())
        if not steps:  # a CHECK that rows break is known to these alone
            left = tuple(d for d in own if not d.additive)
        plans.append(Plan(name, steps, tuple(d for d in own if d.additive), left))
    return plans


def migrate(lake: Lake, now: datetime | None = None) -> list[Plan]:
    """Make the declared changes of every table, then absorb what is left.

    Returns: the plans that were carried out; empty where there was nothing to do.

    Raises:
        InputError: a difference that no declared change bridges; nothing was changed.
        QualityError: rows do not keep what the schema says of them; that table is as it was.
        commit.Fenced: other writers came in between six times.
    """
    plans = plan(lake)
    left = [d for p in plans for d in p.left]
    if left:
        raise InputError(
            "no declared change bridges what differs:\n" + "\n".join(f"    {d}" for d in left),
            where=str(lake.root),
            valid="changes of mmrec/schema/changes.py, or the mmrec that wrote the tables",
            next="install the version of mmrec that wrote them, or a newer one",
            report={"differences": [vars(d) for d in left]},
        )
    for p in plans:
        if p.steps:
            version = lake.version(p.table)
            evolve.record(lake, [_row(s, version) for s in p.steps], now)
            commit.again(lambda name=p.table: _rewrite(lake, name))
    evolve.absorb(lake, now)
    return [p for p in plans if p.steps or any(d.change != "properties" for d in p.added)]


def _bridge(lake: Lake, name: str) -> tuple[tuple[Change, ...], tuple[Difference, ...]]:
    """The declared changes that apply to a table, and what differs still once they are made."""
    t = schema.table(name)
    form = evolve.form_of(lake.handle(name), t)
    wanted = {c.name for c in t.columns}
    steps = []
    for change in changes.CHANGES:
        if change.table == name and (after := _after(form, change, wanted)):
            form = after
            steps.append(change)
    return tuple(steps), tuple(d for d in evolve.differences(form, t) if not d.additive)


def _after(form: Form, change: Change, wanted: set[str]) -> Form | None:
    """`form` once `change` is made; None where it does not apply, because it was made or is not called for."""
    columns, name = dict(form.columns), change.column
    if change.kind == "rename" and change.was in columns and name not in columns and change.was != form.partition:
        columns = {name if k == change.was else k: v for k, v in columns.items()}
        key = ", ".join(name if k == change.was else k for k in form.key.split(", ")) if form.key else form.key
        return replace(form, columns=columns, key=key)
    held, comment = columns.get(name, ("", ""))
    if change.kind == "widen" and held.removesuffix(" NOT NULL") == change.was:
        columns[name] = (held.replace(change.was, changes.WIDER[change.was]), comment)
        return replace(form, columns=columns)
    if change.kind == "relax" and held.endswith(" NOT NULL"):
        columns[name] = (held.removesuffix(" NOT NULL"), comment)
        return replace(form, columns=columns)
    if change.kind == "relax" and name in form.checks:
        return replace(form, checks={k: v for k, v in form.checks.items() if k != name})
    if change.kind == "drop" and held and name not in wanted:
        del columns[name]
        return replace(form, columns=columns)
    return None


def _row(step: Change, version: int) -> dict[str, Any]:
    columns = schema.table(step.table).arrow.names
    what, before, after = {
        "rename": ("column_renamed", step.was, step.column),
        "widen": ("column_widened", step.was, changes.WIDER.get(step.was, "")),
        "relax": ("column_relaxed" if step.column in columns else "check_dropped", step.was, ""),
        "drop": ("column_dropped", step.was, ""),
    }[step.kind]
    return {"source": "", "table_name": step.table, "change": what, "column_name": step.column, "before": before,
            "after": after, "table_version": version}  # fmt: skip


def _rewrite(lake: Lake, name: str) -> None:
    """Read, stage, audit and commit one table in today's form, on the state that was read or not at all."""
    t = schema.table(name)
    steps, left = _bridge(lake, name)
    if not steps or left:
        return  # another process made the changes
    handle = lake.handle(name)
    run_id = commit.work_id("migrate", name, [vars(s) for s in steps])
    staged: list[Audited] = []
    try:
        _drop_checks(handle, t, steps)  # the audit enforces them meanwhile, and they come back in today's words
        if not _bridge(lake, name)[0]:
            return  # a CHECK was all
        held = past.dataset(handle, t, SubTreeFileSystem(str(lake.path(name)), LocalFileSystem()))
        parts = [str(p[t.partition]) for p in handle.partitions()] if t.partition else [None]
        for part in parts:
            where = ds.field(t.partition) == _value(t, part) if t.partition else None
            rows = held.count_rows(filter=where)
            if rows:
                made = stage(lake, name, _batches(held, t, where), run_id)
                try:
                    checked = audit(lake, made, partition=part, previous_rows=rows, min_share=1.0)
                except BaseException:
                    made.discard()
                    raise
                staged.append(checked)
                _same(t, rows, checked.rows)
                made.seal(run_id, lake.stamp)
        version = _commit(lake, handle, t, staged, run_id, parts)
    except BaseException as error:
        if not _landed(lake, staged):
            for c in staged:
                c.stage.discard()
            if isinstance(error, CommitFailedError):
                raise commit.Fenced(
                    f"another writer came before the migration: {str(error).splitlines()[0]}",
                    where=name,
                    value=f"version {handle.version()}",
                    next="mmrec migrate --apply",
                ) from error
            raise
        if not isinstance(error, DeltaError | OSError):
            raise
        version = lake.version(name)  # the answer was lost, not the commit
    log.settle(lake.path(name), version)
    for c in staged:
        shutil.rmtree(c.stage.folder / "_delta_log", ignore_errors=True)


def _batches(held: ds.Dataset, t: schema.Table, where: ds.Expression | None) -> Iterator[pa.RecordBatch]:
    called = past.names(t, held.schema.names)
    columns = {n: ds.field(o) for n, o in called.items() if o}
    yield from held.scanner(columns=columns, filter=where).to_batches()


def _commit(
    lake: Lake, handle: DeltaTable, t: schema.Table, staged: list[Audited], run_id: str, parts: list[str | None]
) -> int:
    """Adopt the stages in place of everything; refused if the table is not at the version of `handle` any more."""
    adds = [AddAction(f"{c.stage.folder.name}/{f.path}", f.size, f.partition, f.modified, True, f.stats)
            for c in staged for f in c.stage.files]  # fmt: skip
    apps = [log.app_id(t.name, p) for p in parts] or [log.app_id(t.name, None)]
    fences = [Transaction(a, (handle.transaction_version(a) or 0) + 1, None) for a in apps]
    version = handle.version() + 1  # the next one or none: there are no retries
    note = {"run_id": run_id, "attempt": "1", "inputs": json.dumps({t.name: handle.version()}), **lake.stamp}
    handle.create_write_transaction(
        adds,
        "overwrite",
        pa.schema([c.arrow.with_metadata({"comment": c.described}) for c in t.columns]),
        [t.partition] if t.partition else [],
        commit_properties=CommitProperties(custom_metadata=note, max_commit_retries=0, app_transactions=fences),
    )
    return version


def _drop_checks(handle: DeltaTable, t: schema.Table, steps: tuple[Change, ...]) -> None:
    """Take off the CHECKs that no longer hold or that name a column which goes."""
    gone = {s.was if s.kind == "rename" else s.column for s in steps if s.kind in ("rename", "drop")}
    relaxed = {s.column for s in steps if s.kind == "relax"}
    held = {k.removeprefix(evolve._CHECK): v for k, v in handle.metadata().configuration.items()
            if k.startswith(evolve._CHECK)}  # fmt: skip
    for check, condition in held.items():
        words = set(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", condition))
        if check in relaxed - set(t.checks) or words & gone:
            handle.alter.drop_constraint(check)


def _same(t: schema.Table, read: int, staged: int) -> None:
    if read != staged:
        raise QualityError("a migration must keep every row", where=t.name, value=staged, valid=f"{read} rows",
                           next=f"mmrec tables {t.name}")  # fmt: skip


def _value(t: schema.Table, part: str | None) -> pa.Scalar:
    return pa.scalar(part, pa.string()).cast(t.arrow.field(t.partition).type)


def _landed(lake: Lake, staged: list[Audited]) -> bool:
    """Whether the newest version of the table holds the staged files."""
    if not staged:
        return False
    prefix = f"{staged[0].stage.folder.name}/"
    paths = pa.table(lake.handle(staged[0].stage.table).get_add_actions(flatten=True))["path"].to_pylist()
    return any(p.startswith(prefix) for p in paths)
