"""Stems: raw input -> local features, one per modality."""

from d2v_pretrain.models.stems.audio import AudioStem
from d2v_pretrain.models.stems.base import Stem
from d2v_pretrain.models.stems.text import TextStem, TokenTable
from d2v_pretrain.models.stems.vision import EdgeStem, VisionStem

__all__ = ["AudioStem", "EdgeStem", "Stem", "TextStem", "TokenTable", "VisionStem"]
