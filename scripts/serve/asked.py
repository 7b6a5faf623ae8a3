"""A request's body, read and checked: what is understood is taken, what would be ignored at a price is refused."""

import json
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from agp.models import tensors
from agp.models.tensors import clean
from agp.text import Tokenizer
from heads.bundle import Bundle
from scripts.routes import MODES, limited
from scripts.serve.limits import Limits
from scripts.serve.refusal import Refused, wrong

RISK = 0.01  # of early, where none is given
SHORT = 16  # tokens of a completion that says nothing of its length, as OpenAI has it
MOST_STOPS, LONGEST_STOP = 4, 1000
MOST_SHOWN = {"chat": 20, "completion": 5}  # logprobs a token

UNDERSTOOD = frozenset("model max_tokens temperature top_p seed stop stream stream_options logprobs agp".split())
OWN = {
    "chat": UNDERSTOOD | {"messages", "max_completion_tokens", "top_logprobs"},
    "completion": UNDERSTOOD | {"prompt"},
}
HARMLESS = frozenset(
    "user store metadata service_tier safety_identifier prompt_cache_key prompt_cache_retention "
    "parallel_tool_calls".split()
)
NEUTRAL: dict[str, tuple] = {  # what changes an answer and is not done here: the values that ask for nothing
    "n": (1,),
    "best_of": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "modalities": (["text"],),
    "echo": (False,),
    "suffix": ("",),
    "reasoning_effort": ("none",),
}


class Served(NamedTuple):
    """What there is to be asked."""

    name: str
    tokenizer: Tokenizer
    context: int  # tokens
    vocabulary: int
    heads: Bundle | None

    def longest(self, mode: str) -> int:
        """Tokens of a text that goes this way."""
        room = None if mode == "full" or self.heads is None else self.heads.room
        return self.context if room is None else min(self.context, room)


@dataclass(frozen=True)
class Asked:
    prompt: Sequence[int]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stops: tuple[str, ...] = ()
    mode: str = "full"
    risk: float | None = None  # of early
    trace: bool = False
    shown: int | None = None  # of how many tokens beside each its logprob is told; None: of none at all


class How(NamedTuple):
    """How the answer is sent."""

    stream: bool
    usage: bool  # in a chunk of its own


def shown(value: Any) -> str:
    """As JSON has it."""
    return "missing" if value is None else json.dumps(value) if isinstance(value, bool) else tensors.shown(value)


