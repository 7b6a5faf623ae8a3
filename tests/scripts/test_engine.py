"""The thread that owns the model, driven a turn at a time: what a reply says does not hang on its company.

Seen to fail when broken: draws without the request's number, samplers kept, a row kept that left, a stop string looked
for in the newest piece alone, no turn between two chunks, an audit for each group,
an error that is not caught a request or a group at a time, a limit of time that nobody looks at, a dying thread that
forgets whose prompt it reads, an answer sent before it is counted.
"""

import math
import queue
import random
import threading
from functools import cache

import mlx.core as mx
import pytest

import agp
from agp.generate import generate, make_sampler, until
from scripts.generate import ids
from scripts.routes import opened
from scripts.serve import engine as of_engine
from scripts.serve.asked import Asked
from scripts.serve.draws import Draws, numbered
from scripts.serve.engine import Engine, Opened
from scripts.serve.limits import Limits
from scripts.serve.refusal import Refused
from scripts.serve.text import Text
from tests.curricula.run import smoke
from tests.scripts.test_routes import lax

TASKS = ["Reverse: a b c", "Sort: 9 2 5", "x", "Say <b>hello</b> twice & stop", "Which is larger, 12 or 7? " * 9]


@cache
def tiny() -> Opened:
    return Opened(agp.load("tiny-gemma4", dtype="float32"))


@cache
def trained() -> Opened:
    return Opened(*opened(smoke()))


class Heard:
    """What was sent of one reply."""

    def __init__(self):
        self.pieces, self.refused = [], None

    def __call__(self, what):
        if isinstance(what, Refused):
            self.refused = what
        else:
            self.pieces += what

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def finish(self) -> str | None:
        return self.pieces[-1].finish if self.pieces else None


def stepped(given: Opened | None = None, **limits) -> Engine:
    """In this thread, a turn whenever one is asked for."""
    engine = Engine("tiny", lambda: given or tiny(), Limits(**limits))
    engine.served = engine.opened()
    return engine


def chat(words: str, given: Opened | None = None) -> list[int]:
    return (given or tiny()).loaded.tokenizer.chat([{"role": "user", "content": words}])


def ask(engine: Engine, prompt: list[int], max_tokens: int = 12, **more) -> tuple[Heard, of_engine.Reply]:
    """No mark ends it, so that it is as long as it may be."""
    heard = Heard()
    reply = engine.submit(Asked(prompt, max_tokens, **more), heard)
    reply.ends = set()
    return heard, reply


def turns(engine: Engine, count: float = math.inf) -> int:
    done = 0
    while (engine.waiting or engine.groups) and done < count:
        engine.admit()
        engine.turn()
        done += 1
    return done


def alone(asked: Asked, given: Opened | None = None, ends=frozenset()) -> str:
    loaded, sampler = (given or tiny()).loaded, make_sampler(asked.temperature, asked.top_p, asked.seed)
    steps = generate(loaded.model, asked.prompt, max_tokens=asked.max_tokens, sampler=sampler, stop=ends)
    return "".join(until(loaded.tokenizer.stream(ids(steps, ends)), asked.stops))


