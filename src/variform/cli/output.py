"""What commands print: results on stdout, errors on stderr, both as text or as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from variform.errors import ConfigError, VariformError


def show(text: str, data: Any, as_json: bool) -> None:
    """Print a result: its text, or its data as JSON."""
    print(json.dumps(data, indent=2, ensure_ascii=False) if as_json else text)


def fail(error: VariformError, as_json: bool) -> int:
    """Print an error on stderr; the exit status."""
    sys.stdout.flush()
    if as_json:
        print(json.dumps({"error": error_data(error)}, indent=2, ensure_ascii=False), file=sys.stderr)
    else:
        print(f"error: {error}", file=sys.stderr)
    return 2


def error_data(error: VariformError) -> dict[str, Any]:
    """An error as plain data: what kind, the text, and each problem with its path."""
    problems = [problem.to_json() for problem in error.problems] if isinstance(error, ConfigError) else []
    text = str(error)
    return {"type": type(error).__name__, "message": text, "problems": problems or [{"path": "", "message": text}]}
