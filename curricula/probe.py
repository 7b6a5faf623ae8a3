"""The linear probe that a head has to beat: logistic regression to its optimum, ridge chosen on the tune split."""

from collections.abc import Callable

import numpy as np

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
TURNS, FLAT = 12, 1e-6


def probe(x: np.ndarray, label: np.ndarray, tune_x: np.ndarray, tune_label: np.ndarray) -> Callable:
    """Log-odds as a function of features N F; labels are shares from 0 to 1."""
    zero, size = x.mean(0), x.std(0) + 1e-6

    def ready(given: np.ndarray) -> np.ndarray:
        return np.concatenate([(given - zero) / size, np.ones((len(given), 1), np.float32)], axis=1)

    x, tuned, tries = ready(x), ready(tune_x), []
    for ridge in RIDGES:
        tries.append(optimum(x, label, ridge, tries[-1] if tries else None))  # begun nearby, it ends at the same
    best = min(tries, key=lambda weights: missed(tuned @ weights, tune_label))
    return lambda given: ready(given) @ best


def crossed(x: np.ndarray, label: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """Weights for features N F as they are, their ridge the one with which either half is best told by the other."""
    size = np.sqrt(np.square(x, dtype=np.float64).mean(0)) + 1e-6
    ready = x / size

    def across(ridge: float) -> float:
        pairs = [(halves, ~halves), (~halves, halves)]
        return sum(missed(ready[b] @ optimum(ready[a], label[a], ridge), label[b]) for a, b in pairs)

    return optimum(ready, label, min(RIDGES, key=across)) / size


def optimum(x: np.ndarray, label: np.ndarray, ridge: float, begun: np.ndarray | None = None) -> np.ndarray:
    """By Newton's steps, each halved until it helps."""
    weights = np.zeros(x.shape[1]) if begun is None else begun
    held = ridge * np.where(x.std(0) > FLAT, 1, 1e-6)  # what never varies is the constant, which is free
    x, rough = np.asarray(x, np.float64), np.asarray(x, np.float32)  # slopes must be exact, a curve need not

    def price(w: np.ndarray) -> float:
        return missed(x @ w, label) + 0.5 * (held * w * w).sum()

    cost = price(weights)
    for _ in range(TURNS):
        share = 1 / (1 + np.exp(-(x @ weights)))
        slope = x.T @ (share - label) / len(x) + held * weights
        bent = rough * np.sqrt(share * (1 - share)).astype(np.float32)[:, None]
        curve = (bent.T @ bent).astype(float) / len(x) + np.diag(held + 1e-9)
        step, length = np.linalg.solve(curve, slope), 1.0
        while length > 1e-3 and price(weights - length * step) > cost:
            length /= 2
        weights = weights - length * step
        before, cost = cost, price(weights)
        if before - cost < 1e-7:
            break
    return weights


def missed(odds: np.ndarray, label: np.ndarray) -> float:
    """Nats."""
    return float((np.logaddexp(0, odds) - label * odds).mean())
