"""A live release below the form limits is named, by its gate's record and by what it wrote last, and still answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from hypothesis import given
from hypothesis import strategies as st

from serving.policy.lists import RecommendedList
from serving.policy.tasks import Task
from serving.releases import registry
from serving.releases.form_watch import LEAST, WINDOW, FormWatch
from tests.support.prometheus import read_value
from tests.support.scripted_engine import ScriptedEngine
from tests.support.served_app import AppUnderTest

CALL = {"task": "suggest", "query": "red shoes", "session_id": "s1"}


LISTS = st.lists(st.tuples(st.sampled_from(["well_formed", "repaired", "fallback"]), st.integers(0, 2)), min_size=1)


@given(lists=LISTS.flatmap(lambda some: st.integers(1, WINDOW + 200).map(lambda size: (some * size)[:size])))
def test_the_shares_are_those_of_the_newest_lists(lists: list[tuple[Any, int]]) -> None:
    watch = FormWatch()
    for form, forced in lists:
        watch.count("r0001", form, forced)
    newest = lists[-WINDOW:]
    malformed = sum(form != "well_formed" for form, _ in newest) > 0.1 * len(newest)
    forced_often = sum(forced > 0 for _, forced in newest) > 0.5 * len(newest)
    expected = malformed + forced_often if len(newest) >= LEAST else 0
    assert len(watch.find_faults("r0001", {})) == expected
    assert watch.find_faults("r0002", {}) == []


def test_another_release_starts_anew() -> None:
    watch = FormWatch()
    for _ in range(LEAST):
        watch.count("r0001", "repaired", 0)
    watch.count("r0002", "well_formed", 0)
    assert watch.find_faults("r0002", {}) == []


def test_a_policy_whose_lists_the_grammar_has_to_force_is_named() -> None:
    watch = FormWatch()
    for number in range(LEAST):
        watch.count("r0001", "well_formed", number % 3)
    assert watch.find_faults("r0001", {}) == [
        "the grammar had to change a draw in 66 of its last 100 lists, at most 50% should need it"
    ]


def test_a_champion_that_its_gate_refused_is_ready_and_says_so(tmp_path: Path) -> None:
    served = AppUnderTest(tmp_path, ScriptedEngine())
    gate = {"passed": False, "reasons": ["texts repeat themselves: 60.0% of them"]}
    forced = registry.publish(tmp_path, policy=registry.read_release(tmp_path, "r0000").policy, gate=gate)
    registry.promote(tmp_path, forced.id, force=True)
    assert served.slot.check()

    async def scenario(client: httpx.AsyncClient) -> None:
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (200, True)
        assert ready.json()["faults"] == ["its gate refused it: texts repeat themselves: 60.0% of them"]
        assert read_value((await client.get("/metrics")).text, "queryloop_release_faults") == 1
        registry.promote(tmp_path, "r0001")
        served.slot.check()
        assert (await client.get("/readyz")).json()["faults"] == []
        registry.reject(tmp_path, forced.id, "repeats itself")
        listed = (await client.get("/v1/releases")).json()["releases"]
        assert [(one["rejected"] or {}).get("reason") for one in listed] == [None, None, "repeats itself"]
        assert read_value((await client.get("/metrics")).text, "queryloop_release_faults") == 0

    served.run(scenario)


def test_a_champion_whose_lists_lose_their_form_says_so(tmp_path: Path) -> None:
    def broken(_prompt: str, _task: Task) -> RecommendedList:
        return RecommendedList(("one",), (), False, 3)

    served = AppUnderTest(tmp_path, ScriptedEngine(broken))

    async def scenario(client: httpx.AsyncClient) -> None:
        for _ in range(LEAST):
            await client.post("/v1/recommend", json=CALL)
        ready = (await client.get("/readyz")).json()
        assert ready["ready"]
        assert ready["faults"] == [f"{LEAST} of its last {LEAST} lists were not well-formed, at most 10% should be"]

    served.run(scenario)
