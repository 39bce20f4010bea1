"""Nets of the open-set papers for images of 32 pixels, registered with timm: importing this makes them models of it."""
from .resnet_cifar import CifarResNet, resnet18_cifar

__all__ = ['CifarResNet', 'resnet18_cifar']
