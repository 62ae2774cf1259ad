"""`oblique-clip search`: the stored pictures most similar to a text or a picture, exactly or through an index."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor

from .checkpoint import Loaded, fingerprint, load
from .config import check_file, write_json
from .data.folders import is_picture
from .data.images import READ_ERRORS, decode_square
from .device import pick_device
from .embed import FORMAT_VERSION, KEY, import_arrow, to_points, to_vectors
from .errors import UserError
from .evaluate.encode import encode_images, encode_texts
from .topology import Topology

SCORES = 2**24
"""Similarities held at once."""


@dataclass(frozen=True)
class SearchConfig:
    """Find the stored pictures most similar to texts or pictures.

    Examples:
        >>> from pathlib import Path
        >>> from oblique_clip.search import SearchConfig
        >>> config = SearchConfig(Path("points.parquet"), ("a red apple", "apple.png"), approximate=True)
        >>> config.top, config.model is None
        (10, True)
    """

    points: Annotated[Path, tyro.conf.Positional]
    """A file written by `oblique-clip embed`."""
    queries: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Texts, or paths of pictures: whatever is a file, or ends as a picture does."""
    model: str | None = None
    """Where the model is now, if not where it was when the file was written."""
    top: int = 10
    """Pictures to find for each query."""
    approximate: bool = False
    """Build an index of usearch, ask it, and report what it misses of the exact answer."""
    out: Path | None = None
    """File for the answer as JSON."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


@dataclass(frozen=True)
class Stored:
    """What a file of `oblique-clip embed` holds.

    Examples:
        >>> import torch
        >>> from oblique_clip.search import Stored
        >>> stored = Stored(["red.png"], ["a red square"], torch.ones(1, 4) / 2, {"topology": "oblique(2,2)"})
        >>> stored.vectors.norm().item()
        1.0
    """

    ids: list[str]
    captions: list[str | None]
    vectors: Tensor
    """(N, numbers in a point)."""
    info: dict[str, Any]
    """The file's metadata, see `embed`."""


def search(config: SearchConfig) -> dict[str, Any]:
    """Search as configured; gives the answer, which also goes to `config.out`.

    Returns:
        `topology`; `results`: for each query its `hits` by rank, each with `similarity` (in the topology's units), `id`
        and `caption`; where the search is approximate `recall`, the share of the exact answer that it found.

    Raises:
        UserError: for a file, model or query that cannot be read or does not fit the others.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from oblique_clip.embed import EmbedConfig, embed
        >>> from oblique_clip.search import SearchConfig, search
        >>> folder = Path(tempfile.mkdtemp())
        >>> for colour in ("red", "blue"):
        ...     Image.new("RGB", (64, 64), colour).save(folder / f"{colour}.png")
        >>> stored = folder / "points.parquet"
        >>> info = embed(EmbedConfig(str(folder), "tiny-oblique", stored, device="cpu"))
        >>> answer = search(SearchConfig(stored, (str(folder / "red.png"),), top=1, device="cpu"))
        >>> hit = answer["results"][0]["hits"][0]
        >>> hit["id"], round(hit["similarity"], 3)  # itself, at the end of the range
        ('red.png', 8.0)
    """
    if config.top < 1:
        raise UserError(f"--top must lie in [1, inf), not be {config.top}")
    if not config.queries:
        raise UserError('name at least one query: a text such as "a red apple", or the path of a picture')
    check_file(config.out)
    stored = read_stored(config.points)
    loaded = _model_of(config, stored)
    queries = encode_queries(loaded, config.queries)
    # Stored points and queries are on the CPU, whatever encoded them.
    topology = copy.deepcopy(loaded.model.topology).cpu()
    answer: dict[str, Any] = {"topology": topology.spec}
    points = to_points(topology, stored.vectors)
    similarity, rows = nearest(queries, points, topology, config.top)
    if config.approximate:
        exact, index = rows, build_index(stored.vectors)
        similarity, rows = nearest_by_index(index, queries, points, topology, config.top)
        answer["recall"] = recall(rows, exact)
    answer["results"] = [
        {"query": query, "hits": _hits(stored, similarity[i], rows[i])} for i, query in enumerate(config.queries)
    ]
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(config.out, answer)
    return answer


