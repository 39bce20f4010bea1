"""Training's command line: every flag of timm as timm has it, ours on top, YAML below, contradictions refused."""
from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest
import timm
import yaml

from gradmix_timm.cli import train
from gradmix_timm.cli.training.timm_flags import TAKES_EMPTY
from gradmix_timm.mixers import OPTIONS, create_mixer, list_mixers

TABLE = json.loads((Path(__file__).parent.parent / 'data' / 'timm_train_flags.json').read_text())
TIMM = [a for a in TABLE['arguments'] if a['parser'] == 'parser' and a['dest'] != 'help']
LATER = {a['dest'] for a in TABLE['known_changes_in_1_0_31']} - {'sweep_locks', 'sweep_attempt'}
OURS = {'skip_nonfinite', 'overwrite', 'exif', 'mixup_prob_elem', 'multi_label_mix', 'mixup_kwargs',
        'known_classes', 'osr_protocol',
        'osr_trial', 'osr_family', 'osr_val_fraction', 'osr_test_split', 'objective', 'objective_temperature',
        'objective_gamma',
        'objective_ssl_weight', 'objective_dim', 'objective_hidden', 'objective_queue', 'objective_momentum',
        'probe_epochs', 'loss_temperature', 'aug_backend', 'aug_config', 'cache_images', 'crop_padding',
        'log_tensorboard', 'log_mixes_interval', 'unknown_output',
        *(f'gradmix_{name}' for name in OPTIONS)}
ACTIONS = {action.dest: action for action in train.parser._actions if action.dest != 'help'}


def parse(*argv):
    return train._parse_args(list(map(str, argv)))[0]


def refused(capsys, *argv):
    """The one error line of a command line that is refused."""
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert len([line for line in lines if line.startswith('error: ')]) == 1
    return next(line for line in lines if line.startswith('error: '))


def config(tmp_path, **values):
    path = tmp_path / 'config.yaml'
    path.write_text(yaml.safe_dump(values))
    return path


# ---- timm's flags

def test_every_flag_is_timms():
    def facts(action):
        return {
            'option_strings': list(action.option_strings), 'default': action.default,
            'type': getattr(action.type, '__name__', None), 'nargs': action.nargs, 'const': action.const,
            'choices': None if action.choices is None else list(action.choices), 'required': action.required,
            'action': type(action).__name__}

    ours = {fact['dest']: facts(ACTIONS[fact['dest']]) for fact in TIMM}
    assert ours == {fact['dest']: {key: fact[key] for key in ours[fact['dest']]} for fact in TIMM}


def test_only_our_flags_are_added_and_nothing_is_missing():
    assert set(ACTIONS) - {fact['dest'] for fact in TIMM} <= OURS | LATER
    assert {fact['dest'] for fact in TIMM} | LATER <= set(ACTIONS)


@pytest.mark.parametrize('title', sorted({fact['group'] for fact in TIMM}))
def test_order_within_a_group_is_timms(title):
    group = next(g for g in train.parser._action_groups if g.title == title)
    ours = [action.dest for action in group._group_actions if action.dest != 'help']
    assert ours == [fact['dest'] for fact in TIMM if fact['group'] == title]


def test_compile_and_script_exclude_each_other(capsys):
    assert 'not allowed with' in refused(capsys, '--torchscript', '--torchcompile')


def test_every_option_of_gradmix_that_training_serves_is_a_flag():
    assert {f'gradmix_{name}' for name in OPTIONS} <= set(ACTIONS)


def test_help_can_be_printed():
    assert 'gradmix' in train.parser.format_help()


# ---- YAML

def test_yaml_gives_defaults_and_the_command_line_goes_over_it(tmp_path):
    path = config(tmp_path, lr='3e-4', epochs=7, model='test_vit', **{'mixup-mode': 'cutmix'})
    args = parse('-c', path, '--epochs', 300)
    assert (args.lr, args.epochs, args.model, args.mixup_mode) == (3e-4, 300, 'test_vit', 'cutmix')


def test_a_command_line_value_equal_to_the_default_still_goes_over_yaml(tmp_path):
    assert parse('-c', config(tmp_path, momentum=0.5), '--momentum', 0.9).momentum == 0.9


