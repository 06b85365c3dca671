"""Text to samples: blocks of tokens as RoBERTa has them, each a ``npy`` member."""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2v_pretrain.errors import ConfigError
from datamodules.datasets.scan import Unusable, scan
from datamodules.datasets.text_folder import ENDINGS, check
from datamodules.prepare.blocks import anywhere, limited, whole_lines
from datamodules.prepare.output import Output, replace
from datamodules.prepare.packing import Plan, Reasons, arranged, below, cut, source_of
from datamodules.prepare.settings import Text
from datamodules.prepare.tar import TAR_BLOCK, Sample
from datamodules.prepare.tokens import Dataset, Part, Tokens, binarised, parts, tokenised
from datamodules.transforms import tokenizer
from datamodules.transforms.tokenizer import BOS

_NPY = 128  # bytes of the header
_PER_BYTE = 1.5  # bytes on the disk for one of text: two of a token for about four of text, twice, and the tar
_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


def plan(settings: Text, output: Output) -> Plan:
    """Which block goes to which shard; tokenises the text first."""
    dataset, transform, skipped = (
        _from_fairseq if settings.input.endswith(".bin") else _from_text
    )(settings, output)
    tokens, room = dataset.tokens, settings.block - 1
    if settings.break_mode == "none":
        blocks = anywhere(int(tokens.starts[-1]), room)
    else:
        blocks = whole_lines(dataset.documents(), room, settings.break_mode == "complete_doc")
    whole, blocks = len(blocks), limited(blocks, room)
    if not len(blocks):
        raise ConfigError(
            "input", settings.input, "has no text in it", "give another folder or file"
        )
    facts = {
        "unit": "tokens",
        "vocab_size": tokens.vocab_size,
        "block": settings.block,
        "blocks_from_lines_too_long": len(blocks) - whole,
    }
    blocks = blocks[arranged(len(blocks), settings)]
    make = Block(tokens, "uint16" if tokens.vocab_size <= 1 << 16 else "uint32")
    data = (blocks[:, 1] - blocks[:, 0] + 1) * np.dtype(make.type).itemsize + _NPY
    made = TAR_BLOCK - (-data // TAR_BLOCK) * TAR_BLOCK
    return Plan(
        blocks, cut(made, settings), make, _name, float(made.sum()), transform, facts, skipped
    )


def _name(block: np.ndarray) -> str:
    return f"tokens {block[0]} to {block[1]}"


@dataclass(frozen=True)
class Block:
    """(first, last + 1) in the stream -> <s> and these tokens, (T,) in a ``npy`` member.

    Args:
        tokens: the stream. type: of the numbers in the member, as numpy names it.
    """

    tokens: Tokens
    type: str

    def __call__(self, block: np.ndarray, key: str) -> Sample:
        ids = np.append(BOS, self.tokens.cut(*map(int, block)))
        if not 0 <= ids.min() <= ids.max() < self.tokens.vocab_size:
            raise Unusable(
                f"holds id {ids.max()}, beyond the dictionary's {self.tokens.vocab_size}"
            )
        buffer = io.BytesIO()
        np.save(buffer, ids.astype(self.type))
        return Sample(key, {"npy": buffer.getvalue()}, len(ids))


Found = tuple[Dataset, dict[str, Any], dict[str, str]]


def _from_text(settings: Text, output: Output) -> Found:
    """Tokens of text files, what is known of these, and those skipped."""
    root, reasons = settings.input, Reasons(settings.input)
    endings = ("",) if os.path.isfile(root) else ENDINGS
    files = {
        file: os.path.getsize(file)
        for file in scan(root, endings, check, reasons, settings.max_bad_share)
    }
    transform = source_of([(below(file, root), size) for file, size in files.items()])
    given = _tokenizer_files(Path(settings.tokenizer)) if settings.tokenizer else {}
    transform["tokenizer"] = _hash(given)
    output.begin(transform)
    there = sum(file.stat().st_size for file in output.working.iterdir())
    output.check_space(_PER_BYTE * transform["bytes"] - there)
    folder = output.folder / "tokenizer"
    _copy(given, folder)
    if not given and not (folder / "tokenizer.json").exists():
        size = min(settings.train_mb, transform["bytes"] / 1e6)
        print(
            f"training a tokenizer of {settings.vocab_size:,} ids on {size:,.0f} MB of text",
            file=sys.stderr,
        )
        trained = tokenizer.train(_evenly(files, settings), settings.vocab_size)
        replace(folder / "tokenizer.json", trained.to_str(pretty=True).encode())
    return tokenised(files, output.working, folder, settings), transform, reasons.reasons


def _from_fairseq(settings: Text, output: Output) -> Found:
    """The same of binarised data, which is read where it lies."""
    path = Path(settings.input)
    dataset = binarised(path)
    names = [path, path.with_suffix(".idx"), path.with_name("dict.txt")]
    transform = source_of([(file.name, file.stat().st_size) for file in names])
    given = _tokenizer_files(Path(settings.tokenizer)) if settings.tokenizer else {}
    kept = given | {"dict.txt": names[2]}
    transform["tokenizer"] = _hash(kept)
    output.begin(transform)
    _copy(kept, output.folder / "tokenizer")
    if (
        given
        and (size := tokenizer.load(output.folder / "tokenizer").size) != dataset.tokens.vocab_size
    ):
        rule = f"has {size} ids, and the dictionary beside {path.name} {dataset.tokens.vocab_size}"
        raise ConfigError(
            "tokenizer", settings.tokenizer, rule, "give the one that the data were made with"
        )
    return dataset, transform, {}


def _evenly(files: dict[str, int], settings: Text) -> Iterator[str]:
    """The lines of every n-th part, of about ``train_mb`` in all."""
    part_bytes = int(settings.part_mb * 1e6)
    every: list[Part] = [
        part for file, size in files.items() for part in parts(file, size, part_bytes)
    ]
    step = max(1, round(sum(files.values()) / (settings.train_mb * 1e6)))
    for part in every[::step]:
        yield from filter(None, part.lines())


def _tokenizer_files(path: Path) -> dict[str, Path]:
    """Name -> file of what ``datamodules.transforms.tokenizer.load`` reads of a path, which it has
    read once to be sure."""
    tokenizer.load(path)
    one = path if path.is_file() else path / "tokenizer.json"
    if one.exists() and one.name not in {vocab for vocab, _ in _PAIRS}:
        return {"tokenizer.json": one}
    folder = path if path.is_dir() else path.parent
    pairs = [pair for pair in _PAIRS if all((folder / name).exists() for name in pair)]
    vocab, merges = next(pair for pair in pairs if path in (folder, folder / pair[0]))
    names = [vocab, merges, *sorted(file.name for file in folder.glob("*dict.txt"))[:1]]
    return {name: folder / name for name in names}


def _copy(files: dict[str, Path], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, file in files.items():
        replace(folder / name, file.read_bytes())


def _hash(files: dict[str, Path]) -> str | None:
    """Of the names and bytes of files; None of none."""
    if not files:
        return None
    rows = "".join(
        f"{name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n" for name, file in files.items()
    )
    return hashlib.sha256(rows.encode()).hexdigest()
