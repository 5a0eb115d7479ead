"""Generation in the shapes in which transformers tests it: every call with a KIVCache and, beside it, with a stock one.

transformers' own files of these tests (``tests/generation``, ``tests/models``) are in none of its source distributions
on the package index: those carry ``tests/test_*.py`` alone, from 4.30 to 5.24. So nothing here is upstream's code. What
is tested is the same by its shape: the ways to call `generate` that its mixin for generative models goes through,
for model classes of every family, with the cache put where `generate` makes its own.
"""
