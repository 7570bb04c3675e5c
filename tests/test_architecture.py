"""The walls of the house: which module may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the top down: a module imports only from floors below its own.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"callbacks"},
    {"module"},
    {"inference"},
    {"forecaster"},
    {"merge"},
    {"stages"},
    {"layers"},
    {"sequence"},
    {"kernels"},
    {"cells"},
    {"optimizers", "pretrained"},
    {
        "lock",
        "losses",
        "metrics",
        "muon",
        "nowcasting",
        "render",
        "checkpoint",
        "weights",
        "patches",
        "attention",
    },
    {"allocator", "arguments", "bfloat16", "console", "convolution", "files", "pixels"},
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
MODULES = sorted(p for d in ("convlstm", "datamodules") for p in (ROOT / d).rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def floor(module):
    parts = module.split(".")
    return LEVEL[parts[1]] if len(parts) > 1 else None


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    package = name.split(".")[0]
    in_cli = name.startswith(("convlstm.cli", "convlstm.__main__"))
    for target in imported(path):
        top = target.split(".")[0]
        if {package, top} == {"convlstm", "datamodules"}:
            assert in_cli, f"{name} imports {target}"
        if top == package == "convlstm" and name != "convlstm" and floor(target) is not None:
            same = target.split(".")[1] == name.split(".")[1]  # within cli/ or callbacks/
            assert same or floor(target) > floor(name), f"{name} imports {target}"
        if top in ("pytorch_lightning", "lightning_fabric") and package == "convlstm":
            assert floor(name) <= LEVEL["module"], f"{name} imports Lightning"


def test_the_layer_comes_without_lightning():
    code = "import sys, convlstm; convlstm.ConvLSTM; assert 'pytorch_lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_exist_and_unknown_ones_do_not():
    import convlstm
    import datamodules

    for package in (convlstm, datamodules):
        for name in package.__all__:
            assert getattr(package, name).__name__ == name
    assert set(convlstm.__all__) <= set(dir(convlstm))
    with pytest.raises(AttributeError, match="Nothing"):
        convlstm.Nothing  # noqa: B018
