"""What a run can send or take: by each of its codecs, the terms on which two hosts that have it work together."""

from pathlib import Path
from typing import Any

from agp.artifacts import digest
from agp.beyond import Beyond
from agp.models import gemma3n
from agp.models.decoder import Decoder
from agp.models.files import read_json
from agp.packet import RAW
from agp.peer import Remote
from agp.receiver import Offer, plain, terms
from agp.regimes import Regime, named
from agp.uplift import smaller, unfit, whole_of
from curricula.runner import MANIFEST
from scripts.routes import Opened


def offered(run: Path, given: Opened, upper: Decoder) -> list[Offer]:
    """What `upper`, the run's model or a smaller one in it, goes on with: after every tap raw states of its own and of
    smaller ones, and by each codec, after the block that it was made for, those of the run's model."""
    heads, raw = given.heads, plain(upper)
    taps = sorted({*heads.taps, heads.sent})
    pairs = [(lower, tap) for lower in (upper, *smaller(upper, regimes(upper, given))) for tap in taps]
    found = [
        Offer(terms(lower, raw, upper=upper, sent=tap, **known(run)), raw)
        for lower, tap in pairs
        if not unfit(lower, upper, tap)
    ]
    for name, wire in heads.wires().items() if upper is given.loaded.model else ():
        if name != RAW:
            folder = run / "transfer" / name
            of = digest(folder) if folder.is_dir() else None  # plain integers have nothing that was learned
            made = terms(upper, wire, sent=heads.sent, codec=name, codec_digest=of, **known(run))
            found.append(Offer(made, wire))
    return found


def regimes(model: Decoder, given: Opened) -> dict[str, Regime]:
    """That its checkpoint names; only Gemma 3n has any."""
    whole = whole_of(model)
    return named(whole.config, given.loaded.path) if isinstance(whole, gemma3n.Model) else {}


def known(run: Path) -> dict[str, Any]:
    weights = read_json(run / "domain" / MANIFEST)["metrics"]["weights"]
    return {"weights": weights, "adapter": digest(run / "domain" / "adapter")}


class Peers:
    """One peer, at every tap where it is asked. It goes on with raw states, by the blocks of `upper` or else of this
    host's own regime: then what it answers is what this host would say, to the bit. A connection is made by the thread
    that first asks for it, which closes it too."""

    def __init__(self, run: Path, given: Opened, url: str, token: str | None, upper: Decoder | None = None):
        model, raw, told = given.loaded.model, plain(given.loaded.model), known(run)
        self.url, self.token, self.upper = url, token, upper or model
        self.offers = {
            tap: Offer(terms(model, raw, upper=self.upper, sent=tap, **told), raw) for tap in given.heads.taps
        }
        self.asked: dict[int, Remote] = {}  # by tap

    def beyond(self, tap: int) -> Beyond:
        """Of a reply that begins now."""
        if tap not in self.asked:
            raw = self.offers[tap]
            self.asked[tap] = Remote(self.url, raw.terms, raw.wire, self.upper.config, token=self.token)
        return self.asked[tap].beyond()

    def close(self) -> None:
        for peer in self.asked.values():
            peer.close()
