"""Folders for the hub: the model comes back bit for bit, no pickle runs code, and what fails is told in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY

from oblique_clip import create_model, load, model_config
from oblique_clip.checkpoint import Loaded, config_of, data_of, save_model
from oblique_clip.config import DataConfig, ModelConfig, to_json
from oblique_clip.errors import UserError
from oblique_clip.interop.hub import from_pretrained, model_file, push_to_hub, save_pretrained
from oblique_clip.model import DualEncoder

hub = pytest.importorskip("huggingface_hub")
RESULTS = Path(__file__).parents[1] / "experiments" / "held_out_family" / "oblique.json"
CONFIGS = {
    "clip": model_config("tiny", "clip", arch=TINY),
    "sphere with a bias": model_config("tiny", "sphere", arch=TINY, logit_bias=True),
    "oblique with points": model_config("tiny", "oblique", arch=TINY, class_tokens="oblique"),
    "chordal": model_config("tiny", "oblique", arch=TINY, topology="oblique(16,8)/chordal"),
    "curved": model_config("tiny", "sphere", arch=TINY, topology="lorentz(128)"),
}
SMALL = CONFIGS["sphere with a bias"]
DATA = DataConfig(test_families=("emoji-noto",), captions="mixed")


def trained(config: ModelConfig, loss: str = "info_nce") -> DualEncoder:
    """A model whose weights are none that `create_model` would set; points stay on their manifold."""
    model = create_model(config, loss)
    with torch.no_grad():
        for parameter in model.parameters():
            if not hasattr(parameter, "manifold"):
                parameter += 0.1 * torch.randn(parameter.shape)
    return model


def assert_bit_exact(found: Loaded, model: DualEncoder, config: ModelConfig) -> None:
    weights = model.state_dict()
    assert found.model.state_dict().keys() == weights.keys()
    for name, value in found.model.state_dict().items():
        assert value.dtype == weights[name].dtype and torch.equal(value, weights[name]), name
    size = config.arch.image_size
    images, ids = torch.randn(3, 3, size, size), found.tokenizer(["a red apple", "two cats", ""])
    with torch.no_grad():
        for ours, theirs in zip(found.model.get_logits(images, ids), model.eval().get_logits(images, ids), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    model = trained(config)
    folder = save_pretrained(model, tmp_path / "folder", config, DATA)
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert_bit_exact(from_pretrained(folder), model, config)
    assert json.loads((folder / "config.json").read_text()) == to_json(config)
    assert config_of(folder / "model.safetensors") == config and data_of(folder / "model.safetensors") == DATA
    again = save_pretrained(from_pretrained(folder), tmp_path / "again", config, DATA)
    assert_bit_exact(from_pretrained(again), model, config)


def test_a_run_folder_brings_its_best_checkpoint_its_data_and_its_results(tmp_path: Path) -> None:
    run, config = tmp_path / "run", CONFIGS["chordal"]
    best, last = trained(config), trained(config)
    save_model(best, config, run / "checkpoints" / "best.safetensors", DATA)
    save_model(last, config, run / "checkpoints" / "last.safetensors", DATA)
    (run / "result.json").write_text(RESULTS.read_text())
    folder = save_pretrained(run, tmp_path / "folder", license="apache-2.0")
    assert_bit_exact(from_pretrained(folder), best, config)
    assert data_of(folder / "model.safetensors") == DATA
    card = (folder / "README.md").read_text()
    figures = json.loads(RESULTS.read_text())["evaluation"]
    for stated in (
        "`oblique(16,8)/chordal`", "chordal distance", "[-5.657, 0]", "`emoji-noto`", "captions by `mixed`",
        f"| family top-1 % | {100 * figures['family']['top1']:.2f} |",
        f"| concepts top-1 % | {100 * figures['concepts']['top1']:.2f} |",
        f"| scale of the logits | {best.temperature.scale.item():.4g} |",
    ):  # fmt: skip
        assert stated in card, stated


def test_the_front_matter_of_the_card_is_what_the_hub_reads(tmp_path: Path) -> None:
    folder = save_pretrained(create_model(SMALL), tmp_path / "folder", SMALL, license='odd: "licence"')
    facts = hub.ModelCard.load(folder / "README.md").data.to_dict()
    assert facts["library_name"] == "oblique-clip" and facts["license"] == 'odd: "licence"'
    assert facts["pipeline_tag"] == "zero-shot-image-classification" and "clip" in facts["tags"]
    assert "Not recorded" in (folder / "README.md").read_text()


def cached_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[DualEncoder, Path]:
    """`someone/apples` as the hub's client keeps it once downloaded, with no hub in reach."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    model, commit = trained(SMALL), "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--apples"
    (repository / "refs").mkdir(parents=True)
    for name in ("main", "v1"):
        (repository / "refs" / name).write_text(commit)
    return model, save_pretrained(model, repository / "snapshots" / commit, SMALL, DATA)


