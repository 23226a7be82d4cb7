"""The lists that a policy is shown travel in its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.policy.examples import FILE, ListExample, read_examples, write_examples

SHOWN = {"suggest": (ListExample("porto", ("porto wine", "porto hotels"), ("porto airport",), ("lisbon",), "A city."),)}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_examples(tmp_path, SHOWN)
    assert read_examples(tmp_path) == SHOWN


def test_a_policy_that_is_shown_nothing_has_no_such_file(tmp_path: Path) -> None:
    write_examples(tmp_path, {"suggest": ()})
    assert not (tmp_path / FILE).exists()
    assert read_examples(tmp_path) == {}


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"suggest": [{"query": "porto"}]}')
    with pytest.raises(ValueError, match=r"examples\.json: not the examples of a policy: .*texts"):
        read_examples(tmp_path)
