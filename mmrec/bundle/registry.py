"""MLflow's registry as mmrec uses it, and the bundles on disk that scoring uses.

In: settings, sealed bundles. Out: registered versions with aliases `challenger`, `champion`, `previous`; the bundle
of a version in `<home>/bundles/<version>`. Version 0 is the popularity bundle of `mmrec init`; it is on disk only,
and is what a home without a champion publishes.
What serves stands in the lake (serving.py): `champion` and `previous` are copies of it for MLflow's users, and a night
needs no server. In a home of an earlier release, whose lake has no change yet, the aliases say what serves.
Trade-off: a run's bundle is copied to disk at registration, so every machine that scores needs that disk.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrec.bundle.bundle import Bundle, install, load, seal
from mmrec.bundle.server import answering, client, patient
from mmrec.bundle.serving import ZERO, Served, Serving, ask, serving
from mmrec.config import Config
from mmrec.errors import InputError, TransientError
from mmrec.lake.store import Lake

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME = "mmrec"
_ABOUT = ("Models that mmrec's nights are scored with. Which one serves stands in the lake, in ops.serving; the alias "
          "`champion` is a copy of that. Giving it to another version asks that it serve: before the next night the "
          "gate decides, and answers on that version's tag `gate`.")  # fmt: skip
_MIRRORED = "mmrec.change"  # tag of the registered model: the change that the aliases follow


def init_version_zero(config: Config) -> Bundle:
    """Make the popularity bundle, if the home has none."""
    folder = config.bundles / ZERO
    if not (folder / "digest.json").is_file():
        seal(folder, {"kind": "popularity", "name": "popularity", "encoders": {}, "as_of": None,
                      "config": {"half_life_days": config.night.half_life_days}})  # fmt: skip
    return load(folder)


def state(config: Config) -> Serving:
    """What serves, as the lake says; of a home of an earlier release, as the aliases do.

    Raises: TransientError: the lake says nothing, and the registry does not answer.
    """
    now = serving(Lake(config.lake))
    return now if now.change else Serving(0, tuple(_once_crowned(config)))


def champion(config: Config, as_of: datetime | None = None) -> tuple[Bundle, str]:
    """The bundle a night of `as_of` is scored with, and its version.

    What serves, unless that model was trained on what lies after `as_of`: a backtest takes the newest promoted version
    that knew nothing later, else version 0.

    Raises: QualityError: the bundle on disk is not the one that was registered. TransientError: as of `state`.
    """
    served = state(config).known_at(as_of)
    if served is None:
        return init_version_zero(config), ZERO
    folder = config.bundles / served.version
    if not folder.is_dir():
        raise InputError(
            "a promoted bundle is not on this disk",
            where=str(folder),
            value=f"version {served.version}",
            next="mmrec train && mmrec promote",
        )
    return load(folder, served.sha256), served.version


def served(config: Config, *, alone: bool = False) -> list[tuple[str, str]]:
    """Version and digest of the bundles that serve, served before, or wait: challenger, canary, previous, champion, in
    this order; each once.

    Args:
        alone: leave out what the registry knows where it does not answer.

    Raises: TransientError: the registry does not answer.
    """
    try:
        now = state(config)
    except TransientError:
        if not alone:
            raise
        return []
    tried = () if now.trial is None else (now.trial,)
    found = {s.version: s.sha256 for s in (*now.stack[-1:], *now.stack[-2:-1], *tried)}
    try:
        waits = challenger(config)
        if waits is not None and waits not in found:
            with answering(config):
                found[waits] = client(config).get_model_version(NAME, waits).tags["sha256"]
    except TransientError:
        if not alone:
            raise
    return list(found.items())[::-1]


def register(config: Config, folder: Path, run_id: str, about: dict[str, Any]) -> str:
    """Register the sealed bundle in `folder`, logged as artifact `bundle` of an MLflow run, as challenger; once: a
    bundle of the same digest is the version that it was.

    Returns: the version's number, also the name of its folder under `<home>/bundles`.

    Raises: QualityError: it was altered since it was sealed, or a graph holds what none should (graphs.py). InputError:
        another registry gave its number to a bundle on this disk.
    """
    from mmrec.bundle.graphs import check_graphs

    bundle = load(folder)
    check_graphs(folder)
    c = client(config)
    if not any(m.name == NAME for m in c.search_registered_models(filter_string=f"name = '{NAME}'")):
        c.create_registered_model(NAME, description=_ABOUT)
    tags = {"sha256": bundle.digest, "kind": bundle.kind} | ({"as_of": about["as_of"]} if about["as_of"] else {})
    found = c.search_model_versions(f"name = '{NAME}' and tags.sha256 = '{bundle.digest}'")
    with patient():  # an answer that came too late would be asked for once more
        made = found[0] if found else c.create_model_version(
            NAME, source=f"runs:/{run_id}/bundle", run_id=run_id, tags=tags, description=about.get("summary", "")
        )  # fmt: skip
    version = str(made.version)
    if not (config.bundles / version).is_dir():
        install(folder, config.bundles / version)
    elif (there := load(config.bundles / version, deep=False).digest) != bundle.digest:
        c.delete_model_version(NAME, version)
        raise InputError("the registry counts versions anew: this home has another bundle of this number",
                         where=str(config.bundles / version), value=f"{bundle.digest[:12]} for version {version}",
                         valid=there[:12], next="the registry's own database, or a home without bundles")  # fmt: skip
    if version != state(config).version:
        c.set_registered_model_alias(NAME, "challenger", version)
    return version


def change(
    config: Config, seen: Serving, action: str, to: Served | None, **about: Any
) -> tuple[Serving, dict[str, Any]]:
    """As `ask`; of a home of an earlier release, what serves there is put on record first. Returns: the new state, and
    the row."""
    lake = Lake(config.lake)
    if not seen.change:
        for older in seen.stack:
            known = serving(lake)
            if len(known.stack) < len(seen.stack):
                ask(lake, known, "promoted", older, asked_by="mmrec", through="mlflow",
                    said="it served before changes were put on record")  # fmt: skip
        seen = serving(lake) if seen.stack else seen
    row = ask(lake, seen, action, to, **about)
    return serving(lake), row


def of_version(config: Config, version: str) -> Served | None:
    """A version as its bundle on disk says, checked; None: version 0.

    Raises: InputError: it is not on this disk. QualityError: it was altered.
    """
    if version == ZERO:
        return None
    bundle = load(config.bundles / version)
    told = bundle.about.get("as_of")
    return Served(version, bundle.digest, datetime.fromisoformat(told) if told else None)


def mirror(config: Config, now: Serving) -> bool:
    """Make the aliases say what the lake says; False: the registry does not answer, so they follow later."""
    if _empty(config):
        return True
    try:
        with answering(config):
            c = client(config)
            found = c.search_registered_models(filter_string=f"name = '{NAME}'")
            if not found:
                return True
            aliases = {k: str(v) for k, v in found[0].aliases.items()}
            for name, version in (("champion", now.version), ("previous", now.previous)):
                if version != ZERO and aliases.get(name) != version:
                    c.set_registered_model_alias(NAME, name, version)
                elif version == ZERO and name in aliases:
                    c.delete_registered_model_alias(NAME, name)
            if aliases.get("challenger") == now.version:
                c.delete_registered_model_alias(NAME, "challenger")
            if found[0].tags.get(_MIRRORED) != str(now.change):
                c.set_registered_model_tag(NAME, _MIRRORED, str(now.change))
    except TransientError:
        return False
    return True


def asked(config: Config) -> str | None:
    """A version that somebody gave the alias champion by hand; "": whose alias was taken away by hand; None: neither.

    An alias that a change in the lake has not reached yet is not by hand.

    Raises: TransientError: the registry does not answer.
    """
    lake = Lake(config.lake)
    now = serving(lake)
    if _empty(config) or not now.change:
        return None
    with answering(config):
        found = client(config).search_registered_models(filter_string=f"name = '{NAME}'")
    if not found:
        return None
    alias = str(found[0].aliases["champion"]) if "champion" in found[0].aliases else ZERO
    followed = found[0].tags.get(_MIRRORED)
    if alias in (now.version, serving(lake, int(followed or 0)).version if followed != str(now.change) else None):
        return None
    return "" if alias == ZERO else alias


def challenger(config: Config) -> str | None:
    """The version that waits for the gate; None where none does.

    Raises: TransientError: the registry does not answer.
    """
    if _empty(config):
        return None
    with answering(config):
        return _aliases(client(config)).get("challenger")


def tag(config: Config, version: str, key: str, value: str) -> None:
    """Write a tag on a registered version, where its users look for it.

    Raises: TransientError: the registry does not answer, or knows no such version.
    """
    with answering(config):
        client(config).set_model_version_tag(NAME, version, key, value[:5000])


def _once_crowned(config: Config) -> list[Served]:
    """Of a home of an earlier release: every version once promoted, the champion last."""
    if _empty(config):
        return []
    with answering(config):
        c = client(config)
        aliases = _aliases(c)
        found = c.search_model_versions(f"name = '{NAME}'") if aliases else []
    current = aliases.get("champion")
    once = [v for v in found if current and (v.tags.get("promoted") == "true" or str(v.version) == current)]
    once.sort(key=lambda v: (str(v.version) == current, str(v.version) == aliases.get("previous"), int(v.version)))
    return [Served(str(v.version), v.tags["sha256"],
                   datetime.fromisoformat(v.tags["as_of"]) if v.tags.get("as_of") else None) for v in once]  # fmt: skip


def _aliases(c: MlflowClient) -> dict[str, str]:
    found = c.search_registered_models(filter_string=f"name = '{NAME}'")
    return {k: str(v) for k, v in found[0].aliases.items()} if found else {}


def _empty(config: Config) -> bool:
    # opening a registry that isn't there would create one, which costs seconds
    return config.mlflow_uri is None and not (config.home / "mlflow.db").is_file()
