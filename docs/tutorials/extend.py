# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---
# %% [markdown]
# # Add a mixer, a score, a protocol
#
# What you register under a name works everywhere by that name: in `create_mixer` and `evaluate`, in `--mixup-mode`
# and `--scores`, in checkpoints and reports.

# %%
import torch
from torch.utils.data import TensorDataset

from gradmix_timm import create_mixer, evaluate, list_mixers, plot_mixes, register_mixer

# %% [markdown]
# ## A mixer that is a function
#
# `(images, labels, **options) -> (images, soft targets)`; a parameter `num_classes` is filled in. Random numbers from
# any global stream are seeded for the step and restored afterwards, so runs reproduce.


# %%
@register_mixer('stripes', 'every other stripe from the next image', function=True)
def stripes(images, labels, num_classes, width=4):
    rows = (torch.arange(images.shape[2]) // width % 2).bool()
    mixed = images.clone()
    mixed[:, :, rows] = images.roll(1, 0)[:, :, rows]
    targets = torch.nn.functional.one_hot(labels, num_classes).float()
    return mixed, targets.lerp(targets.roll(1, 0), rows.float().mean())


mixer = create_mixer('stripes', num_classes=3, width=8)
gradient = torch.linspace(0, 1, 32).repeat(1, 32, 1)
images = torch.stack([gradient, gradient.mT, gradient.flip(2)])
plot_mixes(mixer, images, torch.arange(3), class_names=['right', 'down', 'left'])

# %% [markdown]
# ## A mixer that is a class
#
# Derive from `BatchMixer` and write `_draw`, which makes all random decisions (from `rng`; `coins` says which images
# are mixed, `partner` with whom), and `_paste`, which makes none. The base class provides soft labels, smoothing,
# probabilities, seeds per step and rank, devices and dtypes; and because the draw is a record, plots and reports show
# boxes, partners and kept shares.

# %%
from gradmix_timm.mixers import BatchMixer
from gradmix_timm.records import MixDraw


@register_mixer('left-half', 'the left half from a partner')
class LeftHalf(BatchMixer):
    """The left half of each image from a random partner."""

    name = 'left-half'

    def _draw(self, images, targets, model, rng, coins, partner):
        height, width = images.shape[2:]
        box = torch.tensor([0, height, 0, width // 2]) * torch.from_numpy(coins)[:, None]
        kept = 1 - (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]) / (height * width)
        return MixDraw.of(self.name, torch.from_numpy(partner), kept.float(), dst=box)

    def _paste(self, images, draw):
        mixed = images.clone()
        for row, (yl, yh, xl, xh) in enumerate(draw.dst.tolist()):
            mixed[row, :, yl:yh, xl:xh] = images[draw.partner[row], :, yl:yh, xl:xh]
        return mixed


plot_mixes(create_mixer('left-half', num_classes=3), images, torch.arange(3), class_names=['right', 'down', 'left'])

# %%
{name: list_mixers()[name] for name in ('stripes', 'left-half')}

# %% [markdown]
# On the command line, put the code into a module and name it. `stripes` is then also recorded in the checkpoint:
#
# ```
# PYTHONPATH=. gradmix-train --device-modules my_mixers --mixup-mode stripes --mixup-kwargs width=8 ...
# ```
#
# ## A score
#
# A score maps embeddings (logits, features, ...) to float64 knownness, higher = more known. Declare what it reads and
# whether it is fitted. Constructor arguments are its options.

# %%
from gradmix_timm.openset.scores import SCORES, Score


@SCORES.register('margin', 'largest logit minus the second largest')
class Margin(Score):
    """The distance between the two largest logits.

    Args:
        power: Applied to the margin.
    """

    reads = ('logits',)

    def __init__(self, power: float = 1.0):
        self.power = power

    def knownness(self, embeddings):
        top = embeddings.logits.double().topk(2, dim=1).values
        return (top[:, 0] - top[:, 1]) ** self.power


generator = torch.Generator().manual_seed(0)
pixels = torch.randn(180, 3, generator=generator)  # images of one pixel, whose channels serve as logits
pixels[:90] += 3 * torch.eye(3).repeat(30, 1)
known = TensorDataset(pixels[:90, :, None, None], torch.arange(90) % 3)
unknown = TensorDataset(pixels[90:, :, None, None], torch.zeros(90, dtype=torch.long))
evaluate(torch.nn.Flatten(), known=known, unknown=unknown, scores=('mls', 'margin', 'margin:power=2.0'), bootstrap=0,
         feature_map=0)

# %% [markdown]
# A score that is fitted sets `needs_train = True` and keeps what it needs in `fit(train, head)`. `train` has the
# fields of `Embeddings`: `logits` [N, K], `features` [N, D] (the input of the classifier), `projection` [N, P] or None,
# `label` [N] (positions in the known classes) and `index` [N]. With `needs_head = True`, `head` is the classifier,
# `head.weight` [K, D] and `head.bias` [K]; without it, `head` may be None.

# %%
@SCORES.register('class-mean', 'minus the distance to the nearest mean of a class')
class ClassMean(Score):
    """Minus the distance between the logits and the nearest class's mean of them."""

    reads = ('logits',)
    needs_train = True
    least = 1  # training images that every class must have

    def fit(self, train, head):
        classes = range(train.logits.shape[1])
        self.means = torch.stack([train.logits[train.label == k].double().mean(0) for k in classes])

    def knownness(self, embeddings):
        return -(embeddings.logits.double()[:, None] - self.means).norm(dim=2).amin(1)


more = torch.randn(90, 3, generator=generator) + 3 * torch.eye(3).repeat(30, 1)
train = TensorDataset(more[:, :, None, None], torch.arange(90) % 3)
evaluate(torch.nn.Flatten(), train=train, known=known, unknown=unknown, scores=('mls', 'class-mean'), bootstrap=0,
         feature_map=0)

# %% [markdown]
# `--device-modules my_scores` makes the name known to `gradmix-openset` and `gradmix-predict`; in Python, import the
# module before `OpenSetClassifier.load`. One that is to go into an ONNX graph derives from
# `gradmix_timm.openset.scores.logit.LogitScore` and writes `of(logits)` in place of `knownness`.
#
# Metrics and objectives have no registry. A metric of your own is a function of `evaluation.predictions`, one row an
# image with `known`, `label`, `predicted` and its knownness by each score. An objective of your own is the loss of
# [your loop](mix_in_my_loop.md), which takes any mixer and whose model `evaluate` takes as it is.
#
# ## A protocol
#
# A YAML file with the names of the known classes; `unknown` defaults to all others, and `groups` are reported
# separately.

# %%
from pathlib import Path
from tempfile import mkdtemp

from gradmix_timm.data import load_split

path = Path(mkdtemp()) / 'pets.yaml'
path.write_text("""
name: pets
known: [cat, dog, rabbit]
unknown: [fox, wolf, lynx]
groups: {canine: [fox, wolf], feline: [lynx]}
""")
load_split(str(path))

# %% [markdown]
# ```
# gradmix-train --data-dir DIR --osr-protocol pets.yaml --model resnet18 --mixup-mode gradmix
# gradmix-openset osr --checkpoint output/train/RUN/model_best.pth.tar
# ```
