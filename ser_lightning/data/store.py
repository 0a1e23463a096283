"""Encoded pairs on disk: written once, keyed by data, tokenizer, template and length. `reader.py` reads them.

The labels lie in a file of their own, which only `PairStore.read_labels` opens, and so do votes.
"""

import hashlib
import itertools
import json
import os
import shutil
import socket
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ser_lightning.data.columns import absent_columns, columns_left, with_paths
from ser_lightning.data.encode import ENCODING_VERSION, EncodedPair, encode_pairs
from ser_lightning.data.formats import earlier_prompts, parse_rows, prompt_hash
from ser_lightning.data.labels import Labels, count_votes, majority, shown_names
from ser_lightning.data.packing import num_shared_tokens
from ser_lightning.data.sources import Source
from ser_lightning.errors import Causes, UserError, raise_problems
from ser_lightning.records import PreferencePair
from ser_lightning.utils.atomic import flush_to_disk, is_running
from ser_lightning.utils.checksums import CHECKSUMS, checksums_fit, record_checksums

ROLES = ("path", "pool_path", "test_path")
"""Where a row came from; a role is stored as its position here."""
UNLABELLED, CONTRADICTION = -1, -2
"""Codes for an unlabelled pair, and for one whose rows disagree; other labels are the probability that a wins."""
_STORE_VERSION = 8
INDEX = ("pair_id", "dialogue_id", "prompt_id", "continuations", "offsets", "num_shared", "response_start", "role")
"""Arrays of `index.npz`."""
TEXTS = pyarrow.schema([(name, pyarrow.string()) for name in ("prompt", "response_a", "response_b", "source_id")])
Counts = dict[str, Counter[str]]


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Changes when the tokenizer or its chat template would give other ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: Any = json.loads(backend.to_str()) if backend is not None else sorted(tokenizer.get_vocab().items())
    if isinstance(state, dict):  # left behind by the last call; encoding uses neither
        state |= {"truncation": None, "padding": None}
    parts = [type(tokenizer).__name__, state, str(tokenizer.special_tokens_map), tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def store_key(
    sources: Mapping[str, Sequence[Source]],
    columns: Mapping[str, str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    labels: Labels | None = None,
) -> str:
    """Name of the store of these sources under this encoding."""
    content = {role: [source.fingerprint for source in sources[role]] for role in ROLES}
    reading = [dict(columns), labels and dict(labels)]
    parts = [content, reading, tokenizer_hash(tokenizer), max_length, ENCODING_VERSION, _STORE_VERSION]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def default_cache() -> Path:
    """The default folder of encoded pairs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ser-lightning"


def is_complete(folder: Path) -> bool:
    """Whether the store is there with all files intact; reads them all."""
    return checksums_fit(folder / CHECKSUMS)


def build_store(
    folder: Path,
    sources: Mapping[str, Sequence[Source]],
    columns: Mapping[str, str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    labels: Labels | None = None,
    needs_columns: bool = False,
) -> None:
    """Read, canonicalise and encode every row, and write the store to `folder`.

    Args:
        folder: appears whole or not at all; a damaged one is replaced.
        sources: the sources of each of `ROLES`.
        needs_columns: whether some row has to have each of `columns`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    draft = folder.with_name(f"{folder.name}.{socket.gethostname()}.{os.getpid()}.draft")
    draft.mkdir()
    try:
        writer, present = _StoreWriter(draft, tokenizer, max_length), dict[str, None]()
        for role in ROLES:
            if sources[role]:
                writer.add_role(role, _parsed(sources[role], columns, labels, writer.counts[role], present))
        raise_problems(absent_columns(columns, present) if needs_columns else [])
        if left := columns_left(present, columns):
            rank_zero_info(f"Columns not read: {shown_names(left)}")
        writer.close()
        if folder.is_dir() and not is_complete(folder):
            rank_zero_warn(f"cache: {folder} is damaged; its pairs are encoded again")
            os.rename(folder, draft / "damaged")
        try:
            os.rename(draft, folder)
        except OSError:  # another process was faster, with the same content
            if not is_complete(folder):
                raise
        shutil.rmtree(folder / "damaged", ignore_errors=True)
        flush_to_disk(folder.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _sweep(cache: Path) -> None:
    """Delete the drafts that killed processes of this machine have left."""
    for draft in cache.glob(f"*.{socket.gethostname()}.*.draft"):
        process = draft.suffixes[-2].removeprefix(".")
        # A container gives the number of one that was killed again, to this process.
        if process.isdigit() and (int(process) == os.getpid() or not is_running(int(process))):
            shutil.rmtree(draft, ignore_errors=True)


def _parsed(
    sources: Sequence[Source],
    columns: Mapping[str, str],
    labels: Labels | None,
    counts: Counter[str],
    present: dict[str, None],
) -> Iterator[PreferencePair]:
    """The usable pairs of one role, whose columns join those present; problems of several rows come as one error."""
    causes = Causes()
    rows = itertools.chain.from_iterable(source.rows() for source in sources)
    for where, raw in tqdm(rows, desc="Encoding pairs", unit=" pairs", disable=None):
        row = with_paths(raw, columns)
        present.update(dict.fromkeys(row))
        try:
            pairs = list(parse_rows(row, columns, where, labels))
        except UserError as error:
            counts["rows"] += 1
            causes.add(error.problems)
            if causes.is_full:
                break
            continue
        counts["rows"] += len(pairs)  # of a list every pair counts as a row
        counts.update(pair for pair in pairs if not isinstance(pair, PreferencePair))
        yield from (pair for pair in pairs if isinstance(pair, PreferencePair))
    if lines := causes.lines():
        raise UserError(absent_columns(columns, present) or lines)


class _StoreWriter:
    """Writes encoded pairs one chunk at a time, so that memory holds numbers only."""

    chunk_size = 256

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.folder, self.tokenizer, self.max_length = folder, tokenizer, max_length
        self.counts: Counts = {role: Counter() for role in ROLES}
        self.pair_id, self.prompt_id, self.offsets = array("q"), array("q"), array("q", [0])
        self.num_shared, self.response_start = array("q"), array("i")
        self.role, self.labels = array("b"), array("f")
        self.votes: dict[int, list[int]] = {}
        self._known_votes: set[int] = set()
        self.continuations: set[tuple[int, int]] = set()
        self.ids = (folder / "ids.bin").open("wb")
        self.texts = pyarrow.ipc.new_stream(str(folder / "texts.arrow"), TEXTS)

    def add_role(self, role: str, pairs: Iterator[PreferencePair]) -> None:
        """Encode and write the pairs of one role; a pair that is there already only adds its label."""
        position: dict[int, int | None] = {}
        while chunk := list(itertools.islice(pairs, self.chunk_size)):
            fresh: dict[int, PreferencePair] = {}
            for pair in chunk:
                if pair.pair_id not in position and pair.pair_id not in fresh:
                    fresh[pair.pair_id] = pair
            written = dict(zip(fresh, self._write(role, list(fresh.values())), strict=True))
            position |= written
            for pair in chunk:
                row, is_first = position[pair.pair_id], fresh.pop(pair.pair_id, None) is not None
                says_more = row is not None and self._add_label(row, pair)
                if not is_first:
                    self.counts[role]["vote" if says_more and pair.votes else "duplicate"] += 1

    def _add_label(self, row: int, pair: PreferencePair) -> bool:
        """Count what a row of a file says of a pair; False for a vote that its annotator has given already."""
        if not pair.votes:
            self.labels[row] = _merge_labels(self.labels[row], pair.label)
            return True
        vote = hash((row, pair.annotator, pair.label))
        if pair.annotator is not None and vote in self._known_votes:
            return False
        self._known_votes |= set() if pair.annotator is None else {vote}
        old = self.votes.get(row, (0, 0, 0))
        self.votes[row] = [n + more for n, more in zip(old, count_votes(pair.votes), strict=True)]
        return True

    def _write(self, role: str, pairs: list[PreferencePair]) -> list[int | None]:
        """Write what fits; the rows of the pairs, None for a pair that is dropped."""
        if not pairs:
            return []
        rows: list[int | None] = []
        kept: list[PreferencePair] = []
        for pair, encoded in zip(pairs, encode_pairs(self.tokenizer, pairs, self.max_length), strict=True):
            if encoded is None or encoded.ids_a == encoded.ids_b:
                self.counts[role]["too_long" if encoded is None else "identical"] += 1
                rows.append(None)
                continue
            self.counts[role]["cut"] += encoded.is_cut
            rows.append(len(self.pair_id))
            self._append(role, pair, encoded)
            kept.append(pair)
        columns = [
            [json.dumps(pair.prompt) for pair in kept],
            *([getattr(pair, name) for pair in kept] for name in ("response_a", "response_b", "source_id")),
        ]
        arrays = [pyarrow.array(column, pyarrow.string()) for column in columns]
        self.texts.write_batch(pyarrow.RecordBatch.from_arrays(arrays, schema=TEXTS))
        return rows

    def _append(self, role: str, pair: PreferencePair, encoded: EncodedPair) -> None:
        both = [np.asarray(ids, dtype=np.int32) for ids in (encoded.ids_a, encoded.ids_b)]
        for ids in both:
            self.ids.write(ids.tobytes())
            self.offsets.append(self.offsets[-1] + len(ids))
        self.num_shared.append(num_shared_tokens(both))
        self.response_start.append(encoded.start)
        self.pair_id.append(pair.pair_id)
        prompt_id = prompt_hash(pair.prompt)
        self.prompt_id.append(prompt_id)
        self.continuations.update((earlier, prompt_id) for earlier in earlier_prompts(pair.prompt))
        self.role.append(ROLES.index(role))
        self.labels.append(UNLABELLED)

    def close(self) -> None:
        """Write the index, the labels (those of pairs with votes are their majority) and the counts."""
        self.ids.close()
        self.texts.close()
        dialogue_id = join_dialogues(self.prompt_id, self.continuations)
        continuations = np.asarray(sorted(self.continuations), dtype=np.int64).reshape(-1, 2)
        ids = self.pair_id, dialogue_id, self.prompt_id, continuations
        values = *ids, self.offsets, self.num_shared, self.response_start, self.role
        np.savez(self.folder / "index.npz", **dict(zip(INDEX, map(np.asarray, values), strict=True)))  # type: ignore
        for row, votes in self.votes.items():
            self.labels[row] = _merge_labels(self.labels[row], majority(*votes))
        if self.votes:
            votes_of = np.zeros((len(self.labels), 3), dtype=np.int32)
            votes_of[list(self.votes)] = list(self.votes.values())
            np.save(self.folder / "votes.npy", votes_of)
        np.save(self.folder / "labels.npy", np.asarray(self.labels, dtype=np.float32))
        (self.folder / "counts.json").write_text(json.dumps(self.counts))
        record_checksums(self.folder / CHECKSUMS, sorted(self.folder.iterdir()))


def join_dialogues(prompt_id: Sequence[int], continuations: Iterable[tuple[int, int]]) -> list[int]:
    """Give prompts that continue one another one id: the later prompt may hold an answer to the earlier one.

    Args:
        prompt_id: N ids.
        continuations: (earlier, later) prompts; an earlier one that is none of the N counts for nothing.

    Returns:
        N ids, the smallest prompt of each dialogue, whatever the order of the pairs.
    """
    parent = {prompt: prompt for prompt in prompt_id}

    def find(prompt: int) -> int:
        while parent[prompt] != prompt:
            parent[prompt] = prompt = parent[parent[prompt]]
        return prompt

    for earlier, later in continuations:
        if earlier in parent:
            low, high = sorted((find(earlier), find(later)))
            parent[high] = low
    return [find(prompt) for prompt in prompt_id]


def _merge_labels(old: float, new: float | None) -> float:
    if new is None or old == new:
        return old
    return new if old == UNLABELLED else CONTRADICTION
