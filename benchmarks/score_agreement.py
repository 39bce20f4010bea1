"""Our scores, OpenOOD's and pytorch-ood's on the same embeddings of three nets.

    python benchmarks/score_agreement.py

Writes ``benchmarks/results/score_agreement.json``; ``python benchmarks/score_tables.py`` makes docs/scores.md of it.
OpenOOD's confidences are those of ``tests/openset/data``, which ``benchmarks/openood_reference.py`` made; pytorch-ood
is run here, in the version that is installed.
"""
from __future__ import annotations

import json
import sys
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULT = HERE / 'results' / 'score_agreement.json'


@dataclass(frozen=True)
class Twin:
    """Who else has a score.

    Attributes:
        openood: Its postprocessor; '' for none.
        pytorch_ood: Its detector, with the options that are ours; '' for none.
        fit_on: What all are fitted on here, which is what OpenOOD fits on.
        why: Where figures differ: why.
    """

    openood: str = ''
    pytorch_ood: str = ''
    fit_on: str = 'train'
    why: str = ''


TWINS = {
    'msp': Twin('msp', 'MaxSoftmax'), 'mls': Twin('mls', 'MaxLogit'), 'energy': Twin('ebo', 'EnergyBased'),
    'entropy': Twin('', 'Entropy'), 'gen': Twin('gen', 'GEN'), 'klm': Twin('klm', 'KLMatching', 'validation'),
    'temperature': Twin('temp_scaling', 'TemperatureScaling', 'validation', (
        'ours is MSP at the T of greatest likelihood; the others take 50 small steps from T = 1.5 and 1 and stop '
        'short of it')),
    'knn': Twin('knn', 'KNN'),
    'nnguide': Twin('nnguide', 'NNGuide', 'train', 'k = 10 as the authors have it, 100 in OpenOOD'),
    'nnguide:k=100': Twin('nnguide', 'NNGuide:k=100'), 'relation': Twin('relation'),
    'mahalanobis': Twin('mds', 'Mahalanobis', 'train', (
        'a ridge of 1e-4 mean variances, or the shrinkage of Ledoit and Wolf where samples are few; none in OpenOOD, '
        '1e-6 on sums of outer products in pytorch-ood')),
    'mahalanobis:shrinkage=1e-6': Twin('mds', 'Mahalanobis', 'train', (
        'on the nets with a LayerNorm one direction has next to no variance, and pytorch-ood inverts in float32')),
    'rmahalanobis': Twin('rmds', 'RMD', 'train', (
        'pytorch-ood inverts sums of outer products in float32, with 1e-6 on both diagonals; on the nets with a '
        'LayerNorm the direction of next to no variance does not cancel')),
    'vim': Twin('vim', 'ViM', 'train', (
        'half of a small width, 48 of 96 on `test_resnet`, where OpenOOD was given 32; pytorch-ood was given ours')),
    'vim:dim=32': Twin('vim', 'ViM:d=32'),
    'residual': Twin('residual', '', 'validation', 'as of `vim`'),
    'residual:dim=32': Twin('residual', '', 'validation'),
    'gmm': Twin('', '', 'train', 'components are the classes and share a covariance; neither has this'),
    'gmm:covariance=full': Twin('', 'GMM', 'train', (
        'a ridge of 1e-4 mean variances, where pytorch-ood adds 1e-6 whatever the variance')),
    'openmax': Twin('openmax', 'OpenMax:tailsize=20,alpha=3', 'train', (
        'distances are shifted by 10,000 before the law is fit, by 1 in OpenOOD; pytorch-ood fits on all training '
        'images, not on those alone that are classified right')),
    'openmax:shift=1': Twin('openmax', 'OpenMax:tailsize=20,alpha=3', 'train', (
        'pytorch-ood fits on all training images, not on those alone that are classified right, and shifts by 10,000')),
    'react': Twin('react', 'ReAct', 'validation'),
    'vra': Twin('vra', 'VRA:lower_percentile=0.1,upper_percentile=0.9', 'validation', (
        'features below the lower end become 0 as in the paper, the end itself in the others; pytorch-ood takes ends '
        'of each feature by itself')),
    'vra:below=clip': Twin('vra', 'VRA:lower_percentile=0.1,upper_percentile=0.9', 'validation', (
        'pytorch-ood takes ends of each feature by itself')),
    'ash': Twin('ash', 'ASH:percentile=0.9', 'train', "ASH-S, as pytorch-ood; OpenOOD's is ASH-B"),
    'ash:variant=b': Twin('ash', 'ASH:percentile=0.9,variant=ash-b'),
    'scale': Twin('scale', 'SCALE:percentile=0.85'), 'dice': Twin('dice', 'DICE'),
    'she': Twin('she', 'SHE'), 'fdbd': Twin('fdbd', 'fDBD'), 'nci': Twin('nci', 'NCI:alpha=0.0001'),
    'gradnorm': Twin('gradnorm')}


