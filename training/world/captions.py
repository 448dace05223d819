"""What people would say of a scene: captions of many forms and lengths.

Each names kind, colour and background of all things, and the size of those that are small or large. What stands still
may go without a verb; and a verb of travel without a direction means to the right.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from training.world.scenes import Scene, Thing

# Size -> its adjectives.
SIZE_WORDS = {"small": ("small ", "little "), "medium": ("",), "large": ("large ", "big ")}

# Background -> where something is, where it goes through or over, and what else can be seen.
WHERE = {
    "meadow": ("in a meadow", "on the meadow"),
    "sea": ("on the sea", "at sea"),
    "night": ("at night", "in the night", "on a moonlit night"),
    "desert": ("in the desert", "in a sandy desert"),
    "snow": ("in the snow", "in deep snow"),
    "sunset": ("at sunset", "in front of the sunset"),
}
THROUGH = {
    "meadow": ("across a meadow", "over the meadow"),
    "sea": ("across the sea", "over the sea"),
    "night": ("through the night",),
    "desert": ("through the desert", "across the desert"),
    "snow": ("through deep snow", "through the snow", "across the snow"),
    "sunset": ("at sunset",),
}
VIEWS = {
    "meadow": ("clouds pass over the hills", "the sky is clear"),
    "sea": ("small waves glitter on the water", "the water is calm"),
    "night": ("the moon is bright", "it is dark"),
    "desert": ("the sand is warm", "the dunes are quiet"),
    "snow": ("flakes fall softly", "it is cold"),
    "sunset": ("the sun is going down", "the evening is warm"),
}

# Kind -> how it travels.
TRAVELS = {
    "ball": ("rolls", "moves"),
    "box": ("slides", "moves"),
    "star": ("glides", "moves"),
    "boat": ("sails", "moves"),
    "balloon": ("drifts", "floats"),
    "bird": ("flies", "moves"),
    "fox": ("runs", "walks"),
}
TOWARDS = {
    "left": (" left", " to the left", " from right to left"),
    "right": (" right", " to the right", " from left to right", ""),
}
# Motion -> its verbs, and those that only some kinds have.
VERBS = {
    "up": ("rises", "moves up", "goes up"),
    "down": ("sinks", "moves down", "goes down"),
    "bounces": ("bounces", "bounces up and down"),
    "grows": ("grows", "gets bigger", "becomes larger"),
    "turns": ("turns", "spins", "spins around"),
    "still": ("stands still", "stays in place", "rests"),
}
VERBS_OF_KINDS = {
    ("balloon", "up"): ("floats up",),
    ("balloon", "down"): ("floats down",),
    ("bird", "up"): ("flies up",),
    ("bird", "down"): ("flies down",),
    ("bird", "bounces"): ("flutters up and down",),
    ("boat", "bounces"): ("bobs up and down",),
    ("fox", "bounces"): ("jumps up and down",),
}
PARTICIPLES = {
    "becomes": "becoming",
    "bobs": "bobbing",
    "bounces": "bouncing",
    "flies": "flying",
    "gets": "getting",
    "glides": "gliding",
    "goes": "going",
    "moves": "moving",
    "rises": "rising",
    "runs": "running",
    "slides": "sliding",
    "spins": "spinning",
}  # the others take -ing in place of -s


def caption(scene: Scene, random: np.random.Generator) -> str:
    """Returns a phrasing of a scene, each form as often as the others; some get a full stop or begin in lower case."""
    forms = phrasings(scene)
    form = forms[int(random.integers(len(forms)))]
    text = form[int(random.integers(len(form)))]
    if random.random() < 0.3:
        text = text[0].lower() + text[1:]
    return text + "." if random.random() < 0.3 else text


def part_of_caption(scene: Scene, random: np.random.Generator) -> str:
    """Returns less than a caption says: a background, a kind or a colour, or two things that are told of one."""
    thing = scene.things[int(random.integers(len(scene.things)))]
    verbs, places = verbs_of(thing), WHERE[scene.background]
    verb, where = verbs[int(random.integers(len(verbs)))], places[int(random.integers(len(places)))]
    name = f"{thing.colour} {thing.kind}"
    parts = (scene.background, thing.kind, thing.colour, name, f"{_a(name)} {verb}", f"{_a(thing.kind)} {where}")
    return parts[int(random.integers(len(parts)))]


def phrasings(scene: Scene) -> list[list[str]]:
    """Returns all phrasings of a scene, grouped by their form, without a full stop at the end."""
    forms = _of_one(scene.background, scene.things[0]) if len(scene.things) == 1 else _of_two(scene)
    return [[_capitalized(text) for text in form] for form in forms]


def verbs_of(thing: Thing) -> list[str]:
    """Returns what can be said of a thing's motion: "runs to the left", "stands still"."""
    if thing.motion in TOWARDS:
        return [verb + towards for verb, towards in product(TRAVELS[thing.kind], TOWARDS[thing.motion])]
    return [*VERBS[thing.motion], *VERBS_OF_KINDS.get((thing.kind, thing.motion), ())]


