"""One table of all that was compared: of each file how much, and how far the farthest was off."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.parity import compared


@pytest.fixture(autouse=True)
def kept(record_property):
    """What one test compares; its report takes it along, from whatever worker."""
    compared.KEPT = []
    record_property("distances", compared.KEPT)


def pytest_terminal_summary(terminalreporter):
    found, failed = defaultdict(list), Counter()
    for status in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(status):
            part = Path(report.fspath).stem.removeprefix("test_")
            failed[part] += status != "passed"
            for name, given in report.user_properties:
                found[part] += given if name == "distances" else []
    if not any(found.values()):
        return
    terminalreporter.section("parity with PyTorch")
    terminalreporter.line(f"{'what':<10} {'compared':>9} {'peak error':>11}  {'cosine':<12} farthest")
    for part in sorted(found):
        terminalreporter.line(row(part, found[part], failed[part]))


def row(part, distances, failed):
    name, peak, _, _ = max(distances, key=lambda of: of[1], default=("none", 0.0, 1.0, True))
    cosine = min((of[2] for of in distances), default=1.0)
    verdict = "FAIL" if failed or not all(of[3] for of in distances) else "ok"
    return f"{part:<10} {len(distances):>9,} {peak:>11.1e}  {cosine:<12.9f} {name}: {verdict}"
