"""Promotions, rollbacks and hand-set aliases over a real registry and a real lake; planted challengers; a dead server."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import deltalake
import numpy as np
import pyarrow as pa
import pytest

from mmrec import promotion, schema
from mmrec.bundle import registry, server
from mmrec.bundle.bundle import load, seal
from mmrec.bundle.serving import ZERO, serving
from mmrec.config import Config
from mmrec.errors import InputError, QualityError
from mmrec.evaluate.contest import SELF, Contest
from mmrec.lake.store import Lake

DAY = datetime(2026, 3, 10, tzinfo=UTC)
ITEMS = [f"i{n}" for n in range(20)]
GOOD = {"champion": 0.30, "popularity": 0.10, "item_knn": 0.20}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with twenty items that were there from the first day on."""
    root = tmp_path_factory.mktemp("promotion") / "lake"
    Lake(root).create_all()
    lake, name = Lake(root), "silver.items"
    fields = schema.table(name).arrow
    row = {f.name: None for f in fields}
    rows = [row | {"item_id": i, "available_at": DAY - timedelta(days=9), "valid_from": DAY - timedelta(days=9)} for i in ITEMS]
    for r in rows:
        r |= {f.name: {"string": "", "bool": False}.get(str(f.type), 0 if pa.types.is_integer(f.type) else []) for f in fields
              if not f.nullable and r[f.name] is None and not pa.types.is_timestamp(f.type)}  # fmt: skip
        r |= {f.name: DAY - timedelta(days=9) for f in fields if pa.types.is_timestamp(f.type) and not f.nullable and r[f.name] is None}
    lake_rows = pa.Table.from_pylist(rows, fields)
    deltalake.write_deltalake(str(lake.path(name)), lake_rows, mode="append")
    return root


def measured(values: dict[str, float], coverage: float, most: int) -> Contest:
    """What fifty users chose in the week before DAY, as rankers of these means see it."""
    wave = np.linspace(-0.05, 0.05, 50)
    rows = [{"ranker": ranker, "slice": "all", "user_id": f"u{n}", "ndcg@10": mean + wave[n], "item_ids": ["a"]}
            for ranker, mean in values.items() for n in range(most)]
    lists = {ranker: {"coverage@10": coverage if ranker == SELF else 0.9} for ranker in values}
    return Contest(DAY - timedelta(days=7), DAY, pa.Table.from_pylist(rows, Contest.ROWS), lists)


class Shop:
    """A home with a registry and a lake, in which versions are registered with the numbers they are said to have."""

    def __init__(self, home: Path) -> None:
        self.config, self.nth = Config(home=home), 0
        self.lake = Lake(home / "lake")

    def trained(self, values: dict[str, float] = GOOD, coverage: float = 0.4, most: int = 50, *, as_of: datetime = DAY, items: list[str] = ITEMS, **about: Any) -> str:
        made = self.config.home / "made"
        made.mkdir()
        (made / "item_map.json").write_text(json.dumps(items))
        told = {"kind": "two_tower", "name": "champion", "encoders": {}, "as_of": as_of.isoformat(), "features": schema.features_fingerprint(),
                "parity": {"real_histories": {"users": 64}}}
        measured(values, coverage, most).save(made)
        self.nth += 1
        seal(made, told | about | {"nth": self.nth})  # a bundle of the same digest would be the version that it was
        client = server.client(self.config)
        run = client.create_run(client.get_experiment_by_name("t").experiment_id)
        version = registry.register(self.config, made, run.info.run_id, told | {"summary": "s"})
        shutil.rmtree(made)
        return version

    def promote(self, version: str, **more: Any) -> dict[str, Any]:
        return promotion.promote(self.config, version, by="ann", **more)

    @property
    def aliases(self) -> dict[str, str]:
        return {k: str(v) for k, v in server.client(self.config).get_registered_model(registry.NAME).aliases.items()}

    def tag(self, version: str) -> str:
        return server.client(self.config).get_model_version(registry.NAME, version).tags["gate"]

    def alias(self, version: str | None) -> None:
        """What a person does in MLflow's page."""
        client = server.client(self.config)
        if version is None:
            client.delete_registered_model_alias(registry.NAME, "champion")
        else:
            client.set_registered_model_alias(registry.NAME, "champion", version)

    @property
    def asked(self) -> list[dict[str, Any]]:
        return self.lake.arrow("ops.serving").sort_by("asked_at").to_pylist()


