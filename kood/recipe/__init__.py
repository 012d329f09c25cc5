"""The recipe: a TOML file, complete in itself, checked before anything runs.

Every setting of a run is a field of `Recipe`; what is not in the file has the default given here. `load` turns a file
into a `Recipe` or raises one `UserError` that names the file, each wrong key, what was found and what is allowed.
"""

from kood.recipe.loading import checked, load, shipped
from kood.recipe.model import Recipe, of_its_file

__all__ = ["Recipe", "checked", "load", "of_its_file", "shipped"]
