"""The night under Airflow: operators, the wait for sources, claims of dates. The only room that imports airflow.

A DAG file names stations and joins tasks; everything it says is in here. What a task does is done by a `mmrec`
command in a process, container or pod of its own: no task imports an engine.
"""
