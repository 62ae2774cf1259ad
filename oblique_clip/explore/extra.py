"""Packages of the extra `explore`, loaded where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import UserError

# The name that pip knows a package by, where it is another.
NAMES = {"skdim": "scikit-dimension", "sklearn": "scikit-learn"}


def load_extra(module: str, what: str) -> Any:
    """A module that the library runs without.

    Raises:
        UserError: where it is not installed, with what brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(f"{what} needs {NAMES.get(package, package)}: pip install 'oblique-clip[explore]'") from error
