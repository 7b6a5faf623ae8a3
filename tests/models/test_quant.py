"""Quantized checkpoints open as mlx-lm wrote them; quantizing while loading and a CPU's way to multiply change nothing.

Seen to fail when broken: pieces of the weight out of order, half a gradient, config.json's statements not compared,
weights dequantized before their turn, borrowers' packed keys and values kept.
"""

import json
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.utils import load_model, quantize_model, save_model

import agp
from agp import quant
from agp.quant import FEW, Packing
from tests.models.checkpoints import WEIGHTS, edit_config, parameters, read, write
from tests.toys import text, toy

WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "hidden_size_per_layer_input": 32}
OLD = {"rms_norm_eps": 1e-6, "rope_local_base_freq": 1e4, "rope_theta": 1e6, "altup_num_inputs": 4}
OLD |= {"altup_coef_clip": 120.0, "altup_correct_scale": True, "altup_active_idx": 0, "model_type": "gemma3n_text"}
TOKENS = text()
SHARP = 1e-5  # float32 sums in another order


def close(a, b, tolerance=SHARP):
    a, b = (np.array(v.astype(mx.float32)) for v in (a, b))
    np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), rtol=0)


def converted(folder, family, bits, group, predicate=None):
    """What mlx-lm makes of a toy, saved, and its own logits; with a cache, for without its Gemma 3n is wrong."""
    changes: dict[str, Any] = {"spare_kv": True} if family == "gemma3n" else {}
    write(folder / "float", family, **WIDE, **changes)
    if family == "gemma3n":  # mlx-lm knows it in the multimodal spelling, with keys and values for borrowers, only
        file = folder / "float" / WEIGHTS
        inner = json.loads((folder / "float" / "config.json").read_text())
        edit_config(folder / "float", model_type="gemma3n", text_config=inner | OLD | {"spare_kv": False})
        named = {name.replace("model.", "model.language_model.", 1): a for name, a in read(file).items()}
        mx.save_safetensors(str(file), named)
    model, config = load_model(folder / "float")
    model, config = quantize_model(model, config, group, bits, quant_predicate=predicate)
    save_model(folder / "packed", model)
    (folder / "packed" / "config.json").write_text(json.dumps(config))
    return folder / "packed", model(TOKENS, cache=model.make_cache())


@pytest.mark.parametrize("bits, group", [(2, 32), (3, 32), (4, 64), (5, 32), (6, 64), (8, 64)])
def test_what_mlx_lm_quantizes_opens_at_every_width(bits, group, tmp_path):
    folder, expected = converted(tmp_path, "gemma4", bits, group)
    model = agp.load(folder).model
    assert set(quant.quantized_paths(model).values()) == {Packing(bits, group)}
    close(model(TOKENS).logits, expected, 1e-4)


def mixed(path, module):
    if path.endswith("down_proj"):
        return {"bits": 6, "group_size": 32}
    return {"bits": 8, "group_size": 64} if "embed" in path else "self_attn" not in path


@pytest.mark.parametrize("family", ["gemma4", "gemma3n"])
def test_what_mlx_lm_quantizes_in_several_ways_at_once_opens(family, tmp_path):
    folder, expected = converted(tmp_path, family, 4, 64, mixed)
    model = agp.load(folder).model
    packed = quant.quantized_paths(model)
    assert packed["layers.1.mlp.down_proj"] == Packing(6, 32) and packed["embed_tokens"] == Packing(8, 64)
    assert packed["layers.1.mlp.up_proj"] == Packing(4, 64) and "layers.1.self_attn.q_proj" not in packed
    close(model(TOKENS).logits, expected, 1e-4)
    edit_config(folder, quantization={"bits": 4, "group_size": 64}, quantization_config=None)
    assert quant.quantized_paths(agp.load(folder).model) == packed  # shapes say what config.json leaves out


