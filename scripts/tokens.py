"""The word that two hosts share: from a file, or from AGP_TOKEN; never from the command line, which others can read."""

import os
import re
import secrets
from pathlib import Path

TOKEN = "[!-~]{16,512}"


def token_of(file: Path | None) -> str | None:
    try:
        source, token = ("AGP_TOKEN", os.environ.get("AGP_TOKEN")) if file is None else (file, file.read_text().strip())
    except OSError as e:
        raise ValueError(f"the token file {file} cannot be read: {e.strerror}") from e
    if token is not None and not re.fullmatch(TOKEN, token):
        raise ValueError(f"{source} holds no token: 16 to 512 printable characters without spaces are needed")
    return token


def fresh(folder: Path) -> Path:
    """A new one, in a file that nobody else can read."""
    file = folder / "token"
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as token:
        token.write(secrets.token_urlsafe(32))
    return file
