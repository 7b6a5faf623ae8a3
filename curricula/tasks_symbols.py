"""Families over symbols, brackets, records, facts and numbers."""

import hashlib
from random import Random

from curricula.task import Case, Task
from curricula.words import ANIMALS, CAPITALS, COLOURS, ENTITIES, KEYS, METALS, OBJECTS, SYMBOLS

PAIRS = {"(": ")", "[": "]", "{": "}"}


# copying -------------------------------------------------------------------------------------------------------------
def draw_copying(rng: Random, shifted: bool):
    operation = rng.choice(("copy", "copy", "reverse", "after"))
    length = rng.randint(9, 12) if shifted else rng.randint(4, 10 if operation == "copy" else 7)
    if operation == "after":
        symbols = rng.sample(SYMBOLS[shifted], length)
        return operation, tuple(symbols), rng.randrange(length - 1)
    return operation, tuple(rng.choice(SYMBOLS[shifted]) for _ in range(length)), None


def render_copying(state) -> Case:
    operation, symbols, at = state
    text = " ".join(symbols)
    size = "length_8_up" if len(symbols) >= 8 else "length_below_8"
    if operation == "after":
        place = "asked_in_first_half" if at < len(symbols) // 2 else "asked_in_second_half"
        return Case(f"{text} | {symbols[at]}", symbols[at + 1], operation, (place, size, "all_distinct"))
    answer = text if operation == "copy" else " ".join(reversed(symbols))
    again = "all_distinct" if len(set(symbols)) == len(symbols) else "repeated_symbol"
    return Case(text, answer, operation, (again, size))


def disturb_copying(rng: Random, state, shifted: bool):
    operation, symbols, at = state
    place = at + 1 if operation == "after" else rng.randrange(len(symbols))
    other = rng.choice([s for s in SYMBOLS[shifted] if operation != "after" or s not in symbols])
    return operation, (*symbols[:place], other, *symbols[place + 1 :]), at


COPYING = Task(
    draw_copying,
    render_copying,
    disturb_copying,
    {
        "copy": "Repeat a sequence of symbols unchanged.",
        "reverse": "Write a sequence of symbols backwards.",
        "after": "Say which symbol stands right after the asked one in a sequence.",
    },
    {
        "copy": ("Copy: {body}", "Repeat this list.\n{body}", "Say again: {body}"),
        "reverse": ("Reverse: {body}", "Write this list backwards.\n{body}", "From last to first: {body}"),
        "after": ("After: {body}", "Which one comes next in the list?\n{body}", "Next symbol: {body}"),
    },
    {
        "copy": ("Write down the same sequence once more.\n{body}", "{body}\nEcho the line above."),
        "reverse": ("Give the sequence in the opposite order.\n{body}", "{body}\nTurn the line above around."),
        "after": ("What follows it in the sequence?\n{body}", "{body}\nName the successor."),
    },
)


# delimiter_tracking --------------------------------------------------------------------------------------------------
def still_open(marks) -> list[int]:
    """Indices of the openers without a closer (the marks are well nested as far as they go)."""
    stack = []
    for i, mark in enumerate(marks):
        stack.append(i) if mark in PAIRS else stack.pop()
    return stack


def deepest(marks) -> int:
    depth = best = 0
    for mark in marks:
        depth += 1 if mark in PAIRS else -1
        best = max(best, depth)
    return best


def balanced(marks) -> bool:
    stack = []
    for mark in marks:
        if mark in PAIRS:
            stack.append(PAIRS[mark])
        elif not stack or stack.pop() != mark:
            return False
    return not stack


def walk(rng: Random, length: int, limit: int) -> list[str]:
    marks: list[str] = []
    stack: list[str] = []
    for _ in range(length):
        if not stack or (len(stack) < limit and rng.random() < 0.6):
            marks.append(rng.choice("([{"))
            stack.append(marks[-1])
        else:
            marks.append(PAIRS[stack.pop()])
    return marks