CLAIMS = {
    "another width for all": (
        {"bits": 8, "group_size": 64},
        "is 8 bits in groups of 64, the tensors are 4",
    ),
    "another width for one": (
        {"layers.1.mlp.up_proj": {"bits": 8}},
        "is 8 bits in groups of 64, its tensors are 4",
    ),
    "one that is not": ({"model.layers.1.mlp.up_proj": False}, "up_proj is not quantized, its tensors are 4 bits"),
    "another mode": ({"mode": "mxfp4"}, "quantization mode 'mxfp4'; AGP opens 'affine'"),
    "another library's": ({"bits": None, "quant_method": "awq"}, "quantized by awq"),
}


@pytest.mark.parametrize("claim, said", CLAIMS.values(), ids=CLAIMS)
def test_a_config_that_contradicts_its_packed_weights_is_refused(claim, said, tmp_path):
    folder, _ = converted(tmp_path, "gemma4", 4, 64)
    given = json.loads((folder / "config.json").read_text())["quantization"]
    edit_config(folder, quantization=given | claim)
    with pytest.raises(ValueError, match=said):
        agp.load(folder)


def test_a_config_that_speaks_of_packing_where_there_is_none_is_refused(tmp_path):
    write(tmp_path)
    edit_config(tmp_path, quantization={"bits": 4, "group_size": 64})
    with pytest.raises(ValueError, match="4 bits in groups of 64, but no tensor is quantized"):
        agp.load(tmp_path)


SPOILT = {
    "scales gone": (
        lambda w: w.pop("model.norm.weight") is None or w.pop(f"{UP}.biases"),
        "missing, though .*scales is there",
    ),
    "scales cut": (lambda w: w.update({f"{UP}.scales": w[f"{UP}.scales"][:, :0]}), "no packing of .* has these shapes"),
    "weight cut": (lambda w: w.update({f"{UP}.weight": w[f"{UP}.weight"][:, 1:]}), "no packing of .* has these shapes"),
    "NaN": (lambda w: w.update({f"{UP}.scales": w[f"{UP}.scales"] * mx.nan}), "NaN or infinity in: .*scales"),
}
UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("spoil, said", SPOILT.values(), ids=SPOILT)
def test_spoilt_packed_weights_are_refused(spoil, said, tmp_path):
    folder, _ = converted(tmp_path, "gemma4", 4, 64)
    weights = read(folder / WEIGHTS)
    spoil(weights)
    mx.save_safetensors(str(folder / WEIGHTS), weights)
    with pytest.raises(ValueError, match=said):
        agp.load(folder)


def test_packed_weights_are_not_packed_again(tmp_path):
    folder, _ = converted(tmp_path, "gemma4", 4, 64)
    with pytest.raises(ValueError, match="quantized already"):
        agp.load(folder, quantize=4)


@pytest.mark.parametrize("family", ["gemma4", "gemma3n"])
def test_quantizing_while_loading_is_quantizing_afterwards(family, tmp_path):
    model = write(tmp_path, family, **WIDE)
    loaded = agp.load(tmp_path, quantize=4)
    paths = quant.quantized_paths(loaded.model)
    assert set(paths.values()) == {Packing(4, 64)}
    assert not {p for p in paths if "per_layer_" in p.replace("tokens_per_layer", "") or ".altup." in p}
    assert {"embed_tokens", "embed_tokens_per_layer", "layers.0.mlp.up_proj"} <= paths.keys()
    nn.quantize(model, 64, 4, class_predicate=lambda path, m: path in paths)
    for name, a in parameters(loaded.model).items():
        assert mx.array_equal(a, parameters(model)[name]), name
    close(loaded.model(TOKENS).logits, model(TOKENS).logits, 1e-4)


def test_widths_that_are_no_multiple_of_the_group_stay_float_and_are_named(tmp_path):
    changes: dict[str, Any] = WIDE | {"intermediate_size": 96}
    write(tmp_path, **changes)
    loaded = agp.load(tmp_path, quantize={"bits": 8, "group_size": 64})
    (note,) = loaded.notes
    assert "no multiple of 64: " in note and "layers.0.mlp.down_proj" in note and "up_proj" not in note
    assert isinstance(loaded.model.layers[0].mlp.down_proj, nn.Linear)


