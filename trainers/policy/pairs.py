"""From candidate lists to preference pairs: what DPO learns from (Algorithm 1, lines 25 and 26)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from serving.policy.lists import find_duplicates
from trainers.policy.search import Candidates, ScoredList, SearchSettings


@dataclass(frozen=True)
class Pair:
    """One triplet (x, y_chosen, y_rejected) as token ids; the lists end with EOS."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


def make_pairs(candidates: Iterable[Candidates], settings: SearchSettings) -> list[Pair]:
    """Return at most one pair a prompt (G11); none where no chosen list is left or its reward is not above the rejected one's."""
    pairs = (make_pair(one, settings) for one in candidates)
    return [pair for pair in pairs if pair is not None]


def describe_losses(candidates: Iterable[Candidates], settings: SearchSettings) -> str:
    """Return in words how many prompts gave no pair, by the first reason."""
    reasons = Counter(reason for one in candidates if (reason := _loss(one, settings)))
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "none was lost"


def _loss(candidates: Candidates, settings: SearchSettings) -> str | None:
    if not candidates.chosen:
        return "without a complete list"
    if all(_repeats(one, settings) for one in candidates.chosen):
        return "with only lists that repeat themselves (search.overlap)"
    if not candidates.rejected:
        return "without a list to reject"
    return None if make_pair(candidates, settings) else "without a gain over search.min_gain"


def make_pair(candidates: Candidates, settings: SearchSettings) -> Pair | None:
    """Drop chosen lists in which two recommendations overlap (G10), then match lengths (eq. 6)."""
    chosen = [one for one in candidates.chosen if not _repeats(one, settings)]
    if not chosen or not candidates.rejected:
        return None
    better, worse = match_lengths(chosen, candidates.rejected)
    if better.reward <= worse.reward + settings.min_gain:
        return None
    return Pair(candidates.prompt.token_ids, better.token_ids, worse.token_ids)


def _repeats(one: ScoredList, settings: SearchSettings) -> bool:
    return settings.filter_overlap and bool(find_duplicates(one.list.items, settings.overlap))


def match_lengths(chosen: Sequence[ScoredList], rejected: Sequence[ScoredList]) -> tuple[ScoredList, ScoredList]:
    """Return the pair by eq. 6: that whose lengths in tokens differ least; among equals the one whose rewards differ most."""
    return min(
        ((better, worse) for better in chosen for worse in rejected),
        key=lambda pair: (abs(len(pair[0].token_ids) - len(pair[1].token_ids)), pair[1].reward - pair[0].reward),
    )
