"""The Python interface: ``pretrain()`` trains a run, ``load()`` gives an encoder to call with
arrays, images or texts."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2v_pretrain.checkpoint import file as checkpoint
from d2v_pretrain.checkpoint.saved_run import Run, find
from d2v_pretrain.config import compose, stored
from d2v_pretrain.config.explain import MISTAKES, in_words
from d2v_pretrain.errors import ConfigError, nearest
from d2v_pretrain.export import PREPARATION
from d2v_pretrain.extract import number_of_layers, token_features
from d2v_pretrain.huggingface import convert
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.training import run as training
from d2v_pretrain.training.signals import STOP
from d2v_pretrain.weights import bundle
from d2v_pretrain.weights.gate import Gate, check_places, gate_of


@dataclass(frozen=True)
class Features:
    """Features of B items.

    Args:
        x: (B, T, D) float32 on the CPU: D numbers for each token. T is the number of tokens of the
            longest item; shorter items are padded with zeros at the end.
        lengths: (B,) int64 number of tokens of each item.
    """

    x: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __iter__(self) -> Iterator[Tensor]:
        """For each item its features (tokens, D), without padding."""
        return (rows[:length] for rows, length in zip(self.x, self.lengths.tolist()))

    def pooled(self) -> Tensor:
        """(B, D) mean over the tokens of each item."""
        return torch.stack([tokens.mean(0) for tokens in self])


@dataclass(frozen=True)
class Pretrained:
    """An encoder, and how to prepare its inputs.

    Args:
        folder: the folder of the run or of the export.
        network: the encoder, a ``torch.nn.Module`` in evaluation mode; ``network.to("cuda")`` moves
            it to a GPU.
        probe: content of the run's ``probe.json``; None without one.
        source: the checkpoint or file that describes the run's transform.
        preparation: gives the configuration of that transform, without its dataset.
        gate: decides which classes that configuration may name.
    """

    folder: Path
    network: Encoder
    probe: Mapping[str, Any] | None
    source: Path = field(repr=False)
    preparation: Callable[[], dict[str, Any]] = field(repr=False)
    gate: Gate = field(repr=False)

    def encoder(
        self, inputs: Any, sampling_rate: int | None = None, layers: int | None = None
    ) -> Features:
        """Features of inputs in memory or in files, prepared as the run prepared its training data:
        waveforms are normalised, images are resized, cropped and normalised, texts are tokenised
        and cut to the longest input of the run.

        Items of different lengths are encoded separately, so that no item's features depend on the
        others. The features equal those of ``d2v-pretrain extract``.

        Args:
            inputs: one item or a sequence of items. Audio: mono waveforms, as one-dimensional
                arrays, tensors or lists, or a (waveforms, samples) array. Images: PIL images,
                arrays (H, W, 3) or tensors (3, H, W) of 8 bits. Text: strings. Audio and images may
                be paths of files.
            sampling_rate: sampling rate in Hz of waveforms that are not files; 16,000 by default.
                Waveforms at another rate are resampled.
            layers: average the outputs of this many last blocks; half of them by default, as the
                probe does.

        Raises:
            ConfigError: the inputs are of another kind; the folder does not say how to prepare
                them.
        """
        top = number_of_layers(self.network, layers)
        settings = self.preparation()
        items = list(self.gate.prepared(settings, self.source, inputs, sampling_rate).plain())
        rows: list[Tensor] = [torch.empty(0)] * len(items)
        for length in {item.shape[-1] for item in items}:
            places = [n for n, item in enumerate(items) if item.shape[-1] == length]
            batch = torch.stack([items[n] for n in places])
            for n, tokens in zip(places, token_features(self.network, batch, top)):
                rows[n] = tokens
        lengths = torch.tensor([len(tokens) for tokens in rows])
        return Features(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths)


def pretrain(
    modality: str | None = None, data: str | Path | None = None, **settings: Any
) -> Pretrained:
    """Start a run or continue it, as ``python train.py`` does, in one process and on one device
    unless ``trainer`` is given. Ctrl-C stops the run with a checkpoint; the same call continues it.

        run = pretrain("audio", "recordings", steps=1000, checkpoint={"keep_last": 2})
        run.probe["few_shot"], run.encoder(waveform).pooled()

    Args:
        modality: audio, vision or text; may be left out if a recipe is named.
        data: a set by name (``librispeech``), or a folder of files; by default the embedded data.
        settings: as on the command line: ``steps=100``, ``masking={"prob": 0.5}`` or
            ``**{"masking.prob": 0.5}``; None for null.

    Returns:
        The run, with the teacher's encoder, or the student's of a fine-tuned run.

    Raises:
        ConfigError: a mistake in the arguments, told in one sentence.
    """
    words = _words(modality, data, settings)
    on_main_thread = threading.current_thread() is threading.main_thread()
    if on_main_thread:
        STOP.install()
    try:
        cfg = compose.load(words)
        training.pretrain(cfg)
    except MISTAKES as error:
        raise in_words(error, words) from None
    finally:
        if on_main_thread:
            STOP.uninstall()
    folder = Path(cfg.folder).absolute()
    # The caller has just run these classes with these settings, so loading trusts them.
    typed = stored.resolved(cfg)
    return _of_run(replace(find(str(folder), None, gate_of(typed)), typed=typed), None)


def _words(modality: str | None, data: str | Path | None, settings: Mapping[str, Any]) -> list[str]:
    """The command line that the arguments of ``pretrain`` stand for."""
    words = [f"modality={modality}"] if modality else []
    if data is not None:
        sets = compose.data_sets()
        if str(data) in sets or ("conf" in settings and not Path(data).exists()):
            words.append(f"data={data}")
        elif Path(data).exists():
            words += ["data=folder", f"data.root={_spelled(str(data))}"]
        else:
            remedy = f"the sets are {', '.join(sets)}"
            rule = f"is neither a set of data nor a file or folder{nearest(str(data), sets)}"
            raise ConfigError("data", data, rule, remedy)
    given = dict(_flat(settings))
    if not any(key == "trainer" or key.startswith("trainer.") for key in given):
        given["trainer.devices"] = 1
    return words + [f"{key}={_spelled(value)}" for key, value in given.items()]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings, each with its dotted key."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _spelled(value: Any) -> str:
    """A value as Hydra reads it on a command line."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_spelled, value))}]"
    text = str(value)
    if text.replace("_", "").isalnum() and not text[0].isdigit():
        return text  # a bare word, which may also be the choice of a group
    # Inside quotes, Hydra reads a backslash as an escape only in front of a quote.
    doubled = re.sub(r"(\\+)(?='|$)", r"\1\1", text)
    return "'" + doubled.replace("'", "\\'") + "'"


