"""Training objectives: contrastive losses and their tasks."""
from .clean import KeepCleanTask, check_keep_clean
from .contrastive import ContrastiveTask, JointTask, guiding_mixer
from .heads import Projected, classifier_layers
from .late_labels import LateLabelTask
from .losses import JointConfig, instance_logits, joint_terms, ssl_loss, supcon_loss
from .moco import MocoTask
from .temperature import LossTemperature, TemperedLoss

__all__ = [
    'ContrastiveTask',
    'JointConfig',
    'JointTask',
    'KeepCleanTask',
    'LateLabelTask',
    'LossTemperature',
    'MocoTask',
    'Projected',
    'TemperedLoss',
    'check_keep_clean',
    'classifier_layers',
    'guiding_mixer',
    'instance_logits',
    'joint_terms',
    'ssl_loss',
    'supcon_loss',
]
