"""What the head stages take, as curricula/estimate.py says of those before them: from settings, positions and shapes.

Heads are built and never made, so their sizes are what they will be. A weight is used once a position, and twice more
for its gradient; all numbers are in float32. What runs in numpy counts too.
"""

from typing import Any, NamedTuple

from mlx.utils import tree_flatten

from agp.macs import macs
from agp.models.decoder import Decoder
from agp.peak import STEP, arrays, streams_of
from curricula import estimate, oracle
from curricula.estimate import READ, Cost, Work
from curricula.mending import STEP as ROUNDED
from curricula.mending import WIDE
from curricula.onward import TOGETHER
from curricula.probe import RIDGES, TURNS
from curricula.recipes import Recipe
from curricula.stages import harvest
from curricula.stages.depth import midway
from curricula.stages.semantic import SOME
from curricula.stages.transfer import GREEDY
from heads import depth, glimpse, trajectory

NAMED = 250  # concepts, about, that a semantic head learns
LEARNING = 5  # arrays of each trained number: itself, its slope, two moments, the best one
KEPT = 5  # on disk: the head, the best one, and the state that a resumed run needs
PURSUED = 6  # arrays of a pick that wait for their gradient
CHOSEN = 18  # arrays of all latents while thresholds are chosen
BITS = 2.4  # of each combination that is sent, at least (measured at a sixteenth)
SLACK = 3e7  # bytes that any stage holds besides
BESIDE = 5  # codecs that do not depend on a ratio


class Given(NamedTuple):
    """What all of them read."""

    model: Decoder
    held: float  # bytes of the teacher
    taps: list[int]
    dim: int
    width: int  # of a state: all streams
    positions: dict[str, int]
    documents: dict[str, int]
    answer: int  # the longest
    longest: int  # tokens of a document
    lent: int  # bytes of a token's keys and values

    def logits(self, positions: float) -> float:
        """Bytes, where so many positions are read at once."""
        return READ * 4 * min(oracle.MOST, positions * self.model.config.vocab_size)

    def above(self, tap: int) -> int:
        """Multiplications of a position through the blocks above, and the head."""
        count = macs(self.model, self.longest)
        return sum(count.blocks[tap + 1 :]) + count.head


def costs(recipe: Recipe, model: Decoder, work: Work, room: float, number: int) -> dict[str, Cost]:
    """By stage, beside those of `estimate.costs`."""
    all_read = given(recipe, model, work, room, number)
    return {
        "trajectory": trajectory_cost(recipe, all_read),
        "semantic": semantic_cost(recipe, all_read),
        "depth": depth_cost(recipe, all_read),
        "transfer": transfer_cost(recipe, all_read),
        "calibrate": calibrate_cost(recipe, all_read),
    }


def given(recipe: Recipe, model: Decoder, work: Work, room: float, number: int) -> Given:
    held = estimate.weights(model, number, estimate.on_disk(model, recipe.domain.table, room))
    of, answer = model.config, recipe.harvest.answer
    return Given(
        model=model,
        held=held + 4 * estimate.learned(model, recipe.domain) + SLACK,
        taps=harvest.chosen(recipe.harvest, model),
        dim=of.hidden_size,
        width=streams_of(of) * of.hidden_size,
        positions={role: work.roles[role].answers for role in harvest.ROLES},
        documents={role: work.roles[role].documents for role in harvest.ROLES},
        answer=answer,
        longest=max(text.longest for text in work.roles.values()) + answer,
        lent=2 * estimate.token_bytes(model),
    )


def size(head: Any) -> int:
    parameters: Any = tree_flatten(head.parameters())
    return sum(a.size for _, a in parameters)


def reader(recipe: Recipe, given: Given) -> trajectory.Head:
    of = recipe.trajectory
    shape = {"taps": len(given.taps), "width": given.width, "dim": given.dim, "facts": len(glimpse.FACTS)}
    return trajectory.Head(trajectory.Config(**shape, window=of.window, hidden=of.hidden))


