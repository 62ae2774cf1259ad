"""The form `clip` is open_clip, and the oblique manifold of one sphere is the sphere: by numbers, not by name."""

import math

import open_clip
import pytest
import torch
from conftest import TINY, relative_error
from open_clip.loss import ClipLoss
from torch import Tensor, nn

from oblique_clip.config import SIZES, ModelConfig, OptimConfig
from oblique_clip.interop.open_clip import from_open_clip
from oblique_clip.loss import LOSSES, info_nce
from oblique_clip.model import DualEncoder, create_model
from oblique_clip.optim import Optimizer
from oblique_clip.step import train_step
from oblique_clip.tokenizer import cut_to_longest, get_tokenizer

CAPTIONS = [
    "a photo of a red apple.",
    "a drawing of two grey cats asleep under an old wooden table, seen from above",
    "flag: Norway",
]

SAME = 1e-5
"""Embeddings, logits and loss of one model in two libraries, in float32."""
AFTER_TEN_STEPS = 1e-4
SAME_GRADIENT = 1e-6


@pytest.fixture(scope="module")
def pair() -> tuple[open_clip.CLIP, DualEncoder]:
    """open_clip's ViT-B-32 with random weights, and the form `clip` with the same."""
    torch.manual_seed(0)
    theirs = open_clip.create_model("ViT-B-32", pretrained=None)
    return theirs.eval(), from_open_clip(theirs).eval()


