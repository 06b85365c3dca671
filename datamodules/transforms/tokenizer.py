"""Vocabulary: a tokenizer of the `tokenizers` library with RoBERTa's special ids; training one."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from tokenizers import (
    ByteLevelBPETokenizer,
    Encoding,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    trainers,
)

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.types import UNK
from datamodules.datasets.unusable import Unusable, reading

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3; "<mask>" is the last id
_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
# Characters that are encoded at once, which limits the memory to about 250 MB.
_PIECE, _TEXTS = 1_000_000, 10_000
_MOST_IDS = 10_000_000  # a larger id is a mistake in the file


class Vocabulary:
    """Text to ids with <s> 0, <pad> 1, </s> 2, <unk> 3 and <mask> last.

    A tokenizer that has these ids (RoBERTa's, or ours) is used as it is. The ids of any other are
    increased by four, or replaced by those that a fairseq dictionary gives them.

    All of a text becomes tokens: what the tokenizer's file says of truncation, padding and dropout
    is switched off. Names of special ids in a text (``<s>``, ``[MASK]``) are characters like
    others, as in fairseq's BPE.

    Args:
        tokenizer: of the `tokenizers` library.
        order: the tokenizer's ids in the order of the dictionary (line n is id n + 4), or None.

    Attributes:
        switched_off: what was switched off.
    """

    def __init__(
        self, tokenizer: Tokenizer | ByteLevelBPETokenizer, order: list[int] | None = None
    ) -> None:
        self.tokenizer = (
            tokenizer._tokenizer if isinstance(tokenizer, ByteLevelBPETokenizer) else tokenizer
        )
        self.switched_off = _everything_becomes_tokens(self.tokenizer)
        raw = 1 + max(tokenizer.get_vocab().values(), default=-1)
        if raw > _MOST_IDS:
            raise ValueError(f"has id {raw - 1:,}, and ids up to {_MOST_IDS:,} are read")
        ids = [tokenizer.token_to_id(token) for token in (*SPECIALS, "<mask>")]
        self.native = ids == [0, 1, 2, 3, raw - 1]
        order = list(range(raw)) if order is None else order
        self.size = raw if self.native else len(order) + 5
        self.moved = np.full(raw, UNK, np.int32)
        known = np.array([(i, n + 4) for n, i in enumerate(order) if 0 <= i < raw])
        self.moved[known[:, 0]] = known[:, 1]

    def encode(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """The ids of each text, (tokens,) int32, without <s> and </s> around them."""
        held: list[np.ndarray] = []
        for batch in _batches(piece for text in texts for piece in _pieces(text)):
            for encoded, (_, end) in zip(self._encoded([text for text, _ in batch]), batch):
                held.append(np.array(encoded.ids, np.int32))
                if end:
                    ids = held[0] if len(held) == 1 else np.concatenate(held)
                    yield ids if self.native else self.moved[ids]
                    held = []

    def _encoded(self, texts: list[str]) -> list[Encoding]:
        """The library's result for each text.

        Raises:
            ConfigError: if it fails on one, as for a word that an incomplete vocabulary lacks.
        """
        try:
            with reading("fails"):
                return self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except Unusable as error:
            if len(texts) > 1:
                return [one for text in texts for one in self._encoded([text])]
            rule = f"{error} on the text {texts[0][:60]!r}"
            raise ConfigError("transform.tokenizer", "", rule, "give another one") from None


def _everything_becomes_tokens(tokenizer: Tokenizer) -> list[str]:
    """Switch off what would drop, add or replace tokens; returns what that was."""
    found = []
    if tokenizer.truncation is not None:
        found.append(f"truncation to {tokenizer.truncation.get('max_length')} tokens")
        tokenizer.no_truncation()
    if tokenizer.padding is not None:
        found.append("padding")
        tokenizer.no_padding()
    model = tokenizer.model
    for name in ("dropout", "nbest_size", "alpha"):  # each makes the tokens of a word random
        if getattr(model, name, None):
            found.append(name)
            setattr(model, name, None)
    names = (*SPECIALS, "<mask>")
    added = tokenizer.get_added_tokens_decoder().values()
    plain = [token for token in added if token.content in names and not token.special]
    for token in plain:
        token.special = True
    tokenizer.add_special_tokens(plain)
    tokenizer.encode_special_tokens = True
    return found


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """A text in pieces of at most 1,000,000 characters, each with whether it is the last.

    They begin with a space where there is one, so that their tokens are those of the whole text.
    """
    start = 0
    while len(text) - start > _PIECE:
        space = text.rfind(" ", start + 1, start + _PIECE)
        end = space if space > 0 else start + _PIECE
        yield text[start:end], False
        start = end
    yield text[start:] if start else text, True


def _batches(pieces: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    """Pieces in lists of about 1,000,000 characters."""
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[0])
        if size >= _PIECE or len(batch) == _TEXTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


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
    tokenizer.train_from_iterator((piece for text in texts for piece, _ in _pieces(text)), trainer)
    missing = vocab_size - 1 - tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([f"<unused{i}>" for i in range(missing)])
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
        with reading("cannot be read"):
            if len(files) == 1:
                vocabulary = Vocabulary(Tokenizer.from_file(str(files[0])))
            else:
                vocab, merges, *dictionary = files
                order = _fairseq_order(dictionary[0]) if dictionary else None
                bpe = ByteLevelBPETokenizer.from_file(str(vocab), str(merges))
                vocabulary = Vocabulary(bpe, order)
    except Unusable as error:
        raise ConfigError(
            "transform.tokenizer", path, str(error), "give a tokenizer.json"
        ) from None
    if vocabulary.switched_off and multiprocessing.parent_process() is None:
        _tell(str(path), " and ".join(vocabulary.switched_off))
    return vocabulary


@cache
def _tell(path: str, what: str) -> None:
    rule = "switched off, so that all of a text becomes tokens"
    print(f"transform.tokenizer={path}: its {what}: {rule}", file=sys.stderr)


def _fairseq_order(dictionary: Path) -> list[int]:
    """The tokenizer's ids in the order of a ``dict.txt``; -1 for lines that are no id."""
    lines = dictionary.read_text("utf-8").splitlines()
    words = (line.split()[0] for line in lines if line.strip())
    return [int(word) if word.isdigit() else -1 for word in words]
