"""The layers of the house: imports run one way, public APIs only, no framework that is barred."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "jaxgen").rglob("*.py")) + sorted((ROOT / "experiments").glob("*.py"))
LAYERS = {  # what each may import of the project
    "jaxgen.distributions": set(),
    "jaxgen.bijections": set(),
    "jaxgen.posteriors": {"distributions"},
    "jaxgen.losses": {"distributions", "posteriors", "diffusion"},
    "jaxgen.diffusion": {"distributions", "decoding"},
    "jaxgen.models": {"distributions", "posteriors", "bijections"},
    "jaxgen.training": set(),
    "jaxgen.data": {"training"},  # for its progress: what takes long shows how far it is
    "jaxgen.evaluation": {"data", "training", "models", "diffusion", "losses", "distributions"},
    "jaxgen.plotting": {"data"},
    "jaxgen.runner": {"data", "training", "evaluation", "plotting", "starting"},
    "jaxgen.systems": {
        "runner",
        "data",
        "evaluation",
        "models",
        "losses",
        "diffusion",
        "distributions",
        "posteriors",
        "decoding",
        "training",
        "plotting",
    },
    "jaxgen.decoding": set(),
}


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name_of(path).rpartition(".")[0] if node.level else ""
            module = ".".join(part for part in (package, node.module) if part)
            yield from {f"{module}.{alias.name}" for alias in node.names} & NAMES or {module}


NAMES = {name_of(path) for path in MODULES}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_one_way(path):
    name = name_of(path)
    layer = ".".join(name.split(".")[:2])
    barred = ["jax._src", "tensorflow_probability", "distrax"]
    if name != "experiments.benchmark":  # which compares with it
        barred.append("torch")
    for imported in imports(path):
        assert not imported.startswith(tuple(barred))
        if name.startswith("jaxgen"):
            assert not imported.startswith("experiments")
            if imported.startswith("jaxgen.") and layer in LAYERS:
                other = imported.split(".")[1]
                assert other in LAYERS[layer] | {"files", layer.split(".")[1]}, (
                    f"{name} imports {imported}"
                )


def test_the_top_level_is_what_it_should_be():
    visible = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")}
    expected = {"pyproject.toml", "README.md", "LICENSE", "jaxgen", "experiments", "tests"}
    expected |= {"notebooks"}
    extra = visible - expected - {"runs", "build", "jaxgen.egg-info", "shared"}
    assert expected <= visible
    assert not extra


def test_no_import_goes_in_a_circle():
    """Following imports from any module never comes back to it."""
    known = {name_of(path): set(imports(path)) for path in MODULES}
    graph = {name: {i for i in found if i in known and i != name} for name, found in known.items()}
    done = set()
    while len(done) < len(graph):
        free = {name for name, found in graph.items() if name not in done and found <= done}
        assert free, f"a circle among {sorted(graph.keys() - done)}"
        done |= free


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.py")), ids=name_of)
def test_no_function_of_an_experiment_is_long(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and path.stem != "benchmark":
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"
