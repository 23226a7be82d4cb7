"""Lines that are no usable event, of every kind that the decoder distinguishes, each with its quarantine reason."""

from __future__ import annotations

from collections.abc import Callable

from streams.events.schema import Reason

Make = Callable[[str, str], bytes]
"""Makes a line from a unique id and the session's fields; no two lines have the same bytes, so each gets a row in quarantine."""


def _line(text: str) -> bytes:
    return text.encode()


BAD_LINE_KINDS: tuple[tuple[Reason, Make], ...] = (
    (Reason.MALFORMED, lambda id_, rest: _line(f'{{"type":"click","event_id":"{id_}","ts":17356')),
    (Reason.MALFORMED, lambda id_, rest: b"\xff\xfe\x00 not text " + id_.encode()),
    (Reason.MALFORMED, lambda id_, rest: _line(f'{{"type":"query","event_id":"{id_}",{rest}}} and more')),
    (Reason.MALFORMED, lambda id_, rest: b"[" * 5000 + id_.encode()),
    (Reason.INVALID, lambda id_, rest: _line(f'["{id_}"]')),
    (Reason.INVALID, lambda id_, rest: _line(f'{{"type":"query","event_id":"{id_}","ts":1735689600}}')),
    (Reason.INVALID, lambda id_, rest: _line(f'{{"type":"purchase","event_id":"{id_}","ts":1735689600,{rest}}}')),
    (Reason.INVALID, lambda id_, rest: _line(f'{{"type":"query","event_id":"{id_}","ts":1735689600000,{rest}}}')),
    (Reason.INVALID, lambda id_, rest: _line(f'{{"type":"query","event_id":"{id_}","ts":"2025-01-01 noon",{rest}}}')),
    (
        Reason.INVALID,
        lambda id_, rest: _line(
            f'{{"type":"click","event_id":"{id_}","ts":1735689600,{rest},"impression_id":"i-{id_}","position":-1}}'
        ),
    ),
    (
        Reason.TOO_LARGE,
        lambda id_, rest: _line(
            f'{{"type":"impression","event_id":"{id_}","ts":1735689600,{rest},"impression_id":"i-{id_}","items":["{"x" * 600}"]}}'
        ),
    ),
    (Reason.FUTURE_EVENT, lambda id_, rest: _line(f'{{"type":"query","event_id":"{id_}","ts":4102444800,{rest}}}')),
)
