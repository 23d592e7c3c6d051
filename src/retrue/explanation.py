"""Which words moved a score: each is left out of the text in turn, and the model is asked again.

Leaving out beats a mask here: it needs no token that a model may not have, and tells as much
(docs/decisions/0021-open-doors.md). A text of more words than the model may be run is looked at in stretches first, of
which the one that moves the score most is halved, again and again, until the runs are used up.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import pairwise

Score = Callable[[Sequence[str]], Sequence[Mapping[str, float]]]
LEAST_RUNS = 8  # the text itself, and enough for a few stretches
JOINING = "'’-"  # between two letters they belong to the word
# Scripts that put no space between words: kana, ideographs and their supplements.
UNSPACED = ((0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a text by its offsets in characters (Unicode code points).

    `weight` is how much less probable the answer is without it: negative where the part speaks against the answer.
    """

    start: int
    end: int
    weight: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the model said of a text, and what each part of it did to that, in the order of the text.

    `words` were left out one by one. `spans` are stretches of several words that were only left out as a whole, because
    the runs were used up; there are none unless `bounded`. Together they hold every character but white space.
    """

    label: str
    score: float
    words: list[Part]
    spans: list[Part]
    runs: int

    @property
    def bounded(self) -> bool:
        return bool(self.spans)


def explain(score: Score, text: str, most_runs: int) -> Explanation:
    """Explain what `score` says of a text, asking it of at most `most_runs` texts, of which LEAST_RUNS are the fewest.

    `score` gives the probability of each label for each text; those that lack one word are often of one length,
    and run together. The same text and scores give the same explanation.
    """
    (said,) = score([text])
    label = max(said, key=lambda name: said[name])
    places, left = words(text), max(most_runs, LEAST_RUNS) - 1

    def parts(edges: Sequence[int]) -> list[tuple[float, int, int, Part]]:
        """The words from each edge up to the next, as they come out of the heap: those that weigh most first."""
        stretches = [(first, last, places[first][0], places[last - 1][1]) for first, last in pairwise(edges)]
        without = score([text[:start] + text[end:] for _, _, start, end in stretches])
        weights = [said[label] - scores[label] for scores in without]
        return [
            (-abs(weight), first, last, Part(start, end, weight))
            for weight, (first, last, start, end) in zip(weights, stretches, strict=True)
        ]

    count = min(len(places), left if len(places) <= left else left // 2)
    found = parts([len(places) * n // max(1, count) for n in range(count + 1)])
    used, alone = 1 + count, [each for each in found if each[2] - each[1] == 1]
    several = [each for each in found if each[2] - each[1] > 1]
    heapify(several)
    # A stretch that moves nothing at all is one that the model does not read.
    while several and several[0][0] < 0 and used + 2 <= left + 1:
        _, first, last, _ = heappop(several)
        for half in parts([first, (first + last) // 2, last]):
            if half[2] - half[1] == 1:
                alone.append(half)
            else:
                heappush(several, half)
        used += 2
    words_alone, spans = (sorted((each[3] for each in group), key=lambda one: one.start) for group in (alone, several))
    return Explanation(label, said[label], words_alone, spans, used)


def words(text: str) -> list[tuple[int, int]]:
    """Start and end of each word: a run of letters and digits, a run of symbols, or one character where none is spaced.

    Every character but white space belongs to one. Marks, joiners and variants go with the character before them, so
    that neither an accent nor an emoji is torn apart.
    """
    found: list[tuple[int, int]] = []
    before = " "
    for place in range(len(text)):
        kind = _kind(text, place, before)
        if kind == " ":
            pass
        elif found and kind == before and kind != "1":
            found[-1] = (found[-1][0], place + 1)
        elif kind == "+" and found:
            found[-1] = (found[-1][0], place + 1)
            continue
        else:
            found.append((place, place + 1))
        before = kind
    return found


def _kind(text: str, place: int, before: str) -> str:
    """What a character is: " " space, "w" part of a word, "1" a word by itself, "." a symbol, "+" part of the last."""
    character = text[place]
    if character.isspace():
        return " "
    category = unicodedata.category(character)
    if category[0] == "M" or category == "Cf":
        return "." if before == " " else "+"
    if character in JOINING and before == "w" and text[place + 1 : place + 2].isalnum():
        return "w"
    if category[0] in "LN" or character == "_":
        return "1" if any(low <= ord(character) <= high for low, high in UNSPACED) else "w"
    return "."
