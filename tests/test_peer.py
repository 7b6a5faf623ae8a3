"""Whatever the other host does, the text is that of this one alone, and no call takes longer than it may.

Seen to fail when broken: no deadline for the whole of a call, no bound on an answer's length, a refused answer raised,
no breaker or one that waits where waiting is hopeless, sessions kept that the peer no longer has, no look at the terms,
a proxy asked instead of the peer.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

from agp.artifacts import write_results
from agp.generate import make_sampler
from agp.packet import frames
from agp.receiver import Receiver
from tests.launch import ROOT, free_ports, start
from tests.peers import PROMPTS, Texts, Timed, alone, away, joined, lying, offer, receiver, remote, serving, toy
from tests.test_packet import flipped, put, sum_of, summed

LITTLE = 1.0  # seconds that a call may take beyond its own, on a machine that does other things too
SECONDS = 0.4  # of a call to one that never answers
STALLS = ("stalls", "stalls in the middle", "drips a header", "drips a body", "works too long")


class Liar(Receiver):
    """It does its work, and after so many answers says something else."""

    def __init__(self, *given, after=0, twist, **more):
        super().__init__(*given, **more)
        self.after, self.twist, self.said = after, twist, []

    def finish(self, body):
        said = super().finish(body)
        self.said += [said] if said else []
        if not said or len(self.said) <= self.after:
            return said
        question = body[-16 - self.asked(body) :]
        return self.twist(self, question, said)

    def asked(self, body):
        of = next(iter(self.offers.values())).terms
        return len(frames(body, of)[-1].tokens) * (4 + of.payload)


def mended(at: int, new: bytes) -> Callable[..., bytes]:
    """A lie that its checksum bears out."""
    return lambda liar, question, said: summed(put(said, at, new), sum_of(question))


def failing(liar, question, said):
    raise RuntimeError("the model fails")


def working(liar, question, said):
    time.sleep(2 * SECONDS)
    return said


def stalling(liar, question, said):
    time.sleep(3.0)
    return said


LIES = {
    "nothing": lambda liar, question, said: b"",
    "noise": lambda liar, question, said: random.Random(len(liar.said)).randbytes(len(said)),
    "half an answer": lambda liar, question, said: said[: len(said) // 2],
    "more than an answer": lambda liar, question, said: said + b"\0",
    "another version": lambda liar, question, said: b"\xa2" + said[1:],
    "a bit flipped": lambda liar, question, said: flipped(said, 8 * 17),
    "an old answer": lambda liar, question, said: liar.said[0],
    "another session": mended(4, b"\1\2\3\4"),
    "another position": mended(8, b"\1\0\0\0"),
    "fewer positions": lambda liar, question, said: summed(put(said, 2, b"\1\0")[:20], sum_of(question)),
    "no such token": mended(16, b"\xff\xff\0\0"),
    "the question": lambda liar, question, said: question,
}


@contextmanager
def nobody():
    yield f"http://127.0.0.1:{free_ports(1)[0]}"


def telling(twist, after=0):
    return lambda family: serving(receiver(family, Liar, twist=twist, after=after))


def raw(*said: bytes, pause: float = 0.0, ends: bool = True):
    """Bytes one after another, whatever is asked."""

    def answer(link):
        for part in said:
            link.sendall(part)
            time.sleep(pause)
        if not ends:
            while link.recv(1 << 16):  # until it hangs up
                pass

    return lambda family: lying(answer)


def forgetful(family):
    class Forgetful(Receiver):
        def finish(self, body):
            self.sessions.clear()
            return super().finish(body)

    return serving(receiver(family, Forgetful))


def unlike(**changes):
    def there(family):
        model = toy(family)
        return serving(Receiver(model, [offer(model, **changes)]))

    return there


def lines(status: bytes, *more: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *more, b"", b""])


class Fault(NamedTuple):
    there: Callable[[str], AbstractContextManager[str]]
    reason: str
    answered: int = 0  # calls
    how: dict[str, Any] = {}


drips = [bytes([b]) for b in lines(b"200 OK", b"x: " + b"y" * 60)]
FAULTS = {
    "is not there": Fault(lambda family: nobody(), "connect"),
    "hangs up": Fault(raw(b""), "lost"),
    "hangs up in the middle": Fault(raw(lines(b"200 OK", b"content-length: 28") + b"\xa1"), "lost"),
    "stalls": Fault(raw(ends=False), "time"),
    "stalls in the middle": Fault(raw(lines(b"200 OK", b"content-length: 28") + b"\xa1", ends=False), "time"),
    "drips a header": Fault(raw(*drips, pause=0.05), "time"),
    "drips a body": Fault(raw(lines(b"200 OK", b"content-length: 28"), *[b"\xa1"] * 28, pause=0.1), "time"),
    "speaks no HTTP": Fault(raw(b"\x00\x01\x02\xff" * 99), "lost"),
    "says more than there can be": Fault(raw(lines(b"200 OK", b"content-length: 99999") + b"\xa1" * 9999), "odd"),
    "sends it elsewhere": Fault(
        raw(lines(b"302 Found", b"location: http://127.0.0.1:1/", b"content-length: 0")), "status"
    ),
    "is busy for ever": Fault(raw(lines(b"503 Busy", b"content-length: 0", b"connection: close")), "busy"),
    "fails": Fault(telling(failing), "status"),
    "works too long": Fault(telling(working), "time"),
    "stalls after a while": Fault(telling(stalling, after=2), "time", answered=2, how={"seconds": 2.0}),
    "forgets everything at once": Fault(forgetful, "prefix"),
    "has another adapter": Fault(unlike(adapter="d" * 64), "terms"),
    "has other weights": Fault(unlike(weights="d" * 64), "terms"),
    "begins at another block": Fault(unlike(sent=3), "terms"),
    "wants another token": Fault(lambda family: serving(receiver(family), token="x" * 16), "token"),
    "wants a token": Fault(lambda family: serving(receiver(family)), "token", how={"token": None}),
    "takes no long bodies": Fault(lambda family: serving(receiver(family), longest=900), "refused"),
} | {f"says {lie}": Fault(telling(twist, after=1), "odd", answered=1) for lie, twist in LIES.items()}


class Outcome(NamedTuple):
    same: bool
    answered: int
    reasons: dict[str, int]
    beyond: float  # seconds that the longest call took beyond its own


def outcome(fault: str, family: str, count: int, **how) -> Outcome:
    there, _, _, own = FAULTS[fault]
    seconds = SECONDS if fault in STALLS else 20.0
    model = toy(family)
    with (
        there(family) as address,
        remote(address, family, **{"seconds": seconds, "failures": 2, "rest": 60} | own | how) as peer,
    ):
        beyond = Timed(peer.beyond())
        same = away(model, beyond, PROMPTS[:1], count) == [alone(model, PROMPTS[0], count)]
        return Outcome(same, peer.counts.answered, dict(peer.counts.failures), max(beyond.seconds) - peer.seconds)


LONG = ("stalls after a while",)


@pytest.mark.parametrize("fault", [pytest.param(f, marks=[pytest.mark.slow] * (f in LONG)) for f in FAULTS])
def test_whatever_the_peer_does_the_text_is_that_of_this_host(fault):
    """The breaker opens after two failures, so that a peer that stalls costs this much and no more."""
    _, reason, answered, _ = FAULTS[fault]
    found = outcome(fault, "gemma4", 7)
    hopeless = reason in ("token", "terms")
    assert (found.same, found.answered, found.reasons) == (True, answered, {reason: 1 if hopeless else 2})
    assert found.beyond < LITTLE


@pytest.mark.parametrize("family", ["gemma4", "gemma3n"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_over_http_the_text_is_that_of_this_host(family, temperature, monkeypatch):
    """States go to the peer, whatever proxy others use."""
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    model, sampler = toy(family), make_sampler(temperature, 0.9, seed=5)
    with serving(receiver(family)) as address, remote(address, family) as peer:
        beyond = Timed(peer.beyond())
        assert away(model, beyond, PROMPTS[:1], 12, sampler) == [alone(model, PROMPTS[0], 12, sampler)]
        counts = peer.counts
        assert all(beyond.answered) and counts.trips == counts.calls + 1, "one opens, and each of the others asks"
        each = offer(model).terms
        lent = 2 * sum(lender.heads * lender.width for lender in each.lenders) * 4
        assert counts.sent > 3 * len(beyond.answered) * (each.payload + 4 + lent) and counts.received > 0


def process(*command: str) -> tuple[subprocess.Popen, str]:
    run = start([*command])
    assert run.stdout is not None
    return run, run.stdout.readline().strip()


def test_a_peer_that_is_killed_and_comes_back_is_made_use_of_again():
    """It has lost all sessions; they are opened anew, with all that the text had so far."""
    model, port = toy("gemma4"), str(free_ports(1)[0])
    command = ["-m", "tests.peers", "gemma4", "127.0.0.1", port]
    runs = [process(*command)]

    def before(call):
        if call == 3:
            runs[0][0].kill()
            runs[0][0].communicate()
        if call == 6:
            runs.append(process(*command))

    try:
        with remote(runs[0][1], "gemma4", failures=2, rest=0.0) as peer:
            beyond = Timed(peer.beyond(), before)
            assert away(model, beyond, PROMPTS[:1], 30) == [alone(model, PROMPTS[0], 30)]
            assert beyond.answered[:7] == [True] * 3 + [False] * 3 + [True] and all(beyond.answered[6:])
            assert set(peer.counts.failures) == {"connect"} and len(beyond.answered) > 8
    finally:
        for run, _ in runs:
            run.send_signal(signal.SIGTERM)
            assert run.communicate(timeout=20)[1] == ""


def test_after_a_rest_one_call_sees_whether_the_peer_is_well():
    model = toy("gemma4")
    port = free_ports(1)[0]
    with remote(f"http://127.0.0.1:{port}", tries=1, failures=1, rest=0.0) as peer:
        stream, ids = one(model)
        beyond = peer.beyond()
        assert beyond(stream, ids, [0], logits=False) is None and peer.breaker.failed == 1
        assert beyond(stream, ids, [0], logits=False) is None and peer.breaker.failed == 2
        peer.breaker.rest = 60.0
        assert beyond(stream, ids, [0], logits=False) is None and not peer.breaker.lets
        calls = peer.counts.calls
        assert beyond(stream, ids, [0], logits=False) is None and peer.counts.calls == calls, "it rests"


def one(model):
    return joined([Texts(model, PROMPTS[:1]).run(np.array([[5]]))], model.config), mx.array([[5]])


def test_a_connection_that_the_peer_closed_meanwhile_is_made_anew():
    model = toy("gemma4")
    stream, ids = one(model)
    with remote("http://127.0.0.1:1") as peer:
        beyond = peer.beyond()
        for _ in range(2):
            with serving(receiver()) as address:
                peer.link.client.base_url = address
                assert beyond(stream, ids, [0], logits=False) is not None, peer.counts.last


def ip(*words: str) -> int:
    return subprocess.run(["ip", *words], capture_output=True).returncode


@contextmanager
def cable():
    """Another host, as far as its network goes: a namespace of its own, on a cable that can be pulled; None where this
    may not be had."""
    name = f"agp{random.SystemRandom().randrange(10**6)}"
    if shutil.which("ip") is None or ip("netns", "add", name):
        yield None
        return
    try:
        ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", name, "up")
        for words in (
            ["addr", "add", "10.213.77.1/30", "dev", name],
            ["-n", name, "addr", "add", "10.213.77.2/30", "dev", "eth0"],
            ["-n", name, "link", "set", "eth0", "up"],
        ):
            assert ip(*words) == 0, words
        yield name
    finally:
        ip("netns", "del", name)
        ip("link", "del", name)


def partition(network: str, family: str, count: int) -> Outcome:
    """The cable is pulled at the other end for four calls: what is sent vanishes, and nobody says so."""
    model, seconds = toy(family), 2.0
    inside = ["ip", "netns", "exec", network, sys.executable, "-m", "tests.peers", family, "10.213.77.2", "9430"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(inside, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None

    def before(call):
        if call in (2, 6):
            ip("-n", network, "link", "set", "eth0", "down" if call == 2 else "up")

    try:
        with remote(run.stdout.readline().strip(), family, seconds=seconds, failures=9) as peer:
            beyond = Timed(peer.beyond(), before)
            same = away(model, beyond, PROMPTS[:1], count) == [alone(model, PROMPTS[0], count)]
            assert beyond.answered[:6] == [True, True, False, False, False, False] and beyond.answered[-1]
            return Outcome(same, peer.counts.answered, dict(peer.counts.failures), max(beyond.seconds) - seconds)
    finally:
        run.kill()
        run.communicate()


@pytest.mark.slow
def test_a_cable_that_is_pulled_costs_time_and_no_token():
    with cable() as network:
        if network is None:
            pytest.skip("no right to make a network namespace (tests/SKIPS.md)")
        found = partition(network, "gemma4", 30)
    assert found.same and found.answered > 2 and found.beyond < LITTLE, found


@pytest.mark.prove
def test_faults_figure():
    """Every fault, both families; and a cable pulled, where one may be."""
    found = {}
    for family in ("gemma4", "gemma3n"):
        for fault in FAULTS:
            found[f"{family}: a peer that {fault}"] = outcome(fault, family, 60)
        with cable() as network:
            if network is not None:
                found[f"{family}: a cable that is pulled"] = partition(network, family, 60)
    figures = {
        "faults.wrong_outputs": {"value": sum(not o.same for o in found.values()), "goal": "<= 0"},
        "faults.seconds_beyond": {"value": round(max(o.beyond for o in found.values()), 3), "goal": f"<= {LITTLE:g}"},
    }
    command = {"command": "pytest -m prove tests/test_peer.py"}
    table = {name: o._asdict() | {"beyond": round(o.beyond, 3)} for name, o in found.items()}
    write_results("faults", {name: figure | command for name, figure in figures.items()}, faults=table, seeds=[3])
    assert all(o.same and o.beyond < LITTLE for o in found.values())
