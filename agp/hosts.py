"""Hosts that train as one: who they are, whether all have come and hold the same, and what they add up together.

`mlx.launch` starts a command on every host and says in MLX_RANK and MLX_HOSTFILE who is who. MLX's ring would wait for
ever for a host that does not come, and for one that has gone silent; so hosts meet over a connection of their own
before they join it, and go on hearing of each other there.
"""

import faulthandler
import hashlib
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_map_with_path
from tqdm import tqdm

LONGEST = 1 << 20  # bytes that a host may say
LOST = 75  # exit status where a silent host left no other way out: try again


class Hosts(NamedTuple):
    rank: int
    addresses: list[tuple[str, int]]  # where all meet at the first; the second is for nobody else to take part
    name: str  # of this meeting

    @property
    def size(self) -> int:
        return len(self.addresses)


class HostLost(ConnectionError):
    pass


def told() -> Hosts | None:
    """What mlx.launch said; None on a host that is alone."""
    rank, file = os.environ.get("MLX_RANK"), os.environ.get("MLX_HOSTFILE")
    if rank is None and file is None:
        return None
    if rank is None or not file:
        there, absent = ("MLX_RANK", "MLX_HOSTFILE") if rank is not None else ("MLX_HOSTFILE", "MLX_RANK")
        raise ValueError(f"{there} is set and {absent} is not: unset it to train on this host alone, or use mlx.launch")
    try:
        text = Path(file).read_text().strip()
    except OSError as e:
        raise ValueError(f"MLX_HOSTFILE names {file}, which cannot be read: {e.strerror}") from e
    if not text:  # of one host
        return None
    if not rank.isdecimal():
        raise ValueError(f"MLX_RANK is {rank!r}; a number from 0 on is needed")
    try:
        given = json.loads(text)
        pairs = [[address.rpartition(":") for address in host] for host in given]
        ports = [int(port) for host in pairs for _, _, port in host]
        first = max(ports) + 1
        hosts = Hosts(int(rank), [(host[0][0], first) for host in pairs], hashlib.sha256(text.encode()).hexdigest())
        if wrong := [port for port in ports if not 0 < port < 65_535]:
            raise ValueError(f"port {wrong[0]} cannot be used; those from 1 to 65534 can")
    except (ValueError, TypeError, IndexError, AttributeError, KeyError) as e:
        raise ValueError(
            f'MLX_HOSTFILE names {file}, which is no list such as [["10.0.0.1:5000"], ["10.0.0.2:5000"]]: {e}.'
            " mlx.launch makes one from its own --hostfile"
        ) from e
    if not 0 <= hosts.rank < hosts.size:
        raise ValueError(f"MLX_RANK is {rank}, but {file} lists {hosts.size} hosts")
    return hosts if hosts.size > 1 else None


