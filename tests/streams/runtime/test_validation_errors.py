"""What is said about a value that a model refuses."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import BaseModel, Field, ValidationError

from streams.runtime.validation_errors import explain_error


class Call(BaseModel):
    query: Annotated[str, Field(min_length=1, max_length=9)]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "must be text of 1 to 9 characters"),
        (5, "must be text of 1 to 9 characters"),
        ("owl \ud800", "is no valid text: a character in it is half of a surrogate pair"),
    ],
)
def test_a_text_is_refused_with_what_is_wrong_with_it(value: object, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Call.model_validate({"query": value})
    assert [explain_error(dict(one), Call) for one in caught.value.errors()] == [said]
