"""The same state by other calls (SPEC 2.1): the same tokens, and the same queries at sampled positions."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

from .data import Tokens
from .oracle_index import EVERY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .driver import Driver
    from .oracle_store import OracleStore


def tokens_of(oracle: OracleStore, dtype: torch.dtype, values: Sequence[Sequence[Sequence[Sequence[float]]]]) -> Tokens:
    """Return a store's tokens with these values; the queries are 1 everywhere but where they count."""
    key, value = (torch.tensor(x, dtype=torch.float64).to(dtype) for x in (oracle.keys, values))
    groups = max((len(q) for row in oracle.samples for kept in row for q in kept.values()), default=1)
    query = torch.ones(key.shape[0], key.shape[1], groups, *key.shape[2:], dtype=torch.float64)
    for b, row in enumerate(oracle.samples):
        for h, kept in enumerate(row):
            for at, queries in kept.items():
                # Another attend may have had fewer heads: what counts is the largest |q| of them.
                query[b, h, :, at] = torch.tensor(queries * groups, dtype=torch.float64)[:groups]
                query[b, h, 0, at] = torch.tensor(queries, dtype=torch.float64).abs().amax(dim=0)
    return Tokens(key, value, query.flatten(1, 2).to(dtype), torch.tensor(oracle.valid))


def refill(other: Driver, oracle: OracleStore, tokens: Tokens, cuts: Sequence[int]) -> None:
    """Append the tokens of a store, `oracle`, cut at these places, the last call's tokens last.

    A multiple of 64 that an attend gave queries for is given them again, in a call of its own.
    """
    last = oracle.length - oracle.pending
    given = [at for at in range(EVERY - 1, last, EVERY) if any(at in kept for row in oracle.samples for kept in row)]
    edges = {0, last, oracle.length, *(cut for cut in cuts if cut < last), *given, *(at + 1 for at in given)}
    for start, stop in itertools.pairwise(sorted(edges)):
        chunk = tokens.slice(start, stop)
        other.append(chunk)
        if start in given:
            other.store.attend(**other.target.place({"query": chunk.query}), scale=1.0)
            other.oracle.attend(chunk.query.tolist())
