"""What DVC says about its own files when it cannot read them, and how to repair each."""

import re
from pathlib import Path

from ruamel.yaml import YAML

from firstkd.errors import ArtifactError

BROKEN = re.compile(r"'(?:\./)?(dvc\.lock|dvc\.yaml)' (is invalid|validation failed)")
MENDED = {
    "dvc.lock": "delete it, and `firstkd run` restores earlier results from DVC's cache",
    "dvc.yaml": "`firstkd graph` rewrites it from params.yaml",
}
GONE = re.compile(r"No such file or directory: '([^']+)'")


def check_readable(root: Path, dvc_says: str) -> None:
    """Raise ArtifactError, saying what to do, if DVC complains about such a file."""
    if broken := BROKEN.search(dvc_says):
        name, problem = broken.groups()
        raise ArtifactError(
            f"{root / name} {problem}, perhaps because a merge left conflicts; {MENDED[name]}"
        )
    if (gone := GONE.search(dvc_says)) and Path(gone[1]).is_symlink():
        raise ArtifactError(
            f"{gone[1]} is a broken link, as DVC's links are after a project is moved; "
            "`dvc checkout --relink --force` recreates them all"
        )


def outputs(lock: Path) -> dict[str, str]:
    """Return the hash of each output in a dvc.lock."""
    stages = YAML(typ="safe", pure=True).load(lock)["stages"].values()
    return {out["path"]: out["md5"] for stage in stages for out in stage.get("outs", [])}
