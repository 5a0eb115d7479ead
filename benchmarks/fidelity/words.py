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

LAST_NAMES = _words(
    "Abbott Adams Anderson Archer Atkins Bailey Baker Barnes Bennett Bishop Blake Bolton Bowman Brooks Bryant Burton "
    "Butler Carter Chandler Chapman Clarke Coleman Collins Cooper Crawford Curtis Dalton Davies Dawson Dixon Douglas "
    "Duncan Edwards Elliott Ellis Emerson Evans Farmer Fisher Fleming Fletcher Foster Fowler Francis Freeman Gardner "
    "Gibson Gordon Graham Griffin Hamilton Hansen Harper Harris Hawkins Henderson Holland Hopkins Howard Hudson "
    "Hughes Irving Jackson Jenkins Jensen Johnson Jordan Keller Kelly Kennedy Knight Lambert Lawson Lewis Lloyd Logan "
    "Marshall Matthews Meyer Miller Mitchell Morgan Morris Murphy Murray Nelson Newman Norton Olsen Osborne Owens "
    "Palmer Parker Parsons Patterson Perkins Peterson Phillips Porter Powell Preston Quinn Reed Reynolds Richards "
    "Roberts Robinson Rogers Russell Sanders Shaw Simpson Spencer Stanley Stewart Sullivan Taylor Thompson Tucker "
    "Turner Underwood Vaughn Walker Wallace Watson Webster Wheeler Williams Wilson Winter Wright Young Ziegler"
)

NUMBERS = _words("zero one two three four five six seven eight nine ten eleven twelve")
