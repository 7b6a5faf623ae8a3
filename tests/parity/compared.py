"""What a test compared, kept for the table at the end."""

from collections.abc import Iterable

from export.ruler import Distance

KEPT: list[tuple[str, float, float, bool]] = []


def judge(distances: Iterable[Distance]) -> None:
    given = list(distances)
    KEPT.extend((of.name, float(of.peak_error), float(of.cosine), bool(of.passed)) for of in given)
    far = [str(of) for of in given if not of.passed]
    assert not far, "\n".join(far)
