"""Vocabulary: any tokenizer of the `tokenizers` library with RoBERTa's special ids; or one trained
on the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import ByteLevelBPETokenizer, Tokenizer, decoders, models, pre_tokenizers, trainers

from d2v_pretrain.errors import ConfigError

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3; "<mask>" is the last id
BOS, PAD, EOS, UNK = range(4)
_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_LINES = 10_000  # encoded at once: bounds the memory


class Vocabulary:
    """Text -> ids with <s> 0, <pad> 1, </s> 2, <unk> 3 and <mask> last.

    A tokenizer that has these ids (RoBERTa's, or ours) is used as it is; another's ids are moved up
    by four, or to the places that a fairseq dictionary gives them.

    Args:
        tokenizer: of the `tokenizers` library.
        order: raw ids in the order of the dictionary (line n is id n + 4), or None.
    """

    def __init__(
        self, tokenizer: Tokenizer | ByteLevelBPETokenizer, order: list[int] | None = None
    ) -> None:
        self.tokenizer = (
            tokenizer._tokenizer if isinstance(tokenizer, ByteLevelBPETokenizer) else tokenizer
        )
        raw = tokenizer.get_vocab_size()
        ids = [tokenizer.token_to_id(token) for token in (*SPECIALS, "<mask>")]
        self.native = ids == [0, 1, 2, 3, raw - 1]
        order = list(range(raw)) if order is None else order
        self.size = raw if self.native else len(order) + 5
        self.moved = np.full(raw, UNK, np.int32)
        known = np.array([(i, n + 4) for n, i in enumerate(order) if 0 <= i < raw])
        self.moved[known[:, 0]] = known[:, 1]

    def encode(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """The ids of each text, (T,) int32, without specials around them."""
        texts = iter(texts)
        while part := list(islice(texts, _LINES)):
            for encoded in self.tokenizer.encode_batch_fast(part, add_special_tokens=False):
                ids = np.array(encoded.ids, np.int32)
                yield ids if self.native else self.moved[ids]


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE (GPT-2's pre-tokenizer) of exactly ``vocab_size`` ids; what the text does
    not fill is unused."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(SPECIALS) + len(alphabet) + 1
    if vocab_size < least:
        raise ConfigError(
            "transform.vocab_size",
            vocab_size,
            f"must be at least {least}, all bytes and the specials",
        )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=list(SPECIALS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    missing = vocab_size - 1 - tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"<unused{i}>" for i in range(missing)])
    tokenizer.add_special_tokens(["<mask>"])
    return tokenizer


def load(path: Path) -> Vocabulary:
    """Read a ``tokenizer.json``, a vocabulary whose merges lie beside it, or a folder that holds
    either.

    ``encoder.json`` + ``vocab.bpe`` with a ``*dict.txt`` beside them (lines "GPT-2 id, count") give
    fairseq's ids.

    Raises:
        ConfigError: if there is nothing such, or it cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    try:
        if path.is_file() and path.name not in {vocab for vocab, _ in _PAIRS}:
            return Vocabulary(Tokenizer.from_file(str(path)))
        if path.is_dir() and (path / "tokenizer.json").exists():
            return Vocabulary(Tokenizer.from_file(str(path / "tokenizer.json")))
        for vocab, merges in _PAIRS:
            pair = (folder / vocab, folder / merges)
            if all(file.exists() for file in pair) and path in (folder, pair[0]):
                return Vocabulary(
                    ByteLevelBPETokenizer.from_file(*map(str, pair)), _fairseq_order(folder)
                )
    except Exception as error:  # `tokenizers` raises bare Exception for a file that it cannot parse
        raise ConfigError(
            "transform.tokenizer", path, f"cannot be read ({error})", "give a tokenizer.json"
        ) from None
    rule = "must be a tokenizer.json, or a folder with one or with vocab.json + merges.txt or encoder.json + vocab.bpe"
    raise ConfigError(
        "transform.tokenizer", path, rule, "or leave it null to train one on the data"
    )


def _fairseq_order(folder: Path) -> list[int] | None:
    """Raw ids in the order of the first ``*dict.txt`` in a folder; its made-up words are no id
    (-1)."""
    for file in sorted(folder.glob("*dict.txt")):
        words = (line.split()[0] for line in file.read_text("utf-8").splitlines() if line.strip())
        return [int(word) if word.isdigit() else -1 for word in words]
    return None
