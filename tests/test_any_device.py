"""Ready for a GPU without one: pixels, model and loss on a fake CUDA device, where a stray CPU tensor fails."""

import pytest
import torch
from conftest import TINY
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from oblique_clip.config import FORMS, SIZES, ModelConfig, TemperatureConfig, model_config
from oblique_clip.data.images import Augmentation, Preprocess, TrainingPixels
from oblique_clip.loss import LOSSES
from oblique_clip.model import DualEncoder, create_model
from oblique_clip.topology import Topology, parse_topology

SPECS = [
    "sphere(32)", "sphere(32)/geodesic", "sphere(32)/chordal", "oblique(8,4)", "oblique(8,4)/geodesic",
    "oblique(8,4)/chordal", "euclidean(32)", "euclidean(32)/squared", "lorentz(32)",
]  # fmt: skip
BATCH, LENGTH = 4, 9
TWO_DEVICES = "cuda:0.*cpu|cpu.*cuda:0"


def move_to_fake_cuda(module: nn.Module, mode: FakeTensorMode) -> None:
    """Put fake CUDA tensors in place of all parameters and buffers; `Module.to` would start CUDA."""
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, value in store.items():
                if value is not None:
                    with mode:
                        fake = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                    store[name] = nn.Parameter(fake) if isinstance(value, nn.Parameter) else fake


def build(config: ModelConfig, loss: str, mode: FakeTensorMode) -> DualEncoder:
    """A model without memory behind it, of any size."""
    with torch.device("meta"):
        model = create_model(config, loss)
    move_to_fake_cuda(model, mode)
    return model


def batch(image_size: int) -> tuple[Tensor, Tensor, Tensor]:
    images = torch.empty(BATCH, 3, image_size, image_size, device="cuda")
    ids = torch.empty(BATCH, LENGTH, dtype=torch.long, device="cuda")
    return images, ids, torch.empty(BATCH, dtype=torch.long, device="cuda")


def loss_of(model: DualEncoder, loss: str, grouped: bool, tile: int | None = None) -> Tensor:
    images, ids, groups = batch(model.visual.image_size[0])
    points = model.encode_image(images), model.encode_text(ids)
    chosen = groups if grouped else None
    scale, bias = model.temperature.scale, model.logit_bias
    return LOSSES[loss](*points, model.topology, scale, bias=bias, groups=chosen, tile=tile)


@pytest.fixture(autouse=True)
def engine_of_fake_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's engine wants a real GPU, and the losses call it tile by tile: zeros stand for what it would return."""

    def zeros(outputs: Tensor, inputs: list[Tensor], slopes: Tensor, allow_unused: bool) -> list[Tensor]:
        assert (slopes.device, slopes.shape, slopes.dtype) == (outputs.device, outputs.shape, outputs.dtype)
        return [torch.zeros_like(tensor) for tensor in inputs]

    monkeypatch.setattr(torch.autograd, "grad", zeros)


def assert_on_fake_cuda(value: Tensor, shape: tuple[int, ...] = ()) -> None:
    assert (value.device.type, value.dtype, tuple(value.shape)) == ("cuda", torch.float32, shape)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_every_preset(size: str, form: str, loss: str) -> None:
    mode = FakeTensorMode()
    model = build(model_config(size, form), loss, mode)  # type: ignore[arg-type]
    with mode:
        assert_on_fake_cuda(loss_of(model, loss, grouped=False))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("spec", SPECS)
def test_every_topology_and_loss(spec: str, loss: str, grouped: bool) -> None:
    mode = FakeTensorMode()
    form = "oblique" if spec.startswith("oblique") else "sphere"
    config = ModelConfig(form=form, topology=spec, embed_dim=32, arch=TINY)  # type: ignore[arg-type]
    model = build(config, loss, mode)
    with mode:
        assert_on_fake_cuda(loss_of(model, loss, grouped))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("spec", ["oblique(8,4)", "lorentz(32)"])
def test_tiled_losses(spec: str, loss: str, grouped: bool) -> None:
    mode = FakeTensorMode()
    form = "oblique" if spec.startswith("oblique") else "sphere"
    model = build(ModelConfig(form=form, topology=spec, embed_dim=32, arch=TINY), loss, mode)  # type: ignore[arg-type]
    with mode:
        assert_on_fake_cuda(loss_of(model, loss, grouped, tile=2))


