"""Manifest and commit mark: text and model round-trip, and impossible values are rejected."""

import hashlib
import json
import operator
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.errors import UserError
from schemas.load import parse_json
from schemas.manifest import Manifest, ShardIndex
from schemas.strict import FORMAT_VERSION

SHA = hashlib.sha256(b"x").hexdigest()
XXH3 = "0123456789abcdef"
FILE = {"bytes": 10, "sha256": SHA}


def manifest_tree():
    return {
        "format_version": FORMAT_VERSION,
        "teacher": {
            "name": "teacher", "revision": None, "dtype": "bfloat16", "architecture": "LlamaForCausalLM",
            "num_layers": 4, "hidden_size": 64, "vocab_size": 1000, "fingerprint": SHA,
        },
        "tokenizer": {"fingerprint": SHA, "vocab_size": 1000},
        "corpus": {
            "fingerprint": SHA,
            "settings": {"sources": [{"path": "a.txt", "format": "text"}]},
            "counts": {
                "documents": 3, "empty": 0, "duplicates": 1, "too_short": 0, "split": 0, "truncated": 0,
                "dropped_over_long": 0, "samples": 2, "tokens": 20, "loss_tokens": 18,
            },
        },
        "capture": {"logits": {"k": 8, "temperatures": [1.0, 2.5]}},
        "codec": {},
        "provenance": {"owner": "équipe 蒸馏"},
        "tokens_per_shard": 1024,
        "units": [{"name": "shard-000000", "samples": 2, "tokens": 20, "tokens_file": FILE}],
        "complete": True,
        "shards": [
            {
                "name": "shard-000000", "samples": 2, "tokens": 20, "index": FILE,
                "files": {"tokens": FILE, "logits": FILE},
            }
        ],
        "tables": {SHA: FILE},
        "totals": {"samples": 2, "tokens": 20, "bytes": {"tokens": 10, "logits": 10}, "index_bytes": 10},
    }  # fmt: skip


def index_tree(samples=2):
    member = {
        "file": FILE,
        "offsets": [512 * i for i in range(samples)],
        "sizes": [100] * samples,
        "checksums": [XXH3] * samples,
    }
    return {
        "name": "shard-000000",
        "keys": [f"{i:032x}" for i in range(samples)],
        "num_tokens": [10] * samples,
        "table": SHA,
        "signals": {"tokens": member, "logits": member},
    }


def put(tree, path, value):
    """A copy of ``tree`` with ``value`` at ``path``."""
    tree = json.loads(json.dumps(tree))
    *parents, last = path
    node = tree
    for key in parents:
        node = node[key]
    node[last] = value
    return tree


def test_the_text_of_a_manifest_reads_back_as_an_equal_manifest():
    manifest = Manifest.model_validate(manifest_tree())
    text = manifest.to_json()
    assert text.endswith("}\n")
    assert "équipe 蒸馏" in text
    read = parse_json(Manifest, text.encode(), "manifest.json")
    assert read.model_copy(update={"sha256": ""}) == manifest
    assert read.to_json() == text


