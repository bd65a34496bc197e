"""The files in the hands of the engines that people open them with, value for value against a model."""
