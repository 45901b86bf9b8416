"""Small float64 network of the package's own checks, under a short name."""

from gpu_check.toy import OPTIMIZERS, ToyDetector, make_images, make_wrapper

__all__ = ['OPTIMIZERS', 'ToyDetector', 'make_images', 'make_wrapper']