def draw_delimiters(rng: Random, shifted: bool):
    operation = rng.choice(("close", "close", "depth", "balance"))
    while True:
        marks = walk(rng, rng.randint(14, 18) if shifted else rng.randint(5, 12), 8 if shifted else 6)
        opened = still_open(marks)
        if operation == "balance":
            marks += [PAIRS[marks[i]] for i in reversed(opened)]
            if rng.random() < 0.5:
                marks = swap_closer(rng, marks)
            return operation, tuple(marks)
        if opened:
            return operation, tuple(marks)


def swap_closer(rng: Random, marks) -> list[str]:
    at = rng.choice([i for i, mark in enumerate(marks) if mark not in PAIRS])
    return [*marks[:at], rng.choice([c for c in PAIRS.values() if c != marks[at]]), *marks[at + 1 :]]


def render_delimiters(state) -> Case:
    operation, marks = state
    depth = (
        f"nested_depth_{deepest(marks)}",
        "mixed_kinds" if len({m for m in marks if m in PAIRS}) > 1 else "one_kind",
    )
    if operation == "balance":
        good = balanced(marks)
        return Case(" ".join(marks), "yes" if good else "no", operation, ("matched" if good else "mismatched", *depth))
    opened = still_open(marks)
    answer = " ".join(PAIRS[marks[i]] for i in reversed(opened)) if operation == "close" else str(len(opened))
    return Case(" ".join(marks), answer, operation, (f"open_{len(opened)}", *depth))


def disturb_delimiters(rng: Random, state, shifted: bool):
    operation, marks = state
    if operation == "balance":
        return operation, tuple(swap_closer(rng, marks))
    if operation == "close":
        at = rng.choice(still_open(marks))
        return operation, (*marks[:at], rng.choice([o for o in PAIRS if o != marks[at]]), *marks[at + 1 :])
    before = marks[:-1]  # the last mark turns from an opener into a closer, or back
    stack = still_open(before)
    last = PAIRS[before[stack[-1]]] if marks[-1] in PAIRS and stack else rng.choice("([{")
    return operation, (*before, last)


DELIMITERS = Task(
    draw_delimiters,
    render_delimiters,
    disturb_delimiters,
    {
        "close": "Write the brackets that close all brackets still open.",
        "depth": "Count how many brackets are still open at the end.",
        "balance": "Say whether every bracket is closed by its own kind in the right order.",
    },
    {
        "close": ("Close: {body}", "Write the missing closing brackets.\n{body}", "Complete the brackets: {body}"),
        "depth": ("Depth: {body}", "How many brackets are open at the end?\n{body}", "Count the open ones: {body}"),
        "balance": ("Balanced? {body}", "Do all brackets match?\n{body}", "Well nested, yes or no: {body}"),
    },
    {
        "close": ("Which delimiters would finish this line?\n{body}", "{body}\nEnd it properly."),
        "depth": ("At which nesting level does this line stop?\n{body}", "{body}\nGive the level reached."),
        "balance": ("Is the nesting of this line correct?\n{body}", "{body}\nCorrect nesting?"),
    },
)


# json_schema ---------------------------------------------------------------------------------------------------------
def value_of(rng: Random, kind: str, shifted: bool) -> str:
    if kind == "int":
        return str(rng.randint(100, 999) if shifted else rng.randint(0, 99))
    return rng.choice(("true", "false")) if kind == "bool" else rng.choice(COLOURS[shifted] + OBJECTS[shifted])


def draw_json(rng: Random, shifted: bool):
    kinds = rng.sample(("int", "str", "bool"), 3 if shifted else rng.randint(2, 3))
    fields = tuple(zip(rng.sample(KEYS[shifted], len(kinds)), kinds, strict=True))
    values = tuple(value_of(rng, kind, shifted) for kind in kinds)
    if rng.random() < 0.6:
        return "fill", fields, values, tuple(rng.sample(range(len(kinds)), len(kinds))), None
    fault = rng.choice((None, "wrong", "missing"))
    at = rng.randrange(len(kinds))
    wrong = value_of(rng, rng.choice([k for k in ("int", "str", "bool") if k != kinds[at]]), shifted)
    return "check", fields, values, None, (fault, at, wrong)


def kind_of(value: str) -> str:
    return "int" if value.isdigit() else "bool" if value in ("true", "false") else "str"


def quoted(value: str) -> str:
    return f'"{value}"' if kind_of(value) == "str" else value


