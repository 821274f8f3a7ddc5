"""All models that a published comparison is made with, on one protocol and in one table.

In: a seed. Out: unfitted `Recommender`s by name, in the order of a table: from what knows nobody to what is learnt.
Each class says where it departs from its publication. ALS's factors and user-kNN's neighbours are the best of two on
the validation fold of Amazon Beauty; the other settings were not searched.
Trade-off: one setting each; who compares on other data chooses popularity's, the neighbours' and EASE's anew by
`mmrec.evaluate.protocols.tune`.
"""

from __future__ import annotations

from mmrec.models.baselines import Popularity, Recommender
from mmrec.models.ease import EASE
from mmrec.models.factors import ALS, BPR
from mmrec.models.graph import LightGCN
from mmrec.models.neighbours import ContentNN, ItemKNN, UserKNN
from mmrec.models.sequential import GRU4Rec, SASRec

# their `fit` takes validation folds, `vals`, and stops by them
STOPPED = ("lightgcn", "gru4rec", "sasrec")


def published_rivals(seed: int = 0) -> dict[str, Recommender]:
    """name -> a model to be fitted; those in `STOPPED` take minutes for some hundred thousand interactions."""
    made: list[Recommender] = [
        Popularity(), ContentNN(), ItemKNN(), UserKNN(500), EASE(), ALS(128, seed=seed), BPR(seed=seed),
        LightGCN(seed=seed), GRU4Rec(seed=seed), SASRec(seed=seed),
    ]  # fmt: skip
    return {model.name: model for model in made}
