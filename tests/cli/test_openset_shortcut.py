"""`openset shortcut`: three views, unknown images with known marks, and evidence whose place is known."""
from __future__ import annotations

import csv
import io
import json
import shutil
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from tiny_checkpoints import CONFIG, class_folders, save_checkpoint
from torch import nn

from gradmix_timm.cli.errors import run_console
from gradmix_timm.cli.openset import main as osr
from gradmix_timm.data.preprocessing import Preprocessing
from gradmix_timm.data.shortcut import Brush
from gradmix_timm.evaluation.model import EvaluatedModel
from gradmix_timm.evaluation.opening import open_split, plan_split
from gradmix_timm.evaluation.settings import DataOptions, EvaluationSettings
from gradmix_timm.evaluation.shortcut import ShortcutOptions, evaluate_shortcut
from gradmix_timm.openset.results import read_results
from gradmix_timm.openset.runs import CLOSED_SET, read_runs

DATASET = 'shortcut::side=6,size=32'
#: The whole picture, so that marks are where they were drawn.
WHOLE = {**CONFIG, 'crop_pct': 1.0, 'crop_mode': 'squash'}


def run(*argv):
    return run_console(osr.main, ['shortcut', *map(str, argv), '--device', 'cpu', '--images', '16'])


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A run folder with its data, judged once: (folder, standard output)."""
    root = tmp_path_factory.mktemp('shortcut')
    class_folders(root / 'data')
    checkpoint = save_checkpoint(root / 'run' / 'model_best.pth.tar', root / 'data', dataset=DATASET)
    with redirect_stdout(io.StringIO()) as told:
        assert run('--checkpoint', checkpoint, '--scores', 'mls,knn') == 0
    return root, told.getvalue()


class MarkReader(nn.Module):
    """Counts the pixels of each known class's colour: it knows nothing but the mark."""

    def __init__(self, numbers, classes):
        super().__init__()
        colours = torch.stack([torch.from_numpy(Brush(n, classes, 1, (0, 0)).colour.copy()) for n in numbers]) / 255
        mean, std = torch.tensor(WHOLE['mean']), torch.tensor(WHOLE['std'])
        self.register_buffer('colours', (colours - mean) / std)
        self.look = nn.Identity()
        self.num_classes = len(numbers)
        self.pretrained_cfg = {}

    def forward_features(self, x):
        distance = (x[:, None] - self.colours[None, :, :, None, None]).square().sum(2)
        return self.look((-4 * distance).exp())

    def forward_head(self, x, pre_logits=False):
        return x.sum((2, 3))

    def get_classifier(self):
        return nn.Identity()

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


@pytest.fixture(scope='module')
def read_marks(place):
    """What a net that reads the mark alone gets: (results, arrays)."""
    root, _ = place
    data = DataOptions(dataset=DATASET, data_dir=str(root / 'data'), known_classes=('cat', 'ant'))
    net = MarkReader((2, 0), 3)
    settings = EvaluationSettings(scores=('mls',), bootstrap=0, workers=0)
    model = EvaluatedModel.of(net, settings, Preprocessing.of(WHOLE, net))
    images = open_split(data, None, plan_split(data, None), model.reading())
    return evaluate_shortcut(model, images, ShortcutOptions(images=40, layers=('look',)))


def test_a_net_that_reads_the_mark_is_right_with_it_and_wrong_with_another(read_marks):
    results, arrays = read_marks
    own, absent, conflict = (results['groups'][view] for view in ('own', 'absent', 'conflict'))
    assert own['closed_set']['top1'] == 1.0
    assert conflict['closed_set']['top1'] == 0.0
    assert (arrays['pred/conflict'] == 1 - arrays['known_label']).all(), 'two known classes: the other one'
    assert own['scores']['mls']['auroc'] == pytest.approx(0.5, abs=0.1), 'unknown images bear the same marks'
    assert (results['n_known'], results['n_unknown']) == (60, 30)
    assert absent['n_unknown'] == 30


def test_all_of_its_evidence_lies_on_the_mark(read_marks):
    evidence = read_marks[0]['evidence']
    assert evidence['area'] == pytest.approx(36 / (32 * 38), abs=1e-3), 'images of 20 x 24 pixels, enlarged'
    assert evidence['mass'] > 0.99
    assert evidence['peak'] == 1.0
    assert evidence['fall'] > 20
    assert evidence['random_fall'] < 0.2 * evidence['fall']
    low, high = evidence['fall_difference_ci']
    assert 0 < low < evidence['fall_difference'] < high
    assert evidence['n'] == 40


def test_files_page_and_table_hold_the_views(place):
    root, told = place
    folder = root / 'run' / 'shortcut'
    results = read_results(folder)
    assert results['command'] == 'shortcut'
    assert list(results['groups']) == ['own', 'absent', 'conflict']
    assert list(results['scores']) == ['mls', 'knn']
    assert results['scores'] == results['groups']['own']['scores']
    assert results['shortcut'] == {'kind': 'patch', 'side': 6, 'share': 1.0, 'place': 'random', 'seed': 0, 'size': 32,
                                   'strength': 1.0}
    rows = list(csv.DictReader(io.StringIO((folder / 'results.csv').read_text())))
    assert [float(row['top1']) for row in rows] == [group['closed_set']['top1'] for group in results['groups'].values()]
    page = (folder / 'report.html').read_text()
    for text in ('with the mark of another class', 'data:image/png', 'knn AUROC', 'of the map lies'):
        assert text in page
    assert "another class's mark" in told
    assert told.splitlines()[-1] == str(folder / 'report.html')
    with np.load(folder / 'arrays.npz') as arrays:
        assert (arrays['pred/own'] == arrays['known_label']).mean() == results['closed_set']['top1']


