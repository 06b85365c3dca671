"""The text classes against transformers: weights through files in both directions, outputs, losses,
gradients."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import d2v_pretrain
from d2v_pretrain.errors import ConfigError

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

FOUR = transformers.__version__.startswith("4.")
# Version 4 has one bias for an untied decoder, and 4.45 loses a tied one's in its own round trip.
biases_of_5 = pytest.mark.skipif(FOUR, reason="transformers 4 keeps the decoder's bias differently")

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 50,
    "vocab_size": 99,
    "max_position_embeddings": 40,
    "layer_norm_eps": 1e-5,
}
NO_DROPS = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
PAD = 1
T = 11
EXACT = [(torch.float64, 1e-12), (torch.float32, 1e-5)]
HEADS = [
    "Model",
    "ForMaskedLM",
    "ForCausalLM",
    "ForSequenceClassification",
    "ForMultipleChoice",
    "ForTokenClassification",
    "ForQuestionAnswering",
]
DECODER = {"is_decoder": True}
CROSS = {"is_decoder": True, "add_cross_attention": True}


def randomised(model: nn.Module, seed: int = 0) -> Any:
    """In eval mode, every parameter anew: fresh biases are 0 and norms 1, which hides whoever
    forgets them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return model.eval()


def theirs(name: str, **settings: Any) -> Any:
    config = transformers.Data2VecTextConfig(**SIZES | settings)
    config._attn_implementation = "eager"
    return randomised(getattr(transformers, f"Data2VecText{name}")(config))


def ours(name: str, **settings: Any) -> Any:
    config = d2v_pretrain.Data2VecTextConfig(**SIZES | settings)
    return randomised(getattr(d2v_pretrain, f"Data2VecText{name}")(config))


def read(name: str, directory: Path, **settings: Any) -> Any:
    return getattr(d2v_pretrain, f"Data2VecText{name}").from_pretrained(directory, **settings)


def both(name: str, directory: Path, dtype: torch.dtype, **settings: Any) -> tuple[Any, Any]:
    """Ours with the weights of theirs, through a directory."""
    model = theirs(name, **settings)
    model.save_pretrained(directory)
    mine, info = read(name, directory, output_loading_info=True)
    assert not any(info.values())
    return mine.to(dtype), model.to(dtype)


def tokens(
    seed: int = 1, vocabulary: int = 99, pad: int = PAD, rows: int = 3, size: int = T
) -> Tensor:
    ids = torch.randint(
        0, vocabulary - 1, (rows, size), generator=torch.Generator().manual_seed(seed)
    )
    return ids + (ids >= pad).long()  # no padding among them


def padded(kind: str) -> dict[str, Tensor]:
    """Inputs with so much of row 1 and 2 padded at one side."""
    ids = tokens()
    places = torch.arange(T)
    lengths = torch.tensor([T, 8, 5])[:, None]
    hidden = {
        "right": places >= lengths,
        "left": places < T - lengths,
        "inner": (places == 3) & (lengths < T),
    }[kind]
    ids = ids.masked_fill(hidden, PAD)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def inputs(kind: str, dtype: torch.dtype) -> dict[str, Tensor]:
    if kind in ("right", "left", "inner"):
        return padded(kind)
    ids, more = tokens(), {}
    if kind == "types":
        more = {"token_type_ids": tokens(2, 3, 5)}
    elif kind == "positions":
        more = {"position_ids": tokens(2, 40, 77)}
    elif kind == "vectors":
        vectors = torch.randn(3, T, 32, generator=torch.Generator().manual_seed(3), dtype=dtype)
        return {"inputs_embeds": vectors, "attention_mask": padded("right")["attention_mask"]}
    elif kind == "four dimensions":
        more = {
            "attention_mask": torch.rand(3, 1, T, T, generator=torch.Generator().manual_seed(4))
            < 0.7
        }
        more["attention_mask"] |= torch.eye(T, dtype=torch.bool)
    elif kind == "padding that is read":
        return {"input_ids": padded("right")["input_ids"]}
    return {"input_ids": ids, **more}


