"""The scale of the logits: learned, clamped from above only, or scheduled between two values."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oblique_clip.config import TemperatureConfig
from oblique_clip.errors import UserError
from oblique_clip.temperature import SCHEDULES, LearnedTemperature, ScheduledTemperature, make_temperature

FLOAT32 = 1e-6
"""Relative error of a scale between 0.1 and 100 that is kept as a float32 logarithm."""
WIDE = 1e-5
"""The same for any scale."""
ANNEALED = sorted(set(SCHEDULES) - {"constant"})

laws = settings(max_examples=30, deadline=None, database=None)
scales = st.floats(1e-2, 1e3)


@laws
@given(scales, scales)
def test_the_learned_scale_is_clamped_from_above_only(scale: float, maximum: float) -> None:
    temperature = LearnedTemperature(1.0, maximum)
    with torch.no_grad():
        temperature.log_scale.fill_(math.log(scale))
    temperature.update(0.5)
    assert temperature.scale.item() == pytest.approx(min(scale, maximum), rel=WIDE)


def test_a_learned_scale_starts_no_higher_than_its_clamp() -> None:
    assert LearnedTemperature(50.0, 6.25).scale.item() == pytest.approx(6.25, rel=FLOAT32)
    assert LearnedTemperature(1 / 0.07, 100.0).scale.item() == pytest.approx(1 / 0.07, rel=FLOAT32)


def test_a_learned_scale_without_clamp_grows_freely() -> None:
    temperature = LearnedTemperature(1.0)
    with torch.no_grad():
        temperature.log_scale.fill_(20.0)
    temperature.update(1.0)
    assert temperature.log_scale.item() == 20.0


def test_the_clamp_leaves_the_gradient_of_the_logarithm() -> None:
    """At the clamp the parameter still learns, so that it can come down again."""
    temperature = LearnedTemperature(6.25, 6.25)
    temperature.update(0.0)
    temperature.scale.backward()
    assert temperature.log_scale.grad is not None
    assert temperature.log_scale.grad.item() == pytest.approx(6.25, rel=FLOAT32)


@laws
@given(st.sampled_from(ANNEALED), scales, scales)
def test_a_schedule_hits_its_ends_and_is_monotone(kind: str, initial: float, final: float) -> None:
    temperature = ScheduledTemperature(kind, initial, final)
    assert temperature.scale.item() == pytest.approx(initial, rel=WIDE)
    seen = []
    for step in range(21):
        temperature.update(step / 20)
        seen.append(temperature.scale.item())
    assert seen[0] == pytest.approx(initial, rel=WIDE)
    assert seen[-1] == pytest.approx(final, rel=WIDE)
    sign = 1 if final >= initial else -1
    slack = WIDE * max(initial, final)
    assert all(sign * (after - before) >= -slack for before, after in itertools.pairwise(seen))
    temperature.update(1.5)
    assert temperature.scale.item() == pytest.approx(final, rel=WIDE)


@pytest.mark.parametrize(
    "kind, quarter, middle", [("linear", 25.75, 50.5), ("cosine", 15.4982, 50.5), ("exponential", 10**0.5, 10)]
)
def test_a_schedule_between_its_ends(kind: str, quarter: float, middle: float) -> None:
    temperature = ScheduledTemperature(kind, 1.0, 100.0)
    temperature.update(0.25)
    assert temperature.scale.item() == pytest.approx(quarter, rel=1e-4)
    temperature.update(0.5)
    assert temperature.scale.item() == pytest.approx(middle, rel=1e-4)


def test_a_constant_scale_stays() -> None:
    temperature = make_temperature(TemperatureConfig("constant", init_scale=1.0, final_scale=9.0), 0.9, 6.25)
    for progress in (0.0, 0.5, 1.0):
        temperature.update(progress)
        assert temperature.scale.item() == 1.0


def test_only_a_learned_scale_is_a_parameter_and_both_are_saved() -> None:
    for kind, count in (("learned", 1), ("constant", 0), ("cosine", 0)):
        temperature = make_temperature(TemperatureConfig(kind, init_scale=2.0, final_scale=3.0), 0.9, 6.25)  # type: ignore[arg-type]
        assert len(list(temperature.parameters())) == count
        temperature.update(1.0)
        again = make_temperature(TemperatureConfig(kind, init_scale=1.0, final_scale=3.0), 0.9, 6.25)  # type: ignore[arg-type]
        again.load_state_dict(temperature.state_dict())
        assert torch.equal(again.scale, temperature.scale)


def test_silent_settings_are_those_of_the_topology() -> None:
    temperature = make_temperature(TemperatureConfig(), 0.893, 6.25)
    assert isinstance(temperature, LearnedTemperature)
    assert temperature.scale.item() == pytest.approx(0.893, rel=FLOAT32)
    assert temperature.maximum == 6.25
    chosen = make_temperature(TemperatureConfig(init_scale=2.0, max_scale=math.inf), 0.893, 6.25)
    assert isinstance(chosen, LearnedTemperature)
    assert chosen.scale.item() == pytest.approx(2.0, rel=FLOAT32)
    assert chosen.maximum == math.inf
    assert make_temperature(TemperatureConfig("constant"), 0.893, 6.25).scale.item() == pytest.approx(0.893)


@pytest.mark.parametrize(
    "config, word",
    [
        (TemperatureConfig(init_scale=0.0), "--init-scale"),
        (TemperatureConfig(init_scale=-1.0), "--init-scale"),
        (TemperatureConfig(init_scale=math.nan), "--init-scale"),
        (TemperatureConfig(init_scale=math.inf), "--init-scale"),
        (TemperatureConfig(max_scale=0.0), "--max-scale"),
        (TemperatureConfig("linear", final_scale=-2.0), "--final-scale"),
        (TemperatureConfig("linear", final_scale=math.inf), "--final-scale"),
        (TemperatureConfig("linear"), "--final-scale"),
        (TemperatureConfig("cosine"), "--final-scale"),
        (TemperatureConfig("exponential"), "--final-scale"),
        (TemperatureConfig("warm"), "learned, constant, linear, cosine, exponential"),  # type: ignore[arg-type]
    ],
)
def test_a_bad_setting_fails_by_name(config: TemperatureConfig, word: str) -> None:
    with pytest.raises(UserError, match=word):
        make_temperature(config, 1.0, 100.0)
