"""Who is in charge: take the gate's decision on a version, keep it, and move the aliases."""

from dataclasses import asdict

from mlflow.entities.model_registry import ModelVersion

from firstkd.settings import Settings
from flows.gate import Verdict, decide
from flows.registry import aliases, load_evidence, run_of
from flows.tracking import Tracking

CHAMPION, PREVIOUS = "champion", "previous"
REASONS_TAG = "decision_reasons"
LIMITS_TAG = "decision_limits"
DECISION_TAG = "decision"
"""Set last: a version without it is decided on again."""


def promote(tracking: Tracking, settings: Settings, version: ModelVersion) -> Verdict:
    """Let a version through the gate, once, and put it in charge if it passes.

    The aliases move after everything that explains them is written, the champion's last: a crash
    in between leaves the old champion in charge, and the next run takes up what was interrupted.
    """
    name, number, client = version.name, str(version.version), tracking.client
    if is_decided(version, settings):
        return Verdict(version.tags[DECISION_TAG] == "promoted", _reasons(version))
    old = aliases(tracking, name).get(CHAMPION)
    if old == number:  # interrupted after the aliases moved
        client.set_model_version_tag(name, number, LIMITS_TAG, _limits(settings))
        client.set_model_version_tag(name, number, DECISION_TAG, "promoted")
        return Verdict(True, _reasons(version))

    challenger = load_evidence(tracking, name, number)
    champion = load_evidence(tracking, name, old) if old else None
    verdict = decide(challenger, champion, settings.promote)
    decision = {
        "challenger": {"version": number, "sets": challenger.sets},
        "champion": champion and {"version": old, "sets": champion.sets},
        "limits": settings.promote.model_dump(),
        **asdict(verdict),
    }
    client.log_dict(run_of(version), decision, f"promotion/version-{number}.json")
    client.set_model_version_tag(name, number, REASONS_TAG, "; ".join(verdict.reasons))
    client.set_model_version_tag(name, number, LIMITS_TAG, _limits(settings))
    if verdict.passed:
        if old:
            client.set_registered_model_alias(name, PREVIOUS, old)
        client.set_registered_model_alias(name, CHAMPION, number)
    outcome = "promoted" if verdict.passed else "rejected"
    client.set_model_version_tag(name, number, DECISION_TAG, outcome)
    return verdict


def is_decided(version: ModelVersion, settings: Settings) -> bool:
    """Whether the gate has judged this version under the present limits."""
    tags = version.tags
    return DECISION_TAG in tags and tags.get(LIMITS_TAG) == _limits(settings)


def _limits(settings: Settings) -> str:
    return settings.promote.model_dump_json()


def _reasons(version: ModelVersion) -> tuple[str, ...]:
    return tuple(version.tags[REASONS_TAG].split("; "))
