"""Whether this environment can run a model: counting needs none, so its packages are an extra, which may be missing."""

from __future__ import annotations

from importlib.util import find_spec

MODULES = ("torch", "transformers", "faiss")


class ModelsMissing(RuntimeError):
    """A package that models need is not installed; the text names it and what to install."""


def find_missing() -> str | None:
    """Return a sentence that names the package that is not installed and the extra that has it, None where all are there."""
    missing = [name for name in MODULES if find_spec(name) is None]
    if not missing:
        return None
    return f"models need {', '.join(missing)}, not installed here: pip install 'queryloop[cpu]' (or gpu), then start again"


def require_models() -> None:
    """Raise ModelsMissing where a model cannot be run."""
    if sentence := find_missing():
        raise ModelsMissing(sentence)
