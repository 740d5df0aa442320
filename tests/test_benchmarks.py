"""The benchmarks run; what they measure is looked at by people, on an idle machine."""

import importlib.util
import json

import pytest

OURS = ("decode", "pillow", "threads", "workers", "crops")


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_loader_runs_and_says_who_waits(shards, capsys):
    from benchmarks import loader

    assert loader.main(["--smoke", "--data", str(shards)]) == 0
    result = last_line(capsys)
    torch = {"torch", "mae"} if importlib.util.find_spec("torch") else set()
    assert set(result["films_per_second"]) == {*OURS, *torch}
    assert min(result["films_per_second"].values()) > 0
    assert set(result["waits"]) == {"loader", "step", "both", "data_wait"}


def test_our_step_runs(monkeypatch, capsys):
    from benchmarks import vitmae_cpu

    monkeypatch.setattr(vitmae_cpu, "theirs", _missing)
    assert vitmae_cpu.main(["--smoke"]) == 0
    assert last_line(capsys)["ours"]["wall"] > 0


def test_their_step_runs(capsys):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from benchmarks import vitmae_cpu

    assert vitmae_cpu.main(["--smoke"]) == 0
    assert last_line(capsys)["ratio_wall"] > 0


def _missing(*_):
    raise ImportError("no torch here")