class Meeting:
    """Connections to the others: of host 0 one to each, of each one to host 0."""

    def __init__(self, hosts: Hosts, wait: float):
        self.hosts, self.ends = hosts, time.monotonic() + wait
        self.wait, self.links, self.over = wait, {}, threading.Event()
        self.thread: threading.Thread | None = None

    def all_said(self, said: Mapping[str, Any]) -> list[dict]:
        """What every host says, in the order of their ranks."""
        if self.hosts.rank:
            self.links[0] = self.reach()
            send(self.links[0], {"name": self.hosts.name, "rank": self.hosts.rank, "said": said})
            answer = receive(self.links[0], self.left() + 5)
            if "all" not in answer:
                raise TimeoutError(answer.get("why", "host 0 hung up"))
            return answer["all"]
        came = {0: dict(said)}
        try:
            self.await_all(came)
        except TimeoutError as e:
            for link in self.links.values():
                with suppress(OSError):
                    send(link, {"why": str(e)})
            raise
        whole = [came[rank] for rank in range(self.hosts.size)]
        for link in self.links.values():
            send(link, {"all": whole})
        return whole

    def __enter__(self) -> "Meeting":
        return self

    def __exit__(self, *_) -> None:
        self.stop()
        for link in self.links.values():
            link.close()

    def reach(self) -> socket.socket:
        where = self.hosts.addresses[0]
        with Waiting(self, f"waiting for host 0 at {where[0]}") as waiting:
            while (left := waiting.show()) > 0:
                try:
                    return socket.create_connection(where, timeout=min(5, left))
                except OSError:
                    time.sleep(0.2)
        raise TimeoutError(self.absent({0}))

    def await_all(self, came: dict[int, dict]) -> None:
        what = f"waiting for {self.hosts.size - 1} more of {self.hosts.size} hosts"
        with opened(self.hosts.addresses[0]) as door, Waiting(self, what) as waiting:
            door.settimeout(0.2)
            while missing := set(range(self.hosts.size)) - came.keys():
                if waiting.show() <= 0:
                    raise TimeoutError(self.absent(missing))
                try:
                    link, _ = door.accept()
                except TimeoutError:
                    continue
                found = self.welcome(link)
                if found is None:
                    link.close()
                else:
                    came[found["rank"]], self.links[found["rank"]] = found["said"], link

    def welcome(self, link: socket.socket) -> dict | None:
        """What a visitor says if it belongs here; scanners and hosts of another run do not."""
        try:
            found = receive(link, 5)
        except (OSError, ValueError):
            return None
        known = found.get("name") == self.hosts.name and found.get("rank") in range(1, self.hosts.size)
        return found if known and isinstance(found.get("said"), dict) else None

    def left(self) -> float:
        return self.ends - time.monotonic()

    def absent(self, ranks: set[int]) -> str:
        names = ", ".join(f"host {rank} ({self.hosts.addresses[rank][0]})" for rank in sorted(ranks))
        return (
            f"{names} did not come within {self.wait:.0f} s. Is the command running there, and is "
            f"{':'.join(map(str, self.hosts.addresses[0]))} to be reached from there? --wait SECONDS waits longer"
        )

    def watch(self) -> None:
        """End this process when nothing is heard of a host for so long; a ring that waits cannot be stopped."""
        for link in self.links.values():
            link.settimeout(None)
        self.thread = threading.Thread(target=self.listen, daemon=True)
        self.thread.start()

    def listen(self) -> None:
        heard, links, last = selectors.DefaultSelector(), dict(self.links), {}
        for rank, link in links.items():
            heard.register(link, selectors.EVENT_READ, rank)
            last[rank] = time.monotonic()
        while links and not self.over.wait(self.wait / 40):
            for rank, link in links.items():
                with suppress(OSError):
                    link.send(HERE)
                if time.monotonic() - last[rank] > self.wait:
                    lost = f"nothing was heard of host {rank} for {self.wait:.0f} s"
                    print(f"\nagp: {lost}. {GO_ON}", file=sys.stderr, flush=True)
                    os._exit(LOST)
            for key, _ in heard.select(timeout=0):
                try:
                    said = links[key.data].recv(4096)
                except OSError:
                    said = b""
                last[key.data] = time.monotonic() if said else last[key.data]
                if not said or BYE in said:
                    heard.unregister(key.fileobj)
                if BYE in said:
                    del links[key.data]

    def stop(self) -> None:
        self.over.set()
        if self.thread is not None:
            self.thread.join()

    def leave(self) -> None:
        """Say so, or the others would think this host lost."""
        self.stop()
        for link in self.links.values():
            with suppress(OSError):
                link.send(BYE)


HERE, BYE = b".", b"!"
OTHER_PORTS = "give mlx.launch another --starting-port"
GO_ON = "What was saved last is whole: start the same command again wherever it ran to go on from it"


class Waiting:
    """Says how much time is left, once waiting has taken two seconds."""

    def __init__(self, meeting: Meeting, what: str):
        self.meeting, self.what, self.bar = meeting, what, None

    def show(self) -> float:
        left = self.meeting.left()
        if self.meeting.wait - left > 2:
            if self.bar is None:
                self.bar = tqdm(desc=self.what, bar_format="{desc}{postfix}", leave=False, file=sys.stderr)
            self.bar.set_postfix_str(f"{max(left, 0):.0f} s left")
        return left

    def __enter__(self) -> "Waiting":
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()


def send(link: socket.socket, what: Mapping[str, Any]) -> None:
    link.sendall(json.dumps(what).encode() + b"\n")


def receive(link: socket.socket, wait: float) -> dict:
    """One line of JSON."""
    ends, data = time.monotonic() + wait, b""
    while not data.endswith(b"\n"):
        link.settimeout(max(0.01, ends - time.monotonic()))
        part = link.recv(65_536)
        data += part
        if not part or len(data) > LONGEST:
            raise ConnectionError("a host hung up before it had said what it holds")
    try:
        found = json.loads(data)
    except ValueError as e:
        raise ConnectionError(f"what answers there is no host of AGP; {OTHER_PORTS}") from e
    return found if isinstance(found, dict) else {}


def opened(address: tuple[str, int]) -> socket.socket:
    try:
        return socket.create_server(address)
    except OSError as e:
        raise ConnectionError(
            f"hosts cannot meet at {address[0]}:{address[1]}: {e.strerror}. Something else may be using the port, an "
            f"earlier run that hangs or a second host of this rank: end it, or {OTHER_PORTS}"
        ) from e


