"""Tokenizers: one that is given (a `tokenizer.json`, a sentencepiece model), or a BPE that is trained on the text.

Special tokens that a text spells out are text: nothing that is read can forge the mark between documents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avpretrain.core.errors import UsageError, UserError
from avpretrain.core.files import atomic_path, mistaken_for, open_file, read_head, read_json, read_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

TOKENIZER_NAME = "tokenizer.json"
SENTENCEPIECE_NAME = "tokenizer.model"
SETTINGS_NAME = "tokenizer_config.json"
"""Next to it, as transformers reads it: which token begins a text."""
END_OF_TEXT = "<|endoftext|>"
SEPARATORS = (END_OF_TEXT, "<|begin_of_text|>", "<s>", "<bos>", "</s>", "<eos>")
"""Tokens that may begin a document, the usual ones first."""
MAX_MODEL_BYTES = 64 << 20
"""Largest sentencepiece model; those of a quarter of a million pieces have 4 MB."""
ENDS = ("</s>", "<eos>", "<|end_of_text|>", "<|im_end|>")
"""Tokens that end a generated text, besides the separator."""


class Tokenizer:
    """Text to tokens and back.

    Args:
        separator: the token that begins each document; empty = the first of `SEPARATORS` that there is.
        text: what it was read from, kept since the last digits of scores may change when they are read and written.

    Raises:
        UserError: there is no such token.
    """

    def __init__(
        self, backend: Backend, separator: str = "", where: str = "the tokenizer", text: str | None = None
    ) -> None:
        self.backend = backend
        backend.encode_special_tokens = True
        backend.no_padding()
        backend.no_truncation()
        self.text: str = text or backend.to_str(pretty=True)
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
        self._spelled = _spelled(backend)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, no special ones."""
        return self._as_text(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode`, of many, on all cores."""
        found = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._as_text(one.ids) for one in found]

    def _as_text(self, tokens: list[int]) -> list[int]:
        """Tokens without special ones: a model with these among its words may find one spelled out in a text."""
        if self._spelled.keys().isdisjoint(tokens):
            return tokens
        return [part for token in tokens for part in self._spelled.get(token, (token,))]

    def decode(self, tokens: Iterable[int]) -> str:
        text: str = self.backend.decode(list(tokens), skip_special_tokens=True)
        return text

    def stream(self, tokens: Iterable[int], after: Iterable[int] = ()) -> Iterator[str]:
        """The text of tokens as they come, in pieces that end with whole characters.

        Args:
            after: tokens that stand before them; without any, a space at the beginning may be lost.
        """
        from tokenizers.decoders import DecodeStream

        state = DecodeStream(skip_special_tokens=True)
        for token in after:
            state.step(self.backend, token)
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


def tokenizer_file(path: str | Path) -> Path:
    """The file of a tokenizer that is named by itself or by its folder, which may hold none."""
    path = Path(path)
    if not path.is_dir():
        return path
    names = (TOKENIZER_NAME, SENTENCEPIECE_NAME)
    return next((path / name for name in names if (path / name).is_file()), path / TOKENIZER_NAME)


def load_tokenizer(path: str | Path, separator: str = "") -> Tokenizer:
    """A tokenizer from a `tokenizer.json` or a sentencepiece model (`.model`), or from a folder with one.

    Raises:
        UserError: there is none, it is of another kind, or damaged.
    """
    path = tokenizer_file(path)
    settings = path.with_name(SETTINGS_NAME)
    if not separator and settings.is_file():
        separator = _begins_texts(read_json(settings, "tokenizer settings"))
    try:
        text = None if path.suffix == ".model" else read_text(path)
        backend = _from_sentencepiece(path) if text is None else _from_json(path, text)
    except FileNotFoundError:
        raise UserError(
            f"no tokenizer at {path}; name a {TOKENIZER_NAME}, a sentencepiece .model, or a folder with one"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no {TOKENIZER_NAME} of Hugging Face's tokenizers: it is no text") from None
    except OSError as error:
        raise UserError(f"tokenizer {path} can't be read: {error.strerror}") from None
    return Tokenizer(backend, separator, str(path), text)


def _from_json(path: Path, text: str) -> Backend:
    from tokenizers import Tokenizer as Backend

    try:
        return Backend.from_str(text)
    except Exception as error:  # the library raises nothing more specific
        why = (
            mistaken_for(read_head(path)) or f"is no {TOKENIZER_NAME} of Hugging Face's tokenizers: {str(error)[:100]}"
        )
        raise UserError(f"{path} {why}") from None


def _from_sentencepiece(path: Path) -> Backend:
    from avpretrain.data.text.sentencepiece_model import backend, parse

    if mistaken := mistaken_for(read_head(path)):
        raise UserError(f"{path} {mistaken}")
    with open_file(path) as file:
        data = file.read(MAX_MODEL_BYTES + 1)
    if len(data) > MAX_MODEL_BYTES:
        raise UserError(f"{path} is larger than any sentencepiece model; name another")
    try:
        return backend(parse(data))
    except ValueError as error:
        raise UserError(f"{path} {error}; name another .model, or a {TOKENIZER_NAME}") from None


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


def _spelled(backend: Backend) -> dict[int, list[int]]:
    """For each special token the tokens of its letters: in a text, it is text. What is unknown stays unknown."""
    model = json.loads(backend.to_str())["model"]
    unknown = model.get("unk_token")
    if isinstance(number := model.get("unk_id"), int):
        unknown = backend.id_to_token(number)
    found = {}
    for token, added in backend.get_added_tokens_decoder().items():
        if added.special and added.content != unknown:
            letters = [_letter(backend, letter, unknown) for letter in added.content]
            found[token] = [part for letter in letters for part in letter]
    return found


def _letter(backend: Backend, letter: str, unknown: str | None) -> list[int]:
    token = backend.token_to_id(letter)
    if token is not None:
        return [token]
    parts = [backend.token_to_id(f"<0x{byte:02X}>") for byte in letter.encode()]
    if None in parts:
        parts = [None if unknown is None else backend.token_to_id(unknown)]
    return [part for part in parts if part is not None]


def _begins_texts(settings: object) -> str:
    """The token that begins a text by a `tokenizer_config.json`; empty where it does not say."""
    token = settings.get("bos_token") if isinstance(settings, dict) else None
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else ""
