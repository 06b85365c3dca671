"""PreTrained: what every model of the family can do: load, save, start, checkpoint activations,
count."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface.config_base import Config
from d2v_pretrain.huggingface.files import read_weights, write_weights
from d2v_pretrain.models.block import Trace
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.weights.keymap import Names

logger = logging.getLogger(__name__)


@dataclass
class Loading:
    """What did not fit when weights were read; keys as in the file, with the model's prefix.

    Args:
        missing: keys of the model that the file lacks; they keep their random start.
        unexpected: keys of the file that the model lacks.
        misshapen: key, shape in the file, shape in the model.
    """

    missing: list[str]
    unexpected: list[str]
    misshapen: list[tuple[str, torch.Size, torch.Size]]


class PreTrained(nn.Module):
    """Base of all models. A *base model* holds ``encoder``; a *head* holds a base model under
    ``base_model_prefix``.

    Parameters have our names inside and Hugging Face's in files; ``names`` translates. A base
    model's directory loads into a head and the other way round.

    Args:
        config: checked here once more.
    """

    config_class: ClassVar[type[Config]]
    base_model_prefix: ClassVar[str]
    # Beginnings of keys that a file may lack, relative to the base model: they start at random, and
    # this is said.
    optional: ClassVar[tuple[str, ...]] = ()
    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__()
        if not isinstance(config, self.config_class):
            needed = f"must be a {self.config_class.__name__} for {type(self).__name__}"
            raise ConfigError("config", type(config).__name__, needed)
        config.validate()
        self.config = config

    # What a base model or head may say for itself.

    def names(self) -> Names:
        """Our parameter and buffer names -> the file's; a head's own modules are called the same in
        both."""
        own = {
            key: key
            for key in self.state_dict()
            if not key.startswith(f"{self.base_model_prefix}.")
        }
        return {**self._prefixed(self.base_model.names()), **own}

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Change what was read (file's names, prefix already fitted) into what ``names`` expects:
        other dialects."""
        return state

    def init_module(self, module: nn.Module) -> None:
        """Start one module: linear layers and tables N(0, initializer_range), biases and padding
        rows 0, norms 1, 0."""
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
        """The model that holds the encoder: itself, or a head's."""
        return getattr(self, self.base_model_prefix, self)

    def __call__(self, *args: Any, return_dict: bool | None = None, **kwargs: Any) -> Any:
        """Run ``forward``; a tuple instead of its ``ModelOutput`` if ``return_dict`` (or the
        configuration) says so."""
        output = super().__call__(*args, **kwargs)
        return (
            output
            if (self.config.return_dict if return_dict is None else return_dict)
            else output.to_tuple()
        )

    def init_weights(self) -> None:
        """Start all modules anew, except a base model inside a head, which has started itself."""
        for name, child in self.named_children():
            if name != self.base_model_prefix:
                child.apply(self.init_module)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        """Forget activations inside blocks and compute them again in the backward; results are the
        same.

        Args:
            gradient_checkpointing_kwargs: accepted and not needed; ours is always the exact,
                non-reentrant kind.
        """
        self.encoder_module.checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations again."""
        self.encoder_module.checkpointing = False

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations inside blocks are forgotten."""
        return self.encoder_module.checkpointing

    @property
    def encoder_module(self) -> Encoder:
        """The encoder, of the same class that is pretrained."""
        encoder = self.base_model.encoder
        assert isinstance(encoder, Encoder)
        return encoder

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return next(self.parameters()).device

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers are learned, with or without frozen ones and tables."""
        tables = (
            {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)}
            if exclude_embeddings
            else set()
        )
        return sum(
            p.numel()
            for p in self.parameters()
            if id(p) not in tables and (p.requires_grad or not only_trainable)
        )

    def trace(
        self, output_hidden_states: bool | None, output_attentions: bool | None
    ) -> tuple[Trace, bool]:
        """Where the encoder leaves what the caller or the configuration asks for, and whether to
        return the states."""
        attentions = (
            self.config.output_attentions if output_attentions is None else output_attentions
        )
        states = (
            self.config.output_hidden_states
            if output_hidden_states is None
            else output_hidden_states
        )
        return Trace(attentions), states

    def heads(self, head_mask: Tensor | None) -> list[Tensor | None]:
        """Each block's factors of its attention heads, (H,): 1 keeps one, 0 silences it. Given (H,)
        or (depth, H)."""
        depth, heads = self.config.num_hidden_layers, self.config.num_attention_heads
        if head_mask is None:
            return [None] * depth
        if tuple(head_mask.shape) not in ((heads,), (depth, heads)):
            rule = f"must be {(heads,)}, heads, or {(depth, heads)}, blocks by heads"
            raise ConfigError("head_mask", f"of shape {tuple(head_mask.shape)}", rule)
        return list(head_mask.to(self.dtype).expand(depth, heads))

    def save_pretrained(self, directory: str | Path, max_shard_size: int | str = "5GB") -> None:
        """Write ``config.json`` and ``model.safetensors`` as transformers does, readable by its
        versions 4 and 5.

        Args:
            directory: made if it is not there; weights in it are replaced.
            max_shard_size: bytes or ``"5GB"``; more goes into several files with an index.
        """
        self.config.architectures = (type(self).__name__,)
        self.config.dtype = str(self.dtype).removeprefix("torch.")
        self.config.save_pretrained(directory)
        write_weights(directory, self.to_file(), max_shard_size)

    def to_file(self) -> dict[str, Tensor]:
        """All tensors under the file's names."""
        state = self.state_dict()
        tensors: dict[str, Tensor] = {}
        for ours, theirs in self.names().items():
            if isinstance(theirs, str):
                tensors[theirs] = state[ours]  # perhaps a single number, which cannot be cut
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
        """Read a directory in Hugging Face's layout; the model comes in eval mode.

        Args:
            directory: with ``config.json`` and weights; see ``files.LAYOUTS``.
            config: instead of the directory's.
            dtype: of the weights; ``"auto"`` for the file's; None for torch's default.
            output_loading_info: return also a dict of ``missing_keys``, ``unexpected_keys``,
                ``mismatched_keys``.
            ignore_mismatched_sizes: tensors of another shape are left at their random start.
            config_overrides: fields of the configuration to replace.

        Raises:
            ConfigError: the file lacks encoder weights, or shapes differ.
        """
        dtype = config_overrides.pop("torch_dtype", dtype)  # its name before transformers 5
        if config is not None and config_overrides:
            raise ConfigError(
                "config",
                ", ".join(config_overrides),
                "is given with it",
                "change the configuration instead",
            )
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
        """Take tensors under the file's names; what does not fit is logged, or refused.

        Args:
            state: of this model, of a head around it, or of the base model inside it.
            source: named in messages.
            ignore_mismatched_sizes: see ``from_pretrained``.

        Raises:
            ConfigError: base weights are missing (other than ``optional`` ones), or shapes differ.
        """
        names, like = self.names(), self.to_file()
        theirs = self.adapt(self._fitted(state))
        loading = Loading(
            sorted(like.keys() - theirs.keys()),
            sorted(theirs.keys() - like.keys()),
            sorted(
                (k, t.shape, like[k].shape)
                for k, t in theirs.items()
                if k in like and t.shape != like[k].shape
            ),
        )
        self._report(loading, source, ignore_mismatched_sizes)
        wrong = {key for key, *_ in loading.misshapen}
        fits = like | {
            k: t.to(like[k].dtype) for k, t in theirs.items() if k in like and k not in wrong
        }
        own = self.state_dict()
        for name, key in names.items():
            tensor = fits[key] if isinstance(key, str) else torch.cat([fits[part] for part in key])
            own[name].copy_(tensor.reshape(own[name].shape))
        return loading

    def _fitted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state with the base model's prefix put on or taken off."""
        prefix = f"{self.base_model_prefix}."
        inside = any(key.startswith(prefix) for key in state)
        if self.base_model is self:
            return (
                {key.removeprefix(prefix): tensor for key, tensor in state.items()}
                if inside
                else dict(state)
            )
        if inside:
            return dict(state)
        return {prefix + key: tensor for key, tensor in state.items()}

    def _prefixed(self, names: Names) -> Names:
        prefix = f"{self.base_model_prefix}."
        return {
            prefix + ours: prefix + theirs
            if isinstance(theirs, str)
            else tuple(prefix + part for part in theirs)  # type: ignore[misc]
            for ours, theirs in names.items()
        }

    def _report(self, loading: Loading, source: str, ignore_mismatched_sizes: bool) -> None:
        kind, prefix = (
            type(self).__name__,
            "" if self.base_model is self else f"{self.base_model_prefix}.",
        )
        wrong = [
            f"{key} {tuple(found)} instead of {tuple(needed)}"
            for key, found, needed in loading.misshapen
        ]
        if wrong and not ignore_mismatched_sizes:
            remedy = "give the settings that the file was made with, or ignore_mismatched_sizes=True for a fresh start"
            raise ConfigError(source, _listed(wrong), f"does not fit {kind}", remedy)
        needed = {
            f"{prefix}{key}"
            for key in self.base_model.to_file()
            if not key.startswith(self.optional)
        }
        lost = [key for key in loading.missing if key in needed]
        if lost:
            raise ConfigError(
                source,
                _listed(lost),
                f"is missing for {kind}",
                "name the directory of such a model",
            )
        if loading.missing:
            logger.warning(
                "%s starts with fresh %s: train it. (%s)", kind, _listed(loading.missing), source
            )
        if loading.unexpected:
            logger.warning("%s has no use for %s of %s.", kind, _listed(loading.unexpected), source)
        if wrong:
            logger.warning(
                "%s starts with fresh weights, as shapes differ in %s: %s.",
                kind,
                source,
                _listed(wrong),
            )


def _listed(keys: list[str], most: int = 20) -> str:
    rest = len(keys) - most
    return ", ".join(keys[:most]) + (f" and {rest} more" if rest > 0 else "")


def _dtype(asked: torch.dtype | str | None, state: Mapping[str, Tensor]) -> torch.dtype:
    if asked is None:
        return torch.get_default_dtype()
    if asked == "auto":
        return next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    found = asked if isinstance(asked, torch.dtype) else getattr(torch, asked, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(
            "dtype", asked, "must be auto or a kind of float", "float32, bfloat16 or float16"
        )
    return found
