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

from gradmix_timm.choices import EMBEDDING_SCORES
from gradmix_timm.cli.openset.table import print_results
from gradmix_timm.openset.judge import EmbeddedSets, judge
from gradmix_timm.openset.reports.corruption_report import corruption_line
from gradmix_timm.openset.reports.feature_map import project_features
from gradmix_timm.openset.reports.figures import figure_name
from gradmix_timm.openset.reports.latex import escape_latex, latex_table, results_latex
from gradmix_timm.openset.reports.report import draw_figures, render_report, results_csv, results_markdown, score_table
from gradmix_timm.openset.reports.tables import columns_of, csv_text, padded, tables_within, text_table
from gradmix_timm.openset.results import read_arrays, read_results

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
    """An evaluation's folder with the mixes of its run."""
    results, arrays = evaluation
    path = tmp_path / 'run' / 'osr'
    (path / 'figures').mkdir(parents=True)
    (path / 'results.json').write_text(json.dumps(results))
    np.savez_compressed(path / 'arrays.npz', **arrays)
    for name, content in drawn.items():
        (path / 'figures' / name).write_bytes(content)
    thumbnail = {'class': '<i>elk', 'answer': 'bee', 'knownness': 3.5, 'file': 'a.png', 'size': [8, 8],
                 'png': base64.b64encode(png()).decode()}
    confused = {**thumbnail, 'class': 'cat', 'answer': 'dog', 'probability': 0.875}
    (path / 'mistakes.json').write_text(json.dumps({
        'accepted': [thumbnail] * 3, 'rejected': [], 'confused': [confused]}))
    (path / 'mixes.png').write_bytes(png(40, 'RGB'))
    facts = {'mixer': 'gradmix', 'layers': ['layer3.1'], 'images': [
        {'class': 'bee', 'partner_class': 'cat', 'lam': 0.75, 'weight': [0.7, 0.3], 'box': [4, 12, 5, 9]}]}
    (path / 'mixes.json').write_text(json.dumps(facts))
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
        if self.open[-1:] not in (['style'], ['script']):
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_page_needs_no_other_file_and_no_network(folder):
    html = render_report(folder)
    page = Page(html)
    assert not re.search(r'https?:|//[a-z]', re.sub(r'base64,[^"]*', '', html))
    assert {name for name, _ in page.elements}.isdisjoint({'link', 'iframe', 'object', 'base', 'form'})
    assert page.all('script') == [{}]  # that sorts tables and enlarges figures
    assert page.all('button') == []  # none that does nothing where scripts are off
    assert 'url(' not in html
    policy = next(meta['content'] for meta in page.all('meta') if 'http-equiv' in meta)
    assert policy.startswith("default-src 'none'; img-src data:;")
    images = page.all('img')
    assert all(image['src'].startswith('data:image/png;base64,') for image in images)
    for image in images:
        Image.open(io.BytesIO(base64.b64decode(image['src'].split(',')[1]))).load()


def test_page_can_be_read_by_everyone(folder):
    page = Page(render_report(folder))
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
    headings = [attributes['id'] for attributes in page.all('h2')]
    links = [link['href'] for link in page.all('a')]
    assert [link for link in links if link.startswith('#')] == [f'#{name}' for name in headings]
    assert len(headings) > 5


def test_a_chart_says_its_values_to_who_does_not_see_it(folder, evaluation):
    alts = {image['alt'].partition('.')[0]: image['alt'] for image in Page(render_report(folder)).all('img')}
    results = evaluation[0]
    for name, entry in results['scores'].items():
        assert f'{name} {entry["auroc"]:.1%}' in alts['Known against unknown']
        assert f'{name} {entry["oscr"]:.1%}' in alts['Accepted and correct']
    assert f'{results["threshold"]["unknown_accepted"]:.1%} of the unknown' in alts['Where the images go']
    assert f'{results["calibration"]["ece"]:.1%}' in alts['Confidence against accuracy']


def test_the_title_names_model_mixer_and_run(folder, evaluation):
    manifest = {**evaluation[0]['manifest'], 'mixer': 'gradmix', 'run_folder': '/runs/first_try'}
    (folder / 'results.json').write_text(json.dumps({**evaluation[0], 'manifest': manifest}))
    html = render_report(folder)
    for tag in ('title', 'h1'):
        assert f'<{tag}>test_resnet, gradmix, run first_try: open set, toy</{tag}>' in html


