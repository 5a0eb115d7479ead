"""The exceptions of KIV (SPEC 10.4): each says what rule was broken, by which value, and what to do."""

from __future__ import annotations


class KIVError(Exception):
    """Base of every error that KIV raises on purpose."""


class KIVConfigError(KIVError, ValueError):
    """A field of `KIVConfig`, or a combination of fields, is not allowed."""


class KIVShapeError(KIVError, ValueError):
    """A tensor has the wrong shape, dtype or device for this store (SPEC 9.1)."""


class KIVNonFiniteError(KIVError, ValueError):
    """A key or a query at a valid position is NaN or infinite (SPEC 2.5)."""


class KIVUsageError(KIVError, RuntimeError):
    """A call came at a time, or with an argument, that has no meaning (SPEC 9)."""


class KIVBudgetError(KIVError, MemoryError):
    """What was asked for does not fit into a byte budget (SPEC 10.2)."""


class KIVStorageError(KIVError, OSError):
    """The disk tier could not read or write; what the store holds is unchanged (SPEC 10.1)."""


class KIVCorruptError(KIVError, ValueError):
    """What was saved cannot be trusted: bytes are not those that were written, or say what cannot be (SPEC 9.8)."""


class KIVMismatchError(KIVError, ValueError):
    """What was saved belongs to something else: another model, tokenizer, dtype or version."""


class KIVUnsupportedError(KIVError, NotImplementedError):
    """The model or the implementation does something that KIV does not support."""


def refuse(error: type[KIVError], rule: str, value: object, remedy: str) -> KIVError:
    """Build `error` with the three things a user needs: the rule, the value that broke it, the remedy.

    Returns the exception, so that callers write ``raise refuse(...)`` and a type checker sees the flow.
    """
    return error(f"{rule}; got {value}. {remedy}")
