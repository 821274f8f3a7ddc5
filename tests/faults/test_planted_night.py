"""A night over a source full of faults: it ends well, and everything that was refused says why."""

import io
import json
import re
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from tests.conftest import Lived, mmrec, share_encoders

BAD_ROWS = (
    "abc", "1,2,3", "1,2,4.0,not-a-time", ",7,4.0,964982703", "3,,4.0,964982703", "3,7,four,964982703",
    "3,7,NaN,964982703", "3,7,4.0,99999999999999", "3,7,4.0,-5", "3,9999999,4.0,964982703",
)  # fmt: skip


def films(root: Path) -> None:
    """30 users and 60 films; 200 malformed rows, a torn file, 20 broken posters, a film without any content."""
    rng = Random(0)
    (root / "posters").mkdir(parents=True)
    lines = ["movieId,title,genres"]
    for film in range(1, 61):
        lines.append(f"{film},Film number {film} ({1990 + film % 20}),Drama|Comedy")
        poster = io.BytesIO()
        Image.new("RGB", (48, 72), (film * 4, 255 - film * 4, film)).save(poster, "JPEG")
        data = poster.getvalue()
        if film <= 5:
            data = b""
        elif film <= 12:
            data = data[: len(data) // 3]
        elif film <= 20:
            data = b"this is no picture"
        (root / "posters" / f"{film}.jpg").write_bytes(data)
    lines.append("61,,(no genres listed)")
    (root / "movies.csv").write_text("\n".join(lines) + "\n")
    good = [f"{u},{f},{rng.randint(1, 10) / 2},{964982703 + n * 3600}"
            for n, (u, f) in enumerate((u, f) for u in range(1, 31) for f in rng.sample(range(1, 62), 20))]  # fmt: skip
    bad = [f"{BAD_ROWS[n % len(BAD_ROWS)]}" + ("" if n < len(BAD_ROWS) else " " * (n // len(BAD_ROWS)))
           for n in range(200)]  # fmt: skip
    rows = good + bad
    rng.shuffle(rows)
    (root / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "\n".join(rows) + '\n7,12,"4.')


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, encoders_cache: Path) -> Lived:
    root, home = tmp_path_factory.mktemp("films"), tmp_path_factory.mktemp("planted") / "home"
    films(root)
    mmrec("init", "--home", str(home), "--source", "movielens-small", "--root", str(root))
    share_encoders(home, encoders_cache)
    told = mmrec("run", "--home", str(home), "--date", "2001-01-01", "--no-train", "--json").stdout
    return Lived(home, [json.loads(told)])


def test_the_night_ends_well(night: Lived) -> None:
    assert night.nights[0]["published"]
    assert night.nights[0]["lists"] == 30
    assert json.loads(mmrec("verify", "--home", str(night.home), "--json").stdout)["ok"]


def test_every_malformed_row_is_in_quarantine_with_its_reason(night: Lived) -> None:
    rows = night.sql("select rule, reason, raw, line from ops_quarantine where table_name = 'bronze.interactions'")
    assert len(rows) == 201
    assert all(r["reason"] and r["line"] > 1 for r in rows)
    assert len({r["rule"] for r in rows}) >= 5
    assert night.sql("select count(*) n from interactions")[0]["n"] == 600


def test_the_torn_last_line_is_one_of_them(night: Lived) -> None:
    torn = night.sql("select rule, reason, raw from ops_quarantine where raw like '7,12,\"4.%'")
    assert len(torn) == 1
    assert "torn" in torn[0]["reason"]


def test_every_broken_poster_is_in_quarantine_and_its_film_is_still_offered(night: Lived) -> None:
    rows = night.sql("select rule, reason, raw from ops_quarantine where rule like 'image_%' order by raw")
    assert {r["raw"] for r in rows} == {f"posters/{n}.jpg" for n in range(1, 21)}
    assert all(r["reason"] for r in rows)
    offered = night.sql("select count(distinct item_id) n from item_features where item_id::int <= 20")
    assert offered[0]["n"] == 20
    refused = night.sql("select count(*) n from item_embeddings where encoder_version like 'efficientnet%' and dim = 0")
    # nothing, no picture, and a JPEG cut within its header, which is the same for all: each content is refused once
    assert refused[0]["n"] == 3


def test_the_film_without_content_is_named_and_offered(night: Lived) -> None:
    rows = night.sql("select rule, reason, raw from ops_quarantine where rule = 'no_content'")
    assert [r["raw"] for r in rows] == ["61"]
    assert "without text" in rows[0]["reason"]
    assert night.sql("select count(*) n from item_features where item_id = '61'")[0]["n"] == 1


def test_a_second_look_adds_nothing(night: Lived) -> None:
    count = "select count(*) n from ops_quarantine"
    before = night.sql(count)
    for station in ("ingest", "validate", "embed"):
        mmrec(station, "--home", str(night.home), "--date", "2001-01-02")
    assert night.sql(count) == before


def test_an_empty_delivery_stops_the_night(tmp_path: Path) -> None:
    root, home = tmp_path / "films", tmp_path / "home"
    films(root)
    mmrec("init", "--home", str(home), "--source", "movielens-small", "--root", str(root))
    (root / "ratings.csv").write_text("userId,movieId,rating,timestamp\n")
    stopped = mmrec("run", "--home", str(home), "--date", "2001-01-01", "--no-train", ok=(3,))
    assert "empty" in stopped.stderr
    assert "ratings.csv" in stopped.stderr
    told = mmrec("sql", "select count(*) n from latest_recommendations", "--home", str(home), "--json").stdout
    assert json.loads(told) == [{"n": 0}]


@pytest.mark.deep
def test_a_delivery_of_mostly_bad_rows_stops_every_night_until_it_is_mended_or_allowed(
    tmp_path: Path, encoders_cache: Path
) -> None:
    root, home = tmp_path / "films", tmp_path / "home"
    films(root)
    good = (root / "ratings.csv").read_text().splitlines()
    (root / "ratings.csv").write_text("\n".join([good[0], *(f"{n % 30 + 1},1,four {n},964982703" for n in range(3000)), *good[1:-1]]) + "\n")
    mmrec("init", "--home", str(home), "--source", "movielens-small", "--root", str(root))
    share_encoders(home, encoders_cache)
    for _ in range(2):
        stopped = mmrec("run", "--home", str(home), "--date", "2001-01-01", "--no-train", ok=(3,))
        assert re.search(r"30\d\d bad_number", stopped.stderr)
        assert "max_bad_share" in stopped.stderr
    count = ("sql", "select count(*) n from ops_quarantine where rule = 'bad_number'", "--home", str(home), "--json")
    assert json.loads(mmrec(*count).stdout) == [{"n": 0}]
    settings = (home / "mmrec.toml").read_text()
    (home / "mmrec.toml").write_text(settings.replace("# max_bad_share = 0.5", "max_bad_share = 0.9"))
    assert json.loads(mmrec("run", "--home", str(home), "--date", "2001-01-01", "--no-train", "--json").stdout)["lists"] == 30
    assert json.loads(mmrec(*count).stdout)[0]["n"] >= 3000
