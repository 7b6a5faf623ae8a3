"""The full count: every toy config at several seeds and both trained models, written to results/parity.json."""

import pytest

from agp.artifacts import write_results
from tests.parity.reference import forward, gradients, make_pair, steps
from tests.parity.test_tiny import tiny_pairs
from tests.toys import GRID

SEEDS = range(5)
GOAL = "<= 3e-5"


@pytest.mark.prove
def test_parity_figures(tmp_path):
    figures, tables = {}, {}
    for family, names in GRID.items():
        worst = {}
        for name in names:
            for seed in SEEDS:
                pair = make_pair(family, name, tmp_path / family / name / str(seed), seed)
                found = [*forward(pair), *steps(pair, (9, 10, 11)), *gradients(pair)]
                worst[f"{name}, seed {seed}"] = max(found, key=lambda d: d.peak_error)
        for number, pair in enumerate(tiny_pairs(family)):
            found = [*forward(pair), *steps(pair, (9, 10, 11)), *gradients(pair)]
            worst[f"the trained tiny model, text {number}"] = max(found, key=lambda d: d.peak_error)
        tables[family] = {case: {"where": d.name, "peak_error": d.peak_error} for case, d in worst.items()}
        errors = [d.peak_error for d in worst.values()]
        figures[f"parity.{family}.peak_error"] = {
            "value": max(errors),
            "interval": [min(errors), max(errors)],
            "goal": GOAL,
            "command": "pytest -m prove tests/parity",
        }
    write_results("parity", figures, seeds=list(SEEDS), worst=tables)
