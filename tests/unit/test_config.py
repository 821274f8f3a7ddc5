"""Settings, dates, errors, the schema and the list of steps: each agrees with itself and with the others."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrec import config, dates, errors, schema
from mmrec.config import Config, SparkConfig
from mmrec.errors import InputError, MmrecError, QualityError, TransientError
from mmrec.schema import TABLES, Table
from mmrec.steps import STEPS, step

ZONES = ("UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Sao_Paulo",
         "Pacific/Apia")  # fmt: skip
DAYS = st.dates(date(1985, 1, 1), date(2037, 12, 30))


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("MMREC_")]:
        monkeypatch.delenv(name)


def home_with(tmp_path: Path, text: str | bytes) -> Path:
    (tmp_path / "mmrec.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return tmp_path


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = home_with(tmp_path, 'zone = "Asia/Kathmandu"\nthreads = 3\n[night]\nk = 5\ntext = "hash"\nhalf_life_days = 7\n')
    got = config.load(home)
    assert (got.zone, got.threads, got.night.k, got.night.image) == ("Asia/Kathmandu", 3, 5, "efficientnet-lite0")
    for name, value in (("ZONE", "Europe/Berlin"), ("NIGHT__K", "6"), ("NIGHT__TEXT", ""), ("SOURCE__ROOT", "/data"),
                        ("HOME", "/elsewhere")):  # fmt: skip
        monkeypatch.setenv(f"MMREC_{name}", value)
    got = config.load(home)
    # one key of a section leaves its neighbours to the file
    assert (got.zone, got.threads, got.night.k, got.night.text, got.night.half_life_days) == ("Europe/Berlin", 3, 6, "", 7)
    assert got.source.root == Path("/data")
    got = config.load(home, zone="UTC", night={"k": 7}, threads=None)
    assert (got.zone, got.threads, got.night.k, got.night.text, got.night.half_life_days) == ("UTC", 3, 7, "", 7)
    assert got.home == home


def test_a_home_without_a_file_has_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    got = config.load(Path("home"))
    assert got == Config(home=tmp_path / "home")
    for folder in (got.lake, got.runs, got.bundles, got.cache):
        assert folder.parent == tmp_path / "home"
    assert got.tracking == f"sqlite:///{tmp_path}/home/mlflow.db"
    assert config.load(Path("home"), mlflow_uri="http://x").tracking == "http://x"
    with pytest.raises(ValueError):
        got.zone = "UTC"  # type: ignore[misc]
    with pytest.raises(ValueError):
        got.night.k = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "key", "value", "valid"),
    [
        ("bogus = 1\n", "bogus", "1", "zone"),
        ("[nights]\nk = 1\n", "nights", "{'k': 1}", "night"),
        ("[night]\nbogus = 1\n", "night.bogus", "1", "half_life_days"),
        ("[night]\nk = 0\n", "night.k", "0", "items in a list"),
        ('[night]\nk = "many"\n', "night.k", "'many'", "items in a list"),
        ("[night]\nhalf_life_days = 0\n", "night.half_life_days", "0", "days"),
        ("[evaluate]\nper_user_share = 1.0\n", "evaluate.per_user_share", "1.0", "share"),
        ("[evaluate]\nbootstrap = 99\n", "evaluate.bootstrap", "99", "samples"),
        ('engine = "spork"\n', "engine", "'spork'", "local"),
        ("threads = 0\n", "threads", "0", "threads"),
        ("threads = 1.5\n", "threads", "1.5", "threads"),
        ("max_age_hours = 0\n", "max_age_hours", "0", "hours"),
        ("night = 5\n", "night", "5", "valid"),
        ("[spark]\npartitions = 0\n", "spark.partitions", "0", "partitions of a shuffle"),
        ('[spark]\nquick_start = "perhaps"\n', "spark.quick_start", "'perhaps'", "archive"),
        ("[spark]\nmaster = 4\n", "spark.master", "4", "local[*]"),
        ("[spark]\nmemory = 512\n", "spark.memory", "512", "as Java writes it"),
        ('[spark]\nbogus = "x"\n', "spark.bogus", "'x'", "quick_start"),
        ('[spark]\noptions = "x"\n', "spark.options", "'x'", "settings of Spark"),
        ("[spark]\noptions = { cores = 2 }\n", "spark.options.cores", "2", "settings of Spark"),
        # an unquoted name is a table of tables
        ('[spark.options]\nspark.executor.cores = "2"\n', "spark.options.spark", "{'executor': {'cores': '2'}}", "settings of Spark"),
        ('[airflow]\nrunner = "ssh"\n', "airflow.runner", "'ssh'", "spark-submit"),
        ('[airflow]\nstart = "soon"\n', "airflow.start", "'soon'", "first day"),
        ("[airflow]\nend = 7.5\n", "airflow.end", "7.5", "last day"),
        ("[airflow]\nretries = -1\n", "airflow.retries", "-1", "tries"),
        ("[airflow]\npoll_s = 0\n", "airflow.poll_s", "0", "seconds"),
        ("[airflow]\nbogus = 1\n", "airflow.bogus", "1", "nightly"),
        ('[source]\nexpect = "a.csv"\n', "source.expect", "'a.csv'", "files that a night"),
        ('[source]\nexpect = ["a.csv", 2]\n', "source.expect.1", "2", "files that a night"),
    ],
)
def test_a_wrong_setting_names_file_key_value_and_what_would_be_right(tmp_path: Path, text: str, key: str, value: str,
                                                                      valid: str) -> None:  # fmt: skip
    with pytest.raises(InputError) as caught:
        config.load(home_with(tmp_path, text))
    lines = str(caught.value).splitlines()
    assert lines[1] == f"  where: {tmp_path / 'mmrec.toml'}: {key}"
    assert lines[2] == f"  value: {value}"
    assert "valid:" in lines[3]
    assert valid in lines[3]
    assert lines[4].startswith("  next:")


@pytest.mark.parametrize("text", ["zone = ", b"zone = '\xff'", "zone = 'UTC'\nzone = 'UTC'", '"'])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(InputError, match=r"mmrec\.toml") as caught:
        config.load(home_with(tmp_path, text))
    assert "valid: TOML" in str(caught.value)


def test_a_wrong_environment_variable_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("NIGHT__K", "none"), ("NIGHT__BOGUS", "1"), ("NIGHT", "x"), ("DEVICE", "tpu")):
        with monkeypatch.context() as patch:
            patch.setenv(f"MMREC_{name}", value)
            with pytest.raises(InputError) as caught:
                config.load(tmp_path)
            assert f"MMREC_{name}" in str(caught.value) or name.split("__")[0].lower() in str(caught.value)


def test_a_misspelt_variable_is_named_and_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, valid in (("NIHGT__K", "MMREC_NIGHT"), ("NIGHT__KAY", "half_life_days"), ("THREAD", "MMREC_THREADS")):
        with monkeypatch.context() as patch:
            patch.setenv(f"MMREC_{name}", "5")
            with pytest.raises(InputError) as caught:
                config.load(tmp_path)
            assert f"environment: MMREC_{name}" in str(caught.value)
            assert valid in str(caught.value)


TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(["😀", '"', "\\", "\x7f", "\u2028", "a\nb", "\x00"])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT, TEXT, st.integers(1, 10**9), st.floats(1e-9, 1e18), st.booleans())
def test_what_is_written_is_what_is_loaded(tmp_path: Path, zone: str, text: str, k: int, days: float, rooted: bool) -> None:
    root = Path("/data/fïlms 😀") if rooted else None
    config.write(tmp_path / "home", {"zone": zone, "mlflow_uri": None, "night": {"k": k, "text": text, "half_life_days": days},
                                     "source": {"root": root}})  # fmt: skip
    got = config.load(tmp_path / "home")
    assert (got.zone, got.night.k, got.night.text, got.night.half_life_days) == (zone, k, text, days)
    assert (got.source.root, got.mlflow_uri) == (root, None)


def test_every_default_that_is_written_reads_back_as_itself_when_its_sign_is_taken_away(tmp_path: Path) -> None:
    written = config.write(tmp_path / "home", {})
    empty = config.load(tmp_path / "home")
    assert empty == Config(home=tmp_path / "home")
    lines, taken = written.read_text().splitlines(), []
    for n, line in enumerate(lines):
        if found := re.fullmatch(r"# (\w+ = .+)", line):  # nothing after the sign: TOML has no null
            lines[n] = found[1]
            taken.append(found[1])
    assert {"expect = []", "options = {}", 'start = "2026-01-01"', 'runner = "process"', "partitions = 2", "catchup = false",
            "per_user_share = 0.2"} <= set(taken)  # fmt: skip
    sections = [type(f.default).model_fields for f in Config.model_fields.values() if hasattr(type(f.default), "model_fields")]
    defaults = [f.default for fields in (Config.model_fields, *sections) for name, f in fields.items() if name != "home"]
    assert len(taken) == len(defaults) - len(sections) - defaults.count(None)
    written.write_text("\n".join(lines))
    assert config.load(tmp_path / "home") == empty


def test_values_of_every_kind_are_written_so_that_they_are_read_back(tmp_path: Path) -> None:
    options = {"spark.executor.cores": "2", 'a "b" = {c}': "[x]\n", "": ""}
    told = {"spark": {"master": "spark://m:7077", "quick_start": False, "partitions": 9, "options": options},
            "airflow": {"start": date(2026, 2, 28), "end": date(2026, 12, 31), "catchup": True, "retry_delay_s": 0.5, "runner": "pod"},
            "source": {"expect": ("{day}/a.csv", "ü.jsonl")}}  # fmt: skip
    config.write(tmp_path / "home", told)
    got = config.load(tmp_path / "home")
    for section, values in told.items():
        assert {k: getattr(getattr(got, section), k) for k in values} == values
    # dates of TOML's own, and none at all
    assert config.load(home_with(tmp_path, "[airflow]\nstart = 2026-02-28\n")).airflow.start == date(2026, 2, 28)
    assert config.load(home_with(tmp_path, "")).airflow.end is None


def test_spark_and_airflow_can_be_set_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SPARK__MASTER", "spark://m:7077"), ("SPARK__QUICK_START", "false"), ("SPARK__PARTITIONS", "6"),
                        ("SPARK__OPTIONS", '{"spark.x": "1"}'), ("AIRFLOW__END", "2026-05-01"), ("SOURCE__EXPECT", '["a"]')):  # fmt: skip
        monkeypatch.setenv(f"MMREC_{name}", value)
    got = config.load(tmp_path)
    assert got.spark == SparkConfig(master="spark://m:7077", quick_start=False, partitions=6, options={"spark.x": "1"})
    assert (got.airflow.end, got.source.expect) == (date(2026, 5, 1), ("a",))
    monkeypatch.setenv("MMREC_SPARK__PARTITIONS", "none")
    with pytest.raises(InputError, match="MMREC_SPARK__PARTITIONS"):
        config.load(tmp_path)


def test_every_field_says_what_it_is() -> None:
    def fields(model: Any) -> Any:
        for name, field in model.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                yield from fields(field.annotation)
            else:
                yield name, field.description

    told = dict(fields(Config))
    assert len(told) > 20
    assert not [n for n, description in told.items() if not description]


@given(DAYS, st.sampled_from(ZONES))
def test_days_tile_the_time_line_without_gap_or_overlap(day: date, zone: str) -> None:
    start, end, after = (dates.as_of(day + timedelta(days=n), zone) for n in range(3))
    assert start.tzinfo is UTC
    assert start <= end <= after  # a day's end is the next one's beginning: half-open by construction
    # 22 and 26: Newfoundland once put its clocks two hours forward
    assert end - start in {timedelta(hours=h) for h in (0, 22, 23, 23.5, 24, 24.5, 25, 26)}
    tz = ZoneInfo(zone)
    if start < end:
        middle = start + (end - start) / 2
        assert middle.astimezone(tz).date() == day
        assert (start - timedelta(hours=2)).astimezone(tz).date() < day
        assert (end - timedelta(hours=2)).astimezone(tz).date() == day
        assert start.astimezone(tz).date() == day


@pytest.mark.parametrize(
    ("zone", "day", "start", "hours"),
    [
        ("UTC", date(2026, 3, 29), "2026-03-29T00:00", 24),
        ("Europe/Berlin", date(2026, 3, 29), "2026-03-28T23:00", 23),
        ("Europe/Berlin", date(2026, 10, 25), "2026-10-24T22:00", 25),
        ("America/St_Johns", date(2026, 3, 8), "2026-03-08T03:30", 23),
        ("America/St_Johns", date(2026, 11, 1), "2026-11-01T02:30", 25),
        ("Australia/Lord_Howe", date(2026, 10, 4), "2026-10-03T13:30", 23.5),
        ("Australia/Lord_Howe", date(2026, 4, 5), "2026-04-04T13:00", 24.5),
        ("Asia/Kathmandu", date(2026, 1, 1), "2025-12-31T18:15", 24),
        # midnight itself is skipped: the day begins at one o'clock
        ("America/Sao_Paulo", date(2018, 11, 4), "2018-11-04T03:00", 23),
        # a day that was not: nobody's event falls into it, and its neighbours meet
        ("Pacific/Apia", date(2011, 12, 30), "2011-12-30T10:00", 0),
        ("Pacific/Apia", date(2011, 12, 31), "2011-12-30T10:00", 24),
    ],
)
def test_the_days_of_change_are_as_long_as_the_calendar_says(zone: str, day: date, start: str, hours: float) -> None:
    got = dates.as_of(day, zone)
    assert got == datetime.fromisoformat(start).replace(tzinfo=UTC)
    assert dates.as_of(day + timedelta(days=1), zone) - got == timedelta(hours=hours)


@pytest.mark.parametrize("zone", ["", "Mars/Base", "../etc", "Europe", "UTC\0", "a" * 300, "Europe/Berlin "])
def test_an_unknown_zone_is_named(zone: str) -> None:
    with pytest.raises(InputError, match="no such time zone") as caught:
        dates.as_of(date(2026, 1, 1), zone)
    assert caught.value.value == zone
    assert "Europe/Berlin" in str(caught.value)


@given(DAYS, st.integers(0, 800))
def test_a_range_holds_each_day_once_both_ends_included(start: date, more: int) -> None:
    end = min(start + timedelta(days=more), date.max)
    got = dates.days(start, end)
    assert (got[0], got[-1], len(got)) == (start, end, (end - start).days + 1)
    assert all(b - a == timedelta(days=1) for a, b in itertools.pairwise(got))


def test_a_range_backwards_shows_the_command_turned_around() -> None:
    with pytest.raises(InputError) as caught:
        dates.days(date(2026, 1, 2), date(2026, 1, 1))
    assert "--from 2026-01-01 --to 2026-01-02" in str(caught.value)


@given(st.dates())
def test_a_date_reads_back(day: date) -> None:
    assert dates.parse(day.isoformat()) == day


@pytest.mark.parametrize("text", ["", "2026-02-30", "2026-1-1", "26-01-01", "2026-01-01T00:00", "today", " 2026-01-01",
                                  "٢٠٢٦-٠١-٠١", "20260131", "2026-W05-6"])  # fmt: skip
def test_only_year_month_day_is_a_date(text: str) -> None:
    with pytest.raises(InputError) as caught:
        dates.parse(text, "--from")
    assert (caught.value.where, caught.value.value, caught.value.valid) == ("--from", text, "YYYY-MM-DD")


@given(st.integers(-62_000_000_000_000_000, 250_000_000_000_000_000), st.integers(-14 * 60, 14 * 60))
def test_micros_are_exact_on_both_sides_of_1970_in_any_offset(us: int, minutes: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
    assert dates.micros(moment) == us
    assert dates.micros(moment.astimezone(timezone(timedelta(minutes=minutes)))) == us


def test_micros_refuse_a_time_without_a_zone() -> None:
    with pytest.raises(TypeError):
        dates.micros(datetime(2026, 1, 1))


def test_errors_say_what_where_value_valid_and_next_in_that_order() -> None:
    told = str(InputError("it is wrong", where="a.b", value="x\ny", valid=("p", "q"), next="mmrec fix", report={"n": 1}))
    assert told == "it is wrong\n  where: a.b\n  value: 'x\\ny'\n  valid: p, q\n  next:  mmrec fix"
    assert str(QualityError("plain", value=0, valid="one")) == "plain\n  value: 0\n  valid: one"
    assert {e.__name__: e.exit_code for e in (InputError, QualityError, TransientError)} == {
        "InputError": 2, "QualityError": 3, "TransientError": 75}  # fmt: skip
    kinds = {v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, MmrecError)} - {MmrecError}
    assert kinds == {InputError, QualityError, TransientError}


@pytest.fixture(params=TABLES.values(), ids=lambda t: t.name)
def table(request: pytest.FixtureRequest) -> Table:
    return request.param


def test_keys_partition_and_mode_of_a_table_are_sound(table: Table) -> None:
    columns = {c.name: c for c in table.columns}
    assert len(columns) == len(table.columns)
    assert table.key
    assert len(set(table.key)) == len(table.key)
    for name in table.key:
        assert not columns[name].nullable, name
        assert not columns[name].meta, name  # who wrote a row can't be what tells it from another
    assert (table.partition is not None) is (table.mode == "replace_partition")
    if table.partition:
        assert columns[table.partition].type == "DATE"
        assert table.partition in table.key
    assert table.content_columns
    assert table.grain
    assert all(c.comment for c in table.columns)
    assert table.retention_days > 0


def test_checks_name_real_columns_and_accept_and_refuse(table: Table) -> None:
    con = duckdb.connect()
    try:
        con.register("rows", pa.table(table.arrow.empty_table()))
        for name, condition in table.checks.items():
            assert con.execute(f"SELECT count(*) FILTER (WHERE NOT ({condition})) FROM rows").fetchall() == [(0,)], name
        # a check that can't be false guards nothing
        worst = con.sql("SELECT " + ", ".join(f"{_worst(c.type)} AS {c.name}" for c in table.columns)).to_arrow_table()
        con.register("worst", worst)
        for name, condition in table.checks.items():
            assert con.execute(f"SELECT ({condition}) FROM worst").fetchall() == [(False,)], name
    finally:
        con.close()


def _worst(kind: str) -> str:
    return {"STRING": "''", "INT": "-1::INT", "BIGINT": "-1::BIGINT", "FLOAT": "'nan'::FLOAT", "DOUBLE": "'nan'::DOUBLE"}.get(kind, "NULL")


def test_names_views_and_what_silver_takes_from_bronze_are_unique_and_complete() -> None:
    assert len({t.view for t in TABLES.values()}) == len(TABLES)
    assert {t.layer for t in TABLES.values()} == {"bronze", "silver", "gold", "ops"}
    assert all(schema.table(name) is t and t.name == name for name, t in TABLES.items())
    for kind in ("interactions", "items", "users", "relations", "impressions", "wishes"):
        bronze, silver = TABLES[f"bronze.{kind}"], TABLES[f"silver.{kind}"]
        assert set(silver.arrow.names) <= set(bronze.arrow.names)
        assert bronze.arrow.names.index("available_at") + 2 == bronze.arrow.names.index("parse_error")
    with pytest.raises(InputError) as caught:
        schema.table("gold.nothing")
    assert set(caught.value.valid) == set(TABLES)


def test_ddl_and_arrow_agree_in_the_engine(spark: Any) -> None:
    for t in TABLES.values():
        got = spark.createDataFrame([], t.ddl).toArrow().schema
        assert got.names == t.arrow.names
        for field, want in zip(got, t.arrow, strict=True):
            assert _plain(field.type) == _plain(want.type), f"{t.name}.{field.name}"


def _plain(kind: pa.DataType) -> str:
    text = str(kind.value_type) + "[]" if pa.types.is_list(kind) else str(kind)
    return text.replace("large_", "").replace("string_view", "string")


def test_steps_and_tables_name_each_other() -> None:
    names = [s.name for s in STEPS]
    assert len(set(names)) == len(names)
    for s in STEPS:
        assert set(s.reads) | set(s.writes) <= set(TABLES), s.name
        assert step(s.name) is s
        assert s.summary
    for t in TABLES.values():
        # what every station leaves behind is written by whatever runs it, and what people decide or ask for by their command
        assert t.step in ("run", "review", "score") or t.name in step(t.step).writes, t.name
    # nightly stations run in the list's order: what one reads, an earlier one or an earlier night has written
    written: set[str] = set()
    for s in (s for s in STEPS if s.nightly and s.name != "world"):
        assert set(s.reads) <= written, s.name
        written |= set(s.writes)
    with pytest.raises(InputError) as caught:
        step("dance")
    assert caught.value.valid == names


@pytest.mark.parametrize("s", STEPS, ids=lambda s: s.name)
def test_every_steps_function_is_there(s: Any) -> None:
    assert callable(s.load())
    assert s.load().__name__ == s.name


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("mmrec.steps", {"torch", "pyspark", "pysail", "mlflow", "deltalake", "pyarrow", "numpy", "onnxruntime"}),
        ("mmrec.schema", {"torch", "pyspark", "pysail", "mlflow", "deltalake", "onnxruntime"}),
        ("mmrec.cli", {"torch", "pyspark", "pysail", "mlflow", "onnxruntime", "transformers"}),
        ("mmrec.night", {"torch", "mlflow", "transformers"}),
    ],
)
def test_importing_is_light(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*({absent!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
