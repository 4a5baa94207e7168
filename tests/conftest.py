"""Where the shared test data is. Missing data skips a test on a user's machine and fails it in CI."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("QLLAMA_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def shared(name: str) -> Path:
    """The path of `name` in the shared data folder; skips when it is not there, fails under CI=true."""
    path = SHARED / name
    if not path.exists():
        reason = f"test data {name} not found in {SHARED} (set QLLAMA_SHARED)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path
