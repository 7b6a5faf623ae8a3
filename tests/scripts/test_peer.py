"""`agp peer`: who is let in, how much is read of whom, and for how long; and that nothing else ever gets through.

Seen to fail when broken: a token compared by ==, or as far as it goes; a body not measured, or waited for without end;
what is kept computed while somebody waits, or never; any type of body taken; a body that ends early; no token needed
for other addresses; a checksum not looked at.
"""

import hmac
import random
import resource
import signal
import socket
import sys
import time
from statistics import median

import httpx2
import mlx.core as mx
import numpy as np
import pytest

from agp.artifacts import write_results
from agp.beyond import within
from agp.packet import RAW, Prefix, States, frames, opening, read_opening, written
from agp.peer import Remote
from agp.receiver import Receiver
from scripts import cli
from scripts.offers import offered
from scripts.routes import opened
from scripts.serve.peer import STATUS, TYPE, Door, is_loopback, listening
from tests.curricula.run import smoke
from tests.launch import ended, start
from tests.peers import PROMPTS, TOKEN, Texts, Timed, alone, joined, offer, receiver, remote, serving, toy
from tests.test_packet import Case, damaged, fault, split, summed

FAST, FULL = 300, 10_000  # damaged requests
HEADERS = {"authorization": f"Bearer {TOKEN}", "content-type": TYPE}


@pytest.fixture
def asked():
    """What is answered to a body."""
    with serving(receiver()) as address, httpx2.Client(base_url=address, trust_env=False) as client:

        def ask(path, body, **headers):
            return client.post(path, content=body, headers=HEADERS | headers)

        yield ask


def ready(of, wire, number=7):
    """An opening, and a request with an answer."""
    texts = Texts(toy("gemma4"), PROMPTS[:1])
    stream = joined([texts.run(np.array([[5]]))], texts.model.config)
    begin = stream.end - 1
    prefixes = [Prefix(number, stream.end - kv.keys.shape[2], {kind: kv}) for kind, kv in stream.shared.items()]
    sent = States(number, begin, mx.array([5], mx.int32), wire.pack(stream.hidden.reshape(1, -1), mx.array([5])))
    return opening(of, number), b"".join(written(p, of) for p in [*prefixes, sent])


def test_every_refusal_has_a_status_and_one_line(asked):
    of, wire = offer(toy("gemma4"))
    hello, question = ready(of, wire)
    found = [
        asked("/v1/finish", question),
        asked("/v1/open", hello),
        asked("/v1/open", hello),
        asked("/v1/finish", question[-16 - 4 - of.payload :]),
        asked("/v1/finish", question),
        asked("/v1/finish", question[:-1]),
        asked("/v1/finish", b""),
        asked("/v1/open", opening(offer(toy("gemma4"), adapter=None).terms, 8)),
        asked("/v1/open", hello, **{"content-type": "text/plain"}),
        asked("/", b""),
    ]
    assert [r.status_code for r in found] == [404, 200, 409, 409, 200, 400, 400, 412, 415, 404]
    said = {3: "prefix missing from position 0", 5: "byte ", 7: "adapter is 'bbbbbbbbbbbb' here and none there"}
    assert all(found[i].text.startswith(text) and "\n" not in found[i].text for i, text in said.items())
    assert len(found[4].content) == 20 and found[1].content == b"" and "server" not in found[0].headers


TOKENS = {
    "none": {},
    "another": {"authorization": "Bearer another-token-of-this-length-"},
    "its beginning": {"authorization": f"Bearer {TOKEN[:-1]}"},
    "more than it": {"authorization": f"Bearer {TOKEN}x"},
    "without a scheme": {"authorization": TOKEN},
    "not ASCII": {"authorization": "Bearer \xe9".encode("latin-1")},
}


@pytest.mark.parametrize("given", TOKENS.values(), ids=TOKENS)
def test_without_the_token_nothing_is_read(given, monkeypatch):
    """It is compared in a time that says nothing of it: by hmac.compare_digest, all of it, and by nothing before."""
    compared = []

    def compare(a, b):
        compared.append((a, b))
        return hmac_compare(a, b)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    seen = receiver()
    seen.open = seen.finish = None  # which would fail if they were called
    with serving(seen) as address:
        answer = httpx2.post(f"{address}/v1/open", content=b"x" * 100, headers={"content-type": TYPE} | given)
    whole = given.get("authorization", "")
    assert answer.status_code == 401 and answer.text == "the token is missing, or is another"
    assert compared == [(whole if isinstance(whole, bytes) else whole.encode(), f"Bearer {TOKEN}".encode())]


