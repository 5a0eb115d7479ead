"""Which rotary factors the tokens of a cache have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers.utils import logging

from .limits import factors, limits
from .told import length_in_force

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_logger = logging.get_logger(__name__)


class Watch:
    """Notes of which factors the tokens of one cache are, and warns where a forward pass mixes them.

    Attributes
    ----------
    limits : tuple of Limit
    padding : int
        Tokens by which the furthest position lags behind the length, as far as `generate` said.
    held : tuple of int
        The factors of the tokens so far.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        self._config = config
        self.limits = limits(config)
        self.padding = 0
        self.held: tuple[int, ...] = ()

    def next_factors(self, tokens: int) -> tuple[int, ...]:
        """Return the factors of a forward pass that brings the text to `tokens` tokens, padding included."""
        return factors(self.limits, length_in_force(self._config, tokens - self.padding))

    def changes(self, tokens: int) -> bool:
        """Tell whether that pass has the other set of factors; dynamic ones, which always change, do not count."""
        pairs = zip(self.limits, self.next_factors(tokens), self.held, strict=False)  # none held at first
        return any(new != held for limit, new, held in pairs if not limit.dynamic)

    def see(self, held: int, total: int) -> None:
        """Note a pass that brings a layer of `held` tokens to `total`."""
        if not self.limits:
            return
        now = self.next_factors(total)
        if held > 0 and now != self.held:
            _logger.warning_once(
                f"The rotary factors of this model change after {self.limits[0].tokens} tokens, and a forward pass has "
                "just crossed that length: earlier tokens keep the factors they had, with any cache, which full "
                "attention never mixes. Reset the cache and feed the text under kiv_hf.rope_for_length(model, tokens)."
            )
        self.held = now

    def fork(self) -> Watch:
        """Return the watch of a fork."""
        twin = Watch(self._config)
        twin.padding, twin.held = self.padding, self.held
        return twin
