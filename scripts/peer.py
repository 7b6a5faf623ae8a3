"""Run the blocks above a tap for other hosts, which send states instead of text.

agp peer --run runs/tiny
agp peer --run runs/tiny3n --regime width_192
agp peer --run runs/tiny --host 0.0.0.0 --port 9430 --token-file token.txt
AGP_TOKEN="$(cat token.txt)" agp peer --run runs/tiny --host 192.168.1.7

Of a Gemma 3n it goes on with what a smaller regime made below, too: `agp generate --run RUN --regime NAME --peer URL`.

Only this machine may ask, unless --host says otherwise; then a token is required, which both hosts know. Token and
states travel as they are: over a network that others use too, put TLS in front. Ctrl-C or SIGTERM ends it when what was
begun is answered.
"""

import sys
from collections.abc import Sequence

from agp.receiver import Offer, Receiver
from agp.uplift import WHOLE
from scripts.asked import some_path
from scripts.offers import offered
from scripts.processes import alone_if_left
from scripts.routes import opened, viewed
from scripts.serve.peer import Door, is_loopback, listening, server
from scripts.tokens import token_of


def add_arguments(parser) -> None:
    parser.add_argument("--run", type=some_path, required=True, metavar="RUN", help="what `agp train` made")
    parser.add_argument("--regime", metavar="NAME", help="of a Gemma 3n: a smaller model in it (default: all of it)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=int, default=9430, help="0 takes any that is free (default: 9430)")
    parser.add_argument(
        "--token-file", type=some_path, metavar="FILE", help="who does not know it is out; or AGP_TOKEN"
    )


def run(args) -> None:
    token = token_of(args.token_file)
    if token is None and not is_loopback(args.host):
        raise ValueError(f"at {args.host} others could ask too; give --token-file or AGP_TOKEN, or leave out --host")
    alone_if_left()
    with listening(args.host, args.port) as sock:
        given = opened(args.run)
        model = viewed(given.loaded, args.regime)
        offers = offered(args.run, given, model)
        host, port = sock.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        print(f"agp peer: {address} takes states of {args.run}: {said(offers)}", file=sys.stderr, flush=True)
        server(Door(Receiver(model, offers), token).routes()).run(sockets=[sock])


def said(offers: Sequence[Offer]) -> str:
    """By codec and block, and of which smaller regimes too."""
    of = [offer.terms for offer in offers]
    own = [f"{one.codec} after block {one.sent}" for one in of if one.regime_below == one.regime_above]
    others = dict.fromkeys(one.regime_below.split()[0] for one in of if one.regime_below != one.regime_above)
    above = "" if of[0].regime_above == WHOLE else f" of {of[0].regime_above.split()[0]}"
    return ", ".join(own) + above + (f"; raw of {', '.join(others)} too" if others else "")
