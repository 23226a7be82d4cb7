"""Keeps pandas out of a process that has no use for it.

pyarrow imports pandas, where it is installed, for the first list that becomes an array: 0.4 s or more between a worker's restart
and its first batch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class WithoutPandas(MetaPathFinder):
    """Makes `import pandas` fail at once."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Raises ModuleNotFoundError for pandas; other modules are left to the other finders."""
        if name == "pandas":
            raise ModuleNotFoundError("this process does without pandas", name=name)
        return None


def do_without_pandas() -> None:
    """Let this process find no pandas from now on."""
    sys.meta_path.insert(0, WithoutPandas())
