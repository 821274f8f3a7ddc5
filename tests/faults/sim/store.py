"""A faulty store under real code: each call of the file system or of delta-rs is a point, and may fail.

In: a world (schedule.py), an oracle. Out: `faulty`, a context in which actors' calls are intercepted; code outside of
an actor is not touched. A call may fail before its effect (I/O error, no space, 503), after it (the answer is lost, or
is taken for a conflict), or half done; its actor may be killed or paused before and after it.
Patched are names at the boundary (DeltaTable's methods, os, shutil, Path, time), so production code holds no hook.
Trade-off: delta-rs's own commit is one event here; that it is whole or not at all is the sweep's to show.
"""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import tenacity.wait
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.table import TableAlterer, TableOptimizer
from greenlet import GreenletExit

from mmrec import files
from mmrec.lake import commit, compact, maintain, stage, vacuum
from tests.faults.sim.oracle import Oracle
from tests.faults.sim.schedule import Actor, World
from tests.faults.sim.stand_ins import Kept, Serial, in_two

Call = Callable[..., Any]


def _disk() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO))


def _full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _busy() -> DeltaError:
    return DeltaError("Generic error: 503 Service Unavailable: SlowDown")


def _refused() -> CommitFailedError:
    return CommitFailedError("Commit failed: 503 Service Unavailable: SlowDown")


def _taken() -> CommitFailedError:
    return CommitFailedError("Transaction failed: Concurrent transaction failed.")


class Faulty:
    """The calls of one world."""

    def __init__(self, world: World, oracle: Oracle) -> None:
        self.world, self.oracle = world, oracle

    def call(
        self,
        what: str,
        real: Callable[[], Any],
        *,
        before: tuple[Callable[[], Exception], ...] = (),
        after: tuple[Callable[[], Exception], ...] = (),
        share: float = 1.0,
        half: Callable[[], None] | None = None,
        effect: Callable[[], None] | None = None,
    ) -> Any:
        """Make `real` for the running actor, or fail it.

        Args:
            before, after: errors to draw from. share: how often the call is a point at all.
            half: leave the call half done. effect: tell the oracle.
        """
        world = self.world
        world.point(what, share)
        world.calls += 1
        if before and world.fails("before", share):
            error = world.rng.choice(before)()
            if half and world.rng.random() < 0.3:
                world.note(f"{what} ends half done: {error}")
                self._made(half, effect)
            else:
                world.note(f"{what} fails: {error}")
            raise error
        done = self._made(real, effect)
        if after and world.fails("after", 2 * share):
            error = world.rng.choice(after)()
            world.note(f"{what} is done, its answer lost: {error}")
            raise error
        if effect or half:
            world.point(f"{what} done")
        return done

    def _made(self, real: Callable[[], Any], effect: Callable[[], None] | None) -> Any:
        self.world.inside = True
        try:
            return real()
        finally:
            try:
                if effect:
                    effect()
            except BaseException as error:
                self.world.broken = self.world.broken or error
                raise
            finally:
                self.world.inside = False

    def actor(self) -> Actor | None:
        actor = self.world.current()
        if actor is not None and actor.dead:
            raise GreenletExit
        return actor


@contextmanager
def faulty(world: World, oracle: Oracle) -> Iterator[Faulty]:
    """Intercept the calls of `world`'s actors."""
    made = Faulty(world, oracle)
    with ExitStack() as stack:
        for owner, name, wrap in _PATCHES:
            real = getattr(owner, name)
            stack.enter_context(patch.object(owner, name, wrap(made, real)))
        yield made


def _plain(what: str, **how: Any) -> Callable[[Faulty, Call], Call]:
    """A call with nothing of its own: its first argument is what it is about."""

    def wrap(store: Faulty, real: Call) -> Call:
        def call(*args: Any, **more: Any) -> Any:
            if store.actor() is None:
                return real(*args, **more)
            return store.call(f"{what} {_short(args[0])}" if args else what, lambda: real(*args, **more), **how)

        return call

    return wrap