def some_requests(given: Opened, modes=("full",)) -> list[Asked]:
    """Greedy and drawn, long and short, with a seed that two share, and a prompt of one token."""
    found = []
    for n, task in enumerate(TASKS):
        drawn = {"temperature": 1.5, "top_p": 0.95, "seed": n // 2} if n % 2 else {}
        for mode in modes:
            found.append(Asked(chat(task, given), 5 + 4 * n, mode=mode, **drawn))
            found.append(Asked([2], 3 + n, mode=mode, temperature=1.0, seed=7))
    return found


def test_what_is_told_has_been_counted():
    engine, stood = stepped(), []
    rows = lambda: stood.append(engine.metrics.text().decode().split("\nagp_rows ")[1].split()[0])
    heard = ask(engine, chat("x"), max_tokens=2)[0]
    engine.waiting[-1].send = lambda pieces: (rows(), heard(pieces))
    turns(engine)
    assert heard.finish == "length" and stood == ["1.0", "0.0"]


@pytest.mark.parametrize("batch", [3, 16])
def test_a_reply_says_in_company_what_it_says_alone(batch):
    engine, asked = stepped(batch=batch), some_requests(tiny())
    heard = []
    for n, of in enumerate(asked):  # some come while others are under way
        heard.append(Heard())
        engine.submit(of, heard[-1])
        turns(engine, n % 3)
    turns(engine)
    assert [of.text for of in heard] == [alone(of, ends=tiny().loaded.tokenizer.eos_ids) for of in asked]
    assert len({of.text for of in heard}) > len(TASKS) and {of.finish for of in heard} == {"stop", "length"}


def in_turn(engine, asked):
    """What each is answered; every other one comes in together with the next."""
    heard = []
    for n, of in enumerate(asked):
        heard.append(Heard())
        engine.submit(of, heard[-1])
        turns(engine, n % 2)
    turns(engine)
    return [of.text for of in heard]


def test_lossless_and_full_depth_in_turns_say_what_each_says_alone():
    given = trained()
    engine, asked = stepped(given, batch=6), some_requests(given, ("lossless", "full"))
    assert in_turn(engine, asked) == [alone(of, given, given.loaded.tokenizer.eos_ids) for of in asked]


def test_one_sampler_draws_for_each_row_as_its_own_would():
    mx.random.seed(1)
    logits, draws, seeds = mx.random.normal((6, 50)), Draws(), {3: 8, 2**20: 8, 5: 9}
    for request, seed in seeds.items():
        draws.add(request, make_sampler(1.0, 0.9, seed))
    draws.add(4, make_sampler())
    requests, counts = [3, 4, 2**20, 5, 3, 4], [0, 7, 0, 2, 1, 8]
    found = draws(logits, numbered(requests, counts)).tolist()
    for at, (request, count) in enumerate(zip(requests, counts, strict=True)):
        sampler = make_sampler(1.0, 0.9, seeds[request]) if request in seeds else make_sampler()
        assert found[at] == sampler(logits[at : at + 1], [count]).item()


def test_text_comes_as_until_and_stream_say_wherever_it_is_cut():
    tokenizer, rng = tiny().loaded.tokenizer, random.Random(0)
    whole = tokenizer.encode("one, two; thrée 🙂 four <b>\n five, two", bos=False)
    for _ in range(200):
        tokens = rng.choices(whole, k=rng.randint(1, 25))
        said = tokenizer.decode(tokens)
        at = sorted(rng.choices(range(len(said) + 1), k=6))
        stops = [stop for stop in {said[at[0] : at[1]], said[at[2] : at[4]], "🙂\n", "zz"} if stop][: rng.randint(0, 4)]
        text, found = Text(tokenizer, stops), []
        for id in tokens:
            found.append(text.push(id))
            if text.stopped:
                break
        found.append(text.end())
        assert "".join(found) == "".join(until(tokenizer.stream(iter(tokens)), stops)), (tokens, stops)


def test_a_stop_string_ends_a_reply_wherever_its_tokens_end():
    whole = alone(Asked(chat("Sort: 9 2 5 1"), 12))
    for begin in range(1, 8):
        stop = whole[begin : begin + 3]
        engine = stepped()
        heard, _ = ask(engine, chat("Sort: 9 2 5 1"), 12, stops=("nowhere", stop), trace=True)
        turns(engine)
        assert heard.text == whole[: whole.find(stop)] and heard.finish == "stop"
        assert "".join(piece.trace["text"] for piece in heard.pieces) == heard.text


def test_who_is_gone_frees_its_row_at_the_next_step():
    engine = stepped(batch=2)
    first, leaving = ask(engine, chat(TASKS[0]), 50, temperature=3.0)
    second, _ = ask(engine, chat("x"), 40, temperature=1.5, seed=3)
    third, _ = ask(engine, chat("Sort: 9 2 5"), 12)
    turns(engine, 3)
    assert engine.rows == 2 and not third.pieces
    leaving.gone, said = True, len(first.pieces)
    turns(engine, 2)
    assert engine.rows == 2 and third.pieces and len(first.pieces) == said
    turns(engine)
    assert second.text == alone(Asked(chat("x"), 40, temperature=1.5, seed=3))
    assert third.text == alone(Asked(chat("Sort: 9 2 5"), 12)) and not engine.draws.own


def test_who_is_gone_before_its_turn_is_never_begun(monkeypatch):
    engine = stepped(batch=1, queue=1)
    _, first = ask(engine, chat("x"))
    _, waiting = ask(engine, chat("x"))
    with pytest.raises(Refused, match="1 replies are under way and 1 requests wait"):
        ask(engine, chat("x"))
    waiting.gone = True
    heard, _ = ask(engine, chat("x"))  # in its place
    begun = []
    monkeypatch.setattr(of_engine, "begun", lambda *given: begun.append(given[1]) or real(*given))
    turns(engine)
    assert waiting not in begun and len(begun) == 2 and heard.finish


real = of_engine.begun


def test_others_go_on_while_a_long_prompt_is_read():
    engine = stepped()
    short, _ = ask(engine, chat("x"), 40, temperature=1.5)
    turns(engine, 1)
    before = len(short.pieces)
    long = [2, *range(300, 1500)]
    heard, _ = ask(engine, long, 4)
    turns(engine, 1)
    assert len(short.pieces) == before + 3, "two steps between three chunks, and one after them"
    turns(engine)
    assert short.text == alone(Asked(chat("x"), 40, temperature=1.5)) and heard.text == alone(Asked(long, 4))


def test_a_long_prompt_is_left_where_nobody_waits_for_it(monkeypatch):
    engine = stepped()
    heard, reply = ask(engine, [2, *range(300, 1500)], 4)
    monkeypatch.setattr(engine, "turn", lambda: setattr(reply, "gone", True))
    engine.admit()
    assert not engine.groups and not heard.pieces


def test_what_fails_for_one_reply_fails_for_no_other(monkeypatch, capsys):
    engine = stepped()
    fine, _ = ask(engine, chat("Sort: 9 2 5"))
    ill, reply = ask(engine, chat("x"))
    turns(engine, 2)
    reply.text.push = lambda id: 1 / 0
    never, _ = ask(engine, chat("y"))
    monkeypatch.setattr(of_engine, "begun", lambda *given: [][0])
    turns(engine, 1)
    monkeypatch.undo()
    turns(engine, 1)
    turns(engine)
    assert fine.text == alone(Asked(chat("Sort: 9 2 5"), 12))
    said = capsys.readouterr().err
    assert ill.refused.status == 500 and "ZeroDivisionError" in said and "IndexError" in said
    assert never.refused.status == 500


def test_what_fails_for_a_group_ends_that_group_alone(monkeypatch):
    given = trained()
    engine = stepped(given)
    full, _ = ask(engine, chat("x", given))
    lossless, _ = ask(engine, chat("y", given), mode="lossless")
    turns(engine, 2)

    def broken(counts):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.groups["lossless", None].way, "step", broken)
    turns(engine, 1)
    again, _ = ask(engine, chat("y", given), mode="lossless")
    turns(engine)
    assert lossless.refused.status == 500 and "memory" not in lossless.refused.message
    assert full.text == alone(Asked(chat("x", given), 12), given)
    assert again.text == alone(Asked(chat("y", given), 12), given)