@pytest.fixture
def shop(bare: Path, blank: Path, tmp_path: Path) -> Shop:
    home = tmp_path / "home"
    shutil.copytree(bare, home / "lake")
    shutil.copy(blank, home / "mlflow.db")
    return Shop(home)


def test_a_good_version_is_promoted_with_its_numbers_and_the_aliases_follow(shop: Shop) -> None:
    first = shop.trained()
    told = shop.promote(first, why="it is better")
    assert (told["decision"], told["before"], told["change"]) == ("promoted", ZERO, 1)
    second = shop.trained(GOOD | {"champion": 0.31})
    told_second = shop.promote(second, override="nothing to overrule")
    assert (told_second["before"], told_second["overruled"]) == (first, False)
    assert shop.aliases == {"champion": second, "previous": first}
    row, _ = shop.asked
    assert (row["asked_by"], row["through"], row["why"], row["overridden"]) == ("ann", "command", "it is better", False)
    assert json.loads(row["numbers"]) == told["numbers"]
    assert told["numbers"]["item_knn"] == pytest.approx(0.2)
    assert registry.champion(shop.config) == (load(shop.config.bundles / second), second)
    assert shop.tag(second).startswith("promoted: ")
    with pytest.raises(InputError, match="serves already"):
        shop.promote(second)
    with pytest.raises(InputError, match="no such version to promote") as caught:
        shop.promote("99")
    assert second in str(caught.value)


