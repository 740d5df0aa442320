"""Builds that are killed, files that kill, and whatever runs the parts: the same shards."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import build, parts
from data_prep.films import Settings, patients_of
from data_prep.inputs import scan
from data_prep.jobs import jobs_of
from tests.conftest import ROOT
from tests.data_prep.test_build import alive, contents
from xmae_jax.data import sandbox
from xmae_jax.data.film import FilmError


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Make 300 films that take a while to read."""
    folder = tmp_path_factory.mktemp("many")
    draw = np.random.default_rng(0)
    for index in range(300):
        film = np.kron(draw.integers(20, 60, (60, 50), np.uint8), np.ones((12, 12), np.uint8))
        Image.fromarray(film).save(folder / f"{index}.png")
    (folder / "broken.png").write_bytes(b"no")
    return folder


def command(many, output, *extra):
    start = [sys.executable, "-m", "data_prep.build", "--size", "256", "--lungs", "heuristic"]
    return [*start, "--input", many, "--output", output, "--key", many.parent / "key", *extra]


@pytest.fixture(scope="module")
def whole(many, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "out"
    subprocess.run(command(many, output, "--workers", "2"), check=True, cwd=ROOT)
    return contents(output)


def killed(arguments, work, *, finished):
    """Start a build, and kill it with -9 when that many parts are finished."""
    process = subprocess.Popen(arguments, cwd=ROOT, start_new_session=True)
    while len(list(work.glob("parts/*.json"))) < finished:
        assert process.poll() is None, "the build ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while alive(process.pid):  # no child outlives it
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "runner",
    [
        ("--workers", "2"),
        pytest.param(("--workers", "1"), marks=pytest.mark.slow),
        pytest.param(("--runner", "beam"), marks=pytest.mark.slow),
    ],
    ids=["two", "one", "beam"],
)
def test_a_build_killed_twice_goes_on_and_gives_the_same_bytes(many, whole, tmp_path, runner):
    if runner[1] == "beam":
        pytest.importorskip("apache_beam", reason="needs the extra [beam]")
    output, work = tmp_path / "out", tmp_path / "out.incomplete"
    arguments = command(many, output, *runner)
    killed(arguments, work, finished=2)
    kept = {path: path.stat().st_mtime_ns for path in work.glob("parts/*.json")}
    killed(arguments, work, finished=len(kept) + 2)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # not made again
    assert not output.exists()
    subprocess.run(arguments, check=True, cwd=ROOT)
    assert contents(output) == whole and not work.exists()


@pytest.mark.parametrize("spoil", ["nothing", "part", "notes", "input", "recipe"])
def test_a_part_is_made_again_if_it_or_its_inputs_changed(many, tmp_path, spoil):
    folder, work = tmp_path / "in", tmp_path / "work"
    folder.mkdir()
    work.mkdir()
    for path in many.glob("?.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    arguments = command(folder, tmp_path / "out", "--key", many.parent / "key", "--workers", "1")
    options = build.parse_arguments([str(part) for part in arguments[3:]])
    inputs = scan(folder, masks=None, labels=None, reports=None)

    def times():
        with parts.Workers(1) as workers:
            made = build._plan(work, jobs_of(inputs, workers))
            build._locally(workers)(made, build._recipe(options))
        return {part.name: part.path.stat().st_mtime_ns for part in made}, made

    before, made = times()
    part = max(made, key=lambda part: len(part.jobs))
    if spoil == "part":
        data = bytearray(part.path.read_bytes())
        data[len(data) // 2] ^= 1
        part.path.write_bytes(data)
        before[part.name] = part.path.stat().st_mtime_ns
    elif spoil == "notes":
        part.notes.write_text(
            part.notes.read_text().replace("heuristic", "given:ours").replace("none", "x")
        )
    elif spoil == "input":
        Image.fromarray(np.eye(200, dtype=np.uint8) * 200).save(part.jobs[0].path)
    elif spoil == "recipe":
        options.fit = "squash"
    after, _ = times()
    again = {name for name in after if after[name] != before[name]}
    expected = set() if spoil == "nothing" else set(before) if spoil == "recipe" else {part.name}
    assert again == expected


def crash():
    os.abort()


def hang():
    time.sleep(60)


def spin():
    while True:
        pass


def gorge():
    return len(bytearray(3 << 30))


def missing():
    raise OSError("no weights")


def fail():
    raise KeyError("ZZ" + "PHI")


@pytest.fixture
def box():
    made = sandbox.Sandbox()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (crash, "crashes the decoder"),
        (hang, "no answer within 2 s"),
        (spin, "takes more than 1 s"),
        (gorge, "memory"),
    ],
)
def test_a_file_that_kills_costs_itself_only(box, function, words, monkeypatch):
    assert box.call(patients_of, [Path("nothing")]) == [""]
    monkeypatch.setattr(sandbox, "CLOCK", 2.0 if function is hang else 60.0)
    monkeypatch.setattr(sandbox, "SECONDS", 1.0)
    with pytest.raises(FilmError, match=words):
        box.call(function)
    monkeypatch.undo()
    assert box.call(patients_of, [Path("nothing")]) == [""]


def same(value):
    return value


def test_answers_stay_with_their_questions(box):
    assert list(box.each(same, [(i,) for i in range(50)])) == list(range(50))
    for i, answer in enumerate(box.each(same, [(i,) for i in range(50)])):
        assert answer == i
        if i == 7:
            break
    assert box.call(same, "another") == "another"
    assert list(box.each(same, [])) == []


def test_an_error_of_ours_costs_one_film_and_is_told_without_what_it_quotes(box, capsys):
    with pytest.raises(FilmError, match="error of this program .KeyError"):
        box.call(fail)
    assert sandbox._answer(fail, ())[0] == "film"
    told = capsys.readouterr().err
    assert "in fail" in told and "ZZPHI" not in told
    with pytest.raises(OSError, match="no weights"):
        box.call(missing)


def test_the_key_is_in_no_description_of_a_part(many, whole):
    settings = Settings(
        size=96, fit="pad", lungs="none", retrocardiac="exclude", frames="refuse", codec="jpeg"
    )
    recipe = parts.Recipe(settings, many.parent / "key", ())
    assert (many.parent / "key").read_bytes().strip() not in repr(recipe).encode()