def render_json(state) -> Case:
    operation, fields, values, order, fault = state
    schema = "{" + ", ".join(f'"{key}": {kind}' for key, kind in fields) + "}"
    size = f"fields_{len(fields)}"
    if operation == "fill":
        answer = "{" + ", ".join(f'"{k}": {quoted(v)}' for (k, _), v in zip(fields, values, strict=True)) + "}"
        moved = "values_in_order" if order == tuple(range(len(fields))) else "values_out_of_order"
        return Case(f"{schema}\n{' '.join(values[i] for i in order)}", answer, operation, (moved, size))
    record = dict(zip((key for key, _ in fields), values, strict=True))
    kind, at, wrong = fault
    if kind == "wrong":
        record[fields[at][0]] = wrong
    elif kind == "missing":
        del record[fields[at][0]]
    bad = [(k, "missing" if k not in record else "wrong") for k, t in fields if kind_of(record.get(k, "")) != t]
    # a missing string field reads as an empty string: absence is looked up by key, not by kind
    bad = bad or [(k, "missing") for k, _ in fields if k not in record]
    answer = f"{bad[0][1]} {bad[0][0]}" if bad else "valid"
    text = "{" + ", ".join(f'"{k}": {quoted(v)}' for k, v in record.items()) + "}"
    return Case(f"{schema}\n{text}", answer, operation, (f"{bad[0][1]}_field" if bad else "conforms", size))


def disturb_json(rng: Random, state, shifted: bool):
    operation, fields, values, order, fault = state
    at = rng.randrange(len(fields))
    if operation == "fill":
        return operation, fields, (*values[:at], value_of(rng, fields[at][1], shifted), *values[at + 1 :]), order, fault
    wrong = value_of(rng, rng.choice([k for k in ("int", "str", "bool") if k != fields[at][1]]), shifted)
    return operation, fields, values, order, ((None if fault[0] and rng.random() < 0.6 else "wrong"), at, wrong)


JSON_SCHEMA = Task(
    draw_json,
    render_json,
    disturb_json,
    {
        "fill": "Write a JSON record that fits a schema, putting each value under the key of its type.",
        "check": "Say whether a JSON record fits a schema, and if not, which key is wrong or missing.",
    },
    {
        "fill": ("Fill: {body}", "Make a record of these values.\n{body}", "Write JSON for the schema: {body}"),
        "check": ("Check: {body}", "Does the record fit the schema?\n{body}", "Validate: {body}"),
    },
    {
        "fill": ("Build an object that obeys the types.\n{body}", "{body}\nPut the values into the form."),
        "check": ("Find the fault of the object, if any.\n{body}", "{body}\nIs the form obeyed?"),
    },
)


# factual_recall ------------------------------------------------------------------------------------------------------
RELATIONS = {"capital": CAPITALS, "animal": ANIMALS, "colour": COLOURS[0], "metal": METALS}


def fact(relation: str, entity: str) -> str:
    """The one gazetteer: capitals are a bijection, the rest is a hash, so nothing but memory can tell."""
    if relation == "capital":
        return CAPITALS[(ENTITIES.index(entity) * 13 + 5) % len(CAPITALS)]
    digest = hashlib.sha256(f"{relation}/{entity}".encode()).digest()
    return RELATIONS[relation][digest[0] % len(RELATIONS[relation])]


def draw_recall(rng: Random, shifted: bool):
    if rng.random() < 0.7:
        asked = tuple((rng.choice(list(RELATIONS)), rng.choice(ENTITIES)) for _ in range(3 if shifted else 2))
        return "recall", asked
    relation = rng.choice(("animal", "colour", "metal"))
    first, second = rng.sample(ENTITIES, 2)
    if rng.random() < 0.5:
        alike = [e for e in ENTITIES if e != first and fact(relation, e) == fact(relation, first)]
        second = rng.choice(alike) if alike else second
    return "compare", ((relation, first), (relation, second))


