"""What a test may send through the fixture."""

from __future__ import annotations

from typing import Any, cast

import pytest

from queryloop.pytest_plugin.trial import Trial
from queryloop.pytest_plugin.worker_pool import WorkerPool


@pytest.mark.parametrize("event", [5, None, ["a", "list"]])
def test_what_is_no_event_is_refused_with_what_one_is(event: Any) -> None:
    trial = Trial(cast("WorkerPool", None), "embedded")
    with pytest.raises(TypeError, match=f"an event is a mapping of its fields.*, not {type(event).__name__}"):
        trial.emit(event)
