"""ForeignWeights: an encoder's weights from a file, under the names of that file, and how they fit
into an encoder."""

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

_LISTED = 8  # names of tensors of each kind that a message lists
# An encoder may lack this tensor: only the objective of data2vec 1 needs it, and published files
# leave it out.
MASK_VECTOR = "stem.mask_vector"


@dataclass(frozen=True)
class ForeignWeights:
    """An encoder's weights as they were read.

    Args:
        path: the file or folder.
        what: which model it is, in a few words for the user.
        tensors: name in the file -> tensor.
        names: our name of each tensor of the encoder -> its name or names in the file, see
            ``weights.keymap``.
        left_out: parts of the file that do not belong to an encoder.
        heads: the number of attention heads, if the file tells it; shapes do not.
    """

    path: Path
    what: str
    tensors: Mapping[str, Tensor]
    names: Names
    left_out: Sequence[str] = ()
    heads: int | None = None

    def fitted(self, encoder: Encoder) -> dict[str, Tensor]:
        """These weights as the state of an encoder like ``encoder``, in float32. The mask vector is
        left out if the file has none.

        Raises:
            ConfigError: the message names tensors that are missing, unexpected or of another shape.
        """
        like = encoder.state_dict()
        given = {
            ours: theirs
            for ours, theirs in self.names.items()
            if all(part in self.tensors for part in _parts(theirs))
        }
        used = {part for theirs in given.values() for part in _parts(theirs)}
        state = {ours: self._joined(theirs) for ours, theirs in given.items()}
        shapes = [
            f"{name} {tuple(state[name].shape)}, here {tuple(like[name].shape)}"
            for name in state.keys() & like.keys()
            if _essential(state[name].shape) != _essential(like[name].shape)
        ]
        unused = sorted(self.tensors.keys() - used)
        faults = {
            "missing in it": sorted(like.keys() - state.keys() - {MASK_VECTOR}),
            "unexpected in it": unused + sorted(state.keys() - like.keys() - {MASK_VECTOR}),
            "of another shape": sorted(shapes),
        }
        heads = encoder.blocks[0].attention.heads  # type: ignore[union-attr]
        if self.heads not in (None, heads):
            faults["of another number of attention heads"] = [f"{self.heads}, here {heads}"]
        if any(faults.values()):
            told = "; ".join(f"{kind}: {listed(names)}" for kind, names in faults.items() if names)
            rule = f"({self.what}) does not fit the encoder: {told}"
            remedy = "choose the encoder and architecture that it was made with"
            raise ConfigError("init_from", self.path, rule, remedy)
        known = {name: value for name, value in state.items() if name in like}
        return {name: v.float().reshape(like[name].shape) for name, v in known.items()}

    def _joined(self, theirs: str | tuple[str, str, str]) -> Tensor:
        parts = [self.tensors[part] for part in _parts(theirs)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _parts(theirs: str | tuple[str, str, str]) -> tuple[str, ...]:
    return (theirs,) if isinstance(theirs, str) else theirs


def _essential(shape: Sequence[int]) -> list[int]:
    """A shape without its axes of length one, because files differ in these."""
    return [size for size in shape if size != 1]


def listed(names: Sequence[str]) -> str:
    """The first names, with those of a block put together if there are many."""
    blocks = Counter(name.split(".")[1] for name in names if name.startswith("blocks."))
    many = {f"blocks.{i}.": count for i, count in blocks.items() if count > _LISTED}
    names = [name for name in names if not name.startswith(tuple(many))]
    names += [f"{block}* ({count} tensors)" for block, count in many.items()]
    more = len(names) - _LISTED
    return ", ".join(islice(names, _LISTED)) + (f" and {more} more" if more > 0 else "")
