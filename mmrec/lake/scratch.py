"""A frame that several others are made of, computed once.

In: a frame, the table that it is for. Out: the same rows, read from files beside that table, which are gone at the end.
Neither engine keeps what two queries share by itself, and only one can be told to.
Trade-off: the rows are written and read once more, which pays where they took longer to find; who is cut off leaves a
folder `stage-...`, which maintenance takes as it does any stage that nobody adopted.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

from mmrec.errors import lost_store
from mmrec.lake.store import Lake

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


@contextmanager
def kept(lake: Lake, name: str, frame: DataFrame, run_id: str) -> Iterator[DataFrame]:
    """The rows of `frame`, for as long as the block lasts; what is made of them must be computed in it.

    Args:
        name: a table of `lake`, in whose folder the files lie, so that every executor finds them.

    Raises: TransientError: the disk failed.
    """
    folder = lake.path(name) / f"stage-{run_id}-shared-{uuid4().hex[:12]}"
    try:
        try:
            frame.write.format("parquet").mode("error").save(str(folder))
        except Exception as error:
            raise (lost_store(error, name) or error) from error.__cause__
        yield frame.sparkSession.read.schema(frame.schema).parquet(str(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
