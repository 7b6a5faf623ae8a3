"""Each kind of bad input ends in one error that names everything wrong at once.

Seen to fail when broken: headers trusted beyond the file's size, links followed, an index that climbs, NaN let by, a
tied head's copy not compared.
"""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import agp
from tests.models.checkpoints import WEIGHTS, edit_config, edit_weights, refusal, shard, write
from tests.toys import text, toy

INDEX = f"{WEIGHTS}.index.json"
UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"
LAST = "model.per_layer_projection_norm.weight"


def remove(name):
    return lambda folder: edit_weights(folder, lambda w: w.pop(name))


def replace(name, value):
    return lambda folder: edit_weights(folder, lambda w: w.update({name: value(w[name]) if callable(value) else value}))


def rename(old, new):
    return lambda folder: edit_weights(folder, lambda w: w.update({new: w.pop(old)}))


def copy(old, new, plus=0):
    return lambda folder: edit_weights(folder, lambda w: w.update({new: w[old] + plus}))


def put(name, index, value):
    def edit(weights):
        weights[name] = weights[name].copy()
        weights[name].flat[index] = value

    return lambda folder: edit_weights(folder, edit)


def config(**changes):
    return lambda folder: edit_config(folder, **changes)


def cut(count):
    return lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:count])


def append(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"xx")


def header(edit):
    """Rewrite the header of model.safetensors as `edit` says."""

    def act(folder):
        raw = (folder / WEIGHTS).read_bytes()
        size = int.from_bytes(raw[:8], "little")
        text = edit(json.loads(raw[8 : 8 + size]))
        text = text if isinstance(text, bytes) else json.dumps(text).encode()
        (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])

    return act


def claim(**facts):
    return header(lambda h: h | {UP: h[UP] | facts})


def index(edit):
    def act(folder):
        shard(folder)
        listed = json.loads((folder / INDEX).read_text())
        edit(listed["weight_map"])
        (folder / INDEX).write_text(json.dumps(listed))

    return act


def link_out(folder):
    outside = folder.parent / "outside.safetensors"
    (folder / WEIGHTS).rename(outside)
    (folder / WEIGHTS).symlink_to(outside)


def pickle(folder):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")


def both(first, second):
    return lambda folder: (first(folder), second(folder))


