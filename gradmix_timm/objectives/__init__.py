"""What is minimised: contrastive losses and the tasks around them."""
from .losses import JointConfig, joint_loss, mix_loss, ssl_loss, supcon_loss, supconmix_loss

__all__ = ['JointConfig', 'joint_loss', 'mix_loss', 'ssl_loss', 'supcon_loss', 'supconmix_loss']
