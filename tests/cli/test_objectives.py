"""--objective and --probe-epochs from flags to a checkpoint that is judged like any other."""
from __future__ import annotations

import argparse
import copy

import numpy as np
import pytest
import torch
from timm.data import create_loader
from tiny_training import TINY, rows, run_tiny, write_images

from gradmix_timm import create_mixer, list_mixers
from gradmix_timm.checkpoint import KEY, ProjectionHead, build_model, load_checkpoint
from gradmix_timm.cli import train
from gradmix_timm.cli.errors import UsageError
from gradmix_timm.cli.training import loop
from gradmix_timm.data import TwoViews, collate_views, open_dataset
from gradmix_timm.evaluation.model import EvaluatedModel
from gradmix_timm.evaluation.settings import EvaluationSettings
from gradmix_timm.mixers import TIMM_MODES
from gradmix_timm.objectives import JointTask
from gradmix_timm.objectives.linear import fit_linear_head
from gradmix_timm.openset.extract import extract
from gradmix_timm.openset.probes import neighbour_votes
from gradmix_timm.openset.scores import fit_score

OURS = [name for name in list_mixers() if name not in TIMM_MODES]
OF_CLASSES = [name for name in OURS if name != 'gradmix' and create_mixer(name, num_classes=4).requires_model]
REFUSED = {
    'openmix': "'openmix' reports none", 'pixmix': "'pixmix' reports none",
    'transmix': 'its labels are read from the attention of the training forward'}
SUPCON = ('--objective', 'supcon+ssl', '--objective-dim', 16)
MOCO = ('--objective', 'moco', '--objective-dim', 16, '--objective-queue', 20, '--objective-momentum', 0.9)
GRADMIX = ('--mixup-mode', 'gradmix')
QUICK = ('--epochs', 1, '--probe-epochs', 0)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


def parse(*argv):
    return train._parse_args(list(map(str, argv)))[0]


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith('error:') or ': error:' in line]
    assert len(errors) == 1, lines
    return errors[0]


def content(path):
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def same(left, right):
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


# ---- flags

def test_every_objective_has_its_defaults_and_no_others():
    plain = parse()
    assert plain.objective == 'ce'
    assert all(value is None for name, value in vars(plain).items() if name.startswith(('objective_', 'probe_')))
    joint = parse('--objective', 'supcon+ssl')
    assert (joint.objective_gamma, joint.objective_ssl_weight, joint.objective_temperature) == (1, 1, 0.05)
    assert (joint.objective_dim, joint.probe_epochs, joint.eval_metric) == (128, 10, 'knn_top1')
    assert joint.objective_queue is None
    moco = parse('--objective', 'moco')
    assert (moco.objective_queue, moco.objective_momentum, moco.objective_gamma) == (4096, 0.999, None)


@pytest.mark.parametrize(('flags', 'words'), [
    (('--probe-epochs', 5), '--probe-epochs goes with --objective supcon+ssl or simclr or moco'),
    (('--objective', 'simclr', '--objective-gamma', 1), '--objective-gamma goes with --objective supcon+ssl'),
    ((*SUPCON, '--objective-queue', 64), '--objective-queue goes with --objective moco'),
    ((*SUPCON, '--bce-loss'), '--bce-loss with --objective supcon+ssl'),
    ((*SUPCON, '--jsd-loss', '--aug-splits', 3), '--jsd-loss'),
    ((*SUPCON, '--loss', 'asl'), '--loss with --objective'),
    ((*SUPCON, '--kd-model-name', 'resnet18'), '--kd-model-name'),
    ((*SUPCON, '--task', 'multilabel'), '--task multilabel'),
    ((*SUPCON, '--aug-splits', 2), '--aug-splits'),
    ((*SUPCON, '--split-bn', '--resplit'), '--split-bn with'),
    ((*SUPCON, '--aug-repeats', 3), '--aug-repeats'),
    ((*SUPCON, '--naflex-loader'), '--naflex-loader'),
    ((*SUPCON, '--train-img-sizes', 32, 48), '--train-img-sizes'),
    ((*SUPCON, '--torchscript'), '--torchscript'),
    ((*SUPCON, '--tta', 2), '--tta'),
    ((*SUPCON, '--mixup', 0.8), '--mixup-mode mixup or cutmix'),
    ((*SUPCON, '--batch-size', 1), '--batch-size 1'),
    ((*SUPCON, '--eval-metric', 'top1'), 'knn_top1'),
    ((*SUPCON, '--dataset', 'tfds/mnist'), 'use the form on disk'),
    ((*SUPCON, '--cache-images'), '--cache-images'),
    ((*SUPCON, *GRADMIX, '--gradmix-keep-clean'), '--gradmix-keep-clean'),
    ((*SUPCON, *GRADMIX, '--gradmix-attr-scale', 0.5), '--gradmix-attr-scale'),
    ((*SUPCON, *GRADMIX, '--gradmix-attribution', 'input-gradient'), 'input-gradient'),
    ((*SUPCON, *GRADMIX, '--gradmix-label', 'mass'), '--gradmix-label mass with --objective supcon+ssl'),
    ((*SUPCON, *GRADMIX, '--mixup-kwargs', 'label=mass'), '--mixup-kwargs label=mass with --objective supcon'),
    ((*MOCO, '--mixup-mode', 'random-box', '--gradmix-label', 'keep'), '--gradmix-label keep with --objective moco'),
    ((*SUPCON, '--objective-temperature', 0), '--objective-temperature is above 0'),
    ((*SUPCON, '--objective-gamma', 0, '--objective-ssl-weight', 0), '--objective-gamma'),
    ((*SUPCON, *GRADMIX, '--objective-ssl-weight', 0), '--objective-ssl-weight 0 with --objective supcon+ssl'),
    ((*SUPCON, '--mixup-mode', 'cutmix', '--objective-ssl-weight', 0), 'nothing would be mixed'),
    ((*SUPCON, '--probe-epochs', -1), '--probe-epochs is 0 or more'),
    ((*MOCO, '--objective-momentum', 2), '--objective-momentum is in [0, 1]'),
    ((*MOCO, '--batch-size', 32), '--objective-queue 20 with --batch-size 32'),
])
def test_contradictions_are_refused_before_anything_is_built(flags, words, capsys):
    assert words in refused(capsys, *flags)


