"""The SavedModel: what it computes, how it is written from any backend, and the check that it answers as Keras does."""
