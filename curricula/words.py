"""The vocabularies of the generated tasks: index 0 is trained on, index 1 is the reserved shift."""

SYMBOLS = (
    "a b c d e f g h i j k l m n o p q r s t u v w x y z".split(),
    "ba da fi go he ju ke lo mu ne po ri su ta vo wu xa yo ze".split(),
)
VARIABLES = (
    "a b c d e f g h k m n p q r s t u v w x y z".split(),
    "total count size left right index value item first last".split(),
)
NAMES = (
    "Ann Bob Cid Dan Eve Fay Gus Hal Ian Jim Kim Lee Max Ned Pam Ron Sam Tom Una Vic".split(),
    "Alice Boris Clara David Elena Frank Grace Henry".split(),
)
COLOURS = ("red blue green black white pink gold gray".split(), "amber violet scarlet ivory teal bronze".split())
OBJECTS = (
    "ball cup hat box car key map pen bag bed bell boat book coat door".split(),
    "ladder bottle candle engine mirror pillow".split(),
)
SIZES = ("big small long short wide thin tall flat".split(), "huge tiny narrow broad".split())
AGES = ("new old clean dusty dry wet warm cold".split(), "fresh rusty broken modern".split())
KEYS = (
    "id age tag name size code kind user path port mode rank unit zone item flag ok on".split(),
    "height weight status origin target label".split(),
)
# The gazetteer is invented, so that no outside knowledge helps; every entity is known to both distributions.
ENTITIES = list[str](
    (
        "Arlen Bovik Cresta Dorun Elmar Fostra Galdor Hestia Ilmen Jorvik Kestra Lomund Mirova Nordel Ostia Pellan "
        "Quarta Rovana Selmar Tarkov Ulmar Vestra Wolden Xandor Yarrow Zembla Ardent Belmor Corvin Delta Ember Falken"
    ).split()
)
CAPITALS = list[str](
    (
        "Tamsk Lorna Pirel Vasto Gride Monta Selka Hurst Brena Calde Dunmore Estel Fenwick Garrow Holm Ister "
        "Jasper Kelso Linden Marsk Nairn Oban Perth Quill Rilke Stern Trent Umber Varna Welby Yeovil Zurin"
    ).split()
)
ANIMALS = "fox owl bear wolf deer hare crow seal lynx goat swan mole".split()
METALS = "iron tin zinc lead gold silver copper nickel".split()
