"""Studies: tables and pictures over runs, which are trained first where they are lacking."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxgen.data.records import DataSet, Image
from jaxgen.evaluation.report import Number
from jaxgen.runner import folders
from jaxgen.runner.building import check_kind, load_data
from jaxgen.runner.commands import (
    VERBS,
    draw_pictures,
    early,
    fitting_options,
    parse,
    prepare_jax,
    read_options,
    report,
    results_written_or_told,
    take_verb,
)
from jaxgen.runner.fitting import train
from jaxgen.runner.options import Run, check_ranges, options_of, values_of
from jaxgen.runner.system import Experiment, Mistake, preset_for
from jaxgen.runner.trained import Trained, open_run
from jaxgen.training.checkpoints import Checkpoints, NoCheckpoint
from jaxgen.training.logging import console

Runs = dict[str, Trained]
LONGEST = 150  # letters of the runs in the name of a folder, of which file systems take 255


@dataclass(frozen=True)
class Need:
    """A run that a study looks at: of which experiment, and with what options."""

    experiment: Experiment
    options: str = ""  # as on the command line, over the preset of the data


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

    ``presets`` are as those of an experiment; a config has at least ``data: Data``, and says which
    runs it ``needs``. Pictures and measures take these by their names, and the config; pictures
    also the directory that they are to be written to.
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
            f"{self.about}\n\nUsage: [{'|'.join(VERBS)}] [options]; without a verb, all in order."
        )
        config, which = read_options(
            default, Which(), argv, f"python -m experiments.{self.name}", about
        )
        check_ranges(config)
        prepare_jax()
        folders.check_out(which.out)
        needs = self.needs(config)
        if which.dir and len(which.dir) != len(needs):
            raise Mistake(f"{self.name} looks at {len(needs)} runs: {', '.join(needs)}.")
        console.print(f"jaxgen {self.name}: {', '.join(verbs)}")
        runs = self.open(config, which)
        if verbs == ("train",):
            return
        looked_at = together([run.directory.name for run in runs.values()])
        step, usual = max(run.step for run in runs.values()), values_of(default)
        own = [o for o in options_of(config) if o.name not in values_of(config.data)]
        out = which.out or Path("runs") / f"{self.name}-of-{looked_at}"
        out = out / folders.results_name(step, own, usual)
        with results_written_or_told(out):
            out.mkdir(parents=True, exist_ok=True)
            console.print(f"results in {out}")
            about = {"runs": {name: str(run.directory) for name, run in runs.items()}}
            folders.write_json(out / "study.json", about | dataclasses.asdict(config))
            if "sample" in verbs:
                draw_pictures(self.pictures, runs, config, out)
            if "evaluate" in verbs:
                numbers = [n for measure in self.measures for n in measure(runs, config)]
                report(numbers, out / "report.json")

    def open(self, config: Any, which: Which) -> Runs:
        """The runs, those that are lacking once they are trained."""
        runs: Runs = {}
        loaded: dict[Any, DataSet] = {}

        def load(experiment: Experiment, options: Any) -> DataSet:
            loaded[options] = loaded.get(options) or load_data(experiment, options)
            return loaded[options]

        for i, (name, need) in enumerate(self.needs(config).items()):
            directory = which.dir[i] if which.dir else ready(need, config.data, which.train, load)
            own = folders.read_config(directory, need.experiment).data
            data = load(need.experiment, own)
            check_kind(self.name, self.kinds, data)
            how = {"experiment": need.experiment, "data": data}
            trained = open_run(directory, which.checkpoint, **how)
            sampling = getattr(config, "sampling", None)
            runs[name] = replace(trained, sampling=sampling) if sampling else trained
        return runs


def together(names: list[str]) -> str:
    """One name for runs that are looked at together, short enough for a folder's."""
    whole = "+".join(names)
    if len(whole) <= LONGEST:
        return whole
    return f"{len(names)}-runs-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def ready(need: Need, data: Any, words: str, load: Callable[[Experiment, Any], DataSet]) -> Path:
    """The directory of the newest run that fits the need, trained to its end."""
    try:
        given = shlex.split(words)
    except ValueError as error:
        raise Mistake(f"--train {words} cannot be read ({error}).") from error
    argv = ["train", "--data", data.data, *shlex.split(need.options), *given]
    _, config, _ = parse(need.experiment, argv)
    check_ranges(config)
    if data.data not in need.experiment.presets:
        config = fitting_options(need.experiment, argv, config, load(need.experiment, data))
    config = replace(config, data=data)
    for directory in reversed(folders.existing(need.experiment.name, data.data)):
        try:
            found = folders.read_config(directory, need.experiment)
        except (Mistake, NoCheckpoint):  # of another version, or not begun
            continue
        same = found.train.steps == config.train.steps
        if same and not folders.differences(found, config):
            with Checkpoints(directory / "checkpoints") as checkpoints:
                if checkpoints.steps()[-1:] >= [config.train.steps]:
                    return directory
            break
    else:
        directory = folders.new_directory(need.experiment.name, data.data)
    console.print(f"{need.experiment.name} is trained first, in {directory}")
    resume = folders.is_run(directory)
    train(need.experiment, config, load(need.experiment, data), directory, Run(resume=resume))
    return directory