KINDS = [
    "full",
    "right",
    "left",
    "inner",
    "types",
    "positions",
    "vectors",
    "four dimensions",
    "padding that is read",
]


def agree(mine: Any, their: Any, tolerance: float) -> None:
    """The fields of theirs that hold something are ours, with equal values. For the values of the
    cache, which some versions list first, see ``test_decoder_with_a_cache``."""
    fields = [key for key, value in their.items() if not isinstance(value, tuple) or len(value)]
    assert sorted(fields) == sorted(mine)
    fields = [key for key in fields if key not in ("cache", "past_key_values")]
    assert fields == [key for key in mine if key not in ("cache", "past_key_values")]
    for key in fields:
        pairs = (
            zip(mine[key], their[key], strict=True)
            if isinstance(mine[key], tuple)
            else [(mine[key], their[key])]
        )
        for a, b in pairs:
            torch.testing.assert_close(
                a, b, rtol=0, atol=tolerance * max(1.0, float(b.abs().max())), check_dtype=False
            )


def labels(name: str) -> dict[str, Tensor]:
    ids = tokens(7)
    return {
        "ForMaskedLM": {"labels": ids.masked_fill(ids % 3 > 0, -100)},
        "ForCausalLM": {"labels": ids.masked_fill(ids % 5 == 0, -100)},
        "ForSequenceClassification": {"labels": torch.tensor([1, 0, 1])},
        "ForMultipleChoice": {"labels": torch.tensor([2])},
        "ForTokenClassification": {"labels": (ids % 2).masked_fill(ids % 5 == 0, -100)},
        "ForQuestionAnswering": {
            "start_positions": torch.tensor([0, 4, 77]),
            "end_positions": torch.tensor([3, 10, 5]),
        },
    }[name]


def shaped(name: str, given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v[None] for k, v in given.items()} if name == "ForMultipleChoice" else given


