"""The direction of imports, read from the source; see docs/architecture.md."""

import ast
from pathlib import Path

from tests.conftest import ROOT

# A module may import from its own layer and from those below it.
LAYERS = [
    {"main"},
    {"tasks"},
    {"train", "infer", "evaluators", "exports"},
    {"program", "init_from"},
    {"step", "checkpoint", "incidents", "rundir", "writers"},
    {"config"},
    {"optim", "objectives", "data"},
    {"heads"},
    {"models"},
    {"attention"},
    {"scores"},
    {"chips", "clock", "digest", "flops", "hlo", "hosts", "lock", "metrics", "rng", "seal"}
    | {"sharding", "stop"},
    {"typing"},
]
MODELS = {"models", "heads", "objectives"}


def imports(path: Path):
    """Yield every module that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def edges(package: str):
    """Yield (file, part of xmae_jax that it is in, part that it imports)."""
    for path in sorted((ROOT / package).rglob("*.py")):
        own = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        for name in imports(path):
            if name.startswith("xmae_jax."):
                yield path.name, own, name.split(".")[1]


def test_imports_go_down():
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    for file, own, other in edges("xmae_jax"):
        if own == "__init__":
            continue
        assert level[own] <= level[other], f"{own} ({file}) imports {other}"


def test_data_and_models_do_not_know_each_other():
    for file, own, other in edges("xmae_jax"):
        assert not (own == "data" and other in MODELS), file
        assert not (own in MODELS and other == "data"), file


def test_only_data_prep_knows_data_prep():
    for path in (ROOT / "xmae_jax").rglob("*.py"):
        assert not any(name.startswith("data_prep") for name in imports(path)), path
    for file, _, other in edges("data_prep"):
        allowed = ("data", "seal", "tasks") if file == "contours.py" else ("data", "seal")
        assert other in allowed, f"data_prep/{file} imports {other}"


def test_configs_are_light():
    for path in (ROOT / "configs").glob("*.py"):
        for name in imports(path):
            assert name.split(".")[0] in ("ml_collections", "configs"), f"{path.name}: {name}"


def test_the_mesh_appears_in_one_module():
    for path in (ROOT / "xmae_jax").rglob("*.py"):
        text = path.read_text()
        assert path.name == "sharding.py" or "PartitionSpec" not in text, path
        assert path.name == "sharding.py" or '"fsdp"' not in text, path
