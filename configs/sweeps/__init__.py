"""The sweeps that the package ships: one file a study, with its protocol."""
