"""Weights that came from somewhere, under the names of there, and fitting them into an encoder of
ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.weights.keymap import Names

_LISTED = 8  # names of each kind in a message
_OWN = "stem.mask_vector"  # of the objective more than of the encoder: data2vec 2 has none, published files drop it


@dataclass(frozen=True)
class ForeignWeights:
    """What was read from a file or folder.

    Args:
        what: in a few words, for the user.
        tensors: under their own names.
        names: encoder name of ours -> own name or names, see ``interop.keymap``.
        left_out: what of the file is no part of an encoder.
        heads: attention heads, if the file tells; shapes do not.
    """

    what: str
    tensors: Mapping[str, Tensor]
    names: Names
    left_out: Sequence[str] = ()
    heads: int | None = None

    def fitted(self, encoder: Encoder, path: Path) -> dict[str, Tensor]:
        """The state of an encoder like ``encoder``, float32; without a mask vector where the source
        has none.

        Raises:
            ConfigError: naming tensors that are missing, unexpected or of another shape.
        """
        like = encoder.state_dict()
        given = {
            ours: theirs
            for ours, theirs in self.names.items()
            if all(t in self.tensors for t in _parts(theirs))
        }
        used = {part for theirs in given.values() for part in _parts(theirs)}
        state = {ours: self._stacked(theirs) for ours, theirs in given.items()}
        shapes = [
            f"{name} {tuple(state[name].shape)}, here {tuple(like[name].shape)}"
            for name in state.keys() & like.keys()
            if _essential(state[name].shape) != _essential(like[name].shape)
        ]
        faults = {
            "missing in it": sorted(like.keys() - state.keys() - {_OWN}),
            "unexpected in it": sorted({*self.tensors} - used)
            + sorted(state.keys() - like.keys() - {_OWN}),
            "of another shape": sorted(shapes),
        }
        heads = encoder.blocks[0].attention.heads  # type: ignore[union-attr]
        if self.heads not in (None, heads):
            faults["of another number of attention heads"] = [f"{self.heads}, here {heads}"]
        if any(faults.values()):
            told = "; ".join(f"{kind}: {_listed(names)}" for kind, names in faults.items() if names)
            rule = f"({self.what}) does not fit the encoder: {told}"
            raise ConfigError(
                "init_from", path, rule, "choose the encoder and architecture that it was made with"
            )
        return {
            name: value.float().reshape(like[name].shape)
            for name, value in state.items()
            if name in like
        }

    def _stacked(self, theirs: str | tuple[str, str, str]) -> Tensor:
        parts = [self.tensors[part] for part in _parts(theirs)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def load_weights(encoders: Sequence[Encoder], source: ForeignWeights, path: Path) -> str:
    """Put the weights of ``source`` into every encoder.

    Returns:
        A line for the user: what was read from where, how many tensors, what was left out.

    Raises:
        ConfigError: see ``ForeignWeights.fitted``.
    """
    state = source.fitted(encoders[0], path)
    for encoder in encoders:
        left = encoder.load_state_dict(state, strict=False)
        assert set(left.missing_keys) <= {_OWN} and not left.unexpected_keys
    into = "student and teacher" if len(encoders) > 1 else "the encoder"
    line = f"weights from {path} ({source.what}): {len(state)} tensors into {into}"
    line += f"; left out {_listed(source.left_out)}" if source.left_out else ""
    fresh = _OWN in encoders[0].state_dict() and _OWN not in state
    return line + (f"; {_OWN} starts afresh, the source has none" if fresh else "")


def _parts(theirs: str | tuple[str, str, str]) -> tuple[str, ...]:
    return (theirs,) if isinstance(theirs, str) else theirs


def _essential(shape: Sequence[int]) -> list[int]:
    """A shape without its axes of length one, in which files differ."""
    return [size for size in shape if size != 1]


def _listed(names: Sequence[str]) -> str:
    """Names, those of one block together if there are many."""
    blocks = Counter(name.split(".")[1] for name in names if name.startswith("blocks."))
    many = {f"blocks.{i}.": count for i, count in blocks.items() if count > _LISTED}
    names = [name for name in names if not name.startswith(tuple(many))]
    names += [f"{block}* ({count} tensors)" for block, count in many.items()]
    more = len(names) - _LISTED
    return ", ".join(islice(names, _LISTED)) + (f" and {more} more" if more > 0 else "")
