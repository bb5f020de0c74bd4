"""Sentencepiece models as tokenizers, against sentencepiece itself where it is installed."""

from __future__ import annotations

import importlib.util
import io
import struct
from pathlib import Path
from typing import Any

import pytest

from avpretrain.config.text import PackConfig
from avpretrain.core.errors import UserError
from avpretrain.data.text.pack import pack
from avpretrain.data.text.sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN
from avpretrain.data.text.tokenizer import load_tokenizer
from avpretrain.data.text.tokens import TokenStream
from tests.support.texts import sentences, write_texts

needs_sentencepiece = pytest.mark.skipif(
    importlib.util.find_spec("sentencepiece") is None,
    reason="sentencepiece is not installed; pip install sentencepiece",
)
TEXTS = [
    "The cat sees a dog.", " a  spaced   out text  ", "", "   ", "tabs\tand\nlines\n\n", "été 漢字 unseen: ß€😀 ﬁ Å",
    "a", "▁x", "<s>the dog</s> <unk> <0x41>", "the#cat##dog hears", sentences(40, 9),
]  # fmt: skip
KINDS = {
    "unigram": {"model_type": "unigram"},
    "unigram_bytes": {"model_type": "unigram", "byte_fallback": True, "normalization_rule_name": "identity"},
    "bpe": {"model_type": "bpe"},
    "llama": {
        "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
    "gemma": {
        "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "add_dummy_prefix": False,
        "remove_extra_whitespaces": False, "user_defined_symbols": ["##", "\n"],
    },
    "symbols": {"model_type": "unigram", "user_defined_symbols": ["#", "漢"]},
}  # fmt: skip


def train(path: Path, **options: Any) -> Any:
    """A model of 400 tokens at most on rule-made text, in a file; and sentencepiece's own reading of it."""
    import sentencepiece

    made = io.BytesIO()
    lines = [line for line in sentences(400, 1).splitlines() if line]
    options = {"vocab_size": 330, "hard_vocab_limit": False, "minloglevel": 2, "character_coverage": 1.0, **options}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=made, **options)
    path.write_bytes(made.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())


@needs_sentencepiece
@pytest.mark.parametrize("kind", KINDS)
def test_text_is_cut_as_sentencepiece_cuts_it(kind: str, tmp_path: Path) -> None:
    theirs = train(tmp_path / "tokenizer.model", **KINDS[kind])
    ours = load_tokenizer(tmp_path)
    assert ours.size == theirs.get_piece_size() and ours.separator == theirs.bos_id() and ours.end == theirs.eos_id()
    for text in TEXTS:
        found = ours.encode(text)
        if "<s>" not in text:
            assert found == theirs.encode(text), (text, [ours.backend.id_to_token(i) for i in found])
            assert theirs.unk_id() in found or "▁" in text or ours.decode(found) == theirs.decode(found)
        assert ours.separator not in found and ours.end not in found, "text can't forge a mark"
    (tmp_path / "saved").mkdir()
    ours.save(tmp_path / "saved")
    saved = load_tokenizer(tmp_path / "saved")
    assert saved.sha256 == ours.sha256 and saved.encode(TEXTS[5]) == ours.encode(TEXTS[5])


@needs_sentencepiece
def test_text_is_packed_by_one_and_comes_back(tmp_path: Path) -> None:
    train(tmp_path / "spm.model", **KINDS["llama"])
    texts = write_texts(tmp_path / "texts")
    index = pack([texts], tmp_path / "out", PackConfig(tokenizer=str(tmp_path / "spm.model")))
    stream, tokenizer = TokenStream([index.root], "val"), index.tokenizer()
    assert tokenizer.decode(stream.read(1, len(stream) - 2).tolist()) == sentences(60, 3)


@needs_sentencepiece
def test_a_space_after_a_prompt_is_kept_in_a_stream(tmp_path: Path) -> None:
    train(tmp_path / "spm.model", **KINDS["llama"])
    tokenizer = load_tokenizer(tmp_path / "spm.model")
    tokens = tokenizer.encode("The cat sees")
    after = tokenizer.encode("The cat")
    assert tokens[: len(after)] == after
    assert "".join(tokenizer.stream(tokens[len(after) :], after=after)) == " sees"


# --- files written by hand, which need no library ---------------------------------------------------------------------


def varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def proto(pieces: list[tuple[str, int]], trainer: bytes = field(3, 2), normaliser: bytes = b"") -> bytes:
    entries = b""
    for i, (text, kind) in enumerate(pieces):
        score = b"\x15" + struct.pack("<f", -float(i))
        entries += field(1, field(1, text.encode()) + score + field(3, kind))
    return entries + field(2, trainer) + field(3, normaliser)


PIECES = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL), ("ab", NORMAL), ("▁ab", NORMAL), ("▁", NORMAL)]
PIECES += [(letter, NORMAL) for letter in "abs"]


def test_a_file_is_read_without_any_library(tmp_path: Path) -> None:
    (tmp_path / "a.model").write_bytes(proto(PIECES))
    tokenizer = load_tokenizer(tmp_path / "a.model")
    assert tokenizer.encode("ab  b") == [4, 5, 7] and tokenizer.separator == 1 and tokenizer.size == 9
    assert tokenizer.encode("a<s>") == [5, 6, 0, 8, 0], "spelled out, it is text"
    (tmp_path / "b.model").write_bytes(proto(PIECES, field(3, 1)))
    unigram = load_tokenizer(tmp_path / "b.model")
    assert unigram.encode("ab  b") == [4, 5, 7]
    assert unigram.separator not in unigram.encode("a<s>")
    more = [*PIECES, *((f"<0x{byte:02X}>", BYTE) for byte in range(256))]
    (tmp_path / "c.model").write_bytes(proto(more, field(3, 2) + field(35, 1), field(3, 0)))
    tokenizer = load_tokenizer(tmp_path / "c.model")
    assert tokenizer.encode("é") == [9 + 0xC3, 9 + 0xA9] and tokenizer.decode([9 + 0xC3, 9 + 0xA9, 3]) == "éab"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"no model at all", "is no sentencepiece model, or is damaged"),
        (proto(PIECES)[:-9], "is no sentencepiece model, or is damaged"),
        (proto([]), "is no sentencepiece model, or is damaged"),
        (b"", "is empty"),
        (b"\xff" * 64, "is no sentencepiece model, or is damaged"),
        (proto(PIECES, field(3, 3)), "of words or characters; only unigram and BPE"),
        (proto(PIECES, field(3, 2) + field(24, 1)), "puts spaces after words"),
        (proto(PIECES, normaliser=field(5, 0)), "does not escape spaces"),
        (proto([*PIECES, ("ab", NORMAL)]), "has pieces twice"),
        (proto(PIECES[1:]), "needs one piece for what is unknown"),
        (proto(PIECES, normaliser=field(2, b"xx")), "its map of characters can't be read"),
    ],
)
def test_what_can_not_be_read_is_one_line(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.model").write_bytes(data)
    with pytest.raises(UserError, match=says) as error:
        load_tokenizer(tmp_path / "x.model")
    assert "\n" not in str(error.value) and "x.model" in str(error.value)
