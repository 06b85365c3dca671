"""docs/hf_differences.md names a test for every row, and the tests are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_row_has_a_test() -> None:
    rows = [
        line
        for line in (ROOT / "docs" / "hf_differences.md").read_text().splitlines()
        if line.startswith("|")
    ]
    rows = [row for row in rows if not row.startswith(("|---", "| transformers"))]
    assert len(rows) > 20
    for row in rows:
        file, named = None, re.findall(r"`([\w/]*\.?\w*?(?:\.py)?)::(\w+)`", row)
        assert named, row
        for place, test in named:
            file = (
                (ROOT / (place if "/" in place else f"tests/huggingface/{place}"))
                if place
                else file
            )
            assert file is not None and f"\ndef {test}(" in file.read_text(), f"{place}::{test}"