def trajectory_cost(recipe: Recipe, given: Given) -> Cost:
    """Most of it is what the head is held against: probes of all that a state holds, to their optimum."""
    config, taps, size_ = recipe.trajectory, len(given.taps), size(reader(recipe, given))
    heads, some = given.positions["heads"], sum(given.positions[role] for role in ("heads", "tune", "test"))
    step = 4 * config.batch * (3 * taps * (given.width + given.dim) + config.window * given.width)
    probed = given.dim * (8 * some + 28 * heads)  # beside lens and states of all roles, copies in double precision
    newton = len(RIDGES) * TURNS * heads * given.dim**2
    return Cost(
        memory=given.held + max(probed, step + 4 * LEARNING * size_) + 4 * config.glance * given.dim,
        disk=4 * (KEPT * size_ + (config.glance + 1) * given.dim),
        macs=(3 * config.fit.steps * config.batch + evaluations(config.fit) * given.positions["tune"]) * size_
        + some * taps * config.glance * given.dim
        + 2 * taps * newton,
        shapes=(f"{size_:,} trained numbers; a glance at {config.glance:,} tokens",),
    )


def evaluations(fit: Any) -> int:
    return fit.steps // fit.evaluate_every + 1


def semantic_cost(recipe: Recipe, given: Given) -> Cost:
    config = recipe.semantic
    latents, rounds = NAMED + config.width, config.picks + config.settle
    size_ = (latents + NAMED) * given.width
    pursued = given.width * (NAMED + (2 * rounds + 1) * latents)
    step = 4 * config.rows * latents * PURSUED * rounds
    tune, test = given.positions["tune"], given.positions["test"]
    chosen, said = 4 * min(SOME, tune) * latents * CHOSEN, given.logits(TOGETHER * given.answer)
    tap = given.taps[0] if config.tap is None else config.tap
    moments = 2 * given.positions["heads"] * given.width**2
    return Cost(
        memory=given.held + 4 * LEARNING * size_ + max(step, chosen, said, 32 * given.width**2),
        disk=4 * KEPT * size_,
        macs=(3 * config.fit.steps * config.rows + evaluations(config.fit) * tune + 4 * test) * pursued
        + 5 * test * given.above(tap)
        + moments,
        shapes=(
            f"{config.width:,} free latents of {given.width:,} numbers after block {tap}, "
            f"{config.picks * config.each} of them active",
        ),
    )


def modules(recipe: Recipe, given: Given) -> list[depth.Head]:
    config, blocks = recipe.depth, recipe.depth.blocks or midway(given.model)
    settings = [depth.Config(taps=t + 1, blocks=blocks, width=config.width) for t in range(len(given.taps))]
    return [depth.Head(of, given.model) for of in settings]


def module_macs(head: depth.Head, given: Given) -> int:
    """With what it attends to."""
    queries = sum(a.q_proj.weight.shape[0] for a in head.attention.values())
    return head.macs + 2 * queries * given.longest


