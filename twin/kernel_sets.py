"""The fast engine's order of a step's adapters: what CPython's set does, and in which order vLLM fills it (compiled).

Objects/setobject.c of CPython: a set starts with 8 entries. A member goes to the first free entry of those probed:
`hash & mask` and, if they are all within the table, the LINEAR_PROBES that follow it, then the next start, computed
from the perturbed hash. As soon as 3/5 of the table is taken, a table of the power of two above four times the members
(twice from 50,000 on) takes its place, into which the members go in the order of the old one. Iterating follows the
table.
"""

from __future__ import annotations

from twin.kernel_compile import compiled
from twin.kernel_state import (
    ACTIVE,
    FIRST_OTHER,
    HASH,
    MEMBERS,
    NEXT,
    NUM_DISTINCT,
    NUM_ORDERED,
    NUM_TABLE_ROWS,
    ORDER,
    REQUEST_ADAPTER,
    RUNNING_HEAD,
    SMALLEST_TABLE,
    STEADY_OF,
    STEP_SHARE,
    TABLES,
    VISITED,
    Array,
    Settings,
    grown_table,
    must_grow,
)

LINEAR_PROBES = 9
PERTURB_SHIFT = 5
# Clears the bits that an arithmetic shift of a hash copies from its sign.
PERTURB_MASK = (1 << (64 - PERTURB_SHIFT)) - 1


_must_grow = compiled(must_grow)
_grown_table = compiled(grown_table)


@compiled
def _insert(table: Array, mask: int, value: int, member: int) -> None:
    """Put `member`, whose hash is `value`, into its entry of `table`."""
    start = value & mask
    if table[start] < 0:
        table[start] = member
        return
    while True:
        last = start + LINEAR_PROBES if start + LINEAR_PROBES <= mask else start
        for entry in range(start, last + 1):
            if table[entry] < 0:
                table[entry] = member
                return
        value = (value >> PERTURB_SHIFT) & PERTURB_MASK
        start = (start * 5 + 1 + value) & mask


@compiled
def sort_like_a_set(hashes: Array, scratch: Array, num_members: int) -> None:
    """Bring the first `num_members` of the row MEMBERS of `scratch` into the order of a set filled in their order."""
    members = scratch[MEMBERS]
    mask = SMALLEST_TABLE - 1
    row = TABLES
    scratch[row, : mask + 1] = -1
    for i in range(num_members):
        _insert(scratch[row], mask, hashes[members[i]], members[i])
        if _must_grow(i + 1, mask):
            old, old_size = row, mask + 1
            row = TABLES + (row - TABLES + 1) % NUM_TABLE_ROWS
            mask = _grown_table(i + 1) - 1
            scratch[row, : mask + 1] = -1
            for entry in range(old_size):
                if scratch[old, entry] >= 0:
                    _insert(scratch[row], mask, hashes[scratch[old, entry]], scratch[old, entry])
    found = 0
    entry = 0
    while found < num_members:
        # Always written and maybe overwritten: a branch would mostly be mispredicted.
        members[found] = scratch[row, entry]
        found += 1 if scratch[row, entry] >= 0 else 0
        entry += 1


@compiled
def _note(adapters: Array, members: Array, found: int, a: int, step: int) -> int:
    """Append `a` to the members unless it is the base model or among them; return how many there are."""
    if a < adapters.shape[1] - 1 and adapters[VISITED, a] != step:
        adapters[VISITED, a] = step
        members[found] = a
        return found + 1
    return found


@compiled
def _in_batch_order(requests: Array, adapters: Array, members: Array, c: Array, step: int) -> None:
    """List the adapters in order of first appearance in the running list."""
    found = 0
    r = c[RUNNING_HEAD]
    while found < c[NUM_DISTINCT]:
        if requests[r, STEP_SHARE] > 0:
            found = _note(adapters, members, found, requests[r, REQUEST_ADAPTER], step)
        r = requests[r, NEXT]


@compiled
def _next_number(requests: Array, c: Array, tokens: int) -> int:
    """Return the next larger number of tokens that a request has that is not steady."""
    following = 0
    r = c[FIRST_OTHER]
    while r >= 0:
        if requests[r, STEP_SHARE] > tokens and (following == 0 or requests[r, STEP_SHARE] < following):
            following = requests[r, STEP_SHARE]
        r = requests[r, NEXT]
    return following


@compiled
def _in_v2_order(requests: Array, adapters: Array, members: Array, c: Array, step: int) -> None:
    """List the adapters in order of first appearance in the batch of model runner V2.

    Requests with one token come first, then those with more, fewer tokens first, each group in order of the running
    list. The steady ones, which have one token, are at its head.
    """
    for i in range(c[NUM_ORDERED]):
        members[i] = adapters[ORDER, i]
    found = int(c[NUM_ORDERED])
    tokens = 0
    while found < c[NUM_DISTINCT]:
        tokens = _next_number(requests, c, tokens)
        r = c[FIRST_OTHER]
        while r >= 0:
            a = requests[r, REQUEST_ADAPTER]
            if requests[r, STEP_SHARE] == tokens and adapters[STEADY_OF, a] == 0:
                found = _note(adapters, members, found, a, step)
            r = requests[r, NEXT]


@compiled
def list_in_load_order(s: Settings, requests: Array, adapters: Array, scratch: Array, c: Array, step: int) -> None:
    """Write the step's NUM_DISTINCT adapters into the row MEMBERS of `scratch` in the order of their visits."""
    members = scratch[MEMBERS]
    if not s.load_in_set_order:
        _in_batch_order(requests, adapters, members, c, step)
        return
    if s.keeps_steady_order:
        _in_v2_order(requests, adapters, members, c, step)
    else:
        for i in range(c[NUM_DISTINCT]):
            members[i] = adapters[ACTIVE, i]
    sort_like_a_set(adapters[HASH], scratch, c[NUM_DISTINCT])
