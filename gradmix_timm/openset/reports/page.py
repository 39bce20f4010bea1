"""The report as one HTML page: sections made of results, figures and thumbnails, nothing fetched from anywhere."""
from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from .html import breakable, cell, figure, folded, frame, interval, number, rate, table, told, uri
from .sets_page import render_closest, render_pixels, render_sensitivity, render_sets, render_skipped
from .tables import pretraining_note

__all__ = ['render']

Values = Mapping[str, Any]

# Key, head, and what it says, for the table and the words under it.
_METRICS = (
    ('auroc', 'AUROC', 'chance that a known image scores above an unknown one; 50% says nothing'),
    ('aupr_in', 'AUPR in', 'average precision when looking for knowns; by chance the share of knowns, {chance_in}'),
    ('aupr_out', 'AUPR out', 'average precision when looking for unknowns; by chance their share, {chance_out}'),
    ('fpr_at_95_known', 'FPR95<br>knowns kept', 'unknowns accepted where at least 95% of the knowns are; lower is '
                                                'better'),
    ('fpr_at_95_unknown', 'FPR95<br>unknowns caught', 'knowns rejected where at least 95% of the unknowns are; lower '
                                                      'is better'),
    ('detection_error', 'Detection<br>error', 'smallest mean of the two error rates over all thresholds; lower is '
                                              'better'),
    ('oscr', 'OSCR', 'as AUROC, but a known counts only with its right class; at most the closed-set accuracy'),
)


def render(results: Values, images: Mapping[str, bytes], mistakes: Values, mixes: Values) -> str:
    """The page.

    Args:
        results: Of results.json.
        images: PNG files by name; those that are missing are left out.
        mistakes: Of mistakes.json: 'accepted', 'rejected' and 'closest', lists of thumbnails with facts.
        mixes: Of mixes.json.
    """
    body = '\n'.join([
        _head(results), _pretraining(results), _facts(results), _scores(results), render_sensitivity(results),
        render_sets(results), render_pixels(results), render_skipped(results), _groups(results),
        _figures(results, images), _histograms(results, images), _classes(results), _mistakes(results, mistakes),
        render_closest(results, mistakes), _mixes(mixes, images.get('mixes.png')), _manifest(results)])
    return frame(_title(results), body)


# ---- what stands at the top

def _title(results: Values) -> str:
    protocol = results['protocol'] or results['manifest']['data']['dataset'] or 'chosen classes'
    return f'{results["manifest"]["model"]}, open set: {protocol}'


def _head(results: Values) -> str:
    closed, name = results['closed_set'], results['threshold']['score']
    score = results['scores'][name]
    best = max(results['scores'], key=lambda key: results['scores'][key]['auroc'])
    lead = (f'The model names <b>{rate(closed["top1"])}</b> of the images of known classes rightly '
            f'({interval(closed["top1_ci"])}), and <b>{escape(name)}</b> tells known from unknown with an AUROC of '
            f'<b>{rate(score["auroc"])}</b> ({interval(score["auroc_ci"])}).')
    if best != name:
        top = results['scores'][best]
        lead += (f' The highest AUROC among the {len(results["scores"])} scores is that of <b>{escape(best)}</b>, '
                 f'{rate(top["auroc"])} ({interval(top["auroc_ci"])}); picked on these very images, it flatters a '
                 'little.')
    trial = ''.join(f', {word} {escape(str(results[word]))}'
                    for word in ('family', 'trial') if results[word] is not None)
    return (f'<h1>{escape(_title(results))}</h1>\n<p class="lead">{lead}</p>\n<p class="soft">'
            f'{len(results["known_classes"])} known and {len(results["unknown_classes"])} unknown classes{trial}; '
            f'{results["n_known"]:,} and {results["n_unknown"]:,} test images; intervals cover 95%.</p>')


def _pretraining(results: Values) -> str:
    note = pretraining_note(results)
    return f'<p>{escape(note[0].upper() + note[1:])}.</p>' if note else ''


def _facts(results: Values) -> str:
    name = results['threshold']['score']
    score = results['scores'][name]
    facts = ((rate(results['closed_set']['top1']), 'closed-set accuracy'), (rate(score['auroc']), f'AUROC, {name}'),
             (rate(score['oscr']), f'OSCR, {name}'),
             (rate(score['fpr_at_95_known']), f'unknowns accepted at 95% of knowns, {name}'))
    cells = ''.join(f'<div><b>{value}</b><span>{escape(words)}</span></div>' for value, words in facts)
    return f'<div class="facts">{cells}</div>'


# ---- tables

