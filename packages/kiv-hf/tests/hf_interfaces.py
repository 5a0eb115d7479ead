"""Other functions under the name "kiv", for tests of what a model might do between the cache and attention."""

from __future__ import annotations

from transformers import AttentionInterface, AttentionMaskInterface


class registered:
    """While it lasts, other functions go by the name "kiv"."""

    def __init__(self, attention=None, mask=None):
        self.wanted = [(AttentionInterface, attention), (AttentionMaskInterface, mask)]

    def __enter__(self):
        self.kept = [(interface, interface()["kiv"]) for interface, _ in self.wanted]
        for interface, function in self.wanted:
            if function is not None:
                interface.register("kiv", function)

    def __exit__(self, *_):
        for interface, function in self.kept:
            interface.register("kiv", function)


def attention_gets(change):
    """The attention "kiv" gets `change(key, value)`, as from a model that adapts them."""
    kiv = AttentionInterface()["kiv"]

    def changed(module, query, key, value, mask, **kwargs):
        return kiv(module, query, *change(key, value), mask, **kwargs)

    return registered(attention=changed)


def attention_adds(**added):
    """The attention "kiv" gets more arguments, as from a model that passes them."""
    kiv = AttentionInterface()["kiv"]

    def more(module, query, key, value, mask, **kwargs):
        return kiv(module, query, key, value, mask, **{**kwargs, **added})

    return registered(attention=more)
