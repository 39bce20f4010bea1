# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---
# %% [markdown]
# # Evaluate a live model
#
# `evaluate()` takes a module as it stands in the notebook, with your loaders, and says how well it separates known
# from unknown images. Here: a net that is trained on six digits and meets the other four.

# %%
import timm
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from gradmix_timm import evaluate

torch.manual_seed(0)
pixels, digits = load_digits(return_X_y=True)
images = torch.nn.functional.interpolate(torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16, (32, 32))
images = images.repeat(1, 3, 1, 1)  # grey as RGB, as the net expects it
digits = torch.from_numpy(digits)
known = digits < 6
held = torch.arange(len(digits)) % 4 == 0
train = TensorDataset(images[known & ~held], digits[known & ~held])
test = TensorDataset(images[known & held], digits[known & held])
unknown = TensorDataset(images[~known], digits[~known])

model = timm.create_model('test_resnet', num_classes=6)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for _ in range(5):
    for x, y in DataLoader(train, 64, shuffle=True):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %% [markdown]
# ## One call
#
# - `known`: test images of known classes; labels are positions of the logits.
# - `unknown`: images of other classes; a dict gives each set its own row. `'noise:uniform'` is made on the fly; a
#   folder's path works too.
# - `train`: un-augmented training images, for the scores that are fitted (knn, mahalanobis, ...). Without it they are
#   left out by name.
#
# Data sets, loaders, folders and iterables of batches are accepted. The model keeps its mode, hooks and flags.

# %%
result = evaluate(
    model, train=train, known=DataLoader(test, 128), unknown={'digits 6-9': unknown},
    known_classes=[f'digit {k}' for k in range(6)], scores=('msp', 'mls', 'energy', 'knn:k=5'), bootstrap=200)
result

# %%
metrics = result.scores['mls']
print(f'AUROC {metrics["auroc"]:.3f}, 95% interval {metrics["auroc_ci"][0]:.3f} to {metrics["auroc_ci"][1]:.3f}')
print(f'closed-set accuracy {result.closed_set["top1"]:.3f}')
print('left out:', result.left_out)

# %% [markdown]
# ## Look at it
#
# Every plot returns a matplotlib figure and takes `ax=`.

# %%
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout='constrained')
result.plot_roc(ax=left)
result.plot_scores('mls', ax=right)
plt.show()

# %%
result.plot_confusions()

# %% [markdown]
# The unknown images that the model is most sure of:

# %%
rows = [row for row in result.predictions if not row['known']]
worst = sorted(rows, key=lambda row: -row['mls'])[:8]
unknown_rows = [rows.index(row) for row in worst]
figure, axes = plt.subplots(1, 8, figsize=(9, 1.6))
for ax, row, place in zip(axes, worst, unknown_rows):
    ax.imshow(unknown.tensors[0][place, 0], cmap='gray')
    ax.set_title(f'{row["predicted"]}\n{row["probability"]:.0%}', fontsize=8)
    ax.axis('off')
plt.show()

# %% [markdown]
# ## Keep it
#
# `save` writes `results.json` ([keys](../results-schema.md)), `predictions.csv`, tables, figures and a self-contained
# `report.html`; `Evaluation.load` reads the folder again.

# %%
import tempfile
from pathlib import Path

from gradmix_timm.evaluation import Evaluation

folder = Path(tempfile.mkdtemp())
report = result.save(folder)
print(sorted(path.name for path in folder.iterdir()))
print(Evaluation.load(folder).scores['mls']['auroc'] == metrics['auroc'])

# %% [markdown]
# ## A classifier with a threshold
#
# An evaluation ranks images. To *use* the model, a threshold is set on known images that are neither trained on nor
# tested on, here on half of the test images. `preprocessing` says how `predict` makes the model's input of a picture:
# these digits went in as they are.

# %%
from torch.utils.data import random_split

from gradmix_timm import OpenSetClassifier
from gradmix_timm.data.preprocessing import Preprocessing

as_it_is = {'input_size': (3, 32, 32), 'mean': 0., 'std': 1., 'crop_pct': 1.}
validation, rest = random_split(test, [0.5, 0.5], torch.Generator().manual_seed(0))
classifier = OpenSetClassifier.from_model(
    model, [f'digit {k}' for k in range(6)], validation=validation, preprocessing=Preprocessing.of(as_it_is, model))
print(classifier)
for name, data in (('known', rest), ('unknown', unknown)):
    labels = [found.label for found in classifier.predict([image for image, _ in data])]
    print(f'{name}: {1 - labels.count("unknown") / len(labels):.0%} accepted')

# %% [markdown]
# `classifier.save('folder')` and `OpenSetClassifier.load('folder')` keep it; of a checkpoint of `gradmix-train` see
# [Fine-tune to a classifier that says "unknown"](finetune_open_set.md).
