"""The page of known against unknown images, from its files."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from gradmix_timm.openset.pixel_statistics import STATISTICS, WARN_ABOVE
from gradmix_timm.openset.results import Mistakes, Mixes, OpenSetResults

from .figures import figure_name
from .html import render_template, run_name
from .tables import pooled_line, pretraining_note

__all__ = ['render_evaluation']


def render_evaluation(results: OpenSetResults, images: Mapping[str, bytes], mistakes: Mistakes, mixes: Mixes,
                      files: Sequence[str] = ()) -> str:
    """The page.

    Args:
        results: Of results.json.
        images: PNG files by name; those that are missing are left out.
        mistakes: Of mistakes.json.
        mixes: Of mixes.json.
        files: Names of files beside the page, which it links to.

    Returns:
        HTML that needs no other file and no network.
    """
    manifest, scores = results['manifest'], results['scores']
    where = f'open set, {results["protocol"] or manifest.get("data", {}).get("dataset") or "chosen classes"}'
    if 'means' in results:
        where = f'{len(results["groups"])} unknown data sets'
    parts = [('all unknowns', results.get('trivial')), *(
        (name, group.get('trivial')) for name, group in results['groups'].items())]
    return render_template(
        'evaluation.html', f'{run_name(manifest)}: {where}', results=results, images=images,
        mistakes=mistakes, mixes=mixes, files=files, warnings=_warnings(results), figures=_figures(results),
        pooled=pooled_line(results),
        best=max(scores, key=lambda name: scores[name]['auroc']),
        fits=[(name, fit) for name, fit in results.get('fits', {}).items() if fit['options'] or fit['diagnostics']],
        statistics=[(name, part) for name, part in parts if part], statistic_words=STATISTICS, warn_above=WARN_ABOVE,
        statistic_heads=['unknown images', *(name.replace('_', ' ') for name in STATISTICS), 'all together'])


def _warnings(results: OpenSetResults) -> list[str]:
    """Warnings to show before the figures."""
    note, gate = pretraining_note(results['manifest']), results.get('accuracy_gate') or {}
    duplicates = results.get('duplicates')
    return [*([gate['warning']] if gate.get('warning') else []), *([note[0].upper() + note[1:]] if note else []),
            *(duplicates['warnings'] if duplicates else [])]


def _figures(results: OpenSetResults) -> list[tuple[str, str, str, str, bool]]:
    """File, title, what to look at, what it shows in numbers, and whether it is among the first."""
    threshold, scores = results['threshold'], results['scores']
    name = threshold['score']
    accepted = (f'at the threshold {threshold["known_accepted"]:.1%} of the known and '
                f'{threshold["unknown_accepted"]:.1%} of the unknown images are accepted')
    spread = ('Two separate hills are good; images left of the dotted line are rejected. The outer half percent of '
              'images is gathered in the end bars.')
    return [
        ('roc.png', 'Known against unknown',
         f'Each curve is a score ({name} thick), and the figure beside its name is its AUROC; the nearer to the upper '
         'left corner, the better. Where curves cross, the better score depends on how many knowns must be kept.',
         f'ROC curves; AUROC {_listed({key: entry["auroc"] for key, entry in scores.items()})}', True),
        ('oscr.png', 'Accepted and correct',
         'The figure beside a name is the area below its curve, its OSCR. A curve ends at the accuracy of the classes '
         "that its score predicts: the classifier's, or its own where it goes by neighbours. Look at the left: how "
         'many knowns are still classified correctly when one unknown in a hundred may pass.',
         f'OSCR curves; area {_listed({key: entry["oscr"] for key, entry in scores.items()})}', True),
        (figure_name(f'histogram-{name}'), f'Distribution of {name}', spread,
         f'Histograms of {results["n_known"]:,} known and {results["n_unknown"]:,} unknown images; {accepted}', True),
        ('confusion.png', 'Where the images go',
         f'Percent of each column, with the threshold on {name}. The diagonal should stand out, and in the block on '
         'the right the bottom row alone: another cell there names the class that an unknown class is taken for.',
         f'Predicted by true class; {accepted}', True),
        ('reliability.png', 'Confidence against accuracy',
         'Known images only. A line below the diagonal is overconfident, above it underconfident; few images (grey) '
         'make it jump.', f'Expected calibration error {results["calibration"]["ece"]:.1%}', False),
        ('features.png', 'The features in the plane',
         'Test images by their features: an impression, nothing is measured on it, and what overlaps in the plane may '
         'lie apart in the other dimensions. PCA keeps the directions in which the known images vary most; t-SNE keeps '
         'neighbours together, its distances and the sizes of its clusters mean little.',
         f'Known and unknown images; {name} separates them with an AUROC of {scores[name]["auroc"]:.1%}', False),
        *((figure_name(f'histogram-{other}'), f'Distribution of {other}', '',
           f'Histograms of known and unknown images; AUROC {entry["auroc"]:.1%}', False)
          for other, entry in scores.items() if other != name)]


def _listed(values: Mapping[str, float]) -> str:
    return ', '.join(f'{name} {value:.1%}' for name, value in sorted(values.items(), key=lambda item: -item[1]))
