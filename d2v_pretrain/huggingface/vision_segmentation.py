"""Data2VecVisionForSemanticSegmentation: four feature maps, the head of UPerNet on them, and a
second head for the loss."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface.config_vision import Data2VecVisionConfig
from d2v_pretrain.huggingface.inputs import class_ids, shape_of
from d2v_pretrain.huggingface.outputs import BaseModelOutputWithPooling, SemanticSegmenterOutput
from d2v_pretrain.huggingface.parameter_names import NEW_TO_OLD, OLD_TO_NEW, in_dialect
from d2v_pretrain.huggingface.vision import Data2VecVisionModel
from d2v_pretrain.huggingface.vision_heads import VisionHead


def conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """A convolution that keeps height and width, BatchNorm and ReLU."""
    layers = {
        "convolution": nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        "normalization": nn.BatchNorm2d(outputs),
        "activation": nn.ReLU(),
    }
    return nn.Sequential(OrderedDict(layers))


def resized(x: Tensor, size: torch.Size) -> Tensor:
    """Feature maps resized bilinearly to the height and width at the end of ``size``."""
    return F.interpolate(x, size[-2:], mode="bilinear", align_corners=False)


class PyramidPooling(nn.Module):
    """For each scale: averages over scale x scale cells, a convolution of 1 x 1, resized to the
    size of the input.

    Args:
        scales: cells along each side.
        width: D, channels of the feature map.
    """

    def __init__(self, scales: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.scales = scales
        self.blocks = nn.ModuleList(nn.ModuleDict({"conv": conv(width, width, 1)}) for _ in scales)

    def forward(self, x: Tensor) -> list[Tensor]:
        """A feature map (images, D, height, width) -> a map of that shape for each scale."""
        pooled = [F.adaptive_avg_pool2d(x, scale) for scale in self.scales]
        convs = (block["conv"] for block in self.blocks)  # type: ignore[index]
        return [resized(conv(p), x.shape) for conv, p in zip(convs, pooled, strict=True)]


class UPerHead(nn.Module):
    """The head of UPerNet (Xiao et al., 2018): pyramid pooling of the coarsest feature map, then a
    feature pyramid down to the finest. Source: mmsegmentation ``UPerHead``.

    Args:
        width: D of the four feature maps and of everything inside.
        scales: of the pyramid pooling.
        labels: number of classes C.
    """

    def __init__(self, width: int, scales: tuple[int, ...], labels: int) -> None:
        super().__init__()
        self.psp_modules = PyramidPooling(scales, width)
        self.psp_bottleneck = conv((1 + len(scales)) * width, width, 3)
        self.lateral_convs = nn.ModuleList(conv(width, width, 1) for _ in range(3))
        self.fpn_convs = nn.ModuleList(conv(width, width, 3) for _ in range(3))
        self.fpn_bottleneck = conv(4 * width, width, 3)
        self.classifier = nn.Conv2d(width, labels, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Feature maps (images, D, height, width), the finest first -> logits (images, C, height,
        width) of the size of the finest map."""
        levels = [lateral(x) for lateral, x in zip(self.lateral_convs, features)]
        top = features[-1]
        levels.append(self.psp_bottleneck(torch.cat([top, *self.psp_modules(top)], 1)))
        for i in reversed(range(3)):
            levels[i] = levels[i] + resized(levels[i + 1], levels[i].shape)
        levels[:3] = [convolve(level) for convolve, level in zip(self.fpn_convs, levels)]
        joined = torch.cat([resized(level, levels[0].shape) for level in levels], 1)
        return self.classifier(self.fpn_bottleneck(joined))