FAULTS = {
    "a missing tensor": (remove(UP), ["missing: layers.0.mlp.up_proj.weight"]),
    "an extra tensor": (replace("model.layers.9.x", np.ones(3)), ["not part of this model: model.layers.9.x"]),
    "a renamed tensor": (
        rename(UP, f"{UP}s"),
        ["missing: layers.0.mlp.up_proj.weight", f"not part of this model: {UP}s"],
    ),
    "a wrong shape": (
        replace(UP, lambda a: a[:-1]),
        [f"wrong shape: {UP} is [47, 32]", "config.json makes it [48, 32]"],
    ),
    "a wrong type": (replace(UP, lambda a: a.astype(np.int32)), [f"{UP} is I32", "F32, F16, BF16 are read"]),
    "two tensors of one name": (
        copy(UP, f"language_{UP}"),
        [f" {UP}", f"language_{UP}", "would both be layers.0.mlp.up_proj.weight"],
    ),
    "a truncated file": (cut(-1000), ["truncated at", "cut off: model.", "Fetch the file again"]),
    "a file cut within its header": (cut(100), [f"{WEIGHTS} has 100 bytes and no room for its header"]),
    "an empty file": (cut(0), [f"{WEIGHTS} has 0 bytes"]),
    "bytes after the last tensor": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + b"xx"),
        ["2 bytes after its last tensor"],
    ),
    "a header that is not JSON": (header(lambda h: b"{'a"), ["a header that is not JSON"]),
    "a header that is a list": (header(lambda h: [1, 2]), ["makes no sense"]),
    "a header beyond any size": (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 64), ["no room for its header"]),
    "offsets that do not fit the shape": (claim(data_offsets=[0, 8]), ["makes no sense", UP]),
    "negative offsets": (claim(data_offsets=[-6144, 0]), ["makes no sense", UP]),
    "an unknown type": (claim(dtype="F8_E4M3"), ["makes no sense", UP]),
    "a type that is no name": (claim(dtype=[]), ["makes no sense", UP]),
    "a shape that is none": (claim(shape="48"), ["makes no sense", UP]),
    "overlapping tensors": (header(lambda h: h | {UP: h[UP] | {"data_offsets": [0, 6144]}}), ["starts at byte"]),
    "NaN": (put(UP, 5, np.nan), [f"NaN or infinity in: {UP}"]),
    "infinity": (put("model.norm.weight", 0, -np.inf), ["NaN or infinity in: model.norm.weight"]),
    "NaN in two tensors": (both(put(UP, 5, np.nan), put(DOWN, 0, np.inf)), [UP, DOWN]),
    "a head that is not the embedding": (
        copy("model.embed_tokens.weight", "lm_head.weight", plus=1),
        ["ties the head to the embedding, but lm_head.weight differs from model.embed_tokens.weight"],
    ),
    "more blocks than weights": (config(num_hidden_layers=7), ["num_hidden_layers is 7, but layer_types names 6"]),
    "another width": (
        config(hidden_size=64),
        ["wrong shape: ", "is [32], config.json makes it [64]", "more"],
    ),
    "fewer producers than stored": (config(num_kv_shared_layers=1), ["missing: layers.4.self_attn.k_proj.weight"]),
    "an unknown model type": (config(model_type="llama"), ["model_type is 'llama'", "gemma4, gemma4_text"]),
    "no model type": (config(model_type=None), ["model_type is None"]),
    "another text type inside": (config(model_type="gemma3n", text_config={"model_type": "llama"}), ["says llama"]),
    "a text config that is none": (config(text_config=[1]), ["text_config is a list"]),
    "fewer rows than ids": (config(vocab_size_per_layer_input=80), ["80 for a vocabulary of 96"]),
    "experts": (config(enable_moe_block=True), ["with experts"]),
    "a number that is none": (
        config(num_hidden_layers="six", head_dim=1.5),
        ["num_hidden_layers is 'six'", "head_dim is 1.5"],
    ),
    "a number beyond reason": (config(num_hidden_layers=10**9), ["num_hidden_layers is 1000000000"]),
    "a real that is none": (config(rms_norm_eps="small"), ["rms_norm_eps is 'small'"]),
    "rope that is none": (config(rope_parameters=[1]), ["rope_parameters holds [1]"]),
    "a config that is not JSON": (lambda f: (f / "config.json").write_text("{"), ["config.json is not JSON"]),
    "a config that is a list": (lambda f: (f / "config.json").write_text("[]"), ["holds a list"]),
    "no config": (lambda f: (f / "config.json").unlink(), ["config.json is missing"]),
    "a pickle": (pickle, ["only pickle files here (pytorch_model.bin)", "never"]),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), ["no model*.safetensors here"]),
    "a link out of the folder": (link_out, [f"{WEIGHTS} points outside the folder"]),
    "an index that climbs": (index(lambda m: m.update({UP: "../x.safetensors"})), ["outside the folder: ../x.safe"]),
    "an index with a full path": (
        index(lambda m: m.update({UP: "/etc/x.safetensors"})),
        ["outside the folder: /etc/x"],
    ),
    "an index that names the folder above": (index(lambda m: m.update({UP: ".."})), ["outside the folder: .."]),
    "an index to a pickle": (index(lambda m: m.update({UP: "a.bin"})), ["points to a.bin; only safetensors"]),
    "an index to nothing": (
        index(lambda m: m.update({UP: "model-9.safetensors"})),
        ["model-9.safetensors, which is missing"],
    ),
    "an index to a number": (index(lambda m: m.update({UP: 3})), ["points to 3"]),
    "a shard that is gone": (
        both(shard, lambda f: next(f.glob("model-*")).unlink()),
        ["which is missing", "missing: "],
    ),
    "an index that lists too much": (
        index(lambda m: m.update(ghost=m[UP])),
        ["lists what its file does not hold: ghost"],
    ),
    "an index that lists too little": (index(lambda m: m.pop(UP)), [f"does not list: {UP}"]),
    "an index with two files mixed up": (
        index(lambda m: m.update({UP: m[LAST]})),
        [f"another file than the one that holds: {UP}"],
    ),
    "a shard the index does not know": (
        both(index(lambda m: None), lambda f: (f / WEIGHTS).write_bytes(b"")),
        [f"does not know of: {WEIGHTS}"],
    ),
    "an index without a map": (lambda f: (f / INDEX).write_text("{}"), ["has no weight_map"]),
    "a tokenizer that is none": (lambda f: (f / "tokenizer.json").write_text("{"), ["tokenizer.json is not one"]),
    "two faults in the weights": (
        both(remove(UP), replace(DOWN, lambda a: a.T)),
        ["missing: layers.0", f"wrong shape: {DOWN}"],
    ),
    "a fault in each place": (
        both(config(model_type="llama"), both(cut(-1000), lambda f: (f / "tokenizer.json").write_text("{"))),
        ["for 3 reasons", "model_type is 'llama'", "truncated", "tokenizer.json is not one"],
    ),
}


