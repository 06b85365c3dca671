"""printing.py: what is printed on a terminal that knows only ASCII, or not the name of a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import os, sys
from d2v_pretrain.config.printing import print_anything
print_anything()
print_anything()
print("0.9 ±0.1 … done → ü 音 █")
print(os.fsdecode(b"f\\xe9.wav"), file=sys.stderr)
from rich.console import Console
from rich.table import Table
table = Table("few-shot ±"); table.add_row("±0.1 ü")
Console().print(table)
"""


def run(folder: Path, program: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    (folder / "program.py").write_text(program, encoding="utf-8")
    command = [sys.executable, "program.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, env=env)


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii:strict"},
    ],
)
def test_nothing_that_is_printed_ends_a_run(environment: dict[str, str], tmp_path: Path) -> None:
    done = run(tmp_path, PROGRAM, **environment)
    assert done.returncode == 0, done.stderr
    first, *table = done.stdout.decode("ascii").splitlines()
    assert first == "0.9 +-0.1 ... done -> \\xfc \\u97f3 #"
    assert any("+-0.1 \\xfc" in row for row in table)
    assert done.stderr.decode("ascii").strip() == "f\\udce9.wav"


def test_other_terminals_print_as_before(tmp_path: Path) -> None:
    done = run(tmp_path, PROGRAM, PYTHONIOENCODING="utf-8")
    assert done.stdout.decode().startswith("0.9 ±0.1 … done → ü 音 █\n")
    assert done.stderr.decode().strip() == "f\\udce9.wav", "no valid text in any encoding"


def test_a_mistake_is_told_in_ascii(tmp_path: Path) -> None:
    program = """
import sys
sys.argv = ["train.py", "modality=audio", "trainer=bär", "data=ä±"]
from d2v_pretrain.cli import main; main()
"""
    done = run(tmp_path, program, PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    lines = done.stderr.decode("ascii").splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
