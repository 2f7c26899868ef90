"""From files, addresses and data sets to documents."""
