"""What a gate may ask for, so that a misspelt one is found before its stage has run for hours."""

from collections.abc import Mapping, Sequence

from agp.figures import GOAL

EACH = ("next_agreement", "kl", "bytes", "over_pca", "kl_by_pca", "over_pca_token", "kl_by_pca_token")  # of a ratio
MEASURED = {
    "domain": ("loss_drop", "general_drop", "steps", "best_step"),
    "trajectory": (
        *("glance_macs", "parameters", "best_step", "auroc_worst", "auroc_gain_least", "auroc_gain_surely"),
        *("vitality_gain", "mean_cost"),
    ),
    "semantic": (
        *("auroc", "auroc_documents", "auroc_near", "auroc_primitive", "auroc_invariant", "auroc_bundle"),
        *("probe_auroc", "concepts", "left_out", "false_invariants", "false_invariants_near", "tap", "l0"),
        *("l0_highest", "dead", "variance_explained", "variance_explained_a_position", "random_variance"),
        *("pca_variance", "spliced_agreement", "spliced_kl", "state_agreement", "random_agreement"),
        *("pca_agreement", "nothing_agreement", "margin_over_random"),
    ),
    "depth": ("cost", "gain_first", "gain_surely"),
    "calibrate": (
        *("parameters", "best_step", "looked", "violations", "broken", "macs_first", "macs_oracle", "mean_cost"),
    ),
}


def measured(roles: Sequence[str], observed: Sequence[str], ratios: Sequence[int]) -> dict[str, tuple[str, ...]]:
    """By stage: of rows with these roles, of which those were observed, and of codes so many times smaller."""
    counted = tuple(f"{role}_{what}" for role in observed for what in ("documents", "windows", "positions"))
    each = tuple(f"{name}_{ratio}x" for ratio in ratios for name in EACH)
    first = (f"greedy16_agreement_{ratios[0]}x",) if ratios else ()
    return MEASURED | {
        "rows": tuple(roles),
        "harvest": (*counted, "adapter_change"),
        "transfer": ("tap", "positions", *each, *first),
    }


def faults(gates: Mapping[str, Mapping[str, str]], known: Mapping[str, Sequence[str]], stages: Sequence[str]) -> list:
    wrong = []
    for stage, goals in gates.items():
        if stage not in stages:
            wrong.append(f"gates.{stage}: there is no such stage; they are {', '.join(stages)}")
            continue
        for metric, goal in goals.items():
            if metric not in known[stage]:
                wrong.append(f"gates.{stage}.{metric}: {stage} measures {', '.join(known[stage])}, and no {metric}")
            if not GOAL.fullmatch(goal):
                wrong.append(f"gates.{stage}.{metric} is {goal!r}; such as '>= 0.9' is needed")
    return wrong
