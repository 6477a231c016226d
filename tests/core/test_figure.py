"""What of a document is a figure: whole numbers in bounds, and the size of text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pricing_support import UNHURRIED

from budget_proxy.core.document import Document
from budget_proxy.core.figure import MAX_QUANTITY, BadQuantityError, text_bytes
from budget_proxy.core.place import json_place
from budget_proxy.core.source import Number


@pytest.mark.parametrize(
    "value", [-1, 1.5, True, "5", [], {}, MAX_QUANTITY + 1, 1e300, float("inf")]
)
def test_a_json_figure_is_a_whole_number_in_bounds(value: Any) -> None:
    with pytest.raises(BadQuantityError) as caught:
        Number((json_place("a.b"),)).read(Document({"a": {"b": value}}))
    assert caught.value.where == "a.b"


@pytest.mark.parametrize("value", [0, 5, 5.0, MAX_QUANTITY])
def test_a_json_figure_may_be_written_as_a_float(value: Any) -> None:
    assert Number((json_place("a"),)).read(Document({"a": value})) == int(value)


@UNHURRIED
@given(
    st.recursive(
        st.text(max_size=5) | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=2), inner),
    )
)
def test_text_is_measured_in_utf8_without_the_names(value: Any) -> None:
    def by_hand(item: Any) -> int:
        if isinstance(item, str):
            return len(item.encode("utf-8", "surrogatepass"))
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        return sum(map(by_hand, inner))

    assert text_bytes(value) == by_hand(value)
    assert text_bytes([value, "\ud800"]) == by_hand(value) + 3
