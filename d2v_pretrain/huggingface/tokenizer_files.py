"""Write a byte-level BPE tokenizer as the files of RoBERTa's, which transformers 4 and 5 read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Their ids are 0 to 3.
SPECIALS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_MASK = {
    "content": "<mask>",
    "lstrip": True,
    "normalized": False,
    "rstrip": False,
    "single_word": False,
}


def ids_of(tokenizer: Mapping[str, Any], moved: Sequence[int] | None, size: int) -> dict[str, int]:
    """Token -> id in the model.

    Args:
        tokenizer: content of a ``tokenizer.json``.
        moved: the id in the model of each id of the tokenizer, 3 for tokens that the model does
            not have; None if all ids are the same.
        size: number of ids in the model. Ids without a token get one like ``<unused7>``.
    """
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    raw = dict(tokenizer["model"]["vocab"]) | added
    if moved is not None:
        raw = {token: int(moved[i]) for token, i in raw.items() if moved[i] != 3}
        raw |= {token: i for i, token in enumerate(SPECIALS.values())} | {"<mask>": size - 1}
    taken = set(raw.values())
    return raw | {f"<unused{i}>": i for i in range(size) if i not in taken}


def why_not(tokenizer: Mapping[str, Any]) -> str | None:
    """Why a tokenizer cannot be written as RoBERTa's, as a clause; None if it can."""
    if tokenizer["model"]["type"] != "BPE":
        return f"its tokenizer is a {tokenizer['model']['type']}, not byte-level BPE"
    if "ByteLevel" not in json.dumps(tokenizer["pre_tokenizer"]):
        return "its tokenizer does not work on bytes"
    return None


def write(folder: Path, ids: Mapping[str, int], tokenizer: Mapping[str, Any], longest: int) -> None:
    """Write vocab.json, merges.txt, special_tokens_map.json and tokenizer_config.json.

    Args:
        folder: must exist.
        ids: see ``ids_of``.
        tokenizer: content of a ``tokenizer.json``, for its merges.
        longest: number of tokens in the longest text that the model takes.
    """
    pairs = [
        pair.split(" ") if isinstance(pair, str) else pair for pair in tokenizer["model"]["merges"]
    ]
    merges = [" ".join(pair) for pair in pairs if {*pair, "".join(pair)} <= ids.keys()]
    ordered = dict(sorted(ids.items(), key=lambda item: item[1]))
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8"
    )
    contents = {
        "vocab.json": ordered,
        "special_tokens_map.json": SPECIALS
        | {"cls_token": "<s>", "sep_token": "</s>", "mask_token": _MASK},
        "tokenizer_config.json": {
            "tokenizer_class": "RobertaTokenizer",
            "model_max_length": longest,
            "add_prefix_space": False,
            **SPECIALS,
            "cls_token": "<s>",
            "sep_token": "</s>",
            # With its type: transformers 5 ignores lstrip of a plain mapping, so that "a <mask>"
            # would become three tokens.
            "mask_token": {"__type": "AddedToken", **_MASK},
        },
    }
    for name, content in contents.items():
        (folder / name).write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