def test_yaml_leaves_the_parser_as_it_was(tmp_path):
    parse('-c', config(tmp_path, lr=0.7, data='/x'))
    assert parse().lr is None
    assert parse().data is None


def test_positional_data_from_yaml_is_kept(tmp_path):
    assert parse('-c', config(tmp_path, data='/x')).data_dir == '/x'


def test_base_is_built_on_one_level_deep(tmp_path, capsys):
    (tmp_path / 'base.yaml').write_text('lr: 0.1\nepochs: 3\n')
    assert vars(parse('-c', config(tmp_path, base='base.yaml', lr=0.2))).items() >= {'lr': 0.2, 'epochs': 3}.items()
    (tmp_path / 'base.yaml').write_text('base: other.yaml\n')
    assert 'one level deep' in refused(capsys, '-c', config(tmp_path, base='base.yaml'))


@pytest.mark.parametrize(('values', 'words'), [
    ({'mixpu': 0.8}, 'did you mean mixup?'),
    ({'lr': 'fast'}, 'lr: expected a number'),
    ({'epochs': 2.5}, 'epochs: expected a whole number'),
    ({'amp': 'yes'}, 'amp: expected true or false'),
    ({'amp': 1}, 'amp: expected true or false'),
    ({'input_size': 224}, 'a list of 3 values'),
    ({'input_size': [3, 32]}, 'a list of 3 values'),
    ({'decay_milestones': [1, 'x']}, 'expected a whole number'),
    ({'train_size_schedule': 'nope'}, 'expected one of constant, progressive'),
    ({'model_kwargs': 'img_size=3'}, 'expected a mapping'),
    ({'gradmix_fill': 'sand'}, 'expected one of donor'),
    ({'batch_size': 8, 'batch-size': 16}, 'batch_size is there twice'),
])
def test_a_wrong_value_in_yaml_is_named(values, words, tmp_path, capsys):
    line = refused(capsys, '-c', config(tmp_path, **values))
    assert words in line
    assert 'config.yaml' in line


def test_flags_that_timms_script_had_once_are_left_out_with_one_warning(tmp_path, caplog, capsys):
    """An args.yaml of 2021 reruns; a word that was never a flag is an error still."""
    old = {'apex_amp': False, 'native_amp': True, 'bn_tf': False, 'jsd': False, 'num_gpu': 1, 'lr': 0.3, 'mean': None,
           'dist_bn': '', 'scale': [0.08, 1.0], 'local_rank': 0, 'amp': False}
    assert parse('-c', config(tmp_path, **old)).lr == 0.3
    assert [record.levelname for record in caplog.records] == ['WARNING']
    for words in ('config.yaml: ignored', 'apex_amp (now amp), bn_tf',
                  'jsd (now jsd_loss), native_amp (now amp), num_gpu'):
        assert words in caplog.text
    assert 'no flag is called' in refused(capsys, '-c', config(tmp_path, **old, native_ampp=True))


def test_a_key_that_is_no_flag_is_ignored_aloud_as_by_timm_unless_it_looks_misspelt(tmp_path, capsys, caplog):
    assert parse('-c', config(tmp_path, lr=0.3, my_note='baseline')).lr == 0.3
    assert "config.yaml: 'my_note' is ignored: there is no such flag" in caplog.text
    assert 'did you mean epochs?' in refused(capsys, '-c', config(tmp_path, epohcs=3))
    assert 'did you mean gradmix_fill?' in refused(capsys, '-c', config(tmp_path, gradmix_fil='mean'))


@pytest.mark.parametrize(('text', 'expected'), [
    ('cat,"a,b", dog', ['cat', 'a,b', 'dog']), ('x,5" disk', ['x', '5" disk']), ('a\nb,c', ['a\nb', 'c'])])
def test_a_class_name_with_a_comma_can_be_typed(text, expected):
    assert parse('--known-classes', text, '--data-dir', '.').known_classes == expected


@pytest.mark.parametrize(('text', 'words'), [('- a\n- b\n', 'a list'), ('', 'nothing'), ('a: [', 'not YAML')])
def test_a_file_that_is_no_mapping_is_refused(text, words, tmp_path, capsys):
    (tmp_path / 'c.yaml').write_text(text)
    assert words in refused(capsys, '-c', tmp_path / 'c.yaml')


