"""Generation in the shapes in which transformers tests it: every call with a KIVCache and, beside it, with a stock one.

transformers' own files of these tests (``tests/generation``, ``tests/models``) are in none of the source distributions
on the package index that were looked at: 25 from 3.5 to 5.24, among them the last of every release in the supported
range. They carry ``tests/test_*.py`` at most. So nothing here is upstream's code. What is tested has the same shape:
the ways to call `generate` that its mixin for generative models goes through, for model classes of every family, two
sequences at a time, with the cache put where `generate` makes its own, and a stock cache's answer beside every call's.
"""