def render_recall(state) -> Case:
    operation, asked = state
    truths = [fact(relation, entity) for relation, entity in asked]
    if operation == "recall":
        body = "; ".join(f"{relation} of {entity}" for relation, entity in asked)
        mixed = "one_relation" if len({r for r, _ in asked}) == 1 else "several_relations"
        return Case(body, "; ".join(truths), operation, (mixed, *sorted({f"asks_{r}" for r, _ in asked})))
    same = truths[0] == truths[1]
    body = f"{asked[0][0]} of {asked[0][1]} and {asked[1][1]}"
    return Case(
        body, "same" if same else "different", operation, ("equal" if same else "unequal", f"asks_{asked[0][0]}")
    )


def disturb_recall(rng: Random, state, shifted: bool):
    operation, asked = state
    at = rng.randrange(len(asked))
    free = [e for e in ENTITIES if e not in {entity for _, entity in asked}]
    return operation, (*asked[:at], (asked[at][0], rng.choice(free)), *asked[at + 1 :])


RECALL = Task(
    draw_recall,
    render_recall,
    disturb_recall,
    {
        "recall": "Recall facts about invented countries, in the order asked.",
        "compare": "Say whether two invented countries have the same animal, colour or metal.",
    },
    {
        "recall": ("Facts: {body}", "Tell what you know.\n{body}", "What is the {body}?"),
        "compare": ("Compare: {body}", "Same or different?\n{body}", "Are they alike? {body}"),
    },
    {
        "recall": ("Give these from memory.\n{body}", "{body}\nState each of them."),
        "compare": ("Is there a difference here?\n{body}", "{body}\nEqual or not?"),
    },
)


# arithmetic ----------------------------------------------------------------------------------------------------------
def draw_arithmetic(rng: Random, shifted: bool):
    operation = rng.choice(("add", "add", "subtract", "subtract", "larger"))
    top = 9999 if shifted else rng.choice((99, 999, 999))
    low = 1000 if shifted else 10 if top == 99 else 100
    first, second = rng.randint(low, top), rng.randint(low if shifted else 1, top)
    if operation == "subtract" and first < second:
        first, second = second, first
    return (operation, first, second) if first != second else draw_arithmetic(rng, shifted)


def carries(first: int, second: int) -> int:
    count = carry = 0
    while first or second:
        carry = int(first % 10 + second % 10 + carry > 9)
        count += carry
        first, second = first // 10, second // 10
    return count


def borrows(first: int, second: int) -> int:
    return carries(second, first - second)  # what is carried in adding back is what was borrowed


def render_arithmetic(state) -> Case:
    operation, first, second = state
    digits = f"digits_{max(len(str(first)), len(str(second)))}"
    if operation == "add":
        times = carries(first, second)
        return Case(
            f"{first} + {second}",
            str(first + second),
            operation,
            (f"carries_{times}", digits) + ("carry",) * (times > 0),
        )
    if operation == "subtract":
        times = borrows(first, second)
        found = (f"borrows_{times}", digits) + ("borrow",) * (times > 0)
        return Case(f"{first} - {second}", str(first - second), operation, found)
    equal = "same_length" if len(str(first)) == len(str(second)) else "different_length"
    return Case(f"{first} or {second}", str(max(first, second)), operation, (equal, digits))


def disturb_arithmetic(rng: Random, state, shifted: bool):
    operation, first, second = state
    text = list(str(first))
    at = rng.randrange(len(text))
    text[at] = rng.choice([d for d in "123456789" if d != text[at]])
    changed = int("".join(text))
    fits = changed != second and (operation != "subtract" or changed > second)
    return (operation, changed, second) if fits else state


ARITHMETIC = Task(
    draw_arithmetic,
    render_arithmetic,
    disturb_arithmetic,
    {
        "add": "Add two whole numbers.",
        "subtract": "Subtract the second whole number from the first.",
        "larger": "Say which of two whole numbers is larger.",
    },
    {
        "add": ("Compute {body}", "What is the sum?\n{body}", "{body} ="),
        "subtract": ("Compute {body}", "What is the difference?\n{body}", "{body} ="),
        "larger": ("Larger: {body}", "Which number is larger?\n{body}", "The bigger one of {body}"),
    },
    {
        "add": ("Work out the total.\n{body}", "{body}\nResult of the addition?"),
        "subtract": ("Work out what remains.\n{body}", "{body}\nResult of the subtraction?"),
        "larger": ("Pick the greater value.\n{body}", "{body}\nWhich is more?"),
    },
)
