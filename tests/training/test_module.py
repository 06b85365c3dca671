"""The training module under Lightning's Trainer, against a plain loop, however a step is cut up or
interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from d2v_pretrain.errors import ConfigError
from d2v_pretrain.masking import SpanMask, TokenMask
from d2v_pretrain.objective.data2vec import Data2Vec
from d2v_pretrain.objective.teacher import Teacher
from d2v_pretrain.schedules import Linear, WarmupCosine
from d2v_pretrain.training.module import TrainingModule
from d2v_pretrain.training.optim import fairseq_eps
from d2v_pretrain.types import Batch
from tests import tiny

GLOBAL = 8
RATE, DECAY = WarmupCosine(0.02, 2, 10), Linear(0.5, 0.9, 8)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable"),
    pytest.mark.filterwarnings("ignore:.*tensorboardX"),
]


class Data(L.LightningDataModule):
    """Endless micro-batches of ``micro`` sequences: the same sequences in the same order whatever
    their number."""

    fingerprint = "endless"

    def __init__(self, micro: int, lost: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.micro, self.lost, self.cursor = micro, lost, (0,)

    def train_dataloader(self) -> Any:
        return Stream(self)

    def batch(self, number: int) -> Batch:
        ids = torch.arange(number * self.micro, (number + 1) * self.micro)
        rows = [
            torch.randint(4, 29, (12,), generator=torch.Generator().manual_seed(int(i)))
            for i in ids
        ]
        lengths = 6 + ids % 7
        inputs = torch.stack(rows).masked_fill(torch.arange(12) >= lengths[:, None], 1)
        weight = torch.tensor([float(int(i) not in self.lost) for i in ids]) if self.lost else None
        return Batch(
            inputs, ids, lengths, weight=weight, cursor=(number + 1,), step_samples=self.micro
        )


class Stream:
    """What Lightning iterates over; without a length, so that no epoch ends."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Batch]:
        return (self.data.batch(number) for number in count(self.data.cursor[0]))


def objective(dropout: float = 0.0) -> Data2Vec:
    torch.manual_seed(0)
    student = tiny.encoder("text", dropout, layer_drop=dropout)
    teacher = partial(Teacher, decay=DECAY)
    return tiny.data2vec1(student, SpanMask(0.4, 2, False, False), teacher=teacher)


def data2vec2(dropout: float) -> Data2Vec:
    torch.manual_seed(0)
    teacher = partial(Teacher, decay=DECAY, copied=("stem",), reads_student_stem=True)
    student = tiny.encoder("text", dropout)
    return tiny.data2vec2(student, TokenMask(0.5), input_dropout=dropout, teacher=teacher)


def module(model: Data2Vec, **settings: Any) -> TrainingModule:
    settings = {"clip": 0.5, "weight_decay": 0.1} | settings
    return TrainingModule(
        model, RATE, partial(torch.optim.AdamW, betas=(0.9, 0.98), fused=True), **settings
    )


def fit(
    model: TrainingModule, data: Data, steps: int, path: Path | None = None, *callbacks: L.Callback
) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=GLOBAL // data.micro,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        barebones=False,
    )
    trainer.fit(model, data, ckpt_path=path, weights_only=True)
    return trainer


def weights(model: TrainingModule) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], atol: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], atol=atol, rtol=0, msg=lambda text, n=name: f"{n}: {text}"
        )


def looped(steps: int) -> dict[str, Tensor]:
    """The whole of training in plain torch: eight sequences at once, the mean over predicted
    positions."""
    model, data = objective().train(), Data(GLOBAL)
    trained = [*model.student.parameters(), *model.predictor.parameters()]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.98), weight_decay=0.1)
    for step in range(steps):
        output = model(data.batch(step))
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.5)
        optimizer.param_groups[0] |= {"lr": RATE(step), "eps": fairseq_eps(1e-6, 0.98, step + 1)}
        optimizer.step()
        model.teacher.guard.steps = 0  # the loop updates the teacher without after_step
        averaged, source = (
            dict(model.teacher.encoder.named_parameters()),
            dict(model.student.named_parameters()),
        )
        for name, parameter in averaged.items():
            parameter.data = (
                DECAY(step + 1) * parameter + (1 - DECAY(step + 1)) * source[name].detach()
            )
    return {f"objective.{name}": t for name, t in model.state_dict().items()}


