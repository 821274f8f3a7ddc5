"""Several processes that train one model's towers: `train.processes`, or torchrun by hand.

In: a model before its towers are trained, and its data. Out: the same with towers as one process would have trained
them, but for the order of sums.
`hand_over` writes a folder and starts `python -m mmrec.train.parallel FOLDER` so many times, as torchrun would;
`torchrun --standalone --nproc-per-node N -m mmrec.train.parallel FOLDER` of the same folder does the same. Only this
loop is shared: the lake, the registry and everything in closed form stay with the one process that began, which is why
a station itself is never started by torchrun.
Trade-off: the data is copied to disk and read by each process, which takes seconds and needs neither pickles nor a
second reader of the lake.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from threading import Thread
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import TCPStore

from mmrec.errors import InputError, MmrecError, QualityError, TransientError
from mmrec.models.data import Fold, Items, Log
from mmrec.train.device import device_named
from mmrec.train.recipe import Recipe
from mmrec.train.world import World

if TYPE_CHECKING:
    from mmrec.train.fit import Champion

_TIED = "--tied"  # leave when stdin ends: whoever began is gone
_HOST = "127.0.0.1"
_ERRORS: dict[str, type[MmrecError]] = {e.__name__: e for e in (InputError, QualityError, TransientError)}


def hand_over(model: Champion, items: Items, log: Log, fold: Fold, vals: Sequence[Fold]) -> int | None:
    """Train the towers of `model` in `model.processes` processes of this machine. Returns: as loop.train.

    Raises: those of loop.train. InputError: there are not so many GPUs. TransientError: a process ended early.
    """
    for n in range(model.processes):
        device_named(model.device, n)
    with _place(model.state) as folder:
        put_job(folder, model, items, log, fold, vals)
        store = TCPStore(_HOST, 0, model.processes, is_master=True, wait_for_workers=False)
        workers = [_start(folder, n, model.processes, store.port) for n in range(model.processes)]
        raised: list[BaseException] = []
        try:
            listener = Thread(target=_listen, args=(workers[0].stdout, model, raised), daemon=True)
            listener.start()
            _wait(folder, workers, raised)
            listener.join()
            if raised:
                raise raised[0]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
                for end in (worker.stdin, worker.stdout):
                    if end is not None:
                        end.close()
        return _take(folder, model)


@contextmanager
def _place(state: Path | None) -> Iterator[Path]:
    """An empty folder for what processes share, gone afterwards; beside the checkpoint, if there is one: the next try
    clears what a kill has left."""
    if state is None:
        with tempfile.TemporaryDirectory(prefix="mmrec-train-") as name:
            yield Path(name)
        return
    folder = state.parent / "handed-over"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_job(folder: Path, model: Champion, items: Items, log: Log, fold: Fold, vals: Sequence[Fold]) -> None:
    """Write what a process needs into `folder`: job.json, and arrays without pickles."""
    parts: dict[str, Any] = {"items": items, "log": log} | {f"fold{n}": f for n, f in enumerate((fold, *vals))}
    arrays: dict[str, np.ndarray] = {}
    plain: dict[str, Any] = {}
    for part, value in parts.items():
        for field in fields(value):
            _flat(f"{part}.{field.name}", getattr(value, field.name), arrays, plain)
    np.savez(folder / "arrays.npz", **arrays)
    save_file(model._state(), folder / "begin.safetensors")
    job = {"recipe": asdict(model.recipe), "seed": model.seed, "item_map": model.item_map, "dims": model.dims,
           "event_types": list(model.event_types), "state": str(model.state.absolute()) if model.state else None,
           "device": model.device, "vals": len(vals), "steps": model.stepped is not None, "plain": plain,
           "threads": torch.get_num_threads()}  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))


def _flat(name: str, value: Any, arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> None:
    if isinstance(value, dict):
        plain[name] = {}
        for key, each in value.items():
            _flat(f"{name}.{key}", each, arrays, plain)
    elif isinstance(value, np.ndarray):
        arrays[name] = value.astype(str) if value.dtype == object else value
    else:
        plain[name] = value


def _job(folder: Path) -> tuple[dict[str, Any], Items, Log, list[Fold]]:
    job = json.loads((folder / "job.json").read_text())
    with np.load(folder / "arrays.npz") as file:
        arrays = {k: v.astype(object) if v.dtype.kind == "U" else v for k, v in file.items()}

    def made(kind: type, part: str) -> Any:
        whole: dict[str, Any] = {k: v for k, v in job["plain"].items() if k.startswith(f"{part}.")} | {
            k: v for k, v in arrays.items() if k.startswith(f"{part}.")}  # fmt: skip
        values = {f.name: whole.get(f"{part}.{f.name}") for f in fields(kind)}
        for name, value in values.items():
            if isinstance(value, dict):
                below = f"{part}.{name}."
                values[name] = {k.removeprefix(below): v for k, v in whole.items() if k.startswith(below)}
        return kind(**values)

    log = made(Log, "log")
    folds = [made(Fold, f"fold{n}") for n in range(1 + job["vals"])]
    return job, made(Items, "items"), log, folds


# the process that began


def _start(folder: Path, rank: int, size: int, port: int) -> subprocess.Popen[str]:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": _HOST,
             "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True"}  # fmt: skip
    command = [sys.executable, "-m", "mmrec.train.parallel", str(folder), _TIED]
    told = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
    with (folder / f"said-{rank}.txt").open("w") as said:
        return subprocess.Popen(command, env=os.environ | {k: str(v) for k, v in place.items()}, text=True,
                                stdin=subprocess.PIPE, stdout=told, stderr=said)  # fmt: skip


def _listen(lines: IO[str], model: Champion, raised: list[BaseException]) -> None:
    """Pass on what the first process tells; what a listener raises is kept for whoever began."""
    try:
        for line in lines:
            told = json.loads(line)
            if "epoch" in told:
                model._told(told)
            elif model.stepped is not None:
                model.stepped(told["targets"], told["loss"])
    except BaseException as error:
        raised.append(error)


def _wait(folder: Path, workers: list[subprocess.Popen[str]], raised: list[BaseException]) -> None:
    """Until all have ended well, or a listener raised. What the first process said went wrong is raised; else that one
    ended."""
    while any(w.poll() is None for w in workers) and not any(w.poll() for w in workers) and not raised:
        time.sleep(0.05)
    bad = [n for n, w in enumerate(workers) if w.poll()]
    if not bad:
        return
    # the others fail in turn, and the first may be about to say why
    for worker in workers:
        try:
            worker.wait(5)
        except subprocess.TimeoutExpired:
            worker.kill()
    if (folder / "failed.json").is_file():
        told = json.loads((folder / "failed.json").read_text())
        raise _ERRORS[told.pop("kind")](**told)
    raise TransientError(
        "a process of the fit ended before its time",
        where=f"process {bad[0]} of {len(workers)}",
        value=(folder / f"said-{bad[0]}.txt").read_text()[-2000:] or f"exit {workers[bad[0]].returncode}",
        next="run it again: it goes on from its checkpoint",
    )


def _take(folder: Path, model: Champion) -> int | None:
    model._restore(load_file(folder / "end.safetensors"))
    model.item_tower.eval()
    model.user_tower.eval()
    return json.loads((folder / "end.json").read_text())["best"]


# one of the processes


def main(folder: Path, *, tied: bool) -> int:
    """Train as the environment says, RANK of WORLD_SIZE; the first writes the end into `folder`. Returns an exit code.

    Args:
        tied: leave when stdin ends.
    """
    from mmrec.train.fit import Champion

    if tied:
        Thread(target=_leave_with_whoever_began, daemon=True).start()
    job, items, log, (fold, *vals) = _job(folder)
    rank, size = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    torch.set_num_threads(max(1, job["threads"] // size))
    device = device_named(job["device"], rank)
    # what libraries print is no line of ours
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(told: dict[str, Any]) -> None:
        print(json.dumps(told), file=lines, flush=True)

    model = Champion(
        Recipe(**job["recipe"]), job["seed"], lambda _what, row: say(row),
        (lambda n, loss: say({"targets": n, "loss": loss})) if job["steps"] else None,
        state=Path(job["state"]) if job["state"] else None, device=job["device"], processes=size,
    )  # fmt: skip
    model.item_map, model.event_types, model.dims = job["item_map"], tuple(job["event_types"]), job["dims"]
    model._build(len(model.item_map), len(model.event_types))
    model._restore(load_file(folder / "begin.safetensors"))
    world = World.joined(device)
    try:
        best = model.train(items, log, fold, vals, device, world)
    except MmrecError as error:
        if world.first:
            told = {k: getattr(error, k) for k in ("what", "where", "value", "valid", "next")}
            (folder / "failed.json").write_text(json.dumps(told | {"kind": type(error).__name__}))
        return error.exit_code
    if world.first:
        save_file(model._state(), folder / "end.safetensors")
        (folder / "end.json").write_text(json.dumps({"best": best}))
    world.leave()
    return 0


def _leave_with_whoever_began() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), tied=_TIED in sys.argv))
