"""Training images in the texture of others."""

import numpy as np

from kood.outliers import OutlierSource, Rows
from kood.outliers.pairs import pairs_of

__all__ = ["AmplitudeSwap"]


class AmplitudeSwap(OutlierSource):
    """Outliers that are training images under the Fourier amplitudes of training images of other classes.

    What they show is real, and their texture is, but not of one piece. It is what `kood.data.amplitude.swap_amplitudes`
    does, to pairs as `pixel_mixup` draws them: the first image gives the phases, the second the amplitudes.
    """

    has_shares = False

    def draw(self, count, rng, train):
        """Recombines training images; `ValueError` where they are of fewer than two classes."""
        from kood.data.amplitude import recombined

        first, second = pairs_of(train.known_labels, count, rng)
        images = train.images
        made_of = train.known_labels[np.stack([first, second], axis=1)]
        return Rows(recombined(images, first, images, second), count, made_of=made_of)
