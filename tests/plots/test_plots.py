"""Figures for notebooks, reports and commands: one way to draw each, in a new figure or in the caller's axes."""
from __future__ import annotations

import io
import itertools
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from PIL import Image

import gradmix_timm
from gradmix_timm import attribute, create_mixer, evaluate, plot_attribution, plot_mixes
from gradmix_timm.mixers.callables import CallableMixer
from gradmix_timm.mixers.contract import adopt
from gradmix_timm.openset.reports.figures import plot_confusions, plot_oscr, plot_roc, plot_scores
from gradmix_timm.openset.reports.report import draw_figures
from gradmix_timm.plots.figure import _fonts_of, png
from gradmix_timm.records import MixDraw


@pytest.fixture(scope='module')
def evaluation():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(40, 1, 2, 2, generator=generator), torch.arange(40) % 3
    data = torch.utils.data.TensorDataset(images, labels)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    return evaluate(net, known=data, unknown=torch.utils.data.TensorDataset(3 - images, labels),
                    scores=('msp', 'mls'), bootstrap=0)


@pytest.fixture
def axes():
    figure, axes = plt.subplots(1, 2)
    yield axes
    plt.close(figure)


PLOTS = ('plot_roc', 'plot_oscr', 'plot_scores', 'plot_confusions', 'plot_reliability')


@pytest.mark.parametrize('name', PLOTS)
def test_an_evaluation_plots_itself(name, evaluation):
    before = plt.get_fignums()
    figure = getattr(evaluation, name)()
    assert isinstance(figure, Figure)
    assert plt.get_fignums() == before
    with Image.open(io.BytesIO(figure._repr_png_())) as shown:
        assert min(shown.size) > 200


@pytest.mark.parametrize('name', PLOTS)
def test_an_evaluation_plots_into_given_axes(name, evaluation, axes):
    figure = getattr(evaluation, name)(ax=axes[1])
    assert figure is axes[1].figure
    assert axes[1].has_data()
    assert not axes[0].has_data()
    figure.canvas.draw()


def test_an_evaluation_is_printed_within_80_columns(evaluation):
    assert max(map(len, evaluation.table().splitlines())) <= 80


def test_scores_are_chosen_by_name(evaluation):
    labels = evaluation.plot_roc(['mls']).axes[0].get_legend_handles_labels()[1]
    assert [label.split()[0] for label in labels] == ['mls', 'chance']
    assert len(evaluation.plot_roc('mls').axes[0].lines) == len(evaluation.plot_roc(['mls']).axes[0].lines)
    assert evaluation.plot_scores('msp').axes[0].get_xlabel() == 'msp: knownness'
    with pytest.raises(ValueError, match=r"no score 'mlz' in this evaluation.*mls"):
        evaluation.plot_scores('mlz')


def test_a_score_has_one_colour_in_all_figures(evaluation):
    one = evaluation.results['scores']['msp']
    # More scores than colours, and another order by OSCR than by AUROC.
    results = {**evaluation.results, 'scores': {
        f's{place}': {**one, 'auroc': place / 20, 'oscr': 1 - place / 20} for place in range(12)},
        'threshold': {**evaluation.results['threshold'], 'score': 's3'}}
    arrays = {f'{side}/s{place}': evaluation.arrays[f'{side}/msp']
              for side in ('known', 'unknown', 'correct') for place in range(12)}
    colours = [{line.get_label().split()[0]: line.get_color() for line in plot(results, arrays).axes[0].lines
                if line.get_label().startswith('s')} for plot in (plot_roc, plot_oscr)]
    assert colours[0] == colours[1]
    assert set(colours[0]) == {'s3', *(f's{place}' for place in range(7, 12))}


def test_the_report_holds_the_same_pictures(evaluation):
    drawn = draw_figures(evaluation.results, {k: v for k, v in evaluation.arrays.items() if 'plane' not in k})
    for name, figure in (('roc', evaluation.plot_roc()), ('confusion', evaluation.plot_confusions())):
        assert drawn[f'{name}.png'] == png(figure)


