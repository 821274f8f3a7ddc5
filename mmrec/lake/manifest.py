"""The manifest: everything a night reads, pinned once. A run is a function of it.

In: table versions, model, config, fences. Out: a JSON document and its digest, the run_id.
Trade-off: fences are part of the identity, so a forced second run of the same inputs has another run_id;
that is what lets a reader tell the two apart.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any

from mmrec.errors import InputError
from mmrec.files import put


@dataclass(frozen=True)
class Manifest:
    """What one night reads.

    Attributes:
        run_date: ISO date. as_of: ISO instant, exclusive. tables: name -> pinned version.
        model_version, model_digest: the bundle. encoders: modality -> encoder version.
        config: the settings that change the content of the lists.
        fences: target table -> fence of its run_date partition.
        code: version of mmrec.
        late: files that were expected and had not come: a run that publishes nothing.
    """

    run_date: str
    as_of: str
    tables: dict[str, int]
    model_version: str
    model_digest: str
    encoders: dict[str, str]
    config: dict[str, Any]
    fences: dict[str, int]
    code: str
    late: list[str] = field(default_factory=list)

    @property
    def run_id(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @property
    def day(self) -> date:
        return date.fromisoformat(self.run_date)

    @property
    def moment(self) -> datetime:
        return datetime.fromisoformat(self.as_of)

    def to_json(self) -> str:
        about = asdict(self)
        if not self.late:  # the usual case keeps the digest it had before there was this field
            del about["late"]
        return json.dumps(about, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise InputError(f"not a manifest: {error}", where="manifest", next="mmrec plan --date D") from error

    def save(self, folder: Path) -> Path:
        """Write `<folder>/<run_id>/manifest.json` whole or not at all."""
        target = folder / self.run_id / "manifest.json"
        put(target, self.to_json())
        return target
