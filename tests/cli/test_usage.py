"""Every verb, told something wrong: one line that says what to do, exit status 1 or 2, and nothing written.

The verbs and their options are taken from the command line itself; `COMMANDS` says what a complete command looks like,
and each of its places gets what does not belong there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from avpretrain.cli.bench import SUBJECTS
from avpretrain.cli.main import VERBS, main
from avpretrain.data.text.tokenizer import train_tokenizer
from avpretrain.methods.diffmavil.model import DiffMAViL
from avpretrain.methods.openelm.config import LanguageModelConfig
from avpretrain.methods.openelm.model import LanguageModel, save_pretrained
from avpretrain.methods.speaker.method import Speaker
from tests.support.tiny_datasets import Spec, make_dataset
from tests.support.tiny_models import tiny
from tests.support.tracks import track_config

NAMES = [*(verb for verb in VERBS if verb != "bench"), *(f"bench {subject}" for subject in SUBJECTS)]

COMMANDS = {
    "demo": "@out_folder",
    "synth": "@out_folder --clips 2",
    "shards": "@media @new_folder",
    "inspect": "@data",
    "train": "@config --data.shards @data",
    "probe": "@model @data --label class --out @out_file",
    "compare": "@result @result",
    "embed": "@model @file --out @out_table.npz",
    "finetune": "@model @data --label class --out @out_file",
    "retrieve": "@model @data --out @out_file",
    "evaluate": "@model @suite --shards @sets --out @out_folder",
    "context": "@model @data --out @out_file",
    "spectrum": "@model @data --out @out_file",
    "inpaint": "@model @data --out @out_folder",
    "import": "@weights @new_folder --format timm",
    "export": "@model @new_folder",
    "compress": "@model @new_folder --bits 8",
    "flops": "@config",
    "ledger": "@config --bench @bench --out @out_file",
    "ablate": "@matrix --data.shards @data --out @out_folder --dry-run",
    "report": "@run --out @out_file",
    "tokens": "@words @new_folder",
    "tracks": "@media @new_folder",
    "speakers": "@file @speaker_model --out @out_folder",
    "generate": "@language_model --tokens 3",
    "perplexity": "@language_model @words --out @out_file",
    "lm-eval": "@language_model hellaswag --out @out_file",
    "bench step": "@config --out @out_file",
    "bench loader": "@config --data.shards @data --out @out_file",
    "bench features": "--out @out_file",
    "bench manifest": "--out @out_file",
    "bench startup": "--out @out_file",
    "bench ttft": "@language_model --lengths 8 --repeats 1 --out @out_file",
    "bench compress": "@media --out @out_file",
    "bench speaker": "--out @out_file",
}
"""A complete command of each verb; @ marks a place, named for what belongs there."""

WRONG = {
    "media": ("missing", "text", "empty_folder"),
    "data": ("missing", "text", "empty_folder", "model"),
    "model": ("missing", "text", "empty_folder", "data", "pointer"),
    "language_model": ("missing", "text", "empty_folder", "data", "model"),
    "speaker_model": ("missing", "text", "empty_folder", "data", "model"),
    "words": ("missing", "empty_folder", "weights"),
    "run": ("missing", "text", "empty_folder", "data"),
    "file": ("missing", "empty_folder"),
    "weights": ("missing", "text", "empty_folder", "pointer"),
    "result": ("missing", "text", "empty_folder", "other_json"),
    "bench": ("missing", "text", "empty_folder", "other_json"),
    "config": ("missing", "text", "empty_folder", "bnary", "tiny_mavli", "results"),
    "matrix": ("missing", "text", "empty_folder", "abalation", "tiny_mavil"),
    "suite": ("missing", "text", "empty_folder", "reslts", "tiny_mavil"),
    "sets": ("missing", "text"),
    "out_file": ("full_folder", "below_text"),
    "out_table.npz": ("full_folder", "below_text.npz", "other.xyz"),
    "out_folder": ("text", "below_text"),
    "new_folder": ("text", "below_text", "full_folder"),
}
"""What each place gets that does not belong there."""

WORKS_WITHOUT_ARGUMENTS = {"demo", "ledger", "bench features", "bench manifest", "bench speaker", "bench startup"}

CHOICES = {
    "probe": ("--label nothing", "--test-split nothing", "--train-split nothing", "--folds nothing", "--folds 1"),
    "finetune": ("--label nothing", "--test-split nothing", "--recipe smal"),
    "retrieve": ("--split nothing",),
    "context": ("--split nothing",),
    "spectrum": ("--split nothing",),
    "inpaint": ("--split nothing",),
    "train": ("--data.split nothing", "--schedule.audio-mask-ratio.kind liner"),
    "shards": ("--source nothing", "--clip-seconds -1"),
    "evaluate": ("--only nothing",),
    "ablate": ("--only nothing", "--base tiny_mavli"),
    "flops": ("--baseline tiny_mavli",),
    "import": ("--config tiny_mavli", "--format tmm", "--into ears"),
    "export": ("--onnx ears",),
    "tokens": ("--documents pages", "--tokenizer nothing", "--val-share 1"),
    "perplexity": ("--split nothing",),
    "tracks": ("--source nothing", "--face-size 2", "--symmetry both", "--table nothing.csv"),
    "speakers": ("--detect-every 0", "--margin -1", "--table nothing.csv", "--predictions p.csv"),
    "lm-eval": ("--batch-size 0", "--limit 0"),
    "compress": ("--onnx ears", "--solver best", "--bits 1", "--sparsity 0.5"),
    "embed": ("--per minute", "--modality smell"),
}
"""Names of labels, splits, presets and choices that do not exist."""

SAYS_WHAT_TO_DO = re.compile(
    r"\b(name|give|choose|use|see|must|did you mean|made by|make|written by|takes?|presets?|known|has|holds|labels"
    r"|splits|fetch|recipes|matrices|lists|there are|variants|check|fix|mend|write|too much|no option|at least"
    r"|comes? first|run|try|delete|pass|needs?|only|verbs)\b",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


def run(command: str | list[str]) -> Ended:
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(command.split() if isinstance(command, str) else command)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return Ended(status, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def no_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    """With recordings at hand, `evaluate` rightly makes the data sets that are not there."""
    monkeypatch.delenv("AVPRETRAIN_REAL_DATA", raising=False)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything that commands take, right and wrong."""
    root = tmp_path_factory.mktemp("usage")
    specs = [Spec(seconds=1.0, size=(32, 40), split=split, label=label)
             for split in ("train", "val", "test") for label in "ab"]  # fmt: skip
    make_dataset(root / "data", specs)
    DiffMAViL(tiny()).save_pretrained(root / "model")
    (root / "words").write_text("some words\n" * 40)
    (root / "language_model").mkdir()
    train_tokenizer(["some words"], 257).save(root / "language_model")
    shape = LanguageModelConfig(vocabulary=257, context=16, width=16, depth=1, head_width=4, heads_per_group=1).shape()
    save_pretrained(LanguageModel(shape), root / "language_model")
    speaker = Speaker(track_config(root / "unused", method="speaker"))
    speaker.save(speaker.model(), root / "speaker_model")
    (root / "media").mkdir()
    with (root / "media" / "a.wav").open("wb") as file:
        file.write(b"RIFF")
    shutil.copy(root / "media" / "a.wav", root / "file")
    shutil.copy(root / "model" / "model.safetensors", root / "weights")
    (root / "run").mkdir()
    (root / "sets").mkdir()
    (root / "empty_folder").mkdir()
    (root / "full_folder").mkdir()
    (root / "full_folder" / "letter.txt").write_text("dear")
    (root / "text").write_text("dear reader\n")
    (root / "pointer").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (root / "other_json").write_text(json.dumps([1, 2]))
    (root / "result").write_text("{}")
    (root / "bench").write_text("{}")
    return root


