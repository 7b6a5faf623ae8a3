"""A program that says something else is caught, one that rounds is not, and a decision may turn in a tie alone."""

import numpy as np
import pytest

from export import decisions, judges, verify
from export.ranges import Seen
from export.sample import Part, load, save

N, TAPS, CONCEPTS, FREE = 50, 2, 3, 5
RULES = {
    "taps": [4, 6],
    "exits": [1],
    "budget": 0,
    "gate": [None, 0.5],
    "accept": {"0.01": 1.0, "0.02": None},
    "revive": {"0.01": 0.5},
    "escalate": {"0.01": -0.2},
    "concepts": [{"name": str(n), "type": "bundle", "limit": 0.3} for n in range(CONCEPTS)],
    "codecs": {"4x": {"levels": [8, 3], "span": [-1, 1], "ties": [0.1, 0.2]}},
}


def truth(seed=0):
    rng = np.random.default_rng(seed)
    said = {name: rng.normal(size=(N, TAPS)) for name in ("leave", "leave_mended", "hope")}
    said |= {name: rng.normal(size=(N, 4 * TAPS)) for name in ("route", "route_mended")}
    said["concepts"] = rng.normal(size=(N, CONCEPTS))
    said["latents"] = 2 * np.maximum(rng.normal(size=(N, CONCEPTS + FREE)), 0)
    said |= {"size_4x": rng.integers(64, size=(N, 1)).astype(float), "levels_4x": rng.uniform(-3, 3, (N, 2))}
    inner = {"concepts": np.abs(said["concepts"] - 0.3), "latents": np.full((N, FREE), 5.0)}
    return Part([{} for _ in range(1)], [N], said, inner | {"size_4x": np.full((N, 1), 0.4)})


def compared(part, change):
    other = {name: x.copy() for name, x in part.said.items()}
    change(other)
    return verify.compare(
        "half", lambda entry, feed: {n: x.T[None, :, None] for n, x in other.items()}, {"many": part}, RULES
    )


def test_what_is_rounded_to_half_precision_passes():
    def rounded(said):
        for name in said:
            said[name] = said[name].astype(np.float16).astype(float)

    found = compared(truth(), rounded)
    assert found.passed and 60 < found.worst.psnr < 90
    assert sum(of.decisions for of in found.changes.values()) > 1000


def swap(one, other):
    def change(said):
        said[one], said[other] = said[other], said[one]

    return change


def put(name, at, value):
    def change(said):
        said[name][at] = value

    return change


WRONG = {
    "two outputs in each other's place": (swap("leave", "leave_mended"), None),
    "one output too loud": (lambda said: said.update(hope=1.01 * said["hope"]), None),
    "not a number": (put("hope", (3, 1), np.nan), None),
    "a concept that is not there": (
        lambda said: put("concepts", np.unravel_index(said["concepts"].argmax(), (N, CONCEPTS)), 0.29)(said),
        "concepts",
    ),
    "a latent from nowhere": (
        lambda said: put("latents", np.unravel_index(said["latents"].argmin(), (N, 8)), 1.0)(said),
        "latents",
    ),
    "another size": (lambda said: put("size_4x", (7, 0), said["size_4x"][7, 0] + 1)(said), "size 4x"),
    "another level": (lambda said: put("levels_4x", (7, 0), round(said["levels_4x"][7, 0]) + 1.2)(said), "levels 4x"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_caught(name):
    change, kind = WRONG[name]
    part = truth()
    part.said["levels_4x"][7, 0] = 1.45  # from the middle of eight: 1.5 is a level
    found = compared(part, change)
    assert not found.passed
    if kind is not None:
        assert {name for name, of in found.changes.items() if of.unexplained} == {kind}


def test_in_a_tie_a_decision_may_turn_and_what_hangs_on_it_is_not_held_against_the_program():
    part = truth()
    part.said["leave"][5, 0] = 1.0 + 1e-5
    part.inner["latents"][9, 0] = 0.001  # the fourth latent: free ones come after concepts
    part.said["latents"][9, 3:] = [1.0, 0.0, 2.0, 0.0, 0.0]
    part.inner["size_4x"][11, 0] = 0.01

    def turned(said):
        said["leave"][5, 0] = 1.0 - 1e-5
        said["latents"][9, 3:] = [0.0, 1.1, 2.0, 0.0, 0.0]
        said["size_4x"][11, 0] += 1
        said["levels_4x"][11] += 0.4

    same = lambda said: None
    found = compared(part, turned)
    assert found.passed and found.worst.psnr > 60
    assert min(of.psnr for of in found.anywhere) < 60
    assert "many levels_4x has " in verify.table([found]) and "where picks" not in verify.table([compared(part, same)])
    turns = {name: of.changed for name, of in found.changes.items() if of.changed}
    assert {name: turns[name] for name in ("accept 0.01", "latents", "size 4x")} == {
        "accept 0.01": 1,
        "latents": 2,
        "size 4x": 1,
    }


class Machine:
    """A Mac on which one unit is worse than the others."""

    def __init__(self, part):
        self.part, self.opened = part, []

    def compile(self, package, folder):
        return folder / "heads.mlmodelc"

    def open(self, compiled, entry, unit):
        self.opened.append((entry, unit))
        off = 0.05 if unit == "CPU_AND_NE" else 0.0
        return lambda feed: {name: (x + off).T[None, :, None] for name, x in self.part.said.items()}


def test_on_a_mac_each_unit_is_a_pair_of_its_own(tmp_path):
    machine = Machine(truth()._replace(feeds=[{}], counts=[N]))
    found = list(judges.on_device(tmp_path, {"many": machine.part}, RULES, machine))
    assert {of.pair: of.passed for of in found} == {unit: unit != "CPU_AND_NE" for unit in verify.DEVICE}
    assert machine.opened == [("many", unit) for unit in verify.DEVICE]


def test_other_outputs_than_were_described_are_an_error():
    with pytest.raises(ValueError, match="many says other things than it was described to: more"):
        compared(truth(), lambda said: said.update(more=np.zeros((N, 1))))


def test_decisions_are_made_where_the_run_makes_them():
    found = decisions.made(RULES, truth().said)
    said = truth().said
    assert np.array_equal(found["accept 0.01"], said["leave"] > 1.0) and "accept 0.02" not in found
    assert np.array_equal(found["revive 0.01"], said["leave_mended"][:, [1]] > 0.5)
    assert np.array_equal(found["escalate 0.01"], -said["leave_mended"][:, [0]] > -0.2)
    assert np.array_equal(found["look"], said["hope"][:, [1]] > 0.5)
    assert np.array_equal(found["route"][:, 1], said["route"][:, 4:].argmax(1))


def test_a_sample_comes_back_as_it_was_kept(tmp_path):
    part = truth()._replace(feeds=[{"states": np.ones((1, 4, 1, 2), np.float16)}])
    save(tmp_path / "sample.safetensors", {"many": part})
    found = load(tmp_path / "sample.safetensors")["many"]
    assert found.counts == part.counts and found.feeds[0]["states"].dtype == np.float16
    for name, of in part.said.items():
        np.testing.assert_allclose(found.said[name], of, rtol=1e-6)
    assert found.inner.keys() == part.inner.keys()


def test_sums_beyond_what_some_chips_hold_are_named():
    seen = Seen()
    seen.note("one conv", np.array([3.0, -40_000.0]))
    seen.note("one matmul", np.array([3.0]))
    seen.note("many conv", np.array([np.nan]))
    assert seen.refused() == ["one conv reaches 40,000", "many conv reaches inf"]
