"""Text to packed tokens and back, the order of windows, and what is said of text that is none."""

from __future__ import annotations

import gzip
import itertools
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import webdataset

from avpretrain.config.text import PackConfig
from avpretrain.core.errors import UsageError, UserError
from avpretrain.data.text import documents, pack, tokens
from avpretrain.data.text.order import WindowOrder
from avpretrain.data.text.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from avpretrain.data.text.tokens import TokenIndex, TokenStream
from avpretrain.data.write.cached_text import as_tokens
from tests.support.texts import sentences, write_texts

SMALL = PackConfig(vocabulary=300)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("text") / "texts")


@pytest.fixture(scope="module")
def trained(texts: Path) -> Tokenizer:
    return train_tokenizer([sentences(120, 1)], 300)


def decoded(index: TokenIndex, split: str) -> list[str]:
    """The documents of a split, from its stream."""
    stream, tokenizer = TokenStream([index.root], split), index.tokenizer()
    values = stream.read(0, len(stream))
    assert values[0] == values[-1] == stream.separator
    ends = np.flatnonzero(values == stream.separator)
    return [tokenizer.decode(values[a + 1 : b].tolist()) for a, b in itertools.pairwise(ends)]


def test_what_is_packed_comes_back(texts: Path, tmp_path: Path) -> None:
    index = pack.pack([texts], tmp_path / "out", SMALL)
    assert decoded(index, "train") == [sentences(120, 1), sentences(120, 2)]
    assert decoded(index, "val") == [sentences(60, 3)]
    assert index.splits["train"].text_bytes == len((sentences(120, 1) + sentences(120, 2)).encode())


def test_the_same_text_gives_the_same_bytes(texts: Path, tmp_path: Path) -> None:
    a, b = pack.pack([texts], tmp_path / "a", SMALL), pack.pack([texts], tmp_path / "b", SMALL)
    assert a.fingerprint == b.fingerprint
    for name in ("train-000000.tar", "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    again = pack.packed([texts], tmp_path / "a", SMALL, lambda line: pytest.fail(f"packed again: {line}"))
    assert again.fingerprint == a.fingerprint
    other = pack.packed([texts], tmp_path / "a", PackConfig(vocabulary=290))
    assert other.fingerprint != a.fingerprint


def test_shards_are_webdataset_tars_whose_members_join_to_the_stream(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (pack, tokens):
        monkeypatch.setattr(module, "CHUNK", 500)
    index = pack.pack([texts], tmp_path / "out", PackConfig(vocabulary=300, shard_tokens=1500))
    names = [shard.name for shard in index.splits["train"].shards]
    assert len(names) > 2
    found = []
    for name in names:
        for sample in webdataset.WebDataset(str(tmp_path / "out" / name), shardshuffle=False).decode():
            assert sample["__key__"] == f"train-{len(found):09d}"
            found.append(sample["npy"])
    stream = TokenStream([tmp_path / "out"], "train")
    whole = stream.read(0, len(stream))
    assert np.array_equal(np.concatenate(found), whole)
    rng = np.random.default_rng(0)
    for start, count in zip(rng.integers(0, len(whole) - 1100, 50), rng.integers(1, 1100, 50), strict=True):
        assert np.array_equal(stream.read(int(start), int(count)), whole[start : start + count])
    with pytest.raises(IndexError):
        stream.read(len(stream) - 1, 2)


def test_a_damaged_shard_is_said(texts: Path, tmp_path: Path) -> None:
    index = pack.pack([texts], tmp_path / "out", SMALL)
    shard = tmp_path / "out" / index.splits["train"].shards[0].name
    data = bytearray(shard.read_bytes())
    data[900] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"train-000000\.tar is damaged"):
        TokenStream([tmp_path / "out"], "train").read(0, 10)
    shard.write_bytes(data[:700])
    with pytest.raises(UserError, match="is cut short"):
        TokenStream([tmp_path / "out"], "train").read(0, 10)
    shard.unlink()
    with pytest.raises(UserError, match="is missing"):
        TokenStream([tmp_path / "out"], "train").read(0, 10)
    with pytest.raises(UserError, match="has no split 'test'; it has: train, val"):
        TokenStream([tmp_path / "out"], "test")


def test_text_cannot_forge_the_mark_between_documents(trained: Tokenizer) -> None:
    found = trained.encode("a <|endoftext|> b")
    assert trained.separator not in found
    assert trained.decode(found) == "a <|endoftext|> b"


def test_streamed_text_is_the_text(trained: Tokenizer) -> None:
    text = "The été 漢字 sees."
    pieces = list(trained.stream(trained.encode(text)))
    assert "".join(pieces) == text and len(pieces) > 3


def test_few_documents_give_their_ends_and_many_whole_ones(tmp_path: Path) -> None:
    text = sentences(300)
    (tmp_path / "a.txt").write_text(text)
    index = pack.pack([tmp_path / "a.txt"], tmp_path / "one", PackConfig(vocabulary=300, val_share=0.1))
    (train,), (val,) = decoded(index, "train"), decoded(index, "val")
    assert train + val == text and train.endswith("\n")
    assert len(val) == pytest.approx(0.1 * len(text), rel=0.2)

    index = pack.pack(
        [tmp_path / "a.txt"], tmp_path / "many", PackConfig(vocabulary=300, val_share=0.1, documents="line")
    )
    train, val = decoded(index, "train"), decoded(index, "val")
    assert (len(train), len(val)) == (270, 30)
    assert sorted(train + val) == sorted(filter(None, text.split("\n")))


@pytest.mark.parametrize("read", [7, 1 << 20])
def test_documents_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: int) -> None:
    monkeypatch.setattr(documents, "READ", read)
    text = "\ufeffOne\n  two é\n\n\nthree\n \nfour"
    (tmp_path / "a.txt").write_text(text)
    file = documents.TextFile(tmp_path / "a.txt", None)

    def whole(kind: documents.DocumentKind, file: documents.TextFile = file) -> list[str]:
        found: dict[int, str] = {}
        for number, piece in documents.pieces(file, kind):
            found[number] = found.get(number, "") + piece
        assert list(found) == list(range(len(found)))
        return list(found.values())

    assert whole("file") == [text[1:]]
    assert whole("blank_line") == ["One\n  two é", "three", "four"]
    assert whole("line") == ["One", "  two é", "three", "four"]
    rows = [{"text": "a\nb", "id": 1}, {"text": "été"}]
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as packed:
        packed.write("\n".join(map(json.dumps, rows)))
    assert whole("file", documents.TextFile(tmp_path / "b.jsonl.gz", None)) == ["a\nb", "été"]


