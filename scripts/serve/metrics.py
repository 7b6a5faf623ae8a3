"""What `/metrics` counts, in Prometheus' text format."""

import time
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from agp.audit import Audit
from agp.follow import Token
from agp.peer import Counts, Remote
from scripts.routes import route

TYPE = CONTENT_TYPE_LATEST
FIRST = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
EACH = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3)


class Metrics:
    """A registry of its own: two servers in one process do not add up."""

    def __init__(self):
        of = self.registry = CollectorRegistry()
        self.requests = Counter("agp_requests", "Requests answered", ["path", "status"], registry=of)
        self.tokens = Counter("agp_tokens", "Tokens by the way they took", ["mode", "route"], registry=of)
        self.queue = Gauge("agp_queue", "Requests that wait", registry=of)
        self.rows = Gauge("agp_rows", "Replies that are continued", registry=of)
        self.first = Histogram("agp_first_token_seconds", "To the first token", registry=of, buckets=FIRST)
        self.each = Histogram("agp_token_seconds", "A token, its step shared evenly", registry=of, buckets=EACH)
        self.looked = Gauge("agp_audit_looked", "Early tokens compared with full depth", ["risk"], registry=of)
        self.differed = Gauge("agp_audit_differed", "Of them, those that differed", ["risk"], registry=of)
        self.alarm = Gauge("agp_audit_alarm", "1: the promise was found broken", ["risk"], registry=of)
        self.peers = Asked()
        of.register(self.peers)

    def said(self, mode: str, tokens: Iterable[Token], last: int, since: float | None) -> None:
        """`since`: when a reply was asked for whose first token is among these; `last`: the model's last block."""
        if since is not None:
            self.first.observe(time.perf_counter() - since)
        for token in tokens:
            self.tokens.labels(mode, route(token, last)).inc()
            self.each.observe(token.seconds)

    def stands(self, waiting: int, rows: int, audits: Mapping[float, Audit], peers: Mapping[int, Remote]) -> None:
        self.queue.set(waiting)
        self.rows.set(rows)
        for risk, audit in audits.items():
            self.looked.labels(f"{risk:g}").set(audit.looked)
            self.differed.labels(f"{risk:g}").set(audit.differed)
            self.alarm.labels(f"{risk:g}").set(audit.broken)
        self.peers.counts = {str(block): deepcopy(peer.counts) for block, peer in peers.items()}

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Asked(Collector):
    """What a peer was asked, by the block after which it goes on; `counts` are a copy, as whoever asks goes on."""

    def __init__(self):
        self.counts: Mapping[str, Counts] = {}

    def collect(self) -> Iterator[CounterMetricFamily]:
        for name, what, value in (
            ("calls", "Calls to the peer", lambda of: of.calls),
            ("answered", "Of them, those that were answered", lambda of: of.answered),
            ("sent_bytes", "Bytes of bodies sent to the peer", lambda of: of.sent),
            ("received_bytes", "Bytes of bodies received from the peer", lambda of: of.received),
            ("seconds", "Time that calls to the peer took, answered or not", lambda of: of.seconds),
        ):
            found = CounterMetricFamily(f"agp_peer_{name}", what, labels=["block"])
            for block, of in self.counts.items():
                found.add_metric([block], value(of))
            yield found
        failures = CounterMetricFamily("agp_peer_failures", "Calls not answered, by why", labels=["block", "reason"])
        for block, of in self.counts.items():
            for reason, count in of.failures.items():
                failures.add_metric([block, reason], count)
        yield failures
