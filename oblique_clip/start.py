"""Going on from a trained model: its configuration, its weights, and the way from one sphere to many."""

from __future__ import annotations

import math
from dataclasses import replace

from .checkpoint import load
from .config import ModelConfig, TrainConfig
from .errors import UserError
from .model import DualEncoder
from .resume import differences
from .topology import parse_topology


def changed(config: ModelConfig, base: ModelConfig) -> ModelConfig:
    """What `config`, which is `base` but for what flags have changed, comes to: a sphere may have become oblique.

    Raises:
        UserError: for a change that the weights cannot follow, and see `oblique_config`.

    Examples:
        >>> from dataclasses import replace
        >>> from oblique_clip.checkpoint import config_of
        >>> from oblique_clip.start import changed
        >>> base = config_of("tiny-sphere")
        >>> config = changed(replace(base, topology="oblique(16,8)"), base)  # as `--topology` asks
        >>> config.form, config.arch.shared_attention
        ('oblique', True)
        >>> changed(replace(base, projection="shared"), base)
        Traceback (most recent call last):
            ...
        oblique_clip.errors.UserError: --projection is a property of the model that --start-from names: leave it out
    """
    free = replace(config.arch, patch_dropout=base.arch.patch_dropout)
    kept = replace(
        config, topology=base.topology, temperature=base.temperature, logit_bias=base.logit_bias, arch=free
    )  # fmt: skip
    if stray := [name for name, _, _ in differences(kept, base)]:
        raise UserError(
            f"--{stray[0].replace('_', '-')} is a property of the model that --start-from names: leave it out"
        )
    old, new = parse_topology(base.topology), parse_topology(config.topology)
    if (old.family, new.family) != ("sphere", "oblique"):
        return config
    from .interop.surgery import oblique_config

    return replace(oblique_config(replace(config, topology=base.topology), new.n, new.m), topology=config.topology)


def start_weights(model: DualEncoder, config: TrainConfig) -> None:
    """Fill a model with the weights of `config.start_from`, cut by `to_oblique` where a sphere became oblique.

    The scale keeps the spread of the logits, unless the temperature is not learned or --init-scale names a start.

    Raises:
        UserError: as `load`, or where the weights do not fit.

    Examples:
        >>> import torch
        >>> from oblique_clip import create_model, load
        >>> from oblique_clip.checkpoint import config_of
        >>> from oblique_clip.config import TrainConfig
        >>> from oblique_clip.start import start_weights
        >>> config = TrainConfig(model=config_of("tiny-sphere"), start_from="tiny-sphere")
        >>> model, source = create_model(config.model).eval(), load("tiny-sphere")
        >>> start_weights(model, config)
        >>> ids = source.tokenizer(["red apple"])
        >>> torch.equal(model.encode_text(ids), source.model.encode_text(ids))
        True
    """
    source, topology = load(str(config.start_from)).model, model.topology
    own = {name: value.clone() for name, value in model.state_dict().items()}
    if source.topology.family == "sphere" and topology.family == "oblique":
        from .interop.surgery import to_oblique

        source = to_oblique(source, topology.n, topology.m, config.seed)
    weights = source.state_dict()
    weights["temperature.log_scale"] += math.log(topology.max_scale / source.topology.max_scale)
    if config.model.temperature.init_scale is not None or config.model.temperature.temperature != "learned":
        weights["temperature.log_scale"] = own["temperature.log_scale"]
    # A bias cancels in InfoNCE, whose models may have none; the sigmoid loss starts from its own where there is none.
    bias = {name: weights.pop(name, value) for name, value in own.items() if name == "logit_bias"}
    weights = {name: value for name, value in weights.items() if name != "logit_bias"} | bias
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"--start-from {config.start_from}: its weights do not fit the model: {reason}") from error
