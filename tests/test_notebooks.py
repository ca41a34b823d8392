"""The notebooks run from top to bottom, draw their pictures, and are stored without outputs."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ARGV = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]


class ThisInterpreter(KernelSpecManager):
    """Offers the interpreter of the tests as every kernel, whichever are installed."""

    def get_kernel_spec(self, kernel_name):
        return KernelSpec(argv=ARGV, display_name=kernel_name, language="python")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(cell):
    return [o for o in cell.outputs if "image/png" in o.get("data", {})]


def test_there_is_a_notebook_for_each_family():
    assert {path.stem for path in NOTEBOOKS} >= {"vae", "gan", "ddpm"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None


QUICK = ("ddpm",)  # the others run with `pytest -m slow`


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=() if p.stem in QUICK else pytest.mark.slow) for p in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_runs_and_draws(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {
        "JAXGEN_TINY": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(paths),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    client = NotebookClient(
        notebook,
        km=KernelManager(kernel_spec_manager=ThisInterpreter()),
        timeout=240,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute(env=env)  # raises CellExecutionError, with the cell, where one fails

    for cell in code_cells(notebook):
        drawn = cell.source.count("plt.show()") + cell.source.count("\nshow(")
        defined = cell.source.count("def show(")
        assert len(pictures(cell)) == drawn - defined, cell.source
    assert sum(len(pictures(cell)) for cell in code_cells(notebook)) >= 3
