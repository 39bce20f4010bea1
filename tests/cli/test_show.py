"""The show command: pictures, their facts, the deletion table."""
from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from matplotlib.figure import Figure
from PIL import Image
from tiny_checkpoints import save_checkpoint
from torch import nn

from gradmix_timm import create_mixer, list_mixers
from gradmix_timm.attribution.deletion import Place, deletion_drops
from gradmix_timm.cli.commands import show
from gradmix_timm.cli.commands.show import save_mixes
from gradmix_timm.cli.errors import UsageError, run_console
from gradmix_timm.cli.show import main
from gradmix_timm.cli.training.args import build_config_parser, build_parser, parse_args
from gradmix_timm.mixers import TIMM_MODES


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for name in ('cat', 'dog'):
        (tmp_path / 'tree' / name).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / 'tree' / name / f'{i}.png')
    return tmp_path / 'tree'


@pytest.mark.parametrize(('mixer', 'extra'), [
    ('gradmix', ['--layers', '-2,-1']), ('mixup', []), ('none', []),
    *(pytest.param(*given, marks=pytest.mark.slow) for given in (
        ('cutmix', []), ('gradmix+cutmix', []), ('gradmix', ['--mixup-kwargs', 'fill=noise', 'center=sample']))),
])
def test_a_picture_and_its_facts(images, tmp_path, mixer, extra, capsys):
    out = tmp_path / 'sub' / 'x.png'
    argv = ['--model', 'test_vit', '--img-size', '64', '--num-classes', '5', '--images', str(images), '--mixer', mixer,
            '--out', str(out), '--num', '3', *extra]
    assert run_console(main, argv) == 0
    assert str(out) in capsys.readouterr().out
    with Image.open(out) as picture:
        assert min(picture.size) > 200
    facts = json.loads(out.with_suffix('.json').read_text())
    assert facts['mixer'] == mixer
    assert len(facts['images']) == 3
    for row in facts['images']:
        assert 0 <= row['lam'] <= 1
        assert sum(row['weight']) == pytest.approx(1, abs=1e-5)
        yl, yh, xl, xh = row['box']
        assert 0 <= yl <= yh <= 64
        assert 0 <= xl <= xh <= 64
    if extra[:1] == ['--layers']:
        assert len(facts['layers']) == 2


@pytest.mark.slow
@pytest.mark.parametrize('name', [n for n in list_mixers() if not n.startswith(('doctest', 'test'))])
def test_every_registered_mixer_can_be_shown(name, tmp_path, tiny_cnn, batch):
    mixer = create_mixer(name, num_classes=10)
    before = batch[0].clone()
    config = {'mean': (0.5,) * 3, 'std': (0.5,) * 3}
    save_mixes(tmp_path, tiny_cnn, *batch, mixer, [str(k) for k in range(10)], config)
    assert torch.equal(batch[0], before)
    assert (tmp_path / 'mixes.png').stat().st_size > 5000
    assert json.loads((tmp_path / 'mixes.json').read_text())['mixer'] == name
    assert tiny_cnn.training


@pytest.mark.parametrize('mode', [
    mode if mode in ('batch', 'half') else pytest.param(mode, marks=pytest.mark.slow) for mode in TIMM_MODES])
def test_timms_modes_are_shown_too_for_any_number_of_images(mode, images, tmp_path):
    before, pictures = np.hstack(np.random.get_state()[1:3]).tolist(), []  # noqa: NPY002
    for name in ('a', 'b'):
        torch.manual_seed(0)  # the untrained model names the labels
        argv = ['--model', 'test_resnet', '--img-size', '32', '--num-classes', '5', '--images', str(images), '--mixer',
                mode, '--mixup-kwargs', 'cutmix_alpha=1.0', '--num', '3', '--out', str(tmp_path / f'{name}.png')]
        assert run_console(main, argv) == 0
        pictures.append((tmp_path / f'{name}.png').read_bytes())
    assert pictures[0] == pictures[1]
    assert np.hstack(np.random.get_state()[1:3]).tolist() == before  # noqa: NPY002


@pytest.mark.parametrize(('argv', 'match'), [
    (['--images', 'nowhere', '--model', 'test_vit'], 'nowhere is not a folder'),
    (['--images', '.', '--model', 'test_vitt'], 'did you mean'),
    (['--images', '.'], '--checkpoint FILE or --model NAME'),
])
def test_what_a_user_can_mend_is_status_2_and_one_line(argv, match, capsys):
    assert run_console(main, argv) == 2
    err = capsys.readouterr().err
    assert match in err
    assert err.count('error:') == 1
    assert 'Traceback' not in err


def test_wrong_mixer_layer_and_broken_image(images, capsys):
    base = ['--model', 'test_vit', '--img-size', '64', '--num-classes', '5', '--images', str(images)]
    assert run_console(main, [*base, '--mixer', 'gradmx']) == 2
    assert "did you mean 'gradmix'" in capsys.readouterr().err
    assert run_console(main, [*base, '--layers', 'blocks.99']) == 2
    words = capsys.readouterr().err
    assert 'blocks.' in words
    assert '(--layers)' in words
    (images / 'cat' / 'broken.png').write_bytes(b'not an image')
    assert run_console(main, [*base, '--num', '9']) == 2
    assert 'broken.png' in capsys.readouterr().err


