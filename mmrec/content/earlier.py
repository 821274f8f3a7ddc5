"""An encoder version that a served model was trained on and the settings no longer name.

In: modality, version, the names under which it could be opened. Out: an Encoder of exactly that version, or `Unfed`.
Trade-off: it is opened when the first content waits for it, because naming the version of a model in a folder means to
read its weights; that the folder is gone shows on the first night that brings something new.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmrec.content.encoders import Encoder, encoder
from mmrec.errors import InputError


class Unfed(Exception):
    """An encoder version has contents waiting and can't be opened any more; its text says why."""


class Earlier:
    """An Encoder (modality, version, dim, encode) of an earlier version.

    Args:
        names: what settings called it, as `encoder` takes them; the first that opens this very version is used.
    """

    def __init__(
        self, modality: str, version: str, names: Sequence[str], cache: Path, device: str = "cpu", threads: int = 2
    ) -> None:
        self.modality, self.version, self.names = modality, version, names
        self._how = (cache, device, threads, modality)
        self._opened: Encoder | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        cache, device, threads, _ = self._how
        return Earlier, (self.modality, self.version, self.names, cache, device, threads)

    @property
    def dim(self) -> int:
        """The vector's size. Raises: as `encode`."""
        return self._ready().dim

    def encode(self, raw: Sequence[Any]) -> tuple[np.ndarray, list[str | None]]:
        """Rows to (B, D) float32, zero where refused, and the reason or None of each row.

        Raises: Unfed: no name opens this version. TransientError: its export was killed.
        """
        return self._ready().encode(raw)

    def _ready(self) -> Encoder:
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def _open(self) -> Encoder:
        why = [] if self.names else ["its bundle does not say how it is opened, and the settings name another"]
        for name in self.names:
            try:
                made = encoder(name, *self._how)
                if made.version == self.version:
                    made.dim  # noqa: B018  a model of a folder is exported here, if it must be
                    return made
                why.append(f"{name} is another version now, {made.version}")
            except InputError as error:
                why.append(f"{name} can't be opened: {error.what}")
        raise Unfed("; ".join(why))
