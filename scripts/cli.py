"""The `agp` command: finds the verb's file, reads its arguments, runs it, and turns user errors into one clean message.

A verb is a module with `add_arguments(parser)` and `run(args)`, which may return an exit code, and `parse(parser,
argv)` where arguments are read in a way of its own. The first line of its docstring is its help, the rest examples.
"""

import argparse
import ast
import importlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from textwrap import indent

import agp

VERBS = {
    "doctor": "scripts.doctor",
    "generate": "scripts.generate",
    "peer": "scripts.peer",
    "serve": "scripts.serve.door",
    "demo": "scripts.demo",
    "train": "scripts.train",
    "runs": "scripts.runs",
    "fuse": "scripts.fuse",
    "export": "scripts.export",
    "verify": "scripts.verify",
    "lint": "scripts.lint",
    "ranges": "scripts.ranges",
    "parity": "scripts.parity",
    "bench": "scripts.bench",
    "figures": "scripts.figures",
    "report": "scripts.report",
}


def docstring(module: str) -> tuple[str, str]:
    """Help and examples, read without importing: `agp --help` must not wait for MLX."""
    spec = find_spec(module)
    assert spec and spec.origin, f"{module} is named in VERBS and has no file"
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""
    first, _, rest = text.partition("\n")
    return first, rest.strip("\n")


def overview() -> str:
    rows = [f"  {verb:<10} {docstring(module)[0]}" for verb, module in VERBS.items()]
    return "\n".join(["usage: agp VERB ...", "", *rows, "", "agp VERB --help says more. agp --version says which."])


def parser_of(verb: str) -> argparse.ArgumentParser:
    first, examples = docstring(VERBS[verb])
    raw = argparse.RawDescriptionHelpFormatter
    epilog = "examples:\n" + indent(examples, "  ")
    parser = argparse.ArgumentParser(prog=f"agp {verb}", description=first, epilog=epilog, formatter_class=raw)
    importlib.import_module(VERBS[verb]).add_arguments(parser)
    return parser


def run(verb: str, argv: list[str]) -> int:
    module = importlib.import_module(VERBS[verb])
    args = getattr(module, "parse", argparse.ArgumentParser.parse_args)(parser_of(verb), argv)
    if agp.blas.state == "openblas":
        agp.blas.announce(agp.blas.state)
    code = module.run(args)
    sys.stdout.flush()  # here, so that a closed pipe is met inside guard()
    return code or 0


def guard(verb: str, argv: list[str]) -> int:
    """Exit codes: 2 for what the user can mend, 130 for Ctrl-C, 141 for a closed pipe."""
    try:
        return run(verb, argv)
    except KeyboardInterrupt:
        print(f"agp {verb}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at exit
        return 141
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("AGP_TRACEBACK"):
            raise
        print(f"agp {verb}: {error}", file=sys.stderr)
        return 2


def main(argv: list[str] | None = None) -> int:
    verb, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("-h", "--help"):
        print(overview())
        return 0
    if verb == "--version":
        print(f"agp {agp.__version__}")
        return 0
    if verb not in VERBS:
        print(f"agp: no verb {verb!r}; there are {', '.join(VERBS)}", file=sys.stderr)
        return 2
    return guard(verb, rest)


if __name__ == "__main__":
    sys.exit(main())
