"""Due times have cron's meaning, and on the days on which summer time starts or ends no local time is skipped or comes twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.jobs.due_times import check_line, check_zone, last_due, next_due

MINUTE = timedelta(minutes=1)
TUESDAY = datetime(2022, 3, 8, tzinfo=UTC)
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Sao_Paulo",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Africa/Casablanca",
)
BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def due(line: str, count: int = 1, after: datetime = TUESDAY, zone: str = "UTC") -> list[datetime]:
    found = []
    for _ in range(count):
        after = next_due(line, zone, after)
        found.append(after)
    return found


@pytest.mark.parametrize(
    ("weekday", "days"),
    [
        ("0", ["Sun"]),
        ("7", ["Sun"]),
        ("sun", ["Sun"]),
        ("1", ["Mon"]),
        ("6", ["Sat"]),
        ("1-5", ["Mon", "Tue", "Wed", "Thu", "Fri"]),
        ("mon-fri", ["Mon", "Tue", "Wed", "Thu", "Fri"]),
        ("5-7", ["Fri", "Sat", "Sun"]),
        ("0,3", ["Sun", "Wed"]),
        ("*/2", ["Sun", "Tue", "Thu", "Sat"]),
    ],
)
def test_weekdays_are_those_of_cron(weekday: str, days: list[str]) -> None:
    assert {time.strftime("%a") for time in due(f"0 5 * * {weekday}", 20)} == set(days)


def test_a_day_of_the_month_or_a_weekday_is_enough_where_both_are_given() -> None:
    assert [time.strftime("%a %d") for time in due("0 5 15 * 0", 4)] == ["Sun 13", "Tue 15", "Sun 20", "Sun 27"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("every day", "five fields"),
        ("", "five fields"),
        ("* * * *", "five fields"),
        ("@daily", "five fields"),
        ("0 0 0 5 * *", "five fields"),
        ("61 * * * *", "bad minute"),
        ("0 24 * * *", "bad hour"),
        ("0 5 0 * *", "bad day-of-month"),
        ("0 5 30 2 *", "bad day-of-month"),
        ("0 5 * * 8", "bad day-of-week"),
        ("0 5 * * fri-sun", "5-7"),
        ("*/0 * * * *", "bad minute"),
        ("0 5 * * 1#5", "five fields"),
        ("0 5 L * *", "five fields"),
    ],
)
def test_a_line_that_cron_would_not_read_is_refused_with_what_is_allowed(line: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_line(line)


def test_a_time_zone_is_one_of_this_machine() -> None:
    assert check_zone("Europe/Berlin") == "Europe/Berlin"
    for name in ("Berlin", "../../etc/passwd", "", "Mars/Olympus"):
        with pytest.raises(ValueError, match="Europe/Berlin"):
            check_zone(name)


def values(field: str, low: int, high: int) -> set[int]:
    """The numbers of a field of *, */N, N, N-M and lists of them."""
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        bounds = (low, high) if span == "*" else (int(first), int(last or first))
        found |= set(range(bounds[0], bounds[1] + 1, int(step or 1)))
    return found


def matches(line: str, local: datetime) -> bool:
    """Whether a local time is one of the line's, by the words of crontab(5)."""
    _, _, day, _, weekday = line.split()
    sets = [values(field, *bounds) for field, bounds in zip(line.split(), BOUNDS, strict=True)]
    in_month, in_week = local.day in sets[2], local.isoweekday() in sets[4] or local.isoweekday() % 7 in sets[4]
    on_day = (in_month and in_week) if day.startswith("*") or weekday.startswith("*") else (in_month or in_week)
    return local.minute in sets[0] and local.hour in sets[1] and on_day and local.month in sets[3]


def watch_the_clock(line: str, zone: str, start: datetime, hours: int) -> list[datetime]:
    """The moments at which a person who watches a clock on the wall first sees that one of the line's times is there or over."""
    place, found = ZoneInfo(zone), []
    seen = start.astimezone(place).replace(tzinfo=None)
    for number in range(1, hours * 60 + 1):
        now = start + number * MINUTE
        shown = now.astimezone(place).replace(tzinfo=None)
        passed = [seen + step * MINUTE for step in range(1, (shown - seen) // MINUTE + 1)]
        if any(matches(line, local) for local in passed):
            found.append(now)
        seen = max(seen, shown)
    return found


fields = st.tuples(
    st.sampled_from(["*", "0", "30", "*/7", "15,45", "10-20/5"]),
    st.sampled_from(["*", "0", "1", "2", "3", "23", "*/6", "1-3", "0,2"]),
    st.sampled_from(["*", "1", "15", "*/2", "25-31"]),
    st.sampled_from(["*", "3", "10,11", "1-12/2"]),
    st.sampled_from(["*", "0", "7", "1-5", "6,7"]),
)


@cache
def changes(zone: str, year: int) -> list[datetime]:
    """The hours of a year in which the zone's offset changes."""
    hours = [datetime(year, 1, 1, tzinfo=UTC) + timedelta(hours=number) for number in range(365 * 24)]
    offsets = [hour.astimezone(ZoneInfo(zone)).utcoffset() for hour in hours]
    return [hours[number] for number, (before, after) in enumerate(pairwise(offsets)) if before != after]


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(ZONES), st.integers(2009, 2030), fields)
def test_each_local_time_is_due_once_when_it_is_first_shown_or_passed(
    data: st.DataObject, zone: str, year: int, parts: tuple[str, ...]
) -> None:
    line = " ".join(parts)
    around = data.draw(st.sampled_from([datetime(year, 6, 1, tzinfo=UTC), *changes(zone, year)]))
    start = around - timedelta(hours=26)
    expected = watch_the_clock(line, zone, start, 40)
    found: list[datetime] = []
    while (time := next_due(line, zone, found[-1] if found else start)) <= start + timedelta(hours=40):
        found.append(time)
    assert found == expected
    for before, after in pairwise(expected):
        assert last_due(line, zone, after - timedelta(microseconds=1)) == before
        assert last_due(line, zone, after) == after


def test_a_nightly_line_is_due_once_on_every_day_of_a_year_with_summer_time() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    nights = due("30 2 * * *", 365, datetime(2022, 1, 1, tzinfo=berlin), "Europe/Berlin")
    days = [night.astimezone(berlin).date() for night in nights]
    assert len(set(days)) == 365
    assert (days[-1] - days[0]).days == 364
