"""MovieLens of any size in its publisher's csv form, with optional posters and plots beside it.

In: a folder with ratings.csv, movies.csv and, if there, tags.csv, links.csv, overviews.csv, posters/<id>.jpg.
Out: ratings and tags as interactions, films as items, genres as relations, one user row a user.
MovieLens does not say when a film came on offer. It is taken from the year in its title, or from its first rating
where that is earlier or where there is no year; so a film is a candidate from its release on, rated or not.
Trade-off: a film's plot and poster are taken to have been there from that day, which the data can't tell.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from mmrec.errors import InputError, TransientError
from mmrec.worlds.sources import Delivery, batches, csv_rows, media_bytes

_FIRST = datetime(1995, 1, 1, tzinfo=UTC)
_YEAR = re.compile(r"\((\d{4})(?:[-–]\d{0,4})?\)\s*$")
# publisher's file of each size, and its sha256 where it is fixed
_ZIPS: dict[str, tuple[str, str | None]] = {
    "movielens-small": ("ml-latest-small", "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436"),
    "movielens-25m": ("ml-25m", "8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa"),
    "movielens-32m": ("ml-32m", None),
    "movielens-latest": ("ml-latest", None),
}
_URL = "https://files.grouplens.org/datasets/movielens/{}.zip"


class MovieLens:
    """See the module."""

    def __init__(self, name: str, root: Path) -> None:
        for needed in ("ratings.csv", "movies.csv"):
            if not (root / needed).is_file():
                raise InputError(
                    "this is not a MovieLens folder",
                    where=str(root),
                    value=f"no {needed}",
                    valid="ratings.csv and movies.csv",
                    next=f"mmrec demo --data {name} --source FOLDER",
                )
        self.name, self.root = name, root

    def deliveries(self) -> list[Delivery]:
        made = [("interactions", "ratings.csv", self._ratings), ("interactions", "tags.csv", self._tags),
                ("items", "movies.csv", self._films), ("relations", "movies.csv", self._genres),
                ("users", "ratings.csv", self._users)]  # fmt: skip
        return [Delivery(kind, file, self.root / file, None, read) for kind, file, read in made
                if (self.root / file).is_file()]  # fmt: skip

    def media(self, reference: str) -> bytes | None:
        return media_bytes(self.root, reference)

    def _ratings(self) -> Iterator[Any]:
        def convert(row: dict[str, Any]) -> dict[str, str | None]:
            when = _iso(row["timestamp"])
            return {"user_id": row["userId"], "item_id": row["movieId"], "event_type": "rating", "event_ts": when,
                    "available_at": when, "weight": row["rating"]}  # fmt: skip

        return batches("interactions", csv_rows(self.root / "ratings.csv"), convert)

    def _tags(self) -> Iterator[Any]:
        def convert(row: dict[str, Any]) -> dict[str, str | None]:
            when = _iso(row["timestamp"])
            return {"user_id": row["userId"], "item_id": row["movieId"], "event_type": "tag", "event_ts": when,
                    "available_at": when, "weight": "1", "text": row["tag"]}  # fmt: skip

        return batches("interactions", csv_rows(self.root / "tags.csv"), convert)

    def _films(self) -> Iterator[Any]:
        first = self._first("movieId")
        plots = {r["movieId"]: r["overview"] for r in self._rows("overviews.csv")}
        links = {r["movieId"]: r for r in self._rows("links.csv")}
        posters = {p.stem for p in (self.root / "posters").glob("*.jpg")} if (self.root / "posters").is_dir() else set()

        def convert(row: dict[str, Any]) -> dict[str, str | None]:
            film, year = row["movieId"], _year(row["title"])
            since = _since(year, first.get(film))
            known = {"year": year, "imdb": links.get(film, {}).get("imdbId"), "tmdb": links.get(film, {}).get("tmdbId")}
            about = {k: v for k, v in known.items() if v}
            return {"item_id": film, "title": row["title"], "text": plots.get(film), "valid_from": since,
                    "available_at": since, "categories": json.dumps(_genres(row["genres"])),
                    "attributes": json.dumps(about, sort_keys=True, separators=(",", ":")),
                    "image": f"posters/{film}.jpg" if film in posters else None}  # fmt: skip

        return batches("items", csv_rows(self.root / "movies.csv"), convert)

    def _genres(self) -> Iterator[Any]:
        first = self._first("movieId")

        def edges() -> Iterator[tuple[int, dict[str, Any] | None, str, str | None]]:
            for line, row, text, error in csv_rows(self.root / "movies.csv"):
                for genre in _genres(row["genres"]) if row else ():
                    yield line, row | {"genre": genre}, text, error  # type: ignore[operator]

        def convert(row: dict[str, Any]) -> dict[str, str | None]:
            since = _since(_year(row["title"]), first.get(row["movieId"]))
            return {"kind": "item", "subject_id": row["movieId"], "relation": "genre", "object_id": row["genre"],
                    "available_at": since}  # fmt: skip

        return batches("relations", edges(), convert)

    def _users(self) -> Iterator[Any]:
        def rows() -> Iterator[tuple[int, dict[str, Any] | None, str, str | None]]:
            for n, (user, when) in enumerate(self._first("userId").items(), 1):
                yield n, {"user_id": user, "available_at": _iso(str(when))}, "", None

        return batches("users", rows(), lambda row: row)

    def _first(self, column: str) -> dict[str, int]:
        """Earliest rating or tag of each id, epoch seconds; rows that can't be read have no say."""
        first: dict[str, int] = {}
        for file in ("ratings.csv", "tags.csv"):
            for row in self._rows(file):
                if row[column] and row["timestamp"].isdigit():
                    when = int(row["timestamp"])
                    first[row[column]] = min(first.get(row[column], when), when)
        return first

    def _rows(self, file: str) -> Iterator[dict[str, str]]:
        if (self.root / file).is_file():
            yield from (row for _, row, _, _ in csv_rows(self.root / file) if row is not None)

    def last_day(self) -> date:
        """The UTC day of the newest event."""
        newest = max(int(r["timestamp"]) for r in self._rows("ratings.csv") if r["timestamp"].isdigit())
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=newest)).date()


