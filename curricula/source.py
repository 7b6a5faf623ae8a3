"""The Python standard library's own source, as documents: trained on, held out, and shifted.

Held-out modules are chosen by a hash of their path and committed as text beside this file, with their licence. The
shifted ones are packages about graphical interfaces, of which nothing is trained on. The modules trained on are those
of the running interpreter; `modules.json` names each with the digest it had, so that another version is noticed.
"""

import hashlib
import json
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent / "heldout"
LIST = HERE / "modules.json"
SHIFTED = ("idlelib/", "tkinter/", "turtledemo/", "turtle.py")
# Tables, not programs: they would be learned or scored as data.
TABLES = ("encodings/", "pydoc_data/", "lib2to3/tests/data/", "test/encoded_modules/", "_sysconfigdata", "config-")
# Tests of the shifted packages: trained on by nobody either.
SHIFTED_TESTS = ("test/test_idle", "test/test_tk", "test/test_ttk", "test/test_turtle", "test/support/_")
LARGEST = 200_000  # characters; beyond it a file is mostly a table
LINE_KEEP = 0.2  # a held-out module sharing more of its long lines with the training modules is not held out


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def library(root: Path | None = None) -> dict[str, str]:
    """Relative path -> text of every module of the running interpreter worth reading, each text once."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, str] = {}
    seen: set[str] = set()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if "site-packages" in name or name.startswith(TABLES + SHIFTED_TESTS) or name.endswith("_sysconfigdata.py"):
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue  # a few test modules are in other encodings on purpose
        if 200 <= len(text) <= LARGEST and "\0" not in text and digest(text) not in seen:
            seen.add(digest(text))
            found[name] = text
    return found


def role(name: str, text: str) -> str:
    """`shift`, `heldout` or `train`, by the path alone (tests are never held out: they are a kind of their own)."""
    if name.startswith(SHIFTED):
        return "shift"
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
    tests = name.startswith("test/") or "/test" in name
    return "heldout" if bucket < 8 and not tests and 1_500 <= len(text) <= 40_000 else "train"


def recorded() -> dict:
    """The committed list: interpreter, and digest by module of what was trained on."""
    return json.loads(LIST.read_text())


def training(check: bool = True) -> dict[str, str]:
    """The modules to train on, each checked against its recorded digest; nothing held out or shifted is among them."""
    known = recorded()["train"]
    texts = library()
    kept = {name: texts[name] for name in known if name in texts and digest(texts[name])[:16] == known[name]}
    if check and len(kept) < len(known):
        other = sorted(set(known) - set(kept))
        raise ValueError(
            f"training source: {len(other)} of {len(known)} modules differ from {LIST.name}, first {other[:3]}; it was"
            f" made with Python {recorded()['python']}. Use that version, or write a new list with"
            " `python -m scripts.make_tiny --list-source` and retrain"
        )
    return kept


def committed(kind: str) -> dict[str, str]:
    """The committed text of `heldout` or `shift`, by module name."""
    names = recorded()[kind]
    texts = {name: (HERE / kind / (name.replace("/", "__") + ".txt")).read_bytes().decode() for name in names}
    changed = [name for name in names if digest(texts[name])[:16] != names[name]]
    if changed:
        raise ValueError(f"{kind} source: {changed} in {HERE / kind} differ from {LIST.name}; restore them from git")
    return texts


def shared_lines(text: str, lines: set[str]) -> float:
    """The share of a module's long lines that occur word for word in `lines`."""
    long = [line.strip() for line in text.splitlines() if len(line.strip()) >= 30]
    return sum(line in lines for line in long) / max(1, len(long))


def choose(
    texts: dict[str, str], heldout_limit: int = 400_000, shift_limit: int = 120_000
) -> dict[str, dict[str, str]]:
    """Divide modules into train, heldout and shift; what is over the limits or too alike is used for nothing."""
    parts: dict[str, dict[str, str]] = {"train": {}, "heldout": {}, "shift": {}}
    for name in sorted(texts, key=lambda n: hashlib.sha256(n.encode()).hexdigest()):
        parts[role(name, texts[name])][name] = texts[name]
    lines = {line.strip() for text in parts["train"].values() for line in text.splitlines()}
    parts["heldout"] = {n: t for n, t in parts["heldout"].items() if shared_lines(t, lines) <= LINE_KEEP}
    for kind, limit in (("heldout", heldout_limit), ("shift", shift_limit)):
        total, kept = 0, {}
        for name, text in parts[kind].items():
            if total + len(text) <= limit and len(text) <= 40_000:
                kept[name] = text
                total += len(text)
        parts[kind] = kept
    return parts
