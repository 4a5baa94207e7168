"""The vectors that IQ formats choose from, prepared for the search: the code of each, or its neighbours.

Source of what counts as a neighbour: llama.cpp, ggml/src/ggml-quants.c.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from qllama import grids


class Search(NamedTuple):
    """A vector of digits is found at the sum of digit << bits * place."""

    codes: np.ndarray
    """int32: the code of a vector; of one that has none, -1 - where its neighbours are."""
    neighbours: np.ndarray
    """int32: a number of codes, then these, the nearest first."""
    vectors: np.ndarray
    """(n_codes, 8 or 4) uint8 digits."""


# Type -> its vectors, and how many different distances its neighbours have.
_CHOICES = {
    "IQ1_S": (grids.IQ1_S, 3),
    "IQ1_M": (grids.IQ1_S, 3),
    "IQ2_XXS": (grids.IQ2_XXS, 2),
    "IQ2_XS": (grids.IQ2_XS, 2),
    "IQ2_S": (grids.IQ2_S, 1),
    "IQ3_XXS": (grids.IQ3_XXS, 2),
    "IQ3_S": (grids.IQ3_S, 3),
}


@cache
def search(type_name: str) -> Search:
    """What the encoder of an IQ1, IQ2 or IQ3 type searches in."""
    grid, n_distances = _CHOICES[type_name]
    width, base = grid.digits.shape[1], len(grid.levels)
    points = np.stack(np.meshgrid(*[np.arange(base)] * width, indexing="ij"), axis=-1).reshape(-1, width)
    at = (points << (2 if width == 8 else 3) * np.arange(width)).sum(axis=1)
    distance = (
        (points**2).sum(axis=1)[:, None] + (grid.digits.astype(int) ** 2).sum(axis=1) - 2 * points @ grid.digits.T
    )
    codes = np.zeros(at.max() + 1, np.int32)
    on_grid, code = np.nonzero(distance == 0)
    codes[at[on_grid]] = code
    alone = distance.min(axis=1) > 0
    lists = _neighbours(distance[alone], n_distances)
    starts = np.cumsum([0] + [len(near) + 1 for near in lists[:-1]])
    codes[at[alone]] = -1 - starts
    flat = np.concatenate([np.append(len(near), near) for near in lists]).astype(np.int32)
    return Search(codes, flat, np.ascontiguousarray(grid.digits))


def _neighbours(distance: np.ndarray, n_distances: int) -> list[np.ndarray]:
    """For each row the columns of its `n_distances` smallest distances, by distance, then by number."""
    far = distance.min(axis=1, keepdims=True)
    for _ in range(n_distances - 1):
        far = np.where(distance > far, distance, np.iinfo(distance.dtype).max).min(axis=1, keepdims=True)
    rows, columns = np.nonzero(distance <= far)
    order = np.lexsort((columns, distance[rows, columns], rows))
    return np.split(columns[order], np.cumsum(np.bincount(rows))[:-1])
