"""Checkpoints of every origin load safely, errors name file and remedy, files are written whole or not at all."""
from __future__ import annotations

import argparse
import hashlib
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.utils import CheckpointSaver

from gradmix_timm.checkpoint import (
    KEY,
    Loaded,
    RunRecord,
    atomic_path,
    build_model,
    check_known,
    load_checkpoint,
    pretraining,
    versions,
    write_atomic,
)


def record(**changes):
    full = RunRecord(
        model='test_resnet', model_kwargs={'num_classes': 3, 'in_chans': 1}, known_classes=('2', '4', '5'),
        unknown_classes=('0', '1'), protocol='digits', family='arpl2020', trial=0, dataset='sklearn/digits',
        splits={'train': 'train', 'test': 'test'}, held_out={'ant/3.png': 'a' * 32}, mixer='gradmix',
        mixer_options={'lam_range': (0, 1), 'layers': None}, seed=0, versions=versions(),
        data_config={'input_size': (1, 32, 32), 'mean': (0.5,), 'interpolation': 'bicubic'})
    return replace(full, **changes)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return timm.create_model('test_resnet', num_classes=3, in_chans=1).eval()


@pytest.fixture
def ours(tmp_path, net):
    path = tmp_path / 'model_best.pth.tar'
    torch.save({'epoch': 4, 'metric': 97.5, 'state_dict': net.state_dict(), KEY: record().to_state()}, path)
    return path


def same_answers(one, other, size=(2, 1, 32, 32)):
    images = torch.randn(size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(one(images), other(images))


def test_record_survives_a_safe_load(ours, net):
    loaded = load_checkpoint(ours)
    assert loaded.record == record()
    assert (loaded.epoch, loaded.metric, loaded.model, loaded.ema) == (4, 97.5, 'test_resnet', False)
    assert loaded.sha256 == hashlib.sha256(ours.read_bytes()).hexdigest()
    built = build_model(loaded)
    assert not built.training
    same_answers(built, net)


def test_record_takes_numpy_numbers_and_paths_and_refuses_objects(tmp_path):
    state = record(data_dir=tmp_path, seed=np.int64(7)).to_state()
    assert (state['data_dir'], type(state['seed'])) == (str(tmp_path), int)
    with pytest.raises(ValueError, match=r"mixer_options\['fill'\]\[0\] .* is a Tensor; expected numbers, strings"):
        record(mixer_options={'fill': [torch.zeros(1)]}).to_state()


def test_record_of_an_unknown_future_is_refused_and_new_entries_are_left_out():
    assert RunRecord.from_state({**record().to_state(), 'later': 1}) == record()
    with pytest.raises(ValueError, match='pip install -U gradmix-timm'):
        RunRecord.from_state({**record().to_state(), 'format': 2})
    with pytest.raises(ValueError, match="expected a dict with 'model', got a dict of known"):
        RunRecord.from_state({'known': 3})


def test_record_refuses_classes_that_cannot_be_a_head():
    with pytest.raises(ValueError, match='different names'):
        record(known_classes=('2', '2', '5'))
    with pytest.raises(ValueError, match='num_classes=3 outputs and 2 known classes'):
        record(known_classes=('2', '4'))


def timm_checkpoint(tmp_path, net, ema=None, **flags):
    args = argparse.Namespace(model='test_resnet', num_classes=3, in_chans=None, input_size=[1, 32, 32], gp=None,
                              model_kwargs={}, lr=0.1, **flags)
    saver = CheckpointSaver(
        net, torch.optim.SGD(net.parameters(), 0.1), args=args, model_ema=ema, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=12.5)
    return tmp_path / 'last.pth.tar'


def test_timms_training_checkpoint_loads_with_its_arguments(tmp_path, net):
    loaded = load_checkpoint(timm_checkpoint(tmp_path, net))
    assert loaded.record is None
    assert (loaded.args['lr'], loaded.model, loaded.metric) == (0.1, 'test_resnet', 12.5)
    assert loaded.model_kwargs == {'num_classes': 3, 'in_chans': 1}
    same_answers(build_model(loaded), net)


def test_moving_average_is_taken_where_there_is_one_unless_refused(tmp_path, net):
    torch.manual_seed(5)
    ema = timm.create_model('test_resnet', num_classes=3, in_chans=1).eval()
    path = timm_checkpoint(tmp_path, net, SimpleNamespace(module=ema))
    same_answers(build_model(load_checkpoint(path)), ema)
    assert load_checkpoint(path).ema
    same_answers(build_model(load_checkpoint(path, ema=False)), net)


def test_an_average_that_training_kept_on_the_cpu_is_taken_only_where_it_is_asked_for(tmp_path, net):
    """With --model-ema-force-cpu training validates the plain weights, and picks model_best by them."""
    ema = timm.create_model('test_resnet', num_classes=3, in_chans=1).eval()
    path = timm_checkpoint(tmp_path, net, SimpleNamespace(module=ema), model_ema_force_cpu=True)
    same_answers(build_model(load_checkpoint(path)), net)
    assert not load_checkpoint(path).ema
    same_answers(build_model(load_checkpoint(path, ema=True)), ema)


def test_moving_average_that_is_not_there_is_an_error(ours):
    with pytest.raises(ValueError, match='no moving average'):
        load_checkpoint(ours, ema=True)


@pytest.mark.parametrize('kind', ['bare', 'wrapped', 'safetensors', 'legacy'])
def test_state_dict_alone_loads_once_the_model_is_named(kind, tmp_path, net):
    path = tmp_path / ('weights.safetensors' if kind == 'safetensors' else 'weights.pth')
    weights = net.state_dict()
    if kind == 'wrapped':  # as DDP and torch.compile leave it
        weights = {f'module._orig_mod.{key}': value for key, value in weights.items()}
    if kind == 'safetensors':
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind != 'legacy')
    loaded = load_checkpoint(path)
    with pytest.raises(ValueError, match='--model NAME'):
        build_model(loaded)
    with pytest.raises(ValueError, match=r'3 in the model\)|, 3, 3, 3\] in the model\).*--model NAME'):
        build_model(loaded, model='test_resnet')  # one channel, not three
    colour = timm.create_model('test_resnet', num_classes=5).eval()
    save_file(colour.state_dict(), tmp_path / 'colour.safetensors')
    same_answers(build_model(load_checkpoint(tmp_path / 'colour.safetensors'), 'test_resnet'), colour, (2, 3, 32, 32))


