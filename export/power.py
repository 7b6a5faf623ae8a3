"""What the Neural Engine draws, where the system lets us ask: `powermetrics` wants to be allowed without a password."""

import re
import subprocess
from types import TracebackType

COMMAND = ["sudo", "-n", "powermetrics", "--samplers", "ane_power,cpu_power,gpu_power", "-i", "500"]
DRAWN = re.compile(r"^(ANE|CPU|GPU) Power: (\d+) mW$", re.MULTILINE)


class Power:
    """Watts while it is held, by part; none where it is not allowed."""

    def __enter__(self) -> "Power":
        self.watts: dict[str, float] = {}
        try:
            self.process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except FileNotFoundError:
            self.process = None
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process is not None:
            self.process.terminate()
            said, _ = self.process.communicate()
            self.watts = drawn(said)


def drawn(said: str) -> dict[str, float]:
    """Means of all samples but the first, which reaches back to before."""
    found: dict[str, list[float]] = {}
    for part, mw in DRAWN.findall(said):
        found.setdefault(part, []).append(int(mw) / 1e3)
    return {part: sum(of[1:]) / len(of[1:]) for part, of in found.items() if len(of) > 1}
