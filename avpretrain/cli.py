"""`avpretrain VERB ...`: finds the verb's file in `commands/`, fills its arguments, calls it, says errors in a line."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import keyword
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import tyro

from avpretrain.errors import FAULT, PROGRAM_ERRORS, UsageError, UserError, describe
from avpretrain.processes import end_with_launcher, is_lost_rank
from avpretrain.terminal import plain

T = TypeVar("T")

VERBS = {
    "demo": "the whole pipeline, small, on synthetic scenes",
    "synth": "render synthetic audio-visual scenes as mp4 files",
    "shards": "turn a folder of videos into shards and a manifest",
    "inspect": "show and verify a sharded data set",
    "train": "pretrain MAViL or DiffMAViL",
    "probe": "fit a linear probe on frozen features",
    "compare": "say by how much one result is better than another",
    "embed": "turn audio and video files into vectors",
    "finetune": "train a classifier from a checkpoint",
    "retrieve": "find pictures by sound and sounds by picture",
    "evaluate": "run a list of evaluations and write their table",
    "context": "what the encoder is worth to the decoders, by timestep",
    "spectrum": "error of reconstructed spectrograms by frequency",
    "inpaint": "fill hidden sound and picture, with figures of error",
    "bench": "measure speed and memory of loader, features and manifest",
    "import": "turn MAE, AudioMAE, CAV-MAE, MAViL or timm weights into a model",
    "export": "write weights with a model card, or an encoder as ONNX",
    "flops": "count a config's FLOPs by component",
    "ledger": "count what whole trainings of every variant would cost",
    "ablate": "train and probe a matrix of variants and seeds",
    "report": "compare runs in one HTML page",
}
"""Verb to one line of help; each is the `main` of `avpretrain/commands/VERB.py` (`import_.py`, since names clash)."""


def parse(target: Callable[..., T] | type[T], args: Sequence[str], prog: str, default: Any = None) -> T:
    """What tyro makes of the command line: `target` filled with arguments, over `default` where it is a dataclass.

    Raises:
        UsageError: an argument is wrong; the message is tyro's, in one line.
    """
    keywords = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(target, args=list(args), prog=prog, **keywords)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_one_line(said.getvalue(), prog)) from None
    except ValueError as error:  # a config's own check of its values
        raise UsageError(f"{error} (see {prog} --help)") from None


def bind(function: Callable[..., None], args: Sequence[str], prog: str) -> Callable[[], None]:
    """`function` with the command line's arguments, not called yet: what it prints and raises is its own affair.

    Raises:
        UsageError: an argument is wrong.
    """

    @functools.wraps(function)
    def filled(*positional: Any, **named: Any) -> Callable[[], None]:
        return functools.partial(function, *positional, **named)

    return parse(filled, args, prog)


def _one_line(box: str, prog: str) -> str:
    """The message inside tyro's box, without its frame, its help texts and its line breaks."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()
    text = " ".join("---" if re.match(r"[│ ]*[╭╰─]{2}", line) else line.strip("│ ") for line in lines)
    parts = [part.strip() for part in text.split("---") if part.strip()]
    message = parts[0] if parts else "wrong arguments"
    meant = next((re.search(r"--[\w.-]+", part) for part in parts if part.startswith("Perhaps you meant")), None)
    return f"{message}{f'; did you mean {meant.group()}?' if meant else ''} (see {prog} --help)"


@contextlib.contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """Turns expected errors into one line on stderr and their exit status; `debug` lets tracebacks through."""
    try:
        yield
    except UserError as error:
        if debug:
            raise
        print(plain(f"avpretrain: {' '.join(str(error).split())}"), file=sys.stderr)
        sys.exit(error.exit_status)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("avpretrain: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        if is_lost_rank(error):
            rank = os.environ.get("RANK", "0")
            print(
                f"avpretrain: rank {rank}: another rank of this run has ended, so this one does, too", file=sys.stderr
            )
            sys.exit(1)
        more = f"; {FAULT}" if isinstance(error, (*PROGRAM_ERRORS, LookupError)) else " (--debug shows where)"
        print(plain(f"avpretrain: {describe(error)}{more}"), file=sys.stderr)
        sys.exit(1)


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {text}" for verb, text in VERBS.items())
    more = "'avpretrain VERB --help' says what a verb reads, writes and how long it takes."
    return f"usage: avpretrain VERB ...\n\n{verbs}\n\n{more}"


def run(verb: str, args: Sequence[str]) -> None:
    """Runs one verb with its arguments, as the command line does.

    Raises:
        UsageError: there is no such verb, or the arguments are wrong.
    """
    if verb not in VERBS:
        raise UsageError(f"no verb '{verb}'; verbs: {', '.join(VERBS)}")
    name = verb.replace("-", "_") + ("_" if keyword.iskeyword(verb) else "")
    command = importlib.import_module(f"avpretrain.commands.{name}")
    if hasattr(command, "run"):  # a verb whose arguments are a config and changes to it reads them itself
        command.run(args)
    else:
        bind(command.main, args, f"avpretrain {verb}")()


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `avpretrain` script."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]
    end_with_launcher()
    with one_line_errors(debug):
        if not args or args[0] in ("-h", "--help"):
            print(_help())
        elif args[0] == "--version":
            print(importlib.import_module("avpretrain").__version__)
        else:
            run(args[0], args[1:])
