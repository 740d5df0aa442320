"""A plan says what fits, and is honest about which figure is which."""

import re

import pytest

from tests.runs import ROOT, finish
from xmae_jax.tasks import plan

COMMAND = ["-m", "xmae_jax.main", "--task=plan", "--config=configs/pretrain_1280.py"]


def planned(*flags, smoke=False):
    import sys

    command = [sys.executable, *COMMAND]
    if smoke:
        command[-1] += ":smoke"
    return finish([*command, *flags])


def value(out, name):
    (line,) = [line for line in out.splitlines() if line.startswith(name + "  ")]
    return re.split(r"  +", line)[1:]


def test_this_machine_is_compiled_for_and_measured():
    code, out = planned(smoke=True)
    assert code == 0, out
    assert value(out, "memory: peak a chip")[1] == "compiled"
    assert value(out, "a step")[1] == "measured"
    assert value(out, "parameters")[0] == "371,648"
    assert "fits" not in out  # a CPU has no chip's memory to fit into


def test_cards_are_estimated_and_what_does_not_fit_is_told_how_it_could():
    flags = ["--config.plan.topology=h100:8", "--config.batch_size=1024", "--config.plan.price=2"]
    code, out = planned(*flags)
    assert code == 0 and "fits: yes" in out, out
    assert value(out, "memory: peak a chip")[1] == "estimated" and "measured" not in out
    assert float(value(out, "cost")[0].replace(",", "")) > 0
    code, out = planned(*flags, "--config.remat=none")
    assert code == 0 and "fits: no" in out, out
    assert re.search(r"over by \d+\.\d\d GiB", out)
    assert "--config.remat=full" in out and "--config.micro_batch_size=" in out


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--config.plan.topology=v9:4x4", "v4, v5e"),
        ("--config.plan.topology=h100", "CHIP:N"),
        ("--config.plan.topology=h100:3", "does not split over 3"),
        ("--config.mesh.tensor=3", "mesh is"),
    ],
)
def test_what_cannot_be_planned(flag, told):
    code, out = planned(flag, "--config.plan.topology=h100:8") if "mesh" in flag else planned(flag)
    assert code == 64 and told in out, out


def test_a_compiler_s_refusal_is_read():
    text = "total memory required for HLO temporaries (20.52G) exceeds available HBM (15.75G)."
    assert plan._refused(text) == 20.52 * 2**30
    text = "Ran out of memory in memory space hbm. Used 20.29G of 15.75G hbm. Exceeded by 4.54G."
    assert plan._refused(text) == 20.29 * 2**30
    assert plan._refused("something else") is None


@pytest.mark.tpu
@pytest.mark.parametrize("mesh", [[], ["--config.mesh.data=2", "--config.mesh.fsdp=2",
                                       "--config.mesh.tensor=4"]])  # fmt: skip
def test_the_compiler_of_tpus_takes_the_step(mesh):
    """At a size at which attention is splash, on 16 chips; in about two minutes each."""
    pytest.importorskip("libtpu")
    code, out = planned(
        "--config.plan.topology=v5e:4x4", "--config.batch_size=16", "--config.image_size=640",
        "--config.objective.mask.keep=184", *mesh,
    )  # fmt: skip
    assert code == 0 and "fits: yes" in out, out
    assert "collective: all-reduce" in out and value(out, "memory: peak a chip")[1] == "compiled"
    assert ("collective: all-gather" in out) == bool(mesh)


def test_this_file_runs_the_documented_command():
    assert "--task=plan" in (ROOT / "docs" / "performance.md").read_text()
