"""The one exception that means "the user can mend this"."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user asked for; its message is one line that says what would be right.

    The command line prints the message and exits with status 2; library callers see a `ValueError`.
    """
