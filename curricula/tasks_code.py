"""Families over small Python programs; the truth is computed here and checked against the interpreter in the tests."""

import re
from random import Random

from curricula.task import Case, Task
from curricula.words import COLOURS, VARIABLES


# code_syntax ---------------------------------------------------------------------------------------------------------
def statement(rng: Random, shifted: bool) -> list[str]:
    a, b = rng.sample(VARIABLES[shifted], 2)
    n, k = rng.randint(0, 9), rng.randint(1, 9)
    word = rng.choice(COLOURS[shifted])
    return rng.choice(
        (
            [f"if {a} > {n}:", f"    {b} = {a} + {k}"],
            [f"for {a} in range({k}):", f"    {b} = {b} + {a}"],
            [f"while {a} < {k}:", f"    {a} = {a} + 1"],
            [f"def {a}({b}):", f"    return {b} * {k}"],
            [f"{a} = [{n}, {k}, {b}]"],
            [f"{a} = ({b} + {n}) * {k}"],
            [f'print("{word}", {a})'],
            [f'{a} = "{word}"'],
            [f"{a} = max({b}, {k})"],
            [f'{a} = {{"{word}": {n}}}'],
        )
    )


def draw_syntax(rng: Random, shifted: bool):
    lines: list[str] = []
    for _ in range(rng.randint(3, 4) if shifted else rng.randint(1, 2)):
        lines += statement(rng, shifted)
    fault = rng.choice(faults(lines)) if rng.random() < 0.75 else None
    return tuple(lines), fault


def faults(lines) -> list[tuple[str, int]]:
    """Every (kind, line) that can be damaged in this program."""
    found = [("indent", i) for i, line in enumerate(lines) if not line.startswith(" ")]
    for i, line in enumerate(lines):
        found += [("colon", i)] * line.endswith(":")
        found += [("bracket", i)] * any(c in line for c in ")]}")
        found += [("quote", i)] * ('"' in line)
    return found


def damaged(lines, fault) -> list[str]:
    """One character changed (an indentation added), so that the line no longer parses."""
    out = list(lines)
    kind, at = fault
    if kind == "indent":
        out[at] = "  " + out[at]
    elif kind == "colon":
        out[at] = out[at][:-1] + ";"
    elif kind == "quote":
        last = out[at].rindex('"')
        out[at] = out[at][:last] + "'" + out[at][last + 1 :]
    else:
        last = max(out[at].rfind(c) for c in ")]}")
        out[at] = out[at][:last] + {")": "]", "]": ")", "}": ")"}[out[at][last]] + out[at][last + 1 :]
    return out


def render_syntax(state) -> Case:
    lines, fault = state
    size = f"lines_{len(lines)}"
    block = ("has_block",) * any(line.endswith(":") for line in lines)
    if fault is None:
        return Case("\n".join(lines), "ok", "check_syntax", ("parses", size, *block))
    return Case(
        "\n".join(damaged(lines, fault)),
        f"{fault[0]} {fault[1] + 1}",
        "check_syntax",
        (f"bad_{fault[0]}", size, *block),
    )


def disturb_syntax(rng: Random, state, shifted: bool):
    lines, fault = state
    return lines, None if fault and rng.random() < 0.6 else rng.choice(faults(lines))


CODE_SYNTAX = Task(
    draw_syntax,
    render_syntax,
    disturb_syntax,
    {"check_syntax": "Say whether a small program parses, and if not, what is wrong in which line."},
    {
        "check_syntax": (
            "Syntax:\n{body}",
            "Does this parse? Name the fault and the line.\n{body}",
            "Check this code.\n{body}",
        )
    },
    {"check_syntax": ("Would the interpreter accept this?\n{body}", "{body}\nWhere is the mistake above, if any?")},
)


# code_semantics ------------------------------------------------------------------------------------------------------
# A line is (name, left, sign, right, guard): guard is None, ("if", name, bound) or ("for", times).
def draw_semantics(rng: Random, shifted: bool):
    operation = rng.choice(("assign", "assign", "branch", "loop"))
    names = rng.sample(VARIABLES[shifted], 2)
    lines: list[tuple] = [
        (names[0], str(rng.randint(1, 9)), "", "", None),
        (names[1], str(rng.randint(1, 9)), "", "", None),
    ]
    for _ in range(rng.randint(3, 4) if shifted else rng.randint(1, 2 if operation == "assign" else 1)):
        lines.append(step(rng, names, None))
    if operation != "assign":
        guard = ("if", rng.choice(names), rng.randint(1, 9)) if operation == "branch" else ("for", rng.randint(2, 3))
        target, sign = rng.choice(names), rng.choice("+-") if operation == "branch" else "+"
        lines.append((target, target, sign, str(rng.randint(1, 5)), guard))
    return operation, tuple(lines), lines[-1][0] if rng.random() < 0.7 else rng.choice(names)


