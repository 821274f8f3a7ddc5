"""# maintenance: every promise checked, tables tidied, and what runs left behind removed

`verify` reads the whole lake once and checks what can be checked on the tables as they lie there (`mmrec verify`);
exit 3 names the checks that are broken. Then `maintain` puts small files together, shortens the logs, takes out vectors
of encoders that neither the settings nor a served model need, and deletes what no version within its retention needs
(`mmrec maintain --dry-run` says what all that is); it may run beside a night. `clean` removes claims and temporary
files that are older than a day.
"""

from airflow.sdk import DAG, CronTriggerTimetable

from mmrec.flow.operator import CleanOperator, StepOperator
from mmrec.flow.parse import Shop, page

shop = Shop.read()
schedule = CronTriggerTimetable(shop.airflow.maintenance, timezone=shop.zone)
with DAG("maintenance", schedule=schedule, max_active_runs=1, **shop.dag(__doc__)) as dag:
    verify = StepOperator(
        task_id="verify", words=("verify",), pool="spark", doc_md=page(doc="`mmrec verify` of the home.")
    )
    maintain = StepOperator(
        task_id="maintain",
        words=("maintain",),
        pool="spark",
        doc_md=page(doc="`mmrec maintain` of the home: compaction, retention, logs; exit 3 names refused tables."),
    )
    CleanOperator(task_id="clean", doc_md=page(doc="Removes claims and temporary files older than a day."))

    verify >> maintain
