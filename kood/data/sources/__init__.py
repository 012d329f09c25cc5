"""Data sources, one file each: a file's `__all__` is what a recipe may name.

A source is `NAME(image_shape, *, seed, <options>) -> {"train": ImageSet, "test": ImageSet}`, with "validation" beside
them or in place of "test" where it has one, or `{"all": ImageSet}` where there is no official split. `image_shape` is
(H, W, C) of the images wanted; whatever comes in another is brought to it as `framing` has it. `seed` decides all that
is random. The options mean the same everywhere:

- `path`: a file or a folder, `~` and $VARIABLES expanded; `root`: the folder that the files it names are relative to.
- `name`: which of several data sets; `columns`: what a table calls its columns.
- `classes`: only these, in this order; `count`: at most so many images of each split, drawn at random.
- `split`: only this one. A source without an official split then returns "all" all the same.
- `max_bad_images`: how many files of each split may be left out because they cannot be read.
- `group`: what images of one group have in common, as `kood.data.listing.group_keys` has it.
- `framing`: what is seen through transparency and what becomes of other proportions, a `kood.data.rules.Framing`; or
  its `ground`, (red, green, blue), its `resize` or its `antialias` alone.

What a user can mend a source reports as a `UserError` that begins with the option's name. Importing a source file
imports nothing heavy. Sources that differ in a name and a size call one function of their file.

A file whose sources read files has a function `reads(source) -> (folder, files)` as well: given a recipe's source,
every file that it will read, and the folder that their names are told relative to. A change of one of them makes a run
again.
"""
