"""A product's own rows are events of each type."""

from __future__ import annotations

from pathlib import Path

from tests.support.foreign_logs import draw_visits, facts, mapped, micros


def test_a_products_own_rows_are_events_of_each_type(tmp_path: Path) -> None:
    rows, expected = ["time_ms;what;session;user;search;list;rank;shown"], []
    for number, (session, ts, words, items, clicked) in enumerate(draw_visits(1)):
        words = words.replace('"', "").strip()
        base, at = f"{session};u;{words}", int(ts * 1000)
        rows.append(f"{at};search;{base};;;")
        rows += [f"{at + 1000};item;{base};L{number};{rank};{item}" for rank, item in reversed(list(enumerate(items, 1)))]
        rows.append(f"{at + 1000};scroll;;;;;;")
        rows += [f"{at + 2000 + place};click;{base};L{number};{place + 1};{items[place]}" for place in clicked]
        expected.append(("query", micros(ts), session, words, "", (), -1))
        expected.append(("impression", micros(ts + 1), session, words, f"L{number}", tuple(items), -1))
        expected += [("click", micros(ts + 2 + p / 1000), session, words, f"L{number}", (), p) for p in clicked]
    rows += ["1600000000000;item;s;u;q;gap;1;x", "1600000000000;item;s;u;q;gap;3;y", "1600000000000;odd;s;u;q;;;"]
    (tmp_path / "log").write_text("\n".join(rows), encoding="utf-8")
    events, refused = mapped(tmp_path / "log", "product_log.sql")
    assert facts(events) == sorted(expected)
    assert sorted(one["detail"] for one in refused) == [
        "Invalid value 'odd' - at `$.type`",
        "Object missing required field `items`",
    ]
