import importlib
import shlex

import pytest
from processes import COMMON, TINY

from jaxgen.runner import main


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs an experiment in a tiny form, in an empty directory: (status, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def run(name, *words, tiny=True):
        module = importlib.import_module(f"experiments.{name}")
        experiment = getattr(module, "EXPERIMENT", None) or module.STUDY
        argv = shlex.split(" ".join(map(str, words)))
        if tiny and name in TINY:  # before the options given, which win
            at = 0 if not argv or argv[0].startswith("-") else 1
            argv[at:at] = shlex.split(f"{TINY[name]} {COMMON}")
        try:
            status = main(experiment, argv)
        except SystemExit as stop:  # from the parser of options
            status = stop.code
        out = capsys.readouterr()
        return status, out.out, out.err

    return run
