"""CLIP_benchmark: our models in its runs, and its metrics on our data.

`register()` adds the model type `oblique_clip` to its command line; `--pretrained` takes what `load` takes, as does
`--model` where `--pretrained` is left out or empty:

    python -c "from oblique_clip.interop.clip_benchmark import register; register(); import clip_benchmark.cli as c; \\
        c.main()" eval --model_type oblique_clip --model tiny-oblique --pretrained "" --dataset ... --no_amp

`zero_shot` and `retrieval` call its own functions, without autocast. What they count as we do, and what they do not:

- A class with several prompts is the mean of flat vectors made one unit vector; ours is the mean on the manifold, with
  m unit vectors. Equal for m = 1 and for one prompt a class, and the accuracies with them.
- Among exactly equal similarities topk and argmax take some order, which may help; ours counts them against the model.
- recall@k is 1 where any caption of an image (image of a caption) is among the first k, as ours. But each caption has
  one image only: a caption that two images share is two texts, each right at its own image alone. Equal where no
  caption occurs twice.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import Loaded, load
from ..data.captioned import CaptionedPictures
from ..data.folders import ClassPictures
from ..errors import UserError
from ..evaluate.retrieval import KS
from ..evaluate.templates import Prompts, prompts_of
from ..model import DualEncoder
from ..topology import Topology

MODEL_TYPE = "oblique_clip"
THEIR_DEFAULT = "laion400m_e32"
"""CLIP_benchmark's --pretrained where none is given."""


class FlatEncoder(nn.Module):
    """A model whose `encode_image` and `encode_text` give unit vectors (B, m*n), as tools for cosines want.

    Examples:
        >>> from oblique_clip import load
        >>> from oblique_clip.interop.clip_benchmark import FlatEncoder
        >>> model, _, tokenizer = load("tiny-oblique")
        >>> vectors = FlatEncoder(model).encode_text(tokenizer(["dog", "cat"]))
        >>> vectors.shape, vectors.norm(dim=1).double().round(decimals=3).tolist()
        (torch.Size([2, 128]), [1.0, 1.0])
    """

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def encode_image(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images, flat=True)

    def encode_text(self, ids: Tensor) -> Tensor:
        return self.model.encode_text(ids, flat=True)


def register() -> None:
    """Add the model type `oblique_clip` to CLIP_benchmark; a second call changes nothing.

    Raises:
        UserError: where CLIP_benchmark is not installed.

    Examples:
        >>> from clip_benchmark.models import load_clip
        >>> from oblique_clip.interop.clip_benchmark import register
        >>> register()
        >>> model, transform, tokenizer = load_clip("oblique_clip", "tiny-oblique", "", "", device="cpu")
        >>> model.encode_text(tokenizer(["dog"])).shape
        torch.Size([1, 128])
    """
    models = _part("models")
    _mended_metrics()
    models.TYPE2FUNC[MODEL_TYPE] = load_model
    if MODEL_TYPE not in models.MODEL_TYPES:
        models.MODEL_TYPES.append(MODEL_TYPE)


def load_model(
    model_name: str, pretrained: str = "", cache_dir: str | None = None, device: str | torch.device = "cpu"
) -> tuple[FlatEncoder, Any, Any]:
    """What CLIP_benchmark asks of a loader: model, transform and tokenizer.

    Args:
        model_name: what `load` takes, where `pretrained` is not given.
        pretrained: what `load` takes; nothing, or what CLIP_benchmark gives unasked, stands for none.
        cache_dir: CLIP_benchmark's; nothing is fetched here.

    Raises:
        UserError: see `load`; and `check`.

    Examples:
        >>> from oblique_clip.interop.clip_benchmark import load_model
        >>> model, transform, tokenizer = load_model("tiny-oblique")
        >>> model.encode_text(tokenizer(["dog"])).shape
        torch.Size([1, 128])
    """
    model, preprocess, tokenizer = load(model_name if pretrained in ("", THEIR_DEFAULT) else pretrained, device)
    check(model.topology)
    return FlatEncoder(model).eval(), preprocess, tokenizer


def check(topology: Topology) -> None:
    """Refuse what cannot be judged here, before anything is computed.

    Raises:
        UserError: where CLIP_benchmark is not installed, or no flat unit vectors rank as the topology does.
    """
    _mended_metrics()
    topology.flat(torch.zeros(1, *topology.point_shape))


