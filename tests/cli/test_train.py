"""A training run: what it trains on, what it leaves, how it ends; the mixer in its step."""
from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import sys

import pytest
import timm
import torch
import yaml
from tiny_training import CLASSES, TINY, rows, run_tiny, write_images
from torch import nn

from gradmix_timm.checkpoint import build_model, load_checkpoint
from gradmix_timm.cli import train
from gradmix_timm.cli.errors import UsageError
from gradmix_timm.cli.training import loaders, loop, setup
from gradmix_timm.cli.training import run as stages
from gradmix_timm.cli.training.mixing import SwitchedCollate
from gradmix_timm.cli.training.tracking import open_bar
from gradmix_timm.data.identity import identities
from gradmix_timm.mixers import TIMM_MODES, create_mixer, list_mixers, register_mixer


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


def line(images, out, *flags):
    return ['--data-dir', str(images), *TINY, '--output', str(out), '--experiment', 'run', *map(str, flags)]


def state(folder):
    return load_checkpoint(folder / 'last.pth.tar', ema=False).state_dict


# ---- the mixer in the step

class Spy:
    """A mixer that tells what it saw and keeps what it gave."""

    def __init__(self, mixer):
        self.mixer, self.mixup_enabled = mixer, True
        self.steps, self.seen, self.given = [], [], []
        self.requires_model, self.options = mixer.requires_model, mixer.options

    def set_step(self, epoch, step):
        self.steps.append((epoch, step))
        self.mixer.set_step(epoch, step)

    def prepare(self, model, input_size):
        self.mixer.prepare(model, input_size)

    def __call__(self, images, targets, model):
        self.mixer.mixup_enabled = self.mixup_enabled
        mixed = self.mixer(images, targets, model)
        self.seen.append({'model': model, 'autocast': torch.is_autocast_enabled('cpu'), 'images': images.clone(),
                          'targets': targets, 'enabled': self.mixup_enabled})
        self.given.append(tuple(t.clone() for t in mixed))
        return mixed


class Replay(Spy):
    """Gives what a spy kept; never looks at the model."""

    def __init__(self, spy):
        super().__init__(spy.mixer)
        self.batches = iter(spy.given)

    def __call__(self, images, targets, model):
        return next(self.batches)


@pytest.fixture
def spy(monkeypatch):
    """The mixer of the next run, watched; its pictures are not drawn."""
    made = []

    def create(plan, num_classes, rank=0, sigmoids=False):
        made.append(Spy(create_mixer(plan.name, num_classes=num_classes, rank=rank, **plan.options)))
        return made[-1]

    monkeypatch.setattr(setup, 'create_step_mixer', create)
    monkeypatch.setattr(stages, '_write_mixes', lambda *args: None)
    return made


VARIANTS = {
    'plain': (),
    'no prefetcher': ('--no-prefetcher',),
    'accumulation': ('--grad-accum-steps', 3),
    'amp': ('--amp', '--amp-dtype', 'bfloat16'),
    'channels last': ('--channels-last',),
    'average': ('--model-ema', '--model-ema-decay', 0.9),
    'checkpointing': ('--grad-checkpointing',),
    'dropout': ('--drop', 0.3, '--drop-path', 0.2),
    'bfloat16': ('--model-dtype', 'bfloat16'),
    'authors': ('--gradmix-recipe', 'authors'),
    'transformer': ('--model', 'test_vit'),
    'sizes': ('--train-img-sizes', 32, 48, '--train-batch-sizes', 6, 4),
}


@pytest.mark.parametrize('variant', [
    pytest.param(name, marks=pytest.mark.slow) if name != 'plain' else name for name in VARIANTS])
def test_the_step_leaves_no_trace_beyond_the_mixed_batch(variant, images, tmp_path, spy, monkeypatch):
    """Training on stored mixed batches without a mixer gives the same weights, buffers and averages."""
    flags = ('--mixup-mode', 'gradmix', *VARIANTS[variant])
    live = run_tiny(images, tmp_path, *flags, name='live')
    kept = spy[0]
    monkeypatch.setattr(setup, 'create_step_mixer', lambda *args: Replay(kept))
    stored = run_tiny(images, tmp_path, *flags, name='stored')
    assert rows(stored) == rows(live)
    for ema in (False, True) if '--model-ema' in flags else (False,):
        left, right = (load_checkpoint(f / 'last.pth.tar', ema=ema).state_dict for f in (live, stored))
        assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.slow
