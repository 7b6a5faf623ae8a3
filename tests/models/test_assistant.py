"""Google's drafter as a checkpoint: what is written opens and says the same, what does not fit is one clear error.

Seen to fail when broken: orders not checked, or kept in the type they are stored in; a target not compared; names and
shapes not compared; padding in view. Its numbers are judged in tests/parity/test_assistant.py.
"""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import agp
from agp.models.assistant import Assistant, Config, load_assistant, newest
from agp.models.decoder import Decoder
from tests.models.checkpoints import WEIGHTS, edit_config, edit_weights, parameters
from tests.toys import config_dict, random_weights, text, toy

ORDER = "masked_embedding.token_ordering"
GIVEN = {
    "model_type": "gemma4_assistant",
    "backbone_hidden_size": 32,
    "use_ordered_embeddings": True,
    "num_centroids": 8,
    "centroid_intermediate_top_k": 3,
}
TEXT = {
    "model_type": "gemma4_text",
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "num_kv_shared_layers": 3,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
}


def write(folder: Path, **changes) -> Assistant:
    """One for the toys, in the Hugging Face layout; `changes` are of its inner config."""
    given = GIVEN | {"text_config": config_dict("gemma4", "no per-layer inputs") | TEXT | changes}
    model = Assistant(Config.from_dict(given))
    random_weights(model)
    model.masked_embedding.token_ordering = mx.array(np.random.default_rng(0).permutation(96))
    mine = ("pre_projection", "post_projection", "masked_embedding")
    weights = {n if n.startswith(mine) else f"model.{n}": a for n, a in parameters(model).items()}
    mx.save_safetensors(str(folder / WEIGHTS), weights)
    (folder / "config.json").write_text(json.dumps(given))
    return model


def draft(model: Decoder, assistant: Assistant, tokens: mx.array, pad: mx.array | None = None) -> list[mx.array]:
    cache = model.make_cache()
    cache.pad = pad
    stream = model.blocks(model.embed(tokens, pad=pad), cache=cache)
    state = model.normed(stream.hidden[:, -1:])
    place, shared = newest(cache, model.config)
    said, state = assistant.step(model.embed_vectors(tokens[:, -1:]), state, place, shared)
    return [*said, state]


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint32])
def test_what_is_written_opens(kind, tmp_path):
    written, target = write(tmp_path), toy()
    edit_weights(tmp_path, lambda weights: weights.update({ORDER: weights[ORDER].astype(kind)}))
    opened = load_assistant(tmp_path, target.config)
    assert opened.masked_embedding.token_ordering.dtype == mx.uint32
    for a, b in zip(draft(target, opened, text()), draft(target, written, text()), strict=True):
        assert mx.array_equal(a, b)


def test_weights_are_of_the_type_asked_for_and_the_order_stays_whole(tmp_path):
    write(tmp_path)
    opened = parameters(load_assistant(tmp_path, toy().config, dtype="bfloat16"))
    assert opened.pop(ORDER).dtype == mx.uint32
    assert {a.dtype for a in opened.values()} == {mx.bfloat16}
    with pytest.raises(ValueError, match="dtype is 'int8'; one of float32, float16, bfloat16 is needed"):
        load_assistant(tmp_path, toy().config, dtype="int8")


