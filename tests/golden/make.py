"""Makes the golden lake beside this file, and the rows it must read as: `python -m tests.golden.make`.

The rows are the literals below, taken to `expected.json` as they stand here; the lake is made of them through mmrec's own
write path: both doors, three kinds of commits, a partition replaced twice, compaction, a checkpoint. Every table is small,
and holds what readers have stumbled over. What is checked in was made once: a lake of an older mmrec must stay readable.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmrec import schema
from mmrec.config import Config, MaintainConfig
from mmrec.lake import commit
from mmrec.lake.maintain import maintain
from mmrec.lake.session import session, stop
from mmrec.lake.store import Lake
from tests.golden.rows import of

HERE = Path(__file__).parent
D0, D1, D2 = date(1969, 12, 31), date(2026, 3, 1), date(2026, 3, 2)
NOON = datetime(2026, 3, 1, 12, 0, 0, 123_456, UTC)
MOMENTS = (datetime(1700, 1, 1, 0, 0, 0, 1, UTC), datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC), datetime(1970, 1, 1, tzinfo=UTC),
           NOON, datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC))  # fmt: skip
TEXTS = ("", "a", "😀👩‍👩‍👧", "שלום עולם", "\u202eabc", "é", "e\u0301", "\ue000", "\uffff", '"\\/', "\n\t", "null", "a\x00b", "100%", "a/b=c")
FLOATS = (0.0, -0.0, 1.5, -1e-45, 3.4028234663852886e38)
DOUBLES = (0.0, -0.0, 0.1, -5e-324, 1.7976931348623157e308, float("inf"))
WORDS = ({"item_ids": [], "event_types": [], "event_us": [], "gap_s": [], "weight_micro": [], "seen_item_ids": []},
         {"item_ids": ["", "😀"], "event_types": ["view", "a\x00b"], "event_us": [-1, 2**62], "gap_s": [0, -(2**40)], "weight_micro": [-(2**63), 2**63 - 1],
          "seen_item_ids": ["é", "e\u0301"]})  # fmt: skip


def rows_of(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    """Arrow rows of a table; a column that a row lacks is null."""
    t = schema.table(name)
    return pa.Table.from_pylist([{c.name: r.get(c.name) for c in t.columns} for r in rows], t.arrow)


def interactions(part: int) -> list[dict[str, Any]]:
    rows = [
        {"user_id": f"u{n}", "item_id": text or "empty", "event_type": "view", "event_ts": MOMENTS[n % 5], "available_at": MOMENTS[(n + 1) % 5], "weight": DOUBLES[n % 6],
         "context": "{}", "text": None if n % 3 == 0 else text, "source": text, "row_hash": f"{n:03}"} for n, text in enumerate(TEXTS)
    ]  # fmt: skip
    return rows[part * 5 : part * 5 + 5]


def lists(day: date, tag: str, users: int) -> list[dict[str, Any]]:
    return [
        {"run_date": day, "arm": "main" if n % 2 else "ü", "user_id": f"{tag}{n}", "rank": 2**31 - 1 if n == 3 else 1, "item_id": TEXTS[n + 1], "score": FLOATS[n % 5],
         "because": (None, [], ["é", ""])[n % 3], "because_share": (None, [], [0.1, -0.0])[n % 3],
         "source": "model", "reason": TEXTS[n], "propensity": (1.0, 5e-324)[n % 2], "model_version": "1", "run_id": tag} for n in range(users)
    ]  # fmt: skip


def sequences(day: date, tag: str) -> list[dict[str, Any]]:
    about = {"run_date": day, "n_interactions": 2**62, "n_7d": 0, "n_30d": 1, "n_90d": 2, "attributes": "{}", "run_id": tag}
    return [about | {"user_id": f"{tag}{n}"} | words for n, words in enumerate(WORDS)]


EMBEDDINGS = [
    {"content_sha256": "a", "encoder_version": "e", "modality": "text", "dim": 4, "embedding": [0.0, -0.0, float("nan"), 1e-45], "refused": None},
    {"content_sha256": "b", "encoder_version": "e", "modality": "image", "dim": 0, "embedding": [], "refused": "שלום"},
]
MEDIA = [{"sha256": f"{n}", "modality": "image", "bytes": data, "source": "s", "uri": "a/b c%20.jpg"} for n, data in enumerate((b"", b"\x00\xff\x00", bytes(range(256))))]
FRESH = [
    {"run_date": D0, "table_name": "silver.items", "version": 2**40, "rows": 0, "latest_available_at": None, "age_hours": None, "stale": True, "run_id": "r"},
    {"run_date": D0, "table_name": "silver.users", "version": 0, "rows": 1, "latest_available_at": MOMENTS[1], "age_hours": -0.0, "stale": False, "run_id": "r"},
]  # fmt: skip
DECISIONS = [
    {"model_version": "1", "decided_for": day, "decision": "held", "reason": text, "champion_before": "0", "numbers": "{}", "decided_at": MOMENTS[1]}
    for day, text in ((date(1582, 10, 15), "'"), (D0, ""), (date(9999, 12, 31), "é"))
]  # fmt: skip


class Maker:
    """Writes a lake, and notes what each version of each table must read as."""

    def __init__(self, root: Path, spark: Any) -> None:
        self.lake, self.spark = Lake(root / "lake"), spark
        self.config = Config(home=root, maintain=MaintainConfig(min_files=2, checkpoint_every=8))
        self.now: dict[str, list[dict[str, Any]]] = {}
        self.told: dict[str, dict[str, Any]] = {}

    def note(self, name: str) -> None:
        """Versions since the last note hold the rows that are there now."""
        t = schema.table(name)
        about = self.told.setdefault(name, {"columns": [c.name for c in t.columns], "key": list(t.key), "states": [], "versions": []})
        rows = of(rows_of(name, self.now.setdefault(name, [])), about["columns"], about["key"])
        if rows not in about["states"]:
            about["states"].append(rows)
        new = self.lake.version(name) + 1 - len(about["versions"])
        about["versions"] += [about["states"].index(rows)] * new

    def write(self, name: str, rows: list[dict[str, Any]], day: date | None = None, door: str = "arrow") -> None:
        if not self.lake.exists(name):
            self.lake.create(name)
            self.note(name)
        made = rows_of(name, rows)
        data = made if door == "arrow" else self.spark.createDataFrame(made, schema.table(name).ddl).repartition(3, "user_id")
        commit.write(self.lake, name, data, run_id=rows[0].get("run_id") or "golden", pinned=commit.fence(self.lake, name, day), partition=day)
        kept = [] if schema.table(name).mode == "append_new" else [r for r in self.now[name] if r["run_date"] == day]
        self.now[name] = [r for r in self.now[name] if r not in kept] + rows
        self.note(name)

    def maintain(self) -> None:
        told = maintain(self.config)
        assert not [t for t in told if t["refused"]], told
        for name in self.told:
            self.note(name)


def make(root: Path, spark: Any) -> dict[str, Any]:
    """The lake in `root`; returns what it must read as: table -> columns, key, states (rows), version -> state."""
    m = Maker(root, spark)
    m.write("gold.recommendations", lists(D1, "old", 4), D1)
    m.write("gold.recommendations", lists(D2, "two", 6), D2, "engine")
    m.write("gold.recommendations", lists(D1, "new", 5), D1, "engine")
    for part in range(3):
        m.write("silver.interactions", interactions(part), None, ("arrow", "engine")[part % 2])
    m.write("gold.user_sequences", sequences(D1, "s"), D1, "engine")
    m.write("gold.user_sequences", sequences(D0, "t"), D0)
    m.maintain()
    m.write("gold.recommendations", lists(D0, "before", 2), D0)
    m.write("gold.recommendations", lists(D2, "again", 1), D2, "engine")
    m.write("gold.item_embeddings", EMBEDDINGS)
    m.write("bronze.media", MEDIA)
    m.write("ops.freshness", FRESH, D0)
    m.write("ops.promotions", DECISIONS)
    return m.told


def nameless(lake: Path) -> None:
    """Take out where a table was made: the entry of its creation names its folder."""
    for entry in lake.rglob("_delta_log/*.json"):
        lines = [json.loads(line) for line in entry.read_text().splitlines()]
        if any(line.get("commitInfo", {}).get("operationParameters", {}).pop("location", None) for line in lines):
            entry.write_text("\n".join(json.dumps(line, separators=(",", ":")) for line in lines))


def main() -> None:
    """Make it anew, beside this file."""
    root = HERE / "made"
    shutil.rmtree(root, ignore_errors=True)
    told = make(root, session("local"))
    stop("local")
    shutil.rmtree(HERE / "lake", ignore_errors=True)
    nameless(root / "lake")
    (root / "lake").rename(HERE / "lake")
    shutil.rmtree(root)
    (HERE / "expected.json").write_text(json.dumps(told, ensure_ascii=True, sort_keys=True).replace("}, {", "},\n{") + "\n")
    for path in HERE.rglob("*"):
        data = path.read_bytes() if path.is_file() and not path.suffix.startswith(".py") else b""
        for word in (str(HERE), str(Path.home()), socket.gethostname(), sys.prefix):
            if word.encode() in data:
                sys.exit(f"{path.name} holds {word}")


if __name__ == "__main__":
    main()
