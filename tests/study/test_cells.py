"""Cells are run once, by one process, and go on where they were stopped."""
from __future__ import annotations

import errno
import importlib.util
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import torch
from stub_job import StubJob

from gradmix_timm.checkpoint import KEY
from gradmix_timm.cli.commands import study as study_command
from gradmix_timm.cli.errors import UsageError
from gradmix_timm.cli.study import main
from gradmix_timm.study import cells as cells_module
from gradmix_timm.study import engines, forking, run_cell, run_study
from gradmix_timm.study.cells import CellFailedError, claimed, is_done

ROOT = Path(__file__).parents[2]


def calls(study) -> list[str]:
    return [line for file in sorted(study.output.glob('*/calls.txt')) for line in file.read_text().splitlines()]


def test_a_study_runs_each_cell_once_and_keeps_one_small_file(make, stubbed):
    study = make()
    assert run_study(study, jobs=2) == {}
    assert run_study(study, jobs=2) == {}
    assert sorted(calls(study)) == sorted(
        f'{mixer} {seed} fresh' for mixer in ('none', 'gradmix') for seed in range(3))
    for cell in study.cells:
        kept = {file.name for file in (study.output / cell.name).iterdir()}
        assert kept == {'results.json', 'calls.txt'}
        told = json.loads((study.output / cell.name / 'results.json').read_text())
        assert told['manifest']['study']['levels'] == cell.levels
        assert told['manifest']['study']['seconds']['train'] > 0
        assert 'per_class' not in told
        assert told['manifest']['run_folder'] == 'work'  # not where this machine keeps it
        assert told['manifest']['data']['data_dir'] == 'images'
        assert told['manifest']['study']['commands'][0].endswith(
            f'--mixup-mode {cell.levels["mixer"]} --seed {cell.levels["seed"]} --output work --experiment run')


@pytest.mark.parametrize(('checkpoint', 'top1'), [('best', .6), ('last', .8)])
def test_the_checkpoint_that_the_study_names_is_evaluated(make, stubbed, checkpoint, top1):
    study = make(axes={'mixer': ['overfit'], 'seed': [0]}, checkpoint=checkpoint)
    assert run_study(study) == {}
    results = json.loads((study.output / study.cells[0].name / 'results.json').read_text())
    assert results['closed_set']['top1'] == pytest.approx(top1)


def test_many_cells_at_a_time_are_no_concern_of_each_other(make, stubbed):
    study = make(axes={'mixer': ['none', 'gradmix'], 'seed': list(range(12))})
    assert run_study(study, jobs=8) == {}, 'a start in one thread asks for the status of processes of the others'
    assert all(is_done(study.output, cell) for cell in study.cells)


@pytest.mark.parametrize('name', forking._PRELOADED)
def test_what_commands_share_can_be_imported(name):
    assert importlib.util.find_spec(name), 'multiprocessing ignores a name that it cannot import'


@pytest.mark.slow
def test_a_training_of_two_processes(make):
    study = make(axes={'mixer': ['gradmix'], 'seed': [0]}, processes=2,
                 evaluate={'osr': {'scores': 'mls', 'bootstrap': 0}},
                 train={'dataset': 'sklearn/digits', 'osr_protocol': 'digits', 'model': 'test_resnet', 'img_size': 32,
                        'epochs': 1, 'warmup_epochs': 0, 'batch_size': 64, 'workers': 0, 'device': 'cpu'})
    assert run_study(study, keep_runs=True) == {}
    place = study.output / study.cells[0].name
    told = json.loads((place / 'results.json').read_text())['manifest']['study']
    assert told['commands'][0].startswith('-m torch.distributed.run --standalone --nproc-per-node 2 train.py')
    saved = torch.load(place / 'work' / 'run' / 'last.pth.tar', map_location='cpu', weights_only=False)
    assert len(saved[KEY]['random_streams']) == 2, 'of each process'


def test_a_failed_cell_is_reported_and_the_others_go_on(make, stubbed, caplog):
    study = make(axes={'mixer': ['broken', 'none'], 'seed': [0, 1]})
    failed = run_study(study)
    assert set(failed) == {cell.name for cell in study.cells if cell.levels['mixer'] == 'broken'}
    assert all('no such mixer' in message and 'status 1' in message for message in failed.values())
    assert [is_done(study.output, cell) for cell in study.cells] == [False, False, True, True]
    assert [record.getMessage() for record in caplog.records] == [f'{name}: {said}' for name, said in failed.items()]


