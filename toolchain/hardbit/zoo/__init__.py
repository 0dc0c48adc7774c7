"""The zoo: trained networks with recipe, weights and card, and the tables that are made of their cards.

Boundary: reads and writes down what runs measured; trains, attacks and times nothing.
"""

from hardbit.zoo.card import CARD_FILE, Card, read_card
from hardbit.zoo.listing import Model, list_models

__all__ = ["CARD_FILE", "Card", "Model", "list_models", "read_card"]
