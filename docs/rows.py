"""The parts of README.md that are made from other files: recipes, and versions that were tested.

``python -m docs.rows`` writes them into README.md.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "constraints" / "results.json"
COLUMNS = ["`recipe=`", "what is trained", "GPUs", "hours", "expected score"]


def header(recipe: Path) -> dict[str, str]:
    """The comment at the top of a recipe: ``Title``, and its fields ``Source``, ``Hardware``, ...

    A field begins with ``# Name: text``; the lines below it, up to the next field, continue it.
    """
    fields, name = {"Title": ""}, "Title"
    for line in recipe.read_text("utf-8").splitlines()[1:]:
        if not line.startswith("# "):
            break
        if found := re.match(r"# ([A-Z][a-z]+): (.*)", line):
            name, fields[found[1]] = found[1], found[2]
        else:
            fields[name] += f" {line[2:].strip()}"
    return {key: text.strip() for key, text in fields.items()}


def recipes() -> str:
    """A Markdown table of the recipes that are sized for GPUs; those of size tiny name none."""
    rows = [COLUMNS, ["---"] * len(COLUMNS)]
    for recipe in sorted((ROOT / "conf" / "recipe").glob("*.yaml")):
        fields = header(recipe)
        if "Hardware" not in fields:
            continue
        gpus = re.match(r"\d+", fields["Hardware"])
        assert gpus is not None, f"{recipe}: Hardware must begin with the number of GPUs"
        title = fields["Title"].split(". ")[0].rstrip(".")
        trained = ", ".join(title.split(", ")[:2])  # the method and size, and the data
        row = [f"`{recipe.stem}`", trained, gpus[0], fields["Hours"], fields["Expected"]]
        rows.append([cell.rstrip(".") for cell in row])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def versions() -> str:
    """One Markdown item: what ``make newest`` and ``make matrix`` have recorded."""
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    told = [_tested(name, result) for name, result in sorted(results.items())]
    return f"- Versions (`make newest`, `make matrix`): {'; '.join(told) or 'not recorded yet'}."


def _tested(name: str, result: dict[str, Any]) -> str:
    which = f"`{result['tests']}`" if result["tests"] else "all tests"
    torch, failed = result["versions"]["torch"], result["failed"]
    counts = f"{result['passed']:,} passed, {failed:,} failed"
    return f"Python {name} (torch {torch}), {result['date']}, {which}: {counts}"


def replaced(text: str) -> str:
    """The text of README.md with its generated parts made anew."""
    for name, part in (("recipes", recipes()), ("versions", versions())):
        begin, end = f"<!-- {name}: written by python -m docs.rows -->", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{part}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    README.write_text(replaced(README.read_text("utf-8")), "utf-8")