def test_the_page_is_drawn_again_from_files(place, tmp_path):
    copied = shutil.copytree(place[0] / 'run' / 'shortcut', tmp_path / 'shortcut')
    page = (copied / 'report.html').read_text()
    (copied / 'report.html').unlink()
    assert osr.main(['report', str(copied)]) == 0
    assert (copied / 'report.html').read_text() == page


def test_runs_are_compared_by_their_accuracy_under_conflict(place, tmp_path):
    results = json.loads((place[0] / 'run' / 'shortcut' / 'results.json').read_text())
    results['groups']['conflict']['closed_set']['top1'] = 0.125
    (tmp_path / 'results.json').write_text(json.dumps(results))
    run, = read_runs([tmp_path], part='conflict')
    assert run.values[CLOSED_SET, 'top1'] == 0.125
    assert run.values['mls', 'auroc'] == results['groups']['conflict']['scores']['mls']['auroc']


def test_other_commands_judge_the_checkpoint_with_known_marks_on_unknown_images(place, tmp_path, undrawn):
    root, _ = place
    checkpoint = root / 'run' / 'model_best.pth.tar'
    assert osr.main(['osr', '--checkpoint', str(checkpoint), '--device', 'cpu', '--scores', 'mls', '--bootstrap', '0',
                     '--trivial-images', '0', '--duplicates', '0', '--feature-map', '0', '--output',
                     str(tmp_path)]) == 0
    ours = json.loads((tmp_path / 'results.json').read_text())
    own = read_results(root / 'run' / 'shortcut')['groups']['own']
    assert ours['closed_set']['top1'] == own['closed_set']['top1'], 'all images bear the mark as trained'
    assert ours['scores']['mls']['auroc'] == own['scores']['mls']['auroc']


def test_a_checkpoint_without_unknown_classes_has_accuracies_alone(tmp_path):
    class_folders(tmp_path / 'data', count=8)
    checkpoint = save_checkpoint(tmp_path / 'run' / 'a.pth.tar', tmp_path / 'data', dataset=DATASET, held=(),
                                 known_classes=('ant', 'bee', 'cat'), unknown_classes=())
    assert run('--checkpoint', checkpoint, '--output', tmp_path) == 0
    results = read_results(tmp_path)
    assert (results['n_unknown'], results['scores']) == (0, {})


@pytest.mark.parametrize(('mark', 'cut'), [('border,side=2', 16), ('background', 0)])
def test_marks_that_the_crop_cuts_off_are_counted_and_told(tmp_path, capsys, mark, cut):
    class_folders(tmp_path / 'data')
    config = {**CONFIG, 'crop_pct': 0.5, 'crop_mode': 'squash'}
    checkpoint = save_checkpoint(tmp_path / 'a.pth.tar', tmp_path / 'data', dataset=f'shortcut::kind={mark},size=32',
                                 data_config=config)
    assert run('--checkpoint', checkpoint, '--output', tmp_path / 'out') == 0
    evidence = read_results(tmp_path / 'out')['evidence']
    assert evidence['cut_off'] == cut
    assert evidence['cut_off'] <= evidence['left_out']
    words = f'leave nothing of the mark in {cut} of 16 test images'
    for text in (' '.join(capsys.readouterr().out.split()), (tmp_path / 'out' / 'results.md').read_text(),
                 (tmp_path / 'out' / 'report.html').read_text()):
        assert (words in text) == bool(cut)
        assert ('train with `--crop-pct 1`' in text) == bool(cut)
        assert 'is informative about the mark' not in text


def test_files_of_before_marks_were_counted_that_are_cut_off_are_read(place, tmp_path):
    copied = shutil.copytree(place[0] / 'run' / 'shortcut', tmp_path / 'shortcut')
    results = json.loads((copied / 'results.json').read_text())
    assert results['evidence'].pop('cut_off') == 0
    (copied / 'results.json').write_text(json.dumps(results))
    assert osr.main(['report', str(copied)]) == 0


@pytest.mark.parametrize(('argv', 'words'), [
    (('--attribution', 'gradcm'), "'gradcam'"), (('--attribution', 'random'), 'control'),
    (('--dataset', ''), 'shortcut:NAME'), (('--layers', 'layer9'), '(--layers) takes'), (('--scores', 'mss'), "'msp'"),
    (('--scores', 'odin'), '--scores odin takes passes of its own'),
    (('--dataset', 'shortcut::side=0'), 'side=0'),
])
def test_what_a_user_gets_wrong_is_one_line_before_images_are_read(place, tmp_path, capsys, monkeypatch, argv, words):
    root, _ = place
    monkeypatch.setattr(EvaluatedModel, 'embed', lambda *_: pytest.fail('embedded first'))
    assert run('--checkpoint', root / 'run' / 'model_best.pth.tar', '--data-dir', root / 'data', '--output', tmp_path,
               *argv) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error:')]
    assert len(lines) == 1
    assert words in lines[0]


def test_tampered_results_are_refused(place, tmp_path):
    folder = place[0] / 'run' / 'shortcut'
    results = json.loads((folder / 'results.json').read_text())
    for change in ({'groups': {'own': results['groups']['own']}}, {'evidence': {**results['evidence'], 'mass': 7}},
                   {'scores': {}}, {'shortcut': {}}):
        (tmp_path / 'results.json').write_text(json.dumps({**results, **change}))
        with pytest.raises(ValueError, match=r'results\.json'):
            read_results(tmp_path)


def test_the_settings_are_checked_where_they_are_made():
    with pytest.raises(ValueError, match='images=0'):
        ShortcutOptions(images=0)
