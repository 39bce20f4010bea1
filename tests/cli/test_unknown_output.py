"""A head with one output for no class: trained on, recorded, and folded into the known classes by every evaluation."""
from __future__ import annotations

import re

import pytest
import timm
import torch
from tiny_training import run_tiny, write_images

from gradmix_timm import OpenSetClassifier
from gradmix_timm.checkpoint import RunRecord, build_model, load_checkpoint
from gradmix_timm.openset.extract import extract, head_of


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """One epoch of OpenMix with the extra output on three known classes of four."""
    folder = tmp_path_factory.mktemp('unknown')
    images = write_images(folder / 'images')
    return images, run_tiny(images, folder, '--epochs', 1, '--mixup-mode', 'openmix', '--unknown-output',
                            '--known-classes', 'ant,bee,cat', classes=None, pictures=True)


def test_the_checkpoint_has_an_output_more_than_its_classes(run):
    loaded = load_checkpoint(run[1] / 'last.pth.tar')
    assert loaded.record.unknown_output
    assert loaded.record.known_classes == ('ant', 'bee', 'cat')
    assert loaded.record.model_kwargs['num_classes'] == len(loaded.state_dict['fc.bias']) == 4
    assert loaded.record.mixer_options['unknown_output'] is True


def test_the_evaluated_logits_are_the_log_odds_against_no_class(run):
    loaded = load_checkpoint(run[1] / 'last.pth.tar')
    raw = timm.create_model('test_resnet', num_classes=4).eval()
    raw.load_state_dict(loaded.state_dict)
    net = build_model(loaded, num_classes=3)
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        want, found = raw(images), net(images)
    assert torch.allclose(found, want[:, :3] - want[:, 3:], atol=1e-5)
    p = want.softmax(1)
    assert torch.allclose(found.logsumexp(1), (p[:, :3].sum(1) / p[:, 3]).log(), atol=1e-5), 'the energy'
    seen = extract(net, [(images, torch.zeros(5, dtype=torch.int64))], 'cpu')
    assert torch.allclose(head_of(net)(seen.features).float(), seen.logits, atol=1e-4), 'scores of the head work'


def test_a_classifier_of_it_knows_the_known_classes_alone(run, tmp_path):
    images, folder = run
    classifier = OpenSetClassifier.from_checkpoint(folder / 'last.pth.tar', score='energy', threshold=0.0)
    assert classifier.known_classes == ('ant', 'bee', 'cat')
    classifier.save(tmp_path / 'saved')
    files = sorted((images / 'test').rglob('*.png'))
    assert OpenSetClassifier.load(tmp_path / 'saved').predict(files) == classifier.predict(files)


@pytest.mark.slow
def test_it_resumes_and_is_refused_by_a_run_without_the_output(run):
    images, folder = run
    flags = ('--mixup-mode', 'openmix', '--known-classes', 'ant,bee,cat', '--resume', folder / 'last.pth.tar')
    again = run_tiny(images, folder.parent, '--epochs', 2, '--unknown-output', *flags, name='more', classes=None)
    assert load_checkpoint(again / 'last.pth.tar').epoch == 1
    with pytest.raises(ValueError, match='its head has 4 classes and this one 3'):
        run_tiny(images, folder.parent, '--epochs', 2, *flags, name='less', classes=None)


def test_a_record_says_which_widths_fit():
    fitting = {'model': 'test_resnet', 'known_classes': ('a', 'b')}
    RunRecord(**fitting, model_kwargs={'num_classes': 3}, unknown_output=True)
    message = re.escape('num_classes=2 outputs and 2 known classes are named; one output a class and one for no class')
    with pytest.raises(ValueError, match=message):
        RunRecord(**fitting, model_kwargs={'num_classes': 2}, unknown_output=True)
