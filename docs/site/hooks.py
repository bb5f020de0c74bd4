"""What the site needs that mkdocs does not do: pages and files from outside of docs/, and links to folders.

README.md becomes the first page; CONTRIBUTING.md, CHANGELOG.md, READMEs of packages and notebooks become pages. Any
other file of the repository that a page links to is copied to files/. A folder that is linked to becomes a page that
lists its files.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(\]\(\s*<?|^\[[^\]]+\]:\s*|(?:href|src)=\")([^)\s>\"]+)", re.MULTILINE)
CODE = re.compile(r"^( *)```.*?^\1```|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def place_of(source: str) -> str:
    """Where a file or folder of the repository stands in the site."""
    if source == "README.md":
        return "index.md"
    if (ROOT / source).is_dir():
        return f"{source.removeprefix('docs/')}/index.md"
    if source.startswith("docs/"):
        return source.removeprefix("docs/").replace(".ipynb", ".md")
    return source if source.endswith(".md") else f"files/{source}"


def source_of(place: str) -> str:
    """The file of the repository that a page of the site is made from."""
    if place == "index.md":
        return "README.md"
    if (ROOT / "docs" / place).with_suffix(".ipynb").is_file():
        return f"docs/{place.removesuffix('.md')}.ipynb"
    return place if (ROOT / place).is_file() else f"docs/{place}"


def on_config(config: Any) -> Any:
    """Pages that the navigation does not name stand at its end, so that none is forgotten."""
    named = set(re.findall(r"[\w./]+\.md", json.dumps(config.nav)))
    pages = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("avpretrain/**/README.md")])
    more = [place for page in pages if (place := place_of(str(page.relative_to(ROOT)))) not in named]
    config.nav += [{"Further": more}] if more else []
    return config


def on_files(files: Files, config: Any) -> Files:
    """Brings in what pages link to, and what pages brought in link to."""
    pages = [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        *(source_of(f.src_uri) for f in files.documentation_pages()),
        *(str(path.relative_to(ROOT)) for path in ROOT.glob("avpretrain/**/README.md")),
    ]
    done: set[str] = set()
    while pages:
        source = pages.pop()
        if source in done:
            continue
        done.add(source)
        place = place_of(source)
        path = ROOT / source
        text = path.read_text(encoding="utf-8") if path.suffix in (".md", ".ipynb") else ""
        if path.suffix == ".ipynb":
            text = cells(text)
            files.append(File.generated(config, place, content=text))
        elif not files.get_file_from_path(place):
            if path.is_dir():
                files.append(File.generated(config, place, content=listing(source)))
                pages += [f"{source}/{inner.name}" for inner in path.iterdir() if inner.is_dir()]
                continue
            files.append(File.generated(config, place, abs_src_path=str(path)))
        pages += linked(text, source)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they stand in the site; lists that follow a paragraph without an empty line get one."""
    source = source_of(page.file.src_uri)
    return apart(prose(markdown, lambda text: LINK.sub(lambda found: moved(found, source), text)))


def linked(markdown: str, source: str) -> list[str]:
    """Files and folders of the repository to which a page links."""
    found = [target_of(link, source)[0] for _, link in LINK.findall(CODE.sub("", markdown))]
    return [target for target in found if target and (ROOT / target).exists()]


def target_of(link: str, source: str) -> tuple[str, str]:
    """The path of a link from the repository's root, empty for links elsewhere, and its anchor."""
    path, _, anchor = link.partition("#")
    if not path or re.match(r"[a-z][a-z0-9+.-]*:", link):
        return "", anchor
    return os.path.normpath(PurePosixPath(source).parent / path), anchor


def moved(found: re.Match[str], source: str) -> str:
    """A link of a page as it stands in the site."""
    before, link = found.groups()
    target, anchor = target_of(link, source)
    if not target or not (ROOT / target).exists():
        return found.group()
    path = os.path.relpath(place_of(target), PurePosixPath(place_of(source)).parent)
    return f"{before}{path}#{anchor}" if anchor else before + path


def prose(markdown: str, change: Any) -> str:
    """A page with `change` made to what is no code."""
    parts, end = [], 0
    for code in CODE.finditer(markdown):
        parts += [change(markdown[end : code.start()]), code.group()]
        end = code.end()
    return "".join([*parts, change(markdown[end:])])


def apart(markdown: str) -> str:
    """An empty line before each list that begins right below a paragraph, as code hosts need none and mkdocs does."""
    lines: list[str] = []
    fenced = listed = False
    for line in markdown.split("\n"):
        item = re.match(r"([-*]|\d+\.) ", line)
        if item and lines and lines[-1].strip() and not listed and not fenced:
            lines.append("")
        fenced ^= line.lstrip().startswith("```")
        listed = bool(item) or (listed and bool(line.strip()))
        lines.append(line)
    return "\n".join(lines)


def listing(folder: str) -> str:
    """A page that names a folder's files."""
    names = sorted(path.name + "/" * path.is_dir() for path in (ROOT / folder).iterdir())
    rows = [f"- [{name}]({name}{'index.md' if name.endswith('/') else ''})" for name in names]
    return f"# {folder}\n\n" + "\n".join(rows) + "\n"


def cells(notebook: str) -> str:
    """A notebook as a page: its text, and its code in blocks."""
    parts = []
    for cell in json.loads(notebook)["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join(parts) + "\n"
