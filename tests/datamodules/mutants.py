"""Mutated files of every kind that a reader of ours takes, and what the reader does with each.

``python -m tests.datamodules.mutants FIRST LAST`` reads the mutants of each kind with the numbers
FIRST to LAST - 1 under a limit of memory, and prints for each kind how many were used and how many
were refused. It ends with 1 at the first other outcome, and names the mutant.
"""

from __future__ import annotations

import io
import json
import re
import resource
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from d2v_pretrain.errors import ConfigError
from datamodules.datasets import image_folder, sound, text_folder
from datamodules.datasets.labels import Table
from datamodules.datasets.unusable import Unusable
from datamodules.shards.audio import AudioShards
from datamodules.shards.image import ImageShards
from datamodules.shards.text import TextShards
from datamodules.transforms import tokenizer

MEMORY = 1 << 30  # bytes that reading a mutant may take beyond what the process has at its start
_EXTREME = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
# Numbers in text formats: sizes, counts, ids.
_DIGITS = re.compile(rb"\d+")
_NUMBERS = (b"0", b"-1", b"9999999999999999999", b"1e400", b"77777777777")


def wave(form: str, subtype: str | None = None) -> bytes:
    made, rng = io.BytesIO(), np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal((8000, 2 if form == "WAV" else 1))
    soundfile.write(made, noise, 16_000, format=form, subtype=subtype)
    return made.getvalue()


def picture(form: str) -> bytes:
    made, exif = io.BytesIO(), Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a camera", 72.0
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(made, form, exif=exif)
    return made.getvalue()