def download(name: str, cache: Path) -> Path:
    """The publisher's zip of a size, checked and unpacked in `cache`; returns the folder.

    Raises: TransientError: the publisher can't be reached. InputError: unknown size, or another file than expected.
    """
    if name not in _ZIPS:
        raise InputError(
            "no such MovieLens size",
            where="source.spec",
            value=name,
            valid=sorted(_ZIPS),
            next="mmrec demo --data movielens-small",
        )
    stem, expected = _ZIPS[name]
    folder = cache / "movielens" / stem
    if folder.is_dir():
        return folder
    cache = folder.parent
    cache.mkdir(parents=True, exist_ok=True)
    part = cache / f"{stem}.zip.part"
    try:
        with urllib.request.urlopen(_URL.format(stem), timeout=60) as reply, part.open("wb") as target:
            shutil.copyfileobj(reply, target)
    except (urllib.error.URLError, OSError) as error:
        raise TransientError(
            f"the publisher's file can't be fetched: {error}",
            where=_URL.format(stem),
            next=f"mmrec demo --data {name} --source FOLDER, with the zip unpacked there",
        ) from error
    with part.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if expected and digest != expected:
        part.unlink()
        raise InputError(
            "the downloaded file is not the published one",
            where=_URL.format(stem),
            value=digest,
            valid=expected,
            next=f"mmrec demo --data {name} --source FOLDER",
        )
    scratch = cache / f"{stem}.unpack"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with zipfile.ZipFile(part) as archive:
            archive.extractall(scratch)
        (scratch / stem).replace(folder)
    except (zipfile.BadZipFile, FileNotFoundError) as error:
        part.unlink()
        raise TransientError(
            f"the downloaded file can't be unpacked: {error}",
            where=_URL.format(stem),
            next=f"mmrec demo --data {name}, or with --source FOLDER",
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    part.unlink()
    return folder


def _iso(epoch: str) -> str:
    """ISO time of epoch seconds; anything else comes out as it is, for validate to name."""
    try:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(epoch))).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError):
        return epoch


def _year(title: str) -> int | None:
    found = _YEAR.search(title)
    return int(found.group(1)) if found else None


def _since(year: int | None, first: int | None) -> str:
    rated = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=first) if first is not None else None
    made = datetime(year, 1, 1, tzinfo=UTC) if year and 1800 < year < 2200 else None
    known = [m for m in (made, rated) if m is not None]
    # an item must be there before its first rating, so a second earlier
    since = max(_FIRST, min(known) - timedelta(seconds=1)) if known else _FIRST
    return since.strftime("%Y-%m-%dT%H:%M:%SZ")


def _genres(text: str) -> list[str]:
    return [] if text in ("", "(no genres listed)") else text.split("|")