# ---- views

def test_two_views_are_two_draws_of_one_transform():
    draws = iter(range(10))
    assert TwoViews(lambda image: (image, next(draws)))('x') == (('x', 0), ('x', 1))


@pytest.mark.parametrize('prefetcher', [True, False])
def test_batches_hold_view_1_of_every_image_then_view_2(prefetcher, images):
    dataset = open_dataset('', images, 'train')
    loader = create_loader(
        dataset, input_size=(3, 32, 32), batch_size=5, is_training=True, num_workers=0, device=torch.device('cpu'),
        color_jitter=0., hflip=0., scale=(1, 1), ratio=(1, 1), use_prefetcher=prefetcher, persistent_workers=False,
        collate_fn=None if prefetcher else collate_views)
    dataset.transform = TwoViews(dataset.transform)
    batch, labels = next(iter(loader))
    assert batch.shape == (10, 3, 32, 32)
    assert torch.equal(labels[:5], labels[5:])
    assert torch.equal(batch[:5], batch[5:]), 'without random draws both views are one'
    dataset.transform.transform.transforms[0].scale = (0.2, 0.4)
    batch = next(iter(loader))[0]
    assert (batch[:5] != batch[5:]).flatten(1).any(1).all()


@pytest.mark.parametrize('prefetcher', [(), ('--no-prefetcher',)])
def test_a_run_trains_on_two_different_views_and_counts_images(prefetcher, images, tmp_path, monkeypatch):
    seen, counts = [], []
    forward, update = JointTask.forward, loop.LossParts.update
    monkeypatch.setattr(JointTask, 'forward', lambda self, input, target: seen.append((input.clone(), target)) or (
        forward(self, input, target)))
    monkeypatch.setattr(loop.LossParts, 'update', lambda self, result, count: counts.append(count) or update(
        self, result, count))
    run_tiny(images, tmp_path, *SUPCON, *QUICK, *prefetcher)
    for batch, labels in seen:
        assert len(batch) == 12
        assert torch.equal(labels[:6], labels[6:])
        assert (batch[:6] != batch[6:]).flatten(1).any(1).all()
    assert counts == [6] * len(seen)


# ---- runs

