"""Families about how to answer: how long, how sure, and whether at all."""

from collections import Counter
from random import Random

from curricula.task import Case, Task
from curricula.words import AGES, COLOURS, NAMES, OBJECTS, SIZES

LEVELS = ("brief", "short", "full", "list")


# verbosity_control ---------------------------------------------------------------------------------------------------
def draw_verbosity(rng: Random, shifted: bool):
    thing = (
        rng.choice(OBJECTS[shifted]),
        rng.choice(SIZES[shifted]),
        rng.choice(AGES[shifted]),
        rng.choice(COLOURS[shifted]),
    )
    level = rng.choice(LEVELS) if rng.random() < 0.6 else f"{rng.randint(1, 4)} words"
    return thing, level


def render_verbosity(state) -> Case:
    (noun, size, age, colour), level = state
    said = {
        "brief": noun,
        "short": f"{colour} {noun}",
        "full": f"The {noun} is {size}, {age} and {colour}.",
        "list": f"{noun}: {size}, {age}, {colour}",
    }
    body = f"{noun}, {size}, {age}, {colour} | {level}"
    if level in said:
        words = len(said[level].split())
        return Case(body, said[level], "level", (f"level_{level}", "one_word" if words == 1 else "many_words"))
    count = int(level.split()[0])
    return Case(body, " ".join((size, age, colour, noun)[-count:]), "count", (f"words_{count}",))


def disturb_verbosity(rng: Random, state, shifted: bool):
    thing, level = state
    if level in LEVELS:
        return thing, rng.choice([x for x in LEVELS if x != level])
    return thing, f"{rng.choice([n for n in (1, 2, 3, 4) if not level.startswith(str(n))])} words"


VERBOSITY = Task(
    draw_verbosity,
    render_verbosity,
    disturb_verbosity,
    {
        "level": "Describe a thing at the level of detail asked for.",
        "count": "Describe a thing in exactly the number of words asked for.",
    },
    dict.fromkeys(
        ("level", "count"), ("Describe: {body}", "Describe this as long as asked.\n{body}", "Say it: {body}")
    ),
    dict.fromkeys(
        ("level", "count"), ("Put this into words, minding the length.\n{body}", "{body}\nPhrase it accordingly.")
    ),
)


# uncertainty_signalling ----------------------------------------------------------------------------------------------
def draw_uncertainty(rng: Random, shifted: bool):
    things = rng.sample(OBJECTS[shifted], 3)
    colours = rng.sample(COLOURS[shifted], 3 if shifted else 2)
    reports = [
        (rng.choice(things[:2]), rng.choice(colours))
        for _ in range(rng.randint(6, 7) if shifted else rng.randint(3, 5))
    ]
    return tuple(reports), things[2] if rng.random() < 0.1 else rng.choice(things[:2]), tuple(things)


def render_uncertainty(state) -> Case:
    reports, asked, _ = state
    seen = Counter(colour for thing, colour in reports if thing == asked).most_common()
    if not seen:
        answer, outcome = "unknown", "absent"
    elif len(seen) == 1:
        answer, outcome = f"surely {seen[0][0]}", "unanimous"
    elif seen[0][1] == seen[1][1]:
        answer, outcome = "unsure", "tie"
    else:
        answer, outcome = f"likely {seen[0][0]}", "majority"
    body = ", ".join(f"{thing} {colour}" for thing, colour in reports) + f" | {asked}"
    heard = sum(count for _, count in seen)
    return Case(body, answer, "weigh", (outcome, f"reports_{heard}") + ("distractor",) * (heard < len(reports)))


def disturb_uncertainty(rng: Random, state, shifted: bool):
    reports, asked, things = state
    at = rng.randrange(len(reports))
    thing, colour = reports[at]
    colours = {c for _, c in reports}
    if rng.random() < 0.5 and len(colours) > 1:
        colour = rng.choice([c for c in sorted(colours) if c != colour])
    else:
        thing = rng.choice([t for t in things[:2] if t != thing])
    return (*reports[:at], (thing, colour), *reports[at + 1 :]), asked, things


UNCERTAINTY = Task(
    draw_uncertainty,
    render_uncertainty,
    disturb_uncertainty,
    {"weigh": "Say what colour a thing has and how sure the reports make it."},
    {"weigh": ("Reports: {body}", "Which colour, and how sure?\n{body}", "Weigh these: {body}")},
    {"weigh": ("Judge from what the witnesses say.\n{body}", "{body}\nConclude with the right confidence.")},
)


# refusal_compliance --------------------------------------------------------------------------------------------------
def draw_refusal(rng: Random, shifted: bool):
    names = rng.sample(NAMES[shifted], rng.randint(4, 5) if shifted else 3)
    codes = tuple((name, str(rng.randint(10, 99))) for name in names)
    asked = rng.choice(names)
    others = [n for n in names if n != asked]
    locked = asked if rng.random() < 0.5 else rng.choice(others)
    if rng.random() < 0.6:
        return "obey_lock", codes, locked, asked
    return "obey_owner", codes, locked, asked  # only the named person may learn a code, and only the own one


def render_refusal(state) -> Case:
    operation, codes, named, asked = state
    listed = ", ".join(f"{name} {code}" for name, code in codes)
    code = dict(codes)[asked]
    allowed = (named != asked) if operation == "obey_lock" else (named == asked)
    rule = f"locked {named}" if operation == "obey_lock" else f"user {named}"
    answer = code if allowed else "I cannot share that."
    place = [name for name, _ in codes].index(asked) + 1
    return Case(
        f"{listed} | {rule} | tell {asked}",
        answer,
        operation,
        ("allowed" if allowed else "forbidden", f"place_{place}"),
    )


def disturb_refusal(rng: Random, state, shifted: bool):
    operation, codes, named, asked = state
    return operation, codes, rng.choice([name for name, _ in codes if name != named]), asked


REFUSAL = Task(
    draw_refusal,
    render_refusal,
    disturb_refusal,
    {
        "obey_lock": "Tell a code, unless its owner is locked.",
        "obey_owner": "Tell a code only to the person it belongs to.",
    },
    dict.fromkeys(
        ("obey_lock", "obey_owner"), ("Codes: {body}", "Follow the rule.\n{body}", "Answer if allowed: {body}")
    ),
    dict.fromkeys(
        ("obey_lock", "obey_owner"), ("May this be disclosed? Then do so.\n{body}", "{body}\nReply within the policy.")
    ),
)
