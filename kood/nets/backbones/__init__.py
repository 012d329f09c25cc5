"""Classifier backbones: images (B, H, W, C) in [-1, 1] to features (B, D), without a head.

Every backbone is a functional `keras.Model`, so it saves to `.keras` and loads without this package; one of
`pretrained` with layers of KerasCV's own loads where KerasCV is imported.
"""
