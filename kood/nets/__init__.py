"""The networks: classifier backbones (images to features) and denoisers (noised images to a prediction)."""
