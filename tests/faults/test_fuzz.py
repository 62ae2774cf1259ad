"""Whatever a file or a flag holds, it is read, counted or refused in one line: 10,000 cases, about a minute."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from samples import write_members

from oblique_clip import UserError, parse_topology
from oblique_clip.config import DataConfig, OptimConfig, TrainConfig, check_ranges, from_json, to_json
from oblique_clip.data.faults import BadSample, Lost, clean_caption
from oblique_clip.data.shards import pairs_of, read_records
from oblique_clip.data.tables import open_table

SIDE = 8


def cases(count: int) -> settings:
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, deadline=None, database=None, suppress_health_check=quiet)


KINDS = st.sampled_from(["sphere", "oblique", "euclidean", "lorentz", "Oblique", "", "torus"])
NUMBERS = st.one_of(st.integers(-9, 10**30).map(str), st.sampled_from(["1e3", "٣", "1_0", " 2 ", "0x10", "", "-0"]))
SPECS = st.builds(
    lambda kind, numbers, close, distance: f"{kind}({','.join(numbers)}{close}{distance}",
    KINDS,
    st.lists(NUMBERS, max_size=3),
    st.sampled_from([")", "", "))", ") "]),
    st.sampled_from(["", "/inner", "/geodesic", "/chordal", "/lorentz", "/", "/INNER", "//inner"]),
)


@cases(2500)
@given(spec=st.one_of(st.text(max_size=30), SPECS))
def test_a_topology_is_parsed_or_refused(spec: str) -> None:
    try:
        topology = parse_topology(spec)
    except UserError:
        return
    assert parse_topology(topology.spec).spec == topology.spec


# Integers as large as a double can be.
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-(10**300), 10**300), st.floats(), st.text(max_size=6))
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)
WHOLE = to_json(TrainConfig())


def set_at(values: Any, path: list[int], new: Any) -> Any:
    """A copy of nested tables with one entry another; the path picks among the keys of each level."""
    if not isinstance(values, dict) or not values or not path:
        return new
    key = sorted(values)[path[0] % len(values)]
    return {**values, key: set_at(values[key], path[1:], new)}


@cases(2000)
@given(path=st.lists(st.integers(0, 30), max_size=4), new=JSON)
def test_a_configuration_is_read_or_refused(path: list[int], new: Any) -> None:
    """One entry of a whole configuration is anything that JSON can spell."""
    try:
        config = from_json(TrainConfig, set_at(WHOLE, path, new))
        check_ranges(config)
    except UserError:
        return
    assert isinstance(config.optim, OptimConfig) and from_json(TrainConfig, json.loads(json.dumps(to_json(config))))


CELLS = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [b"a.png", b"../a.png", b"a dog", b'"', b'""', b"\r", b"\n", b"\x00", b"\xff", b'"a,\n b"', b"," * 5]
    ),
)


@cases(2000)
@given(
    header=st.sampled_from(
        [b"image,caption", b"\xef\xbb\xbfimage,caption", b"caption,x,image", b'"image', b"", b"\xff"]
    ),
    rows=st.lists(st.lists(CELLS, max_size=4), max_size=6),
    ends=st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_a_table_is_read_or_refused(tmp_path: Path, header: bytes, rows: list[list[bytes]], ends: bytes) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "data.csv").write_bytes(ends.join([header, *(b",".join(row) for row in rows)]))
    try:
        pairs = open_table(tmp_path / "data.csv", replace(DataConfig(), workers=1), SIDE)
    except UserError as error:
        assert str(error)
        return
    assert len(pairs) and all(clean_caption(text) == text for row in range(len(pairs)) for text in pairs.captions(row))
    # Fetching starts threads, which are many in so many cases: the row itself is read.
    assert pairs._read(0) is None and pairs.cause(0) in ("empty file", "missing image", "unreadable image")


HEADERS = st.builds(
    lambda name, kind, link, size: (name, kind, link, size),
    st.sampled_from(
        ["a.txt", "a.png", "b.txt", "b.JSON", "/a.txt", "../a.txt", "é" * 60 + ".txt", "x" * 300 + ".txt", "d"]
    ),
    st.sampled_from(
        [tarfile.REGTYPE] * 5 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE]
    ),
    st.sampled_from(["", "a.txt", "/etc/passwd"]),
    st.integers(0, 600),
)
EDITS = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=4)


@cases(2000)
@given(
    headers=st.lists(HEADERS, max_size=5),
    edits=EDITS,
    cut=st.one_of(st.just(1.0), st.floats(0, 1)),
    form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    compression=st.sampled_from(["", "gz", "bz2", "xz"]),
)
def test_a_shard_is_read_and_its_damage_counted(
    tmp_path: Path,
    headers: list[tuple[str, bytes, str, int]],
    edits: list[tuple[float, bytes]],
    cut: float,
    form: int,
    compression: str,
) -> None:
    """Archives of every format, with some of their bytes changed, and cut."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{compression}", format=form) as archive:  # type: ignore[call-overload]
        for name, kind, link, size in headers:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, size if kind == tarfile.REGTYPE else 0
            try:
                archive.addfile(member, io.BytesIO(b"x" * size))
            except ValueError:  # USTAR has no room for some of the names
                continue
    content = bytearray(file.getvalue())
    for place, new in edits:
        start = int(place * (len(content) - 1))
        content[start : start + len(new)] = new
    (tmp_path / "x.tar").write_bytes(content[: int(cut * len(content))])
    lost = Lost()
    for record in read_records([str(tmp_path / "x.tar")], lost):
        list(pairs_of([record], lost))
    assert set(lost.examples) == set(lost)
    assert {path.name for path in tmp_path.iterdir()} == {"x.tar"}


@cases(500)
@given(content=st.binary(max_size=2000))
@example(content=b"\x1f\x8b")
@example(content=b"BZh")
@example(content=b"\xfd7zXZ")
def test_no_content_of_a_file_breaks_the_reader_of_shards(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    lost = Lost()
    assert not list(read_records([str(tmp_path / "x.tar")], lost))
    assert lost == {"unreadable shard": 1} or not content.strip(b"\0")


@cases(1000)
@given(raw=st.one_of(st.none(), st.binary(max_size=40), st.text(max_size=40), st.text(st.characters(codec=None)), JSON))
def test_a_caption_is_clean_or_has_a_cause(raw: object) -> None:
    try:
        text = clean_caption(raw)
    except BadSample as error:
        assert error.cause
        return
    assert text == text.strip() != "" and "\0" not in text and text.encode().decode() == text


def test_the_tools_of_these_tests_make_archives_that_can_be_read(tmp_path: Path) -> None:
    path = write_members(tmp_path / "x.tar", [("a.txt", b"a")])
    assert [record["txt"] for record in read_records([str(path)], Lost())] == [b"a"]


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"a":' * 100_000])
def test_json_nested_without_end_is_no_caption(deep: str) -> None:
    lost = Lost()
    record = {"__key__": "0", "__url__": "x.tar", "png": b"", "json": deep.encode()}
    assert not list(pairs_of([record], lost)) and lost == {"no caption": 1}
