"""YAML of flags, protocols and pipelines: whatever is in it, one short line with the file's name, soon."""
from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml
from tampering import ALL, changed, places

from gradmix_timm.cli.config_file import read_config
from gradmix_timm.cli.training.args import build_parser
from gradmix_timm.data import load_split
from gradmix_timm.data.transforms import build_pipeline, read_pipelines

FLAGS = {'base': 'other.yaml', 'lr': 0.1, 'epochs': 3, 'amp': True, 'mean': [0.5, 0.5, 0.5], 'model_kwargs': {'a': 1},
         'mixup_mode': 'gradmix', 'gradmix_layers': [-1], 'known_classes': ['a', 'b'], 'data_dir': '/x'}
PROTOCOL = {'name': 'pets', 'known': ['cat', 'dog'], 'unknown': ['newt', 'owl'], 'groups': {'wet': ['newt']}}
CROP = {'__class_fullname__': 'RandomCrop', 'height': '$height', 'width': '$width', 'pad_if_needed': True}
PIPELINES = {'train': {'__class_fullname__': 'Compose', 'transforms': [CROP]}}
PARSER = build_parser()


def as_flags(path: Path):
    return read_config(str(path), PARSER)


def as_protocol(path: Path):
    return load_split(str(path))


def as_pipelines(path: Path):
    return build_pipeline(read_pipelines(str(path)).train, f'{path}: train', (3, 32, 32), (0.5,), (0.5,))


READERS = {'flags': (as_flags, FLAGS), 'protocol': (as_protocol, PROTOCOL), 'pipelines': (as_pipelines, PIPELINES)}
BOMB = '\n'.join(['a0: &a0 [x, x, x, x, x, x, x, x, x, x]'] + [
    f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 10)}]' for i in range(1, 9)])


def read(reader, path: Path) -> str:
    """What is wrong with the file; '' where it was read."""
    start = time.process_time()
    message = ''
    try:
        reader(path)
    except ValueError as error:
        message = str(error)
    assert time.process_time() - start < 10
    assert not message or str(path) in message, message[:300]
    assert len(message) < 800, message[:300]
    assert '\n' not in message
    return message


@pytest.mark.parametrize('kind', READERS)
@pytest.mark.parametrize('text', [
    BOMB, f'known: [a, b]\n{BOMB}', f'train: *a8\n{BOMB}', 'train: &t [*t]', '[' * 100_000, '- ' * 50_000, '{a: ' * 500,
    '!!python/object/apply:os.system ["touch hacked"]', 'lr: !!timestamp x', 'known: !!bool x', '', '3', '[]', 'a: [',
    'known: ' + '9' * 5000, '\0', '\x80\x81', '? {a: b}\n: c', 'base: [1]', 'x' * 2_000_000],
    ids=lambda text: ascii(text[:24]))
def test_no_text_hangs_or_prints_itself(kind, text, tmp_path):
    reader, _ = READERS[kind]
    path = tmp_path / 'x.yaml'
    path.write_bytes(text.encode('latin-1'))
    assert read(reader, path)


@pytest.mark.parametrize('kind', READERS)
@ALL
def test_no_value_gives_anything_but_a_line(values, kind, tmp_path):
    reader, good = READERS[kind]
    (tmp_path / 'other.yaml').write_text('lr: 0.2\n')
    path = tmp_path / 'x.yaml'
    path.write_text(yaml.safe_dump(good))
    assert read(reader, path) == ''
    for place in places(good):
        for name, value in values.items():
            if name != 'beyond':  # more digits than Python writes
                path.write_text(json.dumps(changed(good, place, value)))  # JSON is YAML
                read(reader, path)


@pytest.mark.parametrize('kind', READERS)
def test_a_file_that_is_cut_short_is_read_or_named(kind, tmp_path):
    reader, good = READERS[kind]
    text = json.dumps({key: value for key, value in good.items() if key != 'base'})
    for size in range(0, len(text), 7):
        (tmp_path / 'x.yaml').write_text(text[:size])
        assert read(reader, tmp_path / 'x.yaml')
