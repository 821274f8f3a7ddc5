"""kill -9 of whole nights at random moments: what readers see between, and what is there in the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.conftest import mmrec, share_encoders
from tests.soak.kills import life

KILLS, SEED = 4, 0  # of the 200 of `make soak`


def test_kill_9_at_any_moment_of_a_night_leaves_the_same_rows_as_an_undisturbed_twin(tmp_path: Path, encoders_cache: Path, tried: Callable[[str, object], None]) -> None:
    told = life(tmp_path, KILLS, seed=SEED, encoders=encoders_cache)
    tried("kills of nights", {k: told[k] for k in ("kills", "nights", "ended_before_the_kill", "completed_by_stations", "seen_after_a_kill")})
    assert told["kills"] == KILLS


def test_a_run_of_a_date_whose_night_ended_right_after_its_lists_were_published_completes_the_night(tmp_path: Path, encoders_cache: Path) -> None:
    home = tmp_path / "home"
    mmrec("init", "--home", str(home), "--size", "tiny")
    share_encoders(home, encoders_cache)
    where = ("--home", str(home), "--date", "2026-03-02")
    mmrec("steps", "world", "ingest", "validate", "embed", "plan", "features", "recommend", "publish", *where)
    mmrec("run", *where, "--no-train", "--json")
    counted = mmrec("sql", "select count(*) n from ops_metrics where protocol = 'night'", "--home", str(home), "--json").stdout
    assert json.loads(counted)[0]["n"] > 0
    assert (home / "reports" / "2026-03-02" / "report.html").is_file()
