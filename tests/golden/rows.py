"""Rows as JSON can hold them without losing anything: what golden rows and those that a reader gives are compared in."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def plain(value: Any) -> Any:
    """Bytes in hex, times in microseconds, floats by their repr: -0.0, NaN and null stay three things."""
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, datetime):
        return {"us": (value - _EPOCH) // timedelta(microseconds=1)}
    if isinstance(value, date):
        return {"date": value.isoformat()}
    if isinstance(value, float):
        return {"float": repr(value)}
    return value


def of(table: pa.Table, columns: list[str], key: list[str]) -> list[dict[str, Any]]:
    """The rows of `table` in the order of `key`."""
    rows = [{c: plain(v) for c, v in row.items()} for row in table.select(columns).to_pylist()]
    return sorted(rows, key=lambda r: repr([r[k] for k in key]))
