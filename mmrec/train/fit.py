"""The main model: a sequence tower and a linear head in one dot product, fitted, blended, saved.

In: `Items`, `Log`, `Fold`s. Out: a `Champion`, which ranks like any baseline: user vector = [sequence, 1 | linear, 1 |
content profile, 1], item vector = [fused item, popularity | linear | content], each of the three with a third of what
holds cold items back. Their dot product ranks, or what a blend makes of the three (topk/rerank.py).
Epochs, blend weights, half-life and history decay are chosen on a validation fold; `recipe.fixed(chosen)` repeats a
fit with them and without one.
Trade-off: the blend is a few numbers chosen on validation, not learned end to end; it costs seconds, and any part can
be switched off to see what it adds.

Shape legend: B cases, L history, N items, D model size, R rank of the linear head, C content, V columns of a vector.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy import sparse
from torch import nn

from mmrec.errors import QualityError
from mmrec.models.baselines import Popularity, train_matrix
from mmrec.models.data import Fold, Items, Log, events_a_user
from mmrec.models.fusion import ItemEncoder
from mmrec.models.linear import Likeness, LinearHead, appeal_inputs, fit_appeal, fit_linear, history_weights
from mmrec.models.tables import latest
from mmrec.models.towers import UserEncoder
from mmrec.topk.members import Offers, candidates
from mmrec.topk.rerank import Rerank, behind
from mmrec.train.blend import Search, blend
from mmrec.train.checkpoint import Checkpoint, fingerprint
from mmrec.train.cold import blend_cold
from mmrec.train.device import device_named
from mmrec.train.inputs import Tensors, blocks, event_inputs, history
from mmrec.train.loop import train, validation_ndcg
from mmrec.train.parallel import hand_over
from mmrec.train.recipe import Recipe
from mmrec.train.stack import stack
from mmrec.train.world import World


class Champion:
    """See the module. Implements `Recommender`."""

    name = "champion"

    def __init__(
        self, recipe: Recipe, seed: int = 0, progress: Callable[[str, dict[str, Any]], None] | None = None,
        stepped: Callable[[int, float], None] | None = None, *, state: Path | None = None, device: str = "cpu",
        processes: int = 1,
    ) -> None:  # fmt: skip
        """What a fit is made with.

        Args:
            progress: called with ("epoch", its row). stepped: with a step's targets and loss.
            state: folder of the fit's checkpoint; a fit that was killed goes on from there. It is gone after the fit.
            device: where the towers train, as config.device; everything else is done on the CPU.
            processes: that share the towers' training.
        """
        self.recipe, self.seed, self.stepped = recipe, seed, stepped
        self.state, self.device, self.processes = state, device, processes
        self.progress = progress or (lambda _what, _numbers: None)
        self.chosen: dict[str, Any] = {}
        self.curves: list[dict[str, Any]] = []
        self._side: tuple[Items, Any, tuple[np.ndarray, ...]] | None = None  # the catalogue that was last asked for
        self._offers: tuple[np.ndarray, Fold, Offers] | None = None  # the same, as the members have it
        # while weights are chosen, what is closed form is kept of every window: none of it depends on them
        self._windows: list[tuple[Fold, tuple[LinearHead, np.ndarray, np.ndarray]]] | None = None

    # fitting

    def fit(self, items: Items, log: Log, fold: Fold, vals: Sequence[Fold] = ()) -> Champion:
        """Fit on `fold.train`; with `vals`, stop early and choose the blend on all of them.

        Raises: QualityError: the loss is not a number, or nothing can be learned from the rows.
        """
        torch.manual_seed(self.seed)
        if fold.train.sum() < 2:
            raise QualityError("there are too few interactions to fit a model", where=fold.name,
                               value=int(fold.train.sum()), valid="at least 2",
                               next="mmrec run --no-train")  # fmt: skip
        for modality, vectors_NM in items.content.items():
            if not np.isfinite(vectors_NM).all():
                row = int(np.argmin(np.isfinite(vectors_NM).all(1)))
                raise QualityError(
                    "a content vector is not a number: nothing is registered",
                    where=f"gold.item_embeddings, {modality}, item {items.ids[row]}",
                    next='mmrec sql "select encoder_version, count(*) from item_embeddings group by 1"',
                )
        self.settle(self.recipe.pace(events_a_user(log, fold.train)))
        self._sides(items, log, fold)
        self._build(len(self.item_map), len(log.event_types))
        self.item_tower.centre({m: mean for m, (mean, _) in self.likeness.maps.items()})
        self._warm(items, log, fold)
        vals = [v for v in vals if v.n_cases]
        self._train(items, log, fold, vals)
        if vals:
            self._windows = []
            search = Search(self, items, log, vals)
            self.settle(self.chosen | blend(search))
            self.settle(blend_cold(search))
            self.settle(stack(self, items, log, vals))
        self.refresh(items, log, fold)
        self._windows = None
        if self.state is not None:
            shutil.rmtree(self.state, ignore_errors=True)
        return self

    def settle(self, chosen: dict[str, Any]) -> Champion:
        """Take over what a validation chose."""
        self.chosen |= chosen
        self.recipe = self.recipe.fixed(chosen)
        return self

    def refresh(self, items: Items, log: Log, fold: Fold) -> Champion:
        """Fit what is closed form (linear head, popularity) on another window; the sequence tower stays."""
        there = next((made for window, made in self._windows or () if window is fold), None)
        if there is None:
            there = self._closed_form(items, log, fold)
            if self._windows is not None:
                self._windows.append((fold, there))
        self.head, self.touched_N, self.appeal_F = there
        self.popularity_N = Popularity(self.recipe.half_life_days).fit(items, log, fold).score_N
        self._side = None
        return self

    def _closed_form(self, items: Items, log: Log, fold: Fold) -> tuple[LinearHead, np.ndarray, np.ndarray]:
        r, x_UN = self.recipe, train_matrix(log, fold, items.n)
        like_NC = self.likeness.vectors(items)
        head = fit_linear(x_UN, like_NC, lam=r.lam, rank=r.rank, content=r.head_content, seed=self.seed)
        users_N = np.asarray(x_UN.sum(0), np.float64).ravel()
        return head, users_N > 0, fit_appeal(like_NC, self._present(items), users_N)

    def _sides(self, items: Items, log: Log, fold: Fold) -> None:
        touched = np.zeros(items.n, bool)
        touched[log.item[fold.train]] = True
        self.item_map = [str(i) for i in items.ids[touched]]
        self.event_types = log.event_types
        self.dims = {m: v.shape[1] for m, v in items.content.items()}
        self.likeness = Likeness.fit(items, self.recipe.content_rank)

    def _build(self, n_items: int, n_events: int) -> None:
        r = self.recipe
        self.item_tower = ItemEncoder(n_items, self.dims, r.d, r.fusion)
        self.user_tower = UserEncoder(
            r.d, n_events, layers=r.layers, heads=r.heads, context=r.context, dropout=r.dropout
        )

    def _warm(self, items: Items, log: Log, fold: Fold) -> None:
        """Begin id embeddings at the strongest directions of the linear head: fewer epochs to the same place."""
        if not self.recipe.warm:
            return
        x_UN, none_NC = train_matrix(log, fold, items.n), np.zeros((items.n, 1), np.float32)
        start_NR = fit_linear(x_UN, none_NC, lam=self.recipe.lam, rank=self.recipe.d, content=0.0).behaviour_NR
        rows = start_NR[[items.index[i] for i in self.item_map]]
        rows = rows / max(float(rows.std()), 1e-12) * self.recipe.warm
        with torch.no_grad():
            self.item_tower.id.weight[1:, : rows.shape[1]] = torch.from_numpy(rows.astype(np.float32))

    def _train(self, items: Items, log: Log, fold: Fold, vals: Sequence[Fold]) -> None:
        if self.processes > 1:
            best = hand_over(self, items, log, fold, vals)
        else:
            best = self.train(items, log, fold, vals, device_named(self.device))
        if best is not None:
            self.chosen["epochs"] = best

    def fingerprint(self, items: Items, log: Log, fold: Fold, vals: Sequence[Fold] = ()) -> str:
        """Of all that a fit depends on, before it: equal where it would give the same."""
        return fingerprint(self.recipe, self.seed, self.device, self.processes, items, log, fold, list(vals))

    def train(
        self, items: Items, log: Log, fold: Fold, vals: Sequence[Fold], device: torch.device, world: World | None = None
    ) -> int | None:
        """The loop over the towers as they are, see loop.py; they end on the CPU. Part of `fit`, or of one process of
        `world` that does this part of it."""
        towers = nn.ModuleDict({"item": self.item_tower, "user": self.user_tower})

        def validate() -> float:
            vector_ND = self.item_vectors(items)
            return validation_ndcg(log, vals, partial(self.sequence_scores, items, log, vector_ND=vector_ND))

        checkpoint = None
        if self.state is not None:
            checkpoint = Checkpoint(self.state, self.fingerprint(items, log, fold, vals))
        best = train(towers, log, fold.train, self._tensors(items).to(device), self.recipe, seed=self.seed,
                     told=self._told, validate=validate if vals else None, stepped=self.stepped,
                     checkpoint=checkpoint, world=world)  # fmt: skip
        towers.cpu()
        return best

    def _told(self, row: dict[str, Any]) -> None:
        self.curves.append(row)
        self.progress("epoch", row)

    # ranking

    def score(self, items: Items, log: Log, fold: Fold, cases: slice, drop: frozenset[str] = frozenset()) -> np.ndarray:
        """(B, N) float32; `drop` names parts of an item to mask: "id" or a modality.

        Where the blend re-ranks, its candidates have the scores of their lists, and all else lies behind them.
        """
        user_BV, item_NV = self.user_side(items, log, fold, cases, drop), self.item_side(items, drop)
        out_BN, how = user_BV @ item_NV.T, self.rerank
        if how is None:
            return out_BN
        ptr = fold.hist_ptr[cases.start : cases.start + len(out_BN) + 1]
        seen = (ptr - ptr[0], log.item[fold.hist_row[ptr[0] : ptr[-1]]])
        if self._offers is None or self._offers[0] is not item_NV or self._offers[1] is not fold:
            self._offers = (item_NV, fold, Offers(item_NV, how.members, ~self.touched_N, fold.catalogue))
        found = candidates(user_BV, self._offers[2], how.depth, seen=seen)
        total_BC = how.combined(found.score_BCP, found.rank_BCP).astype(np.float32)
        for b, item_C in enumerate(found.item_BC):
            there_C = item_C >= 0
            out_BN[b] = behind(out_BN[b], total_BC[b, there_C].min(initial=0))
            out_BN[b, item_C[there_C]] = total_BC[b, there_C]
        return out_BN

    def user_side(
        self, items: Items, log: Log, fold: Fold, cases: slice, drop: frozenset[str] = frozenset()
    ) -> np.ndarray:
        """(B, V) float32: users' half of the dot product."""
        _, history_NR, like_NC, tower_ND = self._sides_of(items, drop)
        parts = (self.sequence_users(log, fold, cases, torch.from_numpy(tower_ND)),
                 self.profile(log, fold, cases, history_NR),
                 self.profile(log, fold, cases, like_NC, flat=True))  # fmt: skip
        return np.concatenate([x for part in parts for x in (part, np.ones((len(part), 1), np.float32))], 1)

    def item_side(self, items: Items, drop: frozenset[str] = frozenset()) -> np.ndarray:
        """(N, V) float32: items' half of the dot product."""
        return self._sides_of(items, drop)[0]

    def _sides_of(self, items: Items, drop: frozenset[str]) -> tuple[np.ndarray, ...]:
        """(N, V) what is ranked, then what histories are made of: (N, R) linear, (N, C) content, (N, D) tower."""
        if self._side is None or self._side[0] is not items or self._side[1] != (self.recipe, drop):
            self._side = (items, (self.recipe, drop), self._made_sides(items, drop))
        return self._side[2]

    def _made_sides(self, items: Items, drop: frozenset[str]) -> tuple[np.ndarray, ...]:
        r = self.recipe
        tower_ND = self.item_vectors(items, drop).numpy()
        cold_N1 = (~self.touched_N).astype(np.float32)[:, None]
        history_NR, like_NC, linear_NR, content_NC = self._weighed(items, drop)
        held_N1 = cold_N1 * (r.cold_offset / 3)
        bias_N1 = r.popularity * np.log1p(self.popularity_N)[:, None]
        bias_N1 = bias_N1 + cold_N1 * r.appeal_cold * self.appeal(items, drop)[:, None] - held_N1
        parts = (tower_ND * (1 - cold_N1 * (1 - r.sequence_cold)), bias_N1, linear_NR, -held_N1, content_NC, -held_N1)
        return np.concatenate(parts, 1).astype(np.float32), history_NR, like_NC, tower_ND

    def _weighed(self, items: Items, drop: frozenset[str] = frozenset()) -> tuple[np.ndarray, ...]:
        """(N, R) and (N, C) of histories, then of offers, these in their weights."""
        r, cold_N1 = self.recipe, ~self.touched_N[:, None]
        like_NC = self.likeness.vectors(items, drop, r.image_share)
        history_NR, offer_NR = self.head.factors(self.likeness.vectors(items, drop), "id" not in drop)
        linear_N1 = np.where(cold_N1, r.linear_cold, r.linear).astype(np.float32)
        content_N1 = np.where(cold_N1, r.content_cold, r.content).astype(np.float32)
        return history_NR, like_NC, linear_N1 * offer_NR, content_N1 * like_NC

    @property
    def members(self) -> tuple[tuple[int, int], ...]:
        """Columns of the sequence tower with popularity, the linear head, and content where there is any."""
        d, rank = self.recipe.d, self.head.behaviour_NR.shape[1]
        ends = [0, d + 1, d + 1 + rank + 1]
        if self.dims:
            ends.append(ends[-1] + sum(b.shape[1] for _, b in self.likeness.maps.values()) + 1)
        return tuple(pairwise(ends))

    @property
    def rerank(self) -> Rerank | None:
        """How the blend re-ranks; None: the dot product ranks."""
        r = self.recipe
        return None if r.blend == "scores" else Rerank(r.blend, r.depth, self.members, tuple(r.blend_weights))

    @torch.no_grad()
    def sequence_scores(
        self, items: Items, log: Log, fold: Fold, cases: slice, drop: frozenset[str] = frozenset(),
        vector_ND: torch.Tensor | None = None,
    ) -> np.ndarray:  # fmt: skip
        """(B, N) float32 of the sequence tower alone; `vector_ND`: what `item_vectors` gave, if it was asked before."""
        vector_ND = self.item_vectors(items, drop) if vector_ND is None else vector_ND
        return self.sequence_users(log, fold, cases, vector_ND) @ vector_ND.cpu().numpy().T

    @torch.no_grad()
    def sequence_users(self, log: Log, fold: Fold, cases: slice, vector_ND: torch.Tensor) -> np.ndarray:
        """(B, D) float32 of cases whose histories' items have the vectors `vector_ND` (N, D)."""
        device, user_BD = vector_ND.device, np.empty((cases.stop - cases.start, self.recipe.d), np.float32)
        # those of a block are alike in length: little is padding
        order_B = np.argsort(np.diff(fold.hist_ptr[cases.start : cases.stop + 1]), kind="stable")
        for part in blocks(slice(0, len(order_B)), 512):
            own = cases.start + order_B[part]
            rows_BL, mask_BL = history(fold, own, self.recipe.context)
            rows = np.maximum(rows_BL, 0)
            after = np.concatenate([log.ts_us[rows[:, 1:]], fold.case_at_us[own, None]], 1)
            gap = np.where(mask_BL, after - log.ts_us[rows], 0) / 1e6
            side = [x.to(device) for x in event_inputs(log.event[rows] + 1, gap, log.weight[rows], mask_BL)]
            item_BLD = vector_ND[torch.from_numpy(log.item[rows].astype(np.int64)).to(device)] * side[-1].unsqueeze(2)
            user_BD[order_B[part]] = self.user_tower(item_BLD, *side)[:, -1].cpu().numpy()
        return user_BD

    @torch.no_grad()
    def item_vectors(self, items: Items, drop: frozenset[str] = frozenset()) -> torch.Tensor:
        """(N, D): fused vectors of a catalogue, whatever part of it the model has met."""
        index, content, present = self._tensors(items).to(self.item_tower.scale.device).all()
        index = torch.zeros_like(index) if "id" in drop else index
        present = {m: torch.zeros_like(p) if m in drop else p for m, p in present.items()}
        return self.item_tower(index, content, present)

    def appeal(self, items: Items, drop: frozenset[str] = frozenset()) -> np.ndarray:
        """(N,) float32: log popularity as content foretells it."""
        return appeal_inputs(self.likeness.vectors(items, drop), self._present(items, drop)) @ self.appeal_F

    def profile(self, log: Log, fold: Fold, cases: slice, factor_NR: np.ndarray, flat: bool = False) -> np.ndarray:
        """(B, R) float32: weighted sums of a history's factors over the root of the weights' sum, so that a long
        history counts for more than a short one, but not in proportion. An item counts once, by its latest event.
        `flat`: every item the same, for content, where taste is slower than the sequence."""
        r = self.recipe
        weight_L = np.ones(r.length, np.float32) if flat else history_weights(r.length, tau=r.tau, base=r.base)
        out = []
        for part in blocks(cases, 512):
            rows_BL, mask_BL = history(fold, part, r.length)
            n, width = rows_BL.shape
            mask_BL = latest(log.item[np.maximum(rows_BL, 0)], mask_BL)
            w_BL = mask_BL * weight_L[r.length - width :]
            b, at = np.nonzero(mask_BL)
            w_BN = sparse.csr_matrix((w_BL[b, at], (b, log.item[rows_BL[b, at]])), shape=(n, len(factor_NR)))
            out.append(np.asarray(w_BN @ factor_NR) / np.sqrt(np.maximum(w_BL.sum(1, keepdims=True), 1e-6)))
        return np.concatenate(out).astype(np.float32) if out else np.zeros((0, factor_NR.shape[1]), np.float32)

    # parts

    def _tensors(self, items: Items) -> Tensors:
        at = {item: i + 1 for i, item in enumerate(self.item_map)}
        index = np.array([at.get(str(i), 0) for i in items.ids], np.int64)
        return Tensors(index, {m: items.content[m] for m in self.dims}, {m: items.present[m] for m in self.dims})

    def _present(self, items: Items, drop: frozenset[str] = frozenset()) -> np.ndarray:
        """(N, M) bool, modalities in order of name."""
        there = [items.present[m] & (m not in drop) for m in sorted(self.dims)]
        return np.stack(there, 1) if there else np.zeros((items.n, 0), bool)

    def _state(self) -> dict[str, torch.Tensor]:
        both = {"item": self.item_tower, "user": self.user_tower}
        return {f"{side}.{k}": v.clone() for side, tower in both.items() for k, v in tower.state_dict().items()}

    def _restore(self, state: dict[str, torch.Tensor]) -> None:
        for side, tower in {"item": self.item_tower, "user": self.user_tower}.items():
            tower.load_state_dict({k.removeprefix(f"{side}."): v for k, v in state.items() if k.startswith(f"{side}.")})

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and everything else (JSON)."""
        folder.mkdir(parents=True, exist_ok=True)
        head = {
            "head.behaviour": torch.from_numpy(self.head.behaviour_NR),
            "head.content": torch.from_numpy(self.head.content_CR),
            "appeal": torch.from_numpy(self.appeal_F),
            "touched": torch.from_numpy(self.touched_N),
            "popularity": torch.from_numpy(np.ascontiguousarray(self.popularity_N)),
        }
        save_file(
            {k: v.contiguous() for k, v in (self._state() | head | self.likeness.tensors()).items()},
            folder / "model.safetensors",
        )
        about = {
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "chosen": self.chosen,
            "curves": self.curves,
            "item_map": self.item_map,
            "event_types": list(self.event_types),
            "dims": self.dims,
        }
        (folder / "model.json").write_text(json.dumps(about))

    @classmethod
    def load(cls, folder: Path) -> Champion:
        """What `save` wrote."""
        about = json.loads((folder / "model.json").read_text())
        made = cls(Recipe().fixed(about["recipe"]), about["seed"])
        made.chosen, made.curves, made.item_map = about["chosen"], about["curves"], about["item_map"]
        made.event_types, made.dims = tuple(about["event_types"]), about["dims"]
        state = load_file(folder / "model.safetensors")
        made.likeness = Likeness.of(state)
        made._build(len(made.item_map), len(made.event_types))
        made._restore({k: v for k, v in state.items() if k.startswith(("item.", "user."))})
        made.head = LinearHead(state["head.behaviour"].numpy(), state["head.content"].numpy())
        made.popularity_N, made.touched_N = state["popularity"].numpy(), state["touched"].numpy()
        made.appeal_F = state["appeal"].numpy()
        made.item_tower.eval()
        made.user_tower.eval()
        return made