PRESETS = {"config": "tiny_mavil", "matrix": "ablation", "suite": "results"}


def fill(command: str, place: Path, wrong: dict[int, str] | None = None) -> list[str]:
    """The command with a path or a preset at each place; `wrong` says what comes to the n-th word instead."""
    words = command.split()
    for i, word in enumerate(words):
        if word.startswith("@"):
            what = (wrong or {}).get(i, PRESETS.get(word[1:], word[1:]))
            if what.startswith("below_text"):
                what = what.replace("below_text", "text/below")
            is_name = word[1:] in PRESETS and not (place / what).exists() and what != "missing"
            words[i] = what if is_name else str(place / what)
    return words


def tree(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in sorted(root.rglob("*"))}


@contextlib.contextmanager
def nothing_written(place: Path, cwd: Path) -> Iterator[None]:
    before, here = tree(place), tree(cwd)
    old = Path.cwd()
    os.chdir(cwd)
    try:
        yield
    finally:
        os.chdir(old)
    assert tree(place) == before
    assert tree(cwd) == here


def complaint(ended: Ended, words: list[str]) -> None:
    """Checks that a command failed as it should."""
    shown = f"avpretrain {' '.join(words)}\n-> {ended.status}\n{ended.out}{ended.err}"
    lines = ended.err.splitlines()
    assert ended.status in (1, 2), shown
    assert len(lines) == 1, shown
    assert lines[0].startswith("avpretrain: "), shown
    assert not ended.out, shown
    message = lines[0].removeprefix("avpretrain: ")
    for raw in (
        "Traceback",
        "╭",
        "│",
        "fault of avpretrain",
        "--debug",
        "Errno",
        "Error:",
        "invalid literal",
        "argument",
    ):
        assert raw not in message, shown
    assert SAYS_WHAT_TO_DO.search(message), shown


def test_every_verb_has_a_command_here() -> None:
    assert set(COMMANDS) == set(NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WORKS_WITHOUT_ARGUMENTS])
def test_no_arguments(name: str, place: Path, tmp_path: Path) -> None:
    with nothing_written(place, tmp_path):
        complaint(run(name), name.split())


