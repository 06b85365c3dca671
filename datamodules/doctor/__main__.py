"""``python -m datamodules.doctor modality=audio data=folder data.root=DIR [any setting of train.py]
[sample=N]``.

Decodes all data (or N random items), looks for what is wrong with it, and simulates the order of
the run. Writes runs/<name>/doctor/{doctor.json, lengths.png, skipped.jsonl}. Exit code 0: nothing
above data.max_bad_share, 1: some, or no plan, 2: wrong input."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from d2v_pretrain.config.compose import check, load
from d2v_pretrain.config.explain import in_words
from d2v_pretrain.errors import ConfigError

if TYPE_CHECKING:
    from datamodules.doctor.simulate import Simulation

_LIMIT = 0.1  # where the data have no ``max_bad_share``


def main() -> int:
    """Run it; returns the exit code."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    sample = [word for word in sys.argv[1:] if word.startswith("sample=")]
    sys.argv[1:] = [word for word in sys.argv[1:] if word not in sample]
    try:
        number = _number(sample[-1].partition("=")[2]) if sample else None
        cfg = load(sys.argv[1:])
        check(cfg)
        return look(cfg, number)
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {in_words(error)}", file=sys.stderr)
        return 2


def _number(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise ConfigError(
            "sample", text, "must be a positive whole number", "leave it out to decode everything"
        )
    return int(text)


def look(cfg: DictConfig, sample: int | None) -> int:
    """Examine the data of a configuration, print and write what was found.

    Args:
        cfg: as a run would get it. sample: how many items to decode; None for all.

    Returns:
        0 if no kind of defect is above ``data.max_bad_share``, and there is a plan; else 1.
    """
    from datamodules.doctor import (
        report,  # torch and Lightning: seconds that `--help` need not wait for
    )
    from datamodules.doctor.survey import survey

    folder, limit = Path(cfg.folder, "doctor"), _LIMIT
    cfg.folder = str(folder)  # a run's own files stay as they are
    if "max_bad_share" in cfg.data:
        limit, cfg.data.max_bad_share = (
            cfg.data.max_bad_share,
            1.0,
        )  # all of it is to be told, not the first 5
    (folder / "skipped.jsonl").unlink(missing_ok=True)
    data = instantiate(cfg.datamodule, _convert_="all")
    about = data.describe()
    transform = data.transform
    processes = len(os.sched_getaffinity(0))
    found = survey(
        _dataset(transform),
        getattr(transform, "size", 0),
        sample,
        processes,
        folder / "skipped.jsonl",
    )
    plan = _simulated(data)
    settings = (
        f"global_batch={cfg.global_batch} micro_batch={cfg.micro_batch} max_tokens={cfg.max_tokens}"
    )
    console = Console()
    report.show(console, about, found, limit, plan, settings)
    bad = [kind for kind in found.findings if found.share(kind) > limit]
    report.write(
        folder / "doctor.json",
        found,
        plan,
        data=about,
        max_bad_share=limit,
        settings=settings,
        above=bad,
    )
    drawn = report.draw(folder / "lengths.png", found)
    console.print(
        f"Written to {folder}: doctor.json" + ", lengths.png" * drawn,
        soft_wrap=True,
        highlight=False,
    )
    return int(bool(bad) or isinstance(plan, str))


def _dataset(transform: Any) -> Any:
    """What the transform reads from, before crops, joins and tokens."""
    dataset = transform.dataset
    return getattr(dataset, "clips", dataset)


def _simulated(data: Any) -> Simulation | str:
    from datamodules.doctor.simulate import simulate

    try:
        return simulate(data)
    except ConfigError as error:
        return str(error)


if __name__ == "__main__":
    sys.exit(main())
