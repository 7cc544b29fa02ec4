"""Who is in charge: take the gate's decision on a version, keep it, and move the aliases.

The champion's alias is the one truth about who serves. It moves last: a crash before it leaves
the old champion in charge, and the next run takes up what was interrupted. A decision is taken
freely, which may need minutes, and written under the registry's lease if the champion that it
rests on is still in charge.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from mlflow.entities.model_registry import ModelVersion

from firstkd.errors import PipelineError
from firstkd.settings import Settings
from flows.gate import Evidence, Verdict, answered_alike, decide
from flows.lease import registry_lease
from flows.registry import NOT_REPRODUCIBLE_TAG, aliases, load_evidence, run_of, versions
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
"""The champions before a version, the latest first: what `rollback` goes back to."""


def promote(
    workspace: Workspace, settings: Settings, tracking: Tracking, version: ModelVersion
) -> Verdict:
    """Let a version through the gate and put it in charge if it passes, as every retraining does.

    A decision that still stands is not taken again.
    """
    return standing(settings, tracking, _reload(tracking, version)) or _decide_and_move(
        workspace, settings, tracking, version, compared=True, anew=False
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
    return _decide_and_move(workspace, settings, tracking, version, compared, anew=True)


def judge(
    workspace: Workspace,
    settings: Settings,
    tracking: Tracking,
    version: ModelVersion,
    compared: bool,
) -> Verdict:
    """Return what the gate says of a version now; nothing is written."""
    return _decide(workspace, settings, tracking, version, compared).verdict


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


def rollback(settings: Settings, tracking: Tracking) -> tuple[str, str]:
    """Put the champion's predecessor back in charge; return both numbers, old and new.

    The one that leaves is marked, so that the next retraining does not promote it again. Raises
    PipelineError when there is nothing to go back to.
    """
    name, client = settings.record.registered_model, tracking.client
    with registry_lease(tracking, name) as check:
        old = aliases(tracking, name).get(CHAMPION)
        if old is None:
            raise PipelineError(f"{name} has no champion to roll back")
        target = _predecessor(tracking, name, old)
        if target is None:
            raise PipelineError(
                f"{name} v{old} has no predecessor to go back to: `firstkd history` shows all"
            )
        words = f"it was rolled back to v{target} on {_now()}"
        check()
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
    anew: bool,
) -> Verdict:
    """Decide, and write it; `anew`, whatever may have been decided before or meanwhile."""
    while True:
        decision = _decide(workspace, settings, tracking, _reload(tracking, version), compared)
        with registry_lease(tracking, version.name) as check:
            version = _reload(tracking, version)
            if not anew and (found := standing(settings, tracking, version)):
                return found  # by another workspace, meanwhile
            champion = aliases(tracking, version.name).get(CHAMPION)
            if decision.basis != _basis(settings, version, champion):
                continue  # a promotion, a rollback or a commit came in between
            check()
            if champion == str(version.version):
                return _stay(tracking, version)
            _write(tracking, version, decision, check)
            return decision.verdict


def _stay(tracking: Tracking, version: ModelVersion) -> Verdict:
    """Finish what was interrupted, if anything was, after the alias had moved to this version."""
    name, number, client = version.name, str(version.version), tracking.client
    _point_previous(tracking, name, _predecessor(tracking, name, number))
    if version.tags.get(DECISION_TAG) == "rolled back":
        words = "its rollback was interrupted before it began: it stayed in charge"
        client.set_model_version_tag(name, number, REASONS_TAG, words)
    client.set_model_version_tag(name, number, DECISION_TAG, "promoted")
    return _in_charge(_reload(tracking, version))


@dataclass(frozen=True)
class _Decision:
    verdict: Verdict
    champion: str | None
    """Who was in charge when it was taken."""
    basis: str
    record: dict[str, object]


def _decide(
    workspace: Workspace,
    settings: Settings,
    tracking: Tracking,
    version: ModelVersion,
    compared: bool,
) -> _Decision:
    champion = aliases(tracking, version.name).get(CHAMPION)
    basis = _basis(settings, version, champion)
    if champion == str(version.version):
        return _Decision(_in_charge(version), champion, basis, {})
    challenger, against = load_evidence(tracking, version), None
    if champion and compared:
        against = _champion(workspace, tracking, version.name, champion, challenger)
    verdict = decide(challenger, against, settings.promote)
    record = {
        "challenger": _record_of(challenger),
        "champion": _record_of(against) if against else None,
        "limits": settings.promote.model_dump(),
        "passed": verdict.passed,
        **asdict(verdict),
    }
    return _Decision(verdict, champion, basis, record)


def _write(
    tracking: Tracking, version: ModelVersion, decision: _Decision, check: Callable[[], None]
) -> None:
    name, number, client = version.name, str(version.version), tracking.client
    verdict, champion, now = decision.verdict, decision.champion, _now()
    file = f"promotion/version-{number}/{now.replace(':', '')}.json"
    client.log_dict(run_of(version), {**decision.record, "decided_at": now}, file)
    tags = {REASONS_TAG: "\n".join(verdict.reasons), BASIS_TAG: decision.basis, TIME_TAG: now}
    if verdict.passed and champion:
        earlier = [champion, *_replaced(_tags(tracking, name, champion))]
        tags[REPLACED_TAG] = " ".join(other for other in earlier if other != number)
    if DECISION_TAG in version.tags:
        client.delete_model_version_tag(name, number, DECISION_TAG)
    for key, value in tags.items():
        client.set_model_version_tag(name, number, key, value)
    check()
    if verdict.passed:
        client.set_registered_model_alias(name, CHAMPION, number)
        _point_previous(tracking, name, champion)
    client.set_model_version_tag(name, number, DECISION_TAG, verdict.outcome)


def _champion(
    workspace: Workspace, tracking: Tracking, name: str, number: str, challenger: Evidence
) -> Evidence:
    """Return the champion's evidence on the challenger's questions, if need be measured anew."""
    version = tracking.client.get_model_version(name, number)
    recorded = load_evidence(tracking, version)
    if answered_alike(challenger, recorded) or not holds_questions(workspace, challenger):
        return recorded
    return measure_again(workspace, tracking, version, recorded)


def _record_of(evidence: Evidence) -> dict[str, object]:
    return {
        "version": evidence.version,
        "sets": evidence.sets,
        "measured_anew": evidence.measured_anew,
    }


def _predecessor(tracking: Tracking, name: str, number: str) -> str | None:
    """Return the champion before a version, passing over those rolled back or deleted since."""
    tags = {str(version.version): version.tags for version in versions(tracking, name)}
    for earlier in _replaced(tags[number]):
        if earlier in tags and tags[earlier].get(DECISION_TAG) != "rolled back":
            return earlier
    return None


def _replaced(tags: Mapping[str, str]) -> list[str]:
    return tags.get(REPLACED_TAG, "").split()


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
