"""What a night makes of silver, a partition a run_date, and the embedding cache.

In: nothing. Out: `GOLD`. Trade-off: a day is written whole, so yesterday's rows are there again today.
"""

from __future__ import annotations

from mmrec.schema.kinds import Table
from mmrec.schema.kinds import column as _c

_TS, _STR = "TIMESTAMP", "STRING"

_LIST = (
    _c("user_id", _STR, "external user id"),
    _c("rank", "INT", "position in the slate, 1 is best"),
    _c("item_id", _STR, "external item id"),
)

GOLD = (
    Table(
        "gold.item_embeddings", "one content at one encoder version", "Embedding cache, by content hash.",
        "embed", "append_new", ("content_sha256", "encoder_version"),
        (
            _c("content_sha256", _STR, "of the media bytes, or of the text in UTF-8"),
            _c("encoder_version", _STR, "names weights, preprocessing and dtype"),
            _c("modality", _STR, "text, image or audio"),
            _c("dim", "INT", "length of the vector; 0 where the content was refused"),
            _c("embedding", "ARRAY<FLOAT>", "the vector; empty where the content was refused"),
            _c("refused", _STR, "why it could not be encoded; null if it could", nullable=True),
        ),
        {"modality_known": "modality IN ('text', 'image', 'audio')", "dim_from_0": "dim >= 0"},
    ),
    Table(
        "gold.user_sequences", "one user as of one run_date",
        "A user's last interactions in time order, whole-history seen items, and windowed counts.",
        "features", "replace_partition", ("run_date", "user_id"),
        (
            _c("run_date", "DATE", "the day the features are made for"),
            _c("user_id", _STR, "external user id"),
            _c("item_ids", "ARRAY<STRING>", "the last items, oldest first"),
            _c("event_types", "ARRAY<STRING>", "their event types"),
            _c("event_us", "ARRAY<BIGINT>", "their times, microseconds UTC since 1970"),
            _c("gap_s", "ARRAY<BIGINT>", "seconds to the next one, of the last one to as_of"),
            _c("weight_micro", "ARRAY<BIGINT>", "their weights in millionths"),
            _c("seen_item_ids", "ARRAY<STRING>", "every item of the whole history, ascending"),
            _c("n_interactions", "BIGINT", "events in the whole history"),
            _c("n_7d", "BIGINT", "events in the 7 days before as_of"),
            _c("n_30d", "BIGINT", "events in the 30 days before as_of"),
            _c("n_90d", "BIGINT", "events in the 90 days before as_of"),
            _c("attributes", _STR, "the user's attributes as of run_date, JSON"),
            _c("wishes", "ARRAY<STRING>", "what the user asked for as of run_date, ascending, each as in 'less"
               " category=toys': hide, less or more, then field=value; null: nothing, or before there were wishes",
               nullable=True),
            _c("social_item_ids", "ARRAY<STRING>", "items that those whom the user is linked to had lately, what most"
               " of them had first; null: none, or no generator asks for them", nullable=True),
            _c("contexts", "ARRAY<STRING>", "where the events of item_ids happened, JSON; null: no second stage looks"
               " at it", nullable=True),
            _c("texts", "ARRAY<STRING>", "the user's own words with the events of item_ids, null where there are none;"
               " null: no second stage looks at them", nullable=True),
            _c("run_id", _STR, "the run that wrote the row", meta=True),
        ),
        {"user_named": "user_id <> ''", "counts": "n_7d >= 0 AND n_7d <= n_30d AND n_30d <= n_90d"},
        partition="run_date", retention_days=400,
    ),
    Table(
        "gold.item_features", "one item on offer as of one run_date",
        "Behaviour counts beside references to content: the fusion of both.",
        "features", "replace_partition", ("run_date", "item_id"),
        (
            _c("run_date", "DATE", "the day the features are made for"),
            _c("item_id", _STR, "external item id"),
            _c("title", _STR, "display name as of run_date"),
            _c("categories", "ARRAY<STRING>", "most important first"),
            _c("attributes", _STR, "the item's attributes as of run_date, JSON; null: before there were rules",
               nullable=True),
            _c("text_sha256", _STR, "content key of title, categories and text", nullable=True),
            _c("texts_sha256", "ARRAY<STRING>",
               "content keys of title with categories, and of text; null: the model takes them joined, or one is empty",
               nullable=True),
            _c("image_sha256", _STR, "content key of the picture, of several the first found", nullable=True),
            _c("images_sha256", "ARRAY<STRING>",
               "content keys of its pictures, in order, null where not found; null: it has but one", nullable=True),
            _c("audio_sha256", _STR, "content key of the sound", nullable=True),
            _c("entities", "ARRAY<STRING>", "what silver.relations links it to as of run_date, relation=entity,"
               " ascending; null: nothing, or before models knew of it", nullable=True),
            _c("n_interactions", "BIGINT", "events in the whole history"),
            _c("n_users", "BIGINT", "distinct users in the whole history"),
            _c("n_7d", "BIGINT", "events in the 7 days before as_of"),
            _c("n_30d", "BIGINT", "events in the 30 days before as_of"),
            _c("n_90d", "BIGINT", "events in the 90 days before as_of"),
            _c("popularity_micro", "BIGINT",
               "decayed count of users' latest events, millionths: each halves every half-life"),
            _c("available_us", "BIGINT", "valid_from, microseconds UTC since 1970"),
            _c("run_id", _STR, "the run that wrote the row", meta=True),
        ),
        {"item_named": "item_id <> ''", "counts": "n_7d >= 0 AND n_7d <= n_30d AND n_30d <= n_90d",
         "popularity_from_0": "popularity_micro >= 0"},
        partition="run_date", retention_days=400,
    ),
    Table(
        "gold.user_profiles", "one user as of one run_date",
        "What users are drawn to, in words: labels of items that their events fall on more often than everybody's.",
        "features", "replace_partition", ("run_date", "user_id"),
        (
            _c("run_date", "DATE", "the day the features are made for"),
            _c("user_id", _STR, "external user id"),
            _c("interests", "ARRAY<STRING>", "category=NAME or, of silver.relations, relation=ENTITY; strongest first,"
               " empty: none"),
            _c("events", "ARRAY<BIGINT>", "the user's events on items of each"),
            _c("lifts_micro", "ARRAY<BIGINT>", "the user's share of events on each over everybody's, smoothed, 1e-6"),
            _c("n_interactions", "BIGINT", "events in the whole history"),
            _c("run_id", _STR, "the run that wrote the row", meta=True),
        ),
        {"user_named": "user_id <> ''"},
        partition="run_date", retention_days=400,
    ),
    Table(
        "gold.user_vectors", "one user as of one run_date and model", "User vectors the slates were scored with.",
        "recommend", "replace_partition", ("run_date", "user_id"),
        (
            _c("run_date", "DATE", "the day the list is for"),
            _c("user_id", _STR, "external user id"),
            _c("vector", "ARRAY<FLOAT>", "user side of the dot product"),
            _c("model_version", _STR, "bundle that made it"),
            _c("run_id", _STR, "the run that wrote the row", meta=True),
        ),
        {"user_named": "user_id <> ''"},
        partition="run_date", retention_days=90,
    ),
    Table(
        "gold.recommendations", "one place of one user's slate on one day",
        "The nightly lists. The greatest run_date is the view latest_recommendations.",
        "publish", "replace_partition", ("run_date", "arm", "user_id", "rank"),
        (
            _c("run_date", "DATE", "the shop's local day the list is for"),
            _c("arm", _STR, "experiment arm, main where none runs"),
            *_LIST,
            _c("score", "FLOAT", "what the list is ordered by, comparable within one user and source"),
            _c("source", _STR, "who brought it: model, fallback:popularity, another generator: content, item_to_item,"
               " new, popular, social; rule: pinned, the score is 0; or drawn: to learn"),
            _c("reason", _STR, "why it is there, in words for the user"),
            _c("because", "ARRAY<STRING>", "items of the user's history that added most to the score, at most 3, the"
               " greatest first; null: none, or not told of this row", nullable=True),
            _c("because_share", "ARRAY<DOUBLE>", "their shares of all that the history added, to thousandths",
               nullable=True),
            _c("parts", "ARRAY<STRING>", "what the score is made of, the greatest first: behaviour, a modality of"
               " content, popularity; null: not told of this row", nullable=True),
            _c("parts_share", "ARRAY<DOUBLE>", "their shares of the sum of their sizes, to thousandths; together 1",
               nullable=True),
            _c("rule", _STR, "the rule that pinned or lifted it, or lets it come again; null: none", nullable=True),
            _c("place", "INT", "place among the candidates looked at for the list, 1 is first; null: pinned, drawn, or"
               " a list of before there were rules", nullable=True),
            _c("passed", "ARRAY<STRING>", "why candidates between the row before and this one are not in the list, each"
               " cause once: a rule's name, twin, or withdrawn; null: there are none", nullable=True),
            _c("passed_n", "ARRAY<BIGINT>", "how many of them each cause of passed kept out", nullable=True),
            _c("ranked", "INT", "place in the source's own ranking, where a second stage, diversity, wishes or other"
               " generators put the model's in another order; null: none did, or the row is not of the first ranking",
               nullable=True),
            _c("propensity", "DOUBLE", "probability with which the item got this place"),
            _c("model_version", _STR, "bundle that scored it"),
            _c("run_id", _STR, "the run that wrote the row", meta=True),
        ),
        {"rank_from_1": "rank >= 1", "score_is_number": "NOT isnan(score)",
         "propensity_is_share": "propensity > 0 AND propensity <= 1", "user_named": "user_id <> ''",
         "item_named": "item_id <> ''"},
        partition="run_date", retention_days=400,
    ),
    Table(
        "gold.pair_scores", "one user and item that somebody asked about, of one run",
        "Scores of chosen pairs by the model of a published night, before rules and whatever else orders a list.",
        "score", "append_new", ("run_id", "user_id", "item_id"),
        (
            _c("run_date", "DATE", "the night"),
            _c("user_id", _STR, "external user id"),
            _c("item_id", _STR, "external item id"),
            _c("score", "DOUBLE", "what the model's ranking goes by; null: see why", nullable=True),
            _c("rank", "BIGINT", "its place among all that was on offer, 1 is best; null: see why", nullable=True),
            _c("why", _STR, "why there is no score; null: there is one", nullable=True),
            _c("model_version", _STR, "version that served the user that night"),
            _c("run_id", _STR, "the night's run"),
        ),
        {"pair_named": "user_id <> '' AND item_id <> ''"},
    ),
)  # fmt: skip