@pytest.mark.parametrize('name', ['gradmix', 'cutmix', 'regmixup', 'batch'])
def test_mixes_are_plotted(name, tiny_cnn, batch, axes):
    images, labels = batch[0][:4], batch[1][:4]
    timms = {'cutmix_alpha': 1.0} if name == 'batch' else {}
    mixer = create_mixer(name, num_classes=10, **timms)
    figure = plot_mixes(mixer, images, labels, tiny_cnn, rows=2)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles[0] == 'original'
    assert titles[-1] == 'mixed'
    first, last = (figure.axes[i].images[-1].get_array() for i in (0, len(titles) - 1))
    assert not np.array_equal(first, last)
    assert plot_mixes(mixer, images, labels, tiny_cnn, rows=2, ax=axes[0]) is axes[0].figure


def test_an_image_that_the_mixer_left_alone_is_called_unmixed(tiny_cnn, batch):
    figure = plot_mixes(create_mixer('gradmix', num_classes=10, confidence=0.99), *batch, model=tiny_cnn, rows=1)
    assert figure.axes[-1].get_xlabel().endswith('\nnot mixed')


def test_pictures_claim_no_partner_and_no_share_that_the_draw_does_not_hold(batch):
    images, labels = batch[0][:4], batch[1][:4]

    def words(mixer):
        figure = plot_mixes(mixer, images, labels, rows=1)
        return [ax.get_title() for ax in figure.axes], figure.axes[-1].get_xlabel()

    swap = CallableMixer('swap', lambda x, y: (x.flip(0), y.flip(0)), 10)
    assert words(swap) == (['original', 'mixed'], f'{int(labels[3])} 1.00')
    assert words(create_mixer('none', num_classes=10))[0] == ['original', 'mixed']
    titles, caption = words(create_mixer('cutmix', num_classes=10))
    assert titles == ['original', 'partner', 'mixed']
    assert 'kept ' in caption


def test_what_a_picture_of_a_mix_takes(batch):
    images, labels, mixer = batch[0][:4], batch[1][:4], create_mixer('cutmix', num_classes=10)
    captions = [plot_mixes(mixer, images, given, rows=1).axes[-1].get_xlabel()
                for given in (labels, labels.tolist(), labels.numpy())]
    assert captions == captions[:1] * 3
    for few, given in ((images, torch.eye(10)[labels]), (images[:0], labels[:0])):
        with pytest.raises(ValueError, match='one image or more and a class index for each'):
            plot_mixes(mixer, few, given)
    with pytest.raises(ValueError, match='rows is the number of images'):
        plot_mixes(mixer, images, labels, rows=0)


def test_the_mix_of_a_users_own_mixer_is_shown_and_not_the_clean_batch_before_it(batch):
    class Both:
        rows_per_image = 2

        def __call__(self, images, labels, model=None):
            return torch.cat([images, images.flip(0)]), torch.eye(10)[torch.cat([labels, labels.flip(0)])]

    images, labels = batch[0][:4], batch[1][:4]
    figure = plot_mixes(adopt('both', Both(), 10), images, labels, rows=1)
    first, last = (axis.images[-1].get_array() for axis in figure.axes)
    assert not np.array_equal(first, last)
    assert figure.axes[-1].get_xlabel() == f'{int(labels[3])} 1.00'


def test_maps_are_plotted_over_their_images(tiny_cnn, batch, axes):
    images, labels = batch
    found = attribute(tiny_cnn, images, labels)
    figure = plot_attribution(found, images, [f'class {k}' for k in range(10)], labels, rows=3)
    assert len(figure.axes) == 6
    assert figure.axes[0].get_xlabel() == f'class {int(labels[0])}'
    assert plot_attribution(found, images, rows=1, ax=axes[1]) is axes[1].figure
    with pytest.raises(ValueError, match='one map an image'):
        plot_attribution(found, images[:1])
    with pytest.raises(TypeError, match=r'what attribute\(model, images, labels\) returns, got Tensor'):
        plot_attribution(images, found)
    with pytest.raises(ValueError, match='no subplot'):
        plot_attribution(found, images, ax=axes[0].figure.add_axes((0, 0, 1, 1)))


# ---- names of any script

@pytest.fixture
def dejavu_alone(monkeypatch):
    """A machine whose fonts have no Chinese, as matplotlib comes."""
    monkeypatch.setattr(fontManager, 'ttflist', [entry for entry in fontManager.ttflist if entry.name == 'DejaVu Sans'])
    _fonts_of.cache_clear()
    yield fontManager
    _fonts_of.cache_clear()


