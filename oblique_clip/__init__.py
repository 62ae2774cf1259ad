"""CLIP on an oblique manifold, trained and judged against an exact CLIP baseline.

Functions and modules load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Where each public name lives; None for a module of that name.
_HOMES: dict[str, str | None] = {
    "UserError": "errors",
    "adapt": None,
    "calibrate": "evaluate.zeroshot",
    "classify": "evaluate.zeroshot",
    "create_model": "model",
    "load": "checkpoint",
    "model_config": "config",
    "parse_topology": "topology",
    **dict.fromkeys(
        ("config", "data", "evaluate", "explore", "loss", "manifold", "model", "temperature", "topology", "towers")
    ),
}
__all__ = [
    "UserError",
    "__version__",
    "calibrate",
    "classify",
    "create_model",
    "load",
    "model_config",
    "parse_topology",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'oblique_clip' has no attribute {name!r}")
    home = _HOMES[name]
    module = importlib.import_module(f".{home or name}", __name__)
    return module if home is None else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*__all__, *_HOMES})