def test_an_unmixed_run_is_called_so(folder, evaluation):
    manifest = {**evaluation[0]['manifest'], 'mixer': 'none'}
    (folder / 'results.json').write_text(json.dumps({**evaluation[0], 'manifest': manifest}))
    mixes = json.loads((folder / 'mixes.json').read_text())
    (folder / 'mixes.json').write_text(json.dumps({**mixes, 'mixer': 'none', 'layers': []}))
    html = render_report(folder)
    assert '<h1>test_resnet, unmixed: open set, toy</h1>' in html
    section = html[html.index('Training images, unmixed</h2>'):].partition('</section>')[0]
    assert '<img' in section
    assert '<table' not in section
    assert 'ttribution' not in section


def test_the_page_links_to_the_files_that_are_there(folder):
    def linked():
        return [link['href'] for link in Page(render_report(folder)).all('a') if not link['href'].startswith('#')]

    assert linked() == ['results.json']
    (folder / 'predictions.csv').write_text('file')
    assert linked() == ['predictions.csv', 'results.json']


def test_the_few_figures_that_matter_come_first_and_the_rest_is_folded(folder):
    html = render_report(folder)
    shown, _, folded = html[html.index('id="figures"'):].partition('</section>')[0].partition('<details>')
    assert re.findall(r'<b>([^<]+)\.</b>', shown) == [
        'Known against unknown', 'Accepted and correct', 'Distribution of mls', 'Where the images go']
    assert re.findall(r'<b>([^<]+)\.</b>', folded) == [
        'Confidence against accuracy', 'Distribution of msp', 'Distribution of knn']


def test_known_images_taken_for_another_class_are_shown_with_their_probability(folder):
    html = render_report(folder)
    gallery = html[html.index('Known, taken for another known class'):html.index('Unknown, yet accepted')]
    assert gallery.count('<img') == 1
    assert 'alt="cat, predicted dog with 87.5%, mls 3.500"' in gallery
    assert '<br>87.5%, 3.500' in gallery


def test_page_says_the_figures(folder, evaluation):
    text = ' '.join(Page(render_report(folder)).text)
    results = evaluation[0]
    score = results['scores']['mls']
    assert f'{100 * results["closed_set"]["top1"]:.1f}%' in text
    assert f'{100 * score["auroc"]:.1f}%' in text
    assert f'{100 * score["auroc_ci"][0]:.1f} to {100 * score["auroc_ci"][1]:.1f}' in text
    for words in ('easy', 'hard', 'Most confident mistakes', 'What gradmix mixed', 'layer3.1', '70.0 / 30.0'):
        assert words in text


def test_names_are_escaped(folder):
    html = render_report(folder)
    text = ' '.join(Page(html).text)
    assert NAMES[0] in text
    assert '<i>elk' in text
    assert '<b>ant' not in html
    assert 'run/<last>.pth.tar' in text


HOSTILE = '<script>alert(1)</script>"\'><img src=x onerror=alert(2)>{{ 7 * 7 }}'


