"""construct(): build what a tree of ``_target_`` and arguments describes, as Hydra does, without
Hydra."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any


def construct(node: Any, find: Callable[[str], Callable[..., Any]]) -> Any:
    """Build what a node describes.

    Args:
        node: a mapping with ``_target_`` and its arguments, a mapping or list of nodes, or another
            value, which stays as it is. With ``_partial_`` the result is a function that takes the
            other arguments.
        find: gives the class that a ``_target_`` names, and refuses every other name.
    """
    if isinstance(node, list):
        return [construct(item, find) for item in node]
    if not isinstance(node, dict):
        return node
    arguments = {
        key: construct(value, find)
        for key, value in node.items()
        if key not in ("_target_", "_partial_")
    }
    if "_target_" not in node:
        return arguments
    made = partial(find(node["_target_"]), **arguments)
    return made if node.get("_partial_") else made()
