"""What every adapter must obey: no effect at first, the same as its adapted weight, gone when taken out."""

import json

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from agp.adapters import Adapter, Part, adapted, attach, dense, detach
from agp.quant import BITS, Packing, candidates, swap
from agp.regimes import Regime, nested
from agp.targets import SETS, design
from tests.toys import text, toy

KINDS = ("lora", "rslora", "dora")


def stir(model, size=0.05):
    """Give every adapter something to say."""
    for module in adapted(model).values():
        module.lora_b = size * mx.random.normal(module.lora_b.shape)
        if "m" in module:
            module.m = module.m * (1 + size * mx.random.normal(module.m.shape))


def packed(model, bits):
    """The same model, its linears quantized in groups of 32."""
    paths, _ = candidates(model, Packing(bits, 32))
    arrays = dict(tree_flatten(model.parameters()))
    parts = {path: mx.quantize(arrays[f"{path}.weight"], 32, bits) for path in paths}
    swap(model, dict.fromkeys(paths, Packing(bits, 32)))
    for path, three in parts.items():
        model.load_weights(
            [(f"{path}.{k}", a) for k, a in zip(("weight", "scales", "biases"), three, strict=True)], False
        )
    return model


WIDE = {"intermediate_size": 64, "head_dim": 16, "hidden_size": 64}


def close(a, b, limit=3e-5):
    assert mx.abs(a - b).max() <= limit * mx.abs(b).max(), mx.abs(a - b).max().item() / mx.abs(b).max().item()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["gemma4", "gemma3n"])
def test_a_fresh_adapter_changes_nothing_and_a_stirred_one_does(family, kind):
    model = toy(family)
    before = model(text()).logits
    attach(model, design(model, "all", kind=kind, rank=4))
    if kind == "dora":
        close(model(text()).logits, before)
    else:
        assert mx.array_equal(model(text()).logits, before)
    stir(model)
    assert mx.abs(model(text()).logits - before).max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [None, *BITS])
def test_an_adapted_layer_is_a_linear_with_its_adapted_weight(kind, bits):
    """On float and on every packed width. Seen to fail with the crossed term of `length` left out (dora)."""
    model = toy("gemma4", **WIDE)
    model = packed(model, bits) if bits else model
    attach(model, design(model, "all", kind=kind, rank=4))
    stir(model)
    for module in adapted(model).values():
        x = mx.random.normal((2, 9, dense(module.base).shape[1]))
        close(module(x), x @ module.weight().T)


def test_a_bias_is_added_once_and_not_scaled():
    model = toy("gemma4", "biases in the attention")
    attach(model, design(model, "attention", kind="dora", rank=2))
    stir(model)
    for module in adapted(model).values():
        module.base.bias = mx.random.normal(module.base.bias.shape)
        x = mx.random.normal((1, 3, dense(module.base).shape[1]))
        close(module(x), x @ module.weight().T + module.base.bias)


@pytest.mark.parametrize("kind", KINDS)
def test_taken_out_and_put_back_it_gives_the_same_bits(kind):
    model = toy("gemma3n")
    before = model(text()).logits
    attach(model, design(model, "mlp", kind=kind, rank=3))
    stir(model)
    first = model(text()).logits
    mine = detach(model)
    assert mx.array_equal(model(text()).logits, before)
    attach(model, design(model, "attention", rank=2))
    stir(model)
    assert not mx.array_equal(model(text()).logits, first)
    detach(model)
    attach(model, *mine)
    assert mx.array_equal(model(text()).logits, first)


def test_only_the_adapter_trains():
    model = toy("gemma4")
    attach(model, design(model, "o_proj", rank=2, kind="dora"))
    names = {name for name, _ in tree_flatten(model.trainable_parameters())}
    assert names == {f"layers.{i}.self_attn.o_proj.{x}" for i in range(6) for x in ("lora_a", "lora_b", "m")}


def test_named_sets_leave_out_what_nobody_uses():
    model = toy("gemma3n")
    paths = {name: set(design(model, name).parts) for name in SETS}
    assert paths["o_proj"] < paths["attention"] < paths["all"] > paths["mlp"]
    assert "layers.3.self_attn.k_proj" in paths["attention"] and "layers.4.self_attn.k_proj" not in paths["all"]
    assert "layers.0.laurel.linear_left" in paths["all"] and "layers.0.per_layer_input_gate" in paths["all"]
    assert {p.split(".")[1] for p in design(model, "mlp", last=2).parts} == {"4", "5"}


