"""The model card of a repository on the Hugging Face hub: what a model is, what it saw and what came out."""

from __future__ import annotations

import json
from typing import Any

from ..config import DataConfig, ModelConfig
from ..model import DualEncoder
from ..report import comparison

TAGS = ("clip", "contrastive-learning", "oblique-manifold", "image-text-retrieval")
USE = """\
```python
from oblique_clip.interop.hub import from_pretrained

# This repository's name, or the path of a folder with its files.
model, preprocess, tokenizer = from_pretrained("user/name")
points = model.encode_text(tokenizer(["red apple", "green apple"]))
model.topology.similarity(points, points)
```
"""


def model_card(
    name: str,
    model: DualEncoder,
    config: ModelConfig,
    data: DataConfig | None = None,
    results: dict[str, Any] | None = None,
    license: str | None = None,
) -> str:
    """README.md with the hub's front matter.

    Args:
        name: the title.
        results: a run's result.json.
    """
    front = [
        "library_name: oblique-clip",
        "pipeline_tag: zero-shot-image-classification",
        f"tags: {json.dumps(TAGS)}",
        # Text in JSON is text in YAML, whatever signs it holds.
        *([f"license: {json.dumps(license)}"] if license else []),
    ]
    parts = ["---", *front, "---", "", f"# {name}", "", _summary(model, config), "", _table(_sizes(model, config))]
    parts += ["", "## Data", "", _data(data)]
    if results is not None:
        heading, row = comparison({name: results})
        figures = [pair for pair in zip(heading[1:], row[0][1:], strict=True) if pair[1] != "-"]
        parts += ["", "## Results", "", _table([("figure", "value"), *figures])]
    return "\n".join([*parts, "", "## Use", "", USE])


def _summary(model: DualEncoder, config: ModelConfig) -> str:
    topology = model.topology
    low, high = topology.range
    return (
        f"A model of images and captions (form `{config.form}`) whose embeddings are points of `{topology.spec}`, "
        f"{topology.m} x {topology.n} numbers, compared by their {topology.distance} distance: similarity lies in "
        f"[{low:.4g}, {high:.4g}]."
    )


def _sizes(model: DualEncoder, config: ModelConfig) -> list[tuple[str, str]]:
    arch = config.arch
    ours = [
        ("image tower", f"{arch.image_size} px, patch {arch.patch_size}, {arch.vision_layers} x {arch.vision_width}"),
        ("text tower", f"{arch.context_length} tokens (`{arch.tokenizer}`), {arch.text_layers} x {arch.text_width}"),
        ("projection", config.projection),
    ]
    return [
        ("part", "size"),
        ("topology", f"`{model.topology.spec}`"),
        ("numbers in an embedding", str(model.topology.embed_dim)),
        ("scale of the logits", f"{model.temperature.scale.item():.4g}"),
        *([("towers", f"open_clip's `{config.open_clip}`")] if config.open_clip else ours),
        ("parameters", f"{sum(parameter.numel() for parameter in model.parameters()):,}"),
    ]


def _data(data: DataConfig | None) -> str:
    if data is None:
        return "Not recorded with the weights."
    if data.data != "emoji":
        return f"Trained on `{data.data}`."
    part = f", of the families {_names(data.train_families)} alone" if data.train_families else ""
    if data.train_share != 1:
        part += f", a share of {data.train_share:g} of the pairs"
    return (
        f"Trained on the emoji and clip art that oblique_clip ships{part}, captions by `{data.captions}`. Held out: "
        f"families {_names(data.test_families)} for the test and {_names(data.val_families)} for validation; "
        f"the concepts of the fixed parts {_names(data.held_out_concepts)} in every family."
    )


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _table(rows: list[tuple[str, str]]) -> str:
    head, *body = (f"| {left} | {right} |" for left, right in rows)
    return "\n".join([head, "|---|---|", *body])
