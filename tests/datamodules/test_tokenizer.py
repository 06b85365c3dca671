"""Tokenizers: RoBERTa's special ids whatever the file, fairseq's order by its dictionary, one
trained and kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from d2v_pretrain.errors import ConfigError
from datamodules.synthetic.text import SyntheticText
from datamodules.transforms import tokenizer
from datamodules.transforms.text import TextTransform
from datamodules.transforms.tokenizer import SPECIALS, Vocabulary

TEXTS = ["low lower lowest", "new newer newest", "wide wider ä ✓"] * 20


def plain() -> Tokenizer:
    """A word-level tokenizer with ids of its own: a 0, b 1, c 2."""
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="c"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return words


def pair(folder: Path, names: tuple[str, str], tokens: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / names[0]).write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / names[1]).write_text("#version: 0.2\na b\n")
    return folder


def encode(vocabulary: Vocabulary, text: str) -> list[int]:
    return next(vocabulary.encode([text])).tolist()


def test_trained_vocabulary_has_its_size_the_special_ids_and_every_byte() -> None:
    vocabulary = Vocabulary(tokenizer.train(TEXTS, 300))
    assert vocabulary.native and vocabulary.size == 300
    assert [vocabulary.tokenizer.token_to_id(t) for t in (*SPECIALS, "<mask>")] == [0, 1, 2, 3, 299]
    for text in (*TEXTS[:3], "日本 \x07"):
        assert vocabulary.tokenizer.decode(encode(vocabulary, text)) == text
    assert tokenizer.train(TEXTS, 300).to_str() == tokenizer.train(TEXTS, 300).to_str()


def test_too_small_a_vocabulary_is_told() -> None:
    with pytest.raises(ConfigError, match=r"transform\.vocab_size=100 must be at least 261"):
        tokenizer.train(TEXTS, 100)


def test_foreign_ids_move_up_by_four(tmp_path: Path) -> None:
    plain().save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        vocabulary = tokenizer.load(path)
        assert vocabulary.size == 8 and encode(vocabulary, "b a c") == [5, 4, 6]


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_vocabulary_and_merges(tmp_path: Path, names: tuple[str, str]) -> None:
    folder = pair(tmp_path / "bpe", names, ["a", "b", "ab", "Ġ"])
    for path in (folder, folder / names[0]):
        assert encode(tokenizer.load(path), "abb a") == [6, 5, 7, 4]


def test_a_fairseq_dictionary_decides_the_ids(tmp_path: Path) -> None:
    folder = pair(tmp_path / "bpe", ("encoder.json", "vocab.bpe"), ["a", "b", "ab", "Ġ"])
    (folder / "dict.txt").write_text("2 100\n0 50\n3 10\nmadeupword0000 0\n")
    vocabulary = tokenizer.load(folder)
    assert vocabulary.size == 4 + 4 + 1
    assert encode(vocabulary, "ab a") == [4, 6, 5] and encode(vocabulary, "b") == [tokenizer.UNK]


def test_roberta_files_are_used_as_they_are(tmp_path: Path) -> None:
    folder = pair(
        tmp_path / "bpe", ("vocab.json", "merges.txt"), [*SPECIALS, "a", "b", "ab", "<mask>"]
    )
    vocabulary = tokenizer.load(folder)
    assert vocabulary.native and vocabulary.size == 8 and encode(vocabulary, "abb") == [6, 5]


def test_what_is_no_tokenizer_is_told(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer.json cannot be read"):
        tokenizer.load(tmp_path / "tokenizer.json")
    with pytest.raises(
        ConfigError, match=r"must be a tokenizer.json, or a folder .* leave it null"
    ):
        tokenizer.load(tmp_path / "nowhere")
    plain().save(str(tmp_path / "tokenizer.json"))
    transform = TextTransform(SyntheticText(5, 1, 1, 0), 16, 1000, str(tmp_path), None)
    with pytest.raises(ConfigError, match=r"transform.vocab_size=1000 must be 8, .* set it to 8"):
        len(transform)


def test_trained_tokenizer_is_kept_with_the_run_and_read_again(tmp_path: Path) -> None:
    cache = tmp_path / "run" / "tokenizer.json"
    first = TextTransform(SyntheticText(5, 1, 1, 0), 16, 400, None, str(cache))
    tokens = first.tokens
    assert cache.exists()
    stamp = cache.stat().st_mtime_ns
    again = TextTransform(SyntheticText(5, 1, 1, 0), 16, 400, None, str(cache))
    assert (again.tokens == tokens).all() and cache.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("specials_are_marked", [True, False])
def test_all_words_and_typed_special_ids_become_ordinary_tokens(
    tmp_path: Path, specials_are_marked: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against the characters themselves: the tokens decode to the text, and no special id occurs.
    Truncation, padding and dropout of the file do not change them."""
    trained = tokenizer.train(TEXTS, 300)
    text = "<s>struck</s> <mask> <pad><unk> and <unused1> twelve more words in one line of text"
    content = json.loads(trained.to_str())
    for token in content["added_tokens"]:
        token["special"] = specials_are_marked
    content["model"]["dropout"] = 0.5
    sizes = {"max_length": 8, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    content["truncation"] = sizes
    content["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 1,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))
    vocabulary = tokenizer.load(file)
    ids = encode(vocabulary, text)
    assert not {0, 1, 2, 3, vocabulary.size - 1} & {*ids} and ids == encode(vocabulary, text)
    assert vocabulary.tokenizer.decode(ids) == text
    assert "truncation to 8 tokens and padding and dropout" in capsys.readouterr().err


def test_a_long_text_has_the_tokens_of_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = tokenizer.Vocabulary(tokenizer.train(TEXTS, 300))
    rng = np.random.default_rng(0)
    words = [["some", "words", " of", "length", "ä✓"][i] for i in rng.integers(5, size=5000)]
    texts = [" ".join(words), "", "x" * 3000, *words[:50], " ".join(words[:700])]
    whole = [one.tolist() for one in vocabulary.encode(texts)]
    assert [one.ids for one in vocabulary.tokenizer.encode_batch(texts)] == whole
    monkeypatch.setattr(tokenizer, "_PIECE", 997)
    pieces = [one.tolist() for one in vocabulary.encode(texts)]
    assert [one for i, one in enumerate(pieces) if i != 2] == [
        one for i, one in enumerate(whole) if i != 2
    ]
    assert vocabulary.tokenizer.decode(pieces[2]) == texts[2], "no space: cut within the word"
    trained = tokenizer.train(texts[:2], 300).to_str()
    monkeypatch.setattr(tokenizer, "_PIECE", 1_000_000)
    assert tokenizer.train(texts[:2], 300).to_str() == trained


def test_a_tokenizer_that_fails_on_a_text_is_told_with_the_text(tmp_path: Path) -> None:
    made = Tokenizer(models.WordLevel({"known": 0}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    vocabulary = tokenizer.load(tmp_path / "tokenizer.json")
    with pytest.raises(ConfigError, match=r"transform.tokenizer.*fails.*on the text 'strange"):
        list(vocabulary.encode(["known", "known known", "strange"]))


@pytest.mark.slow  # 20 s: a tokenizer of two thousand million ids
def test_ids_with_gaps_are_read_and_impossible_ones_refused(tmp_path: Path) -> None:
    for last, size in ((40, 46), (2**31, None)):
        made = Tokenizer(models.WordLevel({"a": 0, "b": last, "u": 1}, "u"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.save(str(tmp_path / "tokenizer.json"))
        if size is None:
            with pytest.raises(ConfigError, match=r"cannot be read .*ids up to 10,000,000"):
                tokenizer.load(tmp_path / "tokenizer.json")
        else:
            vocabulary = tokenizer.load(tmp_path / "tokenizer.json")
            assert vocabulary.size == size and encode(vocabulary, "a b") == [4, 44]
