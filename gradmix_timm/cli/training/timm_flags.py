"""The flags of timm's training script as data: names, types, defaults and order are timm's, help texts are ours."""
from __future__ import annotations

import argparse
from typing import Any

from gradmix_timm.cli.config_file import ParseKwargs
from gradmix_timm.cli.plugins import MODULES_HELP

__all__ = ['LATER_GROUPS', 'LOSSES', 'TAKES_EMPTY', 'TIMM_GROUPS', 'Flag', 'add_flags', 'add_timm_flags', 'default_of',
           'flag']

#: Option strings, and the other arguments of argparse's ``add_argument``.
Flag = tuple[tuple[str, ...], dict[str, Any]]


def flag(*names: str, default: Any = None, text: str = '', **options: Any) -> Flag:
    """One flag; its help ends in the default if that is informative."""
    if default not in (None, False, '', {}, []) and '(default' not in text:
        text += ' (default: %(default)s)'
    return names, {'default': default, 'help': text, **options}


def switch(name: str, text: str) -> Flag:
    """A flag without a value, off unless given."""
    return flag(name, default=False, text=text, action='store_true')


def add_flags(container: Any, flags: tuple[Flag, ...]) -> None:
    """Add flags to a parser or one of its groups, in order."""
    for names, options in flags:
        container.add_argument(*names, **options)


_DATASET = (
    flag('--data-dir', metavar='DIR', text='root folder of the data'),
    flag('--dataset', metavar='NAME', default='', text='kind/name, e.g. torch/cifar10 or sklearn/digits; a folder of '
                                                       'class folders where empty; shortcut:NAME draws a '
                                                       'shortcut on its images, shortcut:NAME:side=5,share=0.9'),
    flag('--train-split', metavar='NAME', default='train', text='split to train on'),
    flag('--val-split', metavar='NAME', default='validation', text='split to validate on; empty for none'),
    flag('--train-num-samples', type=int, metavar='N', text='size of the train split, for streamed data'),
    flag('--val-num-samples', type=int, metavar='N', text='size of the validation split, for streamed data'),
    switch('--dataset-download', 'fetch the data where its kind can'),
    flag('--class-map', type=str, default='', metavar='FILENAME', text='file of class names in label order'),
    flag('--input-img-mode', type=str, text="PIL mode images are converted to (default: 'RGB', one channel: 'L')"),
    flag('--input-key', type=str, text='field of the images'),
    flag('--target-key', type=str, text='field of the labels'),
    switch('--dataset-trust-remote-code', "let a Hugging Face data set run its repository's code"),
)

_MODEL = (
    flag('--model', type=str, default='resnet50', metavar='MODEL', text='timm model'),
    switch('--pretrained', 'start from the pretrained weights'),
    flag('--pretrained-path', type=str, text='checkpoint taken for the pretrained weights, its head adapted'),
    flag('--initial-checkpoint', type=str, default='', metavar='PATH', text='checkpoint loaded into the new model'),
    flag('--resume', type=str, default='', metavar='PATH',
         text="continue from a checkpoint; 'auto': from last.pth.tar of --experiment, if there is one"),
    switch('--no-resume-opt', 'resume weights but no optimizer state'),
    flag('--num-classes', type=int, metavar='N', text="width of the classifier (default: the model's own)"),
    flag('--gp', type=str, metavar='POOL', text='global pooling: fast, avg, max, avgmax, avgmaxc (default: its own)'),
    flag('--img-size', type=int, metavar='N', text="side of the images (default: the model's)"),
    flag('--in-chans', type=int, metavar='N', text='channels of the images (default: 3)'),
    flag('--input-size', type=int, nargs=3, metavar='N', text='channels, height and width, in place of --img-size'),
    flag('--crop-pct', type=float, metavar='N', text='share of the side kept by the validation crop'),
    flag('--mean', type=float, nargs='+', metavar='MEAN', text='mean of the pixels, per channel'),
    flag('--std', type=float, nargs='+', metavar='STD', text='standard deviation of the pixels, per channel'),
    flag('--interpolation', type=str, default='', metavar='NAME', text='of resizing'),
    flag('-b', '--batch-size', type=int, default=128, metavar='N', text='images per step and process'),
    flag('-vb', '--validation-batch-size', type=int, metavar='N', text='(default: --batch-size)'),
    switch('--channels-last', 'channels_last memory layout'),
    flag('--fuser', type=str, default='', text="fuser of TorchScript: '', te, old, nvfuser"),
    flag('--grad-accum-steps', type=int, default=1, metavar='N', text='batches summed up to one update'),
    switch('--grad-checkpointing', 'recompute activations in the backward pass'),
    switch('--fast-norm', 'norms without up-casting'),
    flag('--model-kwargs', nargs='*', default={}, action=ParseKwargs, text='further model arguments'),
    flag('--head-init-scale', type=float, text="factor on the head's first weights"),
    flag('--head-init-bias', type=float, text="first value of the head's bias"),
    flag('--torchcompile-mode', type=str, text='mode of torch.compile'),
)

