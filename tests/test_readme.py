"""The README's code runs as it stands, where a user would run it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from oblique_clip.cli import main
from oblique_clip.data.emoji import load_emoji
from oblique_clip.interop.hub import save_pretrained

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the README speaks of: a picture, a folder of photos and a model of one's own."""
    monkeypatch.chdir(tmp_path)
    emoji = load_emoji()
    (tmp_path / "photos").mkdir()
    for place, row in enumerate(emoji.rows[:6]):
        Image.fromarray(emoji.pixels[row]).save(tmp_path / "photos" / f"{place}.png")
    Image.fromarray(emoji.pixels[0]).save(tmp_path / "picture.png")
    save_pretrained("tiny-oblique", tmp_path / "runs" / "mine")
    return tmp_path


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_block_of_python_runs(block: str, here: Path) -> None:
    if "lancedb" in block:
        pytest.importorskip("lancedb")
        (line,) = re.findall(r"^oblique-clip (embed .*?) && ", README, re.M)
        assert main(shlex.split(line)) == 0
        exec(block, {})  # and once more, over what is there
        block = block.replace("pictures.search", "found = pictures.search")
    names: dict[str, object] = {}
    exec(block, names)
    if "lancedb" in block:
        assert names["found"].num_rows == 5  # type: ignore[attr-defined]


def test_embed_and_search_as_the_readme_says(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = re.findall(r"^oblique-clip (embed .*) && oblique-clip (search .*)$", README, re.M)
    for command in line:
        assert main(shlex.split(command)) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "6 pictures on oblique(16,8): points.parquet" and said[1] == "a red apple"
    assert sorted(text.split()[2] for text in said[2:]) == [f"{i}.png" for i in range(6)]