@pytest.fixture(scope="module")
def outputs(pair: tuple[open_clip.CLIP, DualEncoder]) -> tuple[Tensor, Tensor, Tensor]:
    """Three images and captions, and open_clip's embeddings of them."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(len(CAPTIONS), 3, 224, 224, generator=generator)
    with torch.no_grad():
        theirs = pair[0](images, open_clip.get_tokenizer("ViT-B-32")(CAPTIONS))
    return images, theirs[0], theirs[1]


def test_the_preset_has_the_sizes_of_open_clips_model(pair: tuple[open_clip.CLIP, DualEncoder]) -> None:
    preset = ModelConfig(
        size="ViT-B-32", form="clip", topology="sphere(512)", embed_dim=512, arch=SIZES["ViT-B-32"].arch
    )
    with torch.device("meta"):
        model = create_model(preset)
    expected = {name: value.shape for name, value in pair[1].state_dict().items()}
    assert {name: value.shape for name, value in model.state_dict().items()} == expected
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in pair[0].parameters())


@torch.no_grad()
@pytest.mark.parametrize("cut", [False, True])
def test_embeddings_logits_and_loss_are_open_clips(
    pair: tuple[open_clip.CLIP, DualEncoder], outputs: tuple[Tensor, Tensor, Tensor], cut: bool
) -> None:
    """At the full context of 77 tokens and cut to the longest caption."""
    theirs, ours = pair
    images, their_images, their_texts = outputs
    ids = get_tokenizer("clip", 77)(CAPTIONS)
    ids = cut_to_longest(ids) if cut else ids
    assert (ids.shape[1] < 77) == cut
    points, text_points = ours.encode_image(images), ours.encode_text(ids)
    assert relative_error(ours.encode_image(images, flat=True), their_images) < SAME
    assert relative_error(text_points.squeeze(1), their_texts) < SAME
    scale = theirs.logit_scale.exp()
    their_logits = scale * their_images @ their_texts.T
    assert relative_error(ours.temperature.scale * ours.topology.similarity(points, text_points), their_logits) < SAME
    found = info_nce(points, text_points, ours.topology, ours.temperature.scale)
    assert relative_error(found, ClipLoss()(their_images, their_texts, scale)) < SAME


def small_open_clip(scale: float) -> open_clip.CLIP:
    vision = {"layers": 2, "width": 64, "image_size": 32, "patch_size": 8}
    text = {"layers": 2, "width": 32, "heads": 2, "context_length": 16, "vocab_size": 4096}
    return open_clip.CLIP(32, vision, text, init_logit_scale=math.log(scale))


def batches(steps: int) -> list[tuple[Tensor, Tensor]]:
    """Images and captions that say the same thing, so that there is something to learn: the brightness of an image."""
    made = []
    for _ in range(steps):
        kinds = torch.randperm(8)
        images = 0.5 * torch.randn(8, 3, 32, 32) + torch.linspace(-2, 2, 8)[kinds].view(8, 1, 1, 1)
        ids = torch.zeros(8, 16, dtype=torch.long)
        ids[:, 0], ids[:, 1], ids[:, 2] = 10, 20 + kinds, 4095
        made.append((images, ids))
    return made


def train_open_clip(model: open_clip.CLIP, data: list[tuple[Tensor, Tensor]], config: OptimConfig) -> list[float]:
    """open_clip's step, written with its model and loss, torch's AdamW, and a schedule by hand."""

    def decayed(name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim >= 2 and "positional_embedding" not in name

    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if decayed(n, p)], "weight_decay": config.weight_decay},
        {"params": [p for n, p in named if not decayed(n, p)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, config.beta2), eps=1e-6)
    rise = round(config.warmup * len(data))
    losses = []
    for step, (images, ids) in enumerate(data):
        fraction = (step - rise) / (len(data) - rise)
        factor = (step + 1) / rise if step < rise else (1 + math.cos(math.pi * fraction)) / 2
        for group in optimizer.param_groups:
            group["lr"] = config.lr * factor
        image_features, text_features, scale = model(images, ids)
        loss = ClipLoss()(image_features, text_features, scale)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        losses.append(loss.item())
    return losses


def train_ours(model: DualEncoder, data: list[tuple[Tensor, Tensor]], config: OptimConfig) -> list[float]:
    optimizer = Optimizer(model, config, len(data))
    losses = []
    for step, (images, ids) in enumerate(data):
        loss, _, _ = train_step(model, images, cut_to_longest(ids), None, "info_nce", "float32")
        optimizer.step()
        model.temperature.update((step + 1) / len(data))
        losses.append(loss.item())
    return losses


def moved(model: DualEncoder, start: DualEncoder) -> dict[str, Tensor]:
    began = dict(start.named_parameters())
    return {name: (p - began[name]).detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1 / 0.07, 120.0])
def test_ten_steps_are_open_clips(scale: float, dtype: torch.dtype) -> None:
    """From CLIP's scale, and from one that its clamp brings down to 100 at the first step."""
    theirs = small_open_clip(scale).to(dtype)
    ours, start = from_open_clip(theirs).to(dtype), from_open_clip(theirs).to(dtype)
    config, data = OptimConfig(lr=1e-3, warmup=0.2), [(images.to(dtype), ids) for images, ids in batches(10)]
    their_losses, our_losses = train_open_clip(theirs, data, config), train_ours(ours, data, config)
    assert relative_error(torch.tensor(our_losses), torch.tensor(their_losses)) < AFTER_TEN_STEPS
    assert scale < 100 or 99 < ours.temperature.scale.item() < 100
    end = from_open_clip(theirs).to(dtype)
    if dtype == torch.float64:
        expected = moved(end, start)
        for name, change in moved(ours, start).items():
            assert change.norm() > 0
            assert relative_error(change, expected[name]) < AFTER_TEN_STEPS, name
    # In float32 Adam blows up the rounding of gradients that are zero, as of key biases: all parameters together.
    flattened = nn.utils.parameters_to_vector
    assert relative_error(flattened(ours.parameters()), flattened(end.parameters())) < AFTER_TEN_STEPS


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("distance", ["inner", "geodesic", "chordal"])
@pytest.mark.parametrize("projection", ["per_token", "shared", "reshaped"])
def test_oblique_of_one_sphere_is_the_sphere_through_the_whole_model(projection: str, distance: str, loss: str) -> None:
    losses, gradients = [], []
    images, ids = batches(1)[0]
    for form, topology in (("oblique", f"oblique(32,1)/{distance}"), ("sphere", f"sphere(32)/{distance}")):
        torch.manual_seed(0)
        model = create_model(
            ModelConfig(form=form, topology=topology, projection=projection, embed_dim=32, arch=TINY),
            loss,  # type: ignore[arg-type]
        )
        value, _, _ = train_step(model, images, ids, None, loss, "float32")
        losses.append(value)
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert relative_error(losses[0], losses[1]) < SAME_GRADIENT
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert gradient is not None and other is not None and gradient.norm() > 0
        assert relative_error(gradient, other) < SAME_GRADIENT, name
