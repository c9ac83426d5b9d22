"""One library in C++, for packed inference and for training.

`library` loads it. A file here holds what XLA calls for one purpose; an instruction set's file, its
inner loops, and the library takes those of the fastest set that the machine has. It is built with
the package where there is a compiler, and nothing depends on it: XLA's own code gives the same
integers on every machine.
"""
