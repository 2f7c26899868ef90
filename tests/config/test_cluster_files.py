"""configs/cluster: the files are well-formed, torchrun takes their options and minigpt their configs."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from minigpt.config import load_config
from minigpt.config.mesh import refuse_mesh, settle_mesh

CLUSTER = Path(__file__).resolve().parents[2] / "configs" / "cluster"
SLURM = CLUSTER / "slurm.sbatch"


def loaded(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text("utf-8"))


def check_command(words: list[str], nodes: int, processes: int) -> None:
    """torchrun ... -m minigpt train CONFIG key=value ...: both parse it, and the mesh is one of so many processes."""
    from torch.distributed.run import get_args_parser

    given = get_args_parser().parse_args(words[1:])
    assert words[0] == "torchrun"
    assert (given.module, given.training_script, given.training_script_args[0]) == (True, "minigpt", "train")
    name, *overrides = (word for word in given.training_script_args[1:] if not word.startswith("--"))
    config, _ = load_config(name, [word for word in overrides if "=" in word])
    refuse_mesh(config, settle_mesh(config, nodes * processes))


def test_kubernetes():
    job = loaded("pytorchjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    elastic, worker = job["spec"]["elasticPolicy"], job["spec"]["pytorchReplicaSpecs"]["Worker"]
    pod = worker["template"]["spec"]
    [container] = pod["containers"]
    assert container["name"] == "pytorch", "the operator looks for this name"
    assert elastic["minReplicas"] == elastic["maxReplicas"] == worker["replicas"], "the mesh has a fixed size"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == elastic["nProcPerNode"]
    assert {v["name"] for v in pod["volumes"]} == {v["name"] for v in container["volumeMounts"]}
    command = [*container["command"], *container["args"]]
    check_command(command, worker["replicas"], elastic["nProcPerNode"])
    [saving] = [int(word.partition("=")[2]) for word in command if word.startswith("--shutdown-timeout")]
    assert saving < pod["terminationGracePeriodSeconds"]


def test_skypilot():
    task = loaded("skypilot.yaml")
    gpus = int(task["resources"]["accelerators"].partition(":")[2])
    names = {
        "SKYPILOT_NUM_NODES": task["num_nodes"],
        "SKYPILOT_NUM_GPUS_PER_NODE": gpus,
        "SKYPILOT_NODE_IPS": "10.0.0.1",
    }
    line = re.sub(r"\$\(echo .*?\)", "10.0.0.1", task["run"].replace("\\\n", " "))
    line = re.sub(r"\$(\w+)", lambda name: str(names[name[1]]), line)
    check_command(shlex.split(line), task["num_nodes"], gpus)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_slurm_passes_the_signal_on_waits_and_queues_again(tmp_path: Path):
    """The script itself, with stand-ins for Slurm's commands and for torchrun."""
    scripts = {
        "srun": 'shift; "$@" & task=$!; trap "kill -USR1 $task" USR1; wait $task; wait $task',
        "scontrol": 'if [ "$1" = show ]; then echo first; echo second; else echo "$@" >> said; fi',
        "torchrun": 'trap "sleep 0.3; echo saved >> said; exit 143" USR1\n'
        'printf "%s\\n" "$@" > words; while :; do sleep 0.1; done',
    }
    for name, text in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
    }
    environment = os.environ | slurm | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    job = subprocess.Popen(["bash", str(SLURM), "gpt2-124m", "distributed.mesh.fsdp=8"], cwd=tmp_path, env=environment)
    words = tmp_path / "words"
    for _ in range(200):
        if words.exists() and words.read_text().endswith("fsdp=8\n"):
            break
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) == 143
    assert (tmp_path / "said").read_text() == "saved\nrequeue 77\n"
    check_command(["torchrun", *words.read_text().split()], 2, 8)
    assert "--rdzv-endpoint=first:29500" in words.read_text()
    directives = re.findall(r"^#SBATCH (--\S+)$", SLURM.read_text(), re.MULTILINE)
    assert {"--requeue", "--signal=B:USR1@300", "--ntasks-per-node=1"} <= set(directives)