def test_a_repository_is_loaded_by_its_name_and_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = cached_repository(tmp_path, monkeypatch)
    assert_bit_exact(from_pretrained("someone/apples"), model, SMALL)
    assert_bit_exact(from_pretrained("someone/apples", "v1"), model, SMALL)
    for address in ("someone/apples", "someone/apples@v1"):
        assert model_file(address).samefile(folder / "model.safetensors")
        assert_bit_exact(load(f"hf:{address}"), model, SMALL)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    for found in (load("hf:someone/apples"), from_pretrained("someone/apples"), load(folder), from_pretrained(folder)):
        assert_bit_exact(found, model, SMALL)
    assert config_of("hf:someone/apples@v1") == SMALL
    (folder / "pytorch_model.bin").unlink()
    for wrong, expected in (
        ("someone/pears", "no such model from the hub"),
        ("someone/apples@v2", "no such model from the hub"),
        ("someone/apples", "model.safetensors"),
        ("not a/repo/name", "no such model from the hub"),
    ):
        with pytest.raises(UserError) as caught:
            load(f"hf:{wrong}")
        assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_pushing_without_a_hub_is_one_line(tmp_path: Path) -> None:
    folder = save_pretrained(create_model(SMALL), tmp_path / "folder", SMALL)
    (tmp_path / "half").mkdir()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        push_to_hub(tmp_path / "half", "someone/apples")
    with pytest.MonkeyPatch.context() as patch:
        # Nothing listens here: what a machine without a network sees.
        patch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(UserError, match=r"^cannot push to someone/apples on the hub: [^\n]+$"):
            push_to_hub(folder, "someone/apples", token="none")


@pytest.mark.parametrize("revision", [None, "v2"])
def test_pushing_makes_the_repository_and_the_branch_then_uploads(
    revision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this order, as the hub takes no commit to a branch that it does not have."""
    calls: list[tuple[str, Any, dict[str, Any]]] = []

    class Api:
        def __init__(self, token: str | None) -> None:
            calls.append(("token", token, {}))

        def __getattr__(self, name: str) -> Any:
            def call(*args: Any, **options: Any) -> Any:
                calls.append((name, args, options))
                return SimpleNamespace(commit_url="https://example.org/commit/1")

            return call

    monkeypatch.setattr(hub, "HfApi", Api)
    folder = save_pretrained(create_model(SMALL), tmp_path / "folder", SMALL)
    address = push_to_hub(folder, "someone/apples", private=True, revision=revision, token="mine", message="hello")
    assert address == "https://example.org/commit/1"
    token, repository, *branch, upload = calls
    assert token == ("token", "mine", {})
    assert repository == ("create_repo", ("someone/apples",), {"private": True, "exist_ok": True})
    expected = [("create_branch", ("someone/apples",), {"branch": "v2", "exist_ok": True})] if revision else []
    assert branch == expected
    name, _, options = upload
    assert name == "upload_folder" and options["folder_path"] == folder and options["revision"] == revision
    assert options["commit_message"] == "hello" and options["repo_id"] == "someone/apples"
    assert sorted(options["allow_patterns"]) == ["README.md", "config.json", "model.safetensors"]


def test_a_pickled_state_dict_is_read(tmp_path: Path) -> None:
    # The bias came with the loss: the configuration does not name it.
    config = CONFIGS["oblique with points"]
    model = trained(config, "sigmoid")
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(to_json(config)))
    assert_bit_exact(from_pretrained(tmp_path), model, config)


def test_mistakes_are_told(tmp_path: Path) -> None:
    model = create_model(SMALL)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    wide = tmp_path / "wide"
    wide.mkdir()
    torch.save(model.state_dict(), wide / "pytorch_model.bin")
    other = replace(SMALL, arch=replace(TINY, text_width=64))
    (wide / "config.json").write_text(json.dumps(to_json(other)))
    for action, expected in (
        (lambda: save_pretrained(model, tmp_path / "run", SMALL), "is a run folder"),
        (lambda: save_pretrained(model, tmp_path / "folder"), "needs the ModelConfig"),
        (lambda: save_pretrained("nowhere", tmp_path / "folder"), "no such checkpoint"),
        (lambda: from_pretrained(tmp_path / "empty"), "or model.safetensors"),
        (lambda: from_pretrained(wide), f"{wide / 'pytorch_model.bin'}: weights do not fit"),
    ):
        with pytest.raises(UserError) as caught:
            action()
        assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "folder").exists()


def test_a_shipped_model_is_told_by_its_name(tmp_path: Path) -> None:
    folder = save_pretrained("tiny-oblique", tmp_path / "folder")
    assert_bit_exact(from_pretrained(folder), load("tiny-oblique").model, config_of("tiny-oblique"))
