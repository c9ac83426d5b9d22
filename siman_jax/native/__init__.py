"""The library in C++, for packed inference and for training.

`library` loads it, and `dispatch` decides where it is used. Each other Python file builds the
functions for one purpose. In C++ each instruction set has one file with its inner loops; the
library runs those of the fastest set that the machine supports. It is built with the package if
there is a compiler, and is optional: XLA's own code gives the same integers on every machine.
"""
