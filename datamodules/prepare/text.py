"""Makes samples of text: blocks of tokens as RoBERTa is trained on, each a ``npy`` member."""

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
from d2v_pretrain.types import BOS
from datamodules.datasets.scan import scan
from datamodules.datasets.text_folder import ENDINGS, check
from datamodules.datasets.unusable import Unusable
from datamodules.prepare.output import Output, replace
from datamodules.prepare.packing import Plan, Reasons, arranged, below, cut, source_of
from datamodules.prepare.settings import Text
from datamodules.prepare.tokens import Part, Tokens, TokenStream, binarised, parts, tokenised
from datamodules.shards.tar import BLOCK, Sample
from datamodules.transforms import tokenizer
from datamodules.transforms.blocks import anywhere, limited, whole_lines

_NPY = 128  # bytes of the header of a npy
# Estimated bytes on the disk for each byte of text: a token takes two bytes for about four of text,
# in the temporary files and again in the shards, and tars take more.
_PER_BYTE = 1.5


def plan(settings: Text, output: Output) -> Plan:
    """Tokenise the text, and decide which block goes to which shard."""
    read = _from_fairseq if settings.input.endswith(".bin") else _from_text
    dataset, source, skipped = read(settings, output)
    tokens, room = dataset.tokens, settings.block - 1
    if settings.break_mode == "none":
        blocks = anywhere(int(tokens.starts[-1]), room)
    else:
        blocks = whole_lines(dataset.documents(), room, settings.break_mode == "complete_doc")
    whole, blocks = len(blocks), limited(blocks, room)
    if not len(blocks):
        remedy = "give another folder or file"
        raise ConfigError("input", settings.input, "has no text in it", remedy)
    facts = {
        "unit": "tokens",
        "vocab_size": tokens.vocab_size,
        "block": settings.block,
        "blocks_from_lines_too_long": len(blocks) - whole,
    }
    blocks = blocks[arranged(len(blocks), settings)]
    make = Block(tokens, "uint16" if tokens.vocab_size <= 1 << 16 else "uint32")
    data = (blocks[:, 1] - blocks[:, 0] + 1) * np.dtype(make.type).itemsize + _NPY
    made = BLOCK - (-data // BLOCK) * BLOCK
    size = float(made.sum())
    return Plan(blocks, cut(made, settings), make, _name, size, source, facts, skipped)


def _name(block: np.ndarray) -> str:
    return f"tokens {block[0]} to {block[1]}"


@dataclass(frozen=True)
class Block:
    """Makes a sample of a block, given by its first token and its end: <s> and the tokens of the
    block in a ``npy`` member.

    Args:
        tokens: the stream.
        type: numpy's name of the type of the ids in the member.
    """

    tokens: Tokens
    type: str

    def __call__(self, block: np.ndarray, key: str) -> Sample:
        ids = np.append(BOS, self.tokens.cut(*map(int, block)))
        if not 0 <= ids.min() <= ids.max() < self.tokens.vocab_size:
            size = self.tokens.vocab_size
            raise Unusable(f"holds id {ids.max()}, beyond the dictionary's {size}")
        buffer = io.BytesIO()
        np.save(buffer, ids.astype(self.type))
        return Sample(key, {"npy": buffer.getvalue()}, len(ids))


Found = tuple[TokenStream, dict[str, Any], dict[str, str]]


def _from_text(settings: Text, output: Output) -> Found:
    """The tokens of text files, what identifies the files, and those that were skipped."""
    root, reasons = settings.input, Reasons(settings.input)
    endings = ("",) if os.path.isfile(root) else ENDINGS
    files = {
        file: os.path.getsize(file)
        for file in scan(root, endings, check, reasons, settings.max_bad_share)
    }
    source = source_of([(below(file, root), size) for file, size in files.items()])
    given = _tokenizer_files(Path(settings.tokenizer)) if settings.tokenizer else {}
    source["tokenizer"] = _hash(given)
    output.begin(source)
    there = sum(file.stat().st_size for file in output.working.iterdir())
    output.check_space(_PER_BYTE * source["bytes"] - there)
    folder = output.folder / "tokenizer"
    _copy(given, folder)
    if not given and not (folder / "tokenizer.json").exists():
        size = f"{min(settings.train_mb, source['bytes'] / 1e6):,.0f} MB of text"
        what = f"a tokenizer of {settings.vocab_size:,} ids"
        print(f"training {what} on {size}", file=sys.stderr)
        trained = tokenizer.train(_evenly(files, settings), settings.vocab_size)
        replace(folder / "tokenizer.json", trained.to_str(pretty=True).encode())
    return tokenised(files, output.working, folder, settings), source, reasons.reasons


def _from_fairseq(settings: Text, output: Output) -> Found:
    """As ``_from_text`` for fairseq's binarised data, which are read in place."""
    path = Path(settings.input)
    dataset = binarised(path)
    names = [path, path.with_suffix(".idx"), path.with_name("dict.txt")]
    source = source_of([(file.name, file.stat().st_size) for file in names])
    given = _tokenizer_files(Path(settings.tokenizer)) if settings.tokenizer else {}
    kept = given | {"dict.txt": names[2]}
    source["tokenizer"] = _hash(kept)
    output.begin(source)
    _copy(kept, output.folder / "tokenizer")
    size = dataset.tokens.vocab_size
    if given and (own := tokenizer.load(output.folder / "tokenizer").size) != size:
        rule = f"has {own} ids, and the dictionary beside {path.name} {size}"
        remedy = "give the one that the data were made with"
        raise ConfigError("tokenizer", settings.tokenizer, rule, remedy)
    return dataset, source, {}


def _evenly(files: dict[str, int], settings: Text) -> Iterator[str]:
    """The lines of every n-th part of the text, about ``train_mb`` in all."""
    part_bytes = int(settings.part_mb * 1e6)
    every: list[Part] = [
        part for file, size in files.items() for part in parts(file, size, part_bytes)
    ]
    step = max(1, round(sum(files.values()) / (settings.train_mb * 1e6)))
    for part in every[::step]:
        yield from filter(None, part.lines())


def _tokenizer_files(path: Path) -> dict[str, Path]:
    """The files of a tokenizer, by the names that they get in the output."""
    tokenizer.load(path)  # tells now if it cannot be read
    files = tokenizer.files_of(path)
    return {"tokenizer.json": files[0]} if len(files) == 1 else {file.name: file for file in files}


def _copy(files: dict[str, Path], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, file in files.items():
        replace(folder / name, file.read_bytes())


def _hash(files: dict[str, Path]) -> str | None:
    """A hash of the names and bytes of files; None if there are none."""
    if not files:
        return None
    sums = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
    rows = "".join(f"{name} {digest}\n" for name, digest in sums.items())
    return hashlib.sha256(rows.encode()).hexdigest()
