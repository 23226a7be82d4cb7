"""The log that a torture run sends: lines made from a seed, as difficult as a live product's, each with its expected outcome.

It is split into stages of a tenth of a day and among producers. Every session depends only on (seed, producer, stage, number),
so a producer that was killed goes on at any stage, and a late click or a duplicate is made from its session anew.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from functools import cached_property
from typing import NamedTuple

from queryloop.torture.bad_lines import BAD_LINE_KINDS
from queryloop.torture.texts import make_texts
from streams.events.rules import DAY_US
from streams.events.schema import EPOCH, Reason

START_US = 20_100 * DAY_US
"""2025-01-12, where every generated log begins."""
STAGE_US = DAY_US // 10
LATE_STAGES = 20
"""Two days, in stages: late clicks are two to four days late, duplicates at most two."""
SECOND = 1_000_000
SESSION_LINES = 8
MIN_EVENTS = 2_000

DUPLICATES = 0.05
DISPLACED = 0.085
"""Share of lines out of order; with the early clicks a tenth of all."""
EARLY_CLICKS = 0.05
LATE_CLICKS = 0.02
CLICKS = 3 / SESSION_LINES
BAD_LINES = 0.01

COUNTED, REPEATED, AGAIN, ORPHAN = "counted", "repeated", "again", "orphan"
"""Outcomes beside the quarantine reasons: counted; another version of an impression; the same bytes again; a click on nothing."""

ZONES = (UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-8)))
TEXTS = make_texts()


class Line(NamedTuple):
    """One line: when it is sent (microseconds of event time), its session, its bytes, and its expected outcome."""

    order_us: int
    session_id: str
    line: bytes
    outcome: str


@dataclass(frozen=True)
class TortureLog:
    """A log of exactly `events` lines, duplicates and bad lines included. `events` is MIN_EVENTS or more."""

    seed: int
    events: int
    producers: int

    @cached_property
    def stages(self) -> int:
        """The number of stages: 40 to 200, so 4 to 20 days of event time."""
        return min(200, max(2 * LATE_STAGES, self.events // 500))

    def sent_before(self, producer: int, stage: int) -> int:
        """Return the lines of a producer in the stages before this one."""
        mine = (self.events * (producer + 1)) // self.producers - (self.events * producer) // self.producers
        return mine * stage // self.stages

    def stage_lines(self, producer: int, stage: int) -> list[Line]:
        """Return the lines of one producer's stage in the order in which they are sent."""
        lines: list[Line] = []
        duplicates, bad, late, fresh = self._shares(producer, stage)
        for number in range(-(-fresh // SESSION_LINES)):
            lines += self.session(producer, stage, number, -(-fresh // SESSION_LINES))
        del lines[fresh:]
        rng = self._rng(producer, stage, 10**6)
        lines += [self._late(rng, producer, stage, number) for number in range(late)]
        lines += [self._bad(rng, producer, stage, number) for number in range(bad)]
        lines += [self._duplicate(rng, producer, stage, lines) for _ in range(duplicates)]
        lines.sort(key=lambda line: line.order_us)
        return lines

    def __iter__(self) -> Iterator[Line]:
        """Yield every line, stage by stage."""
        for stage in range(self.stages):
            for producer in range(self.producers):
                yield from self.stage_lines(producer, stage)

    def session(self, producer: int, stage: int, number: int, sessions: int) -> list[Line]:
        """Return the lines of one session, in order of event time but for those drawn to be out of order."""
        rng = self._rng(producer, stage, number)
        began = START_US + stage * STAGE_US + int((number + rng.random()) / sessions * STAGE_US)
        return _Session(rng, f"{self.seed:x}-{producer:x}-{stage:02x}-{number:05x}", began).lines()

    def _rng(self, *place: int) -> random.Random:
        key = self.seed
        for part in place:
            key = (key << 24) + part
        return random.Random(key)

    def _shares(self, producer: int, stage: int) -> tuple[int, int, int, int]:
        """Return how many duplicates, bad lines, late clicks and other lines a stage has; the rates hold over the whole log."""
        before, after = self.sent_before(producer, stage), self.sent_before(producer, stage + 1)

        def share(rate: float, start: int = 0) -> int:
            return int(rate * max(0, after - start)) - int(rate * max(0, before - start))

        total, early = self.sent_before(producer, self.stages), self.sent_before(producer, LATE_STAGES)
        late = share(LATE_CLICKS * CLICKS * total / (total - early), early)
        duplicates, bad = share(DUPLICATES), share(BAD_LINES)
        return duplicates, bad, late, after - before - duplicates - bad - late

    def _past_session(self, rng: random.Random, producer: int, stage: int) -> list[Line]:
        fresh = self._shares(producer, stage)[3]
        return self.session(producer, stage, rng.randrange(fresh // SESSION_LINES), -(-fresh // SESSION_LINES))

    def _late(self, rng: random.Random, producer: int, stage: int, number: int) -> Line:
        """Return a click on an impression of days ago: made in time and only sent now, or made now and so too late."""
        past = rng.randint(max(0, stage - 2 * LATE_STAGES), stage - LATE_STAGES)
        session = self._past_session(rng, producer, past)[0].session_id
        event_id = f"{self.seed:x}-{producer:x}-{stage:02x}-late-{number:x}"
        now = START_US + stage * STAGE_US + rng.randrange(STAGE_US)
        made_in_time = number % 2 == 1
        ts = START_US + (past + 1) * STAGE_US + 3 * 3600 * SECOND if made_in_time else now
        click = _click(event_id, _rfc3339(ts, UTC), f'"session_id":"{session}","query":"late"', f"{session}-i1", 3)
        return Line(now, session, click, COUNTED if made_in_time else Reason.LATE_CLICK)

    def _bad(self, rng: random.Random, producer: int, stage: int, number: int) -> Line:
        name = f"{self.seed:x}-{producer:x}-{stage:02x}-bad-{number:x}"
        reason, make = BAD_LINE_KINDS[rng.randrange(len(BAD_LINE_KINDS))]
        line = make(name, f'"session_id":"{name}","query":"bad"')
        return Line(START_US + stage * STAGE_US + rng.randrange(STAGE_US), name, line, reason)

    def _duplicate(self, rng: random.Random, producer: int, stage: int, lines: list[Line]) -> Line:
        """Return an earlier line with the same bytes, sent soon after it or up to two days later."""
        if stage and rng.random() < 0.5:
            past = self._past_session(rng, producer, rng.randint(max(0, stage - LATE_STAGES), stage - 1))
            now = START_US + stage * STAGE_US + rng.randrange(STAGE_US)
            return rng.choice(past)._replace(order_us=now, outcome=AGAIN)
        line = rng.choice(lines)
        return line._replace(order_us=line.order_us + rng.randrange(60 * SECOND), outcome=AGAIN)


class _Session:
    """The eight lines of one session: three queries, two impressions, three clicks."""

    def __init__(self, rng: random.Random, name: str, began_us: int) -> None:
        self.rng, self.name, self.now = rng, name, began_us
        self.style = rng.choice(("float", "float", "whole", "rfc3339"))
        self.zone = rng.choice(ZONES)
        user = f'"user_id":"u{rng.randrange(5000)}",' if rng.random() < 0.5 else ""
        self.fields = f'"session_id":"{name}",{user}"agent":"app/7 (torture)","query":'
        self.out: list[Line] = []

    def lines(self) -> list[Line]:
        text, next_text, last_text = self.rng.choices(TEXTS, k=3)
        rng = self.rng
        self._query("q0", text, "user")
        shown = self._impression("i0", "v0", text)
        self._click("c0", text, "i0", rng.randrange(3), shown)
        self._query("q1", next_text, "recommendation" if rng.random() < 0.3 else "user")
        shown = self._impression("i1", "v1", next_text)
        self._click("c1", next_text, "i1", rng.randrange(3), shown)
        self.now += rng.choice((60, 600, 2400)) * SECOND
        self._query("q2", last_text, "user")
        self._last(next_text, shown)
        return self.out

    def _last(self, text: str, shown: int) -> None:
        """Add the last line: mostly a second click on the list, which may repeat the first, else one that must not count."""
        draw = self.rng.random()
        if draw < 0.01:
            self._impression("i1", "v2", text, REPEATED)
        elif draw < 0.03:
            self._click("c2", text, "nowhere", 0, None, ORPHAN)
        elif draw < 0.04:
            self._click("c2", text, "i1", 7, None, Reason.POSITION_OUT_OF_RANGE)
        elif draw < 0.05:
            self._click("c2", text, "i1", 0, None, Reason.ITEM_MISMATCH, ',"item":"never shown"')
        else:
            self._click("c2", text, "i1", self.rng.randrange(3), shown)

    def _query(self, name: str, text: str, source: str) -> None:
        head = self._head("query", name)
        self._put(f'{head}{text},"source":"{source}"}}', self._order(), COUNTED)

    def _impression(self, name: str, event: str, text: str, outcome: str = COUNTED) -> int:
        rng = self.rng
        head = self._head("impression", event)
        items = ",".join(rng.choices(TEXTS, k=4))
        order = self._order()
        tail = f'"task":"suggest","release":"r{rng.randrange(9)}","predicted":[0.25,0.125,0.1,0.0625],"logprob":-7.25'
        self._put(f'{head}{text},"impression_id":"{self.name}-{name}","items":[{items}],{tail}}}', order, outcome)
        return order

    def _click(
        self, name: str, text: str, of: str, position: int, shown: int | None, outcome: str = COUNTED, item: str = ""
    ) -> None:
        """Add a click; some are sent before their impression, which was sent at `shown`."""
        head = self._head("click", name)
        order = self._order()
        if shown is not None and self.rng.random() < EARLY_CLICKS:
            order = shown - self.rng.randrange(1, 60) * SECOND
        self._put(f'{head}{text},"impression_id":"{self.name}-{of}","position":{position}{item}}}', order, outcome)

    def _head(self, kind: str, name: str) -> str:
        self.now += self.rng.randrange(1, 90 * SECOND)
        if self.style == "whole":
            self.now += -self.now % SECOND
        return f'{{"type":"{kind}","event_id":"{self.name}-{name}","ts":{self._ts()},{self.fields}'

    def _ts(self) -> str:
        if self.style == "rfc3339":
            return f'"{_rfc3339(self.now, self.zone)}"'
        whole, part = divmod(self.now, SECOND)
        return str(whole) if self.style == "whole" else f"{whole}.{part:06d}"

    def _order(self) -> int:
        draw = self.rng.random()
        if draw >= DISPLACED:
            return self.now
        shift = int((60 + 540 * self.rng.random()) * SECOND)
        return self.now + (shift if draw < DISPLACED / 2 else -shift)

    def _put(self, line: str, order_us: int, outcome: str) -> None:
        self.out.append(Line(order_us, self.name, line.encode(), outcome))


def _click(event_id: str, ts: str, fields: str, impression_id: str, position: int) -> bytes:
    line = (
        f'{{"type":"click","event_id":"{event_id}","ts":"{ts}",{fields},"impression_id":"{impression_id}","position":{position}}}'
    )
    return line.encode()


def _rfc3339(us: int, zone: timezone) -> str:
    moment = EPOCH + timedelta(microseconds=us)
    return datetime.isoformat(moment.astimezone(zone)).replace("+00:00", "Z")
