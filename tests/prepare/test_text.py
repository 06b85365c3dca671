"""Text: tokens as the tokenizers library alone has them, cut as fairseq cuts; any division of the
work, same bytes."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from tokenizers import ByteLevelBPETokenizer, Tokenizer

from datamodules.transforms import tokenizer
from tests.prepare.commands import files, manifest, prepare, read, said, skipped
from tests.prepare.test_blocks import fairseq

LINES = [
    "The first line, naïve ✓.",
    "",
    "A second document begins.",
    "It has 2 lines.  ",
    "",
    "",
    "日本語",
    "and one that is much longer than the others, so that it does not fit into a block at all",
]
SMALL = ("block=16", "vocab_size=300", "order=sorted")


def dataset(root: Path) -> Path:
    """Two files: one with a byte order mark and Windows line ends, one without a line end at its
    end."""
    root.mkdir()
    (root / "a.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(LINES).encode() + b"\r\n")
    (root / "b.txt").write_text("\n".join(LINES[::-1]), "utf-8")
    return root


def ids(output: Path) -> list[list[int]]:
    return [np.load(io.BytesIO(sample["npy"])).tolist() for sample in read(output)]


def cut(lines: list[list[int]], mode: str, block: int) -> list[list[int]]:
    """fairseq's blocks of lines with </s> (2), each with <s> (0) before it; longer ones divided."""
    stream: list[int] = [token for line in lines for token in line]
    made = []
    for start, end in fairseq(list(map(len, lines)), mode, block - 1):
        made += [[0, *stream[i : min(i + block - 1, end)]] for i in range(start, end, block - 1)]
    return made


def of_documents(mode: str, documents: list[list[list[int]]], block: int) -> list[list[int]]:
    if mode == "complete_doc":
        return [made for lines in documents for made in cut(lines, mode, block)]
    return cut([line for lines in documents for line in lines], mode, block)


@pytest.mark.parametrize("mode", ["none", "complete", "complete_doc"])
@pytest.mark.parametrize("blank", ["keep", "drop"])
def test_blocks_are_fairseqs_of_the_tokenizers_ids(tmp_path: Path, mode: str, blank: str) -> None:
    out = tmp_path / "out"
    assert (
        prepare(
            "text",
            dataset(tmp_path / "in"),
            out,
            *SMALL,
            f"break_mode={mode}",
            f"blank_lines={blank}",
        )
        == 0
    )
    trained = Tokenizer.from_file(str(out / "tokenizer/tokenizer.json"))
    assert trained.get_vocab_size() == 300 and trained.token_to_id("<mask>") == 299
    documents = [
        [[*trained.encode(line.strip()).ids, 2] for line in lines if line or blank == "keep"]
        for lines in (LINES, LINES[::-1])
    ]
    expected = of_documents(mode, documents, 16)
    assert ids(out) == expected and max(map(len, expected)) == 16
    made = manifest(out)
    assert (made["samples"], made["length"]) == (len(expected), sum(map(len, expected)))
    assert made["vocab_size"] == 300 and (made["blocks_from_lines_too_long"] > 0) == (
        mode != "none"
    )
    assert all(np.load(io.BytesIO(s["npy"])).dtype == np.uint16 for s in read(out))


def test_shuffled_blocks_are_the_same_ones(tmp_path: Path) -> None:
    root = dataset(tmp_path / "in")
    assert (
        prepare("text", root, tmp_path / "sorted", *SMALL)
        == prepare("text", root, tmp_path / "out", *SMALL[:2])
        == 0
    )
    there, made = ids(tmp_path / "sorted"), ids(tmp_path / "out")
    assert made != there and sorted(made) == sorted(there)


@pytest.mark.parametrize("part_mb", ["0.00002", "0.0001", "16"])
def test_parts_and_shards_do_not_change_the_blocks(tmp_path: Path, part_mb: str) -> None:
    root = dataset(tmp_path / "in")
    words = (
        "block=16",
        "tokenizer=" + str(word_pieces(tmp_path / "bpe")),
        "order=sorted",
        f"part_mb={part_mb}",
    )
    assert prepare("text", root, tmp_path / "out", *words, "shard_samples=3") == 0
    bpe = ByteLevelBPETokenizer.from_file(
        *(str(tmp_path / "bpe" / name) for name in ("encoder.json", "vocab.bpe"))
    )
    last = (
        bpe.get_vocab_size() + 3
    )  # the dictionary is in the reverse order, after four special ids
    lines = [
        [*(last - i for i in bpe.encode(line.strip()).ids), 2] for line in (*LINES, *LINES[::-1])
    ]
    assert ids(tmp_path / "out") == cut(lines, "none", 16)
    assert {shard["samples"] for shard in manifest(tmp_path / "out")["shards"][:-1]} == {3}


