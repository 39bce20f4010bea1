"""Packages, which setup.cfg cannot list: the recipes of configs/ are installed as gradmix_timm/configs."""
from setuptools import find_packages, setup

setup(packages=[*find_packages(include=['gradmix_timm', 'gradmix_timm.*']), 'gradmix_timm.configs'],
      package_dir={'gradmix_timm.configs': 'configs'})
