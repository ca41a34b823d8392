"""``jaxgen ddpm ...`` is ``python -m experiments.ddpm ...``, from anywhere.

jaxgen                       # what there is
jaxgen ddpm --data swissroll # an experiment, with its verbs and options
jaxgen --version
"""

from __future__ import annotations

import ast
import runpy
import sys
from collections.abc import Sequence

import jaxgen
from jaxgen import starting


def main(argv: Sequence[str] | None = None) -> int:
    """Runs an experiment by its name; returns the exit status."""
    name, *words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    package, place = starting.experiments_folder()
    files = {path.stem: path for path in sorted(place.glob("*.py")) if path.stem[0] != "_"}
    if name == "--version":
        print(f"jaxgen {jaxgen.__version__}")
    elif name in ("--help", "-h"):
        print("usage: jaxgen NAME [train|sample|evaluate|diagnose] [options]\n")
        for stem, path in files.items():
            about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            print(f"  {stem:<17}{about.splitlines()[0]}")
        print("\njaxgen NAME --help tells the options of each.")
    elif name not in files:
        from jaxgen.data.records import did_you_mean  # which imports NumPy and JAX

        print(f"error: unknown experiment '{name}'{did_you_mean(name, files)}", file=sys.stderr)
        return 2
    else:
        sys.argv = [f"jaxgen {name}", *words]
        starting.begin(name)
        runpy.run_module(f"{package}.{name}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
