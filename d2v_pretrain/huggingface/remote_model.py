"""The class around an encoder that an exported folder carries for transformers; imported by
transformers alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from d2v_pretrain.models.block import Trace
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.models.positions import Alibi, alibi_slopes
from d2v_pretrain.types import Batch
from d2v_pretrain.weights.construct import construct


class D2VConfig(PretrainedConfig):
    """How the encoder is constructed (``architecture``) and what it reads (``input_name``,
    ``standardise``)."""

    model_type = "d2v_pretrain"

    def __init__(
        self,
        architecture: dict | None = None,
        input_name: str = "input_values",
        standardise: bool = False,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        self.architecture, self.input_name, self.standardise = architecture, input_name, standardise


class D2VModel(PreTrainedModel):
    """An encoder of d2v_pretrain: waveforms, images or token ids -> features of every position,
    unmasked."""

    config_class = D2VConfig
    base_model_prefix = ""
    main_input_name = "input_values"

    def __init__(self, config: D2VConfig) -> None:
        super().__init__(config)
        self.main_input_name = config.input_name
        self.encoder: Encoder = construct(
            config.architecture, lambda target: globals()[target.rpartition(".")[2]]
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing to draw; what is not in the file is a constant that transformers lost by building
        on ``meta``."""
        if isinstance(module, Alibi):
            module.slopes = torch.tensor(
                alibi_slopes(len(module.scale)), device=module.scale.device
            )

    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **unused: Any,
    ) -> BaseModelOutput | tuple:
        """Encode everything that is given.

        Args:
            input_values: (B, S) waveform at 16 kHz. pixel_values: (B, 3, H, W). input_ids: (B, T).
                One of them.
            attention_mask: (B, S) or (B, T), 1 at what is real; padding is on the right.
            output_hidden_states: also the input of the first block and the output of each.
            return_dict: False for a tuple.

        Returns:
            ``last_hidden_state`` (B, E + T, D) with the E extra tokens of the encoder in front.
        """
        inputs = next(x for x in (input_values, pixel_values, input_ids) if x is not None)
        if self.config.standardise:
            inputs = inputs - inputs.mean((2, 3), keepdim=True)
            inputs = inputs / (inputs.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-3)
        lengths = None if attention_mask is None else attention_mask.sum(-1).cpu()
        wanted = (
            self.config.output_hidden_states
            if output_hidden_states is None
            else output_hidden_states
        )
        trace = Trace() if wanted else None
        encoded = self.encoder(
            self.encoder.stem(Batch(inputs, torch.arange(len(inputs)), lengths)), trace=trace
        )
        output = BaseModelOutput(
            last_hidden_state=encoded.x,
            hidden_states=None if trace is None else tuple(trace.hidden),
        )
        return output.to_tuple() if return_dict is False else output
