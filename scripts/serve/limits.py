"""How much one client, and all of them together, may ask for."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    batch: int = 16  # replies that are continued at once
    queue: int = 256  # requests that wait for one of them to end
    body: int = 2_000_000  # bytes of a request
    prompt: int | None = None  # tokens; None: as many as the context holds
    tokens: int = 4096  # of a reply
    seconds: float = 600.0  # from a request to the end of its reply
    grace: float = 30.0  # seconds that replies have to end in once the server is told to stop

    def __post_init__(self):
        low = {"queue": 0, "grace": 0}
        faults = [
            f"--{of.name} is {value:g}; {low.get(of.name, 1)} or more is needed"
            for of in fields(self)
            if (value := getattr(self, of.name)) is not None and not low.get(of.name, 1) <= value < float("inf")
        ]
        if faults:
            raise ValueError("; ".join(faults))