def _scores(results: Values) -> str:
    n, m = results['n_known'], results['n_unknown']
    words = {'chance_in': rate(n / (n + m)), 'chance_out': rate(m / (n + m))}
    terms = ''.join(f'<dt>{head.replace("<br>", ", ")}</dt><dd>{text.format(**words)}</dd>'
                    for _, head, text in _METRICS)
    left_out = ''.join(f'<li><b>{escape(name)}</b>: {escape(reason)}</li>'
                       for name, reason in results['not_served'].items())
    fits = ''.join(f'<li><b>{escape(name)}</b>: {_told_fit(fit)}</li>'
                   for name, fit in (results.get('fits') or {}).items() if fit['options'] or fit['diagnostics'])
    if left_out:
        left_out = f'<h3>Scores this model cannot serve</h3><ul class="soft">{left_out}</ul>'
    caption = ('Percent, with 95% intervals below; higher is better but in the two FPR95 and the detection error. The '
               'marked row is the score of the headline, fixed beforehand.')
    return (f'<h2>Scores</h2>{_score_table(results, caption)}\n<details><summary>What the columns mean</summary>'
            f'<dl>{terms}</dl></details><details><summary>How each score was fit</summary><ul class="soft">{fits}</ul>'
            f'</details>{left_out}')


def _told_fit(fit: Values) -> str:
    """Options, then what the fit found: samples, rank, condition number, ..."""
    found = {**fit['options'], **{f'fit: {key}': value for key, value in fit['diagnostics'].items()}}
    return ', '.join(f'{escape(str(key).replace("_", " "))} {told(value)}' for key, value in found.items())


def _score_table(part: Values, caption: str, headline: str | None = None) -> str:
    headline = part['threshold']['score'] if headline is None else headline
    rates = list(next(iter(part['scores'].values())).get('ccr_at_fpr', {}))
    heads = [head for _, head, _ in _METRICS] + [f'Right at<br>FPR {100 * float(rate):g}%' for rate in rates]
    rows = []
    for name, values in part['scores'].items():
        cells = [cell(values[key], values.get(f'{key}_ci')) for key, _, _ in _METRICS]
        cells += [cell(values['ccr_at_fpr'][rate]) for rate in rates]
        note = ' <small>constant</small>' if values['degenerate'] else ''
        rows.append((f'{escape(name)}{note}', cells, name == headline))
    return table(['score', *heads], rows, caption)


def _groups(results: Values) -> str:
    groups = results.get('groups') or {}
    parts = []
    for name, part in groups.items():
        names = part.get('unknown_classes', ())
        classes = f', {len(names)} classes' if len(names) > 1 else ''
        parts.append(f'<h3>{escape(name)}</h3>' + _score_table(
            part, f'{part["n_unknown"]:,} unknown images{classes}; the knowns are those of the whole.',
            results['threshold']['score']))
    return f'<h2>Groups of unknowns</h2>{"".join(parts)}' if parts else ''


def _classes(results: Values) -> str:
    name, source = results['threshold']['score'], results['threshold']
    where = (f'An image is accepted if its {escape(name)} is at least {number(source["value"])}. This threshold was '
             f'{escape(source["source"])}. It accepts {rate(source["known_accepted"])} of the known test images and '
             f'{rate(source["unknown_accepted"])} of the unknown ones.')
    where += _at_threshold(source.get('open_set'))
    known = [(escape(row['class']), [str(row['n']), cell(row['accuracy']), cell(row['accepted']),
                                     number(row['mean_knownness'])], False) for row in results['per_class']['known']]
    unknown = [(escape(row['class']), [str(row['n']), cell(row['accepted']), number(row['mean_knownness']),
                                       escape(row['taken_for'])], False) for row in results['per_class']['unknown']]
    both = (
        table(['class', 'images', 'accuracy %', 'accepted %', f'mean {escape(name)}'], known,
               'Known classes: accuracy in the closed set; share accepted, which should be about 95.'),
        table(['class', 'images', 'accepted %', f'mean {escape(name)}', 'most often taken for'], unknown,
               'Unknown classes, most accepted first: share accepted, which should be near 0.'))
    shown = [folded(content, len(rows), f'{what} classes') for content, rows, what in zip(
        both, (known, unknown), ('known', 'unknown'), strict=True)]
    return f'<h2>Class by class</h2><p>{where}</p>{"".join(shown)}'


def _at_threshold(found: Values | None) -> str:
    """What labels with rejection reach there, in a sentence."""
    if not found:
        return ''

    def told(name: str) -> str:
        ends = found.get(f'{name}_ci')
        return f'<b>{rate(found[name])}</b>' + (f' ({interval(ends)})' if ends else '')

    return (f' There, macro-F1 over the known classes and "unknown" is {told("macro_f1")}, the mean recall of known '
            f'classes {told("balanced_accuracy")}, with "unknown" as one class more '
            f'{told("balanced_accuracy_with_unknown")}, and accuracy on knowns and rejection of unknowns, weighed '
            f'{found["lambda"]:g} and {1 - found["lambda"]:g}, {told("normalized_accuracy")}. The threshold that suits '
            f'these very images best would reach a macro-F1 of {rate(found["best_f1"])}.')


# ---- pictures

