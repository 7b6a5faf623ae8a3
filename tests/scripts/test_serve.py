"""`agp serve` as OpenAI's own client sees it, and whoever sends what no client would.

Seen to fail when broken: chunks sent to another stream, a row kept after its client left, more rows than the batch has,
a queue without an end, a seed that is dropped, a body's length looked up in its header alone, a token or a host that is
not looked at, a page without its policy, SIGTERM left to uvicorn.
"""

import asyncio
import http.client
import json
import signal
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import openai
import pytest

import agp
from agp.artifacts import write_results
from scripts import cli
from scripts.routes import opened
from scripts.serve.engine import Engine, Opened
from scripts.serve.limits import Limits
from scripts.serve.openai import Api
from scripts.serve.running import Server
from tests.launch import MODELS, ended, start
from tests.scripts.test_engine import TASKS, Asked, alone, chat, tiny
from tests.scripts.test_routes import lax

LIMITS = Limits(batch=8, queue=400, body=20_000, prompt=400, tokens=3000)
MARKUP = "<script>alert('&amp;')</script> <b>c b a</b>"


def model() -> Opened:
    return Opened(agp.load("tiny-gemma4", dtype="float32"))


def endless() -> Opened:
    """No mark ends a reply, so that it is as long as it may be."""
    given = model()
    given.loaded.tokenizer.eos_ids = ()
    return given


