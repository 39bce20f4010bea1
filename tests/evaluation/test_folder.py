"""The folder of an evaluation: of one alone, and whole whatever happens; its tables as spreadsheets save them."""
from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from gradmix_timm.evaluation import folder as module
from gradmix_timm.evaluation.folder import copy_files, finite, write_files
from gradmix_timm.evaluation.result import Predictions
from gradmix_timm.evaluation.settings import EvaluationSettings


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def first(folder):
    write_files(folder, {'of': 1}, {'openood.csv': 'a', 'predictions.csv': 'a'}, {'arrays.npz': {'a': np.ones(2)}},
                {'features.png': b'old', 'roc.png': b'old'})
    (folder / 'report.html').write_text('old')


def test_files_of_an_older_evaluation_do_not_stay_beside_a_new_one(tmp_path):
    first(tmp_path)
    for own in ('notes.txt', 'figures/mine.jpg'):
        (tmp_path / own).write_text('mine')
    write_files(tmp_path, {'of': 2}, {'results.csv': 'b'}, {}, {'roc.png': b'new'})
    assert names(tmp_path) == ['figures/mine.jpg', 'figures/roc.png', 'notes.txt', 'results.csv', 'results.json']
    assert (tmp_path / 'figures' / 'roc.png').read_bytes() == b'new'


MIXES = ('mixes.json', 'mixes.png')


def mixed(folder, words):
    folder.mkdir(exist_ok=True)
    for name in MIXES:
        (folder / name).write_text(words)
    return folder


def test_mixes_in_the_folder_are_those_of_the_run_that_was_evaluated(tmp_path):
    first_run, second_run = mixed(tmp_path / 'first', 'first'), mixed(tmp_path / 'second', 'second')
    folder, copy = tmp_path / 'folder', mixed(tmp_path / 'copy', 'old')
    for run, texts in ((first_run, ['first'] * 2), (second_run, ['second'] * 2), (tmp_path / 'unmixed', []),
                       (first_run, ['first'] * 2), (None, [])):
        write_files(folder, {'of': 1}, {}, {}, run_folder=run)
        assert [(folder / name).read_text() for name in MIXES if (folder / name).exists()] == texts
        copy_files(folder, copy, run if texts else None)
        assert [(copy / name).read_text() for name in MIXES if (copy / name).exists()] == texts


@pytest.mark.parametrize('file', ['args.yaml', 'model_best.pth.tar'])
def test_mixes_in_the_folder_of_a_run_are_left_to_it(tmp_path, file):
    run, other = mixed(tmp_path / 'run', 'own'), mixed(tmp_path / 'other', 'other')
    (run / file).touch()
    for source in (None, run, other):
        write_files(run, {'of': 1}, {}, {}, run_folder=source)
        write_files(tmp_path / 'folder', {'of': 1}, {}, {})
        copy_files(tmp_path / 'folder', run, source)
        assert [(run / name).read_text() for name in MIXES] == ['own'] * 2


def test_files_of_an_older_evaluation_do_not_stay_beside_a_copy(tmp_path):
    older, run = tmp_path / 'older', tmp_path / 'run'
    first(older)
    (older / 'notes.txt').write_text('mine')
    write_files(run, {'of': 2}, {'results.csv': 'b'}, {}, {'roc.png': b'new'})
    (run / 'last.pth.tar').write_text('of the run that the evaluation lies in')
    copy_files(run, older, None)
    assert names(older) == ['figures/roc.png', 'notes.txt', 'results.csv', 'results.json']
    assert json.loads((older / 'results.json').read_text()) == {'of': 2}


def test_a_full_disk_leaves_the_older_evaluation_as_it_was(tmp_path, monkeypatch):
    first(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}

    def full(*_, **__):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(module.np, 'savez_compressed', full)
    with pytest.raises(OSError, match='No space'):
        write_files(tmp_path, {'of': 2}, {'predictions.csv': 'b'}, {'arrays.npz': {'a': np.zeros(2)}})
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_results_are_renamed_last(tmp_path, monkeypatch):
    """A process that is killed between two renames leaves no results.json of other arrays."""
    order, replace = [], module.Path.replace
    monkeypatch.setattr(module.Path, 'replace', lambda path, target: (order.append(target.name), replace(path, target)))
    first(tmp_path)
    assert (order[-1], len(order)) == ('results.json', 6)


def test_numbers_of_numpy_and_torch_are_numbers_of_json(tmp_path):
    write_files(tmp_path, {'a': np.float32(0.5), 'b': [np.int64(2), np.bool_(True)], 'c': torch.tensor([1., np.inf]),
                           'd': np.float64('nan')}, {}, {})
    assert json.loads((tmp_path / 'results.json').read_text()) == {'a': 0.5, 'b': [2, True], 'c': [1.0, None],
                                                                  'd': None}
    assert finite((1, 'a')) == [1, 'a']


# ---- tables

HEAD = 'file,label,known,predicted,probability,mls\n'


@pytest.mark.parametrize('text', [
    HEAD + 'a.png,cat,True,dog,0.5,1.25\n', HEAD + 'a.png,cat,TRUE,dog,0.5,1.25\n',
    '\ufeff' + HEAD.replace('\n', '\r\n') + 'a.png,cat,true,dog,0.5,1.25\r\n'])
def test_predictions_that_a_spreadsheet_saved_are_the_same(text, tmp_path):
    (tmp_path / 'p.csv').write_text(text, encoding='utf-8', newline='')
    assert list(Predictions.read_csv(tmp_path / 'p.csv')) == [
        {'file': 'a.png', 'label': 'cat', 'known': True, 'predicted': 'dog', 'probability': 0.5, 'mls': 1.25}]


@pytest.mark.parametrize(('text', 'words'), [
    ('', 'does not begin with the columns'), (HEAD + 'a.png,cat,yes,dog,0.5,1.25\n', "row 2: got 'yes', expected True"),
    (HEAD + 'a.png,cat,True,dog,0.5,1.25\na.png,cat\n', 'row 3'), (HEAD + 'a.png,cat,True,dog,0.5,x\n', 'row 2: could'),
    (HEAD + 'a.png,cat,True,dog,0.5,1,1\n', 'row 2'), (HEAD.encode() + b'\xff', 'not a CSV file in UTF-8')])
def test_another_table_is_refused_with_its_name_and_row(text, words, tmp_path):
    (tmp_path / 'p.csv').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf'p\.csv.*{words}'):
        Predictions.read_csv(tmp_path / 'p.csv')
    (tmp_path / 'p.csv').write_text(HEAD)
    assert len(Predictions.read_csv(tmp_path / 'p.csv')) == 0


# ---- settings

@pytest.mark.parametrize('setting', [{'bootstrap': 100.0}, {'bootstrap': '100'}, {'batch_size': True}, {'seed': None},
                                     {'workers': 0.5}, {'duplicates': [1]}])
def test_a_setting_of_another_type_is_refused_before_anything_is_opened(setting):
    with pytest.raises(ValueError, match=f'{next(iter(setting))}=.*expected a whole number'):
        EvaluationSettings(**setting)
    EvaluationSettings(batch_size=np.int64(8), workers=None)
