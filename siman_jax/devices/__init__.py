"""Devices: the mesh, what they exchange, and stopping when the system asks."""