@pytest.mark.parametrize('mixer', OF_CLASSES)
def test_mixers_that_read_the_evidence_of_classes_are_refused(mixer, images, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run_tiny(images, tmp_path, *SUPCON, '--mixup-mode', mixer, *QUICK)
    assert stop.value.code == 2
    assert f"'{mixer}' reads the evidence of classes" in capsys.readouterr().err


@pytest.mark.parametrize(('mixer', 'why'), REFUSED.items())
def test_mixers_whose_draws_weigh_no_views_are_refused(mixer, why, images, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run_tiny(images, tmp_path, *SUPCON, '--mixup-mode', mixer, *QUICK)
    assert stop.value.code == 2
    assert why in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize('mixer', [*(name for name in OURS if name not in (*OF_CLASSES, *REFUSED)), 'gradmix+cutmix'])
def test_an_epoch_with_every_mixer(mixer, images, tmp_path):
    folder = run_tiny(images, tmp_path, *SUPCON, '--mixup-mode', mixer, *QUICK)
    line = rows(folder)[0]
    parts = {name for name in line if name.startswith('train_loss_')}
    assert parts == {'train_loss_sup', 'train_loss_ssl'} | ({'train_loss_mix'} if mixer != 'none' else set())
    total = sum(float(line[name]) for name in parts)
    assert float(line['train_loss']) == pytest.approx(total, rel=1e-4)
    assert 0 <= float(line['eval_knn_top1']) <= 100
    record = load_checkpoint(folder / 'last.pth.tar').record
    assert (record.objective, record.mixer, record.probe) == ('supcon+ssl', mixer, {})
    assert record.objective_options == {'temperature': 0.05, 'dim': 16, 'hidden': None, 'gamma': 1.0, 'ssl_weight': 1.0}


@pytest.mark.slow
@pytest.mark.parametrize('flags', [
    ('--objective', 'simclr', *GRADMIX, '--no-prefetcher', '--reprob', 0.5),
    (*SUPCON, *GRADMIX, '--amp', '--amp-dtype', 'bfloat16', '--workers', 2, '--channels-last'),
    (*SUPCON, *GRADMIX, '--torchcompile', 'eager', '--opt', 'adamw', '--layer-decay', 0.9),
    (*MOCO, *GRADMIX, '--grad-checkpointing'),
    (*MOCO, *GRADMIX, '--gradmix-recipe', 'authors', '--clip-grad', 1, '--grad-accum-steps', 2),
    (*MOCO, '--mixup-mode', 'cutmix', '--mixup-prob', 0.5, '--model', 'test_vit', '--osr-val-fraction', 0,
     '--known-classes', 'bee,dog,cat'),
], ids=['simclr', 'amp', 'compiled', 'checkpointed', 'moco', 'vit'])
def test_what_it_is_combined_with(flags, images, tmp_path):
    folder = run_tiny(images, tmp_path, *flags, *QUICK, classes=None if '--known-classes' in flags else 4)
    assert np.isfinite(float(rows(folder)[0]['train_loss']))


def test_mixing_goes_off_and_the_table_keeps_its_columns(images, tmp_path):
    folder = run_tiny(images, tmp_path, *SUPCON, *GRADMIX, '--mixup-off-epoch', 1, '--probe-epochs', 0)
    first, second = rows(folder)
    assert float(first['train_loss_mix']) > 0
    assert float(second['train_loss_mix']) == 0
    assert 0 <= float(second['eval_knn_top1']) <= 100


@pytest.mark.slow
@pytest.mark.parametrize('flags', [
    (*SUPCON, *GRADMIX, '--drop', 0.3, '--model-ema', '--model-ema-decay', 0.9, '--opt', 'adamw'),
    (*MOCO, *GRADMIX, '--known-classes', 'bee,dog,cat', '--osr-val-fraction', 0.3, '--grad-accum-steps', 2),
    ('--objective', 'simclr', '--workers', 2),
], ids=['supcon+ssl', 'moco', 'workers'])
def test_a_resumed_run_is_the_run_that_was_not_stopped(flags, images, tmp_path):
    flags, classes = ('--epochs', 3, '--probe-epochs', 2, *flags), None if '--known-classes' in flags else 4
    straight = run_tiny(images, tmp_path, *flags, name='straight', classes=classes)
    parts = run_tiny(images, tmp_path, *flags, '--resume', 'auto', '--stop-epoch', 1, name='parts', classes=classes)
    assert content(parts / 'last.pth.tar')[KEY]['probe'] == {}, 'the head waits for the last epoch'
    torch.rand(3)
    run_tiny(images, tmp_path, *flags, '--resume', 'auto', name='parts', classes=classes)
    assert rows(parts) == rows(straight)
    left, right = (content(folder / 'last.pth.tar') for folder in (straight, parts))
    for key in ('state_dict', 'optimizer', 'task_state', 'state_dict_ema', 'task_state_ema', KEY):
        assert (key in left) == (key in right)
        assert same(left.get(key), right.get(key)), key
    assert set(left['task_state']) == {'projection_head', *(('key_encoder', 'queue') if 'moco' in flags else ())}


def test_a_file_of_another_objective_is_refused(images, tmp_path):
    folder = run_tiny(images, tmp_path, *SUPCON, *QUICK)
    argv = ['--data-dir', str(images), '--num-classes', '4', *TINY, '--output', str(tmp_path), '--experiment', 'b',
            '--resume', str(folder / 'last.pth.tar')]
    for flags, words in (((), '--objective ce'), (MOCO, '--initial-checkpoint')):
        with pytest.raises(UsageError, match=words):
            train.main([*argv, *map(str, flags)])
    train.main([*argv, '--objective', 'simclr', '--objective-dim', '16', '--probe-epochs', '0'])


# ---- the head

def test_the_head_is_softmax_regression():
    torch.manual_seed(0)
    labels = torch.randint(3, (300,))
    features = torch.randn(300, 6) + torch.eye(3, 6)[labels]
    features[:, 3] *= 1000  # one feature of another scale
    features[:, 4] = 7  # and one that tells nothing
    before = torch.get_rng_state()
    weight, bias = fit_linear_head(features, labels, 3, epochs=150)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, (weight, bias), fit_linear_head(features, labels, 3, epochs=150)))
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    oracle = LogisticRegression(C=1e6, max_iter=2000)
    scaled = StandardScaler().fit_transform(features.numpy())
    oracle.fit(scaled, labels.numpy())
    found = (features @ weight.T + bias).softmax(1)
    assert np.abs(found.numpy() - oracle.predict_proba(scaled)).max() < 0.03
    assert (weight[:, 4] == 0).all()
    for bad in ((features[:0], labels[:0], 3, 1), (features, labels, 2, 1), (features, labels, 3, 0)):
        with pytest.raises(ValueError, match=r'expected|1 epoch'):
            fit_linear_head(*bad)


