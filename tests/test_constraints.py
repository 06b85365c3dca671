"""The pinned versions of constraints/ belong to what pyproject.toml asks for."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = ("311", "312", "313")


def _read(name: str) -> dict[str, str]:
    """Versions by name. Refuses anything but NAME==VERSION, such as an address or a path."""
    lines = (ROOT / "constraints" / name).read_text().splitlines()
    pairs = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines]
    assert all(pairs), [line for line, pair in zip(lines, pairs) if not pair]
    return {_plain(pair[1]): pair[2] for pair in pairs if pair}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("python", PYTHONS)
def test_everything_asked_for_is_pinned_within_its_range(python: str) -> None:
    pins = _read(f"py{python}.txt")
    asked = [Requirement(r) for r in PROJECT["dependencies"] + EXTRAS["dev"] + EXTRAS["slurm"]]
    wrong = [
        f"{one} but {pins.get(_plain(one.name))}"
        for one in asked
        if not one.specifier.contains(pins.get(_plain(one.name), "0.dev0"))
    ]
    assert not wrong


@pytest.mark.parametrize("python", PYTHONS)
def test_pins_hold_the_torch_of_the_measurements(python: str) -> None:
    torch = _read("torch.txt")
    assert torch.items() <= _read(f"py{python}.txt").items()


def test_the_torch_of_the_measurements_is_the_oldest_allowed() -> None:
    """So the pinned rows of `make matrix` are the test of the oldest torch."""
    floors = {
        one.name: re.search(r">=([\d.]+)", str(one.specifier))
        for one in map(Requirement, PROJECT["dependencies"])
    }
    for name, version in _read("torch.txt").items():
        floor = floors[name]
        assert floor and version.startswith(floor[1] + ".")


def test_there_is_a_file_for_each_python_that_the_project_allows() -> None:
    allowed = Requirement(f"x{PROJECT['requires-python']}").specifier
    minors = [f"3{minor}" for minor in range(8, 20) if allowed.contains(f"3.{minor}")]
    assert tuple(minors) == PYTHONS