def depth_cost(recipe: Recipe, given: Given) -> Cost:
    """A tuned lens of the same size is trained beside each module."""
    config, taps, heads = recipe.depth, len(given.taps), modules(recipe, given)
    steps = config.fit.steps + (taps - 1) * max(1, round(config.later * config.fit.steps))
    long = -(-given.answer // ROUNDED) * ROUNDED
    mean = -(-given.positions["heads"] // max(1, given.documents["heads"]))
    once, size_ = max(module_macs(head, given) for head in heads), max(map(size, heads))
    tune, test = given.positions["tune"], given.positions["test"]
    looked_at = 3 * steps * config.documents * mean + 2 * taps * evaluations(config.fit) * tune
    vocabulary = config.vocabulary * given.dim
    batch = batch_bytes(given, config.documents, long) + 20 * config.documents * long * config.vocabulary
    wide = batch_bytes(given, WIDE, long) + max(
        given.logits((2 * taps + 1) * WIDE * long), 20 * WIDE * long * config.vocabulary
    )
    kept = 2 * taps * test * 2 * given.dim
    cheapest = min(macs(given.model).blocks[given.model.config.num_producers :])
    return Cost(
        memory=given.held + 4 * LEARNING * size_ + 4 * vocabulary + kept + max(batch, wide),
        disk=4 * 2 * KEPT * sum(map(size, heads)),
        macs=2 * looked_at * (once + vocabulary) + 2 * taps * test * (once + 2 * macs(given.model).head),
        shapes=(f"modules of {size_:,} numbers, {heads[-1].macs / cheapest:.2f} of the cheapest block above",),
    )


def batch_bytes(given: Given, documents: int, long: int) -> float:
    """States, as read and as mixed, and keys and values."""
    return documents * (12 * long * len(given.taps) * given.width + given.longest * given.lent)


def transfer_cost(recipe: Recipe, given: Given) -> Cost:
    """To sense what the blocks above mind takes the most memory, the measuring of so many codecs the most time."""
    config, model = recipe.transfer, given.model
    tap = given.taps[0] if config.tap is None else config.tap
    mean = {role: given.positions[role] / max(1, given.documents[role]) for role in given.positions}
    sensed, measured = (
        min(n, given.documents[role]) * mean[role] for n, role in ((config.sensed, "heads"), (config.measured, "test"))
    )
    kept, block = arrays(model.config, STEP[type(model.config)], TOGETHER, given.answer, model.config.num_layers)
    scores = 4 * TOGETHER * given.answer * given.longest * model.config.num_attention_heads
    products = 32 * (1 + given.dim + given.width) ** 2
    sizes = ", ".join(f"{2 * given.width // ratio:,}" for ratio in config.ratios)
    ways = BESIDE + 3 * len(config.ratios)
    side_by_side = TOGETHER * given.answer * (ways + 1) * 4 * given.dim
    codecs = [given.width * (given.dim + 1 + 2 * sent(given.width, ratio)) for ratio in config.ratios]
    greedy = 2 * min(config.greedy, given.documents["test"]) * (given.longest + GREEDY)
    return Cost(
        memory=given.held
        + max(4 * (kept + block) + scores * 3, products, given.logits(oracle.MOST) + side_by_side)
        + TOGETHER * given.longest * given.lent
        + 4 * LEARNING * max(codecs),
        disk=4 * KEPT * sum(codecs),
        macs=4 * sensed * given.above(tap)
        + given.positions["heads"] * (1 + given.dim + given.width) ** 2
        + 3 * config.fit.steps * config.rows * sum(codec + given.width**2 for codec in codecs)
        + ways * measured * given.above(tap)
        + greedy * macs(model, given.longest).whole,
        shapes=(f"{sizes} bytes a state, after block {tap}",),
    )


def sent(width: int, ratio: int) -> int:
    """Combinations of a state that are sent."""
    return round(width * min(1, 16 / ratio / BITS))


def calibrate_cost(recipe: Recipe, given: Given) -> Cost:
    """All that the depth module makes of all states is there at once."""
    config, taps, every = recipe.calibrate, len(given.taps), sum(given.positions.values())
    head, largest = reader(recipe, given), max(given.positions.values())
    once = max(module_macs(module, given) for module in modules(recipe, given))
    features, tune = head.last.shape[1], given.positions["tune"]
    stacked = 2 * every * taps * given.dim
    fitted = 4 * taps * tune * features + 28 * tune * features
    long = -(-given.answer // ROUNDED) * ROUNDED
    batch = batch_bytes(given, WIDE, long) + given.logits(2 * WIDE * long)
    return Cost(
        memory=given.held + stacked + max(8 * largest * given.dim + batch, fitted),
        disk=4 * KEPT * size(head),
        macs=every * taps * (once + 2 * macs(given.model).head)
        + (3 * config.fit.steps * config.batch + (evaluations(config.fit) + 2) * every) * size(head)
        + 4 * taps * len(RIDGES) * TURNS * tune * features**2,
        shapes=(f"{stacked:,} bytes of mended states",),
    )
