import kiv_reference
from kiv_reference import contract


def test_public_names_are_pinned() -> None:
    assert kiv_reference.__all__ == ["KIVConfig", "LayerStore", "ReferencePool", "StorePool"]
    assert all(hasattr(kiv_reference, name) for name in kiv_reference.__all__)
    assert all(hasattr(contract, name) for name in contract.__all__)