def _model_of(config: SearchConfig, stored: Stored) -> Loaded:
    """The model that wrote the file."""
    name = config.model or stored.info["model"]
    if config.approximate and stored.info["kind"] != "flat":
        raise UserError(f"--approximate needs unit vectors; {stored.info['topology']} has none that rank as it does")
    try:
        loaded = load(name, pick_device(config.device))
    except UserError as error:
        hint = "" if config.model else f"; if the model that wrote {config.points} has moved, name its --model"
        raise UserError(f"{error}{hint}") from error
    if fingerprint(loaded.model) != stored.info["fingerprint"]:
        raise UserError(f"{config.points} was written with another model than {name}: embed again, or name its --model")
    return loaded


def read_stored(path: Path) -> Stored:
    """A file that `oblique-clip embed` wrote.

    Raises:
        UserError: for another file, a missing one, or one of another format version.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from oblique_clip.embed import EmbedConfig, embed
        >>> from oblique_clip.search import read_stored
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (64, 64), "red").save(folder / "red.png")
        >>> info = embed(EmbedConfig(str(folder), "tiny-oblique", folder / "points.parquet", device="cpu"))
        >>> stored = read_stored(folder / "points.parquet")
        >>> stored.ids, stored.captions, stored.vectors.shape, stored.info["topology"]
        (['red.png'], [None], torch.Size([1, 128]), 'oblique(16,8)')
    """
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    arrow, parquet = import_arrow()
    try:
        with parquet.ParquetFile(path) as file:
            metadata, table = file.metadata.metadata or {}, file.read()
    except (OSError, ValueError, arrow.ArrowException) as error:
        raise UserError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error
    if KEY not in metadata:
        raise UserError(f"{path} was not written by oblique-clip embed: its metadata has no {KEY.decode()!r}")
    info = json.loads(metadata[KEY])
    if info["format_version"] != FORMAT_VERSION:
        raise UserError(f"{path}: format_version {info['format_version']} is not known; this version reads 1")
    chunks = table["vector"].chunks
    numbers = np.concatenate([chunk.flatten().to_numpy() for chunk in chunks])
    vectors = torch.from_numpy(numbers).view(len(table), -1)
    return Stored(table["id"].to_pylist(), table["caption"].to_pylist(), vectors, info)


def encode_queries(loaded: Loaded, queries: tuple[str, ...]) -> Tensor:
    """Texts and paths of pictures to points (Q, *point_shape), in their order.

    Raises:
        UserError: for a picture that is missing or cannot be read.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from oblique_clip import load
        >>> from oblique_clip.search import encode_queries
        >>> path = Path(tempfile.mkdtemp()) / "red.png"
        >>> Image.new("RGB", (64, 64), "red").save(path)
        >>> encode_queries(load("tiny-oblique"), ("red apple", str(path))).shape  # a text and a picture
        torch.Size([2, 8, 16])
    """
    model, preprocess, tokenizer = loaded
    points = []
    for query in queries:
        if is_picture(Path(query)) or _is_file(query):
            try:
                square = decode_square(Path(query), preprocess.image_size)
            except READ_ERRORS as error:
                raise UserError(f"cannot read the picture {query}: {error}") from error
            points.append(encode_images(model, [square[None]], preprocess))
        else:
            points.append(encode_texts(model, tokenizer, [query]))
    return torch.cat(points)


def _is_file(query: str) -> bool:
    try:
        return Path(query).is_file()
    except OSError:  # a text longer than any name of a file
        return False


