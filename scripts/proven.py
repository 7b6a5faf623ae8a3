"""`--small-head`: the likeliest token proven with less than the model's whole head, where that can be."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import mlx.core as mx
from tqdm import tqdm

from agp.models.decoder import Decoder
from curricula.features import Features
from heads import clusters
from scripts.routes import Opened

TEXTS = 200  # of the run's own, by which its directions are chosen


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--small-head",
        action="store_true",
        help="of a run, early or lossless: prove the likeliest token with less than the whole vocabulary where that "
        "can be; built at the start, saves multiplications, and time where a vocabulary is large and not quantized",
    )


def faults(args: Namespace) -> list[str]:
    return ["--small-head needs a run; give --run instead of --model"] if args.small_head and args.run is None else []


def beside(args: Namespace, given: Opened) -> Opened:
    """What is asked for beside the heads of a run."""
    return given._replace(small=built(args.run, given.heads.decoder)) if args.small_head else given


def built(run: Path, decoder: Decoder) -> clusters.Head:
    states, size, dim = final(run, decoder), decoder.config.vocab_size, decoder.config.hidden_size
    with tqdm(desc="small head", total=clusters.ROUNDS + 1, leave=False, disable=None) as bar:
        _, head = clusters.built(
            decoder,
            states,
            clusters=max(1, size // 256),
            cuts=tuple(n * dim // 6 for n in (1, 2, 3, 4)),
            opened=min(max(64, size // 512), size - 1),
            progress=bar.update,
        )
    return head


def final(run: Path, decoder: Decoder) -> mx.array:
    """States of texts that heads learned from, N D, as the final norm leaves them."""
    if not (run / "harvest" / "manifest.json").exists():
        raise ValueError(f"--small-head is built from texts in {run / 'harvest'}, which is not there; leave it out")
    told, found = Features(run / "harvest", "heads"), []
    for document in range(min(TEXTS, len(told.begins))):
        ids = mx.array(told.of(document, "ids"))[None].astype(mx.int32)
        found.append(decoder.normed(decoder.blocks(decoder.embed(ids)).hidden)[0].astype(mx.float32))
        mx.eval(found[-1])
    return mx.concatenate(found)
