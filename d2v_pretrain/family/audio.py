"""Data2VecAudioModel and its head for speech recognition, on the encoder of pretraining."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.family.audio_adapter import Adapter
from d2v_pretrain.family.audio_masking import span_mask
from d2v_pretrain.family.config_audio import Data2VecAudioConfig
from d2v_pretrain.family.outputs import CausalLMOutput, Wav2Vec2BaseModelOutput
from d2v_pretrain.family.pretrained import PreTrained
from d2v_pretrain.interop import hf_audio
from d2v_pretrain.interop.keymap import Names, affine
from d2v_pretrain.masking.base import within
from d2v_pretrain.models.block import Block, Trace
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.models.positions import ConvPositions
from d2v_pretrain.models.stems import AudioStem
from d2v_pretrain.types import Tokens


class Data2VecAudioPreTrainedModel(PreTrained):
    """What the audio classes share: their configuration and how their weights start."""

    config_class = Data2VecAudioConfig
    base_model_prefix = "data2vec_audio"

    def freeze_feature_encoder(self) -> None:
        """Train the convolutions no more; the projection behind them goes on."""
        stem = self._base().encoder.stem
        for module in (*stem.convs, *stem.norms):
            module.requires_grad_(False)

    def init_weights(self) -> None:
        """transformers' start: linear N(0, ``initializer_range``) with bias 0; convolutions Kaiming-normal with bias
        U(+-1/sqrt(fan in)), position convolutions with bias 0; the projection U(+-1/sqrt(C)).
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    _uniform(module.bias, module.weight[0].numel())
