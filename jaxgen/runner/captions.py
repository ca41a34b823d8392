"""Titles and captions of what a run draws, kept beside its pictures in ``captions.json``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxgen.files import replacing


class Plot(NamedTuple):
    """A picture with its title and caption, for a function that draws to answer; of a path alone
    they are the file's name, and what the function says of itself."""

    path: Path
    title: str
    caption: str


def caption_of(picture: Callable[..., Any]) -> str:
    """The first sentences of what a function says of itself, on one line."""
    text = inspect.getdoc(getattr(picture, "func", picture)) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("`", "")


def plots_of(picture: Callable[..., Any], files: Any) -> list[Plot]:
    """What a function answered, a path or a plot or several, each with its title and caption."""
    several: Iterable[Any] = [files] if isinstance(files, (Path, Plot)) else files
    title = lambda path: path.stem.replace("_", " ").replace("-", " ")  # noqa: E731
    about = caption_of(picture)
    return [f if isinstance(f, Plot) else Plot(f, title(f), about) for f in several]


def write_captions(plots: Sequence[Plot]) -> None:
    """Writes titles and captions into the folder of each picture, beside those that are there."""
    for folder in {plot.path.parent for plot in plots}:
        path = folder / "captions.json"
        try:
            known = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            known = {}
        for plot in plots:
            if plot.path.parent == folder:
                known[plot.path.name] = {"title": plot.title, "caption": plot.caption}
        with replacing(path) as file:
            file.write((json.dumps(known, indent=2, ensure_ascii=False) + "\n").encode())
