"""The sample of a run's held-out positions for every entry of its package."""

from collections.abc import Mapping

import numpy as np

from curricula.features import Features
from curricula.onward import Onward
from export import sample
from export.ops import Entry
from export.program import MANY, receiving
from export.sample import Part
from heads.bundle import Bundle
from scripts.export.feeds import feeds

ONES = 4  # positions of the entry for one token, of each of some documents


def chosen(features: Features, room: int, count: int) -> list[int]:
    """Documents all over the role, whose keys find room."""
    some = np.unique(np.linspace(0, len(features.begins) - 1, count).astype(int)).tolist()
    fit = [d for d in some if features.of(d, "length") <= room]
    if not fit:
        raise ValueError(f"the program has room for {room} keys, and each text has more tokens; ask for more: --room")
    return fit


def parts(
    bundle: Bundle, features: Features, entries: Mapping[str, Entry], room: int, documents: list[int]
) -> dict[str, Part]:
    many = list(feeds(bundle, features, np.array(documents), room, MANY))
    ones = [of for d in documents[:ONES] for of in list(feeds(bundle, features, np.array([d]), room, 1))[:ONES]]
    found = {}
    for name, given in (("many", many), ("one", ones)):
        counts = [len(of.positions) for of in given]
        found[name] = sample.described(entries[name], [of.inputs for of in given], counts)
    for name, count in (("receive_many", MANY), ("receive_one", 1)):
        at = np.linspace(0, features.count - 1, count).astype(int)
        found[name] = sample.described(entries[name], [received(bundle, features, at)], [count])
    return found


def received(bundle: Bundle, features: Features, at: np.ndarray) -> dict[str, np.ndarray]:
    """What a receiver would be given of these positions."""
    given = Onward(bundle.decoder, features, bundle.sent)
    return receiving(bundle, given.states(at), given.told(at))