def test_names_say_the_split(tmp_path: Path) -> None:
    for name in (
        "novels_train.txt",
        "valid.jsonl.gz",
        "x.test.txt",
        "plain.txt",
        "unit_test.py",
        "val/a.py",
        "b/val/c.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "picture.png").write_bytes(b"x")
    found = {str(f.path.relative_to(tmp_path)): f.split for f in documents.find_texts([tmp_path])}
    assert found == {
        "novels_train.txt": "train", "valid.jsonl.gz": "val", "x.test.txt": "test", "plain.txt": None,
        "unit_test.py": None, "val/a.py": "val", "b/val/c.py": None,
    }  # fmt: skip


def test_short_documents_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short\n" + "long enough to be kept here\n" * 3 + "x" * 30)
    cfg = PackConfig(vocabulary=300, documents="line", val_share=0.0, min_characters=10)
    assert len(decoded(pack.pack([tmp_path / "a.txt"], tmp_path / "o", cfg), "train")) == 4
    long = sentences(1, 5) * 9
    (tmp_path / "a.txt").write_text(f"short\n{long.replace(chr(10), ' ')}\nshort, too")
    many = PackConfig(vocabulary=270, documents="line", val_share=0.0, min_tokens=30)
    (kept,) = decoded(pack.pack([tmp_path / "a.txt"], tmp_path / "p", many), "train")
    assert kept == long.replace("\n", " ")
    none = PackConfig(vocabulary=300, min_tokens=10**6)
    with pytest.raises(UserError, match="no document is left to train on"):
        pack.pack([tmp_path / "a.txt"], tmp_path / "q", none)
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"text\0more", "a.txt is no text: it holds a zero byte at 4"),
        ("a.txt", b"caf\xe9 au lait", "a.txt is no text: bytes from 3 on are not UTF-8"),
        ("a.txt", b"caf\xc3", "a.txt is no text: bytes from"),
        ("a.txt.gz", b"no gzip at all", "a.txt.gz is damaged"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}', "a.jsonl line 2 is no JSON object with a 'text'"),
        ("a.txt", b"", "hold no text"),
    ],
)
def test_a_file_that_is_no_text_is_one_line(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        pack.pack([tmp_path], tmp_path / "out", SMALL)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_tokenizer_that_is_none_is_one_line(trained: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"is no tokenizer.json of Hugging Face's tokenizers"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "nothing.json")
    with pytest.raises(UserError, match=r"no tokenizer at .*spm\.model; name a tokenizer\.json, a sentencepiece"):
        load_tokenizer(tmp_path / "spm.model")
    trained.save(tmp_path)
    assert load_tokenizer(tmp_path).text == trained.text
    with pytest.raises(UserError, match="has no token '<nil>'"):
        load_tokenizer(tmp_path, "<nil>")
    with pytest.raises(UsageError, match=r"the tokenizer has 300 tokens, but model\.vocabulary is 299"):
        load_tokenizer(tmp_path).check_fits(299, "model.vocabulary")


@pytest.mark.parametrize("count", [1, 2, 17, 64, 300])
def test_an_epoch_is_a_permutation_of_its_windows(count: int) -> None:
    order = WindowOrder(count, seed=3)
    epochs = [[order.window(e * count + i) for i in range(count)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(count))
    if count > 16:
        assert epochs[0] != epochs[1] != epochs[2]
        assert epochs[0] != [WindowOrder(count, seed=4).window(i) for i in range(count)]


def test_the_order_mixes_near_and_far() -> None:
    count = 1024
    order = [WindowOrder(count, seed=0).window(i) for i in range(count)]
    steps = np.abs(np.diff(order))
    assert np.mean(steps) == pytest.approx(count / 3, rel=0.1), "as of a random order"
    halves = Counter((i < count // 2, window < count // 2) for i, window in enumerate(order))
    assert all(value == pytest.approx(count / 4, rel=0.15) for value in halves.values())


def test_sets_of_different_tokenizers_do_not_mix(texts: Path, tmp_path: Path) -> None:
    pack.pack([texts], tmp_path / "a", SMALL)
    pack.pack([texts], tmp_path / "b", PackConfig(vocabulary=280))
    with pytest.raises(UsageError, match="were packed by different tokenizers"):
        TokenStream([tmp_path / "a", tmp_path / "b"], "train")
    both = TokenStream([tmp_path / "a", tmp_path / "a"], "train")
    one = TokenStream([tmp_path / "a"], "train")
    assert np.array_equal(both.read(len(one), 20), one.read(0, 20))


# --- a plain folder of text as a data set -----------------------------------------------------------------------------


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AVPRETRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_who_asks_for_the_same_text_at_once_finds_it_packed_once(texts: Path, own_cache: Path) -> None:
    said: list[str] = []
    with ThreadPoolExecutor(3) as pool:
        places = set(pool.map(lambda _: as_tokens([texts], SMALL, said.append), range(3)))
    (place,) = places
    assert place.parent == own_cache / "tokens" and decoded(TokenIndex(place), "val") == [sentences(60, 3)]
    assert [line for line in said if line.startswith("reading")] == ["reading 3 text files"]


def test_text_and_options_that_change_are_packed_beside_what_is_there(tmp_path: Path, own_cache: Path) -> None:
    texts = write_texts(tmp_path / "texts")
    first = as_tokens([texts], SMALL)
    assert as_tokens([tmp_path / "." / "texts"], SMALL) == first
    other = as_tokens([texts], PackConfig(vocabulary=290))
    (texts / "three_train.txt").write_text(sentences(20, 4))
    third = as_tokens([texts], SMALL)
    assert len({first, other, third}) == 3
    assert decoded(TokenIndex(first), "train") == [sentences(120, 1), sentences(120, 2)]
    assert len(decoded(TokenIndex(third), "train")) == 3


def test_text_that_is_none_leaves_nothing_in_the_cache(tmp_path: Path, own_cache: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"fine so far\0")
    with pytest.raises(UserError, match=r"bad\.txt is no text: it holds a zero byte at 11"):
        as_tokens([tmp_path / "bad.txt"], SMALL)
    assert not [path for path in (own_cache / "tokens").iterdir() if path.suffix != ".lock"]


def test_a_cache_that_can_not_be_written_is_said(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVPRETRAIN_CACHE", str(texts / "val.txt"))
    with pytest.raises(UserError, match="set AVPRETRAIN_CACHE to a folder with room, or pack the text with"):
        as_tokens([texts], SMALL)
