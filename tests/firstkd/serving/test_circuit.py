"""The circuit breaker by a clock that the test turns."""

import asyncio

import pytest

from firstkd.data.examples import Example
from firstkd.serving.escalation import Escalation
from firstkd.serving.targets import EscalationError, Given

EXAMPLE = Example("q", "q", "", ("a", "b"), None, "")


class Counting:
    def __init__(self) -> None:
        self.works, self.asked = False, 0

    async def ask(self, example: Example) -> Given:
        self.asked += 1
        if not self.works:
            raise EscalationError("no")
        return Given("it", "in a den", 1.0)

    async def close(self) -> None:
        pass


def outcome(escalation: Escalation) -> str:
    try:
        return asyncio.run(escalation.ask(EXAMPLE)).by
    except EscalationError as error:
        return str(error)


@pytest.mark.parametrize("recovers", [True, False])
def test_after_a_pause_one_trial_decides(recovers):
    now, target = [0.0], Counting()
    escalation = Escalation(target, 1, 4, failures=3, pause_seconds=30, clock=lambda: now[0])
    assert [outcome(escalation) for _ in range(5)] == ["no"] * 3 + ["circuit open"] * 2
    now[0], target.works = 31.0, recovers
    assert outcome(escalation) == ("it" if recovers else "no")
    assert outcome(escalation) == ("it" if recovers else "circuit open")
    assert target.asked == (5 if recovers else 4)


def test_a_success_in_between_starts_the_count_anew():
    target = Counting()
    escalation = Escalation(target, 1, 4, failures=2)
    for works, expected in ((False, "no"), (True, "it"), (False, "no"), (True, "it")):
        target.works = works
        assert outcome(escalation) == expected