class Spot(nn.Module):
    """The logit of class 0 is the brightness of the image."""

    def __init__(self):
        super().__init__()
        self.grid = nn.AvgPool2d(2)

    def forward(self, x):
        bright = self.grid(x).mean((1, 2, 3)) * 100
        return torch.stack([bright, torch.zeros_like(bright)], 1)


def test_covering_the_evidence_hides_more_than_covering_anything_else():
    images = torch.zeros(12, 1, 32, 32)
    for row in range(12):
        y, x = 2 * row, 24 - 2 * row
        images[row, :, y:y + 6, x:x + 6] = 1.0
    places = [Place('random'), Place('center'), Place('layercam', 'grid')]
    drops = deletion_drops(Spot(), images, torch.zeros(12, dtype=torch.int64), places, 10).mean(1)
    assert drops[2] > 2 * drops[0]
    assert drops[2] > drops[1]


def test_no_image_fills_its_own_box():
    images = torch.arange(1, 6).view(5, 1, 1, 1).expand(5, 1, 8, 8) / 1.0
    for seed in range(20):
        drops = deletion_drops(Spot(), images, torch.zeros(5, dtype=torch.int64), [Place('center')], 8, seed)
        assert (drops != 0).all()
    for count, side, match in ((1, 4, r'got 1 image; give two'), (5, 9, r'1 to 8 pixels, got 1 places and side=9')):
        with pytest.raises(ValueError, match=match):
            deletion_drops(Spot(), images[:count], torch.zeros(count, dtype=torch.int64), [Place('center')], side)


def test_the_deletion_table_is_printed_and_written(images, tmp_path, capsys):
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=2)
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    out = tmp_path / 'deletion.json'
    argv = ['--checkpoint', str(tmp_path / 'weights.pth'), '--model', 'test_resnet', '--num-classes', '2',
            '--images', str(images), '--deletion', '--deletion-sides', '0.3', '--deletion-layers', 'default', '--shift',
            '4', '--out', str(out)]
    assert run_console(main, argv) == 0
    assert '| center |' in capsys.readouterr().out
    table = json.loads(out.read_text())['fall_of_log_odds']
    assert {'random', 'center'} < set(table)


@pytest.mark.parametrize(('flags', 'words'), [
    (['--deletion', '--out', 'fall.png'], '--out fall.png: expected a file that ends in .json'),
    (['--deletion', '--out', 'mixes.png'], '--out mixes.png: expected a file that ends in .json'),
    (['--out', 'fall.json'], '--out fall.json: expected a file that ends in .png'),
    (['--deletion', '--mixer', 'gradmix'], '--mixer is of the picture'),
    (['--deletion', '--mixup-kwargs', 'fill=noise'], '--mixup-kwargs is of the picture'),
    (['--deletion', '--layers', '-1'], '--layers is of the picture'),
    (['--deletion', '--num', '6'], '--num is of the picture')])
def test_the_table_takes_neither_the_pictures_file_nor_its_flags(flags, words, images, capsys):
    assert run_console(main, ['--model', 'test_resnet', '--images', str(images), *flags]) == 2
    assert capsys.readouterr().err.startswith(f'error: {words}')


