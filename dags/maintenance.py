"""# maintenance: every promise checked, and what runs left behind removed

`verify` reads the whole lake once and checks what can be checked on the tables as they lie there (`mmrec verify`);
exit 3 names the checks that are broken. `clean` removes claims and temporary files that are older than a day.
"""

from airflow.sdk import DAG, CronTriggerTimetable

from mmrec.flow.operator import CleanOperator, StepOperator
from mmrec.flow.parse import Shop, page

shop = Shop.read()
schedule = CronTriggerTimetable(shop.airflow.maintenance, timezone=shop.zone)
with DAG("maintenance", schedule=schedule, max_active_runs=1, **shop.dag(__doc__)) as dag:
    StepOperator(task_id="verify", words=("verify",), pool="spark", doc_md=page(doc="`mmrec verify` of the home."))
    CleanOperator(task_id="clean", doc_md=page(doc="Removes claims and temporary files older than a day."))
