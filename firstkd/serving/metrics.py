"""A server's metrics, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from firstkd.serving.drift import State
from firstkd.serving.wire import Told

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
SHARES = tuple(tenth / 10 for tenth in range(1, 11))


class Metrics:
    """One server's metrics: several servers in one process do not share them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter("firstkd_requests", "Requests by status", ["status"], registry=own)
        self.seconds = Histogram("firstkd_request_seconds", "Duration of a request", registry=own)
        self.questions = Counter("firstkd_questions", "Questions by route", ["route"], registry=own)
        failures = "firstkd_escalation_failures"
        self.failures = Counter(failures, "Failed escalations by reason", ["reason"], registry=own)
        sure = "firstkd_confidence"
        self.confidence = Histogram(sure, "Confidence of the student", buckets=SHARES, registry=own)
        batch = "firstkd_batch_questions"
        self.batch = Histogram(batch, "Questions answered at a time", buckets=SIZES, registry=own)
        self.waiting = Gauge(
            "firstkd_waiting_questions", "Questions not in a batch yet", registry=own
        )
        shift = "firstkd_drift_evidence"
        self.evidence = Gauge(shift, "Evidence of drift; 1 raises an alarm", ["of"], registry=own)
        self.alarm = Gauge("firstkd_drift_alarm", "1 while an alarm is raised", registry=own)
        version = "firstkd_version"
        self.version = Gauge(version, "1 for the version in charge", ["version"], registry=own)

    def count(self, told: Told) -> None:
        self.questions.labels(told.route).inc()
        self.confidence.observe(told.guess_confidence)
        if told.reason is not None:
            self.failures.labels(told.reason).inc()

    def drifting(self, state: State) -> None:
        for name, share in state.evidence.items():
            self.evidence.labels(name).set(share)
        self.alarm.set(state.alarm is not None)

    def in_charge(self, name: str) -> None:
        self.version.clear()
        self.version.labels(name).set(1)

    def text(self) -> bytes:
        return generate_latest(self.registry)
