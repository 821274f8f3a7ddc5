"""Sources against naive readers and planted faults: every line is a row or a named error, and no row is made up."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import zipfile
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrec.errors import InputError, MmrecError, TransientError
from mmrec.worlds import movielens, sources
from mmrec.worlds.amazon import Amazon
from mmrec.worlds.files import MAPPING, FilesSource
from mmrec.worlds.movielens import MovieLens, download
from mmrec.worlds.sources import csv_rows, jsonl_rows, media_bytes, open_source

EVENT = "user_id,item_id,event_type,event_ts\n"
# what breaks readers comes often: quotes, delimiters, line ends of Unicode, NUL
FIELD = st.text(st.sampled_from(list('a,;"\n\t|\x00\x0c\x1e\x85\u2028é😀 ')), max_size=8) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=8)  # fmt: skip
QUICK = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def folder(root: Path, **files: str | bytes) -> Path:
    """Files by name; `__` stands for a dot, `___` for a slash."""
    for name, content in files.items():
        path = root / name.replace("___", "/").replace("__", ".").lstrip("_")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def rows_of(source: Any, kind: str) -> list[dict[str, Any]]:
    """Every row of a kind, file by file."""
    return [r for d in source.deliveries() if d.kind == kind for b in d.read() for r in b.to_pylist()]


def mapped(root: Path, mapping: str, data: str, name: str = "orders.csv") -> list[dict[str, Any]]:
    (root / MAPPING).write_text(mapping)
    (root / name).write_text(data)
    return rows_of(FilesSource(root), "interactions")


@QUICK
@given(st.integers(1, 4), st.data(), st.sampled_from([",", ";", "\t", "|"]), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_valid_csv_reads_as_the_standard_library_reads_it(tmp_path: Path, width: int, data: st.DataObject, delimiter: str,
                                                          bom: bool, end: str) -> None:  # fmt: skip
    table = data.draw(st.lists(st.lists(FIELD, min_size=width, max_size=width), max_size=8))
    header = [f"c{i}" for i in range(width)]
    out = io.StringIO()
    quote = data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quote).writerows([header, *table])
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbf" * bom + out.getvalue().encode())
    got = list(csv_rows(path, delimiter))
    assert [e for *_, e in got] == [None] * len(table)
    assert [list(v.values()) for _, v, _, _ in got] == table
    # a row stands at the line on which it begins
    starts, at = [], 2
    for row in table:
        starts.append(at)
        at += 1 + sum(v.count("\n") for v in row)
    assert [line for line, *_ in got] == starts


@QUICK
@given(st.lists(st.binary(max_size=12).filter(lambda b: b"\n" not in b and b'"' not in b), max_size=12), st.booleans())
def test_no_line_is_lost_whatever_bytes_it_holds(tmp_path: Path, lines: list[bytes], torn: bool) -> None:
    path = tmp_path / "a.csv"
    lines = [*lines, b"x,y"]  # a file that ends in an empty line without its end would have no such line
    path.write_bytes(b"a,b\n" + b"\n".join(lines) + b"\n" * (not torn))
    got = list(csv_rows(path))
    assert [line for line, *_ in got] == list(range(2, len(lines) + 2))
    for raw, (_, values, text, error) in zip(lines, got, strict=True):
        raw = raw.removesuffix(b"\r")
        assert text == raw.decode(errors="replace")
        assert (values is None) is (error is not None)
        try:
            right = len(raw.decode().split(",")) == 2
        except UnicodeDecodeError:
            right = False
        assert (error is None) is right
    objects = list(jsonl_rows(path))
    assert [line for line, *_ in objects] == list(range(1, len(lines) + 2))
    assert all((values is None) is (error is not None) for _, values, _, error in objects)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"1", "1 fields, the header has 2"),
        (b"1,2,3", "3 fields, the header has 2"),
        (b"", "1 fields, the header has 2"),
        (b"1,caf\xe9", "not UTF-8"),
        (b'"1"x,2', "not csv"),
        (b'1,"2', "not csv|torn"),
        (b"\xff\xfe1\x00,\x002\x00", "not UTF-8"),
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_bad_csv_line_is_an_error_of_its_own_line_alone(tmp_path: Path, line: bytes, why: str, end: bytes) -> None:
    path = folder(tmp_path, a__csv=end.join([b"a,b", b"1,good", line, b"2,good", b"3,\x00nul", b""])) / "a.csv"
    got = list(csv_rows(path))
    assert [n for n, *_ in got] == [2, 3, 4, 5]
    assert [bool(e) for *_, e in got] == [False, True, False, False]
    assert any(w in got[1][3] for w in why.split("|"))
    assert got[1][2] == line.decode(errors="replace")
    assert got[3][1] == {"a": "3", "b": "\x00nul"}


def test_stray_quotes_cost_their_own_lines_and_none_between(tmp_path: Path) -> None:
    # inches in titles: two lines with one quote each are not one field of many lines
    lines = ['1,32" screen,a', "2,ok,b", "3,ok,c", '4,"torn,d', "5,ok,e", '6,19" screen,f']
    path = folder(tmp_path, a__csv="id,title,x\n" + "\n".join(lines) + "\n") / "a.csv"
    got = {n: values for n, values, _, _ in csv_rows(path)}
    assert set(got) == set(range(2, 8))
    assert [got[n]["id"] for n in (3, 4, 6)] == ["2", "3", "5"]


def test_an_unclosed_quote_costs_its_own_line_and_a_torn_last_one_says_so(tmp_path: Path) -> None:
    path = folder(tmp_path, a__csv='a,b\n1,"x\n' + "2,y\n" * 150 + '3,"z') / "a.csv"
    got = list(csv_rows(path))
    assert [n for n, *_ in got] == list(range(2, 154))
    assert [n for n, _, _, e in got if e] == [2, 153]
    assert got[-1][3] == "torn"


@pytest.mark.parametrize("value", ["a\u2028b", "a\x0cb", "a\x85b", "a\x1eb"])
def test_only_line_feeds_end_a_record(tmp_path: Path, value: str) -> None:
    path = folder(tmp_path, a__csv=f'a,b\n"1",{value}\n') / "a.csv"
    assert [(v, e) for _, v, _, e in csv_rows(path)] == [({"a": "1", "b": value}, None)]


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"a,b\n", b"a,b"])
def test_a_file_without_rows_has_none(tmp_path: Path, content: bytes) -> None:
    assert list(csv_rows(folder(tmp_path, a__csv=content) / "a.csv")) == []
    assert (list(jsonl_rows(tmp_path / "a.csv")) == []) is (content in (b"", b"\xef\xbb\xbf"))


@QUICK
@given(st.lists(st.dictionaries(FIELD, st.none() | st.booleans() | st.integers() | FIELD | st.lists(FIELD)), max_size=6),
       st.booleans(), st.sampled_from(["\n", "\r\n"]))  # fmt: skip
def test_valid_jsonl_reads_as_json_line_by_line(tmp_path: Path, values: list[dict], ascii_only: bool, end: str) -> None:
    text = "".join(json.dumps(v, ensure_ascii=ascii_only) + end for v in values)
    path = folder(tmp_path, a__jsonl=text) / "a.jsonl"
    assert [(n, v, e) for n, v, _, e in jsonl_rows(path)] == [(n, v, None) for n, v in enumerate(values, 1)]


BAD_JSON = [b'{"user_id": "u', b"", b"[1]", b"null", b"{'a': 1}", b'{"user_id": "caf\xe9"}', b"{}x", b"[" * 100_000,
            b'{"user_id": ' + b"9" * 5000 + b"}", b'{"user_id": "\\ud83d"}', b'{"attributes": {"a": "\\udc00"}}']  # fmt: skip


@pytest.mark.parametrize("bad", BAD_JSON, ids=range(len(BAD_JSON)))
@pytest.mark.parametrize("torn", [False, True])
def test_a_bad_json_line_is_an_error_of_its_own_line_alone(tmp_path: Path, bad: bytes, torn: bool) -> None:
    good = b'{"user_id": "u1"}\n'
    folder(tmp_path, **{"2026-03-01___users__jsonl": good + bad + (b"" if torn else b"\n" + good)})
    got = rows_of(FilesSource(tmp_path), "users")
    lines = [1, 2, 3] if not torn else [1, 2] if bad else [1]
    assert [r["line"] for r in got] == lines
    assert [r["user_id"] for r in got if not r["parse_error"]] == ["u1"] * (1 if torn else 2)
    for r in got:
        assert (r["raw"] is None) is (r["parse_error"] is None)


def test_the_standard_layout_is_read_in_order_and_arrives_when_its_day_is_over(tmp_path: Path) -> None:
    folder(tmp_path, **{
        "2026-03-02___interactions__csv": EVENT + "u1,i1,view,2026-03-02T10:00:00Z\n",
        "2026-03-01___items__jsonl": '{"item_id": 7, "categories": ["b", "a"], "attributes": {"z": 1, "a": null}, '
                                     '"image": "media/7.jpg", "title": "", "more": 1}\n',
        "2026-03-01___interactions__jsonl": '{"user_id": "u", "weight": 2.5, "text": "ø"}\n',
        "2026-03-01___interactions__txt": "x", "notes___users__csv": "user_id\nu9\n", "2026-3-1___users__csv": "user_id\nu9\n",
    })  # fmt: skip
    found = FilesSource(tmp_path).deliveries()
    assert [(d.kind, d.file, d.available_at) for d in found] == [
        ("interactions", "2026-03-01/interactions.jsonl", datetime(2026, 3, 2, tzinfo=UTC)),
        ("items", "2026-03-01/items.jsonl", datetime(2026, 3, 2, tzinfo=UTC)),
        ("interactions", "2026-03-02/interactions.csv", datetime(2026, 3, 3, tzinfo=UTC)),
    ]
    item = rows_of(FilesSource(tmp_path), "items")[0]
    assert item["item_id"] == "7"
    assert item["categories"] == '["b","a"]'
    assert item["attributes"] == '{"a":null,"z":1}'  # one spelling of one object: keys sorted
    assert item["image"] == "2026-03-01/media/7.jpg"
    assert item["title"] is None
    first = rows_of(FilesSource(tmp_path), "interactions")[0]
    assert (first["user_id"], first["weight"], first["text"], first["item_id"]) == ("u", "2.5", "ø", None)


def test_wishes_come_in_dated_folders_and_by_a_mapping_that_knows_their_times(tmp_path: Path) -> None:
    day = tmp_path / "2026-01-01"
    day.mkdir()
    (day / "wishes.csv").write_text("user_id,wish,value,wished_at\nu,hide,i1,2026-01-01T10:00:00Z\n")
    (day / "wishes.jsonl").write_text('{"user_id": "u", "wish": "less", "field": "category", "value": "toys", "wished_at": "2026-01-01"}\n')
    found = rows_of(FilesSource(tmp_path), "wishes")
    assert [(r["user_id"], r["wish"], r["field"], r["value"], r["wished_at"], r["withdrawn_at"]) for r in found] == [
        ("u", "hide", None, "i1", "2026-01-01T10:00:00Z", None), ("u", "less", "category", "toys", "2026-01-01", None)]  # fmt: skip
    (tmp_path / MAPPING).write_text('[wishes]\nfile = "asked.csv"\ntime = "%d.%m.%Y %H:%M"\nzone = "Europe/Berlin"\n'
                                    'columns = { value = "brand", wished_at = "at", withdrawn_at = "until" }\n'
                                    'constants = { wish = "less", field = "brand" }\n')  # fmt: skip
    (tmp_path / "asked.csv").write_text("user_id,brand,at,until\nu,acme,01.01.2026 10:00,02.01.2026 10:00\n")
    (row,) = rows_of(FilesSource(tmp_path), "wishes")
    assert (row["wish"], row["field"], row["value"]) == ("less", "brand", "acme")
    assert (row["wished_at"], row["withdrawn_at"]) == ("2026-01-01T09:00:00+00:00", "2026-01-02T09:00:00+00:00")


def test_a_folder_named_like_a_day_that_is_none_is_named(tmp_path: Path) -> None:
    folder(tmp_path, **{"2026-02-30___users__csv": "user_id\nu\n"})
    with pytest.raises(InputError, match="2026-02-30"):
        FilesSource(tmp_path).deliveries()


def test_a_mapping_renames_sets_constants_and_reads_what_its_glob_names(tmp_path: Path) -> None:
    mapping = """
        name = "shop"
        [interactions]
        file = "*/orders-*.txt"
        format = "csv"
        delimiter = ";"
        columns = { user_id = "customer", item_id = "sku", event_ts = "at" }
        constants = { event_type = "purchase", weight = 2 }
    """
    folder(tmp_path, a___orders_1__txt=b"at;sku;customer;event_type;weight\n2026-01-01;s1;c1;view;9\n",
           b___orders_1__txt="customer;sku;at\nc2;s,2;2026-01-02\n", b___returns_1__txt="x\n1\n")  # fmt: skip
    for name in ("a/orders_1.txt", "b/orders_1.txt"):
        (tmp_path / name).rename(tmp_path / name.replace("orders_", "orders-"))
    (tmp_path / MAPPING).write_text(mapping)
    source = FilesSource(tmp_path)
    assert source.name == "shop"
    assert [(d.file, d.available_at) for d in source.deliveries()] == [("a/orders-1.txt", None), ("b/orders-1.txt", None)]
    got = [(r["user_id"], r["item_id"], r["event_type"], r["event_ts"], r["weight"]) for r in rows_of(source, "interactions")]
    assert got == [("c1", "s1", "purchase", "2026-01-01", "2"), ("c2", "s,2", "purchase", "2026-01-02", "2")]


@pytest.mark.parametrize(
    ("time", "zone", "value", "want"),
    [
        ("iso", "Europe/Berlin", "2026-07-01T12:00:00+02:00", "2026-07-01T12:00:00+02:00"),
        ("epoch_s", "UTC", "964982703", "2000-07-30T18:45:03+00:00"),
        ("epoch_s", "Asia/Kathmandu", "-1.5", "1969-12-31T23:59:58.500000+00:00"),
        ("epoch_ms", "UTC", "1700000000123", "2023-11-14T22:13:20.123000+00:00"),
        ("%d.%m.%Y %H:%M", "Europe/Berlin", "01.07.2026 12:00", "2026-07-01T10:00:00+00:00"),
        ("%d.%m.%Y %H:%M", "Europe/Berlin", "01.01.2026 00:30", "2025-12-31T23:30:00+00:00"),
        ("%Y%m%d", "Asia/Kathmandu", "20260101", "2025-12-31T18:15:00+00:00"),
        # a time that carries its own offset has no use for a zone
        ("%Y-%m-%d %H:%M%z", "UTC", "2026-07-01 12:00+0200", "2026-07-01T10:00:00+00:00"),
        ("epoch_s", "UTC", "yesterday", "yesterday"),
        ("epoch_s", "UTC", "1e300", "1e300"),
        ("epoch_ms", "UTC", "nan", "nan"),
        ("%d.%m.%Y", "UTC", "2026-01-01", "2026-01-01"),
    ],
)
def test_times_become_utc_and_what_is_no_time_stays_for_validate(tmp_path: Path, time: str, zone: str, value: str,
                                                                want: str) -> None:  # fmt: skip
    mapping = f'[interactions]\nfile = "orders.csv"\ntime = "{time}"\nzone = "{zone}"\n'
    got = mapped(tmp_path, mapping, f"user_id,event_ts,text\nu,{value},{value}\n")[0]
    assert got["event_ts"] == want
    assert got["text"] == value
    assert got["parse_error"] is None


FILE = '[interactions]\nfile = "orders.csv"\n'
WRONG = {
    "not toml": ("x =", "TOML", ""),
    "kind": ("[event]\nfile = 'a'\n", "event", "interactions"),
    "no file": ("[interactions]\nformat = 'csv'\n", "interactions", "file ="),
    "key": (FILE + "colums = {}\n", "colums", "columns"),
    "column": (FILE + "columns = { user = 'u' }\n", "'user'", "user_id"),
    "constant": (FILE + "constants = { when = 'u' }\n", "'when'", "event_ts"),
    "derived column": (FILE + "columns = { row_hash = 'h' }\n", "row_hash", "user_id"),
    "format": (FILE + "format = 'xml'\n", "xml", "jsonl"),
    "zone": (FILE + "zone = 'Mars/Base'\n", "Mars/Base", "valid"),
    "delimiter": (FILE + "delimiter = '||'\n", "||", "valid"),
    "time": (FILE + "time = 'epoch'\n", "epoch", "epoch_s"),
    "kind is no table": ("interactions = 5\n", "interactions", "valid"),
    "columns is no table": (FILE + "columns = ['user_id']\n", "columns", "valid"),
    "absolute glob": ("[interactions]\nfile = '/data/*.csv'\n", "/data/", "valid"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_mapping_is_refused_with_file_key_value_and_what_would_be_right(tmp_path: Path, case: str) -> None:
    mapping, value, valid = WRONG[case]
    with pytest.raises(InputError) as caught:
        mapped(tmp_path, mapping, EVENT + "u,i,view,2026-01-01\n")
    told = str(caught.value)
    assert MAPPING in told
    assert value in told
    assert valid in told
    assert "next:" in told


def test_media_never_leaves_the_folder(tmp_path: Path) -> None:
    root = folder(tmp_path / "shop", a__jpg=b"picture")
    folder(tmp_path, secret__txt=b"s")
    (root / "link.jpg").symlink_to(tmp_path / "secret.txt")
    assert media_bytes(root, "a.jpg") == b"picture"
    for reference in ("../secret.txt", str(tmp_path / "secret.txt"), "link.jpg", "none.jpg", "", ".", "a.jpg\0", "x" * 5000,
                      "https://example.org/a.jpg", "file:///etc/hostname"):  # fmt: skip
        assert media_bytes(root, reference) is None, reference


def test_an_unknown_source_or_folder_says_what_there_is(tmp_path: Path) -> None:
    for spec, root, words in (("netflix", tmp_path, "movielens-small"), ("files", tmp_path / "no", "a folder"),
                              ("files", None, "--root FOLDER"), ("amazon", None, "a folder"),
                              ("amazon", tmp_path, "sequences.txt"), ("movielens-small", tmp_path, "ratings.csv"),
                              ("movielens-7b", None, "movielens-25m")):  # fmt: skip
        with pytest.raises(InputError) as caught:
            open_source(spec, root, tmp_path / "cache")
        assert words in str(caught.value)
        assert caught.value.next


# MovieLens: film 1 rated years after it was made, 2 before, 3 has no year, 4 was only tagged, 5 nothing, 6 is old
FILMS = {
    "movies__csv": 'movieId,title,genres\n1,"Toy Story, The (2000)",A|B\n2,Early (2010),A\n3,No year,(no genres listed)\n'
                   "4,Series (2006–2007),\n5,Nobody,C\n6,Old (1937),D\n7,Torn\n",
    "ratings__csv": "userId,movieId,rating,timestamp\n9,1,4,1262304000\n9,2,3.5,1000000000\n8,3,1,1100000000\n8,2,2,1000000005\n"
                    "7,6,5,bad\n",
    "tags__csv": 'userId,movieId,tag,timestamp\n8,4,"so, so",1136073600\n6,3,dull,1099999999\n',
}  # fmt: skip


def test_a_film_is_on_offer_before_anyone_could_have_rated_it(tmp_path: Path) -> None:
    source = MovieLens("movielens-small", folder(tmp_path, **FILMS))
    films = {r["item_id"]: r for r in rows_of(source, "items")}
    assert {i: r["valid_from"] for i, r in films.items()} == {
        "1": "1999-12-31T23:59:59Z", "2": "2001-09-09T01:46:39Z", "3": "2004-11-09T11:33:18Z", "4": "2005-12-31T23:59:59Z",
        "5": "1995-01-01T00:00:00Z", "6": "1995-01-01T00:00:00Z", None: None}  # fmt: skip
    assert films[None]["parse_error"] == "2 fields, the header has 3"
    assert {i: json.loads(r["attributes"]).get("year") for i, r in films.items() if i} == {
        "1": 2000, "2": 2010, "3": None, "4": 2006, "5": None, "6": 1937}  # fmt: skip
    assert films["1"]["title"] == "Toy Story, The (2000)"
    assert [json.loads(films[i]["categories"]) for i in "13"] == [["A", "B"], []]
    assert [films[i][c] for i in "12" for c in ("text", "image")] == [None] * 4
    users = {r["user_id"]: r["available_at"] for r in rows_of(source, "users")}
    assert users == {"9": "2001-09-09T01:46:40Z", "8": "2001-09-09T01:46:45Z", "6": "2004-11-09T11:33:19Z"}
    assert source.last_day() == date(2010, 1, 1)
    edges = [(r["subject_id"], r["object_id"], r["available_at"]) for r in rows_of(source, "relations")]
    assert edges == [(i, g, films[i]["valid_from"]) for i, g in (("1", "A"), ("1", "B"), ("2", "A"), ("5", "C"), ("6", "D"))]
    events = rows_of(source, "interactions")
    assert Counter(r["event_type"] for r in events) == {"rating": 5, "tag": 2}
    assert events[4]["event_ts"] == "bad"  # as delivered, for validate to name
    assert (events[5]["text"], events[5]["weight"]) == ("so, so", "1")


def test_plots_posters_and_links_are_taken_where_they_are(tmp_path: Path) -> None:
    more = {"overviews__csv": 'movieId,source,overview\n1,x,"A ""toy"", alive."\n', "links__csv": "movieId,imdbId,tmdbId\n1,01,\n",
            "posters___1__jpg": b"jpeg", "posters___2__png": b"png"}  # fmt: skip
    root = folder(tmp_path, **FILMS, **more)
    (root / "tags.csv").unlink()
    source = MovieLens("movielens-small", root)
    assert {(d.kind, d.file) for d in source.deliveries()} == {
        ("interactions", "ratings.csv"), ("items", "movies.csv"), ("relations", "movies.csv"), ("users", "ratings.csv")}  # fmt: skip
    films = {r["item_id"]: r for r in rows_of(source, "items")}
    assert films["1"]["text"] == 'A "toy", alive.'
    assert json.loads(films["1"]["attributes"]) == {"imdb": "01", "year": 2000}
    assert [films[i]["image"] for i in "12"] == ["posters/1.jpg", None]
    assert source.media("posters/1.jpg") == b"jpeg"


def zipped(path: Path, stem: str) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("ratings.csv", "movies.csv"):
            archive.writestr(f"{stem}/{name}", FILMS[name.replace(".", "__")])
    return path.read_bytes()


def test_a_download_is_checked_unpacked_once_and_leaves_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = zipped(tmp_path / "ml-latest-small.zip", "ml-latest-small")
    monkeypatch.setattr(movielens, "_URL", tmp_path.as_uri() + "/{}.zip")
    with pytest.raises(InputError) as caught:
        download("movielens-small", tmp_path / "cache")
    assert hashlib.sha256(data).hexdigest() in str(caught.value)
    assert list((tmp_path / "cache" / "movielens").iterdir()) == []
    monkeypatch.setitem(movielens._ZIPS, "movielens-small", ("ml-latest-small", hashlib.sha256(data).hexdigest()))
    got = download("movielens-small", tmp_path / "cache")
    assert [p.name for p in got.parent.iterdir()] == ["ml-latest-small"]
    assert MovieLens("movielens-small", got).last_day() == date(2010, 1, 1)
    (tmp_path / "ml-latest-small.zip").unlink()
    assert download("movielens-small", tmp_path / "cache") == got  # not fetched again


def test_a_publisher_out_of_reach_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in (tmp_path.as_uri() + "/none/{}.zip", "http://127.0.0.1:9/{}.zip"):
        monkeypatch.setattr(movielens, "_URL", url)
        with pytest.raises(TransientError, match="ml-25m"):
            download("movielens-25m", tmp_path / "cache")
    assert not (tmp_path / "cache" / "movielens" / "ml-25m").exists()


def test_a_download_without_a_known_checksum_that_is_cut_short_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = zipped(tmp_path / "ml-32m.zip", "ml-32m")[:-30]
    (tmp_path / "ml-32m.zip").write_bytes(cut)
    monkeypatch.setattr(movielens, "_URL", tmp_path.as_uri() + "/{}.zip")
    with pytest.raises(MmrecError, match="ml-32m"):
        download("movielens-32m", tmp_path / "cache")
    assert list((tmp_path / "cache" / "movielens").iterdir()) == []


def test_amazon_sequences_keep_their_order_and_end_on_the_last_day(tmp_path: Path) -> None:
    items = ('{"item": 1, "asin": "B1", "title": "Comb", "attributes": ["Acme", "Hair", "Tools", "Hair"]}\n'
             '{"item": 2, "asin": "B2", "attributes": ["Unknown", "Nails"]}\n{"asin": "B3"}\n'
             '{"item": 4, "attributes": 5}\n{"item": 5, "attributes": ["Acme", ["Hair"]]}\n'
             '{"item": 6, "title": 5}\nnot json\n')  # fmt: skip
    source = Amazon(folder(tmp_path, sequences__txt="7 2 1 2\n8\n\n9 1\n", items__jsonl=items))
    events = rows_of(source, "interactions")
    assert [(r["line"], r["user_id"], r["item_id"], r["event_ts"]) for r in events] == [
        (1, "7", "2", "2014-07-23T00:00:00Z"), (1, "7", "1", "2014-07-22T00:00:00Z"), (1, "7", "2", "2014-07-21T00:00:00Z"),
        (2, None, None, None), (3, None, None, None), (4, "9", "1", "2014-07-23T00:00:00Z")]  # fmt: skip
    assert [r["line"] for r in events if r["parse_error"]] == [2, 3]
    assert [r["user_id"] for r in rows_of(source, "users")] == ["7", "8", "9"]
    made = rows_of(source, "items")
    assert [(r["item_id"], r["title"]) for r in made[:2]] == [("1", "Comb"), ("2", "")]
    assert json.loads(made[0]["attributes"]) == {"asin": "B1", "brand": "Acme"}
    assert json.loads(made[0]["categories"]) == ["Hair", "Tools", "Hair"]
    assert [r["line"] for r in made] == [1, 2, 3, 4, 5, 6, 7]
    assert {3, 4, 6, 7} <= {r["line"] for r in made if r["parse_error"]}
    # a description of the wrong shape is named by the items and spoils no edge of its neighbours
    edges = [(r["subject_id"], r["relation"], r["object_id"]) for r in rows_of(source, "relations") if not r["parse_error"]]
    assert edges == [("1", "brand", "Acme"), ("1", "category", "Hair"), ("1", "category", "Tools"), ("2", "category", "Nails")]


def test_the_real_sequences_come_out_as_a_naive_reader_has_them() -> None:
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    root = Path(os.environ.get("TEST_DATA_ROOT", beside)) / "amazon-beauty"
    if not root.exists():
        pytest.skip(f"the reviews are not at {root}")
    source = open_source("amazon", root, root)
    with (root / "sequences.txt").open() as file:
        want = [tuple(line.split()) for line in file]
    got: dict[str, list[tuple[str, str]]] = {}
    for delivery in source.deliveries():
        if delivery.kind == "interactions":
            for batch in delivery.read():
                assert batch.column("parse_error").null_count == batch.num_rows
                for user, item, ts in zip(*(batch.column(c).to_pylist() for c in ("user_id", "item_id", "event_ts")), strict=True):
                    got.setdefault(user, []).append((ts, item))
    assert [(u, *(i for _, i in sorted(rows))) for u, rows in got.items()] == want
    last = {max(rows)[0] for rows in got.values()}
    assert last == {source.last_day().isoformat() + "T00:00:00Z"}  # type: ignore[attr-defined]
    items = rows_of(source, "items")
    assert {r["item_id"] for r in items} == {i for _, *rest in want for i in rest}
    assert not [r for r in items if r["parse_error"]]


@given(st.integers(1900, 2100) | st.none(), st.integers(788_918_401, 2_000_000_000) | st.none())
def test_valid_from_is_before_the_first_rating_and_no_later_than_the_year(year: int | None, first: int | None) -> None:
    since = datetime.fromisoformat(movielens._since(year, first))
    assert since >= datetime(1995, 1, 1, tzinfo=UTC)
    if first is not None:
        assert since < datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=first)
    if year is not None and year >= 1995:
        assert since <= datetime(year, 1, 1, tzinfo=UTC)


def test_batches_are_cut_and_nothing_falls_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_BATCH", 3)
    folder(tmp_path, **{"2026-03-01___users__csv": "user_id\n" + "".join(f"u{n}\n" for n in range(7))})
    read = [b.num_rows for d in FilesSource(tmp_path).deliveries() for b in d.read()]
    assert read == [3, 3, 1]
    assert [r["user_id"] for r in rows_of(FilesSource(tmp_path), "users")] == [f"u{n}" for n in range(7)]
