"""docs/scores.md from benchmarks/results/scores.json: ``python benchmarks/score_tables.py``."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import score_agreement

from gradmix_timm.openset.scores import list_scores

HERE = Path(__file__).parent
# Least ratio of fit and query together: at most 1.1 times the library's time.
LEAST = 1 / 1.1
REMARKS = """On such nets some scores rank the wrong way round: `dice`, `fdbd`, `relation` and `ash` presume ReLU
features or a net trained for long, here as in the other two packages.

- `klm` and `temperature` are fitted on held-out images where an evaluation has any, as their papers say, and no
  threshold is set on these images then. `residual`, `react` and `vra` are fitted on training images.
- `gradnorm` needs no backward pass: the gradient of the last layer is an outer product, and its norm a product.
- `relation` passes by training samples that the class probabilities rule out; sums are those over all.
- `gmm` is a mixture of one Gaussian a class. OpenOOD's `gmm` (not in its v1.5 tables) finds components by EM from a
  random start on features reduced to 50 dimensions, with and without further layers; it is not reproduced.
- `odin` goes back to the images: it is computed where it is named, by passes over the model of its own
  (`requires_model`), and needs the model; from a cache of embeddings alone it is refused. Confidences equal OpenOOD's
  on a small net (`tests/openset/test_odin.py`, `tests/openset/data/odin.npz`).
- RankFeat removes the largest singular value from the feature map before pooling. Pooled features are one row, whose
  only singular value it would be, so that embeddings do not suffice, and there is no such score.
- MDS-ensemble fits a Gaussian a class to the pooled output of each of several layers, moves every image by the
  gradient of each layer's distance, and weighs the layers by a logistic regression on known and moved images. A score
  that goes back to the model gets logits and their gradient (`requires_model`), no layers, and is fitted on embeddings,
  which hold the last layer alone: so there is no such score.
- What else pytorch-ood has is reached through `pytorch-ood:NAME` alone, and a short name says so.
"""


def definitions() -> str:
    """One row a score: what it is, and its paper."""
    rows = (f'| `{name}` | {summary} |' for name, summary in list_scores().items())
    return '\n'.join(['| score | knownness of an image |', '|---|---|', *rows])


def speed_table(figures: dict[str, Any]) -> str:
    """One row a score."""
    lines = ['| score | detector | fit, ms: ours / theirs | query, ms: ours / theirs | query ratio | fit + query ratio '
             '| aim |', '|---|---|---|---|---|---|---|']
    for name, found in figures.items():
        if 'query' not in found:
            continue
        query, fit = found['query'], found.get('fit')
        both = found['both']['ratio'] if fit else query['ratio']
        met = both >= LEAST and query['ratio'] >= (found['hoped'] if found['hoped'] > 1 else 0)
        aim = f'query {found["hoped"]:g}, both 0.91' if found['hoped'] > 1 else 'both 0.91'
        lines.append(f'| {name} | {found["library"]} | {_pair(fit) if fit else "none"} | {_pair(query)} '
                     f'| {query["ratio"]:.2f} ({query["ratio_range"][0]:.2f}-{query["ratio_range"][1]:.2f}) '
                     f'| {both:.2f} | {aim}: {"met" if met else "missed"} |')
    return '\n'.join(lines)


def memory_table(figures: dict[str, Any]) -> str:
    """One row a fit from disk."""
    lines = ['| fit from disk | seconds | own memory, MB | of the features |', '|---|---|---|---|']
    lines += [f'| {name.partition(",")[0]} | {found["seconds"]:.1f} | {found["peak_bytes"] / 1e6:.0f} '
              f'| {found["peak_share"]:.2f} |' for name, found in figures.items() if 'peak_bytes' in found]
    return '\n'.join(lines)


def large_text(page: dict[str, Any]) -> str:
    """A sentence a score on ImageNet's number of features."""
    told = '; '.join(
        f'{name} is fit in {found["fit_seconds"]:.0f} s with {found["fit_own_gib"]:.2f} GiB of its own and scores '
        f'{page["queries"]:,} images in {found["query_seconds"]:.1f} s with {found["query_own_gib"]:.2f} GiB'
        for name, found in page['figures'].items())
    return (f'At ImageNet\'s size, {page["images"]:,} features of width {page["width"]} ({page["file_gib"]} GiB in one '
            f'memory-mapped file; `python benchmarks/large_fit.py FOLDER`, {page["threads"]} threads): {told}.\n')