@pytest.mark.parametrize("micro", [8, 4, 2, 1])
def test_a_step_is_the_same_however_it_is_cut_up(micro: int) -> None:
    """Rows of unequal number of masks: the mean of micro-batch means would differ."""
    model = module(objective())
    fit(model, Data(micro), 5)
    assert_close(weights(model), looped(5), 2e-6)
    assert model.updates == 5 and model.samples_seen == 40 and model.cursor == (40 // micro,)


class Watch(L.Callback):
    """Notes what every micro-batch left behind."""

    def __init__(self) -> None:
        self.rates: list[tuple[int, float, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        group = trainer.optimizers[0].param_groups[0]
        self.rates.append((pl_module.updates, group["lr"], group["eps"]))  # type: ignore[arg-type]


def test_rates_and_teacher_move_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, watch, moved = module(objective(), eps=1e-4), Watch(), []
    update = model.objective.teacher.update
    monkeypatch.setattr(
        model.objective.teacher,
        "update",
        lambda s, n, *more: (moved.append(n), update(s, n, *more)),
    )
    fit(model, Data(4), 3, None, watch)
    assert moved == [1, 2, 3]
    assert [updates for updates, _, _ in watch.rates] == [0, 1, 1, 2, 2, 3]
    for k, (_, lr, eps) in enumerate(watch.rates[1::2], start=1):
        assert lr == RATE(k - 1) and eps == fairseq_eps(1e-4, 0.98, k)
    plain = module(objective(), eps=1e-4, eps_inside=False)
    fit(plain, Data(8), 2, None, watch := Watch())
    assert {eps for _, _, eps in watch.rates} == {1e-4}


def test_logged_loss_and_norm_are_those_of_the_whole_step() -> None:
    logged = []
    for micro in (8, 2):
        model = module(objective(), clip=None)
        fit(model, Data(micro), 1)
        logged.append(
            [float(model.log_metrics[key]) for key in ("loss", "grad_norm", "lr", "decay")]
        )
    output = objective().train()(Data(8).batch(0))
    assert logged[0] == pytest.approx(logged[1], rel=1e-4)
    assert logged[0][0] == pytest.approx(float(output.loss.detach()), rel=1e-5)
    assert logged[0][2:] == [RATE(0), DECAY(1)]
    assert {
        "target_std",
        "pred_std",
        "target_position_std",
        "pred_position_std",
    } <= model.objective.statistics(output).keys()


@pytest.mark.parametrize("build", [objective, data2vec2])
@pytest.mark.parametrize("micro", [8, 2])
def test_resuming_gives_the_same_bits(tmp_path: Path, build: Any, micro: int) -> None:
    """With dropout, layer drop and decoder noise; the default generators are left in another
    state."""
    whole, first, second = (module(build(0.2)) for _ in range(3))
    fit(whole, Data(micro), 5)
    fit(first, Data(micro), 3).save_checkpoint(tmp_path / "step.ckpt")
    torch.manual_seed(99)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.zero_()
    data = Data(micro)
    fit(second, data, 5, tmp_path / "step.ckpt")
    assert data.cursor == (24 // micro,)
    expected = weights(whole)
    assert all(torch.equal(t, expected[name]) for name, t in weights(second).items())
    assert (second.updates, second.samples_seen, second.cursor) == (5, 40, (40 // micro,))


def test_other_data_is_refused_on_resuming(tmp_path: Path) -> None:
    fit(module(objective()), Data(8), 2).save_checkpoint(tmp_path / "step.ckpt")
    other = Data(8)
    other.fingerprint = "fewer files"
    with pytest.raises(
        ConfigError, match="data= is fewer files, but this run was started on endless"
    ):
        fit(module(objective()), other, 4, tmp_path / "step.ckpt")


def test_dropout_depends_on_seed_step_and_micro_batch_alone() -> None:
    results = []
    for seed, disturbed in ((0, False), (0, True), (1, False)):
        model = module(objective(0.2), seed=seed)
        torch.manual_seed(5 if disturbed else 6)
        fit(model, Data(4), 2)
        results.append(weights(model)["objective.predictor.projection.0.weight"])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_a_step_of_lost_samples_only_does_not_divide_by_zero() -> None:
    """A sample that cannot be decoded has weight 0 and predicts nothing."""
    model = module(objective())
    fit(model, Data(4, lost=tuple(range(8, 16))), 2)
    assert model.log_metrics["loss"] == model.log_metrics["grad_norm"] == 0
    assert all(t.isfinite().all() for t in weights(model).values())


def test_lost_samples_count_for_nothing() -> None:
    model = module(objective())
    fit(model, Data(8, lost=(1, 6)), 1)
    whole = Data(8).batch(0)
    kept = [0, 2, 3, 4, 5, 7]
    assert whole.lengths is not None
    output = objective().train()(Batch(whole.inputs[kept], whole.ids[kept], whole.lengths[kept]))
    assert float(model.log_metrics["loss"]) == pytest.approx(float(output.loss.detach()), rel=1e-5)


def test_relative_loss_is_one_for_a_prediction_of_zero() -> None:
    model = module(objective())
    fit(model, Data(8), 1)
    output = model.last_output
    assert output is not None
    naive = float((output.pred - output.target).square().sum() / output.target.square().sum())
    assert float(model.objective.statistics(output)["loss_relative"]) == pytest.approx(
        naive, rel=1e-5
    )
