"""The names of the model families, for programs that load none. No torch."""

import pkgutil
from pathlib import Path

_FAMILIES = Path(__file__).parent / "families"


def family_names() -> tuple[str, ...]:
    """Return the names of all families, e.g. `videochat`, without importing them."""
    return tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules([str(_FAMILIES)])))
