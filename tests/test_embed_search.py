"""`embed` and `search`: points come back from what is stored, exact answers are the topology's, losses are counted."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from conftest import TINY, relative_error
from PIL import Image

from oblique_clip import create_model, load, model_config, parse_topology
from oblique_clip.checkpoint import save_model
from oblique_clip.config import DataConfig
from oblique_clip.data.emoji import load_emoji
from oblique_clip.data.images import decode_square
from oblique_clip.embed import EmbedConfig, embed, to_points, to_vectors
from oblique_clip.errors import UserError
from oblique_clip.evaluate.encode import encode_images, encode_texts
from oblique_clip.flags import parse
from oblique_clip.search import (
    SearchConfig,
    build_index,
    nearest,
    nearest_by_index,
    print_answer,
    read_stored,
    recall,
    search,
)

FLOAT32 = 1e-6
# HNSW on a few thousand vectors: usearch's defaults find nearly all.
RECALL = 0.95
TOPOLOGIES = [
    "sphere(24)", "sphere(24)/geodesic", "oblique(6,4)", "oblique(6,4)/chordal", "oblique(6,4)/geodesic",
    "euclidean(24)", "euclidean(24)/squared", "lorentz(24)",
]  # fmt: skip


def write_model(path: Path, topology: str = "oblique(16,8)", seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = model_config("tiny", "oblique", arch=TINY, topology=topology)
    save_model(create_model(config), config, path, DataConfig())
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.safetensors")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of noisy pictures, one of them further down, one damaged, and one file that is no picture."""
    random, folder = np.random.default_rng(0), tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    for name in ("0.png", "1.png", "2.png", "below/3.PNG"):
        Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture either")
    return folder


def points_of(model: Path, paths: list[Path]) -> torch.Tensor:
    loaded = load(model)
    return encode_images(
        loaded.model, [torch.stack([decode_square(path, loaded.preprocess.image_size) for path in paths])],
        loaded.preprocess,
    )  # fmt: skip


@pytest.mark.parametrize("spec", TOPOLOGIES)
def test_points_come_back_from_what_is_stored(spec: str) -> None:
    topology = parse_topology(spec)
    points = topology.project(torch.randn(50, topology.m, topology.n)).detach()
    vectors = to_vectors(topology, points)
    assert vectors.shape == (50, points[0].numel())
    assert relative_error(to_points(topology, vectors), points) < FLOAT32
    if topology.flat_is_exact:
        assert relative_error(vectors.norm(dim=1), torch.ones(50)) < FLOAT32


@pytest.mark.parametrize("spec", TOPOLOGIES)
@pytest.mark.parametrize("chunk", [7, 50, None])
def test_the_nearest_are_those_of_one_sorted_matrix(spec: str, chunk: int | None) -> None:
    topology = parse_topology(spec)
    queries, points = (topology.project(torch.randn(count, topology.m, topology.n)).detach() for count in (5, 50))
    scores = topology.similarity(queries, points)
    values, rows = scores.sort(1, descending=True)
    for top in (1, 9, 60):
        found, places = nearest(queries, points, topology, top, chunk)
        assert found.shape == (5, min(top, 50))
        assert relative_error(found, values[:, :top]) < FLOAT32
        assert torch.equal(scores.gather(1, places), scores.gather(1, rows[:, :top]))


@pytest.mark.parametrize("spec", ["sphere(24)", "sphere(24)/geodesic", "oblique(6,4)", "oblique(6,4)/chordal"])
def test_an_index_of_the_flat_vectors_finds_what_the_topology_finds(spec: str) -> None:
    topology = parse_topology(spec)
    queries, points = (topology.project(torch.randn(count, topology.m, topology.n)) for count in (20, 3000))
    exact_values, exact = nearest(queries, points, topology, 10)
    index = build_index(to_vectors(topology, points))
    values, found = nearest_by_index(index, queries, points, topology, 10)
    assert recall(found, exact) > RECALL
    assert relative_error(values, topology.similarity(queries, points).gather(1, found)) < 1e-4
    assert (values.diff() < 1e-4).all() and relative_error(values[:, 0], exact_values[:, 0]) < 0.05


