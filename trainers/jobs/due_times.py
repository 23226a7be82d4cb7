"""The due times of a cron line, as cron understands it, in a time zone with or without summer time.

APScheduler reads the same five fields otherwise: its weekday 0 is Monday, and where a day of the month and a weekday are given,
both must match. So the times come from here (the fields are read by cronsim), and APScheduler waits for them.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_VALUE = re.compile(r"\*|\d+|[A-Za-z]{3}")
_ADVICE = (
    "a cron line has five fields (minute hour day-of-month month weekday) of numbers, names, * , - and /; weekdays 0 and 7 are "
    "Sunday, and a range runs upwards, so Friday to Sunday is 5-7"
)


def check_line(line: str) -> str:
    """Return a cron line. Raises ValueError for one that cron would not read, or that is never due."""
    from cronsim import CronSim, CronSimError

    fields = line.split()
    if len(fields) != 5 or not all(_VALUE.fullmatch(value) for field in fields for value in re.split("[,/-]", field)):
        raise ValueError(f"{_ADVICE}; 'off' switches the job off")
    try:
        next(CronSim(line, datetime(2024, 1, 1)))
    except CronSimError as error:
        raise ValueError(f"{str(error).lower()}: {_ADVICE}") from None
    except StopIteration:
        raise ValueError("none of the next fifty years has such a day") from None
    return line


def check_zone(name: str) -> str:
    """Return a time zone's name. Raises ValueError for one that this machine does not know."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("this machine knows no such time zone: write UTC, or a name such as Europe/Berlin") from None
    return name


def next_due(line: str, zone: str, after: datetime) -> datetime:
    """Return the first due time after a moment; both have an offset.

    Each local time of the line is due once: one that the start of summer time leaves out is due when the clock is put forward,
    one that the end of it repeats is due the first time."""
    from cronsim import CronSim

    place = ZoneInfo(zone)
    local = after.astimezone(place).replace(tzinfo=None)
    return next(found for time in CronSim(line, local) if (found := _moment(time, place)) > after)


def last_due(line: str, zone: str, until: datetime) -> datetime | None:
    """Return the last due time up to and with a moment, None where there was none in the fifty years before it."""
    from cronsim import CronSim

    place = ZoneInfo(zone)
    local = until.astimezone(place)
    # In an hour that is repeated, times of the first pass lie behind although the clock shows an earlier one.
    repeated = _offset(local.replace(fold=0)) - _offset(local)
    start = local.replace(tzinfo=None, microsecond=0) + repeated + timedelta(seconds=1)
    return next((found for time in CronSim(line, start, reverse=True) if (found := _moment(time, place)) <= until), None)


def _moment(local: datetime, zone: tzinfo) -> datetime:
    """Return when a clock in the zone first shows this local time or a later one."""
    first = local.replace(tzinfo=zone).astimezone(UTC)
    if first.astimezone(zone).replace(tzinfo=None) == local:
        return first
    before = local.replace(tzinfo=zone, fold=1).astimezone(UTC)
    seconds = range(int(before.timestamp()), int(first.timestamp()) + 1)
    offset = _offset(before.astimezone(zone))
    changed = bisect_left(seconds, True, key=lambda at: _offset(datetime.fromtimestamp(at, zone)) != offset)
    return datetime.fromtimestamp(seconds[changed], UTC)


def _offset(local: datetime) -> timedelta:
    return local.utcoffset() or timedelta()
