"""Tables of each format, in each catalogue that runs here, as other programs read and change them."""
