"""Data sources, one file each: a file's `__all__` is what a recipe may name.

A source is `NAME(image_shape, *, seed, <options>) -> {"train": ImageSet, "test": ImageSet}`, with "validation" beside
them or in place of "test" where it has one, or `{"all": ImageSet}` where there is no official split. Its options are
among `path`, `root`, `name`, `columns`, `group`, `classes`, `count`, `split` and `max_bad_images`. Called with a
`split`, a source with an official split may return that one alone; one without returns "all". What a user can mend it
reports as a `UserError` that begins with the option's name. Importing a source file imports nothing heavy.

A file whose sources read files has a function `reads(source) -> (folder, files)` as well: given a recipe's source,
every file that it will read, and the folder that their names are told relative to. A change of one of them makes a run
again.
"""
