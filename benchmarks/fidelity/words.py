"""Words that the tasks are made of."""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


CITIES = _words(
    "Amsterdam Athens Berlin Boston Brussels Cairo Chicago Dallas Denver Dublin Florence Geneva Hamburg Helsinki "
    "Istanbul Jakarta Kyoto Lima Lisbon London Madrid Manila Miami Milan Montreal Moscow Mumbai Munich Nairobi Oslo "
    "Paris Prague Quebec Seattle Seoul Shanghai Stockholm Sydney Tokyo Toronto Vienna Warsaw Zurich"
)

THINGS = _words(
    "apple banana basket blanket bottle bridge bucket butter button camera candle carpet castle cherry circle coffee "
    "cookie copper cotton dollar engine feather finger flower forest garden garlic guitar hammer island jacket kettle "
    "ladder lemon magnet market mirror monkey needle onion orange pencil pepper piano pillow planet pocket potato "
    "rabbit ribbon rocket saddle salmon school silver spider sponge summer ticket tiger tomato tunnel turkey "
    "violin wallet window winter"
)

FIRST_NAMES = _words(
    "Alice Brenda Carl Diana Edgar Fiona George Helen Ivan Julia Kevin Laura Martin Nancy Oscar Paula Quentin Robert "
    "Susan Thomas Ursula Victor Wendy Xavier Yvonne Zachary"
)
