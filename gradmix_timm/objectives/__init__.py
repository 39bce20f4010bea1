"""What is minimised: contrastive losses and the tasks around them."""
from .clean import KeepCleanTask
from .losses import JointConfig, joint_loss, mix_loss, ssl_loss, supcon_loss, supconmix_loss

__all__ = ['JointConfig', 'KeepCleanTask', 'joint_loss', 'mix_loss', 'ssl_loss', 'supcon_loss', 'supconmix_loss']
