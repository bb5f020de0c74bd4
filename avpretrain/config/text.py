"""How text becomes packed tokens. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from avpretrain.config.model import require
from avpretrain.config.train import mechanics

DocumentKind = Literal["file", "blank_line", "line"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackConfig:
    """How text becomes packed tokens; read when text is packed, since shards of tokens say what they were made by."""

    tokenizer: str = mechanics("")
    """A tokenizer.json of Hugging Face's tokenizers, a sentencepiece .model, or a folder with one; empty = a BPE over
    bytes is trained on the text."""
    vocabulary: int = mechanics(4096)
    """Size of the BPE that is trained; texts that say little give a smaller one."""
    separator: str = mechanics("")
    """The tokenizer's token that begins each document; empty = the first of the usual ones that it has."""
    documents: Literal["file", "blank_line", "line"] = mechanics("file")
    """What a document is: a file, a stretch between blank lines, or a line. In .jsonl files it is always the 'text' of
    a line."""
    val_share: float = mechanics(0.05)
    """Share that is set aside as split 'val' where no file or folder bears the name of one: of 100 documents or more,
    whole ones; of fewer, the end of each."""
    min_characters: int = mechanics(0)
    """Shorter documents are left out."""
    min_tokens: int = mechanics(0)
    """Documents of fewer tokens are left out."""
    shard_tokens: int = mechanics(1 << 26)
    """Tokens of a shard, at most."""

    def __post_init__(self) -> None:
        low, high = 257, 1 << 22
        require(low <= self.vocabulary <= high, f"vocabulary must lie in [{low}, {high}], got {self.vocabulary}")
        require(0 <= self.val_share < 1, f"val_share must lie in [0, 1), got {self.val_share}")
        require(self.shard_tokens >= 1, f"shard_tokens must be at least 1, got {self.shard_tokens}")
        for name in ("min_characters", "min_tokens"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
