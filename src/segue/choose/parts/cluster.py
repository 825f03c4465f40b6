"""Texts that say the same: k-means over their TF-IDF vectors, by scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence

WORD = r"(?u)\w+|[^\w\s]+"  # numbers and signs of one character are words as well
STARTS = 4  # of k-means, the best of which counts


def clustered(texts: Sequence[str], most: int) -> list[int]:
    """The cluster of every text, of at most `most`: as many as there are different vectors. Always the same for the
    same texts. Texts without any word are one cluster."""
    if most < 2 or len(texts) < 2:
        return [0] * len(texts)
    try:
        import numpy as np
        from sklearn.cluster import KMeans
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        raise ValueError("clusters need the package scikit-learn: pip install 'segue[choose]'") from None
    if not any(text.strip() for text in texts):
        return [0] * len(texts)
    vectors = TfidfVectorizer(token_pattern=WORD).fit_transform(texts).toarray()  # (n, words)
    different = len(np.unique(vectors, axis=0))
    if different < 2:
        return [0] * len(texts)
    labels = KMeans(min(most, different), n_init=STARTS, random_state=0).fit_predict(vectors)
    return [int(label) for label in labels]
