"""Train: ``python train.py [timm's flags] --mixup-mode NAME``; stands for the module gradmix_timm.cli.train."""
import sys

from gradmix_timm.cli import train

if __name__ == '__main__':
    sys.exit(train.console())

# `import train` gives that module itself, so that what is replaced there (train.create_model) takes effect.
sys.modules[__name__] = train