@pytest.mark.parametrize(("dtype", "tolerance"), EXACT, ids=["fp64", "fp32"])
@pytest.mark.parametrize("decoder", [False, True], ids=["encoder", "decoder"])
def test_model(decoder: bool, dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    mine, their = both("Model", tmp_path, dtype, is_decoder=decoder)
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        for kind in KINDS:
            if decoder and kind in ("left", "four dimensions"):
                # Rows that may read nothing have a test of their own. In a decoder, theirs does not
                # make a given mask of four dimensions causal.
                continue
            if FOUR and kind == "four dimensions":
                continue  # refused there
            given = inputs(kind, dtype)
            other = dict(given)
            if kind == "four dimensions":  # theirs adds it
                other["attention_mask"] = (~given["attention_mask"]).to(dtype) * -1e30
            agree(mine(**given, **asked), their(**other, **asked), tolerance)
            agree(mine(**given), their(**other), tolerance)  # through the fused kernel


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_low_precision_is_as_good_as_theirs(dtype: torch.dtype, tmp_path: Path) -> None:
    mine, their = both("Model", tmp_path, torch.float64)
    with torch.no_grad():
        exact = their(**padded("right")).last_hidden_state
        outs = [model.to(dtype)(**padded("right")).last_hidden_state for model in (mine, their)]
    assert {out.dtype for out in outs} == {dtype}
    error, allowed = ((out.double() - exact).square().mean().sqrt() for out in outs)
    assert error < 1.5 * allowed


@pytest.mark.parametrize(("dtype", "tolerance"), EXACT, ids=["fp64", "fp32"])
@pytest.mark.parametrize("name", HEADS[1:])
def test_heads_and_losses(name: str, dtype: torch.dtype, tolerance: float, tmp_path: Path) -> None:
    settings = DECODER if name == "ForCausalLM" else {}
    mine, their = both(name, tmp_path, dtype, **settings)
    given = shaped(name, padded("right"))
    with torch.no_grad():
        a, b = mine(**given, **labels(name)), their(**given, **labels(name))
    # Both compute the causal loss in single precision.
    agree(a, b, 1e-6 if name == "ForCausalLM" else tolerance)
    assert a.loss.dtype == b.loss.dtype


@pytest.mark.parametrize("count", [1, 3])
def test_sequence_losses_by_labels_and_problem_type(count: int, tmp_path: Path) -> None:
    mine, their = both("ForSequenceClassification", tmp_path, torch.float64, num_labels=count)
    given = padded("right")
    whole, numbers = torch.tensor([2, 0, 1]), torch.rand(3, count, dtype=torch.float64)
    cases = {
        1: [(None, numbers), (None, numbers[:, 0]), ("regression", numbers)],
        3: [
            (None, whole),
            (None, numbers),
            ("regression", numbers),
            ("single_label_classification", whole),
            ("multi_label_classification", numbers.round()),
        ],
    }
    for problem, target in cases[count]:
        mine.config.problem_type = their.config.problem_type = problem
        torch.testing.assert_close(
            mine(**given, labels=target).loss,
            their(**given, labels=target).loss,
            rtol=0,
            atol=1e-12,
        )
        assert mine.config.problem_type == problem  # theirs has written what it found


@pytest.mark.parametrize(
    "name", [pytest.param(h, marks=biases_of_5) if h.endswith("LM") else h for h in HEADS]
)
def test_our_files_are_theirs(name: str, tmp_path: Path) -> None:
    """Ours -> theirs -> ours: nothing missing, the same keys and shapes, the same bits."""
    settings = {"vocab_size": 77, "type_vocab_size": 1} | (CROSS if name == "ForCausalLM" else {})
    mine = ours(name, **settings)
    mine.save_pretrained(tmp_path / "ours")
    kind = getattr(transformers, f"Data2VecText{name}")
    their, info = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    their.save_pretrained(tmp_path / "theirs")
    a, b = (load(tmp_path / who) for who in ("ours", "theirs"))
    assert sorted(a) == sorted(b)
    assert all(torch.equal(a[key], b[key]) for key in a)
    back = read(name, tmp_path / "theirs")
    assert all(
        torch.equal(x, y)
        for x, y in zip(mine.state_dict().values(), back.state_dict().values(), strict=True)
    )
    written = back.config.to_dict()
    assert written == written | mine.config.to_dict()


def load(directory: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=biases_of_5)])
def test_tied_and_untied_decoders(tied: bool, tmp_path: Path) -> None:
    mine, their = both("ForMaskedLM", tmp_path, torch.float64, tie_word_embeddings=tied)
    agree(mine(**padded("right")), their(**padded("right")), 1e-12)
    keys = set(load(tmp_path))
    assert set(mine.to_file()) == keys
    assert ("lm_head.decoder.weight" in keys) != tied
    mine.get_input_embeddings().weight.data.mul_(0)
    assert bool((mine(**padded("right")).logits == mine.lm_head.bias).all()) == tied


