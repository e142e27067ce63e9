"""The cache format as code: a reader that needs numpy, pyarrow, webdataset and zstandard, and nothing of this project.

It shows what another team needs in order to read our files. It is written to be read and checks nothing: use it on
caches that `cache-tools verify` finds no problem in. S is the number of tokens of a sequence, P the number of its rows
that a signal stores, K the entries of a row.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import webdataset as wds
import zstandard

Tree = dict[str, Any]
Arrays = dict[str, np.ndarray]
ENTRY_GROUPS, BYTE_GROUPS = (8, 24), (2, 6)  # places in a row at which another section goes on


def read_samples(folder: Path) -> dict[str, Tree]:
    """Every sample of a complete cache by its key: for each signal the cache stores, what it holds of the sample."""
    manifest = json.loads((folder / "manifest.json").read_text())
    samples: dict[str, Tree] = {}
    for shard in committed_shards(folder, manifest):
        index = json.loads((folder / f"{shard['name']}.json").read_text())
        plain = zstandard.decompress((folder / "tables" / f"{index['table']}.zst").read_bytes())
        table = np.frombuffer(plain, "<u4")
        for key, row in zip(index["keys"], rows(folder, shard["name"], "tokens"), strict=True):
            samples[key] = {"tokens": read_tokens(row)}
        for signal in index["signals"].keys() - {"tokens"}:
            for key, row in zip(index["keys"], rows(folder, shard["name"], signal), strict=True):
                num_tokens = len(samples[key]["tokens"]["input_ids"])
                samples[key][signal] = read_signal(signal, row["frame"], manifest, table, num_tokens)
    return samples


def read_vocabulary(folder: Path) -> list[tuple[bytes, bool, bool]]:
    """Bytes of each of the teacher's tokens, whether it is special, and whether it ends a text or a turn."""
    row = pa.ipc.open_stream((folder / "vocabulary.arrow").read_bytes()).read_all().to_pylist()[0]
    lengths, kinds, data = read_sections(row["frame"], 3)
    ends = np.cumsum(unsigned(lengths, 2))
    tokens = [data[start:end].tobytes() for start, end in zip([0, *ends], ends, strict=False)]
    return [(token, bool(kind & 1), bool(kind & 2)) for token, kind in zip(tokens, kinds, strict=True)]


def committed_shards(folder: Path, manifest: Tree) -> list[Tree]:
    """Names of the committed shards, from the manifest or its shard table."""
    if manifest.get("shard_table") is None:
        return manifest["shards"]
    data = (folder / "tables" / f"{manifest['shard_table']['sha256']}.arrow").read_bytes()
    rows = pa.ipc.open_stream(data).read_all().to_pylist()
    return [{"name": f"shard-{row['number']:06d}"} for row in rows if row["index_bytes"]]


def rows(folder: Path, shard: str, signal: str) -> list[Tree]:
    """The samples of one tar: the columns of the Arrow rows that its members hold, one each or, in bundles, several."""
    dataset = wds.WebDataset(str(folder / f"{shard}.{signal}.tar"), shardshuffle=False, empty_check=False)
    return [row for member in dataset for row in pa.ipc.open_stream(member[f"{signal}.arrow"]).read_all().to_pylist()]


def split_record(record: bytes) -> Tree:
    """What a row of a ``tokens`` bundle holds, as the columns that a row of its own has."""
    size = int.from_bytes(record[:4], "little")
    frame, text_frame = record[4 : 4 + size], record[4 + size :]
    strings = [section.tobytes().decode() for section in read_sections(text_frame, 6)[3:]]
    return {"frame": frame, "text_frame": text_frame, **dict(zip(("key", "source_id", "layer"), strings, strict=True))}


# What all signals are made of


def frames(data: bytes) -> tuple[bytes, bytes]:
    """The content of one zstd frame, and that of another after it, which there is in texts of chats."""
    first = zstandard.ZstdDecompressor().decompressobj()
    content = first.decompress(data)
    return content, zstandard.decompress(first.unused_data) if first.unused_data else b""