def _gone(what: str) -> Callable[[Faulty, Call], Call]:
    """A call that takes a file away, or gives it another name."""

    def wrap(store: Faulty, real: Call) -> Call:
        def call(path: Any, *args: Any, **more: Any) -> Any:
            if store.actor() is None:
                return real(path, *args, **more)
            return store.call(f"{what} {_short(path)}", lambda: real(path, *args, **more), before=(_disk,), share=0.3,
                              effect=lambda: _looked(store, path))  # fmt: skip

        return call

    return wrap


def _looked(store: Faulty, path: Any) -> None:
    for name in store.oracle.models:
        if Path(path).is_relative_to(store.oracle.lake.path(name)):
            store.oracle.whole(name)


def _short(path: Any) -> str:
    if isinstance(path, int):
        path = os.readlink(f"/proc/self/fd/{path}")
        if os.path.isdir(path):  # code takes folders in no order
            return "a folder"
    # what is random in a name would make two runs of a seed differ
    parts = ["part" if p.startswith(("part-", "_entry", "_stage", ".tmp")) else p for p in Path(str(path)).parts[-2:]]
    return "/".join(parts)


def _open(store: Faulty, real: Call) -> Call:
    def call(self: DeltaTable, uri: Any, version: int | None = None, **more: Any) -> None:
        if store.actor() is None:
            return real(self, uri, version, **more)
        what = f"open {_short(uri)}{'' if version is None else f' at {version}'}"
        return store.call(what, lambda: real(self, uri, version, **more), before=(_disk, _busy))

    return call


def _transaction(store: Faulty, real: Call) -> Call:
    def call(self: DeltaTable, actions: list[Any], *args: Any, **more: Any) -> None:
        actor = store.actor()
        if actor is None:
            return real(self, actions, *args, **more)
        intent, name = actor.intent, store.oracle.name_of(self)
        if intent is not None and actions:
            intent.stage = unquote(actions[0].path).split("/")[0]
        return store.call(
            f"commit to {name}",
            lambda: real(self, actions, *args, **more),
            before=(_disk, _full, _busy, _refused),
            after=(_disk, _busy, _taken, _refused),
            effect=lambda: store.oracle.absorb(name, intent),
        )

    return call


def _maintain(what: str) -> Callable[[Faulty, Call], Call]:
    def wrap(store: Faulty, real: Call) -> Call:
        def call(self: Any, *args: Any, **more: Any) -> Any:
            if store.actor() is None:
                return real(self, *args, **more)
            name = store.oracle.name_of(getattr(self, "table", self))
            return store.call(f"{what} {name}", lambda: real(self, *args, **more), before=(_disk, _busy),
                              effect=lambda: store.oracle.maintained(name))  # fmt: skip

        return call

    return wrap


def _staged(store: Faulty, real: Call) -> Call:
    def call(folder: Any, data: Any, *args: Any, **more: Any) -> None:
        actor = store.actor()
        if actor is None:
            return real(folder, data, *args, **more)

        def write() -> None:
            store.oracle.stages(actor, Path(folder), data)
            real(folder, data, *args, **more)
            if isinstance(data, pa.Table):
                in_two(Path(folder))

        def torn() -> None:
            write()
            for log in Path(folder, "_delta_log").iterdir():
                log.unlink()

        if actor.intent is not None:
            actor.intent.stage = Path(folder).name
        return store.call(f"stage {_short(folder)}", write, before=(_disk, _full), after=(_disk,), half=torn)

    return call


def _rmtree(store: Faulty, real: Call) -> Call:
    def call(path: Any, ignore_errors: bool = False, **more: Any) -> None:
        if store.actor() is None:
            return real(path, ignore_errors, **more)

        def part() -> None:
            for file in sorted(Path(path).rglob("*.parquet"))[:1]:
                file.unlink()

        try:
            return store.call(f"remove {_short(path)}", lambda: real(path, ignore_errors, **more), before=(_disk,),
                              half=part, effect=lambda: _looked(store, path))  # fmt: skip
        except OSError:
            if not ignore_errors:
                raise

    return call


def _fsync(store: Faulty, real: Call) -> Call:
    def call(fd: int) -> None:
        if store.actor() is None:
            return real(fd)
        path = os.readlink(f"/proc/self/fd/{fd}")
        what = f"fsync {_short(fd)}"
        # remembered, not done: a folder in memory has no disk under it, and the oracle tears what was not asked for
        return store.call(what, lambda: store.oracle.durable.add(path), before=(_disk,), share=0.5)

    return call


