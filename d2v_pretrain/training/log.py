"""log(): one line for the user."""

from __future__ import annotations

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich import get_console

from d2v_pretrain.redaction import redact


@rank_zero_only
def log(text: str) -> None:
    """Print a line on rank 0, without secrets; ``[bold]…[/]`` and the like are Rich's markup."""
    get_console().print(redact(text), soft_wrap=True, highlight=False)
