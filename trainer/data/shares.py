"""Settings of each of the caches to train on."""

from schemas.train_config import CacheShare, DataConfig
from teacher_cache.trust.required import Required
from trainer.data.selection import Selection


def required_of(share: CacheShare, data: DataConfig) -> Required:
    """Digest and signature required of one of the caches to train on."""
    return required_as(share.digest, share.require_signature or data.require_signature)


def required_as(digest: str | None, key: str | None) -> Required:
    """Requirement for a cache of this digest, signed by this key; None: not required."""
    return Required(digest, () if key is None else (key,))


def selection_of(share: CacheShare, data: DataConfig) -> Selection:
    """Selection of the samples of a cache to train on."""
    layers = None if share.layers is None else tuple(share.layers)
    return Selection(layers, share.limit, data.validation_fraction)


def nothing_left(share: CacheShare, data: DataConfig, purpose: str) -> str:
    """Error message for a cache without any selected sample."""
    if data.validation_fraction > 0:
        return (
            f"data.validation_fraction: {data.validation_fraction} of the samples of {share.url} leaves nothing "
            f"{purpose}; choose another share"
        )
    return f"data.cache: {share.url}: it has no sample of the mix layers {share.layers}; choose others"