def _figures(results: Values, images: Mapping[str, bytes]) -> str:
    name = results['threshold']['score']
    captions = (
        ('roc.png', 'Known against unknown',
         f'Each curve is a score ({escape(name)} thick); the nearer to the upper left corner, the better. Where curves '
         'cross, the better score depends on how many knowns must be kept.'),
        ('oscr.png', 'Accepted and right',
         'A curve ends at its closed-set accuracy. Look at the left: how many knowns are still named rightly when one '
         'unknown in a hundred may pass.'),
        ('confusion.png', 'Where the images go',
         f'Percent of each column, with the threshold on {escape(name)}. The diagonal should be dark, and the block on '
         'the right dark in its bottom row alone: a dark cell above it names the class that an unknown class is taken '
         'for.'),
        ('reliability.png', 'Confidence against accuracy',
         'Known images only. A line below the diagonal is overconfident, above it too modest; few images (grey) make '
         'it jump.'),
        ('features.png', 'Where the features lie',
         'Test images by what the classifier reads: an impression, nothing is measured on it, and what overlaps in the '
         'plane may lie apart in the other dimensions. PCA keeps the directions in which the known images vary most; '
         't-SNE keeps neighbours together, its distances and the sizes of its clusters mean little.'))
    shown = ''.join(figure(images[file], title, words) for file, title, words in captions if file in images)
    return f'<h2>Figures</h2><div class="figures">{shown}</div>' if shown else ''


def _histograms(results: Values, images: Mapping[str, bytes]) -> str:
    main = results['threshold']['score']
    words = ('Two separate hills are good; images left of the dotted line are rejected. The outer half percent of '
             'images is gathered in the end bars.')
    parts = {name: figure(images[f'histogram-{name}.png'], name, words if name == main else '')
             for name in results['scores'] if f'histogram-{name}.png' in images}
    if main not in parts:
        return ''
    others = ''.join(part for name, part in parts.items() if name != main)
    rest = (f'<details><summary>The other {len(parts) - 1} scores</summary><div class="figures">{others}</div>'
            '</details>') if others else ''
    return f'<h2>How the scores are spread</h2><div class="figures">{parts[main]}</div>{rest}'


def _mistakes(results: Values, mistakes: Values) -> str:
    name = escape(results['threshold']['score'])
    parts = (
        ('accepted', 'Unknown, yet accepted', f'Unknown images with the highest {name}; the class they were taken for '
                                              'is in blue.', 'unknown', 'known'),
        ('rejected', 'Known, yet rejected', f'Known images with the lowest {name}; the answer that was rejected is in '
                                            'orange.', 'known', 'unknown'))
    shown = []
    for kind, title, words, true, answer in parts:
        items = ''.join(_thumbnail(item, true, answer) for item in mistakes.get(kind, ()))
        text = f'<p class="soft">{words}</p><ul class="thumbs">{items}</ul>' if items else '<p class="soft">None.</p>'
        shown.append(f'<h3>{title}</h3>{text}')
    return f'<h2>Most confident mistakes</h2>{"".join(shown)}' if mistakes else ''


def _thumbnail(item: Values, true: str, answer: str) -> str:
    small = ' class="tiny"' if max(item['size']) < 48 else ''
    words = f'{item["class"]}, answered {item["answer"]}'
    return (f'<li><img{small} src="data:image/png;base64,{escape(item["png"])}" alt="{escape(words)}">'
            f'<span class="{true}">{breakable(item["class"])}</span> &rarr; '
            f'<span class="{answer}">{breakable(item["answer"])}</span><br>{number(item["knownness"])}</li>')


def _mixes(facts: Values, png: bytes | None) -> str:
    if png is None:
        return ''
    rows = [(escape(str(row['class'])), [escape(str(row['partner_class'])), cell(row['lam']),
                                         ' / '.join(cell(weight) for weight in row['weight']),
                                         '&thinsp;&ndash;&thinsp;'.join(map(str, row['box'][:2])) + ', '
                                         + '&thinsp;&ndash;&thinsp;'.join(map(str, row['box'][2:]))], False)
            for row in facts.get('images', ())]
    layers = ', '.join(f'<code>{escape(str(layer))}</code>' for layer in facts.get('layers', ()))
    words = 'One training image a row: original, where the model looked, partner, result.' + (
        f' Attribution at {layers}.' if layers else '')
    numbers = table(['class', 'partner', 'kept %', 'label weights %', 'box: rows, columns'], rows,
                    'The same images in numbers; boxes in pixels.') if rows else ''
    mixer = escape(str(facts.get('mixer') or 'mixer'))
    return (f'<h2>What {mixer} mixed</h2><figure class="wide"><img src="{uri(png)}" '
            f'alt="Training images and their mixes"><figcaption>{words}</figcaption></figure>{numbers}')


# ---- what it was made from

def _manifest(results: Values) -> str:
    lines = [('checkpoint', results['checkpoint']), ('run seed', results['seed']), ('device', results['device']),
             ('created', results['created']), ('known classes', results['known_classes']),
             ('unknown classes', results['unknown_classes']), ('calibration', results['calibration']),
             *results['manifest'].items(), ('versions', results['versions'])]
    rows = ''.join(f'<tr><th scope="row">{escape(str(name).replace("_", " "))}</th><td>{told(value)}</td></tr>'
                   for name, value in lines if value not in (None, {}, []))
    return ('<h2>How it was made</h2><details><summary>Checkpoint, data, settings, versions</summary>'
            f'<div class="scroll manifest"><table><tbody>{rows}</tbody></table></div></details>')