def test_the_mixer_gets_integer_labels_the_bare_model_and_its_place(images, tmp_path, spy):
    run_tiny(images, tmp_path, '--mixup-mode', 'gradmix', '--torchcompile', 'eager', '--amp', '--amp-dtype', 'bfloat16')
    seen = spy[0].seen
    assert spy[0].steps == [(epoch, step) for epoch in range(2) for step in range(5)]
    assert all(type(call['model']) is type(timm.create_model('test_resnet')) for call in seen)
    assert all(call['targets'].dtype == torch.int64 and call['autocast'] for call in seen)
    assert all(call['images'].dtype == torch.float32 for call in seen)
    assert not torch.is_autocast_enabled('cpu')


def test_channels_last_comes_before_the_mixer(images, tmp_path, spy):
    run_tiny(images, tmp_path, '--mixup-mode', 'gradmix', '--channels-last', '--epochs', 1)
    assert all(call['images'].is_contiguous(memory_format=torch.channels_last) for call in spy[0].seen)


@pytest.mark.parametrize('flags', [(), ('--no-prefetcher',)])
def test_mixing_ends_at_the_off_epoch_without_a_pass(flags, images, tmp_path, spy):
    run_tiny(images, tmp_path, '--mixup-mode', 'gradmix', '--gradmix-confidence', 0, '--mixup-off-epoch', 1, *flags)
    assert [call['enabled'] for call in spy[0].seen] == [True] * 5 + [False] * 5
    mixed, plain = spy[0].given[0][1], spy[0].given[-1][1]
    assert plain.max(1).values.allclose(torch.tensor(0.925))  # smoothed one-hots
    assert mixed.max(1).values.min() < 0.92


