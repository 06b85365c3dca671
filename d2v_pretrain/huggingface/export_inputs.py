"""The inputs of an exported encoder: files that tell transformers how to prepare them, and a batch
to compare the export with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from d2v_pretrain.checkpoint.saved_run import Run
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface import tokenizer_files
from d2v_pretrain.huggingface.preprocess_audio import Data2VecAudioFeatureExtractor
from d2v_pretrain.huggingface.preprocess_vision import Data2VecVisionImageProcessor
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.models.stems import AudioStem, EdgeStem, TextStem, VisionStem
from d2v_pretrain.types import Batch

_EPS = 1e-5  # pretraining normalises waveforms with it


@dataclass(frozen=True)
class Inputs:
    """The inputs of one kind of stem.

    Args:
        name: what transformers calls the input.
        auto: the class of transformers that prepares it.
        write: writes the files for that class, and returns a sentence for the user, or "".
        example: makes a batch of two random inputs, the second padded if padding is possible.
    """

    name: str
    auto: str
    write: Callable[[Run, Path], str]
    example: Callable[[Run], Batch]


def _write_audio(run: Run, folder: Path) -> str:
    Data2VecAudioFeatureExtractor(eps=_EPS).save_pretrained(folder)
    return ""


def _write_vision(run: Run, folder: Path) -> str:
    """Images are prepared as for probes, except for one thing: resizing changes their proportions,
    because transformers cannot keep them."""
    transform = run.cfg.transform
    wide = round(transform.size / transform.centre)
    Data2VecVisionImageProcessor(
        size=(wide, wide),
        do_center_crop=wide != transform.size,
        crop_size=(transform.size, transform.size),
        do_normalize=not transform.standardise,
        image_mean=tuple(transform.mean),
        image_std=tuple(transform.std),
    ).save_pretrained(folder)
    if not transform.standardise:
        return ""
    return (
        "every image is standardised by itself, mean colour 0 and contrast 1; the folder's own "
        "code for transformers does so, and so does d2v_pretrain.load"
    )


def _write_text(run: Run, folder: Path) -> str:
    try:
        vocabulary = run.gate.prepared(run.preparation(), run.file, [""]).vocabulary
    except ConfigError as error:
        return f"no tokenizer was written: {error}"
    content = json.loads(vocabulary.tokenizer.to_str())
    if (reason := tokenizer_files.why_not(content)) is not None:
        return f"no tokenizer was written: {reason}"
    moved = None if vocabulary.native else vocabulary.moved
    ids = tokenizer_files.ids_of(content, moved, vocabulary.size)
    tokenizer_files.write(folder, ids, content, run.cfg.transform.block)
    return ""


def _audio(run: Run) -> Batch:
    return Batch(torch.randn(2, 8000), torch.arange(2), torch.tensor([8000, 5000]))


def _vision(run: Run) -> Batch:
    side = run.cfg.transform.size
    return Batch(torch.randn(2, 3, side, side), torch.arange(2))


def _text(run: Run) -> Batch:
    transform = run.cfg.transform
    ids = torch.randint(4, transform.vocab_size, (2, transform.block))
    ids[1, transform.block // 2 :] = 1
    return Batch(ids, torch.arange(2), torch.tensor([transform.block, transform.block // 2]))


INPUTS = {
    AudioStem: Inputs("input_values", "AutoFeatureExtractor", _write_audio, _audio),
    VisionStem: Inputs("pixel_values", "AutoImageProcessor", _write_vision, _vision),
    EdgeStem: Inputs("pixel_values", "AutoImageProcessor", _write_vision, _vision),
    TextStem: Inputs("input_ids", "AutoTokenizer", _write_text, _text),
}


def inputs_of(encoder: Encoder) -> Inputs:
    """The inputs of an encoder. transformers does not know the inputs of a stem that is not
    ours."""
    return INPUTS.get(type(encoder.stem)) or Inputs("inputs", "", lambda *_: "", _longest)


def _longest(run: Run) -> Batch:
    """Two random inputs as long as the longest input of the run."""
    settings = run.part("transform")
    transform = run.gate.transform_class(settings, run.file)
    return Batch(torch.randn(2, *transform.longest_input(**settings)), torch.arange(2))