def measure() -> dict[str, Any]:
    """AUROC and rank correlation with ours, by score and net."""
    sys.path.insert(0, str(HERE.parent / 'tests' / 'openset'))
    import numpy as np
    import reference_nets as nets
    from scipy.stats import spearmanr

    from gradmix_timm.openset.metrics import auroc
    from gradmix_timm.openset.scores import fit_score

    warnings.simplefilter('ignore')  # some presume features that are not negative

    def sides(name: str, net: str, part: str) -> list[Any]:
        score = fit_score(name, nets.embeddings(net, part), head=nets.head_of(net))
        return [score(nets.embeddings(net, side)).numpy() for side in ('known', 'unknown')]

    rows: dict[str, Any] = {}
    for name, twin in TWINS.items():
        rows[name] = {'openood': twin.openood, 'pytorch_ood': twin.pytorch_ood, 'fit_on': twin.fit_on, 'nets': {}}
        for net in nets.NETS:
            ours = sides(name, net, twin.fit_on)
            cell: dict[str, Any] = {'ours': auroc(*ours)}
            others = {'openood': nets.openood(net, twin.openood) if twin.openood else None,
                      'pytorch_ood': sides(f'pytorch-ood:{twin.pytorch_ood}', net, twin.fit_on)
                      if twin.pytorch_ood else None}
            for who, other in others.items():
                if other is not None:
                    rank = spearmanr(np.concatenate(ours), np.concatenate(other)).statistic
                    cell[who], cell[f'{who}_rank'] = float(auroc(*other)), float(rank)
            rows[name]['nets'][net] = cell
        print(name, {net: {key: round(value, 4) for key, value in cell.items()}
                     for net, cell in rows[name]['nets'].items()}, flush=True)
    with np.load(nets.DATA / 'openood.npz') as kept:
        commit = str(kept['commit'])
    return {'openood_commit': commit, 'pytorch_ood_version': version('pytorch-ood'), 'rows': rows}


def table(page: dict[str, Any]) -> str:
    """One row a score: three AUROC a net, the least rank correlations, what differs."""
    nets = list(next(iter(page['rows'].values()))['nets'])
    lines = ['| score | OpenOOD | pytorch-ood | ' + ' | '.join(nets) + ' | ranks | what differs |',
             '|---|---|---|' + '---|' * len(nets) + '---|---|']
    for name, row in page['rows'].items():
        cells = [' / '.join(f'{100 * cell[who]:.2f}' if who in cell else '-' for who in (
            'ours', 'openood', 'pytorch_ood')) for cell in row['nets'].values()]
        ranks = ' / '.join(_floor(min(cell[f'{who}_rank'] for cell in row['nets'].values())) if row[who] else '-'
                           for who in ('openood', 'pytorch_ood'))
        lines.append(f'| `{name}` | {row["openood"] or "-"} | {row["pytorch_ood"] or "-"} | ' + ' | '.join(cells)
                     + f' | {ranks} | {TWINS[name].why} |')
    return '\n'.join(lines)


def _floor(rank: float) -> str:
    """Rounded down, so that 1 means equal."""
    return f'{int(rank * 1e5) / 1e5:.5f}' if rank < 1 - 1e-9 else '1'


if __name__ == '__main__':
    RESULT.write_text(json.dumps(measure(), indent=1) + '\n')
