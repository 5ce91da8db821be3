"""The cells of a sweep as a job array of Slurm (``align sweep --scheduler slurm``)."""

from alignkit_slurm.scheduler import OnSlurm as OnSlurm
from alignkit_slurm.scheduler import SlurmSettings as SlurmSettings