_DEVICE = (
    flag('--device', type=str, default='cuda', text='cuda, cuda:1, cpu, ...'),
    switch('--amp', 'mixed precision'),
    flag('--amp-dtype', type=str, default='float16', text='float16 or bfloat16'),
    flag('--model-dtype', type=str, text='dtype of the model itself, without --amp (default: float32)'),
    switch('--no-ddp-bb', 'do not broadcast buffers between processes'),
    switch('--synchronize-step', 'wait for the device at the end of every update'),
    flag('--local_rank', type=int, default=0, text='rank on this machine; torchrun sets it in the environment'),
    flag('--device-modules', type=str, nargs='+', text=MODULES_HELP),
)

_OPTIMIZER = (
    flag('--opt', type=str, default='sgd', metavar='OPTIMIZER', text='timm optimizer'),
    flag('--opt-eps', type=float, metavar='EPSILON', text="epsilon (default: the optimizer's)"),
    flag('--opt-betas', type=float, nargs='+', metavar='BETA', text="betas (default: the optimizer's)"),
    flag('--momentum', type=float, default=0.9, metavar='M', text='momentum'),
    flag('--weight-decay', type=float, default=2e-5, text='weight decay'),
    flag('--clip-grad', type=float, metavar='NORM', text='gradient norm, value or AGC factor to clip at'),
    flag('--clip-mode', type=str, default='norm', text='norm, value or agc'),
    flag('--layer-decay', type=float, text='factor on the rate from layer to layer'),
    flag('--layer-decay-min-scale', type=float, default=0, text='smallest such factor'),
    flag('--layer-decay-no-opt-scale', type=float, text='layers below it are frozen'),
    flag('--opt-kwargs', nargs='*', default={}, action=ParseKwargs, text='further optimizer arguments'),
)

