"""The notebooks run from top to bottom, and the README's picture can be made."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.filterwarnings("ignore")  # Jupyter's own
def test_method_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "OMP_NUM_THREADS", "1"
    )  # threads of a second process that fight over two cores take minutes
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "notebooks" / "01_method.ipynb", 4)
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    printed = "".join(out["text"] for out in outputs if out["output_type"] == "stream")
    assert all(f"{modality}: loss" in printed for modality in ("audio", "vision", "text"))
    assert sum("image/png" in out.get("data", {}) for out in outputs) == 3
