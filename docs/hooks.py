"""Bring into the site what lies outside docs/, and let links between the two lead within the site.

README and the pages of infra/ become pages, an example is a page with its file, and each package of
firstkd/ a page made of its docstrings. A link to any other file stays as its text.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    **{name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")},
    **{f"infra/{path.name}": f"infra/{path.name}" for path in (ROOT / "infra").glob("*.md")},
}
"""Files of the repository, and the pages that they are."""
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
PACKAGES = sorted(path.parent for path in (ROOT / "firstkd").rglob("__init__.py"))
LINK = re.compile(r"(!?)\[((?:[^][]|\[[^]]*\])*)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def on_config(config: Any) -> Any:
    """List the pages that are made here."""
    made = {
        "Recipes": [f"examples/{example.stem}.md" for example in EXAMPLES],
        "Reference": [_reference(package) for package in PACKAGES],
    }
    config.nav = [
        {title: made.get(title, pages)} for entry in config.nav for title, pages in entry.items()
    ]
    return config


def on_files(files: Any, config: Any) -> Any:
    for source, page in PAGES.items():
        _add(files, config, page, (ROOT / source).read_text(encoding="utf-8"))
    for example in EXAMPLES:
        _add(files, config, f"examples/{example.stem}.md", _of_example(example))
    for package in PACKAGES:
        _add(files, config, _reference(package), _of_package(package))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    own = {site: source for source, site in PAGES.items()}
    place = page.file.src_uri
    folder = (ROOT / own.get(place, f"docs/{place}")).parent

    def within(link: re.Match[str]) -> str:
        image, text, target, anchor = link.groups()
        path = Path(os.path.normpath(folder / target)).relative_to(ROOT)
        site = _page_of(path)
        if site is None:
            return text
        return f"{image}[{text}]({os.path.relpath(site, Path(place).parent)}{anchor or ''})"

    return LINK.sub(within, markdown)


def _page_of(path: Path) -> str | None:
    """Return where a file or folder of the repository is in the site."""
    if path.as_posix() in PAGES:
        return PAGES[path.as_posix()]
    if path.parts[0] == "docs":
        return path.relative_to("docs").as_posix()
    if path.parts[0] == "examples":
        return f"examples/{path.stem}.md" if path.suffix else "examples/another-student.md"
    if path.parts[0] == "firstkd":
        return _reference(ROOT / (path.parent if path.suffix else path))
    return None


def _add(files: Any, config: Any, page: str, text: str) -> None:
    files.append(File.generated(config, page, content=text))


def _of_example(example: Path) -> str:
    title = example.stem.replace("-", " ").capitalize()
    return f"# {title}\n\n```yaml\n{example.read_text(encoding='utf-8')}```\n"


def _reference(package: Path) -> str:
    return f"reference/{'.'.join(package.relative_to(ROOT).parts)}.md"


def _of_package(package: Path) -> str:
    name = ".".join(package.relative_to(ROOT).parts)
    modules = sorted(path.stem for path in package.glob("*.py") if path.stem != "__init__")
    return "\n\n".join([f"# {name}", *(f"::: {name}.{module}" for module in modules)]) + "\n"