def shard(members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return made.getvalue()


def ids() -> bytes:
    made = io.BytesIO()
    np.save(made, np.arange(40, dtype=np.uint16))
    return made.getvalue()


def table() -> bytes:
    rows = [f'f{i}.wav,"class {i % 2}",{"test" if i % 4 == 3 else "train"}' for i in range(12)]
    return "\n".join(["file,label,split", *rows]).encode()


def vocabulary() -> bytes:
    trained = tokenizer.train(["some words of a text", "and more words"], 280)
    content = json.loads(trained.to_str())
    content["truncation"] = {"max_length": 4, "stride": 0, "strategy": "LongestFirst"}
    content["truncation"]["direction"] = "Right"
    return json.dumps(content).encode()


def originals() -> dict[str, bytes]:
    png, flac, long = picture("PNG"), wave("FLAC"), "long/" * 25
    return {
        "wav": wave("WAV"),
        "flac": wave("FLAC"),
        "ogg": wave("OGG", "VORBIS"),
        "opus": wave("OGG", "OPUS"),
        "mp3": wave("MP3"),
        "jpg": picture("JPEG"),
        "png": png,
        "webp": picture("WEBP"),
        "images.tar": shard([("0.png", png), ("0.cls", b"1"), (f"{long}1.png", png)]),
        "sounds.tar": shard([("0.flac", flac), ("1.flac", flac)], tarfile.GNU_FORMAT),
        "ids.tar": shard([("0.npy", ids()), ("1.npy", ids()), ("1.json", b'{"a": [1]}')]),
        "json": vocabulary(),
        "csv": table(),
        "txt": "A line.\r\nAnother, with ä and \u2028.\n\nThe last one".encode() * 3,
    }


def mutated(data: bytes, other: bytes, rng: np.random.Generator, text: bool) -> bytes:
    """One to three changes: flipped bits, a cut, foreign or doubled bytes, extreme numbers."""
    out = bytearray(data)
    for _ in range((1, 1, 2, 4)[rng.integers(4)]):
        # Headers are at the beginning of most files, and at 512 times n in a tar.
        near = int(rng.integers(min(200, len(out)) or 1)) + 512 * int(rng.integers(4))
        place = int(rng.integers(len(out) or 1)) if rng.random() < 0.4 else near % (len(out) or 1)
        size = int(rng.integers(1, 64))
        match rng.integers(6):
            case 0:
                for _ in range(size):
                    out[place : place + 1] = bytes([rng.integers(256)])
                    place = int(rng.integers(len(out) or 1))
            case 1:
                del out[place:]
            case 2:
                start = int(rng.integers(len(other)))
                out[place : place + size] = other[start : start + size]
            case 3:
                out[place:place] = out[place : place + 8 * size]
            case 4:
                number, width = _EXTREME[rng.integers(len(_EXTREME))], (1, 2, 4)[rng.integers(3)]
                order = ("little", "big")[rng.integers(2)]
                number &= (1 << 8 * width) - 1
                out[place : place + width] = number.to_bytes(width, order)  # type: ignore[arg-type]
            case 5:
                found = list(_DIGITS.finditer(bytes(out)))
                if found and text:
                    match = found[rng.integers(len(found))]
                    out[match.start() : match.end()] = _NUMBERS[rng.integers(len(_NUMBERS))]
                else:
                    out[place : place + 4] = out[place : place + 4][::-1]
    return bytes(out)


def _read_shards(kind: type, file: Path, **settings: object) -> None:
    """Read every sample. What is not used must be in the list of skipped files."""
    listed, cache = str(file.with_suffix(".jsonl")), str(file.parent / "cache")
    file.with_suffix(".idx").unlink(missing_ok=True)
    Path(listed).unlink(missing_ok=True)
    dataset = kind(
        root=str(file),
        max_bad_share=1.0,
        skipped_path=listed,
        cache_folder=cache,
        cache_gb=1.0,
        label_key=None,
        test_shards=1,
        **settings,
    )
    lost = [i for i in range(len(dataset)) if dataset.read(i) is None]
    rows = [json.loads(line) for line in Path(listed).read_text().splitlines()]
    assert len(rows) >= len(lost) and all(row["reason"] for row in rows)


def _read_sound(file: Path) -> None:
    for given in (str(file), io.BytesIO(file.read_bytes())):
        frames, rate = sound.header(given)
        samples = sound.waveform(given, 0, min(frames, 30 * rate))
        assert samples.dtype == np.float32 and len(samples) <= 30 * 16_000 + 1


def _read_image(file: Path) -> None:
    image_folder.short_side(str(file))
    pixels = image_folder.decode(str(file))
    assert pixels.dtype == np.uint8 and pixels.shape[0] == 3


def _read_text(file: Path) -> None:
    text_folder.check(str(file))
    assert any(text_folder.lines_of(text_folder.decode(file.read_bytes())))


def _read_vocabulary(file: Path) -> None:
    made = tokenizer.load(file)
    found = list(made.encode(["some words <s> of a text", "", "more"]))
    assert len(found) == 3 and all(one.max(initial=0) < made.size for one in found)


READERS: dict[str, Callable[[Path], None]] = {
    **dict.fromkeys(("wav", "flac", "ogg", "opus", "mp3"), _read_sound),
    **dict.fromkeys(("jpg", "png", "webp"), _read_image),
    "images.tar": lambda file: _read_shards(ImageShards, file),
    "sounds.tar": lambda file: _read_shards(AudioShards, file, min_seconds=0.1, max_seconds=30),
    "ids.tar": lambda file: _read_shards(TextShards, file, vocab_size=1000),
    "json": _read_vocabulary,
    "csv": lambda file: Table(str(file), "file", "label", "split", ["test"]).rows() and None,
    "txt": _read_text,
}


def outcome(kind: str, file: Path) -> str:
    try:
        READERS[kind](file)
        return "used"
    except (Unusable, ConfigError) as error:
        assert str(error).strip()
        return "refused"
    except BaseException:
        kept = Path(tempfile.gettempdir(), f"d2v-{file.name}")
        kept.write_bytes(file.read_bytes())
        print(f"the file is kept: {kept}", file=sys.stderr)
        raise


def main(first: int, last: int) -> int:
    every = originals()
    names, outcomes = sorted(every), dict[str, Counter[str]]()
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    with tempfile.TemporaryDirectory() as folder:
        for kind in READERS:
            outcomes[kind] = Counter()
            for number in range(first, last):
                rng = np.random.default_rng([number, names.index(kind)])
                other = every[names[rng.integers(len(names))]]
                text = kind in ("json", "csv", "txt")
                file = Path(folder, f"mutant-{number}.{kind}")
                data = every[kind] if number == 0 else mutated(every[kind], other, rng, text)
                file.write_bytes(data)
                outcomes[kind][outcome(kind, file)] += 1
                file.unlink()
    print(json.dumps(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
