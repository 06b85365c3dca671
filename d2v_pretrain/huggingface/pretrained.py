"""PreTrained: what all documented models have in common: how weights start, and how ``forward``
reads what callers ask for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface.model_tools import ModelTools
from d2v_pretrain.huggingface.outputs import ModelOutput, for_tools
from d2v_pretrain.models.block import Trace
from d2v_pretrain.weights.keymap import Names


class PreTrained(ModelTools):
    """Base of all models.

    A *base model* holds an encoder under ``encoder``. A *head* holds a base model under
    ``base_model_prefix``. In memory parameters have our names, in files those of Hugging Face;
    ``names`` translates. The directory of a base model loads into a head, and the reverse.

    Args:
        config: it is checked again here, because it may have changed since it was made.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            needed = f"must be a {self.config_class.__name__} for {type(self).__name__}"
            raise ConfigError("config", type(config).__name__, needed)
        config.validate()
        self.config = config
        self.register_load_state_dict_pre_hook(_translate)

    # What a base model or head may override.

    def names(self) -> Names:
        """Our parameter and buffer names -> the names in files.

        A base model must override this. A head's own modules have the same names in both.
        """
        prefix = f"{self.base_model_prefix}."
        names: Names = {}
        for ours, theirs in self.base_model.names().items():
            parts = [theirs] if isinstance(theirs, str) else theirs
            prefixed = [prefix + part for part in parts]
            names[prefix + ours] = prefixed[0] if isinstance(theirs, str) else tuple(prefixed)  # type: ignore[assignment]
        return names | {key: key for key in self.state_dict() if not key.startswith(prefix)}

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Translate other dialects of a file: change what was read into what ``names`` expects.

        Args:
            state: tensors under the file's names, with the prefix that this model expects.
        """
        return state

    def init_module(self, module: nn.Module) -> None:
        """Start one module: weights of linear layers and embeddings N(0, initializer_range), their
        biases and padding rows 0; LayerNorms 1 and 0."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
        if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            nn.init.ones_(module.weight)

    # What all of them share.

    def returned(self, output: ModelOutput, return_dict: bool | None) -> Any:
        """What ``forward`` returns: the output, or a tuple of its values if ``return_dict`` is
        False; None stands for what the configuration says."""
        named = self.config.return_dict if return_dict is None else return_dict
        return for_tools(output) if named else output.to_tuple()

    def init_weights(self) -> None:
        """Start all modules, except the base model inside a head, which has started already."""
        for name, child in self.named_children():
            if name != self.base_model_prefix:
                child.apply(self.init_module)

    def trace(
        self, output_hidden_states: bool | None, output_attentions: bool | None
    ) -> tuple[Trace, bool]:
        """The ``Trace`` to give to the encoder, and whether to return the hidden states; None
        stands for what the configuration says."""
        asked = output_attentions
        attentions = self.config.output_attentions if asked is None else asked
        return Trace(attentions), self.returns_states(output_hidden_states)

    def returns_states(self, output_hidden_states: bool | None) -> bool:
        """Whether to return the hidden states; None stands for what the configuration says."""
        asked = output_hidden_states
        return self.config.output_hidden_states if asked is None else asked

    def heads(self, head_mask: Tensor | None) -> list[Tensor | None]:
        """The factors (H,) of each block's attention heads: 1 keeps a head, 0 silences it.

        Args:
            head_mask: (H,) or (depth, H).

        Raises:
            ConfigError: another shape.
        """
        depth, heads = self.config.num_hidden_layers, self.config.num_attention_heads
        if head_mask is None:
            return [None] * depth
        if tuple(head_mask.shape) not in ((heads,), (depth, heads)):
            rule = f"must be {(heads,)}, heads, or {(depth, heads)}, blocks by heads"
            raise ConfigError("head_mask", f"of shape {tuple(head_mask.shape)}", rule)
        return list(head_mask.to(self.dtype).expand(depth, heads))


def _translate(model: PreTrained, state: dict[str, Tensor], prefix: str, *unused: Any) -> None:
    """Let ``load_state_dict`` take transformers' names as well as ours."""
    translated = model.to_memory({k.removeprefix(prefix): t for k, t in state.items()})
    given = {prefix + key: tensor for key, tensor in translated.items()}
    for key in [key for key in state if key.startswith(prefix)]:
        del state[key]
    state |= given
