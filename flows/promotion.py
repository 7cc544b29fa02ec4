"""Who is in charge: take the gate's decision on a version, keep it, and move the aliases.

The champion's alias is the one truth about who serves. It moves last: a crash before it leaves
the old champion in charge, and the next run takes up what was interrupted.
"""

import json
from dataclasses import asdict
from datetime import UTC, datetime

from mlflow.entities.model_registry import ModelVersion

from firstkd.errors import PipelineError
from firstkd.settings import Settings
from flows.gate import Evidence, Verdict, answered_alike, decide
from flows.registry import NOT_REPRODUCIBLE_TAG, aliases, load_evidence, run_of
from flows.remeasure import holds_questions, measure_again
from flows.tracking import Tracking
from flows.workspace import Workspace

CHAMPION, PREVIOUS = "champion", "previous"
DECISION_TAG = "decision"
"""`promoted`, `rejected` or `rolled back`; set last, and taken away before anything of another
decision is written: a version without it is decided on again."""
REASONS_TAG = "decision_reasons"
BASIS_TAG = "decision_basis"
"""What the decision rests on: with another champion or other limits it is taken anew."""
TIME_TAG = "decided_at"
REPLACED_TAG = "replaced"
"""The champion whose place a version took: what `rollback` goes back to."""


def promote(
    workspace: Workspace, settings: Settings, tracking: Tracking, version: ModelVersion
) -> Verdict:
    """Let a version through the gate and put it in charge if it passes, as every retraining does.

    A decision that still stands is not taken again.
    """
    with workspace.promoting():
        current = _reload(tracking, version)
        return standing(settings, tracking, current) or _decide_and_move(
            workspace, settings, tracking, current, compared=True
        )


def promote_on_request(
    workspace: Workspace,
    settings: Settings,
    tracking: Tracking,
    version: ModelVersion,
    compared: bool,
) -> Verdict:
    """Decide on a version anew, also on one that was rolled back.

    Without comparison only the limits on the version itself hold: the way out when the champion
    was tested on other questions and cannot be measured again.
    """
    with workspace.promoting():
        current = _reload(tracking, version)
        return _decide_and_move(workspace, settings, tracking, current, compared)


def judge(
    workspace: Workspace,
    settings: Settings,
    tracking: Tracking,
    version: ModelVersion,
    compared: bool,
) -> Verdict:
    """Return what the gate says of a version now; nothing is written."""
    name, number = version.name, str(version.version)
    champion = aliases(tracking, name).get(CHAMPION)
    if champion == number:
        return _in_charge(version)
    return _judge(workspace, settings, tracking, version, champion if compared else None)[0]


def standing(settings: Settings, tracking: Tracking, version: ModelVersion) -> Verdict | None:
    """Return the decision on a version where it still stands, else None."""
    decision = version.tags.get(DECISION_TAG)
    champion = aliases(tracking, version.name).get(CHAMPION)
    if champion == str(version.version):
        return _in_charge(version) if decision == "promoted" else None
    if decision == "rolled back":
        number = version.version
        again = f"`firstkd promote --version {number}` lets it through the gate again"
        return Verdict("rolled back", (*_reasons(version), again))
    if decision == "rejected" and version.tags[BASIS_TAG] == _basis(settings, version, champion):
        return Verdict("rejected", _reasons(version))
    return None


def rollback(workspace: Workspace, settings: Settings, tracking: Tracking) -> tuple[str, str]:
    """Put the champion's predecessor back in charge; return both numbers, old and new.

    The one that leaves is marked, so that the next retraining does not promote it again. Raises
    PipelineError when there is nothing to go back to.
    """
    name, client = settings.record.registered_model, tracking.client
    with workspace.promoting():
        old = aliases(tracking, name).get(CHAMPION)
        if old is None:
            raise PipelineError(f"{name} has no champion to roll back")
        target = _predecessor(tracking, name, old)
        if target is None:
            raise PipelineError(
                f"{name} v{old} has no predecessor to go back to: `firstkd history` shows all"
            )
        words = f"it was rolled back to v{target} on {_now()}"
        client.set_model_version_tag(name, old, REASONS_TAG, words)
        client.set_model_version_tag(name, old, DECISION_TAG, "rolled back")
        client.set_registered_model_alias(name, CHAMPION, target)
        _point_previous(tracking, name, _predecessor(tracking, name, target))
    return old, target


