"""Measure speed and memory, and write the figures to results/.

agp bench decode      beside mlx-lm on the same weights, at three sizes
agp bench e2b         a full-size random E2B in 4 bits: written, loaded, run
agp bench train       an adapter trained, beside mlx-lm's trainer
agp bench memory      the peak of a training step, against its estimate
agp bench heads       heads trained on kept states, beside states made again at each step
agp bench curriculum  what a finished run is worth, over several seeds of its heads
agp bench export      exports of whole runs, known traps, and heads of real size
agp bench mission     what a token costs where early decoding keeps its promise
agp bench promises    lossless beside full depth, and early beside its risk
agp bench carry       what routed decoding would bring on a published model: a model of cost
agp bench uplift      what a peer with a larger regime brings to a smaller one
agp bench ane         an export on each compute unit of this Mac, and where its operations run
agp bench decode --help says more
"""

import argparse

from scripts.bench import ane, carried, curriculum, decode, e2b, export, heads, memory, mission, promises, train, uplift

KINDS = {
    "decode": decode,
    "e2b": e2b,
    "train": train,
    "memory": memory,
    "heads": heads,
    "curriculum": curriculum,
    "export": export,
    "mission": mission,
    "promises": promises,
    "carry": carried,
    "uplift": uplift,
    "ane": ane,
}


def add_arguments(parser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{" + ",".join(KINDS) + "}")
    for name, module in KINDS.items():
        first, _, rest = (module.__doc__ or "").partition("\n")
        raw = argparse.RawDescriptionHelpFormatter
        module.add_arguments(kinds.add_parser(name, help=first, description=first, epilog=rest, formatter_class=raw))


def run(args) -> None:
    KINDS[args.kind].run(args)