@torch.no_grad()
def nearest(
    queries: Tensor, points: Tensor, topology: Topology, top: int, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """The `top` most similar points of each query: similarities (Q, top), falling, and rows (Q, top) of `points`.

    Exact: every similarity is computed, a chunk of points at a time. Of equal ones any may come first.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.search import nearest
        >>> topology = parse_topology("sphere(2)")
        >>> points = topology.project(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 1.0]]]))
        >>> similarity, rows = nearest(points[:1], points, topology, top=2)
        >>> rows.tolist(), similarity.double().round(decimals=3).tolist()
        ([[0, 2]], [[1.0, 0.707]])
    """
    held = len(queries) * topology.held_a_pair
    chunk = chunk or max(top, SCORES // held)
    best = torch.empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.long)
    for start in range(0, len(points), chunk):
        scores = topology.similarity(queries, points[start : start + chunk])
        values, places = scores.topk(min(top, scores.shape[1]))
        best, rows = torch.cat([best.to(values.dtype), values], 1), torch.cat([rows, places + start], 1)
        best, places = best.topk(min(top, best.shape[1]))
        rows = rows.gather(1, places)
    return best, rows


def build_index(vectors: Tensor) -> Any:
    """A usearch index (HNSW, cosine) of unit vectors (N, D), by their row numbers; its `save` keeps it for another day.

    Raises:
        UserError: where usearch is not installed.

    Examples:
        >>> import torch
        >>> from oblique_clip.search import build_index
        >>> vectors = torch.eye(3)
        >>> index = build_index(vectors)
        >>> index.search(vectors[1].numpy(), 1).keys.tolist()
        [1]
    """
    try:
        from usearch.index import Index
    except ImportError as error:
        raise UserError("--approximate needs usearch: pip install 'oblique-clip[search]'") from error
    index = Index(ndim=vectors.shape[1], metric="cos", dtype="f32")
    index.add(np.arange(len(vectors)), vectors.numpy())
    return index


@torch.no_grad()
def nearest_by_index(
    index: Any, queries: Tensor, points: Tensor, topology: Topology, top: int
) -> tuple[Tensor, Tensor]:
    """As `nearest`, of what an index of the points' `flat` vectors finds, in its order, in the topology's own units.

    Fewer than `top` where the index finds fewer.

    Examples:
        >>> import torch
        >>> from oblique_clip import parse_topology
        >>> from oblique_clip.search import build_index, nearest_by_index
        >>> topology = parse_topology("oblique(2,2)")
        >>> points = topology.project(torch.randn(5, 2, 2))
        >>> index = build_index(topology.flat(points))
        >>> similarity, rows = nearest_by_index(index, points[:1], points, topology, top=1)
        >>> rows.tolist(), round(similarity.item(), 3)
        ([[0]], 2.0)
    """
    flat = to_vectors(topology, queries).numpy()
    found = [index.search(vector, min(top, len(points))).keys.astype(np.int64) for vector in flat]
    # An index may miss some for one query: all get as many as it found for each.
    rows = torch.from_numpy(np.stack([keys[: min(map(len, found))] for keys in found]))
    return topology.similarity_rowwise(queries[:, None], points[rows]), rows


def recall(found: Tensor, exact: Tensor) -> float:
    """Share of the rows `exact` (Q, k) that are among `found` (Q, k), a query at a time.

    Examples:
        >>> import torch
        >>> from oblique_clip.search import recall
        >>> recall(torch.tensor([[3, 8]]), torch.tensor([[3, 5]]))
        0.5
    """
    return float((exact[:, :, None] == found[:, None, :]).any(-1).double().mean())


def print_answer(answer: dict[str, Any]) -> None:
    """A block for each query: rank, similarity, id and caption."""
    for result in answer["results"]:
        print(result["query"])
        width = max(len(hit["id"]) for hit in result["hits"])
        for hit in result["hits"]:
            print(f"{hit['rank']:>4}  {hit['similarity']:8.4f}  {hit['id']:<{width}}  {hit['caption'] or ''}".rstrip())
    if "recall" in answer:
        print(f"recall@{len(answer['results'][0]['hits'])} against the exact answer: {answer['recall']:.3f}")


def _hits(stored: Stored, similarity: Tensor, rows: Tensor) -> list[dict[str, Any]]:
    return [
        {"rank": rank, "similarity": value, "id": stored.ids[row], "caption": stored.captions[row]}
        for rank, (value, row) in enumerate(zip(similarity.tolist(), rows.tolist(), strict=True), 1)
    ]
