"""Normal forms of whole columns of texts: what `streams.events.normalise` gives each, without a call for each plain one.

A plain text is ASCII with single spaces inside; its normal form is itself in lower case. Most texts are.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.events import normalise

SPACE = 32


def normalise_column(texts: pa.StringArray) -> pa.StringArray:
    """Return the normal form of each text; none may be null."""
    lowered = pc.ascii_lower(texts)
    rows = find_special(texts)
    if not len(rows):
        return lowered
    norms = pa.array([normalise(text) for text in texts.take(pa.array(rows)).to_pylist()], pa.string())
    special = np.zeros(len(texts), np.bool_)
    special[rows] = True
    return pc.replace_with_mask(lowered, pa.array(special), norms)


def find_special(texts: pa.StringArray) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the rows, ascending, of texts that are not plain, and perhaps some that are."""
    buffers = texts.buffers()
    starts = np.frombuffer(buffers[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    if not len(texts) or starts[-1] == starts[0]:
        return np.arange(len(texts))
    text = np.frombuffer(buffers[2], np.uint8)[starts[0] : starts[-1]]
    bounds = starts - starts[0]
    odd = (text < SPACE) | (text > 127)
    space = text == SPACE
    odd[1:] |= space[1:] & space[:-1]
    rows = np.searchsorted(bounds, np.flatnonzero(odd), side="right") - 1
    empty = bounds[1:] == bounds[:-1]
    first = space[np.minimum(bounds[:-1], len(text) - 1)]
    last = space[np.maximum(bounds[1:] - 1, 0)]
    return np.union1d(rows, np.flatnonzero(empty | first | last))
