"""Every relative link of the documentation leads to a file that git holds, and every anchor to a heading."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]


def tracked() -> list[str]:
    """Files under git's care; none in a copy without history."""
    if not (ROOT / ".git").exists():
        return []
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name]


def targets(text: str) -> list[str]:
    """Where inline links, link definitions and HTML attributes of a page lead; code is no link."""
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"\]\(\s*<?([^)\s>]+)", prose)
    found += re.findall(r"^\[[^\]]+\]:\s*(\S+)", prose, flags=re.MULTILINE)
    return found + re.findall(r"(?:href|src)=\"([^\"]+)\"", prose)


def anchors(text: str) -> set[str]:
    """The names that a page's headings get, as code hosts form them."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    names: list[str] = []
    for heading in re.findall(r"^#{1,6} +(.+)$", text, flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        names.append(f"{name}-{names.count(name)}" if name in names else name)
    return set(names) | set(re.findall(r"(?:id|name)=\"([^\"]+)\"", text))


def broken(root: Path, files: list[str]) -> list[str]:
    """Links of the .md files among `files` (paths from `root`) that lead to none of them or to no heading."""
    known = set(files) | {str(folder) for name in files for folder in Path(name).parents}
    wrong = []
    for page in (name for name in files if name.endswith(".md")):
        for link in targets((root / page).read_text(encoding="utf-8")):
            if re.match(r"[a-z][a-z0-9+.-]*:", link):
                continue
            path, _, anchor = unquote(link).partition("#")
            to = os.path.normpath(Path(page).parent / path) if path else page
            if to not in known:
                wrong.append(f"{page}: {link}: git holds no such file")
            elif anchor and to.endswith(".md") and anchor not in anchors((root / to).read_text(encoding="utf-8")):
                wrong.append(f"{page}: {link}: no such heading")
    return wrong


def test_every_relative_link_leads_to_a_file_of_the_repository() -> None:
    files = tracked()
    if not files:
        pytest.skip("links are compared with the files that git holds, and this copy has no repository")
    assert sum(name.endswith(".md") for name in files) > 5
    assert broken(ROOT, files) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text(
        "# Two words: `x`!\n\n[here](#two-words-x) [up](../README.md#top) `[no](no)`\n"
    )
    (tmp_path / "README.md").write_text(
        "# Top\n[a](docs/a.md#two-words-x) [folder](docs) [web](https://example.org/x) [page](docs/a.md#three)\n"
        "[gone](docs/results/demo) ![image](<docs/b.png>)\n\n[ref]: docs/c.md\n```\n[code](nowhere)\n```\n"
    )
    (tmp_path / "docs" / "b.png").write_bytes(b"")  # on the disk, and not in git
    assert broken(tmp_path, ["README.md", "docs/a.md"]) == [
        "README.md: docs/a.md#three: no such heading",
        "README.md: docs/results/demo: git holds no such file",
        "README.md: docs/b.png: git holds no such file",
        "README.md: docs/c.md: git holds no such file",
    ]
