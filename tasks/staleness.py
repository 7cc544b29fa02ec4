"""Why a stage would run: what DVC says has changed, in words, and which stages it waits for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any


@dataclass(frozen=True)
class StageState:
    name: str
    why: list[str]
    """What changed since it last ran; empty if it is up to date or only waits."""
    waits_for: list[str]
    """Stale stages whose outputs it reads."""

    @property
    def in_a_word(self) -> str:
        return "stale" if self.why else "waits" if self.waits_for else "up to date"


def stage_states(
    names: Sequence[str],
    changed: Mapping[str, Any],
    lock: Mapping[str, Any],
    params: Mapping[str, Any],
) -> list[StageState]:
    """Return the state of each stage from `dvc status --json`, dvc.lock and params.yaml."""
    why = {
        name: list(explain(found, lock.get(name, {}).get("params", {}), params))
        for name, found in changed.items()
    }
    waits = waiting(lock, list(why))
    return [StageState(name, why.get(name, []), waits.get(name, [])) for name in names]


def explain(
    changes: list[Any], before: Mapping[str, Any], params: Mapping[str, Any]
) -> Iterator[str]:
    """Put what `dvc status --json` says about a stage into words.

    DVC names whole sections of params.yaml; comparing the settings that the stage last ran with
    (`before`, from dvc.lock) with the current ones shows which keys differ.
    """
    for change in changes:
        if isinstance(change, str):  # "changed command", "always changed"
            yield change
            continue
        for path, how in (item for what in change.values() for item in what.items()):
            if isinstance(how, str):
                yield f"{path} {how}"
                continue
            for section, state in how.items():
                now: Any = params
                for name in section.split("."):
                    now = now.get(name) if isinstance(now, dict) else None
                found = list(differences(before.get(path, {}).get(section), now, section))
                yield from (f"{path}: {words}" for words in found or [f"{section} {state}"])


def differences(before: Any, now: Any, key: str) -> Iterator[str]:
    """Yield `key before → now` for each key in which two settings differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in [*before, *(name for name in now if name not in before)]:
            yield from differences(before.get(name), now.get(name), f"{key}.{name}")
    elif before != now:
        yield f"{key} {before} → {now}"


def waiting(lock: Mapping[str, Any], stale: list[str]) -> dict[str, list[str]]:
    """Return for each stage the stale ones that it depends on, directly or through others."""

    def reads(reader: str, maker: str) -> bool:
        deps = [PurePosixPath(dep["path"]) for dep in lock[reader].get("deps", [])]
        outs = [PurePosixPath(out["path"]) for out in lock[maker].get("outs", [])]
        return any(d.is_relative_to(o) or o.is_relative_to(d) for d in deps for o in outs)

    direct = {name: {other for other in lock if reads(name, other)} - {name} for name in lock}

    def upstream(name: str) -> set[str]:
        return direct[name].union(*map(upstream, direct[name]))

    return {name: [other for other in stale if other in upstream(name)] for name in lock}