def test_time_runs_out_for_who_waits_and_for_who_is_under_way():
    engine = stepped(batch=1)
    first, under_way = ask(engine, chat("x"), 40, temperature=1.5)
    second, waiting = ask(engine, chat("y"))
    turns(engine, 3)
    under_way.until = waiting.until = 0.0
    turns(engine, 1)
    assert second.refused.status == 503 and "no turn came" in second.refused.message
    assert first.finish == "length" and len(first.pieces) <= 4
    assert alone(Asked(chat("x"), 40, temperature=1.5)).startswith(first.text)


def test_a_reply_ends_where_the_context_is_full():
    engine, prompt = stepped(), chat("x")
    engine.served = engine.served._replace(context=len(prompt) + 2)
    heard, _ = ask(engine, prompt, 50, temperature=3.0)
    turns(engine)
    assert len(heard.pieces) == 3 and heard.finish == "length", "the last needs no place"
    assert heard.text == alone(Asked(prompt, 3, temperature=3.0))


def test_an_audit_outlives_its_group_and_its_alarm_is_seen(tmp_path, capsys):
    """A threshold that lets all go keeps no promise: from the alarm on, text is that of full depth."""
    lax(tmp_path)
    given = Opened(*opened(tmp_path))
    engine, looked = stepped(given), []
    for _ in range(60):
        heard, _ = ask(engine, chat(TASKS[0], given), 40, mode="early", risk=0.01)
        turns(engine)
        assert heard.finish and not engine.groups
        audit = engine.ways.audits[0.01]
        looked.append(audit.looked)
        if audit.broken:
            break
    assert audit.broken and looked == sorted(looked) and len(engine.ways.audits) == 1
    shown = engine.metrics.text().decode()
    for name, value in {"alarm": 1, "looked": audit.looked, "differed": audit.differed}.items():
        assert f'agp_audit_{name}{{risk="0.01"}} {value:.1f}' in shown
    assert 'agp_tokens_total{mode="early",route="revive_local"}' in shown
    heard, _ = ask(engine, chat(TASKS[1], given), 12, mode="early", risk=0.01)
    turns(engine)
    assert heard.text == alone(Asked(chat(TASKS[1], given), 12), given)
    assert capsys.readouterr().err.count("agp serve: early at a risk of 0.01 goes on lossless: ") == 1


