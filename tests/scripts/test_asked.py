"""What cannot be asked of `agp serve`: each is refused by name, in OpenAI's shape, and the server lives on.

Seen to fail when broken: a field ignored that would change the answer.
"""

import json

import pytest

from tests.scripts.test_serve import CHAT, Running, user


@pytest.fixture(scope="module")
def running():
    with Running() as running:
        yield running


TEXT = {"model": "tiny", "prompt": "x", "max_tokens": 2}
ILL = {
    "no JSON": (b"{", "the body is not JSON"),
    "no UTF-8": (b'{"model": "\xff"}', "the body is not JSON"),
    "nothing": (b" ", "the body is not JSON"),
    "a list": (b"[]", "the body is []"),
    "NaN": (b'{"temperature": NaN}', "NaN is no JSON"),
    "a number of many digits": (b'{"seed": ' + b"9" * 9000 + b"}", "the body is not JSON"),
    "too deep": (b"[" * 9000, "the body is nested too deep"),
    "too many digits": (b'{"seed": ' + b"9" * 5000 + b"}", "the body is not JSON: a number has too many digits"),
    "deep enough": (b'{"messages": ' + b"[" * 900 + b"]" * 900 + b"}", ""),
    "no model": ({"messages": user("x")}, "model is missing"),
    "no messages": ({"model": "tiny"}, "messages is missing"),
    "messages that are none": (CHAT | {"messages": []}, "messages is []"),
    "a message that is none": (CHAT | {"messages": ["x"]}, "messages.0 is"),
    "an unknown role": (CHAT | {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role is"),
    "no content": (CHAT | {"messages": [{"role": "user"}]}, "messages.0.content is"),
    "an image": (CHAT | {"messages": user([{"type": "image_url", "image_url": {"url": "x"}}])}, "text parts alone"),
    "half a character": (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud83d"}]}', "not Unicode"),
    "called tools": (CHAT | {"messages": [user("x")[0] | {"tool_calls": [1]}]}, "has 'tool_calls'"),
    "tools": (CHAT | {"tools": [{"type": "function"}]}, "tools is"),
    "a format": (CHAT | {"response_format": {"type": "json_schema"}}, "response_format is"),
    "several": (CHAT | {"n": 2}, "n is 2"),
    "biased": (CHAT | {"logit_bias": {"5": 1}}, "logit_bias is"),
    "aloud": (CHAT | {"audio": {}}, "audio"),
    "penalty": (CHAT | {"presence_penalty": 0.5}, "presence_penalty is"),
    "unknown": (CHAT | {"top_k": 5}, "'top_k' is not known here"),
    "no number": (CHAT | {"temperature": "hot"}, "temperature is 'hot'"),
    "infinite": (b'{"model": "tiny", "prompt": "x", "messages": [], "temperature": 1e999}', ""),
    "true": (CHAT | {"max_tokens": True}, "max_tokens is true"),
    "half a token": (CHAT | {"max_tokens": 1.5}, "max_tokens is 1.5"),
    "no token": (CHAT | {"max_tokens": 0}, "max_tokens is 0"),
    "too many": (CHAT | {"max_tokens": 3001}, "a whole number from 1 to 3000 is needed"),
    "too many, newly named": (CHAT | {"max_completion_tokens": 3001}, "max_completion_tokens is"),
    "no share": (CHAT | {"top_p": 0}, "top_p is 0; a number above 0 to 1"),
    "no seed": (CHAT | {"seed": 2**64}, "seed is"),
    "stops": (CHAT | {"stop": list("abcde")}, "up to 4"),
    "an empty stop": (CHAT | {"stop": ""}, "stop.0 has 0 characters"),
    "a stop that is none": (CHAT | {"stop": [5]}, "stop.0 is 5"),
    "streamed how": (CHAT | {"stream": "yes"}, "stream is 'yes'; true or false is needed"),
    "options": (CHAT | {"stream_options": 5}, "stream_options is 5; an object is needed"),
    "likely": (CHAT | {"top_logprobs": 2}, "without logprobs"),
    "likely, how many": (CHAT | {"logprobs": True, "top_logprobs": 21}, "top_logprobs is 21"),
    "a mode": (CHAT | {"agp": {"mode": "fast"}}, "agp.mode is 'fast'"),
    "a mode without heads": (CHAT | {"agp": {"mode": "early"}}, "needs the heads of a run"),
    "a mode of many": (CHAT | {"agp": {"mode": ["full"]}}, "agp.mode is"),
    "a risk": (CHAT | {"agp": {"risk": 0.01}}, "agp.risk is for the mode early"),
    "a route": (CHAT | {"agp": {"depth": 3}}, "agp has 'depth'"),
    "routes that are none": (CHAT | {"agp": 1}, "agp is 1; an object is needed"),
    "several prompts": (TEXT | {"prompt": ["a", "b"]}, "prompt holds 2 prompts"),
    "ids": (TEXT | {"prompt": [5, 99999]}, "prompt holds 99999"),
    "ids that are none": (TEXT | {"prompt": [5, "x"]}, "prompt holds 'x'"),
    "no ids": (TEXT | {"prompt": []}, "prompt is empty"),
    "no prompt": ({"model": "tiny"}, ""),
    "echo": (TEXT | {"echo": True}, "echo is"),
}


@pytest.mark.parametrize("body, what", ILL.values(), ids=ILL)
def test_what_makes_no_sense_is_refused_and_the_server_lives_on(running, body, what):
    kind = "completions" if isinstance(body, dict) and "prompt" in body else "chat/completions"
    status, headers, answer = running.ask(
        "POST", f"/v1/{kind}", body if isinstance(body, bytes) else json.dumps(body).encode()
    )
    error = json.loads(answer)["error"]
    assert status == 400 and what in error["message"]
    assert error.keys() == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert running.ask("GET", "/health")[0] == 200 and not running.engine.rows


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/chat", 404),
        ("GET", "/page/../door.py", 404),
        ("GET", "/%2e%2e/door.py", 404),
        ("GET", "/page.js.map", 404),
        ("GET", "/v1/models/%3Cb%3E", 404),
    ],
)
def test_other_paths_and_methods_are_refused_in_the_same_shape(running, method, path, status):
    found, _, answer = running.ask(method, path)
    assert found == status and json.loads(answer)["error"]["message"]
