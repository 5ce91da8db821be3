"""How the cells of a sweep and the stages of a pipeline are carried out: the chosen scheduler, the local one, progress."""
