"""Runs on disk: trained, resumed, evaluated, logged."""
