"""What an encoder reads, for an export: the files that tell transformers how to make it, and an example of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.utils import instantiate

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.family.preprocess_audio import Data2VecAudioFeatureExtractor
from d2v_pretrain.family.preprocess_vision import Data2VecVisionImageProcessor
from d2v_pretrain.interop import tokenizer_files
from d2v_pretrain.models.stems import AudioStem, EdgeStem, TextStem, VisionStem
from d2v_pretrain.trained import Trained
from d2v_pretrain.types import Batch

_EPS = 1e-5  # of the waveforms' normalisation in pretraining


@dataclass(frozen=True)
class Inputs:
    """What one kind of stem reads.

    Args:
        name: as transformers calls the input.
        auto: class of transformers that makes it.
        write: writes the files for that class; returns what a user must know, or "".
        example: a batch of two random inputs, the second padded where inputs may be.
    """

    name: str
    auto: str
    write: Callable[[Trained, Path], str]
    example: Callable[[Trained], Batch]


def _write_audio(run: Trained, folder: Path) -> str:
    Data2VecAudioFeatureExtractor(eps=_EPS).save_pretrained(folder)
    return ""


def _write_vision(run: Trained, folder: Path) -> str:
    """As probes see an image. Resizing keeps its proportions there and does not here: transformers cannot."""
    source = run.cfg.source
    wide = round(source.size / source.centre)
    Data2VecVisionImageProcessor(
        size=(wide, wide),
        do_center_crop=wide != source.size,
        crop_size=(source.size, source.size),
        do_normalize=not source.standardise,
        image_mean=tuple(source.mean),
        image_std=tuple(source.std),
    ).save_pretrained(folder)
    if not source.standardise:
        return ""
    return (
        "every image is standardised by itself, mean colour 0 and contrast 1: the folder's own code for transformers "
        "does so; before an encoder of d2v_pretrain.load do it yourself"
    )


def _write_text(run: Trained, folder: Path) -> str:
    try:
        vocabulary = instantiate(run.cfg.source, _convert_="all").vocabulary
    except ConfigError as error:
        return f"no tokenizer was written: {error}"
    content = json.loads(vocabulary.tokenizer.to_str())
    if (reason := tokenizer_files.why_not(content)) is not None:
        return f"no tokenizer was written: {reason}"
    ids = tokenizer_files.ids_of(content, None if vocabulary.native else vocabulary.moved, vocabulary.size)
    tokenizer_files.write(folder, ids, content, run.cfg.source.block)
    return ""


def _audio(run: Trained) -> Batch:
    return Batch(torch.randn(2, 8000), torch.arange(2), torch.tensor([8000, 5000]))


def _vision(run: Trained) -> Batch:
    side = run.cfg.source.size
    return Batch(torch.randn(2, 3, side, side), torch.arange(2))


def _text(run: Trained) -> Batch:
    source = run.cfg.source
    ids = torch.randint(4, source.vocab_size, (2, source.block))
    ids[1, source.block // 2 :] = 1
    return Batch(ids, torch.arange(2), torch.tensor([source.block, source.block // 2]))


INPUTS = {
    AudioStem: Inputs("input_values", "AutoFeatureExtractor", _write_audio, _audio),
    VisionStem: Inputs("pixel_values", "AutoImageProcessor", _write_vision, _vision),
    EdgeStem: Inputs("pixel_values", "AutoImageProcessor", _write_vision, _vision),
    TextStem: Inputs("input_ids", "AutoTokenizer", _write_text, _text),
}