class Running:
    """A server on a free port, and clients of it."""

    def __init__(self, open=model, limits: Limits = LIMITS, token: str | None = None):
        self.engine = Engine("tiny", open, limits)
        self.engine.start()
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        self.server = Server(self.engine, token)
        self.thread = threading.Thread(target=self.server.until_stopped, args=(self.sock,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *raised):
        self.engine.limits = replace(self.engine.limits, grace=0)
        self.server.stop()
        self.thread.join(60)
        assert not self.thread.is_alive() and not self.engine.thread.is_alive()

    def client(self, kind=openai.OpenAI, api_key: str = "none"):
        return kind(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=api_key, max_retries=0, timeout=120)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str):
        """Status, headers and body, with nobody's help."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, ({"Content-Type": "application/json"} if body else {}) | named)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def metric(self, line: str) -> float:
        said = self.ask("GET", "/metrics")[2].decode()
        return next(float(one.split()[-1]) for one in said.splitlines() if one.startswith(line))


@pytest.fixture(scope="module")
def running():
    with Running() as running:
        yield running


@pytest.fixture(scope="module")
def client(running):
    with running.client() as client:
        yield client


@pytest.fixture(scope="module")
def routed(tmp_path_factory):
    """The smallest run, with a threshold that lets all go."""
    folder = tmp_path_factory.mktemp("lax")
    lax(folder)
    with Running(lambda: Opened(*opened(folder))) as running:
        yield running


@pytest.fixture(scope="module")
def small():
    """Room for one reply and one that waits."""
    with Running(endless, Limits(batch=1, queue=1)) as running:
        yield running


def user(content) -> list[dict]:
    return [{"role": "user", "content": content}]


def said(stream) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def generated(capsys, *words: str) -> str:
    assert cli.main(["generate", "--model", "tiny-gemma4", "--dtype", "float32", *words]) == 0
    return capsys.readouterr().out.removesuffix("\n")


def test_it_says_what_agp_generate_says(client, capsys):
    for words, how in (
        ([], {}),
        (["--temperature", "1.5", "--top-p", "0.9", "--seed", "3"], {"temperature": 1.5, "top_p": 0.9, "seed": 3}),
    ):
        given = {"model": "tiny", "max_tokens": 20} | how
        whole = client.chat.completions.create(messages=user(TASKS[3]), **given)
        choice = whole.choices[0]
        expected = generated(capsys, "--chat", "--prompt", TASKS[3], "--max-tokens", "20", *words)
        assert choice.message.content == expected != "" and choice.message.role == "assistant"
        assert whole.usage.prompt_tokens == len(chat(TASKS[3]))
        assert choice.finish_reason == ("length" if whole.usage.completion_tokens == 20 else "stop")
        text = client.completions.create(prompt="def f(x):", **given).choices[0]
        assert text.text == generated(capsys, "--prompt", "def f(x):", "--max-tokens", "20", *words)


def test_a_stream_is_the_whole_in_parts(client):
    given = {"model": "tiny", "messages": user(TASKS[1]), "max_tokens": 12, "temperature": 1.0, "seed": 1}
    whole = client.chat.completions.create(**given)
    chunks = list(client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}))
    assert said(chunks) == whole.choices[0].message.content and len(chunks) > 3
    assert chunks[0].choices[0].delta.role == "assistant"
    *_, last, used = chunks
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason and used.usage == whole.usage
    assert {chunk.id for chunk in chunks} == {last.id} and all(chunk.usage is None for chunk in chunks[:-1])
    ids = tiny().loaded.tokenizer.encode("def f(x):")
    texts = [
        "".join(one.choices[0].text for one in client.completions.create(model="tiny", prompt=prompt, stream=True))
        for prompt in ("def f(x):", ids, [ids], ["def f(x):"])
    ]
    assert texts == [alone(Asked(ids, 16), ends=tiny().loaded.tokenizer.eos_ids)] * 4


def test_only_what_is_no_part_of_a_stop_string_is_streamed(client):
    given = {"model": "tiny", "prompt": "def f(x):", "max_tokens": 20}
    whole = client.completions.create(**given).choices[0].text
    for begin in (1, 5, 6):
        stop = whole[begin : begin + 4]
        chunks = list(client.completions.create(**given, stop=["nowhere", stop], stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole[: whole.find(stop)]
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_seed_decides_and_no_seed_does_not(client):
    draw = lambda **seed: (
        client.chat.completions.create(model="tiny", messages=user("x"), max_tokens=16, temperature=2.0, **seed)
        .choices[0]
        .message.content
    )
    assert draw(seed=5) == draw(seed=5) != draw(seed=-5)
    assert len({draw() for _ in range(4)}) > 1


def test_markup_comes_back_as_text(running, client):
    found = client.chat.completions.create(
        model="tiny", messages=user([{"type": "text", "text": MARKUP}]), max_tokens=20
    )
    assert found.choices[0].message.content == alone(Asked(chat(MARKUP), 20), ends=tiny().loaded.tokenizer.eos_ids)
    body = json.dumps({"model": MARKUP, "messages": user("x")}).encode()
    status, headers, answer = running.ask("POST", "/v1/chat/completions", body)
    assert status == 404 and MARKUP.split()[0] in json.loads(answer)["error"]["message"]
    assert headers["Content-Type"] == "application/json" and headers["X-Content-Type-Options"] == "nosniff"


def test_models(client, routed):
    assert [one.id for one in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").id == "tiny"
    with routed.client() as run:
        about = run.models.list().data[0].model_extra["agp"]
    assert about["modes"] == ["full", "early", "lossless"] and about["blocks"] == 12
    assert about["risks"] and all(float(risk) for risk in about["risks"]) and about["taps"][0] == 4
    assert about["peer"] is False and about["tokens"] == LIMITS.tokens
    assert client.models.retrieve("tiny").model_extra["agp"] == {"tokens": LIMITS.tokens}


def test_how_likely_tokens_were(client):
    found = client.chat.completions.create(
        model="tiny", messages=user(TASKS[0]), logprobs=True, top_logprobs=3, max_tokens=4
    ).choices[0]
    told = found.logprobs.content
    assert "".join(of.token for of in told) == found.message.content
    assert all(of.top_logprobs[0].token == of.token and len(of.top_logprobs) == 3 for of in told), "greedy"
    assert all(0 >= of.logprob == of.top_logprobs[0].logprob >= of.top_logprobs[1].logprob for of in told)
    text = client.completions.create(model="tiny", prompt="def f(x):", logprobs=2, max_tokens=5).choices[0]
    assert "".join(text.logprobs.tokens) == text.text and text.logprobs.text_offset[1] == len(text.logprobs.tokens[0])
    assert max(text.logprobs.top_logprobs[0].values()) == text.logprobs.token_logprobs[0]


def test_a_trace_says_how_each_token_was_made(routed):
    given = {"model": "tiny", "messages": user(TASKS[0]), "max_tokens": 12}
    texts, blocks = {}, {}
    with routed.client() as client:
        for mode in ("full", "lossless", "early"):
            told = given | {"extra_body": {"agp": {"mode": mode, "trace": True}}}
            whole = client.chat.completions.create(**told).choices[0]
            chunks = list(client.chat.completions.create(**told, stream=True))
            entries = [entry for of in chunks for entry in getattr(of.choices[0], "agp", [])]
            if mode != "early":  # where an audit decides which tokens go on
                strip = lambda of: {name: value for name, value in of.items() if name not in ("ms", "vitality")}
                assert list(map(strip, entries)) == list(map(strip, whole.model_extra["agp"]))
            texts[mode], blocks[mode] = said(chunks), {entry["block"] for entry in entries}
            shown = "".join(of["text"] for of in entries if not of["text"].startswith("<"))
            assert shown == texts[mode]
            assert {"text", "token", "route", "block", "vitality", "concepts", "ms"} <= entries[0].keys()
    assert texts["full"] == texts["lossless"] and blocks["full"] == {11} and 4 in blocks["early"]
    assert routed.metric('agp_tokens_total{mode="early",route="revive_local"}') > 0


def test_the_client_raises_what_it_should(client):
    with pytest.raises(openai.NotFoundError, match="there is no model 'other' here; tiny is") as missing:
        client.chat.completions.create(model="other", messages=user("x"))
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.BadRequestError, match="temperature is 7; a number from 0 to 2 is needed") as wrong:
        client.chat.completions.create(model="tiny", messages=user("x"), temperature=7)
    assert wrong.value.param == "temperature" and wrong.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="has 5000 tokens, and the context of tiny holds 4096") as long:
        client.completions.create(model="tiny", prompt=[5] * 5000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="has 500 tokens, and this server takes 400"):
        client.completions.create(model="tiny", prompt=[5] * 500)
    with pytest.raises(openai.NotFoundError, match="POST /v1/embeddings: Not Found"):
        client.embeddings.create(model="tiny", input="x")


CHAT = {"model": "tiny", "messages": user("x"), "max_tokens": 2}


def test_a_body_is_measured_while_it_comes(running):
    whole = json.dumps(CHAT | {"user": "x" * LIMITS.body}).encode()
    for body in (whole, iter([whole[:15000], whole[15000:]])):
        status, _, answer = running.ask("POST", "/v1/chat/completions", body, Content_Type="application/json")
        assert status == 413 and "longer than 20000 bytes" in json.loads(answer)["error"]["message"]
    status, _, answer = running.ask("POST", "/v1/chat/completions", b"{}", Content_Type="text/plain")
    assert status == 415 and "application/json is needed" in json.loads(answer)["error"]["message"]


def test_a_token_is_asked_for_and_a_name_that_is_not_this_machines_is_refused(running):
    with Running(token="a-secret-of-the-house") as guarded:
        for key in ("none", "a-secret-of-the-hous", "é"):
            status, headers, _ = guarded.ask("GET", "/v1/models", Authorization=f"Bearer {key}")
            assert status == 401 and headers["WWW-Authenticate"] == "Bearer"
        with guarded.client() as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        with guarded.client(api_key="a-secret-of-the-house") as client:
            assert client.models.list().data
        assert guarded.ask("GET", "/metrics")[0] == 401 and guarded.ask("GET", "/health")[0] == 200
    for name, status in (
        ("evil.example", 403),
        ("localhost:80", 200),
        ("[::1]", 200),
        ("127.0.0.2:8430", 200),
        ("", 403),
        ("127.0.0.1.evil.example:8430", 403),
    ):
        assert running.ask("GET", "/v1/models", Host=name)[0] == status


def test_too_many_are_turned_away_and_who_leaves_makes_room(small):
    with small.client() as client:
        given = {"model": "tiny", "messages": user("x"), "stream": True, "temperature": 2.0}
        first = client.chat.completions.create(**given, max_tokens=3000)
        next(first)
        waits = threading.Thread(target=lambda: list(client.chat.completions.create(**given, max_tokens=3, seed=1)))
        waits.start()
        until(lambda: small.metric("agp_queue ") == 1)
        with pytest.raises(openai.RateLimitError, match="1 replies are under way and 1 requests wait") as refused:
            client.chat.completions.create(**given)
        assert refused.value.response.headers["Retry-After"] == "1" and refused.value.code == "rate_limit_exceeded"
        assert small.metric("agp_rows ") == 1
        first.close()
        waits.join(30)
        assert not waits.is_alive() and list(client.chat.completions.create(**given, max_tokens=3))
        until(lambda: small.metric("agp_rows ") == 0)
        assert small.metric('agp_requests_total{path="/v1/chat/completions",status="429"}') == 1


def until(done, seconds: float = 30):
    last = time.perf_counter() + seconds
    while not done():
        assert time.perf_counter() < last
        time.sleep(0.02)


def test_a_whole_answer_that_nobody_waits_for_frees_its_row_too(small):
    connection = http.client.HTTPConnection("127.0.0.1", small.port)
    body = json.dumps(CHAT | {"max_tokens": 3000})
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    until(lambda: small.metric("agp_rows ") == 1)
    connection.close()
    until(lambda: small.metric("agp_rows ") == 0)
    until(lambda: small.metric('agp_requests_total{path="/v1/chat/completions",status="499"}') == 1)
    assert 'path="/v1/chat/completions",status="500"' not in small.ask("GET", "/metrics")[2].decode()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_of_ours_is_a_status_and_not_an_end(running, monkeypatch):
    async def broken(self, request):
        raise KeyError("a bug")

    monkeypatch.setattr(Api, "body", broken)
    status, _, answer = running.ask("POST", "/v1/chat/completions", b"{}")
    assert status == 500 and json.loads(answer)["error"]["type"] == "server_error" and b"a bug" not in answer
    monkeypatch.undo()
    assert running.ask("POST", "/v1/chat/completions", json.dumps(CHAT).encode())[0] == 200


def test_the_page_is_three_files_under_strict_headers(running):
    for path, kind in (("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")):
        status, headers, body = running.ask("GET", path)
        assert status == 200 and headers["Content-Type"].startswith(kind) and body
        assert headers["Content-Security-Policy"].startswith("default-src 'self';")
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"


def test_what_is_counted(running):
    said = running.ask("GET", "/metrics")[2].decode()
    for name in ("agp_first_token_seconds_bucket", "agp_token_seconds_sum", "agp_queue ", "agp_rows "):
        assert f"\n{name}" in said
    assert 'agp_requests_total{path="other",status="404"}' in said and "door.py" not in said


WORDS = ("mean", "total", "first", "find", "reverse")


def streams(running: Running, count: int) -> int:
    """So many at once; how many of them say what their prompt alone says."""
    asked = []
    for n in range(count):
        drawn = {"temperature": 1.2, "seed": n} if n % 3 == 0 else {}
        prompt = tiny().loaded.tokenizer.encode(f"def {WORDS[n % 5]}_{n}(x{n * 7 % 100}, y):" + WORDS[n % 4])
        asked.append(Asked(prompt, 12, **drawn))
    most, rows = [], running.engine.metrics.rows
    watch = lambda value, set=rows.set: (most.append(value), set(value))
    rows.set = watch

    async def all_of_them() -> list[str]:
        async with running.client(openai.AsyncOpenAI) as client:
            return await asyncio.gather(*(one(client, of) for of in asked))

    async def one(client, of: Asked) -> str:
        how = {"temperature": of.temperature, "seed": of.seed, "max_tokens": of.max_tokens}
        told = await client.completions.create(model="tiny", prompt=list(of.prompt), stream=True, **how)
        return "".join([chunk.choices[0].text async for chunk in told])

    try:
        found = asyncio.run(all_of_them())
    finally:
        del rows.set
    assert max(most) == running.engine.limits.batch, "as many as may be, and no more"
    expected = [alone(of) for of in asked]
    assert len(set(expected)) > count / 2
    return sum(a == b for a, b in zip(found, expected, strict=True))


@pytest.fixture(scope="module")
def busy():
    with Running(endless, LIMITS) as running:
        yield running


def test_many_streams_at_once_are_whole_and_their_own(busy):
    assert streams(busy, 24) == 24


@pytest.mark.slow
def test_very_many_streams_at_once_are_whole_and_their_own(busy):
    assert streams(busy, 200) == 200


@pytest.mark.prove
def test_the_figure_of_many_streams(busy):
    command = "pytest -m prove tests/scripts/test_serve.py"
    write_results("serve", {"serve.streams": {"value": streams(busy, 200), "goal": ">= 200", "command": command}})


@contextmanager
def serving(*words: str):
    """A process of its own, and its port."""
    command = ["-m", "scripts.cli", "serve", "--model", str(MODELS["gemma4"]), "--port", "0", *words]
    with start(command) as process:
        try:
            line = next((line for line in process.stderr if "answers at" in line), "")
            yield process, int(line.partition("127.0.0.1:")[2].partition("/")[0])
        finally:
            process.kill()


@pytest.mark.parametrize("grace, whole", [("30", True), ("0.3", False)])
def test_told_to_stop_it_lets_streams_end_or_ends_them(grace, whole):
    with serving("--dtype", "float32", "--grace", grace, "--tokens", "3000") as (process, port):
        given = {"model": "tiny-gemma4", "prompt": [2], "temperature": 2.0, "seed": 1, "stream": True}
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
            stream = client.completions.create(**given, max_tokens=60 if whole else 3000)
            chunks = [next(stream)]
            process.send_signal(signal.SIGTERM)
            chunks += list(stream)
        code, out = ended(process, 60)
    text, finish = "".join(chunk.choices[0].text for chunk in chunks), chunks[-1].choices[0].finish_reason
    asked = Asked([2], 60, temperature=2.0, seed=1)
    assert (text == alone(asked, ends=tiny().loaded.tokenizer.eos_ids)) if whole else (text and finish == "length")
    assert code == 0 and "Traceback" not in out


@pytest.mark.parametrize(
    "words, what",
    [
        (["--model", "tiny-gemma4", "--host", "0.0.0.0"], "at 0.0.0.0 others could ask too; give --token-file"),
        (["--model", "tiny-gemma4", "--batch", "0"], "--batch is 0; 1 or more is needed"),
        (["--model", "nowhere/at-all"], "nowhere/at-all"),
        (["--run", "tests"], "tests is no finished run"),
        (["--run", "tests", "--dtype", "float16"], "a run has its own; leave out --dtype"),
        (["--model", "tiny-gemma4", "--name", "a b"], "clients cannot call it 'a b'"),
        (["--model", "tiny-gemma4", "--port", "99999"], "no port 99999"),
    ],
)
def test_a_server_that_makes_no_sense_is_refused(words, what, capsys, monkeypatch):
    monkeypatch.delenv("AGP_TOKEN", raising=False)
    words = [*words, *([] if "--port" in words else ["--port", "0"])]
    assert cli.main(["serve", *words]) == 2
    assert what in capsys.readouterr().err.splitlines()[-1]
