"""The files that readers see: their names, their columns, how they are written."""