def step(rng: Random, names, guard):
    right = rng.choice([*names, str(rng.randint(1, 9))])
    return (
        rng.choice(names),
        rng.choice(names),
        rng.choice("++-*") if right.isdigit() else rng.choice("+-"),
        right,
        guard,
    )


def run(lines) -> tuple[dict[str, int], bool]:
    """The values at the end, and whether the guarded line (if any) ran."""
    values: dict[str, int] = {}
    ran = False
    for name, left, sign, right, guard in lines:
        times = 1 if guard is None else guard[1] if guard[0] == "for" else int(values[guard[1]] > guard[2])
        ran = ran or (guard is not None and times > 0)
        for _ in range(times):
            a = values[left] if left in values else int(left)
            b = 0 if not right else values[right] if right in values else int(right)
            values[name] = a + b if sign in ("", "+") else a - b if sign == "-" else a * b
    return values, ran


def render_semantics(state) -> Case:
    operation, lines, asked = state
    text = []
    for name, left, sign, right, guard in lines:
        if guard is not None:
            text.append(f"if {guard[1]} > {guard[2]}:" if guard[0] == "if" else f"for i in range({guard[1]}):")
        text.append(("    " if guard else "") + f"{name} = {left}" + (f" {sign} {right}" if sign else ""))
    values, ran = run(lines)
    value = values[asked]
    taken = (
        "straight" if operation == "assign" else "looped" if operation == "loop" else "taken" if ran else "not_taken"
    )
    facts = [taken, f"lines_{len(lines)}"] + ["product"] * any(x[2] == "*" for x in lines) + ["negative"] * (value < 0)
    return Case("\n".join([*text, f"print({asked})"]), str(value), operation, tuple(facts))


def disturb_semantics(rng: Random, state, shifted: bool):
    operation, lines, asked = state
    at = rng.randrange(2)
    name, _, sign, right, guard = lines[at]
    return operation, (*lines[:at], (name, str(rng.randint(1, 9)), sign, right, guard), *lines[at + 1 :]), asked


CODE_SEMANTICS = Task(
    draw_semantics,
    render_semantics,
    disturb_semantics,
    {
        "assign": "Say what a program of plain assignments prints.",
        "branch": "Say what a program with one condition prints.",
        "loop": "Say what a program with one short loop prints.",
    },
    dict.fromkeys(
        ("assign", "branch", "loop"), ("Run:\n{body}", "What does this print?\n{body}", "Output of this code:\n{body}")
    ),
    dict.fromkeys(
        ("assign", "branch", "loop"),
        ("Trace the program by hand.\n{body}", "{body}\nWhich number appears on the screen?"),
    ),
)


# dead_code -----------------------------------------------------------------------------------------------------------
def draw_dead(rng: Random, shifted: bool):
    count = rng.randint(6, 7) if shifted else rng.randint(3, 5)
    if rng.random() < 0.5:
        kinds = [rng.choice(("work", "work", "guard")) for _ in range(count)]
        if rng.random() < 0.75:
            kinds[rng.randrange(count)] = "return"
        name = rng.choice(VARIABLES[shifted])
        return "unreachable", (name, rng.choice(VARIABLES[shifted])), tuple((k, rng.randint(1, 9)) for k in kinds)
    while True:
        names = rng.sample(VARIABLES[shifted], count)
        reads = tuple(rng.choice(names[:i]) if i and rng.random() < 0.75 else None for i in range(count))
        lines = tuple(zip(names, reads, (rng.randint(1, 9) for _ in names), strict=True))
        if len(unread(lines)) <= 1:
            return "unused", None, lines


def unread(lines) -> list[str]:
    """Names assigned and never read; the last one is printed."""
    read = {reads for _, reads, _ in lines} | {lines[-1][0]}
    return [name for name, _, _ in lines if name not in read]


def render_dead(state) -> Case:
    operation, heads, lines = state
    size = f"lines_{len(lines)}"
    if operation == "unused":
        text = [f"{n} = {r} + {k}" if r else f"{n} = {k}" for n, r, k in lines] + [f"print({lines[-1][0]})"]
        dead = unread(lines)
        return Case(
            "\n".join(text), dead[0] if dead else "none", operation, ("one_unused" if dead else "all_used", size)
        )
    name, function = heads
    forms = {"work": "    {n} = {n} + {k}", "guard": "    if {n} > {k}: return {k}", "return": "    return {n}"}
    text = [f"def {function}({name}):"] + [forms[kind].format(n=name, k=k) for kind, k in lines]
    kinds = [kind for kind, _ in lines]
    stop = kinds.index("return") if "return" in kinds else len(kinds)
    dead = stop < len(kinds) - 1
    guard = ("guarded_return",) * ("guard" in kinds[:stop])
    answer = f"line {stop + 3}" if dead else "none"  # lines count from 1 and the def is the first
    return Case("\n".join(text), answer, operation, ("tail_unreachable" if dead else "all_reachable", size, *guard))


