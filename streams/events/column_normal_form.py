"""Normal forms of whole columns of texts: as `streams.events.normalise`, without a Python call for each text.

Most texts are printable ASCII with single spaces between words: their normal form is the text in lower case. Only others are
normalised one by one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streams.events.line_spans import Flags
from streams.events.normal_form import normalise

SPACE, LAST_PRINTABLE = 32, 126


def normalise_column(texts: pa.StringArray) -> pa.StringArray:
    """Return the normal form of each text; none may be null."""
    lowered = pc.ascii_lower(texts)
    special = find_special(texts)
    if not special.any():
        return lowered
    norms = pa.array([normalise(text) for text in texts.filter(pa.array(special)).to_pylist()], pa.string())
    return pc.replace_with_mask(lowered, pa.array(special), norms)


def text_bounds(texts: pa.StringArray) -> npt.NDArray[np.int32]:
    """Return where each text starts in the buffer and where the last one ends; an empty array for no texts."""
    if not len(texts):
        return np.empty(0, np.int32)
    return np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]


def find_special(texts: pa.StringArray) -> Flags:
    """Flag the texts that must be normalised one by one, and perhaps some that need not."""
    bounds = text_bounds(texts)
    if not len(texts) or bounds[-1] == bounds[0]:
        return np.ones(len(texts), np.bool_)
    text = np.frombuffer(texts.buffers()[2], np.uint8)[bounds[0] : bounds[-1]]
    bounds = bounds - bounds[0]
    odd = (text < SPACE) | (text > LAST_PRINTABLE)
    space = text == SPACE
    odd[1:] |= space[1:] & space[:-1]
    empty = bounds[1:] == bounds[:-1]
    first = space.take(bounds[:-1], mode="clip")
    last = space.take(bounds[1:] - 1, mode="clip")
    special: Flags = empty | first | last
    if odd.any():
        special[np.searchsorted(bounds, odd.nonzero()[0], side="right") - 1] = True
    return special
