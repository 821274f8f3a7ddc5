"""What users of a night's two arms chose of what they were shown.

In: published nights with a canary, interactions after them. Out: numbers by arm, and their difference with an interval.
Trade-off: arms are compared by what users did, which is the thing itself, and takes days; the gate's numbers are of the
past.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmrec.bundle.serving import Serving, serving
from mmrec.canary import KEY
from mmrec.errors import InputError
from mmrec.lake import commit
from mmrec.lake.bounded import bounded
from mmrec.lake.manifest import Manifest
from mmrec.lake.sql import connect
from mmrec.lake.store import Lake
from mmrec.recommend.arms import CANARY, MAIN

_SAMPLES = 2000
_LAST = timedelta(days=1)  # how long the newest night's lists are looked at


def compared(lake: Lake) -> dict[str, Any]:
    """What users of either arm chose of what they were shown, over the nights of the canary of now.

    Returns: version, share, nights; arms: main, canary -> users (who chose something they had not had), ndcg@10 (mean
        over users of the lists they were shown), hits (share of users with a hit in the first ten); difference (canary
        less main), lo, hi (95%, users drawn in each arm).

    Raises: InputError: no canary serves, or it was in no published night yet.
    """
    now = serving(lake)
    if now.trial is None:
        raise InputError("no version serves a share of the users", where="ops.serving",
                         value=f"version {now.version} serves all of them", valid="a version promoted with --share",
                         next="mmrec models promote 3 --share 0.1")  # fmt: skip
    nights = _nights(lake, now)
    if not nights:
        raise InputError("no published night has served this canary yet", where="gold.recommendations",
                         value=f"version {now.trial.version}", valid="a night after it was promoted",
                         next="mmrec run --date D")  # fmt: skip
    rows = _chosen(lake, nights)
    arms: dict[str, Any] = {}
    values: dict[str, np.ndarray] = {}
    for arm in (MAIN, CANARY):
        of_it = rows.filter(pc.equal(rows["arm"], arm))
        values[arm] = of_it["ndcg"].to_numpy()
        n = of_it.num_rows
        arms[arm] = {"users": n, "ndcg@10": float(values[arm].mean()) if n else None,
                     "hits": float(pc.mean(of_it["hit"]).as_py()) if n else None}  # fmt: skip
    return {"version": now.trial.version, "share": now.share, "nights": len(nights), "arms": arms,
            **_difference(values)}  # fmt: skip


def _nights(lake: Lake, now: Serving) -> list[tuple[str, datetime, datetime]]:
    """run_date, and from when until when its lists were the newest, of published nights of the two versions of now, at
    the share of now: with another, users would have been in both arms."""
    runs = {r["run_id"]: r["manifest"] for r in lake.arrow("ops.runs", columns=["run_id", "manifest"]).to_pylist()}
    found = [runs.get(commit.published_run_id(lake, "gold.recommendations", d) or "") for d in lake.run_dates()]
    days = [Manifest.from_json(text) for text in found if text is not None]
    trial = now.trial
    assert trial is not None
    wanted = (now.version, trial.version, now.share)
    ends = [m.moment for m in days[1:]] + ([days[-1].moment + _LAST] if days else [])
    return [(m.run_date, m.moment, end) for m, end in zip(days, ends, strict=True)
            if (m.model_version, *(m.config.get(KEY, {}).get(c) for c in ("version", "share"))) == wanted]  # fmt: skip


def _chosen(lake: Lake, nights: list[tuple[str, datetime, datetime]]) -> pa.Table:
    """A row a user and arm who chose something new: ndcg, hit; means over the nights they did so on."""
    spans = pa.table({"run_date": pa.array([n[0] for n in nights]), "since": [n[1] for n in nights],
                      "until": [n[2] for n in nights]})  # fmt: skip
    with bounded() as con:
        connect(lake, None, con)
        con.register("spans", spans)
        return con.sql("""
            WITH night AS (SELECT CAST(run_date AS DATE) AS run_date, since, until FROM spans),
            asked AS (SELECT run_date, user_id, unnest(seen_item_ids) AS item_id
                      FROM user_sequences SEMI JOIN night USING (run_date)),
            chose AS (
                SELECT DISTINCT n.run_date, i.user_id, i.item_id FROM night n
                JOIN interactions i ON i.event_ts >= n.since AND i.event_ts < n.until
                JOIN item_features f ON f.run_date = n.run_date AND f.item_id = i.item_id),
            new AS (SELECT * FROM chose ANTI JOIN asked USING (run_date, user_id, item_id)),
            shown AS (SELECT run_date, arm, user_id, item_id, rank
                      FROM recommendations SEMI JOIN night USING (run_date)),
            whose AS (SELECT DISTINCT run_date, arm, user_id FROM shown),
            by_night AS (
                SELECT w.run_date, w.arm, w.user_id, count(*) AS wanted,
                       coalesce(sum(1 / log2(s.rank + 1)) FILTER (WHERE s.rank <= 10), 0) AS gained,
                       count(*) FILTER (WHERE s.rank <= 10) > 0 AS hit
                FROM new c JOIN whose w USING (run_date, user_id)
                LEFT JOIN shown s ON s.run_date = c.run_date AND s.user_id = c.user_id AND s.item_id = c.item_id
                GROUP BY ALL)
            SELECT arm, user_id, avg(CAST(hit AS DOUBLE)) AS hit,
                   avg(gained / list_sum([1 / log2(k + 1) FOR k IN range(1, least(wanted, 10) + 1)])) AS ndcg
            FROM by_night GROUP BY arm, user_id ORDER BY arm, user_id""").to_arrow_table()  # fmt: skip


def _difference(values: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """Canary less main; users of the two arms are different people, so each arm is drawn by itself."""
    main, canary = values[MAIN], values[CANARY]
    if not len(main) or not len(canary):
        return {"difference": None, "lo": None, "hi": None}
    rng = np.random.default_rng(0)
    drawn = np.array([canary[rng.integers(0, len(canary), len(canary))].mean()
                      - main[rng.integers(0, len(main), len(main))].mean() for _ in range(_SAMPLES)])  # fmt: skip
    lo, hi = np.quantile(drawn, [0.025, 0.975])
    return {"difference": float(canary.mean() - main.mean()), "lo": float(lo), "hi": float(hi)}
