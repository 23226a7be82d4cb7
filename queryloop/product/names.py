"""The words of the simulated world: entity names made from syllables, aspects from what people ask about a kind of thing."""

from __future__ import annotations

import random
from collections.abc import Mapping

# Syllables are separated by spaces, subjects by commas.
STARTS = (
    "al bar bel ber bri cal cor dan dov el fal fen gar gil hal hol in jas kal kes lin lor mar mel mir "
    "nim nor or pel ran rud sab sel sun tam tor ul van vel wil yar zan"
)
MIDDLES = "a e i o an en ir os"

# The ending of a name shows the kind of thing, as in real names.
ENDINGS: Mapping[str, str] = {
    "town": "ton ville burg haven",
    "phone": "fone tek pad cam",
    "dish": "etta oni aki ello",
    "plant": "wort leaf fern bloom",
    "car": "mobil rado ster dor",
    "game": "quest craft saga rush",
    "dog": "hound doodle poo terrier",
    "sport": "ball boarding sailing kwon",
    "cure": "cillin zol mune pax",
    "band": "tones beats drums choir",
}

SUBJECTS: Mapping[str, str] = {
    "town": (
        "opening hours, tickets, parking, guided tour, map, hotels, weather, museum, restaurants, festival, "
        "airport bus, beaches, history, population"
    ),
    "phone": (
        "battery, screen repair, price, camera test, charger, cases, update, manual, trade in, unlock, "
        "reviews, wallpaper, warranty, release date"
    ),
    "dish": (
        "recipe, calories, ingredients, side dishes, sauce, freezing, origin, oven time, vegan version, "
        "leftovers, wine pairing, spices, delivery, nutrition"
    ),
    "plant": (
        "watering, pruning, pests, soil, sunlight, seeds, poisonous, repotting, yellow leaves, cuttings, "
        "winter care, fertilizer, height, symbolism"
    ),
    "car": (
        "mileage, tyres, lease, insurance, oil change, recall, towing, fuel use, brake pads, colours, "
        "used prices, top speed, boot size, engine noise"
    ),
    "game": (
        "walkthrough, cheats, download, system requirements, mods, characters, soundtrack, multiplayer, "
        "speedrun, ending, controls, expansion, lore, cosplay"
    ),
    "dog": (
        "training, puppies, shedding, lifespan, food, barking, grooming, adoption, temperament, weight, "
        "exercise, names, allergies, ancestors"
    ),
    "sport": (
        "rules, equipment, lessons, injuries, world cup, scores, shoes, clubs, workout, stretching, betting, "
        "olympics, records, referee signs"
    ),
    "cure": (
        "side effects, dosage, alcohol, pregnancy, generic, overdose, price list, storage, children, expiry, "
        "prescription, interactions, research, patent"
    ),
    "band": (
        "tour dates, lyrics, albums, members, chords, merchandise, interview, documentary, concert seats, "
        "remix, biography, breakup, vinyl, fan club"
    ),
}

BEFORE = ("cheap", "best", "free", "new", "local", "quick")
AFTER = ("near me", "online", "explained", "for beginners", "today", "photos")


def name_entities(rng: random.Random, kind: str, count: int, taken: set[str]) -> list[str]:
    """Return `count` single-word names of one kind, none of them in `taken`, which is extended."""
    names: list[str] = []
    while len(names) < count:
        middle = rng.choice(MIDDLES.split()) if rng.random() < 0.5 else ""
        name = rng.choice(STARTS.split()) + middle + rng.choice(ENDINGS[kind].split())
        if name not in taken:
            taken.add(name)
            names.append(name)
    return names


def name_aspects(rng: random.Random, kind: str, count: int) -> list[str]:
    """Return `count` aspects of one to four words; no two are about the same subject."""
    return [_decorate(rng, subject) for subject in rng.sample(SUBJECTS[kind].split(", "), count)]


def _decorate(rng: random.Random, subject: str) -> str:
    """Return the subject alone, or with a word or two around it."""
    form = rng.random()
    if form < 0.5:
        return subject
    return f"{rng.choice(BEFORE)} {subject}" if form < 0.75 else f"{subject} {rng.choice(AFTER)}"
