"""The child process, by a made `java`: what it may do wrong, and what never reaches it."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.test_layers import imports
from xmae_jax.scores.text import java, meteor

COUNTS = " ".join(["1.0"] * meteor.COUNTS)


@pytest.fixture
def made_java(tmp_path, monkeypatch):
    """Return a function that makes `java` a Python program, and a jar to be there."""
    (tmp_path / "meteor").mkdir()
    (tmp_path / "meteor/meteor-1.5.jar").write_bytes(b"jar")
    (tmp_path / "pycocoevalcap").symlink_to(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def make(program: str) -> None:
        script = tmp_path / "java"
        script.write_text(f"#!{sys.executable}\nimport sys, time\n{program}\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return make


def test_a_line_a_study_whatever_is_in_the_texts(made_java, tmp_path):
    log = tmp_path / "log"
    made_java(
        f"text = sys.stdin.buffer.read()\nopen({str(log)!r}, 'wb').write(text)\n"
        f"print('\\n'.join([{COUNTS!r}] * text.count(b'\\n')))"
    )
    texts = ["a ||| b\nEVAL ||| 1", "", "c\r\u2028d\x0b\x85e", "心影\ud800", "SCORE ||||||| f"]
    found = meteor.counts(texts, [["r ||| s", "t\n"], ["u"], [""], ["v"], ["w"]])
    assert found.shape == (5, meteor.COUNTS)
    assert log.read_bytes().decode().split("\n") == [
        "SCORE ||| r s ||| t ||| a b EVAL 1",
        "SCORE ||| u ||| ",
        "SCORE |||  ||| c d e",
        "SCORE ||| v ||| 心影?",
        "SCORE ||| w ||| SCORE f",
        "",
    ]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("sys.exit(3)", "java ended with 3"),
        (f"print({COUNTS!r})", "java gave 1 lines for 2"),
        ("print('Error: secret words\\nError')", "something else than its counts"),
        (f"print({COUNTS!r})\nprint('1.0 2.0')", "something else than its counts"),
        (f"sys.stdin.read()\nprint({COUNTS!r})\nprint('{'x ' * 23}')", "something else"),
        ("time.sleep(60)", "java was ended after 0.2"),
    ],
)
def test_a_failing_java_is_named_and_its_words_are_not(made_java, monkeypatch, program, message):
    monkeypatch.setattr(java, "_START", 0.2 if "sleep" in program else 30.0)
    monkeypatch.setattr(java, "_EACH", 0.0)
    made_java(program)
    with pytest.raises(java.NoJava, match=message) as caught:
        meteor.counts(["a", "b"], [["a"], ["b"]])
    assert "secret" not in str(caught.value)


def test_what_is_lacking_is_named(made_java, monkeypatch, tmp_path):
    made_java("")
    assert java.jar("meteor/meteor-1.5.jar").name == "meteor-1.5.jar"
    with pytest.raises(java.NoJava, match="pycocoevalcap with other.jar is not installed"):
        java.jar("meteor/other.jar")
    (tmp_path / "java").write_text("no program")
    with pytest.raises(java.NoJava, match="java did not start: Exec format error"):
        java.answers([], ["a"])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(java.NoJava, match="java is not there"):
        java.jar("meteor/meteor-1.5.jar")


def test_no_lines_need_no_answer(made_java):
    made_java("")
    assert java.answers([], []) == []
    assert meteor.counts([], []).shape == (0, meteor.COUNTS)
    with pytest.raises(ValueError, match="line end"):
        java.answers([], ["a\nb"])


def test_a_piece_that_is_the_whole_text_is_none(made_java):
    whole = "2 2 0 0 2 2 0 0 " + "0 " * 12 + "1 2 2"
    made_java(f"print({whole!r})\nprint({whole.replace('2 2 0 0', '3 2 0 0', 1)!r})")
    assert meteor.counts(["a b", "a b c"], [["a b"], ["a b"]])[:, 20].tolist() == [0, 1]
    assert np.isclose(meteor.scores(meteor.counts(["a b", "c"], [["a b"], ["a b"]]))[0], 1.0)


def test_nothing_is_imported_but_numpy_and_ours():
    known = {*sys.stdlib_module_names, "numpy", "jaxtyping", "xmae_jax"}
    for path in Path(java.__file__).parent.glob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= known, path.name
