"""What a recipe takes, from its settings, its rows and the model's shape: bytes, multiplications. Nothing is made."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten

from agp import quant
from agp.adapters import linears, shape
from agp.data import Row
from agp.macs import macs
from agp.models import table
from agp.models.decoder import Decoder
from agp.models.folder import build
from agp.models.packed import stated
from agp.peak import forward_bytes, head_dims, kv_heads, step_bytes, streams_of
from curricula import ability, oracle
from curricula.observe import kinds
from curricula.recipes import Recipe
from curricula.stages import adapt, domain, harvest, rows

LETTERS = 3.5  # a token, where no tokenizer is here to count
TURN = 6  # tokens of a chat template around a turn
ABOUT = 350  # bytes that about.json says of a document
LOGITS = 5.5  # arrays of as many logits as may be there at once (measured: 5.2)
READ = 8  # likewise, where the lens is held beside the teacher (measured: 7.6)
COPIES = 3  # of a shard: its batches, all of it, and what is written


class Text(NamedTuple):
    """What is observed of a role."""

    documents: int
    prompts: int  # tokens in all
    answers: int  # likewise, at most: each is a position
    longest: int  # prompt


class Work(NamedTuple):
    roles: dict[str, Text]
    held: int  # tokens on which the domain stage is measured at each evaluation
    able: int  # and those before it and after
    note: str


class Cost(NamedTuple):
    memory: float  # bytes at the peak, weights included
    disk: float  # bytes
    macs: float
    shapes: tuple[str, ...]


def shaped(given: Mapping[str, Any], packing: int | None) -> Decoder:
    """The model that config.json describes, packed as it will be, its weights never made."""
    model, (said, _) = build(given), stated(given)
    bits: Any = {name: said[name] for name in quant.Packing._fields} if said else packing
    if bits is not None:
        how = quant.Packing.of(bits)
        quant.swap(model, dict.fromkeys(quant.candidates(model, how)[0], how))
    return model


def weights(model: Decoder, number: int, table_on_disk: bool) -> float:
    """Bytes in memory, where what is not packed has `number` of them each."""
    parameters: Any = tree_flatten(model.parameters())
    found = [a for name, a in parameters if not (table_on_disk and name.startswith(f"{table.NAME}."))]
    return sum(a.size * (4 if a.dtype == mx.uint32 else number) for a in found)


def on_disk(model: Decoder, choice: str | None, room: float) -> bool:
    """Whether the per-layer table stays there, as the loader decides for a checkpoint of 16 bits."""
    if table.NAME not in model:
        return False
    packed = quant.quantized_paths(model)
    parameters: Any = tree_flatten(model.parameters())
    stored = sum(2 * a.size * (32 / packed[name[:-7]].bits if a.dtype == mx.uint32 else 1) for name, a in parameters)
    return choice == "disk" if choice else stored > table.SHARE * room


def learned(model: Decoder, config: domain.Config) -> int:
    """Numbers that the adapter has."""
    there = linears(model)
    parts = domain.designed(config, model).parts
    rows = sum(shape(there[path])[0] for path in parts) if config.kind == "dora" else 0
    return rows + sum(part.rank * sum(shape(there[path])) for path, part in parts.items())


def costs(recipe: Recipe, model: Decoder, work: Work, room: float, number: int) -> dict[str, Cost]:
    """By stage, where a number that is not packed has so many bytes; by `room` the table stays on disk or not."""
    held = weights(model, number, on_disk(model, recipe.domain.table, room))
    return {
        "domain": domain_cost(recipe.domain, model, work, held, number),
        "harvest": harvest_cost(recipe.harvest, model, work, held + 4 * learned(model, recipe.domain), number),
    }


def domain_cost(config: domain.Config, model: Decoder, work: Work, held: float, number: int) -> Cost:
    """Each block runs forwards twice and once back, the head once and once back; frozen weights have no gradient."""
    size, count = learned(model, config), macs(model, config.length // 2)
    tokens = config.fit.steps * config.fit.accumulate * config.rows * config.length
    looked_at = (config.fit.steps // config.fit.evaluate_every + 1) * work.held + 2 * work.able
    of, packed = model.config, bool(quant.quantized_paths(model))
    step = step_bytes(of, config.rows, config.length, size, packed)
    tested = forward_bytes(of, ability.ROWS, config.length, of.num_layers, packed, number)
    logits = LOGITS * 4 * ability.FEW * of.vocab_size
    return Cost(
        memory=held + 12 * size + max(step, tested, logits),
        disk=20 * size,  # the adapter, the best one, and the state that a resumed run needs
        macs=tokens * (3 * count.upto(of.num_layers) + 2 * count.head) + looked_at * count.whole,
        shapes=(f"{size:,} trained numbers, {tokens // config.fit.steps:,} tokens a step",),
    )


def harvest_cost(config: harvest.Config, model: Decoder, work: Work, held: float, number: int) -> Cost:
    taps, of = harvest.chosen(config, model), model.config
    packed = bool(quant.quantized_paths(model))
    longest = max((text.longest for text in work.roles.values()), default=0)
    batches = ((config.together, longest + config.answer), (config.compared, longest), (config.shard, longest))
    *forward, said = (forward_bytes(of, rows, length, of.num_producers, packed, number) for rows, length in batches)
    said += config.shard * (longest + config.answer) * kept_bytes(model, range(of.num_producers), number)
    position, token = position_bytes(config, model, len(taps)), token_bytes(model)
    shard = config.shard * (config.answer * position + (longest + config.answer) * token)
    disk = sum(text_bytes(config, model, len(taps), text, role) for role, text in work.roles.items())
    logits = READ * 4 * min(oracle.MOST, config.together * config.answer * of.vocab_size * (len(taps) + 1))
    documents, positions = (sum(getattr(t, name) for t in work.roles.values()) for name in ("documents", "answers"))
    return Cost(
        memory=held + COPIES * shard + max(*forward, said, logits),
        disk=disk,
        macs=sum(harvest_macs(config, model, taps, text, role) for role, text in work.roles.items()),
        shapes=(
            f"states after blocks {', '.join(map(str, taps))}, each {streams_of(of) * of.hidden_size:,} wide",
            f"up to {positions:,} positions of {position:,} bytes each, in {documents:,} documents",
            f"{token:,} bytes of keys and values a token",
        ),
    )


def position_bytes(config: harvest.Config, model: Decoder, taps: int, vital: bool = True) -> int:
    """On disk: states with their scales, the last one, readings, vitality, what the teacher says."""
    width, streams = model.config.hidden_size, streams_of(model.config)
    states = taps * streams * (2 * width + 4) + 2 * width + 4
    return states + taps * (17 + 4 * vital) + 6 * min(config.keep, model.config.vocab_size)


def token_bytes(model: Decoder) -> int:
    """On disk, of keys and values that are lent; the id comes besides."""
    of = model.config
    return kept_bytes(model, [max(i for i in of.lenders if of.layer_types[i] == kind) for kind in kinds(model)], 2)


def kept_bytes(model: Decoder, blocks: Iterable[int], number: int) -> int:
    """Of a token's keys and values in these blocks."""
    return sum(2 * number * kv_heads(model.config)[i] * head_dims(model.config)[i] for i in blocks)


