"""What a level may answer, as a table automaton for the decode loop, and the way back from ids or text to numbers.

The allowed answers of a level are `answer` with every 0 <= start <= end < count, and `absent`, each followed by the end token. They are
tokenised as whole strings, so any tokenizer will do: numbers may be one token or several digits. Their paths are merged into the smallest
acyclic automaton (equal continuations are one state), which keeps the table small although there are count^2 / 2 answers:

    count = 3, numbers are tokens:   "from 0 to 2 ."  ->  root -from-> . -0-> . -to-> {0,1,2} -.-> . -<eos>-> end
                                                                         -1-> . -to-> {1,2}
                                                                         -2-> . -to-> {2}
                                                     root -not-> . -present-> . -.-> . -<eos>-> end

Columns are the tokens that occur in any answer (not the vocabulary). A window that is not full must not be answered with numbers it does not
have: each transition also knows the smallest last number it can lead to (`least`), and is open only if that is below the row's own count.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int32

from revision_jax.config import ConfigError, PromptConfig
from revision_jax.data.prompts import answer_text
from revision_jax.data.tokenizer import Tokenizer

Parsed = tuple[Literal["span"], int, int] | Literal["absent"] | None  # None: could not be read


@dataclass(frozen=True, eq=False)
class Grammar:
    """Table automaton over A states and C columns. State 0 is the start; column 0 is padding, which only the end state allows."""

    token: Int32[np.ndarray, "C"]  # token id of each column
    next: Int32[np.ndarray, "A C"]  # state after it, -1 where not allowed
    least: Int32[np.ndarray, "A C"]  # smallest last number still possible after it
    decided: Bool[np.ndarray, "A"]  # the span's start is settled in this state
    absent: Bool[np.ndarray, "C"]  # columns that, at step `branch`, lead to the absent answer
    present: Bool[np.ndarray, "C"]  # columns that, at step `branch`, lead to a span
    branch: int  # step at which the two part, usually 0
    end: int  # the end state
    steps: int  # tokens of the longest answer, end token included
    opening: Int32[np.ndarray, "O"]  # columns that every span begins with: they are read with the question
    first: int  # the state behind them: the first choice
    forced: Int32[np.ndarray, "A F"]  # columns that must follow a state, one after another, up to the next choice or the end; 0 behind them
    forced_count: Int32[np.ndarray, "A"]  # how many they are
    choice: Int32[np.ndarray, "A"]  # the state behind them, where there is a choice again (or the end)
    rounds: int  # choices of the span that has most of them

    @property
    def reads(self) -> Int32[np.ndarray, "A"]:
        """Tokens that are read once a state is entered: the chosen one and what it forces; none where only the end is left, which nothing is chosen by."""
        return np.where(self.choice == self.end, 0, 1 + self.forced_count).astype(np.int32)

    @property
    def width(self) -> int:
        """Tokens that one decoder call reads at most."""
        return max(1, int(self.reads.max()))

    @property
    def slots(self) -> int:
        """Cache slots that an answer needs behind its opening: every choice but the last is a call of `width`."""
        return max(self.rounds - 1, 0) * self.width

    @property
    def bytes(self) -> int:
        return self.next.nbytes + self.least.nbytes


def span_grammar(tokenizer: Tokenizer, prompt: PromptConfig, count: int) -> Grammar:
    """The automaton of a level that can name `count` numbers. Raises ConfigError if the answers of a prompt cannot be told apart."""
    return _span_grammar(tokenizer, prompt.answer, prompt.absent, prompt.digits, prompt.end, count)


@functools.lru_cache(maxsize=32)
def _span_grammar(tokenizer: Tokenizer, answer: str, absent: str, digits: int, end: str, count: int) -> Grammar:
    prompt = PromptConfig(answer=answer, absent=absent, digits=digits, end=end)
    spans = [(s, e) for s in range(count) for e in range(s, s + 1 if end == "single" else count)]
    paths = {tuple(tokenizer.encode(answer_text(prompt, span))): span for span in spans}
    if len(paths) != len(spans):
        raise ConfigError(f"prompt.answer: {answer!r} gives the same tokens for different spans; the tokenizer does not know the numbers up to {count - 1}")
    return _compile(tokenizer, paths, tuple(tokenizer.encode(absent)), "prompt.absent")


def presence_grammar(tokenizer: Tokenizer, prompt: PromptConfig) -> Grammar:
    """The automaton of the yes/no question: `present` is yes."""
    return _compile(tokenizer, {tuple(tokenizer.encode(prompt.yes)): (0, 0)}, tuple(tokenizer.encode(prompt.no)), "prompt.no")


def _compile(tokenizer: Tokenizer, paths: dict[tuple[int, ...], tuple[int, int]], absent: tuple[int, ...], where: str) -> Grammar:
    trie: dict = {}
    for path, span in paths.items():
        node = trie
        for token in (*path, tokenizer.eos):
            node = node.setdefault(token, {})
        node[None] = span
    branch, node = 0, trie
    while branch < len(absent) and len(node) == 1 and absent[branch] in node:
        node = node[absent[branch]]
        branch += 1
    if branch == len(absent) or absent[branch] in node:
        raise ConfigError(f"{where}: {tokenizer.decode(absent)!r} begins like the other answer; its first token must differ")
    present_tokens = set(node)
    node = trie
    for token in (*absent, tokenizer.eos):
        node = node.setdefault(token, {})
    node[None] = None

    known: dict[tuple, int] = {}
    rows: list[list[tuple[int, int, int]]] = []
    decided: list[bool] = []

    def intern(node: dict) -> tuple[int, int, frozenset]:
        """(state, smallest last number, starts) of a trie node; equal continuations get the same state."""
        if None in node:
            span = node[None]
            return _END, -1 if span is None else span[1], frozenset() if span is None else frozenset((span[0],))
        children = {token: intern(child) for token, child in node.items()}
        least = min(child[1] for child in children.values())
        starts = frozenset().union(*(child[2] for child in children.values()))
        # Behind a single way on, the condition was already met when this node was entered: leaving it out lets equal endings be one state.
        edges = tuple(sorted((token, state, low if len(children) > 1 else -1) for token, (state, low, _) in children.items()))
        settled = len(starts) <= 1
        key = (edges, settled)
        if key not in known:
            known[key] = len(rows)
            rows.append(list(edges))
            decided.append(settled)
        return known[key], least, starts

    root = intern(trie)[0]
    # The start state becomes 0, the end state the last.
    order = [root, *(state for state in range(len(rows)) if state != root)]
    number = {old: new for new, old in enumerate(order)} | {_END: len(rows)}
    tokens = sorted({token for row in rows for token, _, _ in row})
    column = {token: index + 1 for index, token in enumerate(tokens)}
    table = np.full((len(rows) + 1, len(tokens) + 1), -1, np.int32)
    least = np.full_like(table, -1)
    for old, row in enumerate(rows):
        for token, state, low in row:
            table[number[old], column[token]] = number[state]
            least[number[old], column[token]] = low
    table[len(rows), 0] = len(rows)
    columns = np.asarray([tokenizer.pad, *tokens], np.int32)
    is_absent = np.zeros(len(columns), bool)
    is_absent[column[absent[branch]]] = True
    is_present = np.zeros(len(columns), bool)
    is_present[[column[token] for token in present_tokens]] = True
    steps = max(max(map(len, paths)), len(absent)) + 1
    settled = np.asarray([*(decided[old] for old in order), True])
    spans = table.copy()  # without the way to the absent answer
    start = 0
    for _ in range(branch):
        start = int(spans[start].max())
    spans[start, is_absent] = -1
    return Grammar(columns, table, least, settled, is_absent, is_present, branch, len(rows), steps, *_forced(spans, len(rows)))


def _forced(
    table: Int32[np.ndarray, "A C"], end: int
) -> tuple[Int32[np.ndarray, "O"], int, Int32[np.ndarray, "A F"], Int32[np.ndarray, "A"], Int32[np.ndarray, "A"], int]:
    """Of the states of the spans: their opening and the state behind it; (columns forced behind each state, their number, the state behind them); and the
    rounds of the answer that has most of them.

    A choice is a state with several successors, which may differ in the count that they need. A long chain (the last number's: behind it only itself may
    follow) is cut in two where that costs no round, so that rounds are as narrow as they can be; one that leads to the end is never read, and stays whole.
    """
    only = [np.flatnonzero(row >= 0) for row in table]

    def chain(state: int, most: int) -> tuple[list[int], int]:
        """The columns forced behind a state, at most so many, and the state behind them."""
        found: list[int] = []
        while state != end and len(only[state]) == 1 and len(found) < most:
            found.append(int(only[state][0]))
            state = int(table[state, found[-1]])
        return found, state

    opening, first = chain(0, len(table))

    def chains(width: int) -> tuple[list[list[int]], Int32[np.ndarray, "A"], int]:
        """Chains of which a round reads at most `width` tokens, the chosen one in front of them; the states behind; rounds."""
        found: list[list[int]] = [[] for _ in table]
        behind = np.full(len(table), end, np.int32)  # of states that no choice of a span enters as well

        @functools.cache
        def rounds(state: int) -> int:
            whole, last = chain(state, len(table))
            found[state], behind[state] = (whole, last) if last == end else chain(state, width - 1)
            return 0 if last == end else 1 + max(rounds(int(table[behind[state], column])) for column in only[behind[state]])

        return found, behind, 0 if first == end else 1 + max(rounds(int(table[first, column])) for column in only[first])

    fewest = chains(len(table))[-1]
    found, behind, count = next(made for made in map(chains, range(1, len(table) + 1)) if made[-1] == fewest)
    forced = np.zeros((len(table), max(1, *map(len, found))), np.int32)
    for state, columns in enumerate(found):
        forced[state, : len(columns)] = columns
    return np.asarray(opening, np.int32), first, forced, np.asarray([len(columns) for columns in found], np.int32), behind, count


_END = -2


# ------------------------------------------------------------------------------------------------------------------------------ reading


def parse(prompt: PromptConfig, text: str) -> Parsed:
    """Numbers of an answer in plain text, from constrained or free decoding: "From 12 to 31.", any case, blanks and final period optional.

    Returns ("span", first, last), "absent", or None where the text is neither, or names an end before its start. `last` counts, whatever
    `prompt.end` says: "From 3 to 5." is ("span", 3, 4) where the end is exclusive, and "In video 3" is ("span", 3, 3).
    """
    found = _span_pattern(prompt.answer).search(text)
    if found:
        numbers = found.groupdict()
        start, end = int(numbers["start"]), int(numbers.get("end", numbers["start"])) - (prompt.end == "exclusive")
        return ("span", start, end) if start <= end else None
    return "absent" if _literal(prompt.absent).search(text) else None


def parse_ids(tokenizer: Tokenizer, prompt: PromptConfig, ids) -> Parsed:
    """`parse` of an answer's ids, up to its end token."""
    ids = [int(i) for i in ids]
    if tokenizer.eos in ids:
        ids = ids[: ids.index(tokenizer.eos)]
    return parse(prompt, tokenizer.decode(ids))


@functools.lru_cache(maxsize=32)
def _span_pattern(answer: str) -> re.Pattern:
    parts = re.split(r"(\{start\}|\{end\})", answer.strip().rstrip(". "))
    numbers = {"{start}": r"(?P<start>\d{1,9})", "{end}": r"(?P<end>\d{1,9})"}
    return re.compile(r"\s*".join(numbers.get(part) or _loose(part) for part in parts if part.strip()), re.IGNORECASE)


@functools.lru_cache(maxsize=32)
def _literal(text: str) -> re.Pattern:
    return re.compile(_loose(text.strip().rstrip(". ")), re.IGNORECASE)


def _loose(text: str) -> str:
    return r"\s+".join(re.escape(word) for word in text.split())
