"""Synthetic reviews from a small grammar, for a first run without any data: short, labelled, and honest about it.

The grammar makes the reader work: opinions are said by denying the opposite, a review may praise two things and still
be a warning, and half have no verdict. A bag of words therefore scores well below 1. Only `random.Random.random` is
used, whose sequence for a seed Python promises to keep.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from retrue.dataset import Example
from retrue.errors import BadInput

NOTICE = (
    "Synthetic: every text was made by the grammar in retrue.corpus. It shows that the machinery works; "
    "scores on it say nothing about real texts."
)
LABELS = ("negative", "positive")
ROWS = 3600


def _list(text: str) -> tuple[str, ...]:
    return tuple(text.replace("\n", " ").split(", "))


@dataclass(frozen=True, slots=True)
class Domain:
    """The words of one domain; pairs are (negative, positive), a verb is its past and its infinitive with a stroke."""

    openings: tuple[str, ...]
    aspects: tuple[str, ...]
    adjectives: tuple[tuple[str, ...], tuple[str, ...]]
    verbs: tuple[tuple[str, ...], tuple[str, ...]]
    verdicts: tuple[tuple[str, ...], tuple[str, ...]]
    fillers: tuple[tuple[str, ...], ...]


FILMS = Domain(
    openings=_list("""this was the second film of the evening, I went in knowing only the poster, the story follows a
lighthouse keeper and her son, it is about a bank clerk who steals a boat, two sisters inherit a cinema in a harbour
town, a retired detective looks for a lost dog, the whole thing takes place on one night train, a choir from the hills
travels to the capital, the director made three films before this one, it runs for a little under two hours"""),
    aspects=_list("""acting, plot, dialogue, music, ending, lighting, editing, opening scene, lead actor, humour, camera
work, second half, love story, villain, pacing, final chase, script, narration"""),
    adjectives=(
        _list("""dull, clumsy, hollow, tired, muddled, lifeless, predictable, wooden, tedious, shallow, awful,
disappointing, irritating, forgettable, lazy, weak, poor, painful"""),
        _list("""gripping, graceful, moving, fresh, clever, lively, surprising, natural, thrilling, rich, wonderful,
delightful, charming, memorable, sharp, strong, excellent, tender"""),
    ),
    verbs=(
        _list("""bored me/bore me, lost me/lose me, fell apart/fall apart, dragged/drag, annoyed me/annoy me, sent my
friends to sleep/send my friends to sleep"""),
        _list("""held my attention/hold my attention, moved me/move me, made me laugh/make me laugh, won me over/win me
over, came alive/come alive, rang true/ring true"""),
    ),
    verdicts=(
        _list("""I would not watch it again, I cannot recommend it, it is not worth the ticket, save your money, I
wanted my evening back, give it a miss, it was one of the low points of my year, I left before the end"""),
        _list("""I would watch it again, I can only recommend it, it is well worth the ticket, spend your money on it, I
wanted it to go on all evening, do not give it a miss, it was one of the high points of my year, I stayed until the very
end"""),
    ),
    fillers=(
        _list("we saw it, I watched it, my club showed it, they screened it, my cousin picked it"),
        _list("on a Tuesday, on a rainy Sunday, late on Friday, during the holidays, last week, in early spring"),
        _list("at the old cinema, at home, in a full hall, at a small festival, in a hotel room, in the open air"),
        _list(
            "with my brother, with two colleagues, with nobody else, with the children, with a neighbour, after dinner"
        ),
    ),
)
KITCHEN = Domain(
    openings=_list("""I bought it for a small flat, it replaced one that I had for ten years, it came in a plain brown
box, I ordered the whole set in March, we use it every morning, this is the third one in this house, it was a present
from my aunt, I needed it for baking bread, it stands next to the oven, it holds about two litres"""),
    aspects=_list("""handle, lid, coating, blade, motor, switch, cable, manual, base, spout, display, timer, seal,
finish, packaging, filter, grip, heating plate"""),
    adjectives=(
        _list("""flimsy, wobbly, loud, leaky, brittle, rusty, slippery, crooked, useless, fiddly, awful, disappointing,
irritating, cheap, faulty, weak, poor, dangerous"""),
        _list("""sturdy, stable, quiet, tight, durable, spotless, comfortable, precise, handy, practical, wonderful,
delightful, reliable, solid, flawless, strong, excellent, safe"""),
    ),
    verbs=(
        _list("""broke/break, leaked/leak, burned my rice/burn my rice, rusted/rust, came loose/come loose, scratched
the worktop/scratch the worktop"""),
        _list("""worked/work, saved me time/save me time, cleaned up easily/clean up easily, lasted/last, fitted/fit,
