"""Engines that maintain tables themselves: what they and arcpipe do to one table, one after the other and at once."""