def test_a_missing_file_is_named(tmp_path, capsys):
    assert 'none.yaml' in refused(capsys, '-c', tmp_path / 'none.yaml')


@pytest.mark.parametrize('argv', [
    ('--mixup-mode', 'gradmix', '--gradmix-layers', '-2', 'layer3', '--gradmix-lam-range', '0.1', '0.8',
     '--no-gradmix-correct-lam', '--known-classes', 'a,b', '--torchcompile', '--model-kwargs', 'img_size=64'),
    ('--task', 'multilabel', '--bce-loss', '--bce-pos-weight', '2', '--mixup', '0.2'),
    ('--sched', 'wsd', '--mixup-mode', 'gradmix+cutmix', '--mixup-kwargs', 'gradmix.alpha=0.5'),
])
def test_the_saved_text_reruns_the_job(argv, tmp_path):
    args, text = train._parse_args(list(argv))
    (tmp_path / 'args.yaml').write_text(text)
    assert train._parse_args(['--config', str(tmp_path / 'args.yaml')])[0] == args


# ---- ours

def test_a_registered_name_takes_timms_alphas_with_one_where_they_are_zero():
    from gradmix_timm.cli.training.mixing import plan_mixing
    plan = plan_mixing(parse('--mixup-mode', 'mixup+cutmix', '--mixup', 0.2, '--mixup-switch-prob', 0.3))
    assert plan.options['parts'] == {'mixup': {'alpha': 0.2}, 'cutmix': {'alpha': 1.0}}
    assert plan.options['switch_prob'] == 0.3
    assert plan.in_step


def test_timms_modes_alone_mix_nothing_and_registered_names_do():
    from gradmix_timm.cli.training.mixing import plan_mixing
    assert plan_mixing(parse('--mixup-mode', 'elem')).name is None
    assert plan_mixing(parse('--mixup-mode', 'elem', '--cutmix', 1)).timm
    assert plan_mixing(parse('--mixup-mode', 'none')).in_step


@pytest.mark.parametrize('name', [name for name in list_mixers() if name not in ('batch', 'pair', 'elem', 'half')])
def test_every_registered_name_is_a_mode(name):
    from gradmix_timm.cli.training.mixing import create_step_mixer, plan_mixing
    plan = plan_mixing(parse('--mixup-mode', name, '--mixup-prob', 0.5))
    assert plan.in_step
    mixer = create_step_mixer(plan, 10)
    assert (mixer.name, mixer.options['prob']) == (name, 0.5)
    assert name in ' '.join(train.parser.format_help().split())


def test_weights_beyond_one_and_binary_cross_entropy_are_refused_together(capsys):
    assert '--bce-loss with --mixup-mode snapmix' in refused(capsys, '--mixup-mode', 'snapmix', '--bce-loss')


@pytest.mark.parametrize(('line', 'words'), [
    ('--mixup-mode gradmix --task multilabel', '--multi-label-mix weight or union'),
    ('--mixup-mode gradmix --multi-label-mix union', '--multi-label-mix goes with --task multilabel'),
    ('--mixup-mode batch --mixup 1 --task multilabel --multi-label-mix union', 'goes with a registered mixer'),
    ('--mixup-mode snapmix --task multilabel --multi-label-mix weight', '--multi-label-mix union'),
    ('--mixup-mode gradmix --gradmix-keep-clean --task multilabel --multi-label-mix weight', '--task multilabel'),
])
def test_multi_label_mixing_says_what_it_goes_with(line, words, capsys):
    assert words in refused(capsys, *line.split())


@pytest.mark.parametrize(('line', 'found'), [
    ('--mixup-mode saliencymix --mixup-kwargs shared=true', {'shared': True}),
    ('--mixup-mode puzzlemix --mixup-kwargs moves=false', {'moves': False}),
    ('--mixup-mode elem --mixup 0.2 --mixup-kwargs correct_lam=false', {'correct_lam': False}),
])
def test_booleans_may_be_written_as_in_yaml(line, found):
    from gradmix_timm.cli.training.mixing import plan_mixing
    options = plan_mixing(parse(*line.split())).options
    assert {key: options[key] for key in found} == found