def test_recall_is_the_share_found_in_any_order() -> None:
    exact = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert recall(exact.flip(1), exact) == 1
    assert recall(torch.tensor([[4, 9, 10, 11], [1, 2, 3, 4]]), exact) == 1 / 8


def test_a_folder_is_embedded_with_what_lies_below_and_damaged_files_counted(model: Path, pictures: Path) -> None:
    out = model.parent / "deep" / "points.parquet"
    info = embed(EmbedConfig(str(pictures), str(model), out))
    stored = read_stored(out)
    assert stored.ids == ["0.png", "1.png", "2.png", "below/3.PNG"] and stored.captions == [None] * 4
    assert info["skipped"] == {"unreadable image": 1} and info["pictures"] == 4
    assert stored.info == info and (info["topology"], info["kind"]) == ("oblique(16,8)", "flat")
    expected = load(model).model.topology.flat(points_of(model, [pictures / name for name in stored.ids]))
    assert relative_error(stored.vectors, expected) < FLOAT32
    assert [path.name for path in out.parent.iterdir()] == ["points.parquet"]


def test_the_column_of_vectors_has_a_fixed_width_for_other_tools(model: Path, pictures: Path) -> None:
    embed(EmbedConfig(str(pictures), str(model), model.parent / "points.parquet"))
    table = parquet.read_table(model.parent / "points.parquet")
    assert str(table.schema.field("vector").type).startswith("fixed_size_list<") and table.num_rows == 4
    assert np.stack(table["vector"].to_numpy()).dtype == np.float32


def test_a_table_gives_each_file_once_with_its_first_caption(model: Path, pictures: Path) -> None:
    rows = [("pictures/0.png", "a dog"), ("pictures/1.png", "a cat"), ("pictures/0.png", "the same dog")]
    with (model.parent / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows, ("pictures/broken.jpg", "x"), ("gone.png", "y")])
    info = embed(EmbedConfig(str(model.parent / "pairs.csv"), str(model), model.parent / "points.parquet"))
    stored = read_stored(model.parent / "points.parquet")
    assert stored.ids == ["pictures/0.png", "pictures/1.png"] and stored.captions == ["a dog", "a cat"]
    assert info["skipped"] == {"unreadable image": 1, "missing image": 1}
    expected = load(model).model.topology.flat(points_of(model, [pictures / "0.png", pictures / "1.png"]))
    assert relative_error(stored.vectors, expected) < FLOAT32


