"""A rival in the place of the main model: fitted, chosen, saved, and scored as it will be served.

In: a rival's name, `Items`, `Log`, `Fold`s. Out: a `Rival`, of which the stations of training ask what they ask of a
`Champion`.
What has a grid (popularity, the neighbours, EASE) takes the best of it on validation, what stops early the best epoch;
ALS, BPR and content-NN keep their published settings. What is closed form is fitted again on every window that is
evaluated, as the main model's linear head is; what is learned in steps is not.
Trade-off: it ranks only items that it knows, those with a train row, or with content: an item that it knows nothing of
can't be evaluated into a list that a night would not offer it in.

Shape legend: B cases, N items, M known items, E events of histories.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy import sparse

from mmrec.errors import InputError
from mmrec.models.data import Fold, Items, Log
from mmrec.models.ease import MAX_ITEMS
from mmrec.models.neighbours import ContentNN
from mmrec.models.rivals import STOPPED, published_rivals
from mmrec.models.stored import FACTORS, SPARSE, Stored, store

_CLOSED = ("popularity", *SPARSE)
_GRID = {"popularity": "half_life_days", "item_knn": "k", "user_knn": "k", "ease": "lam"}
Choose = Callable[..., tuple[dict[str, Any], dict[str, float]]]


@dataclass(frozen=True)
class Plan:
    """Which rival, and the settings in which it departs from the published ones."""

    rival: str
    settings: dict[str, Any] = field(default_factory=dict)


class Rival:
    """See the module.

    Args:
        choose: evaluate.protocols.tune, of a grid; only asked where validation folds are given.
        ease_items: the largest catalogue that EASE is solved for.

    Attributes:
        chosen: what validation chose, or is fixed. stored: of the rivals that are arrays. net: of the sequence models,
            over the M items of `ids`.
    """

    name = "champion"  # whatever a version is, its numbers stand under this name in ops.metrics

    def __init__(
        self, recipe: Plan, seed: int = 0, choose: Choose | None = None, *, ease_items: int = MAX_ITEMS
    ) -> None:
        self.recipe, self.seed, self.choose, self.ease_items = recipe, seed, choose, ease_items
        self.chosen: dict[str, Any] = dict(recipe.settings)
        self.curves: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.stored: Stored | None = None
        self.net: Any = None
        self._content: tuple[Items, ContentNN] | None = None
        self._place: tuple[Items, np.ndarray] | None = None

    @property
    def rival(self) -> str:
        return self.recipe.rival

    def fit(self, items: Items, log: Log, fold: Fold, vals: Sequence[Fold] = ()) -> Rival:
        """Fit on `fold.train`; with `vals`, choose what is chosen on validation.

        Raises:
            InputError: EASE of too many items, content-NN without content.
        """
        vals = [v for v in vals if v.n_cases]
        if vals and self.rival in _GRID and self.choose is not None:
            best = self.choose(items, log, vals, names=(self.rival,))[0].get(self.rival)
            if best is not None:
                value = getattr(best, _GRID[self.rival])
                self.chosen[_GRID[self.rival]] = value if np.isfinite(value) else None  # JSON has no infinity
        if self.rival == "content_nn":
            self.content(items)
            return self
        model = self._unfitted()
        model.fit(items, log, fold, vals) if self.rival in STOPPED else model.fit(items, log, fold)
        if self.rival in STOPPED and vals:
            self.chosen["epochs"] = model.best_epoch
        if self.rival in (*FACTORS, *SPARSE):
            self.stored = store(model, items, log, fold)
            self.ids = self.stored.ids
        else:
            self._take_net(model, items, log, fold)
        self._place = None
        return self

    def refresh(self, items: Items, log: Log, fold: Fold) -> Rival:
        """Fit what is closed form on another window; the rest stays."""
        return self.fit(items, log, fold) if self.rival in _CLOSED else self

    def score(self, items: Items, log: Log, fold: Fold, cases: slice, drop: frozenset[str] = frozenset()) -> np.ndarray:
        """(B, N) float32, -inf of items that it does not know. No rival has parts that could be dropped."""
        out = np.full((cases.stop - cases.start, items.n), -np.inf, np.float32)
        if self.rival == "content_nn":
            nearest = self.content(items)
            known_N = nearest.unit_ND.any(1)
            out[:, known_N] = nearest.score(items, log, fold, cases)[:, known_N]
            return out
        at_N = self._places(items)
        ptr = fold.hist_ptr[cases.start : cases.stop + 1]
        place_E = at_N[log.item[fold.hist_row[ptr[0] : ptr[-1]]]]
        before = np.concatenate([[0], np.cumsum(place_E >= 0)])
        place_E, ptr = place_E[place_E >= 0], before[ptr - ptr[0]]
        if self.stored is None:
            known_BM = self.net.rank(place_E, ptr, len(self.ids))
        else:
            ones = np.ones(len(place_E), np.float32)
            h = sparse.csr_matrix((ones, place_E, ptr), shape=(len(out), len(self.ids)))
            h.sum_duplicates()
            h.data[:] = 1
            known_BM = self.stored.score(h, log.user_ids[fold.case_user[cases]])
        out[:, at_N >= 0] = known_BM[:, at_N[at_N >= 0]]
        return out

    def content(self, items: Items) -> ContentNN:
        """Content-NN of a catalogue; it is fitted on nothing else.

        Raises:
            InputError: no item has content.
        """
        if not items.content:
            raise InputError(
                "content_nn needs content",
                where="config: train.model",
                value=self.rival,
                valid="an encoder in night.text, night.image or night.audio",
                next="edit mmrec.toml",
            )
        if self._content is None or self._content[0] is not items:
            nobody = np.zeros(0, np.int64)
            empty = Fold("", nobody.astype(bool), 0, *(nobody,) * 6, nobody.astype(bool))
            self._content = (items, ContentNN().fit(items, Log(nobody, (), *(nobody,) * 6), empty))
        return self._content[1]

    def save(self, folder: Path) -> None:
        """Write settings (JSON) and arrays (safetensors)."""
        folder.mkdir(parents=True, exist_ok=True)
        about = {"rival": self.rival, "seed": self.seed, "chosen": self.chosen, "ids": self.ids,
                 "ease_items": self.ease_items}  # fmt: skip
        (folder / "model.json").write_text(json.dumps(about))
        if self.stored is not None:
            self.stored.save(folder)
        if self.net is not None:
            save_file({k: v.contiguous() for k, v in self.net.net.state_dict().items()}, folder / "net.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Rival:
        """What `save` wrote."""
        about = json.loads((folder / "model.json").read_text())
        made = cls(Plan(about["rival"], about["chosen"]), about["seed"], ease_items=about["ease_items"])
        made.ids = about["ids"]
        if (folder / "net.safetensors").is_file():
            made._restore_net(load_file(folder / "net.safetensors"))
        elif made.rival != "content_nn":
            made.stored = Stored.load(folder)
        return made

    def _unfitted(self) -> Any:
        model: Any = published_rivals(self.seed)[self.rival]
        # a model keeps each setting under the name of its argument
        for key, value in self.chosen.items():
            setattr(model, key, np.inf if value is None else value)
        if self.rival == "ease":
            model.max_items = self.ease_items
        return model

    def _places(self, items: Items) -> np.ndarray:
        """(N,) int64: an item's place in `ids`, -1 of one that is not known."""
        if self._place is None or self._place[0] is not items:
            at = {item: n for n, item in enumerate(self.ids)}
            self._place = (items, np.array([at.get(str(i), -1) for i in items.ids], np.int64))
        return self._place[1]

    def _take_net(self, model: Any, items: Items, log: Log, fold: Fold) -> None:
        """Keep of a sequence model the embeddings of items with a train row."""
        known_M = np.unique(log.item[fold.train])
        self.ids = [str(i) for i in items.ids[known_M]]
        state = dict(model.net.state_dict())
        state["item.weight"] = state["item.weight"][torch.from_numpy(np.concatenate([[0], known_M + 1]))]
        if "bias" in state:
            state["bias"] = state["bias"][torch.from_numpy(known_M.astype(np.int64))]
        self._restore_net(state)

    def _restore_net(self, state: dict[str, torch.Tensor]) -> None:
        self.net = self._unfitted()
        with torch.random.fork_rng(devices=[]):
            self.net.net = self.net._net(len(self.ids))
        self.net.net.load_state_dict(state)
        self.net.net.eval()
