"""What the documentation shows is so: commands that the verbs take, Python that imports, files and names that exist."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from avpretrain.cli.bench import SUBJECTS
from avpretrain.cli.main import VERBS, run
from avpretrain.cli.shared import arguments
from avpretrain.config.reader import find_config, presets

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("avpretrain/**/*.md")]
    if "results" not in path.parts
)
PAST = ("CHANGELOG.md", "EXPERIMENTS.md")
"""Pages that speak of what was; commands and files in them need not exist any more."""
STANDS_FOR = {"CONFIG": "tiny_diffmavil", "PRESET": "tiny_diffmavil", "MATRIX": "ablation", "RECIPE": "small"}
"""Placeholders whose value decides what a verb accepts."""
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def fenced(text: str, *languages: str) -> list[str]:
    """Code blocks of a page in one of the languages; "" = none is named."""
    return [block for _, language, block in FENCE.findall(text) if language in languages]


def shell_blocks(text: str) -> list[str]:
    """Blocks that may hold command lines, indented ones too."""
    indented = re.findall(r"(?:(?:^ {4}\S.*\n)+)", FENCE.sub("", text), re.MULTILINE)
    return [*fenced(text, "", "sh", "bash", "shell"), *indented]


def commands(text: str) -> Iterator[list[str]]:
    """The words of every avpretrain command of a page: optional parts taken, the first of alternatives chosen."""
    lines = [line for block in shell_blocks(text) for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    lines += re.findall(r"`(avpretrain [^`\n]+)`", FENCE.sub("", text))
    for line in lines:
        line = re.sub(r"\[([\w. ]* )?\.\.\.\]|\[(?:its options|--section.field VALUE \.\.\.)\]", "", line)
        for part in line.split("&&"):
            found = re.search(r"^\s*avpretrain (.*)|-m avpretrain[ .](.*)", part)
            if not found:
                continue
            rest = (found.group(1) or found.group(2)).replace("[", "").replace("]", "").rstrip("'")
            words = [word.split("|")[0] for word in shlex.split(rest, comments=True)]
            if "..." not in words and words[0] not in ("--help", "--version"):
                yield [STANDS_FOR.get(word, word) for word in words]


class ParsedError(BaseException):
    """The command line was understood; nothing is run."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = arguments.tyro.cli

    def parse(*given: Any, **named: Any) -> Any:
        cli(*given, **named)
        raise ParsedError

    monkeypatch.setattr(arguments.tyro, "cli", parse)


def shape(words: list[str]) -> tuple[str, ...]:
    """What a verb makes of a command apart from the values of its options: those of one shape are parsed once."""
    verb, first, options = words[0], words[1] if words[1:] else "", sorted({w for w in words if w.startswith("--")})
    if first in presets():  # which preset it is makes no difference, but its schema does
        return (verb, str(find_config(first).parent), *options)
    return (verb, first, *options, str(len(words)))


def shown() -> list[tuple[str, list[str]]]:
    """Page and command, the first of each shape."""
    pages = (page for page in PAGES if page.name not in PAST)
    found = [(name_of(page), words) for page in pages for words in commands(page.read_text("utf-8"))]
    return list({shape(words): (page, words) for page, words in reversed(found)}.values())


def test_commands_are_found() -> None:
    """A lower bound, so that a change of the pages' form does not end in nothing checked."""
    assert len(shown()) > 50
    text = (
        "```\navpretrain probe RUN DATA \\\n  --label class  # why\n```\n\n    avpretrain train CONFIG [--a 1|2] [...]"
    )
    text += "\n"
    found = [["probe", "RUN", "DATA", "--label", "class"], ["train", "tiny_diffmavil", "--a", "1"]]
    assert list(commands(text)) == found


@pytest.mark.usefixtures("parse_only")
def test_verbs_take_the_commands_that_pages_show() -> None:
    wrong = []
    for page, (verb, *rest) in shown():
        if not rest or (verb == "bench" and len(rest) == 1):  # the name of a verb, in a sentence
            if verb not in VERBS or (rest and rest[0] not in SUBJECTS):
                wrong.append(f"{page}: {verb} {' '.join(rest)}: there is no such verb")
            continue
        try:
            run(verb, rest)
        except ParsedError:
            continue
        except SystemExit as stop:  # --help
            assert not stop.code
        except Exception as error:
            wrong.append(f"{page}: {verb} {' '.join(rest)}: {error}")
    assert wrong == []


