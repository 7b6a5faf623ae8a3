"""The per-layer table on disk gives the bits that the table in memory gives.

Seen to fail when broken: bfloat16 read as float16, biases left out.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import agp
from agp.models import table as tables
from agp.products import Embedding
from tests.models.checkpoints import parameters, save, shard, write
from tests.toys import text

NAME = "model.embed_tokens_per_layer.weight"
PACKED: dict[str, Any] = {"hidden_size_per_layer_input": 32, "hidden_size": 64, "intermediate_size": 64}
IDS = [mx.array([[3, 3, 95], [0, 7, 3]]), mx.array([5]), mx.array([[[0]]])]


def pair(folder, **how):
    return (agp.load(folder, table=place, **how).model for place in ("disk", "memory"))


def identical(folder, **how):
    disk, memory = pair(folder, **how)
    for ids in IDS:
        rows, expected = disk.embed_tokens_per_layer(ids), memory.embed_tokens_per_layer(ids)
        assert (rows.shape, rows.dtype) == (expected.shape, expected.dtype) and mx.array_equal(rows, expected)
    assert mx.array_equal(disk(text()).logits, memory(text()).logits)


@pytest.mark.parametrize("dtype", [None, "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", [mx.float32, mx.float16, mx.bfloat16])
def test_rows_of_every_type_are_identical(kind, dtype, tmp_path):
    write(tmp_path, dtype=kind)
    identical(tmp_path, dtype=dtype)


@pytest.mark.parametrize("bits, group", [(2, 32), (3, 64), (4, 64), (5, 32), (6, 64), (8, 32)])
@pytest.mark.parametrize("kind", [mx.float32, mx.bfloat16])
def test_packed_rows_are_identical(kind, bits, group, tmp_path):
    model = write(tmp_path, dtype=kind, **PACKED)
    pack(tmp_path, model, bits, group)
    identical(tmp_path)
    identical(tmp_path, dtype="float16")


def pack(folder, model, bits, group):
    nn.quantize(model, group, bits, class_predicate=lambda path, m: path == "embed_tokens_per_layer")
    save(folder, model)


def test_gemma3n_reads_its_shorter_table_too(tmp_path):
    write(tmp_path, "gemma3n", "more words than rows")
    disk, memory = pair(tmp_path)
    tokens = mx.array([[79, 80, 95, 3]])
    assert mx.array_equal(disk(tokens).logits, memory(tokens).logits)


def test_the_table_may_lie_in_any_shard(tmp_path):
    write(tmp_path)
    shard(tmp_path, 4)
    identical(tmp_path)


def test_a_table_on_disk_holds_no_parameters_and_stands_in_no_gradients_way(tmp_path):
    write(tmp_path)
    disk, memory = pair(tmp_path)
    assert parameters(memory).keys() - parameters(disk).keys() == {"embed_tokens_per_layer.weight"}
    grads = []
    for model in (disk, memory):
        model.freeze()
        model.layers[0].mlp.unfreeze()
        loss = lambda m: nn.losses.cross_entropy(m(text()).logits, text(seed=1)).mean()
        grads.append(nn.value_and_grad(model, loss)(model)[1]["layers"][0]["mlp"]["up_proj"]["weight"])
    assert mx.array_equal(*grads) and mx.abs(grads[0]).max() > 0


def test_rows_that_do_not_exist_are_refused(tmp_path):
    write(tmp_path)
    disk, _ = pair(tmp_path)
    for ids in ([[96]], [[-1]]):
        with pytest.raises(ValueError, match="the table has rows 0..95"):
            disk.embed_tokens_per_layer(mx.array(ids))


@pytest.mark.parametrize("kind", [mx.float32, mx.bfloat16])
def test_a_row_without_numbers_is_refused_when_it_is_read(kind, tmp_path):
    model = write(tmp_path, dtype=kind)
    model.embed_tokens_per_layer.weight[7, 3] = mx.nan
    model.embed_tokens_per_layer.weight[9, 0] = mx.inf
    save(tmp_path, model)
    loaded = agp.load(tmp_path, table="disk").model
    loaded(mx.array([[1, 2, 3]]))
    with pytest.raises(ValueError, match=rf"{NAME} holds NaN or infinity in rows \[7, 9\]"):
        loaded(mx.array([[1, 7, 9]]))
    with pytest.raises(ValueError, match=f"NaN or infinity in: {NAME}"):
        agp.load(tmp_path, table="memory")


def test_left_to_itself_the_table_goes_to_disk_where_memory_is_short(tmp_path, monkeypatch):
    model = write(tmp_path)
    size = sum(a.nbytes for a in parameters(model).values())
    for free, where in ((size * 1.9, tables.DiskTable), (size * 2.1, Embedding)):
        monkeypatch.setattr(tables, "available", lambda free=free: free)
        loaded = agp.load(tmp_path)
        assert type(loaded.model.embed_tokens_per_layer) is where
        assert any("stays on disk" in note for note in loaded.notes) == (where is tables.DiskTable)
        assert type(agp.load(tmp_path, table="memory").model.embed_tokens_per_layer) is Embedding


def test_there_is_memory():
    assert 1e8 < tables.available() < 1e13


def test_rows_come_from_the_file_and_not_from_a_copy(tmp_path):
    write(tmp_path)
    disk, _ = pair(tmp_path)
    before = disk.embed_tokens_per_layer(mx.array([4]))
    tensor, mapped = disk.embed_tokens_per_layer._parts["weight"]
    with tensor.file.open("r+b") as file:
        file.seek(tensor.begin + 4 * mapped.shape[1] * 4)
        file.write(np.full(mapped.shape[1], 2.5, np.float32).tobytes())
    assert mx.array_equal(disk.embed_tokens_per_layer(mx.array([4])), mx.full(before.shape, 2.5))


def test_a_model_quantized_while_loading_says_that_a_table_on_disk_is_not(tmp_path):
    write(tmp_path, **PACKED)
    loaded = agp.load(tmp_path, quantize={"group_size": 32}, table="disk")
    assert any("as it is, not quantized" in note for note in loaded.notes)
    packed = agp.load(tmp_path, quantize={"group_size": 32}, table="memory").model
    assert isinstance(packed.embed_tokens_per_layer, nn.QuantizedEmbedding)
