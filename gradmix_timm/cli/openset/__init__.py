"""The commands of ``python -m gradmix_timm.openset``; :mod:`.main` has their parser."""
