"""Inputs of real clients and public reports, each with its right value. `inputs/` has them as they are sent."""