_SCHEDULE = (
    flag('--sched', type=str, default='cosine', metavar='SCHEDULER',
         text='cosine, tanh, step, multistep, poly, wsd, rsqrt, constant, plateau or none'),
    switch('--sched-on-updates', 'step the schedule every update, not every epoch'),
    flag('--lr', type=float, metavar='LR', text='learning rate; in place of --lr-base'),
    flag('--lr-base', type=float, default=0.1, metavar='LR', text='learning rate for --lr-base-size images per update'),
    flag('--lr-base-size', type=int, default=256, metavar='DIV', text='images per update that --lr-base is for'),
    flag('--lr-base-scale', type=str, default='', metavar='SCALE', text='linear or sqrt (default: by optimizer)'),
    flag('--lr-noise', type=float, nargs='+', metavar='pct, pct', text='share of the epochs where noise is on, off'),
    flag('--lr-noise-pct', type=float, default=0.67, metavar='PERCENT', text='limit of the noise'),
    flag('--lr-noise-std', type=float, default=1.0, metavar='STDDEV', text='its standard deviation'),
    flag('--lr-cycle-mul', type=float, default=1.0, metavar='MULT', text='factor on the length of each cycle'),
    flag('--lr-cycle-decay', type=float, default=0.5, metavar='MULT', text='factor on the rate of each cycle'),
    flag('--lr-cycle-limit', type=int, default=1, metavar='N', text='number of cycles'),
    flag('--lr-k-decay', type=float, default=1.0, text='k of cosine and poly'),
    flag('--warmup-lr', type=float, default=1e-5, metavar='LR', text='rate at the start of warm-up'),
    flag('--min-lr', type=float, default=0, metavar='LR', text='floor of the rate'),
    flag('--epochs', type=int, default=300, metavar='N', text='epochs to train'),
    flag('--epoch-repeats', type=float, default=0.0, metavar='N', text='passes over streamed data per epoch'),
    flag('--start-epoch', type=int, metavar='N', text='count epochs from here'),
    flag('--decay-milestones', type=int, nargs='+', default=[90, 180, 270], metavar='MILESTONES',
         text='epochs of multistep (default: 90 180 270)'),
    flag('--decay-epochs', type=float, default=90, metavar='N',
         text='epochs between steps; of wsd and rsqrt: length of the decay (default: 90; wsd, rsqrt: 0.2 of all)'),
    flag('--warmup-epochs', type=int, default=5, metavar='N', text='epochs of warm-up'),
    switch('--warmup-prefix', 'warm-up comes on top of --epochs'),
    flag('--cooldown-epochs', type=int, default=0, metavar='N', text='epochs at --min-lr at the end'),
    flag('--patience-epochs', type=int, default=10, metavar='N', text='patience of plateau'),
    flag('--decay-rate', '--dr', type=float, default=0.1, metavar='RATE', text='factor of a step; power of poly'),
)

_AUGMENTATION = (
    switch('--no-aug', 'no augmentation at all'),
    flag('--train-crop-mode', type=str, text='rrc, rkrc or rkrr'),
    flag('--scale', type=float, nargs='+', default=[0.08, 1.0], metavar='PCT', text='area of the random crop '
                                                                                    '(default: 0.08 1.0)'),
    flag('--ratio', type=float, nargs='+', default=[3.0 / 4.0, 4.0 / 3.0], metavar='RATIO',
         text='aspect ratio of the random crop (default: 0.75 1.33)'),
    flag('--hflip', type=float, default=0.5, text='probability of a horizontal flip'),
    flag('--vflip', type=float, default=0.0, text='probability of a vertical flip'),
    flag('--color-jitter', type=float, default=0.4, metavar='PCT', text='strength of the colour jitter'),
    flag('--color-jitter-prob', type=float, metavar='PCT', text='its probability (default: always)'),
    flag('--grayscale-prob', type=float, metavar='PCT', text='probability of grey'),
    flag('--gaussian-blur-prob', type=float, metavar='PCT', text='probability of blur'),
    flag('--aa', type=str, metavar='NAME', text='policy: v0, original, rand-m9-mstd0.5, augmix-m5-w4-d2, ...'),
    flag('--aug-repeats', type=float, default=0, text='repeats of an image, with several processes only'),
    flag('--aug-splits', type=int, default=0, text='augmentation splits: 0, or 2 and more'),
    switch('--jsd-loss', 'JSD + CE over --aug-splits; the older spelling of --loss jsd'),
    switch('--bce-loss', 'binary cross-entropy; the older spelling of --loss bce'),
    switch('--bce-sum', 'sum over classes in BCE'),
    flag('--bce-target-thresh', type=float, text='targets above it count as 1 in BCE'),
    flag('--bce-pos-weight', type=float, text='weight of the positive term; the older spelling of --loss-pos-weight'),
    flag('--reprob', type=float, default=0.0, metavar='PCT', text='probability of random erasing'),
    flag('--remode', type=str, default='pixel', text='its fill: const, rand or pixel'),
    flag('--recount', type=int, default=1, text='its number of boxes'),
    switch('--resplit', 'do not erase in the first augmentation split'),
    flag('--mixup', type=float, default=0.0, text='alpha of mixup; above 0 it is on (default: 0)'),
    flag('--cutmix', type=float, default=0.0, text='alpha of CutMix; above 0 it is on (default: 0)'),
    flag('--cutmix-minmax', type=float, nargs='+', text="range of the box sides, in place of an alpha; timm's modes"),
    flag('--mixup-prob', type=float, default=1.0, text='probability that a batch is mixed'),
    flag('--mixup-switch-prob', type=float, default=0.5, text='probability of the second of two mixers'),
    flag('--mixup-mode', type=str, default='batch',
         text="timm's batch, pair, elem, half (with --mixup, --cutmix), or a registered mixer, or two joined by +: "
              'see the group below'),
    flag('--mixup-off-epoch', type=int, default=0, metavar='N', text='mix no more from this epoch on, 0: never'),
    flag('--smoothing', type=float, default=0.1, text='label smoothing (default: 0.1; multilabel: 0)'),
    flag('--train-interpolation', type=str, default='random', text='random, bilinear or bicubic'),
    flag('--drop', type=float, default=0.0, metavar='PCT', text='dropout'),
    flag('--drop-connect', type=float, metavar='PCT', text='deprecated and unused in timm: --drop-path'),
    flag('--drop-path', type=float, metavar='PCT', text='stochastic depth'),
    flag('--drop-block', type=float, metavar='PCT', text='DropBlock'),
)

