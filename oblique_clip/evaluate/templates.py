"""Prompts of a class: named lists of templates, files of one's own, and a description file with sentences a class."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources, util
from pathlib import Path

from ..data.benchmarks import PEER, read_lines
from ..errors import UserError

Template = str | Callable[[str], str]
Prompts = Sequence[Template] | Mapping[str, Sequence[str]]
"""Templates for every class, or by class name the sentences that describe it."""
PLAIN: tuple[str, ...] = ("{}",)

# open_clip's functions of a name (Radford et al. 2021): the 80 of the paper, and the seven that did best together.
NAMED = {"openai": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}
CLIP_BENCHMARK = f"{PEER}:"
PLACE = re.compile(r"\{c?\}")


def prompts_of(names: Sequence[str], prompts: Prompts) -> list[list[str]]:
    """The prompts of each class: its sentences, or every template with its name in the place of `{}` or `{c}`.

    Raises:
        UserError: for a template without a place for the name, or a class without sentences.

    Examples:
        >>> from oblique_clip.evaluate.templates import prompts_of
        >>> prompts_of(["cat", "dog"], ["a photo of a {}", "a drawing of a {}"])
        [['a photo of a cat', 'a drawing of a cat'], ['a photo of a dog', 'a drawing of a dog']]
        >>> prompts_of(["cat"], {"cat": ["A cat has whiskers.", "A cat purrs."]})
        [['A cat has whiskers.', 'A cat purrs.']]
    """
    if isinstance(prompts, Mapping):
        return _described(names, prompts)
    for template in prompts:
        if isinstance(template, str) and not PLACE.search(template):
            raise UserError(f"template {template!r} has no {{}} for the class name")
    return [[_filled(template, name) for template in prompts] for name in names]


def _described(names: Sequence[str], sentences: Mapping[str, Sequence[str]]) -> list[list[str]]:
    # As in the names of folders, an underscore may stand for a space.
    known = {name.replace("_", " "): own for name, own in sentences.items() if own} | dict(sentences)
    without = [name for name in names if not known.get(name)]
    if without:
        near = difflib.get_close_matches(without[0], [name for name, own in known.items() if own], n=1)
        hint = f"; the nearest that there are is {near[0]!r}" if near else ""
        raise UserError(
            f"there are no descriptions for {len(without)} of {len(names)} classes, such as {without[0]!r}{hint}"
        )
    return [list(known[name]) for name in names]


def _filled(template: Template, name: str) -> str:
    # In one pass: braces in a name are letters.
    return PLACE.sub(lambda _: name, template) if isinstance(template, str) else template(name)


def read_templates(templates: tuple[str, ...]) -> tuple[Template, ...]:
    """What `--templates` says: templates as they stand, or one word for a list of them.

    The word is `openai` or `simple` (open_clip's lists), `clip_benchmark:NAME` (CLIP_benchmark's English list for its
    data set NAME), or a file with a template a line.

    Raises:
        UserError: for a list or a file that does not exist.

    Examples:
        >>> from oblique_clip.evaluate.templates import read_templates
        >>> read_templates(("a photo of a {}", "a drawing of a {}"))
        ('a photo of a {}', 'a drawing of a {}')
        >>> templates = read_templates(("openai",))
        >>> len(templates), templates[0]("dog")
        (80, 'a bad photo of a dog.')
    """
    if len(templates) != 1 or PLACE.search(templates[0]):
        return templates
    word = templates[0]
    if word in NAMED:
        import open_clip

        return tuple(getattr(open_clip, NAMED[word]))
    if word.startswith(CLIP_BENCHMARK):
        file, name = "en_zeroshot_classification_templates.json", word.removeprefix(CLIP_BENCHMARK)
        return tuple(from_clip_benchmark(file, name, "templates"))
    if not Path(word).is_file():
        raise UserError(
            f"template {word!r} has no {{}} for the class name, is no file, and none of {', '.join(NAMED)}, "
            f"{CLIP_BENCHMARK}NAME"
        )
    return tuple(read_lines(Path(word)))


def from_clip_benchmark(file: str, name: str, what: str) -> list[str]:
    """The texts of one data set in a JSON file that CLIP_benchmark comes with; `what` they are stands in messages.

    Raises:
        UserError: where CLIP_benchmark is not installed, or has none for the data set.
    """
    if util.find_spec(PEER) is None:
        raise UserError(f"{CLIP_BENCHMARK}{name} needs CLIP_benchmark: pip install 'oblique-clip[bench]'")
    table = resources.files(PEER).joinpath(f"datasets/{file}")
    lists: dict[str, list[str]] = json.loads(table.read_text(encoding="utf-8"))
    if name not in lists:
        raise UserError(f"CLIP_benchmark has no {what} for {name!r}; there is {', '.join(sorted(lists))}")
    return lists[name]


def read_descriptions(path: Path) -> dict[str, list[str]]:
    """Sentences by class name (CuPL: Pratt et al. 2023), from `{"cat": ["A cat is ...", ...], ...}`.

    CLIP_benchmark's `cupl_prompts.json` has such a table under the one name of its data set; that is read too.

    Raises:
        UserError: for a file that is missing or something else.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from oblique_clip.evaluate.templates import read_descriptions
        >>> path = Path(tempfile.mkdtemp()) / "descriptions.json"
        >>> _ = path.write_text('{"cat": ["A cat has whiskers.", "A cat purrs."]}')
        >>> read_descriptions(path)
        {'cat': ['A cat has whiskers.', 'A cat purrs.']}
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if isinstance(table, dict) and len(table) == 1 and isinstance(inner := next(iter(table.values())), dict):
        table = inner
    if not isinstance(table, dict) or not all(_are_texts(sentences) for sentences in table.values()):
        raise UserError(f"{path} must hold {{class name: [sentence, ...], ...}}")
    return table


def _are_texts(sentences: object) -> bool:
    return isinstance(sentences, list) and all(isinstance(sentence, str) for sentence in sentences)
