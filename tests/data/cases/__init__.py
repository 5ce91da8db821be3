"""Malformed data with the exact error message for each."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet
from alignkit.contract.types import RowKind

from tests.helpers.data import TOKENIZER, pairs

GOOD = [json.dumps(row) for row in pairs(4)]


def lines(*rows: Any, at: int = 2) -> bytes:
    """Good rows, with others inserted after line ``at``."""
    made = [row if isinstance(row, (str, bytes)) else json.dumps(row) for row in rows]
    encoded = [row.encode() if isinstance(row, str) else row for row in [*GOOD[:at], *made, *GOOD[at:]]]
    return b"".join(row + b"\n" for row in encoded)


def changed(**columns: Any) -> bytes:
    """Good rows, with columns of the one on line 3 replaced (``...`` removes a column)."""
    row = {**pairs(9)[8], **columns}
    return lines({key: value for key, value in row.items() if value is not ...})


def talk(**columns: Any) -> bytes:
    row = {
        "prompt": [{"role": "user", "content": "sky?"}],
        "chosen": [{"role": "assistant", "content": "blue"}],
        "rejected": [{"role": "assistant", "content": "green"}],
    }
    return b"".join(json.dumps(r).encode() + b"\n" for r in ({**row, **columns}, row, row))


def parquet(*rows: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(list(rows)), sink)
    return sink.getvalue()


class Case(NamedTuple):
    content: bytes
    expected: str
    name: str = "d.jsonl"
    section: dict[str, Any] = {}
    kind: RowKind = "preference"
    tokenizer: Callable[[], Any] = lambda: TOKENIZER