def read_sections(frame: bytes, n: int) -> list[np.ndarray]:
    """The n sections of a frame, as bytes. Their sizes stand first, four bytes each."""
    content = np.frombuffer(frames(frame)[0], np.uint8)
    sizes = content[: 4 * n].view("<u4").astype(np.int64)
    return np.split(content[4 * n :], np.cumsum(sizes)[:-1])


def unsigned(section: np.ndarray, width: int) -> np.ndarray:
    """Integers of ``width`` bytes: first the lowest bytes of all, then their second bytes, and so on."""
    planes = section.reshape(width, -1).astype(np.int64)
    return (planes << 8 * np.arange(width)[:, None]).sum(axis=0)


def signed(section: np.ndarray, width: int) -> np.ndarray:
    """The same in two's complement."""
    values, half = unsigned(section, width), 1 << 8 * width - 1
    return (values ^ half) - half


def read_positions(section: np.ndarray) -> np.ndarray:
    """The rows of the sequence that are stored: one bit a row, the first in the lowest bit of the first byte."""
    return np.flatnonzero(np.unpackbits(section, bitorder="little"))


def read_matrix(sections: list[np.ndarray], lengths_P: np.ndarray, width: int, groups: tuple[int, int]) -> np.ndarray:
    """A matrix [P, width] of which only the first ``lengths_P`` places of each row are stored; the others are 0.

    The first section has the places before ``groups[0]``, row by row; the second those before ``groups[1]``, the third
    the rest.
    """
    matrix, places = np.zeros((len(lengths_P), width), np.int64), np.arange(width)
    stored = places < lengths_P[:, None]
    for section, (first, stop) in zip(sections, itertools.pairwise([0, *groups, width]), strict=True):
        matrix[stored & (first <= places) & (places < stop)] = section
    return matrix


def read_ids(sections: list[np.ndarray], counts_P: np.ndarray, k: int, table: np.ndarray) -> np.ndarray:
    """Token ids [P, K] from six sections: distances, three of symbols, low bytes, new ids. 0 beyond a row's count.

    At place k of a row, a symbol s below 128 stands for the id at place k + s - 64 of an earlier row, that which is
    ``distance`` rows back. One of 128 to 254 stands for an id of the list of new ids, at place 256 · (s - 128) + the
    next low byte. 255 stands for the next new id. ``table`` has the ids in the order of their codes, which is how new
    ids are stored.
    """
    distances_P = unsigned(sections[0], 2)
    symbols_PK = read_matrix(sections[1:4], counts_P, k, ENTRY_GROUPS)
    lows = sections[4].astype(np.int64)
    new = table[unsigned(sections[5], 2 if len(table) <= 1 << 16 else 3)]
    ids_PK = np.zeros(symbols_PK.shape, np.int64)
    n_lows = n_new = 0  # that earlier rows have used
    for p, count in enumerate(counts_P):
        symbols, row = symbols_PK[p, :count], ids_PK[p, :count]
        nearby, listed = symbols < 128, (symbols >= 128) & (symbols < 255)
        row[nearby] = ids_PK[p - distances_P[p], (np.arange(count) + symbols - 64)[nearby]]
        row[listed] = new[256 * (symbols[listed] - 128) + lows[n_lows : n_lows + listed.sum()]]
        row[symbols == 255] = new[n_new : n_new + (symbols == 255).sum()]
        n_lows, n_new = n_lows + listed.sum(), n_new + (symbols == 255).sum()
    return ids_PK


