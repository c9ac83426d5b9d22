"""The shipped sweeps: one file for each study, with its protocol."""
