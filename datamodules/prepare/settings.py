"""The options of each command of ``datamodules.prepare``; ``d2v_pretrain.config.options`` reads
them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Literal


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every command needs."""

    input: Annotated[str, "folder or file to read"]
    processes: Annotated[
        int, "processes at work at once; the output does not depend on their number", 1
    ] = os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class Build(Work):
    """What every command that writes shards needs."""

    output: Annotated[str, "folder of the shards: a new one, or one that this command began"]
    order: Annotated[
        Literal["shuffle", "sorted"], "of the samples over the shards; sorted is by name"
    ] = "shuffle"
    seed: Annotated[int, "of the shuffle"] = 0
    shard_mb: Annotated[float, "approximate size of a shard in MB", 1e-6] = 256.0
    shard_samples: Annotated[int | None, "samples in a shard, in place of shard_mb", 1] = None
    max_bad_share: Annotated[float, "stop if more of the input than this cannot be used", 0] = 0.1
    licence: Annotated[
        str | None,
        "of the data, for the manifest; null takes it from a LICENSE or README file in input",
    ] = None


@dataclass(frozen=True, kw_only=True)
class Audio(Build):
    """Put audio files into shards: wav, flac, ogg, opus, mp3 and others below a folder, or those
    that a fairseq manifest lists (input=FILE.tsv).

    Usage: d2v-pretrain prepare audio input=DIR output=DIR [key=value …]

    Examples:
      d2v-pretrain prepare audio input=LibriSpeech/train-clean-100 output=shards/clean100
      d2v-pretrain prepare audio input=recordings output=shards/recordings encode=flac
      d2v-pretrain prepare audio input=train.tsv output=shards/train max_seconds=20 shard_mb=1000
    """

    encode: Annotated[
        Literal["keep", "flac"],
        "keep the bytes of the files, or encode them as FLAC (16 kHz, mono, 16 bits)",
    ] = "keep"
    min_seconds: Annotated[float, "shorter files are skipped and listed", 0] = 0.2
    max_seconds: Annotated[
        float, "longer files are cut into equal parts, which are encoded as FLAC", 0.001
    ] = 35.0
    check: Annotated[
        Literal["decode", "header"], "how much of a file is read before its bytes are kept"
    ] = "decode"


@dataclass(frozen=True, kw_only=True)
class Vision(Build):
    """Put jpg, png and webp files below a folder into shards; sub-folders that are classes give
    labels.

    Usage: d2v-pretrain prepare vision input=DIR output=DIR [key=value …]

    Examples:
      d2v-pretrain prepare vision input=imagenet/train output=shards/imagenet
      d2v-pretrain prepare vision input=photos output=shards/photos short_side=256
      d2v-pretrain prepare vision input=photos output=shards/photos check=header processes=32
    """

    short_side: Annotated[
        int | None,
        "pixels; larger images are scaled down to it and stored as JPEG; null keeps all bytes",
        1,
    ] = None
    quality: Annotated[int, "of that JPEG, 1 to 95", 1] = 90
    min_side: Annotated[int, "pixels; images with a shorter side are skipped and listed", 1] = 8
    check: Annotated[
        Literal["decode", "header"], "how much of a file is read before its bytes are kept"
    ] = "decode"


@dataclass(frozen=True, kw_only=True)
class Text(Build):
    """Tokenise text and put it into shards: UTF-8 .txt files below a folder, one such file with a
    piece of text on each line, or a binarised file of fairseq (input=FILE.bin).

    Usage: d2v-pretrain prepare text input=DIR output=DIR [key=value …]

    Examples:
      d2v-pretrain prepare text input=books output=shards/books
      d2v-pretrain prepare text input=books output=shards/books tokenizer=roberta-base/
      d2v-pretrain prepare text input=wiki.txt output=shards/wiki break_mode=complete_doc
    """

    tokenizer: Annotated[
        str | None,
        "a tokenizer.json, or a folder with one or with a vocabulary and merges; null trains one",
    ] = None
    vocab_size: Annotated[int, "number of ids of the tokenizer that is trained", 261] = 50_265
    train_mb: Annotated[float, "MB of text that it is trained on, spread evenly", 1e-6] = 1000.0
    block: Annotated[int, "tokens of a sample, with its <s>", 2] = 512
    break_mode: Annotated[
        Literal["none", "complete", "complete_doc"],
        "none cuts anywhere, so that all blocks are full (data2vec 2); complete keeps lines whole; "
        "complete_doc also keeps documents apart (data2vec 1): one ends at a blank line or with "
        "its file",
    ] = "none"
    blank_lines: Annotated[
        Literal["keep", "drop"], "keep makes a blank line a lone </s>, as in RoBERTa's data"
    ] = "keep"
    part_mb: Annotated[float, "MB of text that are tokenised at a time", 1e-6] = 16.0


@dataclass(frozen=True, kw_only=True)
class Index(Work):
    """Write the index of every tar file that has none or an outdated one.

    Usage: d2v-pretrain prepare index input=DIR (a folder, or one tar file)
    """


@dataclass(frozen=True, kw_only=True)
class Verify(Work):
    """Check every checksum, index and member of a folder of shards. The exit code is 1 if anything
    is wrong.

    Usage: d2v-pretrain prepare verify input=DIR
    """


COMMANDS: dict[str, type[Work]] = {
    "audio": Audio,
    "vision": Vision,
    "text": Text,
    "index": Index,
    "verify": Verify,
}
