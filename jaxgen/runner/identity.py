"""Which experiment a run is of, and how it is found again without executing what a run names.

A run records the module and the attribute of its experiment. They are looked up among the modules
that the running program has imported, and among jaxgen's own experiments; a run directory that came
from somebody else can name no code of its own.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from jaxgen.runner.system import Experiment, Mistake
from jaxgen.starting import PACKAGES, experiments_folder


class Identity(NamedTuple):
    """Where an experiment is: ``EXPERIMENT`` of ``experiments.ddpm``."""

    module: str
    attribute: str | None  # None where no module holds it

    def __str__(self) -> str:
        return f"{self.attribute} of {self.module}" if self.attribute else "in no module"


def module_name(module: ModuleType) -> str:
    """A module's own name: of a script that runs that of its file, and of jaxgen's experiments the
    same wherever they are installed."""
    name = module.__name__
    if name == "__main__":
        spec, file = getattr(module, "__spec__", None), getattr(module, "__file__", None)
        name = spec.name if spec else Path(file).stem if file else name
    return name.removeprefix("jaxgen.") if name.startswith("jaxgen.experiments.") else name


def identity_of(experiment: Any) -> Identity:
    """Where an experiment or a study is, if a module that is imported holds it."""
    made_by = getattr(experiment, "build", None) or getattr(experiment, "needs", None)
    home = getattr(made_by, "__module__", "__main__")
    for module in _imported(home, "__main__"):
        for attribute, value in list(vars(module).items()):
            if value is experiment:
                return Identity(module_name(module), attribute)
    return Identity(module_name(sys.modules[home]), None)


def _imported(*first: str) -> Iterator[ModuleType]:
    names = dict.fromkeys([*(name for name in first if name in sys.modules), *sys.modules])
    for name in names:
        module = sys.modules.get(name)
        if isinstance(module, ModuleType):
            yield module


def find_experiment(name: str, where: Identity) -> Experiment:
    """The experiment of that name that is there.

    Raises:
      Mistake: where the running program has not imported it, and it is none of jaxgen's own.
    """
    for module in candidates(where):
        found = vars(module).get(str(where.attribute))
        if isinstance(found, Experiment) and found.name == name:
            return found
    raise Mistake(
        f"the experiment '{name}' ({where}) is neither one of jaxgen's nor imported here: import "
        "it first, or give it as experiment=; nothing is executed that a run's folder names."
    )


def candidates(where: Identity) -> Iterator[ModuleType]:
    """Modules that may hold it: those that the program has imported under that name, jaxgen's own,
    and those whose last name it is, as a script may be imported as a part of a package."""
    stem = where.module.rpartition(".")[2]
    yield from (m for m in _imported("__main__") if module_name(m) == where.module)
    if is_own(where):
        yield importlib.import_module(f"{experiments_folder()[0]}.{stem}")
    yield from (m for m in _imported("__main__") if module_name(m).rpartition(".")[2] == stem)


def is_own(where: Identity) -> bool:
    """Whether that is one of the files of jaxgen's experiments."""
    package, _, stem = where.module.rpartition(".")
    return (
        package in PACKAGES
        and stem.isidentifier()
        and (experiments_folder()[1] / f"{stem}.py").is_file()
    )


def command_of(where: Identity) -> str:
    """The words that run an experiment or a study, for its help."""
    if is_own(where) and "experiments" not in sys.modules:  # as whom this program has them
        return f"jaxgen {where.module.rpartition('.')[2]}"
    main = sys.modules["__main__"]
    script = getattr(main, "__spec__", None) is None and getattr(main, "__file__", None)
    if script and module_name(main) == where.module:
        return f"python {Path(sys.argv[0])}"
    return f"python -m {where.module}"
