"""MLflow's server as mmrec talks to it: quietly, with patience for files, and with one word for silence.

In: settings. Out: a client, an experiment's id, and errors that say that it does not answer.
A server may hang: it is waited for ten seconds at a time, thrice, unless MLflow's own variables say otherwise.
Trade-off: importing this sets MLflow's environment, since MLflow looks at it when it is imported.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mmrec.config import Config
from mmrec.errors import TransientError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_WAIT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_LOGGING_LEVEL": "WARNING",
          "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}  # there stands what a command answers
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # else its pages are those of language models
_OURS = "INVALID_PARAMETER_VALUE"  # what was told is wrong: telling it again does not help

for _name, _value in (_WAIT | _QUIET).items():
    os.environ.setdefault(_name, _value)
logging.getLogger("alembic").setLevel(logging.WARNING)


def client(config: Config) -> MlflowClient:
    """A client of the configured tracking server and registry."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=config.tracking, registry_uri=config.tracking)


def experiment(config: Config, name: str) -> str:
    """The id of the experiment of that name; made on first use, with its artifacts in the home, or where a server keeps
    them."""
    c = client(config)
    found = c.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    served = config.tracking.startswith(("http://", "https://"))
    place = None if served else (config.home / "mlartifacts").absolute().as_uri()
    return c.create_experiment(name, artifact_location=place, tags=_KIND)


@contextmanager
def patient() -> Iterator[None]:
    """For what takes a server longer than an answer does: files that it passes on."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    was = os.environ[name]
    os.environ[name] = was if was != _WAIT[name] else "600"  # what somebody has set stays
    try:
        yield
    finally:
        os.environ[name] = was


@contextmanager
def answering(config: Config, *, telling: bool = False) -> Iterator[None]:
    """Raises: TransientError: in place of MLflow's own, where the server does not answer. `telling`: what it refuses
    as wrong is let through as it is."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    try:
        yield
    except (MlflowException, RequestException) as error:
        code = getattr(error, "error_code", type(error).__name__)
        if telling and code == _OURS:
            raise
        raise TransientError(
            "MLflow does not answer",
            where=config.tracking.split("@")[-1],  # without a password
            value=code,
            valid="a server that answers",
            next="run it again once it does",
        ) from error
