"""Knowledge distillation from a teacher, on the data's completions and on the policy's own answers."""

from alignkit_distill.divergence import coarsened, divergence
from alignkit_distill.method import Distill
from alignkit_distill.settings import DistillSettings
from alignkit_distill.stored import StoredTeacher

__all__ = ["Distill", "DistillSettings", "StoredTeacher", "coarsened", "divergence"]
