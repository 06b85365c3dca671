"""Data2VecVisionForSemanticSegmentation: a feature pyramid, UPerNet's head and an auxiliary
head."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.huggingface import names_vision as hf_vision
from d2v_pretrain.huggingface.config import Data2VecVisionConfig
from d2v_pretrain.huggingface.files import read_weights, write_weights
from d2v_pretrain.huggingface.outputs import SemanticSegmenterOutput
from d2v_pretrain.huggingface.vision import Data2VecVisionModel, Data2VecVisionPreTrainedModel


def conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Convolution that keeps the size, BatchNorm, ReLU."""
    layers = {
        "convolution": nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        "normalization": nn.BatchNorm2d(outputs),
        "activation": nn.ReLU(),
    }
    return nn.Sequential(OrderedDict(layers))


def resized(x: Tensor, size: torch.Size) -> Tensor:
    """(B, C, H, W) bilinear to the last two of ``size``."""
    return F.interpolate(x, size[-2:], mode="bilinear", align_corners=False)


class PyramidPooling(nn.Module):
    """Averages over ``scale`` x ``scale`` cells, each through a convolution, at the size of the
    input.

    Args:
        scales: cells along each side.
        width: D.
    """

    def __init__(self, scales: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.scales = scales
        self.blocks = nn.ModuleList(nn.ModuleDict({"conv": conv(width, width, 1)}) for _ in scales)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, D, H, W) -> as many as there are scales."""
        pooled = [F.adaptive_avg_pool2d(x, scale) for scale in self.scales]
        convs = (block["conv"] for block in self.blocks)  # type: ignore[index]
        return [resized(conv(p), x.shape) for conv, p in zip(convs, pooled, strict=True)]


class UPerHead(nn.Module):
    """UPerNet (Xiao et al., 2018): pyramid pooling on top, a feature pyramid below. From
    mmsegmentation ``UPerHead``.

    Args:
        width: D of the four features and of everything inside.
        scales: of the pyramid pooling.
        labels: C.
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
        """Features (B, D, H_i, W_i), the finest first -> logits (B, C, H_0, W_0)."""
        levels = [lateral(x) for lateral, x in zip(self.lateral_convs, features)]
        top = features[-1]
        levels.append(self.psp_bottleneck(torch.cat([top, *self.psp_modules(top)], 1)))
        for i in reversed(range(3)):
            levels[i] = levels[i] + resized(levels[i + 1], levels[i].shape)
        levels[:3] = [convolve(level) for convolve, level in zip(self.fpn_convs, levels)]
        joined = torch.cat([resized(level, levels[0].shape) for level in levels], 1)
        return self.classifier(self.fpn_bottleneck(joined))


