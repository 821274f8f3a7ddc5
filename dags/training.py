"""# training: the served model, fitted anew, and let in through the gate

`learn` fits the models, ranks the full catalogue beside the baselines, and seals an ONNX bundle; `gate` registers it in
MLflow as challenger and makes it champion, or holds it with the reasons. The night goes on with the champion it has.

It runs every week, and when the nightly's monitor says that training is due (asset `ops.training_due`). By hand:
trigger it, with a `run_date` to learn from what was known on that day.
"""

from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable

from mmrec.flow.assets import TRAINING_DUE
from mmrec.flow.operator import StepOperator
from mmrec.flow.parse import Shop

shop = Shop.read()
weekly = CronTriggerTimetable(shop.airflow.training, timezone=shop.zone)
schedule = AssetOrTimeSchedule(timetable=weekly, assets=[TRAINING_DUE])
with DAG("training", schedule=schedule, max_active_runs=1, **shop.dag(__doc__)) as dag:
    # one process reads the data once; the gate can be tried again without fitting anew
    learn = StepOperator(task_id="learn", steps=("train", "evaluate", "export"), pool="gpu")
    gate = StepOperator(task_id="gate", steps=("register", "promote"), pool="spark")

    learn >> gate