def test_the_loop_tells_how_long_mixing_took(images, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run_tiny(images, tmp_path, '--mixup-mode', 'cutmix', '--epochs', 1)
    assert any('Data: ' in r.message and '  Mix: ' in r.message for r in caplog.records)
    caplog.clear()
    run_tiny(images, tmp_path, '--epochs', 1, name='plain')
    assert not any('Mix: ' in r.message for r in caplog.records)


@pytest.mark.parametrize(('flags', 'mixed', 'warned'), [
    (('--lr', 1e-6), '0/4 ', True), (('--gradmix-confidence', 0), '4/4 ', False),
    (('--lr', 1e-6, '--mixup-off-epoch', 1), '0/4 ', False),
    (('--gradmix-confidence', 1e-9, '--mixup-prob', 0), '0/4 ', False)], ids=str)
def test_the_loop_tells_how_many_images_were_mixed(flags, mixed, warned, images, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run_tiny(images, tmp_path, '--mixup-mode', 'gradmix', '--batch-size', 4, *flags)
    first = next(r.message for r in caplog.records if 'Data: ' in r.message)
    assert f'  Mixed: {mixed}' in first + ' '
    told = [r.message for r in caplog.records if 'of the images of the last epoch were mixed' in r.message]
    assert len(told) == warned
    assert all('0.0%' in line and '--gradmix-confidence 0 every image' in line for line in told)


def test_the_share_of_gradmix_is_told_beside_that_of_another_mixer(images, tmp_path, caplog):
    run_tiny(images, tmp_path, '--mixup-mode', 'gradmix+cutmix', '--batch-size', 4, '--lr', 1e-6)
    assert [r for r in caplog.records if "0.0% of GradMix's images of the last epoch were mixed" in r.message]


@pytest.mark.parametrize('flags', [('--gradmix-keep-clean',), ('--objective', 'simclr', '--probe-epochs', 0)])
def test_a_task_that_mixes_inside_tells_no_time_of_mixing(flags, images, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run_tiny(images, tmp_path, '--mixup-mode', 'gradmix', '--epochs', 1, *flags)
    lines = [r.message for r in caplog.records if 'Data: ' in r.message]
    assert lines
    assert all('Mix: ' not in line and '  Random boxes: ' in line for line in lines)


def test_rows_that_a_mixer_adds_are_no_images(images, tmp_path, monkeypatch):
    counts = []
    learn = loop._Epoch._learn
    monkeypatch.setattr(loop._Epoch, '_learn', lambda self, *args: counts.append(args[3]) or learn(self, *args))
    run_tiny(images, tmp_path, '--mixup-mode', 'regmixup', '--epochs', 1)
    assert set(counts) == {6}


@pytest.mark.slow
def test_the_picture_of_mixes_shows_mixed_images_alone(images, tmp_path):
    folder = run_tiny(images, tmp_path, '--mixup-mode', 'random-box', '--mixup-prob', 0.5, pictures=True)
    assert all(row['lam'] < 1 for row in json.loads((folder / 'mixes.json').read_text())['images'])


@pytest.mark.slow
def test_a_mixer_without_options_ends_with_a_picture(images, tmp_path):
    class Minimal:
        def __init__(self, num_classes, prob=1.0, **common):
            self.num_classes = num_classes

        def __call__(self, images, targets, model=None):
            rows = nn.functional.one_hot(targets, self.num_classes).float()
            return (images + images.roll(1, 0)) / 2, (rows + rows.roll(1, 0)) / 2

    register_mixer('test-minimal', 'the mean of two neighbours')(Minimal)
    folder = run_tiny(images, tmp_path, '--mixup-mode', 'test-minimal', '--mixup-prob', 0.5, '--epochs', 1,
                      pictures=True)
    assert (folder / 'mixes.png').stat().st_size > 1000


def test_a_picture_that_fails_does_not_fail_the_run(images, tmp_path, monkeypatch, caplog):
    def broken(*args):
        raise RuntimeError('no fonts')

    monkeypatch.setattr(stages, '_write_mixes', broken)
    assert train.console(line(images, tmp_path, '--num-classes', 4, '--epochs', 1, '--mixup-mode', 'cutmix')) == 0
    assert [r.levelname for r in caplog.records if r.message == 'No mixes.png of cutmix: RuntimeError: no fonts'] == [
        'WARNING']
    assert (tmp_path / 'run' / 'last.pth.tar').is_file()


@pytest.mark.slow
@pytest.mark.parametrize('mode', [*(name for name in list_mixers() if name not in TIMM_MODES), 'gradmix+cutmix',
                                  'gradmix+regmixup'])
def test_every_mixer_trains_on_an_odd_batch_and_is_recorded(mode, images, tmp_path):
    model = ('--model', 'test_vit') if mode == 'transmix' else ()
    folder = run_tiny(images, tmp_path, '--mixup-mode', mode, '-b', 7, '--mixup-prob', 0.9, '--epochs', 1, *model,
                      pictures=True)
    record = load_checkpoint(folder / 'last.pth.tar').record
    assert record.mixer == mode
    assert create_mixer(mode, **record.mixer_options).options == record.mixer_options
    assert json.loads((folder / 'mixes.json').read_text())['mixer']
    assert (folder / 'mixes.png').stat().st_size > 1000


@pytest.mark.parametrize(('mode', 'given', 'expected'), [
    ('pixmix', (), (0.5, 0.25, 0.125)), ('pixmix', ('mean=(0,0,0)', 'std=(1,1,1)'), (0, 0, 0)),
    ('cutmix+pixmix', (), (0.5, 0.25, 0.125))])
def test_pixmix_undoes_the_normalisation_of_the_run(mode, given, expected, images, tmp_path):
    if given:
        given = ('--mixup-kwargs', *given)
    folder = run_tiny(images, tmp_path, '--mixup-mode', mode, *given, '--mean', 0.5, 0.25, 0.125, '--epochs', 1,
                      '--val-split', '')
    options = load_checkpoint(folder / 'last.pth.tar').record.mixer_options
    assert options.get('parts', {'pixmix': options})['pixmix']['mean'] == expected


def test_timms_mode_is_recorded_and_rebuilt(images, tmp_path):
    folder = run_tiny(images, tmp_path, '--mixup', 0.4, '--mixup-mode', 'elem', '--epochs', 1, pictures=True)
    record = load_checkpoint(folder / 'last.pth.tar').record
    assert record.mixer == 'elem'
    assert create_mixer('elem', num_classes=4, **record.mixer_options).timm.mixup_alpha == 0.4
    assert not (folder / 'mixes.png').exists()


@pytest.mark.parametrize('kind', ['logit', 'feature', 'token'])
def test_a_student_is_mixed_by_its_own_maps(kind, images, tmp_path, spy, monkeypatch):
    create = timm.create_model
    monkeypatch.setattr('timm.task.distillation.create_model', lambda **kw: create(**{**kw, 'pretrained': False}))
    student = 'test_resnet'
    if kind == 'token':
        student = 'deit_tiny_distilled_patch16_224'
        monkeypatch.setattr(train, 'create_model', lambda **kw: create(
            **{**kw, 'depth': 2, 'embed_dim': 24, 'num_heads': 2}))
    run_tiny(images, tmp_path, '--mixup-mode', 'gradmix', '--model', student, '--epochs', 1, '--kd-model-name',
             'test_resnet', '--kd-distill-type', kind)
    wanted = 'VisionTransformerDistilled' if kind == 'token' else 'ResNet'
    assert {type(call['model']).__name__ for call in spy[0].seen} == {wanted}


def test_a_mixer_that_cannot_serve_the_model_is_refused_before_data_is_opened(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(stages, 'open_data', lambda *args: opened.append(args))
    with pytest.raises(UsageError, match='layer9'):
        train.main(line(tmp_path, tmp_path, '--mixup-mode', 'gradmix', '--gradmix-layers', 'layer9'))
    assert not opened


def test_a_folder_that_is_not_there_is_named_before_a_model_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, 'build_model', None)
    with pytest.raises(UsageError, match='no folder at /nowhere; --data-dir names the folder that holds the data'):
        train.main(line('/nowhere', tmp_path))


def test_mixing_collate_is_switched_off_in_workers_that_run():
    data = [(torch.full((3, 8, 8), n, dtype=torch.uint8), n % 4) for n in range(16)]
    collate = SwitchedCollate(mixup_alpha=1.0, num_classes=4, label_smoothing=0.0)
    loader = torch.utils.data.DataLoader(data, batch_size=8, num_workers=2, collate_fn=collate, persistent_workers=True)
    assert min(float(t.max(1).values.min()) for _, t in loader) < 1
    collate.mixup_enabled = False
    assert all(bool((t.max(1).values == 1).all()) for _, t in loader)


# ---- known and unknown classes

def test_an_open_set_run_sees_known_train_images_alone(images, tmp_path, monkeypatch):
    opened, served = [], []
    original = loaders.open_dataset
    monkeypatch.setattr(loaders, 'open_dataset', lambda *a, **k: (opened.append(a[2]), original(*a, **k))[1])
    build = stages.build_loaders
    monkeypatch.setattr(stages, 'build_loaders', lambda *a: (served.append(a[4]), build(*a))[1])
    folder = run_tiny(images, tmp_path, '--known-classes', 'dog,ant,bee', '--osr-val-fraction', 0.25, '--mixup-mode',
                      'gradmix', classes=None, pictures=True)
    assert opened == ['train']
    assert json.loads((folder / 'mixes.json').read_text())['mixer'] == 'gradmix'
    assert (folder / 'mixes.png').stat().st_size > 1000
    names = [served[0].train.filename(n) for n in range(len(served[0].train))]
    held = [served[0].eval.filename(n) for n in range(len(served[0].eval))]
    assert len(names) == 18
    assert len(held) == 6
    assert not set(names) & set(held)
    assert not any('cat' in name for name in names + held)
    record = load_checkpoint(folder / 'model_best.pth.tar').record
    assert record.known_classes == ('dog', 'ant', 'bee')
    assert record.unknown_classes == ('cat',)
    assert record.held_out == identities(served[0].eval)
    assert record.splits == {'train': 'train', 'test': 'validation'}
    assert record.model_kwargs['num_classes'] == 3
    assert record.data_config['input_size'] == (3, 32, 32)


def test_without_a_held_out_share_every_known_image_trains_and_the_loss_picks(images, tmp_path):
    folder = run_tiny(images, tmp_path, '--known-classes', 'dog,ant', '--osr-val-fraction', 0, classes=None)
    assert 'eval_top1' not in rows(folder)[0]
    assert load_checkpoint(folder / 'model_best.pth.tar').record.held_out == {}


def test_the_digits_protocol_runs_and_its_checkpoint_builds_the_model(tmp_path):
    train.main(['--dataset', 'sklearn/digits', '--osr-protocol', 'digits', '--osr-trial', '1', *TINY, '--epochs', '1',
                '-b', '128', '--img-size', '16', '--output', str(tmp_path), '--experiment', 'run', '--mixup-mode',
                'random-box'])
    loaded = load_checkpoint(tmp_path / 'run' / 'last.pth.tar')
    assert (loaded.record.protocol, loaded.record.trial, len(loaded.record.known_classes)) == ('digits', 1, 6)
    assert loaded.record.splits['test'] == 'test'
    assert build_model(loaded).num_classes == 6


def test_a_plain_run_names_its_classes_and_rebuilds(images, tmp_path):
    folder = run_tiny(images, tmp_path, '--model', 'test_vit', '--epochs', 1, '--gp', 'avg')
    loaded = load_checkpoint(folder / 'last.pth.tar')
    assert loaded.record.known_classes == CLASSES
    assert loaded.record.splits == {'train': 'train', 'test': 'validation'}
    assert loaded.record.data_dir == str(images)
    model = build_model(loaded)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


@pytest.mark.parametrize(('flags', 'words'), [
    (('--known-classes', 'ant,bee,cta'), "'cat'"),
    (('--known-classes', 'ant,bee,cat,dog'), 'none is left as unknown'),
    (('--known-classes', 'ant,bee', '--num-classes', 4), 'one output for each'),
    (('--osr-protocol', 'digit'), "did you mean 'digits'"),
    (('--osr-protocol', 'digits', '--osr-trial', 9), 'trials 0 to 4'),
    (('--num-classes', 3), '--num-classes 4'),
    (('--num-classes', 4, '-b', 64), 'fewer than one batch'),
    (('--num-classes', 4, '--train-split', 'nope'), 'train'),
    (('--model', 'test_resnett'), 'test_resnet'),
    (('--num-classes', 4, '--model-kwargs', 'nope=1'), 'nope'),
    (('--num-classes', 4, '--eval-metric', 'map'), 'top1'),
    (('--num-classes', 4, '--stop-epoch', 3), 'stop-epoch'),
    (('--num-classes', 4, '--save-epochs', 1, 9), 'save-epochs'),
    (('--num-classes', 4, '--loss', 'bce', '--loss-class-weight', '1,2,3'), '3 entries but the model has 4'),
    (('--num-classes', 4, '--device', 'cuda'), '--device cpu'),
    (('--num-classes', 4, '--aa', 'rand-x9'), ''),
    (('--data-dir', '/nowhere/at/all'), '--data-dir'),
    (('--num-classes', 4, '--start-epoch', 9), '--start-epoch'),
    (('--num-classes', 4, '--model', 'test_vit', '--img-size', 31), '--img-size'),
    (('--num-classes', 4, '--naflex-loader'), 'a NaFlex model'),
    (('--num-classes', 4, '--in-chans', 7), '--input-img-mode'),
    (('--num-classes', 4, '--initial-checkpoint', '/nowhere/x.pth'), '/nowhere/x.pth: no such file'),
    (('--num-classes', 4, '--pretrained-path', 'x.pth'), '--pretrained too'),
    (('--num-classes', 4, '--opt', 'adamw', '--opt-betas', 0.9), '--opt-betas'),
    (('--num-classes', 4, '--tta', 5), 'multiples'),
    (('--num-classes', 4, '--val-split', 'other'), '--class-map'),
])
def test_what_the_user_can_mend_is_status_2_and_one_line(flags, words, images, tmp_path, capsys):
    if 'cuda' in flags and torch.cuda.is_available():
        pytest.skip('there is a CUDA device')
    if 'other' in flags:  # folders of other names would be numbered anew
        images = shutil.copytree(images, tmp_path / 'images')
        shutil.copytree(images / 'validation', images / 'other')
        (images / 'other' / 'cat').rename(images / 'other' / 'zebra')
    status = train.console(line(images, tmp_path, *flags))
    errors = [text for text in capsys.readouterr().err.splitlines() if text.startswith('error: ')]
    assert (status, len(errors)) == (2, 1)
    assert words in errors[0]
    assert not (tmp_path / 'run').exists()


# ---- how a run ends

def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_made(images, tmp_path, monkeypatch, capsys):
    (tmp_path / 'file').write_text('')
    monkeypatch.setattr(train, 'create_model', lambda **kw: pytest.fail('too late'))
    assert train.console(line(images, tmp_path / 'file' / 'out')) == 2
    assert f'{tmp_path / "file"} is a file' in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_good_checkpoint(images, tmp_path, monkeypatch,
                                                                                     capsys):
    step = stages.train_one_epoch

    def poison(run, epoch):
        if epoch == 1:
            with torch.no_grad():
                next(run.task.parameters()).fill_(float('nan'))
        return step(run, epoch)

    monkeypatch.setattr(stages, 'train_one_epoch', poison)
    assert train.console(line(images, tmp_path, '--num-classes', 4)) == 1
    error = [text for text in capsys.readouterr().err.splitlines() if text.startswith('error: ')][-1]
    for word in ('nan', 'epoch 1, batch 0', 'learning rate 0.025', str(tmp_path / 'run' / 'last.pth.tar')):
        assert word in error
    assert load_checkpoint(tmp_path / 'run' / 'last.pth.tar').epoch == 0


@pytest.mark.parametrize('flags', [(), ('--grad-accum-steps', 2), ('--mixup-mode', 'gradmix')],
                         ids=['plain', 'accumulated', 'gradmix'])
def test_told_to_skip_a_broken_batch_changes_nothing_but_its_own_update(flags, images, tmp_path, monkeypatch, caplog):
    placed, learn, kept = loop._Epoch._placed, loop._Epoch._learn, []

    def poison(self, input, target):
        input, target = placed(self, input, target)
        self.seen = getattr(self, 'seen', -1) + 1
        return (input * float('nan') if self.seen == 2 else input), target

    def watched(self, *rest):
        before = [value.clone() for value in self.run.task.state_dict().values()]
        loss = learn(self, *rest)
        kept.append(all(map(torch.equal, before, self.run.task.state_dict().values())))
        return loss

    monkeypatch.setattr(loop._Epoch, '_placed', poison)
    monkeypatch.setattr(loop._Epoch, '_learn', watched)
    monkeypatch.setattr(stages, '_write_mixes', lambda *args: None)
    assert train.console(line(images, tmp_path, '--num-classes', 4, '--epochs', 1, '--skip-nonfinite', *flags)) == 0
    dropped = {2, 3} if '--grad-accum-steps' in flags else {2}
    assert {index for index, same in enumerate(kept) if same} == dropped
    assert sum('dropped' in record.message for record in caplog.records) == 1
    (row,) = rows(tmp_path / 'run')
    assert float(row['train_loss']) > 0
    assert float(row['eval_loss']) > 0


def test_an_epoch_of_broken_batches_stops_even_so(images, tmp_path, monkeypatch, capsys):
    placed = loop._Epoch._placed
    monkeypatch.setattr(loop._Epoch, '_placed', lambda self, x, y: (placed(self, x, y)[0] * float('inf'), y))
    assert train.console(line(images, tmp_path, '--num-classes', 4, '--skip-nonfinite')) == 1
    assert 'no batch of epoch 0 had a finite loss' in capsys.readouterr().err


def test_an_interrupt_is_130_and_names_the_last_checkpoint(images, tmp_path, monkeypatch, capsys):
    step = stages.train_one_epoch

    def interrupted(run, epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        return step(run, epoch)

    monkeypatch.setattr(stages, 'train_one_epoch', interrupted)
    assert train.console(line(images, tmp_path, '--num-classes', 4)) == 130
    printed = capsys.readouterr()
    assert f'last checkpoint: {tmp_path / "run" / "last.pth.tar"}' in printed.err
    assert [r['epoch'] for r in json.loads(printed.out.split('--result\n')[1])] == [0]


def test_ctrl_c_waits_for_the_end_of_a_batch(images, tmp_path, monkeypatch):
    steps = []
    update = loop._Epoch._updated

    def pressed(self, index, *rest):
        steps.append((self.epoch, index))
        if steps[-1] == (1, 1):
            os.kill(os.getpid(), signal.SIGINT)
            steps.append('after')
        update(self, index, *rest)

    monkeypatch.setattr(loop._Epoch, '_updated', pressed)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_tiny(images, tmp_path, '--workers', 1)
    assert steps[-2:] == [(1, 1), 'after']
    assert signal.getsignal(signal.SIGINT) is before


def test_results_are_printed_for_programs_best_last(images, tmp_path, capsys):
    folder = run_tiny(images, tmp_path, '--epochs', 3)
    printed = json.loads(capsys.readouterr().out.split('--result\n')[1])
    assert [r['validation']['top1'] for r in printed] == sorted(float(r['eval_top1']) for r in rows(folder))
    assert printed[0]['train'].keys() == {'loss'}


def test_without_validation_the_loss_picks_the_best(images, tmp_path):
    folder = run_tiny(images, tmp_path, '--val-split', '')
    assert 'eval_loss' not in rows(folder)[0]
    best = min(rows(folder), key=lambda r: float(r['train_loss']))
    assert load_checkpoint(folder / 'model_best.pth.tar').epoch == int(best['epoch'])


def test_milestones_and_the_stop_force_a_checkpoint(images, tmp_path):
    folder = run_tiny(images, tmp_path, '--epochs', 4, '--stop-epoch', 3, '--save-epochs', 1, '--val-interval', 9)
    assert [r['epoch'] for r in rows(folder)] == ['0', '2']
    assert (folder / 'milestone-1.pth.tar').exists()
    assert yaml.safe_load((folder / 'args.yaml').read_text())['epochs'] == 4


def test_a_terminal_shows_a_bar_below_the_log(images, tmp_path, monkeypatch, caplog, capsys):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    run_tiny(images, tmp_path)
    assert 'epoch 2/2' in capsys.readouterr().err
    assert any(r.message.startswith('Train: ') for r in caplog.records)
    assert any(re.search(r'^Test: .*Loss: +\S+ \( *\S+\)  Acc@1: +\S+ \( *\S+\)  Acc@5: +\S+ \( *\S+\)$', r.message)
               for r in caplog.records)


class Tiny(nn.Module):
    """A model that timm does not know."""

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes
        self.fc = nn.Linear(3, num_classes)
        self.pretrained_cfg = {'input_size': (3, 32, 32), 'mean': (0.5,) * 3, 'std': (0.5,) * 3}

    def forward(self, x):
        return self.fc(x.mean((2, 3)))


def test_a_terminal_without_columns_gets_lines(monkeypatch):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    monkeypatch.setattr(sys.stderr, 'fileno', lambda: 2, raising=False)
    for columns in (0, 80):
        monkeypatch.setattr(os, 'get_terminal_size', lambda *args, n=columns: os.terminal_size((n, 24)))
        bar = open_bar(3)
        assert (bar is None) == (columns == 0)
    bar.close()


def test_create_model_is_looked_up_in_the_module(images, tmp_path, monkeypatch):
    monkeypatch.setattr(train, 'create_model', lambda **kw: Tiny(kw['num_classes']))
    assert set(state(run_tiny(images, tmp_path, '--epochs', 1))) == {'fc.weight', 'fc.bias'}


@pytest.mark.slow
def test_a_run_moves_no_flag_of_the_process(images, tmp_path):
    before = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled())
    run_tiny(images, tmp_path, '--mixup-mode', 'gradmix', '--epochs', 1)
    assert before == (torch.is_grad_enabled(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled())


@pytest.mark.slow
def test_the_clean_batch_is_trained_on_too(tmp_path, capsys):
    train.main(['--dataset', 'sklearn/digits', '--osr-protocol', 'digits', *TINY, '--in-chans', '1', '--mixup-mode',
                'gradmix', '--gradmix-keep-clean', '--epochs', '1', '--batch-size', '64', '--output', str(tmp_path),
                '--experiment', 'clean'])
    assert (tmp_path / 'clean' / 'model_best.pth.tar').exists()
    assert '"top1"' in capsys.readouterr().out


@pytest.mark.parametrize(('model', 'tokens'), [('test_vit', 101), ('vit_tiny_patch16_224', 17)])
def test_a_model_that_takes_the_size_as_it_is_keeps_its_own(model, tokens):
    """As timm's script, which never hands the size on; one that does not take it is built for it."""
    args, _ = train._parse_args(['--data-dir', '.', '--model', model, '--img-size', '64', '--num-classes', '3'])
    before = torch.get_rng_state()
    resolved = setup._model_arguments(args)
    assert torch.equal(torch.get_rng_state(), before)
    assert timm.create_model(**resolved).pos_embed.shape[1] == tokens
