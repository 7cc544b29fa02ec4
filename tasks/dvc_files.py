"""What DVC says about its own files when it cannot read them, and how to repair each."""

import re
from pathlib import Path

from ruamel.yaml import YAML

from firstkd.errors import ArtifactError

BROKEN = re.compile(r"'(?:\./)?(dvc\.lock|dvc\.yaml)' (is invalid|validation failed)")
MENDED = {
    "dvc.lock": "delete it: `firstkd run` takes from DVC's cache what it has made before",
    "dvc.yaml": "`firstkd graph` writes it from params.yaml",
}
GONE = re.compile(r"No such file or directory: '([^']+)'")


def check_readable(root: Path, dvc_says: str) -> None:
    """Raise ArtifactError, saying what to do, if DVC complains about such a file."""
    if broken := BROKEN.search(dvc_says):
        name, problem = broken.groups()
        raise ArtifactError(
            f"{root / name} {problem}, perhaps by a merge that left conflicts; {MENDED[name]}"
        )
    if (gone := GONE.search(dvc_says)) and Path(gone[1]).is_symlink():
        raise ArtifactError(
            f"{gone[1]} is a link to a file that is not there, as DVC's links are when a project "
            "was moved; `dvc checkout --relink --force` remakes all links"
        )


def outputs(lock: Path) -> dict[str, str]:
    """Return the hash of each output in a dvc.lock."""
    stages = YAML(typ="safe", pure=True).load(lock)["stages"].values()
    return {out["path"]: out["md5"] for stage in stages for out in stage.get("outs", [])}
