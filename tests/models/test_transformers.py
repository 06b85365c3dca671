"""Hugging Face's encoders, every tensor random, and ours with the same weights give the same hidden
states."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from d2v_pretrain.models.block import Block
from d2v_pretrain.models.encoder import Encoder
from d2v_pretrain.models.positions import ConvPositions, RelativeBias
from d2v_pretrain.models.stems import AudioStem, TextStem, VisionStem
from d2v_pretrain.types import Batch, Mask

transformers = pytest.importorskip("transformers")

D, HEADS, DEPTH = 24, 4, 3
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


def randomised(model: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return model.eval()


def copied(model: Encoder, pairs: Iterator[tuple[str, list[Tensor]]]) -> Encoder:
    """Ours with their tensors; several are stacked. Every parameter of ours must be named once."""
    state = {
        name: torch.cat(tensors).reshape(model.get_parameter(name).shape) for name, tensors in pairs
    }
    model.load_state_dict(state)
    return model.eval()


def affine(ours: str, *theirs: nn.Module) -> Iterator[tuple[str, list[Tensor]]]:
    yield f"{ours}.weight", [m.weight.detach() for m in theirs]  # type: ignore[misc]
    if all(getattr(m, "bias", None) is not None for m in theirs):
        yield f"{ours}.bias", [m.bias.detach() for m in theirs]  # type: ignore[misc]


def audio_pairs(hf: Any) -> Iterator[tuple[str, list[Tensor]]]:
    for i, layer in enumerate(hf.feature_extractor.conv_layers):
        yield from affine(f"stem.convs.{i}", layer.conv)
        yield from affine(f"stem.norms.{i}", layer.layer_norm)
    yield from affine("stem.norm", hf.feature_projection.layer_norm)
    yield from affine("stem.projection", hf.feature_projection.projection)
    yield "stem.mask_vector", [hf.masked_spec_embed.detach()]
    for i, layer in enumerate(hf.encoder.pos_conv_embed.layers):
        yield from affine(f"positions.convs.{i}", layer.conv)
    yield from affine("input_norm", hf.encoder.layer_norm)
    for i, layer in enumerate(hf.encoder.layers):
        a, name = layer.attention, f"blocks.{i}"
        yield from affine(f"{name}.attention.qkv", a.q_proj, a.k_proj, a.v_proj)
        yield from affine(f"{name}.attention.out", a.out_proj)
        yield from affine(f"{name}.norm1", layer.layer_norm)
        yield from affine(f"{name}.fc1", layer.feed_forward.intermediate_dense)
        yield from affine(f"{name}.fc2", layer.feed_forward.output_dense)
        yield from affine(f"{name}.norm2", layer.final_layer_norm)


def text_pairs(hf: Any) -> Iterator[tuple[str, list[Tensor]]]:
    e = hf.embeddings
    yield from affine("stem.token", e.word_embeddings)
    # Their only segment vector is added to every token, as if to its position.
    yield (
        "stem.position.weight",
        [e.position_embeddings.weight.detach() + e.token_type_embeddings.weight.detach()],
    )
    yield from affine("stem.norm", e.LayerNorm)
    for i, layer in enumerate(hf.encoder.layer):
        a, name = layer.attention, f"blocks.{i}"
        yield from affine(f"{name}.attention.qkv", a.self.query, a.self.key, a.self.value)
        yield from affine(f"{name}.attention.out", a.output.dense)
        yield from affine(f"{name}.norm1", a.output.LayerNorm)
        yield from affine(f"{name}.fc1", layer.intermediate.dense)
        yield from affine(f"{name}.fc2", layer.output.dense)
        yield from affine(f"{name}.norm2", layer.output.LayerNorm)


def vision_pairs(hf: Any) -> Iterator[tuple[str, list[Tensor]]]:
    yield "extra", [hf.embeddings.cls_token.detach()]
    yield "stem.mask_vector", [hf.embeddings.mask_token.detach()]
    yield from affine("stem.projection", hf.embeddings.patch_embeddings.projection)
    yield "bias.table", [hf.encoder.relative_position_bias.relative_position_bias_table.detach()]
    for i, layer in enumerate(hf.encoder.layer):
        a, name = layer.attention.attention, f"blocks.{i}"
        yield f"{name}.attention.qkv.weight", [m.weight.detach() for m in (a.query, a.key, a.value)]
        yield f"{name}.attention.q_bias", [a.query.bias.detach()]
        yield f"{name}.attention.v_bias", [a.value.bias.detach()]
        yield from affine(f"{name}.attention.out", layer.attention.output.dense)
        yield from affine(f"{name}.norm1", layer.layernorm_before)
        yield from affine(f"{name}.norm2", layer.layernorm_after)
        yield from affine(f"{name}.fc1", layer.intermediate.dense)
        yield from affine(f"{name}.fc2", layer.output.dense)
        yield f"{name}.gamma1", [layer.lambda_1.detach()]
        yield f"{name}.gamma2", [layer.lambda_2.detach()]
    yield from affine("final_norm", hf.layernorm)


def agree(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def audio() -> tuple[Any, Encoder]:
    config = transformers.Data2VecAudioConfig(
        hidden_size=D,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=2 * D,
        conv_dim=(8, 8, 8),
        conv_kernel=(10, 3, 2),
        conv_stride=(5, 2, 2),
        layerdrop=0.0,
        num_conv_pos_embeddings=3,
        conv_pos_kernel_size=5,
        num_conv_pos_embedding_groups=4,
    )
    hf = randomised(transformers.Data2VecAudioModel(config))
    stem = AudioStem(D, ((8, 10, 5), (8, 3, 2), (8, 2, 2)), masked=True)
    positions = ConvPositions(D, 3, 15, 4)
    model = Encoder(stem, partial(Block, D, HEADS, 2.0), D, DEPTH, positions, zero_padding=True)
    return hf, copied(model, audio_pairs(hf))


def audio_batch() -> tuple[Tensor, Tensor, Batch]:
    wave, lengths = (
        torch.randn(3, 400, generator=torch.Generator().manual_seed(1)),
        torch.tensor([400, 333, 180]),
    )
    attended = torch.arange(400) < lengths[:, None]
    wave = wave * attended
    return wave, attended.long(), Batch(wave, torch.arange(3), lengths)


def test_audio_without_padding(audio: tuple[Any, Encoder]) -> None:
    hf, model = audio
    wave, _, batch = audio_batch()
    with torch.no_grad():
        agree(model.encode(Batch(wave, batch.ids)).x, hf(wave).last_hidden_state)


def test_audio_with_padding_and_its_leak(audio: tuple[Any, Encoder]) -> None:
    hf, model = audio
    wave, attended, batch = audio_batch()
    with torch.no_grad():
        theirs, ours = (
            hf(wave, attention_mask=attended, output_hidden_states=True),
            model.encode(batch, DEPTH, "block"),
        )
    valid = ours.valid
    assert valid is not None
    agree(ours.x[valid], theirs.last_hidden_state[valid])
    for layer, state in zip(ours.layers, theirs.hidden_states[1:], strict=True):
        agree(layer[valid], state[valid])


def test_audio_with_masked_frames(audio: tuple[Any, Encoder]) -> None:
    hf, model = audio
    wave, _, _ = audio_batch()
    batch = Batch(wave, torch.arange(3))
    local = model.stem(batch)
    masked = torch.rand(local.x.shape[:2], generator=torch.Generator().manual_seed(2)) < 0.4
    with torch.no_grad():
        theirs = hf(wave, mask_time_indices=masked)
        agree(model(model.stem.replaced(batch, local, Mask.of(masked))).x, theirs.last_hidden_state)


def test_text_with_and_without_padding() -> None:
    config = transformers.Data2VecTextConfig(
        vocab_size=40,
        hidden_size=D,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=2 * D,
        max_position_embeddings=22,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    hf = randomised(transformers.Data2VecTextModel(config, add_pooling_layer=False))
    model = Encoder(TextStem(D, 40, 20), partial(Block, D, HEADS, 2.0), D, DEPTH, input_norm=False)
    copied(model, text_pairs(hf))
    lengths = torch.tensor([12, 7, 3])
    ids = torch.randint(4, 40, (3, 12), generator=torch.Generator().manual_seed(1))
    attended = torch.arange(12) < lengths[:, None]
    padded = ids.masked_fill(~attended, 1)
    with torch.no_grad():
        agree(model.encode(Batch(ids, torch.arange(3))).x, hf(ids).last_hidden_state)
        theirs = hf(padded, attention_mask=attended.long()).last_hidden_state
        agree(model.encode(Batch(padded, torch.arange(3), lengths)).x[attended], theirs[attended])


def test_vision_with_and_without_masked_patches() -> None:
    config = transformers.Data2VecVisionConfig(
        hidden_size=D,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=2 * D,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-6,
        use_mask_token=True,
        use_shared_relative_position_bias=True,
        use_mean_pooling=False,
    )
    hf = randomised(transformers.Data2VecVisionModel(config))
    block = partial(
        Block, D, HEADS, 2.0, norm_first=True, layer_scale=0.1, norm_eps=1e-6, key_bias=False
    )
    model = Encoder(
        VisionStem(D, 8, masked=True),
        block,
        D,
        DEPTH,
        bias=RelativeBias(HEADS, (4, 4)),
        extra_tokens=1,
        input_norm=False,
        final_norm=True,
        norm_eps=1e-6,
    )
    copied(model, vision_pairs(hf))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    masked = torch.rand(2, 16, generator=torch.Generator().manual_seed(2)) < 0.5
    batch = Batch(images, torch.arange(2))
    with torch.no_grad():
        theirs, ours = hf(images, output_hidden_states=True), model.encode(batch, DEPTH, "block")
        agree(ours.x, theirs.last_hidden_state)
        agree(torch.stack(ours.layers), torch.stack(theirs.hidden_states[1:])[:, :, 1:])
        shown = model.stem.replaced(batch, model.stem(batch), Mask.of(masked))
        agree(model(shown).x, hf(images, bool_masked_pos=masked).last_hidden_state)
