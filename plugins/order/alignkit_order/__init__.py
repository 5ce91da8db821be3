"""The order of the training rows: mixes of sources, curricula, groups and phases (keys of the section ``data``)."""
