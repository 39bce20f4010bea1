"""The flags that training has besides those of timm's script."""
from __future__ import annotations

import argparse

from gradmix_timm.choices import EXIF_RULES
from gradmix_timm.cli.config_file import ParseKwargs, layer, words
from gradmix_timm.options import OPTIONS

from .timm_flags import Flag, flag

__all__ = ['AUGMENTATION', 'GRADMIX', 'MIXING', 'OBJECTIVE', 'OPEN_SET', 'RUN', 'VAL_FRACTION']

#: Default of --osr-val-fraction.
VAL_FRACTION = 0.1

MIXING = (
    flag('--mixup-prob-elem', type=float, default=1.0, metavar='P',
         text='probability that an image of a mixed batch is mixed; registered mixers only'),
    flag('--multi-label-mix', type=str, choices=('weight', 'union'),
         text='labels of --task multilabel under a registered mixer: by weight, or every label that is still seen'),
    flag('--unknown-output', action='store_true', default=False,
         text='one more output of the head, for what a mixer gives to no class (openmix) in place of a uniform target; '
              'hidden from the known classes'),
    flag('--mixup-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='K=V',
         text='options of any mixer; for two joined by +, each key names its mixer: gradmix.alpha=0.5'),
)

AUGMENTATION = (
    flag('--aug-backend', type=str, default='timm', choices=('timm', 'albumentations'),
         text='library that transforms the training images'),
    flag('--aug-config', type=str, metavar='FILE',
         text='albumentations pipelines, YAML or JSON as albumentations.save writes them, under train: and eval:; '
              'ready ones by name: aug/light, aug/cifar, aug/imagenet'),
    flag('--cache-images', default=False, action='store_true',
         text='hold all images in memory and augment them in batches on the device; for small images of one size'),
    flag('--crop-padding', type=int, metavar='N',
         text='with --cache-images: crop from the image with a border of N pixels, not a random resized crop'),
    flag('--exif', type=str, default='ignore', choices=EXIF_RULES,
         text='orientation that a camera wrote beside the pixels: ignore it, as timm does, or apply it, so that '
              'pictures stand upright; kept in the checkpoint for every evaluation'),
)

OPEN_SET = (
    flag('--known-classes', type=words, metavar='A,B,...',
         text='train on these classes alone, in this order; all others are unknown; a name with a comma in double '
              'quotes'),
    flag('--osr-protocol', type=str, metavar='NAME',
         text='class split: digits, mnist, svhn, cifar10, cifar+10, cifar+50, tinyimagenet, cub, aircraft, cars, '
              'imagenet or a YAML file'),
    flag('--osr-trial', type=int, default=0, metavar='N', text='trial of the protocol (default: 0)'),
    flag('--osr-family', type=str, metavar='NAME', text="publication whose class lists are used: arpl2020, "
                                                        "neal2018_cac, ... (default: the protocol's own)"),
    flag('--osr-val-fraction', type=float, default=VAL_FRACTION, metavar='P',
         text='share of the known train images, by class, that is the validation set in place of --val-split'),
    flag('--osr-test-split', type=str, metavar='NAME',
         text='split that the evaluation will read; training never opens it (default: --val-split, else test)'),
)

OBJECTIVE = (
    flag('--loss-temperature', type=str, metavar='T',
         text='divide the logits by T in the training loss alone: a number, or negcos:low=0.5,high=2,period=200, a '
              'negative cosine over the epochs (negcos alone: these, in shorter runs one rising half-cycle)'),
    flag('--objective', type=str, default='ce', choices=('ce', 'supcon+ssl', 'simclr', 'moco'),
         text='train the classifier, or features of two views of every image'),
    flag('--objective-temperature', type=float, metavar='T',
         text='temperature of the contrastive losses (default: 0.05)'),
    flag('--objective-gamma', type=float, metavar='W',
         text='supcon+ssl: weight of the supervised term, 0: none (default: 1)'),
    flag('--objective-ssl-weight', type=float, metavar='W',
         text='supcon+ssl: weight of the self-supervised and the mixed term (default: 1)'),
    flag('--objective-dim', type=int, metavar='N', text='width of the projection (default: 128)'),
    flag('--objective-hidden', type=int, metavar='N',
         text="width inside the projection head (default: the features')"),
    flag('--objective-queue', type=int, metavar='N', text='moco: keys kept as negatives (default: 4096)'),
    flag('--objective-momentum', type=float, metavar='M', text='moco: momentum of the key encoder (default: 0.999)'),
    flag('--probe-epochs', type=int, metavar='N',
         text='after a contrastive objective: epochs of a linear head on the frozen features of the training images, '
              '0: none (default: 10)'),
)

RUN = (
    flag('--overwrite', action='store_true', default=False,
         text='replace an existing run of that --experiment'),
    flag('--skip-nonfinite', action='store_true', default=False,
         text='drop an update whose loss is infinite or not a number, on all processes, instead of stopping'),
    flag('--log-tensorboard', action='store_true', default=False, text='log to TensorBoard, in the run folder'),
    flag('--log-mixes-interval', type=int, default=10, metavar='N',
         text='with --log-tensorboard or --log-wandb: epochs between pictures of mixed images, 0: none'),
)


def _gradmix_flag(name: str) -> Flag:
    """--gradmix-NAME; unset means the recipe's value, so that explicit options override a recipe."""
    option = OPTIONS[name]
    default, choices = option.default, option.metadata['choices']
    shown = ' '.join(map(str, default)) if isinstance(default, tuple) else default
    if option.metadata['trained'] is not None:
        shown = f'{option.metadata["trained"]} for gradmix and one label an image, {default} in Python'
    text = option.metadata['help'] + ('' if default is None else f' (default: {shown})')
    option_string = f'--gradmix-{name.replace("_", "-")}'
    if isinstance(default, bool):
        return flag(option_string, text=text, action=argparse.BooleanOptionalAction)
    if name == 'layers':
        return flag(option_string, text=text, type=layer, nargs='+', metavar='LAYER')
    if isinstance(default, tuple):
        return flag(option_string, text=text, type=float, nargs=len(default), metavar='X')
    kind = type(default) if isinstance(default, float) else str
    return flag(option_string, text=text, type=kind, choices=choices)


GRADMIX = tuple(map(_gradmix_flag, OPTIONS))
