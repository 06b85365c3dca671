"""Property: whatever the bytes of a file are, it is used or refused with a reason, in little
memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(first: int, last: int) -> dict[str, dict[str, int]]:
    """The mutants are read in a process of their own, because the limit of its memory is low."""
    command = [sys.executable, "-m", "tests.datamodules.mutants", str(first), str(last)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_mutant_is_used_or_refused() -> None:
    outcomes = run(0, 40)
    assert len(outcomes) == 14 and {sum(one.values()) for one in outcomes.values()} == {40}
    assert all(one["used"] for one in outcomes.values()), "the first of each kind is not mutated"
    assert sum(one.get("refused", 0) for one in outcomes.values()) > 200


@pytest.mark.slow
def test_thousands_of_mutants_are_used_or_refused() -> None:
    for kind, one in run(0, 2000).items():
        assert sum(one.values()) == 2000 and min(one["used"], one["refused"]) > 9, (kind, one)
