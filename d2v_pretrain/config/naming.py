"""Names of runs: what an automatic name is made of, and what the runs of a sweep (``-m``) add."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from d2v_pretrain.config.identity import is_free
from d2v_pretrain.config.recipes import Recipe

_LONGEST = 100  # characters of an automatic name; file systems take 255
_QUOTES = "'\""
_READABLE = re.compile(r"[\w.+-]{1,24}", re.ASCII)


def key_of(word: str) -> str:
    """The key or group of a typed word such as ``lr=1e-4``, ``+x=1`` or ``~probe``."""
    return word.lstrip("+~").partition("=")[0].partition("@")[0]


def naming_keys(typed: Sequence[str], groups: Sequence[str]) -> list[str]:
    """The keys of typed settings, sorted, that a run may not change and still be the same run.

    Args:
        typed: all words.
        groups: the keys among them that choose a group.
    """
    keys = {key_of(word) for word in typed} - {*groups}
    return sorted(key for key in keys if not is_free(key) and not key.startswith("hydra"))


def run_name(
    row: Recipe, chosen: Mapping[str, str | None], keys: Sequence[str], cfg: DictConfig
) -> str:
    """A recipe's name, with each choice of a group and each setting that differs from the recipe,
    and with all that is swept: ``audio_data2vec2_tiny_span_lr0.0005``.

    Args:
        row: the recipe.
        chosen: group -> choice.
        keys: settings that differ from the recipe.
        cfg: the configuration that has them.
    """
    usual = {**row.groups, "debug": None}
    swept = [key for key in cfg.swept if key != "recipe"]
    groups = [g for g in usual if chosen.get(g, usual[g]) != usual[g]]
    groups += [key for key in swept if key in chosen and key not in groups]
    choices = [_choice(chosen, group) for group in groups]
    named = {*keys, *(key for key in swept if key not in chosen)}
    settings = sorted(named, key=lambda key: (key.count("."), key))
    parts = [row.name, *choices, *(_setting(cfg, key) for key in settings)]
    name = "_".join(parts)
    if len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    while len("_".join([*parts, digest])) > _LONGEST and len(parts) > 1:
        parts.pop()
    return "_".join([*parts, digest])


def swept_part(*keys: str, _root_: DictConfig) -> str:
    """``_seed0_lr0.0005``: what tells the runs of a sweep apart, for ``${swept:seed,lr}``."""
    chosen = HydraConfig.get().runtime.choices
    return "".join(
        f"_{_choice(chosen, key) if key in chosen else _setting(_root_, key)}" for key in keys
    )


def for_sweep(words: Sequence[str]) -> list[str]:
    """The words of a sweep, with what each of its runs needs for a name of its own.

    The swept keys go into the setting ``swept``, from which automatic names take them. A typed
    ``name=`` or ``folder=`` that is the same for all runs gets the swept values at its end.

    Args:
        words: as Hydra takes them, without options.
    """
    parsed = OverridesParser.create().parse_overrides(list(words))
    swept = [w.key_or_group for w in parsed if w.is_sweep_override() and not w.is_hydra_override()]
    out = []
    for word, override in zip(words, parsed):
        key, _, text = word.partition("=")
        same_for_all = key in ("name", "folder") and not override.is_sweep_override()
        absent = [swept_key for swept_key in swept if not _mentions(text, swept_key)]
        if same_for_all and absent and not _mentions(text, "name"):
            word = f"{key}='{text.strip(_QUOTES)}${{swept:{','.join(absent)}}}'"
        out.append(word)
    return [*out, f"swept=[{','.join(swept)}]"] if swept else out


def _mentions(text: str, key: str) -> bool:
    """Whether ``${…}`` in a text reads a key."""
    return re.search(rf"\$\{{[^}}]*\b{re.escape(key)}\b", text) is not None


def _choice(chosen: Mapping[str, str | None], group: str) -> str:
    """The choice of a group for a name: ``audio_folder`` of ``data`` is ``folder``."""
    choice = str(chosen[group])
    return choice.removeprefix(f"{chosen.get('modality')}_") if group == "data" else choice


def _setting(cfg: DictConfig, key: str) -> str:
    """A setting for a name: ``lr0.0005``. A value that cannot stand in a name, such as a path or a
    list, is its last part and a digest: ``init_from-last.ckpt-3fa2c1``."""
    value = OmegaConf.select(cfg, key)
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    text = plain if isinstance(plain, str) else json.dumps(plain)
    if not _READABLE.fullmatch(text):
        digest = hashlib.sha256(text.encode()).hexdigest()[:6]
        last = re.sub(r"[^\w.]+", "", text.rstrip("/").rpartition("/")[2], flags=re.ASCII)[-16:]
        text = f"{last}-{digest}" if isinstance(plain, str) and last else digest
        return f"{key}-{text}"
    return f"{key}{text}" if text[0].isdigit() else f"{key}-{text}"
