"""What a night says of suspects: rows of its own run, counts in its metrics, and nobody of a world of people."""

from tests.conftest import NIGHTS, Lived


def test_every_night_counts_its_suspects_in_its_metrics(lived: Lived) -> None:
    # other tests of this home publish earlier dates
    nights = f"run_date between '{NIGHTS[0]}' and '{NIGHTS[-1]}'"
    rows = lived.sql(f"select run_date, slice, value, n from ops_metrics where metric = 'suspects' and {nights} order by 1, 2")
    assert [(str(r["run_date"]), r["slice"]) for r in rows] == [(d, s) for d in NIGHTS for s in ("all", "kind=burst", "kind=copycat", "kind=rate")]
    assert all(0 <= r["value"] <= r["n"] // 100 and r["n"] >= 60 for r in rows)
    found = lived.sql(f"select run_date, count(distinct user_id) n from ops_suspects s where run_id in (select run_id from ops_runs) and {nights} group by 1")
    assert {str(r["run_date"]): r["n"] for r in found} == {str(r["run_date"]): r["value"] for r in rows if r["slice"] == "all" and r["value"]}
    assert [night["counts"]["features"]["ops.suspects"] for night in lived.nights] == [r["value"] for r in rows if r["slice"] == "all"]
