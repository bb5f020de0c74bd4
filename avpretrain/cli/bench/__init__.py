"""`avpretrain bench`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence

from avpretrain.core.errors import UsageError

SUBJECTS = {
    "step": ("avpretrain.cli.bench.step", "how fast a training step is in each phase of a curriculum"),
    "loader": ("avpretrain.cli.bench.loader", "how fast clips are decoded and delivered, and what memory that takes"),
    "features": ("avpretrain.cli.bench.features", "how fast waveforms become log-mel spectrograms"),
    "manifest": ("avpretrain.cli.bench.manifest", "how fast a huge data set opens, and what memory that takes"),
    "speaker": ("avpretrain.cli.bench.speaker", "what a frame costs an active speaker detector on a stream"),
    "startup": ("avpretrain.cli.bench.startup", "how long help and usage errors take to appear"),
    "ttft": ("avpretrain.cli.bench.ttft", "how soon a language model gives the first token after a prompt"),
    "compress": ("avpretrain.cli.bench.compress", "what compression without data costs in accuracy, on spoken digits"),
}
"""What can be measured: the module whose `run` does it, imported when it is asked for, and one line of help."""


def run(args: Sequence[str]) -> None:
    """Measures what the first argument names."""
    if not args or args[0] in ("-h", "--help"):
        print("usage: avpretrain bench SUBJECT ...\n")
        for subject, (_, summary) in SUBJECTS.items():
            print(f"  {subject:<8}  {summary}")
        print("\n'avpretrain bench SUBJECT --help' says what it reads, writes and how long it takes.")
        return
    subject, *rest = args
    if subject not in SUBJECTS:
        close = difflib.get_close_matches(subject, SUBJECTS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"choose from {', '.join(SUBJECTS)}"
        raise UsageError(f"can't bench '{subject}'; {hint}")
    module, _ = SUBJECTS[subject]
    importlib.import_module(module).run(rest)