def _replace(store: Faulty, real: Call) -> Call:
    def call(old: Any, new: Any, **more: Any) -> None:
        if store.actor() is None:
            return real(old, new, **more)

        def made() -> None:
            real(old, new, **more)
            (store.oracle.durable.add if str(old) in store.oracle.durable else store.oracle.durable.discard)(str(new))

        return store.call(f"replace {_short(old)}", made, before=(_disk,), after=(_disk,), share=0.3)

    return call


def _path_open(store: Faulty, real: Call) -> Call:
    def call(self: Path, mode: str = "r", *args: Any, **more: Any) -> Any:
        if store.actor() is None:
            return real(self, mode, *args, **more)
        writes = "w" in mode
        return store.call(f"{'write' if writes else 'read'} {_short(self)}", lambda: real(self, mode, *args, **more),
                          before=(_disk, _full) if writes else (_disk,), share=0.3)  # fmt: skip

    return call


def _stamped(store: Faulty, real: Call) -> Call:
    """`vacuum`, which asks the disk how old a file is."""

    def call(*args: Any, **more: Any) -> Any:
        store.oracle.stamp()
        return real(*args, **more)

    return call


def _sleep(store: Faulty, real: Call) -> Call:
    def call(seconds: float) -> None:
        if store.actor() is None:
            real(seconds)
        else:
            store.world.sleep(seconds)

    return call


def _watched(store: Faulty, real: Call) -> Call:
    """`commit.write` and `commit.adopt`: the oracle hears what is meant, and what the writer is told."""

    def call(lake: Any, what: Any, *args: Any, **more: Any) -> Any:
        actor = store.actor()
        if actor is None or actor.intent is not None:
            return real(lake, what, *args, **more)
        intent = actor.intent = store.oracle.meant(actor, lake, what, args, more)
        try:
            done = real(lake, what, *args, **more)
        except GreenletExit:
            raise
        except BaseException as error:
            store.oracle.told(intent, None, error)
            raise
        else:
            store.oracle.told(intent, done, None)
            return done
        finally:
            actor.intent = None

    return call


def _connect(store: Faulty, real: Call) -> Call:
    def call(*args: Any, **more: Any) -> Any:
        return real(*args, **more) if args or more or store.actor() is None else Kept(real)

    return call


def _uuid(store: Faulty, real: Call) -> Call:
    return lambda: uuid.UUID(int=store.world.rng.getrandbits(128))


_PATCHES: tuple[tuple[Any, str, Callable[[Faulty, Call], Call]], ...] = (
    (DeltaTable, "__init__", _open),
    (DeltaTable, "create_write_transaction", _transaction),
    (DeltaTable, "vacuum", _maintain("vacuum")),
    (DeltaTable, "create_checkpoint", _maintain("checkpoint")),
    (TableOptimizer, "compact", _maintain("compact")),
    (TableAlterer, "set_table_properties", _maintain("set properties of")),
    (stage, "write_deltalake", _staged),
    (compact, "write_deltalake", _staged),
    (maintain, "vacuum", _stamped),
    (vacuum, "_alive", lambda store, real: lambda folder: store.oracle.alive(folder.name)),
    (stage, "uuid4", _uuid),
    (compact, "uuid4", _uuid),
    (files, "uuid4", _uuid),
    (stage, "ThreadPoolExecutor", lambda store, real: Serial),
    (commit, "write", _watched),
    (commit, "adopt", _watched),
    (duckdb, "connect", _connect),
    (shutil, "rmtree", _rmtree),
    (os, "fsync", _fsync),
    (os, "replace", _replace),
    (os, "unlink", _gone("unlink")),
    (os, "rename", _gone("rename")),
    (pathlib.Path, "open", _path_open),
    (pathlib.Path, "read_bytes", _plain("read", before=(_disk,), share=0.1)),
    (pathlib.Path, "read_text", _plain("read", before=(_disk,), share=0.1)),
    (time, "sleep", _sleep),
    (tenacity.wait, "random", lambda store, real: store.world.rng),
)