@pytest.mark.parametrize("side", [32, 48])
def test_pixels_on_their_way_into_a_model(side: int) -> None:
    preprocess = Preprocess(32, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
    with FakeTensorMode():
        squares = torch.empty(BATCH, 3, side, side, dtype=torch.uint8, device="cuda")
        assert_on_fake_cuda(preprocess.batch(squares), (BATCH, 3, 32, 32))
        squares = torch.empty(BATCH, 3, side, side, dtype=torch.uint8)
        pixels = TrainingPixels(squares, preprocess, torch.device("cuda"), Augmentation.draw(BATCH, seed=1))
        assert_on_fake_cuda(pixels[0:2], (2, 3, 32, 32))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("class_tokens", ["free", "oblique"])
@pytest.mark.parametrize("projection", ["per_token", "shared", "reshaped"])
def test_every_kind_of_token_and_projection(projection: str, class_tokens: str, checkpointing: bool) -> None:
    mode = FakeTensorMode()
    config = ModelConfig(
        topology="oblique(8,4)", embed_dim=32, arch=TINY, projection=projection, class_tokens=class_tokens,
        temperature=TemperatureConfig("cosine", final_scale=2.0),
    )  # type: ignore[arg-type]  # fmt: skip
    model = build(config, "info_nce", mode)
    model.set_grad_checkpointing(checkpointing)
    with mode:
        assert_on_fake_cuda(loss_of(model, "info_nce", grouped=False))
        model.temperature.update(0.5)
        assert_on_fake_cuda(model.temperature.scale)


@pytest.mark.parametrize("spec", SPECS)
def test_what_evaluation_uses(spec: str) -> None:
    """Similarity row by row, the extrinsic means, flat vectors and logits."""
    mode = FakeTensorMode()
    form = "oblique" if spec.startswith("oblique") else "sphere"
    model = build(ModelConfig(form=form, topology=spec, embed_dim=32, arch=TINY), "sigmoid", mode)  # type: ignore[arg-type]
    topology: Topology = model.topology
    with mode, torch.no_grad():
        images, ids, _ = batch(32)
        points, texts = model.encode_image(images), model.encode_text(ids)
        assert_on_fake_cuda(topology.similarity_rowwise(points, texts), (BATCH,))
        assert_on_fake_cuda(model.get_logits(images, ids)[0], (BATCH, BATCH))
        if topology.flat_is_exact:
            assert_on_fake_cuda(topology.flat(points), (BATCH, 32))
        if topology.family in ("euclidean", "lorentz"):
            # Of spheres, whether weights are unfit and whether an iteration is done is read from values.
            assert_on_fake_cuda(topology.mean(points, torch.empty(BATCH, device="cuda")), topology.point_shape)
        elif topology.distance != "geodesic":
            assert_on_fake_cuda(topology.mean(points), topology.point_shape)


@pytest.mark.parametrize("spec", SPECS)
def test_points_kept_on_the_cpu_are_compared_there(spec: str) -> None:
    """Evaluation collects points on the CPU while the model, and with it the curvature, stays on the GPU."""
    mode = FakeTensorMode()
    topology = parse_topology(spec)
    move_to_fake_cuda(topology, mode)
    with mode, torch.no_grad():
        points = torch.empty(BATCH, *topology.point_shape)
        similarities = topology.similarity(points, points), topology.similarity_rowwise(points, points)
        assert [value.device.type for value in similarities] == ["cpu", "cpu"]
        if topology.distance != "geodesic" or topology.family == "lorentz":
            assert topology.mean(points).device.type == "cpu"


@pytest.mark.parametrize("name", ["visual.projection.weight", "visual.trunk.pos_embed", "text.class_tokens"])
def test_a_parameter_left_on_the_cpu_fails(name: str) -> None:
    """The check itself. (A CPU tensor without dimensions would pass, as it does on a GPU.)"""
    mode = FakeTensorMode()
    model = build(ModelConfig(topology="oblique(8,4)", embed_dim=32, arch=TINY), "info_nce", mode)
    owner, _, attribute = name.rpartition(".")
    part = model.get_submodule(owner)
    with mode:
        setattr(part, attribute, nn.Parameter(torch.empty(getattr(part, attribute).shape, device="cpu")))
        with pytest.raises(RuntimeError, match=TWO_DEVICES):
            loss_of(model, "info_nce", grouped=False)


def test_a_hard_coded_device_fails() -> None:
    class Centred(type(parse_topology("oblique(8,4)"))):  # type: ignore[misc]
        def project(self, features: Tensor) -> Tensor:
            return super().project(features - torch.ones(self.n))

    mode = FakeTensorMode()
    model = build(ModelConfig(topology="oblique(8,4)", embed_dim=32, arch=TINY), "info_nce", mode)
    model.topology = Centred(8, 4, "inner")
    with mode, pytest.raises(RuntimeError, match=TWO_DEVICES):
        loss_of(model, "info_nce", grouped=False)