@pytest.fixture(scope='module')
def probed(images, tmp_path_factory):
    return run_tiny(images, tmp_path_factory.mktemp('runs'), *SUPCON, *GRADMIX, '--known-classes', 'dog,ant,cat',
                    '--osr-val-fraction', 0.3, '--model-ema', '--model-ema-decay', 0.5, '--epochs', 3,
                    '--probe-epochs', 20, '--aug-splits', 0, classes=None)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['last.pth.tar', 'model_best.pth.tar'])
@pytest.mark.parametrize('ema', [False, True])
def test_the_head_is_fitted_to_the_train_images_of_known_classes_alone(name, ema, probed, images):
    """From the ground: features of the backbone as saved, of the images that were not held out."""
    loaded = load_checkpoint(probed / name, ema=ema)
    assert loaded.record.probe['epochs'] == 20
    model = build_model(loaded)
    from gradmix_timm.data import select_classes
    from gradmix_timm.data.identity import row_names
    dataset = select_classes(open_dataset('', images, 'train'), ('dog', 'ant', 'cat'))
    held = loaded.record.held_out
    kept = [row for row, name in enumerate(row_names(dataset)) if name not in held]
    assert len(kept) == len(dataset) - len(held) == 18
    part = copy.copy(dataset)
    part.indices, part.targets = dataset.indices[kept], dataset.targets[kept]
    loader = create_loader(
        part, input_size=(3, 32, 32), batch_size=6, num_workers=0, device=torch.device('cpu'), use_prefetcher=True,
        persistent_workers=False, interpolation=loaded.record.data_config['interpolation'],
        mean=loaded.record.data_config['mean'], std=loaded.record.data_config['std'],
        crop_pct=loaded.record.data_config['crop_pct'])
    found = extract(model, loader, 'cpu')
    weight, bias = fit_linear_head(found.features, found.label, 3, 20, seed=42)
    assert torch.allclose(model.fc.weight, weight, atol=1e-5)
    assert torch.allclose(model.fc.bias, bias, atol=1e-5)


def test_only_the_head_of_a_checkpoint_changes(probed):
    before, after = (content(probed / name) for name in ('checkpoint-2.pth.tar', 'last.pth.tar'))
    changed = [key for key in before['state_dict'] if not torch.equal(before['state_dict'][key],
                                                                      after['state_dict'][key])]
    assert changed == ['fc.weight', 'fc.bias']
    for key in ('optimizer', 'task_state', 'task_state_ema', 'epoch', 'metric', 'saver'):
        assert same(before[key], after[key]), key
    assert {name for name in after[KEY] if not same(after[KEY][name], before[KEY][name])} == {'probe'}


