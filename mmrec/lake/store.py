"""Where tables live and how they are read: always at a version, never "whatever is there now".

In: a lake folder, table names of the schema. Out: Arrow tables, engine frames, versions, fences, file lists.
A table whose log is damaged is not read at all (log.py). A `Lake` is what one piece of work holds: it remembers the
versions read through it, and what the work's commits are stamped with.
Trade-off: reads go through pyarrow datasets with an explicit local file system; delta-rs's own
`to_pyarrow_table` and `to_pandas` are a line shorter and can abort the process at exit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from mmrec import schema
from mmrec.errors import InputError
from mmrec.files import sync_folder
from mmrec.lake import log, past

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

# the embedded engine writes to a percent-encoded twin of any other path
_PLAIN = re.compile(r"[A-Za-z0-9/._+,=@~-]+\Z")


class Expired(InputError):
    """A version that is no longer kept."""


class Lake:
    """Tables in a folder: `<root>/<layer>/<table>`. Opening one creates nothing.

    Attributes:
        read: table -> version that was read through this handle, the latest where there were several.
        stamp: what commits through this handle are marked with: attempt, config.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root).absolute()
        self.read: dict[str, int] = {}
        self.stamp: dict[str, str] = {}

    def made(self) -> Lake:
        """The lake itself; InputError where no home was made."""
        if not self.exists("gold.recommendations"):
            raise InputError(
                "this home has no lake yet",
                where="--home",
                value=str(self.root.parent),
                valid="a folder made by mmrec init",
                next=f"mmrec init --home {self.root.parent}",
            )
        return self

    def path(self, name: str) -> Path:
        schema.table(name)
        layer, short = name.split(".")
        return self.root / layer / short

    def exists(self, name: str) -> bool:
        return any((self.path(name) / "_delta_log").glob("*[0-9].json"))

    def handle(self, name: str, version: int | None = None) -> DeltaTable:
        """A delta-rs handle at `version` (None: the newest).

        Raises: InputError: the table or version is missing. Expired: it is no longer kept. QualityError: its log is
            damaged.
        """
        if self.exists(name):
            if version is not None and 0 <= version < log.oldest(self.path(name)):
                raise self._expired(name, version)
            log.check(self.path(name), name, version)
        try:
            return DeltaTable(str(self.path(name)), version=version)
        except TableNotFoundError:
            raise InputError(
                "the table does not exist yet",
                where=name,
                value=str(self.path(name)),
                valid="a home made by mmrec init",
                next="mmrec init --home HOME",
            ) from None
        except (DeltaError, OverflowError) as error:
            if version is None:
                raise
            newest = DeltaTable(str(self.path(name))).version()
            if 0 <= version <= newest:
                raise
            raise InputError(
                "the table has no such version",
                where=name,
                value=version,
                valid=f"0 to {newest}",
                next=f"mmrec tables {name}",
            ) from error

    def create(self, name: str) -> None:
        """Make the empty table with its NOT NULL columns, comments and CHECKs; leaves an existing one alone."""
        if self.exists(name):
            return
        if not _PLAIN.match(str(self.root)):
            raise InputError(
                "an engine can't write to a folder of this name",
                where="--home",
                value=str(self.root),
                valid="a path of letters a to z, digits and / . _ - + , = @ ~",
                next="mmrec init --home HOME, with another name",
            )
        t = schema.table(name)
        fields = [c.arrow.with_metadata({"comment": c.described}) for c in t.columns]
        handle = DeltaTable.create(
            str(self.path(name)),
            pa.schema(fields),
            partition_by=[t.partition] if t.partition else None,
            name=name,
            description=t.description,
            configuration=t.properties | t.promises,
            raise_if_key_not_exists=False,
        )
        for check, condition in t.checks.items():
            handle.alter.add_constraint({check: condition})
        log.settle(self.path(name), handle.version())
        for folder in (self.path(name), self.path(name).parent, self.root, self.root.parent):
            sync_folder(folder)

    def create_all(self) -> None:
        for name in schema.TABLES:
            self.create(name)

    def version(self, name: str) -> int:
        return self.handle(name).version()

    def pin(self, name: str) -> int:
        """The newest version, made to outlast a loss of power whoever wrote it: for a version that is written down."""
        version = self.version(name)
        log.settle(self.path(name), version)
        return version

    def versions(self) -> dict[str, int]:
        """Every table that exists -> its newest version."""
        return {name: self.version(name) for name in schema.TABLES if self.exists(name)}

    def dataset(self, name: str, version: int | None = None) -> ds.Dataset:
        handle = self.handle(name, version)
        self.read[name] = handle.version()
        if version is not None:
            self._kept(name, handle)
        root = str(self.path(name))
        return past.dataset(handle, schema.table(name), SubTreeFileSystem(root, LocalFileSystem()))

    def arrow(
        self,
        name: str,
        version: int | None = None,
        *,
        columns: list[str] | None = None,
        where: ds.Expression | None = None,
    ) -> pa.Table:
        """Rows at `version` as Arrow, in the schema's column order and types; row order is not defined.

        A column that came after `version` is null.
        """
        t = schema.table(name)
        return past.read(self.dataset(name, version), t, columns or [c.name for c in t.columns], where)

    def batches(
        self,
        name: str,
        version: int | None = None,
        *,
        columns: list[str] | None = None,
        where: ds.Expression | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """The same, a record batch at a time: for tables that need not fit in memory."""
        yield from self.dataset(name, version).to_batches(columns=columns, filter=where)

    def day(self, name: str, run_date: date, version: int | None = None, columns: list[str] | None = None) -> pa.Table:
        """One partition of a table that is partitioned by run_date."""
        return self.arrow(name, version, columns=columns, where=ds.field("run_date") == run_date)

    def frame(self, spark: SparkSession, name: str, version: int) -> DataFrame:
        """The same rows as an engine frame, pinned.

        A classic Spark session is given the files that the log lists: its own Delta reader replays the log in Spark
        jobs, half of a small night. It still reads what the list alone does not say: partitions, deletion vectors.
        """
        t, handle = schema.table(name), self.handle(name, version)
        self.read[name] = version
        self._kept(name, handle)
        protocol = handle.protocol()
        plain = protocol.min_reader_version == 1 and not protocol.reader_features and not t.partition
        if type(spark).__module__.startswith("pyspark.sql.connect") or not plain or not past.is_today(handle, t):
            held = spark.read.format("delta").option("versionAsOf", version).load(str(self.path(name)))
            return past.conform(held, t, handle)
        ddl = ", ".join(f"{c.name} {c.type}" for c in t.columns)
        files = handle.file_uris()
        return spark.read.schema(ddl).parquet(*files) if files else spark.createDataFrame([], ddl)

    def _kept(self, name: str, handle: DeltaTable) -> None:
        """Refuse an older version whose files maintenance has deleted; of the newest one, reading misses them."""
        if any(not Path(file).exists() for file in handle.file_uris()) and handle.version() < self.version(name):
            raise self._expired(name, handle.version())

    def _expired(self, name: str, version: int) -> Expired:
        days = schema.table(name).retention_days
        return Expired(
            "this version of the table is no longer kept",
            where=name,
            value=version,
            valid=f"the newest, {self.version(name)}, and those replaced less than {days} days ago",
            next="mmrec run --date D, which plans anew",
        )

    def run_dates(self, name: str = "gold.recommendations") -> list[date]:
        """The run_dates that a table partitioned by run_date holds, ascending; from the log, no file is read."""
        if not self.exists(name):
            return []
        parts = self.handle(name).partitions()
        return sorted({date.fromisoformat(str(p["run_date"])) for p in parts})
