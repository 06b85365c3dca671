"""Runs under a Python with transformers 4: loads models that others saved, runs them, saves them
and what they said.

``python transformers4.py FOLDER``: ``FOLDER/cases.pt`` maps a case to (class name, arguments); the
case's model is in ``FOLDER/<case>`` and is saved again to ``FOLDER/<case>-4``; outputs go to
``FOLDER/outputs.pt``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers


def main(folder: Path) -> None:
    assert transformers.__version__.startswith("4."), transformers.__version__
    outputs = {}
    for case, (name, arguments) in torch.load(folder / "cases.pt").items():
        model, told = getattr(transformers, name).from_pretrained(
            folder / case, output_loading_info=True
        )
        assert not any(told.values()), (case, told)
        model.save_pretrained(folder / f"{case}-4")
        with torch.no_grad():
            outputs[case] = dict(model.double().eval()(**arguments))
    torch.save(outputs, folder / "outputs.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
