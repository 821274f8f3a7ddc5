"""Published numbers of sequential recommendation, and the one protocol under which they may be compared.

In: a name of a set. Out: rows of (model, recall@10, ndcg@10, source) for it; none for a set nobody has published on.
Every row is full ranking, leave-one-out: the last interaction of a user is asked for, the one before it chooses, the
rest trains; items of the history are not offered. Numbers against sampled negatives are another thing (Krichene and
Rendle, KDD 2020) and none is here.
Trade-off: rows are what papers report, not what was run again; where a re-run is known to give less, the row says so.
"""

from __future__ import annotations

from typing import Any

_ROWS: tuple[tuple[str, str, dict[str, tuple[float, float | None]]], ...] = (
    ("SASRec, binary loss", "as reported by Zhou et al., S3-Rec, CIKM 2020",
     {"beauty": (0.0605, 0.0318), "sports": (0.0350, 0.0192)}),
    ("TIGER", "Rajput et al., NeurIPS 2023", {"beauty": (0.0648, 0.0384), "sports": (0.0400, 0.0225)}),
    ("ActionPiece", "Hou et al., ICML 2025", {"beauty": (0.0775, 0.0424), "sports": (0.0500, 0.0264)}),
    ("HSTU, cross-entropy", "as re-run in later papers", {"beauty": (0.0859, 0.0441), "sports": (0.0439, 0.0232)}),
    ("SASRec, sampled softmax", "eSASRec, RecSys 2025", {"beauty": (0.0921, 0.0531), "sports": (0.0569, 0.0314)}),
    ("eSASRec", "RecSys 2025", {"beauty": (0.0928, 0.0523), "sports": (0.0560, 0.0323)}),
    ("OneRec-SFT 1.7B", "as reported", {"beauty": (0.0925, 0.0501), "sports": (0.0596, 0.0325)}),
    ("BSARec", "Shin et al., AAAI 2024; a re-run reports less", {"beauty": (0.1008, 0.0611), "sports": (0.0612, None)}),
)  # fmt: skip


def published(name: str) -> list[dict[str, Any]]:
    """Rows for a set, worst recall@10 first: model, source, recall@10, ndcg@10 (None where a paper has none)."""
    rows = [{"model": model, "source": source, "recall@10": got[name][0], "ndcg@10": got[name][1]}
            for model, source, got in _ROWS if name in got]  # fmt: skip
    return sorted(rows, key=lambda row: row["recall@10"])
