"""All experiments and studies, by the names of their modules."""

import importlib
from pathlib import Path

FOUND = {}
for path in sorted((Path(__file__).parents[1] / "experiments").glob("*.py")):
    module = importlib.import_module(f"experiments.{path.stem}")
    experiment = getattr(module, "EXPERIMENT", None) or getattr(module, "STUDY", None)
    if experiment:
        FOUND[path.stem] = experiment
