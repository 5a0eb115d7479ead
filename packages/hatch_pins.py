"""Dependencies at build time: the packages of the repository pin each other's version, which is in VERSION alone."""

from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Pins(MetadataHookInterface):
    """Fill in ``{version}``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the dependencies from those of this hook's table in pyproject.toml."""
        metadata["dependencies"] = [name.format(**metadata) for name in self.config["dependencies"]]