def word_pieces(folder: Path) -> Path:
    """A vocabulary and merges, and a dictionary that orders its ids otherwise."""
    folder.mkdir()
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(LINES, 280, show_progress=False)
    bpe.save_model(str(folder))
    (folder / "vocab.json").rename(folder / "encoder.json")
    (folder / "merges.txt").rename(folder / "vocab.bpe")
    (folder / "dict.txt").write_text(
        "".join(f"{i} 1\n" for i in reversed(range(bpe.get_vocab_size())))
    )
    return folder


def test_a_given_tokenizer_lies_beside_the_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = word_pieces(tmp_path / "bpe")
    root = dataset(tmp_path / "in")
    for n, path in enumerate((given, given / "encoder.json")):
        assert prepare("text", root, tmp_path / str(n), "block=16", f"tokenizer={path}") == 0
        assert files(tmp_path / str(n) / "tokenizer") == files(given)
    size = len(json.loads((given / "encoder.json").read_text()))
    assert manifest(tmp_path / "0")["vocab_size"] == size + 5
    one = tmp_path / "one.json"
    tokenizer.train(LINES, 300).save(str(one))
    assert prepare("text", root, tmp_path / "2", "block=16", f"tokenizer={one}") == 0
    assert list(files(tmp_path / "2/tokenizer")) == ["tokenizer.json"]
    assert prepare("text", root, tmp_path / "2", "block=16", f"tokenizer={given}") == 2
    assert "is of another input" in said(capsys)


def test_bad_files_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = dataset(tmp_path / "in")
    (root / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (root / "blank.txt").write_text("\n \n")
    assert prepare("text", root, tmp_path / "out", *SMALL, "max_bad_share=0.5") == 0
    assert set(skipped(tmp_path / "out")) == {"latin.txt", "blank.txt"}
    assert (
        prepare("text", root, tmp_path / "other", "max_bad_share=0.5", f"tokenizer={tmp_path}") == 2
    )
    assert "tokenizer=" in (told := said(capsys)) and "source." not in told


def binarised(folder: Path, lines: list[list[int]], words: int, code: int, kind: str) -> Path:
    """fairseq's mmap format by hand: indexed_dataset.py:MMapIndexedDataset.Index.writer."""
    folder.mkdir()
    flat, sizes = (
        np.array([token for line in lines for token in line], kind),
        np.array(list(map(len, lines)), "<i4"),
    )
    flat.tofile(folder / "train.bin")
    before = np.concatenate([[0], np.cumsum(sizes[:-1])]).astype("<i8") * flat.itemsize
    head = (
        b"MMIDIDX\x00\x00"
        + struct.pack("<Q", 1)
        + struct.pack("<B", code)
        + struct.pack("<Q", len(lines))
    )
    (folder / "train.idx").write_bytes(head + sizes.tobytes() + before.tobytes())
    (folder / "dict.txt").write_text("".join(f"{i} 1\n" for i in range(words)))
    return folder / "train.bin"


@pytest.mark.parametrize(
    ("code", "kind", "words"), [(8, "<u2", 1000), (4, "<i4", 70_000), (9, "<u4", 70_000)]
)
@pytest.mark.parametrize("mode", ["none", "complete_doc"])
def test_binarised_data_of_fairseq(
    tmp_path: Path, code: int, kind: str, words: int, mode: str
) -> None:
    rng = np.random.default_rng(0)
    lines = [[*rng.integers(4, words + 4, n).tolist(), 2] for n in rng.integers(0, 9, 200)]
    path = binarised(tmp_path / "bin", lines, words, code, kind)
    assert (
        prepare("text", path, tmp_path / "out", "block=12", "order=sorted", f"break_mode={mode}")
        == 0
    )
    assert ids(tmp_path / "out") == cut(lines, mode, 12)
    assert manifest(tmp_path / "out")["vocab_size"] == words + 5
    [dtype] = {np.load(io.BytesIO(sample["npy"])).dtype for sample in read(tmp_path / "out")}
    assert dtype == (np.uint16 if words == 1000 else np.uint32)
    assert (tmp_path / "out/tokenizer/dict.txt").read_bytes() == (
        tmp_path / "bin/dict.txt"
    ).read_bytes()


def test_binarised_data_that_is_wrong_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = binarised(tmp_path / "bin", [[4, 2]] * 50 + [[9, 2]], 3, 8, "<u2")
    assert prepare("text", path, tmp_path / "out", "block=3", "order=sorted") == 0
    assert skipped(tmp_path / "out") == {
        "tokens 100 to 102": "holds id 9, beyond the dictionary's 8"
    }
    whole = path.read_bytes()
    for change, complaint in (
        (lambda: path.write_bytes(whole[:-2]), "does not have the 102 tokens that train.idx says"),
        (
            lambda: path.with_suffix(".idx").write_bytes(b"TNTIDX\x00\x00" + bytes(40)),
            "--dataset-impl mmap",
        ),
        (lambda: path.with_name("dict.txt").unlink(), "needs dict.txt beside it"),
    ):
        change()
        capsys.readouterr()
        assert prepare("text", path, tmp_path / "other", "block=3") == 2 and complaint in said(
            capsys
        )
