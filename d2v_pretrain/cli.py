"""Console entry points, and Hydra's complaints in one sentence: the key, the nearest valid ones,
the file."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from d2v_pretrain.config import show
from d2v_pretrain.config.compose import config_folder, register_resolvers
from d2v_pretrain.config.explain import in_words
from d2v_pretrain.config.recipes import for_hydra, settle
from d2v_pretrain.errors import ConfigError
from d2v_pretrain.training.signals import EXIT_REQUEUE, STOP

_UNWRITABLE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EEXIST,
}


def main() -> None:
    """``python train.py …``: compose and run; a mistake of the user's is one line and exit code 2."""
    # Hydra prints its errors and exits; asked for full errors, it raises them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register_resolvers()
    words = sys.argv[1:]
    try:
        if is_cfg_job(words):
            print(
                show.job(
                    [word for word in words if word not in ("--cfg", "-c", "job", "--cfg=job")]
                ),
                end="",
            )
            return
        # argparse takes no more overrides after an option in their midst.
        words = for_hydra(words)
        sys.argv[1:] = sorted(words, key=lambda a: a not in ("-m", "--multirun"))
        hydra.main(str(config_folder()), "pretrain", version_base="1.3")(_task)()
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        _stop(error)


def is_cfg_job(words: list[str]) -> bool:
    """Whether the resolved configuration is asked for, and no run."""
    return "--cfg=job" in words or any(w in ("--cfg", "-c") and "job" in words for w in words)


def _task(cfg: DictConfig) -> None:
    STOP.install()  # first of all: a signal during the imports is heard too
    from d2v_pretrain.training.run import (  # torch and Lightning: 5 s that `--help` need not wait for
        pretrain,
        stopped,
    )

    try:
        settle(cfg, HydraConfig.get().overrides.task)
        trainer = pretrain(cfg)
        if trainer is not None and stopped(trainer) is not None:
            _go_again(trainer.is_global_zero)
        STOP.uninstall()
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        STOP.uninstall()
        _stop(error)  # here, before Hydra adds a line of its own
    except OSError as error:
        STOP.uninstall()
        if error.errno not in _UNWRITABLE or not _is_in(error.filename, cfg.folder):
            raise
        rule = f"cannot be written ({error.strerror})"
        _stop(
            ConfigError(
                "folder",
                cfg.folder,
                rule,
                "with that mended, or another folder=DIR, type the same command",
            )
        )


def _is_in(file: object, folder: str) -> bool:
    """Whether a file that could not be written is a run's; a full disk does not say which it
    was."""
    return not isinstance(file, str) or Path(os.path.abspath(file)).is_relative_to(
        os.path.abspath(folder)
    )


def _go_again(first: bool) -> None:
    """Leave with the code that slurm/*.sbatch requeue on.

    Only the first rank does: Lightning's launcher and torchrun kill the others at once when one
    leaves with an error, and the first may then still be at work."""
    if first:
        STOP.hand_over()
        sys.exit(EXIT_REQUEUE)


def _stop(error: Exception) -> None:
    print(f"error: {in_words(error)}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
