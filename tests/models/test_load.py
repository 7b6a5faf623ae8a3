"""Every way a sound checkpoint is written opens, and gives the logits of the library that wrote it.

Seen to fail when broken: towers kept, spares kept, a local folder passed over for the Hub.
Gemma 3n's towers need a library that is not here, so that checkpoint is pieced together from parts transformers wrote.
"""

import json
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.numpy import load_file, save_file
from transformers import (
    Gemma3nConfig,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    Gemma4Config,
    Gemma4ForCausalLM,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
    Gemma4UnifiedForCausalLM,
    Gemma4UnifiedTextConfig,
)

import agp
from agp.models import folder as folders
from tests.models.checkpoints import (
    WEIGHTS,
    edit_config,
    edit_weights,
    parameters,
    shake,
    shard,
    theirs,
    write,
    write_tokenizer,
)
from tests.toys import config_dict, text

CLASSES = {"gemma4": (Gemma4ForCausalLM, Gemma4TextConfig), "gemma3n": (Gemma3nForCausalLM, Gemma3nTextConfig)}
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "position_embedding_size": 16}
AUDIO = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 32}
AUDIO |= {"subsampling_conv_channels": [8, 8]}
OLD = {  # how config.json was written before 5.x
    "gemma4": {"per_layer_config": None, "global_head_dim": 16},
    "gemma3n": {"rope_parameters": None, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "intermediate_size": 48},
}
TOKENS = text()


def saved(folder, family, **how):
    """What transformers gives for the toy it saved."""
    model_class, config_class = CLASSES[family]
    model = shake(model_class(config_class(**config_dict(family, "shares some"))))
    model.save_pretrained(folder, **how)
    return theirs(model, TOKENS)


