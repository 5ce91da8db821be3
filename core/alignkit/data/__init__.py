"""Data loading: from files, URLs and hub data sets to tokenised, ordered rows."""
