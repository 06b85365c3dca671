"""rng against a loop over Python integers and against what uniform, independent numbers would
do."""

from __future__ import annotations

import pytest
import torch

from d2v_pretrain.rng import fold_in, noise, seed_default

MASK = (1 << 64) - 1


def splitmix64(x: int) -> int:
    """The first output of SplitMix64 seeded with x."""
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def looped_noise(key: int, ids: list[int], clones: int, n: int) -> list[list[float]]:
    rows = []
    for sample in ids:
        for clone in range(clones):
            row = splitmix64((splitmix64((sample + key) & MASK) + clone) & MASK)
            rows.append([(splitmix64((row + i) & MASK) >> 40) / 2**24 for i in range(n)])
    return rows


def test_fold_in_of_zero_is_the_published_test_vector() -> None:
    assert fold_in(0) == 0xE220A8397B1DCDAF >> 1


def test_fold_in_is_stable() -> None:
    """These numbers are in every checkpointed run: they may never change."""
    assert (
        fold_in(1, 2, 3)
        == splitmix64(splitmix64(splitmix64(1) ^ 2) ^ 3) >> 1
        == 7510213797696614745
    )
    assert fold_in(0, 0) == splitmix64(splitmix64(0)) >> 1
    assert fold_in(-1) == fold_in(MASK)


def test_fold_in_order_and_number_of_parts_matter() -> None:
    keys = [
        fold_in(*parts)
        for parts in ((), (0,), (0, 0), (1,), (1, 2), (2, 1), (1, 2, 0), (2, 1, 0), (0, 1, 2))
    ]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 1 << 63 for key in keys)


def test_fold_in_has_no_collisions_on_a_grid() -> None:
    assert len({fold_in(a, b, c) for a in range(20) for b in range(40) for c in range(20)}) == 16000


@pytest.mark.parametrize("key", [0, 1, fold_in(7, 3), (1 << 63) - 1])
def test_noise_equals_the_loop(key: int) -> None:
    ids = [0, 5, 123456789012, (1 << 62) + 1]
    expected = torch.tensor(looped_noise(key, ids, 3, 7), dtype=torch.float32)
    assert torch.equal(noise(key, torch.tensor(ids), 3, 7), expected)


def test_noise_of_a_sample_does_not_depend_on_its_batch() -> None:
    ids = torch.tensor([4, 9, 2, 77, 1000003])
    whole = noise(11, ids, 3, 20)
    assert torch.equal(noise(11, ids[[3, 1]], 3, 20), whole.view(5, 3, 20)[[3, 1]].flatten(0, 1))
    assert torch.equal(noise(11, ids, 2, 20), whole.view(5, 3, 20)[:, :2].flatten(0, 1))
    assert torch.equal(noise(11, ids, 3, 8), whole[:, :8])


def test_noise_is_uniform() -> None:
    u = noise(fold_in(3), torch.arange(500), 4, 500)
    assert u.dtype == torch.float32 and u.min() >= 0 and u.max() < 1
    assert torch.equal(u * 2**24, (u * 2**24).round())
    counts = torch.histc(u.double(), 1000, 0, 1)
    chi_square = ((counts - 1000).square() / 1000).sum()
    assert abs(chi_square - 999) < 4.5 * (2 * 999) ** 0.5


@pytest.mark.parametrize("first_id", [0, 1 << 40])
def test_noise_is_uncorrelated_between_ids_clones_positions_and_keys(first_id: int) -> None:
    """Neighbouring counters are where a poor hash shows; n = 40,000 products have a standard error
    of .005."""
    ids, n = torch.arange(first_id, first_id + 50), 200
    u = (noise(5, ids, 4, n).view(50, 4, n).double() - 0.5) * 12**0.5
    other = (noise(6, ids, 4, n).view(50, 4, n).double() - 0.5) * 12**0.5
    pairs = {
        "ids": (u[1:], u[:-1]),
        "clones": (u[:, 1:], u[:, :-1]),
        "positions": (u[..., 1:], u[..., :-1]),
        "clone and position": (u[:, 1:, :-1], u[:, :-1, 1:]),
        "id and clone": (u[1:, :-1], u[:-1, 1:]),
        "keys": (u, other),
    }
    for name, (a, b) in pairs.items():
        assert abs(float((a * b).mean())) < 4.5 / a.numel() ** 0.5, name


def test_noise_leaves_the_default_generator_alone() -> None:
    before = torch.get_rng_state()
    noise(1, torch.arange(3), 2, 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_default_restarts_the_default_generator() -> None:
    seed_default(42, torch.device("cpu"))
    first = torch.rand(4)
    seed_default(42, torch.device("cpu"))
    assert torch.equal(torch.rand(4), first)
    assert torch.equal(first, torch.rand(4, generator=torch.Generator().manual_seed(42)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_noise_is_the_same_on_the_gpu() -> None:
    ids = torch.tensor([3, 1 << 61])
    assert torch.equal(noise(9, ids.cuda(), 4, 300).cpu(), noise(9, ids, 4, 300))