def test_shards_give_their_keys_and_need_no_caption(model: Path, pictures: Path) -> None:
    files = {"00.png": (pictures / "0.png").read_bytes(), "00.txt": b"a dog", "01.png": b"no picture"}
    files |= {"02.png": (pictures / "1.png").read_bytes(), "03.txt": b"no picture", "04.json": b"{}"}
    files["04.png"] = (pictures / "2.png").read_bytes()
    with tarfile.open(model.parent / "x-0.tar", "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    info = embed(EmbedConfig(str(model.parent / "x-{0..0}.tar"), str(model), model.parent / "points.parquet"))
    stored = read_stored(model.parent / "points.parquet")
    assert stored.ids == ["x-0.tar/00", "x-0.tar/02", "x-0.tar/04"] and stored.captions == ["a dog", None, None]
    assert info["skipped"] == {"unreadable image": 1, "no image": 1}


def test_the_shipped_set_says_which_part_each_picture_is_in(tmp_path: Path) -> None:
    torch.manual_seed(0)
    arch = TINY.__class__(patch_size=32, vision_width=16, vision_layers=1, vision_heads=1, text_width=16, text_layers=1)
    config = model_config("tiny", "sphere", arch=arch, topology="sphere(8)", embed_dim=8)
    save_model(create_model(config), config, tmp_path / "model.safetensors", DataConfig())
    embed(EmbedConfig("emoji", str(tmp_path / "model.safetensors"), tmp_path / "points.parquet"))
    columns = parquet.read_table(tmp_path / "points.parquet").to_pydict()
    records = load_emoji().records
    assert columns["caption"] == [record.caption for record in records]
    assert len(set(columns["id"])) == len(records)
    for record, split in zip(records, columns["split"], strict=True):
        if record.family in ("emoji-fluent", "emoji-fxemoji"):
            held = record.family == "emoji-fxemoji" and record.split == "test"
            assert split == (None if held else "test" if record.family == "emoji-fluent" else "val")
        else:
            assert split == ("concepts" if record.split == "test" else "train")


@pytest.mark.parametrize("topology", ["oblique(16,8)", "oblique(16,8)/geodesic", "lorentz(128)"])
def test_a_search_gives_the_order_and_the_units_of_the_topology(
    topology: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture finds itself first; a text finds what the similarity of its own point says."""
    folder = pictures.parent
    model = write_model(folder / "model.safetensors", topology)
    embed(EmbedConfig(str(pictures), str(model), folder / "points.parquet"))
    queries = ("a red apple", str(pictures / "2.png"))
    answer = search(SearchConfig(folder / "points.parquet", queries, top=3, out=folder / "answer.json"))
    assert json.loads((folder / "answer.json").read_text()) == answer and answer["topology"] == topology
    loaded, names = load(model), ["0.png", "1.png", "2.png", "below/3.PNG"]
    text = encode_texts(loaded.model, loaded.tokenizer, ["a red apple"])
    scores = loaded.model.topology.similarity(text, points_of(model, [pictures / name for name in names]))[0].detach()
    hits = answer["results"][0]["hits"]
    assert [hit["id"] for hit in hits] == [names[i] for i in scores.argsort(descending=True)[:3]]
    found = torch.tensor([hit["similarity"] for hit in hits])
    assert relative_error(found, scores.sort(descending=True).values[:3]) < FLOAT32
    assert answer["results"][1]["hits"][0]["id"] == "2.png"
    print_answer(answer)
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()[1:4]] == [hit["id"] for hit in hits]


def test_an_approximate_search_reports_what_it_misses(model: Path, pictures: Path) -> None:
    embed(EmbedConfig(str(pictures), str(model), model.parent / "points.parquet"))
    config = {"points": model.parent / "points.parquet", "queries": ("a dog", "a red apple"), "top": 4}
    answer = search(SearchConfig(**config, approximate=True))
    # Of four pictures an index finds all.
    assert answer.pop("recall") == 1
    exact = search(SearchConfig(**config))
    for ours, theirs in zip(answer["results"], exact["results"], strict=True):
        assert [hit["id"] for hit in ours["hits"]] == [hit["id"] for hit in theirs["hits"]]


def test_mistakes_are_told(model: Path, pictures: Path) -> None:
    folder = model.parent
    other = write_model(folder / "other.safetensors", seed=1)
    geodesic = write_model(folder / "geodesic.safetensors", "oblique(16,8)/geodesic")
    points, foreign = folder / "points.parquet", folder / "foreign.parquet"
    embed(EmbedConfig(str(pictures), str(model), points))
    embed(EmbedConfig(str(pictures), str(geodesic), folder / "geodesic.parquet"))
    embed(EmbedConfig(str(pictures), str(write_model(folder / "gone.safetensors")), folder / "moved.parquet"))
    (folder / "gone.safetensors").unlink()
    parquet.write_table(parquet.read_table(points).replace_schema_metadata(None), foreign)
    (folder / "empty").mkdir()
    (folder / "damaged.parquet").write_bytes(b"damaged")
    for config, expected in (
        (EmbedConfig("nowhere", str(model)), "no such file or folder: nowhere"),
        (EmbedConfig(str(folder / "empty"), str(model)), "no picture in"),
        (EmbedConfig(str(pictures / "notes.txt"), str(model)), "cannot tell what"),
        (EmbedConfig(str(pictures), "nowhere"), "no such checkpoint"),
        (EmbedConfig(str(pictures), str(model), workers=0), "--workers must lie in [1, inf)"),
        (SearchConfig(points, ("a",), model=str(other)), "another model than"),
        (SearchConfig(folder / "moved.parquet", ("a",)), "has moved, name its --model"),
        (SearchConfig(points, ("nowhere.png",)), "cannot read the picture nowhere.png"),
        (SearchConfig(points, ()), "at least one query"),
        (SearchConfig(points, ("a",), top=0), "--top must lie in [1, inf)"),
        (SearchConfig(folder / "geodesic.parquet", ("a",), approximate=True), "needs unit vectors"),
        (SearchConfig(folder / "missing.parquet", ("a",)), "no such file"),
        (SearchConfig(folder / "damaged.parquet", ("a",)), "not a readable Parquet file"),
        (SearchConfig(foreign, ("a",)), "was not written by oblique-clip embed"),
    ):
        with pytest.raises(UserError) as caught:
            embed(config) if isinstance(config, EmbedConfig) else search(config)
        assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_query_is_a_picture_wherever_there_is_such_a_file(model: Path, pictures: Path) -> None:
    """Of any suffix; a text too long to name a file is a text."""
    embed(EmbedConfig(str(pictures), str(model), model.parent / "points.parquet"))
    odd = model.parent / "second.picture"
    odd.write_bytes((pictures / "1.png").read_bytes())
    answer = search(SearchConfig(model.parent / "points.parquet", (str(odd), "a red apple " * 99), top=1))
    assert answer["results"][0]["hits"][0]["id"] == "1.png"


def test_an_index_that_misses_some_gives_what_it_found_for_every_query() -> None:
    topology = parse_topology("sphere(4)")
    points = topology.project(torch.randn(5, 1, 4))
    keys = iter([np.array([3, 1, 0], np.uint64), np.array([2, 4], np.uint64)])
    index = SimpleNamespace(search=lambda vector, top: SimpleNamespace(keys=next(keys)))
    similarity, rows = nearest_by_index(index, points[:2], points, topology, top=3)
    assert rows.tolist() == [[3, 1], [2, 4]]
    assert relative_error(similarity, topology.similarity(points[:2], points).gather(1, rows)) < FLOAT32


def test_pictures_of_every_suffix_that_pil_reads_are_found(model: Path) -> None:
    for suffix in (".tiff", ".ppm", ".jfif", ".webp"):
        (model.parent / "folder").mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), "red").save(model.parent / "folder" / f"a{suffix}")
    info = embed(EmbedConfig(str(model.parent / "folder"), str(model), model.parent / "points.parquet"))
    assert info["pictures"] == 4


def test_a_failed_run_leaves_what_was_there(model: Path, pictures: Path) -> None:
    out = model.parent / "points.parquet"
    embed(EmbedConfig(str(pictures), str(model), out))
    before = out.read_bytes()
    for path in pictures.rglob("*.[pP]*"):
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="no picture could be read"):
        embed(EmbedConfig(str(pictures), str(model), out))
    assert out.read_bytes() == before and not out.with_name("points.parquet.part").exists()


def test_flags_read_as_the_readme_says() -> None:
    config = parse(SearchConfig, "search", ["points.parquet", "a red apple", "cat", "--top", "3", "--approximate"])
    assert config == SearchConfig(Path("points.parquet"), ("a red apple", "cat"), top=3, approximate=True)
    config = parse(EmbedConfig, "embed", ["photos", "--model", "runs/mine", "--out", "a.parquet"])
    assert config == EmbedConfig("photos", "runs/mine", Path("a.parquet"))
