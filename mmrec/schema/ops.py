"""What mmrec did and found: runs, numbers, faults, decisions.

In: nothing. Out: `OPS`. Trade-off: tables, not log files, so that analysts query them like any other.
"""

from __future__ import annotations

from mmrec.schema.kinds import Table
from mmrec.schema.kinds import column as _c

_TS, _STR = "TIMESTAMP", "STRING"

OPS = (
    Table(
        "ops.quarantine", "one rule that one row broke",
        "What was kept out, why, and the row itself. A row that is mended later stays on record here.",
        "validate", "append_new", ("table_name", "row_hash", "occurrence", "rule"),
        (
            _c("table_name", _STR, "bronze table of the row, or bronze.media"),
            _c("rule", _STR, "name of the rule"),
            _c("reason", _STR, "what was wrong, with the value"),
            _c("raw", _STR, "the row as JSON, or its text"),
            _c("source", _STR, "name of the source"),
            _c("file", _STR, "file within the source"),
            _c("line", "BIGINT", "line within the file, 0 where there is none"),
            _c("row_hash", _STR, "key of the row in its bronze table"),
            _c("occurrence", "INT", "key of the row in its bronze table; of bronze.media the picture's place, from 0"),
        ),
        {"rule_named": "rule <> ''"},
    ),
    Table(
        "ops.runs", "one run", "Every night that ran: its manifest, outcome and content hash.",
        "publish", "append_new", ("run_id",),
        (
            _c("run_id", _STR, "digest of the manifest"),
            _c("run_date", "DATE", "the day the lists are for"),
            _c("manifest", _STR, "what the run read, JSON"),
            _c("content_hash", _STR, "sha256 over gold.recommendations of the day, metadata left out"),
            _c("model_version", _STR, "champion of the run"),
            _c("users", "BIGINT", "users with a list"),
            _c("rows", "BIGINT", "rows published"),
            _c("table_version", "BIGINT", "version of gold.recommendations the commit made"),
            _c("withdrawn", "ARRAY<STRING>", "items that left the shop between the night's moment and its publishing,"
               " which were taken out of the lists; null: none, or a night of before anybody looked", nullable=True),
            _c("finished_at", _TS, "wall clock", meta=True),
        ),
        {"rows_from_1": "rows >= 1"},
    ),
    Table(
        "ops.metrics", "one number", "Offline metrics of models, and counts of nights.",
        "monitor", "append_new", ("run_date", "model_version", "model", "protocol", "split", "slice", "metric"),
        (
            _c("run_date", "DATE", "the day it was measured for"),
            _c("model_version", _STR, "bundle, or night for counts of a night"),
            _c("model", _STR, "champion (the version itself, whatever train.model was), second_stage (champion with"
               " it), popularity, item_knn, ...; of the gate, version_N that served"),
            _c("protocol", _STR, "rolling, per_user, gate, night; price: what diversity costs, see docs/diversity.md;"
               " reasons: whether they are true, see docs/reasons.md"),
            _c("split", _STR, "validation or test; gate: the days before a training; none for counts"),
            _c("slice", _STR, "all, cold_items, cold_users, missing_image, without_text, ...; of price, the kind"),
            _c("metric", _STR, "recall@10, ndcg@10, ..."),
            _c("value", "DOUBLE", "mean over users"),
            _c("n", "BIGINT", "cases it is the mean of"),
            _c("lo", "DOUBLE", "95% interval by user bootstrap; null where none was asked", nullable=True),
            _c("hi", "DOUBLE", "95% interval by user bootstrap; null where none was asked", nullable=True),
            _c("run_id", _STR, "the run that wrote the row", meta=True),
        ),
        {"value_is_number": "NOT isnan(value)"},
    ),
    Table(
        "ops.freshness", "one table at one run_date", "How old each night's inputs were.",
        "monitor", "replace_partition", ("run_date", "table_name"),
        (
            _c("run_date", "DATE", "the night"),
            _c("table_name", _STR, "input table"),
            _c("version", "BIGINT", "version the night read"),
            _c("rows", "BIGINT", "rows available as of run_date"),
            _c("latest_available_at", _TS, "newest delivery as of run_date", nullable=True),
            _c("age_hours", "DOUBLE", "as_of less the newest delivery", nullable=True),
            _c("stale", "BOOLEAN", "older than config allows"),
            _c("run_id", _STR, "the run that wrote the row", meta=True),
        ),
        partition="run_date",
    ),
    Table(
        "ops.alerts", "one thing to know of one night", "What a person should look at: late sources, stale inputs.",
        "monitor", "append_new", ("run_date", "kind", "subject"),
        (
            _c("run_date", "DATE", "the night"),
            _c("kind", _STR, "late_source, stale_input, stale_list, unfed_encoder"),
            _c("subject", _STR, "the pattern or table it is about"),
            _c("message", _STR, "what was found, in words"),
            _c("run_id", _STR, "the run that found it first", meta=True),
            _c("raised_at", _TS, "wall clock", meta=True),
        ),
        {"kind_named": "kind <> ''"},
    ),
    Table(
        "ops.steps", "one station of one attempt at one run_date", "What each station read, and how long it took.",
        "run", "append_new", ("run_date", "attempt", "step"),
        (
            _c("run_date", "DATE", "the night"),
            _c("attempt", "INT", "number of the process among those that worked on the date, from 1"),
            _c("step", _STR, "name of the station"),
            _c("run_id", _STR, "the planned run; null before the first plan", nullable=True),
            _c("read", _STR, "table -> version it read, JSON"),
            _c("seconds", "DOUBLE", "how long it took", meta=True),
            _c("finished_at", _TS, "wall clock", meta=True),
        ),
        {"attempt_from_1": "attempt >= 1"},
    ),
    Table(
        "ops.schema_changes", "one change of one column, table or source",
        "How tables became what they are, and columns that sources deliver and no table has. Recorded, then done.",
        "ingest", "append_new", ("source", "table_name", "change", "column_name", "table_version"),
        (
            _c("source", _STR, "the source that delivers the column; empty for a change of a table"),
            _c("table_name", _STR, "the table; of a source, the bronze table its rows go to"),
            _c("change", _STR, "column_added, column_renamed, comment_changed, check_added, source_column, ..."),
            _c("column_name", _STR, "the column or CHECK, as it is called now; empty for the whole table"),
            _c("before", _STR, "what it was; empty where it was not"),
            _c("after", _STR, "what it is; empty where it is not any more"),
            _c("table_version", "BIGINT", "version of the table that was found to differ; -1 where it was not there"),
            _c("code", _STR, "version of mmrec that made the change", meta=True),
            _c("applied_at", _TS, "wall clock", meta=True),
        ),
        {"change_named": "change <> ''"},
    ),
    Table(
        "ops.suspects", "one suspect user and kind, as one run found it",
        "Users who do not act like people: flagged, not dropped. The run of a date's lists names the rows that hold.",
        "features", "append_new", ("run_date", "user_id", "kind", "run_id"),
        (
            _c("run_date", "DATE", "the night"),
            _c("user_id", _STR, "external user id"),
            _c("kind", _STR, "rate, burst or copycat"),
            _c("reason", _STR, "what was found, in words"),
            _c("value", "BIGINT", "events of the hour or day; users at the item; users with nearly the same items"),
            _c("bound", "BIGINT", "what value is held against"),
            _c("events", "BIGINT", "the user's events as of run_date"),
            _c("run_id", _STR, "the run that found it"),
        ),
        {"kind_known": "kind IN ('rate', 'burst', 'copycat')", "user_named": "user_id <> ''",
         "events_from_1": "events >= 1"},
    ),
    Table(
        "ops.rule_drops", "one rule of one run",
        "What each rule in force did to the lists of a run; as a rule, twin: near-duplicates of what is in the list.",
        "monitor", "append_new", ("run_date", "rule", "run_id"),
        (
            _c("run_date", "DATE", "the night"),
            _c("rule", _STR, "name of the rule, or twin"),
            _c("kind", _STR, "exclude, include, hold, boost, cap, quota, pin or twin"),
            _c("line", "INT", "where it began in rules.yaml; 0 for twin"),
            _c("items", "BIGINT", "items on offer that it names; of twin, those that have one"),
            _c("users", "BIGINT", "users with a list for whom it holds"),
            _c("passed", "BIGINT", "candidates it kept out above the last row of a list; what is kept from everybody"
               " never is one"),
            _c("lists", "BIGINT", "lists in which it passed over, lifted or pinned anything"),
            _c("placed", "BIGINT", "rows that it lifted or pinned"),
            _c("run_id", _STR, "the run whose lists they are"),
        ),
        {"rule_named": "rule <> ''", "counts_from_0": "passed >= 0 AND placed >= 0 AND lists >= 0"},
    ),
    Table(
        "ops.reviews", "one decision on one item, or on one run's lists, that a rule holds",
        "What people let through, or not, of what a rule of kind hold keeps back. The newest decision counts.",
        "review", "append_new", ("rule", "item_id", "decided_at"),
        (
            _c("rule", _STR, "the rule that holds it"),
            _c("item_id", _STR, "external item id; empty: it is about lists"),
            _c("decision", _STR, "approved or rejected"),
            _c("decided_by", _STR, "who decided"),
            _c("why", _STR, "in their words"),
            _c("decided_at", _TS, "when, UTC"),
            _c("lists_of", _STR, "the run whose lists it is about; null: it is about an item", nullable=True),
        ),
        {"decision_known": "decision IN ('approved', 'rejected')", "by_named": "decided_by <> ''"},
    ),
    Table(
        "ops.promotions", "one decision of the gate", "Who became champion or was held, and the numbers.",
        "promote", "append_new", ("model_version", "decided_for"),
        (
            _c("model_version", _STR, "the challenger"),
            _c("decided_for", "DATE", "run_date of the decision"),
            _c("decision", _STR, "promoted or held"),
            _c("reason", _STR, "every rule and its numbers, in words"),
            _c("champion_before", _STR, "the champion it met"),
            _c("numbers", _STR, "JSON of the metrics compared"),
            _c("decided_at", _TS, "wall clock", meta=True),
        ),
        {"decision_known": "decision IN ('promoted', 'held')"},
    ),
    Table(
        "ops.serving", "one request to change which model serves",
        "Which model serves is what the newest change here says; aliases in MLflow follow it. Refused requests stand"
        " here as well.",
        "promote", "append_new", ("request",),
        (
            _c("request", _STR, "id of the request"),
            _c("change", "BIGINT", "number of the change that it made, from 1; null: it made none", nullable=True),
            _c("action", _STR, "promoted, rolled_back or refused"),
            _c("model_version", _STR, "of a change: what serves from then on; of a refusal: what was asked for"),
            _c("before", _STR, "what served until then; 0: popularity"),
            _c("sha256", _STR, "digest of the version's bundle; empty: of version 0"),
            _c("trained_as_of", _TS, "what the version knows ends here; null: it was not trained", nullable=True),
            _c("asked_by", _STR, "who asked"),
            _c("through", _STR, "gate, command or mlflow: where"),
            _c("why", _STR, "in their words; of an override, its reason"),
            _c("overridden", "BOOLEAN", "whether the gate had held it"),
            _c("said", _STR, "the gate's words; of a refusal, why"),
            _c("numbers", _STR, "JSON of the metrics compared"),
            _c("asked_at", _TS, "when, UTC"),
            _c("share", "DOUBLE", "share of the users that the version serves first, as a canary; null: all, or none",
               nullable=True),
        ),
        {"action_known": "action IN ('promoted', 'rolled_back', 'refused')", "asker_named": "asked_by <> ''"},
    ),
)  # fmt: skip
