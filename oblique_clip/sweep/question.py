"""A question: the arms that it compares, each a configuration, and what is to be said of their runs.

A question is a Python file with a `QUESTION`. The shipped ones are in `oblique_clip/questions`; any other file can be
named by its path. Arms that several questions share are trained once.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..config import TrainConfig
from ..errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .results import Results

Verdict = Literal["supported", "not supported", "undecided"]
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Arm:
    """One of the configurations that a question compares, `out`, `seed` and device apart.

    Examples:
        >>> from oblique_clip.config import TrainConfig
        >>> from oblique_clip.sweep.question import Arm, varied
        >>> euclidean = Arm("euclidean", varied(TrainConfig(), model={"topology": "euclidean(128)"}), seeds=3)
        >>> euclidean.config.model.topology
        'euclidean(128)'
    """

    name: str
    """Names its folder, and its row in tables."""
    config: TrainConfig
    """A `device` that is not auto holds the arm to it, whatever the sweep is given."""
    seeds: int = 3
    """How many runs there are of it, of seeds 0, 1, 2, ..."""


@dataclass(frozen=True)
class Finding:
    """What the runs say of a claim: a verdict, and the sentence with the figures that support it.

    Examples:
        >>> from oblique_clip.sweep.question import Finding, of_signs
        >>> Finding("noise costs accuracy", of_signs(["ahead"]), "3.1 points [2.0, 4.2] over seeds").verdict
        'supported'
    """

    claim: str
    verdict: Verdict
    sentence: str


def of_signs(signs: Iterable[str]) -> Verdict:
    """The verdict on a claim that something is ahead, by one or more differences: see `Difference.sign`.

    Examples:
        >>> from oblique_clip.sweep.question import of_signs
        >>> of_signs(["ahead", "ahead"]), of_signs(["ahead", "undecided"]), of_signs(["behind", "undecided"])
        ('supported', 'undecided', 'not supported')
    """
    found = set(signs)
    if found == {"ahead"}:
        return "supported"
    return "not supported" if found in ({"behind"}, {"behind", "undecided"}) else "undecided"


def of_tests(held: Iterable[bool]) -> Verdict:
    """The verdict on a claim by tests of it: all hold where it is supported, and none where it is not supported.

    Without any test it is undecided.

    Examples:
        >>> from oblique_clip.sweep.question import of_tests
        >>> of_tests([True, True]), of_tests([True, False]), of_tests([False]), of_tests([])
        ('supported', 'undecided', 'not supported', 'undecided')
    """
    found = list(held)
    return "undecided" if not found or any(found) != all(found) else "supported" if all(found) else "not supported"


def nothing(results: Results) -> Iterable[Any]:
    """For questions without pictures of their own."""
    return ()


@dataclass(frozen=True)
class Question:
    """What is asked, of which arms, and how the answer is read from their runs.

    Examples:
        >>> from oblique_clip.config import TrainConfig
        >>> from oblique_clip.sweep.question import Arm, Question, varied
        >>> plain = TrainConfig()
        >>> noisy = varied(plain, data={"caption_noise": 0.3})
        >>> QUESTION = Question(  # in a file that --preset names
        ...     name="noise-30",
        ...     asks="What does noise cost?",
        ...     arms=(Arm("plain", plain), Arm("noisy", noisy, seeds=5)),
        ...     contrasts=(("noisy", "plain"),),
        ... )
        >>> sum(arm.seeds for arm in QUESTION.arms)
        8
    """

    name: str
    """Names its folder in `experiments` and the value of --preset."""
    asks: str
    arms: tuple[Arm, ...]
    contrasts: tuple[tuple[str, str], ...] = ()
    """Pairs of arms, compared run by run: how far the first is ahead of the second."""
    primary: tuple[str, str] | None = None
    """The one contrast that was named before any test picture was looked at; all else is exploratory."""
    findings: Callable[[Results], Iterable[Finding]] | None = None
    """What is said of the runs; where it is not given, of each contrast that the first arm is better."""
    pictures: Callable[[Results], Iterable[tuple[str, Figure]]] = nothing
    """Names and figures, drawn from finished runs."""
    curves: tuple[str, ...] = ()
    """Arms whose curves over training are drawn; all of them where none is named."""
    spaces: tuple[str, ...] = ()
    """Arms whose embedding spaces are set side by side."""
    source: str = ""
    """What `open_question` found it by."""


def varied(base: TrainConfig, **parts: dict[str, Any]) -> TrainConfig:
    """A configuration with some settings replaced, by part: `varied(base, model={"topology": "sphere(512)"})`.

    Args:
        parts: for `model`, `arch`, `temperature`, `data`, `loss` or `optim` the settings that are others.

    Examples:
        >>> from oblique_clip.config import TrainConfig
        >>> from oblique_clip.sweep.question import varied
        >>> config = varied(TrainConfig(), data={"caption_noise": 0.2}, temperature={"init_scale": 1.0})
        >>> config.data.caption_noise, config.model.temperature.init_scale
        (0.2, 1.0)
    """
    model = base.model
    inner = {name: parts.pop(name) for name in ("arch", "temperature") if name in parts}
    model = replace(model, **{name: replace(getattr(model, name), **values) for name, values in inner.items()})
    model = replace(model, **parts.pop("model", {}))
    changed = {name: replace(getattr(base, name), **values) for name, values in parts.items()}
    return replace(base, model=model, **changed)


def shipped_questions() -> tuple[str, ...]:
    """Names of the questions that come with the package.

    Examples:
        >>> from oblique_clip.sweep.question import shipped_questions
        >>> "topology" in shipped_questions()
        True
    """
    from .. import questions

    names = (module.name for module in pkgutil.iter_modules(questions.__path__))
    return tuple(sorted(name for name in names if name != "base"))


def open_question(name: str) -> Question:
    """A shipped question by its name, or one in a Python file by its path.

    Raises:
        UserError: for a name that is none, a file that cannot be run, or one without a `QUESTION`.

    Examples:
        >>> from oblique_clip.sweep.question import open_question
        >>> question = open_question("topology")
        >>> question.primary
        ('oblique-16', 'sphere')
        >>> open_question("topologie")
        Traceback (most recent call last):
            ...
        oblique_clip.errors.UserError: --preset takes ..., all, or a Python file, not 'topologie'
    """
    if name in shipped_questions():
        return replace(_question_in(importlib.import_module(f"..questions.{name}", __package__), name), source=name)
    path = Path(name)
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"--preset takes {', '.join(shipped_questions())}, all, or a Python file, not {name!r}")
    spec = importlib.util.spec_from_file_location(f"oblique_clip_question_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up there.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    return replace(_question_in(module, str(path)), source=str(path.resolve()))


def _question_in(module: Any, where: str) -> Question:
    question = getattr(module, "QUESTION", None)
    if not isinstance(question, Question):
        raise UserError(f"{where} has no QUESTION, which oblique_clip.sweep.question.Question would make")
    if mistake := next(_mistakes(question), None):
        raise UserError(f"{where}: {mistake}")
    return question


def _mistakes(question: Question) -> Iterator[str]:
    """What is wrong with a question, in the order in which it can be told."""
    if not question.arms or not all(isinstance(arm, Arm) for arm in question.arms):
        yield "arms has to be a tuple of one or more Arm"
        return
    names = [arm.name for arm in question.arms]
    unfit = [name for name in (question.name, *names) if not PLAIN.fullmatch(name)]
    yield from (f"{name!r} does not name a folder; letters, digits, '.', '_' and '-' do" for name in unfit)
    yield from (f"two arms are called {name}" for name in names if names.count(name) > 1)
    yield from (f"{arm.name} has {arm.seeds} seeds; it needs one or more" for arm in question.arms if arm.seeds < 1)
    if question.name in names:
        yield f"the question and an arm are both called {question.name}"
    pairs = (*question.contrasts, *([question.primary] if question.primary else []))
    others = [pair for pair in pairs if not isinstance(pair, tuple) or len(pair) != 2]
    yield from (f"{pair!r} is no contrast, which is a tuple of two arms" for pair in others)
    named = {"a contrast": sum(pairs, ()), "curves": question.curves, "spaces": question.spaces}
    for what, arms in named.items():
        yield from (f"{what} names {name}, which is no arm" for name in arms if name not in names)
