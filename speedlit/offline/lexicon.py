"""The words of the world: topics with their paths, attributes, concepts with three synonyms each, names. Data only."""

from __future__ import annotations

TOPICS: dict[str, str] = {
    "boat": "Recreation/Outdoors/Water/Sailing/Vessels/Boats",
    "chair": "Home/Furniture/Chairs",
    "cup": "Home/Kitchen/Cups",
    "hat": "Shopping/Clothing/Accessories/Headwear/Hats",
    "coat": "Shopping/Clothing/Outerwear/Coats",
    "statue": "Arts/Visual_Arts/Sculpture/Gallery/Statues",
    "drum": "Arts/Music/Instruments/Percussion/Drums",
    "harp": "Arts/Music/Instruments/Harps",
    "doll": "Games/Toys/Dolls",
    "tent": "Recreation/Outdoors/Camping/Equipment/Shelters/Tents",
    "clock": "Home/Furniture/Decoration/Clocks",
    "lamp": "Home/Lighting/Lamps",
    "cart": "Business/Transport/Road/Carts",
    "kite": "Recreation/Kites",
    "sword": "Society/History/Arms/Medieval/Swords",
    "shield": "Society/History/Arms/Shields",
    "bell": "Society/Religion/Objects/Bells",
    "basket": "Home/Garden/Tools/Storage/Baskets",
    "gate": "Home/Garden/Gates",
    "pen": "Reference/Writing/Pens",
    "book": "Reference/Books",
    "ring": "Shopping/Jewelry/Rings",
    "rug": "Home/Textiles/Floor/Handmade/Rugs",
    "bridge": "Business/Construction/Architecture/Structures/Bridges",
}

ADJECTIVES = ("condition", "colour", "material")  # written before the noun, in this order
PHRASES: dict[str, str] = {"place": "near the", "owner": "owned by a", "purpose": "for"}  # written after it, in this order

CONCEPTS: dict[str, tuple[str, ...]] = {
    "colour": (
        "crimson scarlet ruby", "azure cobalt sapphire", "emerald jade olive", "golden amber lemon",
        "ebony sable inky", "ivory snowy pearly", "ashen slate silver", "chestnut mocha umber",
        "tangerine apricot pumpkin", "violet plum mauve", "rosy blush coral", "sandy tan buff",
        "turquoise aqua cyan", "burgundy claret garnet", "copper brassy rusty", "vanilla eggshell buttery",
    ),
    "material": (
        "wooden timber oaken", "steel iron metallic", "granite marble basalt", "crystal glassy vitreous",
        "cotton linen fabric", "suede rawhide cowhide", "nylon vinyl acrylic", "cardboard papery parchment",
        "ceramic earthen porcelain", "woolen fleece felt", "satin silken velvet", "wicker reed rattan",
        "horn antler bony", "latex elastic rubbery", "hemp jute twine", "cement mortar brick",
    ),
    "condition": (
        "ancient aged antique", "modern recent novel", "damaged cracked shattered", "spotless tidy pristine",
        "filthy grimy soiled", "expensive pricey costly", "inexpensive budget bargain", "sturdy robust durable",
        "fragile delicate flimsy", "famous renowned celebrated", "odd peculiar weird", "beautiful lovely gorgeous",
        "gleaming glossy polished", "damp soaked moist", "giant enormous colossal", "minute miniature petite",
    ),
    "place": (
        "forest woodland grove", "hill mound knoll", "river stream brook", "swamp marsh bog",
        "road street lane", "house home dwelling", "shop store boutique", "coast shore seaside",
        "cave cavern grotto", "harbour port dock", "meadow pasture field", "cliff bluff crag",
        "farm ranch homestead", "castle fortress citadel", "prison jail dungeon", "market bazaar fair",
    ),
    "owner": (
        "doctor physician medic", "teacher tutor instructor", "sailor mariner seaman", "soldier trooper warrior",
        "child kid youngster", "thief robber burglar", "king monarch sovereign", "farmer grower planter",
        "singer vocalist crooner", "cook chef caterer", "writer author novelist", "lawyer attorney barrister",
        "guard sentry watchman", "hermit recluse loner", "scholar academic professor", "servant butler maid",
    ),
    "purpose": (
        "battle combat warfare", "travel journeys voyages", "trade commerce business", "worship prayer devotion",
        "study learning education", "sport recreation play", "labour work toil", "sleep slumber repose",
        "music melody song", "feasts banquets dinners", "rescue salvage recovery", "healing cures remedies",
        "repair mending fixing", "hunting pursuit chase", "weddings marriages nuptials", "storage keeping stowage",
    ),
}  # fmt: skip

ATTRIBUTES = tuple(CONCEPTS)

NAMES = [
    "Ada",
    "Ben",
    "Cleo",
    "Dara",
    "Eli",
    "Faye",
    "Gus",
    "Hana",
    "Ivo",
    "June",
    "Kai",
    "Lena",
    "Milo",
    "Nora",
    "Otis",
    "Pia",
    "Quinn",
    "Remy",
    "Sara",
    "Tess",
    "Uma",
    "Vera",
    "Wes",
    "Yara",
    "Zeno",
    "Abel",
    "Beth",
    "Cora",
    "Dov",
    "Esme",
    "Finn",
    "Greta",
    "Hugo",
    "Iris",
    "Joel",
    "Kira",
    "Luca",
    "Maud",
    "Nils",
    "Opal",
]

# How a task of each kind is put in words; {topic} is the plural, {attribute} the attribute's name.
TASKS: dict[str, tuple[str, ...]] = {
    "retrieval": ("find {topic} by their {attribute}", "search for {topic} with a given {attribute}", "look up {topic} by {attribute}"),
    "classification": ("sort {topic} by their {attribute}", "name the {attribute} of {topic}", "tell the {attribute} of {topic}"),
    "sts": ("compare {topic} by their {attribute}", "compare the {attribute} of {topic}", "compare {topic} by {attribute}"),
    "s2s": ("match {topic} by their {attribute}", "match {topic} of the same {attribute}", "pair {topic} by {attribute}"),
    "p2p": ("match notes on {topic} by their {attribute}", "match notes on {topic} by {attribute}", "pair notes on {topic} by {attribute}"),
}

# JSON keys of each kind in writing order: query, positive, hard negative (paper.md, section 4).
KEYS: dict[str, tuple[str, ...]] = {
    "retrieval": ("user_query", "positive_document", "hard_negative_document"),
    "classification": ("input_text", "label", "misleading_label"),
    "sts": ("S1", "S2", "S3"),
    "s2s": ("input", "positive_document"),
    "p2p": ("input", "positive_document"),
}
