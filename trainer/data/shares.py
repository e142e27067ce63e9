"""What the configuration says of each of the caches to train on."""

from schemas.train_config import CacheShare, DataConfig
from teacher_cache.trust.required import Required
from trainer.data.selection import Selection


def required_of(share: CacheShare, data: DataConfig) -> Required:
    """The digest and the signature that one of the caches to train on must have."""
    return required_as(share.digest, share.require_signature or data.require_signature)


def required_as(digest: str | None, key: str | None) -> Required:
    """What a cache must be, where a configuration names a digest, or the key that signed it."""
    return Required(digest, () if key is None else (key,))


def selection_of(share: CacheShare, data: DataConfig) -> Selection:
    """The samples of a cache that are trained on."""
    layers = None if share.layers is None else tuple(share.layers)
    return Selection(layers, share.limit, data.validation_fraction)


def nothing_left(share: CacheShare, data: DataConfig, purpose: str) -> str:
    """The error where a cache has no sample of those that are asked for."""
    if data.validation_fraction > 0:
        return (
            f"data.validation_fraction: {data.validation_fraction} of the samples of {share.url} leaves nothing "
            f"{purpose}; choose another share"
        )
    return f"data.cache: {share.url}: it has no sample of the layers {share.layers}; choose others"
