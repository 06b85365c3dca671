"""Vocabulary: a tokenizer of the `tokenizers` library with RoBERTa's special ids; training one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import ByteLevelBPETokenizer, Tokenizer, decoders, models, pre_tokenizers, trainers

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.types import UNK

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3; "<mask>" is the last id
_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
_LINES = 10_000  # texts encoded at once, which limits the memory


class Vocabulary:
    """Text to ids with <s> 0, <pad> 1, </s> 2, <unk> 3 and <mask> last.

    A tokenizer that has these ids (RoBERTa's, or ours) is used as it is. The ids of any other are
    increased by four, or replaced by those that a fairseq dictionary gives them.

    Args:
        tokenizer: of the `tokenizers` library.
        order: the tokenizer's ids in the order of the dictionary (line n is id n + 4), or None.
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
        """The ids of each text, (tokens,) int32, without <s> and </s> around them."""
        texts = iter(texts)
        while part := list(islice(texts, _LINES)):
            for encoded in self.tokenizer.encode_batch_fast(part, add_special_tokens=False):
                ids = np.array(encoded.ids, np.int32)
                yield ids if self.native else self.moved[ids]


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE (GPT-2's pre-tokenizer) of exactly ``vocab_size`` ids.

    If the text is too short for so many ids, the rest are unused tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(SPECIALS) + len(alphabet) + 1
    if vocab_size < least:
        rule = f"must be at least {least}, all bytes and the special ids"
        raise ConfigError("transform.vocab_size", vocab_size, rule, "raise it")
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


def files_of(path: Path) -> list[Path]:
    """The files of the tokenizer that ``load`` finds at a path; [] if there is none."""
    if path.is_file() and path.name not in {vocab for vocab, _ in _PAIRS}:
        return [path]
    if path.is_dir() and (path / "tokenizer.json").exists():
        return [path / "tokenizer.json"]
    folder = path if path.is_dir() else path.parent
    for vocab, merges in _PAIRS:
        pair = [folder / vocab, folder / merges]
        if all(file.exists() for file in pair) and path in (folder, pair[0]):
            return [*pair, *sorted(folder.glob("*dict.txt"))[:1]]
    return []


def load(path: Path) -> Vocabulary:
    """Read a ``tokenizer.json``, a vocabulary whose merges lie beside it, or a folder with either.

    A fairseq dictionary (``*dict.txt``, lines "GPT-2 id, count") beside ``encoder.json`` and
    ``vocab.bpe`` gives the ids their order.

    Raises:
        ConfigError: if there is no tokenizer, or it cannot be read.
    """
    files = files_of(path)
    if not files:
        rule = (
            "must be a tokenizer.json, or a folder with one, or with vocab.json and merges.txt, "
            "or with encoder.json and vocab.bpe"
        )
        remedy = "give such a path, or leave it null to train one on the data"
        raise ConfigError("transform.tokenizer", path, rule, remedy)
    try:
        if len(files) == 1:
            return Vocabulary(Tokenizer.from_file(str(files[0])))
        vocab, merges, *dictionary = files
        order = _fairseq_order(dictionary[0]) if dictionary else None
        return Vocabulary(ByteLevelBPETokenizer.from_file(str(vocab), str(merges)), order)
    except Exception as error:  # `tokenizers` raises bare Exception for a file it cannot parse
        rule, remedy = f"cannot be read ({error})", "give a tokenizer.json"
        raise ConfigError("transform.tokenizer", path, rule, remedy) from None


def _fairseq_order(dictionary: Path) -> list[int]:
    """The tokenizer's ids in the order of a ``dict.txt``; -1 for lines that are no id."""
    lines = dictionary.read_text("utf-8").splitlines()
    words = (line.split()[0] for line in lines if line.strip())
    return [int(word) if word.isdigit() else -1 for word in words]