_BATCH_NORM = (
    flag('--bn-momentum', type=float, text='momentum of BatchNorm'),
    flag('--bn-eps', type=float, text='epsilon of BatchNorm'),
    switch('--sync-bn', 'statistics over all processes'),
    flag('--dist-bn', type=str, default='reduce', text="statistics shared each epoch: broadcast, reduce, ''"),
    switch('--split-bn', 'separate statistics for each augmentation split'),
)

_EMA = (
    switch('--model-ema', 'keep a moving average of the weights'),
    switch('--model-ema-force-cpu', 'keep it on the CPU; it is not validated then'),
    flag('--model-ema-decay', type=float, default=0.9998, text='its decay'),
    switch('--model-ema-warmup', 'let the decay grow'),
)

_MISC = (
    flag('--seed', type=int, default=42, metavar='S', text='seed of every random stream'),
    flag('--worker-seeding', type=str, default='all', text='all, or part: NumPy in the workers is left alone'),
    flag('--log-interval', type=int, default=50, metavar='N',
         text='updates between log lines, where "Mixed: 64/320" counts the images of the epoch that were mixed, and '
              '"Random boxes: 3/64" says that the maps of 3 of 64 mixed images were flat, so that their boxes were '
              'drawn at random'),
    flag('--val-interval', type=int, default=1, metavar='N', text='epochs between validations and checkpoints'),
    flag('--recovery-interval', type=int, default=0, metavar='N',
         text='updates between recovery files, which --resume auto goes on from; 0: none'),
    flag('--checkpoint-hist', type=int, default=10, metavar='N', text='checkpoints kept'),
    flag('-j', '--workers', type=int, default=4, metavar='N', text='loader processes'),
    switch('--save-images', 'save the batch at every log line'),
    switch('--pin-mem', 'pinned memory in the loader'),
    switch('--no-prefetcher', 'normalise on the CPU'),
    flag('--output', type=str, default='', metavar='PATH', text='folder of runs (default: ./output/train)'),
    flag('--experiment', type=str, default='', metavar='NAME', text='run folder (default: date, model, size)'),
    flag('--eval-metric', type=str, default='top1', metavar='EVAL_METRIC',
         text='metric of model_best: top1, top5 or loss; multilabel: map, micro_f1, macro_f1, sample_f1 or loss '
              '(default: top1; multilabel: map)'),
    flag('--tta', type=int, default=0, metavar='N',
         text='test-time augmentation: average over N consecutive outputs, 0: none'),
    switch('--use-multi-epochs-loader', 'keep one loader iterator over all epochs'),
    switch('--log-wandb', 'log to wandb'),
    flag('--wandb-project', type=str, text='its project'),
    flag('--wandb-tags', type=str, nargs='+', default=[], text='its tags'),
    flag('--wandb-resume-id', type=str, default='', metavar='ID', text='its run to continue'),
    flag('--train-img-sizes', type=int, nargs='+', text='sides of the images, one drawn for each batch'),
    flag('--train-batch-sizes', type=int, nargs='+', text='a batch size for each (default: --batch-size)'),
    flag('--train-size-probs', type=float, nargs='+', text='a weight for each (default: equal)'),
    flag('--train-size-schedule', type=str, default='constant', choices=('constant', 'progressive'),
         text='progressive moves from the first size to the last'),
    flag('--train-size-schedule-spread', type=float, default=0.65, text='its width, in sizes'),
    flag('--train-size-random-mix', type=float, default=0.1, text='its share of sizes drawn at random'),
    flag('--train-batches-per-epoch', '--train-steps-per-epoch', type=int,
         text='batches per epoch, with several sizes'),
    flag('--variable-batch-loss-scale', type=str, default='none', choices=('none', 'sqrt', 'linear'),
         text='scale gradients with the size of the batch'),
    switch('--naflex-loader', 'batches of patch sequences, for NaFlex models'),
    flag('--naflex-train-seq-lens', type=int, nargs='+', default=[128, 256, 576, 784, 1024],
         text='sequence lengths (default: 128 256 576 784 1024)'),
    flag('--naflex-max-seq-len', type=int, default=576, text='length at validation'),
    flag('--naflex-patch-sizes', type=int, nargs='+', text='patch sizes to draw from'),
    flag('--naflex-patch-size-probs', type=float, nargs='+', text='a probability for each'),
    flag('--naflex-loss-scale', type=str, default='linear', choices=('none', 'sqrt', 'linear'),
         text='scale gradients with the size of the batch'),
    switch('--naflex-patchify-channels-first', 'flat patches in channel order'),
)