def test_told_to_close_it_ends_what_is_late_and_lets_nobody_in(capsys):
    engine, heard = Engine("tiny", lambda: Opened(agp.load("tiny-gemma4")), Limits(batch=1)), queue.Queue()
    engine.start()
    engine.submit(Asked(chat("x"), 3000, temperature=3.0), heard.put).ends = set()
    heard.get(timeout=60)
    waits = Heard()
    engine.submit(Asked(chat("y"), 12), waits)
    engine.close(0.2)
    with pytest.raises(Refused, match="going down"):
        engine.submit(Asked(chat("y"), 12), waits)
    engine.thread.join(60)
    while not heard.empty():
        last = heard.get()
    assert last[-1].finish == "length" and waits.refused.status == 503 and not engine.alive
    assert "tokens: the server is going down" in capsys.readouterr().err


def test_what_cannot_be_opened_is_said_where_it_was_asked():
    def nothing():
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        Engine("tiny", nothing, Limits()).start()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_leaves_nobody_waiting(monkeypatch):
    class Death(BaseException):
        pass

    def begun(*given):
        raise Death

    engine = Engine("tiny", lambda: Opened(agp.load("tiny-gemma4")), Limits())
    monkeypatch.setattr(of_engine, "begun", begun)
    engine.start()
    heard, told = Heard(), threading.Event()
    engine.submit(Asked(chat("x"), 5), lambda what: (heard(what), told.set()))
    assert told.wait(60) and heard.refused.status == 503
    engine.thread.join(60)
    with pytest.raises(Refused, match="lost its model"):
        engine.submit(Asked(chat("x"), 5), heard)


def test_limits_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="--batch is 0; 1 or more is needed; --queue is -1; 0 or more is needed"):
        Limits(batch=0, queue=-1)
    assert Limits(queue=0, grace=0).prompt is None