@pytest.mark.parametrize('mode', ['gradmix', 'cutmix', 'gradmix+cutmix'])
def test_multi_label_mixing_reaches_the_mixer(mode):
    from gradmix_timm.cli.training.mixing import create_step_mixer, plan_mixing
    args = parse('--mixup-mode', mode, '--task', 'multilabel', '--multi-label-mix', 'union')
    assert [part.multi_label_mix for part in create_step_mixer(plan_mixing(args), 5).parts] == ['union'] * len(
        mode.split('+'))


@pytest.mark.parametrize('line', [
    '--mixup-mode gradmix --gradmix-recipe authors --mixup-kwargs score=evidence --amp',
    '--mixup-mode random-box --gradmix-recipe authors --amp',
    '--mixup-mode random-box --gradmix-layers -1 --gradmix-score logit --gradmix-center argmax',
    '--mixup-mode gradmix --gradmix-label area --objective simclr',
    '--mixup-mode gradmix --gradmix-recipe authors --objective simclr'])
def test_what_another_option_settles_is_taken(line):
    assert parse(*line.split()).mixup_mode == line.split()[1]


def test_options_reach_the_mixer():
    from gradmix_timm.cli.training.mixing import create_step_mixer, plan_mixing
    args = parse('--mixup-mode', 'gradmix', '--gradmix-recipe', 'authors', '--gradmix-fill', 'mean', '--gradmix-layers',
                 '-1', '--mixup-kwargs', 'lam=image', '--mixup-prob', 0.5, '--mixup-prob-elem', 0.7, '--seed', 3)
    mixer = create_step_mixer(plan_mixing(args), 10, rank=2)
    wanted = create_mixer('gradmix', num_classes=10, recipe='authors', fill='mean', layers=(-1,), lam='image', prob=0.5,
                          prob_elem=0.7, seed=3, rank=2, label_smoothing=0.1)
    assert mixer.options == wanted.options


@pytest.mark.parametrize(('mode', 'alphas', 'unused', 'advised'), [
    ('gradmix', ('--cutmix', 1.0, '--mixup', 0.2), '--mixup and --cutmix', 'gradmix+cutmix'),
    ('cutmix', ('--mixup', 0.2), '--mixup', 'cutmix+mixup'), ('gradmix+cutmix', ('--mixup', 0.2), '--mixup', None)])
def test_unused_alphas_are_warned_of_once_with_what_takes_them(mode, alphas, unused, advised, caplog):
    parse('--mixup-mode', mode, *alphas)
    hint = f'; to alternate with it type --mixup-mode {advised}' if advised else ''
    assert [r.message for r in caplog.records] == [
        f'{unused} unused: --mixup-mode {mode} is not made of it{hint}']
    if advised:
        parse('--mixup-mode', advised, *alphas)