def disturb_dead(rng: Random, state, shifted: bool):
    operation, heads, lines = state
    if operation == "unreachable":
        at = rng.randrange(len(lines))
        kind = rng.choice([k for k in ("work", "guard", "return") if k != lines[at][0]])
        return operation, heads, (*lines[:at], (kind, lines[at][1]), *lines[at + 1 :])
    places = [i for i, line in enumerate(lines) if line[1]]
    if not places:
        return state
    at = rng.choice(places)
    name, _, k = lines[at]
    changed = (*lines[:at], (name, rng.choice([n for n, _, _ in lines[:at]]), k), *lines[at + 1 :])
    return (operation, heads, changed) if len(unread(changed)) <= 1 else state


DEAD_CODE = Task(
    draw_dead,
    render_dead,
    disturb_dead,
    {
        "unused": "Name the variable that is assigned but never read, if there is one.",
        "unreachable": "Name the first line of a function that can never run, if there is one.",
    },
    {
        "unused": ("Unused:\n{body}", "Which variable is never read?\n{body}", "Find the useless variable.\n{body}"),
        "unreachable": (
            "Unreachable:\n{body}",
            "Which line can never run?\n{body}",
            "Find the first dead line.\n{body}",
        ),
    },
    {
        "unused": ("One name may be deleted safely, which?\n{body}", "{body}\nName what nobody needs."),
        "unreachable": ("Where does the dead part begin?\n{body}", "{body}\nFrom where on is it never executed?"),
    },
)


# variable_renaming ---------------------------------------------------------------------------------------------------
def draw_renaming(rng: Random, shifted: bool):
    names = rng.sample(VARIABLES[shifted], 5)
    lines = tuple(expression(rng, names[:3]) for _ in range(2 if shifted else rng.randint(1, 2)))
    used = [n for n in names[:3] if any(n in line for line in lines)]
    operation = "swap" if rng.random() < 0.3 and len(used) > 1 else "rename"
    old = rng.choice(used)
    return operation, lines, old, rng.choice([n for n in used if n != old]) if operation == "swap" else names[3], used


def expression(rng: Random, names) -> tuple[str, ...]:
    """A line as its tokens, so that renaming is by token and never by text."""
    target, a, b = rng.choice(names), rng.choice(names), rng.choice(names)
    n = str(rng.randint(1, 9))
    return rng.choice(
        (
            (target, " = ", a, " + ", b),
            (target, " = ", a, " * ", n, " - ", b),
            (target, " = max(", a, ", ", b, ")"),
            (target, " = ", a, "[", b, "]"),
            (target, " = ", a, ' + "', f"'{b}'", '"'),  # a name inside a string is not a variable
        )
    )


def render_renaming(state) -> Case:
    operation, lines, old, new, _ = state
    change = {old: new, new: old} if operation == "swap" else {old: new}

    def written(table):
        return "\n".join("".join(table.get(t, t) for t in line).replace("'", "") for line in lines)

    count = sum(t in change for line in lines for t in line)
    quote = ("name_in_string",) * any(f"'{name}'" in line for line in lines for name in change)
    body = f"{written({})}\n{old} {'and' if operation == 'swap' else 'to'} {new}"
    return Case(body, written(change), operation, (f"occurrences_{min(count, 4)}", f"lines_{len(lines)}", *quote))


def disturb_renaming(rng: Random, state, shifted: bool):
    operation, lines, old, new, used = state
    others = [n for n in used if n not in (old, new)]
    if others and rng.random() < 0.7:
        return operation, lines, rng.choice(others), new, used
    if operation == "rename":
        known = {t for line in lines for t in line}
        return operation, lines, old, rng.choice([v for v in VARIABLES[shifted] if v not in known]), used
    return state


def names_in(line: str) -> list[str]:
    return re.findall(r"[a-z]+", re.sub(r'"[^"]*"', "", line))


RENAMING = Task(
    draw_renaming,
    render_renaming,
    disturb_renaming,
    {
        "rename": "Rewrite code with one variable renamed everywhere.",
        "swap": "Rewrite code with two variables exchanged everywhere.",
    },
    {
        "rename": ("Rename:\n{body}", "Change one variable name.\n{body}", "Rewrite with the new name:\n{body}"),
        "swap": ("Swap:\n{body}", "Exchange the two variables.\n{body}", "Rewrite with both names exchanged:\n{body}"),
    },
    {
        "rename": ("Give the same code after the replacement.\n{body}", "{body}\nApply the last line to the code."),
        "swap": ("Give the same code with the roles traded.\n{body}", "{body}\nTrade the two names of the last line."),
    },
)