@pytest.mark.parametrize("spoil, named", FAULTS.values(), ids=FAULTS)
def test_a_spoilt_checkpoint_is_refused_and_the_fault_named(spoil, named, tmp_path):
    refusal(spoil, named, tmp_path / "checkpoint")


def test_the_checkpoint_that_all_those_spoil_is_sound(tmp_path):
    write(tmp_path)
    agp.load(tmp_path)


def test_a_long_list_is_cut_short_and_counted(tmp_path):
    write(tmp_path)
    edit_weights(tmp_path, lambda w: [w.pop(name) for name in list(w)[:50]])
    with pytest.raises(ValueError, match=r"missing: .* and 30 more") as error:
        agp.load(tmp_path)
    assert len(str(error.value)) < 2500


def test_weights_are_not_read_before_everything_else_is_sound(tmp_path, monkeypatch):
    write(tmp_path)
    remove(UP)(tmp_path)
    monkeypatch.setattr(mx, "load", lambda *_: pytest.fail("read"))
    with pytest.raises(ValueError, match="missing"):
        agp.load(tmp_path)


OPTIONS = {
    "an unknown type and place": ({"dtype": "int8", "table": "cloud"}, ["dtype is 'int8'", "table is 'cloud'"]),
    "a revision of a folder": ({"revision": "main"}, ["revision='main' is for Hub ids"]),
    "odd bits": ({"quantize": 7}, ["bits is 7; one of 2, 3, 4, 5, 6, 8"]),
    "odd groups and words": (
        {"quantize": {"group_size": 10, "mode": "x"}},
        ["quantize has no mode", "group_size is 10"],
    ),
    "no width that can be packed": ({"quantize": {"group_size": 128}}, ["nothing can be quantized"]),
    "spare keys of Gemma 4": ({"spare_kv": True}, ["spare_kv is for Gemma 3n"]),
}


@pytest.mark.parametrize("options, named", OPTIONS.values(), ids=OPTIONS)
def test_an_option_that_makes_no_sense_is_refused(options, named, tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError) as error:
        agp.load(tmp_path, **options)
    for part in named:
        assert part in str(error.value)


def test_a_table_that_is_not_there_cannot_stay_on_disk(tmp_path):
    write(tmp_path, name="no per-layer inputs")
    with pytest.raises(ValueError, match="has no per-layer embedding table"):
        agp.load(tmp_path, table="disk")


@pytest.mark.parametrize("source", ["no/such/folder", "/no/such", "~/no-such-folder-here", "a b"])
def test_a_folder_that_is_not_there_is_said_to_be(source):
    with pytest.raises(ValueError, match="there is no folder"):
        agp.load(source)


def test_a_hub_id_without_a_network_is_said_to_be_out_of_reach():
    with pytest.raises(ValueError, match="the Hub cannot be reached for nobody/nothing-of-this-name"):
        agp.load("nobody/nothing-of-this-name")


def test_a_file_is_no_folder(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="is a file; give the folder"):
        agp.load(tmp_path / WEIGHTS)


def other_cache():
    return toy(num_kv_shared_layers=0).make_cache()


CALLS = {
    "ids beyond the vocabulary": (lambda: [[3, 96]], {}, "go from 3 to 96; this vocabulary is 0..95"),
    "negative ids": (lambda: [[-1, 3]], {}, "go from -1 to 3"),
    "an empty prompt": (lambda: mx.zeros((1, 0), mx.int32), {}, "the prompt is empty"),
    "a cache from another model": (lambda: [[3]], {"cache": other_cache}, "made by another model"),
    "a prompt longer than the context": (lambda: text(1, 129), {}, "129 tokens do not fit the context of 128"),
}


@pytest.mark.parametrize("tokens, how, said", CALLS.values(), ids=CALLS)
def test_a_call_that_makes_no_sense_is_refused(tokens, how, said, tmp_path):
    write(tmp_path)
    model = agp.load(Path(tmp_path)).model
    with pytest.raises(ValueError, match=said):
        model(tokens(), **{name: make() for name, make in how.items()})


def test_two_faults_in_one_call_are_both_named():
    with pytest.raises(ValueError, match=r"go from 2 to 99.*129 tokens do not fit"):
        toy()(mx.concatenate([text(1, 128), mx.array([[99]])], axis=1))
