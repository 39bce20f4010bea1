"""Checkpoints of others: whatever they say, a model of timm's with their weights, or one line with the file's name."""
from __future__ import annotations

import argparse
import copy
import pickle
import socket
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from tampering import ALL, GONE, changed, places
from tiny_checkpoints import CONFIG

from gradmix_timm.checkpoint import KEY, ProjectionHead, RunRecord, build_model, check_input, load_checkpoint, reading

WEIGHTS = timm.create_model('test_resnet', num_classes=2).state_dict()
RECORD = RunRecord(
    model='test_resnet', model_kwargs={'num_classes': 2, 'in_chans': 3, 'drop_rate': 0.1}, known_classes=('cat', 'ant'),
    unknown_classes=('bee',), data_dir='/data', splits={'train': 'train', 'test': 'test'},
    held_out={'ant/3.png': 'a' * 32}, data_config={**CONFIG, 'pipeline': None}, mixer='gradmix',
    mixer_options={'layers': [-1]}, seed=3,
    versions={'torch': '2'}).to_state()
ARGS = {'model': 'test_resnet', 'num_classes': 2, 'in_chans': 3, 'input_size': [3, 32, 32], 'img_size': 32, 'gp': 'avg',
        'model_kwargs': {'drop_rate': 0.1}, 'mean': [0.5], 'std': [0.5], 'crop_pct': 0.9, 'interpolation': 'bicubic',
        'crop_mode': 'center', 'dataset': '', 'data_dir': '/data', 'train_split': 'train', 'eval_metric': 'top1',
        'pretrained': False, 'initial_checkpoint': ''}
# A build takes a while; what else is changed is read alone.
_BUILT = ('model', 'model_kwargs', 'num_classes', 'in_chans', 'gp', 'known_classes')


def ours() -> dict:
    head = ProjectionHead(8, 4).state_dict()
    return {'epoch': 4, 'metric': 97.5, 'arch': 'test_resnet', 'state_dict': dict(WEIGHTS), KEY: copy.deepcopy(RECORD),
            'task_state': {'projection_head': dict(head)}, 'args': argparse.Namespace(**copy.deepcopy(ARGS))}


def timms() -> dict:
    return {'epoch': 4, 'metric': 97.5, 'arch': 'test_resnet', 'state_dict': dict(WEIGHTS), 'args': copy.deepcopy(ARGS)}


