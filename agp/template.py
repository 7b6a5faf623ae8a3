"""A checkpoint's chat template, as transformers renders it: in Jinja's sandbox, compiled when first used."""

import json
from collections.abc import Sized
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agp.models.tensors import clean

LARGEST = 10_000_000  # items or characters that a template may make by multiplying
FAILURES = (  # all that a template can do wrong, while it is compiled or rendered
    TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def render(source: str, **given: Any) -> str:
    try:
        return compiled(source).render(**given)
    except TemplateSyntaxError as e:
        raise ValueError(f"the chat template does not parse: line {e.lineno}: {clean(str(e.message), 300)}") from e
    except FAILURES as e:
        said = str(e) if isinstance(e, TemplateError) else f"{type(e).__name__} {e}"
        raise ValueError(f"the chat template refuses these messages: {clean(said, 300)}") from e


@lru_cache(maxsize=8)
def compiled(source: str) -> Template:
    return Sandbox().from_string(source)


class Generation(Extension):
    """Marks what the model says, for training; here it marks nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("*", "**"))  # these fill a memory in a few characters

    def __init__(self):
        how = {"trim_blocks": True, "lstrip_blocks": True, "optimized": False}  # optimizing computes constants
        super().__init__(**how, extensions=[Generation, loopcontrols])
        self.globals |= {"raise_exception": refuse, "strftime_now": strftime_now}
        self.filters["tojson"] = tojson

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        a, b = (len(x) if isinstance(x, Sized) else abs(x) for x in (left, right))
        if operator == "**" and max(a, b) > 1000 or operator == "*" and a * b > LARGEST:
            raise TemplateError(f"{operator} would make too much of too little")
        return super().call_binop(context, operator, left, right)


def refuse(message: str) -> None:
    raise TemplateError(message)


def strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own escapes HTML and sorts keys; models were trained on neither."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def chosen(setting: object) -> str | None:
    """Of several templates with names, as tokenizer_config.json may hold them, the one named `default`."""
    if isinstance(setting, list):
        found = [one.get("template") for one in setting if isinstance(one, dict) and one.get("name") == "default"]
        setting = found[0] if found else None
    return setting if isinstance(setting, str) else None
