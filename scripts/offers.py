"""What a run can send or take: by each of its codecs, the terms on which two hosts that have it work together."""

from pathlib import Path

from agp.artifacts import digest
from agp.beyond import Beyond
from agp.models.files import read_json
from agp.packet import RAW
from agp.peer import Remote
from agp.receiver import Offer, plain, terms
from curricula.runner import MANIFEST
from scripts.routes import Opened


def offered(run: Path, given: Opened) -> list[Offer]:
    """Raw states after every tap, and by each codec after the block that it was made for."""
    (model, heads), raw = (given.loaded.model, given.heads), plain(given.loaded.model)
    weights = read_json(run / "domain" / MANIFEST)["metrics"]["weights"]
    known = {"weights": weights, "adapter": digest(run / "domain" / "adapter")}
    found = [Offer(terms(model, raw, sent=tap, **known), raw) for tap in sorted({*heads.taps, heads.sent})]
    for name, wire in heads.wires().items():
        if name != RAW:
            folder = run / "transfer" / name
            of = digest(folder) if folder.is_dir() else None  # plain integers have nothing that was learned
            made = terms(model, wire, sent=heads.sent, codec=name, codec_digest=of, **known)
            found.append(Offer(made, wire))
    return found


class Peers:
    """One peer, at every tap where it is asked; it takes raw states: what it answers is what this host would say, to
    the bit. A connection is made by the thread that first asks for it, which closes it too."""

    def __init__(self, run: Path, given: Opened, url: str, token: str | None):
        self.url, self.token, self.config = url, token, given.loaded.config
        self.offers = {offer.terms.sent: offer for offer in offered(run, given) if offer.terms.codec == RAW}
        self.asked: dict[int, Remote] = {}  # by tap

    def beyond(self, tap: int) -> Beyond:
        """Of a reply that begins now."""
        if tap not in self.asked:
            raw = self.offers[tap]
            self.asked[tap] = Remote(self.url, raw.terms, raw.wire, self.config, token=self.token)
        return self.asked[tap].beyond()

    def close(self) -> None:
        for peer in self.asked.values():
            peer.close()
