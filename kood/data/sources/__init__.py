"""Data sources, one file each: a file's `__all__` is what a recipe may name.

A source is `NAME(image_shape, *, seed, <options>) -> {"train": ImageSet, "test": ImageSet}`, or `{"all": ImageSet}`
where there is no official split. Its options are among `path`, `name`, `classes`, `count` and `split`. Called with a
`split`, a source with an official split may return that one alone; one without returns "all". What a user can mend it
reports as a `UserError` that begins with the option's name. Importing a source file imports nothing heavy.
"""
