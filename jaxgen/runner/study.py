"""Studies: tables and pictures over runs, which are trained first where they are lacking."""

from __future__ import annotations

import itertools
import shlex
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxgen.data.records import Image
from jaxgen.evaluation.report import Number
from jaxgen.runner import folders, sweeps
from jaxgen.runner.building import Load, check_kind, loading_once
from jaxgen.runner.commands import draw_pictures, prepare_jax, report, results_written_or_told
from jaxgen.runner.identity import command_of, identity_of
from jaxgen.runner.needs import Need, ready
from jaxgen.runner.options import Data, Train, check_ranges, flag_of, options_of, values_of
from jaxgen.runner.parsing import VERBS, drawn_by, early, read_options, take_verb
from jaxgen.runner.system import Mistake, preset_for
from jaxgen.runner.trained import Trained, open_run
from jaxgen.training.logging import console

Runs = dict[str, Trained]
TRAINING = {flag_of(name) for name in values_of(Train())}


@dataclass(frozen=True)
class Which:
    """Which runs."""

    # The runs to look at, one for each that is needed (default: the newest that fits; one that is
    # lacking is trained first).
    dir: tuple[Path, ...] = ()
    train: str = ""  # Options for the runs that are trained: --train='--steps 4000'.
    out: Path | None = None  # Where results go (default: runs/STUDY-of-RUN).
    checkpoint: str = "last"  # Which checkpoint to look at: last, best or a step.


@dataclass(frozen=True, eq=False)
class Study:
    """What is drawn and measured of several runs. It trains nothing itself.

    ``presets`` are as those of an experiment; a config says which runs it ``needs``, and has at
    least ``data: Data`` unless each of these names its own. Pictures and measures take the runs by
    their names, and the config; pictures also the directory that they are to be written to.
    """

    name: str
    about: str | None
    presets: Mapping[str, Any]
    needs: Callable[[Any], Mapping[str, Need]]
    pictures: tuple[Callable[[Runs, Any, Path], Any], ...] = ()
    measures: tuple[Callable[[Runs, Any], list[Number]], ...] = ()
    kinds: tuple[type, ...] = (Image,)  # of data that it takes

    def run(self, argv: list[str]) -> None:
        """Trains what is lacking, draws and measures, as the verb and the options say."""
        verbs, argv = take_verb(argv, VERBS)
        first, _ = early(argv, "--data")
        default = preset_for(self.presets, first.data)
        about = (
            f"{self.about}\n\nUsage: [{'|'.join(VERBS)}] [options]; without a verb, all in order. "
            "Runs that are lacking are trained first, whatever the verb: those that were trained "
            "with other options than a preset's are found again by the same --train.\n\n"
            f"{drawn_by(self.pictures)}"
        )
        prog = command_of(identity_of(self))
        check_words(argv)
        config, which = read_options(default, Which(), argv, prog, about)
        check_ranges(config)
        prepare_jax()
        folders.check_out(which.out)
        folders.check_checkpoint(which.checkpoint)
        needs = self.needs(config)
        if which.dir and len(which.dir) != len(needs):
            raise Mistake(
                f"{self.name} looks at {len(needs)} runs ({', '.join(needs)}): name as many after "
                "--dir, or leave it out (--out says where results go)."
            )
        console.print(f"jaxgen {self.name}: {', '.join(verbs)}")
        load = loading_once()
        found = self.find(config, which, load)
        if verbs == ("train",):
            return
        runs = self.open(found, config, which, load)
        looked_at = folders.together([directory.name for directory, _ in found.values()])
        step, usual = max(run.step for run in runs.values()), values_of(default)
        own = [o for o in options_of(config) if o.name not in values_of(Data())]
        out = which.out or Path("runs") / f"{self.name}-of-{looked_at}"
        out = out / folders.results_name(step, own, usual)
        with results_written_or_told(out):
            out.mkdir(parents=True, exist_ok=True)
            console.print(f"results in {out}")
            about = {"runs": {name: str(run.directory) for name, run in runs.items()}}
            folders.write_json(out / "study.json", about | folders.as_json(config, out))
            if "sample" in verbs:
                draw_pictures(self.pictures, runs, config, out)
            if "evaluate" in verbs:
                numbers = [n for measure in self.measures for n in measure(runs, config)]
                report(numbers, out / "report.json", list(runs.values()))

    def find(self, config: Any, which: Which, load: Load) -> dict[str, tuple[Path, Any]]:
        """The directory of each run or sweep, and how it is measured where its own options do not
        say; those that are lacking are trained."""
        needs = self.needs(config)
        words = training_words(which.train, list(needs.values()))
        found: dict[str, tuple[Path, Any]] = {}
        named = dict(zip(needs, which.dir, strict=False))
        for i, (name, need) in enumerate(in_order(needs).items()):
            data: Any = need.data or config.data
            if named:
                data = folders.read_config(named[name], need.experiment).data
            check_kind(self.name, self.kinds, load(need.experiment, data))
            if named:
                found[name] = named[name], None
            else:
                places = {other: shlex.quote(str(place)) for other, (place, _) in found.items()}
                need = replace(need, data=data, options=filled(need.options, places))
                found[name] = ready(need, words, load, f"{name}, {i + 1} of {len(needs)}")
        return {name: found[name] for name in needs}

    def open(
        self, found: Mapping[str, tuple[Path, Any]], config: Any, which: Which, load: Load
    ) -> Runs:
        """The runs, and every member of a sweep."""
        runs: Runs = {}
        sampling = getattr(config, "sampling", None)
        for name, need in self.needs(config).items():
            directory, measured = found[name]
            own = folders.read_config(directory, need.experiment)
            how = {"experiment": need.experiment, "data": load(need.experiment, own.data)}
            for part in [f"/{member.name}" for member in sweeps.members(own)] or [""]:
                options = None if part else measured  # a member has its own
                place = f"{directory}{part}"
                trained = open_run(place, which.checkpoint, config=options, load=load, **how)
                runs[name + part] = replace(trained, sampling=sampling) if sampling else trained
        return runs


