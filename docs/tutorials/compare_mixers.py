# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---
# %% [markdown]
# # Compare mixers with intervals
#
# Two trainings that differ in nothing but the seed may differ by several points of AUROC. Whether a mixer helps can
# therefore only be said of several runs, paired by seed and class split, with an interval and a correction for the
# number of comparisons. This page compares three mixers on five class splits of the digits, in tiny runs.
# `gradmix` mixes every image of half of the batches here, with labels by area; `random-box` is its control. (That of
# `confidence=0.9`, the default of `gradmix-train`, is `center='random'`.)

# %%
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from gradmix_timm import create_mixer, evaluate
from gradmix_timm.data import load_split
from gradmix_timm.openset.comparison import compare_runs
from gradmix_timm.openset.reports.comparison_tables import comparison_markdown
from gradmix_timm.openset.runs import Run

pixels, digits = load_digits(return_X_y=True)
pixels, digits = pixels[:1200], digits[:1200]
images = torch.nn.functional.interpolate(torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16, (16, 16))
held = torch.arange(len(digits)) % 4 == 0


def data(split):
    """Known train, known test and unknown images of a class split."""
    names = list(split.known)
    label = torch.tensor([names.index(str(d)) if str(d) in names else -1 for d in digits])
    known = label >= 0
    return [TensorDataset(images[rows], label[rows]) for rows in (known & ~held, known & held, ~known)]


def train(mixer_name, dataset, seed):
    """A small net, six epochs."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3, padding=1), torch.nn.BatchNorm2d(32), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(32, 64, 3, padding=1), torch.nn.BatchNorm2d(64), torch.nn.ReLU(),
        torch.nn.AdaptiveMaxPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 6))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    mixer = create_mixer(mixer_name, num_classes=6, prob=0.5, seed=seed)
    for _ in range(6):
        for x, y in DataLoader(dataset, 64, shuffle=True):
            x, targets = mixer(x, y, model)
            loss = torch.nn.functional.cross_entropy(model(x), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


# %% [markdown]
# One run for each mixer and trial, each evaluated on the same images. `load_split` gives the published class lists.

# %%
runs = []
for trial in range(5):
    split = load_split('digits', trial)
    train_set, test_set, unknown_set = data(split)
    for name in ('none', 'random-box', 'gradmix'):
        result = evaluate(train(name, train_set, seed=trial), known=test_set, unknown=unknown_set, scores=('mls',),
                          bootstrap=0, feature_map=0, trivial_images=0, duplicates=0)
        values = {('mls', metric): result.scores['mls'][metric] for metric in ('auroc', 'oscr')}
        runs.append(Run(
            group=name, folder=Path(f'{name}-{trial}'), protocol=('digits', split.family), trial=trial, seed=trial,
            split=(frozenset(split.known), frozenset(split.unknown)),
            values={**values, ('', 'top1'): result.closed_set['top1']}))
print(f'{len(runs)} runs')

# %% [markdown]
# ## The comparison
#
# Differences are paired by trial; the intervals are Student's over class splits, and the p-values are corrected over
# all differences shown (Holm). With fewer than five pairs there is no verdict.

# %%
from IPython.display import Markdown

comparison = compare_runs(runs, base='none', paired=True, metrics=['auroc', 'oscr'])
Markdown(comparison_markdown(comparison))

# %% [markdown]
# Read the interval before the verdict: "not distinguishable" with an interval of several points says that the runs
# are too few or too short, and not that the mixers are equal. GradMix has to beat `random-box` too, which pastes a
# box of the same size anywhere; otherwise the attribution map contributes nothing.

# %%
import matplotlib.pyplot as plt

figure, ax = plt.subplots(figsize=(5, 2.6), layout='constrained')
for place, name in enumerate(('none', 'random-box', 'gradmix')):
    ax.plot([run.values['mls', 'auroc'] for run in runs if run.group == name], [place] * 5, 'o', alpha=0.6)
ax.set_yticks(range(3), ('none', 'random-box', 'gradmix'))
ax.set_xlabel('AUROC of the trials')
plt.show()

# %% [markdown]
# ## The same from files
#
# Real runs take hours and write folders. [`gradmix-study`](../study.md) runs a grid of them from one YAML file, here
# or on Slurm, and `compare` reads what they wrote:
#
# ```
# gradmix-study study.yaml --jobs 2
# gradmix-openset compare study --by method --paired --base none
# ```