def test_only_some_tokens_are_scored_and_they_are_different_ones(tmp_path):
    ids, logits, state = draft(toy(), write(tmp_path), text())
    assert ids.shape == logits.shape == (2, 1, 3 * 96 // 8) and state.shape == (2, 1, 32)
    assert all(len(set(row)) == ids.shape[-1] for row in ids[:, 0].tolist())


@pytest.mark.parametrize("window", [6, 64])
def test_padding_is_not_read(window, tmp_path):
    target, assistant = toy(sliding_window=window), write(tmp_path, sliding_window=window)
    alone = text(1, 12)
    padded = mx.concatenate([mx.full((1, 5), 7), alone], axis=1)
    rows = mx.concatenate([padded, text(1, 17, seed=1)])
    for a, b in zip(draft(target, assistant, rows, mx.array([5, 0])), draft(target, assistant, alone), strict=True):
        assert mx.allclose(a[:1], b, atol=1e-5)


def test_without_borrowers_the_last_block_of_each_kind_lends(tmp_path):
    target, assistant = toy(name="shares none"), write(tmp_path)
    cache = target.make_cache()
    target(text(), cache=cache)
    _, shared = newest(cache, target.config)
    for kind, layer in (("sliding_attention", 4), ("full_attention", 5)):
        assert mx.array_equal(shared[kind].keys, cache.layers[layer].held().keys)
    draft(target, assistant, text())


def put(**new):
    return lambda folder: edit_weights(
        folder, lambda w: w.update({k.replace("__", "."): edit(w[k.replace("__", ".")]) for k, edit in new.items()})
    )


def remove(name):
    return lambda folder: edit_weights(folder, lambda w: w.pop(name))


def config(**changes):
    return lambda folder: edit_config(folder, **changes)


def inner(**changes):
    def edit(folder):
        given = json.loads((folder / "config.json").read_text())
        edit_config(folder, text_config=given["text_config"] | changes)

    return edit


def twice(order):
    return np.concatenate([order[:1], order[:-1]])


PRE, UP = "pre_projection.weight", "model.layers.1.mlp.up_proj.weight"
FAULTS = {
    "a missing projection": (remove(PRE), ["missing: pre_projection.weight"]),
    "a missing order": (remove(ORDER), [f"missing: {ORDER}"]),
    "an order that names a token twice": (
        put(masked_embedding__token_ordering=twice),
        [f"{ORDER} is no order of all 96 tokens: 1 are not in it"],
    ),
    "an order that leaves the vocabulary": (
        put(masked_embedding__token_ordering=lambda order: np.where(order < 3, order - 3, order)),
        ["no order of all 96 tokens: 3 are not in it"],
    ),
    "an order in fractions": (
        put(masked_embedding__token_ordering=lambda order: order.astype(np.float32)),
        [f"{ORDER} is F32; I64, I32, U32 are read"],
    ),
    "a short order": (
        put(masked_embedding__token_ordering=lambda order: order[:-1]),
        [f"{ORDER} is [95], config.json makes it [96]"],
    ),
    "a wrong shape": (put(pre_projection__weight=lambda a: a[:, :-1]), [f"{PRE} is [16, 63]", "makes it [16, 64]"]),
    "NaN and an order that names a token twice": (
        put(pre_projection__weight=lambda a: a * np.nan, masked_embedding__token_ordering=twice),
        [f"NaN or infinity in: {PRE}", "no order of all 96 tokens"],
    ),
    "a missing file": (lambda folder: (folder / WEIGHTS).unlink(), ["no model*.safetensors here"]),
    "an index that is none": (
        lambda folder: (folder / f"{WEIGHTS}.index.json").write_text("{'"),
        ["model.safetensors.index.json is not JSON"],
    ),
    "a decoder": (
        config(model_type="gemma4_text"),
        ["model_type is 'gemma4_text'; an assistant's is gemma4_assistant"],
    ),
    "no inner config": (config(text_config=None), ["text_config is a NoneType where an object was due"]),
    "another family inside": (
        inner(model_type="gemma3n_text"),
        ["model_type is gemma4_assistant, but text_config says 'gemma3n_text'"],
    ),
    "blocks that tell tokens apart": (
        inner(hidden_size_per_layer_input=8, use_double_wide_mlp=True),
        ["hidden_size_per_layer_input is 8; an assistant has none", "use_double_wide_mlp is True"],
    ),
    "blocks that make keys": (
        inner(num_kv_shared_layers=2),
        ["num_kv_shared_layers is 2 of 3 blocks; here all share"],
    ),
    "blocks of no type": (inner(layer_types=7), ["does not describe a gemma4_text"]),
    "a width that is no number": (inner(hidden_size="16"), ["hidden_size is '16'; a whole number"]),
    "centroids that do not divide": (config(num_centroids=7), ["num_centroids is 7, which does not divide", "96"]),
    "more centroids asked for than there are": (
        config(centroid_intermediate_top_k=9),
        ["centroid_intermediate_top_k is 9 of 8 centroids"],
    ),
    "several numbers that are none": (
        config(backbone_hidden_size=0, num_centroids=8.0, use_ordered_embeddings="yes"),
        [
            "backbone_hidden_size is 0; a whole number from 1",
            "num_centroids is 8.0",
            "use_ordered_embeddings is 'yes'; true or false is needed",
        ],
    ),
    "a head of its own": (config(tie_word_embeddings=False), ["tie_word_embeddings is false"]),
    "a quantized one": (config(quantization={"bits": 4, "group_size": 64}), ["the weights are quantized"]),
}


@pytest.mark.parametrize("spoil, named", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named(spoil, named, tmp_path):
    write(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError) as error:
        load_assistant(tmp_path, toy().config)
    for part in [str(tmp_path), *named]:
        assert part in str(error.value)


MISFITS = {
    "another width": ({"hidden_size": 48}, ["backbone_hidden_size is 32, the target has 48"]),
    "another vocabulary": (
        {"vocab_size": 128, "vocab_size_per_layer_input": 128},
        ["vocab_size is 96, the target has 128"],
    ),
    "wider heads in one kind": (
        {"global_head_dim": 32},
        ["head_dim of block 2 (full_attention) is 16, the target has 32"],
    ),
    "fewer heads of keys, and wider ones": (
        {"num_key_value_heads": 1, "head_dim": 16},
        [
            "num_key_value_heads of block 1 (sliding_attention) is 2, the target has 1",
            "num_key_value_heads of block 2 (full_attention) is 2, the target has 1",
            "head_dim of block 0 (sliding_attention) is 8, the target has 16",
        ],
    ),
    "no full attention": (
        {"layer_types": ["sliding_attention"] * 6},
        ["block 2 reads full_attention keys, of which the target makes none"],
    ),
}


@pytest.mark.parametrize("changes, named", MISFITS.values(), ids=MISFITS)
def test_another_target_is_refused_with_all_that_is_wrong(changes, named, tmp_path):
    write(tmp_path)
    remove(UP)(tmp_path)
    with pytest.raises(ValueError) as error:
        load_assistant(tmp_path, toy(**changes).config)
    for part in ["missing: layers.1.mlp.up_proj.weight", *named]:
        assert part in str(error.value)


def test_a_target_of_the_other_family_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="assistants draft for Gemma 4; this target is a gemma3n"):
        load_assistant(tmp_path, toy("gemma3n").config)


def test_a_decoders_door_does_not_open_an_assistant(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="model_type is 'gemma4_assistant'"):
        agp.load(tmp_path)