@pytest.mark.usefixtures("parse_only")
def test_a_command_that_no_verb_takes_is_noticed() -> None:
    with pytest.raises(Exception, match="no option --labels"):
        run("probe", ["RUN", "DATA", "--label", "class", "--labels", "x"])


def missing_names(code: str) -> list[str]:
    """Names of avpretrain that code imports or reaches through what it imported, and that do not exist."""
    missing, known = [], dict[str, ModuleType]()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("avpretrain"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                value = getattr(module, alias.name, None)
                if value is None and hasattr(module, "__path__") and find_spec(f"{node.module}.{alias.name}"):
                    value = importlib.import_module(f"{node.module}.{alias.name}")
                if value is None:
                    missing.append(f"{node.module}.{alias.name}")
                elif isinstance(value, ModuleType):
                    known[alias.asname or alias.name] = value
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in known:
            module = known[node.value.id]
            missing += [] if hasattr(module, node.attr) else [f"{module.__name__}.{node.attr}"]
    return missing


def test_python_blocks_import_what_exists() -> None:
    blocks = {(name_of(page), block) for page in PAGES for block in fenced(page.read_text("utf-8"), "python")}
    assert len(blocks) >= 3
    assert [(page, names) for page, block in blocks if (names := missing_names(block))] == []
    assert missing_names("from avpretrain import hear\nfrom avpretrain.api import tran\nhear.load()") == [
        "avpretrain.api.tran",
        "avpretrain.hear.load",
    ]


def missing_files(text: str, folder: Path) -> list[str]:
    """Files of the repository that a page names in code and that are not there; capitals are placeholders."""
    known = {path.name for path in ROOT.glob("tests/**/*.py")}
    missing = []
    for named in re.findall(r"`([a-z][\w./-]*\.(?:py|yaml|toml))`", FENCE.sub("", text)):
        if re.search(r"[A-Z]", named) or ("/" not in named and named not in known):
            if named.startswith("test_") and named not in known:
                missing.append(named)
            continue
        places = (ROOT, ROOT / "avpretrain", folder, ROOT / "tests")
        if "/" in named and not any((place / named).is_file() for place in places):
            missing.append(named)
    return missing


def test_files_that_pages_name_are_there() -> None:
    found = {name_of(p): missing_files(p.read_text("utf-8"), p.parent) for p in PAGES if p.name not in PAST}
    assert {page: names for page, names in found.items() if names} == {}
    text = "`nn/tower.py` `test_links.py` `nn/none.py` `test_gone.py` `methods/NAME/config.py` `config.yaml`"
    assert missing_files(text, ROOT) == ["nn/none.py", "test_gone.py"]


def reference() -> list[tuple[str, str, list[str]]]:
    """Page, module and its listed members (none = what its `__all__` says) of the API reference."""
    found = []
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        for module, options in re.findall(r"^::: (\S+)\n((?:    .*\n)*)", page.read_text("utf-8"), re.MULTILINE):
            listed = (yaml.safe_load(options) or {}).get("options", {}).get("members", [])
            found.append((page.name, module, listed))
    return found


def test_the_reference_lists_what_exists_and_has_a_docstring() -> None:
    bare, entries = [], reference()
    assert len(entries) > 30
    for page, name, members in entries:
        module = importlib.import_module(name)
        for member in members or module.__all__:
            value = getattr(module, member)
            if inspect.isclass(value) or inspect.isfunction(value):
                doc = value.__doc__ or ""
                bare += [f"{page}: {name}.{member}"] if not doc or doc.startswith(f"{member}(") else []
    assert bare == []


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Links, anchors and folders of every page, and the docstrings of the reference."""
    pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed")
    pytest.importorskip("mkdocstrings_handlers.python", reason="the extra 'docs' is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    start = (tmp_path / "site" / "index.html").read_text("utf-8")
    assert 'href="TRAINING.html"' in start and 'src="images/reconstruction.png"' in start
    calls = (tmp_path / "site" / "reference" / "calls.html").read_text("utf-8")
    assert 'id="avpretrain.api.train"' in calls and 'id="avpretrain.api._sharded"' not in calls
