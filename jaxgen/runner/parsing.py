"""The words of a command, read into its verbs and options."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import tyro

from jaxgen.data.records import DataSet, Image, did_you_mean
from jaxgen.runner import folders
from jaxgen.runner.building import build
from jaxgen.runner.captions import caption_of
from jaxgen.runner.identity import command_of, identity_of
from jaxgen.runner.options import Run, carried
from jaxgen.runner.references import RunReference, check_declared, merged, reference_from
from jaxgen.runner.system import Experiment, Mistake, choose
from jaxgen.training.logging import console

VERBS = ("train", "sample", "evaluate")
ALONE = ("diagnose",)  # verbs that are only run when asked for


def fitting_options(
    experiment: Experiment,
    argv: list[str],
    config: Any,
    data: DataSet,
    resolve: Callable[[Any], Any],
) -> Any:
    """The options of the largest preset that images carry and that fits them, if none is named.

    ``resolve`` opens the runs that a config refers to.
    """
    named = early(argv, "--preset")[0].preset or config.data.data in experiment.presets
    if named or not isinstance(data.kind, Image):
        return resolve(config)
    first, *larger = carried(experiment.presets, data)
    for name in reversed(larger):
        config = resolve(parse(experiment, argv, name)[1])
        try:
            build(experiment, config, data)
            break
        except Mistake:  # for networks of other sizes
            continue
    else:
        name, config = first, resolve(parse(experiment, argv, first)[1])
    console.print(f"options: those for {name}, by the size and number of images, or --preset")
    return config


def parse(
    experiment: Experiment, argv: list[str], preset: str | None = None
) -> tuple[tuple[str, ...], Any, Run]:
    """Reads the verb, the preset and the options into (verbs, config, run).

    The preset is ``--preset``, else that of the argument, else the one named as ``--data``, else
    the first; where a run exists and is not begun anew, its own config takes the preset's place.
    """
    verbs, argv = take_verb(argv, VERBS, ALONE)
    first, _ = early(argv, "--data", "--dir")
    of, argv = early(argv, "--preset")
    if first.dir == "":
        raise Mistake("--dir is empty: name a directory, or leave it out.")
    if of.preset is not None:
        choose("preset", of.preset, experiment.presets)
    name = of.preset or preset or first.data or experiment.default.data.data
    default = experiment.preset(name)
    if "train" not in verbs or "--resume" in argv:
        known = folders.existing(experiment.name, first.data or default.data.data)
        known = [Path(first.dir)] if first.dir else known
        if known and folders.is_run(known[-1]):
            default = folders.read_config(known[-1], experiment)
    description = (
        f"{experiment.about}\n\n"
        f"Usage: [{'|'.join(VERBS + ALONE)}] [options]; without a verb, the first three in order. "
        f"--preset NAME starts from the options for {', '.join(experiment.presets)} (default: the "
        f"one named as --data).\n\n{drawn_by(experiment.pictures)}"
    )
    prog = command_of(identity_of(experiment))
    config, run = read_options(default, Run(), argv, prog, description)
    return verbs, config, run


def drawn_by(pictures: Sequence[Callable[..., Any]]) -> str:
    """What is drawn, a line a picture: the first sentences of what each says of itself."""
    lines = [caption_of(picture) for picture in pictures]
    return "\n".join(["It draws:", *(f"    {line}" for line in lines if line)])


REFERENCES = tyro.constructors.ConstructorRegistry()


@REFERENCES.primitive_rule
def _reference(info: Any) -> Any:
    """How a run is named: by its directory, and which of its checkpoints."""
    if info.type is not RunReference:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="DIR[@STEP]",
        instance_from_str=lambda words: reference_from(words[0]),
        is_instance=lambda value: isinstance(value, RunReference),
        str_from_instance=lambda value: [str(value)],
    )


def read_options(
    default: Any, run: Any, argv: list[str], prog: str, description: str
) -> tuple[Any, Any]:
    """The config and what goes with it, each option by its own name, without its section's."""
    options = dataclasses.make_dataclass(
        "Options",
        [
            ("config", tyro.conf.OmitArgPrefixes[type(default)], field(default=default)),
            ("run", tyro.conf.OmitArgPrefixes[type(run)], field(default=run)),
        ],
    )
    # lines of examples stay lines
    description = re.sub(r"^python ", "    python ", description, flags=re.MULTILINE)
    check_declared(type(default))
    chosen: Any = tyro.cli(
        options, args=argv, prog=prog, description=description, registry=REFERENCES
    )
    return merged(chosen.config, default), chosen.run


def take_verb(
    argv: list[str], verbs: tuple[str, ...], alone: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], list[str]]:
    """The verbs to do, and the words after them; all of ``verbs`` where none is named."""
    if not argv or argv[0].startswith("-"):
        return verbs, argv
    if argv[0] not in verbs + alone:
        raise Mistake(f"unknown verb '{argv[0]}'{did_you_mean(argv[0], verbs + alone)}")
    if argv[1:2] and argv[1] in verbs + alone:
        raise Mistake(f"a command has one verb, or none for all: leave out {argv[0]} or {argv[1]}.")
    return (argv[0],), argv[1:]


def early(argv: list[str], *flags: str) -> tuple[argparse.Namespace, list[str]]:
    """The values of options that decide the defaults of others, and the words without them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in flags:
        parser.add_argument(flag, nargs="?", const="")
    return parser.parse_known_args(argv)
