"""A plan says what fits, and is honest about which figure is which."""

import dataclasses
import json
import re

import pytest

from configs import pretrain_1280
from tests.runs import finish
from tests.test_configs import resolved
from xmae_jax import hlo, sharding
from xmae_jax.chips import CHIPS
from xmae_jax.config import resolve
from xmae_jax.tasks import plan
from xmae_jax.tasks.point import Point, _refused

COMMAND = ["-m", "xmae_jax.main", "--task=plan", "--config=configs/pretrain_1280.py"]


def planned(*flags, smoke=False, config="pretrain_1280"):
    import sys

    command = [sys.executable, *COMMAND[:-1], f"--config=configs/{config}.py"]
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
    assert "fits: unknown" in out  # a CPU has no chip's memory to fit into


def test_cards_are_estimated_and_what_does_not_fit_is_told_how_it_could():
    flags = ["--config.plan.topology=h100:8", "--config.batch_size=1024", "--config.plan.price=2"]
    code, out = planned(*flags)
    assert code == 0 and "fits: yes" in out, out
    assert value(out, "memory: peak a chip")[1] == "estimated" and "measured" not in out
    assert float(value(out, "cost")[0].replace(",", "")) > 0
    code, out = planned(*flags, "--config.remat=none")
    assert code == 0 and "fits: no" in out, out
    assert re.search(r"over by \d+\.\d\d GiB", out)
    assert "--config.remat=full" in out
    (advice,) = re.findall(r"--config.micro_batch_size=\d+", out)  # tried before it is told
    code, out = planned(*flags, "--config.remat=none", advice)
    assert code == 0 and "fits: yes" in out, out


def test_a_search_answers_both_questions_whatever_the_config_accumulates():
    code, out = planned(
        "--config.plan.topology=h100:8", "--config.batch_size=1024", "--config.remat=dots",
        "--config.micro_batch_size=256", "--config.plan.search=True",
    )  # fmt: skip
    assert code == 0 and "fits: yes" in out, out
    assert re.search(r"cheapest recomputation: none, 128 films a chip", out), out
    found = re.search(r"largest batch found: full, (\d+) films a chip \(batch ([\d,]+)\)", out)
    assert found, out
    films, batch = int(found[1]), found[2].replace(",", "")
    assert films > 32 and int(batch) == 8 * films
    best = ["--config.plan.topology=h100:8", "--config.remat=full"]
    assert "fits: yes" in planned(*best, f"--config.batch_size={batch}")[1]
    assert "fits: no" in planned(*best, f"--config.batch_size={int(1.05 * films + 1) * 8}")[1]


def test_reports_are_planned_without_a_tokenizer(tmp_path):
    objective = resolved("finetune_report", "").objective
    objective["head"]["decoder"]["depth"] = 10  # of a run to start from: taken over
    (tmp_path / "checkpoints/1").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps({"objective": objective}))
    flags = ["--config.plan.topology=h100:8", "--config.remat=full"]
    flags.append(f"--config.objective.decoder_from={tmp_path}")
    code, out = planned(*flags, config="finetune_report")
    assert code == 0 and "fits: yes" in out, out
    assert value(out, "encoder")[0] == "24 blocks of 1024, 16 heads of 64"
    assert value(out, "decoder")[0] == "10 blocks of 768, 12 heads of 64"
    flops = {name: float(value(out, f"forward FLOPs a film: {name}")[0].split()[0].replace(",", ""))
             for name in ("encoder", "decoder")}  # fmt: skip
    # Two films of 1,025 tokens; 160 tokens that read 2,048 patches.
    assert 1_000 < flops["encoder"] < 1_500 and 40 < flops["decoder"] < 130


def test_a_roofline_is_arithmetic_on_figures_that_can_be_looked_up():
    config = resolve(pretrain_1280.get_config("smoke"))
    chip = CHIPS["v5e"]
    moved = [hlo.Moved("all-reduce", 8, 3, 8e9), hlo.Moved("all-gather", 2, 1, 2e9)]
    point = Point(4, "none", True, 0.0, 0.0, 0.0, hlo.Traffic(moved, 819e9), None)
    seconds = {
        tensor: point.roofline(config, chip, sharding.make_mesh(data=-1, fsdp=1, tensor=tensor))
        for tensor in (1, 2)
    }
    assert seconds[1]["memory"] == pytest.approx(1.0)  # 819 GB at 819 GB/s
    assert seconds[1]["links"] == pytest.approx((2 * 7 / 8 * 8e9 + 1 / 2 * 2e9) / 90e9)
    # Two chips share their rows' work; recomputation is work as well; a run costs what it takes.
    assert seconds[2]["compute"] == pytest.approx(seconds[1]["compute"] / 2)
    again = dataclasses.replace(point, remat="full")
    mesh = sharding.make_mesh(data=-1, fsdp=1)
    assert 1.2 < again.roofline(config, chip, mesh)["compute"] / seconds[1]["compute"] < 4 / 3
    priced = dataclasses.replace(config.plan, price=2.0)
    config = dataclasses.replace(config, plan=priced, total_steps=36_000)
    lines = {line[0]: line[1] for line in plan._speed(config, point, mesh, chip, total=1e12)}
    busiest = max(seconds[1].values())
    assert lines["images/s"].startswith(f"{config.batch_size / busiest:,.0f}, MFU")
    hours = config.total_steps * busiest / 3600 * 8
    assert lines["cost"] == f"{2 * hours:,.0f}"


def test_a_search_looks_at_batches_without_accumulation():
    code, out = planned(
        "--config.plan.topology=h100:8", "--config.batch_size=80", "--config.micro_batch_size=40",
        "--config.plan.search=True",
    )  # fmt: skip
    assert code == 0, out
    assert re.search(r"cheapest recomputation: none, 10 films a chip \(batch 80\)", out), out
    found = re.search(r"largest batch found: full, (\d+) films a chip", out)
    assert found and 100 < int(found[1]) < 1000, out


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--config.attention=splash", "config.attention: 'splash' runs on TPUs"),
        ("--config.plan.topology=v9:4x4", "write one of v4:AxBxC, v5e:AxB"),
        ("--config.plan.topology=v5ee:4x4", "did you mean v5e?"),
        ("--config.plan.topology=h100", "h100 takes a number of cards"),
        ("--config.plan.topology=h100:0", "h100 takes a number of cards"),
        ("--config.plan.topology=v5e:4x4x4", "v5e takes 2 sides, at most 16x16"),
        ("--config.plan.topology=v5e:32x4", "v5e takes 2 sides, at most 16x16"),
        ("--config.plan.topology=h100:3", "config.batch_size: 4096 rows do not split over 3"),
        ("--config.mesh.tensor=3", "the mesh is data -1 x fsdp 1 x tensor 3"),
        ("--config.micro_batch_size=4", "config.micro_batch_size: 4 rows do not split over 8"),
        ("--config.remat=fulll", "config.remat: "),
    ],
)
def test_what_cannot_be_planned(flag, told):
    code, out = (
        planned(flag, "--config.plan.topology=h100:8") if "topology" not in flag else planned(flag)
    )
    assert code == 64 and told in out, out


def test_a_compiler_s_refusal_is_read():
    text = "total memory required for HLO temporaries (20.52G) exceeds available HBM (15.75G)."
    assert _refused(text) == 20.52 * 2**30
    text = "Ran out of memory in memory space hbm. Used 20.29G of 15.75G hbm. Exceeded by 4.54G."
    assert _refused(text) == 20.29 * 2**30
    assert _refused("something else") is None


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
