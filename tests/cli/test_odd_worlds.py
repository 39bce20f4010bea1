"""Numbers of images that two processes cannot share evenly: what is trained, what is counted, what is refused."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from test_train_modes import torchrun
from timm.data import create_loader
from timm.data.distributed_sampler import OrderedDistributedSampler
from tiny_training import TINY, rows, write_images

from gradmix_timm.checkpoint import build_model, load_checkpoint
from gradmix_timm.cli import train
from gradmix_timm.cli.training.knn_validation import _no_padding
from gradmix_timm.data import open_dataset
from gradmix_timm.openset.extract import extract
from gradmix_timm.openset.probes import neighbour_votes

MOCO = ('--objective', 'moco', '--objective-dim', 16, '--objective-queue', 21, '--probe-epochs', 2)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """31 training and 11 validation images."""
    root = write_images(tmp_path_factory.mktemp('images'))
    (root / 'train' / 'bee' / '3.png').unlink()
    (root / 'validation' / 'dog' / '1.png').unlink()
    return root


def embedded(folder, images, split):
    """Of the run's last checkpoint, in this process."""
    loaded = load_checkpoint(folder / 'last.pth.tar')
    config = loaded.record.data_config
    loader = create_loader(
        open_dataset('', images, split), input_size=(3, 32, 32), batch_size=4, num_workers=0,
        device=torch.device('cpu'), use_prefetcher=True, persistent_workers=False, mean=config['mean'],
        std=config['std'], interpolation=config['interpolation'], crop_pct=config['crop_pct'])
    return extract(build_model(loaded), loader, 'cpu')


@pytest.mark.slow
@pytest.mark.parametrize('flags', [(), ('--mixup-mode', 'gradmix'), ('--cache-images',)], ids=str)
def test_no_validation_image_counts_twice(flags, images, tmp_path):
    folder = torchrun(images, tmp_path, *flags, '--batch-size', 4)
    assert len(rows(folder)) == 2
    last = rows(folder)[-1]
    found = embedded(folder, images, 'validation')
    assert len(found.label) == 11
    loss = torch.nn.functional.cross_entropy(found.logits, found.label)
    right = found.logits.argmax(1) == found.label
    assert float(last['eval_loss']) == pytest.approx(float(loss), rel=1e-5)
    assert float(last['eval_top1']) == pytest.approx(100 * float(right.double().mean()))
    assert float(last['eval_top5']) == 100


@pytest.mark.slow
def test_no_image_votes_twice(images, tmp_path):
    folder = torchrun(images, tmp_path, *MOCO, '--batch-size', 5, '--epochs', 1)
    assert np.isfinite(float(rows(folder)[0]['train_loss']))
    bank, found = (embedded(folder, images, split) for split in ('train', 'validation'))
    assert len(bank.label) == 31
    votes = neighbour_votes(found.features, bank.features, bank.label, 4)
    want = 100 * float((votes.argmax(1) == found.label).double().mean())
    assert float(rows(folder)[0]['eval_knn_top1']) == pytest.approx(want)
    assert load_checkpoint(folder / 'last.pth.tar').record.probe['epochs'] == 2


@pytest.mark.parametrize(('count', 'processes'), [(31, 2), (32, 2), (3, 4), (1, 3), (10, 1)])
def test_gathered_rows_without_padding_are_every_image_once(count, processes):
    order = [place for rank in range(processes)
             for place in OrderedDistributedSampler(range(count), num_replicas=processes, rank=rank)]
    assert sorted(order[row] for row in _no_padding(count, processes)) == list(range(count))


def test_a_queue_smaller_than_the_batch_of_all_processes_is_refused_at_parse_time(monkeypatch, capsys):
    line = [*TINY, *map(str, MOCO), '--batch-size', '10']
    assert train._parse_args(line)[0].objective_queue == 21
    for name, value in (('WORLD_SIZE', '3'), ('RANK', '0'), ('LOCAL_RANK', '0')):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        train._parse_args(line)
    error = capsys.readouterr().err
    assert '--objective-queue 21 with --batch-size 10 and 3 processes' in error
    assert 'type 30 or more' in error
