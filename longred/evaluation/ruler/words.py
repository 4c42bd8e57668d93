"""Words that needle keys are made of; none of them is a practice word of the demo model."""

import random

_ADJECTIVES = """
absent amber arctic ashen balmy bleak blunt brisk bulky candid chilly civic coarse cosmic cozy
crude cubic deft dire drowsy eerie elastic elegant feeble fertile floral formal fragile frugal
gaudy glossy gloomy grim humid infinite jagged jovial lavish lunar marine mellow misty muddy mystic
nimble opaque placid prickly radiant robust rural serene shabby sincere sleek spotless stormy
sublime tepid tropical upbeat velvety vivid woolly zesty
"""

_NOUNS = """
abacus album anvil atlas badger bamboo barrel biscuit blender buckle cabbage cannon cello chapel
chisel cradle crayon cushion dagger decimal dentist dynamo easel ember envelope fabric faucet ferry
fossil funnel gadget gazelle goblet granite gravel harvest hinge hydrant igloo insect jigsaw kayak
kernel lagoon lever locust magpie mitten mosaic mustard napkin nectar nugget oatmeal oboe parcel
pendulum pigment piston prism quarry quilt racket ribcage saddle satchel scooter thimble trolley
turnip vault viaduct walkway yogurt zipper
"""

ADJECTIVES = tuple(_ADJECTIVES.split())
NOUNS = tuple(_NOUNS.split())


def draw_key(rng: random.Random) -> str:
    """Return an adjective-noun key such as `misty-anvil`."""
    return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"
