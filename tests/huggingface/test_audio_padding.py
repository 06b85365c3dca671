"""What padding does to the audio classes: as published, and nothing at all with
``padding_invariant``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from d2v_pretrain import huggingface as family
from tests.huggingface.audio_cases import (
    LENGTHS,
    SIZES,
    agree,
    frames,
    ours,
    randomised,
    theirs,
    waves,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


def model(name: str, **settings: Any) -> Any:
    config = family.Data2VecAudioConfig(**SIZES | settings)
    return randomised(getattr(family, f"Data2VecAudio{name}")(config)).double()


def alone(network: Any, wave: Tensor, field: str) -> list[Tensor]:
    """Each row without its padding and without a mask."""
    return [
        network(row[None, :length])[field][0] for row, length in zip(wave, LENGTHS, strict=True)
    ]


@pytest.mark.parametrize(
    "settings",
    [{}, {"conv_pos_kernel_size": 4}, {"add_adapter": True}],
    ids=["", "even", "adapter"],
)
def test_rows_do_not_depend_on_their_padding(settings: dict[str, Any]) -> None:
    network = model("Model", padding_invariant=True, **settings)
    wave, mask = waves(dtype=torch.float64)
    noisy = wave + torch.randn(wave.shape, dtype=wave.dtype) * (1 - mask)
    with torch.no_grad():
        expected = alone(network, wave, "last_hidden_state")
        for batch in (wave, noisy):
            out = network(batch, mask, output_hidden_states=True)
            for padded, single in zip(out.last_hidden_state, expected, strict=True):
                torch.testing.assert_close(padded[: len(single)], single, atol=1e-12, rtol=1e-12)
        inner = network(wave[1:2, :900], output_hidden_states=True).hidden_states
    for padded, single in zip(out.hidden_states, inner, strict=True):
        torch.testing.assert_close(padded[1, : frames(900)], single[0], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    "head", ["ForSequenceClassification", "ForXVector", "ForAudioFrameClassification", "ForCTC"]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_nor_do_heads(head: str, weighted: bool) -> None:
    network = model(head, padding_invariant=True, use_weighted_layer_sum=weighted)
    wave, mask = waves(dtype=torch.float64)
    with torch.no_grad():
        padded = network(wave, mask).logits
        for row, single in zip(padded, alone(network, wave, "logits"), strict=True):
            torch.testing.assert_close(row[: len(single)], single, atol=1e-12, rtol=1e-12)


def test_the_published_leak_is_the_default(tmp_path: Path) -> None:
    """Theirs and ours agree, and differ from the row alone at the last frames, as far as the
    convolutions reach."""
    their = theirs("Model").double()
    mine = ours("Model", their, tmp_path).double()
    wave, mask = waves(dtype=torch.float64)
    with torch.no_grad():
        out = mine(wave, mask, output_hidden_states=True)
        agree(out, their(wave, mask, output_hidden_states=True), 1e-12)
        single = mine(wave[1:2, :900], output_hidden_states=True).hidden_states[0][0]
    error = (out.hidden_states[0][1, : len(single)] - single).abs().amax(1)
    reach = (
        2 * 2
    )  # two of the three convolutions of kernel 5 read what a LayerNorm made of the padding
    assert (error[:-reach] < 1e-12).all() and (error[-reach:] > 1e-6).all() and error.max() > 0.01


def test_both_modes_are_equal_without_padding(tmp_path: Path) -> None:
    their = theirs("ForXVector").double()
    mine = ours("ForXVector", their, tmp_path, padding_invariant=True).double()
    wave, mask = waves((1200, 1200), dtype=torch.float64)
    with torch.no_grad():
        agree(mine(wave, torch.ones_like(mask)), their(wave), 1e-12)


def test_only_the_number_of_ones_counts() -> None:
    network = model("Model")
    wave, mask = waves(dtype=torch.float64)
    with torch.no_grad():
        expected = network(wave, mask).last_hidden_state
        for same in (mask.flip(1), mask.bool(), mask.double(), mask.int()):
            assert torch.equal(network(wave, same).last_hidden_state, expected)


def test_one_frame_and_less(tmp_path: Path) -> None:
    """40 samples are one frame, as in theirs; fewer get silence behind them, where theirs fails or
    attends to all."""
    their = theirs("Model").double()
    mine = ours("Model", their, tmp_path).double()
    wave, _ = waves((40, 40), dtype=torch.float64)
    short = torch.nn.functional.pad(wave[:, :25], (0, 15))
    with torch.no_grad():
        agree(mine(wave), their(wave), 1e-12)
        agree(mine(wave[:, :25]), mine(short), 1e-12)
        with pytest.raises(RuntimeError):
            their(wave[:, :25])


def test_a_row_shorter_than_a_frame_keeps_one() -> None:
    """Theirs wraps its length of 0 around and attends to the whole row."""
    network = model("Model", padding_invariant=True)
    wave, mask = waves((600, 20), dtype=torch.float64)
    with torch.no_grad():
        row = network(wave, mask).last_hidden_state[1, 0]
        torch.testing.assert_close(
            row, network(wave[1:, :20]).last_hidden_state[0, 0], atol=1e-12, rtol=1e-12
        )


def test_speaker_vectors_of_short_rows_are_finite() -> None:
    """Nine frames are what the dilated convolutions see: the second row has one of theirs, the
    third none."""
    network = model("ForXVector")
    wave, mask = waves((600, 40 + 20 * 8, 60), dtype=torch.float64)
    out = network(wave, mask, labels=torch.tensor([0, 1, 2]))
    out.loss.backward()
    assert out.embeddings.isfinite().all()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_speaker_vectors_read_one_frame_at_least() -> None:
    """Six frames fewer are counted: 7 and 8 are 1 and 2, and so is 3, where theirs wraps around."""
    x = torch.randn(3, 9, 24, dtype=torch.float64)
    pooled = model("ForXVector")._pooled(x, torch.tensor([7, 8, 3]))
    expected = [x[0, :1], x[1, :2], x[2, :1]]
    assert torch.equal(pooled[:, :24], torch.stack([row.mean(0) for row in expected]))
    assert not pooled[[0, 2], 24:].any() and torch.equal(pooled[1, 24:], x[1, :2].std(0))


def test_adapter_lengths_fit_its_frames() -> None:
    """Theirs count with a kernel of 1, one frame too many for a kernel of 5."""
    for kernel in (1, 3, 5):
        network = model("ForCTC", add_adapter=True, adapter_kernel_size=kernel)
        wave, _ = waves(dtype=torch.float64)
        with torch.no_grad():
            out = network(wave, labels=torch.tensor([[1], [2], [3]]))
        assert network.data2vec_audio.frames(wave, None).tolist() == [out.logits.shape[1]] * 3