@pytest.mark.parametrize(('argv', 'words'), [
    ('--mixup-mode gradmx', "did you mean 'gradmix'"),
    ('--mixup-mode gradmix+elem', "timm's own class"),
    ('--mixup-mode gradmix+gradmix', 'two different'),
    ('--mixup-mode gradmix --cutmix-minmax 0.2 0.8', '--cutmix-minmax'),
    ('--mixup-mode gradmix --aug-splits 3', '--aug-splits'),
    ('--mixup-mode gradmix --aug-splits 3 --jsd-loss', '--aug-splits'),
    ('--mixup-mode gradmix --loss jsd', '--loss jsd with --mixup-mode gradmix'),
    ('--mixup-mode gradmix --jsd-loss', '--jsd-loss with --mixup-mode gradmix'),
    ('--mixup 0.2 --loss jsd', '--loss jsd with --mixup-mode batch'),
    ('--mixup-mode gradmix --naflex-loader', '--naflex-loader'),
    ('--mixup-mode gradmix --torchscript', '--torchscript'),
    ('--mixup-mode gradmix --task multilabel', '--task multilabel'),
    ('--mixup-mode gradmix --loss asl', 'ASL'),
    ('--mixup-mode gradmix --amp --gradmix-recipe authors', 'float16'),
    ('--mixup-mode gradmix --mixup-kwargs keep_clean=True --kd-model-name resnet18', '--kd-model-name'),
    ('--mixup-mode gradmix+cutmix --gradmix-keep-clean', 'gradmix+cutmix'),
    ('--mixup-mode random-box --gradmix-keep-clean', 'random-box'),
    ('--mixup-mode gradmix --mixup-kwargs attr_scale=1e999', 'attr_scale is in (0, 1]'),
    ('--mixup-mode gradmix --mixup-kwargs seed=1e999', 'seed is a whole number'),
    ('--mixup-mode gradmix --mixup-kwargs score=loss --amp', 'float16'),
    ('--mixup-mode gradmix+cutmix --mixup-kwargs gradmix.score=loss --amp', 'float16'),
    ('--mixup-mode gradmix --mixup-kwargs multi_label_mix=union', 'type --multi-label-mix'),
    ('--mixup-mode gradmix+cutmix --mixup-kwargs cutmix.unknown_output=True', 'type --unknown-output'),
    ('--mixup-mode gradmix --gradmix-keep-clean --gradmix-attr-scale 0.5', 'attr_scale=0.5 (--gradmix-attr-scale)'),
    ('--mixup-mode gradmix --gradmix-keep-clean --gradmix-attribution center',
     "attribution='center' (--gradmix-attribution)"),
    ('--mixup-mode gradmix --gradmix-keep-clean --gradmix-attribution random',
     "attribution='random' (--gradmix-attribution)"),
    ('--mixup-mode gradmix --gradmix-keep-clean --gradmix-attribution input-gradient', 'input-gradient'),
    ('--mixup-mode random-box --mixup-kwargs attribution=layercam', "'random-box' has attribution='random'"),
    ('--mixup-mode gradmix --gradmix-confidence -1', 'confidence is a probability'),
    ('--mixup-mode gradmix --mixup-kwargs attr_scale=abc', "attr_scale is a number, got 'abc'"),
    ('--mixup-mode mixup --unknown-output --num-classes 4', 'nothing would go to that output'),
    ('--mixup 0.2 --unknown-output --num-classes 4', '--mixup-mode openmix'),
    ('--mixup-mode openmix --unknown-output', 'type --num-classes N'),
    ('--mixup-mode openmix --unknown-output --kd-model-name resnet18 --num-classes 4', '--kd-model-name'),
    ('--mixup-mode openmix --unknown-output --task multilabel --num-classes 4', '--task multilabel'),
    ('--mixup-mode openmix --mixup-kwargs ratio=1', 'three numbers'),
    ('--mixup-mode transmix --grad-checkpointing', '--grad-checkpointing with --mixup-mode transmix'),
    ('--mixup-mode mixup+transmix --torchcompile', '--torchcompile with'),
    ('--mixup-mode tokenmix --bce-loss', '--bce-loss with --mixup-mode tokenmix: its label weights go beyond 1'),
    ('--mixup-mode tokenmix --loss bce', '--loss bce with --mixup-mode tokenmix: its label weights go beyond 1'),
    ('--mixup-mode cutmix --gradmix-label mass', '--gradmix-label has no effect'),
    ('--mixup-mode gradmix --mixup-kwargs alhpa=1', "did you mean 'alpha'"),
    ('--mixup-mode gradmix+cutmix --mixup-kwargs alpha=1', 'gradmix.alpha or cutmix.alpha'),
    ('--mixup-mode cutmix --gradmix-alpha 2', '--gradmix-alpha has no effect'),
    ('--mixup-mode random-box --gradmix-attribution gradcam', 'fixes the attribution'),
    ('--mixup-mode gradmix --mixup-prob 1.5', '--mixup-prob'),
    ('--mixup-mode elem --mixup 0.2 -b 7', 'even'),
    ('--mixup-mode elem --mixup 0.2 --mixup-prob-elem 0.5', '--mixup-prob-elem'),
    ('--mixup 0.2 --aug-splits 2', '--aug-splits'),
    ('--mixup 0.2 --mixup-kwargs alpha=2', 'no such option'),
    ('--mixup-kwargs correct_lam=False', 'no effect'),
    ('--cutmix-minmax 0.5', 'two numbers'),
    ('--mixup 0.2 --mixup-kwargs prob=x', "prob is a number, got 'x'"),
    ('--mixup 0.2 --mixup-kwargs prob=2', 'prob is a probability in [0, 1], got 2'),
    ('--mixup 0.2 --mixup-kwargs label_smoothing=1', 'label_smoothing is in [0, 1), got 1'),
    ('--mixup-kwargs mixup_alpha=x', "mixup_alpha is a number, got 'x'"),
    ('--mixup 0.2 --mixup-kwargs cutmix_minmax=[0.9,0.1]', '0 <= smallest < largest <= 1; got [0.9, 0.1]'),
    ('--mixup 0.2 --mixup-kwargs cutmix_minmax=3', 'cutmix_minmax is two numbers'),
    ('--mixup-mode pixmix --mixup-kwargs mean=(0.5,) std=(0.0,)', 'std above 0; got (0.5,) and (0.0,)'),
    ('--mixup-mode pixmix --mixup-kwargs mean=(0.5,0.5) std=(0.2,)', 'one number per channel each'),
    ('--bce-loss --loss poly', 'one loss'),
    ('--jsd-loss', 'jsd_splits'),
    ('--loss zlpr', 'multi-label'),
    ('--bce-sum', 'bce'),
    ('--target-format multihot', '--task multilabel'),
    ('--poly-gamma 1', '--loss poly'),
    ('--train-size-probs 1 2', '--train-img-sizes'),
    ('--resume auto', '--experiment'),
    ('--sched cosin', "did you mean 'cosine'"),
    ('--opt adamm', 'adam'),
    ('--sched wsd --epochs 3 --decay-epochs 9', 'decay_epochs'),
    ('--osr-trial 1', '--osr-protocol'),
    ('--osr-family arpl2020', '--osr-protocol'),
    ('--osr-val-fraction 0.2', '--known-classes'),
    ('--overwrite', '--experiment'),
    ('--data-dir a b', 'two data folders'),
    ('--data-dir a --amp true', 'two data folders'),
    ('a b', 'unrecognized arguments: b'),
    ('--known-classes a,,b', 'an unset variable?'),
    ('--known-classes a,', 'an unset variable?'),
    ('--known-classes a,b --osr-protocol digits', 'leave one out'),
    ('--known-classes a,b --osr-val-fraction 1', '--osr-val-fraction'),
    ('--known-classes a,a', 'twice'),
    ('--objective contrast', '--objective'),
    ('--gradmix-alhpa 1 --mixup-mode gradmix', 'did you mean --gradmix-alpha?'),
])
def test_a_contradiction_is_refused_by_name(argv, words, capsys):
    assert words in refused(capsys, *argv.split())


