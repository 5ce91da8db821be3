"""The cells of a sweep as tasks of a Ray cluster (``align sweep --scheduler ray``)."""

from alignkit_ray.scheduler import OnRay as OnRay
from alignkit_ray.scheduler import RaySettings as RaySettings
