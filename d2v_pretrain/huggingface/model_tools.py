"""What tools around transformers' models ask of a model: embeddings, checkpointing, sizes, and the
same model as transformers' own class."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface.model_files import ModelFiles
from d2v_pretrain.huggingface.parameter_names import NEW_TO_OLD, in_dialect


class ModelTools(ModelFiles):
    """The methods and attributes by which tools use a model."""

    main_input_name: ClassVar[str]
    supports_gradient_checkpointing: ClassVar[bool] = True
    is_parallelizable: ClassVar[bool] = False
    framework: ClassVar[str] = "pt"
    # Hugging Face's Trainer: the loss is not divided by a number that ``forward`` is given.
    accepts_loss_kwargs: ClassVar[bool] = False
    # accelerate never spreads one of these over two devices.
    _no_split_modules: ClassVar[list[str]] = ["Block", "TextStem", "VisionStem", "AudioStem"]
    loss_type: ClassVar[str | None] = None  # the name of the loss in transformers
    _tied_weights_keys: ClassVar[dict[str, str] | None] = None

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def name_or_path(self) -> str:
        """Where the model was read from; empty if it was made."""
        return self.config.name_or_path

    @property
    def num_labels(self) -> int:
        """Rows of a classifier, as the configuration says."""
        return self.config.num_labels

    @classmethod
    def can_generate(cls) -> bool:
        """Whether the class has a head that predicts the next token."""
        return False

    def get_input_embeddings(self) -> nn.Module:
        """The first layer that reads the input: a table of tokens, or the layer of patches.

        Raises:
            NotImplementedError: audio models have none.
        """
        if self.base_model is not self:
            return self.base_model.get_input_embeddings()
        raise NotImplementedError(f"{type(self).__name__} has no table of inputs")

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the layer that ``get_input_embeddings`` returns.

        Raises:
            NotImplementedError: audio models have none.
        """
        if self.base_model is self:
            raise NotImplementedError(f"{type(self).__name__} has no table of inputs")
        self.base_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The layer from hidden states to the vocabulary; None if there is none."""
        return None

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace that layer.

        Raises:
            NotImplementedError: the model has none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no layer over a vocabulary")

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, *args: Any, **options: Any
    ) -> nn.Embedding:
        """Change the number of tokens.

        Raises:
            NotImplementedError: only text models have a table of tokens.
        """
        raise NotImplementedError(f"{type(self).__name__} has no table of tokens")

    def tie_weights(self, *unused: Any, **more: Any) -> None:
        """Nothing to do: a tied head reads the table of tokens itself."""

    def enable_input_require_grads(self) -> None:
        """Let gradients reach the output of the first layer although it is frozen, which
        checkpointing under an adapter needs."""

        def require(module: nn.Module, inputs: Any, output: Tensor) -> None:
            output.requires_grad_(True)

        self._input_hook = self.get_input_embeddings().register_forward_hook(require)

    def disable_input_require_grads(self) -> None:
        """Undo ``enable_input_require_grads``."""
        self._input_hook.remove()

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
        **unused: Any,
    ) -> None:
        """Recompute the activations of blocks in the backward pass: less memory, equal results.

        Args:
            gradient_checkpointing_kwargs: accepted because Hugging Face's Trainer passes it, and
                ignored: the non-reentrant kind is always used.
            unused: likewise; every block is recomputed.
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

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of all parameters and, unless ``return_buffers`` is False, of buffers."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(tensor.nbytes for tensor in tensors)

    def to_transformers(self) -> Any:
        """The same model as transformers' own class. It shares this model's weights: training one
        changes the other.

        Raises:
            ConfigError: transformers is not installed.
        """
        theirs = _transformers("to_transformers")
        name = type(self).__name__
        config = getattr(theirs, type(self.config).__name__).from_dict(self.config.to_dict())
        model = getattr(theirs, name)(config, **self._theirs_takes())
        tensors = self.to_file()
        if int(theirs.__version__.split(".")[0]) < 5:
            tensors = {in_dialect(key, NEW_TO_OLD): tensor for key, tensor in tensors.items()}
        model.load_state_dict(tensors, strict=False, assign=True)
        model.tie_weights()
        return model.train(self.training)

    def _theirs_takes(self) -> dict[str, Any]:
        """Further arguments of transformers' class: a base model may have a pooler or none."""
        return {"add_pooling_layer": self.pooler is not None} if hasattr(self, "pooler") else {}

    @classmethod
    def from_transformers(cls, model: Any) -> Self:
        """This class with a copy of the weights of transformers' model of the same name.

        Args:
            model: of the class that transformers documents under this name.
        """
        config = cls.config_class.from_dict(model.config.to_dict())
        has_pooler = hasattr(model, "pooler")
        made = cls(
            config, **({"add_pooling_layer": model.pooler is not None} if has_pooler else {})
        )
        made.load_file(model.state_dict(), type(model).__name__)
        return made.to(model.dtype).train(model.training)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate text by transformers' model of the same weights; see its ``generate``.

        Raises:
            ConfigError: transformers is not installed, or the model has no such head.
        """
        if not self.can_generate():
            rule = "has no head that predicts the next token"
            raise ConfigError("generate", type(self).__name__, rule, "use Data2VecTextForCausalLM")
        return self.to_transformers().generate(*args, **kwargs)


def _transformers(wanted_by: str) -> Any:
    try:
        return import_module("transformers")
    except ImportError:
        rule, remedy = "needs transformers", "pip install transformers"
        raise ConfigError(wanted_by, "called", rule, remedy) from None