def talk(address: str, *parts: bytes, pause: float = 0.0, patience: float = 20.0) -> tuple[bytes, int]:
    """All that is answered to these bytes, and how many could be sent; who says no more after a while has ended."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as link:
        sent = 0
        try:
            for part in parts:
                link.sendall(part)
                sent += len(part)
                time.sleep(pause)
        except OSError:  # it has hung up
            pass
        found = b""
        link.settimeout(patience)
        try:
            while part := link.recv(1 << 16):
                found += part
                link.shutdown(socket.SHUT_WR)
        except OSError:  # time is over, or it has hung up
            pass
        return found, sent


def head(path: str, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: here", *(f"{name}: {value}" for name, value in HEADERS.items()), *more]
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_body_is_measured_while_it_comes():
    """It says nothing of its length, and has no end."""
    with serving(receiver(), longest=100_000) as address:
        chunk = b"4000\r\n" + bytes(0x4000) + b"\r\n"
        found, sent = talk(address, head("/v1/finish", "transfer-encoding: chunked"), *[chunk] * 1000)
        assert found.startswith(b"HTTP/1.1 413 ") or not found, "where much is on its way the answer may be lost"
        assert sent < 16_000_000, "it hung up"
        small = head("/v1/finish", "content-length: 100001") + bytes(100_001)
        assert talk(address, small)[0].endswith(b"the body is longer than 100000 bytes")


def test_a_body_that_does_not_come_is_not_waited_for():
    with serving(receiver(), seconds=0.3) as address:
        started = time.perf_counter()
        found, _ = talk(address, head("/v1/finish", "content-length: 1000"), b"x")
        assert found.endswith(b"it took longer than 0.3 s") and time.perf_counter() - started < 3
        assert talk(address, head("/v1/finish", "content-length: 1000") + b"x", patience=0.05)[0] == b""


def test_who_comes_while_the_model_works_is_answered_after_it():
    done = []

    class Slow(Receiver):
        def finish(self, body):
            time.sleep(0.3)
            done.append(body)
            return super().finish(body)

    with serving(receiver(kind=Slow)) as address, httpx2.Client(base_url=address, trust_env=False) as client:
        with socket.create_connection(("127.0.0.1", int(address.split(":")[2]))) as working:
            working.sendall(head("/v1/finish", "content-length: 1") + b"x")
            time.sleep(0.1)
            assert client.post("/v1/open", content=b"").status_code == 401 and done == [b"x"]
            assert working.recv(100).startswith(b"HTTP/1.1 400 ")


def test_what_is_kept_is_computed_when_the_answer_is_on_its_way():
    told = []

    class Telling(Receiver):
        def finish(self, body):
            said = super().finish(body)
            told.append("answered")
            return said

        def settle(self):
            time.sleep(0.3)
            super().settle()
            told.append("settled")

    of, wire = offer(toy("gemma4"))
    hello, question = ready(of, wire)
    with serving(receiver(kind=Telling)) as address, httpx2.Client(base_url=address, trust_env=False) as client:
        for path, body in (("open", hello), ("finish", question), ("finish", question)):
            assert client.post(f"/v1/{path}", content=body, headers=HEADERS).status_code == 200
            told.append("heard")
    assert told == ["heard", "settled", *2 * ["answered", "heard", "settled"]], "and before the next question is read"


class Watched(Receiver):
    """It keeps what it took."""

    def __init__(self, *given, **more):
        super().__init__(*given, **more)
        self.opened, self.taken, self.failed = [], [], []

    def open(self, body):
        super().open(body)
        self.opened.append(body)

    def finish(self, body):
        said = super().finish(body)
        self.taken.append(body)
        return said


class Guarded(Door):
    """It keeps the headers of what was let in, and what broke."""

    def __init__(self, *given, **how):
        super().__init__(*given, **how)
        self.receiver.let = []

    async def answered(self, request, work):
        found = await super().answered(request, work)
        if found.status_code not in (401, 415):
            self.receiver.let.append((request.method, request.headers.get("authorization"), found.status_code))
        return found


def requests(of, wire) -> list[tuple[bytes, bytes]]:
    """Whole ones: heads, and bodies."""
    hello, question = ready(of, wire)
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (question[:99], question[99:], b""))
    return [
        (head("/v1/open", f"content-length: {len(hello)}"), hello),
        (head("/v1/finish", f"content-length: {len(question)}"), question),
        (head("/v1/finish", "transfer-encoding: chunked"), chunked),
    ]


def spoilt(rng, whole, other, of):
    """One request, damaged in its head, its body or both; now and then with what is needed to be read at all."""
    top, body = whole
    where = rng.random()
    if where < 0.5:
        body = damaged(rng, body, other[1]) or b"\0"
        if rng.random() < 0.5:
            parts = split(body, of)
            body = b"".join(
                summed(part, of.mark if b"finish" in top else 0) if len(part) >= 16 else part for part in parts
            )
        if rng.random() < 0.8 and b"chunked" not in top:
            top = top.split(b"content-length")[0] + b"content-length: %d\r\n\r\n" % len(body)
    if where > 0.4:
        top = damaged(rng, top, other[0]) or b"\0"
    return top + body


def memory() -> float:
    """Bytes at most, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fuzzed(count: int, seed: int):
    of, wire = offer(toy("gemma4"))
    rng, wholes, seen, grown = random.Random(seed), requests(of, wire), receiver(kind=Watched, sessions=4), 0.0
    with serving(seen, kind=Guarded) as address:
        answers: dict[str, int] = {}
        for i in range(count):
            whole, other = rng.choice(wholes), rng.choice(wholes)
            if i % 10 == 0:  # so that there is something to be asked for
                talk(address, wholes[0][0] + wholes[0][1])
            found, _ = talk(address, spoilt(rng, whole, other, of), patience=0.1)
            status = found[9:12].decode("latin-1") or "none"
            answers[status] = answers.get(status, 0) + 1
            if i == count // 5:
                grown = memory()
        grown = memory() - grown
        seen.sessions.clear()
        assert [talk(address, top + body)[0][9:12] for top, body in wholes] == [b"200"] * 3, "it is well"
    return seen, answers, grown


