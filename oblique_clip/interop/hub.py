"""The Hugging Face hub, and any folder laid out like a repository of it: weights, settings and a model card.

`model.safetensors` is what `save_model` writes, with the settings that rebuild the model in its header; `config.json`
repeats them for people and for the hub; `README.md` is the model card. Nothing here runs code from a file: pickled
weights are read with torch's `weights_only=True`, which refuses everything but tensors and plain containers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..checkpoint import PICKLED, SETTINGS, WEIGHTS, Loaded, config_of, data_of, home_of, load, save_model
from ..config import DataConfig, ModelConfig, to_json, write_json
from ..errors import UserError
from ..model import DualEncoder
from .card import model_card

CARD = "README.md"
ADDRESS = "hf:"

T = TypeVar("T")


def save_pretrained(
    source: DualEncoder | Loaded | str | Path,
    folder: str | Path,
    config: ModelConfig | None = None,
    data: DataConfig | None = None,
    results: dict[str, Any] | None = None,
    license: str | None = None,
) -> Path:
    """Write a model as a folder that `from_pretrained` reads and `push_to_hub` uploads; gives the folder.

    Args:
        source: a model, or whatever `oblique_clip.load` takes: of a run folder, its best checkpoint.
        config: needed for a model; a checkpoint brings its own.
        data: what the model was trained on; a checkpoint brings its own.
        results: a run's result.json for the card's table; a run folder brings its own.
        license: the licence of the weights as the hub spells it, such as `apache-2.0`; none is stated without it.

    Raises:
        UserError: without a configuration, see `load`, or where `folder` is a run folder.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from oblique_clip.interop.hub import save_pretrained
        >>> folder = save_pretrained("tiny-oblique", Path(tempfile.mkdtemp()), license="apache-2.0")
        >>> sorted(path.name for path in folder.iterdir())
        ['README.md', 'config.json', 'model.safetensors']
    """
    folder = Path(folder)
    if (folder / "checkpoints").is_dir():
        raise UserError(f"{folder} is a run folder, whose config.json would be lost: name another folder")
    if isinstance(source, str | Path):
        config, data, results = config or config_of(source), data or _data_of(source), results or _results_of(source)
        source = load(source)
    model = source.model if isinstance(source, Loaded) else source
    if config is None:
        raise UserError("save_pretrained needs the ModelConfig that the model was created from, or a checkpoint")
    save_model(model, config, folder / WEIGHTS, data)
    write_json(folder / SETTINGS, to_json(config))
    (folder / CARD).write_text(model_card(folder.resolve().name, model, config, data, results, license), "utf-8")
    return folder


def from_pretrained(
    folder_or_repo_id: str | Path, revision: str | None = None, device: str | torch.device = "cpu"
) -> Loaded:
    """The model of a folder, or of a repository on the hub, bit for bit as it was saved.

    Args:
        folder_or_repo_id: a folder that `save_pretrained` wrote, or `user/name`.
        revision: branch, tag or commit of the repository; `load` takes the same as `hf:user/name@revision`.

    Raises:
        UserError: where neither a folder nor a repository is found, or its files are damaged or missing.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from oblique_clip.interop.hub import from_pretrained, save_pretrained
        >>> folder = save_pretrained("tiny-oblique", Path(tempfile.mkdtemp()))
        >>> model, preprocess, tokenizer = from_pretrained(folder)  # or "user/name", from the hub
        >>> model.topology.spec
        'oblique(16,8)'
    """
    if Path(folder_or_repo_id).is_dir():
        return load(folder_or_repo_id, device)
    return load(f"{ADDRESS}{folder_or_repo_id}" + (f"@{revision}" if revision else ""), device)


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload an oblique_clip model",
) -> str:
    """Upload a folder of `save_pretrained` to `user/name`, made where it does not exist; gives the commit's address.

    Args:
        revision: branch to commit to, made where it does not exist; the main one without it.
        token: of the hub; without it the one that `hf auth login` or `$HF_TOKEN` left.

    Raises:
        UserError: for an incomplete folder, or where the hub cannot be reached or refuses.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from oblique_clip.interop.hub import push_to_hub, save_pretrained
        >>> folder = save_pretrained("tiny-oblique", Path(tempfile.mkdtemp()))
        >>> push_to_hub(folder, "someone/apples", private=True)  # doctest: +SKIP
        'https://huggingface.co/someone/apples/commit/...'
        >>> (folder / "README.md").unlink()
        >>> push_to_hub(folder, "someone/apples")
        Traceback (most recent call last):
            ...
        oblique_clip.errors.UserError: ... has no README.md: write it with save_pretrained
    """
    folder = Path(folder)
    for name in (WEIGHTS, SETTINGS, CARD):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: write it with save_pretrained")
    api = _huggingface_hub().HfApi(token=token)

    def upload() -> str:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            folder_path=folder, repo_id=repo_id, revision=revision, commit_message=message,
            allow_patterns=[WEIGHTS, SETTINGS, CARD],
        )  # fmt: skip
        return str(commit.commit_url)

    return _told(upload, f"cannot push to {repo_id} on the hub")


def model_file(address: str) -> Path:
    """The local copy of the weights of `user/name`, or `user/name@revision`, with its settings beside it.

    Raises:
        UserError: where the hub cannot be reached, or the repository is missing or holds no such file.
    """
    repo_id, _, revision = address.partition("@")
    folder = _download(repo_id, revision or None)
    for name in (WEIGHTS, PICKLED):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{repo_id} on the hub has no {WEIGHTS}")


def _data_of(source: str | Path) -> DataConfig | None:
    try:
        return None if home_of(source) else data_of(source)
    except UserError:
        return None


def _results_of(source: str | Path) -> dict[str, Any] | None:
    path = Path(source) / "result.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def _download(repo_id: str, revision: str | None) -> Path:
    """The repository's files in the hub's cache."""
    hub = _huggingface_hub()
    files = [WEIGHTS, PICKLED, SETTINGS, CARD]
    return _told(
        lambda: Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=files)),
        f"no folder {repo_id}, and no such model from the hub",
    )


def _told(action: Callable[[], T], failure: str) -> T:
    """What `action` gives; its error in one line."""
    try:
        return action()
    # The library under huggingface_hub, and so the class of a failed connection, differs between its versions.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{failure}: {reason}") from error


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError("the hub needs huggingface_hub: pip install 'oblique-clip[hub]'") from error
    return huggingface_hub
