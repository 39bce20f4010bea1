"""The job scripts of docs/slurm.md, run with stand-ins for Slurm's commands: a notice queues the job again."""
from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from test_train_stops import free_port
from tiny_training import rows, run_tiny, write_images

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = re.findall(r'```bash\n(.*?)```', (ROOT / 'docs' / 'slurm.md').read_text(), re.DOTALL)
FLAGS = {'model': 'test_resnet', 'img_size': 32, 'device': 'cpu', 'workers': 0, 'batch_size': 6, 'warmup_epochs': 0,
         'lr': 0.05, 'log_interval': 1000, 'num_classes': 4, 'mixup_mode': 'gradmix', 'epochs': 20}

pytestmark = pytest.mark.slow


def command(place: Path, name: str, body: str) -> None:
    path = place / name
    path.write_text(f'#!/bin/bash\n{body}\n')
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path):
    """A folder to work in and an environment whose first commands are the stand-ins."""
    commands = tmp_path / 'commands'
    commands.mkdir()
    command(commands, 'srun', 'exec "$@"')
    command(commands, 'scontrol', f'[ "$1" = show ] && echo 127.0.0.1 || echo "$@" >> {tmp_path}/queue')
    command(commands, 'gradmix-train', f'exec {sys.executable} {ROOT}/train.py "$@"')
    command(commands, 'torchrun', f'exec {sys.executable} -m torch.distributed.run --master_port={free_port()} "$@"')
    images = write_images(tmp_path / 'images')
    (tmp_path / 'train.yaml').write_text(yaml.safe_dump({**FLAGS, 'data_dir': str(images)}))
    return tmp_path, {**os.environ, 'PATH': f'{commands}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '7',
                      'SLURM_JOB_NODELIST': 'here', 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}


def submitted(script: str, place: Path, environment: dict[str, str]) -> subprocess.Popen:
    """The script begun, once its run has written a checkpoint or has ended."""
    (place / 'job.sh').write_text(script)
    last = place / 'runs' / 'job-7' / 'last.pth.tar'
    before = last.stat().st_mtime if last.exists() else 0
    job = subprocess.Popen(['bash', 'job.sh'], cwd=place, env=environment, stderr=subprocess.PIPE, text=True)
    waited = time.monotonic() + 120
    while job.poll() is None and time.monotonic() < waited and not (last.exists() and last.stat().st_mtime > before):
        time.sleep(0.05)
    return job


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


def test_a_notice_queues_the_job_again_and_it_ends_as_if_there_had_been_none(cluster):
    place, environment = cluster
    job = submitted(SCRIPTS[0], place, environment)
    for process in children(job.pid):  # to the step's tasks, not to the batch shell
        os.kill(process, signal.SIGUSR1)
    told = job.communicate(timeout=120)[1]
    assert job.returncode == 138, told
    assert (place / 'queue').read_text() == 'requeue 7\n'
    job = submitted(SCRIPTS[0], place, environment)
    job.communicate(timeout=300)
    assert job.returncode == 0
    assert (place / 'queue').read_text() == 'requeue 7\n'
    straight = run_tiny(place / 'images', place, '--mixup-mode', 'gradmix', '--epochs', 20, name='straight')
    assert rows(place / 'runs' / 'job-7') == rows(straight)


def test_a_job_that_is_cancelled_is_not_queued_again(cluster):
    place, environment = cluster
    job = submitted(SCRIPTS[0], place, environment)
    for process in children(job.pid):
        os.kill(process, signal.SIGTERM)
    job.communicate(timeout=120)
    assert job.returncode == 143
    assert not (place / 'queue').exists()


def test_under_torchrun_the_batch_shell_passes_the_notice_on(cluster):
    place, environment = cluster
    script = SCRIPTS[1].replace('--nproc_per_node=4', '--nproc_per_node=2')
    job = submitted(script, place, environment)
    job.send_signal(signal.SIGUSR1)
    told = job.communicate(timeout=120)[1]
    assert job.returncode not in (0, None), told
    assert (place / 'queue').read_text() == 'requeue 7\n'
    assert f'error: stopped by SIGUSR1; last checkpoint: {Path("runs/job-7/last.pth.tar")}' in told