def test_no_checkpoint_gives_timms_model():
    assert build_model(None, 'test_resnet', num_classes=4).get_classifier().out_features == 4
    with pytest.raises(ValueError, match='--model NAME'):
        build_model(None)


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(('content', 'told'), [
    (b'', 'is empty'),
    (b'\x89PNG\r\n\x1a\n' + bytes(50), 'a PNG image'),
    (b'epoch,loss\n1,2.0\n', "text, beginning 'epoch,loss"),
    (b'version https://git-lfs.github.com/spec/v1\noid', 'git lfs pull'),
    (bytes(range(256)), 'no checkpoint, or a damaged one'),
])
@pytest.mark.parametrize('suffix', ['.pth.tar', '.safetensors'])
def test_other_files_are_named_for_what_they_are(content, told, suffix, tmp_path):
    path = write(tmp_path / f'x{suffix}', content)
    with pytest.raises(ValueError, match=told) as caught:
        load_checkpoint(path)
    assert 'expected a checkpoint' in str(caught.value)
    assert str(path) in str(caught.value)


def test_checkpoint_cut_short_is_refused(ours):
    write(ours, ours.read_bytes()[:-2000])
    with pytest.raises(ValueError, match='cut short'):
        load_checkpoint(ours)


class Trap:
    def __reduce__(self):
        return exec, ('raise SystemExit("run")',)


def test_pickled_code_is_not_run(tmp_path):
    torch.save({'state_dict': {'w': torch.zeros(1)}, 'args': Trap()}, tmp_path / 'trap.pth')
    with pytest.raises(ValueError, match='can run code'):
        load_checkpoint(tmp_path / 'trap.pth')


def test_a_plain_pickle_is_refused_without_a_word_of_pytorchs(tmp_path, recwarn):
    path = tmp_path / 'plain.pth'
    path.write_bytes(pickle.dumps({'state_dict': {}}, protocol=4))
    with pytest.raises(ValueError, match='is no checkpoint'):
        load_checkpoint(path)
    assert not [warning for warning in recwarn if 'pickle protocol' in str(warning.message)]


def test_pickled_model_is_not_run(tmp_path, net):
    torch.save(net, tmp_path / 'whole.pth')
    with pytest.raises(ValueError, match=r'can run code \(.*timm.*save model.state_dict\(\)'):
        load_checkpoint(tmp_path / 'whole.pth')


@pytest.mark.parametrize(('content', 'told'), [
    ({'a': 1, 'b': torch.zeros(1)}, 'a dict of a, b'), ([1, 2], 'a list'), ({}, 'an empty dict'),
    ({'state_dict': {'w': 'x'}}, 'a dict of w')])
def test_torch_files_without_weights_are_refused(content, told, tmp_path):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match=f'holds {told}, no weights; expected'):
        load_checkpoint(tmp_path / 'x.pth')


