"""The word that two hosts share: from a file, or from AGP_TOKEN; never from the command line, which others can read."""

import os
import re
from pathlib import Path

TOKEN = "[!-~]{16,512}"


def token_of(file: Path | None) -> str | None:
    source, token = ("AGP_TOKEN", os.environ.get("AGP_TOKEN")) if file is None else (file, file.read_text().strip())
    if token is not None and not re.fullmatch(TOKEN, token):
        raise ValueError(f"{source} holds no token: 16 to 512 printable characters without spaces are needed")
    return token