#: timm's losses, timm.loss.LOSS_TYPES.
LOSSES = ('ce', 'bce', 'asl', 'poly', 'jsd', 'twoway', 'zlpr', 'db')

#: Flags whose empty value has a meaning in timm: no such split, data in folders, the default, off, a fresh start. Any
#: other empty path or name comes from an unset variable.
TAKES_EMPTY = (
    'val_split', 'dataset', 'interpolation', 'train_interpolation', 'fuser', 'lr_base_scale', 'dist_bn', 'aa', 'resume')

#: Flags outside any group, in order.
UNGROUPED = (
    flag('--kd-model-name', type=str, text='teacher of a distillation'),
    flag('--kd-distill-type', type=str, default='logit', choices=['logit', 'feature', 'token'], text='what is taught'),
    flag('--kd-loss-type', type=str, default='kl', text='loss between logits: kl'),
    flag('--distill-loss-weight', type=float, text='weight of the distillation loss (default: 1, or 1 - task weight)'),
    flag('--task-loss-weight', type=float, text='weight of the classification loss (default: 1)'),
    flag('--kd-temperature', type=float, default=4.0, text='temperature of both softmaxes'),
    flag('--kd-student-feature-dim', type=int, text="(default: the student's)"),
    flag('--kd-teacher-feature-dim', type=int, text="(default: the teacher's)"),
    flag('--kd-token-distill-type', type=str, default='soft', choices=['soft', 'hard'],
         text="KL, or CE on the teacher's label"),
)

#: At most one of these; they belong to the model's group.
EXCLUSIVE = (
    switch('--torchscript', 'script the model'),
    flag('--torchcompile', nargs='?', type=str, const='inductor', text='compile the model (default backend: inductor)'),
)