@pytest.mark.slow
def test_an_interrupted_cell_goes_on_from_its_checkpoint(make, stubbed):
    study = make(axes={'mixer': ['slow'], 'seed': [0]})
    cell, stop = study.cells[0], threading.Event()
    threading.Timer(3, stop.set).start()
    with pytest.raises(KeyboardInterrupt):
        run_cell(study.output, cell, stop=stop)
    assert not is_done(study.output, cell)
    assert not (study.output / cell.name / 'claim.json').exists()
    assert run_cell(study.output, cell)
    assert calls(study) == ['slow 0 fresh', 'slow 0 resumed']
    told = json.loads((study.output / cell.name / 'results.json').read_text())['manifest']['study']
    assert told['seconds']['train'] > 2  # of both attempts


def test_a_finished_training_is_not_repeated_for_its_evaluation(make, stubbed, monkeypatch):
    study = make(axes={'mixer': ['none'], 'seed': [0]}, evaluate={'osr': {}, 'ood': {'unknown': ['a', 'b']}})
    cell, command = study.cells[0], cells_module._command

    def no_ood(words, *rest):
        if 'ood' in words:
            raise CellFailedError('out of memory')
        command(words, *rest)

    monkeypatch.setattr(cells_module, '_command', no_ood)
    with pytest.raises(CellFailedError):
        run_cell(study.output, cell)
    monkeypatch.setattr(cells_module, '_command', command)
    assert run_cell(study.output, cell)
    assert calls(study) == ['none 0 fresh']
    assert (study.output / cell.name / 'ood' / 'results.json').is_file()


@pytest.mark.parametrize('kept', [False, True])
def test_pictures_that_nobody_sees_are_not_drawn(make, stubbed, monkeypatch, kept):
    asked, command = [], cells_module._command

    def listen(words, *rest):
        asked.append(words)
        command(words, *rest)

    monkeypatch.setattr(cells_module, '_command', listen)
    study = make(axes={'mixer': ['none'], 'seed': [0]}, evaluate={'osr': {}, 'ood': {'unknown': ['a']}, 'probe': {}})
    assert run_study(study, keep_runs=kept) == {}
    assert {words[1]: '--no-report' in words for words in asked[1:]} == {
        'osr': not kept, 'ood': not kept, 'probe': False}  # the last has no such flag


@pytest.mark.parametrize(('threads', 'flags', 'given'), [(1, {}, '0'), (1, {'workers': 2}, '2'), (2, {}, None)])
def test_a_cell_of_one_thread_reads_by_itself(make, stubbed, monkeypatch, threads, flags, given):
    asked, command = [], cells_module._command
    monkeypatch.setattr(cells_module, '_command', lambda words, *rest: (asked.append(words), command(words, *rest)))
    study = make(axes={'mixer': ['none'], 'seed': [0]}, evaluate={'osr': flags})
    assert run_study(study, threads=threads) == {}
    words = asked[1]
    assert (words[words.index('--workers') + 1] if '--workers' in words else None) == given


