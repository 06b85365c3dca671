"""The model class that an exported folder carries for transformers; see ``remote_code``. Nothing in
this package imports it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from d2v_pretrain.huggingface.inputs import as_ids, as_numbers
from d2v_pretrain.models.block import Trace
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.models.positions import Alibi, alibi_slopes
from d2v_pretrain.types import Batch
from d2v_pretrain.weights.construct import construct


def own_class(target: str) -> type:
    """The class of this file with the last part of a dotted name.

    Raises:
        ValueError: config.json names anything else, such as a function.
    """
    found = globals().get(target.rpartition(".")[2])
    if not (isinstance(found, type) and found.__module__ == __name__):
        raise ValueError(f"config.json names {target}, which is no class of {__name__}")
    return found


class D2VConfig(PretrainedConfig):
    """How the encoder is constructed (``architecture``), what its input is called (``input_name``),
    and whether every image is standardised by itself (``standardise``)."""

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
    """An encoder of d2v_pretrain: waveforms, images or token ids -> features of all positions."""

    config_class = D2VConfig
    base_model_prefix = ""
    main_input_name = "input_values"

    def __init__(self, config: D2VConfig) -> None:
        super().__init__(config)
        self.main_input_name = config.input_name
        self.encoder: Encoder = construct(config.architecture, own_class)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Compute what is not in the file: the slopes of ALiBi, which transformers loses when it
        builds the model on the ``meta`` device. No weight is drawn."""
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
        """Encode one of ``input_values``, ``pixel_values`` and ``input_ids``.

        Args:
            input_values: (B, S) waveforms of S samples at 16 kHz.
            attention_mask: (B, S) for waveforms, (B, T) for tokens: 1 at real ones, 0 at padding,
                which is on the right.
            pixel_values: (B, 3, height, width) images.
            input_ids: (B, T) token ids.
            output_hidden_states: also return the input of the first block and the output of each.
            return_dict: False for a tuple.
            unused: other arguments that tools pass have no effect.

        Returns:
            ``last_hidden_state`` (B, E + T, D): D channels of the E extra tokens of the encoder,
            then of the T others.

        Raises:
            ConfigError: nothing was given, or something of another type; ids that are not in the
                vocabulary.
        """
        given = {"input_values": input_values, "pixel_values": pixel_values, "input_ids": input_ids}
        name = next((key for key, x in given.items() if x is not None), self.config.input_name)
        if name == "input_ids":
            table = self.encoder.stem.get_submodule("token")
            assert isinstance(table, nn.Embedding)
            inputs = as_ids(name, given[name], table.num_embeddings, "texts", "tokens")
        else:
            inputs = as_numbers(name, given[name])
        if self.config.standardise:
            inputs = inputs - inputs.mean((2, 3), keepdim=True)
            inputs = inputs / (inputs.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-3)
        lengths = None if attention_mask is None else attention_mask.sum(-1).cpu()
        asked, default = output_hidden_states, self.config.output_hidden_states
        trace = Trace() if (default if asked is None else asked) else None
        tokens = self.encoder.stem(Batch(inputs, torch.arange(len(inputs)), lengths))
        encoded = self.encoder(tokens, trace=trace)
        hidden = None if trace is None else tuple(trace.hidden)
        output = BaseModelOutput(last_hidden_state=encoded.x, hidden_states=hidden)
        return output.to_tuple() if return_dict is False else output