def test_the_digest_is_the_sha256_of_the_text_around_it_and_names_the_state():
    manifest = Manifest.model_validate(manifest_tree())
    text = manifest.to_json()
    assert json.loads(text)["sha256"] == manifest.digest()
    before, _, after = text.rpartition(manifest.digest())
    assert manifest.digest() == hashlib.sha256((before + after).encode()).hexdigest()
    assert parse_json(Manifest, text.encode(), "manifest.json").digest() == manifest.digest()
    other = Manifest.model_validate(put(manifest_tree(), ["complete"], False))
    assert other.digest() != manifest.digest()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format_version"], 0),
        (["teacher", "vocab_size"], 1),
        (["teacher", "vocab_size"], 2**24),
        (["teacher", "fingerprint"], SHA[:-1]),
        (["teacher", "fingerprint"], SHA.upper()),
        (["tokenizer", "fingerprint"], SHA + "\n"),
        (["corpus", "counts", "tokens"], -1),
        (["corpus", "counts", "tokens"], 2**53),
        (["tokens_per_shard"], 0),
        (["units", 0, "name"], "../shard-000000"),
        (["units", 0, "name"], "shard-00000"),
        (["units", 0, "samples"], 0),
        (["units", 0, "samples"], 2**24 + 1),
        (["shards", 0, "name"], "shard-000000/"),
        (["shards", 0, "files"], {"../x": FILE}),
        (["shards", 0, "files", "tokens", "bytes"], -1),
        (["tables"], {"../x": FILE}),
        (["totals", "bytes"], {"weights": 1}),
        (["capture", "logits", "temperatures"], []),
        (["unknown"], 1),
    ],
)
def test_contradictory_manifests_are_refused(path, value):
    data = json.dumps(put(manifest_tree(), path, value)).encode()
    where = ".".join(str(key) for key in path)
    with pytest.raises(UserError) as caught:
        parse_json(Manifest, data, "manifest.json")
    assert str(caught.value).startswith(f"manifest.json: {where}")


@pytest.mark.parametrize("key", sorted(manifest_tree().keys() - {"format_version"}))
def test_all_fields_of_a_manifest_are_required(key):
    tree = manifest_tree()
    del tree[key]
    with pytest.raises(UserError, match=f"manifest.json: {key}: this key is required and missing"):
        parse_json(Manifest, json.dumps(tree).encode(), "manifest.json")


@given(st.integers(0, 5))
def test_an_index_with_parallel_lists_reads_back_equal(samples):
    index = ShardIndex.model_validate(index_tree(samples))
    assert ShardIndex.model_validate_json(index.model_dump_json()) == index


LISTS = [
    ["num_tokens"],
    *(["signals", signal, field] for signal in ("tokens", "logits") for field in ("offsets", "sizes", "checksums")),
]


@pytest.mark.parametrize("path", LISTS, ids=".".join)
@pytest.mark.parametrize("change", ["short", "long"])
def test_lists_of_unequal_length_are_refused_and_named(path, change):
    tree = index_tree()
    old = reduce(operator.getitem, path, tree)
    tree = put(tree, path, old[:-1] if change == "short" else [*old, old[-1]])
    with pytest.raises(ValidationError, match="one entry per key") as caught:
        ShardIndex.model_validate(tree)
    assert f"'{'.'.join(path)}': {1 if change == 'short' else 3}" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["keys", 1], f"{0:032x}"),  # equal to the first
        (["keys", 1], ""),
        (["keys", 1], "../x"),
        (["keys", 1], "A"),
        (["keys", 1], "a.b"),
        (["keys", 1], "a" * 65),
        (["num_tokens", 0], 0),
        (["num_tokens", 0], 2**24 + 1),
        (["name"], "shard-1"),
        (["table"], "none"),
        (["signals", "tokens", "offsets", 0], -1),
        (["signals", "tokens", "sizes", 0], 2**53),
        (["signals", "tokens", "checksums", 0], XXH3[1:]),
        (["signals", "tokens", "checksums", 0], XXH3.upper()),
        (["signals", "weights"], {"file": FILE, "offsets": [0, 1], "sizes": [1, 1], "checksums": [XXH3, XXH3]}),
        (["format_version"], 0),
    ],
)
def test_contradictory_indexes_are_refused(path, value):
    ShardIndex.model_validate(index_tree())
    with pytest.raises(ValidationError):
        ShardIndex.model_validate(put(index_tree(), path, value))


def test_capture_keys_missing_in_a_manifest_get_no_run_defaults():
    """The defaults of a configuration are no statement about a cache that was written before, or by other programs."""
    tree = manifest_tree()
    found = Manifest.model_validate(tree | {"capture": {}}).capture
    assert (found.logits.k, found.signals) == (64, ["logits"])
    assert Manifest.model_validate(tree).capture.draws is None
