"""Help and wrong usage come without what the work needs; every argument says what it is."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro

from avpretrain.cli import main as cli
from avpretrain.cli.bench import SUBJECTS
from avpretrain.cli.shared import arguments

HEAVY = ("torch", "diffusers", "accelerate", "scipy", "torchaudio", "torchvision", "pandas", "av", "decord")
HELP = [[verb] for verb in cli.VERBS if verb != "bench"] + [["bench"]] + [["bench", subject] for subject in SUBJECTS]
FULL = [[verb, "tiny_mavil"] for verb in ("train", "flops", "ledger")]
FULL += [["bench", "loader", "tiny_mavil"], ["ablate", "ablation"]]
SHORT = [["bench"], *(line[:-1] for line in FULL)]
"""Verbs whose help lists only a part of what `FULL` does, or no argument."""
SCRIPT = """
import contextlib, io, json, sys
from avpretrain.cli.main import main
lines, heavy = json.loads(sys.argv[1])
found = []
for line in lines:
    before, out, code = set(sys.modules), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main(line)
        except SystemExit as stop:
            code = stop.code or 0
    found.append([code, out.getvalue(), [name for name in heavy if name in sys.modules and name not in before]])
print(json.dumps(found))
"""


def loaded(lines: list[list[str]], heavy: tuple[str, ...]) -> list[tuple[int, str, list[str]]]:
    """Exit status, output, and which modules were imported, for each command line, in turn in one process."""
    command = [sys.executable, "-c", SCRIPT, json.dumps([lines, heavy])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [tuple(row) for row in json.loads(done.stdout)]


def test_help_of_every_verb_imports_nothing_heavy() -> None:
    lines = [[*line, "--help"] for line in HELP + FULL]
    for line, (code, out, modules) in zip(lines, loaded(lines, HEAVY), strict=True):
        assert code == 0 and out.lstrip().startswith("usage: avpretrain"), (line, out)
        assert not modules, (line, modules)


def test_wrong_usage_imports_nothing_heavy() -> None:
    lines = [[*line, "--nonsense"] for line in HELP if line not in (["bench"],)]
    lines += [["train", "tiny_mavill"], ["flops", "tiny_mavil", "--model.widht", "3"], ["bench", "speed"], ["trian"]]
    for line, (code, out, modules) in zip(lines, loaded(lines, HEAVY), strict=True):
        assert code == 2 and out.startswith("avpretrain: ") and out.count("\n") == 1, (line, out)
        assert not modules, (line, modules)


def test_paths_that_lead_nowhere_import_nothing_heavy(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("model.safetensors", "config.json"):
        (model / name).touch()
    label, out = ["--label", "x"], ["--out", str(tmp_path / "o.npz")]
    verbs = {"probe": label, "finetune": label, "retrieve": [], "spectrum": [], "context": [], "inpaint": out}
    lines = [[verb, folder, "nowhere", *more] for verb, more in verbs.items() for folder in ("nowhere", str(model))]
    lines += [["embed", "nowhere", str(tmp_path), *out], ["export", "nowhere", str(tmp_path / "m")]]
    for line, (code, said, modules) in zip(lines, loaded(lines, HEAVY), strict=True):
        assert code == 1 and said.startswith("avpretrain: there is no nowhere"), (line, said)
        assert not modules, (line, modules)


def test_flops_import_what_they_count_with() -> None:
    heavy = ("diffusers", "scipy", "torchaudio", "av", "decord", "webdataset")
    ((code, out, modules),) = loaded([["flops", "tiny_diffmavil", "--json"]], heavy)
    assert code == 0 and json.loads(out)["config"] == "tiny_diffmavil"
    assert not modules


@pytest.mark.filterwarnings("ignore:get_parser")
@pytest.mark.parametrize("line", [line for line in HELP if line not in SHORT] + FULL, ids=" ".join)
def test_every_argument_has_help(line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the parser that the verb makes of its fields' docs."""
    bare: list[str] = []

    def look(target: Callable[..., Any], **given: Any) -> Any:
        known = {"default": given["default"]} if "default" in given else {}
        parser = tyro.extras.get_parser(target, **known)
        for action in parser._actions:
            text = str(action.help or "").split("(default:")[0].split("(required)")[0].split("(optional)")[0].strip()
            if not text:
                bare.append(" ".join(action.option_strings) or action.dest)
        raise SystemExit(0)

    monkeypatch.setattr(arguments.tyro, "cli", look)
    with contextlib.suppress(SystemExit):
        cli.run(line[0], [*line[1:], "--help"])
    assert not bare, bare