@functools.cache
def options_of(name: str, place: Path) -> tuple[tuple[str, str], ...]:
    """Options of a verb with what they take, as its help shows them."""
    words = name.split()
    if "@config" in COMMANDS[name] or "@matrix" in COMMANDS[name]:
        words += fill(COMMANDS[name], place)[:1]
    if name == "finetune":
        words += fill(COMMANDS[name], place)[:2]
    said = run([*words, "--help"])
    assert said.status == 0, said
    return tuple(re.findall(r"^[│ ]*(--[a-z][\w.-]*)(?: (\{[^ ]*|[A-Z|{}]+))?", said.out, re.MULTILINE))


@pytest.mark.parametrize("name", NAMES)
def test_options_that_are_not_there(name: str, place: Path, tmp_path: Path) -> None:
    command = [*name.split(), *fill(COMMANDS[name], place)]
    options = [option for option, takes in options_of(name, place) if len(option) > 6] or ["--json"]
    longest = max(options, key=lambda option: len(option.split(".")[-1]))
    misspelt = longest[:-2] + longest[-1] + longest[-2] if longest[-1] != longest[-2] else longest[:-1]
    for words in ([*command, "--no-such-thing", "3"], [*command, misspelt, "3"]):
        with nothing_written(place, tmp_path):
            ended = run(words)
        complaint(ended, words)
    assert longest in ended.err, (longest, misspelt, ended.err)


@pytest.mark.parametrize("name", NAMES)
def test_values_of_the_wrong_kind(name: str, place: Path, tmp_path: Path) -> None:
    command = [*name.split(), *fill(COMMANDS[name], place)]
    kinds: dict[str, list[str]] = {}
    for option, takes in options_of(name, place):
        if takes.startswith(("INT", "FLOAT", "{")) and "." not in option:
            kinds.setdefault(takes, []).append(option)
    nested = [o for o, takes in options_of(name, place) if "." in o and takes in ("INT", "FLOAT")][:2]
    for option in [options[0] for options in kinds.values()] + nested:
        words = [*command, option, "many"]
        if "PATH" in dict(options_of(name, place))[option] or "STR" in dict(options_of(name, place))[option]:
            continue
        with nothing_written(place, tmp_path):
            ended = run(words)
        complaint(ended, words)
        assert option.removeprefix("--") in ended.err, (words, ended.err)


WRONG_PLACES = [
    (name, i, wrong)
    for name, command in COMMANDS.items()
    for i, word in enumerate(command.split())
    if word.startswith("@")
    for wrong in WRONG[word[1:]]
    if word[1:] != "run" or wrong != "empty_folder"
]


@pytest.mark.parametrize(("name", "i", "wrong"), WRONG_PLACES)
def test_what_does_not_belong_there(name: str, i: int, wrong: str, place: Path, tmp_path: Path) -> None:
    words = [*name.split(), *fill(COMMANDS[name], place, {i: wrong})]
    with nothing_written(place, tmp_path):
        ended = run(words)
    complaint(ended, words)
    there = words[len(name.split()) + i]
    if not (name == "compare" and i == 1):  # the first is read first
        assert there.rsplit("/text/below")[0] in ended.err, (words, ended.err)


@pytest.mark.parametrize(("name", "more"), [(name, more) for name, all_ in CHOICES.items() for more in all_])
def test_names_that_do_not_exist(name: str, more: str, place: Path, tmp_path: Path) -> None:
    words = [*name.split(), *fill(COMMANDS[name], place), *more.split()]
    with nothing_written(place, tmp_path):
        complaint(run(words), words)


@pytest.mark.parametrize("wrong", ["bnech", "prob", "trian"])
def test_a_misspelt_verb_gets_the_right_one(wrong: str, place: Path, tmp_path: Path) -> None:
    with nothing_written(place, tmp_path):
        ended = run([wrong])
    complaint(ended, [wrong])
    assert {"bnech": "'bench'", "prob": "'probe'", "trian": "'train'"}[wrong] in ended.err


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("synth o --clips many", "--clips takes a whole number, got 'many'"),
        ("synth o --seconds long", "--seconds takes a number, got 'long'"),
        ("synth o --clips", "--clips needs a value"),
        ("synth o --clisp 3", "no option --clisp here; did you mean --clips?"),
        ("synth", "give OUT: Folder to write"),
        ("synth a b", "too much on the command line: b"),
        ("export a b --onnx ears", "--onnx can't be 'ears'; choose from audio, video"),
        ("export a b --onnx audoi", "--onnx can't be 'audoi'; did you mean 'audio'?"),
        ("import a b --format timm --audio-stats 1", "--audio-stats takes FLOAT FLOAT, got 1"),
        ("flops tiny_mavil --clips x", "--clips takes a whole number, got x"),
        ("ablate ablation --seeds a", "--seeds takes [INT [INT ...]], got a"),
    ],
)
def test_messages_on_any_terminal(words: str, said: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    with contextlib.redirect_stderr(err), pytest.raises(SystemExit):
        main(words.split())
    assert err.getvalue().startswith(f"avpretrain: {said}"), err.getvalue()