@pytest.mark.parametrize(('entries', 'words'), [
    ({'train': {'epohcs': 3}}, r'train\.py in cell none-0-\w+: .*--epohcs.*did you mean --epochs'),
    ({'train': {'epochs': 'three'}}, r"argument --epochs: invalid int value: 'three'"),
    ({'axes': {'mixer': ['none'], 'fold': [0, 1]}}, r'unrecognized arguments: --fold'),
    ({'axes': {'mixer': ['none', 'gradmxi']}}, r'cell gradmxi-\w+: .*gradmix'),
    ({'axes': {'mixer': ['gradmix', 'cutmix'], 'when': {'always': {}, 'sure': {'gradmix_confidence': 0.9}}}},
     r'cell cutmix-sure-\w+: .*--gradmix-confidence'),
    ({'train': {'lr': False}}, r'lr: false; expected a value\. YAML reads off, no'),
    ({'axes': {'mixer': [False, 'gradmix']}}, r'mixup_mode: false; expected a value'),
    ({'evaluate': {'osr': {'scores': 'nope'}}}, r"evaluate\.osr: --scores nope: no score named 'nope'"),
    ({'evaluate': {'osr': {'preset': 'opennood'}}}, r'evaluate\.osr: .*opennood'),
    ({'evaluate': {'osr': {'bootstrap': -1}}}, r'evaluate\.osr: .*bootstrap -1'),
    ({'evaluate': {'osr': {'amp_dtype': 'bfloat16'}}}, r'evaluate\.osr: --amp-dtype bfloat16 has no effect'),
    ({'evaluate': {'ood': {'unknown': 'nois:uniform'}}}, r'evaluate\.ood: .*nois:uniform'),
    ({'evaluate': {'ood': {'ood_suite': 'cifar10'}}}, r'evaluate\.ood: .*--ood-suite-root'),
    ({'evaluate': {'corrupt': {'corruptions': 'fogg'}}}, r'evaluate\.corrupt: .*fogg'),
    ({'evaluate': {'corrupt': {'scores': 'knn'}}}, r'evaluate\.corrupt: .*knn'),
    ({'evaluate': {'probe': {'probes': 'lineer'}}}, r'evaluate\.probe: .*lineer'),
    ({'evaluate': {'shortcut': {'attribution': 'layercamm'}}}, r'evaluate\.shortcut: .*layercamm'),
    ({'evaluate': {'shortcut': {}}}, r'evaluate\.shortcut: cell none-0-\w+ trains without a shortcut'),
    ({'axes': {'mixer': [['none', 'gradmix']]}}, r"mixup_mode: \['none', 'gradmix'\]; expected one value"),
    ({'axes': {'start': {'scratch': {}, 'pretrained': {'pretrained': True}}, 'seed': [0]}},
     r'axes\.start: some levels set pretrained'),
    ({'evaluate': {'ood': {}}}, r'evaluate\.ood: --unknown: name a set of unknown images'),
    ({'evaluate': {'osr': {'bootstarp': 0}}}, r'evaluate\.osr: unrecognized arguments: --bootstarp'),
])
def test_flags_are_read_before_the_first_training(make, stubbed, entries, words):
    study = make(**{'axes': {'mixer': ['none'], 'seed': [0]}, **entries})
    with pytest.raises(UsageError, match=words) as said:
        main([str(study.source)])
    assert str(study.source) in str(said.value)
    with pytest.raises(UsageError, match=words):
        main([str(study.source), '--list'])
    assert calls(study) == []


def test_a_flag_of_the_config_that_no_flag_switches_off_is_told(make, stubbed, tmp_path):
    config = tmp_path / 'config.yaml'
    config.write_text('amp: true\n')
    study = make(axes={'mixer': ['none'], 'precision': {'half': {}, 'full': {'amp': False}}},
                 train={'config': str(config)})
    with pytest.raises(UsageError, match=r'cell none-full-\w+: amp: false, and the file of config: has it on'):
        main([str(study.source)])
    assert calls(study) == []


@pytest.mark.parametrize(('flags', 'words'), [
    (['--scores', 'mlss'], "--scores: .*'mlss': did you mean 'mls'"),
    (['--plot-score', 'mlss'], '--plot-score: .*mls'),
    (['--engine-kwargs', 'timeout_min=9'], '--engine-kwargs is of another engine; add --engine submitit'),
    (['--metrics', 'aurok'], '--metrics aurok: .*auroc'),
    (['--metrics', 'auroc,top1'], '--metrics top1: the accuracy heads every table'),
    (['--plot', 'a.png', '--plot-metric', 'top'], '--plot-metric top: '),
    (['--plot', 'a.pgn'], r'--plot a\.pgn: expected a file that ends in .*png')])
def test_what_no_table_has_is_refused_before_the_first_training(make, stubbed, flags, words):
    study = make(axes={'mixer': ['none'], 'seed': [0]})
    with pytest.raises(UsageError, match=words):
        main([str(study.source), *flags])
    assert calls(study) == []


def test_a_score_of_a_module_that_an_evaluation_imports_may_be_named(make, stubbed, capsys):
    study = make(axes={'mixer': ['none'], 'seed': [0]}, evaluate={'osr': {'device_modules': ['json']}})
    assert main([str(study.source), '--list', '--scores', 'mine', '--plot-score', 'mine']) == 0
    assert study.cells[0].name in capsys.readouterr().out