def read_logprobs(sections: list[np.ndarray], counts_P: np.ndarray, k: int, codec: Tree) -> np.ndarray:
    """Falling log-probabilities [P, K] from four sections: three of differences, excesses. -inf beyond a row's count.

    A row's first difference is from 0. Four stand in a byte, two bits each, the first lowest; a row starts a new byte.
    3 means 3 or more: how much more is the next excess, of one byte, or of two where one of them needs it. Their sums
    are numbers of steps, which are shorter near 0. Where they are kept as floats, all are in the first section, row by
    row.
    """
    stored = np.arange(k) < counts_P[:, None]
    logprobs_PK = np.full(stored.shape, -np.inf)
    if codec["logprobs"] != "steps":
        logprobs_PK[stored] = FLOATS[codec["logprobs"]](sections[0])
        return logprobs_PK
    packed_PB = read_matrix(sections[:3], -(-counts_P // 4), -(-k // 4), BYTE_GROUPS)
    steps_PK = (packed_PB.repeat(4, axis=1)[:, :k] >> 2 * (np.arange(k) % 4)) & 3
    large = steps_PK == 3
    width = 1 if len(sections[3]) == large.sum() else 2
    steps_PK[large] += unsigned(sections[3], width)
    nats_PK = np.cumsum(steps_PK, axis=1) / codec["logprob_steps_per_nat"]
    logprobs_PK[stored] = -np.maximum(np.maximum(nats_PK / 16, nats_PK / 4 - 3 / 4), nats_PK - 6)[stored]
    return logprobs_PK


def bfloat16(section: np.ndarray) -> np.ndarray:
    """bfloat16 numbers: the upper halves of float32 numbers."""
    return (unsigned(section, 2) << 16).astype(np.uint32).view(np.float32)


def float16(section: np.ndarray) -> np.ndarray:
    """float16 numbers."""
    return unsigned(section, 2).astype(np.uint16).view(np.float16)


def float32(section: np.ndarray) -> np.ndarray:
    """float32 numbers."""
    return unsigned(section, 4).astype(np.uint32).view(np.float32)


def int8(section: np.ndarray) -> np.ndarray:
    """Integers of one byte."""
    return signed(section, 1)


def int4(section: np.ndarray) -> np.ndarray:
    """Two integers in each byte, the first in its lower half."""
    halves = np.stack([section & 15, section >> 4], axis=-1).reshape(-1).astype(np.int64)
    return (halves ^ 8) - 8


def float8_e4m3(section: np.ndarray) -> np.ndarray:
    """Floating-point numbers of a sign, four bits of exponent and three of mantissa."""
    exponent, mantissa = section >> 3 & 15, section & 7
    size = np.where(exponent > 0, np.ldexp(1 + mantissa / 8, exponent.astype(np.int32) - 7), np.ldexp(mantissa / 8, -6))
    return np.where(section >> 7, -size, size)


SMALL = {"int8": int8, "int4": int4, "float8_e4m3": float8_e4m3}
FLOATS = {"bfloat16": bfloat16, "float16": float16, "float32": float32}


# The signals


def read_signal(signal: str, frame: bytes, manifest: Tree, table: np.ndarray, num_tokens: int) -> Arrays:
    """What a captured signal holds of a sequence of ``num_tokens`` tokens."""
    capture, codec, channels = manifest["capture"][signal], manifest["codec"], manifest["teacher"]["hidden_size"]
    if signal == "logits":
        return read_logits(frame, capture, codec, table, num_tokens)
    if signal == "draws":
        return read_draws(frame, capture, codec, table)
    if signal == "attention":
        return read_attention(frame, capture)
    return read_hidden(frame, capture, len(capture["layers"]) if signal == "hidden" else 1, channels)


def read_tokens(row: Tree) -> Tree:
    """Key, source, layer of the data mix, text, ids, which rows count, and the bytes of the text each token spans."""
    n_text_sections = 3
    if "key" not in row:  # a record of a bundle
        row, n_text_sections = split_record(row["frame"]), 6
    ids, mask = read_sections(row["frame"], 2)
    gaps, lengths, text = read_sections(row["text_frame"], n_text_sections)[:3]
    input_ids = unsigned(ids, 3)
    lengths = unsigned(lengths, 4)
    byte_end = np.cumsum(signed(gaps, 4) + lengths)  # a gap is from the end of the token before
    return {
        "key": row["key"],
        "source_id": row["source_id"],
        "layer": row["layer"],
        "text": text.tobytes().decode(),
        "input_ids": input_ids,
        "loss_mask": np.isin(np.arange(len(input_ids)), read_positions(mask)),
        "byte_start": byte_end - lengths,
        "byte_end": byte_end,
        "chat": frames(row["text_frame"])[1],
    }


def read_logits(frame: bytes, capture: Tree, codec: Tree, table: np.ndarray, num_tokens: int) -> Arrays:
    """Each row's entries by falling probability; of the token that follows, the log-probability; the log-partitions."""
    k, temperatures = capture["k"], capture["temperatures"]
    sections = read_sections(frame, 13)
    positions = read_positions(sections[0])
    counts = unsigned(sections[1], 2) if len(sections[1]) else np.full(len(positions), k)
    scalars = signed(sections[12], 3).reshape(len(temperatures), -1) / codec["scalar_steps_per_nat"]
    return {
        "positions": positions,
        "counts": counts,
        "ids": read_ids(sections[2:8], counts, k, table),
        "logprobs": read_logprobs(sections[8:12], counts, k, codec),
        "next_logprob": np.where(positions < num_tokens - 1, -scalars[0], np.nan),  # nothing follows the last token
        "log_partition": np.insert(scalars[1:], temperatures.index(1.0), 0, axis=0).T,  # at temperature 1 it is 0
    }


def read_draws(frame: bytes, capture: Tree, codec: Tree, table: np.ndarray) -> Arrays:
    """M draws [P, T, M] at each of T temperatures, and entropies [P, T] of the whole softened distributions.

    Stored are the distinct ids of T · P rows, those of the first temperature first, and how often each was drawn.
    """
    m, n_temperatures = capture["n"], len(capture["temperatures"])
    sections = read_sections(frame, 9)
    positions = read_positions(sections[0])
    times_R = read_times(unsigned(sections[1], 2), n_temperatures * len(positions), m)
    ids_RM = read_ids(sections[2:8], np.array([len(times) for times in times_R], np.int64), m, table)
    drawn = [ids[: len(times)].repeat(times) for ids, times in zip(ids_RM, times_R, strict=True)]
    return {
        "positions": positions,
        "ids": np.array(drawn, np.int64).reshape(n_temperatures, len(positions), m).swapaxes(0, 1),
        "entropy": unsigned(sections[8], 3).reshape(n_temperatures, -1).T / codec["scalar_steps_per_nat"],
    }


def read_times(repeats: np.ndarray, n_rows: int, m: int) -> list[list[int]]:
    """How often each distinct token of each row was drawn, m times in all; a repeat of 0: once, as are all that follow.

    Nothing is stored of those that follow.
    """
    stored = iter(repeats.tolist())
    rows: list[list[int]] = []
    for _ in range(n_rows):
        times: list[int] = []
        while (left := m - sum(times)) > 0:
            repeat = next(stored)
            times += [1 + repeat] if repeat else [1] * left
        rows.append(times)
    return rows


def read_hidden(frame: bytes, capture: Tree, n_layers: int, channels: int) -> Arrays:
    """Hidden states [P, C, D] of D channels after C layers."""
    sections = read_sections(frame, 5)
    positions = read_positions(sections[0])
    shape = (len(positions), n_layers)
    if capture["dtype"] in ("bfloat16", "float16"):
        states = FLOATS[capture["dtype"]](sections[1]).reshape(*shape, channels)
    else:  # each value times the scale of its group of channels, but for the largest ones, which are stored apart
        n_scales = -(-channels // capture["channels_per_scale"])
        n_outliers = -(-channels // capture["channels_per_outlier"])
        scales = bfloat16(sections[2]).reshape(*shape, n_scales).repeat(capture["channels_per_scale"], axis=2)
        states = SMALL[capture["dtype"]](sections[1]).reshape(*shape, channels) * scales[:, :, :channels]
        places = unsigned(sections[3], 2).reshape(*shape, n_outliers)
        np.put_along_axis(states, places, bfloat16(sections[4]).reshape(places.shape), axis=2)
    return {"positions": positions, "states": states}


def read_attention(frame: bytes, capture: Tree) -> Arrays:
    """The largest weights [P, H, M] of each query row, of H heads, and the tokens they fall on."""
    sections = read_sections(frame, 4)
    positions, heads = read_positions(sections[0]), unsigned(sections[1], 2)
    shape = (len(positions), len(heads), capture["keys"])
    return {
        "positions": positions,
        "heads": heads,
        "weights": unsigned(sections[2], 2).reshape(shape) / 65535,
        "keys": unsigned(sections[3], 3).reshape(shape),
    }
