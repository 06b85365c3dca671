"""Tiny encoders, objectives and batches: width 16, two heads, two blocks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from d2v_pretrain.masking import MaskPolicy
from d2v_pretrain.models.block import Block
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.models.positions import Alibi, ConvPositions, SinCosPositions
from d2v_pretrain.models.stems import AudioStem, TextStem, VisionStem
from d2v_pretrain.objective.data2vec import Data2Vec
from d2v_pretrain.objective.loss import RegressionLoss
from d2v_pretrain.objective.predictors import ConvDecoder, Head
from d2v_pretrain.objective.targets import Targets
from d2v_pretrain.objective.teacher import Teacher
from d2v_pretrain.objective.view import Drop, Replace
from d2v_pretrain.schedules import Constant
from d2v_pretrain.types import Batch

D, HEADS, DEPTH = 16, 2, 2


def encoder(modality: str, dropout: float = 0.0, **parts: Any) -> Encoder:
    block = partial(Block, D, HEADS, dropout=dropout, attention_dropout=dropout)
    if modality == "audio":
        positions = ConvPositions(D, 2, 6, 4, mask_padding=True)
        parts = {"positions": positions, "bias": Alibi(HEADS)} | parts
        return Encoder(AudioStem(D, ((8, 10, 5), (8, 3, 2)), masked=True), block, D, DEPTH, **parts)
    if modality == "text":
        parts = {"input_norm": False} | parts
        return Encoder(TextStem(D, 40, 40, dropout), block, D, DEPTH, **parts)
    parts = {"positions": SinCosPositions(D), "extra_tokens": 1} | parts
    return Encoder(VisionStem(D, 4, masked=True), block, D, DEPTH, **parts)


def data2vec1(student: Encoder, mask: MaskPolicy, **parts: Any) -> Data2Vec:
    parts = {"teacher": partial(Teacher, decay=Constant(0.9)), "targets": Targets(2)} | parts
    return Data2Vec(
        student, mask=mask, view=Replace(), predictor=Head(D), loss=RegressionLoss(), **parts
    )


def data2vec2(
    student: Encoder,
    mask: MaskPolicy,
    dims: int = 1,
    clones: int = 3,
    input_dropout: float = 0.0,
    **parts: Any,
) -> Data2Vec:
    decoder = ConvDecoder(D, 8, 3, 2, 2, dims, input_dropout=input_dropout)
    parts = {"teacher": partial(Teacher, decay=Constant(0.9)), "targets": Targets(2)} | parts
    parts |= {"predictor": decoder, "clones": clones}
    return Data2Vec(student, mask=mask, view=Drop(), loss=RegressionLoss(), **parts)


def batch_of(modality: str, rows: int = 3, first: int = 0) -> Batch:
    """Samples number ``first`` and following."""
    generator = torch.Generator().manual_seed(first)
    ids = torch.arange(first, first + rows)
    if modality == "audio":
        return Batch(torch.randn(rows, 250, generator=generator), ids)
    if modality == "text":
        return Batch(torch.randint(4, 29, (rows, 14), generator=generator), ids)
    return Batch(torch.randn(rows, 3, 16, 16, generator=generator), ids)