def evaluation_text(page: dict[str, Any]) -> str:
    """A million test images: memory, and where the time goes."""
    stages, by_score = page['seconds_by_stage'], page['seconds_by_score']
    searched = [name for name in by_score if 'knn' in name]
    return (f'{page["test_images"]:,} test images by {len(page["scores"])} scores, from stored embeddings '
            f'({page["train_images"]:,} training images, width {page["width"]}, {page["classes"]} classes, one thread; '
            f'`python benchmarks/large_evaluation.py FOLDER`): {page["peak_own_gib"]} GiB of own memory at most and '
            f'{page["processor_seconds"]:.0f} s of the processor. Of these fits and scores take '
            f'{stages["fits and scores"]:.0f} s, calibration {stages["calibration"]:.1f} s, the threshold '
            f'{stages["threshold"]:.1f} s, metrics and intervals {page["metrics_seconds_a_score"]} s a score '
            f'({page["metrics_seconds_at_a_million_a_side"]} s with {page["scores_a_side"]:,} scores on each side). '
            f'Searches among the training images ({", ".join(f"`{name}`" for name in searched)}) take '
            f'{sum(by_score[name] for name in searched):.0f} s, and grow with their number; every other score takes at '
            f'most {max(value for name, value in by_score.items() if name not in searched):.0f} s, its metrics '
            'included.\n')


def part(found: dict[str, Any]) -> str:
    """That there are more queries, whose products cost what these do."""
    return f', a part of {found["of"]:,},' if found['queries'] < found['of'] else ''


def faiss_text(page: dict[str, Any]) -> str:
    """Search of neighbours with and without faiss."""
    cases = '; '.join(f'{found["queries"]:,} queries of {case} features{part(found)} '
                      f'{found["torch_seconds"]:,.1f} s and with faiss {found["faiss_seconds"]:,.1f} s'
                      for case, found in page['figures'].items())
    return (f"With `pip install 'gradmix-timm[faiss]'` the kNN scores of a CPU search large training sets by faiss's "
            f'exact index and give the same figures (processor seconds on one thread, k = {page["k"]}; '
            f'`python benchmarks/neighbour_search.py`): {cases}.\n')


def coverage_table(rows: list[dict[str, Any]], heads: list[str]) -> str:
    """One row a metric: share of intervals that hold the true figure, by setting."""
    lines = ['| figure | ' + ' | '.join(heads) + ' |', '|---|' + '---|' * len(heads)]
    lines += [f'| {name} | ' + ' | '.join(f'{100 * row["coverage"][name]:.1f}' for row in rows) + ' |'
              for name in rows[0]['coverage']]
    return '\n'.join(lines)


def _pair(found: dict[str, Any]) -> str:
    return f'{1e3 * found["ours"]:.1f} / {1e3 * found["theirs"]:.1f}'


