"""The report reads files alone, holds all it shows, escapes names, and stays within a phone's width."""
from __future__ import annotations

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from embedded import make, make_head
from PIL import Image

from gradmix_timm.openset.judge import EmbeddedSets, judge
from gradmix_timm.openset.reports.feature_map import project_features
from gradmix_timm.openset.reports.latex import results_latex
from gradmix_timm.openset.reports.report import (
    draw_figures,
    read_arrays,
    read_results,
    render_report,
    results_csv,
    results_markdown,
    score_table,
)

NAMES = ('<b>ant & "co"</b>', 'bee', 'cat', 'dog')
VOID = {'meta', 'img', 'br', 'wbr'}


def made(scores=('msp', 'mls', 'knn')):
    """Results and arrays of an evaluation, as its folder holds them."""
    unknown = make(60, seed=2, unknown=True)
    judged = judge(EmbeddedSets(
        train=make(80, seed=0), known=make(60, seed=1), unknown=unknown, unknown_label=np.arange(60) % 2,
        known_classes=NAMES, unknown_classes=('elk', 'fox'), held_out=make(40, seed=3), head=make_head(),
        groups={'easy': ('elk',), 'hard': ('fox',)}), scores, draws=10)
    return {
        'format': 1, 'protocol': 'toy', 'family': None, 'trial': 0, **judged.results,
        'checkpoint': 'run/<last>.pth.tar', 'seed': 0, 'versions': {'torch': '2'}, 'device': 'cpu',
        'created': '2026-01-01T00:00:00+00:00',
        'manifest': {'model': 'test_resnet', 'data': {'dataset': 'toy'}, 'settings': {'amp': None}}}, judged.arrays


def png(side=8, mode='L'):
    file = io.BytesIO()
    Image.new(mode, (side, side), 128 if mode == 'L' else (10, 20, 30)).save(file, 'PNG')
    return file.getvalue()


@pytest.fixture(scope='module')
def evaluation():
    return made()


@pytest.fixture(scope='module')
def drawn(evaluation):
    return draw_figures(*evaluation)


@pytest.fixture
def folder(tmp_path, evaluation, drawn):
    """An evaluation's folder in a run's folder that holds mixes."""
    results, arrays = evaluation
    path = tmp_path / 'run' / 'osr'
    (path / 'figures').mkdir(parents=True)
    (path / 'results.json').write_text(json.dumps(results))
    np.savez_compressed(path / 'arrays.npz', **arrays)
    for name, content in drawn.items():
        (path / 'figures' / name).write_bytes(content)
    thumbnail = {'class': '<i>elk', 'answer': 'bee', 'knownness': 3.5, 'file': 'a.png', 'size': [8, 8],
                 'png': base64.b64encode(png()).decode()}
    (path / 'mistakes.json').write_text(json.dumps({'accepted': [thumbnail] * 3, 'rejected': []}))
    (tmp_path / 'run' / 'mixes.png').write_bytes(png(40, 'RGB'))
    facts = {'mixer': 'gradmix', 'layers': ['layer3.1'], 'images': [
        {'class': 'bee', 'partner_class': 'cat', 'lam': 0.75, 'weight': [0.7, 0.3], 'box': [4, 12, 5, 9]}]}
    (tmp_path / 'run' / 'mixes.json').write_text(json.dumps(facts))
    return path


