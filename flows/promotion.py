"""Promotion: take the gate's decision on a version, record it and move the champion alias.

The champion alias alone says which version serves. It moves once the reasons are written: a crash
before that leaves the old champion in charge, and the next run finishes what was interrupted. A
decision is made without a lock, since it may take minutes, and written under the registry lock if
the champion that it rests on is still in charge.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from mlflow.entities.model_registry import ModelVersion

from firstkd.errors import PipelineError
from flows.lock import registry_lock
from flows.project import Project
from flows.registry import (
    NOT_REPRODUCIBLE_TAG,
    RECALIBRATES_TAG,
    aliases,
    load_evidence,
    run_of,
    versions,
)
from flows.remeasure import holds_questions, measure_again
from tasks.evidence import Evidence
from tasks.gate import Verdict, answered_alike, decide

CHAMPION = "champion"
DECISION_TAG = "decision"
"""`promoted`, `rejected` or `rolled back`. Set last, and removed before any part of a new decision
is written; the gate decides again on a version without it."""
REASONS_TAG = "decision_reasons"
BASIS_TAG = "decision_basis"
"""What the decision rests on: with another champion or other limits the gate decides again."""
TIME_TAG = "decided_at"
REPLACED_TAG = "replaced"
"""The champions before a version, latest first; `rollback` goes back to one of them."""


def promote(
    project: Project, version: ModelVersion, compared: bool = True, again: bool = False
) -> Verdict:
    """Run a version through the gate and put it in charge if it passes.

    A decision that still stands is kept, unless `again`. Unless `compared`, only the limits on the
    version itself apply: the way out if the champion was tested on other questions and cannot be
    measured on these.
    """
    number = str(version.version)
    while True:
        version = _reload(project, version)
        if not again and (found := standing(project, version)):
            return found
        champion = aliases(project).get(CHAMPION)
        basis = _basis(project, version, champion)
        verdict, kept = judge(project, version, champion if compared else None)
        with registry_lock(project.tracking, project.model):
            version = _reload(project, version)
            if basis != _basis(project, version, aliases(project).get(CHAMPION)):
                continue  # a promotion, a rollback or a commit came in between
            if champion == number:
                return _stay(project, version)
            _write(project, version, verdict, champion, {**kept, "basis": basis})
            return verdict


def standing(project: Project, version: ModelVersion) -> Verdict | None:
    """Return the decision on a version if it still stands, else None."""
    decision, reasons = version.tags.get(DECISION_TAG), _reasons(version)
    champion = aliases(project).get(CHAMPION)
    if champion == str(version.version):
        return Verdict("in charge", reasons) if decision == "promoted" else None
    way = f"`firstkd promote --version {version.version}` puts it through the gate again"
    if champion:
        current = project.client.get_model_version(version.name, champion)
        if current.tags.get(RECALIBRATES_TAG) == str(version.version):
            return Verdict("in charge", (f"v{champion} is v{version.version}, recalibrated",))
        if decision == "promoted":  # else two projects' unchanged runs would replace each other
            return Verdict("replaced", (f"v{champion} has replaced it", way))
    if decision == "rolled back":
        return Verdict("rolled back", (*reasons, way))
    if decision == "rejected" and version.tags[BASIS_TAG] == _basis(project, version, champion):
        return Verdict("rejected", reasons)
    return None


def judge(
    project: Project, version: ModelVersion, champion: str | None
) -> tuple[Verdict, dict[str, Any]]:
    """Return the gate's verdict on a version against a champion, and what it rests on.

    Nothing is written.
    """
    if champion == str(version.version):
        return Verdict("in charge", _reasons(version)), {}
    challenger, against = load_evidence(project.tracking, version), None
    if champion:
        current = project.client.get_model_version(version.name, champion)
        against = load_evidence(project.tracking, current)
        if not answered_alike(challenger, against) and holds_questions(project, challenger):
            against = measure_again(project, current, against)
    verdict = decide(challenger, against, project.settings.promote)
    kept = {
        "challenger": _kept(challenger),
        "champion": _kept(against) if against else None,
        "limits": project.settings.promote.model_dump(),
        "passed": verdict.passed,
        **asdict(verdict),
    }
    return verdict, kept


def _kept(evidence: Evidence) -> dict[str, Any]:
    return {name: getattr(evidence, name) for name in ("version", "sets", "measured_anew")}


def rollback(project: Project) -> tuple[str, str]:
    """Put the champion's predecessor back in charge; return both numbers, old and new.

    The old champion is marked so that the next retraining does not promote it again. Raises
    PipelineError if there is nothing to go back to.
    """
    name, client = project.model, project.client
    with registry_lock(project.tracking, name):
        old = aliases(project).get(CHAMPION)
        if old is None:
            raise PipelineError(f"{name} has no champion to roll back")
        target = _predecessor(project, old)
        if target is None:
            raise PipelineError(
                f"{name} v{old} has no predecessor to go back to; see `firstkd history`"
            )
        words = f"it was rolled back to v{target} on {_now()}"
        client.set_model_version_tag(name, old, REASONS_TAG, words)
        client.set_model_version_tag(name, old, DECISION_TAG, "rolled back")
        client.set_registered_model_alias(name, CHAMPION, target)
    return old, target


def _write(
    project: Project,
    version: ModelVersion,
    verdict: Verdict,
    champion: str | None,
    kept: dict[str, Any],
) -> None:
    name, number, client, now = version.name, str(version.version), project.client, _now()
    file = f"promotion/version-{number}/{now.replace(':', '')}.json"
    client.log_dict(run_of(version), {**kept, "decided_at": now}, file)
    # refused again, a version that was rolled back stays out
    stays_out = version.tags.get(DECISION_TAG) == "rolled back" and not verdict.passed
    reasons = "\n".join([*(_reasons(version)[:1] if stays_out else []), *verdict.reasons])
    tags = {REASONS_TAG: reasons, BASIS_TAG: kept["basis"], TIME_TAG: now}
    if verdict.passed and champion:
        before = client.get_model_version(name, champion).tags
        earlier = [champion, *_replaced(before)]
        tags[REPLACED_TAG] = " ".join(other for other in earlier if other != number)
    if DECISION_TAG in version.tags and not stays_out:
        client.delete_model_version_tag(name, number, DECISION_TAG)
    for key, value in tags.items():
        client.set_model_version_tag(name, number, key, value)
    if verdict.passed:
        client.set_registered_model_alias(name, CHAMPION, number)
    if not stays_out:
        client.set_model_version_tag(name, number, DECISION_TAG, verdict.outcome)


def _stay(project: Project, version: ModelVersion) -> Verdict:
    """Finish any decision that was interrupted while this version held the champion alias."""
    name, number, client = version.name, str(version.version), project.client
    if version.tags.get(DECISION_TAG) == "rolled back":
        words = "its rollback was interrupted before it took effect; it stayed in charge"
        client.set_model_version_tag(name, number, REASONS_TAG, words)
    client.set_model_version_tag(name, number, DECISION_TAG, "promoted")
    return Verdict("in charge", _reasons(_reload(project, version)))


def _predecessor(project: Project, number: str) -> str | None:
    """Return the champion before a version, skipping those since rolled back or deleted."""
    tags = {str(version.version): version.tags for version in versions(project)}
    for earlier in _replaced(tags[number]):
        if earlier in tags and tags[earlier].get(DECISION_TAG) != "rolled back":
            return earlier
    return None


def _replaced(tags: Mapping[str, str]) -> list[str]:
    return tags.get(REPLACED_TAG, "").split()


def _basis(project: Project, version: ModelVersion, champion: str | None) -> str:
    basis = {
        "limits": project.settings.promote.model_dump(),
        "champion": champion,
        "not_reproducible": version.tags.get(NOT_REPRODUCIBLE_TAG),
    }
    return json.dumps(basis, sort_keys=True)


def _reasons(version: ModelVersion) -> tuple[str, ...]:
    return tuple(version.tags.get(REASONS_TAG, "").splitlines())


def _reload(project: Project, version: ModelVersion) -> ModelVersion:
    return project.client.get_model_version(version.name, str(version.version))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
