"""The JSON files of a Hugging Face folder, and checked values of them. Nothing in them is trusted."""

import json
from pathlib import Path
from typing import Any

from qllama.errors import FileError, read_file


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds. Raises FileError."""
    return parse_json(path, read_file(path, "it"))


def optional_json(path: Path) -> dict[str, Any]:
    """As read_json; empty when there is no such file."""
    return read_json(path) if path.is_file() else {}


def parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    """The object in `raw`, which is of the file `path`; a key twice in one object is an error."""
    try:
        value = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise FileError(path, f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise FileError(path, f"is a JSON {type(value).__name__}, needed an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def check_name(path: Path, key: str, name: Any) -> None:
    """A file that another names must lie beside it."""
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
        raise FileError(path, "must name a safetensors file beside it", key, name)


class Config:
    """The values of config.json, each checked when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "config.json"
        self.values = read_json(self.path)

    def get(self, key: str) -> Any:
        """A value as it is; None where it is missing or null."""
        return self.values.get(key)

    def integer(self, key: str, default: int | None = None) -> int:
        """From 1 to 2**31 - 1."""
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise FileError(self.path, f"missing key {key}")
        if type(value) is not int or not 0 < value < 2**31:
            raise FileError(self.path, f"must be an integer from 1 to {2**31 - 1}", key, value)
        return value

    def number(self, key: str, default: float) -> float:
        """Above 0."""
        return self.check_number(key, self.values.get(key), default)

    def check_number(self, key: str, value: Any, default: float | None = None) -> float:
        """`value`, which is config.json's of `key`, as a number above 0."""
        value = default if value is None else value
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise FileError(self.path, "must be a number above 0", key, value)
        return float(value)
