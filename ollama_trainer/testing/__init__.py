"""Stand-ins for programs that tests cannot count on, shipped so that others can test with them."""
