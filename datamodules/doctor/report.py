"""Show what the doctor found: tables, a histogram, a picture, and ``doctor.json``."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from d2v_pretrain.atomic_files import atomic
from datamodules.doctor.examine import RULES
from datamodules.doctor.simulate import Simulation
from datamodules.doctor.survey import Survey

_BINS, _WIDTH, _SHOWN = 16, 40, 3


def show(
    console: Console, about: str, found: Survey, limit: float, plan: Simulation | str, settings: str
) -> None:
    """Print everything.

    Args:
        console: where to print.
        about: description of the data in one line.
        found: what was found in the data.
        limit: largest share of a defect that is accepted.
        plan: the simulated pass, or the error that prevents it.
        settings: the settings of the simulation.
    """
    console.print(f"[bold]{escape(about)}[/]", soft_wrap=True, highlight=False)
    hours = f", {found.lengths.sum() / 3600:,.2f} h" if found.unit == "seconds" else ""
    console.print(
        f"{found.examined:,} of {found.size:,} items decoded{hours}; length in {found.unit}:"
    )
    for line in histogram(found.lengths):
        console.print(line, highlight=False)
    console.print(_defects(found, limit) if found.findings else "Nothing wrong was found.")
    _examples(console, found.findings)
    console.print(
        _pass(plan, settings)
        if isinstance(plan, Simulation)
        else f"[red]No such plan: {escape(plan)}[/]"
    )


def histogram(lengths: np.ndarray) -> list[str]:
    """Bars of text, one line for each range of lengths."""
    if not len(lengths):
        return []
    counts, edges = np.histogram(lengths, _BINS if np.ptp(lengths) else 1)
    wide = max(counts.max(), 1)
    return [
        f"{low:10,.2f} to {high:10,.2f} {'█' * round(_WIDTH * n / wide):{_WIDTH}} {n:,}"
        for n, low, high in zip(
            counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True
        )
    ]


def _defects(found: Survey, limit: float) -> Table:
    table = Table(
        "what", "how many", "share", "rule", title=f"Findings (red: more than {limit:.0%})"
    )
    for kind in filter(found.findings.__contains__, RULES):
        colour, share = "red" if found.share(kind) > limit else "none", found.share(kind)
        table.add_row(
            f"[{colour}]{kind}[/]", f"{len(found.findings[kind]):,}", f"{share:.2%}", RULES[kind]
        )
    return table


def _examples(console: Console, findings: dict[str, list[str]]) -> None:
    for kind, names in findings.items():
        more = f"\n  and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        some = "\n  ".join(names[:_SHOWN])
        console.print(f"{kind}:\n  {some}{more}", soft_wrap=True, highlight=False, markup=False)


def _pass(plan: Simulation, settings: str) -> Table:
    table = Table(title=f"One pass with {settings}", show_header=False)
    low, mean, high = plan.rows
    table.add_row(
        "micro-batches", f"{plan.micro_batches:,} of {low} to {high} samples, {mean:.1f} on average"
    )
    table.add_row("optimizer steps", f"{plan.steps:,.1f}")
    table.add_row("padding", f"{plan.padding:.2%} of what is computed")
    if plan.cropped:
        table.add_row(
            "cropped away", f"{plan.cropped:.2%} of the data, to the shortest of each micro-batch"
        )
    for world, share in plan.idle.items():
        waits = (
            "not possible: must divide global_batch / micro_batch"
            if share is None
            else f"waits {share:.2%} of the time"
        )
        table.add_row(f"{world} process{'es' if world > 1 else ''}", waits)
    return table


def write(path: Path, found: Survey, plan: Simulation | str, **more: Any) -> None:
    """Write ``doctor.json``, with all numbers and names."""
    lengths = found.lengths if len(found.lengths) else np.zeros(1)
    quantiles = {f"{q}%": float(np.percentile(lengths, q)) for q in (0, 5, 50, 95, 100)}
    findings = {
        kind: {"count": len(names), "share": found.share(kind), "which": names}
        for kind, names in found.findings.items()
    }
    content = {
        **more,
        "items": found.size,
        "examined": found.examined,
        "length": {"unit": found.unit, "total": float(found.lengths.sum()), **quantiles},
        "findings": findings,
        "pass": asdict(plan) if isinstance(plan, Simulation) else {"impossible": plan},
    }
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), "utf-8")


def draw(path: Path, found: Survey) -> bool:
    """Draw the histogram, if matplotlib is installed. Returns whether it was drawn."""
    if find_spec("matplotlib") is None or not len(found.lengths):
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.hist(found.lengths, 60, color="tab:red")
    axes.set(xlabel=found.unit, ylabel="items", title=f"{found.examined:,} items")
    figure.savefig(path)
    return True