def test_keys_nobody_uses_are_refused_with_the_reason():
    """Seen to fail with `useless` answering None."""
    model = toy("gemma3n", spare_kv=True)
    with pytest.raises(ValueError, match="block 5 attends to the keys and values of block 3; nobody uses its own"):
        attach(model, Adapter(parts={"layers.5.self_attn.v_proj": Part(2, 1.0)}))


def test_a_file_names_paths_and_ranks(tmp_path):
    model, file = toy("gemma4"), tmp_path / "sites.json"
    file.write_text(json.dumps({"layers.1.mlp.up_proj": 2, "layers.2.mlp.up_proj": None}))
    parts = design(model, str(file), rank=5, alpha=10, kind="rslora").parts
    assert parts == {"layers.1.mlp.up_proj": Part(2, 10 / 2**0.5), "layers.2.mlp.up_proj": Part(5, 10 / 5**0.5)}
    attach(model, Adapter(parts=parts))
    assert {path: m.rank for path, m in adapted(model).items()} == {p: part.rank for p, part in parts.items()}


WRONG = {
    "an unknown path": (
        lambda m: Adapter(parts={"layers.0.mlp.upproj": Part(2, 1.0)}),
        "no linear at layers.0.mlp.upproj",
    ),
    "a norm": (lambda m: Adapter(parts={"layers.0.input_layernorm": Part(2, 1.0)}), "no linear at"),
    "no path": (lambda m: Adapter(parts={}), "names no linear"),
    "a rank beyond the layer": (lambda m: Adapter(parts={"layers.0.mlp.up_proj": Part(33, 1.0)}), "rank 33; 1 to 32"),
    "a scale that is no number": (
        lambda m: Adapter(parts={"layers.0.mlp.up_proj": Part(2, float("nan"))}),
        "scale nan; a number that is not 0",
    ),
    "no scale": (lambda m: Adapter(parts={"layers.0.mlp.up_proj": Part(2, 0.0)}), "scale 0.0"),
    "a dropout of all": (lambda m: design(m, "mlp", dropout=1.0), "dropout is 1.0"),
    "an unknown kind": (lambda m: design(m, "mlp", kind="qlora"), "kind is 'qlora'; one of lora, dora, rslora"),
    "an unknown set": (lambda m: design(m, "mpl"), "one of all, attention, mlp, o_proj, or a JSON file of ranks"),
    "more blocks than there are": (lambda m: design(m, "mlp", last=7), "last is 7; this model has 6"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_and_nothing_is_attached(name):
    make, said = WRONG[name]
    model = toy("gemma4")
    with pytest.raises(ValueError, match=said):
        attach(model, make(model))
    assert not adapted(model)


def test_arrays_must_all_land():
    model = toy("gemma4")
    attach(model, design(model, "o_proj", rank=2))
    adapter, arrays = detach(model)
    arrays["layers.9.x"] = arrays.pop("layers.0.self_attn.o_proj.lora_a")
    arrays["layers.1.self_attn.o_proj.lora_b"] = mx.zeros((3, 3))
    arrays["layers.2.self_attn.o_proj.lora_b"] *= float("nan")
    with pytest.raises(
        ValueError, match=r"missing: .*not part of it: layers.9.x; .* is \[3, 3\].*; NaN or infinity in"
    ):
        attach(model, adapter, arrays)
    assert not adapted(model)


def test_a_second_adapter_is_refused():
    model = toy("gemma4")
    attach(model, design(model, "mlp"))
    with pytest.raises(ValueError, match="attached already"):
        attach(model, Adapter(parts={"layers.0.self_attn.q_proj": Part(2, 1.0)}))


def test_clipped_coefficients_are_adapted_only_where_the_clip_is_idle():
    path = "layers.0.altup.prediction_coefs"
    tight = toy("gemma3n", "clipped coefficients")
    with pytest.raises(ValueError, match="clipped to 0.1 where they are used"):
        attach(tight, Adapter(parts={path: Part(2, 1.0)}))
    model = toy("gemma3n")
    before = model(text()).logits
    attach(model, Adapter(parts={path: Part(2, 1.0)}))
    close(model(text()).logits, before)


def test_a_nested_regime_runs_the_adapter_too():
    model = toy("gemma3n")
    attach(model, design(model, "mlp", rank=3))
    stir(model)
    small = nested(model, Regime(widths=(32,) * 6))
    plain = small(text()).logits
    stir(model, 0)
    assert not mx.array_equal(small(text()).logits, plain)


def test_dropout_acts_in_training_alone():
    model = toy("gemma4")
    attach(model, design(model, "mlp", dropout=0.5))
    stir(model)
    assert mx.array_equal(model(text()).logits, model(text()).logits)
    model.train()
    assert not mx.array_equal(model(text()).logits, model(text()).logits)