def test_multilabel_and_wsd_set_their_own_defaults_unless_told():
    args = parse('--task', 'multilabel')
    assert (args.eval_metric, args.smoothing) == ('map', 0.0)
    assert parse('--task', 'multilabel', '--eval-metric', 'top1').eval_metric == 'top1'
    assert parse('--sched', 'wsd').decay_epochs is None
    assert parse('--sched', 'wsd', '--decay-epochs', 90, '--epochs', 100).decay_epochs == 90


def test_import_train_is_the_module_of_the_package(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent.parent))
    import train as script
    assert script is train


# ---- empty words, which a shell makes of unset variables

def options():
    """Every option of the parser, with one empty word or several."""
    return [action for parser in (train.parser, train.config_parser) for action in parser._actions
            if action.nargs != 0 and action.dest != 'help']


@pytest.mark.parametrize('action', options(), ids=lambda action: action.dest)
def test_an_empty_word_is_refused_where_it_means_nothing(action, capsys):
    count = action.nargs if isinstance(action.nargs, int) else 1
    for word in ('', '  '):
        argv = [*action.option_strings[:1], *[word] * count]
        if action.dest in TAKES_EMPTY and not word:
            assert getattr(parse(*argv), action.dest) == ''
            continue
        line = refused(capsys, *argv)
        assert 'an unset variable?' in line
        assert not action.option_strings or action.option_strings[0] in line


@pytest.mark.parametrize('flag', ['--wandb-tags', '--device-modules', '--gradmix-layers', '--model-kwargs'])
def test_one_empty_word_of_a_list_is_refused(flag, capsys):
    assert 'an unset variable?' in refused(capsys, flag, 'a=1', '')


