"""Faults in what a store gives away of its state, and in how another takes it (SPEC 9.7 and 9.8)."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from kiv_reference import snapshot_checks, store
from kiv_reference.pool import ReferencePool
from kiv_reference.snapshot import Snapshot
from kiv_reference.store import ReferenceStore

from .patching import mutant, reworded

GIVEN, TAKEN, RULES = (store, "snapshot_of"), (store, "tokens_of"), (store, "check_snapshot")
PAGES, FLAGS = (snapshot_checks, "_check_pages"), (snapshot_checks, "_check_flags")

reworded("snapshot with numbers of padding", GIVEN, "masked_fill(unseen, 0)", "masked_fill(unseen, 7)", look="9.7")
reworded("snapshot without validity", GIVEN, "else tokens.valid.clone()", "else None", look="9.7")
reworded("snapshot whose samples are unseen", GIVEN, "nan_to_num(nan=UNSEEN)", "mul(0).add(UNSEEN)", look="9.7")
reworded("snapshot of finite values that are not", GIVEN, "bool(torch.isfinite(value).all())", "True", look="9.7")
reworded(
    "pages of a snapshot a token late",
    GIVEN,
    "states[:, :, begin:stop]",
    "states[:, :, begin:stop].roll(1, 2)",
    look="9.7",
)
reworded("heads of a page in another order", GIVEN, "4).flatten(0, 1)", "4).flatten(0, 1).flip(1)", look="9.7")
reworded("pages taken in another order", TAKEN, "[sequences]", "[sequences.flip(1)]", look="9.8")
reworded("pages taken behind the hot tokens", TAKEN, "[recent[:, :, :sinks], between, recent[:, :, sinks:]]",
         "[recent, between]", look="9.8")  # fmt: skip
reworded("values taken for keys", TAKEN, "whole(snapshot.key, False)", "whole(snapshot.key, True)", look="9.8")
reworded("an attend after a restore", TAKEN, "tokens.pending = 0", "pass", look="9.8")
reworded("samples that are not taken", TAKEN, "tokens.sampled.append(", "str(", look="9.8")
reworded("unseen samples that count", TAKEN, "UNSEEN, torch.nan", "UNSEEN, 0.0", look="9.8")
reworded("a full store takes a snapshot", RULES, "if not empty:", "if False:", look="9.8")
reworded("another rule is taken", RULES, "in SHAPING", "in SHAPING[1:]", look="9.8")
reworded("pages that are not there", PAGES, "< count:", "<= count:", look="9.8")
reworded("more pages than can be cold", PAGES, "pages.shape[1] > config", "pages.shape[1] > 2 + config", look="9.8")
reworded("a page twice", PAGES, "if not np.diff(np.sort(pages, axis=1)).all():", "if False:", look="9.8")
reworded("samples of the future", FLAGS, "> snapshot.length //", "> 1 + snapshot.length //", look="9.8")
reworded("keys that are no numbers", FLAGS, 'check_finite("key", key, ', 'check_finite("key", key * 0, ', look="9.8")
reworded("validity of the wrong tokens", (Snapshot, "beside_pages"), "sinks + cold :", "sinks :", look="9.8")


@mutant("a restore that no budget holds", (ReferenceStore, "restore"), look="9.8")
def _(original: Any) -> Any:
    def changed(self: ReferenceStore, snapshot: Snapshot) -> None:
        with patch.object(ReferencePool, "check_room"):
            original(self, snapshot)

    return changed