def test_an_error_is_told_once(make, stubbed, monkeypatch, capsys, caplog):
    monkeypatch.setattr(study_command, '_check_flags', lambda study: None)
    study = make(axes={'mixer': ['none', 'broken'], 'seed': [0]})
    assert main([str(study.source)]) == 1
    told = capsys.readouterr().out
    assert (told + caplog.text).count('no such mixer') == 1
    assert f'failed: {study.cells[1].name}\n' in told


def test_a_study_whose_cells_all_fail_is_a_run_that_failed(make, stubbed, monkeypatch, capsys):
    monkeypatch.setattr(study_command, '_check_flags', lambda study: None)
    study = make(axes={'mixer': ['broken'], 'seed': [0]})
    assert main([str(study.source)]) == 1
    assert capsys.readouterr().out == f'failed: {study.cells[0].name}\n'


def test_a_study_whose_cells_are_all_held_elsewhere_is_no_failure(make, stubbed, capsys):
    study = make(axes={'mixer': ['none'], 'seed': [0]})
    with claimed(study.output / study.cells[0].name):
        assert main([str(study.source)]) == 0
    assert capsys.readouterr().out == ''


def test_a_cell_that_another_process_holds_is_left_to_it(make, stubbed, caplog):
    study = make()
    with claimed(study.output / study.cells[0].name) as mine:
        assert mine
        assert run_study(study) == {}
        assert not is_done(study.output, study.cells[0])
    told, = [record.getMessage() for record in caplog.records]
    assert told.startswith(f'left to other processes, which hold them: 1 of 6 cells ({study.cells[0].name});')
    assert all(is_done(study.output, cell) for cell in study.cells[1:])


def hold(place, counts, all_have_tried) -> None:
    with claimed(place) as mine:
        counts.put(mine)
        all_have_tried.wait(60)


def test_one_of_many_processes_takes_over_a_claim_that_a_kill_left(tmp_path):
    with subprocess.Popen([sys.executable, '-c', 'pass']) as gone:
        gone.wait()
    (tmp_path / 'claim.json').write_text(json.dumps({**cells_module._numbering(), 'pid': gone.pid}))
    fork = multiprocessing.get_context('fork')
    counts, all_have_tried = fork.SimpleQueue(), fork.Barrier(4)
    processes = [fork.Process(target=hold, args=(tmp_path, counts, all_have_tried)) for _ in range(4)]
    for process in processes:
        process.start()
    assert sorted(counts.get() for _ in processes) == [False, False, False, True]
    for process in processes:
        process.join()
    assert not (tmp_path / 'claim.json').exists()


def test_a_claim_of_an_earlier_process_of_the_same_number_is_taken_over(tmp_path):
    """A system that is started anew numbers its processes from 1 again."""
    (tmp_path / 'claim.json').write_text(json.dumps({**cells_module._numbering(), 'pid': os.getpid()}))
    with claimed(tmp_path) as mine, claimed(tmp_path) as again:
        assert (mine, again) == (True, False)


def test_a_training_ends_with_a_study_that_was_killed(tmp_path):
    (tmp_path / 'sleeper.py').write_text(
        'import os, pathlib, time\npathlib.Path("pid").write_text(str(os.getpid()))\ntime.sleep(60)\n')
    code = ('import os, pathlib, threading\nfrom gradmix_timm.study import forking\nforking._PRELOADED = []\n'
            'if __name__ == "__main__":\n'
            '    forking.run_module(["sleeper"], pathlib.Path("log"), dict(os.environ), threading.Event().is_set)\n')
    (tmp_path / 'study.py').write_text(code)
    paths = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get('PYTHONPATH', '')])
    study = subprocess.Popen([sys.executable, 'study.py'], cwd=tmp_path, env={**os.environ, 'PYTHONPATH': paths})
    number = awaited(lambda: int((tmp_path / 'pid').read_text()))
    study.kill()
    study.wait()
    assert awaited(lambda: not os.path.exists(f'/proc/{number}') or 'Z' in Path(f'/proc/{number}/stat').read_text())


