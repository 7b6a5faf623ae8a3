"""A bar over what takes a while: which step it is at, and how long the rest may take."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

One = TypeVar("One")


class Steps:
    def __init__(self, count: int):
        self.bar = tqdm(total=count, unit="step", leave=False)
        self.left = count

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.bar.set_description(name)
        try:
            yield
        except BaseException:
            self.bar.close()
            raise
        self.done()

    def each(self, name: str, of: Iterable[One]) -> Iterator[One]:
        """A step for each that comes."""
        self.bar.set_description(name)
        for one in of:
            yield one
            self.done()

    def done(self) -> None:
        self.bar.update()
        self.left -= 1
        if not self.left:
            self.bar.close()
