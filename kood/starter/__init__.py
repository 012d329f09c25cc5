"""A first recipe for a user's own images: what they are, what this machine is, and a choice for each setting."""

from kood.starter.choices import Choices, choose
from kood.starter.images import Machine, Survey, survey
from kood.starter.recipe import new_recipe

__all__ = ["Choices", "Machine", "Survey", "choose", "new_recipe", "survey"]
