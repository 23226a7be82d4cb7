"""What libraries leave behind in a test process, collected where it was made."""

from __future__ import annotations

import gc
import warnings

import pytest

may_leave_sockets = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
"""For a test whose own process knocks at brokers that still start: on a busy machine the collector comes while it runs."""


def collect_sockets() -> None:
    """Collect garbage now. kafka-python 3.0.12 leaves the socket of a refused connection to it: no fault of a later test."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unclosed <socket", ResourceWarning)
        gc.collect()
