"""What a host decides by the numbers that a program says, and how near each decision was to the other.

A rounding may turn a decision that is nearer to a tie than its kind's width, and no other. What hangs on one that
turned is not held against the program: levels at another size, latents picked after one that was picked instead.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from export import transfer
from export.program import senders
from export.semantic import NEVER
from heads.bundle import DECISIONS, Bundle
from heads.semantic import TYPES, Head
from heads.trajectory import ROUTES

Said = Mapping[str, np.ndarray]  # N C each
TIES = {  # widths: of logits, scores, slopes by the size of a state, levels of a size; of levels a codec has its own
    **{"route": 0.1, "accept": 0.1, "revive": 0.1, "escalate": 0.1, "look": 0.02},
    **{"concepts": 0.02, "latents": 0.01, "size": 0.25},
}


class Change(NamedTuple):
    decisions: int
    changed: int
    unexplained: int  # of these: no tie was near


def rules(bundle: Bundle) -> dict[str, Any]:
    """All that decisions are made by; it stands in the manifest."""
    return {
        "taps": list(bundle.taps),
        "exits": list(bundle.exits),
        "budget": bundle.budget,
        "gate": [None if np.isinf(least) else least for least in bundle.gate],
        **{name: dict(bundle.limits[name]) for name in DECISIONS},
        "concepts": concepts(bundle.names),
        "codecs": {
            name: {
                "levels": list(head.config.levels),
                "span": np.array(head.span).tolist(),
                "ties": transfer.ties(head).tolist(),
            }
            for name, head in senders(bundle).items()
        },
    }


def concepts(head: Head) -> list[dict[str, Any]]:
    """In the order of their scores; two of different types may share a name."""
    types = np.repeat(TYPES, head.config.types).tolist()
    limits = np.minimum(np.array(head.limits, np.float64), NEVER).tolist()
    return [
        {"name": name, "type": kind, "limit": limit}
        for name, kind, limit in zip(head.config.concepts, types, limits, strict=True)
    ]


def scores(rules: Mapping[str, Any], said: Said) -> dict[str, np.ndarray]:
    """Of each decision that is made by a threshold, by how much it is on the one side or the other."""
    found = {}
    taps = list(range(len(rules["taps"])))
    asked = {"accept": ("leave", taps, 1), "revive": ("leave_mended", rules["exits"], 1)}
    asked["escalate"] = ("leave_mended", [rules["budget"]], -1)
    for name, (of, at, sign) in asked.items():
        for risk, limit in rules[name].items():
            if limit is not None:
                found[f"{name} {risk}"] = sign * said[of][:, at] - limit
    gated = [(tap, least) for tap, least in enumerate(rules["gate"]) if least is not None]
    if gated:
        found["look"] = said["hope"][:, [tap for tap, _ in gated]] - [least for _, least in gated]
    if "concepts" in said:
        found["concepts"] = said["concepts"] - [of["limit"] for of in rules["concepts"]]
    return found


def made(rules: Mapping[str, Any], said: Said) -> dict[str, np.ndarray]:
    """N K each."""
    found = {name: of > 0 for name, of in scores(rules, said).items()}
    for name in ("route", "route_mended"):
        found[name] = said[name].reshape(len(said[name]), -1, len(ROUTES)).argmax(-1)
    found["latents"] = said["latents"] > 0
    for name, codec in rules["codecs"].items():
        found[f"size {name}"] = said[f"size_{name}"]
        found[f"levels {name}"] = transfer.rounded(said[f"levels_{name}"], np.array(codec["levels"]))
    return found


def near(rules: Mapping[str, Any], said: Said, inner: Said) -> dict[str, np.ndarray]:
    """How far each was from a tie. `inner` tells it of `latents` and of sizes, which outputs do not."""
    found = {name: np.abs(of) for name, of in scores(rules, said).items()}
    for name in ("route", "route_mended"):
        first, second = np.sort(said[name].reshape(len(said[name]), -1, len(ROUTES)), axis=-1)[..., [-1, -2]].T
        found[name] = (first - second).T
    found["latents"] = np.concatenate([inner[of] for of in ("concepts", "latents") if of in inner], axis=1)
    for name, codec in rules["codecs"].items():
        found[f"size {name}"] = inner[f"size_{name}"]
        place = said[f"levels_{name}"] + np.array(codec["levels"]) / 2
        found[f"levels {name}"] = np.abs(place - np.round(place))
    return found


def width(rules: Mapping[str, Any], name: str) -> Any:
    kind, _, which = name.partition(" ")
    return np.array(rules["codecs"][which]["ties"]) if kind == "levels" else TIES[kind.removesuffix("_mended")]


def changes(rules: Mapping[str, Any], truth: Said, inner: Said, other: Said) -> dict[str, Change]:
    """Of all kinds."""
    wanted, found, far = made(rules, truth), made(rules, other), near(rules, truth, inner)
    differ: Any = {name: wanted[name] != found[name] for name in wanted}
    odd = {name: of & (far[name] > width(rules, name)) for name, of in differ.items()}
    odd["latents"] &= np.maximum(truth["latents"], other["latents"]) > TIES["latents"]  # picked, and hardly there
    picked: Any = (wanted["latents"] | found["latents"]) & (far["latents"] <= TIES["latents"])
    turned = picked.any(1)  # or came at another turn: that leads to others
    turned |= differ["concepts"].any(1) if "concepts" in differ else False
    odd["latents"] &= ~turned[:, None]
    for name in rules["codecs"]:
        odd[f"levels {name}"] &= ~differ[f"size {name}"].any(1)[:, None]
    return {name: Change(of.size, int(of.sum()), int(odd[name].sum())) for name, of in differ.items()}


def alike(rules: Mapping[str, Any], truth: Said, other: Said) -> dict[str, np.ndarray]:
    """Of outputs that hang on decisions: at which positions these were the same."""
    wanted, found = made(rules, truth), made(rules, other)
    same = {"latents": (wanted["latents"] == found["latents"]).all(1)}
    for name in rules["codecs"]:
        same[f"levels_{name}"] = (wanted[f"size {name}"] == found[f"size {name}"]).all(1)
    return same
