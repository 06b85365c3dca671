"""The command ``python -m datamodules.doctor modality=audio data=folder data.root=DIR …``: what is
wrong with the data, and what order a run would read it in.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from d2v_pretrain.config import options
from d2v_pretrain.config.compose import check, load
from d2v_pretrain.config.explain import MISTAKES, in_words
from d2v_pretrain.config.printing import print_anything
from d2v_pretrain.errors import ConfigError

if TYPE_CHECKING:
    from datamodules.doctor.simulate import Simulation

_LIMIT = 0.1  # where the data have no ``max_bad_share``


@dataclass(frozen=True, kw_only=True)
class Options:
    """Decode the data of a run, find what is wrong with it, and simulate the order of the run.

    Writes doctor.json, lengths.png and skipped.jsonl into runs/NAME/doctor. The exit code is 0 if
    no kind of fault is above data.max_bad_share, 1 if one is or no order can be planned, and 2 for
    wrong input.

    Usage: d2v-pretrain doctor modality=audio data=folder data.root=DIR [key=value …]
    All settings of `d2v-pretrain pretrain` may be typed as well.

    Examples:
      d2v-pretrain doctor modality=audio data=folder data.root=recordings
      d2v-pretrain doctor modality=vision data=shards data.root=shards/imagenet sample=10000
      d2v-pretrain doctor modality=audio data=librispeech global_batch=64 max_tokens=1000000
    """

    sample: Annotated[int | None, "decode this many random items only; null decodes all", 1] = None


def main() -> int:
    """Run it; returns the exit code."""
    print_anything()
    typed = sys.argv[1:]
    if not typed or {"-h", "--help"} & set(typed):
        print(options.page(Options))
        return 0
    own, settings = options.split(typed, "sample")
    try:
        options.refuse_dashes(typed)
        sample = options.read(Options, own).sample
        cfg = load(settings)
        check(cfg)
        return look(cfg, sample)
    except MISTAKES as error:
        print(f"error: {in_words(error, settings)}", file=sys.stderr)
        return 2


def look(cfg: DictConfig, sample: int | None) -> int:
    """Examine the data of a configuration, print and write what was found.

    Args:
        cfg: as a run would get it.
        sample: how many items to decode; None for all.

    Returns:
        0 if no kind of fault is above ``data.max_bad_share`` and the order can be planned, else 1.
    """
    # torch and Lightning take seconds, which `--help` need not wait for.
    from datamodules.doctor import report
    from datamodules.doctor.survey import survey

    folder, limit = Path(cfg.folder, "doctor"), _LIMIT
    cfg.folder = str(folder)  # so that the files of the run itself stay as they are
    if "max_bad_share" in cfg.data:
        # Examine all items; a run would stop at this share of bad ones.
        limit, cfg.data.max_bad_share = cfg.data.max_bad_share, 1.0
    (folder / "skipped.jsonl").unlink(missing_ok=True)
    data = instantiate(cfg.datamodule, _convert_="all")
    about = data.describe()
    transform = data.transform
    processes = len(os.sched_getaffinity(0))
    side = transform.longest_input(**cfg.transform)[-1]
    listed = folder / "skipped.jsonl"
    found = survey(transform.dataset.unjoined, side, sample, processes, listed)
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


def _simulated(data: Any) -> Simulation | str:
    from datamodules.doctor.simulate import simulate

    try:
        return simulate(data)
    except ConfigError as error:
        return str(error)


if __name__ == "__main__":
    sys.exit(main())
