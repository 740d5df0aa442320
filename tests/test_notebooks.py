"""The notebooks run from top to bottom, at smoke size; what they write out is not kept."""

import os
import re
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests.conftest import ROOT
from tests.made_runs import make_run
from xmae_jax.config import ExportConfig
from xmae_jax.tasks import export

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = "FILMS, SIZE, STEPS, BATCH = 60, 64, 6, 8\nWIDTH, DEPTH, HEADS = 48, 2, 3"


@pytest.fixture(autouse=True)
def _this_python(monkeypatch):
    """Let `!python` of a cell be the one that runs the tests."""
    folder = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", folder + os.pathsep + os.environ["PATH"])


def run(name: str, parameters: str):
    """Run a notebook without its installation, after a cell that sets some of its parameters."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    cells = [c for c in notebook.cells if "install" not in c.metadata.get("tags", ())]
    place = next(i for i, c in enumerate(cells) if "parameters" in c.metadata.get("tags", ()))
    start = nbformat.v4.new_code_cell("%matplotlib inline")
    notebook.cells = [
        start, *cells[: place + 1], nbformat.v4.new_code_cell(parameters), *cells[place + 1 :]
    ]  # fmt: skip
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    return notebook


def texts(notebook) -> str:
    """Return what the cells printed."""
    return "".join(
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "stream"
    )


def pictures(notebook) -> int:
    """Count the pictures that the cells show."""
    return sum(
        "image/png" in output.get("data", {})
        for cell in notebook.cells
        for output in cell.get("outputs", ())
    )


def test_finetune_and_explain(tmp_path):
    config = make_run(
        tmp_path / "mae", "quickstart", objective__encoder__norm_eps=1e-12,
        objective__encoder__width=48, objective__encoder__heads=3,
    )  # fmt: skip
    export.run(replace(config, export=ExportConfig("hf", False, None)), tmp_path / "mae")
    begin = f"INIT_FROM, ENCODER = '{tmp_path}/mae/export/hf', 'norm_eps=1e-12 base_grid=4'\n"
    done = run("finetune", f"WORK = {str(tmp_path)!r}\n{begin}{SMALL}")
    assert "AUROC" in texts(done) and pictures(done) == 1
    where = f"WORK = '{tmp_path}/explain'\nRUN = '{tmp_path}/run'\n"
    done = run("explain", where + f"FILES = '{tmp_path}/films/images/ph_00000[12]*'")
    assert "2 of 3 files are films" in texts(done) and "rejected" in texts(done)
    assert pictures(done) >= 1


def test_a_command_that_fails_stops_a_notebook():
    cells = [nbformat.read(path, as_version=4).cells[2] for path in NOTEBOOKS]
    assert len({cell.source for cell in cells}) == 1
    for command, fails in (("true", False), ("sh -c 'exit 3'", True)):
        last = nbformat.v4.new_code_cell(f"code = {command!r}\n!{{code}}")
        client = NotebookClient(nbformat.v4.new_notebook(cells=[cells[0], last]))
        with pytest.raises(CellExecutionError, match="exit code 3") if fails else nullcontext():
            client.execute()


@pytest.mark.slow
def test_explain_makes_its_own_run_and_predicts_anew_each_time(tmp_path):
    where = f"WORK = {str(tmp_path)!r}\nFILMS, SIZE, STEPS, BATCH = 40, 64, 4, 8\n"
    done = run("explain", where)
    assert "10 of 11 files are films" in texts(done) and "rejected" in texts(done)
    assert pictures(done) >= 1
    again = f"RUN = '{tmp_path}/run'\nFILES = '{tmp_path}/films/images/ph_00001[12]*'"
    assert "2 of 3 files are films" in texts(run("explain", where + again))
    assert len([*(tmp_path / "predict").iterdir()]) == 2


@pytest.mark.slow
def test_report(tmp_path):
    done = run("report", f"WORK = {str(tmp_path)!r}\nFILMS, SIZE, STEPS, BATCH = 60, 64, 4, 8")
    assert "studies have a report" in texts(done) and "not_a_film.png): rejected" in texts(done)
    assert "study 1: ok" in texts(done) and pictures(done) == 4


@pytest.mark.slow
def test_quick_look(tmp_path):
    done = run("quick_look", f"WORK = {str(tmp_path)!r}\nFILMS = 20")
    assert "120 120 120 120 120" in texts(done) and pictures(done) == 2


@pytest.mark.slow
def test_dicoms_to_shards(tmp_path):
    done = run("dicoms_to_shards", f"WORK = {str(tmp_path)!r}\nSIZE = 192")
    assert texts(done).count("DICOM") >= 10 and pictures(done) >= 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_can_be_opened_in_colab_and_repeated(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    top, install = notebook.cells[:2]
    assert f"notebooks/{path.name}" in top.source and "colab-badge" in top.source
    pinned = re.findall(r"([a-z-]+)==[\d.]+", install.source)
    assert {"flax", "optax", "orbax-checkpoint", "grain"} <= set(pinned)
    assert "jax==0" in install.source
    assert not any(cell.get("outputs") for cell in notebook.cells)
