"""The pages, and what draws for them."""