def use(path: Path, build: Any = True) -> str:
    """All that a command asks a checkpoint for; what is wrong with it, or ''. ``build`` may be the net, or False."""
    start = time.process_time()  # a busy machine is no fault of the file
    message = ''
    try:
        loaded = load_checkpoint(path)
        _ = loaded.dataset, loaded.data_dir, loaded.splits, loaded.model_kwargs, loaded.data_config
        if build:
            net = build_model(loaded) if build is True else build
            check_input(net, loaded.data_config.get('input_size', (3, 32, 32)), str(path))
        if loaded.projection is not None:
            ProjectionHead.from_state(loaded.projection)
    except ValueError as error:
        message = str(error)
    assert time.process_time() - start < 30
    assert not message or str(path) in message, message[:300]
    assert len(message) < 1200, message[:300]
    return message


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError('a file reached for the network')

    monkeypatch.setattr(socket.socket, 'connect', refuse)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Writes what a checkpoint holds, or has it read from memory: pickling takes longer than the rest."""
    def put(content, in_memory=False):
        path = tmp_path / 'x.pth.tar'
        if in_memory:
            path.write_bytes(b'x')
            monkeypatch.setattr(reading, '_read', lambda path: content)
        else:
            torch.save(content, path)
        return path
    return put


@pytest.mark.parametrize('make', [ours, timms])
def test_the_untouched_one_is_read(make, file):
    assert use(file(make())) == ''


@pytest.mark.slow
@pytest.mark.parametrize('make', [ours, timms])
@ALL
def test_no_value_gives_anything_but_a_line(values, make, file):
    content = make()
    whole = {**content, 'state_dict': {'fc.weight': content['state_dict']['fc.weight']}}
    whole['args'] = vars(whole['args']) if make is ours else whole['args']
    net = timm.create_model('test_resnet', num_classes=2).eval()
    for place in places(whole):
        for name, value in values.items():
            wrong = changed({**content, 'args': whole['args']}, place, value)
            built = place[-1] in _BUILT or place[-2:-1] == ('model_kwargs',)
            message = use(file(wrong, in_memory=True), True if built else net)
            if place == ('state_dict', 'fc.weight') and value is not GONE:
                assert message, name


@pytest.mark.parametrize('args', ['x', 3, [1], {1: 2}, argparse.Namespace(), argparse.Namespace(model=[1]),
                                  argparse.Namespace(model='test_resnet', mean=[1, 'x'])])
def test_arguments_of_any_kind(args, file):
    assert ('args' in use(file({**timms(), 'args': args}))) == (getattr(args, 'model', None) is not None)


def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # PyTorch gives the kind up
        return torch.quantize_per_tensor(WEIGHTS['fc.weight'], 0.1, 0, torch.qint8)


@pytest.mark.parametrize('tensor', [
    WEIGHTS['fc.weight'].to_sparse(), torch.empty(2, 64, device='meta'), torch.zeros(1).expand(2, 64),
    torch.zeros(1).expand(10 ** 9, 10 ** 6), WEIGHTS['fc.weight'].to(torch.complex64),
    torch.zeros(2, 64, dtype=torch.int64),
    torch.zeros(()), torch.zeros(0), torch.zeros(2), torch.zeros(3, 64), torch.zeros(2, 64, 1), quantized()],
    ids=lambda t: f'{t.layout} {t.device} {t.dtype} {list(t.shape)}')
def test_tensors_of_other_kinds_are_refused(tensor, file):
    assert use(file({**ours(), 'state_dict': {**WEIGHTS, 'fc.weight': tensor}}, in_memory=True))


@pytest.mark.parametrize('head', [{}, {'fc1.weight': torch.zeros(3)}, [1], 'x', {n: torch.zeros(2) for n in (
    'fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias')}, {'fc1.weight': torch.zeros(2, 2), 'fc1.bias': torch.zeros(2),
    'fc2.weight': torch.zeros(4, 3), 'fc2.bias': torch.zeros(4)}])
def test_projection_heads_of_other_kinds_are_refused(head, file):
    assert use(file({**ours(), 'task_state': {'projection_head': head}}), build=False)


# ---- nothing that opens, fetches or runs

@pytest.mark.parametrize('name', ['wds/x', 'hfds/x', 'hfids/x', 'tfds/x', 'WDS/x', 'hfds/../x', 'torch/../x', 'x/y',
                                  'wds', 'sklearn/../../x', '/etc', 'a b'])
@pytest.mark.parametrize('make', [ours, timms])
def test_a_file_never_picks_a_reader(name, make, file):
    content = make()
    (content[KEY] if make is ours else content['args'])['dataset'] = name
    path = file(content, in_memory=True)
    assert 'name it yourself: --dataset' in use(path)
    assert build_model(load_checkpoint(path)), 'a typed --dataset goes over it'


@pytest.mark.parametrize('name', ['', 'folder', 'torch/cifar10', 'torch/image_folder', 'sklearn/digits',
                                  'Torch/CIFAR100'])
def test_data_sets_that_are_read_from_files_stay(name, file):
    content = ours()
    content[KEY]['dataset'] = name
    assert load_checkpoint(file(content)).dataset == name


@pytest.mark.parametrize('folder', ['pipe:touch hacked', 's3://bucket/x', 'https://x.org', 'gs://x', 'file:///etc',
                                    '//host/share', '\\\\host\\share', 'a\nb', 'hf://x', 'gopen:x'])
@pytest.mark.parametrize('make', [ours, timms])
def test_a_file_never_opens_anything_but_a_folder(folder, make, file):
    content = make()
    (content[KEY] if make is ours else content['args'])['data_dir'] = folder
    assert 'name it yourself, --data-dir' in use(file(content, in_memory=True))


@pytest.mark.parametrize('folder', ['/data/x', 'data', '../data', 'C:\\data', '/data/café', '/a:b/c', None])
def test_plain_folders_stay(folder, file):
    content = ours()
    content[KEY]['data_dir'] = folder
    assert load_checkpoint(file(content)).data_dir == folder


@pytest.mark.parametrize('split', ['../../etc', '/etc', 'pipe:x', 'a/../../b', '..', 'x\0y', '..\\x'])
def test_a_split_never_leads_elsewhere(split, file):
    content = ours()
    content[KEY]['splits'] = {'train': split}
    assert 'name it yourself, --train-split' in use(file(content, in_memory=True))


@pytest.mark.parametrize('name', ['hf-hub:timm/resnet18.a1_in1k', 'hf_hub:x/y', 'local-dir:/etc', '/etc/x',
                                  'timm/resnet18', 'HF-HUB:x', 'a:b', '', 'resnet18\n', 'resnet 18', 'x' * 1000])
@pytest.mark.parametrize('make', [ours, timms])
def test_a_file_never_names_a_hub_or_a_folder_of_models(name, make, file):
    content = make()
    (content[KEY] if make is ours else content['args'])['model'] = name
    del content['arch']
    path = file(content, in_memory=True)
    assert use(path)
    assert not name or make is timms or len(name) > 500 or build_model(load_checkpoint(path), 'test_resnet')


@pytest.mark.parametrize('kwargs', [
    {'checkpoint_path': 'x.pth'}, {'pretrained': True}, {'pretrained_cfg': {'file': '/x'}},
    {'pretrained_cfg': 'a1_in1k'},
    {'pretrained_cfg_overlay': {'url': 'http://x'}}, {'cache_dir': '/x'}, {'scriptable': True}, {'exportable': True},
    {'no_jit': True}, {'features_only': True}, {'pretrained_strict': False}, {'pretrained_model_args': {}},
    {'device': 'cuda'}, {'dtype': 'x'}, {'model_cls': 'x'}, {'cfg': {}}, {'global_pool': '/etc/passwd'},
    {'global_pool': 'http://x'}, {'norm_layer': 'os.system("x")'}, {'depth': 10 ** 9}, {'embed_dim': [10 ** 9]},
    {'layers': [1] * 1000}, {'block': {'a': 1}}, {'a': float('nan')}, {'a': [['x']]}, {'img_size': 10 ** 4},
    {'num_classes': 10 ** 12}, {'in_chans': -1}, {'num_classes': True}, {'num_classes': 2.0}, {'a-b': 1}, {'a.b': 1}])
@pytest.mark.parametrize('make', [ours, timms])
def test_a_file_never_gives_the_factory_an_argument_that_loads(kwargs, make, file):
    content = make()
    content[KEY if make is ours else 'args']['model_kwargs'] = kwargs
    assert 'model_kwargs' in use(file(content, in_memory=True))


def test_harmless_arguments_stay(file):
    net = timm.create_model('test_vit', num_classes=2, img_size=32, depth=2, class_token=True, global_pool='token')
    content = {'state_dict': net.state_dict(), KEY: {'model': 'test_vit', 'model_kwargs': {
        'num_classes': 2, 'img_size': (32, 32), 'depth': 2, 'class_token': True, 'global_pool': 'token',
        'qk_norm': None}}}
    assert use(file(content)) == ''


def test_a_net_beyond_all_memory_is_refused_before_it_is_made(file):
    content = {'state_dict': WEIGHTS, KEY: {'model': 'test_vit', 'model_kwargs': {
        'num_classes': 2, 'embed_dim': 16_384, 'depth': 64, 'num_heads': 1}}}
    assert 'do not fit test_vit' in use(file(content))


# ---- damaged files

@pytest.mark.parametrize('kind', ['zip', 'legacy', 'safetensors'])
def test_files_that_are_cut_short_are_named(kind, tmp_path):
    path = tmp_path / ('x.safetensors' if kind == 'safetensors' else 'x.pth')
    if kind == 'safetensors':
        save_file(WEIGHTS, path)
    else:
        torch.save(ours(), path, _use_new_zipfile_serialization=kind == 'zip')
    whole = path.read_bytes()
    for size in [*range(0, 100, 9), *range(100, len(whole), len(whole) // 40)]:
        path.write_bytes(whole[:size])
        assert use(path, build=False), size


def test_bytes_that_were_changed_never_end_in_a_traceback(tmp_path):
    path = tmp_path / 'x.pth'
    torch.save({'state_dict': {'w': torch.zeros(4)}, KEY: RECORD}, path)
    whole = bytearray(path.read_bytes())
    for place in range(0, len(whole), 17):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xff]) + whole[place + 1:])
        use(path, build=False)


def test_a_packed_archive_is_not_blown_up(tmp_path):
    """A few kilobytes that stand for a gigabyte of zeros."""
    torch.save({'w': torch.zeros(10 ** 6)}, tmp_path / 'x.pth')
    with zipfile.ZipFile(tmp_path / 'x.pth') as plain, zipfile.ZipFile(
            tmp_path / 'y.pth', 'w', zipfile.ZIP_DEFLATED) as packed:
        for entry in plain.namelist():
            packed.writestr(entry, plain.read(entry))
    assert 'not from torch.save' in use(tmp_path / 'y.pth')


def test_shared_lists_of_a_pickle_do_not_keep_the_reading(file):
    value: list = [0] * 100
    for _ in range(20):
        value = [value] * 100
    content = ours()
    content[KEY]['mixer_options'] = {'layers': value}
    assert 'mixer_options' in use(file(content))
    content[KEY]['mixer_options'], content[KEY]['known_classes'] = {}, value
    assert 'known_classes' in use(file(content))


def test_a_pickle_that_is_no_archive(tmp_path):
    (tmp_path / 'x.pth').write_bytes(pickle.dumps(timms()['args'], protocol=2))
    assert use(tmp_path / 'x.pth')


# ---- names that other trainers give to weights

def under(prefix: str, weights=WEIGHTS) -> dict:
    return {prefix + key: value for key, value in weights.items()}


def fsdp(weights=WEIGHTS) -> dict:
    return {f'_fsdp_wrapped_module.{key.replace("layer1.", "layer1._fsdp_wrapped_module.")}': value
            for key, value in weights.items()}


@pytest.mark.parametrize('content', [
    {'state_dict': under('model.'), 'pytorch-lightning_version': '2.1', 'epoch': 3}, {'state_dict': under('net.')},
    under('backbone.'), under('module.'), under('model.module.'), under('model._orig_mod.'), under('_orig_mod.module.'),
    {'state_dict': fsdp()}, under('model.', fsdp()), under('_forward_module.model.'), under('ema_model.'),
    {'model': under('student.net.')}, {**under('module.'), 'n_averaged': torch.tensor(7)}, under('anything_at_all.'),
    {key: value for key, value in WEIGHTS.items() if 'num_batches' not in key},
    under('model.', {key: value for key, value in WEIGHTS.items() if 'num_batches' not in key}),
    ], ids=lambda content: next(iter(content.get('state_dict', content))))
@pytest.mark.parametrize('suffix', ['.ckpt', '.safetensors'])
def test_prefixes_that_all_names_share_are_taken_off(content, suffix, tmp_path):
    path = tmp_path / f'x{suffix}'
    if suffix == '.safetensors':
        weights = content.get('state_dict', content.get('model', content))
        save_file({key: value.contiguous() for key, value in weights.items()}, path)
    else:
        torch.save(content, path)
    net = build_model(load_checkpoint(path), 'test_resnet')
    for key, value in net.state_dict().items():
        assert torch.equal(value, torch.zeros_like(value) if 'num_batches' in key else WEIGHTS[key]), key


@pytest.mark.parametrize(('weights', 'words'), [
    ({**under('model.'), 'criterion.weight': torch.zeros(2)}, r"under 'model'.*torch\.save\(module\.model\.state_dict"),
    ({**under('net.'), **under('ema.')}, r"under 'net'"),
    (under('net.', {'fc.weight': WEIGHTS['fc.weight']}), 'missing'),
    ({**WEIGHTS, 'extra': torch.zeros(1)}, r'1 unexpected \(extra\); name the model')])
def test_names_that_do_not_fit_say_what_to_do(weights, words, tmp_path):
    torch.save(weights, tmp_path / 'x.pth')
    with pytest.raises(ValueError, match=words):
        build_model(load_checkpoint(tmp_path / 'x.pth'), 'test_resnet')
