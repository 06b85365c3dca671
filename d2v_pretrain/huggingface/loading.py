"""Loading: which weights of a file fit a model, and what is said about the others."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from d2v_pretrain.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass
class Loading:
    """What did not fit when weights were read. Keys are those of the file.

    Args:
        missing: keys of the model that the file lacks; these weights keep their random start.
        unexpected: keys of the file that the model lacks.
        misshapen: key, shape in the file, shape in the model.
    """

    missing: list[str]
    unexpected: list[str]
    misshapen: list[tuple[str, torch.Size, torch.Size]]

    @classmethod
    def compared(cls, found: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> Self:
        """Compare the tensors of a file with those that a model would write."""
        both = sorted(found.keys() & needed.keys())
        shapes = [(key, found[key].shape, needed[key].shape) for key in both]
        return cls(
            missing=sorted(needed.keys() - found.keys()),
            unexpected=sorted(found.keys() - needed.keys()),
            misshapen=[(key, theirs, ours) for key, theirs, ours in shapes if theirs != ours],
        )

    def report(
        self, model: str, source: str, required: Set[str], ignore_mismatched_sizes: bool
    ) -> None:
        """Log what did not fit.

        Args:
            model: name of the model's class.
            source: where the weights come from.
            required: keys that must not be missing.
            ignore_mismatched_sizes: tensors of another shape are logged instead of refused.

        Raises:
            ConfigError: required weights are missing, or shapes differ.
        """
        wrong = _listed(
            [
                f"{key} {tuple(theirs)} instead of {tuple(ours)}"
                for key, theirs, ours in self.misshapen
            ]
        )
        if wrong and not ignore_mismatched_sizes:
            remedy = "give the settings that the file was made with, or"
            remedy += " ignore_mismatched_sizes=True to start these weights at random"
            raise ConfigError(source, wrong, f"does not fit {model}", remedy)
        if lost := _listed([key for key in self.missing if key in required]):
            remedy = "name the directory of such a model"
            raise ConfigError(source, lost, f"is missing for {model}", remedy)
        if self.missing:
            text = "%s starts with random weights for %s, which %s lacks: train it."
            logger.warning(text, model, _listed(self.missing), source)
        if self.unexpected:
            text = "%s does not use these weights of %s: %s."
            logger.warning(text, model, source, _listed(self.unexpected))
        if wrong:
            text = "%s starts with random weights where shapes differ in %s: %s."
            logger.warning(text, model, source, wrong)


def _listed(keys: list[str], most: int = 20) -> str:
    rest = len(keys) - most
    return ", ".join(keys[:most]) + (f" and {rest} more" if rest > 0 else "")
