"""`mmrec verify` between two stations: what waits for its validation is not lost, and what is lost does not wait."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from deltalake import DeltaTable

from mmrec import config
from mmrec.config import Config
from mmrec.context import Night, call, note
from mmrec.lake.store import Lake
from mmrec.verify import verify

HEAD = "user_id,item_id,event_type,event_ts,weight,context"
CHECK = "every row of bronze.interactions is kept or quarantined"


def deliver(cfg: Config, day: str, *users: str) -> None:
    folder = cfg.home / "shop" / day
    folder.mkdir(parents=True)
    rows = [f"{user},i0,view,2026-02-28T10:00:00Z,1," for user in users]
    (folder / "interactions.csv").write_text("\n".join([HEAD, *rows]) + "\n")
    (folder / "items.jsonl").write_text(json.dumps({"item_id": "i0", "title": "i0"}) + "\n")


def station(cfg: Config, *names: str) -> None:
    night = Night(cfg, date(2026, 3, 5))
    for name in names:
        call(name, night)
    note(night)


def told(cfg: Config) -> tuple[bool, str]:
    (found,) = [f for f in verify(cfg) if f["check"] == CHECK]
    return found["ok"], found["detail"]


@pytest.fixture
def cfg(tmp_path: Path, engine: str) -> Config:
    home = tmp_path / "home"
    config.write(home, {"engine": engine, "source": {"spec": "files", "root": str(home / "shop")}})
    Lake(home / "lake").create_all()
    return config.load(home)


def test_rows_of_a_night_between_ingest_and_validate_wait_and_are_not_lost(cfg: Config) -> None:
    deliver(cfg, "2026-03-01", "u1", "u2", "u3")
    station(cfg, "ingest")
    assert told(cfg) == (True, "3 = 0 kept + 0 quarantined + 3 that wait for the next validation")
    station(cfg, "validate")
    assert told(cfg) == (True, "3 = 3 kept + 0 quarantined")
    deliver(cfg, "2026-03-02", "u4", "nobody's,one,too,many")
    station(cfg, "ingest")
    assert told(cfg) == (True, "5 = 3 kept + 0 quarantined + 2 that wait for the next validation")
    station(cfg, "validate")
    assert told(cfg) == (True, "5 = 4 kept + 1 quarantined")


def test_a_row_lost_after_its_validation_is_told_beside_those_that_wait(cfg: Config) -> None:
    deliver(cfg, "2026-03-01", "u1", "u2", "u3")
    station(cfg, "ingest", "validate")
    DeltaTable(str(Lake(cfg.lake).path("silver.interactions"))).delete("user_id = 'u2'")
    assert told(cfg) == (False, "3 = 2 kept + 0 quarantined + 1 that are in neither")
    deliver(cfg, "2026-03-02", "u4", "u5")
    station(cfg, "ingest")
    told_beside = "5 = 2 kept + 0 quarantined + 2 that wait for the next validation + 1 that are in neither"
    assert told(cfg) == (False, told_beside)
