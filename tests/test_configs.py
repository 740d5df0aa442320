"""Every named run resolves, builds its objective, and is what its golden file says.

After a wanted change: `PYTHONPATH=. python tests/test_configs.py` writes the golden files anew.
"""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from tests.conftest import ROOT
from xmae_jax import config as config_lib
from xmae_jax.objectives import OBJECTIVES

NAMES = sorted(
    p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in ("__init__", "common")
)
GOLDEN = Path(__file__).parent / "golden"


def resolved(name, arg=""):
    module = importlib.import_module(f"configs.{name}")
    return config_lib.resolve(module.get_config(*[arg] if arg else []))


@pytest.mark.parametrize("arg", ["", "smoke"])
@pytest.mark.parametrize("name", NAMES)
def test_config_is_its_golden_file(name, arg):
    config = resolved(name, arg)
    objective = config_lib.objective_of(config, OBJECTIVES)
    if "mask" in config.objective:
        assert objective.grid[0] * objective.grid[1] > objective.mask.keep
    assert config.init_from is None
    golden = GOLDEN / f"config_{name}{'_' + arg if arg else ''}.json"
    assert config_lib.to_json(config) == golden.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_smoke_is_small_and_in_float32(name):
    config = resolved(name, "smoke")
    assert config.compute_dtype == "float32" and config.total_steps <= 50
    assert config.image_size <= 640


@pytest.mark.parametrize("name", NAMES)
def test_docstrings_say_command_hardware_and_expectation(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    for word in ("Command:", "Hardware:", "Expected:"):
        assert word in text
    with pytest.raises(ValueError, match="not 'nonsense'"):
        importlib.import_module(f"configs.{name}").get_config("nonsense")


def test_saved_configs_come_back_whole(tmp_path):
    config = resolved("pretrain_1280_released")
    (tmp_path / "config.json").write_text(config_lib.to_json(config))
    again = config_lib.resolve(config_lib.from_json(tmp_path / "config.json"))
    assert again == config


def change(**changes):
    tree = json.loads(config_lib.to_json(resolved("quickstart")))
    for path, value in changes.items():
        part, *names = tree, *path.split("__")
        for name in names[:-1]:
            part = part[name]
        part[names[-1]] = value
    return tree


TEXT = dict(tokenizer=None, sections=("findings",), prefix=(), language="en", marks="keep",
            length=8, prefix_length=0, views=1)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(optim__blrr=1.0), ["config.optim.blrr", "did you mean blr?"]),
        (dict(total_steps=-5), ["total_steps must be positive, got -5"]),
        (dict(optim__blr=float("nan")), ["config.optim.blr is nan"]),
        (dict(optim__blr="fast"), ["config.optim.blr", "'fast'"]),
        (dict(batch_size=1.5), ["config.batch_size", "1.5"]),
        (dict(micro_batch_size=5), ["no multiple of micro_batch_size 5"]),
        (dict(data__contour_region="heart"), ["config.data.contour_region", "'heart'"]),
        (dict(data__label_fraction=0.0), ["label_fraction must lie in (0, 1], got 0.0"]),
        (dict(data__label_fraction=0.1, data__shots=4), ["label_fraction then 1, got 4 and 0.1"]),
        (dict(data__balance=-1.0), ["balance must lie in (0, 1] or be None, got -1.0"]),
        (dict(data__text=TEXT | dict(views=3)), ["config.data.text.views", "3"]),
        (dict(data__text=TEXT | dict(sections=())), ["config.data.text", "some, each once"]),
        (
            dict(data__text=TEXT, knn=dict(k=(5,), features="cls")),
            ["knn reads films and no reports: set data.text to None"],
        ),
        (dict(compute_dtype="float16"), ["config.compute_dtype", "'float16'"]),
    ],
)
def test_errors_name_the_key(changes, words):
    with pytest.raises(config_lib.ConfigError) as error:
        config_lib.build(config_lib.Config, change(**changes))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", ["quickstart", "finetune_linear"])
def test_a_grid_is_a_probes_alone(name):
    given = importlib.import_module(f"configs.{name}").get_config("smoke")
    given.guard.spike_sigma = None
    given.optim.grid = ConfigDict(dict(blr=(1.0,), weight_decay=(0.0,)))
    with pytest.raises(config_lib.ConfigError, match="config.optim.grid: set it to None"):
        config_lib.resolve(given)


@pytest.mark.parametrize("name", ["finetune_linear", "evaluate_knn"])
@pytest.mark.parametrize("key", ["split", "eval_split"])
def test_what_is_tested_is_neither_trained_nor_chosen_on(name, key):
    config = resolved(name, "smoke")
    with pytest.raises(ValueError, match="scores 'test' at its end"):
        dataclasses.replace(config, data=dataclasses.replace(config.data, **{key: "test"}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(objective__mask__kepe=3), ["config.objective.mask.kepe", "did you mean keep?"]),
        (dict(objective__name="mea"), ["config.objective.name is 'mea'", "known: mae, report"]),
        (dict(image_size=100), ["image_size 100 is no multiple of encoder.patch_size 16"]),
        (dict(objective__mask__keep=64), ["mask.keep is 64"]),
        (dict(objective__encoder__heads=5), ["config.objective.encoder", "and of heads 5"]),
    ],
)
def test_errors_of_the_objective_name_the_key(changes, words):
    config = config_lib.build(config_lib.Config, change(**changes))
    with pytest.raises(config_lib.ConfigError) as error:
        config_lib.objective_of(config, OBJECTIVES)
    for word in words:
        assert word in str(error.value)


def test_differences():
    a, b = (config_lib.to_json(resolved("quickstart", arg)) for arg in ("", "smoke"))
    assert config_lib.differences(a, a) == []
    assert "config.total_steps: 700 in the run directory, 40 now" in config_lib.differences(a, b)


if __name__ == "__main__":
    for _name in NAMES:
        for _arg in ("", "smoke"):
            _path = GOLDEN / f"config_{_name}{'_' + _arg if _arg else ''}.json"
            _path.write_text(config_lib.to_json(resolved(_name, _arg)))
