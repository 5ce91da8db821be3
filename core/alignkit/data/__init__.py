"""From a source on disk or hub to tokenised rows."""
