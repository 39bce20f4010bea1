"""Saved classifiers of others: whatever they say, the same answers or one line with the file's name."""
from __future__ import annotations

import hashlib
import json
import shutil
import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tampering import ALL, GONE, changed, places
from tiny_checkpoints import class_folders, save_checkpoint

from gradmix_timm.classifier import OpenSetClassifier, serialization

NOISE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
SCORES = {'mls': {}, 'gen': {}, 'mahalanobis': {}, 'class-knn': {}, 'react': {}, 'vim': {'dim': 4}}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp('saved')
    checkpoint = save_checkpoint(root / 'x.pth.tar', class_folders(root / 'data'))
    for name, options in SCORES.items():
        OpenSetClassifier.from_checkpoint(checkpoint, name, device='cpu', known_acceptance=0.8, score_options=options,
                                          ).save(root / name)
    return root


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError('a file reached for the network')

    monkeypatch.setattr(socket.socket, 'connect', refuse)


def use(folder: Path) -> str:
    """All that a prediction asks a classifier for; what is wrong with it, or ''."""
    start = time.perf_counter()
    message = ''
    try:
        OpenSetClassifier.load(folder, 'cpu').predict(NOISE)
    except ValueError as error:
        message = str(error)
    assert time.perf_counter() - start < 30
    assert not message or str(folder / 'classifier.') in message, message[:300]
    assert len(message) < 1200, message[:300]
    return message


def write(folder: Path, facts) -> None:
    (folder / 'classifier.json').write_text(json.dumps(facts))


@pytest.mark.slow
@pytest.mark.parametrize('score', SCORES)
@ALL
def test_no_value_gives_anything_but_a_line(values, score, saved, tmp_path, monkeypatch):
    folder = tmp_path / 'copy'
    shutil.copytree(saved / score, folder)
    assert use(folder) == ''
    facts = json.loads((folder / 'classifier.json').read_text())
    parts = facts if score == 'mls' else {'score': facts['score']}
    net, build = serialization.load(folder)[0], serialization.build_model
    silent = []
    for place in places(parts):
        for name, value in values.items():
            if name == 'beyond':  # more digits than Python writes
                continue
            write(folder, changed(facts, place, value))
            # Building takes longer than the rest.
            monkeypatch.setattr(serialization, 'build_model', build if place[0].startswith('model') else lambda _: net)
            if not use(folder):
                silent.append((*place, name))
    # What is taken is of no consequence, or a setting that anybody may make.
    assert not [place for place in silent if place[-1] in ('nan', 'nested')]


@pytest.mark.parametrize('threshold', ['NaN', 'Infinity', '-Infinity', '1e999', '"3"', 'null', 'true', '[1]'])
def test_a_threshold_that_is_no_number_is_refused(threshold, saved, tmp_path):
    shutil.copytree(saved / 'mls', tmp_path / 'copy')
    path = tmp_path / 'copy' / 'classifier.json'
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, 'threshold': '@'}).replace('"@"', threshold))
    assert use(tmp_path / 'copy')


@pytest.mark.parametrize('facts', [
    {'model': 'hf-hub:timm/resnet18'}, {'model': 'local-dir:/etc'},
    {'model_kwargs': {'checkpoint_path': '/etc/passwd'}},
    {'model_kwargs': {'pretrained_cfg_overlay': {'file': '/x'}}}, {'model_kwargs': {'cache_dir': '/x'}},
    {'data_config': {'input_size': [3, 32, 32], 'std': [0, 0, 0]}}, {'data_config': {'input_size': [3, 4096, 99999]}},
    {'data_config': {'crop_pct': 1e-6}}, {'known_classes': ['cat', 'cat']}, {'known_classes': []},
    {'amp_dtype': 'int8'},
    {'score': {'name': 'pytorch-ood:os.system'}}, {'score': {'name': 'mls', 'knownness': 3}},
    {'score': {'name': 'mls', '__class__': 3}}])
def test_a_file_never_chooses_what_is_loaded_or_run(facts, saved, tmp_path):
    shutil.copytree(saved / 'mls', tmp_path / 'copy')
    write(tmp_path / 'copy', {**json.loads((tmp_path / 'copy' / 'classifier.json').read_text()), **facts})
    assert use(tmp_path / 'copy')


@pytest.mark.parametrize('text', ['', '{', '[]', '3', 'null', '{"format": 1e999}', '[' * 100_000, '{"a":' * 5000,
                                  '\udcff', '{"format": 1}', '{"format": "1"}', '{"format": 9999999999999}', '\0'])
def test_text_that_is_no_classifier(text, saved, tmp_path):
    shutil.copytree(saved / 'mls', tmp_path / 'copy')
    (tmp_path / 'copy' / 'classifier.json').write_bytes(text.encode(errors='surrogateescape'))
    assert use(tmp_path / 'copy')


def test_files_that_are_cut_short_are_named(saved, tmp_path):
    folder = tmp_path / 'copy'
    for name in ('classifier.json', 'classifier.safetensors'):
        shutil.copytree(saved / 'mls', folder, dirs_exist_ok=True)
        whole = (folder / name).read_bytes()
        for size in range(0, len(whole), len(whole) // 30):
            (folder / name).write_bytes(whole[:size])
            assert use(folder)


def put(folder: Path, tensors, metadata) -> None:
    """Tensors with a digest that fits."""
    path = folder / 'classifier.safetensors'
    save_file(tensors, path, metadata)
    facts = json.loads((folder / 'classifier.json').read_text())
    write(folder, {**facts, 'tensors_sha256': hashlib.sha256(path.read_bytes()).hexdigest()})


@pytest.mark.parametrize('tensor', [
    torch.zeros(0), torch.zeros(7), torch.zeros(3, 5), torch.full((2, 12), float('nan')),
    torch.zeros(2, 12, dtype=torch.int64), torch.zeros(2, 12, dtype=torch.bool), GONE],
    ids=lambda tensor: f'{tensor.dtype} {list(tensor.shape)}' if tensor is not GONE else 'gone')
@pytest.mark.parametrize('score', ['mahalanobis', 'class-knn', 'react', 'vim'])
def test_tensors_of_a_score_that_were_exchanged(score, tensor, saved, tmp_path):
    folder = tmp_path / 'copy'
    shutil.copytree(saved / score, folder)
    tensors = load_file(folder / 'classifier.safetensors')
    metadata = {'format': '1', 'known_classes': '["cat", "ant"]'}
    for name in [name for name in tensors if name.startswith('score.')]:
        put(folder, {key: value for key, value in tensors.items() if key != name} if tensor is GONE else {
            **tensors, name: tensor}, metadata)
        assert use(folder), name


@pytest.mark.parametrize('names', ['[]', '3', '"cat"', '[1, 2]', '{', '[' * 10_000, '{"cat": 1}', '["ant", "cat"]'])
def test_class_names_among_the_tensors(names, saved, tmp_path):
    folder = tmp_path / 'copy'
    shutil.copytree(saved / 'mls', folder)
    put(folder, load_file(folder / 'classifier.safetensors'), {'format': '1', 'known_classes': names})
    assert use(folder)
