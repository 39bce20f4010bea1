"""The commands of ``python -m gradmix_timm.openset``; :mod:`.osr` has their parser and the first of them."""
