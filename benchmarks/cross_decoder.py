"""Train the same model with a self- and a cross-attention decoder, for equal steps, on phantoms.

Command:  python -m benchmarks.cross_decoder          (three seeds; half an hour on two cores)
          python -m benchmarks.cross_decoder --smoke  (one seed, a minute)

Runs configs/quickstart.py for each kind of decoder and seed, in turn, and prints the error of
hidden patches of held-out films, the training loss over the last tenth, seconds a step, and FLOPs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from configs import quickstart
from xmae_jax.config import resolve
from xmae_jax.tasks.film import film_flops

KINDS = ("self", "cross")


def run(*command: str) -> None:
    """Run a command; its output is shown only if it fails."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


def trained(kind: str, seed: int, steps: int, folder: Path, *, smoke: bool) -> dict[str, float]:
    """Train once; return what the run logged."""
    workdir = folder / f"{kind}_{seed}_{steps}"
    run(
        "xmae_jax.main", "--config=configs/quickstart.py" + ":smoke" * smoke,
        f"--config.data.path={folder}/shards", f"--workdir={workdir}", f"--config.seed={seed}",
        f"--config.total_steps={steps}", f"--config.objective.decoder.kind={kind}",
        "--config.log_every=10",
    )  # fmt: skip
    lines = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    (last,) = [line for line in lines if line["kind"] == "eval" and line["step"] == steps]
    end = [line["training_loss"] for line in train if line["step"] > 0.9 * steps]
    return {
        "held_out_mse": last["mse_model"],
        "training_loss": statistics.mean(end),
        "t_step": statistics.median(line["t_step"] for line in train[1:]),
    }


def forward_flops(kind: str) -> float:
    """Count one film's forward FLOPs."""
    config = quickstart.get_config()
    config.objective.decoder.kind = kind
    return sum(film_flops(resolve(config)).values())


def main() -> None:
    """Train, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="runs/cross_decoder, or with --smoke _smoke")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    count = 1000
    if args.smoke:
        args.steps, args.seeds, count = 20, 1, 60
    # Films of one are not to be taken for the other's.
    args.folder = args.folder or Path("runs/cross_decoder" + "_smoke" * args.smoke)
    films = args.folder / "films"
    if not (args.folder / "shards" / "manifest.json").exists():
        size = ["--size", "192"]
        run("data_prep.phantoms", "--output", str(films), "--count", str(count), *size)
        shards = str(args.folder / "shards")
        run("data_prep.build", "--input", str(films), "--output", shards, *size)
    print("seed  decoder  held-out MSE  training loss  s a step")
    found = {kind: [] for kind in KINDS}
    for seed in range(args.seeds):
        for kind in KINDS:
            line = trained(kind, seed, args.steps, args.folder, smoke=args.smoke)
            found[kind].append(line)
            loss, error, seconds = line["training_loss"], line["held_out_mse"], line["t_step"]
            print(
                f"{seed:>4}  {kind:<7}  {error:>12.5f}  {loss:>13.5f}  {seconds:>8.4f}", flush=True
            )
    for name in ("held_out_mse", "training_loss", "t_step"):
        mean = {kind: statistics.mean(line[name] for line in found[kind]) for kind in KINDS}
        print(f"cross / self, {name}: {mean['cross'] / mean['self']:.3f}")
    print(f"cross / self, forward FLOPs: {forward_flops('cross') / forward_flops('self'):.3f}")


if __name__ == "__main__":
    main()
