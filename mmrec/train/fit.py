"""The main model: a sequence tower and a linear head in one dot product, fitted, blended, saved.

In: `Items`, `Log`, `Fold`s. Out: a `Champion`, which ranks like any baseline and is served like no baseline: user
vector = [sequence | linear | content profile | 1], item vector = [fused item | linear | content | popularity].
Epochs, blend weights, half-life and history decay are chosen on a validation fold; `recipe.fixed(chosen)` repeats a
fit with them and without one.
Trade-off: the blend is three numbers found by coordinate search, not learned end to end; it costs seconds, can't
overfit, and any part can be switched off to see what it adds.

Shape legend: B cases, L history, T targets of a batch, N items, D model size, R rank of the linear head, C content.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy import sparse

from mmrec.errors import QualityError
from mmrec.models.baselines import Popularity, train_matrix
from mmrec.models.data import Fold, Items, Log
from mmrec.models.fusion import ItemEncoder
from mmrec.models.linear import Likeness, LinearHead, appeal_inputs, fit_appeal, fit_linear, history_weights
from mmrec.models.losses import sampled_softmax
from mmrec.models.tables import latest
from mmrec.models.towers import UserEncoder
from mmrec.train.batches import Batch, Batches
from mmrec.train.blend import blend, blend_cold, first_cases, mask, ndcg
from mmrec.train.inputs import Tensors, blocks, event_inputs, history

_VALIDATED = 8192  # cases that early stopping looks at: a standard error of .002 on sparse data


@dataclass(frozen=True)
class Recipe:
    """Settings of a fit. Those marked * are chosen on validation where a validation fold is given."""

    d: int = 64
    layers: int = 1
    heads: int = 2
    context: int = 64  # events the sequence tower attends to
    length: int = 1024  # events the linear head and the content profile see
    dropout: float = 0.2
    part_dropout: float = 0.25  # share of items that lose their id, and each modality, in a batch
    fusion: str = "gate"  # of an item's id and content: "gate" or "sum"
    warm: float = 0.1  # spread of id embeddings that begin at the linear head's directions; 0: they begin at random
    negative_power: float = 0.5  # negatives are drawn by popularity to this power
    tokens: int = 1024
    negatives: int = 1024
    lr: float = 6e-3
    weight_decay: float = 0.05
    warmup: int = 50  # steps
    epochs: int = 10  # * at most
    every: int = 1  # epochs from one validation to the next
    patience: int = 4  # validations without a better ndcg@10
    lam: float = 400.0
    rank: int = 512
    head_content: float = 50.0  # users that an item's content counts as in the linear head
    content_rank: int = 64  # principal directions kept of each modality
    tau: float = 20.0  # *
    base: float = 0.3  # *
    half_life_days: float = 365.0  # *
    linear: float = 50.0  # * weight of the linear head
    popularity: float = 0.2  # * weight of log popularity
    content: float = 0.0  # * weight of content likeness, items with interactions
    content_cold: float = 4.0  # * the same, items without
    linear_cold: float = 50.0  # * the linear head's weight, items without
    appeal_cold: float = 1.0  # * weight of the popularity that content foretells, items without
    sequence_cold: float = 1.0  # * share of the sequence tower's say, items without interactions
    cold_offset: float = 0.0  # * taken off the score of items without
    image_share: float = 1.0  # * say of pictures in content likeness, against 1 for the rest
    schedule: int = 10  # epochs the cosine is laid out for

    def fixed(self, chosen: dict[str, Any]) -> Recipe:
        """The recipe with what a validation chose."""
        return replace(self, **chosen)


RECIPES: dict[str, Recipe] = {
    "default": Recipe(),
    "small": Recipe(context=32, epochs=8, schedule=8, lam=200.0, rank=128, dropout=0.3, weight_decay=0.3),
    # many small steps: for sets of short sequences, of which published protocols look at the last 50 events
    "sparse": Recipe(context=50, length=50, dropout=0.5, part_dropout=0.1, tokens=1536, lr=1e-3, weight_decay=0.01,
                     warmup=200, epochs=50, schedule=50, every=2, patience=6, fusion="sum", warm=0.0,
                     negative_power=0.0),
}


class Champion:
    """See the module. Implements `Recommender`."""

    name = "champion"

    def __init__(
        self, recipe: Recipe, seed: int = 0, progress: Callable[[str, dict[str, Any]], None] | None = None
    ) -> None:
        self.recipe, self.seed = recipe, seed
        self.progress = progress or (lambda _what, _numbers: None)
        self.chosen: dict[str, Any] = {}
        self.curves: list[dict[str, Any]] = []

    # fitting

    def fit(self, items: Items, log: Log, fold: Fold, vals: Sequence[Fold] = ()) -> Champion:
        """Fit on `fold.train`; with `vals`, stop early on the first and choose the blend on all.

        Raises: QualityError: the loss is not a number, or nothing can be learned from the rows.
        """
        torch.manual_seed(self.seed)
        if fold.train.sum() < 2:
            raise QualityError(
                "there are too few interactions to fit a model",
                where=fold.name,
                value=int(fold.train.sum()),
                valid="at least 2",
                next="mmrec run --no-train",
            )
        for modality, vectors_NM in items.content.items():
            if not np.isfinite(vectors_NM).all():
                row = int(np.argmin(np.isfinite(vectors_NM).all(1)))
                raise QualityError(
                    "a content vector is not a number: nothing is registered",
                    where=f"gold.item_embeddings, {modality}, item {items.ids[row]}",
                    next='mmrec sql "select encoder_version, count(*) from item_embeddings group by 1"',
                )
        self._sides(items, log, fold)
        self._build(len(self.item_map), len(log.event_types))
        self.item_tower.centre({m: mean for m, (mean, _) in self.likeness.maps.items()})
        self._warm(items, log, fold)
        self._train(items, log, fold, [v for v in vals if v.n_cases])
        self.refresh(items, log, fold)
        if vals:
            self.settle(self.chosen | blend(self, items, log, vals))
            self.settle(blend_cold(self, items, log, vals)).refresh(items, log, fold)
        return self

    def settle(self, chosen: dict[str, float]) -> Champion:
        """Take over what a validation chose."""
        self.chosen |= chosen
        self.recipe = self.recipe.fixed(chosen)
        return self

    def refresh(self, items: Items, log: Log, fold: Fold) -> Champion:
        """Fit what is closed form (linear head, popularity) on another window; the sequence tower stays."""
        r = self.recipe
        x_UN = train_matrix(log, fold, items.n)
        like_NC = self.likeness.vectors(items)
        self.head = fit_linear(x_UN, like_NC, lam=r.lam, rank=r.rank, content=r.head_content, seed=self.seed)
        users_N = np.asarray(x_UN.sum(0), np.float64).ravel()
        self.touched_N = users_N > 0
        self.appeal_F = fit_appeal(like_NC, self._present(items), users_N)
        self.popularity_N = Popularity(r.half_life_days).fit(items, log, fold).score_N
        return self

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
        x_UN, none_NC = train_matrix(log, fold, items.n), np.zeros((items.n, 1), np.float32)
        start_NR = fit_linear(x_UN, none_NC, lam=self.recipe.lam, rank=self.recipe.d, content=0.0).behaviour_NR
        rows = start_NR[[items.index[i] for i in self.item_map]]
        rows = rows / max(float(rows.std()), 1e-12) * self.recipe.warm
        if not self.recipe.warm:
            return
        with torch.no_grad():
            self.item_tower.id.weight[1:, : rows.shape[1]] = torch.from_numpy(rows.astype(np.float32))

    def _train(self, items: Items, log: Log, fold: Fold, vals: Sequence[Fold]) -> None:
        r = self.recipe
        parameters = [*self.item_tower.parameters(), *self.user_tower.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=r.lr, weight_decay=r.weight_decay, betas=(0.9, 0.98), fused=True)
        made = Batches(log, fold.train, context=r.context, tokens=r.tokens, seed=self.seed)
        steps = max(1, sum(1 for _ in made.epoch(0)))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: min(1.0, (s + 1) / r.warmup) * (
            0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * min(1.0, s / (steps * r.schedule))))))  # fmt: skip
        tensors = self._tensors(items)
        count_N = np.bincount(log.item[fold.train], minlength=items.n).astype(np.float64)
        share_N = np.where(count_N > 0, count_N**r.negative_power, 0)
        share_N /= share_N.sum()
        rng = np.random.default_rng(self.seed)
        best, best_state, waited = -1.0, None, 0
        for epoch in range(r.epochs):
            begun, total, tokens = time.monotonic(), 0.0, 0
            self.item_tower.train()
            self.user_tower.train()
            for batch in made.epoch(epoch):
                if not batch.asked_BL.any():
                    continue
                loss, n = self._loss(log, batch, tensors, share_N, rng)
                if not torch.isfinite(loss):
                    raise QualityError(
                        "the loss is not a number: nothing is registered",
                        where=f"epoch {epoch}",
                        value=float(loss),
                        next="lower the recipe's lr",
                    )
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimiser.step()
                scheduler.step()
                total, tokens = total + float(loss.detach()) * n, tokens + n
            seconds = time.monotonic() - begun
            row: dict[str, Any] = {"epoch": epoch + 1, "loss": total / max(tokens, 1), "seconds": round(seconds, 2),
                                   "tokens_per_s": round(tokens / seconds)}  # fmt: skip
            if vals and ((epoch + 1) % r.every == 0 or epoch + 1 == r.epochs):
                row["val_ndcg@10"] = self._validate(items, log, vals)
                if row["val_ndcg@10"] > best:
                    best, waited, best_state = row["val_ndcg@10"], 0, self._state()
                    self.chosen["epochs"] = epoch + 1
                else:
                    waited += 1
            self.curves.append(row)
            self.progress("epoch", row)
            if vals and waited >= r.patience:
                break
        if best_state is not None:
            self._restore(best_state)
        self.item_tower.eval()
        self.user_tower.eval()

    def _validate(self, items: Items, log: Log, vals: Sequence[Fold]) -> float:
        self.item_tower.eval()
        self.user_tower.eval()
        values, weights = [], []
        for v in vals:
            for part in blocks(first_cases(v, _VALIDATED), 1024):
                scores = mask(v, log, self.sequence_scores(items, log, v, part), part.start)
                values.append(ndcg(v, scores, part.start))
                weights.append(part.stop - part.start)
        return float(np.average(values, weights=weights))

    def _loss(
        self, log: Log, batch: Batch, tensors: Tensors, share_N: np.ndarray, rng: np.random.Generator
    ) -> tuple[torch.Tensor, int]:
        r = self.recipe
        rows, mask = np.maximum(batch.rows_BL, 0), batch.rows_BL >= 0
        gap = np.where(mask, log.ts_us[np.maximum(batch.next_BL, 0)] - log.ts_us[rows], 0) / 1e6
        target = log.item[batch.next_BL[batch.asked_BL]]
        negative = rng.choice(len(share_N), r.negatives, p=share_N)
        needed, where = np.unique(np.concatenate([log.item[rows[mask]], target, negative]), return_inverse=True)
        vector_ND = self.item_tower(*tensors.take(needed, rng, r.part_dropout))
        n, t = int(mask.sum()), len(target)
        item_BLD = torch.zeros(*mask.shape, r.d)
        item_BLD[torch.from_numpy(mask)] = vector_ND[torch.from_numpy(where[:n])]
        user_BLD = self.user_tower(item_BLD, *event_inputs(log.event[rows] + 1, gap, log.weight[rows], mask))
        log_expected = torch.from_numpy(np.log(share_N[negative] * r.negatives)).float()
        loss = sampled_softmax(
            user_BLD[torch.from_numpy(batch.asked_BL)], vector_ND[torch.from_numpy(where[n : n + t])],
            torch.from_numpy(target), vector_ND[torch.from_numpy(where[n + t :])], torch.from_numpy(negative),
            log_expected)  # fmt: skip
        return loss, t

    # ranking

    def score(self, items: Items, log: Log, fold: Fold, cases: slice, drop: frozenset[str] = frozenset()) -> np.ndarray:
        """(B, N) float32; `drop` names parts of an item to mask: "id" or a modality."""
        r = self.recipe
        like_NC = self.likeness.vectors(items, drop, r.image_share)
        history_NR, offer_NR = self.head.factors(self.likeness.vectors(items, drop), "id" not in drop)
        content_N1 = np.where(self.touched_N, r.content, r.content_cold).astype(np.float32)[:, None]
        linear_N1 = np.where(self.touched_N, r.linear, r.linear_cold).astype(np.float32)[:, None]
        cold_N = (~self.touched_N).astype(np.float32)
        out = self.sequence_scores(items, log, fold, cases, drop) * (1 - cold_N * (1 - r.sequence_cold))
        out += self.profile(log, fold, cases, history_NR) @ (linear_N1 * offer_NR).T
        out += self.profile(log, fold, cases, like_NC, flat=True) @ (content_N1 * like_NC).T
        cold_bias_N = r.appeal_cold * self.appeal(items, drop) - r.cold_offset
        return out + (r.popularity * np.log1p(self.popularity_N) + cold_N * cold_bias_N).astype(np.float32)

    @torch.no_grad()
    def sequence_scores(
        self, items: Items, log: Log, fold: Fold, cases: slice, drop: frozenset[str] = frozenset()
    ) -> np.ndarray:
        vector_ND = self.item_vectors(items, drop)
        out = []
        for part in blocks(cases, 512):
            rows_BL, mask_BL = history(fold, part, self.recipe.context)
            rows = np.maximum(rows_BL, 0)
            after = np.concatenate([log.ts_us[rows[:, 1:]], fold.case_at_us[part, None]], 1)
            gap = np.where(mask_BL, after - log.ts_us[rows], 0) / 1e6
            item_BLD = vector_ND[torch.from_numpy(log.item[rows].astype(np.int64))] * torch.from_numpy(
                mask_BL
            ).unsqueeze(2)
            side = event_inputs(log.event[rows] + 1, gap, log.weight[rows], mask_BL)
            user_BD = self.user_tower(item_BLD, *side)[:, -1]
            out.append((user_BD @ vector_ND.T).numpy())
        return np.concatenate(out) if out else np.zeros((0, items.n), np.float32)

    @torch.no_grad()
    def item_vectors(self, items: Items, drop: frozenset[str] = frozenset()) -> torch.Tensor:
        """(N, D): fused vectors of a catalogue, whatever part of it the model has met."""
        index, content, present = self._tensors(items).all()
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
        made = cls(Recipe(**about["recipe"]), about["seed"])
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
