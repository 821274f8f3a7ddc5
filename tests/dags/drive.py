"""Run DAGs by Airflow's own `dag.test()`, in a process of its own: `python drive.py FOLDER RUNS OUT`, JSON in and out.

A run is {"dag", "conf", "logical_date" (or null), "run_after"}; told back: its state, and every task's state, tries
and result, and the asset events it made.
"""

import json
import sys
from datetime import datetime

from airflow.dag_processing.dagbag import DagBag
from airflow.models.asset import AssetDagRunQueue, AssetEvent
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import select


def moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def main(folder: str, runs: list[dict]) -> list[dict]:
    bag = DagBag(folder)
    if bag.import_errors:
        raise SystemExit(f"{bag.import_errors}")
    told = []
    for asked in runs:
        dag = bag.dags[asked["dag"]]
        print(f"==== {asked['dag']}", flush=True)
        run = dag.test(run_after=moment(asked.get("run_after")), logical_date=moment(asked.get("logical_date")),
                       run_conf=asked.get("conf"))  # fmt: skip
        with create_session() as session:
            tasks = {
                ti.task_id: {"state": ti.state, "tries": ti.try_number} for ti in run.get_task_instances(session=session)
            }
            results = session.scalars(select(XComModel).where(XComModel.run_id == run.run_id, XComModel.dag_id == run.dag_id,
                                                              XComModel.key == "return_value"))  # fmt: skip
            for row in results:
                tasks[row.task_id]["result"] = XComModel.deserialize_value(row)
            events = [
                {"asset": e.asset.name, "task": e.source_task_id, "extra": e.extra}
                for e in session.scalars(select(AssetEvent).where(AssetEvent.source_run_id == run.run_id,
                                                                  AssetEvent.source_dag_id == run.dag_id))
            ]  # fmt: skip
            # of this folder alone: DAGs that other tests left in the database may wait for the same asset
            queued = sorted({q.target_dag_id for q in session.scalars(select(AssetDagRunQueue))} & set(bag.dags))
            told.append({"dag": run.dag_id, "run_id": run.run_id, "state": run.state, "tasks": tasks, "events": events,
                         "queued": queued})  # fmt: skip
    return told


if __name__ == "__main__":
    with open(sys.argv[3], "w") as out:
        json.dump(main(sys.argv[1], json.loads(sys.argv[2])), out, default=str)
