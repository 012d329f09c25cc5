"""Augmentations for training batches: what a recipe may list under `data.augment`.

Each takes float32 images (B, H, W, C) in [-1, 1] and a seed, and gives images of the same shape and range; labels are
untouched, so in-distribution images and outliers are treated alike. Equal seeds give equal results, bit for bit.
"""