def poisoned(value):
    """The same value with every text and every key that is a name replaced."""
    if isinstance(value, dict):
        return {key: poisoned(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [poisoned(entry) for entry in value]
    return HOSTILE if isinstance(value, str) else value


def test_nothing_that_a_file_says_is_live(folder, evaluation):
    """Every text of every file replaced by markup, and names of scores and groups too."""
    results = poisoned(evaluation[0])
    renamed = {'mls': HOSTILE}
    for part in (results, *results['groups'].values()):
        part['scores'] = {renamed.get(name, name): entry for name, entry in part['scores'].items()}
    results['fits'] = {renamed.get(name, name): fit for name, fit in results['fits'].items()}
    results['groups'] = {HOSTILE: results['groups']['easy']}
    results['not_served'] = {HOSTILE: HOSTILE}
    results['skipped'] = {HOSTILE: [HOSTILE]}
    results['manifest'] = {
        'model': HOSTILE, 'mixer': HOSTILE, 'run_folder': HOSTILE, HOSTILE: {HOSTILE: [HOSTILE, None]}}
    (folder / 'results.json').write_text(json.dumps(results))
    for path in (folder / 'mistakes.json', folder / 'mixes.json'):
        path.write_text(json.dumps(poisoned(json.loads(path.read_text()))))
    html = render_report(folder)
    page = Page(html)
    assert page.all('script') == [{}]
    assert not [attributes for _, attributes in page.elements if 'onerror' in attributes]
    assert all(image['src'].startswith('data:image/png;base64,') for image in page.all('img'))
    assert '49' not in re.findall(r'onerror=alert\(2\)&gt;(\S+)', html)
    assert ' '.join(page.text).count(HOSTILE) > 20


NAMES_OF_ANY_KIND = [
    'x/../../../../evil', '/etc/evil', '..', '.', 'a\\b', 'a\nb', 'a\0b', 'é' * 300, 'n' * 300, 'C:evil', '$\\frac{a}$']


@pytest.mark.slow
@pytest.mark.parametrize('name', ['x/../../../../evil', '$\\frac{a}$'])
def test_figures_stay_in_their_folder_whatever_a_score_is_called(name, evaluation, tmp_path):
    results, arrays = evaluation
    renamed = {**results, 'scores': {name: results['scores']['mls']}, 'known_classes': [name] * 4,
               'threshold': {**results['threshold'], 'score': name}}
    arrays = {**arrays, **{f'{side}/{name}': arrays[f'{side}/mls'] for side in ('known', 'unknown', 'correct')}}
    for file, content in draw_figures(renamed, arrays).items():
        (tmp_path / file).write_bytes(content)
    assert len([path for path in tmp_path.iterdir() if path.suffix == '.png']) == 5


@pytest.mark.parametrize('name', NAMES_OF_ANY_KIND)
def test_the_name_of_a_figure_is_one_part_of_a_path(name, tmp_path):
    path = tmp_path / figure_name(name)
    path.touch()
    assert path.resolve().parent == tmp_path.resolve()
    assert path.is_file()


def test_two_names_never_share_a_figure():
    names = ['mls', 'knn:k=5', 'pytorch-ood:NNGuide', 'a/b', 'a_b', 'a\\b', 'n' * 100, 'n' * 101]
    assert len({figure_name(name) for name in names}) == len(names)
    assert figure_name('histogram-knn:k=5') == 'histogram-knn:k=5.png'


@pytest.mark.parametrize('name', ['=cmd|calc!A1', '+1', '-1', '@sum(A1)', '\tx', '\nx', ' =x', '\r=x'])
def test_no_cell_of_a_csv_is_a_formula(name, evaluation):
    text = csv_text([{'group': name, name: -1.5, 'score': 'a'}], ['group', name, 'score'])
    name = name.replace('\r', ' ')
    assert list(csv.reader(io.StringIO(text))) == [['group', f"'{name}", 'score'], [f"'{name}", '-1.5', 'a']]
    results = {**evaluation[0], 'groups': {name: evaluation[0]['groups']['easy']}}
    assert f"'{name}" in {row['group'] for row in csv.DictReader(io.StringIO(results_csv(results)))}


def test_a_name_is_one_cell_of_a_table_and_steers_no_terminal():
    lines = text_table(['score', 'AUROC'], [['a|b\x1b[31m\nc', '1']]).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith('| a\\|b\ufffd[31m\ufffdc |')
    joined = ['می\u200cشود', '👩\u200d👧']
    assert all(name in text_table(['score', 'AUROC'], [[name, '1']]) for name in joined)


WIDE = {'cat': 3, '三毛猫': 6, 'ﾈｺ': 2, 'ねこ\uff01': 6, '고양이': 6, '\u1100\u1161\u11a8': 2, '🐈': 2, '❤\ufe0f': 2,
        'e\u0301le\u0300ve': 5, 'แมว': 3, 'น้ำ': 2, '': 0,
        'می\u200cشود': 5, '👩\u200d👧': 2}


def test_columns_of_a_terminal_are_counted_not_characters():
    assert {text: columns_of(text) for text in WIDE} == WIDE
    assert padded('🐈', 5) == '🐈   '


def test_names_of_any_script_stand_in_straight_columns():
    def bars(line):
        return [columns_of(line[:place]) for place, mark in enumerate(line) if mark == '|']

    heads, rows = ['三毛猫の写真', '未知 データ', 'b'], [[name, '1', name] for name in WIDE]
    lines = text_table(heads, rows, texts=(0, 2)).splitlines()
    assert [bars(line) for line in lines] == [[0, 15, 29, 38]] * (2 + len(WIDE))


def test_wide_heads_are_folded_to_the_width_of_a_terminal():
    heads, rows = ['score', *['未知の 画像 データ'] * 6], [['mls', *['1'] * 6]]
    assert max(map(columns_of, tables_within(80, heads, rows).splitlines())) <= 80
    assert tables_within(80, heads, rows).count('score') == 1
    assert max(map(columns_of, tables_within(40, heads, rows).splitlines())) <= 40


def test_page_is_a_function_of_the_files(folder):
    assert render_report(folder) == render_report(folder)
    results, arrays = read_results(folder), read_arrays(folder)
    again = draw_figures(results, arrays)
    assert {path.name: path.read_bytes() for path in (folder / 'figures').iterdir()} == again


def test_sections_whose_files_are_missing_are_left_out(folder):
    (folder / 'mistakes.json').unlink()
    (folder / 'figures' / 'roc.png').unlink()
    (folder / 'mixes.png').unlink()
    text = ' '.join(Page(render_report(folder)).text)
    assert 'mixed' not in text
    assert 'Most confident mistakes' not in text
    assert 'Known against unknown' not in text
    assert 'Accepted and correct' in text


def recorded(folder, evaluation, run_folder):
    manifest = {**evaluation[0]['manifest'], **({} if run_folder is None else {'run_folder': str(run_folder)})}
    (folder / 'results.json').write_text(json.dumps({**evaluation[0], 'manifest': manifest}))


def test_what_results_say_of_the_run_folder_is_not_opened(folder, evaluation, tmp_path):
    (folder / 'mixes.png').rename(tmp_path / 'mixes.png')
    recorded(folder, evaluation, tmp_path)
    assert 'mixed' not in ' '.join(Page(render_report(folder)).text)
    (tmp_path / 'mixes.png').rename(folder / 'mixes.png')
    assert 'mixed' in ' '.join(Page(render_report(folder)).text)


@pytest.mark.parametrize(('run_folder', 'shown'), [
    ('/elsewhere/run', True), ('/elsewhere/other', False), (None, False)])
def test_the_folder_above_shows_its_mixes_if_it_is_that_of_the_run(run_folder, shown, folder, evaluation):
    """`show` leaves a mixes.png where it is typed, and another run's folder has one too."""
    (folder / 'mixes.png').rename(folder.parent / 'mixes.png')
    recorded(folder, evaluation, run_folder)
    assert ('mixed' in ' '.join(Page(render_report(folder)).text)) == shown


def test_mixes_without_facts_are_still_shown(folder):
    (folder / 'mixes.json').unlink()
    assert 'mixed' in ' '.join(Page(render_report(folder)).text)


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


def test_tables_of_a_terminal_keep_to_80_columns(evaluation, capsys):
    """Every column stays, in one table for names of scores without options; heads stand on the rule."""
    heads = ['score', 'AUROC', 'AUPR in', 'AUPR out', 'FPR95 (knowns kept)', 'FPR95 (unknowns caught)', 'OSCR']
    values = evaluation[0]['scores']['mls']
    results = {**evaluation[0], 'scores': dict.fromkeys(EMBEDDING_SCORES, values)}
    print_results(results, 80)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    table = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if line.startswith('|')]
    rule = next(place for place, row in enumerate(table) if set(row[0]) == {'-'})
    assert [' '.join(filter(None, words)) for words in zip(*table[:rule], strict=True)] == heads
    assert table[rule - 1] == ['score', 'AUROC', 'AUPR in', 'AUPR out', 'kept)', 'caught)', 'OSCR']
    assert [row[0] for row in table[rule + 1:]] == list(EMBEDDING_SCORES)
    assert table[-1][1:] == [f'{100 * values[key]:.2f}' for key in (
        'auroc', 'aupr_in', 'aupr_out', 'fpr_at_95_known', 'fpr_at_95_unknown', 'oscr')]
    print_results(results, None)
    assert f'| {" | ".join(heads[1:])} |' in ' '.join(capsys.readouterr().out.split())
    long = score_table({'scores': {'vra:lower=5,below=clip,amplify=0.5': values}}, width=80).splitlines()
    assert max(map(len, long)) <= 80
    assert sum(line.startswith('| vra:') for line in long) == 2


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
    named = results_markdown({**evaluation[0], 'known_classes': ['<b>', 'c']})
    assert '- known: &lt;b&gt;, c\n' in named
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
    results = {**results, 'threshold': {**results['threshold'], 'value': None},  # infinite, as files have it
               'known_classes': [f'k{i}' for i in range(many)],
               'unknown_classes': [f'u{i}' for i in range(many)]}
    for content in draw_figures(results, arrays).values():
        assert Image.open(io.BytesIO(content)).width == 720


def _dark(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert('L')) < 200


def test_curves_stand_where_the_scores_put_them():
    """Perfect scores hug the upper left corner, reversed ones the lower right."""
    from gradmix_timm.openset.reports.figures import plot_roc
    from gradmix_timm.plots.figure import png as as_png
    up, down = np.arange(10., 20.), np.arange(10.)
    results = {'scores': {'s': {'auroc': 1.}}, 'threshold': {'score': ''}}
    perfect, reverse = (_dark(as_png(plot_roc(results, {'known/s': a, 'unknown/s': b}))) for a, b in (
        (up, down), (down, up)))
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


@pytest.mark.parametrize(('text', 'shown'), [
    ('\\', r'\textbackslash{}'), (r'\input{/etc/passwd}', r'\textbackslash{}input\{/etc/passwd\}'),
    ('a & b % c $ d # e _ f', r'a \& b \% c \$ d \# e \_ f'), ('~^', r'\textasciitilde{}\textasciicircum{}'),
    ('<a|b>"', r'\textless{}a\textbar{}b\textgreater{}\textquotedbl{}'), ('a\n\nb\tc', 'a  b c'),
    ('1 ± 2 − 3', r'1 $\pm$ 2 $-$ 3')])
def test_latex_shows_any_text_as_it_is(text, shown):
    assert escape_latex(text) == shown


def test_a_latex_table_cannot_be_broken_by_names():
    rows = [['[1cm]', '<0.001', 'better'], ['*', '1', 'a\\b']]
    text = latex_table(['score', 'p', 'verdict'], rows, 'x}\\y', 'tab:}\\z a', text=('verdict',))
    assert r'\begin{tabular}{lrl}' in text
    assert r'    {}[1cm] & \textless{}0.001 & better \\' in text
    assert r'    {}* & 1 & a\textbackslash{}b \\' in text
    assert r'\caption{x\}\textbackslash{}y}' in text
    assert r'\label{tab:-z-a}' in text
    assert all(rule in text for rule in (r'\toprule', r'\midrule', r'\bottomrule', 'booktabs'))


@pytest.mark.slow
def test_a_map_of_the_features_is_shown_where_there_is_one(folder, evaluation):
    results, arrays = evaluation
    planes = project_features(make(60, seed=1).features, make(60, seed=2, unknown=True).features, 40)
    drawn = draw_figures(results, {**arrays, **planes})
    assert 'features.png' in drawn
    assert 'features.png' not in draw_figures(results, arrays)
    (folder / 'figures' / 'features.png').write_bytes(drawn['features.png'])
    assert 'The features in the plane' in ' '.join(Page(render_report(folder)).text)


def test_an_image_that_was_not_mixed_has_no_partner_and_no_box(folder):
    assert 'Not mixed' not in render_report(folder)
    facts = json.loads((folder / 'mixes.json').read_text())
    facts['images'].append({
        'class': 'bee', 'partner_class': 'bee', 'lam': 1., 'weight': [1., 0.], 'box': [16, 16, 9, 9]})
    (folder / 'mixes.json').write_text(json.dumps(facts))
    html = render_report(folder)
    assert html.count('not mixed') == 1
    assert 'Not mixed' in html  # and why
    assert '16&thinsp;' not in html
    assert '4&thinsp;' in html


@pytest.mark.parametrize(('severities', 'words'), [
    ([3], 'severity 3'), ([1, 5], 'severities 1 and 5'), ([1, 3, 5], 'severities 1, 3 and 5'),
    ([1, 2], 'severities 1 and 2'), ([1, 2, 3], 'severities 1 to 3')])
def test_severities_are_counted_in_words(severities, words):
    part = {'by_corruption': {'fog': {}}, 'severities': severities, 'clean_error': 0.1, 'mean_error': 0.2,
            'mean_error_ci': [0.1, 0.3], 'source': 'generated images', 'complete': False}
    assert f'under 1 corruption at {words} 20.00%' in corruption_line({'corruption': part})
