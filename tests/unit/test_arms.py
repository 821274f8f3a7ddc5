"""Who is in which arm: a share, the same users every night, more of them for a greater share."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

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
