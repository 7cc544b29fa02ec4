"""Explain what is wrong with a settings file, in one line that names the key."""

from pathlib import Path
from typing import Any

from ruamel.yaml.error import MarkedYAMLError


def not_yaml(path: Path, error: MarkedYAMLError) -> str:
    """Condense an error of ruamel, which counts lines from 0, to one line."""
    mark = error.problem_mark or error.context_mark
    line = f", line {mark.line + 1}" if mark else ""
    hint = "; indent with spaces" if "\\t" in str(error.problem) else ""
    return f"{path}{line}: not valid YAML: {error.problem or error.context}{hint}"


def explain(path: Path, values: Any, problem: Any) -> str:
    key = _key(values, problem["loc"], problem["type"] == "missing")
    if problem["type"] == "missing":
        return f"{path}: {key}: missing"
    if problem["input"] is None and problem["type"] in ("model_type", "dict_type"):
        return f"{path}: {key}: empty; write its keys below it, indented, or {{}} if it has none"
    if problem["type"] == "value_error":
        message = str(problem["ctx"]["error"])
        return f"{path}: {key}: {message}" if key else f"{path}: {message}"
    if problem["type"] == "union_tag_invalid":
        found, allowed = problem["ctx"]["tag"], problem["ctx"]["expected_tags"]
        return f"{path}: {key}.kind: {found!r} is not allowed; allowed: {allowed}"
    if problem["type"] == "union_tag_not_found":
        return f"{path}: {key}.kind: missing"
    return f"{path}: {key}: {problem['input']!r} is not allowed: {problem['msg']}"


def _key(values: Any, location: tuple[int | str, ...], is_missing: bool) -> str:
    """Return the dotted key of an error in params.yaml.

    Between the keys or at the end, Pydantic also names the alternative of a union that it tried:
    it is not a key there, or it is the section's `kind` before a key of the same name.
    """
    key: list[str] = []
    found, kind = values, None
    for place, part in enumerate(location):
        if not isinstance(found, dict | list):
            break
        lacks_it = is_missing and place == len(location) - 1
        is_key = isinstance(part, int) if isinstance(found, list) else part in found or lacks_it
        if part == kind or not is_key:
            kind = None
            continue
        key.append(str(part))
        try:
            found = found[part]  # type: ignore[index]
        except (KeyError, IndexError):
            found = None
        kind = found.get("kind") if isinstance(found, dict) else None
    return ".".join(key)