#: Title, description and flags of each group, in timm's order.
TIMM_GROUPS: tuple[tuple[str, str | None, tuple[Flag, ...]], ...] = (
    ('Dataset parameters', None, _DATASET),
    ('Model parameters', None, _MODEL),
    ('Device parameters', None, _DEVICE),
    ('Optimizer parameters', None, _OPTIMIZER),
    ('Learning rate schedule parameters', None, _SCHEDULE),
    ('Augmentation and regularization parameters', None, _AUGMENTATION),
    ('Batch norm parameters', 'Only models built on EfficientNet blocks read the first two.', _BATCH_NORM),
    ('Model exponential moving average parameters', None, _EMA),
    ('Miscellaneous parameters', None, _MISC),
)

#: What timm 1.0.31 added to its script; its library holds the functions behind them.
LATER_GROUPS: tuple[tuple[str, str | None, tuple[Flag, ...]], ...] = (
    ('Task and loss parameters', None, (
        flag('--task', type=str, default='classification', choices=('classification', 'multilabel'),
             text='one label per image, or any number'),
        flag('--target-format', type=str, default='index', choices=('index', 'multihot'),
             text='multi-label targets as class indices or as dense vectors'),
        flag('--multilabel-threshold', type=float, default=0.5, text='probability that counts as a label in F1'),
        flag('--loss', type=str, choices=LOSSES, text='training loss (default: ce; multilabel: bce)'),
        flag('--loss-pos-weight', type=str, metavar='W', text='weight of positive terms (bce, multi-label asl): a '
                                                              'number, a list a,b,c, a file, or neg_pos'),
        flag('--loss-class-weight', type=str, metavar='W', text='weight of classes (bce, multi-label asl): a number, '
                                                                'a list, a file, inv_freq or effective_num'),
        flag('--loss-weight-power', type=float, default=1.0, text='exponent of neg_pos and inv_freq'),
        flag('--class-stats', type=str, metavar='FILE', text='JSON with pos_counts and num_samples of the train split'),
        flag('--poly-gamma', type=float, default=0.0, text='focusing of --loss poly, multilabel (default: 0)'),
        flag('--poly-epsilon', type=float, default=2.0, text='first coefficient of --loss poly'),
    )),
    ('Run control parameters', None, (
        flag('--pretrained-cfg-overlay', nargs='*', default={}, action=ParseKwargs, metavar='K=V',
             text='changes to the pretrained configuration'),
        flag('--stop-epoch', type=int, metavar='N', text='stop after N epochs without changing the schedule'),
        flag('--save-epochs', type=int, nargs='+', metavar='N',
             text='keep milestone-N.pth.tar after these numbers of epochs'),
        flag('--lr-decay-fn', type=str, metavar='FN', text='decay of wsd, rsqrt: linear, 1-sqrt, cosine, power, exp'),
        flag('--lr-stable-timescale', type=float, metavar='N', text='time scale of rsqrt (default: --warmup-epochs)'),
    )),
)


def add_timm_flags(parser: argparse.ArgumentParser) -> None:
    """Add every flag of timm's script to a parser, in timm's groups and order."""
    parser.add_argument('data', nargs='?', metavar='DIR', help='the data, deprecated: --data-dir')
    for title, description, flags in TIMM_GROUPS:
        group = parser.add_argument_group(title, description)
        add_flags(group, flags)
        if title == 'Model parameters':
            add_flags(group.add_mutually_exclusive_group(), EXCLUSIVE)
    add_flags(parser, UNGROUPED)
    for title, description, flags in LATER_GROUPS:
        add_flags(parser.add_argument_group(title, description), flags)


def default_of(name: str) -> Any:
    """Default of a flag of timm's script by its name in the namespace."""
    groups = [UNGROUPED, *(flags for _, _, flags in TIMM_GROUPS + LATER_GROUPS)]
    return next(options['default'] for flags in groups for names, options in flags
                if names[0].removeprefix('--').replace('-', '_') == name)