def wrongs(seen) -> list[str]:
    """What was taken and is not valid, each looked at once more."""
    of = offer(toy("gemma4")).terms
    case = Case(of, frames, (of,), b"", frozenset(), of.mark)
    wrong = [why for body in seen.taken if (why := fault(frames(body, of), body, case))]
    wrong += [
        "an opening" for body in seen.opened if opening(*read_opening(body)) != body or read_opening(body)[0] != of
    ]
    wrong += [f"let in with {token}" for method, token, _ in seen.let if token != f"Bearer {TOKEN}" or method != "POST"]
    return wrong


def test_of_300_damaged_requests_none_is_taken_that_is_not_valid():
    seen, answers, _ = fuzzed(FAST, 0)
    assert wrongs(seen) == [] and "500" not in answers and len(seen.taken) > 5, answers
    assert set(answers) <= {"none", "200", *(str(s) for s in STATUS.values()), "401", "405", "413", "415"}, answers


@pytest.mark.prove
def test_of_10_000_damaged_requests_none_is_taken_that_is_not_valid():
    seen, answers, grown = fuzzed(FULL, 1)
    wrong = wrongs(seen) + ["the server failed"] * answers.get("500", 0)
    command = "pytest -m prove tests/scripts/test_peer.py"
    figures = {
        "peer.fuzz_accepted_invalid": {"value": len(wrong), "goal": "<= 0", "command": command},
        "peer.fuzz_growth_mb": {"value": round(grown / 1e6, 2), "goal": "<= 16", "command": command},
    }
    write_results("peer-fuzz", figures, requests=FULL, answers=answers, taken=len(seen.taken), seeds=[1])
    assert wrong == [] and grown <= 16e6


def round_trips(count: int, kind: str) -> dict[str, float]:
    """Seconds, at the median, of an empty echo and of a packet, on one server, a process of its own, and by one client,
    in turns."""
    model, found = toy("gemma4"), {"echo": [], "packet": []}
    process = start(["-m", "tests.peers", "gemma4", "127.0.0.1", "0", kind])
    try:
        with remote(process.stdout.readline().strip()) as peer:
            texts, beyond = Texts(model, PROMPTS[:1]), Timed(peer.beyond())
            for _ in range(count):
                stream, ids = joined([texts.run(np.array([[5]]))], model.config), mx.array([[5]])
                mx.eval(stream.hidden, stream.inputs, *(a for kv in stream.shared.values() for a in kv))
                assert beyond(stream, ids, [0], logits=False) is not None
                started = time.perf_counter()
                peer.runner.run(peer.link.post("/echo", b"", 0))
                found["echo"].append(time.perf_counter() - started)
    finally:
        process.kill()
        ended(process)
    found["packet"] = beyond.seconds[1:]
    return {name: median(times) for name, times in found.items()}