def in_order(needs: Mapping[str, Need]) -> dict[str, Need]:
    """Needs, each after those that its options refer to, as ``--base {coarse}``.

    Raises:
      ValueError: for one that refers to itself, or to none.
    """
    ordered: dict[str, Need] = {}
    while len(ordered) < len(needs):
        free = {
            name: need
            for name, need in needs.items()
            if name not in ordered and referred_to(need.options) <= ordered.keys()
        }
        if not free:
            left = ", ".join(needs.keys() - ordered.keys())
            raise ValueError(f"the needs {left} refer to each other, or to one that is not there.")
        ordered |= free
    return ordered


def referred_to(options: str) -> set[str]:
    """The names in braces among options."""
    return {name for _, name, _, _ in string.Formatter().parse(options) if name}


def filled(options: str, places: Mapping[str, str]) -> str:
    """Options with the directories of the runs that they refer to."""
    return options.format_map(places) if referred_to(options) else options


def check_words(argv: list[str]) -> None:
    """Refuses options of the runs that are not given as those.

    Raises:
      Mistake: saying how they are given.
    """
    for i, word in enumerate(argv):
        if word.partition("=")[0] in TRAINING:
            raise Mistake(f"{word} is for the runs of a study: write --train='{word} ...'.")
        if word == "--train" and argv[i + 1 : i + 2] and argv[i + 1].startswith("-"):
            raise Mistake(f"options after --train need a sign: write --train='{argv[i + 1]}'.")


def training_words(words: str, needs: Sequence[Need]) -> list[str]:
    """What ``--train`` says, word by word.

    Raises:
      Mistake: if it cannot be read, or says what a study or the options of its runs say.
    """
    try:
        given = shlex.split(words)
    except ValueError as error:
        raise Mistake(f"--train='{words}' cannot be read ({error}).") from error
    own = {flag_of(name) for name in values_of(Data()) | values_of(Which())}
    own |= {"--resume", "--preset"}
    apart = telling_apart(needs)
    for flag in options_in(given):
        if flag in own:
            raise Mistake(f"--train='{words}' has {flag}, which is an option of the study itself.")
        if flag in apart:
            raise Mistake(
                f"--train='{words}' has {flag}, which tells the runs apart: leave it out."
            )
    return given


def telling_apart(needs: Sequence[Need]) -> set[str]:
    """The options that two runs of one experiment differ in, but for how they are trained."""
    told = [(need.experiment.name, options_in(shlex.split(need.options))) for need in needs]
    pairs = [(a, b) for (name, a), (other, b) in itertools.product(told, told) if name == other]
    apart = {flag for ours, theirs in pairs for flag in ours if ours[flag] != theirs.get(flag)}
    return apart - (TRAINING - {"--seed"})


def options_in(words: Sequence[str]) -> dict[str, str]:
    """The options among words, each with what it is set to."""
    options: dict[str, str] = {}
    flag = ""
    for word in words:
        if word.startswith("--"):
            flag, _, value = word.partition("=")
            options[flag] = value
        elif flag:
            options[flag] += f" {word}"
    return options