def names_of(thing: Thing) -> list[str]:
    """Returns what a thing can be called, without an article: "small red fox"."""
    return [f"{size}{thing.colour} {thing.kind}" for size in SIZE_WORDS[thing.size]]


def _of_one(background: str, thing: Thing) -> list[list[str]]:
    verbs, names = verbs_of(thing), names_of(thing)
    ends = THROUGH[background] if thing.motion in TOWARDS else ()
    told = [*product(map(_a, names), verbs, (*WHERE[background], *ends))]
    forms = [
        [f"{a} {verb} {where}" for a, verb, where in told],
        [f"the {name} {verb} {where}" for name, verb, where in product(names, verbs, WHERE[background])],
        [f"{where}, {a} {verb}" for a, verb, where in told],
        [f"{a} {_participle(verb)} {where}" for a, verb, where in told],
        [f"{name}, {verb}, {background}" for name, verb in product(names, verbs)],
        [f"{background}, {name}, {_participle(verb)}" for name, verb in product(names, verbs)],
        [f"there is {_a(name)} {where}. It {verb}" for name, verb, where in product(names, verbs, WHERE[background])],
        [f"{a} {verb} {where}. {_capitalized(view)}" for (a, verb, where), view in product(told, VIEWS[background])],
        [f"a short film of {a} that {verb} {where}" for a, verb, where in told],
    ]
    if thing.motion == "still":
        forms += [
            [f"{name}, {background}" for name in names],
            [f"{_a(name)} {where}" for name, where in product(names, WHERE[background])],
        ]
    return forms


def _of_two(scene: Scene) -> list[list[str]]:
    left, right = scene.things
    sides = [[*product(map(_a, names_of(thing)), verbs_of(thing))] for thing in (left, right)]
    apart = [
        [f"{a} {verb} on the {side}" for a, verb in told] for told, side in zip(sides, ("left", "right"), strict=True)
    ]
    joined = [f"{one} and {other}" for pair in (apart, apart[::-1]) for one, other in product(*pair)]
    near = [f"{a} {verb} and {b} {doing}" for (a, verb), (b, doing) in product(*sides)]
    beside = [f"{a} {_participle(verb)} next to {b} {_participle(doing)}" for (a, verb), (b, doing) in product(*sides)]
    names = [*product(names_of(left), names_of(right))]
    background, where = scene.background, WHERE[scene.background]
    forms = [
        [f"{text} {place}" for text, place in product(joined, where)],
        [f"{place}, {text}" for text, place in product(joined, where)],
        [f"{text} {place}" for text, place in product(near, where)],
        [f"{text} {place}" for text, place in product(beside, where)],
        [f"{text} {place}. {_capitalized(view)}" for text, place, view in product(near, where, VIEWS[background])],
        [
            f"{one} {verb}, {other} {doing}, {background}"
            for (one, other), verb, doing in product(names, verbs_of(left), verbs_of(right))
        ],
    ]
    if {left.motion, right.motion} == {"still"}:
        forms += [
            [f"{one} and {other}, {background}" for one, other in names],
            [f"{_a(one)} and {_a(other)} {place}" for (one, other), place in product(names, where)],
            [
                f"{_a(one)} on the left and {_a(other)} on the right {place}"
                for (one, other), place in product(names, where)
            ],
        ]
    return forms


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _participle(verb: str) -> str:
    word, space, rest = verb.partition(" ")
    return PARTICIPLES.get(word, f"{word[:-1]}ing") + space + rest


def _capitalized(text: str) -> str:
    return text[0].upper() + text[1:]
