# What pyright sees of transformers: to read all of it takes longer than to check all of AGP.
from typing import Any

def __getattr__(name: str) -> Any: ...
