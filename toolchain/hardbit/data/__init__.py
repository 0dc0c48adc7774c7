"""Image sets, as bytes: whatever the source, images are uint8 (n, channels, height, width) and labels int64 (n,).

Boundary: nothing here augments or shuffles; the network's input is made from the bytes where it is needed.
"""

from hardbit.data.image_set import ImageFacts, ImageSet, carve_validation
from hardbit.data.load import data_fingerprint, image_facts, load_images, set_names

__all__ = ["ImageFacts", "ImageSet", "carve_validation", "data_fingerprint", "image_facts", "load_images", "set_names"]
