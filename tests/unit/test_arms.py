"""Who is in which arm: a share, the same users every night, more of them for a greater share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrec.canary import of_manifest
from mmrec.lake.manifest import Manifest
from mmrec.night import _text_fields
from mmrec.recommend.arms import CANARY, MAIN, served_by

USERS = [f"u{n}" for n in range(20_000)]


@given(st.lists(st.text(), max_size=20), st.floats(0, 1, exclude_max=True), st.text())
def test_everybody_is_in_one_arm_whoever_else_is_asked(users: list[str], share: float, version: str) -> None:
    told = {"version": version, "share": share}
    main, canary = (served_by(arm, told, users) for arm in (MAIN, CANARY))
    assert (main ^ canary).all()
    assert [served_by(CANARY, told, [u])[0] for u in users] == canary.tolist()
    assert served_by(MAIN, None, users).all()
    assert not served_by(CANARY, None, users).any()


def test_shares_are_right_and_grow_and_another_version_has_other_users() -> None:
    tenth, half = (served_by(CANARY, {"version": "3", "share": s}, USERS) for s in (0.1, 0.5))
    # 20,000 draws: a standard error of .002 and .0035; five of them
    assert abs(tenth.mean() - 0.1) < 0.0106
    assert abs(half.mean() - 0.5) < 0.0177
    assert half[tenth].all()
    other = served_by(CANARY, {"version": "4", "share": 0.5}, USERS)
    assert abs((other & half).mean() - 0.25) < 0.0153
    assert not served_by(CANARY, {"version": "3", "share": 0.0}, USERS).any()


@pytest.mark.parametrize(("main", "canary", "want"), [(None, None, "joined"), ("separate", None, "separate"), (None, "separate", "separate"), ("separate", "separate", "separate")])
def test_features_have_the_texts_that_either_model_looks_at(main: str | None, canary: str | None, want: str) -> None:
    own, theirs = ({"half_life_days": 30.0} | ({"text_fields": f} if f else {}) for f in (main, canary))
    plain = Manifest("2026-03-01", "", {}, "1", "d1", {}, own | {"k": 3}, {}, "")
    assert of_manifest(plain) is None
    assert _text_fields(plain) == (main or "joined")
    both = Manifest("2026-03-01", "", {}, "1", "d1", {}, own | {"k": 3, "canary": {"version": "2", "digest": "d2", "share": 0.1, "encoders": {"text": "t"}, "config": theirs}}, {}, "")
    assert _text_fields(both) == want
    trial = of_manifest(both)
    assert trial is not None
    assert (trial.model_version, trial.model_digest, trial.encoders) == ("2", "d2", {"text": "t"})
    assert trial.config == theirs | {"k": 3}
