"""Who holds which bytes of a pool, and how a call is sure of those it needs (SPEC 10.2).

The `Ledger` has the limits and what is used; each store, with its forks, takes from it through one `Account`. Bytes are
held by what lies in them: the window of a store, its pages, the buffers of a step. A call takes all it may need before
it changes anything: the window and the buffers at the size that they will have, and a `Reservation` for the pages that
will leave the window. Each page that is written uses up a part of it; a page that comes back, since the call failed,
gives it back; what is left when the call is over is released.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False)
class Reservation:
    """Room for pages to come: for each its index, on the device and in RAM, and a place in one of two tiers.

    Attributes
    ----------
    in_ram : int
        Pages that have a place in RAM.
    on_disk : int
        Pages that have one on disk, or for each of which another page will go there.
    """

    in_ram: int = 0
    on_disk: int = 0

    @property
    def pages(self) -> int:
        """Pages to come."""
        return self.in_ram + self.on_disk