class FCNHead(nn.Module):
    """Convolutions over the third feature (Long et al., 2015), for a second loss. Source:
    mmsegmentation ``FCNHead``.

    Args:
        width: D of the feature.
        channels: of the convolutions.
        convs: their number.
        concat_input: another one reads the feature beside their output.
        labels: C.
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
        """Features as in ``UPerHead`` -> logits (B, C, H_2, W_2)."""
        x = features[2]
        for convolve in self.convs:
            x = convolve(x)
        if self.conv_cat is not None:
            x = self.conv_cat(torch.cat([features[2], x], 1))
        return self.classifier(x)


class Data2VecVisionForSemanticSegmentation(Data2VecVisionPreTrainedModel):
    """The encoder, four of its hidden states at four resolutions, UPerNet's head and, for the loss,
    an auxiliary head.

    As published, ``out_indices`` counts from one past the blocks' input: index i is the input of
    block i, counted from 1, so that (3, 5, 7, 11) reads the outputs of blocks 2, 4, 6 and 10. Index
    0 reads nothing.

    Args:
        config: sizes, rates and labels.

    Raises:
        ConfigError: not four indices, indices that no block has, sizes of the auxiliary head that
            do not meet.
    """

    def __init__(self, config: Data2VecVisionConfig) -> None:
        super().__init__(config)
        _check(config)
        width, labels = config.hidden_size, config.num_labels
        self.data2vec_vision = Data2VecVisionModel(config)
        self.fpn1 = nn.Sequential(
            _doubled(width), nn.BatchNorm2d(width), nn.GELU(), _doubled(width)
        )
        self.fpn2 = nn.Sequential(_doubled(width))
        self.decode_head = UPerHead(width, config.pool_scales, labels)
        auxiliary = (
            config.auxiliary_channels,
            config.auxiliary_num_convs,
            config.auxiliary_concat_input,
        )
        self.auxiliary_head = (
            FCNHead(width, *auxiliary, labels) if config.use_auxiliary_head else None
        )
        self.init_weights()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = False,
        head_mask: Tensor | None = None,
    ) -> SemanticSegmenterOutput:
        """Label pixels.

        Args:
            pixel_values: see ``Data2VecVisionModel``, as are the other arguments.
            labels: (B, height, width) class ids; ``semantic_loss_ignore_index`` is left out.

        Returns:
            ``loss`` if there are labels, ``logits`` (B, C, 4 rows, 4 columns) for a grid of
            patches, and what was asked for.

        Raises:
            ConfigError: labels for a single class.
        """
        c = self.config
        if labels is not None and c.num_labels == 1:
            raise ConfigError(
                "num_labels", 1, "leaves nothing to learn", "set num_labels=2, background and class"
            )
        keep = c.output_hidden_states if output_hidden_states is None else output_hidden_states
        out = self.data2vec_vision(
            pixel_values, None, output_attentions, True, head_mask=head_mask, return_dict=True
        )
        features = self._features(out.hidden_states, self.data2vec_vision.grid(pixel_values))
        logits = self.decode_head(features)
        loss = None if labels is None else self._loss(features, logits, labels)
        return SemanticSegmenterOutput(
            loss, logits, out.hidden_states if keep else None, out.attentions
        )

    def _features(self, states: tuple[Tensor, ...], grid: tuple[int, int]) -> list[Tensor]:
        """(B, D, rows, columns) at 4, 2, 1 and 1/2 times the grid."""
        read = [x for place, x in enumerate(states, start=1) if place in self.config.out_indices]
        images = [x[:, 1:].transpose(1, 2).unflatten(2, grid) for x in read]
        scales = (self.fpn1, self.fpn2, nn.Identity(), nn.MaxPool2d(2, 2))
        return [scale(x) for scale, x in zip(scales, images)]

    def _loss(self, features: list[Tensor], logits: Tensor, labels: Tensor) -> Tensor:
        ignored = self.config.semantic_loss_ignore_index

        def entropy(x: Tensor) -> Tensor:
            return F.cross_entropy(resized(x, labels.shape), labels, ignore_index=ignored)

        if self.auxiliary_head is None:
            return entropy(logits)
        return entropy(logits) + self.config.auxiliary_loss_weight * entropy(
            self.auxiliary_head(features)
        )

    def adapt(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Read transformers 4's names of the head as well as 5's."""
        renamed = {
            hf_vision.head_name(k, hf_vision.OLD_TO_NEW): tensor for k, tensor in state.items()
        }
        return super().adapt(renamed)

    def save_pretrained(
        self, directory: str | Path, max_shard_size: int | str = "5GB", dialect: int = 5
    ) -> None:
        """See ``PreTrained``. transformers 4 and 5 name the layers of the head differently, and
        neither reads the other's: it warns and leaves the head random.

        Args:
            directory: made if it is not there; weights in it are replaced.
            max_shard_size: more goes into several files.
            dialect: the version of transformers that shall read the head, 4 or 5. Ours reads both.
        """
        if dialect not in (4, 5):
            raise ConfigError("dialect", dialect, "must be 4 or 5, a version of transformers")
        super().save_pretrained(directory, max_shard_size)
        if dialect == 4:
            state = read_weights(directory)
            old = {
                hf_vision.head_name(key, hf_vision.NEW_TO_OLD): tensor
                for key, tensor in state.items()
            }
            write_weights(directory, old, max_shard_size)


def _doubled(width: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(width, width, 2, 2)


def _check(c: Data2VecVisionConfig) -> None:
    if len(c.out_indices) != 4:
        raise ConfigError(
            "out_indices",
            c.out_indices,
            "must be four hidden states",
            "(3, 5, 7, 11) suit 12 blocks",
        )
    # transformers runs with three (an index of 0); with fewer it fails in the forward.
    if len({i for i in c.out_indices if 1 <= i <= c.num_hidden_layers + 1}) < 3 + (
        0 not in c.out_indices
    ):
        rule = f"must be different, and from 1 to num_hidden_layers + 1, {c.num_hidden_layers + 1}"
        raise ConfigError("out_indices", c.out_indices, rule)
    if (
        c.use_auxiliary_head
        and c.auxiliary_num_convs == 0
        and c.auxiliary_channels != c.hidden_size
    ):
        rule = f"must be hidden_size, {c.hidden_size}, when auxiliary_num_convs=0"
        raise ConfigError("auxiliary_channels", c.auxiliary_channels, rule)
