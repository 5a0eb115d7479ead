"""The structures of csrc/kiv.h, field by field: addresses and sizes, whose numbers stay in tensors."""

from __future__ import annotations

import ctypes

Pointer, Long, Int, Real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class Index(ctypes.Structure):
    """`Index` of kiv.h."""

    _fields_ = (
        *((name, Pointer) for name in ("codes", "channels", "step", "base", "mean", "page", "unseen")),
        *((name, Long) for name in ("pages", "heads", "tokens", "half", "width", "value_width")),
    )


class Query(ctypes.Structure):
    """`Query` of kiv.h."""

    _fields_ = (
        *((name, Pointer) for name in ("query", "sink")),
        *((name, Long) for name in ("heads", "members", "width")),
        *((name, Real) for name in ("scale", "softcap")),
        *((name, Int) for name in ("group_max", "threads")),
    )


class Rows(ctypes.Structure):
    """`Rows` of kiv.h."""

    _fields_ = (
        *((name, Pointer) for name in ("data", "page")),
        *((name, Long) for name in ("tokens", "heads", "head", "width", "kind")),
    )


class Run(ctypes.Structure):
    """`Run` of kiv.h."""

    _fields_ = (("key", Rows), ("value", Rows), ("first", Long), ("count", Long), ("valid", Pointer))


class Estimates(ctypes.Structure):
    """`Estimates` of kiv.h."""

    _fields_ = (
        ("least", Long),
        *((name, Pointer) for name in ("most", "sum", "name", "score", "listed", "start", "count", "room")),
    )


class Found(ctypes.Structure):
    """`Found` of kiv.h."""

    _fields_ = (
        *((name, Pointer) for name in ("at", "raw", "chosen", "late")),
        *((name, Long) for name in ("stride", "candidates", "selected")),
    )


class Attend(ctypes.Structure):
    """`Attend` of kiv.h."""

    _fields_ = (
        ("run", Pointer),
        ("runs", Long),
        ("position", Pointer),
        ("queries", Long),
        ("value_width", Long),
        ("found", Pointer),
        ("value", Rows),
        *((name, Pointer) for name in ("index", "estimates", "tail", "out")),
        *((name, Long) for name in ("out_head", "out_kind")),
        *((name, Pointer) for name in ("most", "total", "estimated")),
        ("finite", Long),
    )


class Missed(ctypes.Structure):
    """`Missed` of kiv.h."""

    _fields_ = (
        *((name, Pointer) for name in ("index", "estimates", "found", "error", "held", "room", "slack")),
        ("known", Long),
        ("share", Pointer),
        ("head", Long),
    )


class Copy(ctypes.Structure):
    """`Copy` of kiv.h."""

    _fields_ = (
        *((name, Pointer) for name in ("from_", "to")),
        *((name, Long) for name in ("batch", "heads", "count", "nbytes", "kind")),
        *((name, Long) for name in ("from_batch", "from_head", "from_token", "to_batch", "to_head")),
    )
