"""Rows outside `data.filter` are refused by the server as the reader of tables leaves them out of training."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import small_model
from rareclass.adapters.serving.row_filter import check, groups
from rareclass.adapters.serving.signature import Query, Signature
from rareclass.adapters.serving.v2_codec import parse
from rareclass.adapters.tables.sources import conditions, expression
from rareclass.errors import InputError

ROWS = {"name": "rows", "shape": [2, 2], "datatype": "FP32", "data": [1, 0, 3, 1]}
AMOUNT = {"name": "amount", "shape": [2], "datatype": "FP32", "data": [1, 3]}
CHANNEL = {"name": "channel", "shape": [2], "datatype": "BYTES", "data": ["web", "shop"]}


def _signature(**more: Any) -> Signature:
    return Signature(small_model.SCHEMA, max_rows=1000, **more)


def _read(*inputs: dict[str, Any], signature: Signature, **rest: Any) -> Query:
    return signature.read(parse(json.dumps({"inputs": inputs, **rest}).encode()))


WITHIN = groups(
    [["amount", "<=", 2], ["channel", "in", ["web", "shop"]], ["kind", "!=", "test"], ["day", "<", "2026"]],
    without=["day"],
)


@pytest.mark.parametrize("rows", [ROWS, (AMOUNT, CHANNEL)], ids=["matrix", "columns"])
def test_a_row_that_training_left_out_is_refused_by_name(rows: Any) -> None:
    inputs = [rows] if isinstance(rows, dict) else list(rows)
    with pytest.raises(
        InputError, match=r"row 1 is outside .*: amount is 3\.0, but data\.filter keeps amount <= 2\. Leave"
    ):
        _read(*inputs, signature=_signature(within=WITHIN))


def test_conditions_are_asked_of_what_is_sent_and_categories_as_text() -> None:
    within = groups([["channel", "==", "web"], ["kind", "in", ["a", "b"]]])
    kinds = {"name": "kind", "shape": [2], "datatype": "BYTES", "data": ["a", "c"]}
    with pytest.raises(InputError, match=r"row 1 .*: channel is"):
        _read(AMOUNT, CHANNEL, signature=_signature(within=within))
    with pytest.raises(InputError, match=r"row 1 .*: kind is 'c', but data.filter keeps kind in"):
        _read(AMOUNT, CHANNEL, kinds, signature=_signature(within=groups([["kind", "in", ["a", "b"]]])))
    assert len(_read(AMOUNT, CHANNEL, signature=_signature(within=groups([["kind", "in", ["a"]]])))) == 2


def test_one_group_of_several_is_enough_and_a_missing_value_meets_no_condition() -> None:
    either = groups([[["amount", ">", 2]], [["amount", "==", 1]]])
    assert len(_read(AMOUNT, CHANNEL, signature=_signature(within=either))) == 2
    gone = {**AMOUNT, "data": [1.0, None]}
    with pytest.raises(InputError, match=r"row 1 .*: amount is nan"):
        _read(gone, CHANNEL, signature=_signature(within=either), parameters={"missing": True})


@given(
    values=st.lists(st.one_of(st.none(), st.integers(-3, 3)), min_size=1, max_size=6),
    sign=st.sampled_from(["==", "!=", "<", ">", "<=", ">=", "in", "not in"]),
    bound=st.integers(-3, 3),
)
def test_the_server_and_the_reader_of_tables_keep_the_same_rows(
    values: list[int | None], sign: str, bound: int
) -> None:
    condition = ["x", sign, [bound, 2] if "in" in sign else bound]
    table = pa.table({"x": pa.array(values, pa.float32())})
    kept = table.filter(expression(conditions([condition], {"x": pa.float32()}, "data.filter")))["x"].to_pylist()
    mine = []
    for value in values:
        with contextlib.suppress(InputError):
            check(groups([condition]), lambda _, v=value: np.array([v], dtype=np.float32), 1)
            mine.append(value)
    assert mine == kept
