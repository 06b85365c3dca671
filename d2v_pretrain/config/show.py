"""``--cfg job``: the configuration of a run as it would be stored, and what each typed word
changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from d2v_pretrain.config.compose import load
from d2v_pretrain.config.recipes import NAMING, Folders, folders_of, relative
from d2v_pretrain.config.stored import text_of
from d2v_pretrain.redaction import conceal_word


def job(typed: Sequence[str]) -> str:
    """The resolved configuration as YAML, below comments on what was typed.

    Args:
        typed: words as on the command line, without ``--cfg job``.

    Raises:
        ConfigError, or one of Hydra's: the words do not make a run.
    """
    typed = [conceal_word(word) for word in typed]
    cfg = load(typed)
    notes = "".join(f"# {line}\n" for line in _origins(cfg, typed))
    return notes + text_of(cfg)


def _origins(cfg: DictConfig, typed: Sequence[str]) -> Iterator[str]:
    """One line for each typed word: what it chose or set, and the value before."""
    folders = folders_of(typed)
    row = folders.recipe(cfg.recipe)
    conf = [word for word in typed if word.startswith("conf=")]
    file, plain = relative(row.file), load([f"recipe={row.name}", *conf])
    naming = [w for w in typed if w.split("=")[0] in (*NAMING, "recipe", "experiment")]
    yield f"{' '.join(naming)}: {file}"
    for word in typed:
        key, _, value = word.lstrip("+~").partition("=")
        if word in naming or key == "conf":
            continue
        if key in folders.groups():
            yield f"{word}: {_choice(key, value, cfg, row.groups.get(key), folders)}"
            continue
        before = _value(plain, key)
        yield f"{word}: typed" + (f"; it was {before}" if before is not None else "")


def _choice(key: str, value: str, cfg: DictConfig, usual: str | None, folders: Folders) -> str:
    found = folders.find(key, value) or folders.find(key, f"{cfg['modality']}_{value}")
    what = relative(found) if found else "none"
    return f"{what}, in place of {key}={usual} of the recipe" if usual else what


def _value(cfg: DictConfig, key: str) -> Any:
    """The value at ``key`` in a configuration without the typed word; None if there is none or it
    cannot be resolved."""
    try:
        return OmegaConf.select(cfg, key)
    except OmegaConfBaseException:
        return None
