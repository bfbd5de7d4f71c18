"""The networks: no files, no printing, no sampling, no guidance."""