impressed my mother/impress my mother"""),
    ),
    verdicts=(
        _list("""I would not buy it again, I cannot recommend it, it is not worth the price, save your money, I want my
money back, stay away from it, it went back to the shop, it ended up in the bin"""),
        _list("""I would buy it again, I can only recommend it, it is well worth the price, spend your money on it, I
want another one, do not stay away from it, it will never go back to the shop, it has a place of honour here"""),
    ),
    fillers=(
        _list("I unpacked it, we first used it, my son tried it, a friend borrowed it, I switched it on"),
        _list("on a Monday, two days later, just before lunch, during the holidays, last month, in early autumn"),
        _list("in our kitchen, at the cottage, in the office, at my parents' house, in a caravan, on the balcony"),
        _list("for a big pot of soup, for breakfast, for a birthday cake, for six guests, for tea, without help"),
    ),
)
DOMAINS = {"films": FILMS, "kitchen": KITCHEN}
INTENSITY = ("", "", "", "really ", "rather ", "simply ", "surprisingly ", "truly ")
DENIALS = _list("not, never, not at all, anything but, far from, hardly, not even a little")
TURNS = ("but", "yet", "still,", "even so,", "all the same,", "in spite of that,", "in the end, though,")
CONCESSIONS = _list("although, even though, granted that, while")


def generate(seed: int, rows: int, domain: str) -> list[Example]:
    """Distinct reviews of one of DOMAINS, about 15 to 60 words each, half of them positive; BadInput otherwise."""
    if domain not in DOMAINS:
        raise BadInput(f"there is no domain {domain!r}: use one of {', '.join(DOMAINS)}")
    random = Random(f"{domain} {seed}")
    sides: dict[str, int] = {}
    while len(sides) < rows:
        side = len(sides) % 2
        sides.setdefault(_review(random, DOMAINS[domain], side), side)
    return [
        Example(text, LABELS[side], id=f"{domain}-{seed}-{number:05}")
        for number, (text, side) in enumerate(sides.items())
    ]


def splits(seed: int = 0, rows: int = ROWS, domain: str = "films") -> dict[str, list[Example]]:
    """The same reviews as 80 % train, 10 % validation and 10 % test."""
    examples, tenth = generate(seed, rows, domain), rows // 10
    return {"test": examples[:tenth], "validation": examples[tenth : 2 * tenth], "train": examples[2 * tenth :]}


def _review(random: Random, domain: Domain, side: int) -> str:
    """One review whose author is for it (side 1) or against it (side 0), whatever else it grants."""
    opinions = [_opinion(random, domain, side) for _ in range(1 + int(random.random() * 3))]
    kind = random.random()
    if kind < 0.2:  # the other side is granted at length, then taken back by the verdict
        granted = [_opinion(random, domain, 1 - side) for _ in range(1 + int(random.random() * 2))]
        body = [*granted, f"{_pick(random, TURNS)} {_pick(random, domain.verdicts[side])}", *opinions[2:]]
    elif kind < 0.35:  # one concession inside a sentence
        conceded = _opinion(random, domain, 1 - side)
        body = [f"{_pick(random, CONCESSIONS)} {conceded}, {opinions[0]}", *opinions[1:]]
    elif kind < 0.65:
        body = [*opinions, _pick(random, domain.verdicts[side])]
    else:
        body = opinions
    body = [f"{sentence}{_pick(random, '...!')}" for sentence in body]
    opening = f"{_pick(random, domain.openings)}."
    filler = f"{' '.join(_pick(random, part) for part in domain.fillers)}."
    sentences = [opening, *body, filler] if random.random() < 0.3 else [opening, filler, *body]
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}" for sentence in sentences)


def _opinion(random: Random, domain: Domain, side: int) -> str:
    """A clause for or against one aspect, in a quarter of cases said by denying the opposite."""
    aspect, way = f"the {_pick(random, domain.aspects)}", random.random()
    if way < 0.5:
        return f"{aspect} was {_pick(random, INTENSITY)}{_pick(random, domain.adjectives[side])}"
    if way < 0.75:
        return f"{aspect} {_pick(random, domain.verbs[side]).split('/')[0]}"
    opposite = _pick(random, domain.adjectives[1 - side])
    if way < 0.87:
        return f"{aspect} was {_pick(random, DENIALS)} {opposite}"
    if way < 0.93:
        return f"nothing about {aspect} was {opposite}"
    return (
        f"{aspect} {_pick(random, ('did not', 'did not once'))} {_pick(random, domain.verbs[1 - side]).split('/')[1]}"
    )


def _pick(random: Random, items: Sequence[str]) -> str:
    return items[int(random.random() * len(items))]
