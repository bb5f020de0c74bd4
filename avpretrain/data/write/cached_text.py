"""Plain text as a set of tokens: packed once into a cache, and found there when it is named again."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from avpretrain.config.text import PackConfig
from avpretrain.core.errors import UserError
from avpretrain.data.text.documents import find_texts
from avpretrain.data.text.pack import made_from, pack
from avpretrain.data.text.tokens import is_token_set
from avpretrain.data.write.cached import CACHE_VARIABLE, cache_folder


def place_of_text(sources: Sequence[str | Path], cfg: PackConfig) -> Path:
    """Where the tokens of text files lie in the cache: another place for other files, contents or settings.

    Raises:
        UserError: there are no text files.
    """
    made = json.dumps(made_from(find_texts(sources), cfg), sort_keys=True)
    name = Path(sources[0]).resolve().name.split(".")[0] or "text"
    return cache_folder("tokens") / f"{name}-{hashlib.sha256(made.encode()).hexdigest()[:12]}"


def as_tokens(sources: Sequence[str | Path], cfg: PackConfig, say: Callable[[str], None] = lambda line: None) -> Path:
    """The folder of packed tokens of text files and folders of them; packed if it is not yet.

    Text that has changed is packed into a new folder, so that a run that reads the old one is not disturbed. Processes
    that ask for the same text at once, such as the ranks of a launch, take turns, and one does the work.

    Args:
        sources: text files, or folders of them.
        say: called with a line about what is done.

    Raises:
        UserError: a file can't be read or is no text, or the cache can't be written.
    """
    out = place_of_text(sources, cfg)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.with_name(f"{out.name}.lock").open("a") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if not is_token_set(out):
                pack(sources, out, cfg, say)
                say(f"tokens: {out}")
    except OSError as error:
        raise UserError(
            f"can't write the tokens of {sources[0]} to {out}: {error.strerror or error}; set {CACHE_VARIABLE} to a "
            f"folder with room, or pack the text with: avpretrain tokens {sources[0]} TOKENS"
        ) from error
    return out
