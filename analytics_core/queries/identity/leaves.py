"""Which links are plain: an id that was nobody's, one user, nothing else said of the id. Nothing speaks against them,
so they need no judging, and nearly all links stay columns."""

from __future__ import annotations

import numpy as np

from analytics_core.lake.user_order import U64, Mask
from analytics_core.queries.identity.links import UNMERGE, Links, Users, distinct, find


def divided(leaves: Links, links: Links, seen: U64, known: Users) -> tuple[Links, Links]:
    """The plain links when ``links`` have followed, one for each id in order of ``former``; and those to be judged.

    ``leaves``: the plain ones so far. ``seen``: all keys that earlier links name. ``known`` holds at least the users
    of the events before each link. A plain link that later ones say more about is judged with them.
    """
    undone = np.isin(leaves.seq, links.undoes[links.kind == UNMERGE])
    judged = leaves.take(undone)
    leaves = leaves.take(~undone)
    links = links.take(~_repeated(leaves, links))
    plain, first = _plain(links, seen, known)
    others, added = links.take(~plain), links.take(first)
    at, held = find(leaves.former, np.concatenate([others.former, others.into, added.into]))
    touched = np.zeros(len(leaves.seq), np.bool_)
    touched[at[held]] = True
    judged = judged.followed_by(leaves.take(touched), others)
    leaves = leaves.take(~touched).followed_by(added)
    return leaves.take(np.argsort(leaves.former, kind="stable")), judged


def _repeated(leaves: Links, links: Links) -> Mask:
    """What a plain link has said before."""
    at, held = find(leaves.former, links.former)
    again = np.flatnonzero(held & (links.kind != UNMERGE))
    repeated = np.zeros(len(held), np.bool_)
    repeated[again] = leaves.into[at[again]] == links.into[again]
    return repeated


def _plain(links: Links, seen: U64, known: Users) -> tuple[Mask, Mask]:
    """Which links are plain, and which of them is the first of its id; shape ``(n,)`` each."""
    plain, firsts = np.zeros((2, len(links.seq)), np.bool_)
    if not len(plain):
        return plain, firsts
    order = np.argsort(links.former, kind="stable")
    former, into = links.former[order], links.into[order]
    begins = np.flatnonzero(np.append(True, former[1:] != former[:-1]))
    first = order[begins]
    ids = former[begins]
    undone = np.isin(links.seq, links.undoes[links.kind == UNMERGE])
    good: Mask = np.logical_and.reduceat(((links.kind != UNMERGE) & ~undone)[order], begins)
    good &= np.minimum.reduceat(into, begins) == np.maximum.reduceat(into, begins)
    good &= known.first_of(ids) >= links.seq[first]
    good &= ~find(seen, ids)[1] & ~find(distinct(links.into), ids)[1]
    plain[order] = np.repeat(good, np.diff(np.append(begins, len(order))))
    firsts[first[good]] = True
    return plain, firsts


def deduplicated(links: Links) -> Links:
    """Without what clients say again before anything is undone: it was judged the first time, and that holds."""
    epoch = np.cumsum(links.kind == UNMERGE)
    own = np.where(links.operator, links.seq, -1)
    columns = (own, epoch, links.kind, links.into, links.former)
    order = np.lexsort(columns)  # stable: of equal ones the first stays first
    new = np.zeros(len(order), np.bool_)
    new[:1] = True
    for column in columns:
        new[1:] |= column[order][1:] != column[order][:-1]
    return links.take(np.sort(order[new]))


def in_order(links: Links) -> Links:
    """By ``seq``."""
    return links.take(np.argsort(links.seq, kind="stable"))


def inserted(keys: U64, links: Links) -> U64:
    """``keys``, ascending, and those that ``links`` name."""
    named = distinct(np.concatenate([links.former, links.into]))
    new = named[~find(keys, named)[1] & (named != 0)]
    return np.insert(keys, np.searchsorted(keys, new), new)


def replaced(keys: U64, table: U64, values: U64) -> U64:
    """Each key with the value of its entry in ``table`` (ascending), or as it is without one; shape ``(n,)``."""
    at, held = find(table, keys)
    return np.where(held, values[at], keys) if len(table) else keys