PLANTED: dict[str, tuple[dict[str, Any], str]] = {
    "constant": ({"values": GOOD | {"champion": 0.003}}, "0.0030 against popularity 0.1000"),
    "sign flipped": ({"values": GOOD | {"champion": 0.0001}}, "0.0001 against item_knn 0.2000"),
    "measured for nobody": ({"most": 0}, "0 users chose something new in the 7 days before it was trained"),
    "not compared with torch": ({"parity": {}}, "its graphs were never compared with what was trained"),
    "too good": ({"values": GOOD | {"champion": 0.97}}, "too good to be true"),
    "of the future": ({"as_of": DAY + timedelta(days=2)}, "it says that it knows all before 2026-03-12 00:00, and was measured up to 2026-03-10 00:00"),
    "stale item map": ({"items": ["x", "y", *ITEMS[:4]]}, "its item map knows 20% of the 20 items that were there"),
    "other features": ({"features": "0" * 16}, "trained on features 0000000000000000, and a night has"),
    "collapsed coverage": ({"values": GOOD | {"champion": 0.5}, "coverage": 0.1}, "it lists 10.0% of the catalogue, champion 1 40.0%"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_challenger_is_held_with_its_reason_and_nothing_moves(shop: Shop, name: str) -> None:
    first = shop.trained()
    shop.promote(first)
    about, said = PLANTED[name]
    planted = shop.trained(**about)
    told = shop.promote(planted)
    assert (told["decision"], told["change"]) == ("held", None)
    assert said in told["reason"]
    assert registry.state(shop.config).version == first
    assert shop.aliases == {"champion": first, "challenger": planted}
    assert said in shop.tag(planted)
    row = shop.asked[-1]
    assert (row["action"], row["model_version"], row["change"], row["said"]) == ("refused", planted, None, told["reason"])


def test_an_override_serves_what_the_gate_held_and_says_who_and_why(shop: Shop) -> None:
    weak = shop.trained(GOOD | {"champion": 0.15})
    assert shop.promote(weak)["decision"] == "held"
    told = shop.promote(weak, override="a new shop; we watch it")
    assert (told["decision"], told["change"]) == ("promoted", 1)
    row = shop.asked[-1]
    assert told["overruled"]
    assert (row["overridden"], row["why"], row["asked_by"]) == (True, "a new shop; we watch it", "ann")
    assert "0.1500 against item_knn 0.2000" in row["said"]
    assert "overruled by ann: a new shop" in shop.tag(weak)


def test_a_canary_serves_a_share_until_it_is_promoted_to_all_or_taken_back(shop: Shop) -> None:
    first, second, third = (shop.trained(GOOD | {"champion": 0.3 + n / 100}) for n in range(3))
    shop.promote(first)
    told = shop.promote(second, share=0.1)
    assert (told["decision"], told["share"], told["before"]) == ("promoted", 0.1, first)
    now = registry.state(shop.config)
    assert (now.version, now.trial and now.trial.version, now.share) == (first, second, 0.1)
    assert shop.aliases == {"champion": first, "challenger": third}
    assert [v for v, _ in registry.served(shop.config)] == [third, second, first]
    # one more canary takes the place of the first
    shop.promote(third, share=0.2)
    assert registry.state(shop.config).trial.version == third  # type: ignore[union-attr]
    back = promotion.rollback(shop.config, by="ann", why="it sells less")
    assert (back["model_version"], back["before"]) == (first, third)
    now = registry.state(shop.config)
    assert (now.version, now.trial, now.previous) == (first, None, ZERO)
    assert "it sells less" in shop.tag(third)
    assert (shop.asked[-1]["action"], shop.asked[-1]["before"], shop.asked[-1]["model_version"]) == ("rolled_back", third, first)
    shop.promote(second, share=0.1)
    shop.promote(second)
    now = registry.state(shop.config)
    assert (now.version, now.trial, now.previous) == (second, None, first)
    assert [(r["model_version"], r["share"]) for r in shop.asked] == [
        (first, None), (second, 0.1), (third, 0.2), (first, None), (second, 0.1), (second, None)]  # fmt: skip
    assert shop.aliases["champion"] == second


def test_the_gate_holds_a_canary_too_and_no_share_is_all_or_nobody(shop: Shop) -> None:
    first, weak = shop.trained(), shop.trained(GOOD | {"champion": 0.15})
    assert shop.promote(first, share=0.5)["change"] == 1, "beside popularity"
    assert promotion.rollback(shop.config, by="ann")["model_version"] == ZERO
    shop.promote(first)
    assert shop.promote(weak, share=0.1)["decision"] == "held"
    assert registry.state(shop.config).trial is None
    for share in (0.0, 1.0, -0.1, 1.5):
        with pytest.raises(InputError, match="no such share"):
            shop.promote(weak, share=share)


def test_what_was_altered_is_not_promoted_whatever_anybody_says(shop: Shop) -> None:
    version = shop.trained()
    (shop.config.bundles / version / "item_map.json").write_text("[]")
    with pytest.raises(QualityError, match=r"item_map\.json"):
        shop.promote(version, override="I insist")
    assert serving(shop.lake).change == 0


def test_a_rollback_goes_back_three_versions_and_then_to_popularity(shop: Shop) -> None:
    versions = [shop.trained(GOOD | {"champion": 0.3 + n / 100}) for n in range(4)]
    for v in versions:
        shop.promote(v)
    for n in (2, 1, 0):
        told = promotion.rollback(shop.config, by="ann", why="bad lists")
        assert (told["model_version"], told["before"]) == (versions[n], versions[n + 1])
        assert registry.champion(shop.config)[1] == versions[n]
        assert shop.aliases.get("champion") == versions[n]
        assert shop.aliases.get("previous") == (versions[n - 1] if n else None)
    assert promotion.rollback(shop.config, by="ann")["model_version"] == ZERO
    assert registry.champion(shop.config)[1] == ZERO
    assert "champion" not in shop.aliases
    with pytest.raises(InputError, match="nothing serves"):
        promotion.rollback(shop.config, by="ann")
    # what was rolled back may be promoted again
    assert shop.promote(versions[3])["before"] == ZERO


def test_a_rollback_to_what_was_altered_or_is_gone_is_refused_and_changes_nothing(shop: Shop) -> None:
    versions = [shop.trained(GOOD | {"champion": 0.3 + n / 100}) for n in range(2)]
    for v in versions:
        shop.promote(v)
    (shop.config.bundles / versions[0] / "item_map.json").write_text("[]")
    with pytest.raises(QualityError, match=r"item_map\.json"):
        promotion.rollback(shop.config, by="ann")
    shutil.rmtree(shop.config.bundles / versions[0])
    with pytest.raises(InputError, match="no bundle"):
        promotion.rollback(shop.config, by="ann")
    assert registry.state(shop.config).version == versions[1]


def test_an_alias_set_by_hand_is_a_request_that_the_gate_grants_or_refuses(shop: Shop) -> None:
    first, good, weak = shop.trained(), shop.trained(GOOD | {"champion": 0.32}), shop.trained(GOOD | {"champion": 0.12})
    shop.promote(first)
    assert promotion.reconcile(shop.config) == {"model_version": first, "answers": True}
    shop.alias(weak)
    assert registry.champion(shop.config)[1] == first, "a night asks the lake"
    told = promotion.reconcile(shop.config)
    assert (told["asked"]["decision"], told["restored"], told["model_version"]) == ("held", True, first)
    assert shop.aliases["champion"] == first
    assert "0.1200 against item_knn 0.2000" in shop.tag(weak)
    shop.alias(good)
    told = promotion.reconcile(shop.config)
    assert (told["asked"]["decision"], told["model_version"]) == ("promoted", good)
    assert "restored" not in told
    assert shop.aliases | {"champion": good, "previous": first} == shop.aliases
    assert [(r["action"], r["through"]) for r in shop.asked[1:]] == [("refused", "mlflow"), ("promoted", "mlflow")]
    # and back by hand: .30 is not within a twentieth of .32, so who wants it back rolls back, or overrules
    shop.alias(first)
    assert promotion.reconcile(shop.config)["asked"]["decision"] == "held"
    assert shop.aliases["champion"] == good


def test_an_alias_that_is_taken_away_is_put_back_and_the_tag_says_so(shop: Shop) -> None:
    first = shop.trained()
    shop.promote(first)
    shop.alias(None)
    told = promotion.reconcile(shop.config)
    assert told == {"model_version": first, "answers": True, "restored": True}
    assert shop.aliases["champion"] == first
    assert "taken away" in shop.tag(first)


def test_an_alias_for_a_version_that_is_not_here_is_refused_and_put_back(shop: Shop) -> None:
    first, lost = shop.trained(), shop.trained()
    shop.promote(first)
    shutil.rmtree(shop.config.bundles / lost)
    shop.alias(lost)
    told = promotion.reconcile(shop.config)
    assert (told["asked"]["decision"], told["model_version"]) == ("held", first)
    assert shop.aliases["champion"] == first
    assert shop.asked[-1]["action"] == "refused"


def test_aliases_that_a_killed_promotion_left_behind_follow_and_are_no_request(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = shop.trained(), shop.trained(GOOD | {"champion": 0.32})
    shop.promote(first)
    for asked in (lambda: shop.promote(second), lambda: promotion.rollback(shop.config, by="ann")):
        before = shop.aliases
        with monkeypatch.context() as patch:
            patch.setattr(registry, "mirror", lambda config, now: False)
            asked()
        assert {k: v for k, v in shop.aliases.items() if k != "challenger"} == {k: v for k, v in before.items() if k != "challenger"}
        told = promotion.reconcile(shop.config)
        assert told == {"model_version": registry.state(shop.config).version, "answers": True}
        assert shop.aliases["champion"] == told["model_version"]
    assert [r["action"] for r in shop.asked] == ["promoted", "promoted", "rolled_back"]


def test_two_promotions_decided_over_one_state_have_one_winner_and_two_rows(shop: Shop) -> None:
    versions = [shop.trained(GOOD | {"champion": 0.30 + n / 100}) for n in range(2)]
    seen = registry.state(shop.config)
    told = [shop.promote(v, seen=seen) for v in versions]
    assert [t["decision"] for t in told] == ["promoted", "held"]
    assert "another change was made first" in told[1]["reason"]
    assert f"version {versions[0]} serves" in told[1]["reason"]
    assert [r["action"] for r in shop.asked] == ["promoted", "refused"]


def test_a_home_of_an_earlier_release_goes_on_with_its_aliases_and_puts_them_on_record(shop: Shop) -> None:
    first, second, third = (shop.trained(GOOD | {"champion": 0.3 + n / 100}) for n in range(3))
    client = server.client(shop.config)
    for version, alias in ((first, "previous"), (second, "champion")):
        client.set_model_version_tag(registry.NAME, version, "promoted", "true")
        client.set_registered_model_alias(registry.NAME, alias, version)
    assert registry.champion(shop.config)[1] == second
    assert promotion.reconcile(shop.config)["model_version"] == second
    assert serving(shop.lake).change == 0, "looking changes nothing"
    shop.promote(third)
    assert [s.version for s in serving(shop.lake).stack] == [first, second, third]
    assert promotion.rollback(shop.config, by="ann")["model_version"] == second


@pytest.fixture
def hung() -> Iterator[str]:
    """A server that takes a connection and never answers."""
    listening = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []

    def take() -> None:
        while True:
            try:
                kept.append(listening.accept()[0])
            except OSError:
                return

    threading.Thread(target=take, daemon=True).start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.close()
    for one in kept:
        one.close()


@pytest.mark.parametrize("dead", [True, False])
def test_a_registry_that_is_down_or_hangs_stops_neither_scoring_nor_a_change(shop: Shop, hung: str, dead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    first, second = shop.trained(), shop.trained(GOOD | {"champion": 0.32})
    shop.promote(first)
    here = shop.config
    away = here.model_copy(update={"mlflow_uri": "http://127.0.0.1:9" if dead else hung})
    assert registry.champion(away) == (load(here.bundles / first), first)
    assert registry.served(away, alone=True) == [(first, load(here.bundles / first).digest)]
    assert promotion.reconcile(away) == {"model_version": first, "answers": False}
    told = promotion.promote(away, second, by="ann")
    assert (told["decision"], told["change"]) == ("promoted", 2)
    assert "aliases follow at the next reconcile" in told["reason"]
    assert registry.champion(away)[1] == second
    assert shop.aliases["champion"] == first
    assert promotion.reconcile(here) == {"model_version": second, "answers": True}
    assert shop.aliases["champion"] == second


def test_a_server_is_waited_for_longer_where_it_is_handed_files(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    for own, asked in (("10", "600"), ("45", "45")):
        monkeypatch.setenv(name, own)
        with server.patient():
            assert os.environ[name] == asked
        assert os.environ[name] == own


def test_a_night_keeps_the_version_it_resolved_though_another_serves_by_then(shop: Shop) -> None:
    first, second = shop.trained(), shop.trained(GOOD | {"champion": 0.32})
    shop.promote(first)
    bundle, version = registry.champion(shop.config)
    shop.promote(second)
    assert (version, load(shop.config.bundles / version, bundle.digest)) == (first, bundle)
    assert registry.champion(shop.config, DAY + timedelta(days=1))[1] == second


def test_one_flipped_byte_in_any_file_of_a_bundle_is_refused_with_its_name(shop: Shop) -> None:
    version = shop.trained()
    folder = shop.config.bundles / version
    look: Callable[[], Any] = lambda: registry.of_version(shop.config, version)  # noqa: E731
    assert look().version == version
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    assert {p.name for p in files} == {"bundle.json", "digest.json", "gate.parquet", "item_map.json"}
    for file in files:
        whole = file.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 40)):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            with pytest.raises((QualityError, InputError), match=file.name.replace(".", r"\.")):
                look()
        file.write_bytes(whole)
    assert look().version == version
