"""What a run has logged so far, for tests that watch one from outside."""

from __future__ import annotations

import json
from pathlib import Path


def steps(run: Path) -> list[int]:
    """Of the whole lines of metrics.jsonl."""
    path = run / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line)["step"] for line in text.splitlines() if line.endswith("}")]