def test_a_finished_run_that_is_called_again_changes_nothing(images, tmp_path):
    flags = (*SUPCON, '--epochs', 1, '--probe-epochs', 2, '--resume', 'auto')
    folder = run_tiny(images, tmp_path, *flags)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    run_tiny(images, tmp_path, *flags)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_evaluation_reads_the_projection(probed, images):
    subject = EvaluatedModel.build(EvaluationSettings(workers=0), load_checkpoint(probed / 'model_best.pth.tar'),
                                   num_classes=3, device='cpu')
    from gradmix_timm.data import select_classes
    part = select_classes(open_dataset('', images, 'train'), ('dog', 'ant', 'cat'))
    found = subject.embed(part, 'images')
    head = ProjectionHead.from_state(content(probed / 'model_best.pth.tar')['task_state_ema']['projection_head'])
    assert torch.allclose(found.projection, head(found.features), atol=1e-6)
    assert found.projection.shape == (24, 16)
    score = fit_score('class-knn', found)
    assert score.diagnostics['reads'] == 'projection'
    plain = fit_score('class-knn', type(found)(**{
        name: None if name == 'projection' else getattr(found, name) for name in found.__slots__}))
    assert not torch.equal(score(found), plain(found))


def test_a_head_that_was_never_fitted_is_said(images, tmp_path, caplog):
    folder = run_tiny(images, tmp_path, *SUPCON, *QUICK)
    EvaluatedModel.build(EvaluationSettings(), load_checkpoint(folder / 'last.pth.tar'), num_classes=4, device='cpu')
    assert 'class head was not trained' in caplog.text


def test_a_classifier_that_is_no_linear_layer_is_refused_before_training(images, tmp_path):
    argv = ['--data-dir', str(images), '--num-classes', '4', *TINY, '--output', str(tmp_path), *map(str, SUPCON),
            '--model', 'levit_128s', '--img-size', '224']
    with pytest.raises(UsageError, match='--probe-epochs 0'):
        train.main(argv)


# ---- validation

def test_neighbours_vote_with_their_closeness():
    bank = torch.nn.functional.normalize(torch.randn(60, 5), dim=1)
    labels, queries = torch.randint(3, (60,)), torch.randn(4, 5)
    votes = neighbour_votes(queries, bank, labels, 3)
    for row, query in enumerate(torch.nn.functional.normalize(queries, dim=1)):
        cosines = sorted(((float(query @ rows_), int(label)) for rows_, label in zip(bank, labels, strict=True)),
                         reverse=True)[:20]
        want = [sum(np.exp((c - 1) / 0.07) for c, label in cosines if label == k) for k in range(3)]
        assert votes[row].tolist() == pytest.approx(want, rel=1e-4)


def test_validation_never_reads_the_test_split_and_leaves_the_views_alone(images, tmp_path, monkeypatch):
    opened = []
    from gradmix_timm.cli.training import loaders
    open_ = loaders.open_dataset
    monkeypatch.setattr(loaders, 'open_dataset', lambda name, root, split, **o: opened.append(split) or open_(
        name, root, split, **o))
    run_tiny(images, tmp_path, *SUPCON, '--known-classes', 'bee,cat', '--epochs', 2, '--probe-epochs', 1, classes=None)
    assert opened == ['train']


@pytest.mark.slow
@pytest.mark.parametrize('objective', [SUPCON, MOCO], ids=['supcon+ssl', 'moco'])
def test_compiled_and_checkpointed_runs_give_the_figures_of_a_plain_one(objective, images, tmp_path):
    plain, other = (rows(run_tiny(images, tmp_path, *objective, *GRADMIX, *more, '--probe-epochs', 0, '--model-ema',
                                  name=name))
                    for name, more in (
                        ('plain', ()), ('other', ('--torchcompile', 'aot_eager', '--grad-checkpointing'))))
    for left, right in zip(plain, other, strict=True):
        for name in ('train_loss', 'train_loss_ssl', 'train_loss_mix'):
            assert float(right[name]) == pytest.approx(float(left[name]), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('flags', [
    (*SUPCON, *GRADMIX), MOCO, (*SUPCON, *GRADMIX, '--torchcompile', 'aot_eager')],
    ids=['supcon+ssl', 'moco', 'compiled'])
def test_two_processes_train_validate_fit_a_head_and_go_on(flags, images, tmp_path):
    from test_train_modes import torchrun
    flags = (*flags, '--epochs', 3, '--probe-epochs', 2)
    straight = torchrun(images, tmp_path, *flags, name='straight')
    torchrun(images, tmp_path, *flags, '--stop-epoch', 1, name='parts')
    parts = torchrun(images, tmp_path, *flags, '--resume', 'auto', name='parts')
    assert rows(parts) == rows(straight)
    left, right = (content(folder / 'last.pth.tar') for folder in (straight, parts))
    assert same(left['state_dict'], right['state_dict'])
    assert same(left['task_state']['projection_head'], right['task_state']['projection_head'])
    assert same(left['task_state'].get('queue'), right['task_state'].get('queue'))
    assert left[KEY]['probe']['epochs'] == 2