def test_bits_per_weight_are_counted(tmp_path):
    write(tmp_path, **WIDE)
    assert quant.bits_per_weight(toy(**WIDE)) == 32
    half = agp.load(tmp_path, dtype="bfloat16").model
    assert quant.bits_per_weight(half) == 16
    packed = agp.load(tmp_path, dtype="bfloat16", quantize=4).model
    assert 4.5 < quant.bits_per_weight(packed) < 7


def layer(kind=mx.float32, rows=96, width=128, bias=False):
    made = quant.Linear(width, rows, bias, 64, 4)
    made.set_dtype(kind)
    if bias:
        made.bias = mx.random.normal((rows,)).astype(kind)
    mx.eval(made.parameters())
    return made


def exact(x, made):
    wide = (a.astype(mx.float32) for a in (x, made.scales, made.biases))
    x, scales, biases = wide
    return x @ mx.dequantize(made.weight, scales, biases, made.group_size, made.bits).T


@pytest.mark.parametrize("kind, tolerance", [(mx.float32, SHARP), (mx.float16, 1e-3), (mx.bfloat16, 8e-3)])
@pytest.mark.parametrize("rows", [1, FEW - 1, FEW, 40])
def test_a_cpu_multiplies_to_the_last_bit_of_each_type(kind, tolerance, rows):
    made, x = layer(kind), mx.random.normal((rows, 128)).astype(kind)
    assert isinstance(made, nn.QuantizedLinear)
    got = made(x)
    assert (got.shape, got.dtype) == ((rows, 96), nn.QuantizedLinear.__call__(made, x).dtype)
    close(got, exact(x, made), tolerance)
    close(made(x.reshape(rows, 1, 128)), got[:, None], tolerance)


def test_a_bias_is_added():
    made, x = layer(bias=True), mx.random.normal((FEW, 128))
    close(made(x), exact(x, made) + made.bias)


def test_a_large_layer_is_multiplied_in_pieces(monkeypatch):
    made, x = layer(), mx.random.normal((2, 20, 128))
    expected = made(x)
    monkeypatch.setattr(quant, "PIECE", 128 * 10)
    close(made(x), expected)


def test_a_tied_head_multiplies_as_mlx_does():
    table = quant.Embedding(96, 128, 64, 4)
    for rows in (1, 40):
        x = mx.random.normal((rows, 128))
        close(table.as_linear(x), nn.QuantizedEmbedding.as_linear(table, x))


@pytest.mark.parametrize("rows", [2, 40])
def test_gradients_pass_through_packed_layers(rows):
    made, x, out = layer(), mx.random.normal((2, rows, 128)), mx.random.normal((2, rows, 96))
    weight = mx.dequantize(made.weight, made.scales, made.biases, 64, 4)
    expected = out @ weight
    loss = lambda x: (made(x) * out).sum()
    for f in (loss, mx.checkpoint(loss)):
        close(mx.grad(f)(x), expected)
    close(mx.compile(mx.grad(loss))(x), expected)


def test_few_dequantized_layers_at_a_time_are_in_memory():
    """More than one, for MLX allocates some tasks ahead."""
    layers = [layer(rows=512, width=512) for _ in range(24)]
    one = 512 * 512 * 4

    def loss(x):
        for made in layers:
            x = made(x)
        return x.sum()

    x = mx.random.normal((FEW, 512))
    for f in (loss, mx.grad(loss)):
        mx.eval(x)
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval(f(x))
        assert mx.get_peak_memory() - before < 8 * one


def test_layers_are_those_of_this_machine(tmp_path):
    write(tmp_path, **WIDE)
    made = agp.load(tmp_path, quantize=4).model.layers[0].mlp.up_proj
    cpu = mx.default_device() == mx.cpu
    assert type(made) is (quant.Linear if cpu else nn.QuantizedLinear)