def test_old_files_hold_the_tied_decoder_and_index_buffers(tmp_path: Path) -> None:
    mine = ours("ForMaskedLM")
    mine.save_pretrained(tmp_path)
    state = load(tmp_path)
    old = dict(state)
    old["lm_head.decoder.weight"] = state["data2vec_text.embeddings.word_embeddings.weight"]
    old["lm_head.decoder.bias"] = old.pop("lm_head.bias")
    old["data2vec_text.embeddings.position_ids"] = torch.arange(40)[None]
    (tmp_path / "model.safetensors").unlink()
    torch.save(old, tmp_path / "pytorch_model.bin")
    back, info = read("ForMaskedLM", tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert all(
        torch.equal(x, y)
        for x, y in zip(mine.state_dict().values(), back.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(("dtype", "tolerance"), EXACT, ids=["fp64", "fp32"])
@pytest.mark.parametrize("cross", [False, True], ids=["alone", "cross attention"])
def test_decoder_with_a_cache(
    cross: bool, dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    """Tokens one by one with keys and values of the past = all at once = theirs."""
    mine, their = both("ForCausalLM", tmp_path, dtype, **(CROSS if cross else DECODER))
    given, more = padded("right"), {}
    if cross:
        states = torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(9), dtype=dtype)
        more = {
            "encoder_hidden_states": states,
            "encoder_attention_mask": tokens(5, 3, 7, 3, 6) > 0,
        }
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        whole, their_whole = mine(**given, **more, **asked), their(**given, **more, **asked)
        agree(whole, their_whole, tolerance)
        assert len(whole.past_key_values[0]) == (4 if cross else 2)
        past = their_past = None
        for step in range(T):
            ids, mask = (
                given["input_ids"][:, step : step + 1],
                given["attention_mask"][:, : step + 1],
            )
            one = mine(input_ids=ids, attention_mask=mask, past_key_values=past, **more)
            their_one = their(
                input_ids=ids, attention_mask=mask, past_key_values=their_past, **more
            )
            past, their_past = one.past_key_values, their_one.past_key_values
            torch.testing.assert_close(one.logits, their_one.logits, rtol=0, atol=tolerance * 10)
            real = mask[:, -1].bool()
            torch.testing.assert_close(
                one.logits[real, 0], whole.logits[real, step], rtol=0, atol=tolerance * 10
            )
    torch.testing.assert_close(past, whole.past_key_values, rtol=0, atol=tolerance * 10)
    for layer, kept in enumerate(past):
        for mine_, their_ in zip(
            kept, their_keys_and_values(their_past, layer, cross), strict=True
        ):
            torch.testing.assert_close(mine_, their_, rtol=0, atol=tolerance * 10)


def their_keys_and_values(cache: Any, layer: int, cross: bool) -> list[Tensor]:
    """Of one layer, in our order. Up to transformers 4.57 a cache could be a tuple of tensors."""
    if isinstance(cache, tuple):
        return list(cache[layer])
    parts = [cache.self_attention_cache, cache.cross_attention_cache] if cross else [cache]
    return [t for part in parts for t in (part.layers[layer].keys, part.layers[layer].values)]


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
@pytest.mark.parametrize("head", ["Model", "ForCausalLM"])
def test_the_past_has_two_names(head: str, name: str) -> None:
    """transformers 5.24 calls ``cache`` what was called ``past_key_values`` before."""
    mine, ids = ours(head, **DECODER), tokens()
    first = mine(input_ids=ids[:, :6])
    assert first.cache is first.past_key_values is first["cache"] is first["past_key_values"]
    assert "cache" in first and "past_key_values" in first
    listed = [key for key in first if key in ("cache", "past_key_values")]
    field = transformers.modeling_outputs.CausalLMOutputWithCrossAttentions.__dataclass_fields__
    assert listed == [key for key in field if key in ("cache", "past_key_values")]
    rest = mine(input_ids=ids[:, 6:], **{name: first[name]})
    torch.testing.assert_close(rest[0], mine(input_ids=ids)[0][:, 6:], rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="past_key_values, cache=both are two names"):
        mine(input_ids=ids, past_key_values=first.cache, cache=first.cache)


@pytest.mark.parametrize("head", ["Model", "ForCausalLM"])
def test_the_past_stands_where_theirs_does(head: str) -> None:
    mine, their = (
        list(inspect.signature(getattr(home, f"Data2VecText{head}").forward).parameters)
        for home in (d2v_pretrain, transformers)
    )
    their = [key for key in their if key != "head_mask"]  # that of transformers 4 stands before it
    place = mine.index("past_key_values")
    assert their[place] in ("cache", "past_key_values") and their[:place] == mine[:place]


def test_a_cache_is_returned_only_when_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    mine = ours("ForCausalLM", **DECODER)
    past = mine(input_ids=tokens()).past_key_values
    before = [t.clone() for layer in past for t in layer]
    assert mine(input_ids=tokens(), past_key_values=past, use_cache=False).past_key_values is None
    assert mine(input_ids=tokens(), labels=tokens()).past_key_values is None
    assert all(
        torch.equal(a, b) for a, b in zip(before, (t for layer in past for t in layer), strict=True)
    )
    assert not caplog.records
    assert ours("ForCausalLM")(input_ids=tokens()).past_key_values is None
    assert "set config.is_decoder=True" in caplog.text


def test_vectors_with_a_past_keep_counting(tmp_path: Path) -> None:
    """Theirs starts positions of ``inputs_embeds`` anew at every call; ours go on."""
    mine = ours("ForCausalLM", **DECODER).double()
    vectors = torch.randn(2, 8, 32, dtype=torch.float64)
    whole = mine(inputs_embeds=vectors)
    first = mine(inputs_embeds=vectors[:, :5])
    rest = mine(inputs_embeds=vectors[:, 5:], past_key_values=first.past_key_values)
    torch.testing.assert_close(rest.logits, whole.logits[:, 5:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["Model", "ForCausalLM"])
def test_rows_that_may_read_nothing_are_finite_and_leave_others_alone(name: str) -> None:
    mine = ours(name, is_decoder=name == "ForCausalLM")
    given = padded("left")
    given["attention_mask"][2] = 0
    asked = {"output_attentions": True}
    for more in ({}, asked):
        both_rows = mine(**given, **more)[0]
        assert both_rows.isfinite().all()
        alone = mine(**{key: value[:2] for key, value in given.items()}, **more)[0]
        torch.testing.assert_close(both_rows[:2], alone, atol=1e-5, rtol=0)


def test_left_padded_decoder_agrees_at_real_tokens(tmp_path: Path) -> None:
    mine, their = both("ForCausalLM", tmp_path, torch.float64, **DECODER)
    given = padded("left")
    real = given["attention_mask"].bool()
    torch.testing.assert_close(
        mine(**given).logits[real], their(**given).logits[real], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("name", ["ForMaskedLM", "ForSequenceClassification"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients(name: str, checkpointing: bool, tmp_path: Path) -> None:
    """In training, with all drops at 0, every gradient is theirs."""
    mine, their = both(name, tmp_path, torch.float64, **NO_DROPS)
    if checkpointing:
        mine.gradient_checkpointing_enable()
    assert mine.is_gradient_checkpointing == checkpointing
    for model in (mine.train(), their.train()):
        model(**padded("right"), **labels(name)).loss.backward()
    named = dict(their.named_parameters())
    expected = {key: named[key].grad for key in mine.to_file()}
    for key, parts in mine.names().items():
        parts = (parts,) if isinstance(parts, str) else parts
        theirs_ = torch.cat([expected[part] for part in parts])
        torch.testing.assert_close(mine.get_parameter(key).grad, theirs_, rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, CROSS])
def test_checkpointing_changes_no_bit_under_dropout(settings: dict[str, Any]) -> None:
    mine = ours("ForCausalLM", **settings).train()
    more = {"encoder_hidden_states": torch.randn(3, 4, 32)} if settings else {}
    grads = []
    for enable in (False, True):
        mine.zero_grad()
        (mine.gradient_checkpointing_enable if enable else mine.gradient_checkpointing_disable)()
        torch.manual_seed(5)
        mine(input_ids=tokens(), labels=tokens(), output_hidden_states=True, **more).loss.backward()
        grads.append([p.grad.clone() for p in mine.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_random_configurations(seed: int, tmp_path: Path) -> None:
    """Whole space: widths, head sizes, vocabularies, padding ids, activations, eps, types; random
    padding."""
    generator = torch.Generator().manual_seed(100 + seed)

    def draw(*options: Any) -> Any:
        return options[int(torch.randint(len(options), (), generator=generator))]

    heads, size, pad = draw(1, 2, 3, 5), draw(3, 4, 7, 16), draw(0, 1, 4, 30)
    settings = {
        "num_attention_heads": heads,
        "hidden_size": heads * size,
        "intermediate_size": draw(1, 13, 37, 64),
        "num_hidden_layers": draw(1, 2),
        "vocab_size": draw(31, 60),
        "max_position_embeddings": pad + 1 + draw(9, 12),
        "type_vocab_size": draw(1, 2, 3),
        "hidden_act": draw("gelu", "gelu_new", "relu"),
        "layer_norm_eps": draw(1e-12, 1e-5, 1e-2),
        "pad_token_id": pad,
        "num_labels": draw(1, 2, 6),
        "is_decoder": draw(True, False),
        "tie_word_embeddings": draw(True, False),
    }
    name = draw(
        "Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForCausalLM"
    )
    mine, their = both(name, tmp_path, torch.float64, **settings)
    ids = tokens(seed, settings["vocab_size"], pad, rows=draw(1, 4), size=draw(1, 2, 9))
    if ids.shape[1] > 2:
        ids[-1, draw(1, 5) :] = pad
    given = {"input_ids": ids, "attention_mask": (ids != pad).long()}
    types = torch.randint(settings["type_vocab_size"], ids.shape, generator=generator)
    with torch.no_grad():
        for more in ({}, {"output_attentions": True, "output_hidden_states": True}):
            agree(
                mine(**given, token_type_ids=types, **more),
                their(**given, token_type_ids=types, **more),
                1e-12,
            )


def test_layer_norm_eps_is_used_everywhere(tmp_path: Path) -> None:
    """Inputs of almost no variance, where eps decides."""
    mine, their = both("ForMaskedLM", tmp_path, torch.float64, layer_norm_eps=1e-3)
    for model in (mine, their):
        for parameter in model.parameters():
            parameter.data.mul_(0.02)
    agree(mine(**padded("right")), their(**padded("right")), 1e-14)


def test_parameter_counts_are_the_published_ones() -> None:
    config = d2v_pretrain.Data2VecTextConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5
    )
    with torch.device("meta"):
        model = d2v_pretrain.Data2VecTextModel(config)
        their = transformers.Data2VecTextModel(
            transformers.Data2VecTextConfig(**base_settings(config))
        )
    assert model.num_parameters() == 124_645_632 == their.num_parameters()
    assert len(model.to_file()) == 199
    assert model.num_parameters(exclude_embeddings=True) == their.num_parameters(
        exclude_embeddings=True
    )


def base_settings(config: Any) -> dict[str, Any]:
    return {
        k: getattr(config, k) for k in ("vocab_size", "max_position_embeddings", "type_vocab_size")
    }


@pytest.mark.slow
def test_base_size(tmp_path: Path) -> None:
    settings = {
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    }
    their = transformers.Data2VecTextModel(transformers.Data2VecTextConfig(**settings)).eval()
    their.save_pretrained(tmp_path)
    mine = d2v_pretrain.Data2VecTextModel.from_pretrained(tmp_path)
    ids = tokens(vocabulary=50265, rows=2, size=128)
    ids[1, 100:] = PAD
    given = {"input_ids": ids, "attention_mask": ids != PAD, "output_hidden_states": True}
    with torch.no_grad():
        agree(mine(**given), their(**given), 1e-5)


def test_fresh_weights_have_their_statistics() -> None:
    torch.manual_seed(0)
    sizes = SIZES | {"hidden_size": 128, "vocab_size": 500}
    mine = d2v_pretrain.Data2VecTextForMaskedLM(d2v_pretrain.Data2VecTextConfig(**sizes))
    their = transformers.Data2VecTextForMaskedLM(transformers.Data2VecTextConfig(**sizes))
    expected = their.state_dict()
    for key, tensor in mine.to_file().items():
        spread = float(expected[key].std())
        assert float(tensor.mean()) == pytest.approx(
            float(expected[key].mean()), abs=6 * spread / tensor.numel() ** 0.5
        )
        assert float(tensor.std()) == pytest.approx(spread, rel=0.1, abs=1e-9), key
    assert not mine.get_input_embeddings().weight[PAD].any()


@pytest.mark.parametrize(
    ("call", "key"),
    [
        (lambda: ours("Model")(), "input_ids"),
        (
            lambda: ours("Model")(input_ids=tokens(), inputs_embeds=torch.zeros(3, T, 32)),
            "input_ids",
        ),
        (lambda: ours("Model")(input_ids=tokens(size=39)), "input_ids"),
        (
            lambda: ours("Model")(input_ids=tokens(), encoder_hidden_states=torch.zeros(3, 2, 32)),
            "encoder_hidden",
        ),
        (
            lambda: ours("Model")(input_ids=tokens(), attention_mask=torch.zeros(3, 1, T, T)),
            "attention_mask",
        ),
        (
            lambda: ours("Model")(input_ids=tokens(), attention_mask=torch.ones(3, T + 1)),
            "attention_mask",
        ),
        (lambda: ours("ForQuestionAnswering", num_labels=3), "num_labels"),
        (lambda: ours("Model", position_embedding_type="relative_key"), "position_embedding_type"),
        (lambda: ours("Model", add_cross_attention=True), "add_cross_attention"),
    ],
)
def test_mistakes_are_named(call: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        call()


def test_a_mask_for_every_token(tmp_path: Path) -> None:
    """(B, T, T), as in transformers 4: a lower triangle makes the encoder a decoder."""
    mine = ours("Model")
    encoder, triangle = (
        mine(input_ids=tokens(), attention_mask=torch.ones(T, T).tril().expand(3, T, T))[0],
        None,
    )
    mine.config.is_decoder = True
    torch.testing.assert_close(encoder, mine(input_ids=tokens(), attention_mask=triangle)[0])


def test_38_tokens_fit_into_40_rows_and_padding_costs_no_position() -> None:
    mine = ours("Model")
    assert mine(input_ids=tokens(size=38))[0].shape == (3, 38, 32)
    assert mine(input_ids=torch.cat([tokens(size=38), torch.full((3, 9), PAD)], 1))[0].shape == (
        3,
        47,
        32,
    )


@pytest.mark.parametrize("per_block", [False, True])
@pytest.mark.parametrize("attentions", [False, True], ids=["fused", "explicit"])
def test_silenced_heads(attentions: bool, per_block: bool, tmp_path: Path) -> None:
    """``head_mask`` of transformers 4: as if the projections behind the attentions did not read
    those heads."""
    mine, their = both("ForCausalLM", tmp_path, torch.float64, **CROSS)
    mask = torch.rand(3, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64).round(
        decimals=1
    )
    mask = mask if per_block else mask[:1]
    for layer, row in zip(their.data2vec_text.encoder.layer, mask.expand(3, 4), strict=True):
        for attention in (layer.attention, layer.crossattention):
            attention.output.dense.weight.data *= row.repeat_interleave(8)
    states = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    given = {**padded("right"), "encoder_hidden_states": states, "output_hidden_states": True}
    out = mine(**given, head_mask=mask if per_block else mask[0], output_attentions=attentions)
    want = their(**given)
    torch.testing.assert_close(out.logits, want.logits, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        out.past_key_values[2][0], their_keys_and_values(want.past_key_values, 2, True)[0]
    )
    if attentions:
        sums = mask.expand(3, 4)[:, None, :, None].expand(3, 3, 4, 5)
        torch.testing.assert_close(
            torch.stack(out.cross_attentions)[..., :5, :].sum(-1), sums, atol=1e-12, rtol=0
        )


def test_a_head_mask_of_another_shape() -> None:
    with pytest.raises(
        ConfigError, match=r"head_mask=of shape \(5,\) must be \(4,\), heads, or \(3, 4\)"
    ):
        ours("Model")(**padded("right"), head_mask=torch.ones(5))
