"""Adapter folders that are damaged, mixed or made to deceive: each is refused with one error that says why."""

import json

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from agp.adapter_files import CONFIG, FILE, PEFT_FILE, load, save, save_peft
from agp.adapters import Adapter, Part, attach, detach
from tests.test_adapters import stir
from tests.toys import toy

PARTS = {"layers.0.self_attn.q_proj": Part(2, 1.5), "layers.1.mlp.up_proj": Part(3, 1.5)}


def written(folder, dora=False, peft=False):
    model = toy()
    attach(model, Adapter(parts=PARTS, dora=dora))
    stir(model)
    adapter, arrays = detach(model)
    if peft:
        save_peft(folder, "gemma4_text", adapter, arrays)
    else:
        save(folder, "gemma4_text", adapter, arrays, model="toy")
    return adapter, arrays


@pytest.mark.parametrize("peft", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_what_was_written_is_read_to_the_bit(dora, peft, tmp_path):
    adapter, arrays = written(tmp_path, dora, peft)
    saved = load(tmp_path)
    assert saved.adapter == adapter and saved.arrays.keys() == arrays.keys()
    assert all(mx.array_equal(saved.arrays[name], a) for name, a in arrays.items())
    assert peft or saved.about["model"] == "toy"


def test_unequal_scales_are_folded_and_say_the_same(tmp_path):
    model = toy()
    attach(model, Adapter(parts={"layers.0.mlp.up_proj": Part(2, 3.0), "layers.0.mlp.gate_proj": Part(4, 1.0)}))
    stir(model)
    adapter, arrays = detach(model)
    save(tmp_path, "gemma4_text", adapter, arrays)
    saved = load(tmp_path)
    assert set(saved.adapter.parts.values()) == {Part(2, 1.0), Part(4, 1.0)}
    name = "layers.0.mlp.up_proj.lora_b"
    assert mx.allclose(saved.arrays[name], 3 * arrays[name], rtol=1e-6)


def config(**changes):
    def act(folder):
        file = folder / CONFIG
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return act


def tensors(edit):
    def act(folder):
        file = next(f for f in (folder / FILE, folder / PEFT_FILE) if f.exists())
        arrays = load_file(file)
        edit(arrays)
        save_file(arrays, file)

    return act


def first(arrays, ending):
    return next(name for name in sorted(arrays) if name.endswith(ending))


def drop(ending):
    return tensors(lambda arrays: arrays.pop(first(arrays, ending)))


def put(name, array):
    return tensors(lambda arrays: arrays.update({name: array}))


def zero(arrays):
    for name in arrays:
        arrays[name] = arrays[name] * (0 if name.endswith("lora_b") else 1)


def cut(folder):
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-100])


Q = "model.layers.0.self_attn.q_proj"
OURS = {
    "no weights": (lambda f: (f / FILE).unlink(), "neither adapters.safetensors nor adapter_model.safetensors"),
    "two kinds of weights": (lambda f: (f / PEFT_FILE).write_bytes((f / FILE).read_bytes()), "both"),
    "no config": (lambda f: (f / CONFIG).unlink(), "adapter_config.json is missing"),
    "a truncated file": (cut, "truncated at"),
    "A without B": (drop(".lora_b"), f"without A or without B: {Q.removeprefix('model.')}"),
    "A and B of other ranks": (put(f"{Q}.lora_a", np.ones((32, 5), np.float32)), "do not fit each other"),
    "a tensor that is none of an adapter's": (put("model.norm.weight", np.ones(3, np.float32)), "no part of"),
    "a tower": (put("model.vision_tower.q_proj.lora_a", np.ones((3, 3), np.float32)), "no part of a text model's"),
    "whole numbers": (put(f"{Q}.lora_a", np.ones((32, 3), np.int32)), f"no floats in {Q}.lora_a"),
    "LoRA and DoRA": (put(f"{Q}.m", np.ones(32, np.float32)), "LoRA and DoRA mixed"),
    "no effect": (tensors(zero), "without effect: every lora_b is zero"),
    "no scale": (config(lora_parameters={"rank": 3}), "no number for scale"),
    "parameters that are none": (config(lora_parameters=[3]), "no number for scale"),
    "a full fine-tune": (config(fine_tune_type="full"), "fine_tune_type is 'full'"),
    "said to be DoRA": (config(fine_tune_type="dora"), "says dora, the tensors say otherwise"),
    "ranks that are none": (config(ranks=[1]), "ranks is"),
    "a rank beyond the tensor": (config(ranks={Q: 9}), "has rank 9, its tensors do not"),
    "a rank that cuts numbers off": (config(ranks={Q: 1}), "has rank 1, its tensors do not"),
    "a dropout that is none": (config(lora_parameters={"scale": 1.0, "dropout": "no"}), "dropout is 'no'"),
}
THEIRS = {
    "another method": (config(peft_type="IA3"), "peft_type is 'IA3'"),
    "trained biases": (config(bias="all"), "bias is 'all'"),
    "whole modules": (config(modules_to_save=["lm_head"]), "modules_to_save is"),
    "another rank": (config(r=7), "stated are rank 7"),
    "no alpha": (config(lora_alpha=None), "alpha None"),
    "patterns that are none": (config(alpha_pattern=[2]), "alpha_pattern is"),
    "said to be DoRA": (config(use_dora=True), "use_dora is True, the tensors say otherwise"),
    "a dropout that is none": (config(lora_dropout=[]), "dropout is"),
    "A without B": (drop("lora_B.weight"), "without A or without B"),
}


@pytest.mark.parametrize("name", OURS)
def test_a_spoilt_folder_of_ours_is_refused(name, tmp_path):
    spoil, said = OURS[name]
    written(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=said):
        load(tmp_path)


@pytest.mark.parametrize("name", THEIRS)
def test_a_spoilt_folder_of_pefts_is_refused(name, tmp_path):
    spoil, said = THEIRS[name]
    written(tmp_path, peft=True)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=said):
        load(tmp_path)