def awaited(found, seconds=30):
    """What a function returns, once that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(OSError, ValueError):
            if value := found():
                return value
        time.sleep(0.05)
    return None


@pytest.mark.parametrize('threads', [0, -1])
def test_a_cell_has_a_thread(make, stubbed, threads):
    with pytest.raises(ValueError, match=f'threads: {threads}; expected 1 or more'):
        run_study(make(), threads=threads)


def test_a_claim_that_nobody_renews_is_taken_over(tmp_path):
    claim = tmp_path / 'claim.json'
    claim.write_text(json.dumps({'host': 'another', 'pid': 1}))
    with claimed(tmp_path) as mine:
        assert not mine
    assert claim.exists()
    old = time.time() - 3600
    os.utime(claim, (old, old))
    with claimed(tmp_path) as mine:
        assert mine


@pytest.mark.parametrize('text', ['', '{"host": ', '7', '{"pid": null}'])
def test_a_claim_that_is_not_whole_is_taken_over_when_it_is_old(tmp_path, text):
    """As a kill between making the file and writing it leaves one, or a full disk."""
    claim = tmp_path / 'claim.json'
    claim.write_text(text)
    with claimed(tmp_path) as mine:
        assert not mine, 'it may be being written'
    old = time.time() - 3600
    os.utime(claim, (old, old))
    with claimed(tmp_path) as mine:
        assert mine
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_cannot_be_written_is_not_left(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(cells_module.json, 'dump', full)
    with pytest.raises(OSError, match='No space'), claimed(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_slept_leaves_the_claim_of_the_next_alone(tmp_path):
    claim = tmp_path / 'claim.json'
    with claimed(tmp_path) as mine:
        assert mine
        claim.write_text(json.dumps({'host': 'another', 'pid': 1}))  # taken over while this process was suspended
    assert claim.exists()


@pytest.mark.filterwarnings('error::pytest.PytestUnhandledThreadExceptionWarning')
def test_a_folder_that_is_removed_ends_the_renewal_of_its_claim(tmp_path, monkeypatch):
    monkeypatch.setattr(cells_module, '_BEAT', 0.01)
    with claimed(tmp_path / 'cell') as mine:
        assert mine
        shutil.rmtree(tmp_path / 'cell')
        time.sleep(0.2)


def test_a_claim_that_another_process_has_taken_over_meanwhile_is_its_own(tmp_path, monkeypatch):
    claim, look = tmp_path / 'claim.json', cells_module._abandoned
    claim.write_text(json.dumps({'host': 'another', 'pid': 1}))
    os.utime(claim, (0, 0))
    with ExitStack() as other:
        def look_and_wait(file):
            found = look(file)
            monkeypatch.setattr(cells_module, '_abandoned', look)
            assert other.enter_context(claimed(tmp_path)), 'the other is between our look and our move'
            return found

        monkeypatch.setattr(cells_module, '_abandoned', look_and_wait)
        with claimed(tmp_path) as mine:
            assert not mine
        assert claim.exists()
        with claimed(tmp_path) as mine:
            assert not mine
    assert list(tmp_path.iterdir()) == []


def test_a_takeover_that_a_kill_interrupted_does_not_last(tmp_path):
    for name in ('claim.json', 'claim.json.takeover'):
        (tmp_path / name).write_text('')
        os.utime(tmp_path / name, (0, 0))
    with claimed(tmp_path) as mine:
        assert mine
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('cluster', ['debug', pytest.param('local', marks=pytest.mark.slow)])
def test_submitit_runs_the_cells(make, cluster, monkeypatch):
    pytest.importorskip('submitit')
    monkeypatch.setattr(engines, '_Job', StubJob)
    for module, name in ((cells_module, '_command'), (forking, '_PRELOADED')):  # put back what a job sets here
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(sys.path))  # jobs in processes of their own import the stub
    study = make(axes={'mixer': ['none'], 'seed': [0, 1]})
    assert run_study(study, 'submitit', options={'cluster': cluster, 'timeout_min': 2}) == {}
    assert all(is_done(study.output, cell) for cell in study.cells)


def test_a_job_that_is_about_to_end_is_queued_again(make):
    submitit = pytest.importorskip('submitit')
    from gradmix_timm.study.engines import _Job
    study = make()
    again = _Job(study.output, study.cells[0], 1, False).checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    assert again.function.arguments == (study.output, study.cells[0], 1, False)


def test_unknown_engines_are_refused(make):
    with pytest.raises(ValueError, match="no engine 'slrm'"):
        run_study(make(), 'slrm')
    with pytest.raises(ValueError, match='jobs: 0'):
        run_study(make(), jobs=0)
