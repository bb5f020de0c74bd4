"""`avpretrain VERB ...`: finds the verb in its table, fills its arguments, calls it, says errors in a line."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence

import avpretrain
from avpretrain.core.errors import FAULT, PROGRAM_ERRORS, UsageError, UserError, describe
from avpretrain.core.processes import end_with_launcher, is_lost_rank
from avpretrain.core.terminal import plain

VERBS = {
    "demo": ("avpretrain.cli.demo", "the whole pipeline, small, on synthetic scenes"),
    "synth": ("avpretrain.cli.synth", "render synthetic audio-visual scenes as mp4 files"),
    "shards": ("avpretrain.cli.shards", "turn a folder of videos into shards and a manifest"),
    "tokens": ("avpretrain.cli.tokens", "turn text into packed token shards"),
    "tracks": ("avpretrain.cli.tracks", "turn videos with boxes of faces into face tracks"),
    "inspect": ("avpretrain.cli.inspect", "show and verify a sharded data set"),
    "train": ("avpretrain.cli.train", "pretrain MAViL, DiffMAViL or a language model"),
    "probe": ("avpretrain.cli.probe", "fit a linear probe on frozen features"),
    "compare": ("avpretrain.cli.compare", "say by how much one result is better than another"),
    "embed": ("avpretrain.cli.embed", "turn audio and video files into vectors"),
    "finetune": ("avpretrain.cli.finetune", "train a classifier from a checkpoint"),
    "retrieve": ("avpretrain.cli.retrieve", "find video by audio and audio by video"),
    "evaluate": ("avpretrain.cli.evaluate", "run a list of evaluations and write their table"),
    "context": ("avpretrain.cli.context", "what the encoder is worth to the decoders, by timestep"),
    "spectrum": ("avpretrain.cli.spectrum", "error of reconstructed spectrograms by frequency"),
    "inpaint": ("avpretrain.cli.inpaint", "fill in hidden audio and video, with figures of error"),
    "generate": ("avpretrain.cli.generate", "continue a text by a language model"),
    "perplexity": ("avpretrain.cli.perplexity", "measure a language model on text: perplexity, bits per byte"),
    "lm-eval": ("avpretrain.cli.lm_eval", "run lm-evaluation-harness tasks on a language model"),
    "bench": ("avpretrain.cli.bench", "measure speed and memory of loader, features and manifest"),
    "import": ("avpretrain.cli.import_", "turn weights of MAE, timm, DINOv2, VideoMAE and others into a model"),
    "export": ("avpretrain.cli.export", "write weights with a model card, or an encoder as ONNX"),
    "speakers": ("avpretrain.cli.speakers", "say who is speaking in a video, or measure a detector of speakers"),
    "compress": ("avpretrain.cli.compress", "make a trained encoder small without data: fewer bits, or sparse"),
    "flops": ("avpretrain.cli.flops", "count a config's FLOPs by component"),
    "ledger": ("avpretrain.cli.ledger", "count what whole trainings of every variant would cost"),
    "ablate": ("avpretrain.cli.ablate", "train and probe a matrix of variants and seeds"),
    "report": ("avpretrain.cli.report", "compare runs in one HTML page"),
}
"""Every verb: its module, imported when it is asked for, whose `main` is filled with arguments (or whose `run` reads
them itself), and one line of help."""


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
            message = f"rank {rank}: another rank of this run has ended, so this one does, too"
            print(plain(f"avpretrain: {message}"), file=sys.stderr)
            sys.exit(1)
        more = f"; {FAULT}" if isinstance(error, (*PROGRAM_ERRORS, LookupError)) else " (--debug shows where)"
        print(plain(f"avpretrain: {describe(error)}{more}"), file=sys.stderr)
        sys.exit(1)


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items())
    more = "'avpretrain VERB --help' says what a verb reads, writes and how long it takes."
    return f"usage: avpretrain VERB ...\n\n{verbs}\n\n{more}"


def run(verb: str, args: Sequence[str]) -> None:
    """Runs one verb with its arguments, as the command line does.

    Raises:
        UsageError: there is no such verb, or the arguments are wrong.
    """
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"verbs: {', '.join(VERBS)}"
        raise UsageError(f"no verb '{verb}'; {hint}")
    module, _ = VERBS[verb]
    command = importlib.import_module(module)
    if hasattr(command, "run"):  # a verb whose arguments are a config and changes to it reads them itself
        command.run(args)
    else:
        from avpretrain.cli.shared.arguments import bind

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
            print(avpretrain.__version__)
        else:
            run(args[0], args[1:])