def confusions(evaluation, names):
    """Their labels; drawn, with warnings as errors."""
    figure = plot_confusions({**evaluation.results, 'known_classes': names}, evaluation.arrays)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        png(figure)
    return figure.axes[0].get_yticklabels()


def test_long_names_of_classes_leave_room_for_the_cells(evaluation):
    labels = confusions(evaluation, ['red_winged_blackbird' * 6, 'red_winged_blackbird', 'cat'])
    assert [label.get_text() for label in labels] == [
        'red_winged…blackbird', 'red_winged_blackbird', 'cat', 'rejected']


def test_long_names_of_scores_fit_below_the_figure(evaluation):
    names = [f'mahalanobis:shrinkage=1e-0{place}' for place in range(4)]
    results = {**evaluation.results, 'scores': dict.fromkeys(names, evaluation.results['scores']['msp'])}
    arrays = {f'{part}/{name}': evaluation.arrays[f'{part}/msp']
              for part in ('known', 'unknown', 'correct') for name in names}
    for draw in (plot_roc, plot_oscr):
        figure = draw(results, arrays)
        figure.canvas.draw()
        ends = figure.legends[0].get_window_extent()
        assert ends.x0 >= 0
        assert ends.x1 <= figure.bbox.width


def test_labels_of_a_narrow_histogram_stand_apart(evaluation):
    arrays = {**evaluation.arrays, **{f'{side}/msp': np.linspace(-0.0742, -0.0548, 200)
                                      for side in ('known', 'unknown')}}
    figure = plot_scores(evaluation.results, arrays, 'msp')
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels() if label.get_text()]
    assert all(left.x1 + 4 < right.x0 for left, right in itertools.pairwise(boxes))


def test_letters_without_a_font_are_escapes(evaluation, dejavu_alone):
    labels = confusions(evaluation, ['\u732b', 'caf\u00e9 $\\frac$ $', 'bell\x07\udce9'])
    assert [label.get_text() for label in labels] == [
        '\\u732b', 'caf\u00e9 $\\frac$ $', 'bell\\x07\\udce9', 'rejected']


def test_letters_are_drawn_by_a_font_that_has_them(evaluation, dejavu_alone, tmp_path):
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(['.notdef', 'cat'])
    builder.setupCharacterMap({0x732b: 'cat'})
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    builder.setupGlyf(dict.fromkeys(('.notdef', 'cat'), pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(('.notdef', 'cat'), (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({'familyName': 'Cats Sans', 'styleName': 'Regular'})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    builder.save(tmp_path / 'cats.ttf')
    dejavu_alone.addfont(str(tmp_path / 'cats.ttf'))
    label = confusions(evaluation, ['\u732b\u732b', 'a', 'b'])[0]
    assert label.get_text() == '\u732b\u732b'
    assert label.get_fontfamily() == ['DejaVu Sans', 'Cats Sans']


def test_captions_of_pictures_are_plain_words_in_every_row(tiny_cnn, batch, dejavu_alone):
    images, labels = batch
    figure = plot_attribution(attribute(tiny_cnn, images, labels), images, ['$\\frac$ \u732b'] * 10, labels, rows=2)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        png(figure)
    assert figure.axes[2].get_xlabel() == '$\\frac$ \\u732b'


def test_draws_and_maps_read_well(tiny_cnn, batch):
    images, labels = batch
    draw = create_mixer('gradmix', num_classes=10).draw(images, labels, tiny_cnn)
    assert len(repr(draw)) < 120
    assert repr(draw).startswith(f'MixDraw(gradmix: {len(images)} images, kept ')
    assert draw._repr_html_().count('<tr>') == len(images) + 1
    assert repr(MixDraw.of('none', torch.empty(0, dtype=torch.int64), torch.empty(0))).startswith('MixDraw(none: 0 ')
    found = attribute(tiny_cnn, images, labels)
    assert len(repr(found)) < 120
    assert found._repr_html_().count('<table') == min(8, len(images))


def test_public_names_are_listed():
    assert {'plot_mixes', 'plot_attribution', 'evaluate'} <= set(dir(gradmix_timm))


def test_help_shows_the_options_of_every_mixer():
    text = create_mixer.__doc__
    for name in ('gradmix', 'cutmix', 'fmix', 'elem'):
        assert f'\n    {name}: ' in text
    line = next(line for line in text.splitlines() if line.strip().startswith('cutmix: '))
    assert 'alpha=1.0' in line
