"""The benchmarks run; what they measure is looked at by people, on an idle machine."""

import importlib.util
import json
from pathlib import Path

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


def test_texts_are_timed_beside_others(monkeypatch, capsys):
    from benchmarks import generate

    # Else all that runs after would be bound too.
    monkeypatch.delattr(generate.os, "sched_setaffinity", raising=False)
    assert generate.main(["--smoke", "--turns", "1"]) == 0
    result = last_line(capsys)
    assert result["ours"]["wall"] > 0
    if importlib.util.find_spec("transformers"):
        assert result["equal_tokens"] == 1.0


def _missing(*_):
    raise ImportError("no torch here")


def test_a_curve_goes_on_where_it_was_stopped(monkeypatch, tmp_path, capsys):
    from benchmarks import curve

    started = []

    def run(argv, *, check):
        started.append(argv[3:])
        work = Path(argv[3].removeprefix("--workdir="))
        work.mkdir(parents=True, exist_ok=True)
        if "--task=evaluate" in argv:
            (work / "eval/classification_test/step_1").mkdir(parents=True)
            auroc = 0.7 if "_1/" in str(work) else 0.5 + 0.1 * int(str(work)[-1])
            scores = {"split": "test", "macro_auroc": auroc, "macro_average_precision": None}
            path = work / "eval/classification_test/step_1/metrics.json"
            path.write_text(json.dumps(scores))
        else:
            (work / "final.json").write_text("{}")

    monkeypatch.setattr(curve.subprocess, "run", run)
    argv = ["--output", str(tmp_path), "--vary", "data.label_fraction=0.1,1", "--seeds", "0", "1"]
    for times in (1, 2):
        assert curve.main([*argv, "--", "--config=configs/finetune_full.py"]) == 0
        assert len(started) == 8, times  # the second time nothing is left to do
    assert started[0][1:] == [
        "--config=configs/finetune_full.py", "--config.data.label_fraction=0.1", "--config.seed=0",
    ]  # fmt: skip
    first, small, whole = capsys.readouterr().out.splitlines()[-3:]
    assert first.startswith("data.label_fraction") and "(2 seeds, test)" in first
    assert small.split()[:3] == ["0.1", "0.5500", "(0.5000-0.6000)"] and "undefined" in small
    assert whole.split()[:3] == ["1", "0.7000", "(0.7000-0.7000)"]
    assert (tmp_path / "curve.csv").read_text().splitlines()[1] == "0.1,0,test,0.5,"


def test_a_curve_over_names_says_which_split_it_is_of(monkeypatch, tmp_path, capsys):
    from benchmarks import curve

    started = []

    def run(argv, *, check):
        started.append(argv)
        place = Path(argv[3].removeprefix("--workdir=")) / "eval/knn/metrics.json"
        place.parent.mkdir(parents=True)
        scores = {"split": "val", "macro_auroc": 0.5, "macro_average_precision": 0.5}
        place.write_text(json.dumps(scores))

    monkeypatch.setattr(curve.subprocess, "run", run)
    names = ["A-ray14, 64x64 copy", "../b/c", ".._b_c"]
    vary = [f"--vary=data.leave_out_source={name}" for name in names]
    assert curve.main(["--output", str(tmp_path), *vary, "--", "--config=x"]) == 0
    assert [f"--config.data.leave_out_source={name}" for name in names] == [a[-2] for a in started]
    folders = {path.parents[3] for path in tmp_path.rglob("metrics.json")}
    assert len(folders) == 3 and {path.parent for path in folders} == {tmp_path}
    assert "(1 seeds, val)" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="of one key"):
        curve.main(["--output", str(tmp_path), "--vary=a=1", "--vary=b=1"])
