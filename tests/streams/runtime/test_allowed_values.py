"""The words for what a value may be."""

from __future__ import annotations

import pytest

from streams.runtime.allowed_values import Schema, describe_allowed


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "string", "minLength": 1}, "text of 1 characters or more"),
        ({"type": "string", "maxLength": 9}, "text of 9 characters at most"),
        ({"type": "string", "minLength": 1, "maxLength": 256}, "text of 1 to 256 characters"),
        ({"type": "string", "minLength": 1, "maxLength": 9, "pattern": "^a"}, "text of 1 to 9 characters matching `^a`"),
        ({"type": "integer", "minimum": 1, "maximum": 64}, "whole number from 1 to 64"),
    ],
)
def test_lengths_and_bounds_read_as_one_sentence(schema: Schema, said: str) -> None:
    assert describe_allowed(schema) == said
