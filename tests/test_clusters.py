"""Jobs for clusters, as far as they can be tried without one."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import yaml

from wfimagevae.task.vae_options import VaeOptions

CLUSTER = Path(__file__).parents[1] / "examples" / "cluster"
FLAGS = {flag.upper() for flag in VaeOptions.by_flag()}
FLAGS |= {"TRAIN_IMAGE_DIR", "EVAL_IMAGE_DIR", "OUTPUT_DIR", "RESUME_CKPT", "MAX_RESTARTS"}
FLAGS |= {"NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"}

# Commands of Slurm: each says what it was told; a step lasts until it is signalled.
SLURM = {
    "scontrol": 'echo "scontrol $*" >> calls; echo host',
    "srun": "env > environment; touch begun; trap 'sleep 0.5; echo saved >> calls; exit 143' TERM; "
    '[ -n "$QUICK" ] && exit "$QUICK"; echo $$ > s; mv s step; while :; do sleep 0.1; done',
    "scancel": 'echo "scancel $*" >> calls; kill -TERM "$(cat step)"',
}


@pytest.fixture
def slurm_job(tmp_path):
    """Starts the job of Slurm among commands that stand for Slurm's."""

    def start(**variables):
        for name, text in SLURM.items():
            (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
            (tmp_path / name).chmod(0o755)
        slurm = {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "host[1-2]", "SLURM_JOB_ID": "7"}
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        # A training in this process may have left USR1 ignored, which no shell can trap then.
        command = ["env", "--default-signal=USR1", "bash", str(CLUSTER / "slurm.sh")]
        return subprocess.Popen(command, env=path | slurm | variables, cwd=tmp_path)

    return start


def test_slurm_leaves_to_a_file_of_flags_what_it_names(slurm_job, tmp_path):
    own = {"TRAIN_IMAGE_DIR=data/train", "EVAL_IMAGE_DIR=data/val", "EXP_NAME=wfvae2-image"}
    for variables, expected in (({}, own), ({"CONFIG": "run.yaml"}, set())):
        assert slurm_job(QUICK="0", **variables).wait() == 0
        lines = {*(tmp_path / "environment").read_text().splitlines()}
        assert own & lines == expected
        assert {"RESUME_CKPT=auto", "NNODES=2", "MASTER_ADDR=host", "MAX_RESTARTS=3"} <= lines


def test_slurm_saves_and_requeues_before_its_time_is_up(slurm_job, tmp_path):
    job = slurm_job()
    while not (tmp_path / "step").exists():
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)  # as --signal=B:USR1@120 does
    while "scancel" not in (tmp_path / "calls").read_text():
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)  # which may follow one sent by hand
    assert job.wait(60) == 0
    told = (tmp_path / "calls").read_text().splitlines()
    assert told[1:] == ["scancel --signal=TERM 7", "saved", "scontrol requeue 7"]


def test_slurm_does_not_requeue_what_failed(slurm_job, tmp_path):
    assert slurm_job(QUICK="2").wait() == 2
    assert "requeue" not in (tmp_path / "calls").read_text()


def test_kubernetes_runs_one_pod_for_each_machine_and_lets_it_save():
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    # Fields of batch/v1 JobSpec, PodSpec and Container that are used, and no others.
    assert {*spec} <= {
        *("completionMode", "completions", "parallelism", "backoffLimit", "podFailurePolicy"),
        "template",
    }
    pod = spec["template"]["spec"]
    assert {*pod} <= {
        *("subdomain", "restartPolicy", "terminationGracePeriodSeconds", "containers", "volumes"),
    }
    (container,) = pod["containers"]
    assert {*container} <= {"name", "image", "command", "env", "resources", "volumeMounts"}
    # A pod failure policy and indexed names ask for these.
    assert (spec["completionMode"], pod["restartPolicy"]) == ("Indexed", "Never")
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert {*values} <= FLAGS
    assert all(value is None or isinstance(value, str) for value in values.values())
    assert spec["completions"] == spec["parallelism"] == int(values["NNODES"])
    name, subdomain = job["metadata"]["name"], service["metadata"]["name"]
    assert values["MASTER_ADDR"] == f"{name}-0.{subdomain}" and pod["subdomain"] == subdomain
    assert service["spec"]["selector"] == {"job-name": name}
    patience = int(values["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    assert 30 < patience < pod["terminationGracePeriodSeconds"]
    assert {v["name"] for v in pod["volumes"]} == {v["name"] for v in container["volumeMounts"]}


@pytest.fixture
def modal_train(monkeypatch):
    """The module of Modal's job; Modal itself only hands its functions through."""
    app = MagicMock()
    app.function = lambda **facts: (
        lambda f: SimpleNamespace(local=f, facts=facts, spawn=MagicMock())
    )
    app.local_entrypoint = lambda: lambda function: function
    modal = MagicMock(App=lambda name: app)
    monkeypatch.setitem(sys.modules, "modal", modal)
    spec = importlib.util.spec_from_file_location("modal_train", CLUSTER / "modal_train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("status", [0, 3])
def test_modal_tries_again_what_failed(modal_train, monkeypatch, status):
    assert {*modal_train.SETTINGS} <= FLAGS
    command = ["bash", "-c", f"exit {status}"]
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **how: popen(command, **how))
    if status:
        with pytest.raises(SystemExit):
            modal_train.train.local()
    else:
        modal_train.train.local()
    assert modal_train.volume.commit.called and not modal_train.train.spawn.called


def test_modal_saves_before_its_time_is_up_and_goes_on_in_another_call(
    modal_train, monkeypatch, tmp_path
):
    saves = f"trap 'touch {tmp_path}/saved; exit 143' TERM; while :; do sleep 0.05; done"
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **how: popen(["bash", "-c", saves], **how))
    monkeypatch.setattr(modal_train, "DRAIN", modal_train.SECONDS - 0.5)
    modal_train.train.local()
    assert (tmp_path / "saved").exists()
    assert modal_train.volume.commit.called and modal_train.train.spawn.called
