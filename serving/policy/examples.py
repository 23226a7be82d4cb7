"""Lists that a policy is shown in every prompt before it is asked (few-shot, G3), for one that has not learned the form.

They belong to the policy as its weights do: its folder has them, and whatever is trained from it takes them along.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

FILE = "examples.json"
MAX_EXAMPLES = 64
"""Of one task in a prompt."""


class ListExample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A query with its list. `texts`: the list's auxiliary texts, then its items; the other fields as a prompt has them."""

    query: str
    texts: tuple[str, ...]
    related: tuple[str, ...] = ()
    session: tuple[str, ...] = ()
    response: str = ""


Examples = Mapping[str, tuple[ListExample, ...]]
"""By the name of the task, in the order in which they are shown."""
NO_EXAMPLES: Examples = {}


def write_examples(policy: Path, examples: Examples) -> None:
    """Write the examples into a policy's folder; nothing where there is none."""
    if any(examples.values()):
        (policy / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(examples), indent=1))


def read_examples(policy: Path) -> Examples:
    """Return the examples of a policy's folder, none where it has no such file. Raises ValueError naming the file."""
    try:
        return msgspec.json.decode((policy / FILE).read_bytes(), type=dict[str, tuple[ListExample, ...]])
    except FileNotFoundError:
        return NO_EXAMPLES
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{policy / FILE}: not the examples of a policy: {error}") from error