def parsed(body: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        found = json.loads(body, parse_constant=refuse)
    except RecursionError as e:
        raise Refused(400, "the body is nested too deep") from e
    except ValueError as e:
        why = "a number has too many digits" if "Exceeds the limit" in str(e) else clean(str(e), 200)
        raise Refused(400, f"the body is not JSON: {why}") from e
    if not isinstance(found, dict):
        raise Refused(400, f"the body is {shown(found)}; a JSON object is needed")
    return {name: value for name, value in found.items() if value is not None}


def read(kind: str, raw: bytes, served: Served, limits: Limits) -> tuple[Asked, How]:
    """`kind` is "chat" or "completion"."""
    body = parsed(raw)
    known(kind, body, served)
    fields, agp = Fields(body), Fields(body.get("agp", {}), "agp.")
    prompt = conversation(served, body) if kind == "chat" else given(served, body)
    mode, risk = routed(agp, served)
    fit(prompt, served, mode, limits)
    seed = fields.number("seed", -(2**63), 2**64 - 1, secrets.randbits(63), whole=True)
    asked = Asked(
        prompt=prompt,
        max_tokens=length(kind, fields, limits),
        temperature=fields.number("temperature", 0, 2, 0.0),
        top_p=fields.number("top_p", math.ulp(0), 1, 1.0),
        seed=int(seed) % 2**64,
        stops=stops(body),
        mode=mode,
        risk=risk,
        trace=agp.flag("trace"),
        shown=logprobs(kind, fields),
    )
    options = Fields(body.get("stream_options", {}), "stream_options.")
    return asked, How(fields.flag("stream"), options.flag("include_usage"))


class Fields:
    """Values of one JSON object, each as what it must be."""

    def __init__(self, of: Any, under: str = ""):
        if not isinstance(of, Mapping):
            raise wrong(under[:-1], f"{under[:-1]} is {shown(of)}; an object is needed")
        self.of, self.under = of, under

    def flag(self, name: str) -> bool:
        value = self.of.get(name)
        return self.checked(name, False if value is None else value, lambda value: type(value) is bool, "true or false")

    def number(self, name: str, low: float, high: float, default: Any, whole: bool = False) -> Any:
        value, kinds = self.of.get(name), (int,) if whole else (int, float)
        least = "above 0" if low == math.ulp(0) else f"from {low}"
        what = f"a {'whole ' if whole else ''}number {least} to {high}"
        fits = lambda value: type(value) in kinds and low <= value <= high
        return default if value is None else self.checked(name, value, fits, what)

    def checked(self, name: str, value: Any, fits: Callable[[Any], bool], what: str) -> Any:
        if not fits(value):
            raise wrong(self.under + name, f"{self.under}{name} is {shown(value)}; {what} is needed")
        return value


def known(kind: str, body: Mapping[str, Any], served: Served) -> None:
    """The model is this one, and nothing is asked for that would silently not be done."""
    for name, value in body.items():
        if name in NEUTRAL:
            if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in NEUTRAL[name]):
                raise wrong(name, f"{name} is {shown(value)}, and is not supported here; leave it out")
        elif name not in OWN[kind] | HARMLESS:
            raise wrong(clean(name, 60), f"{shown(name)} is not known here, and might change the answer; leave it out")
    model = body.get("model")
    if not isinstance(model, str):
        raise wrong("model", f"model is {shown(model)}; the name of one is needed, and {served.name} is here")
    if model != served.name:
        raise Refused(
            404, f"there is no model {shown(model)} here; {served.name} is", param="model", code="model_not_found"
        )


def conversation(served: Served, body: Mapping[str, Any]) -> list[int]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", f"messages is {shown(messages)}; a list of messages is needed, one at least")
    said = [message(f"messages.{n}", of) for n, of in enumerate(messages)]
    try:
        return served.tokenizer.chat(said)
    except ValueError as e:
        raise wrong("messages", str(e)) from e


def message(where: str, of: Any) -> dict[str, str]:
    if not isinstance(of, dict):
        raise wrong(where, f"{where} is {shown(of)}; an object with role and content is needed")
    role, content = of.get("role"), of.get("content")
    role = "system" if role == "developer" else role
    if role not in ("system", "user", "assistant"):
        raise wrong(f"{where}.role", f"{where}.role is {shown(role)}; system, user or assistant is needed")
    if odd := sorted(name for name in of.keys() - {"role", "content", "name"} if of[name] not in (None, [])):
        raise wrong(f"{where}.{clean(odd[0], 60)}", f"{where} has {shown(odd[0])}, which is not supported here")
    if isinstance(content, list):
        content = "".join(part(f"{where}.content.{n}", one) for n, one in enumerate(content))
    return {"role": role, "content": text(f"{where}.content", content)}


def part(where: str, of: Any) -> str:
    kind = of.get("type") if isinstance(of, dict) else None
    if kind != "text":
        raise wrong(where, f"{where} is {shown(of if kind is None else kind)}; text parts alone are supported here")
    return text(f"{where}.text", of.get("text"))


def text(where: str, of: Any) -> str:
    if not isinstance(of, str):
        raise wrong(where, f"{where} is {shown(of)}; text is needed")
    try:
        of.encode()
    except UnicodeEncodeError as e:
        raise wrong(where, f"{where} is not Unicode text: half a surrogate pair stands at {e.start}") from e
    return of


