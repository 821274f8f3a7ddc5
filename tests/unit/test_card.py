"""A model card says what bundle.json and the numbers say."""

from __future__ import annotations

from typing import Any

from mmrec.bundle.card import card

ABOUT: dict[str, Any] = {
    "name": "champion", "kind": "two_tower", "as_of": "2026-03-02T00:00:00+00:00", "code": "0.1.0", "features": "abc",
    "config": {"base": 10.0, "content": 0}, "data_versions": {"silver.items": 3}, "encoders": {"text": "bert/1"},
    "parity": {"real": 1e-6},
}  # fmt: skip


def row(model: str, metric: str, value: float, **more: Any) -> dict[str, Any]:
    return {"protocol": "rolling", "split": "test", "slice": "all", "model": model, "metric": metric, "value": value, "n": 77} | more


def test_numbers_stand_by_protocol_with_the_best_model_first() -> None:
    rows = [row("popularity", "ndcg@10", 0.1), row("champion", "ndcg@10", 0.25), row("champion", "recall@10", 0.3),
            row("champion", "ndcg@10", 0.9, split="validation"), row("champion", "ndcg@10", 0.8, slice="cold_items")]  # fmt: skip
    text = card(ABOUT, rows)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table == ["| model | ndcg@10 | recall@10 |", "|---|---|---|", "| champion | 0.2500 | 0.3000 |", "| popularity | 0.1000 |  |"]
    assert "77 cases." in text
    assert text.startswith("# champion as of 2026-03-02\n")
    for said in ("table silver.items: version 3", "encoder of text: bert/1", "base: 10.0", "content: 0", "features: abc"):
        assert f"- {said}\n" in text
    assert "Second stage" not in text
    assert card(ABOUT, rows[::-1]) == text, "whatever the order"


def test_a_second_stage_is_told_of_and_a_version_without_numbers_has_no_table() -> None:
    text = card(ABOUT | {"second_stage": {"depth": 100, "cases": 5, "loss": [4.4, 4.1]}}, [])
    assert "## Second stage\n\n- cases: 5\n- depth: 100\n- loss: [4.4, 4.1]\n" in text
    assert "|" not in text
