"""PreTrained: what all documented models have in common. How weights start, how they are saved and
loaded, and what callers may ask of every model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface.config_base import Config
from d2v_pretrain.huggingface.hub_cache import model_folder
from d2v_pretrain.huggingface.loading import Loading
from d2v_pretrain.huggingface.outputs import ModelOutput
from d2v_pretrain.huggingface.weight_files import read_weights, write_weights
from d2v_pretrain.models.block import Trace
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.weights.keymap import Names


class PreTrained(nn.Module):
    """Base of all models.

    A *base model* holds an encoder under ``encoder``. A *head* holds a base model under
    ``base_model_prefix``. In memory parameters have our names, in files those of Hugging Face;
    ``names`` translates. The directory of a base model loads into a head, and the reverse.

    Args:
        config: it is checked again here, because it may have changed since it was made.
    """

    config_class: ClassVar[type[Config]]
    base_model_prefix: ClassVar[str]
    # Keys of the base model that a file may lack begin with one of these. Such parameters start at
    # random, with a warning.
    optional: ClassVar[tuple[str, ...]] = ()
    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            needed = f"must be a {self.config_class.__name__} for {type(self).__name__}"
            raise ConfigError("config", type(config).__name__, needed)
        config.validate()
        self.config = config

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

    @property
    def base_model(self) -> PreTrained:
        """The model that holds the encoder: the head's base model, or the base model itself."""
        return getattr(self, self.base_model_prefix, self)

    @property
    def encoder_module(self) -> Encoder:
        """The encoder, of the class that is pretrained."""
        encoder = self.base_model.encoder
        assert isinstance(encoder, Encoder)
        return encoder

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def returned(self, output: ModelOutput, return_dict: bool | None) -> ModelOutput | tuple:
        """What ``forward`` returns: the output, or a tuple of its values if ``return_dict`` is
        False; None stands for what the configuration says."""
        named = self.config.return_dict if return_dict is None else return_dict
        return output if named else output.to_tuple()

    def init_weights(self) -> None:
        """Start all modules, except the base model inside a head, which has started already."""
        for name, child in self.named_children():
            if name != self.base_model_prefix:
                child.apply(self.init_module)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Recompute the activations of blocks in the backward pass: less memory, equal results.

        Args:
            gradient_checkpointing_kwargs: accepted because Hugging Face's Trainer passes it, and
                ignored: the non-reentrant kind is always used.
        """
        self.encoder_module.checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations for the backward pass."""
        self.encoder_module.checkpointing = False

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations of blocks are recomputed in the backward pass."""
        return self.encoder_module.checkpointing

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """The number of scalars in all parameters.

        Args:
            only_trainable: leave out frozen parameters.
            exclude_embeddings: leave out embedding tables.
        """
        tables = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)}
        return sum(
            parameter.numel()
            for parameter in self.parameters()
            if not (exclude_embeddings and id(parameter) in tables)
            and (parameter.requires_grad or not only_trainable)
        )

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

    def save_pretrained(self, directory: str | Path, max_shard_size: int | str = "5GB") -> None:
        """Write ``config.json`` and ``model.safetensors``, which transformers 4 and 5 read.

        Args:
            directory: made if it does not exist; weights in it are replaced.
            max_shard_size: in bytes, or like ``"5GB"``. Larger models are written as several files
                with an index.
        """
        self.config.architectures = (type(self).__name__,)
        self.config.dtype = str(self.dtype).removeprefix("torch.")
        self.config.save_pretrained(directory)
        write_weights(directory, self.to_file(), max_shard_size)

    def to_file(self) -> dict[str, Tensor]:
        """All tensors under the names that they have in files."""
        state = self.state_dict()
        tensors: dict[str, Tensor] = {}
        for ours, theirs in self.names().items():
            if isinstance(theirs, str):
                tensors[theirs] = state[ours]
            else:
                tensors |= dict(zip(theirs, state[ours].chunk(3), strict=True))
        return tensors

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        config: Any = None,
        dtype: torch.dtype | str | None = None,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **config_overrides: Any,
    ) -> Any:
        """Read a model that was saved in Hugging Face's layout. It is returned in eval mode.

        Args:
            directory: holds ``config.json`` and weights, see ``weight_files.LAYOUTS``; or the name
                of a model in the local hub cache, like ``facebook/data2vec-text-base``.
            config: used instead of the one in the directory.
            dtype: of the weights; ``"auto"`` for the file's, None for torch's default.
            output_loading_info: also return a dict with ``missing_keys``, ``unexpected_keys`` and
                ``mismatched_keys``.
            ignore_mismatched_sizes: tensors of another shape are not read and start at random.
            config_overrides: fields of the configuration to replace.

        Raises:
            ConfigError: the file lacks weights of the encoder, or shapes differ.
        """
        dtype = config_overrides.pop("torch_dtype", dtype)  # its name before transformers 5
        directory = model_folder(directory)
        if config is not None and config_overrides:
            given, rule = ", ".join(config_overrides), "is given beside a configuration"
            raise ConfigError("config", given, rule, "change the configuration instead")
        if config is None:
            config = cls.config_class.from_pretrained(directory, **config_overrides)
        state = read_weights(directory)
        model = cls(config).to(_dtype(dtype, state)).eval()
        loading = model.load_file(state, str(directory), ignore_mismatched_sizes)
        if not output_loading_info:
            return model
        keys = {"missing_keys": loading.missing, "unexpected_keys": loading.unexpected}
        return model, {**keys, "mismatched_keys": loading.misshapen, "error_msgs": []}

    def load_file(
        self, state: Mapping[str, Tensor], source: str, ignore_mismatched_sizes: bool = False
    ) -> Loading:
        """Take the weights in ``state``. What does not fit is logged or refused.

        Args:
            state: tensors under the file's names: of this model, of a head around it, or of the
                base model inside it.
            source: where they come from, for messages.
            ignore_mismatched_sizes: see ``from_pretrained``.

        Raises:
            ConfigError: weights of the base model are missing that are not ``optional``, or shapes
                differ.
        """
        prefix = f"{self.base_model_prefix}."
        prefixed = any(key.startswith(prefix) for key in state)
        if self.base_model is self:
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
        elif not prefixed:
            state = {prefix + key: tensor for key, tensor in state.items()}
        names, like, theirs = self.names(), self.to_file(), self.adapt(dict(state))
        loading = Loading.compared(theirs, like)
        own = "" if self.base_model is self else prefix
        base = self.base_model.to_file()
        required = {own + key for key in base if not key.startswith(self.optional)}
        loading.report(type(self).__name__, source, required, ignore_mismatched_sizes)
        misshapen = {key for key, *_ in loading.misshapen}
        fitting = {k: t for k, t in theirs.items() if k in like and k not in misshapen}
        tensors = like | {key: tensor.to(like[key].dtype) for key, tensor in fitting.items()}
        weights = self.state_dict()
        for ours, key in names.items():
            # torch.cat does not take scalars, such as the counters of BatchNorm.
            tensor = tensors[key] if isinstance(key, str) else torch.cat([tensors[k] for k in key])
            weights[ours].copy_(tensor.reshape(weights[ours].shape))
        return loading


def _dtype(asked: torch.dtype | str | None, state: Mapping[str, Tensor]) -> torch.dtype:
    if asked is None:
        return torch.get_default_dtype()
    if asked == "auto":
        return next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    found = asked if isinstance(asked, torch.dtype) else getattr(torch, asked, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        rule, remedy = "must be auto or a floating type", "give float32, bfloat16 or float16"
        raise ConfigError("dtype", asked, rule, remedy)
    return found
