"""Install and test this project in new virtual environments, and write down what happened.

Each row to test is a Python and a choice of versions, such as 3.12-pinned:

pinned   the versions in constraints/py312.txt, which `make setup` installs
newest   the newest versions that pyproject.toml allows, the newest torch included
refresh  the newest versions with the torch of constraints/torch.txt; if all tests pass, they become
         the new constraints/py312.txt

Every result goes into constraints/results.json. The environments are deleted afterwards. Needs only
Python's standard library.
"""

import argparse
import datetime
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results.json"
# The packages whose versions stand in the results. The rest can be looked up in the pins.
REPORTED = ("torch", "torchvision", "torchaudio", "lightning", "transformers", "numpy")
# Without PYTHONPATH, so that the environment alone decides what is imported.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="+", metavar="PYTHON-VERSIONS")
    parser.add_argument(
        "--tests", default="", help="arguments for pytest, in one string (default: all tests)"
    )
    given = parser.parse_args()
    for row in given.rows:
        if not re.fullmatch(r"3\.\d+-(pinned|newest|refresh)", row):
            parser.error(f"{row} is not a row; give for example 3.12-pinned or 3.11-newest")
        interpreter(row.split("-")[0])  # A missing Python is told now and not after an hour.
    failed = [row for row in given.rows if not measure(row, given.tests)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; see {RESULTS}")


def measure(row: str, tests: str) -> bool:
    """Test one row in a new environment and record the result. True if no test failed."""
    python, versions = row.split("-")
    pins = HERE / f"py{python.replace('.', '')}.txt"
    constraint = {"pinned": pins, "newest": None, "refresh": HERE / "torch.txt"}[versions]
    with tempfile.TemporaryDirectory(prefix=f"d2v_pretrain_{row}_") as folder:
        installed = install(interpreter(python), Path(folder), constraint)
        counts = run_tests(Path(folder), tests)
    passed = counts["passed"] > 0 and not counts["failed"]
    if versions == "refresh" and passed:
        pins.write_text("".join(f"{name}=={installed[name]}\n" for name in installed))
        versions = "pinned"  # What was tested is what is pinned from now on.
    record(f"{python} {versions}", counts, installed, tests)
    return passed


def interpreter(python: str) -> str:
    """Path of this Python, from PATH or from pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [f"python{python}", *sorted(map(str, pyenv.glob(f"{python}.*/bin/python")))]
    for one in found:
        # A shim of pyenv can stand on PATH and yet refuse to start.
        if shutil.which(one) and not subprocess.run([one, "-V"], capture_output=True).returncode:
            return one
    sys.exit(f"Python {python} is neither on PATH nor in {pyenv}; install it, or leave its row out")


def install(python: str, folder: Path, constraint: Path | None) -> dict[str, str]:
    """Create an environment, install the project with its development tools and the Slurm extra.

    Returns the installed version of every package.
    """
    subprocess.run([python, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip"]
    options = ["--constraint", constraint] if constraint else []
    command = [*pip, "install", "--quiet", *options, "--editable", f"{ROOT}[dev,slurm]"]
    subprocess.run(command, check=True, env=ENVIRONMENT)
    command = [*pip, "list", "--format=freeze", "--exclude-editable", "--exclude=pip"]
    lines = subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True, text=True)
    return dict(line.split("==") for line in lines.stdout.split())


def run_tests(folder: Path, tests: str) -> dict[str, Any]:
    """Run pytest in the environment. Counts of its results, and the names of failed tests."""
    report = folder / "report.xml"
    command = [folder / "bin" / "python", "-m", "pytest", f"--junitxml={report}"]
    done = subprocess.run([*command, *shlex.split(tests)], cwd=ROOT, env=ENVIRONMENT)
    if not report.exists():
        sys.exit(f"pytest ended with code {done.returncode} before its report; --tests '{tests}'")
    suite = next(xml.parse(report).getroot().iter("testsuite"))
    total, failures, errors, skipped = (
        int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")
    )
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {
        "passed": total - failures - errors - skipped,
        "failed": failures + errors,
        "skipped": skipped,
        "seconds": round(float(suite.attrib["time"])),
        "failures": failed,
    }


def record(row: str, counts: dict[str, Any], installed: dict[str, str], tests: str) -> None:
    """Put the result of one row into the committed file, in place of its last one."""
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[row] = {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "tests": tests,  # Empty: all that are not marked slow.
        **counts,
        "versions": {name: installed[name] for name in REPORTED},
    }
    RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=2) + "\n")


if __name__ == "__main__":
    main()
