"""What is done at a site does that and nothing else.

Seen to fail when broken: a tap that records a block's input, `patch` on the wrong AltUp stream, `zero` of a block that
returns zeros, an `At` without its `sites`.
"""

import mlx.core as mx
import pytest

from agp.sites import PARTS, Site, add, gate, patch, record, skip, zero
from export.ruler import measure
from tests.toys import CASES, text, toy

BOTH = pytest.mark.parametrize("family", ["gemma4", "gemma3n"])


def every_site(model):
    return [Site(i, part) for i in range(model.config.num_layers) for part in PARTS]


@pytest.mark.parametrize("family, name", CASES)
def test_taps_change_nothing(family, name):
    model, tokens = toy(family, name), text()
    out = model(tokens, taps=every_site(model))
    assert mx.array_equal(out.logits, model(tokens).logits)
    assert {x.shape for x in out.hidden.values()} == {(2, 17, 32)}
    assert len(out.hidden) == 3 * model.config.num_layers


@pytest.mark.parametrize("family, name", CASES)
def test_patching_a_run_into_itself_changes_nothing(family, name):
    model, tokens = toy(family, name), text()
    clean = model(tokens, taps=every_site(model))
    active = getattr(model.config, "altup_active_idx", 0)
    parts = {site: x for site, x in clean.hidden.items() if site.part != "block"}
    for values in (parts, *({Site(i, "block"): clean.hidden[Site(i, "block")]} for i in (0, 3, 5))):
        assert mx.array_equal(model(tokens, visit=patch(values, active)).logits, clean.logits)


@BOTH
def test_patching_another_run_in_whole_gives_that_run(family):
    model, tokens, others = toy(family), text(), text(seed=1)
    taken, site = {}, Site(model.config.num_layers - 1, "block")
    expected = model(others, visit=record(taken, [site])).logits
    assert mx.array_equal(model(tokens, visit=patch(taken)).logits, expected)
    assert not mx.allclose(model(tokens).logits, expected)


@BOTH
@pytest.mark.parametrize("act", [zero, skip])
def test_a_zeroed_block_still_depends_on_the_prompt_and_changes_the_answer(family, act):
    model = toy(family)
    for site in every_site(model):
        if act is skip and model.config.num_producers - 2 <= site.layer < model.config.num_producers:
            continue  # others borrow from these
        a, b = (model(text(seed=s), visit=act([site])).logits for s in (0, 1))
        assert not mx.allclose(a, b, atol=1e-3)
        assert not mx.allclose(a, model(text()).logits, atol=1e-3), f"ablating {site} changed nothing"


@BOTH
def test_zeroing_both_parts_leaves_the_residual(family):
    model, tokens, i = toy(family), text(), 3
    out = model(tokens, visit=zero([Site(i, "attn"), Site(i, "mlp")]), taps=[Site(i, "attn"), Site(i, "mlp")])
    assert all(not x.any() for x in out.hidden.values())


@BOTH
def test_a_producer_that_was_skipped_is_named_by_its_borrower(family):
    model = toy(family)
    with pytest.raises(ValueError, match="block 4 borrows the sliding_attention keys and values of block 2"):
        model(text(), visit=skip([Site(2, "block")]))


@BOTH
def test_skipping_a_producer_with_a_cache_is_refused_at_once(family):
    model = toy(family)
    with pytest.raises(ValueError, match="block 0 was skipped, so this cache has a hole"):
        model(text(), cache=model.make_cache(), visit=skip([Site(0, "block")]))


@BOTH
def test_gates_open_are_the_model_and_closed_are_zero(family):
    model, tokens, sites = toy(family), text(), [Site(1, "block"), Site(4, "mlp")]
    opened = model(tokens, visit=gate(dict.fromkeys(sites, 1.0))).logits
    assert measure("open", opened, model(tokens).logits).passed
    closed = model(tokens, visit=gate(dict.fromkeys(sites, 0.0))).logits
    assert measure("closed", closed, model(tokens, visit=zero(sites)).logits).passed


@BOTH
def test_adding_shifts_the_state_by_that_much(family):
    model, tokens, site = toy(family), text(), Site(2, "mlp")
    vector = mx.random.normal((32,))
    moved = model(tokens, visit=add({site: vector}, scale=0.5), taps=[site]).hidden[site]
    assert measure("state", moved, model(tokens, taps=[site]).hidden[site] + 0.5 * vector).passed


@BOTH
def test_visits_reach_the_last_positions_only(family):
    model, tokens = toy(family), text()
    whole = model(tokens, taps=every_site(model))
    for act in (zero, skip, lambda sites: gate(dict.fromkeys(sites, 0.0))):
        for site in (Site(5, "block"), Site(3, "mlp"), Site(4, "attn")):
            expected = model(tokens, visit=act([site])).logits[:, -2:]
            assert measure(str(site), model(tokens, visit=act([site]), last=2).logits, expected).passed
    assert model(tokens, taps=[Site(5, "block")], last=2).hidden[Site(5, "block")].shape == (2, 2, 32)
    narrowed = model(tokens, taps=every_site(model), last=2)
    for site, state in narrowed.hidden.items():
        assert measure(str(site), state, whole.hidden[site][:, -state.shape[1] :]).passed


@BOTH
def test_a_site_the_model_lacks_is_an_error_not_a_no_op(family):
    model = toy(family)
    with pytest.raises(ValueError, match=r"no such site: 6.block; blocks are 0..5"):
        model(text(), taps=[Site(6, "block")])
    with pytest.raises(ValueError, match="no such site: 1.mpl"):
        model(text(), visit=zero([Site(1, "mpl")]))


@BOTH
def test_a_patch_of_the_wrong_shape_says_so(family):
    model = toy(family)
    with pytest.raises(ValueError, match=r"the patch for 1.mlp has shape \(2, 3, 32\)"):
        model(text(), visit=patch({Site(1, "mlp"): mx.zeros((2, 3, 32))}))
