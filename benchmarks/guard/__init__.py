"""The regression guard: the cost of arcpipe's parts, as ratios against references that are measured in the same run."""