def test_a_positional_folder_goes_over_the_files(tmp_path):
    (tmp_path / 'a.yaml').write_text('data_dir: there\ndata: there\n')
    assert parse('-c', tmp_path / 'a.yaml').data_dir == 'there'
    assert parse('here', '-c', tmp_path / 'a.yaml').data_dir == 'here'
    assert parse('--data-dir', 'here', '-c', tmp_path / 'a.yaml').data_dir == 'here'
    assert parse('here', '--data-dir', 'here').data_dir == 'here'


def test_help_names_the_configuration_file_and_the_version():
    assert re.search(r'-c( FILE)?, --config FILE', train.parser.format_help())  # Python 3.13 names the value once
    assert '--version' in train.parser.format_help()


@pytest.mark.parametrize(('line', 'confidence', 'label'), [
    ('gradmix', 0.9, 'keep'), ('gradmix --gradmix-confidence 0', 0, 'area'),
    ('gradmix --gradmix-label area', 0.9, 'area'),
    ('gradmix --gradmix-confidence 0.5', 0.5, 'keep'), ('gradmix --gradmix-center random', 0.9, 'keep'),
    ('gradmix+random-box --gradmix-confidence 0.8', 0.8, 'keep'),
    ('gradmix+cutmix', 0.9, 'keep'), ('gradmix --mixup-kwargs confidence=0', 0, 'area'),
    ('gradmix --gradmix-recipe authors', 0, 'keep'), ('gradmix --gradmix-attribution random', 0, 'area'),
    ('gradmix --mixup-kwargs attribution=center', 0, 'area'), ('gradmix --gradmix-keep-clean', 0.9, 'keep'),
    ('gradmix --objective simclr', 0, 'area'), ('gradmix --task multilabel --multi-label-mix weight', 0, 'area'),
    ('random-box', 0, 'area'), ('center-box', 0, 'area')])
def test_a_training_mixes_what_the_model_is_sure_of(line, confidence, label):
    from gradmix_timm.cli.training.mixing import create_step_mixer, plan_mixing
    config = create_step_mixer(plan_mixing(parse('--mixup-mode', *line.split())), 10).parts[0].config
    assert (config.confidence, config.label) == (confidence, label)


def test_a_binary_cross_entropy_lets_the_mixer_judge_by_sigmoids():
    from gradmix_timm.cli.training.mixing import create_step_mixer, plan_mixing
    plan = plan_mixing(parse('--mixup-mode', 'gradmix+cutmix'))
    assert [create_step_mixer(plan, 10, 0, sigmoids).parts[0].sigmoids for sigmoids in (False, True)] == [False, True]


@pytest.mark.parametrize(('flags', 'sigmoids'), [((), False), (('--bce-loss',), True), (('--loss', 'bce'), True)])
def test_both_spellings_of_the_binary_cross_entropy_tell_the_mixer(flags, sigmoids, monkeypatch):
    """Red before for --loss bce, which trained with softmax probabilities under sigmoids."""
    from gradmix_timm.cli.training import setup
    from gradmix_timm.cli.training.flag_checks import check_args
    from gradmix_timm.cli.training.mixing import plan_mixing
    args = parse('--mixup-mode', 'gradmix', '--num-classes', '5', '--data-dir', '.', *flags)
    check_args(args, set())
    args.rank = 0
    built = argparse.Namespace(preprocessing=argparse.Namespace(input_size=(3, 64, 64)),
                               model=timm.create_model('test_resnet', num_classes=5))
    assert setup.build_mixer(args, plan_mixing(args), built).sigmoids == sigmoids


def test_a_small_copy_for_the_maps_is_harder_to_be_sure_of(caplog):
    from gradmix_timm.cli.training.mixing import plan_mixing
    for flags, told in ((('--gradmix-confidence', '0'), False), ((), True)):
        caplog.clear()
        plan_mixing(parse('--mixup-mode', 'gradmix', '--gradmix-attr-scale', '0.5', *flags))
        assert ('--gradmix-attr-scale below 1' in caplog.text) == told


def test_help_says_what_the_random_boxes_of_the_log_are():
    assert '"Mixed: 64/320" counts the images' in ' '.join(train.parser.format_help().split())
    assert '"Random boxes: 3/64" says that the maps of 3 of 64' in ' '.join(train.parser.format_help().split())
