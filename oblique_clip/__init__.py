"""CLIP on an oblique manifold, trained and judged against an exact CLIP baseline.

Names load on first use, so that importing the package costs nothing: `parse_topology`, `create_model`, `model_config`,
`load`, `classify`.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "parse_topology": "topology",
    "create_model": "model",
    "model_config": "config",
    "load": "checkpoint",
    "classify": "evaluate.zeroshot",
    "UserError": "errors",
}
__all__ = ["UserError", "__version__", "classify", "create_model", "load", "model_config", "parse_topology"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'oblique_clip' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
