"""Fidelity of KIV: what leaving tokens out costs, on real models, beside the best rules known.

``python -m benchmarks.fidelity`` runs everything; ``python -m benchmarks.fidelity --help`` names its parts.
"""