def zero_shot(loaded: Loaded, pictures: ClassPictures, side: int, prompts: Prompts) -> dict[str, float]:
    """CLIP_benchmark's `acc1`, `acc5` (from five classes on) and `mean_per_class_recall`, in [0, 1].

    Args:
        side: what pictures are decoded at before they are preprocessed.

    Raises:
        UserError: as `check`, `prompts_of` and the pictures.

    Examples:
        >>> from PIL import Image
        >>> from oblique_clip import load
        >>> from oblique_clip.data.folders import ClassPictures
        >>> from oblique_clip.interop.clip_benchmark import zero_shot
        >>> pictures = [(Image.new("RGB", (64, 64), colour), i) for i, colour in enumerate(("red", "blue"))]
        >>> figures = zero_shot(load("tiny-oblique"), ClassPictures(["apple", "sea"], pictures), 32, ["a {}"])
        >>> sorted(figures)
        ['acc1', 'mean_per_class_recall']
    """
    metrics = _mended_metrics()
    check(loaded.model.topology)
    texts = dict(zip(pictures.names, prompts_of(pictures.names, prompts), strict=True))

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for squares in pictures.squares(side):
            yield loaded.preprocess.batch(squares), torch.tensor(pictures.labels[-len(squares) :])

    loader = _Loader(batches(), pictures.names)
    with _quietly(loaded.model) as device:
        figures = metrics.evaluate(
            FlatEncoder(loaded.model), loader, loaded.tokenizer, pictures.names, texts, device, amp=False
        )
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def retrieval(loaded: Loaded, pictures: CaptionedPictures) -> dict[str, float]:
    """CLIP_benchmark's `image_retrieval_recall@k` (text to image) and `text_retrieval_recall@k`, in [0, 1].

    Only for each k of ours that neither images nor captions are fewer than, as its function needs.

    Raises:
        UserError: as `check` and the pictures.

    Examples:
        >>> from collections import Counter
        >>> import torch
        >>> from oblique_clip import load
        >>> from oblique_clip.data.captioned import CaptionedPictures
        >>> from oblique_clip.interop.clip_benchmark import retrieval
        >>> batch = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), [["a dog", "a puppy"], ["a house"]]
        >>> sorted(retrieval(load("tiny-oblique"), CaptionedPictures(iter([batch]), Counter)))
        ['image_retrieval_recall@1', 'text_retrieval_recall@1']
    """
    metrics = _part("metrics.zeroshot_retrieval")
    check(loaded.model.topology)
    images, texts = 0, 0

    def batches() -> Iterator[tuple[Tensor, list[list[str]]]]:
        nonlocal images, texts
        for squares, captions in pictures.batches:
            images, texts = images + len(captions), texts + sum(map(len, captions))
            yield loaded.preprocess.batch(squares), captions

    with _quietly(loaded.model) as device:
        figures: dict[str, float] = metrics.evaluate(
            FlatEncoder(loaded.model),
            _Loader(batches()),
            loaded.tokenizer,
            device,
            amp=False,
            # Asked for when every batch was read, and counted.
            recall_k_list=(k for k in KS if k <= min(images, texts)),
        )
    return figures


class _Loader:
    """Batches as CLIP_benchmark reads them from a DataLoader."""

    def __init__(self, batches: Iterable[Any], classes: Iterable[str] = ()) -> None:
        self._batches = batches
        self.dataset = SimpleNamespace(classes=list(classes))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


@contextlib.contextmanager
def _quietly(model: DualEncoder) -> Iterator[str]:
    """No progress bars, which are no part of a report; gives the type of the model's device, made the current one."""
    device = next(model.parameters()).device
    current = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with contextlib.redirect_stderr(io.StringIO()), current:
        yield device.type


def _mended_metrics() -> Any:
    """CLIP_benchmark's classification metrics, all of them its own code; where one call in it fails, that is mended.

    `accuracy` of 1.6.2 makes a float of an array of one number, which NumPy refuses from 2.4 on.
    """
    metrics = _part("metrics.zeroshot_classification")
    try:
        metrics.accuracy(torch.eye(2), torch.arange(2))
    except TypeError:
        metrics.float = _float_of_one
    return metrics


def _float_of_one(value: Any) -> float:
    """`float`, of an array of one number as well."""
    return float(value.item() if isinstance(value, np.ndarray) else value)


def _part(name: str) -> Any:
    try:
        return importlib.import_module(f"clip_benchmark.{name}")
    except ImportError as error:
        raise UserError(f"CLIP_benchmark is needed ({error}): pip install 'oblique-clip[bench]'") from error
