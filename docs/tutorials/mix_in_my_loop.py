# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---
# %% [markdown]
# # GradMix in your training loop
#
# A mixer is one line in a training loop: `images, targets = mixer(images, labels, model)`. This page trains a small
# net on scikit-learn's handwritten digits (they come with the package, nothing is downloaded), each at a random place
# of a larger image, shows what the mixer covers, and checks that the model is left as it was. Under a minute on one
# core.

# %%
import timm
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from gradmix_timm import attribute, create_mixer, plot_attribution, plot_mixes

torch.manual_seed(0)
pixels, labels = load_digits(return_X_y=True)
images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16
images = torch.nn.functional.interpolate(images, (24, 24), mode='bilinear')
images = torch.nn.functional.pad(images, (0, 24, 0, 24))  # 48 x 48; then moved by up to 24 pixels
images = torch.stack([image.roll(shift.tolist(), (1, 2)) for image, shift in zip(images, torch.randint(25, (1797, 2)))])
train = TensorDataset(images[:1000], torch.from_numpy(labels)[:1000])
test = TensorDataset(images[1000:], torch.from_numpy(labels)[1000:])

# %% [markdown]
# ## The changed line
#
# `num_classes` is the width of the classifier. `confidence=0.9` mixes only images whose label the model is already sure
# of, and they keep it, as `gradmix-train --mixup-mode gradmix` does; without it every image is mixed, which gains more
# where a small cue misleads and costs accuracy where there is none ([when to use which](../results/study.md)). The
# mixer returns new images and soft targets [B, K], so the loss has to accept soft targets, as with timm's Mixup.

# %%
model = timm.create_model('test_resnet', num_classes=10, in_chans=1)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
mixer = create_mixer('gradmix', num_classes=10, confidence=0.9, label_smoothing=0.1, seed=0)

for _ in range(10):
    model.train()
    for x, y in DataLoader(train, 32, shuffle=True, drop_last=True):
        x, targets = mixer(x, y, model)  # the changed line
        loss = torch.nn.functional.cross_entropy(model(x), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scheduler.step()

model.eval()
with torch.no_grad():
    accuracy = (model(test.tensors[0]).argmax(1) == test.tensors[1]).float().mean()
print(f'test accuracy {accuracy:.1%}')

# %% [markdown]
# ## What the model looks at
#
# `attribute` differentiates the log-odds of the label at a layer of the model. The map is coarse: one number per cell
# of the layer's grid.

# %%
x, y = test[:6]
found = attribute(model, x, y)
print(found)
plot_attribution(found, x, labels=y, rows=3)

# %% [markdown]
# ## What the mixer covers
#
# The box (blue) lies where it hides the largest share of the map. This one mixes every image, whatever the
# model is sure of. Below a mixed image are its label weights, here by the visible area (with `confidence=0.9` the
# label is kept), and the share of its own pixels that remains.

# %%
show = create_mixer('gradmix', num_classes=10, seed=0)
plot_mixes(show, x, y, model, class_names=[str(k) for k in range(10)], rows=3)

# %% [markdown]
# The draw is a record, and applying it involves no randomness:

# %%
draw = show.draw(x, y, model, torch.Generator().manual_seed(0))
mixed, targets = show.apply(x, y, draw)
draw

# %% [markdown]
# ## Does the box cover evidence?
#
# Cover the same number of pixels in three places and measure by how much the label's log-odds fall. A place that the
# model relies on costs more. Where objects are centred, as in many photographs, a box in the middle is a strong
# competitor: the [measurements](../results/attribution.md) have more nets, on centred and on moved images.

# %%
from gradmix_timm.attribution.deletion import Place, deletion_drops

places = [Place('random'), Place('center'), Place('layercam')]
for place, drops in zip(places, deletion_drops(model, *test[:256], places, side=18, seed=0)):
    print(f'{place!s:34} {drops.mean():5.2f} +- {drops.std() / len(drops) ** 0.5:.2f}')

# %% [markdown]
# ## Nothing is left behind
#
# The mixer runs one extra pass and restores everything: parameters, buffers (batch-norm statistics too), `.grad`, the
# training flag of every module, hooks and random streams.

# %%
before = {name: value.clone() for name, value in model.state_dict().items()}
model.train()
mixer(x, y, model)
assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
assert model.training

# %% [markdown]
# ## In other loops
#
# - timm's script calls `mixup_fn(input, target)`: `mixup_fn = create_mixer(...).bound_to(model)`.
# - `mixer.set_step(epoch, step)` makes a resumed run draw what an uninterrupted one would.
# - Under DDP create the mixer after `init_process_group`, so that each process draws mixes of its own.
# - [Lightning](../howto/lightning.md), [Hugging Face Trainer](../howto/trainer.md), or no loop at all: `gradmix-train
#   --mixup-mode gradmix` ([Train](../training.md)).
# - `help(create_mixer)` lists all mixers and their options.