class FCNHead(nn.Module):
    """Convolutions over the third feature map (Long et al., 2015), for a second loss. Source:
    mmsegmentation ``FCNHead``.

    Args:
        width: D of the feature map.
        channels: of the convolutions.
        convs: number of convolutions.
        concat_input: one more convolution reads the feature map and the output of the others.
        labels: number of classes C.
    """

    def __init__(
        self, width: int, channels: int, convs: int, concat_input: bool, labels: int
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            conv(channels if i else width, channels, 3) for i in range(convs)
        )
        self.conv_cat = conv(width + channels, channels, 3) if concat_input else None
        self.classifier = nn.Conv2d(channels, labels, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Feature maps as in ``UPerHead`` -> logits of the size of the third map."""
        x = features[2]
        for convolve in self.convs:
            x = convolve(x)
        if self.conv_cat is not None:
            x = self.conv_cat(torch.cat([features[2], x], 1))
        return self.classifier(x)


class Data2VecVisionForSemanticSegmentation(VisionHead):
    """Classes of pixels: four hidden states as feature maps of four sizes, the head of UPerNet, and
    an auxiliary head for the loss.

    As published, ``config.out_indices`` counts hidden states from 1: index i is the input of block
    i, so that (3, 5, 7, 11) reads the outputs of blocks 2, 4, 6 and 10. Index 0 reads nothing.

    ``labels`` (images, height, width) are class ids; pixels with ``semantic_loss_ignore_index`` are
    left out of the loss. ``logits`` are (images, classes, 4 rows, 4 columns) for a grid of rows x
    columns patches.

    Raises:
        ConfigError: not four indices, indices of blocks that do not exist, sizes of the auxiliary
            head that do not fit.
    """

    output = SemanticSegmenterOutput
    reads_states = True

    def __init__(self, config: Data2VecVisionConfig) -> None:
        super().__init__(config)
        _check(config)
        width, labels = config.hidden_size, config.num_labels
        self.data2vec_vision = Data2VecVisionModel(config)
        first, second = _doubled(width), _doubled(width)
        self.fpn1 = nn.Sequential(first, nn.BatchNorm2d(width), nn.GELU(), second)
        self.fpn2 = nn.Sequential(_doubled(width))
        self.decode_head = UPerHead(width, config.pool_scales, labels)
        self.auxiliary_head: FCNHead | None = None
        if config.use_auxiliary_head:
            sizes = config.auxiliary_channels, config.auxiliary_num_convs
            concat = config.auxiliary_concat_input
            self.auxiliary_head = FCNHead(width, *sizes, concat, labels)
        self.init_weights()

    def read(
        self, out: BaseModelOutputWithPooling, grid: tuple[int, int], labels: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        """Logits and the loss.

        Raises:
            ConfigError: labels for a single class, or not one map for each image.
            OutOfRange: a pixel has no class of the model, on the CPU.
        """
        c = self.config
        if labels is not None and c.num_labels == 1:
            remedy = "set num_labels=2, background and class"
            raise ConfigError("num_labels", 1, "leaves nothing to learn", remedy)
        assert out.hidden_states is not None and out.last_hidden_state is not None
        if labels is not None:
            labels = _class_maps(labels, c, len(out.last_hidden_state))
        chosen = [x for i, x in enumerate(out.hidden_states, start=1) if i in c.out_indices]
        maps = [x[:, 1:].transpose(1, 2).unflatten(2, grid) for x in chosen]
        # 4, 2, 1 and 1/2 times the grid.
        scales = (self.fpn1, self.fpn2, nn.Identity(), nn.MaxPool2d(2, 2))
        features = [scale(x) for scale, x in zip(scales, maps)]
        logits = self.decode_head(features)
        if labels is None:
            return None, logits

        def entropy(x: Tensor) -> Tensor:
            ignored = c.semantic_loss_ignore_index
            return F.cross_entropy(resized(x, labels.shape), labels, ignore_index=ignored)

        loss = entropy(logits)
        if self.auxiliary_head is not None:
            loss = loss + c.auxiliary_loss_weight * entropy(self.auxiliary_head(features))
        return loss, logits

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``PreTrained``. Reads the names of the head in transformers 4 as well as 5."""
        return super().adapt({in_dialect(k, OLD_TO_NEW): t for k, t in state.items()})

    def save_pretrained(self, save_directory: str | Path, *args: Any, **options: Any) -> None:
        """See ``PreTrained``. transformers 4 and 5 name the layers of the head differently. Neither
        reads the names of the other: it warns and starts the head at random.

        Args:
            save_directory: made if it does not exist; weights in it are replaced.
            args: as in ``PreTrained``.
            options: likewise; and ``dialect``, 4 or 5 (the default), the version of transformers
                that shall read the head. We read both.
        """
        dialect = options.pop("dialect", 5)
        if dialect not in (4, 5):
            raise ConfigError("dialect", dialect, "must be 4 or 5, a version of transformers")
        if dialect == 4:
            state = self.to_file(options.get("state_dict"))
            options["state_dict"] = {in_dialect(key, NEW_TO_OLD): t for key, t in state.items()}
        super().save_pretrained(save_directory, *args, **options)


def _class_maps(labels: Tensor, c: Data2VecVisionConfig, images: int) -> Tensor:
    sides = tuple(labels.shape[-2:]) if torch.is_tensor(labels) else ()
    ignored = c.semantic_loss_ignore_index
    ids = class_ids(labels, c.num_labels, images, *sides, ignored=ignored)
    if ids.ndim != 3:
        rule = f"must be {images} maps of class ids, images by height by width"
        raise ConfigError("labels", shape_of(ids), rule)
    return ids


def _doubled(width: int) -> nn.ConvTranspose2d:
    """Doubles height and width."""
    return nn.ConvTranspose2d(width, width, 2, 2)


def _check(c: Data2VecVisionConfig) -> None:
    if len(c.out_indices) != 4:
        rule, remedy = "must be four hidden states", "(3, 5, 7, 11) suit 12 blocks"
        raise ConfigError("out_indices", c.out_indices, rule, remedy)
    # transformers runs with three, if an index is 0; with fewer it fails in the forward.
    last = c.num_hidden_layers + 1
    there = {i for i in c.out_indices if 1 <= i <= last}
    if len(there) < (3 if 0 in c.out_indices else 4):
        rule = f"must be different, and from 1 to num_hidden_layers + 1, {last}"
        raise ConfigError("out_indices", c.out_indices, rule)
    without_convs = c.use_auxiliary_head and c.auxiliary_num_convs == 0
    if without_convs and c.auxiliary_channels != c.hidden_size:
        rule = f"must be hidden_size, {c.hidden_size}, when auxiliary_num_convs=0"
        raise ConfigError("auxiliary_channels", c.auxiliary_channels, rule)
