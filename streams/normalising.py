"""Normal forms of whole columns of texts: what `streams.events.normalise` gives each, without a call for each plain one.

A plain text is ASCII with single spaces inside; its normal form is itself in lower case. Most texts are.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.events import normalise
from streams.lines import Flags

SPACE, LAST_ASCII = 32, 127


def normalise_column(texts: pa.StringArray) -> pa.StringArray:
    """Return the normal form of each text; none may be null."""
    lowered = pc.ascii_lower(texts)
    special = find_special(texts)
    if not special.any():
        return lowered
    norms = pa.array([normalise(text) for text in texts.filter(pa.array(special)).to_pylist()], pa.string())
    return pc.replace_with_mask(lowered, pa.array(special), norms)


def find_special(texts: pa.StringArray) -> Flags:
    """Flag the texts that are not plain, and perhaps some that are."""
    buffers = texts.buffers()
    starts = np.frombuffer(buffers[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    if not len(texts) or starts[-1] == starts[0]:
        return np.ones(len(texts), np.bool_)
    text = np.frombuffer(buffers[2], np.uint8)[starts[0] : starts[-1]]
    bounds = starts - starts[0]
    odd = (text < SPACE) | (text > LAST_ASCII)
    space = text == SPACE
    odd[1:] |= space[1:] & space[:-1]
    empty = bounds[1:] == bounds[:-1]
    first = space[np.minimum(bounds[:-1], len(text) - 1)]
    last = space[np.maximum(bounds[1:] - 1, 0)]
    special: Flags = empty | first | last
    special[np.searchsorted(bounds, odd.nonzero()[0], side="right") - 1] = True
    return special
