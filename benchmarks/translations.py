"""A small real set of translations: Django's own messages, English and French (BSD-3-Clause).

They are read from the catalogues in Django's wheel, so they come from a pinned, published package,
as the other data do. One-word messages, many of which are date formats, and messages that are the
same in both languages are left out. A message in several catalogues counts once.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from babel.messages.mofile import read_mo

from firstkd.files import atomic_file

DJANGO = "Django==5.2"
CATALOGUES = "locale/fr/LC_MESSAGES/"


def write_translations(path: Path) -> None:
    """Download the wheel and write one JSON line per message: `english`, `french`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", folder, DJANGO]
        subprocess.run(command, check=True)
        [wheel] = Path(folder).glob("*.whl")
        pairs = dict(translations(wheel))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        lines = (
            json.dumps({"english": english, "french": french}, ensure_ascii=False) + "\n"
            for english, french in pairs.items()
        )
        temporary.write_text("".join(lines), encoding="utf-8")


def translations(wheel: Path) -> Iterator[tuple[str, str]]:
    """Yield the messages of each catalogue; one in several catalogues appears several times."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if CATALOGUES in name and name.endswith(".mo"):
                with archive.open(name) as file:
                    for message in read_mo(file):
                        english, french = message.id, message.string
                        if not (isinstance(english, str) and isinstance(french, str)):
                            continue  # it has plurals
                        if len(english.split()) > 1 and french and french != english:
                            yield english, french
