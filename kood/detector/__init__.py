"""A classifier's outputs -> its scores -> a calibrated decision."""
