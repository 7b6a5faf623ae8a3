"""Google's drafter against transformers: what it says and hands on, draft after draft, on its own and as they use it.

Their generation leaves keys of refused drafts in view: of the first one, and beyond the window of all. It is followed
with just those keys, step by step; what `newest` would read is shown to be the same without them.

Seen to fail when broken: the position one early, or growing with the drafts; a window of one key fewer or more; state
and vector in the other order; the state handed on before it is normed; keys of the first lender; the farthest
centroids, or one fewer; the order read across groups; a soft cap; padding in view.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest
import torch
from transformers import (
    Gemma4AssistantConfig,
    Gemma4AssistantForCausalLM,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    Gemma4UnifiedAssistantConfig,
    Gemma4UnifiedAssistantForCausalLM,
    Gemma4UnifiedTextConfig,
)

import agp
from agp.cache import KV
from agp.models.assistant import Assistant, Said, load_assistant, newest
from agp.models.decoder import Decoder
from export.ruler import Distance, measure
from tests.parity.compared import judge
from tests.parity.reference import array
from tests.toys import config_dict, spread

OWN = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "num_kv_shared_layers": 3,
    "num_attention_heads": 8,
    "intermediate_size": 24,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
    "use_double_wide_mlp": False,
    "tie_word_embeddings": True,
}
HEADS = {
    "centroids": {"use_ordered_embeddings": True, "num_centroids": 8, "centroid_intermediate_top_k": 3},
    "every token": {},
}
PLAIN = (Gemma4TextConfig, Gemma4AssistantConfig, Gemma4AssistantForCausalLM)
UNIFIED = (Gemma4UnifiedTextConfig, Gemma4UnifiedAssistantConfig, Gemma4UnifiedAssistantForCausalLM)


def modes(kept: property) -> property:
    """Theirs, but for a check by which 5.23 refuses every model in which all blocks share: that is every assistant."""

    def get(self):
        count = self.num_hidden_layers
        return ["reuse"] * count if self.num_kv_shared_layers == count else kept.fget(self)

    return property(get)


for text_config in (Gemma4TextConfig, Gemma4UnifiedTextConfig):
    text_config.kv_sharing_modes = modes(text_config.kv_sharing_modes)


class Four(NamedTuple):
    target: Any  # theirs
    drafter: Any
    model: Decoder  # ours
    assistant: Assistant


def draw(model: torch.nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    kept = [(path, b) for path, b in model.named_buffers() if path.endswith("layer_scalar")]
    with torch.no_grad():
        for path, weight in [*model.named_parameters(), *kept]:
            weight.normal_(*spread(path, weight.ndim))
        for path, order in model.named_buffers():
            if path.endswith("token_ordering"):
                order.copy_(torch.randperm(order.numel()))


def make_four(folder: Path, name: str, head: str, classes=PLAIN, seed: int = 0, **changes) -> Four:
    given = config_dict("gemma4", name) | changes
    text_class, config_class, model_class = classes
    target = Gemma4ForCausalLM._from_config(Gemma4TextConfig(**given), attn_implementation="sdpa")
    text = {k: v for k, v in (given | OWN).items() if classes is PLAIN or "per_layer_input" not in k}
    config = config_class(text_config=text_class(**text), backbone_hidden_size=32, **HEADS[head])
    drafter = model_class._from_config(config, attn_implementation="sdpa")
    for model, part in ((target, "target"), (drafter, "drafter")):
        draw(model, seed)
        model.save_pretrained(folder / part)
    ours = agp.load(folder / "target").model
    return Four(target.eval().double(), drafter.eval().double(), ours, load_assistant(folder / "drafter", ours.config))


def whole(said: Said, count: int) -> np.ndarray:
    """Logits of all tokens, as transformers tells them: those that were not scored lie one below the lowest."""
    out = np.full((*said.ids.shape[:2], count), float(said.logits.min()) - 1)
    np.put_along_axis(out, np.array(said.ids), np.array(said.logits), axis=-1)
    return out


def chain(four: Four, pad: list[int] | None = None, count: int = 4) -> Iterator[Distance]:
    """Drafts that follow one prompt, each from the state of the one before."""
    target, drafter, model, assistant = four
    tokens = np.random.default_rng(0).integers(1, 96, (2, 19))
    text = None if pad is None else torch.from_numpy(np.arange(19) >= np.array(pad)[:, None]).long()
    how = {"use_cache": True, "output_hidden_states": True, "return_shared_kv_states": True}
    with torch.no_grad():
        seen = target(torch.from_numpy(tokens), attention_mask=text, **how)
    their_state, their_token = seen.hidden_states[-1][:, -1:], seen.logits[:, -1:].argmax(-1)
    cache = model.make_cache()
    cache.pad = None if pad is None else mx.array(pad)
    stream = model.blocks(model.embed(mx.array(tokens), pad=cache.pad), cache=cache)
    state = model.normed(stream.hidden[:, -1:])
    token = mx.argmax(model.head(state), axis=-1)
    place, shared = newest(cache, model.config)
    for i in range(count):
        assert np.array_equal(token, their_token), f"draft {i}"
        both = torch.cat([target.get_input_embeddings()(their_token), their_state], dim=-1)
        with torch.no_grad():
            given = {"position_ids": torch.tensor([[19]]), "attention_mask": text}
            said = drafter(inputs_embeds=both, shared_kv_states=seen.shared_kv_states, **given)
        their_state, their_token = said.last_hidden_state, said.logits.argmax(-1)
        ours, state = assistant.step(model.embed_vectors(token), state, place, shared)
        yield measure(f"draft {i}", whole(ours, 96), array(said.logits))
        yield measure(f"state {i}", state, array(their_state))
        token = ours.likeliest


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "name", ["shares some", "a window of two", "a window larger than the text", "keys that are values", "other rope"]
)
def test_drafts_in_a_chain(name, head, tmp_path):
    judge(chain(make_four(tmp_path, name, head)))


def test_drafts_after_padding(tmp_path):
    judge(chain(make_four(tmp_path, "a window larger than the text", "centroids"), pad=[0, 5]))


def test_drafts_of_the_unified_kind(tmp_path):
    judge(chain(make_four(tmp_path, "shares some", "centroids", classes=UNIFIED)))


class Step(NamedTuple):
    """One call of their drafter."""

    position: int
    keys: dict[str, int]  # how many of each kind it was given
    logits: torch.Tensor
    state: torch.Tensor


def assisted(four: Four, prompt: list[int], length: int) -> tuple[list[int], list[Step]]:
    """What their generation writes, two drafts a round, and every step of the drafter on the way."""
    steps = []

    def watch(module, args, given, out):
        keys = {kind: kv[0].shape[2] for kind, kv in given["shared_kv_states"].items()}
        steps.append(Step(int(given["position_ids"]), keys, out.logits, out.last_hidden_state))

    four.drafter.generation_config.num_assistant_tokens = 2
    four.drafter.generation_config.num_assistant_tokens_schedule = "constant"
    four.target.generation_config.eos_token_id = None
    handle = four.drafter.register_forward_hook(watch, with_kwargs=True)
    how = {"assistant_model": four.drafter, "max_length": length, "do_sample": False}
    out = four.target.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), **how)
    handle.remove()
    return out[0].tolist(), steps


def follow(
    four: Four, prompt: list[int], length: int, steps: list[Step]
) -> tuple[list[int], list[int], list[Distance]]:
    """The same by ours: what it writes, how many of each round's drafts are kept, how far each step is from theirs."""
    model, assistant = four.model, four.assistant
    cache, text, drafts, kept = model.make_cache(), list(prompt), [], []
    new, left, distances = list(prompt), list(steps), []
    while True:
        stream = model.blocks(model.embed(mx.array([new]), end=cache.position + len(new)), cache=cache)
        normed = model.normed(stream.hidden[:, -len(drafts) - 1 :])
        chosen = np.array(mx.argmax(model.head(normed), axis=-1))[0].tolist()
        good = next((i for i, draft in enumerate(drafts) if draft != chosen[i]), len(drafts))
        text += chosen[: good + 1]
        kept += [good] if drafts else []
        if len(text) >= length:
            return text[:length], kept, distances
        refused, state = len(drafts) - good, normed[:, good : good + 1]
        cache.trim(refused)
        place, own = newest(cache, model.config)
        given = {kind: KV(*(a[:, :, : len(text)] for a in kv)) for kind, kv in stream.shared.items()}
        for kind, kv in stream.shared.items():
            fresh = kv.keys[:, :, : kv.keys.shape[2] - refused]
            assert mx.array_equal(own[kind].keys, fresh[:, :, fresh.shape[2] - own[kind].keys.shape[2] :])
        drafts, new = [], [text[-1]]
        while left and left[0].position == len(text) - 1:
            theirs = left.pop(0)
            assert theirs.keys == {kind: kv.keys.shape[2] for kind, kv in given.items()}
            said, state = assistant.step(model.embed_vectors(mx.array([new[-1:]])), state, place, given)
            distances.append(measure(f"draft at {theirs.position}", whole(said, 8), array(theirs.logits)))
            distances.append(measure(f"state at {theirs.position}", state, array(theirs.state)))
            drafts.append(said.likeliest.item())
            new.append(drafts[-1])


@pytest.mark.parametrize("window", [6, 64])
def test_drafts_of_their_assisted_generation(window, tmp_path):
    sizes = {"vocab_size": 8, "vocab_size_per_layer_input": 8, "sliding_window": window}
    four = make_four(tmp_path, "its own head", "centroids", seed=8, **sizes)
    prompt = [3, 5, 2, 7, 1, 4, 6, 3, 2, 5]
    written, steps = assisted(four, prompt, 24)
    text, kept, distances = follow(four, prompt, 24, steps)
    judge(distances)
    assert text == written
    assert len(distances) == 2 * len(steps) and set(kept) == {0, 1, 2}, "rounds that keep none, some and all"