class Page(HTMLParser):
    """Elements, text, and whether every element that opens closes where it should."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self.open = [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ['style']:
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_page_needs_no_other_file_and_no_network(folder):
    html = render_report(folder, folder.parent)
    page = Page(html)
    assert not re.search(r'https?:|//[a-z]', re.sub(r'base64,[^"]*', '', html))
    assert {name for name, _ in page.elements}.isdisjoint({'script', 'link', 'iframe', 'object'})
    assert 'url(' not in html
    images = page.all('img')
    assert all(image['src'].startswith('data:image/png;base64,') for image in images)
    for image in images:
        Image.open(io.BytesIO(base64.b64decode(image['src'].split(',')[1]))).load()


def test_page_can_be_read_by_everyone(folder):
    page = Page(render_report(folder, folder.parent))
    assert page.all('html') == [{'lang': 'en'}]
    assert {'name': 'viewport', 'content': 'width=device-width, initial-scale=1'} in page.all('meta')
    assert all(image['alt'].strip() for image in page.all('img'))
    assert all(head.get('scope') for head in page.all('th'))
    assert len(page.all('h1')) == 1
    boxes = page.all('div')
    tables = len(page.all('table'))
    assert sum('scroll' in box.get('class', '').split() for box in boxes) == tables
    ids = [attributes['id'] for _, attributes in page.elements if 'id' in attributes]
    assert len(ids) == len(set(ids))
    assert all(box['aria-labelledby'] in ids for box in boxes if 'aria-labelledby' in box)


def test_page_says_the_figures(folder, evaluation):
    text = ' '.join(Page(render_report(folder, folder.parent)).text)
    results = evaluation[0]
    score = results['scores']['mls']
    assert f'{100 * results["closed_set"]["top1"]:.1f}%' in text
    assert f'{100 * score["auroc"]:.1f}%' in text
    assert f'{100 * score["auroc_ci"][0]:.1f} to {100 * score["auroc_ci"][1]:.1f}' in text
    for words in ('easy', 'hard', 'Most confident mistakes', 'What gradmix mixed', 'layer3.1', '70.0 / 30.0'):
        assert words in text


def test_names_are_escaped(folder):
    html = render_report(folder, folder.parent)
    text = ' '.join(Page(html).text)
    assert NAMES[0] in text
    assert '<i>elk' in text
    assert '<b>ant' not in html
    assert 'run/<last>.pth.tar' in text


def test_page_is_a_function_of_the_files(folder):
    assert render_report(folder, folder.parent) == render_report(folder, folder.parent)
    results, arrays = read_results(folder), read_arrays(folder)
    again = draw_figures(results, arrays)
    assert {path.name: path.read_bytes() for path in (folder / 'figures').iterdir()} == again


def test_sections_whose_files_are_missing_are_left_out(folder):
    (folder / 'mistakes.json').unlink()
    (folder / 'figures' / 'roc.png').unlink()
    text = ' '.join(Page(render_report(folder, None)).text)
    assert 'mixed' not in text
    assert 'Most confident mistakes' not in text
    assert 'Known against unknown' not in text
    assert 'Accepted and right' in text


def test_mixes_without_facts_are_still_shown(folder):
    (folder.parent / 'mixes.json').unlink()
    assert 'mixed' in ' '.join(Page(render_report(folder, folder.parent)).text)


@pytest.mark.parametrize(('break_it', 'words'), [
    (lambda folder: (folder / 'results.json').unlink(), 'no results.json in'),
    (lambda folder: (folder / 'results.json').write_text('{'), 'not JSON'),
    (lambda folder: (folder / 'results.json').write_text('{"format": 2}'), 'not an evaluation of format 1')])
def test_a_folder_without_results_says_what_to_run(folder, break_it, words):
    break_it(folder)
    with pytest.raises(ValueError, match=rf'{words}.*openset osr'):
        render_report(folder)


def test_table_rows_begin_with_the_score_and_are_in_percent(evaluation):
    lines = score_table(evaluation[0]).splitlines()
    assert [cell.strip() for cell in lines[0].strip('|').split('|')] == [
        'score', 'AUROC', 'AUPR in', 'AUPR out', 'FPR95 (knowns kept)', 'FPR95 (unknowns caught)', 'OSCR']
    assert len({len(line) for line in lines}) == 1
    row = next(line for line in lines if line.startswith('| mls '))
    score = evaluation[0]['scores']['mls']
    assert float(row.split('|')[2]) == round(100 * score['auroc'], 2)
    assert float(row.split('|')[7]) == round(100 * score['oscr'], 2)


def test_csv_has_every_score_of_every_group_as_fractions(evaluation):
    rows = list(csv.DictReader(io.StringIO(results_csv(evaluation[0]))))
    assert [(row['group'], row['score']) for row in rows] == [
        (group, score) for group in ('all', 'easy', 'hard') for score in ('msp', 'mls', 'knn')]
    score = evaluation[0]['scores']['mls']
    assert float(rows[1]['auroc']) == score['auroc']
    assert [float(rows[1]['oscr_low']), float(rows[1]['oscr_high'])] == score['oscr_ci']
    assert float(rows[1]['ccr_at_fpr_0.1']) == score['ccr_at_fpr']['0.1']


def test_markdown_holds_tables_and_origin(evaluation):
    text = results_markdown(evaluation[0])
    assert text.count('| mls ') == 3
    assert '`run/<last>.pth.tar`' in text
    assert re.search(r'\| mls +\| +\d+\.\d\d \[\d+\.\d\d, \d+\.\d\d\]', text)


def test_figures_are_drawn_for_odd_numbers():
    """Infinite, constant and single scores, many classes: a picture all the same."""
    results, arrays = made(('mls',))
    arrays = dict(arrays)
    arrays['known/mls'] = np.r_[np.inf, -np.inf, np.zeros(58)]
    arrays['unknown/mls'] = np.zeros(60)
    many = 40
    arrays['confusion'] = np.eye(many + 1, 2 * many, dtype=np.int64)
    results = {**results, 'known_classes': [f'k{i}' for i in range(many)],
               'unknown_classes': [f'u{i}' for i in range(many)]}
    for content in draw_figures(results, arrays).values():
        assert Image.open(io.BytesIO(content)).width == 720


def _dark(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert('L')) < 200


def test_curves_stand_where_the_scores_put_them():
    """Perfect scores hug the upper left corner, reversed ones the lower right."""
    from gradmix_timm.openset.reports.figures import draw_roc
    up, down = np.arange(10., 20.), np.arange(10.)
    perfect, reverse = (_dark(draw_roc({'s': a}, {'s': b}, {'s': 1.})) for a, b in ((up, down), (down, up)))
    # Away from the diagonal: a quarter in from the left and from the top of the axes, and the mirror image of it.
    height, width = perfect.shape
    upper = (slice(0, int(0.06 * height)), slice(int(0.35 * width), int(0.8 * width)))
    assert perfect[upper].any(1).any()
    assert not reverse[upper].any()


def test_latex_holds_every_score_of_every_group(evaluation):
    text = results_latex(evaluation[0])
    assert text.count(r'\begin{table}') == text.count(r'\end{table}') == 3
    rows = [line for line in text.splitlines() if line.strip().startswith('mls & ')]
    assert len(rows) == 3
    assert rows[0].split(' & ')[1].startswith(f'{100 * evaluation[0]["scores"]["mls"]["auroc"]:.1f} [')
    assert r'test\_resnet' in text
    assert len(set(re.findall(r'\\label{(.*?)}', text))) == 3


def test_a_map_of_the_features_is_shown_where_there_is_one(folder, evaluation):
    results, arrays = evaluation
    planes = project_features(make(60, seed=1).features, make(60, seed=2, unknown=True).features, 40)
    drawn = draw_figures(results, {**arrays, **planes})
    assert 'features.png' in drawn
    assert 'features.png' not in draw_figures(results, arrays)
    (folder / 'figures' / 'features.png').write_bytes(drawn['features.png'])
    assert 'Where the features lie' in ' '.join(Page(render_report(folder, None)).text)