def test_the_table_is_written_only_where_a_file_is_named(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    argv = ['--model', 'test_resnet', '--num-classes', '2', '--images', str(images), '--img-size', '32']
    short = ['--deletion', '--deletion-sides', '0.3', '--deletion-layers', 'default']
    assert run_console(main, [*argv, *short]) == 0
    assert '| center |' in capsys.readouterr().out
    assert set(tmp_path.iterdir()) == before
    assert run_console(main, argv) == 0
    assert {path.name for path in set(tmp_path.iterdir()) - before} == {'mixes.png', 'mixes.json'}


@pytest.mark.slow
def test_a_checkpoint_names_the_classes_and_folders_give_the_labels(images, tmp_path):
    from tiny_training import run_tiny, write_images
    write_images(tmp_path / 'data')
    folder = run_tiny(tmp_path / 'data', tmp_path / 'out', '--mixup-mode', 'gradmix')
    out = tmp_path / 'x.png'
    names = sorted(path.name for path in (tmp_path / 'data' / 'train').iterdir())
    assert run_console(main, ['--checkpoint', str(folder / 'model_best.pth.tar'), '--images',
                              str(tmp_path / 'data' / 'train'), '--out', str(out)]) == 0
    facts = json.loads(out.with_suffix('.json').read_text())
    assert facts['mixer'] == 'gradmix'
    assert {row['class'] for row in facts['images']} <= set(names)
    assert len({row['class'] for row in facts['images']}) > 1, 'labels are folders, not an untrained guess'


@pytest.mark.parametrize(('flag', 'value'), [
    ('--num', '0'), ('--num', '-1'), ('--num-classes', '0'), ('--img-size', '0'), ('--shift', '-3'),
    ('--deletion-images', '1'), ('--deletion-sides', '0'), ('--deletion-sides', '7'), ('--deletion-sides', 'nan')])
def test_a_number_out_of_range_is_refused_before_a_model_is_loaded(flag, value, tmp_path):
    with pytest.raises(UsageError, match=f'^{flag} '):
        main(['--images', str(tmp_path), '--model', 'test_resnet', flag, value])


def test_the_checkpoints_mixer_is_shown_with_the_flags_over_it(images, tmp_path):
    path = save_checkpoint(tmp_path / 'run' / 'last.pth.tar', images, mixer_options={'prob': 0.0, 'seed': 1})
    out = tmp_path / 'x.png'
    assert run_console(main, ['--checkpoint', str(path), '--images', str(images), '--out', str(out), '--num', '2',
                              '--layers', '-2,-1', '--mixup-kwargs', 'fill=noise']) == 0
    facts = json.loads(out.with_suffix('.json').read_text())
    assert all(row['lam'] < 1 for row in facts['images'])
    assert len(facts['layers']) == 2
    assert [row['weight'] for row in facts['images']] == [[1, 0]] * 2


@pytest.mark.parametrize(('mixer', 'options', 'named'), [
    ('gradmix', {'fill': 'noise', 'former': 0}, 'former'),
    ('gradmix+cutmix', {'switch_prob': 0.0, 'parts': {'gradmix': {'fill': 'noise', 'former': 0}, 'cutmix': {}}},
     'gradmix.former')])
def test_an_option_that_the_checkpoints_mixer_has_no_more_is_left_out_by_name(mixer, options, named, images, tmp_path,
                                                                            caplog, capsys):
    path = save_checkpoint(tmp_path / 'run' / 'last.pth.tar', images, mixer=mixer, mixer_options=options)
    out = tmp_path / 'x.png'
    argv = ['--checkpoint', str(path), '--images', str(images), '--out', str(out)]
    assert run_console(main, argv) == 0
    assert [r.message for r in caplog.records] == [
        f'{path}: mixer {mixer!r} has no option {named} any more; left out']
    assert {tuple(row['weight']) for row in json.loads(out.with_suffix('.json').read_text())['images']} == {(1, 0)}
    assert run_console(main, [*argv, '--mixup-kwargs', 'gradmix.former=0' if '+' in mixer else 'former=0']) == 2
    assert 'has no option' in capsys.readouterr().err


@pytest.mark.parametrize(('flags', 'temperature', 'sigmoids'), [
    ([], 1, False), (['--bce-loss'], 1, True), (['--loss', 'bce'], 1, True),
    (['--loss-temperature', '3', '--epochs', '20'], 3, False),
    (['--loss-temperature', 'negcos:period=20', '--epochs', '40', '--sched', 'none'], 2, False)])
def test_a_confidence_judges_as_the_loss_of_the_checkpoints_epoch(flags, temperature, sigmoids, images, tmp_path,
                                                                  monkeypatch):
    path = save_checkpoint(tmp_path / 'run' / 'last.pth.tar', images, mixer_options={'confidence': 0.9})
    state = torch.load(path, weights_only=True)
    args, _ = parse_args(build_config_parser(), build_parser(), flags)
    torch.save({**state, 'epoch': 10, 'args': vars(args)}, path)
    shown = []
    monkeypatch.setattr(show, 'save_mixes', lambda *given: shown.append(given[4]))
    assert run_console(main, ['--checkpoint', str(path), '--images', str(images)]) == 0
    assert (shown[0].temperature, shown[0].sigmoids) == (pytest.approx(temperature), sigmoids)


def test_a_loss_temperature_without_the_epochs_of_its_run_is_refused(images, tmp_path, capsys):
    path = save_checkpoint(tmp_path / 'run' / 'last.pth.tar', images, mixer_options={'confidence': 0.9})
    torch.save({**torch.load(path, weights_only=True), 'args': {'loss_temperature': '3'}}, path)
    assert run_console(main, ['--checkpoint', str(path), '--images', str(images)]) == 2
    assert 'have a loss temperature and not its epochs' in capsys.readouterr().err


def test_labels_of_no_class_are_shown_as_such(images, tmp_path, monkeypatch):
    path = save_checkpoint(
        tmp_path / 'run' / 'last.pth.tar', images, net=timm.create_model('test_resnet', num_classes=3),
        model_kwargs={'num_classes': 3}, known_classes=('cat', 'dog'), unknown_output=True, mixer='openmix',
        mixer_options={'ratio': (0, 1, 0), 'unknown_output': True})
    shown = []
    monkeypatch.setattr(show, 'plot_scene', lambda scene, names, *_: shown.append((scene.targets, names)) or Figure())
    argv = ['--checkpoint', path, '--images', images, '--out', tmp_path / 'x.png']
    assert run_console(main, list(map(str, argv))) == 0
    (targets, names), = shown
    assert names == ['cat', 'dog', 'no class']
    assert targets[:, 2].unique().tolist() == [0, 1]