@pytest.mark.prove
def test_round_trip_figure():
    """What a packet costs beside an empty echo: without the blocks that it is for, and with those of a toy."""
    found, command = {}, {"command": "pytest -m prove tests/scripts/test_peer.py"}
    for name, kind in (("idle", "idle"), ("toy", "whole")):
        found |= {f"{name}, {what}": 1e3 * seconds for what, seconds in round_trips(400, kind).items()}
    ratio = {"value": round(found["idle, packet"] / found["idle, echo"], 2), "goal": "<= 2", **command}
    write_results("peer-trips", {"packet.echo_ratio": ratio}, milliseconds=found, rounds=400, seeds=[3])


@pytest.mark.parametrize(
    "words, what",
    [
        (["--run", "tests", "--host", "0.0.0.0"], "at 0.0.0.0 others could ask too; give --token-file or AGP_TOKEN"),
        (["--run", "tests", "--port", "70000"], "there is no port 70000; those from 0"),
        (["--run", "tests", "--host", "no.such.host.invalid"], "others could ask too"),
        (["--run", "tests", "--token-file", "nowhere"], "nowhere"),
        (["--run", "tests", "--port", "0"], "tests is no finished run"),
    ],
)
def test_what_makes_no_sense_is_one_line(words, what, capsys, monkeypatch):
    monkeypatch.delenv("AGP_TOKEN", raising=False)
    code = cli.main(["peer", *words])
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and what in err.splitlines()[-1]


def test_a_port_that_is_taken_and_a_token_that_is_none_are_said(capsys, monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = str(sock.getsockname()[1])
        assert cli.main(["peer", "--run", "tests", "--port", port]) == 2
        assert f"cannot listen at 127.0.0.1, port {port}: Address already in use" in capsys.readouterr().err
    for token in ("short", "with spaces in it, though long", "\xe9" * 20, ""):
        monkeypatch.setenv("AGP_TOKEN", token)
        assert cli.main(["peer", "--run", "tests"]) == 2
        assert "AGP_TOKEN holds no token: 16 to 512 printable" in capsys.readouterr().err


def test_answers_are_not_held_back():
    """asyncio sends at once only what it knows to be TCP: with a head and a body each answer took 40 ms more."""
    with listening("127.0.0.1", 0) as sock, socket.create_connection(sock.getsockname()):
        accepted, _ = sock.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP
    with pytest.raises(ValueError, match="no.such.host.invalid is no address: "):
        listening("no.such.host.invalid", 0)


def test_only_what_is_this_machine_is_taken_for_it():
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "192.168.1.7", "127.0.0.1.example.com", ""]))


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_the_verb_takes_states_of_its_run_until_it_is_stopped(sign, tmp_path):
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    run = start(["-m", "scripts.cli", "peer", "--run", str(smoke()), "--port", "0", "--token-file", str(token)])
    try:
        line = run.stderr.readline()
        while "takes states" not in line:
            line = run.stderr.readline()
        address = line.split()[2]
        given = opened(smoke())
        offers = {(offer.terms.codec, offer.terms.sent): offer for offer in offered(smoke(), given, given.loaded.model)}
        assert f"raw after block {given.heads.taps[0]}" in line and len(offers) >= len(given.heads.taps) + 1
        of, wire = offers[RAW, given.heads.taps[0]]
        model = given.loaded.model
        prompt = given.loaded.tokenizer.chat([{"role": "user", "content": "Reverse: a b c"}])
        with Remote(address, of, wire, model.config, token=TOKEN, seconds=20) as peer:
            texts, text = Texts(model, [prompt], stop=of.sent + 1), []
            token_, beyond = prompt[-1], peer.beyond()
            for _ in range(12):
                stream = within(texts.run(np.array([[token_]])), model.config)
                said = beyond(stream, mx.array([[token_]]), [0], logits=False)
                assert said is not None, peer.counts.last
                token_ = int(said.tokens[0, 0])
                text.append(token_)
        assert text == alone(model, prompt, 12)
        run.send_signal(sign)
        code, said = ended(run, within=20)
        assert code == (-signal.SIGTERM if sign == signal.SIGTERM else 130), said
        assert said == ("" if sign == signal.SIGTERM else "agp peer: stopped\n")
    finally:
        run.kill()
        run.communicate()