@pytest.mark.parametrize(('args', 'name', 'began'), [
    ({'pretrained': False, 'initial_checkpoint': '', 'model': 'resnet18'}, None, 'none'),
    ({'pretrained': True, 'initial_checkpoint': '', 'model': 'resnet18'}, None, 'resnet18.a1_in1k'),
    ({'pretrained': True, 'model': 'vit_base_patch16_224.augreg_in21k'}, None, 'vit_base_patch16_224.augreg_in21k'),
    ({'pretrained': True, 'pretrained_path': '/weights/own.pth', 'model': 'resnet18'}, None, 'file own.pth'),
    ({'pretrained': False, 'initial_checkpoint': '/run/ssl.pth.tar', 'model': 'resnet18'}, None, 'file ssl.pth.tar'),
    ({'model': 'resnet18'}, None, None), (None, None, None), (None, 'resnet50', 'resnet50.a1_in1k'),
    (None, 'test_resnet_of_mine', 'test_resnet_of_mine')])
def test_where_the_first_weights_came_from(args, name, began):
    assert pretraining(args, name) == began


def test_missing_file_and_folder(ours, tmp_path):
    with pytest.raises(FileNotFoundError, match='no checkpoint at'):
        load_checkpoint(tmp_path / 'none.pth.tar')
    with pytest.raises(ValueError, match=r'name the file: .*model_best.pth.tar'):
        load_checkpoint(tmp_path)


def test_head_of_another_size_is_refused(ours, tmp_path, net):
    loaded = load_checkpoint(ours)
    with pytest.raises(ValueError, match=r'has 3 outputs and not 10; .*--known-classes A,B,.*num_classes=3'):
        build_model(loaded, num_classes=10)
    wide = timm.create_model('test_resnet', num_classes=5, in_chans=1)
    torch.save({'state_dict': wide.state_dict(), KEY: record().to_state()}, tmp_path / 'swapped.pth')
    with pytest.raises(ValueError, match='names 3 known classes and its head has 5 outputs'):
        build_model(load_checkpoint(tmp_path / 'swapped.pth'))


def test_model_names_are_checked(ours):
    loaded = load_checkpoint(ours)
    with pytest.raises(ValueError, match=r'did you mean .*test_resnet'):
        build_model(loaded, model='test_resnt')
    with pytest.raises(ValueError, match=r'missing .*unexpected .*trained as test_resnet: leave out --model'):
        build_model(loaded, model='test_vit')
    with pytest.raises(ValueError, match='leave out --pretrained or --checkpoint'):
        build_model(loaded, pretrained=True)


def test_pretrained_weights_out_of_reach_and_bad_options_name_the_remedy(monkeypatch):
    with pytest.raises(ValueError, match=r"could not make test_resnet with .*'depth'"):
        build_model(load_checkpoint_with({'num_classes': 3, 'in_chans': 1, 'depth': 3}))

    def offline(name, **kwargs):
        raise FileNotFoundError('cannot find the files in the cache. Check your connection')

    monkeypatch.setattr(timm, 'create_model', offline)
    with pytest.raises(ValueError, match=r'in the cache\); leave out --pretrained'):
        build_model(None, 'test_resnet', pretrained=True)


def load_checkpoint_with(kwargs):
    return Loaded(record=record(model_kwargs=kwargs), args=None, state_dict={}, epoch=None, metric=None, sha256='',
                  path='x')


def test_known_classes_must_agree_in_number_and_order():
    check_known(record(), ['2', '4', '5'])
    with pytest.raises(ValueError, match="class 1 of the head is '4' and '5' was given; head order is 2, 4, 5"):
        check_known(record(), ['2', '5', '4'])
    with pytest.raises(ValueError, match='knows 3 classes and 2 were given'):
        check_known(record(), ['2', '4'])


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / 'results.json'
    write_atomic(path, '{"old": 1}')

    def fail():
        with atomic_path(path) as temporary:
            assert temporary.suffix == '.json'
            temporary.write_text('{"new": ')
            raise OSError('disk full')

    with pytest.raises(OSError, match='disk full'):
        fail()
    assert path.read_text() == '{"old": 1}'
    assert [p.name for p in tmp_path.iterdir()] == ['results.json']


def test_write_replaces_makes_folders_and_follows_links(tmp_path):
    path = tmp_path / 'a' / 'b.txt'
    write_atomic(path, 'one')
    write_atomic(path, b'two')
    (tmp_path / 'link').symlink_to(path)
    write_atomic(tmp_path / 'link', 'drei ü')
    assert path.read_text(encoding='utf-8') == 'drei ü'
    assert (tmp_path / 'link').is_symlink()
    assert [p.name for p in path.parent.iterdir()] == ['b.txt']
    plain = tmp_path / 'plain'
    plain.write_text('')
    assert path.stat().st_mode == plain.stat().st_mode
