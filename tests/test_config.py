"""A configuration comes back from its JSON as it was, and what does not fit is refused by name."""

import json
import typing
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oblique_clip.config import (
    FORMAT_VERSION,
    FORMS,
    SIZES,
    DataConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    from_json,
    model_config,
    read_run_config,
    to_json,
    write_json,
)
from oblique_clip.errors import UserError
from oblique_clip.topology import parse_topology

presets = st.builds(model_config, st.sampled_from(sorted(SIZES)), st.sampled_from(FORMS))


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Any value that a field of this type may hold; NaN is left out, for it equals nothing."""
    if is_dataclass(hint):
        return any_config(typing.cast(type, hint))
    if hint is Path:
        return st.text("abc/._-é ", min_size=1).map(Path)
    if hint is float:
        return st.floats(allow_nan=False)
    if typing.get_origin(hint) is tuple:
        return st.lists(values_of(typing.get_args(hint)[0]), max_size=3).map(tuple)
    if hint == float | None:
        return st.none() | st.floats(allow_nan=False)
    return st.from_type(hint)


def any_config(kind: type) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{field.name: values_of(hints[field.name]) for field in fields(kind)})


def through_text(config: Any) -> Any:
    """Written to a file and read again."""
    return from_json(type(config), json.loads(json.dumps(to_json(config))))


@settings(max_examples=60, deadline=None, database=None)
@given(any_config(TrainConfig))
def test_any_configuration_comes_back_from_its_json(config: TrainConfig) -> None:
    assert through_text(config) == config


@settings(max_examples=40, deadline=None, database=None)
@given(presets, values_of(DataConfig), values_of(OptimConfig))
def test_a_preset_with_changes_comes_back_from_its_json(
    model: ModelConfig, data: DataConfig, optim: OptimConfig
) -> None:
    config = TrainConfig(model=model, data=data, optim=optim)
    assert through_text(config) == config


def test_settings_that_are_left_out_take_their_defaults() -> None:
    assert from_json(TrainConfig, {"optim": {"lr": 1}}) == TrainConfig(optim=OptimConfig(lr=1.0))
    assert type(from_json(OptimConfig, {"lr": 1}).lr) is float


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"sead": 1}, "'sead'"),
        ({"model": {"arch": {"width": 1}}}, "model: arch: unknown setting 'width'"),
        ({"seed": "1"}, "seed: expected int"),
        ({"seed": 1.5}, "seed: expected int"),
        ({"seed": True}, "seed: expected int"),
        ({"optim": {"lr": "fast"}}, "optim: lr: expected float"),
        ({"optim": {"lr": None}}, "optim: lr: expected float"),
        ({"optim": {"lr": True}}, "optim: lr: expected float"),
        ({"optim": {"steps": "many"}}, "optim: steps: expected int"),
        ({"optim": 3}, "optim: expected a table"),
        ({"data": {"augment": 1}}, "data: augment: expected bool"),
        ({"data": {"captions": "names"}}, "data: captions: 'names' is not one of name, keywords, mixed"),
        ({"data": {"test_families": "emoji-noto"}}, "data: test_families: expected a list"),
        ({"data": {"test_families": [1]}}, "data: test_families: expected str"),
        ({"model": {"temperature": {"max_scale": "no"}}}, "model: temperature: max_scale: expected float"),
        ({"out": 3}, "out: expected Path"),
        ({"format_version": FORMAT_VERSION + 1}, f"format_version {FORMAT_VERSION + 1}"),
        ({"format_version": "one"}, "format_version 'one'"),
        ([], "expected a table"),
        (None, "expected a table"),
        ("text", "expected a table"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(values: Any, named: str) -> None:
    with pytest.raises(UserError) as refusal:
        from_json(TrainConfig, values, "runs/a/config.json")
    assert named in str(refusal.value)
    assert "runs/a/config.json" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_run_folder_tells_its_configuration_or_what_is_wrong_with_it(tmp_path: Path) -> None:
    config = TrainConfig(optim=OptimConfig(micro_batch=8), out=tmp_path, seed=3)
    write_json(tmp_path / "config.json", to_json(config))
    assert read_run_config(tmp_path) == config
    for text, named in (('{"sead": 1}', "'sead'"), ("{", "not a readable configuration"), ("[]", "a table")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=named) as refusal:
            read_run_config(tmp_path)
        assert str(tmp_path / "config.json") in str(refusal.value)
    with pytest.raises(UserError, match="not a readable configuration"):
        read_run_config(tmp_path / "nowhere")


@pytest.mark.parametrize("size", SIZES)
def test_presets_of_one_size_differ_only_in_form_and_topology(size: str) -> None:
    clip, sphere, oblique = (model_config(size, form) for form in FORMS)
    differing = {name for name, value in asdict(sphere).items() if value != asdict(oblique)[name]}
    assert differing == {"form", "topology"}
    assert replace(clip, form="sphere") == sphere
    assert replace(sphere, form="oblique", topology=oblique.topology) == oblique


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", FORMS)
def test_every_preset_spends_the_whole_budget_on_its_topology(size: str, form: typing.Any) -> None:
    config = model_config(size, form)
    topology = parse_topology(config.topology)
    assert topology.embed_dim == config.embed_dim
    assert (topology.m > 1) == (form == "oblique")


def test_tokens_are_projected_one_by_one_where_sizes_are_ours_and_together_where_they_are_official() -> None:
    found = {size: model_config(size).projection for size in SIZES}
    assert found == {
        "tiny": "per_token", "small": "per_token", "ViT-S-16": "shared", "ViT-B-32": "shared", "ViT-B-16": "shared",
    }  # fmt: skip


def test_official_sizes_are_those_of_open_clip() -> None:
    import open_clip

    for size in ("ViT-S-16", "ViT-B-32", "ViT-B-16"):
        arch, official = model_config(size).arch, open_clip.get_model_config(size)
        vision, text = official["vision_cfg"], official["text_cfg"]
        assert (arch.vision_layers, arch.vision_width, arch.patch_size) == (
            vision["layers"], vision["width"], vision["patch_size"],
        )  # fmt: skip
        assert (arch.text_width, arch.text_heads, arch.text_layers) == (text["width"], text["heads"], text["layers"])
        assert (arch.context_length, arch.image_size) == (text["context_length"], vision["image_size"])


def test_an_unknown_size_or_form_is_refused_with_what_exists() -> None:
    with pytest.raises(UserError, match=r"unknown size 'huge'; there is tiny, .*ViT-B-16"):
        model_config("huge")
    with pytest.raises(UserError, match="unknown form 'cube'; there is clip, sphere, oblique"):
        model_config("tiny", typing.cast(Any, "cube"))
