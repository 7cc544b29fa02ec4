"""Do served questions still look like those a version was calibrated on?

Three things are compared with the version's calibration questions: how sure the student is, how
many questions it passes on or abstains from, and how long they are. Each has a sequential test
(firstkd/measure/exchangeability.py), which restarts after `serve.drift.questions` questions. An
alarm lasts until that many have come without raising another.
"""

import asyncio
import contextlib
import logging
import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from firstkd.data.examples import Example
from firstkd.errors import PipelineError
from firstkd.files import read_json, write_json
from firstkd.measure.exchangeability import Exchangeability
from firstkd.serving.reference import BELOW, Reference
from firstkd.serving.settings import DriftSettings

RECENT = 100
"""Latest questions, which an alarm compares with the reference."""
FLUSH_SECONDS = 30.0

PROMISE = "promise.txt"
"""File in the state folder: what corrections say about the promise, in words."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alarm:
    of: str
    since: str
    """When it was raised, UTC."""
    words: str


@dataclass
class State:
    """Where the comparison stands, as shown and written."""

    version: str
    compared: bool
    """False for a version without a reference: from an earlier release, or of open text alone."""
    questions: int = 0
    """Served since the tests last began."""
    evidence: dict[str, float] = field(default_factory=dict)
    """Evidence on each thing compared, as a share of what raises an alarm."""
    alarm: Alarm | None = None


class Drift:
    """Watches one server's answers. `announce` gets each alarm's words, in a thread."""

    def __init__(
        self,
        settings: DriftSettings,
        file: Path | None = None,
        announce: Callable[[str], None] = lambda _: None,
        seed: int = 0,
    ) -> None:
        self.settings, self.file, self.announce = settings, file, announce
        self.state = State("", compared=False)
        self._seed, self._raised = seed, asyncio.Event()
        self._unannounced: list[str] = []

    def watch(self, version: str, reference: Reference | None, abstain_below: float | None) -> None:
        """Start watching a version that has taken over."""
        self._reference = reference.values(abstain_below) if reference else {}
        self._abstain_below = abstain_below
        self.state = State(version, compared=reference is not None)
        self._begin()

    def _begin(self) -> None:
        self._seed += 1
        questions = self.settings.questions
        self._tests = {
            name: Exchangeability(sample, questions, self._seed)
            for name, sample in self._reference.items()
        }
        self._recent = {name: deque[float](maxlen=RECENT) for name in self._reference}
        self.state.questions, self.state.evidence = 0, dict.fromkeys(self._reference, 0.0)

    def add(self, examples: Sequence[Example], confidence: Sequence[float]) -> None:
        """Compare answered questions, and how sure the student was of each."""
        for example, sure in zip(examples, confidence, strict=True):
            seen = Reference([sure], [len(example.prompt)]).values(self._abstain_below)
            self._compare({name: seen[name][0] for name in self._tests})

    def _compare(self, seen: dict[str, float]) -> None:
        # each test gets an equal share of the false alarms, so together they keep the limit
        limit = math.log(max(1, len(self._tests)) / self.settings.false_alarms)
        self.state.questions += 1
        for name, value in seen.items():
            self._tests[name].add(value)
            self._recent[name].append(value)
            self.state.evidence[name] = self._tests[name].log_evidence / limit
        highest = max(self.state.evidence, key=self.state.evidence.__getitem__, default=None)
        if highest is not None and self.state.evidence[highest] >= 1:
            self._raise(highest)
            self._begin()
        elif self.state.questions >= self.settings.questions:
            self.state.alarm = None
            self._begin()

    def _raise(self, name: str) -> None:
        words = self._words(name)
        if self.state.alarm is None:
            self._unannounced.append(words)
            self._raised.set()
            log.warning("%s", words)
        since = self.state.alarm.since if self.state.alarm else _now()
        self.state.alarm = Alarm(name, since, words)

    def _words(self, name: str) -> str:
        middle = statistics.mean if name == BELOW else statistics.median
        recent, reference = middle(self._recent[name]), middle(self._reference[name])
        kind = "" if name == BELOW else "median "
        return (
            f"{self.state.version}: the {name} of served questions differs from that of its "
            f"calibration questions ({kind}{recent:.3g} over the last {len(self._recent[name])} "
            f"instead of {reference:.3g}), so its promise and confidence may not hold"
        )

    async def work(self) -> None:
        """Announce alarms at once and write the state from time to time, until cancelled."""
        while True:
            await asyncio.shield(self.flush())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._raised.wait(), FLUSH_SECONDS)
            self._raised.clear()

    async def flush(self) -> None:
        words, self._unannounced = self._unannounced, []
        for each in words:
            await asyncio.to_thread(self.announce, each)
        if self.file is None:
            return
        try:
            state = {**asdict(self.state), "of": self.settings.questions, "at": _now()}
            await asyncio.to_thread(write_json, self.file, state)
        except (OSError, PipelineError) as error:
            log.warning("the drift state could not be written: %s", error)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def drift_lines(folder: Path) -> list[str]:
    """Return one line for each server's written state, and one for what corrections showed."""
    lines = [f"drift: {_in_words(file)}" for file in sorted(folder.glob("*.json"))]
    promise = folder / PROMISE
    return [*lines, *([f"promise: {promise.read_text().strip()}"] if promise.exists() else [])]


def _in_words(file: Path) -> str:
    state = read_json(file)
    if not state["compared"]:
        what = "retrain or recalibrate, unless it answers open text alone, which is not compared"
        return f"{state['version']} has no reference to compare with: {what}"
    if alarm := state["alarm"]:
        return f"since {alarm['since']}, {alarm['words']} (as of {state['at']})"
    seen = f"{state['questions']:,} of {state['of']:,} questions compared at {state['at']}"
    return f"none in the questions {state['version']} answers ({seen})"
