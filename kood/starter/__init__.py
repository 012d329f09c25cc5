"""A first recipe for a user's own images: what they are, what this machine is, and a choice for each setting."""

from kood.starter.images import Survey, survey
from kood.starter.recipe import literal, named, new_recipe, slug_of, source_of

__all__ = ["Survey", "literal", "named", "new_recipe", "slug_of", "source_of", "survey"]
