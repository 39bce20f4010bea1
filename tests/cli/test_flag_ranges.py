"""Values out of range are refused while flags are read, by name, and none that timm's script takes for another."""
from __future__ import annotations

import pytest

from gradmix_timm.cli import train
from gradmix_timm.cli.training.flag_ranges import _PAIRS, _RANGES, _WORDS


def refused(capsys, *argv):
    """The one line of a command line that is refused."""
    with pytest.raises(SystemExit) as stop:
        train._parse_args(list(map(str, argv)))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert (stop.value.code, len(lines)) == (2, 1)
    return lines[0]


ACTIONS = {action.dest: action for action in train.parser._actions}
NUMBERS = [name for names in _RANGES.values() for name in names]


def test_every_number_of_timms_flags_has_a_range_or_may_be_anything():
    numeric = {dest for dest, action in ACTIONS.items() if action.type in (int, float)}
    ours = {dest for dest in numeric if dest.startswith(('gradmix_', 'objective_', 'osr_'))}
    anything = {'mean', 'head_init_scale', 'head_init_bias', 'loss_weight_power', 'poly_gamma', 'poly_epsilon'}
    elsewhere = {'mixup_prob', 'mixup_switch_prob', 'mixup_prob_elem', 'aug_splits', 'stop_epoch', 'save_epochs',
                 'multilabel_threshold', 'crop_padding', 'log_mixes_interval', 'probe_epochs', 'local_rank'}
    assert numeric - ours - set(NUMBERS) == anything | elsewhere
    assert set(NUMBERS) <= numeric


@pytest.mark.parametrize('name', NUMBERS)
def test_a_number_out_of_range_is_named(name, capsys):
    action = ACTIONS[name]
    count = action.nargs if isinstance(action.nargs, int) else 2 if name in _PAIRS else 1
    line = refused(capsys, f'--{name.replace("_", "-")}', *[-1] * count)
    assert f'--{name.replace("_", "-")} ' in line
    assert 'got -1' in line


@pytest.mark.parametrize('name', _WORDS)
def test_an_unknown_word_is_named_with_those_there_are(name, capsys):
    line = refused(capsys, f'--{name.replace("_", "-")}', 'nonsense')
    assert f'--{name.replace("_", "-")} nonsense' in line
    assert next(filter(None, _WORDS[name])) in line


@pytest.mark.parametrize(('argv', 'words'), [
    ('--lr nan', 'finite'), ('--head-init-bias inf', 'finite'), ('--smoothing 1', 'in [0, 1)'),
    ('--scale 0.5', 'two numbers'), ('--ratio 2 1', 'smaller first'), ('--cutmix-minmax 0.9 0.1', 'smaller first'),
    ('--decay-milestones 5 2', 'rising'), ('--lr-noise 0.1 0.2 0.3', 'one or two'), ('--aa rand-x9', '--aa rand-x9'),
    ('--img-size 32 --input-size 3 40 32', 'two sizes'), ('--in-chans 3 --input-size 1 32 32', '--in-chans'),
    ('--train-img-sizes 24 32 --train-size-probs 1', 'one for each'),
    ('--train-img-sizes 24 32 --train-size-probs 0 0', 'above 0'),
    ('--aug-splits 2 --no-prefetcher', '--no-prefetcher'), ('--naflex-loader --no-prefetcher', '--no-prefetcher'),
    ('--naflex-loader --cutmix-minmax 0.2 0.8', '--cutmix-minmax'), ('--naflex-loader --save-images', '--save-images'),
    ('--naflex-loader --naflex-patch-sizes 8 16 --naflex-patch-size-probs 1', 'one for each'),
])
def test_values_that_do_not_go_together_are_named(argv, words, capsys):
    assert words in refused(capsys, *argv.split())


@pytest.mark.parametrize('argv', [
    '--lr 0', '--grad-accum-steps 0', '--validation-batch-size 0', '--warmup-epochs 9 --epochs 3', '--mean 0.5',
    '--min-lr 0', '--opt-eps 0', '--crop-pct 1', '--aa original', '--sched wsd --epochs 10', '--mixup-prob 0',
    '--img-size 32 --input-size 3 32 32',
])
def test_what_timms_script_takes_is_taken(argv):
    train._parse_args(argv.split())


@pytest.mark.parametrize(('argv', 'words'), [
    ('--model-kwargs foo', '--model-kwargs takes pairs'), ('--opt-kwargs foo', '--opt-kwargs takes pairs'),
    ('--mixup-mode gradmix --mixup-kwargs alpha=x', 'alpha is a number'), ('--wandb-resume-id x', '--log-wandb'),
    ('--sync-bn --device cpu', '--sync-bn'), ('--class-stats none.json --loss db --task multilabel', '--class-stats'),
])
def test_what_only_shows_later_is_refused_early(argv, words, capsys):
    assert words in refused(capsys, *argv.split())


@pytest.mark.parametrize(('key', 'value'), [
    ('color_jitter', None), ('val_split', ''), ('experiment', ''), ('wandb_tags', []), ('aa', None), ('mixup', 0.0),
])
def test_null_in_yaml_switches_off_what_can_be(key, value, tmp_path):
    (tmp_path / 'c.yaml').write_text(f'{key}: null\n')
    assert getattr(train._parse_args(['-c', str(tmp_path / 'c.yaml')])[0], key) == value


def test_null_in_yaml_is_no_number(tmp_path, capsys):
    (tmp_path / 'c.yaml').write_text('batch_size: null\n')
    assert 'batch_size: expected a value, got null' in refused(capsys, '-c', tmp_path / 'c.yaml')