def given(served: Served, body: Mapping[str, Any]) -> list[int]:
    """A completion's prompt: text, or ids, which are taken as they are; either may be the only one of a list."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise wrong("prompt", f"prompt holds {len(prompt)} prompts; one a request is supported here")
        prompt = prompt[0]
    if not isinstance(prompt, list):
        return served.tokenizer.encode(text("prompt", prompt))
    if not prompt:
        raise wrong("prompt", "prompt is empty; one token at least is needed")
    if odd := [id for id in prompt if type(id) is not int or not 0 <= id < served.vocabulary]:
        raise wrong("prompt", f"prompt holds {shown(odd[0])}; token ids from 0 to {served.vocabulary - 1} are needed")
    return prompt


def fit(prompt: Sequence[int], served: Served, mode: str, limits: Limits) -> None:
    count = len(prompt)
    if count > served.context:
        what = f"the prompt has {count} tokens, and the context of {served.name} holds {served.context}"
        raise Refused(400, what, param="messages", code="context_length_exceeded")
    if count > (room := served.longest(mode)):
        what = f"the prompt has {count} tokens, and {mode} takes {room} here: `agp export --room` makes heads for more"
        raise Refused(400, what, param="messages", code="context_length_exceeded")
    if limits.prompt is not None and count > limits.prompt:
        what = f"the prompt has {count} tokens, and this server takes {limits.prompt} at most"
        raise Refused(400, what, param="messages", code="context_length_exceeded")


def length(kind: str, fields: Fields, limits: Limits) -> int:
    """In tokens. Where a chat says nothing of it, as long as may be."""
    default = limits.tokens if kind == "chat" else min(SHORT, limits.tokens)
    most = fields.number("max_tokens", 1, limits.tokens, default, whole=True)
    return fields.number("max_completion_tokens", 1, limits.tokens, most, whole=True) if kind == "chat" else most


def stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    found = body.get("stop", [])
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or len(found) > MOST_STOPS:
        raise wrong("stop", f"stop is {shown(found)}; a text, or a list of up to {MOST_STOPS}, is needed")
    for n, one in enumerate(found):
        if not 1 <= len(text(f"stop.{n}", one)) <= LONGEST_STOP:
            raise wrong("stop", f"stop.{n} has {len(one)} characters; 1 to {LONGEST_STOP} are needed")
    return tuple(found)


def routed(agp: Fields, served: Served) -> tuple[str, float | None]:
    """The mode, and the risk of early."""
    if odd := sorted(agp.of.keys() - {"mode", "risk", "trace"}):
        raise wrong(f"agp.{clean(odd[0], 60)}", f"agp has {shown(odd[0])}; mode, risk and trace are known")
    mode = agp.of.get("mode") or "full"
    if mode not in MODES:
        raise wrong("agp.mode", f"agp.mode is {shown(mode)}; one of {', '.join(MODES)} is needed")
    if mode != "full" and served.heads is None:
        raise wrong("agp.mode", f"agp.mode {mode} needs the heads of a run, and {served.name} is a model alone")
    if mode != "early":
        if agp.of.get("risk") is not None:
            raise wrong("agp.risk", f"agp.risk is for the mode early; {mode} takes none")
        return mode, None
    risk = float(agp.number("risk", 0, 1, RISK))
    assert served.heads is not None
    try:
        limited(served.heads, risk)
    except ValueError as e:
        raise wrong("agp.risk", str(e)) from e
    return mode, risk


def logprobs(kind: str, fields: Fields) -> int | None:
    most = MOST_SHOWN[kind]
    if kind == "completion":
        return fields.number("logprobs", 0, most, None, whole=True)
    count = fields.number("top_logprobs", 0, most, None, whole=True)
    if not fields.flag("logprobs"):
        if count is not None:
            raise wrong("top_logprobs", "top_logprobs is given without logprobs: true")
        return None
    return count or 0