def main() -> None:
    """Write the page."""
    page = json.loads((HERE / 'results' / 'scores.json').read_text())
    figures = page['figures']
    machine = ', '.join(f'{key} {value}' for key, value in page['machine'].items() if value)
    fewer = ''.join(f' (`{name}`: {found["queries"]:,}, of which the library holds queries x classes x width at once)'
                    for name, found in figures.items() if found.get('queries', 20_000) < 20_000)
    single, double = (figures[f'product in {dtype}']['gflops'] for dtype in ('float32', 'float64'))
    parts = [
        '# Scores: cost, agreement, intervals\n',
        'Made by `python -m pytest benchmarks/test_scores.py --benchmark-only` and `python benchmarks/score_tables.py` '
        'from `benchmarks/results/scores.json`.\n',
        f'{page["date"]}, {machine}.\n',
        '## What each is\n',
        definitions() + '\n',
        '## Against pytorch-ood\n',
        f'30,000 training features of width 512, 20,000 queries{fewer}, 100 classes, the same for both, turn by turn. '
        "Times are of the processor, in one thread; a ratio is the library's time over ours, the median over rounds "
        '(and their range), so that above 1 ours is the faster. The library computes in float32 (neighbours: '
        'scikit-learn in float64), ours in float64 wherever digits could be lost. The aim of 0.91 is at most 1.1 '
        'times its time.\n',
        speed_table(figures) + '\n',
        f'A product of matrices runs at {single:.0f} GFLOP/s in float32 here and at {double:.0f} in float64. That is '
        'what is left of the difference in ViM, most of whose fit and query are products in float64 (the symmetric one '
        'is already halved); in float32 the eigenvectors at the cut between the main space and the rest move scores, '
        'and the score of a row would differ with the rows beside it. Neighbours are looked for by a product in '
        'float32, so that twice as fast as the library is out of reach without coarser numbers. bfloat16 was tried: it '
        'is faster where the processor has it, but too many neighbours lie within its rounding of the k-th, all of '
        'which would have to be looked at again. It was left out.\n',
        'Scores of logits take exponentials in the precision of the logits, float32 as a rule. That moves scores by '
        'less than a millionth of their size and takes about half the time: in float64, on the same logits, `msp` ran '
        "at 0.41 of the library's speed, `energy` at 0.57 and `entropy` at 0.51. Rows so near certainty that float32 "
        'would underflow are computed in float64. `msp` and `temperature` stay slower than the library, since nothing '
        'may saturate: they sum the powers without the largest, and take the logarithms of p and of 1 - p. `klm` stays '
        'in float64: in float32 it ran at 1.4 times the speed of the library, but it is a difference that is small '
        'where a net is sure, of which four digits were left there, and a product in float32 may depend on how its '
        'rows are blocked. Ratios of scores so cheap differ from run to run. `fdbd` and `gmm` answer faster than the '
        'library and lose that in their fits, which sum and factorise in float64.\n',
        '## Memory\n',
        '160,000 features of width 512 as a memory map. Own memory is what no file stands behind, at its most; a copy '
        'of the features would be 1. It does not grow with their number.\n',
        memory_table(figures) + '\n']
    large = HERE / 'results' / 'large_fit.json'
    if large.exists():
        parts.append(large_text(json.loads(large.read_text())))
    parts.append(evaluation_text(json.loads((HERE / 'results' / 'large_evaluation.json').read_text())))
    parts.append(faiss_text(json.loads((HERE / 'results' / 'neighbour_search.json').read_text())))
    agreement = json.loads(score_agreement.RESULT.read_text())
    coverage = json.loads((HERE / 'results' / 'interval_coverage.json').read_text())
    parts += [
        '## Against OpenOOD and pytorch-ood, on the same embeddings\n',
        'AUROC in percent of ours, of the postprocessor of OpenOOD v1.5 and of the detector of pytorch-ood '
        f'{agreement["pytorch_ood_version"]} on embeddings of three small nets trained on six digits, the other four '
        'unknown; `-` where there is none. `ranks` is the least rank correlation over the nets of our score with that '
        'of OpenOOD and with that of pytorch-ood, rounded down, so that 1 is the same order. `klm`, `temperature`, '
        '`residual`, `react` and `vra` are fitted on validation images, as OpenOOD does, the others on training '
        "images. An option after a detector's name is set to ours. Every difference has its reason in the last column; "
        'without one, ranks below 1 are rounding in float32. Made by `python benchmarks/score_agreement.py` (OpenOOD '
        f'at commit `{agreement["openood_commit"][:10]}` made the confidences in `tests/openset/data`, by '
        '`benchmarks/openood_reference.py`), then `python benchmarks/score_tables.py`.\n',
        score_agreement.table(agreement) + '\n',
        REMARKS,
        '## How often intervals hold the truth\n',
        f'Share of 95% intervals, in percent, that hold the true figure, over {coverage["repeats"]} draws of knowns '
        'and unknowns from two normal laws (`python benchmarks/interval_coverage.py`; numbers of knowns and unknowns, '
        'and the true AUROC, head the columns).\n',
        coverage_table(coverage['rows'], [
            f'{row["known"]} and {row["unknown"]} at {row["auroc"]:g}' for row in coverage['rows']]) + '\n',
        f'The same for figures at a threshold, over {coverage["at_threshold"][0]["repeats"]} draws; classes and known '
        'images of each, unknown images, and the share of the known ones that are classified right, head the columns. '
        'Percentiles of resamples within classes, which these intervals replaced, held 85 to 92%.\n',
        coverage_table(coverage['at_threshold'], [
            f'{row["classes"]} x {row["images_a_class"]} and {row["unknown"]} at {row["recall"]:g}'
            for row in coverage['at_threshold']]) + '\n']
    (HERE.parent / 'docs' / 'scores.md').write_text('\n'.join(parts))


if __name__ == '__main__':
    main()
