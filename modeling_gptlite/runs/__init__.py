"""One run as a thing: what a script, a notebook and a test all start from."""
