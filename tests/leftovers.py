"""What libraries leave behind in a test process, collected where it was made."""

from __future__ import annotations

import gc
import warnings


def collect_sockets() -> None:
    """Collect garbage now. kafka-python 3.0.12 leaves the socket of a refused connection to it: no fault of a later test."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unclosed <socket", ResourceWarning)
        gc.collect()
