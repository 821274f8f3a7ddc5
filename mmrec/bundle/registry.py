"""MLflow's registry as mmrec uses it, and the bundles on disk that scoring uses.

In: settings, sealed bundles. Out: registered versions with aliases `challenger`, `champion`, `previous`; the bundle
of a version in `<home>/bundles/<version>`. Version 0 is the popularity bundle of `mmrec init`; it is on disk only,
and is what a home without a champion publishes.
Trade-off: a run's bundle is copied to disk at registration, so a night needs MLflow only to resolve one alias.
"""

from __future__ import annotations

import logging
import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrec.bundle.bundle import Bundle, install, load, seal
from mmrec.config import Config
from mmrec.errors import InputError, TransientError

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME = "mmrec"
ZERO = "0"


def client(config: Config) -> MlflowClient:
    """A client of the configured tracking server and registry; makes the registered model on first use."""
    _quiet()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=config.tracking, registry_uri=config.tracking)


def experiment(config: Config, name: str) -> str:
    """The id of the experiment of that name; made on first use, with its artifacts in the home."""
    c = client(config)
    found = c.get_experiment_by_name(name)
    place = (config.home / "mlartifacts").absolute().as_uri()
    return found.experiment_id if found else c.create_experiment(name, artifact_location=place)


def _quiet() -> None:
    """What MLflow looks at when it is imported."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    logging.getLogger("alembic").setLevel(logging.WARNING)


def init_version_zero(config: Config) -> Bundle:
    """Make the popularity bundle, if the home has none."""
    folder = config.bundles / ZERO
    if not (folder / "digest.json").is_file():
        seal(folder, {"kind": "popularity", "name": "popularity", "encoders": {}, "as_of": None,
                      "config": {"half_life_days": config.night.half_life_days}})  # fmt: skip
    return load(folder)


def champion(config: Config, as_of: datetime | None = None) -> tuple[Bundle, str]:
    """The bundle a night of `as_of` is scored with, and its version.

    The champion alias, unless that model was trained on what lies after `as_of`: a backtest takes the newest
    promoted version that knew nothing later, else version 0.

    Raises: QualityError: the bundle on disk is not the one that was registered.
    """
    for version, digest, trained in _promoted(config):
        if as_of is None or trained is None or datetime.fromisoformat(trained) <= as_of:
            folder = config.bundles / version
            if not folder.is_dir():
                raise InputError(
                    "a promoted bundle is not on this disk",
                    where=str(folder),
                    value=f"version {version}",
                    next="mmrec train && mmrec promote",
                )
            return load(folder, digest), version
    return init_version_zero(config), ZERO


def served(config: Config) -> list[tuple[str, str]]:
    """Version and digest of the bundles that an alias names: challenger, previous, champion, in this order; each once.

    Raises: TransientError: the registry does not answer.
    """
    if _empty(config):
        return []
    _quiet()
    from mlflow.exceptions import MlflowException

    try:
        c = client(config)
        aliases = _aliases(c)
        # of one with two aliases the later counts
        named = reversed(dict.fromkeys(aliases[a] for a in ("champion", "previous", "challenger") if a in aliases))
        return [(v, c.get_model_version(NAME, v).tags["sha256"]) for v in named]
    except MlflowException as error:
        raise TransientError(
            "the registry does not say which models are served",
            where=config.tracking.split("@")[-1],  # without a password
            value=error.error_code,
            valid="a registry that answers",
            next="run it again once it does",
        ) from error


def register(config: Config, folder: Path, run_id: str, about: dict[str, Any]) -> str:
    """Register the sealed bundle in `folder`, logged as artifact `bundle` of an MLflow run, as challenger.

    Returns: the version's number, also the name of its folder under `<home>/bundles`.

    Raises: QualityError: it was altered since it was sealed, or a graph holds what none should (graphs.py).
    """
    from mmrec.bundle.graphs import check_graphs

    bundle = load(folder)
    check_graphs(folder)
    c = client(config)
    if not any(m.name == NAME for m in c.search_registered_models(filter_string=f"name = '{NAME}'")):
        c.create_registered_model(NAME, description="Models that mmrec's nights are scored with.")
    tags = {"sha256": bundle.digest, "kind": bundle.kind} | ({"as_of": about["as_of"]} if about["as_of"] else {})
    made = c.create_model_version(
        NAME, source=f"runs:/{run_id}/bundle", run_id=run_id, tags=tags, description=about.get("summary", "")
    )
    version = str(made.version)
    install(folder, config.bundles / version)
    c.set_registered_model_alias(NAME, "challenger", version)
    return version


def crown(config: Config, version: str) -> str:
    """Point `champion` at `version` and `previous` at the one it replaces; returns the version replaced."""
    c = client(config)
    aliases = _aliases(c)
    before = aliases.get("champion", ZERO)
    if before not in (ZERO, version):
        c.set_registered_model_alias(NAME, "previous", before)
    c.set_model_version_tag(NAME, version, "promoted", "true")
    c.set_registered_model_alias(NAME, "champion", version)
    if aliases.get("challenger") == version:
        c.delete_registered_model_alias(NAME, "challenger")
    return before


def challenger(config: Config) -> str | None:
    """The version that waits for the gate; None where none does."""
    return None if _empty(config) else _aliases(client(config)).get("challenger")


def tag(config: Config, version: str, key: str, value: str) -> None:
    """Write a tag on a registered version, where its users look for it."""
    client(config).set_model_version_tag(NAME, version, key, value[:5000])


def _promoted(config: Config) -> list[tuple[str, str, str | None]]:
    """(version, digest, as_of) of the champion, then of every version once promoted, newest first."""
    if _empty(config):
        return []
    c = client(config)
    aliases = _aliases(c)
    found = c.search_model_versions(f"name = '{NAME}'") if aliases else []
    current = aliases.get("champion")
    once = [v for v in found if v.tags.get("promoted") == "true" or str(v.version) == current]
    once.sort(key=lambda v: (str(v.version) != current, -int(v.version)))
    return [(str(v.version), v.tags["sha256"], v.tags.get("as_of")) for v in once]


def _aliases(c: MlflowClient) -> dict[str, str]:
    found = c.search_registered_models(filter_string=f"name = '{NAME}'")
    return {k: str(v) for k, v in found[0].aliases.items()} if found else {}


def _empty(config: Config) -> bool:
    # opening a registry that isn't there would create one, which costs seconds
    return config.mlflow_uri is None and not (config.home / "mlflow.db").is_file()
