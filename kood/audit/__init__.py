"""Is a set of outliers any good? Content, diversity, fidelity, and the shortcut test. NumPy and SciPy only."""

from kood.audit.outlier_set import Judged, audit, with_shortcut

__all__ = ["Judged", "audit", "with_shortcut"]
