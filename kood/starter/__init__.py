"""A first recipe for a user's own images: what they are, what this machine is, and a choice for each setting."""

from kood.starter.choices import Choices
from kood.starter.images import Machine, Survey, survey
from kood.starter.recipe import literal, named, new_recipe, slug_of, source_of

__all__ = ["Choices", "Machine", "Survey", "literal", "named", "new_recipe", "slug_of", "source_of", "survey"]