def _decide_and_move(
    workspace: Workspace,
    settings: Settings,
    tracking: Tracking,
    version: ModelVersion,
    compared: bool,
) -> Verdict:
    name, number, client = version.name, str(version.version), tracking.client
    while True:
        old = aliases(tracking, name).get(CHAMPION)
        if old == number:  # possibly interrupted after the alias had moved
            _point_previous(tracking, name, _predecessor(tracking, name, number))
            if version.tags.get(DECISION_TAG) == "rolled back":
                words = "its rollback was interrupted before it began: it stayed in charge"
                client.set_model_version_tag(name, number, REASONS_TAG, words)
            client.set_model_version_tag(name, number, DECISION_TAG, "promoted")
            version = _reload(tracking, version)
            return _in_charge(version)
        against = old if compared else None
        verdict, decision = _judge(workspace, settings, tracking, version, against)
        now = _now()
        file = f"promotion/version-{number}/{now.replace(':', '')}.json"
        client.log_dict(run_of(version), {**decision, "decided_at": now}, file)
        tags = {
            REASONS_TAG: "\n".join(verdict.reasons),
            BASIS_TAG: _basis(settings, version, old),
            TIME_TAG: now,
        }
        if verdict.passed and old:
            tags[REPLACED_TAG] = old
        if DECISION_TAG in _tags(tracking, name, number):
            client.delete_model_version_tag(name, number, DECISION_TAG)
        for key, value in tags.items():
            client.set_model_version_tag(name, number, key, value)
        if verdict.passed:
            if aliases(tracking, name).get(CHAMPION) != old:
                continue  # a promotion from another workspace came in between
            client.set_registered_model_alias(name, CHAMPION, number)
            _point_previous(tracking, name, old)
        client.set_model_version_tag(name, number, DECISION_TAG, verdict.outcome)
        return verdict


def _judge(
    workspace: Workspace,
    settings: Settings,
    tracking: Tracking,
    version: ModelVersion,
    against: str | None,
) -> tuple[Verdict, dict[str, object]]:
    """Return the gate's verdict, and the record of it."""
    challenger = load_evidence(tracking, version.name, str(version.version))
    champion = None
    if against:
        champion = _champion(workspace, tracking, version.name, against, challenger)
    verdict = decide(challenger, champion, settings.promote)
    return verdict, {
        "challenger": _record_of(challenger),
        "champion": _record_of(champion) if champion else None,
        "limits": settings.promote.model_dump(),
        "passed": verdict.passed,
        **asdict(verdict),
    }


def _champion(
    workspace: Workspace, tracking: Tracking, name: str, number: str, challenger: Evidence
) -> Evidence:
    """Return the champion's evidence on the challenger's questions, if need be measured anew."""
    recorded = load_evidence(tracking, name, number)
    if answered_alike(challenger, recorded) or not holds_questions(workspace, challenger):
        return recorded
    version = tracking.client.get_model_version(name, number)
    return measure_again(workspace, tracking, version, recorded)


def _record_of(evidence: Evidence) -> dict[str, object]:
    return {
        "version": evidence.version,
        "sets": evidence.sets,
        "measured_anew": evidence.measured_anew,
    }


def _predecessor(tracking: Tracking, name: str, number: str) -> str | None:
    """Return the champion before a version, passing over those that were rolled back."""
    seen = {number}
    while number := _tags(tracking, name, number).get(REPLACED_TAG, ""):
        if number in seen:
            return None
        seen.add(number)
        if _tags(tracking, name, number).get(DECISION_TAG) != "rolled back":
            return number
    return None


def _point_previous(tracking: Tracking, name: str, number: str | None) -> None:
    """Let the alias show what `rollback` would go back to."""
    if number:
        tracking.client.set_registered_model_alias(name, PREVIOUS, number)
    elif PREVIOUS in aliases(tracking, name):
        tracking.client.delete_registered_model_alias(name, PREVIOUS)


def _in_charge(version: ModelVersion) -> Verdict:
    return Verdict("in charge", _reasons(version))


def _basis(settings: Settings, version: ModelVersion, champion: str | None) -> str:
    basis = {
        "limits": settings.promote.model_dump(),
        "champion": champion,
        "not_reproducible": version.tags.get(NOT_REPRODUCIBLE_TAG),
    }
    return json.dumps(basis, sort_keys=True)


def _reasons(version: ModelVersion) -> tuple[str, ...]:
    return tuple(version.tags.get(REASONS_TAG, "").splitlines())


def _tags(tracking: Tracking, name: str, number: str) -> dict[str, str]:
    tags: dict[str, str] = tracking.client.get_model_version(name, number).tags
    return tags


def _reload(tracking: Tracking, version: ModelVersion) -> ModelVersion:
    return tracking.client.get_model_version(version.name, str(version.version))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