def text_bytes(config: harvest.Config, model: Decoder, taps: int, text: Text, role: str) -> int:
    """On disk, of a role. Thresholds ask for no vitality, and the last token is no input."""
    position = position_bytes(config, model, taps, role != "calibrate")
    tokens = text.prompts + text.answers
    lent = token_bytes(model) * (tokens - text.documents)
    return text.answers * position + 4 * tokens + lent + (12 + ABOUT) * text.documents


def harvest_macs(config: harvest.Config, model: Decoder, taps: Sequence[int], text: Text, role: str) -> float:
    """What the teacher says, its states along it, the lens at each tap, and disturbances, each to the last block."""
    count, first = macs(model, text.longest), model.config.num_producers
    above = [sum(count.blocks[tap + 1 :]) for tap in taps]
    rest = sum(count.blocks[first:])
    said = (text.prompts + text.documents * config.answer) * count.upto(first)
    said += text.documents * config.answer * (rest + count.head)
    seen = (text.prompts + text.answers) * count.upto(first) + text.answers * rest
    read = text.answers * (len(taps) + 1) * count.head
    times = 0 if role == "calibrate" else config.noises + config.omissions
    return said + seen + read + text.answers * times * sum(blocks + count.head for blocks in above)


def assumed(recipe: Recipe) -> Work:
    """Before there are rows: as many as one source of conversations can give, as long as they may be."""
    config = recipe.harvest
    counts = config.turns or config.windows
    roles = {
        role: Text(count, count * config.longest, count * config.answer, config.longest)
        for role, count in zip(harvest.ROLES, counts, strict=True)
    }
    held, able = (count * recipe.domain.length for count in (recipe.domain.held_rows, adapt.MEASURED))
    return Work(roles, held, able, "no rows yet: as many as one source may give, as long as they may be")


def counted(recipe: Recipe, given: Mapping[str, Mapping[str, Sequence[Row]]], letters: float) -> Work:
    """Of rows by role and source, with so many letters to a token."""
    config, length = recipe.harvest, recipe.domain.length
    roles = {role: text_of(config, given.get(role, {}), role, letters) for role in harvest.ROLES}

    def tokens(role: str, most: int) -> int:
        found = given.get(role, {}).values()
        return sum(min(length, size(row, letters)) for of in found for row in of[:most])

    held, able = tokens("valid", recipe.domain.held_rows), tokens("test", adapt.MEASURED)
    count = sum(len(of) for roles in given.values() for of in roles.values())
    return Work(roles, held, able, f"{count:,} rows, {letters:.1f} letters a token")


def text_of(config: harvest.Config, given: Mapping[str, Sequence[Row]], role: str, letters: float) -> Text:
    cut = harvest.cuts(config, role)
    prompts, answers = [], []
    for source, of in given.items():
        if source == rows.GENERAL:
            continue
        said = [row for row in of if row.layout != "text"]
        for row in said[: cut["turns"]]:
            answer = round(len(row.messages[-1].get("content") or "") / letters) + 1
            answers.append(min(config.answer, answer))
            prompts.append(min(config.longest, max(1, size(row, letters) - answer)))
        step = max(1, config.window // 2)
        places = sum(max(0, size(row, letters) - config.window) // step for row in of if row.layout == "text")
        windows = min(cut["windows"], places)
        prompts += [config.window + 1] * windows
        answers += [config.answer] * windows
    return Text(len(prompts), sum(prompts), sum(answers), max(prompts, default=0))


def size(row: Row, letters: float) -> int:
    """Tokens, about."""
    turns = [turn.get("content") or "" for turn in row.messages]
    return round(len(row.text + "".join(map(str, turns))) / letters) + TURN * len(turns)