def agree(folder, expected, **how):
    got = np.array(agp.load(folder, **how).model(TOKENS).logits.astype(mx.float32))
    np.testing.assert_allclose(got, expected, atol=3e-5 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("family", CLASSES)
def test_what_transformers_saves_in_shards_opens_with_new_and_old_configs(family, tmp_path):
    expected = saved(tmp_path, family, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    agree(tmp_path, expected)
    edit_config(tmp_path, **OLD[family])
    agree(tmp_path, expected)


def test_a_multimodal_gemma4_opens_without_its_towers(tmp_path):
    config = Gemma4Config(text_config=config_dict("gemma4", "shares some"), vision_config=VISION, audio_config=AUDIO)
    model = shake(Gemma4ForConditionalGeneration(config))
    model.save_pretrained(tmp_path)
    expected = theirs(model, TOKENS)

    def spoil(weights):
        towers = [name for name in weights if "tower" in name]
        assert {name.split(".")[1] for name in towers} == {"vision_tower", "audio_tower"}
        for name in towers:
            weights[name] = np.full_like(weights[name], np.nan)  # who reads them would complain

    edit_weights(tmp_path, spoil)
    agree(tmp_path, expected)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", "model.", ""])
def test_a_multimodal_gemma3n_opens_by_any_of_its_names(prefix, tmp_path):
    expected = saved(tmp_path, "gemma3n")
    weights = {name.replace("model.", prefix, 1): value for name, value in load_file(tmp_path / WEIGHTS).items()}
    for name in ("vision_tower.timm_model.conv.weight", "audio_tower.norm.weight", "embed_vision.embedding.weight"):
        weights[f"model.{name}"] = np.full((2, 3), np.nan, np.float32)
    save_file(weights, tmp_path / WEIGHTS)
    config = Gemma3nConfig(text_config=json.loads((tmp_path / "config.json").read_text()))
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    agree(tmp_path, expected)


def test_gemma4_unified_opens_as_the_gemma4_without_a_table_that_it_is(tmp_path):
    given = config_dict("gemma4", "keys that are values")
    for name in ("hidden_size_per_layer_input", "vocab_size_per_layer_input"):
        del given[name]
    model = shake(Gemma4UnifiedForCausalLM(Gemma4UnifiedTextConfig(**given)))
    model.save_pretrained(tmp_path)
    agree(tmp_path, theirs(model, TOKENS))


@pytest.mark.parametrize("family", CLASSES)
def test_tensors_that_nothing_uses_are_dropped(family, tmp_path):
    expected = saved(tmp_path, family)

    def add(weights):
        for name in ("k_proj", "v_proj", "k_norm", "v_norm"):
            weights[f"model.layers.5.self_attn.{name}.weight"] = np.full((3, 3), np.nan, np.float32)
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
        weights["model.rotary_emb.full_attention_inv_freq"] = np.ones(4, np.float32)
        weights["model.layers.0.mlp.up_proj.input_max"] = np.ones((), np.float32)

    edit_weights(tmp_path, add)
    agree(tmp_path, expected)


def test_spare_keys_and_values_stay_where_they_are_asked_for(tmp_path):
    whole = write(tmp_path, "gemma3n", spare_kv=True)
    edit_config(tmp_path, spare_kv=None)
    kept, dropped = (agp.load(tmp_path, spare_kv=wanted).model for wanted in (True, False))
    assert mx.array_equal(kept.layers[5].self_attn.k_proj.weight, whole.layers[5].self_attn.k_proj.weight)
    assert "k_proj" not in dropped.layers[5].self_attn
    assert mx.array_equal(kept(TOKENS).logits, dropped(TOKENS).logits)


def test_an_untied_head_is_read(tmp_path):
    model = write(tmp_path, "gemma4", "its own head")
    assert mx.array_equal(agp.load(tmp_path).model(TOKENS).logits, model(TOKENS).logits)


def test_weights_keep_the_type_they_are_stored_in_unless_another_is_asked_for(tmp_path):
    write(tmp_path, dtype=mx.bfloat16)
    for asked, kind in ((None, mx.bfloat16), ("float16", mx.float16), ("float32", mx.float32)):
        loaded = agp.load(tmp_path, dtype=asked)
        assert {a.dtype for a in parameters(loaded.model).values()} == {kind}
        assert loaded.model(TOKENS).logits.dtype == kind


def test_what_is_loaded_says_what_it_is(tmp_path):
    model = write(tmp_path)
    loaded = agp.load(str(tmp_path))
    assert (loaded.config, loaded.tokenizer, loaded.path, loaded.notes) == (model.config, None, tmp_path, ())
    write_tokenizer(tmp_path)
    assert agp.load(tmp_path).tokenizer.encode("ab") == [2, 262, 263]


def test_shards_and_one_file_are_the_same(tmp_path):
    model = write(tmp_path)
    shard(tmp_path, 3)
    assert mx.array_equal(agp.load(tmp_path).model(TOKENS).logits, model(TOKENS).logits)


def test_code_in_a_checkpoint_is_left_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("AGP_QUIET", raising=False)
    write(tmp_path)
    (tmp_path / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    edit_config(tmp_path, auto_map={"AutoModelForCausalLM": "modeling.Model"})
    loaded = agp.load(tmp_path)
    assert not (tmp_path / "ran").exists()
    assert any("auto_map" in note for note in loaded.notes) and "auto_map" in capsys.readouterr().err


def test_a_folder_wins_over_the_hub_and_the_hub_is_asked_for_no_code(tmp_path, monkeypatch):
    write(tmp_path / "owner" / "name")
    asked = []

    def snapshot(repo, revision, allow_patterns):
        asked.append((repo, revision))
        assert not [p for p in allow_patterns if p.endswith((".py", ".bin", "*"))]
        return str(tmp_path / "owner" / "name")

    monkeypatch.setattr(folders.huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.chdir(tmp_path)
    agp.load("owner/name")
    assert asked == []
    agp.load("owner/other", revision="main")
    assert asked == [("owner/other", "main")]


def test_links_into_the_blobs_of_the_hubs_cache_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    write(snapshot)
    blobs.mkdir()
    (snapshot / WEIGHTS).rename(blobs / "digest")
    (snapshot / WEIGHTS).symlink_to("../../blobs/digest")
    agp.load(snapshot)


ANSWER: Any = SimpleNamespace(status_code=404, headers={}, request=None)
REFUSALS = {
    "cannot be reached for owner/name at revision v1, which is not in its cache": LocalEntryNotFoundError("offline"),
    "the Hub does not know owner/name at revision v1": RepositoryNotFoundError("no", response=ANSWER),
}


@pytest.mark.parametrize("said, error", REFUSALS.items())
def test_a_hub_that_says_no_is_one_clear_error(said, error, monkeypatch):
    def refuse(*args, **how):
        raise error

    monkeypatch.setattr(folders.huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ValueError, match=said):
        agp.load("owner/name", revision="v1")
