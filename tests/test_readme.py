"""The Python in README.md runs as it stands, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_python_blocks_run() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S)
    assert len(blocks) >= 3
    names: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, README.name, "exec"), names)
