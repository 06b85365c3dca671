"""Does this tree compute what another revision computes, to the last bit?

    python -m benchmarks.same_bits REVISION [steps=40]

Both trees run 40 steps of the six tiny recipes and one step of each golden; every logged number,
every weight after the last step and every tensor of the golden steps is compared. Exit code 1 if
any bit differs.

REVISION          what to compare with: a commit, a tag or a branch; or the path of a folder with
that code
steps=40          optimizer steps of each recipe
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from d2v_pretrain.config.printing import print_anything

HERE = Path(__file__).parent.parent
ROWS = [
    (modality, objective)
    for modality in ("audio", "vision", "text")
    for objective in ("data2vec1", "data2vec2")
]
GOLDENS = ("audio_v1", "image_v2", "text_v1", "blind/audio_v2", "blind/text_v2", "blind/vision_v1")
# Logged numbers whose names end so measure time or memory. They differ from run to run.
CLOCK = ("time", "seconds", "per_s", "_s", "wait", "memory", "mfu", "_gb")


def main() -> int:
    """Compare with the revision on the command line, and return 1 if anything differs."""
    print_anything()
    if len(sys.argv) < 2 or {"-h", "--help"} & set(sys.argv):
        print(__doc__)
        return 0
    steps = next(
        (int(word.removeprefix("steps=")) for word in sys.argv[2:] if word.startswith("steps=")), 40
    )
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        other = checked_out(sys.argv[1], out)
        differing = 0
        for name, old, new in comparisons(other, out, steps):
            keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
            told = (
                f"DIFFERS in {', '.join(keys[:6])}{' …' if len(keys) > 6 else ''}"
                if keys
                else "identical"
            )
            print(f"{name:24} {len(old):6,} values  {told}", flush=True)
            differing += bool(keys) or not old
    print(
        "every bit is the same"
        if not differing
        else f"{differing} of {len(ROWS) + len(GOLDENS)} differ"
    )
    return int(differing > 0)


def checked_out(revision: str, out: Path) -> Path:
    """A folder with the code of ``revision``. If ``revision`` is the path of a folder, that one."""
    if Path(revision).is_dir():
        return Path(revision).absolute()
    archive = subprocess.run(
        ["git", "archive", revision], cwd=HERE, check=True, capture_output=True
    ).stdout
    (out / "code").mkdir()
    subprocess.run(["tar", "x", "-C", out / "code"], input=archive, check=True)
    return out / "code"


def comparisons(
    other: Path, out: Path, steps: int
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """For every recipe and golden: its name, the values of the other tree, those of this one."""
    for modality, objective in ROWS:
        yield (
            f"{modality}_{objective}_tiny",
            *(
                trained(tree, out / f"run{i}", modality, objective, steps)
                for i, tree in enumerate((other, HERE))
            ),
        )
    for golden in GOLDENS:
        folder = HERE / "tests" / "fixtures" / "goldens" / golden
        yield (
            golden,
            *(
                stepped(tree, out / f"{i}.safetensors", folder)
                for i, tree in enumerate((other, HERE))
            ),
        )


def trained(tree: Path, runs: Path, modality: str, objective: str, steps: int) -> dict[str, Any]:
    """Train with the code in ``tree``. Returns logged numbers and hashes of the final weights.

    Weights are counted by their content, because parameters may have been renamed between the
    revisions."""
    folder = runs / f"{modality}_{objective}"
    words = [f"modality={modality}", f"objective={objective}", f"steps={steps}", f"folder={folder}"]
    python(tree, "train.py", *words, "log_every=1", "probe=null", "trainer=cpu", "resume=never")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == steps
    values = {
        f"step {line['step']} {k}": v
        for line in lines
        for k, v in line.items()
        if not k.endswith(CLOCK)
    }
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    counted = Counter(digest(tensor) for tensor in state.values())
    return values | {f"weights {key}": count for key, count in counted.items()}


def stepped(tree: Path, file: Path, golden: Path) -> dict[str, Any]:
    """Run one step of a golden with the code in ``tree``. Returns a hash of every tensor."""
    python(tree, "-m", "benchmarks.parity", str(golden), "--write", str(file))
    return {name: digest(tensor) for name, tensor in load_file(file).items()}


def digest(tensor: Tensor) -> str:
    """Hash of all bytes of a tensor. The shape does not count."""
    flat = tensor.detach().contiguous().flatten()
    return sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def python(tree: Path, *arguments: str) -> None:
    """Run Python with the code in ``tree``: the working directory comes first on Python's path."""
    done = subprocess.run([sys.executable, *arguments], cwd=tree, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} in {tree} failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
