"""Devices: the mesh, the traffic between devices, and stopping on a signal."""
