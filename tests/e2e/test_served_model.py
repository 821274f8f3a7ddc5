"""A night that a trained model serves: whatever the gate thinks of a model of so small a shop, it is crowned by hand."""

import json
import shutil
from pathlib import Path

from mmrec import config
from mmrec.bundle import registry
from tests.conftest import Lived, mmrec

DAY = "2026-03-06"


def test_a_trained_model_serves_a_night_that_replays_and_keeps_every_promise(lived: Lived, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(lived.home, home, symlinks=True)
    version = lived.nights[0]["counts"]["training"]["register"]["model_version"]
    registry.crown(config.load(home), version)
    night = json.loads(mmrec("run", "--home", str(home), "--date", DAY, "--no-train", "--json").stdout)
    assert night["published"]
    assert night["model_version"] == version
    assert night["lists"] == night["users"] == 60
    served = Lived(home, [night])
    rows = served.sql("select source, count(*) n, count(distinct reason) r from latest_recommendations group by 1")
    by = {r["source"]: r for r in rows}
    assert by["model"]["n"] > 0.9 * sum(r["n"] for r in rows)
    assert by["model"]["r"] > 20
    vectors = served.sql(f"select count(*) n, count(distinct len(vector)) d from user_vectors where run_date = '{DAY}'")[0]
    assert vectors == {"n": 60, "d": 1}
    told = served.json("run", "--date", DAY, "--replay")
    assert told["content_hash"] == night["counts"]["publish"]["content_hash"]
    assert json.loads(mmrec("verify", "--home", str(home), "--json").stdout)["ok"]
