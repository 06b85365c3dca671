"""A table of calls, each on every class that has it: ours returns what transformers' returns, or
raises an error of the same type."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.huggingface.family_cases import BASES, CLASSES, HEADS, both, kind, labels
from tests.huggingface.family_cases import inputs as single
from tests.huggingface.family_cases import ours as ours_of
from tests.huggingface.family_cases import theirs as theirs_of

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
ROOT = Path(__file__).parents[2]
Call = Callable[[Any, str], Any]


def same(mine: Any, their: Any, tolerance: float = 1e-10) -> None:
    """Equal structure; tensors (fp64) equal to ``tolerance`` times their largest value or 1."""
    if isinstance(their, Tensor):
        assert isinstance(mine, Tensor) and mine.dtype == their.dtype and mine.shape == their.shape
        scale = max(1.0, their.detach().abs().max().item()) if their.numel() else 1.0
        torch.testing.assert_close(mine, their, rtol=0, atol=tolerance * scale)
    elif isinstance(their, Mapping):
        assert list(mine) == list(their)
        for key in their:
            same(mine[key], their[key], tolerance)
    elif isinstance(their, (tuple, list)):
        assert type(mine) is type(their) and len(mine) == len(their)
        for one, other in zip(mine, their, strict=True):
            same(one, other, tolerance)
    else:
        assert mine == their


def inputs(name: str, **options: int) -> dict[str, Tensor]:
    """Inputs in the precision of ``doubles``."""
    found = single(name, **options)
    return {key: t.double() if t.is_floating_point() else t for key, t in found.items()}


def labelled(name: str) -> dict[str, Tensor]:
    return inputs(name) | (labels(name) if name in HEADS else {})


def by_place(model: Any, name: str) -> Any:
    """The arguments that both versions share, by their places: inputs, then for text types and
    masks in the documented order."""
    x = list(inputs(name).values())
    if name.endswith("MultipleChoice"):
        return model(x[0], torch.ones_like(x[0]), x[1])
    if kind(name) == "Text":
        return model(*x, torch.ones_like(x[0]))
    return model(*x)


def configured(**settings: Any) -> Call:
    """A call with other values in the configuration, which are put back."""

    def call(model: Any, name: str) -> Any:
        before = {key: getattr(model.config, key) for key in settings}
        try:
            model.config.update(settings)
            return model(**inputs(name))
        finally:
            model.config.update(before)

    return call


def text(**more: Any) -> Call:
    def call(model: Any, name: str) -> Any:
        ids = inputs(name)["input_ids"]
        made = {key: value(ids) if callable(value) else value for key, value in more.items()}
        return model(**inputs(name) | made)

    return call


def vectors(model: Any, name: str) -> Any:
    x = inputs(name)
    return model(inputs_embeds=model.get_input_embeddings()(x["input_ids"]))


def two_steps(model: Any, name: str) -> Any:
    """The logits of the last tokens after a cached beginning."""
    ids = inputs(name)["input_ids"][:1]
    first = model(ids[:, :6], use_cache=True)
    return model(ids[:, 6:], past_key_values=first.past_key_values, use_cache=False).logits


def every_token(ids: Tensor) -> Tensor:
    """A mask for every token that a causal one would not give: a token sees all but the next."""
    size = ids.shape[1]
    return (torch.ones(size, size) - torch.eye(size).roll(1, 1)).expand(len(ids), -1, -1)


def bool_masked(model: Any, name: str) -> Any:
    """``bool_masked_pos`` of a model that has no mask token."""
    return model(inputs(name)["pixel_values"], torch.ones(2, 16, dtype=torch.bool))


ALL: dict[str, Call] = {
    "plain": lambda m, n: m(**inputs(n)),
    "by place": by_place,
    "tuple": lambda m, n: m(**inputs(n), return_dict=False),
    "forward as a tuple": lambda m, n: m.forward(**inputs(n), return_dict=False),
    "states": lambda m, n: m(**inputs(n), output_hidden_states=True),
    "attentions": lambda m, n: m(**inputs(n), output_attentions=True),
    "labels": lambda m, n: m(**labelled(n)),
    "labels as a tuple": lambda m, n: m(**labelled(n), return_dict=False),
    "configured states": configured(output_hidden_states=True),
    "configured tuple": configured(return_dict=False),
    "by slices": lambda m, n: m(**labelled(n), output_hidden_states=True)[:2],
    "to_tuple": lambda m, n: m(**labelled(n)).to_tuple(),
    "one row": lambda m, n: m(**inputs(n, rows=1)),
    "other rows": lambda m, n: m(**inputs(n, rows=3, seed=5)),
    "no arguments": lambda m, n: m(),
    "dtype": lambda m, n: m.dtype,
    "device": lambda m, n: m.device,
    "main input": lambda m, n: m.main_input_name,
    "prefix": lambda m, n: m.base_model_prefix,
    "generates": lambda m, n: m.can_generate(),
    "labels of a class": lambda m, n: m.config.num_labels,
    "checkpointing": lambda m, n: m.is_gradient_checkpointing,
    "supports checkpointing": lambda m, n: m.supports_gradient_checkpointing,
    "parameters": lambda m, n: m.num_parameters(),
    "trainable": lambda m, n: m.num_parameters(only_trainable=True),
    "missing folder": lambda m, n: type(m).from_pretrained("/no/such/folder"),
    "missing name": lambda m, n: type(m).from_pretrained("nobody/nothing", local_files_only=True),
}
TEXT: dict[str, Call] = {
    "types": text(token_type_ids=lambda ids: ids % 3),
    "places": text(position_ids=lambda ids: (ids % 7) + 2),
    "no mask": text(attention_mask=None),
    "vectors": vectors,
    "ids and vectors": text(inputs_embeds=lambda ids: torch.zeros(*ids.shape, 32)),
    "inputs": lambda m, n: m.get_input_embeddings().weight,
    "table without": lambda m, n: m.num_parameters(exclude_embeddings=True),
}
LM: dict[str, Call] = {
    "outputs": lambda m, n: m.get_output_embeddings().weight,
    "output bias": lambda m, n: m.get_output_embeddings().bias,
}
DECODER: dict[str, Call] = {
    "two steps": two_steps,
    "last logits": text(logits_to_keep=3),
    "chosen logits": text(logits_to_keep=torch.tensor([1, 4])),
    "number of items": lambda m, n: m(**labelled(n), num_items_in_batch=7).loss,
    "cached": text(use_cache=True),
}
VISION: dict[str, Call] = {
    "interpolated": lambda m, n: m(**inputs(n), interpolate_pos_encoding=True),
    "states and tuple": lambda m, n: m(**inputs(n), output_hidden_states=True, return_dict=False),
}
AUDIO: dict[str, Call] = {
    "no mask": lambda m, n: m(inputs(n)["input_values"]),
    "frozen": lambda m, n: _frozen(m),
}


def _frozen(model: Any) -> int:
    model = copy.deepcopy(model)
    model.freeze_feature_encoder()
    return model.num_parameters(only_trainable=True)


def rows() -> list[tuple[str, str, Call]]:
    table = []
    for name in CLASSES:
        calls = ALL | {"Text": TEXT, "Vision": VISION, "Audio": AUDIO}[kind(name)]
        if name in ("TextForMaskedLM", "TextForCausalLM"):
            calls = calls | LM
        if name == "TextForCausalLM":
            calls = calls | DECODER
        if name == "AudioModel":
            calls = {key: call for key, call in calls.items() if key != "frozen"} | {
                "frozen": AUDIO["frozen"]
            }
        table += [(name, what, call) for what, call in calls.items()]
    return table


# The calls that are mistakes; every other must give a value on both sides.
FAIL = [ALL["no arguments"], ALL["missing folder"], ALL["missing name"], TEXT["ids and vectors"]]


@cache
def doubles(name: str) -> tuple[Any, Any]:
    """Both models in fp64. A cache is a tuple here and an object there, so none is returned unless
    a call asks for it."""
    models = copy.deepcopy(both(name))
    for model in models:
        model.double()
        model.config.use_cache = False
    return models


@pytest.mark.parametrize(
    ("name", "call"),
    [pytest.param(name, call, id=f"{name}-{what}") for name, what, call in rows()],
)
def test_call(name: str, call: Call) -> None:
    mine, their = doubles(name)
    found, expected = outcome(mine, name, call), outcome(their, name, call)
    if not isinstance(expected, Exception):
        if isinstance(found, Exception):
            raise found
        return same(found, expected)
    if call is ALL["configured tuple"] and isinstance(expected, AttributeError):
        return same(found, call(mine, name)[: len(found)])  # theirs fails, ours gives a tuple
    assert call in FAIL, f"theirs raises {expected!r}"
    assert isinstance(found, Exception), f"theirs raises {expected!r}"
    accidental = isinstance(expected, (AttributeError, TypeError))  # theirs checks nothing
    assert isinstance(
        found, (type(expected), ValueError, TypeError) if accidental else type(expected)
    )


def outcome(model: Any, name: str, call: Call) -> Any:
    """What a call returns or raises. An output loses ``cross_attentions`` where there are none:
    transformers 5 gives an empty tuple then, 4 and ours nothing."""
    try:
        with torch.no_grad():
            result = call(model, name)
    except Exception as error:
        return error
    if isinstance(result, Mapping):
        keys = ("cross_attentions", "cache", "past_key_values")
        return {k: v for k, v in result.items() if k not in keys}
    return result


SEED = """
AudioModel: input_values attention_mask mask_time_indices
AudioForCTC: input_values attention_mask labels
AudioForSequenceClassification: input_values attention_mask labels
AudioForAudioFrameClassification: input_values attention_mask labels
AudioForXVector: input_values attention_mask labels
TextModel: input_ids attention_mask token_type_ids position_ids inputs_embeds encoder_hidden_states encoder_attention_mask CACHE use_cache
TextForCausalLM: input_ids attention_mask token_type_ids position_ids inputs_embeds encoder_hidden_states encoder_attention_mask labels CACHE use_cache
TextForMaskedLM: input_ids attention_mask token_type_ids position_ids inputs_embeds encoder_hidden_states encoder_attention_mask labels
TextForSequenceClassification: input_ids attention_mask token_type_ids position_ids inputs_embeds labels
TextForMultipleChoice: input_ids token_type_ids attention_mask labels position_ids inputs_embeds
TextForTokenClassification: input_ids attention_mask token_type_ids position_ids inputs_embeds labels
TextForQuestionAnswering: input_ids attention_mask token_type_ids position_ids inputs_embeds start_positions end_positions
VisionModel: pixel_values bool_masked_pos output_attentions output_hidden_states return_dict
VisionForImageClassification: pixel_values labels output_attentions output_hidden_states return_dict
VisionForSemanticSegmentation: pixel_values labels output_attentions output_hidden_states return_dict
"""  # noqa: E501
# The arguments that transformers 4.37 and 5.24 share, in their common order; CTC, clip
# classification and x-vectors have their labels last in 4.37.


@pytest.mark.parametrize("line", SEED.strip().splitlines(), ids=lambda line: line.split(":")[0])
def test_order_of_arguments(line: str) -> None:
    """Against the table above, and against the installed transformers."""
    name, shared = line.split(":")
    mine, their = both(name)

    def order(model: Any) -> list[str]:
        names = inspect.signature(model.forward).parameters
        return ["CACHE" if n in ("cache", "past_key_values") else n for n in names]

    places = list(dict.fromkeys(order(mine)))
    wanted = shared.split()
    assert [n for n in places if n in wanted] == wanted
    assert [n for n in order(their) if n in wanted] == wanted
    common = [n for n in order(their) if n in places]
    assert [n for n in places if n in common] == common


def resized(model: Any, rows: int | None, multiple: int | None) -> tuple[Any, Any]:
    model = copy.deepcopy(model)
    table = model.resize_token_embeddings(rows, multiple, mean_resizing=False)
    return model, table


@pytest.mark.parametrize(
    ("rows", "multiple"), [(120, None), (60, None), (100, 64), (None, 8), (99, None)]
)
@pytest.mark.parametrize("name", ["TextModel", "TextForMaskedLM", "TextForCausalLM"])
def test_resized_vocabularies(name: str, rows: int | None, multiple: int | None) -> None:
    """Table, tied head, bias and configuration follow; old tokens keep their logits."""
    (mine, table), (their, wanted) = (resized(m, rows, multiple) for m in both(name))
    kept = min(99, len(wanted.weight))
    assert table.weight.shape == wanted.weight.shape and mine.config.vocab_size == len(table.weight)
    assert torch.equal(table.weight[:kept], wanted.weight[:kept])
    ids = {"input_ids": single(name)["input_ids"] % 50}
    with torch.no_grad():
        one, other = mine(**ids)[0], their(**ids)[0]
    assert one.shape == other.shape
    same(one[..., :kept], other[..., :kept], 1e-6)
    if name != "TextModel":
        layers = mine.get_output_embeddings(), their.get_output_embeddings()
        assert layers[0].weight is table.weight
        assert torch.equal(layers[0].bias, layers[1].bias)
        again = type(mine).from_transformers(mine.to_transformers())
        assert again.config.vocab_size == len(table.weight)


@pytest.mark.parametrize("name", ["TextForMaskedLM", "VisionModel"])
def test_gradients_reach_frozen_inputs(name: str) -> None:
    models = copy.deepcopy(both(name))
    for model in models if kind(name) == "Text" else models[:1]:  # theirs fails on images
        model.requires_grad_(False)
        model.enable_input_require_grads()
        assert model(**single(name))[0].requires_grad
        model.disable_input_require_grads()
        assert not model(**single(name))[0].requires_grad


def test_audio_has_no_table_of_inputs() -> None:
    for model in both("AudioForCTC"):
        with pytest.raises(NotImplementedError):
            model.get_input_embeddings()


def test_a_mask_for_every_token_is_used_alone() -> None:
    """A decoder does not add its causal mask, in 4.37 and in 5."""
    mine, their = both("TextForCausalLM")
    ids = single("TextForCausalLM")["input_ids"]
    mask = every_token(ids)
    with torch.no_grad():
        alone = mine(ids, mask).logits
        same(mine(ids, mask[:, None].bool()).logits, alone)
        added = mask[:, None].sub(1) * 1e9  # they add a mask of four axes to the scores
        same(their(ids, added).logits, alone, 1e-6)
        assert not torch.allclose(alone, mine(ids).logits)


@pytest.mark.parametrize("name", CLASSES)
def test_their_names_are_taken_too(name: str) -> None:
    """``load_state_dict`` with transformers' names and with ours, of a model and inside another."""
    mine, their = both(name)
    for state in (their.state_dict(), mine.state_dict()):
        fresh = ours_of(theirs_of(name))
        for parameter in fresh.parameters():
            nn.init.zeros_(parameter)
        tied = [k for k in state if k.startswith("lm_head.decoder")]
        state = {k: v for k, v in state.items() if k not in tied or "Masked" not in name}
        state = {k: v for k, v in state.items() if k not in tied}
        wrapped = nn.ModuleDict({"model": fresh})
        wrapped.load_state_dict({f"model.{key}": t for key, t in state.items()})
        for key, tensor in mine.state_dict().items():
            assert torch.equal(fresh.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", CLASSES)
def test_there_and_back(name: str) -> None:
    """``to_transformers`` has theirs' very tensors and shares memory with ours."""
    mine, their = both(name)
    model = mine.to_transformers()
    assert type(model) is type(their)
    for key, tensor in their.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
    memory = {p.untyped_storage().data_ptr() for p in mine.parameters()}
    shared = [p.untyped_storage().data_ptr() in memory for p in model.parameters()]
    assert sum(shared) >= len(shared) - 1  # an untied bias that is without effect has none
    with torch.no_grad():
        same(model(**single(name))[0], their(**single(name))[0], 1e-5)


def test_inside_an_encoder_decoder() -> None:
    """What only transformers has takes a model of ours through ``to_transformers``."""
    encoder = both("TextModel")[0].to_transformers()
    decoder = ours_of(theirs_of("TextForCausalLM", add_cross_attention=True))
    both_parts = transformers.EncoderDecoderModel(
        encoder=encoder, decoder=decoder.to_transformers()
    ).eval()
    x = single("TextModel")
    with torch.no_grad():
        logits = both_parts(**x, decoder_input_ids=x["input_ids"]).logits
        states = both("TextModel")[0](**x).last_hidden_state
        own = decoder(
            x["input_ids"],
            encoder_hidden_states=states,
            encoder_attention_mask=x["attention_mask"],
        ).logits
    same(own, logits, 1e-5)


def test_generation() -> None:
    mine, their = both("TextForCausalLM")
    ids = single("TextForCausalLM")["input_ids"][:1]
    ask = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(mine.generate(ids, **ask), their.generate(ids, **ask))
    with pytest.raises(ValueError, match="no head that predicts the next token"):
        both("TextModel")[0].generate(ids)


@pytest.mark.parametrize("name", CLASSES)
def test_every_name_is_there_or_listed(name: str) -> None:
    """Public names of theirs that ours lacks stand in docs/hf_differences.md, and what stands there
    is lacking."""
    listed = left_out("Names that are left out")
    own = {*dir(nn.Module()), *both(name)[1]._modules, *both(name)[1]._parameters}
    theirs = {n for n in dir(both(name)[1]) if not n.startswith("_")} - own
    assert theirs - set(dir(both(name)[0])) <= listed
    if name == "TextForCausalLM":
        assert not [n for n in listed if hasattr(both(name)[0], n)]


@pytest.mark.parametrize("name", BASES)
def test_every_name_of_a_configuration_is_there_or_listed(name: str) -> None:
    mine, their = (model.config for model in both(name))
    listed = left_out("Names that are left out")
    assert {n for n in dir(their) if not n.startswith("_")} - set(dir(mine)) <= listed


def left_out(title: str) -> set[str]:
    """The names in backticks under a title of the page on differences."""
    page = (ROOT / "docs" / "hf_differences.md").read_text()
    section = page.split(f"## {title}")[1].split("\n## ")[0]
    return set(re.findall(r"`(\w+)`", section))
