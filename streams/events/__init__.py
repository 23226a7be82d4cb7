"""What an event is, how a line of JSON becomes one, and what makes a line unusable.

The names that a product's code needs are here: `from streams.events import Click, Impression, Query, make_event_id`.
"""

from streams.events.normal_form import normalise
from streams.events.schema import (
    Click,
    Event,
    EventError,
    EventSettings,
    Impression,
    Query,
    Reason,
    encode,
    json_schema,
    make_event_id,
)

__all__ = [
    "Click",
    "Event",
    "EventError",
    "EventSettings",
    "Impression",
    "Query",
    "Reason",
    "encode",
    "json_schema",
    "make_event_id",
    "normalise",
]
