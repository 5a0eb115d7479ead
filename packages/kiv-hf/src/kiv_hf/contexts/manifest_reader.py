"""A manifest from bytes that are not believed: every field is there, of its type and within its range."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from kiv_reference.checks import DTYPES
from kiv_reference.config import KIVConfig
from kiv_reference.errors import KIVConfigError, KIVMismatchError, refuse

from .checksums import checksum, written
from .faults import Malformed
from .layout import Geometry
from .manifest import FORMAT, PREFIX, PREFIX_BYTES, RULES, SPEC_VERSION, VERSION, Layer, Manifest, Segment
from .segments import ALIGNED, LONGEST_HEADER, SEGMENT_NAME, TENSOR_NAME
from .states import FLOAT
from .strict_json import Fields, integer, items, parse, text
from .tensors import DTYPES as FILE_DTYPES
from .tensors import name_of

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_LAYERS, MOST_SEGMENTS = 1 << 16, 1 << 20
WORDS = r".{0,65536}"
SUM = r"[0-9a-f]{16}"


def manifest_from(data: bytes, path: str) -> Manifest:
    """Return the manifest that a file holds.

    Raises
    ------
    Malformed
        It holds none.
    KIVMismatchError
        It was written by a newer KIV, or by the rules of another SPEC.md.
    """
    body = data[PREFIX_BYTES:]
    if data[:PREFIX_BYTES] != PREFIX % written(checksum(body)).encode("ascii"):
        raise Malformed("begin with the checksum of what follows it", data[:PREFIX_BYTES])
    fields = Fields(parse(b"{" + body), "the manifest")
    if fields.text("format", WORDS) != FORMAT:
        raise Malformed(f"have {FORMAT} as its format", "another")
    _check_versions(fields, path)
    manifest = Manifest(
        kiv=fields.text("kiv", WORDS),
        config=_config(Fields(fields.any("config"), "config")),
        tokens=fields.integer("tokens"),
        provenance={
            text(name, "a field of provenance", WORDS): text(value, f"provenance.{name}", WORDS)
            for name, value in Fields(fields.any("provenance"), "provenance").rest().items()
        },
        state=fields.any("state"),
        layers=[_layer(Fields(value, "a layer")) for value in fields.items("layers", MOST_LAYERS)],
        segments=[_segment(Fields(value, "a segment")) for value in fields.items("segments", MOST_SEGMENTS)],
    )
    fields.end()
    _check_ranges(manifest.segments, max((each.pages for each in manifest.geometries.values()), default=0))
    if any(each.page_tokens != manifest.config.page_tokens for each in manifest.geometries.values()):
        raise Malformed("have the same page_tokens everywhere", "others")
    return manifest


def _check_versions(fields: Fields, path: str) -> None:
    version = fields.integer("version", least=1)
    if version > VERSION:
        rule, remedy = f"{path} must be of format version {VERSION} or older", "Upgrade KIV."
        raise refuse(KIVMismatchError, rule, version, remedy)
    spec = fields.integer("spec", least=1)
    if spec != SPEC_VERSION:
        remedy = "Upgrade KIV." if spec > SPEC_VERSION else "Read the text again."
        rule = f"{path} must be a state by version {SPEC_VERSION} of SPEC.md"
        raise refuse(KIVMismatchError, rule, spec, remedy)


def _config(fields: Fields) -> KIVConfig:
    rules = {name: fields.any(name) for name in RULES}
    fields.end()
    for name, value in rules.items():
        if isinstance(value, dict):
            real = Fields(cast("object", value), f"config.{name}")
            rules[name] = float.fromhex(real.text("float", FLOAT))
            real.end()
    try:
        return KIVConfig(**rules)  # pyright: ignore[reportArgumentType]
    except (KIVConfigError, TypeError) as error:
        raise Malformed("have a configuration that KIV takes", error) from error


def _layer(fields: Fields) -> Layer:
    snapshot = fields.any("snapshot")
    geometry = None if snapshot is None else _geometry(Fields(snapshot, "a snapshot"))
    layer = Layer(fields.text("kind", WORDS), geometry, fields.any("state"))
    fields.end()
    return layer


def _geometry(fields: Fields) -> Geometry:
    dtype = FILE_DTYPES.get(fields.text("dtype", WORDS))
    if dtype is None or dtype not in DTYPES:
        raise Malformed(f"have pages of {', '.join(map(name_of, DTYPES))}", dtype)
    batch, heads, size, width, value_width = (fields.integer(name, 1, 2**31 - 1) for name in Geometry._fields[1:6])
    pages, finite = fields.integer("pages", most=2**31 - 1), fields.flag("finite")
    geometry = Geometry(dtype, batch, heads, size, width, value_width, pages, finite)
    fields.end()
    return geometry


def _segment(fields: Fields) -> Segment:
    pages = fields.any("pages")
    sums = Fields(fields.any("xxh3_64"), "xxh3_64").rest()
    segment = Segment(
        name=fields.text("name", SEGMENT_NAME),
        nbytes=fields.integer("bytes", ALIGNED),
        header_bytes=fields.integer("header_bytes", ALIGNED, LONGEST_HEADER),
        header=int(fields.text("header_xxh3_64", SUM), 16),
        pages=None if pages is None else _range(pages),
        sums={text(n, "a tensor", TENSOR_NAME): int(text(v, "a checksum", SUM), 16) for n, v in sums.items()},
    )
    fields.end()
    return segment


def _range(value: object) -> tuple[int, int]:
    numbers = items(value, "pages", 2)
    if len(numbers) != 2:
        raise Malformed("have two numbers as pages", value)
    start = integer(numbers[0], "pages")
    return start, integer(numbers[1], "pages", start + 1)


def _check_ranges(segments: Sequence[Segment], pages: int) -> None:
    """Refuse segments that do not hold each page once, in order, and the rest at their end."""
    if not segments or segments[-1].pages is not None or len({segment.name for segment in segments}) != len(segments):
        raise Malformed("name one segment beside those of pages, at the end", [segment.name for segment in segments])
    at = 0
    for segment in segments[:-1]:
        if segment.pages is None or segment.pages[0] != at:
            raise Malformed(f"name a segment of pages from {at} on", segment.pages)
        at = segment.pages[1]
    if at != pages:
        raise Malformed(f"name segments of {pages} pages", at)