def load(
    path: str | Path,
    which: str | None = None,
    step: int | None = None,
    trust: str | None = None,
) -> Pretrained:
    """An encoder of ours, ready to be called: ``load(PATH).encoder(inputs)``.

    Args:
        path: a run's name or folder, one of its checkpoints, a bundle, or a folder that ``export``
            wrote for transformers. No code in a folder is run.
        which: teacher or student of a run; the teacher by default, or the student if there is none.
        step: optimizer step of the checkpoint to read from a run; the newest by default.
        trust: names of packages besides d2v_pretrain whose classes the run or export may use,
            separated by commas.

    Raises:
        ConfigError: ``path`` is none of these, or is damaged.
    """
    place, gate = Path(path), Gate.typed(trust)
    if (place / bundle.CONFIG).is_file():
        return _exported(place, gate)
    if place.is_file():
        if checkpoint.step_of(place) < 0:
            remedy = "train.py init_from=FILE starts a run from published weights"
            raise ConfigError("path", path, "is not one of our checkpoints", remedy)
        return _of_run(Run(place.absolute().parent.parent, place, gate), which)
    is_run = (place / "checkpoints").is_dir()
    return _of_run(find(str(place.absolute() if is_run else path), step, gate), which)


def _of_run(run: Run, which: str | None) -> Pretrained:
    try:
        network = run.encoder(which or "teacher")
    except ConfigError as error:
        if which is not None or error.key != "which":
            raise
        network = run.encoder("student")
    probe = run.report("probe.json")
    return Pretrained(run.folder, network, probe, run.file, run.preparation, run.gate)


def _exported(folder: Path, gate: Gate) -> Pretrained:
    if bundle.is_bundle(folder):
        network = bundle.load(folder, gate.trust)
    else:
        network = convert.load(folder)[0].encoder_module
    file = folder / PREPARATION

    def preparation() -> dict[str, Any]:
        try:
            text = file.read_text("utf-8")
        except (OSError, ValueError) as error:
            rule = f"has no {PREPARATION} that says how inputs are prepared ({error})"
            remedy = "export the run again with this version, or call .network with your own batch"
            raise ConfigError("path", folder, rule, remedy) from None
        settings = stored.plain(text, file)
        if settings.get("tokenizer"):
            settings["tokenizer"] = str(folder / str(settings["tokenizer"]))
        check_places(settings, None, folder, file)
        return settings

    return Pretrained(folder, network.eval(), None, file, preparation, gate)