@contextmanager
def joined(hosts: Hosts | None, holds: Mapping[str, Any], wait: float = 120) -> Iterator[Any]:
    """The group of all hosts once they have met and hold the same; None for a host that is alone.

    Seconds to `wait` for a host are counted before they have met, and whenever nothing is heard of it.
    """
    if hosts is None:
        yield None
        return
    with Meeting(hosts, wait) as meeting:
        whole = meeting.all_said(json.loads(json.dumps(holds)))
        refused(whole)
        if wrong := [line for rank, one in enumerate(whole) for line in unlike(rank, whole[0], one)]:
            raise ValueError(f"the hosts do not hold the same: {'; '.join(wrong)}")
        faulthandler.dump_traceback_later(wait, exit=True)  # of a host lost right now: `init` lets no Python thread run
        try:
            with ended_at_once():
                group = mx.distributed.init(strict=True, backend="ring")
        except RuntimeError as e:
            raise ConnectionError(
                f"the ring of hosts could not be made: {e}. Something else may be using one of its ports: end it, or "
                f"{OTHER_PORTS}"
            ) from e
        finally:
            faulthandler.cancel_dump_traceback_later()
        meeting.watch()
        yield group
        meeting.leave()


@contextmanager
def ended_at_once() -> Iterator[None]:
    """By Ctrl-C, while there is nothing to save: `init` would let no Python hear of it before its end."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def announced(hosts: Hosts | None, wait: float) -> Iterator[None]:
    """Tell the others when this host cannot begin: they would wait for it, and think it lost."""
    try:
        yield
    except (ValueError, OSError) as e:
        if hosts is not None:
            with suppress(OSError), Meeting(hosts, wait) as meeting:
                meeting.all_said({"refuses": str(e)})
        raise


def refused(whole: list[dict]) -> None:
    if why := [f"host {rank} cannot begin: {said['refuses']}" for rank, said in enumerate(whole) if "refuses" in said]:
        raise ValueError("; ".join(why))


def unlike(rank: int, first: Any, other: Any) -> list[str]:
    return [f"{at} is {a!r} on host 0, {b!r} on host {rank}" for at, a, b in differences(first, other)]


def differences(one: Any, other: Any, at: str = "") -> list[tuple[str, Any, Any]]:
    """Where two trees part, and what each has there."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = sorted(one.keys() | other.keys())
        return [d for n in names for d in differences(one.get(n), other.get(n), f"{at}.{n}" if at else n)]
    return [] if one == other else [(at, one, other)]


def added(group: Any, tree: Any) -> Any:
    """Sums over all hosts, of arrays of one kind. On the CPU's stream: a GPU that waits for a peer is killed."""
    if group is None or group.size() == 1:
        return tree
    leaves: Any = sorted(tree_flatten(tree))  # by name: what one host read from a file may stand in another order
    whole = mx.concatenate([a.reshape(-1) for _, a in leaves])  # one exchange for all: each costs a greeting
    mx.eval(whole)
    total = mx.distributed.all_sum(whole, group=group, stream=mx.cpu)
    try:
        mx.eval(total)
    except RuntimeError as e:
        raise HostLost(f"a host was lost: {e}") from e
    ends = np.cumsum([a.size for _, a in leaves])[:-1].tolist()
    parts = {name: part for (name, _), part in zip(leaves, mx.split(total, ends), strict=True)}
    return tree_map_with_path(lambda name, a: parts[name].reshape(a.shape), tree)


def spread(group: Any, source: int, tree: Any) -> Any:
    """What host `source` holds, bit for bit, for all."""
    mine = group.rank() == source

    def bits(x: mx.array) -> mx.array:
        whole = x.reshape(-1).view(mx.int32 if x.dtype.size >= 4 else mx.uint8).astype(mx.int32)
        return whole if mine else mx.zeros_like(whole)

    def back(x: mx.array, whole: mx.array) -> mx.array:
        return whole.astype(mx.int32 if x.dtype.size >= 4 else mx.uint8).view(x.dtype).reshape(x.shape)

    return tree_map(back, tree, added(group, tree_map(bits, tree)))


def totalled(group: Any, mine: np.ndarray) -> np.ndarray:
    """The sum over all hosts, of doubles, to single precision: the same bits however the parts were shared out."""
    whole = mine.astype(np.float64)
    if group is not None and group.size() > 1:
        bits = mx.array(whole.view(np.int32))  # MLX on a GPU knows no doubles
        every = [np.array(spread(group, rank, [bits])[0]) for rank in range(group.size())]
        whole = np.stack([part.view(np.float64) for part in every]).sum(0)
    return whole.astype(np.float32).astype(np.float64)


def most(group: Any, number: int) -> int:
    """The rank of the host whose number is largest, the first of them."""
    mine = np.zeros(group.size(), np.int32)
    mine[group.rank()] = number
    return int(np.argmax(np.array(added(group, [mx.array(mine)])[0])))
