"""The shape of the package: flat, imports in one direction, nothing at import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import scvae_jax

PACKAGE = Path(scvae_jax.__file__).parent
# a module imports only what stands below it
ORDER = (
    "__init__",
    "cli",
    "process",
    "printing",
    "comparison",
    "subjects",
    "trials",
    "plots",
    "ledger",
    "ranking",
    "calibration",
    "measures",
    "preferences",
    "prediction",
    "analysis",
    "sweep",
    "evaluation",
    "scores",
    "baselines",
    "training",
    "settings",
    "phases",
    "schedule",
    "progress",
    "epochs",
    "steps",
    "compiling",
    "checkpoints",
    "placing",
    "clusters",
    "building",
    "models",
    "networks",
    "objectives",
    "latents",
    "distributions",
    "likelihoods",
    "reading",
    "selection",
    "batches",
    "counts",
    "annotated",
    "public",
    "tenx",
    "datasets",
    "config",
    "files",
    "checks",
)


def imports_of(path: Path) -> set[str]:
    """Dotted names that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path.name}"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_has_its_place():
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(ORDER)
    assert not [path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]


@pytest.mark.parametrize("module", ORDER)
def test_imports_go_down(module):
    below = ORDER[ORDER.index(module) + 1 :]
    for name in imports_of(PACKAGE / f"{module}.py"):
        if name.startswith("scvae_jax."):
            assert name.split(".")[1] in below, f"{module} imports {name}"


@pytest.mark.parametrize(
    ("package", "modules"),
    [("flax", {"networks"}), ("orbax", {"checkpoints"}), ("typer", {"cli"})],
)
def test_a_library_is_imported_in_one_place(package, modules):
    users = {
        path.stem
        for path in PACKAGE.glob("*.py")
        if any(name.split(".")[0] == package for name in imports_of(path))
    }
    assert users == modules


def test_likelihoods_import_jax_alone():
    allowed = set(sys.stdlib_module_names) | {"jax"}
    names = imports_of(PACKAGE / "likelihoods.py")
    assert {name.split(".")[0] for name in names} <= allowed


@pytest.mark.parametrize(
    "module",
    ["annotated", "checks", "config", "counts", "datasets", "public", "tenx"],
)
def test_no_jax_on_the_host_side(module):
    names = imports_of(PACKAGE / f"{module}.py")
    assert "jax" not in {name.split(".")[0] for name in names}


def test_importing_the_package_loads_nothing():
    code = (
        "import sys, scvae_jax\n"
        "heavy = {'jax', 'flax', 'anndata', 'numpy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert set(scvae_jax.__all__) <= set(dir(scvae_jax))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_exists():
    for name in scvae_jax.__all__:
        assert getattr(scvae_jax, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = scvae_jax.nothing
