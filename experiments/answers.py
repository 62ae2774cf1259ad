"""Write what the committed runs answer into the folders of the questions, and their tables into README files.

    python -m experiments.answers

Each README.md of a question has its tables between `<!-- answer -->` comments, the project's has the verdicts of all.
Run it after `oblique-clip ablate --preset all --out experiments/runs`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from oblique_clip.cli import run_script
from oblique_clip.sweep.answer import (
    Table,
    costs,
    differences,
    means,
    primary_measures,
    spaces,
    unfinished,
    verdicts,
    write_files,
)
from oblique_clip.sweep.question import open_question
from oblique_clip.sweep.results import HEADLINES, MEASURES, Results, folder_of, is_done

HERE = Path(__file__).parent
RUNS = HERE / "runs"
QUESTIONS = ("topology", "temperature", "noise", "equilibrium", "distance", "tokens", "nested", "scale")
SHOWN = (*MEASURES[:3], MEASURES[9], MEASURES[13], MEASURES[14])
BLOCK = re.compile(r"(<!-- answer -->\n).*?(<!-- /answer -->)", re.S)


def answer_of(results: Results, drawn: list[Path]) -> str:
    """The block of a question's README: verdicts, tables and pictures."""
    question = results.question
    missing = unfinished(results)
    note = [f"**{missing} of {sum(arm.seeds for arm in question.arms)} runs are not finished.**"] if missing else []
    parts = [
        verdicts(results), primary_measures(results), means(results, SHOWN), differences(results, HEADLINES),
        costs(results), spaces(results),
    ]  # fmt: skip
    shown = [f"**{part.title}**\n\n{part.markdown()}" for part in parts if part.rows]
    return "\n\n".join([*note, *shown, *(f"![{path.stem}]({path.name})" for path in drawn)]) + "\n"


def all_verdicts(runs: Path) -> str:
    """The block of the project's README: every claim and its verdict."""
    rows = []
    every = [Results(open_question(name), runs) for name in QUESTIONS]
    # Questions share arms.
    asked = {(arm.name, seed) for results in every for arm in results.question.arms for seed in range(arm.seeds)}
    done = {place for place in asked if is_done(folder_of(runs, *place))}
    note = f"**{len(done)} of {len(asked)} runs are finished**; the verdicts are of those.\n\n" if done < asked else ""
    for name, results in zip(QUESTIONS, every, strict=True):
        if results.begun:
            page = f"[{name}](experiments/{name}/README.md)"
            rows += [(page, claim, verdict) for claim, verdict, _ in verdicts(results).rows]
    return note + Table("", ("question", "claim", "verdict"), tuple(rows)).markdown() + "\n"


def put(path: Path, text: str) -> None:
    """Replace the block of a README."""
    before = path.read_text(encoding="utf-8")
    after, count = BLOCK.subn(lambda found: found[1] + text + found[2], before)
    if count != 1:
        raise ValueError(f"{path} has {count} answer blocks, not one")
    path.write_text(after, encoding="utf-8")


@dataclass(frozen=True)
class Answers:
    """Write what finished runs answer into experiments/ and the README."""

    runs: Annotated[Path, tyro.conf.arg(help_behavior_hint="(default: experiments/runs)")] = RUNS
    """Folder of the runs."""


def main(command: Answers) -> None:
    """Write every file."""
    for name in QUESTIONS:
        results = Results(open_question(name), command.runs)
        known = results.begun
        text = answer_of(results, write_files(results, HERE / name)) if known else "No run of it is finished.\n"
        put(HERE / name / "README.md", text)
    put(HERE.parent / "README.md", all_verdicts(command.runs))


if __name__ == "__main__":
    run_script(main, Answers, "python -m experiments.answers")
