"""Data2VecAudioFeatureExtractor: waveforms -> input values and attention mask."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface.hub_cache import model_folder

FILE = "preprocessor_config.json"
MOST_CHANNELS = 8  # an array with so few columns and more rows is one clip, not many
EPS = 1e-7  # the constant of transformers, whose files do not hold it


@dataclass(frozen=True)
class Data2VecAudioFeatureExtractor:
    """Normalises waveforms and pads them on the right.

    Each waveform becomes ``(x - mean) / sqrt(var + eps)`` with the statistics of its own samples.
    ``save_pretrained`` writes the same file as transformers' ``Wav2Vec2FeatureExtractor``, with
    every field, so that transformers 4 and 5 read it. One default differs from theirs:
    ``return_attention_mask`` is True, because without a mask transformers includes the padding in
    the statistics.

    Args:
        sampling_rate: of the waveforms, Hz.
        do_normalize: normalise; otherwise only pad.
        padding_value: what shorter waveforms are padded with.
        return_attention_mask: return the mask, 1 at samples and 0 at padding.
        eps: added to the variance. transformers always uses 1e-7, the published pretraining and
            ours 1e-5. The results differ by 2.5e-4 for waveforms with a standard deviation of .3,
            and by much for nearly silent ones. The file holds it only if it is not 1e-7;
            transformers ignores it.
    """

    sampling_rate: int = 16000
    do_normalize: bool = True
    padding_value: float = 0.0
    return_attention_mask: bool = True
    eps: float = EPS

    def __call__(self, audio: Tensor | Sequence[Any], sampling_rate: int) -> dict[str, Tensor]:
        """Make a batch: ``input_values`` float32 and ``attention_mask`` int64, both (clips,
        samples).

        Args:
            audio: one mono waveform (samples,), or a sequence of them: tensors, arrays or lists of
                numbers of any type, or an array (waveforms, samples).
            sampling_rate: of these waveforms, Hz.

        Raises:
            ConfigError: another sampling rate, no sample, more than one channel, or no numbers.
        """
        if sampling_rate != self.sampling_rate:
            rule, remedy = f"must be {self.sampling_rate}", "resample the waveforms"
            raise ConfigError("sampling_rate", sampling_rate, rule, remedy)
        waves = [_mono(wave) for wave in _waveforms(audio)]
        values = [self._scaled(wave) for wave in waves]
        masks = [torch.ones(len(wave), dtype=torch.long) for wave in waves]
        pad = torch.nn.utils.rnn.pad_sequence
        batch = {"input_values": pad(values, batch_first=True, padding_value=self.padding_value)}
        if self.return_attention_mask:
            batch["attention_mask"] = pad(masks, batch_first=True)
        return batch

    def _scaled(self, wave: Tensor) -> Tensor:
        if not self.do_normalize:
            return wave
        return (wave - wave.mean()) / (wave.var(correction=0) + self.eps).sqrt()

    def to_dict(self, processor_class: str | None = None) -> dict[str, Any]:
        """The content of ``preprocessor_config.json``. ``processor_class`` is
        ``Wav2Vec2Processor`` for models that recognise speech."""
        fields = asdict(self) | {"feature_extractor_type": "Wav2Vec2FeatureExtractor"}
        fields |= {"feature_size": 1, "padding_side": "right"}
        if self.eps == EPS:
            del fields["eps"]
        return fields | ({"processor_class": processor_class} if processor_class else {})

    def save_pretrained(self, directory: str | Path, processor_class: str | None = None) -> None:
        """Write ``preprocessor_config.json`` into ``directory``."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(processor_class), indent=2, sort_keys=True)
        (Path(directory) / FILE).write_text(text + "\n")

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Data2VecAudioFeatureExtractor:
        """Read ``preprocessor_config.json``, also one that transformers wrote.

        Args:
            directory: a directory with that file, or a model's name in the local hub cache.

        Raises:
            ConfigError: there is no such file, or it asks for what this class does not do.
        """
        file = model_folder(directory) / FILE
        if not file.is_file():
            remedy = "save a feature extractor there first"
            raise ConfigError("directory", directory, f"has no {FILE}", remedy)
        try:
            read = json.loads(file.read_text())
        except json.JSONDecodeError as error:
            raise ConfigError(str(file), error, "is no valid JSON", "copy the file again") from None
        for key, only in (("feature_size", 1), ("padding_side", "right")):
            if key in read and read[key] != only:
                raise ConfigError(f"{file}: {key}", read[key], f"must be {only}")
        return cls(**{key: read[key] for key in cls.__dataclass_fields__ if key in read})


def _waveforms(audio: Any) -> Sequence[Any]:
    """The waveforms as a sequence; one becomes a sequence of one."""
    no_sequence = not hasattr(audio, "__len__") or getattr(audio, "ndim", 1) == 0
    if no_sequence or isinstance(audio, str | bytes | Path | Mapping):
        rule, remedy = "must be waveforms", "read the file first, for example with soundfile.read"
        raise ConfigError("audio", f"of type {type(audio).__name__}", rule, remedy)
    shape: tuple[int, ...] = tuple(getattr(audio, "shape", (len(audio),)))
    if 0 in shape:
        raise ConfigError("audio", "nothing", "must be at least one waveform")
    if len(shape) == 2 and shape[1] <= MOST_CHANNELS < shape[0]:
        rule, remedy = "must be waveforms by samples", "average channels, x.mean(1)"
        raise ConfigError("audio", f"of shape {shape}", rule, remedy)
    one = not hasattr(audio[0], "__len__") or getattr(audio[0], "ndim", 1) == 0
    return [audio] if one else audio


def _mono(wave: Any) -> Tensor:
    """One waveform as a (samples,) float32 tensor."""
    if not torch.is_tensor(wave):
        try:
            wave = np.asarray(wave)
        except ValueError:  # lists of different lengths
            wave = np.array(None)
        if wave.dtype.kind not in "biuf":
            raise ConfigError("audio", f"of type {wave.dtype}", "must be numbers")
        wave = torch.from_numpy(np.ascontiguousarray(wave, np.float32))
    tensor = wave.float()
    if tensor.ndim != 1 or not len(tensor):
        shape, rule = f"of shape {tuple(tensor.shape)}", "must be one channel of samples"
        remedy = "average channels" if tensor.numel() else "leave out empty clips"
        raise ConfigError("audio", shape, rule, remedy)
    if not bool(tensor.isfinite().all()):
        raise ConfigError("audio", "with NaN or infinity", "must be finite")
    return tensor
