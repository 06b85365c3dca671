"""Models as files in Hugging Face's layout: their names of tensors, saving and loading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface.config_base import Config
from d2v_pretrain.huggingface.hub_cache import HUB_OPTIONS, model_folder
from d2v_pretrain.huggingface.loading import Loading
from d2v_pretrain.huggingface.weight_files import read_weights, write_weights
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.weights.keymap import Names

# Arguments of ``from_pretrained`` that ask for what this package cannot do.
REFUSED = {
    "from_tf": "reads weights of TensorFlow",
    "from_flax": "reads weights of Flax",
    "gguf_file": "reads a GGUF file",
    "quantization_config": "needs quantised layers",
    "load_in_8bit": "needs quantised layers",
    "load_in_4bit": "needs quantised layers",
    "tp_plan": "spreads a model over devices",
}
# Those that change nothing here: weights are read in one go, attention is chosen by torch.
WITHOUT_EFFECT = {"low_cpu_mem_usage", "offload_folder", "max_memory", "_fast_init", "_from_auto"}
ATTENTION = (None, "eager", "sdpa")


class ModelFiles(nn.Module):
    """The methods of a model that read and write it.

    In memory parameters have our names, in files those of Hugging Face; ``names`` translates. The
    directory of a base model loads into a head, and the reverse.
    """

    config_class: ClassVar[type[Config]]
    base_model_prefix: ClassVar[str]
    # Keys of the base model that a file may lack begin with one of these. Such parameters start at
    # random, with a warning.
    optional: ClassVar[tuple[str, ...]] = ()
    config: Any

    def names(self) -> Names:
        """See ``PreTrained``."""
        raise NotImplementedError

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``PreTrained``."""
        return state

    @property
    def base_model(self) -> Any:
        """The model that holds the encoder: the head's base model, or the base model itself."""
        return getattr(self, self.base_model_prefix, self)

    @property
    def encoder_module(self) -> Encoder:
        """The encoder, of the class that is pretrained."""
        encoder = self.base_model.encoder
        assert isinstance(encoder, Encoder)
        return encoder

    def to_file(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Tensors under the names that they have in files.

        Args:
            state: tensors under our names; ``state_dict()`` by default. What is not under one of
                our names is returned as it is.
        """
        rest = dict(self.state_dict() if state is None else state)
        tensors: dict[str, Tensor] = {}
        for ours, theirs in self.names().items():
            if ours in rest and isinstance(theirs, str):
                tensors[theirs] = rest.pop(ours)
            elif ours in rest:
                tensors |= dict(zip(theirs, rest.pop(ours).chunk(3), strict=True))
        return rest | tensors

    def to_memory(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reverse of ``to_file``: tensors under our names. What is not under one of the names
        in files is returned as it is."""
        rest, shapes = dict(tensors), {k: t.shape for k, t in self.state_dict().items()}
        state: dict[str, Tensor] = {}
        for ours, theirs in self.names().items():
            parts = [theirs] if isinstance(theirs, str) else list(theirs)
            if ours in rest or not all(part in rest for part in parts):
                continue
            found = [rest.pop(part) for part in parts]
            # torch.cat does not take scalars, such as the counters of BatchNorm.
            tensor = found[0] if len(found) == 1 else torch.cat(found)
            fits = tensor.numel() == shapes[ours].numel()
            state[ours] = tensor.reshape(shapes[ours]) if fits else tensor
        return rest | state

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        save_function: Callable[[Any, Path], Any] = torch.save,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        variant: str | None = None,
        **unused: Any,
    ) -> None:
        """Write ``config.json`` and ``model.safetensors``, which transformers 4 and 5 read.

        Args:
            save_directory: made if it does not exist; weights in it are replaced.
            is_main_process: False writes nothing, so that all ranks can call it.
            state_dict: the tensors to write instead of ``state_dict()``, under our names or those
                of files.
            save_function: writes ``pytorch_model.bin``.
            push_to_hub: refused.
            max_shard_size: in bytes, or like ``"5GB"``. Larger models are written as several files
                with an index.
            safe_serialization: False writes ``pytorch_model.bin`` instead.
            variant: a word in the names of the files, as in ``model.fp16.safetensors``.
            unused: other arguments of transformers are without effect.

        Raises:
            ConfigError: ``push_to_hub``.
        """
        if push_to_hub:
            remedy = "upload the directory with the command hf"
            raise ConfigError("push_to_hub", True, "is not done here", remedy)
        if not is_main_process:
            return
        tensors = self.to_file(state_dict)
        self.config.architectures = (type(self).__name__,)
        floating = [t.dtype for t in tensors.values() if t.is_floating_point()]
        self.config.dtype = floating[0] if floating else self.config.dtype
        self.config.save_pretrained(save_directory)
        save = None if safe_serialization else save_function
        write_weights(save_directory, tensors, max_shard_size, save, variant)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None,
        *model_args: Any,
        config: Config | str | Path | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        use_safetensors: bool | None = None,
        variant: str | None = None,
        add_pooling_layer: bool | None = None,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **more: Any,
    ) -> Any:
        """Read a model that was saved in Hugging Face's layout. It is returned in eval mode.

        Args:
            pretrained_model_name_or_path: holds ``config.json`` and weights, see
                ``weight_files.LAYOUTS``; or the name of a model in the local hub cache, like
                ``facebook/data2vec-text-base``. None if ``config`` and ``state_dict`` are given.
            model_args: further arguments of the class.
            config: used instead of the one in the directory; a path is read.
            dtype: of the weights; ``"auto"`` for the file's, None for torch's default.
            torch_dtype: its name before transformers 5.
            state_dict: used instead of the weights in the directory.
            device_map: one device for the whole model, as ``"cuda:0"``, ``{"": 0}`` or ``"auto"``.
            attn_implementation: ``eager`` or ``sdpa``; both run the same code.
            use_safetensors: True reads no pickle, False only pickles.
            variant: the word in the names of the files, see ``save_pretrained``.
            add_pooling_layer: whether a base model gets a pooler; the class's default if None.
            output_loading_info: also return a dict with ``missing_keys``, ``unexpected_keys`` and
                ``mismatched_keys``.
            ignore_mismatched_sizes: tensors of another shape are not read and start at random.
            more: ``hub_cache.HUB_OPTIONS``, and fields of the configuration to replace.

        Raises:
            MissingFile: there is no such directory, or nothing of what is needed in it.
            ConfigError: the file lacks weights of the encoder, shapes differ, or an argument asks
                for what this package cannot do.
        """
        _refuse(attn_implementation, more)
        options = {key: more.pop(key) for key in HUB_OPTIONS & more.keys()}
        source = pretrained_model_name_or_path
        folder = None if source is None else model_folder(source, **options)
        made = cls._configuration(config, folder, more)
        state = read_weights(folder, use_safetensors, variant) if state_dict is None else state_dict
        pooling = {} if add_pooling_layer is None else {"add_pooling_layer": add_pooling_layer}
        model = cls(made, *model_args, **pooling).to(_dtype(dtype or torch_dtype, state)).eval()
        model.config.name_or_path = "" if source is None else source
        loading = model.load_file(state, str(source), ignore_mismatched_sizes)
        if device_map is not None:
            model.to(_device(device_map))
        if not output_loading_info:
            return model
        keys = {"missing_keys": loading.missing, "unexpected_keys": loading.unexpected}
        return model, {**keys, "mismatched_keys": loading.misshapen, "error_msgs": []}

    @classmethod
    def _configuration(
        cls, config: Config | str | Path | None, folder: Path | None, overrides: dict[str, Any]
    ) -> Config:
        if config is not None and not isinstance(config, (str, Path)):
            if overrides:
                given, rule = ", ".join(overrides), "is given beside a configuration"
                raise ConfigError("config", given, rule, "change the configuration instead")
            return config
        if config is None and folder is None:
            raise ConfigError("config", None, "is needed without a directory", "give one")
        source = folder if config is None else config
        assert source is not None
        return cls.config_class.from_pretrained(source, **overrides)

    def load_file(
        self, state: Mapping[str, Tensor], source: str, ignore_mismatched_sizes: bool = False
    ) -> Loading:
        """Take the weights in ``state``. What does not fit is logged or refused.

        Args:
            state: tensors under the file's names or ours: of this model, of a head around it, or of
                the base model inside it.
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
        like, theirs = self.to_file(), self.adapt(self.to_file(state))
        loading = Loading.compared(theirs, like)
        own = "" if self.base_model is self else prefix
        base = self.base_model.to_file()
        required = {own + key for key in base if not key.startswith(self.optional)}
        loading.report(type(self).__name__, source, required, ignore_mismatched_sizes)
        misshapen = {key for key, *_ in loading.misshapen}
        fitting = {k: t for k, t in theirs.items() if k in like and k not in misshapen}
        tensors = like | {key: tensor.to(like[key].dtype) for key, tensor in fitting.items()}
        self.load_state_dict(self.to_memory(tensors))
        return loading


def _refuse(attention: str | None, more: dict[str, Any]) -> None:
    """Take what has no effect out of ``more``, and refuse what cannot be done."""
    for key in WITHOUT_EFFECT & more.keys():
        del more[key]
    for key in REFUSED.keys() & more.keys():
        if value := more.pop(key):
            rule = f"{REFUSED[key]}, which this package does not"
            raise ConfigError(key, value, rule, "leave it out, or use transformers")
    if attention not in ATTENTION:
        rule, remedy = "must be eager or sdpa", "leave it out, or use transformers"
        raise ConfigError("attn_implementation", attention, rule, remedy)


def _device(device_map: Any) -> torch.device:
    """The one device that a ``device_map`` stands for."""
    devices = set(device_map.values()) if isinstance(device_map, Mapping) else {device_map}
    found = torch.cuda.device_count()
    spread = {"auto", "balanced", "balanced_low_0", "sequential"} & devices
    if len(devices) != 1 or "disk" in devices or (spread and found > 1):
        rule = "must be one device for the whole model"
        raise ConfigError("device_map", device_map, rule, "give one, as device_map='cuda:0'")
    return torch.device("cuda" if spread and found else "cpu" if spread else devices.pop())


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
