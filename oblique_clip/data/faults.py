"""What may be wrong with a sample: a cause to count it by, its caption made clean, and the share that a run bears."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from ..errors import UserError

LONGEST_CAPTION = 10_000
# Of a whole file of samples, beside which a sample weighs nothing.
SHARD_CAUSES = ("damaged shard", "unreadable shard")
# Unicode's category Cc, without tab and line breaks.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class BadSample(ValueError):
    """A sample that cannot be used. `cause` is one of a few fixed texts, so that it can be counted by.

    Examples:
        >>> from oblique_clip.data.faults import BadSample
        >>> error = BadSample("unreadable image", "no frame at byte 12")
        >>> error.cause, str(error)
        ('unreadable image', 'unreadable image: no frame at byte 12')
    """

    def __init__(self, cause: str, detail: object = "") -> None:
        super().__init__(f"{cause}: {detail}" if str(detail) else cause)
        self.cause = cause


def cause_of(error: Exception) -> str:
    """What to count a picture by that raised `error`, be it ours or another library's.

    Examples:
        >>> from oblique_clip.data.faults import BadSample, cause_of
        >>> cause_of(BadSample("empty file")), cause_of(OSError("no frame"))
        ('empty file', 'unreadable image')
    """
    return error.cause if isinstance(error, BadSample) else "unreadable image"


class Lost(Counter[str]):
    """Samples lost by cause, with the name of the first of each cause.

    Examples:
        >>> from oblique_clip.data.faults import Lost
        >>> lost = Lost()
        >>> for name in ("a.png", "b.png"):
        ...     lost.add("empty file", name)
        >>> dict(lost), lost.examples
        ({'empty file': 2}, {'empty file': 'a.png'})
    """

    def __init__(self, counts: Iterable[str] | Mapping[str, int] = ()) -> None:
        super().__init__(counts)
        self.examples: dict[str, str] = dict(counts.examples) if isinstance(counts, Lost) else {}

    def add(self, cause: str, name: str) -> None:
        self[cause] += 1
        self.examples.setdefault(cause, name)


def clean_caption(raw: object) -> str:
    """A caption as a table, a shard or a JSON file has it, without the white space around it.

    Args:
        raw: text, or bytes in UTF-8; anything else, None above all, is no caption.

    Raises:
        BadSample: for a caption that is missing, blank, longer than `LONGEST_CAPTION` letters or no UTF-8 (half of a
            surrogate pair counts as that), or that holds control characters other than tabs and line breaks.

    Examples:
        >>> from oblique_clip.data.faults import BadSample, clean_caption
        >>> clean_caption(b" a red apple\\n")
        'a red apple'
        >>> for raw in (None, " ", b"caf\\xe9", "a" * 100_000, "a \\x1b[2J bell"):
        ...     try:
        ...         clean_caption(raw)
        ...     except BadSample as error:
        ...         print(error.cause)
        no caption
        empty caption
        caption not UTF-8
        caption too long
        caption with control characters
    """
    if not isinstance(raw, bytes | str):
        raise BadSample("no caption")
    try:
        text = (raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw).strip()
        text.encode()
    except UnicodeError as error:
        raise BadSample("caption not UTF-8", error) from error
    if not text:
        raise BadSample("empty caption")
    if len(text) > LONGEST_CAPTION:
        raise BadSample("caption too long", f"{len(text)} letters")
    if _CONTROL.search(text):
        raise BadSample("caption with control characters")
    return text


def by_cause(lost: Counter[str]) -> str:
    """The counts in words, the largest first.

    Examples:
        >>> from collections import Counter
        >>> from oblique_clip.data.faults import by_cause
        >>> by_cause(Counter({"empty file": 1, "missing image": 1200}))
        '1,200 x missing image, 1 x empty file'
    """
    return ", ".join(f"{count:,} x {cause}" for cause, count in lost.most_common())


def refuse_bad(bad: Counter[str], good: int, limit: float, where: str) -> None:
    """Stop where more samples are lost than a user has agreed to.

    Args:
        bad: samples lost, by cause.
        good: samples that can be used.
        limit: the largest share of `bad` among all, from 0 to 1.

    Raises:
        UserError: with the counts.

    Examples:
        >>> from collections import Counter
        >>> from oblique_clip.data.faults import refuse_bad
        >>> refuse_bad(Counter({"empty file": 5}), good=95, limit=0.05, where="pairs.csv")
        >>> refuse_bad(Counter({"empty file": 6}), good=94, limit=0.05, where="pairs.csv")
        Traceback (most recent call last):
            ...
        oblique_clip.errors.UserError: pairs.csv: 6 of 100 samples are lost (6 x empty file); --max-bad-fraction
        allows a share of 0.05
    """
    lost = bad.total()
    if lost > limit * (lost + good):
        raise UserError(
            f"{where}: {lost:,} of {lost + good:,} samples are lost ({by_cause(bad)}); "
            f"--max-bad-fraction allows a share of {limit:g}"
        )


def refuse_shards(bad: Counter[str], shards: int, limit: float, where: str) -> None:
    """Stop where more shards are damaged than a user has agreed to lose of samples.

    In `bad` each counts as one sample, whatever it held.

    Raises:
        UserError: with their number.

    Examples:
        >>> from collections import Counter
        >>> from oblique_clip.data.faults import refuse_shards
        >>> refuse_shards(Counter({"damaged shard": 1}), shards=20, limit=0.05, where="x-{00..19}.tar")
        >>> refuse_shards(Counter({"damaged shard": 2}), shards=20, limit=0.05, where="x-{00..19}.tar")
        Traceback (most recent call last):
            ...
        oblique_clip.errors.UserError: x-{00..19}.tar: 2 of 20 shards are damaged; --max-bad-fraction allows a share
        of 0.05
    """
    gone = sum(bad[cause] for cause in SHARD_CAUSES)
    if gone > limit * shards:
        raise UserError(
            f"{where}: {gone:,} of {shards:,} shards are damaged; --max-bad-fraction allows a share of {limit:g}"
        )
