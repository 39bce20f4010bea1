"""Names that flags offer and the library takes, in a file without imports, so that ``--help`` need not load PyTorch.

A constant has its home here. Names of registries (mixers, scores, ...) are entered where their classes are, in this
order; ``tests/test_choices.py`` compares.
"""
from __future__ import annotations

#: Mixers that are timm's own class.
TIMM_MODES = ('batch', 'pair', 'elem', 'half')
MIXERS = (
    *TIMM_MODES, 'none', 'mixup', 'cutmix', 'random-box', 'center-box', 'gradmix', 'cutout', 'random-erasing',
    'resizemix', 'fmix', 'gridmix', 'saliencymix', 'regmixup', 'guidedmix', 'attentivemix', 'snapmix', 'puzzlemix',
    'openmix', 'transmix', 'tokenmix', 'pixmix', 'torchvision-mixup', 'torchvision-cutmix')
#: Methods of an attribution map.
ATTRIBUTIONS = ('layercam', 'hirescam', 'gradcam', 'input-gradient')
#: Known test images at most that maps are made of in the evaluation of a shortcut.
SHORTCUT_IMAGES = 1000

#: Scores of knownness by embeddings.
EMBEDDING_SCORES = (
    'msp', 'mls', 'energy', 'entropy', 'gen', 'klm', 'temperature', 'knn', 'knn-mean', 'class-knn', 'class-knn-share',
    'nnguide', 'relation', 'mahalanobis', 'rmahalanobis', 'vim', 'residual', 'gmm', 'openmax', 'react', 'vra', 'ash',
    'scale', 'dice', 'she', 'fdbd', 'nci', 'gradnorm')
#: Those that go back to the model for every image; an evaluation has them only where they are named.
MODEL_SCORES = ('odin',)
#: Sets of scores and metrics by the conventions of published tables.
PRESETS = ('openood', 'paper')
#: Kinds of probes.
PROBES = ('linear', 'knn', 'few-shot')
#: Engines of a study, and what each is.
ENGINES = {'local': 'processes of this machine, --jobs at a time',
           'submitit': 'an array of Slurm jobs (pip install submitit); its local and debug executors too'}
#: Flags of training that have a --no- form, keyed as in YAML files.
SWITCHES = ('gradmix_correct_lam', 'gradmix_keep_clean')
#: Flags of training and of the evaluations in a study whose list is one word with commas, not several words.
COMMA_LISTS = ('known_classes', 'near', 'far', 'corruptions', 'severities', 'probes', 'shots')

# ---- images

#: PIL modes that a model can be fed with, 8 bits a channel, and how many channels each has.
MODES = {'L': 1, 'LA': 2, 'RGB': 3, 'HSV': 3, 'YCbCr': 3, 'LAB': 3, 'RGBA': 4, 'CMYK': 4, 'RGBX': 4}
#: What to do about the orientation that a camera writes beside the pixels: read them as stored, as timm does, or turn
#: the picture upright.
EXIF_RULES = ('ignore', 'apply')
#: Policies for unknown sets with classes named like known ones.
OVERLAPS = ('refuse', 'drop', 'keep')
#: OpenOOD's benchmarks.
SUITES = ('cifar10', 'cifar100', 'imagenet200', 'imagenet')

# ---- corruptions

#: Sets of constants, and the image side in pixels that each was made for.
SCALES = {'cifar': 32, 'tiny-imagenet': 64, 'imagenet': 224}
SEVERITIES = (1, 2, 3, 4, 5)
#: The 15 by kind, as the papers group them.
FAMILIES = {
    'noise': ('gaussian_noise', 'shot_noise', 'impulse_noise'),
    'blur': ('defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur'),
    'weather': ('snow', 'frost', 'fog', 'brightness'),
    'digital': ('contrast', 'elastic_transform', 'pixelate', 'jpeg_compression'),
}
#: Images up to this side are corrupted as they are stored, as CIFAR-C and Tiny-ImageNet-C were; larger ones cut to the
#: model's input, as ImageNet-C was.
SMALL = 96

# ---- exports

#: What an exported ONNX graph reads: prepared pixels, or a whole image.
ONNX_INPUTS = ('tensor', 'image')
