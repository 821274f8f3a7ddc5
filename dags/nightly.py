"""# nightly: one audited list of recommendations a user, every night

`prepare` claims the date, `wait_for_sources` waits for late files; then `silver` (what was delivered, validated),
`embed` (new content encoded, then everything the night reads is pinned), `lists` (features as of run_date, every user
scored, lists staged), `publish` (audit, one commit, report), and `tidy`, whatever happened. `run_date` is the shop's
local date on which the run's interval ends.

### By hand

Trigger with a `run_date`, or leave it empty for today. A published date is left as it is; `force` publishes anew.

### A range of dates

Airflow's range is of *logical* dates, which lie a day before run_dates, and its `--to-date` at midnight drops the last
one. Ask mmrec what to type for 10 to 13 November (with `Europe/Berlin`, or whatever zone the shop has):

    python -c 'from datetime import date; from mmrec.dates import airflow_range
    print(*airflow_range(date(2026, 11, 10), date(2026, 11, 13), "Europe/Berlin"))'
    airflow backfill create --dag-id nightly --from-date FROM --to-date TO --max-active-runs 1 --dry-run

Without `--dry-run` it begins. It may run beside the nightly: a date that another run has claimed is tried again later.
"""

from airflow.sdk import DAG, CronDataIntervalTimetable

from mmrec.flow.operator import ClaimOperator, ReleaseOperator, StepOperator
from mmrec.flow.parse import Shop, page
from mmrec.flow.sensor import SourceSensor

shop = Shop.read()
schedule = CronDataIntervalTimetable(shop.airflow.nightly, timezone=shop.zone)
# runs of several dates at once, so that a backfill goes on beside the night; claims keep it one run a date
with DAG("nightly", schedule=schedule, max_active_runs=4, **shop.dag(__doc__)) as dag:
    prepare = ClaimOperator(task_id="prepare", doc_md=page(doc="Claims the date: one run a date works at a time."))
    wait = SourceSensor(
        task_id="wait_for_sources",
        doc_md=page(
            doc="Waits for `source.expect`. Late at the deadline: the night goes on, and publishes nothing."
        ),
    )

    silver = StepOperator(task_id="silver", steps=("world", "ingest", "validate"), pool="spark")
    embed = StepOperator(task_id="embed", steps=("embed", "plan"), pool="gpu")
    # one process, for one engine session; the plan is not in it, so that a retry is the same run
    lists = StepOperator(task_id="lists", steps=("features", "recommend"), pool=shop.scoring_pool)
    publish = StepOperator(task_id="publish", steps=("publish", "monitor"), pool="spark")
    tidy = ReleaseOperator(task_id="tidy", doc_md=page(doc="Gives the date back, removes temporary files."))

    (
        [prepare.as_setup(), wait]
        >> silver
        >> embed
        >> lists
        >> publish
        >> tidy.as_teardown(setups=prepare)
    )
