"""Tokenizers: one that is given as a `tokenizer.json`, or a BPE over bytes that is trained on the text.

Special tokens that a text spells out are text: nothing that is read can forge the mark between documents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.files import atomic_path, mistaken_for, read_head, read_json, read_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

TOKENIZER_NAME = "tokenizer.json"
SETTINGS_NAME = "tokenizer_config.json"
"""Beside it, as transformers reads it: which token begins a text."""
END_OF_TEXT = "<|endoftext|>"
SEPARATORS = (END_OF_TEXT, "<|begin_of_text|>", "<s>", "<bos>", "</s>", "<eos>")
"""Tokens that may begin a document, the usual ones first."""
ENDS = ("</s>", "<eos>", "<|end_of_text|>", "<|im_end|>")
"""Tokens that end a generated text, beside the separator."""


class Tokenizer:
    """Text to tokens and back.

    Args:
        separator: the token that begins each document; empty = the first of `SEPARATORS` that there is.

    Raises:
        UserError: there is no such token.
    """

    def __init__(self, backend: Backend, separator: str = "", where: str = "the tokenizer") -> None:
        self.backend = backend
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self.text = backend.to_str(pretty=True)
        known: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        if not known:
            raise UserError(f"{where} knows no tokens; name another")
        self.size = max(known.values()) + 1
        """Tokens: one more than the largest."""
        names = (separator,) if separator else SEPARATORS
        self.separator_name = next((name for name in names if name in known), "")
        if not self.separator_name:
            wanted = f"no token {separator!r}" if separator else f"none of {' '.join(SEPARATORS)} to begin documents"
            raise UserError(f"{where} has {wanted}; name one of its tokens with separator")
        self.separator = known[self.separator_name]
        ends = [known[name] for name in ENDS if name in known]
        self.end = ends[0] if ends else self.separator
        """The token that ends a text for others' programs."""
        self.ends = frozenset([self.separator, *ends])

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, no special ones."""
        tokens: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return tokens

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, of many, on all cores."""
        return [found.ids for found in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, tokens: Iterable[int]) -> str:
        text: str = self.backend.decode(list(tokens), skip_special_tokens=True)
        return text

    def stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """The text of tokens as they come, in pieces that end with whole characters."""
        from tokenizers.decoders import DecodeStream

        state = DecodeStream(skip_special_tokens=True)
        for token in tokens:
            piece = state.step(self.backend, token)
            if piece:
                yield piece

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json`, and which token begins a text, into a folder that is there."""
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": self.separator_name}
        settings["eos_token"] = self.backend.id_to_token(self.end) or self.separator_name
        for name, text in ((TOKENIZER_NAME, self.text), (SETTINGS_NAME, json.dumps(settings, indent=2) + "\n")):
            with atomic_path(folder / name) as temporary:
                temporary.write_text(text)

    def check_fits(self, vocabulary: int, where: str) -> None:
        """Refuses a tokenizer with tokens that a model does not know.

        Args:
            where: what it does not fit, as `model.vocabulary`.

        Raises:
            UsageError: it is one.
        """
        if self.size > vocabulary:
            raise UsageError(
                f"the tokenizer has {self.size:,} tokens, but {where} is {vocabulary:,}; raise that, or give the "
                "tokenizer that the model was made for"
            )


def load_tokenizer(path: str | Path, separator: str = "") -> Tokenizer:
    """A tokenizer from a `tokenizer.json`, or from a folder with one.

    Raises:
        UserError: there is none, it is of another kind, or damaged.
    """
    from tokenizers import Tokenizer as Backend

    path = Path(path)
    path = path / TOKENIZER_NAME if path.is_dir() else path
    settings = path.with_name(SETTINGS_NAME)
    if not separator and settings.is_file():
        separator = _begins_texts(read_json(settings, "tokenizer settings"))
    if path.suffix == ".model":
        raise UserError(
            f"{path} is a sentencepiece model, which is not read here; its {TOKENIZER_NAME} is (by transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(OUT))"
        )
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise UserError(f"no tokenizer at {path}; name a {TOKENIZER_NAME} or a folder with one") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no {TOKENIZER_NAME} of Hugging Face's tokenizers: it is no text") from None
    except OSError as error:
        raise UserError(f"tokenizer {path} can't be read: {error.strerror}") from None
    try:
        backend = Backend.from_str(text)
    except Exception as error:  # the library raises nothing more specific
        why = (
            mistaken_for(read_head(path)) or f"is no {TOKENIZER_NAME} of Hugging Face's tokenizers: {str(error)[:100]}"
        )
        raise UserError(f"{path} {why}") from None
    return Tokenizer(backend, separator, str(path))


def find_tokenizer(folder: Path) -> Path:
    """The folder with the tokenizer of the weights in `folder`: itself, or that of the run whose checkpoint it is.

    Raises:
        UserError: there is none.
    """
    places = (folder, folder.parent, folder.parent.parent)  # a checkpoint's is its run's
    place = next((place for place in places if (place / TOKENIZER_NAME).is_file()), None)
    if place is None:
        raise UserError(
            f"no {TOKENIZER_NAME} in {folder} or its run's folder; put the one that the model was trained with there"
        )
    return place


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A BPE over bytes (Sennrich et al. 2016; no text is unknown to it), the same for the same texts.

    Args:
        vocabulary: its size at most, the 256 bytes and the separator included.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(iter(texts), trainer)
    return Tokenizer(backend)


def _begins_texts(settings: object) -> str:
    """The token that begins a text by a `tokenizer_config.json`; empty where it does not say."""
    token = settings.get("bos_token") if isinstance(settings, dict) else None
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else ""
