"""The one exception that means "the user can mend this"."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user asked for; its message is one line that says what would be right.

    The command line prints the message and exits with status 2; library callers see a `ValueError`.

    Examples:
        >>> from oblique_clip import UserError, load
        >>> try:
        ...     load("runs/mine")
        ... except UserError as error:
        ...     print(error)
        no such checkpoint or run folder: runs/mine; of the hub it would be hf:runs/mine
    """
